//! Scripted schedules: the ones that made other implementations fork or halt, and those that stopped earlier forms of
//! this protocol. `World` checks every property in each of them.

use std::{cell::Cell, rc::Rc};

use hotpocket::{
    consensus::{
        Event, LocalInput,
        messages::{Message, Novel, Signed},
    },
    types::{Attempt, Challenge, Hash, NodeKey, Seq, Sig, UserKey},
};

use super::{
    properties::Coverage,
    rng::Rng,
    world::{Config, Fate, Happening, Manner, World},
};

/// Nodes that are linked and wait for the first round.
pub fn calm(n: usize, threshold: u8) -> World {
    linked(Config::calm(n, threshold), 1)
}

pub fn linked(cfg: Config, seed: u64) -> World {
    let mut world = World::new(cfg, Rng::new(seed));
    world.run(LINKED_MS, |_| false);
    world
}

/// By then all links are up, and noticed.
const LINKED_MS: u64 = 40;

/// Decides about messages of a round by kind and attempt, from and to whom.
pub fn filter(world: &mut World, mut drop: impl FnMut(u64, usize, usize, &Message) -> bool + 'static) {
    world.filter = Some(Box::new(move |now, from, to, message| match drop(now, from, to, message) {
        true => Fate::Drop,
        false => Fate::Pass,
    }));
}

pub fn is(message: &Message, kind: &str, seq: Seq, attempt: Attempt) -> bool {
    message.kind() == kind && message.round_seq() == Some(seq) && message.round_attempt() == attempt
}

pub fn all_at(world: &World, seq: Seq) -> bool {
    world.sound().all(|node| world.seq(node) >= seq)
}

pub fn attempt(world: &World, node: usize) -> Attempt {
    world.nodes[node].core.as_ref().map_or(0, |core| core.summary().attempt)
}

/// Ledgers that took more than one attempt.
fn late_closes(seen: &Coverage) -> u64 {
    let late = ["closed at attempt 1", "closed at attempt 2", "closed at attempt 3 or later"];
    late.iter().map(|what| seen.of(what)).sum()
}

pub fn inputs_in_chain(world: &World) -> usize {
    world.watch.chain.iter().map(|(_, ledger)| ledger.candidate.inputs.len()).sum()
}

// ---- What made others fork or halt ------------------------------------------------------------------------------

#[test]
pub fn inputs_that_arrive_in_another_order_make_one_ledger() {
    let mut world = linked(Config { eager: false, roundtime_ms: 100, ..Config::calm(4, 75) }, 1);
    for node in 0..4 {
        // Each host has its own input first.
        world.input(node, vec![node as u8]);
    }
    assert!(world.run(1000, |world| all_at(world, 1)));
    assert_eq!(world.watch.chain[0].1.candidate.inputs.len(), 4);
}

#[test]
pub fn an_input_that_was_lost_on_its_way_takes_effect_before_the_next_of_its_session() {
    let mut world = linked(Config { eager: false, roundtime_ms: 100, ..Config::calm(4, 75) }, 1);
    // As before the host's links are up: the others hear of it when its host lists it.
    let lost = Cell::new(0);
    filter(&mut world, move |_, from, _, message| {
        let is_first = from == 0 && matches!(message, Message::Input(input) if input.payload == [1]);
        is_first && lost.replace(lost.get() + 1) < 3
    });
    for number in 0..3 {
        let payload = vec![number as u8 + 1];
        let (user, challenge) = (UserKey([9; 32]), Challenge([3; 16]));
        let local = LocalInput { user, challenge, helo_sig: Sig([0; 64]), nonce: number, payload };
        world.handle(0, Event::LocalInput(local));
    }
    assert!(world.run(5000, |world| inputs_in_chain(world) == 3), "{}", world.describe());
    assert!(world.watch.chain[0].1.candidate.inputs.is_empty(), "what follows it waits");
    assert_eq!(world.watch.seen.of("inputs behind the one before"), 2);
}

