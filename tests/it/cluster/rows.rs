//! Faults of earlier systems that must not exist here, against real nodes. Each test begins with the fault's name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    time::Instant,
};

use futures::{SinkExt as _, StreamExt as _, future::join_all};
use hotpocket::{
    cli::client::Frame,
    crypto::SecretKey,
    types::{Challenge, UserKey},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error as WsError, Message},
};

use crate::net::{DEADLINE, Net, TestNode, User, block_on, plain, probe, record, until};

/// A websocket on which nothing was said yet.
async fn websocket(url: &str) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(url.trim_start_matches("ws://")).await.expect("a connection");
    timeout(DEADLINE, client_async(url, stream)).await.expect("in time").expect("a websocket").0
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Option<Result<Message, WsError>> {
    timeout(DEADLINE, socket.next()).await.expect("an answer in time")
}

async fn challenge(socket: &mut WebSocketStream<TcpStream>) -> Challenge {
    let first = next(socket).await.expect("a frame").expect("a frame");
    let offer: Value = serde_json::from_str(first.to_text().expect("text")).expect("JSON");
    offer["challenge"].as_str().expect("a challenge").parse().expect("32 digits")
}

/// Code of the error that the node says before it closes.
async fn refusal(socket: &mut WebSocketStream<TcpStream>) -> String {
    let frame = next(socket).await.expect("a frame").expect("a frame");
    let error: Value = serde_json::from_str(frame.to_text().expect("text")).expect("JSON");
    assert_eq!(error["type"], "error");
    assert!(!matches!(next(socket).await, Some(Ok(Message::Text(_) | Message::Binary(_)))), "it closes");
    error["code"].as_str().expect("a code").to_owned()
}

/// How often each line is in a node's log of inputs.
fn recorded(node: &TestNode) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in node.state("log").lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    counts
}

/// The line that stands for an input in the log of inputs.
fn line(user: &User, input: &str) -> String {
    format!("{} {}", &user.key.user_key().to_string()[..8], input.trim_end())
}

#[test]
fn null_frame_before_and_after_the_handshake_harms_nobody() {
    block_on(async {
        let net = Net::up(1).await;
        let node = &net.nodes[0];
        let mut other = node.user().await;
        for frame in ["null", "[]", "0", "\"helo\"", "{}", "{\"type\":null}", "", "\u{0}", "[[[[[[[["] {
            let mut socket = websocket(&node.url).await;
            challenge(&mut socket).await;
            socket.send(Message::text(frame)).await.expect("sent");
            assert_eq!(refusal(&mut socket).await, "bad_format", "{frame:?}");
        }
        // Frames that no websocket may send: a reserved opcode, a fragment of a control frame, not masked, not UTF-8.
        for frame in [
            &[0x83, 0x80, 0, 0, 0, 0][..],
            &[0x09, 0x80, 0, 0, 0, 0],
            &[0x81, 1, b'x'],
            &[0x81, 0x81, 0, 0, 0, 0, 0xff],
        ] {
            let mut stream = websocket(&node.url).await;
            stream.get_mut().write_all(frame).await.expect("sent");
            let mut rest = Vec::new();
            // However it ends, it ends.
            let _ = timeout(DEADLINE, stream.get_mut().read_to_end(&mut rest)).await.expect("the node closes it");
        }
        assert_eq!(other.ask("null").await, "4 4", "after the handshake it is an input like any other");
        assert_eq!(node.user().await.ask("x").await, "1 5");
    });
}

