//! What must hold, whatever happens: checked at every step, and at the end. Knows the whole world, trusts none of it.

use std::collections::{BTreeMap, BTreeSet};

use hotpocket::{
    consensus::{
        Execution,
        header::{
            BareLedger, ClosedLedger, ExecResult, Genesis, Input, InputKey, Origin, Settlement, UnlChange,
            execution_order,
        },
        journal::Journal,
        merkle,
        messages::{Evidence, Message, ResultCert, Signable},
    },
    types::{Attempt, Hash, LimitKind, NodeKey, Seq, Status, UserKey},
};

use super::crypto::signature;

/// How often what ought to happen did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage(pub BTreeMap<&'static str, u64>);

impl Coverage {
    /// One more.
    pub fn hit(&mut self, what: &'static str) {
        *self.0.entry(what).or_insert(0) += 1;
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Coverage) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_insert(0) += count;
        }
    }

    /// How often.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

/// The fewest votes that are the threshold's share of `n`.
pub fn quorum(n: usize, threshold: u8) -> usize {
    (1..=n).find(|votes| 100 * votes >= n * usize::from(threshold)).expect("a threshold is at most 100")
}

/// What a node may sign once: kind, ledger (or the hash of one), attempt.
type Slot = (usize, &'static str, Seq, Hash, Attempt);

/// A payload by which a user has the contract ask for a change of the UNL.
pub fn request_payload(change: UnlChange) -> Vec<u8> {
    match change {
        UnlChange::Add(node) => vec![b'u', b'+', node.0[0]],
        UnlChange::Remove(node) => vec![b'u', b'-', node.0[0]],
    }
}

/// What the contract asks for: the first request in the order of execution.
fn requested(run: &Execution) -> Option<UnlChange> {
    let parse = |input: &Input| match input.payload[..] {
        [b'u', b'+', node] => Some(UnlChange::Add(NodeKey([node; 32]))),
        [b'u', b'-', node] => Some(UnlChange::Remove(NodeKey([node; 32]))),
        _ => None,
    };
    run.inputs.iter().flat_map(|(_, inputs)| inputs).find_map(parse)
}

/// The UNL after a change, by this file's own reckoning; `None` when it may not be made.
pub fn changed(unl: &BTreeSet<NodeKey>, change: UnlChange) -> Option<BTreeSet<NodeKey>> {
    let mut after = unl.clone();
    let different = match change {
        UnlChange::Add(node) => after.insert(node),
        UnlChange::Remove(node) => after.remove(&node),
    };
    (different && !after.is_empty()).then_some(after)
}

/// The contract of this world: state is a running hash over everything that an execution sees.
pub fn run_contract(before: Hash, run: &Execution) -> ExecResult {
    let inputs: Vec<(UserKey, Vec<Hash>)> = run
        .inputs
        .iter()
        .map(|(user, inputs)| (*user, inputs.iter().map(|input| Hash::tagged("sim/payload", &input.payload)).collect()))
        .collect();
    let state_root = Hash::tagged("sim/state", &(before, run.header.seq, &run.users, &run.unl, &inputs));
    let mut leaves: Vec<(UserKey, Hash)> = inputs
        .iter()
        .map(|(user, inputs)| (*user, merkle::output_leaf(user, &Hash::tagged("sim/output", &(state_root, inputs)).0)))
        .collect();
    leaves.sort_unstable();
    ExecResult {
        of_seq: run.header.seq,
        of_hash: run.hash,
        state_root,
        outputs_root: merkle::root(leaves.into_iter().map(|(_, leaf)| leaf).collect()),
        status: Status::Ok,
        unl_req: requested(run),
    }
}

/// What comes of a run whose time was up: nothing.
pub fn limited(before: Hash, run: &Execution) -> ExecResult {
    ExecResult {
        of_seq: run.header.seq,
        of_hash: run.hash,
        state_root: before,
        outputs_root: Hash::ZERO,
        status: Status::Limit(LimitKind::Time),
        unl_req: None,
    }
}

/// What executing a ledger may lead to: two things, of which the nodes agree on one.
pub struct Outcome {
    /// When the run comes to its end.
    pub ran: ExecResult,
    /// When its time was up.
    pub limited: ExecResult,
    /// The agreed one, once somebody said so.
    pub agreed: Option<ExecResult>,
    /// Honest members on whose clock the time was up.
    overtimes: BTreeSet<usize>,
}

/// An input that a node keeps until it is ledgered, or until its last ledger is closed without it.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    /// What names it in the chain.
    pub key: InputKey,
    /// Whose disk it is on.
    pub node: usize,
    /// Who vouches for it, and for that node's pool: one of them out of the UNL, and nobody owes it any more.
    pub hosts: [NodeKey; 2],
    /// The last ledger that was closed when it was made.
    pub since: Seq,
    /// The last ledger that may have it.
    pub max_ledger: Seq,
}

