//! How often lately this node's result was another than the network's, and how long it therefore waits before it fetches
//! the network's state once more: a node that cannot agree would do nothing else, and its peers would serve it for ever.
//! Meanwhile it votes on the order of inputs like everybody.

use std::time::Duration;

/// So many, with fewer than [`SOUND_RUNS`] runs like the network's between one and the next, are no accident.
pub const DIVERGENCES_MAX: u32 = 3;
/// After so many runs like the network's what was before counts no more.
pub const SOUND_RUNS: u32 = 100;
/// The first pause; each further divergence doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(10);
/// The longest: what its operator mended shows after it at the latest, or after a restart.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Counts divergences in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streak {
    divergences: u32,
    /// Runs like the network's since the last of them.
    sound: u32,
}

impl Streak {
    /// A run led to another result than the network's.
    pub fn diverged(&mut self) {
        (self.divergences, self.sound) = (self.divergences.saturating_add(1), 0);
    }

    /// A run led to the network's result.
    pub fn agreed(&mut self) {
        self.sound += 1;
        if self.sound >= SOUND_RUNS {
            *self = Streak::default();
        }
    }

    /// Whether that is no accident.
    pub fn is_long(&self) -> bool {
        self.divergences >= DIVERGENCES_MAX
    }

    /// How long to wait before the state is fetched once more; `None` for not at all.
    pub fn pause(&self) -> Option<Duration> {
        let doublings = self.divergences.checked_sub(DIVERGENCES_MAX)?;
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        Some(PAUSE_MIN.saturating_mul(factor).min(PAUSE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(streak: &mut Streak, count: usize) -> Vec<u64> {
        let mut next = || {
            streak.diverged();
            streak.pause().map_or(0, |pause| pause.as_secs())
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn the_third_divergence_and_each_after_it_costs_a_longer_pause_up_to_the_longest() {
        let mut streak = Streak::default();
        assert_eq!(pauses(&mut streak, 10), [0, 0, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert!(pauses(&mut streak, 100).iter().all(|pause| *pause == 600), "no shift goes over");
    }

    #[test]
    fn a_few_sound_runs_change_nothing_and_a_hundred_forget() {
        let mut streak = Streak::default();
        for _ in 0..3 {
            streak.diverged();
            (1..SOUND_RUNS).for_each(|_| streak.agreed());
        }
        assert!(streak.is_long());
        assert_eq!(streak.pause(), Some(PAUSE_MIN));
        streak.agreed();
        assert_eq!((streak, streak.pause()), (Streak::default(), None));
    }
}
