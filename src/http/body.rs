//! Bodies of requests: within their limit, in time, and JSON.

use std::{pin::pin, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::header,
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::time::timeout;

use super::{answer::Failure, api::Api};

/// How long a body may take. Shorter in tests, which wait for it.
const BODY_TIME: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 30_000 });

/// Bytes of a body that is too long which are read and thrown away, so that its sender hears why. Past it the connection breaks.
const DRAINED_BYTES_MAX: usize = 8 << 20;

/// How deep a body may be nested; deeper is not read.
const DEPTH_MAX: usize = 64;

/// The JSON of a request's body.
#[derive(Debug)]
pub(super) struct JsonBody(pub(super) Value);

impl FromRequest<Api> for JsonBody {
    type Rejection = Failure;

    async fn from_request(request: Request, api: &Api) -> Result<JsonBody, Failure> {
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced: Option<usize> = announced.and_then(|length| length.to_str().ok()?.parse().ok());
        let _room = api.room.take(announced.unwrap_or(usize::MAX).min(api.body_bytes_max)).await;
        let read = timeout(BODY_TIME, read(request.into_body(), api.body_bytes_max)).await;
        let bytes = read.map_err(|_| Failure { status: 408, error: "The body did not come in time.".to_owned() })??;
        parse(&bytes).map(JsonBody)
    }
}

async fn read(body: Body, bytes_max: usize) -> Result<Bytes, Failure> {
    let mut body = pin!(body);
    let (mut kept, mut read) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Failure::bad("The body is broken off."))?;
        let Ok(data) = frame.into_data() else { continue };
        read += data.len();
        if read <= bytes_max {
            kept.extend_from_slice(&data);
        } else if read > DRAINED_BYTES_MAX.max(bytes_max) {
            break;
        }
    }
    match read <= bytes_max {
        true => Ok(kept.into()),
        false => Err(Failure { status: 413, error: "Request body too large.".to_owned() }),
    }
}

/// One JSON value. A key that stands twice in an object is an error: two readers must not see two requests.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, Failure> {
    if bytes.trim_ascii().is_empty() {
        return Err(Failure::bad("Missing JSON body."));
    }
    let invalid = |_| Failure::bad("Invalid JSON payload.");
    let value: strict::Strict = serde_json::from_slice(bytes).map_err(invalid)?;
    match depth(&value.0) <= DEPTH_MAX {
        true => Ok(value.0),
        false => Err(Failure::bad(format!("Invalid JSON payload: nested deeper than {DEPTH_MAX}."))),
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(items) => 1 + items.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// JSON whose objects have each key once.
mod strict {
    use std::fmt;

    use serde::{
        Deserialize, Deserializer,
        de::{Error, MapAccess, SeqAccess, Visitor},
    };
    use serde_json::{Map, Value};

    pub(super) struct Strict(pub(super) Value);

    impl<'de> Deserialize<'de> for Strict {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
            deserializer.deserialize_any(Values).map(Strict)
        }
    }

    struct Values;

    impl<'de> Visitor<'de> for Values {
        type Value = Value;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON value")
        }

        fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
            Ok(value.into())
        }

        fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
            Ok(value.into())
        }

        fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
            Ok(value.into())
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
            serde_json::Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
        }

        fn visit_str<E>(self, value: &str) -> Result<Value, E> {
            Ok(value.into())
        }

        fn visit_unit<E>(self) -> Result<Value, E> {
            Ok(Value::Null)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
            let mut values = Vec::new();
            while let Some(Strict(value)) = items.next_element()? {
                values.push(value);
            }
            Ok(Value::Array(values))
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
            let mut values = Map::new();
            while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
                if values.contains_key(&key) {
                    return Err(A::Error::custom(format_args!("the key {key:?} stands twice")));
                }
                values.insert(key, value);
            }
            Ok(Value::Object(values))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn error(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().error
    }

    #[test]
    fn a_body_is_one_json_value_with_each_key_once() {
        let text = r#" {"a":[1,-2,0.5,"x",null,true],"b":{"a":18446744073709551615}} "#;
        assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        assert_eq!((error(""), error(" \n")), ("Missing JSON body.".to_owned(), "Missing JSON body.".to_owned()));
        for wrong in ["{", "{}{}", "{\"a\":1,\"a\":1}", "[{\"b\":{\"a\":1,\"a\":2}}]", "nul", "1e999", "\u{feff}{}"] {
            assert_eq!(error(wrong), "Invalid JSON payload.", "{wrong}");
        }
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(error(&nested(DEPTH_MAX + 1)), "Invalid JSON payload: nested deeper than 64.");
        assert_eq!(error(&nested(100_000)), "Invalid JSON payload.");
        assert_eq!(parse(b"{}").unwrap(), json!({}));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), text in "[\\[\\]{}\",:0-9eE.\\-a]{0,40}") {
            let _ = (parse(&bytes), parse(text.as_bytes()));
        }
    }
}
