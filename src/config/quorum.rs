//! What a quorum tolerates, as an operator reads it. The arithmetic is the core's.

use std::fmt;

use crate::consensus::votes::Quorum;

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
        self.rule().q
    }

    /// Nodes that may be down while ledgers still close.
    pub fn live(&self) -> usize {
        self.rule().live()
    }

    /// Malicious nodes that cannot bring two ledgers of one number about.
    pub fn safe(&self) -> usize {
        self.rule().safe()
    }

    fn rule(&self) -> Quorum {
        Quorum::new(self.n, u8::try_from(self.threshold).expect("a threshold is a percentage"))
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
    fn the_line_says_what_stops_the_network_and_what_would_help() {
        let line = |n, threshold| Tolerance { n, threshold }.to_string();
        assert_eq!(line(4, 80), "UNL 4, quorum 4: stops if any node is down; threshold 75 tolerates 1");
        assert_eq!(line(3, 80), "UNL 3, quorum 3: stops if any node is down; a UNL of 4 or more can tolerate one");
        assert_eq!(line(10, 80), "UNL 10, quorum 8: goes on with 2 down, agrees in spite of 5 malicious");
        assert_eq!(line(1, 80), "UNL 1, quorum 1: one node alone decides");
    }
}
