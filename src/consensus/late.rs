//! A node that comes so late that nobody keeps the contents of what it lacks, and peers that answer well, badly, or not.

use std::collections::VecDeque;

use super::{
    behind::{SIGNERS, answer, asked, chain, hear_all, lies, range, tell},
    header::{BareLedger, ClosedLedger},
    hostile::{Bench, ME, count, key, signature},
    join::Lacks,
    messages::{Get, Headers, Range, UsersPage},
    range::Lie,
    *,
};

const WINDOW: u64 = 20;
/// Ledgers for whose fetching there is time: half of what contents are kept for beyond the window.
const SPARE: Seq = 32;

type Chain = Vec<(ClosedLedger, Vec<Input>)>;

fn bench() -> Bench {
    Bench::with_window(&[1, 2, 3, 4], 75, WINDOW)
}

/// What a peer answers that keeps no contents before `oldest`.
fn headers(chain: &Chain, oldest: Seq, first: Seq, last: Seq) -> Headers {
    let kept = &chain[first as usize - 1..(last as usize).min(chain.len())];
    let strip = |(ledger, _): &(ClosedLedger, Vec<Input>)| BareLedger {
        header: ledger.candidate.header.clone(),
        unl_change: ledger.candidate.unl_change,
        qc: ledger.qc.clone(),
    };
    Headers { first, oldest, ledgers: kept.iter().map(strip).collect() }
}

fn gone(first: Seq, oldest: Seq) -> Message {
    answer(Range { first, oldest, ledgers: vec![], inputs: vec![] })
}

/// Who is asked for which headers.
fn asked_headers(effects: &[Effect]) -> Vec<(u8, Seq, Seq)> {
    let asked = effects.iter().filter_map(|effect| match effect {
        Effect::Send(to, Message::Get(Get::Headers(first, last))) => Some((to.0[0], *first, *last)),
        _ => None,
    });
    asked.collect()
}

/// Who is asked for the users of which ledger, from whom on.
fn asked_users(effects: &[Effect]) -> Vec<(u8, Seq, Option<UserKey>)> {
    let asked = effects.iter().filter_map(|effect| match effect {
        Effect::Send(to, Message::Get(Get::Users(seq, after))) => Some((to.0[0], *seq, *after)),
        _ => None,
    });
    asked.collect()
}

fn records(effects: &[Effect]) -> impl Iterator<Item = &Record> {
    effects.iter().filter_map(|effect| match effect {
        Effect::Persist(record) => Some(record),
        _ => None,
    })
}

fn users_at(chain: &Chain, seq: Seq) -> BTreeSet<UserKey> {
    chain[..seq as usize].iter().flat_map(|(ledger, _)| &ledger.candidate.users_add).copied().collect()
}

fn page(chain: &Chain, seq: Seq, oldest: Seq, after: Option<UserKey>) -> UsersPage {
    let users = users_at(chain, seq).into_iter().filter(|user| Some(*user) > after).collect();
    UsersPage { seq, oldest, after, users }
}

/// Members say that what comes next is deleted: from then on headers are asked for.
fn give_up_by(bench: &mut Bench, peers: &[u8], tip: Seq, oldest: Seq) -> Vec<Effect> {
    let mut effects = Vec::new();
    for peer in peers {
        let told = tell(bench, *peer, tip);
        let first = asked(&told).into_iter().find(|asked| asked.0 == *peer).map(|asked| asked.1);
        effects.extend(told);
        effects.extend(first.map(|first| bench.hear(*peer, gone(first, oldest))).unwrap_or_default());
    }
    effects
}

fn give_up(bench: &mut Bench, tip: Seq, oldest: Seq) -> Vec<Effect> {
    give_up_by(bench, &[2, 3], tip, oldest)
}

