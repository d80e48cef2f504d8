//! Frames on a stream: `u32` little-endian length of the body, one byte kind, the body.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::queue::Queue;

/// Longest body on the vote stream. A longer one closes the link.
pub const VOTE_FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Longest body on the bulk stream: an input of 4 MiB and what goes round it. A longer one closes the link.
pub const BULK_FRAME_BYTES_MAX: usize = 4 * 1024 * 1024 + 64 * 1024;

/// Longest body of the mesh's own frames (hello, addresses). A longer one closes the link.
pub(super) const CONTROL_BYTES_MAX: usize = 64 * 1024;

/// Frames are gathered up to this many bytes and written at once.
const BATCH_BYTES: usize = 64 * 1024;

/// Bytes read at once.
const READ_BYTES: usize = 32 * 1024;

/// Bodies up to here are copied out of the read buffer, so that a frame that is kept does not keep its neighbours.
const COPY_BYTES_MAX: usize = 16 * 1024;

const HEADER_BYTES: usize = 5;

/// What a frame is. All but `App` belong to the mesh and travel on the vote stream only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The application's.
    App,
    /// `Hello`: each side's first frame.
    Hello,
    /// Your hello suits me.
    Accept,
    /// The lower key's decision that this connection is the link.
    Go,
    /// The lower key's decision that another connection is the link.
    Duplicate,
    /// Your hello does not suit me; the body is the reason as text.
    Refuse,
    /// Eight bytes to be sent back.
    Ping,
    /// The eight bytes.
    Pong,
    /// Addresses of UNL members.
    Known,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::App,
        Kind::Hello,
        Kind::Accept,
        Kind::Go,
        Kind::Duplicate,
        Kind::Refuse,
        Kind::Ping,
        Kind::Pong,
        Kind::Known,
    ];

    fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(byte)).copied()
    }
}

/// Why a stream cannot go on. Shown to the operator as the reason of a link's end.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("the peer closed the link")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    #[error("the peer sent a frame of {len} bytes, {max} are allowed")]
    TooLong { len: usize, max: usize },
    #[error("the peer sent a frame of unknown kind {0}")]
    UnknownKind(u8),
    #[error("the peer took nothing for {0:?}")]
    Stalled(Duration),
}

/// Takes frames off a stream. Memory follows what has arrived, never what a header promises.
pub(super) struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    scratch: Box<[u8]>,
    app_bytes_max: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// `app_bytes_max`: longest body of an `App` frame.
    pub(super) fn new(stream: R, app_bytes_max: usize) -> FrameReader<R> {
        FrameReader { stream, buffer: BytesMut::new(), scratch: vec![0; READ_BYTES].into_boxed_slice(), app_bytes_max }
    }

    /// The next frame. Nothing is lost when the future is dropped before it is done.
    pub(super) async fn next(&mut self) -> Result<(Kind, Bytes), StreamError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            match self.stream.read(&mut self.scratch).await {
                Ok(0) => return Err(StreamError::Closed),
                Ok(len) => self.buffer.extend_from_slice(&self.scratch[..len]),
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Err(StreamError::Closed),
                Err(err) => return Err(StreamError::Broken(err)),
            }
        }
    }

    fn take(&mut self) -> Result<Option<(Kind, Bytes)>, StreamError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [a, b, c, d, kind] = *header;
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let kind = Kind::from_byte(kind).ok_or(StreamError::UnknownKind(kind))?;
        let max = if kind == Kind::App { self.app_bytes_max } else { CONTROL_BYTES_MAX };
        if len > max {
            return Err(StreamError::TooLong { len, max });
        }
        if self.buffer.len() < HEADER_BYTES + len {
            return Ok(None);
        }
        let frame = self.buffer.split_to(HEADER_BYTES + len);
        let body = if len <= COPY_BYTES_MAX {
            Bytes::copy_from_slice(&frame[HEADER_BYTES..])
        } else {
            frame.freeze().slice(HEADER_BYTES..)
        };
        Ok(Some((kind, body)))
    }

    /// Reads and forgets until the other side ends the stream.
    pub(super) async fn drain(&mut self) {
        while let Ok(1..) = self.stream.read(&mut self.scratch).await {}
    }
}

/// Puts frames on a stream. Each step forward must happen within `deadline`.
pub(super) struct FrameWriter<W> {
    stream: W,
    gathered: Vec<u8>,
    deadline: Duration,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(super) fn new(stream: W, deadline: Duration) -> FrameWriter<W> {
        FrameWriter { stream, gathered: Vec::new(), deadline }
    }

    /// Writes one frame and flushes.
    pub(super) async fn write(&mut self, kind: Kind, body: &[u8]) -> Result<(), StreamError> {
        self.gather(kind, body).await?;
        self.flush().await
    }

