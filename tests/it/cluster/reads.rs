//! Read-only runs on real nodes: whole states, no effects, no harm to rounds, and nothing left behind.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use futures::future::join_all;
use hotpocket::{
    config::Document,
    signed::{ReadFate, ReadReason, ReadResult},
    types::Seq,
};
use nix::sys::signal::Signal;

use crate::net::{Net, SignedUser, TestNode, ask, block_on, call, copy_program, is_alive, until};

/// A node's settings, beside those of all.
fn with<'a>(settings: &'a [(&'a str, &'a str)]) -> impl Fn(usize, &mut Document) + 'a {
    move |_, document| {
        for (key, value) in settings {
            document.set(key, value);
        }
    }
}

/// What the contract said: the number in its state, the ledger it was told, and the files it saw.
fn parsed(result: &ReadResult) -> (Seq, u64, u64, u64) {
    let ReadFate::Ok { seq, payload, .. } = &result.fate else { panic!("no answer: {result:?}") };
    let text = String::from_utf8(payload.0.clone()).expect("text");
    let numbers: Vec<u64> = text.split(' ').map(|word| word.parse().unwrap_or_else(|_| panic!("{text}"))).collect();
    (*seq, numbers[0], numbers[1], numbers[2])
}

/// The ledger that an answer is of: it is that of the whole state that the contract saw.
fn ledger_of(result: &ReadResult) -> Seq {
    let (seq, number, told, files) = parsed(result);
    assert_eq!((number, told, files), (seq, seq, 8), "{result:?}");
    seq
}

async fn asked(user: &mut SignedUser, text: &str) -> ReadResult {
    user.question(7, text).await;
    let result = user.answered().await;
    assert_eq!(result.id, 7);
    result
}

async fn user(node: &TestNode) -> SignedUser {
    node.signed(&hotpocket::crypto::SecretKey::generate()).await
}

/// Has one ledger closed and its result agreed on: which.
async fn ledger(user: &mut SignedUser, nonce: u64) -> Seq {
    let input = user.input(nonce, "x");
    user.send(&input).await;
    let seq = user.accepted(nonce).await;
    user.executed().await;
    seq
}

