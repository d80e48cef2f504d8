//! Whose key: a node's, one in a file, or that of a wallet's words.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::super::{Exit, Failure, status::ask};
use crate::{
    config::{Config, Msb, MsbMode},
    crypto::SecretKey,
    node::{control::Request, settle::network},
    settlement::{self, Network, read_key, read_words},
    types::Hash,
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

/// What of a wallet, and of the folder it may be of, a command needs. Read once.
pub(super) struct Payer {
    /// The key that pays.
    pub(super) key: SecretKey,
    /// The bus's network.
    pub(super) network: Network,
    /// The subnet of the folder's contract, if it is a folder.
    pub(super) subnet: Option<Hash>,
    /// How the folder's node reaches its bus, if it is a folder and it settles.
    pub(super) bus: Option<Configured>,
}

/// How a folder's node reaches its bus.
pub(super) struct Configured {
    pub(super) url: String,
    /// Who is believed over https, if not whom the system believes.
    pub(super) ca_file: Option<PathBuf>,
}

impl Payer {
    pub(super) fn address(&self) -> settlement::Address {
        settlement::Address::new(self.network, self.key.node_key().0)
    }
}

impl Wallet {
    /// For an address that is given as it is, no folder is looked at.
    pub(super) fn network_alone(&self) -> Network {
        self.network.unwrap_or_default()
    }

    /// Reads configuration and key.
    pub(super) fn load(&self) -> Result<Payer, Failure> {
        let wrong = |error| Failure::new(Exit::Config, error);
        let file = match (&self.key_file, &self.mnemonic_file) {
            (None, None) => return self.of_folder(),
            (Some(file), _) => read_key(file),
            (None, Some(file)) => read_words(file, self.network_alone()),
        };
        let key = file.context("cannot use the wallet").map_err(wrong)?;
        Ok(Payer { key, network: self.network_alone(), subnet: None, bus: None })
    }

    fn of_folder(&self) -> Result<Payer, Failure> {
        let config = Config::load(&self.dir)?;
        let network = self.network.unwrap_or(network(config.msb.network));
        let (subnet, bus) = (Some(config.subnet()), configured(&config.msb, &self.dir));
        let key = match &config.msb.key_file {
            None => config.secret,
            Some(file) => {
                read_key(file).context("cannot use the wallet").map_err(|error| Failure::new(Exit::Config, error))?
            }
        };
        Ok(Payer { key, network, subnet, bus })
    }
}

/// Where the bus is that a folder's configuration names. A bus in the node on a port by chance only the node knows: there is
/// none while it does not run.
pub(super) fn configured(msb: &Msb, dir: &Path) -> Option<Configured> {
    let of_node = || ask(dir, &Request::Status).ok()?["settlement"]["url"].as_str().map(str::to_owned);
    let url = match &msb.mode {
        MsbMode::Embedded(listen) if listen.port() == 0 => of_node(),
        mode => mode.url(),
    };
    Some(Configured { url: url?, ca_file: msb.ca_file.clone() })
}
