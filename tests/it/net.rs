//! Networks of real nodes for tests: each a process of its own on loopback, in a temporary folder, all ended with it.

use std::{
    fs,
    future::Future,
    mem,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command as Sync, Stdio},
    sync::OnceLock,
    time::Duration,
};

use futures::future::join_all;
use hotpocket::{
    cli::{
        ReservedPorts,
        client::{Frame, Pins, RawClient, SignedClient},
    },
    config::Document,
    crypto::SecretKey,
    ledger::Archive,
    node::control::{self, Request},
    signed::{
        AnswerBody, Base64, Executed, Fate, InputFrame, OutputFrame, OutputsPage, Query, ReadFrame, ReadResult, Reason,
        Reply, Request as UserRequest, sign_input,
    },
    types::{Hash, NodeKey, Seq},
    verify::{Ask, Stopped, verify},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

/// The longest any test waits for anything. Only a broken product comes near it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The executable under test.
pub fn hp() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hp"))
}

/// Runs a test on one thread, as the product does.
pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    block_on_for(2 * DEADLINE, test)
}

/// The same for a test that may take so long.
pub fn block_on_for<T>(longest: Duration, test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { timeout(longest, test).await.expect("a test ends in time") })
}

/// The contract that misbehaves when it is told to, compiled once.
pub fn probe() -> &'static Path {
    static PROBE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    built(&PROBE, "probe")
}

/// The contract that writes down every input, compiled once.
pub fn record() -> &'static Path {
    static RECORD: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    built(&RECORD, "record")
}

/// The contract that is asked questions, compiled once.
pub fn ask() -> &'static Path {
    static ASK: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    built(&ASK, "ask")
}

/// The contract that attacks its node, compiled once.
pub fn hostile() -> &'static Path {
    static HOSTILE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    built(&HOSTILE, "../../../contracts/hostile/hostile")
}

/// The contract that gives every input back and keeps nothing, compiled once.
pub fn echo() -> &'static Path {
    static ECHO: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    built(&ECHO, "../../../contracts/echo/echo")
}

fn built(once: &'static OnceLock<(TempDir, PathBuf)>, name: &str) -> &'static Path {
    let built = once.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(Path::new(name).file_name().expect("a name"));
        compile(&format!("{name}.c"), &path);
        (folder, path)
    });
    &built.1
}

/// Compiles a program of tests/it/programs.
pub fn compile(source: &str, to: &Path) {
    compile_with(&["-O1"], source, to);
}

/// Compiles what is loaded into a program before its C library.
pub fn compile_preload(source: &str, to: &Path) {
    compile_with(&["-O1", "-shared", "-fPIC"], source, to);
}

fn compile_with(options: &[&str], source: &str, to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/programs").join(source);
    let done = Sync::new("cc").args(options).arg("-o").arg(to).arg(&source).status().expect("a C compiler");
    assert!(done.success(), "{} compiles", source.display());
}

/// Copies a program. Another process does it: a file that this one has open for writing while one of its threads forks
/// could not be executed for a moment.
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Sync::new("cp").arg(from).arg(to).status().expect("cp").success(), "{} is copied", from.display());
}

/// Tries again until `check` gives something.
pub async fn until<T>(what: &str, check: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, check).await
}

/// The same for what may take so long.
pub async fn until_within<T>(longest: Duration, what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + longest;
    let mut ticks = interval(Duration::from_millis(20));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {longest:?}");
    }
}

/// Whether there is such a process that is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// The processes for which `is` holds, told by the number.
pub fn processes(is: impl Fn(u32) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|pid| is_alive(*pid) && is(*pid)).collect()
}

/// The processes that work in such a folder. Not launchers: one may wait in the contract's folder for the next run.
fn working(is: impl Fn(&Path) -> bool) -> Vec<u32> {
    let is_program = |pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Without a command line it has ended, and is only not noted as a zombie yet.
        !line.is_empty() && line.split(|byte| *byte == 0).nth(1) != Some(hotpocket::contract::LAUNCHER_ARG.as_bytes())
    };
    processes(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| is(&cwd)) && is_program(pid))
}

