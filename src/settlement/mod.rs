//! The settlement bus (MSB, the Main Settlement Bus of Trac Network): a public ledger that notes, for a fee, that a hash was there.
//!
//! In reading order: `network` and `address` say who pays where, `amount` how much; `tx` makes operations, their hashes
//! and signatures; `mnemonic` and `key_file` find the key; [`client`] speaks the bus's HTTP API; [`embedded`] is a bus of
//! our own, with the same API, for trying and for tests.
//!
//! Knows nothing of ledgers and votes: what is settled, and when, the node decides.

mod address;
mod amount;
pub mod client;
pub mod embedded;
mod key_file;
mod mnemonic;
mod network;
pub mod tx;
#[cfg(test)]
mod vectors;

pub use self::{
    address::{Address, ParseAddressError},
    amount::{Amount, ParseAmountError},
    key_file::{KeyFileError, read_key, read_words},
    mnemonic::{MnemonicError, key_of_words},
    network::{Network, ParseNetworkError},
};
