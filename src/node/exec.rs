//! One run of the contract with its state: pre-state kept, contract run, post-state hashed or rolled back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use nix::sys::statvfs::statvfs;
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, error, warn};

use super::{
    diverge::{self, KeptRun, Left, Recent, ToKeep},
    reads,
};
use crate::{
    config::{self, Config},
    consensus::{
        Execution,
        details::{Changed, DETAILS_MAX, Details},
        header::{ExecResult, Input, Origin},
        merkle,
    },
    contract::{
        End, LaunchError, Launcher, Limits, NplIn, NplOut, NplPort, Overlay, RunReport, RunSpec, UserInput,
        fdlist::Facts, npl,
    },
    state::{
        Pin, Quota, Replica, RunMount, StateError, StateStore, folder,
        sync::{Local, Stage, Target},
    },
    types::{Auth, Hash, LimitKind, NodeKey, Seq, Status, UserKey},
};

/// For a run that may take its time: long enough for everybody, and short enough for arithmetic on clocks.
const UNLIMITED: Duration = Duration::from_secs(365 * 24 * 3600);
/// Runs of one ledger that this machine, not the contract, made fail, before the node gives up.
const LOCAL_FAILURES_MAX: u32 = 3;
/// What a contract got that killed its launcher, and with it itself, in all of them.
const SIGKILL: i32 = 9;
/// The part of the room on the disk that a run may not use: what it writes is copied before the next one. Past it the run
/// is ended.
const DISK_KEPT_PART: u128 = 2;
/// How often it is looked how much room there is.
const DISK_LOOK_EVERY: Duration = Duration::from_millis(10);
/// Files that can still be made, below which a disk counts as full.
const DISK_FREE_FILES_MIN: u128 = 256;
/// Messages of the party line between the run and the node. Past it the contract's next write waits.
const NPL_OUT_MAX: usize = 256;
/// Messages of peers waiting for the run. Past it they are dropped: the party line is best effort.
pub const NPL_IN_MAX: usize = 8_192;

/// Bytes that must be free where the state is, before a run and behind it. With fewer a write of the contract may have
/// failed, here and nowhere else: what came of that is nothing to vote for, so the node stops. The next start runs the
/// ledger again.
const DISK_FREE_BYTES_MIN: u128 = 8 << 20;

/// Why a run has no result. It is this machine's fault, so nothing is voted.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The contract could not be run.
    #[error("cannot run the contract")]
    Launch(#[from] LaunchError),
    /// Its state could not be kept, hashed or restored.
    #[error("cannot keep the contract's state")]
    State(#[from] StateError),
    /// The contract may have been denied what other nodes' machines gave it.
    #[error(
        "the disk is full: {path} has {free_kib} KiB and room for {free_files} files left, and a run of the contract needs {} \
         KiB and {DISK_FREE_FILES_MIN} files; nothing is lost: make room and start the node again",
        DISK_FREE_BYTES_MIN >> 10
    )]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// What is left.
        free_kib: u128,
        /// What is left of files.
        free_files: u128,
    },
    /// The state is not the one that the last ledger left.
    #[error(
        "state/ has root {found}, but the last executed ledger left {expected}: somebody changed it; undo the change, or go \
         on with a copy of another node's as docs/operating.md, \"Too far behind\", says"
    )]
    WrongState {
        /// By the chain.
        expected: Hash,
        /// On disk.
        found: Hash,
    },
}

