//! A place of its own for a run (Linux): its processes, its view of the files, its queues, and no network.
//!
//! A child of the launcher, in the same memory, is the first process of that place. It mounts what the run sees before the
//! run is asked for, and starts the contract when it is; when it ends, the kernel ends every process in there, whatever they
//! did to get away, and forgets every mount.

use std::{
    ffi::{CStr, CString, OsStr},
    fs,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::Path,
};

use borsh::{BorshDeserialize, BorshSerialize};
use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, unshare},
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
    unistd::Pid,
};

use super::{
    control::{Exit, Step},
    spawn::{self, Stack},
};

/// Bytes and names of `/dev/shm`, where the C library keeps semaphores and shared memory. Past it, writing fails with ENOSPC.
const SHARED: &CStr = c"mode=1777,size=64m,nr_inodes=4096";

/// What is seen in place of a hidden folder.
const EMPTY: &CStr = c"mode=0555,size=4k,nr_inodes=2";

/// What a run's place is like. Paths are absolute; what is not there is passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Space {
    /// The contract folder, which alone is not read-only.
    pub(super) dir: Vec<u8>,
    /// What is read-only in it all the same.
    pub(super) fixed: Vec<Vec<u8>>,
    /// Folders that are seen empty, and files that are seen as `/dev/null`.
    pub(super) hide: Vec<Vec<u8>>,
    /// The same for what a mount of the run's state is made of: only behind that mount.
    pub(super) hide_mounted: Vec<Vec<u8>>,
    /// Whether it shares this machine's network.
    pub(super) network: bool,
    /// Whether `/proc` shows its processes alone. Where the kernel does not allow that, it shows all.
    pub(super) own_proc: bool,
}

/// What a launcher has left for good, on behalf of all its runs.
#[derive(Debug, Default)]
pub(super) struct Left {
    network: bool,
}

impl Left {
    /// Has `work` done by the first process of a new place, and waits for its end. This process must have one thread.
    ///
    /// `None`, or a signal: it was ended from outside, maybe in the middle of a change of what it shares with this process,
    /// of which then nothing can be relied upon.
    pub(super) fn first_process(
        &mut self,
        network: bool,
        stack: &mut Stack,
        work: &mut dyn FnMut(),
    ) -> Result<Option<Exit>, Errno> {
        // Made once: a network is what takes longest to make and to remove.
        if !network && !self.network {
            privileged(CloneFlags::CLONE_NEWNET)?;
            self.network = true;
        }
        match apart(stack, work) {
            Err(Errno::EPERM) => {
                privileged(CloneFlags::empty())?;
                apart(stack, work)
            }
            done => done,
        }
    }
}

/// Goes into namespaces of these kinds: as it is, or, for who is not privileged, as the lord of its own users, who is the
/// same user inside as outside.
fn privileged(kinds: CloneFlags) -> Result<(), Errno> {
    if !kinds.is_empty() {
        match unshare(kinds) {
            Err(Errno::EPERM) => {}
            done => return done,
        }
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER | kinds)?;
    let write = |path: &str, text: &str| fs::write(path, text).map_err(errno_of);
    // Without this the kernel takes no map of groups from who has no privilege.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", &format!("{gid} {gid} 1"))
}

/// What the first process of a place is given.
struct First<'a> {
    work: &'a mut dyn FnMut(),
    signals: SigSet,
}

/// Has `work` done by a child that is in namespaces of its own and in the memory of this process, which sleeps until the
/// child has ended. So nothing is copied for it, and nothing has to be told by other ways than that memory.
fn apart(stack: &mut Stack, work: &mut dyn FnMut()) -> Result<Option<Exit>, Errno> {
    // No handler of this process may run while the child does: also what a handler puts back is shared.
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let mut first = First { work, signals: before };
    let flags = libc::CLONE_VM | libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::SIGCHLD;
    // SAFETY: this is the only thread, and it does nothing but wait until the child has ended: as if it had called `first_of`
    // itself, on another stack. `stack` and `first` outlive that. Descriptors, signal handlers and the working directory are
    // copies, as flags that would share them are missing.
    let started = unsafe { libc::clone(first_of, stack.top(), flags, std::ptr::from_mut(&mut first).cast()) };
    let ended = Errno::result(started).map(|pid| spawn::reap(Pid::from_raw(pid)));
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    ended
}

