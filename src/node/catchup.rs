//! What a node that is behind does beside the loop: reading ledgers to be run, checking ledgers that peers sent, and
//! telling people how far it is.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::{
    Job, Node, NodeError,
    progress::Progress,
    sync::{SyncProgress, Syncing},
};
use crate::{
    consensus::{
        Event,
        header::{BareLedger, ClosedLedger, Input},
        range::{CheckedHeaders, CheckedRange, Lie},
    },
    ledger::LedgerError,
    types::{NodeKey, Seq},
    wire,
};

/// How often people are told how far it is, where nothing draws it.
const TOLD_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at where the node stands.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Draws how far a node that is behind has come, and how far the state that it fetches; `None` when it is not behind, or
/// fetches none, any more.
pub type Draw = Box<dyn FnMut(Option<&Progress>, Option<&SyncProgress>)>;

/// What was done beside the loop.
#[derive(Debug)]
pub(super) enum Found {
    /// Ledgers to be run, out of the database.
    ToRun(Result<Vec<(ClosedLedger, Vec<Input>)>, LedgerError>),
    /// A peer's answer, checked.
    Range(NodeKey, Result<CheckedRange, Lie>),
    /// The same of ledgers without their contents.
    Headers(NodeKey, Result<CheckedHeaders, Lie>),
}

/// Ticks at which the node looks where it stands.
pub(super) fn looks() -> Interval {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

impl Node {
    /// Draws catching up by `draw` instead of telling of it in the log.
    pub fn draw_progress(&mut self, draw: Draw) {
        self.draw = Some(draw);
    }

    pub(super) fn on_found(&mut self, found: Found) -> Result<(), NodeError> {
        match found {
            Found::ToRun(ledgers) => self.handle(Event::Loaded(ledgers?)),
            Found::Range(peer, range) => {
                self.checking.remove(&peer);
                self.handle(Event::Range(peer, range))
            }
            Found::Headers(peer, headers) => {
                self.checking.remove(&peer);
                self.handle(Event::Headers(peer, headers))
            }
        }
    }

    /// Reads ledgers to be run. Everything up to the last closed one is on disk by now.
    pub(super) fn load(&self, first: Seq) {
        let (ledger, found) = (self.ledger.clone(), self.found_tx.clone());
        tokio::spawn(async move {
            let ledgers = ledger.to_run(first).await;
            let _ = found.send(Found::ToRun(ledgers)).await;
        });
    }

    /// Checks the ledgers that a peer was asked for, one answer of each at a time: hundreds of signatures.
    pub(super) fn check_ledgers(&mut self, peer: NodeKey, bytes: Bytes) {
        if !self.core.expects_range(&peer) || !self.checking.insert(peer) {
            debug!(peer = %peer.short(), "closed ledgers that nobody asked for");
            return;
        }
        let (chain_id, found) = (self.core.chain_id(), self.found_tx.clone());
        tokio::task::spawn_blocking(move || {
            let checked = match wire::is_headers(&bytes) {
                true => Found::Headers(peer, wire::check_headers(&bytes, &chain_id)),
                false => Found::Range(peer, wire::check_range(&bytes, &chain_id)),
            };
            let _ = found.blocking_send(checked);
        });
    }

    pub(super) fn lied(&mut self, peer: NodeKey, lie: Lie) {
        warn!(peer = %peer, what = %lie, "a node sent something false as a closed ledger; it is not asked for any again");
        self.report.lied(peer, lie.to_string());
    }

    /// Ledgers are passed over from here on: what was to be run is not, and a state that is being fetched is of no use.
    pub(super) fn join(&mut self, next: Seq, oldest: Seq) {
        info!(
            next,
            oldest,
            "no linked node keeps the contents of what comes next here: headers alone are fetched until there are contents again, \
             and then the users and the state of a recent ledger"
        );
        self.jobs.retain(|job| matches!(job, Job::Keep(_)));
        (self.syncing, self.sync_due) = (None, None);
        if let Some((_, end)) = self.end_run.take() {
            // It may have ended by itself just now.
            let _ = end.send(());
        }
    }

    pub(super) fn ledger_passed(&mut self, ledger: &BareLedger) {
        let hash = ledger.qc.vote.ledger_hash;
        self.line.closed(hash);
        self.report.passed(ledger.header.seq);
        if let Some(change) = &ledger.unl_change {
            self.unl_changed(ledger.header.seq, change);
            self.tell_unl_change(&ledger.header, &ledger.qc, change);
        }
        self.look_at_settlement(&ledger.header, &ledger.qc);
    }

    /// Looks where the node stands, and tells people while it is behind.
    pub(super) fn look(&mut self) {
        let summary = self.core.summary();
        let executed = summary.seq - summary.unexecuted;
        let began = self.progress.began();
        let now = Instant::now();
        let progress = self.progress.look(now, summary.seq, executed, summary.network_seq);
        if let Some(draw) = &mut self.draw {
            draw(progress.as_ref(), self.syncing.as_ref().map(Syncing::look).as_ref());
        }
        let told = &mut self.progress_told;
        match (progress, began) {
            (Some(progress), _) if self.draw.is_none() && told.is_none_or(|told| now - told >= TOLD_EVERY) => {
                *told = Some(now);
                let (verified, executed) = (progress.verified, progress.executed);
                info!(
                    verified = verified.at,
                    executed = executed.at,
                    of = verified.to,
                    percent = verified.percent(),
                    percent_executed = executed.percent(),
                    per_s = verified.per_s.round(),
                    executed_per_s = executed.per_s.round(),
                    left_s = verified.left().map(|left| left.as_secs()),
                    executed_left_s = executed.left().map(|left| left.as_secs()),
                    "catching up"
                );
            }
            (None, Some(from)) => {
                *told = None;
                info!(seq = summary.seq, ledgers = executed - from, "caught up");
            }
            _ => {}
        }
        self.report.progress = progress;
        self.offers.look(now);
    }
}