#[test]
fn spoof_of_another_user_s_key_is_refused() {
    block_on(async {
        let net = Net::up_with(1, record(), plain).await;
        let node = &net.nodes[0];
        let mut victim = node.user().await;
        assert_eq!(victim.ask("mine\n").await, "mine\n");
        let attacker = SecretKey::generate();
        let (mine, theirs) = (attacker.user_key().to_string(), victim.key.user_key().to_string());
        for (pubkey, code) in [
            (theirs.clone(), "bad_sig"),
            (format!("{mine}zz;{theirs}"), "bad_format"),
            (format!("{theirs}{mine}"), "bad_format"),
            (format!(" {mine}"), "bad_format"),
            (format!("{mine}\n"), "bad_format"),
            (mine[..62].to_owned(), "bad_format"),
        ] {
            let mut socket = websocket(&node.url).await;
            let challenge = challenge(&mut socket).await.to_string();
            let sig = attacker.sign(challenge.as_bytes()).to_string();
            let helo = json!({"type": "helo", "challenge": challenge, "sig": sig, "pubkey": pubkey});
            socket.send(Message::text(helo.to_string())).await.expect("sent");
            assert_eq!(refusal(&mut socket).await, code, "{pubkey:?}");
        }
        // An answer to a challenge is worth nothing in another session.
        let (mut first, mut second) = (websocket(&node.url).await, websocket(&node.url).await);
        let old = challenge(&mut first).await.to_string();
        challenge(&mut second).await;
        let sig = attacker.sign(old.as_bytes()).to_string();
        let helo = json!({"type": "helo", "challenge": old, "sig": sig, "pubkey": mine});
        second.send(Message::text(helo.to_string())).await.expect("sent");
        assert_eq!(refusal(&mut second).await, "bad_challenge");
        assert_eq!(victim.ask("still mine\n").await, "still mine\n");
        assert_eq!(recorded(node).len(), 2);
    });
}

#[test]
fn replay_after_reconnect_does_not_happen() {
    block_on(async {
        let net = Net::up_with(3, record(), plain).await;
        let key = SecretKey::generate();
        for (at, input) in ["one\n", "two\n", "three\n", "four\n"].iter().enumerate() {
            let mut session = net.nodes[at % 3].session(key.clone()).await;
            session.send(*input).await;
            // A node that is slower than the one before hands out the answer before to this session too.
            until("the answer", async || (session.text().await == *input).then_some(())).await;
        }
        // Gone without waiting for the answer: the input counts all the same.
        let mut session = net.nodes[0].session(key.clone()).await;
        session.send("five\n").await;
        session.client.close().await;
        let mut again = net.nodes[0].session(key.clone()).await;
        let mut other = net.nodes[1].user().await;
        for _ in 0..10 {
            assert_eq!(other.ask("-\n").await, "-\n", "ledgers go by");
        }
        let five = line(&again, "five");
        until("an input of a session that is gone is executed", async || {
            recorded(&net.nodes[2]).contains_key(&five).then_some(())
        })
        .await;
        again.send("six\n").await;
        until("the answer", async || (again.text().await.ends_with("six\n")).then_some(())).await;
        net.agree().await;
        for node in &net.nodes {
            let counts = recorded(node);
            for input in ["one", "two", "three", "four", "five", "six"] {
                assert_eq!(counts.get(&line(&again, input)), Some(&1), "{input}");
            }
            assert_eq!(counts.values().sum::<usize>(), 16);
        }
    });
}

#[test]
fn identical_inputs_of_one_session_and_through_two_nodes_all_count() {
    block_on(async {
        let net = Net::up_with(3, record(), plain).await;
        let mut one = net.nodes[0].user().await;
        for _ in 0..40 {
            one.send("same\n").await;
        }
        assert_eq!(one.text_of(200).await, "same\n".repeat(40));
        let key = SecretKey::generate();
        let (mut here, mut there) = (net.nodes[1].session(key.clone()).await, net.nodes[2].session(key).await);
        for _ in 0..20 {
            here.send("same\n").await;
            there.send("same\n").await;
        }
        // What a key is sent reaches all of its sessions.
        let (here_got, there_got) = futures::join!(here.text_of(200), there.text_of(200));
        assert_eq!((here_got.len(), there_got.len()), (200, 200));
        net.agree().await;
        for node in &net.nodes {
            let counts = recorded(node);
            assert_eq!((counts[&line(&one, "same")], counts[&line(&here, "same")]), (40, 40));
        }
    });
}

#[test]
fn big_input_of_12000_messages_at_once_is_taken_whole_in_order_and_in_few_ledgers() {
    block_on(async {
        let net = Net::up_with(3, record(), plain).await;
        let mut user = net.nodes[0].user().await;
        let inputs: Vec<String> = (0..12_000).map(|number| format!("{number:063}\n")).collect();
        for input in &inputs {
            user.send(input.clone()).await;
        }
        assert_eq!(user.text_of(64 * 12_000).await, inputs.concat());
        let mut other = net.nodes[1].user().await;
        assert_eq!(other.ask("prompt\n").await, "prompt\n");
        net.agree().await;
        for node in &net.nodes {
            let expected: Vec<String> = inputs.iter().map(|input| line(&user, input)).collect();
            let log = node.state("log");
            assert!(log.lines().filter(|line| !line.ends_with("prompt")).eq(&expected), "all, once, in order");
            let ledgers = node.state("ledgers").lines().count();
            assert!(ledgers <= 60, "{ledgers} ledgers for 12,000 inputs");
        }
    });
}

