//! The loop: events from the adapters into the core, effects back, in order. Owns the clock.
//!
//! One thread runs it all. Effects stand in one queue; at a `Sync` the queue waits for the database while events go on
//! being handled, and one commit covers everything to be persisted so far. Runs of the contract stand in a queue of
//! their own, one at a time. Reading order: [`Node::run`], `handle`, `perform`; `start` builds it, `exec` runs a
//! ledger, `users` answers users, `serve` peers, `http` the HTTP side, `settle` the bus,
//! `report` and `events` tell people.

pub mod alerts;
mod backend;
pub mod backup;
pub mod bans;
mod catchup;
pub mod control;
pub(crate) mod disk;
mod diverge;
mod events;
mod exec;
pub mod files;
mod guards;
mod http;
mod metrics;
pub mod offline;
mod party_line;
mod pins;
pub mod progress;
mod reads;
pub mod recover;
mod release;
pub mod replay;
mod report;
mod rounds;
mod serve;
mod service;
pub(crate) mod settle;
pub mod silence;
mod start;
mod swap;
mod sync;
mod twins;
mod unl;
mod users;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde_json::json;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Duration, sleep_until},
};
use tracing::{debug, error, info, warn};

use self::{
    alerts::Kind,
    catchup::Found,
    control::{Asked, Control},
    exec::{Ended, ExecError, Executor},
    files::Files,
    party_line::PartyLine,
    rounds::Part,
    users::{Delivery, Told},
};
pub use self::{catchup::Draw, http::reload_tls, report::Banner, start::NodeError, sync::SyncProgress};
use crate::{
    config::Config,
    consensus::{
        Consensus, Effect, Event, Execution, Lost, SignedRef, Timer,
        header::ClosedLedger,
        journal::Record,
        messages::{Details, Get, Message, Npl, NplEnd, ResultCert, Signable, Signed},
    },
    contract::{NplIn, NplOut, npl::NPL_MESSAGE_BYTES_MAX},
    crypto::SecretKey,
    gateway::{Gateway, GatewayEvent, SessionId},
    http::Http,
    ledger::{Ledger, LedgerError, Write},
    mesh::{Class, Mesh, MeshEvent},
    tls::Tls,
    types::{Attempt, Challenge, Hash, MonoMs, NodeKey, Seq, UserKey, WallMs},
    wire,
};

/// Runs whose details, and outputs not delivered yet, are kept in memory. All outputs are in the database.
const RUNS_KEPT: usize = 64;
/// Messages of peers in a row before users and runs get their turn.
const FRAMES_A_TURN: usize = 64;
/// Messages of the party line between a run and this loop.
const LINE_MAX: usize = 256;
/// Effects waiting for the disk. Past it peers and users wait, which they feel as back pressure.
const EFFECTS_MAX: usize = 65_536;
/// Bytes of the same, as far as peers' requests and inputs make them. One more message may go over it by its answer.
const EFFECTS_BYTES_MAX: usize = 64 << 20;

/// A run that ended, and the party line's words on the way.
#[derive(Debug)]
enum FromRun {
    /// A run that waited for its turn when it was to be ended.
    NotBegun(Arc<Execution>),
    Line(Hash, NplOut),
    Ended(Result<Ended, ExecError>),
    RolledBack(Result<(), ExecError>),
    /// The state was copied, or not.
    Copied,
    /// It could not be copied beside the runs.
    NotCopied(PathBuf, oneshot::Sender<serde_json::Value>),
    /// What the run of a ledger left is kept; nothing is when the state has moved on.
    Kept(Seq, Result<Option<diverge::KeptRun>, ExecError>),
}

/// What waits for the runner.
#[derive(Debug)]
enum Job {
    Rollback,
    /// The run of this ledger has no effect: back to the state of this root.
    Undo(Seq, Hash),
    Run(Arc<Execution>),
    /// Copy the state somewhere.
    Copy(PathBuf, oneshot::Sender<serde_json::Value>),
    /// Copy what the run of this ledger left, where results differ.
    Keep(Seq),
    /// Begin to fetch the state from before the run of this ledger, or of a later one.
    Sync(Seq, Lost),
}

/// A node that is up.
pub struct Node {
    config: Config,
    secret: SecretKey,
    core: Consensus,
    edge: wire::Edge,
    started: Instant,

