//! What programs read and operators do over HTTP: answers are what the document says, settlements have a history, nodes are banned
//! for a time, and a node ends when it is told to.

use std::{fs, os::unix::fs::PermissionsExt as _};

use hotpocket::{
    config::{own_url, quoted},
    crypto::SecretKey,
};
use serde_json::{Value, json};

use super::{
    http::{client, get, with_http},
    members, wallet,
};
use crate::net::{Net, TestNode, block_on, free_ports, probe, until};

const TOKEN: &str = "a-token-of-an-operator";

/// Schemas of objects to which other fields may be added, as their descriptions say.
const OPEN: [&str; 1] = ["NodeStatus"];

/// Why a value is not what a schema of the document describes; also when it has a field that is not there.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{at}: {what}: {value} does not fit {schema}"));
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().expect("a name");
        let found = &document["components"]["schemas"][name];
        assert!(found.is_object(), "{name} is not in the document");
        let mut found = found.clone();
        if OPEN.contains(&name) {
            found["additionalProperties"] = json!(true);
        }
        return fits(document, &found, value, at);
    }
    for any in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[any].as_array() {
            let tried: Vec<String> =
                choices.iter().filter_map(|choice| fits(document, choice, value, at).err()).collect();
            // Of `oneOf` no two may fit.
            return match choices.len() - tried.len() {
                1 => Ok(()),
                0 => Err(tried.join("; ")),
                _ if any == "anyOf" => Ok(()),
                _ => wrong("more than one fits"),
            };
        }
    }
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{at}: no type {other}"),
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    if !kinds.is_empty() && !kinds.into_iter().any(is) {
        return wrong("another type");
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return wrong("another word");
    }
    if value.as_i64().zip(schema["minimum"].as_f64()).is_some_and(|(value, least)| (value as f64) < least) {
        return wrong("too small");
    }
    for (at_item, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(document, &schema["items"], item, &format!("{at}[{at_item}]"))?;
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !object.contains_key(name) {
            return wrong(&format!("{name} is missing"));
        }
    }
    for (name, inner) in object {
        let at = format!("{at}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Null) if schema["properties"].is_object() => {
                return Err(format!("{at} is not described"));
            }
            (Value::Null, Value::Null | Value::Bool(true)) => {}
            (Value::Null, described) | (described, _) => fits(document, described, inner, &at)?,
        }
    }
    Ok(())
}

/// Whether an answer is what the document says of the route with this status.
fn check(document: &Value, method: &str, path: &str, (status, value): &(u16, Value)) {
    let described = &document["paths"][path][method]["responses"][status.to_string()];
    assert!(described.is_object(), "{method} {path}: {status} is not in the document: {value}");
    let schema = &described["content"]["application/json"]["schema"];
    assert!(schema.is_object(), "{method} {path}: {status} has no schema");
    if let Err(wrong) = fits(document, schema, value, "answer") {
        panic!("{method} {path}: {status}: {wrong}");
    }
}

/// Asks as an operator.
async fn admin(node: &TestNode, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
    let request =
        client().request(method, format!("{}{path}", node.http)).header("authorization", format!("Bearer {TOKEN}"));
    let request = match body {
        Some(body) => request.header("content-type", "application/json").body(body.to_string()),
        None => request,
    };
    let answer = request.send().await.expect("an answer");
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.expect("text")).expect("JSON"))
}

