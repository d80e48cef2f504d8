//! What people are told: a banner at the start, a line for each ledger that did something, alerts, the status.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tracing::{debug, info, warn};

use super::{
    Node,
    alerts::{Alert, Kind},
    diverge::Streak,
    exec::Ran,
    progress::{self, Part},
    rounds, silence,
    sync::{SyncProgress, why_text},
};
use crate::{
    config::{Config, Tolerance},
    consensus::{
        Lost, Summary,
        header::{ClosedLedger, ExecResult},
        join::Lacks,
    },
    contract::Guard,
    ledger::{EVIDENCE_MAX, EVIDENCE_PER_SIGNER_MAX, Proven},
    mesh::peer_id_text,
    state::sync::Progress,
    types::{Attempt, Hash, LimitKind, NodeKey, Seq, Status},
};

/// Alerts shown in the status; the oldest make room.
const ALERTS_MAX: usize = 20;
/// Nodes without a link shown in the status. Strangers can take any key, so the oldest make room.
const REFUSED_MAX: usize = 10;
/// Wrong frames of one peer that are logged one by one; then every hundredth.
const BAD_FRAMES_LOGGED: u64 = 5;
/// Peers whose wrong frames are counted; strangers can take any key, so past it counting starts anew.
const BAD_PEERS_MAX: usize = 1_024;
/// A node that is behind and gets no ledger for so long may lack what nobody keeps any more.
const STUCK_TIME: Duration = Duration::from_secs(10);

/// What the node has told, and counted, so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    alerts: VecDeque<Alert>,
    /// Nodes that this one has no link with, and why; whoever is linked after all is taken out.
    refused: VecDeque<(NodeKey, String)>,
    split: Option<String>,
    /// Set while the last run is one that failed.
    failing: Option<String>,
    bad_frames: BTreeMap<NodeKey, u64>,
    /// Ledger and attempt of what each node said twice, by kind; as many as are stored.
    evidence: BTreeMap<(NodeKey, String), BTreeSet<(Seq, Attempt)>>,
    last_run: Option<Value>,
    ledgers: u64,
    last_closed: Option<Instant>,
    inputs: u64,
    failed_runs: u64,
    /// Who sent something false as a closed ledger: what last, and how often.
    liars: BTreeMap<NodeKey, (String, u64)>,
    /// How often this node's result was another than the network's, lately.
    streak: Streak,
    /// Whether it goes without a state of its own since then.
    has_diverged: bool,
    /// Set while the node is behind.
    pub progress: Option<progress::Progress>,
}

impl Report {
    /// This node's result of a ledger differs.
    pub fn diverged(&mut self) {
        self.has_diverged = true;
        self.streak.diverged();
    }

    /// How long to wait before the network's state is fetched, because it was of no use time and again.
    pub fn pause(&self) -> Option<Duration> {
        self.streak.pause()
    }

    /// The network's state replaced this node's.
    pub fn state_fetched(&mut self) {
        self.has_diverged = false;
    }

    pub fn lied(&mut self, peer: NodeKey, lie: String) {
        if self.liars.len() >= BAD_PEERS_MAX {
            self.liars.clear();
        }
        let (last, count) = self.liars.entry(peer).or_default();
        (*last, *count) = (lie, *count + 1);
    }

    pub fn alert(&mut self, kind: Kind, what: String) {
        let alert = kind.with(what);
        if self.alerts.back() != Some(&alert) {
            self.alerts.push_back(alert);
        }
        if self.alerts.len() > ALERTS_MAX {
            self.alerts.pop_front();
        }
    }

    pub fn refused(&mut self, peer: NodeKey, reason: String) {
        self.linked(peer);
        self.refused.push_back((peer, reason));
        if self.refused.len() > REFUSED_MAX {
            self.refused.pop_front();
        }
    }

    pub fn linked(&mut self, peer: NodeKey) {
        self.refused.retain(|(other, _)| *other != peer);
    }

