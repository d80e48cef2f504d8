//! Five nodes whose links are late, slow, cut, or carry one way only, while users go on.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::crowd::Crowd;
use crate::{
    net::{Net, block_on, plain, record, until},
    shim::{self, Flow, Shim, Weather},
};

/// What the successor in C++ does not survive.
const LATE_MS: u64 = 800;

/// Runs a scenario around five nodes and their users. Everything must have gone through the shim.
fn five(scenario: impl AsyncFnOnce(&mut Net, &Shim, &Crowd)) {
    block_on(async {
        let (mut net, shim) = shim::network(5, record(), plain);
        net.start_all().await;
        Crowd::around(&mut net, 5, async |net, crowd| {
            crowd.more_answers(10).await;
            scenario(net, &shim, crowd).await;
            shim.everywhere(Weather::default());
            crowd.follow(net);
            all_linked(net).await;
            crowd.more_answers(20).await;
        })
        .await;
        through_the_shim(&net, &shim).await;
    });
}

/// Waits until every node has a link to every other.
pub async fn all_linked(net: &Net) {
    for node in &net.nodes {
        node.status_where("linked with all", |status| {
            status["links"].as_array().map(Vec::len) == Some(net.nodes.len() - 1)
        })
        .await;
    }
}

/// No link goes round the shim, and each pair's bytes went through it.
pub async fn through_the_shim(net: &Net, shim: &Shim) {
    all_linked(net).await;
    for (from, node) in net.nodes.iter().enumerate() {
        let status = node.status_where("the node answers", |status| status["links"].is_array()).await;
        for link in status["links"].as_array().expect("just seen") {
            let address: SocketAddr = link["address"].as_str().expect("an address").parse().expect("an address");
            assert!(shim.is_mine(address), "{link} goes round the shim");
        }
        for to in (0..net.nodes.len()).filter(|to| *to != from) {
            let carried = shim.carried(from, to);
            assert!(carried > 10_000, "{carried} bytes from {from} to {to}");
        }
    }
}

/// Waits until the network has closed so many more ledgers, and all of these nodes have them.
async fn more_ledgers(net: &Net, nodes: &[usize], count: u64) {
    let wanted = net.nodes[nodes[0]].seq().await + count;
    for at in nodes {
        net.nodes[*at].status_where("ledgers close", |status| status["seq"].as_u64() >= Some(wanted)).await;
    }
}

#[test]
fn one_uplink_late_by_800_ms_across_a_round_boundary_forks_nothing() {
    five(async |net, shim, crowd| {
        for late in [4, 0] {
            shim.uplink(late, Weather::late(LATE_MS));
            more_ledgers(net, &[1, 2, 3], 1).await;
            shim.uplink(late, Weather::default());
            crowd.more_answers(5).await;
        }
    });
}

#[test]
fn two_of_five_uplinks_late_by_800_ms_fork_nothing_and_ledgers_go_on() {
    five(async |net, shim, _| {
        shim.uplink(3, Weather::late(LATE_MS));
        shim.uplink(4, Weather::late(LATE_MS));
        let began = Instant::now();
        more_ledgers(net, &[0, 1, 2], 2).await;
        // A quorum needs one of the two: the second ledger has waited for it, in each stage.
        assert!(began.elapsed() > Duration::from_millis(2 * LATE_MS), "the links are late");
    });
}

#[test]
fn one_uplink_late_by_800_ms_and_one_node_isolated_fork_nothing_and_ledgers_go_on() {
    five(async |net, shim, _| {
        shim.uplink(3, Weather::late(LATE_MS));
        shim.around(4, Weather::flow(Flow::Cut));
        more_ledgers(net, &[0, 1, 2, 3], 2).await;
    });
}

#[test]
fn late_slow_and_jittery_links_make_rounds_longer_and_nothing_else() {
    five(async |net, shim, crowd| {
        let bad = Weather {
            delay: Duration::from_millis(40),
            jitter: Duration::from_millis(60),
            bytes_per_s: 200_000,
            flow: Flow::Open,
        };
        shim.everywhere(bad);
        more_ledgers(net, &[0, 1, 2, 3, 4], 3).await;
        crowd.more_answers(10).await;
    });
}

