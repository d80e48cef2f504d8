//! `hp msb verify`: is what the chain records as settled what it leads to, and does the bus have it?

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Trust, chain::Chain, wallet};
use crate::{
    cli::{Exit, Failure, Outcome, answer},
    config::{Config, bus_bootstrap},
    node::settle::network,
    settlement::{
        client::{Client, ClientError},
        record::nonce,
        schedule::{Pace, Schedule, Settled},
        tx::{Operation, Tx},
    },
    types::{Hash, Seq},
};

/// Time for one answer of the bus.
const ANSWER_TIME: Duration = Duration::from_secs(15);

const EXAMPLES: &str = "\
Examples:
  hp msb verify mynode                                  on the bus that mynode's cfg/hp.cfg names
  hp msb verify mynode --url http://127.0.0.1:5000      on this one
  hp msb verify chain --bootstrap 5555... --url ...     of an export (hp ledger export), with nothing else
  hp msb verify mynode --offline                        what the chain says alone

For each settlement that the chain records: makes its record again out of the headers, and checks that its content hash is
what the ledger says, that no range is left out, and that the bus has confirmed a transaction with this content, subnet and nonce
at the place that the ledger says. Anybody with the chain and a URL can do this. That the ledgers themselves are right, `hp
ledger verify` checks.

Exit codes: 0 right, 1 wrong (what is said first), 4 the database cannot be read, 6 the bus does not answer.";

/// Check what is settled against the bus.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Verify {
    /// The contract folder of a node, or the folder of an export
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// The bus [default: that of DIR/cfg/hp.cfg]
    #[arg(long, conflicts_with = "offline")]
    url: Option<String>,
    #[command(flatten)]
    trust: Trust,
    /// The bus's bootstrap [default: what the chain's nodes agreed on]
    #[arg(long, value_name = "HASH")]
    bootstrap: Option<Hash>,
    /// Ask no bus
    #[arg(long)]
    offline: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// What the chain says.
struct Found {
    settled: Vec<Settled>,
    /// The first ledger that no settlement covers.
    unsettled_from: Seq,
    /// The first settlement whose range is here.
    passed_over: Option<Seq>,
}

impl Verify {
    pub(super) fn run(self) -> Outcome {
        let chain = Chain::open(&self.dir)?;
        let found = follow(&chain)?;
        let client = self.client(&chain)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        let mut told = Vec::new();
        for settled in &found.settled {
            let requester = match &client {
                None => None,
                Some(client) => Some(runtime.block_on(self.on_bus(client, &chain, settled))?),
            };
            if self.json { told.push(json(settled, requester)) } else { answer(&text(settled, requester.as_deref()))? }
        }
        let bus = client.as_ref().map(Client::url);
        if self.json {
            let found = json!({
                "ok": true, "bus": bus, "settlements": told, "tip": chain.tip, "unsettled_from": found.unsettled_from,
                "not_checked_up_to": found.passed_over,
            });
            return answer(&format!("{found}\n"));
        }
        let count = found.settled.len();
        let plural = if count == 1 { "" } else { "s" };
        let mut last = match found.passed_over {
            Some(seq) => format!("not checked: what was settled up to ledger {seq}; its headers are not here\n"),
            None => String::new(),
        };
        last += &match (count, bus) {
            (0, _) => "nothing is settled yet\n".to_owned(),
            (_, Some(bus)) => format!("ok: {count} settlement{plural}, all of them on the bus at {bus}\n"),
            (_, None) => format!("ok: {count} settlement{plural}; no bus was asked\n"),
        };
        if found.unsettled_from <= chain.tip {
            last += &format!("ledgers {} to {} are not settled\n", found.unsettled_from, chain.tip);
        }
        answer(&last)
    }

    fn client(&self, chain: &Chain) -> Result<Option<Client>, Failure> {
        if self.offline {
            return Ok(None);
        }
        let of_folder = Config::load_of_another(&Config::path(&self.dir)).ok();
        let of_folder = of_folder.and_then(|config| wallet::configured(&config.msb, &self.dir));
        let (configured, ca_file) = of_folder.map_or((None, None), |bus| (Some(bus.url), bus.ca_file));
        let Some(url) = self.url.clone().or(configured) else {
            let what = anyhow::anyhow!("{} names no bus: give --url, or --offline", self.dir.display());
            return Err(Failure::new(Exit::Usage, what));
        };
        // Whose configuration is read as another one's, its paths are as they are written.
        let authorities = self.trust.authorities(ca_file.map(|file| self.dir.join(file)))?;
        let client = Client::trusting(&url, network(chain.settings.msb_network), authorities.as_ref());
        let client = client.context("--url")?;
        Ok(Some(client.with_timeout(ANSWER_TIME)))
    }

