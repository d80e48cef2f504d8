//! The hashes of the state: blocks, leaves and the tree above them. Pure; knows nothing of files.
//!
//! Every byte is written down in the module doc of `state`.

use std::sync::LazyLock;

use blake3::Hasher;
use borsh::BorshSerialize as _;

/// What a path in the state is, and what is agreed on about it.
pub(super) use crate::consensus::details::{PathKind as Kind, PathState as Leaf};
use crate::{consensus::merkle::Proof, types::Hash};

/// Bytes of one block of a file. The last block of a file is as long as what is left.
pub const BLOCK_BYTES: usize = 64 * 1024;

static BLOCK: LazyLock<Hasher> = LazyLock::new(|| Hasher::new_derive_key("hp/state/block/1"));
static LEAF: LazyLock<Hasher> = LazyLock::new(|| Hasher::new_derive_key("hp/state/leaf/1"));
static NODE: LazyLock<Hasher> = LazyLock::new(|| Hasher::new_derive_key("hp/state/node/1"));

impl Leaf {
    /// The leaf of any folder.
    pub(super) const FOLDER: Leaf = Leaf { kind: Kind::Folder, executable: false, size: 0, root: Hash::ZERO };

    /// BLAKE3 of borsh(path, kind, executable, size, root).
    pub(super) fn hash(&self, path: &[u8]) -> Hash {
        finish(&LEAF, &self.preimage(path))
    }

    /// What is hashed.
    pub(super) fn preimage(&self, path: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(path.len() + 46);
        (path, self.kind, self.executable, self.size, self.root)
            .serialize(&mut bytes)
            .expect("writing into memory does not fail");
        bytes
    }

    /// Path and leaf out of that.
    pub(super) fn parse(preimage: &[u8]) -> Option<(Vec<u8>, Leaf)> {
        let (path, kind, executable, size, root) = borsh::from_slice(preimage).ok()?;
        Some((path, Leaf { kind, executable, size, root }))
    }
}

/// Whether a state of this root has `state` at `path`, as `proof` says.
pub fn is_in_tree(root: &Hash, path: &[u8], state: Leaf, proof: &Proof) -> bool {
    let mut position = proof.index;
    let mut node = state.hash(path);
    for sibling in &proof.siblings {
        node = match sibling {
            None => node,
            Some(right) if position.is_multiple_of(2) => node_hash(&node, right),
            Some(left) => node_hash(left, &node),
        };
        position /= 2;
    }
    node == *root
}

fn finish(tagged: &Hasher, bytes: &[u8]) -> Hash {
    Hash(*tagged.clone().update(bytes).finalize().as_bytes())
}

/// Hash of one block of at most [`BLOCK_BYTES`].
pub fn block_hash(block: &[u8]) -> Hash {
    debug_assert!(block.len() <= BLOCK_BYTES, "a block is cut before it is hashed");
    finish(&BLOCK, block)
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut both = [0; 64];
    both[..32].copy_from_slice(&left.0);
    both[32..].copy_from_slice(&right.0);
    finish(&NODE, &both)
}

/// Root of the tree over `hashes`: `Hash::ZERO` for none, the hash itself for one.
pub fn root_of(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => return Hash::ZERO,
        [one] => return *one,
        _ => {}
    }
    let mut level = above(hashes);
    while level.len() > 1 {
        level = above(&level);
    }
    level[0]
}

fn above(level: &[Hash]) -> Vec<Hash> {
    level.chunks(2).map(pair).collect()
}

/// An odd node moves up as it is.
fn pair(nodes: &[Hash]) -> Hash {
    match nodes {
        [left, right] => node_hash(left, right),
        odd => odd[0],
    }
}

