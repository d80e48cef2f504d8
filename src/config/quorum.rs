//! What a quorum tolerates.

use std::fmt;

/// Nodes of a UNL of `n` that must vote alike: `threshold` percent of it, rounded up.
///
/// Source: `docs/protocol.md`, "Quorum". With 67 <= threshold <= 100 it is over two thirds of `n` and never over `n`.
pub fn quorum(n: usize, threshold: u64) -> usize {
    assert!(n >= 1, "a UNL has members");
    let percent = usize::try_from(threshold).expect("a threshold is a percentage");
    (n * percent).div_ceil(100)
}

/// What a UNL of this size with this threshold survives. Prints as the one line an operator reads at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tolerance {
    /// Members of the UNL, at least 1.
    pub n: usize,
    /// Percent, 67 to 100.
    pub threshold: u64,
}

impl Tolerance {
    /// Nodes that must vote alike.
    pub fn quorum(&self) -> usize {
        quorum(self.n, self.threshold)
    }

    /// Nodes that may be down while ledgers still close.
    pub fn live(&self) -> usize {
        self.n - self.quorum()
    }

    /// Malicious nodes that cannot bring two ledgers of one number about.
    pub fn safe(&self) -> usize {
        2 * self.quorum() - self.n - 1
    }

    /// The highest threshold below this one with which one node may be down, and how many may be then.
    pub fn advice(&self) -> Option<(u64, usize)> {
        let at = |threshold| Tolerance { n: self.n, threshold };
        let better = (super::THRESHOLD_MIN..self.threshold).rev().find(|threshold| at(*threshold).live() > 0)?;
        Some((better, at(better).live()))
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UNL {}, quorum {}: ", self.n, self.quorum())?;
        match (self.n, self.live(), self.advice()) {
            (1, ..) => f.write_str("one node alone decides"),
            (_, 0, Some((threshold, nodes))) => {
                write!(f, "stops if any node is down; threshold {threshold} tolerates {nodes}")
            }
            (_, 0, None) => f.write_str("stops if any node is down; a UNL of 4 or more can tolerate one"),
            (_, live, _) => {
                write!(f, "goes on with {live} down, agrees in spite of {} malicious", self.safe())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_protocol_holds() {
        // n, threshold, quorum, safe, live
        let table = [
            (1, 80, 1, 0, 0),
            (2, 67, 2, 1, 0),
            (2, 100, 2, 1, 0),
            (3, 67, 3, 2, 0),
            (4, 80, 4, 3, 0),
            (4, 75, 3, 1, 1),
            (4, 67, 3, 1, 1),
            (5, 67, 4, 2, 1),
            (5, 80, 4, 2, 1),
            (6, 83, 5, 3, 1),
            (6, 67, 5, 3, 1),
            (7, 80, 6, 4, 1),
            (7, 71, 5, 2, 2),
            (10, 80, 8, 5, 2),
            (10, 70, 7, 3, 3),
            (20, 80, 16, 11, 4),
        ];
        for (n, threshold, quorum, safe, live) in table {
            let is = Tolerance { n, threshold };
            assert_eq!((is.quorum(), is.safe(), is.live()), (quorum, safe, live), "n {n}, threshold {threshold}");
        }
    }

    #[test]
    fn every_allowed_quorum_is_over_two_thirds_and_at_most_all() {
        for n in 1..=crate::config::UNL_MAX {
            for threshold in crate::config::THRESHOLD_MIN..=100 {
                let q = quorum(n, threshold);
                assert!(3 * q > 2 * n && q <= n, "n {n}, threshold {threshold}");
                // Rounded up: one vote less is under the threshold.
                assert!(q * 100 >= n * threshold as usize && (q - 1) * 100 < n * threshold as usize);
            }
        }
    }

    #[test]
    fn the_line_says_what_stops_the_network_and_what_would_help() {
        let line = |n, threshold| Tolerance { n, threshold }.to_string();
        assert_eq!(line(4, 80), "UNL 4, quorum 4: stops if any node is down; threshold 75 tolerates 1");
        assert_eq!(line(3, 80), "UNL 3, quorum 3: stops if any node is down; a UNL of 4 or more can tolerate one");
        assert_eq!(line(10, 80), "UNL 10, quorum 8: goes on with 2 down, agrees in spite of 5 malicious");
        assert_eq!(line(1, 80), "UNL 1, quorum 1: one node alone decides");
    }
}
