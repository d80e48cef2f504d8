//! Text of `cfg/hp.cfg` -> a [`Config`] whose every value is already valid.
//!
//! Pure, but for [`Config::load`], which reads the files and checks their modes. The reading order below is that of
//! `cfg/hp.cfg`, the documented example, which `hp new` fills in. The prototype's JSON has the same keys.

mod edit;
mod quorum;
mod shared;
mod tree;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use borsh::{BorshDeserialize, BorshSerialize};

use self::tree::{Entry, Item, Value};
pub use self::{
    edit::{Document, quoted, rekeyed},
    quorum::{Tolerance, quorum},
    shared::{SharedConfig, caps},
    tree::Format,
};
use crate::{
    crypto::{SecretKey, SecretKeyError},
    types::{Hash, NodeKey, WallMs},
};

/// The documented example, and the text that `hp new` fills in.
pub const EXAMPLE: &str = include_str!("../../cfg/hp.cfg");

/// Seed of the key in [`EXAMPLE`]. Everybody knows it, so [`Config::load`] refuses it.
const EXAMPLE_SEED: [u8; 32] = [0; 32];

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

/// The lowest threshold with which two quorums of any UNL share an honest node.
pub const THRESHOLD_MIN: u64 = 67;

/// Bytes to which `pubmaxsize` may be raised.
pub const PUBMAXSIZE_MAX: u64 = 4 << 20;

/// Characters of a wrong value that an error shows.
const SHOWN_MAX: usize = 80;

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
    pub peers: Vec<SocketAddr>,
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
    /// What is kept of stdout and stderr.
    pub log_bytes: u64,
    /// When the party line ends at the latest, from the start of the run.
    pub npl_window_ms: u64,
}

/// `[user]`: what users may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Which inputs are taken.
    pub inputs: Inputs,
    /// Connections at a time.
    pub connections_max: usize,
    /// Connections at a time from one address.
    pub per_address: usize,
    /// Output waiting for one user.
    pub queue_bytes: usize,
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

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Every key, by table; "" is the top of the file.
const KEYS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "hotpocket",
            "pubkey",
            "seckey",
            "seckey_file",
            "keytype",
            "binary",
            "binargs",
            "peers",
            "unl",
            "ip",
            "peerport",
            "roundtime",
            "pubport",
            "pubmaxsize",
            "pubmaxcpm",
            "consensus",
            "contract",
            "user",
            "mesh",
            "log",
        ],
    ),
    ("consensus", &["threshold", "eager", "min_round_ms", "grace_ms", "attempt_ms", "time_res_ms", "input_window"]),
    (
        "contract",
        &[
            "id",
            "genesis_time_ms",
            "env",
            "time_limit_s",
            "cpu_s",
            "memory_mb",
            "files",
            "processes",
            "file_mb",
            "output_mb",
            "output_user_mb",
            "log_kb",
            "npl_window_ms",
        ],
    ),
    ("user", &["inputs", "connections_max", "per_address", "queue_kb"]),
    ("mesh", &["admit", "max_connections"]),
    ("log", &["level", "format"]),
];

/// Tables that later versions have. Accepting one silently would promise what this version does not do.
const NOT_YET: &[&str] = &["http", "msb"];

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
    /// A key of a later version.
    #[error("not supported by this version")]
    NotYet,
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

