//! Results that differ: what this node's run left is kept under `diag/`, others are answered from there, and an inquiry
//! finds out where the runs went apart. Beside the loop: no round waits for it but for the copy of a few files.

mod inquiry;
mod kept;
mod streak;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};

use self::inquiry::{Facts, Inquiry, Tell};
pub(super) use self::{
    kept::{KeptRun, Left, Recent, ToKeep, answer, keep, read},
    streak::Streak,
};
use super::{FromRun, Job, Node, alerts::Kind, exec::ExecError};
use crate::{
    consensus::{
        details::{BLOCKS_MAX, DETAILS_MAX, Details, Piece, PieceRef, Thing},
        header::ExecResult,
        messages::{Get, Message},
    },
    divergence::{
        folder::{self, OTHERS_MAX, OWN_MAX},
        shown_path,
    },
    gateway::ErrorCode,
    state::{BLOCK_BYTES, PATH_BYTES_MAX},
    types::{NodeKey, Seq},
};

/// Ledgers whose results are looked into. The lowest makes room; what is on disk of it stays.
const RECORDS_MAX: usize = OWN_MAX + OTHERS_MAX;
/// A member makes this node keep one of its runs, which costs a copy of files, no more often.
const KEEP_PAUSE: Duration = Duration::from_secs(600);
/// Results that differ for so long without a quorum for one of them are told to people as a halt.
const HALT_AFTER: Duration = Duration::from_secs(2);
/// What waits for an inquiry. Past it answers are dropped, and asked for again.
const TELLS_MAX: usize = 16;
/// Siblings in a proof: there are fewer paths than 2^32.
const SIBLINGS_MAX: usize = 32;
/// Differing paths, and users, told to the operator; the rest is in the report.
const DIFFERENCES_SHOWN: usize = 20;
/// Bytes of a path told to the operator; the rest is cut.
const PATH_SHOWN_BYTES: usize = 256;

/// Ledgers whose results differ, as far as this process knows.
#[derive(Debug, Default)]
pub(super) struct Records {
    by_seq: BTreeMap<Seq, Record>,
    /// When each member last made this node keep a run.
    kept_for: BTreeMap<NodeKey, Instant>,
    /// The last ledger, while nothing is agreed of it and not all say the same.
    undecided: Option<Undecided>,
    /// The ledger for which people were told of a halt.
    halted: Option<Seq>,
}

#[derive(Debug)]
struct Undecided {
    seq: Seq,
    since: Instant,
    results: Vec<(NodeKey, ExecResult)>,
}

#[derive(Debug, Default)]
struct Record {
    facts: Facts,
    kept: Option<Arc<KeptRun>>,
    /// A copy is being made, or waits for its turn.
    keeping: bool,
    /// This node differs, or the network is split.
    is_own: bool,
    /// It came to that while a copy was being made.
    is_poor: bool,
    tells: Option<SyncSender<Tell>>,
}

impl Records {
    /// Whether results differ, and time may tell more.
    pub fn is_undecided(&self) -> bool {
        self.undecided.is_some()
    }

    /// What an earlier process kept.
    pub fn load(dir: &Path) -> Records {
        let seqs = folder::list(dir).unwrap_or_else(|error| {
            warn!(%error, "cannot read diag/");
            Vec::new()
        });
        let last = seqs.into_iter().rev().take(RECORDS_MAX);
        let record = |seq| {
            let kept = Some(Arc::new(kept::read(dir, seq)?));
            Some((seq, Record { kept, ..Record::default() }))
        };
        Records { by_seq: last.filter_map(record).collect(), ..Records::default() }
    }

    fn of(&mut self, seq: Seq) -> &mut Record {
        self.by_seq.entry(seq).or_default();
        while self.by_seq.len() > RECORDS_MAX {
            // Not the one that is asked for.
            let lowest = self.by_seq.keys().copied().find(|other| *other != seq).expect("there are others");
            self.by_seq.remove(&lowest);
        }
        self.by_seq.get_mut(&seq).expect("just made")
    }

    /// The ledger whose results keep the network from going on.
    pub fn halted(&self) -> Option<Seq> {
        self.halted
    }

    /// What is kept of a run.
    pub fn kept(&self, seq: Seq) -> Option<&Arc<KeptRun>> {
        self.by_seq.get(&seq)?.kept.as_ref()
    }

