//! Inputs held and not ledgered.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use super::{
    INPUTS_BYTES_MAX, INPUTS_MAX,
    header::{Input, InputKey, Origin, priority},
};
use crate::types::{Hash, NodeKey, Seq, UserKey};

/// Bytes of all inputs held. Past it an input is refused as "busy".
pub const POOL_BYTES_MAX: usize = 64 << 20;
/// Bytes of the inputs of one host, so that one host cannot fill the pool of the others.
pub const POOL_HOST_BYTES_MAX: usize = POOL_BYTES_MAX / 4;
/// What an input costs beside its payload, against many empty ones.
const ENTRY_BYTES: usize = 256;
/// How far beyond the window an input's last ledger may be to be kept (not listed): nodes are not at one ledger.
const AHEAD: u64 = 64;

/// Why an input was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The pool, or its host's share, is full.
    Busy,
    /// This node has no room on its disk for anything new.
    NoRoom,
    /// `max_ledger` is past.
    Expired,
    /// `max_ledger` is too far ahead.
    TooFar,
    /// Its key is in this ledger already.
    Ledgered(Seq),
    /// It is longer than this network allows.
    TooLong,
    /// This network takes signed inputs only.
    NotSigned,
}

#[derive(Debug, Clone)]
struct Entry {
    input: Input,
    key: InputKey,
    host: NodeKey,
    /// Listed in a NOVEL of mine before.
    proposed: bool,
}

/// The inputs held.
#[derive(Debug, Default)]
pub struct Pool {
    entries: BTreeMap<Hash, Entry>,
    bytes: usize,
    by_host: BTreeMap<NodeKey, usize>,
    unproposed: usize,
    /// Those that users signed, by user and nonce.
    signed: BTreeSet<(UserKey, u64, Hash)>,
    /// Keys of those of sessions.
    sessions: BTreeSet<InputKey>,
}

impl Pool {
    /// The input with this id.
    pub fn get(&self, id: &Hash) -> Option<&Input> {
        self.entries.get(id).map(|entry| &entry.input)
    }

