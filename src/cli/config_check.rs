//! `hp config check`: is the configuration right, what does it tolerate, and what is odd about it.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::PathBuf};

use clap::Subcommand;

use super::{Outcome, answer};
use crate::config::{self, Format, MsbMode, PeerAddr};

const EXAMPLES: &str = "\
Examples:
  hp config check mynode
  cd mynode && hp config check

Prints `ok`, what the UNL tolerates, and a line for everything odd; exit code 3 and the reason if it is wrong.";

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
}

impl Config {
    pub(super) fn run(self) -> Outcome {
        let Command::Check { dir } = self.command;
        let config = config::Config::load(&dir)?;
        let mut text = format!("ok\n{}\n", config.tolerance());
        for note in odd(&config).into_iter().chain(odd_binary(&config)) {
            text.push_str(&format!("note: {note}\n"));
        }
        answer(&text)
    }
}

/// What is allowed but perhaps not meant.
fn odd(config: &config::Config) -> Vec<String> {
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
