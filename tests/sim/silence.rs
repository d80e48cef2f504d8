//! Members that lost what they signed, scripted: what they must not say, and when they may speak again.

use std::{cell::Cell, rc::Rc};

use hotpocket::{
    consensus::{
        Event,
        header::UnlChange,
        messages::{Message, Novel, Prevote, Vote},
        silence::{Silence, Why},
    },
    types::Hash,
};

use super::{
    crypto::TableCrypto,
    schedules::{all_at, filter, is, linked},
    world::{Config, Happening, Manner, World},
};

fn cfg(n: usize, threshold: u8) -> Config {
    Config { roundtime_ms: 100, ..Config::calm(n, threshold) }
}

fn is_silent(world: &World, node: usize) -> bool {
    world.nodes[node].core.as_ref().is_some_and(|core| core.summary().silent.is_some_and(|silent| silent.is_alarm))
}

fn begun(world: &World) -> u64 {
    world.watch.seen.of("silences begun")
}

/// Everybody speaks, and goes on.
fn goes_on(world: &mut World) {
    let goal = world.watch.tip() + 5;
    let done = |world: &World| all_at(world, goal) && world.silent_members().is_empty();
    assert!(world.run(world.now + 20_000, done), "{}", world.describe());
}

/// The node is down from here on.
fn away(world: &mut World, node: usize) {
    world.nodes[node].dead = true;
    world.crash(node);
}

fn back(world: &mut World, node: usize) {
    let now = world.now;
    world.plan(now, Happening::Back(node));
}

#[test]
pub fn a_member_that_lost_what_it_voted_for_says_nothing_else_and_the_others_go_on_without_it() {
    // All four precommit one ledger, which the first alone closes. Then it is cut off, and the second loses its disk: had
    // it voted anew with the other two, it would have signed two novels and two votes about one ledger.
    let mut world = linked(cfg(4, 75), 1);
    let healed = Rc::new(Cell::new(false));
    let whole = healed.clone();
    filter(&mut world, move |_, from, to, message| {
        let told = from == 0 && (matches!(message, Message::Closed(_)) || message.round_seq() > Some(1));
        !whole.get() && (to != 0 && is(message, "PRECOMMIT", 1, 0) || told)
    });
    world.input(0, vec![1]);
    assert!(world.run(500, |world| world.seq(0) == 1), "{}", world.describe());
    away(&mut world, 0);
    assert_eq!(world.seq(1), 0);
    away(&mut world, 1);
    world.empty(1);
    back(&mut world, 1);
    // Its novel of before is the first thing that it hears of.
    world.input(1, vec![2]);
    let told = |world: &World| is_silent(world, 1) && world.nodes[1].disk.journal.silence.is_some();
    assert!(world.run(world.now + 2000, told), "{}", world.describe());
    // Nobody closes a ledger: three are needed. When the first is back they go on, and the silent one two ledgers later.
    world.run(world.now + 5_000, |_| false);
    assert_eq!(world.watch.tip(), 1, "{}", world.describe());
    assert!(is_silent(&world, 1), "{}", world.describe());
    healed.set(true);
    back(&mut world, 0);
    goes_on(&mut world);
    assert_eq!((begun(&world), world.watch.seen.of("silences ended")), (1, 1));
}

#[test]
fn a_network_begins_without_silence_however_its_members_are_started() {
    for (n, threshold) in [(1, 80), (2, 80), (3, 80), (4, 75), (5, 80), (7, 67)] {
        for apart in [0, 1, 40, 700] {
            let mut world = World::new(cfg(n, threshold), super::rng::Rng::new(apart));
            (0..n).for_each(|node| away(&mut world, node));
            let first = world.now + 2_000;
            (0..n).for_each(|node| world.plan(first + apart * node as u64, Happening::Back(node)));
            let started = first + apart * n as u64;
            assert!(world.run(started + 5_000, |world| all_at(world, 5)), "{n} {apart}: {}", world.describe());
            goes_on(&mut world);
            assert_eq!(begun(&world), 0, "{n} {apart}: {}", world.describe());
        }
    }
}

