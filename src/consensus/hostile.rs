//! What peers may try: numbers at their ends, the same a thousand times, things that nobody asked for.

use std::collections::VecDeque;

use super::{
    header::{Candidate, inputs_root, unl_hash, users_root},
    messages::{
        Advance, AdvanceVote, Basis, Certificate, Get, Novel, Precommit, Prevote, Propose, ResultCert, Tc, TcFwd, Vote,
        VoteKind as _,
    },
    *,
};
use crate::types::{Challenge, Status};

/// A signature that everybody can make: good against who does not forge.
pub(super) struct Table(NodeKey);

pub(super) fn signature(key: &NodeKey, digest: &Hash) -> Sig {
    let mut sig = [0; 64];
    sig[..32].copy_from_slice(&key.0);
    sig[32..].copy_from_slice(&digest.0);
    Sig(sig)
}

impl Crypto for Table {
    fn sign(&self, digest: &Hash) -> Sig {
        signature(&self.0, digest)
    }
    fn verify(&self, key: &NodeKey, digest: &Hash, sig: &Sig) -> bool {
        signature(key, digest) == *sig
    }
}

pub(super) const ME: NodeKey = NodeKey([1; 32]);

pub(super) fn key(number: u8) -> NodeKey {
    NodeKey([number; 32])
}

/// This node, in a UNL of some keys, all linked.
pub(super) struct Bench {
    pub core: Consensus,
    pub now: MonoMs,
}

impl Bench {
    pub(super) fn new(unl: &[u8], threshold: u8) -> Bench {
        Bench::with_window(unl, threshold, 65_536)
    }

    pub(super) fn with_window(unl: &[u8], threshold: u8, input_window: u64) -> Bench {
        let genesis = Genesis {
            ver: header::VERSION,
            contract_id: Hash::ZERO,
            unl: unl.iter().map(|number| key(*number)).collect(),
            threshold,
            cfg_hash: Hash::ZERO,
            state_root: Hash::ZERO,
            time_ms: 0,
            ancestor: None,
        };
        let params = Params {
            me: ME,
            boot: Hash::ZERO,
            roundtime_ms: 1_000_000,
            min_round_ms: 0,
            eager: false,
            grace_ms: 30,
            attempt_ms: 120,
            time_res_ms: 1000,
            input_window,
            users_max: 4_096,
            input_bytes_max: INPUT_BYTES_MAX,
            session_inputs: true,
        };
        // As after its first ledgers.
        let journal = Journal { silence: None, ..Journal::new(genesis) };
        let core = Consensus::new(params, Box::new(Table(ME)), threshold, journal);
        let mut bench = Bench { core, now: 0 };
        bench.on(Event::Start);
        for number in unl.iter().filter(|number| key(**number) != ME) {
            bench.on(Event::LinkUp(key(*number)));
        }
        bench
    }

    pub(super) fn on(&mut self, event: Event) -> Vec<Effect> {
        self.now += 1;
        self.core.on(event, self.now, 0)
    }

    pub(super) fn hear(&mut self, from: u8, message: Message) -> Vec<Effect> {
        self.on(Event::Message(key(from), message))
    }

    pub(super) fn signed<T: Signable>(&self, from: u8, body: T) -> Signed<T> {
        let sig = signature(&key(from), &body.digest(&self.core.scope()));
        Signed { from: key(from), body, sig }
    }

    pub(super) fn advance(&self, from: u8, attempt: Attempt) -> Signed<AdvanceVote> {
        self.signed(from, AdvanceVote { seq: self.core.round.seq, attempt, high: None })
    }

    pub(super) fn novel(&self, from: u8, time_slot: u64) -> Signed<Novel> {
        let (seq, parent) = (self.core.round.seq, self.core.tip.hash);
        let (users_add, users_del, inputs) = (vec![], vec![], vec![]);
        let body = Novel { seq, parent, time_slot, users_add, users_del, inputs, unl_vote: None, settlement: None };
        self.signed(from, body)
    }

