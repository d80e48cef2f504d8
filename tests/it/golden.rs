//! The wire's bytes: an example of everything that travels or is hashed, compared with `tests/golden/wire/`.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use hotpocket::{
    config::{Identity, Inputs, MsbNetwork, SharedConfig},
    consensus::{
        details::{Changed, Known, PathKind, PathState, Piece, PieceRef, Thing},
        header::{
            Ancestor, BareLedger, Candidate, ClosedLedger, ExecResult, Genesis, Header, Input, Origin, Settlement,
            UnlChange, inputs_root, keys_root, unl_hash, users_root,
        },
        merkle::{self, Proof},
        messages::{
            Advance, AdvanceVote, Basis, Certificate, Closed, Details, Evidence, Get, Headers, Message, Novel, Npl,
            NplEnd, Overtime, Precommit, Presence, Prevote, Propose, Range, ResultCert, Scope, Signable, Signed,
            StateBody, StateGet, StatePart, StateWant, StatusMsg, Tc, TcFwd, Twins, UsersPage, Vote,
        },
    },
    crypto::SecretKey,
    types::{Challenge, Execute, Hash, LimitKind, NodeKey, Sig, Status, UserKey},
    wire::{self, Edge, Hello, Refused, WireError},
};
use proptest::{collection::vec, option, prelude::*};
use sha2::{Digest as _, Sha512};

// ---- The examples ---------------------------------------------------------------------------------------------------

/// Secret keys of the three nodes, ascending by public key.
pub fn nodes() -> [SecretKey; 3] {
    let mut nodes = [1, 2, 3].map(|seed| SecretKey::from_seed([seed; 32]));
    nodes.sort_by_key(SecretKey::node_key);
    nodes
}

/// Of the user of all examples.
pub fn user() -> SecretKey {
    SecretKey::from_seed([9; 32])
}

fn hash(byte: u8) -> Hash {
    Hash([byte; 32])
}

fn shared() -> SharedConfig {
    SharedConfig {
        threshold: 80,
        time_res_ms: 1_000,
        input_window: 65_536,
        inputs: Inputs::Any,
        users_max: 4_096,
        pubmaxsize: 1 << 20,
        time_limit_s: 30,
        cpu_s: 0,
        memory_mb: 0,
        files: 1_024,
        processes: 256,
        file_mb: 4_096,
        output_mb: 64,
        output_user_mb: 16,
        npl_window_ms: 500,
        network: false,
        state_mb: 0,
        state_files: 0,
        ledger_inputs_max: 16_384,
        ledger_input_bytes_max: 16 << 20,
        novel_users_max: 4_096,
        npl_frame_bytes_max: 64 << 10,
        npl_ledger_bytes_max: 16 << 20,
        msb_network: MsbNetwork::Mainnet,
        msb_bootstrap: Identity(None),
        msb_subnet: Identity(None),
        settle_every: 1_000,
        settle_max_delay_s: 600,
        settle_slot_s: 4,
        execute: Execute::Closed,
    }
}

/// Ledger 0 of a chain that goes on from the one of [`genesis`].
fn recovered() -> Genesis {
    let ancestor = Ancestor {
        contract_id: genesis().contract_id,
        chain_id: genesis().chain_id(),
        seq: 7,
        ledger_hash: hash(0x17),
        users_root: hash(0x18),
        n_users: 3,
        keys_root: keys_root(&BTreeSet::from([
            (UserKey([0x19; 32]), Hash::ZERO, 5),
            (UserKey([0x1a; 32]), hash(0x1b), 6),
        ])),
        n_keys: 2,
        binary: Some(hash(0x1c)),
    };
    Genesis { ancestor: Some(ancestor), ..genesis() }.with_derived_id()
}

fn genesis() -> Genesis {
    Genesis {
        ver: 1,
        contract_id: hash(0xc1),
        unl: nodes().iter().map(SecretKey::node_key).collect(),
        threshold: 80,
        cfg_hash: Hash::tagged("hp/cfg/1", &shared()),
        state_root: Hash::ZERO,
        time_ms: 1_700_000_000_000,
        ancestor: None,
    }
}

fn scope() -> Scope {
    let genesis = genesis();
    Scope { chain_id: genesis.chain_id(), unl_hash: unl_hash(&genesis.unl) }
}

fn hello() -> Hello {
    Hello { protocol: wire::PROTOCOL, boot: hash(0xb0), genesis: genesis(), shared: shared() }
}

fn signed<T: Signable>(node: usize, body: T) -> Signed<T> {
    let key = &nodes()[node];
    let sig = key.sign(&body.digest(&scope()).0);
    Signed { from: key.node_key(), body, sig }
}

fn user_input() -> Input {
    let mut input = Input {
        user: user().user_key(),
        origin: Origin::User { sig: Sig([0; 64]) },
        nonce: 7,
        max_ledger: 100,
        payload: b"signed input".to_vec(),
    };
    let id = input.id(&scope().chain_id);
    input.origin = Origin::User { sig: user().sign(&id.0) };
    input
}

fn session_input() -> Input {
    let challenge = Challenge([0xca; 16]);
    let [host, ..] = nodes();
    let origin = |host_sig| Origin::Session {
        host: host.node_key(),
        challenge,
        helo_sig: user().sign(challenge.to_string().as_bytes()),
        host_sig,
    };
    let mut input = Input {
        user: user().user_key(),
        origin: origin(Sig([0; 64])),
        nonce: 1,
        max_ledger: 65_540,
        payload: b"raw input".to_vec(),
    };
    let id = input.id(&scope().chain_id);
    input.origin = origin(host.sign(&Input::host_digest(&scope().chain_id, &id).0));
    input
}

