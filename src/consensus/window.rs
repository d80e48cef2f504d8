//! Keys of the inputs in recent ledgers: what must not take effect again.

use std::collections::{BTreeMap, BTreeSet};

use super::header::InputKey;
use crate::types::{Hash, Seq, UserKey};

/// Keys by ledger. To forget old ones costs what is forgotten, however many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    seqs: BTreeMap<InputKey, Seq>,
    /// The same in the order in which they grow old.
    order: BTreeSet<(Seq, InputKey)>,
}

impl Window {
    /// The ledger with this key, if it is one of those remembered.
    pub fn get(&self, key: &InputKey) -> Option<&Seq> {
        self.seqs.get(key)
    }

    /// The largest nonce of the inputs that this user signed.
    pub fn last_nonce(&self, user: UserKey) -> Option<u64> {
        let of_user = (user, Hash::ZERO, 0)..=(user, Hash::ZERO, u64::MAX);
        self.seqs.range(of_user).next_back().map(|((_, _, nonce), _)| *nonce)
    }

    /// Whether it is in one of those.
    pub fn contains_key(&self, key: &InputKey) -> bool {
        self.seqs.contains_key(key)
    }

    /// Remembers that this ledger has the key; the one that had it before, if that is remembered.
    pub fn insert(&mut self, key: InputKey, seq: Seq) -> Option<Seq> {
        let before = self.seqs.insert(key, seq);
        if let Some(before) = before {
            self.order.remove(&(before, key));
        }
        self.order.insert((seq, key));
        before
    }

    /// Forgets what ledgers up to this one had.
    pub fn forget_to(&mut self, seq: Seq) {
        while let Some((old, key)) = self.order.first().copied().filter(|(old, _)| *old <= seq) {
            self.order.remove(&(old, key));
            self.seqs.remove(&key);
        }
    }

    /// Goes on from `tip` in a chain with a window of so many ledgers: forgets what the next ledger may have again.
    pub fn close(&mut self, tip: Seq, input_window: u64) {
        if let Some(forgotten) = tip.checked_sub(input_window) {
            self.forget_to(forgotten);
        }
    }

    /// All keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &InputKey> {
        self.seqs.keys()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }
}

impl Extend<(InputKey, Seq)> for Window {
    fn extend<T: IntoIterator<Item = (InputKey, Seq)>>(&mut self, keys: T) {
        for (key, seq) in keys {
            self.insert(key, seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Hash, UserKey};

    fn key(nonce: u64) -> InputKey {
        (UserKey([1; 32]), Hash::ZERO, nonce)
    }

    #[test]
    fn a_key_is_free_again_when_its_last_ledger_has_left_the_window() {
        let mut window = Window::default();
        window.insert(key(1), 0);
        window.insert(key(2), 1);
        window.insert(key(3), 3);
        window.close(2, 3);
        assert!(window.contains_key(&key(1)));
        window.close(3, 3);
        assert_eq!(window.keys().collect::<Vec<_>>(), [&key(2), &key(3)]);
        assert_eq!(window.insert(key(2), 4), Some(1));
        window.close(6, 3);
        assert_eq!((window.get(&key(2)), window.get(&key(3))), (Some(&4), None), "the later ledger counts");
        window.close(7, 3);
        assert!(window.is_empty() && window == Window::default());
    }
}
