//! Changes to the text of a configuration that keep its comments, order and everything else as they are.

use std::{net::SocketAddr, path::Path};

use super::{
    Config, ConfigError, EXAMPLE, PeerAddr, Problem,
    table::full_name,
    tree::{self, Entry, Value},
};
use crate::{
    crypto::SecretKey,
    types::{Execute, Hash, NodeKey, WallMs},
};

/// The TOML text of a new node, to which keys can be set.
#[derive(Debug, Clone)]
pub struct Document(String);

impl Document {
    /// The documented example with this node's own values.
    pub fn new(secret: &SecretKey, contract_id: Hash, genesis_time_ms: WallMs, unl: &[NodeKey]) -> Document {
        let mut document = Document(EXAMPLE.to_owned());
        document.set("pubkey", &quoted(&secret.node_key().to_string()));
        document.set("seckey", &quoted(&secret.to_hex()));
        document.set("unl", &list(unl));
        document.set("contract.id", &quoted(&contract_id.to_string()));
        document.set("contract.genesis_time_ms", &genesis_time_ms.to_string());
        document
    }

    /// Sets a key, named with its table as in `contract.id`, to a value in TOML (a text: see [`quoted`]).
    ///
    /// A key whose default is shown in a comment takes the place of that comment. Panics if there is no such key or
    /// `toml` is no value: both stand in our code.
    pub fn set(&mut self, key: &str, toml: &str) -> &mut Document {
        let (table, name) = key.split_once('.').unwrap_or(("", key));
        let span = match value_of(&self.entries(), table, name) {
            Some(entry) => entry.span.clone(),
            None => {
                let line = commented(&self.0, table, name).expect("the example shows every key");
                self.0.replace_range(line.clone(), &format!("{name} = 0"));
                let end = line.start + name.len() + " = 0".len();
                end - 1..end
            }
        };
        self.0.replace_range(span, toml);
        assert!(value_of(&self.entries(), table, name).is_some(), "{key} can be set to {toml}");
        self
    }

    /// Sets a key to a list of texts, one a line.
    pub fn set_list<T: ToString>(&mut self, key: &str, values: &[T]) -> &mut Document {
        self.set(key, &list(values))
    }

    /// Makes this a node of `other`'s network: takes over what the network shares, the executable with its arguments
    /// and environment, and the way to the other nodes, `other` among them at `address`; and, where outputs are final when
    /// they are settled, the way to the bus.
    pub fn join(&mut self, other: &Config, address: SocketAddr) -> &mut Document {
        let mut peers = other.peers.clone();
        let address = PeerAddr::from(address);
        if !peers.contains(&address) {
            peers.push(address);
        }
        let env: Vec<String> =
            other.contract.env.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value))).collect();
        if !env.is_empty() {
            self.set("contract.env", &format!("{{ {} }}", env.join(", ")));
        }
        for (key, toml) in other.shared().settings().into_iter().filter(|(_, toml)| !toml.is_empty()) {
            self.set(key, &toml);
        }
        // Without the bus nothing would be final there, and the file would not be right.
        if other.msb.execute == Execute::Settled
            && let Some(url) = other.msb.mode.url()
        {
            self.set("msb.mode", &quoted("http")).set("msb.url", &quoted(&url));
        }
        self.set("contract.id", &quoted(&other.contract.id.to_string()))
            .set("contract.genesis_time_ms", &other.contract.genesis_time_ms.to_string())
            .set_list("unl", &other.unl)
            .set_list("peers", &peers)
            .set("binary", &quoted(&other.argv[0]))
            .set_list("binargs", &other.argv[1..])
    }

    /// The text, for `cfg/hp.cfg`. It holds the secret key.
    pub fn text(&self) -> &str {
        &self.0
    }

    fn entries(&self) -> Vec<Entry> {
        tree::read(&self.0).map(|(_, entries)| entries).unwrap_or_else(|error| panic!("our text is TOML: {error:?}"))
    }
}

/// A text as a TOML value (or name of a key), on one line.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if character.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(character))),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

fn list<T: ToString>(values: &[T]) -> String {
    match values {
        [] => "[]".to_owned(),
        _ => {
            let lines: String = values.iter().map(|value| format!("    {},\n", quoted(&value.to_string()))).collect();
            format!("[\n{lines}]")
        }
    }
}

