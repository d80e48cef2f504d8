//! What one settlement says: a range of ledgers in a few hashes, and the one hash of it that goes to the bus.
//!
//! Pure, and made of headers alone, so that a node that joined late, and anybody else with the chain, makes the same.
//! Source: `docs/protocol.md`, "Settlements".

use borsh::{BorshDeserialize, BorshSerialize};

use crate::{
    crypto,
    types::{Hash, NodeKey, Seq},
};

/// A range of ledgers as it is settled. Its bytes are borsh, in the order of the fields.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Record {
    /// Of the genesis.
    pub contract_id: Hash,
    /// The first ledger; one behind the last that was settled before.
    pub first: Seq,
    /// The last one.
    pub last: Seq,
    /// Its hash, which stands for all ledgers before it too.
    pub lcl: Hash,
    /// [`Record::outputs_root`] over the range.
    pub outputs_root: Hash,
    /// Root of the state after the run of the last ledger.
    pub state_root: Hash,
    /// `ch` of the settlement before; zero before the first.
    pub prev: Hash,
}

impl Record {
    /// The root over a range with one more ledger in it that has outputs. Of a range without outputs it is zero.
    pub fn outputs_root(before: Hash, seq: Seq, outputs_root: Hash) -> Hash {
        Hash::tagged("hp/settle-outputs/1", &(before, seq, outputs_root))
    }

    /// The content hash, which is all that the bus keeps: SHA-256("hp-msb-settle/1" || bytes).
    pub fn ch(&self) -> Hash {
        let bytes = borsh::to_vec(self).expect("writing to memory does not fail");
        crypto::sha256(&[b"hp-msb-settle/1", &bytes])
    }
}

/// The nonce of a settlement's transaction. Nothing of a node is in it, so that equal nodes make one transaction.
pub fn nonce(ch: &Hash) -> Hash {
    crypto::sha256(&[b"hp-msb-nonce/1", &ch.0])
}

/// How long a member waits before it posts, in slots: its place among the members, by SHA-256(ch || key). `None` for who
/// is no member.
pub fn rank(ch: &Hash, unl: &[NodeKey], me: &NodeKey) -> Option<usize> {
    let order = |key: &NodeKey| (crypto::sha256(&[&ch.0, &key.0]), *key);
    let mine = order(me);
    unl.contains(me).then(|| unl.iter().filter(|key| order(key) < mine).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let hash = |at| Hash([at; 32]);
        Record {
            contract_id: hash(1),
            first: 3,
            last: 258,
            lcl: hash(2),
            outputs_root: Record::outputs_root(Hash::ZERO, 7, hash(3)),
            state_root: hash(4),
            prev: hash(5),
        }
    }

    /// The bytes are written out here by hand, as `docs/protocol.md` has them.
    #[test]
    fn a_record_is_its_fields_one_after_the_other_and_its_hash_that_of_the_tag_and_them() {
        let record = record();
        let mut bytes = [1; 32].to_vec();
        bytes.extend([3, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([2, 1, 0, 0, 0, 0, 0, 0]);
        bytes.extend([2; 32]);
        bytes.extend(record.outputs_root.0);
        bytes.extend([4; 32]);
        bytes.extend([5; 32]);
        assert_eq!(borsh::to_vec(&record).unwrap(), bytes);
        assert_eq!(bytes.len(), 176);
        let mut tagged = b"hp-msb-settle/1".to_vec();
        tagged.extend(&bytes);
        assert_eq!(record.ch(), crypto::sha256(&[&tagged]));
        assert_eq!(nonce(&record.ch()), crypto::sha256(&[&[b"hp-msb-nonce/1".as_slice(), &record.ch().0].concat()]));
    }

    #[test]
    fn every_field_of_a_record_is_in_its_hash() {
        let ch = record().ch();
        let other = Hash([9; 32]);
        for changed in [
            Record { contract_id: other, ..record() },
            Record { first: 4, ..record() },
            Record { last: 259, ..record() },
            Record { lcl: other, ..record() },
            Record { outputs_root: other, ..record() },
            Record { state_root: other, ..record() },
            Record { prev: other, ..record() },
        ] {
            assert_ne!(changed.ch(), ch, "{changed:?}");
        }
    }

    #[test]
    fn members_have_each_a_rank_of_their_own_that_differs_by_settlement_and_others_have_none() {
        let unl: Vec<NodeKey> = (0..5).map(|at| NodeKey([at; 32])).collect();
        let ranks = |ch: Hash| unl.iter().map(|key| rank(&ch, &unl, key).unwrap()).collect::<Vec<_>>();
        let mut sorted = ranks(Hash([1; 32]));
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4]);
        assert!((2..40).any(|at| ranks(Hash([at; 32])) != ranks(Hash([1; 32]))), "nobody is always the first");
        assert_eq!(rank(&Hash::ZERO, &unl, &NodeKey([9; 32])), None);
    }
}
