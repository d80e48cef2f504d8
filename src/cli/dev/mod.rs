//! `hp dev`: a whole network on this machine, for trying a contract and for working on it.
//!
//! Every node is a process of its own, `hp run --child`, in a temporary folder with a copy of the contract's `bin/`. They
//! settle on a bus that this process runs, until it ends. Reading order: this file, `network` (the processes), `bin` (what
//! happens when the author changes `bin/`), `author` (the loop around that), `output` (what the contract prints), `diverged` (why
//! results differ).

mod author;
mod bin;
mod diverged;
mod network;
mod output;
mod ports;

use std::{
    fs,
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::process::Command;

pub use self::ports::ReservedPorts;
use self::{
    author::Author,
    bin::Versions,
    network::{Network, Up, ended, show_logs},
    output::{Logs, Paint},
};
use super::{Exit, Failure, Outcome, run::Stop, scratch};
use crate::{
    config::{Config, Document, quoted},
    crypto::SecretKey,
    node::control,
    settlement::{
        Address, Amount, Network as BusNetwork,
        embedded::{Embedded, Options},
    },
    types::{Hash, NodeKey},
};

/// What each node has to spend on the bus: enough for 33,333 settlements.
const FUNDS: Amount = Amount::tnk(1_000);
/// Seconds after the first output at which it is settled.
const SETTLE_S: u64 = 5;
/// How often it is looked whether the first settlement is there.
const LOOK_TIME: Duration = Duration::from_millis(500);
/// Nodes of one network on one machine.
const NODES_MAX: usize = 32;

const EXAMPLES: &str = "\
Examples:
  hp dev mycontract --nodes 4            four nodes around mycontract/bin/contract, with what it prints
  hp dev mycontract --rebuild make       run `make` in mycontract when a source file changes, too
  hp dev mycontract --client             with a client in this terminal; the logs go to files
  hp dev mycontract --once hello         one input, one answer, and everything is gone again
  hp dev mydir --binary ./a.out          another executable

DIR needs nothing but the executable (bin/contract). If there is a cfg/hp.cfg, its executable, arguments, environment \
and shared settings are used; a folder state/ is copied as the state to begin with. DIR itself is not changed: the \
nodes have folders of their own, which are removed at the end unless --keep is given.

When bin/ changes, all nodes go over to it between two runs, at one ledger, and keep the state; with --reset, or when their \
results were split, the network begins anew. What the contract prints on stdout and stderr is shown beside each other: a \
line that is equal on all nodes once, `≠` before those that differ. When results differ, the report on that follows. A \
--binary outside of bin/, --client and --once do without that.

What the contract puts out is settled on a bus of this network's own; the first settlement is shown, with the command that \
checks it. --once and --no-bus do without.";

/// Run a network of nodes on this machine, for trying a contract.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Dev {
    /// The contract's folder
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// How many nodes
    #[arg(long, short = 'n', default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=NODES_MAX as i64))]
    nodes: u16,
    /// The executable; a relative path starts at DIR [default: bin/contract, or that of cfg/hp.cfg]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Arguments of the executable, separated by spaces
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    binargs: Option<String>,
    /// Milliseconds between ledgers when nothing is to be done
    #[arg(long, value_name = "MS")]
    roundtime: Option<u64>,
    /// Talk to the contract in this terminal
    #[arg(long, conflicts_with = "once")]
    client: bool,
    /// Send this one input to the first node, print the answer alone, and end
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    once: Option<String>,
    /// Seconds to wait for the answer of --once
    #[arg(long, value_name = "S", default_value_t = 20, requires = "once")]
    timeout: u64,
    /// Begin a new network, with the state in DIR, whenever bin/ changes
    #[arg(long, conflicts_with_all = ["client", "once"])]
    reset: bool,
    /// Run this in DIR (with sh -c) whenever a file there changes, but for those in bin/, state/, target/ and hidden ones
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["client", "once"])]
    rebuild: Option<String>,
    /// Whose output of the contract is shown
    #[arg(long, value_name = "WHOSE", default_value = "all")]
    logs: Logs,
    /// Settle nothing
    #[arg(long)]
    no_bus: bool,
    /// Keep the nodes' folders, and say where they are
    #[arg(long)]
    keep: bool,
}

