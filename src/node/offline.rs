//! Runs of a contract for its author: no chain, nobody to talk to, in a copy of the contract's folder.
//!
//! As a node runs it: the same launcher, descriptors, limits and roll back.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;

use super::{
    exec::{self, limits_of},
    guards,
};
use crate::{
    config::Config,
    consensus::header::UnlChange,
    contract::{End, LaunchError, Launcher, NplIn, NplOut, RunSpec, UserInput, fdlist::Facts, stdin_of},
    state::{self, Backend, Forbidden, StateError, StateStore},
    types::{Hash, LimitKind, NodeKey, Seq, Status, UserKey, WallMs},
};

/// Messages of the party line that are given to a run, at most. What is over is not heard.
const HEARD_MAX: usize = exec::NPL_IN_MAX / 2;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The copy of the state.
    #[error("cannot keep the copy of the state")]
    State(#[from] StateError),
    /// The contract could not be run, for a reason of this machine.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// The ledger that a run is told of.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// Its number.
    pub seq: Seq,
    /// Its time.
    pub time_ms: WallMs,
    /// Its hash; the agreed randomness follows from it as on a node.
    pub lcl: Hash,
    /// The users, each once, in the order of their descriptors.
    pub users: Vec<UserInput>,
    /// The nodes that decide. This node is the configuration's.
    pub unl: Vec<NodeKey>,
    /// Whether nothing that the run writes is kept.
    pub readonly: bool,
    /// What the contracts of other nodes say on the party line.
    pub heard: Vec<(NodeKey, Bytes)>,
}

/// What one run came to.
#[derive(Debug, Clone)]
pub struct Done {
    /// As a network in which all nodes fare alike would vote it.
    pub status: Status,
    /// What each user gets, without those who get nothing. Empty unless the status is `Ok`.
    pub outputs: BTreeMap<UserKey, Vec<u8>>,
    /// The change of the UNL asked for.
    pub unl_request: Option<UnlChange>,
    /// How long the contract ran.
    pub elapsed: Duration,
    /// What the contract said on the party line.
    pub said: Vec<Bytes>,
    /// Processes that outlived the main process and were killed.
    pub left_over: u32,
    /// Paths of the state that the run changed, made or removed, as it left them: also those of a run that is undone.
    pub changed: Vec<Vec<u8>>,
    /// What the contract left in state/ that nodes cannot agree on, and where.
    pub forbidden: Option<(PathBuf, Forbidden)>,
    /// What it read from stdin.
    pub stdin: Vec<u8>,
    /// What it printed, within `log_kb`.
    pub stdout: Vec<u8>,
    /// The same on stderr.
    pub stderr: Vec<u8>,
}

/// A contract that can be run, ledger after ledger.
pub struct Offline {
    launcher: Launcher,
    config: Config,
    state: Option<Box<dyn StateStore>>,
    root: Hash,
    leaves: BTreeMap<Vec<u8>, Hash>,
    runs: u64,
}