/// Everything seen of one run of the world.
pub struct Watch {
    genesis: Genesis,
    chain_id: Hash,
    /// The UNL that closes ledger 1, and that after each ledger of the chain.
    unls: Vec<BTreeSet<NodeKey>>,
    /// Members whose operators ever voted for a change.
    asked: BTreeMap<UnlChange, BTreeSet<NodeKey>>,
    /// Members that ever saw something on the settlement bus, by what.
    saw: BTreeMap<Settlement, BTreeSet<NodeKey>>,
    /// In which ledger each former member was last taken out.
    removed: BTreeMap<NodeKey, Seq>,
    input_window: u64,
    users_max: usize,
    /// Those that may break the protocol.
    liars: BTreeSet<NodeKey>,
    /// The chain, from ledger 1: hash, ledger.
    pub chain: Vec<(Hash, ClosedLedger)>,
    /// What executing each ledger of it must lead to.
    pub outcomes: Vec<Outcome>,
    keys: BTreeMap<InputKey, Seq>,
    /// Inputs that honest nodes listed and that follow others of their sessions.
    followers: BTreeMap<Hash, Input>,
    /// Whose the inputs are that honest nodes listed.
    senders: BTreeMap<Hash, UserKey>,
    signed: BTreeMap<Slot, Hash>,
    /// By member and ledger: the highest ADVANCE and the highest PRECOMMIT that left.
    promised: BTreeMap<(usize, Seq), (Option<Attempt>, Option<Attempt>)>,
    listed: BTreeMap<Seq, BTreeMap<usize, BTreeSet<Hash>>>,
    /// Inputs that were on an honest node's disk, by id.
    pub durable: BTreeMap<Hash, Promise>,
    /// Inputs that share their key with another one: only one of them can be ledgered.
    pub rivals: BTreeSet<Hash>,
    /// Counters.
    pub seen: Coverage,
}

impl Watch {
    /// For a new chain.
    pub fn new(genesis: Genesis, (input_window, users_max): (u64, usize), liars: BTreeSet<NodeKey>) -> Watch {
        Watch {
            chain_id: Hash::tagged("hp/genesis/1", &genesis),
            unls: vec![genesis.unl.iter().copied().collect()],
            genesis,
            asked: BTreeMap::new(),
            saw: BTreeMap::new(),
            removed: BTreeMap::new(),
            input_window,
            users_max,
            liars,
            chain: Vec::new(),
            outcomes: Vec::new(),
            keys: BTreeMap::new(),
            followers: BTreeMap::new(),
            senders: BTreeMap::new(),
            signed: BTreeMap::new(),
            promised: BTreeMap::new(),
            listed: BTreeMap::new(),
            durable: BTreeMap::new(),
            rivals: BTreeSet::new(),
            seen: Coverage::default(),
        }
    }