/// The processes that `pid` started.
pub fn children(pid: u32) -> Vec<u32> {
    let parent = format!("PPid:\t{pid}\n");
    processes(|pid| fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| status.contains(&parent)))
}

/// Sends a process a signal.
pub fn send_signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().expect("a number of a process")), signal).expect("it is there");
}

/// How a call of `hp` ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Calls `hp` and waits for its end.
pub async fn call(args: &[&str]) -> Ended {
    ended(wrapped(&[]).args(args)).await
}

/// `hp`, after other words.
fn wrapped(wrapper: &[String]) -> Command {
    let mut words = wrapper.iter().map(AsRef::as_ref).chain([hp().as_os_str()]);
    let mut command = Command::new(words.next().expect("the program at least"));
    command.args(words);
    command
}

async fn ended(command: &mut Command) -> Ended {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(DEADLINE, command.output()).await.expect("it ends by itself").expect("hp starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Ports of 127.0.0.1 that nobody listens on now, and nobody else takes as long as this process lives: a node that was killed
/// finds its own again.
pub fn free_ports(count: usize) -> Vec<SocketAddr> {
    let reserved = ReservedPorts::take(count).expect("free ports");
    let addresses = reserved.addresses().to_vec();
    mem::forget(reserved);
    addresses
}

/// The configuration changes of no node.
pub fn plain(_: usize, _: &mut Document) {}

/// One node of a network: its folder, and its process when it runs.
pub struct TestNode {
    pub dir: PathBuf,
    pub url: String,
    /// Where its HTTP side is, if it has one.
    pub http: String,
    /// What the node has for its key; the network's tests may speak for it.
    pub secret: Option<SecretKey>,
    /// Words before the program's name, for a node that is to run in surroundings of its own: `env`, `nsenter`.
    pub wrapper: Vec<String>,
    running: Option<(Child, Option<ChildStdin>)>,
}

/// A network of nodes.
pub struct Net {
    pub nodes: Vec<TestNode>,
    /// Whether the test changed a database by hand, so that it need not be right in the end.
    pub tampered: bool,
    _folder: TempDir,
}

impl Drop for Net {
    /// No node may have panicked, in any test, and every chain must be right, as an independent verifier sees it. Of a test
    /// that failed the ends of the nodes' logs are shown.
    fn drop(&mut self) {
        let logs: Vec<(&Path, String)> = self.nodes.iter().map(|node| (&*node.dir, node.log())).collect();
        if std::thread::panicking() {
            for (dir, log) in logs {
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("{}:\n{}", dir.display(), lines[lines.len().saturating_sub(20)..].join("\n"));
            }
        } else {
            let panicked = logs.iter().find(|(_, log)| log.contains("panicked at"));
            assert!(panicked.is_none(), "a node panicked: {}", panicked.expect("found").1);
            for node in self.nodes.iter().filter(|_| !self.tampered) {
                node.assert_right();
            }
        }
    }
}

impl Net {
    /// Makes the folders of `n` nodes around `binary`; `set` may change each one's configuration.
    pub fn new(n: usize, binary: &Path, set: impl Fn(usize, &mut Document)) -> Net {
        let folder = tempfile::tempdir().expect("a folder");
        let secrets: Vec<SecretKey> = (0..n).map(|_| SecretKey::generate()).collect();
        let unl: Vec<NodeKey> = secrets.iter().map(SecretKey::node_key).collect();
        let ports = free_ports(n);
        let mut nodes = Vec::new();
        for (at, secret) in secrets.iter().enumerate() {
            let dir = folder.path().join(format!("node{at}"));
            let mut document = Document::new(secret, Hash([7; 32]), 1_700_000_000_000, &unl);
            document.set("binary", &hotpocket::config::quoted(binary.to_str().expect("a path in UTF-8")));
            let peers: Vec<SocketAddr> = ports.iter().filter(|port| **port != ports[at]).copied().collect();
            document.set_list("peers", &peers);
            document.set("peerport", &ports[at].port().to_string());
            document.set("pubport", "0");
            set(at, &mut document);
            write_config(&dir, document.text());
            nodes.push(TestNode { secret: Some(secret.clone()), ..TestNode::of(dir) });
        }
        Net { nodes, tampered: false, _folder: folder }
    }

    /// A network of nodes around the probe that is up.
    pub async fn up(n: usize) -> Net {
        Net::up_with(n, probe(), plain).await
    }

    /// The same with another contract and configuration.
    pub async fn up_with(n: usize, binary: &Path, set: impl Fn(usize, &mut Document)) -> Net {
        let mut net = Net::new(n, binary, set);
        net.start_all().await;
        net
    }

    /// A network of the folders as they are.
    pub fn of(folder: TempDir, dirs: Vec<PathBuf>) -> Net {
        Net { nodes: dirs.into_iter().map(TestNode::of).collect(), tampered: false, _folder: folder }
    }

    /// Starts every node that does not run.
    pub async fn start_all(&mut self) {
        join_all(self.nodes.iter_mut().filter(|node| node.running.is_none()).map(TestNode::start)).await;
    }

    /// Kills every node at once, as a power cut does to the processes.
    pub async fn kill_all(&mut self) {
        for node in &self.nodes {
            node.signal(Signal::SIGKILL);
        }
        for node in &mut self.nodes {
            node.ended().await;
        }
    }

    /// Waits until all running nodes have closed ledger `seq` at least.
    pub async fn closed(&self, seq: u64) {
        for node in self.nodes.iter().filter(|node| node.running.is_some()) {
            until(&format!("ledger {seq} closes"), async || {
                let status = node.status().await?;
                (status["seq"].as_u64()? >= seq).then_some(())
            })
            .await;
        }
    }

    /// Waits until all running nodes have closed and run the same ledger, and gives its number and hash.
    pub async fn agree(&self) -> (u64, String) {
        until("all nodes are at one ledger", async || self.agreed().await.ok()).await
    }

    /// The same where a ledger may take long: as long as some node closes or runs one within this time.
    pub async fn agree_while_it_moves(&self, within: Duration) -> (u64, String) {
        let (mut moved, mut last) = (Instant::now(), 0);
        let mut ticks = interval(Duration::from_millis(20));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.agreed().await {
                Ok(agreed) => return agreed,
                Err(now) if now > last => (moved, last) = (Instant::now(), now),
                Err(now) => {
                    assert!(moved.elapsed() < within, "no ledger closed or run within {within:?}, at {now}")
                }
            }
        }
    }

    /// The ledger that all running nodes have closed and run; how many they have closed and run in all, when there is none.
    async fn agreed(&self) -> Result<(u64, String), u64> {
        let (mut tips, mut moved, mut ready) = (Vec::new(), 0, true);
        for node in self.nodes.iter().filter(|node| node.running.is_some()) {
            let Some(status) = node.status().await else {
                ready = false;
                continue;
            };
            let (seq, unexecuted) = (status["seq"].as_u64().unwrap_or(0), status["unexecuted"].as_u64().unwrap_or(0));
            moved += 2 * seq - unexecuted;
            ready &= status["synced"] == true && unexecuted == 0;
            tips.push((seq, status["lcl"].as_str().unwrap_or_default().to_owned()));
        }
        let is_one = ready && !tips.is_empty() && tips.windows(2).all(|pair| pair[0] == pair[1]);
        if is_one { Ok(tips.swap_remove(0)) } else { Err(moved) }
    }
}

impl TestNode {
    fn of(dir: PathBuf) -> TestNode {
        TestNode { dir, url: String::new(), http: String::new(), secret: None, wrapper: Vec::new(), running: None }
    }

    /// Starts the process and waits until it is up.
    pub async fn start(&mut self) {
        let (mut child, mut lines) = self.spawn();
        let line = timeout(DEADLINE, lines.next_line()).await.expect("a node comes up").expect("stdout is text");
        let Some(line) = line else {
            let status = child.wait().await.expect("a status");
            panic!("the node ended at once with {status}: {}", self.log());
        };
        let value: Value = serde_json::from_str(&line).expect("one JSON line");
        self.url = value["user_address"].as_str().map(|address| format!("ws://{address}")).unwrap_or_default();
        if value["tls"] == true {
            self.url = self.url.replacen("ws", "wss", 1);
        }
        self.http = value["http_url"].as_str().unwrap_or_default().to_owned();
        let stdin = child.stdin.take();
        self.running = Some((child, stdin));
    }

    /// Starts the process, expects it to refuse, and gives its exit code and what it said.
    pub async fn start_fails(&self) -> (Option<i32>, String) {
        let (mut child, _lines) = self.spawn();
        let status = timeout(DEADLINE, child.wait()).await.expect("it ends by itself").expect("a status");
        (status.code(), self.log())
    }

    /// Starts the process and kills it after this time, however far it came.
    pub async fn start_and_kill(&self, after: Duration) {
        let (mut child, _lines) = self.spawn();
        // Not waited for anything: the moment is what is tested.
        tokio::time::sleep(after).await;
        child.kill().await.expect("killed");
    }

    fn spawn(&self) -> (Child, tokio::io::Lines<BufReader<tokio::process::ChildStdout>>) {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("node.log")).expect("a log");
        let mut child = wrapped(&self.wrapper)
            .args(["run", "--child"])
            .arg(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("hp starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        (child, lines)
    }

    /// Calls `hp` for the node's folder, in its surroundings, and waits for its end.
    pub async fn call(&self, args: &[&str]) -> Ended {
        ended(wrapped(&self.wrapper).args(args).arg(&self.dir)).await
    }

    /// Checks the node's chain and votes, whether it runs or not. A database that does not read is not looked at: tests
    /// that make one say themselves what must come of it.
    fn assert_right(&self) {
        let Ok(mut archive) = Archive::open(&self.dir) else { return };
        match verify(&mut archive, Ask::default(), &mut |_, _| {}) {
            Err(Stopped::Wrong(wrong)) => panic!("the chain of {} is wrong: {wrong}", self.dir.display()),
            Ok(_) | Err(Stopped::Source(_)) => {}
        }
    }

    /// What the node has written to stderr so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("node.log")).unwrap_or_default()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("it runs").0.id().expect("it runs")
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// The node's processes of the contract: those that work in its folder, launchers excepted.
    pub fn contracts(&self) -> Vec<u32> {
        let dir = self.dir.canonicalize().expect("the folder is there");
        working(|cwd| cwd == dir)
    }

    /// The node's processes of read-only runs.
    pub fn reads(&self) -> Vec<u32> {
        let dir = self.dir.canonicalize().expect("the folder is there").join("reads");
        working(|cwd| cwd.starts_with(&dir))
    }

    /// Waits until a run of the contract is under way.
    pub async fn contract_runs(&self) {
        until("the contract runs", async || (!self.contracts().is_empty()).then_some(())).await;
    }

    /// Waits until the process has ended, and gives its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let (mut child, _stdin) = self.running.take().expect("it runs");
        timeout(DEADLINE, child.wait()).await.expect("it ends").expect("a status").code()
    }

    /// Kills the process without warning.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ended().await;
    }

    /// Where the node stands; `None` when it does not answer. Panics when it should run and does not.
    pub async fn status(&self) -> Option<Value> {
        assert!(self.running.is_none() || is_alive(self.pid()), "{} ended by itself", self.dir.display());
        timeout(DEADLINE, control::ask(&self.dir, &Request::Status)).await.ok()?.ok()
    }

    /// Waits until the node's status is as `check` wants it.
    pub async fn status_where(&self, what: &str, check: impl Fn(&Value) -> bool) -> Value {
        until(what, async || self.status().await.filter(|status| check(status))).await
    }

    /// The last ledger the node closed.
    pub async fn seq(&self) -> u64 {
        let status = self.status_where("the node answers", |status| status["seq"].is_u64()).await;
        status["seq"].as_u64().expect("just seen")
    }

    /// Waits until the log has a line that contains all of `parts`, and gives it.
    pub async fn logs(&self, parts: &[&str]) -> String {
        until(&format!("the log says {parts:?}"), async || {
            self.log().lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
        })
        .await
    }

    /// The port for peers, as configured.
    pub fn peer_port(&self) -> u16 {
        let text = fs::read_to_string(self.dir.join("cfg/hp.cfg")).expect("there is a configuration");
        let line = text.lines().find_map(|line| line.strip_prefix("peerport = ")).expect("a port");
        line.parse().expect("a port")
    }

    /// Reads the configuration file, changes its text, and writes it back.
    pub fn edit_config(&self, change: impl FnOnce(String) -> String) {
        let file = self.dir.join("cfg/hp.cfg");
        let text = fs::read_to_string(&file).expect("there is a configuration");
        write_config(&self.dir, &change(text));
    }

    /// A session of a new user.
    pub async fn user(&self) -> User {
        self.session(SecretKey::generate()).await
    }

    /// A session of this user.
    pub async fn session(&self, key: SecretKey) -> User {
        User { client: RawClient::connect(&self.url, &key).await.expect("the handshake"), key }
    }

    /// A session of this user in signed mode.
    pub async fn signed(&self, key: &SecretKey) -> SignedUser {
        let nothing = Pins::default();
        let connect = SignedClient::connect(&self.url, key, &nothing);
        let client = timeout(DEADLINE, connect).await.expect("in time").expect("the handshake");
        SignedUser { client, key: key.clone() }
    }

    /// A file of the contract's state.
    pub fn state(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join("state").join(name)).unwrap_or_default()
    }
}

