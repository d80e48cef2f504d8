//! The mesh over real sockets on loopback.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::{AsyncReadExt as _, StreamExt as _};
use libp2p::swarm::{SwarmEvent, dial_opts::DialOpts};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    behaviour::{Report, Reported, Streams},
    frame::{FrameReader, FrameWriter, Kind},
    *,
};

const DEADLINE: Duration = Duration::from_secs(20);

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Short enough for tests, long enough for a machine that is busy with other tests.
const QUICK: Timing = Timing {
    ping: Duration::from_millis(200),
    silence: Duration::from_millis(1_500),
    write_deadline: Duration::from_millis(800),
    handshake: Duration::from_secs(10),
};

struct Node {
    mesh: Mesh,
    events: mpsc::Receiver<MeshEvent>,
    key: NodeKey,
}

struct Setup {
    config: MeshConfig,
    timing: Timing,
    events_max: usize,
}

fn secret(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

fn key(seed: u8) -> NodeKey {
    secret(seed).node_key()
}

/// Two seeds, the one with the lower key first.
fn low_and_high() -> (u8, u8) {
    if key(1) < key(2) { (1, 2) } else { (2, 1) }
}

/// A node of a UNL of the seeds 1 to 9, which accepts every hello.
fn setup(seed: u8, peers: &[SocketAddr]) -> Setup {
    Setup {
        config: MeshConfig {
            key: secret(seed),
            listen: LOOPBACK,
            peers: peers.iter().map(|addr| (addr.ip().to_string(), addr.port())).collect(),
            unl: (1..10).map(key).collect(),
            admit: Admit::Open,
            connections_max: 50,
            hello: vec![seed],
            check_hello: Box::new(|_, _| Ok(())),
        },
        timing: Timing::default(),
        events_max: 64,
    }
}

impl Setup {
    fn listen(mut self, addr: SocketAddr) -> Setup {
        self.config.listen = addr;
        self
    }

    fn timing(mut self, timing: Timing) -> Setup {
        self.timing = timing;
        self
    }

    async fn start(self) -> Node {
        let key = self.config.key.node_key();
        let (to_node, events) = mpsc::channel(self.events_max);
        let mesh = Mesh::start_with(self.config, to_node, self.timing).await.unwrap();
        Node { mesh, events, key }
    }
}

async fn start(seed: u8, peers: &[SocketAddr]) -> Node {
    setup(seed, peers).start().await
}

/// An address that nothing listens on (any more).
fn free_addr() -> SocketAddr {
    std::net::TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap()
}

impl Node {
    fn addr(&self) -> SocketAddr {
        self.mesh.local_addr()
    }

    async fn next(&mut self) -> MeshEvent {
        timeout(DEADLINE, self.events.recv()).await.expect("an event in time").expect("the mesh runs")
    }

    async fn up(&mut self, peer: NodeKey) {
        assert!(matches!(self.next().await, MeshEvent::LinkUp { peer: p, .. } if p == peer));
    }

    async fn down(&mut self, peer: NodeKey) -> String {
        match self.next().await {
            MeshEvent::LinkDown { peer: p, reason } if p == peer => reason,
            event => panic!("{event:?}"),
        }
    }

    /// Waits for the next link or link's end, over any frames.
    async fn next_but_frames(&mut self) -> MeshEvent {
        loop {
            match self.next().await {
                MeshEvent::Frame { .. } => {}
                event => return event,
            }
        }
    }

    fn linked(&self) -> BTreeSet<NodeKey> {
        self.mesh.links().iter().map(|link| link.peer).collect()
    }
}

/// Sends a frame there and back, and sees that nothing else happens.
async fn round_trip(a: &mut Node, b: &mut Node, body: &str) {
    let bytes = Bytes::copy_from_slice(body.as_bytes());
    let class = Class::Vote;
    a.mesh.send(&b.key, class, bytes.clone()).unwrap();
    assert_eq!(b.next().await, MeshEvent::Frame { peer: a.key, class, bytes: bytes.clone() });
    b.mesh.send(&a.key, class, bytes.clone()).unwrap();
    assert_eq!(a.next().await, MeshEvent::Frame { peer: b.key, class, bytes });
}

async fn linked_pair() -> (Node, Node) {
    let mut a = start(1, &[]).await;
    let mut b = start(2, &[a.addr()]).await;
    a.up(b.key).await;
    b.up(a.key).await;
    (a, b)
}

/// Forwards connections to `to`. Those that are frozen stay open and forward nothing more; new ones are not.
struct Shim {
    addr: SocketAddr,
    freeze: watch::Sender<()>,
    _tasks: JoinSet<()>,
}

impl Shim {
    async fn start(to: SocketAddr) -> Shim {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (freeze, watched) = watch::channel(());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut pumps = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(to).await else { continue };
                let (near, far) = (near.into_split(), far.into_split());
                let mut freeze = watched.clone();
                freeze.mark_unchanged();
                pumps.spawn(pump(near.0, far.1, freeze.clone()));
                pumps.spawn(pump(far.0, near.1, freeze));
            }
        });
        Shim { addr, freeze, _tasks: tasks }
    }

    fn freeze(&self) {
        self.freeze.send_replace(());
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut freeze: watch::Receiver<()>,
) {
    let mut buf = vec![0; 4096];
    loop {
        tokio::select! {
            biased;
            _ = freeze.changed() => std::future::pending().await,
            len = from.read(&mut buf) => match len {
                Ok(len @ 1..) if to.write_all(&buf[..len]).await.is_ok() => {}
                // Ends are not forwarded after freezing, only before.
                _ => return,
            },
        }
    }
}