    /// Whether it is long enough ago that `node` made this one keep a run; now it does.
    fn may_keep_for(&mut self, node: NodeKey) -> bool {
        let now = Instant::now();
        self.kept_for.retain(|_, at| now.duration_since(*at) < KEEP_PAUSE);
        let first = !self.kept_for.contains_key(&node);
        if first {
            self.kept_for.insert(node, now);
        }
        first
    }
}

impl Record {
    fn tell(&mut self, tell: Tell) {
        if let Some(tells) = &self.tells
            && let Err(TrySendError::Disconnected(_)) = tells.try_send(tell)
        {
            self.tells = None;
        }
    }
}

impl Node {
    // ---- What differs -------------------------------------------------------------------------------------------

    /// Not all members say the same of a run.
    pub(super) fn differ(&mut self, results: &[(NodeKey, ExecResult)]) {
        let Some((_, ExecResult { of_seq: seq, .. })) = results.first() else { return };
        let me = self.config.key;
        let mine = results.iter().find(|(node, _)| *node == me).map(|(_, result)| result.clone());
        let others = results.iter().filter(|(node, result)| *node != me && Some(result) != mine.as_ref());
        let others: Vec<NodeKey> = others.map(|(node, _)| *node).collect();
        let mut count: BTreeMap<&ExecResult, usize> = BTreeMap::new();
        results.iter().for_each(|(_, result)| *count.entry(result).or_insert(0) += 1);
        let quorum = self.core.quorum().q;
        let agreed = count.into_iter().find(|(_, votes)| *votes >= quorum).map(|(result, _)| result.clone());

        match (&mut self.records.undecided, &agreed) {
            (undecided, Some(_)) => *undecided = None,
            (Some(undecided), None) if undecided.seq == *seq => undecided.results = results.to_vec(),
            (undecided, None) => {
                *undecided = Some(Undecided { seq: *seq, since: Instant::now(), results: results.to_vec() });
            }
        }

        // The alert that stands says how many sides there are now.
        if self.records.halted == Some(*seq) && agreed.is_none() {
            self.report.split(self.split_text(results));
        }

        let of_use = |record: &Record| record.kept.is_some() || record.keeping || record.is_own;
        let known = self.records.by_seq.get(seq).is_some_and(of_use);
        if !known {
            // Before its own run has ended there is nothing to keep.
            if mine.is_none() {
                return;
            }
            let allowed: Vec<bool> = others.iter().map(|node| self.records.may_keep_for(*node)).collect();
            if !allowed.contains(&true) {
                return;
            }
        }
        if !known && agreed.is_some() && agreed == mine {
            let nodes = others.iter().map(NodeKey::short).collect::<Vec<_>>().join(" ");
            warn!(seq, nodes, "another result than the network's; what this node's run left is kept to find out why");
        }
        let (members, record) = (self.core.unl().to_vec(), self.records.of(*seq));
        record.facts.results.extend(results.iter().cloned());
        (record.facts.members, record.facts.quorum) = (members, quorum);
        record.facts.agreed = record.facts.agreed.take().or(agreed);
        self.look_into(*seq);
    }

    /// It is this node that differs, or nobody has a quorum: `change` says what is known now.
    pub(super) fn look_into_own(&mut self, seq: Seq, change: impl FnOnce(&mut Facts)) {
        let (members, quorum) = (self.core.unl().to_vec(), self.core.quorum().q);
        let record = self.records.of(seq);
        (record.facts.members, record.facts.quorum) = (members, quorum);
        change(&mut record.facts);
        // What was kept because others differ is less.
        if !std::mem::replace(&mut record.is_own, true) {
            record.is_poor = record.keeping && record.kept.is_none();
            record.keeping = record.is_poor;
            record.kept = None;
        }
        self.look_into(seq);
    }

    /// What is agreed of a ledger whose results differ.
    pub(super) fn settled(&mut self, agreed: &ExecResult) {
        self.resume();
        let Some(record) = self.records.by_seq.get_mut(&agreed.of_seq) else { return };
        record.facts.is_split = false;
        record.facts.agreed = Some(agreed.clone());
        if record.kept.is_some() {
            self.inquire(agreed.of_seq);
        }
    }

    // ---- Halts --------------------------------------------------------------------------------------------------

    /// Whether results that differ have kept the network from going on for a while.
    pub(super) fn look_for_halt(&mut self) {
        let seq = self.core.summary().seq;
        self.records.undecided.take_if(|undecided| undecided.seq != seq);
        let long = self.records.undecided.as_ref().filter(|undecided| undecided.since.elapsed() >= HALT_AFTER);
        if self.records.halted.is_none()
            && let Some(undecided) = long
        {
            let results = undecided.results.clone();
            self.halt(&results, |facts| facts.results.extend(results.clone()));
        }
    }

