//! Scripted schedules of what ledgers record of the settlement bus.

use hotpocket::{
    consensus::header::Settlement,
    types::{Hash, Seq},
};

use super::{
    schedules::{all_at, linked},
    world::{BusHappening, Config, Happening, Manner, World},
};

/// Longest time for one step: rounds begin every 100 ms here.
const STEP_MS: u64 = 5_000;

fn world(n: usize, threshold: u8) -> World {
    linked(Config { roundtime_ms: 100, ..Config::calm(n, threshold) }, 1)
}

fn recorded(world: &World) -> Option<Settlement> {
    world.watch.chain.last().and_then(|(_, ledger)| ledger.candidate.header.settlement.clone())
}

fn settled(seq: Seq) -> Settlement {
    let hash = |at| Hash([at; 32]);
    Settlement { seq, ch: hash(1), tx: hash(2), confirmed_length: 3, txv: hash(4) }
}

fn vote(world: &mut World, nodes: &[usize], settlement: &Settlement) {
    for node in nodes {
        world.vote_for_settlement(*node, true, Some(settlement.clone()));
    }
}

fn go_on(world: &mut World, ledgers: Seq) {
    let goal = world.watch.tip() + ledgers;
    assert!(world.run(world.now + STEP_MS, |world| all_at(world, goal)), "{}", world.describe());
}

#[test]
pub fn what_a_quorum_saw_is_recorded_and_what_one_less_saw_is_not() {
    let mut world = world(5, 80);
    let begin = Settlement::begin(Hash([4; 32]));
    vote(&mut world, &[0, 1, 2], &begin);
    go_on(&mut world, 5);
    assert_eq!(recorded(&world), None, "three of five");
    vote(&mut world, &[3], &begin);
    go_on(&mut world, 2);
    assert_eq!(recorded(&world), Some(begin));
    go_on(&mut world, 3);
    vote(&mut world, &[0, 1, 2], &settled(3));
    let other = Settlement { confirmed_length: 4, ..settled(3) };
    vote(&mut world, &[3, 4], &other);
    go_on(&mut world, 5);
    assert_eq!(recorded(&world).map(|last| last.seq), Some(0), "they do not say the same");
    vote(&mut world, &[4], &settled(3));
    go_on(&mut world, 2);
    assert_eq!(recorded(&world), Some(settled(3)));
}

#[test]
pub fn what_does_not_follow_is_not_recorded_whoever_says_it() {
    let mut world = world(4, 75);
    // Nothing may be settled before all agree on what it is signed with.
    go_on(&mut world, 5);
    vote(&mut world, &[0, 1, 2, 3], &settled(3));
    go_on(&mut world, 3);
    assert_eq!(recorded(&world), None);
    vote(&mut world, &[0, 1, 2, 3], &Settlement::begin(Hash([4; 32])));
    go_on(&mut world, 2);
    vote(&mut world, &[0, 1, 2, 3], &settled(3));
    go_on(&mut world, 2);
    vote(&mut world, &[0, 1, 2, 3], &settled(2));
    go_on(&mut world, 2);
    assert_eq!(recorded(&world), Some(settled(3)), "it does not go back");
}

#[test]
fn an_idle_network_records_at_once_what_its_members_saw() {
    let mut world = linked(Config { roundtime_ms: 60_000, ..Config::calm(4, 75) }, 1);
    world.plan(world.now, Happening::Bus(BusHappening::Look(100)));
    assert!(world.run(world.now + 200, |world| world.watch.tip() >= 1 && world.is_settled()), "{}", world.describe());
    assert!(world.watch.tip() <= 3, "and does not spin: {}", world.watch.tip());
    let tip = world.watch.tip();
    world.run(world.now + 10_000, |_| false);
    assert_eq!(world.watch.tip(), tip, "what is recorded starts no round");
}

#[test]
fn liars_and_those_who_see_nothing_keep_nobody_from_settling() {
    let mut cfg = Config { roundtime_ms: 100, ..Config::calm(7, 67) };
    cfg.manners[0] = Manner::LiesOfResults;
    let mut world = linked(cfg, 1);
    // Six of seven are left, five decide, and one of the six never sees the bus.
    for turn in 0..6 {
        for node in 2..7 {
            world.look(node);
        }
        world.plan(world.now, Happening::Bus(BusHappening::OutOfSight(0)));
        let done =
            world.run(world.now + STEP_MS, |world| world.watch.tip() > 0 && world.bus.used && world.is_settled());
        assert!(done, "turn {turn}: {}", world.describe());
        go_on(&mut world, 3);
        match turn % 2 {
            0 => world.confirm(),
            _ => world.plan(world.now, Happening::Bus(BusHappening::Rotate)),
        }
        world.run(world.now + 1, |_| false);
    }
    assert!(recorded(&world).is_some_and(|last| last.seq > 3 && last.confirmed_length == 3), "{:?}", recorded(&world));
}

#[test]
fn a_vote_is_told_again_after_a_crash_of_any_node_at_any_effect() {
    for after in 0..20 {
        let mut world = linked(Config { roundtime_ms: 100, disk_ms: (1, 3), ..Config::calm(4, 75) }, after);
        world.plan(world.now, Happening::Bus(BusHappening::Look(100)));
        world.plan(world.now, Happening::Crash((after % 4) as usize, after as u32));
        for at in 0..20 {
            world.plan(world.now + 100 + 200 * at, Happening::Bus(BusHappening::Look(100)));
        }
        let done =
            world.run(world.now + STEP_MS, |world| world.now > 1_000 && world.watch.tip() > 2 && world.is_settled());
        assert!(done, "after {after}: {}", world.describe());
        world.confirm();
        world.plan(world.now, Happening::Bus(BusHappening::Look(100)));
        let done = world.run(world.now + STEP_MS, |world| recorded(world).is_some_and(|last| last.seq > 0));
        assert!(done, "after {after}: {}", world.describe());
    }
}
