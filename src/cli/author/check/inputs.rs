//! The ledgers that a check runs: from a file, or a few that try a contract.

use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde::Deserialize;

use crate::cli::author::users::{Room, read_input};

/// Ledgers of one check. More are refused: each is run a few dozen times.
const LEDGERS_MAX: usize = 1_000;
/// Bytes of the big inputs where no file is given: more than a pipe holds.
const BIG_BYTES: usize = 200_000;
/// Users of the ledger with many.
const CROWD: usize = 20;

/// One line of a file with inputs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    user: String,
    input: Option<String>,
    hex: Option<String>,
}

/// Reads the ledgers of a file: a JSON object a line, an empty line after each ledger but the last.
pub(super) fn read(file: &Path) -> anyhow::Result<Vec<Room>> {
    let bytes = read_input(file)?;
    let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is not UTF-8 text", file.display()))?;
    parse(text).with_context(|| file.display().to_string())
}

fn parse(text: &str) -> anyhow::Result<Vec<Room>> {
    let mut ledgers = vec![Room::default()];
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            ledgers.push(Room::default());
            if ledgers.len() > LEDGERS_MAX {
                bail!("more than {LEDGERS_MAX} ledgers");
            }
            continue;
        }
        let expected = r#"expected {"user":"NAME"}, {"user":"NAME","input":"text"} or {"user":"NAME","hex":"00ff"}"#;
        let number = at + 1;
        let line: Line = serde_json::from_str(line).with_context(|| format!("line {number}: {expected}"))?;
        let input = match (line.input, line.hex) {
            (Some(_), Some(_)) => bail!("line {number}: input and hex at once; {expected}"),
            (Some(text), None) => Some(Bytes::from(text)),
            (None, Some(hex)) => {
                Some(Bytes::from(hex::decode(hex).with_context(|| format!("line {number}: hex is not hexadecimal"))?))
            }
            (None, None) => None,
        };
        ledgers.last_mut().expect("begins with one").add(&line.user, input);
    }
    Ok(ledgers)
}

/// Ledgers for a contract that nothing is known of: lines, a crowd, big inputs, bytes that are no text, nobody.
pub(super) fn usual() -> Vec<Room> {
    let mut ledgers = vec![Room::default(); 5];
    let mut say =
        |ledger: usize, name: &str, input: &[u8]| ledgers[ledger].add(name, Some(Bytes::copy_from_slice(input)));
    say(0, "alice", b"hello\n");
    say(0, "bob", b"one\ntwo\n");
    say(0, "dave", b"first\n");
    say(0, "dave", b"second\n");
    for number in 0..CROWD {
        say(1, &format!("user{number}"), format!("line of user {number}\n").as_bytes());
    }
    say(1, "alice", b"{\"op\":\"list\"}\n");
    let big: String = (0..).map(|number| format!("line {number}\n")).take(BIG_BYTES / 9).collect();
    say(2, "alice", big.as_bytes());
    say(2, "bob", &vec![b'x'; BIG_BYTES]);
    say(2, "eve", b"\x00\xff\xfe no text \xc3\x28\n");
    say(4, "alice", b"hello\n");
    say(4, "bob", b"again\n");
    ledgers[0].add("carol", None);
    ledgers[4].add("carol", None);
    ledgers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_line_ends_a_ledger_and_anything_wrong_is_named() {
        let text = "{\"user\":\"a\",\"input\":\"x\\n\"}\n{\"user\":\"b\"}\n\n{\"user\":\"a\",\"hex\":\"ff00\"}\n";
        let ledgers = parse(text).unwrap();
        let inputs: Vec<Vec<usize>> = ledgers
            .iter()
            .map(|room| room.users().iter().map(|user| user.inputs.iter().map(Bytes::len).sum()).collect())
            .collect();
        assert_eq!(inputs, [vec![2, 0], vec![2]]);
        for (bad, named) in [
            ("x", "line 1: expected"),
            ("{\"user\":\"a\"}\n{\"input\":\"x\"}", "line 2: expected"),
            ("{\"user\":\"a\",\"hex\":\"0\"}", "line 1: hex is not"),
            ("{\"user\":\"a\",\"hex\":\"00\",\"input\":\"\"}", "line 1: input and hex"),
            ("{\"user\":\"a\",\"inputs\":\"\"}", "line 1: expected"),
        ] {
            assert!(parse(bad).unwrap_err().to_string().contains(named), "{bad}");
        }
        assert!(parse(&"\n".repeat(LEDGERS_MAX)).is_err());
    }
}
