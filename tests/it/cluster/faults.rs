//! Nodes that are killed, stopped, cut off and ended at the worst moments, while users go on.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use hotpocket::types::Hash;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::crowd::{Crowd, verified};
use crate::net::{Net, TestNode, User, block_on, is_alive, plain, probe, record, until};

/// A number below `end` that looks random and is the same in every run.
fn drawn(what: &str, turn: u64, end: u64) -> u64 {
    let hash = Hash::tagged(what, &turn).0;
    u64::from_le_bytes(hash[..8].try_into().expect("eight bytes")) % end
}

/// Sends one input after the other, `<first>\n` and so on, each when the one before was answered. Gives the first that
/// was not sent.
pub async fn count(user: &mut User, numbers: std::ops::Range<u64>) -> u64 {
    for number in numbers.clone() {
        let input = format!("{number}\n");
        assert_eq!(user.ask(&input).await, input);
    }
    numbers.end
}

/// Every number below `end`, once and in order, on every node.
pub fn counted(net: &Net, end: u64) {
    let expected: String = (0..end).map(|number| format!("{number}\n")).collect();
    for node in &net.nodes {
        let log: String =
            node.state("log").lines().map(|line| format!("{}\n", line.split_once(' ').expect("two words").1)).collect();
        assert_eq!(log, expected);
    }
}

#[test]
fn kills_of_one_of_five_at_any_moment_lose_and_repeat_no_answered_input() {
    block_on(async {
        let mut net = Net::up_with(5, record(), plain).await;
        let mut user = net.nodes[0].user().await;
        let mut next = 0;
        for kill in 0..10 {
            let victim = 1 + usize::try_from(drawn("victim", kill, 4)).expect("small");
            // Somewhere within the rounds of the next inputs, also between an input and its answer.
            let moment = Duration::from_micros(drawn("moment", kill, 60_000));
            next = {
                let (sent, ()) = futures::join!(count(&mut user, next..next + 10), async {
                    tokio::time::sleep(moment).await;
                    net.nodes[victim].kill().await;
                });
                sent
            };
            next = count(&mut user, next..next + 3).await;
            (next, ()) = futures::join!(count(&mut user, next..next + 10), net.nodes[victim].start());
            let what = format!("kill {kill}: node {victim} is back and in sync");
            let known = net.nodes[0].seq().await;
            net.nodes[victim]
                .status_where(&what, |status| status["synced"] == true && status["seq"].as_u64() >= Some(known))
                .await;
        }
        net.agree().await;
        counted(&net, next);
        verified(&net).await;
    });
}

#[test]
fn power_cuts_of_all_five_while_users_send_lose_and_repeat_no_answered_input() {
    block_on(async {
        let mut net = Net::up_with(5, record(), plain).await;
        Crowd::around(&mut net, 5, async |net, crowd| {
            for cut in 0..6 {
                crowd.more_answers(5).await;
                // Somewhere within a round.
                tokio::time::sleep(Duration::from_micros(drawn("cut", cut, 60_000))).await;
                net.kill_all().await;
                net.start_all().await;
                crowd.follow(net);
            }
            crowd.more_answers(5).await;
        })
        .await;
    });
}

#[test]
fn a_node_that_stood_still_while_the_others_closed_ledgers_catches_up() {
    block_on(async {
        let net = Net::up_with(5, record(), plain).await;
        let mut user = net.nodes[0].user().await;
        let mut next = count(&mut user, 0..3).await;
        net.nodes[3].signal(Signal::SIGSTOP);
        let before = net.nodes[0].seq().await;
        next = count(&mut user, next..next + 10).await;
        net.nodes[0].status_where("five ledgers close", |status| status["seq"].as_u64() >= Some(before + 5)).await;
        net.nodes[3].signal(Signal::SIGCONT);
        next = count(&mut user, next..next + 5).await;
        net.agree().await;
        counted(&net, next);
        assert_eq!(net.nodes[3].user().await.ask("through it\n").await, "through it\n");
    });
}