#[test]
fn an_input_whose_predecessor_is_lost_for_good_waits_no_longer_than_it_must() {
    let mut world = linked(Config { input_window: 40, eager: false, roundtime_ms: 100, ..Config::calm(4, 75) }, 1);
    let (user, challenge) = (UserKey([9; 32]), Challenge([3; 16]));
    // Two come, the first is lost, and its host ends before it is on any disk.
    filter(&mut world, |_, from, _, message| {
        from == 0 && matches!(message, Message::Input(input) if input.payload == [1])
    });
    for number in 0..2 {
        let payload = vec![number as u8 + 1];
        let local = LocalInput { user, challenge, helo_sig: Sig([0; 64]), nonce: number, payload };
        world.handle(0, Event::LocalInput(local));
    }
    world.run(world.now + 50, |_| false);
    world.crash(0);
    assert!(world.run(60_000, |world| inputs_in_chain(world) == 1), "{}", world.describe());
    assert_eq!(world.watch.seen.of("inputs that waited long enough"), 1);
}

#[test]
fn a_node_that_missed_a_stage_2_message_takes_the_ledger_of_the_others() {
    let mut world = calm(4, 75);
    filter(&mut world, |_, from, to, message| from < 2 && to == 3 && is(message, "PREVOTE", 1, 0));
    world.input(0, vec![1]);
    assert!(world.run(1000, |world| all_at(world, 1)));
    assert_eq!(world.watch.seen.of("closed at attempt 0"), 4);
}

#[test]
fn a_second_that_ticks_between_two_stages_or_clocks_an_hour_apart_cost_no_attempt() {
    for seed in 0..20 {
        let cfg = Config { wall_off_ms: 3_600_000, time_res_ms: 1, latency_ms: (1, 40), ..Config::calm(5, 80) };
        let mut world = linked(cfg, seed);
        world.input(0, vec![1]);
        assert!(world.run(10_000, |world| all_at(world, 5)), "{}", world.describe());
        let seen = &world.watch.seen;
        assert_eq!(late_closes(seen), 0, "seed {seed}");
    }
}

#[test]
fn when_the_votes_reach_one_node_only_the_rest_close_the_same_ledger_without_it() {
    let mut world = calm(5, 80);
    let healed = Rc::new(Cell::new(false));
    let whole = healed.clone();
    filter(&mut world, move |_, from, to, message| {
        let told = from == 0 && (matches!(message, Message::Closed(_)) || message.round_seq() > Some(1));
        (to != 0 && is(message, "PRECOMMIT", 1, 0) || told) && !whole.get()
    });
    world.input(0, vec![1]);
    // It closes, executes and tells its users; nobody hears of it.
    assert!(world.run(200, |world| world.seq(0) == 1));
    assert!(world.run(5000, |world| (1..5).all(|node| world.seq(node) >= 1)), "{}", world.describe());
    assert_eq!(world.watch.seen.of("closed at attempt 0"), 1);
    assert_eq!(inputs_in_chain(&world), 1);
    healed.set(true);
    assert!(world.run(10_000, |world| all_at(world, 3)), "{}", world.describe());
}

#[test]
fn votes_that_come_after_their_attempt_was_given_up_change_nothing() {
    for late in [130, 200, 400, 900, 2000] {
        for kind in ["PREVOTE", "PRECOMMIT"] {
            let mut world = calm(5, 80);
            world.filter = Some(Box::new(move |_, _, _, message| match is(message, kind, 1, 0) {
                true => Fate::Late(late),
                false => Fate::Pass,
            }));
            world.input(0, vec![1]);
            assert!(world.run(10_000, |world| all_at(world, 3)), "{kind} {late}: {}", world.describe());
            assert!(world.watch.seen.of("closed at attempt 1") > 0, "{kind} {late}");
        }
    }
}

