//! The hashes of `docs/protocol.md`, made from bytes that are put together here.

use std::io;

use borsh::BorshSerialize;

use super::read::{Input, Origin};
use crate::{
    crypto,
    types::{Hash, NodeKey, Sig, UserKey},
};

/// Bytes that are hashed as they are.
struct Raw<'a>(&'a [&'a [u8]]);

impl BorshSerialize for Raw<'_> {
    fn serialize<W: io::Write>(&self, writer: &mut W) -> io::Result<()> {
        self.0.iter().try_for_each(|part| writer.write_all(part))
    }
}

/// H(tag, ...) of encodings that follow each other.
pub(super) fn tagged(tag: &str, parts: &[&[u8]]) -> Hash {
    Hash::tagged(tag, &Raw(parts))
}

/// Number of elements, then each.
pub(super) fn list<T: AsRef<[u8]>>(items: &[T]) -> Vec<u8> {
    let count = u32::try_from(items.len()).expect("lists are bounded");
    let mut bytes = count.to_le_bytes().to_vec();
    items.iter().for_each(|item| bytes.extend_from_slice(item.as_ref()));
    bytes
}

/// What the nodes of a UNL sign with their votes.
pub(super) fn vote(tag: &str, chain_id: &Hash, unl_hash: &Hash, body: &[u8]) -> Hash {
    tagged(tag, &[&chain_id.0, &unl_hash.0, body])
}

/// Whether a node signed this hash.
pub(super) fn signed(by: &NodeKey, digest: &Hash, sig: &Sig) -> bool {
    crypto::verify(&by.0, &digest.0, sig)
}

impl Input {
    /// 32 zero bytes, or one tag a session.
    pub(super) fn origin_tag(&self) -> Hash {
        match &self.origin {
            Origin::User { .. } => Hash::ZERO,
            Origin::Session { host, challenge, .. } => tagged("hp/session/1", &[&host.0, &challenge.0]),
        }
    }

    /// The input's name.
    pub(super) fn id(&self, chain_id: &Hash) -> Hash {
        let length = u32::try_from(self.payload.len()).expect("it was read after a u32");
        tagged(
            "hp/input/1",
            &[
                &chain_id.0,
                &self.user.0,
                &self.origin_tag().0,
                &self.nonce.to_le_bytes(),
                &self.max_ledger.to_le_bytes(),
                &length.to_le_bytes(),
                &self.payload,
            ],
        )
    }
}

/// What the host of a session signs for an input.
pub(super) fn session_input(chain_id: &Hash, id: &Hash) -> Hash {
    tagged("hp/session-input/1", &[&chain_id.0, &id.0])
}

/// Root over users, who are ascending.
pub(super) fn users_root<'a>(users: impl Iterator<Item = &'a UserKey>) -> Hash {
    root(users.map(|user| tagged("hp/user/1", &[&user.0])).collect())
}

/// Hash of ascending keys of inputs.
pub(super) fn keys_root(keys: &[(UserKey, Hash, u64)]) -> Hash {
    let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    let mut bytes = count.to_le_bytes().to_vec();
    for (user, tag, nonce) in keys {
        bytes.extend_from_slice(&user.0);
        bytes.extend_from_slice(&tag.0);
        bytes.extend_from_slice(&nonce.to_le_bytes());
    }
    tagged("hp/keys/1", &[&bytes])
}

/// Leaf of one user's output.
pub(super) fn output_leaf(user: &UserKey, output: &[u8]) -> Hash {
    let length = u32::try_from(output.len()).unwrap_or(u32::MAX);
    let bytes = tagged("hp/output-bytes/1", &[&length.to_le_bytes(), output]);
    tagged("hp/output/1", &[&user.0, &bytes.0])
}

/// Root of a tree: two neighbours become one, level by level; an odd last one moves up. Of none: 32 zero bytes.
pub(super) fn root(mut nodes: Vec<Hash>) -> Hash {
    while nodes.len() > 1 {
        let odd = if nodes.len() % 2 == 1 { nodes.pop() } else { None };
        let pairs = nodes.chunks_exact(2).map(|pair| tagged("hp/node/1", &[&pair[0].0, &pair[1].0]));
        nodes = pairs.chain(odd).collect();
    }
    nodes.pop().unwrap_or(Hash::ZERO)
}
