//! What wallets and apps do: read the contract's state, make, sign and send inputs. The routes and their words are those that
//! wallets of Trac's peers know.

use std::time::Duration;

use axum::{extract::State, http::Uri};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        Question, Wait,
        answer::{Failure, Fresh, Reply},
        answers,
        api::{Api, Part},
        body::JsonBody,
        command,
        params::{Query, seq, wrong},
    },
    types::{Hash, UserKey},
};

/// How long somebody is waited with for what becomes of an input, unless told otherwise.
const WAIT_MS: u64 = 10_000;

/// How long at most.
const WAIT_MS_MAX: u64 = 60_000;

/// Bytes of the path of a file of the state.
const PATH_BYTES_MAX: usize = 4_096;

pub(super) fn routes(router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    router
        .routes(routes!(state))
        .routes(routes!(schema))
        .routes(routes!(nonce))
        .routes(routes!(context))
        .routes(routes!(prepare))
        .routes(routes!(tx))
        .routes(routes!(input))
        .routes(routes!(proof))
}

/// A file of the contract's state: text, or base64 with `"encoding": "base64"`; null when there is none.
#[utoipa::path(get, path = "/v1/state", tag = "contract",
    params(
        ("key" = String, Query, description = "Its path below state/"),
        ("confirmed" = Option<String>, Query, description = "`true` (also without it): as of the last state that the network agreed on; anything else: as this node's last run left it"),
    ),
    responses(
        (status = 200, description = "`{key, confirmed, value, size, hash, seq}`", body = answers::File),
        (status = 400, description = "No key, or one that is no path below state/", body = answers::Error),
        (status = 413, description = "The file is too long for HTTP", body = answers::Error),
        (status = 503, description = "No state is agreed on here now", body = answers::Error),
    ))]
async fn state(State(api): State<Api>, uri: Uri) -> Reply {
    let query = Query::of(&uri)?;
    let key = query.get("key")?.filter(|key| !key.is_empty()).ok_or_else(|| Failure::bad("Missing key."))?;
    let is_path = key.len() <= PATH_BYTES_MAX
        && !key.contains('\0')
        && key.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if !is_path {
        return Err(wrong("key", "the path of a file below state/, like a/b", key));
    }
    let confirmed = query.get("confirmed")?.is_none_or(|confirmed| confirmed == "true");
    api.ask(Question::State { key: key.to_owned(), confirmed }).await.map(Fresh)
}

/// What the contract takes and gives: the JSON Schema that it ships as `bin/schema.json`, or a general one, and the node's limits.
#[utoipa::path(get, path = "/v1/contract/schema", tag = "contract", responses((status = 200, description = "The schema", body = answers::Schema)))]
async fn schema(State(api): State<Api>) -> Reply {
    api.ask(Question::Schema).await.map(Fresh)
}

/// The next nonce that a user has not used, as far as this node knows.
#[utoipa::path(get, path = "/v1/contract/nonce", tag = "contract",
    params(("pubkey" = String, Query, description = "The user's key: 64 hexadecimal digits")),
    responses((status = 200, description = "`{\"nonce\": 7}`", body = answers::Nonce), (status = 400, description = "No key, or no key's digits", body = answers::Error)))]
async fn nonce(State(api): State<Api>, uri: Uri) -> Reply {
    let user = user(&Query::of(&uri)?, "pubkey")?;
    api.ask(Question::Nonce(user)).await.map(Fresh)
}

/// What is needed to compute and sign an input elsewhere: chain, last ledger, tag; and `msb` for the settlement bus.
#[utoipa::path(get, path = "/v1/contract/tx/context", tag = "contract", responses((status = 200, description = "The context", body = answers::Context)))]
async fn context(State(api): State<Api>) -> Reply {
    api.ask(Question::TxContext).await.map(Fresh)
}

/// An input that is to be signed.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes the body, which is read by hand")]
struct PrepareBody {
    /// Any JSON value; the contract gets its canonical text: keys sorted, no blanks.
    prepared_command: serde_json::Value,
    /// The user's public key: 64 hexadecimal digits.
    address: String,
    /// A number that the user has not used.
    nonce: u64,
    /// The last ledger that may hold the input.
    max_ledger: Option<u64>,
}

/// The id that a wallet signs for an input, and the bytes that the contract will get.
#[utoipa::path(post, path = "/v1/contract/tx/prepare", tag = "contract", request_body = PrepareBody, responses(
    (status = 200, description = "`{tx, payload, max_ledger, context}`: sign the 32 bytes of `tx`", body = answers::Prepared),
    (status = 400, description = "The body is wrong", body = answers::Error),
    (status = 413, description = "The body, or the input, is too long", body = answers::Error),
))]
async fn prepare(State(api): State<Api>, JsonBody(body): JsonBody) -> Reply {
    api.ask(Question::Prepare(command::draft(&body)?)).await.map(Fresh)
}

