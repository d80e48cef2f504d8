//! What peers ask of the database, what they say about runs that differ, and what operators ask.
//!
//! Answers are made beside the loop, a few a peer, so that serving never slows a round.

use std::collections::BTreeMap;

use serde_json::json;
use tracing::{debug, error, warn};

use super::{
    Node, NodeError, class,
    control::{self, Request},
    unl::Refused,
};
use crate::{
    consensus::{
        Query,
        header::ExecResult,
        messages::{Details, Evidence, Get, Message},
    },
    ledger::Write,
    mesh::Class,
    types::{Hash, NodeKey, Seq},
    wire,
};

/// Requests of one peer being answered. Past it a request is dropped; the peer asks again, or another. For ranges of
/// ledgers it is one.
const SERVING_MAX: usize = 16;
/// Differing paths told to the operator; the rest is under diag/.
const DIFFERENCES_SHOWN: usize = 20;
/// Bytes of a path told to the operator; the rest is cut.
const PATH_SHOWN_BYTES: usize = 256;

/// What a peer was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    Range,
    Other,
}

impl Node {
    pub(super) fn serve(&mut self, to: NodeKey, query: Query) {
        if let Query::Details(seq) = query {
            if let Some(details) = self.runs.get(&seq).and_then(|kept| kept.details.clone()) {
                self.send(to, &Message::Details(Box::new(details)));
            }
            return;
        }
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
        let served = if matches!(query, Query::Range(..)) { Served::Range } else { Served::Other };
        if served == Served::Range && !self.serving_ranges.insert(to) {
            debug!(peer = %to.short(), "asks for two ranges of ledgers at once");
            return;
        }
        *serving += 1;
        let (ledger, mesh, done) = (self.ledger.clone(), self.mesh.clone(), self.served_tx.clone());
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
        self.jobs.clear();
        let what = format!(
            "ledger {seq}: this node's result differs from the network's ({}): it goes on with the network's state. Is the \
             contract deterministic, and its binary the same as everywhere?",
            differences(mine, agreed).join("; ")
        );
        error!(seq, "{what}");
        self.report.alert(what);
        let executor = self.executor.clone();
        let fresh = self.runs.contains_key(&seq);
        self.report.diverged(seq);
        self.keeping = Some(tokio::spawn(async move {
            match executor.give_up(seq, fresh).await {
                Ok(path) => error!(seq, path = %path.display(), "the differing state is kept"),
                Err(error) => error!(seq, error = &error as &dyn std::error::Error, "cannot keep the differing state"),
            }
        }));
        self.broadcast(&Message::Get(Get::Details(seq)));
    }

    /// No result can reach a quorum: everybody tells everybody.
    pub(super) fn split(&mut self, results: &[(NodeKey, ExecResult)]) {
        let mut by_result: BTreeMap<&ExecResult, Vec<String>> = BTreeMap::new();
        for (node, result) in results {
            by_result.entry(result).or_default().push(node.short());
        }
        let seq = results.first().map_or(0, |(_, result)| result.of_seq);
        error!(
            seq,
            "results of ledger {seq} differ and no quorum is possible: no ledger is closed until a missing result completes one"
        );
        for (result, nodes) in &by_result {
            error!(
                seq,
                nodes = nodes.join(" "),
                state = %result.state_root.short(),
                outputs = %result.outputs_root.short(),
                status = %result.status,
                "one side of the split"
            );
        }
        self.report.split(seq, by_result.len());
        self.tell_details(seq);
    }

    /// Tells all what this node's run did, once it has ended, and asks what theirs did: some may have told too early.
    pub(super) fn tell_details(&mut self, seq: Seq) {
        let Some(details) = self.runs.get(&seq).and_then(|kept| kept.details.clone()) else { return };
        self.broadcast(&Message::Details(Box::new(details)));
        self.broadcast(&Message::Get(Get::Details(seq)));
    }

