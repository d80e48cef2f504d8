//! What can be said of a ledger by itself: that its parts are what its header and certificate say, and who signed.

use std::collections::BTreeSet;

use super::{
    INPUT_BYTES_MAX, INPUTS_BYTES_MAX, INPUTS_MAX, Page, Place, Stored, StoredClosed, Wrong, hash, is_ascending,
    read::{Certificate, ExecResult, Header, Input, InputsTaken, Origin, Signed, UnlChange},
    user_key,
};
use crate::{
    crypto,
    types::{Challenge, Hash, NodeKey, Seq, Sig, UserKey},
};

/// Ledgers for which an input of a session is not taken before the one that it follows, and at most a quarter of the window.
const FOLLOW_LEDGERS_MAX: u64 = 64;

/// What may occur once in a window of ledgers: user, origin tag, nonce.
pub(super) type Key = (UserKey, Hash, u64);

/// What the whole chain agrees on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) chain_id: Hash,
    /// `None` when the settings are not stored.
    pub(super) shared: Option<Shared>,
}

/// Those of the settings that can be checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared {
    pub(super) input_window: u64,
    pub(super) time_res_ms: u64,
    pub(super) inputs: InputsTaken,
    pub(super) users_max: u64,
}

impl Shared {
    /// Ledgers whose contents a node keeps at least; older ones may be gone.
    pub(super) fn kept(&self) -> u64 {
        self.input_window.saturating_add((self.input_window / 16).max(64))
    }
}

/// Whether the contents of a ledger may be gone by now.
fn is_old(page: &Page, seq: Seq, rules: &Rules) -> bool {
    rules.shared.is_some_and(|shared| page.tip.saturating_sub(seq) >= shared.kept())
}

/// A ledger whose parts fit together.
pub(super) struct Alone {
    pub(super) seq: Seq,
    pub(super) hash: Hash,
    pub(super) header: Header,
    pub(super) signers: Vec<NodeKey>,
    pub(super) unl_change: Option<UnlChange>,
    pub(super) contents: Option<Contents>,
    /// Keys of its inputs as they are remembered.
    pub(super) keys: Option<Vec<Key>>,
    pub(super) result: Option<Signed<ExecResult>>,
    /// Who got outputs, and their root.
    pub(super) outputs: Option<(Vec<UserKey>, Hash)>,
    pub(super) signatures: u64,
    /// The last ledger there was when this one was read.
    pub(super) tip: Seq,
}

/// What the roots of the header stand for.
pub(super) struct Contents {
    pub(super) users_add: Vec<UserKey>,
    pub(super) users_del: Vec<UserKey>,
    pub(super) inputs: Vec<Listed>,
    /// Inputs that are gone already.
    pub(super) gone: usize,
}

/// What must be looked up for an input.
pub(super) struct Listed {
    pub(super) key: Key,
    pub(super) host: Option<NodeKey>,
    /// Of a session, and young: it must not be before the input that has one of these keys.
    pub(super) waits_for: Option<[Key; 2]>,
}

