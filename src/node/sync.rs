//! Fetches the contract's state from other nodes, beside the loop: on a thread of its own, which asks, checks and stores.
//! The loop hands it what peers send and who is linked, and hears when the state is there.

mod room;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{runtime::Handle, sync::mpsc, task::JoinHandle};
use tracing::{info, warn};

use super::{ExecError, Executor, Job, Node, NodeError};
use crate::{
    consensus::{
        Event, Lost,
        messages::{Message, StateBody, StateGet, StatePart, StateWant},
    },
    ledger::{Ledger, LedgerError, Standing},
    mesh::{Class, Mesh},
    state::{
        StateError, drop_fetched,
        sync::{Fetch, Goal, Lie, Local, Progress, Stage},
    },
    types::{Hash, NodeKey, Seq},
    wire,
};

/// Frames of peers waiting for the thread. Past it a frame is dropped; its request is made again.
const FRAMES_MAX: usize = 256;
/// Nodes that are asked at a time.
const PEERS_MAX: usize = 4;
/// Requests open with one of them: 2 MiB of blocks.
const OPEN_MAX: usize = 8;
/// How long a node has to answer one of them before others are asked.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Between two requests for an offer to one node.
const OFFER_TIME: Duration = Duration::from_millis(500);
/// A node that did not answer in time is asked again after this.
const LATE_TIME: Duration = Duration::from_secs(20);
/// A node whose own state is good, but old, goes on with it when nobody offered another for so long.
const GIVE_UP_TIME: Duration = Duration::from_secs(10);
/// How long the thread waits for something to happen before it looks around.
const LOOK_TIME: Duration = Duration::from_millis(50);
/// Between two lines of the log that tell how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(5);
/// Numbers of the requests for parts of a state begin so far above those of the requests for offers.
const FIRST_ID: u64 = 1 << 32;
/// Looks over which the speed is taken.
const SPEED_TIME: Duration = Duration::from_secs(3);
/// Fetches that damage on this machine's disk may undo, one after the other, before the node gives up.
const FAILURES_MAX: u32 = 3;
/// After the disk turned out to be full although there was room before, the fetch begins anew after this.
const FULL_TIME: Duration = Duration::from_secs(10);
/// Bytes beyond twice what the state needs, that blocks of earlier tries may take before they are dropped.
const STAGE_SPARE_BYTES: u64 = 256 << 20;

/// From the loop to the thread.
enum ToSync {
    Part(NodeKey, Bytes),
    /// Who is linked now, members first.
    Peers(Vec<NodeKey>),
}

/// From the thread to the loop.
#[derive(Debug)]
pub(super) enum FromSync {
    /// The state after the ledger of this result is on disk.
    Done(Box<Standing>),
    /// A node sent something false.
    Lied(NodeKey, Lie),
    /// This machine's disk or database is at fault.
    Failed(NodeError),
    /// The pause is over: a state from before the run of this ledger, or of a later one, is to be fetched.
    Due(Seq, Lost),
}

/// How far the fetching of a state is, for people.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SyncProgress {
    /// Of the list and the blocks.
    pub fetched: Progress,
    /// The ledger before whose run the state is; `None` until somebody has offered one.
    pub next: Option<Seq>,
    /// Nodes that it comes from.
    pub peers: usize,
    /// Bytes a second, lately.
    pub bytes_per_s: f64,
    /// What it waits for, as a sentence; `None` while it goes on.
    pub waits: Option<String>,
}

/// A state being fetched, as the loop sees it. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Syncing {
    to: SyncSender<ToSync>,
    progress: Arc<Mutex<SyncProgress>>,
    pub why: Lost,
    thread: JoinHandle<()>,
}

impl Syncing {
    /// Ends the thread and waits for its end; what it has fetched is found again.
    pub async fn stop(self) {
        drop(self.to);
        let _ = self.thread.await;
    }

