//! Who is in a ledger, when more want to be than there is room for.
//!
//! A ledger has room for `users_max` users. Three quarters of it are seats, for those whom nodes vote for because they are
//! connected; a quarter is kept for those who say something without a seat. So neither who only sits there nor who only talks
//! takes all the room. Each member has an equal share of the seats. Source: `docs/protocol.md`, "The users of a ledger".

use std::collections::{BTreeMap, BTreeSet};

use super::{header::priority, mutation::mutated};
use crate::types::{Hash, NodeKey, UserKey};

/// The fewest users a ledger has room for: with the largest UNL, each member has a seat.
pub const LEDGER_USERS_MIN: usize = 256;
/// The most: whom one host may claim at once, which is one message.
pub const LEDGER_USERS_MAX: usize = super::presence::HOST_USERS_MAX;

/// Seats in a ledger with room for so many users.
pub fn seats(users_max: usize) -> usize {
    users_max - users_max / 4
}

/// A member's share of them: so many users of one host are counted, and let in there.
pub fn share(users_max: usize, members: usize) -> usize {
    (seats(users_max) / members.max(1)).max(1)
}

/// Who of these has a seat. Are there too many, it is drawn: by a hash that nobody can steer and that is another one in each
/// ledger, so that who has none now has one soon, and nobody keeps others from theirs.
pub(super) fn seated(wanted: BTreeSet<UserKey>, parent: &Hash, users_max: usize) -> BTreeSet<UserKey> {
    let seats = if mutated!(NoReserve) { users_max } else { seats(users_max) };
    if wanted.len() <= seats {
        return wanted;
    }
    first(wanted, seats, parent).into_iter().collect()
}

/// Of these users so many, the first in the order of this ledger.
pub(super) fn first(users: impl IntoIterator<Item = UserKey>, count: usize, parent: &Hash) -> Vec<UserKey> {
    let mut users: Vec<UserKey> = users.into_iter().collect();
    if users.len() > count {
        users.sort_by_cached_key(|user| priority(parent, user));
        users.truncate(count);
    }
    users
}

/// Of users without a seat who say something, those worth listing where there is room for so many: the first of each host,
/// then the second of each, and so on. `hosts` is by whom they came.
///
/// With that each honest node lists about the same, no more than there is room for, and a host that brings users without end
/// has them wait for each other and not for those of others.
pub(super) fn guests(hosts: BTreeMap<NodeKey, BTreeSet<UserKey>>, room: usize, parent: &Hash) -> BTreeSet<UserKey> {
    let mut places: BTreeMap<UserKey, (usize, Hash)> = BTreeMap::new();
    for users in hosts.into_values() {
        let mut users: Vec<(Hash, UserKey)> = users.into_iter().map(|user| (priority(parent, &user), user)).collect();
        users.sort_unstable();
        for (rank, (order, user)) in users.into_iter().enumerate() {
            let place = places.entry(user).or_insert((rank, order));
            *place = (*place).min((rank, order));
        }
    }
    let mut users: Vec<((usize, Hash), UserKey)> = places.into_iter().map(|(user, place)| (place, user)).collect();
    users.sort_unstable();
    users.into_iter().take(room).map(|(_, user)| user).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(at: usize) -> UserKey {
        UserKey(Hash::tagged("user", &(at as u64)).0)
    }

    #[test]
    fn seats_and_shares_leave_a_quarter_and_every_member_has_some() {
        let table =
            [(256, 1, 192), (256, 128, 1), (4_096, 1, 3_072), (4_096, 5, 614), (4_096, 128, 24), (30_000, 7, 3_214)];
        for (users_max, members, expected) in table {
            assert_eq!(share(users_max, members), expected, "{users_max} users, {members} members");
            assert!(expected * members <= seats(users_max) && seats(users_max) <= users_max - users_max / 4);
        }
        assert_eq!(share(4, 128), 1, "whatever there is");
    }

    #[test]
    fn who_has_no_seat_in_one_ledger_has_one_in_another() {
        let wanted: BTreeSet<UserKey> = (0..60).map(user).collect();
        let mut left = wanted.clone();
        for ledger in 0..20 {
            let seated = seated(wanted.clone(), &Hash([ledger; 32]), 40);
            assert_eq!(seated.len(), 30);
            left.retain(|user| !seated.contains(user));
        }
        assert_eq!(left, BTreeSet::new());
        assert_eq!(seated(wanted.clone(), &Hash::ZERO, 80), wanted, "there is room for all");
    }

    #[test]
    fn a_host_with_a_thousand_guests_leaves_the_others_their_room() {
        let [flood, few] = [NodeKey([1; 32]), NodeKey([2; 32])];
        let of_few: BTreeSet<UserKey> = (5_000..5_010).map(user).collect();
        for ledger in 0..20 {
            let hosts = BTreeMap::from([(flood, (0..1_000).map(user).collect()), (few, of_few.clone())]);
            let guests = guests(hosts, 50, &Hash([ledger; 32]));
            assert_eq!(guests.len(), 50, "none is left unused");
            assert!(guests.is_superset(&of_few));
        }
        let hosts: BTreeMap<NodeKey, BTreeSet<UserKey>> =
            (0..20).map(|host| (NodeKey([host; 32]), BTreeSet::from([user(usize::from(host) % 10)]))).collect();
        assert_eq!(guests(hosts.clone(), 3, &Hash::ZERO).len(), 3, "more hosts than there is room for");
        assert_eq!(guests(hosts, 30, &Hash::ZERO).len(), 10, "one with two hosts is one");
    }
}
