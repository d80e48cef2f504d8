//! `hp status`: asks a running node where it stands.

use std::{io, path::PathBuf, time::Duration};

use anyhow::Context as _;
use serde_json::Value;

use super::{Exit, Failure, Outcome, answer};
use crate::node::control::{self, Request};

/// Time for the node to answer. It answers within a round of its loop, so that one that does not stands still.
const ANSWER_TIME: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  hp status mynode                                where does the node stand?
  hp status mynode --json | jq .seq               for programs";

/// Show where a running node stands.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Status {
    /// The contract folder of the node
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Outcome {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        let asked = async { tokio::time::timeout(ANSWER_TIME, control::ask(&self.dir, &Request::Status)).await };
        let status = match runtime.block_on(asked) {
            Ok(answer) => answer.map_err(|error| self.failure(error))?,
            Err(_) => {
                let (dir, after) = (self.dir.display(), ANSWER_TIME.as_secs());
                let what = anyhow::anyhow!("the node in {dir} runs, but does not answer within {after} s");
                return Err(Failure::new(Exit::NoAnswer, what));
            }
        };
        if self.json { answer(&format!("{status}\n")) } else { answer(&text(&status)) }
    }

    fn failure(&self, error: io::Error) -> Failure {
        let path = control::path(&self.dir);
        let nobody = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        let what = if nobody {
            format!("no node runs in {} (nobody answers at {})", self.dir.display(), path.display())
        } else {
            format!("cannot ask the node at {}", path.display())
        };
        let exit = if nobody { Exit::NoAnswer } else { Exit::Failed };
        Failure::new(exit, anyhow::Error::new(error).context(what))
    }
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
        ("state", format!("{}  {}", short("state_root"), standing(status))),
    ];
    let run = &status["last_run"];
    if let (Some(seq), Some(how)) = (run["seq"].as_u64(), run["status"].as_str()) {
        let outputs = run["output_bytes"].as_u64().unwrap_or(0);
        lines.push(("last run", format!("ledger {seq}: {how}, {} ms, {outputs} bytes of output", run["contract_ms"])));
    }
    lines.push(("ports", format!("peers {}, users {}", word("peer_address"), word("user_address"))));
    let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    for proof in list("evidence") {
        let count = proof["count"].as_u64().unwrap_or(0);
        lines
            .push(("evidence", format!("{} signed two different {} messages ({count})", proof["node"], proof["kind"])));
    }
    for alert in list("alerts") {
        lines.push(("ALERT", alert.as_str().unwrap_or_default().to_owned()));
    }
    lines.iter().map(|(name, value)| format!("{name:<9} {value}\n")).collect()
}

fn standing(status: &Value) -> &'static str {
    let is = |key: &str| status[key].as_bool().unwrap_or(false);
    match (is("diverged"), is("split"), is("synced")) {
        (true, ..) => "DIVERGED: differs from the network's",
        (_, true, _) => "SPLIT: no result has a quorum",
        (_, _, true) => "in sync",
        _ => "catching up",
    }
}
