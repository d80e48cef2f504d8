//! The node's HTTP side: routes for wallets, apps and operators, events as they happen, and the page. Holds no votes.
//!
//! It has a thread of its own, so that no number of requests takes a turn of the thread that closes ledgers. What a route wants
//! to know it asks the node through [`Source`], whose answers are made beside that thread, or come from it a bounded number of
//! times a second.
//!
//! `serve` keeps connections within their limits, `api` is the router and the document that describes it, `routes` has one
//! file per area, `params` reads what comes from outside, `answer` is what goes out, `answers` describes it, `host` under which
//! names it answers, `page` the page.

mod answer;
mod answers;
mod api;
mod body;
mod command;
mod held;
mod host;
mod page;
mod params;
mod routes;
mod serve;
mod stall;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    pin::Pin,
    sync::Arc,
    thread,
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{broadcast, oneshot, watch},
};
use tracing::{debug, error};

pub use self::{answer::Failure, command::Draft};
use crate::{
    tls::Tls,
    types::{Hash, Seq, Sig, UserKey},
};

/// Threads that read files and the database for requests. Past it a read waits for its turn.
const READERS_MAX: usize = 4;

/// Time for connections to end when the node stops.
const STOP_TIME: Duration = Duration::from_millis(500);

/// What the HTTP side is allowed.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Address and port to listen on, and no other (`[http] listen`). Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Bytes of a request's body (`body_max`). A longer one is refused with 413.
    pub body_bytes_max: usize,
    /// Connections in all (`connections_max`). One more is closed at once.
    pub connections_max: usize,
    /// Connections from one address (`per_address`). One more is closed at once.
    pub per_address_max: usize,
    /// Origins of pages elsewhere that may read answers; `*` is any (`cors`).
    pub cors: Vec<String>,
    /// Host names under which it answers besides addresses and `localhost`, in lower case; `*` is any (`names`).
    pub names: Vec<String>,
    /// Whether inputs are taken and the contract is run for whoever asks (`api_tx_exposed`).
    pub api_tx_exposed: bool,
    /// What operators show (`admin_token_file`). `None`: nothing of theirs is done.
    pub admin_token: Option<AdminToken>,
    /// With what it speaks TLS; `None`: it speaks plain text.
    pub tls: Option<Tls>,
}

/// What an operator shows. Not in any log.
#[derive(Clone)]
pub struct AdminToken(Arc<str>);

impl AdminToken {
    /// Fewer characters could be guessed.
    pub const LENGTH_MIN: usize = 16;

    /// `None` when it is too short, or has anything but visible ASCII characters.
    pub fn new(text: &str) -> Option<AdminToken> {
        let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        (text.len() >= Self::LENGTH_MIN && is_visible).then(|| AdminToken(text.into()))
    }

    /// Whether this is it. How long that takes tells nothing but the length.
    fn is(&self, text: &str) -> bool {
        let differs = self.0.bytes().zip(text.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b));
        std::hint::black_box(differs) == 0 && self.0.len() == text.len()
    }
}

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken(..)")
    }
}

/// Why it does not start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Somebody else listens there.
    #[error("http.listen: {address} is taken by another program")]
    PortTaken {
        /// The address in question.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Any other reason.
    #[error("http.listen: cannot listen on {address}")]
    Listen {
        /// The address in question.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Which ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// By its number.
    Seq(Seq),
    /// By its hash.
    Hash(Hash),
    /// The newest.
    Last,
}

/// What a route wants to know, or to have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Whether it works and is in sync.
    Health,
    /// Where it stands.
    Status,
    /// Links to other nodes.
    Peers,
    /// Who decides.
    Unl,
    /// What the last rounds took.
    Rounds,
    /// What Prometheus reads: a text.
    Metrics {
        /// In OpenMetrics; else in the text format before that.
        open: bool,
    },
    /// What nodes have signed twice.
    Evidence,
    /// Where settling stands, and what was settled: from a ledger on; without one the newest, or the newest before a ledger.
    Settlements {
        /// The first ledger that is covered.
        from: Option<Seq>,
        /// Only what covers ledgers before this one.
        before: Option<Seq>,
        /// How many.
        limit: u64,
    },
    /// Ledgers from a number on, at most so many; the newest without a number.
    Ledgers {
        /// The first.
        from: Option<Seq>,
        /// How many.
        limit: u64,
    },
    /// One ledger.
    Ledger(Which),
    /// What the contract printed last.
    Log,
    /// Ledgers on which results differed; or the report on one.
    Divergence(Option<Seq>),
    /// A file of the contract's state.
    State {
        /// Its path below the state's folder.
        key: String,
        /// As the network agreed on it; else as this node's last run left it.
        confirmed: bool,
    },
    /// What the contract takes and gives.
    Schema,
    /// The next nonce of a user.
    Nonce(UserKey),
    /// What is needed to sign an input elsewhere.
    TxContext,
    /// What is to be signed.
    Prepare(Draft),
    /// Run the contract on a copy of the state, and change nothing.
    Simulate(SignedTx),
    /// Take an input.
    Submit {
        /// The input.
        tx: SignedTx,
        /// For what to wait.
        wait: Wait,
        /// For how long.
        timeout: Duration,
    },
    /// What became of an input.
    Input(Hash),
    /// What a user got in a ledger.
    Proof {
        /// Which ledger.
        seq: Seq,
        /// Who.
        user: UserKey,
    },
    /// The operator votes on the UNL.
    UnlVote(UnlVote),
    /// The operator takes that vote back.
    UnlWithdraw,
    /// The operator ends the node.
    Stop,
    /// Whom the operator wants no link with.
    Bans,
    /// The operator wants no link with a node for a time.
    Ban(Ban),
    /// The operator takes a ban back.
    Unban {
        /// Whose.
        node: String,
    },
}