fn value_of<'a>(entries: &'a [Entry], table: &str, name: &str) -> Option<&'a Entry> {
    let entries = match table {
        "" => entries,
        _ => match &entries.iter().find(|entry| entry.name == table)?.value {
            Value::Table(entries) => entries,
            _ => return None,
        },
    };
    entries.iter().find(|entry| entry.name == name)
}

/// The bytes of the line `# name = ...` in a table of the example, without its end.
pub(super) fn commented(text: &str, table: &str, name: &str) -> Option<std::ops::Range<usize>> {
    let start = format!("# {name} = ");
    let mut current = "";
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end();
        if let Some(header) = content.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            current = header;
        }
        if current == table && content.starts_with(&start) {
            return Some(offset..offset + content.len());
        }
        offset += line.len();
    }
    None
}

/// The text of `config`, with `new` as this node's key: in `pubkey`, in `seckey` unless that is in a file of its own,
/// and in `unl` if the old one is there. Everything else stays as it is, which is checked.
pub fn rekeyed(text: &str, config: &Config, new: &SecretKey) -> Result<String, ConfigError> {
    let cannot = |key: &str| ConfigError::Edit { file: config.file.clone(), key: full_name("", key) };
    let (format, entries) = tree::read(text).map_err(|_| cannot("pubkey"))?;
    let changed = match format {
        tree::Format::Toml => rekeyed_toml(text, &entries, config, new),
        tree::Format::Legacy => rekeyed_json(text, config, new),
    };

    let new_key_file = |_: &Path| Ok(new.to_hex());
    let mut is = Config::parse(&changed, &config.file, &config.dir, &new_key_file).map_err(|_| cannot("pubkey"))?;
    let mut unl = config.unl.clone();
    unl.iter_mut().filter(|key| **key == config.key).for_each(|key| *key = new.node_key());
    unl.sort_unstable();
    if is.key != new.node_key() || is.unl != unl {
        return Err(cannot("unl"));
    }
    // The contract id of a legacy file follows from its UNL.
    (is.key, is.secret, is.unl, is.contract.id) =
        (config.key, config.secret.clone(), config.unl.clone(), config.contract.id);
    match format!("{is:?}") == format!("{config:?}") {
        true => Ok(changed),
        false => Err(cannot("pubkey")),
    }
}

/// What `hp recover` changes in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered<'a> {
    /// Name of the contract from now on.
    pub contract_id: Hash,
    /// When the chain begins.
    pub genesis_time_ms: WallMs,
    /// Who decides, ascending.
    pub unl: &'a [NodeKey],
    /// Percent of them.
    pub threshold: u64,
    /// Another executable, as a path that starts at the contract folder.
    pub binary: Option<&'a str>,
}

/// The text of `config` with these changes. Everything else stays as it is, which is checked.
pub fn recovered(text: &str, config: &Config, changes: &Recovered<'_>) -> Result<String, ConfigError> {
    let cannot = |key: &'static str| ConfigError::Edit { file: config.file.clone(), key: key.to_owned() };
    if config.format == tree::Format::Legacy {
        let problem =
            "a file in the format of Hot Pocket 0.1 cannot name a contract: write it in TOML first, as `hp new` does";
        let (file, key) = (config.file.clone(), "contract.id".to_owned());
        return Err(ConfigError::Key { file, line: None, key, problem: Problem::Conflict(problem.to_owned()) });
    }
    let mut sets = vec![
        ("contract.id", quoted(&changes.contract_id.to_string())),
        ("contract.genesis_time_ms", changes.genesis_time_ms.to_string()),
    ];
    if config.consensus.threshold != changes.threshold {
        sets.push(("consensus.threshold", changes.threshold.to_string()));
    }
    if config.unl != changes.unl {
        sets.push(("unl", list(changes.unl)));
    }
    if let Some(binary) = changes.binary {
        sets.push(("binary", quoted(binary)));
    }
    let mut changed = text.to_owned();
    for (key, toml) in sets {
        changed = set_in(&changed, key, &toml).ok_or_else(|| cannot(key))?;
    }

    let same_key = |_: &Path| Ok(config.secret.to_hex());
    let parsed = Config::parse(&changed, &config.file, &config.dir, &same_key).map_err(|_| cannot("contract.id"))?;
    let mut expected = config.clone();
    expected.contract.id = changes.contract_id;
    expected.contract.genesis_time_ms = changes.genesis_time_ms;
    expected.unl = changes.unl.to_vec();
    expected.consensus.threshold = changes.threshold;
    if let Some(binary) = changes.binary {
        expected.binary = config.dir.join(binary);
        expected.argv[0] = binary.to_owned();
    }
    match format!("{parsed:?}") == format!("{expected:?}") {
        true => Ok(changed),
        false => Err(cannot("contract.id")),
    }
}

