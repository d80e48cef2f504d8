//! One table of the file: typed reading, and errors that name file, line, key and value.

use std::{ops::RangeInclusive, path::Path};

use super::{
    ConfigError, Format, Problem,
    tree::{Entry, Item, Value},
};
use crate::types::NodeKey;

/// Characters of a wrong value that an error shows.
const SHOWN_MAX: usize = 80;

/// Every key, by table; "" is the top of the file.
pub(super) const KEYS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "hotpocket",
            "pubkey",
            "seckey",
            "seckey_file",
            "keytype",
            "binary",
            "binargs",
            "peers",
            "unl",
            "ip",
            "peerport",
            "roundtime",
            "pubport",
            "pubmaxsize",
            "pubmaxcpm",
            "disk_reserve_mb",
            "consensus",
            "contract",
            "user",
            "mesh",
            "log",
            "msb",
            "http",
        ],
    ),
    ("consensus", &["threshold", "eager", "min_round_ms", "grace_ms", "attempt_ms", "time_res_ms", "input_window"]),
    (
        "contract",
        &[
            "id",
            "genesis_time_ms",
            "env",
            "time_limit_s",
            "cpu_s",
            "memory_mb",
            "files",
            "processes",
            "file_mb",
            "output_mb",
            "output_user_mb",
            "state_mb",
            "state_files",
            "log_kb",
            "npl_window_ms",
            "state_backend",
            "containment",
            "run_as",
            "network",
            "read",
        ],
    ),
    (
        "user",
        &[
            "inputs",
            "users_max",
            "connections_max",
            "per_address",
            "failed_per_minute",
            "queue_kb",
            "reads_max",
            "read_time_s",
            "tls_cert",
            "tls_key",
        ],
    ),
    ("mesh", &["admit", "max_connections"]),
    ("log", &["level", "format", "contract_files"]),
    (
        "msb",
        &[
            "mode",
            "url",
            "listen",
            "network",
            "bootstrap",
            "subnet",
            "settle_every",
            "settle_max_delay_s",
            "settle_slot_s",
            "execute",
            "key_file",
            "ca_file",
        ],
    ),
    (
        "http",
        &[
            "listen",
            "api_tx_exposed",
            "cors",
            "names",
            "admin_token_file",
            "body_max",
            "connections_max",
            "per_address",
            "tls_cert",
            "tls_key",
        ],
    ),
];

/// One table of the file, for typed reading.
pub(super) struct Table<'a> {
    pub(super) file: &'a Path,
    /// "" is the top of the file.
    pub(super) name: &'static str,
    pub(super) format: Format,
    pub(super) entries: &'a [Entry],
}

impl<'a> Table<'a> {
    pub(super) fn table(&self, name: &'static str) -> Result<Table<'a>, ConfigError> {
        let entries = match self.value(name) {
            None => &[],
            Some(Value::Table(entries)) => &entries[..],
            Some(other) => return Err(self.expected(name, "a table", other)),
        };
        let table = Table { file: self.file, name, format: self.format, entries };
        table.check_names()?;
        Ok(table)
    }

    /// Every name is a known one. Before all else, because a misspelt key also looks like a missing one.
    pub(super) fn check_names(&self) -> Result<(), ConfigError> {
        let known = names(self.name);
        let Some(entry) = self.entries.iter().find(|entry| !known.contains(&entry.name.as_str())) else {
            return Ok(());
        };
        let problem = Problem::Unknown(hint(self.name, &entry.name));
        let key = match shown_text(&entry.name) {
            quoted if quoted.starts_with('"') => full_name(self.name, &quoted[1..quoted.len() - 1]),
            hidden => full_name(self.name, &hidden),
        };
        Err(ConfigError::Key { file: self.file.to_owned(), line: entry.line, key, problem })
    }

    fn entry(&self, name: &str) -> Option<&'a Entry> {
        assert!(names(self.name).contains(&name), "{name} is in the list of keys");
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The value of a key. JSON's `null` is none.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.entry(name).map(|entry| &entry.value).filter(|value| !matches!(value, Value::Null))
    }

    pub(super) fn error(&self, name: &str, problem: Problem) -> ConfigError {
        let line = self.entry(name).and_then(|entry| entry.line);
        ConfigError::Key { file: self.file.to_owned(), line, key: full_name(self.name, name), problem }
    }

    pub(super) fn expected(&self, name: &str, expected: &str, got: &Value) -> ConfigError {
        let got = match name {
            "seckey" => got.kind().to_owned(),
            _ => shown(got),
        };
        self.error(name, Problem::Expected { expected: expected.to_owned(), got })
    }

    pub(super) fn check_length(
        &self,
        name: &str,
        length: usize,
        range: RangeInclusive<usize>,
    ) -> Result<(), ConfigError> {
        if range.contains(&length) {
            return Ok(());
        }
        let expected = format!("{} to {} entries", range.start(), range.end());
        Err(self.error(name, Problem::Expected { expected, got: length.to_string() }))
    }

