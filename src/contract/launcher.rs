//! The resident process that starts contracts: small, single-threaded, and parent of everything a run starts.
//!
//! It exists because starting a process out of a big one is slow, because one place must know every process of a run,
//! and because it notices the supervisor's death (end of the socket) and ends the run with it. One run at a time.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{self, SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal},
        stat::{Mode, umask},
    },
    unistd::{self, Pid},
};

#[cfg(target_os = "linux")]
use std::rc::Rc;

#[cfg(target_os = "linux")]
use super::{calls, files, guards::Calls, space};
use super::{
    control::{Exit, FIRST_FD, Header, Line, Reply, Request, Step},
    guards::Guards,
    limits::raise_nofile_limit,
    spawn,
    surroundings::Surroundings,
    tmp,
};

/// First argument that makes `hp` a launcher. Not for people.
pub const LAUNCHER_ARG: &str = "__launcher";

/// Hidden entry point: to be called first in `main` when the first argument is [`LAUNCHER_ARG`].
///
/// The socket to the supervisor is standard input. Ends with the supervisor, and takes the running contract with it.
pub fn launcher_main() -> ! {
    let (surroundings, is_try) = Surroundings::of_args(std::env::args_os().skip(2));
    let done = match is_try {
        true => surroundings.enter(),
        false => Resident::new(surroundings).and_then(|mut resident| resident.serve()),
    };
    let code = match done {
        Ok(()) => 0,
        Err(error) => {
            // Stderr is the supervisor's, and may be closed.
            let _ = writeln!(io::stderr(), "hp: contract launcher: {error}");
            1
        }
    };
    std::process::exit(code)
}

/// The write end that the SIGCHLD handler wakes the loop through.
static CHILD_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_child(_: libc::c_int) {
    let errno = Errno::last_raw();
    // SAFETY: write is async-signal-safe and errno is put back; the byte lives as long as the call. A full pipe is
    // fine, the loop is awake then.
    unsafe { libc::write(CHILD_PIPE.load(Ordering::Relaxed), [1u8].as_ptr().cast(), 1) };
    Errno::set_raw(errno);
}

/// Where the launcher has what it needs for a run in a place of its own; the last numbers below the contract's.
#[cfg(target_os = "linux")]
const NETWORK_FD: RawFd = FIRST_FD - 3;
#[cfg(target_os = "linux")]
const REPORT_OUT: RawFd = FIRST_FD - 2;
#[cfg(target_os = "linux")]
const REPORT_IN: RawFd = FIRST_FD - 1;

/// This process is the first of a place of its own, in which it may end everything else.
#[cfg(target_os = "linux")]
static ALONE: AtomicBool = AtomicBool::new(false);

struct Resident {
    line: Line,
    child_pipe: File,
    /// The contract's first descriptor after stderr; below it are the launcher's own.
    first_fd: RawFd,
    /// Processes of this user when the launcher started; see `Limits::processes`.
    processes_before: u64,
    /// The filter that the last run had, which is usually that of the next.
    #[cfg(target_os = "linux")]
    filter: Option<(Calls, Rc<seccompiler::BpfProgram>)>,
    #[cfg(target_os = "linux")]
    network: space::Network,
    /// Only as the lord of his own users this user can make namespaces.
    #[cfg(target_os = "linux")]
    own_users: bool,
}

/// Killing what runs is also done when the launcher fails, by panic or by error.
impl Drop for Resident {
    fn drop(&mut self) {
        end_descendants();
    }
}

