//! What a session is sent and has not read yet. The gateway puts in, the session's task takes out.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Waker,
};

use futures::task::AtomicWaker;
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Message;

/// What one frame counts beside its payload, so that a queue of empty frames is bounded as well.
pub const FRAME_OVERHEAD_BYTES: usize = 64;

/// Bytes that wait for all users of a node together. Past it an outbox holds one frame, and overflows with the second:
/// many users that read nothing cannot have each its own fill.
pub const OUTBOXES_BYTES_MAX: usize = 512 << 20;

/// A queue of frames, bounded in bytes.
#[derive(Debug)]
pub struct Outbox {
    bytes_max: usize,
    /// Bytes in all outboxes.
    total: Arc<AtomicUsize>,
    queue: Mutex<Queue>,
    reader: AtomicWaker,
    /// Told whenever nothing waits any more, or nothing more will be taken.
    empty: Notify,
    /// The session is to end.
    let_go: AtomicBool,
}

#[derive(Debug)]
enum Queue {
    Open {
        frames: VecDeque<Message>,
        /// Bytes in `frames`, and popped but not flushed.
        bytes: usize,
        /// Bytes popped but not flushed.
        flying: usize,
        /// No more is taken.
        closed: bool,
    },
    /// A frame did not fit.
    Overflowed,
}

impl Outbox {
    /// Holds `bytes_max`, or one frame of any size. `total` counts the bytes of all outboxes that share it.
    pub fn new(bytes_max: usize, total: Arc<AtomicUsize>) -> Outbox {
        let queue = Queue::Open { frames: VecDeque::new(), bytes: 0, flying: 0, closed: false };
        Outbox {
            bytes_max,
            total,
            queue: Mutex::new(queue),
            reader: AtomicWaker::new(),
            empty: Notify::new(),
            let_go: AtomicBool::new(false),
        }
    }

    /// Adds a frame. When it does not fit the queue overflows: it forgets everything and takes no more, since a
    /// user that misses one output must not see the next as if nothing happened.
    pub fn push(&self, message: Message) {
        let mut queue = self.lock();
        let Queue::Open { frames, bytes, closed: false, .. } = &mut *queue else { return };
        let size = size(&message);
        let room = *bytes + size <= self.bytes_max && self.total.load(Ordering::Relaxed) + size <= OUTBOXES_BYTES_MAX;
        if *bytes == 0 || room {
            *bytes += size;
            self.total.fetch_add(size, Ordering::Relaxed);
            frames.push_back(message);
        } else {
            self.total.fetch_sub(*bytes, Ordering::Relaxed);
            *queue = Queue::Overflowed;
            self.empty.notify_waiters();
        }
        drop(queue);
        self.reader.wake();
    }