/// A user's open session.
pub struct User {
    pub client: RawClient,
    pub key: SecretKey,
}

impl User {
    pub async fn send(&mut self, input: impl Into<bytes::Bytes>) {
        self.client.send(input.into()).await.expect("the node takes it");
    }

    /// The next frame.
    pub async fn recv(&mut self) -> Frame {
        timeout(DEADLINE, self.client.recv()).await.expect("an answer in time").expect("an answer")
    }

    /// The next frame, which must be an output in text.
    pub async fn text(&mut self) -> String {
        match self.recv().await {
            Frame::Text(text) => text,
            other => panic!("expected an output, got {other:?}"),
        }
    }

    /// The next frame, which must be an error: its code and message.
    pub async fn error(&mut self) -> (String, String) {
        match self.recv().await {
            Frame::Error { code, message } => (code, message),
            other => panic!("expected an error, got {other:?}"),
        }
    }

    /// Outputs until they have `bytes` in all.
    pub async fn text_of(&mut self, bytes: usize) -> String {
        let mut all = String::new();
        while all.len() < bytes {
            all += &self.text().await;
        }
        all
    }

    /// One input, one output.
    pub async fn ask(&mut self, input: &str) -> String {
        self.send(input.to_owned()).await;
        self.text().await
    }
}

