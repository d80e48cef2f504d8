//! One run: makes the pipes, has the contract started, and moves bytes through all pipes at once until it is over.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    io,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::Path,
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use futures::stream::StreamExt as _;
use nix::{errno::Errno, libc};
use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{
    End, NplIn, NplOut, NplPort, Overlay, RunReport, RunSpec,
    control::{Exit, FD_BATCH, FIRST_FD, Reply, Request, Step},
    fdlist::{self, RunFds, UserFds},
    guards::{Kept, TMP},
    limits::OsLimits,
    log::LogQueue,
    npl,
    pipes::{BYTES_A_TURN, Feed, NPL_IN, NPL_OUT, PIECE_BYTES, PIPES_A_TURN, Pumps, Ready, from_contract, to_contract},
    request,
    sinks::Sinks,
    supervisor::{Channel, Connection, KILL_TIME_MAX, LaunchError, not_started},
};
use crate::types::{LimitKind, Status};

/// Descriptors of every run, as the contract sees them; those of users follow.
const fn run_fds(first: RawFd) -> RunFds {
    RunFds { npl: [first, first + 1], control: first + 2 }
}

/// Bytes of peers' messages waiting for a contract that does not read them. Past it no more are taken out of
/// [`NplPort::incoming`], so that it fills up; at the end of the window what waits there is dropped.
const NPL_WAITING_BYTES_MAX: usize = 32 << 20;

/// How long the launcher may take to receive a request and its descriptors. Past it the run fails with
/// [`LaunchError::Unresponsive`].
const START_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a message of a contract that is over waits for room on the way to the peers. Past it the rest is dropped.
const REST_TIME_MAX: Duration = Duration::from_secs(5);

/// How often the launcher is told to go on, should it be stopped.
const RESUME_EVERY: Duration = Duration::from_millis(250);

/// PATH where the configuration sets none: the same on every node, whatever shell it was started from.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the contract once with the launcher behind `connection`.
pub(super) async fn run(
    connection: &Connection,
    kept: &Kept,
    log: LogQueue,
    spec: RunSpec,
    npl: NplPort,
) -> Result<RunReport, LaunchError> {
    let started = Instant::now();
    let channel = connection.channel()?;
    let mut sinks = Sinks::new(&spec, log);
    // The launcher has nothing else to do than to take this; one that does not is stopped or hangs.
    let start = timeout(START_TIME_MAX, start((connection, &channel), &spec, kept, &mut sinks));
    let pumps = start.await.map_err(|_| LaunchError::Unresponsive)??;
    let moving = pump(&channel, &spec, npl, pumps, &mut sinks, started);
    let (reply, overtime) = tokio::select! {
        moved = moving => moved?,
        never = keep_going(connection) => match never {},
    };
    let elapsed = started.elapsed();
    let (end, left_over) = match reply {
        Reply::Ended { exit, left_over } => (end_of(exit, sinks.exceeded, overtime), left_over),
        Reply::NotStarted { step, errno } => (End::Status(refused(&spec, kept, step, errno)?), 0),
    };
    let npl_frames = sinks.npl_frames;
    let (mut outputs, mut unl_request) = (BTreeMap::new(), None);
    if end == End::Status(Status::Ok) {
        unl_request = request::parse(&sinks.control).unwrap_or_else(|error| {
            tracing::warn!(seq = spec.facts.seq, %error, "the contract's request is not understood, so it asks for nothing");
            None
        });
        outputs = sinks.into_outputs();
    }
    Ok(RunReport { end, outputs, unl_request, elapsed, npl_frames, left_over })
}

/// Lets the launcher go on when the contract has stopped its parent, which it can where it sees it.
async fn keep_going(connection: &Connection) -> Infallible {
    let mut looks = interval(RESUME_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        connection.resume();
    }
}

/// A limit that all nodes measure alike counts before the way the main process died of it.
fn end_of(exit: Exit, exceeded: Option<LimitKind>, overtime: bool) -> End {
    End::Status(match (exceeded, exit) {
        (Some(kind), _) => Status::Limit(kind),
        (None, Exit::Signal(libc::SIGKILL)) if overtime => return End::Overtime,
        (None, Exit::Code(0)) => Status::Ok,
        (None, Exit::Code(code)) => Status::Exit(code),
        (None, Exit::Signal(libc::SIGXFSZ)) => Status::Limit(LimitKind::FileSize),
        (None, Exit::Signal(signal)) => Status::Signal(signal),
    })
}

