//! Users' websockets: handshake, limits, raw and signed mode. Holds no votes and knows nothing of ledgers.
//!
//! One task accepts, one task serves each connection, and [`Gateway`] is the handle the node delivers through.
//! What users do arrives at the node as [`GatewayEvent`]s on one bounded channel. When it is full the connections
//! wait and read no more, so that a busy node is felt as TCP backpressure and no input is dropped silently.

mod handshake;
mod limits;
mod outbox;
mod raw;
mod reply;
mod session;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicUsize},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use tracing::{debug, error, warn};

pub use self::{
    handshake::{HELO_BYTES_MAX, Helo, HeloError, HeloProof, Mode, challenge_message, parse_helo},
    outbox::FRAME_OVERHEAD_BYTES,
    raw::RawUsers,
    reply::{ErrorCode, error_frame},
};
use self::{limits::MessageRate, outbox::Outbox, socket::Unfinished};
use crate::{
    connections::{Connections, Full},
    signed::{Reply, Request},
    tls::Tls,
    types::{MonoMs, UserKey},
};

/// Room of the channel given to [`Gateway::start`]. Past it connections wait for the node and read nothing.
/// An event holds one message at most, so that this many times `pubmaxsize` is the most the channel can hold.
pub const EVENTS_MAX: usize = 256;

/// Connections over the limit that are told so at the same time. Past it they are dropped without a word.
const REFUSALS_MAX: usize = 64;

/// Time for a refused connection to take its answer.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// Bytes of a refused connection's request that are read. More are cut off.
const REFUSED_BYTES_MAX: u64 = 16 << 10;

/// Pause after the operating system refused to accept, usually for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Shortest time between two log lines about connections refused for want of room.
const FULL_LOG_PAUSE: Duration = Duration::from_secs(60);

/// Time for all connections to say goodbye. Those that have not by then are cut.
const STOP_TIME: Duration = Duration::from_millis(700);

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
    accepting: JoinHandle<()>,
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
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let (stop, stopping) = watch::channel(false);
        let started = Instant::now();
        let shared = Arc::new(Shared {
            registry: Mutex::new(Registry {
                connections: Connections::new(config.connections_max, config.per_address_max),
                rate: config.messages_per_minute.map(|per_minute| MessageRate::new(per_minute, 0)),
                sessions: HashMap::new(),
                users: HashMap::new(),
                signed: 0,
                users_max: config.users_max,
                next_session: 0,
                notice: None,
            }),
            unfinished: Arc::default(),
            outboxes: Arc::default(),
            config,
            events,
            stopping,
            started,
        });
        debug!(%local_addr, "listening for users");
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Gateway { local_addr, shared, stop, accepting })
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
        if let Err(error) = (&mut self.accepting).await {
            error!(%error, "the task that accepts users broke");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.accepting.abort();
    }
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
    stopping: watch::Receiver<bool>,
    started: Instant,
}

#[derive(Debug)]
struct Registry {
    connections: Connections,
    rate: Option<MessageRate>,
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
        let now = MonoMs::try_from(self.started.elapsed().as_millis()).unwrap_or(MonoMs::MAX);
        self.lock().rate.as_mut().is_none_or(|rate| rate.allow(user, now))
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

/// One counted connection; uncounted when dropped.
struct Slot {
    shared: Arc<Shared>,
    address: IpAddr,
}

impl Slot {
    fn take(shared: &Arc<Shared>, address: IpAddr) -> Result<Slot, Full> {
        shared.lock().connections.open(address)?;
        Ok(Slot { shared: shared.clone(), address })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.lock().connections.close(self.address);
    }
}

/// Accepts connections until the gateway stops, then waits for those that are open.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let mut full_logged: Option<Instant> = None;
    let mut stopped = pin!(shared.stopped());
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => break,
            Some(ended) = tasks.join_next() => log_ended(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match Slot::take(&shared, peer.ip()) {
                    Ok(slot) => {
                        tasks.spawn(async move {
                            // Outputs are whole frames; waiting to fill a segment only delays them.
                            if let Err(error) = stream.set_nodelay(true) {
                                return debug!(%peer, %error, "connection lost at once");
                            }
                            let config = &slot.shared.config;
                            let deadline = Instant::now() + config.handshake_timeout;
                            match &config.tls {
                                None => session::serve(stream, &slot.shared, deadline).await,
                                Some(tls) => match tls.accept(stream, config.handshake_timeout).await {
                                    Ok(stream) => session::serve(stream, &slot.shared, deadline).await,
                                    Err(error) => debug!(%peer, %error, "no TLS"),
                                },
                            }
                        });
                    }
                    Err(full) => {
                        if full_logged.is_none_or(|at| at.elapsed() >= FULL_LOG_PAUSE) {
                            full_logged = Some(Instant::now());
                            warn!(%peer, %full, "user refused");
                        }
                        if let Ok(permit) = refusals.clone().try_acquire_owned() {
                            tasks.spawn(async move {
                                refuse_connection(stream, full).await;
                                drop(permit);
                            });
                        }
                    }
                },
                Err(error) => {
                    warn!(%error, "cannot accept a user");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let all_ended = async {
        while let Some(ended) = tasks.join_next().await {
            log_ended(ended);
        }
    };
    if timeout(STOP_TIME, all_ended).await.is_err() {
        debug!("connections cut that did not close in time");
    }
}

fn log_ended(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        error!(%error, "the task of a connection broke");
    }
}

/// Answers a connection there is no room for, before any work is put into it.
async fn refuse_connection(mut stream: TcpStream, full: Full) {
    let body = error_frame(ErrorCode::Busy, &full.to_string());
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let said = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Dropped with unread bytes the connection would be reset, and the answer lost with it.
        tokio::io::copy(&mut stream.take(REFUSED_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // However it ends, the connection is over.
    let _ = timeout(REFUSAL_TIME, said).await;
}

#[cfg(test)]
mod tests;
