//! Settling, as the node sees it: an agent beside the loop that is told how far the chain is, and says what it saw; and the
//! bus itself, where this node runs one.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::{
    Node, NodeError,
    alerts::{Alert, Kind},
};
use crate::{
    config::{self, Config, MsbMode, MsbNetwork},
    consensus::{
        Consensus,
        header::{Genesis, Settlement},
    },
    crypto::SecretKey,
    ledger::{HEADERS_READ_MAX, Ledger},
    settlement::{
        Address, Amount, Network,
        agent::{About, Agent, ReadHeaders, Setup, Tip},
        client::{Authorities, Client},
        embedded::{Embedded, Options},
        read_key,
        schedule::Pace,
    },
    types::{NodeKey, Seq},
};

/// What the agent saw and the loop has not taken yet. At it the agent waits.
const SAID_MAX: usize = 4;
/// What each member has on a bus that a node runs in itself, from its beginning: enough for 33 million settlements.
const OWN_FUNDS: Amount = Amount::tnk(1_000_000);
/// Folder of that bus, in the contract folder. No contract sees it: the validator's key is there.
pub(super) const OWN_FOLDER: &str = "msb";

/// A node that settles.
pub(super) struct Settling {
    agent: Agent,
    tips: watch::Sender<Tip>,
    pub said: mpsc::Receiver<Option<Settlement>>,
    own: Option<Embedded>,
}

/// What is needed for it, found before anything is started.
pub(super) struct Prepared {
    key: SecretKey,
    way: Way,
}

enum Way {
    /// The bus is elsewhere.
    There(Client),
    /// This node runs it, and it listens here.
    Here(SocketAddr),
}

/// The way to the bus, and who pays.
pub(super) struct Bus {
    client: Client,
    key: SecretKey,
    own: Option<Embedded>,
}

fn wrong(config: &Config, why: String) -> NodeError {
    NodeError::Msb { file: config.file.clone(), why }
}

/// Looks at what the configuration says. `None`: this node settles nothing.
pub(super) fn prepare(config: &Config) -> Result<Option<Prepared>, NodeError> {
    let way = match &config.msb.mode {
        MsbMode::Off => return Ok(None),
        MsbMode::Http(url) => Way::There(client(config, url)?),
        MsbMode::Embedded(listen) => Way::Here(*listen),
    };
    let key = match &config.msb.key_file {
        None => config.secret.clone(),
        Some(path) => {
            read_key(path).map_err(|error| wrong(config, format!("msb.key_file: {:#}", anyhow::Error::new(error))))?
        }
    };
    Ok(Some(Prepared { key, way }))
}

fn client(config: &Config, url: &str) -> Result<Client, NodeError> {
    let authorities = config.msb.ca_file.as_deref().map(Authorities::read).transpose();
    let authorities =
        authorities.map_err(|error| wrong(config, format!("msb.ca_file: {:#}", anyhow::Error::new(error))))?;
    Client::trusting(url, network(config.msb.network), authorities.as_ref())
        .map_err(|error| wrong(config, format!("msb.url: {:#}", anyhow::Error::new(error))))
}

/// Starts the bus, if this node is to run it: its members, who are `unl`, have money there, and the subnet is deployed.
pub(super) async fn open(prepared: Prepared, config: &Config, unl: &[NodeKey]) -> Result<Bus, NodeError> {
    let Prepared { key, way } = prepared;
    let listen = match way {
        Way::There(client) => return Ok(Bus { client, key, own: None }),
        Way::Here(listen) => listen,
    };
    let network = network(config.msb.network);
    let payers = unl.iter().copied().chain([config.key, key.node_key()]);
    let options = Options {
        listen,
        network,
        bootstrap: config.msb.bus_bootstrap(),
        fund: payers.map(|payer| (Address::new(network, payer.0), OWN_FUNDS)).collect(),
        deployed: vec![config.subnet()],
        ..Options::new(config.dir.join(OWN_FOLDER))
    };
    let started = Embedded::start(options).await;
    let own = started.map_err(|source| NodeError::OwnBus { file: config.file.clone(), source })?;
    let url = config::own_url(own.address());
    info!(url, bootstrap = %own.bootstrap(), history = %own.log().display(), "a settlement bus of its own runs in this node");
    if unl.iter().any(|node| *node != config.key) {
        warn!(
            url,
            "the other members must settle on this node's bus too: msb.mode = \"http\" and its URL in their cfg/hp.cfg"
        );
    }
    Ok(Bus { client: client(config, &url)?, key, own: Some(own) })
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
    Bus { client, key, own }: Bus,
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
        bootstrap: config.msb.bus_bootstrap().expect("a file that settles names it"),
        pace: pace(config),
        slot: Duration::from_millis(config.msb.settle_slot_ms),
        dir: config.dir.clone(),
        headers,
    };
    info!(bus = setup.client.url(), subnet = %setup.subnet, "ledgers are settled");
    Settling { agent: Agent::start(setup, heard, say), tips, said, own }
}

impl Settling {
    /// Ends it; of a bus that runs here what is due is on disk then.
    pub(super) async fn stop(self) {
        let Settling { agent, own, .. } = self;
        drop(agent);
        if let Some(own) = own {
            own.stop().await;
        }
    }
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
    pub(super) fn settling_alerts(&self) -> Vec<Alert> {
        let Some(settling) = &self.settling else { return Vec::new() };
        let status = settling.agent.status();
        let kind = |about: &About| match about {
            About::Chain => Kind::SettlingChain,
            About::Journal => Kind::SettlingJournal,
            About::Bus => Kind::SettlingBus,
            About::Lie => Kind::SettlingLie,
            About::Alone => Kind::SettlingAlone,
            About::Refused => Kind::SettlingRefused,
            About::Balance => Kind::SettlingBalance,
        };
        status.about.iter().zip(status.alerts).map(|(about, text)| kind(about).with(text)).collect()
    }

    /// Where settling stands; null where nothing is settled by this node.
    pub(super) fn settling_status(&self) -> Value {
        self.settling.as_ref().map_or(Value::Null, |settling| json!(settling.agent.status()))
    }
}