    /// An empty ledger after the last one, and a certificate of these signers.
    pub(super) fn next_ledger(&self, time_ms: WallMs, signers: &[u8]) -> ClosedLedger {
        let core = &self.core;
        let result = match core.tip.seq {
            0 => core.genesis.result(),
            seq => result_of(seq, core.tip.hash),
        };
        let header = Header {
            ver: header::VERSION,
            chain_id: core.chain_id(),
            seq: core.round.seq,
            parent: core.tip.hash,
            time_ms,
            unl_hash: unl_hash(core.unl()),
            next_unl_hash: unl_hash(core.unl()),
            users_root: users_root(&BTreeSet::new()),
            n_users: 0,
            inputs_root: inputs_root(&[]),
            n_inputs: 0,
            inputs_bytes: 0,
            result,
            settlement: None,
        };
        let vote = Vote { seq: header.seq, attempt: 0, ledger_hash: header.hash() };
        let sigs = signers.iter().map(|number| (key(*number), self.signed(*number, Precommit::of(vote)).sig));
        let qc = Certificate { vote, sigs: sigs.collect() };
        let (users_add, users_del) = (vec![], vec![]);
        ClosedLedger { candidate: Candidate { header, inputs: vec![], users_add, users_del, unl_change: None }, qc }
    }

    /// Shows the next ledger, and its body.
    pub(super) fn close_next(&mut self) -> Vec<Effect> {
        let ledger = self.next_ledger(0, &[2]);
        let mut effects = self.hear(2, Consensus::closed_message(&ledger));
        effects.extend(self.hear(2, Message::Candidate(ledger.candidate)));
        effects
    }
}

pub(super) fn result_of(seq: Seq, of_hash: Hash) -> ExecResult {
    let (state_root, outputs_root) = (Hash::ZERO, Hash::ZERO);
    ExecResult { of_seq: seq, of_hash, state_root, outputs_root, status: Status::Ok, unl_req: None }
}

pub(super) fn input(origin: Origin, nonce: u64, bytes: usize) -> Input {
    Input { user: UserKey([9; 32]), origin, nonce, max_ledger: 100, payload: vec![0; bytes] }
}

pub(super) fn by_user(nonce: u64, bytes: usize) -> Input {
    input(Origin::User { sig: Sig([0; 64]) }, nonce, bytes)
}

pub(super) fn sent(effects: &[Effect], kind: &str) -> usize {
    let is = |effect: &&Effect| matches!(effect, Effect::Send(_, message) if message.kind() == kind);
    effects.iter().filter(is).count()
}

pub(super) fn count(effects: &[Effect], is: impl Fn(&Effect) -> bool) -> usize {
    effects.iter().filter(|effect| is(effect)).count()
}

#[test]
fn asking_for_the_last_attempt_there_can_be_leads_nobody_there() {
    // With a quorum of all, one vote blocks: everybody follows it.
    let mut bench = Bench::new(&[1, 2, 3, 4], 100);
    for from in 2..=4 {
        let vote = bench.advance(from, Attempt::MAX);
        bench.hear(from, Message::Advance(Advance { vote, polc: None }));
    }
    assert_eq!(bench.core.summary().attempt, 0);
    bench.now += 1_000_000;
    bench.on(Event::Timer(Timer::Attempt(0)));
    assert_eq!(bench.core.round.signed().advance, None);
}

#[test]
fn an_input_asked_for_a_thousand_times_is_sent_once() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let asked = by_user(1, 10_000);
    let id = asked.id(&bench.core.chain_id());
    bench.hear(3, Message::Input(asked));
    let effects = bench.hear(2, Message::Get(Get::Inputs(vec![id; GET_INPUTS_MAX])));
    assert_eq!(sent(&effects, "INPUT"), 1);
}

#[test]
fn one_peer_is_answered_with_a_bounded_number_of_bytes_at_a_time() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let inputs: Vec<Input> = (0..14).map(|nonce| by_user(nonce, 1 << 20)).collect();
    let ids: Vec<Hash> = inputs.iter().map(|input| input.id(&bench.core.chain_id())).collect();
    for input in inputs {
        bench.hear(3, Message::Input(input));
    }
    let ask = |bench: &mut Bench, from| sent(&bench.hear(from, Message::Get(Get::Inputs(ids.clone()))), "INPUT");
    assert_eq!([ask(&mut bench, 2), ask(&mut bench, 2), ask(&mut bench, 2)], [14, 9, 0]);
    assert_eq!(ask(&mut bench, 4), 14, "another peer");
    bench.now += REPLY_MS;
    assert_eq!(ask(&mut bench, 2), 14, "later");
}

#[test]
fn all_users_of_a_host_are_told_once_however_often_they_are_asked_for() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let told: usize = (0..50).map(|_| sent(&bench.hear(2, Message::Get(Get::Presence)), "PRESENCE")).sum();
    assert_eq!(told, 1);
    bench.now += REPLY_MS;
    assert_eq!(sent(&bench.hear(2, Message::Get(Get::Presence)), "PRESENCE"), 1);
}

