//! `hp msb`: the settlement bus, and what of a chain is settled on it.
//!
//! `chain` reads the headers of a folder or an export, for `status` and `verify`; `serve` is a bus of one's own; `wallet` says
//! whose key it is about, for what is asked of a bus: `account` (address, balance, fund) and `deploy`.

mod account;
mod chain;
mod deploy;
mod serve;
mod status;
mod verify;
mod wallet;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand};

pub(super) use self::status::line;
use self::wallet::Configured;
use super::{Exit, Failure, Outcome};
use crate::settlement::{
    Network,
    client::{Authorities, Client, ClientError, UrlError},
};

const EXAMPLES: &str = "\
Examples:
  hp msb serve mybus --fund trac1...=100          a bus of your own, for trying
  hp msb address mynode                           where to send a node's money
  hp msb balance mynode --url http://127.0.0.1:5000
  hp msb fund mynode --url http://127.0.0.1:5000 --amount 10
  hp msb deploy mynode --url http://127.0.0.1:5000
  hp msb status mynode                            what a running node has settled
  hp msb verify mynode                            is what its chain says about that true?

A settlement bus notes for a fee (0.03 TNK) that a hash was there. One of your own proves nothing to others.";

/// See what is settled on a settlement bus (MSB), check it, or run a bus for trying.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Msb {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::Status),
    Verify(verify::Verify),
    Serve(serve::Serve),
    Address(account::Address),
    Balance(account::Balance),
    Fund(account::Fund),
    Deploy(deploy::Deploy),
}

impl Msb {
    pub(super) fn run(self) -> Outcome {
        match self.command {
            Command::Status(status) => status.run(),
            Command::Verify(verify) => verify.run(),
            Command::Serve(serve) => serve.run(),
            Command::Address(address) => address.run(),
            Command::Balance(balance) => balance.run(),
            Command::Fund(fund) => fund.run(),
            Command::Deploy(deploy) => deploy.run(),
        }
    }
}

/// Which bus is asked.
#[derive(Debug, Args)]
struct Bus {
    /// The bus: http://HOST:PORT or https://HOST [default: that of the folder's cfg/hp.cfg]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    trust: Trust,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

/// Who is believed over https.
#[derive(Debug, Args)]
struct Trust {
    /// Certificates (PEM) of those who issue the bus's, with https [default: those of the folder's cfg/hp.cfg, or the system's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl Trust {
    /// `configured` stands for a file that is not given.
    fn authorities(&self, configured: Option<PathBuf>) -> Result<Option<Authorities>, Failure> {
        let (from, file) = match (&self.ca_file, configured) {
            (Some(file), _) => ("--ca-file", file.clone()),
            (None, Some(file)) => ("[msb] ca_file of the folder's cfg/hp.cfg", file),
            (None, None) => return Ok(None),
        };
        let read = Authorities::read(&file).with_context(|| format!("{from} cannot be used"));
        read.map(Some).map_err(|error| Failure::new(Exit::Config, error))
    }
}

impl Bus {
    /// `configured` is how the folder's node reaches its bus, if there is a folder and its node settles.
    fn client(&self, network: Network, configured: Option<Configured>) -> Result<Client, Failure> {
        let (configured, ca_file) = configured.map_or((None, None), |bus| (Some(bus.url), bus.ca_file));
        // The URL itself may hold a password.
        let from = if self.url.is_some() { "--url" } else { "[msb] of the folder's cfg/hp.cfg" };
        let Some(url) = self.url.clone().or(configured) else {
            let what = anyhow::anyhow!(
                "which bus? Name it with --url, or in a folder's cfg/hp.cfg ([msb] mode and url); one in a node that listens \
                 on port 0 is found while that node runs"
            );
            return Err(Failure::new(Exit::Usage, what));
        };
        let authorities = self.trust.authorities(ca_file)?;
        let client = Client::trusting(&url, network, authorities.as_ref()).map_err(|error: UrlError| {
            Failure::new(Exit::Usage, anyhow::Error::new(error).context(format!("{from} does not name a bus")))
        })?;
        Ok(client.with_timeout(Duration::from_secs(self.timeout)))
    }
}

/// A bus that is silent is another failure than one that refuses.
fn failure(error: ClientError) -> Failure {
    match &error {
        ClientError::Timeout { .. } => Failure::new(Exit::NoAnswer, error),
        ClientError::Refused { reason: Some(reason), .. } => {
            let reason = format!("the bus says why: {reason}");
            Failure::new(Exit::Failed, anyhow::Error::new(error).context(reason))
        }
        _ => Failure::new(Exit::Failed, error),
    }
}

fn block_on<T>(what: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    Ok(runtime.block_on(what))
}
