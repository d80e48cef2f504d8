//! Text of `cfg/hp.cfg` -> a [`Config`] whose every value is already valid.
//!
//! Pure, but for the `load` functions, which read the files and check their modes. The order below is that of
//! `cfg/hp.cfg`, the documented example, which `hp new` fills in. The prototype's JSON has the same keys.
//!
//! In here: `tree` reads both notations, `table` gives typed values and errors of one table, `read` makes the
//! [`Config`]; `shared` is what nodes must have alike, `quorum` what it tolerates, `edit` changes a text in place, `show`
//! says what holds.

mod edit;
mod peer;
mod quorum;
mod read;
mod shared;
mod show;
mod table;
mod tree;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use borsh::{BorshDeserialize, BorshSerialize};

pub use self::peer::{ParsePeerError, PeerAddr};
pub use self::read::HIDDEN;
use self::read::{Keys, parse};
pub use self::{
    edit::{Document, Recovered, quoted, recovered, rekeyed},
    quorum::Tolerance,
    shared::{SharedConfig, caps},
    show::{Shown, shown},
    tree::Format,
};
use crate::{
    crypto::{SecretKey, SecretKeyError},
    types::{Execute, Hash, NodeKey, WallMs},
};

/// The documented example, and the text that `hp new` fills in.
pub const EXAMPLE: &str = include_str!("../../cfg/hp.cfg");

/// Seed of the key in [`EXAMPLE`]. Everybody knows it, so [`Config::load`] refuses it.
pub(crate) const EXAMPLE_SEED: [u8; 32] = [0; 32];

/// Bytes of `hp.cfg` or of a key file. A longer file is an error, and is not read further.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Members of a UNL. A longer `unl` is an error.
pub const UNL_MAX: usize = 128;

/// Addresses in `peers`. A longer list is an error.
pub const PEERS_MAX: usize = 1_024;

/// Arguments in `binargs`. A longer list is an error.
pub const ARGS_MAX: usize = 16_384;

/// Variables in `contract.env`. More are an error.
pub const ENV_MAX: usize = 1_024;

/// Paths in `contract.read`. More are an error.
pub const READ_MAX: usize = 256;

/// Read-only runs at a time that may be allowed: each is a copy of the state and a resident process.
pub const READS_MAX: u64 = 256;

/// Seconds that one of them may be allowed.
pub const READ_TIME_S_MAX: u64 = 300;

/// Bytes to which `http.body_max` may be raised: an input of the longest size, as JSON in JSON.
pub const HTTP_BODY_MAX: u64 = 32 << 20;

/// Origins in `http.cors`. More are an error.
pub const CORS_MAX: usize = 64;

/// Names in `http.names`. More are an error.
pub const NAMES_MAX: usize = 64;

/// The lowest threshold with which two quorums of any UNL share an honest node.
pub const THRESHOLD_MIN: u64 = 67;

/// Bytes to which `pubmaxsize` may be raised.
pub const PUBMAXSIZE_MAX: u64 = 4 << 20;
/// The fewest users that a ledger may be given room for: with the largest UNL each member has a seat for one of its own.
pub const USERS_MIN: u64 = 256;
/// The most: a host names all of its users in one message.
pub const USERS_MAX: u64 = 30_000;

