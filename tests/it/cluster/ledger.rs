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

/// What docs/export.md tells a stranger to do, with nothing but the files: numbers and hexadecimal text.
mod stranger {
    use std::{collections::BTreeSet, fs, path::Path};

    use hotpocket::{
        crypto::verify,
        types::{NodeKey, Sig},
    };
    use serde_json::Value;
    use sha2::{Digest as _, Sha512};

    fn h(tag: &str, parts: &[&[u8]]) -> Vec<u8> {
        let bytes = [&[u8::try_from(tag.len()).expect("short")][..], tag.as_bytes(), &parts.concat()].concat();
        Sha512::digest(bytes)[..32].to_vec()
    }

    fn hex_of(value: &Value) -> Vec<u8> {
        hex::decode(value.as_str().unwrap_or_else(|| panic!("{value} is no text"))).expect("hexadecimal")
    }

    fn number(value: &Value) -> u64 {
        value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
    }

    fn u64_of(value: &Value) -> Vec<u8> {
        number(value).to_le_bytes().to_vec()
    }

    fn u32_of(value: &Value) -> Vec<u8> {
        u32::try_from(number(value)).expect("small").to_le_bytes().to_vec()
    }

    fn list(items: &[Vec<u8>]) -> Vec<u8> {
        [(items.len() as u32).to_le_bytes().to_vec(), items.concat()].concat()
    }

    fn hex_list(value: &Value) -> Vec<Vec<u8>> {
        value.as_array().expect("a list").iter().map(hex_of).collect()
    }

    /// Header fields one after the other, as docs/protocol.md writes them down; of results that went well.
    fn header(header: &Value) -> Vec<u8> {
        let result = &header["result"];
        assert_eq!(
            (&result["status"], &result["unl_req"], &header["settlement"]),
            (&"ok".into(), &Value::Null, &Value::Null)
        );
        [
            (number(&header["ver"]) as u16).to_le_bytes().to_vec(),
            hex_of(&header["chain_id"]),
            u64_of(&header["seq"]),
            hex_of(&header["parent"]),
            u64_of(&header["time_ms"]),
            hex_of(&header["unl_hash"]),
            hex_of(&header["next_unl_hash"]),
            hex_of(&header["users_root"]),
            u32_of(&header["n_users"]),
            hex_of(&header["inputs_root"]),
            u32_of(&header["n_inputs"]),
            u64_of(&header["inputs_bytes"]),
            u64_of(&result["of_seq"]),
            hex_of(&result["of_hash"]),
            hex_of(&result["state_root"]),
            hex_of(&result["outputs_root"]),
            vec![0, 0, 0],
        ]
        .concat()
    }

    fn signed(by: &[u8], message: &[u8], sig: &Value) -> bool {
        let by = NodeKey(by.try_into().expect("a key"));
        verify(&by.0, message, &Sig(hex_of(sig).try_into().expect("a signature")))
    }

    fn root(mut level: Vec<Vec<u8>>) -> Vec<u8> {
        while level.len() > 1 {
            let parent = |pair: &[Vec<u8>]| match pair {
                [left, right] => h("hp/node/1", &[left, right]),
                alone => alone.concat(),
            };
            level = level.chunks(2).map(parent).collect();
        }
        level.pop().unwrap_or(vec![0; 32])
    }

    fn input(input: &Value, chain: &[u8]) -> Vec<u8> {
        let (user, origin, payload) = (hex_of(&input["user"]), &input["origin"], hex_of(&input["payload"]));
        let tag = match origin["kind"].as_str() {
            Some("user") => vec![0; 32],
            _ => h("hp/session/1", &[&hex_of(&origin["host"]), &hex_of(&origin["challenge"])]),
        };
        let (nonce, max_ledger) = (u64_of(&input["nonce"]), u64_of(&input["max_ledger"]));
        let length = (payload.len() as u32).to_le_bytes();
        let id = h("hp/input/1", &[chain, &user, &tag, &nonce, &max_ledger, &length, &payload]);
        assert_eq!(id, hex_of(&input["id"]));
        if origin["kind"] == "user" {
            assert!(signed(&user, &id, &origin["sig"]));
        } else {
            let by_host = h("hp/session-input/1", &[chain, &id]);
            assert!(signed(&hex_of(&origin["host"]), &by_host, &origin["host_sig"]));
            let challenge = origin["challenge"].as_str().expect("text");
            assert!(signed(&user, challenge.as_bytes(), &origin["helo_sig"]));
        }
        id
    }

