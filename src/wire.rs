//! Peer messages as canonical bytes, and the checks a message passes before the core sees it. Pure.
//!
//! A message is its borsh encoding, strictly ordered; a decoder encodes again and compares, so that one message has
//! one form. Source: `docs/protocol.md`, "Frames".

use std::collections::{BTreeSet, VecDeque};

use borsh::{BorshDeserialize, BorshSerialize};

use crate::{
    config::SharedConfig,
    consensus::{
        INPUT_BYTES_MAX,
        header::{Genesis, Input, Origin},
        messages::{Evidence, Message, Scope, Signable, Signed},
        range::{CheckedHeaders, CheckedRange, Lie},
    },
    crypto,
    types::{Challenge, Hash, NodeKey, Sig, UserKey},
};

/// Version of everything on a link. Nodes of different versions do not link.
pub const PROTOCOL: u16 = 1;
/// Longest vote-class frame. Longer messages travel as bulk; a longer frame ends the link.
pub const VOTE_FRAME_BYTES_MAX: usize = 1 << 20;
/// Longest frame at all: one input of the largest size with what surrounds it.
pub const FRAME_BYTES_MAX: usize = INPUT_BYTES_MAX + (64 << 10);
/// Messages longer than this travel beside the votes, on the bulk stream, so that votes need not wait for them.
pub const BULK_BYTES_MIN: usize = 16 << 10;
/// Openings of sessions remembered as verified. Past it the oldest is verified again when it comes.
const HELOS_MAX: usize = 65_536;

/// Bytes that are not the message they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not the encoding of a message.
    #[error("{0} bytes are not a message of this protocol")]
    Malformed(usize),
    /// Another form of a message that has one.
    #[error("a message in another than its canonical form")]
    NotCanonical,
}

/// The one encoding of a value.
pub fn encode<T: BorshSerialize>(value: &T) -> Vec<u8> {
    borsh::to_vec(value).expect("writing to memory does not fail")
}

/// Reads a value from exactly these bytes. Refuses every form but the canonical one.
pub fn decode<T: BorshSerialize + BorshDeserialize>(bytes: &[u8]) -> Result<T, WireError> {
    let value = T::try_from_slice(bytes).map_err(|_| WireError::Malformed(bytes.len()))?;
    if encode(&value) == bytes { Ok(value) } else { Err(WireError::NotCanonical) }
}

/// Whether a message travels on the bulk stream.
pub fn is_bulk(message: &Message, encoded_bytes: usize) -> bool {
    // What a vote may wait for must not be overtaken by it, so only what can be asked for again goes aside, and what no
    // vote waits for.
    let aside = matches!(
        message,
        Message::Input(_)
            | Message::Candidate(_)
            | Message::Details(_)
            | Message::Evidence(_)
            | Message::Range(_)
            | Message::Piece(_)
            | Message::Headers(_)
            | Message::Users(_)
    );
    // Of the state everything, so that its parts stay in order.
    matches!(message, Message::StateGet(_) | Message::StatePart(_)) || aside && encoded_bytes > BULK_BYTES_MIN
}

/// The first byte of a RANGE.
const RANGE_NUMBER: u8 = 18;

/// Whether bytes claim to be a RANGE: to read and check one takes long, so that it is done beside the loop.
pub fn is_range(bytes: &[u8]) -> bool {
    bytes.first() == Some(&RANGE_NUMBER)
}

/// The first byte of a HEADERS.
const HEADERS_NUMBER: u8 = 23;

/// Whether bytes claim to be a HEADERS: it is read and checked beside the loop.
pub fn is_headers(bytes: &[u8]) -> bool {
    bytes.first() == Some(&HEADERS_NUMBER)
}

/// Reads a HEADERS and checks all of it that can be checked without knowing where the chain stands: see
/// [`Headers::check`](crate::consensus::messages::Headers).
pub fn check_headers(bytes: &[u8], chain_id: &Hash) -> Result<CheckedHeaders, Lie> {
    let Ok(Message::Headers(headers)) = decode(bytes) else { return Err(Lie::Malformed) };
    headers.check(chain_id, |key, digest, sig| crypto::verify(&key.0, &digest.0, sig))
}

