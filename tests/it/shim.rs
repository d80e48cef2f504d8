//! A TCP shim between nodes: whatever two nodes tell each other goes through it, and it delays, slows, holds, loses or
//! cuts that, in each direction by itself, as the test says while it runs.
//!
//! Every ordered pair has an address of its own, which the one dials to reach the other. Nodes tell each other the
//! addresses they know, and dial any; so a pair's listener takes connections of the one process that it is for and of no
//! other, and the shim speaks to a node from addresses where nobody listens. No link can go round it.
//!
//! It runs on a thread of its own, so that a busy test does not become the network's weather.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use hotpocket::{
    config::{Document, quoted},
    types::Hash,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use crate::net::{Net, processes};

/// Chunks on their way in one direction of one connection. Past it the sender waits.
const CHUNKS_MAX: usize = 4096;

/// Bytes of one chunk at most.
const CHUNK_BYTES: usize = 16 * 1024;

/// What becomes of the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// They arrive.
    #[default]
    Open,
    /// They wait until it is open again, as TCP makes them when packets are lost.
    Held,
    /// They are lost, and the other direction goes on. What was connected meanwhile is cut when it is open again.
    Swallowed,
    /// Connections are cut, and new ones refused.
    Cut,
}

/// How one direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weather {
    /// Time each byte takes.
    pub delay: Duration,
    /// Up to so much is added, drawn for each chunk. Order is kept.
    pub jitter: Duration,
    /// Bytes a second; 0: any number.
    pub bytes_per_s: u64,
    /// Whether they arrive at all.
    pub flow: Flow,
}

impl Weather {
    /// Everything takes so long.
    pub fn late(ms: u64) -> Weather {
        Weather { delay: Duration::from_millis(ms), ..Weather::default() }
    }

    /// Nothing but this happens to the bytes.
    pub fn flow(flow: Flow) -> Weather {
        Weather { flow, ..Weather::default() }
    }
}

/// One direction between two nodes, over all their connections.
struct Way {
    weather: watch::Sender<Weather>,
    /// Bytes that arrived.
    carried: AtomicU64,
}

/// What the test and the shim's thread share.
struct Shared {
    targets: Vec<SocketAddr>,
    /// The nodes' folders, by which their processes are known.
    dirs: OnceLock<Vec<PathBuf>>,
    ways: Vec<Vec<Way>>,
}

impl Shared {
    fn way(&self, from: usize, to: usize) -> &Way {
        &self.ways[from][to]
    }
}

/// See the module.
pub struct Shim {
    shared: Arc<Shared>,
    addresses: Vec<Vec<SocketAddr>>,
    _stop: oneshot::Sender<()>,
}

impl Shim {
    /// A shim before these peer ports, in fair weather.
    pub fn new(targets: Vec<SocketAddr>) -> Shim {
        let n = targets.len();
        let way = |_| Way { weather: watch::Sender::new(Weather::default()), carried: AtomicU64::new(0) };
        let ways = (0..n).map(|_| (0..n).map(way).collect()).collect();
        let shared = Arc::new(Shared { targets, dirs: OnceLock::new(), ways });
        let listen = |from, to| {
            let listener = std::net::TcpListener::bind((address(8, from, to), 0)).expect("a free port");
            listener.set_nonblocking(true).expect("a socket");
            listener
        };
        let listeners: Vec<Vec<_>> = (0..n).map(|from| (0..n).map(|to| listen(from, to)).collect()).collect();
        let addresses = listeners
            .iter()
            .map(|row| row.iter().map(|listener| listener.local_addr().expect("bound")).collect())
            .collect();
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = shared.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                for (from, row) in listeners.into_iter().enumerate() {
                    for (to, listener) in row.into_iter().enumerate().filter(|(to, _)| *to != from) {
                        let listener = TcpListener::from_std(listener).expect("a socket");
                        tokio::spawn(serve(worker.clone(), from, to, listener));
                    }
                }
                // Ends when the shim is dropped, and every connection with it.
                let _ = stopped.await;
            });
        });
        Shim { shared, addresses, _stop: stop }
    }

    /// The nodes' folders. Before, no connection is taken.
    pub fn know(&self, dirs: Vec<PathBuf>) {
        self.shared.dirs.set(dirs).expect("told once");
    }

    /// What the one dials to reach the others.
    pub fn addresses(&self, from: usize) -> Vec<SocketAddr> {
        (0..self.addresses.len()).filter(|to| *to != from).map(|to| self.addresses[from][to]).collect()
    }

    /// Changes one direction.
    pub fn set(&self, from: usize, to: usize, weather: Weather) {
        self.shared.way(from, to).weather.send_replace(weather);
    }

    /// Changes what a node sends.
    pub fn uplink(&self, from: usize, weather: Weather) {
        (0..self.addresses.len()).for_each(|to| self.set(from, to, weather));
    }

    /// Changes all that a node sends and gets.
    pub fn around(&self, node: usize, weather: Weather) {
        self.uplink(node, weather);
        (0..self.addresses.len()).for_each(|from| self.set(from, node, weather));
    }

    /// Changes everything.
    pub fn everywhere(&self, weather: Weather) {
        (0..self.addresses.len()).for_each(|from| self.uplink(from, weather));
    }

    /// Bytes that arrived in one direction.
    pub fn carried(&self, from: usize, to: usize) -> u64 {
        self.shared.way(from, to).carried.load(Ordering::Relaxed)
    }

    /// Whether a link's address, as a node's status shows it, leads through the shim.
    pub fn is_mine(&self, address: SocketAddr) -> bool {
        let dialled = self.addresses.iter().flatten().any(|mine| *mine == address);
        dialled || matches!(address.ip(), std::net::IpAddr::V4(ip) if ip.octets()[..2] == [127, 9])
    }
}