#[tokio::test]
async fn two_nodes_exchange_ten_thousand_frames_in_order_both_ways() {
    const FRAMES: u32 = 10_000;
    let (a, b) = linked_pair().await;
    let run = |mut node: Node, peer: NodeKey| async move {
        for n in 0..FRAMES {
            node.mesh.send(&peer, Class::Vote, Bytes::from(n.to_le_bytes().repeat(50))).unwrap();
        }
        for n in 0..20_u32 {
            node.mesh.send(&peer, Class::Bulk, Bytes::from(n.to_le_bytes().repeat(60_000))).unwrap();
        }
        let (mut votes, mut bulk) = (0_u32, 0_u32);
        while (votes, bulk) != (FRAMES, 20) {
            match node.next().await {
                MeshEvent::Frame { class: Class::Vote, bytes, .. } => {
                    assert_eq!(bytes, votes.to_le_bytes().repeat(50));
                    votes += 1;
                }
                MeshEvent::Frame { class: Class::Bulk, bytes, .. } => {
                    assert_eq!(bytes, bulk.to_le_bytes().repeat(60_000));
                    bulk += 1;
                }
                event => panic!("{event:?}"),
            }
        }
        node
    };
    let (a_key, b_key) = (a.key, b.key);
    let (a, b) = tokio::join!(run(a, b_key), run(b, a_key));
    assert_eq!((a.mesh.vote_overflows(), b.mesh.vote_overflows()), (0, 0));
}

#[tokio::test]
async fn the_longest_frames_pass_and_longer_ones_are_not_sent() {
    let (a, mut b) = linked_pair().await;
    for class in [Class::Vote, Class::Bulk] {
        let bytes = Bytes::from(vec![3; class.frame_bytes_max()]);
        a.mesh.send(&b.key, class, bytes.clone()).unwrap();
        assert_eq!(b.next().await, MeshEvent::Frame { peer: a.key, class, bytes });
        let max = class.frame_bytes_max();
        let longer = Bytes::from(vec![3; max + 1]);
        assert_eq!(a.mesh.send(&b.key, class, longer.clone()), Err(SendError::TooLong { len: max + 1, max }));
        assert_eq!(a.mesh.broadcast(class, longer), 0);
    }
    assert_eq!(a.mesh.send(&key(3), Class::Vote, Bytes::new()), Err(SendError::NotLinked));
}