#[test]
fn kills_of_a_node_that_catches_up_lose_and_repeat_nothing() {
    block_on(async {
        let mut net = Net::up_with(4, record(), |_, config| {
            config.set("consensus.threshold", "75");
        })
        .await;
        let mut user = net.nodes[0].user().await;
        net.nodes[3].kill().await;
        let end = count(&mut user, 0..100).await;
        for _ in 0..6 {
            net.nodes[3].start().await;
            let was = net.nodes[3].state("log").len();
            until("it has run a ledger it had missed", async || {
                (net.nodes[3].state("log").len() > was || net.nodes[3].seq().await > 100).then_some(())
            })
            .await;
            net.nodes[3].kill().await;
        }
        net.nodes[3].start().await;
        net.agree().await;
        counted(&net, end);
    });
}

#[test]
fn a_member_whose_hist_and_state_were_emptied_follows_the_network_from_the_start() {
    block_on(async {
        let mut net = Net::up_with(4, record(), |_, config| {
            config.set("consensus.threshold", "75");
        })
        .await;
        let mut user = net.nodes[0].user().await;
        let next = count(&mut user, 0..30).await;
        net.agree().await;
        net.nodes[3].kill().await;
        for folder in ["hist", "state"] {
            fs::remove_dir_all(net.nodes[3].dir.join(folder)).expect("removed");
        }
        net.nodes[3].start().await;
        let next = count(&mut user, next..next + 10).await;
        net.agree().await;
        net.nodes[3].status_where("it votes again", |status| status["silent"].is_null()).await;
        // It is one of the three that are needed again.
        net.nodes[2].kill().await;
        let next = count(&mut user, next..next + 5).await;
        net.nodes[2].start().await;
        net.agree().await;
        counted(&net, next);
    });
}

#[test]
fn users_of_a_killed_node_leave_the_ledger_and_come_back_with_it() {
    block_on(async {
        let mut net = Net::up_with(4, record(), |_, config| {
            config.set("consensus.threshold", "75").set("roundtime", "200");
        })
        .await;
        let (mut here, mut there) = (net.nodes[0].user().await, net.nodes[2].user().await);
        let known = |count: u64| move |status: &serde_json::Value| status["users"] == count;
        net.nodes[1].status_where("both users are known", known(2)).await;
        assert_eq!(here.ask("push\n").await, "push\npushed\n");
        assert_eq!(there.text().await, "pushed\n", "who sent nothing is reached");
        net.nodes[2].kill().await;
        net.nodes[1].status_where("the user of the killed node is gone", known(1)).await;
        net.nodes[2].start().await;
        there = net.nodes[2].session(there.key.clone()).await;
        net.nodes[1].status_where("both users are known again", known(2)).await;
        assert_eq!(here.ask("push\n").await, "push\npushed\n");
        assert_eq!(there.text().await, "pushed\n");
        net.agree().await;
    });
}

#[test]
fn a_user_that_reads_nothing_is_dropped_and_keeps_nobody_waiting() {
    block_on(async {
        let net = Net::up(1).await;
        let (mut deaf, mut other) = (net.nodes[0].user().await, net.nodes[0].user().await);
        // What the operating system and the node hold for it, and more.
        for _ in 0..16 {
            // It may have been dropped already.
            let _ = deaf.client.send("big").await;
            assert!(other.ask("x").await.starts_with("1 "));
        }
        net.nodes[0].status_where("one of the two is dropped", |status| status["local_users"] == 1).await;
        assert!(other.ask("x").await.starts_with("1 "));
    });
}

#[test]
fn without_a_quorum_nothing_is_answered_and_with_it_again_everything_is() {
    block_on(async {
        let mut net = Net::up_with(3, record(), plain).await;
        let mut user = net.nodes[0].user().await;
        let next = count(&mut user, 0..3).await;
        net.nodes[1].kill().await;
        let held = net.nodes[0].seq().await;
        user.send(format!("{next}\n")).await;
        let waits =
            |status: &serde_json::Value| status["pool"] == 1 && status["live"].as_array().map(Vec::len) == Some(2);
        let status = net.nodes[0].status_where("the input waits", waits).await;
        assert!(status["seq"].as_u64() <= Some(held + 1), "a ledger may have been on its way");
        net.nodes[1].start().await;
        assert_eq!(user.text().await, format!("{next}\n"));
        net.agree().await;
        counted(&net, next + 1);
    });
}

