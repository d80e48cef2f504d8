//! Fetching a state from other nodes, of which nothing is known but the root that a quorum agreed on.
//!
//! Blocking, and without a network: who sends what to whom is the caller's.
//!
//! - The server answers from a [`Pin`](super::Pin): [`answer`].
//! - [`Fetch`] is the asker. It walks the tree from the root down, passes over what is the same here, checks every part
//!   against the hash above it, and takes blocks from what is here where it can. What it fetches goes to
//!   `hist/sync/blocks` (`stage`), and is found there again after a restart.
//! - When everything is here, [`StateStore::adopt`](super::StateStore::adopt) makes it the state: the list of what it
//!   is goes to `hist/sync/target` (`target`), then one record says that it counts. A cut before that record leaves the
//!   old state, a cut after it ends in the new one. Until then nothing but `hist/sync/` is written.
//!
//! Nothing that a peer says is believed: a path that could leave `state/`, an order, a size or a number that cannot be
//! makes what it sent a [`Lie`], although a quorum's root would rule all of that out.

mod fetch;
mod serve;
mod stage;
mod target;

#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::ops::Range;

pub use self::{
    fetch::{Fetch, Goal, Lie, Progress},
    serve::answer,
    stage::Stage,
    target::{Local, Need, Space, Target},
};
pub(super) use self::{
    stage::Staged,
    target::{clear, clear_adopted, local_of},
};

/// Levels between a node and the nodes of an answer to `Nodes` or `Hashes`: 4,096 hashes, 128 KiB.
pub(super) const NODES_LEVELS: u32 = 12;
/// Levels between a node and the leaves of an answer to `Leaves`: 64 leaves of at most about 2 KiB.
pub(super) const LEAVES_LEVELS: u32 = 6;

/// Nodes so many levels above `count` leaves.
pub(super) fn level_len(count: u64, height: u32) -> u64 {
    match 1_u64.checked_shl(height) {
        Some(each) => count.div_ceil(each),
        None => u64::from(count > 0),
    }
}

/// What stands `levels` below the node at `height` and `index`, as places of that level; `None` when there is no such
/// node over `count` leaves.
pub(super) fn children(count: u64, height: u32, index: u64, levels: u32) -> Option<Range<u64>> {
    let there = level_len(count, height.checked_sub(levels)?);
    let first = index.checked_shl(levels).filter(|first| first >> levels == index)?;
    let last = first.saturating_add(1 << levels).min(there);
    (first < last).then_some(first..last)
}
