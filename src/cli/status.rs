//! `hp status`: asks running nodes where they stand, once, or as long as somebody looks (`watch`).

mod view;
mod watch;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;

use super::{Exit, Failure, Outcome, answer};
use crate::node::control::{self, Request};

/// Time for the node to answer. It answers within a round of its loop, so that one that does not stands still.
const ANSWER_TIME: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  hp status mynode                                where does the node stand?
  hp status mynode --json | jq .seq               for programs
  hp status mynode --watch                        as it changes, in this terminal
  hp status alice bob carol --watch               several nodes of this machine
  hp status alice bob --watch --json              a line for each change
  hp status mynode --metrics                      what Prometheus would read

With several folders --json prints one object a line, with `folder`. In a pipe --watch prints a line for each change.

Exit code 6 when a node does not answer.";

/// Show where a running node stands.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Status {
    /// The contract folders of the nodes
    #[arg(default_value = ".")]
    dirs: Vec<PathBuf>,
    /// As one JSON object, or one a line
    #[arg(long)]
    json: bool,
    /// Go on showing it as it changes
    #[arg(short, long)]
    watch: bool,
    /// Show the metrics instead, as Prometheus reads them
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    metrics: bool,
}

impl Status {
    pub(super) fn run(self) -> Outcome {
        if self.watch {
            return watch::watch(self.dirs, self.json);
        }
        let mut last = Ok(());
        for dir in &self.dirs {
            let shown = self.show(dir);
            // The others may be up.
            if let (Err(Failure { error: Some(error), .. }), true) = (&shown, self.dirs.len() > 1) {
                eprintln!("error: {error:#}");
                last = shown.map_err(|failure| Failure::told(failure.exit));
            } else {
                shown?;
            }
        }
        last
    }

    fn show(&self, dir: &Path) -> Outcome {
        if self.metrics {
            let metrics = ask(dir, &Request::Metrics)?;
            return answer(metrics["text"].as_str().unwrap_or_default());
        }
        let status = ask(dir, &Request::Status)?;
        match (self.json, self.dirs.len()) {
            (true, 1) => answer(&format!("{status}\n")),
            (true, _) => answer(&format!("{}\n", named(status, &folder_name(dir)))),
            (false, 1) => answer(&text(&status)),
            (false, _) => answer(&format!("{}\n{}\n", folder_name(dir), text(&status))),
        }
    }
}

/// With the folder that it is of, where there are several.
fn named(mut status: Value, name: &str) -> Value {
    if let Some(status) = status.as_object_mut() {
        status.insert("folder".to_owned(), name.into());
    }
    status
}

/// As an operator names a node.
fn folder_name(dir: &Path) -> String {
    dir.display().to_string()
}

/// Asks the node that runs in a folder.
pub(super) fn ask(dir: &Path, request: &Request) -> Result<Value, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let asked = async { tokio::time::timeout(ANSWER_TIME, control::ask(dir, request)).await };
    match runtime.block_on(asked) {
        Ok(answer) => answer.map_err(|error| failure(dir, error)),
        Err(_) => Err(Failure::new(Exit::NoAnswer, anyhow::anyhow!(stands_still(dir, ANSWER_TIME)))),
    }
}

/// Of a node that takes a connection and says nothing.
fn stands_still(dir: &Path, after: Duration) -> String {
    format!("the node in {} runs, but does not answer within {} s", dir.display(), after.as_secs())
}

