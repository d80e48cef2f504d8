//! Settling, as the node sees it: an agent beside the loop that is told how far the chain is, and says what it saw.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::{Node, NodeError};
use crate::{
    config::{Config, MsbMode, MsbNetwork},
    consensus::{
        Consensus,
        header::{Genesis, Settlement},
    },
    crypto::SecretKey,
    ledger::{HEADERS_READ_MAX, Ledger},
    settlement::{
        Network,
        agent::{Agent, ReadHeaders, Setup, Tip},
        client::{Authorities, Client},
        read_key,
        schedule::Pace,
    },
    types::Seq,
};

/// What the agent saw and the loop has not taken yet. At it the agent waits.
const SAID_MAX: usize = 4;

/// A node that settles.
pub(super) struct Settling {
    agent: Agent,
    tips: watch::Sender<Tip>,
    pub said: mpsc::Receiver<Option<Settlement>>,
}

/// What is needed for it, found before anything is started. `None`: this node settles nothing.
pub(super) fn prepare(config: &Config) -> Result<Option<(Client, SecretKey)>, NodeError> {
    let MsbMode::Http(url) = &config.msb.mode else { return Ok(None) };
    let wrong = |why: String| NodeError::Msb { file: config.file.clone(), why };
    let authorities = config.msb.ca_file.as_deref().map(Authorities::read).transpose();
    let authorities = authorities.map_err(|error| wrong(format!("msb.ca_file: {:#}", anyhow::Error::new(error))))?;
    let client = Client::trusting(url, network(config.msb.network), authorities.as_ref())
        .map_err(|error| wrong(format!("msb.url: {:#}", anyhow::Error::new(error))))?;
    let key = match &config.msb.key_file {
        None => config.secret.clone(),
        Some(path) => {
            read_key(path).map_err(|error| wrong(format!("msb.key_file: {:#}", anyhow::Error::new(error))))?
        }
    };
    Ok(Some((client, key)))
}

/// The bus's network that the configuration names.
pub(crate) fn network(network: MsbNetwork) -> Network {
    match network {
        MsbNetwork::Mainnet => Network::Mainnet,
        MsbNetwork::Testnet => Network::Testnet,
        MsbNetwork::Development => Network::Development,
    }
}

/// How often this network settles.
pub(crate) fn pace(config: &Config) -> Pace {
    Pace { every: config.msb.settle_every, max_delay_ms: config.msb.settle_max_delay_ms }
}

/// Starts the agent.
pub(super) fn start(
    (client, key): (Client, SecretKey),
    config: &Config,
    genesis: &Genesis,
    core: &Consensus,
    ledger: &Ledger,
) -> Settling {
    let ledger = ledger.clone();
    let headers: ReadHeaders = Box::new(move |first, count| {
        let ledger = ledger.clone();
        Box::pin(async move {
            let closed = ledger.header_range(first, count.min(HEADERS_READ_MAX)).await;
            let closed = closed.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
            Ok(closed.into_iter().map(|closed| closed.header).collect())
        })
    });
    let summary = core.summary();
    let (tips, heard) = watch::channel(tip(summary.seq, summary.settlement.as_ref(), core));
    let (say, said) = mpsc::channel(SAID_MAX);
    let setup = Setup {
        me: config.key,
        key,
        client,
        contract_id: genesis.contract_id,
        genesis_time_ms: genesis.time_ms,
        subnet: config.subnet(),
        bootstrap: config.msb.bootstrap.expect("a file that settles names it"),
        pace: pace(config),
        slot: Duration::from_millis(config.msb.settle_slot_ms),
        dir: config.dir.clone(),
        headers,
    };
    info!(bus = setup.client.url(), subnet = %setup.subnet, "ledgers are settled");
    Settling { agent: Agent::start(setup, heard, say), tips, said }
}

fn tip(seq: Seq, settlement: Option<&Settlement>, core: &Consensus) -> Tip {
    Tip { seq, settled: settlement.map_or(0, |settlement| settlement.seq), unl: core.unl().to_vec() }
}

/// What the agent says next; never, where there is none.
pub(super) async fn said(settling: &mut Option<Settling>) -> Option<Settlement> {
    match settling {
        None => std::future::pending().await,
        Some(settling) => match settling.said.recv().await {
            Some(vote) => vote,
            // It ends with the node.
            None => std::future::pending().await,
        },
    }
}

impl Node {
    /// A ledger is closed, and in the database.
    pub(super) fn tell_agent(&self, seq: Seq, settlement: Option<&Settlement>) {
        if let Some(settling) = &self.settling {
            settling.tips.send_replace(tip(seq, settlement, &self.core));
        }
    }

    /// What the operator must do about settling.
    pub(super) fn settling_alerts(&self) -> Vec<String> {
        self.settling.as_ref().map(|settling| settling.agent.status().alerts).unwrap_or_default()
    }

    /// Where settling stands; null where nothing is settled by this node.
    pub(super) fn settling_status(&self) -> Value {
        self.settling.as_ref().map_or(Value::Null, |settling| json!(settling.agent.status()))
    }
}
