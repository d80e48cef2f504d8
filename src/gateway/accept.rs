//! Connections as they come: counted, refused where there are too many, served by a task each, ended when the gateway stops.

use std::{net::IpAddr, pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinError, JoinSet, yield_now},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, error, warn};

use super::{
    Registry, Shared,
    reply::{ErrorCode, error_frame},
    session,
};
use crate::connections::{Full, holder};

/// Connections over the limit that are told so at the same time. Past it they are dropped without a word.
const REFUSALS_MAX: usize = 64;

/// Time for a refused connection to take its answer.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// Bytes of a refused connection's request that are read. More are cut off.
const REFUSED_BYTES_MAX: u64 = 16 << 10;

/// Connections accepted before others on this thread get their turn: who only connects costs users little, too.
const ACCEPTED_PER_TURN: u32 = 8;

/// Pause after the operating system refused to accept, usually for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Shortest time between two log lines about connections refused for want of room.
const REFUSED_LOG_PAUSE: Duration = Duration::from_secs(60);

/// Time for all connections to say goodbye. Those that have not by then are cut.
pub(super) const STOP_TIME: Duration = Duration::from_millis(700);

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Full(#[from] Full),
    /// `[user] failed_per_minute`.
    #[error("more than {0} handshakes a minute from one address fail, or are under way; try again in a minute")]
    Failing(u32),
}

/// One counted connection; uncounted when dropped.
pub(super) struct Slot {
    pub(super) shared: Arc<Shared>,
    address: IpAddr,
}

impl Slot {
    fn take(shared: &Arc<Shared>, address: IpAddr) -> Result<Slot, Refused> {
        let mut registry = shared.lock();
        registry.connections.open(address)?;
        let slot = Slot { shared: shared.clone(), address };
        let Registry { failing, .. } = &mut *registry;
        let allowed = failing.as_mut().is_none_or(|rate| rate.allow(&holder(address), shared.now()));
        // Before a slot is dropped, which locks again.
        drop(registry);
        match allowed {
            true => Ok(slot),
            false => Err(Refused::Failing(shared.config.failed_per_minute.unwrap_or_default())),
        }
    }

    /// Whoever is connected has said who it is: this handshake does not count as one that failed.
    pub(super) fn known(&self) {
        if let Some(rate) = &mut self.shared.lock().failing {
            rate.give_back(&holder(self.address));
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.lock().connections.close(self.address);
    }
}

/// Accepts connections until the gateway stops, then waits for those that are open.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    let mut turns = JoinSet::new();
    turns.spawn({
        let shared = shared.clone();
        async move { shared.turns.keep().await }
    });
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let mut refused_logged: Option<Instant> = None;
    let mut in_a_row = 0;
    let mut stopped = pin!(shared.stopped());
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => break,
            Some(ended) = tasks.join_next() => log_ended(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    match Slot::take(&shared, peer.ip()) {
                        Ok(slot) => {
                            tasks.spawn(connection(stream, slot));
                        }
                        Err(refused) => {
                            if refused_logged.is_none_or(|at| at.elapsed() >= REFUSED_LOG_PAUSE) {
                                refused_logged = Some(Instant::now());
                                warn!(%peer, %refused, "user refused");
                            }
                            if let Ok(permit) = refusals.clone().try_acquire_owned() {
                                let shared = shared.clone();
                                tasks.spawn(async move {
                                    shared.turns.of(refuse(stream, refused)).await;
                                    drop(permit);
                                });
                            }
                        }
                    }
                    in_a_row = (in_a_row + 1) % ACCEPTED_PER_TURN;
                    if in_a_row == 0 {
                        yield_now().await;
                    }
                }
                Err(error) => {
                    warn!(%error, "cannot accept a user");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let all_ended = async {
        while let Some(ended) = tasks.join_next().await {
            log_ended(ended);
        }
    };
    if timeout(STOP_TIME, all_ended).await.is_err() {
        debug!("connections cut that did not close in time");
    }
}

fn log_ended(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "the task of a connection broke");
    }
}

async fn connection(stream: TcpStream, slot: Slot) {
    // Outputs are whole frames; waiting to fill a segment only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        return debug!(address = %slot.address, %error, "connection lost at once");
    }
    let shared = &*slot.shared;
    let deadline = Instant::now() + shared.config.handshake_timeout;
    match &shared.config.tls {
        None => session::serve(stream, &slot, deadline).await,
        Some(tls) => match shared.turns.of(tls.accept(stream, shared.config.handshake_timeout)).await {
            Ok(stream) => session::serve(stream, &slot, deadline).await,
            Err(error) => debug!(address = %slot.address, %error, "no TLS"),
        },
    }
}

/// Answers a connection that is not served, before any work is put into it.
async fn refuse(mut stream: TcpStream, refused: Refused) {
    let body = error_frame(ErrorCode::Busy, &refused.to_string());
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let said = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Dropped with unread bytes the connection would be reset, and the answer lost with it.
        tokio::io::copy(&mut stream.take(REFUSED_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // However it ends, the connection is over.
    let _ = timeout(REFUSAL_TIME, said).await;
}
