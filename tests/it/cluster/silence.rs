//! Nodes that cannot know what their key has signed: they follow, say so, and vote again when it cannot matter.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::faults::{count, counted};
use crate::net::{Net, block_on, record};

/// Whether it is silent, and people are told so by the status and by the log.
fn is_alarm(status: &Value) -> bool {
    let told = status["alerts"].as_array().is_some_and(|alerts| {
        alerts.iter().any(|alert| alert.as_str().is_some_and(|alert| alert.starts_with("this node is silent")))
    });
    status["silent"]["alarm"] == true && told
}

#[test]
fn a_member_that_lost_hist_is_silent_while_ledgers_close_and_votes_again_and_so_is_one_whose_hist_is_marked() {
    block_on(async {
        let mut net = Net::up_with(5, record(), |_, config| {
            config.set("roundtime", "300");
        })
        .await;
        let mut user = net.nodes[0].user().await;
        let next = count(&mut user, 0..10).await;
        net.agree().await;
        for node in &net.nodes {
            assert!(!node.log().contains("silent"), "nobody was at the beginning");
            assert!(node.status().await.expect("it is up")["silent"].is_null());
        }
        net.nodes[4].kill().await;
        for folder in ["hist", "state"] {
            fs::remove_dir_all(net.nodes[4].dir.join(folder)).expect("removed");
        }
        // With another one down no ledger can be closed without it, so that there is time to look.
        let next = count(&mut user, next..next + 3).await;
        net.nodes[3].kill().await;
        net.nodes[4].start().await;
        let status = net.nodes[4].status_where("it is silent", is_alarm).await;
        assert!(status["silent"]["why"].as_str().is_some_and(|why| why.starts_with("hist/ was empty")), "{status}");
        assert_eq!(status["silent"]["ends_by_itself"], true);
        net.nodes[4].logs(&["ERROR", "this node is silent", "hist/ was empty"]).await;
        let shown = net.nodes[4].call(&["status"]).await;
        let lines: Vec<&str> = shown.out.lines().collect();
        assert!(lines.iter().any(|line| line.starts_with("silent    since 20") && line.contains("hist/ was empty")));
        assert!(lines.iter().any(|line| line.starts_with("ALERT     this node is silent")), "{}", shown.out);
        // It lasts over a restart; three others do not close ledgers.
        net.nodes[4].kill().await;
        net.nodes[4].start().await;
        net.nodes[4].status_where("it is silent", is_alarm).await;
        net.nodes[3].start().await;
        let next = count(&mut user, next..next + 5).await;
        net.nodes[4].status_where("it votes again", |status| status["silent"].is_null()).await;
        net.nodes[4].logs(&["votes again"]).await;
        net.agree().await;
        // It is one of the four that are needed.
        net.nodes[3].kill().await;
        let next = count(&mut user, next..next + 3).await;
        net.nodes[3].start().await;

        // Whoever restores a folder leaves a mark in it.
        net.nodes[2].signal(Signal::SIGTERM);
        assert_eq!(net.nodes[2].ended().await, Some(0));
        let mark = net.nodes[2].dir.join("hist/silent");
        fs::write(&mark, "restored from monday.tar\n").expect("written");
        net.nodes[2].start().await;
        assert!(!mark.exists(), "it is in the database now");
        net.nodes[2].logs(&["ERROR", "this node is silent", "restored from monday.tar"]).await;
        let next = count(&mut user, next..next + 5).await;
        net.nodes[2].status_where("it votes again", |status| status["silent"].is_null()).await;
        net.agree().await;
        counted(&net, next);
    });
}

#[test]
fn where_all_members_are_needed_the_alarm_says_that_it_does_not_end_by_itself() {
    block_on(async {
        let mut net = Net::up_with(3, record(), |_, config| {
            config.set("roundtime", "300");
        })
        .await;
        let mut user = net.nodes[0].user().await;
        count(&mut user, 0..3).await;
        net.agree().await;
        net.nodes[2].kill().await;
        for folder in ["hist", "state"] {
            fs::remove_dir_all(net.nodes[2].dir.join(folder)).expect("removed");
        }
        net.nodes[2].start().await;
        let status = net.nodes[2].status_where("it is silent", is_alarm).await;
        assert_eq!(status["silent"]["ends_by_itself"], false, "{status}");
        net.nodes[2].logs(&["all 3 members are needed", "does not end by itself", "hp recover"]).await;
        // It has what the others have, and they wait.
        let (seq, _) = net.agree().await;
        user.send("3").await;
        net.nodes[0].status_where("the input waits", |status| status["pool"] == 1).await;
        net.nodes[2].status_where("it follows", |status| status["pool"] == 1).await;
        assert_eq!(net.agree().await.0, seq);
    });
}
