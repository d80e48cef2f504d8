//! Which settlement a ledger records: what a quorum of members saw confirmed on the bus, one step after the other.
//!
//! The core knows nothing of the bus. Nodes tell it what they saw, and whoever cannot see the bus says nothing. Source:
//! `docs/protocol.md`, "Settlements".

use std::collections::BTreeMap;

use super::{Consensus, header::Settlement, messages::Novel, mutation::mutated};
use crate::types::{Hash, Seq};

impl Settlement {
    /// The first step of a chain: nothing is settled, and this is what the first settlement is signed with.
    pub fn begin(txv: Hash) -> Settlement {
        Settlement { seq: 0, ch: Hash::ZERO, tx: Hash::ZERO, confirmed_length: 0, txv }
    }

    /// Whether ledger `seq` may record this behind `parent`, what the ledger before has: the first step, another `txv` for
    /// what is not settled yet, or that a later ledger is settled. That one's result must be in the chain.
    pub fn follows(&self, parent: Option<&Settlement>, seq: Seq) -> bool {
        if self.txv == Hash::ZERO {
            return false;
        }
        match parent {
            None => *self == Settlement::begin(self.txv),
            Some(parent) if self.seq > parent.seq => {
                self.seq + 1 < seq && self.ch != Hash::ZERO && self.tx != Hash::ZERO
            }
            Some(parent) => self.txv != parent.txv && *self == Settlement { txv: self.txv, ..parent.clone() },
        }
    }
}

/// What a ledger records: what at least q novels say alike, if it follows; else what the ledger before has.
pub(super) fn decide(parent: &Option<Settlement>, seq: Seq, q: usize, novels: &[&Novel]) -> Option<Settlement> {
    let q = if mutated!(OneSettlementVoteLess) { q - 1 } else { q };
    let voted = votes(parent, seq, novels).into_iter().find(|(_, votes)| *votes >= q);
    voted.map(|(settlement, _)| settlement.clone()).or_else(|| parent.clone())
}

/// Whether no novel still to come, of `outstanding` members, can change what [`decide`] yields.
pub(super) fn is_decided(
    parent: &Option<Settlement>,
    seq: Seq,
    q: usize,
    novels: &[&Novel],
    outstanding: usize,
) -> bool {
    // What nobody voted for yet is out of reach: those outstanding are fewer than a quorum.
    votes(parent, seq, novels).values().all(|votes| *votes >= q || votes + outstanding < q)
}

/// Votes by what they say, of those that follow; each novel has one at most.
fn votes<'a>(parent: &Option<Settlement>, seq: Seq, novels: &[&'a Novel]) -> BTreeMap<&'a Settlement, usize> {
    let mut votes = BTreeMap::new();
    for settlement in novels.iter().filter_map(|novel| novel.settlement.as_ref()) {
        if settlement.follows(parent.as_ref(), seq) || mutated!(AnySettlement) {
            *votes.entry(settlement).or_insert(0) += 1;
        }
    }
    votes
}

impl Consensus {
    /// What this node saw on the bus, told with its next NOVELs until a ledger has it or it does not follow any more.
    /// Nothing else keeps it: whoever votes sees it again after a restart.
    pub(super) fn vote_for_settlement(&mut self, vote: Option<Settlement>) {
        let follows = |vote: &Settlement| vote.follows(self.tip.settlement.as_ref(), self.round.seq);
        let vote = vote.filter(|vote| follows(vote) || mutated!(AnySettlement));
        if vote != self.settlement_vote {
            self.settlement_vote = vote;
            self.settlement_vote_told = false;
        }
    }