    /// An honest node has stored a ledger: S1, S2, S4, and that the header tells the agreed result (S6).
    pub fn stored(&mut self, node: usize, ledger: &ClosedLedger, users: &BTreeSet<UserKey>, inputs: &[Input]) {
        let header = &ledger.candidate.header;
        let hash = Hash::tagged("hp/ledger/1", header);
        let at = usize::try_from(header.seq).expect("small") - 1;
        self.check_certificate(node, ledger, hash);
        if let Some((first, _)) = self.chain.get(at) {
            assert_eq!(hash, *first, "S1: node {node} closed another ledger {}", header.seq);
            if self.tip() >= header.seq + 3 {
                self.seen.hit("caught up three ledgers or more");
            }
            return;
        }
        assert_eq!(at, self.chain.len(), "S1: node {node} closed ledger {} without its parent", header.seq);
        let parent = self.chain.last().map_or(self.chain_id, |(hash, _)| *hash);
        assert_eq!(header.parent, parent, "S1: ledger {} has another parent", header.seq);
        match header.seq {
            1 => assert_eq!(header.result, self.genesis.result(), "S6: the first ledger tells another result"),
            seq => self.agrees(node, &header.result, &format!("S6: ledger {seq} tells another result")),
        }
        let before = header.result.clone();
        assert_eq!(inputs.len(), ledger.candidate.inputs.len(), "S5: ledger {} with all its inputs", header.seq);
        for input in inputs {
            let last = self.keys.insert(input.key(), header.seq);
            let again = last.is_some_and(|last| last + self.input_window >= header.seq);
            assert!(!again, "S4: an input of ledger {last:?} again in ledger {}", header.seq);
        }
        self.check_order(header.seq, inputs);
        self.check_room(header.seq, users, inputs);
        self.check_settlement(ledger);
        self.check_unl(ledger, &before);
        let run = Execution {
            header: header.clone(),
            hash,
            users: users.clone(),
            unl: self.unl().iter().copied().collect(),
            inputs: execution_order(header, inputs.to_vec()),
            is_limited: true,
        };
        let (ran, limited) = (run_contract(before.state_root, &run), limited(before.state_root, &run));
        self.outcomes.push(Outcome { ran, limited, agreed: None, overtimes: BTreeSet::new() });
        self.chain.push((hash, ledger.clone()));
        self.check_listed(header.seq, users);
    }

    /// An honest node has passed over a ledger: it is the chain's, and closed (S1, S2).
    pub fn passed(&self, node: usize, ledger: &BareLedger) {
        let hash = Hash::tagged("hp/ledger/1", &ledger.header);
        let at = usize::try_from(ledger.header.seq).expect("small") - 1;
        let (first, closed) = self.chain.get(at).expect("S1: somebody has it with its contents");
        assert_eq!(hash, *first, "S1: node {node} passed over another ledger {}", ledger.header.seq);
        assert_eq!(ledger.unl_change, closed.candidate.unl_change, "S2: the change in ledger {}", ledger.header.seq);
        self.check_certificate(
            node,
            &ClosedLedger { candidate: closed.candidate.clone(), qc: ledger.qc.clone() },
            hash,
        );
    }

    /// The next UNL is this one, but for what the contract asked for, or else a quorum of operators.
    fn check_unl(&mut self, ledger: &ClosedLedger, before: &ExecResult) {
        let header = &ledger.candidate.header;
        let unl = self.unl().clone();
        assert_eq!(header.unl_hash, unl_hash(&unl), "S2: the UNL of ledger {}", header.seq);
        let change = ledger.candidate.unl_change;
        let after = change.map_or(unl.clone(), |change| changed(&unl, change).expect("a change that can be made"));
        assert_eq!(header.next_unl_hash, unl_hash(&after), "S2: the UNL after ledger {}", header.seq);
        let request = before.unl_req.filter(|change| changed(&unl, *change).is_some());
        match (request, change) {
            (Some(_), _) => {
                assert_eq!(change, request, "S8: ledger {} makes the change that the contract asked for", header.seq);
                self.seen.hit("UNL changed by the contract");
            }
            (None, Some(change)) => {
                let nobody = BTreeSet::new();
                let for_it = self.asked.get(&change).unwrap_or(&nobody);
                let votes = unl.iter().filter(|node| self.liars.contains(node) || for_it.contains(node)).count();
                let needed = quorum(unl.len(), self.genesis.threshold);
                assert!(votes >= needed, "S8: ledger {}: {change:?} has {votes} votes of {needed}", header.seq);
                self.seen.hit("UNL changed by operators");
            }
            (None, None) => {}
        }
        if let Some(UnlChange::Remove(node)) = change {
            self.removed.insert(node, header.seq);
            self.seen.hit("members removed");
        }
        self.unls.push(after);
    }

    /// S11: an input of a session that says that it follows the one before is in no ledger before that, as long as it is young.
    fn check_order(&mut self, seq: Seq, inputs: &[Input]) {
        for input in inputs {
            match self.is_before(input, seq) {
                None => {}
                Some(true) => self.seen.hit("inputs behind the one before"),
                Some(false) if !self.is_young(input, seq) => self.seen.hit("inputs that waited long enough"),
                Some(false) => panic!("S11: input {} in ledger {seq}, and not the one before it", input.nonce),
            }
        }
    }

