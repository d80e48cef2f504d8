//! Whether an output is what a quorum of the network agreed on: checked by whoever receives it, trusting no node.
//!
//! What is trusted is a [`Trust`]: the chain's name, its UNL and its threshold. A user who has them from elsewhere than
//! the node it talks to need not believe that node anything.

use serde::{Deserialize, Serialize};

use super::{Base64, OutputFrame, RunEnd, Settled, Text, Welcome};
use crate::{
    consensus::{
        UNL_MAX,
        header::{self, ExecResult, Genesis, Header},
        merkle,
        messages::{Closed, Precommit, ResultCert, Scope, Signable, Vote},
        votes::Quorum,
    },
    crypto,
    types::{Attempt, Hash, NodeKey, Seq, Sig, Status, UserKey},
    wire,
};

/// Levels of the largest tree: there are not more users than that.
const SIBLINGS_MAX: usize = 32;
/// The thresholds there are, in percent.
const THRESHOLDS: std::ops::RangeInclusive<u8> = 67..=100;

/// Signers and signatures, ascending by signer.
pub type SignedBy = Vec<(Text<NodeKey>, Text<Sig>)>;

/// That a quorum agreed on one user's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputProof {
    /// Which result was agreed on, and how one knows.
    #[serde(flatten)]
    pub agreed: Agreement,
    /// That the output is in it.
    pub path: Path,
}

/// How one knows what result was agreed on. Either serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Agreement {
    /// A quorum signed the result itself.
    Results {
        /// The result, as it is signed (borsh).
        result: Base64,
        /// Signatures of RESULTs.
        sigs: SignedBy,
    },
    /// The next ledger names it, and a quorum closed that.
    Header {
        /// The next ledger's header, as it is hashed (borsh).
        header: Base64,
        /// The attempt in which it was closed.
        attempt: Attempt,
        /// Signatures of PRECOMMITs.
        sigs: SignedBy,
    },
}

/// The way from the output's leaf to `outputs_root`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Position of the leaf.
    pub index: u32,
    /// Siblings from the leaf upwards; null where a node moves up alone.
    pub siblings: Vec<Option<Text<Hash>>>,
}

impl Agreement {
    /// From a certificate with signatures.
    pub fn by_results(cert: &ResultCert) -> Agreement {
        Agreement::Results { result: Base64(wire::encode(&cert.result)), sigs: texts(&cert.sigs) }
    }

    /// From the ledger after the one that was run.
    pub fn by_header(next: &Closed) -> Agreement {
        let header = Base64(wire::encode(&next.header));
        Agreement::Header { header, attempt: next.qc.vote.attempt, sigs: texts(&next.qc.sigs) }
    }
}

impl From<merkle::Proof> for Path {
    fn from(proof: merkle::Proof) -> Path {
        Path { index: proof.index, siblings: proof.siblings.into_iter().map(|sibling| sibling.map(Text)).collect() }
    }
}

/// Signatures as they stand in JSON.
pub fn texts(sigs: &[(NodeKey, Sig)]) -> SignedBy {
    sigs.iter().map(|(key, sig)| (Text(*key), Text(*sig))).collect()
}

/// What a user has to believe of a network to check everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    chain_id: Hash,
    unl: Vec<NodeKey>,
    threshold: u8,
    /// Whether the chain's name stands for these members: they are those of its genesis.
    is_first_unl: bool,
}

/// Why something said about a network makes no sense, or is not what the user believes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Nobody, too many, or not ascending.
    #[error("a UNL has 1 to {UNL_MAX} members, ascending and each once; this one has {0}")]
    Unl(usize),
    /// Under such a threshold two quorums need not have an honest node in common.
    #[error("a threshold is 67 to 100 percent, not {0}")]
    Threshold(u8),
    /// The genesis a node shows is not that of the chain it names, or says something else than the node.
    #[error("what the node says of its chain does not fit the chain's genesis")]
    Genesis,
    /// The chain's name proves its first members alone.
    #[error(
        "the UNL has changed since the chain began, so the chain's name does not prove it; name its members as well"
    )]
    Changed,
    /// Not the chain the user asked for.
    #[error("the node is of chain {found}, not of {expected}")]
    Chain {
        /// The user's.
        expected: Hash,
        /// The node's.
        found: Hash,
    },
    /// Not the UNL the user asked for.
    #[error("the node's UNL is not the expected one: {0}")]
    OtherUnl(String),
}

