//! Why results differ, as soon as a node has found out: the reports in the nodes' diag/.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use super::output::Paint;
use crate::{
    cli::diverge,
    config::Config,
    divergence::{Comparison, Kind, Report, folder},
    types::Seq,
};

/// Ledgers with a report that was shown in full. After them a line says that there is another.
const SHOWN_MAX: usize = 3;

/// Time for a report to become complete, before it is shown as it is.
const COMPLETE_TIME: Duration = Duration::from_secs(5);

/// What was told.
#[derive(Default)]
pub(super) struct Told {
    reports: BTreeSet<Seq>,
    /// Reports that are not complete, and when they are shown all the same.
    waiting: BTreeMap<Seq, Instant>,
    /// No quorum has the same result, so the network does not go on.
    pub(super) is_split: bool,
}

impl Told {
    /// The reports that are new in the nodes' folders, and the text to be shown of them.
    pub(super) fn look(&mut self, folders: &[PathBuf], paint: Paint) -> String {
        let mut text = String::new();
        for dir in folders {
            for seq in folder::list(dir).unwrap_or_default() {
                // One that cannot be read is being written.
                let Ok(Some(report)) = folder::read_report(dir, seq) else { continue };
                self.is_split |= report.kind == Kind::Split;
                let due = *self.waiting.entry(seq).or_insert_with(|| Instant::now() + COMPLETE_TIME);
                if is_complete(&report) || (report.groups.len() > 1 && due <= Instant::now()) {
                    self.tell(&report, dir, folders, paint, &mut text);
                }
            }
        }
        text
    }

    /// When to look again, though no report has changed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.iter().filter(|(seq, _)| !self.reports.contains(seq)).map(|(_, due)| *due).min()
    }

    fn tell(&mut self, report: &Report, dir: &Path, folders: &[PathBuf], paint: Paint, text: &mut String) {
        if !self.reports.insert(report.seq) {
            return;
        }
        let mut line = |words: String| writeln!(text, "{words}").expect("into memory");
        let names = report.groups.iter().map(|group| {
            let number = |at: &usize| group.nodes.contains(&key_of(&folders[*at]));
            let nodes: Vec<String> = (0..folders.len()).filter(number).map(|at| (at + 1).to_string()).collect();
            format!("{}: {} {}", group.name, if nodes.len() == 1 { "node" } else { "nodes" }, nodes.join(", "))
        });
        let names = names.collect::<Vec<_>>().join("; ");
        line(paint.bad(&format!("RESULTS DIFFER in ledger {}: {names}", report.seq)));
        if self.reports.len() <= SHOWN_MAX {
            diverge::text_of(report, dir, paint.0).lines().for_each(|words| line(format!("  {words}")));
        } else {
            line(format!("  hp diverge show {} --seq {}", dir.display(), report.seq));
        }
        if report.kind == Kind::Split {
            line(paint.bad("No ledger is closed any more. With the next change of bin/ the network begins anew."));
        }
    }
}

/// Whether there is all to be told: two results or more, everybody's, and what differs between them.
fn is_complete(report: &Report) -> bool {
    let others = || report.groups.iter().filter(|group| !group.this_node);
    let is_compared = |comparison: &Comparison| comparison.with.is_some();
    others().count() > 0
        && report.silent.is_empty()
        && report.own_group().is_some()
        && others().all(|group| report.comparison(group).is_some_and(is_compared))
}

/// A node's key in hexadecimal digits, by its folder.
fn key_of(dir: &Path) -> String {
    Config::load_of_another(&Config::path(dir)).map(|config| config.key.to_string()).unwrap_or_default()
}
