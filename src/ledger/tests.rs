//! The tables against the journal they stand for; damage, crashes, the thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use tempfile::TempDir;

use super::*;
use crate::{
    consensus::{
        LOADED_LEDGERS_MAX, RANGE_BYTES_MAX, RANGE_LEDGERS_MAX, USERS_PAGE_MAX, bodies_kept,
        header::{
            self, BareLedger, Candidate, ClosedLedger, ExecResult, Genesis, Header, Input, InputKey, Origin, UnlChange,
            VERSION,
        },
        join::{Join, Lacks},
        journal::Journal,
        merkle,
        messages::{
            Advance, AdvanceVote, Certificate, Message, Novel, Overtime, Precommit, Prevote, Range, Signed, Tc, Vote,
        },
    },
    types::{Attempt, Challenge, LimitKind, NodeKey, Sig, Status},
    verify::tests::made::{Made, Plan},
};

/// Deterministic numbers (splitmix64), so that a seed replays.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

fn genesis() -> Genesis {
    Genesis {
        ver: VERSION,
        contract_id: Hash([1; 32]),
        unl: vec![NodeKey([2; 32]), NodeKey([3; 32])],
        threshold: 80,
        cfg_hash: Hash([4; 32]),
        state_root: Hash([5; 32]),
        time_ms: 1_000,
        ancestor: None,
    }
}

fn signed<T>(body: T) -> Signed<T> {
    Signed { from: NodeKey([2; 32]), body, sig: Sig([7; 64]) }
}

fn certificate(vote: Vote) -> Certificate {
    Certificate { vote, sigs: vec![(NodeKey([2; 32]), Sig([8; 64])), (NodeKey([3; 32]), Sig([9; 64]))] }
}

fn user(n: u64) -> UserKey {
    UserKey(Hash::tagged("test/user", &n).0)
}

fn new_input(rng: &mut Rng, nonce: u64) -> Input {
    let origin = match rng.below(2) {
        0 => Origin::User { sig: Sig(rng.bytes()) },
        _ => Origin::Session {
            host: NodeKey([2; 32]),
            challenge: Challenge([rng.below(3) as u8; 16]),
            helo_sig: Sig(rng.bytes()),
            host_sig: Sig(rng.bytes()),
        },
    };
    // Some are longer than a page of the database.
    let len = [0, 1, 200, 9_000][rng.below(4) as usize];
    let payload = (0..len).map(|_| rng.next() as u8).collect();
    Input { user: user(rng.below(5)), origin, nonce, max_ledger: 1_000_000, payload }
}

/// A header's body that follows the journal's tip.
fn candidate(journal: &Journal, mut inputs: Vec<Hash>, add: Vec<UserKey>, del: Vec<UserKey>) -> Candidate {
    inputs.sort_unstable();
    let parent = journal.tip.as_ref().map(|tip| &tip.candidate.header);
    let mut candidate = Candidate {
        header: Header {
            ver: VERSION,
            chain_id: journal.genesis.chain_id(),
            seq: journal.seq() + 1,
            parent: parent.map_or(journal.genesis.chain_id(), Header::hash),
            time_ms: 1_000,
            unl_hash: header::unl_hash(&journal.unl),
            next_unl_hash: header::unl_hash(&journal.unl),
            users_root: Hash::ZERO,
            n_users: 0,
            inputs_root: header::inputs_root(&inputs),
            n_inputs: inputs.len() as u32,
            inputs_bytes: 0,
            result: journal.genesis.result(),
            settlement: None,
        },
        inputs,
        users_add: add,
        users_del: del,
        unl_change: None,
    };
    let users = candidate.users_after(&journal.users);
    candidate.header.users_root = header::users_root(&users);
    candidate.header.n_users = users.len() as u32;
    candidate
}

fn closed(candidate: Candidate) -> Record {
    let vote = Vote { seq: candidate.header.seq, attempt: 0, ledger_hash: candidate.header.hash() };
    Record::Ledger(Box::new(ClosedLedger { candidate, qc: certificate(vote) }))
}

fn result_of(journal: &Journal, status: Status) -> Option<Record> {
    let (ledger, _) = journal.unexecuted.first()?;
    Some(Record::Result(Box::new(signed(ExecResult {
        of_seq: ledger.candidate.header.seq,
        of_hash: ledger.candidate.header.hash(),
        state_root: Hash([6; 32]),
        outputs_root: Hash::ZERO,
        status,
        unl_req: None,
    }))))
}

/// That the time limit struck in the run of the tip.
fn overtime(journal: &Journal) -> Option<Record> {
    let of_hash = journal.tip.as_ref()?.candidate.header.hash();
    Some(Record::Overtime(Box::new(signed(Overtime { of_seq: journal.seq(), of_hash }))))
}

fn random_change(rng: &mut Rng) -> UnlChange {
    let node = NodeKey([rng.below(6) as u8; 32]);
    if rng.below(2) == 0 { UnlChange::Add(node) } else { UnlChange::Remove(node) }
}

fn random_record(rng: &mut Rng, journal: &Journal, nonce: &mut u64) -> Option<Record> {
    let seq = journal.seq() + 1;
    let pooled: Vec<Hash> = journal.pool.keys().copied().collect();
    let some = |rng: &mut Rng| -> Vec<Hash> { pooled.iter().filter(|_| rng.below(2) == 0).copied().collect() };
    let body = |rng: &mut Rng| {
        let inputs = some(rng);
        // With repetitions, and users who are there or gone already: whoever serves a body may write it so.
        let add = (0..rng.below(3)).map(|_| user(rng.below(6))).collect();
        let del = (0..rng.below(3)).map(|_| user(rng.below(6))).collect();
        let mut candidate = candidate(journal, inputs, add, del);
        let change = random_change(rng);
        if let Some(unl) = change.apply(&journal.unl) {
            candidate.unl_change = Some(change);
            candidate.header.next_unl_hash = header::unl_hash(&unl);
        }
        candidate
    };
    Some(match rng.below(17) {
        0..4 => {
            *nonce += 1;
            Record::Input(Box::new(new_input(rng, *nonce)))
        }
        4 => {
            // One that waits, with other signatures.
            let mut input = journal.pool.get(pooled.first()?)?.clone();
            if let Origin::User { sig } = &mut input.origin {
                *sig = Sig(rng.bytes());
            }
            Record::Input(Box::new(input))
        }
        5 => {
            let mut ids = some(rng);
            ids.truncate(1);
            ids.push(Hash(rng.bytes()));
            // One that is in a ledger is not forgotten.
            ids.extend(journal.tip.iter().flat_map(|tip| tip.candidate.inputs.first()));
            Record::Forget(ids)
        }
        6 if journal.novel.is_none() => Record::Novel(Box::new(signed(Novel {
            seq,
            parent: Hash([1; 32]),
            time_slot: rng.next(),
            users_add: vec![],
            users_del: vec![user(1)],
            inputs: some(rng),
            unl_vote: None,
            settlement: None,
        }))),
        7 => {
            let attempt = journal.prevotes.last_key_value().map_or(0, |(attempt, _)| attempt + 1);
            let body = body(rng);
            let vote = Vote { seq, attempt, ledger_hash: body.header.hash() };
            Record::Prevote(signed(Prevote(vote)), Box::new(body))
        }
        8 => {
            // For what was prevoted, as a rule.
            let attempt = journal.precommits.last_key_value().map_or(0, |(attempt, _)| attempt + 1);
            let body = journal.prevotes.get(&attempt).map_or_else(|| body(rng), |(_, body)| body.clone());
            let vote = Vote { seq, attempt, ledger_hash: body.header.hash() };
            Record::Precommit(signed(Precommit(vote)), Box::new(body), certificate(vote))
        }
        9 => {
            let vote = AdvanceVote { seq, attempt: 1 + rng.below(5) as Attempt, high: Some((0, Hash(rng.bytes()))) };
            Record::Advance(Box::new(Advance { vote: signed(vote), polc: None }))
        }
        10 => {
            let vote = AdvanceVote { seq, attempt: rng.below(4) as Attempt, high: None };
            let votes = if rng.below(8) == 0 { vec![] } else { vec![signed(vote)] };
            let polc = certificate(Vote { seq, attempt: 0, ledger_hash: Hash(rng.bytes()) });
            Record::Entered(Tc { votes }, (rng.below(2) == 0).then_some(polc))
        }
        11 => closed(body(rng)),
        12 => Record::UnlVote((rng.below(3) > 0).then(|| random_change(rng))),
        13 if journal.overtime.is_none() => overtime(journal)?,
        14 => {
            let result = journal.result.as_ref()?.body.clone();
            Record::Adopted(Box::new(ExecResult { state_root: Hash(rng.bytes()), ..result }))
        }
        _ => {
            let status = [Status::Ok, Status::Exit(1), Status::Limit(LimitKind::Time)][rng.below(3) as usize];
            result_of(journal, status)?
        }
    })
}