impl Resident {
    fn new(surroundings: Surroundings) -> io::Result<Resident> {
        // A ctrl-c in the supervisor's terminal is for the supervisor, which then ends the run in its own order.
        let _ = unistd::setsid();
        spawn::become_subreaper()?;
        umask(Mode::from_bits_truncate(0o022));
        surroundings.enter()?;
        raise_nofile_limit();
        spawn::close_from(3);
        let line = Line(high_copy(io::stdin().as_fd())?);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        unistd::dup2_stdin(&null)?;
        unistd::dup2_stdout(&null)?;
        let (read, write) = unistd::pipe()?;
        for end in [&read, &write] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        CHILD_PIPE.store(write.into_raw_fd(), Ordering::Relaxed);
        let handler = SigAction::new(SigHandler::Handler(on_child), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler only writes to a descriptor that stays open for the life of the process.
        unsafe { signal::sigaction(Signal::SIGCHLD, &handler) }?;
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            // SAFETY: ignoring a signal runs no code.
            unsafe { signal::sigaction(signal, &ignore) }?;
        }
        signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        let first_fd = surroundings.first_fd();
        // With every number below it taken, received descriptors land where the contract expects them.
        while null.as_fd().try_clone_to_owned()?.into_raw_fd() < first_fd {}
        let _ = null.into_raw_fd();
        spawn::close_from(first_fd as u32);
        Ok(Resident {
            line,
            child_pipe: File::from(read),
            first_fd,
            processes_before: processes_of_user(),
            #[cfg(target_os = "linux")]
            filter: None,
            #[cfg(target_os = "linux")]
            network: space::Network::default(),
            #[cfg(target_os = "linux")]
            own_users: false,
        })
    }

    /// Serves one request after the other until the supervisor is gone.
    fn serve(&mut self) -> io::Result<()> {
        while let Some(header) = self.line.header()? {
            if header == Header::KILL {
                continue; // the run it meant had just ended
            }
            let Some(body) = self.line.body(header)? else { break };
            let Some(in_place) = self.line.descriptors(header, self.first_fd)? else { break };
            let request: Request = borsh::from_slice(&body)?;
            #[cfg(target_os = "linux")]
            if in_place && let Some(space) = request.guards.space.clone() {
                match self.run_apart(&request, &space, header.fds)? {
                    Some(reply) => self.line.answer(&reply)?,
                    None => break,
                }
                continue;
            }
            let started =
                if in_place { self.start(&request, header.fds) } else { Err((Step::Descriptors, Errno::EMFILE)) };
            spawn::close_from(self.first_fd as u32);
            let reply = match started {
                Err((step, errno)) => Reply::NotStarted { step, errno: errno as i32 },
                Ok(main) => match self.watch(main)? {
                    Some(reply) => reply,
                    None => break,
                },
            };
            if let Some(tmp) = &request.tmp {
                // The next run begins with it, and does not begin without.
                let _ = empty(tmp);
            }
            self.line.answer(&reply)?;
        }
        Ok(())
    }

    /// Has a copy of this process run the request in a place of its own. `None`: supervisor gone.
    #[cfg(target_os = "linux")]
    fn run_apart(&mut self, request: &Request, space: &space::Space, fds: u32) -> io::Result<Option<Reply>> {
        let ended = self.fork_apart(request, space, fds);
        spawn::close_from(self.first_fd as u32);
        let reply = match ended {
            Err((step, errno)) => Some(Reply::NotStarted { step, errno: errno as i32 }),
            Ok(first) => {
                let exit = spawn::reap(first);
                // Nothing that could write is left, so that this comes to its end.
                let mut told = Vec::new();
                // SAFETY: `fork_apart` has put the reading end there, and whoever closes it owns it.
                let mut report = unsafe { File::from_raw_fd(REPORT_IN) };
                report.read_to_end(&mut told)?;
                // Never free, not for a moment: see `Resident::new`.
                let _ = report.into_raw_fd();
                occupy(REPORT_IN)?;
                match (borsh::from_slice(&told), exit) {
                    (Ok(reply), _) => Some(reply),
                    // The kernel has ended the place, for want of memory.
                    (Err(_), Some(exit @ Exit::Signal(_))) => Some(Reply::Ended { exit, left_over: 0 }),
                    (Err(_), _) => None,
                }
            }
        };
        if let Some(tmp) = &request.tmp {
            // The next run begins with it, and does not begin without.
            let _ = empty(tmp);
        }
        Ok(reply)
    }

