//! `hp config check`: is the configuration right, what does it tolerate, and what is odd about it. `hp config show`: what
//! holds.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use clap::Subcommand;

use super::{Outcome, answer};
use crate::{
    config::{self, Format, MsbMode, PeerAddr, Shown},
    consensus::seats,
    contract::raise_nofile_limit,
    node::files::Files,
};

const EXAMPLES: &str = "\
Examples:
  hp config check mynode
  cd mynode && hp config check

Prints `ok`, what the UNL tolerates, and a line for everything odd; exit code 3 and the reason if it is wrong.";

const SHOW_EXAMPLES: &str = "\
Examples:
  hp config show mynode                     what the file sets
  hp config show --effective mynode         every key, also those that have their default
  hp config show --effective --json mynode  for programs

Behind each key: where its value comes from, and `shared` where it must be alike on every node. Secrets are not shown: the
secret key, the contract's environment, passwords in addresses.";

/// Look at a configuration.
#[derive(Debug, clap::Args)]
pub(super) struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether cfg/hp.cfg is right, what it tolerates, and what is odd.
    #[command(after_help = EXAMPLES)]
    Check {
        /// The contract folder.
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Show the keys of cfg/hp.cfg with their values.
    #[command(after_help = SHOW_EXAMPLES)]
    Show {
        /// The contract folder.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// Every key, also those that the file leaves to their default.
        #[arg(long)]
        effective: bool,
        /// As a list of JSON objects
        #[arg(long)]
        json: bool,
    },
}

impl Config {
    pub(super) fn run(self) -> Outcome {
        let dir = match self.command {
            Command::Check { dir } => dir,
            Command::Show { dir, effective, json } => return show(&dir, effective, json),
        };
        let config = config::Config::load(&dir)?;
        // What `hp run` would do, so that it is the same number.
        let files = Files::of(&config, raise_nofile_limit());
        let mut text = format!("ok\n{}\n{}\n", config.tolerance(), users(&config, &files));
        for note in odd(&config, &files).into_iter().chain(odd_binary(&config)) {
            text.push_str(&format!("note: {note}\n"));
        }
        answer(&text)
    }
}

fn show(dir: &Path, effective: bool, json: bool) -> Outcome {
    let (text, config) = config::Config::load_text(dir)?;
    let mut keys = config::shown(&text, &config);
    keys.retain(|key| effective || key.is_set);
    if json {
        let keys: Vec<serde_json::Value> = keys
            .iter()
            .map(|key| {
                serde_json::json!({
                    "key": key.key(), "value": key.value, "set": key.is_set, "shared": key.is_shared, "line": key.line,
                })
            })
            .collect();
        return answer(&format!("{}\n", serde_json::Value::from(keys)));
    }
    answer(&shown_text(&config.file, &keys))
}

/// Keys as a file would have them, each with where its value comes from.
fn shown_text(file: &Path, keys: &[Shown]) -> String {
    let mut text = format!("# {}\n", file.display());
    let mut table = "";
    for key in keys {
        if key.table != table {
            table = key.table;
            text.push_str(&format!("\n[{table}]\n"));
        }
        let code = match &key.value {
            Some(value) => format!("{} = {value}", key.name),
            None => format!("# {} has no value", key.name),
        };
        let from = match (key.is_set, key.line) {
            (true, Some(line)) => format!("line {line}"),
            (true, None) => "set".to_owned(),
            (false, _) => "default".to_owned(),
        };
        let shared = if key.is_shared { ", shared" } else { "" };
        text.push_str(&format!("{code:<40}  # {from}{shared}\n"));
    }
    text
}

/// How many users there may be, and what that needs.
fn users(config: &config::Config, files: &Files) -> String {
    let (all, members) = (config.user.users_max, config.unl.len());
    let here = match config.is_member() {
        true if members == 1 => format!("{} of them connected here", seats::share(all, members)),
        true => format!("{} of them connected to each of {members} nodes of the UNL", seats::share(all, members)),
        false => "none of them this node's, which observes".to_owned(),
    };
    format!("{all} users, {here}; {}", files.text(all))
}

/// What is allowed but perhaps not meant.
fn odd(config: &config::Config, files: &Files) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |odd: bool, text: String| odd.then(|| notes.push(text));
    let others = config.unl.iter().filter(|key| **key != config.key).count();
    note(!config.is_member(), format!("own key {} is not in `unl`: this node observes and does not vote", config.key));
    note(config.pubport.is_none(), "no `pubport`: this node serves no users".to_owned());
    note(others > 0 && config.peers.is_empty(), "`peers` is empty: this node waits for others to connect".to_owned());
    note(
        others > 0 && config.ip.is_loopback(),
        format!("`ip` is {}: only nodes and users on this machine can connect", config.ip),
    );
    note(
        others > config.mesh.max_connections,
        format!("`mesh.max_connections` is {}, but `unl` has {others} other nodes", config.mesh.max_connections),
    );
    let own = PeerAddr::from(SocketAddr::new(config.ip, config.peerport));
    note(config.peers.contains(&own), format!("`peers` has {own}, which is this node itself"));
    for peer in config.peers.iter().filter(|peer| peer.ip().is_some_and(|ip| ip.is_unspecified())) {
        note(true, format!("`peers` has {peer}, which reaches this machine only"));
    }
    note(!files.are_enough(), format!("that is too few, and `hp run` refuses to start: {}", files.advice()));
    let share = seats::share(config.user.users_max, config.unl.len());
    note(
        config.is_member() && files.are_enough() && files.connections < share.min(config.user.connections_max),
        format!("these files leave this node room for {} connections of users", files.connections),
    );
    note(
        config.user.per_address > config.user.connections_max,
        format!(
            "`user.per_address` is {}, over `user.connections_max`, which is {}",
            config.user.per_address, config.user.connections_max
        ),
    );
    note(
        config.consensus.min_round_ms > config.roundtime_ms,
        format!(
            "`consensus.min_round_ms` is {}, over `roundtime`, which is {}: it decides",
            config.consensus.min_round_ms, config.roundtime_ms
        ),
    );
    note(
        config.format == Format::Legacy,
        "the file is the prototype's JSON: the contract id follows from `unl`, which all nodes must have alike"
            .to_owned(),
    );
    let other_members = config.unl.iter().filter(|key| **key != config.key).count();
    if let MsbMode::Embedded(listen) = config.msb.mode
        && other_members > 0
    {
        note(
            true,
            format!(
                "`msb.mode` is \"embedded\", and `unl` has {other_members} other members: all members must see one bus, so \
                 this node alone may run it, and the others settle on it with mode = \"http\", url = {:?}",
                config::own_url(listen)
            ),
        );
    }
    notes
}

/// What keeps the executable from being run.
pub(super) fn odd_binary(config: &config::Config) -> Option<String> {
    let binary = config.binary.display();
    match fs::metadata(&config.binary) {
        Err(error) => Some(format!("binary {binary} cannot be found: {error}")),
        Ok(is) if !is.is_file() => Some(format!("binary {binary} is not a file")),
        Ok(is) if is.permissions().mode() & 0o111 == 0 => {
            Some(format!("binary {binary} is not executable (chmod +x {binary})"))
        }
        Ok(_) => None,
    }
}
