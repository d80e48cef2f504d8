//! The HTTP side of real nodes: what its routes answer, and what they refuse.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use hotpocket::{
    config::{Document, quoted},
    crypto::SecretKey,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::net::{DEADLINE, Net, TestNode, block_on, probe, until};

/// A configuration with an HTTP side.
pub fn with_http(_: usize, document: &mut Document) {
    document.set("http.listen", &quoted("127.0.0.1:0"));
}

/// A client that waits for an answer, and follows nobody.
pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(DEADLINE).no_proxy().build().expect("a client")
}

/// What a node answers: the status and the JSON.
pub async fn ask(node: &TestNode, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let request = client().request(method, format!("{}{path}", node.http));
    let request = match body {
        Some(body) => request.header("content-type", "application/json").body(body.to_string()),
        None => request,
    };
    let response = request.send().await.expect("an answer");
    let (status, text) = (response.status().as_u16(), response.text().await.expect("text"));
    let value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {status} {text:?} is no JSON"));
    (status, value)
}

pub async fn get(node: &TestNode, path: &str) -> (u16, Value) {
    ask(node, Method::GET, path, None).await
}

#[test]
fn a_node_tells_over_http_where_it_stands_and_shows_every_ledger() {
    block_on(async {
        let net = Net::up_with(2, probe(), with_http).await;
        let node = &net.nodes[0];
        assert_eq!(node.user().await.ask("hello").await, "5 5");
        let (seq, lcl) = net.agree().await;
        assert_eq!(get(node, "/v1/health").await, (200, json!({ "ok": true })));
        let (status, said) = get(node, "/v1/status").await;
        assert_eq!(
            (status, &said["node"]["node"], &said["peer"]["pubKeyHex"]),
            (200, &said["peer"]["node"], &said["peer"]["node"])
        );
        assert_eq!(said["peer"]["unl"].as_array().unwrap().len(), 2);
        assert!(said["peer"]["unl"].as_array().unwrap().iter().all(|member| member["live"] == true), "{said}");
        let (_, ledger) = get(node, &format!("/v1/ledgers/{seq}")).await;
        assert_eq!((ledger["seq"].as_u64(), ledger["hash"].as_str()), (Some(seq), Some(&*lcl)));
        assert_eq!(get(node, &format!("/v1/ledgers/{lcl}")).await, (200, ledger));
        let (_, list) = get(node, "/v1/ledgers?from=1&limit=100").await;
        let numbers: Vec<u64> =
            list["ledgers"].as_array().unwrap().iter().filter_map(|it| it["seq"].as_u64()).collect();
        assert!(numbers.len() as u64 >= seq && (1..).zip(&numbers).all(|(at, number)| at == *number), "{numbers:?}");
        let inputs: u64 = list["ledgers"].as_array().unwrap().iter().filter_map(|it| it["inputs"].as_u64()).sum();
        assert_eq!(inputs, 1);
        let (_, newest) = get(node, "/v1/ledgers?limit=1").await;
        assert_eq!(newest["ledgers"][0]["seq"], newest["tip"]);
        for (path, list) in [("peers", "peers"), ("unl", "members")] {
            let (status, said) = get(node, &format!("/v1/{path}")).await;
            assert_eq!((status, said[list].as_array().map(Vec::len)), (200, Some(if path == "unl" { 2 } else { 1 })));
        }
        assert_eq!(get(node, "/v1/divergence").await, (200, json!({ "divergence": [] })));
        assert_eq!(get(node, "/v1/evidence").await.1["evidence"], json!([]));
        assert_eq!(
            get(node, "/v1/settlements").await,
            (200, json!({ "settlement": null, "settlements": [], "settled_seq": 0 }))
        );
        let url = node.status().await.unwrap()["http_url"].clone();
        assert_eq!(url, node.http.as_str());
    });
}

