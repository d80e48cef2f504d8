//! End to end: how long from a user's input to its output, and how many rounds a second, with n real nodes on this
//! machine around a static C contract; beside what the machine itself costs, measured in the same minute.
//!
//! Run by `scripts/bench latency [--inputs N] [--nodes 1,4,5]`. Machines are noisy: compare ratios, not times.

#[path = "../tests/it/net.rs"]
#[allow(dead_code)]
mod net;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use hotpocket::crypto::{SecretKey, verify};
use net::Net;

/// Inputs before the measured ones.
const WARM_UP: usize = 30;

fn main() {
    let mut inputs = 500;
    let mut sizes = vec![1, 4, 5];
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--inputs" => inputs = number(args.next()),
            "--nodes" => {
                sizes = args.next().unwrap_or_default().split(',').map(|n| number(Some(n.to_owned()))).collect()
            }
            // Given by `cargo bench`.
            "--bench" => {}
            other => {
                fail(&format!("unknown argument {other:?}; usage: scripts/bench latency [--inputs N] [--nodes 1,4,5]"))
            }
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let contract = folder.path().join("echo");
    build_echo(&contract);

    let anchors = Anchors::measure(folder.path(), &contract);
    println!("{anchors}");
    println!(
        "{:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>9} {:>8}",
        "nodes", "inputs", "p50 ms", "p95 ms", "p99 ms", "max ms", "rounds/s", "model ms", "p50/model"
    );
    for n in sizes {
        let mut measured = net::block_on(network(n, &contract, inputs));
        measured.times.sort_unstable();
        let at = |percent: usize| millis(measured.times[(measured.times.len() - 1) * percent / 100]);
        let model = anchors.model_ms(n);
        println!(
            "{n:>5} {:>9} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>10.0} {:>9.2} {:>8.1}",
            measured.times.len(),
            at(50),
            at(95),
            at(99),
            at(100),
            measured.rounds_per_s,
            model,
            at(50) / model
        );
    }
}

fn number(text: Option<String>) -> usize {
    match text.as_deref().map(str::parse) {
        Some(Ok(number @ 1..=100_000)) => number,
        _ => fail("expected a number from 1 to 100000"),
    }
}

fn fail(what: &str) -> ! {
    eprintln!("error: {what}");
    std::process::exit(2);
}

fn build_echo(to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("contracts/echo/echo.c");
    for flags in [&["-static"][..], &[]] {
        let built = Command::new("cc").arg("-O2").args(flags).arg("-o").arg(to).arg(&source).status();
        if built.is_ok_and(|status| status.success()) {
            return;
        }
    }
    fail("contracts/echo/echo.c does not compile: is a C compiler (cc) installed?");
}

struct Measured {
    times: Vec<Duration>,
    rounds_per_s: f64,
}

/// One user, one input in flight.
async fn network(n: usize, contract: &Path, inputs: usize) -> Measured {
    let net = Net::up_with(n, contract, |_, document| {
        document.set("log.level", "\"warn\"");
    })
    .await;
    let mut user = net.nodes[0].user().await;
    for at in 0..WARM_UP {
        user.ask(&format!("warm {at}")).await;
    }
    let seq = async || net.nodes[0].status().await.and_then(|status| status["seq"].as_u64()).expect("a status");
    let first = seq().await;
    let started = Instant::now();
    let mut times = Vec::with_capacity(inputs);
    for at in 0..inputs {
        let text = format!("input {at}");
        let sent = Instant::now();
        assert_eq!(user.ask(&text).await, text);
        times.push(sent.elapsed());
    }
    let rounds = seq().await - first;
    Measured { times, rounds_per_s: rounds as f64 / started.elapsed().as_secs_f64() }
}

/// What the machine itself costs.
struct Anchors {
    spawn: Duration,
    round_trip: Duration,
    commit: Duration,
    sign: Duration,
    verify: Duration,
    cores: usize,
}

impl Anchors {
    fn measure(folder: &Path, contract: &Path) -> Anchors {
        let key = SecretKey::from_seed([1; 32]);
        let sig = key.sign(&[7; 32]);
        let public = key.node_key();
        Anchors {
            spawn: median(200, || {
                let mut child = Command::new(contract)
                    .stdin(std::process::Stdio::null())
                    .stdout(std::process::Stdio::null())
                    .stderr(std::process::Stdio::null())
                    .spawn()
                    .expect("the contract starts");
                child.wait().expect("it ends");
            }),
            round_trip: round_trip(),
            commit: commit(&folder.join("anchor.db")),
            sign: median(500, || {
                std::hint::black_box(key.sign(&[7; 32]));
            }),
            verify: median(500, || assert!(verify(&public.0, &[7; 32], &sig))),
            cores: thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// What a round of n nodes on this machine costs at least: five message delays, four signed messages a node, each
    /// verified by all others, n contracts and one durable commit.
    fn model_ms(&self, n: usize) -> f64 {
        let (delays, signed) = (5.0, 4.0);
        let wire = delays * millis(self.round_trip) / 2.0;
        let work = n as f64 * signed * ((n - 1) as f64 * millis(self.verify) + millis(self.sign)) / self.cores as f64;
        let runs = n as f64 * millis(self.spawn) / self.cores as f64;
        millis(self.round_trip) + wire + wire.max(work) + runs + millis(self.commit)
    }
}

impl std::fmt::Display for Anchors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "this machine ({} cores), medians:", self.cores)?;
        writeln!(f, "  spawn + wait of the contract     {:>8.3} ms", millis(self.spawn))?;
        writeln!(f, "  TCP round trip on loopback       {:>8.3} ms", millis(self.round_trip))?;
        writeln!(f, "  durable commit of 1 KB (SQLite)  {:>8.3} ms", millis(self.commit))?;
        writeln!(f, "  ed25519 sign / verify            {:>8.3} / {:.3} ms", millis(self.sign), millis(self.verify))
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn median(times: usize, mut work: impl FnMut()) -> Duration {
    let mut measured: Vec<Duration> = (0..times)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed()
        })
        .collect();
    measured.sort_unstable();
    measured[times / 2]
}

fn round_trip() -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_nodelay(true).expect("nodelay");
        let mut bytes = [0; 64];
        while let Ok(got @ 1..) = stream.read(&mut bytes) {
            stream.write_all(&bytes[..got]).expect("written");
        }
    });
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_nodelay(true).expect("nodelay");
    let mut bytes = [1; 64];
    let median = median(1000, || {
        stream.write_all(&bytes).expect("written");
        stream.read_exact(&mut bytes).expect("answered");
    });
    drop(stream);
    echo.join().expect("the echo ends");
    median
}

fn commit(path: &Path) -> Duration {
    let db = rusqlite::Connection::open(path).expect("a database");
    db.pragma_update(None, "journal_mode", "WAL").expect("WAL");
    db.pragma_update(None, "synchronous", "FULL").expect("FULL");
    db.execute("CREATE TABLE t (bytes BLOB)", []).expect("a table");
    median(200, || {
        db.execute("INSERT INTO t VALUES (?1)", [vec![7_u8; 1024]]).expect("a row");
    })
}
