//! The supervisor's handle on the launcher: starts it, gives it one run at a time, and starts another when it died.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, PoisonError},
    thread,
    time::{Duration, Instant},
};

use borsh::BorshSerialize;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        signal::{Signal, kill},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair},
    },
    unistd::Pid,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Mutex, watch},
    time::timeout,
};

use super::{
    LAUNCHER_ARG, Limits, NplPort, Overlay, RunReport, RunSpec,
    control::{self, BODY_BYTES_MAX, Header, PIECE_BYTES, Reply, Request, Step},
    guards::{self, Containment, Guard, Guards, Kept},
    limits::OsLimits,
    log::LogQueue,
    orphans, run,
    surroundings::Surroundings,
};

/// How long killing everything a run started may take. Only a process that hangs in the kernel takes longer; the run
/// then fails with [`LaunchError::Unkillable`].
pub(super) const KILL_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a launcher without a supervisor may take to end. Past it somebody has stopped it, or traces it: it is killed,
/// and what it had started is left to [`orphans`].
const LAUNCHER_END_TIME: Duration = Duration::from_secs(4);

/// How often it is looked whether it has ended.
const LAUNCHER_LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Why a run has no result. Local trouble: nothing here says anything about the contract, so nothing is to be voted.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No launcher could be started.
    #[error("cannot start the contract launcher {exe}")]
    Launcher {
        /// The program that was to become one.
        exe: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The launcher ended during the run, and the contract with it. The next run starts another one.
    #[error("the contract launcher died")]
    Died,
    /// The launcher lives and does not listen: somebody has stopped it, or it hangs in the kernel.
    #[error("the contract launcher does not take requests")]
    Unresponsive,
    /// Talking with the launcher failed.
    #[error("cannot talk with the contract launcher")]
    Socket {
        /// Why not.
        source: io::Error,
    },
    /// Arguments and environment are longer than any system takes.
    #[error("arguments and environment of the contract have {bytes} bytes, at most {BODY_BYTES_MAX} are possible")]
    TooLong {
        /// Their length.
        bytes: usize,
    },
    /// A pipe to the contract could not be made, usually for want of descriptors.
    #[error("cannot make a pipe for the contract ({users} users in this ledger)")]
    Pipe {
        /// Users of the ledger, each of whom needs one or two.
        users: usize,
        /// Why not.
        source: io::Error,
    },
    /// The contract could not be started for a reason that lies in this machine.
    #[error("cannot {step} the contract {binary}")]
    NotStarted {
        /// What was tried.
        step: Step,
        /// The contract's binary.
        binary: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The contract could be started if the guards let it. Other nodes, with other guards, may run it.
    #[error(
        "the contract {binary} needs {file}, which Landlock keeps from it: list the folder that it is installed in under \
         [contract] read, or set [contract] containment = \"off\""
    )]
    Forbidden {
        /// The contract's binary.
        binary: PathBuf,
        /// What it is made of.
        file: PathBuf,
    },
    /// The user that the contract runs as may not go where its folder is.
    #[error(
        "user {uid}, group {gid}, that [contract] run_as names cannot enter {dir}: `chmod o+x` it and each folder above it \
         where that is missing, or give it to that group"
    )]
    Closed {
        /// The contract folder.
        dir: PathBuf,
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// Something the contract started did not die.
    #[error("the contract's processes are still there {} s after they were killed", KILL_TIME_MAX.as_secs())]
    Unkillable,
}

/// The handle; clones share one launcher, which does one run at a time: a second call waits for the first. Dropping
/// the last one ends the launcher.
#[derive(Debug, Clone)]
pub struct Launcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    exe: PathBuf,
    surroundings: Surroundings,
    /// Empty while a run has it, and after a run failed or was dropped.
    idle: Mutex<Option<Connection>>,
    /// Launchers that are not yet gone.
    alive: Arc<watch::Sender<usize>>,
    log: LogQueue,
    /// What all runs are kept from; nothing until it is tried out.
    kept: std::sync::Mutex<Arc<Kept>>,
}

impl Launcher {
    /// Starts the resident process: `exe` with [`LAUNCHER_ARG`], which must call [`launcher_main`](super::launcher_main).
    pub fn start(exe: &Path) -> Result<Launcher, LaunchError> {
        Launcher::start_in(exe, Surroundings::default())
    }

