//! Networks that cannot go on, and do all the same after `hp recover`: split, without a quorum, on another executable.

use std::path::Path;

use hotpocket::{config::quoted, crypto::SecretKey, signed::Reason};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::net::{Ended, Net, TestNode, block_on, call, copy_program, probe};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Recovers a node's folder, and gives what the command says.
async fn recover(node: &TestNode, seq: u64, root: &str, more: &[&str]) -> Value {
    let told = try_recover(node, seq, root, more).await;
    assert_eq!(told.code, Some(0), "{}{}", told.out, told.err);
    serde_json::from_str(&told.out).expect("one JSON object")
}

async fn try_recover(node: &TestNode, seq: u64, root: &str, more: &[&str]) -> Ended {
    let seq = seq.to_string();
    node.call(&[&["recover", "--yes", "--json", "--seq", &seq, "--root", root], more].concat()).await
}

/// Where a node stands: its last ledger, and the state after its run.
fn stands(status: &Value) -> (u64, String) {
    (status["seq"].as_u64().expect("a number"), status["state_root"].as_str().expect("a hash").to_owned())
}

async fn verified(dir: &Path) -> String {
    let told = call(&["ledger", "verify", text(dir), "--json"]).await;
    assert_eq!(told.code, Some(0), "{}{}", told.out, told.err);
    let report: Value = serde_json::from_str(&told.out).expect("one JSON object");
    report["chain_id"].as_str().expect("a hash").to_owned()
}

#[test]
fn five_that_are_split_go_on_from_one_side_s_state_with_one_executable_and_take_no_input_twice() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let odd = folder.path().join("odd");
        copy_program(probe(), &odd);
        let mut net = Net::up_with(5, probe(), |at, config| {
            if at >= 3 {
                config.set("binary", &quoted(text(&odd)));
            }
        })
        .await;
        let key = SecretKey::generate();
        let mut signed = net.nodes[0].signed(&key).await;
        let input = signed.input(7, "seven77");
        signed.send(&input).await;
        signed.accepted(7).await;
        signed.executed().await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 11");
        net.agree().await;
        user.send("odd").await;
        for node in &net.nodes {
            node.status_where("it is split", |status| status["split"] == true).await;
        }
        let (seq, root) = stands(&net.nodes[0].status().await.expect("it is up"));
        let old = verified(&net.nodes[0].dir).await;
        let running = try_recover(&net.nodes[0], seq, &root, &[]).await;
        assert!(running.code == Some(5) && running.err.contains("is locked"), "{}", running.err);
        net.kill_all().await;

        // Two sides: who has not the state cannot go on from it without a copy.
        let none = try_recover(&net.nodes[4], seq, &root, &[]).await;
        assert!(none.code == Some(1) && none.err.contains("--state FOLDER"), "{}", none.err);
        let copy = folder.path().join("copy");
        assert!(
            std::process::Command::new("cp")
                .arg("-a")
                .arg(net.nodes[0].dir.join("state"))
                .arg(&copy)
                .status()
                .expect("cp")
                .success()
        );
        let binary = ["--binary", text(probe())];
        let copied = [&binary[..], &["--state", text(&copy)]].concat();
        let mut told = Vec::new();
        for node in &net.nodes[..3] {
            told.push(recover(node, seq, &root, &binary).await);
        }
        told.push(recover(&net.nodes[3], seq, &root, &copied).await);

        // The fifth was forgotten.
        net.start_all().await;
        let forgotten = net.nodes[4].logs(&["no link", "run `hp recover` with the same arguments here"]).await;
        assert!(forgotten.contains(told[0]["contract_id"].as_str().expect("a hash")), "{forgotten}");
        net.nodes[0].logs(&["no link", "its operator runs `hp recover`"]).await;
        net.nodes[4].kill().await;
        net.nodes[0].user().await.ask("x").await;
        told.push(recover(&net.nodes[4], seq, &root, &copied).await);
        for one in &told {
            let same = |key: &str| assert_eq!(one[key], told[0][key], "{key}");
            ["contract_id", "chain_id", "state_root", "unl", "binary", "keys", "users"].iter().copied().for_each(same);
        }
        net.nodes[4].start().await;
        net.agree().await;

        // The state goes on, with what the split ledger's run left on that side.
        let mut user = net.nodes[4].user().await;
        assert_eq!(user.ask("more").await, "4 19");
        let mut signed = net.nodes[3].signed(&key).await;
        let again = signed.input(7, "again");
        signed.send(&again).await;
        assert_eq!(signed.rejected(7).await, Reason::NonceUsed);
        let next = signed.input(8, "8");
        signed.send(&next).await;
        signed.accepted(8).await;
        user.send("odd").await;
        assert_eq!(user.text().await, "3 23");
        net.agree().await;
        for node in &net.nodes {
            assert_eq!(
                (node.state("inputs"), node.state("odd").rsplit('/').next()),
                ("23".to_owned(), Some(told[0]["binary"].as_str().expect("a path").trim_start_matches("bin/")))
            );
            assert_eq!(verified(&node.dir).await, told[0]["chain_id"].as_str().expect("a hash"));
            let before = node.dir.join("hist/before").join(&old[..8]);
            assert_eq!(verified(&before).await, old, "the old chain stays");
        }
    });
}

#[test]
fn two_of_five_go_on_by_themselves_when_the_others_are_lost_for_good() {
    block_on(async {
        let mut net = Net::up_with(5, probe(), |_, config| {
            config.set("roundtime", "300");
        })
        .await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        for node in &mut net.nodes[2..] {
            node.kill().await;
        }
        // What waits is in no ledger.
        user.send("lost").await;
        for node in &net.nodes[..2] {
            node.status_where("the input is held", |status| status["pool"] == 1 && status["unexecuted"] == 0).await;
        }
        let here = stands(&net.nodes[0].status().await.expect("it is up"));
        net.nodes[1].status_where("both are at one ledger", |status| stands(status) == here).await;
        let (seq, root) = here;
        for node in &mut net.nodes[..2] {
            // In order, so that what waits is on the disk.
            node.signal(Signal::SIGTERM);
            assert_eq!(node.ended().await, Some(0));
        }
        let keys: Vec<String> =
            net.nodes[..2].iter().map(|node| node.secret.as_ref().expect("a key").node_key().to_string()).collect();
        let unl = ["--unl", &keys.join(",")];
        let told = [recover(&net.nodes[0], seq, &root, &unl).await, recover(&net.nodes[1], seq, &root, &unl).await];
        assert_eq!((&told[0]["chain_id"], told[0]["member"].as_bool()), (&told[1]["chain_id"], Some(true)));
        assert_eq!((&told[0]["lost"]["raw"], &told[1]["lost"]["of_others"]), (&1.into(), &1.into()));
        let list = std::fs::read_to_string(told[0]["lost"]["list"].as_str().expect("a path")).expect("a list");
        assert!(list.contains(&user.key.user_key().to_string()), "{list}");
        net.nodes.truncate(2);
        net.start_all().await;
        let mut user = net.nodes[1].user().await;
        assert_eq!(user.ask("on").await, "2 6");
        // Who is lost is missed by nobody.
        let status = net.nodes[0]
            .status_where("both are linked", |status| status["live"].as_array().map(Vec::len) == Some(2))
            .await;
        assert_eq!((status["unl"].as_array().map(Vec::len), &status["quorum"]), (Some(2), &2.into()));
        net.agree().await;
    });
}
