//! Runs about as long as the wall-time limit, scripted: who is over it, and what the others make of that.

use hotpocket::{
    consensus::{
        Event,
        header::ExecResult,
        messages::{Message, Overtime, Scope, Signable},
    },
    types::{LimitKind, NodeKey, Seq, Status},
};

use super::{
    crypto::TableCrypto,
    schedules::{all_at, attempt, linked},
    world::{Config, Fate, NO_LIMIT_MS, World},
};

const LIMIT_MS: u64 = 100;
const LIMITED: Status = Status::Limit(LimitKind::Time);

/// Five nodes, four of which are a quorum; those listed need twice the time that a run may take. Results travel for
/// longer than that, so that whoever is over its time knows none.
fn slow(nodes: &[usize]) -> World {
    let mut world = linked(Config { limit_ms: LIMIT_MS, run_ms: (10, 10), ..Config::calm(5, 80) }, 1);
    for node in nodes {
        world.nodes[*node].run_ms = Some(2 * LIMIT_MS);
    }
    world.filter = Some(Box::new(|_, _, _, message| match message {
        Message::Result(_) => Fate::Late(2 * LIMIT_MS),
        _ => Fate::Pass,
    }));
    world.input(0, vec![1]);
    world
}

/// Everybody agreed on how the run of ledger `seq` ended, and nobody thinks that its state is another.
fn all_agree(world: &mut World, seq: Seq, status: Status) {
    let done =
        |world: &World| all_at(world, seq + 1) && world.sound().all(|node| world.nodes[node].disk.state.0 >= seq);
    assert!(world.run(world.now + 20_000, done), "{}", world.describe());
    let agreed = &world.watch.chain[usize::try_from(seq).expect("small")].1.candidate.header.result;
    assert_eq!((agreed.of_seq, agreed.status), (seq, status));
    assert!(world.nodes.iter().all(|node| !node.diverged), "{}", world.describe());
}

fn signed<T: Signable>(world: &World, node: usize, body: T) -> (NodeKey, hotpocket::consensus::messages::Signed<T>) {
    let key = NodeKey([node as u8 + 1; 32]);
    let scope: Scope = world.nodes[0].core.as_ref().expect("it is up").scope();
    (key, TableCrypto(key).signed(body, &scope))
}

/// A node that says to one other that its time was up.
fn lie_overtime(world: &mut World, liar: usize, to: usize) {
    let (of_hash, _) = world.watch.chain[0];
    let (key, overtime) = signed(world, liar, Overtime { of_seq: 1, of_hash });
    world.handle(to, Event::Message(key, Message::Overtime(overtime)));
}

/// A node that says to one other what came of the run.
fn lie_result(world: &mut World, liar: usize, to: usize) {
    let result: ExecResult = world.watch.outcomes[0].ran.clone();
    let (key, result) = signed(world, liar, result);
    world.handle(to, Event::Message(key, Message::Result(result)));
}

#[test]
fn two_of_five_that_are_over_their_time_run_again_and_agree_with_the_others() {
    let mut world = slow(&[1, 3]);
    all_agree(&mut world, 1, Status::Ok);
    assert!(world.watch.seen.of("OVERTIME re-executed") > 0);
    all_agree(&mut world, 2, Status::Ok);
}

#[test]
fn over_its_time_on_a_quorum_the_run_has_no_effect_also_where_it_had_ended() {
    let mut world = slow(&[0, 1, 2, 3]);
    all_agree(&mut world, 1, LIMITED);
    assert_eq!(world.watch.seen.of("runs undone"), 1);
    // Ledgers go on, and runs on the state from before.
    world.nodes.iter_mut().for_each(|node| node.run_ms = None);
    all_agree(&mut world, 3, Status::Ok);
}

#[test]
fn an_endless_run_on_all_nodes_or_on_the_only_one_is_limited() {
    let mut world = slow(&[0, 1, 2, 3, 4]);
    world.nodes.iter_mut().for_each(|node| node.run_ms = Some(NO_LIMIT_MS));
    all_agree(&mut world, 1, LIMITED);
    let mut world = linked(Config { limit_ms: LIMIT_MS, endless: 100, ..Config::calm(1, 80) }, 1);
    world.input(0, vec![1]);
    all_agree(&mut world, 1, LIMITED);
}