    /// Drops my vote when behind the ledger just closed it does not follow any more.
    pub(super) fn drop_recorded_settlement(&mut self) {
        let (parent, seq) = (self.tip.settlement.as_ref(), self.tip.seq + 1);
        self.settlement_vote = self.settlement_vote.take().filter(|vote| vote.follows(parent, seq));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(at: u8) -> Hash {
        Hash([at; 32])
    }

    fn settled(seq: Seq, txv: u8) -> Settlement {
        Settlement { seq, ch: hash(100), tx: hash(101), confirmed_length: 7, txv: hash(txv) }
    }

    fn novel(settlement: Option<Settlement>) -> Novel {
        Novel {
            seq: 9,
            parent: Hash::ZERO,
            time_slot: 0,
            users_add: vec![],
            users_del: vec![],
            inputs: vec![],
            unl_vote: None,
            settlement,
        }
    }

    #[test]
    fn a_chain_begins_with_what_the_first_settlement_is_signed_with() {
        assert!(Settlement::begin(hash(1)).follows(None, 1));
        assert!(!Settlement::begin(Hash::ZERO).follows(None, 1), "nothing can be signed with it");
        assert!(!settled(3, 1).follows(None, 9), "nobody agreed on what it was signed with");
        assert!(!Settlement { confirmed_length: 1, ..Settlement::begin(hash(1)) }.follows(None, 9));
    }

    #[test]
    fn behind_a_settlement_comes_a_later_one_or_another_txv_for_the_next_one() {
        let parent = settled(3, 1);
        let follows = |it: Settlement| it.follows(Some(&parent), 9);
        assert!(follows(settled(4, 1)));
        assert!(follows(settled(7, 2)));
        assert!(!follows(settled(8, 2)), "the result of ledger 8 is in no ledger before 9");
        assert!(!follows(Settlement { ch: Hash::ZERO, ..settled(4, 1) }));
        assert!(!follows(Settlement { tx: Hash::ZERO, ..settled(4, 1) }));
        assert!(!follows(settled(4, 0)));
        assert!(!follows(parent.clone()));
        assert!(follows(settled(3, 2)));
        assert!(!follows(settled(2, 2)));
        assert!(!follows(Settlement { confirmed_length: 8, ..settled(3, 2) }), "what is settled stays what it is");
        assert!(!follows(Settlement { ch: hash(9), ..settled(3, 2) }));
        assert!(!follows(Settlement { tx: hash(9), ..settled(3, 2) }));
    }

    #[test]
    fn a_quorum_that_says_the_same_decides_and_one_vote_less_does_not() {
        let parent = Some(settled(3, 1));
        let decided = |votes: &[Option<Settlement>]| {
            let novels: Vec<Novel> = votes.iter().cloned().map(novel).collect();
            decide(&parent, 9, 3, &novels.iter().collect::<Vec<_>>())
        };
        let next = Some(settled(5, 1));
        let other = Some(Settlement { confirmed_length: 8, ..settled(5, 1) });
        assert_eq!(decided(&[next.clone(), next.clone(), next.clone(), None]), next);
        assert_eq!(decided(&[next.clone(), next.clone(), None, None]), parent);
        assert_eq!(decided(&[next.clone(), next.clone(), other, None]), parent);
        let back = Some(settled(2, 1));
        assert_eq!(decided(&[back.clone(), back.clone(), back.clone(), back]), parent, "a chain does not go back");
    }

    #[test]
    fn votes_are_waited_for_while_they_can_still_decide() {
        let parent = Some(settled(3, 1));
        let decided = |votes: &[Option<Settlement>]| {
            let novels: Vec<Novel> = votes.iter().cloned().map(novel).collect();
            is_decided(&parent, 9, 3, &novels.iter().collect::<Vec<_>>(), 4 - novels.len())
        };
        let next = Some(settled(5, 1));
        assert!(decided(&[None, None, None]));
        assert!(!decided(&[next.clone(), next.clone(), None]), "the fourth may complete it");
        assert!(decided(&[next.clone(), next.clone(), next.clone()]));
        assert!(decided(&[next, None, None]));
        let back = Some(settled(2, 1));
        assert!(decided(&[back.clone(), back, None]), "it would not count");
    }
}
