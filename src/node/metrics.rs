//! What Prometheus reads of a node: names `hotpocket_*`, with units.
//!
//! What happens is counted by the loop when it happens: rounds, runs, late votes. What is so at the moment is taken from the
//! node's status when somebody asks, and what the operating system knows from there.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::{
        resource::{Resource, getrlimit},
        statvfs::statvfs,
    },
    unistd::{SysconfVar, sysconf},
};
use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use serde_json::Value;

use super::{
    alerts::Kind,
    rounds::{Part, Round, Run, Traffic, Vote},
};
use crate::types::{NodeKey, Status};

/// Before all names.
const PREFIX: &str = "hotpocket";
/// Links whose round trip is told; members come first, strangers may be many.
const LINKS_TOLD_MAX: usize = 256;

/// Seconds: from a tenth of a millisecond to 52 s, each twice the one before.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_1, 2.0, 20))
}

type Label = [(&'static str, &'static str); 1];
type LateVote = [(&'static str, String); 2];

/// What is counted. Cheap to clone; whoever serves it has one too.
#[derive(Debug, Clone)]
pub(super) struct Metrics(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    dir: PathBuf,
    registry: Registry,
    round: Histogram,
    stages: Family<Label, Histogram, fn() -> Histogram>,
    failed_attempts: Counter,
    inputs: Counter,
    input_bytes: Counter,
    contract: Histogram,
    hashing: Histogram,
    runs: Family<Label, Counter>,
    outputs: Counter,
    output_bytes: Counter,
    commit: Histogram,
    late: Family<LateVote, Counter>,
    missing: Family<LateVote, Counter>,
    received_bytes: Counter,
    received_frames: Counter,
    sent_bytes: Counter,
    sent_frames: Counter,
    link_overflows: Counter,
    divergences: Counter,
    halts: Counter,
    state_fetches: Counter,
}

impl Metrics {
    /// Of the node in this folder. Nothing has happened yet.
    pub fn new(dir: &Path) -> Metrics {
        let mut registry = Registry::with_prefix(PREFIX);
        let (round, contract, hashing, commit) = (seconds(), seconds(), seconds(), seconds());
        let stages = Family::new_with_constructor(seconds as fn() -> Histogram);
        let counted = Counted {
            dir: dir.to_owned(),
            round: round.clone(),
            stages: stages.clone(),
            failed_attempts: Counter::default(),
            inputs: Counter::default(),
            input_bytes: Counter::default(),
            contract: contract.clone(),
            hashing: hashing.clone(),
            runs: Family::default(),
            outputs: Counter::default(),
            output_bytes: Counter::default(),
            commit: commit.clone(),
            late: Family::default(),
            missing: Family::default(),
            received_bytes: Counter::default(),
            received_frames: Counter::default(),
            sent_bytes: Counter::default(),
            sent_frames: Counter::default(),
            link_overflows: Counter::default(),
            divergences: Counter::default(),
            halts: Counter::default(),
            state_fetches: Counter::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        let unit = || Unit::Seconds;
        r.register_with_unit("round", "From one closed ledger to the next", unit(), round);
        r.register_with_unit("stage", "What a ledger took of each stage, as this node saw it", unit(), stages);
        r.register("failed_attempts", "Tries to close a ledger that came to nothing", counted.failed_attempts.clone());
        r.register("inputs", "Inputs of users in closed ledgers", counted.inputs.clone());
        r.register_with_unit("inputs", "Their payloads", Unit::Bytes, counted.input_bytes.clone());
        r.register_with_unit("contract_run", "What the contract took for a ledger", unit(), contract);
        r.register_with_unit("state_hash", "Hashing what a run of the contract left", unit(), hashing);
        r.register("contract_runs", "Runs of the contract, by how they ended", counted.runs.clone());
        r.register("outputs", "Outputs to users", counted.outputs.clone());
        r.register_with_unit("outputs", "Their bytes", Unit::Bytes, counted.output_bytes.clone());
        r.register_with_unit("commit", "What the disk took for a commit of the database", unit(), commit);
        r.register("votes_late", "Votes that came when their step was decided here", counted.late.clone());
        r.register("votes_missing", "Votes that had not come four ledgers later", counted.missing.clone());
        r.register_with_unit("received", "Frames of other nodes", Unit::Bytes, counted.received_bytes.clone());
        r.register("received_frames", "The same, by number", counted.received_frames.clone());
        r.register_with_unit("sent", "Frames to other nodes", Unit::Bytes, counted.sent_bytes.clone());
        r.register("sent_frames", "The same, by number", counted.sent_frames.clone());
        r.register("link_overflows", "Links reset because a peer took nothing", counted.link_overflows.clone());
        r.register("divergences", "Ledgers whose result here was not the network's", counted.divergences.clone());
        r.register("halts", "Ledgers on which results differed and none had a quorum", counted.halts.clone());
        r.register("state_fetches", "States that were fetched from other nodes", counted.state_fetches.clone());
        // So that a series is there before the first of its kind.
        for part in Part::ALL {
            drop(counted.stages.get_or_create(&[("stage", part.name())]));
        }
        for end in RUN_ENDS {
            drop(counted.runs.get_or_create(&[("status", end)]));
        }
        Metrics(Arc::new(Counted { registry, ..counted }))
    }

    /// A ledger was closed.
    pub fn closed(&self, round: &Round) {
        let counted = &*self.0;
        if let Some(took) = round.whole() {
            counted.round.observe(took.as_secs_f64());
        }
        for part in [Part::Idle, Part::Novel, Part::Prevote, Part::Precommit] {
            self.stage(part, round.took(part));
        }
        counted.failed_attempts.inc_by(u64::from(round.attempt));
        counted.inputs.inc_by(u64::from(round.inputs));
        counted.input_bytes.inc_by(round.input_bytes);
    }

    /// A stage behind the closing of a ledger is over.
    pub fn stage(&self, part: Part, took: Option<Duration>) {
        if let Some(took) = took {
            self.0.stages.get_or_create(&[("stage", part.name())]).observe(took.as_secs_f64());
        }
    }

    /// The contract ran.
    pub fn ran(&self, run: &Run) {
        let counted = &*self.0;
        counted.contract.observe(run.contract.as_secs_f64());
        counted.hashing.observe(run.hashing.as_secs_f64());
        counted.runs.get_or_create(&[("status", end_of(run.status))]).inc();
        counted.outputs.inc_by(run.outputs as u64);
        counted.output_bytes.inc_by(run.output_bytes as u64);
    }

    /// A run was over its time, for the network.
    pub fn timed_out(&self) {
        self.0.runs.get_or_create(&[("status", "time")]).inc();
    }

    /// The database has written something.
    pub fn committed(&self, took: Duration) {
        self.0.commit.observe(took.as_secs_f64());
    }

    /// A vote came when it was not needed any more.
    pub fn late(&self, node: &NodeKey, vote: Vote) {
        count(&self.0.late, node, vote);
    }

    /// A vote has not come.
    pub fn missing(&self, node: &NodeKey, vote: Vote) {
        count(&self.0.missing, node, vote);
    }

    /// This node's result of a ledger is not the network's.
    pub fn diverged(&self) {
        self.0.divergences.inc();
    }

    /// The network stands, because results differ and none has a quorum.
    pub fn halted(&self) {
        self.0.halts.inc();
    }

    /// A state that others sent replaced this node's.
    pub fn state_fetched(&self) {
        self.0.state_fetches.inc();
    }

    /// The UNL is another: those who left it are not counted any more.
    pub fn members_changed(&self) {
        self.0.late.clear();
        self.0.missing.clear();
    }

    /// All of it in the older text format, version 0.0.4, which every reader knows.
    pub fn plain_text(&self, status: &Value) -> String {
        plain(&self.text(status))
    }

    /// All of it as OpenMetrics text, with what is so now: by the node's status, and by the operating system. Reads files.
    pub fn text(&self, status: &Value) -> String {
        let counted = &*self.0;
        let mut now = Registry::with_prefix(PREFIX);
        info(&mut now, status);
        for (name, help, unit, value) in GAUGES {
            if let Some(value) = value(status) {
                gauge(&mut now, name, help, unit(), value);
            }
        }
        alerts(&mut now, status);
        links(&mut now, status);
        traffic(counted, status);
        disk(&mut now, &counted.dir);
        process(&mut now);
        let mut text = String::new();
        for registry in [&counted.registry, &now] {
            encode_registry(&mut text, registry).expect("writing into a string does not fail");
        }
        encode_eof(&mut text).expect("writing into a string does not fail");
        text
    }
}

/// The older text format of what is OpenMetrics text: it has no units, no end, nothing of the kind `info`, and the names of its
/// families are those of their samples. A reader that knows only this one gives up at what it does not know.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        let Some(told) = line.strip_prefix("# ") else {
            plain.extend([line, "\n"]);
            continue;
        };
        let mut words = told.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            // The kind, which the name depends on, is in the next line.
            (Some("HELP"), Some(_), Some(said)) => help = Some(said),
            (Some("TYPE"), Some(family), Some(kind)) => {
                let (name, kind) = match kind {
                    "counter" => (format!("{family}_total"), "counter"),
                    "info" => (format!("{family}_info"), "gauge"),
                    kind => (family.to_owned(), kind),
                };
                if let Some(said) = help.take() {
                    plain.push_str(&format!("# HELP {name} {said}\n"));
                }
                plain.push_str(&format!("# TYPE {name} {kind}\n"));
            }
            _ => {}
        }
    }
    plain
}

