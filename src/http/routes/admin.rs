//! What an operator does over HTTP: nothing, unless the configuration names a token, and the request shows it.

use axum::{
    extract::{FromRequestParts, State},
    http::{HeaderValue, header, request::Parts},
    response::{IntoResponse, Response},
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::http::{
    Ban, Question, UnlVote,
    answer::{Failure, Fresh, Reply},
    answers,
    api::{Api, Part},
    body::JsonBody,
};

pub(super) fn routes(router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    router
        .routes(routes!(vote))
        .routes(routes!(withdraw))
        .routes(routes!(stop))
        .routes(routes!(bans))
        .routes(routes!(ban))
        .routes(routes!(unban))
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
        (status = 200, description = "The UNL, with the vote", body = answers::Unl),
        (status = 400, description = "The body is wrong", body = answers::Error),
        (status = 401, description = "No token, or a wrong one", body = answers::Error),
        (status = 403, description = "Off: `[http] admin_token_file` is not set", body = answers::Error),
        (status = 409, description = "The vote is refused; `yes` insists where it is dangerous", body = answers::Error),
    ))]
async fn vote(State(api): State<Api>, _: Operator, JsonBody(body): JsonBody) -> Reply {
    let vote: UnlVote =
        serde_json::from_value(body).map_err(|error| Failure::bad(format!("Invalid body: {error}.")))?;
    api.ask(Question::UnlVote(vote)).await.map(Fresh)
}

/// Take that vote back.
#[utoipa::path(post, path = "/v1/admin/unl/withdraw", tag = "operators", responses(
    (status = 200, description = "The UNL, without the vote", body = answers::Unl),
    (status = 401, description = "No token, or a wrong one", body = answers::Error),
    (status = 403, description = "Off: `[http] admin_token_file` is not set", body = answers::Error),
    (status = 409, description = "It cannot be taken back", body = answers::Error),
))]
async fn withdraw(State(api): State<Api>, _: Operator) -> Reply {
    api.ask(Question::UnlWithdraw).await.map(Fresh)
}

/// End the node in order, as SIGTERM does. What keeps it running (systemd, a container) may start it again.
#[utoipa::path(post, path = "/v1/admin/stop", tag = "operators", responses(
    (status = 200, description = "It ends", body = answers::Stopping),
    (status = 401, description = "No token, or a wrong one", body = answers::Error),
    (status = 403, description = "Off: `[http] admin_token_file` is not set", body = answers::Error),
))]
async fn stop(State(api): State<Api>, _: Operator) -> Reply {
    api.ask(Question::Stop).await.map(Fresh)
}

/// Whom this node wants no link with, and for how long.
#[utoipa::path(get, path = "/v1/admin/bans", tag = "operators", responses(
    (status = 200, description = "Bans that stand", body = answers::Bans),
    (status = 401, description = "No token, or a wrong one", body = answers::Error),
    (status = 403, description = "Off: `[http] admin_token_file` is not set", body = answers::Error),
))]
async fn bans(State(api): State<Api>, _: Operator) -> Reply {
    api.ask(Question::Bans).await.map(Fresh)
}

/// A ban.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes the body, which is read by hand")]
struct BanBody {
    /// The node's key: 64 hexadecimal digits.
    node: String,
    /// For how many seconds, at most 30 days; an hour unless told otherwise.
    for_s: Option<u64>,
    /// Why, for operators: 256 bytes at most.
    reason: Option<String>,
}

/// Have no link with a node for a time: the link ends, and further ones are refused. Members cannot be banned.
#[utoipa::path(post, path = "/v1/admin/bans", tag = "operators", request_body = BanBody, responses(
    (status = 200, description = "Bans that stand", body = answers::Bans),
    (status = 400, description = "The body is wrong", body = answers::Error),
    (status = 401, description = "No token, or a wrong one", body = answers::Error),
    (status = 403, description = "Off: `[http] admin_token_file` is not set", body = answers::Error),
    (status = 409, description = "It is refused: a member, this node, no key, too long, or as many are banned as may", body = answers::Error),
))]
async fn ban(State(api): State<Api>, _: Operator, JsonBody(body): JsonBody) -> Reply {
    let ban: Ban = serde_json::from_value(body).map_err(|error| Failure::bad(format!("Invalid body: {error}.")))?;
    api.ask(Question::Ban(ban)).await.map(Fresh)
}

/// Take a ban back.
#[utoipa::path(delete, path = "/v1/admin/bans/{node}", tag = "operators",
    params(("node" = String, Path, description = "The node's key: 64 hexadecimal digits")),
    responses(
        (status = 200, description = "Bans that stand", body = answers::Bans),
        (status = 400, description = "The path is no text", body = answers::Error),
        (status = 401, description = "No token, or a wrong one", body = answers::Error),
        (status = 403, description = "Off: `[http] admin_token_file` is not set", body = answers::Error),
        (status = 409, description = "There is no such ban", body = answers::Error),
    ))]
async fn unban(State(api): State<Api>, _: Operator, Part(node): Part) -> Reply {
    api.ask(Question::Unban { node }).await.map(Fresh)
}