    /// The first process of the new place, which reports to `REPORT_IN`.
    #[cfg(target_os = "linux")]
    fn fork_apart(&mut self, request: &Request, space: &space::Space, fds: u32) -> Result<Pid, (Step, Errno)> {
        let made = |errno: Errno| (Step::Space, errno);
        if let Some(tmp) = &request.tmp {
            empty(tmp).map_err(|errno| (Step::Tmp, errno))?;
        }
        let privileged = !self.own_users;
        let entered = self.network.enter(privileged && !space.network, |file| {
            put(&file, NETWORK_FD)?;
            // SAFETY: the number is kept for it.
            Ok(unsafe { File::from_raw_fd(NETWORK_FD) })
        });
        if space.network || entered.is_err() {
            occupy(NETWORK_FD).map_err(made)?; // what was there is closed
        }
        if entered == Err(Errno::EPERM) {
            self.own_users = true;
        } else {
            entered.map_err(made)?;
        }
        let (read, write) = unistd::pipe().map_err(made)?;
        // Below the contract's, which are closed here as soon as the copy has them.
        put(&read, REPORT_IN).and_then(|()| put(&write, REPORT_OUT)).map_err(made)?;
        drop((read, write));
        let mut forked = space::fork(self.own_users, self.own_users && !space.network);
        if forked == Err(Errno::EPERM) && !self.own_users {
            self.own_users = true;
            forked = space::fork(true, !space.network);
        }
        if forked == Ok(0) {
            self.first_process(request, space, fds);
        }
        occupy(REPORT_OUT).map_err(made)?;
        forked.map(Pid::from_raw).map_err(|errno| {
            let _ = occupy(REPORT_IN);
            made(errno)
        })
    }

    /// The copy: serves one request, and reports.
    #[cfg(target_os = "linux")]
    fn first_process(&mut self, request: &Request, space: &space::Space, fds: u32) -> ! {
        let end = |code| -> ! {
            // SAFETY: ends this process, without what its original has yet to do at its own end.
            unsafe { libc::_exit(code) }
        };
        space::end_with_parent();
        // SAFETY: `fork_apart` has just made this descriptor, and this process has a copy of it to itself.
        let mut report = unsafe { File::from_raw_fd(REPORT_OUT) };
        if occupy(REPORT_IN).is_err() {
            end(1);
        }
        // An original that died before it could take this one along reads no more.
        let mut readers = [PollFd::new(report.as_fd(), PollFlags::POLLOUT)];
        let _ = poll(&mut readers, PollTimeout::ZERO);
        if readers[0].revents().is_none_or(|events| events.contains(PollFlags::POLLERR)) {
            end(1);
        }
        ALONE.store(true, Ordering::Relaxed);
        let started = self.prepare_place(request, space).and_then(|()| self.start(request, fds));
        spawn::close_from(self.first_fd as u32);
        let reply = match started {
            Err((step, errno)) => Reply::NotStarted { step, errno: errno as i32 },
            Ok(main) => match self.watch(main) {
                Ok(Some(reply)) => reply,
                Ok(None) | Err(_) => end(1),
            },
        };
        let told = borsh::to_vec(&reply).expect("writing to memory does not fail");
        end(report.write_all(&told).map_or(1, |()| 0))
    }