/// The first byte of a STATE_PART.
const STATE_PART_NUMBER: u8 = 21;

/// Whether bytes claim to be a STATE_PART: they are read beside the loop, by whoever asked for them.
pub fn is_state_part(bytes: &[u8]) -> bool {
    bytes.first() == Some(&STATE_PART_NUMBER)
}

/// Reads a RANGE and checks all of it that can be checked without knowing where the chain stands: see
/// [`Range::check`](crate::consensus::messages::Range), and who answers for each input.
pub fn check_range(bytes: &[u8], chain_id: &Hash) -> Result<CheckedRange, Lie> {
    let Ok(Message::Range(range)) = decode(bytes) else { return Err(Lie::Malformed) };
    // Signatures of many users' inputs rest on few session openings: this one's memory is enough.
    let mut edge = Edge::default();
    if range.inputs.iter().any(|input| edge.check_input(input, chain_id).is_err()) {
        return Err(Lie::Input);
    }
    range.check(chain_id, |key, digest, sig| crypto::verify(&key.0, &digest.0, sig))
}

/// Why a message was dropped at the edge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The signature is not its signer's over this content in this chain.
    #[error("{kind} with a wrong signature of {signer}")]
    Signature {
        /// Of message.
        kind: &'static str,
        /// Who should have signed.
        signer: NodeKey,
    },
    /// Nobody answers for the input.
    #[error("an input of {0} that neither it nor a host answers for")]
    Origin(UserKey),
}

/// Checks signatures at the edge. Remembers which session openings were verified.
#[derive(Debug, Default)]
pub struct Edge {
    helos: BTreeSet<(UserKey, Challenge, Sig)>,
    helo_order: VecDeque<(UserKey, Challenge, Sig)>,
}

impl Edge {
    /// Checks what a message claims about its signer. Certificates inside it are the core's to check.
    pub fn check(&mut self, message: &Message, scope: &Scope) -> Result<(), Refused> {
        let kind = message.kind();
        match message {
            Message::Input(input) => return self.check_input(input, &scope.chain_id),
            Message::Presence(m) => signed(m, scope),
            Message::Novel(m) => signed(m, scope),
            Message::Result(m) => signed(m, scope),
            Message::Overtime(m) => signed(m, scope),
            Message::Prevote(m) => signed(m, scope),
            Message::Precommit(m) => signed(m, scope),
            Message::Advance(m) => signed(&m.vote, scope),
            Message::Propose(m) => signed(m, scope),
            Message::Status(m) => signed(m, scope),
            Message::Npl(m) => signed(m, scope),
            Message::NplEnd(m) => signed(m, scope),
            Message::Evidence(evidence) => self.check_evidence(evidence, scope),
            // Of a RANGE see `check_range`.
            Message::TcFwd(_)
            | Message::Closed(_)
            | Message::Get(_)
            | Message::Candidate(_)
            | Message::Details(_)
            | Message::Range(_)
            | Message::Piece(_)
            | Message::StateGet(_)
            | Message::StatePart(_)
            | Message::Twins(_)
            | Message::Headers(_)
            | Message::Users(_) => Ok(()),
        }
        .map_err(|signer| Refused::Signature { kind, signer })
    }

    /// Whether somebody answers for an input: the user by a signature, or the host of an opened session.
    pub fn check_input(&mut self, input: &Input, chain_id: &Hash) -> Result<(), Refused> {
        let id = input.id(chain_id);
        let valid = match &input.origin {
            Origin::User { sig } => crypto::verify(&input.user.0, &id.0, sig),
            Origin::Session { host, challenge, helo_sig, host_sig } => {
                crypto::verify(&host.0, &Input::host_digest(chain_id, &id).0, host_sig)
                    && self.is_opened(input.user, *challenge, *helo_sig)
            }
        };
        if valid { Ok(()) } else { Err(Refused::Origin(input.user)) }
    }

    fn is_opened(&mut self, user: UserKey, challenge: Challenge, sig: Sig) -> bool {
        let helo = (user, challenge, sig);
        if self.helos.contains(&helo) {
            return true;
        }
        if !crypto::verify(&user.0, challenge.to_string().as_bytes(), &sig) {
            return false;
        }
        self.helos.insert(helo);
        self.helo_order.push_back(helo);
        if self.helo_order.len() > HELOS_MAX
            && let Some(oldest) = self.helo_order.pop_front()
        {
            self.helos.remove(&oldest);
        }
        true
    }