#[test]
fn a_node_that_contradicts_itself_a_hundred_times_is_shown_once_a_round() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let mut shown = 0;
    for slot in 0..100 {
        let novel = bench.novel(2, slot);
        shown += count(&bench.hear(2, Message::Novel(novel)), |effect| matches!(effect, Effect::Evidence(_)));
    }
    assert_eq!(shown, 1);
}

#[test]
fn what_a_host_outside_the_unl_vouches_for_is_not_kept() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let origin = |host| Origin::Session {
        host: key(host),
        challenge: Challenge([0; 16]),
        helo_sig: Sig([0; 64]),
        host_sig: Sig([0; 64]),
    };
    bench.hear(2, Message::Input(input(origin(77), 1, 10)));
    assert_eq!(bench.core.summary().pool, 0);
    bench.hear(2, Message::Input(input(origin(3), 1, 10)));
    assert_eq!(bench.core.summary().pool, 1);
}

#[test]
fn strangers_with_many_keys_fill_one_share_of_the_pool() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    for stranger in 100..110 {
        for nonce in 0..10 {
            bench.hear(stranger, Message::Input(by_user(u64::from(stranger) * 100 + nonce, 1 << 20)));
        }
    }
    assert_eq!(bench.core.summary().pool, 15, "16 MiB less what the entries cost");
    bench.hear(2, Message::Input(by_user(1, 1 << 20)));
    assert_eq!(bench.core.summary().pool, 16, "a member has room");
}

#[test]
fn nothing_is_remembered_of_strangers_that_left() {
    let mut bench = Bench::new(&[2], 80);
    (0..3).for_each(|_| drop(bench.close_next()));
    for stranger in 100..200 {
        bench.on(Event::LinkUp(key(stranger)));
        let body = StatusMsg { seq: 0, lcl: Hash::ZERO, attempt: 0, synced: true, silent: false, unheard: vec![] };
        let status = bench.signed(stranger, body);
        bench.hear(stranger, Message::Status(status));
        bench.hear(stranger, Message::Get(Get::Presence));
        let ledger = bench.next_ledger(0, &[]);
        bench.hear(stranger, Consensus::closed_message(&ledger));
        bench.on(Event::LinkDown(key(stranger)));
    }
    let core = &bench.core;
    let remembered = [core.closed_sent.len(), core.status_sent.len(), core.presence_sent.len(), core.answered.len()];
    assert_eq!(remembered.map(|len| len <= 1), [true; 4], "{remembered:?}");
    assert_eq!(core.peer_tips.keys().filter(|peer| **peer != key(2)).count(), 0);
}

#[test]
fn of_the_round_to_come_a_peer_has_one_message_of_each_kind_and_attempt_and_none_too_long() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let next = bench.core.round.seq + 1;
    let hash = |number: u64| Hash::tagged("some", &number);
    for number in 0..10_000 {
        let attempt = Attempt::try_from(number % 100).expect("small");
        let vote = Vote { seq: next, attempt, ledger_hash: hash(number) };
        let prevote = bench.signed(2, Prevote::of(vote));
        bench.hear(2, Message::Prevote(prevote));
        let novel = Novel { seq: next, ..bench.novel(2, number).body };
        let novel = bench.signed(2, novel);
        bench.hear(2, Message::Novel(novel));
        let prevote = bench.signed(77, Prevote::of(vote));
        bench.hear(77, Message::Prevote(prevote));
    }
    assert_eq!(bench.core.future.len(), 1 + 1 + ATTEMPTS_AHEAD as usize, "a novel, and prevotes up to the bound");
    let votes = vec![bench.signed(2, AdvanceVote { seq: next, attempt: 1, high: None }); UNL_MAX + 1];
    bench.hear(2, Message::TcFwd(TcFwd { seq: next, tc: Tc { votes: votes.clone() }, polc: None }));
    assert!(!bench.core.future.contains_key(&(key(2), "TCFWD", 1)), "longer than any UNL");
    let tc = Tc { votes: votes[1..].to_vec() };
    bench.hear(2, Message::TcFwd(TcFwd { seq: next, tc, polc: None }));
    assert!(bench.core.future.contains_key(&(key(2), "TCFWD", 1)));
}