#[tokio::test]
async fn two_nodes_that_dial_each_other_at_once_get_one_link_and_one_link_up_each() {
    for _ in 0..10 {
        let (a_addr, b_addr) = (free_addr(), free_addr());
        let (mut a, mut b) =
            tokio::join!(setup(1, &[b_addr]).listen(a_addr).start(), setup(2, &[a_addr]).listen(b_addr).start());
        a.up(b.key).await;
        b.up(a.key).await;
        // Both connections are there within a few milliseconds; meanwhile nothing but frames may come.
        let end = Instant::now() + Duration::from_millis(100);
        while Instant::now() < end {
            round_trip(&mut a, &mut b, "still the first link").await;
        }
        let (a_link, b_link) = (&a.mesh.links()[0], &b.mesh.links()[0]);
        assert_ne!(a_link.direction, b_link.direction, "both keep the same connection");
        assert_eq!((a.mesh.links().len(), b.mesh.links().len()), (1, 1));
    }
}

#[tokio::test]
async fn a_node_that_is_named_twice_is_linked_once_whichever_key_is_lower() {
    let (low, high) = low_and_high();
    for (dialler, listener) in [(low, high), (high, low)] {
        let mut a = start(listener, &[]).await;
        let mut b = start(dialler, &[a.addr(), a.addr()]).await;
        a.up(b.key).await;
        b.up(a.key).await;
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {
            round_trip(&mut a, &mut b, "on the only link").await;
        }
        assert_eq!((a.mesh.links().len(), b.mesh.links().len()), (1, 1));
    }
}

/// A peer that speaks only when a test does so for it.
struct Puppet {
    addr: SocketAddr,
    dial: mpsc::Sender<SocketAddr>,
    streams: mpsc::Receiver<Streams>,
    _task: JoinSet<()>,
}

impl Puppet {
    async fn start(seed: u8) -> Puppet {
        let (mut swarm, addr) = swarm::listen(&secret(seed), LOOPBACK).await.unwrap();
        let (dial, mut dials) = mpsc::channel::<SocketAddr>(1);
        let (to_test, streams) = mpsc::channel(8);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                tokio::select! {
                    Some(addr) = dials.recv() => {
                        let addr = format!("/ip4/{}/tcp/{}", addr.ip(), addr.port()).parse().unwrap();
                        swarm.dial(DialOpts::unknown_peer_id().address(addr).allocate_new_port().build()).unwrap();
                    }
                    event = swarm.select_next_some() => {
                        if let SwarmEvent::Behaviour(Reported { report: Report::Ready(streams), .. }) = event {
                            to_test.send(*streams).await.unwrap();
                        }
                    }
                }
            }
        });
        Puppet { addr, dial, streams, _task: task }
    }

    async fn next(&mut self) -> Streams {
        timeout(DEADLINE, self.streams.recv()).await.expect("a connection in time").unwrap()
    }
}

#[tokio::test]
async fn the_lower_key_takes_the_other_connection_when_its_own_does_not_come_to_anything() {
    let (low, high) = low_and_high();
    let mut puppet = Puppet::start(high).await;
    let mut a = start(low, &[puppet.addr]).await;
    let _own_that_is_not_answered = puppet.next().await;
    let start_time = Instant::now();
    puppet.dial.send(a.addr()).await.unwrap();
    let streams = puppet.next().await;
    let (from_a, to_a) = streams.vote.split();
    let (mut from_a, mut to_a) = (FrameReader::new(from_a, 0), FrameWriter::new(to_a, DEADLINE));
    let hello = Hello { version: hello::VERSION, boot: [1; 16], listen_port: 0, app: b"puppet".to_vec() };
    to_a.write(Kind::Hello, &hello.to_bytes()).await.unwrap();
    to_a.write(Kind::Accept, &[0]).await.unwrap();
    for kind in [Kind::Hello, Kind::Accept, Kind::Go] {
        assert_eq!(from_a.next().await.unwrap().0, kind);
    }
    assert!(
        matches!(a.next().await, MeshEvent::LinkUp { peer, hello, .. } if (peer, &hello[..]) == (key(high), b"puppet"))
    );
    assert!(start_time.elapsed() < Timing::default().handshake / 2, "before its own has timed out");
}