    /// What holds the network up while these are the results that are known.
    fn split_text(&self, results: &[(NodeKey, ExecResult)]) -> String {
        let quorum = self.core.quorum();
        let missing = (!self.core.summary().split).then(|| (quorum.n - results.len(), quorum.q));
        split_text(results, missing)
    }

    /// The network does not go on as long as results are as they are: says so to everybody.
    pub(super) fn halt(&mut self, results: &[(NodeKey, ExecResult)], change: impl FnOnce(&mut Facts)) {
        let mut by_result: BTreeMap<&ExecResult, Vec<String>> = BTreeMap::new();
        for (node, result) in results {
            by_result.entry(result).or_default().push(node.short());
        }
        let seq = results.first().map_or(0, |(_, result)| result.of_seq);
        let what = self.split_text(results);
        error!(seq, "{what}");
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
        self.report.split(what);
        let stood_before = self.records.halted.replace(seq).is_some();
        if !stood_before {
            self.metrics.halted();
        }
        if let Some(gateway) = self.gateway.as_ref().filter(|_| !stood_before) {
            let what = format!(
                "the nodes' results of ledger {seq} differ and none has a quorum: no ledger is closed until one has. Inputs are \
                 held, and nothing is lost; code \"resumed\" says when it goes on"
            );
            gateway.announce(ErrorCode::Halted, &what, true);
        }
        self.tell_details(seq);
        self.look_into_own(seq, change);
    }

    /// Something is agreed: the network goes on, if it stood.
    pub(super) fn resume(&mut self) {
        self.records.undecided = None;
        let Some(seq) = self.records.halted.take() else { return };
        warn!(seq, "a missing result completed a quorum; going on");
        self.report.split_healed();
        if let Some(gateway) = &self.gateway {
            let what =
                format!("the nodes agree on ledger {seq}, and the network goes on; inputs that were held take effect");
            gateway.announce(ErrorCode::Resumed, &what, false);
        }
    }

    // ---- What this node keeps -----------------------------------------------------------------------------------

    /// A peer wants to know what this node's run did: it differs from its own, then.
    pub(super) fn keep_for(&mut self, peer: NodeKey, seq: Seq) {
        let Some(run) = self.runs.get(&seq) else { return };
        let Some(details) = &run.details else { return };
        // The network went on with this node's result before the peer asked.
        let agreed = run.is_agreed.then(|| details.result.clone());
        let known = self.records.by_seq.contains_key(&seq);
        if !known && self.records.may_keep_for(peer) {
            let (members, quorum) = (self.core.unl().to_vec(), self.core.quorum().q);
            let record = self.records.of(seq);
            (record.facts.members, record.facts.quorum, record.facts.agreed) = (members, quorum, agreed);
            self.look_into(seq);
            self.send(peer, &Message::Get(Get::Details(seq)));
        }
    }

    fn look_into(&mut self, seq: Seq) {
        let me = self.config.key;
        let ran = self.runs.get(&seq).and_then(|kept| Some(kept.details.as_ref()?.result.clone()));
        let record = self.records.of(seq);
        if let Some(ran) = ran {
            // It may not be signed, because a quorum had another one before.
            record.facts.results.entry(me).or_insert(ran);
        }
        if record.kept.is_some() {
            return self.inquire(seq);
        }
        if record.facts.results.contains_key(&me) && !std::mem::replace(&mut record.keeping, true) {
            self.jobs.push_front(Job::Keep(seq));
            self.next_job();
        }
    }

