//! `hp unl`: which nodes decide, and the operator's vote for a change of that.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Exit, Failure, Outcome, answer, status::ask};
use crate::{
    config::{PeerAddr, Tolerance},
    node::control::{Request, UnlVote},
};

const EXAMPLES: &str = "\
Examples:
  hp unl list mynode                              who decides, who votes for what
  hp unl add KEY mynode                           this node's operator votes that the node KEY joins
  hp unl add KEY mynode --peer 192.0.2.7:22860    and says where it listens
  hp unl remove KEY mynode                        votes that it leaves
  hp unl withdraw mynode                          takes that vote back

A change is made by the ledger for which a quorum of the operators vote alike, one member at a time, and holds from the next
ledger on. A vote stands, also over restarts, until it is withdrawn or the change is made. A node that is to join runs as an
observer first: it shows its KEY in its own `hp status`, and links to the others.";

/// Show or change which nodes decide (the UNL).
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Unl {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show who decides, and who votes for which change.
    List {
        /// The contract folder of a running node
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Vote that a node joins.
    Add {
        #[command(flatten)]
        vote: Vote,
        /// Where the node listens; needed only when it does not find the others by itself
        #[arg(long, value_name = "HOST:PORT")]
        peer: Option<PeerAddr>,
    },
    /// Vote that a node leaves.
    Remove {
        #[command(flatten)]
        vote: Vote,
    },
    /// Take this node's vote back.
    Withdraw {
        /// The contract folder of a running member
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Vote {
    /// The node's key, 64 hexadecimal digits
    key: String,
    /// The contract folder of a running member
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Also when too few members would be live to close ledgers
    #[arg(long)]
    yes: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Unl {
    pub(super) fn run(self) -> Outcome {
        let (dir, json, request) = match self.what {
            What::List { dir, json } => (dir, json, Request::Unl),
            What::Withdraw { dir, json } => (dir, json, Request::UnlWithdraw),
            What::Add { vote, peer } => vote.request(true, peer),
            What::Remove { vote } => vote.request(false, None),
        };
        let unl = ask(&dir, &request)?;
        if let Some(error) = unl["error"].as_str() {
            let how = if unl["danger"] == true { " (--yes votes all the same)" } else { "" };
            return Err(Failure::new(Exit::Failed, anyhow::anyhow!("{error}{how}")));
        }
        if json { answer(&format!("{unl}\n")) } else { answer(&text(&unl)) }
    }
}

impl Vote {
    fn request(self, add: bool, peer: Option<PeerAddr>) -> (PathBuf, bool, Request) {
        let Vote { key, dir, yes, json } = self;
        let vote = UnlVote { add, node: key, peer: peer.map(|peer| peer.to_string()), yes };
        (dir, json, Request::UnlVote(vote))
    }
}

/// The UNL for a person: members, what they tolerate, and for each change asked for what it would lead to.
fn text(unl: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let list = |key: &str| unl[key].as_array().cloned().unwrap_or_default();
    let threshold = unl["threshold"].as_u64().unwrap_or(100);
    let tolerance = |n: usize| Tolerance { n, threshold }.to_string();
    let members = list("members");
    let mut text = format!("{}\n", tolerance(members.len().max(1)));
    for member in &members {
        let here = if member["me"] == true { "  (this node)" } else { "" };
        let live = if member["live"] == true { "live   " } else { "missing" };
        text += &format!("  {live}  {}{here}\n", word(&member["node"]));
    }
    for observer in list("observers") {
        text += &format!("  observes {}\n", word(&observer));
    }
    if unl["role"] == "observer" {
        text += "this node is an observer: it has no vote\n";
    }
    for pending in list("pending") {
        text += &format!("asked for: {}\n", pending_text(&pending));
        let after = if pending["change"] == "add" { members.len() + 1 } else { members.len().saturating_sub(1) };
        if after > 0 {
            text += &format!("  then {}\n", tolerance(after));
        }
        let (change, node) = (word(&pending["change"]), word(&pending["node"]));
        text += &format!("  the others vote for it with `hp unl {change} {node}` in their folders\n");
    }
    text
}

/// A change, how many vote for it and who.
pub(super) fn pending_text(pending: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let by = pending["by"].as_array().cloned().unwrap_or_default();
    let voters: Vec<String> = by.iter().map(|node| word(node).chars().take(8).collect()).collect();
    format!(
        "{} {}: {} of {} votes ({})",
        word(&pending["change"]),
        word(&pending["node"]),
        voters.len(),
        pending["needed"],
        voters.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_list_shows_who_decides_what_is_asked_for_and_what_it_would_lead_to() {
        let unl = json!({
            "node": "aa", "role": "member", "threshold": 80, "quorum": 4, "observers": ["ff"],
            "members": [
                {"node": "aa", "me": true, "live": true, "vote": null}, {"node": "bb", "me": false, "live": false},
                {"node": "cc", "live": true}, {"node": "dd", "live": true}, {"node": "ee", "live": true},
            ],
            "pending": [{"change": "remove", "node": "bb", "by": ["aa", "cc"], "needed": 4}],
        });
        let expected = "\
UNL 5, quorum 4: goes on with 1 down, agrees in spite of 2 malicious
  live     aa  (this node)
  missing  bb
  live     cc
  live     dd
  live     ee
  observes ff
asked for: remove bb: 2 of 4 votes (aa cc)
  then UNL 4, quorum 4: stops if any node is down; threshold 75 tolerates 1
  the others vote for it with `hp unl remove bb` in their folders
";
        assert_eq!(text(&unl), expected);
        let alone = json!({ "role": "observer", "threshold": 80, "members": [{"node": "bb", "live": true}] });
        assert!(text(&alone).ends_with("this node is an observer: it has no vote\n"));
    }
}
