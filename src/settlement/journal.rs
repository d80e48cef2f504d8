//! What this node did about the settlement under way: a line before each step, on disk before the step is taken.
//!
//! `hist/settlement.jsonl` is for people, and for counting on after a restart. Nothing is lost with it: what is to be
//! settled, and each transaction that may be on the bus, follows from the chain.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::schedule::{Due, TXVS_MAX};
use crate::types::{Hash, Seq};

/// Lines of one settlement, after which those of older posts are left out.
const LINES_MAX: usize = 1_000;

/// One step. The hashes are hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Step {
    /// There is something to be settled.
    Due {
        /// Its first ledger.
        first: Seq,
        /// Its last one.
        last: Seq,
        /// Its content hash.
        ch: String,
    },
    /// This is what would be posted.
    Signed {
        /// For these indexers of the bus.
        txv: String,
        /// Under this hash.
        tx: String,
        /// These bytes, as the bus takes them.
        payload: String,
    },
    /// It is being posted; whether it arrived, nobody knows.
    Posted {
        /// Which one.
        tx: String,
        /// For the how many-eth time.
        n: u64,
    },
    /// The bus shows it.
    Confirmed {
        /// Which one.
        tx: String,
        /// Its place.
        confirmed_length: u64,
    },
    /// A ledger records that.
    InLedger {
        /// Which ledger.
        seq: Seq,
    },
}

impl Step {
    /// The name it has in the file.
    pub fn name(&self) -> &'static str {
        match self {
            Step::Due { .. } => "due",
            Step::Signed { .. } => "signed",
            Step::Posted { .. } => "posted",
            Step::Confirmed { .. } => "confirmed",
            Step::InLedger { .. } => "in_ledger",
        }
    }
}

/// Why it cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct JournalError {
    path: PathBuf,
    source: io::Error,
}

/// The file, and what is in it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    steps: Vec<Step>,
}

impl Journal {
    /// Reads what is there. A line that was cut, and all behind it, is dropped: it was never acted on.
    pub fn open(dir: &Path) -> Journal {
        let path = dir.join("hist/settlement.jsonl");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines = text.split_inclusive('\n').take_while(|line| line.ends_with('\n'));
        let steps = lines.map_while(|line| serde_json::from_str(line).ok()).take(2 * LINES_MAX).collect();
        Journal { path, steps }
    }

    /// Notes a step. When it returns, it is on disk. Blocks.
    pub fn note(&mut self, step: Step) -> Result<(), JournalError> {
        match &step {
            Step::Due { .. } => self.steps.clear(),
            _ if self.steps.len() >= LINES_MAX => self.shorten(),
            _ => {}
        }
        self.steps.push(step);
        // As a whole, with a name that it gets when it is complete: a settlement has a handful of lines.
        self.write().map_err(|source| JournalError { path: self.path.clone(), source })
    }

    /// What was signed stays, and the last post.
    fn shorten(&mut self) {
        let last = self.steps.iter().rposition(|step| matches!(step, Step::Posted { .. }));
        let mut at = 0;
        self.steps.retain(|step| {
            at += 1;
            !matches!(step, Step::Posted { .. }) || Some(at - 1) == last
        });
        // One line for each txv, and those are bounded; a file that says something else is somebody's own.
        self.steps.truncate(2 * TXVS_MAX);
    }

    fn write(&self) -> io::Result<()> {
        let folder = self.path.parent().expect("it is in hist/");
        let mut file = tempfile::Builder::new().prefix(".settlement.").tempfile_in(folder)?;
        for step in &self.steps {
            writeln!(file, "{}", serde_json::to_string(step)?)?;
        }
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    }

    /// Whether these lines are about this settlement.
    pub fn is_about(&self, due: &Due) -> bool {
        matches!(self.steps.first(), Some(Step::Due { ch, .. }) if *ch == due.ch.to_string())
    }

    /// How often it was posted.
    pub fn posts(&self) -> u64 {
        let posts = self.steps.iter().filter_map(|step| match step {
            Step::Posted { n, .. } => Some(*n),
            _ => None,
        });
        posts.max().unwrap_or(0)
    }

    /// Whether this transaction was signed.
    pub fn has_signed(&self, tx: &Hash) -> bool {
        let tx = tx.to_string();
        self.steps.iter().any(|step| matches!(step, Step::Signed { tx: known, .. } if *known == tx))
    }

    /// The last step.
    pub fn last(&self) -> Option<&Step> {
        self.steps.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settlement::record::Record;

    fn due(last: Seq) -> Due {
        let record = Record {
            contract_id: Hash::ZERO,
            first: 1,
            last,
            lcl: Hash::ZERO,
            outputs_root: Hash::ZERO,
            state_root: Hash::ZERO,
            prev: Hash::ZERO,
        };
        Due { ch: record.ch(), record, txvs: vec![Hash([1; 32])], since_ms: 0 }
    }

    fn begin(due: &Due) -> Step {
        Step::Due { first: due.record.first, last: due.record.last, ch: due.ch.to_string() }
    }

    fn posted(n: u64) -> Step {
        Step::Posted { tx: "aa".to_owned(), n }
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("hist")).unwrap();
        folder
    }

    #[test]
    fn what_was_noted_is_there_after_a_restart_and_goes_with_the_next_settlement() {
        let folder = folder();
        let mut journal = Journal::open(folder.path());
        let tx = Hash([2; 32]);
        let signed = Step::Signed { txv: "00".to_owned(), tx: tx.to_string(), payload: "e30=".to_owned() };
        for step in [begin(&due(7)), signed, posted(1), posted(2)] {
            journal.note(step).unwrap();
        }
        let again = Journal::open(folder.path());
        assert_eq!(again.steps, journal.steps);
        assert!(again.is_about(&due(7)) && !again.is_about(&due(8)));
        assert_eq!((again.posts(), again.has_signed(&tx), again.has_signed(&Hash::ZERO)), (2, true, false));
        journal.note(begin(&due(8))).unwrap();
        assert_eq!(Journal::open(folder.path()).steps, [begin(&due(8))]);
    }

    #[test]
    fn a_line_that_was_cut_or_is_none_and_all_behind_it_is_dropped() {
        let folder = folder();
        let file = folder.path().join("hist/settlement.jsonl");
        let mut journal = Journal::open(folder.path());
        journal.note(begin(&due(7))).unwrap();
        journal.note(posted(1)).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        for cut in 0..text.len() {
            fs::write(&file, &text[..cut]).unwrap();
            let whole = text[..cut].matches('\n').count();
            assert_eq!(Journal::open(folder.path()).steps, journal.steps[..whole], "{cut}");
        }
        fs::write(&file, text.replace("\"n\":1", "\"n\":-1")).unwrap();
        assert_eq!(Journal::open(folder.path()).steps.len(), 1);
        fs::write(&file, [0xff, b'\n']).unwrap();
        assert_eq!(Journal::open(folder.path()).steps, []);
    }

    #[test]
    fn posts_without_end_do_not_grow_it() {
        let folder = folder();
        let mut journal = Journal { path: folder.path().join("hist/settlement.jsonl"), steps: Vec::new() };
        journal.steps = (0..LINES_MAX as u64).map(posted).collect();
        journal.steps[0] = begin(&due(7));
        journal.note(posted(5_000)).unwrap();
        assert_eq!(journal.steps, [begin(&due(7)), posted(999), posted(5_000)]);
        assert_eq!(journal.posts(), 5_000);
    }
}