fn result() -> ExecResult {
    ExecResult {
        of_seq: 4,
        of_hash: hash(4),
        state_root: hash(0x5a),
        outputs_root: merkle::root(vec![merkle::output_leaf(&user().user_key(), b"an output")]),
        status: Status::Ok,
        unl_req: Some(UnlChange::Add(NodeKey([0xad; 32]))),
    }
}

fn candidate() -> Candidate {
    let chain_id = scope().chain_id;
    let mut inputs = vec![user_input().id(&chain_id), session_input().id(&chain_id)];
    inputs.sort();
    let users = BTreeSet::from([user().user_key()]);
    let unl_change = UnlChange::Add(NodeKey([0xad; 32]));
    let header = Header {
        ver: 1,
        chain_id,
        seq: 5,
        parent: hash(4),
        time_ms: 1_700_000_005_000,
        unl_hash: scope().unl_hash,
        next_unl_hash: unl_hash(&unl_change.apply(&genesis().unl).expect("a stranger")),
        users_root: users_root(&users),
        n_users: 1,
        inputs_root: inputs_root(&inputs),
        n_inputs: 2,
        inputs_bytes: 21,
        result: result(),
        settlement: Some(Settlement { seq: 3, ch: hash(1), tx: hash(2), confirmed_length: 77, txv: hash(3) }),
    };
    Candidate {
        header,
        inputs,
        users_add: vec![user().user_key()],
        users_del: vec![UserKey([0xde; 32])],
        unl_change: Some(unl_change),
    }
}

fn vote(attempt: u32) -> Vote {
    Vote { seq: 5, attempt, ledger_hash: candidate().header.hash() }
}

fn certificate<T: Signable>(attempt: u32, kind: impl Fn(Vote) -> T) -> Certificate {
    let sigs = (0..3).map(|node| signed(node, kind(vote(attempt)))).map(|vote| (vote.from, vote.sig)).collect();
    Certificate { vote: vote(attempt), sigs }
}

fn advance_vote(bound: bool) -> AdvanceVote {
    AdvanceVote { seq: 5, attempt: 1, high: bound.then(|| (0, vote(0).ledger_hash)) }
}

fn tc(bound: bool) -> Tc {
    Tc { votes: (0..3).map(|node| signed(node, advance_vote(bound && node == 2))).collect() }
}

fn novel() -> Novel {
    Novel {
        seq: 5,
        parent: hash(4),
        time_slot: 1_700_000_005,
        users_add: vec![user().user_key()],
        users_del: vec![UserKey([0xde; 32])],
        inputs: candidate().inputs,
        unl_vote: Some(UnlChange::Remove(NodeKey([0xee; 32]))),
        settlement: candidate().header.settlement,
    }
}

fn propose(basis: Basis) -> Propose {
    let tc = tc(matches!(basis, Basis::Polc(_)));
    Propose { seq: 5, attempt: 1, ledger_hash: vote(1).ledger_hash, tc, basis }
}

fn novels_basis() -> Basis {
    let novels = (0..3).map(|node| signed(node, novel())).map(|novel| (novel.from, novel.id())).collect();
    let sigs = (0..3).map(|node| signed(node, result())).map(|result| (result.from, result.sig)).collect();
    Basis::Novels(novels, ResultCert { result: result(), sigs })
}

fn range() -> Range {
    let ledgers = vec![ClosedLedger { candidate: candidate(), qc: certificate(0, Precommit) }];
    Range { first: 5, oldest: 1, ledgers, inputs: vec![user_input(), session_input()] }
}

fn headers() -> Headers {
    let Candidate { header, unl_change, .. } = candidate();
    let ledgers = vec![BareLedger { header, unl_change, qc: certificate(0, Precommit) }];
    Headers { first: 5, oldest: 6, ledgers }
}

fn evidence() -> Evidence {
    let other = Vote { ledger_hash: hash(0xff), ..vote(0) };
    Evidence {
        signer: nodes()[1].node_key(),
        first: wire::encode(&Message::Prevote(signed(1, Prevote(vote(0))))),
        second: wire::encode(&Message::Prevote(signed(1, Prevote(other)))),
    }
}

