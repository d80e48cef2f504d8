use proptest::prelude::*;

use super::{
    table::{KEYS, full_name},
    tree::{Entry, Value},
    *,
};

const LEGACY_A: &str = include_str!("../../tests/golden/legacy-node-a.hp.cfg");
const LEGACY_B: &str = include_str!("../../tests/golden/legacy-node-b.hp.cfg");

/// Secret and public key of the seed 01 01 ..
const SECKEY: &str = "01010101010101010101010101010101010101010101010101010101010101018a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";
const PUBKEY: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";
const OTHER: &str = "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394";

fn no_key_file(path: &Path) -> Result<String, ConfigError> {
    Err(ConfigError::Read { path: path.to_owned(), source: io::ErrorKind::NotFound.into() })
}

fn parse_text(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("n/cfg/hp.cfg"), Path::new("n"), &no_key_file)
}

fn document() -> Document {
    let secret = SecretKey::parse(SECKEY).unwrap();
    Document::new(&secret, Hash([7; 32]), 1_700_000_000_123, &[secret.node_key()])
}

/// A valid file with one key set to a TOML value.
fn with(key: &str, toml: &str) -> Result<Config, ConfigError> {
    parse_text(document().set(key, toml).text())
}

/// The least that is needed.
fn least(more: &str) -> String {
    format!(
        "hotpocket = \"0.1\"\npubkey = \"{PUBKEY}\"\nseckey = \"{SECKEY}\"\nbinary = \"b\"\nunl = [\"{PUBKEY}\"]\n{more}\n\
         [contract]\nid = \"{}\"\ngenesis_time_ms = 5\n",
        Hash([7; 32])
    )
}

fn message(result: Result<Config, ConfigError>) -> String {
    format!("{:#}", anyhow::Error::new(result.expect_err("a wrong configuration")))
}

#[test]
fn the_prototype_s_files_give_the_prototype_s_values() {
    for (text, key, peerport, pubport, peer) in
        [(LEGACY_A, PUBKEY, 22860, 8080, "0.0.0.0:22861"), (LEGACY_B, OTHER, 22861, 8081, "0.0.0.0:22860")]
    {
        let config = parse_text(text).unwrap();
        assert_eq!((config.format, config.key.to_string().as_str()), (Format::Legacy, key));
        assert_eq!(config.secret.node_key(), config.key);
        assert_eq!(
            (config.binary.as_path(), &config.argv[..]),
            (Path::new("n/bin/contract"), &["bin/contract".into()][..])
        );
        assert_eq!(config.peers, [peer.parse().unwrap()]);
        assert_eq!(config.unl, [OTHER.parse().unwrap(), PUBKEY.parse().unwrap()], "sorted");
        assert_eq!(
            (config.ip.to_string().as_str(), config.peerport, config.pubport),
            ("0.0.0.0", peerport, Some(pubport))
        );
        assert_eq!((config.roundtime_ms, config.pubmaxsize, config.pubmaxcpm), (1000, 65_536, Some(100)));
        assert!(config.is_member());
        assert_eq!((config.quorum(), config.contract.genesis_time_ms), (2, 0));
        // Computed apart from this code: SHA-512 over "\x0bhp/legacy/1", the count 2 and the two keys.
        assert_eq!(config.contract.id.to_string(), "e2872204e2b23c4a9d81ca72f7e98404176e6c3fd23b9f2dba1809259a650421");
        assert_eq!(config.cfg_hash().to_string(), "25c20526660ae642b13a0e83ffd0692a51108214d61496a2305a0ac414874136");
    }
}

#[test]
fn what_is_left_out_has_the_value_that_the_example_shows() {
    let mut least = parse_text(&least("")).unwrap();
    let mut example = parse_text(EXAMPLE).unwrap();
    assert_eq!(example.consensus.input_window, 65_536);
    (example.key, example.secret, example.unl) = (least.key, least.secret.clone(), least.unl.clone());
    (example.contract.id, example.contract.genesis_time_ms) = (least.contract.id, least.contract.genesis_time_ms);
    (least.binary, least.argv) = (example.binary.clone(), example.argv.clone());
    assert_eq!(format!("{least:#?}"), format!("{example:#?}"));
}

