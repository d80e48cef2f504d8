//! The author's loop: changes of `bin/` go to the nodes, and what comes of them to the terminal.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use notify::RecursiveMode;
use serde_json::Value;
use tokio::{
    process::Command,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Dev, End, Failure,
    bin::{Changes, Swap, Versions},
    diverged::Told,
    network::LogLine,
    output::{Logs, Paint, Tail, Together, shown},
    paint,
};
use crate::{
    node::control::{self, Request},
    types::Seq,
};

/// Time for all nodes to say the same, before what some say is shown as theirs.
const TOGETHER_TIME: Duration = Duration::from_millis(500);
/// Time for all nodes to run a ledger, before what some printed in it is shown as theirs.
const RUN_TIME: Duration = Duration::from_secs(3);
/// What is on its way to a log when its run has ended is there after this.
const LOG_TIME: Duration = Duration::from_millis(100);
/// Changes that wait for the loop. Past it those who tell wait.
const CHANGES_MAX: usize = 16;
/// What nodes log of results that differ, and is in the report on them.
const IN_REPORT: [&str; 3] = ["one side of the split", "this run differs from", "the differing state is kept"];
/// Folders of a contract that hold no source.
const NO_SOURCE: [&str; 9] = ["bin", "state", "target", "node_modules", "hist", "log", "run", "diag", "reads"];

/// What there is to work with.
pub(super) struct Author<'a> {
    pub(super) dev: &'a Dev,
    pub(super) folders: &'a [PathBuf],
    pub(super) versions: &'a mut Option<Versions>,
    /// What the nodes log themselves.
    pub(super) logs: mpsc::Receiver<LogLine>,
}

/// What happened.
enum Change {
    /// bin/ is another, and complete.
    Bin,
    /// A contract printed something.
    Printed,
    /// There is a report in some diag/.
    Report,
    /// All nodes have run this ledger, or had the time for it.
    Ran(Seq),
}

