//! What people see at `/`.

use axum::{Router, response::Html, routing::get};

/// The page.
pub(super) fn router() -> Router {
    Router::new().route("/", get(async || Html(include_str!("index.html"))))
}