impl Dev {
    pub(super) fn run(self) -> Outcome {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(self.network())
    }

    async fn network(self) -> Outcome {
        let mut stop = Stop::watch_hangup().context("cannot watch for signals")?;
        let binary = self.executable()?;
        let mut folder = tempfile::Builder::new().prefix("hotpocket-").tempdir().context("cannot make a folder")?;
        let mut versions = self.versions(&binary, &folder)?;
        if let Some(versions) = &mut versions {
            versions.take()?;
        }
        // Each node's for peers, users and the page, and the bus's. They stay when the network begins anew.
        let ports = ReservedPorts::take(3 * usize::from(self.nodes) + 1).context("cannot find free ports")?;
        let quiet = self.client || self.once.is_some();
        let exe = std::env::current_exe().context("cannot find this program's own file")?;
        let mut time = 1;
        let (outcome, folders) = loop {
            let place = folder.path().join(time.to_string());
            let Prepared { folders, bus } = self.prepare(&place, &binary, versions.as_ref(), &ports)?;
            let bus = match bus {
                None => None,
                Some(options) => Some(Embedded::start(options).await.context("cannot start the settlement bus")?),
            };
            let mut network = Network::default();
            let started = tokio::select! {
                started = network.start(&exe, &folders, quiet) => started,
                signal = stop.next() => Err(interrupted(signal)),
            };
            let end = match started {
                Err(failure) => Err(failure),
                Ok(Up { users, page, logs }) => {
                    let urls: Vec<String> = users.iter().map(|user| format!("ws://{user}")).collect();
                    let author = Author { dev: &self, folders: &folders, versions: &mut versions, logs };
                    tokio::select! {
                        end = self.use_network(&exe, &urls, page.as_deref(), &folders, author) => end,
                        () = show_first_settlement(bus.as_ref(), &folders[0]) => unreachable!("it goes on for ever"),
                        (number, status) = network.first_end() => Err(ended(number, status).into()),
                        signal = stop.next() => if quiet { Err(interrupted(signal)) } else { Ok(End::Done) },
                    }
                }
            };
            network.stop().await;
            if let Some(bus) = bus {
                bus.stop().await;
            }
            match end {
                Ok(End::Anew) => {
                    if !self.keep {
                        // What cannot be removed now goes with the folder around it.
                        let _ = fs::remove_dir_all(&place);
                    }
                    time += 1;
                }
                Ok(End::Done) => break (Ok(()), folders),
                Err(failure) => break (Err(failure), folders),
            }
        };
        if quiet && outcome.as_ref().is_err_and(|failure: &Failure| failure.exit != Exit::Interrupted) {
            show_logs(&folders);
        }
        if self.keep {
            folder.disable_cleanup(true);
            eprintln!("the nodes' folders are kept in {}", folder.path().display());
        }
        outcome
    }

    /// Copies of bin/ for the nodes, where the executable is in it.
    fn versions(&self, binary: &Path, folder: &TempDir) -> Result<Option<Versions>, Failure> {
        let Ok(bin) = self.dir.join("bin").canonicalize() else { return Ok(None) };
        let inside = binary.strip_prefix(&bin).map(Path::to_owned);
        Ok(inside.ok().map(|inside| Versions::new(bin, inside, folder.path().to_owned())))
    }

    /// The executable's absolute path, checked before anything is started.
    fn executable(&self) -> Result<PathBuf, Failure> {
        let relative = match (&self.binary, self.config()?) {
            (Some(binary), _) => binary.clone(),
            (None, Some(config)) => config.binary,
            (None, None) => PathBuf::from("bin/contract"),
        };
        let path = self.dir.join(relative);
        let binary = path.canonicalize().with_context(|| {
            format!("there is no executable {}; put it there, or name it with --binary", path.display())
        })?;
        use std::os::unix::fs::PermissionsExt as _;
        let mode = binary.metadata().context("cannot look at the executable")?.permissions().mode();
        if !binary.is_file() || mode & 0o111 == 0 {
            return Err(anyhow::anyhow!("{} is not an executable file (chmod +x?)", binary.display()).into());
        }
        Ok(binary)
    }

