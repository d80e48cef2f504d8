//! Which users are connected, at which hosts, and how that differs from the last ledger.

use std::collections::{BTreeMap, BTreeSet};

use super::{NOVEL_USERS_MAX, messages::Presence};
use crate::types::{Hash, NodeKey, UserKey};

/// Users one host may claim. Past it the message is refused: no gateway serves more.
pub const HOST_USERS_MAX: usize = 30_000;

/// Users whose presence may differ from the last ledger's, before those that do not are looked for and forgotten, and
/// again when they are twice as many: users that come and go a thousand times while no ledger closes must not stay.
const PENDING_MAX: usize = 2 * HOST_USERS_MAX;

#[derive(Debug, Default)]
struct Host {
    boot: Option<Hash>,
    counter: u64,
    users: BTreeSet<UserKey>,
}

/// The table of hosts and users.
#[derive(Debug)]
pub struct PresenceTable {
    me: NodeKey,
    boot: Hash,
    hosts: BTreeMap<NodeKey, Host>,
    /// At how many hosts each user is connected.
    sessions: BTreeMap<UserKey, usize>,
    /// Users whose presence may differ from the last ledger.
    pending: BTreeSet<UserKey>,
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
    pub fn new(me: NodeKey, boot: Hash, agreed: &BTreeSet<UserKey>) -> PresenceTable {
        let hosts = BTreeMap::from([(me, Host { boot: Some(boot), ..Host::default() })]);
        let (sessions, pending) = (BTreeMap::new(), agreed.clone());
        PresenceTable { me, boot, hosts, sessions, pending, pending_max: PENDING_MAX }
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
            let now: BTreeSet<UserKey> = presence.up.iter().copied().take(HOST_USERS_MAX).collect();
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
        if next == Some(presence.counter) && host.users.len() + presence.up.len() <= HOST_USERS_MAX {
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

    /// Users to add and to remove for my NOVEL, ascending, the first of each that fit.
    pub fn novel(&self, agreed: &BTreeSet<UserKey>) -> (Vec<UserKey>, Vec<UserKey>) {
        let present = |user: &&UserKey| self.sessions.contains_key(user);
        let add = self.pending.iter().filter(present).filter(|user| !agreed.contains(user));
        let del = self.pending.iter().filter(|user| !present(user)).filter(|user| agreed.contains(user));
        (add.take(NOVEL_USERS_MAX).copied().collect(), del.take(NOVEL_USERS_MAX).copied().collect())
    }

    /// A ledger was closed: forget what it settled.
    pub fn closed(&mut self, changed: impl IntoIterator<Item = UserKey>, agreed: &BTreeSet<UserKey>) {
        self.pending.extend(changed);
        self.forget_settled(agreed);
    }

    /// The users of the last ledger are these, whoever they were before.
    pub fn rebase(&mut self, agreed: &BTreeSet<UserKey>) {
        self.pending = agreed.iter().chain(self.sessions.keys()).copied().collect();
        self.forget_settled(agreed);
    }

    /// Keeps the bound of what may differ from the last ledger.
    pub fn bound(&mut self, agreed: &BTreeSet<UserKey>) {
        if self.pending.len() > self.pending_max {
            self.forget_settled(agreed);
            self.pending_max = PENDING_MAX.max(2 * self.pending.len());
        }
    }

    fn forget_settled(&mut self, agreed: &BTreeSet<UserKey>) {
        let sessions = &self.sessions;
        self.pending.retain(|user| sessions.contains_key(user) != agreed.contains(user));
    }

    fn apply(&mut self, host: NodeKey, up: &[UserKey], down: &[UserKey]) -> bool {
        let users = &mut self.hosts.entry(host).or_default().users;
        let mut changed = false;
        for user in up {
            if users.insert(*user) {
                *self.sessions.entry(*user).or_insert(0) += 1;
                self.pending.insert(*user);
                changed = true;
            }
        }
        for user in down {
            if users.remove(user) {
                let count = self.sessions.get_mut(user).expect("counted when it came");
                *count -= 1;
                if *count == 0 {
                    self.sessions.remove(user);
                }
                self.pending.insert(*user);
                changed = true;
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeKey = NodeKey([0; 32]);
    const PEER: NodeKey = NodeKey([1; 32]);
    const USER: UserKey = UserKey([9; 32]);

    fn table() -> PresenceTable {
        PresenceTable::new(ME, Hash([1; 32]), &BTreeSet::new())
    }

    #[test]
    fn a_user_stays_while_one_of_its_hosts_has_it() {
        let mut table = table();
        let mut peer = PresenceTable::new(PEER, Hash([2; 32]), &BTreeSet::new());
        table.heard(PEER, &peer.snapshot());
        table.up(USER);
        table.heard(PEER, &peer.up(USER).unwrap());
        let agreed = BTreeSet::from([USER]);
        table.down(USER);
        assert_eq!(table.novel(&agreed), (vec![], vec![]));
        table.forget_host(&PEER);
        assert_eq!(table.novel(&agreed), (vec![], vec![USER]));
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
            assert!(table.pending.len() <= PENDING_MAX, "{counter}");
        }
        table.forget_host(&PEER);
        assert_eq!(table.novel(&agreed), (vec![], vec![USER]), "who really went is not");
    }

    #[test]
    fn a_gap_is_noticed_and_a_snapshot_mends_it() {
        let mut table = table();
        let mut peer = PresenceTable::new(PEER, Hash([2; 32]), &BTreeSet::new());
        table.heard(PEER, &peer.snapshot());
        peer.up(UserKey([1; 32]));
        let second = peer.up(USER).unwrap();
        assert_eq!(table.heard(PEER, &second), Heard::Gap);
        assert_eq!(table.heard(PEER, &peer.snapshot()), Heard::Taken);
        assert_eq!(table.novel(&BTreeSet::new()).0.len(), 2);
        assert_eq!(table.heard(PEER, &second), Heard::Taken, "an old one changes nothing");
    }

    #[test]
    fn a_host_that_counts_to_the_end_of_numbers_harms_nobody() {
        let mut table = table();
        let last = |full| Presence { boot: Hash([2; 32]), counter: u64::MAX, full, up: vec![USER], down: vec![] };
        assert_eq!(table.heard(PEER, &last(true)), Heard::Taken);
        assert_eq!(table.heard(PEER, &last(false)), Heard::Taken);
        assert_eq!(table.novel(&BTreeSet::new()).0, vec![USER]);
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
        assert_eq!(table.novel(&agreed), (vec![here], vec![gone]));
    }

    #[test]
    fn what_a_ledger_settled_is_not_proposed_again() {
        let mut table = table();
        table.up(USER);
        assert_eq!(table.novel(&BTreeSet::new()).0, vec![USER]);
        let agreed = BTreeSet::from([USER]);
        table.closed([USER], &agreed);
        assert_eq!(table.novel(&agreed), (vec![], vec![]));
    }
}