#[test]
fn big_input_of_1_mib_and_twice_40000_bytes_pass_through_a_network() {
    block_on(async {
        let net = Net::up(3).await;
        let (mut a, mut b) = (net.nodes[0].user().await, net.nodes[1].user().await);
        assert_eq!(a.ask(&"a".repeat(1 << 20)).await, "1048576 1048576");
        a.send("a".repeat(40_000)).await;
        b.send("b".repeat(40_000)).await;
        let answers = [a.text().await, b.text().await];
        assert!(answers.iter().all(|answer| answer.starts_with("40000 ")), "{answers:?}");
        // Both in one ledger of one user.
        a.send("a".repeat(40_000)).await;
        a.send("a".repeat(40_000)).await;
        let mut got = 0;
        while got < 80_000 {
            got += a.text().await.split(' ').next().expect("a number").parse::<u64>().expect("a number");
        }
        assert_eq!(got, 80_000);
        a.send("x".repeat((1 << 20) + 1)).await;
        assert_eq!(a.error().await.0, "too_large");
        net.agree().await;
        for node in &net.nodes {
            assert_eq!(node.state("inputs"), (1_048_576 + 160_000).to_string());
        }
    });
}

#[test]
fn big_stdout_and_big_output_are_taken_and_bounded() {
    block_on(async {
        let net = Net::up_with(1, probe(), |_, config| {
            config.set("contract.log_kb", "64");
        })
        .await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("loud").await, "4 4");
        assert_eq!(user.ask("big one").await, format!("{}7 11", "y".repeat(1_000_000)));
        for name in ["stdout.log", "stderr.log"] {
            let path = net.nodes[0].dir.join("log/contract").join(name);
            let log = until("the log is written", async || {
                fs::read_to_string(&path).ok().filter(|log| log.contains("were not kept"))
            })
            .await;
            assert!(log.contains("xxxx") && log.len() < 70 << 10, "{name} has {} bytes", log.len());
        }
    });
}

#[test]
fn hang_of_the_contract_ends_at_its_limit_and_ledgers_go_on() {
    block_on(async {
        let net = Net::up_with(3, probe(), |_, config| {
            config.set("contract.time_limit_s", "1");
        })
        .await;
        let (mut user, mut other) = (net.nodes[0].user().await, net.nodes[1].user().await);
        assert_eq!(other.ask("before").await, "6 6");
        user.send("hang").await;
        let (code, message) = user.error().await;
        assert_eq!(code, "contract_failed");
        assert!(message.contains("time"), "{message}");
        assert_eq!(other.ask("after").await, "5 11", "the state is as before the run that hung");
        net.agree().await;
        for node in &net.nodes {
            assert_eq!(node.state("inputs"), "11");
            let contracts = node.contracts();
            until("no contract is left", async || {
                contracts.iter().all(|pid| !crate::net::is_alive(*pid)).then_some(())
            })
            .await;
        }
    });
}

#[test]
fn rate_limit_stops_bursts_and_not_slow_users() {
    block_on(async {
        let net = Net::up_with(1, record(), |_, config| {
            config.set("pubmaxcpm", "30");
        })
        .await;
        let (mut slow, mut fast) = (net.nodes[0].user().await, net.nodes[0].user().await);
        let started = Instant::now();
        for number in 0..200 {
            fast.send(format!("{number}\n")).await;
        }
        for number in 0..10 {
            let input = format!("{number}\n");
            assert_eq!(slow.ask(&input).await, input);
        }
        let mut refused = 0;
        let mut taken = String::new();
        while refused + taken.lines().count() < 200 {
            match fast.recv().await {
                Frame::Error { code, .. } => {
                    assert_eq!(code, "rate");
                    refused += 1;
                }
                Frame::Text(text) => taken += &text,
                other => panic!("{other:?}"),
            }
        }
        let taken = taken.lines().count();
        let most = 31 + usize::try_from(started.elapsed().as_secs() / 2).expect("small");
        assert!((30..=most).contains(&taken), "{taken} of 200 taken, at most {most} fit the rate");
    });
}

