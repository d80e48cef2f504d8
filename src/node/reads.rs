//! Answers users' questions by read-only runs of the contract: on this node alone, beside the rounds, any number at once up
//! to a limit. A run sees the state after one closed ledger whose result is agreed on, in a copy of its own, and nothing it
//! writes is kept. `place.rs` is where it happens.
//!
//! No round waits for a read. What the two share is the thread that knows the state's files, for the moment in which a
//! state is pinned, and the disk.

mod place;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};
use tracing::warn;

use self::place::{Outcome, Places};
use super::{Executor, Node, NodeError, users::Told};
use crate::{
    config::Config,
    consensus::{
        details::PathKind,
        header::{ExecResult, Settlement},
    },
    contract::{UserInput, fdlist::Facts},
    gateway::SessionId,
    ledger::Ledger,
    signed::{Base64, ReadFate, ReadFrame, ReadReason, ReadResult, Reply, Text},
    state::PathFound,
    types::{Auth, Hash, NodeKey, Seq, UserKey, WallMs},
};

/// Questions of one session that wait or are being answered. Past it one is refused as `busy`.
const ASKED_BY_SESSION_MAX: usize = 8;
/// Questions of all sessions that wait, for each that can be answered at a time. Past it one is refused as `busy`.
const WAITING_FOR_EACH_MAX: usize = 16;
/// All that ask over HTTP count as one session.
const OVER_HTTP: SessionId = SessionId(u64::MAX - 1);
/// Processes of this node's user that read-only runs add, together, to those of a ledger's run.
const PROCESSES_MAX: u64 = 64;

/// The limit of processes of a ledger's run beside which there are read-only ones: the kernel counts those of both.
pub(super) fn beside(processes: u64, reads_max: usize) -> u64 {
    if processes == 0 || reads_max == 0 { processes } else { processes + PROCESSES_MAX + 2 * reads_max as u64 }
}

/// The questions that users have asked.
pub(super) struct Reads {
    places: Arc<Places>,
    /// Waiting or being answered.
    asked: BTreeMap<SessionId, usize>,
    tasks: JoinSet<()>,
}

impl Reads {
    /// None yet. Removes what an earlier process left.
    pub(super) async fn new(config: &Config, exe: &Path) -> Result<Reads, NodeError> {
        let places = Arc::new(Places::new(config, exe));
        places.clear().await?;
        Ok(Reads { places, asked: BTreeMap::new(), tasks: JoinSet::new() })
    }

    /// The state's files, for who asks beside the loop.
    pub(super) fn files(&self, executor: &Executor) -> Files {
        Files { places: self.places.clone(), executor: executor.clone() }
    }

    /// This result is the last that is agreed on.
    pub(super) fn agreed(&self, result: &ExecResult) {
        self.places.agreed(result.of_seq, result.state_root);
    }

    /// Why no more can be asked through this session now.
    fn refuses(&self, session: SessionId) -> Option<(ReadReason, &'static str)> {
        let of_session = self.asked.get(&session).copied().unwrap_or(0);
        let of_all: usize = self.asked.values().sum();
        match self.places.at_a_time() {
            0 => Some((ReadReason::Off, "this node answers no questions ([user] reads_max = 0); ask another one")),
            _ if of_session >= ASKED_BY_SESSION_MAX => {
                Some((ReadReason::Busy, "too many questions of this connection at once; ask again"))
            }
            max if of_all >= max * (1 + WAITING_FOR_EACH_MAX) => {
                Some((ReadReason::Busy, "too many questions wait at this node; ask again, or another one"))
            }
            _ => None,
        }
    }