    /// Whether the input that this one follows is in this ledger or an older one; `None` when it follows none.
    fn is_before(&self, input: &Input, seq: Seq) -> Option<bool> {
        let (user, tag, nonce) = input.key();
        let follows = matches!(input.origin, Origin::Session { .. }) && nonce % 2 == 1 && nonce > 2;
        let is = |nonce: &u64| self.keys.get(&(user, tag, *nonce)).is_some_and(|ledger| *ledger <= seq);
        follows.then(|| [nonce - 3, nonce - 2].iter().any(is))
    }

    fn is_young(&self, input: &Input, seq: Seq) -> bool {
        let came = (input.max_ledger + 1).saturating_sub(self.input_window);
        seq.saturating_sub(came) < 64.min(self.input_window / 4)
    }

    /// S13: a ledger has no more users than there is room for, and not so many who only sit there that nobody else finds room.
    fn check_room(&mut self, seq: Seq, users: &BTreeSet<UserKey>, inputs: &[Input]) {
        let speak: BTreeSet<UserKey> = inputs.iter().map(|input| input.user).collect();
        let (all, idle) = (users.len(), users.difference(&speak).count());
        assert!(all <= self.users_max, "S13: {all} users in ledger {seq}, which has room for {}", self.users_max);
        let seats = self.users_max - self.users_max / 4;
        assert!(idle <= seats, "S13: {idle} users of ledger {seq} only sit there, on {seats} seats");
        self.seen.hit(match () {
            _ if all == self.users_max => "full ledgers",
            _ if idle == seats => "ledgers with every seat taken",
            _ => return,
        });
    }

    /// S10: what a ledger records of the settlement bus is what the one before does, or the next step, seen by a quorum.
    fn check_settlement(&mut self, ledger: &ClosedLedger) {
        let header = &ledger.candidate.header;
        let last = self.chain.last().and_then(|(_, ledger)| ledger.candidate.header.settlement.clone());
        if header.settlement == last {
            return;
        }
        let seq = header.seq;
        let new = header.settlement.clone().unwrap_or_else(|| panic!("S10: ledger {seq} forgets {last:?}"));
        let same = |a: &Settlement, b: &Settlement| {
            (a.seq, a.ch, a.tx, a.confirmed_length) == (b.seq, b.ch, b.tx, b.confirmed_length)
        };
        let step = match &last {
            None if same(&new, &Settlement::begin(new.txv)) => "settlements begun",
            Some(last) if same(&new, last) => "txv changed",
            Some(last) if last.seq < new.seq && new.seq < header.result.of_seq => "settlements recorded",
            _ => panic!("S10: ledger {seq} records {new:?} behind {last:?}"),
        };
        self.seen.hit(step);
        let unl = self.unl();
        let nobody = BTreeSet::new();
        let saw = self.saw.get(&new).unwrap_or(&nobody);
        let votes = unl.iter().filter(|node| self.liars.contains(node) || saw.contains(node)).count();
        let needed = quorum(unl.len(), self.genesis.threshold);
        assert!(votes >= needed, "S10: ledger {seq}: {new:?} has {votes} votes of {needed}");
    }

    /// An honest member has seen something on the bus.
    pub fn saw(&mut self, node: NodeKey, settlement: Settlement) {
        self.saw.entry(settlement).or_default().insert(node);
    }

    /// An operator has voted at an honest member.
    pub fn voted(&mut self, node: NodeKey, change: UnlChange) {
        self.asked.entry(change).or_default().insert(node);
    }

    /// The UNL after the last ledger that an honest node stored.
    pub fn unl(&self) -> &BTreeSet<NodeKey> {
        self.unls.last().expect("there is a first")
    }

