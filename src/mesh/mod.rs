//! Links to the other nodes of the UNL, over libp2p (TCP, Noise, Yamux).
//!
//! A node's libp2p identity is its key, so the handshake proves who a link is. Each pair of nodes has one link with
//! two streams: votes (small and urgent) and bulk. Addresses are dialled blind, and members tell each other the
//! addresses they know, so that one correct address is enough to find all. Knows nothing of consensus: frames are
//! opaque, and so is the application's part of the hello.
//!
//! Everything of libp2p stays in here. Reading order: `link` (what happens on one connection), `swarm` (which
//! connection is the link; dialling), `book` (what to dial when), `frame`, `queue`, `hello`, `behaviour`.

mod backoff;
mod behaviour;
mod book;
mod frame;
mod hello;
mod link;
mod peer_id;
mod queue;
mod swarm;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use libp2p::swarm::ConnectionId;
use tokio::sync::{mpsc, watch};

pub use self::{
    frame::{BULK_FRAME_BYTES_MAX, VOTE_FRAME_BYTES_MAX},
    peer_id::{node_key_of_peer_id, peer_id_text},
};
use self::{
    frame::{CONTROL_BYTES_MAX, Kind},
    hello::Hello,
    link::{Context, Link},
    queue::{Budget, PushError},
    swarm::{Manager, Parts},
};
use crate::{crypto::SecretKey, types::NodeKey};

/// Frames waiting for one peer on the vote stream: a ledger's 16,384 inputs, one frame each, and again as many.
/// Past it the link is reset, and the peer gets what it missed by retransmission.
pub const VOTE_QUEUE_FRAMES_MAX: usize = 32_768;

/// Bytes of the same: a ledger's inputs (16 MiB), its party line (16 MiB), and again as much for votes.
pub const VOTE_QUEUE_BYTES_MAX: usize = 48 * 1024 * 1024;

/// Frames waiting for one peer on the bulk stream. Past it a frame is not taken; the link stays.
pub const BULK_QUEUE_FRAMES_MAX: usize = 1_024;

/// Bytes of the same.
pub const BULK_QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes waiting for all peers outside the UNL together, on both streams: a full ledger's inputs for a few observers at
/// a time. Past it theirs count as full queues, whoever of them it is that reads nothing. Members have their own.
pub const STRANGERS_QUEUES_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Bytes of one peer's frames that the node has not dropped yet. Past it the peer waits.
pub const INCOMING_BYTES_MAX: usize = VOTE_FRAME_BYTES_MAX + BULK_FRAME_BYTES_MAX;

/// Longest application part of a hello.
pub const HELLO_BYTES_MAX: usize = CONTROL_BYTES_MAX - 1024;

/// Addresses to dial that came after the start.
pub const ADDED_MAX: usize = 64;

/// Messages from the connections' tasks to the mesh's. Past it a connection waits before its next step.
const MESSAGES_MAX: usize = 1_024;

/// Which of a peer's two streams a frame takes. Order is kept within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Votes, small inputs, party line: at most [`VOTE_FRAME_BYTES_MAX`] a frame.
    Vote,
    /// Big bodies, history, state: at most [`BULK_FRAME_BYTES_MAX`] a frame, and never in a vote's way.
    Bulk,
}

impl Class {
    /// Longest frame in bytes.
    pub fn frame_bytes_max(self) -> usize {
        match self {
            Class::Vote => VOTE_FRAME_BYTES_MAX,
            Class::Bulk => BULK_FRAME_BYTES_MAX,
        }
    }
}

/// Who may be linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// UNL members alone.
    Unl,
    /// Others too, up to `connections_max`. They get nothing that is broadcast.
    Open,
}

/// Checks the application's part of a peer's hello; `Err` is the reason to refuse the peer, shown on both sides.
/// Called by the mesh's tasks, so it must not block.
pub type CheckHello = Box<dyn Fn(&NodeKey, &[u8]) -> Result<(), String> + Send + Sync>;