#[test]
fn when_two_of_five_closed_the_others_adopt_the_certificate() {
    let mut world = calm(5, 80);
    filter(&mut world, |now, from, to, message| {
        let hidden = from < 2 && now < 1000 && matches!(message, Message::Closed(_));
        to >= 2 && is(message, "PRECOMMIT", 1, 0) || hidden
    });
    world.input(0, vec![1]);
    assert!(world.run(200, |world| world.seq(0) == 1 && world.seq(1) == 1));
    world.run(900, |_| false);
    assert_eq!([2, 3, 4].map(|node| world.seq(node)), [0, 0, 0], "three of five cannot close");
    assert!(world.run(10_000, |world| all_at(world, 3)), "{}", world.describe());
}

#[test]
fn one_equivocating_node_is_shown_and_stops_nobody() {
    let mut cfg = Config::calm(4, 75);
    cfg.manners[3] = Manner::Equivocates;
    let mut world = linked(cfg, 5);
    for at in 0..100 {
        world.plan(at * 200, Happening::Input);
    }
    // It shows one thing to two of them, and another to the third; now and then somebody gets both.
    world.nodes[3].mask = 0b0011;
    let shown = |world: &World| world.watch.seen.of("evidence") > 0;
    let done = world.run(30_000, |world| shown(world) && all_at(world, 100) && world.unledgered().is_empty());
    assert!(done, "{}", world.describe());
}

#[test]
fn nobody_votes_for_a_ledger_whose_input_bytes_it_lacks() {
    // With a quorum of all three, the ledger waits for the bytes; it is neither closed without them nor dropped.
    let mut world = calm(3, 80);
    filter(&mut world, |now, _, to, message| now < 700 && to == 2 && matches!(message, Message::Input(_)));
    world.input(0, vec![1]);
    world.run(700, |_| false);
    assert_eq!(world.watch.tip(), 0);
    assert!(world.run(5000, |world| all_at(world, 1)), "{}", world.describe());
    assert_eq!(world.watch.chain[0].1.candidate.inputs.len(), 1);
}

#[test]
fn an_input_that_comes_again_after_a_restart_is_not_executed_again() {
    let mut world = calm(4, 75);
    world.input(0, vec![1]);
    assert!(world.run(1000, |world| all_at(world, 1) && inputs_in_chain(world) == 1));
    world.plan(world.now, Happening::PowerCut);
    for at in 0..20 {
        world.plan(world.now + 1500 + 100 * at, Happening::Replay);
    }
    assert!(world.run(10_000, |world| world.now > 5000 && all_at(world, 3)), "{}", world.describe());
    assert_eq!(inputs_in_chain(&world), 1);
}

// ---- What stopped earlier forms of this protocol ----------------------------------------------------------------

/// Loses the given kind of message of the first ledger's first attempt, and cuts the power once `lost` were lost.
fn power_cut_after(world: &mut World, kind: &'static str, lost: usize) {
    let count = Rc::new(Cell::new(0));
    let seen = count.clone();
    filter(world, move |_, _, _, message| {
        let drop = is(message, kind, 1, 0) && seen.get() < lost;
        seen.set(seen.get() + usize::from(drop));
        drop
    });
    assert!(world.run(1000, |_| count.get() >= lost), "{kind} is sent");
    world.plan(world.now, Happening::PowerCut);
}

#[test]
pub fn votes_journaled_before_a_power_cut_of_all_are_shown_again_and_lead_on() {
    for n in [1, 2, 3, 4, 5, 7] {
        for kind in ["PREVOTE", "PRECOMMIT", "NOVEL"] {
            let mut world = calm(n, 80);
            world.input(0, vec![1]);
            if n > 1 {
                power_cut_after(&mut world, kind, n * (n - 1));
            } else {
                world.plan(0, Happening::PowerCut);
            }
            let done = world.run(20_000, |world| all_at(world, 2) && world.unledgered().is_empty());
            assert!(done, "n {n} {kind}: {}", world.describe());
        }
    }
}

#[test]
pub fn a_power_cut_after_the_precommits_loses_no_input() {
    let mut world = calm(4, 75);
    (0..4).for_each(|node| world.input(node, vec![node as u8; 100]));
    power_cut_after(&mut world, "PRECOMMIT", 12);
    assert!(world.run(20_000, |world| all_at(world, 2)), "{}", world.describe());
    assert_eq!(inputs_in_chain(&world), 4);
}

