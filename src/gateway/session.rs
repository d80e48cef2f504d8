//! One connection from its first byte to its last: upgrade, challenge, helo, then inputs in and outputs out.

use std::{
    fmt::Display,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc::{
        OwnedPermit,
        error::{SendError, TrySendError},
    },
    time::{Instant, MissedTickBehavior, interval_at, timeout, timeout_at},
};
use tokio_tungstenite::{
    accept_async_with_config,
    tungstenite::{
        Error, Message,
        error::ProtocolError,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use tracing::{debug, warn};

use super::{
    GatewayEvent, NotIn, SessionId, Shared,
    accept::Slot,
    full_message,
    handshake::{HELO_BYTES_MAX, Helo, HeloProof, Mode, challenge_message, parse_helo},
    outbox::Outbox,
    reply::{ErrorCode, error_frame},
    socket::{Socket, UNFINISHED_BYTES_MAX, config},
};
use crate::{
    signed::{
        Fate, ReadFate, ReadReason, ReadResult, Reason, Reply, Request, RequestError, StatusFrame, frame_bytes_max,
        parse_request,
    },
    types::{Challenge, UserKey},
};

/// Time for the last frames to leave after a connection is over, and again for the other side to hang up.
const FAREWELL: Duration = Duration::from_secs(1);

/// Time in all for a user to hear why its session is over, while it goes on sending what it has begun: a long message that was
/// refused takes its time on a slow line. One that says nothing for [`FAREWELL`] is not waited for.
const FAREWELL_SENDING: Duration = Duration::from_secs(10);

/// The same while the whole gateway stops.
const FAREWELL_STOPPING: Duration = Duration::from_millis(300);

/// Pings without a sign of life before a connection is given up.
const PINGS_MISSED_MAX: u32 = 2;

/// Frames handled before others on this thread get their turn: a read buffer full of tiny frames is long work.
const FRAMES_PER_TURN: u32 = 64;

/// The longest message the library still reads. Up to here the node answers `too_large` and goes on; past it the
/// rest of the message cannot be skipped, and the connection is closed.
fn readable_bytes_max(message_bytes_max: usize) -> usize {
    message_bytes_max.saturating_mul(2).saturating_add(64 << 10)
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The other side closed it or is gone.
    Gone,
    /// This node has no room for the user any more, and says so behind what waits for it.
    LetGo,
    /// This node closes it and says why.
    Refused { code: ErrorCode, close: CloseCode, message: String },
    /// The gateway stops.
    Stopping,
}

/// Serves one connection until it ends; until `deadline` it has time for upgrade and helo. Before that, and behind a wrong one,
/// it goes on in turns with all others that are no users.
pub(super) async fn serve<S>(stream: S, slot: &Slot, deadline: Instant)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let shared = &*slot.shared;
    let Some((mut socket, greeted)) = shared.turns.of(greet(stream, shared, deadline)).await else { return };
    let nothing = || Outbox::new(0, Arc::default());
    let helo = match greeted {
        Ok(helo) => helo,
        Err(end) => return shared.turns.of(farewell(socket, end, &nothing(), FAREWELL)).await,
    };
    slot.known();
    let entered = tokio::select! {
        () = shared.stopped() => Err(NotIn::Stopping),
        entered = Open::enter(shared, helo) => entered,
    };
    let mut open = match entered {
        Ok(open) => open,
        Err(NotIn::Stopping) => return farewell(socket, End::Stopping, &nothing(), FAREWELL).await,
        Err(NotIn::Full(most)) => return shared.turns.of(farewell(socket, full(most), &nothing(), FAREWELL)).await,
    };
    socket.set_message_bytes_max(readable_bytes_max(open.frame_bytes_max()));
    let end = open.run(&mut socket).await;
    debug!(session = open.id.0, user = %open.user.short(), ?end, "session over");
    let outbox = open.outbox.clone();
    let end = match end {
        End::LetGo => {
            // What the contract has said already is the user's.
            let _ = timeout(FAREWELL, poll_fn(|cx| socket.poll_drain(cx, &outbox))).await;
            full(shared.lock().users_max)
        }
        end => end,
    };
    tokio::join!(farewell(socket, end, &outbox, FAREWELL_SENDING), open.leave());
}

/// From the first byte to the helo, or to why there is none. `None` where there is not even a websocket.
async fn greet<S>(stream: S, shared: &Shared, deadline: Instant) -> Option<(Socket<S>, Result<Helo, End>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let upgrade = timeout_at(deadline, accept_async_with_config(stream, Some(config(HELO_BYTES_MAX))));
    let nothing = |why: &dyn Display| {
        debug!(%why, "no websocket");
        None
    };
    let stream = tokio::select! {
        () = shared.stopped() => return None,
        upgraded = upgrade => match upgraded {
            // The library refuses bytes that arrive before its answer, so none are lost in taking it apart.
            Ok(Ok(websocket)) => websocket.into_inner(),
            Ok(Err(error)) => return nothing(&error),
            Err(late) => return nothing(&late),
        },
    };
    let mut socket = Socket::new(stream, HELO_BYTES_MAX, shared.unfinished.clone(), UNFINISHED_BYTES_MAX);
    let greeted = tokio::select! {
        () = shared.stopped() => Err(End::Stopping),
        greeted = timeout_at(deadline, Challenged::draw(&mut socket)) => greeted.unwrap_or_else(|_| Err(late())),
    };
    Some((socket, greeted))
}

fn full(users_max: usize) -> End {
    End::Refused { code: ErrorCode::Full, close: CloseCode::Again, message: full_message(users_max) }
}

fn late() -> End {
    End::Refused { code: ErrorCode::Timeout, close: CloseCode::Policy, message: "no helo in time".into() }
}

/// A session that was given a challenge and has not answered.
struct Challenged {
    challenge: Challenge,
}

impl Challenged {
    /// Sends a fresh challenge and waits for the helo that answers it.
    async fn draw<S>(socket: &mut Socket<S>) -> Result<Helo, End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut challenge = Challenge([0; 16]);
        if let Err(error) = getrandom::fill(&mut challenge.0) {
            warn!(%error, "no random bytes for a challenge");
            let message = "the node cannot draw a challenge".into();
            return Err(End::Refused { code: ErrorCode::Busy, close: CloseCode::Again, message });
        }
        Challenged { challenge }.answered(socket).await
    }

    async fn answered<S>(self, socket: &mut Socket<S>) -> Result<Helo, End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        socket.send(Message::text(challenge_message(&self.challenge))).await.map_err(ended)?;
        let frame = loop {
            match socket.recv().await.map_err(ended)? {
                Message::Text(text) => break Bytes::from(text),
                Message::Binary(bytes) => break bytes,
                Message::Close(_) => return Err(End::Gone),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        };
        parse_helo(&frame, &self.challenge).map_err(|error| End::Refused {
            code: error.code(),
            close: CloseCode::Policy,
            message: error.to_string(),
        })
    }
}

