//! `hp ledger`: what is in a node's folder, whether it is right, and a copy of it for others.
//!
//! Reads `hist/ledger.db` whether the node runs or not, and changes nothing in it. `crate::ledger::view` is one ledger as people
//! and programs see it; `ls`, `show`, `verify` and `export` are the subcommands, `replay` what `verify --replay` and `hp
//! replay` do.

mod export;
mod ls;
pub(super) mod replay;
mod show;
mod verify;

use std::path::Path;

pub(super) use crate::ledger::view::utc;

use clap::Subcommand;

use super::{Exit, Failure, Outcome};
use crate::ledger::{Archive, LedgerError, view};

/// Look at the ledgers of a node, check them, or take a copy.
#[derive(Debug, clap::Args)]
pub(super) struct Ledger {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(ls::Ls),
    Show(show::Show),
    Verify(verify::Verify),
    Export(export::Export),
}

impl Ledger {
    pub(super) fn run(self) -> Outcome {
        match self.command {
            Command::Ls(ls) => ls.run(),
            Command::Show(show) => show.run(),
            Command::Verify(verify) => verify.run(),
            Command::Export(export) => export.run(),
        }
    }
}

/// Opens the database of a contract folder.
pub(super) fn open(dir: &Path) -> Result<Archive, Failure> {
    if !dir.join("hist/ledger.db").exists() {
        let what =
            format!("{} has no ledgers: there is no hist/ledger.db (a node's first run makes it)", dir.display());
        return Err(Failure::new(Exit::Failed, anyhow::anyhow!(what)));
    }
    Archive::open(dir).map_err(unreadable)
}

/// The database is there and does not read.
fn unreadable(error: LedgerError) -> Failure {
    Failure::new(Exit::Database, error)
}
