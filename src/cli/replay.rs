//! `hp replay`: a node's ledgers run again, one line for each; with another executable, what it would change.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use serde_json::json;

use super::{
    Failure, Outcome, answer,
    ledger::{
        self,
        replay::{Chain, Step, Walk, walk_again},
    },
};
use crate::{cli::Exit, types::Seq};

const EXAMPLES: &str = "\
Examples:
  hp replay mynode                                 every ledger, from the first on
  hp replay mynode --from 100 --to 120             those, after the ones before them
  hp replay mynode --from 100 --state before100    with the files that were in state/ then
  hp replay mynode --from 100 --binary ./fixed     which is the first ledger that a new contract would change?

Runs the contract in a copy of the folder with the inputs, users, time and members of each ledger, and compares state,
outputs and status with the chain, up to the first that differs. Nothing of the folder is changed; the node may run.

A node keeps no old states. Without --state the replay begins where the chain does, with an empty state/, and runs the
ledgers before --from too, with the contract of the configuration. --state has the files before ledger --from, or, if the
chain did not begin empty, those of its genesis with --from 1. What other nodes' contracts said on the party line is not
kept: a contract hears only itself.

Exit codes: 0 all came to the same, 1 one differs (it is named), 4 the database cannot be read.";

/// Run a node's ledgers again, and compare.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Replay {
    /// The contract folder of the node
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// First ledger to show
    #[arg(long, value_name = "SEQ", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from: Seq,
    /// Last ledger [default: the last one]
    #[arg(long, value_name = "SEQ")]
    to: Option<Seq>,
    /// Execute this from ledger --from on, in place of the contract
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// The files in state/ before ledger --from
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Where the copy of the folder is made [default: the system's folder for temporary files]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
    /// One JSON object a ledger, and one at the end
    #[arg(long)]
    json: bool,
}

impl Replay {
    pub(super) fn run(self) -> Outcome {
        let archive = ledger::open(&self.dir)?;
        let tip = Chain::read(&archive)?.tip;
        if self.from > tip {
            return Err(anyhow!("there is no ledger {}: the last one is {tip}", self.from).into());
        }
        let binary = match &self.binary {
            Some(path) => {
                Some(path.canonicalize().with_context(|| format!("there is no executable {}", path.display()))?)
            }
            None => None,
        };
        let walk = Walk {
            from: if self.state.is_some() { self.from } else { 1 },
            to: self.to.unwrap_or(tip).min(tip),
            shown_from: self.from,
            binary,
            state: self.state.clone(),
            scratch: self.scratch.clone(),
        };
        let replayed = walk_again(&self.dir, &archive, &walk, &mut |step| self.show(&step))?;
        if self.json {
            answer(&format!("{}\n", json!({ "ok": replayed.differs.is_none(), "replay": replayed.json() })))?;
        } else {
            let lines = replayed.lines().into_iter().map(|(name, value)| format!("{name:<11} {value}\n"));
            answer(&lines.collect::<String>())?;
        }
        match replayed.differs {
            None => Ok(()),
            Some(_) if self.json => Err(Failure::told(Exit::Failed)),
            Some(differs) => Err(Failure::new(Exit::Failed, differs)),
        }
    }

    fn show(&self, step: &Step<'_>) -> Outcome {
        let Step { seq, inputs, expected, again, elapsed, differs } = step;
        let ms = elapsed.as_secs_f64() * 1_000.0;
        let found = again.map(|again| again.result.status.to_string());
        let same = match (again, differs) {
            (_, Some(differs)) => format!("differs: {}", differs.field),
            (None, None) => "not run".to_owned(),
            (Some(_), None) => "same".to_owned(),
        };
        if self.json {
            let changed = again.map(|again| again.changed.len());
            return answer(&format!(
                "{}\n",
                json!({
                    "seq": seq, "inputs": inputs, "chain_status": expected.status.to_string(), "status": found, "ms": ms,
                    "changed": changed, "result": same, "found": differs.map(|differs| &differs.found),
                    "expected": differs.map(|differs| &differs.expected),
                })
            ));
        }
        let status = found.unwrap_or_else(|| expected.status.to_string());
        answer(&format!("ledger {seq:<8} {inputs:>5} inputs  {status:<12} {ms:>8.1} ms  {same}\n"))
    }
}
