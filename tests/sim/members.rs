//! Scripted schedules of networks whose UNL changes.

use std::collections::BTreeSet;

use hotpocket::{
    consensus::{header::UnlChange, messages::Message},
    types::{NodeKey, Seq},
};

use super::{
    properties::request_payload,
    schedules::{all_at, filter, is, linked},
    world::{Config, Happening, World},
};

/// Longest time for one change: rounds begin every 100 ms here.
const CHANGE_MS: u64 = 5_000;

fn cfg(n: usize, observers: usize, threshold: u8) -> Config {
    Config { observers, roundtime_ms: 100, ..Config::calm(n, threshold) }
}

/// All operators vote for this, and get it.
fn change(world: &mut World, change: UnlChange) {
    world.plan(world.now, Happening::Operators(Some(change), 100));
    let made = |world: &World| match change {
        UnlChange::Add(node) => world.watch.unl().contains(&node),
        UnlChange::Remove(node) => !world.watch.unl().contains(&node),
    };
    assert!(world.run(world.now + CHANGE_MS, made), "{change:?}: {}", world.describe());
    // Who does not know yet that it is a member has no vote.
    let known = |world: &World| {
        let up = world.nodes.iter().filter(|node| node.core.is_some());
        up.map(|node| node.disk.journal.unl.iter().copied().collect()).all(|unl: BTreeSet<_>| unl == *world.watch.unl())
    };
    assert!(world.run(world.now + CHANGE_MS, known), "{change:?}: {}", world.describe());
}

fn add(world: &mut World, node: usize) {
    let key = world.key(node);
    change(world, UnlChange::Add(key));
}

fn remove(world: &mut World, node: usize) {
    let key = world.key(node);
    change(world, UnlChange::Remove(key));
}

fn unl_of(world: &World, nodes: &[usize]) -> BTreeSet<NodeKey> {
    nodes.iter().map(|node| world.key(*node)).collect()
}

/// Everybody goes on, with this UNL, as all of them know.
fn goes_on(world: &mut World, nodes: &[usize]) {
    let goal = world.watch.tip() + 3;
    assert!(world.run(world.now + CHANGE_MS, |world| all_at(world, goal)), "{}", world.describe());
    let expected = unl_of(world, nodes);
    assert_eq!(*world.watch.unl(), expected);
    for node in world.sound().collect::<Vec<_>>() {
        let journal = &world.nodes[node].disk.journal;
        assert_eq!(journal.unl.iter().copied().collect::<BTreeSet<_>>(), expected, "node {node}");
    }
}

fn signers(world: &World, seq: Seq) -> BTreeSet<NodeKey> {
    world.watch.chain[seq as usize - 1].1.qc.sigs.iter().map(|(signer, _)| *signer).collect()
}

#[test]
pub fn one_node_grows_into_a_network_and_shrinks_to_another_one() {
    let mut world = linked(cfg(1, 2, 80), 1);
    add(&mut world, 1);
    goes_on(&mut world, &[0, 1]);
    assert_eq!(signers(&world, world.watch.tip()), unl_of(&world, &[0, 1]), "it counts at once");
    add(&mut world, 2);
    goes_on(&mut world, &[0, 1, 2]);
    remove(&mut world, 0);
    remove(&mut world, 2);
    goes_on(&mut world, &[1]);
    assert_eq!(signers(&world, world.watch.tip()), unl_of(&world, &[1]));
    // The only one that decides stays when somebody wants it to go.
    let last = world.key(1);
    world.plan(world.now, Happening::Operators(Some(UnlChange::Remove(last)), 100));
    goes_on(&mut world, &[1]);
}

