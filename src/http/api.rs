//! The router, and the document that describes it. Both are made of the same declarations beside the handlers.

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    body::to_bytes,
    extract::{FromRequestParts, Path, Request, State},
    http::{HeaderName, HeaderValue, Method, header, request::Parts},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};
use tracing::error;
use utoipa::openapi::{Info, OpenApi, Paths};
use utoipa_axum::router::OpenApiRouter;

use super::{AdminToken, Answer, HttpConfig, Question, Source, answer::Failure, held::Room, host::Hosts, page, routes};

/// Bytes of an answer. What would be longer is refused: `hp ledger` shows it.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What every handler has at hand.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) source: Arc<dyn Source>,
    pub(super) room: Room,
    hosts: Arc<Hosts>,
    pub(super) body_bytes_max: usize,
    pub(super) api_tx_exposed: bool,
    pub(super) admin_token: Option<AdminToken>,
    pub(super) document: Arc<Value>,
}

impl Api {
    /// Asks the node.
    pub(super) async fn ask(&self, question: Question) -> Answer {
        self.source.ask(question).await
    }
}

/// A part of the path.
#[derive(Debug)]
pub(super) struct Part(pub(super) String);

impl FromRequestParts<Api> for Part {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Part, Failure> {
        let part = Path::<String>::from_request_parts(parts, api).await;
        part.map(|Path(part)| Part(part)).map_err(|_| Failure::bad("Invalid path: it is no text in UTF-8."))
    }
}

/// Everything there is, within its limits.
pub(super) fn router(config: HttpConfig, source: Arc<dyn Source>) -> Router {
    let (routes, document) = declared();
    let api = Api {
        source,
        room: Room::new(),
        hosts: Hosts::new(&config.names, config.tls.is_some()).into(),
        body_bytes_max: config.body_bytes_max,
        api_tx_exposed: config.api_tx_exposed,
        admin_token: config.admin_token,
        document: with_default(serde_json::to_value(&document).expect("a document is plain data")).into(),
    };
    routes
        .with_state(api.clone())
        .merge(page::router())
        .merge(routes::docs_page())
        .fallback(async || Failure::not_found("Not Found").into_response())
        .method_not_allowed_fallback(async || method_not_allowed().into_response())
        .layer(from_fn_with_state(api, guard))
        .layer(cors(&config.cors))
        .layer(CatchPanicLayer::custom(panicked))
}

/// The routes for programs, and what describes them.
fn declared() -> (Router<Api>, OpenApi) {
    let mut info = Info::new("Hot Pocket", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "One node of a Hot Pocket network: its ledgers, its contract's state, inputs, and events as they happen. Errors are \
         `{\"error\": \"what, with which value\"}`."
            .to_owned(),
    );
    let router = OpenApiRouter::with_openapi(OpenApi::new(info, Paths::new()));
    routes::all(router).split_for_parts()
}

/// The document, with what any route may answer beside what is its own: a body that is too long, a host that is not this node, ...
fn with_default(mut document: Value) -> Value {
    let error = json!({ "$ref": "#/components/schemas/Error" });
    let default = json!({
        "description": "Anything else that is wrong, with the request or here",
        "content": { "application/json": { "schema": error } },
    });
    let paths = document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
    let operations =
        paths.flat_map(|path| path.as_object_mut().into_iter().flat_map(|operations| operations.values_mut()));
    operations.for_each(|operation| operation["responses"]["default"] = default.clone());
    document
}

fn method_not_allowed() -> Failure {
    Failure { status: 405, error: "Method Not Allowed".to_owned() }
}

/// A fault of ours: the client hears that there was one, the log what.
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let what = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    error!(what = what.unwrap_or("of another type"), "a route of the HTTP side panicked");
    Failure::internal().into_response()
}

/// What holds for every route: it is this node that is asked, long answers take their turn in memory, and no browser guesses what
/// they are.
async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    let response = match api.hosts.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    let (mut parts, body) = response.into_parts();
    parts.headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    let is_json = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !is_json {
        return Response::from_parts(parts, body);
    }
    match to_bytes(body, ANSWER_BYTES_MAX).await {
        Ok(bytes) => Response::from_parts(parts, api.room.body(bytes).await),
        Err(_) => {
            let why =
                format!("The answer is longer than {ANSWER_BYTES_MAX} bytes; `hp ledger show` at the node has it.");
            Failure { status: 413, error: why }.into_response()
        }
    }
}

fn cors(origins: &[String]) -> CorsLayer {
    let origin = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    CorsLayer::new().allow_origin(origin).allow_methods([Method::GET, Method::POST, Method::DELETE]).allow_headers([
        header::CONTENT_TYPE,
        header::AUTHORIZATION,
        HeaderName::from_static("last-event-id"),
    ])
}
