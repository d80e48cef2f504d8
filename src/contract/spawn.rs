//! Starting and reaping processes in the launcher: the only system calls that have no safe wrapper.
//!
//! On Linux the child shares the launcher's memory and the launcher sleeps until the child has executed its program or
//! has failed (as `vfork` does), so a start costs no copy of anything and a failure is told through that memory.

use std::{cell::Cell, ffi::CString, io, os::fd::RawFd, ptr};

use nix::{
    errno::Errno,
    libc::{self, c_char, c_int, c_uint, c_void},
    sys::resource::{Resource, setrlimit},
    unistd::Pid,
};

use super::control::{Exit, Step};

/// All that a child needs, made before it exists: in the child nothing may allocate.
pub(super) struct Program {
    pub(super) path: CString,
    pub(super) argv: Vec<CString>,
    pub(super) env: Vec<CString>,
    pub(super) dir: CString,
    /// The program's first descriptor after stderr; those between are closed.
    pub(super) first_fd: RawFd,
    /// These become stdin, stdout and stderr; they and all higher descriptors are closed.
    pub(super) std_fds: [RawFd; 3],
    /// The machine's `/proc`, which can be written to.
    #[cfg(target_os = "linux")]
    pub(super) proc: Option<RawFd>,
    pub(super) limits: Vec<(Resource, u64, u64)>,
    pub(super) mount: Option<Mount>,
    pub(super) guards: Confined,
}

/// What the child does to itself last, when nothing of it is needed any more.
#[derive(Default)]
pub(super) struct Confined {
    /// The rule set for its files.
    #[cfg(target_os = "linux")]
    pub(super) files: Option<std::os::fd::OwnedFd>,
    /// What the rule for a folder allows that is mounted only in the child.
    #[cfg(target_os = "linux")]
    pub(super) mounted: u64,
    /// The groups that count it, for one to write `0` to.
    #[cfg(target_os = "linux")]
    pub(super) doors: Vec<CString>,
    /// The user and the group that it becomes.
    pub(super) user: Option<(u32, u32)>,
    /// It is root without what only root can do.
    pub(super) capabilities: bool,
    /// The filter of its system calls.
    #[cfg(target_os = "linux")]
    pub(super) calls: Option<std::rc::Rc<[libc::sock_filter]>>,
}

/// An overlay that the program alone sees, and the texts that make its user the same inside as outside.
pub(super) struct Mount {
    target: CString,
    options: CString,
    uid_map: String,
    gid_map: String,
}

impl Mount {
    /// `target` and the paths in `options` are relative to the program's folder.
    pub(super) fn new(target: CString, options: CString) -> Mount {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        Mount { target, options, uid_map: format!("{uid} {uid} 1"), gid_map: format!("{gid} {gid} 1") }
    }
}

/// Memory for the stack of a process that shares all other memory with this one. Kept from one to the next, because memory
/// that is used for the first time takes the kernel longer than all that is done on it.
pub(super) struct Stack {
    lowest: ptr::NonNull<c_void>,
    bytes: usize,
}

impl Stack {
    /// Below it, where nothing can be; as much as one page has on any machine.
    const GUARD_BYTES: usize = 64 * 1024;

    /// Of so many bytes, a multiple of 64 KiB.
    pub(super) fn new(bytes: usize) -> Result<Stack, Errno> {
        let bytes = bytes + Stack::GUARD_BYTES;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, at a place that nothing else has; a part of it is then made unusable.
        unsafe {
            let lowest = libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0);
            if lowest == libc::MAP_FAILED {
                return Err(Errno::last());
            }
            let stack = Stack { lowest: ptr::NonNull::new(lowest).ok_or(Errno::EFAULT)?, bytes };
            Errno::result(libc::mprotect(lowest, Stack::GUARD_BYTES, libc::PROT_NONE))?;
            Ok(stack)
        }
    }

    /// Its upper end, from where it grows down.
    pub(super) fn top(&mut self) -> *mut c_void {
        // SAFETY: one past the last byte of what was made as one piece.
        unsafe { self.lowest.as_ptr().byte_add(self.bytes) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: made by `mmap` in this length; whoever used it is gone, or this is not reached.
        unsafe { libc::munmap(self.lowest.as_ptr(), self.bytes) };
    }
}

/// What the child works with.
struct Child<'a> {
    program: &'a Program,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    launcher: libc::pid_t,
    /// The child is in a user namespace of its own, whose maps it has to write.
    own_users: bool,
    failed: Cell<Option<(Step, Errno)>>,
}

