//! Speaks a bus's HTTP API: every route as a method, over one connection that is kept.
//!
//! Everything that comes is from a stranger: bounded, and read into types. A broadcast's answer says what that server did,
//! never whether the operation is on the bus; [`Client::tx`] asks for that.

mod answers;
mod error;
#[cfg(test)]
mod tests;
mod trust;

use std::time::Duration;

use reqwest::{Method, Response, Url, redirect::Policy};
use serde_json::{Value, json};

pub use self::{
    answers::{About, Account, Broadcast, Details, HashAt, Payloads, View},
    error::{ClientError, UrlError},
    trust::{Authorities, AuthoritiesError},
};
use super::{Address, Amount, Network, tx::Landed};
use crate::types::Hash;

/// Bytes of a usual answer. A longer one is malformed, and not read further.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Bytes of an answer to `POST /v1/tx-payloads-bulk`; the bus itself stops at 2,000,000.
const BULK_ANSWER_BYTES_MAX: usize = 2_100_000;

/// Bytes of an error's text that are kept.
const ERROR_BYTES_MAX: usize = 4_096;

/// Hashes that the bus takes in one `POST /v1/tx-payloads-bulk`.
pub const BULK_HASHES_MAX: usize = 1_500;

/// Positions that the bus takes in one `GET /v1/tx-hashes`.
pub const HASHES_RANGE_MAX: u64 = 1_000;

/// Bytes of a URL.
const URL_BYTES_MAX: usize = 2_048;

/// How long a connection may take to come about.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// How long an answer may take. The real bus answers a broadcast after 9 seconds at the latest, thrice if it tries again.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// How long an idle connection is kept. The real bus closes it after 5 seconds; to use one that is being closed costs a try.
const IDLE_TIME: Duration = Duration::from_secs(4);

/// A bus, by its URL. Cheap to clone; clones share the connection.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    network: Network,
    timeout: Duration,
}

impl Client {
    /// For the bus at this URL: `http://` or `https://`, perhaps with a path, and with a user's name and password that
    /// are sent and never shown. Over https it believes whom the system believes.
    pub fn new(url: &str, network: Network) -> Result<Client, UrlError> {
        Client::trusting(url, network, None)
    }

    /// The same; over https it believes these authorities alone, if there are any.
    pub fn trusting(url: &str, network: Network, authorities: Option<&Authorities>) -> Result<Client, UrlError> {
        let base = base_url(url)?;
        // Of the process, and the first one stays: there is no other here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(IDLE_TIME)
            .redirect(Policy::none())
            .user_agent(concat!("hotpocket/", env!("CARGO_PKG_VERSION")));
        if base.scheme() == "http" {
            // The machine's certificates are not needed, and need not be there.
            http = http.no_proxy().tls_certs_only([]);
        } else if let Some(Authorities(certificates)) = authorities {
            http = http.tls_certs_only(certificates.iter().cloned());
        }
        let http = http.build().map_err(UrlError::Tls)?;
        Ok(Client { http, base, network, timeout: ANSWER_TIME })
    }

    /// With another time for an answer, from the first byte sent to the last received.
    pub fn with_timeout(mut self, timeout: Duration) -> Client {
        self.timeout = timeout;
        self
    }

    /// The bus's network.
    pub fn network(&self) -> Network {
        self.network
    }

    /// The URL, without the password, for messages.
    pub fn url(&self) -> String {
        shown(&self.base)
    }

    /// Whether the bus is there and works. Source: `GET /v1/health`.
    pub async fn health(&self) -> Result<(), ClientError> {
        let answer = self.get(&["health"], None).await?;
        answer.boolean("ok").and_then(|ok| if ok { Ok(()) } else { Err(answer.malformed("ok is false")) })
    }

    /// What a transaction costs. Source: `GET /v1/fee`.
    pub async fn fee(&self) -> Result<Amount, ClientError> {
        self.get(&["fee"], None).await?.amount("fee")
    }