    mesh: Mesh,
    mesh_events: mpsc::Receiver<MeshEvent>,
    gateway: Option<Gateway>,
    gateway_events: mpsc::Receiver<GatewayEvent>,
    /// What it may open, and what it needs.
    files: Files,
    http: Option<Http>,
    http_asks: mpsc::Receiver<http::Asked>,
    /// Ports that speak TLS.
    tls: Vec<Tls>,
    events: events::Events,
    told_last: events::Last,
    /// Who waits over HTTP for what becomes of an input.
    waiting: http::Waiting,
    /// How far results are agreed on, for those beside the loop.
    agreed: watch::Sender<http::Agreed>,
    ledger: Ledger,
    control: Option<Control>,
    requests: mpsc::Receiver<Asked>,
    /// How often something became otherwise that people are shown.
    changes: watch::Sender<u64>,
    /// Answers to operators that wait for the disk.
    answers: Vec<(oneshot::Sender<serde_json::Value>, serde_json::Value)>,
    executor: Executor,
    swap: swap::Swap,
    from_runs_tx: mpsc::Sender<FromRun>,
    from_runs: mpsc::Receiver<FromRun>,

    found_tx: mpsc::Sender<Found>,
    found: mpsc::Receiver<Found>,
    /// Peers whose answer is being checked.
    checking: BTreeSet<NodeKey>,
    progress: progress::Watch,
    /// When people were last told of it.
    progress_told: Option<Instant>,
    draw: Option<Draw>,

    effects: VecDeque<Effect>,
    effects_bytes: usize,
    /// How many of them are to be persisted.
    persists: usize,
    /// To be written with the next commit.
    batch: Vec<Write>,
    /// The commit that the effects wait for.
    committing: Option<oneshot::Receiver<Result<(), LedgerError>>>,
    /// When that began.
    commit_began: Instant,
    timers: BTreeMap<Timer, MonoMs>,
    jobs: VecDeque<Job>,
    running: Option<JoinHandle<()>>,
    /// Ends the run of this ledger.
    end_run: Option<(Seq, oneshot::Sender<()>)>,
    /// The state is being fetched, and no ledger is run.
    syncing: Option<sync::Syncing>,
    /// It will be, and not before: fetched again and again it is no help.
    sync_due: Option<Instant>,
    from_sync_tx: mpsc::Sender<sync::FromSync>,
    from_sync: mpsc::Receiver<sync::FromSync>,
    /// `state/` was found to be another than the chain's when the process began.
    state_was_lost: bool,
    /// Set when an operator wants the node to end.
    stops: bool,
    /// Whom operators want no link with.
    bans: bans::Bans,
    /// The state as other nodes fetch it.
    offers: pins::Offers,
    state_served_tx: mpsc::Sender<pins::Served>,
    state_served: mpsc::Receiver<pins::Served>,

    line: PartyLine,
    line_counters: BTreeMap<Hash, u64>,
    /// The ledger whose run began before, in this process or in one before it, and was cut.
    rerun: Option<Hash>,
    sessions: BTreeMap<(UserKey, Challenge), SessionId>,
    linked: BTreeSet<NodeKey>,
    twins: twins::Watch,
    runs: BTreeMap<Seq, Kept>,
    serving: BTreeMap<NodeKey, usize>,
    /// Peers that are being sent a range of ledgers.
    serving_ranges: BTreeSet<NodeKey>,
    served_tx: mpsc::Sender<(NodeKey, serve::Served)>,
    served: mpsc::Receiver<(NodeKey, serve::Served)>,
    told_tx: mpsc::Sender<Told>,
    told: mpsc::Receiver<Told>,
    /// Questions of sessions that the contract is asked.
    reads: reads::Reads,
    /// Questions of sessions that the database is asked.
    asking: BTreeMap<SessionId, usize>,
    /// Agreed results whose outputs users in signed mode have not been told of, in order.
    deliveries: VecDeque<Delivery>,
    /// Whether the first of them is under way.
    delivering: bool,
    /// The last result that was agreed on, when its signatures are known.
    last_agreed: Option<ResultCert>,
    report: report::Report,
    /// What the last rounds took.
    rounds: rounds::Rounds,
    traffic: rounds::Traffic,
    metrics: metrics::Metrics,
    disk: disk::Disk,
    /// Who started this process, where it wants to be told.
    service: service::Service,
    records: diverge::Records,
    /// Settles what the contract puts out, where that is asked for.
    settling: Option<settle::Settling>,
    /// The last ledger that is settled, as the last ledger records it; 0 where none is.
    settled_seq: Seq,
    /// The last ledger whose result is agreed on and this node's too.
    delivered_seq: Seq,
    /// Outputs to users in raw mode, where they are final when they are settled.
    release: Option<release::Release>,
    state_kept: backend::Chosen,
    /// What keeps the contract from doing more than computing.
    guards: Vec<crate::contract::Guard>,
    _lock: start::Lock,
}

/// What is remembered of a run.
#[derive(Debug)]
struct Kept {
    /// `None` while it is under way.
    details: Option<Details>,
    /// What it left, where that is little.
    recent: Option<diverge::Recent>,
    /// Until they are delivered.
    outputs: Vec<(UserKey, Bytes)>,
    /// Leaves of `outputs_root`, one for each of them.
    leaves: Vec<Hash>,
    /// Users who sent something, to be told when the run failed.
    senders: Vec<UserKey>,
    /// Peers whose run was compared with this one, once each.
    compared: BTreeSet<NodeKey>,
    /// Whether a quorum has the same result.
    is_agreed: bool,
}

