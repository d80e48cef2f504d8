//! Settles a chain: follows it, posts what is due, looks for it on the bus, and says what it saw there.
//!
//! One task beside the node's loop, which never waits for it: headers are read from the database when there are new ones, what
//! was seen is said over a channel, and whatever the bus does holds up this task alone. Nothing grows with what is not
//! settled yet. Reading order: this file (the task), `look` (one look at the bus), `status` (what people are told),
//! `drill` (what tests want).
//!
//! A transaction is posted again and again, always the same bytes, until the bus *shows* it: what it answers to a post
//! tells nothing. Source: `docs/protocol.md`, "Settlements".

mod drill;
mod look;
mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::BoxFuture;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Duration, Instant, sleep_until},
};
use tracing::{info, warn};

pub use self::status::{Pending, Status};
use self::{drill::Drill, look::Attempt, status::Shared};
use super::{
    Address,
    client::Client,
    journal::{Journal, Step},
    record::rank,
    schedule::{Pace, Schedule, Settled},
};
use crate::{
    consensus::header::{Header, Settlement},
    crypto::SecretKey,
    types::{Hash, NodeKey, Seq, WallMs},
};

// The module's own tests wait less, to be quick.
/// Headers that are read at a time.
const PAGE: usize = 256;
/// Time between two looks while nothing is due: whether the bus still takes what was agreed on.
const IDLE: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(30) };
/// The same while something is to be seen, at first ...
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 300 });
/// ... and at most.
const LOOK_MAX: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5_000 });
/// Time before the bus is asked again that did not answer, or before a second post, at first ...
const RETRY: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 1_000 });
/// ... and at most.
const RETRY_MAX: Duration = Duration::from_millis(if cfg!(test) { 400 } else { 30_000 });
/// Time after which what this node sees is seen by too few, and ledgers that must have been closed meanwhile.
const ALONE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 20_000 });
const ALONE_LEDGERS: u64 = 4;
/// Time between two looks at the balance.
const BALANCE: Duration = Duration::from_secs(600);

/// Reads headers from the database: the first one wanted, and how many at most.
pub type ReadHeaders = Box<dyn Fn(Seq, usize) -> BoxFuture<'static, Result<Vec<Header>, String>> + Send + Sync>;

/// What the agent works with.
pub struct Setup {
    /// This node.
    pub me: NodeKey,
    /// The key that signs and pays.
    pub key: SecretKey,
    /// The bus.
    pub client: Client,
    /// Of the chain.
    pub contract_id: Hash,
    /// When it begins.
    pub genesis_time_ms: WallMs,
    /// `bs`: of the contract's subnet.
    pub subnet: Hash,
    /// `mbs`: of the bus.
    pub bootstrap: Hash,
    /// How often it is settled.
    pub pace: Pace,
    /// Time between two members that post.
    pub slot: Duration,
    /// The contract's folder.
    pub dir: PathBuf,
    /// The chain.
    pub headers: ReadHeaders,
}

/// How far the chain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tip {
    /// The last ledger in the database; 0 before the first.
    pub seq: Seq,
    /// The last ledger that is settled, as that one records it; 0 before the first settlement.
    pub settled: Seq,
    /// Who votes on what was seen, ascending.
    pub unl: Vec<NodeKey>,
}

/// A running agent; it ends when this is dropped.
#[derive(Debug)]
pub struct Agent {
    status: Shared,
    task: JoinHandle<()>,
}

impl Agent {
    /// Starts it. What it sees goes to `said`, each time it looked: `None` when it sees nothing new, or nothing at all.
    pub fn start(setup: Setup, tips: watch::Receiver<Tip>, said: mpsc::Sender<Option<Settlement>>) -> Agent {
        let worker = Worker::new(setup, tips, said);
        Agent { status: worker.status.clone(), task: tokio::spawn(worker.run()) }
    }