    /// Asks the bus for the transaction of a settlement, and checks it. Who paid for it.
    async fn on_bus(&self, client: &Client, chain: &Chain, settled: &Settled) -> Result<String, Failure> {
        let Settled { settlement, .. } = settled;
        let range = format!("ledgers {} to {}", settled.record.first, settled.record.last);
        let wrong = |what: String| Failure::new(Exit::Failed, anyhow::anyhow!("{range}: {what}"));
        let landed = client.tx(&settlement.tx).await.map_err(unanswered)?;
        let landed = landed.ok_or_else(|| wrong(format!("the bus has no transaction {}", settlement.tx)))?;
        landed.check(&settlement.tx, client.network()).map_err(|lie| wrong(format!("the bus lies: {lie}")))?;
        let Operation::Tx(tx) = &landed.signed.operation else {
            return Err(wrong(format!("{} is no transaction of type 12", settlement.tx)));
        };
        let contract = chain.genesis.contract_id;
        let agreed = bus_bootstrap(chain.settings.msb_network, chain.settings.msb_bootstrap.0);
        let mbs = self.bootstrap.or(agreed).unwrap_or(tx.mbs);
        let bs = chain.settings.msb_subnet.0.unwrap_or(contract);
        let expected = Tx { txv: tx.txv, iw: contract, ch: settlement.ch, bs, mbs, nonce: nonce(&settlement.ch) };
        if *tx != expected {
            return Err(wrong(format!("{} says something else: {tx:?}, and not {expected:?}", settlement.tx)));
        }
        let place = settlement.confirmed_length;
        let there = client.tx_hashes(place, place + 1).await.map_err(unanswered)?;
        if !there.iter().any(|at| at.hash == settlement.tx && at.confirmed_length == place) {
            return Err(wrong(format!("{} is not at place {place} of the bus", settlement.tx)));
        }
        Ok(landed.signed.requester.to_string())
    }
}

fn unanswered(error: ClientError) -> Failure {
    Failure::new(Exit::NoAnswer, error)
}

/// The last settlement before the headers that are here, and the ledger that it goes up to: 0 where nothing is missing.
fn begin(chain: &Chain) -> Result<Seq, Failure> {
    let (mut first, mut base) = (None, None);
    chain.headers(|header, _| {
        let first = *first.get_or_insert(header.seq);
        let settled = header.settlement.as_ref().map_or(0, |settlement| settlement.seq);
        if base.is_none() && settled + 1 >= first {
            base = Some(settled);
        }
        Ok(())
    })?;
    match (first, base) {
        (None, _) => Ok(0),
        (_, Some(base)) => Ok(base),
        _ => {
            let what = "the headers since the last settlement are not all here: ask a node that has the whole chain";
            Err(Failure::new(Exit::Failed, anyhow::anyhow!(what)))
        }
    }
}

/// Follows the headers that are here.
fn follow(chain: &Chain) -> Result<Found, Failure> {
    let settings = &chain.settings;
    let pace = Pace { every: settings.settle_every, max_delay_ms: settings.settle_max_delay_s * 1_000 };
    let base = begin(chain)?;
    // Nothing depends on the time of the ledger before, but in the first one.
    let mut schedule = Schedule::behind(chain.genesis.contract_id, chain.genesis.time_ms, pace, base);
    let mut found = Found { settled: Vec::new(), unsettled_from: base + 1, passed_over: (base > 0).then_some(base) };
    let mut parent = (base == 0).then(|| (0, chain.genesis.chain_id()));
    chain.headers(|header, hash| {
        let wrong = |what: String| Failure::new(Exit::Failed, anyhow::anyhow!("ledger {}: {what}", header.seq));
        match parent {
            Some((seq, _)) if header.seq != seq + 1 => return Err(wrong(format!("ledger {} is missing", seq + 1))),
            Some((_, parent)) if header.parent != parent => {
                return Err(wrong("it does not follow the ledger before".to_owned()));
            }
            _ => parent = Some((header.seq, hash)),
        }
        if header.seq > base {
            found.settled.extend(schedule.next(&header).map_err(|error| wrong(error.to_string()))?);
            found.unsettled_from = schedule.unsettled_from();
        }
        Ok(())
    })?;
    Ok(found)
}

fn text(settled: &Settled, requester: Option<&str>) -> String {
    let Settled { record, settlement, recorded_in } = settled;
    let paid = requester.map(|address| format!("\n  paid by     {address}")).unwrap_or_default();
    format!(
        "ledgers {} to {}\n  content     {}\n  transaction {} at {}{paid}\n  recorded in ledger {recorded_in}\n",
        record.first, record.last, settlement.ch, settlement.tx, settlement.confirmed_length
    )
}

fn json(settled: &Settled, requester: Option<String>) -> Value {
    let Settled { record, settlement, recorded_in } = settled;
    json!({
        "first": record.first, "last": record.last, "lcl": record.lcl.to_string(),
        "outputs_root": record.outputs_root.to_string(), "state_root": record.state_root.to_string(),
        "prev": record.prev.to_string(), "ch": settlement.ch.to_string(), "tx": settlement.tx.to_string(),
        "confirmed_length": settlement.confirmed_length, "recorded_in": recorded_in, "requester": requester,
    })
}
