//! What comes from outside in paths and queries -> values. Pure: an error is the text for the client, and names the parameter.

use axum::http::Uri;

use super::{Which, answer::Failure};
use crate::types::Seq;

/// Bytes of a wrong value that an error shows.
const SHOWN_MAX: usize = 80;

/// The query of a request: names and values, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Of a request. Errors when something in it is no text.
    pub fn of(uri: &Uri) -> Result<Query, Failure> {
        Query::parse(uri.query().unwrap_or(""))
    }

    /// Reads `a=b&c=d`. `+` is a blank, `%` begins two hexadecimal digits.
    pub fn parse(text: &str) -> Result<Query, Failure> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let wrong = |part: &str| Failure::bad(format!("Invalid query: {} is no text in UTF-8.", shown(part)));
            let decoded = |part: &str| decode(part, true).ok_or_else(|| wrong(part));
            Ok((decoded(name)?, decoded(value)?))
        });
        Ok(Query(pairs.collect::<Result<_, _>>()?))
    }

    /// The value of a parameter. One that is given twice is an error: two readers must not see two requests.
    pub fn get(&self, name: &str) -> Result<Option<&str>, Failure> {
        let mut found = self.0.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str());
        match (found.next(), found.next()) {
            (value, None) => Ok(value),
            _ => Err(Failure::bad(format!("Invalid {name}: it stands twice."))),
        }
    }

    /// A whole number within limits, if it is there.
    pub fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, Failure> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        let number = whole(text).filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| wrong(name, &format!("a whole number from {least} to {most}"), text))
    }
}

/// The last part of a path that names a ledger: `latest`, its number, or its hash.
pub fn which(text: &str) -> Result<Which, Failure> {
    let expected = "the number of a ledger, its hash of 64 hexadecimal digits, or \"latest\"";
    match text {
        "latest" => Ok(Which::Last),
        _ if text.len() == 64 => text.parse().map(Which::Hash).map_err(|_| wrong("ledger", expected, text)),
        _ => whole(text).map(Which::Seq).ok_or_else(|| wrong("ledger", expected, text)),
    }
}

/// The number of a ledger in a path.
pub fn seq(text: &str) -> Result<Seq, Failure> {
    whole(text).ok_or_else(|| wrong("seq", "the number of a ledger", text))
}

/// A number of decimal digits alone, which fits the database.
fn whole(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_number && *number <= i64::MAX as u64)
}

/// What is wrong with a parameter.
pub fn wrong(name: &str, expected: &str, got: &str) -> Failure {
    Failure::bad(format!("Invalid {name}: expected {expected}, got {}.", shown(got)))
}

/// A value for an error: quoted and cut.
pub fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_MAX).collect();
    format!("{cut:?}{}", if cut.len() < text.len() { "…" } else { "" })
}

/// Text with `%` and two digits for bytes. `None` when it is not UTF-8, or `%` stands alone.
fn decode(text: &str, plus_is_blank: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                bytes.extend(hex::decode(digits).ok()?);
                rest = after;
            }
            b'+' if plus_is_blank => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Hash;

    fn text(failure: Failure) -> String {
        assert_eq!(failure.status, 400);
        failure.error
    }

    #[test]
    fn a_query_is_decoded_and_its_errors_name_the_parameter() {
        let query = Query::parse("key=a%2Fb+c&n=7&flag&n2=00&x=1&x=2&big=9223372036854775808").unwrap();
        assert_eq!((query.get("key"), query.get("flag"), query.get("no")), (Ok(Some("a/b c")), Ok(Some("")), Ok(None)));
        assert_eq!(
            (query.number("n", 1, 7), query.number("n2", 0, 7), query.number("no", 1, 2)),
            (Ok(Some(7)), Ok(Some(0)), Ok(None))
        );
        assert_eq!(text(query.get("x").unwrap_err()), "Invalid x: it stands twice.");
        assert_eq!(
            text(query.number("n", 8, 9).unwrap_err()),
            "Invalid n: expected a whole number from 8 to 9, got \"7\"."
        );
        for name in ["key", "flag", "big"] {
            assert!(text(query.number(name, 0, u64::MAX).unwrap_err()).starts_with(&format!("Invalid {name}: ")));
        }
        for wrong in ["a=%", "a=%f", "a=%zz", "a=%ff", "%C3=1"] {
            assert!(text(Query::parse(wrong).unwrap_err()).starts_with("Invalid query: "), "{wrong}");
        }
    }

    #[test]
    fn a_ledger_is_named_by_number_hash_or_latest() {
        assert_eq!((which("7"), which("latest")), (Ok(Which::Seq(7)), Ok(Which::Last)));
        assert_eq!(which(&"ab".repeat(32)), Ok(Which::Hash(Hash([0xab; 32]))));
        for wrong in ["", "-1", "+1", "1.0", "0x1", " 1", "Latest", &"ab".repeat(31), &"zz".repeat(32), &"9".repeat(20)]
        {
            assert!(text(which(wrong).unwrap_err()).starts_with("Invalid ledger: expected the number"), "{wrong}");
        }
        assert!(text(which(&"x".repeat(10_000)).unwrap_err()).len() < 300, "a long value is cut");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic_and_what_is_written_is_read_back(text in ".*", pairs in proptest::collection::vec((".*", ".*"), 0..5)) {
            let _ = Query::parse(&text).map(|query| query.number("a", 0, 9));
            let _ = (which(&text), seq(&text));
            let encoded = |text: &String| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let query: Vec<String> = pairs.iter().map(|(a, b)| format!("{}={}", encoded(a), encoded(b))).collect();
            prop_assert_eq!(Query::parse(&query.join("&")).unwrap().0, pairs);
        }
    }
}