#[test]
fn every_key_is_explained_in_the_example_and_every_shared_one_is_marked() {
    let shared: Vec<&str> = example().shared().settings().into_iter().map(|(key, _)| key).collect();
    for (table, names) in KEYS {
        for name in names.iter().filter(|name| !KEYS.iter().any(|(table, _)| *name == table)) {
            let line = explained(table, name).unwrap_or_else(|| panic!("{table}.{name} is not in cfg/hp.cfg"));
            let above: Vec<&str> = EXAMPLE.lines().take(line).collect();
            let comment: Vec<&str> = above.iter().rev().take_while(|line| line.starts_with("# ")).copied().collect();
            assert!(!comment.is_empty(), "{table}.{name} has no comment");
            let marked = comment.last().unwrap().contains("[shared]");
            let key = full_name(table, name);
            // These two are in the genesis itself.
            let is_shared =
                shared.contains(&key.as_str()) || ["contract.id", "contract.genesis_time_ms"].contains(&&*key);
            assert_eq!(marked, is_shared, "{key} [shared]");
        }
    }
}

fn example() -> Config {
    parse_text(EXAMPLE).unwrap()
}

/// The line (from 0) of the example on which a key stands, in a comment or not.
fn explained(table: &str, name: &str) -> Option<usize> {
    if let Some(range) = edit::commented(EXAMPLE, table, name) {
        return Some(EXAMPLE[..range.start].lines().count());
    }
    let (_, entries) = tree::read(EXAMPLE).unwrap();
    let find = |entries: &[Entry]| entries.iter().find(|entry| entry.name == *name)?.line;
    let line = match table {
        "" => find(&entries),
        _ => entries.iter().find(|entry| entry.name == table).and_then(|entry| match &entry.value {
            Value::Table(entries) => find(entries),
            _ => None,
        }),
    };
    line.map(|line| line - 1)
}