/// Sets a key in somebody's text: in its place, in that of the comment that shows its default, or at the beginning of its
/// table. `None` where none of that works.
fn set_in(text: &str, key: &str, toml: &str) -> Option<String> {
    let (table, name) = key.split_once('.').unwrap_or(("", key));
    let (_, entries) = tree::read(text).ok()?;
    let mut changed = text.to_owned();
    if let Some(entry) = value_of(&entries, table, name) {
        changed.replace_range(entry.span.clone(), toml);
    } else if let Some(line) = commented(text, table, name) {
        changed.replace_range(line, &format!("{name} = {toml}"));
    } else {
        let header = format!("[{table}]");
        let is_header = |line: &str| line.trim_end() == header;
        let after = match table {
            "" => Some(0),
            _ => text
                .split_inclusive('\n')
                .scan(0, |end, line| {
                    Some((is_header(line), {
                        *end += line.len();
                        *end
                    }))
                })
                .find(|(found, _)| *found)
                .map(|(_, end)| end),
        };
        match after {
            Some(at) => changed.insert_str(at, &format!("{name} = {toml}\n")),
            None => changed.push_str(&format!("\n{header}\n{name} = {toml}\n")),
        }
    }
    let (_, entries) = tree::read(&changed).ok()?;
    value_of(&entries, table, name)?;
    Some(changed)
}

fn rekeyed_toml(text: &str, entries: &[Entry], config: &Config, new: &SecretKey) -> String {
    let key = quoted(&new.node_key().to_string());
    let mut changes = Vec::new();
    for entry in entries {
        match (entry.name.as_str(), &entry.value) {
            ("pubkey", _) => changes.push((entry.span.clone(), key.clone())),
            ("seckey", _) => changes.push((entry.span.clone(), quoted(&new.to_hex()))),
            ("unl", Value::List(items)) => {
                let own = |value: &Value| match value {
                    Value::Text(text) => text.parse() == Ok(config.key),
                    _ => false,
                };
                let items = items.iter().filter(|item| own(&item.value));
                changes.extend(items.map(|item| (item.span.clone(), key.clone())));
            }
            _ => {}
        }
    }
    // From the end, so that the spans before stay true.
    changes.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    let mut changed = text.to_owned();
    for (span, value) in changes {
        changed.replace_range(span, &value);
    }
    changed
}

/// JSON has no comments, so that a key between quotes is a value (or one argument, which the caller's check finds).
fn rekeyed_json(text: &str, config: &Config, new: &SecretKey) -> String {
    let old = &config.secret;
    let seed = hex::encode(old.seed());
    let changed = replace_quoted(text, &old.to_hex(), &new.to_hex());
    let changed = replace_quoted(&changed, &seed, &new.to_hex());
    replace_quoted(&changed, &config.key.to_string(), &new.node_key().to_string())
}

/// Replaces `"old"`, in upper or lower case, by `"new"`.
fn replace_quoted(text: &str, old: &str, new: &str) -> String {
    // ASCII case does not move bytes, so that places in `lower` are places in `text`.
    let (lower, old) = (text.to_ascii_lowercase(), format!("\"{old}\""));
    let mut changed = String::with_capacity(text.len() + 256);
    let mut copied = 0;
    for (start, _) in lower.match_indices(&old) {
        changed.push_str(&text[copied..start]);
        changed.push_str(&format!("\"{new}\""));
        copied = start + old.len();
    }
    changed.push_str(&text[copied..]);
    changed
}