impl Kept {
    fn new(senders: Vec<UserKey>) -> Kept {
        Kept {
            details: None,
            recent: None,
            outputs: Vec::new(),
            leaves: Vec::new(),
            senders,
            compared: BTreeSet::new(),
            is_agreed: false,
        }
    }
}

impl Node {
    /// Runs until `stop` resolves, an operator wants it to end, or something breaks that the node cannot do without. Ends
    /// what it started.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        tokio::pin!(stop);
        let outcome = tokio::select! {
            biased;
            () = &mut stop => Ok(()),
            outcome = self.work() => outcome,
        };
        self.stop().await;
        outcome
    }

    async fn work(&mut self) -> Result<(), NodeError> {
        self.rounds.begin(self.micros());
        // First: what the start would vote and run waits too.
        self.look_at_disk()?;
        self.handle(Event::Start)?;
        if std::mem::take(&mut self.state_was_lost) {
            self.handle(Event::StateLost)?;
        }
        let mut looks = catchup::looks();
        self.tell_service_ready();
        while !self.stops {
            let service_due = self.service.due(*self.changes.borrow());
            let next_timer = self.timers.values().min().map(|at| self.started + Duration::from_millis(*at));
            let wake = next_timer.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let open = self.is_open();
            tokio::select! {
                Some(done) = commit_done(&mut self.committing) => self.committed(done)?,
                Some(event) = self.mesh_events.recv(), if open => {
                    self.on_mesh(event)?;
                    for _ in 0..FRAMES_A_TURN {
                        if !self.is_open() {
                            break;
                        }
                        match self.mesh_events.try_recv() {
                            Ok(event) => self.on_mesh(event)?,
                            Err(_) => break,
                        }
                    }
                }
                Some(from_run) = self.from_runs.recv() => self.on_run(from_run)?,
                Some(found) = self.found.recv() => self.on_found(found)?,
                Some(from_sync) = self.from_sync.recv() => self.on_sync(from_sync)?,
                Some(served) = self.state_served.recv() => self.on_state_served(served),
                Some((peer, served)) = self.served.recv() => self.on_served(peer, served),
                Some(told) = self.told.recv() => self.on_told(told),
                vote = settle::said(&mut self.settling) => self.handle(Event::SettlementVote(vote))?,
                Some(asked) = self.requests.recv() => self.on_request(asked)?,
                Some(asked) = self.http_asks.recv() => self.on_http(asked)?,
                () = sleep_until(wake.into()) => self.on_time()?,
                () = service::at(service_due) => self.tell_service(),
                _ = looks.tick(), if self.must_look() => {
                    self.look_at_disk()?;
                    self.look();
                    self.reads.look(Instant::now());
                    self.look_for_halt();
                    self.look_at_bans();
                    self.tell_changes();
                }
                Some(event) = self.gateway_events.recv(), if open => self.on_user(event)?,
            }
        }
        Ok(())
    }

    /// Whether there is anything that time alone changes, so that it is looked at once a second.
    fn must_look(&self) -> bool {
        self.disk.is_paused()
            || self.bans.nodes().next().is_some()
            || self.core.may_be_behind()
            || self.syncing.is_some()
            || self.progress.began().is_some()
            || self.report.progress.is_some()
            || self.reads.has_places()
            || self.offers.has_any()
            || self.records.is_undecided()
            || self.events.is_heard()
    }

    async fn stop(&mut self) {
        self.service.stopping();
        if let Some(running) = self.running.take() {
            running.abort();
            let _ = running.await;
        }
        if let Some(syncing) = self.syncing.take() {
            syncing.stop().await;
        }
        self.release = None;
        if let Some(gateway) = self.gateway.take() {
            gateway.stop().await;
        }
        if let Some(http) = self.http.take() {
            http.stop().await;
        }
        if let Some(settling) = self.settling.take() {
            settling.stop().await;
        }
        self.reads.stop().await;
        self.mesh.clone().stop().await;
        // Inputs that came since the last commit go on disk too: they survive a restart. So do votes that have not been
        // sent, which is as if they had been lost on the way.
        self.gather_batch();
        let last = std::mem::take(&mut self.batch);
        if let Ok(Err(error)) = self.ledger.commit(last).await {
            error!(error = &error as &dyn std::error::Error, "the last commit failed");
        }
        self.executor.stop().await;
        if let Err(error) = self.ledger.clone().stop().await {
            error!(error = &error as &dyn std::error::Error, "the database did not close in order");
        }
        self.control = None;
    }

    /// Whether there is room for what peers and users want.
    fn is_open(&self) -> bool {
        self.effects.len() < EFFECTS_MAX && self.effects_bytes < EFFECTS_BYTES_MAX
    }

    fn now(&self) -> MonoMs {
        self.micros() / 1_000
    }

    /// Since the process began.
    fn micros(&self) -> rounds::Micros {
        u64::try_from(self.started.elapsed().as_micros()).expect("a process lives less than 500 thousand years")
    }

    // ---- Events -------------------------------------------------------------------------------------------------

    fn handle(&mut self, event: Event) -> Result<(), NodeError> {
        let is_shown = matches!(
            event,
            Event::LinkUp(_) | Event::LinkDown(_) | Event::UserUp(_) | Event::UserDown(_) | Event::Overtime(_)
        );
        let (at, wall) = (self.micros(), wall_ms());
        let effects = self.core.on(event, at / 1_000, wall);
        (self.traffic.sent_bytes, self.traffic.sent_frames) = self.mesh.sent();
        let seen = self.rounds.see(&effects, at, wall, self.traffic);
        self.measure(seen);
        if seen.moved || is_shown {
            self.changed();
        }
        self.effects_bytes += effects.iter().map(weight).sum::<usize>();
        self.persists += effects.iter().filter(|effect| matches!(effect, Effect::Persist(_))).count();
        self.effects.extend(effects);
        self.tell_stage();
        self.perform()
    }

    /// Has what was seen of the rounds counted.
    fn measure(&self, seen: rounds::Seen) {
        for round in self.rounds.last(seen.closed) {
            self.metrics.closed(round);
        }
        for (seq, part) in [(seen.ran, Part::Executing), (seen.agreed, Part::Result)] {
            let round = seq.and_then(|seq| self.rounds.of(seq));
            self.metrics.stage(part, round.and_then(|round| round.took(part)));
        }
        if let Some(round) = self.rounds.overdue().filter(|_| seen.closed == 1) {
            let missing = round.late().filter(|(_, _, by)| by.is_none());
            missing.for_each(|(node, vote, _)| self.metrics.missing(&node, vote));
        }
    }

    /// Something became otherwise that people are shown.
    fn changed(&self) {
        self.changes.send_modify(|change| *change += 1);
    }

    fn on_time(&mut self) -> Result<(), NodeError> {
        let now = self.now();
        let due: Vec<Timer> = self.timers.iter().filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).collect();
        for timer in due {
            self.timers.remove(&timer);
            self.handle(Event::Timer(timer))?;
        }
        Ok(())
    }

    fn on_mesh(&mut self, event: MeshEvent) -> Result<(), NodeError> {
        match event {
            MeshEvent::LinkUp { peer, hello, connected } => {
                info!(peer = %peer.short(), "linked");
                self.events.tell("peer", || json!({ "node": peer.to_string(), "linked": true }));
                self.report.linked(peer);
                self.linked.insert(peer);
                self.tell_sync_of_peers();
                self.handle(Event::LinkUp(peer))?;
                self.watch_for_twins(peer, &hello, connected);
                self.ask_for_line(Some(peer));
                Ok(())
            }
            MeshEvent::LinkDown { peer, reason } => {
                info!(peer = %peer.short(), reason, "link lost");
                self.events
                    .tell("peer", || json!({ "node": peer.to_string(), "linked": false, "why": reason.to_string() }));
                self.linked.remove(&peer);
                self.tell_sync_of_peers();
                self.handle(Event::LinkDown(peer))
            }
            // Its operator knows.
            MeshEvent::Refused { peer, .. } if self.bans.has(&peer) => Ok(()),
            MeshEvent::Refused { peer, reason } => {
                error!(peer = %peer.short(), reason, "no link with this node");
                self.report.refused(peer, reason);
                Ok(())
            }
            MeshEvent::Frame { peer, bytes, .. } => self.on_frame(peer, &bytes),
        }
    }

    fn on_frame(&mut self, peer: NodeKey, bytes: &Bytes) -> Result<(), NodeError> {
        self.traffic.received(bytes.len());
        if wire::is_range(bytes) || wire::is_headers(bytes) {
            self.check_ledgers(peer, bytes.clone());
            return Ok(());
        }
        if wire::is_state_part(bytes) {
            self.on_state_part(peer, bytes.clone());
            return Ok(());
        }
        let message: Message = match wire::decode(bytes) {
            Ok(message) => message,
            Err(error) => {
                self.report.bad_frame(peer, &error);
                return Ok(());
            }
        };
        if let Some(vote) = self.rounds.heard(peer, &message, self.micros()) {
            self.metrics.late(&peer, vote);
        }
        if self.core.is_redundant(&message) {
            return Ok(());
        }
        if !self.is_harmless(peer, &message)
            && let Err(error) = self.check(&message)
        {
            self.report.bad_frame(peer, &error);
            return Ok(());
        }
        debug!(peer = %peer.short(), kind = message.kind(), seq = message.round_seq(), "heard");
        let member = self.core.unl().binary_search(&peer).is_ok();
        match message {
            // Nobody passes the party line on: what does not come from its signer is not taken.
            Message::Npl(npl) if member && npl.from == peer => {
                let Npl { ledger_hash, counter, data } = npl.body;
                if data.len() > NPL_MESSAGE_BYTES_MAX {
                    return Ok(());
                }
                self.line.heard(ledger_hash, counter, NplIn::Data { from: peer, data: data.into() });
                Ok(())
            }
            Message::NplEnd(end) if member && end.from == peer => {
                let NplEnd { ledger_hash, frames } = end.body;
                self.line.heard(ledger_hash, frames, NplIn::End { from: peer, frames });
                Ok(())
            }
            Message::Npl(_) | Message::NplEnd(_) => Ok(()),
            Message::StateGet(get) => {
                self.on_state_get(peer, get);
                Ok(())
            }
            Message::Details(_) | Message::Evidence(_) | Message::Piece(_) if !member => Ok(()),
            Message::Details(details) => {
                self.heard_details(peer, *details);
                Ok(())
            }
            Message::Piece(answer) => {
                let (asked, piece) = *answer;
                self.heard_piece(peer, asked, piece);
                Ok(())
            }
            Message::Twins(twins) if member => self.told_of_twin(peer, twins),
            Message::Twins(_) => Ok(()),
            Message::Evidence(evidence) => {
                // Anybody can make proofs against keys of his own.
                if self.core.unl().binary_search(&evidence.signer).is_err() {
                    return Ok(());
                }
                let is_own = (evidence.signer == self.config.key).then(|| evidence.clone());
                self.keep_evidence(evidence);
                match is_own {
                    Some(evidence) => self.handle(Event::Message(peer, Message::Evidence(evidence))),
                    None => Ok(()),
                }
            }
            message => self.handle(Event::Message(peer, message)),
        }
    }

    fn check(&mut self, message: &Message) -> Result<(), wire::Refused> {
        let checked = self.edge.check(message, &self.core.scope());
        match (message, self.core.former_scope()) {
            // What contradicts itself was said before the UNL changed, maybe.
            (Message::Evidence(_), Some(former)) if checked.is_err() => self.edge.check(message, &former),
            _ => checked,
        }
    }

    /// Whether nothing of a message is used but who sent it over this link, which the link has proven: its signature
    /// need not be checked.
    fn is_harmless(&self, peer: NodeKey, message: &Message) -> bool {
        match message {
            Message::Npl(npl) => npl.from == peer,
            Message::NplEnd(end) => end.from == peer,
            // The sender of one of an older round is shown the ledger that closed it. Those of a later round are signed for
            // a UNL that may not be known here yet: the core checks the few that it keeps when it gets there.
            other => other.round_seq().is_some_and(|seq| seq != self.core.round_seq()),
        }
    }

    fn on_run(&mut self, from_run: FromRun) -> Result<(), NodeError> {
        match from_run {
            FromRun::Line(ledger_hash, out) => {
                self.speak_on_line(ledger_hash, out);
                Ok(())
            }
            FromRun::NotBegun(execution) => self.handle(Event::Overtime(execution)),
            FromRun::NotCopied(to, answer) => {
                self.enqueue(Job::Copy(to, answer));
                Ok(())
            }
            FromRun::Copied => {
                self.running = None;
                self.next_job();
                Ok(())
            }
            FromRun::RolledBack(done) => {
                self.running = None;
                if let Err(error) = done {
                    return self.heal(error);
                }
                self.next_job();
                Ok(())
            }
            FromRun::Kept(seq, kept) => {
                self.running = None;
                self.on_kept(seq, kept);
                self.next_job();
                Ok(())
            }
            FromRun::Ended(ended) => {
                self.running = None;
                self.end_run = None;
                self.swap.ended();
                let ended = match ended {
                    Ok(ended) => ended,
                    Err(error) => return self.heal(error),
                };
                let ran = match ended {
                    Ended::Ran(ran) => *ran,
                    Ended::Cut(execution) => {
                        self.line.end(execution.hash);
                        self.rerun = Some(execution.hash);
                        self.line_counters.remove(&execution.hash);
                        warn!(
                            seq = execution.header.seq,
                            "the contract's run was cut; the nodes find out whether its time was up"
                        );
                        self.handle(Event::Overtime(execution))?;
                        self.next_job();
                        return Ok(());
                    }
                };
                self.line.end(ran.hash);
                self.line_counters.remove(&ran.hash);
                self.report.ran(&ran);
                if let Some(bytes) = ran.state_bytes {
                    self.disk.state_is(bytes);
                }
                let run = self.rounds.ran(&ran);
                self.metrics.ran(&run);
                self.events.tell("run", || self.report.last_run().cloned().unwrap_or_default());
                let seq = ran.result.of_seq;
                let outputs: Vec<(UserKey, Vec<u8>)> = ran.outputs;
                self.batch.push(Write::Outputs { seq, outputs: outputs.clone() });
                let kept = self.runs.get_mut(&seq).expect("noted when the run began");
                kept.details = Some(ran.details);
                kept.recent = ran.recent;
                kept.leaves = ran.leaves;
                kept.outputs = outputs.into_iter().map(|(user, output)| (user, output.into())).collect();
                while self.runs.len() > RUNS_KEPT {
                    self.runs.pop_first();
                }
                self.handle(Event::ExecDone(ran.result))?;
                if self.report.is_split() {
                    self.tell_details(seq);
                }
                self.next_job();
                Ok(())
            }
        }
    }

    /// `state/` is not what it should be: other nodes may have it. What else can go wrong with a run ends the node.
    fn heal(&mut self, error: ExecError) -> Result<(), NodeError> {
        if self.core.unl().iter().all(|node| *node == self.config.key) || !error.is_lost_state() {
            return Err(error.into());
        }
        let what = format!("{error:#}; it is fetched from other nodes");
        error!(
            error = &error as &dyn std::error::Error,
            "state/ is not what it should be; it is fetched from other nodes"
        );
        self.report.alert(Kind::StateLost, what);
        self.handle(Event::StateLost)?;
        // Where it was known before, the fetch stands behind the run that found it out again.
        self.next_job();
        Ok(())
    }

    fn speak_on_line(&mut self, ledger_hash: Hash, out: NplOut) {
        let message = match out {
            NplOut::Data(data) => {
                let counter = self.line_counters.entry(ledger_hash).or_insert(0);
                let npl = Npl { ledger_hash, counter: *counter, data: data.to_vec() };
                *counter += 1;
                Message::Npl(self.sign(npl))
            }
            NplOut::End { frames } => Message::NplEnd(self.sign(NplEnd { ledger_hash, frames })),
        };
        let bytes: Bytes = wire::encode(&message).into();
        self.line.said(ledger_hash, bytes.clone());
        self.mesh.broadcast(Class::Vote, bytes);
    }

    /// Asks what was said on the party line of a run that is done again: it was said to the run before.
    fn ask_for_line(&self, peer: Option<NodeKey>) {
        let Some(ledger) = self.line.running().filter(|ledger| self.rerun == Some(*ledger)) else { return };
        let get = Message::Get(Get::Npl(ledger));
        match peer {
            Some(peer) => self.send(peer, &get),
            None => self.broadcast(&get),
        }
    }

    fn sign<T: Signable>(&self, body: T) -> Signed<T> {
        let sig = self.secret.sign(&body.digest(&self.core.scope()).0);
        Signed { from: self.config.key, body, sig }
    }

    // ---- Effects ------------------------------------------------------------------------------------------------

    fn committed(&mut self, done: Result<(), LedgerError>) -> Result<(), NodeError> {
        self.committing = None;
        self.metrics.committed(self.commit_began.elapsed());
        done?;
        self.perform()
    }

    /// Performs effects in order, up to a `Sync` that has to wait for the disk.
    fn perform(&mut self) -> Result<(), NodeError> {
        let mut closed = false;
        while self.committing.is_none() {
            let Some(effect) = self.effects.pop_front() else { break };
            self.effects_bytes -= weight(&effect);
            match effect {
                Effect::Persist(record) => {
                    self.persists -= 1;
                    self.batch.push(Write::Record(record));
                }
                Effect::Sync => self.commit(),
                Effect::Broadcast(message) => self.broadcast(&message),
                Effect::Send(to, message) => self.send(to, &message),
                Effect::SetTimer(timer, at) => {
                    self.timers.insert(timer, at);
                }
                Effect::Cancel(timer) => {
                    self.timers.remove(&timer);
                }
                Effect::LedgerClosed { ledger, hash, attempt, signed } => {
                    self.ledger_closed(&ledger, hash, attempt, &signed);
                    closed = true;
                }
                Effect::Rollback(_) => self.enqueue(Job::Rollback),
                Effect::Undo { seq, state_root, senders } => self.undo(seq, state_root, senders),
                Effect::EndRun(seq) => self.end_run(seq),
                Effect::Execute(execution) => self.enqueue(Job::Run(execution)),
                Effect::Load(first) => self.load(first),
                Effect::Deliver(agreed) => self.deliver(*agreed),
                Effect::Diverged { mine, agreed } => self.diverged(&mine, &agreed),
                Effect::SyncState { from, why } => self.sync_state(from, why),
                Effect::Differ(results) => self.differ(&results),
                Effect::Split(results) => self.split(&results),
                Effect::SplitHealed(_) => self.resume(),
                Effect::Refuse(input, why) => self.refuse(&input, why),
                Effect::Expired(inputs) => self.expired(&inputs),
                Effect::Serve(to, query) => self.serve(to, query),
                Effect::Lied(peer, lie) => self.lied(peer, lie),
                Effect::Join { next, oldest } => self.join(next, oldest),
                Effect::LedgerPassed(ledger) => self.ledger_passed(&ledger),
                Effect::Silent(silent) => self.silent(&silent),
                Effect::Speaks => self.speaks(),
                Effect::Evidence(evidence) => {
                    self.broadcast(&Message::Evidence((*evidence).clone()));
                    self.keep_evidence(*evidence);
                }
            }
        }
        self.give_answers();
        // What a ledger leaves on the disk is there by now.
        if closed { self.look_at_disk() } else { Ok(()) }
    }

    /// One commit covers all that is to be persisted, also behind later `Sync`s.
    fn commit(&mut self) {
        self.gather_batch();
        if !self.batch.is_empty() {
            self.committing = Some(self.ledger.commit(std::mem::take(&mut self.batch)));
            self.commit_began = Instant::now();
        }
    }

    fn gather_batch(&mut self) {
        // Many ledgers adopted at once have a `Sync` each, of which the first one gathers everything.
        if std::mem::take(&mut self.persists) == 0 {
            return;
        }
        let (records, rest): (VecDeque<Effect>, VecDeque<Effect>) =
            std::mem::take(&mut self.effects).into_iter().partition(|effect| matches!(effect, Effect::Persist(_)));
        self.effects_bytes -= records.iter().map(weight).sum::<usize>();
        self.effects = rest;
        self.batch.extend(records.into_iter().map(|effect| match effect {
            Effect::Persist(record) => Write::Record(record),
            _ => unreachable!("just parted"),
        }));
    }

    fn broadcast(&self, message: &Message) {
        let bytes = wire::encode(message);
        let class = class(message, bytes.len());
        self.mesh.broadcast(class, bytes.into());
    }

    fn send(&self, to: NodeKey, message: &Message) {
        let bytes = wire::encode(message);
        if let Err(error) = self.mesh.send(&to, class(message, bytes.len()), bytes.into()) {
            debug!(peer = %to.short(), kind = message.kind(), %error, "not sent");
        }
    }

    fn enqueue(&mut self, job: Job) {
        self.jobs.push_back(job);
        self.next_job();
    }

    /// Copies the state beside the runs; where that cannot be, between two of them, which wait meanwhile.
    fn copy_state(&self, to: PathBuf, answer: oneshot::Sender<serde_json::Value>) {
        let (executor, told) = (self.executor.clone(), self.from_runs_tx.clone());
        tokio::spawn(async move {
            match executor.copy_pinned(to.clone()).await {
                Ok(Some(copied)) => {
                    // Whoever asked may be gone.
                    let _ = answer.send(copied_json(Ok(copied)));
                }
                Ok(None) => {
                    let _ = told.send(FromRun::NotCopied(to, answer)).await;
                }
                Err(error) => {
                    let _ = answer.send(copied_json(Err(error)));
                }
            }
        });
    }

    fn next_job(&mut self) {
        if self.running.is_some() || (self.swap.is_held() && matches!(self.jobs.front(), Some(Job::Run(_)))) {
            return;
        }
        // What would write waits; it is the first again when there is room.
        let writes = |job: &Job| matches!(job, Job::Run(_) | Job::Sync(..) | Job::Keep(_));
        if self.disk.is_paused() && self.jobs.front().is_some_and(writes) {
            return;
        }
        let Some(job) = self.jobs.pop_front() else { return };
        if let Job::Sync(from, why) = job {
            self.begin_sync(from, why);
            return self.next_job();
        }
        let executor = self.executor.clone();
        let done = self.from_runs_tx.clone();
        self.running = Some(match job {
            Job::Rollback => tokio::spawn(async move {
                let rolled_back = executor.rollback().await;
                let _ = done.send(FromRun::RolledBack(rolled_back)).await;
            }),
            Job::Undo(seq, root) => tokio::spawn(async move {
                let rolled_back = executor.undo(seq, root).await;
                let _ = done.send(FromRun::RolledBack(rolled_back)).await;
            }),
            Job::Copy(to, answer) => {
                let summary = self.core.summary();
                let executed = summary.seq - summary.unexecuted;
                tokio::spawn(async move {
                    let copied = executor.copy_state(to).await.map(|root| (executed, root));
                    let _ = answer.send(copied_json(copied));
                    let _ = done.send(FromRun::Copied).await;
                })
            }
            Job::Keep(seq) => self.keep_job(seq),
            Job::Sync(..) => unreachable!("begun above"),
            Job::Run(execution) => {
                self.swap.begins(execution.header.seq, &self.config.dir);
                let (port, mut ends) = exec::party_line();
                self.line.begin(execution.hash, ends.incoming);
                self.ask_for_line(None);
                self.runs.insert(execution.header.seq, Kept::new(execution.senders()));
                let (end_run, end) = oneshot::channel();
                self.end_run = Some((execution.header.seq, end_run));
                let hash = execution.hash;
                tokio::spawn(async move {
                    let run = executor.run(execution, port, end);
                    tokio::pin!(run);
                    let ended = loop {
                        tokio::select! {
                            biased;
                            Some(out) = ends.out.recv() => {
                                let _ = done.send(FromRun::Line(hash, out)).await;
                            }
                            ended = &mut run => break ended,
                        }
                    };
                    while let Ok(out) = ends.out.try_recv() {
                        let _ = done.send(FromRun::Line(hash, out)).await;
                    }
                    let _ = done.send(FromRun::Ended(ended)).await;
                })
            }
        });
    }

    /// The run of a ledger has no effect: its state is put back, its outputs are dropped.
    fn undo(&mut self, seq: Seq, state_root: Hash, senders: Vec<UserKey>) {
        self.report.timed_out(seq);
        self.metrics.timed_out();
        self.batch.push(Write::Outputs { seq, outputs: Vec::new() });
        let kept = self.runs.entry(seq).or_insert_with(|| Kept::new(senders));
        kept.outputs.clear();
        kept.leaves.clear();
        self.enqueue(Job::Undo(seq, state_root));
    }

    /// Ends the run of a ledger that is under way, or still waits for its turn.
    fn end_run(&mut self, seq: Seq) {
        if let Some((_, end)) = self.end_run.take_if(|(running, _)| *running == seq) {
            // It may have ended by itself just now, and said so.
            let _ = end.send(());
            return;
        }
        let waits = |job: &Job| matches!(job, Job::Run(execution) if execution.header.seq == seq);
        if let Some(Job::Run(execution)) = self.jobs.iter().position(waits).and_then(|at| self.jobs.remove(at)) {
            // Not at once: this effect may be one of the event that is being handled.
            let done = self.from_runs_tx.clone();
            tokio::spawn(async move { done.send(FromRun::NotBegun(execution)).await });
        }
    }

    fn ledger_closed(&mut self, ledger: &ClosedLedger, hash: Hash, attempt: Attempt, signed: &[SignedRef]) {
        let header = &ledger.candidate.header;
        self.tell_agent(header.seq, header.settlement.as_ref());
        self.line.closed(hash);
        self.report.closed(ledger, hash, attempt, self.core.is_far_behind());
        self.events.tell("ledger", || {
            json!({
                "seq": header.seq, "hash": hash.to_string(), "time_ms": header.time_ms, "attempt": attempt,
                "inputs": header.n_inputs, "inputs_bytes": header.inputs_bytes, "users": header.n_users,
            })
        });
        if let Some(change) = &ledger.candidate.unl_change {
            self.unl_changed(ledger.candidate.header.seq, change);
            self.tell_unl_change(&ledger.candidate.header, &ledger.qc, change);
        }
        self.waiting.accepted(ledger.candidate.header.seq, hash, signed);
        self.accept(ledger.candidate.header.seq, hash, signed);
        self.look_at_settlement(&ledger.candidate.header, &ledger.qc);
    }
}

