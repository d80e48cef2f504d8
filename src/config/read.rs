//! The tree of a file -> [`Config`], one function a table of the file.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{
    ARGS_MAX, Admit, CORS_MAX, Config, ConfigError, Consensus, Containment, Contract, ENV_MAX, EXAMPLE_SEED,
    FILE_BYTES_MAX, Format, HTTP_BODY_MAX, Http, Inputs, Log, LogFormat, LogLevel, Mesh, Msb, MsbMode, MsbNetwork,
    NAMES_MAX, PEERS_MAX, PUBMAXSIZE_MAX, PeerAddr, Problem, READ_MAX, READ_TIME_S_MAX, READS_MAX, StateBackend,
    THRESHOLD_MIN, TlsFiles, UNL_MAX, USERS_MAX, USERS_MIN, User,
    table::{Table, shown_text},
    tree::{self, Entry, Item, Value},
};
use crate::{
    crypto::SecretKey,
    types::{Execute, Hash, NodeKey},
};

/// Folders of a contract folder that no contract sees, and that `contract.read` cannot open to it.
pub const HIDDEN: [&str; 7] = ["cfg", "hist", "run", "log", "diag", "reads", "msb"];

/// Whose secret key a text is expected to hold.
pub(super) enum Keys<'a> {
    /// This node's; a `seckey_file` is read by the function.
    Own(&'a dyn Fn(&Path) -> Result<String, ConfigError>),
    /// Another node's, which is none of our business and need not be there.
    OfAnother,
}

pub(super) fn parse(text: &str, file: &Path, dir: &Path, keys: &Keys<'_>) -> Result<Config, ConfigError> {
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
        disk_reserve: top.number("disk_reserve_mb", 0..=1 << 24, 256)? << 20,
        pubmaxcpm: top.optional("pubmaxcpm", 1..=1_000_000)?.map(|cpm| u32::try_from(cpm).expect("in range")),
        consensus: consensus(&top.table("consensus")?)?,
        contract: contract(&top.table("contract")?, &unl, dir)?,
        user: user(&top.table("user")?, dir)?,
        mesh: mesh(&top.table("mesh")?)?,
        log: log(&top.table("log")?)?,
        msb: msb(&top.table("msb")?, dir)?,
        http: http(&top.table("http")?, dir)?,
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

fn peers(top: &Table<'_>) -> Result<Vec<PeerAddr>, ConfigError> {
    let items = top.list("peers")?;
    top.check_length("peers", items.len(), 0..=PEERS_MAX)?;
    let peer = |item: &Item| match &item.value {
        Value::Text(text) => text.parse::<PeerAddr>().ok(),
        _ => None,
    };
    let mut peers = Vec::with_capacity(items.len());
    for item in items {
        let expected = "addresses like \"192.0.2.7:22860\", \"[2001:db8::7]:22860\" or \"node1.example.org:22860\"";
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

fn contract(table: &Table<'_>, unl: &[NodeKey], dir: &Path) -> Result<Contract, ConfigError> {
    const DRAWN: &str = " (`hp new` draws it, `hp new --join` copies it)";
    // The end of the year 9999, past which the time has no usual text.
    const GENESIS_MS_MAX: u64 = 253_402_300_799_999;
    const BACKENDS: &[(&str, StateBackend)] =
        &[("auto", StateBackend::Auto), ("shadow", StateBackend::Shadow), ("overlay", StateBackend::Overlay)];
    const CONTAINMENTS: &[(&str, Containment)] =
        &[("auto", Containment::Auto), ("required", Containment::Required), ("off", Containment::Off)];
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
        state_bytes: table.number("state_mb", 0..=1 << 24, 0)? << 20,
        state_files: table.number("state_files", 0..=1 << 32, 0)?,
        npl_window_ms: table.number("npl_window_ms", 1..=3_600_000, 500)?,
        state_backend: table.choice("state_backend", BACKENDS, Some(StateBackend::Auto))?,
        containment: table.choice("containment", CONTAINMENTS, Some(Containment::Auto))?,
        run_as: table.parsed("run_as", "\"uid:gid\", two numbers over 0 (root is none for a contract)")?,
        network: table.boolean("network", false)?,
        read: readable(table, dir)?,
    };
    if contract.run_as.is_some() && contract.containment == Containment::Off {
        let problem = Problem::Conflict("containment is \"off\", which leaves the contract as it is".to_owned());
        return Err(table.error("run_as", problem));
    }
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

/// Paths that a contract may read; none at or above what it must not see.
fn readable(table: &Table<'_>, dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    const EXPECTED: &str = "a list of paths";
    let items = table.list("read")?;
    table.check_length("read", items.len(), 0..=READ_MAX)?;
    let mut paths = Vec::with_capacity(items.len());
    for item in items {
        let path = match &item.value {
            Value::Text(text) if !text.is_empty() && !text.contains('\0') => dir.join(text),
            other => return Err(table.expected("read", EXPECTED, other)),
        };
        let hidden = |name: &&&str| path.starts_with(dir.join(name)) || dir.join(name).starts_with(&path);
        if path.starts_with(dir)
            && let Some(name) = HIDDEN.iter().find(hidden)
        {
            let problem = format!("{} shows {name}/, which no contract may see", path.display());
            return Err(table.error("read", Problem::Conflict(problem)));
        }
        paths.push(path);
    }
    Ok(paths)
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
            let (expected, got) = ("names without = and NUL".to_owned(), shown_text(name));
            return Err(table.error("env", Problem::Expected { expected, got }));
        }
        match value {
            Value::Text(text) if !text.contains('\0') => env.insert(name.clone(), text.clone()),
            // Only its kind is shown: what is meant for the contract may be a secret.
            _ => {
                let expected = format!("a text without NUL bytes for {}", shown_text(name));
                return Err(table.error("env", Problem::Expected { expected, got: value.kind().to_owned() }));
            }
        };
    }
    Ok(env)
}

fn user(table: &Table<'_>, dir: &Path) -> Result<User, ConfigError> {
    Ok(User {
        inputs: table.choice("inputs", &[("any", Inputs::Any), ("signed", Inputs::Signed)], Some(Inputs::Any))?,
        users_max: size(table.number("users_max", USERS_MIN..=USERS_MAX, 4_096)?),
        connections_max: size(table.number("connections_max", 1..=1_000_000, 16_384)?),
        per_address: size(table.number("per_address", 1..=1_000_000, 1_024)?),
        failed_per_minute: u32::try_from(table.number("failed_per_minute", 0..=1_000_000, 1_000)?).expect("in range"),
        queue_bytes: size(table.number("queue_kb", 1..=1 << 20, 1_024)? << 10),
        reads_max: size(table.number("reads_max", 0..=READS_MAX, 8)?),
        read_time_ms: table.number("read_time_s", 1..=READ_TIME_S_MAX, 5)? * 1_000,
        tls: tls(table, dir)?,
    })
}

/// Certificate and key, both or neither.
fn tls(table: &Table<'_>, dir: &Path) -> Result<Option<TlsFiles>, ConfigError> {
    match (table.path("tls_cert")?, table.path("tls_key")?) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert: dir.join(cert), key: dir.join(key) })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(table.error("tls_key", Problem::Missing(" (tls_cert is there)"))),
        (None, Some(_)) => Err(table.error("tls_cert", Problem::Missing(" (tls_key is there)"))),
    }
}