/// The configuration of one node. Every value is within its limits; paths are resolved against [`Config::dir`].
#[derive(Debug, Clone)]
pub struct Config {
    /// The contract folder.
    pub dir: PathBuf,
    /// The file that was read, for messages.
    pub file: PathBuf,
    /// How that file is written.
    pub format: Format,
    /// This node's public key.
    pub key: NodeKey,
    /// This node's secret key.
    pub secret: SecretKey,
    /// Where the secret key is, if not in `hp.cfg` itself.
    pub seckey_file: Option<PathBuf>,
    /// The executable.
    pub binary: PathBuf,
    /// What the executable gets: `binary` as it is written in the file, then `binargs`. Never empty.
    pub argv: Vec<String>,
    /// Addresses of other nodes.
    pub peers: Vec<PeerAddr>,
    /// Keys of the nodes that decide together: sorted, 1 to [`UNL_MAX`], each once.
    pub unl: Vec<NodeKey>,
    /// Address of both ports.
    pub ip: IpAddr,
    /// Port for nodes; 0: any free one.
    pub peerport: u16,
    /// Milliseconds between ledgers while idle.
    pub roundtime_ms: u64,
    /// Port for users; 0: any free one. `None`: no users.
    pub pubport: Option<u16>,
    /// Bytes of one input.
    pub pubmaxsize: u64,
    /// Inputs a minute of one connection. `None`: no limit.
    pub pubmaxcpm: Option<u32>,
    /// Bytes of the disk below which the node neither votes nor runs the contract; 0: none.
    pub disk_reserve: u64,
    /// `[consensus]`.
    pub consensus: Consensus,
    /// `[contract]`.
    pub contract: Contract,
    /// `[user]`.
    pub user: User,
    /// `[mesh]`.
    pub mesh: Mesh,
    /// `[log]`.
    pub log: Log,
    /// `[msb]`.
    pub msb: Msb,
    /// `[http]`.
    pub http: Http,
}

/// `[consensus]`: when and with how many votes a ledger closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consensus {
    /// Percent of the UNL, [`THRESHOLD_MIN`] to 100.
    pub threshold: u64,
    /// Whether an input closes a ledger before `roundtime` is over.
    pub eager: bool,
    /// Least time between ledgers.
    pub min_round_ms: u64,
    /// Wait for slower proposals.
    pub grace_ms: u64,
    /// First time limit of one attempt.
    pub attempt_ms: u64,
    /// Resolution of ledger time.
    pub time_res_ms: u64,
    /// Ledgers an input may wait, and within which it is taken once.
    pub input_window: u64,
}

/// `[contract]`: which contract, and what one run of it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    /// Name of the contract. Of a legacy file: H("hp/legacy/1", sorted UNL).
    pub id: Hash,
    /// When the chain begins. 0 in a legacy file.
    pub genesis_time_ms: WallMs,
    /// Environment of the executable, beside what is always there.
    pub env: BTreeMap<String, String>,
    /// Wall time.
    pub time_limit_ms: u64,
    /// Processor time in seconds. `None`: no limit.
    pub cpu_s: Option<u64>,
    /// Memory. `None`: no limit.
    pub memory_bytes: Option<u64>,
    /// Open files, beside two a user.
    pub files: u64,
    /// Processes.
    pub processes: u64,
    /// Size of one file.
    pub file_bytes: u64,
    /// Output to all users.
    pub output_bytes: u64,
    /// Output to one user; not over `output_bytes`.
    pub output_user_bytes: u64,
    /// Bytes of the state after a run; 0: no limit.
    pub state_bytes: u64,
    /// Files, folders and symlinks of the state after a run; 0: no limit.
    pub state_files: u64,
    /// What is kept of stdout and stderr.
    pub log_bytes: u64,
    /// When the party line ends at the latest, from the start of the run.
    pub npl_window_ms: u64,
    /// How the state before a run is kept.
    pub state_backend: StateBackend,
    /// What keeps it from doing more than computing.
    pub containment: Containment,
    /// The user it runs as. `None`: the node's.
    pub run_as: Option<RunAs>,
    /// Whether it may use the network.
    pub network: bool,
    /// Files and folders it may read beside the system's and its own, resolved against the contract folder.
    pub read: Vec<PathBuf>,
}

/// Whether a contract is kept from doing more than computing. Each node decides for itself: its machine is at stake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containment {
    /// By every guard that works here.
    Auto,
    /// By every guard, or the node does not start.
    Required,
    /// Not at all.
    Off,
}

/// A user that is not root, and a group that is not root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    /// The user.
    pub uid: u32,
    /// The group, and the only one.
    pub gid: u32,
}

impl std::str::FromStr for RunAs {
    type Err = ();

    /// Reads `uid:gid`, two numbers over 0.
    fn from_str(text: &str) -> Result<RunAs, ()> {
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            // The largest one means "no change" to the kernel.
            true => text.parse().ok().filter(|id| (1..u32::MAX).contains(id)).ok_or(()),
            false => Err(()),
        };
        let (uid, gid) = text.split_once(':').ok_or(())?;
        Ok(RunAs { uid: number(uid)?, gid: number(gid)? })
    }
}

