//! Connections of the embedded bus: so many at a time, each with limits on what it may send and how long it may take.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Response,
    body::{Body as _, Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::warn;

use super::{
    api::{self, Reply, Request, Route},
    bus::Bus,
};

/// Connections at a time. Further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 128;

/// Bytes of a request's head. A longer one is refused with 431.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How long a head may take, and how long a connection may be idle. Shorter in tests, which wait for it.
const HEAD_TIME: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 10_000 });

/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(30);

/// How long a connection may last, for one whose other side takes no answers.
const CONNECTION_TIME: Duration = Duration::from_secs(600);

/// Bytes of a body that is too long which are read and thrown away, so that its sender hears why. Past it the connection breaks.
const DRAINED_BYTES_MAX: usize = 8 << 20;

/// Bytes that all long bodies being read may have together. Past it, a long one waits until another one is done with.
const BODIES_BYTES_MAX: usize = 32 << 20;

/// Bytes of a body that waits for no other: those of all connections are two megabytes. An operation has less.
const SHORT_BODY_BYTES_MAX: usize = 16 << 10;

/// Accepts connections until it is dropped, and its connections with it.
pub(super) async fn serve(listener: TcpListener, bus: Arc<Bus>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let bodies = Arc::new(Semaphore::new(BODIES_BYTES_MAX));
    let mut connections = JoinSet::new();
    loop {
        let slot = slots.clone().acquire_owned().await.expect("it is never closed");
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (bus, bodies) = (bus.clone(), bodies.clone());
                connections.spawn(async move {
                    connection(stream, peer, bus, bodies).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Mostly too many open files, which passes.
                warn!(%error, "cannot accept a connection to the bus");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, bus: Arc<Bus>, bodies: Arc<Semaphore>) {
    // Answers are small, and somebody waits for each.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| respond(bus.clone(), peer, request, bodies.clone()));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // How a connection ends is its other side's business.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(CONNECTION_TIME) => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(HEAD_TIME, connection).await;
}

async fn respond(
    bus: Arc<Bus>,
    peer: SocketAddr,
    request: hyper::Request<Incoming>,
    bodies: Arc<Semaphore>,
) -> io::Result<Response<Full<Bytes>>> {
    let route = Route::of(request.method().as_str(), request.uri().path());
    if route != Route::Hooks {
        let mut hanging = bus.hanging.subscribe();
        // The sender lives as long as the bus.
        let _ = hanging.wait_for(|hanging| !hanging).await;
    }
    let (parts, body) = request.into_parts();
    let (bytes_max, too_long) = route.body_bytes_max();
    let announced = body.size_hint().upper().unwrap_or(u64::MAX).min(bytes_max as u64);
    let announced = u32::try_from(announced).expect("bodies are small");
    // Who sends a long one slowly holds up none of those who send what is usual.
    let _room = match announced as usize > SHORT_BODY_BYTES_MAX {
        true => Some(bodies.acquire_many(announced).await.expect("it is never closed")),
        false => None,
    };
    let body = match timeout(BODY_TIME, read_body(body, bytes_max)).await {
        Ok(Read::Whole(body)) => body,
        Ok(Read::TooLong) => return Ok(closing(response(route, 413, error_text(too_long)))),
        Ok(Read::Broken) | Err(_) => return Err(io::Error::other("the request did not come")),
    };
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or(""));
    let is_local = peer.ip().to_canonical().is_loopback();
    match api::answer(&bus, &Request { route, path, query, body: &body, is_local }).await {
        Reply::Json(status, text) => Ok(response(route, status, text)),
        Reply::Nothing => Err(io::Error::other("no reply, as a hook wants")),
    }
}

fn error_text(error: &str) -> String {
    match Reply::error(413, error) {
        Reply::Json(_, text) => text,
        Reply::Nothing => String::new(),
    }
}

fn response(route: Route, status: u16, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = hyper::StatusCode::from_u16(status).expect("the API's are ones");
    let headers = response.headers_mut();
    if status != 204 {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if route.is_for_pages() {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Content-Type"));
    }
    response
}

fn closing(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

enum Read {
    Whole(Vec<u8>),
    TooLong,
    Broken,
}

async fn read_body(mut body: Incoming, bytes_max: usize) -> Read {
    let (mut kept, mut read) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Read::Broken };
        let Some(data) = frame.data_ref() else { continue };
        read += data.len();
        if read <= bytes_max {
            kept.extend_from_slice(data);
        } else if read > DRAINED_BYTES_MAX {
            return Read::Broken;
        }
    }
    if read <= bytes_max { Read::Whole(kept) } else { Read::TooLong }
}