    /// The current `txv`. Source: `GET /v1/txv`.
    pub async fn txv(&self) -> Result<Hash, ClientError> {
        self.get(&["txv"], None).await?.hash("txv")
    }

    /// Length of what is confirmed. Source: `GET /v1/confirmed-length`.
    pub async fn confirmed_length(&self) -> Result<u64, ClientError> {
        self.get(&["confirmed-length"], None).await?.number("confirmed_length")
    }

    /// Length with what is not confirmed yet. Source: `GET /v1/unconfirmed-length`.
    pub async fn unconfirmed_length(&self) -> Result<u64, ClientError> {
        self.get(&["unconfirmed-length"], None).await?.number("unconfirmed_length")
    }

    /// What an address has; nothing, if the bus does not know it. Source: `GET /v1/balance/{address}`.
    pub async fn balance(&self, address: &Address, view: View) -> Result<Amount, ClientError> {
        // Said each time: the real bus's default is not the one that its documents name.
        self.get(&["balance", &address.to_string()], Some(view)).await?.amount("balance")
    }

    /// What the bus knows of an address. Source: `GET /v1/account/{address}`.
    pub async fn account(&self, address: &Address, view: View) -> Result<Account, ClientError> {
        Account::read(&self.get(&["account", &address.to_string()], Some(view)).await?)
    }

    /// Hands in an operation, as `Signed::payload` writes it. `Ok` and `Refused` are what this server made of it, and do not
    /// tell whether it is, or will be, on the bus. Source: `POST /v1/broadcast-transaction`.
    pub async fn broadcast(&self, payload: &str) -> Result<Broadcast, ClientError> {
        Broadcast::read(&self.post(&["broadcast-transaction"], &json!({ "payload": payload }), ANSWER_BYTES_MAX).await?)
    }

    /// A confirmed operation, by its hash; `None` if there is none yet. Not checked: see [`Landed::check`].
    /// Source: `GET /v1/tx/{hash}`.
    pub async fn tx(&self, hash: &Hash) -> Result<Option<Landed>, ClientError> {
        let Some(answer) = found(self.get(&["tx", &hash.to_string()], None).await)? else { return Ok(None) };
        match &answer.value["txDetails"] {
            // What the documents say about one that is not there.
            Value::Null => Ok(None),
            _ => answer.landed(self.network).map(Some),
        }
    }

    /// An operation with its place in the order. The bus reads all of its history for it: ask once.
    /// Source: `GET /v1/tx/details/{hash}`.
    pub async fn tx_details(&self, hash: &Hash, view: View) -> Result<Option<Details>, ClientError> {
        let answer = found(self.get(&["tx", "details", &hash.to_string()], Some(view)).await)?;
        answer.map(|answer| Details::read(&answer, self.network)).transpose()
    }

    /// Hashes of the confirmed operations from `from` to before `to`, at most [`HASHES_RANGE_MAX`] positions. `from` at or
    /// behind the end is an error of the real bus (500). Source: `GET /v1/tx-hashes/{from}/{to}`.
    pub async fn tx_hashes(&self, from: u64, to: u64) -> Result<Vec<HashAt>, ClientError> {
        HashAt::read_all(&self.get(&["tx-hashes", &from.to_string(), &to.to_string()], None).await?)
    }

    /// Many operations at once, at most [`BULK_HASHES_MAX`]. Source: `POST /v1/tx-payloads-bulk`.
    pub async fn payloads_bulk(&self, hashes: &[Hash]) -> Result<Payloads, ClientError> {
        let hashes: Vec<String> = hashes.iter().map(Hash::to_string).collect();
        let answer = self.post(&["tx-payloads-bulk"], &json!({ "hashes": hashes }), BULK_ANSWER_BYTES_MAX).await?;
        Payloads::read(&answer, self.network)
    }

