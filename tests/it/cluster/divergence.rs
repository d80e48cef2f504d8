//! Contracts that do not do the same everywhere: who differs is told with the path, and nobody agrees on nonsense.

use std::{fs, path::Path};

use hotpocket::config::quoted;
use serde_json::Value;

use crate::net::{Net, block_on, call, copy_program, probe};

fn alerts(status: &Value) -> String {
    let alerts = status["alerts"].as_array().cloned().unwrap_or_default();
    alerts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_split_of_all_nodes_stops_ledgers_and_every_node_says_where_it_differs() {
    block_on(async {
        let net = Net::up_with(3, probe(), |_, config| {
            config.set("roundtime", "200");
        })
        .await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        user.send("differ").await;
        for node in &net.nodes {
            let what = "the node says that and where it differs";
            let told = |status: &Value| status["split"] == true && alerts(status).contains("state/differ");
            node.status_where(what, told).await;
            let told = call(&["status", node.dir.to_str().expect("UTF-8")]).await;
            assert_eq!(told.code, Some(0));
            assert!(
                told.out.contains("SPLIT") && told.out.contains("ALERT") && told.out.contains("state/differ"),
                "{}",
                told.out
            );
        }
        let (seq, _) = (net.nodes[0].seq().await, user.send("more").await);
        let up = |status: &Value| status["up_s"].as_u64().expect("a number");
        let now = up(&net.nodes[0].status().await.expect("it is up"));
        // Ten times the round time.
        net.nodes[0].status_where("time goes by", |status| up(status) >= now + 3).await;
        for node in &net.nodes {
            assert_eq!(node.seq().await, seq, "no ledger after the split");
        }
    });
}

#[test]
fn one_of_four_that_differs_says_so_with_the_path_and_the_others_go_on() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let odd = folder.path().join("odd");
        copy_program(probe(), &odd);
        let mut net = Net::up_with(4, probe(), |at, config| {
            config.set("consensus.threshold", "75");
            if at == 3 {
                config.set("binary", &quoted(odd.to_str().expect("UTF-8")));
            }
        })
        .await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        net.agree().await;
        assert_eq!(user.ask("odd").await, "3 7");
        for round in 1..=5 {
            assert_eq!(user.ask("more").await, format!("4 {}", 7 + 4 * round), "the others go on");
        }
        let told = |status: &Value| {
            let alerts = alerts(status);
            alerts.contains("differs from the network's") && alerts.contains("state/odd")
        };
        net.nodes[3].status_where("the node says that and where it differs", told).await;
        let line = net.nodes[3].logs(&["the differing state is kept"]).await;
        let path =
            line.split("path=").nth(1).expect("a path").split_whitespace().next().expect("a path").trim_matches('"');
        let odd_state = Path::new(path).join("state/odd");
        assert_eq!(fs::read_to_string(&odd_state).expect("it is kept"), "/odd");

        // It goes on with the network's state, and the quorum needs it.
        let healed = |status: &Value| status["diverged"] == false && status["synced"] == true;
        net.nodes[3].status_where("it has the network's state", healed).await;
        net.nodes[1].kill().await;
        assert_eq!(user.ask("more").await, "4 31");
        net.agree().await;
        for node in [&net.nodes[0], &net.nodes[2], &net.nodes[3]] {
            assert_eq!((node.state("odd"), node.state("inputs")), ("/probe".to_owned(), "31".to_owned()));
        }
        assert_eq!(fs::read_to_string(&odd_state).expect("it is kept"), "/odd");
    });
}