    pub fn bad_frame(&mut self, peer: NodeKey, error: &(dyn std::error::Error + 'static)) {
        if self.bad_frames.len() >= BAD_PEERS_MAX {
            self.bad_frames.clear();
        }
        let count = self.bad_frames.entry(peer).or_insert(0);
        *count += 1;
        if *count <= BAD_FRAMES_LOGGED || count.is_multiple_of(100) {
            warn!(peer = %peer.short(), count, error, "dropped a message");
        }
    }

    /// Proofs that were stored before this process began.
    pub fn restore_evidence(&mut self, proven: Vec<Proven>) {
        for Proven { signer, kind, seq, attempt } in proven {
            self.evidence.entry((signer, kind)).or_default().insert((seq, attempt));
        }
        for ((signer, kind), slots) in &self.evidence {
            warn!(node = %signer, kind, proofs = slots.len(), "a node signed two different messages for one slot, once; proofs are stored");
        }
    }

    /// Whether this is worth storing: the first proof of its slot, and not too many against its signer yet.
    pub fn evidence(&mut self, signer: NodeKey, kind: &str, slot: (Seq, Attempt)) -> bool {
        let against = |(node, _): &&(NodeKey, String)| *node == signer;
        let of_signer: u64 =
            self.evidence.iter().filter(|(key, _)| against(key)).map(|(_, slots)| slots.len() as u64).sum();
        let all: u64 = self.evidence.values().map(|slots| slots.len() as u64).sum();
        if of_signer >= EVIDENCE_PER_SIGNER_MAX || all >= EVIDENCE_MAX {
            return false;
        }
        let slots = self.evidence.entry((signer, kind.to_owned())).or_default();
        let new = slots.insert(slot);
        if new && slots.len() == 1 {
            let (seq, attempt) = slot;
            warn!(node = %signer, kind, seq, attempt, "a node signed two different messages for one slot; the proof is stored");
        }
        new
    }

    pub fn split(&mut self, what: String) {
        self.split = Some(what);
    }

    pub fn is_split(&self) -> bool {
        self.split.is_some()
    }

    pub fn split_healed(&mut self) {
        self.split = None;
    }

    /// `behind`: one of many that others closed before.
    pub fn closed(&mut self, ledger: &ClosedLedger, hash: Hash, attempt: Attempt, behind: bool) {
        let header = &ledger.candidate.header;
        let (came, went) = (ledger.candidate.users_add.len(), ledger.candidate.users_del.len());
        self.ledgers += 1;
        self.last_closed = Some(Instant::now());
        self.inputs += u64::from(header.n_inputs);
        if !behind && (header.n_inputs > 0 || came + went > 0 || attempt > 0) {
            info!(
                seq = header.seq,
                lcl = %hash.short(),
                inputs = header.n_inputs,
                bytes = header.inputs_bytes,
                users = header.n_users,
                came,
                went,
                attempt,
                "ledger closed"
            );
        } else {
            debug!(seq = header.seq, lcl = %hash.short(), "ledger closed");
        }
    }

    /// A ledger was passed over without its contents.
    pub fn passed(&mut self, seq: Seq) {
        self.ledgers += 1;
        self.last_closed = Some(Instant::now());
        debug!(seq, "ledger passed over");
    }

    pub fn ran(&mut self, ran: &Ran) {
        let seq = ran.result.of_seq;
        let bytes: usize = ran.outputs.iter().map(|(_, output)| output.len()).sum();
        let contract_ms = millis(ran.contract);
        let elapsed_ms = millis(ran.elapsed);
        self.last_run = Some(json!({
            "seq": seq, "status": ran.result.status.to_string(), "contract_ms": contract_ms, "elapsed_ms": elapsed_ms,
            "outputs": ran.outputs.len(), "output_bytes": bytes,
        }));
        self.failing = failing(seq, ran.result.status);
        match ran.result.status {
            Status::Ok => debug!(seq, contract_ms, elapsed_ms, outputs = ran.outputs.len(), bytes, "contract ran"),
            status => {
                self.failed_runs += 1;
                warn!(seq, %status, contract_ms, "the contract failed; its state is rolled back, see log/contract/");
            }
        }
    }

    /// The run of a ledger has no effect, because its time was up.
    pub fn timed_out(&mut self, seq: Seq) {
        let status = Status::Limit(LimitKind::Time);
        self.failed_runs += 1;
        self.failing = failing(seq, status);
        self.last_run = Some(json!({ "seq": seq, "status": status.to_string() }));
        warn!(seq, %status, "the contract failed; its state is rolled back, see log/contract/");
    }

    /// What the last run came to, if there was one.
    pub fn last_run(&self) -> Option<&Value> {
        self.last_run.as_ref()
    }

    pub fn agreed(&mut self, result: &ExecResult) {
        self.streak.agreed();
        debug!(seq = result.of_seq, state = %result.state_root.short(), status = %result.status, "result agreed");
    }
}

/// Why no ledger closes while members are missing.
fn too_few(live: usize, n: usize, quorum: usize) -> Option<String> {
    let text = || format!("{live} of {n} members live, but the quorum is {quorum}: no ledger closes until more are");
    (live < quorum).then(text)
}

/// Why a node that is behind does not catch up.
fn stuck(well: bool, quiet: Duration) -> Option<String> {
    let text = || {
        format!(
            "behind the network, and no ledger came for {} s: no node that is linked and has what this one lacks answers",
            quiet.as_secs()
        )
    };
    (!well && quiet >= STUCK_TIME).then(text)
}

/// Why no ledger closes although nobody's result differs.
fn undecided(seq: Seq, overtimes: usize, quiet: Duration) -> Option<String> {
    let text = || {
        format!(
            "the run of ledger {seq} took longer than time_limit_s on {overtimes} members, and not on the others; a missing \
             member's run decides what counts, no ledger closes until it is back"
        )
    };
    (overtimes > 0 && quiet >= STUCK_TIME).then(text)
}

/// Why a node fetches the state now and then instead of running the contract.
fn diverging(streak: &Streak, left: Option<Duration>) -> Option<String> {
    let text = || {
        let then = left.map(|left| format!("; it fetches the network's state again in {} s", left.as_secs()));
        format!(
            "diverging: this node's results differ from the network's again and again: its contract, or what that runs on, \
             is not the same as elsewhere. `hp diverge show` says in what; compare the executable, its libraries and \
             interpreter, and cfg/hp.cfg with another node's, then start the node again. It votes on the order of inputs \
             meanwhile{}",
            then.unwrap_or_default()
        )
    };
    streak.is_long().then(text)
}

fn failing(seq: Seq, status: Status) -> Option<String> {
    let text = || {
        format!("the contract failed in ledger {seq} ({status}): state/ is as before, no outputs; see log/contract/")
    };
    (status != Status::Ok).then(text)
}

fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

impl Node {
    /// Where peers, and users, reach this node.
    pub fn addresses(&self) -> (SocketAddr, Option<SocketAddr>) {
        (self.mesh.local_addr(), self.gateway.as_ref().map(|gateway| gateway.local_addr()))
    }

