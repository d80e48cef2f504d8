//! Users' websockets: handshake, limits, raw and signed mode. Holds no votes and knows nothing of ledgers.
//!
//! It has a thread of its own, so that no number of connections and wrong handshakes takes a turn of the thread that closes
//! ledgers. One task accepts, one task serves each connection, and [`Gateway`] is the handle the node delivers through: it puts
//! into outboxes, and waits for nobody. What users do arrives at the node as [`GatewayEvent`]s on one bounded channel. When it is
//! full the connections wait and read no more, so that a busy node is felt as TCP backpressure and no input is dropped silently.
//!
//! `accept` lets connections in, `session` is one of them from its first byte to its last, over a `socket`; `turns` keeps
//! strangers from delaying users, `outbox` holds what a user has not read, `handshake`, `limits` and `reply` are pure.

mod accept;
mod handshake;
mod limits;
mod outbox;
mod raw;
mod reply;
mod session;
mod socket;
mod turns;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicUsize},
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::{TcpListener, TcpSocket},
    runtime::Runtime,
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use tracing::{debug, error, warn};

pub use self::{
    handshake::{HELO_BYTES_MAX, Helo, HeloError, HeloProof, Mode, challenge_message, parse_helo},
    outbox::FRAME_OVERHEAD_BYTES,
    raw::RawUsers,
    reply::{ErrorCode, error_frame},
};
use self::{limits::Rate, outbox::Outbox, socket::Unfinished, turns::Turns};
use crate::{
    connections::Connections,
    signed::{Reply, Request},
    tls::Tls,
    types::{MonoMs, UserKey},
};

/// Room of the channel given to [`Gateway::start`]. Past it connections wait for the node and read nothing.
/// An event holds one message at most, so that this many times `pubmaxsize` is the most the channel can hold.
pub const EVENTS_MAX: usize = 256;

/// Connections that the operating system holds until they are accepted. Past it it lets clients try again.
const BACKLOG: u32 = 1_024;

/// Steps of tasks after which the runtime looks for what came over the network: a user's bytes wait for so many of strangers'
/// steps at most. (Its own default is made for throughput.)
const STEPS_BEFORE_NETWORK: u32 = 8;

/// Time for its thread to end once it was told to: more than [`accept::STOP_TIME`], which is what it gives connections.
const STOP_WAIT: Duration = Duration::from_millis(950);
const _: () = assert!(STOP_WAIT.as_millis() > accept::STOP_TIME.as_millis());

/// Every which step is for a task that the node woke, by an output or by taking an event.
const STEPS_BEFORE_NODE: u32 = 2;

/// What the gateway is allowed.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Address and port to listen on, and no other (`ip`, `pubport`). Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Bytes of one message (`pubmaxsize`). A longer one is refused with `too_large`.
    pub message_bytes_max: usize,
    /// Messages a minute and user (`pubmaxcpm`). One over the rate is refused with `rate`.
    pub messages_per_minute: Option<u32>,
    /// Connections in all (`[user] connections_max`). One more gets HTTP status 503.
    pub connections_max: usize,
    /// Users, however many sessions each has. One more is refused with `full`.
    pub users_max: usize,
    /// Connections from one address (`[user] per_address`). One more gets HTTP status 503.
    pub per_address_max: usize,
    /// Bytes that wait for one session to read them (`[user] queue_kb`). A session that lets more pile up is
    /// dropped with `slow`; one frame alone may be longer.
    pub queue_bytes_max: usize,
    /// Handshakes of one address that may fail a minute, or be under way (`[user] failed_per_minute`). Past it its connections
    /// get HTTP status 503 before any work is put into them.
    pub failed_per_minute: Option<u32>,
    /// Time from the TCP connection to an accepted helo.
    pub handshake_timeout: Duration,
    /// Time between pings. A connection without a sign of life after two of them is dropped.
    pub ping_every: Duration,
    /// With what the port speaks TLS (`[user] tls_cert`, `tls_key`); `None`: it speaks plain text.
    pub tls: Option<Tls>,
}