    /// S2, by a verifier of its own.
    fn check_certificate(&self, node: usize, ledger: &ClosedLedger, hash: Hash) {
        let qc = &ledger.qc;
        let seq = ledger.candidate.header.seq;
        assert_eq!((qc.vote.seq, qc.vote.ledger_hash), (seq, hash), "S2: node {node}: the certificate is another's");
        let at = usize::try_from(seq).expect("small") - 1;
        let unl = self.unls.get(at).expect("a ledger is stored after its parent");
        let digest =
            Hash::tagged("hp/precommit/1", &(self.chain_id, unl_hash(unl), seq, qc.vote.attempt, qc.vote.ledger_hash));
        let signers: BTreeSet<NodeKey> = qc.sigs.iter().map(|(signer, _)| *signer).collect();
        assert!(signers.iter().all(|signer| unl.contains(signer)), "S2: signed by a stranger");
        let needed = quorum(unl.len(), self.genesis.threshold);
        assert!(signers.len() >= needed, "S2: node {node}: {} signers of ledger {seq}", signers.len());
        for (signer, sig) in &qc.sigs {
            assert_eq!(*sig, signature(signer, &digest), "S2: node {node}: a signature in ledger {seq}");
        }
    }

    /// L2: what all honest members listed is in the ledger, unless its key is, it waits for the one before it, or the ledger is
    /// full without its user.
    fn check_listed(&mut self, seq: Seq, users: &BTreeSet<UserKey>) {
        let Some(listed) = self.listed.get(&seq) else { return };
        let at = usize::try_from(seq).expect("small") - 1;
        let unl = &self.unls[at];
        let liars = unl.intersection(&self.liars).count();
        // With more liars than a quorum does without, they can outvote the rest's lists.
        if listed.len() < unl.len() - liars || liars > unl.len() - quorum(unl.len(), self.genesis.threshold) {
            return;
        }
        let mut lists = listed.values();
        let mut all = lists.next().cloned().unwrap_or_default();
        for list in lists {
            all.retain(|id| list.contains(id));
        }
        let Some((_, ledger)) = self.chain.get(at) else { return };
        for id in all {
            let waits = || {
                let follower = self.followers.get(&id).filter(|input| self.is_young(input, seq));
                follower.is_some_and(|input| self.is_before(input, seq) == Some(false))
            };
            let no_room = || users.len() == self.users_max && !users.contains(&self.senders[&id]);
            let is_ledgered = ledger.candidate.inputs.binary_search(&id).is_ok();
            let there = is_ledgered || self.rivals.contains(&id) || waits() || no_room();
            assert!(there, "L2: input {} listed by all is not in ledger {seq}", id.short());
        }
    }