/// Why an output is not proven.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Bytes that are no result, or no header.
    #[error("the {0} does not read")]
    Malformed(&'static str),
    /// Agreed on, but about something else.
    #[error("the proof is about {0}")]
    Other(&'static str),
    /// The run did not end well: it has no outputs.
    #[error("the run of ledger {seq} has no outputs: {status}")]
    Failed {
        /// The ledger.
        seq: Seq,
        /// How it ended.
        status: Status,
    },
    /// The path does not lead to the agreed root.
    #[error("the output is not among the agreed ones")]
    Path,
    /// Not a quorum of distinct members.
    #[error("{found} of the UNL's {members} members signed in order, a quorum is {quorum}")]
    TooFew {
        /// Signatures that count.
        found: usize,
        /// Members of the UNL.
        members: usize,
        /// Signatures needed.
        quorum: usize,
    },
    /// A signature is not its signer's over this.
    #[error("the signature of {0} is wrong")]
    Sig(NodeKey),
}

impl Trust {
    /// Errors when there can be no such network.
    pub fn new(chain_id: Hash, unl: Vec<NodeKey>, threshold: u8) -> Result<Trust, TrustError> {
        if unl.is_empty() || unl.len() > UNL_MAX || !unl.is_sorted_by(|a, b| a < b) {
            return Err(TrustError::Unl(unl.len()));
        }
        if !THRESHOLDS.contains(&threshold) {
            return Err(TrustError::Threshold(threshold));
        }
        Ok(Trust { chain_id, unl, threshold, is_first_unl: false })
    }

    /// What a node says of its network. The chain's name stands for its genesis, threshold and first UNL included.
    pub fn of(welcome: &Welcome) -> Result<Trust, TrustError> {
        let genesis: Genesis = wire::decode(&welcome.genesis.0).map_err(|_| TrustError::Genesis)?;
        let fits = genesis.chain_id() == welcome.chain.0
            && genesis.threshold == welcome.threshold
            && genesis.contract_id == welcome.contract.0;
        if !fits {
            return Err(TrustError::Genesis);
        }
        let unl = welcome.unl.iter().map(|key| key.0).collect();
        let mut trust = Trust::new(welcome.chain.0, unl, welcome.threshold)?;
        trust.is_first_unl = trust.unl == genesis.unl;
        Ok(trust)
    }

    /// Whether this is the chain, and these are the members, that the user knows from elsewhere.
    pub fn check_pins(&self, chain: Option<Hash>, unl: Option<&[NodeKey]>) -> Result<(), TrustError> {
        if let Some(expected) = chain.filter(|chain| *chain != self.chain_id) {
            return Err(TrustError::Chain { expected, found: self.chain_id });
        }
        let Some(expected) = unl else {
            return if chain.is_some() && !self.is_first_unl { Err(TrustError::Changed) } else { Ok(()) };
        };
        let list = |keys: &mut dyn Iterator<Item = &NodeKey>| keys.map(NodeKey::to_string).collect::<Vec<_>>();
        let missing = list(&mut expected.iter().filter(|key| !self.unl.contains(key)));
        let extra = list(&mut self.unl.iter().filter(|key| !expected.contains(key)));
        if missing.is_empty() && extra.is_empty() {
            return Ok(());
        }
        let mut what = Vec::new();
        if !missing.is_empty() {
            what.push(format!("without {}", missing.join(" ")));
        }
        if !extra.is_empty() {
            what.push(format!("with {}", extra.join(" ")));
        }
        Err(TrustError::OtherUnl(what.join(", ")))
    }

    /// The chain's name.
    pub fn chain_id(&self) -> Hash {
        self.chain_id
    }

    /// Members, ascending.
    pub fn unl(&self) -> &[NodeKey] {
        &self.unl
    }

    /// Signatures that prove something.
    pub fn quorum(&self) -> usize {
        Quorum::new(self.unl.len(), self.threshold).q
    }

    /// Whether a quorum agreed that the run of ledger `seq` put this out for `user`.
    pub fn check_output(&self, user: &UserKey, output: &OutputFrame) -> Result<(), ProofError> {
        let result = self.agreed(output.seq, output.ledger.0, &output.proof.agreed)?;
        if result.of_seq != output.seq || result.of_hash != output.ledger.0 {
            return Err(ProofError::Other("another ledger"));
        }
        if result.status != Status::Ok {
            return Err(ProofError::Failed { seq: result.of_seq, status: result.status });
        }
        let Path { index, siblings } = &output.proof.path;
        if siblings.len() > SIBLINGS_MAX {
            return Err(ProofError::Path);
        }
        let siblings = siblings.iter().map(|sibling| sibling.map(|sibling| sibling.0)).collect();
        let leaf = merkle::output_leaf(user, &output.payload.0);
        match (merkle::Proof { index: *index, siblings }).root(leaf) == result.outputs_root {
            true => Ok(()),
            false => Err(ProofError::Path),
        }
    }

    /// Whether a quorum agreed that the run of this ledger ended so; `false` when the node does not prove it.
    pub fn check_run(&self, seq: Seq, ledger: Hash, run: &RunEnd) -> Result<bool, ProofError> {
        let Some(proof) = &run.proof else { return Ok(false) };
        let result = self.agreed(seq, ledger, proof)?;
        if result.of_seq != seq || result.of_hash != ledger {
            return Err(ProofError::Other("another ledger"));
        }
        match *run == RunEnd::of(&result, run.proof.clone()) {
            true => Ok(true),
            false => Err(ProofError::Other("another end of the run")),
        }
    }

    /// Whether a quorum recorded that the bus confirmed this: everything but `first`, which no header names.
    pub fn check_settled(&self, settled: &Settled) -> Result<(), ProofError> {
        let Agreement::Header { header, attempt, sigs } = &settled.proof else {
            return Err(ProofError::Other("a result"));
        };
        let header = self.closed(header, *attempt, sigs)?;
        if header.seq != settled.recorded_in {
            return Err(ProofError::Other("another ledger"));
        }
        let said = header.settlement.map(|it| (it.seq, it.tx, it.ch, it.confirmed_length));
        let claimed = (settled.last, settled.tx.0, settled.ch.0, settled.confirmed_length);
        match said == Some(claimed) && (1..=settled.last).contains(&settled.first) {
            true => Ok(()),
            false => Err(ProofError::Other("another settlement")),
        }
    }

    /// The result of this ledger that a quorum stands behind.
    fn agreed(&self, seq: Seq, ledger: Hash, agreement: &Agreement) -> Result<ExecResult, ProofError> {
        match agreement {
            Agreement::Results { result, sigs } => {
                let result: ExecResult = wire::decode(&result.0).map_err(|_| ProofError::Malformed("result"))?;
                self.signed_by_quorum(&result, sigs)?;
                Ok(result)
            }
            Agreement::Header { header, attempt, sigs } => {
                let header = self.closed(header, *attempt, sigs)?;
                match Some(header.seq) == seq.checked_add(1) && header.parent == ledger {
                    true => Ok(header.result),
                    false => Err(ProofError::Other("another ledger")),
                }
            }
        }
    }

    /// A header of this chain that a quorum of this UNL closed.
    fn closed(&self, header: &Base64, attempt: Attempt, sigs: &SignedBy) -> Result<Header, ProofError> {
        let header: Header = wire::decode(&header.0).map_err(|_| ProofError::Malformed("header"))?;
        if header.chain_id != self.chain_id {
            return Err(ProofError::Other("another chain"));
        }
        if header.unl_hash != self.scope().unl_hash {
            return Err(ProofError::Other("a ledger of another UNL"));
        }
        let vote = Vote { seq: header.seq, attempt, ledger_hash: header.hash() };
        self.signed_by_quorum(&Precommit(vote), sigs)?;
        Ok(header)
    }

    fn scope(&self) -> Scope {
        Scope { chain_id: self.chain_id, unl_hash: header::unl_hash(&self.unl) }
    }

    /// At least a quorum of distinct members signed this.
    fn signed_by_quorum(&self, body: &impl Signable, sigs: &SignedBy) -> Result<(), ProofError> {
        let digest = body.digest(&self.scope());
        let mut last: Option<NodeKey> = None;
        let mut found = 0;
        for (Text(key), Text(sig)) in sigs {
            if last.is_some_and(|last| last >= *key) || !self.unl.contains(key) {
                break;
            }
            if !crypto::verify(&key.0, &digest.0, sig) {
                return Err(ProofError::Sig(*key));
            }
            last = Some(*key);
            found += 1;
        }
        let quorum = self.quorum();
        if found == sigs.len() && found >= quorum {
            return Ok(());
        }
        Err(ProofError::TooFew { found, members: self.unl.len(), quorum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{consensus::messages::Certificate, crypto::SecretKey};

    const CHAIN: Hash = Hash([7; 32]);
    const LEDGER: Hash = Hash([4; 32]);

    fn nodes(count: u8) -> Vec<SecretKey> {
        let mut nodes: Vec<SecretKey> = (1..=count).map(|seed| SecretKey::from_seed([seed; 32])).collect();
        nodes.sort_by_key(SecretKey::node_key);
        nodes
    }

    fn trust() -> Trust {
        Trust::new(CHAIN, nodes(5).iter().map(SecretKey::node_key).collect(), 80).unwrap()
    }

    fn user() -> UserKey {
        UserKey([0x22; 32])
    }

    fn outputs() -> Vec<(UserKey, Vec<u8>)> {
        (0..5).map(|at| (UserKey([0x20 + at; 32]), vec![b'a' + at; 3])).collect()
    }

    fn leaves() -> Vec<Hash> {
        outputs().iter().map(|(user, output)| merkle::output_leaf(user, output)).collect()
    }

    fn result() -> ExecResult {
        ExecResult {
            of_seq: 4,
            of_hash: LEDGER,
            state_root: Hash([5; 32]),
            outputs_root: merkle::root(leaves()),
            status: Status::Ok,
            unl_req: None,
        }
    }

    fn next(result: ExecResult) -> Header {
        Header {
            ver: header::VERSION,
            chain_id: CHAIN,
            seq: 5,
            parent: LEDGER,
            time_ms: 1,
            unl_hash: trust().scope().unl_hash,
            next_unl_hash: trust().scope().unl_hash,
            users_root: Hash::ZERO,
            n_users: 0,
            inputs_root: Hash::ZERO,
            n_inputs: 0,
            inputs_bytes: 0,
            result,
            settlement: None,
        }
    }

    fn signatures(body: &impl Signable, signers: &[SecretKey]) -> Vec<(NodeKey, Sig)> {
        let digest = body.digest(&trust().scope());
        signers.iter().map(|key| (key.node_key(), key.sign(&digest.0))).collect()
    }

    fn by_results(result: &ExecResult, signers: &[SecretKey]) -> Agreement {
        Agreement::by_results(&ResultCert { result: result.clone(), sigs: signatures(result, signers) })
    }

    fn by_header(header: &Header, signers: &[SecretKey]) -> Agreement {
        let vote = Vote { seq: header.seq, attempt: 2, ledger_hash: header.hash() };
        let qc = Certificate { vote, sigs: signatures(&Precommit(vote), signers) };
        Agreement::by_header(&Closed { header: header.clone(), qc })
    }

    fn output(agreed: Agreement) -> OutputFrame {
        let path = merkle::proof(leaves(), 2).unwrap().into();
        let payload = Base64(b"ccc".to_vec());
        OutputFrame { seq: 4, ledger: Text(LEDGER), payload, is_final: None, proof: OutputProof { agreed, path } }
    }

    /// A header that records a settlement, and what a node says of it.
    fn settled(header: &Header, signers: &[SecretKey]) -> Settled {
        let (tx, ch) = (Text(Hash([0x54; 32])), Text(Hash([0xc4; 32])));
        Settled { first: 1, last: 3, tx, ch, confirmed_length: 9, recorded_in: 5, proof: by_header(header, signers) }
    }

    fn recording() -> Header {
        let settlement = header::Settlement {
            seq: 3,
            ch: Hash([0xc4; 32]),
            tx: Hash([0x54; 32]),
            confirmed_length: 9,
            txv: Hash([0x56; 32]),
        };
        Header { settlement: Some(settlement), ..next(result()) }
    }

    #[test]
    fn a_settlement_is_what_a_quorum_recorded_in_every_field_but_where_it_begins() {
        let signers = &nodes(5)[..4];
        let right = settled(&recording(), signers);
        assert_eq!(trust().check_settled(&right), Ok(()));
        assert_eq!(trust().check_settled(&Settled { first: 3, ..right.clone() }), Ok(()), "that is the node's word");
        for lie in [
            Settled { first: 0, ..right.clone() },
            Settled { first: 4, ..right.clone() },
            Settled { last: 2, ..right.clone() },
            Settled { tx: Text(Hash([1; 32])), ..right.clone() },
            Settled { ch: Text(Hash([1; 32])), ..right.clone() },
            Settled { confirmed_length: 8, ..right.clone() },
            settled(&next(result()), signers),
        ] {
            let other = Err(ProofError::Other("another settlement"));
            assert_eq!(trust().check_settled(&lie), other, "{lie:?}");
        }
        let elsewhere = Settled { recorded_in: 6, ..right.clone() };
        assert_eq!(trust().check_settled(&elsewhere), Err(ProofError::Other("another ledger")));
        let by_result = Settled { proof: by_results(&result(), signers), ..right };
        assert_eq!(trust().check_settled(&by_result), Err(ProofError::Other("a result")));
        let few = settled(&recording(), &nodes(5)[..3]);
        assert!(matches!(trust().check_settled(&few), Err(ProofError::TooFew { found: 3, .. })));
        let foreign = settled(&Header { chain_id: Hash([8; 32]), ..recording() }, signers);
        assert_eq!(trust().check_settled(&foreign), Err(ProofError::Other("another chain")));
    }

    fn both() -> [OutputFrame; 2] {
        let signers = &nodes(5)[..4];
        [output(by_results(&result(), signers)), output(by_header(&next(result()), signers))]
    }

    fn check(output: &OutputFrame) -> Result<(), ProofError> {
        trust().check_output(&user(), output)
    }

    fn changed(output: &OutputFrame, change: impl FnOnce(&mut OutputFrame)) -> Result<(), ProofError> {
        let mut output = output.clone();
        change(&mut output);
        check(&output)
    }

    fn sigs(output: &mut OutputFrame) -> &mut SignedBy {
        match &mut output.proof.agreed {
            Agreement::Results { sigs, .. } | Agreement::Header { sigs, .. } => sigs,
        }
    }

    #[test]
    fn an_output_is_proven_by_results_and_by_the_next_header_also_after_json() {
        for output in both() {
            assert_eq!(check(&output), Ok(()));
            let json = serde_json::to_string(&output).unwrap();
            assert_eq!(serde_json::from_str::<OutputFrame>(&json).unwrap(), output, "{json}");
            // More than a quorum serves too.
            let all = match output.proof.agreed {
                Agreement::Results { .. } => by_results(&result(), &nodes(5)),
                Agreement::Header { .. } => by_header(&next(result()), &nodes(5)),
            };
            assert_eq!(check(&super::tests::output(all)), Ok(()));
        }
    }

    #[test]
    fn a_changed_payload_user_sequence_or_path_is_refused() {
        for output in both() {
            assert_eq!(changed(&output, |output| output.payload.0[0] ^= 1), Err(ProofError::Path));
            assert_eq!(changed(&output, |output| output.payload.0.clear()), Err(ProofError::Path));
            assert_eq!(trust().check_output(&UserKey([0x21; 32]), &output), Err(ProofError::Path));
            assert!(matches!(changed(&output, |output| output.seq = 3), Err(ProofError::Other(_))));
            assert!(matches!(changed(&output, |output| output.seq = u64::MAX), Err(ProofError::Other(_))));
            assert!(matches!(changed(&output, |output| output.ledger.0.0[0] ^= 1), Err(ProofError::Other(_))));
            assert_eq!(changed(&output, |output| output.proof.path.index = 3), Err(ProofError::Path));
            let flip = |output: &mut OutputFrame| output.proof.path.siblings[0].as_mut().unwrap().0.0[31] ^= 1;
            assert_eq!(changed(&output, flip), Err(ProofError::Path));
            let short = |output: &mut OutputFrame| output.proof.path.siblings.truncate(1);
            assert_eq!(changed(&output, short), Err(ProofError::Path));
            let long = |output: &mut OutputFrame| output.proof.path.siblings.resize(SIBLINGS_MAX + 1, None);
            assert_eq!(changed(&output, long), Err(ProofError::Path));
        }
    }

    #[test]
    fn too_few_strange_repeated_or_wrong_signatures_are_refused() {
        let too_few = |found| Err(ProofError::TooFew { found, members: 5, quorum: 4 });
        for output in both() {
            assert_eq!(changed(&output, |output| sigs(output).truncate(3)), too_few(3));
            assert_eq!(changed(&output, |output| sigs(output).clear()), too_few(0));
            let twice = |output: &mut OutputFrame| {
                let sigs = sigs(output);
                sigs[3] = sigs[2];
            };
            assert_eq!(changed(&output, twice), too_few(3), "one signer twice");
            assert_eq!(changed(&output, |output| sigs(output).reverse()), too_few(1), "not ascending");
            let wrong = |output: &mut OutputFrame| sigs(output)[1].1.0.0[0] ^= 1;
            assert_eq!(changed(&output, wrong), Err(ProofError::Sig(trust().unl()[1])));
            let swapped = |output: &mut OutputFrame| {
                let sigs = sigs(output);
                sigs[0].1 = sigs[1].1;
            };
            assert_eq!(changed(&output, swapped), Err(ProofError::Sig(trust().unl()[0])));
            let stranger = |output: &mut OutputFrame| {
                sigs(output).push((Text(NodeKey([0xff; 32])), Text(Sig([0; 64]))));
            };
            assert_eq!(changed(&output, stranger), too_few(4), "somebody outside the UNL beside a quorum");
        }
    }

    #[test]
    fn another_unl_chain_or_threshold_is_refused() {
        for output in both() {
            let unl = |count: u8| nodes(count).iter().map(SecretKey::node_key).collect::<Vec<_>>();
            for other in [
                Trust::new(Hash([8; 32]), unl(5), 80).unwrap(),
                Trust::new(CHAIN, unl(4), 80).unwrap(),
                Trust::new(CHAIN, unl(6), 67).unwrap(),
                Trust::new(CHAIN, unl(5), 100).unwrap(),
            ] {
                assert!(other.check_output(&user(), &output).is_err(), "{other:?}");
            }
        }
    }

    #[test]
    fn a_result_of_a_failed_run_proves_no_output() {
        let failed = ExecResult { status: Status::Exit(3), ..result() };
        let refused = Err(ProofError::Failed { seq: 4, status: Status::Exit(3) });
        assert_eq!(check(&output(by_results(&failed, &nodes(5)))), refused);
        assert_eq!(check(&output(by_header(&next(failed), &nodes(5)))), refused);
    }

    #[test]
    fn a_header_of_another_place_chain_or_unl_proves_nothing() {
        for (header, what) in [
            (Header { chain_id: Hash([8; 32]), ..next(result()) }, "another chain"),
            (Header { unl_hash: Hash([8; 32]), ..next(result()) }, "a ledger of another UNL"),
            (Header { seq: 6, ..next(result()) }, "another ledger"),
            (Header { parent: Hash([8; 32]), ..next(result()) }, "another ledger"),
            (next(ExecResult { of_seq: 3, ..result() }), "another ledger"),
            (next(ExecResult { of_hash: Hash([8; 32]), ..result() }), "another ledger"),
        ] {
            assert_eq!(check(&output(by_header(&header, &nodes(5)))), Err(ProofError::Other(what)));
        }
        let other = ExecResult { of_seq: 3, ..result() };
        assert_eq!(check(&output(by_results(&other, &nodes(5)))), Err(ProofError::Other("another ledger")));
    }

    #[test]
    fn bytes_that_are_no_result_or_header_are_refused() {
        for mut output in both() {
            match &mut output.proof.agreed {
                Agreement::Results { result, .. } => result.0.push(0),
                Agreement::Header { header, .. } => header.0.truncate(10),
            }
            assert!(matches!(check(&output), Err(ProofError::Malformed(_))));
        }
        // Votes of one kind are none of the other: prevotes for the header close nothing.
        let header = next(result());
        let vote = Vote { seq: 5, attempt: 2, ledger_hash: header.hash() };
        let prevotes = signatures(&crate::consensus::messages::Prevote(vote), &nodes(5));
        let by = Agreement::by_header(&Closed { header, qc: Certificate { vote, sigs: prevotes } });
        assert!(matches!(check(&output(by)), Err(ProofError::Sig(_))));
    }

    fn welcome() -> Welcome {
        let genesis = Genesis {
            ver: header::VERSION,
            contract_id: Hash([1; 32]),
            unl: trust().unl().to_vec(),
            threshold: 80,
            cfg_hash: Hash([2; 32]),
            state_root: Hash::ZERO,
            time_ms: 3,
            ancestor: None,
        };
        Welcome {
            node: Text(trust().unl()[0]),
            contract: Text(genesis.contract_id),
            chain: Text(genesis.chain_id()),
            genesis: Base64(wire::encode(&genesis)),
            unl: genesis.unl.iter().copied().map(Text).collect(),
            threshold: 80,
            seq: 9,
            lcl: Text(LEDGER),
            time: 1,
            execute: Text(crate::types::Execute::Closed),
            settled_seq: 0,
            limits: crate::signed::Limits { payload_bytes: 1, messages_per_minute: None, input_window: 2 },
        }
    }

    #[test]
    fn a_chains_name_proves_its_threshold_and_first_unl_and_nothing_later() {
        let first = Trust::of(&welcome()).unwrap();
        assert_eq!(first.check_pins(Some(first.chain_id()), None), Ok(()));
        for lie in [
            Welcome { threshold: 67, ..welcome() },
            Welcome { chain: Text(Hash([9; 32])), ..welcome() },
            Welcome { contract: Text(Hash([9; 32])), ..welcome() },
            Welcome { genesis: Base64(vec![]), ..welcome() },
        ] {
            assert_eq!(Trust::of(&lie), Err(TrustError::Genesis));
        }
        let other = Welcome { unl: welcome().unl[1..].to_vec(), ..welcome() };
        let other = Trust::of(&other).unwrap();
        assert_eq!(other.check_pins(Some(other.chain_id()), None), Err(TrustError::Changed));
        assert_eq!(other.check_pins(Some(other.chain_id()), Some(other.unl())), Ok(()), "by the user's own word");
        assert_eq!(other.check_pins(None, None), Ok(()), "who pins nothing believes the node");
    }

    #[test]
    fn a_network_that_cannot_be_is_not_trusted_and_pins_are_compared() {
        let unl = trust().unl().to_vec();
        assert_eq!(Trust::new(CHAIN, vec![], 80), Err(TrustError::Unl(0)));
        assert_eq!(Trust::new(CHAIN, unl.iter().rev().copied().collect(), 80), Err(TrustError::Unl(5)));
        assert_eq!(Trust::new(CHAIN, vec![unl[0]; 2], 80), Err(TrustError::Unl(2)));
        assert_eq!(Trust::new(CHAIN, unl.clone(), 66), Err(TrustError::Threshold(66)));
        assert_eq!(Trust::new(CHAIN, unl.clone(), 101), Err(TrustError::Threshold(101)));

        assert_eq!(trust().check_pins(Some(CHAIN), Some(&unl)), Ok(()));

        let reversed: Vec<NodeKey> = unl.iter().rev().copied().collect();
        assert_eq!(trust().check_pins(None, Some(&reversed)), Ok(()), "in any order");
        let expected = Hash([1; 32]);
        let other = TrustError::Chain { expected, found: CHAIN };
        assert_eq!(trust().check_pins(Some(expected), None), Err(other));
        let Err(TrustError::OtherUnl(what)) = trust().check_pins(None, Some(&unl[..4])) else { panic!("refused") };
        assert_eq!(what, format!("with {}", unl[4]));
        let mut more = unl.clone();
        more.push(NodeKey([9; 32]));
        let Err(TrustError::OtherUnl(what)) = trust().check_pins(None, Some(&more)) else { panic!("refused") };
        assert_eq!(what, format!("without {}", NodeKey([9; 32])));
    }
}