/// One example at least of every kind of message, by the name of its file.
fn examples() -> Vec<(&'static str, Message)> {
    let polc = || certificate(0, Prevote);
    let overtime = Overtime { of_seq: 4, of_hash: hash(4) };
    let presence = Presence {
        boot: hash(0xb0),
        counter: 3,
        full: false,
        up: vec![user().user_key()],
        down: vec![UserKey([2; 32])],
    };
    let details = Details {
        result: ExecResult { status: Status::Limit(LimitKind::Output), unl_req: None, ..result() },
        changed: vec![
            Changed { path: b"a/file".to_vec(), now: Some(path_state()) },
            Changed { path: b"gone".to_vec(), now: None },
        ],
        outputs: vec![(user().user_key(), hash(0x0f))],
    };
    vec![
        ("input-signed", Message::Input(user_input())),
        ("input-session", Message::Input(session_input())),
        ("presence", Message::Presence(signed(0, presence))),
        ("novel", Message::Novel(signed(0, novel()))),
        ("result", Message::Result(signed(0, result()))),
        ("overtime", Message::Overtime(signed(0, overtime))),
        ("prevote", Message::Prevote(signed(0, Prevote(vote(0))))),
        ("precommit", Message::Precommit(signed(0, Precommit(vote(0))))),
        ("advance-free", Message::Advance(Advance { vote: signed(0, advance_vote(false)), polc: None })),
        ("advance-bound", Message::Advance(Advance { vote: signed(0, advance_vote(true)), polc: Some(polc()) })),
        ("tcfwd", Message::TcFwd(TcFwd { seq: 5, tc: tc(true), polc: Some(polc()) })),
        ("propose-polc", Message::Propose(signed(0, propose(Basis::Polc(polc()))))),
        ("propose-novels", Message::Propose(signed(0, propose(novels_basis())))),
        ("closed", Message::Closed(Closed { header: candidate().header, qc: certificate(0, Precommit) })),
        ("get-candidate", Message::Get(Get::Candidate(vote(0).ledger_hash))),
        ("get-novel", Message::Get(Get::Novel(signed(0, novel()).id()))),
        ("get-inputs", Message::Get(Get::Inputs(candidate().inputs))),
        ("get-presence", Message::Get(Get::Presence)),
        ("get-details", Message::Get(Get::Details(4))),
        ("get-npl", Message::Get(Get::Npl(hash(4)))),
        ("candidate", Message::Candidate(candidate())),
        (
            "status",
            Message::Status(signed(
                0,
                StatusMsg { seq: 4, lcl: hash(4), attempt: 0, synced: true, silent: false, unheard: vec![] },
            )),
        ),
        ("npl", Message::Npl(signed(0, Npl { ledger_hash: hash(4), counter: 2, data: b"to all".to_vec() }))),
        ("npl-end", Message::NplEnd(signed(0, NplEnd { ledger_hash: hash(4), frames: 3 }))),
        ("details", Message::Details(Box::new(details))),
        ("evidence", Message::Evidence(evidence())),
        ("get-range", Message::Get(Get::Range(5, 68))),
        ("range", Message::Range(Box::new(range()))),
        ("state-get-offer", state_get(StateWant::Offer(5))),
        ("state-get-nodes", state_get(StateWant::Nodes { height: 18, index: 1 })),
        ("state-get-leaves", state_get(StateWant::Leaves { index: 64 })),
        ("state-get-hashes", state_get(StateWant::Hashes { file: hash(6), height: 12, index: 0 })),
        ("state-get-blocks", state_get(StateWant::Blocks(vec![hash(7), hash(8)]))),
        ("state-part-nothing", state_part(StateBody::Nothing)),
        ("state-part-offer", state_part(StateBody::Offer { next: 5, root: hash(9), entries: 4_097, bytes: 1 << 30 })),
        ("state-part-hashes", state_part(StateBody::Hashes(vec![hash(6), hash(7)]))),
        ("state-part-leaves", state_part(StateBody::Leaves(vec![b"hashed".to_vec()]))),
        ("state-part-blocks", state_part(StateBody::Blocks(vec![b"a block".to_vec(), Vec::new()]))),
        ("get-piece", Message::Get(Get::Piece(piece_ref(Thing::Path(b"a/file".to_vec()), None)))),
        ("get-piece-block", Message::Get(Get::Piece(piece_ref(Thing::Output(user().user_key()), Some(2))))),
        ("piece-known", piece(Thing::Path(b"a/file".to_vec()), None, Piece::Known(known()))),
        ("piece-block", piece(Thing::Output(user().user_key()), Some(2), Piece::Block(b"bytes".to_vec()))),
        ("piece-gone", piece(Thing::Output(user().user_key()), None, Piece::Gone)),
        ("twins", Message::Twins(Twins { older: hash(4), newer: hash(5) })),
        ("get-headers", Message::Get(Get::Headers(5, 260))),
        ("headers", Message::Headers(Box::new(headers()))),
        ("get-users", Message::Get(Get::Users(5, None))),
        ("get-users-after", Message::Get(Get::Users(5, Some(user().user_key())))),
        (
            "users",
            Message::Users(Box::new(UsersPage { seq: 5, oldest: 2, after: None, users: vec![user().user_key()] })),
        ),
    ]
}

fn state_get(want: StateWant) -> Message {
    Message::StateGet(StateGet { id: 3, root: hash(9), want })
}

fn state_part(body: StateBody) -> Message {
    Message::StatePart(StatePart { id: 3, body })
}

fn path_state() -> PathState {
    PathState { kind: PathKind::File, executable: true, size: 70_000, root: hash(0x1e) }
}

fn known() -> Known {
    let proof = Proof { index: 2, siblings: vec![None, Some(hash(0x51))] };
    Known { state: path_state(), proof, blocks: vec![hash(0xb1), hash(0xb2)] }
}

fn piece_ref(of: Thing, block: Option<u32>) -> PieceRef {
    PieceRef { of_seq: 4, of_hash: hash(4), of, block }
}

fn piece(of: Thing, block: Option<u32>, piece: Piece) -> Message {
    Message::Piece(Box::new((piece_ref(of, block), piece)))
}

/// The number a kind of message has on the wire: its first byte. A new kind needs a line here and an example above.
fn number(message: &Message) -> u8 {
    match message {
        Message::Input(_) => 0,
        Message::Presence(_) => 1,
        Message::Novel(_) => 2,
        Message::Result(_) => 3,
        Message::Overtime(_) => 4,
        Message::Prevote(_) => 5,
        Message::Precommit(_) => 6,
        Message::Advance(_) => 7,
        Message::TcFwd(_) => 8,
        Message::Propose(_) => 9,
        Message::Closed(_) => 10,
        Message::Get(_) => 11,
        Message::Candidate(_) => 12,
        Message::Status(_) => 13,
        Message::Npl(_) => 14,
        Message::NplEnd(_) => 15,
        Message::Details(_) => 16,
        Message::Evidence(_) => 17,
        Message::Range(_) => 18,
        Message::Piece(_) => 19,
        Message::StateGet(_) => 20,
        Message::StatePart(_) => 21,
        Message::Twins(_) => 22,
        Message::Headers(_) => 23,
        Message::Users(_) => 24,
    }
}

const KINDS: u8 = 25;