#[test]
fn answers_are_as_the_document_says_and_settlements_have_a_history() {
    block_on(async {
        let bus = free_ports(1)[0];
        let net = Net::up_with(1, probe(), |at, document| {
            wallet::exposed(at, document);
            document
                .set("msb.network", &quoted("development"))
                .set("msb.mode", &quoted("embedded"))
                .set("msb.listen", &quoted(&bus.to_string()))
                .set("msb.settle_every", "3")
                .set("msb.settle_max_delay_s", "1")
                .set("roundtime", "200");
        })
        .await;
        assert!(own_url(bus).starts_with("http://"));
        let node = &net.nodes[0];
        let key = SecretKey::generate();
        let (_, document) = get(node, "/v1/openapi.json").await;
        let user = key.user_key().to_string();

        let prepared = wallet::signed(node, &key, 0, json!({ "do": "it" })).await;
        let tx = "/v1/contract/tx";
        let mut tried = prepared.clone();
        tried["sim"] = true.into();
        check(&document, "post", tx, &wallet::post(node, tx, tried).await);
        let taken = wallet::post(node, &format!("{tx}?wait=output"), prepared.clone()).await;
        check(&document, "post", tx, &taken);
        let seq = taken.1["result"]["seq"].as_u64().expect("a ledger");
        assert_eq!(taken.1["result"]["status"], "executed");
        for body in [json!({}), json!({ "tx": 1 })] {
            check(&document, "post", tx, &wallet::post(node, tx, body).await);
        }
        let mut draft = prepared.clone();
        draft.as_object_mut().unwrap().retain(|name, _| ["prepared_command", "address", "nonce"].contains(&&**name));
        let route = "/v1/contract/tx/prepare";
        check(&document, "post", route, &wallet::post(node, route, draft).await);

        // Three settlements: one is due behind each output.
        let mut all = Value::Null;
        let mut asking = node.user().await;
        for count in 1..=3 {
            asking.ask("more").await;
            all = until("a settlement is recorded", async || {
                let (status, said) = get(node, "/v1/settlements").await;
                assert_eq!(status, 200);
                (said["settlements"].as_array()?.len() >= count).then_some(said)
            })
            .await;
        }
        let number = |of: &Value, name: &str| of[name].as_u64().unwrap_or_else(|| panic!("{name} of {of}"));
        let list = all["settlements"].as_array().unwrap().clone();
        assert_eq!(number(&list[0], "first"), 1);
        assert!(list.windows(2).all(|pair| number(&pair[0], "last") + 1 == number(&pair[1], "first")), "{list:?}");
        assert_eq!(list.last().unwrap()["last"], all["settled_seq"]);
        for settlement in &list {
            let recorded = get(node, &format!("/v1/ledgers/{}", settlement["recorded_in"])).await.1;
            assert_eq!(
                (&recorded["header"]["settlement"]["tx"], &recorded["time"]),
                (&settlement["tx"], &settlement["time"])
            );
        }
        let page = async |query: &str| get(node, &format!("/v1/settlements?{query}")).await;
        let seqs = [number(&list[1], "first"), number(&list[1], "last")];
        for query in [
            format!("from={}&limit=1", seqs[0]),
            format!("from={}&limit=1", seqs[1]),
            format!("before={}&limit=1", seqs[1] + 1),
        ] {
            assert_eq!(page(&query).await.1["settlements"], json!([list[1]]), "{query}");
        }
        for wrong in ["limit=0", "limit=101", "from=x", "from=1&before=2", "before=-1"] {
            let said = page(wrong).await;
            check(&document, "get", "/v1/settlements", &said);
            assert_eq!(said.0, 400, "{wrong}");
        }

        // Everything that is read, as it is answered now, and when something is wrong.
        let asks = [
            ("/v1/health", "/v1/health".to_owned()),
            ("/v1/status", "/v1/status".to_owned()),
            ("/v1/peers", "/v1/peers".to_owned()),
            ("/v1/unl", "/v1/unl".to_owned()),
            ("/v1/rounds", "/v1/rounds".to_owned()),
            ("/v1/evidence", "/v1/evidence".to_owned()),
            ("/v1/settlements", "/v1/settlements".to_owned()),
            ("/v1/contract/log", "/v1/contract/log".to_owned()),
            ("/v1/divergence", "/v1/divergence".to_owned()),
            ("/v1/divergence/{seq}", "/v1/divergence/1".to_owned()),
            ("/v1/ledgers", "/v1/ledgers?limit=100".to_owned()),
            ("/v1/ledgers", "/v1/ledgers?limit=0".to_owned()),
            ("/v1/ledgers/{ledger}", "/v1/ledgers/0".to_owned()),
            ("/v1/ledgers/{ledger}", format!("/v1/ledgers/{seq}")),
            ("/v1/ledgers/{ledger}", "/v1/ledgers/latest".to_owned()),
            ("/v1/ledgers/{ledger}", "/v1/ledgers/99999999".to_owned()),
            ("/v1/ledgers/{seq}/proof", format!("/v1/ledgers/{seq}/proof?user={user}")),
            ("/v1/ledgers/{seq}/proof", "/v1/ledgers/1/proof".to_owned()),
            ("/v1/inputs/{id}", format!("/v1/inputs/{}", prepared["tx"].as_str().unwrap())),
            ("/v1/inputs/{id}", format!("/v1/inputs/{}", "00".repeat(32))),
            ("/v1/state", "/v1/state?key=inputs".to_owned()),
            ("/v1/state", "/v1/state?key=no".to_owned()),
            ("/v1/state", "/v1/state".to_owned()),
            ("/v1/contract/schema", "/v1/contract/schema".to_owned()),
            ("/v1/contract/nonce", format!("/v1/contract/nonce?pubkey={user}")),
            ("/v1/contract/nonce", "/v1/contract/nonce".to_owned()),
            ("/v1/contract/tx/context", "/v1/contract/tx/context".to_owned()),
        ];
        for (route, path) in asks {
            check(&document, "get", route, &get(node, &path).await);
        }
        check(&document, "get", "/v1/admin/bans", &get(node, "/v1/admin/bans").await);
    });
}