impl GatewayConfig {
    /// The defaults of `hp.cfg` for one address.
    pub fn new(listen: SocketAddr) -> GatewayConfig {
        GatewayConfig {
            listen,
            message_bytes_max: 1 << 20,
            messages_per_minute: None,
            connections_max: 16_384,
            users_max: usize::MAX,
            per_address_max: 1_024,
            failed_per_minute: None,
            queue_bytes_max: 1 << 20,
            handshake_timeout: Duration::from_secs(5),
            ping_every: Duration::from_secs(30),
            tls: None,
        }
    }
}

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Somebody else listens there.
    #[error("user port {address} is taken by another program")]
    PortTaken {
        /// The address in question.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Any other reason.
    #[error("cannot listen for users on {address}")]
    Listen {
        /// The address in question.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
}

/// One open session. Unique for the life of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What users do. For one user `UserUp` comes first, then inputs in the order of each session, then `UserDown`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayEvent {
    /// The first session of this key here is open.
    UserUp {
        /// The key.
        user: UserKey,
    },
    /// The last session of this key here is gone; all of its inputs came before.
    UserDown {
        /// The key.
        user: UserKey,
    },
    /// One message within the limits.
    Input {
        /// Who sent it.
        user: UserKey,
        /// Through which session.
        session: SessionId,
        /// How that session proved to be the user's.
        proof: HeloProof,
        /// Number of the input in its session, from 0.
        counter: u64,
        /// The message, unaltered.
        payload: Bytes,
    },
    /// A session in signed mode is open. It is sent nothing before its [`Gateway::welcome`].
    Opened {
        /// Whose.
        user: UserKey,
        /// Which.
        session: SessionId,
    },
    /// What a session in signed mode asks for, within the limits. No signature in it was checked.
    Request {
        /// Who sent it.
        user: UserKey,
        /// Through which session.
        session: SessionId,
        /// What is wanted.
        request: Request,
    },
}

/// The handle of a running gateway. Dropping it cuts every connection; `stop` closes them in order.
#[derive(Debug)]
pub struct Gateway {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    /// The end of its thread, as the end of the channel.
    ended: oneshot::Receiver<()>,
    /// Dropped with the handle; nothing is ever sent.
    _held: oneshot::Sender<Infallible>,
}

