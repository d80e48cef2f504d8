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

use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tracing::warn;

use crate::{
    consensus::merkle::Tree,
    gateway::{FRAME_OVERHEAD_BYTES, RawUsers},
    ledger::{Ledger, LedgerError, PutOut},
    types::{Hash, Seq, Status, UserKey},
};

/// Bytes of a page at most; half of what may wait for one session, if that is less. One output may be longer.
const PAGE_BYTES_MAX: usize = 256 << 10;
/// Time that users are waited for, that take nothing, over all of what became final at once. Past it what they do not take piles
/// up, until they are dropped as `slow`.
const PATIENCE: Duration = Duration::from_secs(30);

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
        Release { to, task: tokio::spawn(run(ledger, users, heard)) }
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

async fn run(ledger: Ledger, users: RawUsers, mut heard: watch::Receiver<Seq>) {
    let mut done = *heard.borrow_and_update();
    while heard.changed().await.is_ok() {
        let to = *heard.borrow_and_update();
        if let Err(error) = hand_out(&ledger, &users, done, to).await {
            warn!(error = &error as &dyn std::error::Error, "cannot read outputs that are final now; users in raw mode lose them");
        }
        done = to;
    }
}

/// Hands out what the ledgers after `done` up to `to` put out.
async fn hand_out(ledger: &Ledger, users: &RawUsers, done: Seq, to: Seq) -> Result<(), LedgerError> {
    let limits = (PAGE_BYTES_MAX.min(users.queue_bytes_max() / 2), FRAME_OVERHEAD_BYTES);
    let mut patience = PATIENCE;
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
            // Whether it was taken or not, it goes on.
            let _ = timeout(patience, users.took_all(receivers.iter())).await;
            patience = patience.saturating_sub(began.elapsed());
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
