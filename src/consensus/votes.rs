//! Quorums, tallies and certificates: counting each signer once.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Crypto,
    header::ExecResult,
    messages::{AdvanceVote, Certificate, ResultCert, Scope, Signable, Signed, Tc, Vote, VoteKind},
    mutation::mutated,
};
use crate::types::{Attempt, Hash, NodeKey, Seq};

/// What a UNL of some size needs and tolerates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    /// Members.
    pub n: usize,
    /// Votes that decide.
    pub q: usize,
    /// Votes that include an input, a user or a time slot ("50 %").
    pub include: usize,
}

impl Quorum {
    /// For `n` members at `threshold` percent.
    ///
    /// # Panics
    /// When `n` is 0 or the threshold is not between 67 and 100: configuration is checked before.
    pub fn new(n: usize, threshold: u8) -> Quorum {
        assert!(n >= 1, "a UNL has a member");
        assert!((67..=100).contains(&threshold), "threshold is checked by config");
        let q = (n * usize::from(threshold)).div_ceil(100);
        let include = n.div_ceil(2).min(2 * q - n);
        assert!(3 * q > 2 * n && q <= n, "quorums of two attempts meet in an honest node");
        assert!(include > n - q, "an included item has an honest holder");
        Quorum { n, q, include }
    }

    /// Byzantine members that cannot make two honest nodes disagree.
    pub fn safe(&self) -> usize {
        2 * self.q - self.n - 1
    }

    /// Members that may be down without stopping the rest.
    pub fn live(&self) -> usize {
        self.n - self.q
    }

    /// Votes that contain at least one of every quorum: n - q + 1.
    pub fn blocking(&self) -> usize {
        self.n - self.q + 1
    }
}

/// Votes of one kind in one attempt, the first of each signer.
#[derive(Debug, Clone)]
pub struct Tally<K>(BTreeMap<NodeKey, Signed<K>>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Tally(BTreeMap::new())
    }
}

/// What became of a vote.
#[derive(Debug, PartialEq, Eq)]
pub enum Counted<T> {
    /// It filled an empty slot.
    New,
    /// The same was there.
    Known,
    /// Another of the same signer was there and goes on counting: evidence.
    Conflict(T),
}

/// Puts the first message of a signer into its slot.
pub fn count_once<T: Clone + PartialEq>(
    slots: &mut BTreeMap<NodeKey, Signed<T>>,
    vote: Signed<T>,
) -> Counted<Signed<T>> {
    match slots.get(&vote.from) {
        None => {
            slots.insert(vote.from, vote);
            Counted::New
        }
        Some(first) if first.body == vote.body => Counted::Known,
        Some(first) => Counted::Conflict(first.clone()),
    }
}

impl<K: VoteKind + PartialEq> Tally<K> {
    /// Counts a checked vote.
    pub fn add(&mut self, vote: Signed<K>) -> Counted<Signed<K>> {
        count_once(&mut self.0, vote)
    }

    /// The vote of one signer.
    pub fn of(&self, signer: &NodeKey) -> Option<&Signed<K>> {
        self.0.get(signer)
    }

    /// Signers so far.
    pub fn signers(&self) -> impl Iterator<Item = &NodeKey> {
        self.0.keys()
    }

    /// Signers of votes for one value.
    pub fn signers_of(&self, ledger_hash: Hash) -> BTreeSet<NodeKey> {
        self.0.values().filter(|vote| vote.body.vote().ledger_hash == ledger_hash).map(|vote| vote.from).collect()
    }

    /// The certificate, once a quorum voted for one value.
    pub fn certificate(&self, quorum: Quorum) -> Option<Certificate> {
        let needed = quorum.q - usize::from(mutated!(OneVoteLess));
        let winner = self.values().into_iter().find(|(_, votes)| *votes >= needed)?.0;
        let votes: Vec<&Signed<K>> = self.0.values().filter(|vote| vote.body.vote().ledger_hash == winner).collect();
        let sigs = votes.iter().map(|vote| (vote.from, vote.sig)).collect();
        Some(Certificate { vote: votes[0].body.vote(), sigs })
    }

    /// Whether no value can reach a quorum any more, whoever still votes.
    pub fn is_hopeless(&self, quorum: Quorum) -> bool {
        assert!(self.0.len() <= quorum.n, "a node votes once");
        let best = self.values().into_values().max().unwrap_or(0);
        best + (quorum.n - self.0.len()) < quorum.q
    }

    fn values(&self) -> BTreeMap<Hash, usize> {
        let mut votes = BTreeMap::new();
        for vote in self.0.values() {
            *votes.entry(vote.body.vote().ledger_hash).or_insert(0) += 1;
        }
        if mutated!(CountTwice)
            && let Some(mut first) = votes.first_entry()
        {
            *first.get_mut() += 1;
        }
        votes
    }
}

/// Checks certificates of one UNL.
#[derive(Clone, Copy)]
pub struct Checker<'a> {
    /// Votes needed.
    pub quorum: Quorum,
    /// Members, ascending.
    pub unl: &'a [NodeKey],
    /// What signatures cover.
    pub scope: Scope,
    /// Checks a signature.
    pub crypto: &'a dyn Crypto,
}