    /// A message of its own has left an honest node: S7, the promises between votes, and that the disk has it.
    pub fn left(&mut self, node: usize, me: NodeKey, message: &Message, disk: &Journal) {
        let closed = |seq: Seq| disk.seq() >= seq;
        let (slot, on_disk) = match message {
            Message::Novel(m) if m.from == me => {
                let seq = m.body.seq;
                let listed = self.listed.entry(seq).or_default();
                listed.insert(node, m.body.inputs.iter().copied().collect());
                let following = |input: &&Input| input.nonce % 2 == 1 && matches!(input.origin, Origin::Session { .. });
                let held = m.body.inputs.iter().filter_map(|id| Some((*id, disk.pool.get(id)?)));
                self.senders.extend(held.clone().map(|(id, input)| (id, input.user)));
                let held = held.filter(|(_, input)| following(input));
                self.followers.extend(held.map(|(id, input)| (id, input.clone())));
                let bytes_held = m.body.inputs.iter().all(|id| disk.pool.contains_key(id));
                let on_disk = closed(seq) || disk.novel.as_ref() == Some(m) && bytes_held;
                ((node, "NOVEL", seq, digest(&m.body), Hash::ZERO, 0), on_disk)
            }
            Message::Result(m) if m.from == me => {
                let on_disk = disk.result.as_ref().is_some_and(|result| result.body.of_seq >= m.body.of_seq);
                ((node, "RESULT", m.body.of_seq, digest(&m.body), m.body.of_hash, 0), on_disk)
            }
            Message::Overtime(m) if m.from == me => {
                let seq = m.body.of_seq;
                let on_disk = closed(seq + 1) || disk.overtime.as_ref() == Some(m);
                ((node, "OVERTIME", seq, digest(&m.body), m.body.of_hash, 0), on_disk)
            }
            Message::Prevote(m) if m.from == me => {
                let vote = m.body.0;
                let on_disk = closed(vote.seq)
                    || disk.prevotes.get(&vote.attempt).is_some_and(|(mine, candidate)| {
                        mine == m && candidate.inputs.iter().all(|id| disk.pool.contains_key(id))
                    });
                ((node, "PREVOTE", vote.seq, vote.ledger_hash, Hash::ZERO, vote.attempt), on_disk)
            }
            Message::Precommit(m) if m.from == me => {
                let vote = m.body.0;
                let on_disk = closed(vote.seq)
                    || disk.precommits.get(&vote.attempt).is_some_and(|(mine, candidate, _)| {
                        mine == m && candidate.inputs.iter().all(|id| disk.pool.contains_key(id))
                    });
                self.promise_precommit(node, vote.seq, vote.attempt, vote.ledger_hash);
                ((node, "PRECOMMIT", vote.seq, vote.ledger_hash, Hash::ZERO, vote.attempt), on_disk)
            }
            Message::Advance(m) if m.vote.from == me => {
                let body = m.vote.body;
                let newer = |mine: &hotpocket::consensus::messages::Advance| mine.vote.body.attempt >= body.attempt;
                let on_disk = closed(body.seq) || disk.advance.as_ref().is_some_and(newer);
                let promised = self.promised.entry((node, body.seq)).or_default();
                promised.0 = promised.0.max(Some(body.attempt));
                let high = body.high.map(|(high, _)| high);
                let new = !self.signed.contains_key(&(node, "ADVANCE", body.seq, Hash::ZERO, body.attempt));
                assert!(!new || high >= promised.1, "I3: node {node} hides the POLC it precommitted: {body:?}");
                ((node, "ADVANCE", body.seq, digest(&body), Hash::ZERO, body.attempt), on_disk)
            }
            Message::Propose(m) if m.from == me => {
                let seq = m.body.seq;
                ((node, "PROPOSE", seq, digest(&m.body), Hash::ZERO, m.body.attempt), true)
            }
            _ => return,
        };
        let (node, kind, seq, said, of, attempt) = slot;
        assert!(on_disk, "node {node} sent a {kind} of {seq}/{attempt} that is not on its disk");
        let said_before = self.signed.contains_key(&(node, kind, seq, of, attempt));
        assert!(
            disk.silence.is_none() || said_before,
            "S9: node {node} is silent and signs a {kind} of {seq}/{attempt}"
        );
        let first = *self.signed.entry((node, kind, seq, of, attempt)).or_insert(said);
        assert_eq!(first, said, "S7: node {node} signed two {kind}s of {seq}/{attempt}");
    }

    /// Whether an honest node ever said anything that counts.
    pub fn has_signed(&self, node: usize) -> bool {
        self.signed.keys().any(|(signer, ..)| *signer == node)
    }

    fn promise_precommit(&mut self, node: usize, seq: Seq, attempt: Attempt, hash: Hash) {
        if self.signed.contains_key(&(node, "PRECOMMIT", seq, Hash::ZERO, attempt)) {
            return;
        }
        let promised = self.promised.entry((node, seq)).or_default();
        let advanced = promised.0;
        assert!(
            advanced.is_none_or(|advanced| advanced <= attempt),
            "I2: node {node} precommits {} at {seq}/{attempt} after ADVANCE {advanced:?}",
            hash.short()
        );
        promised.1 = promised.1.max(Some(attempt));
    }

    /// A run starts: S5.
    pub fn executes(&self, node: usize, run: &Execution) {
        let at = usize::try_from(run.header.seq).expect("small") - 1;
        let in_chain = self.chain.get(at).is_some_and(|(hash, _)| *hash == run.hash);
        assert!(in_chain, "S5: node {node} executes a ledger {} that is not in the chain", run.header.seq);
    }

    /// A run of a sound contract has ended: S6.
    pub fn executed(&self, node: usize, result: &ExecResult) {
        let at = usize::try_from(result.of_seq).expect("small") - 1;
        assert_eq!(result, &self.outcomes[at].ran, "S6: node {node} got another state of ledger {}", result.of_seq);
    }