impl Gateway {
    /// Listens on `config.listen` and serves users from now on. `events` should have room for [`EVENTS_MAX`].
    ///
    /// Errors name the address; `PortTaken` when somebody else listens there.
    pub async fn start(config: GatewayConfig, events: mpsc::Sender<GatewayEvent>) -> Result<Gateway, GatewayError> {
        let address = config.listen;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => GatewayError::PortTaken { address, source },
            _ => GatewayError::Listen { address, source },
        };
        let (stop, stopping) = watch::channel(false);
        let shared = Arc::new(Shared {
            registry: Mutex::new(Registry {
                connections: Connections::new(config.connections_max, config.per_address_max),
                rate: config.messages_per_minute.map(|per_minute| Rate::new(per_minute, 0)),
                failing: config.failed_per_minute.map(|per_minute| Rate::new(per_minute, 0)),
                sessions: HashMap::new(),
                users: HashMap::new(),
                signed: 0,
                users_max: config.users_max,
                next_session: 0,
                notice: None,
            }),
            unfinished: Arc::default(),
            outboxes: Arc::default(),
            turns: Turns::new(),
            config,
            events,
            stopping,
            started: Instant::now(),
        });
        let (held, dropped) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let (starting, started) = oneshot::channel();
        let served = shared.clone();
        let serve = move || {
            serve(served, starting, dropped);
            // After everything else of this thread, also when it panics.
            drop::<oneshot::Sender<()>>(ending);
        };
        thread::Builder::new().name("gateway".to_owned()).spawn(serve).map_err(failed)?;
        let local_addr = started.await.unwrap_or_else(|_| Err(io::Error::other("its thread broke"))).map_err(failed)?;
        debug!(%local_addr, "listening for users");
        Ok(Gateway { local_addr, shared, stop, ended, _held: held })
    }

    /// Where it listens; the port is the real one.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Sends `output` to every session of `user` in raw mode: one frame, text when it is valid UTF-8, else binary.
    /// Nothing happens when the user has none here.
    pub fn deliver(&self, user: &UserKey, output: Bytes) {
        self.raw().deliver(user, output);
    }

    /// Users in raw mode alone, for a task beside the loop.
    pub fn raw(&self) -> RawUsers {
        RawUsers::new(self.shared.clone())
    }

    /// Sends `{"type":"error","code":...,"message":...}` to every session of `user` in raw mode.
    pub fn tell(&self, user: &UserKey, code: ErrorCode, message: &str) {
        let registry = self.shared.lock();
        if let Some(sessions) = registry.users.get(user) {
            let message = Message::text(error_frame(code, message));
            in_mode(sessions, Mode::Raw).for_each(|line| line.outbox.push(message.clone()));
        }
    }

    /// Whether `user` has a welcomed session in signed mode, so that it is worth making frames for it.
    pub fn has_signed(&self, user: &UserKey) -> bool {
        self.shared.lock().users.get(user).is_some_and(|sessions| in_mode(sessions, Mode::Signed).next().is_some())
    }

    /// Everybody with a welcomed session in signed mode.
    pub fn signed_users(&self) -> BTreeSet<UserKey> {
        let registry = self.shared.lock();
        let signed = registry.users.iter().filter(|(_, sessions)| in_mode(sessions, Mode::Signed).next().is_some());
        signed.map(|(user, _)| *user).collect()
    }

    /// Whether anybody has a welcomed session in signed mode.
    pub fn has_any_signed(&self) -> bool {
        self.shared.lock().signed > 0
    }

    /// Sends a frame to every welcomed session of `user` in signed mode.
    pub fn say(&self, user: &UserKey, frame: String) {
        let registry = self.shared.lock();
        if let Some(sessions) = registry.users.get(user) {
            let message = Message::text(frame);
            in_mode(sessions, Mode::Signed).for_each(|line| line.outbox.push(message.clone()));
        }
    }

    /// Sends a frame to every welcomed session in signed mode, whoever's it is.
    pub fn say_to_all_signed(&self, frame: String) {
        let message = Message::text(frame);
        let registry = self.shared.lock();
        let sessions = registry.users.values().flat_map(|sessions| in_mode(sessions, Mode::Signed));
        sessions.for_each(|line| line.outbox.push(message.clone()));
    }

    /// Sends one session in signed mode its first frame. From now on it gets what [`Gateway::say`] says.
    pub fn welcome(&self, user: &UserKey, session: SessionId, welcome: &Reply) {
        let mut registry = self.shared.lock();
        let Registry { users, signed, notice, .. } = &mut *registry;
        if let Some(line) = users.get_mut(user).and_then(|sessions| sessions.get_mut(&session)) {
            *signed += usize::from(!std::mem::replace(&mut line.welcomed, true));
            line.outbox.push(Message::text(welcome.to_json()));
            notice.iter().for_each(|notice| line.outbox.push(notice.clone()));
        }
    }

    /// Answers one session. Nothing happens when it is over.
    pub fn answer(&self, session: SessionId, frame: String) {
        if let Some(seat) = self.shared.lock().sessions.get(&session) {
            seat.outbox.push(Message::text(frame));
        }
    }

    /// The end of a session, as the end of the channel; `None` when it is over already.
    pub fn left(&self, session: SessionId) -> Option<watch::Receiver<()>> {
        self.shared.lock().sessions.get(&session).map(|seat| seat.left.subscribe())
    }

    /// Tells one session that the node did not take its input. Nothing happens when the session is over.
    pub fn refuse(&self, session: SessionId, code: ErrorCode, message: &str) {
        if let Some(seat) = self.shared.lock().sessions.get(&session) {
            seat.outbox.push(Message::text(error_frame(code, message)));
        }
    }

    /// Tells every session something about the network, whatever its mode, and those that open while it stands too. The
    /// one before does not stand any more.
    pub fn announce(&self, code: ErrorCode, message: &str, stands: bool) {
        let notice = Message::text(error_frame(code, message));
        let mut registry = self.shared.lock();
        let lines = registry.users.values().flat_map(BTreeMap::values).filter(|line| line.welcomed);
        lines.for_each(|line| line.outbox.push(notice.clone()));
        registry.notice = stands.then_some(notice);
    }

    /// Whether a user may send one more message now, through whatever door; counts it when so.
    pub fn allows(&self, user: &UserKey) -> bool {
        self.shared.rate_allows(user)
    }

    /// From now on so many users may be here. Are there more, those with the greatest keys are told and let go: the same that
    /// other nodes do not count any more.
    pub fn set_users_max(&self, users_max: usize) {
        let mut registry = self.shared.lock();
        registry.users_max = users_max;
        let over = registry.users.len().saturating_sub(users_max);
        if over == 0 {
            return;
        }
        let mut users: Vec<UserKey> = registry.users.keys().copied().collect();
        users.sort_unstable();
        warn!(users_max, over, "this node's share of the network's users is smaller now; some are let go");
        for user in users.iter().rev().take(over) {
            registry.users[user].values().for_each(|line| line.outbox.let_go());
        }
    }

    /// Users that may be here at a time.
    pub fn users_max(&self) -> usize {
        self.shared.lock().users_max
    }

    /// Keys with at least one open session.
    pub fn users(&self) -> usize {
        self.shared.lock().users.len()
    }

    /// Connections, those still in their handshake included.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections.total()
    }

    /// Accepts no more, closes every connection with a close frame, and returns within a second.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if timeout(STOP_WAIT, &mut self.ended).await.is_err() {
            error!("the thread that serves users does not end");
        }
    }
}

