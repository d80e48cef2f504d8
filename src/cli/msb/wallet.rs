//! Whose key: a node's, one in a file, or that of a wallet's words.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::super::{Exit, Failure};
use crate::{
    config::Config,
    crypto::SecretKey,
    settlement::{self, Network, read_key, read_words},
};

/// Whose money.
#[derive(Debug, Args)]
pub(super) struct Wallet {
    /// The contract folder whose node's key it is
    #[arg(default_value = ".", conflicts_with_all = ["key_file", "mnemonic_file"])]
    dir: PathBuf,
    /// A file with the key instead: 64 hexadecimal digits, or 128 as the bus's own wallet writes it; mode 0600 or 0400
    #[arg(long, value_name = "FILE", conflicts_with = "mnemonic_file")]
    key_file: Option<PathBuf>,
    /// A file with the wallet's 12 or 24 words instead; mode 0600 or 0400
    #[arg(long, value_name = "FILE")]
    mnemonic_file: Option<PathBuf>,
    /// The bus's network: mainnet, testnet or development
    #[arg(long, value_name = "NAME", default_value = "mainnet")]
    pub(super) network: Network,
}

impl Wallet {
    pub(super) fn key(&self) -> Result<SecretKey, Failure> {
        let read = match (&self.key_file, &self.mnemonic_file) {
            (Some(file), _) => read_key(file),
            (None, Some(file)) => read_words(file, self.network),
            (None, None) => return Ok(Config::load(&self.dir)?.secret),
        };
        read.context("cannot use the wallet").map_err(|error| Failure::new(Exit::Config, error))
    }

    pub(super) fn address(&self) -> Result<settlement::Address, Failure> {
        Ok(settlement::Address::new(self.network, self.key()?.node_key().0))
    }
}
