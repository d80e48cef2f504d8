//! Whether an output is what a quorum of the network agreed on: checked by whoever receives it, trusting no node.
//!
//! What is trusted is a [`Trust`]: the chain's name, its UNL and its threshold. A user who has them from elsewhere than
//! the node it talks to need not believe that node anything. When the members change, those before the change have
//! signed it, so who trusted them trusts the others.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Base64, OutputFrame, RunEnd, Settled, Text, UnlStep, Welcome};
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

/// UNLs of one chain that are remembered, to check what was signed under them. Past it the oldest is forgotten: outputs of then are
/// not proven any more.
const UNLS_MAX: usize = 1_024;

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
    threshold: u8,
    /// The members, and those before them, ascending by ledger; never empty.
    unls: Vec<Members>,
}

/// A UNL, and from when on it is in force: until the next one is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Members {
    /// First ledger that they close; they sign the result of the one before it.
    since: Seq,
    /// Ascending.
    unl: Vec<NodeKey>,
    hash: Hash,
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
    /// The members are not those that the chain began with, and nothing proves how they came to be it.
    #[error("the node does not prove how its members, {0}, followed those that the chain began with")]
    Unproven(String),
    /// What is to prove a change of the members does not.
    #[error("the node shows a change of the members in ledger {seq} that is not proven")]
    Step {
        /// The ledger.
        seq: Seq,
        /// Why not.
        source: ProofError,
    },
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
        let hash = header::unl_hash(&unl);
        Ok(Trust { chain_id, threshold, unls: vec![Members { since: 0, unl, hash }] })
    }

    /// The network that a node names, with its first members: the chain's name stands for its genesis, which has them and the
    /// threshold.
    pub fn of(welcome: &Welcome) -> Result<Trust, TrustError> {
        let genesis: Genesis = wire::decode(&welcome.genesis.0).map_err(|_| TrustError::Genesis)?;
        let fits = genesis.chain_id() == welcome.chain.0
            && genesis.threshold == welcome.threshold
            && genesis.contract_id == welcome.contract.0;
        if !fits {
            return Err(TrustError::Genesis);
        }
        Trust::new(welcome.chain.0, genesis.unl, welcome.threshold)
    }

    /// The same with what the user knows of it from elsewhere: that it is this chain, and that these are or once were the members.
    pub fn pinned(welcome: &Welcome, chain: Option<Hash>, unl: Option<&[NodeKey]>) -> Result<Trust, TrustError> {
        let trust = Trust::of(welcome)?;
        if let Some(expected) = chain.filter(|chain| *chain != trust.chain_id) {
            return Err(TrustError::Chain { expected, found: trust.chain_id });
        }
        let Some(unl) = unl else { return Ok(trust) };
        let unl: BTreeSet<NodeKey> = unl.iter().copied().collect();
        Trust::new(trust.chain_id, unl.into_iter().collect(), trust.threshold)
    }

    /// The ledger behind which changes of the members are not known.
    pub fn known_to(&self) -> Seq {
        self.members().since.saturating_sub(1)
    }

    /// Whether these are the members, or were, as far as that is known.
    pub fn knows(&self, unl: &[Text<NodeKey>]) -> bool {
        let same = |members: &Members| members.unl.iter().eq(unl.iter().map(|key| &key.0));
        self.unls.iter().rev().any(same)
    }

    /// Whether this change follows on the last members: then the others are the members from now on. One that is known
    /// already, or is of other members, changes nothing.
    pub fn follow(&mut self, step: &UnlStep) -> Result<bool, ProofError> {
        let header: Header = wire::decode(&step.ledger.header.0).map_err(|_| ProofError::Malformed("header"))?;
        let last = self.members();
        if header.unl_hash != last.hash || header.seq < last.since {
            return Ok(false);
        }
        let header = self.closed(&step.ledger.header, step.ledger.attempt, &step.ledger.sigs)?;
        if header.seq != step.seq || header.hash() != step.ledger.hash.0 {
            return Err(ProofError::Other("another ledger"));
        }
        let unl = step.change().apply(&last.unl).filter(|unl| header::unl_hash(unl) == header.next_unl_hash);
        let unl = unl.ok_or(ProofError::Other("another change"))?;
        // Behind the last ledger there is nothing to check.
        let since = header.seq.checked_add(1).ok_or(ProofError::Other("the last ledger of all"))?;
        self.unls.push(Members { since, unl, hash: header.next_unl_hash });
        if self.unls.len() > UNLS_MAX {
            self.unls.remove(0);
        }
        Ok(true)
    }

    /// Whether these are or were the members, which they are where every change was followed; `is_pinned` says that the user
    /// named those that it began with.
    pub fn check_unl(&self, unl: &[Text<NodeKey>], is_pinned: bool) -> Result<(), TrustError> {
        if self.knows(unl) {
            return Ok(());
        }
        let expected = self.unl();
        let unl: Vec<NodeKey> = unl.iter().map(|key| key.0).collect();
        let list = |keys: &mut dyn Iterator<Item = &NodeKey>| keys.map(NodeKey::to_string).collect::<Vec<_>>();
        if !is_pinned {
            return Err(TrustError::Unproven(list(&mut unl.iter()).join(" ")));
        }
        let missing = list(&mut expected.iter().filter(|key| !unl.contains(key)));
        let extra = list(&mut unl.iter().filter(|key| !expected.contains(key)));
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
        &self.members().unl
    }

    /// Signatures that prove something now.
    pub fn quorum(&self) -> usize {
        Quorum::new(self.unl().len(), self.threshold).q
    }

    fn members(&self) -> &Members {
        self.unls.last().expect("never empty")
    }

    /// Who decides this ledger, as far as changes are known; the oldest that are known, of what is older.
    fn members_of(&self, seq: Seq) -> &Members {
        self.unls.iter().rfind(|members| members.since <= seq).unwrap_or(&self.unls[0])
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
                // Those sign it who close the next ledger.
                self.signed_by_quorum(self.members_of(result.of_seq.saturating_add(1)), &result, sigs)?;
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
        let members = self.members_of(header.seq);
        if header.unl_hash != members.hash {
            return Err(ProofError::Other("a ledger of another UNL"));
        }
        let vote = Vote { seq: header.seq, attempt, ledger_hash: header.hash() };
        self.signed_by_quorum(members, &Precommit(vote), sigs)?;
        Ok(header)
    }

    /// At least a quorum of distinct ones of these members signed this.
    fn signed_by_quorum(&self, members: &Members, body: &impl Signable, sigs: &SignedBy) -> Result<(), ProofError> {
        let Members { unl, hash, .. } = members;
        let digest = body.digest(&Scope { chain_id: self.chain_id, unl_hash: *hash });
        let mut last: Option<NodeKey> = None;
        let mut found = 0;
        for (Text(key), Text(sig)) in sigs {
            if last.is_some_and(|last| last >= *key) || !unl.contains(key) {
                break;
            }
            if !crypto::verify(&key.0, &digest.0, sig) {
                return Err(ProofError::Sig(*key));
            }
            last = Some(*key);
            found += 1;
        }
        let quorum = Quorum::new(unl.len(), self.threshold).q;
        if found == sigs.len() && found >= quorum {
            return Ok(());
        }
        Err(ProofError::TooFew { found, members: unl.len(), quorum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{consensus::messages::Certificate, crypto::SecretKey, signed::LedgerFrame};

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
            unl_hash: trust().members().hash,
            next_unl_hash: trust().members().hash,
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
        let digest = body.digest(&Scope { chain_id: CHAIN, unl_hash: trust().members().hash });
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
        let first = Trust::pinned(&welcome(), Some(welcome().chain.0), None).unwrap();
        assert_eq!(first.check_unl(&welcome().unl, false), Ok(()));
        for lie in [
            Welcome { threshold: 67, ..welcome() },
            Welcome { chain: Text(Hash([9; 32])), ..welcome() },
            Welcome { contract: Text(Hash([9; 32])), ..welcome() },
            Welcome { genesis: Base64(vec![]), ..welcome() },
        ] {
            assert_eq!(Trust::of(&lie), Err(TrustError::Genesis));
        }
        let expected = Hash([1; 32]);
        let other = TrustError::Chain { expected, found: welcome().chain.0 };
        assert_eq!(Trust::pinned(&welcome(), Some(expected), None), Err(other));

        // Others have to be proven, or known to the user from elsewhere.
        let unl = welcome().unl[1..].to_vec();
        let keys: Vec<NodeKey> = unl.iter().map(|key| key.0).collect();
        assert!(matches!(first.check_unl(&unl, false), Err(TrustError::Unproven(_))));
        let pinned = Trust::pinned(&welcome(), None, Some(&keys)).unwrap();
        assert_eq!(pinned.check_unl(&unl, true), Ok(()));
    }

    #[test]
    fn a_network_that_cannot_be_is_not_trusted_and_pins_are_compared() {
        let unl = trust().unl().to_vec();
        assert_eq!(Trust::new(CHAIN, vec![], 80), Err(TrustError::Unl(0)));
        assert_eq!(Trust::new(CHAIN, unl.iter().rev().copied().collect(), 80), Err(TrustError::Unl(5)));
        assert_eq!(Trust::new(CHAIN, vec![unl[0]; 2], 80), Err(TrustError::Unl(2)));
        assert_eq!(Trust::new(CHAIN, unl.clone(), 66), Err(TrustError::Threshold(66)));
        assert_eq!(Trust::new(CHAIN, unl.clone(), 101), Err(TrustError::Threshold(101)));

        let pinned = |unl: &[NodeKey]| Trust::pinned(&welcome(), None, Some(unl)).unwrap();
        let reversed: Vec<NodeKey> = unl.iter().rev().copied().collect();
        assert_eq!(pinned(&reversed).check_unl(&welcome().unl, true), Ok(()), "in any order");
        let told = pinned(&unl[..4]).check_unl(&welcome().unl, true);
        assert_eq!(told, Err(TrustError::OtherUnl(format!("with {}", unl[4]))));
        let mut more = unl.clone();
        more.push(NodeKey([9; 32]));
        let told = pinned(&more).check_unl(&welcome().unl, true);
        assert_eq!(told, Err(TrustError::OtherUnl(format!("without {}", NodeKey([9; 32])))));
    }

    // ---- Members that change: five at first, then without the last one, then with a sixth ------------------------------

    fn joiner() -> SecretKey {
        SecretKey::from_seed([77; 32])
    }

    /// Those who close ledger `seq`, where ledgers 5 and 8 change them.
    fn in_force(seq: Seq) -> Vec<SecretKey> {
        let mut all = nodes(5);
        if seq > 5 {
            all.pop();
        }
        if seq > 8 {
            all.push(joiner());
        }
        all.sort_by_key(SecretKey::node_key);
        all
    }

    fn unl_of(seq: Seq) -> Vec<NodeKey> {
        in_force(seq).iter().map(SecretKey::node_key).collect()
    }

    fn certified(header: Header, signers: &[SecretKey]) -> Closed {
        let vote = Vote { seq: header.seq, attempt: 0, ledger_hash: header.hash() };
        let digest = Precommit(vote).digest(&Scope { chain_id: CHAIN, unl_hash: header.unl_hash });
        let sigs = signers.iter().map(|key| (key.node_key(), key.sign(&digest.0))).collect();
        Closed { header, qc: Certificate { vote, sigs } }
    }

    fn header_of(seq: Seq) -> Header {
        let (unl_hash, next_unl_hash) = (header::unl_hash(&unl_of(seq)), header::unl_hash(&unl_of(seq + 1)));
        Header { seq, unl_hash, next_unl_hash, ..next(ExecResult { of_seq: seq - 1, ..result() }) }
    }

    fn closed(seq: Seq) -> Closed {
        certified(header_of(seq), &in_force(seq))
    }

    fn gone() -> header::UnlChange {
        header::UnlChange::Remove(*unl_of(5).iter().find(|key| !unl_of(6).contains(key)).unwrap())
    }

    fn steps() -> [UnlStep; 2] {
        let came = header::UnlChange::Add(joiner().node_key());
        [UnlStep::of(&closed(5), &gone()), UnlStep::of(&closed(8), &came)]
    }

    fn followed() -> Trust {
        let mut trust = trust();
        for step in steps() {
            assert_eq!(trust.follow(&step), Ok(true));
        }
        trust
    }

    #[test]
    fn members_are_followed_and_what_was_signed_is_checked_with_those_of_its_ledger() {
        let trust = followed();
        assert_eq!(trust.unl(), unl_of(9));
        assert_eq!(trust.known_to(), 8);
        for seq in 4..12 {
            let listed = Agreement::by_header(&closed(seq));
            let Agreement::Header { header, attempt, sigs } = &listed else { unreachable!() };
            assert!(trust.closed(header, *attempt, sigs).is_ok(), "{seq}");
            let result = ExecResult { of_seq: seq - 1, ..result() };
            let digest = result.digest(&Scope { chain_id: CHAIN, unl_hash: header_of(seq).unl_hash });
            let sigs = in_force(seq).iter().map(|key| (key.node_key(), key.sign(&digest.0))).collect();
            let by = Agreement::by_results(&ResultCert { result, sigs });
            assert!(trust.agreed(seq - 1, LEDGER, &by).is_ok(), "{seq}");
        }
        let list = |unl: Vec<NodeKey>| unl.into_iter().map(Text).collect::<Vec<_>>();
        assert!(trust.knows(&list(unl_of(9))) && trust.knows(&list(unl_of(1))));
        assert!(!trust.knows(&list(nodes(3).iter().map(SecretKey::node_key).collect())));
    }

    #[test]
    fn members_of_one_time_prove_nothing_of_another() {
        let trust = followed();
        // Those of the beginning close a ledger of today: their keys may be anybody's by now.
        let late = Header { unl_hash: header::unl_hash(&unl_of(1)), ..header_of(11) };
        let by = Agreement::by_header(&certified(late, &in_force(1)));
        assert_eq!(trust.agreed(10, LEDGER, &by), Err(ProofError::Other("a ledger of another UNL")));
        let early = Header { unl_hash: header::unl_hash(&unl_of(9)), ..header_of(7) };
        let by = Agreement::by_header(&certified(early, &in_force(9)));
        assert_eq!(trust.agreed(6, LEDGER, &by), Err(ProofError::Other("a ledger of another UNL")));
        let result = ExecResult { of_seq: 10, ..result() };
        let digest = result.digest(&Scope { chain_id: CHAIN, unl_hash: header::unl_hash(&unl_of(1)) });
        let sigs = in_force(1).iter().map(|key| (key.node_key(), key.sign(&digest.0))).collect();
        let by = Agreement::by_results(&ResultCert { result, sigs });
        assert!(trust.agreed(10, LEDGER, &by).is_err());
    }

    #[test]
    fn a_change_is_followed_once_in_its_place_and_only_when_a_quorum_signed_it() {
        let [first, second] = steps();
        let mut trust = trust();
        assert_eq!(trust.follow(&second), Ok(false), "of other members than ours");
        let few = certified(header_of(5), &in_force(5)[..3]);
        let few = UnlStep::of(&few, &gone());
        assert_eq!(trust.follow(&few), Err(ProofError::TooFew { found: 3, members: 5, quorum: 4 }));
        let other = header::UnlChange::Add(NodeKey([9; 32]));
        assert_eq!(trust.follow(&UnlStep::of(&closed(5), &other)), Err(ProofError::Other("another change")));
        let stays = UnlStep::of(&closed(4), &gone());
        assert_eq!(trust.follow(&stays), Err(ProofError::Other("another change")), "the header changes nothing");
        let named = UnlStep { seq: 6, ..first.clone() };
        assert_eq!(trust.follow(&named), Err(ProofError::Other("another ledger")));
        let cut = UnlStep { ledger: LedgerFrame { header: Base64(vec![1]), ..first.ledger.clone() }, ..first.clone() };
        assert_eq!(trust.follow(&cut), Err(ProofError::Malformed("header")));
        assert_eq!(trust, super::tests::trust(), "nothing of it was believed");
        assert_eq!(trust.follow(&first), Ok(true));
        assert_eq!(trust.follow(&first), Ok(false), "it is known");
        assert_eq!(trust.follow(&second), Ok(true));
        assert_eq!(trust, followed());
    }
}
