//! What the HTTP side is answered. Beside the loop: ledgers are read by threads of the HTTP side, from the database file and not
//! through the node's own connection; and what only the loop knows it is asked a bounded number of times a second, however many
//! want to know.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};
use tracing::{error, info, warn};

use super::{Node, NodeError, control, events::Events, metrics::Metrics, rounds};
use crate::{
    config::{Config, MsbMode, TlsFiles},
    contract,
    divergence::folder,
    http::{AdminToken, Answer, Answering, Failure, Http, HttpConfig, Question, Source, Subscription, Which},
    ledger::{
        Archive, Depth,
        view::{self, Chain},
    },
    tls::Tls,
    types::Seq,
};

/// Questions for the loop that wait. Past it a request waits.
const ASKS_MAX: usize = 16;

/// So old may what the loop knows be when it is told.
const FRESH_TIME: Duration = Duration::from_millis(50);

/// Bytes of the end of each of the contract's logs that are shown.
const LOG_BYTES_MAX: u64 = 16 << 10;

/// Connections to the database that are kept for the next question.
const ARCHIVES_MAX: usize = 4;

/// What only the loop knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Status,
    Unl,
    Rounds,
}

/// What the loop is asked.
#[derive(Debug)]
enum Ask {
    Tell(Want),
    /// As an operator at the node.
    Control(control::Request),
}

/// A question on its way to the loop.
#[derive(Debug)]
pub(super) struct Asked {
    ask: Ask,
    answer: oneshot::Sender<Value>,
}

/// What is known of one thing, and since when.
type Known = tokio::sync::Mutex<Option<(Instant, Arc<Value>)>>;

/// Where the HTTP side asks.
struct Door {
    dir: PathBuf,
    asks: mpsc::Sender<Asked>,
    events: Events,
    metrics: Metrics,
    status: Known,
    unl: Known,
    rounds: Known,
    archives: Mutex<Vec<Archive>>,
}

/// Starts the HTTP side, where one is asked for. What it asks comes out of the channel.
pub(super) fn start(
    config: &Config,
    tls: Option<Tls>,
    events: &Events,
    metrics: &Metrics,
) -> Result<(Option<Http>, mpsc::Receiver<Asked>), NodeError> {
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    let Some(listen) = config.http.listen else { return Ok((None, asked)) };
    let settings = HttpConfig {
        listen,
        body_bytes_max: config.http.body_max,
        connections_max: config.http.connections_max,
        per_address_max: config.http.per_address,
        cors: config.http.cors.clone(),
        api_tx_exposed: config.http.api_tx_exposed,
        admin_token: admin_token(config)?,
        tls,
    };
    let door = Door {
        dir: config.dir.clone(),
        asks,
        events: events.clone(),
        metrics: metrics.clone(),
        status: Known::default(),
        unl: Known::default(),
        rounds: Known::default(),
        archives: Mutex::default(),
    };
    Ok((Some(Http::start(settings, Arc::new(Arc::new(door)))?), asked))
}

/// What a port speaks TLS with, if it does. Tells of a certificate whose time is over.
pub(super) fn load_tls(config: &Config, table: &str, files: Option<&TlsFiles>) -> Result<Option<Tls>, NodeError> {
    let Some(files) = files else { return Ok(None) };
    let tls = Tls::load(files).map_err(|error| NodeError::Http {
        file: config.file.clone(),
        why: format!("{table}.tls_cert, {table}.tls_key: {:#}", anyhow::Error::new(error)),
    })?;
    warn_if_expired(&tls);
    Ok(Some(tls))
}

fn warn_if_expired(tls: &Tls) {
    if let Some(end_ms) = tls.not_after_ms().filter(|end_ms| *end_ms < super::wall_ms()) {
        let (path, ended) = (tls.cert_path().display(), view::utc(end_ms));
        warn!(%path, ended, "the certificate has expired: clients refuse it; put a new one there and send SIGHUP");
    }
}

