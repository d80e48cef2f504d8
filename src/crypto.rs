//! Sign, verify, tagged hash, keyed hash. The only user of ed25519-dalek, hmac and sha2.
//!
//! One rule everywhere: signatures are checked with `verify_strict`, so that two machines never disagree about one.

use std::{cell::RefCell, collections::BTreeMap, fmt};

use borsh::BorshSerialize;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256, Sha512};

use crate::types::{Hash, NodeKey, Sig, UserKey};

impl Hash {
    /// The tagged hash of the protocol: first 32 bytes of SHA-512(u8 length of tag || tag || borsh(value)).
    ///
    /// Deterministic. Source: `docs/protocol.md`, "Hashes".
    pub fn tagged<T: BorshSerialize + ?Sized>(tag: &str, value: &T) -> Hash {
        let mut hasher = Sha512Writer(Sha512::new());
        let tag_len = u8::try_from(tag.len()).expect("tags are short constants");
        hasher.0.update([tag_len]);
        hasher.0.update(tag.as_bytes());
        value.serialize(&mut hasher).expect("hashing does not fail");
        let digest = hasher.0.finalize();
        Hash(digest[..32].try_into().expect("SHA-512 has 64 bytes"))
    }
}

struct Sha512Writer(Sha512);

impl std::io::Write for Sha512Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Text that is not a secret key. Never shows the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretKeyError {
    /// Neither 64 nor 128 hexadecimal digits.
    #[error("a secret key is 64 hexadecimal digits (seed) or 128 (seed, then public key)")]
    Shape,
    /// The second half is not the public key of the first.
    #[error("the second half of the secret key is not the public key of its first half ({0})")]
    Mismatch(NodeKey),
}

/// An ed25519 secret key. Wiped from memory when dropped; its `Debug` shows the public key alone.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// A new random key from the operating system's source.
    pub fn generate() -> SecretKey {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the operating system gives random bytes");
        SecretKey::from_seed(seed)
    }

    /// The key of a 32-byte seed (RFC 8032).
    pub fn from_seed(seed: [u8; 32]) -> SecretKey {
        SecretKey(SigningKey::from_bytes(&seed))
    }

    /// Reads 64 hexadecimal digits (the seed) or 128 (seed, then public key, which must match).
    pub fn parse(text: &str) -> Result<SecretKey, SecretKeyError> {
        let bytes = hex::decode(text).map_err(|_| SecretKeyError::Shape)?;
        let (seed, public) = match bytes.len() {
            32 => (&bytes[..], None),
            64 => (&bytes[..32], Some(&bytes[32..])),
            _ => return Err(SecretKeyError::Shape),
        };
        let key = SecretKey::from_seed(seed.try_into().expect("32 bytes"));
        match public {
            Some(public) if public != key.node_key().0 => Err(SecretKeyError::Mismatch(key.node_key())),
            _ => Ok(key),
        }
    }

    /// 128 hexadecimal digits: seed, then public key. For writing into `hp.cfg` or a key file only.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0.to_keypair_bytes())
    }

    /// The 32-byte seed. For the mesh's identity only.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public key as a node's.
    pub fn node_key(&self) -> NodeKey {
        NodeKey(self.0.verifying_key().to_bytes())
    }

    /// The public key as a user's.
    pub fn user_key(&self) -> UserKey {
        UserKey(self.0.verifying_key().to_bytes())
    }

    /// Signs the bytes as they are. Deterministic.
    pub fn sign(&self, message: &[u8]) -> Sig {
        Sig(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.node_key().short())
    }
}

/// SHA-256 over the parts, one after the other: for what goes to the settlement bus.
pub fn sha256(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    Hash(hasher.finalize().into())
}

/// HMAC-SHA512 over the parts, one after the other: for deriving a wallet's keys.
pub fn hmac_sha512(key: &[u8], parts: &[&[u8]]) -> [u8; 64] {
    let mut mac = Hmac::<Sha512>::new_from_slice(key).expect("a key of any length does");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// Public keys whose curve point is remembered by a thread. Past it all are forgotten and computed again.
const POINTS_MAX: usize = 1_024;

thread_local! {
    /// Finding the point of a key is a sixth of a verification, and most signatures are by the same few nodes.
    static POINTS: RefCell<BTreeMap<[u8; 32], VerifyingKey>> = const { RefCell::new(BTreeMap::new()) };
}

/// Whether `sig` is `public`'s signature over `message`. False also for a key that is no curve point.
pub fn verify(public: &[u8; 32], message: &[u8], sig: &Sig) -> bool {
    match point(public) {
        Some(key) => key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&sig.0)).is_ok(),
        None => false,
    }
}