/// Checks one ledger.
pub(super) fn check(stored: &Stored, page: &Page, rules: &Rules) -> Result<Alone, Wrong> {
    let place = Place::Ledger(stored.seq);
    let Some(closed) = &stored.closed else {
        return place.wrong("ledger", "missing", "stored", "headers are kept for ever, so it was lost or removed");
    };
    let (hash, header) = header(place, stored.seq, closed)?;
    let mut signatures = 0;
    let signers = certificate(place, closed, &header, hash, &mut signatures)?;
    let result = match &stored.result {
        None => None,
        Some(bytes) => Some(own_result(place, bytes, &header, hash, rules, &mut signatures)?),
    };
    let kept = page.kept_from.is_some_and(|from| from <= stored.seq);
    let passed = stored.seq <= page.base;
    let contents = match (&stored.body, kept) {
        // On their way out: nothing rests on what there was before ledgers were passed over.
        (Some(_), false) if passed => None,
        (Some(_), _) => Some(contents(place, stored, page, &header, rules, &mut signatures)?),
        (None, true) => {
            return place.wrong("body", "missing", "stored", "older contents are kept, so these were lost or removed");
        }
        (None, false) => {
            place.holds(
                passed || is_old(page, stored.seq, rules),
                "body",
                "missing",
                "stored",
                "a node keeps the contents of recent ledgers",
            )?;
            let left = stored.run.is_none() && stored.outputs.is_empty();
            place.holds(left, "outputs", "stored", "none", "contents go all together")?;
            None
        }
    };
    let remembered = match &stored.keys {
        None => None,
        Some(bytes) => Some(keys(place, bytes)?),
    };
    let outputs = if passed { None } else { outputs(place, stored)? };
    let unl_change = unl_change(place, stored)?;
    Ok(Alone {
        seq: stored.seq,
        hash,
        header,
        signers,
        unl_change,
        contents,
        keys: remembered,
        result,
        outputs,
        signatures,
        tip: page.tip,
    })
}

/// The header and the hash that it has.
pub(super) fn header(place: Place, seq: Seq, closed: &StoredClosed) -> Result<(Hash, Header), Wrong> {
    let header: Header = place.read("header", &closed.header)?;
    let named: Hash = place.read("hash", &closed.hash)?;
    let hash = hash::tagged("hp/ledger/1", &[&closed.header]);
    place.same("hash", named, hash, "the header is not the one that this ledger is named after")?;
    place.same("header.ver", header.ver, 1, "no such version is written down")?;
    place.same("header.seq", header.seq, seq, "it is stored in another ledger's place")?;
    Ok((hash, header))
}

/// The change of the UNL that a ledger makes.
pub(super) fn unl_change(place: Place, stored: &Stored) -> Result<Option<UnlChange>, Wrong> {
    match &stored.unl_change {
        None => Ok(None),
        Some(bytes) => place.read("unl_change", bytes).map(Some),
    }
}

/// The distinct nodes that signed the certificate, all validly. Whether they are members is for the chain to say.
fn certificate(
    place: Place,
    closed: &StoredClosed,
    header: &Header,
    hash: Hash,
    signatures: &mut u64,
) -> Result<Vec<NodeKey>, Wrong> {
    let qc: Certificate = place.read("certificate", &closed.qc)?;
    place.same("certificate.vote.seq", qc.vote.seq, header.seq, "the certificate is another ledger's")?;
    place.same("certificate.vote.ledger_hash", qc.vote.ledger_hash, hash, "the certificate is for another header")?;
    check_signers(place, "certificate", "hp/precommit/1", &header.chain_id, &header.unl_hash, &qc, signatures)
}

/// Checks all signatures of a certificate of PREVOTEs or PRECOMMITs.
pub(super) fn check_signers(
    place: Place,
    field: &'static str,
    tag: &str,
    chain_id: &Hash,
    unl_hash: &Hash,
    certificate: &Certificate,
    signatures: &mut u64,
) -> Result<Vec<NodeKey>, Wrong> {
    let vote = certificate.vote;
    let bytes = [&vote.seq.to_le_bytes()[..], &vote.attempt.to_le_bytes(), &vote.ledger_hash.0].concat();
    let digest = hash::vote(tag, chain_id, unl_hash, &bytes);
    let signers: Vec<NodeKey> = certificate.sigs.iter().map(|(signer, _)| *signer).collect();
    place.holds(
        is_ascending(&signers),
        field,
        "in disorder",
        "ascending by signer",
        "a signer may be counted twice",
    )?;
    for (signer, sig) in &certificate.sigs {
        *signatures += 1;
        if !hash::signed(signer, &digest, sig) {
            let found = format!("an invalid signature of {signer}");
            return place.wrong(field, found, "a valid one", "this node did not vote for this header");
        }
    }
    Ok(signers)
}

