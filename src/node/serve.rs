//! What peers ask of the database, what they say about runs that differ, and what operators ask.
//!
//! Answers are made beside the loop, a few a peer, so that serving never slows a round.

use serde_json::json;
use tracing::{debug, error, info, warn};

use super::{
    Node, NodeError,
    alerts::Kind,
    backup, class,
    control::{self, Request},
    diverge::{self, differences},
    unl::Refused,
};
use crate::{
    consensus::{
        Query,
        details::{Details, Piece},
        header::ExecResult,
        messages::{Evidence, Get, Message},
    },
    ledger::Write,
    mesh::Class,
    types::{NodeKey, Seq},
    wire,
};

/// Requests of one peer being answered. Past it a request is dropped; the peer asks again, or another. For ranges of
/// ledgers it is one.
const SERVING_MAX: usize = 16;

/// What a peer was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    Range,
    Other,
}

impl Node {
    pub(super) fn serve(&mut self, to: NodeKey, query: Query) {
        if let Query::Details(seq) = query {
            if let Some(details) = self.details(seq) {
                self.keep_for(to, seq);
                self.send(to, &Message::Details(Box::new(details)));
            }
            return;
        }
        // Of a run that nobody keeps nothing need be read.
        let kept = match &query {
            Query::Piece(asked) => self.records.kept(asked.of_seq).cloned(),
            _ => None,
        };
        if let Query::Npl(ledger) = query {
            for message in self.line.again(ledger, to) {
                if let Err(error) = self.mesh.send(&to, Class::Vote, message) {
                    debug!(peer = %to.short(), %error, "the party line is not told again");
                    break;
                }
            }
            return;
        }
        let serving = self.serving.entry(to).or_insert(0);
        if *serving >= SERVING_MAX {
            debug!(peer = %to.short(), "asks for too much at once");
            return;
        }
        let is_long = matches!(query, Query::Range(..) | Query::Headers(..) | Query::Users(..));
        let served = if is_long { Served::Range } else { Served::Other };
        if served == Served::Range && !self.serving_ranges.insert(to) {
            debug!(peer = %to.short(), "asks for two things at once that take long to read");
            return;
        }
        *serving += 1;
        let (ledger, mesh, done) = (self.ledger.clone(), self.mesh.clone(), self.served_tx.clone());
        let dir = self.config.dir.clone();
        tokio::spawn(async move {
            let send = |message: Message| {
                let bytes = wire::encode(&message);
                let _ = mesh.send(&to, class(&message, bytes.len()), bytes.into());
            };
            let outcome = match query {
                Query::Range(first, last) => ledger
                    .range(first, last, |range| {
                        let message = Message::Range(Box::new(range));
                        let bytes = wire::encode(&message);
                        (class(&message, bytes.len()), bytes)
                    })
                    .await
                    .map(|(class, bytes)| {
                        let _ = mesh.send(&to, class, bytes.into());
                    }),
                Query::Headers(first, last) => ledger
                    .headers(first, last, |headers| {
                        let message = Message::Headers(Box::new(headers));
                        let bytes = wire::encode(&message);
                        (class(&message, bytes.len()), bytes)
                    })
                    .await
                    .map(|(class, bytes)| {
                        let _ = mesh.send(&to, class, bytes.into());
                    }),
                Query::Users(seq, after) => {
                    ledger.users_page(seq, after).await.map(|page| send(Message::Users(Box::new(page))))
                }
                Query::Closed(seq) => ledger
                    .header_range(seq, 1)
                    .await
                    .map(|found| found.into_iter().for_each(|closed| send(Message::Closed(closed)))),
                Query::Candidate(hash) => ledger.by_hash(hash).await.map(|found| {
                    if let Some(found) = found {
                        send(Message::Candidate(found.candidate));
                    }
                }),
                Query::Inputs(ids) => ledger
                    .inputs(ids)
                    .await
                    .map(|found| found.into_iter().for_each(|input| send(Message::Input(input)))),
                Query::Piece(asked) => {
                    let read = move || {
                        let piece = kept.map_or(Piece::Gone, |kept| diverge::answer(&dir, &kept, &asked));
                        Message::Piece(Box::new((asked, piece)))
                    };
                    send(tokio::task::spawn_blocking(read).await.expect("reading a block does not panic"));
                    Ok(())
                }
                Query::Details(_) | Query::Npl(_) => Ok(()),
            };
            if let Err(error) = outcome {
                warn!(peer = %to.short(), error = &error as &dyn std::error::Error, "cannot answer a peer");
            }
            let _ = done.send((to, served)).await;
        });
    }

    pub(super) fn on_served(&mut self, peer: NodeKey, served: Served) {
        if served == Served::Range {
            self.serving_ranges.remove(&peer);
        }
        if let Some(serving) = self.serving.get_mut(&peer) {
            *serving -= 1;
            if *serving == 0 {
                self.serving.remove(&peer);
            }
        }
    }