#[test]
fn a_node_that_missed_every_advance_follows_by_the_forwarded_certificate() {
    // Its coordinator too: it proposes by a Tc that it did not collect itself.
    for deaf in 0..4 {
        let mut world = calm(4, 80);
        filter(&mut world, move |_, _, to, message| {
            let lost = matches!(message, Message::Precommit(_)) && message.round_attempt() == 0;
            lost || to == deaf && matches!(message, Message::Advance(_)) && message.round_attempt() == 1
        });
        world.input(0, vec![1]);
        assert!(world.run(500, |world| attempt(world, deaf) >= 1), "{}", world.describe());
        assert!(world.run(5000, |world| all_at(world, 1)), "{}", world.describe());
        assert_eq!(world.watch.seen.of("closed at attempt 1"), 4, "node {deaf} deaf");
    }
}

#[test]
pub fn the_attempt_survives_a_power_cut_of_all() {
    for cut_in in 1..4 {
        let mut world = calm(4, 75);
        let healed = Rc::new(Cell::new(false));
        let whole = healed.clone();
        filter(&mut world, move |_, _, _, message| matches!(message, Message::Precommit(_)) && !whole.get());
        world.input(0, vec![1]);
        assert!(world.run(5000, |world| (0..4).all(|node| attempt(world, node) >= cut_in)), "{}", world.describe());
        // The Tc is on disk with the first vote behind it.
        world.run(world.now + 10, |_| false);
        world.plan(world.now, Happening::PowerCut);
        world.run(world.now + 1, |_| false);
        let restarted = |world: &World| world.nodes.iter().all(|node| node.core.is_some());
        assert!(world.run(world.now + 5000, restarted));
        assert!((0..4).all(|node| attempt(&world, node) >= cut_in), "{}", world.describe());
        healed.set(true);
        assert!(world.run(30_000, |world| all_at(world, 2)), "{}", world.describe());
    }
}

#[test]
pub fn who_left_an_attempt_alone_before_a_power_cut_shows_the_others_the_way_into_it() {
    for (dead, ahead) in (0..5).flat_map(|dead| (0..5).map(move |ahead| (dead, ahead))).filter(|(a, b)| a != b) {
        let mut world = calm(5, 80);
        world.nodes[dead].dead = true;
        world.crash(dead);
        let healed = Rc::new(Cell::new(false));
        let whole = healed.clone();
        filter(&mut world, move |_, _, _, message| {
            let vote = matches!(message, Message::Prevote(_) | Message::Precommit(_) | Message::Propose(_));
            vote && !whole.get()
        });
        world.input(ahead, vec![1]);
        let live = |world: &World| (0..5).filter(|node| *node != dead).all(|node| attempt(world, node) == 1);
        assert!(world.run(2000, live), "{}", world.describe());
        // The others go down at once; one asks for attempt 2 before it does.
        for node in (0..5).filter(|node| *node != ahead) {
            world.nodes[node].dead = true;
            world.crash(node);
        }
        let asked = |world: &World| {
            let advance = &world.nodes[ahead].disk.journal.advance;
            advance.as_ref().is_some_and(|advance| advance.vote.body.attempt == 2)
        };
        assert!(world.run(3000, asked), "{}", world.describe());
        world.crash(ahead);
        (0..5).for_each(|node| world.nodes[node].dead = node == dead);
        healed.set(true);
        world.plan(world.now + 2000, Happening::Gst);
        assert!(world.run(30_000, |world| all_at(world, 2)), "dead {dead}, ahead {ahead}: {}", world.describe());
    }
}

