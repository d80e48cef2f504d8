//! When a node may vote: pure predicates over what it has signed before.
//!
//! Safety rests on these few lines, so they stand alone: the core asks them before each signature, and the exhaustive
//! checker explores them. Source: `docs/protocol.md`, "The vote rule".

use super::mutation::mutated;
use crate::types::{Attempt, Hash};

/// What this node has signed for one sequence number. All of it survives a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signed {
    /// Attempt of the highest PREVOTE.
    pub prevote: Option<Attempt>,
    /// Attempt of the highest PRECOMMIT.
    pub precommit: Option<Attempt>,
    /// The last attempt an ADVANCE asked to enter.
    pub advance: Option<Attempt>,
}

/// One PREVOTE an attempt, and none behind a higher one.
pub fn may_prevote(signed: &Signed, attempt: Attempt) -> bool {
    signed.prevote.is_none_or(|highest| attempt > highest)
}

/// Attempt 0 needs no proof to be voted in, but nobody returns to it after asking for the next.
pub fn may_prevote_first(signed: &Signed) -> bool {
    signed.prevote.is_none() && signed.advance.is_none()
}

/// A PRECOMMIT for a POLC of `attempt`: not behind the attempt this node is in or has asked to enter, because an
/// ADVANCE promised that no PRECOMMIT below it would follow.
pub fn may_precommit(signed: &Signed, current: Attempt, attempt: Attempt) -> bool {
    attempt >= current
        && (mutated!(PrecommitAfterAdvance) || signed.advance.is_none_or(|advance| advance <= attempt))
        && signed.precommit.is_none_or(|highest| attempt > highest)
}

/// An ADVANCE to `attempt`: beyond everything signed and seen, so that it reports the best POLC there is.
pub fn may_advance(signed: &Signed, current: Attempt, best_polc: Option<Attempt>, attempt: Attempt) -> bool {
    let below = |other: Option<Attempt>| other.is_none_or(|other| other < attempt);
    attempt > current && below(signed.advance) && below(signed.prevote) && below(signed.precommit) && below(best_polc)
}

/// What an ADVANCE reports: the best POLC held, whatever its value.
pub fn reported_high(best_polc: Option<(Attempt, Hash)>) -> Option<(Attempt, Hash)> {
    if mutated!(HidePolc) { None } else { best_polc }
}

/// The attempt a node is in after a restart: that of its journaled Tc, or of a later vote. Who lost its Tc in a crash
/// comes back in an earlier attempt, in which its votes bind it just the same.
pub fn attempt_after_restart(signed: &Signed, tc: Option<Attempt>) -> Attempt {
    [signed.prevote, signed.precommit, tc].into_iter().flatten().max().unwrap_or(0)
}

/// What a coordinator must propose by its Tc: the value of the highest POLC that a member of the Tc reported.
/// `None`: free to derive one.
pub fn propose_value(highs: impl Iterator<Item = Option<(Attempt, Hash)>>) -> Option<(Attempt, Hash)> {
    if mutated!(IgnoreTcMaximum) {
        return None;
    }
    highs.flatten().max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precommit_never_follows_an_advance_beyond_it() {
        let signed = Signed { prevote: Some(0), precommit: None, advance: Some(1) };
        assert!(!may_precommit(&signed, 0, 0));
        assert!(may_precommit(&signed, 0, 1));
    }

    #[test]
    fn attempt_0_is_not_voted_in_again_after_asking_for_the_next() {
        assert!(may_prevote_first(&Signed::default()));
        assert!(!may_prevote_first(&Signed { advance: Some(1), ..Signed::default() }));
        assert!(!may_prevote_first(&Signed { prevote: Some(0), ..Signed::default() }));
    }

    #[test]
    fn the_highest_polc_binds() {
        let [a, b] = [1, 2].map(|i| Hash([i; 32]));
        assert_eq!(propose_value([None, Some((0, b)), Some((1, a))].into_iter()), Some((1, a)));
        assert_eq!(propose_value([None, None].into_iter()), None);
    }
}