    fn check_evidence(&mut self, evidence: &Evidence, scope: &Scope) -> Result<(), NodeKey> {
        let signed = |bytes: &[u8], edge: &mut Edge| -> Option<_> {
            let message: Message = decode(bytes).ok()?;
            // Messages without a slot, evidence among them, prove nothing.
            let slot = message.slot()?;
            let said = said(&message, scope)?;
            edge.check(&message, scope).is_ok().then_some((slot, said))
        };
        match (signed(&evidence.first, self), signed(&evidence.second, self)) {
            (Some((slot, first)), Some((same, second)))
                if slot == same && slot.0 == evidence.signer && first != second =>
            {
                Ok(())
            }
            _ => Err(evidence.signer),
        }
    }
}

/// What the signature of a message with a slot is over. What travels beside it, as the POLC of an ADVANCE does, is
/// anybody's and proves nothing against the signer.
fn said(message: &Message, scope: &Scope) -> Option<Hash> {
    match message {
        Message::Novel(m) => Some(m.body.digest(scope)),
        Message::Result(m) => Some(m.body.digest(scope)),
        Message::Prevote(m) => Some(m.body.digest(scope)),
        Message::Precommit(m) => Some(m.body.digest(scope)),
        Message::Advance(m) => Some(m.vote.body.digest(scope)),
        Message::Propose(m) => Some(m.body.digest(scope)),
        _ => None,
    }
}

fn signed<T: Signable>(signed: &Signed<T>, scope: &Scope) -> Result<(), NodeKey> {
    if crypto::verify(&signed.from.0, &signed.body.digest(scope).0, &signed.sig) { Ok(()) } else { Err(signed.from) }
}

/// What two nodes tell each other before anything else: whether they are of one chain.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// Drawn at each start: two processes with one key have two of them.
    pub boot: Hash,
    /// Ledger 0.
    pub genesis: Genesis,
    /// The shared part of the configuration, behind `genesis.cfg_hash`.
    pub shared: SharedConfig,
}

impl Hello {
    /// Why two nodes are not of one chain: the field and both values, as this side sees it. `Ok` if they are.
    pub fn check(&self, theirs: &Hello) -> Result<(), String> {
        let differs = |field: &str, mine: String, theirs: String| {
            if mine == theirs { Ok(()) } else { Err(format!("{field} differs: {mine} here, {theirs} there")) }
        };
        let (ours, other) = (&self.genesis, &theirs.genesis);
        differs("the protocol version", self.protocol.to_string(), theirs.protocol.to_string())?;
        if let Some(why) = lineage(self, theirs) {
            return Err(why);
        }
        differs("the contract id", ours.contract_id.to_string(), other.contract_id.to_string())?;
        differs("the genesis time", ours.time_ms.to_string(), other.time_ms.to_string())?;
        if let Some((key, mine, theirs)) = self.shared.first_difference(&theirs.shared) {
            return Err(format!("{key} differs: {mine} here, {theirs} there"));
        }
        if ours.unl != other.unl {
            let list = |unl: &[NodeKey]| unl.iter().map(NodeKey::short).collect::<Vec<_>>().join(" ");
            return Err(format!("the genesis UNL differs: {} here, {} there", list(&ours.unl), list(&other.unl)));
        }
        differs("the state before the first run", ours.state_root.to_string(), other.state_root.to_string())?;
        differs("the genesis version", ours.ver.to_string(), other.ver.to_string())?;
        differs("the hash of the shared settings", ours.cfg_hash.to_string(), other.cfg_hash.to_string())?;
        differs("the chain id", ours.chain_id().to_string(), other.chain_id().to_string())
    }
}