#[test]
pub fn a_certificate_sent_again_and_again_does_not_hold_up_the_attempt() {
    let mut world = calm(4, 80);
    let forward = Rc::new(Cell::new(None));
    let seen = forward.clone();
    filter(&mut world, move |_, _, _, message| {
        if message.round_attempt() == 1
            && let Message::TcFwd(_) = message
        {
            seen.set(Some(message.clone()));
        }
        // Attempts 0 and 1 fail.
        matches!(message, Message::Prevote(_)) && message.round_attempt() <= 1
    });
    world.input(0, vec![1]);
    assert!(world.run(1000, |world| (0..4).all(|node| attempt(world, node) == 1)));
    let message = forward.take().expect("somebody forwarded");
    let entered = world.now;
    while world.now < entered + 400 && attempt(&world, 0) == 1 && world.watch.tip() == 0 {
        let key = NodeKey([2; 32]);
        world.handle(0, Event::Message(key, message.clone()));
        world.run(world.now + 20, |_| false);
    }
    assert!(world.now < entered + 300, "T(1) is 240 ms and was started once: {}", world.describe());
    assert!(world.run(20_000, |world| all_at(world, 2)), "{}", world.describe());
}

#[test]
fn attempts_do_not_climb_while_nothing_can_be_derived() {
    // Restarted, and then idle; or without a quorum.
    for lacking in [0, 1] {
        let mut world = linked(Config { roundtime_ms: 60_000, ..Config::calm(4, 80) }, 1);
        world.input(0, vec![1]);
        assert!(world.run(3000, |world| all_at(world, 1)));
        world.nodes[3].dead = lacking == 1;
        (0..4).for_each(|node| world.crash(node));
        if lacking == 1 {
            world.input(0, vec![1]);
        }
        world.run(30_000, |_| false);
        assert!(world.sound().all(|node| attempt(&world, node) == 0), "{}", world.describe());
    }
}

#[test]
fn a_run_that_ended_without_a_journaled_result_is_run_again_from_its_pre_state() {
    let mut world = linked(Config { disk_ms: (5, 5), run_ms: (30, 30), ..Config::calm(4, 75) }, 1);
    world.input(0, vec![1]);
    // The post-state is there, the RESULT is not.
    let between = |world: &World| world.nodes[0].disk.state.0 == 1 && world.nodes[0].disk.journal.result.is_none();
    assert!(world.run(2000, between));
    (0..4).for_each(|node| world.crash(node));
    let done = world.run(20_000, |world| world.watch.seen.of("delivered") >= 4 && all_at(world, 2));
    assert!(done, "{}", world.describe());
    assert!(world.watch.seen.of("rollbacks of a touched state") > 0);
}

#[test]
fn a_node_that_was_away_for_a_hundred_ledgers_is_back_in_a_second_of_running_them() {
    let mut world = linked(Config { roundtime_ms: 20, ..Config::calm(4, 75) }, 1);
    world.nodes[3].dead = true;
    world.crash(3);
    assert!(world.run(10_000, |world| world.seq(0) >= 100), "{}", world.describe());
    world.nodes[3].dead = false;
    let back = world.now;
    world.plan(back, Happening::Gst);
    let done = world.run(back + 2000, |world| world.seq(3) + 1 >= world.watch.tip());
    assert!(done, "{}", world.describe());
    assert!(world.run(world.now + 1000, |world| world.nodes[3].disk.state.0 + 1 >= world.watch.tip()));
}

#[test]
fn a_node_whose_runs_lag_goes_on_closing_and_voting_and_fetches_the_state_instead_of_running_all() {
    let mut world = linked(Config { roundtime_ms: 20, ..Config::calm(5, 80) }, 1);
    world.nodes[4].slow_ms = 200;
    assert!(world.run(60_000, |world| world.seq(4) >= 300), "{}", world.describe());
    let fetched = world.watch.seen.of("states given up to catch up");
    assert!(fetched >= 3, "{fetched} times");
    assert!(world.nodes[4].disk.state.0 + 120 > world.watch.tip(), "it is never far behind: {}", world.describe());
    assert!(world.seq(4) + 1 >= world.watch.tip(), "it is not behind in closing: {}", world.describe());
    let key = NodeKey([5; 32]);
    let late = &world.watch.chain[200..];
    let signed = late.iter().filter(|(_, ledger)| ledger.qc.sigs.iter().any(|(signer, _)| *signer == key));
    assert!(signed.count() > 0, "its votes are in certificates");
    world.crash(4);
    world.nodes[4].slow_ms = 0;
    assert!(world.run(world.now + 20_000, |world| world.nodes[4].disk.state.0 >= 300), "{}", world.describe());
    assert!(world.run(world.now + 1_000, |world| world.nodes[4].disk.state.0 + 1 >= world.watch.tip()));
}