fn http(table: &Table<'_>, dir: &Path) -> Result<Http, ConfigError> {
    Ok(Http {
        listen: table.parsed("listen", "an address like \"127.0.0.1:5001\" or \"[::1]:5001\"")?,
        api_tx_exposed: table.boolean("api_tx_exposed", false)?,
        cors: cors(table)?,
        names: names(table)?,
        admin_token_file: table.path("admin_token_file")?.map(|name| dir.join(name)),
        body_max: size(table.number("body_max", 1_000..=HTTP_BODY_MAX, 1_000_000)?),
        connections_max: size(table.number("connections_max", 1..=100_000, 256)?),
        per_address: size(table.number("per_address", 1..=100_000, 64)?),
        tls: tls(table, dir)?,
    })
}

/// Origins as a browser sends them: scheme, host and port, and nothing behind.
fn cors(table: &Table<'_>) -> Result<Vec<String>, ConfigError> {
    const EXPECTED: &str = "origins like \"https://app.example.org\" or \"http://127.0.0.1:8000\", or \"*\" for any";
    let items = table.list("cors")?;
    table.check_length("cors", items.len(), 0..=CORS_MAX)?;
    let is_origin = |text: &str| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let allowed = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || b"-.:[]_".contains(&byte);
        text == "*" || host.is_some_and(|host| !host.is_empty() && host.bytes().all(allowed))
    };
    let origin = |item: &Item| match &item.value {
        Value::Text(text) if is_origin(text) => Ok(text.clone()),
        other => Err(table.expected("cors", EXPECTED, other)),
    };
    items.iter().map(origin).collect()
}