/// Reads certificates and keys again. A broken file leaves what was there before.
pub fn reload_tls(ports: &[Tls]) {
    for tls in ports {
        match tls.reload() {
            Ok(()) => {
                info!(path = %tls.cert_path().display(), "certificate and key were read again");
                warn_if_expired(tls);
            }
            Err(error) => error!(
                error = &error as &dyn std::error::Error,
                "the new certificate or key cannot be used; the port goes on with the old ones"
            ),
        }
    }
}

/// Reads the token of operators.
fn admin_token(config: &Config) -> Result<Option<AdminToken>, NodeError> {
    let Some(path) = &config.http.admin_token_file else { return Ok(None) };
    let wrong =
        |why: String| NodeError::Http { file: config.file.clone(), why: format!("http.admin_token_file: {why}") };
    let text = crate::config::read_secret(path).map_err(|error| wrong(format!("{:#}", anyhow::Error::new(error))))?;
    let short = || {
        let least = AdminToken::LENGTH_MIN;
        wrong(format!("{}: a token has {least} visible ASCII characters or more, on one line", path.display()))
    };
    Ok(Some(AdminToken::new(text.trim()).ok_or_else(short)?))
}

impl Source for Arc<Door> {
    fn ask(&self, question: Question) -> Answering {
        let door = self.clone();
        Box::pin(async move { door.answer(question).await })
    }

    fn events(&self, after: Option<u64>) -> Option<Subscription> {
        self.events.listen(after)
    }
}

impl Door {
    async fn answer(self: Arc<Door>, question: Question) -> Answer {
        match question {
            Question::Health => health(&*self.known(Want::Status).await?),
            Question::Status => Ok(for_wallets(&*self.known(Want::Status).await?)),
            Question::Peers => {
                let status = self.known(Want::Status).await?;
                Ok(json!({ "node": status["node"], "peers": status["links"], "suspects": status["suspects"] }))
            }
            Question::Unl => Ok((*self.known(Want::Unl).await?).clone()),
            Question::Rounds => Ok((*self.known(Want::Rounds).await?).clone()),
            Question::Metrics => {
                let (metrics, status) = (self.metrics.clone(), self.known(Want::Status).await?);
                // It reads files.
                let text = spawn_blocking(move || metrics.text(&status)).await;
                text.map(Value::String).map_err(|_| Failure::internal())
            }
            Question::Evidence => {
                let status = self.known(Want::Status).await?;
                Ok(json!({ "evidence": status["evidence"], "liars": status["liars"] }))
            }
            Question::Settlements => {
                let status = self.known(Want::Status).await?;
                Ok(json!({ "settlement": status["settlement"] }))
            }
            Question::Ledgers { from, limit } => self.read(move |archive| ledgers(archive, from, limit)).await,
            Question::Ledger(which) => self.read(move |archive| ledger(archive, which)).await,
            Question::UnlVote(vote) => {
                let crate::http::UnlVote { add, node, peer, yes } = vote;
                self.control(control::Request::UnlVote(control::UnlVote { add, node, peer, yes })).await
            }
            Question::UnlWithdraw => self.control(control::Request::UnlWithdraw).await,
            Question::Log => {
                let dir = self.dir.join("log/contract");
                spawn_blocking(move || log(&dir)).await.unwrap_or_else(|_| Err(Failure::internal()))
            }
            Question::Divergence(seq) => {
                let dir = self.dir.clone();
                spawn_blocking(move || divergence(&dir, seq)).await.unwrap_or_else(|_| Err(Failure::internal()))
            }
        }
    }

    /// What the loop knows, as it was a moment ago at most. Who asks while it is being asked gets the same answer.
    async fn known(&self, want: Want) -> Result<Arc<Value>, Failure> {
        let known = match want {
            Want::Status => &self.status,
            Want::Unl => &self.unl,
            Want::Rounds => &self.rounds,
        };
        let mut known = known.lock().await;
        if let Some((_, value)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH_TIME) {
            return Ok(value.clone());
        }
        let value = Arc::new(self.ask_loop(Ask::Tell(want)).await?);
        *known = Some((Instant::now(), value.clone()));
        Ok(value)
    }

    async fn ask_loop(&self, ask: Ask) -> Answer {
        let (answer, answered) = oneshot::channel();
        let stops = || Failure::busy("The node is stopping.");
        self.asks.send(Asked { ask, answer }).await.map_err(|_| stops())?;
        answered.await.map_err(|_| stops())
    }