impl ExecError {
    /// Whether `state/`, or what is kept of the state before, is not what it should be, so that another node's is needed.
    pub fn is_lost_state(&self) -> bool {
        match self {
            ExecError::WrongState { .. } => true,
            ExecError::State(error) => error.is_damage(),
            ExecError::Launch(_) | ExecError::DiskFull { .. } => false,
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself.
    Ran(Box<Ran>),
    /// The time limit struck on this machine's clock, or the run was ended from outside. The state is as before.
    Cut(Arc<Execution>),
}

/// What one run led to.
#[derive(Debug)]
pub struct Ran {
    /// The ledger's hash.
    pub hash: Hash,
    /// What to vote.
    pub result: ExecResult,
    /// What each user gets, ascending by user; empty unless the status is `Ok`.
    pub outputs: Vec<(UserKey, Vec<u8>)>,
    /// Leaves of `outputs_root`, one for each of them.
    pub leaves: Vec<Hash>,
    /// For comparing with other nodes.
    pub details: Details,
    /// The same, to the byte, where it is little.
    pub(super) recent: Option<Recent>,
    /// From the closed ledger to the post-state on disk.
    pub elapsed: Duration,
    /// The part of it in which the contract ran.
    pub contract: Duration,
    /// The part of it in which what the contract left was hashed.
    pub hashing: Duration,
    /// Bytes of all files of the state after it; `None` where it was rolled back.
    pub state_bytes: Option<u64>,
}

/// The state and the root it should have.
struct Held {
    state: Box<dyn StateStore>,
    root: Hash,
    /// The last ledger whose run was begun: the pre-state that is kept is the one before it.
    begun: Option<Seq>,
    /// The ledger that `state/` is the state after; `None` while a run is under way, or was cut.
    after: Option<Seq>,
    /// When `state/` was last looked at, and how long that took.
    looked: (Instant, Duration),
}

/// Between two looks at `state/` before a run, whether somebody changed it meanwhile. A change that is made between a look
/// and the run shows as a result that differs.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Looks take at most this part of the time.
const LOOK_SHARE: u32 = 50;

/// Runs ledgers, one after the other.
#[derive(Clone)]
pub struct Executor {
    launcher: Launcher,
    held: Arc<Mutex<Held>>,
    plan: Arc<Plan>,
}

/// What is alike in all runs.
struct Plan {
    binary: PathBuf,
    args: Vec<String>,
    dir: PathBuf,
    env: Vec<(String, String)>,
    limits: Limits,
    quota: Quota,
    npl_window: Duration,
    me: NodeKey,
    contract: Hash,
    private: Option<PathBuf>,
}

/// The node's ends of a run's party line.
pub struct NplEnds {
    /// What this node's contract wrote.
    pub out: mpsc::Receiver<NplOut>,
    /// For what the peers' contracts wrote.
    pub incoming: mpsc::Sender<NplIn>,
}

/// Both ends of a party line.
pub fn party_line() -> (NplPort, NplEnds) {
    let (out_tx, out) = mpsc::channel(NPL_OUT_MAX);
    let (incoming, incoming_rx) = mpsc::channel(NPL_IN_MAX);
    (NplPort { out: out_tx, incoming: incoming_rx }, NplEnds { out, incoming })
}

impl Executor {
    /// `root` is what the state should be: after the last executed ledger, or genesis.
    /// `executed` is that ledger: what is kept is the state before its run, or before a later one that was cut.
    pub fn new(launcher: Launcher, state: Box<dyn StateStore>, root: Hash, executed: Seq, config: &Config) -> Executor {
        let contract = &config.contract;
        let private = config.dir.join("private");
        let plan = Plan {
            binary: config.binary.clone(),
            args: config.argv.iter().skip(1).cloned().collect(),
            dir: config.dir.clone(),
            env: contract.env.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            limits: Limits {
                processes: reads::beside(contract.processes, config.user.reads_max),
                log_files: config.log.contract_files,
                ..limits_of(contract)
            },
            quota: quota_of(contract),
            npl_window: Duration::from_millis(contract.npl_window_ms),
            me: config.key,
            contract: contract.id,
            private: private.is_dir().then_some(private),
        };
        Executor {
            launcher,
            held: Arc::new(Mutex::new(Held {
                state,
                root,
                begun: (executed > 0).then_some(executed),
                after: Some(executed),
                looked: (Instant::now(), Duration::ZERO),
            })),
            plan: Arc::new(plan),
        }
    }

    /// Whether state/ is what the chain says, after an orderly end or a crash between two runs.
    pub async fn verify(&self) -> Result<(), ExecError> {
        self.blocking(|held| {
            let found = held.state.scan(true)?.root;
            if found == held.root { Ok(()) } else { Err(ExecError::WrongState { expected: held.root, found }) }
        })
        .await
    }

    /// Makes state/ what it was before the run that was cut, if that run had begun at all.
    pub async fn rollback(&self) -> Result<(), ExecError> {
        self.blocking(|held| {
            // The copy is brought up to the pre-state before a run begins: another root means that it had not.
            match held.state.snapshot_info() {
                Some((_, root)) if root == held.root => held.state.rollback().map(|_| ()).map_err(ExecError::from),
                _ => {
                    let found = held.state.scan(true)?.root;
                    if found == held.root { Ok(()) } else { Err(ExecError::WrongState { expected: held.root, found }) }
                }
            }
        })
        .await
    }

    /// Copies the state from before the last run that was begun to a folder that must not exist, while that run and others
    /// go on. Gives the ledger after which it was so, and its root; `None`, and no folder, where too little is known of it,
    /// too many read it, or too much changes meanwhile.
    pub async fn copy_pinned(&self, to: PathBuf) -> Result<Option<(Seq, Hash)>, ExecError> {
        let pinned = match self.pin().await {
            Err(ExecError::State(StateError::NoSnapshot | StateError::TooManyPins)) => None,
            pinned => pinned?,
        };
        // Before the first run there is no ledger after which it is so.
        let Some((next, pin)) = pinned.filter(|(next, _)| *next > 1) else { return Ok(None) };
        let copy = move || {
            // Beside the copy, as it needs the time of that file system.
            let clock = to.with_extension("clock");
            let copied = Replica::make(&to, &clock).and_then(|mut replica| replica.become_state(&pin));
            let cleared = std::fs::remove_file(&clock);
            let error = match copied {
                Ok(()) => return Ok(Some((next - 1, pin.root()))),
                Err(error) => error,
            };
            if let Err(left) = cleared.and_then(|()| std::fs::remove_dir_all(&to)) {
                debug!(%left, "a part of a copy of the state stays");
            }
            if matches!(error, StateError::PinLost { .. }) { Ok(None) } else { Err(error.into()) }
        };
        tokio::task::spawn_blocking(copy).await.expect("copying does not panic")
    }

    /// Copies the state to a folder that must not exist, between two runs, and gives its root.
    pub async fn copy_state(&self, to: PathBuf) -> Result<Hash, ExecError> {
        let from = self.plan.dir.join("state");
        self.blocking(move |held| {
            folder::copy(&from, &to, held.root)?;
            Ok(held.root)
        })
        .await
    }

    /// Pins the state from before the last run that was begun, with that ledger; `None` when there was none.
    pub async fn pin(&self) -> Result<Option<(Seq, Pin)>, ExecError> {
        self.blocking(|held| {
            let Some((kept, _)) = held.state.snapshot_info() else { return Ok(None) };
            // Runs that changed nothing since then have the same pre-state.
            let next = held.begun.map_or(kept, |begun| begun.max(kept));
            Ok(Some((next, held.state.pin()?)))
        })
        .await
    }

    /// The last ledger whose run is agreed on, as far as its state is here, and that state's root. `agreed` is the last one
    /// with an agreed result, and the root of that.
    pub async fn last(&self, agreed: Option<(Seq, Hash)>) -> Result<Option<(Seq, Hash)>, ExecError> {
        self.blocking(move |held| Ok(last(held, agreed).map(|(seq, root, _)| (seq, root)))).await
    }

    /// The same state, pinned, and how long the thread that runs need too was taken for that.
    pub async fn pin_last(&self, agreed: Option<(Seq, Hash)>) -> Result<Option<(Seq, Pin, Duration)>, ExecError> {
        self.blocking(move |held| {
            let begun = Instant::now();
            let Some((seq, _, is_now)) = last(held, agreed) else { return Ok(None) };
            match if is_now { held.state.pin_now() } else { held.state.pin() } {
                Ok(pin) => Ok(Some((seq, pin, begun.elapsed()))),
                Err(StateError::NoSnapshot | StateError::NotScanned) => Ok(None),
                Err(other) => Err(other.into()),
            }
        })
        .await
    }

    /// The state after the last run that is over, agreed on or not, pinned.
    pub async fn pin_latest(&self) -> Result<Option<(Seq, Pin, Duration)>, ExecError> {
        let latest = self.blocking(|held| Ok(held.after.map(|after| (after, held.root)))).await?;
        self.pin_last(latest).await
    }

    /// What is here of a state that is to be fetched.
    pub async fn survey(&self) -> Result<Local, ExecError> {
        self.blocking(|held| Ok(held.state.survey()?)).await
    }

    /// Makes a state that was fetched the one before the run of `next`.
    pub async fn adopt(&self, next: Seq, target: Target, stage: Stage) -> Result<(), ExecError> {
        self.blocking(move |held| {
            held.state.adopt(next, &target, &stage)?;
            (held.root, held.begun, held.after) = (target.root(), Some(next), Some(next - 1));
            Ok(())
        })
        .await
    }

    /// Makes state/ what it was before the run of `seq`, which had this root: the run has no effect.
    pub async fn undo(&self, seq: Seq, root: Hash) -> Result<(), ExecError> {
        self.put_back(root).await?;
        self.blocking(move |held| {
            held.after = Some(seq);
            Ok(())
        })
        .await
    }

    /// Makes state/ what it was before the last run, which had this root.
    async fn put_back(&self, root: Hash) -> Result<(), ExecError> {
        self.blocking(move |held| {
            (held.root, held.after) = (root, None);
            Ok(())
        })
        .await?;
        self.rollback().await
    }

    /// Keeps what a run left under diag/. `fresh` says that `state/` was left by that run in this process; else the process
    /// began later. `None` when the state has moved on.
    pub(super) async fn keep(&self, run: ToKeep, fresh: bool) -> Result<Option<KeptRun>, ExecError> {
        let dir = self.plan.dir.clone();
        self.blocking(move |held| {
            let recent = run.recent.clone();
            let left = match &recent {
                // What an earlier process kept is all there is when the state has become another since.
                _ if !fresh && held.state.scan(false)?.root != run.result.state_root => {
                    return Ok(diverge::read(&dir, run.seq).filter(|known| known.details.result == run.result));
                }
                _ if !fresh => Left::State(&*held.state),
                _ if held.root == run.result.state_root => Left::State(&*held.state),
                Some(recent) => Left::Memory(recent),
                None => return Ok(None),
            };
            Ok(Some(diverge::keep(&dir, &left, run)?))
        })
        .await
    }

    /// Ends the launcher, and remembers what is known of the files for a quick start.
    pub async fn stop(&self) {
        if let Err(error) = self.launcher.stop().await {
            warn!(error = &error as &dyn std::error::Error, "the contract launcher does not end");
        }
        let saved = self.blocking(|held| Ok(held.state.save_cache()?)).await;
        if let Err(error) = saved {
            warn!(%error, "cannot keep the cache of state/; the next start reads everything");
        }
    }

    /// Runs the contract for one closed ledger, until it has ended or `end` resolves. Dropping the future kills the run;
    /// the state is then to be rolled back.
    pub async fn run(
        &self,
        execution: Arc<Execution>,
        port: NplPort,
        end: oneshot::Receiver<()>,
    ) -> Result<Ended, ExecError> {
        let before = self.blocking(|held| Ok(held.root)).await?;
        let ran = {
            let run = std::pin::pin!(self.run_to_end(&execution, port));
            tokio::select! {
                biased;
                ran = run => ran?,
                Ok(()) = end => None,
            }
        };
        if let Some(ran) = ran {
            return Ok(Ended::Ran(Box::new(ran)));
        }
        self.launcher.settled().await?;
        // It may have been ended when its post-state was there already.
        self.put_back(before).await?;
        Ok(Ended::Cut(execution))
    }

    /// `None`: over its time, and killed.
    async fn run_to_end(&self, execution: &Execution, port: NplPort) -> Result<Option<Ran>, ExecError> {
        let started = std::time::Instant::now();
        let seq = execution.header.seq;
        let room = self.check_room()?;
        let overlay = self
            .blocking(move |held| {
                look(held)?;
                let root = held.root;
                (held.begun, held.after) = (Some(seq), None);
                // Where the runs since then changed nothing, what is kept is this run's pre-state too.
                if held.state.snapshot_info().is_none_or(|(_, kept)| kept != root) {
                    match held.state.snapshot(seq, root) {
                        Err(StateError::NotScanned) => {
                            held.state.scan(true)?;
                            held.state.snapshot(seq, root)?;
                        }
                        done => done?,
                    }
                }
                begin(held)
            })
            .await?;

        // One that is done again, because elsewhere it got through, may have what there is.
        let kept = if execution.is_limited { room.kept() } else { Room::MIN };
        let launched = tokio::select! {
            biased;
            report = self.launch(execution, port, overlay) => Some(report?),
            room = self.room_below(kept) => {
                warn!(seq, free_kib = room.bytes >> 10, free_files = room.files, "the contract fills the disk, so its run is ended");
                None
            }
        };
        let report = match (launched, self.check_room()) {
            (Some(report), Ok(_)) => report,
            // It may have been denied what it wanted to write. As with the time, the nodes find out whether the disk was
            // full on most of them; where it was on this one alone the run is done again, and the disk must be full then.
            (_, Err(full)) if !execution.is_limited => return Err(full),
            (None, Ok(_)) if !execution.is_limited => return Err(room.full(&self.state_dir())),
            (Some(_) | None, _) => return Ok(None),
        };
        let mut status = match report.end {
            End::Status(status) => status,
            End::Overtime => return Ok(None),
        };
        let (top, quota) = (self.plan.dir.join("state"), self.plan.quota);
        let (root, changed, recent, hashing, state_bytes) = self
            .blocking(move |held| {
                let mut hashing = Duration::ZERO;
                if status == Status::Ok {
                    let begun = Instant::now();
                    let scanned = held.state.scan(true);
                    hashing = begun.elapsed();
                    match scanned {
                        Ok(scan) if !quota.allows(&scan) => {
                            let (bytes, files) = (scan.bytes, scan.files);
                            warn!(seq, bytes, files, "the contract left more in state/ than state_mb or state_files allows");
                            status = Status::Limit(LimitKind::StateSize);
                        }
                        Ok(scan) => {
                            (held.root, held.after) = (scan.root, Some(seq));
                            let now = |path: Vec<u8>| Changed { now: held.state.leaf(&path), path };
                            let changed: Vec<Changed> = scan.changed.into_iter().take(DETAILS_MAX).map(now).collect();
                            let recent = Recent::of(&top, &*held.state, scan.files, &changed);
                            return Ok((scan.root, changed, recent, status, hashing, Some(scan.bytes)));
                        }
                        Err(StateError::Forbidden { path, kind }) => {
                            warn!(seq, ?path, %kind, "the contract left something in state/ that nodes cannot agree on");
                            status = Status::Limit(LimitKind::State);
                        }
                        Err(other) => return Err(other.into()),
                    }
                }
                held.root = held.state.rollback()?;
                held.after = Some(seq);
                Ok((held.root, Vec::new(), None, status, hashing, None))
            })
            .await
            .map(|(root, changed, recent, final_status, hashing, state_bytes)| {
                status = final_status;
                (root, changed, recent, hashing, state_bytes)
            })?;

        let outputs: Vec<(UserKey, Vec<u8>)> = match status {
            Status::Ok => report.outputs.into_iter().collect(),
            _ => Vec::new(),
        };
        let output_leaves: Vec<Hash> = outputs.iter().map(|(user, output)| merkle::output_leaf(user, output)).collect();
        let outputs_root = merkle::root(output_leaves.clone());
        // Of a run that fails after all, because of what it left in state/, nothing takes effect.
        let unl_req = report.unl_request.filter(|_| status == Status::Ok);
        let result =
            ExecResult { of_seq: seq, of_hash: execution.hash, state_root: root, outputs_root, status, unl_req };
        let told = outputs.iter().zip(&output_leaves).take(DETAILS_MAX);
        let details = Details {
            result: result.clone(),
            changed,
            outputs: told.map(|((user, _), leaf)| (*user, *leaf)).collect(),
        };
        let (elapsed, contract) = (started.elapsed(), report.elapsed);
        let hash = execution.hash;
        Ok(Some(Ran {
            hash,
            result,
            outputs,
            leaves: output_leaves,
            details,
            recent,
            elapsed,
            contract,
            hashing,
            state_bytes,
        }))
    }

    fn state_dir(&self) -> PathBuf {
        self.plan.dir.join("state")
    }

    /// Whether the disk has room for what a contract writes, and how much.
    pub fn check_room(&self) -> Result<Room, ExecError> {
        let path = self.state_dir();
        let room = Room::of(&path);
        if room.is_above(Room::MIN) { Ok(room) } else { Err(room.full(&path)) }
    }

    /// Resolves when there is less room on the disk, or for fewer files, than that.
    async fn room_below(&self, kept: Room) -> Room {
        let path = self.state_dir();
        let mut looks = interval(DISK_LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let room = Room::of(&path);
            if !room.is_above(kept) {
                return room;
            }
        }
    }

    /// Runs the contract, again when this machine made it fail.
    async fn launch(
        &self,
        execution: &Execution,
        mut port: NplPort,
        mut overlay: Option<Overlay>,
    ) -> Result<RunReport, ExecError> {
        let mut failures = 0;
        loop {
            let started = std::time::Instant::now();
            match self.launcher.run(self.spec(execution, overlay), port).await {
                Ok(report) => return Ok(report),
                Err(error) => {
                    failures += 1;
                    // A contract that sees its launcher can kill it, or keep it from its work. Whatever did: when it happens
                    // again and again it belongs to this run, and the node has to live with it.
                    let end = match error {
                        LaunchError::Unkillable => Some(End::Overtime),
                        LaunchError::Died if failures == LOCAL_FAILURES_MAX => {
                            Some(End::Status(Status::Signal(SIGKILL)))
                        }
                        _ => None,
                    };
                    if let Some(end) = end {
                        self.launcher.settled().await?;
                        warn!(seq = execution.header.seq, %error, "the run has ended its launcher, or kept it from its work");
                        return Ok(RunReport {
                            end,
                            outputs: BTreeMap::new(),
                            unl_request: None,
                            elapsed: started.elapsed(),
                            npl_frames: 0,
                            left_over: 0,
                        });
                    }
                    if failures == LOCAL_FAILURES_MAX {
                        return Err(error.into());
                    }
                    error!(
                        seq = execution.header.seq,
                        error = &error as &dyn std::error::Error,
                        "run failed, trying again"
                    );
                    self.launcher.settled().await?;
                    let again = |held: &mut Held| {
                        held.state.rollback()?;
                        begin(held)
                    };
                    overlay = self.blocking(again).await?;
                    // The peers' messages of the first try are gone: the party line is best effort.
                    port = party_line().0;
                }
            }
        }
    }

    fn spec(&self, execution: &Execution, overlay: Option<Overlay>) -> RunSpec {
        let plan = &self.plan;
        let mut users: Vec<UserInput> = execution
            .inputs
            .iter()
            .map(|(key, inputs)| UserInput { key: *key, auth: auth(inputs), inputs: payloads(inputs) })
            .collect();
        let with_input: BTreeMap<UserKey, ()> = users.iter().map(|user| (user.key, ())).collect();
        let silent = execution.users.iter().filter(|user| !with_input.contains_key(user));
        users.extend(silent.map(|key| UserInput { key: *key, auth: Auth::Session, inputs: Vec::new() }));
        RunSpec {
            binary: plan.binary.clone(),
            args: plan.args.clone(),
            dir: plan.dir.clone(),
            env: plan.env.clone(),
            limits: Limits {
                wall: if execution.is_limited { plan.limits.wall } else { UNLIMITED },
                ..plan.limits.clone()
            },
            facts: Facts {
                lcl: execution.hash,
                seq: execution.header.seq,
                time_ms: execution.header.time_ms,
                pubkey: plan.me,
                unl: execution.unl.clone(),
                seed: Hash::tagged("hp/seed/1", &execution.hash),
                contract: plan.contract,
                private: plan.private.clone(),
                readonly: false,
                settlement: execution.header.settlement.clone(),
            },
            users,
            log_dir: plan.dir.join("log/contract"),
            npl_window: plan.npl_window,
            overlay,
        }
    }

    /// Runs file work on a thread of its own.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Held) -> Result<T, ExecError> + Send + 'static,
    ) -> Result<T, ExecError> {
        let held = self.held.clone();
        let lock = move || {
            // A panic in there is our bug; it is not hidden by a second one.
            let mut held: MutexGuard<Held> = held.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut held)
        };
        tokio::task::spawn_blocking(lock).await.expect("file work does not panic")
    }
}

