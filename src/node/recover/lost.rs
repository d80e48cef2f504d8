//! Inputs that are not part of a recovered chain: counted for the operator, and listed in a file.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

use serde_json::json;

use super::{RecoverError, io_error};
use crate::{
    consensus::header::Origin,
    ledger::{Archive, LedgerError, Undone},
    types::{NodeKey, Seq},
};

/// How many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lost {
    /// In ledgers that do not count any more.
    pub undone: u64,
    /// Signed by their users, in no ledger yet.
    pub signed: u64,
    /// Raw ones of this node's sessions, in no ledger yet.
    pub raw: u64,
    /// Raw ones of other nodes' sessions, in no ledger yet.
    pub of_others: u64,
}

impl Lost {
    /// All of them.
    pub fn all(&self) -> u64 {
        let Lost { undone, signed, raw, of_others } = self;
        undone + signed + raw + of_others
    }

    pub(super) fn count(archive: &Archive, seq: Seq, me: &NodeKey) -> Result<Lost, LedgerError> {
        let mut lost = Lost::default();
        archive.undone(seq, |undone| {
            let kind = match (undone.seq, undone.host()) {
                (Some(_), _) => &mut lost.undone,
                (None, None) => &mut lost.signed,
                (None, Some(host)) if host == *me => &mut lost.raw,
                (None, Some(_)) => &mut lost.of_others,
            };
            *kind += 1;
        })?;
        Ok(lost)
    }
}

/// Writes one JSON object a line and input. Without the contents: the old database has them.
pub(super) fn write(archive: &Archive, seq: Seq, to: &Path) -> Result<(), RecoverError> {
    let folder = to.parent().expect("a file in a folder");
    fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    let mut file = BufWriter::new(File::create(to).map_err(io_error("create", to))?);
    let mut done = Ok(());
    archive.undone(seq, |undone| {
        if done.is_ok() {
            done = writeln!(file, "{}", line(&undone));
        }
    })?;
    done.and_then(|()| file.flush()).map_err(io_error("write", to))
}

fn line(undone: &Undone) -> serde_json::Value {
    let Undone { seq, id, input } = undone;
    let mut told = json!({ "ledger": seq, "id": id.to_string() });
    if let Some(input) = input {
        told["user"] = json!(input.user.to_string());
        told["nonce"] = json!(input.nonce);
        told["bytes"] = json!(input.payload.len());
        told["by"] = match &input.origin {
            Origin::User { .. } => json!("user"),
            Origin::Session { host, .. } => json!(host.to_string()),
        };
    }
    told
}
