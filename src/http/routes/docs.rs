//! What describes the routes: as a document for programs, and as a page.

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::http::{answer::Fresh, api::Api};

/// Nothing but itself and the document.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes(router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    router.routes(routes!(document))
}

/// The page at `/docs`, for people: not among the routes for programs.
pub(in crate::http) fn page() -> Router {
    let script = HeaderValue::from_static("text/javascript; charset=utf-8");
    let style = HeaderValue::from_static("text/css; charset=utf-8");
    let file = |kind: HeaderValue, text: &'static str| async move { ([(header::CONTENT_TYPE, kind)], text) };
    Router::new()
        .route("/docs", get(docs))
        .route("/docs.js", get(move || file(script, include_str!("docs/docs.js"))))
        .route("/docs.css", get(move || file(style, include_str!("docs/docs.css"))))
}

async fn docs() -> Response {
    let policy = [(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))];
    (policy, Html(include_str!("docs/docs.html"))).into_response()
}

/// This document: every route, its parameters and what it answers.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "node", responses((status = 200, description = "OpenAPI 3.1")))]
async fn document(State(api): State<Api>) -> Response {
    Fresh((*api.document).clone()).into_response()
}