    /// Copies what the run of a ledger left; `None` when it may not be there any more.
    pub(super) fn keep_job(&mut self, seq: Seq) -> tokio::task::JoinHandle<()> {
        let (executor, ledger, done) = (self.executor.clone(), self.ledger.clone(), self.from_runs_tx.clone());
        let run = self.runs.get(&seq);
        let changed = run.and_then(|kept| kept.details.as_ref()).map(|details| {
            // Where they are more than are told, the state itself knows them all.
            let told = details.changed.iter().map(|changed| changed.path.clone()).collect::<Vec<_>>();
            (told.len() < DETAILS_MAX).then_some(told)
        });
        let is_fresh = changed.is_some();
        let in_memory = run.map(|kept| kept.outputs.clone()).filter(|outputs| !outputs.is_empty());
        let recent = run.and_then(|kept| kept.recent.clone());
        let record = self.records.of(seq);
        let (is_own, result) = (record.is_own, record.facts.results.get(&self.config.key).cloned());
        tokio::spawn(async move {
            let kept = async {
                let Some(result) = result else { return Ok(None) };
                let outputs = match in_memory {
                    Some(outputs) => outputs,
                    None => {
                        let stored = ledger.outputs(seq).await.ok().flatten().unwrap_or_default();
                        stored.into_iter().map(|(user, bytes)| (user, bytes.into())).collect()
                    }
                };
                let header = ledger.header_range(seq, 1).await.ok().and_then(|found| found.into_iter().next());
                let time_ms = header.map_or(0, |closed| closed.header.time_ms);
                let run = ToKeep { seq, time_ms, result, changed: changed.flatten(), outputs, recent, is_own };
                executor.keep(run, is_fresh).await
            };
            let kept = kept.await;
            let _ = done.send(FromRun::Kept(seq, kept)).await;
        })
    }

    pub(super) fn on_kept(&mut self, seq: Seq, kept: Result<Option<KeptRun>, ExecError>) {
        let path = folder::of(&self.config.dir, seq);
        let Some(record) = self.records.by_seq.get_mut(&seq) else { return };
        match kept {
            // It is worth less than what is wanted by now.
            Ok(Some(_)) if std::mem::take(&mut record.is_poor) => self.jobs.push_front(Job::Keep(seq)),
            Ok(Some(kept)) => {
                let kept = Arc::new(kept);
                record.kept = Some(kept.clone());
                record.tell(Tell::Kept(kept));
                if record.is_own {
                    error!(seq, path = %path.display(), "the differing state is kept");
                } else {
                    info!(seq, path = %path.display(), "what this node's run left is kept");
                }
                // Whoever never signed what its run led to may have told it before this was kept, to nobody.
                let (me, facts) = (self.config.key, &record.facts);
                let unheard = facts.members.iter().filter(|node| **node != me && !facts.results.contains_key(node));
                for node in unheard.copied().collect::<Vec<_>>() {
                    self.send(node, &Message::Get(Get::Details(seq)));
                }
                self.inquire(seq);
            }
            Ok(None) => debug!(seq, "the state has moved on; what its run left is not kept"),
            Err(error) => error!(seq, error = &error as &dyn std::error::Error, "cannot keep the differing state"),
        }
    }

    /// Begins to find out why, or tells the one who does what is known now.
    fn inquire(&mut self, seq: Seq) {
        let me = self.config.key;
        let (dir, mesh) = (self.config.dir.clone(), self.mesh.clone());
        let record = self.records.of(seq);
        let Some(kept) = record.kept.clone() else { return };
        record.facts.results.entry(me).or_insert_with(|| kept.details.result.clone());
        let facts = record.facts.clone();
        record.tell(Tell::Facts(facts.clone()));
        if record.tells.is_none() {
            let (tells, told) = sync_channel(TELLS_MAX);
            record.tells = Some(tells);
            let inquiry = Inquiry::new(dir, me, kept, facts, mesh, told);
            tokio::task::spawn_blocking(move || inquiry.run());
        }
    }

    // ---- What others say ----------------------------------------------------------------------------------------

    /// A member answers what it was asked, or so it says.
    pub(super) fn heard_piece(&mut self, peer: NodeKey, asked: PieceRef, piece: Piece) {
        let bounded = match &piece {
            Piece::Gone => true,
            Piece::Known(known) => known.blocks.len() <= BLOCKS_MAX && known.proof.siblings.len() <= SIBLINGS_MAX,
            Piece::Block(bytes) => bytes.len() <= BLOCK_BYTES,
        };
        let short = !matches!(&asked.of, Thing::Path(path) if path.len() > PATH_BYTES_MAX);
        if bounded
            && short
            && let Some(record) = self.records.by_seq.get_mut(&asked.of_seq)
        {
            record.tell(Tell::Piece(peer, asked, piece));
        }
    }

