//! What differing bytes look like, for an author who wonders where they come from. Guesses, and worded as such. Pure.

use crate::types::WallMs;

/// How far from the ledger's time a number may be to look like a time stamp: clocks of machines differ, runs take time.
const TIME_NEAR_MS: u64 = 48 * 3600 * 1000;
/// Bytes of a word at most: beyond it is cut.
const WORD_BYTES_MAX: usize = 200;
/// Process ids are below it on Linux and macOS.
const PID_MAX: u64 = 1 << 22;
/// Bytes that must differ before they look drawn by chance.
const RANDOM_BYTES_MIN: usize = 8;

/// What is known beside the bytes.
#[derive(Debug, Clone)]
pub struct Around<'a> {
    /// The ledger's agreed time.
    pub time_ms: WallMs,
    /// Public keys of the members, as contracts get them: hexadecimal.
    pub nodes: &'a [String],
}

/// What two blocks that begin to differ at `at` look like, the likeliest first; empty for nothing known.
pub fn looks_like(mine: &[u8], theirs: &[u8], at: usize, around: &Around<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut add = |text: &str| {
        if found.len() < 3 && !found.iter().any(|known| known == text) {
            found.push(text.to_owned());
        }
    };
    if let Some(text) = reordered(mine, theirs) {
        add(text);
    }
    let (one, other) = (word(mine, at), word(theirs, at));
    if around.nodes.iter().any(|node| contains(one, node.as_bytes()) || contains(other, node.as_bytes()))
        && one != other
    {
        add("a node's own public key: it is not alike on two nodes");
    }
    let fractions = is_fraction(one) && is_fraction(other);
    let value = |word, bytes| if fractions { whole(word) } else { number(bytes, at) };
    let mut is_timed = false;
    if let (Some(one), Some(other)) = (value(one, mine), value(other, theirs)) {
        is_timed = is_time(one, around.time_ms) && is_time(other, around.time_ms);
        if is_timed {
            add("a time stamp: `time_ms`, which each run is given, is the time that all nodes agree on");
        } else if !fractions && one < PID_MAX && other < PID_MAX {
            add("a small number: a process id, a count, a duration, an inode?");
        }
    }
    if is_date(one) && is_date(other) {
        add("a date or time of day: `time_ms`, which each run is given, is the time that all nodes agree on");
    }
    if fractions && !is_timed {
        add(match (one.contains(&b','), other.contains(&b',')) {
            (mine, theirs) if mine != theirs => "a number written with another decimal sign: the locale of the machine",
            _ => "a fraction that is rounded otherwise: floating point, or a duration",
        });
    }
    if is_address(one) && is_address(other) {
        add("an address in memory: it is another in each process");
    } else if is_path(one) && is_path(other) {
        add("a path of this machine: folders have other names elsewhere");
    } else if is_hex(one) && is_hex(other) {
        add(
            "random hexadecimal digits: a random number, a key, a hash or a UUID; `seed`, which each run is given, is alike everywhere",
        );
    }
    if binary_time(mine, at, around.time_ms) && binary_time(theirs, at, around.time_ms) {
        add("a time stamp in binary");
    } else if is_random(mine, theirs, at) {
        add("random bytes: `seed`, which each run is given, is agreed randomness");
    }
    if at == mine.len() || at == theirs.len() {
        add("one side ends there: something was written on one side only, or less of it");
    }
    found
}

/// The same content in another order.
fn reordered(mine: &[u8], theirs: &[u8]) -> Option<&'static str> {
    let sorted = |bytes: &[u8], by: u8| {
        let mut parts: Vec<Vec<u8>> = bytes.split(|byte| *byte == by).map(<[u8]>::to_vec).collect();
        parts.sort_unstable();
        parts
    };
    if mine.len() != theirs.len() || mine.len() < 4 {
        return None;
    }
    if mine.contains(&b'\n') && sorted(mine, b'\n') == sorted(theirs, b'\n') {
        return Some("the same lines in another order: a folder's listing, a hash map's keys, or threads");
    }
    let bare = |bytes: &[u8]| bytes.iter().copied().filter(|byte| !b"{}[]() \n".contains(byte)).collect::<Vec<u8>>();
    let (one, other) = (bare(mine), bare(theirs));
    if one.contains(&b',') && sorted(&one, b',') == sorted(&other, b',') {
        return Some("the same items in another order: a hash map's keys, a folder's listing, or threads");
    }
    None
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-_.,:/%\\~".contains(&byte)
}