    fn config(&self) -> Result<Option<Config>, Failure> {
        let file = Config::path(&self.dir);
        if file.exists() { Ok(Some(Config::load_of_another(&file)?)) } else { Ok(None) }
    }

    /// Makes the nodes' folders in `place`: one key each, one UNL; and says what the bus is to be.
    fn prepare(
        &self,
        place: &Path,
        binary: &Path,
        versions: Option<&Versions>,
        ports: &ReservedPorts,
    ) -> Result<Prepared, Failure> {
        let other = self.config()?;
        let secrets: Vec<SecretKey> = (0..self.nodes).map(|_| SecretKey::generate()).collect();
        let unl: Vec<NodeKey> = secrets.iter().map(SecretKey::node_key).collect();
        let contract_id = Hash::tagged("hp/contract/1", &SecretKey::generate().seed());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
        let genesis_time_ms = u64::try_from(now.as_millis()).context("the clock is too far ahead")?;
        let (bus_at, ports) = ports.addresses().split_last().expect("three a node and one more");
        let (ports, others) = ports.split_at(secrets.len());
        let (user_ports, page_ports) = others.split_at(secrets.len());
        let bootstrap = Hash::tagged("hp/contract/1", &SecretKey::generate().seed());
        let settles = !self.no_bus && self.once.is_none();
        let mut folders = Vec::new();
        for (at, secret) in secrets.iter().enumerate() {
            let dir = place.join(format!("node{}", at + 1));
            let mut document = Document::new(secret, contract_id, genesis_time_ms, &unl);
            if let Some(other) = &other {
                document.join(other, ports[at]);
                document.set_list("unl", &unl);
                document.set("contract.id", &quoted(&contract_id.to_string()));
                document.set("contract.genesis_time_ms", &genesis_time_ms.to_string());
            }
            let executable = versions.map_or_else(|| binary.to_owned(), Versions::binary);
            document.set("binary", &quoted(&executable.to_string_lossy()));
            if let Some(args) = &self.binargs {
                document.set("binargs", &quoted(args));
            }
            let peers: Vec<SocketAddr> = ports.iter().filter(|port| **port != ports[at]).copied().collect();
            document.set_list("peers", &peers);
            document.set("peerport", &ports[at].port().to_string());
            document.set("pubport", &user_ports[at].port().to_string());
            if !self.is_quiet() {
                document.set("http.listen", &quoted(&page_ports[at].to_string()));
                // What is worth a word is shown with the contract's output; a line a ledger is not.
                document.set("log.level", &quoted("warn"));
                document.set("log.format", &quoted("json"));
            }
            if settles {
                settle(&mut document, *bus_at, bootstrap, contract_id);
            } else {
                document.set("msb.mode", &quoted("off")).set("msb.execute", &quoted("closed"));
            }
            if let Some(roundtime) = self.roundtime {
                document.set("roundtime", &roundtime.to_string());
            }
            let file = Config::path(&dir);
            // What is wrong is told here, once, instead of by every node.
            Config::parse(document.text(), &file, &dir, &|_| Ok(secret.to_hex()))?;
            write_private(&file, document.text())?;
            let state = self.dir.join("state");
            if state.is_dir() {
                scratch::copy(&state, &dir.join("state"), false)?;
            }
            if let Some(versions) = versions {
                scratch::copy(&versions.latest(), &dir.join("bin"), false)?;
            }
            for made in ["log/contract", "diag"] {
                let made = dir.join(made);
                fs::create_dir_all(&made).with_context(|| format!("cannot make {}", made.display()))?;
            }
            folders.push(dir);
        }
        let payer = |secret: &SecretKey| (Address::new(BusNetwork::Development, secret.node_key().0), FUNDS);
        let bus = settles.then(|| Options {
            listen: *bus_at,
            bootstrap: Some(bootstrap),
            fund: secrets.iter().map(payer).collect(),
            deployed: vec![contract_id],
            ..Options::new(place.join("bus"))
        });
        Ok(Prepared { folders, bus })
    }

