//! A world of nodes over the real core: links, disks, clocks, contracts, users and everything that goes wrong.
//!
//! This file has the world's state, its time and what is planned to happen; `bus` is where it settles, `driver` is a node,
//! `links` what is between nodes, `liars` what those make of it that lie, `users` who talks to them.

mod bus;
mod driver;
mod liars;
mod links;
mod trace;
mod users;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use hotpocket::{
    consensus::{
        Consensus, Effect, Event, Execution, Timer,
        header::{Candidate, ClosedLedger, Genesis, Input, UnlChange, VERSION},
        journal::{Journal, Record},
        messages::{Message, Propose, Signed},
    },
    types::{Hash, NodeKey, Seq, UserKey, WallMs},
};

use super::{
    properties::{Promise, Watch, changed, request_payload},
    rng::Rng,
};
pub use bus::{Bus, BusHappening};
use trace::trace;
pub use trace::{trace_on, trace_take};

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
    /// Signs a result of each run that nobody else gets.
    LiesOfResults,
    /// Shows nobody a POLC.
    HidesPolcs,
    /// When it is the coordinator, proposes one thing after the other.
    Proposes,
    /// Says what it heard again and again.
    Spams,
    /// Asks for attempts far ahead.
    Rushes,
    /// Votes, but what it sends of closed ledgers and of bodies is false, and it sends more of that than is asked for.
    Forges,
    /// Claims users without end, to each node other ones, and has ever new ones say something.
    Crowds,
}

impl Manner {
    /// What members of this kind are counted as.
    pub fn name(self) -> &'static str {
        match self {
            Manner::Honest => "honest members",
            Manner::Flips(_) => "members whose contract differs",
            Manner::Twins => "twins",
            Manner::Equivocates => "equivocators",
            Manner::Withholds => "withholders",
            Manner::Silent => "silent members",
            Manner::LiesOfResults => "liars about results",
            Manner::HidesPolcs => "hiders of POLCs",
            Manner::Proposes => "endless proposers",
            Manner::Spams => "spammers",
            Manner::Rushes => "members that rush ahead",
            Manner::Forges => "forgers",
            Manner::Crowds => "members with crowds",
        }
    }

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
    /// Nodes that follow and are not in the UNL.
    pub observers: usize,
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
    /// `Params`.
    pub users_max: usize,
    /// One-way latency of a link.
    pub latency_ms: (u64, u64),
    /// A commit takes this long.
    pub disk_ms: (u64, u64),
    /// A run takes this long.
    pub run_ms: (u64, u64),
    /// The wall-time limit of a run.
    pub limit_ms: u64,
    /// Percent of ledgers whose run never ends by itself.
    pub endless: u64,
    /// Wall clocks differ by up to this.
    pub wall_off_ms: u64,
    /// Clocks run faster or slower by up to this many thousandths.
    pub drift_permille: u64,
    /// Messages lost, in percent.
    pub loss: u64,
    /// Messages sent twice, in percent.
    pub duplicates: u64,
    /// Messages that come seconds late, in percent.
    pub late: u64,
    /// Whether messages overtake each other.
    pub reorder: bool,
}

impl Config {
    /// Nothing goes wrong, and everything takes one millisecond.
    pub fn calm(n: usize, threshold: u8) -> Config {
        Config {
            n,
            observers: 0,
            threshold,
            manners: vec![Manner::Honest; n],
            roundtime_ms: 1000,
            min_round_ms: 0,
            eager: true,
            grace_ms: 30,
            time_res_ms: 1000,
            input_window: 65_536,
            users_max: 4_096,
            latency_ms: (1, 1),
            disk_ms: (0, 0),
            run_ms: (1, 1),
            limit_ms: NO_LIMIT_MS,
            endless: 0,
            wall_off_ms: 0,
            drift_permille: 0,
            loss: 0,
            duplicates: 0,
            late: 0,
            reorder: false,
        }
    }
}