    /// A peer says what its run did: where it differs from mine.
    pub(super) fn compare_details(&mut self, peer: NodeKey, theirs: &Details) {
        let Some(kept) = self.runs.get_mut(&theirs.result.of_seq) else { return };
        let Some(mine) = &kept.details else { return };
        if mine.result == theirs.result || mine.result.of_hash != theirs.result.of_hash {
            return;
        }
        // Once a run: a peer must not fill the log.
        if !kept.compared.insert(peer) {
            return;
        }
        let ours: BTreeMap<&[u8], Hash> = mine.leaves.iter().map(|(path, hash)| (&path[..], *hash)).collect();
        let other: BTreeMap<&[u8], Hash> = theirs.leaves.iter().map(|(path, hash)| (&path[..], *hash)).collect();
        let paths = differing(&ours, &other);
        let paths: Vec<String> =
            paths.iter().take(DIFFERENCES_SHOWN).map(|path| format!("state/{}", shown(path))).collect();
        let ours = mine.outputs.iter().copied().collect();
        let other = theirs.outputs.iter().copied().collect();
        let users: Vec<String> =
            differing(&ours, &other).iter().take(DIFFERENCES_SHOWN).map(|user| user.to_string()).collect();
        let seq: Seq = theirs.result.of_seq;
        error!(
            seq,
            peer = %peer.short(),
            what = differences(&mine.result, &theirs.result).join("; "),
            paths = paths.join(", "),
            users = users.join(", "),
            "this run differs from the peer's"
        );
        if !paths.is_empty() {
            self.report.alert(format!(
                "ledger {seq}: the state differs from {}'s in {}",
                peer.short(),
                paths.join(", ")
            ));
        }
        if !users.is_empty() {
            self.report.alert(format!("ledger {seq}: outputs differ from {}'s for {}", peer.short(), users.join(", ")));
        }
    }

    pub(super) fn keep_evidence(&mut self, evidence: Evidence) {
        let Some((signer, kind, seq, attempt)) = evidence.slot() else { return };
        if self.report.evidence(signer, kind, (seq, attempt)) {
            if signer == self.config.key {
                let what = "this node's key signed something this process did not: the key is used elsewhere too; stop one of them";
                error!("{what}");
                self.report.alert(what.to_owned());
            }
            self.batch.push(Write::Evidence(Box::new(evidence)));
        }
    }

    // ---- Operators ----------------------------------------------------------------------------------------------

    pub(super) fn on_request(&mut self, asked: control::Asked) -> Result<(), NodeError> {
        let control::Asked { request, answer } = asked;
        let done = match request {
            Request::Status => Ok(self.status()),
            Request::Unl => Ok(self.unl_status()),
            Request::UnlVote(vote) => self.unl_vote(&vote)?.map(|()| self.unl_status()),
            Request::UnlWithdraw => self.unl_withdraw()?.map(|()| self.unl_status()),
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

/// A path that a peer named, fit for a log: one line, no control characters, of a bounded length.
fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(&path[..path.len().min(PATH_SHOWN_BYTES)]);
    text.escape_debug().collect()
}

/// Keys whose values differ or that only one side has.
fn differing<'a, K: Ord + Copy + 'a>(ours: &BTreeMap<K, Hash>, theirs: &BTreeMap<K, Hash>) -> Vec<K> {
    let mut keys: Vec<K> = ours.keys().filter(|key| ours.get(key) != theirs.get(key)).copied().collect();
    keys.extend(theirs.keys().filter(|key| !ours.contains_key(key)));
    keys.sort_unstable();
    keys
}

fn differences(mine: &ExecResult, theirs: &ExecResult) -> Vec<String> {
    let mut found = Vec::new();
    if mine.status != theirs.status {
        found.push(format!("run: {} here, {} there", mine.status, theirs.status));
    }
    if mine.state_root != theirs.state_root {
        found.push(format!("state: {} here, {} there", mine.state_root.short(), theirs.state_root.short()));
    }
    if mine.outputs_root != theirs.outputs_root {
        found.push(format!("outputs: {} here, {} there", mine.outputs_root.short(), theirs.outputs_root.short()));
    }
    if mine.unl_req != theirs.unl_req {
        found.push("the UNL change asked for".to_owned());
    }
    found
}