    /// The same in other surroundings. Where they cannot be entered every run fails: see [`Surroundings::probe`].
    pub fn start_in(exe: &Path, surroundings: Surroundings) -> Result<Launcher, LaunchError> {
        let alive = Arc::new(watch::Sender::new(0));
        let failed = |source| LaunchError::Launcher { exe: exe.to_owned(), source };
        let first = Connection::start(exe, surroundings, &alive).map_err(failed)?;
        let log = LogQueue::start().map_err(failed)?;
        Ok(Launcher(Arc::new(Inner {
            exe: exe.to_owned(),
            surroundings,
            idle: Mutex::new(Some(first)),
            alive,
            log,
            kept: Default::default(),
        })))
    }

    /// Runs the contract once. Comes back when no process of it is left.
    ///
    /// Dropping the future kills everything the run started; [`Launcher::settled`] tells when that is done, and the
    /// next run waits for it. To be called within a tokio runtime. Errors are local trouble, after which the state the
    /// contract wrote to is worth nothing; all but [`LaunchError::Unkillable`] come when no process is left, or
    /// `settled` tells when.
    pub async fn run(&self, spec: RunSpec, npl: NplPort) -> Result<RunReport, LaunchError> {
        let mut idle = self.0.idle.lock().await;
        let connection = match idle.take().filter(Connection::is_alive) {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let kept = Arc::clone(&self.0.kept.lock().unwrap_or_else(PoisonError::into_inner));
        let result = run::run(&connection, &kept, self.0.log.clone(), spec, npl).await;
        // After an error nobody knows what the two have said to each other, so both start anew.
        if result.is_ok() {
            *idle = Some(connection);
        }
        result
    }

    /// Whether a run with this overlay in `dir` would get it: mounts it once, for nobody.
    pub async fn probe(&self, dir: &Path, overlay: Overlay) -> Result<(), LaunchError> {
        self.attempt(dir, Some(run::mount(overlay)), Guards::default()).await
    }

    /// Tries each guard, and gives those that work to every run that begins from now on.
    ///
    /// Says where each stands; errors when nothing can be run at all.
    pub async fn contain(&self, wanted: &Containment) -> Result<Vec<Guard>, LaunchError> {
        self.end_apart().await;
        let mut plan = guards::plan(wanted);
        loop {
            let private = wanted.dir.join("private");
            let guards = plan.kept.of_run(&wanted.dir, &wanted.binary, Some(&private), None);
            match self.attempt(&wanted.dir, None, guards).await {
                Err(LaunchError::NotStarted { step, ref source, .. }) if plan.give_up(step, source) => {}
                tried => break tried?,
            }
        }
        let report = plan.report(wanted);
        *self.0.kept.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(plan.kept);
        Ok(report)
    }

    /// Ends a launcher whose runs had namespaces: what it has left for their sake, it does not come back to.
    async fn end_apart(&self) {
        let mut idle = self.0.idle.lock().await;
        *idle = idle.take().filter(|connection| !connection.guards.lock().is_ok_and(|guards| guards.is_apart()));
    }

    /// Does all that comes before a program's first instruction, for no program.
    async fn attempt(&self, dir: &Path, mount: Option<(Vec<u8>, Vec<u8>)>, guards: Guards) -> Result<(), LaunchError> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut idle = self.0.idle.lock().await;
        let connection = match idle.take().filter(Connection::is_alive) {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let request = Request {
            // There is no such program: all that is before it has worked when that is what fails.
            path: b"/dev/null/none".to_vec(),
            argv: Vec::new(),
            env: Vec::new(),
            dir: dir.as_os_str().as_bytes().to_vec(),
            limits: OsLimits::of(&Limits::default(), 0),
            mount,
            tmp: None,
        };
        let user = guards.user.clone();
        let null = std::fs::File::open("/dev/null").map_err(|source| LaunchError::Pipe { users: 0, source })?;
        let channel = connection.channel()?;
        let asked = async {
            connection.guard(&channel, &guards).await?;
            channel.request(&request, 3).await?;
            channel.descriptors(&[null.as_raw_fd(); 3]).await?;
            channel.reply().await
        };
        let reply = timeout(KILL_TIME_MAX, asked).await.map_err(|_| LaunchError::Unresponsive)??;
        drop(channel);
        *idle = Some(connection);
        match reply {
            Reply::NotStarted { step: Step::Exec, .. } => Ok(()),
            Reply::NotStarted { step: Step::Folder, errno } if errno == Errno::EACCES as i32 && user.is_some() => {
                let (uid, gid) = user.map(|user| (user.uid, user.gid)).expect("looked at above");
                Err(LaunchError::Closed { dir: dir.to_owned(), uid, gid })
            }
            Reply::NotStarted { step, errno } => Err(not_started(step, "a contract".into(), errno)),
            Reply::Ended { .. } => unreachable!("there is no such program"),
        }
    }

    /// Waits until no run is under way and nothing of a dropped or failed one is left.
    pub async fn settled(&self) -> Result<(), LaunchError> {
        let idle = self.0.idle.lock().await;
        if idle.is_none() { self.all_gone().await } else { Ok(()) }
    }

    /// Waits until what the contracts of ended runs printed is in their log files.
    pub async fn logs_written(&self) {
        let log = self.0.log.clone();
        tokio::task::spawn_blocking(move || log.flush()).await.expect("waiting does not panic");
    }

    /// Ends the launcher, and comes back when its process is gone. A later run starts another one.
    pub async fn stop(&self) -> Result<(), LaunchError> {
        let mut idle = self.0.idle.lock().await;
        *idle = None;
        self.all_gone().await
    }

    /// The launcher's process id, unless a run is under way or a new one is to be started.
    pub fn process_id(&self) -> Option<u32> {
        self.0.idle.try_lock().ok()?.as_ref().map(|connection| connection.resident.as_ref().map(|it| it.child.id()))?
    }

    async fn connect(&self) -> Result<Connection, LaunchError> {
        self.all_gone().await?;
        let exe = &self.0.exe;
        Connection::start(exe, self.0.surroundings, &self.0.alive)
            .map_err(|source| LaunchError::Launcher { exe: exe.clone(), source })
    }

    async fn all_gone(&self) -> Result<(), LaunchError> {
        let mut alive = self.0.alive.subscribe();
        let gone = timeout(KILL_TIME_MAX, alive.wait_for(|alive| *alive == 0));
        gone.await.map_err(|_| LaunchError::Unkillable)?.expect("the sender is in self");
        Ok(())
    }
}

/// One launcher process and the socket to it. Dropping it closes the socket, at which the launcher kills what it has
/// started, and ends.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Option<OwnedFd>,
    resident: Option<Resident>,
    /// What it was told to guard runs by.
    guards: std::sync::Mutex<Guards>,
    /// The contract's first descriptor after stderr.
    pub(super) first_fd: RawFd,
}