/// The gateway's thread: listens, says where or why not, and serves until it is to stop, or the handle is dropped.
fn serve(
    shared: Arc<Shared>,
    starting: oneshot::Sender<io::Result<SocketAddr>>,
    mut dropped: oneshot::Receiver<Infallible>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(STEPS_BEFORE_NETWORK)
        .global_queue_interval(STEPS_BEFORE_NODE)
        .build();
    let begin = |runtime: &Runtime| {
        let _within = runtime.enter();
        let listener = listen(shared.config.listen)?;
        Ok((listener.local_addr()?, listener))
    };
    let begun = runtime.and_then(|runtime| begin(&runtime).map(|(address, listener)| (address, listener, runtime)));
    let (address, listener, runtime) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            // Whoever starts it may have given up.
            let _ = starting.send(Err(error));
            return;
        }
    };
    let _ = starting.send(Ok(address));
    runtime.block_on(async {
        tokio::select! {
            () = accept::accept(listener, shared) => {}
            _ = &mut dropped => {}
        }
    });
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted node gets its port although connections of the one before it are not quite over.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What all connections of one gateway share.
#[derive(Debug)]
struct Shared {
    config: GatewayConfig,
    events: mpsc::Sender<GatewayEvent>,
    registry: Mutex<Registry>,
    unfinished: Arc<Unfinished>,
    /// Bytes that wait for all users.
    outboxes: Arc<AtomicUsize>,
    turns: Turns,
    stopping: watch::Receiver<bool>,
    started: Instant,
}

