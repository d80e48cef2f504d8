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

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
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

/// Bytes thrown away after a close, so that the reason arrives before the connection is reset. More are cut off.
const LINGER_BYTES_MAX: u64 = 32 << 20;

/// The sum of what all sessions hold of unfinished messages.
#[derive(Debug, Default)]
pub struct Unfinished(AtomicUsize);

/// One websocket, server side.
pub struct Socket<S> {
    stream: S,
    ws: WebSocketContext,
    meter: Meter,
    /// Bytes given to `write` since everything was flushed.
    unflushed: usize,
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
        Socket { stream, ws, meter, unflushed: 0 }
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
        self.unflushed += message.len() + 14;
        let room = self.unflushed + CONTROL_BYTES_MAX;
        self.ws.set_config(|config| config.max_write_buffer_size = room);
        still_waiting(self.ws.write(&mut Nowhere, message)).map(|_| ())
    }

    /// Ready when everything written is with the operating system.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match still_waiting(self.ws.flush(&mut Io { stream: &mut self.stream, meter: &mut self.meter, cx })) {
            Ok(None) => Poll::Pending,
            Ok(Some(())) => {
                self.unflushed = 0;
                self.ws.set_config(|config| config.max_write_buffer_size = CONTROL_BYTES_MAX);
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Moves frames from `outbox` to the wire. Ready when all are there.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, outbox: &Outbox) -> Poll<Result<(), Error>> {
        loop {
            while self.unflushed < BATCH_BYTES {
                match outbox.pop() {
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
        match still_waiting(self.ws.read(&mut Io { stream: &mut self.stream, meter: &mut self.meter, cx })) {
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
    /// reset overtakes what the other side has not read yet.
    pub async fn linger(mut self, time: Duration) {
        let drained = async {
            self.stream.shutdown().await?;
            tokio::io::copy(&mut (&mut self.stream).take(LINGER_BYTES_MAX), &mut tokio::io::sink()).await
        };
        // However it ends, the connection is over.
        let _ = tokio::time::timeout(time, drained).await;
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
}

impl<S: AsyncRead + Unpin> Read for Io<'_, '_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        or_would_block(Pin::new(&mut *self.stream).poll_read(self.cx, &mut buf))?;
        self.meter.hold(buf.filled().len())?;
        Ok(buf.filled().len())
    }
}

impl<S: AsyncWrite + Unpin> Write for Io<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
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