/// A signed input.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes the body, which is read by hand")]
struct TxBody {
    /// Its id, as `prepare` says: 64 hexadecimal digits.
    tx: String,
    /// Any JSON value; the contract gets its canonical text: keys sorted, no blanks.
    prepared_command: serde_json::Value,
    /// The user's public key: 64 hexadecimal digits.
    address: String,
    /// The user's ed25519 signature over the 32 bytes of `tx`: 128 hexadecimal digits.
    signature: String,
    /// A number that the user has not used.
    nonce: u64,
    /// The last ledger that may hold the input.
    max_ledger: u64,
    /// Only run the contract on this node, on a copy of its state, and change nothing.
    sim: Option<bool>,
}

/// Send a signed input, or with `sim` try what the contract would answer. The same input may be sent again, and takes effect once.
#[utoipa::path(post, path = "/v1/contract/tx", tag = "contract", request_body = TxBody,
    params(
        ("wait" = Option<String>, Query, description = "`accepted`: until it is in a closed ledger; `output`: until its outcome is agreed on, with its proof"),
        ("timeout_ms" = Option<u64>, Query, description = "For how long, at most 60000; 10000 unless told otherwise", minimum = 0, maximum = 60000),
    ),
    responses(
        (status = 200, description = "`{\"result\": {...}}`: what became of it", body = answers::TxResult),
        (status = 202, description = "It is held, and more is not known (yet)", body = answers::TxResult),
        (status = 400, description = "The body is wrong: `Missing JSON body.`, `Invalid JSON payload.`, `Invalid signature.`, `Invalid TX.`, ...", body = answers::Error),
        (status = 403, description = "Off: `[http] api_tx_exposed` is not true", body = answers::Error),
        (status = 409, description = "No ledger will ever hold it: expired, or its nonce is used", body = answers::Error),
        (status = 413, description = "The body, or the input, is too long", body = answers::Error),
        (status = 429, description = "More inputs a minute than `pubmaxcpm`", body = answers::Error),
        (status = 503, description = "The node has no room for it now", body = answers::Error),
    ))]
async fn tx(State(api): State<Api>, uri: Uri, JsonBody(body): JsonBody) -> Result<axum::response::Response, Failure> {
    use axum::{http::StatusCode, response::IntoResponse as _};
    if !api.api_tx_exposed {
        let why = "Inputs are not taken over HTTP at this node: its operator would set [http] api_tx_exposed = true.";
        return Err(Failure::forbidden(why));
    }
    let query = Query::of(&uri)?;
    let wait = match query.get("wait")? {
        None => Wait::Not,
        Some("accepted") => Wait::Accepted,
        Some("output") => Wait::Output,
        Some(other) => return Err(wrong("wait", "\"accepted\" or \"output\"", other)),
    };
    let timeout = Duration::from_millis(query.number("timeout_ms", 0, WAIT_MS_MAX)?.unwrap_or(WAIT_MS));
    let (tx, sim) = command::signed(&body)?;
    let question = if sim { Question::Simulate(tx) } else { Question::Submit { tx, wait, timeout } };
    let result = api.ask(question).await?;
    let status = if result["status"] == "pending" { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Fresh(serde_json::json!({ "result": result }))).into_response())
}

/// What this node knows of an input: whether it is in a ledger, and what it says while its bytes are kept.
#[utoipa::path(get, path = "/v1/inputs/{id}", tag = "contract",
    params(("id" = String, Path, description = "Its id: 64 hexadecimal digits")),
    responses(
        (status = 200, description = "The input", body = answers::Input),
        (status = 400, description = "No id", body = answers::Error),
        (status = 404, description = "No such input is kept here", body = answers::Error),
    ))]
async fn input(State(api): State<Api>, Part(id): Part) -> Reply {
    let id: Hash = id.parse().map_err(|_| wrong("id", "64 hexadecimal digits", &id))?;
    api.ask(Question::Input(id)).await.map(Fresh)
}

/// What the contract put out to a user in one ledger, with the proof that the network agreed on it.
#[utoipa::path(get, path = "/v1/ledgers/{seq}/proof", tag = "ledgers",
    params(
        ("seq" = u64, Path, description = "Number of the ledger", maximum = 9223372036854775807i64),
        ("user" = String, Query, description = "The user's key: 64 hexadecimal digits"),
    ),
    responses(
        (status = 200, description = "Output and proof, as the frame `output` of signed mode; or how the run failed", body = answers::Outcome),
        (status = 400, description = "A parameter is wrong", body = answers::Error),
        (status = 404, description = "There is no such output here", body = answers::Error),
    ))]
async fn proof(State(api): State<Api>, Part(number): Part, uri: Uri) -> Reply {
    let (seq, user) = (seq(&number)?, user(&Query::of(&uri)?, "user")?);
    api.ask(Question::Proof { seq, user }).await.map(Fresh)
}

fn user(query: &Query, name: &str) -> Result<UserKey, Failure> {
    let text = query.get(name)?.ok_or_else(|| Failure::bad(format!("Missing {name}.")))?;
    text.parse().map_err(|_| wrong(name, "a public key of 64 hexadecimal digits", text))
}