/// A tree that remembers its inner nodes, so that a changed leaf costs one path and not all of it.
#[derive(Debug, Default, Clone)]
pub(super) struct Tree {
    /// `levels[0]` are the leaves; the last level is the root alone. Empty without leaves.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    pub fn root(&self) -> Hash {
        self.levels.last().map_or(Hash::ZERO, |level| level[0])
    }

    /// The nodes so many levels above the leaves. Above the root there is the root, as an odd node moves up.
    pub fn level(&self, height: usize) -> &[Hash] {
        self.levels.get(height).or(self.levels.last()).map_or(&[], |level| level)
    }

    /// From the leaf at `index`, which there must be, to the root.
    pub fn proof(&self, index: usize) -> Proof {
        let below_root = self.levels.len().saturating_sub(1);
        let sibling = |(height, level): (usize, &Vec<Hash>)| level.get((index >> height) ^ 1).copied();
        let siblings = self.levels[..below_root].iter().enumerate().map(sibling).collect();
        Proof { index: u32::try_from(index).expect("fewer paths than that"), siblings }
    }

    /// Makes `leaves` the leaves, and hashes again only what stands above a leaf that differs.
    pub fn set(&mut self, leaves: Vec<Hash>) {
        if leaves.is_empty() {
            self.levels.clear();
            return;
        }
        let Some(old) = self.levels.first_mut().filter(|old| old.len() == leaves.len()) else {
            return self.rebuild(leaves);
        };
        let mut stale: Vec<usize> = (0..leaves.len()).filter(|&at| old[at] != leaves[at]).collect();
        *old = leaves;
        for height in 1..self.levels.len() {
            for at in &mut stale {
                *at /= 2;
            }
            stale.dedup();
            let (below, level) = self.levels.split_at_mut(height);
            let below = &below[height - 1];
            for &at in &stale {
                level[0][at] = pair(&below[2 * at..below.len().min(2 * at + 2)]);
            }
        }
    }

    fn rebuild(&mut self, leaves: Vec<Hash>) {
        self.levels = vec![leaves];
        while let Some(level) = self.levels.last().filter(|level| level.len() > 1) {
            let next = above(level);
            self.levels.push(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(count: u8) -> Vec<Hash> {
        (0..count).map(|at| Hash([at; 32])).collect()
    }

    #[test]
    fn an_odd_node_moves_up() {
        let [a, b, c] = [[0; 32], [1; 32], [2; 32]].map(Hash);
        assert_eq!(root_of(&[a, b, c]), node_hash(&node_hash(&a, &b), &c));
        assert_eq!(root_of(&[a]), a);
        assert_eq!(root_of(&[]), Hash::ZERO);
    }

    #[test]
    fn a_tree_changed_in_place_has_the_root_of_a_new_one() {
        for count in 0..20 {
            let mut tree = Tree::default();
            let mut leaves = numbered(count);
            tree.set(leaves.clone());
            assert_eq!(tree.root(), root_of(&leaves), "{count} leaves");
            for at in 0..leaves.len() {
                leaves[at] = Hash([200; 32]);
                leaves[(at * 7) % usize::from(count)] = Hash([201; 32]);
                tree.set(leaves.clone());
                assert_eq!(tree.root(), root_of(&leaves), "{count} leaves, {at} changed");
            }
            leaves.push(Hash([9; 32]));
            tree.set(leaves.clone());
            assert_eq!(tree.root(), root_of(&leaves), "{count} leaves and one more");
        }
    }

    #[test]
    fn each_leaf_of_a_tree_is_proven_and_at_no_other_place() {
        let state = |at: u8| Leaf { kind: Kind::File, executable: false, size: 1, root: Hash([at; 32]) };
        for count in 1..20_u8 {
            let mut tree = Tree::default();
            tree.set((0..count).map(|at| state(at).hash(&[at])).collect());
            for at in 0..count {
                let proof = tree.proof(at.into());
                let is = |path: u8, state: Leaf| is_in_tree(&tree.root(), &[path], state, &proof);
                assert!(is(at, state(at)), "leaf {at} of {count}");
                assert!(!is(at, state(at + 1)) && !is(at + 1, state(at)), "leaf {at} of {count}");
                assert!(!is(at, Leaf { executable: true, ..state(at) }), "leaf {at} of {count}");
            }
        }
    }

    #[test]
    fn a_leaf_is_hashed_over_its_borsh_bytes_with_a_derived_key() {
        let leaf = Leaf { kind: Kind::Symlink, executable: true, size: 0x0102, root: Hash([7; 32]) };
        let mut bytes = vec![3, 0, 0, 0, b'a', b'/', 0xff, 2, 1, 2, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend([7; 32]);
        assert_eq!(leaf.hash(b"a/\xff").0, blake3::derive_key("hp/state/leaf/1", &bytes));
    }
}
