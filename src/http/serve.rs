//! Connections of the HTTP side: so many at a time, each with limits on what it may send and how long it may take.

use std::{
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, error, warn};

use super::{HttpConfig, STOP_TIME, Source, api, stall::Stalling};
use crate::connections::{Connections, Full};

/// Bytes of a request's head. A longer one is refused with 431.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Headers of a request. More are refused with 431.
const HEADERS_MAX: usize = 64;

/// How long a head may take, and how long a connection may be idle. Shorter in tests, which wait for it.
const HEAD_TIME: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 10_000 });

/// How long the TLS handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 5_000 });

/// How long a client may take no byte of an answer. Shorter in tests, which wait for it.
const STALL_TIME: Duration = Duration::from_millis(if cfg!(test) { 3_000 } else { 30_000 });

/// Pause after the operating system refused to accept, usually for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Shortest time between two log lines about connections refused for want of room.
const FULL_LOG_PAUSE: Duration = Duration::from_secs(60);

/// Serves until it is told to stop.
pub(super) async fn serve(
    listener: TcpListener,
    config: HttpConfig,
    source: Arc<dyn Source>,
    mut stopping: watch::Receiver<bool>,
) {
    let counted = Arc::new(Mutex::new(Connections::new(config.connections_max, config.per_address_max)));
    let tls = config.tls.clone();
    let service = TowerToHyperService::new(api::router(config, source));
    let stops = stopping.clone();
    let mut connections = JoinSet::new();
    let mut full_logged: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            // An error means that the handle is gone, which is a stop as well.
            _ = stopping.wait_for(|stopping| *stopping) => break,
            Some(ended) = connections.join_next() => if let Err(error) = ended {
                error!(%error, "the task of an HTTP connection broke");
            },
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match Slot::take(&counted, peer.ip()) {
                    Ok(slot) => {
                        // Else an event waits until the client has acknowledged the one before, 40 ms and more.
                        if let Err(error) = stream.set_nodelay(true) {
                            debug!(%peer, %error, "small answers may be late");
                        }
                        let (service, tls, stopping) = (service.clone(), tls.clone(), stops.clone());
                        connections.spawn(async move {
                            match tls {
                                None => connection(stream, service, stopping).await,
                                Some(tls) => match tls.accept(stream, HANDSHAKE_TIME).await {
                                    Ok(stream) => connection(stream, service, stopping).await,
                                    Err(error) => debug!(%peer, %error, "no TLS"),
                                },
                            }
                            drop(slot);
                        });
                    }
                    Err(full) => {
                        if full_logged.is_none_or(|at| at.elapsed() >= FULL_LOG_PAUSE) {
                            full_logged = Some(Instant::now());
                            warn!(%peer, %full, "HTTP client refused");
                        }
                        drop(stream);
                    }
                },
                Err(error) => {
                    warn!(%error, "cannot accept an HTTP connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    // Those that have not ended by then are cut.
    let _ = timeout(STOP_TIME / 2, all_ended).await;
}

type Service = TowerToHyperService<axum::Router>;

async fn connection<S>(stream: S, service: Service, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    let stream = TokioIo::new(Stalling::new(stream, STALL_TIME));
    let mut connection = pin!(builder.serve_connection(stream, service));
    // How a connection ends is its other side's business.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopping.wait_for(|stopping| *stopping) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// One counted connection; uncounted when dropped.
struct Slot {
    counted: Arc<Mutex<Connections>>,
    address: IpAddr,
}

impl Slot {
    fn take(counted: &Arc<Mutex<Connections>>, address: IpAddr) -> Result<Slot, Full> {
        lock(counted).open(address)?;
        Ok(Slot { counted: counted.clone(), address })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.counted).close(self.address);
    }
}

fn lock(counted: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    counted.lock().unwrap_or_else(PoisonError::into_inner)
}