/// An input that its user signs. Nothing of it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedTx {
    /// What the client takes for its id.
    pub tx: Hash,
    /// Who.
    pub user: UserKey,
    /// Unique among the user's.
    pub nonce: u64,
    /// The last ledger that may hold it.
    pub max_ledger: Seq,
    /// What the contract gets.
    pub payload: Vec<u8>,
    /// The user's signature over the id.
    pub sig: Sig,
}

/// What of an input's way is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Nothing.
    Not,
    /// That a closed ledger holds it.
    Accepted,
    /// That its outcome is agreed on.
    Output,
}

/// The vote that an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlVote {
    /// Whether the node is to come or to go.
    pub add: bool,
    /// Its key.
    pub node: String,
    /// Where it listens, as `host:port`, to be dialled from now on.
    pub peer: Option<String>,
    /// Also when too few members would be live to close ledgers.
    #[serde(default)]
    pub yes: bool,
}

/// The ban that an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ban {
    /// The node's key.
    pub node: String,
    /// For how many seconds; `None`: an hour.
    pub for_s: Option<u64>,
    /// Why, for operators.
    pub reason: Option<String>,
}

/// What comes of a question.
pub type Answer = Result<Value, Failure>;

/// An answer that is being made.
pub type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Something that happened in the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Ascending by one from the node's start.
    pub id: u64,
    /// What kind of thing.
    pub name: &'static str,
    /// One JSON object.
    pub data: String,
}

/// Events as they happen.
#[derive(Debug)]
pub struct Subscription {
    /// What happened since the event that was asked for, as far as it is kept.
    pub past: Vec<Arc<Event>>,
    /// What happens from now on.
    pub future: broadcast::Receiver<Arc<Event>>,
}

/// The node, as the routes see it.
pub trait Source: Send + Sync + 'static {
    /// Answers, beside the thread that closes ledgers.
    fn ask(&self, question: Question) -> Answering;

    /// Tells of everything that happens after the event with this number, or from now on. `None`: as many listen as may.
    fn events(&self, after: Option<u64>) -> Option<Subscription>;
}

/// The handle of a running HTTP side. Dropping it ends its connections soon.
#[derive(Debug)]
pub struct Http {
    local_addr: SocketAddr,
    stop: watch::Sender<bool>,
    ended: Option<oneshot::Receiver<()>>,
}

impl Http {
    /// Listens on `config.listen` and serves from now on.
    ///
    /// Errors name the address; `PortTaken` when somebody else listens there.
    pub fn start(config: HttpConfig, source: Arc<dyn Source>) -> Result<Http, HttpError> {
        let address = config.listen;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => HttpError::PortTaken { address, source },
            _ => HttpError::Listen { address, source },
        };
        let listener = StdListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(READERS_MAX)
            .thread_name("http-reader")
            .build()
            .map_err(failed)?;
        let (stop, stopping) = watch::channel(false);
        let (ending, ended) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => serve::serve(listener, config, source, stopping).await,
                    Err(error) => error!(%error, "cannot serve HTTP"),
                }
            });
            runtime.shutdown_timeout(STOP_TIME);
            // Whoever waits may be gone.
            let _ = ending.send(());
        };
        thread::Builder::new().name("http".to_owned()).spawn(serve).map_err(failed)?;
        debug!(%local_addr, "serving HTTP");
        Ok(Http { local_addr, stop, ended: Some(ended) })
    }

    /// Where it listens; the port is the real one.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Accepts no more, and ends every connection within a second.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(ended) = self.ended.take() {
            // It may have ended by itself.
            let _ = tokio::time::timeout(2 * STOP_TIME, ended).await;
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
