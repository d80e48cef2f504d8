//! Nodes that come so late that nobody keeps the contents of what they lack.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    chain::{CONTRACT, Chain, Shape},
    net::{Net, TestNode, block_on, block_on_for, call},
};

/// The longest that a long chain takes to be made and joined.
const LONGEST: Duration = Duration::from_secs(600);

/// A network of four, one of which may be missing, with a window that is over soon; the first three are so far ahead, and up.
async fn ahead(shape: Shape) -> (Net, Chain) {
    let mut net = Net::new(4, Path::new(CONTRACT), |_, config| {
        config.set("consensus.threshold", "75").set("consensus.input_window", "16");
    });
    let chain = Chain::new(&net.nodes, shape);
    for node in &mut net.nodes[..3] {
        chain.write(node);
        node.start().await;
    }
    (net, chain)
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
fn a_member_with_nothing_and_one_that_was_away_join_behind_deleted_contents_run_and_vote() {
    block_on(async {
        let (mut net, chain) = ahead(Shape { len: 300, input_every: 7, large_at: None }).await;
        net.nodes[3].start().await;
        has_joined(&net.nodes[3]).await;
        let report = verified(&net.nodes[3]).await;
        assert!(report["unchecked"].to_string().contains("joined the chain behind them"), "{report}");
        // It is needed from here on.
        net.nodes[0].kill().await;
        let (seq, _) = net.agree().await;
        net.closed(seq + 2).await;

        // As if it had been off since long ago. Who joined itself helps it.
        fs::remove_dir_all(net.nodes[0].dir.join("hist")).expect("removed");
        chain.write_first(&net.nodes[0], 50);
        net.nodes[0].start().await;
        has_joined(&net.nodes[0]).await;
        net.nodes[1].kill().await;
        let (seq, _) = net.agree().await;
        net.closed(seq + 2).await;
        verified(&net.nodes[0]).await;
    });
}

#[test]
fn kills_while_a_node_joins_cost_nothing_but_time() {
    block_on(async {
        let shape = Shape { len: 1_000, input_every: 7, large_at: None };
        let (mut net, _) = ahead(shape).await;
        let mut in_the_middle = 0;
        for _ in 0..4 {
            net.nodes[3].start().await;
            let begun = |status: &Value| !status["joining"].is_null() || status["seq"].as_u64() >= Some(shape.len);
            net.nodes[3].status_where("it joins", begun).await;
            net.nodes[3].kill().await;
            let report = verified(&net.nodes[3]).await;
            in_the_middle += u64::from(report["unchecked"].to_string().contains("it still fetches what it needs"));
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

/// With `HP_JOIN_LEDGERS` alone, because to make so many takes long: tells how quickly a node joins behind them.
#[test]
fn a_long_chain_is_joined_at_the_speed_that_this_prints() {
    let Some(len) = std::env::var("HP_JOIN_LEDGERS").ok().and_then(|text| text.parse().ok()) else { return };
    block_on_for(LONGEST, async {
        let (mut net, _) = ahead(Shape { len, input_every: 7, large_at: None }).await;
        let began = Instant::now();
        net.nodes[3].start().await;
        has_joined(&net.nodes[3]).await;
        println!("{len} ledgers, of which all but the last are headers alone, in {:?}", began.elapsed());
    });
}
