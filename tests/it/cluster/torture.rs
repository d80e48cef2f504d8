//! A mix of everything that can happen to the processes of a network and to the links between them, while users go on.
//! Replayed by its seed: the same things happen in the same order, though not at the same instants.

use std::{
    env,
    fmt::Write as _,
    time::{Duration, Instant},
};

use hotpocket::types::Hash;
use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::{
    crowd::Crowd,
    weather::{all_linked, through_the_shim},
};
use crate::{
    net::{DEADLINE, Net, block_on_for, plain, record},
    shim::{self, Flow, Shim, Weather},
};

const NODES: usize = 5;
/// A seed that shows a fault becomes one more of these.
const SEEDS: [u64; 1] = [9];
/// What happens to the network in one test.
const TURNS: u64 = 16;
/// Users and links have so many turns of trouble before everything must have come to rest once.
const TURNS_A_CHAPTER: u64 = 25;

/// What has happened so far.
#[derive(Default)]
struct Tally {
    kills: u64,
    power_cuts: u64,
    stops: u64,
    link_troubles: u64,
}

/// Numbers of one turn that look random and are the same in every run.
struct Drawn {
    seed: u64,
    turn: u64,
}

impl Drawn {
    fn below(&self, what: &str, end: u64) -> u64 {
        let hash = Hash::tagged(what, &(self.seed, self.turn)).0;
        u64::from_le_bytes(hash[..8].try_into().expect("eight bytes")) % end
    }

    fn node(&self, what: &str) -> usize {
        usize::try_from(self.below(what, NODES as u64)).expect("small")
    }

    async fn pause(&self, what: &str, most_ms: u64) {
        sleep(Duration::from_millis(self.below(what, most_ms))).await;
    }
}

/// Does one thing to the network, and says what. All nodes run afterwards; links may stay bad for a while.
async fn harm(net: &mut Net, shim: &Shim, drawn: &Drawn, longest_stop_ms: u64, tally: &mut Tally) -> String {
    let at = drawn.node("node");
    let other = (at + 1) % NODES;
    let quorum_lost = drawn.below("both", 3) == 0;
    let late = Weather::late(drawn.below("late", 1_000));
    let mut said = String::new();
    match drawn.below("what", 16) {
        0..=2 => {
            said += &format!("kill -9 of {at}");
            tally.kills += 1;
            net.nodes[at].kill().await;
            drawn.pause("down", 200).await;
        }
        3 => {
            said += &format!("SIGTERM to {at}");
            net.nodes[at].signal(Signal::SIGTERM);
            assert_eq!(net.nodes[at].ended().await, Some(0));
        }
        4 => {
            said += "power cut of all";
            tally.power_cuts += 1;
            net.kill_all().await;
        }
        // More than may be down: nothing is closed until they are back.
        5 => {
            said += &format!("kill -9 of {at} and {other}");
            tally.kills += 2;
            net.nodes[at].kill().await;
            net.nodes[other].kill().await;
            net.nodes[at].start().await;
            drawn.pause("down", 200).await;
        }
        6 | 7 => {
            let ms = drawn.below("still", longest_stop_ms);
            said += &format!("SIGSTOP of {at} for {ms} ms");
            tally.stops += 1;
            net.nodes[at].signal(Signal::SIGSTOP);
            sleep(Duration::from_millis(ms)).await;
            net.nodes[at].signal(Signal::SIGCONT);
        }
        8 => {
            said += &format!("kill -9 of {at}, three times");
            for _ in 0..3 {
                tally.kills += 1;
                net.nodes[at].kill().await;
                net.nodes[at].start().await;
                drawn.pause("up", 60).await;
            }
        }
        9 => {
            said += &format!("uplink of {at} late by {} ms", late.delay.as_millis());
            shim.uplink(at, late);
            if quorum_lost {
                said += &format!(", of {other} too");
                shim.uplink(other, late);
            }
        }
        10 => {
            said += &format!("uplink of {at} late by {} ms, {other} isolated", late.delay.as_millis());
            shim.uplink(at, late);
            shim.around(other, Weather::flow(Flow::Cut));
        }
        11 => {
            let flow =
                [Flow::Held, Flow::Swallowed, Flow::Cut][usize::try_from(drawn.below("flow", 3)).expect("small")];
            said += &format!("uplink of {at}: {flow:?}");
            shim.uplink(at, Weather::flow(flow));
        }
        12 => {
            let flow = [Flow::Held, Flow::Swallowed][usize::try_from(drawn.below("flow", 2)).expect("small")];
            said += &format!("{at} hears nobody: {flow:?}");
            (0..NODES).for_each(|from| shim.set(from, at, Weather::flow(flow)));
        }
        13 => {
            said += &format!("{at} and {other} cut from the rest");
            for apart in [at, other] {
                (0..NODES).filter(|to| ![at, other].contains(to)).for_each(|to| {
                    shim.set(apart, to, Weather::flow(Flow::Cut));
                    shim.set(to, apart, Weather::flow(Flow::Cut));
                });
            }
        }
        14 => {
            let jitter = Duration::from_millis(drawn.below("jitter", 150));
            said += &format!("jitter of {} ms, 300 kB/s", jitter.as_millis());
            shim.everywhere(Weather { jitter, bytes_per_s: 300_000, ..Weather::default() });
        }
        _ => {
            said += "fair links";
            shim.everywhere(Weather::default());
        }
    }
    if (9..15).contains(&drawn.below("what", 16)) {
        tally.link_troubles += 1;
        drawn.pause("bad", 1_500).await;
        // Else something else happens on top of it.
        if drawn.below("heal", 3) > 0 {
            said += ", and well again";
            shim.everywhere(Weather::default());
        }
    }
    net.start_all().await;
    said
}

