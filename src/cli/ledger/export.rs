//! `hp ledger export`: a file a ledger, for whoever wants to read or check the chain with tools of their own.

use std::{fs, path::PathBuf};

use anyhow::Context as _;

use super::{open, view};
use crate::{
    cli::{Exit, Failure, Outcome, answer},
    ledger::Depth,
    types::Seq,
};

const EXAMPLES: &str = "\
Examples:
  hp ledger export mynode --out chain                      the whole chain
  hp ledger export mynode --out part --from 100 --to 200   these ledgers

Makes chain.json and a file NUMBER.json a ledger. docs/export.md explains the fields, and how a stranger checks the chain
with nothing but these files.";

/// Write ledgers as JSON files.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Export {
    /// The contract folder of the node
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where the files go; an empty or new folder
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// First ledger
    #[arg(long, value_name = "SEQ", default_value_t = 1)]
    from: Seq,
    /// Last ledger [default: the newest]
    #[arg(long, value_name = "SEQ")]
    to: Option<Seq>,
}

impl Export {
    pub(super) fn run(self) -> Outcome {
        let archive = open(&self.dir)?;
        let chain = view::Chain::read(&archive)?;
        let out = &self.out;
        fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        let mut there = fs::read_dir(out).with_context(|| format!("cannot list {}", out.display()))?;
        if there.next().is_some() {
            let what = format!("{} is not empty: give an empty or a new folder", out.display());
            return Err(Failure::new(Exit::Failed, anyhow::anyhow!(what)));
        }
        let write = |name: String, text: String| {
            let file = out.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
        };
        write("chain.json".into(), format!("{:#}\n", chain.json()))?;
        let mut count = 0;
        view::read(&archive, self.from, self.to.unwrap_or(chain.tip).min(chain.tip), Depth::All, |ledger| {
            count += 1;
            write(format!("{:010}.json", ledger.seq), format!("{:#}\n", view::json(&ledger, &chain)))?;
            Ok::<(), Failure>(())
        })?;
        answer(&format!("{count} ledgers of chain {} in {}\n", chain.genesis.chain_id(), out.display()))
    }
}