/// Answers everything that is asked for ledgers as a node does that keeps contents from `oldest` on, until nothing more is;
/// what came of it all, and of `effects`.
fn answer_all(bench: &mut Bench, chain: &Chain, oldest: Seq, mut effects: Vec<Effect>) -> Vec<Effect> {
    let mut all = Vec::new();
    let mut left: VecDeque<(NodeKey, Get)> = VecDeque::new();
    loop {
        left.extend(effects.iter().filter_map(|effect| match effect {
            Effect::Send(to, Message::Get(get @ (Get::Headers(..) | Get::Range(..)))) => Some((*to, get.clone())),
            _ => None,
        }));
        let adopts = effects.iter().any(|effect| matches!(effect, Effect::SetTimer(Timer::Adopt, _)));
        all.append(&mut effects);
        if adopts {
            effects = bench.on(Event::Timer(Timer::Adopt));
            continue;
        }
        effects = match left.pop_front() {
            Some((from, Get::Headers(first, last))) => {
                bench.hear(from.0[0], Message::Headers(Box::new(headers(chain, oldest, first, last))))
            }
            Some((from, Get::Range(first, last))) => {
                bench.hear(from.0[0], answer(Range { oldest, ..range(chain, first, last) }))
            }
            _ => return all,
        };
    }
}

/// Joins behind the ledger that others keep contents from, and closes what they have closed.
fn join(bench: &mut Bench, chain: &Chain, tip: Seq, oldest: Seq) -> Vec<Effect> {
    let effects = give_up(bench, tip, oldest);
    let mut all = answer_all(bench, chain, oldest, effects);
    let (from, seq, after) = asked_users(&all)[0];
    let effects = bench.hear(from, Message::Users(Box::new(page(chain, seq, oldest, after))));
    all.extend(answer_all(bench, chain, oldest, effects));
    all
}

#[test]
fn headers_are_passed_over_to_where_others_keep_all_that_follows_and_its_users_are_taken_from_there() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 400);
    let effects = give_up(&mut bench, 400, 200);
    assert_eq!(asked(&effects)[..1], [(2, 1, 64)], "first it asks for contents");
    assert_eq!(asked_headers(&effects), [(2, 1, 256), (3, 257, 400)], "many at a time, of each other ones");
    let effects = answer_all(&mut bench, &chain, 200, effects);
    let base = 199 + SPARE;
    assert_eq!(bench.core.summary().seq, base, "so that there is time to fetch what follows");
    assert_eq!(count(&effects, |it| matches!(it, Effect::Join { next: 1, oldest: 200 })), 1);
    assert_eq!(records(&effects).filter(|record| matches!(record, Record::Bare(_))).count() as Seq, base);
    assert_eq!(count(&effects, |it| matches!(it, Effect::LedgerClosed { .. } | Effect::Execute(_))), 0);
    assert_eq!(bench.core.summary().lacks, Some(Lacks::Users));
    // The list comes in parts.
    assert_eq!(asked_users(&effects), [(2, base, None)]);
    let all = users_at(&chain, base);
    assert!(all.len() == 1, "who sends something stays");
    let effects = bench.hear(2, Message::Users(Box::new(page(&chain, base, 200, None))));
    assert_eq!(records(&effects).collect::<Vec<_>>(), [&Record::Base(all)]);
    assert_eq!(asked(&effects)[0], (2, base + 1, base + 64), "from here on ledgers have contents");
    assert_eq!(bench.core.summary().lacks, Some(Lacks::State));
    answer_all(&mut bench, &chain, 200, effects);
    assert_eq!(
        (bench.core.summary().seq, bench.core.summary().votes_after),
        (400, None),
        "it knows all keys that count"
    );
    assert!(!bench.core.summary().has_state && bench.core.summary().unexecuted == 400 - base);
}

