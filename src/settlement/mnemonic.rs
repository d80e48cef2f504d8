//! From the words of a wallet to its key: BIP-39, then SLIP-10 for ed25519.

use bip39::{Language, Mnemonic};
use zeroize::{Zeroize as _, Zeroizing};

use super::Network;
use crate::crypto::{SecretKey, hmac_sha512};

/// Words that are no wallet's. Never shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MnemonicError {
    /// Another number of words.
    #[error("a wallet has 12 or 24 words, here are {0}")]
    Count(usize),
    /// A word that is not in the list.
    #[error("word {0} is not in the English list of BIP-39")]
    Word(usize),
    /// All words are in the list, but one is not the wallet's, or they are in another order.
    #[error("the checksum of the words is wrong: one is misspelt, or the order is another")]
    Checksum,
}

/// The key of a wallet's words (12 or 24, in English), which has no passphrase.
///
/// Its path is the address's letters, one step each, then the network's number and three zeros, all hardened. Source:
/// the real wallet's vectors in `tests/golden/msb.json`; the testnet's path has none.
pub fn key_of_words(words: &str, network: Network) -> Result<SecretKey, MnemonicError> {
    let count = words.split_whitespace().count();
    if count != 12 && count != 24 {
        return Err(MnemonicError::Count(count));
    }
    let words = Zeroizing::new(words.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase());
    let mnemonic = Mnemonic::parse_in_normalized(Language::English, &words).map_err(|error| match error {
        bip39::Error::UnknownWord(at) => MnemonicError::Word(at + 1),
        _ => MnemonicError::Checksum,
    })?;
    let seed = Zeroizing::new(mnemonic.to_seed_normalized(""));
    let letters = network.hrp().bytes().map(u32::from);
    Ok(SecretKey::from_seed(*derive(&seed[..], letters.chain([network.id(), 0, 0, 0]))))
}

/// SLIP-10 for ed25519: every step is hardened. Source: the SLIP-0010 text.
fn derive(seed: &[u8], path: impl Iterator<Item = u32>) -> Zeroizing<[u8; 32]> {
    const HARDENED: u32 = 1 << 31;
    let mut node = hmac_sha512(b"ed25519 seed", &[seed]);
    for step in path {
        let next = hmac_sha512(&node[32..], &[&[0], &node[..32], &(step | HARDENED).to_be_bytes()]);
        node.zeroize();
        node = next;
    }
    let key = Zeroizing::new(node[..32].try_into().expect("64 bytes"));
    node.zeroize();
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settlement::{Address, vectors::vector};

    #[test]
    fn the_words_of_the_real_wallet_give_its_key_and_address() {
        let words = vector("/wallet/mnemonic");
        let key = key_of_words(&words, Network::Mainnet).unwrap();
        assert_eq!(hex::encode(key.seed()), vector("/wallet/seed"));
        assert_eq!(Address::new(Network::Mainnet, key.node_key().0).to_string(), vector("/wallet/address"));
        let spaced = format!("  {}\n", words.replace(' ', " \n ").to_uppercase());
        assert_eq!(key_of_words(&spaced, Network::Mainnet).unwrap().node_key(), key.node_key());
        assert_ne!(key_of_words(&words, Network::Testnet).unwrap().node_key(), key.node_key());
    }

    /// Test vector 1 for ed25519 of the SLIP-0010 text.
    #[test]
    fn steps_are_those_of_slip_10() {
        let seed = hex::decode("000102030405060708090a0b0c0d0e0f").unwrap();
        let key = |path: &[u32]| hex::encode(*derive(&seed, path.iter().copied()));
        assert_eq!(key(&[]), "2b4be7f19ee27bbf30c667b642d5f4aa69fd169872f8fc3059c08ebae2eb19e7");
        assert_eq!(key(&[0]), "68e0fe46dfb67e368c75379acec591dad19df3cde26e63b93a8e704f1dade7a3");
        let deep = [0, 1, 2, 2, 1_000_000_000];
        assert_eq!(key(&deep), "8f94d394a8e8fd6b1bc2f3f49f5c47e385281d5c17e65324b0f62483e37e8793");
    }

    #[test]
    fn wrong_words_are_refused_without_being_shown() {
        let words = vector("/wallet/mnemonic");
        let told = |words: &str| key_of_words(words, Network::Mainnet).unwrap_err();
        assert_eq!(told("abandon abandon"), MnemonicError::Count(2));
        assert_eq!(told(&words.replace("about", "abuot")), MnemonicError::Word(12));
        assert_eq!(told(&words.replace("about", "zoo")), MnemonicError::Checksum);
        let swapped = words.replacen("abandon", "about", 1).replace("abandon about", "abandon abandon");
        assert!(!told(&swapped).to_string().contains("abandon"));
        // Twelve words are one of the lengths that BIP-39 knows and wallets use; fifteen are not.
        assert_eq!(told(&format!("{words} zoo zoo zoo")), MnemonicError::Count(15));
    }
}