#[test]
fn fd_reuse_mixes_no_users_while_some_come_and_go() {
    block_on(async {
        let net = Net::up_with(3, record(), plain).await;
        let mut users = join_all((0..30).map(|at| net.nodes[at % 3].user())).await;
        for round in 0..5 {
            let inputs: Vec<String> = (0..users.len())
                .map(|at| format!("{round} {}\n", users[at].key.user_key().to_string().repeat(at % 7)))
                .collect();
            join_all(users.iter_mut().zip(&inputs).map(async |(user, input)| {
                assert_eq!(user.ask(input).await, *input);
            }))
            .await;
            // Half say goodbye, half are just gone.
            for (at, user) in users.drain(..10).enumerate() {
                if at % 2 == 0 {
                    user.client.close().await;
                }
            }
            users.extend(join_all((0..10).map(|at| net.nodes[at % 3].user())).await);
        }
        net.agree().await;
        assert!(recorded(&net.nodes[0]).values().all(|count| *count == 1));
        assert_eq!(recorded(&net.nodes[0]).len(), 150);
    });
}

#[test]
fn npl_and_exit_at_once_harms_nobody() {
    block_on(async {
        let net = Net::up(3).await;
        let mut user = net.nodes[0].user().await;
        for round in 1..=5 {
            assert_eq!(user.ask("npl").await, format!("3 {}", 3 * round));
        }
        net.agree().await;
    });
}

#[test]
fn npl_reaches_every_node_and_ends_when_all_have_spoken_or_at_the_window() {
    block_on(async {
        let mut net = Net::up_with(4, probe(), |_, config| {
            config.set("consensus.threshold", "75").set("contract.npl_window_ms", "20000");
        })
        .await;
        let heard = async |net: &Net, at: usize, count: usize| {
            let log = net.nodes[at].dir.join("log/contract/stdout.log");
            let line = format!("heard {count}\n");
            until("the log is written", async || {
                fs::read_to_string(&log).unwrap_or_default().contains(&line).then_some(())
            })
            .await;
        };
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("talk").await, "4 4");
        net.agree().await;
        for at in 0..4 {
            heard(&net, at, 4).await;
        }
        // With one silent the end comes by time. A short one, for a new chain: the window is shared.
        net = Net::up_with(4, probe(), |_, config| {
            config.set("consensus.threshold", "75").set("contract.npl_window_ms", "300");
        })
        .await;
        net.nodes[3].kill().await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("talk").await, "4 4");
        net.agree().await;
        heard(&net, 0, 3).await;
    });
}

#[test]
fn a_fifo_in_state_is_refused_alike_and_rolled_back() {
    block_on(async {
        let net = Net::up(2).await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        user.send("fifo").await;
        let (code, message) = user.error().await;
        assert_eq!(code, "contract_failed");
        assert!(message.contains("state"), "{message}");
        assert_eq!(user.ask("more").await, "4 8");
        net.agree().await;
        for node in &net.nodes {
            assert!(!node.dir.join("state/fifo").exists());
        }
    });
}

#[test]
fn big_input_of_more_than_a_ledger_takes_goes_into_the_next_ones() {
    block_on(async {
        let net = Net::up_with(3, record(), plain).await;
        // 24 MiB at once, where a ledger takes 16.
        let mut users = join_all((0..24).map(|at| net.nodes[at % 2].user())).await;
        let input = "b".repeat((1 << 20) - 1) + "\n";
        join_all(users.iter_mut().map(async |user| {
            user.send(input.clone()).await;
            assert!(user.text().await == input);
        }))
        .await;
        net.agree().await;
        for node in &net.nodes {
            assert!(node.state("log") == net.nodes[0].state("log"));
            assert_eq!(node.state("log").lines().count(), 24);
        }
    });
}

#[test]
fn sub_folder_in_state_and_exit_status_are_agreed_and_survive_a_restart() {
    block_on(async {
        let mut net = Net::up(3).await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("folder").await, "6 6");
        // Behind the folder in one state: a run that failed leaves it as it was.
        user.send("fail").await;
        assert!(user.error().await.1.contains("exit code 3"));
        net.agree().await;
        net.kill_all().await;
        net.start_all().await;
        assert_eq!(net.nodes[1].user().await.ask("more").await, "4 10");
        net.agree().await;
        for node in &net.nodes {
            assert_eq!(node.state("deep/er/file"), "in a sub-folder");
            assert_eq!(node.state("inputs"), "10");
        }
    });
}

