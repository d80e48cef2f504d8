//! What one run may use, and how that becomes the operating system's limits.

use std::{
    os::fd::{FromRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::resource::{Resource, getrlimit, setrlimit},
};

/// Limits of one run. Those the operating system keeps are per process of the contract, unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Time on the clock; past it everything is killed and the run is [`End::Overtime`](super::End::Overtime).
    pub wall: Duration,
    /// Seconds of processor time a process may use, then SIGXCPU; 0 for no limit.
    pub cpu_s: u64,
    /// MiB of private writable memory a process may have, then its allocations fail; 0 for no limit.
    pub memory_mb: u64,
    /// Files a process may open besides the descriptors it starts with.
    pub files: u64,
    /// Processes and threads. The kernel counts them per user and not at all for root, so this guards only contracts that
    /// do not run as root; what the user already ran when the launcher started is added. 0 for no limit.
    pub processes: u64,
    /// MiB one file may grow to; writing past it ends the contract with SIGXFSZ, and the run with `Limit(FileSize)`.
    pub file_mb: u64,
    /// Bytes of output to all users together; past it the run is killed with `Limit(Output)`.
    pub output_bytes_max: u64,
    /// Bytes of output to one user; past it the run is killed with `Limit(Output)`.
    pub output_user_bytes_max: u64,
    /// Bytes of stdout, and of stderr, that are kept in the log; the rest is read and dropped.
    pub log_bytes_max: u64,
    /// Files of the log of each of them, the one that is written among them; 1 at least.
    pub log_files: usize,
    /// Bytes the contract may write to the party line; past it the run is killed with `Limit(Npl)`. Also what one peer
    /// may send; past it its messages are ignored.
    pub npl_bytes_max: u64,
}

impl Default for Limits {
    /// The defaults of `[contract]` in `cfg/hp.cfg`.
    fn default() -> Limits {
        const MIB: u64 = 1 << 20;
        Limits {
            wall: Duration::from_secs(30),
            cpu_s: 0,
            memory_mb: 0,
            files: 1024,
            processes: 256,
            file_mb: 4096,
            output_bytes_max: 64 * MIB,
            output_user_bytes_max: 16 * MIB,
            log_bytes_max: MIB,
            log_files: 4,
            npl_bytes_max: 16 * MIB,
        }
    }
}

/// The limits the kernel keeps, as the launcher gets them; 0 means none.
#[derive(Debug, Clone, PartialEq, Eq, borsh::BorshSerialize, borsh::BorshDeserialize)]
pub(super) struct OsLimits {
    pub(super) cpu_s: u64,
    pub(super) memory_bytes: u64,
    pub(super) files: u64,
    pub(super) processes: u64,
    pub(super) file_bytes: u64,
}

impl OsLimits {
    pub(super) fn of(limits: &Limits, users: usize) -> OsLimits {
        OsLimits {
            cpu_s: limits.cpu_s,
            memory_bytes: limits.memory_mb.saturating_mul(1 << 20),
            // A little more than it starts with, for the loader and the like.
            files: limits.files.saturating_add(2 * users as u64 + 32),
            processes: limits.processes,
            file_bytes: limits.file_mb.saturating_mul(1 << 20),
        }
    }

    /// What to set in the child, as (which, soft, hard), within what this process may set. Without `processes_running`
    /// something else bounds its processes.
    pub(super) fn to_set(&self, processes_running: Option<u64>) -> Vec<(Resource, u64, u64)> {
        #[cfg(target_os = "linux")]
        const MEMORY: Resource = Resource::RLIMIT_DATA; // not AS: runtimes reserve far more than they use
        #[cfg(not(target_os = "linux"))]
        const MEMORY: Resource = Resource::RLIMIT_AS;
        let mut list = vec![(Resource::RLIMIT_CORE, 0, 0)];
        let mut add = |resource, soft: u64, extra: u64| {
            if soft > 0 {
                let (_, allowed) = getrlimit(resource).unwrap_or((u64::MAX, u64::MAX));
                list.push((resource, soft.min(allowed), soft.saturating_add(extra).min(allowed)));
            }
        };
        // Between soft and hard a process may note that its time is over; then it is killed.
        add(Resource::RLIMIT_CPU, self.cpu_s, 1);
        add(MEMORY, self.memory_bytes, 0);
        add(Resource::RLIMIT_NOFILE, self.files, 0);
        add(Resource::RLIMIT_FSIZE, self.file_bytes, 0);
        if let Some(running) = processes_running.filter(|_| self.processes > 0) {
            add(Resource::RLIMIT_NPROC, self.processes.saturating_add(running), 0);
        }
        list
    }
}