    /// A question of this session is over.
    pub(super) fn done(&mut self, session: SessionId) {
        if let Some(count) = self.asked.get_mut(&session) {
            *count -= 1;
            if *count == 0 {
                self.asked.remove(&session);
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// Whether there is anything to be let go later.
    pub(super) fn has_places(&self) -> bool {
        self.places.has_idle()
    }

    /// Lets go what was not needed for a while.
    pub(super) fn look(&mut self, now: Instant) {
        let left_alone = self.places.left_alone(now);
        if !left_alone.is_empty() {
            let places = self.places.clone();
            self.tasks.spawn(async move { places.remove(left_alone).await });
        }
    }

    /// Ends all runs, and removes what was made for them.
    pub(super) async fn stop(&mut self) {
        self.tasks.shutdown().await;
        self.places.stop().await;
    }
}

/// Files of the contract's state, for who asks beside the loop.
pub(super) struct Files {
    places: Arc<Places>,
    executor: Executor,
}

/// What was found at a path of the state.
pub(super) enum FileRead {
    Nothing,
    /// A folder, or a symlink.
    Other(&'static str),
    /// Of so many bytes.
    Long(u64),
    File {
        bytes: Vec<u8>,
        root: Hash,
    },
}

impl Files {
    /// What is at a path of the state after the last ledger whose result is agreed on, or after the last run; with that
    /// ledger. `None` when there is no such state here.
    pub(super) async fn read(
        &self,
        path: &[u8],
        bytes_max: u64,
        confirmed: bool,
    ) -> Result<Option<(Seq, FileRead)>, Box<dyn std::error::Error + Send + Sync>> {
        let Some((seq, found)) = self.places.look(&self.executor, path, bytes_max, confirmed).await? else {
            return Ok(None);
        };
        let read = match found {
            PathFound::Nothing => FileRead::Nothing,
            PathFound::Other(PathKind::Symlink) => FileRead::Other("symlink"),
            PathFound::Other(_) => FileRead::Other("folder"),
            PathFound::Long(bytes) => FileRead::Long(bytes),
            PathFound::File { bytes, root } => FileRead::File { bytes, root },
        };
        Ok(Some((seq, read)))
    }
}

/// A question, and with what it is answered.
struct Question {
    places: Arc<Places>,
    executor: Executor,
    ledger: Ledger,
    user: UserKey,
    unl: Vec<NodeKey>,
    payload: Vec<u8>,
}

impl Node {
    /// A user asks the contract something.
    pub(super) fn on_read(&mut self, user: UserKey, session: SessionId, asked: ReadFrame) {
        let Some(gateway) = &self.gateway else { return };
        let ReadFrame { id, payload } = asked;
        let frame = move |fate| Reply::ReadResult(ReadResult { id, fate }).to_json();
        if let Some(refused) = self.refuses_read(session) {
            return gateway.answer(session, frame(refused));
        }
        let Some(left) = gateway.left(session) else { return };
        *self.reads.asked.entry(session).or_insert(0) += 1;
        let question = self.question(user, payload.0);
        let told = self.told_tx.clone();
        self.reads.tasks.spawn(async move {
            let fate = question.answer(left).await;
            let _ = told.send(Told::Read(session, fate.map(frame))).await;
        });
    }

    /// Somebody asks the contract something over HTTP.
    pub(super) fn simulate(
        &mut self,
        user: UserKey,
        payload: Vec<u8>,
        left: watch::Receiver<()>,
        answer: oneshot::Sender<ReadFate>,
    ) {
        if let Some(refused) = self.refuses_read(OVER_HTTP) {
            // Whoever asked may be gone.
            let _ = answer.send(refused);
            return;
        }
        *self.reads.asked.entry(OVER_HTTP).or_insert(0) += 1;
        let question = self.question(user, payload);
        let told = self.told_tx.clone();
        self.reads.tasks.spawn(async move {
            if let Some(fate) = question.answer(left).await {
                let _ = answer.send(fate);
            }
            let _ = told.send(Told::Read(OVER_HTTP, None)).await;
        });
    }

    /// Why no question is answered for this session now.
    fn refuses_read(&self, session: SessionId) -> Option<ReadFate> {
        let fetching = "this node is fetching the network's state; ask another one, or later";
        let why = match self.syncing.is_some() || self.core.lacks_state_since_join() {
            true => Some((ReadReason::NotReady, fetching)),
            false => self.reads.refuses(session),
        };
        why.map(|(reason, message)| refused(reason, message))
    }

    fn question(&self, user: UserKey, payload: Vec<u8>) -> Question {
        Question {
            places: self.reads.places.clone(),
            executor: self.executor.clone(),
            ledger: self.ledger.clone(),
            user,
            unl: self.core.unl().to_vec(),
            payload,
        }
    }
}

/// The ledger behind the state that a question is asked of.
struct Seen {
    seq: Seq,
    ledger: Hash,
    time_ms: WallMs,
    settlement: Option<Settlement>,
}

impl Question {
    /// `None` when the session is over.
    async fn answer(self, left: watch::Receiver<()>) -> Option<ReadFate> {
        let mut place = tokio::select! {
            () = over(left.clone()) => return None,
            place = self.places.take() => match place {
                Ok(place) => place,
                Err(error) => return Some(trouble(&error)),
            },
        };
        let prepared = self.places.prepare(&mut place, &self.executor).await;
        let seen = match prepared {
            Ok(Some((seq, root))) => self.ledger_of(seq, root).await,
            Ok(None) => Ok(None),
            Err(error) => Err(trouble(&error)),
        };
        let Seen { seq, ledger, time_ms, settlement } = match seen {
            Ok(Some(seen)) => seen,
            other => {
                self.places.give_back(place);
                let message = "no result of a ledger is agreed on here yet; ask again";
                return Some(other.err().unwrap_or_else(|| refused(ReadReason::NotReady, message)));
            }
        };
        let input = UserInput { key: self.user, auth: Auth::Session, inputs: vec![self.payload.into()] };
        let facts = Facts { settlement, ..self.places.facts(seq, ledger, time_ms, self.unl) };
        let ran = {
            let run = std::pin::pin!(place.run(&self.places, facts, input));
            tokio::select! {
                ran = run => Some(ran),
                () = over(left) => None,
            }
        };
        // Whatever of it was killed is dead before the place is another's.
        if let Err(error) = place.settled().await {
            warn!(
                error = &error as &dyn std::error::Error,
                "a read-only run does not end; its copy of the state is given up"
            );
            self.places.give_up(place);
        } else {
            self.places.give_back(place);
        }
        Some(match ran? {
            Ok(Outcome::Answered(output)) => ReadFate::Ok { seq, ledger: Text(ledger), payload: Base64(output) },
            Ok(Outcome::Failed(run)) => ReadFate::Failed { seq, ledger: Text(ledger), run },
            Err(error) => trouble(&error),
        })
    }

    /// A ledger whose run left the state of this root. `None` when the chain has another root.
    async fn ledger_of(&self, seq: Seq, root: Hash) -> Result<Option<Seen>, ReadFate> {
        let closed = self.ledger.header_range(seq, 2).await.map_err(|error| trouble(&error))?;
        let of = |seq| closed.iter().find(|closed| closed.header.seq == seq);
        let is_other = of(seq + 1).is_some_and(|next| next.header.result.state_root != root);
        Ok(of(seq).filter(|_| !is_other).map(|closed| Seen {
            seq,
            ledger: closed.qc.vote.ledger_hash,
            time_ms: closed.header.time_ms,
            settlement: closed.header.settlement.clone(),
        }))
    }
}

/// Resolves when the session is over.
async fn over(mut left: watch::Receiver<()>) {
    while left.changed().await.is_ok() {}
}

fn refused(reason: ReadReason, message: &str) -> ReadFate {
    ReadFate::Refused { reason, message: message.to_owned() }
}

fn trouble(error: &(dyn std::error::Error + 'static)) -> ReadFate {
    warn!(error, "a question of a user cannot be answered");
    refused(ReadReason::Trouble, "this node cannot run the contract now; ask another one, or later")
}

/// How long a place is kept that nobody needs: it holds a copy of the state, and a resident process.
const LEFT_ALONE_TIME: Duration = Duration::from_secs(60);