fn database(dir: &Path) -> PathBuf {
    dir.join("hist/ledger.db")
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn new_store(dir: &Path) -> Store {
    let mut store = Store::open(dir).unwrap();
    store.set_genesis(&genesis()).unwrap();
    store
}

fn commit(store: &mut Store, journal: &mut Journal, records: Vec<Record>, window: u64) {
    let batch: Vec<Write> = records.iter().cloned().map(Write::from).collect();
    store.commit(&batch).unwrap();
    records.into_iter().for_each(|record| journal.apply(record, window));
}

#[test]
fn any_sequence_of_records_reads_back_as_the_journal_that_memory_makes_of_it() {
    const WINDOW: u64 = 4;
    for seed in 0..6 {
        let mut rng = Rng(seed);
        let (dir, mut nonce, mut journal) = (folder(), 0, Journal::new(genesis()));
        let mut store = new_store(dir.path());
        for step in 0..60 {
            let mut batch = Vec::new();
            for _ in 0..1 + rng.below(6) {
                if let Some(record) = random_record(&mut rng, &journal, &mut nonce) {
                    journal.apply(record.clone(), WINDOW);
                    batch.push(Write::from(record));
                }
            }
            store.commit(&batch).unwrap();
            if step % 2 == 0 {
                store.close().unwrap();
                store = Store::open(dir.path()).unwrap();
            }
            // Not `assert_eq`: a journal fills screens.
            assert!(store.load(WINDOW).unwrap() == Some(journal.clone().opened()), "seed {seed} step {step}");
        }
        assert!(journal.seq() > 5 && journal.result.is_some(), "seed {seed} closed and executed ledgers");
        assert_eq!(rows(&store, "unl_change") as usize, store.unl_changes().unwrap().len());
        assert!(rows(&store, "unl_change") > 0, "seed {seed} changed the UNL");
        // Nothing is left behind: of the round when its ledger is closed, of inputs that were forgotten.
        let record = closed(candidate(&journal, vec![], vec![], vec![]));
        commit(&mut store, &mut journal, vec![record], WINDOW);
        assert_eq!(["round", "candidate"].map(|table| rows(&store, table)), [0, 0], "seed {seed}");
        let ledgered: usize =
            (1..=journal.seq()).map(|seq| store.closed(seq).unwrap().unwrap().candidate.inputs.len()).sum();
        assert_eq!(rows(&store, "input") as usize, journal.pool.len() + ledgered, "seed {seed}");
        assert!(rows(&store, "input_key") <= WINDOW as i64 + 1, "seed {seed}");
    }
}

#[test]
fn ledgers_are_loaded_for_their_runs_as_the_journal_says_a_bounded_number_and_number_of_bytes_at_once() {
    const WINDOW: u64 = 1_000;
    let (dir, mut journal) = (folder(), Journal::new(genesis()));
    let mut store = new_store(dir.path());
    store.load(WINDOW).unwrap();
    // The first ones are large: a few of them are as much as is loaded at once.
    for nonce in 0..12 + LOADED_LEDGERS_MAX as u64 {
        let payload = vec![nonce as u8; if nonce < 12 { 3 << 20 } else { 9 }];
        let input = Input { payload, origin: Origin::User { sig: Sig([1; 64]) }, ..new_input(&mut Rng(1), nonce) };
        let id = input.id(&genesis().chain_id());
        let body = candidate(&journal, vec![id], vec![], vec![]);
        commit(&mut store, &mut journal, vec![Record::Input(Box::new(input)), closed(body)], WINDOW);
    }
    assert_eq!(store.load(WINDOW).unwrap().unwrap().unexecuted.len(), 6, "5 are 15 MiB, 6 are over 16");
    for (first, loaded) in [(1, 6), (7, 6), (13, LOADED_LEDGERS_MAX), (14, LOADED_LEDGERS_MAX - 1)] {
        let ledgers = store.to_run(first).unwrap();
        assert!(ledgers == journal.load(first), "from {first}");
        assert_eq!((ledgers.len(), ledgers[0].0.candidate.header.seq), (loaded, first));
    }
    // A body that is gone before its run is damage, and named.
    store.db.execute("DELETE FROM body WHERE seq = 20", []).unwrap();
    let error = store.to_run(15).unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("ledger 20"), "{error}");
}

#[test]
fn a_range_for_a_peer_has_ledgers_in_a_row_with_their_inputs_as_many_as_fit() {
    const WINDOW: u64 = 10_000;
    let (dir, mut journal) = (folder(), Journal::new(genesis()));
    let mut store = new_store(dir.path());
    store.load(WINDOW).unwrap();
    assert_eq!(store.range(1, 64).unwrap(), Range { first: 1, oldest: 0, ledgers: vec![], inputs: vec![] });
    // Two of 600,000 bytes do not fit into one answer; two of 700,000 bytes in one ledger neither.
    let sizes: Vec<Vec<usize>> = [vec![600_000], vec![600_000], vec![700_000, 700_000], vec![9, 9]]
        .into_iter()
        .chain((0..RANGE_LEDGERS_MAX + 10).map(|_| vec![]))
        .collect();
    let mut nonce = 0;
    for sizes in &sizes {
        let mut records = Vec::new();
        let mut ids = Vec::new();
        for size in sizes {
            nonce += 1;
            let origin = Origin::User { sig: Sig([1; 64]) };
            let input = Input { payload: vec![7; *size], origin, ..new_input(&mut Rng(1), nonce) };
            ids.push(input.id(&genesis().chain_id()));
            records.push(Record::Input(Box::new(input)));
        }
        let mut body = candidate(&journal, ids, vec![user(nonce)], vec![]);
        body.header.inputs_bytes = sizes.iter().map(|size| *size as u64).sum();
        records.push(closed(body));
        commit(&mut store, &mut journal, records, WINDOW);
    }
    let shape = |first, last| {
        let range = store.range(first, last).unwrap();
        assert_eq!((range.first, range.oldest), (first, 1));
        for (at, ledger) in range.ledgers.iter().enumerate() {
            assert_eq!(Some(ledger), store.closed(first + at as Seq).unwrap().as_ref());
        }
        let in_order: Vec<Hash> = range.ledgers.iter().flat_map(|ledger| ledger.candidate.inputs.clone()).collect();
        let ids: Vec<Hash> = range.inputs.iter().map(|input| input.id(&genesis().chain_id())).collect();
        assert!(in_order.starts_with(&ids));
        assert!(encode(&range).len() <= RANGE_BYTES_MAX + (256 << 10));
        (range.ledgers.len(), range.inputs.len())
    };
    assert_eq!([shape(1, 64), shape(2, 64), shape(3, 64)], [(1, 1), (1, 1), (1, 1)], "one at a time");
    assert_eq!(shape(4, 5), (2, 2), "no more than was asked for");
    assert_eq!(shape(4, 1_000), (RANGE_LEDGERS_MAX, 2), "no more than fit");
    let tip = sizes.len() as Seq;
    assert_eq!((shape(tip, tip + 5), shape(tip + 1, tip + 5)), ((1, 0), (0, 0)));
    // What is being deleted is not sent any more, and the answer says what is left.
    (store.known.pruned, store.known.pruned_inputs) = (Some(1), 1);
    let range = store.range(1, 5).unwrap();
    assert_eq!((range.oldest, range.ledgers.len()), (2, 0));
}

#[test]
fn a_new_folder_has_no_genesis_and_keeps_the_one_it_gets() {
    let dir = folder();
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(store.genesis().unwrap(), None);
    assert_eq!(store.load(10).unwrap(), None);
    store.set_genesis(&genesis()).unwrap();
    store.set_genesis(&genesis()).unwrap();
    let other = Genesis { threshold: 67, ..genesis() };
    assert!(matches!(store.set_genesis(&other), Err(LedgerError::OtherChain { .. })));
    store.close().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(store.genesis().unwrap(), Some(genesis()));
    assert!(matches!(store.set_genesis(&other), Err(LedgerError::OtherChain { .. })));
    assert_eq!(store.load(10).unwrap(), Some(Journal::new(genesis())));
}

