//! Ledgers run again in a copy of a node's folder, and compared with the chain: `hp ledger verify --replay`, `hp replay`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};

pub(in crate::cli) use super::view::Chain;
use super::{unreadable, verify::Progress, view};
use crate::{
    cli::{Exit, Failure, run::Stop, scratch::Scratch},
    config::Config,
    consensus::{
        Execution,
        header::{ExecResult, execution_order},
    },
    ledger::{Archive, Depth},
    node::replay::{Again, Replayer},
    types::{Hash, LimitKind, Seq, Status, UserKey},
    verify::Report,
};

/// Paths named of one run.
const PATHS_MAX: usize = 20;

/// What a replay begins with.
#[derive(Debug, clap::Args)]
pub(super) struct Begin {
    /// The files in state/ before the first ledger that is run again; needed unless it was empty
    #[arg(long, value_name = "FOLDER", requires = "replay")]
    state: Option<PathBuf>,
    /// Where the copy of the folder is made [default: the system's folder for temporary files]
    #[arg(long, value_name = "FOLDER", requires = "replay")]
    scratch: Option<PathBuf>,
}

/// What came of a replay.
pub(in crate::cli) struct Replayed {
    pub(in crate::cli) ran: u64,
    seconds: f64,
    /// Ledgers whose run was over its time, and so was not repeated.
    time_up: u64,
    /// Ledgers in which the contract used the party line.
    party_line: u64,
    /// The first ledger that differs.
    pub(in crate::cli) differs: Option<Differs>,
}

/// A ledger whose run led to something else.
#[derive(Debug, Clone, thiserror::Error)]
#[error("ledger {seq}: run again, its {field} is {found}, but the chain says {expected}; the run {}", self.paths())]
pub(in crate::cli) struct Differs {
    pub(in crate::cli) seq: Seq,
    pub(in crate::cli) field: &'static str,
    pub(in crate::cli) found: String,
    pub(in crate::cli) expected: String,
    /// Paths that the run changed.
    changed: Vec<String>,
}

impl Differs {
    fn paths(&self) -> String {
        if self.changed.is_empty() {
            return "changed no files".to_owned();
        }
        let shown: Vec<&str> = self.changed.iter().take(PATHS_MAX).map(String::as_str).collect();
        let more = self.changed.len().saturating_sub(PATHS_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("changed {}{more}", shown.join(", "))
    }
}

impl Replayed {
    pub(in crate::cli) fn json(&self) -> Value {
        json!({
            "ran": self.ran, "seconds": self.seconds, "time_up": self.time_up, "party_line": self.party_line,
            "differs": self.differs.as_ref().map(|differs| json!({
                "seq": differs.seq, "field": differs.field, "found": differs.found, "expected": differs.expected,
                "changed": differs.changed,
            })),
        })
    }

    pub(in crate::cli) fn lines(&self) -> Vec<(&'static str, String)> {
        let per_second = (self.ran as f64 / self.seconds.max(0.001)) as u64;
        let mut lines =
            vec![("replay", format!("{} ledgers run again in {:.2} s, {per_second}/s", self.ran, self.seconds))];
        if self.time_up > 0 {
            lines.push((
                "not run",
                format!("{} ledgers whose time was up: how far a run comes is no fact of the chain", self.time_up),
            ));
        }
        if self.party_line > 0 {
            let what = "in which the contract spoke on the party line: run again, it heard only itself";
            lines.push(("note", format!("{} ledgers {what}", self.party_line)));
        }
        lines
    }
}

/// Which ledgers are run again, and with what.
pub(in crate::cli) struct Walk {
    /// The first of all; the state to begin with is the one before it.
    pub(in crate::cli) from: Seq,
    /// The last, if the chain goes that far.
    pub(in crate::cli) to: Seq,
    /// From this one on they are shown.
    pub(in crate::cli) shown_from: Seq,
    /// What is executed from `shown_from` on, in place of the contract.
    pub(in crate::cli) binary: Option<PathBuf>,
    /// The files in state/ before the first; none: there were no files.
    pub(in crate::cli) state: Option<PathBuf>,
    /// Where the copy of the folder is made.
    pub(in crate::cli) scratch: Option<PathBuf>,
}

/// One ledger, run again.
pub(in crate::cli) struct Step<'a> {
    pub(in crate::cli) seq: Seq,
    pub(in crate::cli) inputs: usize,
    pub(in crate::cli) expected: &'a ExecResult,
    /// None: its time was up, and it was not run.
    pub(in crate::cli) again: Option<&'a Again>,
    pub(in crate::cli) elapsed: Duration,
    pub(in crate::cli) differs: Option<&'a Differs>,
}