/// What is signed in a message: the digest as `Signable` makes it, then its tag, whether it covers the UNL, and the
/// body's bytes, so that the digest can be made by hand.
struct SignedPart {
    digest: Hash,
    tag: &'static str,
    per_unl: bool,
    body: Vec<u8>,
}

fn signed_part(message: &Message) -> Option<SignedPart> {
    fn part<T: Signable>(body: &T, tag: &'static str, per_unl: bool) -> Option<SignedPart> {
        Some(SignedPart { digest: body.digest(&scope()), tag, per_unl, body: borsh::to_vec(body).unwrap() })
    }
    match message {
        Message::Presence(m) => part(&m.body, "hp/presence/1", false),
        Message::Novel(m) => part(&m.body, "hp/novel/1", true),
        Message::Result(m) => part(&m.body, "hp/result/1", true),
        Message::Overtime(m) => part(&m.body, "hp/overtime/1", true),
        Message::Prevote(m) => part(&m.body, "hp/prevote/1", true),
        Message::Precommit(m) => part(&m.body, "hp/precommit/1", true),
        Message::Advance(m) => part(&m.vote.body, "hp/advance/1", true),
        Message::Propose(m) => part(&m.body, "hp/propose/1", true),
        Message::Status(m) => part(&m.body, "hp/status/1", false),
        Message::Npl(m) => part(&m.body, "hp/npl/1", false),
        Message::NplEnd(m) => part(&m.body, "hp/npl-end/1", false),
        Message::Input(_)
        | Message::TcFwd(_)
        | Message::Closed(_)
        | Message::Get(_)
        | Message::Candidate(_)
        | Message::Details(_)
        | Message::Evidence(_)
        | Message::Range(_)
        | Message::Piece(_)
        | Message::StateGet(_)
        | Message::StatePart(_)
        | Message::Twins(_)
        | Message::Headers(_)
        | Message::Users(_) => None,
    }
}

fn by_hand(tag: &str, parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha512::new();
    hasher.update([u8::try_from(tag.len()).unwrap()]);
    hasher.update(tag);
    parts.iter().for_each(|part| hasher.update(part));
    Hash(hasher.finalize()[..32].try_into().unwrap())
}

// ---- Golden files ---------------------------------------------------------------------------------------------------

/// Lines `name hex` of one file, the encoding first.
type Lines = Vec<(&'static str, Vec<u8>)>;

fn lines_of(message: &Message) -> Lines {
    let mut lines = vec![("message", wire::encode(message))];
    if let Some(part) = signed_part(message) {
        lines.push(("signed", part.digest.0.to_vec()));
    }
    match message {
        Message::Input(input) => {
            let id = input.id(&scope().chain_id);
            lines.push(("id", id.0.to_vec()));
            if let Origin::Session { .. } = input.origin {
                lines.push(("tag", input.origin.tag().0.to_vec()));
                lines.push(("signed-by-host", Input::host_digest(&scope().chain_id, &id).0.to_vec()));
            }
        }
        Message::Novel(novel) => lines.push(("id", novel.id().0.to_vec())),
        Message::Candidate(candidate) => lines.push(("ledger-hash", candidate.header.hash().0.to_vec())),
        _ => {}
    }
    lines
}

fn golden() -> Vec<(&'static str, Lines)> {
    let mut files: Vec<(&str, Lines)> = examples().iter().map(|(name, message)| (*name, lines_of(message))).collect();
    let header = candidate().header;
    let leaf = |byte: u8| merkle::output_leaf(&UserKey([byte; 32]), &[byte]);
    files.extend([
        ("genesis", vec![("bytes", wire::encode(&genesis())), ("chain-id", genesis().chain_id().0.to_vec())]),
        (
            "genesis-recovered",
            vec![
                ("bytes", wire::encode(&recovered())),
                ("contract-id", recovered().contract_id.0.to_vec()),
                ("chain-id", recovered().chain_id().0.to_vec()),
            ],
        ),
        ("header", vec![("bytes", wire::encode(&header)), ("ledger-hash", header.hash().0.to_vec())]),
        ("hello", vec![("bytes", wire::encode(&hello()))]),
        ("shared-config", vec![("bytes", wire::encode(&shared())), ("cfg-hash", genesis().cfg_hash.0.to_vec())]),
        (
            "roots",
            vec![
                ("unl", scope().unl_hash.0.to_vec()),
                ("inputs", header.inputs_root.0.to_vec()),
                ("users-of-one", header.users_root.0.to_vec()),
                ("outputs-of-three", merkle::root(vec![leaf(1), leaf(2), leaf(3)]).0.to_vec()),
            ],
        ),
    ]);
    files
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/wire")
}

#[test]
fn the_bytes_and_hashes_of_the_wire_are_what_they_were() {
    let bless = env::var_os("HP_BLESS").is_some();
    let mut changed = Vec::new();
    for (name, lines) in golden() {
        let path = folder().join(name).with_extension("hex");
        let text: String = lines.iter().map(|(what, bytes)| format!("{what} {}\n", hex::encode(bytes))).collect();
        if bless {
            fs::write(&path, text).unwrap();
            continue;
        }
        let was = fs::read_to_string(&path).unwrap_or_default();
        let differs = lines.iter().find(|(what, bytes)| !was.contains(&format!("{what} {}\n", hex::encode(bytes))));
        if let Some((what, _)) = differs {
            changed.push(format!("{}: {what}", path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display()));
        } else if was != text {
            changed.push(format!("{name}: lines that should not be there"));
        }
    }
    assert!(
        changed.is_empty(),
        "the wire has changed:\n  {}\nNodes with and without this change do not understand each other. If it is meant: \
         run this test with HP_BLESS=1, and write the change into docs/protocol.md and CHANGELOG.md.",
        changed.join("\n  ")
    );
}

#[test]
fn every_golden_file_belongs_to_an_example() {
    let names: BTreeSet<String> = golden().iter().map(|(name, _)| format!("{name}.hex")).collect();
    let found: BTreeSet<String> =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, names);
}