fn reason(result: ReadResult) -> ReadReason {
    match result.fate {
        ReadFate::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn failure(result: ReadResult) -> String {
    match result.fate {
        ReadFate::Failed { run, .. } => run,
        other => panic!("{other:?}"),
    }
}

#[test]
fn many_questions_at_once_see_whole_states_while_ledgers_close_and_move_none() {
    block_on(async {
        // The third node has no reads: would they change anything, it would have another state.
        let net = Net::up_with(3, ask(), |node, document| {
            document.set("contract.state_backend", ["\"auto\"", "\"shadow\"", "\"shadow\""][node]);
        })
        .await;
        let works = net.nodes[0].status().await.expect("a status")["state_kept"]["why"].to_string();
        let mut net = net;
        if works.contains("overlay works") {
            net.nodes[0].signal(Signal::SIGTERM);
            net.nodes[0].ended().await;
            net.nodes[0].edit_config(|text| text.replace("state_backend = \"auto\"", "state_backend = \"overlay\""));
            net.start_all().await;
        }
        for node in &net.nodes[..2] {
            let mut writer = user(node).await;
            let mut readers = join_all((0..3).map(|_| user(node))).await;
            let first = ledger(&mut writer, 0).await;
            let is_written = Cell::new(false);
            let reading = join_all(readers.iter_mut().map(async |reader| {
                let mut seen = BTreeSet::new();
                for turn in 0.. {
                    if is_written.get() {
                        break;
                    }
                    for id in 0..4 {
                        reader.question(id, if turn % 2 == 0 { "write" } else { "npl" }).await;
                    }
                    let mut ids = BTreeSet::new();
                    for _ in 0..4 {
                        let result = reader.answered().await;
                        ids.insert(result.id);
                        seen.insert(ledger_of(&result));
                    }
                    assert_eq!(ids, BTreeSet::from([0, 1, 2, 3]));
                }
                seen
            }));
            let writing = async {
                for nonce in 1..9 {
                    let closed = ledger(&mut writer, nonce).await;
                    // Who has its output reads its own write.
                    let seen = ledger_of(&asked(&mut writer, "").await);
                    assert!(seen >= closed, "ledger {closed} was answered, and the state read is that of {seen}");
                }
                is_written.set(true);
            };
            let (seen, ()) = tokio::join!(reading, writing);
            let seen: BTreeSet<Seq> = seen.into_iter().flatten().collect();
            assert!(seen.len() > 4 && seen.first() >= Some(&first), "{seen:?}");
        }
        net.agree().await;
        let roots = join_all(net.nodes.iter().map(async |node| node.status().await.unwrap()["unl"].to_string())).await;
        assert!(roots.iter().all(|unl| *unl == roots[0]), "no question changes the UNL: {roots:?}");
    });
}

#[test]
fn a_question_that_hangs_holds_up_neither_ledgers_nor_others_and_dies_with_its_session_and_its_node() {
    block_on(async {
        let mut net = Net::up_with(1, ask(), with(&[("user.read_time_s", "300")])).await;
        let node = &net.nodes[0];
        let mut writer = user(node).await;
        ledger(&mut writer, 0).await;
        let mut hanging = user(node).await;
        hanging.question(1, "hang").await;
        until("the question hangs", async || (!node.reads().is_empty()).then_some(())).await;
        for nonce in 1..6 {
            let closed = ledger(&mut writer, nonce).await;
            assert!(ledger_of(&asked(&mut writer, "").await) >= closed);
        }
        let hung = node.reads();
        assert!(!hung.is_empty(), "it still hangs");
        drop(hanging);
        until("it dies with its session", async || node.reads().is_empty().then_some(())).await;

        let mut hanging = user(node).await;
        hanging.question(1, "hang").await;
        until("another one hangs", async || (!node.reads().is_empty()).then_some(())).await;
        let processes = [node.reads(), crate::net::children(node.pid())].concat();
        let node = &mut net.nodes[0];
        node.kill().await;
        until("all die with the node", async || (!processes.iter().any(|pid| is_alive(*pid))).then_some(())).await;
        assert!(node.dir.join("reads").exists(), "nobody could remove it");
        node.start().await;
        assert!(!node.dir.join("reads").exists(), "the next start does");
        let mut writer = user(node).await;
        ledger(&mut writer, 100).await;
        ledger_of(&asked(&mut writer, "").await);
        node.signal(Signal::SIGTERM);
        node.ended().await;
        assert!(!node.dir.join("reads").exists() && node.reads().is_empty(), "an orderly end leaves nothing");
    });
}

#[test]
fn nothing_that_a_question_does_stays_and_every_limit_ends_it() {
    block_on(async {
        let settings = [("user.read_time_s", "1"), ("contract.output_user_mb", "1"), ("user.reads_max", "1")];
        let mut net = Net::new(1, Path::new("bin/contract"), with(&settings));
        let bin = net.nodes[0].dir.join("bin");
        fs::create_dir(&bin).expect("a folder");
        copy_program(ask(), &bin.join("contract"));
        net.start_all().await;
        let node = &net.nodes[0];
        let mut writer = user(node).await;
        assert_eq!(reason(asked(&mut writer, "").await), ReadReason::NotReady, "no ledger was run yet");
        ledger(&mut writer, 0).await;
        // All in one place, one after the other.
        for (word, end) in [
            ("write", None),
            ("fork", None),
            ("npl", None),
            ("pile", None),
            ("flood", Some("output limit")),
            ("fail", Some("exit code 3")),
            ("hang", Some("time limit")),
        ] {
            let result = asked(&mut writer, word).await;
            match end {
                None => drop(ledger_of(&result)),
                Some(end) => assert_eq!(failure(result), end, "{word}"),
            }
            assert_eq!(node.reads(), Vec::<u32>::new(), "{word} leaves no process");
            ledger_of(&asked(&mut writer, "").await);
        }
        let there = |path: &str| fs::read_dir(node.dir.join(path)).expect("a folder").count();
        assert_eq!((there("state"), there("bin")), (8, 1), "nothing reaches the contract's own folder");
        assert_eq!(there("reads/1/tmp"), 0);

        // One runs and seven wait, and no more.
        for id in 0..10 {
            writer.question(id, if id == 0 { "hang" } else { "" }).await;
        }
        let mut refused = BTreeSet::new();
        for _ in 0..10 {
            let result = writer.answered().await;
            if matches!(result.fate, ReadFate::Refused { .. }) {
                refused.insert(result.id);
                assert_eq!(reason(result), ReadReason::Busy);
            }
        }
        assert_eq!(refused, BTreeSet::from([8, 9]));
    });
}

#[test]
fn hp_client_asks_a_question_and_a_node_may_answer_none() {
    block_on(async {
        let net = Net::up_with(2, ask(), |node, document| {
            if node == 1 {
                document.set("user.reads_max", "0");
            }
        })
        .await;
        let mut writer = user(&net.nodes[0]).await;
        let closed = ledger(&mut writer, 0).await;
        let told = call(&["client", &net.nodes[0].url, "--read", "hello"]).await;
        let numbers: Vec<u64> = told.out.trim().split(' ').map(|word| word.parse().unwrap()).collect();
        assert!(told.code == Some(0) && numbers[0] == numbers[1] && numbers[0] >= closed, "{told:?}");
        let told = call(&["client", &net.nodes[0].url, "--read", "fail"]).await;
        assert!(told.code == Some(1) && told.out.is_empty() && told.err.contains("exit code 3"), "{told:?}");
        let told = call(&["client", &net.nodes[1].url, "--read", "hello"]).await;
        assert!(told.code == Some(1) && told.err.contains("reads_max = 0"), "{told:?}");
    });
}

#[test]
fn a_question_is_answered_as_the_user_that_the_contract_runs_as_who_owns_that_copy_too() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("not tried: only root can run a contract as another user");
    }
    block_on(async {
        let mut net = Net::new(1, ask(), with(&[("contract.run_as", "\"4242:4343\"")]));
        let dir = net.nodes[0].dir.clone();
        for folder in [&*dir, dir.parent().expect("a folder"), ask().parent().expect("a folder")] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).unwrap();
        }
        net.start_all().await;
        let mut writer = user(&net.nodes[0]).await;
        // The copy is made, and put right again after what the question did to it: it changes, links and locks what it owns.
        for nonce in 0..3 {
            let closed = ledger(&mut writer, nonce).await;
            assert!(ledger_of(&asked(&mut writer, "write").await) >= closed);
        }
        let copy = dir.join("reads/1/state");
        let owner = |path: &Path| fs::symlink_metadata(path).map(|meta| (meta.uid(), meta.gid())).unwrap();
        assert_eq!((owner(&copy), owner(&copy.join("1"))), ((4242, 4343), (4242, 4343)));
        assert_eq!(owner(&dir.join("reads/1")), (0, 0));
    });
}