#[test]
fn the_state_is_asked_for_when_no_ledger_lacks_and_runs_go_on_from_it() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 400);
    let effects = join(&mut bench, &chain, 400, 200);
    let asked: Vec<_> = effects
        .iter()
        .enumerate()
        .filter_map(|(at, effect)| match effect {
            Effect::SyncState { from, why } => Some((at, *from, *why)),
            _ => None,
        })
        .collect();
    let [(at, from, Lost::Joined)] = asked[..] else { panic!("{asked:?}") };
    assert!(from > 199 + SPARE && from <= 400, "{from}");
    let closed = count(&effects[..at], |effect| matches!(effect, Effect::LedgerClosed { .. })) as Seq;
    assert!(closed + 199 + SPARE >= 399, "when no ledger lacks: {closed}");
    let header = &chain[390].0.candidate.header;
    let (users, unl) = (users_at(&chain, 390), bench.core.unl().to_vec());
    let effects = bench.on(Event::Synced { result: Box::new(header.result.clone()), users, unl });
    assert!(matches!(records(&effects).next(), Some(Record::Synced(result)) if result.of_seq == 390));
    assert_eq!((bench.core.summary().lacks, bench.core.summary().unexecuted), (None, 10));
    assert_eq!(count(&effects, |it| *it == Effect::Load(391)), 1);
}

#[test]
fn what_is_false_without_contents_is_named_and_another_one_is_asked() {
    type Alter = fn(&mut Headers);
    let alterations: [(Lie, &str, Alter); 10] = [
        (Lie::Certificate, "a header", |range| range.ledgers[9].header.time_ms += 1),
        (Lie::Certificate, "a signature", |range| range.ledgers[9].qc.sigs[0].1 = Sig([1; 64])),
        (Lie::Certificate, "a signature less", |range| range.ledgers[9].qc.sigs.truncate(2)),
        (Lie::Certificate, "one twice", |range| range.ledgers[9].qc.sigs[1] = range.ledgers[9].qc.sigs[0]),
        (Lie::Certificate, "another's certificate", |range| range.ledgers[9].qc = range.ledgers[10].qc.clone()),
        (Lie::Chain, "a gap", |range| drop(range.ledgers.remove(9))),
        (Lie::Chain, "the first missing", |range| drop(range.ledgers.remove(0))),
        (Lie::Body, "a change of the UNL", |range| range.ledgers[9].unl_change = Some(UnlChange::Add(key(9)))),
        (Lie::Body, "one that cannot be made", |range| range.ledgers[9].unl_change = Some(UnlChange::Add(key(2)))),
        (Lie::Malformed, "too many", |range| range.ledgers.push(range.ledgers[0].clone())),
    ];
    for (lie, what, alter) in alterations {
        let mut bench = bench();
        let chain = chain(&bench, &SIGNERS, 400);
        give_up_by(&mut bench, &[2, 3, 4], 400, 390);
        let mut altered = headers(&chain, 390, 1, 256);
        alter(&mut altered);
        let mut effects = bench.hear(2, Message::Headers(Box::new(altered)));
        effects.extend(bench.on(Event::Timer(Timer::Adopt)));
        assert_eq!(lies(&effects), [(2, lie)], "{what}");
        let seq = bench.core.summary().seq;
        assert!(seq < 10, "{what}: {seq}");
        assert_eq!(asked_headers(&tell(&mut bench, 2, 400)), [], "{what}: it is not asked again");
        assert_eq!(asked_headers(&effects).last().map(|asked| (asked.0, asked.1)), Some((4, seq + 1)), "{what}");
        answer_all(&mut bench, &chain, 390, effects);
        assert!(bench.core.summary().seq >= 256, "{what}");
    }
}

#[test]
fn a_false_list_of_users_is_named_and_another_one_is_asked() {
    type Alter = fn(&mut UsersPage);
    let alterations: [(&str, Alter); 4] = [
        ("another", |page| page.users = vec![UserKey([77; 32])]),
        ("one more", |page| page.users.push(UserKey([0xff; 32]))),
        ("one twice", |page| page.users.push(page.users[0])),
        ("in disorder", |page| page.users.insert(0, UserKey([0xff; 32]))),
    ];
    for (what, alter) in alterations {
        let mut bench = bench();
        let chain = chain(&bench, &SIGNERS, 100);
        let effects = give_up(&mut bench, 100, 60);
        let effects = answer_all(&mut bench, &chain, 60, effects);
        let (from, seq, _) = asked_users(&effects)[0];
        let mut altered = page(&chain, seq, 60, None);
        alter(&mut altered);
        // Of another ledger, or of another one than was asked, it counts for nothing.
        assert_eq!(lies(&bench.hear(4, Message::Users(Box::new(altered.clone())))), [], "{what}");
        let late = UsersPage { seq: seq - 1, ..altered.clone() };
        assert_eq!(lies(&bench.hear(from, Message::Users(Box::new(late)))), [], "{what}");
        let effects = bench.hear(from, Message::Users(Box::new(altered)));
        assert_eq!(lies(&effects), [(from, Lie::Users)], "{what}");
        let (other, same, _) = asked_users(&effects)[0];
        assert!(other != from && same == seq, "{what}");
        bench.hear(other, Message::Users(Box::new(page(&chain, seq, 60, None))));
        assert_eq!(bench.core.summary().lacks, Some(Lacks::State), "{what}");
        assert_eq!(bench.core.users, users_at(&chain, seq), "{what}");
    }
}

