//! Outputs to users in raw mode, held until they are final: until the chain records that their ledger is settled.
//!
//! A frame of raw mode can carry no mark, so such a user has none of what may still be undone. Nothing is held in memory: a
//! task beside the loop reads what became final from the database, in order, a page at a time, and goes on when that was
//! taken. Who is not connected when it becomes final loses it, as always in raw mode.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};
use tracing::warn;

use crate::{
    consensus::merkle::Tree,
    gateway::{FRAME_OVERHEAD_BYTES, RawUsers},
    ledger::{Ledger, LedgerError, PutOut},
    types::{Hash, Seq, Status, UserKey},
};

/// Bytes of a page at most; half of what may wait for one session, if that is less. One output may be longer.
const PAGE_BYTES_MAX: usize = 256 << 10;
/// Time that users who take nothing are waited for, over all of what became final at once; who is found to be one is not waited
/// for again. What such users do not take piles up, until they are dropped as `slow`.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 30_000 });
/// The same, at least, for those that are found out later: many users that read nothing cannot use up the others' time.
const PATIENCE_MIN: Duration = Duration::from_millis(100);

/// The task that hands out what becomes final; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Release {
    to: watch::Sender<Seq>,
    task: JoinHandle<()>,
}

impl Release {
    /// Everything up to ledger `done` was final before, and is nobody's any more.
    pub(super) fn start(ledger: Ledger, users: RawUsers, done: Seq) -> Release {
        let (to, heard) = watch::channel(done);
        Release { to, task: tokio::spawn(run(ledger, users, done, heard)) }
    }

