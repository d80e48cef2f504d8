//! A node that is behind, and peers that answer well, badly, late, or not at all.

use super::{
    catchup::HELD_MAX,
    header::{Candidate, ClosedLedger, inputs_root, unl_hash, users_root},
    hostile::{Bench, ME, by_user, count, key, result_of, signature},
    messages::{Certificate, Get, Precommit, Range, Vote, VoteKind as _},
    range::Lie,
    *,
};

/// A chain of so many ledgers on top of a new bench's genesis, certified by these members; some have inputs and users.
pub(super) fn chain(bench: &Bench, signers: &[u8], len: Seq) -> Vec<(ClosedLedger, Vec<Input>)> {
    let core = &bench.core;
    let mut ledgers: Vec<(ClosedLedger, Vec<Input>)> = Vec::new();
    let mut users = BTreeSet::new();
    for seq in 1..=len {
        let parent = ledgers.last().map_or(core.chain_id(), |(ledger, _)| ledger.qc.vote.ledger_hash);
        let inputs: Vec<Input> =
            if seq % 5 == 0 { vec![Input { max_ledger: seq + 10, ..by_user(seq, 100) }] } else { vec![] };
        let ids: Vec<Hash> = inputs.iter().map(|input| input.id(&core.chain_id())).collect();
        let came: BTreeSet<UserKey> =
            inputs.iter().map(|input| input.user).filter(|user| !users.contains(user)).collect();
        users.extend(&came);
        let header = Header {
            ver: header::VERSION,
            chain_id: core.chain_id(),
            seq,
            parent,
            time_ms: 0,
            unl_hash: unl_hash(core.unl()),
            next_unl_hash: unl_hash(core.unl()),
            users_root: users_root(&users),
            n_users: users.len() as u32,
            inputs_root: inputs_root(&ids),
            n_inputs: ids.len() as u32,
            inputs_bytes: 100 * ids.len() as u64,
            result: if seq == 1 { core.genesis.result() } else { result_of(seq - 1, parent) },
            settlement: None,
        };
        let (users_add, users_del) = (came.into_iter().collect(), vec![]);
        let candidate = Candidate { header, inputs: ids, users_add, users_del, unl_change: None };
        ledgers.push((certified(bench, signers, candidate), inputs));
    }
    ledgers
}

pub(super) fn certified(bench: &Bench, signers: &[u8], candidate: Candidate) -> ClosedLedger {
    let vote = Vote { seq: candidate.header.seq, attempt: 0, ledger_hash: candidate.header.hash() };
    let sigs = signers.iter().map(|number| (key(*number), bench.signed(*number, Precommit::of(vote)).sig)).collect();
    ClosedLedger { candidate, qc: Certificate { vote, sigs } }
}

/// What a peer that has all of it answers.
pub(super) fn range(chain: &[(ClosedLedger, Vec<Input>)], first: Seq, last: Seq) -> Range {
    let kept = &chain[(first as usize - 1).min(chain.len())..(last as usize).min(chain.len())];
    Range {
        first,
        oldest: 1,
        ledgers: kept.iter().map(|(ledger, _)| ledger.clone()).collect(),
        inputs: kept.iter().flat_map(|(_, inputs)| inputs.clone()).collect(),
    }
}

pub(super) fn answer(range: Range) -> Message {
    Message::Range(Box::new(range))
}

/// Hears an answer, and adopts all of it.
pub(super) fn hear_all(bench: &mut Bench, from: u8, range: Range) {
    let mut effects = bench.hear(from, answer(range));
    while effects.iter().any(|effect| matches!(effect, Effect::SetTimer(Timer::Adopt, _))) {
        effects = bench.on(Event::Timer(Timer::Adopt));
    }
}

pub(super) fn tell(bench: &mut Bench, from: u8, seq: Seq) -> Vec<Effect> {
    let status = bench
        .signed(from, StatusMsg { seq, lcl: Hash::ZERO, attempt: 0, synced: true, silent: false, unheard: vec![] });
    bench.hear(from, Message::Status(status))
}

/// Who is asked for which ledgers.
pub(super) fn asked(effects: &[Effect]) -> Vec<(u8, Seq, Seq)> {
    let asked = effects.iter().filter_map(|effect| match effect {
        Effect::Send(to, Message::Get(Get::Range(first, last))) => Some((to.0[0], *first, *last)),
        _ => None,
    });
    asked.collect()
}