/// The last ledger whose run is agreed on, the root of the state after it, and whether `state/` is that state: else it is
/// the one before the run that was begun last.
fn last(held: &Held, agreed: Option<(Seq, Hash)>) -> Option<(Seq, Hash, bool)> {
    match (held.after, agreed) {
        (Some(after), Some(agreed)) if (after, held.root) == agreed => Some((after, held.root, true)),
        _ => {
            let (kept, root) = held.state.snapshot_info()?;
            // Runs that changed nothing since then have the same pre-state.
            let next = held.begun.map_or(kept, |begun| begun.max(kept));
            Some((next.checked_sub(1)?, root, false))
        }
    }
}

/// Looks now and then whether somebody changed `state/` since the last run, before a run takes it for its own.
fn look(held: &mut Held) -> Result<(), ExecError> {
    let (at, took) = held.looked;
    if at.elapsed() < LOOK_AGAIN.max(took * LOOK_SHARE) {
        return Ok(());
    }
    let begun = Instant::now();
    let found = match held.state.scan(false) {
        Ok(scan) => Some(scan.root),
        Err(StateError::Forbidden { .. } | StateError::Changed { .. }) => None,
        Err(other) => return Err(other.into()),
    };
    held.looked = (Instant::now(), begun.elapsed());
    if found == Some(held.root) {
        return Ok(());
    }
    match held.state.snapshot_info() {
        // What is kept of it is as good as another node's.
        Some((_, kept)) if kept == held.root => {
            warn!("somebody changed state/; it is put back");
            held.state.rollback()?;
            Ok(())
        }
        _ => Err(ExecError::WrongState { expected: held.root, found: found.unwrap_or(Hash::ZERO) }),
    }
}

