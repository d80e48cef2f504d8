//! Another `bin/` between two runs, for an author at work: `hp dev` has every node go over to it at the same ledger.
//!
//! All nodes are asked to begin no more runs, and say which ledger's they began last. The greatest of these is the last that
//! the old `bin/` runs: whoever is behind runs the ledgers up to it with the old one, and everybody those after it with the new
//! one. Ledgers go on closing meanwhile; only their runs wait.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::{error, info};

use super::Node;
use crate::types::Seq;

/// Which ledgers' runs may begin, and with what.
#[derive(Debug)]
pub(super) struct Swap {
    /// The last ledger whose run was begun.
    begun: Seq,
    /// Whether that run is under way.
    is_running: bool,
    /// No run may begin.
    is_held: bool,
    /// Who waits for the end of the one that is under way.
    asked: Vec<oneshot::Sender<Value>>,
    /// The folder that becomes `bin/` before the first run of a ledger after this one.
    next: Option<(Seq, PathBuf)>,
}

impl Swap {
    /// `executed` is the last ledger that was run before this process began.
    pub(super) fn new(executed: Seq) -> Swap {
        Swap { begun: executed, is_running: false, is_held: false, asked: Vec::new(), next: None }
    }

    /// Whether no run may begin.
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// The run of a ledger begins: what it finds in `bin/` is put there first, when it is due.
    pub(super) fn begins(&mut self, seq: Seq, dir: &Path) {
        assert!(!self.is_held, "no run begins while runs are held");
        (self.begun, self.is_running) = (self.begun.max(seq), true);
        let Some((after, from)) = self.next.take_if(|(after, _)| *after < seq) else { return };
        match exchange(dir, &from) {
            Ok(()) => info!(after, "bin/ was exchanged"),
            // The others have it: this node will differ, and say so.
            Err(error) => error!(%error, from = %from.display(), "bin/ could not be exchanged; the old one goes on"),
        }
    }

    /// The run that was under way has ended.
    pub(super) fn ended(&mut self) {
        self.is_running = false;
        for asked in self.asked.drain(..) {
            // Whoever asked may be gone.
            let _ = asked.send(held(self.begun));
        }
    }

    fn hold(&mut self, answer: oneshot::Sender<Value>) {
        self.is_held = true;
        self.asked.push(answer);
        if !self.is_running {
            self.ended();
        }
    }

    /// From here on runs begin again; those after `after` with `from` as `bin/`.
    fn go_on(&mut self, next: Option<(Seq, PathBuf)>) -> Result<(), String> {
        if let Some((after, from)) = next {
            if !self.is_held {
                return Err("runs are not held".to_owned());
            }
            if after < self.begun {
                return Err(format!("ledger {} was begun with the old bin/ already", self.begun));
            }
            if !from.is_absolute() || !from.is_dir() {
                return Err(format!("{} is not the absolute path of a folder", from.display()));
            }
            self.next = Some((after, from));
        }
        self.is_held = false;
        Ok(())
    }
}

impl Node {
    /// An operator wants no more runs to begin; the answer waits for the end of the one that is under way.
    pub(super) fn hold_runs(&mut self, answer: oneshot::Sender<Value>) {
        self.swap.hold(answer);
    }

    /// An operator lets them go on, with another `bin/` or the same.
    pub(super) fn go_on(&mut self, next: Option<(Seq, PathBuf)>) -> Value {
        let done = self.swap.go_on(next);
        self.next_job();
        match done {
            Ok(()) => json!({ "held": false }),
            Err(why) => json!({ "error": why }),
        }
    }
}

fn held(begun: Seq) -> Value {
    json!({ "held": true, "begun": begun })
}

/// Makes `from` the folder's `bin/`; the old one lies where `from` was, with `.was` behind its name.
fn exchange(dir: &Path, from: &Path) -> io::Result<()> {
    let bin = dir.join("bin");
    let mut was = from.as_os_str().to_owned();
    was.push(".was");
    fs::rename(&bin, &was)?;
    fs::rename(from, &bin).inspect_err(|_| {
        let _ = fs::rename(&was, &bin);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(swap: &mut Swap) -> oneshot::Receiver<Value> {
        let (answer, answered) = oneshot::channel();
        swap.hold(answer);
        answered
    }

    #[test]
    fn who_is_behind_runs_with_the_old_files_up_to_the_ledger_agreed_on_and_with_the_new_ones_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, next) = (folder.path(), folder.path().join("next"));
        for (bin, text) in [(dir.join("bin"), "old"), (next.clone(), "new")] {
            fs::create_dir(&bin).unwrap();
            fs::write(bin.join("contract"), text).unwrap();
        }
        let found = || fs::read_to_string(dir.join("bin/contract")).unwrap();
        let mut swap = Swap::new(4);
        swap.begins(5, dir);
        let mut answered = hold(&mut swap);
        assert!(answered.try_recv().is_err(), "the run of ledger 5 is under way");
        swap.ended();
        assert_eq!(answered.try_recv().unwrap(), json!({ "held": true, "begun": 5 }));
        assert!(swap.is_held());

        assert!(swap.go_on(Some((4, next.clone()))).unwrap_err().contains("ledger 5 was begun"));
        assert!(swap.go_on(Some((7, dir.join("missing")))).unwrap_err().contains("not the absolute path"));
        assert!(swap.is_held(), "nothing goes on by a mistake");
        swap.go_on(Some((7, next))).unwrap();
        for (seq, text) in [(6, "old"), (7, "old"), (8, "new"), (8, "new"), (9, "new")] {
            swap.begins(seq, dir);
            assert_eq!(found(), text, "ledger {seq}");
            swap.ended();
        }
        assert_eq!(fs::read_to_string(dir.join("next.was/contract")).unwrap(), "old");
    }

    #[test]
    fn runs_that_are_held_go_on_with_the_same_files_and_an_exchange_needs_them_held() {
        let mut swap = Swap::new(0);
        assert!(swap.go_on(Some((3, std::env::temp_dir()))).unwrap_err().contains("not held"));
        assert_eq!(hold(&mut swap).try_recv().unwrap()["begun"], 0);
        swap.go_on(None).unwrap();
        assert!(!swap.is_held());
    }
}
