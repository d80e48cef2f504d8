//! `hp msb deploy`: makes a subnet's bootstrap known to a bus of one's own, or says how it is done with a real one.

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use super::{
    Bus, block_on, failure,
    wallet::{Payer, Wallet},
};
use crate::{
    cli::{Exit, Failure, Outcome, answer},
    crypto::SecretKey,
    settlement::{
        client::{Client, ClientError, View},
        tx::{Deployment, Operation},
    },
    types::Hash,
};

/// How often is looked whether it is there.
const LOOK_TIME: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "\
Examples:
  hp msb deploy mynode --url http://127.0.0.1:5000                     the one that mynode's settlements name
  hp msb deploy mynode --url http://127.0.0.1:5000 --bootstrap HASH    this one

A subnet's bootstrap (`bs`) is what all settlements of a contract name. It is deployed once, for a fee of 0.03 TNK. Works with
a bus that `hp msb serve`, or a node in itself, runs; for a real one it says what to do.

Exit codes: 0 deployed, 1 not deployed, 6 no answer in time.";

/// Deploy a subnet's bootstrap on a bus of your own.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Deploy {
    #[command(flatten)]
    wallet: Wallet,
    #[command(flatten)]
    bus: Bus,
    /// The bootstrap: 64 hexadecimal digits [default: that of the folder's cfg/hp.cfg; else drawn by chance]
    #[arg(long, value_name = "HASH")]
    bootstrap: Option<Hash>,
    /// The subnet's channel: 64 hexadecimal digits [default: drawn by chance]
    #[arg(long, value_name = "HASH")]
    channel: Option<Hash>,
}

impl Deploy {
    pub(super) fn run(self) -> Outcome {
        let Payer { key, network, subnet, bus } = self.wallet.load()?;
        let client = self.bus.client(network, bus)?;
        // Of a folder, what its node's settlements will name.
        let bs = self.bootstrap.or(subnet).unwrap_or_else(random);
        block_on(self.deploy(&client, &key, bs))??;
        answer(&format!("{bs}\n"))
    }

    async fn deploy(&self, client: &Client, key: &SecretKey, bs: Hash) -> Result<(), Failure> {
        let channel = self.channel.unwrap_or_else(random);
        if client.embedded().await.map_err(failure)?.is_none() {
            let url = client.url();
            return Err(anyhow::anyhow!(
                "{url} is a real bus, where a subnet is deployed in the bus's own program, by a wallet that has 0.03 TNK \
                 or more:\n  /deployment {bs} {channel}\nthen use {bs} as the subnet's bootstrap"
            )
            .into());
        }
        let txv = client.txv().await.map_err(failure)?;
        let deployment = Deployment { txv, bs, channel, nonce: random() };
        let signed = Operation::from(deployment).sign(client.network(), key);
        match client.broadcast(&signed.payload()).await {
            Ok(_) => {}
            Err(ClientError::Refused { reason: Some(reason), .. })
                if reason.starts_with("BOOTSTRAP_ALREADY_EXISTS") =>
            {
                eprintln!("it is deployed already");
                return Ok(());
            }
            Err(error) => return Err(failure(error)),
        }
        let deadline = Instant::now() + Duration::from_secs(self.bus.timeout);
        while client.tx(&signed.hash).await.map_err(failure)?.is_none() {
            if Instant::now() > deadline {
                let what = anyhow::anyhow!("operation {} was accepted, but is not confirmed yet", signed.hash);
                return Err(Failure::new(Exit::NoAnswer, what));
            }
            sleep(LOOK_TIME).await;
        }
        if let Some(details) = client.tx_details(&signed.hash, View::Confirmed).await.map_err(failure)? {
            let (tx, place) = (signed.hash, details.confirmed_length.unwrap_or_default());
            eprintln!("deployed by {} in operation {tx}, at place {place}", signed.requester);
        }
        Ok(())
    }
}

fn random() -> Hash {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    Hash(bytes)
}