    /// Where settling stands.
    pub fn status(&self) -> Status {
        self.status.lock().clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What an alert is about; there is one of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// The chain cannot be followed.
    Chain,
    /// The journal cannot be written.
    Journal,
    /// The bus does not answer.
    Bus,
    /// The bus lies.
    Lie,
    /// Too few members see what this node sees.
    Alone,
    /// The bus refuses what is posted.
    Refused,
    /// The address has not enough.
    Balance,
}

/// What was settled, and is due, when the bus was looked at; when that changes it is looked at again at once.
type Standing = (Option<Settlement>, Option<Hash>);

struct Worker {
    setup: Setup,
    address: Address,
    tips: watch::Receiver<Tip>,
    said: mpsc::Sender<Option<Settlement>>,
    journal: Arc<Mutex<Journal>>,
    /// `None` until the chain was read.
    schedule: Option<Schedule>,
    /// The settlement behind which the chain could not be followed.
    lost: Option<Seq>,
    /// What is due, and was done about it.
    attempt: Option<Attempt>,
    looked_at: Option<Standing>,
    next_look: Instant,
    look_wait: Duration,
    retry_wait: Duration,
    next_balance: Instant,
    /// What was said last that no ledger has, since when, and the last ledger then.
    alone: Option<(Settlement, Instant, Seq)>,
    alerts: BTreeMap<About, String>,
    status: Shared,
    drill: Drill,
}

impl Worker {
    fn new(setup: Setup, tips: watch::Receiver<Tip>, said: mpsc::Sender<Option<Settlement>>) -> Worker {
        let address = Address::new(setup.client.network(), setup.key.node_key().0);
        let status = Shared::default();
        {
            let mut status = status.lock();
            status.url = setup.client.url();
            status.network = setup.client.network().to_string();
            status.address = address.to_string();
            status.subnet = setup.subnet.to_string();
        }
        Worker {
            journal: Arc::new(Mutex::new(Journal::open(&setup.dir))),
            address,
            setup,
            tips,
            said,
            schedule: None,
            lost: None,
            attempt: None,
            looked_at: None,
            next_look: Instant::now(),
            look_wait: LOOK,
            retry_wait: RETRY,
            next_balance: Instant::now(),
            alone: None,
            alerts: BTreeMap::new(),
            status,
            drill: Drill::of_environment(),
        }
    }

    async fn run(mut self) {
        loop {
            self.follow().await;
            if self.is_member() {
                self.look_if_it_is_time().await;
            }
            self.tell();
            tokio::select! {
                changed = self.tips.changed() => if changed.is_err() { return },
                () = sleep_until(self.next_look) => {}
            }
        }
    }

    /// Nobody asks an observer what it saw.
    fn is_member(&mut self) -> bool {
        let member = self.tips.borrow().unl.contains(&self.setup.me);
        if !member {
            self.attempt = None;
            self.looked_at = None;
            self.next_look = Instant::now() + IDLE;
        }
        member
    }

    // ---- The chain ----------------------------------------------------------------------------------------------

    /// Reads the headers that are new.
    async fn follow(&mut self) {
        let tip = self.tips.borrow_and_update().clone();
        // What could not be read does not matter any more once it is settled.
        if self.lost.is_some_and(|lost| tip.settled > lost) {
            (self.lost, self.schedule) = (None, None);
        }
        if self.lost.is_some() {
            return;
        }
        match self.read(&tip).await {
            Ok(()) => self.clear(About::Chain),
            Err(Unread::Later(why)) => self.alert(About::Chain, format!("settling waits for the database: {why}")),
            Err(Unread::Lost(why)) => {
                self.lost = Some(tip.settled);
                self.attempt = None;
                self.alert(
                    About::Chain,
                    format!("this node cannot follow what is settled, and votes for nothing: {why}"),
                );
            }
        }
    }

    async fn read(&mut self, tip: &Tip) -> Result<(), Unread> {
        let Setup { contract_id, genesis_time_ms, pace, .. } = self.setup;
        let begin = || Schedule::behind(contract_id, genesis_time_ms, pace, tip.settled);
        let mut schedule = self.schedule.take().unwrap_or_else(begin);
        while schedule.seq() < tip.seq {
            let headers = (self.setup.headers)(schedule.seq() + 1, PAGE).await;
            let headers = match headers {
                Ok(headers) if headers.is_empty() => {
                    return Err(Unread::Lost(format!("ledger {} is not here", schedule.seq() + 1)));
                }
                Ok(headers) => headers,
                Err(why) => {
                    self.schedule = Some(schedule);
                    return Err(Unread::Later(why));
                }
            };
            for header in &headers {
                match schedule.next(header) {
                    Ok(None) => {}
                    Ok(Some(settled)) => self.settled(&settled).await,
                    Err(error) => return Err(Unread::Lost(error.to_string())),
                }
            }
        }
        self.schedule = Some(schedule);
        Ok(())
    }

    /// The chain records a settlement.
    async fn settled(&mut self, settled: &Settled) {
        let Settled { record, settlement, recorded_in } = settled;
        info!(
            first = record.first,
            last = record.last,
            tx = %settlement.tx,
            confirmed_length = settlement.confirmed_length,
            recorded_in,
            "ledgers settled"
        );
        let known = self.attempt.take().is_some_and(|attempt| attempt.due.ch == settlement.ch);
        if known {
            self.note(Step::InLedger { seq: *recorded_in }).await;
        }
        self.clear(About::Refused);
        // One of us paid.
        self.next_balance = Instant::now();
    }

    // ---- The bus ------------------------------------------------------------------------------------------------

