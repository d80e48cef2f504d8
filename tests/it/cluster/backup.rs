//! A node as one file: made while it runs, and restored where there is nothing.

use std::{fs, path::Path};

use serde_json::Value;

use crate::net::{Net, block_on, call, probe};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

async fn json(args: &[&str]) -> Value {
    let told = call(args).await;
    assert_eq!(told.code, Some(0), "{}{}", told.out, told.err);
    serde_json::from_str(&told.out).expect("one JSON object")
}

#[test]
fn a_backup_made_while_inputs_stream_in_comes_back_in_an_empty_folder_and_catches_up() {
    block_on(async {
        let mut net = Net::up_with(4, probe(), |_, config| {
            config.set("consensus.threshold", "75");
        })
        .await;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("node3.tar");
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        let mut total = 4;
        let dir = net.nodes[3].dir.clone();
        let backup = ["backup", text(&dir), text(&file), "--with-key", "--json"];
        let made = json(&backup);
        tokio::pin!(made);
        // One input after the other, until it is made, and some after.
        let made = loop {
            tokio::select! {
                biased;
                answer = user.ask("more") => {
                    total += 4;
                    assert_eq!(answer, format!("4 {total}"));
                }
                made = &mut made => break made,
            }
        };
        assert_eq!((&made["running"], &made["with_key"]), (&true.into(), &true.into()));
        let executed = made["executed"].as_u64().expect("a number");
        assert!(made["tip"].as_u64() >= Some(executed) && executed > 0, "{made}");
        let again = call(&backup).await;
        assert!(again.code == Some(1) && again.err.contains("exists already"), "{}", again.err);
        // The one that was asked when the backup was done has its answer.
        total += 4;
        assert_eq!(user.text().await, format!("4 {total}"));
        let seq = net.nodes[0].seq().await;
        net.closed(seq + 1).await;

        net.nodes[3].kill().await;
        total += 4;
        assert_eq!(user.ask("more").await, format!("4 {total}"));
        let new = folder.path().join("new");
        let told = call(&["restore", text(&file), text(&new)]).await;
        assert!(told.code == Some(0) && told.out.contains("It starts silent"), "{}{}", told.out, told.err);
        assert!(
            fs::read_to_string(new.join("hist/silent")).expect("a mark").starts_with("restored from a backup of 20")
        );
        let there = call(&["restore", text(&file), text(&new)]).await;
        assert!(there.code == Some(1) && there.err.contains("is not empty"), "{}", there.err);
        let report = json(&["ledger", "verify", text(&new), "--json"]).await;
        assert_eq!((&report["to"], &report["chain_id"]), (&made["tip"], &made["chain_id"]));

        net.nodes[3].dir = new;
        net.nodes[3].start().await;
        total += 4;
        assert_eq!(user.ask("more").await, format!("4 {total}"));
        net.agree().await;
        for node in &net.nodes {
            assert_eq!(node.state("inputs"), total.to_string());
        }
        // It votes again when ledgers were closed without it: the quorum needs it.
        let seq = net.nodes[0].seq().await;
        net.closed(seq + 3).await;
        net.nodes[2].kill().await;
        total += 4;
        assert_eq!(user.ask("more").await, format!("4 {total}"));

        // Of a node that is stopped, too.
        let stopped = folder.path().join("node2.tar");
        let made = json(&["backup", text(&net.nodes[2].dir), text(&stopped), "--json"]).await;
        assert_eq!((&made["running"], &made["with_key"]), (&false.into(), &false.into()));
    });
}

/// Bytes of the state that the node begins with.
const STATE_BYTES: u32 = 24 << 20;

#[test]
fn a_backup_waits_for_no_run_and_no_run_waits_for_it() {
    block_on(async {
        let mut net = Net::new(1, probe(), |_, _| {});
        let dir = net.nodes[0].dir.clone();
        let big: Vec<u8> = (0..STATE_BYTES / 4).flat_map(u32::to_le_bytes).collect();
        fs::create_dir_all(dir.join("state")).expect("a folder");
        fs::write(dir.join("state/big"), &big).expect("written");
        net.start_all().await;
        let folder = tempfile::tempdir().expect("a folder");
        let mut user = net.nodes[0].user().await;
        for total in [4, 8] {
            assert_eq!(user.ask("four").await, format!("4 {total}"));
        }
        // All of it while one run goes on that does not end by itself, and that changes the state.
        user.send("hang").await;
        net.nodes[0].contract_runs().await;
        let made = json(&["backup", text(&dir), text(&folder.path().join("one.tar")), "--with-key", "--json"]).await;
        assert!(!net.nodes[0].contracts().is_empty(), "the run was not waited for");
        let executed = made["executed"].as_u64().expect("a number");
        assert_eq!(made["tip"].as_u64(), Some(executed + 1), "{made}");
        let header = json(&["ledger", "show", text(&dir), &(executed + 1).to_string(), "--json"]).await;
        assert_eq!(header["header"]["result"]["state_root"], made["state_root"], "{header}");

        let new = folder.path().join("new");
        let told = call(&["restore", text(&folder.path().join("one.tar")), text(&new)]).await;
        assert_eq!(told.code, Some(0), "{}{}", told.out, told.err);
        assert!(fs::read(new.join("state/big")).expect("it is there") == big);
        assert_eq!(fs::read_to_string(new.join("state/inputs")).expect("it is there"), "8");
        net.nodes[0].kill().await;
    });
}
