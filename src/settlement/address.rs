//! Addresses of the bus: an ed25519 public key in bech32m, so that a misread character is noticed.

use std::fmt;

use bech32::{Bech32m, Hrp, primitives::decode::CheckedHrpstring};

use super::Network;

/// Characters of bech32 behind the `1`.
const CHARSET: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";

/// Who pays and signs on the bus: a public key, and the network whose letters its text begins with.
///
/// Mainnet and development have the same letters, so the text of an address does not tell them apart; two addresses are
/// equal when their texts are.
#[derive(Clone, Copy)]
pub struct Address {
    network: Network,
    key: [u8; 32],
}

/// Text that is no address of this network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddressError {
    /// Another network's, or no address at all.
    #[error("an address of this network begins with {hrp}1, got {got:?}")]
    Prefix {
        /// The letters wanted.
        hrp: &'static str,
        /// What was there, cut to 80 characters.
        got: String,
    },
    /// Characters are missing or too many.
    #[error("an address of this network has {expected} characters, this has {got}")]
    Length {
        /// Characters wanted.
        expected: usize,
        /// Characters there.
        got: usize,
    },
    /// A character that no address has.
    #[error("an address has no {0:?} in it")]
    Character(char),
    /// One character or more is another one's.
    #[error("the checksum of {0} is wrong: a character was misread")]
    Checksum(String),
}

impl Address {
    /// The address of a public key on this network.
    pub fn new(network: Network, key: [u8; 32]) -> Address {
        Address { network, key }
    }

    /// Reads the text of an address of this network, in lower case, as the bus has it.
    pub fn parse(text: &str, network: Network) -> Result<Address, ParseAddressError> {
        Address::check_format(text, network)?;
        let wrong = || ParseAddressError::Checksum(text.to_owned());
        let checked = CheckedHrpstring::new::<Bech32m>(text).map_err(|_| wrong())?;
        let bytes: Vec<u8> = checked.byte_iter().collect();
        let address = Address { network, key: bytes.try_into().map_err(|_| wrong())? };
        // Four bits of the last character mean nothing; the bus writes them as zeros, and so must whoever is read.
        if address.to_string() == text { Ok(address) } else { Err(wrong()) }
    }

    /// What a bus looks at before it looks at the key: letters, length and characters, and not the checksum.
    pub fn check_format(text: &str, network: Network) -> Result<(), ParseAddressError> {
        let hrp = network.hrp();
        let prefix = || ParseAddressError::Prefix { hrp, got: text.chars().take(80).collect() };
        let data = text.strip_prefix(hrp).and_then(|rest| rest.strip_prefix('1')).ok_or_else(prefix)?;
        if let Some(other) = data.chars().find(|c| !CHARSET.contains(*c)) {
            return Err(ParseAddressError::Character(other));
        }
        match text.len() {
            len if len == network.address_len() => Ok(()),
            got => Err(ParseAddressError::Length { expected: network.address_len(), got }),
        }
    }