    /// Has done what an operator asks for.
    async fn control(&self, request: control::Request) -> Answer {
        let value = self.ask_loop(Ask::Control(request)).await?;
        match value["error"].as_str() {
            None => Ok(value),
            Some(why) => Err(Failure { status: 409, error: why.to_owned() }),
        }
    }

    /// Asks the database, on a thread for that.
    async fn read(self: Arc<Door>, read: impl FnOnce(&Archive) -> Answer + Send + 'static) -> Answer {
        let reading = move || {
            let kept = self.archives.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let archive = match kept {
                Some(archive) => archive,
                None => Archive::open(&self.dir).map_err(|error| unreadable(&error))?,
            };
            let answer = read(&archive);
            let mut archives = self.archives.lock().unwrap_or_else(PoisonError::into_inner);
            if archives.len() < ARCHIVES_MAX {
                archives.push(archive);
            }
            answer
        };
        spawn_blocking(reading).await.unwrap_or_else(|broken| {
            error!(%broken, "reading for an HTTP client broke");
            Err(Failure::internal())
        })
    }
}

/// The client hears that something is wrong here, the log what.
fn unreadable(error: &(dyn std::error::Error + 'static)) -> Failure {
    warn!(error, "cannot answer an HTTP client");
    Failure::internal()
}

fn health(status: &Value) -> Answer {
    match (status["synced"].as_bool(), status["split"].as_bool()) {
        (Some(true), _) => Ok(json!({ "ok": true })),
        _ => Err(Failure::busy(format!(
            "The node is not in sync: it has ledger {} of {}.",
            status["seq"], status["network_seq"]
        ))),
    }
}

/// The status, with what wallets look for where they look for it.
fn for_wallets(status: &Value) -> Value {
    let live: Vec<&Value> = status["live"].as_array().into_iter().flatten().collect();
    let unl: Vec<Value> = status["unl"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|node| json!({ "node": node, "live": live.contains(&node) }))
        .collect();
    let settlement = &status["settlement"];
    let is_member = status["role"] == "member";
    let peer = json!({
        "pubKeyHex": status["node"], "writerKeyHex": status["node"], "msbAddress": settlement["address"],
        "baseWritable": status["synced"], "isIndexer": is_member, "isWriter": is_member,
        "subnetBootstrapHex": status["contract"], "subnetSignedLength": status["seq"],
        "subnetUnsignedLength": status["network_seq"],
        "node": status["node"], "contract": status["contract"], "chain": status["chain"], "role": status["role"],
        "seq": status["seq"], "lcl": status["lcl"], "synced": status["synced"], "attempt": status["attempt"],
        "stage": status["stage"], "unl": unl, "peers": status["links"].as_array().map_or(0, Vec::len),
        "users": status["users"], "last_run": status["last_run"], "version": status["version"],
    });
    let msb = json!({
        "mode": status["msb"]["mode"], "ready": settlement["reachable"].as_bool().unwrap_or(false),
        "networkId": status["msb"]["networkId"], "bootstrap": status["msb"]["bootstrap"],
        "bootstrapHex": status["msb"]["bootstrap"], "settled_seq": settlement["settled_seq"],
        "unsettled_ledgers": settlement["unsettled_ledgers"],
        "oldest_unsettled_age_s": settlement["oldest_unsettled_ms"].as_u64().map(|ms| ms / 1_000),
        "balance": settlement["balance"], "address": settlement["address"],
    });
    let mut node = status.clone();
    // Of use on the node's own machine alone.
    node.as_object_mut().map(|node| node.remove("pid"));
    json!({ "peer": peer, "msb": msb, "node": node })
}

fn ledgers(archive: &Archive, from: Option<Seq>, limit: u64) -> Answer {
    let chain = Chain::read(archive).map_err(|error| unreadable(&error))?;
    let first = from.unwrap_or_else(|| (chain.tip + 1).saturating_sub(limit)).max(1);
    let last = chain.tip.min(first.saturating_add(limit - 1));
    let mut ledgers = Vec::new();
    let read = view::read(archive, first, last, Depth::Closed, |ledger| {
        ledgers.push(view::summary(&ledger, &chain));
        Ok::<(), view::Unreadable>(())
    });
    read.map_err(|error| unreadable(&error))?;
    Ok(json!({ "ledgers": ledgers, "tip": chain.tip }))
}

fn ledger(archive: &Archive, which: Which) -> Answer {
    let chain = Chain::read(archive).map_err(|error| unreadable(&error))?;
    let seq = match which {
        Which::Seq(seq) => seq,
        Which::Last => chain.tip,
        Which::Hash(hash) => {
            let found = archive.seq_of(hash).map_err(|error| unreadable(&error))?;
            found.ok_or_else(|| Failure::not_found(format!("There is no ledger {hash} here.")))?
        }
    };
    if seq == 0 {
        return Ok(chain.json());
    }
    let page = match seq <= chain.tip {
        true => view::read_page(archive, seq, seq, Depth::All).map_err(|error| unreadable(&error))?,
        false => Vec::new(),
    };
    let missing = || Failure::not_found(format!("There is no ledger {seq} here: the last one is {}.", chain.tip));
    let ledger = page.into_iter().next().flatten().ok_or_else(missing)?;
    Ok(view::json(&ledger, &chain))
}

fn log(dir: &std::path::Path) -> Answer {
    let streams = contract::log_ends(dir, LOG_BYTES_MAX).map_err(|error| unreadable(&error))?;
    let streams: Vec<Value> = streams.into_iter().map(|(name, text)| json!({ "name": name, "text": text })).collect();
    Ok(json!({ "streams": streams }))
}

fn divergence(dir: &std::path::Path, seq: Option<Seq>) -> Answer {
    let report = |seq| folder::read_report(dir, seq).map_err(|error| unreadable(&error));
    match seq {
        Some(seq) => {
            let missing = || Failure::not_found(format!("There is no report on ledger {seq} here."));
            let report = report(seq)?.ok_or_else(missing)?;
            serde_json::to_value(report).map_err(|error| unreadable(&error))
        }
        None => {
            let mut found = Vec::new();
            for seq in folder::list(dir).map_err(|error| unreadable(&error))? {
                let report = report(seq)?;
                let (kind, groups) = (report.as_ref().map(|it| it.kind), report.as_ref().map(|it| it.groups.len()));
                found.push(json!({ "seq": seq, "kind": kind, "groups": groups }));
            }
            Ok(json!({ "divergence": found }))
        }
    }
}

impl Node {
    /// Answers what only the loop knows.
    pub(super) fn on_http(&mut self, asked: Asked) -> Result<(), NodeError> {
        let Asked { ask, answer } = asked;
        let value = match ask {
            Ask::Tell(Want::Status) => self.status(),
            Ask::Tell(Want::Unl) => self.unl_status(),
            Ask::Tell(Want::Rounds) => json!({ "rounds": self.rounds.json(rounds::ROUNDS_MAX) }),
            Ask::Control(request) => return self.on_request(control::Asked { request, answer }),
        };
        // Whoever asked may be gone.
        let _ = answer.send(value);
        Ok(())
    }

    /// The ports that speak TLS, for [`reload_tls`].
    pub fn tls_ports(&self) -> Vec<Tls> {
        self.tls.clone()
    }

    /// Where the HTTP side is reached, if there is one.
    pub fn http_url(&self) -> Option<String> {
        let scheme = if self.config.http.tls.is_some() { "https" } else { "http" };
        self.http.as_ref().map(|http| format!("{scheme}://{}", http.local_addr()))
    }

    /// What a wallet must know of the bus, without asking it.
    pub(super) fn msb_identity(&self) -> Value {
        let msb = &self.config.msb;
        json!({
            "mode": match msb.mode { MsbMode::Off => "off", MsbMode::Http(_) => "http", MsbMode::Embedded(_) => "embedded" },
            "networkId": super::settle::network(msb.network).id(),
            "bootstrap": msb.bus_bootstrap().map(|hash| hash.to_string()),
            "subnet": self.config.subnet().to_string(),
        })
    }
}
