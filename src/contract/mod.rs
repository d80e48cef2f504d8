//! Runs the contract, once per closed ledger: launcher, pipes, limits, fdlist, NPL.
//!
//! [`Launcher`] is the handle. [`Launcher::run`] gives a contract its ledger and comes back when every process it
//! started is gone, with what it wrote to its users. Knows nothing of votes: which status counts is the node's matter.
//!
//! In reading order: [`fdlist`], [`npl`] and [`request`] (pure), `run.rs` (one run) with `pipes.rs` and `sinks.rs`,
//! `supervisor.rs` (the handle), `orphans.rs` (what a killed launcher leaves), `launcher.rs` (the resident process),
//! `control.rs` (what the two say to each other), `spawn.rs` (system calls), `limits.rs`, `log.rs`; what keeps a contract
//! in its place: [`guards`] (which, and whether they work here), `readable.rs` and `files.rs` (what it may read and
//! write), `calls.rs` (what it may ask of the system), `space.rs` (namespaces), `cgroup.rs` (limits for
//! all of a run together), `tmp.rs`; and `surroundings.rs` (other
//! ones than a node's, for `hp check`).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    consensus::header::UnlChange,
    types::{Auth, NodeKey, Status, UserKey},
};

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod cgroup;
mod control;
pub mod fdlist;
#[cfg(target_os = "linux")]
mod files;
pub mod guards;
mod launcher;
mod limits;
mod log;
pub mod npl;
mod orphans;
mod pipes;
#[cfg(target_os = "linux")]
mod readable;
pub mod request;
mod run;
mod sinks;
#[cfg(target_os = "linux")]
mod space;
mod spawn;
mod supervisor;
mod surroundings;
mod tmp;

pub use control::Step;
pub use guards::{Containment, Guard};
pub use launcher::{LAUNCHER_ARG, launcher_main};
pub use limits::{Limits, files_of_run, files_of_supervisor, raise_nofile_limit};
pub use log::log_ends;
pub use orphans::adopt_orphans;
pub use run::stdin_of;
pub use supervisor::{LaunchError, Launcher};
pub use surroundings::Surroundings;

/// All that one run needs.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// What is executed, without shell or search; a relative path counts from `dir`.
    pub binary: PathBuf,
    /// Arguments after the binary.
    pub args: Vec<String>,
    /// The contract folder, absolute: the working directory, and `HOME`.
    pub dir: PathBuf,
    /// Environment besides PATH, HOME, TZ and LANG, which it may replace.
    pub env: Vec<(String, String)>,
    /// What the run may use.
    pub limits: Limits,
    /// What the contract is told.
    pub facts: fdlist::Facts,
    /// Every user of the ledger, each once.
    pub users: Vec<UserInput>,
    /// Folder for `stdout.log` and `stderr.log`; made when something is written.
    pub log_dir: PathBuf,
    /// How long after its begin the run may still get messages of peers.
    pub npl_window: Duration,
    /// What the run alone sees over a folder of `dir`. Linux only.
    pub overlay: Option<Overlay>,
}

/// A folder that a run sees instead of `target`: what is in `lower`, with every change going to `upper`.
///
/// All are relative to the contract folder and, as they become an option of a mount, consist of letters, digits, `/`,
/// `-` and `_`. `work` is an empty folder on the file system of `upper`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlay {
    /// Where it is seen.
    pub target: &'static str,
    /// What is there before.
    pub lower: &'static str,
    /// An empty folder.
    pub upper: &'static str,
    /// An empty folder.
    pub work: &'static str,
}

/// One user of the ledger.
#[derive(Debug, Clone)]
pub struct UserInput {
    /// Who.
    pub key: UserKey,
    /// How the inputs were authenticated.
    pub auth: Auth,
    /// The inputs in agreed order; the contract reads them joined. None: the user is there and has said nothing.
    pub inputs: Vec<Bytes>,
}

/// What a run came to. No process of it is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunReport {
    /// How it ended.
    pub end: End,
    /// What each user gets, without users who get nothing. Empty unless the end is `Status(Ok)`.
    pub outputs: BTreeMap<UserKey, Vec<u8>>,
    /// The change of the UNL that the contract asked for. None unless the end is `Status(Ok)`.
    pub unl_request: Option<UnlChange>,
    /// From the call of `run` to the end of the last process.
    pub elapsed: Duration,
    /// Messages the contract wrote to the party line.
    pub npl_frames: u64,
    /// Processes that outlived the main process and were killed.
    pub left_over: u32,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, by a signal, or over a limit that all nodes measure alike.
    Status(Status),
    /// Not within [`Limits::wall`]: killed. Machines differ in speed, so the nodes have to agree on what that means.
    Overtime,
}

/// The run's connection to its peers' runs of the same ledger.
#[derive(Debug)]
pub struct NplPort {
    /// What this node's contract writes. When it is full the contract's next write waits; when it is closed the
    /// messages go to this node's contract alone.
    pub out: mpsc::Sender<NplOut>,
    /// What the peers' contracts wrote. Closed by the run as soon as nothing more will be shown to the contract, so
    /// a failed send means "too late", no fault.
    pub incoming: mpsc::Receiver<NplIn>,
}

/// From this node's contract to the peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NplOut {
    /// One message, at most [`npl::NPL_MESSAGE_BYTES_MAX`] bytes, never empty.
    Data(Bytes),
    /// The contract has closed its end, or ended; comes exactly once, last.
    End {
        /// Messages before it.
        frames: u64,
    },
}

/// From a peer's contract to this node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NplIn {
    /// One message.
    Data {
        /// The authenticated sender.
        from: NodeKey,
        /// What it wrote.
        data: Bytes,
    },
    /// The peer's [`NplOut::End`].
    End {
        /// The authenticated sender.
        from: NodeKey,
        /// Messages the peer sent in all.
        frames: u64,
    },
}