    /// What the operator must know or do something about.
    pub(super) fn alerts(&self) -> Vec<Alert> {
        let (summary, quorum) = (self.core.summary(), self.core.quorum());
        let is_live = |node: &&NodeKey| **node == self.config.key || self.linked.contains(node);
        let live = self.core.unl().iter().filter(is_live).count();
        let report = &self.report;
        let mut alerts: Vec<Alert> = report.alerts.iter().cloned().collect();
        alerts.extend(report.split.clone().map(|what| Kind::Split.with(what)));
        alerts.extend(self.disk_alerts());
        let silent = summary.silent.as_ref().filter(|silent| silent.is_alarm);
        alerts.extend(silent.map(|silent| Kind::Silent.with(silence::alarm(silent, quorum.n))));
        let no_link =
            |(peer, why): &(NodeKey, String)| Kind::NoLink.with(format!("no link with {}: {why}", peer.short()));
        alerts.extend(report.refused.iter().map(no_link));
        alerts.extend(too_few(live, quorum.n, quorum.q).map(|what| Kind::FewMembers.with(what)));
        alerts.extend(report.failing.clone().map(|what| Kind::ContractFailed.with(what)));
        alerts.extend(self.settling_alerts());
        let pause = self.sync_due.map(|due| due.saturating_duration_since(Instant::now()));
        alerts.extend(diverging(&report.streak, pause).map(|what| Kind::Diverging.with(what)));
        let waits = self.syncing.as_ref().and_then(|syncing| syncing.look().waits);
        alerts.extend(waits.map(|what| Kind::StateWaits.with(what)));
        let quiet = report.last_closed.unwrap_or(self.started).elapsed();
        let undecided = undecided(summary.seq, summary.overtimes, quiet);
        alerts.extend(undecided.map(|what| Kind::RunUndecided.with(what)));
        // A node whose disk is nearly full falls behind on purpose.
        let is_well = summary.synced || self.syncing.is_some() || self.mesh.links().is_empty() || self.disk.is_paused();
        alerts.extend(stuck(is_well, quiet).map(|what| Kind::Behind.with(what)));
        alerts
    }