/// Whether these bytes are a public key that somebody can sign with.
pub fn is_key(public: &[u8; 32]) -> bool {
    point(public).is_some_and(|key| !key.is_weak())
}

fn point(public: &[u8; 32]) -> Option<VerifyingKey> {
    POINTS.with_borrow_mut(|points| {
        if let Some(point) = points.get(public) {
            return Some(*point);
        }
        let point = VerifyingKey::from_bytes(public).ok()?;
        if points.len() >= POINTS_MAX {
            points.clear();
        }
        points.insert(*public, point);
        Some(point)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_curve_point_that_a_secret_stands_behind() {
        assert!(is_key(&SecretKey::from_seed([7; 32]).node_key().0));
        // The neutral element, for which anything is a signature, and bytes that are no point.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert!(!is_key(&neutral) && !is_key(&[0; 32]));
        assert!((0..=255).any(|byte| VerifyingKey::from_bytes(&[byte; 32]).is_err() && !is_key(&[byte; 32])));
    }

    #[test]
    fn the_tagged_hash_is_sha512_of_length_tag_and_borsh() {
        let mut bytes = vec![3];
        bytes.extend(b"t/1");
        bytes.extend([5, 0, 0, 0]);
        bytes.extend(b"hello");
        assert_eq!(Hash::tagged("t/1", "hello").0, Sha512::digest(&bytes)[..32]);
    }

    #[test]
    fn a_secret_key_reads_back_and_a_wrong_second_half_is_refused() {
        let key = SecretKey::from_seed([1; 32]);
        assert_eq!(SecretKey::parse(&key.to_hex()).unwrap().node_key(), key.node_key());
        assert_eq!(SecretKey::parse(&hex::encode([1; 32])).unwrap().node_key(), key.node_key());
        let wrong = format!("{}{}", hex::encode([2; 32]), key.node_key());
        let other = SecretKey::from_seed([2; 32]).node_key();
        assert_eq!(SecretKey::parse(&wrong).unwrap_err(), SecretKeyError::Mismatch(other));
        assert_eq!(SecretKey::parse("12").unwrap_err(), SecretKeyError::Shape);
    }

    #[test]
    fn the_recorded_handshake_of_0_1_verifies() {
        let vector: serde_json::Value =
            serde_json::from_str(include_str!("../tests/golden/handshake-0.1.json")).unwrap();
        let helo = &vector["client_to_server"];
        let text = |key: &str| helo[key].as_str().unwrap();
        let user: UserKey = text("pubkey").parse().unwrap();
        let sig: Sig = text("sig").parse().unwrap();
        assert!(verify(&user.0, text("challenge").as_bytes(), &sig));
        assert!(!verify(&user.0, b"another challenge", &sig));
        assert_eq!(SecretKey::from_seed([3; 32]).sign(text("challenge").as_bytes()), sig);
    }

    #[test]
    fn many_keys_are_told_apart_also_when_their_points_are_forgotten() {
        let sign = |seed: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&seed.to_le_bytes());
            let key = SecretKey::from_seed(bytes);
            (key.node_key().0, key.sign(b"message"))
        };
        let (first, sig) = sign(0);
        assert!(verify(&first, b"message", &sig));
        for seed in 1..=POINTS_MAX as u32 {
            let (public, other) = sign(seed);
            assert!(verify(&public, b"message", &other) && !verify(&public, b"message", &sig));
        }
        assert!(verify(&first, b"message", &sig));
        assert!(!verify(&[2; 32], b"message", &sig), "no curve point");
    }

    /// Test case 2 of RFC 4231.
    #[test]
    fn the_keyed_hash_is_that_of_rfc_4231() {
        let expected = "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fd\
                        caeab1a34d4a6b4b636e070a38bce737";
        assert_eq!(hex::encode(hmac_sha512(b"Jefe", &[b"what do ya want ", b"for nothing?"])), expected);
    }

    #[test]
    fn debug_never_shows_a_secret() {
        let key = SecretKey::from_seed([7; 32]);
        assert!(!format!("{key:?}").contains(&hex::encode([7; 4])));
    }
}
