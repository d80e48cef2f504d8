//! What people see at `/`: files that are part of the program, as they are. No build step, and nothing from another host.
//!
//! Nothing in them comes from the network, so all of it may run; whatever the page shows it writes as text, which the policy
//! below enforces where browsers know how to (`require-trusted-types-for`).

use axum::{
    Router,
    extract::Path,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{crypto::sha256, http::answer::Failure};

/// What the page may do: run its own files, ask its own node, and open websockets, to whichever node of the network a person names.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' ws: wss:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Name below `/page/`, kind, bytes. The client is that of `clients/js`.
const FILES: [(&str, &str, &[u8]); 10] = [
    ("index.html", HTML, include_bytes!("index.html")),
    ("style.css", CSS, include_bytes!("style.css")),
    ("icon.svg", "image/svg+xml", include_bytes!("icon.svg")),
    ("app.js", JAVASCRIPT, include_bytes!("app.js")),
    ("dom.js", JAVASCRIPT, include_bytes!("dom.js")),
    ("ledgers.js", JAVASCRIPT, include_bytes!("ledgers.js")),
    ("settlements.js", JAVASCRIPT, include_bytes!("settlements.js")),
    ("console.js", JAVASCRIPT, include_bytes!("console.js")),
    ("hotpocket.js", JAVASCRIPT, include_bytes!("../../../clients/js/hotpocket.js")),
    ("proof.js", JAVASCRIPT, include_bytes!("../../../clients/js/proof.js")),
];

/// The page and its files.
pub(super) fn router() -> Router {
    Router::new()
        .route("/", get(async |headers: HeaderMap| file("index.html", &headers)))
        .route("/page/{name}", get(async |Path(name): Path<String>, headers: HeaderMap| file(&name, &headers)))
}

fn file(name: &str, asked: &HeaderMap) -> Response {
    let Some((_, kind, bytes)) = FILES.iter().find(|(other, ..)| *other == name) else {
        return Failure::not_found("Not Found").into_response();
    };
    // Another program may serve another page at this address tomorrow, so a browser asks each time, and is told that it has it.
    let tag = format!("\"{}\"", sha256(&[bytes]).short());
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::ETAG, HeaderValue::from_str(&tag).expect("digits")),
    ];
    if asked.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, *bytes).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of everything the page loads.
    const PAGE_BYTES_MAX: usize = 200_000;

    #[test]
    fn the_page_is_small_has_no_inline_code_and_asks_no_other_host() {
        let all: usize = FILES.iter().map(|(_, _, bytes)| bytes.len()).sum();
        assert!(all <= PAGE_BYTES_MAX, "{all} bytes");
        for (name, kind, bytes) in FILES {
            let text = std::str::from_utf8(bytes).expect("UTF-8");
            if kind == HTML {
                assert_eq!(
                    text.matches("<script").count(),
                    text.matches("<script type=\"module\" src=\"/page/").count()
                );
                assert!(!text.contains("<style") && !text.contains(" style="), "{name}: an inline style");
                let is_listener =
                    |rest: &str| rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).starts_with('=');
                assert!(!text.split(" on").skip(1).any(is_listener), "{name}: inline code");
            }
            for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
                assert!(!text.contains(sink), "{name} has {sink}");
            }
            let host = text.match_indices("//").map(|(at, _)| &text[at.saturating_sub(6)..]).find(|text| {
                (text.starts_with("https:") || text.starts_with(" http:")) && !text.contains("www.w3.org")
            });
            assert_eq!(host, None, "{name}: another host");
        }
    }

    #[test]
    fn every_file_the_page_names_is_served_and_every_one_served_is_named() {
        let texts: String = FILES.iter().map(|(_, _, bytes)| String::from_utf8_lossy(bytes)).collect();
        for (name, ..) in FILES.iter().filter(|(name, ..)| *name != "index.html") {
            assert!(texts.contains(&format!("/page/{name}\"")) || texts.contains(&format!("\"./{name}\"")), "{name}");
        }
        for part in texts.split("/page/").skip(1) {
            let name: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '.').collect();
            assert!(FILES.iter().any(|(other, ..)| *other == name), "{name:?}");
        }
    }

    #[test]
    fn a_file_that_the_browser_has_is_not_sent_again_and_no_other_path_is_one() {
        let first = file("app.js", &HeaderMap::new());
        let mut again = HeaderMap::new();
        again.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!((first.status(), file("app.js", &again).status()), (StatusCode::OK, StatusCode::NOT_MODIFIED));
        assert_eq!(file("style.css", &again).status(), StatusCode::OK, "another file");
        assert_eq!(first.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
        for name in ["", "mod.rs", "../page/app.js", "app.js/"] {
            assert_eq!(file(name, &HeaderMap::new()).status(), StatusCode::NOT_FOUND, "{name:?}");
        }
    }
}
