//! The mesh's own task: owns the libp2p swarm, dials, and decides which connection to a peer is the link.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::Arc,
};

use bytes::Bytes;
use futures::StreamExt as _;
use libp2p::{
    Multiaddr, Swarm, SwarmBuilder, TransportError,
    core::ConnectedPoint,
    identity::Keypair,
    multiaddr::Protocol,
    noise,
    swarm::{ConnectionId, DialError, SwarmEvent, dial_opts::DialOpts},
    tcp, yamux,
};
use tokio::{
    net::lookup_host,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Duration, Instant, sleep_until, timeout},
};
use tracing::{debug, warn};

use super::{
    Admit, Control, MeshError, MeshEvent, Shared,
    behaviour::{Behaviour, Report, Reported, Streams},
    book::{Book, Dial, Outcome, Place, Source, TargetId},
    frame::Kind,
    hello::{KNOWN_MAX, Known, known_to_bytes, worth_telling},
    link::{self, Connection, Context, End, Link, Message, Verdict},
    peer_id::{node_key, peer_id},
};
use crate::{crypto::SecretKey, types::NodeKey};

/// Connections to one peer at a time: one dialled by each side, and as many again from before a restart.
/// Further ones are closed at once.
const CONNECTIONS_PER_PEER_MAX: usize = 4;

/// Refused strangers that are still being told why. Further ones are closed without a word.
const REFUSALS_MAX: usize = 32;

/// A link that lasted this long counts as stable: the waits between dials start small again.
const STABLE: Duration = Duration::from_secs(5);

/// The same refusal of the same peer is reported once in this time.
const REFUSAL_REPEAT: Duration = Duration::from_secs(60);

/// Refused peers remembered for that. Past it all are forgotten, and some lines come twice.
const REFUSED_PEERS_MAX: usize = 256;

/// TCP, Noise and Yamux together must be done in this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A name must be resolved in this time.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one name that take turns. Further ones are ignored.
const LOOKUP_ADDRS_MAX: usize = 8;

/// Streams of a peer that are being agreed on. Two are used; further ones are reset.
const STREAMS_MAX: usize = 8;

/// What Yamux keeps of one connection's streams at most, before the peer waits. libp2p sets it to this.
const YAMUX_WINDOW_BYTES: usize = 1 << 30;

/// By how much the windows of one connection's streams may grow beyond their first 256 KiB.
const WINDOWS_GROW_BYTES: usize = 8 << 20;

/// Yamux streams a peer may have open: each takes its first window off what all may have, and this many leave only
/// [`WINDOWS_GROW_BYTES`] to grow by. Else a peer that makes itself look far away could fill a gibibyte. (libp2p lets us
/// set this number and not the other.) Streams beyond [`STREAMS_MAX`] are reset before they hold anything.
const YAMUX_STREAMS_MAX: usize = (YAMUX_WINDOW_BYTES - WINDOWS_GROW_BYTES) / (256 << 10);

/// Listening must work in this time.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

const LEFT_UNL: &str = "the peer left the UNL";

/// What both sides are told.
const BANNED: &str = "banned for a time by the operator";

/// A swarm that listens, and where.
pub(super) async fn listen(key: &SecretKey, addr: SocketAddr) -> Result<(Swarm<Behaviour>, SocketAddr), MeshError> {
    let failed = |source| MeshError::Listen { addr, source };
    if addr.port() != 0 {
        // libp2p lets two processes listen on one port (SO_REUSEPORT) and would never tell.
        drop(tokio::net::TcpListener::bind(addr).await.map_err(failed)?);
    }
    let keypair = Keypair::ed25519_from_bytes(key.seed()).expect("a seed has 32 bytes");
    let multiplexer = || {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(YAMUX_STREAMS_MAX);
        config
    };
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::new().nodelay(true), noise::Config::new, multiplexer)
        .map_err(|err| failed(io::Error::other(err)))?
        .with_behaviour(|_| Behaviour::default())
        .expect("the constructor does not fail")
        .with_swarm_config(|config| {
            config
                .with_max_negotiating_inbound_streams(STREAMS_MAX)
                .with_notify_handler_buffer_size(NonZeroUsize::MIN)
                .with_per_connection_event_buffer_size(STREAMS_MAX)
        })
        .with_connection_timeout(CONNECT_TIMEOUT)
        .build();
    swarm.listen_on(multiaddr(addr)).map_err(|err| match err {
        TransportError::Other(source) => failed(inner(source)),
        err => failed(io::Error::other(err)),
    })?;
    let listening = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. } => {
                    return Ok(socket_addr(&address).map_or(addr.port(), |bound| bound.port()));
                }
                SwarmEvent::ListenerClosed { reason, .. } => {
                    return Err(failed(reason.err().unwrap_or_else(|| io::Error::other("the listener closed"))));
                }
                _ => {}
            }
        }
    };
    // No address comes on a machine without any network interface.
    let port = timeout(LISTEN_TIMEOUT, listening).await.map_err(|_| failed(io::ErrorKind::TimedOut.into()))??;
    Ok((swarm, SocketAddr::new(addr.ip(), port)))
}

