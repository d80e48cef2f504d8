//! The contract that an author names, and the copy of its folder that it runs in.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, anyhow};

use crate::{
    cli::{Failure, scratch::Scratch},
    config::{Config, Document},
    crypto::SecretKey,
    types::{Hash, NodeKey},
};

/// Members of the network that a bare contract is told of, itself included.
const MEMBERS: u8 = 4;

/// Which contract.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Place {
    /// The contract's folder: bin/contract is enough, a node's folder works too
    #[arg(default_value = ".")]
    pub(super) dir: PathBuf,
    /// The executable; a relative path starts at DIR [default: bin/contract, or that of cfg/hp.cfg]
    #[arg(long, value_name = "PATH")]
    pub(super) binary: Option<PathBuf>,
    /// Arguments of the executable, separated by spaces
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub(super) binargs: Option<String>,
    /// The files in state/ to begin with [default: DIR/state, or none]
    #[arg(long, value_name = "FOLDER")]
    pub(super) state: Option<PathBuf>,
    /// Where the copy of the folder is made [default: the system's folder for temporary files]
    #[arg(long, value_name = "FOLDER")]
    pub(super) scratch: Option<PathBuf>,
}

impl Place {
    /// The state to begin with, if there is any.
    pub(super) fn begin(&self) -> Option<PathBuf> {
        match &self.state {
            Some(state) => Some(state.clone()),
            None => Some(self.dir.join("state")).filter(|state| state.is_dir()),
        }
    }

    /// A copy of the folder, and the configuration for a run in it.
    pub(super) fn copy(&self) -> Result<(Scratch, Config), Failure> {
        // First without a copy: what is wrong is told before anything is copied.
        self.config(Path::new(""))?;
        let scratch = Scratch::make(&self.dir, self.begin().as_deref(), self.scratch.as_deref())?;
        let config = self.config(&scratch.dir())?;
        Ok((scratch, config))
    }

    /// The configuration of DIR, or one for a folder without, for a run in `to`.
    pub(super) fn config(&self, to: &Path) -> Result<Config, Failure> {
        let file = Config::path(&self.dir);
        let mut config = if file.exists() { Config::load_of_another(&file)? } else { bare()? };
        let named = self.binary.clone().unwrap_or_else(|| config.binary.clone());
        let path = self.dir.join(&named);
        let executable = path.canonicalize().with_context(|| {
            format!("there is no executable {}; put it there, or name it with --binary", path.display())
        })?;
        let mode = fs::metadata(&executable).context("cannot look at the executable")?.permissions().mode();
        if !executable.is_file() || mode & 0o111 == 0 {
            return Err(anyhow!("{} is not an executable file (chmod +x?)", executable.display()).into());
        }
        // The one in the copy, unless it is elsewhere.
        let is_inside = named.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        config.binary = if is_inside { to.join(named) } else { executable };
        if let Some(args) = &self.binargs {
            config.argv.truncate(1);
            config.argv.extend(args.split_ascii_whitespace().map(str::to_owned));
        }
        config.dir = to.to_owned();
        Ok(config)
    }
}

/// Settings of a contract that has none of its own: the defaults, in a network of a few members.
fn bare() -> Result<Config, Failure> {
    let keys: Vec<SecretKey> = (1..=MEMBERS).map(|number| SecretKey::from_seed([number; 32])).collect();
    let members: Vec<NodeKey> = keys.iter().map(SecretKey::node_key).collect();
    let document = Document::new(&keys[0], Hash::tagged("hp/contract/1", &[0u8; 32]), 0, &members);
    let config = Config::parse(document.text(), Path::new("cfg/hp.cfg"), Path::new(""), &|_| Ok(keys[0].to_hex()))?;
    Ok(config)
}
