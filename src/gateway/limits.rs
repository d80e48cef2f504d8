//! How often one user may send, and one address fail to say who it is. Pure: time comes in as milliseconds.

use std::{collections::HashMap, hash::Hash, mem};

use crate::types::MonoMs;

/// Users, or addresses, whose rate is remembered. Past it the ones seen longest ago are forgotten, which can only forgive.
const RATED_MAX: usize = 65_536;

/// A bucket that nobody touched for this long is full again, so that it can be forgotten.
const REFILL_MS: u64 = 60_000;

/// So many times a minute, for each user over all of its sessions on this node, or for each address: a token bucket that holds
/// one minute's worth and fills evenly. Who stays under the rate is never refused; a burst gets what the bucket holds.
///
/// Reconnecting does not refill it. Levels are counted in 1/60,000 of a time, so that filling loses nothing.
#[derive(Debug)]
pub struct Rate<K> {
    per_minute: u64,
    /// Buckets touched since `rotated`, and those touched in the period before. Swapping them forgets in O(1).
    recent: HashMap<K, Bucket>,
    older: HashMap<K, Bucket>,
    rotated: MonoMs,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: u64,
    at: MonoMs,
}

impl<K: Copy + Eq + Hash> Rate<K> {
    /// `per_minute` times for each.
    pub fn new(per_minute: u32, now: MonoMs) -> Rate<K> {
        Rate { per_minute: per_minute.into(), recent: HashMap::new(), older: HashMap::new(), rotated: now }
    }

    /// Whether `who` may once more now; takes it from the bucket when so.
    pub fn allow(&mut self, who: &K, now: MonoMs) -> bool {
        if now.saturating_sub(self.rotated) >= REFILL_MS || self.recent.len() >= RATED_MAX {
            self.older = mem::take(&mut self.recent);
            self.rotated = now;
        }
        let full = self.full();
        let known = self.recent.get(who).copied().or_else(|| self.older.remove(who));
        let mut bucket = known.unwrap_or(Bucket { level: full, at: now });
        let gained = now.saturating_sub(bucket.at).saturating_mul(self.per_minute);
        bucket.level = bucket.level.saturating_add(gained).min(full);
        bucket.at = now;
        let allowed = bucket.level >= REFILL_MS;
        if allowed {
            bucket.level -= REFILL_MS;
        }
        self.recent.insert(*who, bucket);
        allowed
    }

    /// What `allow` took once is put back: it does not count.
    pub fn give_back(&mut self, who: &K) {
        let full = self.full();
        // Who is forgotten has a full bucket.
        if let Some(bucket) = self.recent.get_mut(who).or_else(|| self.older.get_mut(who)) {
            bucket.level = (bucket.level + REFILL_MS).min(full);
        }
    }

    fn full(&self) -> u64 {
        self.per_minute * REFILL_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UserKey;

    type MessageRate = Rate<UserKey>;

    const USER: UserKey = UserKey([1; 32]);

    fn passed(rate: &mut MessageRate, messages: usize, now: MonoMs) -> usize {
        (0..messages).filter(|_| rate.allow(&USER, now)).count()
    }

    #[test]
    fn a_burst_gets_exactly_a_minutes_worth_and_then_the_rate() {
        let mut rate = MessageRate::new(100, 5);
        assert_eq!(passed(&mut rate, 1_000, 5), 100);
        assert_eq!(passed(&mut rate, 1_000, 5 + 599), 0);
        assert_eq!(passed(&mut rate, 1_000, 5 + 600), 1);
        assert_eq!(passed(&mut rate, 1_000, 5 + 600 + 30_000), 50);
        assert_eq!(passed(&mut rate, 1_000, 1_000_000), 100);
    }

    #[test]
    fn a_user_at_the_rate_is_never_refused() {
        let mut rate = MessageRate::new(7, 0);
        assert!((1..10_000u64).all(|n| rate.allow(&USER, (n * 60_000).div_ceil(7))));
        let mut rate = MessageRate::new(1, 0);
        assert!((0..100).all(|n| rate.allow(&USER, n * 60_000)));
    }

    #[test]
    fn a_bucket_is_not_forgotten_before_it_is_full_again() {
        let mut rate = MessageRate::new(60, 0);
        assert_eq!(passed(&mut rate, 100, 59_000), 60);
        assert_eq!(passed(&mut rate, 100, 60_000), 1, "1 s after the burst, over a rotation");
        assert_eq!(passed(&mut rate, 100, 119_999), 59);
        assert_eq!(passed(&mut rate, 100, 120_999), 1, "over another rotation");
    }

    #[test]
    fn one_user_does_not_spend_anothers_messages_and_the_table_stays_bounded() {
        let mut rate = MessageRate::new(1, 0);
        for n in 0..3 * RATED_MAX as u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            assert!(rate.allow(&UserKey(key), 0));
        }
        assert!(rate.recent.len() + rate.older.len() <= 2 * RATED_MAX);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_never_more() {
        let mut rate = MessageRate::new(3, 0);
        for _ in 0..50 {
            assert_eq!(passed(&mut rate, 10, 0), 3);
            (0..3).for_each(|_| rate.give_back(&USER));
        }
        rate.give_back(&USER);
        assert_eq!(passed(&mut rate, 10, 0), 3, "a bucket holds a minute's worth");
        // Over a rotation, and to one that is not remembered.
        assert_eq!(passed(&mut rate, 10, 60_000), 3);
        rate.allow(&UserKey([2; 32]), 120_000);
        rate.give_back(&USER);
        assert_eq!(passed(&mut rate, 10, 60_000), 1);
        rate.give_back(&UserKey([3; 32]));
    }
}
