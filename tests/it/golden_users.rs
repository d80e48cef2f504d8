//! The frames of signed mode: an example of each, compared with `tests/golden/signed/`.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use hotpocket::{
    consensus::{
        header::{ExecResult, Genesis, Header, Settlement, UnlChange},
        merkle,
        messages::{Certificate, Closed, Precommit, ResultCert, Scope, Signable, Vote},
    },
    crypto::SecretKey,
    signed::{
        Answer, AnswerBody, Base64, ErrorFrame, Executed, Fate, InputFrame, InputState, LedgerFrame, Limits,
        OutputFrame, OutputsPage, Query, QueryFrame, ReadFate, ReadFrame, ReadReason, ReadResult, Reason, Reply,
        Request, RunEnd, Settled, StatusFrame, Text, UnlPage, UnlStep, Welcome, parse_request,
        proof::{Agreement, OutputProof, Trust},
        sign_input,
    },
    types::{Execute, Hash, NodeKey, Sig, Status},
    wire,
};

use crate::golden::{nodes, user};

fn genesis() -> Genesis {
    Genesis {
        ver: 1,
        contract_id: Hash([0xc1; 32]),
        unl: nodes().iter().map(SecretKey::node_key).collect(),
        threshold: 80,
        cfg_hash: Hash([2; 32]),
        state_root: Hash::ZERO,
        time_ms: 1_700_000_000_000,
        ancestor: None,
    }
}

fn unl_hash() -> Hash {
    hotpocket::consensus::header::unl_hash(&genesis().unl)
}

fn signatures(body: &impl Signable) -> Vec<(NodeKey, Sig)> {
    let digest = body.digest(&Scope { chain_id: genesis().chain_id(), unl_hash: unl_hash() });
    nodes().iter().map(|node| (node.node_key(), node.sign(&digest.0))).collect()
}

fn leaves() -> Vec<Hash> {
    let other = SecretKey::from_seed([8; 32]).user_key();
    let mut users = [(user().user_key(), "an output"), (other, "another")];
    users.sort();
    users.iter().map(|(user, output)| merkle::output_leaf(user, output.as_bytes())).collect()
}

fn result() -> ExecResult {
    ExecResult {
        of_seq: 4,
        of_hash: Hash([4; 32]),
        state_root: Hash([0x5a; 32]),
        outputs_root: merkle::root(leaves()),
        status: Status::Ok,
        unl_req: None,
    }
}

fn next() -> Closed {
    next_of(result())
}

fn next_of(result: ExecResult) -> Closed {
    let header = Header {
        ver: 1,
        chain_id: genesis().chain_id(),
        seq: 5,
        parent: Hash([4; 32]),
        time_ms: 1_700_000_005_000,
        unl_hash: unl_hash(),
        next_unl_hash: unl_hash(),
        users_root: Hash::ZERO,
        n_users: 0,
        inputs_root: Hash::ZERO,
        n_inputs: 0,
        inputs_bytes: 0,
        result,
        settlement: None,
    };
    let vote = Vote { seq: 5, attempt: 1, ledger_hash: header.hash() };
    Closed { header, qc: Certificate { vote, sigs: signatures(&Precommit(vote)) } }
}

fn output(agreed: Agreement) -> OutputFrame {
    let mine = merkle::output_leaf(&user().user_key(), b"an output");
    let index = leaves().iter().position(|leaf| *leaf == mine).expect("among them") as u32;
    let path = merkle::proof(leaves(), index).expect("a leaf").into();
    let payload = Base64(b"an output".to_vec());
    OutputFrame { seq: 4, ledger: Text(Hash([4; 32])), payload, is_final: None, proof: OutputProof { agreed, path } }
}

/// The ledger after [`next`], which records that everything up to ledger 4 is settled.
fn recording() -> Closed {
    let settlement =
        Settlement { seq: 4, ch: Hash([0xc4; 32]), tx: Hash([0x54; 32]), confirmed_length: 30, txv: Hash([0x56; 32]) };
    let header =
        Header { seq: 6, parent: next().header.hash(), settlement: Some(settlement), ..next_of(result()).header };
    let vote = Vote { seq: 6, attempt: 0, ledger_hash: header.hash() };
    Closed { header, qc: Certificate { vote, sigs: signatures(&Precommit(vote)) } }
}

fn settled() -> Settled {
    let (tx, ch) = (Text(Hash([0x54; 32])), Text(Hash([0xc4; 32])));
    let proof = Agreement::by_header(&recording());
    Settled { first: 2, last: 4, tx, ch, confirmed_length: 30, recorded_in: 6, proof }
}

fn joining() -> NodeKey {
    SecretKey::from_seed([9; 32]).node_key()
}