/// A user's open session in signed mode.
pub struct SignedUser {
    pub client: SignedClient,
    pub key: SecretKey,
}

impl SignedUser {
    /// A signed input, far from its end, to be sent anywhere.
    pub fn input(&self, nonce: u64, payload: &str) -> UserRequest {
        self.input_until(nonce, self.client.welcome().seq + 1_000, payload)
    }

    /// The same with a last ledger.
    pub fn input_until(&self, nonce: u64, max_ledger: Seq, payload: &str) -> UserRequest {
        let chain_id = self.client.trust().chain_id();
        let input = sign_input(&self.key, &chain_id, nonce, max_ledger, payload.into());
        UserRequest::Input(InputFrame::from(input))
    }

    pub async fn send(&mut self, request: &UserRequest) {
        self.client.send(request).await.expect("the node takes it");
    }

    /// The next frame. Every output in it was checked.
    pub async fn recv(&mut self) -> Reply {
        let reply = timeout(DEADLINE, self.client.recv()).await.expect("an answer in time").expect("an answer");
        let check = |output: &OutputFrame| {
            let checked = self.client.trust().check_output(&self.key.user_key(), output);
            checked.expect("every output is proven");
        };
        match &reply {
            Reply::Output(output) => check(output),
            Reply::Answer(answer) => {
                if let AnswerBody::Outputs(page) = &answer.body {
                    page.outputs.iter().for_each(check);
                }
            }
            _ => {}
        }
        reply
    }

