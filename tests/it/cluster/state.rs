//! Nodes that keep the contract's state in different ways, and that change over from one to the other.

use serde_json::Value;

use super::count_again;
use crate::net::{Net, TestNode, block_on, call, plain, probe};

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