/// What a mesh needs to know.
pub struct MeshConfig {
    /// The node's key: its identity towards every peer.
    pub key: SecretKey,
    /// Where to listen; port 0 for any free one.
    pub listen: SocketAddr,
    /// Host and port of nodes to dial, as configured. A host may be a name, which is looked up at each try. Own
    /// addresses and dead ones do no harm.
    pub peers: Vec<(String, u16)>,
    /// Members of the UNL, with or without this node.
    pub unl: BTreeSet<NodeKey>,
    /// Who may be linked.
    pub admit: Admit,
    /// Links to nodes outside the UNL. Members are always admitted.
    pub connections_max: usize,
    /// The application's part of our hello, at most [`HELLO_BYTES_MAX`].
    pub hello: Vec<u8>,
    /// Checks a peer's.
    pub check_hello: CheckHello,
}

/// What happens in the mesh. Per peer: `LinkUp`, its frames in order per class, `LinkDown`, and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshEvent {
    /// A peer is linked: both hellos were accepted.
    LinkUp {
        /// Who.
        peer: NodeKey,
        /// The application's part of its hello.
        hello: Vec<u8>,
        /// When the connection was made: its process lived then. It may be gone by now.
        connected: tokio::time::Instant,
    },
    /// The link ended. The mesh tries to get it back.
    LinkDown {
        /// Who.
        peer: NodeKey,
        /// Why, for the log.
        reason: String,
    },
    /// A peer sent a frame.
    Frame {
        /// Who.
        peer: NodeKey,
        /// On which stream.
        class: Class,
        /// What.
        bytes: Bytes,
    },
    /// This node refused a peer or was refused by it. The same is said at most once a minute for each peer, though
    /// the mesh goes on trying.
    Refused {
        /// Who.
        peer: NodeKey,
        /// Why, for the log; begins with "the peer refused:" when the other side did.
        reason: String,
    },
}

/// Why the mesh cannot start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The address cannot be listened on. See [`MeshError::is_port_taken`].
    #[error("cannot listen for peers on {addr}")]
    Listen {
        /// The configured address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The application's part of the hello is too long.
    #[error("the hello has {len} bytes, at most {HELLO_BYTES_MAX} are allowed")]
    HelloTooLong {
        /// Its length.
        len: usize,
    },
}

impl MeshError {
    /// Whether another process listens on the address.
    pub fn is_port_taken(&self) -> bool {
        matches!(self, MeshError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no link to this peer.
    #[error("the peer is not linked")]
    NotLinked,
    /// The peer takes frames more slowly than they come. On the vote stream the link is reset too.
    #[error("too much waits for the peer")]
    QueueFull,
    /// The peer would close the link over it.
    #[error("a frame of {len} bytes is too long, {max} are allowed")]
    TooLong {
        /// Its length.
        len: usize,
        /// [`Class::frame_bytes_max`].
        max: usize,
    },
}

/// Who dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer.
    Inbound,
    /// This node.
    Outbound,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        })
    }
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// To whom.
    pub peer: NodeKey,
    /// Where the peer can be dialled, or where its connection comes from if it cannot.
    pub addr: SocketAddr,
    /// Who dialled.
    pub direction: Direction,
    /// Time a ping took there and back, queues included; measured when the link begins and every 5 s. `None` before
    /// the first answer.
    pub rtt: Option<Duration>,
    /// How long the link has been up.
    pub since: Duration,
}

/// How long things may take. Constant, except in tests.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// Between two pings.
    ping: Duration,
    /// A peer that is silent so long is dead.
    silence: Duration,
    /// A peer that takes nothing for so long is stalled.
    write_deadline: Duration,
    /// From a proven key to a link.
    handshake: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            ping: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            write_deadline: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
        }
    }
}

