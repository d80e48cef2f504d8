//! The supervisor's ends of a run's pipes, all pumped at once. Which bytes go where is the matter of `sinks.rs`.

use std::{collections::VecDeque, io, os::fd::OwnedFd, sync::Arc};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::{future::BoxFuture, stream::FuturesUnordered};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
};
use tokio::{net::unix::pipe, task::yield_now};

use super::{npl, sinks::Sinks};

/// Bytes moved by one system call; the usual capacity of a pipe, and the longest message on the party line.
pub(super) const PIECE_BYTES: usize = npl::NPL_MESSAGE_BYTES_MAX;

/// Pieces moved through one pipe before the next pipe has its turn.
pub(super) const PIECES_A_TURN: usize = 4;

/// Bytes moved before everything else on this thread has its turn; well below a millisecond.
pub(super) const BYTES_A_TURN: usize = 512 * 1024;

/// Pipes made, looked at or closed before everything else on this thread has its turn.
pub(super) const PIPES_A_TURN: usize = 32;

// Places of the pipes in `Pumps::ins` (stdin is the first) and `Pumps::outs`; those of users follow.
pub(super) const NPL_IN: usize = 1;
pub(super) const STDOUT: usize = 0;
pub(super) const STDERR: usize = 1;
pub(super) const NPL_OUT: usize = 2;
pub(super) const CONTROL: usize = 3;
pub(super) const USERS_OUT: usize = 4;

/// A pipe as (read end, write end), both closed on exec and blocking.
fn new_pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    #[cfg(target_os = "linux")]
    return nix::unistd::pipe2(OFlag::O_CLOEXEC);
    #[cfg(not(target_os = "linux"))]
    {
        let (read, write) = nix::unistd::pipe()?;
        for end in [&read, &write] {
            fcntl(end, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        }
        Ok((read, write))
    }
}

/// A pipe that the contract reads: (our end, not blocking; its end).
pub(super) fn to_contract() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = new_pipe()?;
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((write, read))
}

/// A pipe that the contract writes: (our end, not blocking; its end).
pub(super) fn from_contract() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = new_pipe()?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// Bytes on their way into one pipe.
pub(super) struct Feed<P> {
    pipe: P,
    queue: VecDeque<Bytes>,
    /// Bytes in the queue.
    queued: usize,
    /// What is written next: small entries of the queue together, or one big one.
    piece: Bytes,
    /// Whether the pipe is closed once everything is written.
    pub(super) last: bool,
    /// Whether the pumps wait for room in the pipe.
    waiting: bool,
}

