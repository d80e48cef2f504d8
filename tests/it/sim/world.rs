//! A world of nodes over the real core: links, disks, clocks, contracts, users and everything that goes wrong.
//!
//! The driver of a node does what the real one does: effects in order, nothing behind a `Sync` before the disk has
//! everything that was to be persisted by then, one commit for all that is queued.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use hotpocket::{
    consensus::{
        Consensus, Effect, Event, Execution, LocalInput, Params, Query, Timer,
        header::{Candidate, ClosedLedger, Genesis, Input, InputKey, Origin, VERSION},
        journal::{Journal, Record},
        messages::{Closed, Get, Message, Precommit, Prevote, VoteKind as _},
    },
    types::{Challenge, Hash, MonoMs, NodeKey, Seq, Sig, UserKey, WallMs},
};

use super::{
    crypto::TableCrypto,
    properties::{Watch, run_contract},
    rng::Rng,
};

/// Lines of a trace that are kept for the report of a failure.
const TRACE_LINES_MAX: usize = 200_000;

thread_local! {
    static TRACE: RefCell<Option<VecDeque<String>>> = const { RefCell::new(None) };
}

/// Starts keeping what happens on this thread.
pub fn trace_on() {
    TRACE.with(|trace| *trace.borrow_mut() = Some(VecDeque::new()));
}

/// What happened last.
pub fn trace_take() -> Vec<String> {
    TRACE.with(|trace| trace.borrow_mut().take()).unwrap_or_default().into()
}

fn trace(line: impl FnOnce() -> String) {
    TRACE.with(|trace| {
        if let Some(lines) = trace.borrow_mut().as_mut() {
            lines.push_back(line());
            if lines.len() > TRACE_LINES_MAX {
                lines.pop_front();
            }
        }
    });
}

/// How a member behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As the protocol says.
    Honest,
    /// Honest, but its contract computes something of its own from this ledger on.
    Flips(Seq),
    /// Two processes with one key, each talking with a part of the others.
    Twins,
    /// Sends different novels, prevotes, precommits and results to different nodes, and hides POLCs.
    Equivocates,
    /// Votes, but never answers a GET and never sends an input.
    Withholds,
    /// Says nothing at all.
    Silent,
}

impl Manner {
    /// Whether what it signs is bound by the protocol.
    pub fn is_honest(self) -> bool {
        matches!(self, Manner::Honest | Manner::Flips(_))
    }
}

/// One run's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Members.
    pub n: usize,
    /// Percent.
    pub threshold: u8,
    /// By member.
    pub manners: Vec<Manner>,
    /// `Params`.
    pub roundtime_ms: u64,
    /// `Params`.
    pub min_round_ms: u64,
    /// `Params`.
    pub eager: bool,
    /// `Params`.
    pub grace_ms: u64,
    /// `Params`.
    pub time_res_ms: u64,
    /// `Params`.
    pub input_window: u64,
    /// One-way latency of a link.
    pub latency_ms: (u64, u64),
    /// A commit takes this long.
    pub disk_ms: (u64, u64),
    /// A run takes this long.
    pub run_ms: (u64, u64),
    /// Wall clocks differ by up to this.
    pub wall_off_ms: u64,
    /// Clocks run faster or slower by up to this many thousandths.
    pub drift_permille: u64,
    /// Messages lost, in percent.
    pub loss: u64,
    /// Messages sent twice, in percent.
    pub duplicates: u64,
    /// Whether messages overtake each other.
    pub reorder: bool,
}

impl Config {
    /// Nothing goes wrong, and everything takes one millisecond.
    pub fn calm(n: usize, threshold: u8) -> Config {
        Config {
            n,
            threshold,
            manners: vec![Manner::Honest; n],
            roundtime_ms: 1000,
            min_round_ms: 0,
            eager: true,
            grace_ms: 30,
            time_res_ms: 1000,
            input_window: 65_536,
            latency_ms: (1, 1),
            disk_ms: (0, 0),
            run_ms: (1, 1),
            wall_off_ms: 0,
            drift_permille: 0,
            loss: 0,
            duplicates: 0,
            reorder: false,
        }
    }
}

/// What becomes of a message in a scripted schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Travels as the configuration says.
    Pass,
    /// Is lost.
    Drop,
    /// Takes this much longer, and others overtake it.
    Late(u64),
}

/// Decides about each message: time, sender, receiver, message.
pub type Filter = Box<dyn FnMut(u64, usize, usize, &Message) -> Fate>;

/// What happens to the world.
#[derive(Debug, Clone)]
pub enum Happening {
    /// kill -9 of a node after this many more of its effects.
    Crash(usize, u32),
    /// Of all at once.
    PowerCut,
    /// Members of the set and the others see each other no more.
    Partition(BTreeSet<usize>),
    /// That is over.
    Heal,
    /// What one sends the other is lost, and neither notices.
    OneWay(usize, usize, bool),
    /// A user of some honest node sends an input.
    Input,
    /// A user signs an input and gives it to some nodes (or the very same again, or another with the same nonce).
    SignedInput,
    /// A user comes or goes.
    User,
    /// An input of long ago comes again.
    Replay,
    /// Faults end.
    Gst,
}

enum Ev {
    Deliver { from: usize, to: usize, epoch: u64, message: Rc<Message> },
    Timer { node: usize, life: u32, timer: Timer, setting: u64 },
    Commit { node: usize, life: u32 },
    Ran { node: usize, life: u32 },
    Notice { node: usize, life: u32, peer: usize },
    Connect { a: usize, b: usize },
    Restart { node: usize },
    Happen(Happening),
}