impl Connection {
    fn start(exe: &Path, surroundings: Surroundings, alive: &Arc<watch::Sender<usize>>) -> io::Result<Connection> {
        // Packets keep headers and descriptors apart by themselves; not every system has them.
        let kind = if cfg!(target_os = "linux") { SockType::SeqPacket } else { SockType::Stream };
        #[cfg(target_os = "linux")]
        let flags = SockFlag::SOCK_CLOEXEC;
        #[cfg(not(target_os = "linux"))]
        let flags = SockFlag::empty();
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, flags)?;
        for end in [&ours, &theirs] {
            fcntl(end, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        }
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut command = Command::new(exe);
        command
            .arg(LAUNCHER_ARG)
            .args(surroundings.args())
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null());
        let child = orphans::spawn(&mut command)?;
        alive.send_modify(|alive| *alive += 1);
        let resident = Some(Resident { child, alive: Arc::clone(alive) });
        let (guards, first_fd) = (Default::default(), surroundings.first_fd());
        Ok(Connection { socket: Some(ours), resident, guards, first_fd })
    }

    /// Has all runs that follow guarded so, if they are not yet.
    pub(super) async fn guard(&self, channel: &Channel<'_>, guards: &Guards) -> Result<(), LaunchError> {
        if *self.guards.lock().unwrap_or_else(PoisonError::into_inner) != *guards {
            channel.message(guards, 0).await?;
            *self.guards.lock().unwrap_or_else(PoisonError::into_inner) = guards.clone();
        }
        Ok(())
    }

    /// Lets a launcher go on that a contract has stopped. Means nothing to one that runs.
    pub(super) fn resume(&self) {
        let pid = self.resident.as_ref().and_then(|resident| i32::try_from(resident.child.id()).ok());
        // It is not reaped yet, so the number is its own.
        let _ = pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGCONT));
    }

    fn is_alive(&self) -> bool {
        // Between runs the launcher says nothing, so anything but "nothing to read" is its end.
        let mut byte = [0];
        recv(self.socket().as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK) == Err(Errno::EAGAIN)
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("only drop takes it").as_fd()
    }

    /// The socket within the running runtime.
    pub(super) fn channel(&self) -> Result<Channel<'_>, LaunchError> {
        // SAFETY: the socket is open and stays the same for as long as it is borrowed; only `drop` closes it.
        let channel = unsafe { AsyncFd::register(self.socket()) };
        channel.map(Channel).map_err(|error| LaunchError::Socket { source: error.into() })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.socket = None;
        let resident = self.resident.take();
        // Its end takes as long as killing takes. Without a thread for it the wait is here.
        let _ = std::thread::Builder::new().name("launcher-end".into()).spawn(move || drop(resident));
    }
}

