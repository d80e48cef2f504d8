//! What must hold, whatever happens: checked at every step, and at the end. Knows the whole world, trusts none of it.

use std::collections::{BTreeMap, BTreeSet};

use hotpocket::{
    consensus::{
        Execution,
        header::{ClosedLedger, ExecResult, Genesis, Input, InputKey, execution_order},
        journal::Journal,
        merkle,
        messages::{Evidence, Message, ResultCert, Scope, Signable},
    },
    types::{Attempt, Hash, NodeKey, Seq, Status, UserKey},
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

/// The contract of this world: state is a running hash over everything that an execution sees.
pub fn run_contract(before: Hash, run: &Execution) -> ExecResult {
    let inputs: Vec<(UserKey, Vec<Hash>)> = run
        .inputs
        .iter()
        .map(|(user, inputs)| (*user, inputs.iter().map(|input| Hash::tagged("sim/payload", &input.payload)).collect()))
        .collect();
    let state_root = Hash::tagged("sim/state", &(before, run.header.seq, &run.users, &inputs));
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
        unl_req: None,
    }
}

/// An input that a node keeps until it is ledgered, or until its last ledger is closed without it.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    /// What names it in the chain.
    pub key: InputKey,
    /// Whose disk it is on.
    pub node: usize,
    /// The last ledger that may have it.
    pub max_ledger: Seq,
}