/// Whose secret key a text is expected to hold.
enum Keys<'a> {
    /// This node's; a `seckey_file` is read by the function.
    Own(&'a dyn Fn(&Path) -> Result<String, ConfigError>),
    /// Another node's, which is none of our business and need not be there.
    OfAnother,
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
        let config = Config::parse(&text, &file, dir, &|key_file| {
            let (text, mode) = read_file(key_file)?;
            check_mode(key_file, mode)?;
            Ok(text)
        })?;
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

fn check_mode(path: &Path, mode: u32) -> Result<(), ConfigError> {
    match mode {
        0o600 | 0o400 => Ok(()),
        _ => Err(ConfigError::Mode { path: path.to_owned(), mode }),
    }
}

fn parse(text: &str, file: &Path, dir: &Path, keys: &Keys<'_>) -> Result<Config, ConfigError> {
    if text.len() as u64 > FILE_BYTES_MAX {
        let what = format!("longer than {FILE_BYTES_MAX} bytes");
        return Err(ConfigError::NotText { path: file.to_owned(), what });
    }
    let (format, entries) = tree::read(text).map_err(|error| ConfigError::Syntax {
        file: file.to_owned(),
        line: error.line,
        column: error.column,
        message: error.message,
    })?;
    let top = Table { file, name: "", format, entries: &entries };
    top.check_names()?;

    top.version()?;
    top.choice("keytype", &[("ed25519", ())], Some(()))?;
    let (key, secret, seckey_file) = own_key(&top, dir, keys)?;
    let binary_name = top.path("binary")?.ok_or_else(|| top.error("binary", Problem::Missing("")))?;
    let binary = dir.join(&binary_name);
    let argv = std::iter::once(binary_name).chain(args(&top)?).collect();
    let unl = unl(&top)?;
    let ip = top.parsed("ip", "an IP address")?.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let peerport = port(top.number("peerport", 0..=65_535, 22_860)?);
    let pubport = top.optional("pubport", 0..=65_535)?.map(port);
    if pubport == Some(peerport) && peerport != 0 {
        let problem = Problem::Conflict(format!("{peerport} is the peerport too; each needs a port of its own"));
        return Err(top.error("pubport", problem));
    }
    let roundtime_ms = top.number("roundtime", 1..=3_600_000, 1_000)?;

    Ok(Config {
        dir: dir.to_owned(),
        file: file.to_owned(),
        format,
        key,
        secret,
        seckey_file,
        binary,
        argv,
        peers: peers(&top)?,
        ip,
        peerport,
        roundtime_ms,
        pubport,
        pubmaxsize: top.number("pubmaxsize", 1..=PUBMAXSIZE_MAX, 1 << 20)?,
        pubmaxcpm: top.optional("pubmaxcpm", 1..=1_000_000)?.map(|cpm| u32::try_from(cpm).expect("in range")),
        consensus: consensus(&top.table("consensus")?)?,
        contract: contract(&top.table("contract")?, &unl)?,
        user: user(&top.table("user")?)?,
        mesh: mesh(&top.table("mesh")?)?,
        log: log(&top.table("log")?)?,
        unl,
    })
}

fn own_key(top: &Table<'_>, dir: &Path, keys: &Keys<'_>) -> Result<(NodeKey, SecretKey, Option<PathBuf>), ConfigError> {
    let key = top.parsed::<NodeKey>("pubkey", "64 hexadecimal digits")?;
    let inline = top.text("seckey")?;
    let seckey_file = top.path("seckey_file")?.map(|name| dir.join(name));
    let read_key_file = match keys {
        Keys::OfAnother => {
            let example = SecretKey::from_seed(EXAMPLE_SEED);
            return Ok((key.unwrap_or(example.node_key()), example, seckey_file));
        }
        Keys::Own(read_key_file) => read_key_file,
    };
    let (name, text) = match (inline, &seckey_file) {
        (Some(text), None) => ("seckey", text.to_owned()),
        (None, Some(path)) => {
            let cannot = |error| top.error("seckey_file", Problem::KeyFile(format!("{:#}", anyhow::Error::new(error))));
            ("seckey_file", read_key_file(path).map_err(cannot)?)
        }
        (None, None) => return Err(top.error("seckey", Problem::Missing(" (or seckey_file)"))),
        (Some(_), Some(_)) => {
            let problem = "stands beside seckey; one of them must go".to_owned();
            return Err(top.error("seckey_file", Problem::Conflict(problem)));
        }
    };
    let secret = SecretKey::parse(text.trim()).map_err(|error| top.error(name, Problem::Secret(error)))?;
    let own = secret.node_key();
    match key {
        Some(key) if key == own => Ok((own, secret, seckey_file)),
        // Not shown: a seed has as many digits as a public key, and could have been put here by mistake.
        Some(_) => {
            Err(top.error("pubkey", Problem::Conflict(format!("is not the public key of {name}, which is {own}"))))
        }
        None => Err(top.error("pubkey", Problem::Missing(""))),
    }
}

fn args(top: &Table<'_>) -> Result<Vec<String>, ConfigError> {
    const EXPECTED: &str = "a text, or a list of texts, without NUL bytes";
    let args: Vec<String> = match top.value("binargs") {
        None => Vec::new(),
        Some(Value::Text(text)) => text.split(' ').filter(|arg| !arg.is_empty()).map(str::to_owned).collect(),
        Some(Value::List(items)) => {
            let arg = |item: &Item| match &item.value {
                Value::Text(arg) => Ok(arg.clone()),
                other => Err(top.expected("binargs", EXPECTED, other)),
            };
            items.iter().map(arg).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(top.expected("binargs", EXPECTED, other)),
    };
    top.check_length("binargs", args.len(), 0..=ARGS_MAX)?;
    match args.iter().find(|arg| arg.contains('\0')) {
        Some(arg) => Err(top.expected("binargs", EXPECTED, &Value::Text(arg.clone()))),
        None => Ok(args),
    }
}

fn peers(top: &Table<'_>) -> Result<Vec<SocketAddr>, ConfigError> {
    let items = top.list("peers")?;
    top.check_length("peers", items.len(), 0..=PEERS_MAX)?;
    let peer = |item: &Item| match &item.value {
        Value::Text(text) => text.parse().ok().filter(|address: &SocketAddr| address.port() != 0),
        _ => None,
    };
    let mut peers = Vec::with_capacity(items.len());
    for item in items {
        let expected = "addresses like \"192.0.2.7:22860\" or \"[2001:db8::7]:22860\"";
        let address = peer(item).ok_or_else(|| top.expected("peers", expected, &item.value))?;
        if !peers.contains(&address) {
            peers.push(address);
        }
    }
    Ok(peers)
}

fn unl(top: &Table<'_>) -> Result<Vec<NodeKey>, ConfigError> {
    if top.value("unl").is_none() {
        return Err(top.error("unl", Problem::Missing("")));
    }
    let items = top.list("unl")?;
    top.check_length("unl", items.len(), 1..=UNL_MAX)?;
    let mut unl = Vec::with_capacity(items.len());
    for item in items {
        let key = match &item.value {
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        unl.push(key.ok_or_else(|| top.expected("unl", "keys of 64 hexadecimal digits", &item.value))?);
    }
    unl.sort_unstable();
    match unl.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(top.error("unl", Problem::Conflict(format!("{} stands twice", pair[0])))),
        None => Ok(unl),
    }
}

fn consensus(table: &Table<'_>) -> Result<Consensus, ConfigError> {
    Ok(Consensus {
        threshold: table.number("threshold", THRESHOLD_MIN..=100, 80)?,
        eager: table.boolean("eager", true)?,
        min_round_ms: table.number("min_round_ms", 0..=3_600_000, 0)?,
        grace_ms: table.number("grace_ms", 0..=60_000, 30)?,
        attempt_ms: table.number("attempt_ms", 10..=60_000, 120)?,
        time_res_ms: table.number("time_res_ms", 1..=3_600_000, 1_000)?,
        input_window: table.number("input_window", 16..=1 << 24, 65_536)?,
    })
}

fn contract(table: &Table<'_>, unl: &[NodeKey]) -> Result<Contract, ConfigError> {
    const DRAWN: &str = " (`hp new` draws it, `hp new --join` copies it)";
    // The end of the year 9999, past which the time has no usual text.
    const GENESIS_MS_MAX: u64 = 253_402_300_799_999;
    let legacy = table.format == Format::Legacy;
    let id = match table.parsed("id", "64 hexadecimal digits")? {
        Some(id) => id,
        None if legacy => Hash::tagged("hp/legacy/1", unl),
        None => return Err(table.error("id", Problem::Missing(DRAWN))),
    };
    let genesis_time_ms = match table.optional("genesis_time_ms", 0..=GENESIS_MS_MAX)? {
        Some(time_ms) => time_ms,
        None if legacy => 0,
        None => return Err(table.error("genesis_time_ms", Problem::Missing(DRAWN))),
    };
    let some = |limit: u64| (limit > 0).then_some(limit);
    let contract = Contract {
        id,
        genesis_time_ms,
        env: env(table)?,
        time_limit_ms: table.number("time_limit_s", 1..=86_400, 30)? * 1_000,
        cpu_s: some(table.number("cpu_s", 0..=86_400, 0)?),
        memory_bytes: some(table.number("memory_mb", 0..=1 << 24, 0)? << 20),
        files: table.number("files", 16..=1 << 20, 1_024)?,
        processes: table.number("processes", 1..=1 << 20, 256)?,
        file_bytes: table.number("file_mb", 1..=1 << 24, 4_096)? << 20,
        output_bytes: table.number("output_mb", 1..=4_096, 64)? << 20,
        output_user_bytes: table.number("output_user_mb", 1..=4_096, 16)? << 20,
        log_bytes: table.number("log_kb", 0..=1 << 20, 1_024)? << 10,
        npl_window_ms: table.number("npl_window_ms", 1..=3_600_000, 500)?,
    };
    if contract.output_user_bytes > contract.output_bytes {
        let (one, all) = (contract.output_user_bytes >> 20, contract.output_bytes >> 20);
        let problem = Problem::Conflict(format!("{one} is over output_mb, which is {all}"));
        return Err(table.error("output_user_mb", problem));
    }
    if contract.npl_window_ms >= contract.time_limit_ms {
        let (window, limit) = (contract.npl_window_ms, contract.time_limit_ms);
        let problem = Problem::Conflict(format!("{window} is not shorter than time_limit_s, which is {limit} ms"));
        return Err(table.error("npl_window_ms", problem));
    }
    Ok(contract)
}

fn env(table: &Table<'_>) -> Result<BTreeMap<String, String>, ConfigError> {
    let entries = match table.value("env") {
        None => return Ok(BTreeMap::new()),
        Some(Value::Table(entries)) => entries,
        Some(other) => return Err(table.expected("env", "a table", other)),
    };
    table.check_length("env", entries.len(), 0..=ENV_MAX)?;
    let mut env = BTreeMap::new();
    for Entry { name, value, .. } in entries {
        if name.is_empty() || name.contains(['=', '\0']) {
            let (expected, got) = ("names without = and NUL".to_owned(), format!("{:?}", cut(name)));
            return Err(table.error("env", Problem::Expected { expected, got }));
        }
        match value {
            Value::Text(text) if !text.contains('\0') => env.insert(name.clone(), text.clone()),
            // Only its kind is shown: what is meant for the contract may be a secret.
            _ => {
                let expected = format!("a text without NUL bytes for {:?}", cut(name));
                return Err(table.error("env", Problem::Expected { expected, got: value.kind().to_owned() }));
            }
        };
    }
    Ok(env)
}

fn user(table: &Table<'_>) -> Result<User, ConfigError> {
    Ok(User {
        inputs: table.choice("inputs", &[("any", Inputs::Any), ("signed", Inputs::Signed)], Some(Inputs::Any))?,
        connections_max: size(table.number("connections_max", 1..=1_000_000, 16_384)?),
        per_address: size(table.number("per_address", 1..=1_000_000, 1_024)?),
        queue_bytes: size(table.number("queue_kb", 1..=1 << 20, 1_024)? << 10),
    })
}

fn mesh(table: &Table<'_>) -> Result<Mesh, ConfigError> {
    Ok(Mesh {
        admit: table.choice("admit", &[("open", Admit::Open), ("unl", Admit::Unl)], Some(Admit::Open))?,
        max_connections: size(table.number("max_connections", 1..=10_000, 50)?),
    })
}

fn log(table: &Table<'_>) -> Result<Log, ConfigError> {
    const LEVELS: &[(&str, LogLevel)] = &[
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
    Ok(Log {
        level: table.choice("level", LEVELS, Some(LogLevel::Info))?,
        format: table.choice("format", FORMATS, Some(LogFormat::Text))?,
    })
}

fn port(number: u64) -> u16 {
    u16::try_from(number).expect("in range")
}

fn size(number: u64) -> usize {
    usize::try_from(number).expect("in range")
}

/// One table of the file, for typed reading.
struct Table<'a> {
    file: &'a Path,
    name: &'static str,
    format: Format,
    entries: &'a [Entry],
}

impl<'a> Table<'a> {
    fn table(&self, name: &'static str) -> Result<Table<'a>, ConfigError> {
        let entries = match self.value(name) {
            None => &[],
            Some(Value::Table(entries)) => &entries[..],
            Some(other) => return Err(self.expected(name, "a table", other)),
        };
        let table = Table { file: self.file, name, format: self.format, entries };
        table.check_names()?;
        Ok(table)
    }

    /// Every name is a known one. Before all else, because a misspelt key also looks like a missing one.
    fn check_names(&self) -> Result<(), ConfigError> {
        let known = names(self.name);
        let Some(entry) = self.entries.iter().find(|entry| !known.contains(&entry.name.as_str())) else {
            return Ok(());
        };
        let problem = match self.name {
            "" if NOT_YET.contains(&entry.name.as_str()) => Problem::NotYet,
            _ => Problem::Unknown(hint(self.name, &entry.name)),
        };
        let key = match shown_text(&entry.name) {
            quoted if quoted.starts_with('"') => full_name(self.name, &quoted[1..quoted.len() - 1]),
            hidden => full_name(self.name, &hidden),
        };
        Err(ConfigError::Key { file: self.file.to_owned(), line: entry.line, key, problem })
    }

    fn entry(&self, name: &str) -> Option<&'a Entry> {
        assert!(names(self.name).contains(&name), "{name} is in the list of keys");
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The value of a key. JSON's `null` is none.
    fn value(&self, name: &str) -> Option<&'a Value> {
        self.entry(name).map(|entry| &entry.value).filter(|value| !matches!(value, Value::Null))
    }

    fn error(&self, name: &str, problem: Problem) -> ConfigError {
        let line = self.entry(name).and_then(|entry| entry.line);
        ConfigError::Key { file: self.file.to_owned(), line, key: full_name(self.name, name), problem }
    }

    fn expected(&self, name: &str, expected: &str, got: &Value) -> ConfigError {
        let got = match name {
            "seckey" => got.kind().to_owned(),
            _ => shown(got),
        };
        self.error(name, Problem::Expected { expected: expected.to_owned(), got })
    }

    fn check_length(&self, name: &str, length: usize, range: RangeInclusive<usize>) -> Result<(), ConfigError> {
        if range.contains(&length) {
            return Ok(());
        }
        let expected = format!("{} to {} entries", range.start(), range.end());
        Err(self.error(name, Problem::Expected { expected, got: length.to_string() }))
    }

    fn version(&self) -> Result<(), ConfigError> {
        match self.value("hotpocket") {
            Some(Value::Text(version) | Value::Number(version)) if version == "0.1" => Ok(()),
            Some(other) => Err(self.expected("hotpocket", "\"0.1\"", other)),
            None => Err(self.error("hotpocket", Problem::Missing(" (expected \"0.1\")"))),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.expected(name, "a text", other)),
        }
    }

    fn path(&self, name: &str) -> Result<Option<String>, ConfigError> {
        match self.text(name)? {
            Some(path) if path.is_empty() || path.contains('\0') => {
                Err(self.expected(name, "a path", &Value::Text(path.to_owned())))
            }
            other => Ok(other.map(str::to_owned)),
        }
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, ConfigError> {
        let wrong = |text: &str| self.expected(name, expected, &Value::Text(text.to_owned()));
        self.text(name)?.map(|text| text.parse().map_err(|_| wrong(text))).transpose()
    }

    fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)], default: Option<T>) -> Result<T, ConfigError> {
        let expected = || {
            let quoted: Vec<String> = choices.iter().map(|(choice, _)| format!("{choice:?}")).collect();
            quoted.join(" or ")
        };
        match self.value(name) {
            None => default.ok_or_else(|| self.error(name, Problem::Missing(""))),
            Some(Value::Text(text)) => match choices.iter().find(|(choice, _)| choice == text) {
                Some((_, value)) => Ok(*value),
                None => Err(self.expected(name, &expected(), &Value::Text(text.clone()))),
            },
            Some(other) => Err(self.expected(name, &expected(), other)),
        }
    }

    fn boolean(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(self.expected(name, "true or false", other)),
        }
    }

    fn number(&self, name: &str, range: RangeInclusive<u64>, default: u64) -> Result<u64, ConfigError> {
        Ok(self.optional(name, range)?.unwrap_or(default))
    }

    /// A whole number, which may also be written as a text, as the prototype did. An empty text is none.
    fn optional(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ConfigError> {
        let number = match self.value(name) {
            None => return Ok(None),
            Some(Value::Text(text)) if text.is_empty() && self.format == Format::Legacy => return Ok(None),
            Some(Value::Text(text) | Value::Number(text)) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().ok().filter(|number| range.contains(number))
            }
            Some(_) => None,
        };
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        let got = || self.value(name).expect("there is a value");
        number.map(Some).ok_or_else(|| self.expected(name, &expected(), got()))
    }

    fn list(&self, name: &str) -> Result<&'a [Item], ConfigError> {
        match self.value(name) {
            None => Ok(&[]),
            Some(Value::List(items)) => Ok(items),
            Some(other) => Err(self.expected(name, "a list", other)),
        }
    }
}