#[test]
pub fn the_votes_of_a_quorum_decide_and_fewer_do_not_and_what_a_node_voted_for_survives_its_end() {
    let mut world = linked(cfg(5, 1, 80), 1);
    let wanted = UnlChange::Add(world.key(5));
    for node in 0..3 {
        world.vote(node, Some(wanted));
    }
    let goal = world.watch.tip() + 5;
    assert!(world.run(world.now + CHANGE_MS, |world| all_at(world, goal)));
    assert_eq!(world.watch.unl().len(), 5, "three of five");
    for node in 0..3 {
        world.crash(node);
    }
    world.plan(world.now + 10, Happening::Gst);
    assert!(world.run(world.now + CHANGE_MS, |world| all_at(world, goal + 3)));
    assert_eq!(world.watch.unl().len(), 5);
    world.vote(3, Some(wanted));
    assert!(world.run(world.now + CHANGE_MS, |world| world.watch.unl().len() == 6), "{}", world.describe());
    goes_on(&mut world, &[0, 1, 2, 3, 4, 5]);
    for node in 0..6 {
        assert_eq!(world.nodes[node].disk.journal.unl_vote, None, "it has done its work");
    }
}

#[test]
fn a_withdrawn_vote_counts_no_more() {
    let mut world = linked(cfg(4, 1, 75), 1);
    let wanted = UnlChange::Add(world.key(4));
    for node in 0..2 {
        world.vote(node, Some(wanted));
    }
    world.run(world.now + 500, |_| false);
    world.vote(0, None);
    world.run(world.now + 500, |_| false);
    world.vote(2, Some(wanted));
    goes_on(&mut world, &[0, 1, 2, 3]);
    world.vote(0, Some(wanted));
    assert!(world.run(world.now + CHANGE_MS, |world| world.watch.unl().len() == 5), "{}", world.describe());
}

#[test]
fn the_contract_s_request_is_met_without_a_vote_and_a_senseless_one_stands_in_nobody_s_way() {
    let mut world = linked(cfg(4, 1, 75), 1);
    let (come, senseless) = (UnlChange::Add(world.key(4)), UnlChange::Add(world.key(0)));
    world.input(0, request_payload(come));
    assert!(world.run(world.now + CHANGE_MS, |world| world.watch.unl().len() == 5), "{}", world.describe());
    let go = UnlChange::Remove(world.key(4));
    for node in 0..5 {
        world.vote(node, Some(go));
        world.input(node, request_payload(senseless));
    }
    assert!(world.run(world.now + CHANGE_MS, |world| world.watch.unl().len() == 4), "{}", world.describe());
    goes_on(&mut world, &[0, 1, 2, 3]);
}

#[test]
fn what_is_said_for_a_ledger_whose_unl_is_not_known_yet_counts_when_it_is() {
    let mut world = linked(Config { observers: 1, ..Config::calm(4, 75) }, 1);
    // Node 3 hears nothing of what closes ledger 1 until the others are in the next round, and of what they say there
    // the first NOVELs alone, which are signed for a UNL that it does not know.
    let mut told = BTreeSet::new();
    filter(&mut world, move |_, from, to, message| {
        to == 3
            && match message {
                Message::Precommit(_) => true,
                Message::Novel(_) if is(message, "NOVEL", 2, 0) => !told.insert(from),
                Message::Closed(_) => told.len() < 3,
                _ => message.round_seq() == Some(2),
            }
    });
    let wanted = UnlChange::Add(world.key(4));
    for node in 0..4 {
        world.vote(node, Some(wanted));
    }
    assert!(world.run(world.now + CHANGE_MS, |world| world.seq(3) == 1), "{}", world.describe());
    assert_eq!(world.nodes[3].disk.journal.unl.len(), 5);
    let novels = world.nodes[3].core.as_ref().expect("it is up").summary().novels;
    assert_eq!(novels.len(), 3, "those kept count at once");
}

