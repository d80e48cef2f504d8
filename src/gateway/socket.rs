//! A websocket driven by polling, so that one task reads and writes it at once without a lock, limits its frames
//! by what the session is allowed now, and knows what the other side really moved.

use std::{
    io::{self, Read, Write},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::timeout,
};
use tokio_tungstenite::tungstenite::{
    Error, Message,
    protocol::{Role, WebSocketConfig, WebSocketContext},
};

use super::outbox::Outbox;

/// Bytes read at once and kept for every session: there may be tens of thousands, most of them quiet.
const READ_BYTES: usize = 4096;

/// Room for pongs and close frames beside the data frames being written. Past it pongs are merged into one.
const CONTROL_BYTES_MAX: usize = 4096;

/// Bytes that all sessions together may hold of messages they have not finished. Past it a session that holds more
/// than [`SESSION_UNFINISHED_BYTES`] is told `busy` and closed.
pub const UNFINISHED_BYTES_MAX: usize = 256 << 20;

/// Bytes of an unfinished message that every session may hold, however much the others hold.
pub const SESSION_UNFINISHED_BYTES: usize = 64 << 10;

/// Bytes written before a flush, when many small frames wait.
const BATCH_BYTES: usize = 64 << 10;

/// Payload of a frame that is still copied into the write buffer. A longer one is written from where it is: copies
/// of long outputs, and moving what is left of them after each write, would hold up everybody on this thread.
const COPIED_BYTES_MAX: usize = 64 << 10;

/// Bytes of a long frame given to the operating system at once.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// Reads before others on this thread get their turn: the library goes on by itself while frames complete no message.
const READS_PER_POLL: usize = 16;

/// Bytes of heap with which the rest of a connection is read.
const LINGER_READ_BYTES: usize = 16 << 10;

/// Bytes thrown away after a close, so that the reason arrives before the connection is reset. More are cut off.
const LINGER_BYTES_MAX: u64 = 32 << 20;

/// The sum of what all sessions hold of unfinished messages.
#[derive(Debug, Default)]
pub struct Unfinished(AtomicUsize);

/// One websocket, server side.
pub struct Socket<S> {
    stream: S,
    ws: WebSocketContext,
    /// A long frame on its way, past the library's buffer.
    long: Option<LongFrame>,
    meter: Meter,
    /// Bytes given to `write` since everything was flushed.
    unflushed: usize,
}

/// An unmasked frame whose payload is longer than [`COPIED_BYTES_MAX`].
struct LongFrame {
    head: [u8; LongFrame::HEAD_BYTES],
    payload: Bytes,
    /// Bytes of head and payload that were written.
    at: usize,
}

/// What moved on the wire.
struct Meter {
    read: u64,
    written: u64,
    /// Bytes read since the last whole data message.
    held: usize,
    unfinished: Arc<Unfinished>,
    unfinished_max: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A websocket over a stream on which the HTTP upgrade is done. Messages over `message_bytes_max` end it.
    pub fn new(stream: S, message_bytes_max: usize, unfinished: Arc<Unfinished>, unfinished_max: usize) -> Socket<S> {
        let ws = WebSocketContext::new(Role::Server, Some(config(message_bytes_max)));
        let meter = Meter { read: 0, written: 0, held: 0, unfinished, unfinished_max };
        Socket { stream, ws, long: None, meter, unflushed: 0 }
    }

    /// Changes the longest message that is still read.
    pub fn set_message_bytes_max(&mut self, max: usize) {
        self.ws.set_config(|config| {
            config.max_message_size = Some(max);
            config.max_frame_size = Some(max);
        });
    }

    /// Bytes read and written so far.
    pub fn moved(&self) -> (u64, u64) {
        (self.meter.read, self.meter.written)
    }

    /// Whether nothing written waits for the other side to read.
    pub fn is_flushed(&self) -> bool {
        self.unflushed == 0
    }

    /// Takes one frame; nothing moves before `poll_flush`. The caller bounds how much is unflushed.
    pub fn write(&mut self, message: Message) -> Result<(), Error> {
        // A frame header has at most 14 bytes.
        let bytes = message.len() + 14;
        let message = match message {
            Message::Text(text) if self.takes_long(text.len()) => {
                self.long = Some(LongFrame::new(0x81, text.into()));
                self.unflushed = bytes;
                return Ok(());
            }
            Message::Binary(payload) if self.takes_long(payload.len()) => {
                self.long = Some(LongFrame::new(0x82, payload));
                self.unflushed = bytes;
                return Ok(());
            }
            Message::Close(frame) => {
                // Nothing may follow a close, and what the library holds is written before a frame not begun.
                self.long.take_if(|long| long.at == 0);
                Message::Close(frame)
            }
            message => message,
        };
        self.unflushed += bytes;
        let room = self.unflushed + CONTROL_BYTES_MAX;
        self.ws.set_config(|config| config.max_write_buffer_size = room);
        still_waiting(self.ws.write(&mut Nowhere, message)).map(|_| ())
    }

