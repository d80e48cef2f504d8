//! What wallets do over HTTP: the bodies and errors that they expect, word for word, and what becomes of an input.

use std::fs;

use hotpocket::{
    config::Document,
    crypto::SecretKey,
    signed::{Base64, sign_input},
    types::Hash,
};
use reqwest::Method;
use serde_json::{Value, json};

use super::http::{ask, get, with_http};
use crate::net::{Net, TestNode, block_on, probe};

pub fn exposed(at: usize, document: &mut Document) {
    with_http(at, document);
    document.set("http.api_tx_exposed", "true");
}

pub async fn post(node: &TestNode, path: &str, body: Value) -> (u16, Value) {
    ask(node, Method::POST, path, Some(body)).await
}

fn error(text: &str) -> Value {
    json!({ "error": text })
}

/// What a wallet does with a command: has it prepared, signs the id, and has the body to send.
pub async fn signed(node: &TestNode, key: &SecretKey, nonce: u64, command: Value) -> Value {
    let draft = json!({ "prepared_command": command, "address": key.user_key().to_string(), "nonce": nonce });
    let (status, prepared) = post(node, "/v1/contract/tx/prepare", draft.clone()).await;
    assert_eq!(status, 200, "{prepared}");
    let id: Hash = prepared["tx"].as_str().unwrap().parse().unwrap();
    // The same as everybody computes it who has the context.
    let chain: Hash = prepared["context"]["chain"].as_str().unwrap().parse().unwrap();
    let payload: Base64 = serde_json::from_value(prepared["payload"].clone()).unwrap();
    let max_ledger = prepared["max_ledger"].as_u64().unwrap();
    assert_eq!(sign_input(key, &chain, nonce, max_ledger, payload.0).id(&chain), id);
    let mut body = draft;
    body["tx"] = prepared["tx"].clone();
    body["max_ledger"] = max_ledger.into();
    body["signature"] = key.sign(&id.0).to_string().into();
    body
}

