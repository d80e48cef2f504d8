//! The settlement bus (MSB, the Main Settlement Bus of Trac Network): a public ledger that notes, for a fee, that a hash was there.
//!
//! In reading order: `network` and `address` say who pays where, `amount` how much; `tx` makes operations, their hashes
//! and signatures; `mnemonic` and `key_file` find the key; [`client`] speaks the bus's HTTP API; [`embedded`] is a bus of
//! our own, with the same API, for trying and for tests. [`record`] is what one settlement says, [`schedule`] follows a chain
//! and tells what is to be settled when; [`journal`] remembers what was posted, [`agent`] posts it.
//!
//! Holds no votes: what the agent saw on the bus is handed to the node.

mod address;
pub mod agent;
mod amount;
pub mod client;
pub mod embedded;
pub mod journal;
mod key_file;
mod mnemonic;
mod network;
pub mod record;
pub mod schedule;
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