/// What survives a crash.
pub struct Disk {
    /// The core's records.
    pub journal: Journal,
    /// Closed ledgers with their inputs.
    pub history: Vec<(ClosedLedger, Vec<Input>)>,
    /// state/: the last ledger executed and the root; `None` in the middle of a run.
    pub state: (Seq, Option<Hash>),
    /// Copies of it from before a run, by ledger.
    before: BTreeMap<Seq, (Seq, Option<Hash>)>,
}

enum Step {
    Do(Effect),
    Sync(u64),
}

/// One process.
pub struct Node {
    /// Place in the UNL.
    pub member: usize,
    key: NodeKey,
    manner: Manner,
    /// `None` while it is down.
    pub core: Option<Box<Consensus>>,
    life: u32,
    /// What survives.
    pub disk: Disk,
    fifo: VecDeque<Step>,
    pending: Vec<Record>,
    /// Records handed out so far, and how many of them are on disk.
    persisted: u64,
    durable: u64,
    committing: Option<(Vec<Record>, u64)>,
    timers: BTreeMap<Timer, u64>,
    settings: u64,
    runs: VecDeque<Box<Execution>>,
    running: bool,
    crash_in: Option<u32>,
    mono_off: i64,
    drift: i64,
    wall_off: i64,
    /// Epoch of the link to each other node, as far as this one knows that it is up.
    view: Vec<Option<u64>>,
    /// Users here, with the number of their session.
    users: BTreeMap<UserKey, u64>,
    nonce: u64,
    /// Bodies of headers that it made up.
    lies: BTreeMap<Hash, Candidate>,
    /// Last ledger whose outputs went to users, since the start.
    delivered: Option<Seq>,
    /// It said that its run differed.
    pub diverged: bool,
    /// Whether it stays down.
    pub dead: bool,
    /// Twins: whom this one talks with.
    mask: u64,
}

#[derive(Clone, Copy, Default)]
struct Link {
    up: bool,
    epoch: u64,
    blocked: bool,
}

/// Everything.
pub struct World {
    /// The run's configuration.
    pub cfg: Config,
    /// Milliseconds since the beginning.
    pub now: u64,
    /// Everything random.
    pub rng: Rng,
    /// Processes: one a member, then the second twins.
    pub nodes: Vec<Node>,
    /// The properties.
    pub watch: Watch,
    /// Scripted schedules only.
    pub filter: Option<Filter>,
    /// Faults are over.
    pub gst: bool,
    queue: BTreeMap<(u64, u64), Ev>,
    serial: u64,
    links: BTreeMap<(usize, usize), Link>,
    last_arrival: BTreeMap<(usize, usize), u64>,
    silent: BTreeSet<(usize, usize)>,
    sessions: u64,
    sent_inputs: Vec<Input>,
    signed_nonce: u64,
}

const WALL_START_MS: WallMs = 1_700_000_000_000;

impl World {
    /// Starts all nodes at time 0.
    pub fn new(cfg: Config, mut rng: Rng) -> World {
        let keys: Vec<NodeKey> = (0..cfg.n).map(|member| NodeKey([member as u8 + 1; 32])).collect();
        let genesis = Genesis {
            ver: VERSION,
            contract_id: Hash([7; 32]),
            unl: keys.clone(),
            threshold: cfg.threshold,
            cfg_hash: Hash::ZERO,
            state_root: Hash([1; 32]),
            time_ms: WALL_START_MS,
        };
        let honest = cfg.manners.iter().map(|manner| manner.is_honest()).collect();
        let watch = Watch::new(genesis.clone(), cfg.input_window, honest);
        let twins = (0..cfg.n).filter(|member| cfg.manners[*member] == Manner::Twins);
        let members: Vec<usize> = (0..cfg.n).chain(twins).collect();
        let count = members.len();
        let mut nodes = Vec::new();
        for (at, member) in members.into_iter().enumerate() {
            let disk = Disk {
                journal: Journal::new(genesis.clone()),
                history: Vec::new(),
                state: (0, Some(genesis.state_root)),
                before: BTreeMap::new(),
            };
            let mask = rng.next();
            nodes.push(Node {
                member,
                key: keys[member],
                manner: cfg.manners[member],
                core: None,
                life: 0,
                disk,
                fifo: VecDeque::new(),
                pending: Vec::new(),
                persisted: 0,
                durable: 0,
                committing: None,
                timers: BTreeMap::new(),
                settings: 0,
                runs: VecDeque::new(),
                running: false,
                crash_in: None,
                mono_off: 0,
                drift: 0,
                wall_off: 0,
                view: vec![None; count],
                users: BTreeMap::new(),
                nonce: 0,
                delivered: None,
                lies: BTreeMap::new(),
                diverged: false,
                dead: false,
                mask: if at >= cfg.n { !mask } else { mask },
            });
        }
        let mut world = World {
            cfg,
            now: 0,
            rng,
            nodes,
            watch,
            filter: None,
            gst: false,
            queue: BTreeMap::new(),
            serial: 0,
            links: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            silent: BTreeSet::new(),
            sessions: 0,
            sent_inputs: Vec::new(),
            signed_nonce: 0,
        };
        // Twins share a mask, the second has its complement; some of the others see both.
        for at in world.cfg.n..count {
            let first = world.nodes[at].member;
            let both = world.rng.next() & world.rng.next();
            world.nodes[at].mask = !world.nodes[first].mask | both;
        }
        for node in 0..count {
            world.start(node);
        }
        for a in 0..count {
            for b in a + 1..count {
                world.connect(a, b);
            }
        }
        world
    }