    /// Writes what comes through `queue`, for ever. Frames that wait together are flushed together.
    pub(super) async fn write_queue(&mut self, queue: &Queue) -> StreamError {
        let mut batch = Vec::new();
        loop {
            queue.pop(&mut batch, BATCH_BYTES).await;
            for (kind, body) in batch.drain(..) {
                if let Err(err) = self.gather(kind, &body).await {
                    return err;
                }
            }
            if let Err(err) = self.flush().await {
                return err;
            }
        }
    }

    /// Ends our half of the stream.
    pub(super) async fn close(&mut self) {
        // The stream is given up either way.
        let _ = timeout(self.deadline, self.stream.close()).await;
    }

    async fn gather(&mut self, kind: Kind, body: &[u8]) -> Result<(), StreamError> {
        let len = u32::try_from(body.len()).expect("bodies are limited where they are queued");
        self.gathered.extend_from_slice(&len.to_le_bytes());
        self.gathered.push(kind as u8);
        if self.gathered.len() + body.len() <= BATCH_BYTES {
            self.gathered.extend_from_slice(body);
            return Ok(());
        }
        // A long body is not copied.
        self.write_gathered().await?;
        write_all(&mut self.stream, body, self.deadline).await
    }

    async fn flush(&mut self) -> Result<(), StreamError> {
        self.write_gathered().await?;
        match timeout(self.deadline, self.stream.flush()).await {
            Ok(flushed) => flushed.map_err(StreamError::Broken),
            Err(_) => Err(StreamError::Stalled(self.deadline)),
        }
    }

    async fn write_gathered(&mut self) -> Result<(), StreamError> {
        let written = write_all(&mut self.stream, &self.gathered, self.deadline).await;
        self.gathered.clear();
        written
    }
}

async fn write_all<W: AsyncWrite + Unpin>(
    stream: &mut W,
    mut bytes: &[u8],
    deadline: Duration,
) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        // The timer is armed only when the stream cannot take the bytes at once.
        match timeout(deadline, stream.write(bytes)).await {
            Ok(Ok(0)) => return Err(StreamError::Closed),
            Ok(Ok(len)) => bytes = &bytes[len..],
            Ok(Err(err)) if err.kind() == io::ErrorKind::WriteZero => return Err(StreamError::Closed),
            Ok(Err(err)) => return Err(StreamError::Broken(err)),
            Err(_) => return Err(StreamError::Stalled(deadline)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    async fn written(frames: &[(Kind, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = FrameWriter::new(Cursor::new(&mut bytes), Duration::from_secs(1));
        for (kind, body) in frames {
            writer.write(*kind, body).await.unwrap();
        }
        bytes
    }

    /// Gives one byte a read.
    struct Trickle(Cursor<Vec<u8>>);

    impl AsyncRead for Trickle {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buf: &mut [u8],
        ) -> std::task::Poll<io::Result<usize>> {
            std::pin::Pin::new(&mut self.0).poll_read(cx, &mut buf[..1])
        }
    }

    #[tokio::test]
    async fn frames_read_back_whole_or_byte_by_byte() {
        let long = vec![7; BATCH_BYTES + 1];
        let frames: [(Kind, &[u8]); 4] =
            [(Kind::App, b""), (Kind::Ping, b"12345678"), (Kind::App, &long), (Kind::App, b"x")];
        let bytes = written(&frames).await;
        assert_eq!(&bytes[..5 + 13], b"\0\0\0\0\0\x08\0\0\0\x0612345678");
        let mut whole = FrameReader::new(Cursor::new(bytes.clone()), 1 << 20);
        let mut trickle = FrameReader::new(Trickle(Cursor::new(bytes)), 1 << 20);
        for (kind, body) in frames {
            assert_eq!(whole.next().await.unwrap(), (kind, Bytes::copy_from_slice(body)));
            assert_eq!(trickle.next().await.unwrap(), (kind, Bytes::copy_from_slice(body)));
        }
        assert!(matches!(whole.next().await, Err(StreamError::Closed)));
    }

    #[tokio::test]
    async fn a_length_over_the_limit_is_refused_by_its_header_alone() {
        let read = |bytes: Vec<u8>| async move { FrameReader::new(Cursor::new(bytes), 100).next().await };
        assert!(matches!(read(vec![101, 0, 0, 0, 0]).await, Err(StreamError::TooLong { len: 101, max: 100 })));
        assert!(matches!(read(vec![255, 255, 255, 255, 1]).await, Err(StreamError::TooLong { .. })));
        assert!(matches!(read(vec![1, 0, 0, 0, 9]).await, Err(StreamError::UnknownKind(9))));
        assert!(matches!(read(vec![100, 0, 0, 0, 0]).await, Err(StreamError::Closed)));
    }

    #[test]
    fn a_kind_is_its_place_in_the_list() {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }
}