#[test]
fn of_a_round_a_member_fills_a_bounded_number_of_slots_whatever_it_says() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let hash = |number: u32| Hash::tagged("some", &number);
    for number in 0..5_000 {
        let vote = Vote { seq: 1, attempt: number, ledger_hash: hash(number) };
        let prevote = bench.signed(2, Prevote::of(vote));
        bench.hear(2, Message::Prevote(prevote));
        let precommit = bench.signed(2, Precommit::of(vote));
        bench.hear(2, Message::Precommit(precommit));
        let vote = bench.advance(2, number);
        bench.hear(2, Message::Advance(Advance { vote, polc: None }));
        let mut novel = bench.novel(2, u64::from(number)).body;
        novel.inputs = (0..10).map(|at| hash(number * 10 + at)).collect();
        novel.inputs.sort_unstable();
        let novel = bench.signed(2, novel);
        bench.hear(2, Message::Novel(novel));
        let (of_seq, of_hash) = (0, bench.core.tip.hash);
        let result = ExecResult { state_root: hash(number), ..result_of(of_seq, of_hash) };
        let result = bench.signed(2, result);
        bench.hear(2, Message::Result(result));
        let ledger = bench.next_ledger(u64::from(number), &[2]);
        bench.hear(2, Message::Candidate(ledger.candidate));
        bench.hear(2, Message::Input(by_user(u64::from(number), 1 << 10)));
    }
    let round = &bench.core.round;
    let near = ATTEMPTS_AHEAD as usize + 1;
    assert_eq!((round.prevotes.len(), round.precommits.len()), (near, near));
    // One of each attempt up to the bound, from 1 on, and its latest beyond.
    assert_eq!(round.advances.len(), near);
    assert_eq!((round.candidates.len(), round.other_novels.len(), round.proposals.len()), (0, 0, 0));
    assert_eq!((round.unknown.len(), bench.core.results.len()), (10, 1));
}

#[test]
fn who_is_far_behind_hears_how_far() {
    let mut bench = Bench::new(&[2], 80);
    (0..3).for_each(|_| drop(bench.close_next()));
    let mut told = |seq| {
        let body = StatusMsg { seq, lcl: Hash::ZERO, attempt: 0, synced: true, silent: false, unheard: vec![] };
        let status = bench.signed(50, body);
        sent(&bench.hear(50, Message::Status(status)), "STATUS")
    };
    assert_eq!([told(2), told(1)], [0, 1]);
}

#[test]
fn runs_are_handed_out_one_by_one_behind_the_result_before() {
    let mut bench = Bench::new(&[2], 80);
    let mut effects = bench.close_next();
    effects.extend(bench.close_next());
    assert_eq!(runs(&effects).len(), 1);
    let effects = bench.on(Event::ExecDone(result_of(1, runs(&effects)[0].hash)));
    let at = |is: fn(&Effect) -> bool| effects.iter().position(is).expect("there");
    let result = at(|effect| matches!(effect, Effect::Persist(Record::Result(_))));
    let sync = at(|effect| *effect == Effect::Sync);
    let run = at(|effect| matches!(effect, Effect::Execute(_)));
    assert!(result < sync && sync < run, "{effects:?}");
}

fn runs(effects: &[Effect]) -> Vec<Execution> {
    let runs = effects.iter().filter_map(|effect| match effect {
        Effect::Execute(run) => Some((**run).clone()),
        _ => None,
    });
    runs.collect()
}

#[test]
fn ledgers_are_closed_however_many_wait_for_their_run_and_a_bounded_number_waits_in_memory() {
    let mut bench = Bench::new(&[2], 80);
    let mut journal = Journal { silence: None, ..Journal::new(bench.core.genesis.clone()) };
    let (mut run, mut waiting): (Seq, VecDeque<Execution>) = (0, VecDeque::new());
    let count = 3 * EXECUTIONS_MAX as Seq;
    let mut loads = 0;
    let mut perform = |bench: &mut Bench, effects: Vec<Effect>, waiting: &mut VecDeque<Execution>| {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Persist(record) => journal.apply(record, 65_536),
                Effect::Load(first) => {
                    loads += 1;
                    let ledgers = journal.load(first).to_vec();
                    assert!(ledgers.len() <= EXECUTIONS_MAX / 2);
                    effects.extend(bench.on(Event::Loaded(ledgers)));
                }
                Effect::Execute(run) => waiting.push_back((*run).clone()),
                _ => {}
            }
        }
    };
    for _ in 0..count {
        let effects = bench.close_next();
        perform(&mut bench, effects, &mut waiting);
        assert!(bench.core.runs.len() <= EXECUTIONS_MAX, "{}", bench.core.runs.len());
    }
    assert_eq!((bench.core.summary().seq, bench.core.summary().unexecuted), (count, count));
    // Alone it has to run them all: there is nobody to fetch the state from.
    bench.on(Event::LinkDown(key(2)));
    while let Some(next) = waiting.pop_front() {
        run += 1;
        assert_eq!(next.header.seq, run);
        let effects = bench.on(Event::ExecDone(result_of(run, next.hash)));
        perform(&mut bench, effects, &mut waiting);
        assert!(bench.core.runs.len() <= EXECUTIONS_MAX, "{}", bench.core.runs.len());
        assert!(bench.core.mine.len() + bench.core.agreed.len() <= 2 * EXECUTIONS_MAX);
    }
    assert_eq!((run, bench.core.summary().unexecuted, loads > 2), (count, 0, true));
}

