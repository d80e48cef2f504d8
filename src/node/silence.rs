//! A silent node: the mark in `hist/` by which whoever restored it says so, and what people are told.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

use serde_json::{Value, json};
use tracing::{error, info};

use super::{Node, NodeError, wall_ms};
use crate::{
    consensus::{
        journal::Record,
        silence::{Silence, Silent, Why},
    },
    ledger::{Store, Write},
    types::Seq,
};

/// In `hist/`: whoever restores that folder puts it there, with a line that says why it may lack what the node signed.
pub const MARK: &str = "silent";
/// Bytes of that line that are kept.
const REASON_BYTES_MAX: usize = 512;

/// Takes the mark in `dir`/hist/ over into the database, where there is a chain. It goes when the database has it.
/// Whether it was there.
pub(super) fn take_mark(dir: &Path, store: &mut Store, tip: Seq) -> Result<bool, NodeError> {
    let hist = dir.join("hist");
    let path = hist.join(MARK);
    let failed = |what| {
        let path = path.clone();
        move |source| NodeError::Io { what, path, source }
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("open")(error)),
    };
    let mut bytes = Vec::new();
    file.take(REASON_BYTES_MAX as u64).read_to_end(&mut bytes).map_err(failed("read"))?;
    let silence = Silence::new(Why::Marked(reason(&bytes)), wall_ms(), tip);
    store.commit(&[Write::Record(Record::Silence(Some(Box::new(silence))))])?;
    fs::remove_file(&path).map_err(failed("remove"))?;
    File::open(&hist).and_then(|hist| hist.sync_all()).map_err(failed("write to disk the removal of"))?;
    Ok(true)
}

/// The first line, fit to be shown.
fn reason(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line: String = text.lines().next().unwrap_or_default().trim().chars().filter(|c| !c.is_control()).collect();
    if line.is_empty() { format!("hist/{MARK} was there, without a reason in it") } else { line }
}

impl Node {
    pub(super) fn silent(&self, silent: &Silent) {
        error!("{}", alarm(silent, self.core.quorum().n));
    }

    pub(super) fn speaks(&self) {
        let seq = self.core.summary().seq;
        info!(seq, "this node was silent; it votes again: nothing that it may have forgotten counts any more");
    }
}

/// For the status: what there is to know.
pub(super) fn describe(silent: &Silent, n: usize) -> Value {
    let Silence { why, since_ms, since, signed, .. } = &silent.silence;
    json!({
        "why": cause(why), "since_ms": since_ms, "since_seq": since, "signed_seq": signed, "alarm": silent.is_alarm,
        "ends_by_itself": silent.ends_by_itself, "ends_with": silent.ends_with, "waits_for": waits_for(silent, n),
    })
}

/// One line for a person: what is so, why, and until when.
pub(super) fn alarm(silent: &Silent, n: usize) -> String {
    format!(
        "this node is silent, it follows and signs nothing: {}; {}",
        cause(&silent.silence.why),
        waits_for(silent, n)
    )
}

fn cause(why: &Why) -> String {
    match why {
        Why::Empty => "hist/ was empty, so it cannot know what its key has signed before".to_owned(),
        Why::Copied(node) => {
            format!("hist/ was made by node {node}, so it does not say what this node's key has signed")
        }
        Why::Marked(reason) => reason.clone(),
        Why::Signed { kind, seq, attempt } => format!(
            "its key signed a {kind} for ledger {seq} (attempt {attempt}) that is not in hist/: another process uses the \
             key, or hist/ is an older copy"
        ),
        Why::Twin => "another process with its key was there before it: end one of the two".to_owned(),
    }
}

fn waits_for(silent: &Silent, n: usize) -> String {
    match silent {
        Silent { ends_by_itself: false, is_alarm: true, .. } if n == 1 => {
            "as it is the only member, this does not end by \
            itself: see \"Silent\" in the operator's guide, and `hp recover`"
                .to_owned()
        }
        Silent { ends_by_itself: false, is_alarm: true, .. } => format!(
            "all {n} members are needed to close a ledger, so this does not end by itself: see \"Silent\" in the operator's \
             guide, and `hp recover`"
        ),
        Silent { lacking: lacking @ 1.., .. } => format!("waits to hear from {lacking} more members where they stand"),
        Silent { ends_with: Some(seq), .. } => format!("votes again when ledger {seq} is closed without it"),
        Silent { ends_with: None, .. } => "waits for another member".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{consensus::header::Genesis, types::Hash};

    fn silent(why: Why) -> Silent {
        let silence = Silence::new(why, 1, 40);
        Silent { silence, is_alarm: true, ends_by_itself: true, lacking: 0, ends_with: Some(42) }
    }

    #[test]
    fn the_alarm_says_why_and_until_when_and_that_it_never_ends_by_itself_where_all_are_needed() {
        let text = alarm(&silent(Why::Empty), 5);
        assert_eq!(
            text,
            "this node is silent, it follows and signs nothing: hist/ was empty, so it cannot know what its key has signed \
             before; votes again when ledger 42 is closed without it"
        );
        let text = alarm(&Silent { lacking: 2, ends_with: None, ..silent(Why::Twin) }, 5);
        assert!(text.ends_with("end one of the two; waits to hear from 2 more members where they stand"), "{text}");
        let text = alarm(&Silent { ends_by_itself: false, ..silent(Why::Marked("restored".into())) }, 3);
        assert!(text.contains(": restored; all 3 members are needed") && text.contains("hp recover"), "{text}");
    }

    #[test]
    fn the_mark_s_reason_is_one_line_of_bounded_length_without_control_characters() {
        assert_eq!(reason(b"restored from a.tar\nmore"), "restored from a.tar");
        assert_eq!(reason(b"\x1b[31mred\xff"), "[31mred\u{fffd}");
        assert_eq!(reason(b"\n"), "hist/silent was there, without a reason in it");
    }

    #[test]
    fn the_mark_is_taken_over_into_the_database_and_removed_then() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let genesis = Genesis {
            ver: 1,
            contract_id: Hash::ZERO,
            unl: vec![crate::types::NodeKey([1; 32])],
            threshold: 80,
            cfg_hash: Hash::ZERO,
            state_root: Hash::ZERO,
            time_ms: 0,
            ancestor: None,
        };
        store.set_genesis(&genesis).unwrap();
        let why = |store: &mut Store| store.load(10).unwrap().unwrap().silence.map(|silence| silence.why);
        assert!(!take_mark(dir.path(), &mut store, 0).unwrap());
        assert_eq!(why(&mut store), Some(Why::Empty));
        fs::write(dir.path().join("hist/silent"), "restored\n").unwrap();
        assert!(take_mark(dir.path(), &mut store, 0).unwrap());
        assert_eq!(why(&mut store), Some(Why::Marked("restored".into())));
        assert!(!dir.path().join("hist/silent").exists());
        assert!(!take_mark(dir.path(), &mut store, 0).unwrap());
        assert_eq!(why(&mut store), Some(Why::Marked("restored".into())), "it stays");
    }
}
