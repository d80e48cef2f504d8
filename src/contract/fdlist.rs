//! The JSON object a contract reads from its standard input: what this ledger is, and which descriptors are whose.
//!
//! Pure: facts and descriptor numbers in, text out. Source: `contracts/README.md`, "What stdin holds".

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;

use crate::{
    consensus::header::Settlement,
    types::{Auth, Hash, NodeKey, Seq, UserKey, WallMs},
};

/// What the contract is told about the ledger it runs for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Hash of the closed ledger whose inputs are executed.
    pub lcl: Hash,
    /// Number of that ledger.
    pub seq: Seq,
    /// Agreed time of that ledger, in milliseconds.
    pub time_ms: WallMs,
    /// This node's key; the only fact that differs from node to node, with `private`.
    pub pubkey: NodeKey,
    /// Keys of all voting nodes, in the order the contract shall see.
    pub unl: Vec<NodeKey>,
    /// Agreed randomness of this ledger.
    pub seed: Hash,
    /// Id of the contract.
    pub contract: Hash,
    /// Absolute path of the folder with this node's own secrets, when the operator set one.
    pub private: Option<PathBuf>,
    /// Whether this run answers a question and keeps nothing it writes.
    pub readonly: bool,
    /// What this ledger's header records of the settlement bus.
    pub settlement: Option<Settlement>,
}

/// One user of the ledger as the contract sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserFds {
    /// Whose descriptors these are.
    pub key: UserKey,
    /// How the user's inputs were authenticated; `None` for a user without input in this ledger.
    pub auth: Option<Auth>,
    /// Read the user's inputs here.
    pub input: i32,
    /// Write to the user here.
    pub output: i32,
}

/// The fields in sorted order, which is the order they are written in.
#[derive(Serialize)]
struct FdList<'a> {
    auth: BTreeMap<String, &'static str>,
    contract: String,
    control: i32,
    hotpocket: f64,
    lcl: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    msb: Option<Msb>,
    mver: u32,
    npl: [i32; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    private: Option<std::borrow::Cow<'a, str>>,
    pubkey: String,
    readonly: bool,
    seed: String,
    seq: Seq,
    time: String,
    time_ms: WallMs,
    r#type: &'static str,
    unl: Vec<String>,
    user: BTreeMap<String, [i32; 2]>,
}

/// What is settled, in sorted order too. Of a chain that settles and has not yet, a number alone.
#[derive(Serialize)]
struct Msb {
    #[serde(skip_serializing_if = "Option::is_none")]
    ch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confirmed_length: Option<u64>,
    settled_seq: Seq,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx: Option<String>,
}

/// The descriptors that a run has beside its users'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunFds {
    /// Of the party line: [read, write].
    pub npl: [i32; 2],
    /// Write requests to the network here.
    pub control: i32,
}

/// The text for the contract's standard input.
///
/// Each user may be listed once: a second entry of a key would replace the first.
pub fn to_json(facts: &Facts, fds: RunFds, users: &[UserFds]) -> Vec<u8> {
    let auth = users.iter().filter_map(|user| user.auth.map(|auth| (user.key.to_string(), auth_name(auth))));
    let list = FdList {
        auth: auth.collect(),
        contract: facts.contract.to_string(),
        control: fds.control,
        hotpocket: 0.1,
        lcl: facts.lcl.to_string(),
        msb: facts.settlement.as_ref().map(msb),
        mver: 1,
        npl: fds.npl,
        // The path comes out of a configuration file, which is UTF-8.
        private: facts.private.as_ref().map(|path| path.to_string_lossy()),
        pubkey: facts.pubkey.to_string(),
        readonly: facts.readonly,
        seed: facts.seed.to_string(),
        seq: facts.seq,
        time: (facts.time_ms / 1000).to_string(),
        time_ms: facts.time_ms,
        r#type: "binexec",
        unl: facts.unl.iter().map(NodeKey::to_string).collect(),
        user: users.iter().map(|user| (user.key.to_string(), [user.input, user.output])).collect(),
    };
    serde_json::to_vec(&list).expect("strings and numbers always serialise")
}

fn msb(settlement: &Settlement) -> Msb {
    let settled = Some(settlement).filter(|settlement| settlement.seq > 0);
    Msb {
        ch: settled.map(|settled| settled.ch.to_string()),
        confirmed_length: settled.map(|settled| settled.confirmed_length),
        settled_seq: settlement.seq,
        tx: settled.map(|settled| settled.tx.to_string()),
    }
}

