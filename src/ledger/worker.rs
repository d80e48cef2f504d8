//! The database thread: commits in order, many in one transaction when the disk is the slower; reads between them.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, sleep_until},
};

use super::{LedgerError, Outputs, OutputsOf, PastOutputs, PastSettlement, PutOut, Standing, Store, Write};
use crate::{
    consensus::{
        header::{ClosedLedger, ExecResult, Input, UnlChange},
        messages::{Closed, Headers, Range, Signed, UsersPage},
    },
    types::{Hash, Seq, UserKey},
};

/// Batches waiting to be committed. At it a commit fails with `Behind`, and so does every later one: the node stops.
const COMMITS_WAITING_MAX: usize = 65_536;
/// Batches joined into one transaction; more go into the next.
const COMMITS_JOINED_MAX: usize = 1_024;
/// Reads waiting for the thread; further ones wait at their caller.
const READS_WAITING_MAX: usize = 256;
/// Reads served before commits that came meanwhile have their turn.
const READS_A_TURN_MAX: usize = 8;
/// Ranges of ledgers for peers that are read at a time. Others wait, and so that commits need not wait for them, each one
/// pauses as long as it took.
const RANGES_READ_AT_ONCE: usize = 1;
/// Writes after which the thread, when nothing waits, moves the write-ahead log into the file.
const CHECKPOINT_WRITES: usize = 512;

type Answer<T> = Result<T, LedgerError>;
type Read = Box<dyn FnOnce(&Store) + Send>;

enum Job {
    Commit(Vec<Write>, oneshot::Sender<Answer<()>>),
    Read(Read),
    Stop(oneshot::Sender<Answer<()>>),
}

/// The database of a running node: a handle to its thread. Clones share the thread; it ends, with everything that was
/// handed over on disk, by [`Ledger::stop`] or when the last handle is gone.
#[derive(Debug, Clone)]
pub struct Ledger {
    jobs: mpsc::Sender<Job>,
    waiting: Arc<AtomicUsize>,
    failed: Arc<OnceLock<LedgerError>>,
    reads: Arc<Semaphore>,
    ranges: Arc<Semaphore>,
}

impl Ledger {
    /// Gives the store a thread of its own.
    pub fn start(store: Store) -> Result<Ledger, LedgerError> {
        let (jobs, queue) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let failed = Arc::new(OnceLock::new());
        let worker =
            Worker { store, queue, waiting: waiting.clone(), failed: failed.clone(), broken: None, unmoved: 0 };
        thread::Builder::new()
            .name("ledger".into())
            .spawn(move || worker.run())
            .map_err(|error| LedgerError::Thread(Arc::new(error)))?;
        Ok(Ledger {
            jobs,
            waiting,
            failed,
            reads: Arc::new(Semaphore::new(READS_WAITING_MAX)),
            ranges: Arc::new(Semaphore::new(RANGES_READ_AT_ONCE)),
        })
    }

    /// Commits a batch, all or none, after every batch handed over before. Never waits.
    ///
    /// The receiver resolves when it is on disk. After the first error every later commit fails with the same, since
    /// what was lost must not be followed by what rests on it; a batch that shared the failed transaction fails too.
    /// A receiver that resolves to `RecvError` means that the thread ended and nothing is known of the batch.
    pub fn commit(&self, batch: Vec<Write>) -> oneshot::Receiver<Answer<()>> {
        let (done, receiver) = oneshot::channel();
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        if waiting >= COMMITS_WAITING_MAX {
            let _ = self.failed.set(LedgerError::Behind(waiting));
        }
        let refused = match self.failed.get() {
            Some(error) => Some((done, error.clone())),
            None => match self.jobs.send(Job::Commit(batch, done)) {
                Err(mpsc::SendError(Job::Commit(_, done))) => Some((done, LedgerError::Closed)),
                _ => None,
            },
        };
        if let Some((done, error)) = refused {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let _ = done.send(Err(error));
        }
        receiver
    }

    /// Batches that are not on disk yet. Whoever feeds the node reads less while this is high.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// See [`Store::closed`].
    pub async fn closed(&self, seq: Seq) -> Answer<Option<ClosedLedger>> {
        self.read(move |store| store.closed(seq)).await
    }

    /// See [`Store::by_hash`].
    pub async fn by_hash(&self, hash: Hash) -> Answer<Option<ClosedLedger>> {
        self.read(move |store| store.by_hash(&hash)).await
    }

