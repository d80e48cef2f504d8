//! Why there is no answer from a bus, told apart by what is to be done about it.

use std::time::Duration;

use serde_json::Value;

/// Characters of a refusal's text that are shown.
const TEXT_MAX: usize = 300;

/// Why a text is not the URL of a bus.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// No URL. (It is not shown: it may hold a password.)
    #[error("not a URL: {0}; expected something like http://127.0.0.1:5000")]
    Syntax(String),
    /// Another protocol.
    #[error("expected http:// or https://, got {0}://")]
    Scheme(String),
    /// `?` or `#`.
    #[error("the URL of a bus has neither ? nor #")]
    Rest,
    /// Too long.
    #[error("a URL of {0} bytes is too long")]
    TooLong(usize),
    /// The machine has no certificates to check others with, for example.
    #[error(
        "cannot prepare encrypted connections (are the system's certificates installed? `[msb] ca_file` names others)"
    )]
    Tls(#[source] reqwest::Error),
}

/// Why a question to the bus has no answer. None of them says that an operation did not land.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The bus answered, and not with 200.
    #[error("{route}: refused with {status}: {text}")]
    Refused {
        /// Method and URL, without a password.
        route: String,
        /// The HTTP status.
        status: u16,
        /// What it said: harmless to print, cut to 300 characters.
        text: String,
        /// What the embedded bus says beyond the real one.
        reason: Option<String>,
    },
    /// Who answers is not shown to be the bus. Nothing was asked.
    #[error("{route}: the bus's certificate is refused: {what}")]
    Certificate {
        /// Method and URL, without a password.
        route: String,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// No connection, or it broke.
    #[error("{route}: the bus cannot be reached")]
    Unreachable {
        /// Method and URL, without a password.
        route: String,
        /// Why.
        source: reqwest::Error,
    },
    /// No answer in time. The operation may have landed.
    #[error("{route}: no answer within {after:?}")]
    Timeout {
        /// Method and URL, without a password.
        route: String,
        /// The time.
        after: Duration,
    },
    /// An answer that the bus does not give.
    #[error("{route}: the answer is not a bus's: {what}")]
    Malformed {
        /// Method and URL, without a password.
        route: String,
        /// What is wrong.
        what: String,
    },
}

impl ClientError {
    pub(super) fn refused(route: String, status: u16, body: &[u8]) -> ClientError {
        let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let text = match value["error"].as_str() {
            Some(text) => text.to_owned(),
            None => String::from_utf8_lossy(body).into_owned(),
        };
        let reason = value["reason"].as_str().map(plain);
        ClientError::Refused { route, status, text: plain(&text), reason }
    }

    /// Whether the bus says that there is no such operation, and not that there is no such page.
    pub(super) fn is_absent(&self) -> bool {
        let texts = ["Transaction ", "No payload found for tx hash"];
        matches!(self, ClientError::Refused { status: 404, text, .. } if texts.iter().any(|start| text.starts_with(start)))
            || matches!(self, ClientError::Refused { status: 404, text, .. } if text == r#"{"txDetails":null}"#)
    }

    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Without what could take a terminal over.
fn plain(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_MAX).collect();
    let text = text.trim();
    if text.is_empty() { "(nothing)".to_owned() } else { text.to_owned() }
}