    /// How far it is.
    pub fn look(&self) -> SyncProgress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Node {
    /// Fetches the state from before the run of `from`, or of a later ledger, once what there is was kept for people.
    pub(super) fn sync_state(&mut self, from: Seq, why: Lost) {
        self.jobs.retain(|job| matches!(job, Job::Keep(_)));
        let Some(pause) = self.report.pause().filter(|_| why == Lost::Diverged) else {
            self.jobs.push_back(Job::Sync(from, why));
            return self.next_job();
        };
        warn!(pause_s = pause.as_secs(), "this node diverges again and again; it fetches the state after a pause");
        self.sync_due = Some(Instant::now() + pause);
        let due = self.from_sync_tx.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = due.send(FromSync::Due(from, why)).await;
        });
    }

    pub(super) fn begin_sync(&mut self, from: Seq, why: Lost) {
        let (to, frames) = sync_channel(FRAMES_MAX);
        let progress = Arc::new(Mutex::new(SyncProgress::default()));
        info!(from, why = why_text(why), "fetching the state from other nodes");
        let summary = self.core.summary();
        let work = Thread {
            had: (why == Lost::Behind).then_some(summary.seq - summary.unexecuted),
            began: Instant::now(),
            from,
            frames,
            to_loop: self.from_sync_tx.clone(),
            mesh: self.mesh.clone(),
            ledger: self.ledger.clone(),
            executor: self.executor.clone(),
            runtime: Handle::current(),
            dir: self.config.dir.clone(),
            progress: progress.clone(),
            peers: Vec::new(),
            offers: BTreeMap::new(),
            asked: BTreeMap::new(),
            refused: BTreeMap::new(),
            next_id: 1,
            told: Instant::now(),
            speeds: Vec::new(),
            goal: None,
            is_drawn: self.draw.is_some(),
            failures: 0,
            waits: None,
        };
        let thread = tokio::task::spawn_blocking(move || work.run());
        self.syncing = Some(Syncing { to, progress, why, thread });
        self.tell_sync_of_peers();
    }

    /// Tells the thread who is linked.
    pub(super) fn tell_sync_of_peers(&mut self) {
        let Some(syncing) = &self.syncing else { return };
        let (mut members, strangers): (Vec<NodeKey>, Vec<NodeKey>) =
            self.linked.iter().partition(|peer| self.core.unl().binary_search(peer).is_ok());
        members.extend(strangers);
        let _ = syncing.to.try_send(ToSync::Peers(members));
    }

    /// A peer's answer, which nobody looked at yet.
    pub(super) fn on_state_part(&mut self, peer: NodeKey, bytes: Bytes) {
        if let Some(syncing) = &self.syncing {
            let _ = syncing.to.try_send(ToSync::Part(peer, bytes));
        }
    }

    pub(super) fn on_sync(&mut self, from_sync: FromSync) -> Result<(), NodeError> {
        match from_sync {
            FromSync::Lied(peer, lie) => {
                warn!(peer = %peer, what = %lie, "a node sent something false as a part of the state; it is not asked again");
                self.report.lied(peer, lie.to_string());
                Ok(())
            }
            FromSync::Failed(error) => Err(error),
            FromSync::Due(from, why) => {
                // Not where ledgers were passed over meanwhile.
                if self.sync_due.take().is_some() {
                    self.jobs.push_back(Job::Sync(from, why));
                    self.next_job();
                }
                Ok(())
            }
            // It was begun before ledgers were passed over.
            FromSync::Done(_) if self.syncing.is_none() => Ok(()),
            FromSync::Done(standing) => {
                self.syncing = None;
                let Standing { result, users, unl } = *standing;
                info!(seq = result.of_seq, state = %result.state_root.short(), "the state is fetched; going on from it");
                self.report.state_fetched();
                self.metrics.state_fetched();
                self.handle(Event::Synced { result: Box::new(result), users, unl })
            }
        }
    }
}

/// Why, for people.
pub(super) fn why_text(why: Lost) -> &'static str {
    match why {
        Lost::Diverged => "this node's run led to another state than the network's",
        Lost::Damaged => "state/ was changed or damaged",
        Lost::Behind => "it is quicker than running all ledgers that wait",
        Lost::Joined => "this node has joined the chain behind ledgers whose contents nobody keeps",
    }
}

/// What a node offered.
#[derive(Debug, Clone)]
struct Offer {
    root: Hash,
    entries: u64,
    standing: Standing,
    /// When it last answered anything.
    heard: Instant,
}

