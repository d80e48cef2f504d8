//! Reads what `POST /v1/broadcast-transaction` is given, and refuses what the real bus refuses, with the same words.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::books::Code;
use crate::{
    settlement::{
        Address, Amount, Network,
        tx::{DEPLOYMENT, Deployment, Operation, Signed, TRANSFER, TX, Transfer, Tx},
    },
    types::{Hash, Sig},
};

/// Bytes of a body. A longer one is refused with 413.
pub(super) const BODY_BYTES_MAX: usize = 2_000_000;

/// What the real bus says whatever is wrong with an operation.
pub(super) const INVALID: &str = "Invalid transaction payload.";

/// A body that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// 400 or 500.
    pub(super) status: u16,
    /// What the real bus says.
    pub(super) error: &'static str,
    /// Why, where it does not say it.
    pub(super) reason: Option<(Code, String)>,
}

impl Refusal {
    fn bad_request(error: &'static str) -> Refusal {
        Refusal { status: 400, error, reason: None }
    }

    /// The real bus stumbles.
    fn stumble() -> Refusal {
        Refusal { status: 500, error: "An error occurred processing the transaction.", reason: None }
    }

    pub(super) fn invalid(code: Code, why: impl Into<String>) -> Refusal {
        Refusal { status: 400, error: INVALID, reason: Some((code, why.into())) }
    }
}

/// The operation in a body. Type 11 is taken too, which the real bus does not.
pub(super) fn read(body: &[u8], network: Network) -> Result<Signed, Refusal> {
    let body: Value = serde_json::from_slice(body).map_err(|_| Refusal::bad_request("Invalid JSON payload."))?;
    if body.is_null() {
        return Err(Refusal::stumble());
    }
    let payload = match &body["payload"] {
        Value::Null | Value::Bool(false) => return Err(Refusal::bad_request("Payload is missing.")),
        Value::Number(number) if number.as_f64() == Some(0.0) => {
            return Err(Refusal::bad_request("Payload is missing."));
        }
        Value::String(text) if text.is_empty() => return Err(Refusal::bad_request("Payload is missing.")),
        Value::String(text) => text,
        _ => return Err(Refusal::bad_request("Payload must be a valid base64 string.")),
    };
    let bytes = STANDARD.decode(payload).map_err(|_| Refusal::bad_request("Payload must be a valid base64 string."))?;
    let operation: Value = serde_json::from_str(&String::from_utf8_lossy(&bytes))
        .map_err(|_| Refusal::bad_request("Decoded payload is not valid JSON."))?;
    read_operation(&operation, network)
}

fn read_operation(value: &Value, network: Network) -> Result<Signed, Refusal> {
    let kind = value["type"].as_f64();
    let address = value["address"].as_str();
    let has = |name: &str| matches!(value.get(name), Some(Value::Object(_) | Value::Array(_) | Value::Null));
    let deploys = kind == Some(f64::from(DEPLOYMENT)) && has("bdo");
    let (Some(kind), Some(address)) = (kind, address) else {
        return Err(Refusal::bad_request("Invalid payload structure."));
    };
    if !has("txo") && !has("tro") && !deploys {
        return Err(Refusal::bad_request("Invalid payload structure."));
    }
    let name = match kind {
        kind if kind == f64::from(TX) => "txo",
        kind if kind == f64::from(TRANSFER) => "tro",
        _ if deploys => "bdo",
        _ => return Err(Refusal::bad_request("Payload is not a transfer/transaction operation.")),
    };
    let body = value[name].as_object().ok_or_else(Refusal::stumble)?;
    let address = address.trim();
    if address.is_empty() {
        return Err(Refusal::stumble());
    }
    let fields = Fields { body };
    let names: &[&'static str] = match name {
        "txo" => &["tx", "txv", "iw", "ch", "bs", "mbs", "in", "is"],
        "tro" => &["tx", "txv", "in", "to", "am", "is"],
        _ => &["tx", "txv", "bs", "ic", "in", "is"],
    };
    // The real bus looks whether all of them are there and hexadecimal before it looks at any of them.
    for field in names {
        let text = fields.text(field)?;
        let is_hex =
            text.len() > 1 && text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if *field != "to" && !is_hex {
            return Err(Refusal::stumble());
        }
    }
    let operation = match name {
        "txo" => Operation::Tx(Tx {
            txv: fields.hash("txv")?,
            iw: fields.hash("iw")?,
            ch: fields.hash("ch")?,
            bs: fields.hash("bs")?,
            mbs: fields.hash("mbs")?,
            nonce: fields.hash("in")?,
        }),
        "tro" => Operation::Transfer(Transfer {
            txv: fields.hash("txv")?,
            to: recipient(fields.text("to")?, network)?,
            amount: Amount(u128::from_be_bytes(fields.bytes("am")?)),
            nonce: fields.hash("in")?,
        }),
        _ => Operation::Deployment(Deployment {
            txv: fields.hash("txv")?,
            bs: fields.hash("bs")?,
            channel: fields.hash("ic")?,
            nonce: fields.hash("in")?,
        }),
    };
    let (hash, sig) = (fields.hash("tx")?, Sig(fields.bytes("is")?));
    let zero = operation.zero_field().or_else(|| (hash == Hash::ZERO).then_some("tx"));
    if let Some(zero) = zero.or_else(|| (sig.0 == [0; 64]).then_some("is")) {
        return Err(Refusal::invalid(Code::SchemaValidationFailed, format!("{zero} is all zeros")));
    }
    let requester = match Address::check_format(address, network) {
        Err(error) => return Err(Refusal::invalid(Code::RequesterAddressInvalid, error.to_string())),
        Ok(()) => Address::parse(address, network),
    };
    let requester = requester.map_err(|error| Refusal::invalid(Code::RequesterPublicKeyInvalid, error.to_string()))?;
    Ok(Signed { requester, operation, hash, sig })
}

fn recipient(text: &str, network: Network) -> Result<Address, Refusal> {
    if let Err(error) = Address::check_format(text, network) {
        return Err(Refusal::invalid(Code::TransferRecipientAddressInvalid, error.to_string()));
    }
    Address::parse(text, network)
        .map_err(|error| Refusal::invalid(Code::TransferRecipientPublicKeyInvalid, error.to_string()))
}

struct Fields<'a> {
    body: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The field without the spaces around it; the real bus stumbles over one that is missing, empty or no text.
    fn text(&self, name: &str) -> Result<&'a str, Refusal> {
        let text = self.body.get(name).and_then(Value::as_str).map(str::trim);
        text.filter(|text| !text.is_empty()).ok_or_else(Refusal::stumble)
    }

    fn bytes<const N: usize>(&self, name: &str) -> Result<[u8; N], Refusal> {
        let text = self.text(name)?;
        let mut bytes = [0; N];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(_) => {
                let why = format!("{name} has {} bytes, not {N}", text.len() / 2);
                Err(Refusal::invalid(Code::SchemaValidationFailed, why))
            }
        }
    }

    fn hash(&self, name: &str) -> Result<Hash, Refusal> {
        self.bytes(name).map(Hash)
    }
}