/// Everything seen of one run of the world.
pub struct Watch {
    genesis: Genesis,
    scope: Scope,
    quorum: usize,
    input_window: u64,
    /// By member.
    honest: Vec<bool>,
    /// The chain, from ledger 1: hash, ledger.
    pub chain: Vec<(Hash, ClosedLedger)>,
    /// What executing each ledger of it must lead to.
    pub results: Vec<ExecResult>,
    keys: BTreeMap<InputKey, Seq>,
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
    pub fn new(genesis: Genesis, input_window: u64, honest: Vec<bool>) -> Watch {
        let scope = Scope {
            chain_id: Hash::tagged("hp/genesis/1", &genesis),
            unl_hash: hotpocket::consensus::header::unl_hash(&genesis.unl),
        };
        let quorum = quorum(genesis.unl.len(), genesis.threshold);
        Watch {
            genesis,
            scope,
            quorum,
            input_window,
            honest,
            chain: Vec::new(),
            results: Vec::new(),
            keys: BTreeMap::new(),
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
        let parent = self.chain.last().map_or(self.scope.chain_id, |(hash, _)| *hash);
        assert_eq!(header.parent, parent, "S1: ledger {} has another parent", header.seq);
        let before = self.results.last().cloned().unwrap_or_else(|| self.genesis.result());
        assert_eq!(header.result, before, "S6: ledger {} tells another result", header.seq);
        assert_eq!(inputs.len(), ledger.candidate.inputs.len(), "S5: ledger {} with all its inputs", header.seq);
        for input in inputs {
            let last = self.keys.insert(input.key(), header.seq);
            let again = last.is_some_and(|last| last + self.input_window >= header.seq);
            assert!(!again, "S4: an input of ledger {last:?} again in ledger {}", header.seq);
        }
        let run = Execution {
            header: header.clone(),
            hash,
            users: users.clone(),
            inputs: execution_order(header, inputs.to_vec()),
        };
        self.results.push(run_contract(before.state_root, &run));
        self.chain.push((hash, ledger.clone()));
        self.check_listed(header.seq);
    }

    /// S2, by a verifier of its own.
    fn check_certificate(&self, node: usize, ledger: &ClosedLedger, hash: Hash) {
        let qc = &ledger.qc;
        let seq = ledger.candidate.header.seq;
        assert_eq!((qc.vote.seq, qc.vote.ledger_hash), (seq, hash), "S2: node {node}: the certificate is another's");
        let digest = Hash::tagged(
            "hp/precommit/1",
            &(self.scope.chain_id, self.scope.unl_hash, seq, qc.vote.attempt, qc.vote.ledger_hash),
        );
        let signers: BTreeSet<NodeKey> = qc.sigs.iter().map(|(signer, _)| *signer).collect();
        assert!(signers.iter().all(|signer| self.genesis.unl.contains(signer)), "S2: signed by a stranger");
        assert!(signers.len() >= self.quorum, "S2: node {node}: {} signers of ledger {seq}", signers.len());
        for (signer, sig) in &qc.sigs {
            assert_eq!(*sig, signature(signer, &digest), "S2: node {node}: a signature in ledger {seq}");
        }
    }

    /// L2: what all honest members listed is in the ledger, unless its key is.
    fn check_listed(&mut self, seq: Seq) {
        let Some(listed) = self.listed.get(&seq) else { return };
        let honest = self.honest.iter().filter(|honest| **honest).count();
        // With more liars than a quorum does without, they can outvote the rest's lists.
        if listed.len() < honest || self.honest.len() - honest > self.honest.len() - self.quorum {
            return;
        }
        let mut lists = listed.values();
        let mut all = lists.next().cloned().unwrap_or_default();
        for list in lists {
            all.retain(|id| list.contains(id));
        }
        let at = usize::try_from(seq).expect("small") - 1;
        let Some((_, ledger)) = self.chain.get(at) else { return };
        for id in all {
            let there = ledger.candidate.inputs.binary_search(&id).is_ok() || self.rivals.contains(&id);
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
                let bytes_held = m.body.inputs.iter().all(|id| disk.pool.contains_key(id));
                let on_disk = closed(seq) || disk.novel.as_ref() == Some(m) && bytes_held;
                ((node, "NOVEL", seq, digest(&m.body), Hash::ZERO, 0), on_disk)
            }
            Message::Result(m) if m.from == me => {
                let on_disk = disk.result.as_ref().is_some_and(|result| result.body.of_seq >= m.body.of_seq);
                ((node, "RESULT", m.body.of_seq, digest(&m.body), m.body.of_hash, 0), on_disk)
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
        let first = *self.signed.entry((node, kind, seq, of, attempt)).or_insert(said);
        assert_eq!(first, said, "S7: node {node} signed two {kind}s of {seq}/{attempt}");
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
        assert_eq!(result, &self.results[at], "S6: node {node} got another state of ledger {}", result.of_seq);
    }

    /// Outputs go to users: S3, S5.
    pub fn delivered(&mut self, node: usize, agreed: &ResultCert) {
        let result = &agreed.result;
        let at = usize::try_from(result.of_seq).expect("small") - 1;
        assert_eq!(Some(result), self.results.get(at), "S3: node {node} delivers what the chain did not lead to");
        self.seen.hit("delivered");
        if agreed.sigs.is_empty() {
            return self.seen.hit("delivered by the next header");
        }
        let digest = Hash::tagged("hp/result/1", &(self.scope.chain_id, self.scope.unl_hash, result));
        let signers: BTreeSet<NodeKey> = agreed.sigs.iter().map(|(signer, _)| *signer).collect();
        assert!(signers.iter().all(|signer| self.genesis.unl.contains(signer)), "S3: signed by a stranger");
        assert!(signers.len() >= self.quorum, "S3: node {node}: {} signers of a result", signers.len());
        let genuine = |(signer, sig): &(NodeKey, _)| *sig == signature(signer, &digest);
        assert!(agreed.sigs.iter().all(genuine), "S3: node {node}: a signature of result {}", result.of_seq);
    }

    /// A node is accused of signing two different things.
    pub fn evidence(&mut self, node: usize, evidence: &Evidence) {
        let accused = self.genesis.unl.binary_search(&evidence.signer).expect("a member");
        assert!(!self.honest[accused], "S7: node {node} shows that node {accused} contradicts itself: {evidence:?}");
        self.seen.hit("evidence");
    }

    /// The chain's name.
    pub fn chain_id(&self) -> Hash {
        self.scope.chain_id
    }

    /// Whether an input of this key is in the chain.
    pub fn is_ledgered(&self, key: &InputKey) -> bool {
        self.keys.contains_key(key)
    }

    /// Last ledger that an honest node stored.
    pub fn tip(&self) -> Seq {
        self.chain.len() as Seq
    }
}

fn digest<T: Signable>(body: &T) -> Hash {
    Hash::tagged("sim/said", body)
}
