//! Networks of real processes: they agree, survive kill -9 and power cuts, and lose or repeat nothing.

mod backup;
mod bad_input;
mod catchup;
mod client;
mod crowd;
mod dev;
mod divergence;
mod faults;
mod flood;
mod hostile;
mod http;
mod join;
mod ledger;
mod legacy;
mod members;
mod metrics;
mod multisign;
mod operator;
mod overtime;
mod reads;
mod recover;
mod rows;
mod settled;
mod settlement;
mod signed;
mod silence;
mod state;
mod strangers;
mod surroundings;
mod sync;
mod tls;
mod torture;
mod wallet;
mod watch;
mod weather;

use nix::sys::signal::Signal;

use crate::net::{Net, TestNode, block_on, until};

#[test]
fn networks_of_2_3_and_5_answer_through_every_node_with_equal_ledgers() {
    for n in [2, 3, 5] {
        block_on(async {
            let net = Net::up(n).await;
            let mut total = 0;
            for node in &net.nodes {
                total += 5;
                assert_eq!(node.user().await.ask("hello").await, format!("5 {total}"), "n = {n}");
            }
            net.agree().await;
            for node in &net.nodes {
                assert_eq!(node.state("inputs"), total.to_string(), "n = {n}");
            }
        });
    }
}

#[test]
fn one_of_five_may_be_killed_and_closes_ledgers_again_after_its_return() {
    block_on(async {
        let mut net = Net::up(5).await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("one").await, "3 3");
        net.nodes[4].kill().await;
        for round in 1..=10 {
            assert_eq!(user.ask("more").await, format!("4 {}", 3 + 4 * round));
        }
        net.nodes[4].start().await;
        let (seq, _) = net.agree().await;
        assert_eq!(user.ask("last").await, "4 47");
        net.closed(seq + 1).await;
        let mut through_the_returned = net.nodes[4].user().await;
        assert_eq!(through_the_returned.ask("again").await, "5 52");
        net.agree().await;
        assert_eq!(net.nodes[4].state("inputs"), net.nodes[0].state("inputs"));
    });
}

/// What a counting contract has counted after one more byte. Before, three bytes were sent and maybe not taken: they count
/// once or not at all.
async fn count_again(node: &TestNode, total: u64) -> u64 {
    let answer = node.user().await.ask("z").await;
    let ever: u64 = answer.strip_prefix("1 ").expect("one byte now").parse().unwrap();
    assert!(ever == total + 1 || ever == total + 4, "{answer} after {total}: the last input counts once or not");
    ever
}

#[test]
fn a_power_cut_of_all_nodes_loses_nothing_that_was_answered_and_repeats_nothing() {
    block_on(async {
        let mut net = Net::up(3).await;
        let mut total = 0;
        for cut in 0..4 {
            let mut user = net.nodes[cut % 3].user().await;
            for _ in 0..5 {
                total += 3;
                assert_eq!(user.ask("abc").await, format!("3 {total}"));
            }
            // In the middle of whatever they do.
            user.send("abc").await;
            net.kill_all().await;
            net.start_all().await;
            // An input that reached a disk takes effect now, in whichever ledger.
            for node in &net.nodes {
                node.status_where("no input waits", |status| status["pool"] == 0 && status["unexecuted"] == 0).await;
            }
            total = count_again(&net.nodes[(cut + 1) % 3], total).await;
            net.agree().await;
        }
    });
}

#[test]
fn a_node_that_hangs_in_the_contract_is_killed_with_it_and_leaves_no_orphan() {
    block_on(async {
        let mut net = Net::up(1).await;
        let mut user = net.nodes[0].user().await;
        user.send("hang").await;
        let node = &net.nodes[0];
        node.contract_runs().await;
        node.signal(Signal::SIGKILL);
        until("the contract is gone", async || node.contracts().is_empty().then_some(())).await;
        net.nodes[0].ended().await;
    });
}

#[test]
fn a_failed_run_changes_nothing_and_its_user_is_told() {
    block_on(async {
        let net = Net::up(3).await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        user.send("fail now").await;
        let (code, message) = user.error().await;
        assert_eq!(code, "contract_failed");
        assert!(message.contains("exit code 3"), "{message}");
        assert_eq!(user.ask("four").await, "4 8", "the failed run left nothing");
        net.agree().await;
    });
}
