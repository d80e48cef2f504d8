//! One connection from its streams to its end: the handshake, then frames in both directions.
//!
//! The handshake on the vote stream: both send `Hello`; who is suited by the other's answers `Accept`, who is not,
//! `Refuse` with the reason. Of two accepted sides the one with the lower key decides: `Go` makes this connection
//! the link, `Duplicate` says that another one is. One decider, so the two never keep different connections. With
//! `Accept` each says whether it holds a link to the other, so that the decider sees when its own is a dead one.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{
    AsyncReadExt as _,
    io::{ReadHalf, WriteHalf},
};
use libp2p::{Stream, swarm::ConnectionId};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use super::{
    BULK_QUEUE_BYTES_MAX, BULK_QUEUE_FRAMES_MAX, CheckHello, Class, INCOMING_BYTES_MAX, MeshEvent, Shared, Timing,
    VOTE_QUEUE_BYTES_MAX, VOTE_QUEUE_FRAMES_MAX,
    behaviour::Streams,
    frame::{BULK_FRAME_BYTES_MAX, FrameReader, FrameWriter, Kind, StreamError, VOTE_FRAME_BYTES_MAX},
    hello::{Hello, Known, parse_known},
    queue::{Budget, Queue},
};
use crate::types::NodeKey;

/// How long the lower key waits for its own connection before it takes the other side's.
const PREFER_OWN: Duration = Duration::from_millis(500);

/// How long a last word (`Refuse`, `Duplicate`) may take to arrive before the connection is closed.
const LINGER: Duration = Duration::from_secs(1);

/// Characters of a refusal that are shown. The rest is cut.
const REASON_CHARS_MAX: usize = 400;

/// A link that is up, as the mesh's handle sees it.
pub(super) struct Link {
    pub(super) connection: ConnectionId,
    pub(super) peer: NodeKey,
    /// Where the peer can be dialled, if it can.
    pub(super) addr: Option<SocketAddr>,
    /// Where the connection comes from or goes to.
    pub(super) remote: SocketAddr,
    pub(super) outbound: bool,
    pub(super) boot: [u8; 16],
    /// When the connection was made; the link is up later.
    connected: Instant,
    pub(super) since: Instant,
    pub(super) vote: Queue,
    pub(super) bulk: Queue,
    /// Bytes that the peer may still send before the node drops some.
    room: Arc<Semaphore>,
    rtt_us: AtomicU64,
    reset: Mutex<Option<String>>,
    reset_wake: Notify,
}

const RTT_UNKNOWN: u64 = u64::MAX;

impl Link {
    /// `shared`: what waits for this peer counts there too.
    pub(super) fn new(connection: &Connection, boot: [u8; 16], listen_port: u16, shared: Option<Arc<Budget>>) -> Link {
        let addr = match (connection.outbound, listen_port) {
            (true, _) => Some(connection.remote),
            (false, 0) => None,
            (false, port) => Some(SocketAddr::new(connection.remote.ip(), port)),
        };
        Link {
            connection: connection.id,
            peer: connection.peer,
            addr,
            remote: connection.remote,
            outbound: connection.outbound,
            boot,
            connected: connection.since,
            since: Instant::now(),
            vote: Queue::new(VOTE_QUEUE_FRAMES_MAX, VOTE_QUEUE_BYTES_MAX, shared.clone()),
            bulk: Queue::new(BULK_QUEUE_FRAMES_MAX, BULK_QUEUE_BYTES_MAX, shared),
            room: Arc::new(Semaphore::new(INCOMING_BYTES_MAX)),
            rtt_us: AtomicU64::new(RTT_UNKNOWN),
            reset: Mutex::new(None),
            reset_wake: Notify::new(),
        }
    }

    pub(super) fn queue(&self, class: Class) -> &Queue {
        match class {
            Class::Vote => &self.vote,
            Class::Bulk => &self.bulk,
        }
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        match self.rtt_us.load(Ordering::Relaxed) {
            RTT_UNKNOWN => None,
            us => Some(Duration::from_micros(us)),
        }
    }