#[test]
fn what_contradicts_the_database_changes_nothing() {
    let dir = folder();
    let (mut store, mut journal, mut rng) = (new_store(dir.path()), Journal::new(genesis()), Rng(1));
    let input = new_input(&mut rng, 1);
    let id = input.id(&genesis().chain_id());
    let novel = |slot| {
        Record::Novel(Box::new(signed(Novel {
            seq: 2,
            parent: Hash::ZERO,
            time_slot: slot,
            users_add: vec![],
            users_del: vec![],
            inputs: vec![],
            unl_vote: None,
            settlement: None,
        })))
    };
    let first = candidate(&journal, vec![id], vec![], vec![]);
    commit(&mut store, &mut journal, vec![Record::Input(Box::new(input)), closed(first.clone()), novel(1)], 100);

    let second = candidate(&journal, vec![], vec![], vec![]);
    let mut foreign = second.clone();
    foreign.header.parent = Hash([9; 32]);
    let Record::Ledger(mut uncertified) = closed(second.clone()) else { unreachable!() };
    uncertified.qc.vote.ledger_hash = Hash([9; 32]);
    let mut third = second.clone();
    third.header.seq = 3;
    let vote = |ledger_hash| Vote { seq: 2, attempt: 0, ledger_hash };
    let prevote = |candidate: &Candidate| {
        Record::Prevote(signed(Prevote(vote(candidate.header.hash()))), Box::new(candidate.clone()))
    };
    let later = {
        let Some(Record::Result(mut result)) = result_of(&journal, Status::Ok) else { unreachable!() };
        result.body.of_seq = 2;
        Record::Result(result)
    };
    for (what, records) in [
        ("a second novel", vec![novel(2)]),
        ("a second prevote", vec![prevote(&second), prevote(&foreign)]),
        ("the same ledger again", vec![closed(first)]),
        ("a gap", vec![closed(third)]),
        ("another parent", vec![closed(foreign)]),
        ("another's certificate", vec![Record::Ledger(uncertified)]),
        ("an input ledgered twice", vec![closed(candidate(&journal, vec![id], vec![], vec![]))]),
        ("an input nobody holds", vec![closed(candidate(&journal, vec![Hash([1; 32])], vec![], vec![]))]),
        ("a result out of order", vec![later]),
        ("a result twice", vec![result_of(&journal, Status::Ok).unwrap(), result_of(&journal, Status::Ok).unwrap()]),
    ] {
        let mut batch = vec![Write::from(Record::Input(Box::new(new_input(&mut rng, 2))))];
        batch.extend(records.into_iter().map(Write::from));
        let error = store.commit(&batch).unwrap_err();
        assert!(matches!(error, LedgerError::Contradiction { .. }), "{what}: {error}");
        assert!(store.load(100).unwrap().unwrap() == journal.clone().opened(), "{what}");
    }
    // And it goes on from there.
    commit(&mut store, &mut journal, vec![closed(second)], 100);
    assert!(store.load(100).unwrap().unwrap() == journal.clone().opened());
}

#[test]
fn the_past_can_be_asked_for() {
    let dir = folder();
    let (mut store, mut journal, mut rng) = (new_store(dir.path()), Journal::new(genesis()), Rng(2));
    let chain_id = genesis().chain_id();
    let inputs: Vec<Input> = (0..3).map(|nonce| new_input(&mut rng, nonce)).collect();
    let ids: Vec<Hash> = inputs.iter().map(|input| input.id(&chain_id)).collect();
    let mut records: Vec<Record> = inputs.iter().cloned().map(|input| Record::Input(Box::new(input))).collect();
    records.push(closed(candidate(&journal, ids[..2].to_vec(), vec![user(1)], vec![])));
    commit(&mut store, &mut journal, records, 100);
    let records = vec![closed(candidate(&journal, vec![], vec![], vec![user(1)]))];
    let first = journal.tip.clone().unwrap();
    commit(&mut store, &mut journal, records, 100);
    let second = journal.tip.clone().unwrap();

    assert_eq!(store.closed(1).unwrap().as_ref(), Some(&first));
    assert_eq!(store.by_hash(&second.candidate.header.hash()).unwrap().as_ref(), Some(&second));
    assert_eq!(store.by_hash(&Hash([1; 32])).unwrap(), None);
    for seq in [0, 3, u64::MAX] {
        assert_eq!(store.closed(seq).unwrap(), None, "{seq}");
        assert_eq!(store.outputs(seq).unwrap(), None, "{seq}");
        assert_eq!(store.result(seq).unwrap(), None, "{seq}");
    }
    assert_eq!(store.inputs(&[ids[2], Hash([1; 32]), ids[0]]).unwrap(), [inputs[2].clone(), inputs[0].clone()]);
    let range = |first, count| -> Vec<Seq> {
        store.header_range(first, count).unwrap().iter().map(|closed| closed.header.seq).collect()
    };
    assert_eq!((range(0, 9), range(2, 9), range(1, 1), range(u64::MAX, 9)), (vec![1, 2], vec![2], vec![1], vec![]));

    let (one, two) = (vec![(user(1), vec![1; 5_000]), (user(2), vec![])], vec![(user(1), vec![3])]);
    let sorted = |mut outputs: Outputs| {
        outputs.sort();
        outputs
    };
    let run = |seq, outputs: &Outputs| Write::Outputs { seq, outputs: outputs.clone() };
    store.commit(&[run(1, &two), run(1, &one), Write::from(result_of(&journal, Status::Ok).unwrap())]).unwrap();
    store.commit(&[run(2, &two)]).unwrap();
    assert_eq!(store.outputs(1).unwrap(), Some(sorted(one)));
    store.commit(&[run(2, &vec![])]).unwrap();
    assert_eq!(store.outputs(2).unwrap(), Some(vec![]));
    assert_eq!(store.result(1).unwrap().unwrap().body.of_seq, 1);
    assert!(matches!(store.commit(&[run(3, &vec![])]), Err(LedgerError::Contradiction { .. })));
}

#[test]
fn agreed_outputs_of_one_user_come_in_pages_with_their_leaves_and_name_what_is_missing() {
    const WINDOW: u64 = 1_000;
    let dir = folder();
    let (mut store, mut journal) = (new_store(dir.path()), Journal::new(genesis()));
    let mut close = |store: &mut Store, outputs: Option<Outputs>| -> Seq {
        let mut next = candidate(&journal, vec![], vec![], vec![]);
        let seq = next.header.seq;
        if seq > 1 {
            next.header.result.outputs_root = Hash([1; 32]);
        }
        let ledger = closed(next);
        commit(store, &mut journal, vec![ledger], WINDOW);
        if let Some(outputs) = outputs {
            let result = result_of(&journal, Status::Ok).unwrap();
            store.commit(&[Write::Outputs { seq, outputs }]).unwrap();
            commit(store, &mut journal, vec![result], WINDOW);
        }
        seq
    };
    let none = PastOutputs { outputs: vec![], missing: vec![], failed: vec![], to: 0, more: false, kept_from: 1 };
    assert_eq!(store.outputs_since(&user(1), 0, None).unwrap(), none);

    let last = PAGE_OUTPUTS_MAX as Seq + 2;
    for seq in 1..=last {
        assert_eq!(close(&mut store, Some(vec![(user(2), vec![9]), (user(1), vec![seq as u8])])), seq);
    }
    let first = store.outputs_since(&user(1), 0, None).unwrap();
    assert_eq!((first.outputs.len(), first.to, first.more), (PAGE_OUTPUTS_MAX, PAGE_OUTPUTS_MAX as Seq, true));
    let output = &first.outputs[4];
    assert_eq!((output.seq, &output.output[..], output.index), (5, &[5][..], 0));
    assert_eq!(output.leaves, [merkle::output_leaf(&user(1), &[5]), merkle::output_leaf(&user(2), &[9])]);
    assert_eq!(output.next.as_ref().unwrap().header.seq, 6);
    // The last ledger's are agreed on when the caller knows so: no header says it yet.
    let rest = |agreed| {
        let past = store.outputs_since(&user(1), first.to, agreed).unwrap();
        (past.outputs.iter().map(|output| output.seq).collect::<Vec<_>>(), past.to, past.more)
    };
    assert_eq!(rest(None), (vec![last - 1], last - 1, false));
    assert_eq!(rest(Some(last - 1)), (vec![last - 1], last - 1, false));
    assert_eq!(rest(Some(last)), (vec![last - 1, last], last, false));
    for beyond in [last, last + 7, u64::MAX] {
        assert_eq!(store.outputs_since(&user(1), beyond, None).unwrap(), PastOutputs { to: beyond, ..none.clone() });
    }
    assert_eq!(store.outputs_since(&user(3), 0, None).unwrap(), PastOutputs { to: last - 1, ..none.clone() });

    // A long output ends the page behind it.
    let long = close(&mut store, Some(vec![(user(1), vec![0; PAGE_BYTES_MAX + 1])]));
    close(&mut store, Some(vec![(user(1), vec![1])]));
    let next = close(&mut store, Some(vec![]));
    let page = |since| {
        let past = store.outputs_since(&user(1), since, None).unwrap();
        (past.outputs.iter().map(|output| output.seq).collect::<Vec<_>>(), past.to, past.more)
    };
    assert_eq!(page(long - 2), (vec![long - 1], long - 1, true));
    assert_eq!(page(long - 1), (vec![long], long, true));
    assert_eq!(page(long), (vec![long + 1], next - 1, false));
    // What was not run here is named.
    store.db.execute("DELETE FROM run WHERE seq = ?1", [3]).unwrap();
    store.db.execute("DELETE FROM output WHERE seq = ?1", [3]).unwrap();
    let past = store.outputs_since(&user(1), 0, None).unwrap();
    assert_eq!((past.missing, past.outputs[2].seq), (vec![3], 4));
    assert!(store.outputs_since(&user(1), 3, None).unwrap().missing.is_empty());
}