    /// See [`Store::to_run`].
    pub async fn to_run(&self, first: Seq) -> Answer<Vec<(ClosedLedger, Vec<Input>)>> {
        self.read(move |store| store.to_run(first)).await
    }

    /// See [`Store::range`]; encoded by `encode` on the thread too. Takes no more than half of the thread's time, however
    /// many ask.
    pub async fn range<T: Send + 'static>(
        &self,
        first: Seq,
        last: Seq,
        encode: impl FnOnce(Range) -> T + Send + 'static,
    ) -> Answer<T> {
        self.read_in_turn(move |store| store.range(first, last).map(encode)).await
    }

    /// See [`Store::headers`]; in turn with ranges, and encoded in the same way.
    pub async fn headers<T: Send + 'static>(
        &self,
        first: Seq,
        last: Seq,
        encode: impl FnOnce(Headers) -> T + Send + 'static,
    ) -> Answer<T> {
        self.read_in_turn(move |store| store.headers(first, last).map(encode)).await
    }

    /// See [`Store::users_page`]; in turn with ranges.
    pub async fn users_page(&self, seq: Seq, after: Option<UserKey>) -> Answer<UsersPage> {
        self.read_in_turn(move |store| store.users_page(seq, after)).await
    }

    /// A long read for a peer.
    async fn read_in_turn<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        let turn = self.ranges.clone().acquire_owned().await.map_err(|_| LedgerError::Closed)?;
        let asked = Instant::now();
        let answer = self.read(read).await;
        tokio::spawn(async move {
            // The wait for commits counts too: the busier the thread is, the rarer these are.
            sleep_until(Instant::now() + asked.elapsed()).await;
            drop(turn);
        });
        answer
    }

    /// See [`Store::standing`].
    pub async fn standing(&self, seq: Seq) -> Answer<Option<Standing>> {
        self.read(move |store| store.standing(seq)).await
    }

    /// See [`Store::header_range`].
    pub async fn header_range(&self, first: Seq, count: usize) -> Answer<Vec<Closed>> {
        self.read(move |store| store.header_range(first, count)).await
    }

    /// See [`Store::unl_steps`].
    pub async fn unl_steps(&self, since: Seq, count: usize) -> Answer<Vec<(Closed, UnlChange)>> {
        self.read(move |store| store.unl_steps(since, count)).await
    }

    /// See [`Store::input`].
    pub async fn input(&self, id: Hash) -> Answer<Option<Input>> {
        self.read(move |store| store.input(&id)).await
    }

    /// See [`Store::inputs`].
    pub async fn inputs(&self, ids: Vec<Hash>) -> Answer<Vec<Input>> {
        self.read(move |store| store.inputs(&ids)).await
    }

    /// See [`Store::result`].
    pub async fn result(&self, seq: Seq) -> Answer<Option<Signed<ExecResult>>> {
        self.read(move |store| store.result(seq)).await
    }

    /// See [`Store::outputs`].
    pub async fn outputs(&self, seq: Seq) -> Answer<Option<Outputs>> {
        self.read(move |store| store.outputs(seq)).await
    }

    /// See [`Store::outputs_since`].
    pub async fn outputs_since(&self, user: UserKey, since: Seq, agreed: Option<Seq>) -> Answer<PastOutputs> {
        self.read(move |store| store.outputs_since(&user, since, agreed)).await
    }

    /// See [`Store::settlements`].
    pub async fn settlements(&self, seqs: Vec<Seq>) -> Answer<Vec<PastSettlement>> {
        self.read(move |store| store.settlements(&seqs)).await
    }

    /// See [`Store::next_outputs`].
    pub async fn next_outputs(&self, after: Seq, to: Seq) -> Answer<Option<PutOut>> {
        self.read(move |store| store.next_outputs(after, to)).await
    }

    /// See [`Store::outputs_of`].
    pub async fn outputs_of(
        &self,
        seq: Seq,
        after: Option<UserKey>,
        wanted: Arc<BTreeSet<UserKey>>,
        limits: (usize, usize),
    ) -> Answer<OutputsOf> {
        self.read(move |store| store.outputs_of(seq, after, &wanted, limits)).await
    }

    /// See [`Store::senders`].
    pub async fn senders(&self, seq: Seq) -> Answer<Vec<UserKey>> {
        self.read(move |store| store.senders(seq)).await
    }

    /// Commits what waits, moves the write-ahead log into the file, closes it and ends the thread. Errors with the
    /// first error of a commit, if there was one.
    pub async fn stop(self) -> Result<(), LedgerError> {
        let (done, receiver) = oneshot::channel();
        self.jobs.send(Job::Stop(done)).map_err(|_| LedgerError::Closed)?;
        receiver.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// Sees every commit that was handed over before it.
    async fn read<T: Send + 'static>(&self, read: impl FnOnce(&Store) -> Answer<T> + Send + 'static) -> Answer<T> {
        let permit = self.reads.clone().acquire_owned().await.map_err(|_| LedgerError::Closed)?;
        let (done, receiver) = oneshot::channel();
        let job: Read = Box::new(move |store| {
            // Nobody may be waiting any more: then it is not worth the disk's time.
            if !done.is_closed() {
                let _ = done.send(read(store));
            }
            drop(permit);
        });
        self.jobs.send(Job::Read(job)).map_err(|_| LedgerError::Closed)?;
        receiver.await.unwrap_or(Err(LedgerError::Closed))
    }
}