    /// Ends the link; its task says so to everyone else. The first reason stays.
    pub(super) fn reset(&self, reason: &str) {
        self.reset.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.to_owned());
        self.close_queues();
        self.reset_wake.notify_one();
    }

    /// The same bytes, which count as the peer's until the last of their holders has dropped them.
    async fn counted(&self, bytes: Bytes) -> Bytes {
        let len = u32::try_from(bytes.len()).expect("frames are bounded");
        let permit = self.room.clone().acquire_many_owned(len).await.expect("it is never closed");
        Bytes::from_owner(Counted { bytes, _permit: permit })
    }

    async fn until_reset(&self) -> String {
        loop {
            if let Some(reason) = self.reset.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return reason;
            }
            self.reset_wake.notified().await;
        }
    }

    fn close_queues(&self) {
        self.vote.close();
        self.bulk.close();
    }

    fn age_us(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(RTT_UNKNOWN - 1)
    }
}

/// Bytes with the room they take.
struct Counted {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A connection whose other side has proven its key.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) peer: NodeKey,
    pub(super) remote: SocketAddr,
    pub(super) outbound: bool,
    /// When both keys were proven.
    pub(super) since: Instant,
    /// Our key is the lower one: we decide which connection is the link.
    pub(super) decider: bool,
    /// Why this peer is refused whatever its hello says.
    pub(super) refusal: Option<String>,
}

/// What a connection's task tells the mesh's task.
pub(super) enum Message {
    /// Both hellos are accepted: may this connection be the link?
    Ask {
        connection: Connection,
        /// From its hello.
        boot: [u8; 16],
        /// From its hello.
        listen_port: u16,
        /// The other side holds a link to us, this one or another.
        peer_holds: bool,
        /// The other side has decided that it is.
        granted: bool,
        /// Not to be put off for another connection any more.
        impatient: bool,
        reply: oneshot::Sender<Verdict>,
    },
    /// A linked peer tells addresses.
    Known { peer: NodeKey, known: Vec<Known> },
    /// The connection is of no more use.
    Done { connection: ConnectionId, peer: NodeKey, end: End },
}

/// The answer to `Ask`.
pub(super) enum Verdict {
    /// It is the link. `predecessor` ends when everything about the peer's former link has been told;
    /// `ended` is dropped when everything about this one has.
    Go { link: Arc<Link>, predecessor: Option<oneshot::Receiver<()>>, ended: oneshot::Sender<()> },
    /// Ask again a little later.
    Wait,
    /// Another connection is the link.
    Duplicate,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// One side does not want the other.
    Refused(String),
    /// Another connection is the link.
    Duplicate,
    /// It was never a link.
    Lost(String),
    /// It was the link.
    Down(String),
}

/// What all connections of a mesh share.
pub(super) struct Context {
    pub(super) timing: Timing,
    pub(super) hello: Bytes,
    pub(super) check_hello: CheckHello,
    pub(super) shared: Arc<Shared>,
    pub(super) events: mpsc::Sender<MeshEvent>,
    pub(super) messages: mpsc::Sender<Message>,
}

struct Ends {
    vote_in: FrameReader<ReadHalf<Stream>>,
    vote_out: FrameWriter<WriteHalf<Stream>>,
    bulk_in: FrameReader<ReadHalf<Stream>>,
    bulk_out: FrameWriter<WriteHalf<Stream>>,
}

struct Agreed {
    link: Arc<Link>,
    hello: Hello,
    predecessor: Option<oneshot::Receiver<()>>,
    ended: oneshot::Sender<()>,
}

/// Runs one connection to its end.
pub(super) async fn run(connection: Connection, streams: oneshot::Receiver<Box<Streams>>, context: Arc<Context>) {
    let (id, peer) = (connection.id, connection.peer);
    let done = |end| context.messages.send(Message::Done { connection: id, peer, end });
    // A send fails only when the mesh stops, and then nobody wants to know.
    let handshake = async {
        let streams = streams.await.map_err(|_| End::Lost("closed before its streams opened".to_owned()))?;
        let mut ends = Ends::new(*streams, &context.timing);
        let agreed = ends.handshake(&connection, &context).await?;
        Ok((ends, agreed))
    };
    let (ends, agreed) = match timeout(context.timing.handshake, handshake).await {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(end)) => return drop(done(end).await),
        Err(_) => {
            let reason = format!("no agreement within {:?}", context.timing.handshake);
            return drop(done(End::Lost(reason)).await);
        }
    };
    let link = agreed.link;
    let mut announced = false;
    let reason = ends.carry(&link, agreed.hello, agreed.predecessor, &context, &mut announced).await;
    link.close_queues();
    let _ = done(End::Down(reason.clone())).await;
    if announced {
        let _ = context.events.send(MeshEvent::LinkDown { peer, reason }).await;
    }
    drop(agreed.ended);
}

