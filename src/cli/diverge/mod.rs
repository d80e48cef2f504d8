//! `hp diverge`: why results differed, from what a node keeps under `diag/`. Needs no running node.

mod show;

use std::{fmt::Write as _, path::PathBuf};

use anyhow::Context as _;
use serde_json::json;

use self::show::Show;
use super::{Exit, Failure, Outcome, answer};
use crate::{
    divergence::{Kind, Report, folder},
    types::Seq,
};

const EXAMPLES: &str = "\
Examples:
  hp diverge show mynode                    the last ledger on which results differed
  hp diverge show mynode --seq 17           ledger 17
  hp diverge show mynode --json | jq .groups
  hp diverge list mynode                    which ledgers are there?";

/// Show why the results of nodes differed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Diverge {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Show(Show),
    List(List),
}

impl Diverge {
    pub(super) fn run(self) -> Outcome {
        match self.command {
            Command::Show(show) => show.run(),
            Command::List(list) => list.run(),
        }
    }
}

/// List the ledgers on which results differed.
#[derive(Debug, clap::Args)]
struct List {
    /// The contract folder of the node
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// As one JSON array
    #[arg(long)]
    json: bool,
}

impl List {
    fn run(self) -> Outcome {
        let mut found = Vec::new();
        for seq in list(&self.dir)? {
            found.push((seq, read(&self.dir, seq)?));
        }
        if self.json {
            let entry = |(seq, report): &(Seq, Option<Report>)| {
                json!({
                    "seq": seq, "path": folder::of(&self.dir, *seq), "kind": report.as_ref().map(|report| report.kind),
                    "groups": report.as_ref().map(|report| report.groups.len()),
                })
            };
            let all: Vec<_> = found.iter().map(entry).collect();
            return answer(&format!("{:#}\n", serde_json::Value::Array(all)));
        }
        if found.is_empty() {
            return answer(&format!("no results differed, as far as {} knows\n", self.dir.join("diag").display()));
        }
        let mut text = String::new();
        for (seq, report) in &found {
            let what = report.as_ref().map_or("no report (yet)".to_owned(), headline);
            writeln!(text, "ledger {seq:>8}  {what}").expect("into memory");
        }
        answer(&text)
    }
}

fn list(dir: &std::path::Path) -> Result<Vec<Seq>, Failure> {
    if !dir.is_dir() {
        return Err(Failure::new(Exit::Failed, anyhow::anyhow!("there is no folder {}", dir.display())));
    }
    folder::list(dir).with_context(|| format!("cannot read {}", dir.join("diag").display())).map_err(Failure::from)
}

fn read(dir: &std::path::Path, seq: Seq) -> Result<Option<Report>, Failure> {
    let what = || format!("cannot read the report in {}", folder::of(dir, seq).display());
    folder::read_report(dir, seq).with_context(what).map_err(Failure::from)
}

/// All that a report says, as `hp diverge show` prints it.
pub(super) fn text_of(report: &Report, dir: &std::path::Path, colours: bool) -> String {
    show::text(report, dir, show::Paint(colours))
}

/// What happened, in one line.
fn headline(report: &Report) -> String {
    let groups = report.groups.len();
    let nodes: usize = report.groups.iter().map(|group| group.nodes.len()).sum();
    match report.kind {
        Kind::Split => format!("SPLIT: {nodes} nodes, {groups} results, none with a quorum of {}", report.quorum),
        Kind::Diverged => "DIVERGED: the network agreed on another result than this node's".to_owned(),
        Kind::Others => {
            let others =
                report.groups.iter().filter(|group| !group.agreed).map(|group| group.nodes.len()).sum::<usize>();
            let nodes = if others == 1 { "1 other node has" } else { &format!("{others} other nodes have") };
            format!("this node agrees with the network; {nodes} another result")
        }
        Kind::Open => format!("{nodes} nodes, {groups} results so far, none with a quorum of {} yet", report.quorum),
    }
}