/// Starts the program in a session of its own. What it could not do before the program's first instruction is the
/// error; then no process is left of it.
///
/// `stack` is that of the process until it is the program; [`STACK_BYTES`] are enough.
pub(super) fn spawn(program: &Program, stack: &mut Stack) -> Result<Pid, (Step, Errno)> {
    match spawn_as(program, stack, false) {
        // Who may not have a view of the files for himself may have one as the lord of his own users.
        Err((Step::View, Errno::EPERM)) => spawn_as(program, stack, true),
        done => done,
    }
}

fn spawn_as(program: &Program, stack: &mut Stack, own_users: bool) -> Result<Pid, (Step, Errno)> {
    let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
    let child = Child {
        program,
        argv: pointers(&program.argv),
        env: pointers(&program.env),
        launcher: nix::unistd::getpid().as_raw(),
        own_users,
        failed: Cell::new(None),
    };
    // No handler of this process may run in the child, whose signals are unblocked only after they are reset.
    let mut before = nix::sys::signal::SigSet::empty();
    let block = Some(nix::sys::signal::SigSet::all());
    let block = block.as_ref();
    nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, block, Some(&mut before))
        .map_err(|errno| (Step::Clone, errno))?;
    let pid = start(&child, stack);
    let _ = nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&before), None);
    let making = if program.mount.is_some() { Step::View } else { Step::Clone };
    let pid = Pid::from_raw(pid.map_err(|errno| (making, errno))?);
    match child.failed.take() {
        None => Ok(pid),
        Some(failure) => {
            reap(pid);
            Err(failure)
        }
    }
}

/// Far more than the handful of calls before exec needs.
pub(super) const STACK_BYTES: usize = 128 * 1024;

#[cfg(target_os = "linux")]
fn start(child: &Child<'_>, stack: &mut Stack) -> Result<libc::pid_t, Errno> {
    let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    if child.program.mount.is_some() {
        flags |= libc::CLONE_NEWNS;
    }
    if child.own_users {
        flags |= libc::CLONE_NEWUSER;
    }
    // SAFETY: CLONE_VFORK keeps this only thread asleep until the child has executed or ended, so the child is alone
    // in the memory and both `stack` and `child` outlive its use of them.
    Errno::result(unsafe { libc::clone(in_child, stack.top(), flags, ptr::from_ref(child).cast_mut().cast()) })
}

