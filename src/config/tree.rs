//! TOML or the prototype's JSON -> one tree of values that remembers lines (for errors) and spans (for edits).
//!
//! Messages of the parsers are passed on, their excerpts of the file are not: an excerpt could show a secret key.

use std::{fmt, ops::Range};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use toml::de::{DeTable, DeValue};

/// Tables within tables that are kept; deeper ones become [`Value::Other`], which no key accepts.
const DEPTH_MAX: usize = 4;

/// How the file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As `hp new` writes it.
    Toml,
    /// The prototype's JSON.
    Legacy,
}

/// One value of the file.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    /// Decimal text of a number.
    Number(String),
    Bool(bool),
    List(Vec<Item>),
    Table(Vec<Entry>),
    Null,
    /// What no key takes: dates, and tables too deep.
    Other(&'static str),
}

/// An element of a list and its bytes in the file (empty in JSON).
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) value: Value,
    pub(super) span: Range<usize>,
}

/// A key of a table with its value, its line (unknown in JSON), and the value's bytes in the file (empty in JSON).
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) line: Option<usize>,
    pub(super) value: Value,
    pub(super) span: Range<usize>,
}

/// Text that is neither TOML nor JSON: where, counted from 1, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) message: String,
}

impl Value {
    /// What kind of value this is, in words for an error.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a text",
            Value::Number(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Null => "null",
            Value::Other(kind) => kind,
        }
    }
}

/// Reads the whole file: JSON if its first non-blank character is `{`, else TOML.
pub(super) fn read(text: &str) -> Result<(Format, Vec<Entry>), SyntaxError> {
    match is_json(text) {
        true => json(text.trim_start_matches('\u{feff}')).map(|entries| (Format::Legacy, entries)),
        false => toml(text).map(|entries| (Format::Toml, entries)),
    }
}

fn is_json(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').trim_start().starts_with('{')
}

fn toml(text: &str) -> Result<Vec<Entry>, SyntaxError> {
    match DeTable::parse(text) {
        Ok(table) => Ok(toml_table(&Lines::of(text), table.get_ref(), 0)),
        Err(error) => {
            let (line, column) = Lines::of(text).position(error.span().map_or(0, |span| span.start));
            Err(SyntaxError { line, column, message: error.message().to_owned() })
        }
    }
}

fn toml_table(lines: &Lines<'_>, table: &DeTable<'_>, depth: usize) -> Vec<Entry> {
    let entry = |(key, value): (&toml::Spanned<std::borrow::Cow<'_, str>>, &toml::Spanned<DeValue<'_>>)| Entry {
        name: key.get_ref().to_string(),
        line: Some(lines.position(key.span().start).0),
        value: toml_value(lines, value.get_ref(), depth + 1),
        span: value.span(),
    };
    table.iter().map(entry).collect()
}

fn toml_value(lines: &Lines<'_>, value: &DeValue<'_>, depth: usize) -> Value {
    match value {
        DeValue::String(string) => Value::Text(string.to_string()),
        DeValue::Integer(integer) => Value::Number(match i128::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => number.to_string(),
            Err(_) => integer.as_str().to_owned(),
        }),
        DeValue::Float(float) => Value::Number(float.as_str().to_owned()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(_) | DeValue::Table(_) if depth >= DEPTH_MAX => Value::Other("a value that is nested too deep"),
        DeValue::Array(array) => {
            let item = |item: &toml::Spanned<DeValue<'_>>| Item {
                value: toml_value(lines, item.get_ref(), depth + 1),
                span: item.span(),
            };
            Value::List(array.iter().map(item).collect())
        }
        DeValue::Table(table) => Value::Table(toml_table(lines, table, depth)),
    }
}

/// Where the lines of a text start, so that a file of many keys is not searched from its start for each.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Lines<'a> {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Lines { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Line and column of a byte, both counted from 1; the column in characters.
    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset);
        let before = self.text.get(self.starts[line - 1]..offset).unwrap_or("");
        (line, before.chars().count() + 1)
    }
}

fn json(text: &str) -> Result<Vec<Entry>, SyntaxError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Value::deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(Value::Table(entries)) => Ok(entries),
        Ok(_) => Err(SyntaxError { line: 1, column: 1, message: "expected one JSON object".to_owned() }),
        Err(error) => {
            let whole = error.to_string();
            let place = format!(" at line {} column {}", error.line(), error.column());
            let message = whole.strip_suffix(&place).unwrap_or(&whole).to_owned();
            Err(SyntaxError { line: error.line(), column: error.column(), message })
        }
    }
}

/// A visitor of our own, because serde_json's `Value` takes the last of two equal keys without a word.
impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(format!("{value:?}")))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(value) = list.next_element()? {
            items.push(Item { value, span: 0..0 });
        }
        Ok(Value::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("key {} stands twice", super::table::shown_text(&name))));
            }
            entries.push(Entry { name, line: None, value, span: 0..0 });
        }
        Ok(Value::Table(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_lines_lead_to_the_value_in_the_text() {
        let text = "# é\na = \"x\" # c\n[t]\nl = [1, 0x10]\n";
        let (format, entries) = read(text).unwrap();
        assert_eq!(format, Format::Toml);
        assert_eq!((&text[entries[0].span.clone()], entries[0].line), ("\"x\"", Some(2)));
        let Value::Table(table) = &entries[1].value else { panic!("{:?}", entries[1]) };
        let Value::List(items) = &table[0].value else { panic!("{:?}", table[0]) };
        assert_eq!(&text[items[1].span.clone()], "0x10");
        assert!(matches!(&items[1].value, Value::Number(number) if number == "16"));
    }

    #[test]
    fn a_json_key_that_stands_twice_is_an_error_not_the_last_one_wins() {
        let error = read("\n{\"a\": 1, \"a\": 2}").unwrap_err();
        assert_eq!((error.line, error.message.as_str()), (2, "key \"a\" stands twice"));
        assert!(read("{} {}").is_err(), "something behind the object");
    }

    #[test]
    fn nesting_without_end_is_refused_without_harm() {
        for open in ["[", "{", "{\"a\":", "a = [", "a = {a = ", "a.", "[a.", "[[a."] {
            let deep = open.repeat(20_000);
            assert!(read(&deep).is_err(), "{open}");
            assert!(read(&format!("a = {deep}")).is_err(), "{open}");
        }
    }
}