#[test]
fn when_too_many_runs_wait_the_state_is_fetched_and_nothing_is_signed_of_what_was_not_run() {
    let mut bench = Bench::new(&[2], 80);
    let mut journal = Journal::new(bench.core.genesis.clone());
    let last = 2 * SYNC_LEDGERS_MIN;
    let mut first = None;
    for _ in 0..last {
        for effect in bench.close_next() {
            match effect {
                Effect::Persist(record) => journal.apply(record, 65_536),
                Effect::Execute(run) => first = Some(run),
                _ => {}
            }
        }
    }
    let first = first.expect("handed out");
    let effects = bench.on(Event::ExecDone(result_of(1, first.hash)));
    let syncs = |effect: &Effect| matches!(effect, Effect::SyncState { from, why: Lost::Behind } if *from > last / 2);
    assert_eq!((count(&effects, syncs), count(&effects, |it| matches!(it, Effect::Execute(_)))), (1, 0));
    assert!(!bench.core.summary().has_state && bench.core.summary().unexecuted == last - 1);
    for effect in effects {
        if let Effect::Persist(record) = effect {
            journal.apply(record, 65_536);
        }
    }
    // What was on its way comes too late.
    assert_eq!(bench.on(Event::ExecDone(result_of(2, Hash::ZERO))), []);
    bench.on(Event::Loaded(journal.load(2).to_vec()));
    let agreed = journal.unexecuted.last().expect("the last").0.candidate.header.result.clone();
    journal.apply(Record::Synced(Box::new(agreed.clone())), 65_536);
    let (users, unl) = (journal.executed_users.clone(), journal.executed_unl.clone());
    let effects = bench.on(Event::Synced { result: Box::new(agreed.clone()), users, unl });
    let persisted = |it: &Effect| *it == Effect::Persist(Record::Synced(Box::new(agreed.clone())));
    let is_result = |it: &Effect| matches!(it, Effect::Broadcast(Message::Result(_)));
    assert_eq!((count(&effects, persisted), count(&effects, is_result)), (1, 0));
    let loaded = bench.on(Event::Loaded(journal.load(last).to_vec()));
    let runs = |it: &Effect| matches!(it, Effect::Execute(run) if run.header.seq == last);
    assert_eq!(count(&loaded, runs), 1, "the last is run on top");
    // A process that begins there goes on there.
    assert_eq!((journal.state_root(), journal.unexecuted.len()), (agreed.state_root, 1));
}

#[test]
fn a_body_has_one_form() {
    let bench = Bench::new(&[1, 2, 3, 4], 75);
    let [here, comes] = [UserKey([1; 32]), UserKey([2; 32])];
    let before = BTreeSet::from([here]);
    let mut body = bench.next_ledger(0, &[]).candidate;
    body.users_add = vec![comes];
    let after = body.users_after(&before);
    (body.header.users_root, body.header.n_users) = (users_root(&after), 2);
    let fits = |body: &Candidate| body.is_consistent(&before, users_root(&before), bench.core.unl());
    assert!(fits(&body));
    let with = |add: &[UserKey], del: &[UserKey]| Candidate {
        users_add: add.to_vec(),
        users_del: del.to_vec(),
        ..body.clone()
    };
    for other in [
        with(&[comes, comes], &[]),
        with(&[here, comes], &[]),
        with(&[here, comes], &[here]),
        with(&[comes], &[comes]),
        with(&[comes], &[UserKey([3; 32])]),
    ] {
        assert_eq!(other.users_after(&before), after);
        assert!(!fits(&other), "{other:?}");
    }
    // The change of the UNL is the one between the header's two, and there is none where they are the same.
    let changed = |unl_change, next_unl_hash| {
        let mut other = body.clone();
        (other.unl_change, other.header.next_unl_hash) = (unl_change, next_unl_hash);
        other
    };
    let (came, went) = (UnlChange::Add(key(5)), UnlChange::Remove(key(2)));
    let [same, with_5] = [unl_hash(bench.core.unl()), unl_hash(&came.apply(bench.core.unl()).unwrap())];
    assert!(fits(&changed(Some(came), with_5)));
    for (change, next) in
        [(None, with_5), (Some(came), same), (Some(went), with_5), (Some(UnlChange::Add(key(1))), same)]
    {
        assert!(!fits(&changed(change, next)), "{change:?}");
    }
}