/// The names of one table.
fn names(table: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(name, _)| *name == table).map_or(&[], |(_, names)| names)
}

fn full_name(table: &str, name: &str) -> String {
    match table {
        "" => name.to_owned(),
        _ => format!("{table}.{name}"),
    }
}

/// Where a key that is unknown in `table` belongs: the same name in another table, or else the nearest name.
fn hint(table: &str, name: &str) -> String {
    match KEYS.iter().find(|(_, names)| names.contains(&name)) {
        Some(("", _)) => return format!("{name} belongs to the top of the file, before the first table"),
        Some((home, _)) => return format!("{name} belongs to the table [{home}]"),
        None => {}
    }
    // Cut, because the distance takes time with the product of both lengths.
    let name = cut(name);
    let nearest = names(table).iter().min_by_key(|known| (strsim::damerau_levenshtein(&name, known), **known));
    format!("the nearest is {}", nearest.expect("a table has keys"))
}

/// A value for an error.
fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => shown_text(text),
        Value::Number(number) if number.len() <= 40 => number.clone(),
        Value::Bool(value) => value.to_string(),
        other => other.kind().to_owned(),
    }
}

/// A text for an error: quoted and cut. More digits than a public key has are not shown: they could be a secret key
/// that somebody has put into the wrong place.
fn shown_text(text: &str) -> String {
    match text.bytes().filter(u8::is_ascii_hexdigit).count() > 2 * NodeKey::LEN {
        true => format!("a text of {} characters (not shown, it could hold a secret)", text.chars().count()),
        false => format!("{:?}", cut(text)),
    }
}

/// The first [`SHOWN_MAX`] characters.
fn cut(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests;
