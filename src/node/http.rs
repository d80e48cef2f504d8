//! What the HTTP side is answered. Beside the loop: ledgers are read by threads of the HTTP side, from the database file and not
//! through the node's own connection; and what only the loop knows it is asked a bounded number of times a second, however many
//! want to know. `chain` reads ledgers, `wallet` is what wallets ask, `waiting` who waits for what becomes of an input.

mod chain;
mod waiting;
mod wallet;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::spawn_blocking,
};
use tracing::{error, info, warn};

pub(super) use self::waiting::{Agreed, Became, Waiting};
use super::{Node, NodeError, control, events::Events, metrics::Metrics, reads::Files, rounds};
use crate::{
    config::{Config, MsbMode, TlsFiles},
    consensus::header::{Input, InputKey},
    http::{AdminToken, Answer, Answering, Failure, Http, HttpConfig, Question, Source, Subscription},
    ledger::{Archive, Ledger, SettlementPage, view},
    signed::ReadFate,
    tls::Tls,
    types::{Hash, Seq, UserKey},
};

/// Questions for the loop that wait. Past it a request waits.
const ASKS_MAX: usize = 16;

/// So old may what the loop knows be when it is told.
const FRESH_TIME: Duration = Duration::from_millis(50);

/// Connections to the database that are kept for the next question.
const ARCHIVES_MAX: usize = 4;

/// Questions that the node's own connection to the database is asked at a time: it also writes what rounds wait for.
const LOOKS_MAX: usize = 2;

/// What only the loop knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Status,
    Unl,
    Rounds,
    /// What a wallet needs to sign.
    Context,
}

/// A question on its way to the loop, and where the answer goes.
#[derive(Debug)]
pub(super) enum Asked {
    Tell(Want, oneshot::Sender<Value>),
    /// As an operator at the node.
    Control(control::Request, oneshot::Sender<Value>),
    /// The next nonce of a user.
    Nonce(UserKey, oneshot::Sender<u64>),
    /// The ledger that has an input with this key.
    Find(InputKey, oneshot::Sender<Option<Seq>>),
    /// Take an input whose signature was checked.
    Submit(Box<Input>, Hash, oneshot::Sender<Became>),
    /// Run the contract on a copy of the state. Whoever asks is there as long as the channel is.
    Simulate(UserKey, Vec<u8>, watch::Receiver<()>, oneshot::Sender<ReadFate>),
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
    context: Known,
    archives: Mutex<Vec<Archive>>,
    chain_id: Hash,
    input_bytes_max: usize,
    input_window: u64,
    ledger: Ledger,
    /// Turns at the node's own connection to the database.
    looks: Semaphore,
    agreed: watch::Receiver<Agreed>,
    files: Files,
}

/// What of the node is at hand beside its loop.
pub(super) struct Parts<'a> {
    pub(super) chain_id: Hash,
    pub(super) events: &'a Events,
    pub(super) metrics: &'a Metrics,
    pub(super) ledger: &'a Ledger,
    pub(super) agreed: watch::Receiver<Agreed>,
    pub(super) files: Files,
}

