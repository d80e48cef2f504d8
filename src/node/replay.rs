//! Ledgers run again, one after the other, as a node runs them but in a copy of its folder and with nobody to talk to.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    Executor,
    exec::{self, Ended, ExecError},
    guards,
};
use tokio::sync::oneshot;

use crate::{
    config::{Config, StateBackend},
    consensus::{Execution, header::ExecResult},
    contract::{LaunchError, Launcher, NplIn, NplOut},
    state::{self, Backend, StateError},
    types::{Hash, LimitKind, NodeKey, Status, UserKey},
};

/// A run may take this many times the time limit: the machine may be slower than those that agreed.
const TIME_FACTOR: u32 = 10;

/// Runs ledgers again.
pub struct Replayer {
    executor: Executor,
    me: NodeKey,
    root: Hash,
}

/// Why ledgers cannot be run again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The files to begin with.
    #[error("cannot read the state to begin with")]
    State(#[from] StateError),
    /// The launcher.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A run that this machine made fail.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// What one run came to.
#[derive(Debug)]
pub struct Again {
    /// What this node would vote.
    pub result: ExecResult,
    /// Outputs, ascending by user.
    pub outputs: Vec<(UserKey, Vec<u8>)>,
    /// Paths that the run changed, made or removed, the first thousand; none of a run that failed.
    pub changed: Vec<Vec<u8>>,
    /// Messages the contract wrote on the party line.
    pub npl_messages: u64,
}

impl Replayer {
    /// Begins with the files in `config.dir`/state, which is not a node's own folder. `exe` is this program.
    pub async fn start(mut config: Config, exe: &Path) -> Result<Replayer, ReplayError> {
        let limit = Duration::from_millis(config.contract.time_limit_ms) * TIME_FACTOR;
        config.contract.time_limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let dir = config.dir.clone();
        // As the network's runs: a contract can tell the one from the other.
        let backend = match config.contract.state_backend {
            StateBackend::Overlay => Backend::Overlay,
            StateBackend::Shadow | StateBackend::Auto => Backend::Shadow,
        };
        let (state, root) = tokio::task::spawn_blocking(move || {
            let mut state = state::open(&dir, backend, None)?;
            let root = state.scan(false)?.root;
            Ok::<_, StateError>((state, root))
        })
        .await
        .expect("file work does not panic")?;
        let launcher = Launcher::start(exe)?;
        guards::contain(&config, &launcher, true).await?;
        let executor = Executor::new(launcher, state, root, 0, &config);
        Ok(Replayer { executor, me: config.key, root })
    }

    /// Root of the state as it is now.
    pub fn root(&self) -> Hash {
        self.root
    }

    /// Runs a ledger.
    pub async fn run(&mut self, execution: Execution) -> Result<Again, ReplayError> {
        let (port, mut line) = exec::party_line();
        // Nobody else says anything.
        for peer in execution.unl.iter().filter(|node| **node != self.me) {
            let _ = line.incoming.try_send(NplIn::End { from: *peer, frames: 0 });
        }
        let listening = tokio::spawn(async move {
            let mut messages = 0;
            while let Some(said) = line.out.recv().await {
                messages += u64::from(matches!(said, NplOut::Data(_)));
            }
            // Until then the contract's line is open.
            drop(line.incoming);
            messages
        });
        let (of_seq, of_hash) = (execution.header.seq, execution.hash);
        let (_never, end) = oneshot::channel();
        let ended = self.executor.run(Arc::new(execution), port, end).await?;
        let npl_messages = listening.await.unwrap_or(0);
        let ran = match ended {
            Ended::Ran(ran) => ran,
            Ended::Cut(_) => {
                let status = Status::Limit(LimitKind::Time);
                let result = ExecResult {
                    of_seq,
                    of_hash,
                    state_root: self.root,
                    outputs_root: Hash::ZERO,
                    status,
                    unl_req: None,
                };
                return Ok(Again { result, outputs: Vec::new(), changed: Vec::new(), npl_messages });
            }
        };
        self.root = ran.result.state_root;
        let changed = ran.details.changed.into_iter().map(|changed| changed.path).collect();
        Ok(Again { result: ran.result, outputs: ran.outputs, changed, npl_messages })
    }

    /// Ends the launcher.
    pub async fn stop(self) {
        self.executor.stop().await;
    }
}