#[test]
fn what_is_no_request_is_refused_with_what_is_wrong_and_the_node_goes_on() {
    block_on(async {
        let net = Net::up_with(1, probe(), |at, document| {
            with_http(at, document);
            document.set("http.body_max", "1000");
        })
        .await;
        let node = &net.nodes[0];
        let gets = [
            ("/v1/nothing", 404, "Not Found"),
            ("/v1/health/", 404, "Not Found"),
            ("/v1/ledgers/x", 400, "Invalid ledger: expected the number of a ledger, its hash"),
            ("/v1/ledgers/99999999", 404, "There is no ledger 99999999 here"),
            (&*format!("/v1/ledgers/{}", "ab".repeat(32)), 404, "There is no ledger abab"),
            ("/v1/ledgers/%ff", 400, "Invalid path"),
            ("/v1/ledgers?from=-1", 400, "Invalid from: expected a whole number from 0"),
            ("/v1/ledgers?limit=101", 400, "Invalid limit: expected a whole number from 1 to 100, got \"101\"."),
            ("/v1/ledgers?from=1&from=2", 400, "Invalid from: it stands twice."),
            ("/v1/divergence/x", 400, "Invalid seq"),
            ("/v1/divergence/7", 404, "There is no report on ledger 7 here."),
        ];
        for (path, status, error) in gets {
            let said = get(node, path).await;
            assert!(said.0 == status && said.1["error"].as_str().unwrap().starts_with(error), "{path}: {said:?}");
        }
        assert_eq!(
            ask(node, Method::DELETE, "/v1/ledgers", None).await,
            (405, json!({ "error": "Method Not Allowed" }))
        );
        let off = ask(node, Method::POST, "/v1/admin/unl/withdraw", None).await;
        assert!(off.0 == 403 && off.1["error"].as_str().unwrap().contains("admin_token_file"), "{off:?}");
        // A head that never ends, and one that is too long.
        let address = node.http.strip_prefix("http://").unwrap();
        let mut long = TcpStream::connect(address).await.unwrap();
        let _ = long.write_all(format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(20_000)).as_bytes()).await;
        let mut answer = Vec::new();
        let _ = timeout(DEADLINE, long.read_to_end(&mut answer)).await.expect("it is cut");
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(DEADLINE, slow.read_to_end(&mut rest));
        let other = get(node, "/v1/health");
        assert_eq!(other.await.0, 200, "others are served meanwhile");
        let _ = closed.await.expect("a slow head is cut");
    });
}