    #[cfg(target_os = "linux")]
    fn prepare_place(&mut self, request: &Request, space: &space::Space) -> Result<(), (Step, Errno)> {
        use std::os::unix::ffi::OsStrExt as _;
        let made = |errno: Errno| (Step::Space, errno);
        if self.own_users {
            space::Users::own().set().map_err(made)?;
        }
        // Its children are its own.
        let (read, write) = unistd::pipe().map_err(made)?;
        for (end, number) in [(&read, self.child_pipe.as_raw_fd()), (&write, CHILD_PIPE.load(Ordering::Relaxed))] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(made)?;
            put(end, number).map_err(made)?;
        }
        let text = |bytes: &Vec<u8>| CString::new(bytes.as_slice()).map_err(|_| (Step::Text, Errno::EINVAL));
        let overlay = match &request.mount {
            Some((target, options)) => Some((text(target)?, text(options)?)),
            None => None,
        };
        let overlay = overlay.as_ref().map(|(target, options)| (target.as_c_str(), options.as_c_str()));
        // While /proc is still the machine's, whose this is.
        spawn::prefer_as_oom_victim();
        space::mount_view(space, std::path::Path::new(std::ffi::OsStr::from_bytes(&request.dir)), overlay)
    }

    fn start(&mut self, request: &Request, fds: u32) -> Result<Pid, (Step, Errno)> {
        let text = |bytes: &Vec<u8>| CString::new(bytes.as_slice()).map_err(|_| (Step::Text, Errno::EINVAL));
        let texts = |list: &Vec<Vec<u8>>| list.iter().map(text).collect::<Result<Vec<_>, _>>();
        // The last three are stdin, stdout and stderr.
        let std_fds = self.first_fd + fds.saturating_sub(3) as RawFd;
        let mount = match request.mount.as_ref().filter(|_| !ALONE.load(Ordering::Relaxed)) {
            Some((target, options)) => Some(spawn::Mount::new(text(target)?, text(options)?)),
            None => None,
        };
        if let Some(tmp) = &request.tmp {
            empty(tmp).map_err(|errno| (Step::Tmp, errno))?;
        }
        spawn::spawn(&spawn::Program {
            path: text(&request.path)?,
            argv: texts(&request.argv)?,
            env: texts(&request.env)?,
            dir: text(&request.dir)?,
            first_fd: self.first_fd,
            std_fds: [std_fds, std_fds + 1, std_fds + 2],
            limits: request.limits.to_set(self.processes_before),
            mount,
            guards: self.confined(&request.guards)?,
        })
    }

    /// Makes ready what the child does to itself.
    #[cfg(target_os = "linux")]
    fn confined(&mut self, guards: &Guards) -> Result<spawn::Confined, (Step, Errno)> {
        let files = guards.files.as_ref().map(files::rules).transpose().map_err(|errno| (Step::Files, errno))?;
        let mounted = files.as_ref().map_or(Ok(0), |_| files::write_rights()).map_err(|errno| (Step::Files, errno))?;
        let capabilities = guards.capabilities;
        let Some(wanted) = guards.calls else {
            return Ok(spawn::Confined { files, mounted, capabilities, calls: None });
        };
        let filter = match self.filter.take().filter(|(of, _)| *of == wanted) {
            Some((_, filter)) => filter,
            None => {
                let target = calls::target().ok_or((Step::Calls, Errno::ENOTSUP))?;
                Rc::new(calls::filter(target, wanted.network, wanted.own_ipc))
            }
        };
        self.filter = Some((wanted, Rc::clone(&filter)));
        Ok(spawn::Confined { files, mounted, capabilities, calls: Some(filter) })
    }

    #[cfg(not(target_os = "linux"))]
    fn confined(&mut self, guards: &Guards) -> Result<spawn::Confined, (Step, Errno)> {
        match guards.calls {
            None => Ok(spawn::Confined::default()),
            Some(_) => Err((Step::Calls, Errno::ENOTSUP)),
        }
    }

    /// Waits for the end of the run, by itself or by order, and until nothing of it is left. `None`: supervisor gone.
    fn watch(&mut self, main: Pid) -> io::Result<Option<Reply>> {
        loop {
            if let Some((exit, left_over)) = end_if_over(main) {
                return Ok(Some(Reply::Ended { exit, left_over }));
            }
            let mut fds = [
                PollFd::new(self.line.0.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.child_pipe.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [line, child] = fds.map(|fd| fd.any().unwrap_or(true));
            if child {
                let mut bytes = [0; 64];
                while matches!(self.child_pipe.read(&mut bytes), Ok(n) if n > 0) {}
            }
            if line {
                match self.line.header()? {
                    Some(Header::KILL) => {
                        let (exit, left_over) = kill_run(main);
                        return Ok(Some(Reply::Ended { exit, left_over }));
                    }
                    Some(header) => return Err(io::Error::other(format!("{header:?} while a contract runs"))),
                    None => return Ok(None), // `Drop` ends the run
                }
            }
        }
    }
}

fn empty(tmp: &[u8]) -> Result<(), Errno> {
    use std::os::unix::ffi::OsStrExt as _;
    let emptied = tmp::prepare(std::path::Path::new(std::ffi::OsStr::from_bytes(tmp)));
    emptied.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// Reaps what was orphaned and died; when the main process is dead, ends everything else.
fn end_if_over(main: Pid) -> Option<(Exit, u32)> {
    loop {
        match spawn::dead_child() {
            Some(pid) if pid == main => return Some(kill_run(main)),
            Some(pid) => {
                spawn::reap(pid);
            }
            None => return None,
        }
    }
}

/// Kills the main process, if it is not dead yet, and everything else; how main ended, and how many others there were.
fn kill_run(main: Pid) -> (Exit, u32) {
    // Main is not reaped yet, so its number is still its own, also as that of its group. A group dies at once, which
    // no process in it can outrun by forking.
    kill_with_group(main);
    let exit = spawn::reap(main).unwrap_or(Exit::Signal(libc::SIGKILL));
    (exit, end_descendants())
}

/// Kills and reaps until this process has no child. Orphans become its children, so then nothing is left.
fn end_descendants() -> u32 {
    #[cfg(target_os = "linux")]
    if ALONE.load(Ordering::Relaxed) {
        return end_place();
    }
    let mut killed = BTreeSet::new();
    loop {
        while let Some(pid) = spawn::dead_child() {
            spawn::reap(pid);
        }
        if !spawn::has_children() {
            return u32::try_from(killed.len()).unwrap_or(u32::MAX);
        }
        // Only own children, whose numbers cannot be used anew before they are reaped; theirs follow in the next turn.
        for child in children() {
            kill_with_group(child);
            killed.insert(child);
        }
        spawn::wait_for_dead_child();
    }
}

/// As [`end_descendants`], for the first process of a place: who is in there is known to the kernel.
#[cfg(target_os = "linux")]
fn end_place() -> u32 {
    while let Some(pid) = spawn::dead_child() {
        spawn::reap(pid);
    }
    let mut killed = 0;
    while spawn::has_children() {
        // All at once, and none of them can fork any more.
        let _ = signal::kill(Pid::from_raw(-1), Signal::SIGKILL);
        spawn::wait_for_dead_child();
        while let Some(pid) = spawn::dead_child() {
            killed += u32::from(spawn::reap(pid) == Some(Exit::Signal(libc::SIGKILL)));
        }
    }
    killed
}

/// Makes a number a copy of a descriptor, closed on exec, and closes what had it.
#[cfg(target_os = "linux")]
fn put(fd: &impl std::os::fd::AsRawFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: a plain call; the numbers that this is called with belong to the launcher's fixed places.
    Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) }).map(drop)
}