    /// Outputs go to users: S3, S5.
    pub fn delivered(&mut self, node: usize, agreed: &ResultCert) {
        let result = &agreed.result;
        self.agrees(node, result, "S3: delivers what the chain did not lead to");
        self.seen.hit("delivered");
        if agreed.sigs.is_empty() {
            return self.seen.hit("delivered by the next header");
        }
        // Signed by the UNL that the ledger fixed, which decides the next one.
        let unl = &self.unls[usize::try_from(result.of_seq).expect("small")];
        let digest = Hash::tagged("hp/result/1", &(self.chain_id, unl_hash(unl), result));
        let signers: BTreeSet<NodeKey> = agreed.sigs.iter().map(|(signer, _)| *signer).collect();
        assert!(signers.is_subset(unl), "S3: signed by a stranger");
        let needed = quorum(unl.len(), self.genesis.threshold);
        assert!(signers.len() >= needed, "S3: node {node}: {} signers of a result", signers.len());
        let genuine = |(signer, sig): &(NodeKey, _)| *sig == signature(signer, &digest);
        assert!(agreed.sigs.iter().all(genuine), "S3: node {node}: a signature of result {}", result.of_seq);
    }

    /// An honest member has it on disk that the time was up on its clock.
    pub fn overtime(&mut self, node: usize, seq: Seq) {
        let at = usize::try_from(seq).expect("small") - 1;
        self.outcomes[at].overtimes.insert(node);
    }

    /// A node takes a result for the agreed one: there is one, and only if enough clocks said so its time was up.
    fn agrees(&mut self, node: usize, result: &ExecResult, what: &str) {
        let at = usize::try_from(result.of_seq).expect("small") - 1;
        let outcome = self.outcomes.get_mut(at).unwrap_or_else(|| panic!("{what}: node {node}, {result:?}"));
        let first = outcome.agreed.get_or_insert_with(|| result.clone());
        assert_eq!(result, first, "{what}: node {node}");
        if *result == outcome.limited {
            // The UNL that the ledger fixed, which decides the next one.
            let unl = &self.unls[at + 1];
            let (liars, overtimes) = (unl.intersection(&self.liars).count(), outcome.overtimes.len());
            let needed = quorum(unl.len(), self.genesis.threshold);
            assert!(overtimes + liars >= needed, "S6: over its time on {overtimes} nodes: {result:?}");
            self.seen.hit("OVERTIME to limit");
        } else {
            assert_eq!(*result, outcome.ran, "{what}: node {node}");
            if !outcome.overtimes.is_empty() {
                self.seen.hit("OVERTIME re-executed");
            }
        }
    }

    /// A node is accused of signing two different things.
    pub fn evidence(&mut self, node: usize, evidence: &Evidence) {
        let accused = evidence.signer;
        assert!(self.liars.contains(&accused), "S7: node {node} shows that {accused} contradicts itself: {evidence:?}");
        self.seen.hit("evidence");
    }

    /// The chain's name.
    pub fn chain_id(&self) -> Hash {
        self.chain_id
    }

    /// The ledger that has an input of this key.
    pub fn ledger_of(&self, key: &InputKey) -> Option<Seq> {
        self.keys.get(key).copied()
    }

    /// Whether an input of this key is in the chain.
    pub fn is_ledgered(&self, key: &InputKey) -> bool {
        self.keys.contains_key(key)
    }

    /// A promise to keep an input, made by a node that has this on its disk.
    pub fn promise(&mut self, node: usize, me: NodeKey, input: &Input, disk: &Journal) {
        let host = match input.origin {
            Origin::User { .. } => me,
            Origin::Session { host, .. } => host,
        };
        if disk.unl.contains(&me) && disk.unl.contains(&host) {
            let (key, hosts, since) = (input.key(), [me, host], disk.seq());
            let promise = Promise { key, node, hosts, since, max_ledger: input.max_ledger };
            self.durable.insert(input.id(&self.chain_id), promise);
        }
    }

    /// Whether an input is still to be ledgered: it is not, its time is not over, and nobody needed has left the UNL.
    pub fn is_owed(&self, promise: &Promise) -> bool {
        let left = |host: &NodeKey| self.removed.get(host).is_some_and(|seq| *seq > promise.since);
        // A host that lies may bring inputs without end.
        let may_wait = |host: &NodeKey| left(host) || self.liars.contains(host);
        !self.is_ledgered(&promise.key) && self.tip() < promise.max_ledger && !promise.hosts.iter().any(may_wait)
    }

    /// Last ledger that an honest node stored.
    pub fn tip(&self) -> Seq {
        self.chain.len() as Seq
    }
}

fn unl_hash(unl: &BTreeSet<NodeKey>) -> Hash {
    Hash::tagged("hp/unl/1", unl)
}

fn digest<T: Signable>(body: &T) -> Hash {
    Hash::tagged("sim/said", body)
}
