//! Frames waiting for one peer and class: bounded in number and bytes, filled without waiting, drained in batches.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::frame::Kind;

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PushError {
    /// A limit is reached.
    Full,
    /// The link is over.
    Closed,
}

/// Bytes that several queues may hold together.
pub(super) struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Budget {
        Budget { used: AtomicUsize::new(0), bytes_max }
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.bytes_max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One queue. What was popped for writing, at most one batch, does not count any more.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    wake: Notify,
    frames_max: usize,
    bytes_max: usize,
    shared: Option<Arc<Budget>>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.close();
    }
}

struct Inner {
    frames: VecDeque<(Kind, Bytes)>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    /// `shared`: what this queue and others may hold together, if that is bounded too.
    pub(super) fn new(frames_max: usize, bytes_max: usize, shared: Option<Arc<Budget>>) -> Queue {
        let inner = Inner { frames: VecDeque::new(), bytes: 0, closed: false };
        Queue { inner: Mutex::new(inner), wake: Notify::new(), frames_max, bytes_max, shared }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, kind: Kind, body: Bytes) -> Result<(), PushError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(PushError::Closed);
        }
        if inner.frames.len() >= self.frames_max || inner.bytes + body.len() > self.bytes_max {
            return Err(PushError::Full);
        }
        if self.shared.as_ref().is_some_and(|shared| !shared.take(body.len())) {
            return Err(PushError::Full);
        }
        inner.bytes += body.len();
        inner.frames.push_back((kind, body));
        drop(inner);
        self.wake.notify_one();
        Ok(())
    }

    /// Waits for frames, then moves as many as fit into `bytes_max` (but at least one) to `batch`. For one reader.
    pub(super) async fn pop(&self, batch: &mut Vec<(Kind, Bytes)>, bytes_max: usize) {
        loop {
            {
                let mut inner = self.lock();
                let mut bytes = 0;
                while let Some((_, body)) = inner.frames.front()
                    && (batch.is_empty() || bytes + body.len() <= bytes_max)
                {
                    bytes += body.len();
                    batch.extend(inner.frames.pop_front());
                }
                inner.bytes -= bytes;
                self.give_back(bytes);
            }
            if !batch.is_empty() {
                return;
            }
            self.wake.notified().await;
        }
    }

    fn give_back(&self, bytes: usize) {
        if let Some(shared) = &self.shared {
            shared.give_back(bytes);
        }
    }

    /// Refuses further frames and frees those that wait.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        self.give_back(std::mem::take(&mut inner.bytes));
        inner.frames = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Bytes {
        Bytes::from(vec![0; len])
    }

    #[tokio::test]
    async fn a_queue_holds_its_limits_and_not_more() {
        let queue = Queue::new(3, 100, None);
        assert_eq!(queue.push(Kind::App, frame(101)), Err(PushError::Full));
        assert_eq!(queue.push(Kind::App, frame(60)), Ok(()));
        assert_eq!(queue.push(Kind::App, frame(41)), Err(PushError::Full));
        assert_eq!(queue.push(Kind::App, frame(40)), Ok(()));
        assert_eq!(queue.push(Kind::App, frame(0)), Ok(()));
        assert_eq!(queue.push(Kind::App, frame(0)), Err(PushError::Full));
        let mut batch = Vec::new();
        queue.pop(&mut batch, 50).await;
        assert_eq!(batch.len(), 1, "the second does not fit into the batch");
        assert_eq!(queue.push(Kind::App, frame(60)), Ok(()), "what was taken makes room");
        queue.close();
        assert_eq!(queue.push(Kind::App, frame(0)), Err(PushError::Closed));
    }
    #[tokio::test]
    async fn queues_that_share_a_budget_hold_it_together_and_give_it_back() {
        let budget = Arc::new(Budget::new(100));
        let [one, other, alone] =
            [Some(budget.clone()), Some(budget.clone()), None].map(|shared| Queue::new(9, 100, shared));
        assert_eq!(one.push(Kind::App, frame(60)), Ok(()));
        assert_eq!(other.push(Kind::App, frame(41)), Err(PushError::Full));
        assert_eq!(alone.push(Kind::App, frame(41)), Ok(()));
        assert_eq!(other.push(Kind::App, frame(40)), Ok(()));
        one.pop(&mut Vec::new(), 100).await;
        assert_eq!(other.push(Kind::App, frame(60)), Ok(()), "what was taken makes room");
        other.close();
        assert_eq!(one.push(Kind::App, frame(100)), Ok(()), "and what was given up");
        drop(one);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
