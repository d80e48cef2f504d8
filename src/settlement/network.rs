//! Which network of the bus: its number, which every hash begins with, and the first letters of its addresses.

use std::{fmt, str::FromStr};

/// A network of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Network {
    /// The one where a fee is money.
    #[default]
    Mainnet,
    /// The public one for trying.
    Testnet,
    /// One of one's own, as the embedded bus is; number and addresses are the mainnet's.
    Development,
}

impl Network {
    /// The number that stands first in whatever is signed.
    pub fn id(self) -> u32 {
        match self {
            Network::Mainnet | Network::Development => 918,
            Network::Testnet => 919,
        }
    }

    /// The first letters of an address, before the `1`.
    pub fn hrp(self) -> &'static str {
        match self {
            Network::Mainnet | Network::Development => "trac",
            Network::Testnet => "testtrac",
        }
    }

    /// Characters of an address.
    pub fn address_len(self) -> usize {
        // A one, 52 characters for 32 bytes, and the checksum.
        self.hrp().len() + 1 + 52 + 6
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Network::Mainnet => "mainnet",
            Network::Testnet => "testnet",
            Network::Development => "development",
        })
    }
}

/// A name that is no network's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected mainnet, testnet or development, got {0:?}")]
pub struct ParseNetworkError(String);

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Network, ParseNetworkError> {
        let all = [Network::Mainnet, Network::Testnet, Network::Development];
        let found = all.into_iter().find(|network| network.to_string() == text);
        found.ok_or_else(|| ParseNetworkError(text.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_as_it_is_printed() {
        for network in [Network::Mainnet, Network::Testnet, Network::Development] {
            assert_eq!(network.to_string().parse(), Ok(network));
        }
        assert!("Mainnet".parse::<Network>().is_err());
    }
}