pub(super) fn lies(effects: &[Effect]) -> Vec<(u8, Lie)> {
    let lies = effects.iter().filter_map(|effect| match effect {
        Effect::Lied(peer, lie) => Some((peer.0[0], *lie)),
        _ => None,
    });
    lies.collect()
}

fn bench() -> Bench {
    Bench::new(&[1, 2, 3, 4], 75)
}

pub(super) const SIGNERS: [u8; 3] = [2, 3, 4];

#[test]
fn a_node_far_behind_asks_each_peer_for_other_ledgers_and_adopts_them_in_order_whichever_comes_first() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 300);
    let first = asked(&tell(&mut bench, 2, 300));
    assert_eq!(first, [(2, 1, 64)], "one a peer");
    assert_eq!(asked(&tell(&mut bench, 3, 100)), [(3, 65, 100)], "no more than it has");
    assert_eq!(asked(&tell(&mut bench, 4, 300)), [(4, 101, 164)]);
    let effects = bench.hear(4, answer(range(&chain, 101, 164)));
    assert_eq!((bench.core.summary().seq, asked(&effects)), (0, vec![(4, 165, 228)]), "it waits for those before");
    bench.hear(3, answer(range(&chain, 65, 100)));
    let effects = bench.hear(4, answer(range(&chain, 165, 228)));
    assert_eq!(asked(&effects), [(4, 229, 256)]);
    assert_eq!(bench.core.catchup.gap(1, HELD_MAX), None, "a bounded number is held or asked for");
    let mut effects = bench.hear(2, answer(range(&chain, 1, 64)));
    let mut turns = 0;
    while effects.iter().any(|effect| matches!(effect, Effect::SetTimer(Timer::Adopt, _))) {
        turns += 1;
        effects = bench.on(Event::Timer(Timer::Adopt));
        assert!(count(&effects, |effect| matches!(effect, Effect::LedgerClosed { .. })) <= ADOPT_WORK_MAX);
    }
    assert_eq!(bench.core.summary().seq, 228);
    assert!(turns >= 3, "other events have their turn between");
    assert_eq!(bench.core.summary().lcl, chain[227].0.qc.vote.ledger_hash);
    assert_eq!(bench.core.summary().network_seq, 300);
}

#[test]
fn what_is_false_is_named_and_whoever_sent_it_is_not_asked_again() {
    type Alter = fn(&mut Range);
    let alterations: [(Lie, &str, Alter); 14] = [
        (Lie::Certificate, "a header", |range| range.ledgers[9].candidate.header.time_ms += 1),
        (Lie::Certificate, "the last header", |range| range.ledgers[63].candidate.header.time_ms += 1),
        (Lie::Certificate, "a signature", |range| range.ledgers[9].qc.sigs[0].1 = Sig([1; 64])),
        (Lie::Certificate, "a signature less", |range| range.ledgers[9].qc.sigs.truncate(2)),
        (Lie::Certificate, "one twice", |range| range.ledgers[9].qc.sigs[1] = range.ledgers[9].qc.sigs[0]),
        (Lie::Certificate, "a certificate of another ledger", |range| {
            range.ledgers[9].qc = range.ledgers[10].qc.clone();
        }),
        (Lie::Chain, "a gap", |range| drop(range.ledgers.remove(9))),
        (Lie::Chain, "the first missing", |range| drop(range.ledgers.remove(0))),
        (Lie::Body, "a user more", |range| range.ledgers[9].candidate.users_add.push(UserKey([77; 32]))),
        (Lie::Body, "a change of the UNL", |range| {
            range.ledgers[9].candidate.unl_change = Some(UnlChange::Add(key(9)));
        }),
        (Lie::Body, "an input id less", |range| range.ledgers[9].candidate.inputs.clear()),
        (Lie::Input, "an input's bytes", |range| range.inputs[0].payload[0] ^= 1),
        (Lie::Input, "an input twice", |range| range.inputs.push(range.inputs[0].clone())),
        (Lie::Malformed, "too many ledgers", |range| range.ledgers.push(range.ledgers[0].clone())),
    ];
    for (lie, what, alter) in alterations {
        let mut bench = bench();
        let chain = chain(&bench, &SIGNERS, 200);
        tell(&mut bench, 2, 64);
        let mut altered = range(&chain, 1, 64);
        alter(&mut altered);
        let mut effects = bench.hear(2, answer(altered));
        effects.extend(bench.on(Event::Timer(Timer::Adopt)));
        assert_eq!(lies(&effects), [(2, lie)], "{what}");
        assert!(bench.core.summary().seq < 64, "{what}");
        // It may say what it likes now; another one is asked and believed.
        assert_eq!(asked(&tell(&mut bench, 2, 200)), [], "{what}");
        let (peer, first, last) = asked(&tell(&mut bench, 3, 200))[0];
        assert_eq!((peer, first), (3, bench.core.summary().seq + 1), "{what}");
        hear_all(&mut bench, 3, range(&chain, first, last));
        assert_eq!(bench.core.summary().seq, last, "{what}");
    }
}