/// What the handles tell the mesh's task; only the newest counts.
#[derive(Debug, Clone)]
struct Control {
    unl: BTreeSet<NodeKey>,
    /// Whom to have no link with.
    banned: BTreeSet<NodeKey>,
    /// Addresses to dial beside the configured ones, in the order they came.
    added: Vec<(String, u16)>,
    stop: bool,
}

/// The links that are up, shared between the handles and the mesh's task.
struct Shared {
    links: Mutex<BTreeMap<NodeKey, Arc<Link>>>,
    overflows: AtomicU64,
    /// What was queued for peers.
    sent_bytes: AtomicU64,
    sent_frames: AtomicU64,
    /// What waits for peers outside the UNL.
    strangers: Arc<Budget>,
}

impl Default for Shared {
    fn default() -> Shared {
        let strangers = Arc::new(Budget::new(STRANGERS_QUEUES_BYTES_MAX));
        Shared {
            links: Mutex::default(),
            overflows: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            sent_frames: AtomicU64::new(0),
            strangers,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeKey, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, peer: &NodeKey) -> Option<Arc<Link>> {
        self.lock().get(peer).cloned()
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.lock().values().cloned().collect()
    }

    fn insert(&self, link: Arc<Link>) {
        self.lock().insert(link.peer, link);
    }

    /// Removes this very link; its successor stays.
    fn remove(&self, peer: &NodeKey, connection: ConnectionId) -> Option<Arc<Link>> {
        let mut links = self.lock();
        match links.get(peer) {
            Some(link) if link.connection == connection => links.remove(peer),
            _ => None,
        }
    }

    fn clear(&self) {
        self.lock().clear();
    }

    fn push(&self, link: &Link, class: Class, frame: Bytes) -> Result<(), SendError> {
        let bytes = frame.len() as u64;
        let pushed = link.queue(class).push(Kind::App, frame);
        if pushed.is_ok() {
            self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.sent_frames.fetch_add(1, Ordering::Relaxed);
        }
        pushed.map_err(|err| match err {
            PushError::Closed => SendError::NotLinked,
            PushError::Full => {
                if class == Class::Vote {
                    self.overflows.fetch_add(1, Ordering::Relaxed);
                    link.reset("the peer is too slow: its vote queue is full");
                }
                SendError::QueueFull
            }
        })
    }
}

/// Handle to the mesh, cheap to clone. When the last one is dropped the mesh stops.
#[derive(Clone)]
pub struct Mesh {
    shared: Arc<Shared>,
    control: Arc<watch::Sender<Control>>,
    local_addr: SocketAddr,
}

impl Mesh {
    /// Starts listening and dialling, on the current tokio runtime. Returns when it listens.
    ///
    /// `events` is the way to everything that happens; while it is full, peers wait. Of each peer it holds frames of
    /// [`INCOMING_BYTES_MAX`] at most.
    ///
    /// Errors when the address cannot be listened on, or the hello is too long.
    pub async fn start(config: MeshConfig, events: mpsc::Sender<MeshEvent>) -> Result<Mesh, MeshError> {
        Mesh::start_with(config, events, Timing::default()).await
    }

    async fn start_with(
        config: MeshConfig,
        events: mpsc::Sender<MeshEvent>,
        timing: Timing,
    ) -> Result<Mesh, MeshError> {
        if config.hello.len() > HELLO_BYTES_MAX {
            return Err(MeshError::HelloTooLong { len: config.hello.len() });
        }
        let (swarm, local_addr) = swarm::listen(&config.key, config.listen).await?;
        let mut boot = [0; 16];
        getrandom::fill(&mut boot).expect("the operating system gives random bytes");
        let hello = Hello { version: hello::VERSION, boot, listen_port: local_addr.port(), app: config.hello };
        let (to_manager, messages) = mpsc::channel(MESSAGES_MAX);
        let (control, controlled) =
            watch::channel(Control { unl: config.unl, banned: BTreeSet::new(), added: Vec::new(), stop: false });
        let shared = Arc::new(Shared::default());
        let context = Context {
            timing,
            hello: Bytes::from(hello.to_bytes()),
            check_hello: config.check_hello,
            shared: shared.clone(),
            events,
            messages: to_manager,
        };
        let manager = Manager::new(Parts {
            swarm,
            own: config.key.node_key(),
            admit: config.admit,
            connections_max: config.connections_max,
            peers: config.peers,
            context: Arc::new(context),
            shared: shared.clone(),
            control: controlled,
            messages,
        });
        tokio::spawn(manager.run());
        Ok(Mesh { shared, control: Arc::new(control), local_addr })
    }