/// The ledger after [`recording`], which takes another member in.
fn step() -> UnlStep {
    let mut unl = genesis().unl;
    unl.push(joining());
    unl.sort();
    let next_unl_hash = hotpocket::consensus::header::unl_hash(&unl);
    let header = Header { seq: 7, parent: recording().header.hash(), next_unl_hash, ..recording().header };
    let vote = Vote { seq: 7, attempt: 0, ledger_hash: header.hash() };
    let closed = Closed { header, qc: Certificate { vote, sigs: signatures(&Precommit(vote)) } };
    UnlStep::of(&closed, &UnlChange::Add(joining()))
}

fn by_results() -> OutputFrame {
    output(by_signatures(&result()))
}

fn by_signatures(result: &ExecResult) -> Agreement {
    Agreement::by_results(&ResultCert { result: result.clone(), sigs: signatures(result) })
}

fn failing() -> ExecResult {
    ExecResult { status: Status::Exit(3), outputs_root: Hash::ZERO, ..result() }
}

fn failed(proof: Agreement) -> Executed {
    Executed { seq: 4, ledger: Text(Hash([4; 32])), run: RunEnd::of(&failing(), Some(proof)) }
}

fn went_well() -> RunEnd {
    RunEnd::of(&result(), Some(by_signatures(&result())))
}

fn welcome() -> Welcome {
    Welcome {
        node: Text(genesis().unl[0]),
        contract: Text(genesis().contract_id),
        chain: Text(genesis().chain_id()),
        genesis: Base64(wire::encode(&genesis())),
        unl: genesis().unl.into_iter().map(Text).collect(),
        threshold: 80,
        seq: 5,
        lcl: Text(next().header.hash()),
        time: 1_700_000_005,
        execute: Text(Execute::Settled),
        settled_seq: 1,
        limits: Limits { payload_bytes: 1 << 20, messages_per_minute: Some(100), input_window: 65_536 },
    }
}

