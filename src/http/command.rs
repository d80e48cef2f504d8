//! The bodies with which wallets send inputs -> what is signed. Pure: an error is the text for the client.
//!
//! `prepared_command` is any JSON value. The contract gets its canonical text: keys of objects sorted, nothing between the parts.

use serde_json::{Map, Value};

use super::{SignedTx, answer::Failure, params::shown};
use crate::types::{Seq, UserKey};

/// What a wallet wants to sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Who will sign.
    pub user: UserKey,
    /// Unique among the user's.
    pub nonce: u64,
    /// The last ledger that may hold it; `None`: the node chooses.
    pub max_ledger: Option<Seq>,
    /// What the contract gets.
    pub payload: Vec<u8>,
}

/// Reads the body of `POST /v1/contract/tx/prepare`.
pub fn draft(body: &Value) -> Result<Draft, Failure> {
    let fields = object(body)?;
    let payload = payload(fields)?;
    Ok(Draft {
        user: address(fields)?,
        nonce: number(fields, "nonce")?,
        max_ledger: optional(fields, "max_ledger")?,
        payload,
    })
}

/// Reads the body of `POST /v1/contract/tx`, and whether it is only to be tried.
pub fn signed(body: &Value) -> Result<(SignedTx, bool), Failure> {
    let fields = object(body)?;
    let payload = payload(fields)?;
    let user = address(fields)?;
    let nonce = number(fields, "nonce")?;
    let max_ledger = number(fields, "max_ledger")?;
    let tx = text(fields, "tx")?.parse().map_err(|_| Failure::bad("Invalid TX."))?;
    let sig = text(fields, "signature")?.parse().map_err(|_| Failure::bad("Invalid signature."))?;
    let sim = match fields.get("sim") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(sim)) => *sim,
        Some(other) => return Err(invalid("sim", "true or false", other)),
    };
    Ok((SignedTx { tx, user, nonce, max_ledger, payload, sig }, sim))
}

fn object(body: &Value) -> Result<&Map<String, Value>, Failure> {
    body.as_object().ok_or_else(|| Failure::bad("Invalid JSON payload: expected an object."))
}

fn payload(fields: &Map<String, Value>) -> Result<Vec<u8>, Failure> {
    let command = fields.get("prepared_command").ok_or_else(|| Failure::bad("Missing prepared_command."))?;
    Ok(canonical(command).into_bytes())
}

/// The one text of a value.
pub fn canonical(value: &Value) -> String {
    // Objects are sorted maps here; a test holds them to it.
    value.to_string()
}

fn address(fields: &Map<String, Value>) -> Result<UserKey, Failure> {
    let text = text(fields, "address")?;
    text.parse().map_err(|_| {
        Failure::bad(format!("Invalid address: expected a public key of 64 hexadecimal digits, got {}.", shown(text)))
    })
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Err(Failure::bad(format!("Missing {name}."))),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(invalid(name, "a text", other)),
    }
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<u64, Failure> {
    optional(fields, name)?.ok_or_else(|| Failure::bad(format!("Missing {name}.")))
}

/// A whole number; as decimal digits in a text too, for who has no numbers of 64 bits.
fn optional(fields: &Map<String, Value>, name: &str) -> Result<Option<u64>, Failure> {
    let number = match fields.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().ok()
        }
        Some(value) => value.as_u64(),
    };
    let got = || fields.get(name).cloned().unwrap_or_default();
    number.map(Some).ok_or_else(|| invalid(name, "a whole number below 2^64", &got()))
}