#[test]
fn failed_runs_with_inputs_of_a_user_are_found_by_the_next_header_page_by_page() {
    const WINDOW: u64 = 10_000;
    let dir = folder();
    let (mut store, mut journal, mut rng) = (new_store(dir.path()), Journal::new(genesis()), Rng(5));
    let mut senders = BTreeMap::new();
    // All fail but the second; user 1 is in every ledger, user 2 in the even ones.
    let end = PAGE_FAILED_MAX as Seq + 1;
    let last = end + 3;
    let status_of = |seq| if seq == 2 { Status::Ok } else { Status::Exit(3) };
    for seq in 1..=last {
        let mut numbers = 10 * seq..;
        let mut new = |number| {
            let nonce = numbers.next().expect("enough");
            Input { user: user(number), ..new_input(&mut rng, nonce) }
        };
        let inputs = if seq % 2 == 0 { vec![new(1), new(2), new(1)] } else { vec![new(1)] };
        let mut ids: Vec<Hash> = inputs.iter().map(|input| input.id(&genesis().chain_id())).collect();
        ids.sort_unstable();
        senders.insert(seq, inputs.iter().map(|input| input.user).collect::<BTreeSet<_>>());
        let mut next = candidate(&journal, ids, vec![], vec![]);
        if seq > 1 {
            next.header.result.status = status_of(seq - 1);
        }
        let mut records: Vec<Record> = inputs.into_iter().map(|input| Record::Input(Box::new(input))).collect();
        records.push(closed(next));
        commit(&mut store, &mut journal, records, WINDOW);
        let result = result_of(&journal, status_of(seq)).unwrap();
        store.commit(&[Write::Outputs { seq, outputs: vec![] }]).unwrap();
        commit(&mut store, &mut journal, vec![result], WINDOW);
    }
    for (seq, users) in senders {
        assert_eq!(store.senders(seq).unwrap(), Vec::from_iter(users));
    }
    assert_eq!(store.senders(last + 1).unwrap(), []);
    let failed = |user: UserKey, since, agreed| {
        let past = store.outputs_since(&user, since, agreed).unwrap();
        assert!(past.failed.iter().all(|(seq, next)| {
            let Header { seq: after, result, .. } = &next.header;
            (*after, result.status) == (seq + 1, Status::Exit(3))
        }));
        (past.failed.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), past.to, past.more)
    };
    let all: Vec<Seq> = (1..=end).filter(|seq| *seq != 2).collect();
    assert_eq!(failed(user(1), 0, None), (all, end, true), "a page is bounded");
    assert_eq!(failed(user(1), end, None), (vec![end + 1, end + 2], last - 1, false));
    assert_eq!(failed(user(2), end, Some(last)), (vec![end + 1], last, false), "the caller knows of the last one");
    assert_eq!(failed(user(3), end, None), (vec![], last - 1, false));
    assert!(failed(user(1), end + 2, None).0.is_empty(), "not of the ledger asked from");
    let plan: String = store
        .db
        .query_row(
            "EXPLAIN QUERY PLAN SELECT seq FROM ledger WHERE substr(header, 331, 1) <> x'00' AND seq > 1 AND seq <= 9 ORDER BY seq",
            [],
            |row| row.get(3),
        )
        .unwrap();
    assert!(plan.contains("ledger_after_failure"), "{plan}");
}

#[test]
fn an_input_that_comes_again_after_its_ledger_changes_nothing() {
    let dir = folder();
    let (mut store, mut journal, mut rng) = (new_store(dir.path()), Journal::new(genesis()), Rng(8));
    let signed_with = |byte| Input { origin: Origin::User { sig: Sig([byte; 64]) }, ..new_input(&mut Rng(8), 1) };
    let (input, again) = (signed_with(1), signed_with(2));
    let id = input.id(&genesis().chain_id());
    assert_eq!(again.id(&genesis().chain_id()), id);
    let body = candidate(&journal, vec![id], vec![], vec![]);
    commit(&mut store, &mut journal, vec![Record::Input(Box::new(input.clone())), closed(body)], 100);
    let other = new_input(&mut rng, 2);
    store.commit(&[Record::Input(Box::new(again)).into(), Record::Forget(vec![id]).into()]).unwrap();
    commit(&mut store, &mut journal, vec![Record::Input(Box::new(other))], 100);
    assert_eq!(store.input(&id).unwrap(), Some(input));
    assert!(store.load(100).unwrap().unwrap() == journal.clone().opened());
}

#[test]
fn evidence_is_kept_up_to_a_number_against_each_signer() {
    let dir = folder();
    let mut store = new_store(dir.path());
    let evidence = |signer: u8, seq: Seq, other: u8| {
        let message = |byte| {
            let vote = Prevote(Vote { seq, attempt: 2, ledger_hash: Hash([byte; 32]) });
            encode(&Message::Prevote(Signed { from: NodeKey([signer; 32]), ..signed(vote) }))
        };
        Evidence { signer: NodeKey([signer; 32]), first: message(1), second: message(other) }
    };
    let mut batch: Vec<Write> = (0..40).map(|n| Write::Evidence(Box::new(evidence(1, n, 2)))).collect();
    // The same slot again, shown by somebody else.
    batch.insert(1, Write::Evidence(Box::new(evidence(1, 0, 3))));
    batch.push(Write::Evidence(Box::new(evidence(2, 0, 2))));
    store.commit(&batch).unwrap();
    let mut expected: Vec<Evidence> = (0..EVIDENCE_PER_SIGNER_MAX).map(|n| evidence(1, n, 2)).collect();
    expected.push(evidence(2, 0, 2));
    store.close().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.evidence().unwrap(), expected);
    let proven: Vec<Proven> = store.proven().unwrap();
    let slots = proven.iter().map(|it| (it.signer.0[0], &*it.kind, it.seq, it.attempt));
    let expected = (0..EVIDENCE_PER_SIGNER_MAX).map(|n| (1, "PREVOTE", n, 2)).chain([(2, "PREVOTE", 0, 2)]);
    assert!(slots.eq(expected), "{proven:?}");
}