struct Thread {
    /// The ledger after which the state is that is here, where that one is good.
    had: Option<Seq>,
    began: Instant,
    from: Seq,
    frames: Receiver<ToSync>,
    to_loop: mpsc::Sender<FromSync>,
    mesh: Mesh,
    ledger: Ledger,
    executor: Executor,
    runtime: Handle,
    dir: PathBuf,
    progress: Arc<Mutex<SyncProgress>>,
    peers: Vec<NodeKey>,
    offers: BTreeMap<NodeKey, Offer>,
    /// When each node was last asked for an offer, and by which request.
    asked: BTreeMap<NodeKey, (Instant, u64)>,
    /// Who is not asked until then; liars for ever.
    refused: BTreeMap<NodeKey, Option<Instant>>,
    next_id: u64,
    told: Instant,
    speeds: Vec<(Instant, u64)>,
    /// The state that is being fetched.
    goal: Option<Standing>,
    /// People see a bar, and need no lines of the log.
    is_drawn: bool,
    /// How often damage on the disk made it begin anew.
    failures: u32,
    /// What it waits for.
    waits: Option<String>,
}

/// Why the thread ends without a state.
enum Stop {
    /// Nobody waits for it any more.
    Unwanted,
    Failed(NodeError),
}

impl From<ExecError> for Stop {
    fn from(error: ExecError) -> Stop {
        Stop::Failed(error.into())
    }
}

impl From<StateError> for Stop {
    fn from(error: StateError) -> Stop {
        Stop::Failed(error.into())
    }
}

impl From<LedgerError> for Stop {
    fn from(error: LedgerError) -> Stop {
        Stop::Failed(error.into())
    }
}

impl Thread {
    fn run(mut self) {
        let told = loop {
            match self.fetch().or_else(|stop| self.mend(stop)) {
                Ok(Some(standing)) => break FromSync::Done(Box::new(standing)),
                Ok(None) => {}
                Err(Stop::Failed(error)) => break FromSync::Failed(error),
                Err(Stop::Unwanted) => return,
            }
        };
        let _ = self.to_loop.blocking_send(told);
    }