#[test]
fn who_has_deleted_too_much_by_now_is_believed_and_more_is_passed_over() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 300);
    let effects = give_up(&mut bench, 200, 60);
    let effects = answer_all(&mut bench, &chain, 60, effects);
    let (from, seq, after) = asked_users(&effects)[0];
    assert_eq!(seq, 59 + SPARE);
    let nobody = UsersPage { users: vec![], ..page(&chain, seq, 120, after) };
    tell(&mut bench, from, 300);
    let effects = bench.hear(from, Message::Users(Box::new(nobody)));
    assert_eq!(lies(&effects), []);
    // The other one said 60: that one is asked, and says the same.
    let (other, ..) = asked_users(&effects)[0];
    tell(&mut bench, other, 300);
    let nobody = UsersPage { users: vec![], ..page(&chain, seq, 120, None) };
    let effects = bench.hear(other, Message::Users(Box::new(nobody)));
    let effects = answer_all(&mut bench, &chain, 120, effects);
    assert_eq!(asked_users(&effects).last().map(|asked| asked.1), Some(119 + SPARE));
}

#[test]
fn few_that_say_it_is_deleted_are_waited_for_whether_others_keep_it() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 300);
    tell(&mut bench, 2, 300);
    let effects = bench.hear(2, gone(1, 200));
    assert_eq!(asked_headers(&effects), [], "one member may lie");
    bench.now += JOIN_PATIENCE_MS;
    let effects = bench.on(Event::Timer(Timer::Range));
    assert_eq!(asked_headers(&effects), [(2, 1, 256)], "nobody else is there");
    // Somebody comes who keeps it: nothing was passed over yet.
    let effects = tell(&mut bench, 3, 300);
    assert_eq!(asked(&effects), [(3, 1, 64)]);
    bench.hear(2, Message::Headers(Box::new(headers(&chain, 200, 1, 256))));
    assert_eq!((bench.core.summary().seq, bench.core.join), (0, None));
    hear_all(&mut bench, 3, range(&chain, 1, 64));
    assert_eq!(bench.core.summary().seq, 64);
}

#[test]
fn who_claims_to_keep_everything_and_says_nothing_holds_nobody_up() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 300);
    tell(&mut bench, 4, 300);
    let effects = give_up(&mut bench, 300, 200);
    assert_eq!(asked_headers(&effects), [], "it is asked first");
    let mut effects = Vec::new();
    for _ in 0..10 {
        bench.now += RANGE_TIMEOUT_MAX_MS;
        effects = bench.on(Event::Timer(Timer::Range));
        if !asked_headers(&effects).is_empty() {
            break;
        }
    }
    assert_eq!(asked_headers(&effects).first(), Some(&(2, 1, 256)));
    // It says now and then where contents begin, and never who the users are.
    let effects = answer_all(&mut bench, &chain, 200, effects);
    let (from, seq, _) = asked_users(&effects)[0];
    assert!(from != 4 && seq == 199 + SPARE);
    bench.now += RANGE_TIMEOUT_MS;
    let effects = bench.on(Event::Timer(Timer::Range));
    let (other, same, _) = asked_users(&effects)[0];
    assert!(other != from && same == seq, "the next one");
}