/// What is wrong between two nodes of which at least one was recovered (`hp recover`); `None` where that is not the reason.
fn lineage(here: &Hello, there: &Hello) -> Option<String> {
    let (ours, theirs) = (&here.genesis, &there.genesis);
    let again = "`hp recover` with the same arguments";
    match (&ours.ancestor, &theirs.ancestor) {
        (Some(mine), _) if mine.contract_id == theirs.contract_id => Some(format!(
            "the contract id differs: {} here, recovered after ledger {} of contract {}, which is the one there: its operator \
             runs {again}",
            ours.contract_id, mine.seq, mine.contract_id
        )),
        (_, Some(other)) if other.contract_id == ours.contract_id => Some(format!(
            "the contract id differs: {} there, recovered after ledger {} of contract {}, which is the one here: run {again} \
             here",
            theirs.contract_id, other.seq, other.contract_id
        )),
        (Some(mine), Some(other)) if mine.chain_id == other.chain_id && ours.contract_id != theirs.contract_id => {
            let binary = |hash: Option<Hash>| hash.map_or("none".to_owned(), |hash| hash.to_string());
            let list = |unl: &[NodeKey]| unl.iter().map(NodeKey::short).collect::<Vec<_>>().join(" ");
            let fields = [
                ("ledger (--seq)", mine.seq.to_string(), other.seq.to_string()),
                ("ledger's hash", mine.ledger_hash.to_string(), other.ledger_hash.to_string()),
                ("state (--root)", ours.state_root.to_string(), theirs.state_root.to_string()),
                ("UNL (--unl)", list(&ours.unl), list(&theirs.unl)),
                ("threshold (--threshold)", ours.threshold.to_string(), theirs.threshold.to_string()),
                ("executable (--binary)", binary(mine.binary), binary(other.binary)),
                ("users", mine.users_root.to_string(), other.users_root.to_string()),
                ("keys of inputs", mine.keys_root.to_string(), other.keys_root.to_string()),
            ];
            let setting = || here.shared.first_difference(&there.shared);
            let (field, here, there) = fields.into_iter().find(|(_, here, there)| here != there).or_else(setting)?;
            Some(format!("both were recovered, but with another {field}: {here} here, {there} there"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        consensus::{
            header::{Candidate, ClosedLedger, ExecResult, Header, inputs_root},
            messages::{Advance, AdvanceVote, Certificate, Precommit, Range, Vote},
        },
        crypto::SecretKey,
        types::Status,
    };

    const SCOPE: Scope = Scope { chain_id: Hash([1; 32]), unl_hash: Hash([2; 32]) };

    fn advance(high: Option<(u32, Hash)>, signatures_beside: usize) -> Message {
        let secret = SecretKey::from_seed([3; 32]);
        let body = AdvanceVote { seq: 7, attempt: 2, high };
        let sig = secret.sign(&body.digest(&SCOPE).0);
        let vote = Vote { seq: 7, attempt: 0, ledger_hash: Hash([4; 32]) };
        let polc = Certificate { vote, sigs: vec![(secret.node_key(), sig); signatures_beside] };
        Message::Advance(Advance { vote: Signed { from: secret.node_key(), body, sig }, polc: Some(polc) })
    }

    fn evidence(first: &Message, second: &Message) -> Result<(), Refused> {
        let signer = SecretKey::from_seed([3; 32]).node_key();
        let evidence = Evidence { signer, first: encode(first), second: encode(second) };
        Edge::default().check(&Message::Evidence(evidence), &SCOPE)
    }

    #[test]
    fn a_range_is_told_by_its_first_byte_and_what_nobody_answers_for_in_it_is_a_lie() {
        let secret = SecretKey::from_seed([3; 32]);
        let (chain_id, unl_hash) = (SCOPE.chain_id, SCOPE.unl_hash);
        let mut input = Input {
            user: secret.user_key(),
            origin: Origin::User { sig: Sig([0; 64]) },
            nonce: 1,
            max_ledger: 9,
            payload: b"hello".to_vec(),
        };
        let id = input.id(&chain_id);
        input.origin = Origin::User { sig: secret.sign(&id.0) };
        let status = Status::Ok;
        let (state_root, outputs_root, of_hash) = (Hash::ZERO, Hash::ZERO, Hash::ZERO);
        let header = Header {
            ver: 1,
            chain_id,
            seq: 5,
            parent: Hash([5; 32]),
            time_ms: 0,
            unl_hash,
            next_unl_hash: unl_hash,
            users_root: Hash::ZERO,
            n_users: 0,
            inputs_root: inputs_root(&[id]),
            n_inputs: 1,
            inputs_bytes: 5,
            result: ExecResult { of_seq: 4, of_hash, state_root, outputs_root, status, unl_req: None },
            settlement: None,
        };
        let vote = Vote { seq: 5, attempt: 0, ledger_hash: header.hash() };
        let sig = secret.sign(&Precommit(vote).digest(&SCOPE).0);
        let qc = Certificate { vote, sigs: vec![(secret.node_key(), sig)] };
        let candidate = Candidate { header, inputs: vec![id], users_add: vec![], users_del: vec![], unl_change: None };
        let range = Range { first: 5, oldest: 1, ledgers: vec![ClosedLedger { candidate, qc }], inputs: vec![input] };
        let check = |range: &Range, bytes_off: usize| {
            let bytes = encode(&Message::Range(Box::new(range.clone())));
            assert!(is_range(&bytes));
            check_range(&bytes[..bytes.len() - bytes_off], &chain_id).map(|_| ())
        };
        assert_eq!(check(&range, 0), Ok(()));
        assert_eq!(check(&range, 1), Err(Lie::Malformed));
        let mut unsigned = range.clone();
        unsigned.inputs[0].origin = Origin::User { sig: Sig([1; 64]) };
        assert_eq!(check(&unsigned, 0), Err(Lie::Input));
        let mut uncertified = range.clone();
        uncertified.ledgers[0].qc.sigs[0].1 = secret.sign(b"something else");
        assert_eq!(check(&uncertified, 0), Err(Lie::Certificate));
        assert!(!is_range(&encode(&Message::Get(crate::consensus::messages::Get::Range(1, 2)))));
        assert!(!is_range(&[]));
    }

    #[test]
    fn two_statements_in_one_slot_are_evidence_and_other_things_beside_one_statement_are_not() {
        let high = Some((0, Hash([4; 32])));
        assert_eq!(evidence(&advance(high, 3), &advance(None, 3)), Ok(()));
        assert!(evidence(&advance(high, 3), &advance(high, 3)).is_err(), "the same twice");
        assert!(evidence(&advance(high, 3), &advance(high, 4)).is_err(), "another's POLC beside the same vote");
    }

    #[test]
    fn who_was_recovered_and_who_was_not_is_said_by_both() {
        let shared = crate::verify::tests::made::shared();
        let hello = |genesis: &Genesis| Hello {
            protocol: PROTOCOL,
            boot: Hash::ZERO,
            genesis: genesis.clone(),
            shared: shared.clone(),
        };
        let old = crate::verify::tests::made::Made::new(3);
        let before = hello(&old.genesis);
        let new = old.recovered(BTreeSet::new()).genesis;
        let told = hello(&new).check(&before).unwrap_err();
        assert!(told.contains("recovered after ledger 0 of contract 0707"), "{told}");
        assert!(told.contains("its operator runs `hp recover` with the same arguments"), "{told}");
        let told = before.check(&hello(&new)).unwrap_err();
        assert!(told.contains("which is the one here: run `hp recover`"), "{told}");
        assert_eq!(hello(&new).check(&hello(&new)), Ok(()));

        let other = |change: &dyn Fn(&mut Genesis)| {
            let mut other = new.clone();
            change(&mut other);
            hello(&new).check(&hello(&other.with_derived_id())).unwrap_err()
        };
        let ancestor = |change: fn(&mut crate::consensus::header::Ancestor)| {
            other(&|genesis| change(genesis.ancestor.as_mut().expect("it was recovered")))
        };
        for (told, field) in [
            (ancestor(|ancestor| ancestor.seq = 7), "ledger (--seq): 0 here, 7 there"),
            (ancestor(|ancestor| ancestor.binary = Some(Hash([1; 32]))), "executable (--binary): none here, 0101"),
            (other(&|genesis| genesis.state_root = Hash([2; 32])), "state (--root): 0101"),
            (other(&|genesis| genesis.threshold = 67), "threshold (--threshold): 80 here, 67 there"),
            (other(&|genesis| genesis.unl.truncate(2)), "UNL (--unl)"),
        ] {
            assert!(told.contains("both were recovered, but with another") && told.contains(field), "{told}");
        }
    }
}