#[test]
fn a_mix_that_decides_nothing_waits_for_the_missing_member_and_is_no_split() {
    for (late_ms, status) in [(10, Status::Ok), (2 * LIMIT_MS, LIMITED)] {
        let mut world = slow(&[0, 1, 2]);
        world.nodes[4].run_ms = Some(late_ms);
        // It goes when the ledger is closed.
        assert!(world.run(2000, |world| world.watch.tip() == 1 && world.seq(4) == 1), "{}", world.describe());
        world.nodes[4].dead = true;
        world.crash(4);
        world.run(world.now + 10_000, |_| false);
        assert_eq!(world.watch.tip(), 1, "{}", world.describe());
        for node in 0..4 {
            let summary = world.nodes[node].core.as_ref().expect("it is up").summary();
            assert_eq!((summary.overtimes, summary.split, attempt(&world, node)), (3, false, 0));
        }
        world.nodes[4].dead = false;
        world.plan(world.now, super::world::Happening::Gst);
        all_agree(&mut world, 1, status);
    }
}

#[test]
fn whoever_said_overtime_and_was_killed_says_it_again() {
    for slow_ones in [&[0, 1, 2, 3, 4][..], &[1, 3]] {
        let mut world = slow(slow_ones);
        assert!(world.run(2000, |world| world.nodes[3].disk.journal.overtime.is_some()), "{}", world.describe());
        (0..5).for_each(|node| world.crash(node));
        all_agree(&mut world, 1, if slow_ones.len() == 5 { LIMITED } else { Status::Ok });
        assert!(world.watch.seen.of("restarts with a journaled OVERTIME") > 0);
    }
}

#[test]
fn a_run_without_a_limit_ends_when_it_is_agreed_that_its_time_was_up() {
    // Nodes 3 and 4 tell node 0 that they got through the run, and all others the truth.
    let mut world = slow(&[0, 1, 2, 3, 4]);
    world.nodes[0].run_ms = Some(NO_LIMIT_MS);
    world.filter = Some(Box::new(|_, from, to, message| match message {
        Message::Overtime(_) | Message::Result(_) if from >= 3 && to == 0 => Fate::Drop,
        _ => Fate::Pass,
    }));
    assert!(world.run(2000, |world| world.watch.tip() == 1));
    lie_result(&mut world, 3, 0);
    lie_result(&mut world, 4, 0);
    assert!(world.run(2000, |world| world.nodes[0].disk.journal.overtime.is_some() || world.seq(0) > 1));
    all_agree(&mut world, 1, LIMITED);
    assert_eq!(world.watch.seen.of("runs ended because their time was up elsewhere"), 1);
}

#[test]
fn whoever_was_made_to_believe_that_the_time_was_up_does_the_run_after_all() {
    for crash in [false, true] {
        // Node 4 says OVERTIME to node 0, and its result to all others.
        let mut world = slow(&[0, 1, 2]);
        world.filter = Some(Box::new(|_, from, to, message| match message {
            Message::Result(_) if from == 4 && to == 0 => Fate::Drop,
            Message::Result(_) => Fate::Late(2 * LIMIT_MS),
            _ => Fate::Pass,
        }));
        assert!(world.run(2000, |world| world.watch.tip() == 1));
        lie_overtime(&mut world, 4, 0);
        let lied_to = |world: &World| world.nodes[0].disk.journal.limited.is_some();
        assert!(world.run(2000, lied_to), "{}", world.describe());
        if crash {
            // Once at once, and once in the middle of the run that it does after all.
            world.crash(0);
            let again = |world: &World| world.nodes[0].core.is_some() && world.nodes[0].disk.state.1.is_none();
            assert!(world.run(world.now + 5000, again), "{}", world.describe());
            world.crash(0);
        }
        all_agree(&mut world, 1, Status::Ok);
        let done = world.run(world.now + 5000, |world| world.watch.seen.of("runs done after all") == 1);
        assert!(done, "{}", world.describe());
        all_agree(&mut world, 3, Status::Ok);
    }
}

#[test]
fn a_run_that_ends_while_it_is_being_ended_for_a_lie_is_done_after_all() {
    // Two of five are over their time, and node 0 is as slow. Node 4 tells it first that it got through the run, which
    // begins again without a limit, and OVERTIME when that has almost ended.
    for early_ms in 0..8 {
        let mut world = slow(&[0, 1, 2]);
        world.filter = Some(Box::new(|_, from, to, message| match message {
            Message::Result(_) if from == 4 && to == 0 => Fate::Drop,
            Message::Result(_) => Fate::Late(2 * LIMIT_MS),
            _ => Fate::Pass,
        }));
        let cut = |world: &World| (0..3).all(|node| world.nodes[node].disk.journal.overtime.is_some());
        assert!(world.run(2000, cut), "{}", world.describe());
        world.run(world.now + 5, |_| false);
        lie_result(&mut world, 3, 0);
        lie_result(&mut world, 4, 0);
        world.run(world.now + 2 * LIMIT_MS - early_ms, |_| false);
        lie_overtime(&mut world, 4, 0);
        all_agree(&mut world, 3, Status::Ok);
    }
}