/// Starts the HTTP side, where one is asked for. What it asks comes out of the channel.
pub(super) fn start(
    config: &Config,
    tls: Option<Tls>,
    parts: Parts<'_>,
) -> Result<(Option<Http>, mpsc::Receiver<Asked>), NodeError> {
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    let Some(listen) = config.http.listen else { return Ok((None, asked)) };
    let settings = HttpConfig {
        listen,
        body_bytes_max: config.http.body_max,
        connections_max: config.http.connections_max,
        per_address_max: config.http.per_address,
        cors: config.http.cors.clone(),
        names: config.http.names.clone(),
        api_tx_exposed: config.http.api_tx_exposed,
        admin_token: admin_token(config)?,
        tls,
    };
    let door = Door {
        dir: config.dir.clone(),
        asks,
        events: parts.events.clone(),
        metrics: parts.metrics.clone(),
        status: Known::default(),
        unl: Known::default(),
        rounds: Known::default(),
        context: Known::default(),
        archives: Mutex::default(),
        chain_id: parts.chain_id,
        input_bytes_max: usize::try_from(config.pubmaxsize).expect("at most 4 MiB"),
        input_window: config.consensus.input_window,
        ledger: parts.ledger.clone(),
        looks: Semaphore::new(LOOKS_MAX),
        agreed: parts.agreed,
        files: parts.files,
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
            Question::Metrics { open } => {
                let (metrics, status) = (self.metrics.clone(), self.known(Want::Status).await?);
                // It reads files.
                let text =
                    spawn_blocking(move || if open { metrics.text(&status) } else { metrics.plain_text(&status) });
                text.await.map(Value::String).map_err(|_| Failure::internal())
            }
            Question::Evidence => {
                let status = self.known(Want::Status).await?;
                Ok(json!({ "evidence": status["evidence"], "liars": status["liars"] }))
            }
            Question::Settlements { from, before, limit } => {
                let status = self.known(Want::Status).await?;
                let page = from.map_or(SettlementPage::Newest { before }, SettlementPage::From);
                let mut said = self.read(move |archive| chain::settlements(archive, page, limit)).await?;
                said["settlement"] = status["settlement"].clone();
                Ok(said)
            }
            Question::Ledgers { from, limit } => self.read(move |archive| chain::ledgers(archive, from, limit)).await,
            Question::Ledger(which) => self.read(move |archive| chain::ledger(archive, which)).await,
            Question::State { key, confirmed } => self.state(key, confirmed).await,
            Question::Schema => self.schema().await,
            Question::Nonce(user) => {
                let nonce = self.ask_loop(|answer| Asked::Nonce(user, answer)).await?;
                Ok(json!({ "nonce": nonce }))
            }
            Question::TxContext => Ok((*self.known(Want::Context).await?).clone()),
            Question::Prepare(draft) => self.prepare(draft).await,
            Question::Simulate(tx) => self.simulate(tx).await,
            Question::Submit { tx, wait, timeout } => self.submit(tx, wait, timeout).await,
            Question::Input(id) => self.input(id).await,
            Question::Proof { seq, user } => self.proof(seq, user).await,
            Question::UnlVote(vote) => {
                let crate::http::UnlVote { add, node, peer, yes } = vote;
                self.control(control::Request::UnlVote(control::UnlVote { add, node, peer, yes })).await
            }
            Question::UnlWithdraw => self.control(control::Request::UnlWithdraw).await,
            Question::Stop => self.control(control::Request::Stop).await,
            Question::Bans => self.control(control::Request::Bans).await,
            Question::Ban(crate::http::Ban { node, for_s, reason }) => {
                self.control(control::Request::Ban(control::Ban { node, for_s, reason })).await
            }
            Question::Unban { node } => self.control(control::Request::Unban { node }).await,
            Question::Log => {
                let dir = self.dir.join("log/contract");
                spawn_blocking(move || chain::log(&dir)).await.unwrap_or_else(|_| Err(Failure::internal()))
            }
            Question::Divergence(seq) => {
                let dir = self.dir.clone();
                spawn_blocking(move || chain::divergence(&dir, seq)).await.unwrap_or_else(|_| Err(Failure::internal()))
            }
        }
    }

    /// What the loop knows, as it was a moment ago at most. Who asks while it is being asked gets the same answer.
    async fn known(&self, want: Want) -> Result<Arc<Value>, Failure> {
        let known = match want {
            Want::Status => &self.status,
            Want::Unl => &self.unl,
            Want::Rounds => &self.rounds,
            Want::Context => &self.context,
        };
        let mut known = known.lock().await;
        if let Some((_, value)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH_TIME) {
            return Ok(value.clone());
        }
        let value = Arc::new(self.ask_loop(|answer| Asked::Tell(want, answer)).await?);
        *known = Some((Instant::now(), value.clone()));
        Ok(value)
    }

    async fn ask_loop<T>(&self, asked: impl FnOnce(oneshot::Sender<T>) -> Asked) -> Result<T, Failure> {
        let (answer, answered) = oneshot::channel();
        let stops = || Failure::busy("The node is stopping.");
        self.asks.send(asked(answer)).await.map_err(|_| stops())?;
        answered.await.map_err(|_| stops())
    }

    /// Has done what an operator asks for.
    async fn control(&self, request: control::Request) -> Answer {
        let value = self.ask_loop(|answer| Asked::Control(request, answer)).await?;
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

impl Node {
    /// Answers what only the loop knows.
    pub(super) fn on_http(&mut self, asked: Asked) -> Result<(), NodeError> {
        // Whoever asked may be gone: that an answer is not taken is no error.
        match asked {
            Asked::Tell(want, answer) => {
                let _ = answer.send(match want {
                    Want::Status => self.status(),
                    Want::Unl => self.unl_status(),
                    Want::Rounds => json!({ "rounds": self.rounds.json(rounds::ROUNDS_MAX) }),
                    Want::Context => self.tx_context(),
                });
            }
            Asked::Control(request, answer) => return self.on_request(control::Asked { request, answer }),
            Asked::Nonce(user, answer) => {
                let _ = answer.send(self.core.next_nonce(user));
            }
            Asked::Find(key, answer) => {
                let _ = answer.send(self.core.ledger_of(&key));
            }
            Asked::Submit(input, id, answer) => return self.submit_over_http(*input, id, answer),
            Asked::Simulate(user, payload, left, answer) => self.simulate(user, payload, left, answer),
        }
        Ok(())
    }

    /// The ports that speak TLS, for [`reload_tls`].
    pub fn tls_ports(&self) -> Vec<Tls> {
        self.tls.clone()
    }

    /// Whether the user port speaks TLS.
    pub fn has_user_tls(&self) -> bool {
        self.config.user.tls.is_some()
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