#[test]
pub(crate) fn who_passed_over_inputs_votes_when_they_may_not_be_in_a_ledger_again() {
    let mut bench = bench();
    let chain = chain(&bench, &SIGNERS, 300);
    join(&mut bench, &chain, 260, 255);
    assert_eq!(bench.core.join.map(|join| join.base), Some(254), "others keep no more");
    assert_eq!(bench.core.summary().seq, 260);
    let catch_up = |bench: &mut Bench, last| {
        let effects = tell(bench, 3, last + 1);
        let effects = answer_all(bench, &chain[..last as usize].to_vec(), 255, effects);
        assert_eq!(bench.core.summary().seq, last);
        count(&effects, |effect| matches!(effect, Effect::Broadcast(Message::Novel(_))))
    };
    let votes = |bench: &mut Bench| {
        bench.now += 2_000_000;
        let effects = bench.on(Event::Timer(Timer::Pace));
        count(&effects, |effect| matches!(effect, Effect::Broadcast(Message::Novel(_))))
    };
    // The last input that it did not see is in ledger 250, and may be in 271 again.
    assert_eq!((votes(&mut bench), bench.core.summary().votes_after), (0, Some(270)));
    assert_eq!((catch_up(&mut bench, 269), votes(&mut bench)), (0, 0));
    assert_eq!((catch_up(&mut bench, 270), bench.core.summary().votes_after), (1, None));
}

/// A node of the same key that goes on from what was persisted.
fn restarted(bench: &Bench, journal: &Journal) -> Bench {
    let params = bench.core.params.clone();
    let core = Consensus::new(params, Box::new(Same), 75, journal.clone().opened());
    let mut again = Bench { core, now: bench.now };
    again.on(Event::Start);
    [2, 3, 4].into_iter().for_each(|peer| drop(again.on(Event::LinkUp(key(peer)))));
    again
}

struct Same;

impl Crypto for Same {
    fn sign(&self, digest: &Hash) -> Sig {
        signature(&ME, digest)
    }
    fn verify(&self, key: &NodeKey, digest: &Hash, sig: &Sig) -> bool {
        signature(key, digest) == *sig
    }
}

#[test]
fn a_restart_goes_on_with_what_lacks() {
    let mut first = bench();
    let chain = chain(&first, &SIGNERS, 300);
    let mut journal = Journal { silence: None, ..Journal::new(first.core.genesis().clone()) };
    let apply = |journal: &mut Journal, effects: &[Effect]| {
        records(effects).for_each(|record| journal.apply(record.clone(), WINDOW));
    };
    give_up(&mut first, 300, 200);
    let effects = first.hear(2, Message::Headers(Box::new(headers(&chain, 200, 1, 100))));
    apply(&mut journal, &effects);
    assert_eq!(journal.seq(), 64, "a turn's work");
    let mut second = restarted(&first, &journal);
    assert_eq!(second.core.summary().lacks, Some(Lacks::Users));
    let effects = tell(&mut second, 2, 300);
    assert_eq!(asked_headers(&effects), [(2, 65, 300)]);
    let effects = answer_all(&mut second, &chain, 200, effects);
    apply(&mut journal, &effects);
    let mut third = restarted(&second, &journal);
    assert_eq!(third.core.summary().seq, 199 + SPARE);
    // Where contents begin is not known before somebody says it.
    let effects = tell(&mut third, 3, 300);
    let (from, first_asked, last) = asked_headers(&effects)[0];
    let effects = third.hear(from, Message::Headers(Box::new(headers(&chain, 200, first_asked, last))));
    let (from, seq, after) = asked_users(&effects)[0];
    let effects = third.hear(from, Message::Users(Box::new(page(&chain, seq, 200, after))));
    apply(&mut journal, &effects);
    let mut last = restarted(&third, &journal);
    assert_eq!((last.core.summary().lacks, last.core.summary().has_state), (Some(Lacks::State), false));
    assert_eq!(last.core.users, users_at(&chain, 199 + SPARE));
    assert_eq!(asked(&tell(&mut last, 2, 300)), [(2, 200 + SPARE, 263 + SPARE)]);
}