impl Author<'_> {
    /// Until the network has to begin anew.
    pub(super) async fn watch(mut self) -> Result<End, Failure> {
        let paint = paint();
        let (told, mut changes) = mpsc::channel(CHANGES_MAX);
        // They end with this.
        let mut tasks = JoinSet::new();
        self.watch_files(&mut tasks, &told)?;
        eprintln!("Ctrl-C ends it all");

        let mut tails: Vec<Tail> = self.folders.iter().map(|dir| Tail::of(dir)).collect();
        let shown_nodes = if self.dev.logs == Logs::One { 1 } else { self.folders.len() };
        let mut together = Together::new(shown_nodes, paint);
        let mut words = Words::new(self.folders.len(), paint);
        let mut reports = Told::default();
        let mut waiting = None;
        loop {
            let (due, report_due) = (words.due(), reports.due());
            tokio::select! {
                Some(change) = changes.recv() => match change {
                    Change::Bin => {
                        if let Some(end) = self.take_over(paint, reports.is_split).await {
                            return Ok(end);
                        }
                    }
                    Change::Printed => show(&mut together, &mut tails, shown_nodes),
                    Change::Report => eprint!("{}", reports.look(self.folders, paint)),
                    Change::Ran(seq) => {
                        show(&mut together, &mut tails, shown_nodes);
                        eprint!("{}", together.end(seq));
                        waiting = None;
                    }
                },
                Some((node, line)) = self.logs.recv() => {
                    if let Some(text) = words_of(&line, &self.folders[node]) {
                        eprint!("{}", words.add(node, text));
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => eprint!("{}", words.end()),
                () = sleep_until(report_due.unwrap_or_else(Instant::now)), if report_due.is_some() => {
                    eprint!("{}", reports.look(self.folders, paint));
                }
            }
            if waiting.is_none()
                && let Some(seq) = together.waiting()
            {
                waiting = Some(seq);
                let (folders, told) = (self.folders[..shown_nodes].to_vec(), told.clone());
                tasks.spawn(async move {
                    let _ = timeout(RUN_TIME, all_ran(&folders, seq)).await;
                    tokio::time::sleep(LOG_TIME).await;
                    let _ = told.send(Change::Ran(seq)).await;
                });
            }
        }
    }

    fn watch_files(&self, tasks: &mut JoinSet<()>, told: &mpsc::Sender<Change>) -> Result<(), Failure> {
        if let Some(versions) = &*self.versions {
            let bin = versions.from().to_owned();
            let above = bin.parent().expect("bin/ is in a folder");
            let mut changes = Changes::of(&[(above, RecursiveMode::NonRecursive), (&bin, RecursiveMode::Recursive)])?;
            let told = told.clone();
            tasks.spawn(async move {
                loop {
                    changes.settled(|path| path.starts_with(&bin)).await;
                    changes.watch_again(&bin);
                    if told.send(Change::Bin).await.is_err() {
                        break;
                    }
                }
            });
        } else {
            eprintln!("the executable is not in bin/ of {}: its changes are not looked for", self.dev.dir.display());
        }
        if let Some(command) = &self.dev.rebuild {
            tasks.spawn(rebuild(command.clone(), self.dev.dir.clone(), source_changes(&self.dev.dir)?, paint()));
        }
        let folders = |name: &str| self.folders.iter().map(|dir| dir.join(name)).collect::<Vec<_>>();
        let watched = |folders: &[PathBuf], mode| {
            Changes::of(&folders.iter().map(|folder| (folder.as_path(), mode)).collect::<Vec<_>>())
        };
        let shown = match self.dev.logs {
            Logs::All => self.folders.len(),
            Logs::One => 1,
            Logs::None => 0,
        };
        let logs = folders("log/contract");
        let printed = watched(&logs[..shown], RecursiveMode::NonRecursive)?;
        let reports = watched(&folders("diag"), RecursiveMode::Recursive)?;
        for (mut changes, is_report) in [(printed, false), (reports, true)] {
            let told = told.clone();
            tasks.spawn(async move {
                loop {
                    changes.next(|_| true).await;
                    // What has happened until now is seen by one look.
                    changes.forget();
                    let change = if is_report { Change::Report } else { Change::Printed };
                    if told.send(change).await.is_err() {
                        break;
                    }
                }
            });
        }
        Ok(())
    }

    /// bin/ may be another. What is wrong with it is told, and the nodes go on with what they have.
    async fn take_over(&mut self, paint: Paint, is_split: bool) -> Option<End> {
        let versions = self.versions.as_mut().expect("it is watched");
        match versions.take() {
            Ok(false) => return None,
            Ok(true) => {}
            Err(error) => {
                eprintln!("{}", paint.bad(&format!("bin/ changed, and is not taken over: {error:#}")));
                return None;
            }
        }
        if self.dev.reset || is_split {
            let why = if is_split { "results were split" } else { "--reset" };
            eprintln!("{}", paint.strong(&format!("bin/ changed: the network begins anew ({why})")));
            return Some(End::Anew);
        }
        match versions.swap(self.folders).await {
            Ok(from) => {
                eprintln!("{}", paint.good(&format!("bin/ changed: all nodes run the new one from ledger {from} on")));
                None
            }
            Err(Swap::NotBegun(error)) => {
                let what = format!("bin/ changed, and is not taken over: {error:#}; the next change is tried again");
                eprintln!("{}", paint.bad(&what));
                None
            }
            Err(Swap::Apart(error)) => {
                let what = format!("bin/ changed, but not on all nodes: {error:#}; the network begins anew");
                eprintln!("{}", paint.bad(&what));
                Some(End::Anew)
            }
        }
    }
}

/// Shows what the contracts have printed since.
fn show(together: &mut Together, tails: &mut [Tail], shown_nodes: usize) {
    for (node, tail) in tails.iter_mut().enumerate().take(shown_nodes) {
        for line in tail.read() {
            eprint!("{}", together.add(node, line));
        }
    }
}

/// Resolves when all nodes have run the ledger.
async fn all_ran(folders: &[PathBuf], seq: Seq) {
    let ran = folders.iter().map(|dir| async move {
        let mut request = Request::Status;
        // A node that does not answer ends the whole, elsewhere.
        while let Ok(status) = control::ask(dir, &request).await {
            if status["last_run"]["seq"].as_u64().is_some_and(|ran| ran >= seq) {
                break;
            }
            request = Request::Watch { after: status["change"].as_u64().unwrap_or_default() };
        }
    });
    futures::future::join_all(ran).await;
}

/// What the nodes themselves say, once where all say it.
struct Words {
    nodes: usize,
    paint: Paint,
    said: BTreeMap<String, (BTreeSet<usize>, Instant)>,
}

impl Words {
    fn new(nodes: usize, paint: Paint) -> Words {
        Words { nodes, paint, said: BTreeMap::new() }
    }

    fn add(&mut self, node: usize, text: String) -> String {
        let due = Instant::now() + TOGETHER_TIME;
        let said = &mut self.said.entry(text.clone()).or_insert_with(|| (BTreeSet::new(), due)).0;
        if !said.insert(node) {
            // It says so again: the first time is shown before.
            let (nodes, _) = self.said.remove(&text).expect("just seen");
            self.said.insert(text.clone(), (BTreeSet::from([node]), due));
            return self.line(&nodes, &text);
        }
        if said.len() < self.nodes {
            return String::new();
        }
        let (nodes, _) = self.said.remove(&text).expect("just seen");
        self.line(&nodes, &text)
    }

    fn due(&self) -> Option<Instant> {
        self.said.values().map(|(_, due)| *due).min()
    }

    /// What some said, and no others in time.
    fn end(&mut self) -> String {
        let now = Instant::now();
        let told =
            self.said.iter().filter(|(_, (_, due))| *due <= now).map(|(text, (nodes, _))| self.line(nodes, text));
        let told = told.collect();
        self.said.retain(|_, (_, due)| *due > now);
        told
    }

    fn line(&self, nodes: &BTreeSet<usize>, text: &str) -> String {
        format!("{} {text}\n", self.paint.nodes(nodes, self.nodes))
    }
}

/// A line of a node's log, without what is never alike: times, and its folder. `None` for what is told otherwise.
fn words_of(line: &str, dir: &Path) -> Option<String> {
    let line = &line.replace(&*dir.to_string_lossy(), "NODE");
    let Ok(value) = serde_json::from_str::<Value>(line) else { return Some(shown(line)) };
    let mut text = value["level"].as_str().unwrap_or_default().to_owned();
    let fields = value["fields"].as_object();
    let message = fields.and_then(|fields| fields.get("message")?.as_str()).unwrap_or_default();
    if IN_REPORT.iter().any(|begin| message.starts_with(begin)) {
        return None;
    }
    text += &format!(" {message}");
    for (name, value) in fields.into_iter().flatten().filter(|(name, _)| *name != "message" && !name.ends_with("_ms")) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text += &format!(" {name}={value}");
    }
    Some(shown(&text))
}