impl fmt::Display for RunAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// How the state before a run is kept. Each node decides for itself: the state's root is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateBackend {
    /// As this version thinks best.
    Auto,
    /// A copy of it.
    Shadow,
    /// Linux's overlay file system.
    Overlay,
}

/// `[user]`: what users may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Which inputs are taken.
    pub inputs: Inputs,
    /// Users of one ledger, of all nodes together.
    pub users_max: usize,
    /// Connections at a time.
    pub connections_max: usize,
    /// Connections at a time from one address.
    pub per_address: usize,
    /// Handshakes of one address that may fail a minute, or be under way; 0: any number.
    pub failed_per_minute: u32,
    /// Output waiting for one user.
    pub queue_bytes: usize,
    /// Read-only runs at a time; 0: none are done.
    pub reads_max: usize,
    /// How long one may take.
    pub read_time_ms: u64,
    /// With what the port speaks TLS. `None`: it speaks plain text.
    pub tls: Option<TlsFiles>,
}

/// Where a port's certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those that vouch for it, PEM.
    pub cert: PathBuf,
    /// Its secret key, PEM.
    pub key: PathBuf,
}

/// `[http]`: the API and the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Address and port; port 0: any free one. `None`: there is none.
    pub listen: Option<SocketAddr>,
    /// Whether inputs are taken and the contract is run for whoever asks.
    pub api_tx_exposed: bool,
    /// Origins of pages elsewhere that may read answers; `*` is any.
    pub cors: Vec<String>,
    /// Host names under which it answers besides addresses and `localhost`, in lower case; `*` is any.
    pub names: Vec<String>,
    /// Where the token is that operators show. `None`: nothing of theirs is done.
    pub admin_token_file: Option<PathBuf>,
    /// Bytes of a request's body.
    pub body_max: usize,
    /// Connections at a time.
    pub connections_max: usize,
    /// Connections at a time from one address.
    pub per_address: usize,
    /// With what it speaks TLS. `None`: it speaks plain text.
    pub tls: Option<TlsFiles>,
}

/// Which inputs are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Inputs {
    /// Signed ones, and raw ones of a session.
    Any,
    /// Only those that carry the user's signature.
    Signed,
}

/// `[mesh]`: links to other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// Who may connect.
    pub admit: Admit,
    /// Links at a time.
    pub max_connections: usize,
}

/// Which nodes may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// Any node of this contract.
    Open,
    /// Members of the UNL.
    Unl,
}

/// `[log]`: what goes to stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least important events that are logged.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Files kept of each of stdout and stderr of the contract, the one that is written among them.
    pub contract_files: usize,
}

/// Importance of a log event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// The operator must act.
    Error,
    /// A peer, user or contract misbehaved.
    Warn,
    /// One line a ledger.
    Info,
    /// One line a message.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As the file writes it.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// `[msb]`: whether, where and how often the chain is settled on a bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Msb {
    /// How this node reaches the bus.
    pub mode: MsbMode,
    /// Which network of the bus.
    pub network: MsbNetwork,
    /// The bus's own bootstrap; see [`Msb::bus_bootstrap`] for one that is left out.
    pub bootstrap: Option<Hash>,
    /// The subnet's; without it the contract's id stands for it.
    pub subnet: Option<Hash>,
    /// Ledgers after which a range of them is settled.
    pub settle_every: u64,
    /// Time after the first output of a range at which it is settled.
    pub settle_max_delay_ms: u64,
    /// Time between two members that post.
    pub settle_slot_ms: u64,
    /// Where the key that pays is, if it is not the node's own.
    pub key_file: Option<PathBuf>,
    /// Certificate authorities that are believed over https, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// When users' outputs are final. [`Execute::Settled`] never without a bus.
    pub execute: Execute,
}

/// How a node reaches the settlement bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MsbMode {
    /// It does not.
    Off,
    /// At this URL.
    Http(String),
    /// It runs one itself, which listens here.
    Embedded(SocketAddr),
}

