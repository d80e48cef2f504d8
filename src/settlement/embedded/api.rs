//! The HTTP API: which route a request is for, and the real bus's answer to it, word for word where it was measured.

use serde_json::{Value, json};

use super::{
    Hook,
    books::{Books, FEE, View},
    bus::{Bus, Taken, code_and_reason},
    intake,
};
use crate::{
    settlement::{Address, Amount, tx::Landed},
    types::Hash,
};

/// Bytes of a body for `POST /v1/tx-payloads-bulk`. A longer one is refused with 413.
pub(super) const BULK_BODY_BYTES_MAX: usize = 1_000_000;

/// Bytes of an answer to it. A longer one is refused with 413.
const BULK_ANSWER_BYTES_MAX: usize = 2_000_000;

/// Hashes in it. More are refused with 400.
const BULK_HASHES_MAX: usize = 1_500;

/// Positions in `GET /v1/tx-hashes`. More are refused with 400.
const HASHES_RANGE_MAX: u64 = 1_000;

/// Bytes of a body for the routes that only this bus has.
pub(super) const OWN_BODY_BYTES_MAX: usize = 4_096;

const STUMBLED: &str = "An error occurred processing the request.";

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Whether other pages may ask: any.
    Options,
    Health,
    Fee,
    Txv,
    ConfirmedLength,
    UnconfirmedLength,
    Balance,
    Account,
    Broadcast,
    Tx,
    TxDetails,
    TxHashes,
    PayloadsBulk,
    /// What this bus is; no real one has it, nor the next two.
    Embedded,
    /// Money out of nothing.
    Fund,
    /// For tests.
    Hooks,
    NotFound,
}

impl Route {
    /// As on the real bus, what comes behind the parts of a route is its handler's business, and the longest route counts.
    pub(super) fn of(method: &str, path: &str) -> Route {
        const ROUTES: [(&str, &str, Route); 15] = [
            ("GET", "/v1/unconfirmed-length", Route::UnconfirmedLength),
            ("POST", "/v1/broadcast-transaction", Route::Broadcast),
            ("GET", "/v1/confirmed-length", Route::ConfirmedLength),
            ("POST", "/v1/tx-payloads-bulk", Route::PayloadsBulk),
            ("POST", "/v1/embedded/hooks", Route::Hooks),
            ("POST", "/v1/embedded/fund", Route::Fund),
            ("GET", "/v1/tx/details", Route::TxDetails),
            ("GET", "/v1/tx-hashes", Route::TxHashes),
            ("GET", "/v1/embedded", Route::Embedded),
            ("GET", "/v1/balance", Route::Balance),
            ("GET", "/v1/account", Route::Account),
            ("GET", "/v1/health", Route::Health),
            ("GET", "/v1/fee", Route::Fee),
            ("GET", "/v1/txv", Route::Txv),
            ("GET", "/v1/tx", Route::Tx),
        ];
        if method == "OPTIONS" {
            return Route::Options;
        }
        let is = |route: &str| path.strip_prefix(route).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let found = ROUTES.iter().find(|(name, route, _)| *name == method && is(route));
        found.map_or(Route::NotFound, |(_, _, route)| *route)
    }

    /// Bytes of a body, and what is said of a longer one.
    pub(super) fn body_bytes_max(self) -> (usize, &'static str) {
        match self {
            Route::Broadcast => (intake::BODY_BYTES_MAX, "Payload too large."),
            Route::PayloadsBulk => (BULK_BODY_BYTES_MAX, "Request body too large."),
            _ => (OWN_BODY_BYTES_MAX, "Request body too large."),
        }
    }

    /// Whether pages of other origins may read the answer. What no real bus has, no page may use.
    pub(super) fn is_for_pages(self) -> bool {
        !matches!(self, Route::Embedded | Route::Fund | Route::Hooks)
    }
}

/// What to answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Status and JSON; no text for 204.
    Json(u16, String),
    /// Nothing: the connection breaks.
    Nothing,
}

impl Reply {
    fn ok(value: &Value) -> Reply {
        Reply::Json(200, value.to_string())
    }

    pub(super) fn error(status: u16, error: impl Into<String>) -> Reply {
        Reply::Json(status, json!({ "error": error.into() }).to_string())
    }
}

/// A request whose body was read.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) route: Route,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) body: &'a [u8],
    /// Whether it comes from this machine.
    pub(super) is_local: bool,
}