/// The child. A panic ends it by a signal.
extern "C" fn first_of(first: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `apart` passes its `first`, which outlives this process.
    let first = unsafe { &mut *first.cast::<First<'_>>() };
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&first.signals), None);
    (first.work)();
    0
}

/// Ends with its parent from now on, and with what is started in this place.
pub(super) fn end_with_parent() {
    // SAFETY: sets a value of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) };
}

/// What the first process of a place has mounted.
#[derive(Debug)]
pub(super) struct View {
    /// What is hidden, and what is seen there instead.
    hidden: Vec<(CString, Option<Stamp>)>,
    /// What is hidden once the state is mounted.
    hide_mounted: Vec<CString>,
    /// Where the state is mounted.
    state: Option<CString>,
}

/// What is at a path: device and number.
type Stamp = (u64, u64);

impl View {
    /// Mounts all that does not depend on the run.
    pub(super) fn mount(space: &Space) -> Result<View, (Step, Errno)> {
        let view = |errno: Errno| (Step::View, errno);
        let texts = |list: &[Vec<u8>]| list.iter().map(|path| text(path)).collect::<Result<Vec<_>, _>>();
        let dir = text(&space.dir)?;
        nix::unistd::chdir(dir.as_c_str()).map_err(|errno| (Step::Folder, errno))?;
        mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None).map_err(view)?;
        // The one folder as it is, beside everything else as it should be.
        match Tree::copy(&dir).and_then(|own| read_only(c"/").map(|()| own)) {
            Ok(own) => {
                own.put(&dir).map_err(view)?;
                for path in texts(&space.fixed)?.iter().filter(|path| stamp(path).is_some()) {
                    match Tree::copy(path).and_then(|fixed| fixed.put(path)).and_then(|()| read_only(path)) {
                        // Moved away since it was looked for: as if it had not been there.
                        Ok(()) | Err(Errno::ENOENT) => {}
                        Err(errno) => return Err(view(errno)),
                    }
                }
                nix::unistd::chdir(dir.as_c_str()).map_err(|errno| (Step::Folder, errno))?;
            }
            // Linux before 5.12. Other guards keep it from writing elsewhere.
            Err(Errno::ENOSYS) => {}
            Err(errno) => return Err(view(errno)),
        }
        let plain = libc::MS_NODEV | libc::MS_NOSUID | libc::MS_NOEXEC;
        if stamp(c"/dev/shm").is_some() {
            mount(Some(c"tmpfs"), c"/dev/shm", Some(c"tmpfs"), plain, Some(SHARED)).map_err(view)?;
        }
        let mut mounted = View {
            hidden: texts(&space.hide)?.into_iter().map(|path| (path, None)).collect(),
            hide_mounted: texts(&space.hide_mounted)?,
            state: None,
        };
        mounted.hide().map_err(view)?;
        if space.own_proc {
            let flags = plain | libc::MS_RDONLY;
            mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, None).map_err(|errno| (Step::Proc, errno))?;
        }
        Ok(mounted)
    }

    /// Mounts what is this run's: its state, if it has one of its own; where, and with which options.
    pub(super) fn begin(&mut self, state: Option<(CString, CString)>) -> Result<(), (Step, Errno)> {
        if let Some((target, options)) = state {
            let flags = libc::MS_NODEV | libc::MS_NOSUID;
            mount(Some(c"overlay"), &target, Some(c"overlay"), flags, Some(&options))
                .map_err(|errno| (Step::Mount, errno))?;
            self.state = Some(target);
        }
        self.hidden.extend(self.hide_mounted.drain(..).map(|path| (path, None)));
        self.hide().map_err(|errno| (Step::View, errno))
    }

    /// Gives the state back, of which nothing is in use any more, and leaves the contract folder: this process ends a moment
    /// after the run, of which nothing is to be found there by then.
    pub(super) fn end(&mut self) -> Result<(), Errno> {
        if let Some(state) = self.state.take() {
            // SAFETY: a text that ends with NUL and outlives the call.
            Errno::result(unsafe { libc::umount2(state.as_ptr(), 0) })?;
        }
        nix::unistd::chdir(c"/")
    }

    /// Hides what is to be hidden and can be seen: all of it at first, later what came in the place of something.
    fn hide(&mut self) -> Result<(), Errno> {
        // The empty folders are all the same one.
        let mut empty: Option<CString> = None;
        for (path, seen) in &mut self.hidden {
            let Ok(meta) = fs::metadata(Path::new(OsStr::from_bytes(path.to_bytes()))) else { continue };
            if *seen == Some((meta.dev(), meta.ino())) {
                empty = empty.or_else(|| meta.is_dir().then(|| path.clone()));
                continue;
            }
            let made = match (meta.is_dir(), &empty) {
                (false, _) => mount(Some(c"/dev/null"), path, None, libc::MS_BIND, None),
                (true, Some(empty)) => mount(Some(empty), path, None, libc::MS_BIND, None),
                (true, None) => {
                    let flags = libc::MS_NODEV | libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_RDONLY;
                    mount(Some(c"tmpfs"), path, Some(c"tmpfs"), flags, Some(EMPTY))
                }
            };
            match made {
                // Moved away since it was looked at.
                Err(Errno::ENOENT) if stamp(path).is_none() => continue,
                made => made?,
            }
            if meta.is_dir() && empty.is_none() {
                empty = Some(path.clone());
            }
            *seen = stamp(path);
        }
        Ok(())
    }
}

