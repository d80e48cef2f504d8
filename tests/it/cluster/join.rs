//! Nodes that come so late that nobody keeps the contents of what they lack.

use std::{fs, path::Path};

use hotpocket::crypto::SecretKey;
use serde_json::Value;

use crate::{
    chain::{CONTRACT, Chain, Shape},
    net::{Net, TestNode, block_on, block_on_for, call, probe},
};

/// The longest of these tests on a busy machine.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(240);
/// More ledgers than contents are kept for with the smallest window.
const AWAY: u64 = 100;

/// Of four members, one of which may be missing, with a window that is over soon.
async fn network(up: usize) -> Net {
    let mut net = Net::new(4, probe(), |_, config| {
        config.set("consensus.threshold", "75").set("consensus.input_window", "16").set("roundtime", "40");
    });
    for node in &mut net.nodes[..up] {
        node.start().await;
    }
    net
}

async fn closes(node: &TestNode, more: u64) {
    let from = node.seq().await;
    node.status_where("many ledgers close", |it| it["seq"].as_u64() >= Some(from + more)).await;
}

/// A node that passed over ledgers is like the others again, and votes.
async fn has_joined(node: &TestNode) {
    node.logs(&["no linked node keeps the contents of what comes next here"]).await;
    node.logs(&["the state is fetched; going on from it"]).await;
    let is_like_others = |status: &Value| {
        status["synced"] == true
            && status["joining"].is_null()
            && status["unexecuted"] == 0
            && status["silent"].is_null()
    };
    let status = node.status_where("it has joined", is_like_others).await;
    assert_eq!((&status["diverged"], &status["liars"]), (&Value::Bool(false), &Value::Array(vec![])), "{status}");
}

async fn verified(node: &TestNode) -> Value {
    let ended = call(&["ledger", "verify", node.dir.to_str().expect("UTF-8"), "--json"]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    serde_json::from_str(&ended.out).expect("one JSON object")
}

#[test]
fn a_member_that_begins_late_one_that_was_away_and_one_that_lost_its_folder_join_run_and_vote() {
    block_on_for(LONGEST, async {
        let mut net = network(3).await;
        let alice = SecretKey::from_seed([7; 32]);
        let mut total = 5;
        assert_eq!(net.nodes[0].session(alice.clone()).await.ask("hello").await, format!("5 {total}"));
        // Whose session stays is in the list of users that is fetched.
        let _stays = net.nodes[1].user().await;
        closes(&net.nodes[0], AWAY).await;

        // It begins with nothing, and is needed at once.
        net.nodes[3].start().await;
        has_joined(&net.nodes[3]).await;
        net.nodes[0].kill().await;
        total += 5;
        assert_eq!(net.nodes[3].user().await.ask("after").await, format!("5 {total}"));
        let report = verified(&net.nodes[3]).await;
        assert!(report["unchecked"].to_string().contains("joined the chain behind them"), "{report}");

        // The one that was killed is away for long, and goes on from where it was.
        closes(&net.nodes[3], AWAY).await;
        net.nodes[0].start().await;
        has_joined(&net.nodes[0]).await;
        assert_eq!(net.nodes[0].state("inputs"), total.to_string());

        // One loses all it has; who joined itself helps it.
        net.nodes[1].kill().await;
        for folder in ["hist", "state"] {
            fs::remove_dir_all(net.nodes[1].dir.join(folder)).expect("removed");
        }
        fs::create_dir(net.nodes[1].dir.join("state")).expect("made");
        net.nodes[2].kill().await;
        net.nodes[2].start().await;
        net.nodes[1].start().await;
        has_joined(&net.nodes[1]).await;
        net.nodes[2].kill().await;
        total += 4;
        assert_eq!(net.nodes[1].user().await.ask("last").await, format!("4 {total}"));
        for node in [0, 1, 3] {
            assert_eq!(net.nodes[node].state("inputs"), total.to_string());
            verified(&net.nodes[node]).await;
        }
    });
}

#[test]
fn kills_while_a_node_joins_cost_nothing_but_time() {
    block_on(async {
        let shape = Shape { len: 2_000, input_every: 7, large_at: None };
        let mut net = Net::new(4, Path::new(CONTRACT), |_, config| {
            config.set("consensus.threshold", "75").set("consensus.input_window", "16");
        });
        let chain = Chain::new(&net.nodes, shape);
        for node in &mut net.nodes[..3] {
            chain.write(node);
            node.start().await;
        }
        let mut reached = 0;
        let mut in_the_middle = 0;
        for _ in 0..4 {
            net.nodes[3].start().await;
            let further = |status: &Value| {
                let seq = status["seq"].as_u64().unwrap_or(0);
                seq > reached || seq >= shape.len
            };
            let status = net.nodes[3].status_where("it has more", further).await;
            reached = status["seq"].as_u64().expect("a number");
            in_the_middle += u64::from(!status["joining"].is_null());
            net.nodes[3].kill().await;
            verified(&net.nodes[3]).await;
        }
        assert!(in_the_middle > 0, "it was killed while it joined");
        net.nodes[3].start().await;
        let is_there = |status: &Value| {
            status["seq"].as_u64() >= Some(shape.len) && status["joining"].is_null() && status["unexecuted"] == 0
        };
        net.nodes[3].status_where("it is there", is_there).await;
        net.nodes[0].kill().await;
        let (seq, _) = net.agree().await;
        net.closed(seq + 2).await;
    });
}
