//! A mix of everything that can happen to the processes of a network, while users go on. Replayed by its seed.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::Duration,
};

use hotpocket::{
    cli::client::{Frame, RawClient},
    crypto::SecretKey,
    types::Hash,
};
use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use crate::net::{Net, block_on, record};

/// A seed that shows a fault becomes one more of these.
const SEEDS: [u64; 1] = [9];
/// What happens to the network in one test.
const TURNS: u64 = 16;

/// What became of a user's inputs.
struct Sent {
    answered: Vec<String>,
    /// Sent when the node, or the session, ended.
    open: Vec<String>,
}

/// One input after the other through a node, in a new session whenever the one before ended.
async fn talk(name: usize, url: impl Fn() -> String, over: &Cell<bool>) -> Sent {
    let key = SecretKey::generate();
    let mut sent = Sent { answered: Vec::new(), open: Vec::new() };
    let mut number = 0;
    while !over.get() {
        // A node that is stopped accepts, and says nothing.
        let Ok(Ok(mut client)) = timeout(Duration::from_secs(2), RawClient::connect(&url(), &key)).await else {
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        let mut alive = true;
        while alive && !over.get() {
            let input = format!("{name}-{number}\n");
            number += 1;
            sent.open.push(input.clone());
            alive = client.send(input.clone()).await.is_ok();
            while alive && sent.open.contains(&input) {
                match timeout(Duration::from_secs(10), client.recv()).await {
                    // Also what an earlier session of this user sent.
                    Ok(Ok(Frame::Text(text))) => {
                        for line in text.split_inclusive('\n') {
                            let at = sent.open.iter().position(|open| open == line);
                            sent.answered.push(sent.open.remove(at.expect("an input is answered once")));
                        }
                    }
                    _ => alive = false,
                }
            }
        }
    }
    sent
}

/// Does one thing to the network, and leaves all nodes running.
async fn harm(net: &mut Net, drawn: impl Fn(&str, u64) -> u64) {
    let pause = async |what, most_ms| sleep(Duration::from_millis(drawn(what, most_ms))).await;
    let at = usize::try_from(drawn("node", net.nodes.len() as u64)).expect("small");
    let other = (at + 1) % net.nodes.len();
    match drawn("what", 8) {
        0 | 1 => {
            net.nodes[at].kill().await;
            pause("down", 200).await;
        }
        2 => {
            net.nodes[at].signal(Signal::SIGTERM);
            assert_eq!(net.nodes[at].ended().await, Some(0));
        }
        3 => net.kill_all().await,
        // More than may be down: nothing is closed until they are back.
        4 => {
            net.nodes[at].kill().await;
            net.nodes[other].kill().await;
            net.nodes[at].start().await;
            pause("down", 200).await;
        }
        5 | 6 => {
            net.nodes[at].signal(Signal::SIGSTOP);
            pause("still", 400).await;
            net.nodes[at].signal(Signal::SIGCONT);
        }
        _ => {
            for _ in 0..3 {
                net.nodes[at].kill().await;
                net.nodes[at].start().await;
                pause("up", 60).await;
            }
        }
    }
    net.start_all().await;
}

#[test]
fn any_mix_of_kills_stops_and_power_cuts_keeps_each_answered_input_once_and_all_logs_alike() {
    for seed in SEEDS {
        block_on(async {
            let mut net = Net::up_with(4, record(), |_, config| {
                config.set("consensus.threshold", "75");
            })
            .await;
            let urls = RefCell::new(net.nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>());
            let over = Cell::new(false);
            let users = futures::future::join_all((0..3).map(|at| {
                let urls = &urls;
                talk(at, move || urls.borrow()[at].clone(), &over)
            }));
            let harms = async {
                for turn in 0..TURNS {
                    let drawn = |what: &str, end: u64| {
                        let hash = Hash::tagged(what, &(seed, turn)).0;
                        u64::from_le_bytes(hash[..8].try_into().expect("eight bytes")) % end
                    };
                    sleep(Duration::from_millis(drawn("quiet", 120))).await;
                    harm(&mut net, drawn).await;
                    *urls.borrow_mut() = net.nodes.iter().map(|node| node.url.clone()).collect();
                }
                over.set(true);
            };
            let (users, ()) = futures::join!(users, harms);
            net.agree().await;
            let log = net.nodes[0].state("log");
            for node in &net.nodes {
                assert!(node.state("log") == log, "seed {seed}: the logs differ");
            }
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for line in log.lines() {
                *counts.entry(line.split_once(' ').expect("two words").1).or_default() += 1;
            }
            let count = |input: &String| counts.get(input.trim_end()).copied().unwrap_or(0);
            for sent in users {
                assert!(!sent.answered.is_empty(), "seed {seed}: nothing was answered");
                for input in &sent.answered {
                    assert_eq!(count(input), 1, "seed {seed}: {input:?} was answered");
                }
                for input in &sent.open {
                    assert!(count(input) <= 1, "seed {seed}: {input:?} was counted {} times", count(input));
                }
            }
        });
    }
}