#[derive(Debug)]
struct Registry {
    connections: Connections,
    rate: Option<Rate<UserKey>>,
    /// Handshakes that fail, or are under way, by address.
    failing: Option<Rate<IpAddr>>,
    users: HashMap<UserKey, BTreeMap<SessionId, Line>>,
    sessions: HashMap<SessionId, Seat>,
    /// Welcomed sessions in signed mode.
    signed: usize,
    /// Past it nobody new comes in.
    users_max: usize,
    next_session: u64,
    /// What each session is told when it opens.
    notice: Option<Message>,
}

/// What is there as long as a session is.
#[derive(Debug)]
struct Seat {
    outbox: Arc<Outbox>,
    /// Dropped when it is over; nothing is ever sent.
    left: watch::Sender<()>,
}

/// The way to one session.
#[derive(Debug)]
struct Line {
    outbox: Arc<Outbox>,
    mode: Mode,
    /// In raw mode from the start.
    welcomed: bool,
}

/// Why a user who has proven its key is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotIn {
    /// Nobody takes events any more.
    Stopping,
    /// So many users are here, and no more may be.
    Full(usize),
}

/// What a user is told who is one too many.
fn full_message(users_max: usize) -> String {
    format!("this node has its share of the network's users, which is {users_max}; connect to another node")
}

fn in_mode(sessions: &BTreeMap<SessionId, Line>, mode: Mode) -> impl Iterator<Item = &Line> {
    sessions.values().filter(move |line| line.mode == mode && line.welcomed)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().expect("nothing panics while the registry is locked")
    }

    /// Returns when the gateway stops.
    async fn stopped(&self) {
        // An error means that the handle is gone, which is a stop as well.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }

    fn rate_allows(&self, user: &UserKey) -> bool {
        let now = self.now();
        self.lock().rate.as_mut().is_none_or(|rate| rate.allow(user, now))
    }

    /// Since the gateway started.
    fn now(&self) -> MonoMs {
        MonoMs::try_from(self.started.elapsed().as_millis()).unwrap_or(MonoMs::MAX)
    }

    /// Registers a session.
    ///
    /// Room for the event is awaited first, so that the table changes and the event is queued in one step: two
    /// sessions of a user can never have their `UserUp` and `UserDown` in the wrong order.
    async fn enter(&self, user: UserKey, mode: Mode, outbox: Arc<Outbox>) -> Result<SessionId, NotIn> {
        let room = self.events.reserve().await.map_err(|_| NotIn::Stopping)?;
        let mut registry = self.lock();
        if registry.users.len() >= registry.users_max && !registry.users.contains_key(&user) {
            return Err(NotIn::Full(registry.users_max));
        }
        let id = SessionId(registry.next_session);
        registry.next_session += 1;
        if mode == Mode::Raw {
            registry.notice.iter().for_each(|notice| outbox.push(notice.clone()));
        }
        registry.sessions.insert(id, Seat { outbox: outbox.clone(), left: watch::Sender::new(()) });
        let sessions = registry.users.entry(user).or_default();
        sessions.insert(id, Line { outbox, mode, welcomed: mode == Mode::Raw });
        if sessions.len() == 1 {
            room.send(GatewayEvent::UserUp { user });
        }
        Ok(id)
    }

    /// Unregisters a session.
    async fn leave(&self, user: UserKey, id: SessionId) {
        let room = self.events.reserve().await;
        let mut registry = self.lock();
        registry.sessions.remove(&id);
        let Registry { users, signed, .. } = &mut *registry;
        let sessions = users.get_mut(&user).expect("a session in the table has its user there");
        let line = sessions.remove(&id).expect("a session leaves once");
        *signed -= usize::from(line.mode == Mode::Signed && line.welcomed);
        if sessions.is_empty() {
            users.remove(&user);
            if let Ok(room) = room {
                room.send(GatewayEvent::UserDown { user });
            }
        }
    }
}

#[cfg(test)]
mod tests;