/// Rows of a table, for what no reader shows.
fn rows(store: &Store, table: &str) -> i64 {
    store.db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn old_bodies_go_when_they_are_executed_and_headers_stay() {
    const WINDOW: u64 = 50;
    const EXTRA: u64 = 10;
    let dir = folder();
    let (mut store, mut journal, mut rng) = (new_store(dir.path()), Journal::new(genesis()), Rng(3));
    store.load(WINDOW).unwrap();
    let bodies_kept = bodies_kept(WINDOW);
    let unexecuted = bodies_kept + EXTRA;
    // One large commit for the ledgers that nobody executes, so that the test is quick.
    let mut batch = Vec::new();
    let mut add = |journal: &mut Journal, rng: &mut Rng| {
        let seq = journal.seq() + 1;
        let input = new_input(rng, seq);
        let id = input.id(&genesis().chain_id());
        for record in [Record::Input(Box::new(input)), closed(candidate_with(journal, id))] {
            journal.apply(record.clone(), WINDOW);
            batch.push(Write::from(record));
        }
        std::mem::take(&mut batch)
    };
    fn candidate_with(journal: &Journal, id: Hash) -> Candidate {
        // The input is applied by the same batch.
        candidate(journal, vec![id], vec![], vec![])
    }
    let mut all = Vec::new();
    for _ in 0..unexecuted {
        all.extend(add(&mut journal, &mut rng));
    }
    store.commit(&all).unwrap();
    assert_eq!(rows(&store, "body"), unexecuted as i64, "nothing that was not executed is deleted");
    assert!(store.load(WINDOW).unwrap().unwrap() == journal.clone().opened());

    // Now they are, all but the last two, with an output each.
    let mut all = Vec::new();
    for seq in 1..=unexecuted - 2 {
        all.push(Write::Outputs { seq, outputs: vec![(user(1), vec![1])] });
        let record = result_of(&journal, Status::Ok).unwrap();
        journal.apply(record.clone(), WINDOW);
        all.push(Write::from(record));
    }
    store.commit(&all).unwrap();
    for _ in 0..EXTRA {
        store.commit(&add(&mut journal, &mut rng)).unwrap();
    }
    let tip = unexecuted + EXTRA;
    let oldest = tip - bodies_kept + 1;
    assert_eq!(store.tip(), tip);
    assert_eq!(store.closed(oldest - 1).unwrap(), None);
    assert_eq!(store.closed(oldest).unwrap().unwrap().candidate.header.seq, oldest);
    assert_eq!(store.outputs(oldest - 1).unwrap(), None);
    assert_eq!(store.outputs(oldest).unwrap(), Some(vec![(user(1), vec![1])]));
    assert_eq!(store.header_range(1, 1).unwrap()[0].header.seq, 1, "headers stay");
    let kept = bodies_kept as i64;
    let run = unexecuted as i64 - 2 - (oldest as i64 - 1);
    assert_eq!(
        ["ledger", "body", "input", "output", "run", "result"].map(|table| rows(&store, table)),
        [tip as i64, kept, kept, run, run, run]
    );
    assert_eq!(rows(&store, "pooled"), 0);
    assert!(rows(&store, "input_key") < bodies_kept as i64, "keys go with the window");
    store.close().unwrap();
    assert!(Store::open(dir.path()).unwrap().load(WINDOW).unwrap().unwrap() == journal.clone().opened());
}

/// A ledger on top of the journal's tip without its contents.
fn bare(journal: &Journal, n_inputs: u32) -> Record {
    let Candidate { mut header, .. } = candidate(journal, vec![], vec![], vec![]);
    (header.n_inputs, header.users_root, header.n_users) = (n_inputs, Hash([1; 32]), 1);
    let vote = Vote { seq: header.seq, attempt: 0, ledger_hash: header.hash() };
    Record::Bare(Box::new(BareLedger { header, unl_change: None, qc: certificate(vote) }))
}

/// Users of a ledger, out of pages.
fn users_of(store: &Store, seq: Seq) -> BTreeSet<UserKey> {
    let mut users = BTreeSet::new();
    loop {
        let page = store.users_page(seq, users.last().copied()).unwrap();
        if page.users.is_empty() {
            return users;
        }
        users.extend(page.users);
    }
}

#[test]
fn ledgers_that_are_passed_over_read_back_as_memory_has_them_and_what_was_before_them_goes() {
    const WINDOW: u64 = 4;
    let dir = folder();
    let (mut store, mut journal, mut rng) = (new_store(dir.path()), Journal::new(genesis()), Rng(11));
    store.load(WINDOW).unwrap();
    let close = |store: &mut Store, journal: &mut Journal, rng: &mut Rng| {
        let input = new_input(rng, journal.seq());
        let id = input.id(&genesis().chain_id());
        let (add, del) = (user(rng.below(40)), user(rng.below(40)));
        let body = candidate(journal, vec![id], vec![add], if add == del { vec![] } else { vec![del] });
        commit(store, journal, vec![Record::Input(Box::new(input)), closed(body)], WINDOW);
    };
    let same = |store: &mut Store, journal: &Journal, what: &str| {
        let path = dir.path().to_owned();
        let old = std::mem::replace(store, Store::open(&folder().keep()).unwrap());
        old.close().unwrap();
        *store = Store::open(&path).unwrap();
        assert!(store.load(WINDOW).unwrap().unwrap() == journal.clone().opened(), "{what}");
    };
    for _ in 0..30 {
        close(&mut store, &mut journal, &mut rng);
    }
    for _ in 0..20 {
        let executed = vec![result_of(&journal, Status::Ok).unwrap()];
        commit(&mut store, &mut journal, executed, WINDOW);
    }
    let waits = new_input(&mut rng, 1_000);
    commit(&mut store, &mut journal, vec![Record::Input(Box::new(waits))], WINDOW);
    let novel = Record::Novel(Box::new(signed(Novel {
        seq: 31,
        parent: Hash([1; 32]),
        time_slot: 0,
        users_add: vec![],
        users_del: vec![],
        inputs: vec![],
        unl_vote: None,
        settlement: None,
    })));
    commit(&mut store, &mut journal, vec![novel], WINDOW);

    // Of the ledgers that are not run nothing is of use any more, and no contents come before the users are known.
    let record = bare(&journal, 0);
    commit(&mut store, &mut journal, vec![record], WINDOW);
    same(&mut store, &journal, "the first one");
    assert_eq!((journal.executed(), journal.has_state(), journal.unexecuted.len()), (31, false, 0));
    assert_eq!((store.range(1, 5).unwrap().oldest, rows(&store, "round")), (32, 0));
    let refused = store.commit(&[closed(candidate(&journal, vec![], vec![], vec![])).into()]);
    assert!(matches!(refused, Err(LedgerError::Contradiction { .. })), "{refused:?}");
    store.commit(&[Write::Outputs { seq: 25, outputs: vec![(user(1), vec![1])] }]).unwrap();
    assert_eq!(store.outputs(25).unwrap(), None, "a run that was under way counts for nothing");
    for n_inputs in [1, 0, 3].into_iter().chain([0; 20]) {
        let record = bare(&journal, n_inputs);
        commit(&mut store, &mut journal, vec![record], WINDOW);
    }
    same(&mut store, &journal, "many");
    assert_eq!(journal.join, Some(Join { base: 54, unknown: 34, lacks: Lacks::Users }));
    assert_eq!(["body", "input"].map(|table| rows(&store, table)), [0, 1], "the one that waits");
    assert_eq!(users_of(&store, 54), BTreeSet::new());

    // The last one has users that can be told.
    let users: BTreeSet<UserKey> = (0..30).map(user).collect();
    let Record::Bare(mut last) = bare(&journal, 0) else { unreachable!() };
    (last.header.users_root, last.header.n_users) = (header::users_root(&users), 30);
    let vote = Vote { seq: 55, attempt: 0, ledger_hash: last.header.hash() };
    last.qc = certificate(vote);
    commit(&mut store, &mut journal, vec![Record::Bare(last), Record::Base(users.clone())], WINDOW);
    same(&mut store, &journal, "the users");
    assert_eq!((&journal.users, journal.has_state()), (&users, false));
    let again = store.commit(&[Record::Base(users.clone()).into()]);
    assert!(matches!(again, Err(LedgerError::Contradiction { .. })), "{again:?}");
    assert_eq!(users_of(&store, 55), users);

    // From here on all is as it was: users can be told from those of the oldest ledger that is kept.
    let mut by_ledger = BTreeMap::from([(55, users)]);
    for _ in 0..20 {
        close(&mut store, &mut journal, &mut rng);
        by_ledger.insert(journal.seq(), journal.users.clone());
    }
    same(&mut store, &journal, "ledgers behind it");
    let result = ExecResult { of_seq: 60, ..genesis().result() };
    commit(&mut store, &mut journal, vec![Record::Synced(Box::new(result))], WINDOW);
    same(&mut store, &journal, "the state");
    assert!(journal.has_state() && journal.executed() == 60);
    for _ in 0..150 {
        close(&mut store, &mut journal, &mut rng);
        by_ledger.insert(journal.seq(), journal.users.clone());
        let executed = vec![result_of(&journal, Status::Ok).unwrap()];
        commit(&mut store, &mut journal, executed, WINDOW);
    }
    same(&mut store, &journal, "later");
    let oldest = store.range(1, 1).unwrap().oldest;
    assert!((56..journal.seq()).contains(&oldest), "{oldest}");
    let near = 2 * (bodies_kept(WINDOW) - WINDOW);
    for (seq, users) in &by_ledger {
        let is_told = (oldest - 1..oldest + near).contains(seq);
        assert_eq!(users_of(&store, *seq), if is_told { users.clone() } else { BTreeSet::new() }, "ledger {seq}");
    }
    // Headers are there from the first on, with the certificates.
    let headers = store.headers(1, 1_000).unwrap();
    assert_eq!((headers.first, headers.oldest, headers.ledgers.len() as Seq), (1, oldest, journal.seq()));
    assert!((1..).zip(&headers.ledgers).all(|(seq, ledger)| (ledger.header.seq, ledger.qc.vote.seq) == (seq, seq)));
    assert_eq!(store.headers(50, 52).unwrap().ledgers.len(), 3);
    assert_eq!(store.headers(Seq::MAX, Seq::MAX).unwrap().ledgers, []);
}

#[test]
fn users_come_in_pages_whoever_came_and_went_since_the_oldest_ledger_that_is_kept() {
    let dir = folder();
    let (mut store, mut journal) = (new_store(dir.path()), Journal::new(genesis()));
    store.load(100).unwrap();
    let add =
        |numbers: std::ops::Range<u64>| numbers.map(user).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    let many = USERS_PAGE_MAX as u64 + 100;
    for (come, go) in [(add(0..many), vec![]), (add(many..many + 5), add(0..500)), (vec![], add(many..many + 2))] {
        let body = candidate(&journal, vec![], come, go);
        commit(&mut store, &mut journal, vec![closed(body)], 100);
        let seq = journal.seq();
        let first = store.users_page(seq, None).unwrap();
        assert_eq!((first.users.len(), first.seq, first.oldest), (USERS_PAGE_MAX.min(journal.users.len()), seq, 1));
        assert_eq!(users_of(&store, seq), journal.users, "ledger {seq}");
    }
    assert_eq!(store.users_page(4, None).unwrap().users, [], "not closed yet");
    assert_eq!(store.users_page(Seq::MAX, None).unwrap().users, []);
    assert_eq!(store.users_page(3, Some(UserKey([0xff; 32]))).unwrap().users, []);
}

#[test]
fn a_large_old_body_is_deleted_over_several_commits() {
    let dir = folder();
    const WINDOW: u64 = 100;
    let (mut store, mut journal, mut rng) = (new_store(dir.path()), Journal::new(genesis()), Rng(4));
    store.load(WINDOW).unwrap();
    let count = 2 * PRUNE_INPUTS_MIN as u64 + 10;
    let inputs: Vec<Input> = (0..count).map(|nonce| new_input(&mut rng, nonce)).collect();
    let ids = inputs.iter().map(|input| input.id(&genesis().chain_id())).collect();
    let mut all: Vec<Record> = inputs.into_iter().map(|input| Record::Input(Box::new(input))).collect();
    all.push(closed(candidate(&journal, ids, vec![], vec![])));
    commit(&mut store, &mut journal, all, WINDOW);
    let executed = vec![result_of(&journal, Status::Ok).unwrap()];
    commit(&mut store, &mut journal, executed, WINDOW);
    let mut left = Vec::new();
    for _ in 0..bodies_kept(WINDOW) {
        // Many in one commit until the first is too old.
        let record = closed(candidate(&journal, vec![], vec![], vec![]));
        journal.apply(record.clone(), WINDOW);
        left.push(Write::from(record));
    }
    store.commit(&left).unwrap();
    let mut counts = vec![rows(&store, "input")];
    for _ in 0..3 {
        let record = closed(candidate(&journal, vec![], vec![], vec![]));
        commit(&mut store, &mut journal, vec![record], WINDOW);
        counts.push(rows(&store, "input"));
    }
    assert_eq!(counts, [count as i64 - 64, 10, 0, 0]);
    assert_eq!(store.closed(1).unwrap(), None);
}

// ---- Damage -----------------------------------------------------------------------------------------------------

/// A database with some history, closed.
fn some_history() -> TempDir {
    let dir = folder();
    let (mut store, mut journal, mut rng) = (new_store(dir.path()), Journal::new(genesis()), Rng(5));
    for nonce in 0..20 {
        let input = new_input(&mut rng, nonce);
        let waits = new_input(&mut rng, 1_000 + nonce);
        let id = input.id(&genesis().chain_id());
        let records = vec![
            Record::Input(Box::new(input)),
            Record::Input(Box::new(waits)),
            closed(candidate(&journal, vec![id], vec![user(nonce)], vec![])),
        ];
        commit(&mut store, &mut journal, records, 100);
        if nonce < 18 {
            let executed = vec![result_of(&journal, Status::Ok).unwrap()];
            commit(&mut store, &mut journal, executed, 100);
        }
    }
    let body = candidate(&journal, vec![], vec![], vec![]);
    let vote = Vote { seq: 21, attempt: 0, ledger_hash: body.header.hash() };
    commit(&mut store, &mut journal, vec![Record::Prevote(signed(Prevote(vote)), Box::new(body))], 100);
    store.close().unwrap();
    dir
}

fn open_and_load(dir: &Path) -> Result<Option<Journal>, LedgerError> {
    Store::open(dir)?.load(100)
}

#[test]
fn a_file_that_is_no_database_is_damaged_and_says_what_to_do() {
    let bytes = fs::read(database(some_history().path())).unwrap();
    let mut scrambled = bytes.clone();
    scrambled[4096 * 2..4096 * 4].fill(0xa5);
    let cases: [(&str, &[u8]); 7] = [
        ("empty", &[]),
        ("one byte", &bytes[..1]),
        ("a piece of the first page", &bytes[..100]),
        ("one page", &bytes[..4096]),
        ("a half", &bytes[..bytes.len() / 2]),
        ("text", &b"nothing to see here\n".repeat(1_000)),
        ("overwritten pages", &scrambled),
    ];
    for (what, bytes) in cases {
        let dir = folder();
        fs::create_dir(dir.path().join("hist")).unwrap();
        fs::write(database(dir.path()), bytes).unwrap();
        let error = open_and_load(dir.path()).unwrap_err();
        assert!(error.is_damage(), "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains(&*database(dir.path()).to_string_lossy()), "{what}: {text}");
        assert!(text.contains("docs/operating.md"), "{what}: {text}");
    }
}

#[test]
fn a_write_ahead_log_without_its_database_is_damage() {
    let dir = folder();
    fs::create_dir(dir.path().join("hist")).unwrap();
    fs::write(dir.path().join("hist/ledger.db-wal"), b"frames").unwrap();
    assert!(Store::open(dir.path()).unwrap_err().is_damage());
}

#[test]
fn a_creation_that_was_cut_short_is_begun_again() {
    let dir = folder();
    fs::create_dir(dir.path().join("hist")).unwrap();
    fs::write(dir.path().join("hist/ledger.db.new"), b"half a da").unwrap();
    assert_eq!(Store::open(dir.path()).unwrap().genesis().unwrap(), None);
}

#[test]
fn stored_values_that_do_not_fit_together_are_damage() {
    let statements = [
        "UPDATE meta SET value = X'00'",
        "UPDATE meta SET value = CAST(value || X'00' AS BLOB)",
        "DELETE FROM meta",
        "UPDATE ledger SET header = zeroblob(length(header)) WHERE seq = 20",
        "UPDATE ledger SET header = (SELECT header FROM ledger WHERE seq = 4) WHERE seq = 5",
        "UPDATE ledger SET qc = (SELECT qc FROM ledger WHERE seq = 4) WHERE seq = 5",
        "DELETE FROM ledger WHERE seq = 7",
        "DELETE FROM ledger WHERE seq = 20",
        "DELETE FROM ledger WHERE seq = 1",
        "DELETE FROM body WHERE seq = 20",
        "UPDATE body SET inputs = X'00000000' WHERE seq = 19",
        "DELETE FROM user_tip WHERE user = (SELECT min(user) FROM user_tip)",
        "INSERT INTO user_executed VALUES (zeroblob(32))",
        "UPDATE user_tip SET user = X'01' WHERE user = (SELECT min(user) FROM user_tip)",
        "DELETE FROM input WHERE n NOT IN (SELECT n FROM pooled)",
        "DELETE FROM input WHERE n = (SELECT max(n) FROM pooled)",
        "UPDATE input SET bytes = substr(bytes, 1, length(bytes) - 1)",
        "UPDATE input SET bytes = (SELECT bytes FROM input WHERE n = 1) WHERE n > 1",
        "UPDATE input_key SET keys = X'01000000'",
        "DELETE FROM result WHERE seq = 18",
        "UPDATE result SET seq = 21 WHERE seq = 18",
        "UPDATE result SET bytes = (SELECT bytes FROM result WHERE seq = 3) WHERE seq = 18",
        "DELETE FROM candidate",
        "UPDATE candidate SET bytes = X''",
        "UPDATE round SET attempt = 3",
        "UPDATE round SET attempt = -3",
        "UPDATE round SET attempt = 9223372036854775807",
        "UPDATE round SET kind = 9",
        "UPDATE round SET kind = 2",
        "UPDATE result SET seq = -1 WHERE seq = 5; UPDATE ledger SET seq = -20 WHERE seq = 20",
        "DROP TABLE round",
        "ALTER TABLE round ADD COLUMN more INTEGER",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 0",
    ];
    let whole = some_history();
    open_and_load(whole.path()).unwrap();
    for statement in statements {
        let dir = folder();
        fs::create_dir(dir.path().join("hist")).unwrap();
        fs::copy(database(whole.path()), database(dir.path())).unwrap();
        rusqlite::Connection::open(database(dir.path())).unwrap().execute_batch(statement).unwrap();
        match open_and_load(dir.path()) {
            Err(error) => assert!(error.is_damage(), "{statement}: {error}"),
            Ok(_) => panic!("not seen: {statement}"),
        }
    }
}

#[test]
fn a_database_of_a_newer_program_is_left_alone() {
    let dir = some_history();
    rusqlite::Connection::open(database(dir.path())).unwrap().execute_batch("PRAGMA user_version = 2").unwrap();
    let before = fs::read(database(dir.path())).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, LedgerError::Newer { found: 2, known: 1, .. }), "{error}");
    assert_eq!(fs::read(database(dir.path())).unwrap(), before);
}

