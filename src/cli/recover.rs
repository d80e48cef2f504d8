//! `hp recover`: a new chain that goes on where one cannot.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::{self, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{Exit, Failure, Outcome, answer, ledger::utc};
use crate::{
    config::{Config, Tolerance},
    node::recover::{Ask, Plan, RecoverError, Source, switch},
    types::{Hash, NodeKey, Seq},
};

const EXAMPLES: &str = "\
Examples:
  hp recover mynode --seq 54 --root d5007b80...              after a split: on from one side's result of ledger 54
  hp recover mynode --seq 54 --root d500... --unl KEY,KEY    without members that are lost for good
  hp recover mynode --seq 54 --root d500... --binary new     with another executable
  hp recover mynode --seq 54 --root d500... --state copy     with a copy of the state of another node

The operators agree on the arguments, stop all nodes, and each runs the command in the folder of his node. Whoever gives the
same arguments gets the same new contract id, which follows from the old chain, its ledger --seq, the state and everything else
that nodes must have alike: compare it before you start the nodes. Ledgers after --seq, and inputs that are in no ledger, are not
part of the new chain. Its ledgers count from 1 again. The old chain stays in hist/before/. docs/operating.md has the whole
procedure.

--seq and --root: a split names both in the log, `hp status` and `hp diverge show` of each node; after a quorum was lost they are
the last ledger (`hp ledger ls`) and the state root in the result of it (`hp ledger show`).

Exit codes: 0 done, 1 refused, 2 usage, 3 configuration, 4 database damaged, 5 the node runs.";

/// Make a new chain that goes on from a ledger of one that cannot go on.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Recover {
    /// The contract folder of a node that is stopped
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// The last ledger that counts
    #[arg(long, value_name = "SEQ")]
    seq: Seq,
    /// Root of the state after that ledger's run
    #[arg(long, value_name = "HASH")]
    root: Hash,
    /// Another executable, the same on all nodes; it is copied into bin/
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The members from now on [default: those after that ledger]
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    unl: Option<Vec<NodeKey>>,
    /// Percent of the members that make a quorum [default: as before]
    #[arg(long, value_name = "PERCENT")]
    threshold: Option<u64>,
    /// A copy of the state, when this folder does not hold it
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Tell the outcome as one JSON object; needs --yes
    #[arg(long, requires = "yes")]
    json: bool,
}

impl Recover {
    pub(super) fn run(self) -> Outcome {
        let dir = path::absolute(&self.dir).with_context(|| format!("cannot tell where {} is", self.dir.display()))?;
        if switch::finish(&dir).map_err(failure)? {
            let config = Config::load(&dir)?;
            return answer(&format!(
                "finished an `hp recover` that was cut: the contract id is {} now. Nothing else was done.\n",
                config.contract.id
            ));
        }
        let Recover { seq, root, binary, unl, threshold, state, yes, json, .. } = self;
        let ask = Ask { dir, seq, root, binary, unl, threshold, state };
        let plan = Plan::make(&ask).map_err(failure)?;
        if !json {
            // What is asked about must be seen where the question is.
            eprint!("{}", describe(&plan));
        }
        if !yes && !confirmed()? {
            return Err(Failure::new(Exit::Failed, anyhow::anyhow!("nothing was changed")));
        }
        let progress = Progress::new();
        plan.prepare(&mut |what| progress.tell(what)).map_err(failure)?;
        progress.end();
        switch::finish_planned(&plan).map_err(failure)?;
        answer(&if json { format!("{}\n", outcome(&plan)) } else { report(&plan) })
    }
}

