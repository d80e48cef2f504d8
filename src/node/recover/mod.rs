//! `hp recover`: makes a new chain out of what a network agrees to keep of one that cannot go on.
//!
//! Offline. [`Plan::make`] looks and changes nothing, [`Plan::prepare`] makes everything beside the folder's own, and
//! [`switch`] puts it in place, so that a cut at any moment leaves the old folder or the new one. Everything that decides
//! the new chain's id is the same on each node that is given the same arguments; who differs is told by the id.

mod lost;
pub mod switch;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

pub use lost::Lost;

use super::{NodeError, start::Lock};
use crate::{
    config::{self, Config, ConfigError, Recovered, SharedConfig, UNL_MAX},
    consensus::header::{Ancestor, Genesis, VERSION, keys_root, users_root},
    crypto,
    ledger::{Archive, Heritage, LedgerError, Store},
    state::{StateError, folder},
    types::{Hash, NodeKey, Seq},
    wire,
};

/// Bytes of an executable at most, as it is read whole for its hash.
const BINARY_BYTES_MAX: u64 = 1 << 30;

/// What the operators agreed on.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The contract folder.
    pub dir: PathBuf,
    /// The last ledger that counts.
    pub seq: Seq,
    /// Root of the state after its run.
    pub root: Hash,
    /// Another executable.
    pub binary: Option<PathBuf>,
    /// Other members.
    pub unl: Option<Vec<NodeKey>>,
    /// Another percentage of them.
    pub threshold: Option<u64>,
    /// A folder outside the contract's with the state.
    pub state: Option<PathBuf>,
}

/// Why a chain is not recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The folder is in use, or cannot be worked in.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no chain to go on from.
    #[error("{0} has no chain to go on from: there is no hist/ledger.db with a genesis")]
    NoChain(PathBuf),
    /// What was asked for cannot be done.
    #[error("{0}")]
    Refused(String),
    /// No folder here holds the state.
    #[error(
        "no state of root {root} is here. Looked at:\n{looked}\nCopy it from a node that has it (its state/ while it is \
         stopped, or a backup of it) and give it with --state FOLDER"
    )]
    NoState {
        /// The root asked for.
        root: Hash,
        /// Each folder with its root, a line each.
        looked: String,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecoverError {
    let path = path.to_owned();
    move |source| RecoverError::Io { what, path, source }
}

fn refused<T>(what: impl Into<String>) -> Result<T, RecoverError> {
    Err(RecoverError::Refused(what.into()))
}

/// Where the state comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `state/` is it.
    Present,
    /// This folder is copied.
    Folder(PathBuf),
    /// What the last run, in an overlay, began with.
    Before,
}

/// Another executable, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// The file given.
    pub from: PathBuf,
    /// Where it will be, relative to the contract folder.
    pub to: String,
    /// `H("hp/binary/1", bytes)`.
    pub hash: Hash,
}