impl Request<'_> {
    /// The part of the path behind the route's name.
    fn part(&self, number: usize) -> Option<&str> {
        self.path.split('/').filter(|part| !part.is_empty()).nth(number)
    }

    /// The first value of `confirmed`.
    fn confirmed(&self) -> Option<&str> {
        self.query.split('&').find_map(|pair| match pair.split_once('=') {
            Some(("confirmed", value)) => Some(value),
            None if pair == "confirmed" => Some(""),
            _ => None,
        })
    }

    /// `confirmed` where it must be exact. Without it: confirmed.
    fn confirmed_exactly(&self) -> Result<bool, Reply> {
        match self.confirmed() {
            None | Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(_) => Err(Reply::error(400, "Parameter \"confirmed\" must be exactly \"true\" or \"false\"")),
        }
    }

    /// The hash at the end of the path, after `names`.
    fn hash(&self, names: &[&str]) -> Result<Hash, Reply> {
        let last = self.path.split('/').rfind(|part| !part.is_empty()).unwrap_or("");
        if names.contains(&last) {
            return Err(Reply::error(400, "Transaction hash is required"));
        }
        last.parse().map_err(|_| Reply::error(400, "Invalid transaction hash format"))
    }
}

/// Answers a request.
pub(super) async fn answer(bus: &Bus, request: &Request<'_>) -> Reply {
    match request.route {
        Route::Options => Reply::Json(204, String::new()),
        Route::Health if bus.works() => Reply::ok(&json!({ "ok": true })),
        Route::Health => Reply::error(503, "Could not connect to RPC server"),
        Route::Fee => Reply::ok(&json!({ "fee": units(FEE) })),
        Route::Txv => bus.with_books(|books| Reply::ok(&json!({ "txv": books.confirmed.txv.to_string() }))),
        Route::ConfirmedLength => {
            bus.with_books(|books| Reply::ok(&json!({ "confirmed_length": books.confirmed_length() })))
        }
        Route::UnconfirmedLength => {
            bus.with_books(|books| Reply::ok(&json!({ "unconfirmed_length": books.unconfirmed_length() })))
        }
        Route::Balance => bus.with_books(|books| balance(books, request)),
        Route::Account => bus.with_books(|books| account(books, request)),
        Route::Broadcast => broadcast(bus, request.body).await,
        Route::Tx => flat(tx(bus, request).await),
        Route::TxDetails => flat(tx_details(bus, request).await),
        Route::TxHashes => flat(bus.with_books(|books| tx_hashes(books, request))),
        Route::PayloadsBulk => flat(payloads_bulk(bus, request.body).await),
        Route::Embedded => bus.with_books(|books| {
            Reply::ok(&json!({
                "embedded": true,
                "network": books.network.to_string(),
                "network_id": books.network.id(),
                "bootstrap": books.bootstrap.to_string(),
                "validator": books.validator.to_string(),
                "hooks": bus.hooks_allowed,
            }))
        }),
        Route::Fund => flat(fund(bus, request).await),
        Route::Hooks => flat(hooks(bus, request).await),
        Route::NotFound => Reply::error(404, "Not Found"),
    }
}

fn flat(reply: Result<Reply, Reply>) -> Reply {
    reply.unwrap_or_else(|reply| reply)
}

fn units(amount: Amount) -> String {
    amount.0.to_string()
}

fn balance(books: &Books, request: &Request<'_>) -> Reply {
    let Some(text) = request.part(2) else { return Reply::error(400, "Wallet address is required") };
    if Address::check_format(text, books.network).is_err() {
        return Reply::error(400, "Invalid account address format");
    }
    let view = if request.confirmed() == Some("true") { &books.confirmed } else { &books.unconfirmed };
    // One with a wrong checksum is nobody's.
    let balance = Address::parse(text, books.network).map_or(Amount::ZERO, |address| view.balance(&address));
    Reply::ok(&json!({ "address": text, "balance": units(balance) }))
}

fn account(books: &Books, request: &Request<'_>) -> Reply {
    let Some(text) = request.part(2) else { return Reply::error(400, "Account address is required") };
    let confirmed = match request.confirmed_exactly() {
        Ok(confirmed) => confirmed,
        Err(reply) => return reply,
    };
    if Address::check_format(text, books.network).is_err() {
        return Reply::error(400, "Invalid account address format");
    }
    let view: &View = if confirmed { &books.confirmed } else { &books.unconfirmed };
    let address = Address::parse(text, books.network).ok();
    let is_validator = address == Some(books.validator);
    let writing_key = if is_validator { Hash(*books.validator.key()) } else { Hash::ZERO };
    Reply::ok(&json!({
        "address": text,
        "writingKey": writing_key.to_string(),
        "isWhitelisted": is_validator,
        "isValidator": is_validator,
        "isIndexer": is_validator,
        "license": Value::Null,
        "balance": units(address.map_or(Amount::ZERO, |address| view.balance(&address))),
        "stakedBalance": "0",
    }))
}