#[test]
fn every_kind_of_message_has_an_example_and_keeps_its_number() {
    let mut seen = BTreeSet::new();
    for (name, message) in examples() {
        assert_eq!(wire::encode(&message)[0], number(&message), "{name}");
        seen.insert(number(&message));
    }
    assert_eq!(seen, (0..KINDS).collect());
    assert_eq!(wire::decode::<Message>(&[KINDS]), Err(WireError::Malformed(1)));
}

#[test]
fn a_digest_is_the_tagged_hash_of_the_chain_the_unl_for_votes_and_the_body() {
    let Scope { chain_id, unl_hash } = scope();
    for (name, message) in examples() {
        let Some(SignedPart { digest, tag, per_unl, body }) = signed_part(&message) else { continue };
        let expected = match per_unl {
            true => by_hand(tag, &[&chain_id.0, &unl_hash.0, &body]),
            false => by_hand(tag, &[&chain_id.0, &body]),
        };
        assert_eq!(digest, expected, "{name}");
    }
}

#[test]
fn ids_and_roots_are_the_tagged_hashes_of_the_protocol() {
    let chain_id = scope().chain_id;
    assert_eq!(chain_id, by_hand("hp/genesis/1", &[&wire::encode(&genesis())]));
    let bytes = wire::encode(&recovered());
    assert_eq!(recovered().contract_id, by_hand("hp/recover/1", &[&bytes[..2], &[0; 32], &bytes[34..]]));
    let key = |user: u8, tag: Hash, nonce: u64| [&[user; 32][..], &tag.0, &nonce.to_le_bytes()].concat();
    let keys = [&2_u32.to_le_bytes()[..], &key(0x19, Hash::ZERO, 5), &key(0x1a, hash(0x1b), 6)].concat();
    assert_eq!(recovered().ancestor.expect("there is one").keys_root, by_hand("hp/keys/1", &[&keys]));
    assert_eq!(candidate().header.hash(), by_hand("hp/ledger/1", &[&wire::encode(&candidate().header)]));
    let id = by_hand("hp/novel-id/1", &[&nodes()[0].node_key().0, &wire::encode(&novel())]);
    assert_eq!(signed(0, novel()).id(), id);
    assert_eq!(scope().unl_hash, by_hand("hp/unl/1", &[&wire::encode(&genesis().unl)]));
    assert_eq!(candidate().header.inputs_root, by_hand("hp/inputs/1", &[&wire::encode(&candidate().inputs)]));
    assert_eq!(candidate().header.users_root, by_hand("hp/user/1", &[&user().user_key().0]), "a tree of one leaf");

    let input = session_input();
    let tag = by_hand("hp/session/1", &[&nodes()[0].node_key().0, &[0xca; 16]]);
    let len = u32::try_from(input.payload.len()).unwrap().to_le_bytes();
    let (nonce, max_ledger) = (input.nonce.to_le_bytes(), input.max_ledger.to_le_bytes());
    let id = by_hand("hp/input/1", &[&chain_id.0, &input.user.0, &tag.0, &nonce, &max_ledger, &len, &input.payload]);
    assert_eq!(input.id(&chain_id), id);
    assert_eq!(Input::host_digest(&chain_id, &id), by_hand("hp/session-input/1", &[&chain_id.0, &id.0]));

    let output = by_hand("hp/output-bytes/1", &[&9_u32.to_le_bytes(), b"an output"]);
    assert_eq!(result().outputs_root, by_hand("hp/output/1", &[&user().user_key().0, &output.0]));
}

// ---- What the edge refuses ------------------------------------------------------------------------------------------

#[test]
fn every_example_passes_the_edge_and_none_in_another_chain_if_it_is_signed() {
    let other = Scope { chain_id: hash(0), ..scope() };
    for (name, message) in examples() {
        assert_eq!(Edge::default().check(&message, &scope()), Ok(()), "{name}");
        let is_signed = signed_part(&message).is_some() || matches!(message, Message::Input(_) | Message::Evidence(_));
        assert_eq!(Edge::default().check(&message, &other).is_err(), is_signed, "{name}");
    }
}

#[test]
fn votes_of_another_unl_are_refused_and_what_is_no_vote_is_not() {
    let other = Scope { unl_hash: hash(0), ..scope() };
    for (name, message) in examples() {
        let per_unl = signed_part(&message).is_some_and(|part| part.per_unl) || matches!(message, Message::Evidence(_));
        assert_eq!(Edge::default().check(&message, &other).is_err(), per_unl, "{name}");
    }
}

#[test]
fn evidence_cannot_nest_and_proves_only_two_different_messages_of_its_signer_in_one_slot() {
    let check = |evidence: Evidence| Edge::default().check(&Message::Evidence(evidence), &scope());
    let refused = |signer: NodeKey| Err(Refused::Signature { kind: "EVIDENCE", signer });
    let good = evidence();
    let signer = good.signer;
    assert_eq!(check(good.clone()), Ok(()));

    let nested = wire::encode(&Message::Evidence(good.clone()));
    assert_eq!(check(Evidence { first: nested.clone(), ..good.clone() }), refused(signer));
    assert_eq!(check(Evidence { second: nested.clone(), first: nested, signer }), refused(signer));
    assert_eq!(check(Evidence { second: good.first.clone(), ..good.clone() }), refused(signer), "twice the same");
    let innocent = nodes()[0].node_key();
    assert_eq!(check(Evidence { signer: innocent, ..good.clone() }), refused(innocent), "another signer");
    let later = wire::encode(&Message::Prevote(signed(1, Prevote(vote(1)))));
    assert_eq!(check(Evidence { second: later, ..good.clone() }), refused(signer), "another attempt");
    let statuses = [1, 2].map(|seq| {
        wire::encode(&Message::Status(signed(
            1,
            StatusMsg { seq, lcl: hash(1), attempt: 0, synced: true, silent: false, unheard: vec![] },
        )))
    });
    let [first, second] = statuses;
    assert_eq!(check(Evidence { first, second, signer }), refused(signer), "a node may say more than one of these");
    assert_eq!(check(Evidence { second: Vec::new(), ..good }), refused(signer), "no message");
}