#[test]
fn an_operator_bans_an_observer_for_a_time_and_ends_the_node() {
    block_on(async {
        let mut net = Net::new(2, probe(), |at, document| {
            with_http(at, document);
            document.set("http.admin_token_file", &quoted("cfg/admin.token"));
        });
        let keys: Vec<String> =
            net.nodes.iter().map(|node| node.secret.as_ref().unwrap().node_key().to_string()).collect();
        for node in &net.nodes {
            let file = node.dir.join("cfg/admin.token");
            fs::write(&file, TOKEN).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            node.edit_config(|text| members::with_list(&text, "unl", &[format!("\"{}\"", keys[0])]));
        }
        net.start_all().await;
        let (node, other) = (&net.nodes[0], &net.nodes[1]);
        let linked = |status: &Value| status["links"].as_array().is_some_and(|links| !links.is_empty());
        other.status_where("the observer is linked", |status| status["role"] == "observer" && linked(status)).await;
        let (_, document) = get(node, "/v1/openapi.json").await;

        let bans = "/v1/admin/bans";
        let banned =
            admin(node, "post", bans, Some(json!({ "node": keys[1], "for_s": 600, "reason": "it floods" }))).await;
        check(&document, "post", bans, &banned);
        let list = banned.1["bans"].as_array().unwrap();
        assert!(list.len() == 1 && list[0]["node"] == keys[1] && list[0]["reason"] == "it floods", "{list:?}");
        assert!((1..=600).contains(&list[0]["left_s"].as_u64().unwrap()));
        other.logs(&["banned for a time by the operator", "no link with this node"]).await;
        let status = node.status_where("the link is gone", |status| !linked(status)).await;
        assert_eq!(status["alerts"], json!([]), "its operator knows");

        // It stands in the next process too.
        net.nodes[0].kill().await;
        net.nodes[0].start().await;
        let node = &net.nodes[0];
        let told = admin(node, "get", bans, None).await;
        check(&document, "get", bans, &told);
        assert_eq!(told.1["bans"][0]["node"], keys[1]);
        for (body, why) in [
            (json!({ "node": keys[0] }), "the node itself"),
            (json!({ "node": "zz" }), "no key"),
            (json!({ "node": keys[1], "for_s": 0 }), "1 to 2592000 seconds"),
            (json!({ "node": keys[1], "reason": "x".repeat(300) }), "256 bytes"),
        ] {
            let refused = admin(node, "post", bans, Some(body)).await;
            check(&document, "post", bans, &refused);
            assert!(refused.0 == 409 && refused.1["error"].as_str().unwrap().contains(why), "{refused:?}");
        }
        let member = admin(&net.nodes[1], "post", bans, Some(json!({ "node": keys[0] }))).await;
        assert!(member.0 == 409 && member.1["error"].as_str().unwrap().contains("is a member"), "{member:?}");
        let lift = format!("{bans}/{}", keys[1]);
        assert_eq!(admin(node, "delete", &lift, None).await, (200, json!({ "bans": [] })));
        check(&document, "delete", "/v1/admin/bans/{node}", &admin(node, "delete", &lift, None).await);
        net.nodes[1].status_where("it is linked again", linked).await;

        // Ended in order: what comes next begins where it was.
        let stopping = admin(node, "post", "/v1/admin/stop", None).await;
        check(&document, "post", "/v1/admin/stop", &stopping);
        assert_eq!(stopping, (200, json!({ "stopping": true })));
        assert_eq!(net.nodes[0].ended().await, Some(0));
        assert!(net.nodes[0].log().contains("stopping: an operator asked for it"));
    });
}