#[tokio::test]
async fn a_peer_that_does_not_begin_with_its_hello_is_cut_and_never_linked() {
    let unfinished = Hello { version: hello::VERSION, boot: [1; 16], listen_port: 0, app: Vec::new() }.to_bytes();
    let old = [&7_u16.to_le_bytes()[..], &unfinished[2..]].concat();
    for (kind, body) in [(Kind::App, vec![0; 8]), (Kind::Hello, vec![0; CONTROL_BYTES_MAX + 1]), (Kind::Hello, old)] {
        let mut a = start(1, &[]).await;
        let mut puppet = Puppet::start(2).await;
        puppet.dial.send(a.addr()).await.unwrap();
        let (mut from_a, to_a) = puppet.next().await.vote.split();
        FrameWriter::new(to_a, DEADLINE).write(kind, &body).await.unwrap();
        let mut rest = Vec::new();
        // Closed or reset: either ends it.
        let _ = timeout(DEADLINE, from_a.read_to_end(&mut rest)).await.expect("cut in time");
        if body.len() == unfinished.len() {
            let reason = "mesh version 7 there, 1 here".to_owned();
            assert_eq!(a.next().await, MeshEvent::Refused { peer: key(2), reason: reason.clone() });
            assert!(String::from_utf8_lossy(&rest).ends_with(&reason), "the peer is told");
        }
        assert!(a.events.try_recv().is_err() && a.linked().is_empty());
    }
}

#[tokio::test]
async fn five_nodes_that_know_one_address_each_all_find_each_other() {
    let mut nodes = vec![start(1, &[]).await];
    for seed in 2..=5 {
        let before = nodes.last().unwrap().addr();
        nodes.push(start(seed, &[before]).await);
    }
    let all: BTreeSet<NodeKey> = nodes.iter().map(|node| node.key).collect();
    for node in &mut nodes {
        while node.linked().len() < 4 {
            assert!(matches!(node.next().await, MeshEvent::LinkUp { .. }), "no link is lost on the way");
        }
    }
    for node in &nodes {
        assert_eq!(node.linked(), &all - &BTreeSet::from([node.key]));
        assert_eq!(node.mesh.broadcast(Class::Vote, Bytes::from_static(b"x")), 4);
    }
}

#[tokio::test]
async fn a_refused_hello_is_reported_with_its_reason_on_both_sides_and_links_nobody() {
    let mut first = setup(1, &[]);
    first.config.check_hello = Box::new(|_, hello| match hello {
        [2] => Err("genesis time: 5 there,\n6 here".to_owned()),
        _ => Ok(()),
    });
    let mut a = first.start().await;
    let mut b = start(2, &[a.addr()]).await;
    let reason = "genesis time: 5 there, 6 here";
    assert_eq!(a.next().await, MeshEvent::Refused { peer: b.key, reason: reason.to_owned() });
    assert_eq!(b.next().await, MeshEvent::Refused { peer: a.key, reason: format!("the peer refused: {reason}") });
    // The next event is another node's link, not the same refusal of the next try.
    let mut c = start(3, &[a.addr(), b.addr()]).await;
    a.up(c.key).await;
    b.up(c.key).await;
    assert!(matches!(c.next().await, MeshEvent::LinkUp { hello, .. } if hello == [1] || hello == [2]));
    assert!(!a.linked().contains(&b.key) && !b.linked().contains(&a.key));
}

#[tokio::test]
async fn own_dead_and_silent_addresses_do_no_harm_and_any_address_means_loopback() {
    let silent = TcpListener::bind(LOOPBACK).await.unwrap();
    let mut a = start(1, &[]).await;
    let own = free_addr();
    let mut second = setup(2, &[own, free_addr(), silent.local_addr().unwrap()]).listen(own);
    second.config.peers.push(("no-such-host.invalid".to_owned(), 1));
    second.config.peers.push(("0.0.0.0".to_owned(), a.addr().port()));
    let mut b = second.start().await;
    a.up(b.key).await;
    b.up(a.key).await;
    round_trip(&mut a, &mut b, "linked all the same").await;
}