impl Feed<OwnedFd> {
    /// Writes as much as the pipe takes at once; `None` when that was all, which is the usual case.
    pub(super) fn begin(pipe: OwnedFd, queue: VecDeque<Bytes>) -> io::Result<Option<Feed<OwnedFd>>> {
        let queued = queue.iter().map(Bytes::len).sum();
        let mut feed = Feed { pipe, queue, queued, piece: Bytes::new(), last: true, waiting: false };
        while feed.refill() {
            match nix::unistd::write(&feed.pipe, &feed.piece) {
                Ok(n) => feed.piece.advance(n),
                Err(Errno::EAGAIN) => return Ok(Some(feed)),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// A pipe that stays open until it is told otherwise.
    pub(super) fn open(pipe: OwnedFd) -> Feed<OwnedFd> {
        Feed { pipe, queue: VecDeque::new(), queued: 0, piece: Bytes::new(), last: false, waiting: false }
    }
}

impl<P> Feed<P> {
    /// Bytes not yet written.
    pub(super) fn bytes(&self) -> usize {
        self.queued + self.piece.len()
    }

    pub(super) fn push(&mut self, entry: Bytes) {
        self.queued += entry.len();
        self.queue.push_back(entry);
    }

    /// Whether there is a piece to write.
    pub(super) fn refill(&mut self) -> bool {
        if self.piece.is_empty() {
            let mut joined = BytesMut::new();
            while joined.len() < PIECE_BYTES / 2 && self.queue.front().is_some_and(|it| it.len() < PIECE_BYTES / 2) {
                joined.extend_from_slice(&self.queue.pop_front().expect("seen above"));
            }
            let whole = if joined.is_empty() { self.queue.pop_front() } else { None };
            self.piece = whole.unwrap_or_else(|| joined.freeze());
            self.queued -= self.piece.len();
        }
        !self.piece.is_empty()
    }
}

/// A pipe that is ready, by its place.
#[derive(Clone, Copy)]
pub(super) enum Ready {
    In(usize),
    Out(usize),
}

enum Awaited {
    In(usize, Arc<pipe::Sender>),
    Out(usize, Arc<pipe::Receiver>),
}

/// An error of waiting shows again at the read or write that follows.
async fn ready(pipe: Awaited) -> Ready {
    match pipe {
        Awaited::In(place, pipe) => {
            let _ = pipe.writable().await;
            Ready::In(place)
        }
        Awaited::Out(place, pipe) => {
            let _ = pipe.readable().await;
            Ready::Out(place)
        }
    }
}

/// All pipes of a run, at their places; a closed one leaves its place empty.
pub(super) struct Pumps {
    pub(super) ins: Vec<Option<Feed<Arc<pipe::Sender>>>>,
    outs: Vec<Option<Arc<pipe::Receiver>>>,
    pub(super) awaited: FuturesUnordered<BoxFuture<'static, Ready>>,
    scratch: Vec<u8>,
    /// The party line is not read while its messages wait for room on the way to the peers.
    pub(super) npl_parked: bool,
}

impl Pumps {
    pub(super) fn new() -> Pumps {
        let (ins, outs, awaited) = (Vec::new(), Vec::new(), FuturesUnordered::new());
        Pumps { ins, outs, awaited, scratch: vec![0; PIECE_BYTES], npl_parked: false }
    }

    pub(super) fn add_in(&mut self, feed: Option<Feed<OwnedFd>>) -> io::Result<()> {
        let place = self.ins.len();
        let feed = feed.map(|Feed { pipe, queue, queued, piece, last, waiting }| {
            let pipe = Arc::new(pipe::Sender::from_owned_fd_unchecked(pipe)?);
            Ok::<_, io::Error>(Feed { pipe, queue, queued, piece, last, waiting })
        });
        self.ins.push(feed.transpose()?);
        self.wake_in(place);
        Ok(())
    }

    pub(super) fn add_out(&mut self, pipe: OwnedFd) -> io::Result<()> {
        self.outs.push(Some(Arc::new(pipe::Receiver::from_owned_fd_unchecked(pipe)?)));
        self.await_out(self.outs.len() - 1);
        Ok(())
    }

    /// Takes up writing after something was put into the queue, or `last` was set.
    pub(super) fn wake_in(&mut self, place: usize) {
        let Some(feed) = &mut self.ins[place] else { return };
        if feed.waiting {
            return;
        }
        if feed.refill() {
            feed.waiting = true;
            self.awaited.push(Box::pin(ready(Awaited::In(place, Arc::clone(&feed.pipe)))));
        } else if feed.last {
            self.ins[place] = None;
        }
    }

    pub(super) fn await_out(&mut self, place: usize) {
        if let Some(pipe) = &self.outs[place] {
            self.awaited.push(Box::pin(ready(Awaited::Out(place, Arc::clone(pipe)))));
        }
    }

    /// Writes what the pipe takes; returns how many bytes.
    pub(super) fn write(&mut self, place: usize) -> usize {
        let Some(feed) = &mut self.ins[place] else { return 0 };
        feed.waiting = false;
        let mut moved = 0;
        for _ in 0..PIECES_A_TURN {
            if !feed.refill() {
                break;
            }
            match feed.pipe.try_write(&feed.piece) {
                Ok(n) => {
                    feed.piece.advance(n);
                    moved += n;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    // The contract has closed its end: it does not want the rest.
                    self.ins[place] = None;
                    return moved;
                }
            }
        }
        self.wake_in(place);
        moved
    }

    /// Reads what is there into the sinks; returns how many bytes.
    pub(super) fn read(&mut self, place: usize, sinks: &mut Sinks) -> usize {
        let Some(pipe) = self.outs[place].clone() else { return 0 };
        let mut moved = 0;
        for _ in 0..PIECES_A_TURN {
            if place == NPL_OUT && !sinks.unsent.is_empty() {
                self.npl_parked = true;
                return moved;
            }
            match pipe.try_read(&mut self.scratch) {
                Ok(n) if n > 0 => {
                    sinks.take(place, &self.scratch[..n]);
                    moved += n;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => {
                    self.outs[place] = None;
                    sinks.closed(place);
                    return moved;
                }
            }
        }
        self.await_out(place);
        moved
    }

    /// Reads what the dead have left in the pipes. Does not ask the event loop, which may not have heard of it yet, and
    /// does not wait for the end of a pipe, which somebody outside of the run might have been handed.
    pub(super) async fn drain(mut self, sinks: &mut Sinks) {
        self.awaited.clear();
        let mut moved = 0;
        for place in 0..self.outs.len() {
            let Some(pipe) = self.outs[place].take() else { continue };
            loop {
                match nix::unistd::read(&pipe, &mut self.scratch) {
                    Ok(n) if n > 0 => {
                        sinks.take(place, &self.scratch[..n]);
                        moved += n;
                    }
                    Err(Errno::EINTR) => {}
                    Ok(_) | Err(_) => break,
                }
                if moved > BYTES_A_TURN {
                    moved = 0;
                    yield_now().await;
                }
            }
            sinks.closed(place);
            drop(pipe);
            if place % PIPES_A_TURN == PIPES_A_TURN - 1 {
                yield_now().await;
            }
        }
    }
}