#[test]
fn the_result_of_ledger_0_comes_without_signatures() {
    let bench = Bench::new(&[1, 2, 3, 4], 75);
    let result = bench.core.genesis.result();
    let cert = |sigs| ResultCert { result: result.clone(), sigs };
    assert!(bench.core.checker().result_cert(&cert(vec![]), &result));
    assert!(!bench.core.checker().result_cert(&cert(vec![(key(77), Sig([0; 64]))]), &result));
}

#[test]
fn the_certificate_of_an_attempt_that_a_polc_led_into_is_kept_when_it_is_there() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let ledger = bench.next_ledger(0, &[]);
    let vote = Vote { seq: 1, attempt: 1, ledger_hash: ledger.candidate.header.hash() };
    for from in 2..=4 {
        let prevote = bench.signed(from, Prevote::of(vote));
        bench.hear(from, Message::Prevote(prevote));
    }
    bench.hear(2, Message::Candidate(ledger.candidate));
    assert_eq!((bench.core.summary().attempt, bench.core.round.signed().precommit), (1, Some(1)));
    let mut effects = Vec::new();
    for from in 2..=4 {
        let vote = bench.advance(from, 1);
        effects.extend(bench.hear(from, Message::Advance(Advance { vote, polc: None })));
    }
    assert_eq!(count(&effects, |effect| matches!(effect, Effect::Persist(Record::Entered(..)))), 1);
    assert!(bench.core.round.tc_forward().is_some());
}

#[test]
fn a_coordinator_with_two_wrong_proposals_gets_no_vote_and_is_shown() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let attempt = (1..).find(|attempt| bench.core.coordinator(*attempt) == key(2)).expect("everybody has a turn");
    let novels: Vec<Signed<Novel>> = (2..=4).map(|from| bench.novel(from, 0)).collect();
    let basis = Basis::Novels(
        novels.iter().map(|novel| (novel.from, novel.id())).collect(),
        ResultCert { result: bench.core.genesis.result(), sigs: vec![] },
    );
    let tc = Tc { votes: (2..=4).map(|from| bench.advance(from, attempt)).collect() };
    let mut effects = Vec::new();
    for wrong in [1, 2] {
        let (tc, basis) = (tc.clone(), basis.clone());
        let propose = Propose { seq: 1, attempt, ledger_hash: Hash([wrong; 32]), tc, basis };
        let propose = bench.signed(2, propose);
        effects.extend(bench.hear(2, Message::Propose(propose)));
        for novel in &novels {
            effects.extend(bench.hear(2, Message::Novel(novel.clone())));
        }
    }
    assert_eq!(bench.core.summary().attempt, attempt);
    assert_eq!(bench.core.round.signed().prevote, None);
    assert_eq!(count(&effects, |effect| matches!(effect, Effect::Evidence(_))), 1);
}

#[test]
fn nothing_is_run_on_top_of_a_run_that_a_header_shows_to_be_wrong() {
    let mut bench = Bench::new(&[2], 80);
    bench.close_next();
    let mut wrong = result_of(1, bench.core.tip.hash);
    wrong.state_root = Hash([66; 32]);
    bench.on(Event::ExecDone(wrong));
    let effects = bench.close_next();
    assert_eq!(count(&effects, |effect| matches!(effect, Effect::Diverged { .. })), 1);
    assert_eq!(count(&effects, |effect| matches!(effect, Effect::Execute(_))), 0);
    assert_eq!(bench.core.summary().seq, 2);
}