impl Ends {
    fn new(streams: Streams, timing: &Timing) -> Ends {
        let (vote_in, vote_out) = streams.vote.split();
        let (bulk_in, bulk_out) = streams.bulk.split();
        Ends {
            vote_in: FrameReader::new(vote_in, VOTE_FRAME_BYTES_MAX),
            vote_out: FrameWriter::new(vote_out, timing.write_deadline),
            bulk_in: FrameReader::new(bulk_in, BULK_FRAME_BYTES_MAX),
            bulk_out: FrameWriter::new(bulk_out, timing.write_deadline),
        }
    }

    async fn handshake(&mut self, connection: &Connection, context: &Context) -> Result<Agreed, End> {
        self.vote_out.write(Kind::Hello, &context.hello).await.map_err(lost)?;
        let hello = match self.vote_in.next().await.map_err(lost)? {
            (Kind::Hello, body) => Hello::parse(&body),
            (kind, _) => return Err(unexpected(kind)),
        };
        let suits = |hello: Hello| match &connection.refusal {
            Some(reason) => Err(reason.clone()),
            None => (context.check_hello)(&connection.peer, &hello.app).map(|()| hello),
        };
        let hello = match hello.and_then(suits) {
            Ok(hello) => hello,
            Err(reason) => {
                self.last_word(Kind::Refuse, reason.as_bytes()).await;
                return Err(End::Refused(readable(reason.as_bytes())));
            }
        };
        let holds = u8::from(context.shared.link(&connection.peer).is_some());
        self.vote_out.write(Kind::Accept, &[holds]).await.map_err(lost)?;
        let peer_holds = match self.vote_in.next().await.map_err(lost)? {
            (Kind::Accept, body) => body[..] != [0],
            (Kind::Refuse, reason) => return Err(self.refused(&reason).await),
            (kind, _) => return Err(unexpected(kind)),
        };
        let granted = !connection.decider;
        if granted {
            match self.vote_in.next().await.map_err(lost)? {
                (Kind::Go, _) => {}
                (Kind::Duplicate, _) => return Err(End::Duplicate),
                (kind, _) => return Err(unexpected(kind)),
            }
        }
        let mut impatient = false;
        loop {
            let (reply, verdict) = oneshot::channel();
            let (connection, boot, listen_port) = (connection.clone(), hello.boot, hello.listen_port);
            let ask = Message::Ask { connection, boot, listen_port, peer_holds, granted, impatient, reply };
            let stopping = || End::Lost("the mesh stops".to_owned());
            context.messages.send(ask).await.map_err(|_| stopping())?;
            match verdict.await.map_err(|_| stopping())? {
                Verdict::Wait => {
                    sleep(PREFER_OWN).await;
                    impatient = true;
                }
                Verdict::Duplicate => {
                    self.last_word(Kind::Duplicate, b"").await;
                    return Err(End::Duplicate);
                }
                Verdict::Go { link, predecessor, ended } => {
                    // A failing write shows again, and is dealt with, when the link carries its first frame.
                    if !granted {
                        let _ = self.vote_out.write(Kind::Go, b"").await;
                    }
                    return Ok(Agreed { link, hello, predecessor, ended });
                }
            }
        }
    }

    /// Says why this connection ends, and gives the other side time to read it.
    async fn last_word(&mut self, kind: Kind, body: &[u8]) {
        let said = async {
            self.vote_out.write(kind, body).await?;
            self.vote_out.close().await;
            self.vote_in.drain().await;
            Ok::<(), StreamError>(())
        };
        // The connection is closed next, whatever came of it.
        let _ = timeout(LINGER, said).await;
    }

    async fn refused(&mut self, reason: &[u8]) -> End {
        self.vote_out.close().await;
        End::Refused(format!("the peer refused: {}", readable(reason)))
    }

