//! What goes out: JSON, and what is wrong in one form.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

/// Why there is no answer: a status and a text that says what, with which value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status.
    pub status: u16,
    /// For people.
    pub error: String,
}

impl Failure {
    /// The request is wrong.
    pub fn bad(error: impl Into<String>) -> Failure {
        Failure { status: 400, error: error.into() }
    }

    /// It is not allowed here.
    pub fn forbidden(error: impl Into<String>) -> Failure {
        Failure { status: 403, error: error.into() }
    }

    /// There is no such thing.
    pub fn not_found(error: impl Into<String>) -> Failure {
        Failure { status: 404, error: error.into() }
    }

    /// Not now; it may be asked again.
    pub fn busy(error: impl Into<String>) -> Failure {
        Failure { status: 503, error: error.into() }
    }

    /// It is the node's own fault; what exactly stands in the log.
    pub fn internal() -> Failure {
        Failure { status: 500, error: "An internal error occurred.".to_owned() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(json!({ "error": self.error }))).into_response()
    }
}

/// JSON that no cache may keep: it is true now.
#[derive(Debug)]
pub struct Fresh(pub Value);

impl IntoResponse for Fresh {
    fn into_response(self) -> Response {
        ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(self.0)).into_response()
    }
}

/// What most handlers return.
pub type Reply = Result<Fresh, Failure>;