/// The wait of one event for room in the node's event queue.
type Room = Pin<Box<dyn Future<Output = Result<OwnedPermit<GatewayEvent>, SendError<()>>> + Send>>;

/// A session whose user is known.
struct Open<'a> {
    shared: &'a Shared,
    id: SessionId,
    user: UserKey,
    proof: HeloProof,
    mode: Mode,
    /// Number of the next input.
    counter: u64,
    outbox: Arc<Outbox>,
    /// An event, mostly an input that was read, that waits for the node. While it does nothing more is read: the user feels a busy
    /// node as a connection that takes no more bytes.
    waiting: Option<(GatewayEvent, Room)>,
    /// A refusal was written and not all of it left. Until it has, nothing more is read, so that nobody can make
    /// the node pile up refusals.
    refusing: bool,
    /// The other side takes no more bytes. What it sent before is still read: who sends inputs and hangs up without
    /// reading the outputs has sent them all the same.
    deaf: bool,
}

impl<'a> Open<'a> {
    /// Registers the session; the first of a user is an event.
    async fn enter(shared: &'a Shared, helo: Helo) -> Result<Open<'a>, NotIn> {
        let outbox = Arc::new(Outbox::new(shared.config.queue_bytes_max, shared.outboxes.clone()));
        let id = shared.enter(helo.user, helo.mode, outbox.clone()).await?;
        debug!(session = id.0, user = %helo.user.short(), mode = ?helo.mode, "session open");
        let mut open = Open {
            shared,
            id,
            user: helo.user,
            proof: helo.proof,
            mode: helo.mode,
            counter: 0,
            outbox,
            waiting: None,
            refusing: false,
            deaf: false,
        };
        if open.mode == Mode::Signed {
            // Nothing is read before the node has taken it, so that its welcome comes first.
            let opened = GatewayEvent::Opened { user: open.user, session: id };
            open.waiting = Some((opened, Box::pin(shared.events.clone().reserve_owned())));
        }
        Ok(open)
    }

    /// The longest frame that is taken.
    fn frame_bytes_max(&self) -> usize {
        let payload = self.shared.config.message_bytes_max;
        match self.mode {
            Mode::Raw => payload,
            Mode::Signed => frame_bytes_max(payload),
        }
    }

    /// Moves frames both ways until the session ends.
    async fn run<S>(&mut self, socket: &mut Socket<S>) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let shared = self.shared;
        let every = shared.config.ping_every.max(Duration::from_millis(1));
        let mut ping = interval_at(Instant::now() + every, every);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pulse = Pulse { moved: socket.moved(), missed: 0 };
        let mut handled = 0;
        let mut stopped = pin!(shared.stopped());
        loop {
            let done = tokio::select! {
                biased;
                () = &mut stopped => Err(End::Stopping),
                message = poll_fn(|cx| self.poll(socket, cx)) => match message {
                    Ok(message) => {
                        handled = (handled + 1) % FRAMES_PER_TURN;
                        if handled == 0 {
                            tokio::task::yield_now().await;
                        }
                        self.on_message(socket, message)
                    }
                    Err(end) => Err(end),
                },
                _ = ping.tick() => pulse.tick(socket, self.waiting.is_some()),
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// Writes what waits, hands over the input that waits, then reads the next message if the session may send
    /// one now.
    fn poll<S>(&mut self, socket: &mut Socket<S>, cx: &mut Context<'_>) -> Poll<Result<Message, End>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.outbox.wake_at_push(cx.waker());
        if self.outbox.overflowed() {
            warn!(session = self.id.0, user = %self.user.short(), "user does not read its outputs, dropped");
            let message = "more waits for you than this node keeps; connect again".into();
            return Poll::Ready(Err(End::Refused { code: ErrorCode::Slow, close: CloseCode::Policy, message }));
        }
        if self.outbox.is_let_go() {
            return Poll::Ready(Err(End::LetGo));
        }
        if !self.deaf {
            match socket.poll_drain(cx, &self.outbox) {
                Poll::Ready(Ok(())) => self.refusing = false,
                Poll::Ready(Err(_)) => {
                    self.deaf = true;
                    self.refusing = false;
                    self.outbox.close();
                }
                Poll::Pending => {}
            }
        }
        if let Some((_, room)) = &mut self.waiting {
            let room = ready!(room.as_mut().poll(cx));
            self.hand_over(room)?;
        }
        if self.refusing { Poll::Pending } else { socket.poll_read(cx).map_err(ended) }
    }

    fn on_message<S>(&mut self, socket: &mut Socket<S>, message: Message) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match message {
            Message::Text(text) => self.on_frame(socket, text.as_bytes()),
            Message::Binary(bytes) => self.on_frame(socket, &bytes),
            Message::Close(_) => Err(End::Gone),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
        }
    }

    fn on_frame<S>(&mut self, socket: &mut Socket<S>, frame: &[u8]) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let max = self.frame_bytes_max();
        if frame.len() > max {
            let message = format!("a message has at most {max} bytes, this one has {}", frame.len());
            return self.refuse(socket, ErrorCode::TooLarge, &message);
        }
        match self.mode {
            Mode::Raw => self.on_input(socket, frame),
            Mode::Signed => self.on_request(socket, frame),
        }
    }

    fn on_request<S>(&mut self, socket: &mut Socket<S>, frame: &[u8]) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let allowed = self.shared.rate_allows(&self.user);
        match parse_request(frame, self.shared.config.message_bytes_max) {
            Ok(request) if allowed => {
                self.send_event(GatewayEvent::Request { user: self.user, session: self.id, request })
            }
            Ok(Request::Input(input)) => self.reject(socket, input.nonce, Reason::Rate, self.rate_message()),
            Ok(Request::Query(_)) => self.refuse(socket, ErrorCode::Rate, &self.rate_message()),
            Ok(Request::Read(read)) => self.refuse_read(socket, read.id, ReadReason::Rate, self.rate_message()),
            Err(error @ RequestError::TooLarge { nonce, .. }) => {
                self.reject(socket, nonce, Reason::TooLarge, error.to_string())
            }
            Err(error @ RequestError::ReadTooLarge { id, .. }) => {
                self.refuse_read(socket, id, ReadReason::TooLarge, error.to_string())
            }
            Err(RequestError::Format(_)) if !allowed => self.refuse(socket, ErrorCode::Rate, &self.rate_message()),
            Err(error) => self.refuse(socket, ErrorCode::BadFormat, &error.to_string()),
        }
    }