fn invalid(name: &str, expected: &str, got: &Value) -> Failure {
    let got = match got {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => shown(text),
        other => other.to_string(),
    };
    Failure::bad(format!("Invalid {name}: expected {expected}, got {got}."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::types::{Hash, Sig};

    fn body() -> Value {
        json!({
            "tx": "11".repeat(32), "prepared_command": { "type": "put", "value": { "b": 1, "a": [1.5, "ü"] } },
            "address": "22".repeat(32), "signature": "33".repeat(64), "nonce": 7, "max_ledger": "9",
        })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut body = body();
        body[key] = value;
        body
    }

    #[test]
    fn a_body_is_read_and_the_contract_gets_the_canonical_text() {
        let payload = r#"{"type":"put","value":{"a":[1.5,"ü"],"b":1}}"#.as_bytes().to_vec();
        let tx = SignedTx {
            tx: Hash([0x11; 32]),
            user: UserKey([0x22; 32]),
            nonce: 7,
            max_ledger: 9,
            payload: payload.clone(),
            sig: Sig([0x33; 64]),
        };
        assert_eq!(signed(&body()), Ok((tx.clone(), false)));
        assert_eq!(signed(&with("sim", json!(true))), Ok((tx, true)));
        let wanted = Draft { user: UserKey([0x22; 32]), nonce: 7, max_ledger: None, payload };
        assert_eq!(draft(&with("max_ledger", Value::Null)), Ok(wanted));
        assert_eq!(signed(&with("prepared_command", Value::Null)).unwrap().0.payload, b"null");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for key in ["tx", "address", "signature", "nonce", "max_ledger", "prepared_command"] {
            let mut missing = body();
            missing.as_object_mut().unwrap().remove(key);
            assert_eq!(signed(&missing).unwrap_err(), Failure::bad(format!("Missing {key}.")));
        }
        for (key, wrong, error) in [
            ("tx", json!("11"), "Invalid TX."),
            ("signature", json!("33"), "Invalid signature."),
            ("tx", json!(1), "Invalid tx: expected a text, got 1."),
            (
                "address",
                json!("trac1x"),
                "Invalid address: expected a public key of 64 hexadecimal digits, got \"trac1x\".",
            ),
            ("nonce", json!(-1), "Invalid nonce: expected a whole number below 2^64, got -1."),
            ("nonce", json!(1.5), "Invalid nonce: expected a whole number below 2^64, got 1.5."),
            (
                "max_ledger",
                json!("18446744073709551616"),
                "Invalid max_ledger: expected a whole number below 2^64, got \"18446744073709551616\".",
            ),
            ("max_ledger", json!([]), "Invalid max_ledger: expected a whole number below 2^64, got a list."),
            ("sim", json!("true"), "Invalid sim: expected true or false, got \"true\"."),
        ] {
            assert_eq!(signed(&with(key, wrong)).unwrap_err().error, error);
        }
        assert_eq!(signed(&json!([])).unwrap_err().error, "Invalid JSON payload: expected an object.");
    }

    proptest! {
        #[test]
        fn the_canonical_text_reads_back_as_the_same_and_no_order_of_keys_changes_it(
            keys in proptest::collection::btree_map("[a-z\"\\\\ü]{0,4}", any::<i64>(), 0..6)
        ) {
            let forward: Vec<String> = keys.iter().map(|(key, value)| format!("{}: {value}", json!(key))).collect();
            let backward: Vec<String> = forward.iter().rev().cloned().collect();
            let read = |parts: &[String]| serde_json::from_str::<Value>(&format!("{{{}}}", parts.join(" ,"))).unwrap();
            prop_assert_eq!(canonical(&read(&forward)), canonical(&read(&backward)));
            prop_assert_eq!(serde_json::from_str::<Value>(&canonical(&read(&forward))).unwrap(), json!(keys));
        }

        #[test]
        fn no_json_makes_the_readers_panic(text in r#"\{("(tx|nonce|address|sim|max_ledger|signature|prepared_command)":("[0-9a-f]{0,6}"|[0-9]{1,22}|-1|null|\[\]|\{\}|true),){0,6}"x":0\}"#) {
            let Ok(value) = serde_json::from_str(&text) else { return Ok(()) };
            let _ = (signed(&value), draft(&value));
        }
    }
}