#[test]
fn history_pruning_a_restart_goes_on_at_the_last_ledger() {
    block_on(async {
        let mut net = Net::up_with(2, record(), plain).await;
        let mut user = net.nodes[0].user().await;
        for number in 0..60 {
            let input = format!("{number}\n");
            assert_eq!(user.ask(&input).await, input);
        }
        let (before, _) = net.agree().await;
        assert!(before >= 60);
        for node in &mut net.nodes {
            node.signal(nix::sys::signal::Signal::SIGTERM);
            assert_eq!(node.ended().await, Some(0));
        }
        net.start_all().await;
        // Neither can have learnt it from the other: both were down.
        for node in &net.nodes {
            let first = node.seq().await;
            assert!(first >= before, "it begins at {first}, after {before}");
        }
        assert_eq!(net.nodes[1].user().await.ask("more\n").await, "more\n");
        let (after, _) = net.agree().await;
        assert!(after > before);
        assert_eq!(recorded(&net.nodes[0]).len(), 61);
    });
}

#[test]
fn private_key_to_the_contract_is_not_given() {
    block_on(async {
        let net = Net::up(1).await;
        let node = &net.nodes[0];
        assert_eq!(node.user().await.ask("dump").await, "4 4");
        let (json, environment) = (node.state("json"), node.state("environment"));
        let secret = node.secret.as_ref().expect("made here");
        for text in [&json, &environment] {
            let text = text.to_lowercase();
            assert!(!text.contains(&hex::encode(secret.seed())) && !text.contains("seckey"), "{text}");
        }
        assert!(json.contains(&secret.node_key().to_string()), "the public key is");
        let mut names: Vec<&str> = environment.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        names.sort_unstable();
        assert_eq!(names, ["HOME", "LANG", "PATH", "TMPDIR", "TZ"]);
    });
}

#[test]
fn users_beyond_64_are_served_each_with_its_own() {
    block_on(async {
        let net = Net::up_with(3, record(), plain).await;
        let mut users = join_all((0..200).map(|at| net.nodes[at % 3].user())).await;
        join_all(users.iter_mut().map(async |user| {
            let input = format!("I am {}\n", user.key.user_key());
            assert_eq!(user.ask(&input).await, input);
        }))
        .await;
        net.agree().await;
        let status = net.nodes[0].status_where("all users are known", |status| status["users"] == 200).await;
        assert_eq!(status["local_users"], 67);
        // The contract reaches users that sent nothing, and each of them once.
        users[0].send("push\n").await;
        assert_eq!(users[0].text().await, "push\npushed\n");
        join_all(users[1..].iter_mut().map(async |user| assert_eq!(user.text().await, "pushed\n"))).await;
        let keys: BTreeSet<UserKey> = users.iter().map(|user| user.key.user_key()).collect();
        assert_eq!((keys.len(), recorded(&net.nodes[2]).len()), (200, 201));
    });
}

#[test]
fn all_interfaces_a_node_listens_on_its_address_alone() {
    block_on(async {
        let net = Net::up_with(1, probe(), |_, config| {
            config.set("ip", "\"127.0.0.2\"");
        })
        .await;
        let node = &net.nodes[0];
        let status = node.status_where("the node answers", |status| status["seq"].is_u64()).await;
        let ports = ["peer_address", "user_address"].map(|key| status[key].as_str().expect("text").to_owned());
        assert!(ports.iter().all(|port| port.starts_with("127.0.0.2:")), "{ports:?}");
        assert_eq!(listening(node.pid()), BTreeSet::from(ports), "these and no others");
        assert_eq!(node.user().await.ask("x").await, "1 1");
    });
}

/// The addresses on which a process accepts TCP connections, as the kernel has them.
fn listening(pid: u32) -> BTreeSet<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").flatten();
    let links = descriptors.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_str()?.to_owned()));
    let sockets: BTreeSet<String> =
        links.filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        for line in fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == "0A" && sockets.contains(fields[9]) {
                found.insert(address(fields[1]));
            }
        }
    }
    found
}

/// `0200007F:1F90` is 127.0.0.2:8080. An IPv6 address stays as it is.
fn address(field: &str) -> String {
    let (ip, port) = field.split_once(':').expect("address and port");
    let port = u16::from_str_radix(port, 16).expect("a port");
    match u32::from_str_radix(ip, 16) {
        Ok(ip) => SocketAddr::from((ip.to_ne_bytes(), port)).to_string(),
        Err(_) => format!("[{ip}]:{port}"),
    }
}
