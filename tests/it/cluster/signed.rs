//! Signed mode on real nodes: every output is proven, every input takes effect once, whatever dies meanwhile.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, process::Stdio};

use futures::future::join_all;
use hotpocket::{
    cli::client::{ClientError, Pins, SignedClient},
    consensus::header::Header,
    crypto::SecretKey,
    signed::{AnswerBody, Executed, Fate, InputState, Query, Reason, Reply, Request},
    types::{Hash, Seq},
    wire,
};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

use crate::net::{DEADLINE, Ended, Net, SignedUser, block_on, call, hp, plain, probe, record, until};

/// A user whose key is the same in every run.
fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

/// The lines of this user that the contract of `record` has read.
fn recorded(net: &Net, node: usize, user: &SecretKey) -> Vec<String> {
    let short = user.user_key().short();
    let log = net.nodes[node].state("log");
    log.lines().filter_map(|line| Some(line.strip_prefix(&short)?.trim_start().to_owned())).collect()
}

#[test]
fn a_signed_input_is_answered_with_proofs_through_every_node() {
    block_on(async {
        let net = Net::up(4).await;
        let mut total = 0;
        for node in &net.nodes {
            let mut user = node.signed(&SecretKey::generate()).await;
            assert_eq!(user.client.welcome().unl.len(), 4);
            let hello = user.input(1, "hello");
            user.send(&hello).await;
            total += 5;
            let seq = user.accepted(1).await;
            assert_eq!(user.output().await, (seq, format!("5 {total}")));
            let executed = user.executed().await;
            assert_eq!((executed.seq, executed.run.ok), (seq, true));
        }
        net.agree().await;
    });
}

#[test]
fn the_contract_is_told_who_signed_each_input() {
    block_on(async {
        let net = Net::up(1).await;
        let mut user = net.nodes[0].signed(&key(10)).await;
        let dump = user.input(1, "dump");
        user.send(&dump).await;
        user.output().await;
        let auth = format!("\"{}\":\"signed\"", user.key.user_key());
        let json = net.nodes[0].state("json");
        assert!(json.contains(&auth), "{json}");
    });
}

#[test]
fn the_same_signed_bytes_at_three_nodes_at_once_are_executed_once_and_accepted_at_all() {
    block_on(async {
        let mut net = Net::up_with(3, record(), plain).await;
        let me = key(1);
        let mut sessions = join_all(net.nodes.iter().map(|node| node.signed(&me))).await;
        let mut last = 0;
        for round in 0..10 {
            let request = sessions[0].input(round, &format!("line {round}\n"));
            join_all(sessions.iter_mut().map(|session| session.send(&request))).await;
            let accepted = join_all(sessions.iter_mut().map(|session| session.accepted(round))).await;
            assert!(accepted.iter().all(|seq| *seq == accepted[0]), "{accepted:?}");
            let outputs = join_all(sessions.iter_mut().map(|session| session.output())).await;
            assert!(outputs.iter().all(|output| *output == (accepted[0], format!("line {round}\n"))), "{outputs:?}");
            // Again, now that it is in a ledger: what became of it, and nothing else.
            sessions[1].send(&request).await;
            assert_eq!(sessions[1].accepted(round).await, accepted[0]);
            // Another input with its number is none of ours to take.
            let other = sessions[2].input(round, "other\n");
            sessions[2].executed().await;
            sessions[2].send(&other).await;
            assert_eq!(sessions[2].rejected(round).await, Reason::NonceUsed);
            last = accepted[0];
        }
        net.agree().await;
        for node in 0..3 {
            let expected: Vec<String> = (0..10).map(|round| format!("line {round}")).collect();
            assert_eq!(recorded(&net, node, &me), expected);
        }

        // After a power cut of all nodes the same bytes are still known for what they are.
        let request = sessions[0].input(9, "line 9\n");
        net.kill_all().await;
        net.start_all().await;
        let mut session = net.nodes[1].signed(&me).await;
        session.send(&request).await;
        assert_eq!(session.accepted(9).await, last);
        assert_eq!(run_of(&mut session, 9).await, (last, "ok".to_owned()));
        let after = session.input(100, "after\n");
        session.send(&after).await;
        session.accepted(100).await;
        assert_eq!(session.output().await.1, "after\n");
        net.agree().await;
        assert_eq!(recorded(&net, 2, &me).len(), 11, "none of them twice");
    });
}