    pub(super) fn version(&self) -> Result<(), ConfigError> {
        match self.value("hotpocket") {
            Some(Value::Text(version) | Value::Number(version)) if version == "0.1" => Ok(()),
            Some(other) => Err(self.expected("hotpocket", "\"0.1\"", other)),
            None => Err(self.error("hotpocket", Problem::Missing(" (expected \"0.1\")"))),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.expected(name, "a text", other)),
        }
    }

    pub(super) fn path(&self, name: &str) -> Result<Option<String>, ConfigError> {
        match self.text(name)? {
            Some(path) if path.is_empty() || path.contains('\0') => {
                Err(self.expected(name, "a path", &Value::Text(path.to_owned())))
            }
            other => Ok(other.map(str::to_owned)),
        }
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, ConfigError> {
        let wrong = |text: &str| self.expected(name, expected, &Value::Text(text.to_owned()));
        self.text(name)?.map(|text| text.parse().map_err(|_| wrong(text))).transpose()
    }

    pub(super) fn choice<T: Copy>(
        &self,
        name: &str,
        choices: &[(&str, T)],
        default: Option<T>,
    ) -> Result<T, ConfigError> {
        let expected = || {
            let quoted: Vec<String> = choices.iter().map(|(choice, _)| format!("{choice:?}")).collect();
            quoted.join(" or ")
        };
        match self.value(name) {
            None => default.ok_or_else(|| self.error(name, Problem::Missing(""))),
            Some(Value::Text(text)) => match choices.iter().find(|(choice, _)| choice == text) {
                Some((_, value)) => Ok(*value),
                None => Err(self.expected(name, &expected(), &Value::Text(text.clone()))),
            },
            Some(other) => Err(self.expected(name, &expected(), other)),
        }
    }

    pub(super) fn boolean(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(self.expected(name, "true or false", other)),
        }
    }

    pub(super) fn number(&self, name: &str, range: RangeInclusive<u64>, default: u64) -> Result<u64, ConfigError> {
        Ok(self.optional(name, range)?.unwrap_or(default))
    }

    /// A whole number, which may also be written as a text, as the prototype did. An empty text is none.
    pub(super) fn optional(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ConfigError> {
        let number = match self.value(name) {
            None => return Ok(None),
            Some(Value::Text(text)) if text.is_empty() && self.format == Format::Legacy => return Ok(None),
            Some(Value::Text(text) | Value::Number(text)) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().ok().filter(|number| range.contains(number))
            }
            Some(_) => None,
        };
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        let got = || self.value(name).expect("there is a value");
        number.map(Some).ok_or_else(|| self.expected(name, &expected(), got()))
    }

    pub(super) fn list(&self, name: &str) -> Result<&'a [Item], ConfigError> {
        match self.value(name) {
            None => Ok(&[]),
            Some(Value::List(items)) => Ok(items),
            Some(other) => Err(self.expected(name, "a list", other)),
        }
    }
}

/// The names of one table.
fn names(table: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(name, _)| *name == table).map_or(&[], |(_, names)| names)
}

pub(super) fn full_name(table: &str, name: &str) -> String {
    match table {
        "" => name.to_owned(),
        _ => format!("{table}.{name}"),
    }
}

/// Where a key that is unknown in `table` belongs: the same name in another table, or else the nearest name.
fn hint(table: &str, name: &str) -> String {
    match KEYS.iter().find(|(_, names)| names.contains(&name)) {
        Some(("", _)) => return format!("{name} belongs to the top of the file, before the first table"),
        Some((home, _)) => return format!("{name} belongs to the table [{home}]"),
        None => {}
    }
    // Cut, because the distance takes time with the product of both lengths.
    let name = cut(name);
    let nearest = names(table).iter().min_by_key(|known| (strsim::damerau_levenshtein(&name, known), **known));
    format!("the nearest is {}", nearest.expect("a table has keys"))
}

/// A value for an error.
fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => shown_text(text),
        Value::Number(number) if number.len() <= 40 => number.clone(),
        Value::Bool(value) => value.to_string(),
        other => other.kind().to_owned(),
    }
}

/// A text for an error: quoted and cut. More digits than a public key has are not shown: they could be a secret key
/// that somebody has put into the wrong place.
pub(super) fn shown_text(text: &str) -> String {
    match text.bytes().filter(u8::is_ascii_hexdigit).count() > 2 * NodeKey::LEN {
        true => format!("a text of {} characters (not shown, it could hold a secret)", text.chars().count()),
        false => format!("{:?}", cut(text)),
    }
}

/// The first [`SHOWN_MAX`] characters.
fn cut(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}