/// The transports wrap an error in errors; the one with the kind is the operating system's.
fn inner(err: io::Error) -> io::Error {
    match err.raw_os_error().or_else(|| {
        let mut source = err.get_ref().map(|source| source as &(dyn std::error::Error + 'static));
        while let Some(cause) = source {
            if let Some(code) = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
                return Some(code);
            }
            source = cause.source();
        }
        None
    }) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => err,
    }
}

/// A connection with a task.
struct Held {
    peer: NodeKey,
    outbound: bool,
    refused: bool,
    target: Option<TargetId>,
    /// Where its streams go when they are there. Dropped to tell the task that they never will be.
    streams: Option<oneshot::Sender<Box<Streams>>>,
    why_no_streams: Option<String>,
}

/// What the tasks around the swarm send back.
type Resolved = (TargetId, Result<SocketAddr, String>);

/// See the module.
pub(super) struct Manager {
    swarm: Swarm<Behaviour>,
    own: NodeKey,
    admit: Admit,
    connections_max: usize,
    context: Arc<Context>,
    shared: Arc<Shared>,
    control: watch::Receiver<Control>,
    messages: mpsc::Receiver<Message>,
    book: Book,
    dials: HashMap<ConnectionId, TargetId>,
    held: HashMap<ConnectionId, Held>,
    /// Of each peer that was linked: ends when its last link has been reported to be down.
    ended: BTreeMap<NodeKey, oneshot::Receiver<()>>,
    refusals: BTreeMap<NodeKey, (String, Instant)>,
    tasks: JoinSet<()>,
    lookups: JoinSet<Resolved>,
}

/// What a manager is made of.
pub(super) struct Parts {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) own: NodeKey,
    pub(super) admit: Admit,
    pub(super) connections_max: usize,
    pub(super) peers: Vec<(String, u16)>,
    pub(super) context: Arc<Context>,
    pub(super) shared: Arc<Shared>,
    pub(super) control: watch::Receiver<Control>,
    pub(super) messages: mpsc::Receiver<Message>,
}

impl Manager {
    pub(super) fn new(parts: Parts) -> Manager {
        let Parts { swarm, own, admit, connections_max, peers, context, shared, control, messages } = parts;
        Manager {
            swarm,
            own,
            admit,
            connections_max,
            context,
            shared,
            control,
            messages,
            book: Book::new(peers, Instant::now()),
            dials: HashMap::new(),
            held: HashMap::new(),
            ended: BTreeMap::new(),
            refusals: BTreeMap::new(),
            tasks: JoinSet::new(),
            lookups: JoinSet::new(),
        }
    }

