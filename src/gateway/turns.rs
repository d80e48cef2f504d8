//! Turns of the gateway's thread for those who have not said who they are: one at a time, whatever their number.
//!
//! A runtime serves its tasks in the order in which they are woken. A thousand strangers that wait together would make every user
//! wait for a thousand steps of a handshake, again and again. So strangers stand in a queue of their own: one of them at most is
//! among the tasks that are ready to run, and whoever is in passes between any two steps.

use std::{convert::Infallible, future::poll_fn, pin::pin, task::Poll};

use tokio::sync::{Notify, Semaphore};

/// The turns of one thread.
#[derive(Debug)]
pub(super) struct Turns {
    /// The next turn. Who waits for it stands in a queue, and is not woken before.
    next: Semaphore,
    /// Told when a turn was taken.
    taken: Notify,
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns { next: Semaphore::new(1), taken: Notify::new() }
    }

    /// Makes the next turn out of each that was taken. To be a task of its own: it stands behind all those who were ready when
    /// the turn before was taken, and they come first.
    pub(super) async fn keep(&self) -> Infallible {
        loop {
            self.taken.notified().await;
            self.next.add_permits(1);
        }
    }

    /// The next turn, for a test that lets nobody go on.
    #[cfg(test)]
    pub(super) async fn hold(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.next.acquire().await.expect("nobody closes it")
    }

    /// Does this work, each step of it in a turn of its own. A step is what it does until it has to wait.
    pub(super) async fn of<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        loop {
            let turn = self.next.acquire().await.expect("nobody closes it");
            // Whatever woke this task while it stood in the queue: the work is looked at now.
            let step = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
            turn.forget();
            self.taken.notify_one();
            match step {
                Poll::Ready(output) => return output,
                Poll::Pending => woken().await,
            }
        }
    }
}

/// Returns when this task is woken by what it polled before.
async fn woken() {
    let mut is_first = true;
    poll_fn(|_| if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(()) }).await;
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    };

    use tokio::{spawn, sync::oneshot, task::JoinSet};

    use super::*;

    /// Turns that are made as they are taken.
    fn turns() -> Arc<Turns> {
        let turns = Arc::new(Turns::new());
        let kept = turns.clone();
        spawn(async move { kept.keep().await });
        turns
    }

    /// Is ready to go on at once, and lets others go first.
    async fn step() {
        let mut is_first = true;
        poll_fn(|cx| {
            cx.waker().wake_by_ref();
            if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    #[tokio::test]
    async fn a_user_waits_for_one_step_of_strangers_however_many_there_are() {
        const STRANGERS: u32 = 100;
        let (turns, steps) = (turns(), Arc::new(AtomicU32::new(0)));
        let mut strangers = JoinSet::new();
        for _ in 0..STRANGERS {
            let (turns, steps) = (turns.clone(), steps.clone());
            strangers.spawn(async move {
                let work = async {
                    for _ in 0..20 {
                        steps.fetch_add(1, Relaxed);
                        step().await;
                    }
                };
                turns.of(work).await;
            });
        }
        let seen = steps.clone();
        let user = spawn(async move {
            let mut most = 0;
            for _ in 0..1_000 {
                let before = seen.load(Relaxed);
                step().await;
                most = most.max(seen.load(Relaxed) - before);
            }
            most
        });
        assert_eq!(user.await.unwrap(), 1, "steps of strangers between two of a user's");
        strangers.join_all().await;
        assert_eq!(steps.load(Relaxed), STRANGERS * 20, "all get their turns");
    }

    #[tokio::test]
    async fn who_waits_for_something_else_or_is_dropped_keeps_nobody_from_a_turn() {
        let turns = turns();
        let (tell, told) = oneshot::channel();
        let (of_one, of_other) = (turns.clone(), turns.clone());
        let waits = spawn(async move { of_one.of(told).await });
        let cut = spawn(async move { of_other.of(std::future::pending::<()>()).await });
        assert_eq!(turns.of(async { 7 }).await, 7);
        // One that stands in the queue, and one that waits for something else.
        let first = turns.of(async { step().await });
        drop(turns.of(async {}));
        first.await;
        cut.abort();
        assert!(cut.await.unwrap_err().is_cancelled());
        tell.send(8).unwrap();
        assert_eq!(waits.await.unwrap(), Ok(8), "it is woken by what it waits for");
        assert_eq!(turns.of(async { 9 }).await, 9);
    }
}