/// Runs what `report` covers again.
pub(super) fn run(dir: &Path, archive: &Archive, report: &Report, begin: &Begin) -> Result<Replayed, Failure> {
    let walk = Walk {
        from: report.from,
        to: report.to,
        shown_from: report.from,
        binary: None,
        state: begin.state.clone(),
        scratch: begin.scratch.clone(),
    };
    walk_again(dir, archive, &walk, &mut |_| Ok(()))
}

/// Runs ledgers again, up to the first that differs, and lets `see` look at each that is to be shown.
pub(in crate::cli) fn walk_again(
    dir: &Path,
    archive: &Archive,
    walk: &Walk,
    see: &mut dyn FnMut(Step<'_>) -> Result<(), Failure>,
) -> Result<Replayed, Failure> {
    let dir = std::path::absolute(dir).with_context(|| format!("cannot tell where {} is", dir.display()))?;
    let mut config = Config::load(&dir)?;
    let home = home(&dir);
    if let Some(inside) = config.binary.strip_prefix(&dir).ok().filter(|_| home != dir) {
        config.binary = home.join(inside);
    }
    let chain = Chain::read(archive)?;
    if config.cfg_hash() != chain.genesis.cfg_hash || config.contract.id != chain.genesis.contract_id {
        let what = format!(
            "{} is not the configuration of this chain: contract id or shared settings differ",
            config.file.display()
        );
        return Err(Failure::new(Exit::Config, anyhow!(what)));
    }
    let scratch = Scratch::make(&home, walk.state.as_deref(), walk.scratch.as_deref())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let config = Config { dir: scratch.dir(), ..config };
    runtime.block_on(async {
        let stop = Stop::watch().context("cannot watch for signals")?;
        tokio::select! {
            replayed = replay(config, archive, &chain, walk, see) => replayed,
            // The copy is removed in any case.
            signal = stop.wait() => Err(Failure::new(Exit::Interrupted, anyhow!("ended by {signal}"))),
        }
    })
}

/// The folder that has the contract: that of the node where `dir` is a chain that an `hp recover` left behind, and which has
/// no executable of its own.
fn home(dir: &Path) -> PathBuf {
    let named = |path: &Path, name: &str| path.file_name().is_some_and(|found| found == name);
    let mut above = dir.ancestors().skip(1);
    match (above.next(), above.next(), above.next()) {
        (Some(before), Some(hist), Some(node))
            if named(before, "before") && named(hist, "hist") && !dir.join("bin").exists() =>
        {
            node.to_owned()
        }
        _ => dir.to_owned(),
    }
}

async fn replay(
    config: Config,
    archive: &Archive,
    chain: &Chain,
    walk: &Walk,
    see: &mut dyn FnMut(Step<'_>) -> Result<(), Failure>,
) -> Result<Replayed, Failure> {
    let (from, to) = (walk.from, walk.to);
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let mut replayer = Replayer::start(config.clone(), &exe).await?;
    let mut other = walk.binary.clone().map(|binary| Config { binary, ..config });
    let mut users = users_before(archive, from, chain.tip)?;
    let mut replayed = Replayed { ran: 0, seconds: 0.0, time_up: 0, party_line: 0, differs: None };
    let mut progress = Progress::new("run again", from);
    let began = Instant::now();
    let mut next = from;
    'ledgers: while next <= to {
        // Read some, then run them: the database is not held meanwhile.
        for ledger in view::read_page(archive, next, to, Depth::All)? {
            let Some(ledger) = ledger else { break 'ledgers };
            next = ledger.seq + 1;
            if ledger.seq == from && ledger.header.result.state_root != replayer.root() {
                return Err(other_begin(&ledger, replayer.root()));
            }
            let Some(expected) = ledger.result().cloned() else { break 'ledgers };
            let execution = execution(chain, ledger, &mut users)?;
            let seq = execution.header.seq;
            if seq >= walk.shown_from
                && let Some(config) = other.take()
            {
                replayer.stop().await;
                replayer = Replayer::start(config, &exe).await?;
            }
            let inputs = execution.inputs.iter().map(|(_, inputs)| inputs.len()).sum();
            let run_began = Instant::now();
            let again = if expected.status == Status::Limit(LimitKind::Time) {
                replayed.time_up += 1;
                None
            } else {
                let again = replayer.run(execution).await?;
                replayed.party_line += u64::from(again.npl_messages > 0);
                replayed.ran += 1;
                Some(again)
            };
            replayed.differs = differs(&expected, again.as_ref(), replayer.root());
            if seq >= walk.shown_from {
                let (again, differs) = (again.as_ref(), replayed.differs.as_ref());
                progress.suspend(|| {
                    let elapsed = run_began.elapsed();
                    see(Step { seq, inputs, expected: &expected, again, elapsed, differs })
                })?;
            }
            if replayed.differs.is_some() {
                break 'ledgers;
            }
            progress.tell(seq, to);
        }
    }
    progress.end();
    replayed.seconds = began.elapsed().as_secs_f64();
    replayer.stop().await;
    Ok(replayed)
}

fn other_begin(ledger: &view::Ledger, found: Hash) -> Failure {
    let expected = ledger.header.result.state_root;
    let what = format!(
        "the state to begin with has root {found}, but before ledger {} it was {expected}: give the files that were in state/ \
         then with --state FOLDER (a node keeps no copy of them)",
        ledger.seq
    );
    Failure::new(Exit::Failed, anyhow!(what))
}

/// What the node gave its executor for this ledger.
fn execution(chain: &Chain, ledger: view::Ledger, users: &mut BTreeSet<UserKey>) -> Result<Execution, Failure> {
    let seq = ledger.seq;
    let gone =
        || Failure::new(Exit::Failed, anyhow!("ledger {seq} cannot be run again: its contents are no longer kept"));
    let body = ledger.body.ok_or_else(gone)?;
    let mut inputs = Vec::with_capacity(body.inputs.len());
    for (_, input) in body.inputs {
        inputs.push(input.ok_or_else(gone)?);
    }
    body.users_del.iter().for_each(|user| {
        users.remove(user);
    });
    users.extend(body.users_add);
    let inputs = execution_order(&ledger.header, inputs);
    let unl = chain.next_unl(&ledger.header).to_vec();
    let view::Ledger { header, hash, .. } = ledger;
    // Over its time it is told so, but machines differ: the limit is wider than a node's.
    Ok(Execution { header, hash, unl, users: users.clone(), inputs, is_limited: true })
}

/// Compares a run, if there was one, with the chain.
fn differs(expected: &ExecResult, again: Option<&Again>, root: Hash) -> Option<Differs> {
    let (outputs_root, status, changed) = match again {
        Some(again) => (again.result.outputs_root, again.result.status, again.changed.as_slice()),
        None => (Hash::ZERO, expected.status, &[][..]),
    };
    let (field, found, expected_text) = if status != expected.status {
        ("status", status.to_string(), expected.status.to_string())
    } else if root != expected.state_root {
        ("state root", root.to_string(), expected.state_root.to_string())
    } else if outputs_root != expected.outputs_root {
        ("outputs root", outputs_root.to_string(), expected.outputs_root.to_string())
    } else {
        return None;
    };
    let changed = changed.iter().map(|path| format!("state/{}", path.escape_ascii())).collect();
    Some(Differs { seq: expected.of_seq, field, found, expected: expected_text, changed })
}

/// The users of the ledger before `first`, found by going back from the last ledger.
fn users_before(archive: &Archive, first: Seq, tip: Seq) -> Result<BTreeSet<UserKey>, Failure> {
    let mut users = BTreeSet::new();
    if first <= 1 {
        return Ok(users);
    }
    let mut changes = Vec::new();
    view::read(archive, first, tip, Depth::Users, |ledger| {
        let what = || anyhow!("the contents of ledger {} are no longer kept", ledger.seq);
        let body = ledger.body.ok_or_else(|| Failure::new(Exit::Failed, what()))?;
        changes.push((body.users_add, body.users_del));
        Ok::<(), Failure>(())
    })?;
    for user in archive.head().map_err(unreadable)?.users_tip {
        users.insert(UserKey(user.try_into().map_err(|_| anyhow!("a user in the database is damaged"))?));
    }
    for (came, went) in changes.into_iter().rev() {
        came.iter().for_each(|user| {
            users.remove(user);
        });
        users.extend(went);
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_was_left_behind_has_the_executable_of_its_node() {
        let node = tempfile::tempdir().unwrap();
        let node = node.path();
        let before = node.join("hist/before/1f2e3d4c");
        std::fs::create_dir_all(&before).unwrap();
        assert_eq!((home(&before), home(node)), (node.to_owned(), node.to_owned()));
        let elsewhere = node.join("before/1f2e3d4c");
        assert_eq!(home(&elsewhere), elsewhere);
        std::fs::create_dir(before.join("bin")).unwrap();
        assert_eq!(home(&before), before, "one of its own");
    }
}