impl MsbMode {
    /// Where the bus is asked. `None` where there is none, or where it listens on a port that it takes by chance.
    pub fn url(&self) -> Option<String> {
        match self {
            MsbMode::Off => None,
            MsbMode::Http(url) => Some(url.clone()),
            MsbMode::Embedded(listen) if listen.port() == 0 => None,
            MsbMode::Embedded(listen) => Some(own_url(*listen)),
        }
    }
}

/// Where a bus is asked, on its own machine, that listens here.
pub fn own_url(listen: SocketAddr) -> String {
    // One that listens everywhere is nowhere.
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listen.port()))
}

impl Msb {
    /// The bootstrap of the bus that is settled on. `None` where none is named that is not a bus of one's own.
    pub fn bus_bootstrap(&self) -> Option<Hash> {
        bus_bootstrap(self.network, self.bootstrap)
    }
}

/// A bus's bootstrap as it is named; that of the network `development` need not be.
pub fn bus_bootstrap(network: MsbNetwork, named: Option<Hash>) -> Option<Hash> {
    named.or_else(|| (network == MsbNetwork::Development).then(development_bootstrap))
}

/// The bootstrap of a bus of one's own that is given none: the same everywhere, since it proves nothing to others anyway,
/// and stays so for a chain that goes on as another one.
pub fn development_bootstrap() -> Hash {
    Hash::tagged("hp/msb-development/1", &())
}

/// A network of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum MsbNetwork {
    /// Where a fee is money.
    Mainnet,
    /// The public one for trying.
    Testnet,
    /// One of one's own.
    Development,
}

/// A bootstrap that may be left out. Its bytes are 32, zeros where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(pub Option<Hash>);

/// Why there is no configuration. Names file, key and value; never shows a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no `cfg/hp.cfg`.
    #[error("{} is not a contract folder: it has no cfg/hp.cfg (`hp new {}` makes one)", dir.display(), dir.display())]
    NoFile {
        /// The folder.
        dir: PathBuf,
    },
    /// Something else than a file, or a file too long, or not UTF-8.
    #[error("{}: {what}", path.display())]
    NotText {
        /// Which file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// Others may read the secret key.
    #[error("{0}: mode is {mode:04o}, but the file holds a secret key: expected 0600 or 0400 (chmod 600 {0})", path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Neither TOML nor JSON.
    #[error("{}:{line}:{column}: {message}", file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that is missing, unknown or has a wrong value.
    #[error("{}{}: {key}: {problem}", file.display(), Line(*line))]
    Key {
        /// Which file.
        file: PathBuf,
        /// Line of the key, from 1, if it is known.
        line: Option<usize>,
        /// The key with its table, as in `consensus.threshold`.
        key: String,
        /// What is wrong.
        problem: Problem,
    },
    /// The file could not be changed in place.
    #[error("{}: cannot change {key} in place; change the file by hand", file.display())]
    Edit {
        /// Which file.
        file: PathBuf,
        /// The key with its table.
        key: String,
    },
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It must be there.
    #[error("is missing{0}")]
    Missing(&'static str),
    /// No such key.
    #[error("unknown key; {0}")]
    Unknown(String),
    /// Another kind of value.
    #[error("expected {expected}, got {got}")]
    Expected {
        /// What may stand here.
        expected: String,
        /// What stands here.
        got: String,
    },
    /// It does not fit another key.
    #[error("{0}")]
    Conflict(String),
    /// The file that it names cannot be used.
    #[error("{0}")]
    KeyFile(String),
    /// A wrong secret key.
    #[error(transparent)]
    Secret(#[from] SecretKeyError),
}

struct Line(Option<usize>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

impl fmt::Display for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Inputs::Any => "any",
            Inputs::Signed => "signed",
        })
    }
}

impl fmt::Display for MsbNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MsbNetwork::Mainnet => "mainnet",
            MsbNetwork::Testnet => "testnet",
            MsbNetwork::Development => "development",
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(hash) => write!(f, "{hash}"),
            None => f.write_str("none"),
        }
    }
}

