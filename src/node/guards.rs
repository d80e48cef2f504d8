//! Has the contract's guards tried out, and says which are on.

use std::path::Path;

use tracing::{info, warn};

use super::NodeError;
use crate::{
    config::{self, Config},
    contract::{Containment, Guard, LaunchError, Launcher, guards},
};

/// Gives every run of this launcher the guards that work here, as far as `[contract] containment` wants them.
///
/// Without `namespaces` runs that are compared have other process numbers each, as on machines that have none. The contract
/// runs as who runs this, whatever `run_as` says: that is for a node's own folder.
pub(super) async fn contain(config: &Config, launcher: &Launcher, namespaces: bool) -> Result<Vec<Guard>, LaunchError> {
    match wanted(config, namespaces) {
        None => Ok(guards::none_wanted("by cfg/hp.cfg")),
        Some(wanted) => launcher.contain(&Containment { user: None, ..wanted }).await,
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
        user: contract.run_as.map(|user| (user.uid, user.gid)),
        processes: contract.processes,
        memory_bytes: contract.memory_bytes.unwrap_or(0),
        read: contract.read.clone(),
        secrets: config.seckey_file.iter().cloned().collect(),
    })
}

/// As [`contain`], for a node: tells what is off, and errors where the configuration requires it.
pub(super) async fn contain_node(config: &Config, launcher: &Launcher) -> Result<Vec<Guard>, NodeError> {
    if let Some(run_as) = config.contract.run_as.filter(|_| !nix::unistd::geteuid().is_root()) {
        return Err(NodeError::RunAs { file: config.file.clone(), run_as });
    }
    let guards = match wanted(config, true) {
        None => guards::none_wanted("by cfg/hp.cfg"),
        Some(wanted) => launcher.contain(&wanted).await?,
    };
    let names = |on: bool| {
        let named = guards.iter().filter(|guard| guard.on == on && (on || guard.wanted));
        named.map(|guard| guard.name.to_string()).collect::<Vec<_>>().join(", ")
    };
    info!(on = names(true), "what the contract is kept in by");
    for Guard { name, why, .. } in guards.iter().filter(|guard| guard.wanted && !guard.on) {
        warn!(guard = %name, why, remedy = name.remedy(), "the contract runs without a guard");
    }
    if config.contract.containment == config::Containment::Off {
        warn!(file = %config.file.display(), "the contract is not contained: [contract] containment = \"off\"");
    }
    if config.contract.containment == config::Containment::Required {
        required(&config.file, &guards)?;
    }
    Ok(guards)
}

/// Errors unless all guards are on that are wanted.
fn required(file: &Path, guards: &[Guard]) -> Result<(), NodeError> {
    let missing = guards.iter().filter(|guard| guard.wanted && !guard.on);
    let lines: Vec<String> =
        missing.map(|Guard { name, why, .. }| format!("\n  {name}: {why}; {}", name.remedy())).collect();
    if lines.is_empty() {
        return Ok(());
    }
    Err(NodeError::Guards { file: file.to_owned(), missing: lines.concat() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_all_guards_are_required_each_that_is_off_is_named_with_its_reason_and_a_way_out() {
        use crate::contract::guards::Name;
        let guard = |name, wanted, on| Guard { name, wanted, on, why: format!("reason of {name}") };
        let file = Path::new("cfg/hp.cfg");
        let all = [guard(Name::Seccomp, true, true), guard(Name::Network, false, false)];
        assert!(required(file, &all).is_ok(), "one is on, the other not wanted");
        let all =
            [guard(Name::Landlock, true, false), guard(Name::Seccomp, true, true), guard(Name::Cgroup, true, false)];
        let error = required(file, &all).expect_err("two are off");
        assert!(error.is_config(), "exit code 3");
        let text = error.to_string();
        for name in [Name::Landlock, Name::Cgroup] {
            assert!(text.contains(&format!("\n  {name}: reason of {name}; {}", name.remedy())), "{text}");
        }
        assert!(text.contains("cfg/hp.cfg") && !text.contains("seccomp:"), "{text}");
    }

    #[test]
    fn what_the_configuration_calls_hidden_is_what_is_hidden() {
        assert_eq!(config::HIDDEN, guards::HIDDEN);
    }
}
