//! The node itself: where it stands, whom it is linked with, who decides.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, Uri, header},
    response::{IntoResponse as _, Response},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::http::{
    Question,
    answer::{Failure, Fresh, Reply},
    answers,
    api::Api,
    params::Query,
};

/// Settlements in a list, unless told otherwise.
const LIMIT: u64 = 20;

/// Settlements in a list at most.
const LIMIT_MAX: u64 = 100;

pub(super) fn routes(router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    router
        .routes(routes!(health))
        .routes(routes!(status))
        .routes(routes!(peers))
        .routes(routes!(unl))
        .routes(routes!(rounds))
        .routes(routes!(metrics))
        .routes(routes!(log))
        .routes(routes!(evidence))
        .routes(routes!(settlements))
}

/// Whether the node works and is in sync with its network.
#[utoipa::path(get, path = "/v1/health", tag = "node", responses(
    (status = 200, description = "`{\"ok\": true}`", body = answers::Health),
    (status = 503, description = "Not now: `{\"error\": why}`", body = answers::Error),
))]
async fn health(State(api): State<Api>) -> Reply {
    api.ask(Question::Health).await.map(Fresh)
}

/// Where the node stands: `peer` and `msb` as wallets read them, `node` as `hp status --json` shows it.
#[utoipa::path(get, path = "/v1/status", tag = "node", responses((status = 200, description = "Where it stands", body = answers::Status)))]
async fn status(State(api): State<Api>) -> Reply {
    api.ask(Question::Status).await.map(Fresh)
}

/// The node's links to other nodes, with the time a message takes there and back.
#[utoipa::path(get, path = "/v1/peers", tag = "node", responses((status = 200, description = "`{\"peers\": [...]}`", body = answers::Peers)))]
async fn peers(State(api): State<Api>) -> Reply {
    api.ask(Question::Peers).await.map(Fresh)
}

/// Which nodes decide, which of them are live, and who votes for a change.
#[utoipa::path(get, path = "/v1/unl", tag = "node", responses((status = 200, description = "The UNL", body = answers::Unl)))]
async fn unl(State(api): State<Api>) -> Reply {
    api.ask(Question::Unl).await.map(Fresh)
}

/// The end of what the contract printed on this node, run after run. Other nodes' runs may print something else.
#[utoipa::path(get, path = "/v1/contract/log", tag = "node", responses(
    (status = 200, description = "`{\"streams\": [{\"name\": \"stdout\", \"text\"}, ...]}`, up to 16 KiB of each", body = answers::Log),
))]
async fn log(State(api): State<Api>) -> Reply {
    api.ask(Question::Log).await.map(Fresh)
}

/// What the last 100 rounds took: time per stage, attempts, who was late, execution, bytes.
#[utoipa::path(get, path = "/v1/rounds", tag = "node", responses((status = 200, description = "`{\"rounds\": [...]}`, the newest last", body = answers::Rounds)))]
async fn rounds(State(api): State<Api>) -> Reply {
    api.ask(Question::Rounds).await.map(Fresh)
}

/// What Prometheus reads: names `hotpocket_*`, with units. Whoever takes `application/openmetrics-text` gets that, and everybody
/// else the text format before it.
#[utoipa::path(get, path = "/metrics", tag = "node", responses(
    (status = 200, description = "Metrics", content(
        (String = "text/plain"),
        (String = "application/openmetrics-text"),
    )),
))]
async fn metrics(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Failure> {
    const OPEN: HeaderValue = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|accepted| accepted.to_str().ok());
    let open = accepted.flat_map(|accepted| accepted.split(',')).any(is_open_metrics);
    let text = api.ask(Question::Metrics { open }).await?;
    let text = text.as_str().unwrap_or_default().to_owned();
    let headers = [
        (header::CONTENT_TYPE, if open { OPEN } else { PLAIN }),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::VARY, HeaderValue::from_static("accept")),
    ];
    Ok((headers, text).into_response())
}

/// Whether a media type of an Accept header is OpenMetrics, in a version that is written here.
fn is_open_metrics(accepted: &str) -> bool {
    let mut parts = accepted.split(';').map(str::trim);
    parts.next() == Some("application/openmetrics-text")
        && parts.all(|part| match part.split_once('=') {
            Some(("version", version)) => version.trim_matches('"') == "1.0.0",
            Some(("q", weight)) => !matches!(weight, "0" | "0.0" | "0.00" | "0.000"),
            _ => true,
        })
}

/// Nodes that have signed two different messages for one slot, as this node can prove.
#[utoipa::path(get, path = "/v1/evidence", tag = "node", responses((status = 200, description = "`{\"evidence\": [...]}`", body = answers::EvidenceList)))]
async fn evidence(State(api): State<Api>) -> Reply {
    api.ask(Question::Evidence).await.map(Fresh)
}

/// What was settled on the bus, ascending, as the chain records it, and where settling stands.
#[utoipa::path(get, path = "/v1/settlements", tag = "node",
    params(
        ("from" = Option<u64>, Query, description = "The first ledger that is covered; without it the newest are listed", maximum = 9223372036854775807i64),
        ("before" = Option<u64>, Query, description = "Only what covers ledgers before this one; not beside `from`", maximum = 9223372036854775807i64),
        ("limit" = Option<u64>, Query, description = "How many, 1 to 100; 20 unless told otherwise", minimum = 1, maximum = 100),
    ),
    responses(
        (status = 200, description = "What was settled", body = answers::Settlements),
        (status = 400, description = "A parameter is wrong", body = answers::Error),
    ))]
async fn settlements(State(api): State<Api>, uri: Uri) -> Reply {
    let query = Query::of(&uri)?;
    let from = query.number("from", 0, i64::MAX as u64)?;
    let before = query.number("before", 0, i64::MAX as u64)?;
    if from.is_some() && before.is_some() {
        return Err(Failure::bad("Invalid before: it stands beside from."));
    }
    let limit = query.number("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT);
    api.ask(Question::Settlements { from, before, limit }).await.map(Fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_open_metrics_says_so_in_a_version_there_is() {
        for yes in [
            "application/openmetrics-text",
            " application/openmetrics-text;version=1.0.0;q=0.8",
            "application/openmetrics-text; version=\"1.0.0\"; charset=utf-8",
        ] {
            assert!(is_open_metrics(yes), "{yes}");
        }
        for no in ["text/plain;version=0.0.4;q=0.3", "*/*;q=0.1", "application/openmetrics-text;version=2.0.0", ""] {
            assert!(!is_open_metrics(no), "{no}");
        }
        assert!(!is_open_metrics("application/openmetrics-text;q=0"));
    }
}