#[test]
fn wallets_get_the_bodies_and_errors_that_they_expect() {
    block_on(async {
        let net = Net::up_with(1, probe(), exposed).await;
        let node = &net.nodes[0];
        let key = SecretKey::from_seed([5; 32]);
        let user = key.user_key().to_string();
        assert_eq!(node.user().await.ask("abc").await, "3 3");
        net.agree().await;

        // GET
        let root = "blake3 root";
        let (status, mut state) = get(node, "/v1/state?key=inputs").await;
        assert!(state["hash"].as_str().unwrap().len() == 64 && state["seq"].as_u64().unwrap() >= 1, "{state}");
        (state["hash"], state["seq"]) = (root.into(), json!(1));
        let found = json!({ "key": "inputs", "confirmed": true, "value": "3", "size": 1, "hash": root, "seq": 1 });
        assert_eq!((status, state), (200, found));
        let (status, latest) = get(node, "/v1/state?key=inputs&confirmed=no").await;
        assert_eq!((status, &latest["confirmed"], &latest["value"]), (200, &json!(false), &json!("3")));
        let (status, missing) = get(node, "/v1/state?key=no/such").await;
        assert_eq!((status, &missing["value"], missing.get("key")), (200, &Value::Null, Some(&json!("no/such"))));
        assert_eq!(get(node, "/v1/state").await, (400, error("Missing key.")));
        for escape in ["../cfg/hp.cfg", "/etc/passwd", "a/../../x", "%2e%2e/cfg/hp.cfg", "a//b", ".", "a%00"] {
            let (status, said) = get(node, &format!("/v1/state?key={escape}")).await;
            assert!(status == 400 && said["error"].as_str().unwrap().starts_with("Invalid key: "), "{escape}: {said}");
        }
        assert_eq!(get(node, &format!("/v1/contract/nonce?pubkey={user}")).await, (200, json!({ "nonce": 0 })));
        assert_eq!(get(node, "/v1/contract/nonce").await, (400, error("Missing pubkey.")));
        let (status, context) = get(node, "/v1/contract/tx/context").await;
        let msb: Vec<&String> = context["msb"].as_object().unwrap().keys().collect();
        assert_eq!(
            (status, msb),
            (
                200,
                ["bs", "iw", "mbs", "networkId", "operationType", "txv"]
                    .iter()
                    .map(|key| (*key).to_owned())
                    .collect::<Vec<_>>()
                    .iter()
                    .collect()
            )
        );
        assert_eq!(
            (&context["tag"], &context["msb"]["networkId"], &context["msb"]["operationType"]),
            (&json!("hp/input/1"), &json!(918), &json!(12))
        );
        let (status, schema) = get(node, "/v1/contract/schema").await;
        assert_eq!(
            (status, &schema["schemaVersion"], &schema["schemaFormat"], &schema["contract"]["shipped"]),
            (200, &json!(1), &json!("json-schema"), &json!(false))
        );

        // POST: every error in the words of a peer.
        let tx = "/v1/contract/tx";
        assert_eq!(ask(node, Method::POST, tx, None).await, (400, error("Missing JSON body.")));
        let broken = super::http::client().post(format!("{}{tx}", node.http)).body("{").send().await.unwrap();
        assert_eq!(
            (broken.status().as_u16(), broken.text().await.unwrap()),
            (400, r#"{"error":"Invalid JSON payload."}"#.to_owned())
        );
        let good = signed(node, &key, 0, json!({ "type": "x", "value": 1 })).await;
        let with = |name: &str, value: Value| {
            let mut body = good.clone();
            body[name] = value;
            body
        };
        assert_eq!(post(node, tx, with("tx", "00".repeat(32).into())).await, (400, error("Invalid TX.")));
        assert_eq!(post(node, tx, with("nonce", 1.into())).await, (400, error("Invalid TX.")));
        assert_eq!(post(node, tx, with("signature", "00".repeat(64).into())).await, (400, error("Invalid signature.")));
        let mut bare = good.clone();
        bare.as_object_mut().unwrap().remove("prepared_command");
        assert_eq!(post(node, tx, bare).await, (400, error("Missing prepared_command.")));
        let long = json!({ "prepared_command": "x".repeat(999_900), "address": "y" });
        assert_eq!(post(node, tx, long).await.0, 400, "up to the limit a body is read");
        let longer = json!({ "prepared_command": "x".repeat(1_000_001) });
        assert_eq!(post(node, tx, longer).await, (413, error("Request body too large.")));
        assert_eq!(post(node, &format!("{tx}?wait=long"), good.clone()).await.0, 400);

        // None of that did anything.
        assert_eq!(node.state("inputs"), "3");
    });
}

#[test]
fn an_input_sent_over_http_takes_effect_once_and_its_output_comes_with_its_proof() {
    block_on(async {
        let net = Net::up_with(2, probe(), exposed).await;
        let node = &net.nodes[0];
        let key = SecretKey::from_seed([6; 32]);
        let tx = |wait: &str| format!("/v1/contract/tx?wait={wait}&timeout_ms=60000");

        // Tried, it changes nothing.
        let command = json!(["an", "input"]);
        let text = r#"["an","input"]"#;
        let body = signed(node, &key, 7, command.clone()).await;
        let mut tried = body.clone();
        tried["sim"] = true.into();
        // It needs a state that is agreed on.
        assert_eq!(node.user().await.ask("a").await, "1 1");
        net.agree().await;
        let (status, said) = post(node, &tx("accepted"), tried).await;
        assert_eq!(
            (status, &said["result"]["sim"], &said["result"]["status"]),
            (200, &json!(true), &json!("ok")),
            "{said}"
        );
        assert_eq!(said["result"]["output"], format!("{} {}", text.len(), text.len() + 1));
        assert_eq!(node.state("inputs"), "1");

        let (status, said) = post(node, &tx("output"), body.clone()).await;
        let result = &said["result"];
        assert_eq!((status, &result["status"], &result["tx"]), (200, &json!("executed"), &body["tx"]), "{said}");
        let output = &result["outcome"]["output"];
        let payload: Base64 = serde_json::from_value(output["payload"].clone()).unwrap();
        assert_eq!(String::from_utf8(payload.0).unwrap(), format!("{} {}", text.len(), text.len() + 1));
        assert!(output["proof"].is_object() && output["seq"] == result["seq"], "{said}");
        let seq = result["seq"].as_u64().unwrap();

        // The proof is one that a client checks.
        let session = node.signed(&key).await;
        let frame = serde_json::from_value(output.clone()).unwrap();
        session.client.trust().check_output(&key.user_key(), &frame).expect("the output is proven");
        let user = key.user_key();
        assert_eq!(get(node, &format!("/v1/ledgers/{seq}/proof?user={user}")).await.1["output"], *output);
        assert_eq!(get(node, &format!("/v1/ledgers/{seq}/proof?user={}", "ab".repeat(32))).await.0, 404);

        // Sent again, here and elsewhere, it is what it was; another one with its nonce never will be.
        for node in &net.nodes {
            let (status, said) = post(node, &tx("accepted"), body.clone()).await;
            assert_eq!(
                (status, &said["result"]["status"], &said["result"]["seq"]),
                (200, &json!("accepted"), &json!(seq)),
                "{said}"
            );
        }
        let other = signed(node, &key, 7, json!("another")).await;
        let (status, said) = post(node, &tx("accepted"), other).await;
        assert_eq!((status, said), (409, error("another input with this nonce is in a ledger already")));
        assert_eq!(get(node, &format!("/v1/contract/nonce?pubkey={user}")).await.1, json!({ "nonce": 8 }));

        // Known by its id, and one that is too late is told so.
        let (status, known) = get(node, &format!("/v1/inputs/{}", body["tx"].as_str().unwrap())).await;
        let said = ["status", "payload", "nonce", "seq", "kind"].map(|key| known[key].clone());
        assert_eq!(
            (status, said),
            (200, [json!("accepted"), json!(text), json!(7), json!(seq), json!("signed")]),
            "{known}"
        );
        assert_eq!(get(node, &format!("/v1/inputs/{}", "ab".repeat(32))).await.0, 404);
        let chain = session.client.trust().chain_id();
        let late = sign_input(&key, &chain, 9, 1, b"\"late\"".to_vec());
        let sig = key.sign(&late.id(&chain).0).to_string();
        let body = json!({
            "tx": late.id(&chain).to_string(), "prepared_command": "late", "address": user.to_string(), "nonce": 9,
            "max_ledger": 1, "signature": sig,
        });
        let (status, said) = post(node, "/v1/contract/tx", body).await;
        assert!(status == 409 && said["error"].as_str().unwrap().starts_with("Expired"), "{status} {said}");
        net.agree().await;
        assert_eq!(net.nodes[1].state("inputs"), (text.len() + 1).to_string());
    });
}

#[test]
fn without_leave_no_input_is_taken_and_a_contract_tells_what_it_takes() {
    block_on(async {
        let mut net = Net::new(1, probe(), with_http);
        let folder = net.nodes[0].dir.join("bin");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("schema.json"), r#"{"title": "probe", "type": "string"}"#).unwrap();
        net.start_all().await;
        let node = &net.nodes[0];
        let (status, said) = post(node, "/v1/contract/tx", json!({})).await;
        assert!(status == 403 && said["error"].as_str().unwrap().contains("api_tx_exposed = true"), "{said}");
        let (_, schema) = get(node, "/v1/contract/schema").await;
        assert_eq!(
            (&schema["contract"]["name"], &schema["contract"]["schema"]["type"]),
            (&json!("probe"), &json!("string"))
        );
    });
}
