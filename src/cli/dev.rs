//! `hp dev`: a whole network on this machine, for trying a contract.
//!
//! Every node is a process of its own, `hp run --child`, in a temporary folder. A node ends when its stdin does, so
//! that none is left behind however this process ends. They settle on a bus that this process runs, until it ends.

use std::{
    fs,
    io::{self, IsTerminal as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, Command},
    time::{timeout, timeout_at},
};

use super::{Exit, Failure, Outcome, run::Stop};
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
/// Time for all nodes to come up.
const START_TIME: Duration = Duration::from_secs(30);
/// Time for all nodes to end by themselves; then they are killed.
const STOP_TIME: Duration = Duration::from_secs(3);

const EXAMPLES: &str = "\
Examples:
  hp dev mycontract --nodes 4            four nodes around mycontract/bin/contract, with their logs
  hp dev mycontract --client             with a client in this terminal; the logs go to files
  hp dev mycontract --once hello         one input, one answer, and everything is gone again
  hp dev mydir --binary ./a.out          another executable

DIR needs nothing but the executable (bin/contract). If there is a cfg/hp.cfg, its executable, arguments, environment \
and shared settings are used; a folder state/ is copied as the state to begin with. DIR itself is not changed: the \
nodes have folders of their own, which are removed at the end unless --keep is given.

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
        let Prepared { folders, bus } = self.prepare(&folder, &binary)?;
        let bus = match bus {
            None => None,
            Some(options) => Some(Embedded::start(options).await.context("cannot start the settlement bus")?),
        };
        let quiet = self.client || self.once.is_some();
        let exe = std::env::current_exe().context("cannot find this program's own file")?;

        let mut network = Network { nodes: Vec::new() };
        let started = tokio::select! {
            started = network.start(&exe, &folders, quiet) => started,
            signal = stop.next() => Err(interrupted(signal)),
        };
        let outcome = match started {
            Err(failure) => Err(failure),
            Ok(users) => {
                let ended = tokio::select! {
                    outcome = self.use_network(&exe, &users, &folders) => outcome,
                    () = show_first_settlement(bus.as_ref(), &folders[0]) => unreachable!("it goes on for ever"),
                    (number, status) = network.first_end() => Err(ended(number, status).into()),
                    signal = stop.next() => if quiet { Err(interrupted(signal)) } else { Ok(()) },
                };
                network.stop().await;
                ended
            }
        };
        network.stop().await;
        if let Some(bus) = bus {
            bus.stop().await;
        }
        if quiet && outcome.as_ref().is_err_and(|failure| failure.exit != Exit::Interrupted) {
            show_logs(&folders);
        }
        if self.keep {
            folder.disable_cleanup(true);
            eprintln!("the nodes' folders are kept in {}", folder.path().display());
        }
        outcome
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

    /// Makes the nodes' folders: one key each, one UNL, free ports; and says what the bus is to be.
    fn prepare(&self, folder: &TempDir, binary: &Path) -> Result<Prepared, Failure> {
        let other = self.config()?;
        let secrets: Vec<SecretKey> = (0..self.nodes).map(|_| SecretKey::generate()).collect();
        let unl: Vec<NodeKey> = secrets.iter().map(SecretKey::node_key).collect();
        let contract_id = Hash::tagged("hp/contract/1", &SecretKey::generate().seed());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
        let genesis_time_ms = u64::try_from(now.as_millis()).context("the clock is too far ahead")?;
        let mut ports = free_ports(secrets.len() + 1).context("cannot find free ports")?;
        let bus_at = ports.pop().expect("one more than nodes");
        let bootstrap = Hash::tagged("hp/contract/1", &SecretKey::generate().seed());
        let settles = !self.no_bus && self.once.is_none();
        let mut folders = Vec::new();
        for (at, secret) in secrets.iter().enumerate() {
            let dir = folder.path().join(format!("node{}", at + 1));
            let mut document = Document::new(secret, contract_id, genesis_time_ms, &unl);
            if let Some(other) = &other {
                document.join(other, ports[at]);
                document.set_list("unl", &unl);
                document.set("contract.id", &quoted(&contract_id.to_string()));
                document.set("contract.genesis_time_ms", &genesis_time_ms.to_string());
            }
            document.set("binary", &quoted(&binary.to_string_lossy()));
            if let Some(args) = &self.binargs {
                document.set("binargs", &quoted(args));
            }
            let peers: Vec<SocketAddr> = ports.iter().filter(|port| **port != ports[at]).copied().collect();
            document.set_list("peers", &peers);
            document.set("peerport", &ports[at].port().to_string());
            document.set("pubport", "0");
            if settles {
                settle(&mut document, bus_at, bootstrap, contract_id);
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
                copy(&state, &dir.join("state"))?;
            }
            folders.push(dir);
        }
        let payer = |secret: &SecretKey| (Address::new(BusNetwork::Development, secret.node_key().0), FUNDS);
        let bus = settles.then(|| Options {
            listen: bus_at,
            bootstrap: Some(bootstrap),
            fund: secrets.iter().map(payer).collect(),
            deployed: vec![contract_id],
            ..Options::new(folder.path().join("bus"))
        });
        Ok(Prepared { folders, bus })
    }

    async fn use_network(&self, exe: &Path, users: &[String], folders: &[PathBuf]) -> Outcome {
        let first = &users[0];
        if let Some(input) = &self.once {
            let seconds = self.timeout.to_string();
            return client(exe, &["--once", input, "--timeout", &seconds, first]).await;
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
            return client(exe, &[first]).await;
        }
        eprintln!(
            "in another terminal:\n  hp client {first}\n  hp status {}\nCtrl-C ends it all",
            folders[0].display()
        );
        std::future::pending().await
    }
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

