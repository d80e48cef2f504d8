//! `hp new`: a contract folder with a key of its own, or, with `--template`, the project of a contract.

mod template;

use std::{
    fmt::Write as _,
    fs, io,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context as _;

use super::{Outcome, answer};
use crate::{
    config::{Config, Document, quoted},
    crypto::SecretKey,
    types::{Hash, NodeKey, WallMs},
};

/// Folders of a new contract folder, beside cfg/.
const FOLDERS: [&str; 4] = ["bin", "hist", "state", "log"];

const EXAMPLES: &str = "\
Examples:
  hp new mynode --pubport 8080              then put the executable at mynode/bin/contract
  hp new mynode --binary /opt/app/server    an executable of the system
  hp new second --join mynode/cfg/hp.cfg    another node of mynode's contract
  hp new --template python guestbook        no node: the project of a contract, with its tests

The file for --join needs no secret key: before you give yours to anybody, take the line `seckey` out.";

/// Make a contract folder: bin/ cfg/hp.cfg hist/ state/ log/, with a key of its own; or, with --template, a contract.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct New {
    /// The folder. If it has a cfg/hp.cfg already, nothing is changed.
    dir: PathBuf,
    /// Make the project of a contract in this language instead: source, bin/, tests, README; no node
    #[arg(long, value_name = "LANGUAGE", conflicts_with_all = ["join", "binary", "peerport", "pubport"])]
    template: Option<template::Language>,
    /// The cfg/hp.cfg of a node whose network the new node is for: contract, UNL, executable and everything shared are
    /// copied.
    #[arg(long, value_name = "CFG")]
    join: Option<PathBuf>,
    /// The executable; a relative path starts at DIR [default: bin/contract, or that of --join].
    #[arg(long, value_name = "PATH")]
    binary: Option<String>,
    /// The port for other nodes; on one machine each node needs its own [default: 22860]
    #[arg(long, value_name = "PORT")]
    peerport: Option<u16>,
    /// The port for users; without one the node serves none
    #[arg(long, value_name = "PORT")]
    pubport: Option<u16>,
}

impl New {
    pub(super) fn run(self) -> Outcome {
        if let Some(language) = self.template {
            return template::make(language, &self.dir);
        }
        check_empty(&self.dir)?;
        let other = self.join.as_deref().map(Config::load_of_another).transpose()?;

        let secret = SecretKey::generate();
        let own = secret.node_key();
        let mut document = Document::new(&secret, draw_contract_id(), now_ms()?, &[own]);
        if let Some(other) = &other {
            document.join(other, reached_at(other));
        }
        if let Some(binary) = &self.binary {
            if binary.is_empty() || binary.contains('\0') {
                return Err(anyhow::anyhow!("--binary: expected a path, got {binary:?}").into());
            }
            document.set("binary", &quoted(binary));
        }
        for (key, port) in [("peerport", self.peerport), ("pubport", self.pubport)] {
            if let Some(port) = port {
                document.set(key, &port.to_string());
            }
        }
        let file = Config::path(&self.dir);
        let key_file = |_: &Path| Ok(secret.to_hex());
        let config = Config::parse(document.text(), &file, &self.dir, &key_file)?;

        make(&self.dir, document.text())?;
        answer(&report(&config, other.as_ref()))
    }
}

fn check_empty(dir: &Path) -> Result<(), anyhow::Error> {
    let file = Config::path(dir);
    // Also a link that leads nowhere is something that must not be replaced.
    if fs::symlink_metadata(&file).is_ok() {
        anyhow::bail!("{} exists already; nothing was changed", file.display());
    }
    if has_history(dir)? {
        anyhow::bail!(
            "{} holds a history, but there is no {}; nothing was changed",
            dir.join("hist").display(),
            file.display()
        );
    }
    Ok(())
}