    // ---- Time ---------------------------------------------------------------------------------------------------

    /// Lets something happen later.
    pub fn plan(&mut self, at: u64, what: Happening) {
        self.push(at, Ev::Happen(what));
    }

    fn push(&mut self, at: u64, event: Ev) {
        self.serial += 1;
        self.queue.insert((at.max(self.now), self.serial), event);
    }

    /// Goes on until `done`; false when that is not so at `until`.
    pub fn run(&mut self, until: u64, mut done: impl FnMut(&World) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            match self.queue.first_key_value() {
                Some((&(at, _), _)) if at <= until => {
                    let (_, event) = self.queue.pop_first().expect("looked at");
                    self.now = at;
                    self.happen(event);
                }
                _ => {
                    self.now = until;
                    return false;
                }
            }
        }
    }

    fn happen(&mut self, event: Ev) {
        match event {
            Ev::Deliver { from, to, epoch, message } => self.deliver(from, to, epoch, &message),
            Ev::Timer { node, life, timer, setting } => {
                let current = self.nodes[node].life == life && self.nodes[node].timers.get(&timer) == Some(&setting);
                if current {
                    self.nodes[node].timers.remove(&timer);
                    self.handle(node, Event::Timer(timer));
                }
            }
            Ev::Commit { node, life } if self.nodes[node].life == life => {
                self.commit(node);
                self.pump(node);
            }
            Ev::Ran { node, life } if self.nodes[node].life == life => self.ran(node),
            Ev::Notice { node, life, peer } if self.nodes[node].life == life => self.look_at_link(node, peer),
            Ev::Connect { a, b } => self.connect(a, b),
            Ev::Restart { node } if self.nodes[node].core.is_none() && !self.nodes[node].dead => {
                self.start(node);
                for peer in 0..self.nodes.len() {
                    let at = self.now + self.rng.within(1, 60);
                    self.push(at, Ev::Connect { a: node.min(peer), b: node.max(peer) });
                }
            }
            Ev::Happen(what) => self.take_place(what),
            Ev::Commit { .. } | Ev::Ran { .. } | Ev::Notice { .. } | Ev::Restart { .. } => {}
        }
    }

    fn take_place(&mut self, what: Happening) {
        trace(|| format!("{:>7} {what:?}", self.now));
        match what {
            Happening::Crash(node, after) => self.nodes[node].crash_in = Some(after),
            Happening::PowerCut => {
                self.watch.seen.hit("power cuts");
                for node in 0..self.nodes.len() {
                    self.crash(node);
                }
            }
            Happening::Partition(group) => {
                for a in 0..self.nodes.len() {
                    for b in a + 1..self.nodes.len() {
                        if group.contains(&a) != group.contains(&b) {
                            self.links.entry((a, b)).or_default().blocked = true;
                            self.disconnect(a, b);
                        }
                    }
                }
            }
            Happening::Heal => self.heal(),
            Happening::OneWay(from, to, cut) => {
                if cut {
                    self.silent.insert((from, to));
                } else {
                    self.silent.remove(&(from, to));
                }
            }
            Happening::Input => {
                if let Some(node) = self.any_honest() {
                    let bytes = if self.rng.chance(70) { self.rng.index(40) } else { self.rng.index(3000) };
                    self.input(node, vec![b'x'; bytes]);
                }
            }
            Happening::SignedInput => self.signed_input(),
            Happening::User => {
                if let Some(node) = self.any_honest() {
                    let user = self.any_user();
                    if self.nodes[node].users.remove(&user).is_some() {
                        self.handle(node, Event::UserDown(user));
                    } else {
                        self.user_up(node, user);
                    }
                }
            }
            Happening::Replay => {
                let (n, inputs) = (self.cfg.n, self.sent_inputs.len());
                if inputs > 0 && n > 1 {
                    let input = self.sent_inputs[self.rng.index(inputs)].clone();
                    let to = self.rng.index(n);
                    let from = (to + 1 + self.rng.index(n - 1)) % n;
                    self.handle(to, Event::Message(self.nodes[from].key, Message::Input(input)));
                }
            }
            Happening::Gst => {
                self.gst = true;
                self.cfg.loss = 0;
                self.cfg.duplicates = 0;
                self.cfg.reorder = false;
                self.silent.clear();
                for node in 0..self.nodes.len() {
                    self.nodes[node].crash_in = None;
                    if self.nodes[node].dead {
                        self.crash(node);
                    } else if self.nodes[node].core.is_none() {
                        self.push(self.now, Ev::Restart { node });
                    }
                }
                self.heal();
            }
        }
    }

    // ---- Links --------------------------------------------------------------------------------------------------

    fn heal(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                if std::mem::take(&mut self.links.entry((a, b)).or_default().blocked) {
                    let at = self.now + self.rng.within(1, 60);
                    self.push(at, Ev::Connect { a, b });
                }
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        let alive = a != b && self.nodes[a].core.is_some() && self.nodes[b].core.is_some();
        let link = self.links.entry((a, b)).or_default();
        if !alive || link.up || link.blocked || self.nodes[a].member == self.nodes[b].member {
            return;
        }
        link.up = true;
        link.epoch += 1;
        self.notice_link(a, b);
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        let link = self.links.entry((a, b)).or_default();
        if link.up {
            link.up = false;
            link.epoch += 1;
            self.notice_link(a, b);
        }
    }

    fn notice_link(&mut self, a: usize, b: usize) {
        for (node, peer) in [(a, b), (b, a)] {
            let (at, life) = (self.now + self.rng.within(0, 20), self.nodes[node].life);
            self.push(at, Ev::Notice { node, life, peer });
        }
    }

    /// The node notices what its link to a peer is by now.
    fn look_at_link(&mut self, node: usize, peer: usize) {
        let link = self.links.get(&(node.min(peer), node.max(peer))).copied().unwrap_or_default();
        let seen = self.nodes[node].view[peer];
        if self.nodes[node].core.is_none() || seen == link.up.then_some(link.epoch) {
            return;
        }
        // A second twin is not told apart from the first.
        let told = peer < self.cfg.n;
        let key = self.nodes[peer].key;
        if seen.is_some() {
            self.nodes[node].view[peer] = None;
            if told {
                self.handle(node, Event::LinkDown(key));
            }
        }
        if link.up && self.nodes[node].core.is_some() {
            self.nodes[node].view[peer] = Some(link.epoch);
            if told {
                self.handle(node, Event::LinkUp(key));
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, epoch: u64, message: &Message) {
        let link = self.links.get(&(from.min(to), from.max(to))).copied().unwrap_or_default();
        if !link.up || link.epoch != epoch || self.nodes[to].core.is_none() {
            return;
        }
        if self.nodes[to].view[from] != Some(epoch) {
            self.look_at_link(to, from);
        }
        if let Message::Get(Get::Candidate(hash)) = message
            && let Some(lie) = self.nodes[to].lies.get(hash).cloned()
        {
            return self.send(to, from, &Rc::new(Message::Candidate(lie)));
        }
        if self.nodes[to].manner == Manner::Withholds && matches!(message, Message::Get(_)) {
            return;
        }
        let key = self.nodes[from].key;
        let tip = |world: &World| world.nodes[to].core.as_ref().map(|core| core.summary().seq);
        let before = if matches!(message, Message::Closed(_)) { tip(self) } else { None };
        self.handle(to, Event::Message(key, message.clone()));
        if before.is_some() && tip(self) > before {
            self.watch.seen.hit("closed by certificate");
        }
    }

    fn send(&mut self, from: usize, to: usize, message: &Rc<Message>) {
        let Some(epoch) = self.nodes[from].view[to] else { return };
        let twins = self.nodes[from].manner == Manner::Twins;
        if self.nodes[from].member == self.nodes[to].member || twins && self.nodes[from].mask >> to & 1 == 0 {
            return;
        }
        let message = match self.nodes[from].manner {
            Manner::Silent => return,
            Manner::Withholds if matches!(**message, Message::Input(_)) => return,
            Manner::Equivocates => match self.twisted(from, to, message) {
                Some(message) => message,
                None => return,
            },
            _ => message.clone(),
        };
        let fate = match &mut self.filter {
            Some(filter) => filter(self.now, from, to, &message),
            None => Fate::Pass,
        };
        if fate == Fate::Drop || self.silent.contains(&(from, to)) || self.rng.chance(self.cfg.loss) {
            return;
        }
        let copies = 1 + usize::from(self.rng.chance(self.cfg.duplicates));
        for copy in 0..copies {
            let mut at = self.now + self.rng.within(self.cfg.latency_ms.0, self.cfg.latency_ms.1);
            if let Fate::Late(late) = fate {
                at += late;
            } else if copy > 0 {
                // The second one comes late.
                at += self.rng.within(0, 500);
            } else if !self.cfg.reorder {
                let last = self.last_arrival.entry((from, to)).or_insert(0);
                at = at.max(*last);
                *last = at;
            }
            self.push(at, Ev::Deliver { from, to, epoch, message: message.clone() });
        }
    }

    /// What an equivocator makes of a message for one receiver.
    fn twisted(&mut self, from: usize, to: usize, message: &Rc<Message>) -> Option<Rc<Message>> {
        let other = (self.nodes[from].mask >> to) & 1 == 1;
        let both = self.rng.chance(10);
        if !other && !both {
            return Some(message.clone());
        }
        let core = self.nodes[from].core.as_ref()?;
        let (scope, crypto) = (core.scope(), TableCrypto(self.nodes[from].key));
        let twisted = match &**message {
            Message::Novel(m) if m.from == crypto.0 => {
                let mut body = m.body.clone();
                body.time_slot += 1;
                body.inputs.pop();
                Message::Novel(crypto.signed(body, &scope))
            }
            Message::Result(m) if m.from == crypto.0 => {
                let mut body = m.body.clone();
                body.state_root = Hash([66; 32]);
                Message::Result(crypto.signed(body, &scope))
            }
            Message::Prevote(m) if m.from == crypto.0 => {
                let mut vote = m.body.vote();
                vote.ledger_hash = Hash([67; 32]);
                Message::Prevote(crypto.signed(Prevote::of(vote), &scope))
            }
            Message::Precommit(m) if m.from == crypto.0 => {
                let mut vote = m.body.vote();
                vote.ledger_hash = Hash([68; 32]);
                Message::Precommit(crypto.signed(Precommit::of(vote), &scope))
            }
            Message::Advance(m) if m.vote.from == crypto.0 => {
                let mut advance = m.clone();
                let mut body = m.vote.body;
                body.high = None;
                advance.vote = crypto.signed(body, &scope);
                advance.polc = None;
                Message::Advance(advance)
            }
            Message::TcFwd(m) => {
                let mut forward = m.clone();
                forward.polc = None;
                Message::TcFwd(forward)
            }
            Message::Propose(m) if m.from == crypto.0 => {
                // A ledger with a result that nobody had; its body can be had of the liar.
                let (_, candidate) = self.nodes[from].disk.journal.prevotes.get(&m.body.attempt)?;
                let mut lie = candidate.clone();
                lie.header.result.state_root = Hash([69; 32]);
                let mut propose = m.body.clone();
                propose.ledger_hash = lie.header.hash();
                self.nodes[from].lies.insert(propose.ledger_hash, lie);
                Message::Propose(crypto.signed(propose, &scope))
            }
            _ => return Some(message.clone()),
        };
        Some(Rc::new(twisted))
    }

    // ---- The driver of a node -----------------------------------------------------------------------------------

    fn start(&mut self, node: usize) {
        let wall = i64::try_from(self.cfg.wall_off_ms).expect("small");
        let drift = i64::try_from(self.cfg.drift_permille).expect("small");
        let (wall_off, mono_off) = (self.within_signed(wall), self.rng.within(0, 1 << 20) as i64);
        let drift = self.within_signed(drift);
        let me = &mut self.nodes[node];
        me.life += 1;
        me.drift = drift;
        // A monotonic clock starts anywhere, and never below zero.
        me.mono_off = mono_off + 1_000_000;
        me.wall_off = wall_off;
        let params = Params {
            me: me.key,
            boot: Hash::tagged("sim/boot", &(node as u64, me.life)),
            roundtime_ms: self.cfg.roundtime_ms,
            min_round_ms: self.cfg.min_round_ms,
            eager: self.cfg.eager,
            grace_ms: self.cfg.grace_ms,
            attempt_ms: 120,
            time_res_ms: self.cfg.time_res_ms,
            input_window: self.cfg.input_window,
        };
        let journal = me.disk.journal.clone();
        if me.life > 1 {
            self.watch.seen.hit("restarts");
            if !journal.prevotes.is_empty() || !journal.precommits.is_empty() {
                self.watch.seen.hit("restarts with a journaled vote");
            }
            if journal.advance.is_some() {
                self.watch.seen.hit("restarts with a journaled ADVANCE");
            }
        }
        trace(|| format!("{:>7} n{node} starts at {}", self.now, journal.seq()));
        let core = Consensus::new(params, Box::new(TableCrypto(me.key)), self.cfg.threshold, journal);
        me.core = Some(Box::new(core));
        self.handle(node, Event::Start);
    }

    /// kill -9, now.
    pub fn crash(&mut self, node: usize) {
        if self.nodes[node].core.is_none() {
            return;
        }
        trace(|| format!("{:>7} n{node} killed", self.now));
        self.watch.seen.hit("crashes");
        // A commit under way is on disk or is not.
        if self.nodes[node].committing.is_some() && self.rng.chance(50) {
            self.commit(node);
        }
        let me = &mut self.nodes[node];
        if me.fifo.iter().any(|step| matches!(step, Step::Sync(_))) {
            self.watch.seen.hit("crashes before a sync");
        }
        me.core = None;
        me.life += 1;
        me.fifo.clear();
        me.pending.clear();
        me.committing = None;
        me.durable = me.persisted;
        me.timers.clear();
        me.runs.clear();
        me.running = false;
        me.crash_in = None;
        me.delivered = None;
        me.users.clear();
        me.view.fill(None);
        for peer in 0..self.nodes.len() {
            self.disconnect(node.min(peer), node.max(peer));
        }
        let at = self.now + if self.rng.chance(50) { self.rng.within(0, 50) } else { self.rng.within(50, 1500) };
        self.push(at, Ev::Restart { node });
    }

    fn mono(&self, node: usize) -> MonoMs {
        let me = &self.nodes[node];
        let now = i64::try_from(self.now).expect("small");
        u64::try_from(me.mono_off + now + now * me.drift / 1000).expect("starts high")
    }

    /// When a node's clock will show `at`.
    fn when(&self, node: usize, at: MonoMs) -> u64 {
        let mono = self.mono(node);
        let left = i64::try_from(at.saturating_sub(mono)).expect("small");
        let drift = self.nodes[node].drift;
        let rounded = if drift == 0 { 0 } else { 2 };
        self.now + u64::try_from(left * 1000 / (1000 + drift)).expect("drift is small") + rounded
    }

    fn within_signed(&mut self, bound: i64) -> i64 {
        let bound = u64::try_from(bound).expect("a bound");
        self.rng.within(0, 2 * bound) as i64 - bound as i64
    }

    /// Gives a node an event, and performs what it answers.
    pub fn handle(&mut self, node: usize, event: Event) {
        let mono = self.mono(node);
        let wall = (WALL_START_MS + self.now).saturating_add_signed(self.nodes[node].wall_off);
        let me = &mut self.nodes[node];
        let Some(core) = &mut me.core else { return };
        trace(|| format!("{:>7} n{node} <- {}", self.now, describe_event(&event)));
        for effect in core.on(event, mono, wall) {
            match effect {
                Effect::Persist(record) => {
                    trace(|| format!("{:>7} n{node}    persist {}", self.now, describe_record(&record)));
                    me.persisted += 1;
                    me.pending.push(record);
                }
                Effect::Sync => me.fifo.push_back(Step::Sync(me.persisted)),
                effect => me.fifo.push_back(Step::Do(effect)),
            }
        }
        self.pump(node);
    }

    /// Performs effects until a `Sync` waits for the disk.
    fn pump(&mut self, node: usize) {
        loop {
            let me = &mut self.nodes[node];
            match me.fifo.front() {
                None => return,
                Some(Step::Sync(mark)) if me.durable >= *mark => {
                    me.fifo.pop_front();
                }
                Some(Step::Sync(_)) => {
                    if me.committing.is_none() {
                        // A crash may fall between the record and its commit, or into the commit.
                        if let Some(left) = &mut me.crash_in {
                            if *left == 0 {
                                return self.crash(node);
                            }
                            *left -= 1;
                        }
                        me.committing = Some((std::mem::take(&mut me.pending), me.persisted));
                        let life = me.life;
                        let at = self.now + self.rng.within(self.cfg.disk_ms.0, self.cfg.disk_ms.1);
                        self.push(at, Ev::Commit { node, life });
                    }
                    if self.nodes[node].crash_in == Some(0) {
                        self.crash(node);
                    }
                    return;
                }
                Some(Step::Do(_)) => {
                    if let Some(left) = &mut me.crash_in {
                        if *left == 0 {
                            return self.crash(node);
                        }
                        *left -= 1;
                    }
                    let Some(Step::Do(effect)) = me.fifo.pop_front() else { unreachable!("looked at") };
                    self.perform(node, effect);
                }
            }
        }
    }

    fn commit(&mut self, node: usize) {
        let Some((records, mark)) = self.nodes[node].committing.take() else { return };
        let (n, window) = (self.cfg.n, self.cfg.input_window);
        let me = &mut self.nodes[node];
        me.durable = mark;
        let honest = me.manner.is_honest();
        for record in records {
            match &record {
                Record::Ledger(ledger) => {
                    let ledger = ledger.clone();
                    me.disk.journal.apply(record, window);
                    let inputs = me.disk.journal.unexecuted.last().expect("just closed").1.clone();
                    if honest {
                        self.watch.stored(node, &ledger, &me.disk.journal.users, &inputs);
                    }
                    me.disk.history.push((*ledger, inputs));
                }
                Record::Result(result) => {
                    me.disk.before.remove(&result.body.of_seq);
                    me.disk.journal.apply(record, window);
                }
                Record::Input(input) => {
                    if honest && node < n {
                        self.watch.durable.insert(input.key(), node);
                    }
                    me.disk.journal.apply(record, window);
                }
                _ => me.disk.journal.apply(record, window),
            }
        }
    }

    fn perform(&mut self, node: usize, effect: Effect) {
        let honest = self.nodes[node].manner.is_honest();
        match effect {
            Effect::Persist(_) | Effect::Sync => unreachable!("sorted out when they came"),
            Effect::Broadcast(message) => {
                trace(|| format!("{:>7} n{node} -> all: {}", self.now, describe(&message)));
                self.left(node, &message);
                if let Message::Input(input) = &message {
                    self.sent_inputs.push(input.clone());
                }
                let message = Rc::new(message);
                for to in 0..self.nodes.len() {
                    self.send(node, to, &message);
                }
            }
            Effect::Send(key, message) => {
                trace(|| format!("{:>7} n{node} -> {}: {}", self.now, key.0[0] - 1, describe(&message)));
                self.left(node, &message);
                self.send_to_key(node, key, message);
            }
            Effect::SetTimer(timer, at) => {
                let at = self.when(node, at);
                let me = &mut self.nodes[node];
                me.settings += 1;
                me.timers.insert(timer, me.settings);
                let (life, setting) = (me.life, me.settings);
                self.push(at, Ev::Timer { node, life, timer, setting });
            }
            Effect::Cancel(timer) => {
                self.nodes[node].timers.remove(&timer);
            }
            Effect::LedgerClosed { ledger, attempt, .. } => {
                trace(|| format!("{:>7} n{node} closed {} at {attempt}", self.now, ledger.candidate.header.seq));
                if honest {
                    self.watch.seen.hit(match attempt {
                        0 => "closed at attempt 0",
                        1 => "closed at attempt 1",
                        _ => "closed at attempt 2 or later",
                    });
                }
            }
            Effect::Rollback(seq) => {
                let disk = &mut self.nodes[node].disk;
                trace(|| format!("{:>7} n{node} rolls back to before {seq}", self.now));
                if let Some(before) = disk.before.remove(&seq) {
                    disk.state = before;
                    self.watch.seen.hit("rollbacks of a touched state");
                }
                self.watch.seen.hit("rollbacks");
            }
            Effect::Execute(run) => {
                if honest {
                    self.watch.executes(node, &run);
                }
                self.nodes[node].runs.push_back(run);
                self.run_next(node);
            }
            Effect::Deliver(result) => {
                let before = self.nodes[node].delivered.replace(result.of_seq);
                assert!(before.is_none_or(|before| before + 1 == result.of_seq), "S3: node {node} skips outputs");
                if honest {
                    self.watch.delivered(node, &result);
                }
            }
            Effect::Diverged { mine, agreed } => {
                let flips = self.nodes[node].manner != Manner::Honest;
                assert!(flips, "S6: node {node} diverged without reason: {mine:?} {agreed:?}");
                self.nodes[node].diverged = true;
                self.nodes[node].runs.clear();
                self.watch.seen.hit("diverged");
            }
            Effect::Evidence(evidence) => {
                if honest {
                    self.watch.evidence(node, &evidence);
                }
            }
            Effect::Serve(key, query) => self.serve(node, key, &query),
            Effect::Split(_) => self.watch.seen.hit("splits"),
            Effect::SplitHealed(_) => self.watch.seen.hit("splits healed"),
            Effect::Refuse(..) => self.watch.seen.hit("refused inputs"),
            Effect::Expired(_) => self.watch.seen.hit("expired inputs"),
        }
    }

    fn left(&mut self, node: usize, message: &Message) {
        let me = &self.nodes[node];
        if me.manner.is_honest() {
            self.watch.left(node, me.key, message, &me.disk.journal);
            if let Message::Propose(propose) = message
                && matches!(propose.body.basis, hotpocket::consensus::messages::Basis::Polc(_))
            {
                self.watch.seen.hit("POLC re-proposals");
            }
        }
    }

    fn send_to_key(&mut self, node: usize, key: NodeKey, message: Message) {
        let message = Rc::new(message);
        for to in 0..self.nodes.len() {
            if self.nodes[to].key == key {
                self.send(node, to, &message);
            }
        }
    }

    fn serve(&mut self, node: usize, to: NodeKey, query: &Query) {
        let history = &self.nodes[node].disk.history;
        let mut answers: Vec<Message> = Vec::new();
        match query {
            Query::Closed(seq) => {
                if let Some((ledger, _)) = seq.checked_sub(1).and_then(|at| history.get(usize::try_from(at).ok()?)) {
                    let header = ledger.candidate.header.clone();
                    answers.push(Message::Closed(Closed { header, qc: ledger.qc.clone() }));
                }
            }
            Query::Candidate(hash) => {
                let found = history.iter().find(|(ledger, _)| ledger.qc.vote.ledger_hash == *hash);
                answers.extend(found.map(|(ledger, _)| Message::Candidate(ledger.candidate.clone())));
            }
            Query::Inputs(ids) => {
                for id in ids {
                    let place = |(ledger, _): &&(ClosedLedger, Vec<Input>)| ledger.candidate.inputs.binary_search(id);
                    let found = history.iter().find_map(|entry| place(&entry).ok().map(|at| entry.1[at].clone()));
                    answers.extend(found.map(Message::Input));
                }
            }
            Query::Details(_) => {}
        }
        if self.nodes[node].manner == Manner::Withholds {
            return;
        }
        for answer in answers {
            trace(|| format!("{:>7} n{node} -> {}: {}", self.now, to.0[0] - 1, describe(&answer)));
            self.send_to_key(node, to, answer);
        }
    }

    // ---- The contract -------------------------------------------------------------------------------------------

    fn run_next(&mut self, node: usize) {
        let at = self.now + self.rng.within(self.cfg.run_ms.0, self.cfg.run_ms.1);
        let me = &mut self.nodes[node];
        if me.running {
            return;
        }
        let Some(run) = me.runs.front() else { return };
        let seq = run.header.seq;
        let (done, root) = me.disk.state;
        assert_eq!(done + 1, seq, "node {node} runs ledger {seq} on another state");
        assert!(root.is_some(), "node {node} runs ledger {seq} on a state in the middle of a run");
        me.disk.before.insert(seq, me.disk.state);
        me.disk.state = (seq - 1, None);
        me.running = true;
        let life = me.life;
        self.push(at, Ev::Ran { node, life });
    }

    fn ran(&mut self, node: usize) {
        let me = &mut self.nodes[node];
        me.running = false;
        let Some(run) = me.runs.pop_front() else { return };
        let seq = run.header.seq;
        let before = me.disk.before[&seq].1.expect("checked when it began");
        let mut result = run_contract(before, &run);
        if let Manner::Flips(from) = me.manner
            && seq >= from
        {
            result.state_root = Hash::tagged("sim/flipped", &(node as u64, result.state_root));
        } else if me.manner.is_honest() {
            self.watch.executed(node, &result);
        }
        me.disk.state = (seq, Some(result.state_root));
        self.handle(node, Event::ExecDone(result));
        self.run_next(node);
    }

    // ---- Users --------------------------------------------------------------------------------------------------

    fn any_honest(&mut self) -> Option<usize> {
        let up = |node: &usize| self.nodes[*node].core.is_some() && self.nodes[*node].manner.is_honest();
        let honest: Vec<usize> = (0..self.cfg.n).filter(up).collect();
        (!honest.is_empty()).then(|| honest[self.rng.index(honest.len())])
    }

    fn any_user(&mut self) -> UserKey {
        UserKey([100 + self.rng.index(6) as u8; 32])
    }

    /// A user opens a session at a node.
    pub fn user_up(&mut self, node: usize, user: UserKey) {
        self.sessions += 1;
        self.nodes[node].users.insert(user, self.sessions);
        self.handle(node, Event::UserUp(user));
    }

    /// Some user of the node sends an input in its session.
    pub fn input(&mut self, node: usize, payload: Vec<u8>) {
        let user = self.any_user();
        if !self.nodes[node].users.contains_key(&user) {
            self.user_up(node, user);
        }
        let Some(session) = self.nodes[node].users.get(&user) else { return };
        let mut challenge = [0; 16];
        challenge[..8].copy_from_slice(&session.to_le_bytes());
        self.nodes[node].nonce += 1;
        let nonce = self.nodes[node].nonce;
        let local = LocalInput { user, challenge: Challenge(challenge), helo_sig: Sig([0; 64]), nonce, payload };
        self.handle(node, Event::LocalInput(local));
    }

    fn signed_input(&mut self) {
        let Some(tip) = self.any_honest().map(|node| self.nodes[node].disk.journal.seq()) else { return };
        let again = self.signed_nonce > 0 && self.rng.chance(30);
        let nonce = if again { self.rng.within(1, self.signed_nonce) } else { self.signed_nonce + 1 };
        self.signed_nonce = self.signed_nonce.max(nonce);
        let user = UserKey([200 + (nonce % 4) as u8; 32]);
        let max_ledger = tip + 1 + self.rng.within(0, self.cfg.input_window + 3);
        let payload = vec![b'y'; self.rng.index(50)];
        let input = Input { user, origin: Origin::User { sig: Sig([1; 64]) }, nonce, max_ledger, payload };
        if again {
            let id = input.id(&self.watch.chain_id());
            self.watch.rivals.insert(id);
            let first: Vec<Hash> = self
                .sent_inputs
                .iter()
                .filter(|other| other.key() == input.key())
                .map(|other| other.id(&self.watch.chain_id()))
                .collect();
            self.watch.rivals.extend(first);
        }
        self.sent_inputs.push(input.clone());
        if self.cfg.n == 1 {
            return;
        }
        for to in 0..self.cfg.n {
            if self.rng.chance(40) {
                let from = (to + 1) % self.cfg.n;
                self.handle(to, Event::Message(self.nodes[from].key, Message::Input(input.clone())));
            }
        }
    }

    // ---- Looking at it ------------------------------------------------------------------------------------------

    /// Last ledger on a node's disk.
    pub fn seq(&self, node: usize) -> Seq {
        self.nodes[node].disk.journal.seq()
    }

    /// Members that must go on after GST.
    pub fn sound(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.cfg.n).filter(|node| self.nodes[*node].manner.is_honest() && !self.nodes[*node].dead)
    }

    /// Keys of inputs that a sound node promised to keep and that are not in the chain.
    pub fn unledgered(&self) -> Vec<InputKey> {
        let open = |(key, node): &(&InputKey, &usize)| !self.nodes[**node].dead && !self.watch.is_ledgered(key);
        self.watch.durable.iter().filter(open).map(|(key, _)| *key).collect()
    }

    /// One line a node.
    pub fn describe(&self) -> String {
        let mut text = format!("at {} ms, chain {}\n", self.now, self.watch.tip());
        for (at, node) in self.nodes.iter().enumerate() {
            let summary = node.core.as_ref().map(|core| core.summary());
            text += &format!("  n{at} {:?} on disk {} {summary:?}\n", node.manner, node.disk.journal.seq());
        }
        text
    }
}

