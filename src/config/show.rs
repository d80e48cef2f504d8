//! Every key with the value that it has, where that comes from, and what is nobody's business left out.

use super::{
    Config, EXAMPLE,
    table::{KEYS, full_name},
    tree::{self, Entry, Value},
};

/// One key of a node's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its table; "" is the top of the file.
    pub table: &'static str,
    /// Its name within the table.
    pub name: &'static str,
    /// Its value as TOML; `None`: it has none.
    pub value: Option<String>,
    /// Whether the file says so. Else it is the default.
    pub is_set: bool,
    /// Whether it must be alike on every node.
    pub is_shared: bool,
    /// The line in the file, from 1, where that is known.
    pub line: Option<usize>,
}

impl Shown {
    /// With its table, as in `consensus.threshold`.
    pub fn key(&self) -> String {
        full_name(self.table, self.name)
    }
}

/// Every key, in the order of the documented example. `text` is the file that `config` was read from. Secrets are not shown:
/// the secret key, values of the contract's environment, and passwords in addresses.
pub fn shown(text: &str, config: &Config) -> Vec<Shown> {
    let file = tree::read(text).map(|(_, entries)| entries).unwrap_or_default();
    let (_, example) = tree::read(EXAMPLE).expect("the example is right");
    let tables = KEYS.iter().map(|(table, _)| *table);
    let mut all = Vec::new();
    for (table, names) in KEYS {
        for name in names.iter().filter(|name| tables.clone().all(|table| table != **name)) {
            let set = entry(&file, table, name).filter(|entry| !matches!(entry.value, Value::Null));
            let default = entry(&example, table, name).filter(|_| !is_own(table, name));
            let value = match (*table, *name) {
                // Of the prototype's file they follow from others.
                ("contract", "id") => Some(format!("{:?}", config.contract.id.to_string())),
                ("contract", "genesis_time_ms") => Some(config.contract.genesis_time_ms.to_string()),
                _ => set.or(default).map(|entry| value_text(name, &entry.value)),
            };
            let (is_set, line) = (set.is_some(), set.and_then(|entry| entry.line));
            all.push(Shown { table, name, value, is_set, is_shared: is_shared(table, name), line });
        }
    }
    all
}

/// Keys whose value in the example is the example's own, and nobody's default.
fn is_own(table: &str, name: &str) -> bool {
    table.is_empty() && ["pubkey", "seckey", "unl", "binary"].contains(&name)
}

fn entry<'a>(entries: &'a [Entry], table: &str, name: &str) -> Option<&'a Entry> {
    let find = |entries: &'a [Entry], name: &str| entries.iter().find(|entry| entry.name == name);
    match table {
        "" => find(entries, name),
        table => match &find(entries, table)?.value {
            Value::Table(entries) => find(entries, name),
            _ => None,
        },
    }
}

/// Whether the comment above a key in the example says so.
fn is_shared(table: &str, name: &str) -> bool {
    let (mut here, mut marked) = ("", false);
    for line in EXAMPLE.lines() {
        if let Some(table) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            here = table;
        }
        let code = line.strip_prefix("# ").unwrap_or(line);
        let is_key = code.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('='));
        match () {
            () if here == table && is_key => return marked,
            () if line.is_empty() => marked = false,
            () => marked |= line.starts_with("# [shared]"),
        }
    }
    false
}

fn value_text(name: &str, value: &Value) -> String {
    match value {
        Value::Text(_) if name == "seckey" => "\"(not shown)\"".to_owned(),
        Value::Text(text) if text.contains("://") => format!("{:?}", without_password(text)),
        Value::Text(text) => format!("{text:?}"),
        Value::Number(number) => number.clone(),
        Value::Bool(value) => value.to_string(),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(|item| value_text(name, &item.value)).collect();
            format!("[{}]", items.join(", "))
        }
        // Names alone: what is meant for the contract may be a secret.
        Value::Table(entries) => {
            let names: Vec<String> =
                entries.iter().map(|entry| format!("{:?} = \"(not shown)\"", entry.name)).collect();
            format!("{{ {} }}", names.join(", "))
        }
        Value::Null => "\"\"".to_owned(),
        Value::Other(kind) => format!("{kind:?}"),
    }
}

fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://(not shown)@{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn show(text: &str) -> Vec<Shown> {
        let none = |_: &Path| unreachable!("the key is in the file");
        let config = Config::parse(text, Path::new("x/hp.cfg"), Path::new("x"), &none).unwrap();
        shown(text, &config)
    }

    fn one(all: &[Shown], key: &str) -> (Option<String>, bool, bool) {
        let it = all.iter().find(|it| it.key() == key).unwrap_or_else(|| panic!("{key} is not shown"));
        (it.value.clone(), it.is_set, it.is_shared)
    }

    #[test]
    fn every_key_is_shown_with_where_its_value_comes_from() {
        let text = EXAMPLE.replace("roundtime = 1000", "roundtime = 77").replace("threshold = 80\n", "");
        let all = show(&text);
        let count: usize = KEYS.iter().map(|(_, names)| names.len()).sum();
        assert_eq!(all.len(), count + 1 - KEYS.len(), "all but the names of tables");
        let value = |text: &str| Some(text.to_owned());
        assert_eq!(one(&all, "roundtime"), (value("77"), true, false));
        assert_eq!(one(&all, "consensus.threshold"), (value("80"), false, true), "left out, shared");
        assert_eq!(one(&all, "pubport"), (None, false, false));
        assert_eq!(one(&all, "contract.read"), (value("[]"), true, false));
        let line = all.iter().find(|it| it.name == "roundtime").unwrap().line.unwrap();
        assert_eq!(text.lines().nth(line - 1), Some("roundtime = 77"));
    }

    #[test]
    fn no_secret_is_shown() {
        let text = EXAMPLE
            .replace("# env = { MODE = \"production\" }", "env = { TOKEN = \"hunter2\" }")
            .replace("# url = \"http://127.0.0.1:5000\"", "url = \"http://me:hunter2@bus.example:5000/x@y\"");
        assert!(text.contains("hunter2@") && text.contains("TOKEN"));
        let all = show(&text);
        let values: String = all.iter().filter_map(|it| it.value.clone()).collect();
        assert!(!values.contains("hunter2"), "{values}");
        assert!(values.contains("http://(not shown)@bus.example:5000/x@y") && values.contains("TOKEN"));
        assert_eq!(one(&all, "seckey").0, Some("\"(not shown)\"".to_owned()));
        let secret = crate::crypto::SecretKey::from_seed(crate::config::EXAMPLE_SEED);
        assert!(!values.contains(&secret.to_hex()), "{values}");
    }
}
