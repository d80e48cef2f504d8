//! How long to wait before the next try. Pure: the caller brings the randomness.

use std::time::Duration;

/// Wait after the first failure; it doubles with each further one.
const BASE: Duration = Duration::from_millis(100);

/// No wait is longer.
const MAX: Duration = Duration::from_secs(10);

/// Up to this part of a wait is taken off at random, so that two nodes do not stay in step.
const JITTER_PERCENT: u32 = 30;

/// Failures in a row, as a waiting time.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure and says how long to wait. `random` may be any byte.
    pub(super) fn next(&mut self, random: u8) -> Duration {
        let nominal = BASE.saturating_mul(1 << self.failures.min(16)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        nominal * (25_500 - JITTER_PERCENT * u32::from(random)) / 25_500
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_100_ms_to_10_s_and_start_again_after_a_reset() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.next(0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        backoff.reset();
        assert_eq!(backoff.next(0).as_millis(), 100);
    }

    #[test]
    fn jitter_takes_off_at_most_30_percent() {
        assert_eq!(Backoff::default().next(255).as_millis(), 70);
        assert_eq!(Backoff { failures: u32::MAX }.next(255).as_millis(), 7_000);
    }
}
