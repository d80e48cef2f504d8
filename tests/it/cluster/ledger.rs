//! `hp ledger` on the folders of real nodes, while they run and after they were killed.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use crate::net::{Ended, Net, block_on, call, compile, copy_program, plain, probe, record};

async fn ledger(args: &[&str]) -> Ended {
    call(&[&["ledger"], args].concat()).await
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Verifies a folder, which must be right, and gives the report.
async fn right(dir: &Path, more: &[&str]) -> Value {
    let told = ledger(&[&["verify", text(dir), "--json"], more].concat()).await;
    assert_eq!(told.code, Some(0), "{}{}", told.out, told.err);
    let report: Value = serde_json::from_str(&told.out).expect("one JSON object");
    assert_eq!(
        (&report["ok"], report["unchecked"].as_array().map(Vec::len)),
        (&Value::Bool(true), Some(0)),
        "{report}"
    );
    report
}

#[test]
fn the_chains_of_five_nodes_verify_while_they_run_and_after_kill_9() {
    block_on(async {
        let mut net = Net::up_with(5, record(), |_, config| {
            config.set("roundtime", "100");
        })
        .await;
        let mut users = Vec::new();
        for node in &net.nodes {
            users.push(node.user().await);
        }
        let mut chains = BTreeSet::new();
        for round in 0..5 {
            for user in &mut users {
                user.send(format!("line {round}\n")).await;
            }
            // In the middle of it.
            let report = right(&net.nodes[round].dir, &[]).await;
            chains.insert(report["chain_id"].as_str().expect("a hash").to_owned());
            for user in &mut users {
                assert_eq!(user.text().await, format!("line {round}\n"));
            }
        }
        for user in &mut users {
            user.send("cut\n").await;
        }
        net.kill_all().await;
        let chain = chains.pop_first().expect("just seen");
        assert!(chains.is_empty(), "one chain");
        for node in &net.nodes {
            let report = right(&node.dir, &["--genesis", &chain, "--replay"]).await;
            assert!(report["inputs"].as_u64() >= Some(25) && report["outputs"].as_u64() >= Some(20), "{report}");
            assert!(report["replay"]["ran"].as_u64() >= Some(5), "{report}");
            let half = (report["to"].as_u64().expect("a number") / 2).to_string();
            let told = ledger(&["verify", text(&node.dir), "--from", &half]).await;
            assert_eq!(told.code, Some(0), "{}", told.err);
            assert!(told.out.contains("not checked") && told.out.contains("the chain is right"), "{}", told.out);
        }
        // It was only looked at: the nodes go on from there.
        net.start_all().await;
        let (seq, _) = net.agree().await;
        net.closed(seq + 1).await;
        let told = ledger(&["verify", text(&net.nodes[0].dir), "--genesis", &"0".repeat(64)]).await;
        assert_eq!(told.code, Some(1));
        assert!(told.err.contains("genesis: chain id is") && told.err.contains("another chain"), "{}", told.err);
    });
}

#[test]
fn ledgers_are_listed_shown_and_exported_as_they_are() {
    block_on(async {
        let net = Net::up_with(1, record(), plain).await;
        let dir = text(&net.nodes[0].dir);
        let mut user = net.nodes[0].user().await;
        for line in ["one\n", "two\n", "three\n"] {
            assert_eq!(user.ask(line).await, line);
        }
        let listed = ledger(&["ls", dir, "--json", "--from", "1", "--limit", "100"]).await;
        let lines: Vec<Value> =
            listed.out.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
        assert!(lines.iter().zip(1..).all(|(line, seq)| line["seq"] == seq), "{}", listed.out);
        let told: u64 = lines.iter().map(|line| line["inputs"].as_u64().expect("a number")).sum();
        assert_eq!(told, 3);
        let with_input = lines.iter().find(|line| line["inputs"] == 1).expect("three have one");
        let seq = with_input["seq"].to_string();

        let plain = ledger(&["ls", dir, "--from", &seq, "--limit", "1"]).await;
        assert_eq!(plain.out.lines().count(), 2, "{}", plain.out);
        assert!(plain.out.contains("1/1") && !plain.out.contains('\x1b'), "{}", plain.out);
        let shown = ledger(&["show", dir, &seq]).await;
        let key = user.key.user_key().to_string();
        for part in [with_input["hash"].as_str().expect("a hash"), key.as_str(), "\"one\\n\"", "state root", "signed"] {
            assert!(shown.out.contains(part), "{part}: {}", shown.out);
        }
        let json: Value = serde_json::from_str(&ledger(&["show", dir, &seq, "--json"]).await.out).expect("an object");
        assert_eq!(json["body"]["inputs"][0]["payload"], hex::encode("one\n"));
        assert_eq!(json["outputs"][0]["user"], *key);

        let out = net.nodes[0].dir.join("out");
        let exported = ledger(&["export", dir, "--out", text(&out), "--to", &seq]).await;
        assert_eq!(exported.code, Some(0), "{}", exported.err);
        let files = fs::read_dir(&out).expect("a folder").count();
        assert_eq!(files.to_string(), (seq.parse::<u64>().expect("a number") + 1).to_string(), "and chain.json");
        let file = out.join(format!("{seq:0>10}.json"));
        let file: Value = serde_json::from_str(&fs::read_to_string(file).expect("a file")).expect("an object");
        assert_eq!((&file["header"], &file["body"]), (&json["header"], &json["body"]));
        let again = ledger(&["export", dir, "--out", text(&out)]).await;
        assert!(again.code == Some(1) && again.err.contains("not empty"), "{}", again.err);

        let none = ledger(&["show", dir, "1000000"]).await;
        assert!(none.code == Some(1) && none.err.contains("there is no ledger 1000000"), "{}", none.err);
    });
}

#[test]
fn what_is_damaged_is_named_and_what_does_not_read_is_told_apart() {
    block_on(async {
        let mut net = Net::up_with(1, record(), plain).await;
        let mut user = net.nodes[0].user().await;
        for line in ["one\n", "two\n"] {
            assert_eq!(user.ask(line).await, line);
        }
        net.kill_all().await;
        let dir = &net.nodes[0].dir;
        right(dir, &[]).await;
        let file = dir.join("hist/ledger.db");
        let open = || rusqlite::Connection::open(&file).expect("a database");
        let seq: i64 = open().query_row("SELECT min(seq) FROM output", [], |row| row.get(0)).expect("a ledger");
        open().execute("UPDATE output SET bytes = X'6f6e65' WHERE seq = ?1", [seq]).expect("changed");
        let told = ledger(&["verify", text(dir)]).await;
        assert_eq!(told.code, Some(1), "{}", told.out);
        assert!(told.err.contains(&format!("ledger {seq}: outputs_root is ")), "{}", told.err);
        let told = ledger(&["verify", text(dir), "--json"]).await;
        let wrong: Value = serde_json::from_str(&told.out).expect("an object");
        assert_eq!((told.code, &wrong["ok"], wrong["seq"].as_i64()), (Some(1), &Value::Bool(false), Some(seq)));

        let whole = fs::read(&file).expect("a file");
        fs::write(&file, &whole[..whole.len() / 2]).expect("written");
        for command in ["verify", "ls", "show"] {
            let told = ledger(&[command, text(dir)]).await;
            assert!(told.code == Some(4) && told.err.contains("damaged"), "{command}: {} {}", told.out, told.err);
        }
        let told = ledger(&["verify", text(&dir.join("no/such"))]).await;
        assert!(told.code == Some(1) && told.err.contains("has no ledgers"), "{}", told.err);
    });
}

#[test]
fn a_replay_names_the_first_ledger_that_another_contract_leads_elsewhere() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (begin, other) = (folder.path().join("begin"), folder.path().join("other"));
        fs::create_dir(&begin).expect("a folder");
        fs::write(begin.join("book"), "what it begins with").expect("a file");
        let mut net = Net::new(1, probe(), plain);
        let dir = net.nodes[0].dir.clone();
        fs::create_dir(dir.join("state")).expect("a folder");
        copy_program(&begin.join("book"), &dir.join("state/book"));
        net.start_all().await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        user.send("fail now").await;
        assert_eq!(user.error().await.0, "contract_failed");
        assert_eq!(user.ask("four").await, "4 8");
        net.kill_all().await;
        let state = net.nodes[0].state("inputs");

        let told = ledger(&["verify", text(&dir), "--replay"]).await;
        assert!(told.code == Some(1) && told.err.contains("--state"), "it began with a file: {}", told.err);
        let report = right(&dir, &["--replay", "--state", text(&begin)]).await;
        assert_eq!(report["replay"]["ran"], report["to"], "{report}");

        compile("record.c", &other);
        net.nodes[0].edit_config(|text| text.replace(probe().to_str().expect("UTF-8"), other.to_str().expect("UTF-8")));
        let told = ledger(&["verify", text(&dir), "--replay", "--json", "--state", text(&begin)]).await;
        let report: Value = serde_json::from_str(&told.out).expect("an object");
        let listed = ledger(&["ls", text(&dir), "--json", "--from", "1", "--to", "1000"]).await;
        let with_input = |line: &Value| line["inputs"] != 0;
        let first = listed.out.lines().map(|line| serde_json::from_str(line).expect("an object")).find(with_input);
        let differs = &report["replay"]["differs"];
        assert_eq!((told.code, &differs["seq"]), (Some(1), &first.expect("there are inputs")["seq"]), "{report}");
        assert!(differs["changed"].to_string().contains("state/log"), "{report}");
        let told = ledger(&["verify", text(&dir), "--replay", "--state", text(&begin)]).await;
        assert!(told.err.contains("state/log") && told.err.contains("but the chain says"), "{}", told.err);
        // The node's own state was not touched.
        assert_eq!(net.nodes[0].state("inputs"), state);
        assert_eq!(net.nodes[0].state("log"), "");
    });
}