#[test]
fn sigterm_ends_a_node_in_under_2_s_also_in_a_run_that_hangs() {
    block_on(async {
        // The machine may be busy with something else; the node must not need more than its time.
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let mut net = Net::up(1).await;
            let mut user = net.nodes[0].user().await;
            assert_eq!(user.ask("four").await, "4 4");
            user.send("hang").await;
            net.nodes[0].contract_runs().await;
            let contracts = net.nodes[0].contracts();
            let children = crate::net::children(net.nodes[0].pid());
            assert!(!children.is_empty(), "the launcher");
            let asked = Instant::now();
            net.nodes[0].signal(Signal::SIGTERM);
            assert_eq!(net.nodes[0].ended().await, Some(0));
            best = best.min(asked.elapsed());
            until("nothing of it is left", async || {
                (!contracts.iter().chain(&children).any(|pid| is_alive(*pid))).then_some(())
            })
            .await;
            assert!(!net.nodes[0].dir.join("run/hp.sock").exists());
            if best < Duration::from_secs(2) {
                break;
            }
        }
        assert!(best < Duration::from_secs(2), "it took {best:?}");
    });
}

#[test]
fn a_run_that_was_cut_by_a_restart_is_repeated_and_takes_effect_once() {
    block_on(async {
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            let mut net = Net::up(2).await;
            let mut user = net.nodes[0].user().await;
            let mut other = net.nodes[1].user().await;
            assert_eq!(user.ask("four").await, "4 4");
            user.send("wait for it").await;
            for node in &net.nodes {
                until("the run has begun", async || (node.state("inputs") == "half").then_some(())).await;
            }
            net.nodes[1].signal(signal);
            net.nodes[1].ended().await;
            net.nodes[1].start().await;
            net.nodes[1].contract_runs().await;
            until("the run has begun again", async || (net.nodes[1].state("inputs") == "half").then_some(())).await;
            for node in &net.nodes {
                fs::write(node.dir.join("gate"), "").expect("written");
            }
            assert_eq!(user.text().await, "11 15", "after {signal}");
            // The session of the killed node is gone, its user comes again.
            assert!(other.client.recv().await.is_err());
            other = net.nodes[1].session(other.key.clone()).await;
            assert_eq!(other.ask("more").await, "4 19", "after {signal}");
            net.agree().await;
            assert_eq!(net.nodes[0].state("inputs"), net.nodes[1].state("inputs"));
        }
    });
}

#[test]
fn a_run_that_was_cut_by_a_kill_hears_again_what_the_others_said_on_the_party_line() {
    block_on(async {
        let mut net = Net::up_with(3, probe(), |_, config| {
            // Time for the links to come up again, however busy the machine is.
            config.set("contract.npl_window_ms", "20000").set("contract.time_limit_s", "60");
        })
        .await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        for node in [0, 1] {
            fs::write(net.nodes[node].dir.join("gate"), "").expect("written");
        }
        user.send("roll call").await;
        let heard = async |node: &TestNode| {
            until("the contract tells whom it heard", async || {
                let log = fs::read_to_string(node.dir.join("log/contract/stdout.log")).ok()?;
                log.lines().find(|line| line.starts_with("heard")).map(str::to_owned)
            })
            .await
        };
        for node in [0, 1] {
            assert_eq!(heard(&net.nodes[node]).await, "heard 3");
        }
        until("the third has begun", async || (net.nodes[2].state("inputs") == "half").then_some(())).await;
        net.nodes[2].kill().await;
        net.nodes[2].start().await;
        fs::write(net.nodes[2].dir.join("gate"), "").expect("written");
        assert_eq!(heard(&net.nodes[2]).await, "heard 3", "the others said it to the run before");
        assert_eq!(user.text().await, "9 13");
        net.agree().await;
    });
}

#[test]
fn kills_during_the_start_leave_a_folder_that_starts() {
    block_on(async {
        for folder in 0..6 {
            let mut net = Net::new(1, record(), plain);
            for start in 0..4 {
                let moment = Duration::from_millis(drawn("start", 10 * folder + start, 120));
                net.nodes[0].start_and_kill(moment).await;
            }
            net.start_all().await;
            assert_eq!(net.nodes[0].user().await.ask("one\n").await, "one\n");
            for start in 4..6 {
                let moment = Duration::from_millis(drawn("start", 10 * folder + start, 120));
                net.nodes[0].kill().await;
                net.nodes[0].start_and_kill(moment).await;
                net.start_all().await;
            }
            assert_eq!(net.nodes[0].user().await.ask("two\n").await, "two\n");
            assert_eq!(net.nodes[0].state("log").lines().count(), 2);
        }
    });
}

