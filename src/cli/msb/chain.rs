//! The headers of a chain: of a node's folder, or of an export of one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use borsh::BorshDeserialize;
use serde_json::Value;

use crate::{
    cli::{Exit, Failure},
    config::SharedConfig,
    consensus::header::{Genesis, Header},
    ledger::{Archive, Depth, LedgerError},
    types::{Hash, Seq},
    wire,
};

/// Ledgers that are read at a time.
const PAGE: u64 = 512;
/// Bytes of one file of an export. A longer one is none.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A chain's beginning, and where its headers are.
pub(super) struct Chain {
    pub genesis: Genesis,
    pub settings: SharedConfig,
    pub tip: Seq,
    source: Source,
}

enum Source {
    Folder(Archive),
    Export(PathBuf),
}

impl Chain {
    /// Opens a node's folder, or the folder of an export. Genesis and settings are what each other says.
    pub fn open(dir: &Path) -> Result<Chain, Failure> {
        let export = dir.join("chain.json");
        let (genesis, settings, tip, source) = if export.exists() {
            let chain = read_json(&export)?;
            let bytes = |key: &str| {
                let text = chain[key].as_str().with_context(|| format!("{} has no {key}", export.display()))?;
                hex::decode(text).with_context(|| format!("{key} in {} is not hexadecimal", export.display()))
            };
            let genesis = Genesis::try_from_slice(&bytes("genesis_bytes")?).context("cannot read the genesis")?;
            (genesis, Some(bytes("settings_bytes")?), last_file(dir)?, Source::Export(dir.to_owned()))
        } else {
            let archive = crate::cli::ledger::open(dir)?;
            let genesis = archive.genesis().map_err(damaged)?.context("the database holds no genesis")?;
            let settings = archive.settings().map_err(damaged)?;
            (genesis, settings, archive.tip().map_err(damaged)?, Source::Folder(archive))
        };
        let settings = settings.context("the chain's shared settings are not here")?;
        let settings: SharedConfig = wire::decode(&settings).context("cannot read the chain's shared settings")?;
        if Hash::tagged("hp/cfg/1", &settings) != genesis.cfg_hash {
            return Err(anyhow::anyhow!("the shared settings are not those that the genesis names").into());
        }
        Ok(Chain { genesis, settings, tip, source })
    }

    /// Hands out the headers that are here, ascending, each with its hash. A ledger that is not here is passed over.
    pub fn headers(&self, mut each: impl FnMut(Header, Hash) -> Result<(), Failure>) -> Result<(), Failure> {
        match &self.source {
            Source::Folder(archive) => {
                let mut first = 1;
                while first <= self.tip {
                    let page = archive.page(first, self.tip.min(first + PAGE - 1), Depth::Closed).map_err(damaged)?;
                    first += page.ledgers.len().max(1) as u64;
                    for closed in page.ledgers.into_iter().filter_map(|stored| stored.closed) {
                        let header: Header = wire::decode(&closed.header).context("cannot read a header")?;
                        let hash = header.hash();
                        each(header, hash)?;
                    }
                }
            }
            Source::Export(dir) => {
                for seq in 1..=self.tip {
                    let file = dir.join(format!("{seq:010}.json"));
                    if !file.exists() {
                        continue;
                    }
                    let ledger = read_json(&file)?;
                    let text = ledger["header_bytes"].as_str().unwrap_or_default();
                    let bytes = hex::decode(text).with_context(|| format!("no header in {}", file.display()))?;
                    let header: Header = wire::decode(&bytes)
                        .with_context(|| format!("cannot read the header in {}", file.display()))?;
                    let hash = header.hash();
                    each(header, hash)?;
                }
            }
        }
        Ok(())
    }
}

fn damaged(error: LedgerError) -> Failure {
    Failure::new(Exit::Database, error)
}

fn read_json(path: &Path) -> Result<Value, anyhow::Error> {
    let length = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    anyhow::ensure!(length <= FILE_BYTES_MAX, "{} is longer than {FILE_BYTES_MAX} bytes", path.display());
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// The highest number of a ledger's file.
fn last_file(dir: &Path) -> Result<Seq, anyhow::Error> {
    let mut last = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|name| name.parse().ok());
        last = last.max(number.unwrap_or(0));
    }
    Ok(last)
}
