//! What a session is sent and has not read yet. The gateway puts in, the session's task takes out.

use std::{
    collections::VecDeque,
    mem,
    sync::{Mutex, MutexGuard},
    task::Waker,
};

use futures::task::AtomicWaker;
use tokio_tungstenite::tungstenite::Message;

/// What one frame counts beside its payload, so that a queue of empty frames is bounded as well.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// A queue of frames, bounded in bytes.
#[derive(Debug)]
pub struct Outbox {
    bytes_max: usize,
    queue: Mutex<Queue>,
    reader: AtomicWaker,
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
    /// Holds `bytes_max`, or one frame of any size.
    pub fn new(bytes_max: usize) -> Outbox {
        let queue = Queue::Open { frames: VecDeque::new(), bytes: 0, flying: 0, closed: false };
        Outbox { bytes_max, queue: Mutex::new(queue), reader: AtomicWaker::new() }
    }

    /// Adds a frame. When it does not fit the queue overflows: it forgets everything and takes no more, since a
    /// user that misses one output must not see the next as if nothing happened.
    pub fn push(&self, message: Message) {
        let mut queue = self.lock();
        let Queue::Open { frames, bytes, closed: false, .. } = &mut *queue else { return };
        let size = size(&message);
        if *bytes == 0 || *bytes + size <= self.bytes_max {
            *bytes += size;
            frames.push_back(message);
        } else {
            *queue = Queue::Overflowed;
        }
        drop(queue);
        self.reader.wake();
    }

    /// Wakes this task at the next push. One task reads an outbox, so the latest call counts.
    pub fn wake_at_push(&self, waker: &Waker) {
        self.reader.register(waker);
    }

    /// Whether a frame did not fit.
    pub fn overflowed(&self) -> bool {
        matches!(*self.lock(), Queue::Overflowed)
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
            *bytes -= mem::take(flying);
        }
    }

    /// Takes no more frames. Those it has can still be popped.
    pub fn close(&self) {
        if let Queue::Open { closed, .. } = &mut *self.lock() {
            *closed = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nothing panics while the queue is locked")
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
        let outbox = Outbox::new(1_000);
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
        let outbox = Outbox::new(1_000);
        outbox.push(frame(900));
        outbox.pop_if(|_| true).unwrap();
        outbox.push(frame(0));
        assert!(outbox.overflowed());

        let outbox = Outbox::new(1_000);
        outbox.push(frame(900));
        outbox.pop_if(|_| true).unwrap();
        outbox.flushed();
        outbox.push(frame(900));
        assert!(!outbox.overflowed());
    }

    #[test]
    fn a_closed_queue_gives_what_it_has_and_takes_no_more() {
        let outbox = Outbox::new(1_000);
        outbox.push(frame(1));
        outbox.close();
        outbox.push(frame(2));
        outbox.push(frame(5_000));
        assert!(!outbox.overflowed());
        assert_eq!(outbox.pop_if(|_| true), Some(frame(1)));
        assert_eq!(outbox.pop_if(|_| true), None);
    }

    #[test]
    fn one_frame_of_any_size_passes_when_nothing_waits() {
        let outbox = Outbox::new(10);
        outbox.push(frame(5_000));
        assert_eq!(outbox.pop_if(|_| true).unwrap().len(), 5_000);
        outbox.push(frame(0));
        assert!(outbox.overflowed());
    }
}