#[test]
fn the_only_node_goes_on_after_every_kill_with_each_input_counted_once() {
    block_on(async {
        let mut net = Net::up_with(1, record(), plain).await;
        let mut sent: BTreeMap<String, bool> = BTreeMap::new();
        for life in 0..8 {
            let mut user = net.nodes[0].user().await;
            let moment = Instant::now() + Duration::from_micros(drawn("life", life, 40_000));
            // At the moment chosen, whatever is under way.
            for number in 0.. {
                let input = format!("{life}-{number}\n");
                sent.insert(input.clone(), false);
                match tokio::time::timeout_at(moment, user.ask(&input)).await {
                    Ok(answer) => {
                        assert_eq!(answer, input);
                        sent.insert(input, true);
                    }
                    Err(_) => break,
                }
            }
            net.nodes[0].kill().await;
            net.start_all().await;
        }
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("last\n").await, "last\n");
        let counts = lines(&net.nodes[0]);
        for (input, answered) in sent {
            let count = counts.get(input.trim_end()).copied().unwrap_or_default();
            assert!(
                count == 1 || (count == 0 && !answered),
                "{input:?} was counted {count} times, answered: {answered}"
            );
        }
    });
}

/// How often each input is in the log of a node.
fn lines(node: &TestNode) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in node.state("log").lines() {
        *counts.entry(line.split_once(' ').expect("two words").1.to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn two_nodes_that_lose_their_links_find_each_other_again() {
    block_on(async {
        let mut net = Net::up_with(2, probe(), plain).await;
        assert_eq!(net.nodes[0].user().await.ask("a").await, "1 1");
        for at in [0, 1] {
            net.nodes[at].kill().await;
            let other = &net.nodes[1 - at];
            other.status_where("the link is down", |status| status["links"].as_array().map(Vec::len) == Some(0)).await;
            net.nodes[at].start().await;
            let other = &net.nodes[1 - at];
            other.status_where("the link is up", |status| status["links"].as_array().map(Vec::len) == Some(1)).await;
        }
        assert_eq!(net.nodes[1].user().await.ask("b").await, "1 2");
        net.agree().await;
    });
}

#[test]
fn two_processes_with_one_key_stop_nobody_and_the_others_tell_of_them() {
    block_on(async {
        let mut net = Net::up_with(4, record(), |_, config| {
            config.set("consensus.threshold", "75");
        })
        .await;
        let mut user = net.nodes[0].user().await;
        let next = count(&mut user, 0..5).await;
        net.nodes[3].signal(Signal::SIGTERM);
        assert_eq!(net.nodes[3].ended().await, Some(0));
        // A copy of the folder is taken somewhere else, and the one it was taken of is started again as well.
        let copy = net.nodes[3].dir.with_file_name("copy");
        copy_folder(&net.nodes[3].dir, &copy);
        net.nodes[3].start().await;
        let mut other = Net::of(tempfile::tempdir().expect("a folder"), vec![copy]);
        let port = net.nodes[3].peer_port();
        other.nodes[0].edit_config(|text| text.replace(&format!("peerport = {port}"), "peerport = 0"));
        other.start_all().await;
        let key = net.nodes[3].secret.as_ref().expect("made here").node_key().to_string();
        let mut next = next;
        until("somebody tells", async || {
            next = count(&mut user, next..next + 1).await;
            for node in &net.nodes[..3] {
                let alerts = node.status().await?["alerts"].to_string();
                if alerts.contains("two processes") && alerts.contains(&key) {
                    return Some(());
                }
            }
            None
        })
        .await;
        // Both are told, and the newer one does not vote.
        until("both say so", async || {
            next = count(&mut user, next..next + 1).await;
            for node in [&net.nodes[3], &other.nodes[0]] {
                node.status().await?["alerts"]
                    .to_string()
                    .contains("another process runs with this node")
                    .then_some(())?;
            }
            let silent = other.nodes[0].status().await?["silent"].clone();
            (!silent.is_null() && silent["alarm"] == true).then_some(())
        })
        .await;
        other.nodes[0].kill().await;
        net.agree().await;
        counted(&net, next);
    });
}

pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        match entry.file_type().expect("a kind") {
            kind if kind.is_dir() => copy_folder(&entry.path(), &to.join(entry.file_name())),
            _ => drop(fs::copy(entry.path(), to.join(entry.file_name())).expect("copied")),
        }
    }
}