#[test]
fn a_ledger_of_many_inputs_that_are_all_missed_is_asked_for_in_parts_and_voted_for_with_the_last_of_them() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let inputs: BTreeMap<Hash, Input> =
        (0..700).map(|nonce| by_user(nonce, 0)).map(|input| (input.id(&bench.core.chain_id()), input)).collect();
    let mut effects = Vec::new();
    for from in 2..=4 {
        let mut novel = bench.novel(from, 0).body;
        novel.inputs = inputs.keys().copied().collect();
        let novel = bench.signed(from, novel);
        effects.extend(bench.hear(from, Message::Novel(novel)));
    }
    let prevotes = |effects: &[Effect]| count(effects, |it| matches!(it, Effect::Broadcast(Message::Prevote(_))));
    let mut rounds = 0;
    while prevotes(&effects) == 0 {
        rounds += 1;
        assert!(rounds <= 10, "it goes on asking");
        bench.now += 1000;
        effects = bench.on(Event::Timer(Timer::Fetch));
        let asked = effects.iter().filter_map(|effect| match effect {
            Effect::Send(_, Message::Get(Get::Inputs(ids))) => Some(ids.clone()),
            _ => None,
        });
        for id in asked.flatten().collect::<Vec<Hash>>() {
            assert_eq!(prevotes(&effects), 0, "not before the last");
            effects.extend(bench.hear(3, Message::Input(inputs[&id].clone())));
        }
    }
    assert_eq!(bench.core.summary().pool, 700);
}

#[test]
fn what_my_key_signed_elsewhere_is_not_counted_as_mine_and_nothing_is_signed_beside_it() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let elsewhere = bench.novel(1, 7);
    assert_eq!(elsewhere.from, ME);
    bench.hear(2, Message::Novel(elsewhere.clone()));
    assert_eq!(bench.core.round.novels.len(), 0);
    let novel = bench.novel(2, 0);
    let effects = bench.hear(2, Message::Novel(novel));
    let novels = |effect: &Effect| matches!(effect, Effect::Broadcast(Message::Novel(_)));
    assert_eq!(count(&effects, novels), 0);
}

#[test]
fn only_what_a_quorum_has_said_already_is_redundant() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let ledger = bench.next_ledger(0, &[]);
    let prevote = |bench: &Bench, from, ledger_hash| {
        let vote = Vote { seq: bench.core.round.seq, attempt: 0, ledger_hash };
        Message::Prevote(bench.signed(from, Prevote::of(vote)))
    };
    for from in [2, 3] {
        let message = prevote(&bench, from, ledger.qc.vote.ledger_hash);
        bench.hear(from, message);
    }
    assert!(!bench.core.is_redundant(&prevote(&bench, 4, ledger.qc.vote.ledger_hash)), "two of three");
    let third = prevote(&bench, 4, ledger.qc.vote.ledger_hash);
    bench.hear(4, third);
    assert!(bench.core.is_redundant(&prevote(&bench, 4, ledger.qc.vote.ledger_hash)));
    assert!(!bench.core.is_redundant(&prevote(&bench, 4, Hash([9; 32]))), "another value is evidence");
}

#[test]
pub(crate) fn what_follows_another_ledger_is_not_taken() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let elsewhere = Hash([9; 32]);
    let mut novel = bench.novel(2, 0).body;
    novel.parent = elsewhere;
    let novel = bench.signed(2, novel);
    bench.hear(2, Message::Novel(novel));
    assert_eq!(bench.core.round.novels.len(), 0);

    // A quorum that signs for another chain of ledgers has forked; nobody follows it from here.
    let mut ledger = bench.next_ledger(0, &[2, 3, 4]);
    ledger.candidate.header.parent = elsewhere;
    ledger.qc.vote.ledger_hash = ledger.candidate.header.hash();
    let vote = ledger.qc.vote;
    ledger.qc.sigs = [2, 3, 4].map(|number| (key(number), bench.signed(number, Precommit::of(vote)).sig)).to_vec();
    bench.hear(2, Consensus::closed_message(&ledger));
    bench.hear(2, Message::Candidate(ledger.candidate));
    assert_eq!((bench.core.summary().seq, bench.core.round.closed.is_some()), (0, false));
}