fn ended(number: usize, status: io::Result<ExitStatus>) -> anyhow::Error {
    match status {
        Ok(status) => anyhow::anyhow!("node {number} ended by itself ({status})"),
        Err(error) => anyhow::Error::new(error).context(format!("cannot watch node {number}")),
    }
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

/// One node's process. It ends when `stdin` is dropped.
struct Process {
    number: usize,
    child: Child,
    stdin: Option<ChildStdin>,
}

struct Network {
    nodes: Vec<Process>,
}

impl Network {
    /// Starts all nodes, and returns the addresses of their user ports.
    async fn start(&mut self, exe: &Path, folders: &[PathBuf], quiet: bool) -> Result<Vec<String>, Failure> {
        let deadline = tokio::time::Instant::now() + START_TIME;
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
                tokio::spawn(prefix(number, stderr));
            }
            let stdout = child.stdout.take().expect("piped");
            announced.push(BufReader::new(stdout).lines());
            self.nodes.push(Process { number, stdin: child.stdin.take(), child });
        }
        let mut users = Vec::new();
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
            let Some(address) = value["user_address"].as_str() else {
                return Err(anyhow::anyhow!("node {} has no user port", node.number).into());
            };
            users.push(format!("ws://{address}"));
        }
        Ok(users)
    }

    /// The first node that ends.
    async fn first_end(&mut self) -> (usize, io::Result<ExitStatus>) {
        let waits = self.nodes.iter_mut().map(|node| {
            let number = node.number;
            Box::pin(async move { (number, node.child.wait().await) })
        });
        futures::future::select_all(waits).await.0
    }

    /// Ends all nodes: they are told at once, and killed when they do not hear.
    async fn stop(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.stdin = None);
        for mut node in self.nodes.drain(..) {
            if timeout(STOP_TIME, node.child.wait()).await.is_err() {
                eprintln!("node {} does not end; it is killed", node.number);
                let _ = node.child.kill().await;
            }
        }
    }
}

/// Prints a node's log lines with its number before them, in a colour of its own on a terminal.
async fn prefix(number: usize, stderr: ChildStderr) {
    let coloured = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let colour = 31 + number % 6;
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match coloured {
            true => eprintln!("\x1b[{colour}m[{number}]\x1b[0m {line}"),
            false => eprintln!("[{number}] {line}"),
        }
    }
}

/// After a failure: what the nodes said last.
fn show_logs(folders: &[PathBuf]) {
    for (at, dir) in folders.iter().enumerate() {
        let text = fs::read(dir.join("node.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(12)..] {
            eprintln!("[{}] {line}", at + 1);
        }
    }
}

/// Ports of 127.0.0.1 that nobody listens on now.
fn free_ports(count: usize) -> io::Result<Vec<SocketAddr>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<_>>()?;
    listeners.iter().map(TcpListener::local_addr).collect()
}

fn write_private(file: &Path, text: &str) -> Result<(), anyhow::Error> {
    let folder = file.parent().expect("the file is in cfg/");
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let written = super::new::write_aside(folder, text)?;
    written.persist(file).map_err(|error| error.error).with_context(|| format!("cannot make {}", file.display()))?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), anyhow::Error> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).with_context(|| format!("cannot copy {}", entry.path().display()))?;
        } else {
            bail!("{} is neither a file nor a folder; it cannot be copied", entry.path().display());
        }
    }
    Ok(())
}
