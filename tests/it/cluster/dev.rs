//! `hp dev` and `./run-test-contract`: a network that ends with whoever started it, in whichever way.

use std::{path::Path, process::Stdio, time::Duration};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

use crate::net::{DEADLINE, Ended, block_on, call, children, hp, is_alive, probe, send_signal, until};

/// A running `hp dev` around the probe, with all its nodes up.
struct Dev {
    process: Child,
    told: Lines<BufReader<ChildStderr>>,
    /// What it said until all were up.
    seen: Vec<String>,
    nodes: Vec<u32>,
    _folder: TempDir,
}

impl Dev {
    async fn up(nodes: usize) -> Dev {
        let folder = tempfile::tempdir().expect("a folder");
        let mut process = Command::new(hp())
            .args(["dev", "--nodes", &nodes.to_string(), "--binary"])
            .args([probe(), folder.path()])
            // What it cannot tidy up after kill -9 goes with the test's own folder.
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("hp starts");
        let mut told = BufReader::new(process.stderr.take().expect("piped")).lines();
        let mut seen: Vec<String> = Vec::new();
        while !seen.last().is_some_and(|line| line.starts_with("Ctrl-C ends it all")) {
            seen.push(next(&mut told).await.expect("it comes up"));
        }
        let pids = children(process.id().expect("it runs"));
        assert_eq!(pids.len(), nodes);
        Dev { process, told, seen, nodes: pids, _folder: folder }
    }

    fn pid(&self) -> u32 {
        self.process.id().expect("it runs")
    }

    /// The nodes and what they started.
    fn all(&self) -> Vec<u32> {
        let launchers = self.nodes.iter().flat_map(|node| children(*node));
        launchers.chain(self.nodes.iter().copied()).collect()
    }

    async fn ended(&mut self) -> Option<i32> {
        timeout(DEADLINE, self.process.wait()).await.expect("it ends").expect("a status").code()
    }

    async fn rest(&mut self) -> String {
        let mut rest = String::new();
        while let Some(line) = next(&mut self.told).await {
            rest += &line;
            rest.push('\n');
        }
        rest
    }
}

async fn next(told: &mut Lines<BufReader<ChildStderr>>) -> Option<String> {
    timeout(DEADLINE, told.next_line()).await.expect("in time").expect("text")
}

async fn all_gone(pids: &[u32]) {
    until("nothing is left", async || (!pids.iter().any(|pid| is_alive(*pid))).then_some(())).await;
}

#[test]
fn ctrl_c_and_sigterm_end_hp_dev_with_all_its_nodes() {
    block_on(async {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut dev = Dev::up(2).await;
            let all = dev.all();
            assert_eq!(all.len(), 4, "two nodes and two launchers");
            send_signal(dev.pid(), signal);
            assert_eq!(dev.ended().await, Some(0), "{signal}");
            all_gone(&all).await;
        }
    });
}

#[test]
fn what_a_network_of_hp_dev_puts_out_is_settled_and_can_be_checked_as_it_says() {
    block_on(async {
        let mut dev = Dev::up(3).await;
        let user = dev.seen.iter().find_map(|line| line.split_once("hp client ")).expect("how to connect").1.to_owned();
        let answered = call(&["client", "--once", "hello", &user]).await;
        assert_eq!((answered.code, answered.out.as_str()), (Some(0), "5 5\n"), "{}", answered.err);
        while !next(&mut dev.told).await.expect("it is settled").starts_with("settled: ledgers 1 to ") {}
        let told = next(&mut dev.told).await.expect("how to check it");
        let node = told.trim().strip_prefix("hp msb verify ").expect("the command").to_owned();
        let checked = call(&["msb", "verify", &node]).await;
        assert_eq!(checked.code, Some(0), "{}{}", checked.out, checked.err);
        assert!(
            checked.out.contains("ok: 1 settlement, all of them on the bus at http://127.0.0.1:"),
            "{}",
            checked.out
        );
        let rich = call(&["msb", "balance", &node]).await;
        assert_eq!(rich.code, Some(0), "the bus is that of the folder's configuration: {}", rich.err);
        assert!(rich.out.contains("1000 TNK") || rich.out.contains("999.97 TNK"), "{}", rich.out);
        send_signal(dev.pid(), Signal::SIGTERM);
        assert_eq!(dev.ended().await, Some(0));
    });
}

#[test]
fn hp_dev_killed_without_warning_leaves_no_node() {
    block_on(async {
        let mut dev = Dev::up(2).await;
        let all = dev.all();
        send_signal(dev.pid(), Signal::SIGKILL);
        dev.ended().await;
        all_gone(&all).await;
    });
}

#[test]
fn the_death_of_one_node_ends_hp_dev_with_a_reason() {
    block_on(async {
        let mut dev = Dev::up(2).await;
        let all = dev.all();
        send_signal(dev.nodes[0], Signal::SIGKILL);
        assert_eq!(dev.ended().await, Some(1));
        let told = dev.rest().await;
        assert!(told.contains("ended by itself (signal: 9"), "{told}");
        all_gone(&all).await;
    });
}

#[test]
fn hp_dev_once_prints_the_answer_alone_or_fails_in_the_time_given() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (dir, binary) = (folder.path().to_str().expect("UTF-8"), probe().to_str().expect("UTF-8"));
        let once = |input, seconds| {
            call_owned(["dev", dir, "--nodes", "2", "--binary", binary, "--timeout", seconds, "--once", input])
        };
        let answered = once("hello", "50").await;
        assert_eq!((answered.code, answered.out.as_str()), (Some(0), "5 5\n"), "{}", answered.err);
        let failed = once("fail", "50").await;
        assert_eq!((failed.code, failed.out.as_str()), (Some(1), ""), "{}", failed.err);
        assert!(failed.err.contains("exit code 3"), "{}", failed.err);
        let hung = once("hang", "1").await;
        assert_eq!((hung.code, hung.out.as_str()), (Some(6), ""), "{}", hung.err);
        assert!(hung.err.contains("within 1 s"), "{}", hung.err);
    });
}

async fn call_owned(args: [&str; 10]) -> Ended {
    call(&args).await
}

#[test]
fn run_test_contract_once_prints_exactly_the_answer() {
    block_on(async {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("run-test-contract");
        let mut process = Command::new(script)
            .args(["--nodes", "2", "--once", "hi"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let (mut out, mut err) = (String::new(), String::new());
        let (mut stdout, mut stderr) = (process.stdout.take().expect("piped"), process.stderr.take().expect("piped"));
        let ended =
            async { futures::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err), process.wait()) };
        // It may have to build first.
        let (_, _, status) = timeout(DEADLINE + Duration::from_secs(40), ended).await.expect("it ends");
        assert_eq!((status.expect("a status").code(), out.as_str()), (Some(0), "hi\n"), "{err}");
    });
}