impl Config {
    /// Members and observers: nodes with a key of their own.
    pub fn singles(&self) -> usize {
        self.n + self.observers
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
    /// Somebody changes a node's state by hand; the copy too, or not.
    Damage(usize, bool),
    /// A user comes or goes.
    User,
    /// Operators of so many percent of the honest nodes that are up vote for a change of the UNL, or withdraw their vote.
    Operators(Option<UnlChange>, u64),
    /// A user has the contract ask for one.
    Request(UnlChange),
    /// An input of long ago comes again.
    Replay,
    /// A node is killed, and comes back with an empty disk.
    Empty(usize),
    /// A node that was away, or slow, is so no more.
    Back(usize),
    /// Something about the settlement bus.
    Bus(BusHappening),
    /// A node has no room on its disk, or has again.
    Pause(usize, bool),
    /// Faults end.
    Gst,
}

enum Ev {
    Deliver {
        from: usize,
        to: usize,
        epoch: u64,
        message: Rc<Message>,
    },
    Timer {
        node: usize,
        life: u32,
        timer: Timer,
        setting: u64,
    },
    Commit {
        node: usize,
        life: u32,
    },
    Ran {
        node: usize,
        life: u32,
        run: u64,
        cut: bool,
    },
    Load {
        node: usize,
        life: u32,
        first: Seq,
    },
    /// The state is fetched, from whoever has it then.
    Sync {
        node: usize,
        life: u32,
        from: Seq,
    },
    /// The node finds that its state is none.
    Lost {
        node: usize,
        life: u32,
    },
    Notice {
        node: usize,
        life: u32,
        peer: usize,
    },
    Mischief {
        node: usize,
        life: u32,
    },
    Connect {
        a: usize,
        b: usize,
    },
    Restart {
        node: usize,
    },
    Happen(Happening),
}

/// What survives a crash.
pub struct Disk {
    /// The core's records.
    pub journal: Journal,
    /// Closed ledgers with their inputs; of those that were passed over without.
    pub history: Vec<(ClosedLedger, Vec<Input>)>,
    /// state/: the last ledger executed and the root; `None` in the middle of a run.
    pub state: (Seq, Option<Hash>),
    /// Somebody changed it, and the node has not noticed.
    damaged: bool,
    /// The copy of it from before a run, and of which ledger: there is one, as on a real disk.
    before: Option<(Seq, (Seq, Option<Hash>))>,
}

enum Step {
    Do(Box<Effect>),
    Sync(u64),
}

/// One process.
pub struct Node {
    /// Place in the UNL, or behind it.
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
    runs: VecDeque<Arc<Execution>>,
    /// The run under way, by its number among all runs of the world.
    running: Option<u64>,
    /// Its runs take this much longer than the configuration says.
    pub slow_ms: u64,
    crash_in: Option<u32>,
    mono_off: i64,
    drift: i64,
    wall_off: i64,
    /// Epoch of the link to each other node, as far as this one knows that it is up.
    view: Vec<Option<u64>>,
    /// To whom it broadcasts.
    unl: Vec<NodeKey>,
    /// Users here, with the number of their session.
    users: BTreeMap<UserKey, u64>,
    /// Spammers: what they heard.
    heard: VecDeque<Rc<Message>>,
    /// Its last PROPOSE, if it proposes without end.
    proposed: Option<Signed<Propose>>,
    /// Bodies of headers that it made up.
    lies: BTreeMap<Hash, Candidate>,
    /// Last ledger whose outputs went to users, since the start.
    delivered: Option<Seq>,
    /// It said that its run differed.
    pub diverged: bool,
    /// It has no state to run ledgers on, and fetches one.
    lost: bool,
    /// The ledger from before whose run the state is that it fetches, or of a later one.
    syncing: Option<Seq>,
    /// Its contract computes what all compute, after it did not.
    cured: bool,
    /// Whether it has no room on its disk, also while it is down.
    pub paused: bool,
    /// Whether it stays down.
    pub dead: bool,
    /// Whether it lost its disk once.
    pub emptied: bool,
    /// Twins: whom this one talks with.
    pub mask: u64,
    /// Scripted schedules only: how long its runs take.
    pub run_ms: Option<u64>,
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
    /// Processes: one a member, then observers, then the second twins.
    pub nodes: Vec<Node>,
    /// The properties.
    pub watch: Watch,
    /// Where it settles.
    pub bus: Bus,
    /// Scripted schedules only.
    pub filter: Option<Filter>,
    /// Faults are over.
    pub gst: bool,
    queue: BTreeMap<(u64, u64), Ev>,
    serial: u64,
    links: BTreeMap<(usize, usize), Link>,
    last_arrival: BTreeMap<(usize, usize), u64>,
    silent: BTreeSet<(usize, usize)>,
    /// What was planned, for a report.
    planned: Vec<(u64, Happening)>,
    /// Changes of the UNL that all operators vote for in the end.
    pub wanted: Vec<UnlChange>,
    sessions: u64,
    /// The next number of an input, by session.
    numbers: BTreeMap<u64, u64>,
    sent_inputs: Vec<Input>,
    signed_nonce: u64,
    /// Runs begun so far.
    begun: u64,
}

/// Longer than anything in this world lasts.
pub const NO_LIMIT_MS: u64 = 1 << 40;

const WALL_START_MS: WallMs = 1_700_000_000_000;

impl World {
    /// Starts all nodes at time 0.
    pub fn new(cfg: Config, mut rng: Rng) -> World {
        let keys: Vec<NodeKey> = (0..cfg.singles()).map(|member| NodeKey([member as u8 + 1; 32])).collect();
        let genesis = Genesis {
            ver: VERSION,
            contract_id: Hash([7; 32]),
            unl: keys[..cfg.n].to_vec(),
            threshold: cfg.threshold,
            cfg_hash: Hash::ZERO,
            state_root: Hash([1; 32]),
            time_ms: WALL_START_MS,
            ancestor: None,
        };
        let liars = keys.iter().zip(&cfg.manners).filter(|(_, manner)| !manner.is_honest()).map(|(key, _)| *key);
        let watch = Watch::new(genesis.clone(), (cfg.input_window, cfg.users_max), liars.collect());
        let twins = (0..cfg.n).filter(|member| cfg.manners[*member] == Manner::Twins);
        let members: Vec<usize> = (0..cfg.singles()).chain(twins).collect();
        let count = members.len();
        let mut nodes = Vec::new();
        for member in members {
            let disk = Disk {
                journal: Journal::new(genesis.clone()),
                history: Vec::new(),
                state: (0, Some(genesis.state_root)),
                damaged: false,
                before: None,
            };
            let mask = rng.next();
            nodes.push(Node {
                member,
                key: keys[member],
                manner: cfg.manners.get(member).copied().unwrap_or(Manner::Honest),
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
                running: None,
                slow_ms: 0,
                crash_in: None,
                mono_off: 0,
                drift: 0,
                wall_off: 0,
                view: vec![None; count],
                unl: Vec::new(),
                users: BTreeMap::new(),
                delivered: None,
                heard: VecDeque::new(),
                proposed: None,
                lies: BTreeMap::new(),
                diverged: false,
                lost: false,
                syncing: None,
                cured: false,
                paused: false,
                dead: false,
                emptied: false,
                mask,
                run_ms: None,
            });
        }
        let mut world = World {
            cfg,
            now: 0,
            rng,
            nodes,
            watch,
            bus: Bus::default(),
            filter: None,
            gst: false,
            queue: BTreeMap::new(),
            serial: 0,
            links: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            silent: BTreeSet::new(),
            planned: Vec::new(),
            wanted: Vec::new(),
            sessions: 0,
            numbers: BTreeMap::new(),
            sent_inputs: Vec::new(),
            signed_nonce: 0,
            begun: 0,
        };
        // Twins share a mask, the second has its complement; some of the others see both.
        for at in world.cfg.singles()..count {
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
        self.planned.push((at, what.clone()));
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
            Ev::Ran { node, life, run, cut } if self.nodes[node].life == life => self.ran(node, run, cut),
            Ev::Load { node, life, first } if self.nodes[node].life == life => {
                self.watch.seen.hit("ledgers loaded for their runs");
                let ledgers = self.nodes[node].disk.journal.load(first).to_vec();
                self.handle(node, Event::Loaded(ledgers));
            }
            Ev::Sync { node, life, from } if self.nodes[node].life == life => {
                if self.nodes[node].syncing == Some(from) {
                    self.sync(node, from);
                }
            }
            Ev::Lost { node, life } if self.nodes[node].life == life => self.handle(node, Event::StateLost),
            Ev::Notice { node, life, peer } if self.nodes[node].life == life => self.look_at_link(node, peer),
            Ev::Mischief { node, life } if self.nodes[node].life == life => self.mischief(node),
            Ev::Connect { a, b } => self.connect(a, b),
            Ev::Restart { node } if self.nodes[node].core.is_none() && !self.nodes[node].dead => {
                self.start(node);
                for peer in 0..self.nodes.len() {
                    let at = self.now + self.rng.within(1, 60);
                    self.push(at, Ev::Connect { a: node.min(peer), b: node.max(peer) });
                }
            }
            Ev::Happen(what) => self.take_place(what),
            Ev::Commit { .. }
            | Ev::Ran { .. }
            | Ev::Load { .. }
            | Ev::Sync { .. }
            | Ev::Lost { .. }
            | Ev::Notice { .. }
            | Ev::Mischief { .. }
            | Ev::Restart { .. } => {}
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
            Happening::Operators(vote, percent) => {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].manner.is_honest() && self.rng.chance(percent) {
                        self.vote(node, vote);
                    }
                }
            }
            Happening::Request(change) => {
                if let Some(node) = self.any_honest() {
                    self.input(node, request_payload(change));
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
            Happening::Damage(node, copy_too) => self.damage(node, copy_too),
            Happening::Replay => {
                let (n, inputs) = (self.cfg.n, self.sent_inputs.len());
                if inputs > 0 && n > 1 {
                    let input = self.sent_inputs[self.rng.index(inputs)].clone();
                    let to = self.rng.index(n);
                    let from = (to + 1 + self.rng.index(n - 1)) % n;
                    self.handle(to, Event::Message(self.nodes[from].key, Message::Input(input)));
                }
            }
            Happening::Empty(node) => self.empty(node),
            Happening::Back(node) => {
                self.nodes[node].slow_ms = 0;
                self.nodes[node].dead = false;
                if self.nodes[node].core.is_none() {
                    self.push(self.now, Ev::Restart { node });
                }
            }
            Happening::Bus(what) => self.on_bus(what),
            Happening::Pause(node, paused) => self.pause(node, paused),
            Happening::Gst => {
                self.gst = true;
                self.cfg.loss = 0;
                self.cfg.duplicates = 0;
                self.cfg.late = 0;
                self.cfg.reorder = false;
                self.silent.clear();
                for node in 0..self.nodes.len() {
                    self.pause(node, false);
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

    /// An operator votes at a node that is up.
    pub fn vote(&mut self, node: usize, vote: Option<UnlChange>) {
        let me = &self.nodes[node];
        let Some(core) = &me.core else { return };
        if let Some(change) = vote.filter(|_| core.unl().contains(&me.key)) {
            self.watch.voted(me.key, change);
        }
        self.handle(node, Event::UnlVote(vote));
    }

    /// The key of a member or observer.
    pub fn key(&self, node: usize) -> NodeKey {
        self.nodes[node].key
    }

    // ---- Looking at it ------------------------------------------------------------------------------------------

    /// Last ledger on a node's disk.
    pub fn seq(&self, node: usize) -> Seq {
        self.nodes[node].disk.journal.seq()
    }

    /// Nodes that must go on after GST.
    pub fn sound(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.cfg.singles()).filter(|node| self.nodes[*node].manner.is_honest() && !self.nodes[*node].dead)
    }

    /// Whether a node has a state to run ledgers on.
    pub fn has_state(&self, node: usize) -> bool {
        self.nodes[node].core.as_ref().is_some_and(|core| core.summary().has_state)
    }

    /// Sound members that sign nothing, as their disks say.
    pub fn silent_members(&self) -> Vec<usize> {
        let unl = self.watch.unl();
        let silent = |node: &usize| self.nodes[*node].disk.journal.silence.is_some();
        self.sound().filter(|node| unl.contains(&self.nodes[*node].key)).filter(silent).collect()
    }

    /// Inputs that a sound node promised to keep and that are neither in the chain nor expired.
    pub fn unledgered(&self) -> Vec<Promise> {
        let open = |promise: &&Promise| !self.nodes[promise.node].dead && self.watch.is_owed(promise);
        self.watch.durable.values().filter(open).copied().collect()
    }

    /// Changes that all operators vote for and that no ledger made.
    pub fn outstanding(&self) -> Vec<UnlChange> {
        let open = |change: &&UnlChange| changed(self.watch.unl(), **change).is_some();
        self.wanted.iter().filter(open).copied().collect()
    }

    /// What was planned, in order.
    pub fn planned(&self) -> String {
        let mut planned = self.planned.clone();
        planned.sort_by_key(|(at, _)| *at);
        planned.iter().map(|(at, what)| format!("{at:>7} {what:?}\n")).collect()
    }

    /// One line a node.
    pub fn describe(&self) -> String {
        let mut text = format!("at {} ms, chain {}, settled: {}\n", self.now, self.watch.tip(), self.is_settled());
        for (at, node) in self.nodes.iter().enumerate() {
            let summary = node.core.as_ref().map(|core| core.summary());
            text += &format!("  n{at} {:?} on disk {} {summary:?}\n", node.manner, node.disk.journal.seq());
        }
        text
    }
}