    /// A peer says what its run did: where it differs from mine.
    pub(super) fn heard_details(&mut self, peer: NodeKey, theirs: Details) {
        let bounded = theirs.changed.len() <= DETAILS_MAX
            && theirs.outputs.len() <= DETAILS_MAX
            && theirs.changed.iter().all(|changed| changed.path.len() <= PATH_BYTES_MAX);
        if !bounded {
            return;
        }
        self.compare_details(peer, &theirs);
        let seq = theirs.result.of_seq;
        if let Some(record) = self.records.by_seq.get_mut(&seq)
            && record.kept.as_ref().is_some_and(|kept| kept.details.result.of_hash == theirs.result.of_hash)
        {
            record.tell(Tell::Details(peer, theirs));
        }
    }

    /// Tells the operator at once what can be told without asking.
    fn compare_details(&mut self, peer: NodeKey, theirs: &Details) {
        let Some(kept) = self.runs.get_mut(&theirs.result.of_seq) else { return };
        let Some(mine) = &kept.details else { return };
        if mine.result == theirs.result || mine.result.of_hash != theirs.result.of_hash {
            return;
        }
        // Once a run: a peer must not fill the log.
        if !kept.compared.insert(peer) {
            return;
        }
        let changed = |details: &Details| -> BTreeMap<Vec<u8>, _> {
            details.changed.iter().map(|changed| (changed.path.clone(), changed.now)).collect()
        };
        let (paths, _) = differing_keys(&changed(mine), &changed(theirs), DETAILS_MAX);
        let paths: Vec<String> =
            paths.iter().take(DIFFERENCES_SHOWN).map(|path| format!("state/{}", shown(path))).collect();
        let outputs = |details: &Details| details.outputs.iter().copied().collect();
        let (users, _) = differing_keys(&outputs(mine), &outputs(theirs), DETAILS_MAX);
        let users: Vec<String> = users.iter().take(DIFFERENCES_SHOWN).map(|user| user.to_string()).collect();
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
            let what = format!(
                "ledger {seq}: the state differs from {}'s in {}; hp diverge show says how",
                peer.short(),
                paths.join(", ")
            );
            self.report.alert(Kind::Differs, what);
        }
        if !users.is_empty() {
            let what = format!(
                "ledger {seq}: outputs differ from {}'s for {}; hp diverge show says how",
                peer.short(),
                users.join(", ")
            );
            self.report.alert(Kind::Differs, what);
        }
    }
}

/// What an operator reads while results that differ hold the network up. `missing`: how many results are not known, and how
/// many a quorum takes; `None` when none can have one any more.
fn split_text(results: &[(NodeKey, ExecResult)], missing: Option<(usize, usize)>) -> String {
    let seq = results.first().map_or(0, |(_, result)| result.of_seq);
    let sides = results.iter().map(|(_, result)| result).collect::<BTreeSet<_>>().len();
    let waits = match missing {
        Some((1, quorum)) => {
            format!("none has a quorum of {quorum} yet: no ledger is closed until the missing result completes one")
        }
        Some((missing, quorum)) => format!(
            "none has a quorum of {quorum} yet: no ledger is closed until one of {missing} missing results completes one"
        ),
        None => "no quorum is possible: no ledger is closed until a missing result completes one, or operators decide"
            .to_owned(),
    };
    format!("results of ledger {seq} are split {sides} ways, and {waits}; see hp diverge show")
}

/// A path that a peer named, fit for a log: one line, no control characters, of a bounded length.
fn shown(path: &[u8]) -> String {
    shown_path(&path[..path.len().min(PATH_SHOWN_BYTES)])
}

/// Keys whose values differ or that only one side has, ascending, and whether one of the lists ended before all of its
/// keys were named: it has `max` of them, and behind its last one nothing is known.
fn differing_keys<K: Ord + Clone, V: PartialEq>(
    mine: &BTreeMap<K, V>,
    theirs: &BTreeMap<K, V>,
    max: usize,
) -> (Vec<K>, bool) {
    let end = |list: &BTreeMap<K, V>| list.last_key_value().filter(|_| list.len() >= max).map(|(key, _)| key.clone());
    let ends: Vec<K> = [end(mine), end(theirs)].into_iter().flatten().collect();
    let is_known = |key: &&K| ends.iter().all(|end| *key <= end);
    let mut keys: Vec<K> =
        mine.keys().filter(|key| mine.get(key) != theirs.get(key)).filter(is_known).cloned().collect();
    keys.extend(theirs.keys().filter(|key| !mine.contains_key(key)).filter(is_known).cloned());
    keys.sort_unstable();
    (keys, !ends.is_empty())
}

/// Where two results differ, for a log.
pub(super) fn differences(mine: &ExecResult, theirs: &ExecResult) -> Vec<String> {
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

#[cfg(test)]
mod tests;
