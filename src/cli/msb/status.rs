//! `hp msb status`: where a running node's settling stands.

use std::path::PathBuf;

use serde_json::Value;

use crate::{
    cli::{Exit, Failure, Outcome, answer, status::ask},
    node::control::Request,
};

const EXAMPLES: &str = "\
Examples:
  hp msb status mynode          what is settled, what is under way, what to do about it
  hp msb status mynode --json   the same for programs";

/// Show what a running node has settled.
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
        let status = ask(&self.dir, &Request::Status)?;
        let settling = &status["settlement"];
        if settling.is_null() {
            let what = anyhow::anyhow!(
                "the node in {} settles nothing: [msb] mode is \"off\" in its cfg/hp.cfg",
                self.dir.display()
            );
            return Err(Failure::new(Exit::Failed, what));
        }
        if self.json { answer(&format!("{settling}\n")) } else { answer(&text(settling)) }
    }
}

fn word(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// What is settled, in a line; `None` where nothing is settled by this node.
pub(in crate::cli) fn line(settling: &Value) -> Option<String> {
    if settling.is_null() {
        return None;
    }
    let behind = match settling["unsettled_ledgers"].as_u64() {
        Some(0) | None => String::new(),
        Some(ledgers) => format!(", {ledgers} ledgers since"),
    };
    let settled = match settling["settled_seq"].as_u64() {
        None => "nothing is agreed on yet".to_owned(),
        Some(0) => format!("nothing yet{behind}"),
        Some(seq) => format!("up to ledger {seq}{behind}"),
    };
    let pending = &settling["pending"];
    let pending = match pending["state"].as_str() {
        None => String::new(),
        Some(state) => format!("; ledgers {} to {} are {state}", pending["first"], pending["last"]),
    };
    Some(settled + &pending)
}

fn text(settling: &Value) -> String {
    let reachable = match settling["reachable"].as_bool() {
        None => "not asked yet",
        Some(true) => "answers",
        Some(false) => "DOES NOT ANSWER",
    };
    let mut lines = vec![
        ("bus", format!("{} ({}), {reachable}", word(settling, "url"), word(settling, "network"))),
        ("subnet", word(settling, "subnet")),
        ("settled", line(settling).unwrap_or_default()),
    ];
    if let Some(tx) = settling["settled_tx"].as_str() {
        lines.push(("in", tx.to_owned()));
    }
    if let Some(oldest) = settling["oldest_unsettled_ms"].as_u64() {
        lines.push(("oldest", format!("output that is not settled: {} s", oldest / 1_000)));
    }
    let pending = &settling["pending"];
    if !pending.is_null() {
        let turn = match pending["rank"].as_u64() {
            None => "not this node's to post".to_owned(),
            Some(0) => "this node posts first".to_owned(),
            Some(rank) => format!("{rank} nodes post before this one"),
        };
        lines.push(("content", word(pending, "ch")));
        lines.push(("as", format!("{}, posted {} times here; {turn}", word(pending, "tx"), word(pending, "posts"))));
    }
    let left =
        settling["settlements_left"].as_u64().map_or(String::new(), |left| format!(", good for {left} settlements"));
    lines.push(("address", word(settling, "address")));
    lines.push(("balance", format!("{}{left}", word(settling, "balance"))));
    for alert in settling["alerts"].as_array().into_iter().flatten() {
        lines.push(("ALERT", alert.as_str().unwrap_or_default().to_owned()));
    }
    lines.iter().map(|(name, value)| format!("{name:<9} {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_status_says_what_is_settled_what_is_under_way_and_what_is_to_be_done() {
        assert_eq!(line(&Value::Null), None);
        assert_eq!(line(&json!({ "settled_seq": null })).unwrap(), "nothing is agreed on yet");
        assert_eq!(line(&json!({ "settled_seq": 0, "unsettled_ledgers": 7 })).unwrap(), "nothing yet, 7 ledgers since");
        let settling = json!({
            "url": "http://127.0.0.1:5000/", "network": "development", "reachable": true, "subnet": "44", "settled_seq": 90,
            "settled_tx": "aa", "unsettled_ledgers": 12, "oldest_unsettled_ms": 5_300, "address": "trac1x", "balance": "3 TNK",
            "settlements_left": 99, "alerts": ["send TNK"],
            "pending": {
                "first": 91, "last": 100, "ch": "cc", "tx": "bb", "state": "posted", "posts": 2, "rank": 1,
                "confirmed_length": null,
            },
        });
        let expected = "\
bus       http://127.0.0.1:5000/ (development), answers
subnet    44
settled   up to ledger 90, 12 ledgers since; ledgers 91 to 100 are posted
in        aa
oldest    output that is not settled: 5 s
content   cc
as        bb, posted 2 times here; 1 nodes post before this one
address   trac1x
balance   3 TNK, good for 99 settlements
ALERT     send TNK
";
        assert_eq!(text(&settling), expected);
    }
}