fn describe_event(event: &Event) -> String {
    match event {
        Event::Message(from, message) => format!("{} of {}", describe(message), from.0[0] - 1),
        other => format!("{other:?}"),
    }
}

fn describe_record(record: &Record) -> String {
    match record {
        Record::Input(input) => format!("input {}", input.nonce),
        Record::Forget(ids) => format!("forget {}", ids.len()),
        Record::Novel(_) => "NOVEL".into(),
        Record::Prevote(vote, _) => format!("PREVOTE {}", vote.body.0.attempt),
        Record::Precommit(vote, ..) => format!("PRECOMMIT {}", vote.body.0.attempt),
        Record::Advance(advance) => format!("ADVANCE {}", advance.vote.body.attempt),
        Record::Entered(tc, _) => format!("Tc {}", tc.attempt()),
        Record::Ledger(ledger) => format!("ledger {}", ledger.candidate.header.seq),
        Record::Result(result) => format!("RESULT {}", result.body.of_seq),
    }
}

fn describe(message: &Message) -> String {
    let mut text = message.kind().to_string();
    if let Some(seq) = message.round_seq() {
        text += &format!(" {seq}/{}", message.round_attempt());
    }
    match message {
        Message::Novel(m) => text += &format!(" {} inputs {}", m.body.inputs.len(), m.id().short()),
        Message::Prevote(m) => text += &format!(" {}", m.body.0.ledger_hash.short()),
        Message::Precommit(m) => text += &format!(" {}", m.body.0.ledger_hash.short()),
        Message::Advance(m) => text += &format!(" high {:?}", m.vote.body.high),
        Message::TcFwd(m) => text += &format!(" high {:?}", m.tc.high()),
        Message::Propose(m) => text += &format!(" {}", m.body.ledger_hash.short()),
        Message::Closed(m) => text += &format!(" {} {}", m.header.seq, m.header.hash().short()),
        Message::Get(Get::Inputs(ids)) => text += &format!(" {} inputs", ids.len()),
        Message::Get(get) => text += &format!(" {get:?}"),
        Message::Candidate(Candidate { header, .. }) => text += &format!(" {}", header.hash().short()),
        Message::Status(m) => text += &format!(" {}", m.body.seq),
        _ => {}
    }
    text
}