/// The status of a contract that cannot be executed, by the shells' convention; an error when this machine is at fault.
fn refused(spec: &RunSpec, kept: &Kept, step: Step, errno: i32) -> Result<Status, LaunchError> {
    if let (Step::Exec, Errno::EACCES) = (step, Errno::from_raw(errno))
        && let Some(file) = kept.forbidden(&spec.dir, &spec.binary, &spec.args, &spec.env)
    {
        return Err(LaunchError::Forbidden { binary: spec.binary.clone(), file });
    }
    // It may be executable for the users that other nodes run it as.
    let is_anybodys = || {
        use std::os::unix::fs::PermissionsExt as _;
        spec.dir
            .join(&spec.binary)
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if (step, errno) == (Step::Exec, libc::EACCES) && kept.guards.user.is_some() && is_anybodys() {
        return Err(not_started(step, spec.binary.clone(), errno));
    }
    let code = match (step, Errno::from_raw(errno)) {
        (Step::Exec, Errno::ENOENT | Errno::ENOTDIR) => 127,
        (
            Step::Exec,
            Errno::EACCES
            | Errno::ENOEXEC
            | Errno::EISDIR
            | Errno::ELOOP
            | Errno::EPERM
            | Errno::ENAMETOOLONG
            | Errno::EINVAL
            | Errno::E2BIG,
        ) => 126,
        #[cfg(target_os = "linux")]
        (Step::Exec, Errno::ELIBBAD) => 126,
        _ => return Err(not_started(step, spec.binary.clone(), errno)),
    };
    let reason = io::Error::from_raw_os_error(errno);
    let what = if code == 127 {
        "the contract's binary, or its interpreter, is missing"
    } else {
        "cannot execute the contract"
    };
    tracing::error!(binary = %spec.binary.display(), dir = %spec.dir.display(), code, %reason, "{what}");
    Ok(Status::Exit(code))
}

/// Makes all pipes, hands their other ends over, and so starts the contract.
async fn start(
    (connection, channel): (&Connection, &Channel<'_>),
    spec: &RunSpec,
    kept: &Kept,
    sinks: &mut Sinks,
) -> Result<Pumps, LaunchError> {
    let pipe_error = |source| LaunchError::Pipe { users: spec.users.len(), source };
    let (json, users) = fdlist_of(spec, connection.first_fd).await;
    let guards = kept.of_run(&spec.dir, &spec.binary, spec.facts.private.as_deref(), spec.overlay);
    connection.guard(channel, &guards).await?;
    channel.request(&request(spec), 6 + 2 * users.len()).await?;

    let null = std::fs::File::open("/dev/null").map_err(pipe_error)?;
    let mut pumps = Pumps::new();
    let mut ends = Ends { channel, raw: Vec::new(), owned: Vec::new() };
    let (npl_in, end) = to_contract().map_err(pipe_error)?;
    ends.push(end).await?;
    let (npl_out, end) = from_contract().map_err(pipe_error)?;
    ends.push(end).await?;
    let (control, end) = from_contract().map_err(pipe_error)?;
    ends.push(end).await?;
    let mut user_outs = Vec::with_capacity(users.len());
    let mut user_ins = Vec::new();
    for (place, (user, fds)) in spec.users.iter().zip(&users).enumerate() {
        if fds.auth.is_some() {
            let (ours, end) = to_contract().map_err(pipe_error)?;
            ends.push(end).await?;
            user_ins.extend(Feed::begin(ours, user.inputs.iter().cloned().collect()).map_err(pipe_error)?);
        } else {
            ends.push_borrowed(null.as_raw_fd()).await?;
        }
        let (ours, end) = from_contract().map_err(pipe_error)?;
        ends.push(end).await?;
        user_outs.push(ours);
        if place % PIPES_A_TURN == PIPES_A_TURN - 1 {
            yield_now().await;
        }
    }
    let (stdin, end) = to_contract().map_err(pipe_error)?;
    ends.push(end).await?;
    let (stdout, end) = from_contract().map_err(pipe_error)?;
    ends.push(end).await?;
    let (stderr, end) = from_contract().map_err(pipe_error)?;
    ends.push(end).await?;
    let stdin = Feed::begin(stdin, [Bytes::from(json)].into()).map_err(pipe_error)?;
    ends.flush().await?;
    drop(ends);

    // Only now, with the contract on its way, the pipes are registered with the event loop.
    pumps.add_in(stdin).map_err(pipe_error)?;
    pumps.add_in(Some(Feed::open(npl_in))).map_err(pipe_error)?;
    for ours in [stdout, stderr, npl_out, control] {
        pumps.add_out(ours).map_err(pipe_error)?;
    }
    for (place, ours) in user_outs.into_iter().enumerate() {
        pumps.add_out(ours).map_err(pipe_error)?;
        if place % PIPES_A_TURN == PIPES_A_TURN - 1 {
            yield_now().await;
        }
    }
    for feed in user_ins {
        pumps.add_in(Some(feed)).map_err(pipe_error)?;
    }
    sinks.users = users.iter().map(|user| (user.key, Vec::new())).collect();
    Ok(pumps)
}

/// The descriptors of each user, by position.
fn user_fds(spec: &RunSpec, fds: RunFds) -> Vec<UserFds> {
    let mut keys = BTreeSet::new();
    let numbered = spec.users.iter().zip((fds.control + 1..).step_by(2));
    let fds = numbered.map(|(user, input)| {
        assert!(keys.insert(user.key), "a ledger lists each user once");
        let auth = user.inputs.iter().any(|input| !input.is_empty()).then_some(user.auth);
        UserFds { key: user.key, auth, input, output: input + 1 }
    });
    fds.collect()
}

/// What the contract of this run reads from its stdin.
pub fn stdin_of(spec: &RunSpec) -> Vec<u8> {
    let fds = run_fds(FIRST_FD);
    fdlist::to_json(&spec.facts, fds, &user_fds(spec, fds))
}

/// The text for stdin. That of a great many users takes too long for this thread.
async fn fdlist_of(spec: &RunSpec, first_fd: RawFd) -> (Vec<u8>, Vec<UserFds>) {
    let fds = run_fds(first_fd);
    let users = user_fds(spec, fds);
    if users.len() <= PIPES_A_TURN {
        return (fdlist::to_json(&spec.facts, fds, &users), users);
    }
    let facts = spec.facts.clone();
    let made = tokio::task::spawn_blocking(move || (fdlist::to_json(&facts, fds, &users), users));
    made.await.expect("making text does not panic")
}

fn request(spec: &RunSpec) -> Request {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
    let tmp = spec.dir.join(TMP);
    let mut env: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::from([
        (b"PATH".to_vec(), DEFAULT_PATH.into()),
        (b"HOME".to_vec(), bytes(&spec.dir)),
        (b"TZ".to_vec(), b"UTC".to_vec()),
        (b"LANG".to_vec(), b"C.UTF-8".to_vec()),
        (b"TMPDIR".to_vec(), bytes(&tmp)),
    ]);
    env.extend(spec.env.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes())));
    let argv = [bytes(&spec.binary)].into_iter().chain(spec.args.iter().map(|arg| arg.clone().into_bytes()));
    Request {
        path: bytes(&spec.binary),
        argv: argv.collect(),
        env: env.into_iter().map(|(name, value)| [name, value].join(&b'=')).collect(),
        dir: bytes(&spec.dir),
        limits: OsLimits::of(&spec.limits, spec.users.len()),
        mount: spec.overlay.map(mount),
        tmp: Some(bytes(&tmp)),
    }
}