/// A part of the view with all that is mounted in it, by itself.
struct Tree(OwnedFd);

impl Tree {
    fn copy(path: &CStr) -> Result<Tree, Errno> {
        const CLONE: libc::c_uint = 1;
        let flags = CLONE | libc::AT_RECURSIVE as libc::c_uint | libc::O_CLOEXEC as libc::c_uint;
        // SAFETY: a text that ends with NUL and outlives the call.
        let made = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
        // SAFETY: the call has just made this descriptor, nobody else owns it.
        Errno::result(made).map(|fd| Tree(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }))
    }

    /// Mounts it there.
    fn put(self, path: &CStr) -> Result<(), Errno> {
        const FROM_ITSELF: libc::c_uint = 4;
        let from = self.0.as_raw_fd();
        // SAFETY: texts that end with NUL and outlive the call, and a descriptor that is open.
        let moved = unsafe {
            libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), libc::AT_FDCWD, path.as_ptr(), FROM_ITSELF)
        };
        Errno::result(moved).map(drop)
    }
}

/// Makes what is mounted at a path, and in all that is below it, read-only.
fn read_only(path: &CStr) -> Result<(), Errno> {
    /// As the kernel has it.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        users: u64,
    }
    const RDONLY: u64 = 1;
    let attributes = Attributes { set: RDONLY, clear: 0, propagation: 0, users: 0 };
    // SAFETY: a text that ends with NUL, and a structure of that size, both of which outlive the call.
    let done = unsafe {
        let (flags, size) = (libc::AT_RECURSIVE as libc::c_uint, size_of::<Attributes>());
        let (at, attributes) = (libc::AT_FDCWD, std::ptr::from_ref(&attributes));
        libc::syscall(libc::SYS_mount_setattr, at, path.as_ptr(), flags, attributes, size)
    };
    Errno::result(done).map(drop)
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

fn text(path: &[u8]) -> Result<CString, (Step, Errno)> {
    CString::new(path).map_err(|_| (Step::Text, Errno::EINVAL))
}

/// What is at a path, behind links.
fn stamp(path: &CStr) -> Option<Stamp> {
    let meta = fs::metadata(Path::new(OsStr::from_bytes(path.to_bytes()))).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// The system's number for what went wrong.
pub(super) fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