#[test]
fn a_database_that_is_open_is_refused_to_others() {
    let dir = folder();
    let store = new_store(dir.path());
    assert!(matches!(Store::open(dir.path()), Err(LedgerError::InUse { .. })));
    store.close().unwrap();
    assert_eq!(Store::open(dir.path()).unwrap().genesis().unwrap(), Some(genesis()));
}

#[test]
fn room_made_in_the_log_is_used_by_commits_and_hides_none_of_them() {
    let dir = folder();
    let (mut store, mut journal) = (new_store(dir.path()), Journal::new(genesis()));
    let wal = |dir: &Path| dir.join("hist/ledger.db-wal");
    let close_some = |store: &mut Store, journal: &mut Journal| {
        for _ in 0..10 {
            let record = closed(candidate(journal, vec![], vec![], vec![]));
            commit(store, journal, vec![record], 100);
        }
    };
    close_some(&mut store, &mut journal);
    store.preallocate().unwrap();
    let room = fs::metadata(wal(dir.path())).unwrap().len();
    close_some(&mut store, &mut journal);
    assert_eq!(fs::metadata(wal(dir.path())).unwrap().len(), room, "commits fit in");

    // What a crash leaves is both files as they are.
    let crashed = folder();
    fs::create_dir(crashed.path().join("hist")).unwrap();
    fs::copy(database(dir.path()), database(crashed.path())).unwrap();
    fs::copy(wal(dir.path()), wal(crashed.path())).unwrap();
    let mut store = Store::open(crashed.path()).unwrap();
    assert!(store.load(100).unwrap().unwrap() == journal.clone().opened());
    store.preallocate().unwrap();
    close_some(&mut store, &mut journal);
    store.checkpoint().unwrap();
    close_some(&mut store, &mut journal);
    store.close().unwrap();
    assert!(Store::open(crashed.path()).unwrap().load(100).unwrap().unwrap() == journal.clone().opened());
}