#[test]
fn links_that_stall_and_are_cut_come_back_and_the_rest_goes_on_meanwhile() {
    five(async |net, shim, crowd| {
        // A pair that stalls, then ends: four of five still hear all of each other's votes.
        for flow in [Flow::Held, Flow::Cut] {
            shim.set(1, 4, Weather::flow(flow));
            shim.set(4, 1, Weather::flow(flow));
            more_ledgers(net, &[0, 2, 3], 2).await;
        }
        crowd.more_answers(5).await;
        shim.everywhere(Weather::default());
        all_linked(net).await;
        // A ring: each node has lost two of its links.
        for at in 0..5 {
            shim.set(at, (at + 1) % 5, Weather::flow(Flow::Cut));
        }
        for node in &net.nodes {
            node.status_where("links are lost", |status| status["links"].as_array().map(Vec::len) == Some(2)).await;
        }
    });
}

#[test]
fn a_node_that_hears_and_is_not_heard_holds_nobody_up_and_loses_no_input() {
    five(async |net, shim, crowd| {
        for flow in [Flow::Held, Flow::Swallowed] {
            shim.uplink(2, Weather::flow(flow));
            more_ledgers(net, &[0, 1, 3, 4], 5).await;
            // It hears, so it follows.
            let seq = net.nodes[0].seq().await;
            net.nodes[2].status_where("it follows", |status| status["seq"].as_u64() >= Some(seq)).await;
            shim.uplink(2, Weather::default());
            crowd.more_answers(5).await;
        }
    });
}

#[test]
fn a_node_that_is_heard_and_does_not_hear_comes_back_in_sync() {
    five(async |net, shim, _| {
        for from in [0, 1, 2, 4] {
            shim.set(from, 3, Weather::flow(Flow::Swallowed));
        }
        let seq = net.nodes[3].seq().await;
        more_ledgers(net, &[0, 1, 2, 4], 5).await;
        shim.everywhere(Weather::default());
        net.nodes[3].status_where("it is in sync", |status| status["seq"].as_u64() >= Some(seq + 5)).await;
    });
}

#[test]
fn a_network_in_two_parts_closes_nothing_and_goes_on_as_one() {
    five(async |net, shim, _| {
        for (from, to) in [0, 1, 2].into_iter().flat_map(|from| [(from, 3), (from, 4)]) {
            shim.set(from, to, Weather::flow(Flow::Cut));
            shim.set(to, from, Weather::flow(Flow::Cut));
        }
        for (at, left) in [2, 2, 2, 1, 1].into_iter().enumerate() {
            let cut = |status: &serde_json::Value| status["links"].as_array().map(Vec::len) == Some(left);
            net.nodes[at].status_where("the links across are gone", cut).await;
        }
        // What was under way when the last link went may still have closed a ledger.
        let mut held = Vec::new();
        for node in &net.nodes {
            held.push(node.seq().await);
        }
        let inputs = |status: &serde_json::Value| status["pool"].as_u64() >= Some(1);
        for (node, held) in net.nodes.iter().zip(held) {
            let status = node.status_where("users' inputs wait", inputs).await;
            assert!(status["seq"].as_u64() <= Some(held + 1), "closed without a quorum: {status}");
        }
    });
}

#[test]
fn a_node_that_stood_still_for_seconds_loses_no_input_of_its_users() {
    five(async |net, _, crowd| {
        net.nodes[1].signal(Signal::SIGSTOP);
        // As long as a test run has time for; scripts/torture stops nodes for half a minute.
        let before = net.nodes[0].seq().await;
        sleep(Duration::from_secs(5)).await;
        until("ledgers close meanwhile", async || (net.nodes[0].seq().await > before).then_some(())).await;
        net.nodes[1].signal(Signal::SIGCONT);
        crowd.more_answers(10).await;
    });
}