    /// Frames in both directions until something ends the link; the reason why it did.
    async fn carry(
        mut self,
        link: &Link,
        hello: Hello,
        predecessor: Option<oneshot::Receiver<()>>,
        context: &Context,
        announced: &mut bool,
    ) -> String {
        let inbound = async {
            if let Some(predecessor) = predecessor {
                let _ = predecessor.await; // Ends by being dropped.
            }
            if context
                .events
                .send(MeshEvent::LinkUp { peer: link.peer, hello: hello.app, connected: link.connected })
                .await
                .is_err()
            {
                return "the node takes no more events".to_owned();
            }
            *announced = true;
            tokio::select! {
                biased;
                reason = read_votes(&mut self.vote_in, link, context) => reason,
                reason = read_bulk(&mut self.bulk_in, link, context) => reason,
            }
        };
        tokio::select! {
            biased;
            reason = link.until_reset() => reason,
            err = self.vote_out.write_queue(&link.vote) => err.to_string(),
            reason = inbound => reason,
            err = self.bulk_out.write_queue(&link.bulk) => err.to_string(),
            reason = heartbeat(link, context) => reason,
        }
    }
}

async fn read_votes(stream: &mut FrameReader<ReadHalf<Stream>>, link: &Link, context: &Context) -> String {
    let silence = context.timing.silence;
    let mut heard = Instant::now();
    let alarm = sleep_until(heard + silence);
    tokio::pin!(alarm);
    loop {
        let next = tokio::select! {
            biased;
            next = stream.next() => next,
            // Armed again only when it rings, so that a frame costs no timer. Time spent waiting for our own node
            // to take a frame is not the peer's silence.
            () = &mut alarm => {
                if heard.elapsed() >= silence {
                    return format!("nothing heard for {silence:?}");
                }
                alarm.as_mut().reset(heard + silence);
                continue;
            }
        };
        let (kind, bytes) = match next {
            Ok(frame) => frame,
            Err(err) => return err.to_string(),
        };
        let passed_on = match kind {
            Kind::App => {
                let bytes = link.counted(bytes).await;
                let frame = MeshEvent::Frame { peer: link.peer, class: Class::Vote, bytes };
                context.events.send(frame).await.map_err(|_| "the node takes no more events".to_owned())
            }
            Kind::Ping if bytes.len() == size_of::<u64>() => {
                link.vote.push(Kind::Pong, bytes).map_err(|_| "the vote queue is full".to_owned())
            }
            Kind::Pong => pong(link, &bytes),
            Kind::Known => match parse_known(&bytes) {
                Ok(known) => {
                    let message = Message::Known { peer: link.peer, known };
                    context.messages.send(message).await.map_err(|_| "the mesh stops".to_owned())
                }
                Err(reason) => Err(format!("the peer sent {reason}")),
            },
            kind => Err(format!("the peer sent an unexpected {kind:?} frame")),
        };
        if let Err(reason) = passed_on {
            return reason;
        }
        heard = Instant::now();
    }
}

async fn read_bulk(stream: &mut FrameReader<ReadHalf<Stream>>, link: &Link, context: &Context) -> String {
    loop {
        match stream.next().await {
            Ok((Kind::App, bytes)) => {
                let bytes = link.counted(bytes).await;
                let frame = MeshEvent::Frame { peer: link.peer, class: Class::Bulk, bytes };
                if context.events.send(frame).await.is_err() {
                    return "the node takes no more events".to_owned();
                }
            }
            Ok((kind, _)) => return format!("the peer sent an unexpected {kind:?} frame on the bulk stream"),
            Err(err) => return err.to_string(),
        }
    }
}

fn pong(link: &Link, body: &[u8]) -> Result<(), String> {
    let sent_us = body.try_into().map(u64::from_le_bytes).map_err(|_| "the peer sent a malformed pong".to_owned())?;
    if let Some(rtt_us) = link.age_us().checked_sub(sent_us) {
        link.rtt_us.store(rtt_us, Ordering::Relaxed);
    }
    Ok(())
}

async fn heartbeat(link: &Link, context: &Context) -> String {
    let mut tick = interval(context.timing.ping);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let body = Bytes::copy_from_slice(&link.age_us().to_le_bytes());
        if link.vote.push(Kind::Ping, body).is_err() {
            return "the vote queue is full".to_owned();
        }
    }
}

fn lost(err: StreamError) -> End {
    End::Lost(err.to_string())
}

fn unexpected(kind: Kind) -> End {
    End::Lost(format!("the peer sent an unexpected {kind:?} frame during the handshake"))
}

/// A peer's text for the operator's eyes: one line, printable, not long.
fn readable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_CHARS_MAX).collect()
}