    /// Where the mesh listens: the configured address with its real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Queues a frame for one peer. Never waits. `Ok` does not mean that it arrived: what must arrive is sent again
    /// until it is answered.
    pub fn send(&self, to: &NodeKey, class: Class, frame: Bytes) -> Result<(), SendError> {
        check_len(class, &frame)?;
        let link = self.shared.link(to).ok_or(SendError::NotLinked)?;
        self.shared.push(&link, class, frame)
    }

    /// Queues a frame for every linked member of the UNL; all share the same bytes. Says for how many it was queued.
    ///
    /// A frame over the class's limit goes to nobody.
    pub fn broadcast(&self, class: Class, frame: Bytes) -> usize {
        if let Err(err) = check_len(class, &frame) {
            tracing::error!(%err, "frame not sent");
            return 0;
        }
        let control = self.control.borrow();
        let links = self.shared.lock();
        let members = links.values().filter(|link| control.unl.contains(&link.peer));
        members.filter(|link| self.shared.push(link, class, frame.clone()).is_ok()).count()
    }

    /// The links that are up, by key.
    pub fn links(&self) -> Vec<LinkInfo> {
        let info = |link: &Arc<Link>| LinkInfo {
            peer: link.peer,
            addr: link.addr.unwrap_or(link.remote),
            direction: if link.outbound { Direction::Outbound } else { Direction::Inbound },
            rtt: link.rtt(),
            since: link.since.elapsed(),
        };
        self.shared.lock().values().map(info).collect()
    }

    /// Bytes and frames that were queued for peers since the start.
    pub fn sent(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.shared.sent_bytes), count(&self.shared.sent_frames))
    }

    /// How often a link was reset because its vote queue was full.
    pub fn vote_overflows(&self) -> u64 {
        self.shared.overflows.load(Ordering::Relaxed)
    }

    /// The UNL from now on. Links to nodes that left it end when only members are admitted.
    pub fn set_unl(&self, unl: BTreeSet<NodeKey>) {
        self.control.send_modify(|control| control.unl = unl);
    }

    /// Whom there is no link with from now on, members or not: links end, and new ones are refused on both sides.
    pub fn set_banned(&self, banned: BTreeSet<NodeKey>) {
        self.control.send_modify(|control| control.banned = banned);
    }

    /// Dials this address too, as if it were configured. `false` when there are [`ADDED_MAX`] of them already.
    pub fn add_peer(&self, host: &str, port: u16) -> bool {
        let peer = (host.to_owned(), port);
        let mut room = true;
        self.control.send_if_modified(|control| {
            let known = control.added.contains(&peer);
            room = known || control.added.len() < ADDED_MAX;
            if room && !known {
                control.added.push(peer);
            }
            room && !known
        });
        room
    }

    /// Ends all links and stops listening; returns when that is done. No event comes afterwards:
    /// the channel closes.
    pub async fn stop(self) {
        self.control.send_modify(|control| control.stop = true);
        self.control.closed().await;
    }
}

fn check_len(class: Class, frame: &Bytes) -> Result<(), SendError> {
    match class.frame_bytes_max() {
        max if frame.len() > max => Err(SendError::TooLong { len: frame.len(), max }),
        _ => Ok(()),
    }
}