/// What an operator is told who asked for a copy of the state.
fn copied_json(copied: Result<(Seq, Hash), ExecError>) -> serde_json::Value {
    match copied {
        Ok((executed, root)) => serde_json::json!({ "executed": executed, "root": root.to_string() }),
        Err(error) => serde_json::json!({ "error": format!("{:#}", anyhow::Error::new(error)) }),
    }
}

/// What an effect holds in memory that peers or users decide the size of, roughly.
fn weight(effect: &Effect) -> usize {
    match effect {
        Effect::Send(_, Message::Input(input)) | Effect::Broadcast(Message::Input(input)) => input.payload.len(),
        Effect::Send(_, Message::Candidate(body)) => 32 * body.inputs.len(),
        Effect::Send(_, Message::Novel(novel)) => 32 * novel.body.inputs.len(),
        Effect::Persist(Record::Input(input)) => input.payload.len(),
        Effect::Evidence(evidence) => evidence.first.len() + evidence.second.len(),
        _ => 0,
    }
}

fn class(message: &Message, bytes: usize) -> Class {
    if wire::is_bulk(message, bytes) { Class::Bulk } else { Class::Vote }
}

fn wall_ms() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Resolves when the commit under way is done; never when there is none.
async fn commit_done(
    committing: &mut Option<oneshot::Receiver<Result<(), LedgerError>>>,
) -> Option<Result<(), LedgerError>> {
    match committing {
        None => None,
        Some(done) => Some(done.await.unwrap_or(Err(LedgerError::Closed))),
    }
}