#[test]
fn a_commit_that_the_disk_has_no_room_for_changes_nothing() {
    let dir = folder();
    let (mut store, mut journal, mut rng) = (new_store(dir.path()), Journal::new(genesis()), Rng(7));
    let first = closed(candidate(&journal, vec![], vec![user(1)], vec![]));
    commit(&mut store, &mut journal, vec![first], 100);
    store.db.execute_batch("PRAGMA max_page_count = 100").unwrap();
    let mut batch = vec![closed(candidate(&journal, vec![], vec![user(2)], vec![])).into()];
    for nonce in 0..50 {
        let input = Input { payload: vec![1; 20_000], ..new_input(&mut rng, nonce) };
        batch.push(Write::from(Record::Input(Box::new(input))));
    }
    let error = store.commit(&batch).unwrap_err();
    assert!(matches!(error, LedgerError::Sqlite { .. }), "{error}");
    assert_eq!(store.tip(), 1);
    assert!(store.load(100).unwrap().unwrap() == journal.clone().opened());
    // With room again, the same goes through.
    store.db.execute_batch("PRAGMA max_page_count = 100000").unwrap();
    store.commit(&batch).unwrap();
    assert_eq!((store.tip(), store.load(100).unwrap().unwrap().pool.len()), (2, 50));
}

// ---- Crashes ----------------------------------------------------------------------------------------------------

const CRASH_DIR: &str = "HP_TEST_LEDGER_CRASH_DIR";

/// Not a test by itself: what `what_was_confirmed_survives_a_kill` starts and kills.
#[test]
fn crash_child() {
    let Some(dir) = std::env::var_os(CRASH_DIR) else { return };
    let mut store = new_store(Path::new(&dir));
    let mut journal = store.load(1_000).unwrap().unwrap();
    let mut rng = Rng(journal.seq());
    let ledger = Ledger::start(store).unwrap();
    loop {
        let seq = journal.seq() + 1;
        let input = new_input(&mut rng, seq);
        let id = input.id(&genesis().chain_id());
        let mut batch = Vec::new();
        let mut add = |journal: &mut Journal, record: Record| {
            journal.apply(record.clone(), 1_000);
            batch.push(Write::from(record));
        };
        add(&mut journal, Record::Input(Box::new(input)));
        let body = candidate(&journal, vec![id], vec![user(seq)], vec![]);
        add(&mut journal, closed(body));
        let executed = result_of(&journal, Status::Ok).unwrap();
        add(&mut journal, executed);
        batch.push(Write::Outputs { seq, outputs: vec![(user(seq), seq.to_le_bytes().to_vec())] });
        ledger.commit(batch).blocking_recv().unwrap().unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nconfirmed {seq}").and_then(|()| out.flush()).unwrap();
    }
}

/// Ends the child however the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_was_confirmed_survives_a_kill() {
    let dir = folder();
    let mut confirmed = 0;
    for (round, lines) in [3, 40, 75].into_iter().enumerate() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["ledger::tests::crash_child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CRASH_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        let out = BufReader::new(child.0.stdout.take().unwrap());
        let (sender, seen) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some(seq) = line.strip_prefix("confirmed ") {
                    let _ = sender.send(seq.parse::<Seq>().unwrap_or(0));
                }
            }
        });
        for _ in 0..lines {
            confirmed = seen.recv_timeout(Duration::from_secs(30)).expect("the child commits");
        }
        let refused = Store::open(dir.path()).unwrap_err();
        assert!(matches!(refused, LedgerError::InUse { .. }), "{refused}");
        drop(child);
        reader.join().unwrap();
        // What it could still say was confirmed too; its last line may be cut.
        confirmed = seen.iter().fold(confirmed, Seq::max);

        let mut store = Store::open(dir.path()).unwrap();
        let journal = store.load(1_000).unwrap().unwrap();
        assert!(journal.seq() >= confirmed, "round {round}: {} on disk, {confirmed} confirmed", journal.seq());
        assert_eq!((journal.unexecuted.len(), journal.pool.len()), (0, 0), "a commit is whole or not there");
        for seq in 1..=journal.seq() {
            assert_eq!(store.outputs(seq).unwrap().unwrap(), [(user(seq), seq.to_le_bytes().to_vec())]);
        }
        store.close().unwrap();
    }
}

// ---- The thread -------------------------------------------------------------------------------------------------

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn the_thread_commits_in_order_and_a_read_sees_what_was_handed_over_before_it() {
    let dir = folder();
    let ledger = Ledger::start(new_store(dir.path())).unwrap();
    let mut journal = Journal::new(genesis());
    runtime().block_on(async {
        let mut receivers = Vec::new();
        for seq in 1..=300 {
            let record = closed(candidate(&journal, vec![], vec![user(seq)], vec![]));
            journal.apply(record.clone(), 100);
            receivers.push(ledger.clone().commit(vec![Write::from(record)]));
            if seq % 50 == 0 {
                assert_eq!(ledger.closed(seq).await.unwrap(), journal.tip, "{seq}");
            }
        }
        for receiver in receivers {
            receiver.await.unwrap().unwrap();
        }
        assert_eq!(ledger.waiting(), 0);
        let hash = journal.tip.as_ref().unwrap().candidate.header.hash();
        assert_eq!(ledger.by_hash(hash).await.unwrap(), journal.tip);
        assert_eq!(ledger.input(hash).await.unwrap(), None);
        assert_eq!(ledger.inputs(vec![hash]).await.unwrap(), []);
        assert_eq!(ledger.outputs(1).await.unwrap(), None);
        assert_eq!(ledger.header_range(299, 9).await.unwrap().len(), 2);
        let other = ledger.clone();
        ledger.stop().await.unwrap();
        assert!(matches!(other.commit(vec![]).await.unwrap(), Err(LedgerError::Closed)));
        assert!(matches!(other.closed(1).await, Err(LedgerError::Closed)));
        assert!(matches!(other.stop().await, Err(LedgerError::Closed)));
    });
    assert!(!dir.path().join("hist/ledger.db-wal").exists(), "the log was moved into the file");
    assert!(Store::open(dir.path()).unwrap().load(100).unwrap().unwrap() == journal.clone().opened());
}

#[test]
fn nothing_is_committed_after_a_commit_that_failed() {
    let dir = folder();
    let ledger = Ledger::start(new_store(dir.path())).unwrap();
    let mut journal = Journal::new(genesis());
    runtime().block_on(async {
        let first = closed(candidate(&journal, vec![], vec![], vec![]));
        ledger.commit(vec![first.clone().into()]).await.unwrap().unwrap();
        journal.apply(first.clone(), 100);
        let second = closed(candidate(&journal, vec![], vec![], vec![]));
        let failed = ledger.commit(vec![first.into()]);
        let after = ledger.commit(vec![second.into()]);
        assert!(matches!(failed.await.unwrap(), Err(LedgerError::Contradiction { .. })));
        assert!(matches!(after.await.unwrap(), Err(LedgerError::Contradiction { .. })));
        assert!(matches!(ledger.commit(vec![]).await.unwrap(), Err(LedgerError::Contradiction { .. })));
        assert_eq!(ledger.closed(1).await.unwrap(), journal.tip, "it is still read");
        assert!(matches!(ledger.stop().await, Err(LedgerError::Contradiction { .. })));
    });
    assert!(Store::open(dir.path()).unwrap().load(100).unwrap().unwrap() == journal.clone().opened());
}

#[test]
fn a_full_ledger_goes_to_disk_in_two_commits() {
    let dir = folder();
    let (mut store, mut journal, mut rng) = (new_store(dir.path()), Journal::new(genesis()), Rng(6));
    let inputs: Vec<Record> = (0..crate::consensus::INPUTS_MAX as u64)
        .map(|nonce| Input { payload: vec![nonce as u8; 200], ..new_input(&mut rng, nonce) })
        .map(|input| Record::Input(Box::new(input)))
        .collect();
    inputs.iter().for_each(|record| journal.apply(record.clone(), 100));
    let record = closed(candidate(&journal, journal.pool.keys().copied().collect(), vec![], vec![]));
    journal.apply(record.clone(), 100);
    let batch: Vec<Write> = inputs.into_iter().map(Write::from).collect();
    let begun = std::time::Instant::now();
    store.commit(&batch).unwrap();
    let stored = begun.elapsed();
    store.commit(&[record.into()]).unwrap();
    println!("16,384 inputs stored in {stored:?}, ledgered in {:?}", begun.elapsed() - stored);
    assert!(store.load(100).unwrap().unwrap() == journal.clone().opened());
}

/// Ledger 0 of a chain that goes on from another, with its users and keys.
fn recovered_genesis() -> (Genesis, BTreeSet<UserKey>, BTreeSet<InputKey>) {
    let users: BTreeSet<UserKey> = (0..3).map(user).collect();
    let keys: BTreeSet<InputKey> = (0..4).map(|nonce| (user(nonce % 2), Hash::ZERO, 1_000_000 + nonce)).collect();
    let ancestor = header::Ancestor {
        contract_id: Hash([1; 32]),
        chain_id: Hash([2; 32]),
        seq: 9,
        ledger_hash: Hash([3; 32]),
        users_root: header::users_root(&users),
        n_users: 3,
        keys_root: header::keys_root(&keys),
        n_keys: 4,
        binary: None,
    };
    (Genesis { ancestor: Some(ancestor), ..genesis() }, users, keys)
}