async fn broadcast(bus: &Bus, body: &[u8]) -> Reply {
    let network = bus.with_books(|books| books.network);
    let handed_in = intake::read(body, network).and_then(|signed| {
        let hash = signed.hash;
        bus.hand_in(signed).map(|taken| (hash, taken))
    });
    match handed_in {
        Ok((hash, Taken::Accepted { confirmed, unconfirmed })) => Reply::ok(&json!({ "result": {
            "message": "Transaction broadcasted successfully.",
            "signedLength": confirmed,
            "unsignedLength": unconfirmed,
            "tx": hash.to_string(),
        }})),
        Ok((_, Taken::TooMany)) => Reply::error(429, "Failed to broadcast transaction after multiple attempts."),
        Ok((_, Taken::NoReply(written))) => {
            let _ = written.await;
            Reply::Nothing
        }
        Err(refusal) => {
            let mut value = json!({ "error": refusal.error });
            if let Some(reason) = &refusal.reason {
                // Beyond the real bus, which leaves its clients guessing.
                let (code, reason) = code_and_reason(reason);
                (value["code"], value["reason"]) = (code.into(), reason.into());
            }
            Reply::Json(refusal.status, value.to_string())
        }
    }
}

/// What the operation's own text and the rest are together.
fn with_details(landed: &Landed, rest: &str) -> Reply {
    Reply::Json(200, format!("{{\"txDetails\":{}{rest}}}", landed.to_json()))
}

async fn confirmed(bus: &Bus, hash: &Hash) -> Result<Option<(Landed, u64)>, Reply> {
    bus.confirmed(hash).await.map_err(|error| {
        tracing::error!(%hash, %error, "an operation cannot be read from the bus's log");
        Reply::error(500, STUMBLED)
    })
}

async fn tx(bus: &Bus, request: &Request<'_>) -> Result<Reply, Reply> {
    let hash = request.hash(&["tx"])?;
    match confirmed(bus, &hash).await? {
        Some((landed, _)) => Ok(with_details(&landed, "")),
        None => Err(Reply::error(404, format!("Transaction {hash} not found."))),
    }
}

async fn tx_details(bus: &Bus, request: &Request<'_>) -> Result<Reply, Reply> {
    let hash = request.hash(&["details", "tx"])?;
    let only_confirmed = request.confirmed_exactly()?;
    if let Some((landed, place)) = confirmed(bus, &hash).await? {
        return Ok(with_details(&landed, &format!(",\"confirmed_length\":{place},\"fee\":\"{}\"", FEE.0)));
    }
    match bus.waiting(&hash) {
        Some(landed) if !only_confirmed => Ok(with_details(&landed, ",\"confirmed_length\":0,\"fee\":\"0\"")),
        _ => Err(Reply::error(404, format!("No payload found for tx hash: {hash}"))),
    }
}

/// Reads a number as JavaScript's parseInt does: sign and digits, then whatever. Past 2^63 it stays there.
fn parse_int(text: Option<&str>) -> Option<i64> {
    let text = text?.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut value = None;
    for digit in digits.chars().map_while(|c| c.to_digit(10)) {
        value = Some(value.unwrap_or(0_i64).saturating_mul(10).saturating_add(i64::from(digit)));
    }
    value.map(|value| if negative { -value } else { value })
}

fn tx_hashes(books: &Books, request: &Request<'_>) -> Result<Reply, Reply> {
    let (Some(from), Some(to)) = (parse_int(request.part(2)), parse_int(request.part(3))) else {
        return Err(Reply::error(400, "Params must be integer"));
    };
    let (Ok(from), Ok(to)) = (u64::try_from(from), u64::try_from(to)) else {
        return Err(Reply::error(400, "Params must be non-negative"));
    };
    if to < from {
        return Err(Reply::error(400, "endSignedLength must be greater than or equal to startSignedLength."));
    }
    if to - from > HASHES_RANGE_MAX {
        return Err(Reply::error(400, format!("The max range for signedLength must be {HASHES_RANGE_MAX}.")));
    }
    if to > from && from >= books.confirmed_length() {
        // The real bus asks its store for a range that ends before it begins.
        return Err(Reply::error(500, STUMBLED));
    }
    let hashes = books.between(from, to);
    let hashes: Vec<Value> =
        hashes.map(|(place, hash)| json!({ "hash": hash.to_string(), "confirmed_length": place })).collect();
    Ok(Reply::ok(&json!({ "hashes": hashes })))
}