/// What is left of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Free bytes.
    pub bytes: u128,
    /// Files that can still be made.
    pub files: u128,
}

impl Room {
    /// With less no run is begun.
    pub(super) const MIN: Room = Room { bytes: DISK_FREE_BYTES_MIN, files: DISK_FREE_FILES_MIN };

    /// Of the disk that the folder is on. One that does not say may have any room.
    pub(super) fn of(path: &Path) -> Room {
        let any = u128::MAX;
        let Ok(disk) = statvfs(path) else { return Room { bytes: any, files: any } };
        // There are file systems without such a number, which say 0 of 0.
        let files = if disk.files() == 0 { any } else { u128::from(disk.files_available()) };
        Room { bytes: u128::from(disk.blocks_available()) * u128::from(disk.fragment_size()), files }
    }

    /// Whether there is so much, of both.
    pub(super) fn is_above(&self, least: Room) -> bool {
        self.bytes >= least.bytes && self.files >= least.files
    }

    /// What a run must leave of it.
    fn kept(&self) -> Room {
        let kept = |there: u128, least| (there / DISK_KEPT_PART).max(least);
        Room { bytes: kept(self.bytes, Room::MIN.bytes), files: kept(self.files, Room::MIN.files) }
    }

    fn full(&self, path: &Path) -> ExecError {
        ExecError::DiskFull { path: path.to_owned(), free_kib: self.bytes >> 10, free_files: self.files }
    }
}