#[test]
fn a_network_whose_power_is_cut_or_whose_members_are_killed_falls_never_silent() {
    for at in 0..60 {
        let mut world = linked(Config { disk_ms: (0, 3), ..cfg(4, 75) }, at);
        world.input(0, vec![1]);
        if at % 3 == 0 {
            world.plan(world.now + 5 * at, Happening::PowerCut);
        } else {
            world.plan(world.now + at, Happening::Crash((at % 4) as usize, at as u32));
        }
        let done = |world: &World| world.now > 2_000 && all_at(world, 5);
        assert!(world.run(20_000, done), "{at}: {}", world.describe());
        assert_eq!(begun(&world), 0, "{at}: {}", world.describe());
    }
}

#[test]
fn whoever_lost_its_disk_follows_and_votes_again_two_ledgers_behind_what_the_others_had() {
    let mut world = linked(cfg(5, 80), 1);
    assert!(world.run(5_000, |world| all_at(world, 10)));
    away(&mut world, 4);
    world.empty(4);
    assert!(world.run(world.now + 5_000, |world| world.seq(0) >= 20));
    back(&mut world, 4);
    assert!(world.run(world.now + 5_000, |world| is_silent(world, 4)), "{}", world.describe());
    let had = world.watch.tip();
    // It stays so over a restart.
    world.crash(4);
    assert!(world.run(world.now + 20_000, |world| world.silent_members().is_empty()), "{}", world.describe());
    assert!(world.seq(4) >= had + 2, "{}", world.describe());
    let key = world.key(4);
    let votes = |world: &World, from: u64| {
        let later = &world.watch.chain[from as usize..];
        later.iter().filter(|(_, ledger)| ledger.qc.sigs.iter().any(|(signer, _)| *signer == key)).count()
    };
    let spoke = world.watch.tip();
    goes_on(&mut world);
    assert!(votes(&world, spoke) > 0, "it votes");
    let silent = &world.watch.chain[20..had as usize + 1];
    assert!(silent.iter().all(|(_, ledger)| !ledger.qc.sigs.iter().any(|(signer, _)| *signer == key)));
}

#[test]
fn where_everybody_is_needed_it_never_ends_by_itself_and_that_is_told() {
    let mut world = linked(cfg(3, 80), 1);
    assert!(world.run(5_000, |world| all_at(world, 5)));
    away(&mut world, 2);
    world.empty(2);
    back(&mut world, 2);
    assert!(world.run(world.now + 5_000, |world| is_silent(world, 2) && world.seq(2) >= 5), "{}", world.describe());
    world.run(world.now + 60_000, |_| false);
    let silent = world.nodes[2].core.as_ref().expect("it is up").summary().silent.expect("it is silent");
    assert!(silent.is_alarm && !silent.ends_by_itself, "{silent:?}");
    assert!(world.watch.tip() <= 7, "{}", world.describe());
}

#[test]
fn one_liar_about_where_it_stands_keeps_nobody_silent() {
    let mut cfg = cfg(7, 67);
    cfg.manners[6] = Manner::Silent;
    let mut world = linked(cfg, 1);
    assert!(world.run(5_000, |world| world.seq(0) >= 5));
    away(&mut world, 1);
    world.empty(1);
    back(&mut world, 1);
    let up = |world: &World| world.nodes[1].core.is_some();
    assert!(world.run(world.now + 5_000, up));
    // It says so before anybody else says anything.
    let liar = world.key(6);
    let lie = {
        let core = world.nodes[1].core.as_ref().expect("it is up");
        let body = hotpocket::consensus::messages::StatusMsg {
            seq: u64::MAX,
            lcl: Hash::ZERO,
            attempt: 0,
            synced: true,
            silent: false,
            unheard: vec![],
        };
        TableCrypto(liar).signed(body, &core.scope())
    };
    world.handle(1, Event::LinkUp(liar));
    world.handle(1, Event::Message(liar, Message::Status(lie)));
    goes_on(&mut world);
}

