//! Whatever comes from outside: every reader of it, with examples that were changed a little, in every run of the tests.
//!
//! The readers are those of `fuzz/targets.rs`, which fuzzers call for longer (`scripts/fuzz`).

use std::{env, fs, path::Path};

use proptest::{
    collection::vec,
    prelude::{Strategy, any},
    sample::Index,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

#[path = "../../fuzz/targets.rs"]
mod targets;

use serde_json::Value;
use targets::{TARGETS, Target};

/// Changed examples of each kind that are read in a run. `HP_BYTES` asks for another number.
const CASES: u32 = 5_000;

/// One thing done to bytes.
#[derive(Debug, Clone)]
enum Change {
    Byte(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Repeat(Index, usize),
    Number(Index, u64),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |index: &Index, bytes: &[u8]| index.index(bytes.len() + 1);
        match self {
            Change::Byte(index, byte) => {
                let at = at(index, bytes);
                if let Some(old) = bytes.get_mut(at) {
                    *old = *byte;
                }
            }
            Change::Cut(index) => bytes.truncate(at(index, bytes)),
            Change::Remove(index, count) => {
                let at = at(index, bytes);
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Change::Insert(index, more) => {
                let at = at(index, bytes);
                bytes.splice(at..at, more.iter().copied());
            }
            Change::Repeat(index, count) => {
                let at = at(index, bytes);
                let part = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            // A length where one may stand.
            Change::Number(index, number) => {
                let at = at(index, bytes);
                for (old, new) in bytes[at..].iter_mut().zip(number.to_le_bytes()) {
                    *old = new;
                }
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let words: &[&[u8]] = &[b"null", b"{}", b"[]", b"\"\"", b"-1", b"1e999", b"\\u0000", b"\xff", b"{\"", b"\n", b"\0"];
    let word = proptest::sample::select(words.to_vec()).prop_map(<[u8]>::to_vec);
    let number = proptest::sample::select(vec![0, 1, 255, 65_535, u64::from(u32::MAX), 1 << 40, u64::MAX]);
    proptest::prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        1 => any::<Index>().prop_map(Change::Cut),
        2 => (any::<Index>(), 1usize..40).prop_map(|(at, count)| Change::Remove(at, count)),
        2 => (any::<Index>(), proptest::prop_oneof![word, vec(any::<u8>(), 1..40)])
            .prop_map(|(at, more)| Change::Insert(at, more)),
        1 => (any::<Index>(), 1usize..200).prop_map(|(at, count)| Change::Repeat(at, count)),
        2 => (any::<Index>(), number).prop_map(|(at, number)| Change::Number(at, number)),
    ]
}

/// The examples as bytes: what a `.hex` file spells, else the file, and where that is JSON every object in it as well.
fn examples(target: &Target) -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files = Vec::new();
    for example in target.examples {
        let path = golden.join(example);
        match fs::read_dir(&path) {
            Ok(folder) => files.extend(folder.map(|entry| entry.expect("a folder of examples").path())),
            Err(_) => files.push(path),
        }
    }
    files.sort();
    files.iter().flat_map(|file| examples_in(file)).collect()
}

fn examples_in(file: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    if file.extension().is_some_and(|extension| extension == "hex") {
        let text = String::from_utf8(bytes).expect("digits");
        // `message 0123...`, by lines.
        let digits = text.lines().filter_map(|line| line.split_whitespace().last());
        return digits.filter_map(|digits| hex::decode(digits).ok()).collect();
    }
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_slice(&bytes) {
        objects(&value, &mut found);
    }
    found.push(bytes);
    found
}

fn objects(value: &Value, found: &mut Vec<Vec<u8>>) {
    match value {
        Value::Object(fields) => {
            found.push(value.to_string().into_bytes());
            fields.values().for_each(|value| objects(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| objects(value, found)),
        Value::String(text) => found.push(text.clone().into_bytes()),
        _ => {}
    }
}

fn check(target: &Target) {
    let examples = examples(target);
    assert!(target.examples.is_empty() || !examples.is_empty(), "{}: no example", target.name);
    for example in &examples {
        (target.check)(example);
    }
    let cases = env::var("HP_BYTES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    // The same in every run, unless more are asked for: what fails once fails again.
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = match cases == CASES {
        true => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
        false => TestRunner::new(config),
    };
    let bytes = (any::<Index>(), vec(change(), 0..6), vec(any::<u8>(), 0..300)).prop_map(|(which, changes, noise)| {
        let mut bytes = match examples.is_empty() {
            true => noise,
            false => examples[which.index(examples.len())].clone(),
        };
        changes.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    });
    let ran = runner.run(&bytes, |bytes| {
        (target.check)(&bytes);
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{}, {}: {error}", target.name, target.reads);
    }
}

/// A test for each target, so that they run beside each other and a failure names one.
macro_rules! each {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(targets::target(stringify!($name)));
            }
        )*

        #[test]
        fn there_is_a_test_of_each() {
            let tests: &[&str] = &[$(stringify!($name)),*];
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), tests);
        }
    };
}

each! { peer_message hello helo request reply config control npl contract bus }

/// With `HP_CORPUS=FOLDER`: writes the examples of each target into a folder of its own there, for the fuzzers to begin with.
#[test]
fn examples_are_written_for_the_fuzzers_on_demand() {
    let Some(folder) = env::var_os("HP_CORPUS") else { return };
    for target in TARGETS {
        let folder = Path::new(&folder).join(target.name);
        fs::create_dir_all(&folder).unwrap();
        for (number, example) in examples(target).iter().enumerate() {
            fs::write(folder.join(format!("example-{number}")), example).unwrap();
        }
    }
}