/// Gives a number back to `/dev/null`, which stands at all those that nothing else has; see `Resident::new`.
#[cfg(target_os = "linux")]
fn occupy(number: RawFd) -> Result<(), Errno> {
    put(&io::stdin(), number)
}

/// Kills a child that is not reaped yet, and the group it leads, if it does.
pub(super) fn kill_with_group(child: Pid) {
    let _ = signal::killpg(child, Signal::SIGKILL);
    let _ = signal::kill(child, Signal::SIGKILL);
}

/// The children of this process, as far as the system tells.
fn children() -> Vec<Pid> {
    let own = unistd::getpid();
    let parse = |text: &str| text.parse().ok().map(Pid::from_raw);
    if let Ok(list) = std::fs::read_to_string(format!("/proc/self/task/{own}/children")) {
        return list.split_ascii_whitespace().filter_map(parse).collect();
    }
    let parent_of = |pid: &Pid| {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name before the last bracket may hold anything.
        let rest = stat.rsplit(|byte| *byte == b')').next()?.to_owned();
        parse(String::from_utf8(rest).ok()?.split_ascii_whitespace().nth(1)?)
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| parse(entry.file_name().to_str()?)).filter(|pid| parent_of(pid) == Some(own)).collect()
}

/// Threads this user runs now. 0 for root, whom the kernel does not count, and where the system does not tell.
fn processes_of_user() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let own = unistd::geteuid();
    if own.is_root() {
        return 0;
    }
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mine = all.filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    let mine = mine.filter(|entry| entry.metadata().is_ok_and(|meta| meta.uid() == own.as_raw()));
    mine.map(|entry| std::fs::read_dir(entry.path().join("task")).map_or(1, |tasks| tasks.count() as u64)).sum()
}

/// A copy of the descriptor above stdin, stdout and stderr, closed on exec.
fn high_copy(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: fcntl has just made this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
