//! Closed ledgers, and those on which results differed.

use axum::{extract::State, http::Uri};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::http::{
    Question,
    answer::{Fresh, Reply},
    answers,
    api::{Api, Part},
    params::{Query, seq, which},
};

/// Ledgers in a list, unless told otherwise.
const LIMIT: u64 = 20;

/// Ledgers in a list at most.
const LIMIT_MAX: u64 = 100;

pub(super) fn routes(router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    router.routes(routes!(ledgers)).routes(routes!(ledger)).routes(routes!(divergences)).routes(routes!(divergence))
}

/// Closed ledgers, ascending: those from `from` on, or the newest.
#[utoipa::path(get, path = "/v1/ledgers", tag = "ledgers",
    params(
        ("from" = Option<u64>, Query, description = "Number of the first ledger; without it the newest are listed", maximum = 9223372036854775807i64),
        ("limit" = Option<u64>, Query, description = "How many, 1 to 100; 20 unless told otherwise", minimum = 1, maximum = 100),
    ),
    responses((status = 200, description = "`{\"ledgers\": [...], \"tip\": n}`", body = answers::Ledgers), (status = 400, description = "A parameter is wrong", body = answers::Error)))]
async fn ledgers(State(api): State<Api>, uri: Uri) -> Reply {
    let query = Query::of(&uri)?;
    let from = query.number("from", 0, i64::MAX as u64)?;
    let limit = query.number("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT);
    api.ask(Question::Ledgers { from, limit }).await.map(Fresh)
}

/// One ledger: header, certificate, inputs and outputs while they are kept. `docs/export.md` explains the fields.
#[utoipa::path(get, path = "/v1/ledgers/{ledger}", tag = "ledgers",
    params(("ledger" = String, Path, description = "Its number, its hash, or `latest`")),
    responses(
        (status = 200, description = "The ledger", body = answers::Ledger),
        (status = 400, description = "Neither a number nor a hash", body = answers::Error),
        (status = 404, description = "There is no such ledger here", body = answers::Error),
        (status = 413, description = "It is too long for HTTP", body = answers::Error),
    ))]
async fn ledger(State(api): State<Api>, Part(ledger): Part) -> Reply {
    api.ask(Question::Ledger(which(&ledger)?)).await.map(Fresh)
}

/// Ledgers on which the results of nodes differed.
#[utoipa::path(get, path = "/v1/divergence", tag = "ledgers", responses((status = 200, description = "`{\"divergence\": [...]}`", body = answers::Divergences)))]
async fn divergences(State(api): State<Api>) -> Reply {
    api.ask(Question::Divergence(None)).await.map(Fresh)
}

/// In what results differed on one ledger, file by file.
#[utoipa::path(get, path = "/v1/divergence/{seq}", tag = "ledgers",
    params(("seq" = u64, Path, description = "Number of the ledger", maximum = 9223372036854775807i64)),
    responses((status = 200, description = "The report", body = answers::Divergence), (status = 400, description = "No number", body = answers::Error), (status = 404, description = "No report", body = answers::Error)))]
async fn divergence(State(api): State<Api>, Part(number): Part) -> Reply {
    api.ask(Question::Divergence(Some(seq(&number)?))).await.map(Fresh)
}
