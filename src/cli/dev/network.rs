//! The nodes' processes. Each ends when its stdin does, so that none is left behind however this process ends.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, Command},
    sync::mpsc,
    time::{timeout, timeout_at},
};

use crate::cli::Failure;

/// Time for all nodes to come up.
const START_TIME: Duration = Duration::from_secs(30);
/// Time for all nodes to end by themselves; then they are killed.
const STOP_TIME: Duration = Duration::from_secs(3);
/// Lines of the nodes that wait to be shown. Past it the nodes wait.
const LINES_MAX: usize = 256;

/// A line of a node's own log, by the node's place.
pub(super) type LogLine = (usize, String);

/// One node's process. It ends when `stdin` is dropped.
struct Process {
    number: usize,
    child: Child,
    stdin: Option<ChildStdin>,
}

/// Nodes that are up.
pub(super) struct Up {
    /// The addresses of their user ports.
    pub(super) users: Vec<SocketAddr>,
    /// Where the first one's HTTP side is.
    pub(super) page: Option<String>,
    /// What they log, unless nobody is to see it.
    pub(super) logs: mpsc::Receiver<LogLine>,
}

#[derive(Default)]
pub(super) struct Network {
    nodes: Vec<Process>,
}

impl Network {
    /// Starts all nodes. What they log goes to files when nobody is to see it.
    pub(super) async fn start(&mut self, exe: &Path, folders: &[PathBuf], quiet: bool) -> Result<Up, Failure> {
        let deadline = tokio::time::Instant::now() + START_TIME;
        let (logged, logs) = mpsc::channel(LINES_MAX);
        let mut announced = Vec::new();
        for (at, dir) in folders.iter().enumerate() {
            let number = at + 1;
            let log = dir.join("node.log");
            let stderr = match quiet {
                true => fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?.into(),
                false => Stdio::piped(),
            };
            let mut child = Command::new(exe)
                .args(["run", "--child"])
                .arg(dir)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(stderr)
                .kill_on_drop(true)
                .spawn()
                .context("cannot start a node")?;
            if let Some(stderr) = child.stderr.take() {
                tokio::spawn(pass_on(at, stderr, logged.clone()));
            }
            let stdout = child.stdout.take().expect("piped");
            announced.push(BufReader::new(stdout).lines());
            self.nodes.push(Process { number, stdin: child.stdin.take(), child });
        }
        let (mut users, mut page) = (Vec::new(), None);
        for (node, lines) in self.nodes.iter_mut().zip(&mut announced) {
            let line = timeout_at(deadline, lines.next_line()).await;
            let line = match line {
                Ok(Ok(Some(line))) => line,
                Ok(_) => {
                    let status = node.child.wait().await;
                    return Err(ended(node.number, status).into());
                }
                Err(_) => return Err(anyhow::anyhow!("node {} did not come up in time", node.number).into()),
            };
            let value: Value = serde_json::from_str(&line).context("cannot read what a node announced")?;
            page = page.or_else(|| value["http_url"].as_str().map(str::to_owned));
            let address = value["user_address"].as_str().and_then(|address| address.parse().ok());
            let Some(address) = address else {
                return Err(anyhow::anyhow!("node {} has no user port", node.number).into());
            };
            users.push(address);
        }
        Ok(Up { users, page, logs })
    }

    /// The first node that ends.
    pub(super) async fn first_end(&mut self) -> (usize, io::Result<ExitStatus>) {
        let waits = self.nodes.iter_mut().map(|node| {
            let number = node.number;
            Box::pin(async move { (number, node.child.wait().await) })
        });
        futures::future::select_all(waits).await.0
    }

    /// Ends all nodes: they are told at once, and killed when they do not hear.
    pub(super) async fn stop(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.stdin = None);
        for mut node in self.nodes.drain(..) {
            if timeout(STOP_TIME, node.child.wait()).await.is_err() {
                eprintln!("node {} does not end; it is killed", node.number);
                let _ = node.child.kill().await;
            }
        }
    }
}

pub(super) fn ended(number: usize, status: io::Result<ExitStatus>) -> anyhow::Error {
    match status {
        Ok(status) => anyhow::anyhow!("node {number} ended by itself ({status})"),
        Err(error) => anyhow::Error::new(error).context(format!("cannot watch node {number}")),
    }
}

async fn pass_on(at: usize, stderr: ChildStderr, logged: mpsc::Sender<LogLine>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if logged.send((at, line)).await.is_err() {
            // It is read on all the same: a node must not wait for a reader that is gone.
        }
    }
}

/// After a failure: what the nodes said last.
pub(super) fn show_logs(folders: &[PathBuf]) {
    for (at, dir) in folders.iter().enumerate() {
        let text = fs::read(dir.join("node.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(12)..] {
            eprintln!("[{}] {line}", at + 1);
        }
    }
}