/// Whether hist/ holds anything, but for what a file system puts there itself and hidden files.
pub(super) fn has_history(dir: &Path) -> Result<bool, anyhow::Error> {
    let hist = dir.join("hist");
    match fs::read_dir(&hist) {
        Ok(entries) => {
            for entry in entries {
                let name = entry.with_context(|| format!("cannot read {}", hist.display()))?.file_name();
                if name != "lost+found" && !name.as_encoded_bytes().starts_with(b".") {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", hist.display())),
    }
}

fn draw_contract_id() -> Hash {
    // A secret key is 32 random bytes; the hash makes them fit to be shown.
    Hash::tagged("hp/contract/1", &SecretKey::generate().seed())
}

fn now_ms() -> Result<WallMs, anyhow::Error> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
    u64::try_from(now.as_millis()).context("the clock is too far ahead")
}

/// Where another node is reached: as it says, or on this machine if it listens on every address.
fn reached_at(other: &Config) -> SocketAddr {
    let ip = match other.ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, other.peerport)
}

fn make(dir: &Path, text: &str) -> Result<(), anyhow::Error> {
    let file = Config::path(dir);
    let cfg = file.parent().expect("the file is in cfg/");
    for folder in FOLDERS.iter().map(|name| dir.join(name)).chain([cfg.to_owned()]) {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let new = write_aside(cfg, text).with_context(|| format!("cannot write {}", file.display()))?;
    new.persist_noclobber(&file)
        .map_err(|error| error.error)
        .with_context(|| format!("cannot make {}", file.display()))?;
    sync(cfg)
}

/// A file of mode 0600 with this text, on disk, without its final name.
pub(super) fn write_aside(folder: &Path, text: &str) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix(".hp.cfg.").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// Puts the names in a folder on disk.
pub(super) fn sync(folder: &Path) -> Result<(), anyhow::Error> {
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("cannot sync {}", folder.display()))
}

fn report(config: &Config, other: Option<&Config>) -> String {
    let (dir, mut text) = (config.dir.display(), String::new());
    let mut line = |line: std::fmt::Arguments<'_>| writeln!(text, "{line}").expect("writing to a text");
    match other {
        None => line(format_args!("made {dir}, the first node of a new contract")),
        Some(other) => line(format_args!("made {dir}, a node of the contract in {}", other.file.display())),
    }
    line(format_args!("  key       {}", config.key));
    line(format_args!("  contract  {}", config.contract.id));
    line(format_args!("  binary    {}", config.binary.display()));
    line(format_args!(""));
    if let Some(other) = other {
        line(format_args!(
            "To make it a member, every operator adds this line to `unl` in cfg/hp.cfg, in {dir} as well,"
        ));
        line(format_args!("before any node of the network runs for the first time:"));
        line(format_args!("{}", unl_line(config.key)));
        line(format_args!(
            "When the network has run, leave `unl` as it is. The node observes until a quorum of the operators votes it in:"
        ));
        line(format_args!("  hp unl add {}", config.key));
        line(format_args!(""));
        line(format_args!("{}", peer_note(other)));
        if config.peerport == other.peerport {
            line(format_args!(
                "Both nodes listen on port {}: on one machine, give this one another `peerport`.",
                config.peerport
            ));
        }
        line(format_args!(""));
    }
    match other {
        None => line(format_args!("Next: put the executable at {}, then", config.binary.display())),
        Some(_) => line(format_args!(
            "Next: put the executable at {}, and into {dir}/state what the other nodes began with, then",
            config.binary.display()
        )),
    }
    line(format_args!("  hp config check {dir}    (what the configuration means, and what is odd about it)"));
    line(format_args!("  hp run {dir}"));
    text
}

/// A key as a line of `unl`.
pub(super) fn unl_line(key: NodeKey) -> String {
    format!("    \"{key}\",")
}

fn peer_note(other: &Config) -> String {
    let address = reached_at(other);
    match address.ip().is_loopback() {
        true => format!(
            "Its `peers` has {address}, which is this machine: if the other node is elsewhere, put its address there."
        ),
        false => format!("Its `peers` has the other node's address, {address}."),
    }
}