#[test]
fn a_recovered_chain_begins_with_users_and_keys_which_are_free_again_after_the_window() {
    const WINDOW: u64 = 5;
    let dir = folder();
    let (genesis, users, keys) = recovered_genesis();
    let mut store = Store::open(dir.path()).unwrap();
    store.set_recovered(b"settings", &genesis, &users, &keys).unwrap();
    let again = store.set_recovered(b"settings", &genesis, &users, &keys);
    assert!(matches!(again, Err(LedgerError::OtherChain { .. })), "{again:?}");
    drop(store);
    let mut store = Store::open(dir.path()).unwrap();
    let mut journal = store.load(WINDOW).unwrap().unwrap();
    assert_eq!((&journal.users, &journal.executed_users), (&users, &users));
    assert_eq!(journal.window.keys().copied().collect::<BTreeSet<_>>(), keys);
    for seq in 1..=WINDOW + 1 {
        let body = candidate(&journal, vec![], vec![], vec![]);
        commit(&mut store, &mut journal, vec![closed(body)], WINDOW);
        assert_eq!(journal.window.is_empty(), seq >= WINDOW, "ledger {seq}");
        drop(store);
        store = Store::open(dir.path()).unwrap();
        assert_eq!(store.load(WINDOW).unwrap().unwrap().window, journal.window, "ledger {seq}");
    }
}

#[test]
fn what_a_chain_hands_on_is_the_same_however_far_a_node_has_closed_beyond() {
    const WINDOW: u64 = 64;
    let mut rng = Rng(5);
    let dir = folder();
    let mut store = new_store(dir.path());
    let mut journal = store.load(WINDOW).unwrap().unwrap();
    let heritage = |seq| Archive::open(dir.path()).unwrap().heritage(seq, WINDOW).unwrap();
    let mut handed_on = Vec::new();
    for seq in 1..=100 {
        let input = Input { nonce: seq, ..new_input(&mut rng, seq) };
        let id = input.id(&journal.genesis.chain_id());
        let del: Vec<UserKey> = journal.users.iter().take((seq % 2) as usize).copied().collect();
        let body = candidate(
            &journal,
            vec![id],
            vec![user(seq), user(1_000 + seq)].into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
            del,
        );
        commit(&mut store, &mut journal, vec![Record::Input(Box::new(input)), closed(body)], WINDOW);
        let now = heritage(seq).unwrap();
        assert_eq!((&now.users, now.hash), (&journal.users, journal.tip.as_ref().unwrap().candidate.header.hash()));
        // One ledger less than the window: what the node beyond this one has not deleted yet.
        assert_eq!(now.keys.len() as u64, seq.min(WINDOW - 1));
        assert!(now.keys.iter().all(|key| journal.window.contains_key(key)));
        handed_on.push(now);
        if seq > 1 {
            let before = heritage(seq - 1).unwrap();
            let expected = Heritage { agreed: before.agreed.clone(), ..handed_on[seq as usize - 2].clone() };
            assert_eq!(before, expected, "ledger {seq} is closed, too");
            assert!(before.agreed.is_some());
        }
    }
    let told = heritage(90).unwrap_err();
    assert!(told.contains("the oldest ledger that this node can go on from is 99"), "{told}");
    assert!(heritage(101).unwrap_err().contains("is not closed here: the last one is 100"));
}

/// A chain that settles now and then, in which some ledgers have outputs.
fn settling_chain(ledgers: Seq) -> Made {
    let mut made = Made::new(3);
    let mut last: Option<Settlement> = None;
    for seq in 1..=ledgers {
        let outputs =
            if seq % 2 == 0 { vec![(made.user(0), vec![seq as u8]), (made.user(1), vec![1; 100])] } else { vec![] };
        let outputs = outputs.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
        last = match seq {
            1 => None,
            2 => Some(Settlement::begin(Hash([9; 32]))),
            _ if seq % 7 == 0 => {
                let (ch, tx) = (Hash::tagged("test/ch", &seq), Hash::tagged("test/tx", &seq));
                Some(Settlement { seq: seq - 3, ch, tx, confirmed_length: seq, txv: Hash([9; 32]) })
            }
            _ => last,
        };
        let plan = Plan { outputs, ..Plan::default() };
        made.close(plan, |candidate| candidate.header.settlement = last.clone());
    }
    made
}

#[test]
fn what_settled_a_ledger_is_what_the_first_header_that_covers_it_records() {
    for ledgers in [1, 2, 6, 7, 40] {
        let dir = folder();
        settling_chain(ledgers).store(dir.path());
        let store = Store::open(dir.path()).unwrap();
        let headers = store.header_range(1, HEADERS_READ_MAX).unwrap();
        // Without any halving.
        let expected = |seq: Seq| {
            let covers = |closed: &&Closed| closed.header.settlement.as_ref().is_some_and(|it| it.seq >= seq);
            let recorded = headers.iter().find(covers)?.clone();
            let before = &headers[recorded.header.seq as usize - 2].header.settlement;
            let first = before.as_ref().map_or(0, |before| before.seq) + 1;
            let settlement = recorded.header.settlement.clone()?;
            Some(PastSettlement { first, recorded, settlement })
        };
        for seq in 1..=ledgers + 2 {
            let found = store.settlements(&[seq]).unwrap();
            assert_eq!(found, expected(seq).into_iter().collect::<Vec<_>>(), "{seq} of {ledgers}");
        }
        let all = store.settlements(&(0..=ledgers + 2).collect::<Vec<_>>()).unwrap();
        assert_eq!(all.len() as u64, (ledgers / 7).min(ledgers), "each once");
        assert!(all.windows(2).all(|pair| pair[0].settlement.seq + 1 == pair[1].first), "without a hole");
    }
}

#[test]
fn settlements_are_listed_a_page_at_a_time_from_both_ends() {
    for ledgers in [1, 6, 7, 40] {
        let dir = folder();
        settling_chain(ledgers).store(dir.path());
        let all = Store::open(dir.path()).unwrap().settlements(&(0..=ledgers).collect::<Vec<_>>()).unwrap();
        let archive = Archive::open(dir.path()).unwrap();
        let list = |page, limit| archive.settlements(page, limit).unwrap();
        let settled = all.last().map_or(0, |last| last.settlement.seq);
        assert_eq!(list(SettlementPage::From(0), 100), (all.clone(), settled), "{ledgers}");
        assert_eq!(list(SettlementPage::Newest { before: None }, 100), (all.clone(), settled), "{ledgers}");
        assert_eq!(list(SettlementPage::From(settled + 1), 100).0, []);
        for seq in 0..=ledgers + 2 {
            let from: Vec<_> = all.iter().filter(|it| it.settlement.seq >= seq).take(2).cloned().collect();
            assert_eq!(list(SettlementPage::From(seq), 2).0, from, "from {seq} of {ledgers}");
            let before: Vec<_> = all.iter().filter(|it| it.first < seq).cloned().collect();
            let newest = &before[before.len().saturating_sub(2)..];
            assert_eq!(list(SettlementPage::Newest { before: Some(seq) }, 2).0, newest, "before {seq} of {ledgers}");
        }
    }
}

#[test]
fn outputs_of_a_ledger_come_a_page_at_a_time_to_those_who_are_asked_for() {
    let dir = folder();
    let mut made = settling_chain(5);
    let outputs: BTreeMap<UserKey, Vec<u8>> =
        (0..LOOKED_OUTPUTS_MAX as u64 + 10).map(|n| (user(n), vec![7; 10])).collect();
    let plan = Plan { outputs: outputs.clone().into_iter().collect(), ..Plan::default() };
    made.close(plan, |_| {});
    made.close(Plan::default(), |_| {});
    made.store(dir.path());
    let store = Store::open(dir.path()).unwrap();
    let next = |after, to| store.next_outputs(after, to).unwrap().map(|put_out| put_out.seq);
    assert_eq!((next(0, 9), next(2, 9), next(2, 3), next(4, 9), next(6, 9)), (Some(2), Some(4), None, Some(6), None));
    let put_out = store.next_outputs(4, 6).unwrap().unwrap();
    assert_eq!(merkle::root(put_out.leaves), put_out.agreed.outputs_root);
    // The result of the last ledger is in no header.
    made.close(Plan { outputs: vec![(user(1), vec![1])], ..Plan::default() }, |_| {});
    let dir = folder();
    made.store(dir.path());
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.next_outputs(6, 8).unwrap(), None);

    let pages = |wanted: &BTreeSet<UserKey>, limits| {
        let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = store.outputs_of(6, after, wanted, limits).unwrap();
            all.extend(page.outputs.into_iter().map(|(user, _)| user));
            (after, pages) = (page.more_after, pages + 1);
            if after.is_none() {
                return (all, pages);
            }
        }
    };
    let everybody: BTreeSet<UserKey> = outputs.keys().copied().collect();
    let in_order: Vec<UserKey> = everybody.iter().copied().collect();
    assert_eq!(pages(&everybody, (usize::MAX, 0)), (in_order.clone(), 2), "bounded by how many are looked at");
    let (all, count) = pages(&everybody, (10 * 1_000, 0));
    assert_eq!((all, count), (in_order.clone(), 5), "and by bytes");
    assert_eq!(pages(&everybody, (1, 0)).0, in_order, "one output may be longer");
    let last = in_order.last().copied().unwrap();
    assert_eq!(pages(&BTreeSet::from([last, UserKey([0; 32])]), (1, 0)), (vec![last], 2));
    assert_eq!(pages(&BTreeSet::new(), (1, 0)), (vec![], 2));
}