#[test]
fn a_vote_of_its_key_that_it_did_not_cast_makes_a_member_silent_and_it_votes_again_later() {
    let mut world = linked(cfg(5, 80), 1);
    assert!(world.run(5_000, |world| all_at(world, 5)));
    let key = world.key(3);
    let (scope, seq) = {
        let core = world.nodes[3].core.as_ref().expect("it is up");
        (core.scope(), core.round_seq())
    };
    let vote = Prevote(Vote { seq, attempt: 3, ledger_hash: Hash([9; 32]) });
    let said = TableCrypto(key).signed(vote, &scope);
    let from = world.key(0);
    world.nodes[3].emptied = true;
    world.handle(3, Event::Message(from, Message::Prevote(said)));
    assert!(is_silent(&world, 3), "{}", world.describe());
    let why = world.nodes[3].core.as_ref().and_then(|core| core.summary().silent).expect("it is silent").silence.why;
    assert_eq!(why, Why::Signed { kind: "PREVOTE".into(), seq, attempt: 3 });
    goes_on(&mut world);
    assert!(world.seq(3) > seq + 1);
}

#[test]
fn a_journal_that_may_be_old_makes_its_node_silent_until_it_cannot_matter() {
    let mut world = linked(cfg(5, 80), 1);
    assert!(world.run(5_000, |world| all_at(world, 5)));
    away(&mut world, 2);
    world.nodes[2].emptied = true;
    world.nodes[2].disk.journal.silence = Some(Silence::new(Why::Marked("restored".into()), 1, 5));
    back(&mut world, 2);
    assert!(world.run(world.now + 2_000, |world| is_silent(world, 2)), "{}", world.describe());
    goes_on(&mut world);
}

#[test]
fn a_new_member_of_a_network_that_needs_all_of_them_speaks_at_once() {
    // It followed; or it was not even started when it was voted in.
    for started in [true, false] {
        let mut world = linked(Config { observers: 1, ..cfg(3, 80) }, 1);
        if !started {
            away(&mut world, 3);
        }
        assert!(world.run(5_000, |world| (0..3).all(|node| world.seq(node) >= 5)));
        let new = world.key(3);
        (0..3).for_each(|node| world.vote(node, Some(UnlChange::Add(new))));
        assert!(world.run(world.now + 5_000, |world| world.watch.unl().len() == 4), "{}", world.describe());
        if !started {
            world.run(world.now + 3_000, |_| false);
            back(&mut world, 3);
        }
        goes_on(&mut world);
        assert_eq!(begun(&world), 0, "started {started}: {}", world.describe());
    }
}

#[test]
fn whoever_comes_back_with_an_older_copy_of_its_journal_is_shown_what_it_signed_before_it_says_anything() {
    let mut world = linked(Config { roundtime_ms: 60_000, ..Config::calm(5, 80) }, 1);
    world.input(0, vec![1]);
    assert!(world.run(2_000, |world| all_at(world, 1)));
    let (key, scope) = (world.key(4), world.nodes[4].core.as_ref().expect("it is up").scope());
    away(&mut world, 4);
    // The others hold a novel of it about the next ledger, which its disk does not have. That ledger takes a while.
    let healed = Rc::new(Cell::new(false));
    let whole = healed.clone();
    filter(&mut world, move |_, _, _, message| matches!(message, Message::Prevote(_)) && !whole.get());
    let (parent, _) = world.watch.chain[0];
    let (users_add, users_del, inputs) = (vec![], vec![], vec![]);
    let body = Novel { seq: 2, parent, time_slot: 77, users_add, users_del, inputs, unl_vote: None, settlement: None };
    let said = TableCrypto(key).signed(body, &scope);
    for node in 0..4 {
        world.handle(node, Event::Message(key, Message::Novel(said.clone())));
    }
    world.nodes[4].emptied = true;
    back(&mut world, 4);
    assert!(world.run(world.now + 3_000, |world| is_silent(world, 4)), "{}", world.describe());
    assert!(world.nodes[4].disk.journal.novel.is_none());
    healed.set(true);
    for node in 0..4 {
        world.input(node, vec![2]);
        world.run(world.now + 500, |_| false);
    }
    goes_on_slowly(&mut world);
}

/// The same where nothing happens by itself.
fn goes_on_slowly(world: &mut World) {
    for _ in 0..5 {
        world.input(0, vec![3]);
        world.run(world.now + 1_000, |_| false);
    }
    assert!(world.silent_members().is_empty(), "{}", world.describe());
    assert!(all_at(world, world.watch.tip()), "{}", world.describe());
}