/// Changes of what a contract is built from.
fn source_changes(dir: &Path) -> anyhow::Result<Changes> {
    let dir = dir.canonicalize()?;
    let mut folders = vec![(dir.clone(), RecursiveMode::NonRecursive)];
    for entry in std::fs::read_dir(&dir)? {
        let path = entry?.path();
        if path.is_dir() && is_source(&dir, &path) {
            folders.push((path, RecursiveMode::Recursive));
        }
    }
    let folders: Vec<(&Path, RecursiveMode)> = folders.iter().map(|(path, mode)| (path.as_path(), *mode)).collect();
    Changes::of(&folders)
}

/// Whether a path may be of a contract's source: not hidden, and in no folder that is made.
fn is_source(dir: &Path, path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(dir) else { return false };
    let mut names = inside.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let first = inside.components().next();
    let is_made = first.is_some_and(|first| NO_SOURCE.iter().any(|name| first.as_os_str() == *name));
    !is_made && first.is_some() && names.all(|name| !name.starts_with('.') && !name.ends_with('~'))
}

/// Runs the command after each change, one at a time.
async fn rebuild(command: String, dir: PathBuf, mut changes: Changes, paint: Paint) {
    let Ok(top) = dir.canonicalize() else { return };
    loop {
        changes.settled(|path| is_source(&top, path)).await;
        eprintln!("{}", paint.faint(&format!("$ {command}")));
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(&command).current_dir(&dir).stdin(Stdio::null()).kill_on_drop(true);
        // What it prints is not an answer of this command.
        shell.stdout(Stdio::from(std::io::stderr()));
        match shell.status().await {
            Ok(status) if status.success() => {}
            Ok(status) => eprintln!("{}", paint.bad(&format!("{command}: {status}"))),
            Err(error) => eprintln!("{}", paint.bad(&format!("cannot run {command}: {error}"))),
        }
        // What it wrote is no reason to run it again.
        changes.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_nodes_log_is_said_once_and_without_times() {
        let mut words = Words::new(2, Paint(false));
        let line = |node: usize, message: &str| {
            let line = format!(
                r#"{{"timestamp":"t{node}","level":"WARN","fields":{{"message":"{message}","path":"/tmp/node{node}/x","run_ms":{node}}}}}"#
            );
            words_of(&line, Path::new(&format!("/tmp/node{node}")))
        };
        assert_eq!(words.add(0, line(1, "failed").unwrap()), "");
        assert_eq!(words.add(1, line(2, "failed").unwrap()), "[all] WARN failed path=NODE/x\n");
        assert_eq!(words.due(), None);
        assert_eq!(line(1, "one side of the split"), None, "the report has it");
        let plain = || words_of("no json \x1b[2J", Path::new("/tmp/node1")).unwrap();
        assert_eq!(words.add(0, plain()), "");
        assert!(words.due().is_some());
        assert_eq!(words.add(0, plain()), "[1] no json \\u{1b}[2J\n", "the first of two");
    }

    #[test]
    fn what_is_made_and_what_is_hidden_is_no_source() {
        let dir = Path::new("/c");
        for (path, expected) in [
            ("/c/src/main.rs", true),
            ("/c/Makefile", true),
            ("/c/src/bin/x", true),
            ("/c/bin/contract", false),
            ("/c/target/x", false),
            ("/c/src/.main.rs.swp", false),
            ("/c/.git/index", false),
            ("/c", false),
            ("/d/x", false),
        ] {
            assert_eq!(is_source(dir, Path::new(path)), expected, "{path}");
        }
    }
}
