//! A settlement bus of our own, with the real one's HTTP API: for trying, and for tests. It proves nothing to anybody else:
//! whoever runs it can make another one.
//!
//! In reading order: `books` (who has what; which operation is accepted), `intake` (reads what is handed in), `log` (the
//! history on disk), `bus` (the three together), `api` (routes and answers), `serve` (connections), [`Hook`] (what tests want).
//!
//! One validator, which this is, completes every operation. An operation is *unconfirmed* when it was accepted, and *confirmed*
//! when it is on disk; its place is its line in the log.

mod api;
mod books;
mod bus;
mod hooks;
mod intake;
mod log;
mod serve;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, spawn_blocking},
};
use tracing::{info, warn};

pub use self::{books::FEE, hooks::Hook, log::LogError};
use self::{
    books::{Books, Change, Entry},
    bus::Bus,
    log::Log,
};
use super::{Address, Amount, KeyFileError, Network, read_key, tx::txv_of};
use crate::{crypto::SecretKey, types::Hash};

/// The log's name in the bus's folder.
pub const LOG_FILE: &str = "bus.log";

/// The validator's key's name there.
pub const KEY_FILE: &str = "validator.key";

/// Bytes of the log in a bus's folder that a copy of it is made of, also while the bus runs: whole lines, with all that was told
/// to anybody by now. `None` where there is no log.
pub fn copied_bytes(folder: &Path) -> io::Result<Option<u64>> {
    match log::whole_bytes(&folder.join(LOG_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        bytes => bytes.map(Some),
    }
}

/// What a bus is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its log and key are; made if it is missing. One bus at a time.
    pub folder: PathBuf,
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Which network's addresses and number it has.
    pub network: Network,
    /// Its own bootstrap, `mbs`; drawn when the log is made, if none is given. One that differs from the log's is an error.
    pub bootstrap: Option<Hash>,
    /// Money for addresses that never had any.
    pub fund: Vec<(Address, Amount)>,
    /// Subnets' bootstraps that are there from the beginning.
    pub deployed: Vec<Hash>,
    /// Whether `POST /v1/embedded/hooks` works.
    pub hooks: bool,
}

impl Options {
    /// A development bus in this folder, on any free port of this machine.
    pub fn new(folder: impl Into<PathBuf>) -> Options {
        Options {
            folder: folder.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            network: Network::Development,
            bootstrap: None,
            fund: Vec::new(),
            deployed: Vec::new(),
            hooks: false,
        }
    }
}

