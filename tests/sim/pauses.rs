//! Nodes whose disk is nearly full for a while, scripted: what stands still, and what goes on when there is room.

use super::{
    rng::Rng,
    schedules::{all_at, linked},
    world::{Config, Happening, World},
};

fn cfg(n: usize, threshold: u8) -> Config {
    Config { roundtime_ms: 100, ..Config::calm(n, threshold) }
}

fn pause(world: &mut World, node: usize, paused: bool) {
    let now = world.now;
    world.plan(now, Happening::Pause(node, paused));
    assert!(world.run(now, |world| world.nodes[node].paused == paused), "{}", world.describe());
}

#[test]
pub fn a_run_that_waits_for_room_is_done_when_there_is_some() {
    // Killed in the middle of a run, and started again on a disk that is nearly full: nobody else can help it.
    let mut world = World::new(Config { run_ms: (50, 50), ..cfg(1, 80) }, Rng::new(1));
    world.input(0, vec![1]);
    assert!(world.run(5_000, |world| world.seq(0) == 1), "{}", world.describe());
    pause(&mut world, 0, true);
    world.crash(0);
    world.run(world.now + 5_000, |_| false);
    assert_eq!(world.watch.seen.of("restarts without room on the disk"), 1);
    assert_eq!((world.seq(0), world.nodes[0].disk.journal.executed()), (1, 0), "{}", world.describe());
    pause(&mut world, 0, false);
    let goes_on = |world: &World| world.seq(0) >= 3 && world.nodes[0].disk.journal.executed() >= 2;
    assert!(world.run(world.now + 5_000, goes_on), "{}", world.describe());
}

#[test]
fn the_others_go_on_without_a_node_that_has_no_room_and_with_room_it_is_one_of_them_again() {
    let mut world = linked(cfg(4, 75), 1);
    assert!(world.run(5_000, |world| all_at(world, 5)), "{}", world.describe());
    pause(&mut world, 3, true);
    let had = world.seq(3);
    world.input(3, vec![1]);
    world.run(world.now + 3_000, |_| false);
    assert_eq!((world.seq(3), world.watch.seen.of("refused inputs")), (had, 1), "{}", world.describe());
    assert!(world.seq(0) > had + 10, "{}", world.describe());
    pause(&mut world, 3, false);
    let goal = world.seq(0);
    assert!(world.run(world.now + 5_000, |world| all_at(world, goal)), "{}", world.describe());
    // It is one of the three that are needed.
    world.nodes[0].dead = true;
    world.crash(0);
    let goal = world.watch.tip() + 10;
    let done = |world: &World| (1..4).all(|node| world.seq(node) >= goal);
    assert!(world.run(world.now + 20_000, done), "{}", world.describe());
}

#[test]
fn where_all_have_no_room_nothing_is_lost_that_was_taken_before() {
    let mut world = linked(Config { latency_ms: (20, 20), ..cfg(3, 80) }, 1);
    world.input(0, vec![1]);
    world.run(world.now + 25, |_| false);
    let (tip, taken) = (world.watch.tip(), world.unledgered().len());
    assert!(taken > 0, "{}", world.describe());
    (0..3).for_each(|node| pause(&mut world, node, true));
    // Stopped, and started again without room.
    world.crash(1);
    world.run(world.now + 10_000, |_| false);
    assert!(world.watch.tip() <= tip + 1 && !world.unledgered().is_empty(), "{}", world.describe());
    (0..3).for_each(|node| pause(&mut world, node, false));
    let done = |world: &World| world.unledgered().is_empty() && all_at(world, tip + 3);
    assert!(world.run(world.now + 10_000, done), "{}", world.describe());
}