/// The word around a place, without the signs that end a sentence or an item.
fn word(bytes: &[u8], at: usize) -> &[u8] {
    let word = span(bytes, at, is_word);
    let is_end = |byte: &u8| b",.:".contains(byte);
    let from = word.iter().position(|byte| !is_end(byte)).unwrap_or(0);
    let to = word.iter().rposition(|byte| !is_end(byte)).map_or(word.len(), |last| last + 1);
    &word[from..to]
}

/// The number before the point of a fraction.
fn whole(word: &[u8]) -> Option<u64> {
    let digits = word.split(|byte| b".,".contains(byte)).next().unwrap_or_default();
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|_| is_fraction(word))
}

fn span(bytes: &[u8], at: usize, is: fn(u8) -> bool) -> &[u8] {
    let at = at.min(bytes.len());
    let from = bytes[..at].iter().rev().take(WORD_BYTES_MAX).take_while(|byte| is(**byte)).count();
    let to = bytes[at..].iter().take(WORD_BYTES_MAX).take_while(|byte| is(**byte)).count();
    &bytes[at - from..at + to]
}

/// The decimal number around a place, when it is a word of its own.
fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let digits = span(bytes, at, |byte| byte.is_ascii_digit());
    let word = span(bytes, at, |byte| byte.is_ascii_alphanumeric());
    // Of `1700000000.25` the whole part is looked at.
    (digits == word).then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

/// In seconds, or thousandths, millionths, billionths of one.
fn is_time(number: u64, time_ms: WallMs) -> bool {
    let near = |ms: u64| ms.abs_diff(time_ms) < TIME_NEAR_MS;
    let scaled = [number.checked_mul(1000), Some(number), Some(number / 1000), Some(number / 1_000_000)];
    scaled.into_iter().flatten().any(near)
}

/// `2026-11-21`, `21:05:33`, `21/11/2026`.
fn is_date(word: &[u8]) -> bool {
    let parts = |by: u8| -> Vec<usize> {
        let parts: Vec<&[u8]> = word.split(|byte| *byte == by || b"TZ+.,".contains(byte)).collect();
        if parts.iter().take(3).all(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit)) {
            parts.iter().map(|part| part.len()).collect()
        } else {
            Vec::new()
        }
    };
    matches!(parts(b'-')[..], [4, 2, 2, ..])
        || matches!(parts(b'/')[..], [4, 2, 2, ..] | [2, 2, 4, ..])
        || matches!(parts(b':')[..], [2, 2, 2, ..])
}

/// `3.25`, `-0,5`, `1e-9` with a point.
fn is_fraction(word: &[u8]) -> bool {
    let digits = word.iter().filter(|byte| byte.is_ascii_digit()).count();
    let signs = word.iter().filter(|byte| b".,".contains(byte)).count();
    let rest = word.iter().filter(|byte| !byte.is_ascii_digit() && !b".,+-eE".contains(byte)).count();
    digits >= 2 && signs == 1 && rest == 0 && !word.ends_with(b".") && !word.ends_with(b",")
}

fn is_address(word: &[u8]) -> bool {
    word.strip_prefix(b"0x")
        .is_some_and(|digits| (6..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit))
}

fn is_path(word: &[u8]) -> bool {
    let names = word.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).count();
    word.starts_with(b"/") && names >= 1 && word.iter().any(u8::is_ascii_alphabetic)
}

/// Sixteen digits at least, some of them letters and some not.
fn is_hex(word: &[u8]) -> bool {
    let digits: Vec<u8> = word.iter().copied().filter(|byte| *byte != b'-').collect();
    digits.len() >= 16
        && digits.iter().all(u8::is_ascii_hexdigit)
        && digits.iter().any(u8::is_ascii_alphabetic)
        && digits.iter().any(u8::is_ascii_digit)
}

/// A little-endian number of 4 or 8 bytes that touches the place.
fn binary_time(bytes: &[u8], at: usize, time_ms: WallMs) -> bool {
    let starts = at.saturating_sub(7)..=at;
    starts.into_iter().any(|start| {
        let eight = bytes.get(start..start + 8).map(|part| u64::from_le_bytes(part.try_into().expect("eight bytes")));
        let four = bytes.get(start..start + 4).map(|part| u32::from_le_bytes(part.try_into().expect("four bytes")));
        let touches = start + 4 > at;
        let zeros = |number: &u64| *number > 0;
        eight.filter(zeros).is_some_and(|number| is_time(number, time_ms))
            || four.filter(|_| touches).is_some_and(|number| {
                let seconds_ms = u64::from(number) * 1000;
                seconds_ms.abs_diff(time_ms) < TIME_NEAR_MS
            })
    })
}

