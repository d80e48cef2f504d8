//! Nodes that keep the contract's state in different ways, and that change over from one to the other.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use serde_json::Value;

use super::count_again;
use crate::net::{Net, TestNode, block_on, call, plain, probe, until};

fn keep_by(node: &TestNode, backend: &str) {
    let set = |text: String| {
        let lines = text.lines().map(|line| match line.starts_with("state_backend") {
            true => format!("state_backend = \"{backend}\"\n"),
            false => format!("{line}\n"),
        });
        lines.collect()
    };
    node.edit_config(set);
}

async fn kept_by(node: &TestNode, backend: &str) {
    let status = node.status_where("how the state is kept", |status| status["state_kept"]["by"] == backend).await;
    assert!(status["state_kept"]["why"].is_string(), "{status}");
}

#[test]
fn nodes_that_keep_the_state_in_different_ways_agree_over_kills_failed_runs_and_changes_of_mind() {
    block_on(async {
        let mut net = Net::up_with(3, probe(), plain).await;
        let told = call(&["status", net.nodes[0].dir.to_str().expect("UTF-8")]).await;
        assert!(told.out.contains("kept by   shadow (auto; overlay "), "{}", told.out);
        let works = |status: &Value| status["state_kept"]["why"].as_str().unwrap().contains("overlay works");
        if !works(&net.nodes[0].status().await.expect("a status")) {
            eprintln!("not tested, there are no overlays here");
            return;
        }
        let mut total = 0;
        for round in 0..4 {
            let mut user = net.nodes[round % 3].user().await;
            for _ in 0..3 {
                total += 3;
                assert_eq!(user.ask("abc").await, format!("3 {total}"), "round {round}");
            }
            user.send("fail now").await;
            assert_eq!(user.error().await.0, "contract_failed");
            // In the middle of whatever the nodes do; and each is kept otherwise from now on.
            user.send("abc").await;
            net.kill_all().await;
            for (at, node) in net.nodes.iter().enumerate() {
                keep_by(node, if (at + round) % 2 == 0 { "overlay" } else { "shadow" });
            }
            net.start_all().await;
            for (at, node) in net.nodes.iter().enumerate() {
                kept_by(node, if (at + round) % 2 == 0 { "overlay" } else { "shadow" }).await;
                node.status_where("no input waits", |status| status["pool"] == 0 && status["unexecuted"] == 0).await;
            }
            total = count_again(&net.nodes[(round + 1) % 3], total).await;
            net.agree().await;
        }
    });
}

/// Paths below a folder, and the folder, that are not this user's.
fn not_of(uid: u32, top: &Path) -> Vec<String> {
    let (mut found, mut waiting) = (Vec::new(), vec![top.to_owned()]);
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).expect("it is there");
        if meta.uid() != uid {
            found.push(format!("{}: {}", path.display(), meta.uid()));
        }
        if meta.is_dir() {
            waiting.extend(fs::read_dir(path).expect("a list").map(|entry| entry.expect("an entry").path()));
        }
    }
    found
}

#[test]
fn a_state_belongs_to_whom_the_contract_runs_as_however_it_is_kept_rolled_back_and_fetched() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: only root can run a contract as another user");
    }
    const USERS: [u32; 4] = [4242, 4243, 4244, 4245];
    block_on(async {
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
        let mut net = Net::new(4, probe(), |at, config| {
            config.set("contract.run_as", &format!("\"{0}:{0}\"", USERS[at]));
            config.set("contract.state_backend", if at == 1 { "\"overlay\"" } else { "\"shadow\"" });
            // One that cannot stop the others.
            config.set("consensus.threshold", "75");
        });
        open(probe().parent().expect("a folder"));
        for node in &net.nodes {
            open(node.dir.parent().expect("a folder"));
            open(&node.dir);
        }
        net.start_all().await;
        let guards = net.nodes[0].status().await.expect("a status")["guards"].clone();
        let is_on = |guard: &Value| guard["name"] == "run_as" && guard["on"] == true;
        assert!(guards.as_array().expect("a list").iter().any(is_on), "{guards}");
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("abc").await, "3 3");
        user.send("fail now").await;
        assert_eq!(user.error().await.0, "contract_failed");
        assert_eq!(user.ask("abc").await, "3 6");
        net.agree().await;
        // Root's own doing, and a state that comes from others.
        net.nodes[2].kill().await;
        fs::remove_dir_all(net.nodes[2].dir.join("state")).expect("removed");
        fs::remove_dir_all(net.nodes[2].dir.join("hist/shadow")).expect("removed");
        net.nodes[2].start().await;
        assert_eq!(user.ask("abc").await, "3 9");
        net.nodes[2]
            .status_where("it runs again", |status| status["unexecuted"] == 0 && status["fetching"].is_null())
            .await;
        net.agree().await;
        for (node, uid) in net.nodes.iter().zip(USERS) {
            until("all is that user's", async || not_of(uid, &node.dir.join("state")).is_empty().then_some(())).await;
        }
    });
}

#[test]
fn a_node_that_must_have_all_guards_does_not_start_without_one_and_says_which() {
    // For whom the kernel has no Landlock. Its number is the same on all processors.
    const WITHOUT: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
filter = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 444, 0x06, 0, 0, 0x50000 | 38, 0x06, 0, 0, 0x7fff0000)
held = ctypes.create_string_buffer(filter, len(filter))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(held)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"#;
    block_on(async {
        let mut net = Net::new(1, probe(), |_, config| {
            config.set("contract.containment", "\"required\"");
        });
        net.nodes[0].wrapper = ["python3", "-c", WITHOUT].map(str::to_owned).to_vec();
        let (code, log) = net.nodes[0].start_fails().await;
        assert_eq!(code, Some(3), "{log}");
        assert!(log.contains("these guards are off") && log.contains("\n  landlock: "), "{log}");
        assert!(log.contains("lsm=") && !log.contains("\n  seccomp: "), "{log}");
        // The same with what there is.
        net.nodes[0].edit_config(|text| text.replace("\"required\"", "\"auto\""));
        net.nodes[0].start().await;
        let told = net.nodes[0].call(&["status"]).await.out;
        assert!(told.contains("off: landlock (") && told.contains("lsm="), "{told}");
    });
}