struct Worker {
    store: Store,
    queue: mpsc::Receiver<Job>,
    waiting: Arc<AtomicUsize>,
    /// Makes the handles refuse further commits.
    failed: Arc<OnceLock<LedgerError>>,
    /// The error of a commit.
    broken: Option<LedgerError>,
    /// Writes since the log was last moved into the file.
    unmoved: usize,
}

/// What a turn of the thread has in hand.
#[derive(Default)]
struct Turn {
    commits: Vec<(Vec<Write>, oneshot::Sender<Answer<()>>)>,
    reads: VecDeque<Read>,
    stop: Option<oneshot::Sender<Answer<()>>>,
}

impl Worker {
    fn run(mut self) {
        if let Err(error) = self.store.preallocate() {
            tracing::warn!(%error, "commits will be slower");
        }
        let mut turn = Turn::default();
        let stop = loop {
            // Commits first: every read in hand came after them or does not mind.
            self.commit(std::mem::take(&mut turn.commits));
            if let Some(stop) = turn.stop.take() {
                turn.reads.drain(..).for_each(|read| read(&self.store));
                break Some(stop);
            }
            for read in turn.reads.drain(..READS_A_TURN_MAX.min(turn.reads.len())) {
                read(&self.store);
            }
            if !self.gather(&mut turn) {
                break None;
            }
        };
        let Worker { store, failed, queue, .. } = self;
        let closed = store.close();
        let end = match (failed.get().cloned(), closed) {
            (Some(error), _) | (None, Err(error)) => Err(error),
            (None, Ok(())) => Ok(()),
        };
        // Whoever comes too late hears it at once; what is dropped unanswered means the same.
        let _ = failed.set(LedgerError::Closed);
        for job in queue.try_iter() {
            if let Job::Commit(_, done) | Job::Stop(done) = job {
                let _ = done.send(Err(LedgerError::Closed));
            }
        }
        drop(queue);
        match (stop, end) {
            (Some(stop), end) => drop(stop.send(end)),
            (None, Err(error)) => tracing::error!(%error, "the database did not close well"),
            (None, Ok(())) => {}
        }
    }

    /// Takes what waits, up to the bounds; waits when there is nothing to do. False when all handles are gone.
    fn gather(&mut self, turn: &mut Turn) -> bool {
        while turn.commits.len() < COMMITS_JOINED_MAX && turn.reads.len() < READS_WAITING_MAX && turn.stop.is_none() {
            let job = match self.queue.try_recv() {
                Ok(job) => job,
                Err(_) if !turn.commits.is_empty() || !turn.reads.is_empty() => break,
                Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => {
                    self.tidy();
                    match self.queue.recv() {
                        Ok(job) => job,
                        Err(mpsc::RecvError) => return false,
                    }
                }
            };
            match job {
                Job::Commit(batch, done) => turn.commits.push((batch, done)),
                Job::Read(read) => turn.reads.push_back(read),
                Job::Stop(done) => turn.stop = Some(done),
            }
        }
        true
    }