fn own_result(
    place: Place,
    bytes: &[u8],
    header: &Header,
    hash: Hash,
    rules: &Rules,
    signatures: &mut u64,
) -> Result<Signed<ExecResult>, Wrong> {
    let result: Signed<ExecResult> = place.read("own result", bytes)?;
    place.same("own result.of_seq", result.body.of_seq, header.seq, "it is stored in another ledger's place")?;
    place.same("own result.of_hash", result.body.of_hash, hash, "it is the result of another ledger")?;
    // Results are votes of the next round.
    let digest = hash::vote("hp/result/1", &rules.chain_id, &header.next_unl_hash, &result.body_bytes);
    *signatures += 1;
    if !hash::signed(&result.from, &digest, &result.sig) {
        let found = format!("signed invalidly by {}", result.from);
        return place.wrong("own result", found, "a valid signature", "this node did not say so");
    }
    Ok(result)
}

fn contents(
    place: Place,
    stored: &Stored,
    page: &Page,
    header: &Header,
    rules: &Rules,
    signatures: &mut u64,
) -> Result<Contents, Wrong> {
    let Some(body) = &stored.body else { unreachable!("asked for it") };
    let ids: Vec<Hash> = place.read("inputs", &body.inputs)?;
    let root = hash::tagged("hp/inputs/1", &[&body.inputs]);
    place.same(
        "header.inputs_root",
        header.inputs_root,
        root,
        "the listed inputs are not those that were voted for",
    )?;
    let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    place.same("header.n_inputs", header.n_inputs, count, "the header does not count its inputs")?;
    place.holds(is_ascending(&ids), "inputs", "in disorder", "ascending", "an input may be there twice")?;
    place.holds(ids.len() <= INPUTS_MAX, "header.n_inputs", ids.len(), "at most 16384", "too many for one ledger")?;

    // What is too old is deleted some inputs at a time.
    let may_lack = page.kept_from == Some(stored.seq) && is_old(page, stored.seq, rules);
    let mut opened = BTreeSet::new();
    let (mut inputs, mut gone, mut bytes) = (Vec::with_capacity(ids.len()), 0, 0);
    for (id, input) in ids.iter().zip(&stored.inputs) {
        match input {
            None if may_lack => gone += 1,
            None => {
                let found = format!("without input {id}");
                return place.wrong("inputs", found, "all of them", "the bytes of an input were lost");
            }
            Some(stored) => {
                let input = input_of(place, id, stored, &rules.chain_id)?;
                may_be_in(place, &input, id, header.seq, rules)?;
                origin(place, &input, id, &rules.chain_id, &mut opened, signatures)?;
                bytes += input.payload.len() as u64;
                let host = match input.origin {
                    Origin::User { .. } => None,
                    Origin::Session { host, .. } => Some(host),
                };
                let key = (input.user, input.origin_tag(), input.nonce);
                let waits_for = host.and(rules.shared).and_then(|shared| {
                    let (user, tag, nonce) = key;
                    let came = input.max_ledger.saturating_add(1).saturating_sub(shared.input_window);
                    let young = header.seq.saturating_sub(came) < FOLLOW_LEDGERS_MAX.min(shared.input_window / 4);
                    (young && nonce % 2 == 1 && nonce > 2).then(|| [(user, tag, nonce - 3), (user, tag, nonce - 2)])
                });
                inputs.push(Listed { key, host, waits_for });
            }
        }
    }
    if gone == 0 {
        place.same("header.inputs_bytes", header.inputs_bytes, bytes, "the header does not count its inputs' bytes")?;
    }
    let most = header.inputs_bytes <= INPUTS_BYTES_MAX;
    place.holds(most, "header.inputs_bytes", header.inputs_bytes, "at most 16777216", "too much for one ledger")?;

    let users_add: Vec<UserKey> = place.read("users_add", &body.users_add)?;
    let users_del: Vec<UserKey> = place.read("users_del", &body.users_del)?;
    place.holds(is_ascending(&users_add), "users_add", "in disorder", "ascending", "a body has one form")?;
    place.holds(is_ascending(&users_del), "users_del", "in disorder", "ascending", "a body has one form")?;
    Ok(Contents { users_add, users_del, inputs, gone })
}