    /// Everything up to ledger `to` is final, and is in the database as far as this node has it.
    pub(super) fn up_to(&self, to: Seq) {
        self.to.send_if_modified(|last| {
            let is_more = to > *last;
            *last = to.max(*last);
            is_more
        });
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(ledger: Ledger, users: RawUsers, mut done: Seq, mut heard: watch::Receiver<Seq>) {
    while heard.changed().await.is_ok() {
        let to = *heard.borrow_and_update();
        if let Err(error) = hand_out(&ledger, &users, done, to).await {
            warn!(
                error = &error as &dyn std::error::Error,
                "cannot read outputs that are final now; users in raw mode lose them"
            );
        }
        done = to;
    }
}

/// Hands out what the ledgers after `done` up to `to` put out.
async fn hand_out(ledger: &Ledger, users: &RawUsers, done: Seq, to: Seq) -> Result<(), LedgerError> {
    let limits = (PAGE_BYTES_MAX.min(users.queue_bytes_max() / 2), FRAME_OVERHEAD_BYTES);
    let mut patience = PATIENCE;
    let mut slow = BTreeSet::new();
    let mut at = done;
    loop {
        let wanted = Arc::new(users.all());
        if wanted.is_empty() {
            return Ok(());
        }
        let Some(put_out) = ledger.next_outputs(at, to).await? else { return Ok(()) };
        at = put_out.seq;
        if !is_agreed(put_out).await {
            continue;
        }
        let mut after = None;
        loop {
            let page = ledger.outputs_of(at, after, wanted.clone(), limits).await?;
            let receivers: BTreeSet<UserKey> = page.outputs.iter().map(|(user, _)| *user).collect();
            for (user, output) in page.outputs {
                users.deliver(&user, output.into());
            }
            let began = Instant::now();
            slow.extend(users.slow(receivers.difference(&slow), patience).await);
            patience = patience.saturating_sub(began.elapsed()).max(PATIENCE_MIN);
            after = page.more_after;
            if after.is_none() {
                break;
            }
        }
    }
}

/// Whether this is what a quorum agreed on, and not what a run of this node's own led to.
async fn is_agreed(put_out: PutOut) -> bool {
    let PutOut { leaves, agreed, .. } = put_out;
    let root = move || Tree::new(leaves).root();
    let root: Hash = tokio::task::spawn_blocking(root).await.expect("hashing does not panic");
    agreed.status == Status::Ok && root == agreed.outputs_root
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::{sync::mpsc, time::timeout};

    use super::*;
    use crate::{
        cli::client::{Frame, RawClient},
        gateway::{EVENTS_MAX, Gateway, GatewayConfig},
        ledger::{Store, Write},
        verify::tests::made::{Made, Plan},
    };

    /// More than fits a session's queue with another one.
    const LONG: usize = 40 << 10;
    /// More than fits the system's queues.
    const VERY_LONG: usize = 4 << 20;

    fn bytes(seq: Seq, length: usize) -> Vec<u8> {
        vec![0x80 | seq as u8; length]
    }

    /// Of a user who takes what it gets, of one who gets little, and of one who takes nothing.
    fn chain() -> Made {
        let mut made = Made::new(3);
        for seq in 1..=9 {
            let outputs: BTreeMap<UserKey, Vec<u8>> = [LONG, 1, VERY_LONG]
                .into_iter()
                .enumerate()
                .map(|(at, length)| (made.user(at), bytes(seq, length)))
                .collect();
            made.close(Plan { outputs: outputs.into_iter().collect(), ..Plan::default() }, |_| {});
            // Its own run of one ledger led this node to something else.
            if let Some(Write::Outputs { outputs, .. }) =
                made.writes.iter_mut().rev().find(|write| matches!(write, Write::Outputs { seq: 3, .. }))
            {
                outputs[0].1 = b"a lie".to_vec();
            }
        }
        made
    }

    #[tokio::test]
    async fn what_is_final_reaches_users_in_order_as_they_take_it_and_a_lie_of_this_node_does_not() {
        let (made, folder) = (chain(), tempfile::tempdir().unwrap());
        made.store(folder.path());
        let mut store = Store::open(folder.path()).unwrap();
        store.load(made.shared.input_window).unwrap();
        let ledger = Ledger::start(store).unwrap();
        let config = GatewayConfig { queue_bytes_max: 64 << 10, ..GatewayConfig::new("127.0.0.1:0".parse().unwrap()) };
        let (sender, mut events) = mpsc::channel(EVENTS_MAX);
        let gateway = Gateway::start(config, sender).await.unwrap();
        let mut users = Vec::new();
        for key in &made.users[..3] {
            users.push(RawClient::connect(&gateway.local_addr().to_string(), key).await.unwrap());
            events.recv().await.unwrap();
        }
        let [mut takes, mut little, _takes_nothing] = <[RawClient; 3]>::try_from(users).ok().unwrap();

        let release = Release::start(ledger.clone(), gateway.raw(), 1);
        release.up_to(4);
        // Of a ledger that was final before nothing comes; nor of one of which this node has something else.
        for seq in [2, 4] {
            assert_eq!(
                timeout(PATIENCE * 20, takes.recv()).await.unwrap().unwrap(),
                Frame::Binary(bytes(seq, LONG).into())
            );
            assert_eq!(
                timeout(PATIENCE * 20, little.recv()).await.unwrap().unwrap(),
                Frame::Binary(bytes(seq, 1).into())
            );
        }
        release.up_to(3);
        // Far more than fits the queue at once; the last ledger's result is in no header yet.
        release.up_to(9);
        for seq in 5..=8 {
            assert_eq!(
                timeout(PATIENCE * 20, takes.recv()).await.unwrap().unwrap(),
                Frame::Binary(bytes(seq, LONG).into())
            );
            assert_eq!(
                timeout(PATIENCE * 20, little.recv()).await.unwrap().unwrap(),
                Frame::Binary(bytes(seq, 1).into())
            );
        }
        assert!(gateway.raw().all().contains(&takes.user()));
        // Who takes nothing held up the others for a while, and is dropped.
        events.recv().await.unwrap();
        assert_eq!(gateway.users(), 2);
        drop(release);
        gateway.stop().await;
        ledger.stop().await.unwrap();
    }
}
