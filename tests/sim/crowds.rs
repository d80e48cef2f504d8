//! Scripted schedules with more users than there is room for, and a member that claims users without end. `World` checks every
//! property in each of them, and so that no ledger has more users than there is room for.

use std::collections::BTreeSet;

use hotpocket::{
    consensus::{
        Event, LocalInput,
        header::{Input, Origin},
        messages::{Message, Presence},
        seats::{seats, share},
    },
    types::{Challenge, Hash, NodeKey, Seq, Sig, UserKey},
};

use super::{
    crypto::TableCrypto,
    schedules::{all_at, linked},
    world::{Config, Manner, World},
};

/// Twelve seats of which each of four members has three, and room for four others.
const USERS_MAX: usize = 16;
/// The member that lies.
const LIAR: usize = 3;
/// Ledgers within which everybody honest must be heard, whatever the liar does.
const HEARD_WITHIN: Seq = 8;

fn crowded(manner: Manner) -> World {
    let mut cfg = Config { users_max: USERS_MAX, eager: false, roundtime_ms: 50, ..Config::calm(4, 75) };
    cfg.manners[LIAR] = manner;
    linked(cfg, 1)
}

fn user(node: usize, at: usize) -> UserKey {
    UserKey([0x80 | (node as u8) << 4 | at as u8; 32])
}

/// As many users at each honest node as it may let in.
fn take_seats(world: &mut World) -> BTreeSet<UserKey> {
    let share = share(USERS_MAX, 4);
    assert_eq!((share, seats(USERS_MAX)), (3, 12));
    let users: Vec<(usize, UserKey)> =
        (0..3).flat_map(|node| (0..share).map(move |at| (node, user(node, at)))).collect();
    for (node, user) in &users {
        world.user_up(*node, *user);
    }
    users.into_iter().map(|(_, user)| user).collect()
}

/// An input that its user signed, at one node as if it had been sent there.
fn signed(world: &mut World, node: usize, user: UserKey, nonce: u64) -> (UserKey, Hash, u64) {
    let origin = Origin::User { sig: Sig([1; 64]) };
    let input = Input { user, origin, nonce, max_ledger: world.seq(node) + 1_000, payload: vec![1] };
    let key = input.key();
    world.handle(node, Event::SignedInput(input));
    key
}

/// Users of each ledger of the chain.
fn users(world: &World) -> Vec<BTreeSet<UserKey>> {
    let chain = world.watch.chain.iter();
    let grown = chain.scan(BTreeSet::new(), |users: &mut BTreeSet<UserKey>, (_, ledger)| {
        *users = ledger.candidate.users_after(users);
        Some(users.clone())
    });
    grown.collect()
}

#[test]
pub fn a_host_that_claims_more_than_its_share_takes_nobodys_seat() {
    let mut world = crowded(Manner::Withholds);
    let honest = take_seats(&mut world);
    // What it claims is the same everywhere, and would fill each seat.
    let liar = NodeKey([LIAR as u8 + 1; 32]);
    let scope = world.nodes[0].core.as_ref().expect("it is up").scope();
    let up: Vec<UserKey> = (0..USERS_MAX as u8).map(|at| UserKey([at; 32])).collect();
    let claim = Presence { boot: Hash([5; 32]), counter: 1, full: true, up, down: vec![] };
    let claim = Message::Presence(TableCrypto(liar).signed(claim, &scope));
    (0..3).for_each(|node| world.handle(node, Event::Message(liar, claim.clone())));
    let from = world.watch.tip() + 2;
    assert!(world.run(5_000, |world| all_at(world, from + 6)), "{}", world.describe());
    for (at, users) in users(&world).iter().enumerate().skip(from as usize - 1) {
        assert!(users.is_superset(&honest), "ledger {}: {users:?}", at + 1);
        assert_eq!(users.len(), seats(USERS_MAX), "the others are the first that it claims");
    }
}

#[test]
pub fn whoever_crowds_a_ledger_keeps_nobody_from_being_heard() {
    let mut world = crowded(Manner::Crowds);
    let honest = take_seats(&mut world);
    assert!(world.run(2_000, |world| all_at(world, 5)), "{}", world.describe());
    // Who has a seat speaks, and who has none.
    let mut waiting = Vec::new();
    for turn in 0..10 {
        let tip = world.watch.tip();
        for node in 0..3 {
            let (challenge, user) = (Challenge([7; 16]), user(node, turn % 3));
            let challenge = Challenge([challenge.0[0] + turn as u8; 16]);
            let local = LocalInput { user, challenge, helo_sig: Sig([0; 64]), nonce: 0, payload: vec![2] };
            world.handle(node, Event::LocalInput(local));
            let tag =
                Origin::Session { host: world.key(node), challenge, helo_sig: Sig([0; 64]), host_sig: Sig([0; 64]) };
            waiting.push((tip, (user, tag.tag(), 0)));
            let key = signed(&mut world, node, UserKey([0x40 + 3 * turn as u8 + node as u8; 32]), 1);
            waiting.push((tip, key));
        }
        assert!(world.run(10_000, |world| all_at(world, tip + 2)), "{}", world.describe());
    }
    let last = world.watch.tip() + HEARD_WITHIN;
    assert!(world.run(30_000, |world| all_at(world, last)), "{}", world.describe());
    let mut longest = 0;
    for (sent, key) in &waiting {
        let heard = world.watch.ledger_of(key).unwrap_or_else(|| panic!("{key:?}, sent at {sent}, is in no ledger"));
        longest = longest.max(heard - sent);
    }
    assert!(longest <= HEARD_WITHIN, "the longest waited for {longest} ledgers");
    // The crowd fights for each seat, and gets some; nobody has none for long.
    let users = users(&world);
    let outside: usize = users.iter().map(|users| users.difference(&honest).count()).sum();
    assert!(outside > 4 * users.len(), "the crowd is there: {outside} in {} ledgers", users.len());
    for user in &honest {
        let mut absent = 0;
        for there in users.iter().skip(4) {
            absent = if there.contains(user) { 0 } else { absent + 1 };
            assert!(absent <= HEARD_WITHIN, "{user} has no seat for {absent} ledgers");
        }
    }
    println!("heard within {longest} ledgers; {outside} strangers in {} ledgers", users.len());
}

#[test]
pub fn more_users_who_say_something_than_there_is_room_for_take_turns() {
    let mut world = linked(Config { users_max: 4, roundtime_ms: 50, ..Config::calm(3, 67) }, 1);
    let keys: Vec<_> = (0..30).map(|at| signed(&mut world, at % 3, UserKey([at as u8 + 1; 32]), 1)).collect();
    assert!(world.run(20_000, |world| keys.iter().all(|key| world.watch.is_ledgered(key))), "{}", world.describe());
    let users = users(&world);
    assert!(users.iter().all(|users| users.len() <= 4));
    assert!(users.iter().filter(|users| users.len() == 4).count() >= 7, "as many in each as there is room for");
    let tip = world.watch.tip();
    assert!(world.run(30_000, |world| all_at(world, tip + 2)));
    assert_eq!(world.nodes[0].disk.journal.users, BTreeSet::new(), "who only said something goes again");
}
