//! `hp run`: one node, until it is told to stop.

use std::{
    io::{self, IsTerminal as _},
    path::{self, Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use indicatif::MultiProgress;
use serde_json::json;
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing::info;

use super::{Exit, Failure, Outcome, answer, progress, recover, reload::Reload, start_logging_above};
use crate::{
    config::Config,
    contract,
    node::{Node, NodeError, recover::switch, reload_tls},
};

/// Time for file work that is under way at the end, for example hashing. What it had not finished is done again.
const END_TIME: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  hp run mynode                     run the node in the folder mynode
  hp mynode                         the same
  RUST_LOG=debug hp run mynode      with a line for each message

Ctrl-C or SIGTERM ends it; what was agreed on is kept, and the next start goes on from there. SIGHUP makes it read
`[log] level` and the certificates of its ports again.

Logs go to stderr. RUST_LOG, if set, decides over `[log] level`.

Exit codes: 0 stopped, 1 failed, 3 configuration, 4 database or state damaged, 5 port or folder in use.";

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
        let config = load(&self.dir)?;
        if let Some(what) = super::config_check::odd_binary(&config) {
            // Every run would fail, which on this node alone is a difference from the others.
            return Err(Failure::new(Exit::Config, anyhow::anyhow!(what)));
        }
        let bars = MultiProgress::new();
        let set_level = start_logging_above(config.log.level, config.log.format, bars.clone());
        let reload = Reload::new(&config, set_level);
        // One thread for network and consensus: waking another costs more than most of the work.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        let outcome = runtime.block_on(self.node(config, bars, reload));
        runtime.shutdown_timeout(END_TIME);
        outcome
    }

    async fn node(&self, config: Config, bars: MultiProgress, mut reload: Reload) -> Outcome {
        let stop = Stop::watch().context("cannot watch for signals")?;
        let exe = std::env::current_exe().context("cannot find this program's own file")?;
        contract::adopt_orphans().context("cannot take over what a dead launcher leaves")?;
        let (mut node, banner) = Node::start(config, &exe).await.map_err(failure)?;
        if io::stderr().is_terminal() {
            node.draw_progress(progress::draw(bars));
        }
        if self.child {
            // The parent says what there is.
            let (peers, users) = node.addresses();
            let line = json!({
                "peer_address": peers.to_string(), "user_address": users.map(|users| users.to_string()),
                "http_url": node.http_url(), "tls": node.has_user_tls(),
            });
            answer(&format!("{line}\n"))?;
        } else {
            eprint!("{banner}");
        }
        let ports = node.tls_ports();
        let mut hangups = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
        let reloading = tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                reload.configuration();
                reload_tls(&ports);
            }
        });
        let child = self.child;
        node.run(async move {
            tokio::select! {
                signal = stop.wait() => info!(signal, "stopping"),
                () = stdin_ends(), if child => info!("stopping: the parent is gone"),
            }
        })
        .await
        .map_err(failure)?;
        reloading.abort();
        info!("stopped");
        Ok(())
    }
}

/// Reads the configuration of a folder. All its paths are absolute: the contract runs in another working directory.
fn load(dir: &Path) -> Result<Config, Failure> {
    let dir = path::absolute(dir).with_context(|| format!("cannot tell where {} is", dir.display()))?;
    if switch::finish(&dir).map_err(recover::failure)? {
        eprintln!("finished an `hp recover` that was cut");
    }
    Ok(Config::load(&dir)?)
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

/// SIGINT and SIGTERM, and SIGHUP if asked for.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Stop {
    /// From here on the signals no longer end the process by themselves.
    pub(super) fn watch() -> std::io::Result<Stop> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Stop { interrupt, terminate, hangup: None })
    }

    /// With SIGHUP: for what must not outlive its terminal. (A node may: it can be started with `nohup`.)
    pub(super) fn watch_hangup() -> std::io::Result<Stop> {
        Ok(Stop { hangup: Some(signal(SignalKind::hangup())?), ..Stop::watch()? })
    }

    /// The name of the first that comes.
    pub(super) async fn wait(mut self) -> &'static str {
        self.next().await
    }

    /// The name of the next that comes.
    pub(super) async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = hangup => "SIGHUP",
        }
    }
}

/// Resolves when stdin is at its end.
async fn stdin_ends() {
    let mut stdin = tokio::io::stdin();
    let mut bytes = [0; 64];
    while !matches!(stdin.read(&mut bytes).await, Ok(0) | Err(_)) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Document, crypto::SecretKey, types::Hash};

    #[test]
    fn a_relative_folder_has_an_absolute_binary() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let relative = Path::new(folder.path().file_name().unwrap());
        let secret = SecretKey::from_seed([7; 32]);
        let text = Document::new(&secret, Hash([1; 32]), 0, &[secret.node_key()]);
        std::fs::create_dir(relative.join("cfg")).unwrap();
        let file = super::super::new::write_aside(&relative.join("cfg"), text.text()).unwrap();
        file.persist(Config::path(relative)).unwrap();
        let config = load(relative).map_err(|failure| failure.error).unwrap();
        assert_eq!(config.binary, folder.path().canonicalize().unwrap().join("bin/contract"));
    }
}