    // ---- Results that differ ------------------------------------------------------------------------------------

    /// My run led to something else than the quorum's: no further one is of use.
    pub(super) fn diverged(&mut self, mine: &ExecResult, agreed: &ExecResult) {
        let seq = mine.of_seq;
        self.resume();
        self.jobs.clear();
        let what = format!(
            "ledger {seq}: this node's result differs from the network's ({}): it goes on with the network's state. Is the \
             contract deterministic, and its binary the same as everywhere?",
            differences(mine, agreed).join("; ")
        );
        error!(seq, "{what}");
        self.report.alert(Kind::Diverged, what);
        self.report.diverged();
        self.metrics.diverged();
        let (me, mine, agreed) = (self.config.key, mine.clone(), agreed.clone());
        self.look_into_own(seq, |facts| {
            facts.results.insert(me, mine);
            facts.agreed = Some(agreed);
        });
        self.broadcast(&Message::Get(Get::Details(seq)));
    }

    /// No result can reach a quorum: everybody tells everybody.
    pub(super) fn split(&mut self, results: &[(NodeKey, ExecResult)]) {
        self.halt(results, |facts| {
            facts.results.extend(results.iter().cloned());
            facts.is_split = true;
        });
    }

    /// Tells all what this node's run did, once it has ended, and asks what theirs did: some may have told too early.
    pub(super) fn tell_details(&mut self, seq: Seq) {
        let Some(details) = self.details(seq) else { return };
        self.broadcast(&Message::Details(Box::new(details)));
        self.broadcast(&Message::Get(Get::Details(seq)));
    }

    /// What this node's run of a ledger did, in this process or in one before it.
    fn details(&self, seq: Seq) -> Option<Details> {
        let ran = self.runs.get(&seq).and_then(|kept| kept.details.clone());
        ran.or_else(|| Some(self.records.kept(seq)?.details.clone()))
    }

    pub(super) fn keep_evidence(&mut self, evidence: Evidence) {
        let Some((signer, kind, seq, attempt)) = evidence.slot() else { return };
        if self.report.evidence(signer, kind, (seq, attempt)) {
            if signer == self.config.key {
                let what = "this node's key signed something this process did not: the key is used elsewhere too; stop one of them";
                error!("{what}");
                self.report.alert(Kind::KeyElsewhere, what.to_owned());
            }
            self.batch.push(Write::Evidence(Box::new(evidence)));
        }
    }

    // ---- Operators ----------------------------------------------------------------------------------------------

    pub(super) fn on_request(&mut self, asked: control::Asked) -> Result<(), NodeError> {
        let control::Asked { request, answer } = asked;
        if let Request::Metrics = request {
            let (metrics, status) = (self.metrics.clone(), self.status());
            // It reads files.
            tokio::task::spawn_blocking(move || {
                // Whoever asked may be gone.
                let _ = answer.send(json!({ "text": metrics.plain_text(&status) }));
            });
            return Ok(());
        }
        if let Request::CopyState { to } = request {
            if self.core.lacks_state_since_join() {
                // Whoever asked may be gone.
                let _ = answer.send(json!({ "error": backup::NO_STATE }));
                return Ok(());
            }
            self.copy_state(to, answer);
            return Ok(());
        }
        if let Request::HoldRuns = request {
            self.hold_runs(answer);
            return Ok(());
        }
        if let Request::Stop = request {
            info!("stopping: an operator asked for it");
            self.stops = true;
            // Whoever asked may be gone.
            let _ = answer.send(json!({ "stopping": true }));
            return Ok(());
        }
        let done = match request {
            Request::GoOn { bin } => Ok(self.go_on(bin.map(|bin| (bin.after, bin.from)))),
            Request::Status | Request::Watch { .. } => Ok(self.status()),
            Request::Unl => Ok(self.unl_status()),
            Request::Bans => Ok(self.bans_status()),
            Request::Ban(ban) => self.ban(ban).map(|()| self.bans_status()),
            Request::Unban { node } => self.unban(&node).map(|()| self.bans_status()),
            Request::UnlVote(vote) => self.unl_vote(&vote)?.map(|()| self.unl_status()),
            Request::UnlWithdraw => self.unl_withdraw()?.map(|()| self.unl_status()),
            Request::CopyState { .. } | Request::Metrics | Request::HoldRuns | Request::Stop => {
                unreachable!("answered when it is done")
            }
        };
        let value = done.unwrap_or_else(|Refused { why, danger }| json!({ "error": why, "danger": danger }));
        self.answers.push((answer, value));
        self.give_answers();
        Ok(())
    }

    /// Answers operators once what they asked for is on disk.
    pub(super) fn give_answers(&mut self) {
        if self.committing.is_none() && self.effects.is_empty() {
            for (answer, value) in self.answers.drain(..) {
                // Whoever asked may be gone.
                let _ = answer.send(value);
            }
        }
    }
}