#[cfg(not(target_os = "linux"))]
fn start(child: &Child<'_>, _stack: &mut Stack) -> Result<libc::pid_t, Errno> {
    if child.program.mount.is_some() || child.own_users {
        return Err(Errno::ENOTSUP);
    }
    // SAFETY: this process has one thread, and the child only makes async-signal-safe calls.
    match Errno::result(unsafe { libc::fork() })? {
        0 => {
            let code = in_child(ptr::from_ref(child).cast_mut().cast());
            // SAFETY: _exit runs nothing of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

/// The child, until it is the contract. Only async-signal-safe calls, and nothing that allocates.
extern "C" fn in_child(child: *mut c_void) -> c_int {
    // SAFETY: `start` passes its `child`, which outlives this function.
    let child = unsafe { &*child.cast::<Child<'_>>() };
    let (step, errno) = prepare_and_exec(child);
    child.failed.set(Some((step, errno)));
    // What a copied child (not on Linux) tells in place of `failed`.
    if matches!(errno, Errno::ENOENT | Errno::ENOTDIR) { 127 } else { 126 }
}

fn prepare_and_exec(child: &Child<'_>) -> (Step, Errno) {
    let program = child.program;
    // SAFETY: plain calls on this process, whose memory they do not touch.
    unsafe {
        libc::setsid();
        #[cfg(target_os = "linux")]
        {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
            // A launcher that died before that call sends no signal any more.
            if libc::getppid() != child.launcher {
                return (Step::Clone, Errno::ESRCH);
            }
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as libc::c_ulong, 0, 0, 0) < 0 {
                return (Step::NoNewPrivs, Errno::last());
            }
        }
    }
    #[cfg(target_os = "linux")]
    for door in &program.guards.doors {
        if let Err(errno) = write_file(door, b"0") {
            return (Step::Cgroup, errno);
        }
    }
    #[cfg(target_os = "linux")]
    prefer_as_oom_victim(program.proc);
    for (to, from) in program.std_fds.iter().enumerate() {
        // SAFETY: makes descriptor 0, 1 or 2 of the child a copy of one of its pipes.
        if unsafe { libc::dup2(*from, to as c_int) } < 0 {
            return (Step::Descriptors, Errno::last());
        }
    }
    // SAFETY: `dir` ends with NUL and outlives the call.
    if unsafe { libc::chdir(program.dir.as_ptr()) } < 0 {
        return (Step::Folder, Errno::last());
    }
    #[cfg(target_os = "linux")]
    if let Some(mount) = &program.mount
        && let Err((step, errno)) =
            mount_overlay(mount, child.own_users).and_then(|()| open_to_contract(mount, &program.guards))
    {
        return (step, errno);
    }
    for (resource, soft, hard) in &program.limits {
        if let Err(errno) = setrlimit(*resource, *soft, *hard) {
            return (Step::Limit, errno);
        }
    }
    #[cfg(target_os = "linux")]
    if program.guards.capabilities
        && let Err(errno) = drop_capabilities(if program.guards.user.is_some() { 0 } else { KEPT })
    {
        return (Step::Capabilities, errno);
    }
    if let Some((uid, gid)) = program.guards.user {
        give_pipes(program.first_fd..=program.std_fds[2], uid, gid);
        if let Err(errno) = become_user(uid, gid) {
            return (Step::User, errno);
        }
        // Whoever becomes another user does not end with his parent any more.
        #[cfg(target_os = "linux")]
        // SAFETY: sets a value of this process.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
        };
        // SAFETY: as above. It shows whether this user may be here at all.
        if unsafe { libc::chdir(program.dir.as_ptr()) } < 0 {
            return (Step::Folder, Errno::last());
        }
    }
    #[cfg(target_os = "linux")]
    if let Err((step, errno)) = confine_files(&program.guards) {
        return (step, errno);
    }
    close_from(program.std_fds[0] as u32);
    close_range(3, program.first_fd as u32 - 1);
    #[cfg(target_os = "linux")]
    if !program.guards.capabilities {
        drop_rights();
    }
    reset_signals(&IGNORED);
    #[cfg(target_os = "linux")]
    if let Err((step, errno)) = confine_calls(&program.guards) {
        return (step, errno);
    }
    // SAFETY: path, argv and env are NUL-terminated texts and null-terminated lists of them, which outlive the call.
    unsafe { libc::execve(program.path.as_ptr(), child.argv.as_ptr(), child.env.as_ptr()) };
    (Step::Exec, Errno::last())
}

/// Gives a user the pipes among these descriptors: who opens `/dev/fd/N` has to own what is behind it.
fn give_pipes(fds: std::ops::RangeInclusive<RawFd>, uid: u32, gid: u32) {
    for fd in fds {
        // SAFETY: a zeroed stat is a valid one, and fstat writes only to it. Nothing but pipes is given away: what a user
        // without inputs has is the machine's own /dev/null.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(fd, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFIFO {
                libc::fchown(fd, uid, gid);
            }
        }
    }
}

/// Becomes a user for good, with one group.
fn become_user(uid: u32, gid: u32) -> Result<(), Errno> {
    // SAFETY: plain calls on this process. On Linux past the C library, which would have all threads of the launcher, whose
    // memory this child shares, do the same.
    #[cfg(target_os = "linux")]
    unsafe {
        Errno::result(libc::syscall(libc::SYS_setgroups, 0usize, ptr::null::<libc::gid_t>()))?;
        Errno::result(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid)).map(drop)
    }
    // SAFETY: plain calls on this process, a copy of the launcher.
    #[cfg(not(target_os = "linux"))]
    unsafe {
        Errno::result(libc::setgroups(1, &gid))?;
        Errno::result(libc::setgid(gid))?;
        Errno::result(libc::setuid(uid)).map(drop)
    }
}

/// chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service: what programs that run as root expect.
#[cfg(target_os = "linux")]
const KEPT: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10;

/// Takes from root what is not in `kept`, for good: what is not in the bounding set is not got back by executing anything.
#[cfg(target_os = "linux")]
fn drop_capabilities(kept: u64) -> Result<(), Errno> {
    /// As the kernel has it: 64 bits in two halves each of effective, permitted, inheritable.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: plain calls on this process; the last two read and write the two structures, which outlive them.
    unsafe {
        for capability in (0..64).filter(|capability| kept & (1 << capability) == 0) {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) < 0 {
                match Errno::last() {
                    Errno::EINVAL => break, // past the last one of this kernel
                    other => return Err(other),
                }
            }
        }
        // An older kernel has none of these.
        let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
        libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0);
        Errno::result(libc::syscall(libc::SYS_capget, ptr::from_mut(&mut header), sets.as_mut_ptr()))?;
        for half in &mut sets {
            half[2] = 0;
        }
        Errno::result(libc::syscall(libc::SYS_capset, ptr::from_mut(&mut header), sets.as_ptr())).map(drop)
    }
}