    fn rate_message(&self) -> String {
        let cpm = self.shared.config.messages_per_minute.unwrap_or_default();
        format!("at most {cpm} messages a minute are taken")
    }

    fn on_input<S>(&mut self, socket: &mut Socket<S>, payload: &[u8]) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if !self.shared.rate_allows(&self.user) {
            return self.refuse(socket, ErrorCode::Rate, &self.rate_message());
        }
        let input = GatewayEvent::Input {
            user: self.user,
            session: self.id,
            proof: self.proof,
            counter: self.counter,
            // A copy, so that a short input does not keep the whole read buffer alive.
            payload: Bytes::copy_from_slice(payload),
        };
        self.counter += 1;
        self.send_event(input)
    }

    fn send_event(&mut self, event: GatewayEvent) -> Result<(), End> {
        match self.shared.events.try_send(event) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(event)) => {
                self.waiting = Some((event, Box::pin(self.shared.events.clone().reserve_owned())));
                Ok(())
            }
            Err(TrySendError::Closed(_)) => Err(End::Stopping),
        }
    }

    fn refuse<S>(&mut self, socket: &mut Socket<S>, code: ErrorCode, message: &str) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.tell(socket, error_frame(code, message))
    }

    fn reject<S>(&mut self, socket: &mut Socket<S>, nonce: u64, reason: Reason, message: String) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let status = StatusFrame { nonce, id: None, fate: Fate::Rejected { reason, message } };
        self.tell(socket, Reply::Status(status).to_json())
    }

    fn refuse_read<S>(
        &mut self,
        socket: &mut Socket<S>,
        id: u64,
        reason: ReadReason,
        message: String,
    ) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.tell(socket, Reply::ReadResult(ReadResult { id, fate: ReadFate::Refused { reason, message } }).to_json())
    }

    fn tell<S>(&mut self, socket: &mut Socket<S>, frame: String) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if self.deaf {
            return Ok(());
        }
        self.refusing = true;
        socket.write(Message::text(frame)).map_err(ended)
    }

    fn hand_over(&mut self, room: Result<OwnedPermit<GatewayEvent>, SendError<()>>) -> Result<(), End> {
        // The wait is over, also where the node is gone.
        let (input, _) = self.waiting.take().expect("there is room for what waits");
        let Ok(room) = room else { return Err(End::Stopping) };
        room.send(input);
        Ok(())
    }

    /// Hands over the input that still waits, then unregisters the session; the last of a user is an event.
    async fn leave(mut self) {
        self.outbox.close();
        if let Some((_, room)) = &mut self.waiting {
            let room = room.await;
            // Nobody is left to tell when the node is gone.
            let _ = self.hand_over(room);
        }
        self.shared.leave(self.user, self.id).await;
    }
}

