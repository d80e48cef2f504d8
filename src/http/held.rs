//! Room in memory for what is read and sent: bodies wait for it, and an answer holds it until it has left.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of all request bodies and long answers together. Past it, they wait for others to be done with.
pub(super) const BYTES_MAX: usize = 64 << 20;

/// Shorter answers are not counted; connections bound them.
const COUNTED_BYTES_MIN: usize = 64 << 10;

/// The room.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    /// All of it.
    pub(super) fn new() -> Room {
        Room(Arc::new(Semaphore::new(BYTES_MAX)))
    }

    /// Waits for so much of it; for all, where that is less.
    pub(super) async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let bytes = u32::try_from(bytes.min(BYTES_MAX)).expect("as many as there are fit");
        self.0.clone().acquire_many_owned(bytes).await.expect("it is never closed")
    }

    /// An answer that holds its room until it has left.
    pub(super) async fn body(&self, bytes: Bytes) -> Body {
        if bytes.len() < COUNTED_BYTES_MIN {
            return Body::from(bytes);
        }
        let permit = self.take(bytes.len()).await;
        Body::new(Held { body: Full::new(bytes), _permit: permit })
    }
}

struct Held {
    body: Full<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