#[test]
pub(crate) fn a_forwarded_certificate_is_taken_with_the_polc_it_names() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let vote = Vote { seq: 1, attempt: 0, ledger_hash: Hash([9; 32]) };
    let sigs = [2, 3, 4].map(|number| (key(number), bench.signed(number, Prevote::of(vote)).sig)).to_vec();
    let polc = Certificate { vote, sigs };
    let body = AdvanceVote { seq: 1, attempt: 1, high: Some((0, vote.ledger_hash)) };
    let tc = Tc { votes: [2, 3, 4].map(|number| bench.signed(number, body)).to_vec() };
    let forward = |polc| Message::TcFwd(TcFwd { seq: 1, tc: tc.clone(), polc });
    bench.hear(2, forward(None));
    assert_eq!(bench.core.summary().attempt, 0);
    let other = Certificate { sigs: polc.sigs[..2].to_vec(), ..polc.clone() };
    bench.hear(2, forward(Some(other)));
    assert_eq!(bench.core.summary().attempt, 0);
    bench.hear(2, forward(Some(polc)));
    assert_eq!(bench.core.summary().attempt, 1);
    assert!(bench.core.round.tc_forward().is_some(), "it can show others the way");
}

#[test]
pub(crate) fn every_field_of_a_message_is_signed() {
    fn check<T: Signable + borsh::BorshDeserialize>(scope: &Scope, body: T) {
        let bytes = borsh::to_vec(&body).unwrap();
        let signed = body.digest(scope);
        let mut others = 0;
        for bit in 0..8 * bytes.len() {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = borsh::from_slice::<T>(&other) {
                assert_ne!(other.digest(scope), signed, "{}: bit {bit} is not signed", T::TAG);
                others += 1;
            }
        }
        assert!(others > 64, "{}: there are other messages of its kind", T::TAG);
        let elsewhere = Scope { chain_id: Hash([99; 32]), ..*scope };
        assert_ne!(body.digest(&elsewhere), signed, "{}: the chain is not signed", T::TAG);
        let members = Scope { unl_hash: Hash([99; 32]), ..*scope };
        assert_eq!(body.digest(&members) != signed, T::PER_UNL, "{}: the UNL", T::TAG);
    }
    let bench = Bench::new(&[1, 2, 3, 4], 75);
    let scope = bench.core.scope();
    let vote = Vote { seq: 1, attempt: 2, ledger_hash: Hash([9; 32]) };
    let result = result_of(1, Hash([9; 32]));
    let mut novel = bench.novel(2, 3).body;
    novel.inputs = vec![Hash([5; 32])];
    novel.users_add = vec![UserKey([6; 32])];
    let (tc, basis) = (Tc { votes: vec![bench.advance(2, 1)] }, Basis::Polc(Certificate { vote, sigs: vec![] }));
    check(&scope, novel);
    check(&scope, result);
    check(&scope, Prevote(vote));
    check(&scope, Precommit(vote));
    check(&scope, AdvanceVote { seq: 1, attempt: 2, high: Some((1, Hash([9; 32]))) });
    check(&scope, Propose { seq: 1, attempt: 1, ledger_hash: Hash([9; 32]), tc, basis });
    check(&scope, StatusMsg { seq: 1, lcl: Hash([9; 32]), attempt: 0, synced: true, silent: false, unheard: vec![] });
}

#[test]
pub fn what_was_kept_for_the_next_round_is_checked_when_it_begins() {
    let mut bench = Bench::new(&[1, 2, 3, 4], 75);
    let ledger = bench.next_ledger(0, &[2, 3, 4]);
    // Of the next round, before its parent is known: a good one, one with another's signature, and one that is signed as
    // if the UNL had changed.
    let (seq, parent) = (2, ledger.candidate.header.hash());
    let novel = |time_slot| Novel {
        seq,
        parent,
        time_slot,
        users_add: vec![],
        users_del: vec![],
        inputs: vec![],
        unl_vote: None,
        settlement: None,
    };
    let good = bench.signed(2, novel(1));
    let forged = Signed { from: key(3), ..bench.signed(4, novel(2)) };
    let scope = Scope { unl_hash: Hash([9; 32]), ..bench.core.scope() };
    let sig = signature(&key(4), &novel(3).digest(&scope));
    let elsewhere = Signed { from: key(4), body: novel(3), sig };
    for (from, message) in [(2, good), (3, forged), (4, elsewhere)] {
        bench.hear(from, Message::Novel(message));
    }
    assert_eq!(bench.core.summary().novels, []);
    bench.hear(2, Consensus::closed_message(&ledger));
    bench.hear(2, Message::Candidate(ledger.candidate));
    assert_eq!(bench.core.summary().seq, 1);
    assert_eq!(bench.core.summary().novels, [key(2)]);
}