    /// In which ledger the input with this nonce is. Passes over frames of another kind.
    pub async fn accepted(&mut self, nonce: u64) -> Seq {
        loop {
            match self.recv().await {
                Reply::Status(status) if status.nonce == nonce => match status.fate {
                    Fate::Accepted { seq, .. } => return seq,
                    rejected => panic!("{rejected:?}"),
                },
                Reply::Error(error) => panic!("{error:?}"),
                _ => {}
            }
        }
    }

    /// Why the input with this nonce is rejected.
    pub async fn rejected(&mut self, nonce: u64) -> Reason {
        match self.recv().await {
            Reply::Status(status) if status.nonce == nonce => match status.fate {
                Fate::Rejected { reason, .. } => reason,
                accepted => panic!("{accepted:?}"),
            },
            other => panic!("expected a status, got {other:?}"),
        }
    }

    /// The next output, as text, with its ledger.
    pub async fn output(&mut self) -> (Seq, String) {
        loop {
            match self.recv().await {
                Reply::Output(output) => return (output.seq, String::from_utf8(output.payload.0).expect("text")),
                Reply::Error(error) => panic!("{error:?}"),
                _ => {}
            }
        }
    }

    /// That the result of a ledger is agreed on.
    pub async fn executed(&mut self) -> Executed {
        loop {
            match self.recv().await {
                Reply::Executed(executed) => return executed,
                Reply::Error(error) => panic!("{error:?}"),
                _ => {}
            }
        }
    }

