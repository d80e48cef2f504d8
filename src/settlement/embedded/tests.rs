//! The embedded bus against the real one's ways, its client, and those who do it harm.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::future::join_all;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{intake::Refusal, *};
use crate::settlement::{
    client::{Client, ClientError, View},
    tx::{Deployment, Landed, Lie, Operation, Signed, Transfer, Tx},
    vectors::vector,
};

/// The longest any of these waits.
const DEADLINE: Duration = Duration::from_secs(30);

fn wallet(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

fn address(key: &SecretKey) -> Address {
    Address::new(Network::Development, key.node_key().0)
}

/// A bus with a deployed subnet, `[0x44; 32]`, and ten TNK each for the first four wallets.
struct Ground {
    bus: Embedded,
    options: Options,
    client: Client,
    /// Removed last.
    _folder: tempfile::TempDir,
}

const BS: Hash = Hash([0x44; 32]);

impl Ground {
    async fn new() -> Ground {
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::new(folder.path().join("bus"));
        options.fund = (1..=4).map(|number| (address(&wallet(number)), Amount::tnk(10))).collect();
        options.deployed = vec![BS];
        options.hooks = true;
        let bus = Embedded::start(options.clone()).await.unwrap();
        options.listen = bus.address();
        let client = Client::new(&bus.url(), Network::Development).unwrap().with_timeout(DEADLINE);
        Ground { bus, options, client, _folder: folder }
    }

    /// Stops the bus, and starts it again at the same port, with the same log.
    async fn restart(self) -> Ground {
        self.bus.stop().await;
        let bus = Embedded::start(self.options.clone()).await.unwrap();
        Ground { bus, ..self }
    }

    async fn tx(&self, number: u8) -> Tx {
        Tx {
            txv: self.client.txv().await.unwrap(),
            iw: Hash([0x22; 32]),
            ch: Hash([number; 32]),
            bs: BS,
            mbs: self.bus.bootstrap(),
            nonce: Hash([number; 32]),
        }
    }

    async fn signed(&self, number: u8, by: u8) -> Signed {
        Operation::from(self.tx(number).await).sign(Network::Development, &wallet(by))
    }

    /// Hands it in, and returns its place.
    async fn land(&self, operation: impl Into<Operation>, by: u8) -> u64 {
        let signed = operation.into().sign(Network::Development, &wallet(by));
        self.client.broadcast(&signed.payload()).await.unwrap();
        self.until_there(&signed.hash).await
    }

    async fn until_there(&self, hash: &Hash) -> u64 {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if self.client.tx(hash).await.unwrap().is_some() {
                let details = self.client.tx_details(hash, View::Confirmed).await.unwrap().unwrap();
                return details.confirmed_length.unwrap();
            }
            assert!(Instant::now() < deadline, "{hash} does not land");
            tokio::task::yield_now().await;
        }
    }

    async fn balance(&self, of: &Address) -> Amount {
        self.client.balance(of, View::Confirmed).await.unwrap()
    }

    /// Status and JSON of a request that the client would not make.
    async fn raw(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        raw(self.bus.address(), method, path, body).await
    }

    /// Why an operation is refused.
    async fn reason(&self, signed: &Signed) -> String {
        match self.client.broadcast(&signed.payload()).await {
            Err(ClientError::Refused { status: 400, text, reason: Some(reason), .. }) => {
                assert_eq!(text, "Invalid transaction payload.");
                reason.split(':').next().unwrap().to_owned()
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn raw_text(to: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: bus\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // A bus that hears enough may have answered already.
    let _ = stream.write_all(body.as_bytes()).await;
    let mut text = String::new();
    let _ = timeout(DEADLINE, stream.read_to_string(&mut text)).await.unwrap();
    text
}

async fn raw(to: SocketAddr, method: &str, path: &str, body: &str) -> (u16, Value) {
    let text = raw_text(to, method, path, body).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {method} {path}: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

// ---- The client's suite, which a real bus passes too ----------------------------------------------------------------

/// What may be written to a bus with.
struct Means {
    mbs: Hash,
    bs: Hash,
    key: SecretKey,
}

/// What can be asked of any bus.
async fn reads(client: &Client) {
    client.health().await.unwrap();
    assert!(client.fee().await.unwrap() > Amount::ZERO);
    let txv = client.txv().await.unwrap();
    assert_eq!(client.txv().await.unwrap(), txv);
    let length = client.confirmed_length().await.unwrap();
    assert!(length > 0 && client.unconfirmed_length().await.unwrap() > 0);
    // Nobody has the secret of this one.
    let nobody = Address::new(client.network(), [0x5a; 32]);
    for view in [View::Confirmed, View::Unconfirmed] {
        assert_eq!(client.balance(&nobody, view).await.unwrap(), Amount::ZERO);
        let account = client.account(&nobody, view).await.unwrap();
        assert_eq!((account.balance, account.is_validator, account.is_indexer), (Amount::ZERO, false, false));
    }
    let unknown = Hash([0x5a; 32]);
    assert_eq!(client.tx(&unknown).await.unwrap(), None);
    assert_eq!(client.tx_details(&unknown, View::Confirmed).await.unwrap(), None);
    assert_eq!(client.payloads_bulk(&[unknown]).await.unwrap().missing, [unknown]);
    assert_eq!(client.tx_hashes(length + 10, length + 10).await.unwrap(), []);
    assert_eq!(client.tx_hashes(length + 10, length + 11).await.unwrap_err().status(), Some(500));
    assert_eq!(client.tx_hashes(3, 2).await.unwrap_err().status(), Some(400));
    assert_eq!(client.broadcast("?").await.unwrap_err().status(), Some(400));
    assert_eq!(client.broadcast("e30=").await.unwrap_err().status(), Some(400), "an empty object");
}

/// One operation from signing to its place, and that it is taken once. Costs a fee.
async fn writes(client: &Client, means: &Means) {
    let network = client.network();
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).unwrap();
    let txv = client.txv().await.unwrap();
    let tx = Tx { txv, iw: Hash([0x22; 32]), ch: Hash([0x33; 32]), bs: means.bs, mbs: means.mbs, nonce: Hash(nonce) };
    let signed = Operation::from(tx.clone()).sign(network, &means.key);
    let payer = signed.requester;
    let (before, fee) = (client.balance(&payer, View::Confirmed).await.unwrap(), client.fee().await.unwrap());
    // Neither its answer nor its failure says anything.
    let _ = client.broadcast(&signed.payload()).await;
    let deadline = Instant::now() + DEADLINE;
    let landed = loop {
        match client.tx(&signed.hash).await {
            Ok(Some(landed)) => break landed,
            other => assert!(Instant::now() < deadline, "it does not land: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(landed.check(&signed.hash, network), Ok(()));
    assert_eq!(landed.signed, signed);
    let details = client.tx_details(&signed.hash, View::Confirmed).await.unwrap().unwrap();
    assert_eq!((&details.landed, details.fee), (&landed, fee));
    let place = details.confirmed_length.unwrap();
    let hashes = client.tx_hashes(place, place + 1).await.unwrap();
    assert!(hashes.iter().any(|found| found.hash == signed.hash && found.confirmed_length == place), "{hashes:?}");
    assert_eq!(client.payloads_bulk(&[signed.hash]).await.unwrap().found, [(signed.hash, landed)]);
    assert_eq!(client.balance(&payer, View::Confirmed).await.unwrap().0, before.0 - fee.0);
    assert_eq!(client.broadcast(&signed.payload()).await.unwrap_err().status(), Some(400), "once");
    let wrong = Operation::from(Tx { mbs: Hash([0x77; 32]), ..tx }).sign(network, &means.key);
    assert_eq!(client.broadcast(&wrong.payload()).await.unwrap_err().status(), Some(400));
    assert_eq!(client.balance(&payer, View::Confirmed).await.unwrap().0, before.0 - fee.0);
}

#[tokio::test]
async fn the_clients_suite_passes_against_the_embedded_bus() {
    let ground = Ground::new().await;
    reads(&ground.client).await;
    writes(&ground.client, &Means { mbs: ground.bus.bootstrap(), bs: BS, key: wallet(1) }).await;
    let about = ground.client.embedded().await.unwrap().unwrap();
    assert_eq!((about.bootstrap, about.validator), (ground.bus.bootstrap(), ground.bus.validator().to_string()));
}

/// `HP_MSB_URL` names the bus, `HP_MSB_NETWORK` its network (mainnet); `HP_MSB_KEY_FILE`, `HP_MSB_BOOTSTRAP` (its own) and
/// `HP_MSB_SUBNET` (a deployed one) let it be written to, at the price of a fee.
#[tokio::test]
async fn the_clients_suite_passes_against_the_bus_of_hp_msb_url() {
    let Ok(url) = std::env::var("HP_MSB_URL") else {
        println!("skipped: HP_MSB_URL names no bus");
        return;
    };
    let network = std::env::var("HP_MSB_NETWORK").map_or(Network::Mainnet, |name| name.parse().unwrap());
    let client = Client::new(&url, network).unwrap();
    reads(&client).await;
    let names = ["HP_MSB_KEY_FILE", "HP_MSB_BOOTSTRAP", "HP_MSB_SUBNET"];
    let values: Vec<String> = names.iter().filter_map(|name| std::env::var(name).ok()).collect();
    let [key, mbs, bs] = &values[..] else {
        println!("nothing is written to {url}: {} are not all set", names.join(", "));
        return;
    };
    let key = read_key(Path::new(key)).unwrap();
    writes(&client, &Means { mbs: mbs.parse().unwrap(), bs: bs.parse().unwrap(), key }).await;
}

// ---- The real bus's ways --------------------------------------------------------------------------------------------

fn error(text: &str) -> Value {
    json!({ "error": text })
}

#[tokio::test]
async fn simple_questions_are_answered_word_for_word() {
    let ground = Ground::new().await;
    let (one, nobody) = (address(&wallet(1)), vector("/wallet/address"));
    let txv = txv_of(&[*ground.bus.validator().key()]);
    let broken = format!("{}q", &nobody[..62]);
    let account = |balance: &str| {
        json!({
            "address": nobody, "writingKey": "0".repeat(64), "isWhitelisted": false, "isValidator": false,
            "isIndexer": false, "license": null, "balance": balance, "stakedBalance": "0",
        })
    };
    let exact = "Parameter \"confirmed\" must be exactly \"true\" or \"false\"";
    let invalid = "Invalid account address format";
    for (path, status, value) in [
        ("/v1/health".to_owned(), 200, json!({ "ok": true })),
        ("/v1/health/more".to_owned(), 200, json!({ "ok": true })),
        ("/v1/fee".to_owned(), 200, json!({ "fee": "30000000000000000" })),
        ("/v1/txv".to_owned(), 200, json!({ "txv": txv.to_string() })),
        // The head of the log, four funds, a subnet.
        ("/v1/confirmed-length".to_owned(), 200, json!({ "confirmed_length": 6 })),
        ("/v1/unconfirmed-length".to_owned(), 200, json!({ "unconfirmed_length": 6 })),
        ("/health".to_owned(), 404, error("Not Found")),
        ("/v1/nonsense".to_owned(), 404, error("Not Found")),
        (format!("/v1/balance/{one}"), 200, json!({ "address": one.to_string(), "balance": "10000000000000000000" })),
        (format!("/v1/balance/{nobody}?confirmed=true"), 200, json!({ "address": nobody, "balance": "0" })),
        (format!("/v1/balance/{nobody}?confirmed=junk"), 200, json!({ "address": nobody, "balance": "0" })),
        // Length, letters and characters alone are looked at.
        (format!("/v1/balance/{broken}"), 200, json!({ "address": broken, "balance": "0" })),
        ("/v1/balance".to_owned(), 400, error("Wallet address is required")),
        ("/v1/balance/".to_owned(), 400, error("Wallet address is required")),
        ("/v1/balance/trac1short".to_owned(), 400, error(invalid)),
        (format!("/v1/balance/{}", vector("/raw/testnet")), 400, error(invalid)),
        (format!("/v1/balance/{}", nobody.to_uppercase()), 400, error(invalid)),
        (format!("/v1/account/{nobody}"), 200, account("0")),
        (format!("/v1/account/{nobody}?confirmed=false"), 200, account("0")),
        (format!("/v1/account/{nobody}?confirmed=junk"), 400, error(exact)),
        (format!("/v1/account/{nobody}?confirmed="), 400, error(exact)),
        ("/v1/account".to_owned(), 400, error("Account address is required")),
        ("/v1/account/x".to_owned(), 400, error(invalid)),
        ("/v1/tx".to_owned(), 400, error("Transaction hash is required")),
        ("/v1/tx/ab".to_owned(), 400, error("Invalid transaction hash format")),
        (format!("/v1/tx/%20{}", "a".repeat(61)), 400, error("Invalid transaction hash format")),
        (format!("/v1/tx/{}", "AB".repeat(32)), 404, error(&format!("Transaction {} not found.", "ab".repeat(32)))),
        ("/v1/tx/details".to_owned(), 400, error("Transaction hash is required")),
        ("/v1/tx/details/ab".to_owned(), 400, error("Invalid transaction hash format")),
        (format!("/v1/tx/details/{}?confirmed=1", "ab".repeat(32)), 400, error(exact)),
        (
            format!("/v1/tx/details/{}", "ab".repeat(32)),
            404,
            error(&format!("No payload found for tx hash: {}", "ab".repeat(32))),
        ),
        ("/v1/tx-hashes/a/b".to_owned(), 400, error("Params must be integer")),
        ("/v1/tx-hashes/1".to_owned(), 400, error("Params must be integer")),
        ("/v1/tx-hashes/-1/3".to_owned(), 400, error("Params must be non-negative")),
        (
            "/v1/tx-hashes/3/2".to_owned(),
            400,
            error("endSignedLength must be greater than or equal to startSignedLength."),
        ),
        ("/v1/tx-hashes/0/1001".to_owned(), 400, error("The max range for signedLength must be 1000.")),
        ("/v1/tx-hashes/0/1000".to_owned(), 200, json!({ "hashes": [] })),
        ("/v1/tx-hashes/6/6".to_owned(), 200, json!({ "hashes": [] })),
        ("/v1/tx-hashes/6/7".to_owned(), 500, error("An error occurred processing the request.")),
    ] {
        assert_eq!(ground.raw("GET", &path, "").await, (status, value), "{path}");
    }
}

#[tokio::test]
async fn any_page_may_ask_but_not_for_what_only_this_bus_has() {
    let ground = Ground::new().await;
    let to = ground.bus.address();
    for (method, path, status) in [("GET", "/v1/fee", "200"), ("GET", "/none", "404"), ("OPTIONS", "/v1/tx", "204")] {
        let text = raw_text(to, method, path, "").await.to_lowercase();
        assert!(text.starts_with(&format!("http/1.1 {status}")), "{text}");
        assert!(text.contains("access-control-allow-origin: *\r\n"), "{text}");
        assert!(text.contains("access-control-allow-methods: get, post, options\r\n"), "{text}");
        assert!(text.contains("access-control-allow-headers: content-type\r\n"), "{text}");
        assert_eq!(text.contains("content-type: application/json\r\n"), status != "204", "{text}");
    }
    let text = raw_text(to, "POST", "/v1/embedded/fund", "{}").await.to_lowercase();
    assert!(!text.contains("access-control"), "{text}");
}

#[tokio::test]
async fn broadcasts_that_make_no_sense_are_refused_word_for_word() {
    let ground = Ground::new().await;
    let good: Value = serde_json::from_str(&ground.signed(1, 1).await.to_json()).unwrap();
    let payload = |value: &Value| json!({ "payload": STANDARD.encode(value.to_string()) }).to_string();
    let with = |path: &str, new: Value| {
        let mut value = good.clone();
        *value.pointer_mut(path).unwrap() = new;
        payload(&value)
    };
    let without = |name: &str| {
        let mut value = good.clone();
        value["txo"].as_object_mut().unwrap().remove(name);
        payload(&value)
    };
    let structure = "Invalid payload structure.";
    let stumbled = "An error occurred processing the transaction.";
    for (body, status, text) in [
        (String::new(), 400, "Invalid JSON payload."),
        ("{".to_owned(), 400, "Invalid JSON payload."),
        ("{}".to_owned(), 400, "Payload is missing."),
        ("7".to_owned(), 400, "Payload is missing."),
        (r#"{"payload":""}"#.to_owned(), 400, "Payload is missing."),
        ("null".to_owned(), 500, stumbled),
        (r#"{"payload":"e30"}"#.to_owned(), 400, "Payload must be a valid base64 string."),
        (r#"{"payload":"e-0="}"#.to_owned(), 400, "Payload must be a valid base64 string."),
        (r#"{"payload":{"a":1}}"#.to_owned(), 400, "Payload must be a valid base64 string."),
        (r#"{"payload":"e2E="}"#.to_owned(), 400, "Decoded payload is not valid JSON."),
        (payload(&json!(null)), 400, structure),
        (payload(&json!([])), 400, structure),
        (payload(&json!({ "type": 12, "address": "x" })), 400, structure),
        (payload(&json!({ "type": "12", "address": "x", "txo": {} })), 400, structure),
        (payload(&json!({ "type": 12, "address": 7, "txo": {} })), 400, structure),
        (payload(&json!({ "type": 12, "address": "x", "txo": 7 })), 400, structure),
        (with("/type", json!(11)), 400, "Payload is not a transfer/transaction operation."),
        (with("/type", json!(5)), 400, "Payload is not a transfer/transaction operation."),
        (with("/type", json!(13)), 500, stumbled),
        (payload(&json!({ "type": 12, "address": "x", "txo": null })), 500, stumbled),
        (with("/address", json!("")), 500, stumbled),
        (with("/txo/ch", json!(7)), 500, stumbled),
        (with("/txo/ch", json!("")), 500, stumbled),
        (with("/txo/ch", json!("zz")), 500, stumbled),
        (with("/txo/ch", json!("abc")), 500, stumbled),
        (without("tx"), 500, stumbled),
        (without("is"), 500, stumbled),
        (without("mbs"), 500, stumbled),
    ] {
        assert_eq!(ground.raw("POST", "/v1/broadcast-transaction", &body).await, (status, error(text)), "{body}");
    }
    for (body, code, reason) in [
        (with("/txo/ch", json!("00".repeat(32))), 12, "SCHEMA_VALIDATION_FAILED: ch is all zeros"),
        (with("/txo/ch", json!("11".repeat(31))), 12, "SCHEMA_VALIDATION_FAILED: ch has 31 bytes, not 32"),
        (with("/txo/is", json!("11".repeat(32))), 12, "SCHEMA_VALIDATION_FAILED: is has 32 bytes, not 64"),
        (with("/address", json!("nobody")), 13, "REQUESTER_ADDRESS_INVALID"),
        (with("/address", json!(vector("/raw/address").replace("dawql", "dawqq"))), 14, "REQUESTER_PUBLIC_KEY_INVALID"),
        (with("/txo/ch", json!("11".repeat(32))), 15, "TX_HASH_MISMATCH"),
        (with("/txo/is", json!("11".repeat(64))), 16, "TX_SIGNATURE_INVALID"),
    ] {
        let (status, value) = ground.raw("POST", "/v1/broadcast-transaction", &body).await;
        assert_eq!((status, value["error"].as_str()), (400, Some("Invalid transaction payload.")), "{body}");
        assert_eq!(value["code"].as_u64(), Some(code), "{value}");
        assert!(value["reason"].as_str().unwrap().starts_with(reason), "{value}");
    }
    assert_eq!(ground.client.unconfirmed_length().await.unwrap(), 6, "none of it was taken");
    // What the real bus does not mind: spaces, capitals, and fields that are none of its own, or the validator's.
    let mut odd = good.clone();
    odd["address"] = json!(format!("  {} ", good["address"].as_str().unwrap()));
    odd["txo"]["ch"] = json!(format!(" {} ", good["txo"]["ch"].as_str().unwrap().to_uppercase()));
    (odd["more"], odd["txo"]["va"], odd["txo"]["more"]) = (json!(1), json!("x"), json!(2));
    let (status, value) = ground.raw("POST", "/v1/broadcast-transaction", &payload(&odd)).await;
    let result = &value["result"];
    assert_eq!((status, &result["tx"], &result["signedLength"]), (200, &good["txo"]["tx"], &json!(6)), "{value}");
    assert_eq!(result["message"], "Transaction broadcasted successfully.");
}

#[tokio::test]
async fn bulk_questions_are_answered_word_for_word() {
    let ground = Ground::new().await;
    let signed = ground.signed(1, 1).await;
    ground.client.broadcast(&signed.payload()).await.unwrap();
    ground.until_there(&signed.hash).await;
    let hash = signed.hash.to_string();
    let many: Vec<String> = (0..1_501).map(|number| number.to_string()).collect();
    for (body, status, text) in [
        (String::new(), 400, "Missing payload."),
        ("{".to_owned(), 400, "Invalid request body format."),
        ("null".to_owned(), 400, "Invalid payload."),
        ("{}".to_owned(), 400, "Missing hash list."),
        (json!({ "hashes": [] }).to_string(), 400, "Missing hash list."),
        (json!({ "hashes": "x" }).to_string(), 400, "Missing hash list."),
        (json!({ "hashes": many }).to_string(), 400, "Length of input tx hashes exceeded."),
    ] {
        assert_eq!(ground.raw("POST", "/v1/tx-payloads-bulk", &body).await, (status, error(text)), "{body}");
    }
    let asked = json!({ "hashes": [hash, "test", hash, 7, hash.to_uppercase(), "\"}"] });
    let (status, value) = ground.raw("POST", "/v1/tx-payloads-bulk", &format!("\u{feff} {asked} ")).await;
    let landed = ground.client.tx(&signed.hash).await.unwrap().unwrap();
    let shown: Value = serde_json::from_str(&landed.to_json()).unwrap();
    let results = json!([{ "hash": hash, "payload": shown }]);
    assert_eq!((status, &value["results"]), (200, &results), "each once");
    assert_eq!(value["missing"], json!(["test", 7, hash.to_uppercase(), "\"}"]));
    let body = " ".repeat(api::BULK_BODY_BYTES_MAX + 1);
    let told = ground.raw("POST", "/v1/tx-payloads-bulk", &body).await;
    assert_eq!(told, (413, error("Request body too large.")));
    let body = " ".repeat(intake::BODY_BYTES_MAX + 1);
    let told = ground.raw("POST", "/v1/broadcast-transaction", &body).await;
    assert_eq!(told, (413, error("Payload too large.")));
}

#[tokio::test]
async fn the_first_fault_in_the_real_buss_order_is_the_reason() {
    let ground = Ground::new().await;
    let network = Network::Development;
    let good = ground.tx(1).await;
    let sign = |tx: &Tx, key: &SecretKey| Operation::from(tx.clone()).sign(network, key);
    // From the last fault to the first: each one hides those that were there before.
    let mut tx = Tx { bs: Hash([0x45; 32]), ..good.clone() };
    assert_eq!(ground.reason(&sign(&tx, &wallet(1))).await, "EXTERNAL_BOOTSTRAP_NOT_DEPLOYED");
    tx.mbs = Hash([0x55; 32]);
    assert_eq!(ground.reason(&sign(&tx, &wallet(1))).await, "MSB_BOOTSTRAP_MISMATCH");
    tx.bs = ground.bus.bootstrap();
    assert_eq!(ground.reason(&sign(&tx, &wallet(1))).await, "EXTERNAL_BOOTSTRAP_EQUALS_MSB_BOOTSTRAP");
    ground.bus.hook(Hook::Impoverish(address(&wallet(2)).to_string())).await.unwrap();
    assert_eq!(ground.reason(&sign(&tx, &wallet(2))).await, "INSUFFICIENT_FEE_BALANCE");
    assert_eq!(ground.reason(&sign(&tx, &wallet(9))).await, "REQUESTER_NOT_FOUND");
    tx.txv = Hash([0x66; 32]);
    assert_eq!(ground.reason(&sign(&tx, &wallet(9))).await, "TX_EXPIRED");
    let mut signed = sign(&tx, &wallet(9));
    signed.sig.0[5] ^= 1;
    assert_eq!(ground.reason(&signed).await, "TX_SIGNATURE_INVALID");
    signed.hash.0[5] ^= 1;
    assert_eq!(ground.reason(&signed).await, "TX_HASH_MISMATCH");
    ground.land(good.clone(), 1).await;
    signed.hash = sign(&good, &wallet(1)).hash;
    assert_eq!(ground.reason(&signed).await, "TX_ALREADY_EXISTS");
    let validator = read_key(&ground.options.folder.join(KEY_FILE)).unwrap();
    signed.requester = address(&validator);
    assert_eq!(ground.reason(&signed).await, "SELF_VALIDATION_FORBIDDEN");
}

#[tokio::test]
async fn fees_go_to_the_validator_and_the_deployer_and_the_rest_is_burnt() {
    let ground = Ground::new().await;
    let (fee, validator) = (FEE.0, ground.bus.validator());
    let mut earned = 0;
    let txv = ground.client.txv().await.unwrap();
    let balances = || async {
        let mut balances = Vec::new();
        for of in [validator, address(&wallet(1)), address(&wallet(2)), address(&wallet(9))] {
            balances.push(ground.balance(&of).await.0);
        }
        balances
    };
    let ten = Amount::tnk(10).0;
    // The subnet is the validator's own.
    ground.land(ground.tx(1).await, 1).await;
    earned += fee / 100 * 75;
    assert_eq!(balances().await, [earned, ten - fee, ten, 0]);
    // A subnet of the second wallet's.
    let deployment = Deployment { txv, bs: Hash([0x46; 32]), channel: Hash([0x77; 32]), nonce: Hash([1; 32]) };
    ground.land(deployment.clone(), 2).await;
    earned += fee / 100 * 75;
    assert_eq!(balances().await, [earned, ten - fee, ten - fee, 0]);
    let again =
        Operation::from(Deployment { nonce: Hash([2; 32]), ..deployment }).sign(Network::Development, &wallet(1));
    assert_eq!(ground.reason(&again).await, "BOOTSTRAP_ALREADY_EXISTS");
    ground.land(Tx { bs: Hash([0x46; 32]), ..ground.tx(2).await }, 1).await;
    earned += fee / 2;
    assert_eq!(balances().await, [earned, ten - 2 * fee, ten - fee + fee / 4, 0]);
    ground.land(Tx { bs: Hash([0x46; 32]), ..ground.tx(3).await }, 2).await;
    earned += fee / 2;
    assert_eq!(balances().await, [earned, ten - 2 * fee, ten - 2 * fee + fee / 4, 0]);
    // Money that moves, and that does not.
    let to = address(&wallet(9));
    let transfer = Transfer { txv, to, amount: Amount::tnk(3), nonce: Hash([1; 32]) };
    ground.land(transfer.clone(), 1).await;
    earned += fee / 100 * 75;
    assert_eq!(balances().await, [earned, Amount::tnk(7).0 - 3 * fee, ten - 2 * fee + fee / 4, Amount::tnk(3).0]);
    let to_self = Transfer { to: address(&wallet(1)), amount: Amount(u128::MAX), ..transfer.clone() };
    ground.land(to_self, 1).await;
    earned += fee / 100 * 75;
    assert_eq!(balances().await[..2], [earned, Amount::tnk(7).0 - 4 * fee]);
    let sign = |transfer: Transfer, by| Operation::from(transfer).sign(Network::Development, &wallet(by));
    let much = Transfer { amount: Amount(u128::MAX), ..transfer.clone() };
    assert_eq!(ground.reason(&sign(much, 1)).await, "TRANSFER_INSUFFICIENT_BALANCE");
    let all = Transfer { amount: Amount(Amount::tnk(7).0 - 4 * fee), ..transfer.clone() };
    assert_eq!(ground.reason(&sign(all, 1)).await, "TRANSFER_INSUFFICIENT_BALANCE");
    let another = Transfer { nonce: Hash([8; 32]), ..transfer };
    assert_eq!(ground.reason(&sign(another, 8)).await, "TRANSFER_SENDER_NOT_FOUND");
    ground.bus.bus.with_books(|books| {
        let there: u128 = books.confirmed.balances.values().map(|balance| balance.0).sum();
        assert_eq!(there + books.confirmed.burnt.0, books.confirmed.funded.0, "nothing came from nowhere");
    });
}

#[tokio::test]
async fn of_four_wallets_that_post_the_same_operation_at_once_one_pays() {
    let ground = Ground::new().await;
    for round in 1..=5 {
        let tx = ground.tx(round).await;
        let signed: Vec<Signed> =
            (1..=4).map(|by| Operation::from(tx.clone()).sign(Network::Development, &wallet(by))).collect();
        let posts = signed.iter().map(|signed| {
            let client = Client::new(&ground.bus.url(), Network::Development).unwrap();
            async move { client.broadcast(&signed.payload()).await }
        });
        let told = join_all(posts).await;
        assert_eq!(told.iter().filter(|told| told.is_ok()).count(), 1, "{told:?}");
        assert_eq!(told.iter().filter_map(|told| told.as_ref().err()?.status()).collect::<Vec<_>>(), [400; 3]);
        ground.until_there(&signed[0].hash).await;
        let mut there = 0;
        for by in 1..=4 {
            there += ground.balance(&address(&wallet(by))).await.0;
        }
        assert_eq!(there, Amount::tnk(40).0 - u128::from(round) * FEE.0, "one fee a round");
    }
    let length = ground.client.confirmed_length().await.unwrap();
    let hashes = ground.client.tx_hashes(0, length).await.unwrap();
    let places: Vec<u64> = hashes.iter().map(|at| at.confirmed_length).collect();
    assert_eq!(places, [6, 7, 8, 9, 10]);
    assert_eq!(ground.client.tx_hashes(6, 8).await.unwrap().len(), 2, "the end is not among them");
}

// ---- What may go wrong ----------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_lost_reply_a_429_that_landed_and_a_200_that_lost() {
    let ground = Ground::new().await;
    let signed = ground.signed(1, 1).await;
    ground.bus.hook(Hook::DropReply(1)).await.unwrap();
    let told = ground.client.broadcast(&signed.payload()).await.unwrap_err();
    assert!(matches!(told, ClientError::Unreachable { .. }), "{told:?}");
    assert!(ground.client.tx(&signed.hash).await.unwrap().is_some(), "it was in the log before the reply was dropped");
    assert_eq!(ground.reason(&signed).await, "TX_ALREADY_EXISTS");

    let signed = ground.signed(2, 1).await;
    ground.bus.hook(Hook::RefuseLanded(1)).await.unwrap();
    assert_eq!(ground.client.broadcast(&signed.payload()).await.unwrap_err().status(), Some(429));
    ground.until_there(&signed.hash).await;

    let signed = ground.signed(3, 1).await;
    ground.bus.hook(Hook::LoseAccepted(1)).await.unwrap();
    assert_eq!(ground.client.broadcast(&signed.payload()).await.unwrap().tx, signed.hash);
    assert_eq!(ground.client.tx_details(&signed.hash, View::Unconfirmed).await.unwrap(), None);
    ground.client.broadcast(&signed.payload()).await.unwrap();
    ground.until_there(&signed.hash).await;
}

#[tokio::test]
async fn what_is_not_confirmed_is_seen_in_one_view_only_and_lost_with_the_process() {
    let ground = Ground::new().await;
    ground.bus.hook(Hook::HoldConfirmations).await.unwrap();
    let signed = ground.signed(1, 1).await;
    ground.client.broadcast(&signed.payload()).await.unwrap();
    let payer = signed.requester;
    assert_eq!(ground.client.tx(&signed.hash).await.unwrap(), None);
    assert_eq!(ground.client.tx_details(&signed.hash, View::Confirmed).await.unwrap(), None);
    let details = ground.client.tx_details(&signed.hash, View::Unconfirmed).await.unwrap().unwrap();
    assert_eq!((details.landed.signed, details.confirmed_length, details.fee), (signed.clone(), None, Amount::ZERO));
    let lengths = (ground.client.confirmed_length().await.unwrap(), ground.client.unconfirmed_length().await.unwrap());
    assert_eq!(lengths, (6, 7));
    // Without `confirmed` the balance is the unconfirmed one, whatever the real bus's documents say.
    let (_, value) = ground.raw("GET", &format!("/v1/balance/{payer}"), "").await;
    assert_eq!(value["balance"], (Amount::tnk(10).0 - FEE.0).to_string());
    assert_eq!(ground.balance(&payer).await, Amount::tnk(10));
    assert_eq!(ground.reason(&signed).await, "TX_ALREADY_EXISTS");

    let ground = ground.restart().await;
    assert_eq!(ground.client.tx_details(&signed.hash, View::Unconfirmed).await.unwrap(), None);
    ground.bus.hook(Hook::ConfirmAfterMs(50)).await.unwrap();
    let before = Instant::now();
    ground.client.broadcast(&signed.payload()).await.unwrap();
    ground.until_there(&signed.hash).await;
    assert!(before.elapsed() >= Duration::from_millis(50));
    ground.bus.hook(Hook::HoldConfirmations).await.unwrap();
    let signed = ground.signed(2, 1).await;
    ground.client.broadcast(&signed.payload()).await.unwrap();
    ground.bus.hook(Hook::ConfirmAfterMs(0)).await.unwrap();
    ground.until_there(&signed.hash).await;
}

#[tokio::test]
async fn a_txv_that_comes_back_revives_what_was_signed_for_it() {
    let ground = Ground::new().await;
    let (first, signed) = (ground.client.txv().await.unwrap(), ground.signed(1, 1).await);
    ground.bus.hook(Hook::RotateTxv).await.unwrap();
    let second = ground.client.txv().await.unwrap();
    assert_ne!(first, second);
    assert_eq!(ground.reason(&signed).await, "TX_EXPIRED");
    let ground = ground.restart().await;
    assert_eq!(ground.client.txv().await.unwrap(), second, "it is in the log");
    ground.bus.hook(Hook::RestoreTxv).await.unwrap();
    assert_eq!(ground.client.txv().await.unwrap(), first);
    ground.client.broadcast(&signed.payload()).await.unwrap();
    ground.until_there(&signed.hash).await;
}

#[tokio::test]
async fn a_bus_that_lies_is_found_out() {
    let ground = Ground::new().await;
    let signed = ground.signed(1, 1).await;
    ground.client.broadcast(&signed.payload()).await.unwrap();
    ground.until_there(&signed.hash).await;
    ground.bus.hook(Hook::Lie(true)).await.unwrap();
    let details = ground.client.tx_details(&signed.hash, View::Confirmed).await.unwrap().unwrap().landed;
    let bulk = ground.client.payloads_bulk(&[signed.hash]).await.unwrap().found.remove(0).1;
    for landed in [ground.client.tx(&signed.hash).await.unwrap().unwrap(), details, bulk] {
        let told = landed.check(&signed.hash, Network::Development);
        assert!(matches!(told, Err(Lie::Fields { .. })), "{told:?}");
    }
    ground.bus.hook(Hook::Lie(false)).await.unwrap();
    ground.bus.hook(Hook::Forge(true)).await.unwrap();
    let told = ground.client.tx(&signed.hash).await.unwrap().unwrap().check(&signed.hash, Network::Development);
    assert!(matches!(told, Err(Lie::Requester(..))), "{told:?}");
    ground.bus.hook(Hook::Forge(false)).await.unwrap();
    let landed: Landed = ground.client.tx(&signed.hash).await.unwrap().unwrap();
    assert_eq!(landed.check(&signed.hash, Network::Development), Ok(()));
}

#[tokio::test]
async fn a_bus_that_hangs_answers_nobody_until_it_does_again() {
    let ground = Ground::new().await;
    ground.bus.hook(Hook::Hang(true)).await.unwrap();
    let hasty = ground.client.clone().with_timeout(Duration::from_millis(30));
    assert!(matches!(hasty.fee().await, Err(ClientError::Timeout { .. })));
    let patient = ground.client.fee();
    // The way to the hooks stays open.
    let (patient, woken) = tokio::join!(patient, ground.raw("POST", "/v1/embedded/hooks", r#"{"hang":false}"#));
    assert_eq!((patient.unwrap(), woken.0), (FEE, 200));
}

#[tokio::test]
async fn hooks_are_there_only_if_they_were_asked_for() {
    let mut ground = Ground::new().await;
    let poor = format!(r#"{{"impoverish":"{}"}}"#, address(&wallet(1)));
    assert_eq!(ground.raw("POST", "/v1/embedded/hooks", &poor).await.0, 200);
    assert_eq!(ground.balance(&address(&wallet(1))).await, Amount::ZERO);
    assert_eq!(ground.raw("POST", "/v1/embedded/hooks", r#""nonsense""#).await.0, 400);
    ground.options.hooks = false;
    let ground = ground.restart().await;
    assert_eq!(ground.raw("POST", "/v1/embedded/hooks", &poor).await, (404, error("Not Found")));
    assert_eq!(ground.balance(&address(&wallet(1))).await, Amount::ZERO, "the beginning's money is given once");
}

#[tokio::test]
async fn the_faucet_gives_what_it_is_asked_for_and_no_more_than_can_be_counted() {
    let ground = Ground::new().await;
    let to = address(&wallet(7));
    assert_eq!(ground.client.fund(&to, Amount::tnk(3)).await.unwrap(), Amount::tnk(3));
    assert_eq!(ground.client.fund(&to, Amount::tnk(4)).await.unwrap(), Amount::tnk(7));
    let told = ground.client.fund(&to, Amount(u128::MAX)).await.unwrap_err();
    assert_eq!(told.status(), Some(503));
    assert_eq!(ground.balance(&to).await, Amount::tnk(7));
    for body in ["", "{}", r#"{"address":"x","units":"1"}"#, &format!(r#"{{"address":"{to}","units":"-1"}}"#)] {
        assert_eq!(ground.raw("POST", "/v1/embedded/fund", body).await.0, 400, "{body}");
    }
}

// ---- The disk -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_was_confirmed_is_there_after_any_end_and_the_port_too() {
    let mut ground = Ground::new().await;
    let mut there = BTreeSet::new();
    for number in 1..=6 {
        let signed = ground.signed(number, 1 + number % 4).await;
        ground.client.broadcast(&signed.payload()).await.unwrap();
        let place = ground.until_there(&signed.hash).await;
        there.insert((place, signed.hash));
        let (balance, txv) = (ground.balance(&signed.requester).await, ground.client.txv().await.unwrap());
        let port = ground.bus.address();
        if number % 2 == 0 {
            ground = ground.restart().await;
        } else {
            // As if it was killed: what runs is dropped where it stands.
            let Ground { bus, options, client, _folder } = ground;
            drop(bus);
            let deadline = Instant::now() + DEADLINE;
            let bus = loop {
                match Embedded::start(options.clone()).await {
                    Ok(bus) => break bus,
                    Err(error) => assert!(error.is_taken() && Instant::now() < deadline, "{error}"),
                }
                tokio::task::yield_now().await;
            };
            ground = Ground { bus, options, client, _folder };
        }
        assert_eq!(ground.bus.address(), port);
        assert_eq!((ground.balance(&signed.requester).await, ground.client.txv().await.unwrap()), (balance, txv));
        let hashes = ground.client.tx_hashes(0, 100).await.unwrap();
        assert_eq!(hashes.iter().map(|at| (at.confirmed_length, at.hash)).collect::<BTreeSet<_>>(), there);
        assert_eq!(ground.reason(&signed).await, "TX_ALREADY_EXISTS");
    }
}

#[tokio::test]
async fn long_bodies_that_come_slowly_hold_up_nobody_with_a_short_one() {
    let ground = Ground::new().await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(ground.bus.address()).await.unwrap();
        let head = "POST /v1/broadcast-transaction HTTP/1.1\r\nHost: bus\r\nContent-Length: 2000000\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let signed = ground.signed(1, 1).await;
    let hasty = ground.client.clone().with_timeout(Duration::from_secs(10));
    hasty.broadcast(&signed.payload()).await.unwrap();
}

async fn refused_start(options: &Options) -> String {
    let error = Embedded::start(options.clone()).await.expect_err("it must not start");
    anyhow::Error::new(error).chain().map(|cause| cause.to_string()).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn a_bus_that_would_be_another_one_does_not_start() {
    let mut ground = Ground::new().await;
    ground.options.listen.set_port(0);
    let taken = Embedded::start(ground.options.clone()).await.unwrap_err();
    assert!(taken.is_taken() && taken.to_string().contains("in use by another process"), "{taken}");
    let port = Embedded::start(Options { listen: ground.bus.address(), ..Options::new(ground._folder.path()) }).await;
    let port = port.unwrap_err();
    assert!(port.is_taken() && port.to_string().starts_with("cannot listen on 127.0.0.1:"), "{port}");

    let Ground { bus, options, _folder, .. } = ground;
    let mbs = bus.bootstrap();
    bus.stop().await;
    let told = refused_start(&Options { bootstrap: Some(Hash([1; 32])), ..options.clone() }).await;
    assert!(told.contains(&format!("the log of the bus {mbs}")), "{told}");
    let told = refused_start(&Options { network: Network::Mainnet, ..options.clone() }).await;
    assert!(told.contains("of a development bus, not of a mainnet one"), "{told}");
    let (log, key) = (options.folder.join(LOG_FILE), options.folder.join(KEY_FILE));
    let text = fs::read(&log).unwrap();
    let mut changed = text.clone();
    changed[200] ^= 1;
    fs::write(&log, &changed).unwrap();
    let told = refused_start(&options).await;
    assert!(told.contains("line 1 (byte 0)") && told.contains("restore the file"), "{told}");
    fs::write(&log, &text).unwrap();
    let old = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    assert!(refused_start(&options).await.contains("cannot use the validator's key"));
    fs::write(&key, "01".repeat(32)).unwrap();
    assert!(refused_start(&options).await.contains("mode is"), "others may read it");
    fs::remove_file(&key).unwrap();
    make_key(&key).unwrap();
    assert!(refused_start(&options).await.contains("is the key of trac1"));
    fs::remove_file(&key).unwrap();
    make_key(&key).unwrap();
    fs::write(&key, old).unwrap();
    let bus = Embedded::start(Options { bootstrap: Some(mbs), ..options }).await.unwrap();
    assert_eq!(bus.bootstrap(), mbs);
}

#[tokio::test]
async fn a_log_that_breaks_the_rules_of_the_bus_is_refused() {
    let ground = Ground::new().await;
    let signed = ground.signed(1, 1).await;
    let Ground { bus, options, _folder, .. } = ground;
    bus.stop().await;
    let path = options.folder.join(LOG_FILE);
    let completion = crate::settlement::tx::Completion::new(
        Network::Development,
        &signed.hash,
        12,
        Hash([1; 32]),
        &read_key(&options.folder.join(KEY_FILE)).unwrap(),
    );
    let poor = Operation::from(match signed.operation.clone() {
        Operation::Tx(tx) => tx,
        other => panic!("{other:?}"),
    })
    .sign(Network::Development, &wallet(9));
    let text = fs::read(&path).unwrap();
    for (entry, told) in [
        (Change::Operation(Box::new(Landed { signed: poor, completion })).to_entry(), "never had money"),
        (Change::Fund(address(&wallet(1)), Amount(u128::MAX)).to_entry(), "more money than the bus can count"),
        (Change::Bootstrap(BS).to_entry(), "deployed already"),
        (Entry::Txv { txv: "x".to_owned() }, "hexadecimal digits"),
        (Entry::Fund { address: "x".to_owned(), units: "1".to_owned() }, "address of this network"),
    ] {
        let (mut log, _) = Log::open(&path, |_, _| Ok(())).unwrap();
        log.append(&serde_json::to_string(&entry).unwrap()).unwrap();
        drop(log);
        let refused = refused_start(&options).await;
        assert!(refused.contains("line 7") && refused.contains(told), "{refused}");
        fs::write(&path, &text).unwrap();
    }
}

// ---- Those who do it harm -------------------------------------------------------------------------------------------

#[tokio::test]
async fn one_who_sends_too_much_is_cut_off_and_the_others_are_served() {
    let ground = Ground::new().await;
    let to = ground.bus.address();
    // A head without an end.
    let mut stream = TcpStream::connect(to).await.unwrap();
    let _ = stream.write_all(&[b'x'; 64 << 10]).await;
    let mut left = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut left)).await.unwrap();
    // A body that says that it has no end.
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = "POST /v1/broadcast-transaction HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![b' '; 1 << 20];
    let sent = timeout(DEADLINE, async {
        let mut sent = 0;
        while stream.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
        sent
    });
    assert!(sent.await.unwrap() < 64 << 20, "it is cut off");
    // Many that say nothing.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(to).await.unwrap());
    }
    assert_eq!(ground.client.fee().await.unwrap(), FEE);
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_never_ends_its_head_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let bus = Embedded::start(Options::new(folder.path())).await.unwrap();
    for beginning in ["", "GET /v1/health HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = TcpStream::connect(bus.address()).await.unwrap();
        stream.write_all(beginning.as_bytes()).await.unwrap();
        let mut left = Vec::new();
        let ended = timeout(DEADLINE, stream.read_to_end(&mut left)).await;
        assert!(ended.is_ok(), "{beginning:?}");
    }
}

/// Whether the real bus stumbles over this operation: something that it needs is missing, or is no hexadecimal text.
fn stumbles(value: &Value) -> bool {
    let names: &[&str] = match value["type"].as_f64() {
        Some(12.0) => &["tx", "txv", "iw", "ch", "bs", "mbs", "in", "is"],
        Some(13.0) => &["tx", "txv", "in", "to", "am", "is"],
        _ => &["tx", "txv", "bs", "ic", "in", "is"],
    };
    let body = match value["type"].as_f64() {
        Some(12.0) => &value["txo"],
        Some(13.0) => &value["tro"],
        _ => &value["bdo"],
    };
    let is_hex = |text: &str| {
        text.len() > 1 && text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let field = |name: &&str| match body[name].as_str().map(str::trim) {
        None | Some("") => false,
        Some(text) => *name == "to" || is_hex(text),
    };
    !names.iter().all(field) || value["address"].as_str().is_some_and(|text| text.trim().is_empty())
}

fn junk() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        "\\PC{0,80}".prop_map(Value::from),
        "[0-9a-fA-F]{0,130}".prop_map(Value::from),
        proptest::collection::vec(any::<u8>(), 32).prop_map(|bytes| Value::from(hex::encode(bytes))),
        Just(Value::from("00".repeat(32))),
        Just(Value::from(vector("/wallet/address"))),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{0,4}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_is_broadcast_is_refused_in_the_real_buss_words_and_nothing_breaks(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        which in 0..3_usize,
        changes in proptest::collection::vec((0..13_usize, junk()), 0..3),
    ) {
        let known = |refusal: &Refusal| match refusal.status {
            400 => !refusal.error.is_empty(),
            500 => refusal.error == "An error occurred processing the transaction." && refusal.reason.is_none(),
            _ => false,
        };
        for body in [bytes.clone(), json!({ "payload": STANDARD.encode(&bytes) }).to_string().into_bytes()] {
            if let Err(refusal) = intake::read(&body, Network::Development) {
                prop_assert!(known(&refusal), "{refusal:?}");
            }
        }
        let mut value: Value = crate::settlement::vectors::vectors()[["tx", "bdo", "transfer"][which]].clone();
        let name = ["txo", "bdo", "tro"][which];
        let fields: Vec<String> = value[name].as_object().unwrap().keys().cloned().collect();
        for (at, new) in changes {
            match at {
                0 => value["type"] = new,
                1 => value["address"] = new,
                2 => value[name] = new,
                3 => value = new,
                at => {
                    if let Some(body) = value.get_mut(name).and_then(Value::as_object_mut) {
                        body.insert(fields[at % fields.len()].clone(), new);
                    }
                }
            }
            if !value.is_object() {
                break;
            }
        }
        let body = json!({ "payload": STANDARD.encode(value.to_string()) }).to_string();
        match intake::read(body.as_bytes(), Network::Mainnet) {
            Ok(signed) => prop_assert!(signed.operation.zero_field().is_none()),
            Err(refusal) => {
                prop_assert!(known(&refusal), "{refusal:?}");
                // 500 exactly where the real bus stumbles: past what it looks at first, and before what it looks at last.
                let first = ["Invalid payload structure.", "Payload is not a transfer/transaction operation."];
                if !first.contains(&refusal.error) {
                    prop_assert_eq!(refusal.status == 500, stumbles(&value), "{:?} {}", refusal, value);
                }
            }
        }
    }
}