    /// Where the node stands, for `hp status` and tests.
    pub(super) fn status(&self) -> Value {
        let summary = self.core.summary();
        let quorum = self.core.quorum();
        let links: Vec<Value> = self
            .mesh
            .links()
            .into_iter()
            .map(|link| {
                json!({
                    "peer": link.peer.to_string(),
                    "address": link.addr.to_string(),
                    "direction": link.direction.to_string(),
                    "rtt_us": link.rtt.map(|rtt| rtt.as_micros()),
                    "member": self.core.unl().contains(&link.peer),
                    "seq": self.rounds.tip_of(&link.peer),
                })
            })
            .collect();
        let live: BTreeSet<NodeKey> = self.linked.iter().copied().chain([self.config.key]).collect();
        let names = |keys: &[NodeKey]| keys.iter().map(NodeKey::to_string).collect::<Vec<_>>();
        let live_members: Vec<NodeKey> = self.core.unl().iter().filter(|node| live.contains(node)).copied().collect();
        let alerts = self.alerts();
        let silent = summary.silent.as_ref();
        let pause = self.sync_due.map(|due| due.saturating_duration_since(Instant::now()));
        let state_kept = json!({ "by": self.state_kept.backend.to_string(), "why": self.state_kept.why });
        let guards: Vec<Value> = self.guards.iter().map(guard).collect();
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": self.config.key.to_string(),
            "peer_id": peer_id_text(&self.config.key),
            "contract": self.config.contract.id.to_string(),
            "chain": self.core.chain_id().to_string(),
            "role": self.role(),
            "seq": summary.seq,
            "lcl": summary.lcl.to_string(),
            "time_ms": summary.time_ms,
            "attempt": summary.attempt,
            "stage": summary.stage.name(),
            "synced": summary.synced,
            "split": summary.split,
            "diverged": self.report.has_diverged,
            "state_root": summary.state_root.to_string(),
            "state_kept": state_kept,
            "unl": names(self.core.unl()),
            "live": names(&live_members),
            "suspects": names(&summary.suspects),
            "quorum": quorum.q,
            "threshold": self.config.consensus.threshold,
            "unl_changes": self.unl_pending(),
            "links": links,
            "users": summary.users,
            "local_users": self.gateway.as_ref().map_or(0, |gateway| gateway.users()),
            "pool": summary.pool,
            "overtimes": summary.overtimes,
            "unexecuted": summary.unexecuted,
            "last_run": self.report.last_run,
            "failed_runs": self.report.failed_runs,
            "ledgers": self.report.ledgers,
            "inputs": self.report.inputs,
            "evidence": self.report.evidence.iter().map(|((node, kind), slots)| json!({
                "node": node.to_string(), "kind": kind, "count": slots.len(),
                "seq": slots.last().map(|(seq, _)| seq), "attempt": slots.last().map(|(_, attempt)| attempt),
            })).collect::<Vec<_>>(),
            "liars": self.report.liars.iter().map(|(node, (lie, count))| json!({
                "node": node.to_string(), "what": lie, "count": count,
            })).collect::<Vec<_>>(),
            "network_seq": summary.network_seq,
            "catching_up": self.report.progress.map(|progress| json!({
                "verified": part(&progress.verified), "executed": part(&progress.executed),
            })),
            "alerts": alerts.iter().map(|alert| &*alert.text).collect::<Vec<_>>(),
            "peer_address": self.mesh.local_addr().to_string(),
            "user_address": self.gateway.as_ref().map(|gateway| gateway.local_addr().to_string()),
            "up_s": self.started.elapsed().as_secs(),
            "pid": std::process::id(),
        });
        status["diverging"] = self.report.streak.is_long().into();
        status["fetches_state_in_s"] = json!(pause.map(|pause| pause.as_secs()));
        status["fetching_state"] =
            self.syncing.as_ref().map(|syncing| fetching(&syncing.look(), syncing.why)).unwrap_or_default();
        // The macro takes no more than that.
        status["halted"] = json!(self.records.halted());
        status["silent"] = json!(silent.map(|silent| silence::describe(silent, quorum.n)));
        status["guards"] = guards.into();
        status["disk"] = self.disk_status();
        // One for each alert, in the same order.
        status["alert_kinds"] = alerts.iter().map(|alert| alert.kind.name()).collect();
        status["queues"] = json!({
            "effects": self.effects.len(), "effects_bytes": self.effects_bytes, "jobs": self.jobs.len(),
            "deliveries": self.deliveries.len(), "overflows": self.mesh.vote_overflows(),
        });
        status["traffic"] = json!({
            "received_bytes": self.traffic.received_bytes, "received_frames": self.traffic.received_frames,
            "sent_bytes": self.traffic.sent_bytes, "sent_frames": self.traffic.sent_frames,
        });
        status["change"] = json!(*self.changes.borrow());
        status["rounds"] = self.rounds.json(rounds::ROUNDS_SHOWN);
        status["round_times_ms"] = self.rounds.times_ms();
        status["rounds_per_s"] = json!(self.rounds.per_s(self.micros()).map(|per_s| (per_s * 100.0).round() / 100.0));
        status["joining"] = joining(&summary);
        status["settlement"] = self.settling_status();
        status["msb"] = self.msb_identity();
        status["user_tls"] = self.config.user.tls.is_some().into();
        status["http_url"] = json!(self.http_url());
        status["tls"] = json!(self.config.user.tls.is_some());
        status
    }
}

