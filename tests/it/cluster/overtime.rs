//! Runs that take longer than the wall-time limit: on some nodes, on all, and across a kill.

use std::fs;

use hotpocket::config::Document;

use crate::net::{Net, TestNode, block_on, probe};

fn limit_1_s(_: usize, config: &mut Document) {
    config.set("contract.time_limit_s", "1");
}

/// From now on the node's contract needs three times its time when it is told to take a nap.
fn make_slow(node: &TestNode) {
    fs::write(node.dir.join("slow"), "").expect("written");
}

#[test]
fn a_run_over_its_time_on_two_of_five_ends_like_the_others_and_on_all_has_no_effect() {
    block_on(async {
        let mut net = Net::up_with(5, probe(), limit_1_s).await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        for node in [1, 3] {
            make_slow(&net.nodes[node]);
        }
        assert_eq!(user.ask("nap").await, "3 7", "three are quick, and four are a quorum");
        net.agree().await;
        for node in &net.nodes {
            assert_eq!(node.state("inputs"), "7");
            let status = node.status().await.expect("it is up");
            assert_eq!((&status["diverged"], &status["last_run"]["status"]), (&false.into(), &"ok".into()));
        }
        for node in [1, 3] {
            net.nodes[node].logs(&["run was cut"]).await;
        }

        net.nodes.iter().for_each(make_slow);
        user.send("nap").await;
        // Whoever is killed while it waits for what the others say says the same again.
        net.nodes[4].logs(&["run was cut"]).await;
        net.nodes[4].kill().await;
        let (code, message) = user.error().await;
        assert_eq!(code, "contract_failed");
        assert!(message.contains("time limit"), "{message}");
        net.nodes[4].start().await;
        assert_eq!(user.ask("more").await, "4 11", "the state is as before the run");
        net.agree().await;
        for node in &net.nodes {
            assert_eq!((node.state("inputs"), node.contracts()), ("11".to_owned(), vec![]));
        }
    });
}