#[test]
fn a_message_with_anything_behind_it_or_cut_anywhere_is_refused() {
    for (name, message) in examples() {
        let bytes = wire::encode(&message);
        assert_eq!(wire::decode::<Message>(&bytes), Ok(message), "{name}");
        for extra in [0, 1, 255] {
            let long = [&bytes[..], &[extra]].concat();
            assert_eq!(wire::decode::<Message>(&long), Err(WireError::Malformed(long.len())), "{name}");
        }
        for len in 0..bytes.len() {
            assert_eq!(wire::decode::<Message>(&bytes[..len]), Err(WireError::Malformed(len)), "{name}");
        }
    }
}

#[test]
fn a_flag_that_is_neither_0_nor_1_is_refused() {
    // Any of these would be a second form of a message that has one.
    let status = wire::encode(&Message::Status(signed(
        0,
        StatusMsg { seq: 4, lcl: hash(4), attempt: 0, synced: true, silent: false, unheard: vec![] },
    )));
    let synced_at = 1 + 32 + 8 + 32 + 4;
    assert_eq!(status[synced_at], 1);
    let free = wire::encode(&Message::Advance(Advance { vote: signed(0, advance_vote(false)), polc: None }));
    let high_at = 1 + 32 + 8 + 4;
    assert_eq!(free[high_at], 0);
    for (bytes, at) in [(status, synced_at), (free, high_at)] {
        for flag in 2..=255 {
            let mut other = bytes.clone();
            other[at] = flag;
            assert!(wire::decode::<Message>(&other).is_err(), "{flag} at {at}");
        }
    }
}

#[test]
fn a_hello_of_another_chain_is_refused_by_the_name_of_what_differs() {
    type Change = fn(&mut Hello);
    let cases: [(&str, Change); 31] = [
        ("the protocol version", |h| h.protocol += 1),
        ("the contract id", |h| h.genesis.contract_id = hash(0)),
        ("the genesis time", |h| h.genesis.time_ms += 1),
        ("the genesis UNL", |h| h.genesis.unl.truncate(2)),
        ("the state before the first run", |h| h.genesis.state_root = hash(1)),
        ("the genesis version", |h| h.genesis.ver += 1),
        ("the hash of the shared settings", |h| h.genesis.cfg_hash = hash(1)),
        // The genesis repeats the shared threshold; one that differs from it names no setting.
        ("the chain id", |h| h.genesis.threshold += 1),
        ("consensus.threshold", |h| h.shared.threshold += 1),
        ("consensus.time_res_ms", |h| h.shared.time_res_ms += 1),
        ("consensus.input_window", |h| h.shared.input_window += 1),
        ("user.inputs", |h| h.shared.inputs = Inputs::Signed),
        ("user.users_max", |h| h.shared.users_max += 1),
        ("pubmaxsize", |h| h.shared.pubmaxsize += 1),
        ("contract.time_limit_s", |h| h.shared.time_limit_s += 1),
        ("contract.cpu_s", |h| h.shared.cpu_s += 1),
        ("contract.memory_mb", |h| h.shared.memory_mb += 1),
        ("contract.files", |h| h.shared.files += 1),
        ("contract.processes", |h| h.shared.processes += 1),
        ("contract.file_mb", |h| h.shared.file_mb += 1),
        ("contract.output_mb", |h| h.shared.output_mb += 1),
        ("contract.output_user_mb", |h| h.shared.output_user_mb += 1),
        ("contract.npl_window_ms", |h| h.shared.npl_window_ms += 1),
        ("contract.network", |h| h.shared.network = true),
        ("contract.state_mb", |h| h.shared.state_mb += 1),
        ("contract.state_files", |h| h.shared.state_files += 1),
        ("built-in ledger inputs", |h| h.shared.ledger_inputs_max += 1),
        ("built-in ledger input bytes", |h| h.shared.ledger_input_bytes_max += 1),
        ("built-in NOVEL users", |h| h.shared.novel_users_max += 1),
        ("built-in NPL frame bytes", |h| h.shared.npl_frame_bytes_max += 1),
        ("built-in NPL ledger bytes", |h| h.shared.npl_ledger_bytes_max += 1),
    ];
    for (name, change) in cases {
        let mut theirs = hello();
        change(&mut theirs);
        let reason = hello().check(&theirs).expect_err(name);
        assert!(reason.starts_with(&format!("{name} differs: ")), "{reason}");
        assert!(reason.contains(" here, ") && reason.ends_with(" there"), "{reason}");
    }
    let restarted = Hello { boot: hash(1), ..hello() };
    assert_eq!(hello().check(&restarted), Ok(()), "a restart makes no other chain");
}

// ---- Any bytes ------------------------------------------------------------------------------------------------------

fn any_hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash)
}

fn any_node() -> impl Strategy<Value = NodeKey> {
    any::<[u8; 32]>().prop_map(NodeKey)
}

fn any_user() -> impl Strategy<Value = UserKey> {
    any::<[u8; 32]>().prop_map(UserKey)
}