/// What a node lacks that passed over ledgers; null when nothing.
fn joining(summary: &Summary) -> Value {
    let lacks = summary.lacks.map(|lacks| match lacks {
        Lacks::Users => "contents",
        Lacks::State => "state",
        Lacks::Nothing => "nothing",
    });
    match (lacks, summary.votes_after) {
        (None, None) => Value::Null,
        (lacks, votes_after) => json!({ "lacks": lacks.unwrap_or("keys"), "votes_after": votes_after }),
    }
}

fn fetching(progress: &SyncProgress, why: Lost) -> Value {
    let Progress { bytes, bytes_total, entries, entries_total } = progress.fetched;
    json!({
        "why": why_text(why), "next": progress.next, "peers": progress.peers, "bytes": bytes, "bytes_total": bytes_total,
        "entries": entries, "entries_total": entries_total, "bytes_per_s": progress.bytes_per_s.round(),
        "waits": progress.waits,
    })
}

fn guard(guard: &Guard) -> Value {
    let remedy = (guard.wanted && !guard.on).then(|| guard.name.remedy());
    let name = guard.name.to_string();
    json!({ "name": name, "wanted": guard.wanted, "on": guard.on, "why": guard.why, "remedy": remedy })
}

fn part(part: &Part) -> Value {
    json!({
        "at": part.at, "from": part.from, "to": part.to, "percent": part.percent(), "per_s": part.per_s.round(),
        "left_s": part.left().map(|left| left.as_secs()),
    })
}

