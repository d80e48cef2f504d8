//! `hp ledger ls`: a line a ledger.

use std::{fmt::Write as _, path::PathBuf};

use super::{open, unreadable, view};
use crate::{
    cli::{Outcome, answer},
    ledger::Depth,
    types::Seq,
};

/// Ledgers shown unless told otherwise.
const LIMIT: u64 = 20;

const EXAMPLES: &str = "\
Examples:
  hp ledger ls mynode                       the newest 20 ledgers
  hp ledger ls mynode --from 1 --to 100     these
  hp ledger ls mynode --json --limit 1      the newest, for programs

A node that runs is not disturbed. `run` is how the contract's run of the ledger ended: as agreed on, or in brackets as
this node alone has it so far. `signed` is how many members signed the certificate, of how many.";

/// List ledgers, the newest last.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Ls {
    /// The contract folder of the node
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// First ledger
    #[arg(long, value_name = "SEQ")]
    from: Option<Seq>,
    /// Last ledger
    #[arg(long, value_name = "SEQ")]
    to: Option<Seq>,
    /// At most this many: the first ones with --from, else the newest [default: 20, all with --from and --to]
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Ls {
    pub(super) fn run(self) -> Outcome {
        let archive = open(&self.dir)?;
        let chain = view::Chain::read(&archive)?;
        let tip = archive.tip().map_err(unreadable)?;
        let (first, last) = self.range(tip);
        let mut text = String::new();
        if !self.json {
            text.push_str("       seq  time                      hash      inputs  users  signed  attempt  run\n");
        }
        view::read(&archive, first, last, Depth::Closed, |ledger| {
            let header = &ledger.header;
            let (signers, members) = (ledger.qc.sigs.len(), chain.unl(header).len());
            if self.json {
                let line = view::summary(&ledger, &chain);
                text += &format!("{line}\n");
            } else {
                let run = match (&ledger.agreed, ledger.result()) {
                    (Some(agreed), _) => agreed.status.to_string(),
                    (None, Some(own)) => format!("({})", own.status),
                    (None, None) => "-".to_owned(),
                };
                let signed = format!("{signers}/{members}");
                writeln!(
                    text,
                    "{:>10}  {}  {}  {:>6}  {:>5}  {signed:>6}  {:>7}  {run}",
                    ledger.seq,
                    view::utc(header.time_ms),
                    ledger.hash.short(),
                    header.n_inputs,
                    header.n_users,
                    ledger.qc.vote.attempt,
                )
                .expect("writing into memory does not fail");
            }
            // Long lists are told as they are read.
            if text.len() > 1 << 16 {
                answer(&std::mem::take(&mut text))?;
            }
            Ok::<(), crate::cli::Failure>(())
        })?;
        answer(&text)
    }

    fn range(&self, tip: Seq) -> (Seq, Seq) {
        let last = self.to.unwrap_or(tip).min(tip);
        match (self.from, self.limit) {
            (Some(from), None) if self.to.is_some() => (from, last),
            (Some(from), limit) => (from, last.min(from.saturating_add(limit.unwrap_or(LIMIT)).saturating_sub(1))),
            (None, limit) => ((last + 1).saturating_sub(limit.unwrap_or(LIMIT)).max(1), last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_was_asked_for_and_no_more_than_there_is() {
        let range = |from, to, limit| Ls { dir: PathBuf::new(), from, to, limit, json: false }.range(100);
        assert_eq!(range(None, None, None), (81, 100));
        assert_eq!(range(None, None, Some(500)), (1, 100));
        assert_eq!(range(None, Some(50), Some(3)), (48, 50));
        assert_eq!(range(Some(10), None, None), (10, 29));
        assert_eq!(range(Some(10), Some(90), None), (10, 90));
        assert_eq!(range(Some(10), Some(90), Some(5)), (10, 14));
        assert_eq!(range(Some(10), Some(900), Some(0)), (10, 9));
    }
}