/// In which ledger the node says that an input is, and how it says, and proves, that the run ended.
async fn run_of(user: &mut SignedUser, nonce: u64) -> (Seq, String) {
    until("the input's run is agreed on", async || {
        let AnswerBody::Input { state, .. } = user.ask(Query::Input { nonce }).await else { panic!("another answer") };
        let InputState::Accepted { seq, ledger, run: Some(run), .. } = state else { return None };
        assert_eq!(user.client.trust().check_run(seq, ledger.0, &run), Ok(true));
        Some((seq, run.status))
    })
    .await
}

#[test]
fn who_was_away_gets_the_outputs_since_page_by_page_with_proofs() {
    block_on(async {
        let mut net = Net::up_with(3, record(), plain).await;
        let me = key(2);
        let mut user = net.nodes[0].signed(&me).await;
        let request = user.input(0, "before\n");
        user.send(&request).await;
        let before = user.accepted(0).await;
        user.output().await;
        // More than a page, sent here and read nowhere: the session ends at once.
        let long = "x".repeat(100_000);
        let mut last = before;
        for nonce in 1..=8 {
            let request = user.input(nonce, &format!("{nonce} {long}\n"));
            user.send(&request).await;
            last = user.accepted(nonce).await;
        }
        drop(user);
        // Another node tells, also after a restart.
        net.nodes[1].kill().await;
        net.nodes[1].start().await;
        let mut back = net.nodes[1].signed(&me).await;
        let (mut since, mut got, mut pages) = (before, String::new(), 0);
        loop {
            let page = if pages == 0 {
                back.outputs_since(since, last.min(since + 1)).await
            } else {
                let AnswerBody::Outputs(page) = back.ask(Query::Outputs { since }).await else { panic!("a page") };
                page
            };
            for output in &page.outputs {
                assert!(output.seq > since && output.seq <= page.to);
                got += std::str::from_utf8(&output.payload.0).expect("text");
            }
            assert_eq!((page.missing.len(), page.kept_from), (0, 1));
            since = page.to;
            pages += 1;
            if !page.more && page.to >= last {
                break;
            }
        }
        assert!(pages > 1, "one answer is bounded");
        let expected: String = (1..=8).map(|nonce| format!("{nonce} {long}\n")).collect();
        assert!(got == expected, "{} bytes instead of {}", got.len(), expected.len());
        // Nobody else's are among them.
        let mut stranger = net.nodes[2].signed(&key(3)).await;
        let page = stranger.outputs_since(0, last).await;
        assert_eq!(page.outputs, []);
    });
}

#[test]
fn each_wrong_input_is_rejected_with_its_reason_and_harms_nobody() {
    block_on(async {
        let net = Net::up_with(2, record(), |_, config| {
            config.set("pubmaxsize", "100");
        })
        .await;
        let mut user = net.nodes[0].signed(&key(4)).await;
        let limits = user.client.welcome().limits;
        assert_eq!((limits.payload_bytes, limits.input_window), (100, 65_536));

        let Request::Input(mut wrong) = user.input(1, "x\n") else { unreachable!("an input") };
        wrong.nonce = 2;
        user.send(&Request::Input(wrong)).await;
        assert_eq!(user.rejected(2).await, Reason::BadSig);
        let long = user.input(3, &"x".repeat(101));
        user.send(&long).await;
        assert_eq!(user.rejected(3).await, Reason::TooLarge);
        let past = user.input_until(4, user.client.welcome().seq, "x\n");
        user.send(&past).await;
        assert_eq!(user.rejected(4).await, Reason::Expired);
        let far = user.input_until(5, user.client.welcome().seq + 1_000_000, "x\n");
        user.send(&far).await;
        assert_eq!(user.rejected(5).await, Reason::TooFar);
        for malformed in ["null", "{}", "[]", "hello", &json!({"type": "query", "what": "everything"}).to_string()] {
            user.client.send_text(malformed.to_owned()).await.expect("sent");
            let Reply::Error(error) = user.recv().await else { panic!("an error") };
            assert_eq!(error.code, "bad_format", "{malformed}");
        }
        // Another's signature is worth nothing here.
        let other = net.nodes[0].signed(&key(5)).await.input(6, "x\n");
        user.send(&other).await;
        assert_eq!(user.rejected(6).await, Reason::BadSig);
        assert_eq!(
            user.ask(Query::Input { nonce: 6 }).await,
            AnswerBody::Input { nonce: 6, state: InputState::Unknown }
        );

        let good = user.input(7, "good\n");
        user.send(&good).await;
        let seq = user.accepted(7).await;
        assert_eq!(user.output().await, (seq, "good\n".to_owned()));
        net.agree().await;
        assert_eq!(recorded(&net, 1, &user.key), ["good"]);
    });
}

