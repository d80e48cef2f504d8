//! Decides how this node keeps the contract's state, and says why.

use std::path::Path;

use tracing::info;

use super::NodeError;
use crate::{
    config::{Config, StateBackend},
    contract::{Launcher, Overlay},
    state::{self, Backend, RunMount},
};

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// How the state is kept.
    pub backend: Backend,
    /// Why so, for people.
    pub why: String,
}

/// Decides by `[contract] state_backend`, and tries whether an overlay works here where that matters.
///
/// Errors when the configuration asks for one that does not work here.
pub(super) async fn choose(config: &Config, launcher: &Launcher) -> Result<Chosen, NodeError> {
    let chosen = match config.contract.state_backend {
        StateBackend::Shadow => Chosen { backend: Backend::Shadow, why: "by cfg/hp.cfg".to_owned() },
        StateBackend::Overlay => match probe(&config.dir, launcher).await {
            Ok(()) => Chosen { backend: Backend::Overlay, why: "by cfg/hp.cfg".to_owned() },
            Err(why) => return Err(NodeError::Overlay { file: config.file.clone(), why }),
        },
        // See docs/decisions.md, "Running contracts".
        StateBackend::Auto => {
            let overlay = match probe(&config.dir, launcher).await {
                Ok(()) => "overlay works here too, but folders cannot be renamed in it".to_owned(),
                Err(why) => format!("overlay does not work here: {why}"),
            };
            Chosen { backend: Backend::Shadow, why: format!("auto; {overlay}") }
        }
    };
    info!(backend = %chosen.backend, why = chosen.why, "how the state is kept");
    Ok(chosen)
}

/// Whether a run gets an overlay here; if not, why.
async fn probe(dir: &Path, launcher: &Launcher) -> Result<(), String> {
    let told = |error: &dyn std::error::Error| match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let blocking = |work: fn(&Path) -> Result<Option<RunMount>, state::StateError>| {
        let dir = dir.to_owned();
        async move { tokio::task::spawn_blocking(move || work(&dir)).await.expect("making folders does not panic") }
    };
    let made = blocking(state::make_probe).await.map_err(|error| told(&error))?;
    let mount = made.ok_or("state/ and hist/ are not on one file system of Linux")?;
    let RunMount { target, lower, upper, work } = mount;
    let tried = launcher.probe(dir, Overlay { target, lower, upper, work }).await;
    blocking(|dir| state::drop_probe(dir).map(|()| None)).await.map_err(|error| told(&error))?;
    tried.map_err(|error| told(&error))
}
