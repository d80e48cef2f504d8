//! The node itself: where it stands, whom it is linked with, who decides.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::http::{
    Question,
    answer::{Failure, Fresh, Reply},
    api::Api,
};

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
    (status = 200, description = "`{\"ok\": true}`"),
    (status = 503, description = "Not now: `{\"error\": why}`"),
))]
async fn health(State(api): State<Api>) -> Reply {
    api.ask(Question::Health).await.map(Fresh)
}

/// Where the node stands: `peer` and `msb` as wallets read them, `node` as `hp status --json` shows it.
#[utoipa::path(get, path = "/v1/status", tag = "node", responses((status = 200, description = "Where it stands")))]
async fn status(State(api): State<Api>) -> Reply {
    api.ask(Question::Status).await.map(Fresh)
}

/// The node's links to other nodes, with the time a message takes there and back.
#[utoipa::path(get, path = "/v1/peers", tag = "node", responses((status = 200, description = "`{\"peers\": [...]}`")))]
async fn peers(State(api): State<Api>) -> Reply {
    api.ask(Question::Peers).await.map(Fresh)
}

/// Which nodes decide, which of them are live, and who votes for a change.
#[utoipa::path(get, path = "/v1/unl", tag = "node", responses((status = 200, description = "The UNL")))]
async fn unl(State(api): State<Api>) -> Reply {
    api.ask(Question::Unl).await.map(Fresh)
}

/// The end of what the contract printed on this node, run after run. Other nodes' runs may print something else.
#[utoipa::path(get, path = "/v1/contract/log", tag = "node", responses(
    (status = 200, description = "`{\"streams\": [{\"name\": \"stdout\", \"text\"}, ...]}`, up to 16 KiB of each"),
))]
async fn log(State(api): State<Api>) -> Reply {
    api.ask(Question::Log).await.map(Fresh)
}

/// What the last 100 rounds took: time per stage, attempts, who was late, execution, bytes.
#[utoipa::path(get, path = "/v1/rounds", tag = "node", responses((status = 200, description = "`{\"rounds\": [...]}`, the newest last")))]
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
#[utoipa::path(get, path = "/v1/evidence", tag = "node", responses((status = 200, description = "`{\"evidence\": [...]}`")))]
async fn evidence(State(api): State<Api>) -> Reply {
    api.ask(Question::Evidence).await.map(Fresh)
}

/// Where settling on the bus stands.
#[utoipa::path(get, path = "/v1/settlements", tag = "node", responses(
    (status = 200, description = "`{\"settlement\": ...}`, null where this node settles nothing"),
))]
async fn settlements(State(api): State<Api>) -> Reply {
    api.ask(Question::Settlements).await.map(Fresh)
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