    /// What the embedded bus says of itself; `None` when this is a real one.
    pub async fn embedded(&self) -> Result<Option<About>, ClientError> {
        match self.get(&["embedded"], None).await {
            Err(ClientError::Refused { status: 404, text, .. }) if text == "Not Found" => Ok(None),
            answer => About::read(&answer?).map(Some),
        }
    }

    /// Has the embedded bus give money to an address, and returns what it has then. A real one refuses with 404.
    pub async fn fund(&self, address: &Address, amount: Amount) -> Result<Amount, ClientError> {
        let body = json!({ "address": address.to_string(), "units": amount.0.to_string() });
        self.post(&["embedded", "fund"], &body, ANSWER_BYTES_MAX).await?.amount("balance")
    }

    async fn get(&self, path: &[&str], view: Option<View>) -> Result<Answer, ClientError> {
        let mut url = self.url_of(path);
        if let Some(view) = view {
            url.query_pairs_mut().append_pair("confirmed", view.parameter());
        }
        self.ask(Method::GET, path, url, None, ANSWER_BYTES_MAX).await
    }

    async fn post(&self, path: &[&str], body: &Value, bytes_max: usize) -> Result<Answer, ClientError> {
        self.ask(Method::POST, path, self.url_of(path), Some(body), bytes_max).await
    }

    fn url_of(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // Each part is escaped, whatever is in it.
        url.path_segments_mut().expect("http has a path").pop_if_empty().push("v1").extend(path);
        url
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        url: Url,
        body: Option<&Value>,
        bytes_max: usize,
    ) -> Result<Answer, ClientError> {
        let route = format!("{method} {}/v1/{}", shown(&self.base).trim_end_matches('/'), path.join("/"));
        let mut request = self.http.request(method, url).timeout(self.timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        let failed = |error: reqwest::Error| {
            // It would show the whole URL.
            let source = error.without_url();
            if let Some(what) = trust::certificate_fault(&source) {
                ClientError::Certificate { route: route.clone(), what }
            } else if source.is_timeout() {
                ClientError::Timeout { route: route.clone(), after: self.timeout }
            } else {
                ClientError::Unreachable { route: route.clone(), source }
            }
        };
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        if !status.is_success() {
            let text = read_body(&mut response, ERROR_BYTES_MAX).await.map_err(failed)?;
            return Err(ClientError::refused(route, status.as_u16(), &text.bytes));
        }
        let Body { bytes, whole } = read_body(&mut response, bytes_max).await.map_err(failed)?;
        if !whole {
            return Err(ClientError::Malformed { route, what: format!("it is longer than {bytes_max} bytes") });
        }
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(value) => Ok(Answer { route, value }),
            Err(error) => Err(ClientError::Malformed { route, what: format!("it is no JSON: {error}") }),
        }
    }
}

/// A body, and whether it is all of it.
struct Body {
    bytes: Vec<u8>,
    whole: bool,
}

async fn read_body(response: &mut Response, bytes_max: usize) -> Result<Body, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = bytes_max - bytes.len();
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            return Ok(Body { bytes, whole: false });
        }
    }
    Ok(Body { bytes, whole: true })
}

/// What came with 200, and from where.
#[derive(Debug)]
struct Answer {
    route: String,
    value: Value,
}

/// A 404 of the bus means that there is no such operation; any other 404 is somebody else's.
fn found(answer: Result<Answer, ClientError>) -> Result<Option<Answer>, ClientError> {
    match answer {
        Err(error) if error.is_absent() => Ok(None),
        answer => answer.map(Some),
    }
}

fn base_url(text: &str) -> Result<Url, UrlError> {
    if text.len() > URL_BYTES_MAX {
        return Err(UrlError::TooLong(text.len()));
    }
    let url = Url::parse(text).map_err(|source| UrlError::Syntax(source.to_string()))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(UrlError::Scheme(url.scheme().to_owned()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(UrlError::Rest);
    }
    Ok(url)
}

/// The URL without what might be a secret.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Fails only for URLs without a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}