/// An input that is the one its id names.
pub(super) fn input_of(place: Place, id: &Hash, stored: &[u8], chain_id: &Hash) -> Result<Input, Wrong> {
    let input: Input = place.read("input", stored)?;
    place.same("input", input.id(chain_id), *id, "the bytes of an input are not those that its id names")?;
    let bytes = input.payload.len();
    place.holds(bytes <= INPUT_BYTES_MAX, "input", format!("of {bytes} bytes"), "at most 4194304", "it is too long")?;
    Ok(input)
}

fn may_be_in(place: Place, input: &Input, id: &Hash, seq: Seq, rules: &Rules) -> Result<(), Wrong> {
    let Some(shared) = rules.shared else { return Ok(()) };
    let window = input.max_ledger >= seq && input.max_ledger - seq < shared.input_window;
    let expected = format!("{seq} to {}", seq.saturating_add(shared.input_window - 1));
    let field = "input.max_ledger";
    place.holds(
        window,
        field,
        format!("{} in {id}", input.max_ledger),
        expected,
        "its time was over, or not there yet",
    )?;
    let raw = matches!(input.origin, Origin::Session { .. });
    let taken = !raw || shared.inputs == InputsTaken::Any;
    place.holds(
        taken,
        "input.origin",
        format!("a session in {id}"),
        "the user's signature",
        "the chain takes no raw inputs",
    )
}

/// Whether the user signed, or the host of a session that the user opened.
pub(super) fn origin(
    place: Place,
    input: &Input,
    id: &Hash,
    chain_id: &Hash,
    opened: &mut BTreeSet<(UserKey, Challenge, Sig)>,
    signatures: &mut u64,
) -> Result<(), Wrong> {
    let invalid = |whose: String| place.wrong("input.origin", whose, "a valid one", "nobody answers for this input");
    match &input.origin {
        Origin::User { sig } => {
            *signatures += 1;
            if !crypto::verify(&input.user.0, &id.0, sig) {
                return invalid(format!("an invalid signature of user {} in {id}", input.user));
            }
        }
        Origin::Session { host, challenge, helo_sig, host_sig } => {
            *signatures += 1;
            if !hash::signed(host, &hash::session_input(chain_id, id), host_sig) {
                return invalid(format!("an invalid signature of host {host} in {id}"));
            }
            // Of many inputs of one session it is checked once.
            if opened.insert((input.user, *challenge, *helo_sig)) {
                *signatures += 1;
                if !crypto::verify(&input.user.0, challenge.to_string().as_bytes(), helo_sig) {
                    return invalid(format!("a session that user {} did not open in {id}", input.user));
                }
            }
        }
    }
    Ok(())
}

fn outputs(place: Place, stored: &Stored) -> Result<Option<(Vec<UserKey>, Hash)>, Wrong> {
    let Some(run) = stored.run else {
        place.holds(stored.outputs.is_empty(), "outputs", "stored", "none", "outputs without a run")?;
        return Ok(None);
    };
    place.same("run.outputs", run, stored.outputs.len() as i64, "outputs were lost or added")?;
    let mut users = Vec::with_capacity(stored.outputs.len());
    let mut leaves = Vec::with_capacity(stored.outputs.len());
    for output in &stored.outputs {
        let user = user_key(place, &output.user)?;
        let leaf = hash::output_leaf(&user, &output.bytes);
        let kept: Hash = place.read("output.leaf", &output.leaf)?;
        place.same("output.leaf", kept, leaf, "the output could not be proven to its user")?;
        leaves.push(leaf);
        users.push(user);
    }
    place.holds(is_ascending(&users), "outputs", "in disorder", "one a user", "a user has two outputs")?;
    Ok(Some((users, hash::root(leaves))))
}

/// A list of keys of inputs.
pub(super) fn keys(place: Place, bytes: &[u8]) -> Result<Vec<Key>, Wrong> {
    place.read("input_key", bytes)
}
