//! `hp ledger verify`: is the chain in this folder right?

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::{open, replay, unreadable};
use crate::{
    cli::{Exit, Failure, Outcome, answer},
    ledger::{Archive, Depth, LedgerError},
    types::{Hash, Seq},
    verify::{self, Ask, Head, Page, Place, Report, Source, Stopped, Wrong},
};

/// How often a line tells how far it is where there is no terminal.
const TELL_TIME: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  hp ledger verify mynode                         everything, from the genesis on
  hp ledger verify mynode --genesis 5d1c...       and it must be this chain
  hp ledger verify mynode --from 100000           the ledgers before are taken as they are
  hp ledger verify mynode --replay                run the contract again for every ledger, and compare
  hp ledger verify mynode --replay --state begin  the contract began with these files in state/

Checks, with code that shares nothing with the node's: that each ledger follows the one before, was signed by a quorum of the
members in force, and has the users, inputs, outputs and result that it says; each input's signature; that no input took
effect twice; and that what this node has said about the next ledger fits. What is not kept any more cannot be checked, and
is named. A node that runs is not disturbed.

--replay runs the contract for each ledger in a copy of the folder and compares state, outputs and status with the chain. What
other nodes' contracts said on the party line is not kept: a contract hears only itself, and one that lets the party line
decide anything differs.

Exit codes: 0 right, 1 wrong (the first wrong ledger is named), 4 the database cannot be read.";

/// Check a whole chain, offline.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Verify {
    /// The contract folder of the node
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// First ledger to check
    #[arg(long, value_name = "SEQ", default_value_t = 1)]
    from: Seq,
    /// The chain id that it must be, from somebody you trust
    #[arg(long, value_name = "HASH")]
    genesis: Option<Hash>,
    /// Run the contract again, too
    #[arg(long)]
    replay: bool,
    #[command(flatten)]
    begin: replay::Begin,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self) -> Outcome {
        let mut archive = open(&self.dir)?;
        let began = Instant::now();
        let mut progress = Progress::new("verified", self.from);
        let ask = Ask { from: self.from, genesis: self.genesis };
        let verified = verify::verify(&mut archive, ask, &mut |seq, to| progress.tell(seq, to));
        progress.end();
        let seconds = began.elapsed().as_secs_f64();
        match verified {
            Err(Stopped::Source(error)) => Err(unreadable(error)),
            Err(Stopped::Wrong(wrong)) => self.wrong(&wrong),
            Ok(report) if self.replay => {
                let replayed = replay::run(&self.dir, &archive, &report, &self.begin)?;
                self.right(&report, seconds, Some(replayed))
            }
            Ok(report) => self.right(&report, seconds, None),
        }
    }

    fn wrong(&self, wrong: &Wrong) -> Outcome {
        if !self.json {
            return Err(Failure::new(Exit::Failed, wrong.clone()));
        }
        let Wrong { place, field, found, expected, means } = wrong;
        let seq = match place {
            Place::Ledger(seq) => Some(seq),
            Place::Genesis | Place::Journal => None,
        };
        answer(&format!(
            "{}\n",
            json!({
                "ok": false, "place": place.to_string(), "seq": seq, "field": field, "found": found,
                "expected": expected, "means": means,
            })
        ))?;
        Err(Failure::told(Exit::Failed))
    }

    fn right(&self, report: &Report, seconds: f64, replayed: Option<replay::Replayed>) -> Outcome {
        let ok = replayed.as_ref().is_none_or(|replayed| replayed.differs.is_none());
        let count = (report.to + 1).saturating_sub(report.from);
        let per_second = (count as f64 / seconds.max(0.001)) as u64;
        if self.json {
            let text = |hash: &Option<Hash>| hash.map(|hash| hash.to_string());
            let mut told = json!({
                "ok": ok, "chain_id": text(&report.chain_id), "from": report.from, "to": report.to,
                "tip": text(&report.tip), "members": report.members, "unl_changes": report.unl_changes,
                "signatures": report.signatures, "inputs": report.inputs, "outputs": report.outputs,
                "journal": report.journal, "diverged": report.diverged, "unchecked": report.unchecked,
                "seconds": seconds, "ledgers_per_s": per_second,
            });
            if let Some(replayed) = &replayed {
                told["replay"] = replayed.json();
            }
            answer(&format!("{told}\n"))?;
        } else {
            let mut lines = Vec::new();
            let mut line = |name: &str, value: String| lines.push(format!("{name:<11} {value}\n"));
            line("chain", report.chain_id.map_or_else(String::new, |chain| chain.to_string()));
            match count {
                0 => line("ledgers", "none".to_owned()),
                _ => line(
                    "ledgers",
                    format!(
                        "{} to {}, {} members, tip {}",
                        report.from,
                        report.to,
                        report.members,
                        report.tip.unwrap_or(Hash::ZERO)
                    ),
                ),
            }
            line("signatures", report.signatures.to_string());
            line("contents", format!("{} inputs, {} outputs", report.inputs, report.outputs));
            line("journal", format!("{} votes, waiting inputs and proofs", report.journal));
            if report.unl_changes > 0 {
                line("UNL changes", report.unl_changes.to_string());
            }
            line("speed", format!("{seconds:.2} s, {per_second} ledgers/s"));
            for what in &report.unchecked {
                line("not checked", what.clone());
            }
            if let Some(seq) = report.diverged.first() {
                line(
                    "note",
                    format!("this node's own result of ledger {seq} is another than the agreed one: it diverged"),
                );
            }
            if let Some(replayed) = &replayed {
                replayed.lines().into_iter().for_each(|(name, value)| line(name, value));
            }
            if ok {
                line("ok", "the chain is right".to_owned());
            }
            answer(&lines.concat())?;
        }
        match replayed.and_then(|replayed| replayed.differs) {
            None => Ok(()),
            Some(_) if self.json => Err(Failure::told(Exit::Failed)),
            Some(differs) => Err(Failure::new(Exit::Failed, differs)),
        }
    }
}

impl Source for Archive {
    type Error = LedgerError;

    fn head(&mut self) -> Result<Head, LedgerError> {
        Archive::head(self)
    }

    fn page(&mut self, first: Seq, last: Seq) -> Result<Page, LedgerError> {
        Archive::page(self, first, last, Depth::All)
    }

    fn changes(&mut self, first: Seq, last: Seq) -> Result<Page, LedgerError> {
        Archive::page(self, first, last, Depth::Users)
    }
}

/// How far it is: a bar in a terminal, else a line now and then. On stderr.
pub(super) struct Progress {
    what: &'static str,
    from: Seq,
    bar: Option<ProgressBar>,
    told: Instant,
}

impl Progress {
    pub(super) fn new(what: &'static str, from: Seq) -> Progress {
        Progress { what, from: from.max(1), bar: None, told: Instant::now() }
    }

    pub(super) fn tell(&mut self, seq: Seq, to: Seq) {
        let done = (seq + 1).saturating_sub(self.from);
        let all = (to + 1).saturating_sub(self.from);
        if io::stderr().is_terminal() {
            let what = self.what;
            let bar = self.bar.get_or_insert_with(|| {
                let style = "{bar:30} {pos} of {len} ledgers {msg}, {per_sec}, {eta} left";
                let style = ProgressStyle::with_template(style).expect("the template is one");
                ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr())
                    .with_style(style)
                    .with_message(what)
            });
            bar.set_position(done);
        } else if self.told.elapsed() >= TELL_TIME {
            self.told = Instant::now();
            eprintln!("{done} of {all} ledgers {}", self.what);
        }
    }

    /// Does something that writes to the terminal.
    pub(super) fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }

    pub(super) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