/// Of members alone, and anew when these change: so many there can be.
fn count(family: &Family<LateVote, Counter>, node: &NodeKey, vote: Vote) {
    family.get_or_create(&[("peer", node.short()), ("vote", vote.name().to_owned())]).inc();
}

/// How a run can end.
const RUN_ENDS: [&str; 5] = ["ok", "exit", "signal", "limit", "time"];

fn end_of(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Exit(_) => "exit",
        Status::Signal(_) => "signal",
        Status::Limit(_) => "limit",
    }
}

/// A number that the status has: name, what it is, unit, where it stands.
type Row = (&'static str, &'static str, fn() -> Option<Unit>, fn(&Value) -> Option<f64>);

const NO_UNIT: fn() -> Option<Unit> = || None;
const SECONDS: fn() -> Option<Unit> = || Some(Unit::Seconds);
const BYTES: fn() -> Option<Unit> = || Some(Unit::Bytes);

const GAUGES: &[Row] = &[
    ("ledger_seq", "The last closed ledger", NO_UNIT, |it| it["seq"].as_f64()),
    ("network_seq", "The last ledger that the network closed, as far as is known", NO_UNIT, |it| {
        it["network_seq"].as_f64()
    }),
    ("unexecuted_ledgers", "Closed ledgers that the contract has not run yet", NO_UNIT, |it| it["unexecuted"].as_f64()),
    ("attempt", "Which try to close the next ledger", NO_UNIT, |it| it["attempt"].as_f64()),
    ("rounds_per_second", "Closed ledgers, over the last hundred", NO_UNIT, |it| it["rounds_per_s"].as_f64()),
    ("members", "Nodes in the UNL", NO_UNIT, |it| length(&it["unl"])),
    ("members_live", "Those of them with a link, this one among them", NO_UNIT, |it| length(&it["live"])),
    ("members_suspect", "Those of them not waited for", NO_UNIT, |it| length(&it["suspects"])),
    ("quorum", "Members that must vote alike", NO_UNIT, |it| it["quorum"].as_f64()),
    ("links", "Links to other nodes", NO_UNIT, |it| length(&it["links"])),
    ("users", "Users connected to the network", NO_UNIT, |it| it["users"].as_f64()),
    ("users_local", "Users connected to this node", NO_UNIT, |it| it["local_users"].as_f64()),
    ("pool_inputs", "Inputs held, and in no ledger yet", NO_UNIT, |it| it["pool"].as_f64()),
    ("synced", "1 when all closed ledgers and the state are here", NO_UNIT, |it| flag(it["synced"] == true)),
    ("diverged", "1 while this node's result differs from the network's", NO_UNIT, |it| flag(it["diverged"] == true)),
    ("split", "1 while no result can reach a quorum", NO_UNIT, |it| flag(it["split"] == true)),
    ("halted", "1 while results differ and none has a quorum", NO_UNIT, |it| flag(it["halted"].is_u64())),
    ("silent", "1 while this node signs nothing", NO_UNIT, |it| flag(it["silent"].is_object())),
    ("paused", "1 while this node neither votes nor runs, because the disk is nearly full", NO_UNIT, |it| {
        flag(it["disk"]["paused"] == true)
    }),
    ("growth_per_day", "What the node keeps more each day", BYTES, |it| it["disk"]["growth_bytes_per_day"].as_f64()),
    ("disk_days_left", "Days for which the disk is enough at that", NO_UNIT, |it| it["disk"]["days_left"].as_f64()),
    ("alerts", "Alerts that stand", NO_UNIT, |it| length(&it["alerts"])),
    ("evidence_kinds", "Kinds of messages that nodes signed twice, differently", NO_UNIT, |it| length(&it["evidence"])),
    ("liars", "Nodes that sent false ledgers", NO_UNIT, |it| length(&it["liars"])),
    ("queued_effects", "Things decided that wait for the disk", NO_UNIT, |it| it["queues"]["effects"].as_f64()),
    ("queued_effects_size", "What they hold of peers' and users' data", BYTES, |it| {
        it["queues"]["effects_bytes"].as_f64()
    }),
    ("queued_runs", "Runs and other work on the state that wait", NO_UNIT, |it| it["queues"]["jobs"].as_f64()),
    ("queued_deliveries", "Results that wait to be told to users in signed mode", NO_UNIT, |it| {
        it["queues"]["deliveries"].as_f64()
    }),
    ("fetched_state", "What is here of the state that is being fetched", BYTES, |it| {
        it["fetching_state"]["bytes"].as_f64()
    }),
    ("fetched_state_size", "All of the state that is being fetched", BYTES, |it| {
        it["fetching_state"]["bytes_total"].as_f64()
    }),
    ("settled_seq", "The last ledger that is settled", NO_UNIT, |it| it["settlement"]["settled_seq"].as_f64()),
    ("unsettled_ledgers", "Ledgers behind it", NO_UNIT, |it| it["settlement"]["unsettled_ledgers"].as_f64()),
    ("oldest_unsettled", "How old the oldest unsettled ledger with outputs is", SECONDS, |it| {
        it["settlement"].is_object().then(|| it["settlement"]["oldest_unsettled_ms"].as_f64().unwrap_or(0.0) / 1e3)
    }),
    ("bus_reachable", "1 when the settlement bus answered last", NO_UNIT, |it| {
        flag(it["settlement"]["reachable"].as_bool()?)
    }),
    ("settlements_left", "Settlements that the balance pays for", NO_UNIT, |it| {
        it["settlement"]["settlements_left"].as_f64()
    }),
    ("up", "Since this process began", SECONDS, |it| it["up_s"].as_f64()),
];