/// Host names without scheme and port.
fn names(table: &Table<'_>) -> Result<Vec<String>, ConfigError> {
    const EXPECTED: &str = "host names like \"node.example.org\", without scheme and port, or \"*\" for any";
    let items = table.list("names")?;
    table.check_length("names", items.len(), 0..=NAMES_MAX)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_name = |text: &str| text == "*" || !text.is_empty() && !text.ends_with('.') && text.bytes().all(allowed);
    let name = |item: &Item| match &item.value {
        Value::Text(text) if is_name(text) => Ok(text.to_ascii_lowercase()),
        other => Err(table.expected("names", EXPECTED, other)),
    };
    items.iter().map(name).collect()
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
        contract_files: size(table.number("contract_files", 1..=1_000, 4)?),
    })
}

fn msb(table: &Table<'_>, dir: &Path) -> Result<Msb, ConfigError> {
    const NETWORKS: &[(&str, MsbNetwork)] =
        &[("mainnet", MsbNetwork::Mainnet), ("testnet", MsbNetwork::Testnet), ("development", MsbNetwork::Development)];
    let hash = |name| match table.parsed(name, "64 hexadecimal digits, not all 0")? {
        Some(Hash::ZERO) => {
            Err(table.expected(name, "64 hexadecimal digits, not all 0", table.value(name).expect("read")))
        }
        other => Ok(other),
    };
    let (bootstrap, subnet) = (hash("bootstrap")?, hash("subnet")?);
    let network = table.choice("network", NETWORKS, Some(MsbNetwork::Mainnet))?;
    let mode = msb_mode(table, network)?;
    if mode != MsbMode::Off && super::bus_bootstrap(network, bootstrap).is_none() {
        return Err(table.error("bootstrap", Problem::Missing(" (mode is \"http\"; it is the bus's own, 64 digits)")));
    }
    if let (Some(bootstrap), Some(_)) = (bootstrap, subnet.filter(|subnet| Some(*subnet) == bootstrap)) {
        let problem = format!("{bootstrap} is the bus's own bootstrap; the subnet's is another one");
        return Err(table.error("subnet", Problem::Conflict(problem)));
    }
    const EXECUTES: &[(&str, Execute)] = &[("closed", Execute::Closed), ("settled", Execute::Settled)];
    let execute = table.choice("execute", EXECUTES, Some(Execute::Closed))?;
    if execute == Execute::Settled && mode == MsbMode::Off {
        let problem = "is \"settled\", but msb.mode is \"off\": nothing would ever be final; name the bus that the network \
                       settles on (mode \"http\" or \"embedded\"), or take \"closed\"";
        return Err(table.error("execute", Problem::Conflict(problem.to_owned())));
    }
    Ok(Msb {
        mode,
        network,
        bootstrap,
        subnet,
        settle_every: table.number("settle_every", 1..=1 << 32, 1_000)?,
        settle_max_delay_ms: table.number("settle_max_delay_s", 1..=1 << 32, 600)? * 1_000,
        settle_slot_ms: table.number("settle_slot_s", 3..=3_600, 4)? * 1_000,
        key_file: table.path("key_file")?.map(|name| dir.join(name)),
        ca_file: table.path("ca_file")?.map(|name| dir.join(name)),
        execute,
    })
}

/// How the bus is reached. What is about another way is read all the same, so that a file is right or wrong as a whole.
fn msb_mode(table: &Table<'_>, network: MsbNetwork) -> Result<MsbMode, ConfigError> {
    const MODES: &[(&str, u8)] = &[("off", 0), ("http", 1), ("embedded", 2)];
    const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5000);
    let listen = table.parsed("listen", "an address like \"127.0.0.1:5000\"")?.unwrap_or(LISTEN);
    let url = table.text("url")?;
    match (table.choice("mode", MODES, Some(0))?, url) {
        (0, _) => Ok(MsbMode::Off),
        (1, Some(url)) => Ok(MsbMode::Http(url.to_owned())),
        (1, None) => Err(table.error("url", Problem::Missing(" (mode is \"http\")"))),
        _ if network != MsbNetwork::Development => {
            let problem = format!(
                "is \"{network}\", but mode \"embedded\" runs a bus of one's own, which is of the network \"development\""
            );
            Err(table.error("network", Problem::Conflict(problem)))
        }
        _ => Ok(MsbMode::Embedded(listen)),
    }
}

fn port(number: u64) -> u16 {
    u16::try_from(number).expect("in range")
}

fn size(number: u64) -> usize {
    usize::try_from(number).expect("in range")
}