/// Why there is no bus.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The folder cannot be made or written.
    #[error("cannot use the folder {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The validator's key.
    #[error("cannot use the validator's key")]
    Key(#[from] KeyFileError),
    /// The log is another bus's.
    #[error("{}: {what}", path.display())]
    Differs {
        /// The log.
        path: PathBuf,
        /// What is different.
        what: String,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Money or a subnet from the beginning.
    #[error("cannot prepare the bus: {0}")]
    Prepare(String),
}

impl StartError {
    /// Whether another process has what this one needs.
    pub fn is_taken(&self) -> bool {
        match self {
            StartError::Listen { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            StartError::Log(LogError::Taken { .. }) => true,
            _ => false,
        }
    }

    /// Whether the log was damaged.
    pub fn is_damage(&self) -> bool {
        matches!(self, StartError::Log(LogError::Damaged { .. }))
    }
}

/// First line of the log: whose it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    hp_msb_log: u32,
    network: String,
    bootstrap: Hash32,
    validator: String,
}

/// A hash as JSON has it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Hash32(Hash);

impl TryFrom<String> for Hash32 {
    type Error = crate::types::ParseHexError;
    fn try_from(text: String) -> Result<Hash32, Self::Error> {
        text.parse().map(Hash32)
    }
}

impl From<Hash32> for String {
    fn from(hash: Hash32) -> String {
        hash.0.to_string()
    }
}

/// A running bus. Dropped, it stops at once, as if it was killed; see [`Embedded::stop`].
#[derive(Debug)]
pub struct Embedded {
    bus: Arc<Bus>,
    address: SocketAddr,
    bootstrap: Hash,
    validator: Address,
    log: PathBuf,
    server: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Embedded {
    /// Opens or makes the bus's folder, and listens. Needs a tokio runtime with timers and sockets.
    pub async fn start(options: Options) -> Result<Embedded, StartError> {
        let listen = options.listen;
        // Before the files: two buses of one address would be told so, whatever their folders are.
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|source| StartError::Listen { address: listen, source })?;
        let address = listener.local_addr().map_err(|source| StartError::Listen { address: listen, source })?;
        let path = options.folder.join(LOG_FILE);
        let opening = options.clone();
        let opened = spawn_blocking(move || open(&opening)).await;
        let (books, log, key) = opened.map_err(|error| StartError::Prepare(error.to_string()))??;
        let (bootstrap, validator) = (books.bootstrap, books.validator);
        let bus = Arc::new(Bus::new(books, log, key, options.hooks)?);
        let writer = tokio::spawn(bus.clone().write());
        let server = tokio::spawn(serve::serve(listener, bus.clone()));
        let embedded = Embedded { bus, address, bootstrap, validator, log: path, server, writer };
        embedded.prepare(&options).await?;
        Ok(embedded)
    }

    async fn prepare(&self, options: &Options) -> Result<(), StartError> {
        for (address, amount) in &options.fund {
            if !self.bus.with_books(|books| books.unconfirmed.balances.contains_key(address)) {
                self.bus.fund(*address, *amount).await.map_err(StartError::Prepare)?;
            }
        }
        for bs in &options.deployed {
            let change = Change::Bootstrap(*bs);
            if !self.bus.with_books(|books| books.unconfirmed.is_deployed(bs)) {
                self.bus.change(change).await.map_err(StartError::Prepare)?;
            }
        }
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a client takes.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its own bootstrap, `mbs`.
    pub fn bootstrap(&self) -> Hash {
        self.bootstrap
    }

    /// Who completes operations, and gets most of the fees.
    pub fn validator(&self) -> Address {
        self.validator
    }

    /// Where its history is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Gives money to an address, and returns what it has then.
    pub async fn fund(&self, address: Address, amount: Amount) -> Result<Amount, StartError> {
        self.bus.fund(address, amount).await.map_err(StartError::Prepare)
    }

    /// Does what a test wants.
    pub async fn hook(&self, hook: Hook) -> Result<(), StartError> {
        self.bus.hook(hook).await.map_err(StartError::Prepare)
    }

    /// Ends it: no more requests, then what is due is written, then the files are free again.
    pub async fn stop(mut self) {
        self.server.abort();
        // An aborted task is a cancelled one, and nothing else happens to this one.
        let _ = (&mut self.server).await;
        self.bus.close();
        let _ = (&mut self.writer).await;
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.server.abort();
        self.writer.abort();
    }
}

/// Reads the folder, or makes it. Blocks.
fn open(options: &Options) -> Result<(Books, Log, SecretKey), StartError> {
    let folder = &options.folder;
    let failed = |source| StartError::Folder { path: folder.clone(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.join(LOG_FILE);
    let key_file = folder.join(KEY_FILE);
    let is_new = !fs::exists(&path).map_err(failed)?;
    if is_new && !fs::exists(&key_file).map_err(failed)? {
        make_key(&key_file).map_err(failed)?;
    }
    let key = read_key(&key_file)?;
    let validator = Address::new(options.network, key.node_key().0);
    if is_new {
        let head = Head {
            hp_msb_log: 1,
            network: options.network.to_string(),
            bootstrap: Hash32(options.bootstrap.unwrap_or_else(|| Hash(random()))),
            validator: validator.to_string(),
        };
        Log::create(&path, &serde_json::to_string(&head).expect("a head is JSON"))?;
    }
    let (books, log) = read_log(options, &path, validator)?;
    let (lines, mbs) = (books.confirmed_length(), books.bootstrap);
    info!(log = %path.display(), lines, %mbs, "the embedded settlement bus is open");
    Ok((books, log, key))
}

fn read_log(options: &Options, path: &Path, validator: Address) -> Result<(Books, Log), StartError> {
    let differs = |what: String| StartError::Differs { path: path.to_owned(), what };
    let mut read: Option<Result<Books, StartError>> = None;
    let opened = Log::open(path, |_, json| match &mut read {
        None => {
            let head: Head = serde_json::from_str(json).map_err(|error| format!("it is no bus's log: {error}"))?;
            read = Some(begin(&head, options, validator).map_err(differs));
            Ok(())
        }
        Some(Ok(books)) => {
            let entry: Entry = serde_json::from_str(json).map_err(|error| format!("it is no entry: {error}"))?;
            let change = Change::read(entry, options.network)?;
            // Signatures are not checked again: the chain of hashes says that these are the lines that were written.
            books.check_other(&change)?;
            books.accept(change);
            books.confirm();
            Ok(())
        }
        Some(Err(_)) => Ok(()),
    });
    let (log, cut) = opened?;
    let books = read.unwrap_or_else(|| Err(differs("it is empty".to_owned())))?;
    if cut > 0 {
        warn!(log = %path.display(), bytes = cut, "the bus's log had an unfinished line at its end, which was cut off");
    }
    Ok((books, log))
}

fn begin(head: &Head, options: &Options, validator: Address) -> Result<Books, String> {
    if head.hp_msb_log != 1 {
        return Err(format!("version {} of the log is not known here", head.hp_msb_log));
    }
    if head.network != options.network.to_string() {
        return Err(format!("this is the log of a {} bus, not of a {} one", head.network, options.network));
    }
    if head.validator != validator.to_string() {
        return Err(format!("this is the log of {}, but {KEY_FILE} is the key of {validator}", head.validator));
    }
    let bootstrap = head.bootstrap.0;
    match options.bootstrap {
        Some(wanted) if wanted != bootstrap => {
            Err(format!("this is the log of the bus {bootstrap}, but the bus {wanted} is wanted"))
        }
        _ => Ok(Books::new(options.network, bootstrap, validator, txv_of(&[*validator.key()]))),
    }
}

/// Writes a new key: whole, on disk, and for the owner alone from its first moment.
fn make_key(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let key = zeroize::Zeroizing::new(hex::encode(SecretKey::generate().seed()));
    writeln!(file, "{}", *key)?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}