    /// The public key.
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// The network.
    pub fn network(&self) -> Network {
        self.network
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hrp = Hrp::parse(self.network.hrp()).expect("both are well formed");
        f.write_str(&bech32::encode::<Bech32m>(hrp, &self.key).expect("32 bytes are not too long"))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

impl Address {
    fn order(&self) -> (&'static str, &[u8; 32]) {
        (self.network.hrp(), &self.key)
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Address) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Address {}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Address) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Address {
    fn cmp(&self, other: &Address) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::settlement::vectors::vector;

    fn key() -> [u8; 32] {
        let mut key = [0; 32];
        hex::decode_to_slice(vector("/raw/publicKey"), &mut key).unwrap();
        key
    }

    #[test]
    fn addresses_are_those_of_the_real_library_and_read_back() {
        for (network, text) in [
            (Network::Mainnet, vector("/raw/address")),
            (Network::Development, vector("/raw/address")),
            (Network::Testnet, vector("/raw/testnet")),
        ] {
            let address = Address::new(network, key());
            assert_eq!(address.to_string(), text);
            assert_eq!((Address::parse(&text, network).unwrap(), text.len()), (address, network.address_len()));
        }
    }

    #[test]
    fn every_misread_character_is_found() {
        let text = vector("/raw/address");
        for at in 0..text.len() {
            for other in (0..=127).map(|byte: u8| byte as char).filter(|c| text.as_bytes()[at] != *c as u8) {
                let mut wrong: Vec<char> = text.chars().collect();
                wrong[at] = other;
                let wrong: String = wrong.into_iter().collect();
                assert!(Address::parse(&wrong, Network::Mainnet).is_err(), "{wrong}");
            }
        }
    }

    #[test]
    fn every_two_neighbours_that_change_places_are_found() {
        let text = vector("/raw/testnet");
        for at in 0..text.len() - 1 {
            let mut wrong = text.clone().into_bytes();
            wrong.swap(at, at + 1);
            let wrong = String::from_utf8(wrong).unwrap();
            assert!(wrong == text || Address::parse(&wrong, Network::Testnet).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_of_another_network_length_case_or_checksum_is_refused_by_name() {
        let text = vector("/raw/address");
        let told = |text: &str, network| Address::parse(text, network).unwrap_err().to_string();
        assert!(told(&text, Network::Testnet).starts_with("an address of this network begins with testtrac1"));
        assert!(told(&vector("/raw/testnet"), Network::Mainnet).contains("begins with trac1"));
        assert!(told(&text[..62], Network::Mainnet).contains("has 63 characters, this has 62"));
        assert_eq!(told(&text.replace('w', "W"), Network::Mainnet), "an address has no 'W' in it");
        assert!(told(&text.to_uppercase(), Network::Mainnet).contains("begins with trac1"));
        // The older bech32, whose checksum does not find every missing character.
        let older = bech32::encode::<bech32::Bech32>(Hrp::parse("trac").unwrap(), &key()).unwrap();
        assert!(told(&older, Network::Mainnet).starts_with("the checksum of trac1"));
    }

    /// A text with a right checksum over these groups of five bits, made apart from the library.
    fn with_checksum(hrp: &str, groups: &[u32]) -> String {
        const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
        let expanded = hrp.bytes().map(|byte| u32::from(byte >> 5)).chain([0]);
        let expanded = expanded.chain(hrp.bytes().map(|byte| u32::from(byte & 31)));
        let mut sum = 1;
        for value in expanded.chain(groups.iter().copied()).chain([0; 6]) {
            let top = sum >> 25;
            sum = (sum & 0x1ff_ffff) << 5 ^ value;
            for (_, generator) in GENERATOR.iter().enumerate().filter(|(at, _)| top >> at & 1 == 1) {
                sum ^= generator;
            }
        }
        sum ^= 0x2bc8_30a3;
        let checksum = (0..6).map(|at| sum >> (5 * (5 - at)) & 31);
        let all = groups.iter().copied().chain(checksum);
        format!("{hrp}1{}", all.map(|group| CHARSET.as_bytes()[group as usize] as char).collect::<String>())
    }

    #[test]
    fn an_address_has_one_text_the_bits_that_mean_nothing_are_zeros() {
        let text = vector("/raw/address");
        let data = &text["trac1".len()..text.len() - 6];
        let mut groups: Vec<u32> = data.chars().map(|c| CHARSET.find(c).expect("of bech32") as u32).collect();
        assert_eq!(with_checksum("trac", &groups), text);
        let last = groups.pop().expect("there are 52");
        assert_eq!(last & 15, 0, "of 52 groups the last four bits are behind the key");
        for meaningless in 1..16 {
            let other = with_checksum("trac", &[&groups[..], &[last | meaningless]].concat());
            let refused = Address::parse(&other, Network::Mainnet);
            assert_eq!(refused, Err(ParseAddressError::Checksum(other)), "{meaningless}");
        }
    }

    proptest! {
        #[test]
        fn any_key_comes_back_and_any_text_is_read_without_a_panic(key: [u8; 32], text in "\\PC{0,80}") {
            let address = Address::new(Network::Testnet, key);
            prop_assert_eq!(*Address::parse(&address.to_string(), Network::Testnet).unwrap().key(), key);
            let _ = Address::parse(&text, Network::Mainnet);
            let _ = Address::parse(&format!("trac1{text}"), Network::Mainnet);
        }
    }
}