    /// Runs until the mesh is stopped, or its last handle is gone. Every task of the mesh ends with it.
    pub(super) async fn run(mut self) {
        loop {
            let due = self.book.next_due();
            tokio::select! {
                biased;
                changed = self.control.changed() => {
                    if changed.is_err() || self.control.borrow().stop {
                        break;
                    }
                    self.on_controlled();
                }
                Some(message) = self.messages.recv() => self.on_message(message),
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                Some(Ok((target, addr))) = self.lookups.join_next() => self.on_resolved(target, addr),
                Some(ended) = self.tasks.join_next() => {
                    if let Err(err) = ended && err.is_panic() {
                        tracing::error!(%err, "a link's task failed");
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.dial_due(),
            }
        }
        self.shared.clear();
    }

    fn is_member(&self, key: &NodeKey) -> bool {
        self.control.borrow().unl.contains(key)
    }

    // --- dialling ---

    fn dial_due(&mut self) {
        let shared = &self.shared;
        for Dial { id, place, attempt } in self.book.take_due(Instant::now(), |key| shared.link(key).is_some()) {
            match place {
                Place::Learnt { key, addr } => {
                    let opts = DialOpts::peer_id(peer_id(&key))
                        .condition(libp2p::swarm::dial_opts::PeerCondition::Always)
                        .allocate_new_port()
                        .addresses(vec![multiaddr(addr)])
                        .build();
                    self.dial(id, opts);
                }
                Place::Configured { host, port } => match host.parse() {
                    Ok(ip) => self.dial_blind(id, SocketAddr::new(ip, port)),
                    Err(_) => drop(self.lookups.spawn(async move { (id, resolve(&host, port, attempt).await) })),
                },
            }
        }
    }

    fn on_resolved(&mut self, target: TargetId, addr: Result<SocketAddr, String>) {
        match addr {
            Ok(addr) => self.dial_blind(target, addr),
            Err(reason) => {
                debug!(reason, "cannot resolve a peer's name");
                self.book.ended(target, Outcome::Failed, Instant::now(), random());
            }
        }
    }

    /// Dials whoever answers. From a port of its own: libp2p would use the listening one, and then a second dial
    /// of the same peer fails while the kernel remembers the first.
    fn dial_blind(&mut self, target: TargetId, addr: SocketAddr) {
        self.dial(target, DialOpts::unknown_peer_id().address(multiaddr(addr)).allocate_new_port().build());
    }

    fn dial(&mut self, target: TargetId, opts: DialOpts) {
        let connection = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => drop(self.dials.insert(connection, target)),
            Err(err) => self.on_dial_failed(target, &err),
        }
    }

    fn on_dial_failed(&mut self, target: TargetId, err: &DialError) {
        debug!(target, %err, "dial failed");
        let outcome = match err {
            DialError::LocalPeerId { .. } => Outcome::Own,
            DialError::WrongPeerId { .. } => Outcome::WrongKey,
            _ => Outcome::Failed,
        };
        self.book.ended(target, outcome, Instant::now(), random());
    }

    // --- connections ---

    fn on_swarm_event(&mut self, event: SwarmEvent<Reported>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                let target = self.dials.remove(&connection_id);
                self.on_connected(connection_id, node_key(&peer_id), &endpoint, target);
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                if let Some(held) = self.held.get_mut(&connection_id) {
                    held.streams = None;
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(target) = self.dials.remove(&connection_id) {
                    self.on_dial_failed(target, &error);
                }
            }
            SwarmEvent::Behaviour(Reported { connection, report }) => {
                let Some(held) = self.held.get_mut(&connection) else { return };
                match (held.streams.take(), report) {
                    // The task may have given up; then the streams end here.
                    (Some(task), Report::Ready(streams)) => drop(task.send(streams)),
                    (_, Report::Failed(reason)) => held.why_no_streams = Some(reason),
                    (None, Report::Ready(_)) => {}
                }
            }
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } => {
                debug!(%error, %send_back_addr, "inbound connection failed");
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "cannot accept a peer's connection"),
            SwarmEvent::ListenerClosed { reason, .. } => {
                tracing::error!(?reason, "the mesh does not listen any more: peers cannot reach this node");
            }
            _ => {}
        }
    }

    fn on_connected(
        &mut self,
        id: ConnectionId,
        peer: Option<NodeKey>,
        endpoint: &ConnectedPoint,
        target: Option<TargetId>,
    ) {
        let (outbound, remote) = match endpoint {
            ConnectedPoint::Dialer { address, .. } => (true, socket_addr(address)),
            ConnectedPoint::Listener { send_back_addr, .. } => (false, socket_addr(send_back_addr)),
        };
        let admitted = match (peer, remote) {
            (Some(peer), Some(remote)) => self.admission(&peer).map(|refusal| (peer, remote, refusal)),
            _ => None,
        };
        let Some((peer, remote, refusal)) = admitted else {
            self.swarm.close_connection(id);
            if let Some(target) = target {
                self.book.ended(target, Outcome::Failed, Instant::now(), random());
            }
            return;
        };
        if let Some(target) = target {
            self.book.identified(target, peer);
        }
        let refused = refusal.is_some();
        let since = Instant::now();
        let connection = Connection { id, peer, remote, outbound, since, decider: self.own < peer, refusal };
        let (to_task, streams) = oneshot::channel();
        let held = Held { peer, outbound, refused, target, streams: Some(to_task), why_no_streams: None };
        self.held.insert(id, held);
        self.tasks.spawn(link::run(connection, streams, self.context.clone()));
    }

    /// `None`: close without a word. `Some(Some(reason))`: refuse it with this reason. `Some(None)`: welcome.
    fn admission(&self, peer: &NodeKey) -> Option<Option<String>> {
        if self.held.values().filter(|held| held.peer == *peer).count() >= CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        let banned = self.control.borrow().banned.contains(peer);
        if self.is_member(peer) && !banned {
            return Some(None);
        }
        let strangers = self
            .held
            .values()
            .filter(|held| !held.refused && held.peer != *peer && !self.is_member(&held.peer))
            .count();
        let refusal = match self.admit {
            _ if banned => BANNED.to_owned(),
            Admit::Unl => format!("{peer} is not in the UNL, and only members are admitted"),
            Admit::Open if strangers >= self.connections_max => {
                format!("all {} places for nodes outside the UNL are taken", self.connections_max)
            }
            Admit::Open => return Some(None),
        };
        match self.held.values().filter(|held| held.refused).count() {
            REFUSALS_MAX.. => None,
            _ => Some(Some(refusal)),
        }
    }

    // --- links ---

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Ask { connection, boot, listen_port, peer_holds, granted, impatient, reply } => {
                let settled = if granted { None } else { self.settle(&connection, boot, peer_holds, impatient) };
                let verdict = settled.unwrap_or_else(|| self.make_link(&connection, boot, listen_port));
                // The task is gone only when its time is over; `Done` follows, and takes the link out again.
                let _ = reply.send(verdict);
            }
            Message::Known { peer, known } => self.on_known(&peer, known),
            Message::Done { connection, peer, end } => self.on_done(connection, peer, end),
        }
    }

    /// Which of a peer's connections is the link: the first that is ready, or, while there are two on their way, the
    /// one dialled by the lower key. Only the lower key comes here. A link that is up is never given up for another,
    /// unless it is a dead one. `None`: make this connection the link.
    fn settle(&self, connection: &Connection, boot: [u8; 16], peer_holds: bool, impatient: bool) -> Option<Verdict> {
        let dialled_by_us = |held: &Held| held.peer == connection.peer && held.outbound && !held.refused;
        let Some(current) = self.shared.link(&connection.peer) else {
            let better = !connection.outbound && self.held.values().any(dialled_by_us);
            return (better && !impatient).then_some(Verdict::Wait);
        };
        // No handshake takes longer than the link has been up: the peer had this link when it said that it has none.
        let lost_there = !peer_holds && current.since.elapsed() > self.context.timing.handshake;
        (current.boot == boot && !lost_there).then_some(Verdict::Duplicate)
    }

    /// Makes this connection the link. A former one, which the peer does not have any more, ends.
    fn make_link(&mut self, connection: &Connection, boot: [u8; 16], listen_port: u16) -> Verdict {
        let peer = connection.peer;
        if let Some(former) = self.shared.link(&peer) {
            former.reset(match former.boot == boot {
                true => "the peer had lost the link",
                false => "the peer was started again",
            });
        }
        let shared = (!self.is_member(&peer)).then(|| self.shared.strangers.clone());
        let link = Arc::new(Link::new(connection, boot, listen_port, shared));
        let (ended, end) = oneshot::channel();
        self.ended.retain(|_, end| matches!(end.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        let predecessor = self.ended.insert(peer, end);
        if let Some(addr) = link.addr.filter(|_| self.is_member(&peer)) {
            self.book.learn(peer, addr, Source::OwnLink, Instant::now());
            self.tell_members(&[Known { key: peer, addr }]);
        }
        self.tell(&link, &self.known());
        self.shared.insert(link.clone());
        if let Some(target) = self.held.get_mut(&connection.id).and_then(|held| held.target.take()) {
            self.book.ended(target, Outcome::Linked, Instant::now(), random());
        }
        if self.admit == Admit::Unl && !self.is_member(&peer) {
            link.reset(LEFT_UNL);
        }
        // It was banned while it shook hands.
        if self.control.borrow().banned.contains(&peer) {
            link.reset(BANNED);
        }
        Verdict::Go { link, predecessor, ended }
    }

    fn on_done(&mut self, id: ConnectionId, peer: NodeKey, end: End) {
        let now = Instant::now();
        self.swarm.close_connection(id);
        let Some(held) = self.held.remove(&id) else { return };
        let removed = self.shared.remove(&peer, id);
        let linked = self.shared.link(&peer).is_some();
        if let Some(target) = held.target {
            let outcome = if linked { Outcome::Linked } else { Outcome::Failed };
            self.book.ended(target, outcome, now, random());
        }
        if let Some(link) = removed {
            self.book.link_down(&peer, link.since.elapsed() >= STABLE, now, random());
        }
        match end {
            End::Refused(reason) => self.report_refusal(peer, reason, now),
            End::Lost(reason) => {
                let reason = held.why_no_streams.unwrap_or(reason);
                debug!(peer = %peer.short(), reason, outbound = held.outbound, "a connection did not become a link");
            }
            End::Duplicate => debug!(peer = %peer.short(), outbound = held.outbound, "a second connection was closed"),
            End::Down(reason) => debug!(peer = %peer.short(), reason, outbound = held.outbound, "link down"),
        }
    }

    fn report_refusal(&mut self, peer: NodeKey, reason: String, now: Instant) {
        let told = |(old, at): &(String, Instant)| *old == reason && now.duration_since(*at) < REFUSAL_REPEAT;
        if self.refusals.get(&peer).is_some_and(told) {
            return;
        }
        // A node that is behind with its events hears of it at the next try.
        if self.context.events.try_send(MeshEvent::Refused { peer, reason: reason.clone() }).is_ok() {
            if self.refusals.len() >= REFUSED_PEERS_MAX {
                self.refusals.clear();
            }
            self.refusals.insert(peer, (reason, now));
        }
    }

    // --- addresses ---

    fn known(&self) -> Vec<Known> {
        let control = self.control.borrow();
        let known = |link: &Arc<Link>| link.addr.map(|addr| Known { key: link.peer, addr });
        let member = |known: &Known| control.unl.contains(&known.key);
        self.shared.links().iter().filter_map(known).filter(member).take(KNOWN_MAX).collect()
    }

    fn tell_members(&self, known: &[Known]) {
        for link in self.shared.links().iter().filter(|link| self.is_member(&link.peer)) {
            self.tell(link, known);
        }
    }

    fn tell(&self, link: &Link, known: &[Known]) {
        let to = link.remote.ip();
        let known: Vec<Known> =
            known.iter().filter(|one| one.key != link.peer && worth_telling(&one.addr, &to)).copied().collect();
        if !known.is_empty() {
            // A full queue resets the link anyway, and the next one begins with all addresses.
            let _ = link.vote.push(Kind::Known, Bytes::from(known_to_bytes(&known)));
        }
    }

    /// Only a member is believed, and only about members.
    fn on_known(&mut self, peer: &NodeKey, known: Vec<Known>) {
        if !self.is_member(peer) {
            return;
        }
        let now = Instant::now();
        for Known { key, addr } in known {
            if key != self.own && self.is_member(&key) && addr.port() != 0 && !addr.ip().is_unspecified() {
                self.book.learn(key, addr, Source::Member, now);
            }
        }
    }

    fn on_controlled(&mut self) {
        let Control { unl, banned, added, .. } = self.control.borrow_and_update().clone();
        for (host, port) in added {
            self.book.configure(host, port, Instant::now());
        }
        self.book.retain(|key| unl.contains(key));
        if self.admit == Admit::Unl {
            for link in self.shared.links().iter().filter(|link| !unl.contains(&link.peer)) {
                link.reset(LEFT_UNL);
            }
        }
        for link in self.shared.links().iter().filter(|link| banned.contains(&link.peer)) {
            link.reset(BANNED);
        }
        let now = Instant::now();
        for link in self.shared.links().iter().filter(|link| unl.contains(&link.peer)) {
            if let Some(addr) = link.addr {
                self.book.learn(link.peer, addr, Source::OwnLink, now);
            }
        }
        self.tell_members(&self.known());
    }
}

async fn resolve(host: &str, port: u16, attempt: u32) -> Result<SocketAddr, String> {
    let addrs: Vec<SocketAddr> = match timeout(LOOKUP_TIMEOUT, lookup_host((host, port))).await {
        Ok(Ok(addrs)) => addrs.take(LOOKUP_ADDRS_MAX).collect(),
        Ok(Err(err)) => return Err(format!("{host}: {err}")),
        Err(_) => return Err(format!("{host}: no answer within {LOOKUP_TIMEOUT:?}")),
    };
    match addrs.len() {
        0 => Err(format!("{host}: no address")),
        count => Ok(addrs[attempt as usize % count]),
    }
}

fn random() -> u8 {
    let mut byte = [0];
    // Only jitter: without randomness the waits are the longest ones.
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

fn multiaddr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::from(addr.ip()).with(Protocol::Tcp(addr.port()))
}

/// The TCP address at the start of a libp2p address.
pub(super) fn socket_addr(addr: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = addr.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}