/// Files that the launcher, and a run itself, may need to have open for so many users.
pub fn files_of_run(files: u64, users: usize) -> u64 {
    OsLimits::of(&Limits { files, ..Limits::default() }, users).files
}

/// Files that the supervisor of a run for so many users has open at a time: one to read from for each, and one to write to for
/// each whose input is longer than what its pipe takes at once.
///
/// `input_bytes` is the most that they say together. The contract's own ends are handed over in batches while they are made.
pub fn files_of_supervisor(users: usize, input_bytes: usize) -> u64 {
    (users + users.min(input_bytes / PIPE_BYTES_MIN)) as u64
}

/// What a pipe holds at least: Linux gives no more to who has very many.
const PIPE_BYTES_MIN: usize = 4_096;

/// Raises the number of files this process may open to what the system allows it; returns that number.
///
/// To be called once at the start of a node. Whoever may raise the bound itself, as root may, gets `NOFILE_WANTED`. When the
/// system refuses, the number stays what it was.
pub fn raise_nofile_limit() -> u64 {
    let limit = raise_nofile_bound();
    // The kernel's table of them grows with the highest number and, in a process with threads, takes milliseconds for
    // it. So it grows now, when nobody waits.
    let highest = i32::try_from(limit.min(NOFILE_READY)).unwrap_or(0) - 1;
    if let Ok(copy) = fcntl(std::io::stderr(), FcntlArg::F_DUPFD_CLOEXEC(highest.max(0))) {
        // SAFETY: fcntl has just made this descriptor, nobody else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(copy) });
    }
    limit
}

/// The same without room for them: for a launcher, which has one thread, and closes all that a run has left by going through
/// that table.
pub(super) fn raise_nofile_bound() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    let is_raised = cfg!(target_os = "linux")
        && hard < NOFILE_WANTED
        && setrlimit(Resource::RLIMIT_NOFILE, soft, NOFILE_WANTED).is_ok();
    let hard = if is_raised { NOFILE_WANTED } else { hard };
    let wanted = if cfg!(target_os = "linux") { hard } else { hard.min(NOFILE_PORTABLE).max(soft) };
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() { wanted } else { soft }
}

/// Files with which tens of thousands of users are no trouble; below what Linux allows anybody (1,048,576).
const NOFILE_WANTED: u64 = 262_144;

/// Files for which room is made at the start; 8 bytes each.
const NOFILE_READY: u64 = 16_384;

/// Files asked for where the system reports no bound but refuses one over a constant of its own (macOS).
const NOFILE_PORTABLE: u64 = 10_240;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_no_limit_and_files_grow_with_the_users() {
        let limits = Limits { processes: 0, files: 10, file_mb: 1, ..Limits::default() };
        let set = OsLimits::of(&limits, 4).to_set(Some(7));
        let expected = [
            (Resource::RLIMIT_CORE, 0, 0),
            (Resource::RLIMIT_NOFILE, 10 + 8 + 32, 10 + 8 + 32),
            (Resource::RLIMIT_FSIZE, 1 << 20, 1 << 20),
        ];
        assert_eq!(set, expected);
    }

    #[test]
    fn a_limit_never_exceeds_what_this_process_may_set() {
        let limits = Limits { file_mb: u64::MAX, files: u64::MAX, ..Limits::default() };
        let (_, allowed) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let set = OsLimits::of(&limits, 1).to_set(Some(0));
        assert!(set.contains(&(Resource::RLIMIT_NOFILE, allowed, allowed)), "{set:?}");
    }

    #[test]
    fn the_raised_number_of_files_is_the_one_in_force() {
        assert_eq!(raise_nofile_limit(), getrlimit(Resource::RLIMIT_NOFILE).unwrap().0);
    }
}