/// What will be done. While it lives no node can start in the folder.
#[derive(Debug)]
pub struct Plan {
    /// The configuration as it is.
    pub config: Config,
    /// The last ledger that counts.
    pub seq: Seq,
    /// What the old chain hands on.
    pub heritage: Heritage,
    /// The last ledger closed here.
    pub tip: Seq,
    /// Ledger 0 of the new chain.
    pub genesis: Genesis,
    /// Settings that change, each with its old and new value.
    pub settings: Vec<(&'static str, String, String)>,
    /// Where the state comes from.
    pub source: Source,
    /// The state's files and bytes.
    pub held: folder::Held,
    /// Another executable.
    pub binary: Option<Binary>,
    /// Inputs that are not part of the new chain.
    pub lost: Lost,
    shared: SharedConfig,
    text: String,
    new_text: String,
    _lock: Lock,
}

impl Plan {
    /// Finds out what recovering would do. Changes nothing.
    pub fn make(ask: &Ask) -> Result<Plan, RecoverError> {
        let dir = &ask.dir;
        let (text, config) = Config::load_text(dir)?;
        let lock = Lock::take(dir)?;
        if !dir.join("hist/ledger.db").exists() {
            return Err(RecoverError::NoChain(dir.clone()));
        }
        let archive = Archive::open(dir)?;
        let Some(genesis) = archive.genesis()? else { return Err(RecoverError::NoChain(dir.clone())) };
        if genesis.contract_id != config.contract.id {
            let (file, mine, chain) = (config.file, config.contract.id, genesis.contract_id);
            return Err(NodeError::Contract { file, mine, chain }.into());
        }
        let Some(old) = archive.settings()?.and_then(|bytes| wire::decode::<SharedConfig>(&bytes).ok()) else {
            return refused("the database does not hold the settings of its chain");
        };
        let tip = archive.tip()?;
        let heritage = archive.heritage(ask.seq, old.input_window)?.map_err(RecoverError::Refused)?;
        if let Some(agreed) = heritage.agreed.as_ref().filter(|agreed| agreed.state_root != ask.root) {
            return refused(format!(
                "--root: ledger {} says that the run of ledger {} led to {}, which a quorum agreed on; to go on from another \
                 state, name a later ledger that none follows (the last one here is {tip})",
                ask.seq + 1,
                ask.seq,
                agreed.state_root
            ));
        }

        let unl = members(ask.unl.as_ref().unwrap_or(&heritage.unl))?;
        let threshold = ask.threshold.unwrap_or(config.consensus.threshold);
        if !(config::THRESHOLD_MIN..=100).contains(&threshold) {
            return refused(format!("--threshold: expected {} to 100, got {threshold}", config::THRESHOLD_MIN));
        }
        let binary = ask.binary.as_deref().map(|from| read_binary(dir, from)).transpose()?;
        let with = |contract_id| Recovered {
            contract_id,
            genesis_time_ms: heritage.time_ms,
            unl: &unl,
            threshold,
            binary: binary.as_ref().map(|binary| &*binary.to),
        };
        let parse = |text: &str| {
            let same_key = |_: &Path| Ok(config.secret.to_hex());
            Config::parse(text, &config.file, &config.dir, &same_key)
        };
        // The id comes last: it follows from all else.
        let shared = parse(&config::recovered(&text, &config, &with(config.contract.id))?)?.shared();
        let ancestor = Ancestor {
            contract_id: genesis.contract_id,
            chain_id: genesis.chain_id(),
            seq: ask.seq,
            ledger_hash: heritage.hash,
            users_root: users_root(&heritage.users),
            n_users: u32::try_from(heritage.users.len()).expect("users are bounded by the nodes' connections"),
            keys_root: keys_root(&heritage.keys),
            n_keys: heritage.keys.len() as u64,
            binary: binary.as_ref().map(|binary| binary.hash),
        };
        let genesis = Genesis {
            ver: VERSION,
            contract_id: Hash::ZERO,
            unl: unl.clone(),
            threshold: u8::try_from(threshold).expect("at most 100"),
            cfg_hash: Hash::tagged("hp/cfg/1", &shared),
            state_root: ask.root,
            time_ms: heritage.time_ms,
            ancestor: Some(ancestor),
        }
        .with_derived_id();
        let new_text = config::recovered(&text, &config, &with(genesis.contract_id))?;

        let (source, held) = find_state(ask)?;
        let lost = Lost::count(&archive, ask.seq, &config.key)?;
        let settings = old.differences(&shared);
        Ok(Plan {
            config,
            seq: ask.seq,
            heritage,
            tip,
            genesis,
            settings,
            source,
            held,
            binary,
            lost,
            shared,
            text,
            new_text,
            _lock: lock,
        })
    }

    /// Where the old chain will be found.
    pub fn before(&self) -> PathBuf {
        self.config.dir.join(switch::before(&self.heritage.genesis.chain_id()))
    }

    /// Where the list of lost inputs will be; `None` when there are none.
    pub fn lost_list(&self) -> Option<PathBuf> {
        let name = format!("recover-{}", self.genesis.contract_id.short());
        (self.lost.all() > 0).then(|| self.config.dir.join("diag").join(name).join("lost.jsonl"))
    }

