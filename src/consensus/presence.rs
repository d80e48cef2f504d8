//! Which users are connected, at which hosts, and how that differs from the last ledger. Of one host as many count as are
//! its share of a ledger's room, whatever it claims.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use super::{NOVEL_USERS_MAX, Params, messages::Presence, mutation::mutated, seats};
use crate::types::{Hash, NodeKey, UserKey};

/// Users that a host may claim in one message, as no ledger has room for more. A longer one is dropped.
pub const HOST_USERS_MAX: usize = 30_000;

/// Users whose presence may differ from the last ledger's, before those that do not are looked for and forgotten, and
/// again when they are twice as many: users that come and go a thousand times while no ledger closes must not stay.
const PENDING_MAX: usize = 2 * HOST_USERS_MAX;

#[derive(Debug, Default)]
struct Host {
    boot: Option<Hash>,
    counter: u64,
    /// Whom it claims.
    users: BTreeSet<UserKey>,
    /// Those of them that count: the first ones, so that they are the same everywhere.
    counted: BTreeSet<UserKey>,
}

/// Who is connected anywhere.
#[derive(Debug, Default)]
struct Sessions {
    /// At how many hosts each user is connected, of those at which it counts.
    at: BTreeMap<UserKey, usize>,
    /// Users whose presence may differ from the last ledger.
    pending: BTreeSet<UserKey>,
}

impl Sessions {
    fn came(&mut self, user: &UserKey) {
        *self.at.entry(*user).or_insert(0) += 1;
        self.pending.insert(*user);
    }

    fn went(&mut self, user: &UserKey) {
        let count = self.at.get_mut(user).expect("counted when it came");
        *count -= 1;
        if *count == 0 {
            self.at.remove(user);
        }
        self.pending.insert(*user);
    }

    fn forget_settled(&mut self, agreed: &BTreeSet<UserKey>) {
        let at = &self.at;
        self.pending.retain(|user| at.contains_key(user) != agreed.contains(user));
    }
}

/// The table of hosts and users.
#[derive(Debug)]
pub struct PresenceTable {
    me: NodeKey,
    boot: Hash,
    hosts: BTreeMap<NodeKey, Host>,
    /// Users that one host may claim: as many as a ledger has room for.
    claims_max: usize,
    /// Users of one host that count.
    share: usize,
    sessions: Sessions,
    /// At how many of these to look for those that do not.
    pending_max: usize,
}

/// What came of a PRESENCE.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// It was taken (or is old).
    Taken,
    /// Something before it is missing: ask for a full one.
    Gap,
}

impl PresenceTable {
    /// Nobody is connected yet; those of the last ledger may have to go.
    pub fn new(params: &Params, members: usize, agreed: &BTreeSet<UserKey>) -> PresenceTable {
        let Params { me, boot, users_max, .. } = *params;
        let hosts = BTreeMap::from([(me, Host { boot: Some(boot), ..Host::default() })]);
        let sessions = Sessions { pending: agreed.clone(), ..Sessions::default() };
        let (claims_max, share) = (users_max.min(HOST_USERS_MAX), seats::share(users_max, members));
        PresenceTable { me, boot, hosts, claims_max, share, sessions, pending_max: PENDING_MAX }
    }

    /// There are so many members now: each has another share.
    pub fn share_among(&mut self, users_max: usize, members: usize) {
        self.share = seats::share(users_max, members);
        let hosts: Vec<NodeKey> = self.hosts.keys().copied().collect();
        hosts.into_iter().for_each(|host| self.count(host));
    }

    /// A user came to this node; the change to tell, `None` if it was here.
    pub fn up(&mut self, user: UserKey) -> Option<Presence> {
        self.change(&[user], &[])
    }

    /// A user left this node.
    pub fn down(&mut self, user: UserKey) -> Option<Presence> {
        self.change(&[], &[user])
    }

    fn change(&mut self, up: &[UserKey], down: &[UserKey]) -> Option<Presence> {
        if !self.apply(self.me, up, down) {
            return None;
        }
        let host = self.hosts.get_mut(&self.me).expect("made in new");
        host.counter += 1;
        let (up, down) = (up.to_vec(), down.to_vec());
        Some(Presence { boot: self.boot, counter: host.counter, full: false, up, down })
    }

    /// Everybody at this node.
    pub fn snapshot(&self) -> Presence {
        let host = &self.hosts[&self.me];
        let up = host.users.iter().copied().collect();
        Presence { boot: self.boot, counter: host.counter, full: true, up, down: Vec::new() }
    }