#[test]
fn a_node_that_was_away_while_every_other_member_was_replaced_catches_up_with_strangers() {
    let mut world = linked(cfg(4, 3, 75), 1);
    world.nodes[3].dead = true;
    world.crash(3);
    for (come, go) in [(4, 0), (5, 1), (6, 2)] {
        add(&mut world, come);
        remove(&mut world, go);
    }
    for gone in 0..3 {
        world.nodes[gone].dead = true;
        world.crash(gone);
    }
    let goal = world.watch.tip() + 3;
    assert!(
        world.run(world.now + CHANGE_MS, |world| (4..7).all(|node| world.seq(node) >= goal)),
        "{}",
        world.describe()
    );
    world.nodes[3].dead = false;
    world.plan(world.now, Happening::Gst);
    goes_on(&mut world, &[3, 4, 5, 6]);
}

#[test]
fn who_leaves_drops_what_it_vouched_for_tells_its_users_and_follows() {
    let mut world = linked(cfg(5, 0, 80), 1);
    let gone = world.key(0);
    // Its input reaches nobody.
    filter(&mut world, |_, from, _, message| from == 0 && matches!(message, Message::Input(_)));
    world.input(0, vec![1]);
    for node in 0..5 {
        world.vote(node, Some(UnlChange::Remove(gone)));
    }
    assert!(world.run(world.now + CHANGE_MS, |world| !world.watch.unl().contains(&gone)), "{}", world.describe());
    goes_on(&mut world, &[1, 2, 3, 4]);
    assert_eq!(world.watch.seen.of("expired inputs"), 1, "its user was told");
    assert!(world.nodes.iter().all(|node| node.disk.journal.pool.is_empty()));
    // It signs no more; as an observer it may become a member again.
    filter(&mut world, |_, from, _, message| {
        assert!(from != 0 || message.round_seq().is_none(), "{message:?}");
        false
    });
    goes_on(&mut world, &[1, 2, 3, 4]);
    world.filter = None;
    add(&mut world, 0);
    goes_on(&mut world, &[0, 1, 2, 3, 4]);
    world.input(0, vec![2]);
    assert!(world.run(world.now + CHANGE_MS, |world| world.unledgered().is_empty()));
}

#[test]
fn a_change_survives_a_crash_of_any_node_at_any_effect_and_a_power_cut_at_any_millisecond() {
    for after in 0..40 {
        let mut world = linked(Config { disk_ms: (1, 3), run_ms: (2, 5), ..cfg(4, 1, 75) }, after);
        let wanted = UnlChange::Add(world.key(4));
        for node in 0..4 {
            world.vote(node, Some(wanted));
        }
        match after % 2 {
            0 => world.plan(world.now, Happening::Crash((after % 5) as usize, after as u32)),
            _ => world.plan(world.now + 3 * after, Happening::PowerCut),
        }
        let done = world.run(world.now + 30_000, |world| world.watch.unl().len() == 5 && world.now > 1_000);
        assert!(done, "after {after}: {}", world.describe());
        goes_on(&mut world, &[0, 1, 2, 3, 4]);
    }
}

#[test]
fn a_change_with_the_votes_of_just_a_quorum_is_made_though_one_of_them_is_late_for_every_round() {
    // Pauses keep rounds as far apart as the nodes were started: the last one's novel came right behind the grace of the
    // others, each time. Nobody else is missed: the vote of the first is what the change lacks.
    for late in 5..9 {
        let cfg = Config { roundtime_ms: 100, min_round_ms: 200, eager: false, grace_ms: 5, ..Config::calm(4, 67) };
        let mut world = linked(cfg, 1);
        for node in 0..4 {
            world.nodes[node].dead = true;
            world.crash(node);
        }
        for (node, after) in [(2, 0), (1, 80), (0, 170), (3, 170 + late)] {
            world.plan(world.now + 2_000 + after, Happening::Back(node));
        }
        world.run(world.now + 3_000, |_| false);
        let change = UnlChange::Remove(world.key(2));
        for node in [0, 1, 3] {
            world.vote(node, Some(change));
        }
        let made = |world: &World| world.watch.seen.of("UNL changed by operators") == 1;
        assert!(world.run(world.now + CHANGE_MS, made), "{late} ms late: {}", world.describe());
    }
}