    fn commit(&mut self, commits: Vec<(Vec<Write>, oneshot::Sender<Answer<()>>)>) {
        if commits.is_empty() {
            return;
        }
        let writes: usize = commits.iter().map(|(batch, _)| batch.len()).sum();
        // After a `Behind`, which the handles set, what was handed over before it is committed all the same.
        let done = match &self.broken {
            Some(error) => Err(error.clone()),
            None => self.store.commit_all(commits.iter().flat_map(|(batch, _)| batch)),
        };
        match &done {
            Ok(()) => self.unmoved += writes,
            Err(error) => {
                let _ = self.failed.set(error.clone());
                self.broken = Some(error.clone());
            }
        }
        self.waiting.fetch_sub(commits.len(), Ordering::Relaxed);
        for (_, sender) in commits {
            let _ = sender.send(done.clone());
        }
    }

    /// Work for a moment without work.
    fn tidy(&mut self) {
        if self.unmoved >= CHECKPOINT_WRITES && self.broken.is_none() {
            self.unmoved = 0;
            if let Err(error) = self.store.checkpoint() {
                tracing::warn!(%error, "the write-ahead log stays as it is");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        consensus::messages::{Evidence, Message, Prevote, Vote},
        types::{NodeKey, Sig},
    };

    /// Keeps the thread busy with a read until the sender sends.
    async fn hold(ledger: &Ledger) -> mpsc::Sender<()> {
        let (let_go, held) = mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let reader = ledger.clone();
        tokio::spawn(async move {
            let blocked = move |_: &Store| {
                let _ = (begun.send(()), held.recv());
                Ok(())
            };
            reader.read(blocked).await
        });
        has_begun.await.unwrap();
        let_go
    }

    #[tokio::test]
    async fn what_was_queued_behind_a_commit_that_fails_is_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::start(Store::open(dir.path()).unwrap()).unwrap();
        let held = hold(&ledger).await;
        // Outputs of a ledger that is not there, and as many batches as share the transaction.
        let failed = ledger.commit(vec![Write::Outputs { seq: 5, outputs: Vec::new() }]);
        let joined: Vec<_> = (1..COMMITS_JOINED_MAX).map(|_| ledger.commit(Vec::new())).collect();
        let vote = Vote { seq: 1, attempt: 0, ledger_hash: Hash::ZERO };
        let said = Signed { from: NodeKey([1; 32]), body: Prevote(vote), sig: Sig([0; 64]) };
        let first = borsh::to_vec(&Message::Prevote(said)).unwrap();
        let evidence = Evidence { signer: NodeKey([1; 32]), first, second: vec![2] };
        let behind = ledger.commit(vec![Write::Evidence(Box::new(evidence))]);
        held.send(()).unwrap();
        for receiver in [failed].into_iter().chain(joined).chain([behind]) {
            assert!(matches!(receiver.await.unwrap(), Err(LedgerError::Contradiction { .. })));
        }
        assert!(matches!(ledger.stop().await, Err(LedgerError::Contradiction { .. })));
        assert_eq!(Store::open(dir.path()).unwrap().evidence().unwrap(), []);
    }

    #[tokio::test]
    async fn a_disk_that_does_not_keep_up_fails_what_is_over_the_bound_and_all_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::start(Store::open(dir.path()).unwrap()).unwrap();
        let held = hold(&ledger).await;
        let taken: Vec<_> = (0..COMMITS_WAITING_MAX).map(|_| ledger.commit(Vec::new())).collect();
        assert_eq!(ledger.waiting(), COMMITS_WAITING_MAX);
        for _ in 0..2 {
            let over = ledger.commit(Vec::new()).await.unwrap();
            assert!(matches!(over, Err(LedgerError::Behind(COMMITS_WAITING_MAX))), "{over:?}");
        }
        held.send(()).unwrap();
        for receiver in taken {
            receiver.await.unwrap().unwrap();
        }
        assert_eq!(ledger.waiting(), 0);
        assert!(matches!(ledger.commit(Vec::new()).await.unwrap(), Err(LedgerError::Behind(_))), "for ever");
        assert!(matches!(ledger.stop().await, Err(LedgerError::Behind(_))));
    }

    #[tokio::test]
    async fn when_the_last_handle_goes_what_was_handed_over_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::start(Store::open(dir.path()).unwrap()).unwrap();
        let receiver = ledger.commit(Vec::new());
        drop(ledger);
        receiver.await.unwrap().unwrap();
    }
}