#[tokio::test]
async fn a_peer_is_found_by_its_host_name() {
    let mut a = start(1, &[]).await;
    let mut second = setup(2, &[]);
    second.config.peers.push(("localhost".to_owned(), a.addr().port()));
    let b = second.start().await;
    a.up(b.key).await;
}

#[tokio::test]
async fn a_client_that_talks_nonsense_does_no_harm() {
    let mut a = start(1, &[]).await;
    let mut nonsense = TcpStream::connect(a.addr()).await.unwrap();
    nonsense.write_all(&b"GET / HTTP/1.1\r\n".repeat(20)).await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(DEADLINE, nonsense.read_to_end(&mut rest)).await.expect("the connection is closed");
    let b = start(2, &[a.addr()]).await;
    a.up(b.key).await;
}

#[tokio::test]
async fn an_oversized_frame_closes_the_link_with_a_reason() {
    for class in [Class::Vote, Class::Bulk] {
        let (a, mut b) = linked_pair().await;
        let max = class.frame_bytes_max();
        let link = a.mesh.shared.link(&b.key).unwrap();
        link.queue(class).push(Kind::App, Bytes::from(vec![0; max + 1])).unwrap();
        let reason = b.down(a.key).await;
        assert_eq!(reason, format!("the peer sent a frame of {} bytes, {max} are allowed", max + 1));
    }
}

#[tokio::test]
async fn a_mesh_frame_where_none_belongs_closes_the_link() {
    for (class, kind) in [(Class::Vote, Kind::Hello), (Class::Vote, Kind::Ping), (Class::Bulk, Kind::Ping)] {
        let (a, mut b) = linked_pair().await;
        let link = a.mesh.shared.link(&b.key).unwrap();
        link.queue(class).push(kind, Bytes::from_static(b"1")).unwrap();
        let reason = b.down(a.key).await;
        assert!(reason.starts_with("the peer sent an unexpected"), "{reason}");
    }
}

#[tokio::test]
async fn a_peer_that_reads_nothing_fills_its_own_queue_and_slows_nobody() {
    let mut a = start(1, &[]).await;
    let mut stalled = setup(2, &[a.addr()]);
    stalled.events_max = 1; // Takes its link, and then nothing more.
    let b = stalled.start().await;
    a.up(b.key).await;
    let mut c = start(3, &[a.addr()]).await;
    a.up(c.key).await;
    let mut from_a = 0;
    let frame = Bytes::from(vec![9; 256 * 1024]);
    let mut queued = 0_usize;
    // All frames share their bytes; what is measured is what the queue lets in.
    loop {
        match a.mesh.send(&b.key, Class::Vote, frame.clone()) {
            Ok(()) => queued += frame.len(),
            Err(err) => break assert_eq!(err, SendError::QueueFull),
        }
        if queued.is_multiple_of(4 * frame.len()) {
            a.mesh.send(&c.key, Class::Vote, Bytes::from_static(b"for c")).unwrap();
            while !matches!(c.next().await, MeshEvent::Frame { bytes, .. } if bytes == "for c") {}
            from_a += 1;
        }
    }
    assert!(from_a > 10, "{from_a}");
    assert!(queued < VOTE_QUEUE_BYTES_MAX + 32 * 1024 * 1024, "{queued}");
    assert_eq!(a.mesh.vote_overflows(), 1);
    assert_eq!(a.mesh.send(&b.key, Class::Vote, frame), Err(SendError::NotLinked));
    let down = a.next_but_frames().await;
    let reason = "the peer is too slow: its vote queue is full".to_owned();
    assert_eq!(down, MeshEvent::LinkDown { peer: b.key, reason });
    a.mesh.send(&c.key, Class::Vote, Bytes::from_static(b"end")).unwrap();
    while !matches!(c.next().await, MeshEvent::Frame { bytes, .. } if bytes == "end") {}
}

