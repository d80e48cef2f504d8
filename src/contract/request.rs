//! What a contract asks of the network over its control descriptor: one line, alike on all nodes. Pure.
//!
//! Source: `contracts/README.md`, "Asking for another UNL".

use crate::{consensus::header::UnlChange, crypto, types::NodeKey};

/// Bytes of the longest request with room to spare. What is written beyond is dropped, and nothing is asked for.
pub(super) const CONTROL_BYTES_MAX: usize = 4 << 10;

/// Why nothing is asked for, though something was written. The run is not hurt by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Two requests, or far too many bytes.
    #[error("more than the one line that a run may write")]
    TooLong,
    /// The only line is cut.
    #[error("{0:?} without a line feed at the end")]
    Cut(String),
    /// Another line.
    #[error("{0:?} is neither `unl add KEY` nor `unl remove KEY` with a node's key, 64 hexadecimal digits")]
    Unknown(String),
}

/// Reads all that a run wrote to its control descriptor. `None`: nothing.
pub fn parse(bytes: &[u8]) -> Result<Option<UnlChange>, RequestError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(120).collect::<String>();
    let line = match bytes.iter().position(|byte| *byte == b'\n') {
        None if bytes.len() < CONTROL_BYTES_MAX => return Err(RequestError::Cut(shown(bytes))),
        Some(end) if end + 1 == bytes.len() => &bytes[..end],
        _ => return Err(RequestError::TooLong),
    };
    let key = |text: &[u8]| {
        let key = std::str::from_utf8(text).ok()?.parse::<NodeKey>().ok()?;
        // Nobody could ever vote with another one.
        crypto::is_key(&key.0).then_some(key)
    };
    let change = match (line.strip_prefix(b"unl add "), line.strip_prefix(b"unl remove ")) {
        (Some(text), _) => key(text).map(UnlChange::Add),
        (_, Some(text)) => key(text).map(UnlChange::Remove),
        _ => None,
    };
    change.map(Some).ok_or_else(|| RequestError::Unknown(shown(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";

    #[test]
    fn one_line_asks_for_one_change_and_no_line_for_none() {
        let key: NodeKey = KEY.parse().unwrap();
        assert_eq!(parse(b""), Ok(None));
        assert_eq!(parse(format!("unl add {KEY}\n").as_bytes()), Ok(Some(UnlChange::Add(key))));
        assert_eq!(parse(format!("unl remove {}\n", KEY.to_uppercase()).as_bytes()), Ok(Some(UnlChange::Remove(key))));
    }

    #[test]
    fn anything_but_exactly_one_such_line_asks_for_nothing() {
        let add = format!("unl add {KEY}\n");
        assert_eq!(parse(add.trim_end().as_bytes()), Err(RequestError::Cut(add.trim_end().to_owned())));
        for bytes in [format!("{add}{add}"), format!("{add}\n"), format!("{add}x"), "x".repeat(CONTROL_BYTES_MAX)] {
            assert_eq!(parse(bytes.as_bytes()), Err(RequestError::TooLong), "{bytes:?}");
        }
        for line in [
            "\n".to_owned(),
            " unl add KEY\n".replace("KEY", KEY),
            "unl  add KEY\n".replace("KEY", KEY),
            "unl add KEY \n".replace("KEY", KEY),
            "unl add KEY\r\n".replace("KEY", KEY),
            "unl add KEY00\n".replace("KEY", KEY),
            "unl add \n".to_owned(),
            format!("unl add {}\n", "00".repeat(32)),
            "unl replace KEY\n".replace("KEY", KEY),
            "UNL ADD KEY\n".replace("KEY", KEY),
        ] {
            assert!(matches!(parse(line.as_bytes()), Err(RequestError::Unknown(_))), "{line:?}");
        }
        assert!(matches!(parse(b"unl add \xff\n"), Err(RequestError::Unknown(_))));
    }
}