fn length(list: &Value) -> Option<f64> {
    list.as_array().map(|list| list.len() as f64)
}

fn flag(is: bool) -> Option<f64> {
    Some(f64::from(u8::from(is)))
}

fn gauge(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>, value: f64) {
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, ConstGauge::new(value)),
        None => registry.register(name, help, ConstGauge::new(value)),
    }
}

fn info(registry: &mut Registry, status: &Value) {
    let of = |key: &'static str| (key, status[key].as_str().unwrap_or("-").to_owned());
    let labels = [of("version"), of("node"), of("contract"), of("role")];
    registry.register("node", "Which node this is", Info::new(labels));
}

/// Which alerts stand, by kind.
fn alerts(registry: &mut Registry, status: &Value) {
    let family = Family::<[(&'static str, &'static str); 1], prometheus_client::metrics::gauge::Gauge>::default();
    let stand: Vec<&Value> = status["alert_kinds"].as_array().into_iter().flatten().collect();
    // All of them, also those that do not stand: what is not there cannot be told from what is not known.
    for kind in Kind::ALL {
        let count = stand.iter().filter(|name| **name == kind.name()).count();
        family.get_or_create(&[("kind", kind.name())]).set(i64::try_from(count).expect("a few"));
    }
    registry.register("alert", "Alerts of this kind that stand; docs/operating.md says what to do", family);
}