#[test]
#[should_panic(expected = "S1: node 1 closed another ledger 1")]
fn beyond_the_tolerated_number_twins_fork_and_the_simulator_sees_it() {
    // Three of five; two are tolerated. The second twins are nodes 5, 6 and 7.
    let mut cfg = Config::calm(5, 80);
    cfg.manners[2..].fill(Manner::Twins);
    let mut world = linked(cfg, 1);
    world.nodes.iter_mut().for_each(|node| node.mask = u64::MAX);
    let in_first = |node: usize| [0, 2, 3, 4].contains(&node);
    filter(&mut world, move |_, from, to, _| in_first(from) != in_first(to));
    world.input(0, vec![1]);
    world.input(1, vec![2]);
    world.run(5000, |_| false);
}

#[test]
fn an_input_that_nobody_else_got_expires_with_its_last_ledger_and_its_user_is_told() {
    let mut world = linked(Config { input_window: 3, roundtime_ms: 100, ..Config::calm(4, 75) }, 1);
    filter(&mut world, |_, from, _, message| from == 0 && matches!(message, Message::Input(_) | Message::Novel(_)));
    world.input(0, vec![1]);
    assert!(world.run(10_000, |world| world.seq(0) >= 1));
    assert_eq!(world.unledgered().len(), 1, "while it may still be ledgered it is owed");
    assert!(world.run(10_000, |world| world.seq(0) >= 3 && world.watch.seen.of("expired inputs") > 0));
    assert_eq!((world.seq(0), inputs_in_chain(&world)), (3, 0));
    assert!(world.unledgered().is_empty(), "nobody is owed what its last ledger went without");
    assert!(world.run(10_000, |world| all_at(world, 5)));
    assert!(world.nodes[0].disk.journal.pool.is_empty(), "{}", world.describe());
}

#[test]
fn an_observer_follows_and_signs_no_vote() {
    let mut world = linked(Config { observers: 2, roundtime_ms: 100, ..Config::calm(4, 75) }, 1);
    world.input(0, vec![1]);
    filter(&mut world, |_, from, _, message| {
        assert!(from < 4 || message.round_seq().is_none(), "{message:?}");
        false
    });
    assert!(world.run(10_000, |world| all_at(world, 10)), "{}", world.describe());
    assert!(world.run(10_000, |world| world.nodes[5].disk.state.0 >= 10), "it runs them too");
}

#[test]
fn a_crash_among_runs_in_a_row_finds_the_pre_state_of_the_one_without_a_result() {
    let mut world = linked(Config { run_ms: (30, 30), disk_ms: (3, 3), ..Config::calm(4, 75) }, 1);
    world.nodes[3].dead = true;
    world.crash(3);
    let others = |world: &World, seq: Seq| (0..3).all(|node| world.seq(node) >= seq);
    for seq in 1..=8 {
        world.input(0, vec![1]);
        assert!(world.run(world.now + 2000, |world| others(world, seq)), "{}", world.describe());
    }
    world.nodes[3].dead = false;
    for done in [2, 4, 6] {
        world.plan(world.now, Happening::Gst);
        // It has all ledgers, and runs them one after the other.
        assert!(world.run(world.now + 5000, |world| world.nodes[3].disk.state.0 >= done), "{}", world.describe());
        world.crash(3);
    }
    assert!(world.run(world.now + 10_000, |world| world.nodes[3].disk.state.0 >= 8), "{}", world.describe());
}

