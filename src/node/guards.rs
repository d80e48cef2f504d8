//! Has the contract's guards tried out, and says which are on.

use tracing::{info, warn};

use super::NodeError;
use crate::{
    config::{self, Config},
    contract::{Containment, Guard, LaunchError, Launcher, guards},
};

/// Gives every run of this launcher the guards that work here, as far as `[contract] containment` wants them.
///
/// Without `namespaces` runs that are compared have other process numbers each, as on machines that have none.
pub(super) async fn contain(config: &Config, launcher: &Launcher, namespaces: bool) -> Result<Vec<Guard>, LaunchError> {
    match wanted(config, namespaces) {
        None => Ok(guards::none_wanted("by cfg/hp.cfg")),
        Some(wanted) => launcher.contain(&wanted).await,
    }
}

/// What runs are kept from; nothing where the configuration says so.
pub(super) fn wanted(config: &Config, namespaces: bool) -> Option<Containment> {
    let contract = &config.contract;
    (contract.containment != config::Containment::Off).then(|| Containment {
        dir: config.dir.clone(),
        binary: config.binary.clone(),
        args: config.argv.iter().skip(1).cloned().collect(),
        env: contract.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        network: contract.network,
        namespaces,
        read: contract.read.clone(),
        secrets: config.seckey_file.iter().cloned().collect(),
    })
}

/// As [`contain`], for a node: tells what is off, and errors where the configuration requires it.
pub(super) async fn contain_node(config: &Config, launcher: &Launcher) -> Result<Vec<Guard>, NodeError> {
    let guards = contain(config, launcher, true).await?;
    let names = |on: bool| {
        let named = guards.iter().filter(|guard| guard.on == on && (on || guard.wanted));
        named.map(|guard| guard.name.to_string()).collect::<Vec<_>>().join(", ")
    };
    info!(on = names(true), "what the contract is kept in by");
    for Guard { name, why, .. } in guards.iter().filter(|guard| guard.wanted && !guard.on) {
        warn!(guard = %name, why, "the contract runs without a guard");
    }
    if config.contract.containment == config::Containment::Off {
        warn!(file = %config.file.display(), "the contract is not contained: [contract] containment = \"off\"");
    }
    let missing = guards.iter().find(|guard| guard.wanted && !guard.on);
    match missing {
        Some(Guard { name, why, .. }) if config.contract.containment == config::Containment::Required => {
            Err(NodeError::Guard { file: config.file.clone(), name: name.to_string(), why: why.clone() })
        }
        _ => Ok(guards),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_configuration_calls_hidden_is_what_is_hidden() {
        assert_eq!(config::HIDDEN, guards::HIDDEN);
    }
}
