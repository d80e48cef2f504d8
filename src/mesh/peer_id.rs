//! Node key and libp2p peer id: two spellings of the same 32 bytes. Pure.
//!
//! A peer id of an ed25519 key is the identity multihash of its protobuf form: `00 24 08 01 12 20`, then the key.

use libp2p::PeerId;

use crate::types::NodeKey;

const PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The libp2p peer id of a node, as other libp2p software prints it: `12D3KooW...`.
pub fn peer_id_text(key: &NodeKey) -> String {
    peer_id(key).to_base58()
}

/// The node key in a peer id's text. `None` when it is no peer id, or not that of an ed25519 key.
pub fn node_key_of_peer_id(text: &str) -> Option<NodeKey> {
    node_key(&text.parse().ok()?)
}

/// Every key has a peer id, also 32 bytes that are no curve point: no handshake will ever prove such a one.
pub(super) fn peer_id(key: &NodeKey) -> PeerId {
    let mut bytes = [0; PREFIX.len() + NodeKey::LEN];
    bytes[..PREFIX.len()].copy_from_slice(&PREFIX);
    bytes[PREFIX.len()..].copy_from_slice(&key.0);
    PeerId::from_bytes(&bytes).expect("an identity multihash of 36 bytes")
}

pub(super) fn node_key(peer: &PeerId) -> Option<NodeKey> {
    let bytes = peer.to_bytes();
    Some(NodeKey(bytes.strip_prefix(&PREFIX)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::*;
    use crate::crypto::SecretKey;

    #[test]
    fn the_peer_id_is_the_one_libp2p_derives_and_leads_back_to_the_key() {
        for seed in 0..8 {
            let secret = SecretKey::from_seed([seed; 32]);
            let theirs = Keypair::ed25519_from_bytes(secret.seed()).unwrap().public().to_peer_id();
            assert_eq!(peer_id(&secret.node_key()), theirs);
            assert_eq!(node_key(&theirs), Some(secret.node_key()));
            assert_eq!(node_key_of_peer_id(&peer_id_text(&secret.node_key())), Some(secret.node_key()));
        }
    }

    #[test]
    fn a_peer_id_of_another_kind_has_no_node_key() {
        assert_eq!(node_key(&PeerId::random()), None);
        assert_eq!(node_key_of_peer_id("12D3KooW"), None);
        assert_eq!(node_key_of_peer_id(""), None);
    }
}
