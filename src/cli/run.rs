//! `hp run`: one node, until it is told to stop.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use serde_json::json;
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing::info;

use super::{Exit, Failure, Outcome, answer, start_logging};
use crate::{
    config::Config,
    node::{Node, NodeError},
};

/// Time for file work that is under way at the end, for example hashing. What it had not finished is done again.
const END_TIME: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  hp run mynode                     run the node in the folder mynode
  hp mynode                         the same
  RUST_LOG=debug hp run mynode      with a line for each message

Ctrl-C or SIGTERM ends it; what was agreed on is kept, and the next start goes on from there.";

/// Run a node.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Run {
    /// The contract folder, as made by `hp new`
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// For a parent program: say the addresses as one JSON line on stdout, and stop when stdin ends
    #[arg(long, hide = true)]
    child: bool,
}

impl Run {
    pub(super) fn run(self) -> Outcome {
        let config = Config::load(&self.dir)?;
        start_logging(config.log.level, config.log.format);
        // One thread for network and consensus: waking another costs more than most of the work.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        let outcome = runtime.block_on(self.node(config));
        runtime.shutdown_timeout(END_TIME);
        outcome
    }

    async fn node(&self, config: Config) -> Outcome {
        let stop = Stop::watch().context("cannot watch for signals")?;
        let exe = std::env::current_exe().context("cannot find this program's own file")?;
        let (node, banner) = Node::start(config, &exe).await.map_err(failure)?;
        eprint!("{banner}");
        if self.child {
            let (peers, users) = node.addresses();
            let line =
                json!({ "peer_address": peers.to_string(), "user_address": users.map(|users| users.to_string()) });
            answer(&format!("{line}\n"))?;
        }
        let child = self.child;
        node.run(async move {
            tokio::select! {
                signal = stop.wait() => info!(signal, "stopping"),
                () = stdin_ends(), if child => info!("stopping: the parent is gone"),
            }
        })
        .await
        .map_err(failure)?;
        info!("stopped");
        Ok(())
    }
}

fn failure(error: NodeError) -> Failure {
    let exit = if error.is_taken() {
        Exit::Taken
    } else if error.is_damage() {
        Exit::Database
    } else if error.is_config() {
        Exit::Config
    } else {
        Exit::Failed
    };
    Failure::new(exit, error)
}

/// SIGINT and SIGTERM.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// From here on the signals no longer end the process by themselves.
    pub(super) fn watch() -> std::io::Result<Stop> {
        Ok(Stop { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The name of the first that comes.
    pub(super) async fn wait(mut self) -> &'static str {
        self.next().await
    }

    /// The name of the next that comes.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

async fn stdin_ends() {
    let mut stdin = tokio::io::stdin();
    let mut bytes = [0; 64];
    while !matches!(stdin.read(&mut bytes).await, Ok(0) | Err(_)) {}
}