impl Config {
    /// Path of the configuration in a contract folder.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("cfg/hp.cfg")
    }

    /// Reads `dir`/cfg/hp.cfg, and the key file it names. Blocks; for use before the runtime starts.
    ///
    /// Refuses files that others may read while they hold a secret key, and the published example's key.
    pub fn load(dir: &Path) -> Result<Config, ConfigError> {
        let (_, config) = Config::load_text(dir)?;
        if config.secret.seed() == EXAMPLE_SEED {
            let problem = "this is the published example's key, which everybody knows; `hp rekey` draws a new one";
            let (file, key) = (config.file, "seckey".to_owned());
            return Err(ConfigError::Key { file, line: None, key, problem: Problem::Conflict(problem.to_owned()) });
        }
        Ok(config)
    }

    /// As [`Config::load`], with the text, and for the example's key too: for `hp rekey`.
    pub fn load_text(dir: &Path) -> Result<(String, Config), ConfigError> {
        let file = Config::path(dir);
        let (text, mode) = match read_file(&file) {
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(ConfigError::NoFile { dir: dir.to_owned() });
            }
            other => other?,
        };
        let config = Config::parse(&text, &file, dir, &read_secret)?;
        if config.seckey_file.is_none() {
            check_mode(&file, mode)?;
        }
        Ok((text, config))
    }

    /// Reads another node's configuration for its network: its secret key is neither read nor needed, and `secret` is
    /// the published example's. `key` is that node's, or the example's where the file has none.
    pub fn load_of_another(file: &Path) -> Result<Config, ConfigError> {
        let (text, _) = read_file(file)?;
        parse(&text, file, Path::new(""), &Keys::OfAnother)
    }

    /// Reads the text of a configuration. Pure: `read_key_file` is called with the resolved `seckey_file`, if any.
    ///
    /// `file` is the name for errors, `dir` the contract folder.
    pub fn parse(
        text: &str,
        file: &Path,
        dir: &Path,
        read_key_file: &dyn Fn(&Path) -> Result<String, ConfigError>,
    ) -> Result<Config, ConfigError> {
        parse(text, file, dir, &Keys::Own(read_key_file))
    }

    /// Whether this node is in the UNL of the file. One that is not observes.
    pub fn is_member(&self) -> bool {
        self.unl.binary_search(&self.key).is_ok()
    }

    /// The subnet under which this contract settles.
    pub fn subnet(&self) -> Hash {
        self.msb.subnet.unwrap_or(self.contract.id)
    }

    /// Nodes that must vote alike.
    pub fn quorum(&self) -> usize {
        self.tolerance().quorum()
    }

    /// What this UNL with this threshold survives; prints as the line for the operator.
    pub fn tolerance(&self) -> Tolerance {
        Tolerance { n: self.unl.len(), threshold: self.consensus.threshold }
    }
}

fn read_file(path: &Path) -> Result<(String, u32), ConfigError> {
    let read_error = |source| ConfigError::Read { path: path.to_owned(), source };
    let not_text = |what: String| ConfigError::NotText { path: path.to_owned(), what };
    // Asked before opening, because opening a fifo waits for a writer.
    if !fs::metadata(path).map_err(read_error)?.is_file() {
        return Err(not_text("not a file".to_owned()));
    }
    let file = fs::File::open(path).map_err(read_error)?;
    let mode = file.metadata().map_err(read_error)?.permissions().mode() & 0o7777;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(not_text(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| not_text(format!("not UTF-8 text at byte {}", error.utf8_error().valid_up_to())))?;
    Ok((text, mode))
}

/// Reads a file that holds a secret: a text, whose mode lets nobody else read it.
pub fn read_secret(path: &Path) -> Result<String, ConfigError> {
    let (text, mode) = read_file(path)?;
    check_mode(path, mode)?;
    Ok(text)
}

fn check_mode(path: &Path, mode: u32) -> Result<(), ConfigError> {
    match mode {
        0o600 | 0o400 => Ok(()),
        _ => Err(ConfigError::Mode { path: path.to_owned(), mode }),
    }
}

#[cfg(test)]
mod tests;
