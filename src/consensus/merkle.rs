//! The Merkle tree over users and over outputs: leaves sorted by user key, an odd node moves up.
//!
//! SHA-512 based (through [`Hash::tagged`]), because a browser verifies it.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::types::{Hash, UserKey};

const NODE_TAG: &str = "hp/node/1";

/// Leaf of a connected user in `users_root`.
pub fn user_leaf(user: &UserKey) -> Hash {
    Hash::tagged("hp/user/1", user)
}

/// Leaf of one user's output in `outputs_root`. `output` is hashed first, so that a proof needs 32 bytes of it.
pub fn output_leaf(user: &UserKey, output: &[u8]) -> Hash {
    Hash::tagged("hp/output/1", &(user, Hash::tagged("hp/output-bytes/1", output)))
}

/// Root over `leaves` in their order; [`Hash::ZERO`] when there are none.
pub fn root(leaves: Vec<Hash>) -> Hash {
    let mut level = leaves;
    while level.len() > 1 {
        level = level.chunks(2).map(parent).collect();
    }
    level.first().copied().unwrap_or(Hash::ZERO)
}

/// The way from one leaf to the root: at each level the sibling, or nothing where the node moved up alone.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Proof {
    /// Position of the leaf.
    pub index: u32,
    /// Siblings from the leaf's level upwards.
    pub siblings: Vec<Option<Hash>>,
}

/// Proof for the leaf at `index`; `None` when there is no such leaf.
pub fn proof(leaves: Vec<Hash>, index: u32) -> Option<Proof> {
    Tree::new(leaves).proof(index)
}

/// A whole tree, for many proofs of it.
#[derive(Debug, Clone)]
pub struct Tree {
    /// From the leaves, one at least, to the root.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// Over `leaves` in their order.
    pub fn new(leaves: Vec<Hash>) -> Tree {
        let mut levels = vec![leaves];
        while let Some(last) = levels.last().filter(|level| level.len() > 1) {
            let above = last.chunks(2).map(parent).collect();
            levels.push(above);
        }
        Tree { levels }
    }

    /// The same as [`root`].
    pub fn root(&self) -> Hash {
        self.levels.last().and_then(|level| level.first()).copied().unwrap_or(Hash::ZERO)
    }

    /// Proof for the leaf at `index`; `None` when there is no such leaf.
    pub fn proof(&self, index: u32) -> Option<Proof> {
        let mut position = index as usize;
        self.levels[0].get(position)?;
        let mut siblings = Vec::new();
        for level in &self.levels[..self.levels.len() - 1] {
            siblings.push(level.get(position ^ 1).copied());
            position /= 2;
        }
        Some(Proof { index, siblings })
    }
}

impl Proof {
    /// The root that `leaf` leads to by this proof.
    pub fn root(&self, leaf: Hash) -> Hash {
        let mut position = self.index;
        let mut node = leaf;
        for sibling in &self.siblings {
            node = match sibling {
                None => node,
                Some(sibling) if position.is_multiple_of(2) => parent(&[node, *sibling]),
                Some(sibling) => parent(&[*sibling, node]),
            };
            position /= 2;
        }
        node
    }
}

fn parent(children: &[Hash]) -> Hash {
    match children {
        [left, right] => Hash::tagged(NODE_TAG, &(left, right)),
        [alone] => *alone,
        _ => unreachable!("chunks of one or two"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_of_every_small_tree_is_proven_and_no_other_is() {
        for count in 1..20u8 {
            let leaves: Vec<Hash> = (0..count).map(|i| Hash([i; 32])).collect();
            let expected = root(leaves.clone());
            for index in 0..count {
                let proof = proof(leaves.clone(), index.into()).unwrap();
                assert_eq!(proof.root(leaves[index as usize]), expected, "leaf {index} of {count}");
                assert_ne!(proof.root(Hash([99; 32])), expected, "another leaf at {index} of {count}");
            }
            assert_eq!(Tree::new(leaves.clone()).root(), expected);
            assert_eq!(proof(leaves, count.into()), None);
        }
    }

    #[test]
    fn an_odd_node_moves_up_unchanged() {
        let [a, b, c] = [1, 2, 3].map(|i| Hash([i; 32]));
        let ab = Hash::tagged(NODE_TAG, &(a, b));
        assert_eq!(root(vec![a, b, c]), Hash::tagged(NODE_TAG, &(ab, c)));
        assert_eq!(root(vec![a]), a);
        assert_eq!((root(vec![]), Tree::new(vec![]).root()), (Hash::ZERO, Hash::ZERO));
    }
}