    /// Asks the contract something.
    pub async fn question(&mut self, id: u64, text: &str) {
        let payload = Base64(text.into());
        self.send(&UserRequest::Read(ReadFrame { id, payload })).await;
    }

    /// The next word on a question to the contract.
    pub async fn answered(&mut self) -> ReadResult {
        loop {
            match self.recv().await {
                Reply::ReadResult(result) => return result,
                Reply::Error(error) => panic!("{error:?}"),
                _ => {}
            }
        }
    }

    /// One question, one answer.
    pub async fn ask(&mut self, query: Query) -> AnswerBody {
        self.client.ask(query).await.expect("the node takes it");
        loop {
            match self.recv().await {
                Reply::Answer(answer) => return answer.body,
                Reply::Error(error) => panic!("{error:?}"),
                _ => {}
            }
        }
    }

    /// Outputs of the past, once those of ledger `to` are among them.
    pub async fn outputs_since(&mut self, since: Seq, to: Seq) -> OutputsPage {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let AnswerBody::Outputs(page) = self.ask(Query::Outputs { since }).await else { panic!("another answer") };
            if page.to >= to {
                return page;
            }
            assert!(Instant::now() < deadline, "the result of ledger {to} is not agreed on: {page:?}");
        }
    }
}

/// Writes a node's configuration.
pub fn write_config(dir: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt as _;
    let cfg = dir.join("cfg");
    fs::create_dir_all(&cfg).expect("a folder");
    let mut file = fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(cfg.join("hp.cfg"))
        .expect("a file");
    std::io::Write::write_all(&mut file, text.as_bytes()).expect("written");
}