    /// Checks a whole export; how many inputs and outputs it has.
    pub fn check(folder: &Path) -> (usize, usize) {
        let read = |name: &str| -> Value {
            serde_json::from_str(&fs::read_to_string(folder.join(name)).expect("a file")).expect("an object")
        };
        let chain = read("chain.json");
        let id = h("hp/genesis/1", &[&hex_of(&chain["genesis_bytes"])]);
        assert_eq!(id, hex_of(&chain["chain_id"]));
        assert_eq!(h("hp/cfg/1", &[&hex_of(&chain["settings_bytes"])]), hex_of(&chain["genesis"]["cfg_hash"]));
        let members = hex_list(&chain["genesis"]["unl"]);
        let quorum = (members.len() * number(&chain["genesis"]["threshold"]) as usize).div_ceil(100);
        let unl_hash = h("hp/unl/1", &[&list(&members)]);
        let (mut parent, mut users, mut last) = (id.clone(), BTreeSet::new(), Value::Null);
        let (mut inputs, mut outputs) = (0, 0);
        let count = fs::read_dir(folder).expect("a folder").count() - 1;
        for seq in 1..=count {
            let ledger = read(&format!("{seq:010}.json"));
            let bytes = header(&ledger["header"]);
            assert_eq!(bytes, hex_of(&ledger["header_bytes"]), "ledger {seq}");
            let hash = h("hp/ledger/1", &[&bytes]);
            assert_eq!((&hash, &parent), (&hex_of(&ledger["hash"]), &hex_of(&ledger["header"]["parent"])));
            assert_eq!(hex_of(&ledger["header"]["unl_hash"]), unl_hash);
            let vote = &ledger["certificate"];
            let vote_bytes = [u64_of(&vote["seq"]), u32_of(&vote["attempt"]), hash.clone()].concat();
            let digest = h("hp/precommit/1", &[&id, &unl_hash, &vote_bytes]);
            let mut signers = BTreeSet::new();
            for entry in vote["signatures"].as_array().expect("a list") {
                let node = hex_of(&entry["node"]);
                assert!(members.contains(&node) && signed(&node, &digest, &entry["sig"]));
                signers.insert(node);
            }
            assert!(signers.len() >= quorum);
            let body = &ledger["body"];
            let ids: Vec<Vec<u8>> =
                body["inputs"].as_array().expect("a list").iter().map(|it| input(it, &id)).collect();
            assert_eq!(h("hp/inputs/1", &[&list(&ids)]), hex_of(&ledger["header"]["inputs_root"]));
            inputs += ids.len();
            for user in hex_list(&body["users_del"]) {
                assert!(users.remove(&user));
            }
            users.extend(hex_list(&body["users_add"]));
            let leaves = users.iter().map(|user| h("hp/user/1", &[user])).collect();
            assert_eq!(root(leaves), hex_of(&ledger["header"]["users_root"]));
            if seq > 1 {
                assert_eq!(ledger["header"]["result"], last, "ledger {seq}");
            }
            let leaf = |output: &Value| {
                let bytes = hex_of(&output["bytes"]);
                let hash = h("hp/output-bytes/1", &[&(bytes.len() as u32).to_le_bytes(), &bytes]);
                h("hp/output/1", &[&hex_of(&output["user"]), &hash])
            };
            let leaves: Vec<Vec<u8>> = ledger["outputs"].as_array().expect("a list").iter().map(leaf).collect();
            outputs += leaves.len();
            if seq < count {
                assert_eq!(root(leaves), hex_of(&ledger["result"]["outputs_root"]));
            }
            (parent, last) = (hash, ledger["result"].clone());
        }
        (inputs, outputs)
    }
}

#[test]
fn a_stranger_checks_an_export_with_nothing_but_the_files_and_the_documentation() {
    block_on(async {
        let net = Net::up_with(3, record(), |_, config| {
            config.set("roundtime", "100");
        })
        .await;
        let (mut one, mut other) = (net.nodes[0].user().await, net.nodes[1].user().await);
        for line in ["one\n", "two\n", "three\n"] {
            assert_eq!(one.ask(line).await, line);
            assert_eq!(other.ask(line).await, line);
        }
        let (seq, _) = net.agree().await;
        net.closed(seq + 3).await;
        let out = net.nodes[0].dir.join("out");
        let exported = ledger(&["export", text(&net.nodes[0].dir), "--out", text(&out)]).await;
        assert_eq!(exported.code, Some(0), "{}", exported.err);
        assert_eq!(stranger::check(&out), (6, 6));
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
        let dir = &net.nodes[0].dir.clone();
        right(dir, &[]).await;
        let file = dir.join("hist/ledger.db");
        net.tampered = true;
        let open = || rusqlite::Connection::open(&file).expect("a database");
        let seq: i64 = open().query_row("SELECT min(seq) FROM output", [], |row| row.get(0)).expect("a ledger");
        open().execute("UPDATE output SET bytes = X'6f6e65' WHERE seq = ?1", [seq]).expect("changed");
        let told = ledger(&["verify", text(dir)]).await;
        assert_eq!(told.code, Some(1), "{}", told.out);
        assert!(told.err.contains(&format!("ledger {seq}: output.leaf is ")), "{}", told.err);
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

        // The same with a line for each ledger; the ones before the first that is shown are run by the contract itself.
        let first = differs["seq"].as_u64().expect("a number");
        let replay =
            async |args: &[&str]| call(&[&["replay", text(&dir), "--state", text(&begin)], args].concat()).await;
        let told = replay(&["--binary", text(probe())]).await;
        assert_eq!(told.code, Some(0), "{}", told.err);
        assert_eq!(
            told.out.matches(" same\n").count() as u64,
            report["to"].as_u64().expect("a number"),
            "{}",
            told.out
        );
        let told = replay(&[]).await;
        assert!(told.code == Some(1) && told.err.contains("state/log"), "{}", told.err);
        assert_eq!(told.out.lines().filter(|line| line.ends_with(" same")).count() as u64, first - 1, "{}", told.out);
        assert!(told.out.contains(&format!("ledger {first} ")) && told.out.contains("  differs: "), "{}", told.out);
        let told = replay(&["--json", "--to", &(first - 1).to_string(), "--binary", text(probe())]).await;
        let last: Value = serde_json::from_str(told.out.lines().last().expect("a line")).expect("an object");
        assert_eq!(
            (told.code, &last["ok"], last["replay"]["ran"].as_u64()),
            (Some(0), &Value::Bool(true), Some(first - 1))
        );
        let told = replay(&["--from", "100000"]).await;
        assert!(told.code == Some(1) && told.err.contains("there is no ledger 100000"), "{}", told.err);
        // The node's own state was not touched.
        assert_eq!(net.nodes[0].state("inputs"), state);
        assert_eq!(net.nodes[0].state("log"), "");
    });
}