    /// Another host's message.
    pub fn heard(&mut self, from: NodeKey, presence: &Presence) -> Heard {
        let host = self.hosts.entry(from).or_default();
        let same_boot = host.boot == Some(presence.boot);
        if presence.full {
            if same_boot && presence.counter < host.counter {
                return Heard::Taken;
            }
            let now: BTreeSet<UserKey> = presence.up.iter().copied().take(self.claims_max).collect();
            let gone: Vec<UserKey> = host.users.difference(&now).copied().collect();
            let came: Vec<UserKey> = now.difference(&host.users).copied().collect();
            host.boot = Some(presence.boot);
            host.counter = presence.counter;
            self.apply(from, &came, &gone);
            return Heard::Taken;
        }
        // A peer may claim any number: at the last one nothing follows.
        let next = host.counter.checked_add(1);
        if !same_boot || next.is_some_and(|next| presence.counter > next) {
            return Heard::Gap;
        }
        if next == Some(presence.counter) && host.users.len() + presence.up.len() <= self.claims_max {
            host.counter = presence.counter;
            self.apply(from, &presence.up, &presence.down);
        }
        Heard::Taken
    }

    /// A host is gone, and its users with it. Its next message must be a full one.
    pub fn forget_host(&mut self, host: &NodeKey) {
        if let Some(gone) = self.hosts.get(host) {
            let users: Vec<UserKey> = gone.users.iter().copied().collect();
            self.apply(*host, &[], &users);
            self.hosts.remove(host);
        }
    }

    /// Whether anything was heard of this host since it was forgotten.
    pub fn knows(&self, host: &NodeKey) -> bool {
        self.hosts.contains_key(host)
    }

    /// Users to add and to remove for my NOVEL on top of `parent`, ascending. Where there are too many of one kind it is those
    /// that come first in the order of that ledger, for all nodes the same and no one for ever.
    pub fn novel(&self, agreed: &BTreeSet<UserKey>, parent: &Hash) -> (Vec<UserKey>, Vec<UserKey>) {
        let Sessions { at, pending } = &self.sessions;
        let present = |user: &&UserKey| at.contains_key(user);
        let add = pending.iter().filter(present).filter(|user| !agreed.contains(user));
        let del = pending.iter().filter(|user| !present(user)).filter(|user| agreed.contains(user));
        let some = |users: Vec<UserKey>| {
            let mut users = seats::first(users, NOVEL_USERS_MAX, parent);
            users.sort_unstable();
            users
        };
        (some(add.copied().collect()), some(del.copied().collect()))
    }

    /// A ledger was closed: forget what it settled.
    pub fn closed(&mut self, changed: impl IntoIterator<Item = UserKey>, agreed: &BTreeSet<UserKey>) {
        self.sessions.pending.extend(changed);
        self.sessions.forget_settled(agreed);
    }

    /// The users of the last ledger are these, whoever they were before.
    pub fn rebase(&mut self, agreed: &BTreeSet<UserKey>) {
        self.sessions.pending = agreed.iter().chain(self.sessions.at.keys()).copied().collect();
        self.sessions.forget_settled(agreed);
    }

    /// Keeps the bound of what may differ from the last ledger.
    pub fn bound(&mut self, agreed: &BTreeSet<UserKey>) {
        if self.sessions.pending.len() > self.pending_max {
            self.sessions.forget_settled(agreed);
            self.pending_max = PENDING_MAX.max(2 * self.sessions.pending.len());
        }
    }

    fn apply(&mut self, host: NodeKey, up: &[UserKey], down: &[UserKey]) -> bool {
        let Host { users, counted, .. } = self.hosts.entry(host).or_default();
        let mut changed = false;
        for user in up.iter().filter(|user| users.insert(**user)) {
            // Whoever is behind the last one that counts does not; if there is room, `count` comes to it.
            if counted.last().is_some_and(|last| user < last) {
                counted.insert(*user);
                self.sessions.came(user);
            }
            changed = true;
        }
        for user in down.iter().filter(|user| users.remove(*user)) {
            if counted.remove(user) {
                self.sessions.went(user);
            }
            changed = true;
        }
        self.count(host);
        changed
    }