// ---- Crashes everywhere -----------------------------------------------------------------------------------------

#[test]
fn a_crash_at_any_effect_breaks_nothing() {
    for (n, threshold) in [(1, 80), (3, 80), (4, 75)] {
        for after in 0..60 {
            let mut world =
                linked(Config { disk_ms: (0, 3), run_ms: (0, 5), ..Config::calm(n, threshold) }, after.into());
            world.plan(world.now, Happening::Crash(0, after));
            for node in 0..n {
                world.input(node, vec![node as u8]);
            }
            let done = world.run(30_000, |world| all_at(world, 3) && world.unledgered().is_empty());
            assert!(done, "n {n}, effect {after}: {}", world.describe());
        }
    }
}

#[test]
fn a_power_cut_of_all_at_any_millisecond_breaks_nothing() {
    for (n, threshold) in [(1, 80), (3, 80), (4, 75)] {
        for after in 0..40 {
            let cfg = Config { disk_ms: (1, 4), run_ms: (3, 9), latency_ms: (1, 4), ..Config::calm(n, threshold) };
            let mut world = linked(cfg, after);
            world.plan(world.now + after, Happening::PowerCut);
            for node in 0..n {
                world.input(node, vec![node as u8]);
            }
            let done = world.run(30_000, |world| all_at(world, 3) && world.unledgered().is_empty());
            assert!(done, "n {n}, after {after} ms: {}", world.describe());
        }
    }
}

// ---- What the simulator found -----------------------------------------------------------------------------------

#[test]
fn an_input_that_a_minority_holds_reaches_all_though_rounds_are_quicker_than_patience() {
    let mut world = calm(5, 80);
    filter(&mut world, |now, _, to, message| now < LINKED_MS + 5 && to >= 2 && matches!(message, Message::Input(_)));
    world.input(0, vec![1]);
    let done = world.run(5000, |world| inputs_in_chain(world) == 1 && all_at(world, 2));
    assert!(done, "{}", world.describe());
}

#[test]
fn two_nodes_that_say_the_same_have_novels_of_different_names() {
    let body = Novel {
        seq: 1,
        parent: Hash::ZERO,
        time_slot: 0,
        users_add: vec![],
        users_del: vec![],
        inputs: vec![],
        unl_vote: None,
        settlement: None,
    };
    let novel = |key| Signed { from: NodeKey([key; 32]), body: body.clone(), sig: Sig([0; 64]) };
    assert_ne!(novel(1).id(), novel(2).id());
}

#[test]
fn lost_novels_are_sent_again_soon_even_after_a_long_idle_time() {
    let mut world = linked(Config { roundtime_ms: 60_000, ..Config::calm(3, 100) }, 1);
    world.input(0, vec![1]);
    assert!(world.run(2000, |world| all_at(world, 1)));
    for idle in [5_000, 5_700, 6_300, 7_900] {
        let goal = world.watch.tip() + 1;
        world.run(world.now + idle, |_| false);
        let lost = Rc::new(Cell::new(0));
        filter(&mut world, move |_, _, _, message| {
            let drop = lost.get() < 6 && is(message, "NOVEL", goal, 0);
            lost.set(lost.get() + usize::from(drop));
            drop
        });
        let began = world.now;
        world.input(0, vec![2]);
        assert!(world.run(began + 400, |world| all_at(world, goal)), "idle {idle}: {}", world.describe());
    }
}

#[test]
fn a_timer_that_goes_off_while_the_disk_is_slow_does_not_cost_the_next_ledger_an_attempt() {
    // Taking T(0) back waits behind the sync of the close; by then T(0) has gone off.
    let mut world = linked(Config { disk_ms: (50, 50), ..Config::calm(3, 100) }, 1);
    for seq in 1..=5 {
        world.input(0, vec![1]);
        assert!(world.run(world.now + 5000, |world| all_at(world, seq)), "{}", world.describe());
    }
    let seen = &world.watch.seen;
    assert_eq!(late_closes(seen), 0, "{}", world.describe());
}
