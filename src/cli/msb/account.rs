//! `hp msb address`, `balance` and `fund`: whose money, how much, and how to get some.

use clap::Args;
use serde_json::json;

use super::{
    Bus, block_on, failure,
    wallet::{Configured, Wallet},
};
use crate::{
    cli::{Failure, Outcome, answer},
    settlement::{
        self, Amount,
        client::{Client, View},
    },
};

/// Settlements below which an address is said to need money.
const FEW_FEES: u128 = 100;

const ADDRESS_EXAMPLES: &str = "\
Examples:
  hp msb address mynode                          the node's own key
  hp msb address --key-file msb.key              one in a file
  hp msb address --mnemonic-file words.txt       a wallet's words
  hp msb address mynode --network testnet        with the test network's letters";

/// Print the address of a key.
#[derive(Debug, Args)]
#[command(after_help = ADDRESS_EXAMPLES)]
pub(super) struct Address {
    #[command(flatten)]
    wallet: Wallet,
}

impl Address {
    pub(super) fn run(self) -> Outcome {
        answer(&format!("{}\n", self.wallet.load()?.address()))
    }
}

/// An address as it is, or a wallet's.
#[derive(Debug, Args)]
struct Whose {
    /// The address instead of a wallet
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["dir", "key_file", "mnemonic_file"])]
    address: Option<String>,
    #[command(flatten)]
    wallet: Wallet,
}

impl Whose {
    /// The address, and how the folder's node reaches its bus, if it is of a folder.
    fn load(&self) -> Result<(settlement::Address, Option<Configured>), Failure> {
        match &self.address {
            None => self.wallet.load().map(|payer| (payer.address(), payer.bus)),
            Some(text) => {
                let address = settlement::Address::parse(text, self.wallet.network_alone()).map_err(|error| {
                    Failure::new(crate::cli::Exit::Usage, anyhow::Error::new(error).context("--address is none"))
                })?;
                Ok((address, None))
            }
        }
    }
}

const BALANCE_EXAMPLES: &str = "\
Examples:
  hp msb balance mynode                                       on the bus of its cfg/hp.cfg
  hp msb balance mynode --url http://127.0.0.1:5000
  hp msb balance --address trac1... --url https://bus.example.org --json

Exit codes: 0 told, 1 the bus refused or cannot be reached, 6 no answer in time.";

/// Print what an address has.
#[derive(Debug, Args)]
#[command(after_help = BALANCE_EXAMPLES)]
pub(super) struct Balance {
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    bus: Bus,
    /// As one JSON object, in the bus's smallest unit
    #[arg(long)]
    json: bool,
}

impl Balance {
    pub(super) fn run(self) -> Outcome {
        let (address, configured) = self.whose.load()?;
        let client = self.bus.client(address.network(), configured)?;
        let (balance, fee) = block_on(balance_and_fee(&client, &address))??;
        if self.json {
            let (balance, fee) = (balance.0.to_string(), fee.0.to_string());
            return answer(&format!("{}\n", json!({ "address": address.to_string(), "balance": balance, "fee": fee })));
        }
        answer(&format!("{address}\n  {}\n", worth(balance, fee)))
    }
}

async fn balance_and_fee(client: &Client, address: &settlement::Address) -> Result<(Amount, Amount), Failure> {
    let balance = client.balance(address, View::Confirmed).await.map_err(failure)?;
    Ok((balance, client.fee().await.map_err(failure)?))
}

/// How much, and for how many settlements.
fn worth(balance: Amount, fee: Amount) -> String {
    match balance.times(fee) {
        None => format!("{balance}"),
        Some(0) => format!("{balance}: not enough for a settlement, which costs {fee}"),
        Some(times) => {
            let few = if times < FEW_FEES { "; soon there is none left" } else { "" };
            format!("{balance}: enough for {times} settlements of {fee}{few}")
        }
    }
}

const FUND_EXAMPLES: &str = "\
Examples:
  hp msb fund mynode --url http://127.0.0.1:5000 --amount 10
  hp msb fund --address trac1... --url http://127.0.0.1:5000 --amount 0.5

Works with a bus that `hp msb serve`, or a node in itself, runs on this machine: its money is nobody's. For a real one it says
what to do.

Exit codes: 0 done, 1 not done, 6 no answer in time.";

/// Give money to an address on a bus of your own.
#[derive(Debug, Args)]
#[command(after_help = FUND_EXAMPLES)]
pub(super) struct Fund {
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    bus: Bus,
    /// How much, in TNK
    #[arg(long, value_name = "TNK", default_value = "10")]
    amount: Amount,
}

impl Fund {
    pub(super) fn run(self) -> Outcome {
        let (address, configured) = self.whose.load()?;
        let client = self.bus.client(address.network(), configured)?;
        let (balance, fee) = block_on(self.give(&client, &address))??;
        answer(&format!("{address}\n  {}\n", worth(balance, fee)))
    }

    async fn give(&self, client: &Client, address: &settlement::Address) -> Result<(Amount, Amount), Failure> {
        if client.embedded().await.map_err(failure)?.is_none() {
            let amount = self.amount.to_string();
            let amount = amount.trim_end_matches(" TNK");
            return Err(anyhow::anyhow!(
                "{} is a real bus, which gives nothing away; send the money from a wallet that has some, in the bus's \
                 own program:\n  /transfer {address} {amount}\nthen look with `hp msb balance`",
                client.url()
            )
            .into());
        }
        client.fund(address, self.amount).await.map_err(failure)?;
        balance_and_fee(client, address).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_money_is_worth_is_told_in_settlements() {
        let fee = "0.03".parse().unwrap();
        assert_eq!(worth(Amount::tnk(10), fee), "10 TNK: enough for 333 settlements of 0.03 TNK");
        let few = "1 TNK: enough for 33 settlements of 0.03 TNK; soon there is none left";
        assert_eq!(worth(Amount::tnk(1), fee), few);
        assert_eq!(worth(Amount::ZERO, fee), "0 TNK: not enough for a settlement, which costs 0.03 TNK");
        assert_eq!(worth(Amount::tnk(1), Amount::ZERO), "1 TNK");
    }
}