/// Makes the state ready for a run, and says what the run must see mounted.
fn begin(held: &mut Held) -> Result<Option<Overlay>, ExecError> {
    let mount = held.state.begin_run()?;
    Ok(mount.map(|RunMount { target, lower, upper, work }| Overlay { target, lower, upper, work }))
}

/// What a run may use, by the configuration.
pub(super) fn limits_of(contract: &config::Contract) -> Limits {
    Limits {
        wall: Duration::from_millis(contract.time_limit_ms),
        cpu_s: contract.cpu_s.unwrap_or(0),
        memory_mb: contract.memory_bytes.map_or(0, |bytes| bytes >> 20),
        files: contract.files,
        processes: contract.processes,
        file_mb: contract.file_bytes >> 20,
        output_bytes_max: contract.output_bytes,
        output_user_bytes_max: contract.output_user_bytes,
        log_bytes_max: contract.log_bytes,
        log_files: Limits::default().log_files,
        npl_bytes_max: crate::config::caps::NPL_LEDGER_BYTES_MAX,
    }
}

/// What the state may have after a run, by the configuration.
pub(super) fn quota_of(contract: &config::Contract) -> Quota {
    Quota { bytes: contract.state_bytes, files: contract.state_files }
}

fn auth(inputs: &[Input]) -> Auth {
    let signed = inputs.iter().all(|input| matches!(input.origin, Origin::User { .. }));
    if signed { Auth::Signed } else { Auth::Session }
}

fn payloads(inputs: &[Input]) -> Vec<Bytes> {
    inputs.iter().map(|input| Bytes::copy_from_slice(&input.payload)).collect()
}

const _: () = assert!(npl::NPL_MESSAGE_BYTES_MAX as u64 == crate::config::caps::NPL_FRAME_BYTES_MAX);