#[test]
fn a_chain_certified_by_others_than_the_members_is_a_lie() {
    let mut bench = bench();
    for signers in [&[20, 21, 22][..], &[2, 3], &[2, 3, 20]] {
        let chain = chain(&bench, signers, 10);
        tell(&mut bench, 3, 10);
        let effects = bench.hear(3, answer(range(&chain, 1, 10)));
        assert_eq!(lies(&effects), [(3, Lie::Certificate)], "{signers:?}");
        assert_eq!(bench.core.summary().seq, 0);
        bench.core.catchup = Default::default();
    }
}

#[test]
fn a_false_closed_and_a_false_body_are_lies_too() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 5);
    let (ledger, _) = &chain[0];
    let mut closed = Closed { header: ledger.candidate.header.clone(), qc: ledger.qc.clone() };
    closed.qc.sigs[0].1 = Sig([0; 64]);
    assert_eq!(lies(&bench.hear(2, Message::Closed(closed))), [(2, Lie::Certificate)]);
    (0..4).for_each(|at| {
        bench.hear(3, Consensus::closed_message(&chain[at].0));
    });
    let mut body = chain[4].0.candidate.clone();
    let effects = bench.hear(3, Consensus::closed_message(&chain[4].0));
    assert_eq!(
        count(&effects, |it| matches!(it, Effect::Send(to, Message::Get(Get::Candidate(_))) if *to == key(3))),
        1
    );
    body.users_add.clear();
    assert_eq!(lies(&bench.hear(3, Message::Candidate(body))), [(3, Lie::Body)]);
    bench.now += 10_000;
    let effects = bench.on(Event::Timer(Timer::Fetch));
    assert_eq!(
        count(&effects, |it| matches!(it, Effect::Send(to, Message::Get(Get::Candidate(_))) if *to == key(4))),
        1
    );
}

#[test]
fn inputs_that_did_not_come_with_their_ledger_are_asked_for_and_it_is_closed_with_them() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 12);
    tell(&mut bench, 2, 12);
    let without = Range { inputs: vec![], ..range(&chain, 1, 12) };
    let effects = bench.hear(2, answer(without));
    assert_eq!(bench.core.summary().seq, 4);
    let wants = |effects: &[Effect]| count(effects, |it| matches!(it, Effect::Send(_, Message::Get(Get::Inputs(_)))));
    assert_eq!(wants(&effects), 1);
    bench.hear(2, Message::Input(chain[4].1[0].clone()));
    assert_eq!(bench.core.summary().seq, 9);
    bench.hear(2, Message::Input(chain[9].1[0].clone()));
    assert_eq!(bench.core.summary().seq, 12);
}

#[test]
fn nothing_that_was_not_asked_for_is_taken() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 100);
    for from in [2, 50] {
        bench.hear(from, answer(range(&chain, 1, 64)));
        assert!(!bench.core.expects_range(&key(from)));
    }
    assert_eq!((bench.core.summary().seq, bench.core.catchup.holds(1)), (0, false));
    // Asked for ten, it sends sixty.
    tell(&mut bench, 2, 10);
    assert!(bench.core.expects_range(&key(2)));
    bench.hear(2, answer(range(&chain, 1, 60)));
    assert_eq!(bench.core.summary().seq, 10);
}

#[test]
fn who_does_not_answer_in_time_is_asked_after_others_with_more_patience_and_its_late_answer_counts() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 64);
    tell(&mut bench, 2, 64);
    assert_eq!(asked(&tell(&mut bench, 3, 64)), [], "the same is not asked of two");
    bench.now += RANGE_TIMEOUT_MS;
    assert_eq!(asked(&bench.on(Event::Timer(Timer::Range))), [(3, 1, 64)]);
    bench.now += RANGE_TIMEOUT_MS;
    assert_eq!(asked(&bench.on(Event::Timer(Timer::Range))), [(2, 1, 64)], "nobody else is there");
    bench.now += RANGE_TIMEOUT_MS;
    assert_eq!(asked(&bench.on(Event::Timer(Timer::Range))), [], "it has twice the time now");
    hear_all(&mut bench, 2, range(&chain, 1, 64));
    assert_eq!(bench.core.summary().seq, 64);
    assert!(bench.core.catchup.timer.is_none());
}