    /// Whether a payload of this size goes past the library's buffer now.
    fn takes_long(&self, bytes: usize) -> bool {
        bytes > COPIED_BYTES_MAX && self.unflushed == 0
    }

    /// Ready when everything written is with the operating system.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // A long frame begins between two frames of the library, and ends before its next one.
        if self.long.as_ref().is_none_or(|long| long.at == 0) {
            ready!(self.poll_flush_library(cx))?;
        }
        if let Some(long) = &mut self.long {
            ready!(long.poll_write(&mut self.stream, &mut self.meter, cx))?;
            self.long = None;
            ready!(self.poll_flush_library(cx))?;
        }
        self.unflushed = 0;
        self.ws.set_config(|config| config.max_write_buffer_size = CONTROL_BYTES_MAX);
        Poll::Ready(Ok(()))
    }

    fn poll_flush_library(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let (mut io, ws) = self.io(cx);
        match still_waiting(ws.flush(&mut io)) {
            Ok(None) => Poll::Pending,
            Ok(Some(())) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn io<'a, 'b>(&'a mut self, cx: &'a mut Context<'b>) -> (Io<'a, 'b, S>, &'a mut WebSocketContext) {
        let writable = self.long.as_ref().is_none_or(|long| long.at == 0);
        (Io { stream: &mut self.stream, meter: &mut self.meter, cx, writable, reads: READS_PER_POLL }, &mut self.ws)
    }

    /// Moves frames from `outbox` to the wire. Ready when all are there.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, outbox: &Outbox) -> Poll<Result<(), Error>> {
        loop {
            while self.unflushed < BATCH_BYTES {
                match outbox.pop_if(|message| self.unflushed == 0 || message.len() <= COPIED_BYTES_MAX) {
                    Some(message) => self.write(message)?,
                    None => break,
                }
            }
            if self.unflushed == 0 {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_flush(cx))?;
            outbox.flushed();
        }
    }

    /// The next message. Pings are answered along the way.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Error>> {
        let (mut io, ws) = self.io(cx);
        match still_waiting(ws.read(&mut io)) {
            Ok(None) => Poll::Pending,
            Ok(Some(message)) => {
                if message.is_text() || message.is_binary() {
                    self.meter.release();
                }
                Poll::Ready(Ok(message))
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Writes one frame and flushes.
    pub async fn send(&mut self, message: Message) -> Result<(), Error> {
        self.write(message)?;
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Waits for the next message.
    pub async fn recv(&mut self) -> Result<Message, Error> {
        std::future::poll_fn(|cx| self.poll_read(cx)).await
    }

    /// Ends the stream so that what was flushed arrives: a connection dropped with unread bytes is reset, and a
    /// reset overtakes what the other side has not read yet. It may be silent for a `pause`, and take so long at `most`.
    pub async fn linger(mut self, pause: Duration, most: Duration) {
        let drained = async {
            self.stream.shutdown().await?;
            let mut rest = self.stream.take(LINGER_BYTES_MAX);
            let mut read = vec![0; LINGER_READ_BYTES];
            while timeout(pause, rest.read(&mut read)).await?? > 0 {}
            io::Result::Ok(())
        };
        // However it ends, the connection is over.
        let _ = timeout(most, drained).await;
    }
}

/// Small buffers, and limits that hold while a message is being read.
pub fn config(message_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(CONTROL_BYTES_MAX)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max))
}

/// `None` where the stream has to be waited for.
fn still_waiting<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

impl LongFrame {
    /// First byte, the mark of a 64-bit length, the length.
    const HEAD_BYTES: usize = 10;

    /// A whole message; `first` is the first byte of its header (RFC 6455, 5.2).
    fn new(first: u8, payload: Bytes) -> LongFrame {
        assert!(payload.len() > usize::from(u16::MAX), "shorter lengths are written shorter");
        let mut head = [first, 127, 0, 0, 0, 0, 0, 0, 0, 0];
        head[2..].copy_from_slice(&(payload.len() as u64).to_be_bytes());
        LongFrame { head, payload, at: 0 }
    }

    fn poll_write<S>(&mut self, stream: &mut S, meter: &mut Meter, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while self.at < Self::HEAD_BYTES + self.payload.len() {
            let rest = match self.at.checked_sub(Self::HEAD_BYTES) {
                None => &self.head[self.at..],
                Some(at) => &self.payload[at..self.payload.len().min(at + WRITE_BYTES_MAX)],
            };
            let written = ready!(Pin::new(&mut *stream).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.at += written;
            meter.written += written as u64;
        }
        Poll::Ready(Ok(()))
    }
}

impl Meter {
    fn hold(&mut self, bytes: usize) -> io::Result<()> {
        self.read += bytes as u64;
        self.held += bytes;
        let total = self.unfinished.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if total > self.unfinished_max && self.held > SESSION_UNFINISHED_BYTES {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many unfinished messages on this node"));
        }
        Ok(())
    }

    fn release(&mut self) {
        self.unfinished.0.fetch_sub(self.held, Ordering::Relaxed);
        self.held = 0;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.release();
    }
}

/// The stream as the websocket library wants it: reads and writes that say "would block" and wake the task later.
struct Io<'a, 'b, S> {
    stream: &'a mut S,
    meter: &'a mut Meter,
    cx: &'a mut Context<'b>,
    /// Not while a long frame is half written: the library's frames must not end up inside it.
    writable: bool,
    /// Reads left in this turn.
    reads: usize,
}

impl<S: AsyncRead + Unpin> Read for Io<'_, '_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.reads.checked_sub(1) {
            Some(left) => self.reads = left,
            None => {
                self.cx.waker().wake_by_ref();
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        let mut buf = ReadBuf::new(buf);
        or_would_block(Pin::new(&mut *self.stream).poll_read(self.cx, &mut buf))?;
        self.meter.hold(buf.filled().len())?;
        Ok(buf.filled().len())
    }
}

impl<S: AsyncWrite + Unpin> Write for Io<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.writable {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = or_would_block(Pin::new(&mut *self.stream).poll_write(self.cx, bytes))?;
        self.meter.written += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        or_would_block(Pin::new(&mut *self.stream).poll_flush(self.cx))
    }
}

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// A stream that never takes anything: what is written to it stays in the library's buffer.
struct Nowhere;

impl Read for Nowhere {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Write for Nowhere {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn socket(unfinished: &Arc<Unfinished>, unfinished_max: usize) -> (Socket<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(1 << 20);
        (Socket::new(ours, 1 << 20, unfinished.clone(), unfinished_max), theirs)
    }

    /// The head of a masked binary frame with a payload of this many bytes.
    fn head(bytes: u16) -> Vec<u8> {
        [&[0x82, 0xfe][..], &bytes.to_be_bytes(), &[0; 4]].concat()
    }

    #[tokio::test]
    async fn unfinished_messages_are_bounded_over_all_sessions_and_finished_ones_count_no_more() {
        let unfinished = Arc::new(Unfinished::default());
        let held = || unfinished.0.load(Ordering::Relaxed);
        let limit = SESSION_UNFINISHED_BYTES + 10_000;
        let (mut first, mut to_first) = socket(&unfinished, limit);
        let (mut second, mut to_second) = socket(&unfinished, limit);

        to_first.write_all(&[&head(60_000)[..], &[7; 60_000]].concat()).await.unwrap();
        assert_eq!(first.recv().await.unwrap().len(), 60_000);
        assert_eq!(held(), 0);

        // One byte is missing in each.
        to_first.write_all(&[&head(60_000)[..], &[7; 59_999]].concat()).await.unwrap();
        to_second.write_all(&[&head(60_000)[..], &[7; 59_999]].concat()).await.unwrap();
        while held() < 2 * 60_007 {
            let read = poll_fn(|cx| Poll::Ready((first.poll_read(cx), second.poll_read(cx)))).await;
            assert!(matches!(read, (Poll::Pending, Poll::Pending)), "up to its share everybody is served");
            tokio::task::yield_now().await;
        }
        drop(first);
        assert_eq!(held(), 60_007);
        to_second.write_all(&[7]).await.unwrap();
        assert_eq!(second.recv().await.unwrap().len(), 60_000);

        // Past its share and past the sum, a session is cut.
        let (mut third, mut to_third) = socket(&unfinished, limit);
        to_third.write_all(&[&head(60_000)[..], &[7; 59_999]].concat()).await.unwrap();
        while held() < 60_007 {
            let _ = poll_fn(|cx| Poll::Ready(third.poll_read(cx))).await;
            tokio::task::yield_now().await;
        }
        second.set_message_bytes_max(1 << 20);
        let long = [&[0x82, 0xff][..], &100_000u64.to_be_bytes(), &[0; 4], &[7; 99_999]].concat();
        to_second.write_all(&long).await.unwrap();
        match second.recv().await {
            Err(Error::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded),
            other => panic!("expected to be cut, got {other:?}"),
        }
        drop((second, third));
        assert_eq!(held(), 0);
    }

    #[tokio::test]
    async fn pings_of_one_that_does_not_read_pile_up_to_a_bound() {
        let (ours, mut theirs) = duplex(256);
        let mut socket = Socket::new(ours, 1 << 20, Arc::default(), UNFINISHED_BYTES_MAX);
        socket.send(Message::text("x")).await.unwrap();
        theirs.read_exact(&mut [0; 3]).await.unwrap();
        let ping = [&[0x89, 0xfd][..], &[0; 4], &[b'p'; 125]].concat();
        for _ in 0..1_000 {
            theirs.write_all(&ping).await.unwrap();
            socket.recv().await.unwrap();
        }
        // A data frame still goes after all that, whole.
        socket.write(Message::binary(vec![1; 10])).unwrap();
        let mut received = vec![0; 1 << 20];
        let mut len = 0;
        let done = async {
            poll_fn(|cx| socket.poll_flush(cx)).await.unwrap();
            socket.linger(Duration::ZERO, Duration::ZERO).await;
        };
        tokio::join!(done, async {
            while let Ok(bytes @ 1..) = theirs.read(&mut received[len..]).await {
                len += bytes;
            }
        });
        assert!(len <= 256 + CONTROL_BYTES_MAX + 2 * 127 + 12, "{len} bytes");
        assert!(received[..len].windows(12).any(|frame| frame == [&[0x82, 10][..], &[1; 10]].concat()));
    }

    #[tokio::test]
    async fn a_long_frame_is_never_broken_by_the_frames_around_it() {
        let (ours, mut theirs) = duplex(1_000);
        let mut socket = Socket::new(ours, 1 << 20, Arc::default(), UNFINISHED_BYTES_MAX);
        let outbox = Outbox::new(1 << 20, Arc::default());
        let long = Bytes::from(vec![0xfe; COPIED_BYTES_MAX + 1]);
        for message in [Message::text("before"), Message::Binary(long.clone()), Message::text("after")] {
            outbox.push(message);
        }
        for _ in 0..5 {
            theirs.write_all(&[0x89, 0x80, 0, 0, 0, 0]).await.unwrap();
        }
        // Part of the long frame is under way, there is room for more, and pings and a refusal want to be written.
        poll_fn(|cx| Poll::Ready(socket.poll_drain(cx, &outbox).is_pending())).await;
        assert!(socket.long.as_ref().unwrap().at > 100);
        let mut received = vec![0; 500];
        theirs.read_exact(&mut received).await.unwrap();
        assert_eq!(socket.recv().await.unwrap(), Message::Ping(Bytes::new()));
        poll_fn(|cx| {
            while socket.poll_read(cx).is_ready() {}
            Poll::Ready(())
        })
        .await;
        socket.write(Message::text("refused")).unwrap();
        let sending = async {
            poll_fn(|cx| socket.poll_drain(cx, &outbox)).await.unwrap();
            socket.send(Message::Close(None)).await.unwrap();
            socket.linger(Duration::ZERO, Duration::ZERO).await;
        };
        tokio::join!(sending, async { theirs.read_to_end(&mut received).await.unwrap() });

        let mut frames = Vec::new();
        let mut stream = &received[..];
        loop {
            let first = stream.read_u8().await.unwrap();
            let len = match stream.read_u8().await.unwrap() {
                126 => stream.read_u16().await.unwrap().into(),
                127 => stream.read_u64().await.unwrap(),
                len => len.into(),
            };
            let (payload, rest) = stream.split_at(usize::try_from(len).unwrap());
            stream = rest;
            match first {
                0x8a => assert!(payload.is_empty()),
                0x88 => break,
                _ => frames.push((first, payload.to_vec())),
            }
        }
        assert!(stream.is_empty());
        let expected =
            [(0x81, b"before".to_vec()), (0x82, long.to_vec()), (0x81, b"refused".to_vec()), (0x81, b"after".to_vec())];
        assert!(frames == expected, "{:?}", frames.iter().map(|(first, body)| (first, body.len())).collect::<Vec<_>>());
    }
}