    /// Makes ready to begin anew after what can be mended here: a full disk is waited for, what is damaged is dropped.
    fn mend(&mut self, stop: Stop) -> Result<Option<Standing>, Stop> {
        let error = match &stop {
            Stop::Failed(NodeError::State(error) | NodeError::Exec(ExecError::State(error))) => error,
            Stop::Failed(_) | Stop::Unwanted => return Err(stop),
        };
        self.offers.clear();
        self.goal = None;
        if error.is_full() {
            // Somebody else filled it meanwhile: how much there must be is told again when the list is known.
            let what = format!("the disk is full ({error}): make room, and the fetch of the state goes on by itself");
            self.wait_for(Some(what), Progress::default());
            let until = Instant::now() + FULL_TIME;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                match self.frames.recv_timeout(left) {
                    // Who is linked is of use later; an answer to what was asked before is not.
                    Ok(ToSync::Peers(peers)) => self.peers = peers,
                    Ok(ToSync::Part(..)) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Err(Stop::Unwanted),
                }
            }
            return Ok(None);
        }
        self.failures += 1;
        if !error.is_damage() || self.failures > FAILURES_MAX {
            return Err(stop);
        }
        warn!(error = error as &dyn std::error::Error, "what was fetched of the state is damaged; it is fetched anew");
        drop_fetched(&self.dir)?;
        Ok(None)
    }

    fn fetch(&mut self) -> Result<Option<Standing>, Stop> {
        let mut stage = Stage::open(&self.dir)?;
        let mut local = Some(self.runtime.block_on(self.executor.survey())?);
        let mut fetch: Option<Fetch> = None;
        loop {
            match self.frames.recv_timeout(LOOK_TIME) {
                Ok(first) => {
                    self.heard(first, &mut fetch, &mut stage)?;
                    while let Ok(next) = self.frames.try_recv() {
                        self.heard(next, &mut fetch, &mut stage)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Stop::Unwanted),
            }
            self.drop_late(&mut fetch);
            self.ask_offers();
            if let Some(stuck) = fetch.take_if(|fetch| fetch.is_stuck(&self.roots())) {
                // Nobody has that state any more: another one differs little.
                self.next_id = self.next_id.max(stuck.next_id());
                local = Some(stuck.into_local());
                self.offers.clear();
            }
            if fetch.is_none() {
                fetch = self.begin(&mut local, &mut stage)?;
            }
            if fetch.is_none()
                && self.began.elapsed() >= GIVE_UP_TIME
                && let Some(had) = self.had
                && let Some(standing) = self.runtime.block_on(self.ledger.standing(had))?
            {
                info!(from = had + 1, "no node offers a state; running all ledgers that wait");
                return Ok(Some(standing));
            }
            let Some(fetching) = &mut fetch else { continue };
            let short = fetching.need().and_then(|need| room::look(&self.dir, need));
            self.wait_for(short.map(|short| short.to_string()), fetching.progress());
            if self.waits.is_some() {
                self.tell(fetching);
                continue;
            }
            if fetching.is_done() {
                let standing = self.goal.take().expect("chosen when it began");
                let (next, target) = (standing.result.of_seq + 1, fetching.target());
                self.runtime.block_on(self.executor.adopt(next, target, stage))?;
                return Ok(Some(standing));
            }
            self.ask(fetching);
            self.tell(fetching);
        }
    }

    fn roots(&self) -> BTreeMap<NodeKey, Hash> {
        self.offers.iter().map(|(peer, offer)| (*peer, offer.root)).collect()
    }

    fn heard(&mut self, heard: ToSync, fetch: &mut Option<Fetch>, stage: &mut Stage) -> Result<(), Stop> {
        match heard {
            ToSync::Peers(peers) => {
                let gone = |peer: &NodeKey| !peers.contains(peer);
                let left: Vec<NodeKey> = self.offers.keys().copied().filter(gone).collect();
                for peer in left {
                    self.forget(&peer, fetch);
                }
                self.peers = peers;
                Ok(())
            }
            ToSync::Part(peer, bytes) => {
                let Ok(Message::StatePart(part)) = wire::decode(&bytes) else {
                    self.lied(peer, Lie::Shape, fetch);
                    return Ok(());
                };
                self.part(peer, part, fetch, stage)
            }
        }
    }

    fn part(
        &mut self,
        peer: NodeKey,
        part: StatePart,
        fetch: &mut Option<Fetch>,
        stage: &mut Stage,
    ) -> Result<(), Stop> {
        if self.asked.get(&peer).is_some_and(|(_, id)| *id == part.id) {
            if let StateBody::Offer { next, root, entries, .. } = part.body {
                self.offered(peer, next, root, entries, fetch)?;
            }
            return Ok(());
        }
        let Some(fetch_now) = fetch.as_mut() else { return Ok(()) };
        let lacks = part.body == StateBody::Nothing;
        match fetch_now.take(peer, part, stage)? {
            Ok(false) => {}
            Ok(true) if lacks => {
                // What it offered had its time.
                self.forget(&peer, fetch);
            }
            Ok(true) => {
                if let Some(offer) = self.offers.get_mut(&peer) {
                    offer.heard = Instant::now();
                }
            }
            Err(lie) => self.lied(peer, lie, fetch),
        }
        Ok(())
    }

    /// A node offers the state before the run of `next`: its root is what this chain says, or it lies.
    fn offered(
        &mut self,
        peer: NodeKey,
        next: Seq,
        root: Hash,
        entries: u64,
        fetch: &mut Option<Fetch>,
    ) -> Result<(), Stop> {
        if next < self.from.max(1) || self.refused.contains_key(&peer) {
            return Ok(());
        }
        // A ledger that is not closed here yet: it is asked again in a moment.
        let Some(standing) = self.runtime.block_on(self.ledger.standing(next - 1))? else { return Ok(()) };
        if standing.result.state_root != root {
            self.lied(peer, Lie::Hash, fetch);
            return Ok(());
        }
        self.offers.insert(peer, Offer { root, entries, standing, heard: Instant::now() });
        if let Some(fetch) = fetch {
            fetch.renewed(&peer);
        }
        Ok(())
    }

    fn forget(&mut self, peer: &NodeKey, fetch: &mut Option<Fetch>) {
        self.offers.remove(peer);
        if let Some(fetch) = fetch {
            fetch.drop_peer(peer);
        }
    }

    fn lied(&mut self, peer: NodeKey, lie: Lie, fetch: &mut Option<Fetch>) {
        self.forget(&peer, fetch);
        self.refused.insert(peer, None);
        let _ = self.to_loop.blocking_send(FromSync::Lied(peer, lie));
    }

    fn drop_late(&mut self, fetch: &mut Option<Fetch>) {
        let now = Instant::now();
        let open = |peer: &NodeKey| fetch.as_ref().is_some_and(|fetch| fetch.open_of(peer) > 0);
        let is_late = |(peer, offer): &(&NodeKey, &Offer)| now - offer.heard > ANSWER_TIME && open(peer);
        let late: Vec<NodeKey> = self.offers.iter().filter(is_late).map(|(peer, _)| *peer).collect();
        for peer in late {
            info!(peer = %peer.short(), "a node does not send what it offered of the state");
            self.forget(&peer, fetch);
            self.refused.insert(peer, Some(now + LATE_TIME));
        }
        self.refused.retain(|_, until| until.is_none_or(|until| until > now));
    }

    fn ask_offers(&mut self) {
        let now = Instant::now();
        for peer in self.peers.clone() {
            let is_due = self.asked.get(&peer).is_none_or(|(at, _)| now - *at >= OFFER_TIME);
            if self.offers.len() >= PEERS_MAX || !is_due {
                continue;
            }
            if !self.offers.contains_key(&peer) && !self.refused.contains_key(&peer) {
                let id = self.next_id;
                self.next_id += 1;
                self.asked.insert(peer, (now, id));
                self.send(peer, StateGet { id, root: Hash::ZERO, want: StateWant::Offer(self.from) });
            }
        }
    }

    /// Chooses the newest state that is offered.
    fn begin(&mut self, local: &mut Option<Local>, stage: &mut Stage) -> Result<Option<Fetch>, Stop> {
        let Some(offer) = self.offers.values().max_by_key(|offer| offer.standing.result.of_seq).cloned() else {
            return Ok(None);
        };
        let Some(local) = local.take() else { return Ok(None) };
        let goal = Goal { root: offer.root, entries: offer.entries };
        self.goal = Some(offer.standing.clone());
        // Answers to the requests of an earlier fetch are told by their numbers.
        let mut fetch = Fetch::new(goal, local, self.next_id + FIRST_ID, stage)?;
        if stage.bytes() > 2 * fetch.progress().bytes_total + STAGE_SPARE_BYTES && fetch.progress().bytes_total > 0 {
            stage.empty()?;
            fetch = Fetch::new(goal, fetch.into_local(), self.next_id + FIRST_ID, stage)?;
        }
        Ok(Some(fetch))
    }

    fn ask(&mut self, fetch: &mut Fetch) {
        let roots = self.roots();
        loop {
            let mut asked = false;
            // In turn, so that all have the same share.
            for (peer, root) in &roots {
                if fetch.open_of(peer) < OPEN_MAX
                    && let Some(get) = fetch.ask(*peer, *root)
                {
                    if fetch.open_of(peer) == 1
                        && let Some(offer) = self.offers.get_mut(peer)
                    {
                        offer.heard = Instant::now();
                    }
                    self.send(*peer, get);
                    asked = true;
                }
            }
            if !asked {
                return;
            }
        }
    }

    fn send(&self, to: NodeKey, get: StateGet) {
        // What does not go out is asked of another when its time is over.
        let _ = self.mesh.send(&to, Class::Bulk, wire::encode(&Message::StateGet(get)).into());
    }

    /// Tells people what it waits for, and when it goes on.
    fn wait_for(&mut self, what: Option<String>, fetched: Progress) {
        match (&self.waits, &what) {
            (None, Some(what)) => warn!("{what}"),
            (Some(_), None) => info!("there is room for the state now; going on"),
            _ => {}
        }
        if self.waits != what {
            self.waits = what.clone();
            let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            (progress.waits, progress.fetched) = (what, fetched);
        }
    }

    /// Tells people how far it is.
    fn tell(&mut self, fetch: &Fetch) {
        let (now, fetched) = (Instant::now(), fetch.progress());
        self.speeds.push((now, fetched.bytes));
        while self.speeds.first().is_some_and(|(at, _)| now - *at > SPEED_TIME) {
            self.speeds.remove(0);
        }
        let (since, before) = self.speeds[0];
        let seconds = (now - since).as_secs_f64();
        let bytes_per_s = if seconds > 0.0 { fetched.bytes.saturating_sub(before) as f64 / seconds } else { 0.0 };
        let next = self.goal.as_ref().map(|standing| standing.result.of_seq + 1);
        let progress = SyncProgress { fetched, next, peers: self.offers.len(), bytes_per_s, waits: self.waits.clone() };
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
        if now - self.told >= TOLD_EVERY && self.waits.is_none() && !self.is_drawn {
            self.told = now;
            let Progress { bytes, bytes_total, entries, entries_total } = fetched;
            info!(
                bytes,
                bytes_total,
                entries,
                entries_total,
                peers = self.offers.len(),
                mb_per_s = (bytes_per_s / 1e6).round(),
                "fetching the state"
            );
        }
    }
}
