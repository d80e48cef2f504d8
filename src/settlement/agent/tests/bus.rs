//! A bus as far as the agent asks for it, over real HTTP, that can be made to do whatever a bus may do wrong.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    crypto::SecretKey,
    settlement::{
        Address, Amount, Network,
        tx::{Completion, Landed, Operation, Signed, TX, Tx},
    },
    types::Hash,
};

pub const NETWORK: Network = Network::Development;
pub const MBS: Hash = Hash([0x55; 32]);
pub const BS: Hash = Hash([0x44; 32]);
pub const FEE: u128 = 30;

/// What it holds, and how it behaves.
pub struct Inner {
    pub txv: Hash,
    /// In the bus's order, from place 1 on.
    pub landed: Vec<Landed>,
    /// Of them, so many are confirmed; `None`: all.
    pub confirmed: Option<usize>,
    pub balances: BTreeMap<String, u128>,
    pub is_deployed: bool,
    /// Posts that came.
    pub posts: usize,
    /// What happens to the next posts, one after the other; then what should.
    pub faults: Vec<Fault>,
    /// Whether it shows another content than what landed.
    pub lies: bool,
    /// Whether it answers at all.
    pub hangs: bool,
}

/// What goes wrong with a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It lands, and the connection breaks without an answer.
    LostReply,
    /// It lands, and the answer is 429.
    BusyThoughLanded,
    /// The answer is 200, and it does not land.
    OkThoughLost,
    /// The answer is 500.
    Broken,
}

type Shared = Arc<Mutex<Inner>>;
type Answer = Result<Json<Value>, (StatusCode, Json<Value>)>;

pub struct Bus {
    inner: Shared,
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Bus {
    pub async fn start() -> Bus {
        let inner = Arc::new(Mutex::new(Inner {
            txv: Hash([0x66; 32]),
            landed: Vec::new(),
            confirmed: None,
            balances: BTreeMap::new(),
            is_deployed: true,
            posts: 0,
            faults: Vec::new(),
            lies: false,
            hangs: false,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = serve(listener, inner.clone());
        Bus { inner, address, task }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Nobody listens any more.
    pub async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Somebody does again, at the same address.
    pub async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.task = serve(listener, self.inner.clone());
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn serve(listener: TcpListener, inner: Shared) -> JoinHandle<()> {
    let routes = Router::new()
        .route("/v1/fee", get(|| async { Json(json!({ "fee": FEE.to_string() })) }))
        .route("/v1/txv", get(txv))
        .route("/v1/balance/{address}", get(balance))
        .route("/v1/broadcast-transaction", post(broadcast))
        .route("/v1/tx/{hash}", get(tx))
        .route("/v1/tx/details/{hash}", get(details))
        .with_state(inner);
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() })
}

fn refuse(status: u16, error: &str) -> (StatusCode, Json<Value>) {
    (StatusCode::from_u16(status).unwrap(), Json(json!({ "error": error })))
}

/// The bus, once it answers.
async fn awake(shared: &Shared) -> MutexGuard<'_, Inner> {
    while shared.lock().unwrap().hangs {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shared.lock().unwrap()
}

async fn txv(State(shared): State<Shared>) -> Json<Value> {
    Json(json!({ "txv": awake(&shared).await.txv.to_string() }))
}

async fn balance(State(shared): State<Shared>, Path(address): Path<String>) -> Json<Value> {
    let balance = awake(&shared).await.balances.get(&address).copied().unwrap_or(0);
    Json(json!({ "address": address, "balance": balance.to_string() }))
}

async fn broadcast(State(shared): State<Shared>, Json(body): Json<Value>) -> Answer {
    let (fault, taken) = {
        let mut inner = awake(&shared).await;
        inner.posts += 1;
        let fault = if inner.faults.is_empty() { None } else { Some(inner.faults.remove(0)) };
        let taken = match fault {
            Some(Fault::OkThoughLost | Fault::Broken) => Ok(Hash::ZERO),
            _ => inner.take(body["payload"].as_str().unwrap()),
        };
        (fault, taken)
    };
    match (fault, taken) {
        // As good as no answer: the connection is of no use.
        (Some(Fault::LostReply), _) => std::future::pending().await,
        (Some(Fault::BusyThoughLanded), _) => {
            Err(refuse(429, "Failed to broadcast transaction after multiple attempts."))
        }
        (Some(Fault::Broken), _) => Err(refuse(500, "An internal error occurred.")),
        (_, Err(())) => Err(refuse(400, "Invalid transaction payload.")),
        (_, Ok(hash)) => Ok(Json(json!({
            "result": { "tx": hash.to_string(), "signedLength": 1, "unsignedLength": 1, "message": "" }
        }))),
    }
}

impl Inner {
    fn take(&mut self, payload: &str) -> Result<Hash, ()> {
        let value: Value = serde_json::from_slice(&STANDARD.decode(payload).unwrap()).unwrap();
        let hash = |name: &str| value["txo"][name].as_str().unwrap().parse::<Hash>().unwrap();
        let tx = Tx {
            txv: hash("txv"),
            iw: hash("iw"),
            ch: hash("ch"),
            bs: hash("bs"),
            mbs: hash("mbs"),
            nonce: hash("in"),
        };
        let requester = Address::parse(value["address"].as_str().unwrap(), NETWORK).unwrap();
        let sig = value["txo"]["is"].as_str().unwrap().parse().unwrap();
        let signed = Signed { requester, operation: Operation::Tx(tx.clone()), hash: hash("tx"), sig };
        assert_eq!(value["type"], TX);
        assert!(signed.is_right(NETWORK), "the agent signs what it posts");
        let balance = self.balances.entry(requester.to_string()).or_insert(0);
        let is_known = self.landed.iter().any(|landed| landed.signed.hash == signed.hash);
        let is_right = tx.txv == self.txv && (tx.bs, tx.mbs) == (BS, MBS) && self.is_deployed;
        if is_known || !is_right || *balance < FEE {
            return Err(());
        }
        *balance -= FEE;
        let validator = SecretKey::from_seed([9; 32]);
        let completion = Completion::new(NETWORK, &signed.hash, TX, Hash([0x99; 32]), &validator);
        let hash = signed.hash;
        self.landed.push(Landed { signed, completion });
        Ok(hash)
    }

    fn find(&self, hash: &str, with_unconfirmed: bool) -> Option<(usize, Value)> {
        let confirmed = self.confirmed.filter(|_| !with_unconfirmed).unwrap_or(self.landed.len());
        let at = self.landed.iter().take(confirmed).position(|landed| landed.signed.hash.to_string() == hash)?;
        let mut landed = self.landed[at].clone();
        if let (true, Operation::Tx(tx)) = (self.lies, &mut landed.signed.operation) {
            tx.ch = Hash([0xee; 32]);
        }
        Some((at + 1, serde_json::from_str(&landed.to_json()).unwrap()))
    }
}

async fn tx(State(shared): State<Shared>, Path(hash): Path<String>) -> Answer {
    let found = awake(&shared).await.find(&hash, false);
    let (_, details) = found.ok_or_else(|| refuse(404, &format!("Transaction {hash} not found.")))?;
    Ok(Json(json!({ "txDetails": details })))
}

async fn details(
    State(shared): State<Shared>,
    Path(hash): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Answer {
    let found = awake(&shared).await.find(&hash, query["confirmed"] == "false");
    let (place, details) = found.ok_or_else(|| refuse(404, &format!("No payload found for tx hash: {hash}")))?;
    Ok(Json(json!({ "txDetails": details, "confirmed_length": place, "fee": Amount(FEE).0.to_string() })))
}