/// Bytes that are no text, and hardly ever the same by chance.
fn is_random(mine: &[u8], theirs: &[u8], at: usize) -> bool {
    let pairs: Vec<(&u8, &u8)> = mine.iter().zip(theirs).skip(at).take(64).collect();
    let differing = pairs.iter().take(RANDOM_BYTES_MIN).filter(|(one, other)| one != other).count();
    let no_text = |byte: &u8| !byte.is_ascii_graphic() && !byte.is_ascii_whitespace();
    let odd = pairs.iter().take(RANDOM_BYTES_MIN * 2).filter(|(one, _)| no_text(one)).count();
    pairs.len() >= RANDOM_BYTES_MIN && differing + 1 >= RANDOM_BYTES_MIN && odd >= 3
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::divergence::difference;

    const TIME_MS: WallMs = 1_790_000_000_000;

    fn guess(mine: &[u8], theirs: &[u8]) -> String {
        let nodes = ["aa".repeat(32), "bb".repeat(32)];
        let at = difference::first(mine, theirs).expect("they differ");
        looks_like(mine, theirs, at, &Around { time_ms: TIME_MS, nodes: &nodes }).join("; ")
    }

    #[test]
    fn the_usual_reasons_are_recognised_and_others_are_not_guessed() {
        let key = |letters: &str| letters.repeat(32).into_bytes();
        let table: [(&[u8], &[u8], &str); 20] = [
            (b"\"at\": 1790000001.5868335, \"pid\"", b"\"at\": 1790000001.652012, \"pid\"", "a time stamp"),
            (b"at 1790000001\n", b"at 1790000003\n", "a time stamp"),
            (b"{\"t\":1790000001123}", b"{\"t\":1790000001124}", "a time stamp"),
            (b"1790000001.12345", b"1790000002.12345", "a time stamp"),
            (b"1790000001123456789", b"1790000001123499999", "a time stamp"),
            (b"pid=4711 ok", b"pid=4720 ok", "a small number"),
            (b"on 2026-11-21T10:00:01Z", b"on 2026-11-21T10:00:02Z", "a date"),
            (b"it is 21:05:33 now", b"it is 21:05:34 now", "a date"),
            (b"x\ny\nz\n", b"y\nx\nz\n", "the same lines in another order"),
            (b"{\"a\":1,\"b\":2}", b"{\"b\":2,\"a\":1}", "the same items in another order"),
            (b"sum 0.30000000000000004", b"sum 0.30000000000000001", "a fraction that is rounded"),
            (b"total 1234.50 EUR", b"total 1234,50 EUR", "another decimal sign"),
            (b"/srv/alice/state", b"/srv/bob/state", "a path of this machine"),
            (b"<obj at 0x7f3a12bc>", b"<obj at 0x7f99aabc>", "an address in memory"),
            (
                b"id 550e8400-e29b-41d4-a716-446655440000",
                b"id 6fa459ea-ee8a-3ca4-894e-db77e160355e",
                "random hexadecimal",
            ),
            (&[200, 1, 220, 9, 130, 140, 5, 250, 3, 4], &[9, 200, 3, 130, 4, 250, 199, 5, 4, 3], "random bytes"),
            (&1_790_000_001_u32.to_le_bytes(), &1_790_000_002_u32.to_le_bytes(), "a time stamp in binary"),
            (b"done", b"done and more", "one side ends there"),
            (&key("aa"), &key("bb"), "a node's own public key"),
            (b"hello alice", b"hello bobby", ""),
        ];
        for (mine, theirs, expected) in table {
            for guess in [guess(mine, theirs), guess(theirs, mine)] {
                let right = if expected.is_empty() { guess.is_empty() } else { guess.contains(expected) };
                assert!(
                    right,
                    "{:?} and {:?}: {guess:?}",
                    mine.escape_ascii().to_string(),
                    theirs.escape_ascii().to_string()
                );
            }
        }
    }

    #[test]
    fn a_number_far_from_the_ledgers_time_is_no_time_stamp() {
        assert!(!guess(b"1390000001", b"1390000002").contains("time"));
    }

    #[test]
    fn any_bytes_may_be_looked_at() {
        let bytes: Vec<Vec<u8>> =
            (0..60_u8).map(|length| (0..length).map(|at| at.wrapping_mul(37) ^ length).collect()).collect();
        for mine in &bytes {
            for theirs in &bytes {
                if let Some(at) = difference::first(mine, theirs) {
                    let _ = looks_like(mine, theirs, at, &Around { time_ms: TIME_MS, nodes: &[] });
                }
            }
        }
    }
}