fn auth_name(auth: Auth) -> &'static str {
    match auth {
        Auth::Signed => "signed",
        Auth::Session => "session",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const GOLDEN: &str = include_str!("../../tests/golden/fdlist-0.1.json");

    fn facts() -> Facts {
        Facts {
            lcl: "f8ee60b3c87bcd6c8c144f0e87ffef0c70debca78a4f85d7508dee71dd68d551".parse().unwrap(),
            seq: 7,
            time_ms: 1_568_193_881_250,
            pubkey: "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c".parse().unwrap(),
            unl: vec![
                "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c".parse().unwrap(),
                "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394".parse().unwrap(),
            ],
            seed: Hash([0xab; 32]),
            contract: Hash([0xcd; 32]),
            private: None,
            readonly: false,
            settlement: None,
        }
    }

    fn user(auth: Option<Auth>) -> UserFds {
        let key = "ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1".parse().unwrap();
        UserFds { key, auth, input: 33, output: 32 }
    }

    fn parsed(facts: &Facts, users: &[UserFds]) -> Value {
        serde_json::from_slice(&to_json(facts, RunFds { npl: [29, 28], control: 30 }, users)).unwrap()
    }

    #[test]
    fn every_key_of_version_0_1_is_there_with_the_recorded_value() {
        let golden: Value = serde_json::from_str(GOLDEN).unwrap();
        let ours = parsed(&facts(), &[user(Some(Auth::Signed))]);
        for (key, value) in golden.as_object().unwrap() {
            assert_eq!(ours.get(key), Some(value), "{key}");
        }
    }

    #[test]
    fn the_added_keys_are_these_and_no_others() {
        let golden: Value = serde_json::from_str(GOLDEN).unwrap();
        let mut ours = parsed(&facts(), &[user(Some(Auth::Signed))]);
        let ours = ours.as_object_mut().unwrap();
        ours.retain(|key, _| golden.get(key).is_none());
        let expected = json!({
            "auth": { "ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1": "signed" },
            "contract": "cd".repeat(32), "control": 30, "readonly": false, "seed": "ab".repeat(32),
            "seq": 7, "time_ms": 1_568_193_881_250_u64,
        });
        assert_eq!(Value::Object(ours.clone()), expected);
    }

    #[test]
    fn keys_are_written_in_sorted_order() {
        let facts = Facts { private: Some("/secrets".into()), ..facts() };
        let text = String::from_utf8(to_json(&facts, RunFds { npl: [16, 17], control: 18 }, &[])).unwrap();
        let names = [
            "auth",
            "contract",
            "control",
            "hotpocket",
            "lcl",
            "mver",
            "npl",
            "private",
            "pubkey",
            "readonly",
            "seed",
            "seq",
            "time",
            "time_ms",
            "type",
            "unl",
            "user",
        ];
        let places: Vec<_> = names.iter().map(|name| text.find(&format!("\"{name}\":")).expect(name)).collect();
        assert!(places.is_sorted(), "{text}");
        assert!(text.starts_with('{') && text.ends_with('}') && !text.contains('\n'));
    }

    #[test]
    fn what_the_header_says_is_settled_is_told_and_nothing_where_nothing_settles() {
        let told = |settlement| parsed(&Facts { settlement, ..facts() }, &[]).get("msb").cloned();
        assert_eq!(told(None), None);
        assert_eq!(told(Some(Settlement::begin(Hash([1; 32])))), Some(json!({ "settled_seq": 0 })));
        let settled =
            Settlement { seq: 9, ch: Hash([2; 32]), tx: Hash([3; 32]), confirmed_length: 5, txv: Hash([1; 32]) };
        let expected = json!({ "settled_seq": 9, "ch": "02".repeat(32), "tx": "03".repeat(32), "confirmed_length": 5 });
        assert_eq!(told(Some(settled)), Some(expected));
    }

    #[test]
    fn private_is_there_only_when_set_and_auth_only_for_users_with_input() {
        let ours = parsed(&facts(), &[user(None)]);
        assert_eq!((ours.get("private"), &ours["auth"]), (None, &json!({})));
        let with = parsed(&Facts { private: Some("/a \"b\"".into()), ..facts() }, &[user(Some(Auth::Session))]);
        assert_eq!(with["private"], json!("/a \"b\""));
        assert_eq!(with["auth"].as_object().unwrap().values().collect::<Vec<_>>(), [&json!("session")]);
    }
}