impl Offline {
    /// Begins with the files in `config.dir`/state. `config.dir` is a copy of a contract's folder, and absolute. Runs have
    /// `namespaces` as on a node, or, for comparing them, other process numbers each.
    pub async fn start(config: Config, launcher: Launcher, namespaces: bool) -> Result<Offline, OfflineError> {
        let dir = config.dir.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let mut state = state::open(&dir, Backend::Shadow, None)?;
            let root = state.scan(false)?.root;
            let leaves = state.leaves(usize::MAX).into_iter().collect();
            Ok::<_, StateError>((state, root, leaves))
        });
        let (state, root, leaves) = opened.await.expect("file work does not panic")?;
        guards::contain(&config, &launcher, namespaces).await?;
        Ok(Offline { launcher, config, state: Some(state), root, leaves, runs: 0 })
    }

    /// Paths of the state as it is now, with the hash of each.
    pub fn leaves(&self) -> &BTreeMap<Vec<u8>, Hash> {
        &self.leaves
    }

    /// The state as it is now: a run that ended well, or none.
    pub fn state_dir(&self) -> PathBuf {
        self.config.dir.join("state")
    }

    /// Runs the contract once. `look` gets the folder with the state as the run left it, before it is undone if it is,
    /// and the paths in it that changed.
    pub async fn run(&mut self, ledger: Ledger, look: impl FnOnce(&Path, &[Vec<u8>])) -> Result<Done, OfflineError> {
        let readonly = ledger.readonly;
        let (seq, root) = (ledger.seq, self.root);
        self.blocking(move |state| {
            if state.snapshot_info().is_none_or(|(_, kept)| kept != root) {
                state.snapshot(seq, root)?;
            }
            let mount = state.begin_run()?;
            assert!(mount.is_none(), "a copy needs no mount");
            Ok(())
        })
        .await?;

        self.runs += 1;
        let heard = ledger.heard.clone();
        let spec = self.spec(ledger);
        let log_dir = spec.log_dir.clone();
        let stdin = stdin_of(&spec);
        let (port, mut line) = exec::party_line();
        let mut frames: BTreeMap<NodeKey, u64> =
            spec.facts.unl.iter().filter(|node| **node != spec.facts.pubkey).map(|node| (*node, 0)).collect();
        for (from, data) in heard.into_iter().take(HEARD_MAX) {
            if let Some(frames) = frames.get_mut(&from) {
                *frames += u64::from(line.incoming.try_send(NplIn::Data { from, data }).is_ok());
            }
        }
        for (from, frames) in frames {
            let _ = line.incoming.try_send(NplIn::End { from, frames });
        }
        let listening = tokio::spawn(async move {
            let mut said = Vec::new();
            while let Some(message) = line.out.recv().await {
                if let NplOut::Data(data) = message {
                    said.push(data);
                }
            }
            // Until then the contract's line is open.
            drop(line.incoming);
            said
        });
        let report = self.launcher.run(spec, port).await?;
        let said = listening.await.unwrap_or_default();
        self.launcher.logs_written().await;

        let mut status = match report.end {
            End::Status(status) => status,
            End::Overtime => Status::Limit(LimitKind::Time),
        };
        let quota = exec::quota_of(&self.config.contract);
        let scanned = self
            .blocking(move |state| match state.scan(false) {
                Ok(scan) => Ok(Ok((quota.allows(&scan), scan.root, state.leaves(usize::MAX)))),
                Err(StateError::Forbidden { path, kind }) => Ok(Err((path, kind))),
                Err(other) => Err(other),
            })
            .await?;
        let (changed, forbidden) = match scanned {
            Ok((is_within, root, leaves)) => {
                if status == Status::Ok && !is_within {
                    status = Status::Limit(LimitKind::StateSize);
                }
                let leaves: BTreeMap<Vec<u8>, Hash> = leaves.into_iter().collect();
                let differs = |path: &&Vec<u8>| leaves.get(*path) != self.leaves.get(*path);
                let gone = self.leaves.keys().filter(|path| !leaves.contains_key(*path));
                let mut changed: Vec<Vec<u8>> = leaves.keys().filter(differs).chain(gone).cloned().collect();
                changed.sort();
                if status == Status::Ok && !readonly {
                    (self.root, self.leaves) = (root, leaves);
                }
                (changed, None)
            }
            Err(found) => {
                // A run that failed anyhow keeps its own status, as on a node.
                if status == Status::Ok {
                    status = Status::Limit(LimitKind::State);
                }
                (Vec::new(), Some(found))
            }
        };
        look(&self.state_dir(), &changed);
        if status != Status::Ok || readonly {
            self.blocking(|state| state.rollback()).await?;
        }
        let kept = |name: &str| fs::read(log_dir.join(name)).map(without_heading).unwrap_or_default();
        let is_ok = status == Status::Ok;
        Ok(Done {
            status,
            outputs: if is_ok { report.outputs } else { BTreeMap::new() },
            unl_request: report.unl_request.filter(|_| is_ok),
            elapsed: report.elapsed,
            said,
            left_over: report.left_over,
            changed,
            forbidden,
            stdin,
            stdout: kept("stdout.log"),
            stderr: kept("stderr.log"),
        })
    }

    /// Ends the launcher.
    pub async fn stop(self) -> Result<(), OfflineError> {
        Ok(self.launcher.stop().await?)
    }

    fn spec(&self, ledger: Ledger) -> RunSpec {
        let Config { contract, dir, .. } = &self.config;
        let private = dir.join("private");
        RunSpec {
            binary: self.config.binary.clone(),
            args: self.config.argv.iter().skip(1).cloned().collect(),
            dir: dir.clone(),
            env: contract.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            limits: limits_of(contract),
            facts: Facts {
                lcl: ledger.lcl,
                seq: ledger.seq,
                time_ms: ledger.time_ms,
                pubkey: self.config.key,
                unl: ledger.unl,
                seed: Hash::tagged("hp/seed/1", &ledger.lcl),
                contract: contract.id,
                private: private.is_dir().then_some(private),
                readonly: ledger.readonly,
                settlement: None,
            },
            users: ledger.users,
            // One for each run: what it printed is then all that is in there.
            log_dir: dir.join("log").join(self.runs.to_string()),
            npl_window: Duration::from_millis(contract.npl_window_ms),
            overlay: None,
        }
    }

    /// Runs file work on a thread of its own.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut dyn StateStore) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, OfflineError> {
        let mut state = self.state.take().expect("only this takes it, and puts it back");
        let worked = tokio::task::spawn_blocking(move || {
            let done = work(state.as_mut());
            (state, done)
        });
        let (state, done) = worked.await.expect("file work does not panic");
        self.state = Some(state);
        Ok(done?)
    }
}

/// A log begins with the number of its ledger.
fn without_heading(log: Vec<u8>) -> Vec<u8> {
    match log.iter().position(|byte| *byte == b'\n') {
        Some(end) if log.starts_with(b"--- ledger ") => log[end + 1..].to_vec(),
        _ => log,
    }
}