/// A rule for what was mounted: that for the folder below it does not hold for what covers it.
#[cfg(target_os = "linux")]
fn open_to_contract(mount: &Mount, guards: &Confined) -> Result<(), (Step, Errno)> {
    use std::os::fd::AsRawFd as _;
    let Some(rules) = &guards.files else { return Ok(()) };
    // SAFETY: async-signal-safe calls with a text that outlives them; the descriptor is closed before it is lost.
    let done = unsafe {
        let folder = libc::open(mount.target.as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
        if folder < 0 {
            return Err((Step::Files, Errno::last()));
        }
        let done = super::files::add_rule(rules.as_raw_fd(), folder, guards.mounted);
        libc::close(folder);
        done
    };
    done.map_err(|errno| (Step::Files, errno))
}

#[cfg(target_os = "linux")]
fn confine_files(guards: &Confined) -> Result<(), (Step, Errno)> {
    use std::os::fd::AsRawFd as _;
    let Some(rules) = &guards.files else { return Ok(()) };
    // SAFETY: takes a descriptor of this process and touches no memory.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    Errno::result(done).map(drop).map_err(|errno| (Step::Files, errno))
}

#[cfg(target_os = "linux")]
fn confine_calls(guards: &Confined) -> Result<(), (Step, Errno)> {
    let Some(program) = &guards.calls else { return Ok(()) };
    let length = u16::try_from(program.len()).map_err(|_| (Step::Calls, Errno::E2BIG))?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the filter, of that many instructions, before the call is over.
    let done = unsafe {
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        libc::syscall(libc::SYS_seccomp, mode, 0, ptr::from_ref(&filter))
    };
    Errno::result(done).map(drop).map_err(|errno| (Step::Calls, errno))
}

/// Mounts the overlay, for this process and those that it starts alone, and gives up the right to unmount it.
#[cfg(target_os = "linux")]
fn mount_overlay(mount: &Mount, own_users: bool) -> Result<(), (Step, Errno)> {
    const CAP_SYS_ADMIN: libc::c_ulong = 21;
    if own_users {
        // Without this the kernel takes no map of groups from who has no privilege.
        write_file(c"/proc/self/setgroups", b"deny").map_err(|errno| (Step::View, errno))?;
        write_file(c"/proc/self/uid_map", mount.uid_map.as_bytes()).map_err(|errno| (Step::View, errno))?;
        write_file(c"/proc/self/gid_map", mount.gid_map.as_bytes()).map_err(|errno| (Step::View, errno))?;
    }
    let none = ptr::null();
    // SAFETY: texts that end with NUL and outlive the calls; the first changes how this process's own view of the
    // files takes part in changes of others, the second what is seen in it, the third what its program may do.
    unsafe {
        let kept = libc::MS_REC | libc::MS_SLAVE;
        Errno::result(libc::mount(none, c"/".as_ptr(), none, kept, none.cast()))
            .map_err(|errno| (Step::View, errno))?;
        let kind = c"overlay".as_ptr();
        let options = mount.options.as_ptr().cast();
        let flags = libc::MS_NODEV | libc::MS_NOSUID;
        Errno::result(libc::mount(kind, mount.target.as_ptr(), kind, flags, options))
            .map_err(|errno| (Step::Mount, errno))?;
        // Root keeps its other rights; whoever is not root has none after exec anyway.
        libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0);
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn write_file(path: &std::ffi::CStr, text: &[u8]) -> Result<(), Errno> {
    // SAFETY: async-signal-safe calls with texts that outlive them; the descriptor is closed before it is lost.
    unsafe {
        let fd = Errno::result(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let written = Errno::result(libc::write(fd, text.as_ptr().cast(), text.len()));
        libc::close(fd);
        written.map(drop)
    }
}

/// Takes from root what no contract needs and no other user has: to go before the node on the processor, to raise its own
/// limits, to make files that cannot be removed, to end the machine. Without effect for everybody else.
#[cfg(target_os = "linux")]
fn drop_rights() {
    const LINUX_IMMUTABLE: libc::c_ulong = 9;
    const SYS_BOOT: libc::c_ulong = 22;
    const SYS_NICE: libc::c_ulong = 23;
    const SYS_RESOURCE: libc::c_ulong = 24;
    for right in [LINUX_IMMUTABLE, SYS_BOOT, SYS_NICE, SYS_RESOURCE] {
        // SAFETY: limits what this process's program may do; touches no memory.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, right, 0, 0, 0) };
    }
}

/// What a launcher ignores: a ctrl-c in the supervisor's terminal is for the supervisor, which then ends the run in its own
/// order; and a supervisor that is gone is noticed otherwise.
pub(super) const IGNORED: [c_int; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE];

/// From now on this process ignores those and no other, whatever its parent has ignored. So a child need not ask about each.
pub(super) fn ignore_signals() {
    let all: [c_int; 64] = std::array::from_fn(|at| at as c_int + 1);
    reset_signals(&all);
    for signal in IGNORED {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// These signals at their defaults, none blocked. What has a handler gets its default by executing a program.
fn reset_signals(list: &[c_int]) {
    // SAFETY: a zeroed action is the default one with an empty mask; the table is this process's own, as a child was made
    // without CLONE_SIGHAND. Signals that cannot be set return an error without effect.
    #[cfg(target_os = "linux")]
    unsafe {
        // Past the C library, which hides two signals that a parent may have ignored all the same. All zero, and
        // longer than the kernel's own structure is anywhere.
        let default = [0u64; 8];
        let set_bytes: usize = 8;
        for signal in list {
            libc::syscall(libc::SYS_rt_sigaction, *signal, default.as_ptr(), ptr::null::<c_void>(), set_bytes);
        }
    }
    // SAFETY: as above.
    #[cfg(not(target_os = "linux"))]
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in list.iter().filter(|signal| **signal < 32) {
            libc::sigaction(*signal, &default, ptr::null_mut());
        }
    }
    // SAFETY: both calls write to a set of this function or to the mask of this process.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// When memory runs out, the kernel shall take the contract and not the node. A refusal changes nothing.
#[cfg(target_os = "linux")]
fn prefer_as_oom_victim(proc: Option<RawFd>) {
    const FILE: &std::ffi::CStr = c"self/oom_score_adj";
    const SCORE: &[u8] = b"500";
    let Some(proc) = proc else { return };
    // SAFETY: async-signal-safe calls with texts that live for ever; the descriptor is closed before it is lost.
    unsafe {
        let fd = libc::openat(proc, FILE.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, SCORE.as_ptr().cast(), SCORE.len());
            libc::close(fd);
        }
    }
}

/// Closes this descriptor and all above it. Whoever owned one must not use it any more.
pub(super) fn close_from(first: u32) {
    close_range(first, c_uint::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: closes descriptors by number, which the callers' contract allows; touches no memory.
    #[cfg(target_os = "linux")]
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    // Older kernels and other systems: number by number up to the limit in force.
    // SAFETY: as above; sysconf reads a number.
    unsafe {
        let open_max = u32::try_from(libc::sysconf(libc::_SC_OPEN_MAX)).unwrap_or(1024);
        for fd in first..=last.min(open_max) {
            libc::close(fd as c_int);
        }
    }
}

/// From now on orphans among the descendants become children of this process.
pub(super) fn become_subreaper() -> io::Result<()> {
    // SAFETY: sets a flag of this process.
    #[cfg(target_os = "linux")]
    Errno::result(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1 as libc::c_ulong, 0, 0, 0) })?;
    Ok(())
}

/// A child that has ended and is not reaped yet, if there is one.
pub(super) fn dead_child() -> Option<Pid> {
    wait_id(libc::WEXITED | libc::WNOWAIT | libc::WNOHANG).ok().flatten()
}

/// Sleeps until a child has ended, or there is none.
pub(super) fn wait_for_dead_child() {
    while wait_id(libc::WEXITED | libc::WNOWAIT) == Err(Errno::EINTR) {}
}

/// Whether this process has any child, dead or alive.
pub(super) fn has_children() -> bool {
    wait_id(libc::WEXITED | libc::WNOWAIT | libc::WNOHANG) != Err(Errno::ECHILD)
}

fn wait_id(flags: c_int) -> Result<Option<Pid>, Errno> {
    // SAFETY: a zeroed siginfo_t is valid, and waitid writes only to it. si_pid is set, to 0 where nothing ended.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        Errno::result(libc::waitid(libc::P_ALL, 0, &mut info, flags))?;
        Ok(Some(info.si_pid()).filter(|pid| *pid != 0).map(Pid::from_raw))
    }
}

/// Takes the ended child off the system's list, waiting for its end if need be. `None` when it is no child.
///
/// Not nix's `waitpid`, which has no word for death by a real-time signal.
pub(super) fn reap(pid: Pid) -> Option<Exit> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid writes only to `status`.
        match Errno::result(unsafe { libc::waitpid(pid.as_raw(), &mut status, 0) }) {
            Err(Errno::EINTR) => {}
            Err(_) => return None,
            Ok(_) if libc::WIFSIGNALED(status) => return Some(Exit::Signal(libc::WTERMSIG(status))),
            Ok(_) => return Some(Exit::Code(libc::WEXITSTATUS(status))),
        }
    }
}