    /// Makes all that is new, beside what is there, durably. `tell` hears what is being done.
    pub fn prepare(&self, tell: &mut dyn FnMut(&str)) -> Result<(), RecoverError> {
        let dir = &self.config.dir;
        let aside = switch::clear(dir)?;
        if let Some(binary) = &self.binary {
            tell("copying the executable");
            place_binary(dir, binary)?;
        }
        if let Some(list) = self.lost_list() {
            tell("listing the inputs that are lost");
            lost::write(&Archive::open(dir)?, self.seq, &list)?;
        }
        tell("making the database");
        let mut store = Store::open(&aside)?;
        let Heritage { users, keys, .. } = &self.heritage;
        store.set_recovered(&wire::encode(&self.shared), &self.genesis, users, keys)?;
        store.close()?;
        let root = self.genesis.state_root;
        match &self.source {
            Source::Present => {}
            Source::Folder(from) => {
                tell("copying the state");
                folder::copy(from, &aside.join("state"), root)?;
            }
            Source::Before => {
                tell("copying the state as it was before the last run");
                folder::copy_before(dir, root, &aside.join("scratch"), &aside.join("state"))?;
            }
        }
        switch::seal(dir, &self.heritage.genesis.chain_id(), &self.text, &self.new_text)
    }
}

/// Checks a UNL and sorts it.
fn members(given: &[NodeKey]) -> Result<Vec<NodeKey>, RecoverError> {
    let mut unl = given.to_vec();
    unl.sort_unstable();
    if !(1..=UNL_MAX).contains(&unl.len()) {
        return refused(format!("--unl: expected 1 to {UNL_MAX} keys, got {}", unl.len()));
    }
    if let Some(pair) = unl.windows(2).find(|pair| pair[0] == pair[1]) {
        return refused(format!("--unl: {} stands twice", pair[0]));
    }
    match unl.iter().find(|node| !crypto::is_key(&node.0)) {
        Some(node) => refused(format!("--unl: {node} is no public key: nobody could vote with it")),
        None => Ok(unl),
    }
}

/// The folder that holds the state asked for.
fn find_state(ask: &Ask) -> Result<(Source, folder::Held), RecoverError> {
    let mut looked = Vec::new();
    let mut is_it = |path: &Path| match folder::look(path) {
        Ok(held) if held.root == ask.root => Some(held),
        Ok(held) => {
            looked.push(format!("  {}  root {}", path.display(), held.root));
            None
        }
        Err(error) => {
            looked.push(format!("  {}  {:#}", path.display(), anyhow::Error::new(error)));
            None
        }
    };
    if let Some(given) = &ask.state {
        if let Some(held) = is_it(given) {
            return Ok((Source::Folder(given.clone()), held));
        }
    } else {
        for path in folder::places(&ask.dir) {
            if let Some(held) = is_it(&path) {
                let present = path == ask.dir.join("state");
                return Ok((if present { Source::Present } else { Source::Folder(path) }, held));
            }
        }
        if folder::has_before(&ask.dir, ask.root)? {
            return Ok((Source::Before, folder::Held { root: ask.root, files: 0, bytes: 0 }));
        }
    }
    Err(RecoverError::NoState { root: ask.root, looked: looked.join("\n") })
}

/// The executable's hash, and its name below bin/, in which the hash is: the old one stays what it was.
fn read_binary(dir: &Path, from: &Path) -> Result<Binary, RecoverError> {
    let cannot = || io_error("read", from);
    let meta = fs::metadata(from).map_err(cannot())?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return refused(format!("--binary: {} is not a file that can be executed", from.display()));
    }
    if meta.len() > BINARY_BYTES_MAX {
        let mib = meta.len() >> 20;
        return refused(format!("--binary: {} has {mib} MiB, over {}", from.display(), BINARY_BYTES_MAX >> 20));
    }
    let bytes = fs::read(from).map_err(cannot())?;
    let hash = Hash::tagged("hp/binary/1", &bytes);
    let Some(name) = from.file_name().and_then(|name| name.to_str()) else {
        return refused(format!("--binary: {} has no name in UTF-8", from.display()));
    };
    // Not one suffix after the other when a chain is recovered again.
    let name = match name.rsplit_once('.') {
        Some((stem, end)) if end.len() == 8 && dir.join("bin").join(name) == from => stem,
        _ => name,
    };
    Ok(Binary { from: from.to_owned(), to: format!("bin/{name}.{}", hash.short()), hash })
}

/// Copies the executable to its place, unless it is there.
fn place_binary(dir: &Path, binary: &Binary) -> Result<(), RecoverError> {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).map_err(io_error("create", &bin))?;
    let to = dir.join(&binary.to);
    let is_there = |path: &Path| fs::read(path).is_ok_and(|bytes| Hash::tagged("hp/binary/1", &bytes) == binary.hash);
    if is_there(&to) {
        return Ok(());
    }
    let copied = tempfile::Builder::new().prefix(".hp-").tempfile_in(&bin).map_err(io_error("write in", &bin))?;
    fs::copy(&binary.from, copied.path()).map_err(io_error("copy", &binary.from))?;
    fs::set_permissions(copied.path(), fs::Permissions::from_mode(0o755)).map_err(io_error("chmod", &to))?;
    copied.as_file().sync_all().map_err(io_error("write", &to))?;
    if !is_there(copied.path()) {
        return refused(format!("{} changed while it was copied", binary.from.display()));
    }
    // Closed before it gets its name: a file that is open for writing cannot be executed.
    let path = copied.into_temp_path();
    path.persist(&to).map_err(|error| io_error("write", &to)(error.error))?;
    sync(&bin)
}

fn sync(folder: &Path) -> Result<(), RecoverError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync", folder))
}
