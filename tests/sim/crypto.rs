//! Signatures that cost nothing: good against everybody who does not forge, which nobody here does.

use hotpocket::{
    consensus::{Crypto, messages::Scope, messages::Signable, messages::Signed},
    types::{Hash, NodeKey, Sig},
};

/// Signs as one node.
pub struct TableCrypto(pub NodeKey);

impl TableCrypto {
    /// Signs a body.
    pub fn signed<T: Signable>(&self, body: T, scope: &Scope) -> Signed<T> {
        let sig = self.sign(&body.digest(scope));
        Signed { from: self.0, body, sig }
    }
}

impl Crypto for TableCrypto {
    fn sign(&self, digest: &Hash) -> Sig {
        signature(&self.0, digest)
    }

    fn verify(&self, key: &NodeKey, digest: &Hash, sig: &Sig) -> bool {
        signature(key, digest) == *sig
    }
}

/// What `key` signs a digest with.
pub fn signature(key: &NodeKey, digest: &Hash) -> Sig {
    let word = |bytes: &[u8; 32], at: usize| u64::from_le_bytes(bytes[8 * at..][..8].try_into().expect("eight bytes"));
    let mut mixed = 0x6a09_e667_f3bc_c908_u64;
    let mut sig = [0; 64];
    for at in 0..8 {
        mixed = (mixed ^ word(&digest.0, at % 4)).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(23);
        mixed = (mixed ^ word(&key.0, at % 4)).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(31);
        sig[8 * at..][..8].copy_from_slice(&mixed.to_le_bytes());
    }
    Sig(sig)
}