#[test]
fn every_key_is_read_and_a_wrong_kind_of_value_is_named() {
    for (table, names) in KEYS {
        for name in *names {
            let key = full_name(table, name);
            let mut text = json(LEGACY_A);
            match *table {
                "" => text[*name] = serde_json::json!([[[]]]),
                _ => text[*table] = serde_json::json!({ *name: [[[]]] }),
            }
            if *name == "seckey_file" {
                text.as_object_mut().unwrap().remove("seckey");
            }
            let message = message(parse_text(&text.to_string()));
            assert!(message.starts_with(&format!("n/cfg/hp.cfg: {key}: expected ")), "{message}");
        }
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_wrong_value_is_told_with_file_line_key_and_value() {
    let table = [
        ("hotpocket", "\"0.2\"", "n/cfg/hp.cfg:8: hotpocket: expected \"0.1\", got \"0.2\""),
        ("keytype", "\"rsa\"", "keytype: expected \"ed25519\", got \"rsa\""),
        ("pubkey", "\"12\"", "pubkey: expected 64 hexadecimal digits, got \"12\""),
        ("pubkey", &quoted(OTHER), &format!("pubkey: is not the public key of seckey, which is {PUBKEY}")),
        ("seckey", "\"12\"", "seckey: a secret key is 64 hexadecimal digits (seed) or 128 (seed, then public key)"),
        ("seckey", "7", "seckey: expected a text, got a number"),
        ("seckey_file", "\"k\"", "seckey_file: stands beside seckey; one of them must go"),
        ("binary", "\"\"", "binary: expected a path, got \"\""),
        ("binary", "\"a\\u0000b\"", "binary: expected a path, got \"a\\0b\""),
        ("binargs", "[1]", "binargs: expected a text, or a list of texts, without NUL bytes, got 1"),
        ("peers", "[\"node1\"]", "peers: expected addresses like"),
        ("peers", "[\"node 1:22860\"]", "got \"node 1:22860\""),
        ("peers", "[\"127.0.0.1:0\"]", "got \"127.0.0.1:0\""),
        ("unl", "[]", "unl: expected 1 to 128 entries, got 0"),
        ("unl", "[\"xy\"]", "unl: expected keys of 64 hexadecimal digits, got \"xy\""),
        ("unl", &format!("[\"{OTHER}\", \"{}\"]", OTHER.to_uppercase()), &format!("unl: {OTHER} stands twice")),
        ("ip", "\"localhost\"", "ip: expected an IP address, got \"localhost\""),
        ("peerport", "65536", "peerport: expected a whole number from 0 to 65535, got 65536"),
        ("peerport", "-1", "got -1"),
        ("peerport", "\"\"", "got \"\""),
        ("peerport", "\"22 \"", "got \"22 \""),
        ("peerport", "1.5", "got 1.5"),
        ("peerport", "18446744073709551616", "got 18446744073709551616"),
        ("peerport", "2026-01-01", "got a date"),
        ("pubport", "22860", "pubport: 22860 is the peerport too"),
        ("roundtime", "0", "roundtime: expected a whole number from 1 to 3600000, got 0"),
        ("pubmaxsize", "4194305", "pubmaxsize: expected a whole number from 1 to 4194304, got 4194305"),
        ("pubmaxcpm", "0", "pubmaxcpm: expected a whole number from 1"),
        ("consensus.threshold", "66", "consensus.threshold: expected a whole number from 67 to 100, got 66"),
        ("consensus.threshold", "101", "got 101"),
        ("consensus.eager", "1", "consensus.eager: expected true or false, got 1"),
        ("contract.id", "\"77\"", "contract.id: expected 64 hexadecimal digits, got \"77\""),
        ("contract.genesis_time_ms", "253402300800000", "contract.genesis_time_ms: expected a whole number from 0"),
        ("contract.env", "{ A = 1 }", "contract.env: expected a text without NUL bytes for \"A\", got a number"),
        ("contract.env", "{ \"A=B\" = \"x\" }", "contract.env: expected names without = and NUL, got \"A=B\""),
        ("contract.time_limit_s", "0", "contract.time_limit_s: expected a whole number from 1 to 86400, got 0"),
        ("contract.output_user_mb", "65", "contract.output_user_mb: 65 is over output_mb, which is 64"),
        (
            "contract.npl_window_ms",
            "30000",
            "contract.npl_window_ms: 30000 is not shorter than time_limit_s, which is 30000 ms",
        ),
        ("user.inputs", "\"none\"", "user.inputs: expected \"any\" or \"signed\", got \"none\""),
        ("mesh.admit", "\"all\"", "mesh.admit: expected \"open\" or \"unl\", got \"all\""),
        (
            "log.level",
            "\"loud\"",
            "log.level: expected \"error\" or \"warn\" or \"info\" or \"debug\" or \"trace\", got \"loud\"",
        ),
        ("log.format", "true", "log.format: expected \"text\" or \"json\", got true"),
    ];
    for (key, toml, expected) in table {
        let message = message(with(key, toml));
        assert!(message.contains(expected), "{key} = {toml}: {message}");
        assert!(message.starts_with("n/cfg/hp.cfg:"), "{message}");
    }
}

#[test]
fn a_key_that_is_missing_unknown_or_misplaced_is_named() {
    let table = [
        (least("").replace("binary", "binray"), "n/cfg/hp.cfg:4: binray: unknown key; the nearest is binary"),
        (least("threshold = 80"), "threshold: unknown key; threshold belongs to the table [consensus]"),
        (least("") + "roundtime = 5", "contract.roundtime: unknown key; roundtime belongs to the top of the file"),
        (least("") + "[consensus]\ntreshold = 80", "consensus.treshold: unknown key; the nearest is threshold"),
        (least("") + "[consenus]", "consenus: unknown key; the nearest is consensus"),
        (least("") + "[http]\nlisten = \"localhost:5001\"", "http.listen: expected an address like \"127.0.0.1:5001\""),
        (least("") + "[http]\ncors = [\"https://a/b\"]", "http.cors: expected origins like"),
        (least("") + "[http]\nnames = [\"https://a\"]", "http.names: expected host names like \"node.example.org\""),
        (least("") + "[http]\ntls_cert = \"a\"", "http.tls_key: is missing (tls_cert is there)"),
        (least("") + "[user]\ntls_key = \"a\"", "user.tls_cert: is missing (tls_key is there)"),
        (least("log = 1"), "log: expected a table, got 1"),
        (least("").replace("hotpocket = \"0.1\"\n", ""), "n/cfg/hp.cfg: hotpocket: is missing"),
        (least("").replace("binary = \"b\"\n", ""), "binary: is missing"),
        (least("").replace(&format!("pubkey = \"{PUBKEY}\"\n"), ""), "pubkey: is missing"),
        (least("").replace(&format!("seckey = \"{SECKEY}\"\n"), ""), "seckey: is missing (or seckey_file)"),
        (least("").replace(&format!("unl = [\"{PUBKEY}\"]\n"), ""), "unl: is missing"),
        (least("").replace("genesis_time_ms = 5\n", ""), "contract.genesis_time_ms: is missing (`hp new` draws it"),
        (least("").replace("[contract]", "[contract]\nid = 1"), "n/cfg/hp.cfg:9:1: duplicate key"),
        (String::new(), "hotpocket: is missing"),
        ("{}".to_owned(), "hotpocket: is missing"),
        ("[".to_owned(), "n/cfg/hp.cfg:1:"),
        ("{\n\"a\": }".to_owned(), "n/cfg/hp.cfg:2:6: expected value"),
        (format!("x = \"{}\"", "y".repeat(FILE_BYTES_MAX as usize)), "n/cfg/hp.cfg: longer than 1048576 bytes"),
    ];
    for (text, expected) in table {
        let message = message(parse_text(&text));
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn lists_are_bounded() {
    let keys = |n: usize| -> Vec<NodeKey> {
        (0..n).map(|i| NodeKey(std::array::from_fn(|at| if at == 0 { i as u8 } else { 9 }))).collect()
    };
    assert_eq!(parse_text(document().set_list("unl", &keys(128)).text()).unwrap().unl.len(), 128);
    let message = message(parse_text(document().set_list("unl", &keys(129)).text()));
    assert!(message.contains("unl: expected 1 to 128 entries, got 129"), "{message}");
    assert!(parse_text(document().set_list("peers", &["127.0.0.1:1"; PEERS_MAX + 1]).text()).is_err());
    assert!(parse_text(document().set_list("binargs", &["x"; ARGS_MAX + 1]).text()).is_err());
}

#[test]
fn no_error_shows_a_secret_wherever_it_stands() {
    let half = &SECKEY[..64];
    let mut texts = Vec::new();
    for (table, names) in KEYS {
        for name in names.iter().filter(|name| !KEYS.iter().any(|(table, _)| *name == table)) {
            texts.push(document().set(&full_name(table, name), &quoted(SECKEY)).text().to_owned());
        }
    }
    for broken in [
        format!("seckey = \"{SECKEY}"),
        format!("seckey = {SECKEY}"),
        format!("seckey = '{SECKEY}' x"),
        format!("seckey '{SECKEY}'"),
        format!("{SECKEY} = 1"),
        format!("seckey = \"{half}z{half}\""),
        format!("seckye = \"{half}\""),
        format!("seckey = [\"{half}\"]"),
        format!("pubkey = \"{half}\"\nseckey = \"{half}\"\nhotpocket = \"0.1\"\nbinary = \"b\""),
    ] {
        texts.push(broken.clone());
        texts.push(format!("hotpocket = \"0.1\"\n{broken}\n"));
    }
    for broken in [
        format!("{{\"seckey\": \"{SECKEY}"),
        format!("{{\"seckey\": {SECKEY}}}"),
        format!("{{\"seckey\": \"{SECKEY}\" 1}}"),
    ] {
        texts.push(broken);
    }
    let mut errors = 0;
    for text in texts {
        let Err(error) = parse_text(&text) else { continue };
        errors += 1;
        let all = format!("{:#} {error:?}", anyhow::anyhow!("{error}"));
        assert!(!all.contains(&half[..12]), "{all}");
    }
    assert!(errors > 40, "{errors}");
}

#[test]
fn numbers_may_be_texts_and_arguments_a_text_or_a_list() {
    assert_eq!(with("peerport", "\"123\"").unwrap().peerport, 123);
    assert_eq!(with("consensus.threshold", "\"75\"").unwrap().consensus.threshold, 75);
    assert_eq!(with("hotpocket", "0.1").unwrap().argv, ["bin/contract"]);
    assert_eq!(with("binargs", "\" -a  b \"").unwrap().argv, ["bin/contract", "-a", "b"]);
    assert_eq!(with("binargs", "[\"-a b\", \"\"]").unwrap().argv, ["bin/contract", "-a b", ""]);
    assert_eq!(with("binary", "\"/bin/cat\"").unwrap().binary, Path::new("/bin/cat"));
    let mut legacy = json(LEGACY_A);
    (legacy["pubport"], legacy["pubmaxcpm"]) = (serde_json::json!(""), serde_json::Value::Null);
    let config = parse_text(&legacy.to_string()).unwrap();
    assert_eq!((config.pubport, config.pubmaxcpm), (None, None));
}

#[test]
fn limits_come_in_bytes_and_milliseconds_and_zero_is_no_limit() {
    let contract = with("contract.memory_mb", "3").unwrap().contract;
    assert_eq!((contract.memory_bytes, contract.cpu_s), (Some(3 << 20), None));
    assert_eq!((contract.time_limit_ms, contract.file_bytes, contract.log_bytes), (30_000, 4_096 << 20, 1 << 20));
    assert_eq!((contract.output_bytes, contract.output_user_bytes), (64 << 20, 16 << 20));
    assert_eq!((contract.state_bytes, contract.state_files), (0, 0));
    let contract = with("contract.state_mb", "3").unwrap().contract;
    assert_eq!(contract.state_bytes, 3 << 20);
    let env = with("contract.env", "{ MODE = \"a b\", E = \"\" }").unwrap().contract.env;
    assert_eq!(env.into_iter().collect::<Vec<_>>(), [("E".into(), "".into()), ("MODE".into(), "a b".into())]);
}

#[test]
fn a_node_whose_key_is_not_in_the_unl_observes() {
    let config = with("unl", &format!("[\"{OTHER}\"]")).unwrap();
    assert!(!config.is_member());
    assert!(document_config().is_member());
}

fn document_config() -> Config {
    parse_text(document().text()).unwrap()
}

#[test]
fn the_secret_key_may_be_in_a_file_of_its_own() {
    let text = least("").replace(&format!("seckey = \"{SECKEY}\""), "seckey_file = \"cfg/node.key\"");
    let read = |text: &'static str| {
        move |path: &Path| {
            assert_eq!(path, Path::new("n/cfg/node.key"));
            Ok(text.to_owned())
        }
    };
    let parse_with = |key| Config::parse(&text, Path::new("f"), Path::new("n"), &read(key));
    let config = parse_with(concat!("0101010101010101010101010101010101010101010101010101010101010101", "\n")).unwrap();
    assert_eq!(config.secret.to_hex(), SECKEY);
    assert!(message(parse_with("zz")).contains("seckey_file: a secret key is 64 hexadecimal digits"));
    assert!(message(parse_text(&text)).starts_with("n/cfg/hp.cfg:3: seckey_file: cannot read n/cfg/node.key: "));
}

#[test]
fn a_contract_runs_as_no_user_that_is_root() {
    let config = with("contract.run_as", "\"998:997\"").unwrap();
    assert_eq!(config.contract.run_as, Some(RunAs { uid: 998, gid: 997 }));
    assert_eq!(config.cfg_hash(), document_config().cfg_hash(), "it is this node's own affair");
    for wrong in [
        "0:1",
        "1:0",
        "1",
        "1:",
        ":1",
        "1:2:3",
        "-1:1",
        "+1:1",
        " 1:1",
        "nobody:nogroup",
        "4294967295:1",
        "4294967296:1",
    ] {
        let text = message(with("contract.run_as", &format!("\"{wrong}\"")));
        assert!(text.contains("contract.run_as: expected \"uid:gid\"") && text.contains(wrong), "{text}");
    }
}

#[test]
fn the_hash_covers_every_shared_key_and_the_first_difference_is_named() {
    let config = document_config();
    // Computed apart from this code.
    assert_eq!(config.cfg_hash().to_string(), "ea73d9d44bb1627fd7517002f82ae23ace4618d497f150869dc19b40866fe304");
    let bytes = borsh::to_vec(&config.shared()).unwrap();
    assert_eq!(borsh::from_slice::<SharedConfig>(&bytes).unwrap(), config.shared());
    assert_eq!(config.shared().first_difference(&config.shared()), None);
    for (key, toml) in config.shared().settings() {
        let changed = match key {
            "user.inputs" => "\"signed\"".to_owned(),
            "contract.output_user_mb" => "15".to_owned(),
            "contract.network" => "true".to_owned(),
            "msb.network" => "\"testnet\"".to_owned(),
            "msb.bootstrap" | "msb.subnet" => quoted(&"77".repeat(32)),
            "msb.execute" => "\"settled\"".to_owned(),
            _ => (toml.parse::<u64>().unwrap() + 1).to_string(),
        };
        let mut other = document();
        if key == "msb.execute" {
            let mbs = quoted(&"55".repeat(32));
            other.set("msb.mode", "\"http\"").set("msb.url", "\"http://h\"").set("msb.bootstrap", &mbs);
        }
        let mut other = parse_text(other.set(key, &changed).text()).unwrap();
        if key == "msb.execute" {
            other.msb.bootstrap = None;
        }
        assert_ne!(other.cfg_hash(), config.cfg_hash(), "{key}");
        let mine = if toml.is_empty() { "none".to_owned() } else { toml.replace('"', "") };
        let theirs = changed.replace('"', "");
        assert_eq!(config.shared().first_difference(&other.shared()), Some((key, mine, theirs)));
    }
    let paces = [
        "roundtime",
        "consensus.grace_ms",
        "consensus.attempt_ms",
        "peerport",
        "contract.log_kb",
        "mesh.max_connections",
    ];
    let own = [("contract.containment", "\"off\""), ("contract.read", "[\"/opt/models\", \"models\"]")];
    for (key, value) in own {
        assert_eq!(with(key, value).unwrap().cfg_hash(), config.cfg_hash(), "{key} is this node's own affair");
    }
    for key in paces {
        assert_eq!(with(key, "77").unwrap().cfg_hash(), config.cfg_hash(), "{key} is this node's own affair");
    }
}

#[test]
fn a_new_file_is_the_example_apart_from_what_was_drawn() {
    let example = SecretKey::from_seed(EXAMPLE_SEED);
    assert_eq!(Document::new(&example, Hash::ZERO, 0, &[example.node_key()]).text(), EXAMPLE);
}

#[test]
fn a_joining_file_shares_everything_that_must_be_shared() {
    let mut other = document();
    other
        .set("consensus.threshold", "75")
        .set("user.inputs", "\"signed\"")
        .set("pubmaxsize", "4096")
        .set("contract.time_limit_s", "7")
        .set("contract.env", "{ \"a \\\" b\" = \"c \\n d\" }")
        .set("binary", "\"bin/x\"")
        .set("binargs", "[\"-v\", \"a \\\\ b\"]")
        .set("ip", "\"192.0.2.1\"")
        .set_list("peers", &["192.0.2.2:1"]);
    let other = parse_text(other.text()).unwrap();
    let secret = SecretKey::from_seed([9; 32]);
    let mut new = Document::new(&secret, Hash::ZERO, 0, &[secret.node_key()]);
    new.join(&other, "192.0.2.1:22860".parse().unwrap());
    let new = parse_text(new.text()).unwrap();
    assert_eq!(new.shared(), other.shared());
    assert_eq!((&new.contract, &new.unl, &new.argv), (&other.contract, &other.unl, &other.argv));
    assert_eq!(new.peers, ["192.0.2.2:1".parse().unwrap(), "192.0.2.1:22860".parse().unwrap()]);
    assert_eq!((new.key, new.is_member()), (secret.node_key(), false));
}

#[test]
fn a_new_key_changes_nothing_but_the_key() {
    let new = SecretKey::from_seed([9; 32]);
    let new_key = new.node_key().to_string();
    let mut toml = document();
    // The own key in a comment and among the arguments is no key of ours to change.
    toml.set("unl", &format!("[ # {PUBKEY}\n  '{OTHER}', '{PUBKEY}' ]")).set("binargs", &format!("[\"{PUBKEY}\"]"));
    let changed = rekeyed(toml.text(), &parse_text(toml.text()).unwrap(), &new).unwrap();
    let back = changed
        .replace(&quoted(&new.to_hex()), &quoted(SECKEY))
        .replace(&format!("pubkey = \"{new_key}\""), &format!("pubkey = \"{PUBKEY}\""))
        .replace(&format!("\"{new_key}\" ]"), &format!("'{PUBKEY}' ]"));
    assert_eq!(back, toml.text());

    for text in [LEGACY_A.to_owned(), LEGACY_A.replace(PUBKEY, &PUBKEY.to_uppercase())] {
        let changed = rekeyed(&text, &parse_text(&text).unwrap(), &new).unwrap();
        let config = parse_text(&changed).unwrap();
        assert_eq!((config.key, config.secret.to_hex(), config.is_member()), (new.node_key(), new.to_hex(), true));
        assert_eq!(changed, LEGACY_A.replace(SECKEY, &new.to_hex()).replace(PUBKEY, &new_key));
    }
    // An argument that is the own key cannot be told apart in JSON: refused rather than changed.
    let text = LEGACY_A.replace("\"binargs\": \"\"", &format!("\"binargs\": \"{PUBKEY}\""));
    assert!(matches!(rekeyed(&text, &parse_text(&text).unwrap(), &new), Err(ConfigError::Edit { .. })));
}

#[test]
fn another_node_s_file_is_read_with_or_without_its_secret() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hp.cfg");
    let without: String =
        document().text().lines().filter(|line| !line.contains("key = ")).map(|line| format!("{line}\n")).collect();
    for text in [document().text(), &without, LEGACY_A] {
        fs::write(&file, text).unwrap();
        let config = Config::load_of_another(&file).unwrap();
        assert_eq!(config.secret.seed(), EXAMPLE_SEED);
        assert!(config.unl.contains(&PUBKEY.parse().unwrap()));
    }
}

#[test]
fn a_file_with_a_secret_is_read_only_if_nobody_else_may_read_it() {
    let dir = tempfile::tempdir().unwrap();
    assert!(message(Config::load(dir.path())).contains("is not a contract folder: it has no cfg/hp.cfg (`hp new "));
    let (file, key_file) = (dir.path().join("cfg/hp.cfg"), dir.path().join("cfg/node.key"));
    fs::create_dir(dir.path().join("cfg")).unwrap();
    let write = |path: &Path, bytes: &[u8], mode| {
        let _ = fs::remove_file(path);
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for (mode, right) in [(0o600, true), (0o400, true), (0o640, false), (0o644, false), (0o604, false), (0o700, false)]
    {
        write(&file, document().text().as_bytes(), mode);
        let result = Config::load(dir.path());
        assert_eq!(result.is_ok(), right, "{mode:o}");
        if !right {
            assert!(message(result).contains(&format!("mode is {mode:04o}, but the file holds a secret key")));
        }
    }
    let apart = least("").replace(&format!("seckey = \"{SECKEY}\""), "seckey_file = \"cfg/node.key\"");
    write(&file, apart.as_bytes(), 0o644);
    write(&key_file, SECKEY.as_bytes(), 0o600);
    assert_eq!(Config::load(dir.path()).unwrap().secret.to_hex(), SECKEY);
    write(&key_file, SECKEY.as_bytes(), 0o644);
    assert!(message(Config::load(dir.path())).contains("node.key: mode is 0644"));

    write(&file, EXAMPLE.as_bytes(), 0o600);
    assert!(message(Config::load(dir.path())).contains("the published example's key"));
    write(&file, b"a = \"\xff\"", 0o600);
    assert!(message(Config::load(dir.path())).contains("not UTF-8 text at byte 5"));
    write(&file, &vec![b'#'; FILE_BYTES_MAX as usize + 1], 0o600);
    assert!(message(Config::load(dir.path())).contains("longer than 1048576 bytes"));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(message(Config::load(dir.path())).contains("hp.cfg: not a file"));
}

#[test]
fn quoted_text_reads_back() {
    for text in ["", "a\"b\\c", "\u{0}\u{1}\n\t\r\u{7f}\u{9f}é\u{10ffff}", "'''"] {
        let (_, entries) = tree::read(&format!("{} = {}", quoted(text), quoted(text))).unwrap();
        assert_eq!(entries[0].name, text);
        assert!(matches!(&entries[0].value, Value::Text(read) if read == text));
    }
}

/// Pieces that get further into the parser than random characters do.
fn piece() -> impl Strategy<Value = String> {
    let words: Vec<String> = KEYS.iter().flat_map(|(_, names)| names.iter().map(|name| name.to_string())).collect();
    prop_oneof![
        proptest::sample::select(words),
        proptest::sample::select(vec![
            "=",
            "\n",
            "[",
            "]",
            "{",
            "}",
            "\"",
            "'",
            ",",
            ":",
            ".",
            "#",
            " ",
            "0",
            "-1",
            "1e9",
            "0x",
            "true",
            "null",
            "\\u0000",
            "é",
            "\u{feff}",
            PUBKEY,
            SECKEY,
            "\"\"\"",
            "[[",
            "]]",
            "2026-01-01",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(text in proptest::collection::vec(piece(), 0..40).prop_map(|pieces| pieces.concat())) {
        let _ = parse_text(&text);
        let _ = parse_text(&format!("{{{text}"));
    }

    #[test]
    fn no_change_of_a_good_file_makes_it_panic(at in any::<proptest::sample::Index>(), with in piece(), legacy in any::<bool>()) {
        let mut text = if legacy { LEGACY_A.to_owned() } else { document().text().to_owned() };
        let mut at = at.index(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.insert_str(at, &with);
        if let Ok(config) = parse_text(&text) {
            prop_assert!(!config.unl.is_empty() && config.quorum() <= config.unl.len());
            let new = SecretKey::from_seed([9; 32]);
            if let Ok(changed) = rekeyed(&text, &config, &new) {
                prop_assert_eq!(parse_text(&changed).unwrap().key, new.node_key());
            }
        }
    }
}

#[test]
fn a_recovered_chain_is_named_in_the_text_and_all_else_stays() {
    let (mine, other): (NodeKey, NodeKey) = (PUBKEY.parse().unwrap(), OTHER.parse().unwrap());
    let changes = Recovered {
        contract_id: Hash([9; 32]),
        genesis_time_ms: 77,
        unl: &[other, mine],
        threshold: 67,
        binary: Some("bin/new"),
    };
    let tables = "[consensus]\n# mine\neager = false\n[mesh]\nadmit = \"unl\"";
    for text in [document().text().to_owned(), least(""), least(tables), least("# [consensus]")] {
        let before = parse_text(&text).unwrap();
        let changed = recovered(&text, &before, &changes).unwrap();
        let after = parse_text(&changed).unwrap();
        assert_eq!((after.contract.id, after.contract.genesis_time_ms), (Hash([9; 32]), 77));
        assert_eq!((&after.unl[..], after.consensus.threshold), (&[other, mine][..], 67));
        assert_eq!((after.binary.as_path(), &*after.argv[0]), (Path::new("n/bin/new"), "bin/new"));
        let comments = |text: &str| text.lines().filter(|line| line.starts_with('#')).count();
        assert_eq!(comments(&changed), comments(&text));
        // Nothing is set that need not be.
        let again = Recovered { unl: &after.unl, binary: None, ..changes.clone() };
        assert_eq!(recovered(&changed, &after, &again).unwrap(), changed);
    }
    let told = recovered(LEGACY_A, &parse_text(LEGACY_A).unwrap(), &changes).unwrap_err().to_string();
    assert!(told.contains("cannot name a contract"), "{told}");
}

#[test]
fn a_bus_is_named_whole_or_not_at_all() {
    let (mbs, bs) = (quoted(&"55".repeat(32)), quoted(&"44".repeat(32)));
    let msb = |keys: &str| parse_text(&(least("") + "[msb]\n" + keys));
    assert_eq!(parse_text(&least("")).unwrap().msb, msb("").unwrap().msb);
    let config = msb(&format!("mode = \"http\"\nurl = \"http://h\"\nbootstrap = {mbs}\nsubnet = {bs}")).unwrap();
    assert_eq!(config.msb.mode, MsbMode::Http("http://h".to_owned()));
    assert_eq!((config.msb.bootstrap, config.subnet()), (Some(Hash([0x55; 32])), Hash([0x44; 32])));
    assert_eq!(msb("").unwrap().subnet(), Hash([7; 32]), "the contract's id");
    for (keys, expected) in [
        ("mode = \"http\"".to_owned(), "msb.url: is missing (mode is \"http\")"),
        ("mode = \"http\"\nurl = \"http://h\"".to_owned(), "msb.bootstrap: is missing"),
        (format!("bootstrap = {mbs}\nsubnet = {mbs}"), "msb.subnet: 5555"),
        (format!("subnet = {}", quoted(&"00".repeat(32))), "msb.subnet: expected 64 hexadecimal digits, not all 0"),
        ("settle_slot_s = 2".to_owned(), "msb.settle_slot_s: expected a whole number from 3 to 3600, got 2"),
        ("mode = \"on\"".to_owned(), "msb.mode: expected \"off\" or \"http\" or \"embedded\", got \"on\""),
        (
            "mode = \"embedded\"".to_owned(),
            "msb.network: is \"mainnet\", but mode \"embedded\" runs a bus of one's own",
        ),
        ("listen = \"5000\"".to_owned(), "msb.listen: expected an address like \"127.0.0.1:5000\", got \"5000\""),
        ("execute = \"settled\"".to_owned(), "msb.execute: is \"settled\", but msb.mode is \"off\""),
    ] {
        let message = message(msb(&keys));
        assert!(message.contains(expected), "{keys}: {message}");
    }
}

#[test]
fn a_bus_in_the_node_itself_needs_no_more_than_its_name() {
    let msb = |keys: &str| parse_text(&(least("") + "[msb]\nnetwork = \"development\"\n" + keys)).unwrap().msb;
    let embedded = msb("mode = \"embedded\"");
    assert_eq!(embedded.mode, MsbMode::Embedded("127.0.0.1:5000".parse().unwrap()));
    assert_eq!(embedded.mode.url().unwrap(), "http://127.0.0.1:5000");
    // Who names that bus by its address needs no bootstrap either, and has the same one.
    let named = msb("mode = \"http\"\nurl = \"http://h\"");
    assert_eq!((named.bus_bootstrap(), named.bootstrap), (embedded.bus_bootstrap(), None));
    assert!(named.bus_bootstrap().is_some());
    let own = quoted(&"55".repeat(32));
    assert_eq!(msb(&format!("bootstrap = {own}")).bus_bootstrap(), Some(Hash([0x55; 32])));
    for (listen, url) in [
        ("0.0.0.0:7", Some("http://127.0.0.1:7")),
        ("[::]:7", Some("http://[::1]:7")),
        ("192.0.2.7:80", Some("http://192.0.2.7:80")),
        ("127.0.0.1:0", None),
    ] {
        let embedded = msb(&format!("mode = \"embedded\"\nlisten = \"{listen}\""));
        assert_eq!(embedded.mode.url().as_deref(), url, "{listen}");
    }
    let settled = msb("mode = \"embedded\"\nexecute = \"settled\"");
    assert_eq!(settled.execute, Execute::Settled);
}

#[test]
fn who_joins_a_network_whose_outputs_are_final_when_settled_is_told_of_its_bus() {
    let mut other = document();
    other.set("msb.mode", "\"embedded\"").set("msb.network", "\"development\"").set("msb.execute", "\"settled\"");
    let other = parse_text(other.text()).unwrap();
    let mut mine = document();
    mine.join(&other, "192.0.2.7:22860".parse().unwrap());
    let mine = parse_text(mine.text()).unwrap();
    assert_eq!(mine.msb.mode, MsbMode::Http("http://127.0.0.1:5000".to_owned()));
    assert_eq!(mine.shared().msb_network, MsbNetwork::Development);
    assert_eq!(mine.cfg_hash(), other.cfg_hash());
}