#[tokio::test]
async fn a_full_bulk_queue_refuses_frames_and_keeps_the_link() {
    let mut a = start(1, &[]).await;
    let mut stalled = setup(2, &[a.addr()]);
    stalled.events_max = 1;
    let mut b = stalled.start().await;
    a.up(b.key).await;
    let frame = Bytes::from(vec![9; 4 * 1024 * 1024]);
    let mut queued = 0;
    while a.mesh.send(&b.key, Class::Bulk, frame.clone()).is_ok() {
        queued += 1;
        tokio::task::yield_now().await;
    }
    assert_eq!(a.mesh.send(&b.key, Class::Bulk, frame.clone()), Err(SendError::QueueFull));
    b.up(a.key).await;
    for _ in 0..queued {
        assert!(matches!(b.next().await, MeshEvent::Frame { bytes, .. } if bytes == frame));
    }
    assert_eq!(a.mesh.vote_overflows(), 0);
}

#[tokio::test]
async fn a_node_that_takes_nothing_holds_few_bytes_of_a_peer_however_many_frames_it_has_room_for() {
    let mut a = setup(1, &[]).timing(QUICK).start().await;
    let b = setup(2, &[a.addr()]).start().await;
    a.up(b.key).await;
    let frame = Bytes::from(vec![9; BULK_FRAME_BYTES_MAX]);
    let pushed = async {
        while !matches!(a.events.try_recv(), Ok(MeshEvent::LinkDown { .. })) {
            // A full queue is what the peer's silence leads to.
            let _ = a.mesh.send(&b.key, Class::Bulk, frame.clone());
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, pushed).await.expect("the peer takes no more");
    assert_eq!(b.events.len(), 2, "the link, and one frame of the longest kind");
}

#[tokio::test]
async fn a_peer_that_takes_nothing_within_the_deadline_is_dropped() {
    let mut a = setup(1, &[]).timing(QUICK).start().await;
    let mut stalled = setup(2, &[a.addr()]);
    stalled.events_max = 1;
    let b = stalled.start().await;
    a.up(b.key).await;
    for _ in 0..32 {
        a.mesh.send(&b.key, Class::Bulk, Bytes::from(vec![9; 512 * 1024])).unwrap();
    }
    assert_eq!(a.down(b.key).await, "the peer took nothing for 800ms");
}

#[tokio::test]
async fn a_silent_connection_is_found_out_on_both_sides() {
    let mut a = setup(1, &[]).timing(QUICK).start().await;
    let shim = Shim::start(a.addr()).await;
    let mut b = setup(2, &[shim.addr]).timing(QUICK).start().await;
    a.up(b.key).await;
    b.up(a.key).await;
    // Pings alone keep it up for longer than the silence that ends it.
    let start = Instant::now();
    while start.elapsed() < QUICK.silence + QUICK.ping {
        round_trip_quietly(&mut a, &mut b).await;
    }
    assert!(b.mesh.links()[0].rtt.is_some());
    shim.freeze();
    assert_eq!(a.down(b.key).await, "nothing heard for 1.5s");
    assert_eq!(b.down(a.key).await, "nothing heard for 1.5s");
}

/// Waits for one ping's answer on both sides, and sees that no event comes.
async fn round_trip_quietly(a: &mut Node, b: &mut Node) {
    let quiet = timeout(QUICK.ping, async {
        tokio::select! { e = a.events.recv() => e, e = b.events.recv() => e }
    });
    assert_eq!(quiet.await.ok(), None);
}

#[tokio::test]
async fn a_killed_peer_is_linked_again_when_it_starts_whoever_dials() {
    for restarted_dials in [true, false] {
        let mut a = start(1, &[]).await;
        let addr = free_addr();
        let mut b = setup(2, &[a.addr()]).listen(addr).start().await;
        a.up(b.key).await;
        b.up(a.key).await;
        drop(b.mesh);
        a.down(b.key).await;
        let start = Instant::now();
        let peers: &[SocketAddr] = if restarted_dials { &[a.addr()] } else { &[] };
        let mut again = loop {
            // The port is free when the dropped mesh has ended, which it does by itself.
            let (to_node, events) = mpsc::channel(64);
            match Mesh::start(setup(2, peers).listen(addr).config, to_node).await {
                Ok(mesh) => break Node { mesh, events, key: b.key },
                Err(err) => assert!(err.is_port_taken() && start.elapsed() < DEADLINE, "{err}"),
            }
        };
        a.up(again.key).await;
        again.up(a.key).await;
        round_trip(&mut a, &mut again, "as before").await;
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_restarted_peer_replaces_its_stale_link_whichever_key_is_lower() {
    let (low, high) = low_and_high();
    for (survivor, restarted) in [(low, high), (high, low)] {
        let addr = free_addr();
        let b = setup(restarted, &[]).listen(addr).start().await;
        let shim = Shim::start(addr).await;
        let mut a = start(survivor, &[shim.addr]).await;
        a.up(b.key).await;
        shim.freeze();
        b.mesh.stop().await;
        let mut b = start(restarted, &[a.addr()]).await;
        assert_eq!(a.down(b.key).await, "the peer was started again");
        a.up(b.key).await;
        b.up(a.key).await;
        round_trip(&mut a, &mut b, "on the new link").await;
    }
}

#[tokio::test]
async fn a_link_that_only_one_side_has_lost_is_replaced_whichever_key_is_lower() {
    let (low, high) = low_and_high();
    for (believer, loser) in [(low, high), (high, low)] {
        let patient = Timing { handshake: Duration::from_secs(1), ..Timing::default() };
        let mut a = setup(believer, &[]).timing(patient).start().await;
        let shim = Shim::start(a.addr()).await;
        let mut b = setup(loser, &[shim.addr]).timing(QUICK).start().await;
        a.up(b.key).await;
        b.up(a.key).await;
        shim.freeze();
        b.down(a.key).await;
        assert_eq!(a.down(b.key).await, "the peer had lost the link");
        a.up(b.key).await;
        b.up(a.key).await;
        round_trip(&mut a, &mut b, "on the new link").await;
    }
}

#[tokio::test]
async fn a_stopped_mesh_frees_its_port_and_its_peers_notice() {
    let (a, mut b) = linked_pair().await;
    let (addr, a_key) = (a.addr(), a.key);
    a.mesh.stop().await;
    b.down(a_key).await;
    setup(3, &[]).listen(addr).start().await;
}

#[tokio::test]
async fn a_taken_port_is_named_and_recognised() {
    let a = start(1, &[]).await;
    for taken in [a.addr(), TcpListener::bind(LOOPBACK).await.unwrap().local_addr().unwrap()] {
        let _held = std::net::TcpListener::bind(taken);
        let (to_node, _events) = mpsc::channel(1);
        let Err(err) = Mesh::start(setup(2, &[]).listen(taken).config, to_node).await else {
            panic!("{taken} is listened on twice");
        };
        assert!(err.is_port_taken(), "{err:?}");
        assert_eq!(err.to_string(), format!("cannot listen for peers on {taken}"));
    }
}

#[tokio::test]
async fn the_mesh_listens_on_the_configured_address_only() {
    let a = start(1, &[]).await;
    let other = SocketAddr::from(([127, 0, 0, 2], a.addr().port()));
    assert!(TcpStream::connect(other).await.is_err());
    assert!(TcpStream::connect(a.addr()).await.is_ok());
}

#[tokio::test]
async fn a_hello_that_is_too_long_is_refused_at_the_start() {
    let mut long = setup(1, &[]);
    long.config.hello = vec![0; HELLO_BYTES_MAX + 1];
    let (to_node, _events) = mpsc::channel(1);
    assert!(
        matches!(Mesh::start(long.config, to_node).await, Err(MeshError::HelloTooLong { len }) if len == HELLO_BYTES_MAX + 1)
    );
    let mut longest = setup(1, &[]);
    longest.config.hello = vec![7; HELLO_BYTES_MAX];
    let a = longest.start().await;
    let mut b = start(2, &[a.addr()]).await;
    assert!(
        matches!(b.next().await, MeshEvent::LinkUp { peer, hello, .. } if (peer, &hello) == (a.key, &vec![7; HELLO_BYTES_MAX]))
    );
}

#[tokio::test]
async fn a_stranger_may_watch_where_all_are_admitted_and_gets_no_broadcast() {
    let (mut a, b) = linked_pair().await;
    let mut watcher = start(100, &[a.addr()]).await;
    a.up(watcher.key).await;
    watcher.up(a.key).await;
    // It learns of the other member, and is linked to it too.
    watcher.up(b.key).await;
    assert_eq!(a.mesh.broadcast(Class::Vote, Bytes::from_static(b"vote")), 1);
    round_trip(&mut a, &mut watcher, "no vote came before this").await;
}

#[tokio::test]
async fn places_for_strangers_are_limited_and_members_need_none() {
    let mut first = setup(1, &[]);
    first.config.connections_max = 1;
    let mut a = first.start().await;
    let stranger = start(100, &[a.addr()]).await;
    a.up(stranger.key).await;
    let mut refused = start(101, &[a.addr()]).await;
    let reason = "all 1 places for nodes outside the UNL are taken".to_owned();
    let there = format!("the peer refused: {reason}");
    assert_eq!(a.next().await, MeshEvent::Refused { peer: refused.key, reason });
    assert_eq!(refused.next().await, MeshEvent::Refused { peer: a.key, reason: there });
    let member = start(2, &[a.addr()]).await;
    a.up(member.key).await;
}

#[tokio::test]
async fn a_stranger_is_refused_where_members_alone_are_admitted_also_one_that_left_the_unl() {
    let mut first = setup(1, &[]);
    first.config.admit = Admit::Unl;
    let mut a = first.start().await;
    let stranger = start(100, &[a.addr()]).await;
    let refused = a.next().await;
    assert!(matches!(&refused, MeshEvent::Refused { peer, .. } if *peer == stranger.key), "{refused:?}");
    let b = start(2, &[a.addr()]).await;
    a.up(b.key).await;
    a.mesh.set_unl(BTreeSet::from([key(1), key(100)]));
    let mut events = Vec::new();
    while !events.iter().any(|event| matches!(event, MeshEvent::LinkUp { .. })) || events.len() < 3 {
        events.push(a.next().await);
    }
    assert_eq!(events[0], MeshEvent::LinkDown { peer: b.key, reason: "the peer left the UNL".to_owned() });
    assert!(events.iter().any(|event| matches!(event, MeshEvent::LinkUp { peer, .. } if *peer == stranger.key)));
    assert!(events.iter().any(|event| matches!(event, MeshEvent::Refused { peer, .. } if *peer == b.key)));
}

#[tokio::test]
async fn a_banned_peer_is_cut_and_told_why_until_the_ban_is_lifted() {
    let (mut a, mut b) = linked_pair().await;
    a.mesh.set_banned(BTreeSet::from([b.key, key(7)]));
    assert_eq!(a.down(b.key).await, "banned for a time by the operator");
    b.down(a.key).await;
    // Members as well: who is banned is for the node to say. It dials again and again.
    let told = "the peer refused: banned for a time by the operator".to_owned();
    assert_eq!(b.next().await, MeshEvent::Refused { peer: a.key, reason: told });
    assert!(matches!(a.next().await, MeshEvent::Refused { peer, .. } if peer == b.key));
    assert_eq!((a.linked().len(), b.linked().len()), (0, 0));
    let mut c = start(3, &[a.addr()]).await;
    c.up(a.key).await;
    a.up(c.key).await;
    a.mesh.set_banned(BTreeSet::new());
    a.up(b.key).await;
}
