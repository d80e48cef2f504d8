//! `hp dev` and `./run-test-contract`: a network that ends with whoever started it, in whichever way.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::TcpStream,
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
    folder: TempDir,
    _tmp: TempDir,
}

/// Answers each user with this word and the number of words the state has had, and prints the word on its log.
fn contract(word: &str) -> String {
    format!(
        r#"#!/bin/sh
echo {word}
tr -d ' \t\r\n' | sed 's/.*"user":{{\([^}}]*\)}}.*/\1/' | tr -d '"[' | tr ']:,' '\n  ' |
while read -r key input output; do
    [ -n "$key" ] || continue
    words=$(wc -w <"/dev/fd/$input")
    [ "$words" -gt 0 ] || continue
    echo {word} >>state/words
    echo "{word} $(grep -c . state/words)" >"/dev/fd/$output"
done
"#
    )
}

/// Puts a file there in one step, as who builds it should.
fn put(file: &Path, text: &str) {
    let fresh = file.with_extension("fresh");
    std::fs::write(&fresh, text).expect("written");
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).expect("changed");
    std::fs::rename(fresh, file).expect("moved");
}

impl Dev {
    async fn up(nodes: usize) -> Dev {
        let binary = probe().to_str().expect("UTF-8");
        Dev::with(tempfile::tempdir().expect("a folder"), &["--nodes", &nodes.to_string(), "--binary", binary], nodes)
            .await
    }

    /// Around this contract, with three nodes.
    async fn around(text: &str, args: &[&str]) -> Dev {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("bin")).expect("a folder");
        put(&folder.path().join("bin/contract"), text);
        Dev::with(folder, args, 3).await
    }

    fn contract(&self) -> PathBuf {
        self.folder.path().join("bin/contract")
    }

    /// Reads on to a line that has this in it.
    async fn hears(&mut self, words: &str) -> String {
        loop {
            let line = next(&mut self.told).await.unwrap_or_else(|| panic!("it ends before it says {words:?}"));
            self.seen.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    /// The answer to one input at the last node that was named.
    async fn answer(&self) -> String {
        let url = self.seen.iter().rev().find_map(|line| line.split_once("hp client ")).expect("how to connect").1;
        let answered = call(&["client", "--once", "x", "--timeout", "50", url]).await;
        assert_eq!(answered.code, Some(0), "{}", answered.err);
        answered.out
    }

    async fn with(folder: TempDir, args: &[&str], nodes: usize) -> Dev {
        let tmp = tempfile::tempdir().expect("a folder");
        let mut process = Command::new(hp())
            .arg("dev")
            .args(args)
            .arg(folder.path())
            // What it cannot tidy up after kill -9 goes with the test's own folder.
            .env("TMPDIR", tmp.path())
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
        Dev { process, told, seen, nodes: pids, folder, _tmp: tmp }
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
fn a_change_of_bin_is_taken_over_by_all_nodes_at_one_ledger_and_the_state_stays() {
    block_on(async {
        let mut dev = Dev::around(&contract("one"), &["--no-bus"]).await;
        dev.hears("[all] 1 out   one").await;
        let page = dev.seen.iter().skip_while(|line| *line != "in a browser:").nth(1).expect("an address").trim();
        let host = page.strip_prefix("http://").expect("without TLS").trim_end_matches('/');
        let mut stream = TcpStream::connect(host).await.expect("it listens");
        let request = format!("GET /v1/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut health = String::new();
        stream.read_to_string(&mut health).await.expect("text");
        assert!(health.starts_with("HTTP/1.1 200 "), "{health}");
        assert_eq!(dev.answer().await, "one 1\n");
        // Inputs come in all the while, so that ledgers follow each other as fast as they can.
        let url = dev.seen.iter().find_map(|line| line.split_once("hp client ")).expect("how to connect").1.to_owned();
        let typing = tokio::spawn(async move {
            let mut answers = Vec::new();
            for _ in 0..20 {
                answers.push(call(&["client", "--once", "x", "--timeout", "50", &url]).await.out);
            }
            answers
        });
        for word in ["two", "three"] {
            put(&dev.contract(), &contract(word));
            dev.hears("all nodes run the new one from ledger").await;
        }
        let answers = typing.await.expect("all are answered");
        let numbers: Vec<String> = answers
            .iter()
            .filter_map(|answer| answer.trim().split_once(' '))
            .map(|(_, count)| count.to_owned())
            .collect();
        assert_eq!(numbers, (2..22).map(|count| count.to_string()).collect::<Vec<_>>(), "{answers:?}");
        assert_eq!(dev.answer().await, "three 22\n");
        dev.hears("[all] ").await;
        let differs = |line: &&String| line.contains('≠') || line.contains("DIFFER") || line.contains("ERROR");
        assert_eq!(dev.seen.iter().find(differs), None);
        send_signal(dev.pid(), Signal::SIGINT);
        assert_eq!(dev.ended().await, Some(0));
    });
}

#[test]
fn what_is_wrong_with_a_change_of_bin_is_told_and_the_next_one_is_taken() {
    block_on(async {
        let mut dev = Dev::around(&contract("one"), &["--no-bus", "--nodes", "3"]).await;
        std::fs::set_permissions(dev.contract(), std::fs::Permissions::from_mode(0o644)).expect("changed");
        dev.hears("is not an executable file (chmod +x?)").await;
        std::fs::remove_dir_all(dev.contract().parent().expect("bin/")).expect("removed");
        dev.hears("is not taken over: cannot find").await;
        assert_eq!(dev.answer().await, "one 1\n", "the nodes go on with what they have");
        std::fs::create_dir(dev.contract().parent().expect("bin/")).expect("made");
        put(&dev.contract(), "#!/no/such/interpreter\n");
        dev.hears("all nodes run the new one").await;
        dev.hears("[all] WARN the contract failed").await;
        put(&dev.contract(), &contract("two"));
        dev.hears("all nodes run the new one").await;
        assert_eq!(dev.answer().await, "two 2\n", "and the state is as before");
    });
}

#[test]
fn results_that_differ_are_told_with_the_files_and_the_next_change_begins_anew() {
    block_on(async {
        let mut dev = Dev::around(&contract("one"), &["--no-bus"]).await;
        let nodes = dev.nodes.clone();
        let clock = contract("two") + "head -c 8 /dev/urandom >state/random\necho $$ $(date +%N) >&2\n";
        put(&dev.contract(), &clock);
        dev.hears("err ≠ ").await;
        let told = dev.hears("RESULTS DIFFER in ledger").await;
        assert!(told.contains("A: node ") && told.contains("B: node "), "{told}");
        dev.hears("state/random").await;
        dev.hears("With the next change of bin/ the network begins anew").await;
        put(&dev.contract(), &contract("three"));
        dev.hears("the network begins anew (results were split)").await;
        dev.hears("Ctrl-C ends it all").await;
        all_gone(&nodes).await;
        assert_eq!(dev.answer().await, "three 1\n", "with the state that the author's folder has: none");
    });
}

#[test]
fn hp_dev_rebuilds_when_a_source_changes_and_begins_anew_when_that_is_asked_for() {
    block_on(async {
        let mut dev =
            Dev::around(&contract("one"), &["--no-bus", "--reset", "--rebuild", "cp word.sh bin/contract; echo built"])
                .await;
        put(&dev.folder.path().join("word.sh"), &contract("two"));
        dev.hears("built").await;
        dev.hears("the network begins anew (--reset)").await;
        dev.hears("Ctrl-C ends it all").await;
        assert_eq!(dev.answer().await, "two 1\n");
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
