//! A place of its own for a run (Linux): its processes, its view of the files, its queues, and no network.
//!
//! A copy of the launcher becomes the first process of that place. It mounts what the run sees and starts the contract;
//! when it ends, the kernel ends every process in there, whatever they did to get away, and forgets every mount.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::{self, File},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use borsh::{BorshDeserialize, BorshSerialize};
use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, setns, unshare},
    sys::stat::SFlag,
};

use super::control::Step;

/// Bytes and names of `tmp/`. Past it, writing there fails with ENOSPC.
pub(super) const TMP: &CStr = c"mode=0700,size=256m,nr_inodes=65536";

/// The same for `/dev/shm`, where the C library keeps semaphores and shared memory.
const SHARED: &CStr = c"mode=1777,size=64m,nr_inodes=4096";

/// What is seen in place of a hidden folder.
const EMPTY: &CStr = c"mode=0555,size=4k,nr_inodes=2";

/// What a run's place is like.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Space {
    /// Folders that are seen empty, and files that are seen as `/dev/null`; absolute. What is not there needs no hiding.
    pub(super) hide: Vec<Vec<u8>>,
    /// Whether it shares this machine's network.
    pub(super) network: bool,
    /// Whether `/proc` shows its processes alone. Where the kernel does not allow that, it shows all.
    pub(super) own_proc: bool,
}

/// The texts that make a user the same inside as outside.
pub(super) struct Users {
    uid_map: String,
    gid_map: String,
}

impl Users {
    /// This process's.
    pub(super) fn own() -> Users {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        Users { uid_map: format!("{uid} {uid} 1"), gid_map: format!("{gid} {gid} 1") }
    }

    /// Called in the new place, before anything else.
    pub(super) fn set(&self) -> Result<(), Errno> {
        let write = |path: &str, text: &str| fs::write(path, text).map_err(errno_of);
        // Without this the kernel takes no map of groups from who has no privilege.
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &self.uid_map)?;
        write("/proc/self/gid_map", &self.gid_map)
    }
}

/// Makes a copy of this process, which must have one thread, as the first process of a new place. 0 in the copy.
pub(super) fn fork(own_users: bool, own_network: bool) -> Result<libc::pid_t, Errno> {
    let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::SIGCHLD;
    if own_users {
        flags |= libc::CLONE_NEWUSER;
    }
    if own_network {
        flags |= libc::CLONE_NEWNET;
    }
    // SAFETY: without CLONE_VM this is a fork, which a process with one thread may do at any time: the copy has all its
    // memory to itself, and nobody holds a lock in it.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0usize, 0usize, 0usize, 0usize) };
    Errno::result(pid).map(|pid| pid as libc::pid_t)
}

/// Ends with its parent from now on, and with what is started in this place.
pub(super) fn end_with_parent() {
    // SAFETY: sets a value of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) };
}

/// The network of this process: this machine's, or one without an interface, for this process and all it starts.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// This machine's, while this process is not in it.
    left: Option<File>,
}

impl Network {
    /// Goes into a network of its own, or back. `EPERM`: only who is privileged can.
    pub(super) fn enter(&mut self, own: bool, keep: impl FnOnce(File) -> Result<File, Errno>) -> Result<(), Errno> {
        match (&self.left, own) {
            (None, true) => {
                let here = File::open("/proc/self/ns/net").map_err(errno_of)?;
                let here = keep(here)?;
                unshare(CloneFlags::CLONE_NEWNET)?;
                self.left = Some(here);
            }
            (Some(left), false) => {
                setns(left, CloneFlags::CLONE_NEWNET)?;
                self.left = None;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Mounts what the run sees. `dir` is the contract folder, `overlay` what is mounted on its state: where, and with which
/// options.
pub(super) fn mount_view(space: &Space, dir: &Path, overlay: Option<(&CStr, &CStr)>) -> Result<(), (Step, Errno)> {
    let view = |errno: Errno| (Step::View, errno);
    nix::unistd::chdir(dir).map_err(|errno| (Step::Folder, errno))?;
    mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None).map_err(view)?;
    let plain = libc::MS_NODEV | libc::MS_NOSUID;
    if let Some((target, options)) = overlay {
        mount(Some(c"overlay"), target, Some(c"overlay"), plain, Some(options))
            .map_err(|errno| (Step::Mount, errno))?;
    }
    let tmpfs = |target: &CStr, flags, options| mount(Some(c"tmpfs"), target, Some(c"tmpfs"), flags, Some(options));
    for (target, options) in [(c"tmp", TMP), (c"/dev/shm", SHARED)] {
        if kind(target) == Some(SFlag::S_IFDIR) {
            tmpfs(target, plain, options).map_err(view)?;
        }
    }
    for path in &space.hide {
        let path = CString::new(path.as_slice()).map_err(|_| (Step::Text, Errno::EINVAL))?;
        match kind(&path) {
            None => {}
            Some(SFlag::S_IFDIR) => {
                tmpfs(&path, plain | libc::MS_NOEXEC | libc::MS_RDONLY, EMPTY).map_err(view)?;
            }
            Some(_) => mount(Some(c"/dev/null"), &path, None, libc::MS_BIND, None).map_err(view)?,
        }
    }
    if space.own_proc {
        let flags = plain | libc::MS_NOEXEC | libc::MS_RDONLY;
        mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, None).map_err(|errno| (Step::Proc, errno))?;
    }
    Ok(())
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: texts that end with NUL, or none, and outlive the call, which touches no other memory.
    let done = unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(options).cast()) };
    Errno::result(done).map(drop)
}

/// What is at a path, behind links.
fn kind(path: &CStr) -> Option<SFlag> {
    let stat = nix::sys::stat::stat(Path::new(OsStr::from_bytes(path.to_bytes()))).ok()?;
    Some(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

/// The system's number for what went wrong.
pub(super) fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