#[test]
fn questions_are_answered_from_the_chain() {
    block_on(async {
        let net = Net::up_with(2, record(), plain).await;
        let mut user = net.nodes[1].signed(&key(6)).await;
        let request = user.input(1, "x\n");
        user.send(&request).await;
        let seq = user.accepted(1).await;
        let AnswerBody::Lcl { seq: last, .. } = user.ask(Query::Lcl).await else { panic!("the last ledger") };
        assert!(last >= seq);
        let AnswerBody::Ledger { ledger: Some(ledger), .. } = user.ask(Query::Ledger { seq }).await else {
            panic!("the ledger")
        };
        let header: Header = wire::decode(&ledger.header.0).expect("a header");
        assert_eq!((header.seq, header.hash(), header.n_inputs), (seq, ledger.hash.0, 1));
        assert_eq!(ledger.sigs.len(), 2);
        for nowhere in [seq + 1_000_000, u64::MAX, 0] {
            let answer = user.ask(Query::Ledger { seq: nowhere }).await;
            assert_eq!(answer, AnswerBody::Ledger { seq: nowhere, ledger: None });
        }
        // Many at once: each has its answer, an error where it is too many.
        for _ in 0..200 {
            user.client.ask(Query::Outputs { since: 0 }).await.expect("sent");
        }
        let (mut answers, mut busy) = (0, 0);
        while answers + busy < 200 {
            match user.recv().await {
                Reply::Answer(_) => answers += 1,
                Reply::Error(error) if error.code == "busy" => busy += 1,
                Reply::Output(_) | Reply::Executed(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(answers > 0);
    });
}

#[test]
fn a_network_of_signed_inputs_refuses_raw_ones_and_an_observer_passes_signed_ones_on() {
    block_on(async {
        // The last one is no member.
        let net = Net::up_with(4, record(), |at, config| {
            config.set("user.inputs", "\"signed\"");
            let text = config.text().to_owned();
            let unl: Vec<hotpocket::types::NodeKey> = members(&text);
            config.set_list("unl", &unl[..3]);
            assert!(at < 4);
        })
        .await;
        let mut raw = net.nodes[0].user().await;
        raw.send("raw\n").await;
        let (code, message) = raw.error().await;
        assert_eq!(code, "refused");
        assert!(message.contains("\"mode\":\"signed\""), "{message}");

        let status = net.nodes[3].status_where("it observes", |status| status["role"] == "observer").await;
        assert_eq!(status["unl"].as_array().expect("a list").len(), 3);
        let mut user = net.nodes[3].signed(&key(7)).await;
        let request = user.input(1, "through an observer\n");
        user.send(&request).await;
        let seq = user.accepted(1).await;
        assert_eq!(user.output().await, (seq, "through an observer\n".to_owned()));
        net.agree().await;
        assert_eq!(recorded(&net, 0, &user.key), ["through an observer"]);
    });
}

/// The keys of a configuration's list `unl`.
fn members(config: &str) -> Vec<hotpocket::types::NodeKey> {
    let list = config.split_once("\nunl = [").expect("a list").1.split_once(']').expect("its end").0;
    list.split(',').filter_map(|key| key.trim().trim_matches('"').parse().ok()).collect()
}

#[test]
fn a_user_who_pins_a_network_takes_no_other_for_it() {
    block_on(async {
        let net = Net::up(2).await;
        let node = &net.nodes[0];
        let first = node.signed(&key(8)).await;
        let (chain, unl) = (first.client.trust().chain_id(), first.client.trust().unl().to_vec());
        let connect = async |pins: Pins| SignedClient::connect(&node.url, &key(8), &pins).await;
        let right = Pins { chain: Some(chain), unl: Some(unl.clone()) };
        assert!(connect(right).await.is_ok() && connect(Pins { chain: Some(chain), unl: None }).await.is_ok());
        for wrong in
            [Pins { chain: Some(Hash([1; 32])), unl: None }, Pins { chain: None, unl: Some(unl[..1].to_vec()) }]
        {
            let Err(ClientError::Trust { .. }) = connect(wrong).await else { panic!("trusted") };
        }
        let pinned = call(&["client", &node.url, "--chain", &"01".repeat(32), "--once", "hello"]).await;
        assert_eq!((pinned.code, pinned.out.as_str()), (Some(1), ""));
        assert!(pinned.err.contains(&chain.to_string()), "{}", pinned.err);
        let pinned = call(&["client", &node.url, "--chain", &chain.to_string(), "--once", "hello"]).await;
        assert_eq!((pinned.code, pinned.out.as_str()), (Some(0), "5 5\n"), "{}", pinned.err);
    });
}

#[test]
fn hp_client_goes_on_at_another_node_when_its_own_dies_and_no_input_is_lost_or_repeated() {
    block_on(async {
        let mut net = Net::up_with(4, record(), |_, config| {
            config.set("consensus.threshold", "75");
        })
        .await;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("client.key");
        let path = path.to_str().expect("UTF-8");
        let urls: Vec<&str> = net.nodes[..2].iter().map(|node| node.url.as_str()).collect();
        let mut client = Command::new(hp())
            .args(["client", &urls.join(","), "--node", &net.nodes[2].url, "--key", path, "--timeout", "50"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("hp starts");
        let mut input = client.stdin.take().expect("piped");
        let mut output = BufReader::new(client.stdout.take().expect("piped")).lines();
        let mut told = BufReader::new(client.stderr.take().expect("piped")).lines();
        for number in 0..100 {
            input.write_all(format!("{number}\n").as_bytes()).await.expect("it reads");
            if number == 50 {
                // Some have had their answers, the others are anywhere.
                let first = timeout(DEADLINE, output.next_line()).await.expect("in time").expect("text");
                assert_eq!(first.as_deref(), Some("0"));
                net.nodes[0].kill().await;
            }
        }
        drop(input);
        for number in 1..100 {
            let line = timeout(DEADLINE, output.next_line()).await.expect("in time").expect("text");
            assert_eq!(line, Some(number.to_string()));
        }
        let status = timeout(DEADLINE, client.wait()).await.expect("it ends").expect("a status");
        let mut notes = String::new();
        while let Ok(Some(line)) = told.next_line().await {
            notes += &line;
            notes.push('\n');
        }
        assert_eq!(status.code(), Some(0), "{notes}");
        assert_eq!(notes.matches("connected to").count(), 2, "{notes}");
        net.agree().await;
        let secret = SecretKey::parse(std::fs::read_to_string(path).expect("a key").trim()).expect("a key");
        let expected: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(recorded(&net, 1, &secret), expected, "each once, in order");
    });
}

#[test]
fn hp_client_once_gets_its_answer_from_the_second_node_when_the_first_one_dies_with_the_input() {
    block_on(async {
        let mut net = Net::up_with(4, probe(), |_, config| {
            config.set("consensus.threshold", "75");
        })
        .await;
        // The run waits for its gate at all nodes, so that the input is accepted and its answer is not there yet.
        let urls = format!("{},{}", net.nodes[0].url, net.nodes[1].url);
        let asking = tokio::spawn(async move { call(&["client", &urls, "--timeout", "55", "--once", "wait"]).await });
        net.nodes[0].contract_runs().await;
        net.nodes[0].signal(Signal::SIGKILL);
        net.nodes[0].ended().await;
        for node in &net.nodes {
            std::fs::write(node.dir.join("gate"), "").expect("written");
        }
        let asked = asking.await.expect("it ends");
        assert_eq!((asked.code, asked.out.as_str()), (Some(0), "4 4\n"), "{}", asked.err);
        net.agree().await;
        assert_eq!(net.nodes[2].state("inputs"), "4", "once");
    });
}

/// Whether the node proves that the run of this ledger failed so.
fn assert_proven(user: &SignedUser, executed: &Executed, seq: Seq, status: &str) {
    assert_eq!((executed.seq, executed.run.ok, executed.run.status.as_str()), (seq, false, status));
    assert_eq!(user.client.trust().check_run(seq, executed.ledger.0, &executed.run), Ok(true));
}

#[test]
fn the_contracts_failure_reaches_users_here_elsewhere_and_later_with_its_proof() {
    block_on(async {
        let mut net = Net::up(3).await;
        let me = key(9);
        let mut user = net.nodes[0].signed(&me).await;
        let mut elsewhere = net.nodes[1].signed(&me).await;
        let mut raw = net.nodes[2].session(me.clone()).await;
        let request = user.input(1, "fail");
        user.send(&request).await;
        let seq = user.accepted(1).await;
        let executed = user.executed().await;
        assert_proven(&user, &executed, seq, "exit code 3");
        let executed = elsewhere.executed().await;
        assert_proven(&elsewhere, &executed, seq, "exit code 3");
        assert_eq!(raw.error().await.0, "contract_failed", "in raw mode at yet another node");
        // Now, while it is the last ledger, and when the next one proves it.
        for outputs in 0..2 {
            let page = user.outputs_since(0, seq).await;
            assert_eq!((page.outputs.len(), page.failed.len()), (outputs, 1));
            assert_proven(&user, &page.failed[0], seq, "exit code 3");
            assert_eq!(run_of(&mut elsewhere, 1).await, (seq, "exit code 3".to_owned()));
            let more = user.input(100 + outputs as u64, "more");
            user.send(&more).await;
            user.output().await;
        }
        // Others had nothing in it.
        let mut stranger = net.nodes[1].signed(&key(3)).await;
        assert_eq!(stranger.outputs_since(0, seq).await.failed, []);
        let raw = call(&["client", &net.nodes[0].url, "--raw", "--once", "fail"]).await;
        assert_eq!(raw.code, Some(1), "{}", raw.err);

        // Who was away hears it from a node that was restarted, also by sending the same bytes again.
        net.kill_all().await;
        net.start_all().await;
        let mut back = net.nodes[2].signed(&me).await;
        let page = back.outputs_since(0, seq).await;
        assert_proven(&back, &page.failed[0], seq, "exit code 3");
        back.send(&request).await;
        let Reply::Status(status) = back.recv().await else { panic!("a status") };
        let Fate::Accepted { seq: again, run: Some(run), .. } = status.fate else { panic!("{status:?}") };
        assert_eq!((again, run.ok, run.status.as_str()), (seq, false, "exit code 3"));
        let out = call_as(&me, &["client", &net.nodes[2].url, "--since", "0"]).await;
        assert!(out.err.contains(&format!("the contract failed in ledger {seq} (exit code 3)")), "{}", out.err);
    });
}

/// Calls `hp client` with this key, and with nothing on its stdin.
async fn call_as(key: &SecretKey, args: &[&str]) -> Ended {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("client.key");
    let mut options = fs::File::options();
    let mut opened = options.create_new(true).write(true).mode(0o600).open(&file).expect("a file");
    writeln!(opened, "{}", hex::encode(key.seed())).expect("written");
    let with: Vec<&str> = args.iter().copied().chain(["--key", file.to_str().expect("UTF-8")]).collect();
    call(&with).await
}

#[test]
fn a_run_that_fails_after_its_host_was_killed_in_the_middle_is_told_to_the_user_who_comes_back() {
    block_on(async {
        let mut net = Net::up_with(3, probe(), |_, config| {
            config.set("contract.time_limit_s", "4");
        })
        .await;
        let me = key(11);
        let mut user = net.nodes[0].signed(&me).await;
        let request = user.input(1, "hang");
        user.send(&request).await;
        let seq = user.accepted(1).await;
        net.nodes[0].contract_runs().await;
        net.nodes[0].kill().await;
        drop(user);
        net.nodes[0].start().await;
        let (mut back, mut raw) = (net.nodes[0].signed(&me).await, net.nodes[0].session(me.clone()).await);
        let executed = back.executed().await;
        assert_proven(&back, &executed, seq, "time limit");
        let (code, message) = raw.error().await;
        assert!(code == "contract_failed" && message.contains("time limit"), "{code}: {message}");
        assert_eq!(run_of(&mut back, 1).await, (seq, "time limit".to_owned()));
        net.agree().await;
    });
}