fn requests() -> Vec<(&'static str, Request)> {
    let input = sign_input(&user(), &genesis().chain_id(), 7, 100, b"signed input".to_vec());
    let query = |query| Request::Query(QueryFrame { id: Some(5), query });
    vec![
        ("input", Request::Input(InputFrame::from(input))),
        ("query-lcl", Request::Query(QueryFrame { id: None, query: Query::Lcl })),
        ("query-ledger", query(Query::Ledger { seq: 8 })),
        ("query-input", query(Query::Input { nonce: 7 })),
        ("query-outputs", query(Query::Outputs { since: 3 })),
        ("query-unl", query(Query::Unl { since: 3 })),
        ("read", Request::Read(ReadFrame { id: 5, payload: Base64(b"a question".to_vec()) })),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let status = |id, fate| Reply::Status(StatusFrame { nonce: 7, id, fate });
    let rejected = Fate::Rejected { reason: Reason::NonceUsed, message: "used".into() };
    let answer = |id, body| Reply::Answer(Answer { id, body });
    let read = |fate| Reply::ReadResult(ReadResult { id: 5, fate });
    let (hash, id) = (Text(Hash([4; 32])), Some(Text(Hash([1; 32]))));
    let ledger = LedgerFrame::of(&next());
    let page = OutputsPage {
        since: 3,
        to: 6,
        more: true,
        kept_from: 1,
        missing: vec![5],
        failed: vec![failed(Agreement::by_header(&next_of(failing())))],
        outputs: vec![OutputFrame { is_final: Some(true), ..output(Agreement::by_header(&next())) }],
        settlements: vec![settled()],
    };
    vec![
        ("welcome", Reply::Welcome(Box::new(welcome()))),
        ("status-accepted", status(id, Fate::Accepted { seq: 4, ledger: hash, run: None })),
        ("status-accepted-before", status(id, Fate::Accepted { seq: 4, ledger: hash, run: Some(went_well()) })),
        ("status-rejected", status(None, rejected)),
        ("output-by-results", Reply::Output(by_results())),
        ("output-by-header", Reply::Output(output(Agreement::by_header(&next())))),
        ("output-not-final", Reply::Output(OutputFrame { is_final: Some(false), ..by_results() })),
        ("settled", Reply::Settled(settled())),
        ("unl", Reply::Unl(step())),
        ("executed", Reply::Executed(Executed { seq: 4, ledger: hash, run: RunEnd { proof: None, ..went_well() } })),
        ("executed-failed", Reply::Executed(failed(by_signatures(&failing())))),
        ("answer-lcl", answer(None, AnswerBody::Lcl { seq: 4, ledger: hash, time_ms: 1_700_000_000_000 })),
        ("answer-ledger", answer(Some(5), AnswerBody::Ledger { seq: 5, ledger: Some(ledger) })),
        ("answer-ledger-none", answer(Some(5), AnswerBody::Ledger { seq: 9, ledger: None })),
        (
            "answer-input",
            answer(
                Some(5),
                AnswerBody::Input {
                    nonce: 7,
                    state: InputState::Accepted {
                        seq: 4,
                        ledger: hash,
                        run: Some(failed(by_signatures(&failing())).run),
                        settled: None,
                    },
                },
            ),
        ),
        (
            "answer-input-settled",
            answer(
                Some(5),
                AnswerBody::Input {
                    nonce: 7,
                    state: InputState::Accepted {
                        seq: 4,
                        ledger: hash,
                        run: Some(went_well()),
                        settled: Some(Box::new(settled())),
                    },
                },
            ),
        ),
        ("answer-input-pending", answer(None, AnswerBody::Input { nonce: 7, state: InputState::Pending })),
        ("answer-outputs", answer(Some(5), AnswerBody::Outputs(page))),
        ("answer-unl", answer(Some(5), AnswerBody::Unl(UnlPage { since: 3, changes: vec![step()], more: false }))),
        ("read-ok", read(ReadFate::Ok { seq: 4, ledger: hash, payload: Base64(b"an answer".to_vec()) })),
        ("read-failed", read(ReadFate::Failed { seq: 4, ledger: hash, run: "exit code 3".into() })),
        ("read-refused", read(ReadFate::Refused { reason: ReadReason::NotReady, message: "ask again".into() })),
        ("error", Reply::Error(ErrorFrame { code: "busy".into(), message: "ask again".into() })),
    ]
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/signed")
}

#[test]
fn the_frames_of_signed_mode_are_what_they_were_and_read_back() {
    let bless = env::var_os("HP_BLESS").is_some();
    let mut names = BTreeSet::new();
    let mut compare = |name: &str, json: String| {
        let file = folder().join(format!("{name}.json"));
        names.insert(format!("{name}.json"));
        if bless {
            fs::create_dir_all(folder()).expect("a folder");
            fs::write(&file, format!("{json}\n")).expect("written");
        }
        let golden = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(json, golden.trim_end(), "{name}; HP_BLESS=1 writes it anew");
    };
    for (name, request) in requests() {
        compare(name, request.to_json());
        assert_eq!(parse_request(request.to_json().as_bytes(), 100), Ok(request), "{name}");
    }
    for (name, reply) in replies() {
        compare(name, reply.to_json());
        assert_eq!(serde_json::from_str::<Reply>(&reply.to_json()).expect(name), reply, "{name}");
    }
    let files = fs::read_dir(folder()).expect("a folder").flatten();
    let found: BTreeSet<String> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(found, names, "every file belongs to an example");
}

#[test]
fn the_examples_prove_what_they_say() {
    let trust = Trust::of(&welcome()).expect("a network");
    assert_eq!(trust.chain_id(), genesis().chain_id());
    let mut followed = trust.clone();
    assert_eq!(followed.follow(&step()), Ok(true));
    assert!(followed.unl().len() == genesis().unl.len() + 1 && followed.unl().contains(&joining()));
    for (name, reply) in replies() {
        if let Reply::Output(output) = reply {
            assert_eq!(trust.check_output(&user().user_key(), &output), Ok(()), "{name}");
        }
    }
    assert_eq!(trust.check_settled(&settled()), Ok(()));
    for proof in [by_signatures(&failing()), Agreement::by_header(&next_of(failing()))] {
        let Executed { seq, ledger, run } = failed(proof);
        assert_eq!(trust.check_run(seq, ledger.0, &run), Ok(true));
    }
    assert_eq!(trust.check_run(4, Hash([4; 32]), &went_well()), Ok(true));
    let Request::Input(input) = requests().remove(0).1 else { panic!("an input") };
    let checked = wire::Edge::default().check_input(&input.of(user().user_key()), &genesis().chain_id());
    assert_eq!(checked, Ok(()));
}

#[test]
fn the_places_in_a_result_and_a_header_that_the_protocol_names_are_right() {
    let bytes = wire::encode(&result());
    assert_eq!(bytes[..8], 4u64.to_le_bytes());
    assert_eq!((&bytes[8..40], &bytes[72..104], bytes[104]), (&[4; 32][..], &merkle::root(leaves()).0[..], 0));
    let header = wire::encode(&next().header);
    assert_eq!((&header[42..74], &header[74..82]), (&[4; 32][..], &1_700_000_005_000u64.to_le_bytes()[..]));
    assert!(header[226..].starts_with(&bytes));
    // The database finds failed runs there.
    let failed = wire::encode(&next_of(failing()).header);
    assert_eq!((header[330], failed[330]), (0, 1));
}