    /// Whether it is held.
    pub fn contains(&self, id: &Hash) -> bool {
        self.entries.contains_key(id)
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is an input that I have not listed in a NOVEL yet.
    pub fn has_unproposed(&self) -> bool {
        self.unproposed > 0
    }

    /// Takes an input whose origin was verified; `false` when it was there. `link` is who brought it.
    /// What a header that may be closed needs (`needed`) is taken even when the pool is full.
    pub fn insert(&mut self, id: Hash, input: Input, link: NodeKey, needed: bool) -> Result<bool, Refused> {
        if self.contains(&id) {
            return Ok(false);
        }
        let host = match &input.origin {
            Origin::User { .. } => link,
            Origin::Session { host, .. } => *host,
        };
        let size = input.payload.len() + ENTRY_BYTES;
        let host_bytes = self.by_host.get(&host).copied().unwrap_or(0);
        if !needed && (self.bytes + size > POOL_BYTES_MAX || host_bytes + size > POOL_HOST_BYTES_MAX) {
            return Err(Refused::Busy);
        }
        self.bytes += size;
        self.by_host.insert(host, host_bytes + size);
        self.unproposed += 1;
        if matches!(input.origin, Origin::User { .. }) {
            self.signed.insert((input.user, input.nonce, id));
        } else {
            self.sessions.insert(input.key());
        }
        self.entries.insert(id, Entry { key: input.key(), input, host, proposed: false });
        Ok(true)
    }

    /// Takes an input out.
    pub fn remove(&mut self, id: &Hash) -> Option<Input> {
        let entry = self.entries.remove(id)?;
        let size = entry.input.payload.len() + ENTRY_BYTES;
        self.bytes -= size;
        let host_bytes = self.by_host.get_mut(&entry.host).expect("counted when it came");
        *host_bytes -= size;
        if *host_bytes == 0 {
            self.by_host.remove(&entry.host);
        }
        self.unproposed -= usize::from(!entry.proposed);
        self.signed.remove(&(entry.input.user, entry.input.nonce, *id));
        self.sessions.remove(&entry.key);
        Some(entry.input)
    }

    /// Whether the input of a session with the number of this key is held, whether it follows another one or not.
    pub fn has_session(&self, (user, tag, nonce): InputKey) -> bool {
        self.sessions.range((user, tag, nonce & !1)..=(user, tag, nonce | 1)).next().is_some()
    }

    /// Whether an input with this nonce, signed by the user, is held.
    pub fn has_signed(&self, user: UserKey, nonce: u64) -> bool {
        self.signed.range((user, nonce, Hash::ZERO)..=(user, nonce, Hash([0xff; 32]))).next().is_some()
    }

    /// The largest nonce of the held inputs that this user signed.
    pub fn last_nonce(&self, user: UserKey) -> Option<u64> {
        let of_user = (user, 0, Hash::ZERO)..=(user, u64::MAX, Hash([0xff; 32]));
        self.signed.range(of_user).next_back().map(|entry| entry.1)
    }

    /// Inputs that users sent to this node and signed, at most so many and so many bytes of payload; the first are those
    /// after `from`, and behind the last come the first again.
    pub fn signed_from(&self, host: &NodeKey, from: Hash, count: usize, bytes: usize) -> Vec<Input> {
        let own =
            |(_, entry): &(&Hash, &Entry)| entry.host == *host && matches!(entry.input.origin, Origin::User { .. });
        let turned = self.entries.range((Bound::Excluded(from), Bound::Unbounded)).chain(self.entries.range(..=from));
        let mut left = bytes;
        let fits = turned.filter(own).take(count).take_while(|(_, entry)| {
            let fits = left == bytes || entry.input.payload.len() <= left;
            left = left.saturating_sub(entry.input.payload.len());
            fits
        });
        fits.map(|(_, entry)| entry.input.clone()).collect()
    }

    /// Whether an input may be kept while `seq` is being closed.
    pub fn check_ledger(input: &Input, seq: Seq, input_window: u64) -> Result<(), Refused> {
        let ahead = input.max_ledger.checked_sub(seq).ok_or(Refused::Expired)?;
        if ahead < input_window + AHEAD { Ok(()) } else { Err(Refused::TooFar) }
    }

    /// Ids for my NOVEL of `seq`, ascending, within the caps of a ledger; they count as proposed from now on.
    pub fn list(&mut self, seq: Seq, parent: &Hash, input_window: u64) -> Vec<Hash> {
        let may_list = |entry: &Entry| seq <= entry.input.max_ledger && entry.input.max_ledger - seq < input_window;
        let mut ids: Vec<Hash> = self.entries.iter().filter(|(_, entry)| may_list(entry)).map(|(id, _)| *id).collect();
        if ids.len() > INPUTS_MAX || self.bytes > INPUTS_BYTES_MAX {
            let mut prio: BTreeMap<_, Hash> = BTreeMap::new();
            ids.sort_by_cached_key(|id| {
                let (user, tag, nonce) = self.entries[id].key;
                (*prio.entry(user).or_insert_with(|| priority(parent, &user)), tag, nonce)
            });
            let mut bytes = 0;
            let fits = ids.iter().take(INPUTS_MAX).take_while(|id| {
                bytes += self.entries[*id].input.payload.len();
                bytes <= INPUTS_BYTES_MAX
            });
            let count = fits.count();
            ids.truncate(count);
            ids.sort_unstable();
        }
        for id in &ids {
            let entry = self.entries.get_mut(id).expect("listed from here");
            self.unproposed -= usize::from(!std::mem::replace(&mut entry.proposed, true));
        }
        ids
    }

    /// Ids that can never be ledgered any more once `seq` is the next ledger: expired, their key is ledgered, or their
    /// host left the UNL.
    pub fn dead(
        &self,
        seq: Seq,
        is_ledgered: impl Fn(&InputKey) -> bool,
        is_member: impl Fn(&NodeKey) -> bool,
    ) -> Vec<Hash> {
        let vouched = |entry: &Entry| match &entry.input.origin {
            Origin::User { .. } => true,
            Origin::Session { host, .. } => is_member(host),
        };
        let dead = |entry: &Entry| entry.input.max_ledger < seq || is_ledgered(&entry.key) || !vouched(entry);
        self.entries.iter().filter(|(_, entry)| dead(entry)).map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Challenge, Sig, UserKey};

    fn input(user: u8, nonce: u64, bytes: usize) -> (Hash, Input) {
        let input = Input {
            user: UserKey([user; 32]),
            origin: Origin::User { sig: Sig([0; 64]) },
            nonce,
            max_ledger: 100,
            payload: vec![0; bytes],
        };
        (input.id(&Hash::ZERO), input)
    }

    #[test]
    fn one_host_cannot_take_more_than_its_share_but_what_a_header_needs_is_taken() {
        let mut pool = Pool::default();
        let host = NodeKey([1; 32]);
        let mut taken = 0;
        for nonce in 0..40 {
            let (id, input) = input(1, nonce, 1 << 20);
            taken += usize::from(pool.insert(id, input, host, false).is_ok());
        }
        assert_eq!(taken, 15, "16 MiB less what the entries cost");
        let (id, more) = input(1, 99, 1 << 20);
        assert_eq!(pool.insert(id, more.clone(), NodeKey([2; 32]), false), Ok(true), "another host has room");
        pool.remove(&id);
        assert_eq!(pool.insert(id, more, host, true), Ok(true), "needed");
    }

    #[test]
    fn a_ledger_full_of_inputs_lists_the_same_users_first_everywhere_and_the_rest_stays_work() {
        let mut pool = Pool::default();
        for nonce in 0..20 {
            let (id, input) = input((nonce % 4) as u8, nonce, 1 << 20);
            pool.insert(id, input, NodeKey([nonce as u8; 32]), false).unwrap();
        }
        let listed = pool.list(1, &Hash::ZERO, 1000);
        assert_eq!(listed.len(), 16);
        assert!(pool.has_unproposed());
        assert_eq!(pool.list(1, &Hash::ZERO, 1000), listed);
        listed.iter().for_each(|id| {
            pool.remove(id);
        });
        assert_eq!(pool.list(2, &Hash::ZERO, 1000).len(), 4);
        assert!(!pool.has_unproposed());
    }

    #[test]
    fn an_expired_or_ledgered_input_is_dead_and_one_whose_host_left() {
        let mut pool = Pool::default();
        let (id, input) = input(1, 1, 1);
        let key = input.key();
        let vouched = input.clone();
        pool.insert(id, input, NodeKey([1; 32]), false).unwrap();
        assert_eq!(pool.dead(100, |_| false, |_| false), vec![]);
        assert_eq!(pool.dead(101, |_| false, |_| true), vec![id]);
        assert_eq!(pool.dead(1, |other| *other == key, |_| true), vec![id]);
        pool.remove(&id);
        let host = NodeKey([7; 32]);
        let (challenge, sig) = (Challenge([0; 16]), Sig([0; 64]));
        let origin = Origin::Session { host, challenge, helo_sig: sig, host_sig: sig };
        pool.insert(id, Input { origin, ..vouched }, host, false).unwrap();
        assert_eq!(pool.dead(100, |_| false, |node| *node == host), vec![]);
        assert_eq!(pool.dead(100, |_| false, |node| *node != host), vec![id]);
    }
}