pub(super) fn failure(error: RecoverError) -> Failure {
    let exit = match &error {
        RecoverError::Node(error) if error.is_taken() => Exit::Taken,
        RecoverError::Node(error) if error.is_config() => Exit::Config,
        RecoverError::Ledger(error) if error.is_damage() => Exit::Database,
        RecoverError::Config(_) => Exit::Config,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

/// Asks on the terminal.
fn confirmed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        let what = "this changes the chain of the node: run it in a terminal, which asks, or say --yes";
        return Err(Failure::new(Exit::Usage, anyhow::anyhow!(what)));
    }
    eprint!("\nDo all operators agree on this? [y/N] ");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// What will be done, for people.
fn describe(plan: &Plan) -> String {
    let old = &plan.heritage.genesis;
    let new = &plan.genesis;
    let mut text = format!("A new chain goes on after ledger {} of this one.\n\n", plan.seq);
    let mut line = |name: &str, value: String| writeln!(text, "  {name:<11} {value}").expect("writing to a text");
    line("old chain", format!("{}, contract {}", old.chain_id(), old.contract_id));
    line("ledger", format!("{}  {}, {}", plan.seq, plan.heritage.hash, utc(plan.heritage.time_ms)));
    let place = match &plan.source {
        Source::Present => "state/".to_owned(),
        Source::Folder(path) => path.display().to_string(),
        Source::Before => "what the last run began with".to_owned(),
    };
    let size = match plan.source {
        Source::Before => String::new(),
        _ => format!(" ({} files, {} bytes)", plan.held.files, plan.held.bytes),
    };
    line("state", format!("{}\n              in {place}{size}", new.state_root));
    match (&plan.heritage.agreed, &plan.heritage.own) {
        (Some(_), _) => line("", "that is what a quorum agreed on".to_owned()),
        (None, Some(own)) if own.state_root == new.state_root => {
            line("", "that is this node's own result of the ledger; no ledger says what a quorum agreed on".to_owned());
        }
        (None, Some(own)) => {
            line("", format!("this node's own result of the ledger is ANOTHER: {}", own.state_root));
        }
        (None, None) => line("", "this node has no result of the ledger to compare it with".to_owned()),
    }
    let unl: Vec<String> = new.unl.iter().map(|node| member(plan, node)).collect();
    line("members", unl.join("\n              "));
    line("quorum", Tolerance { n: new.unl.len(), threshold: u64::from(new.threshold) }.to_string());
    if !new.unl.contains(&plan.config.key) {
        line("this node", format!("{} is NO member: it will observe", plan.config.key));
    }
    if let Some(binary) = &plan.binary {
        line("executable", format!("{}, a copy of {}", binary.to, binary.from.display()));
    }
    for (key, was, is) in &plan.settings {
        line("setting", format!("{key}: {was} so far, {is} from now on"));
    }
    let heritage = &plan.heritage;
    line("taken over", format!("{} users, {} keys of inputs", heritage.users.len(), heritage.keys.len()));
    for what in losses(plan) {
        line("LOST", what);
    }
    line("kept", format!("the old chain, in {}", plan.before().display()));
    line("", String::new());
    line("contract", new.contract_id.to_string());
    line("chain", new.chain_id().to_string());
    text
}

/// A member, and what is new about it.
fn member(plan: &Plan, node: &NodeKey) -> String {
    let me = if *node == plan.config.key { "  (this node)" } else { "" };
    let came = if plan.heritage.unl.contains(node) { "" } else { "  (new)" };
    format!("{node}{me}{came}")
}

fn losses(plan: &Plan) -> Vec<String> {
    let mut losses = Vec::new();
    let gone: Vec<String> =
        plan.heritage.unl.iter().filter(|node| !plan.genesis.unl.contains(node)).map(NodeKey::to_string).collect();
    if !gone.is_empty() {
        losses.push(format!("members: {}", gone.join(", ")));
    }
    if plan.tip > plan.seq {
        losses.push(format!(
            "ledgers {} to {}, with {} inputs that were accepted",
            plan.seq + 1,
            plan.tip,
            plan.lost.undone
        ));
    }
    let waiting = [
        (plan.lost.signed, "signed by their users, who must sign them anew for the new chain"),
        (plan.lost.raw, "raw, of this node's users, who must send them again"),
        (plan.lost.of_others, "raw, of other nodes' users"),
    ];
    for (count, what) in waiting.into_iter().filter(|(count, _)| *count > 0) {
        losses.push(format!("{count} inputs that are in no ledger: {what}"));
    }
    losses
}

/// What was done, for people.
fn report(plan: &Plan) -> String {
    let mut text = format!(
        "recovered after ledger {}\n  contract  {}\n  chain     {}\n",
        plan.seq,
        plan.genesis.contract_id,
        plan.genesis.chain_id()
    );
    if let Some(list) = plan.lost_list() {
        text.push_str(&format!("  lost      listed in {}\n", list.display()));
    }
    text.push_str(
        "Before any node starts, all operators compare: each one must have this contract id and this chain. Where they are \
         others, an argument was another.\n",
    );
    text.push_str("Users who pinned the old chain pin the new one.\n");
    text
}

/// What was done, for programs.
fn outcome(plan: &Plan) -> Value {
    let lost = &plan.lost;
    json!({
        "contract_id": plan.genesis.contract_id.to_string(),
        "chain_id": plan.genesis.chain_id().to_string(),
        "seq": plan.seq,
        "ledger": plan.heritage.hash.to_string(),
        "state_root": plan.genesis.state_root.to_string(),
        "unl": plan.genesis.unl.iter().map(NodeKey::to_string).collect::<Vec<_>>(),
        "threshold": plan.genesis.threshold,
        "member": plan.genesis.unl.contains(&plan.config.key),
        "users": plan.heritage.users.len(),
        "keys": plan.heritage.keys.len(),
        "binary": plan.binary.as_ref().map(|binary| &binary.to),
        "before": plan.before().display().to_string(),
        "lost": { "ledgers": plan.tip - plan.seq, "undone": lost.undone, "signed": lost.signed, "raw": lost.raw,
            "of_others": lost.of_others, "list": plan.lost_list().map(|list| list.display().to_string()) },
    })
}

/// What is being done: a spinner in a terminal, else a line each.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new() -> Progress {
        if !io::stderr().is_terminal() {
            return Progress(None);
        }
        let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("the template is one");
        let bar = ProgressBar::new_spinner().with_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress(Some(bar))
    }

    fn tell(&self, what: &str) {
        match &self.0 {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("{what}"),
        }
    }

    fn end(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}