impl Checker<'_> {
    /// A signed body by a member.
    pub fn signed<T: Signable>(&self, signed: &Signed<T>) -> bool {
        self.is_member(&signed.from) && self.crypto.verify(&signed.from, &signed.body.digest(&self.scope), &signed.sig)
    }

    /// At least a quorum of distinct members signed the vote as one of kind `K`.
    pub fn certificate<K: VoteKind>(&self, certificate: &Certificate) -> bool {
        let digest = K::of(certificate.vote).digest(&self.scope);
        self.quorum_signed(&certificate.sigs, &digest)
    }

    /// At least a quorum of distinct members signed the result. Ledger 0's needs none.
    pub fn result_cert(&self, cert: &ResultCert, genesis_result: &ExecResult) -> bool {
        if cert.result.of_seq == 0 {
            // Nobody signs it: signatures beside it would be taken unchecked.
            return cert.sigs.is_empty() && cert.result == *genesis_result;
        }
        self.quorum_signed(&cert.sigs, &cert.result.digest(&self.scope))
    }

    /// At least a quorum of distinct members want to enter exactly this attempt of `seq`, each naming a POLC below it.
    pub fn tc(&self, tc: &Tc, seq: Seq, attempt: Attempt) -> bool {
        attempt >= 1
            && tc.votes.is_sorted_by(|a, b| a.from < b.from)
            && tc.votes.len() >= self.quorum.q
            && tc.votes.iter().all(|vote| {
                is_well_formed(&vote.body) && vote.body.seq == seq && vote.body.attempt == attempt && self.signed(vote)
            })
    }

    /// The POLC (if any) is a valid one for exactly what `high` names.
    pub fn polc_of(&self, high: Option<(Attempt, Hash)>, seq: Seq, polc: Option<&Certificate>) -> bool {
        match (high, polc) {
            (None, None) => true,
            (Some((attempt, ledger_hash)), Some(polc)) => {
                polc.vote == Vote { seq, attempt, ledger_hash } && self.certificate::<super::messages::Prevote>(polc)
            }
            _ => false,
        }
    }

    fn quorum_signed(&self, sigs: &[(NodeKey, crate::types::Sig)], digest: &Hash) -> bool {
        self.is_quorum(sigs) && sigs.iter().all(|(key, sig)| self.crypto.verify(key, digest, sig))
    }

    /// Whether these are signatures, which others have checked, of at least a quorum of distinct members.
    pub fn is_quorum(&self, sigs: &[(NodeKey, crate::types::Sig)]) -> bool {
        sigs.is_sorted_by(|a, b| a.0 < b.0)
            && sigs.len() >= self.quorum.q
            && sigs.iter().all(|(key, _)| self.is_member(key))
    }

    fn is_member(&self, key: &NodeKey) -> bool {
        self.unl.binary_search(key).is_ok()
    }
}

/// The last attempt of a ledger: waiting for each in turn would take longer than anybody can. An ADVANCE beyond is not
/// taken, so that numbers do not run out.
pub const ATTEMPTS_MAX: Attempt = 1 << 24;

/// An ADVANCE enters an attempt from 1 on and names a POLC below it.
pub fn is_well_formed(vote: &AdvanceVote) -> bool {
    (1..=ATTEMPTS_MAX).contains(&vote.attempt) && vote.high.is_none_or(|(high, _)| high < vote.attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// n, threshold, q, safe, live: the table of `docs/protocol.md`, "Quorums".
    const TABLE: &[(usize, u8, usize, usize, usize)] = &[
        (1, 80, 1, 0, 0),
        (2, 67, 2, 1, 0),
        (2, 100, 2, 1, 0),
        (3, 67, 3, 2, 0),
        (4, 80, 4, 3, 0),
        (4, 75, 3, 1, 1),
        (5, 67, 4, 2, 1),
        (5, 80, 4, 2, 1),
        (6, 83, 5, 3, 1),
        (7, 80, 6, 4, 1),
        (7, 71, 5, 2, 2),
        (10, 80, 8, 5, 2),
        (10, 70, 7, 3, 3),
        (20, 80, 16, 11, 4),
    ];

    #[test]
    fn a_quorum_needs_and_tolerates_what_the_table_says() {
        for &(n, threshold, q, safe, live) in TABLE {
            let quorum = Quorum::new(n, threshold);
            assert_eq!((quorum.q, quorum.safe(), quorum.live()), (q, safe, live), "n {n} threshold {threshold}");
        }
    }

    #[test]
    fn an_included_item_has_an_honest_holder_and_one_held_by_all_honest_nodes_is_included() {
        for n in 1..=128 {
            for threshold in 67..=100 {
                let quorum = Quorum::new(n, threshold);
                assert!(quorum.include >= quorum.blocking(), "n {n} threshold {threshold}");
                assert!(2 * quorum.q - n >= quorum.include, "n {n} threshold {threshold}");
                // Rounded up: one vote less is under the threshold.
                let percent = usize::from(threshold);
                assert!(quorum.q * 100 >= n * percent && (quorum.q - 1) * 100 < n * percent);
            }
        }
    }
}