/// Why a node cannot be asked.
fn no_answer(dir: &Path, error: &io::Error) -> String {
    let path = control::path(dir);
    match is_nobody(error) {
        true => format!("no node runs in {} (nobody answers at {})", dir.display(), path.display()),
        false => format!("cannot ask the node at {}", path.display()),
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn failure(dir: &Path, error: io::Error) -> Failure {
    let exit = if is_nobody(&error) { Exit::NoAnswer } else { Exit::Failed };
    let what = no_answer(dir, &error);
    Failure::new(exit, anyhow::Error::new(error).context(what))
}

/// The status for a person: a line each for what matters.
fn text(status: &Value) -> String {
    let word = |key: &str| match &status[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let count = |key: &str| status[key].as_array().map_or(0, Vec::len);
    let short = |key: &str| word(key).chars().take(8).collect::<String>();
    let mut lines = vec![
        ("node", format!("{} ({}), up {} s, pid {}", word("node"), word("role"), word("up_s"), word("pid"))),
        ("contract", word("contract")),
        ("ledger", format!("{}  {}", word("seq"), word("lcl"))),
        ("round", format!("{}, attempt {}", word("stage"), word("attempt"))),
        (
            "network",
            format!(
                "{} of {} members live, quorum {}, {} links",
                count("live"),
                count("unl"),
                word("quorum"),
                count("links")
            ),
        ),
        (
            "users",
            format!("{} here, {} in the ledger; {} inputs waiting", word("local_users"), word("users"), word("pool")),
        ),
        ("state", format!("{}, {}", state_root(&short("state_root")), standing(status))),
        ("kept by", kept_by(&status["state_kept"])),
        ("guards", guards(&status["guards"])),
    ];
    if let Some(text) = crate::node::disk::describe(&status["disk"]) {
        lines.push(("disk", text));
    }
    for (part, name) in [("verified", "fetched"), ("executed", "run")] {
        let part = &status["catching_up"][part];
        if let (Some(at), Some(to)) = (part["at"].as_u64(), part["to"].as_u64()) {
            let left = part["left_s"].as_u64().map_or("nothing moves".to_owned(), |left| format!("{left} s left"));
            let (percent, per_s) = (&part["percent"], part["per_s"].as_f64().unwrap_or(0.0));
            lines.push((name, format!("ledger {at} of {to} ({percent} %), {per_s} a second, {left}")));
        }
    }
    if let Some(text) = joining(&status["joining"]) {
        lines.push(("joining", text));
    }
    let fetching = &status["fetching_state"];
    if let Some(why) = fetching["why"].as_str() {
        lines.push(("fetching", format!("{}, because {why}", fetched(fetching))));
    }
    let missing = missing(status);
    if !missing.is_empty() {
        lines.push(("missing", missing));
    }
    let run = &status["last_run"];
    if let (Some(seq), Some(how)) = (run["seq"].as_u64(), run["status"].as_str()) {
        // A run that was over its time has no more to tell.
        let more = run["contract_ms"].as_f64().map_or(String::new(), |ms| {
            format!(", {ms} ms, {} bytes of output", run["output_bytes"].as_u64().unwrap_or(0))
        });
        lines.push(("last run", format!("ledger {seq}: {how}{more}")));
    }
    if let Some(settled) = super::msb::line(&status["settlement"]) {
        lines.push(("settled", settled));
    }
    lines.push((
        "ports",
        format!("peers {}, users {}, http {}", word("peer_address"), word("user_address"), word("http_url")),
    ));
    let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    for proof in list("evidence") {
        let count = proof["count"].as_u64().unwrap_or(0);
        let text = |key: &str| proof[key].as_str().unwrap_or("-").to_owned();
        lines.push((
            "evidence",
            format!(
                "{} signed two different {} messages ({count} times, the last for ledger {})",
                text("node"),
                text("kind"),
                proof["seq"]
            ),
        ));
    }
    if let Some(text) = silent(&status["silent"]) {
        lines.push(("silent", text));
    }
    for pending in list("unl_changes") {
        lines.push(("unl vote", super::unl::pending_text(&pending)));
    }
    for liar in list("liars") {
        let text = |key: &str| liar[key].as_str().unwrap_or("-").to_owned();
        let count = liar["count"].as_u64().unwrap_or(0);
        lines.push(("liar", format!("{} sent {} ({count} times)", text("node"), text("what"))));
    }
    let kinds = list("alert_kinds");
    for (at, alert) in list("alerts").iter().enumerate() {
        // The name under which the manual has it.
        let kind = kinds.get(at).and_then(Value::as_str).map_or(String::new(), |kind| format!(" ({kind})"));
        lines.push(("ALERT", format!("{}{kind}", alert.as_str().unwrap_or_default())));
    }
    lines.iter().map(|(name, value)| format!("{name:<9} {value}\n")).collect()
}

/// Members that this node has no link with, each on a line of its own.
fn missing(status: &Value) -> String {
    let keys = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    let live = keys("live");
    let missing: Vec<Value> = keys("unl").into_iter().filter(|node| !live.contains(node)).collect();
    let missing: Vec<&str> = missing.iter().filter_map(Value::as_str).collect();
    missing.join("\n          ")
}

/// Why the node signs nothing, since when, and what it waits for.
fn silent(silent: &Value) -> Option<String> {
    let since = silent["since_ms"].as_u64()?;
    let word = |key: &str| silent[key].as_str().unwrap_or("-").to_owned();
    let since = crate::ledger::view::utc(since);
    Some(format!("since {since}, ledger {}: {}; {}", silent["since_seq"], word("why"), word("waits_for")))
}

/// How the state before a run is kept, and why so.
fn kept_by(kept: &Value) -> String {
    let word = |key: &str| kept[key].as_str().unwrap_or("-").to_owned();
    format!("{} ({})", word("by"), word("why"))
}

/// What is still missing after this node came late.
fn joining(joining: &Value) -> Option<String> {
    let lacks = match joining["lacks"].as_str()? {
        "contents" => "headers alone up to where others keep contents",
        "state" => "the state is fetched when no ledger lacks",
        _ => "it does not know all inputs of the last ledgers",
    };
    let votes = joining["votes_after"].as_u64().map_or(String::new(), |seq| format!("; votes after ledger {seq}"));
    Some(format!("{lacks}{votes}"))
}

/// How far the fetching of the state is.
fn fetched(fetching: &Value) -> String {
    let count = |key: &str| fetching[key].as_u64().unwrap_or(0);
    let mb = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    let Some(next) = fetching["next"].as_u64() else { return "the state: no node offers it yet".to_owned() };
    let of = match count("bytes_total") {
        0 => format!("the list, {} of {} files", count("entries"), count("entries_total")),
        total => format!("{} of {} MB ({} %)", mb(count("bytes")), mb(total), 100 * count("bytes") / total),
    };
    let rate = mb(fetching["bytes_per_s"].as_f64().unwrap_or(0.0) as u64);
    format!("the state before ledger {next}: {of} from {} nodes, {rate} MB a second", count("peers"))
}

/// What keeps the contract from doing more than computing: what is on, and what is off, with the reason.
fn guards(guards: &Value) -> String {
    let all = guards.as_array().map_or(&[][..], Vec::as_slice);
    let word = |guard: &Value, key: &str| guard[key].as_str().unwrap_or("-").to_owned();
    let (on, off): (Vec<&Value>, Vec<&Value>) = all.iter().partition(|guard| guard["on"] == true);
    let on: Vec<String> = on.into_iter().map(|guard| word(guard, "name")).collect();
    let off: Vec<String> = off
        .into_iter()
        .map(|guard| {
            let remedy = guard["remedy"].as_str().map(|remedy| format!("; {remedy}")).unwrap_or_default();
            format!("\n          off: {} ({}{remedy})", word(guard, "name"), word(guard, "why"))
        })
        .collect();
    let on = if on.is_empty() { "none".to_owned() } else { on.join(", ") };
    format!("{on}{}", off.concat())
}

/// The root of an empty state is zero.
fn state_root(root: &str) -> &str {
    if root.bytes().all(|digit| digit == b'0') { "empty" } else { root }
}

fn standing(status: &Value) -> &'static str {
    let is = |key: &str| status[key].as_bool().unwrap_or(false);
    match (is("diverged"), is("split"), is("synced")) {
        _ if is("diverging") => "DIVERGING: differs from the network's again and again",
        (true, ..) => "DIVERGED: differs from the network's",
        (_, true, _) => "SPLIT: no result has a quorum",
        _ if status["halted"].is_u64() => "HALTED: results differ, and none has a quorum yet",
        _ if status["disk"]["paused"] == true => "DISK FULL: neither votes nor runs until there is room",
        (_, _, true) => "in sync",
        _ => "catching up",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_status_names_missing_members_alerts_and_an_empty_state() {
        let status = json!({
            "node": "aa", "role": "member", "up_s": 5, "pid": 7, "contract": "c0", "seq": 3, "lcl": "1f", "stage": "idle",
            "attempt": 0, "unl": ["aa", "bb", "cc"], "live": ["aa"], "quorum": 3, "links": [], "local_users": 1, "users": 2,
            "pool": 0, "state_root": "00000000ff", "synced": true, "state_kept": {"by": "shadow", "why": "auto"},
            "guards": [
                {"name": "landlock", "on": true, "wanted": true, "why": "version 7"},
                {"name": "network", "on": false, "wanted": false, "why": "allowed"},
                {"name": "seccomp", "on": true, "wanted": true, "why": "a list"},
            ],
            "peer_address": "127.0.0.1:1", "user_address": null,
            "last_run": {"seq": 3, "status": "ok", "contract_ms": 1.5, "output_bytes": 9}, "alerts": ["look"],
            "evidence": [{"node": "bb", "kind": "NOVEL", "count": 2, "seq": 7, "attempt": 0}],
            "unl_changes": [{"change": "remove", "node": "cc", "by": ["aa"], "needed": 3}],
            "liars": [{"node": "cc", "what": "a false certificate", "count": 1}],
            "catching_up": {
                "verified": {"at": 900, "from": 0, "to": 1000, "percent": 90, "per_s": 450.0, "left_s": 0},
                "executed": {"at": 3, "from": 0, "to": 1000, "percent": 0, "per_s": 0.0, "left_s": null},
            },
        });
        let expected = "\
node      aa (member), up 5 s, pid 7
contract  c0
ledger    3  1f
round     idle, attempt 0
network   1 of 3 members live, quorum 3, 0 links
users     1 here, 2 in the ledger; 0 inputs waiting
state     empty, in sync
kept by   shadow (auto)
guards    landlock, seccomp
          off: network (allowed)
fetched   ledger 900 of 1000 (90 %), 450 a second, 0 s left
run       ledger 3 of 1000 (0 %), 0 a second, nothing moves
missing   bb
          cc
last run  ledger 3: ok, 1.5 ms, 9 bytes of output
ports     peers 127.0.0.1:1, users -, http -
evidence  bb signed two different NOVEL messages (2 times, the last for ledger 7)
unl vote  remove cc: 1 of 3 votes (aa)
liar      cc sent a false certificate (1 times)
ALERT     look
";
        assert_eq!(text(&status), expected);
        let fetching = json!({ "synced": false, "fetching_state": {
            "why": "state/ was changed or damaged", "next": 9, "peers": 3, "bytes": 500_000_000, "bytes_total": 1_000_000_000,
            "entries": 7, "entries_total": 7, "bytes_per_s": 81_000_000.0,
        }});
        assert!(text(&fetching).contains(
            "the state before ledger 9: 500.0 of 1000.0 MB (50 %) from 3 nodes, 81.0 MB a second, because state/ was"
        ));
        let diverged = json!({ "diverged": true, "state_root": "12" });
        assert!(text(&diverged).contains("state     12, DIVERGED"));
        let again = json!({ "diverged": true, "diverging": true, "state_root": "12" });
        assert!(text(&again).contains("state     12, DIVERGING"), "which says more");
    }
}