    /// Returns when all that was pushed has left this process, or never will.
    pub async fn emptied(&self) {
        loop {
            // Before the look, so that what happens between it and the wait is not missed.
            let notified = self.empty.notified();
            if self.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// Whether all that was pushed has left this process, or never will.
    pub fn is_empty(&self) -> bool {
        !matches!(&*self.lock(), Queue::Open { bytes: 1.., closed: false, .. })
    }

    /// Wakes this task at the next push. One task reads an outbox, so the latest call counts.
    pub fn wake_at_push(&self, waker: &Waker) {
        self.reader.register(waker);
    }

    /// Whether a frame did not fit.
    pub fn overflowed(&self) -> bool {
        matches!(*self.lock(), Queue::Overflowed)
    }

    /// Has the session end, once what waits has left.
    pub fn let_go(&self) {
        self.let_go.store(true, Ordering::Release);
        self.reader.wake();
    }

    /// Whether the session is to end.
    pub fn is_let_go(&self) -> bool {
        self.let_go.load(Ordering::Acquire)
    }

    /// The next frame, if there is one that fits. It counts until `flushed`.
    pub fn pop_if(&self, fits: impl FnOnce(&Message) -> bool) -> Option<Message> {
        let mut queue = self.lock();
        let Queue::Open { frames, flying, .. } = &mut *queue else { return None };
        let message = if fits(frames.front()?) { frames.pop_front()? } else { return None };
        *flying += size(&message);
        Some(message)
    }

    /// Everything popped so far has left this process.
    pub fn flushed(&self) {
        if let Queue::Open { bytes, flying, .. } = &mut *self.lock() {
            self.total.fetch_sub(*flying, Ordering::Relaxed);
            *bytes -= mem::take(flying);
            if *bytes == 0 {
                self.empty.notify_waiters();
            }
        }
    }

    /// Takes no more frames. Those it has can still be popped.
    pub fn close(&self) {
        if let Queue::Open { closed, .. } = &mut *self.lock() {
            *closed = true;
            self.empty.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nothing panics while the queue is locked")
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if let Queue::Open { bytes, .. } = &*self.lock() {
            self.total.fetch_sub(*bytes, Ordering::Relaxed);
        }
    }
}

fn size(message: &Message) -> usize {
    message.len() + FRAME_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: usize) -> Message {
        Message::binary(vec![0; bytes])
    }

    #[test]
    fn a_queue_overflows_past_its_bytes_and_then_holds_nothing() {
        let outbox = Outbox::new(1_000, Arc::default());
        outbox.push(frame(1_000 - 2 * FRAME_OVERHEAD_BYTES));
        outbox.push(frame(0));
        assert!(!outbox.overflowed());
        outbox.push(frame(0));
        assert!(outbox.overflowed());
        outbox.push(frame(0));
        assert_eq!(outbox.pop_if(|_| true), None);
    }

    #[test]
    fn a_popped_frame_counts_until_it_is_flushed() {
        let outbox = Outbox::new(1_000, Arc::default());
        outbox.push(frame(900));
        outbox.pop_if(|_| true).unwrap();
        outbox.push(frame(0));
        assert!(outbox.overflowed());

        let outbox = Outbox::new(1_000, Arc::default());
        outbox.push(frame(900));
        outbox.pop_if(|_| true).unwrap();
        outbox.flushed();
        outbox.push(frame(900));
        assert!(!outbox.overflowed());
    }

    #[test]
    fn a_closed_queue_gives_what_it_has_and_takes_no_more() {
        let outbox = Outbox::new(1_000, Arc::default());
        outbox.push(frame(1));
        outbox.close();
        outbox.push(frame(2));
        outbox.push(frame(5_000));
        assert!(!outbox.overflowed());
        assert_eq!(outbox.pop_if(|_| true), Some(frame(1)));
        assert_eq!(outbox.pop_if(|_| true), None);
    }

    #[tokio::test]
    async fn who_waits_for_it_to_be_empty_hears_when_all_was_sent_or_nothing_will_be() {
        let outbox = Arc::new(Outbox::new(1_000, Arc::default()));
        outbox.emptied().await;
        for end in [Outbox::flushed, Outbox::close, |outbox: &Outbox| outbox.push(frame(5_000))] {
            let outbox = Arc::new(Outbox::new(1_000, Arc::default()));
            outbox.push(frame(1));
            let waits = tokio::spawn({
                let outbox = outbox.clone();
                async move { outbox.emptied().await }
            });
            outbox.pop_if(|_| true).unwrap();
            tokio::task::yield_now().await;
            assert!(!waits.is_finished(), "popped is not sent");
            end(&outbox);
            waits.await.unwrap();
        }
    }

    #[test]
    fn one_frame_of_any_size_passes_when_nothing_waits() {
        let outbox = Outbox::new(10, Arc::default());
        outbox.push(frame(5_000));
        assert_eq!(outbox.pop_if(|_| true).unwrap().len(), 5_000);
        outbox.push(frame(0));
        assert!(outbox.overflowed());
    }

    #[test]
    fn when_all_outboxes_together_are_full_each_has_one_frame_more() {
        let total = Arc::new(AtomicUsize::new(0));
        let outboxes = [(); 3].map(|()| Outbox::new(OUTBOXES_BYTES_MAX, total.clone()));
        // All frames share their bytes.
        let large = Message::binary(vec![0; OUTBOXES_BYTES_MAX / 8]);
        (0..7).for_each(|_| outboxes[0].push(large.clone()));
        outboxes[1].push(large.clone());
        outboxes[2].push(large.clone());
        assert!(outboxes.iter().all(|outbox| !outbox.overflowed()), "one frame each, whatever the others have");
        outboxes[1].push(frame(1));
        assert!(outboxes[1].overflowed());
        outboxes[0].pop_if(|_| true).unwrap();
        outboxes[0].flushed();
        outboxes[2].push(frame(1));
        assert!(!outboxes[2].overflowed(), "what was sent makes room");
        drop(outboxes);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }
}