    async fn look_if_it_is_time(&mut self) {
        let Some(schedule) = self.schedule.as_ref() else {
            self.next_look = Instant::now() + RETRY_MAX;
            return;
        };
        let due = schedule.due().cloned();
        let standing = (schedule.recorded().cloned(), due.as_ref().map(|due| due.ch));
        if self.looked_at.as_ref() != Some(&standing) {
            self.looked_at = Some(standing.clone());
            (self.next_look, self.look_wait) = (Instant::now(), LOOK);
        }
        if Instant::now() < self.next_look {
            return;
        }
        if let Some(due) = due {
            self.begin(due).await;
        }
        let vote = match self.look(standing.0).await {
            Ok(vote) => {
                self.answered();
                vote
            }
            Err(trouble) => {
                self.troubled(trouble);
                None
            }
        };
        self.watch(vote.as_ref());
        // Each time: what the core dropped, because it was a ledger ahead, it hears again. It has gone when nobody listens.
        let _ = self.said.send(vote).await;
    }

    /// Notices that ledgers close without what this node says: members that see another bus, or none, would never settle, and
    /// nobody would know why.
    fn watch(&mut self, vote: Option<&Settlement>) {
        let seq = self.tips.borrow().seq;
        match (vote, &self.alone) {
            (Some(vote), Some((said, since, first))) if said == vote => {
                if since.elapsed() < ALONE || seq < first + ALONE_LEDGERS {
                    return;
                }
                let what = format!(
                    "ledgers close without what this node sees on the bus at {}: too few members see the same. All members \
                     must settle on one bus; one that a node runs itself (msb.mode = \"embedded\") is that node's alone, unless \
                     the others name it with msb.mode = \"http\" and msb.url",
                    self.setup.client.url()
                );
                self.alert(About::Alone, what);
            }
            (vote, _) => {
                self.alone = vote.map(|vote| (vote.clone(), Instant::now(), seq));
                self.clear(About::Alone);
            }
        }
    }

    /// Something is due: what was done about it before a restart counts on.
    async fn begin(&mut self, due: super::schedule::Due) {
        let rank = rank(&due.ch, &self.tips.borrow().unl, &self.setup.me);
        if let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.due.ch == due.ch) {
            attempt.due = due;
            attempt.rank = rank;
            return;
        }
        let slot = self.drill.slot(self.setup.slot);
        let turn = slot * u32::try_from(rank.unwrap_or(0)).unwrap_or(u32::MAX);
        let (known, posts) = {
            let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            let known = journal.is_about(&due);
            (known, if known { journal.posts() } else { 0 })
        };
        if !known {
            info!(first = due.record.first, last = due.record.last, ch = %due.ch, rank, "ledgers are to be settled");
            let (first, last, ch) = (due.record.first, due.record.last, due.ch.to_string());
            self.note(Step::Due { first, last, ch }).await;
        }
        self.attempt = Some(Attempt::new(due, rank, posts, Instant::now() + turn));
    }

    /// Notes a step, and says whether it is on disk: what is not noted is not done.
    async fn note(&mut self, step: Step) -> bool {
        let (journal, name) = (self.journal.clone(), step.name());
        let noted =
            tokio::task::spawn_blocking(move || journal.lock().unwrap_or_else(PoisonError::into_inner).note(step));
        match noted.await.expect("writing does not panic") {
            Ok(()) => {
                self.clear(About::Journal);
                self.drill.point(name).await;
                true
            }
            Err(error) => {
                let why = format!("{:#}", anyhow::Error::new(error));
                self.alert(About::Journal, format!("nothing is posted for settling: {why}"));
                false
            }
        }
    }

    // ---- What people are told -----------------------------------------------------------------------------------

    fn alert(&mut self, about: About, what: String) {
        if self.alerts.get(&about) != Some(&what) {
            warn!(about = ?about, "{what}");
            self.alerts.insert(about, what);
        }
    }

    fn clear(&mut self, about: About) {
        if let Some(what) = self.alerts.remove(&about) {
            info!(about = ?about, was = what, "settling: that is over");
        }
    }

    fn tell(&self) {
        let tip = self.tips.borrow();
        let mut status = self.status.lock();
        status.alerts = self.alerts.values().cloned().collect();
        status.about = self.alerts.keys().copied().collect();
        if let Some(schedule) = &self.schedule {
            let settled = schedule.recorded().map(|recorded| (recorded.seq, recorded.tx));
            status.settled_seq = settled.map(|(seq, _)| seq);
            status.settled_tx = settled.filter(|(seq, _)| *seq > 0).map(|(_, tx)| tx.to_string());
            status.unsettled_ledgers = (tip.seq + 1).saturating_sub(schedule.unsettled_from());
            status.oldest_unsettled_ms =
                schedule.unsettled_since_ms().map(|since| schedule.time_ms().saturating_sub(since));
        }
        status.pending = self.attempt.as_ref().map(|attempt| self.pending(attempt));
    }
}

/// Why the chain could not be followed.
enum Unread {
    /// It may be the next time.
    Later(String),
    /// It will not be.
    Lost(String),
}

/// A quarter more or less, so that nodes that failed together do not try together.
fn jittered(wait: Duration) -> Duration {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    let part = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
    wait.mul_f64(0.75 + part / 2.0)
}