/// What an operator reads when a node starts.
#[derive(Debug, Clone)]
pub struct Banner {
    lines: Vec<(&'static str, String)>,
}

impl Banner {
    pub(super) fn new(
        config: &Config,
        unl: &[NodeKey],
        seq: Seq,
        peers: SocketAddr,
        users: Option<String>,
        http: Option<String>,
        room: String,
    ) -> Banner {
        let tolerance = Tolerance { n: unl.len(), threshold: config.consensus.threshold }.to_string();
        let role = if unl.contains(&config.key) { "" } else { "  (not in the UNL: observer)" };
        let users = users.unwrap_or_else(|| "no user port (pubport is not set)".to_owned());
        let http = http.unwrap_or_else(|| "no page and no API (http.listen is not set)".to_owned());
        Banner {
            lines: vec![
                ("contract", format!("{}  {}", config.contract.id.short(), config.argv.join(" "))),
                ("folder", config.dir.display().to_string()),
                ("node", format!("{}{role}", config.key)),
                ("quorum", tolerance),
                ("ledger", if seq == 0 { "none yet: a new chain".to_owned() } else { seq.to_string() }),
                ("peers", format!("listening on {peers}, {} to dial", config.peers.len())),
                ("users", users),
                ("http", http),
                ("disk", room),
            ],
        }
    }
}

impl fmt::Display for Banner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Hot Pocket {}", env!("CARGO_PKG_VERSION"))?;
        for (name, value) in &self.lines {
            writeln!(f, "  {name:<9} {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_stands_while_members_are_too_few_for_a_quorum() {
        assert_eq!(too_few(4, 5, 4), None);
        let alert = too_few(3, 5, 4).unwrap();
        assert_eq!(alert, "3 of 5 members live, but the quorum is 4: no ledger closes until more are");
    }

    #[test]
    fn a_node_that_is_behind_and_gets_no_ledgers_says_what_it_needs() {
        assert_eq!((stuck(false, Duration::from_secs(9)), stuck(true, Duration::from_secs(99))), (None, None));
        assert!(
            stuck(false, Duration::from_secs(10))
                .unwrap()
                .starts_with("behind the network, and no ledger came for 10 s")
        );
    }

    #[test]
    fn an_alert_stands_while_it_is_not_decided_whether_a_run_was_over_its_time() {
        assert_eq!((undecided(7, 0, STUCK_TIME), undecided(7, 3, Duration::ZERO)), (None, None));
        assert!(undecided(7, 3, STUCK_TIME).unwrap().contains("ledger 7 took longer than time_limit_s on 3 members"));
    }

    #[test]
    fn a_node_that_diverges_again_and_again_says_what_to_do_and_when_it_tries_once_more() {
        let mut streak = Streak::default();
        (0..2).for_each(|_| streak.diverged());
        assert_eq!(diverging(&streak, None), None);
        streak.diverged();
        let alert = diverging(&streak, Some(Duration::from_secs(10))).unwrap();
        assert!(alert.starts_with("diverging: ") && alert.contains("hp diverge show") && alert.ends_with("in 10 s"));
        assert!(diverging(&streak, None).unwrap().ends_with("meanwhile"));
    }

    #[test]
    fn an_alert_stands_while_the_contract_fails() {
        assert_eq!(failing(7, Status::Ok), None);
        assert!(failing(7, Status::Exit(3)).unwrap().starts_with("the contract failed in ledger 7 (exit code 3)"));
    }

    #[test]
    fn a_node_without_a_link_is_told_until_it_is_linked_and_strangers_push_out_each_other_only() {
        let mut report = Report::default();
        report.alert(Kind::Diverged, "the first".to_owned());
        report.refused(NodeKey([0; 32]), "then".to_owned());
        report.refused(NodeKey([0; 32]), "now".to_owned());
        assert_eq!(Vec::from(report.refused.clone()), [(NodeKey([0; 32]), "now".to_owned())]);
        report.linked(NodeKey([0; 32]));
        assert!(report.refused.is_empty());
        for stranger in 0..100 {
            report.refused(NodeKey([stranger; 32]), String::new());
        }
        assert_eq!((report.refused.len(), report.alerts.len()), (REFUSED_MAX, 1));
    }

    #[test]
    fn one_thing_said_twice_is_stored_once_and_a_bounded_number_of_them() {
        let (mut report, liar) = (Report::default(), NodeKey([1; 32]));
        let before = Proven { signer: liar, kind: "NOVEL".to_owned(), seq: 3, attempt: 0 };
        report.restore_evidence(vec![before]);
        assert!(!report.evidence(liar, "NOVEL", (3, 0)), "stored before the restart");
        assert!(report.evidence(liar, "PREVOTE", (3, 0)), "another kind");
        assert!(!report.evidence(liar, "PREVOTE", (3, 0)), "the same, shown by somebody else");
        let stored = (4..100).filter(|seq| report.evidence(liar, "NOVEL", (*seq, 0))).count() as u64;
        assert_eq!(stored, EVIDENCE_PER_SIGNER_MAX - 2);
        assert!(report.evidence(NodeKey([2; 32]), "NOVEL", (3, 0)), "another node");
    }

    #[test]
    fn the_same_alert_is_told_once_and_old_ones_make_room() {
        let mut report = Report::default();
        for at in 0..=ALERTS_MAX {
            report.alert(Kind::Differs, at.to_string());
            report.alert(Kind::Differs, at.to_string());
        }
        assert_eq!(report.alerts.len(), ALERTS_MAX);
        assert_eq!((&*report.alerts[0].text, &*report.alerts[ALERTS_MAX - 1].text), ("1", "20"));
    }
}
