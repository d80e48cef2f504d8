//! What the real library computes, for tests: `tests/golden/msb.json`.

use serde_json::Value;

/// All of it.
pub(super) fn vectors() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/msb.json")).unwrap()
}

/// The text at this path.
pub(super) fn vector(path: &str) -> String {
    vectors().pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("{path} is a text")).to_owned()
}