/// Where to mount, and with which options.
///
/// `userxattr`: its marks are attributes that need no privilege, so that it works alike for root and others.
/// `volatile`: nothing is written through for the contract, which is ended or rolled back as a whole.
pub(super) fn mount(overlay: Overlay) -> (Vec<u8>, Vec<u8>) {
    let Overlay { target, lower, upper, work } = overlay;
    let plain = |path: &str| path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_".contains(&byte));
    assert!([target, lower, upper, work].into_iter().all(plain), "{overlay:?} needs no escapes");
    (target.into(), format!("lowerdir={lower},upperdir={upper},workdir={work},userxattr,volatile").into())
}

/// The contract's ends of the pipes on their way to the launcher. Sent in batches, so that only one batch is open here.
struct Ends<'a> {
    channel: &'a Channel<'a>,
    raw: Vec<RawFd>,
    owned: Vec<OwnedFd>,
}

impl Ends<'_> {
    async fn push(&mut self, end: OwnedFd) -> Result<(), LaunchError> {
        let raw = end.as_raw_fd();
        self.owned.push(end);
        self.push_borrowed(raw).await
    }

    async fn push_borrowed(&mut self, raw: RawFd) -> Result<(), LaunchError> {
        self.raw.push(raw);
        if self.raw.len() == FD_BATCH { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), LaunchError> {
        if !self.raw.is_empty() {
            self.channel.descriptors(&self.raw).await?;
        }
        self.raw.clear();
        self.owned.clear();
        Ok(())
    }
}

/// The contract's view of the party line: what it will still read, and until when.
struct PartyLine {
    line: npl::Line,
    incoming: mpsc::Receiver<NplIn>,
    open: bool,
    warned: bool,
}

impl PartyLine {
    /// A peer's message; `None` where the contract does not read it.
    fn hear(&mut self, message: NplIn) -> Option<Bytes> {
        match message {
            NplIn::End { from, frames } => {
                self.line.end(from, frames);
                None
            }
            NplIn::Data { from, data } => match self.line.data(from, data.len()) {
                Ok(()) => Some(npl::write_frame(from, &data)),
                Err(why) => {
                    if !std::mem::replace(&mut self.warned, true) {
                        tracing::warn!(%from, bytes = data.len(), ?why, "message on the party line is not shown to the contract");
                    }
                    None
                }
            },
        }
    }