async fn payloads_bulk(bus: &Bus, body: &[u8]) -> Result<Reply, Reply> {
    if body.is_empty() {
        return Err(Reply::error(400, "Missing payload."));
    }
    let text = String::from_utf8_lossy(body).replace(['\r', '\0'], "");
    let text = text.trim_start_matches('\u{feff}').trim();
    let value: Value = serde_json::from_str(text).map_err(|_| Reply::error(400, "Invalid request body format."))?;
    if matches!(value, Value::Null | Value::Bool(false)) || value == 0 || value == "" {
        return Err(Reply::error(400, "Invalid payload."));
    }
    let asked = value["hashes"].as_array().filter(|asked| !asked.is_empty());
    let asked = asked.ok_or_else(|| Reply::error(400, "Missing hash list."))?;
    let mut unique: Vec<&Value> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for hash in asked {
        if seen.insert(hash.to_string()) {
            unique.push(hash);
        }
    }
    if unique.len() > BULK_HASHES_MAX {
        return Err(Reply::error(400, "Length of input tx hashes exceeded."));
    }
    let (mut results, mut missing, mut bytes) = (Vec::new(), Vec::new(), 0);
    for asked in unique {
        // Only as the bus itself writes it.
        let hash = asked.as_str().and_then(|text| text.parse::<Hash>().ok().filter(|hash| hash.to_string() == text));
        let found = match hash {
            Some(hash) => confirmed(bus, &hash).await?,
            None => None,
        };
        let part = match found {
            Some((landed, _)) => format!("{{\"hash\":{asked},\"payload\":{}}}", landed.to_json()),
            None => asked.to_string(),
        };
        bytes += part.len() + 1;
        if bytes > BULK_ANSWER_BYTES_MAX {
            return Err(Reply::error(413, "Response too large. Reduce number of hashes."));
        }
        if part.starts_with("{\"hash\"") { results.push(part) } else { missing.push(part) }
    }
    let (results, missing) = (results.join(","), missing.join(","));
    Ok(Reply::Json(200, format!("{{\"results\":[{results}],\"missing\":[{missing}]}}")))
}

async fn fund(bus: &Bus, request: &Request<'_>) -> Result<Reply, Reply> {
    if !request.is_local {
        return Err(Reply::error(403, "money is given to requests from this machine only"));
    }
    let network = bus.with_books(|books| books.network);
    let value: Value = serde_json::from_slice(request.body).map_err(|error| Reply::error(400, error.to_string()))?;
    let address = Address::parse(value["address"].as_str().unwrap_or(""), network);
    let address = address.map_err(|error| Reply::error(400, error.to_string()))?;
    let amount = Amount::from_units(value["units"].as_str().unwrap_or(""));
    let amount = amount.ok_or_else(|| Reply::error(400, "units must be a text of decimal digits"))?;
    let balance = bus.fund(address, amount).await.map_err(|why| Reply::error(503, why))?;
    Ok(Reply::ok(&json!({ "address": address.to_string(), "balance": units(balance) })))
}

async fn hooks(bus: &Bus, request: &Request<'_>) -> Result<Reply, Reply> {
    if !bus.hooks_allowed || !request.is_local {
        return Err(Reply::error(404, "Not Found"));
    }
    let hook: Hook = serde_json::from_slice(request.body).map_err(|error| Reply::error(400, error.to_string()))?;
    bus.hook(hook).await.map_err(|why| Reply::error(400, why))?;
    Ok(Reply::ok(&json!({ "ok": true })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_found_as_the_real_bus_finds_them() {
        for (method, path, route) in [
            ("GET", "/v1/health", Route::Health),
            ("GET", "/v1/health/", Route::Health),
            ("GET", "/v1/health/deep/er", Route::Health),
            ("GET", "/v1/healthy", Route::NotFound),
            ("GET", "/health", Route::NotFound),
            ("HEAD", "/v1/health", Route::NotFound),
            ("POST", "/v1/health", Route::NotFound),
            ("GET", "//v1/health", Route::NotFound),
            ("GET", "/v1/tx/ab", Route::Tx),
            ("GET", "/v1/tx/details/ab", Route::TxDetails),
            ("GET", "/v1/tx/details", Route::TxDetails),
            ("GET", "/v1/tx/detailsx", Route::Tx),
            ("GET", "/v1/tx-hashes/1/2", Route::TxHashes),
            ("POST", "/v1/tx-payloads-bulk", Route::PayloadsBulk),
            ("OPTIONS", "/anything", Route::Options),
        ] {
            assert_eq!(Route::of(method, path), route, "{method} {path}");
        }
    }

    #[test]
    fn numbers_are_read_as_javascript_does() {
        for (text, value) in [
            ("12", Some(12)),
            ("12abc", Some(12)),
            ("-3", Some(-3)),
            ("+3", Some(3)),
            ("", None),
            ("-", None),
            ("abc", None),
            ("99999999999999999999999", Some(i64::MAX)),
        ] {
            assert_eq!(parse_int(Some(text)), value, "{text:?}");
        }
        assert_eq!(parse_int(None), None);
    }
}
