//! The resident process that starts contracts: small, single-threaded, and parent of everything a run starts.
//!
//! It exists because starting a process out of a big one is slow, because one place must know every process of a run,
//! and because it notices the supervisor's death (end of the socket) and ends the run with it. One run at a time.

#[cfg(target_os = "linux")]
use std::os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _};
use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal},
        stat::{Mode, umask},
    },
    unistd::{self, Pid},
};

#[cfg(target_os = "linux")]
use std::rc::Rc;

#[cfg(target_os = "linux")]
use super::{calls, cgroup::Group, files, guards::Calls, space};
use super::{
    control::{Exit, Header, Line, Reply, Request, Step},
    guards::Guards,
    limits::raise_nofile_bound,
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

/// This process, or that in whose memory it is, is the first of a place of its own, in which it may end everything else.
static ALONE: AtomicBool = AtomicBool::new(false);

/// The number of the first process of a place, in there.
const FIRST: Pid = Pid::from_raw(1);

/// For the stack of the first process of a place, which does what the launcher does.
#[cfg(target_os = "linux")]
const PLACE_STACK_BYTES: usize = 1024 * 1024;

/// The write end that the SIGCHLD handler wakes the loop through.
static CHILD_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_child(_: libc::c_int) {
    let errno = Errno::last_raw();
    // SAFETY: write is async-signal-safe and errno is put back; the byte lives as long as the call. A full pipe is
    // fine, the loop is awake then.
    unsafe { libc::write(CHILD_PIPE.load(Ordering::Relaxed), [1u8].as_ptr().cast(), 1) };
    Errno::set_raw(errno);
}

struct Resident {
    line: Line,
    child_pipe: File,
    /// The contract's first descriptor after stderr; below it are the launcher's own.
    first_fd: RawFd,
    /// Processes of this user when the launcher started; see `Limits::processes`.
    processes_before: u64,
    /// For the process that becomes the contract.
    stack: spawn::Stack,
    /// The machine's `/proc`, which can be written to whatever a run sees there.
    #[cfg(target_os = "linux")]
    proc: Option<File>,
    /// What runs are guarded by from now on.
    guards: Guards,
    /// The filter that the last run had, which is usually that of the next.
    #[cfg(target_os = "linux")]
    filter: Option<(Calls, Rc<[libc::sock_filter]>)>,
    /// What counts all runs, or why there is none.
    #[cfg(target_os = "linux")]
    group: Option<Result<Group, Errno>>,
    /// Of the files that runs may use, what was looked up, or why it cannot be of use. Not while this process receives
    /// descriptors: what it holds has numbers that are kept for those.
    #[cfg(target_os = "linux")]
    known: Option<Result<files::Known, Errno>>,
    #[cfg(target_os = "linux")]
    left: space::Left,
    /// For the first process of a place; made with the first.
    #[cfg(target_os = "linux")]
    place_stack: Option<spawn::Stack>,
    /// The place of the next run, where this process is the first of one; or why there is none.
    #[cfg(target_os = "linux")]
    place: Option<Result<Place, (Step, Errno)>>,
}

/// What is ready for a run in a place of its own.
#[cfg(target_os = "linux")]
struct Place {
    view: space::View,
    rules: Option<files::Rules>,
}

/// Killing what runs is also done when the launcher fails, by panic or by error.
impl Drop for Resident {
    fn drop(&mut self) {
        end_descendants();
    }
}

impl Resident {
    fn new(surroundings: Surroundings) -> io::Result<Resident> {
        let _ = unistd::setsid();
        spawn::ignore_signals();
        spawn::become_subreaper()?;
        umask(Mode::from_bits_truncate(0o022));
        surroundings.enter()?;
        raise_nofile_bound();
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
        #[cfg(target_os = "linux")]
        let proc = File::options().read(true).custom_flags(libc::O_PATH).open("/proc").ok();
        let first_fd = surroundings.first_fd();
        // With every number below it taken, received descriptors land where the contract expects them.
        while null.as_fd().try_clone_to_owned()?.into_raw_fd() < first_fd {}
        let _ = null.into_raw_fd();
        spawn::close_from(first_fd as u32);
        Ok(Resident {
            line,
            child_pipe: File::from(read),
            first_fd,
            processes_before: processes_of(unistd::geteuid()),
            stack: spawn::Stack::new(spawn::STACK_BYTES)?,
            #[cfg(target_os = "linux")]
            proc,
            guards: Guards::default(),
            #[cfg(target_os = "linux")]
            filter: None,
            #[cfg(target_os = "linux")]
            group: None,
            #[cfg(target_os = "linux")]
            known: None,
            #[cfg(target_os = "linux")]
            left: space::Left::default(),
            #[cfg(target_os = "linux")]
            place_stack: None,
            #[cfg(target_os = "linux")]
            place: None,
        })
    }

    /// Serves one message after the other until the supervisor is gone.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            #[cfg(target_os = "linux")]
            if let Some(space) = self.guards.space.clone()
                && self.serve_apart(&space)?
            {
                continue;
            }
            #[cfg(target_os = "linux")]
            self.forget_files();
            if !self.serve_one()? {
                return Ok(());
            }
        }
    }

    /// Serves the next message. False: the supervisor is gone.
    fn serve_one(&mut self) -> io::Result<bool> {
        let Some(header) = self.line.header()? else { return Ok(false) };
        if header == Header::KILL {
            return Ok(true); // the run it meant had just ended
        }
        let Some(body) = self.line.body(header)? else { return Ok(false) };
        if header.is_guards() {
            self.guards = borsh::from_slice(&body)?;
            #[cfg(target_os = "linux")]
            self.make_ready();
            return Ok(true);
        }
        let Some(in_place) = self.line.descriptors(header, self.first_fd)? else { return Ok(false) };
        let request: Request = borsh::from_slice(&body)?;
        let killed = self.killed();
        let started = if in_place { self.start(&request, header.fds) } else { Err((Step::Descriptors, Errno::EMFILE)) };
        spawn::close_from(self.first_fd as u32);
        let reply = match started {
            Err((step, errno)) => Reply::NotStarted { step, errno: errno as i32 },
            Ok(main) => match self.watch(main)? {
                Some(reply) => reply,
                None => return Ok(false),
            },
        };
        let reply = match reply {
            // Whoever it was, and whatever the others made of it: the run had not what it wanted, as it might elsewhere.
            Reply::Ended { left_over, .. } if self.killed() > killed => {
                Reply::Ended { exit: Exit::Signal(libc::SIGKILL), left_over }
            }
            reply => reply,
        };
        #[cfg(target_os = "linux")]
        if let Some(Ok(place)) = &mut self.place {
            place.view.end()?;
        }
        if let Some(tmp) = &request.tmp {
            // The next run begins with it, and does not begin without.
            let _ = empty(tmp);
        }
        self.line.answer(&reply)?;
        Ok(true)
    }

    /// What all runs with these guards have in common. What is wrong with it is for a request to tell.
    #[cfg(target_os = "linux")]
    fn make_ready(&mut self) {
        self.processes_before =
            processes_of(self.guards.user.as_ref().map_or(unistd::geteuid(), |user| user.uid.into()));
        let _ = self.filter();
        // The old one first: both would have one name.
        self.group = None;
        self.group = self.guards.cgroup.as_ref().map(|wanted| Group::make(wanted, self.guards.is_apart()));
    }

    /// What the kernel counts of a run's user beside the run. `None`: its group counts, and others of that user, like those
    /// of other nodes, are none of its business.
    fn processes_before(&self) -> Option<u64> {
        #[cfg(target_os = "linux")]
        let is_counted = self.guards.cgroup.is_some();
        #[cfg(not(target_os = "linux"))]
        let is_counted = false;
        (!is_counted || self.guards.user.is_none()).then_some(self.processes_before)
    }

    /// How many processes were killed for want of memory, of all runs.
    fn killed(&self) -> u64 {
        #[cfg(target_os = "linux")]
        if let Some(Ok(group)) = &self.group {
            return group.killed();
        }
        0
    }

    /// Has the first process of a new place serve the next request. It is made before there is one, so that no run waits for
    /// that. False: the next message is none for it.
    #[cfg(target_os = "linux")]
    fn serve_apart(&mut self, space: &space::Space) -> io::Result<bool> {
        let mut stack = match self.place_stack.take() {
            Some(stack) => stack,
            None => spawn::Stack::new(PLACE_STACK_BYTES)?,
        };
        match &mut self.known {
            Some(Ok(known)) => known.refresh(),
            _ => self.known = self.guards.files.as_ref().map(files::Known::new),
        }
        let mut left = std::mem::take(&mut self.left);
        let mut served = None;
        let ended = left.first_process(space.network, &mut stack, &mut || served = Some(self.serve_in_place(space)));
        (self.left, self.place_stack) = (left, Some(stack));
        ALONE.store(false, Ordering::Relaxed);
        match (ended, served) {
            (Ok(Some(Exit::Code(0))), Some(served)) => served,
            (Ok(_), _) => {
                let _ =
                    io::stderr().write_all(b"hp: contract launcher: the first process of a run's place was killed\n");
                // SAFETY: ends this process without a look at memory that the other may have left half changed. The
                // supervisor sees that, and begins anew.
                unsafe { libc::_exit(1) }
            }
            (Err(errno), _) => {
                self.forget_files();
                self.place = Some(Err((Step::Space, errno)));
                let served = self.serve_one();
                self.place = None;
                served
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn forget_files(&mut self) {
        self.known = None;
    }

    /// What the first process of a place does. Whatever it opens is its own, so all of that is closed here.
    #[cfg(target_os = "linux")]
    fn serve_in_place(&mut self, space: &space::Space) -> io::Result<bool> {
        space::end_with_parent();
        ALONE.store(true, Ordering::Relaxed);
        self.place = Some(self.prepare_place(space));
        // This process's copies of what its parent knows the files by, in the way of what it will receive.
        spawn::close_from(self.first_fd as u32);
        let served = loop {
            match self.line.peek() {
                // The run it meant has ended before this place was made.
                Ok(Some(Header::KILL)) => match self.serve_one() {
                    Ok(_) => {}
                    failed => break failed,
                },
                Ok(Some(header)) if !header.is_guards() => break self.serve_one(),
                Ok(_) => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        self.place = None;
        served
    }

    #[cfg(target_os = "linux")]
    fn prepare_place(&mut self, space: &space::Space) -> Result<Place, (Step, Errno)> {
        // While /sys can still be written to. What is started here inherits it.
        if let Some(group) = &self.group {
            group.as_ref().map_err(|errno| *errno).and_then(Group::enter).map_err(|errno| (Step::Cgroup, errno))?;
        }
        let view = space::View::mount(space)?;
        // The last number below the contract's: one of those that are kept for it.
        let rules = |known: &Result<files::Known, Errno>| {
            let known = known.as_ref().map_err(|errno| *errno)?;
            unistd::close(self.first_fd - 1)?;
            let made = files::Rules::new(known);
            if made.is_err() {
                fcntl(io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(self.first_fd - 1))?;
            }
            made
        };
        let rules = self.known.as_ref().map(rules).transpose().map_err(|errno| (Step::Files, errno))?;
        Ok(Place { view, rules })
    }

    fn start(&mut self, request: &Request, fds: u32) -> Result<Pid, (Step, Errno)> {
        let text = |bytes: &Vec<u8>| CString::new(bytes.as_slice()).map_err(|_| (Step::Text, Errno::EINVAL));
        let texts = |list: &Vec<Vec<u8>>| list.iter().map(text).collect::<Result<Vec<_>, _>>();
        // The last three are stdin, stdout and stderr.
        let std_fds = self.first_fd + fds.saturating_sub(3) as RawFd;
        let mount = match &request.mount {
            Some((target, options)) => Some((text(target)?, text(options)?)),
            None => None,
        };
        #[cfg(target_os = "linux")]
        let mount = match &mut self.place {
            Some(Ok(place)) => {
                place.view.begin(mount)?;
                None
            }
            Some(Err(why)) => return Err(*why),
            None => mount,
        };
        if let Some(tmp) = &request.tmp {
            empty(tmp).map_err(|errno| (Step::Tmp, errno))?;
        }
        if let Some(user) = &self.guards.user {
            for path in user.own.iter().chain(&request.tmp) {
                give(path, user.uid, user.gid).map_err(|errno| (Step::User, errno))?;
            }
        }
        let program = spawn::Program {
            path: text(&request.path)?,
            argv: texts(&request.argv)?,
            env: texts(&request.env)?,
            dir: text(&request.dir)?,
            first_fd: self.first_fd,
            std_fds: [std_fds, std_fds + 1, std_fds + 2],
            #[cfg(target_os = "linux")]
            proc: self.proc.as_ref().map(File::as_raw_fd),
            limits: request.limits.to_set(self.processes_before()),
            mount: mount.map(|(target, options)| spawn::Mount::new(target, options)),
            guards: self.confined()?,
        };
        spawn::spawn(&program, &mut self.stack)
    }

    /// Makes ready what the child does to itself.
    #[cfg(target_os = "linux")]
    fn confined(&mut self) -> Result<spawn::Confined, (Step, Errno)> {
        let rules = |errno: Errno| (Step::Files, errno);
        let ready = match &mut self.place {
            Some(Ok(place)) => place.rules.take(),
            _ => None,
        };
        let files = match (ready, &self.known, &self.guards.files) {
            (Some(ready), Some(Ok(known)), _) => Some(ready.up_to_date(known).map_err(rules)?),
            (_, _, Some(files)) => Some(files::rules(files).map_err(rules)?),
            (_, _, None) => None,
        };
        // In a place it is mounted before the rules are made.
        let is_mounted_later = files.is_some() && self.place.is_none();
        let mounted = if is_mounted_later { files::write_rights().map_err(rules)? } else { 0 };
        let doors = match (&self.place, &self.group) {
            (None, Some(group)) => {
                let doors = group.as_ref().map_err(|errno| *errno).and_then(Group::doors);
                doors.map_err(|errno| (Step::Cgroup, errno))?
            }
            // In a place it is in there from its begin.
            _ => Vec::new(),
        };
        let (capabilities, user) = (self.guards.capabilities, self.user());
        Ok(spawn::Confined { files, mounted, doors, user, capabilities, calls: self.filter()? })
    }

    #[cfg(not(target_os = "linux"))]
    fn confined(&mut self) -> Result<spawn::Confined, (Step, Errno)> {
        match self.guards.calls {
            None => Ok(spawn::Confined { user: self.user(), ..Default::default() }),
            Some(_) => Err((Step::Calls, Errno::ENOTSUP)),
        }
    }

    /// Whom the contract runs as, unless it is who runs this.
    fn user(&self) -> Option<(u32, u32)> {
        self.guards.user.as_ref().map(|user| (user.uid, user.gid))
    }

    /// The filter of system calls, if there is to be one.
    #[cfg(target_os = "linux")]
    fn filter(&mut self) -> Result<Option<Rc<[libc::sock_filter]>>, (Step, Errno)> {
        let Some(wanted) = self.guards.calls else { return Ok(None) };
        let filter = match self.filter.take().filter(|(of, _)| *of == wanted) {
            Some((_, filter)) => filter,
            None => {
                let processor = calls::processor().ok_or((Step::Calls, Errno::ENOTSUP))?;
                calls::filter(processor, wanted.network).into()
            }
        };
        self.filter = Some((wanted, Rc::clone(&filter)));
        Ok(Some(filter))
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

/// Makes a folder, and all that is in it, a user's, unless the folder is already. Nothing may be at work in there.
fn give(top: &[u8], uid: u32, gid: u32) -> Result<(), Errno> {
    use std::os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _};
    let top = std::path::Path::new(std::ffi::OsStr::from_bytes(top));
    let given = || -> io::Result<()> {
        let meta = match std::fs::symlink_metadata(top) {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
            meta => meta?,
        };
        if (meta.uid(), meta.gid()) == (uid, gid) {
            return Ok(());
        }
        // The top comes last: cut in the middle, all of it is done again.
        let (mut paths, mut folders) = (vec![top.to_owned()], vec![top.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                paths.push(entry.path());
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        paths.into_iter().rev().try_for_each(|path| std::os::unix::fs::lchown(path, Some(uid), Some(gid)))
    };
    given().map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
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
    // Who is not the first process would end all others of this user.
    if ALONE.load(Ordering::Relaxed) && unistd::getpid() == FIRST {
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

/// Threads a user runs now. 0 for root, whom the kernel does not count, and where the system does not tell.
fn processes_of(own: unistd::Uid) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
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