/// The round trips of links, members' first.
fn links(registry: &mut Registry, status: &Value) {
    let rtt = Family::<
        [(&'static str, String); 2],
        prometheus_client::metrics::gauge::Gauge<f64, std::sync::atomic::AtomicU64>,
    >::default();
    let mut links: Vec<&Value> = status["links"].as_array().into_iter().flatten().collect();
    links.sort_by_key(|link| link["member"] != true);
    for link in links.into_iter().take(LINKS_TOLD_MAX) {
        let Some(rtt_us) = link["rtt_us"].as_f64() else { continue };
        let peer: String = link["peer"].as_str().unwrap_or_default().chars().take(8).collect();
        let role = if link["member"] == true { "member" } else { "other" };
        rtt.get_or_create(&[("peer", peer), ("role", role.to_owned())]).set(rtt_us / 1e6);
    }
    registry.register_with_unit("link_rtt", "Round trip of a ping, queues included", Unit::Seconds, rtt);
}

/// Brings the counters of what went over the links, and of links that broke over it, to what the node counted.
fn traffic(counted: &Counted, status: &Value) {
    let traffic = &status["traffic"];
    let of = |key: &str| traffic[key].as_u64().unwrap_or(0);
    let told = Traffic {
        received_bytes: of("received_bytes"),
        received_frames: of("received_frames"),
        sent_bytes: of("sent_bytes"),
        sent_frames: of("sent_frames"),
    };
    for (counter, now) in [
        (&counted.received_bytes, told.received_bytes),
        (&counted.received_frames, told.received_frames),
        (&counted.sent_bytes, told.sent_bytes),
        (&counted.sent_frames, told.sent_frames),
        (&counted.link_overflows, status["queues"]["overflows"].as_u64().unwrap_or(0)),
    ] {
        // Two may ask at a time; none of them sees it go back.
        counter.inner().fetch_max(now, std::sync::atomic::Ordering::Relaxed);
    }
}

fn disk(registry: &mut Registry, dir: &Path) {
    if let Ok(disk) = statvfs(dir) {
        let unit = disk.fragment_size() as f64;
        let (free, all) = (disk.blocks_available() as f64 * unit, disk.blocks() as f64 * unit);
        gauge(registry, "disk_free", "Room on the disk of the node's folder", BYTES(), free);
        gauge(registry, "disk", "That disk", BYTES(), all);
    }
    gauge(
        registry,
        "database",
        "The ledger database, with what is not merged yet",
        BYTES(),
        database_bytes(dir) as f64,
    );
}

/// What the ledger database has on the disk.
pub(super) fn database_bytes(dir: &Path) -> u64 {
    let of = |name: &str| fs::metadata(dir.join("hist").join(name)).map_or(0, |file| file.len());
    of("ledger.db") + of("ledger.db-wal")
}

/// What this process uses; where the operating system shows it in `/proc`.
fn process(registry: &mut Registry) {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|ticks| *ticks > 0);
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name before it may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let field = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    if let (Some(user), Some(system), Some(ticks)) = (field(11), field(12), ticks) {
        let used = ConstCounter::new((user + system) / ticks as f64);
        registry.register_with_unit("process_cpu", "Processor time of this process", Unit::Seconds, used);
    }
    if let (Some(pages), Some(page)) = (field(21), page) {
        let help = "Memory that this process has";
        gauge(registry, "process_resident_memory", help, BYTES(), pages * page as f64);
    }
    if let Some(threads) = field(17) {
        gauge(registry, "process_threads", "Threads of this process", None, threads);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        gauge(registry, "process_open_fds", "Files and sockets that this process has open", None, open.count() as f64);
    }
    if let Ok((allowed, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        gauge(registry, "process_max_fds", "How many it may have", None, allowed as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::types::LimitKind;

    /// A status with all that rows look for.
    fn full_status() -> Value {
        json!({
            "version": "1", "node": "aa", "contract": "c\"0", "role": "member", "seq": 7, "network_seq": 9, "unexecuted": 1,
            "attempt": 2, "rounds_per_s": 1.5, "unl": ["aa", "bb"], "live": ["aa"], "suspects": ["bb"], "quorum": 2,
            "links": [{"peer": "0123456789ab", "rtt_us": 1500, "member": true}, {"peer": "cc", "rtt_us": null}],
            "users": 3, "local_users": 1, "pool": 4, "synced": true, "diverged": false, "split": false, "halted": 8,
            "silent": {}, "disk": {"paused": false, "growth_bytes_per_day": 9, "days_left": 8}, "alerts": ["look", "no"], "alert_kinds": ["split", "nobody's"], "evidence": [], "liars": [],
            "queues": {"effects": 1, "effects_bytes": 2, "jobs": 3, "deliveries": 4, "overflows": 5},
            "fetching_state": {"bytes": 6, "bytes_total": 8}, "up_s": 60,
            "settlement": {
                "settled_seq": 5, "unsettled_ledgers": 2, "oldest_unsettled_ms": 2500, "reachable": true,
                "settlements_left": 7,
            },
            "traffic": {"received_bytes": 10, "received_frames": 2, "sent_bytes": 20, "sent_frames": 3},
        })
    }

    fn text(metrics: &Metrics) -> String {
        metrics.text(&full_status())
    }

    fn has(text: &str, line: &str) -> bool {
        text.lines().any(|other| other == line)
    }

    #[test]
    fn what_happened_and_what_is_so_now_is_told_with_units() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("hist")).unwrap();
        fs::write(dir.path().join("hist/ledger.db"), [0; 100]).unwrap();
        fs::write(dir.path().join("hist/ledger.db-wal"), [0; 11]).unwrap();
        let metrics = Metrics::new(dir.path());
        let run = Run {
            status: Status::Limit(LimitKind::FileSize),
            contract: Duration::from_millis(3),
            hashing: Duration::from_micros(50),
            elapsed: Duration::from_millis(4),
            outputs: 2,
            output_bytes: 30,
        };
        metrics.ran(&run);
        metrics.stage(Part::Executing, Some(Duration::from_millis(250)));
        metrics.stage(Part::Result, None);
        metrics.late(&NodeKey([0xab; 32]), Vote::Prevote);
        metrics.missing(&NodeKey([0xab; 32]), Vote::Result);
        let text = text(&metrics);
        for line in [
            "hotpocket_ledger_seq 7.0",
            "hotpocket_halted 1.0",
            "hotpocket_alerts 2.0",
            "hotpocket_alert{kind=\"split\"} 1",
            "hotpocket_alert{kind=\"disk_full\"} 0",
            "hotpocket_paused 0.0",
            "hotpocket_growth_per_day_bytes 9.0",
            "hotpocket_disk_days_left 8.0",
            "hotpocket_members_live 1.0",
            "hotpocket_oldest_unsettled_seconds 2.5",
            "hotpocket_outputs_total 2",
            "hotpocket_outputs_bytes_total 30",
            "hotpocket_contract_runs_total{status=\"limit\"} 1",
            "hotpocket_contract_runs_total{status=\"time\"} 0",
            "hotpocket_contract_run_seconds_sum 0.003",
            "hotpocket_stage_seconds_bucket{le=\"0.4096\",stage=\"executing\"} 1",
            "hotpocket_stage_seconds_count{stage=\"result\"} 0",
            "hotpocket_votes_late_total{peer=\"abababab\",vote=\"PREVOTE\"} 1",
            "hotpocket_votes_missing_total{peer=\"abababab\",vote=\"RESULT\"} 1",
            "hotpocket_link_rtt_seconds{peer=\"01234567\",role=\"member\"} 0.0015",
            "hotpocket_received_bytes_total 10",
            "hotpocket_database_bytes 111.0",
            "hotpocket_node_info{version=\"1\",node=\"aa\",contract=\"c\\\"0\",role=\"member\"} 1",
        ] {
            assert!(has(&text, line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let plain = plain(&text);
        for line in [
            "# TYPE hotpocket_outputs_bytes_total counter",
            "# HELP hotpocket_outputs_bytes_total Their bytes.",
            "hotpocket_outputs_bytes_total 30",
            "# TYPE hotpocket_node_info gauge",
            "# TYPE hotpocket_halted gauge",
            "# TYPE hotpocket_stage_seconds histogram",
        ] {
            assert!(has(&plain, line), "{line} is not in\n{plain}");
        }
        let samples =
            |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(samples(&plain), samples(&text));
        let is_known =
            |line: &&str| !line.starts_with('#') || line.starts_with("# HELP ") || line.starts_with("# TYPE ");
        assert_eq!(plain.lines().find(|line| !is_known(line)), None);
        #[cfg(target_os = "linux")]
        assert!(text.contains("\nhotpocket_process_cpu_seconds_total ") && text.contains("_resident_memory_bytes "));
    }

    #[test]
    fn what_is_not_known_is_left_out_and_no_name_comes_twice() {
        let metrics = Metrics::new(Path::new("/nowhere"));
        assert!(!metrics.text(&json!({})).contains("hotpocket_settled_seq"), "a node that settles nothing");
        let text = text(&metrics);
        let families: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let once: BTreeSet<&str> = families.iter().copied().collect();
        assert_eq!(families.len(), once.len());
        for family in families {
            assert!(family.starts_with("hotpocket_"), "{family}");
        }
    }

    /// The table in docs/operating.md: the names of its rows.
    fn documented() -> BTreeSet<String> {
        let text = include_str!("../../docs/operating.md");
        let table =
            text.split("### What is measured").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a section");
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `hotpocket_"));
        rows.map(|row| format!("hotpocket_{}", row.split(['`', '{', ' ']).next().expect("a name"))).collect()
    }

    #[test]
    fn the_documents_name_every_family_and_no_other() {
        let metrics = Metrics::new(Path::new("/"));
        metrics.late(&NodeKey([1; 32]), Vote::Novel);
        metrics.missing(&NodeKey([1; 32]), Vote::Novel);
        let text = plain(&text(&metrics));
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let served: BTreeSet<String> = types.filter_map(|told| told.split(' ').next()).map(str::to_owned).collect();
        assert!(served.len() > 50, "{served:?}");
        assert_eq!(documented(), served);
    }

    #[test]
    fn who_left_the_network_is_not_counted_any_more() {
        let metrics = Metrics::new(Path::new("/nowhere"));
        metrics.late(&NodeKey([1; 32]), Vote::Novel);
        metrics.missing(&NodeKey([1; 32]), Vote::Novel);
        assert!(text(&metrics).contains("peer=\"01010101\""));
        metrics.members_changed();
        assert!(!text(&metrics).contains("peer=\"01010101\""));
    }

    #[test]
    fn the_dashboard_shows_what_there_is() {
        let dashboard: Value = serde_json::from_str(include_str!("../../scripts/grafana.json")).unwrap();
        let metrics = Metrics::new(Path::new("/"));
        metrics.late(&NodeKey([1; 32]), Vote::Novel);
        metrics.missing(&NodeKey([1; 32]), Vote::Novel);
        let text = text(&metrics);
        let served: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(['{', ' ']).next().unwrap())
            .collect();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut used = BTreeSet::new();
        let mut panels: Vec<&Value> = dashboard["panels"].as_array().unwrap().iter().collect();
        assert!(panels.len() > 10);
        while let Some(panel) = panels.pop() {
            panels.extend(panel["panels"].as_array().into_iter().flatten());
            if panel["type"] == "row" {
                continue;
            }
            assert!(panel["title"].is_string() && panel["targets"][0]["expr"].is_string(), "{panel}");
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap();
                let open = query.matches(['(', '{', '[']).count();
                assert_eq!(open, query.matches([')', '}', ']']).count(), "{query}");
                used.extend(query.split(|c| !is_name(c)).filter(|word| word.starts_with("hotpocket_")));
            }
        }
        let unknown: Vec<&&str> = used.iter().filter(|name| !served.contains(*name)).collect();
        assert!(unknown.is_empty(), "no node serves {unknown:?}");
        assert!(used.len() > 25, "{used:?}");
    }
}