    fn is_quiet(&self) -> bool {
        self.client || self.once.is_some()
    }

    async fn use_network(
        &self,
        exe: &Path,
        users: &[String],
        page: Option<&str>,
        folders: &[PathBuf],
        author: Author<'_>,
    ) -> Result<End, Failure> {
        let first = &users[0];
        if let Some(input) = &self.once {
            let seconds = self.timeout.to_string();
            return client(exe, &["--once", input, "--timeout", &seconds, first]).await.map(|()| End::Done);
        }
        let network = Config::load_of_another(&Config::path(&folders[0]))?.tolerance();
        eprintln!(
            "{} up, {network}",
            if users.len() == 1 { "1 node is".to_owned() } else { format!("{} nodes are", users.len()) }
        );
        for (at, (url, folder)) in users.iter().zip(folders).enumerate() {
            eprintln!("  node {:<2} {url}  {}", at + 1, folder.display());
        }
        if self.client {
            eprintln!("type a line and press Enter to send it to the contract; Ctrl-D ends it all");
            return client(exe, &[first]).await.map(|()| End::Done);
        }
        eprintln!("in another terminal:\n  hp client {first}\n  hp status {}", folders[0].display());
        if let Some(page) = page {
            eprintln!("in a browser:\n  {page}");
        }
        author.watch().await
    }
}

/// How the use of a network ends, when nothing went wrong.
enum End {
    /// It has served its purpose.
    Done,
    /// Another one is to begin, with other files.
    Anew,
}

/// Colours on stderr, if it is a terminal.
fn paint() -> Paint {
    Paint(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
}

/// The nodes' folders, and the bus they settle on, if they do.
struct Prepared {
    folders: Vec<PathBuf>,
    bus: Option<Options>,
}

/// Has a node settle on this bus.
fn settle(document: &mut Document, bus: SocketAddr, bootstrap: Hash, subnet: Hash) {
    document
        .set("msb.mode", &quoted("http"))
        .set("msb.url", &quoted(&format!("http://{bus}")))
        .set("msb.network", &quoted("development"))
        .set("msb.bootstrap", &quoted(&bootstrap.to_string()))
        .set("msb.subnet", &quoted(&subnet.to_string()))
        .set("msb.settle_max_delay_s", &SETTLE_S.to_string());
}

/// Says, once, what was settled first and how to check it; then waits for ever.
async fn show_first_settlement(bus: Option<&Embedded>, folder: &Path) {
    if let Some(bus) = bus {
        loop {
            tokio::time::sleep(LOOK_TIME).await;
            let Ok(status) = control::ask(folder, &control::Request::Status).await else { continue };
            let settled = &status["settlement"];
            if let (Some(seq @ 1..), Some(tx)) = (settled["settled_seq"].as_u64(), settled["settled_tx"].as_str()) {
                eprintln!(
                    "settled: ledgers 1 to {seq}, in transaction {tx} on the bus at {}; check it:\n  hp msb verify {}",
                    bus.url(),
                    folder.display()
                );
                break;
            }
        }
    }
    std::future::pending().await
}

fn interrupted(signal: &str) -> Failure {
    Failure::new(Exit::Interrupted, anyhow::anyhow!("stopped by {signal}"))
}

/// Runs `hp client` in this terminal.
async fn client(exe: &Path, args: &[&str]) -> Outcome {
    let mut command = Command::new(exe);
    command.arg("client").args(args).kill_on_drop(true);
    let status = command.status().await.context("cannot start the client")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(6) => Err(Failure::told(Exit::NoAnswer)),
        Some(130) => Err(Failure::told(Exit::Interrupted)),
        Some(1) => Err(Failure::told(Exit::Failed)),
        _ => Err(anyhow::anyhow!("the client failed ({status})").into()),
    }
}

fn write_private(file: &Path, text: &str) -> Result<(), anyhow::Error> {
    let folder = file.parent().expect("the file is in cfg/");
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let written = super::new::write_aside(folder, text)?;
    written.persist(file).map_err(|error| error.error).with_context(|| format!("cannot make {}", file.display()))?;
    Ok(())
}
