//! Users by name: who is in a ledger, and what they sent.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    path::Path,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;

use crate::{
    contract::UserInput,
    crypto::SecretKey,
    types::{Auth, Hash, UserKey},
};

/// Bytes of a file with an input. A longer one is refused: no network takes that much in one ledger.
const INPUT_BYTES_MAX: u64 = 16 << 20;

/// The key of a user called `name`: that key itself, when it is one, else one that is always the same for this name.
pub(super) fn key_of(name: &str) -> UserKey {
    name.parse().unwrap_or_else(|_| SecretKey::from_seed(Hash::tagged("hp/author/1", name).0).user_key())
}

/// Names of keys, for what is shown.
#[derive(Debug, Default, Clone)]
pub(super) struct Names(BTreeMap<UserKey, String>);

impl Names {
    /// The name, or the beginning of a key that has none.
    pub(super) fn of(&self, key: &UserKey) -> String {
        self.0.get(key).cloned().unwrap_or_else(|| key.short().to_string())
    }

    /// Those of another list too.
    pub(super) fn extend(&mut self, others: &Names) {
        self.0.extend(others.0.iter().map(|(key, name)| (*key, name.clone())));
    }

    pub(super) fn add(&mut self, name: &str) -> UserKey {
        let key = key_of(name);
        if name != key.to_string() {
            self.0.insert(key, name.to_owned());
        }
        key
    }
}

/// Users of one ledger as they are named, each with the inputs in order.
#[derive(Debug, Default, Clone)]
pub(super) struct Room {
    inputs: BTreeMap<UserKey, Vec<Bytes>>,
    pub(super) names: Names,
}

impl Room {
    /// A user is there, and has sent this, if anything.
    pub(super) fn add(&mut self, name: &str, input: Option<Bytes>) {
        let key = self.names.add(name);
        self.inputs.entry(key).or_default().extend(input);
    }

    /// As a run gets them: who sent something first, as on a node.
    pub(super) fn users(&self) -> Vec<UserInput> {
        let user = |(key, inputs): (&UserKey, &Vec<Bytes>)| {
            let auth = if inputs.is_empty() { Auth::Session } else { Auth::Signed };
            UserInput { key: *key, auth, inputs: inputs.clone() }
        };
        let (with, without): (Vec<_>, Vec<_>) = self.inputs.iter().map(user).partition(|user| !user.inputs.is_empty());
        [with, without].concat()
    }
}

/// What stands in a file, or comes on stdin for `-`.
pub(super) fn read_input(file: &Path) -> anyhow::Result<Bytes> {
    let shown = file.display();
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        fs::File::open(file).and_then(|file| file.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read the input {shown}"))?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        bail!("the input {shown} has more than {INPUT_BYTES_MAX} bytes, more than fit into a ledger");
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_key_and_a_key_is_its_own_name() {
        let alice = key_of("alice");
        assert_eq!((key_of("alice"), key_of(&alice.to_string())), (alice, alice));
        assert_ne!(alice, key_of("bob"));
        assert!(crate::crypto::is_key(&alice.0), "somebody could sign with it");
    }

    #[test]
    fn who_sent_something_comes_first_with_all_inputs_in_order() {
        let mut room = Room::default();
        for (name, input) in [("bob", None), ("alice", Some("one")), ("carol", None), ("alice", Some("two"))] {
            room.add(name, input.map(|text| Bytes::from_static(text.as_bytes())));
        }
        let users = room.users();
        assert_eq!((users[0].key, users[0].inputs.len()), (key_of("alice"), 2));
        assert!(users[1].key < users[2].key && users[1].inputs.is_empty() && users[2].inputs.is_empty());
        assert_eq!(room.names.of(&users[0].key), "alice");
    }
}
