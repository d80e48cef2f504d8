//! What an operator does over HTTP: nothing, unless the configuration names a token, and the request shows it.

use axum::{
    extract::{FromRequestParts, State},
    http::{HeaderValue, header, request::Parts},
    response::{IntoResponse, Response},
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::http::{
    Question, UnlVote,
    answer::{Failure, Fresh, Reply},
    api::Api,
    body::JsonBody,
};

pub(super) fn routes(router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    router.routes(routes!(vote)).routes(routes!(withdraw))
}

/// Whoever has this showed the token.
struct Operator;

/// Why somebody is no operator.
enum Denied {
    Off,
    Wrong,
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        match self {
            Denied::Off => {
                let why = "Operators do nothing over HTTP at this node: [http] admin_token_file is not set.";
                Failure::forbidden(why).into_response()
            }
            Denied::Wrong => {
                let failure = Failure {
                    status: 401,
                    error: "Missing or wrong token: expected Authorization: Bearer TOKEN.".to_owned(),
                };
                ([(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))], failure).into_response()
            }
        }
    }
}

impl FromRequestParts<Api> for Operator {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Operator, Denied> {
        let token = api.admin_token.as_ref().ok_or(Denied::Off)?;
        let shown = parts.headers.get(header::AUTHORIZATION).and_then(|shown| shown.to_str().ok());
        let shown = shown.and_then(|shown| shown.strip_prefix("Bearer "));
        match shown.is_some_and(|shown| token.is(shown.trim())) {
            true => Ok(Operator),
            false => Err(Denied::Wrong),
        }
    }
}

/// The vote of a node's operator.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes the body, which is read by hand")]
struct VoteBody {
    /// Whether the node is to come, or to go.
    add: bool,
    /// Its key: 64 hexadecimal digits.
    node: String,
    /// Where it listens, as `host:port`, to be dialled from now on.
    peer: Option<String>,
    /// Also when too few members would be live to close ledgers.
    yes: Option<bool>,
}

/// Vote for a change of the UNL, as `hp unl add` and `hp unl remove` do.
#[utoipa::path(post, path = "/v1/admin/unl/vote", tag = "operators", request_body = VoteBody,
    responses(
        (status = 200, description = "The UNL, with the vote"),
        (status = 400, description = "The body is wrong"),
        (status = 401, description = "No token, or a wrong one"),
        (status = 403, description = "Off: `[http] admin_token_file` is not set"),
        (status = 409, description = "The vote is refused; `yes` insists where it is dangerous"),
    ))]
async fn vote(State(api): State<Api>, _: Operator, JsonBody(body): JsonBody) -> Reply {
    let vote: UnlVote =
        serde_json::from_value(body).map_err(|error| Failure::bad(format!("Invalid body: {error}.")))?;
    api.ask(Question::UnlVote(vote)).await.map(Fresh)
}

/// Take that vote back.
#[utoipa::path(post, path = "/v1/admin/unl/withdraw", tag = "operators", responses(
    (status = 200, description = "The UNL, without the vote"),
    (status = 401, description = "No token, or a wrong one"),
    (status = 403, description = "Off: `[http] admin_token_file` is not set"),
    (status = 409, description = "It cannot be taken back"),
))]
async fn withdraw(State(api): State<Api>, _: Operator) -> Reply {
    api.ask(Question::UnlWithdraw).await.map(Fresh)
}