/// A launcher process; dropping it waits for its end, and for that of all that it had started.
#[derive(Debug)]
struct Resident {
    child: Child,
    alive: Arc<watch::Sender<usize>>,
}

impl Drop for Resident {
    fn drop(&mut self) {
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if asked.elapsed() >= LAUNCHER_END_TIME {
                let _ = self.child.kill();
                break;
            }
            thread::sleep(LAUNCHER_LOOK_PAUSE);
        }
        let _ = self.child.wait();
        orphans::end(self.child.id());
        self.alive.send_modify(|alive| *alive -= 1);
    }
}

/// The supervisor's end of the socket, for the length of a run.
pub(super) struct Channel<'a>(AsyncFd<BorrowedFd<'a>>);

impl Channel<'_> {
    /// Sends all of a request but its descriptors.
    pub(super) async fn request(&self, request: &Request, fds: usize) -> Result<(), LaunchError> {
        self.message(request, fds).await
    }

    async fn message(&self, body: &impl BorshSerialize, fds: usize) -> Result<(), LaunchError> {
        let body = borsh::to_vec(body).expect("writing to memory does not fail");
        if body.len() > BODY_BYTES_MAX {
            return Err(LaunchError::TooLong { bytes: body.len() });
        }
        let fds = u32::try_from(fds).expect("bounded by the descriptors of a process");
        self.send(&Header { body: body.len() as u32, fds }.to_bytes(), &[]).await?;
        self.send(&body, &[]).await
    }

    /// Sends a batch of the descriptors that the request announced.
    pub(super) async fn descriptors(&self, batch: &[RawFd]) -> Result<(), LaunchError> {
        self.send(&[0], batch).await
    }

    /// Asks for the end of the run; its reply comes as always.
    pub(super) async fn kill(&self) -> Result<(), LaunchError> {
        self.send(&Header::KILL.to_bytes(), &[]).await
    }

    /// The answer to the request. Not to be dropped half-way.
    pub(super) async fn reply(&self) -> Result<Reply, LaunchError> {
        let mut header = [0; Header::LEN];
        self.receive(&mut header).await?;
        let invalid = |source| LaunchError::Socket { source };
        let header = Header::parse(header).map_err(invalid)?;
        let mut body = vec![0; header.body as usize];
        self.receive(&mut body).await?;
        borsh::from_slice(&body).map_err(invalid)
    }

    async fn send(&self, mut bytes: &[u8], fds: &[RawFd]) -> Result<(), LaunchError> {
        while !bytes.is_empty() {
            let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
            let sent = self.0.async_io(Interest::WRITABLE, |socket| control::send(*socket, piece, fds)).await;
            bytes = &bytes[sent.map_err(socket_error)?..];
        }
        Ok(())
    }

    async fn receive(&self, buf: &mut [u8]) -> Result<(), LaunchError> {
        let mut filled = 0;
        while filled < buf.len() {
            let read = |socket: &BorrowedFd<'_>| Ok(nix::unistd::read(socket, &mut buf[filled..])?);
            match self.0.async_io(Interest::READABLE, read).await.map_err(socket_error)? {
                0 => return Err(LaunchError::Died),
                n => filled += n,
            }
        }
        Ok(())
    }
}

fn socket_error(source: io::Error) -> LaunchError {
    match source.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => LaunchError::Died,
        _ => LaunchError::Socket { source },
    }
}

/// The error for a contract that did not start for a reason of this machine.
pub(super) fn not_started(step: Step, binary: PathBuf, errno: i32) -> LaunchError {
    LaunchError::NotStarted { step, binary, source: io::Error::from_raw_os_error(errno) }
}