    /// Has the first users of a host count, as many as are its share.
    fn count(&mut self, host: NodeKey) {
        let share = if mutated!(NoShare) { usize::MAX } else { self.share };
        let Some(Host { users, counted, .. }) = self.hosts.get_mut(&host) else { return };
        while counted.len() > share {
            let last = counted.pop_last().expect("more than none");
            self.sessions.went(&last);
        }
        while counted.len() < share.min(users.len()) {
            let behind = counted.last().map_or(Bound::Unbounded, |last| Bound::Excluded(*last));
            let next = *users.range((behind, Bound::Unbounded)).next().expect("those that count are the first");
            counted.insert(next);
            self.sessions.came(&next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeKey = NodeKey([0; 32]);
    const PEER: NodeKey = NodeKey([1; 32]);
    const USER: UserKey = UserKey([9; 32]);

    const PARENT: Hash = Hash([8; 32]);

    fn of(me: NodeKey, boot: Hash, users_max: usize, members: usize) -> PresenceTable {
        let params = Params {
            me,
            boot,
            roundtime_ms: 1000,
            min_round_ms: 0,
            eager: true,
            grace_ms: 30,
            attempt_ms: 120,
            time_res_ms: 1000,
            input_window: 16,
            users_max,
            input_bytes_max: 1,
            session_inputs: true,
        };
        PresenceTable::new(&params, members, &BTreeSet::new())
    }

    fn table() -> PresenceTable {
        of(ME, Hash([1; 32]), 4_096, 1)
    }

    #[test]
    fn a_user_stays_while_one_of_its_hosts_has_it() {
        let mut table = table();
        let mut peer = of(PEER, Hash([2; 32]), 4_096, 1);
        table.heard(PEER, &peer.snapshot());
        table.up(USER);
        table.heard(PEER, &peer.up(USER).unwrap());
        let agreed = BTreeSet::from([USER]);
        table.down(USER);
        assert_eq!(table.novel(&agreed, &PARENT), (vec![], vec![]));
        table.forget_host(&PEER);
        assert_eq!(table.novel(&agreed, &PARENT), (vec![], vec![USER]));
    }

    #[test]
    fn users_that_come_and_go_while_no_ledger_closes_are_forgotten() {
        let mut table = table();
        let (boot, agreed) = (Hash([2; 32]), BTreeSet::from([USER]));
        table.heard(PEER, &Presence { boot, counter: 0, full: true, up: vec![USER], down: vec![] });
        for counter in 0..200 {
            let user = |at: u64| UserKey(Hash::tagged("user", &(counter / 2, at)).0);
            let users: Vec<UserKey> = (0..1_000).map(user).collect();
            let (up, down) = if counter % 2 == 0 { (users, vec![]) } else { (vec![], users) };
            table.heard(PEER, &Presence { boot, counter: counter + 1, full: false, up, down });
            table.bound(&agreed);
            assert!(table.sessions.pending.len() <= PENDING_MAX, "{counter}");
        }
        table.forget_host(&PEER);
        assert_eq!(table.novel(&agreed, &PARENT), (vec![], vec![USER]), "who really went is not");
    }

    #[test]
    fn a_gap_is_noticed_and_a_snapshot_mends_it() {
        let mut table = table();
        let mut peer = of(PEER, Hash([2; 32]), 4_096, 1);
        table.heard(PEER, &peer.snapshot());
        peer.up(UserKey([1; 32]));
        let second = peer.up(USER).unwrap();
        assert_eq!(table.heard(PEER, &second), Heard::Gap);
        assert_eq!(table.heard(PEER, &peer.snapshot()), Heard::Taken);
        assert_eq!(table.novel(&BTreeSet::new(), &PARENT).0.len(), 2);
        assert_eq!(table.heard(PEER, &second), Heard::Taken, "an old one changes nothing");
    }

    #[test]
    fn a_host_that_counts_to_the_end_of_numbers_harms_nobody() {
        let mut table = table();
        let last = |full| Presence { boot: Hash([2; 32]), counter: u64::MAX, full, up: vec![USER], down: vec![] };
        assert_eq!(table.heard(PEER, &last(true)), Heard::Taken);
        assert_eq!(table.heard(PEER, &last(false)), Heard::Taken);
        assert_eq!(table.novel(&BTreeSet::new(), &PARENT).0, vec![USER]);
    }

    #[test]
    fn users_of_a_ledger_that_others_closed_are_compared_with_who_is_here() {
        let mut table = table();
        let [here, both, gone] = [UserKey([1; 32]), UserKey([2; 32]), UserKey([3; 32])];
        table.up(here);
        table.up(both);
        table.closed([here, both], &BTreeSet::from([here, both]));
        let agreed = BTreeSet::from([both, gone]);
        table.rebase(&agreed);
        assert_eq!(table.novel(&agreed, &PARENT), (vec![here], vec![gone]));
    }

    #[test]
    fn what_a_ledger_settled_is_not_proposed_again() {
        let mut table = table();
        table.up(USER);
        assert_eq!(table.novel(&BTreeSet::new(), &PARENT).0, vec![USER]);
        let agreed = BTreeSet::from([USER]);
        table.closed([USER], &agreed);
        assert_eq!(table.novel(&agreed, &PARENT), (vec![], vec![]));
    }

    fn users(from: u8, to: u8) -> Vec<UserKey> {
        (from..to).map(|at| UserKey([at; 32])).collect()
    }

    fn says(boot: u8, counter: u64, up: Vec<UserKey>, down: Vec<UserKey>) -> Presence {
        Presence { boot: Hash([boot; 32]), counter, full: counter == 0, up, down }
    }

    #[test]
    fn of_a_host_that_claims_more_than_its_share_the_first_users_count() {
        // Three seats, and one of three members has one, of two of them.
        let mut table = of(ME, Hash([1; 32]), 4, 1);
        table.heard(PEER, &says(2, 0, users(10, 14), vec![]));
        let none = BTreeSet::new();
        assert_eq!(table.novel(&none, &PARENT).0, users(10, 13));
        table.heard(PEER, &says(2, 1, vec![], users(11, 12)));
        assert_eq!(
            table.novel(&none, &PARENT).0,
            [users(10, 11), users(12, 14)].concat(),
            "there is room for the next"
        );
        table.heard(PEER, &says(2, 2, users(5, 6), vec![]));
        assert_eq!(table.novel(&none, &PARENT).0, [users(5, 6), users(10, 11), users(12, 13)].concat());
        table.share_among(4, 3);
        assert_eq!(table.novel(&none, &PARENT).0, users(5, 6));
        let agreed: BTreeSet<UserKey> = [users(5, 6), users(10, 11)].concat().into_iter().collect();
        table.rebase(&agreed);
        assert_eq!(table.novel(&agreed, &PARENT), (vec![], users(10, 11)), "who counts no more goes");
        table.share_among(4, 1);
        assert_eq!(table.novel(&agreed, &PARENT), (users(12, 13), vec![]), "and may come again");
        table.forget_host(&PEER);
        assert!(table.sessions.at.is_empty());
    }

    #[test]
    fn two_hosts_with_one_user_count_it_once_and_each_has_its_share() {
        let mut table = of(ME, Hash([1; 32]), 4, 3);
        table.heard(PEER, &says(2, 0, users(10, 12), vec![]));
        table.heard(NodeKey([2; 32]), &says(3, 0, users(10, 12), vec![]));
        assert_eq!(table.novel(&BTreeSet::new(), &PARENT).0, users(10, 11));
        table.forget_host(&PEER);
        assert_eq!(table.novel(&BTreeSet::new(), &PARENT).0, users(10, 11));
    }

    #[test]
    fn more_claims_than_a_ledger_has_room_for_are_not_kept() {
        let mut table = of(ME, Hash([1; 32]), 4, 1);
        table.heard(PEER, &says(2, 0, users(10, 20), vec![]));
        assert_eq!(table.hosts[&PEER].users.len(), 4);
        assert_eq!(table.heard(PEER, &says(2, 1, users(20, 21), vec![])), Heard::Taken);
        assert_eq!(table.hosts[&PEER].users.len(), 4);
        assert_eq!(table.heard(PEER, &says(2, 2, vec![], users(10, 11))), Heard::Gap, "what was dropped is asked for");
    }

    #[test]
    fn of_more_users_than_a_novel_holds_each_has_its_turn() {
        let mut table = of(ME, Hash([1; 32]), 30_000, 1);
        let user = |at: usize| UserKey(Hash::tagged("user", &(at as u64)).0);
        (0..NOVEL_USERS_MAX + 10).for_each(|at| {
            table.up(user(at));
        });
        let mut left: BTreeSet<UserKey> = (0..NOVEL_USERS_MAX + 10).map(user).collect();
        for parent in 0..4 {
            let (add, _) = table.novel(&BTreeSet::new(), &Hash([parent; 32]));
            assert!(add.len() == NOVEL_USERS_MAX && add.is_sorted());
            add.iter().for_each(|user| {
                left.remove(user);
            });
        }
        assert_eq!(left, BTreeSet::new());
    }
}