/// A network of nodes with a shim between them, not up yet. Each node has an address of its own.
pub fn network(n: usize, binary: &Path, set: impl Fn(usize, &mut Document)) -> (Net, Shim) {
    let ip = |at: usize| Ipv4Addr::new(127, 1, 0, u8::try_from(at + 1).expect("few nodes"));
    let listen = |at| std::net::TcpListener::bind((ip(at), 0)).expect("a free port");
    let listeners: Vec<std::net::TcpListener> = (0..n).map(listen).collect();
    let ports: Vec<SocketAddr> = listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect();
    drop(listeners);
    let shim = Shim::new(ports.clone());
    let net = Net::new(n, binary, |at, document| {
        document.set("ip", &quoted(&ip(at).to_string()));
        document.set("peerport", &ports[at].port().to_string());
        document.set_list("peers", &shim.addresses(at));
        set(at, document);
    });
    shim.know(net.nodes.iter().map(|node| node.dir.clone()).collect());
    (net, shim)
}

/// An address of the loopback net for a pair: `kind` 8 listens for it, 9 speaks to nodes for it.
fn address(kind: u8, from: usize, to: usize) -> Ipv4Addr {
    let small = |at| u8::try_from(at + 1).expect("few nodes");
    Ipv4Addr::new(127, kind, small(from), small(to))
}

/// Takes what one node dials to reach another.
async fn serve(shared: Arc<Shared>, from: usize, to: usize, listener: TcpListener) {
    let own = listener.local_addr().expect("bound");
    loop {
        let Ok((near, dialler)) = listener.accept().await else { continue };
        let is_open = |from, to| shared.way(from, to).weather.borrow().flow != Flow::Cut;
        let right = shared.dirs.get().is_some_and(|dirs| is_of(dialler, own, &dirs[from]));
        if right && is_open(from, to) && is_open(to, from) {
            tokio::spawn(connect(shared.clone(), from, to, near));
        }
    }
}

/// Whether the process of a node's folder holds this end of a connection to `to`.
fn is_of(dialler: SocketAddr, to: SocketAddr, dir: &Path) -> bool {
    let hex = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port()),
        SocketAddr::V6(_) => String::new(),
    };
    let (dialler, to) = (hex(dialler), hex(to));
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc is there");
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let socket = table.lines().map(fields).find(|fields| fields.len() > 9 && fields[1] == dialler && fields[2] == to);
    let Some(socket) = socket.map(|fields| format!("socket:[{}]", fields[9])) else { return false };
    let owner = processes(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let argument = |word: &[u8]| word == dir.as_os_str().as_encoded_bytes();
        command.split(|byte| *byte == 0).any(argument)
            && fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| {
                fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == &*socket))
            })
    });
    !owner.is_empty()
}

/// Carries one connection until a side ends it or the weather does.
async fn connect(shared: Arc<Shared>, from: usize, to: usize, near: TcpStream) {
    let far = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddrV4::new(address(9, from, to), 0).into())?;
        socket.connect(shared.targets[to]).await
    };
    let Ok(far) = far.await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = carry(&shared, from, to, near_in, far_out) => {}
        () = carry(&shared, to, from, far_in, near_out) => {}
    }
}

/// One direction of one connection. Ends with the connection.
async fn carry(shared: &Shared, from: usize, to: usize, input: OwnedReadHalf, output: OwnedWriteHalf) {
    let way = shared.way(from, to);
    let holed = AtomicBool::new(false);
    let (chunks, arriving) = mpsc::channel(CHUNKS_MAX);
    tokio::select! {
        // What is on its way when the input ends arrives before the output does.
        ((), ()) = futures::future::join(take(way, input, chunks), give(way, arriving, output, &holed)) => {}
        () = cut(way, &holed) => {}
    }
}

/// Reads, and says of each chunk when it arrives.
async fn take(way: &Way, mut input: OwnedReadHalf, chunks: mpsc::Sender<(Instant, Vec<u8>)>) {
    let mut due = Instant::now();
    let mut bytes = vec![0; CHUNK_BYTES];
    let mut number = 0_u64;
    while let Ok(len @ 1..) = input.read(&mut bytes).await {
        let Weather { delay, jitter, bytes_per_s, .. } = *way.weather.borrow();
        let drawn = Hash::tagged("jitter", &number).0[0];
        number += 1;
        due = due.max(Instant::now() + delay + jitter * u32::from(drawn) / 255);
        if bytes_per_s > 0 {
            due += Duration::from_secs_f64(len as f64 / bytes_per_s as f64);
        }
        if chunks.send((due, bytes[..len].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Writes each chunk when it is due, and the weather lets it through.
async fn give(
    way: &Way,
    mut arriving: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut output: OwnedWriteHalf,
    holed: &AtomicBool,
) {
    let mut weather = way.weather.subscribe();
    while let Some((due, chunk)) = arriving.recv().await {
        sleep_until(due).await;
        let now = weather.wait_for(|weather| weather.flow != Flow::Held).await.expect("the shim is there").flow;
        if now == Flow::Swallowed || holed.load(Ordering::Relaxed) {
            holed.store(true, Ordering::Relaxed);
        } else if output.write_all(&chunk).await.is_ok() {
            way.carried.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        } else {
            return;
        }
    }
}

/// Resolves when this connection is to be cut.
async fn cut(way: &Way, holed: &AtomicBool) {
    let mut weather = way.weather.subscribe();
    let over = |weather: &Weather| match weather.flow {
        Flow::Cut => true,
        Flow::Open | Flow::Held => holed.load(Ordering::Relaxed),
        Flow::Swallowed => false,
    };
    let _ = weather.wait_for(over).await;
}