#[test]
fn an_operator_votes_over_http_with_the_token_alone() {
    block_on(async {
        const TOKEN: &str = "a-token-of-an-operator";
        let mut net = Net::new(1, probe(), |at, document| {
            with_http(at, document);
            document.set("http.admin_token_file", &quoted("cfg/admin.token"));
        });
        let file = net.nodes[0].dir.join("cfg/admin.token");
        fs::write(&file, "short\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let (code, said) = net.nodes[0].start_fails().await;
        assert!(code == Some(3) && said.contains("http.admin_token_file") && said.contains("16 visible"), "{said}");
        fs::write(&file, format!("{TOKEN}\n")).unwrap();
        net.start_all().await;
        let node = &net.nodes[0];
        let other = SecretKey::generate().node_key().to_string();
        let vote = |token: Option<&str>, body: Value| {
            let request = client().post(format!("{}/v1/admin/unl/vote", node.http)).body(body.to_string());
            let request = request.header("content-type", "application/json");
            match token {
                Some(token) => request.header("authorization", format!("Bearer {token}")),
                None => request,
            }
            .send()
        };
        let body = || json!({ "add": true, "node": other, "yes": true });
        for token in [None, Some("a-token-of-an-operatos"), Some("")] {
            let refused = vote(token, body()).await.unwrap();
            assert_eq!(
                (refused.status(), refused.headers()["www-authenticate"].as_bytes()),
                (StatusCode::UNAUTHORIZED, &b"Bearer"[..])
            );
        }
        let wrong = vote(Some(TOKEN), json!({ "add": true, "nodee": 1 })).await.unwrap();
        assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
        assert_eq!(
            vote(Some(TOKEN), json!({ "add": true, "node": "zz" })).await.unwrap().status(),
            StatusCode::CONFLICT
        );
        let done = vote(Some(TOKEN), body()).await.unwrap();
        assert_eq!(done.status(), StatusCode::OK);
        let unl: Value = serde_json::from_str(&done.text().await.unwrap()).unwrap();
        // Of one member its own vote is the quorum.
        assert!(unl["vote"]["node"] == other || unl["members"].to_string().contains(&other), "{unl}");
        assert!(!node.log().contains(TOKEN), "the token is in the log");
    });
}

#[test]
fn events_are_told_as_they_happen_and_again_to_who_asks_for_those_after_one() {
    block_on(async {
        let net = Net::up_with(1, probe(), with_http).await;
        let node = &net.nodes[0];
        let mut response = client().get(format!("{}/v1/events", node.http)).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut text = String::new();
        let mut user = node.user().await;
        user.ask("hello").await;
        while !["event: stage", "event: ledger", "event: run", "event: users"].iter().all(|it| text.contains(it)) {
            let chunk = timeout(DEADLINE, response.chunk()).await.expect("events").unwrap().expect("it goes on");
            text += std::str::from_utf8(&chunk).unwrap();
        }
        let first: u64 = text.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().parse().unwrap();
        drop(response);
        let again = client().get(format!("{}/v1/events", node.http)).header("last-event-id", first.to_string());
        let mut again = again.send().await.unwrap();
        let mut text = String::new();
        until("the next event", async || {
            let chunk = again.chunk().await.unwrap().unwrap();
            text += std::str::from_utf8(&chunk).unwrap();
            text.contains(&format!("id: {}\n", first + 1)).then_some(())
        })
        .await;
        assert!(!text.contains(&format!("id: {first}\n")) && !text.contains("event: gap"));
    });
}

/// Nobody's requests take a turn of the thread that closes ledgers.
#[test]
fn a_flood_of_requests_delays_no_round() {
    block_on(async {
        let net = Net::up_with(1, probe(), with_http).await;
        let node = &net.nodes[0];
        let mut user = node.user().await;
        user.ask("x").await;
        let client = client();
        let flood: Vec<_> = (0..16)
            .map(|at| {
                let path = ["/v1/status", "/v1/ledgers?limit=100", "/v1/unl", "/v1/openapi.json"][at % 4];
                let (client, url) = (client.clone(), format!("{}{path}", node.http));
                tokio::spawn(async move {
                    loop {
                        let answer = client.get(&url).send().await.expect("an answer");
                        assert_eq!(answer.status(), StatusCode::OK);
                        let _ = answer.bytes().await;
                    }
                })
            })
            .collect();
        for at in 2..22 {
            let answer = timeout(Duration::from_secs(5), user.ask("x")).await;
            assert_eq!(answer.expect("a round goes on"), format!("1 {at}"));
        }
        assert!(flood.iter().all(|task| !task.is_finished()), "every request was answered");
        flood.iter().for_each(|task| task.abort());
    });
}

/// Whatever is asked, what must stay at the node stays there.
#[test]
fn no_route_tells_a_secret() {
    block_on(async {
        let net = Net::up_with(1, probe(), with_http).await;
        let node = &net.nodes[0];
        let seed = node.secret.as_ref().unwrap().to_hex();
        let (_, document) = get(node, "/v1/openapi.json").await;
        let mut asked = 0;
        for (path, methods) in document["paths"].as_object().unwrap() {
            let path = path.replace("{ledger}", "1").replace("{seq}", "1").replace("{id}", "1").replace("{node}", "1");
            if path == "/v1/events" {
                continue;
            }
            for method in methods.as_object().unwrap().keys() {
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                let answer = client().request(method.clone(), format!("{}{path}", node.http)).send().await.unwrap();
                let (status, text) = (answer.status(), answer.text().await.unwrap());
                assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{method} {path}: {text}");
                assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path} is in the document alone");
                assert!(!text.contains("Not Found"), "{method} {path} is in the document alone");
                assert!(!text.contains(&seed), "{method} {path} tells the node's secret key");
                asked += 1;
            }
        }
        assert!(asked >= 20, "{asked}");
        for path in ["/", "/docs", "/docs.js", "/docs.css"] {
            let page = client().get(format!("{}{path}", node.http)).send().await.unwrap();
            assert_eq!(page.status(), StatusCode::OK, "{path}");
        }
    });
}

/// A route can only be declared together with what describes it, but for the pages.
#[test]
fn every_route_is_in_the_document() {
    let routes = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/routes");
    let (mut declared, mut described) = (0, 0);
    for file in fs::read_dir(routes).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = fs::read_to_string(&file).unwrap();
        declared += text.matches("routes!(").count();
        described += text.matches("#[utoipa::path(").count();
        let bare: Vec<&str> = text.lines().filter(|line| line.contains(".route(")).collect();
        assert!(bare.iter().all(|line| line.contains("\"/docs")), "{}: {bare:?}", file.display());
    }
    assert!(declared == described && declared > 20, "{declared} declared, {described} described");
}