#[test]
fn who_has_less_than_it_says_is_not_asked_until_it_says_so_again() {
    let mut bench = bench();
    tell(&mut bench, 2, Seq::MAX);
    let nothing = Range { first: 1, oldest: 1, ledgers: vec![], inputs: vec![] };
    let effects = bench.hear(2, answer(nothing));
    assert_eq!((asked(&effects), lies(&effects)), (vec![], vec![]));
    assert_eq!(asked(&tell(&mut bench, 2, 90)), [(2, 1, 64)]);
}

#[test]
fn who_keeps_what_comes_next_is_asked_though_others_have_deleted_it() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 100);
    let gone = |oldest| Range { first: 1, oldest, ledgers: vec![], inputs: vec![] };
    tell(&mut bench, 2, 64);
    tell(&mut bench, 3, 64);
    let effects = bench.hear(2, answer(gone(50)));
    assert_eq!(asked(&effects), [(3, 1, 64)], "another may keep it");
    bench.hear(3, answer(range(&chain, 1, 64)));
    hear_all(&mut bench, 3, range(&chain, 1, 64));
    assert!(bench.core.join.is_none(), "nothing is passed over");
    assert_eq!(bench.core.summary().seq, 64);
}

#[test]
fn liars_with_many_keys_push_each_other_out_and_no_member() {
    let mut bench = bench();
    bench.core.lied(key(3), Lie::Chain);
    for number in 0..2 * LIARS_MAX {
        let stranger = NodeKey(Hash::tagged("test/stranger", &(number as u64)).0);
        bench.core.lied(stranger, Lie::Chain);
    }
    assert!(bench.core.catchup.is_liar(&key(3)) && bench.core.catchup.liars() <= LIARS_MAX);
}

#[test]
fn a_stranger_is_asked_when_no_member_is_ahead_and_nothing_is_remembered_of_it_when_it_leaves() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 40);
    bench.on(Event::LinkUp(key(50)));
    assert_eq!(asked(&tell(&mut bench, 50, 40)), [(50, 1, 40)]);
    bench.hear(50, answer(range(&chain, 1, 40)));
    assert_eq!(bench.core.summary().seq, 40, "certificates vouch for it");
    tell(&mut bench, 50, 90);
    bench.on(Event::LinkDown(key(50)));
    assert!(!bench.core.expects_range(&key(50)) && !bench.core.peer_tips.contains_key(&key(50)));
    assert_eq!(bench.core.summary().network_seq, 40, "a stranger's word is not the network's");
}

#[test]
fn a_node_that_is_asked_for_a_range_reads_no_more_than_fits_into_one() {
    let mut bench = bench();
    let served = |effects: &[Effect]| {
        let ranges = effects.iter().filter_map(|effect| match effect {
            Effect::Serve(_, Query::Range(first, last)) => Some((*first, *last)),
            _ => None,
        });
        ranges.collect::<Vec<_>>()
    };
    let mut ask = |first, last| served(&bench.hear(50, Message::Get(Get::Range(first, last))));
    assert_eq!(ask(1, Seq::MAX), [(1, 64)]);
    assert_eq!(ask(Seq::MAX - 5, Seq::MAX), [(Seq::MAX - 5, Seq::MAX)]);
    assert_eq!((ask(0, 5), ask(7, 6)), (vec![], vec![]));
}

#[test]
fn a_signature_of_another_chain_or_another_unl_counts_for_nothing() {
    let bench = bench();
    let good = range(&chain(&bench, &SIGNERS, 3), 1, 3);
    let verify = |key: &NodeKey, digest: &Hash, sig: &Sig| signature(key, digest) == *sig;
    let chain_id = bench.core.chain_id();
    assert!(good.clone().check(&chain_id, verify).is_ok());
    assert_eq!(good.clone().check(&Hash([9; 32]), verify).unwrap_err(), Lie::Chain);
    let mut other = good;
    other.ledgers.truncate(1);
    other.ledgers[0].candidate.header.unl_hash = unl_hash(&[ME]);
    other.ledgers[0].qc.vote.ledger_hash = other.ledgers[0].candidate.header.hash();
    assert_eq!(other.check(&chain_id, verify).unwrap_err(), Lie::Certificate);
}
