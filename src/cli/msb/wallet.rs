//! Whose key: a node's, one in a file, or that of a wallet's words.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::super::{Exit, Failure};
use crate::{
    config::{Config, MsbMode},
    crypto::SecretKey,
    node::settle::network,
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
    /// The bus's network, mainnet, testnet or development [default: that of the folder's cfg/hp.cfg, or mainnet]
    #[arg(long, value_name = "NAME")]
    network: Option<Network>,
}

impl Wallet {
    /// The folder's configuration, if it is a folder.
    pub(super) fn config(&self) -> Result<Option<Config>, Failure> {
        match (&self.key_file, &self.mnemonic_file) {
            (None, None) => Ok(Some(Config::load(&self.dir)?)),
            _ => Ok(None),
        }
    }

    /// The bus on which the folder's node settles, if it is a folder, and the node settles.
    pub(super) fn url(&self) -> Result<Option<String>, Failure> {
        Ok(self.config()?.and_then(|config| match config.msb.mode {
            MsbMode::Http(url) => Some(url),
            _ => None,
        }))
    }

    /// For an address that is given as it is, no folder is looked at.
    pub(super) fn network_alone(&self) -> Network {
        self.network.unwrap_or_default()
    }

    /// The key that pays, and its network.
    pub(super) fn key(&self) -> Result<(SecretKey, Network), Failure> {
        let config = self.config()?;
        let configured = config.as_ref().map(|config| network(config.msb.network));
        let network = self.network.or(configured).unwrap_or_default();
        let in_config = config.as_ref().and_then(|config| config.msb.key_file.clone());
        let read = match (&self.key_file, &self.mnemonic_file, in_config, config) {
            (Some(file), ..) => read_key(file),
            (None, Some(file), ..) => read_words(file, network),
            (None, None, Some(file), _) => read_key(&file),
            (None, None, None, config) => return Ok((config.expect("there is a folder then").secret, network)),
        };
        let key = read.context("cannot use the wallet").map_err(|error| Failure::new(Exit::Config, error))?;
        Ok((key, network))
    }

    pub(super) fn address(&self) -> Result<settlement::Address, Failure> {
        let (key, network) = self.key()?;
        Ok(settlement::Address::new(network, key.node_key().0))
    }
}