fn any_sig() -> impl Strategy<Value = Sig> {
    any::<[u8; 32]>().prop_map(|half| Sig([half, half].concat().try_into().unwrap()))
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

fn any_signed<T: Clone + std::fmt::Debug>(body: impl Strategy<Value = T>) -> impl Strategy<Value = Signed<T>> {
    (any_node(), body, any_sig()).prop_map(|(from, body, sig)| Signed { from, body, sig })
}

fn any_input() -> impl Strategy<Value = Input> {
    let origin = prop_oneof![
        any_sig().prop_map(|sig| Origin::User { sig }),
        (any_node(), any::<[u8; 16]>(), any_sig(), any_sig()).prop_map(|(host, challenge, helo_sig, host_sig)| {
            Origin::Session { host, challenge: Challenge(challenge), helo_sig, host_sig }
        }),
    ];
    (any_user(), origin, any::<u64>(), any::<u64>(), any_bytes())
        .prop_map(|(user, origin, nonce, max_ledger, payload)| Input { user, origin, nonce, max_ledger, payload })
}

fn any_change() -> impl Strategy<Value = Option<UnlChange>> {
    option::of(prop_oneof![any_node().prop_map(UnlChange::Add), any_node().prop_map(UnlChange::Remove)])
}

fn any_settlement() -> impl Strategy<Value = Option<Settlement>> {
    let some = (any::<u64>(), any_hash(), any_hash(), any::<u64>(), any_hash());
    option::of(some.prop_map(|(seq, ch, tx, confirmed_length, txv)| Settlement { seq, ch, tx, confirmed_length, txv }))
}

fn any_result() -> impl Strategy<Value = ExecResult> {
    let status = prop_oneof![
        Just(Status::Ok),
        any::<i32>().prop_map(Status::Exit),
        any::<i32>().prop_map(Status::Signal),
        prop::sample::select(vec![
            LimitKind::Time,
            LimitKind::Output,
            LimitKind::Npl,
            LimitKind::FileSize,
            LimitKind::State,
            LimitKind::StateSize
        ])
        .prop_map(Status::Limit),
    ];
    (any::<u64>(), any_hash(), any_hash(), any_hash(), status, any_change()).prop_map(
        |(of_seq, of_hash, state_root, outputs_root, status, unl_req)| ExecResult {
            of_seq,
            of_hash,
            state_root,
            outputs_root,
            status,
            unl_req,
        },
    )
}

fn any_header() -> impl Strategy<Value = Header> {
    let numbers = (any::<u16>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>());
    let hashes = (any_hash(), any_hash(), any_hash(), any_hash(), any_hash(), any_hash());
    (numbers, hashes, any_result(), any_settlement()).prop_map(|(numbers, hashes, result, settlement)| {
        let (ver, seq, time_ms, n_users, n_inputs, inputs_bytes) = numbers;
        let (chain_id, parent, unl_hash, next_unl_hash, users_root, inputs_root) = hashes;
        Header {
            ver,
            chain_id,
            seq,
            parent,
            time_ms,
            unl_hash,
            next_unl_hash,
            users_root,
            n_users,
            inputs_root,
            n_inputs,
            inputs_bytes,
            result,
            settlement,
        }
    })
}

fn any_vote() -> impl Strategy<Value = Vote> {
    (any::<u64>(), any::<u32>(), any_hash()).prop_map(|(seq, attempt, ledger_hash)| Vote { seq, attempt, ledger_hash })
}

fn any_sigs() -> impl Strategy<Value = Vec<(NodeKey, Sig)>> {
    vec((any_node(), any_sig()), 0..4)
}

fn any_certificate() -> impl Strategy<Value = Certificate> {
    (any_vote(), any_sigs()).prop_map(|(vote, sigs)| Certificate { vote, sigs })
}

fn any_advance_vote() -> impl Strategy<Value = AdvanceVote> {
    (any::<u64>(), any::<u32>(), option::of((any::<u32>(), any_hash()))).prop_map(|(seq, attempt, high)| AdvanceVote {
        seq,
        attempt,
        high,
    })
}

fn any_tc() -> impl Strategy<Value = Tc> {
    vec(any_signed(any_advance_vote()), 0..4).prop_map(|votes| Tc { votes })
}

fn any_novel() -> impl Strategy<Value = Novel> {
    let lists = (vec(any_user(), 0..3), vec(any_user(), 0..3), vec(any_hash(), 0..3));
    (any::<u64>(), any_hash(), any::<u64>(), lists, any_change(), any_settlement()).prop_map(
        |(seq, parent, time_slot, (users_add, users_del, inputs), unl_vote, settlement)| Novel {
            seq,
            parent,
            time_slot,
            users_add,
            users_del,
            inputs,
            unl_vote,
            settlement,
        },
    )
}

fn any_propose() -> impl Strategy<Value = Propose> {
    let novels = (vec((any_node(), any_hash()), 0..4), any_result(), any_sigs())
        .prop_map(|(novels, result, sigs)| Basis::Novels(novels, ResultCert { result, sigs }));
    let basis = prop_oneof![any_certificate().prop_map(Basis::Polc), novels];
    (any_vote(), any_tc(), basis).prop_map(|(Vote { seq, attempt, ledger_hash }, tc, basis)| Propose {
        seq,
        attempt,
        ledger_hash,
        tc,
        basis,
    })
}

fn any_path_state() -> impl Strategy<Value = PathState> {
    let kind = prop_oneof![Just(PathKind::File), Just(PathKind::Folder), Just(PathKind::Symlink)];
    (kind, any::<bool>(), any::<u64>(), any_hash()).prop_map(|(kind, executable, size, root)| PathState {
        kind,
        executable,
        size,
        root,
    })
}

fn any_piece_ref() -> impl Strategy<Value = PieceRef> {
    let of = prop_oneof![any_bytes().prop_map(Thing::Path), any_user().prop_map(Thing::Output)];
    (any::<u64>(), any_hash(), of, option::of(any::<u32>())).prop_map(|(of_seq, of_hash, of, block)| PieceRef {
        of_seq,
        of_hash,
        of,
        block,
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    let presence = (any_hash(), any::<u64>(), any::<bool>(), vec(any_user(), 0..3), vec(any_user(), 0..3))
        .prop_map(|(boot, counter, full, up, down)| Presence { boot, counter, full, up, down });
    let overtime = (any::<u64>(), any_hash()).prop_map(|(of_seq, of_hash)| Overtime { of_seq, of_hash });
    let status =
        (any::<u64>(), any_hash(), any::<u32>(), any::<bool>(), any::<bool>(), vec(any_node(), 0..3)).prop_map(
            |(seq, lcl, attempt, synced, silent, unheard)| StatusMsg { seq, lcl, attempt, synced, silent, unheard },
        );
    let npl = (any_hash(), any::<u64>(), any_bytes()).prop_map(|(ledger_hash, counter, data)| Npl {
        ledger_hash,
        counter,
        data,
    });
    let npl_end = (any_hash(), any::<u64>()).prop_map(|(ledger_hash, frames)| NplEnd { ledger_hash, frames });
    let get = prop_oneof![
        any_hash().prop_map(Get::Candidate),
        any_hash().prop_map(Get::Novel),
        vec(any_hash(), 0..4).prop_map(Get::Inputs),
        Just(Get::Presence),
        any::<u64>().prop_map(Get::Details),
        any_hash().prop_map(Get::Npl),
        any_piece_ref().prop_map(Get::Piece),
    ];
    let lists = (vec(any_hash(), 0..3), vec(any_user(), 0..3), vec(any_user(), 0..3));
    let candidate = (any_header(), lists, any_change()).prop_map(|(header, lists, unl_change)| {
        let (inputs, users_add, users_del) = lists;
        Candidate { header, inputs, users_add, users_del, unl_change }
    });
    let changed = (any_bytes(), option::of(any_path_state())).prop_map(|(path, now)| Changed { path, now });
    let details = (any_result(), vec(changed, 0..3), vec((any_user(), any_hash()), 0..3))
        .prop_map(|(result, changed, outputs)| Details { result, changed, outputs });
    let known = (any_path_state(), any::<u32>(), vec(option::of(any_hash()), 0..3), vec(any_hash(), 0..3))
        .prop_map(|(state, index, siblings, blocks)| Known { state, proof: Proof { index, siblings }, blocks });
    let piece = prop_oneof![Just(Piece::Gone), known.prop_map(Piece::Known), any_bytes().prop_map(Piece::Block),];
    prop_oneof![
        any_input().prop_map(Message::Input),
        any_signed(presence).prop_map(Message::Presence),
        any_signed(any_novel()).prop_map(Message::Novel),
        any_signed(any_result()).prop_map(Message::Result),
        any_signed(overtime).prop_map(Message::Overtime),
        any_signed(any_vote().prop_map(Prevote)).prop_map(Message::Prevote),
        any_signed(any_vote().prop_map(Precommit)).prop_map(Message::Precommit),
        (any_signed(any_advance_vote()), option::of(any_certificate()))
            .prop_map(|(vote, polc)| Message::Advance(Advance { vote, polc })),
        (any::<u64>(), any_tc(), option::of(any_certificate())).prop_map(|(seq, tc, polc)| Message::TcFwd(TcFwd {
            seq,
            tc,
            polc
        })),
        any_signed(any_propose()).prop_map(Message::Propose),
        (any_header(), any_certificate()).prop_map(|(header, qc)| Message::Closed(Closed { header, qc })),
        get.prop_map(Message::Get),
        candidate.prop_map(Message::Candidate),
        any_signed(status).prop_map(Message::Status),
        any_signed(npl).prop_map(Message::Npl),
        any_signed(npl_end).prop_map(Message::NplEnd),
        details.prop_map(|details| Message::Details(Box::new(details))),
        (any_piece_ref(), piece).prop_map(|both| Message::Piece(Box::new(both))),
        (any_hash(), any_hash()).prop_map(|(older, newer)| Message::Twins(Twins { older, newer })),
        (any_node(), any_bytes(), any_bytes()).prop_map(|(signer, first, second)| Message::Evidence(Evidence {
            signer,
            first,
            second
        })),
    ]
}

/// Bytes are refused, or they are the one encoding of what they decode to.
fn decodes_canonically(bytes: &[u8]) {
    if let Ok(message) = wire::decode::<Message>(bytes) {
        assert_eq!(wire::encode(&message), bytes);
        // What a peer may send must not panic here either.
        let _ = Edge::default().check(&message, &scope());
        let _ = (message.slot(), message.round_seq(), message.round_attempt());
    }
}

proptest! {
    #[test]
    fn every_message_reads_back(message in any_message()) {
        prop_assert_eq!(wire::decode(&wire::encode(&message)), Ok(message));
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0..=KINDS, rest in vec(any::<u8>(), 0..600)) {
        decodes_canonically(&[&[kind], &rest[..]].concat());
    }

    #[test]
    fn mutated_messages_never_panic_and_have_one_form(
        message in any_message(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = wire::encode(&message);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        decodes_canonically(&bytes);
    }
}

#[test]
fn every_single_byte_of_the_examples_may_be_wrong() {
    for (_, message) in examples() {
        let bytes = wire::encode(&message);
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut wrong = bytes.clone();
                wrong[at] ^= flip;
                if let Ok(decoded) = wire::decode::<Message>(&wrong) {
                    assert_eq!(wire::encode(&decoded), wrong);
                }
            }
        }
    }
}