/// Signs of life.
struct Pulse {
    moved: (u64, u64),
    missed: u32,
}

impl Pulse {
    /// Sends a ping, unless the other side is gone. Bytes that arrive are a sign of life; so are bytes it takes
    /// while more wait for it. While this node does not read, silence proves nothing.
    fn tick<S>(&mut self, socket: &mut Socket<S>, not_reading: bool) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let moved = socket.moved();
        let alive = moved.0 > self.moved.0 || (!socket.is_flushed() && moved.1 > self.moved.1) || not_reading;
        self.moved = moved;
        match (alive, self.missed) {
            (true, _) => self.missed = 1,
            (false, PINGS_MISSED_MAX..) => return Err(End::Gone),
            (false, missed) => self.missed = missed + 1,
        }
        // Behind frames that already wait for the other side a ping would only add to the pile.
        if socket.is_flushed() { socket.write(Message::Ping(Bytes::new())).map_err(ended) } else { Ok(()) }
    }
}

/// What an error on the socket means for the connection.
fn ended(error: Error) -> End {
    let (code, close) = match &error {
        Error::Capacity(_) => (ErrorCode::TooLarge, CloseCode::Size),
        Error::Utf8(_) => (ErrorCode::BadFormat, CloseCode::Invalid),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => return End::Gone,
        Error::Protocol(_) => (ErrorCode::BadFormat, CloseCode::Protocol),
        Error::Io(error) if error.kind() == io::ErrorKind::QuotaExceeded => (ErrorCode::Busy, CloseCode::Again),
        _ => return End::Gone,
    };
    End::Refused { code, close, message: error.to_string() }
}

/// Sends the last frames of a connection and ends it. Who is refused may go on sending for so long.
async fn farewell<S>(mut socket: Socket<S>, end: End, outbox: &Outbox, sending: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (time, sending, close) = match end {
        // The answer to a close frame.
        End::Gone => {
            let _ = timeout(FAREWELL, poll_fn(|cx| socket.poll_flush(cx))).await;
            return;
        }
        End::LetGo => unreachable!("told as a refusal"),
        End::Refused { code, close, message } => {
            debug!(code = code.as_str(), message, "connection refused");
            let _ = socket.write(Message::text(error_frame(code, &message)));
            (FAREWELL, sending, CloseFrame { code: close, reason: code.as_str().into() })
        }
        End::Stopping => {
            // Outputs that were already on their way are not lost by an orderly stop.
            let _ = timeout(FAREWELL_STOPPING, poll_fn(|cx| socket.poll_drain(cx, outbox))).await;
            let close = CloseFrame { code: CloseCode::Away, reason: "the node stops".into() };
            (FAREWELL_STOPPING, FAREWELL_STOPPING, close)
        }
    };
    let said = timeout(time, socket.send(Message::Close(Some(close)))).await;
    if matches!(said, Ok(Ok(()))) {
        socket.linger(time, sending).await;
    }
}