/// Turns of trouble until `over` says so, then rest, and everything must be right. Gives the last ledger and the
/// inputs answered.
async fn chapter(
    net: &mut Net,
    shim: &Shim,
    turns: impl Iterator<Item = Drawn>,
    longest_stop_ms: u64,
    tally: &mut Tally,
    tell: impl Fn(&str),
) -> (u64, u64) {
    let answers = Crowd::around(net, 3, async |net, crowd| {
        for drawn in turns {
            drawn.pause("quiet", 120).await;
            tell(&harm(net, shim, &drawn, longest_stop_ms, tally).await);
            crowd.follow(net);
        }
        shim.everywhere(Weather::default());
        all_linked(net).await;
        crowd.more_answers(3).await;
    })
    .await;
    (net.agree().await.0, answers)
}

#[test]
fn any_mix_of_kills_stops_power_cuts_and_bad_links_keeps_each_answered_input_once_and_all_logs_alike() {
    for seed in SEEDS {
        block_on_for(3 * DEADLINE, async {
            let (mut net, shim) = shim::network(NODES, record(), plain);
            net.start_all().await;
            let turns = (0..TURNS).map(|turn| Drawn { seed, turn });
            chapter(&mut net, &shim, turns, 400, &mut Tally::default(), |_| {}).await;
            through_the_shim(&net, &shim).await;
        });
    }
}

#[test]
#[ignore = "goes on for as long as scripts/torture tells it to"]
fn on_and_on() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let minutes = number("HP_TORTURE_MINUTES").expect("HP_TORTURE_MINUTES is set: use scripts/torture");
    let seed = number("HP_TORTURE_SEED").expect("HP_TORTURE_SEED is set: use scripts/torture");
    let began = Instant::now();
    let end = began + Duration::from_secs(60 * minutes);
    let tell = |what: &str| println!("{:7.1} s  {what}", began.elapsed().as_secs_f64());
    println!("seed {seed}: five nodes, three users, {minutes} minutes");
    let (mut tally, mut ledgers, mut answers, mut turn) = (Tally::default(), 0, 0, 0);
    // Whatever waits for too long inside fails by itself.
    block_on_for(end - began + 10 * DEADLINE, async {
        let (mut net, shim) = shim::network(NODES, record(), plain);
        net.start_all().await;
        while Instant::now() < end {
            let from = turn;
            let turns = std::iter::from_fn(|| {
                turn += 1;
                (Instant::now() < end && turn <= from + TURNS_A_CHAPTER).then_some(Drawn { seed, turn })
            });
            let (seq, answered) = chapter(&mut net, &shim, turns, 30_000, &mut tally, tell).await;
            (ledgers, answers) = (seq, answers + answered);
            tell(&format!("at rest: {seq} ledgers, {answers} inputs answered, each once, all logs alike"));
        }
        through_the_shim(&net, &shim).await;
    });
    let mut summary = String::new();
    let Tally { kills, power_cuts, stops, link_troubles } = tally;
    write!(
        summary,
        "seed {seed}: {ledgers} ledgers, {answers} inputs answered, {kills} kills, {power_cuts} power cuts, {stops} \
         stops, {link_troubles} troubles of links: nothing lost, nothing twice, all chains alike"
    )
    .expect("text");
    println!("{summary}");
}