    /// Nothing more will be shown to the contract but what it was already given.
    fn close(&mut self, pumps: &mut Pumps) {
        self.open = false;
        self.incoming.close();
        while self.incoming.try_recv().is_ok() {}
        if let Some(feed) = &mut pumps.ins[NPL_IN] {
            feed.last = true;
        }
        pumps.wake_in(NPL_IN);
    }
}

/// Moves bytes until the launcher says that all is over. Returns its reply, and whether the time was up.
async fn pump(
    channel: &Channel<'_>,
    spec: &RunSpec,
    port: NplPort,
    mut pumps: Pumps,
    sinks: &mut Sinks,
    started: Instant,
) -> Result<(Reply, bool), LaunchError> {
    let mut party = PartyLine {
        line: npl::Line::new(spec.facts.pubkey, &spec.facts.unl, spec.limits.npl_bytes_max),
        incoming: port.incoming,
        open: true,
        warned: false,
    };
    let mut listening = true;
    let mut out_open = true;
    let mut reply = pin!(channel.reply());
    let mut window = pin!(sleep_until(started + spec.npl_window));
    let mut limit = pin!(sleep_until(started + spec.limits.wall));
    if spec.npl_window.is_zero() {
        // Nobody is on the line, and the contract does not hear itself either.
        party.close(&mut pumps);
    }
    let (mut overtime, mut killed) = (false, false);
    let mut moved = 0;
    let reply = loop {
        let waiting_bytes = pumps.ins[NPL_IN].as_ref().map_or(0, Feed::bytes);
        let room = waiting_bytes < NPL_WAITING_BYTES_MAX;
        tokio::select! {
            reply = &mut reply => break reply?,
            () = &mut limit => {
                if killed {
                    return Err(LaunchError::Unkillable);
                }
                overtime = true;
            }
            () = &mut window, if party.open => party.close(&mut pumps),
            permit = port.out.reserve(), if out_open && !sinks.unsent.is_empty() => match permit {
                Ok(permit) => permit.send(sinks.unsent.pop_front().expect("asked for it above")),
                Err(_) => out_open = false,
            },
            message = party.incoming.recv(), if listening && party.open && room => match message {
                Some(message) => {
                    moved += PIECE_BYTES / 8; // a small one is not free either
                    if let Some(frame) = party.hear(message) {
                        moved += frame.len();
                        if let Some(feed) = &mut pumps.ins[NPL_IN] {
                            feed.push(frame);
                        }
                        pumps.wake_in(NPL_IN);
                    }
                }
                None => listening = false,
            },
            Some(ready) = pumps.awaited.next(), if !pumps.awaited.is_empty() => {
                moved += BYTES_A_TURN / PIPES_A_TURN; // to close one takes time, too
                moved += match ready {
                    Ready::In(place) => pumps.write(place),
                    Ready::Out(place) => pumps.read(place, sinks),
                };
            }
        }
        for frame in sinks.looped.drain(..) {
            if let Some(feed) = pumps.ins[NPL_IN].as_mut().filter(|_| party.open) {
                feed.push(frame);
            }
            pumps.wake_in(NPL_IN);
        }
        if !out_open {
            sinks.unsent.clear();
        }
        if pumps.npl_parked && sinks.unsent.is_empty() {
            pumps.npl_parked = false;
            pumps.await_out(NPL_OUT);
        }
        if sinks.npl_ended {
            party.line.own_end();
        }
        if party.open && party.line.is_complete() {
            party.close(&mut pumps);
        }
        if !killed && (overtime || sinks.exceeded.is_some()) {
            killed = true;
            channel.kill().await?;
            limit.as_mut().reset(Instant::now() + KILL_TIME_MAX);
        }
        if moved > BYTES_A_TURN {
            moved = 0;
            yield_now().await;
        }
    };
    pumps.drain(sinks).await;
    if out_open {
        send_rest(port.out, std::mem::take(&mut sinks.unsent));
    }
    Ok((reply, overtime))
}

/// The last messages of a contract that is over. The report does not wait for a slow way to the peers.
fn send_rest(out: mpsc::Sender<NplOut>, mut rest: VecDeque<NplOut>) {
    while let Some(message) = rest.pop_front() {
        match out.try_send(message) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => return,
            Err(mpsc::error::TrySendError::Full(message)) => {
                rest.push_front(message);
                break;
            }
        }
    }
    if !rest.is_empty() {
        tokio::spawn(async move {
            for message in rest {
                if !matches!(timeout(REST_TIME_MAX, out.send(message)).await, Ok(Ok(()))) {
                    return;
                }
            }
        });
    }
}
