//! How far a node that is behind has come, and how long it still takes: for people. Pure but for the time it is given.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::types::Seq;

/// A node that lacks fewer ledgers is not told about: it has them in a moment.
const BEHIND_MIN: Seq = 16;
/// Looks that a speed is taken over, one a second.
const LOOKS_MAX: usize = 10;

/// How far one of the two parts of catching up has come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// The ledger it has reached.
    pub at: Seq,
    /// Where it began.
    pub from: Seq,
    /// Where it ends, as far as is known.
    pub to: Seq,
    /// Ledgers a second, lately.
    pub per_s: f64,
}

impl Part {
    /// How much is done, in percent.
    pub fn percent(&self) -> u64 {
        match self.to.saturating_sub(self.from) {
            0 => 100,
            all => (100 * (self.at - self.from).min(all)) / all,
        }
    }

    /// The time that is left at this speed; `None` while nothing moves.
    pub fn left(&self) -> Option<Duration> {
        let left = self.to.saturating_sub(self.at) as f64 / self.per_s;
        left.is_finite().then(|| Duration::from_secs(left.round() as u64))
    }
}

/// A node that is behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Ledgers fetched, verified and stored.
    pub verified: Part,
    /// Ledgers run.
    pub executed: Part,
}

/// What was seen at one time.
#[derive(Debug, Clone, Copy)]
struct Look {
    when: Instant,
    verified: Seq,
    executed: Seq,
}

/// Watches a node and knows when it is behind.
#[derive(Debug, Default)]
pub struct Watch {
    looks: VecDeque<Look>,
    /// Where verified and executed stood when it fell behind.
    began: Option<(Seq, Seq)>,
}

impl Watch {
    /// Takes a look, once a second. `Some` while the node is behind.
    pub fn look(&mut self, when: Instant, verified: Seq, executed: Seq, network: Seq) -> Option<Progress> {
        self.looks.push_back(Look { when, verified, executed });
        if self.looks.len() > LOOKS_MAX {
            self.looks.pop_front();
        }
        let behind = network.saturating_sub(executed);
        // One is on its way while rounds go on.
        if behind <= 1 {
            self.began = None;
        } else if behind >= BEHIND_MIN && self.began.is_none() {
            self.began = Some((verified, executed));
        }
        let (verified_from, executed_from) = self.began?;
        let first = self.looks[0];
        let seconds = (when - first.when).as_secs_f64();
        let per_s = |now: Seq, then: Seq| if seconds > 0.0 { (now - then) as f64 / seconds } else { 0.0 };
        let part = |at: Seq, from: Seq, then: Seq| Part { at, from, to: network.max(at), per_s: per_s(at, then) };
        Some(Progress {
            verified: part(verified, verified_from, first.verified),
            executed: part(executed, executed_from, first.executed),
        })
    }

    /// Which ledger had been run last when the node fell behind; `None` when it is not.
    pub fn began(&self) -> Option<Seq> {
        self.began.map(|(_, executed)| executed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_far_behind_is_told_how_far_it_has_come_and_how_long_it_takes_until_it_is_there() {
        let start = Instant::now();
        let mut watch = Watch::default();
        let mut look = |s: u64, verified, executed, network| {
            watch.look(start + Duration::from_secs(s), verified, executed, network)
        };
        assert_eq!(look(0, 100, 100, 110), None, "a few are no matter");
        let begun = look(1, 100, 100, 1_100).expect("a thousand are");
        assert_eq!((begun.verified.percent(), begun.verified.left()), (0, None), "nothing has moved yet");
        let half = look(5, 600, 200, 1_100).expect("behind");
        assert_eq!((half.verified.percent(), half.executed.percent()), (50, 10));
        assert_eq!((half.verified.per_s, half.executed.per_s), (100.0, 20.0));
        assert_eq!(
            (half.verified.left(), half.executed.left()),
            (Some(Duration::from_secs(5)), Some(Duration::from_secs(45)))
        );
        // Verified alone is not there yet, and the last few count while it comes from far behind.
        assert!(look(6, 1_200, 1_195, 1_200).is_some());
        assert_eq!(look(7, 1_201, 1_200, 1_201), None);
        assert_eq!(look(8, 1_205, 1_200, 1_205), None);
    }

    #[test]
    fn a_speed_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut watch = Watch::default();
        let mut last = None;
        for s in 0..100 {
            let at = if s < 50 { 0 } else { 10 * (s - 50) };
            last = watch.look(start + Duration::from_secs(s), at, at, 10_000);
        }
        assert_eq!(last.expect("behind").verified.per_s, 10.0);
    }
}
