//! What supervisor and launcher say to each other over their socket, as bytes.
//!
//! A message is a header of eight bytes, a body in pieces, and then its descriptors in batches, each on one filler
//! byte. That works alike on a packet socket (Linux) and on a stream socket (elsewhere). The launcher's side blocks;
//! the supervisor's is in `supervisor.rs`.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};

use borsh::{BorshDeserialize, BorshSerialize};
use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

#[cfg(doc)]
use super::guards::Guards;
use super::limits::OsLimits;

/// Most descriptors the kernel passes at once (SCM_MAX_FD).
pub(super) const FD_BATCH: usize = 253;

/// The contract's first descriptor after stdin, stdout and stderr; the launcher keeps its own below.
pub(super) const FIRST_FD: RawFd = 16;

/// Piece of a body in one packet; well below the default send buffer.
pub(super) const PIECE_BYTES: usize = 32 * 1024;

/// Most bytes of a message. Only arguments and environment make one grow, and the kernel refuses more than 2 MiB of
/// those; a longer request is refused before it is sent.
pub(super) const BODY_BYTES_MAX: usize = 4 << 20;

/// How a message begins. One without descriptors is no [`Request`]: with a body it is the [`Guards`] of all requests that
/// follow, without it asks for the end of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) body: u32,
    pub(super) fds: u32,
}

impl Header {
    pub(super) const LEN: usize = 8;
    /// Kill what runs now. Means nothing when nothing runs.
    pub(super) const KILL: Header = Header { body: 0, fds: 0 };

    /// Whether the body is [`Guards`], to which there is no answer.
    pub(super) fn is_guards(self) -> bool {
        self.fds == 0 && self.body > 0
    }

    pub(super) fn to_bytes(self) -> [u8; Header::LEN] {
        let mut bytes = [0; Header::LEN];
        bytes[..4].copy_from_slice(&self.body.to_le_bytes());
        bytes[4..].copy_from_slice(&self.fds.to_le_bytes());
        bytes
    }

    /// The header in `bytes`; an error when its body is over the bound.
    pub(super) fn parse(bytes: [u8; Header::LEN]) -> io::Result<Header> {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let header = Header { body: number(0), fds: number(4) };
        if header.body as usize > BODY_BYTES_MAX {
            let text = format!("message of {} bytes, at most {BODY_BYTES_MAX} are allowed", header.body);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(header)
    }
}

/// Start this. Its descriptors follow: from [`FIRST_FD`] up as the contract will see them, then stdin, stdout, stderr.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Request {
    /// Absolute, or relative to `dir`.
    pub(super) path: Vec<u8>,
    pub(super) argv: Vec<Vec<u8>>,
    /// `NAME=value` each, complete.
    pub(super) env: Vec<Vec<u8>>,
    pub(super) dir: Vec<u8>,
    pub(super) limits: OsLimits,
    /// In the contract's own view of the files: where an overlay is mounted, and its options.
    pub(super) mount: Option<(Vec<u8>, Vec<u8>)>,
    /// A folder that is made empty before the run and after it.
    pub(super) tmp: Option<Vec<u8>>,
}

/// The answer to each [`Request`], once no process of that run is left.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum Reply {
    Ended { exit: Exit, left_over: u32 },
    NotStarted { step: Step, errno: i32 },
}

/// How the main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
}

/// What could not be done before the contract's first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Step {
    /// Taking over the descriptors.
    Descriptors,
    /// A text with a NUL byte.
    Text,
    /// Making a process.
    Clone,
    /// Entering the contract's folder.
    Folder,
    /// Setting a limit.
    Limit,
    /// Executing the binary.
    Exec,
    /// Making a view of the files of its own.
    View,
    /// Mounting its state.
    Mount,
    /// Emptying its folder `tmp/`.
    Tmp,
    /// Taking from it what its programs might have more of.
    NoNewPrivs,
    /// Keeping it to its files.
    Files,
    /// Keeping it from system calls.
    Calls,
    /// Making a place of its own for it.
    Space,
    /// Showing it its own processes alone.
    Proc,
    /// Taking the rights of root from it that it does not need.
    Capabilities,
    /// Counting it, and all that it starts, together.
    Cgroup,
    /// Making it another user's.
    User,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Step::Descriptors => "pass the descriptors to",
            Step::Text => "pass the arguments to",
            Step::Clone => "make a process for",
            Step::Folder => "enter the folder of",
            Step::Limit => "set the limits of",
            Step::Exec => "execute",
            Step::View => "make a view of the files for",
            Step::Mount => "mount the state for",
            Step::Tmp => "empty the folder tmp/ of",
            Step::NoNewPrivs => "set no_new_privs for",
            Step::Files => "restrict the files (Landlock) of",
            Step::Calls => "filter the system calls (seccomp) of",
            Step::Space => "make namespaces for",
            Step::Proc => "mount /proc for",
            Step::Capabilities => "drop the capabilities of",
            Step::Cgroup => "make a cgroup for",
            Step::User => "become the user of",
        })
    }
}

/// Sends one piece, with descriptors or without; returns how many bytes went. SIGPIPE is ignored in both programs.
pub(super) fn send(socket: BorrowedFd<'_>, piece: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(piece)], rights, MsgFlags::empty(), None)?)
}

/// The launcher's end of the socket. Blocking.
#[derive(Debug)]
pub(super) struct Line(pub(super) OwnedFd);

impl Line {
    /// The next header; `None` when the supervisor is gone.
    pub(super) fn header(&self) -> io::Result<Option<Header>> {
        let mut bytes = [0; Header::LEN];
        if !self.fill(&mut bytes)? {
            return Ok(None);
        }
        Header::parse(bytes).map(Some)
    }

    /// The next header, which stays where it is; `None` when the supervisor is gone. Only where messages are packets.
    #[cfg(target_os = "linux")]
    pub(super) fn peek(&self) -> io::Result<Option<Header>> {
        let mut bytes = [0; Header::LEN];
        loop {
            match nix::sys::socket::recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK) {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(None),
                Ok(Header::LEN) => return Header::parse(bytes).map(Some),
                Ok(length) => return Err(io::Error::other(format!("a header of {length} bytes"))),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The body that the header announced; `None` when the supervisor is gone.
    pub(super) fn body(&self, header: Header) -> io::Result<Option<Vec<u8>>> {
        let mut body = vec![0; header.body as usize];
        Ok(self.fill(&mut body)?.then_some(body))
    }

    /// Receives the descriptors that the header announced. `Some(true)` when they are `first` and the numbers after
    /// it, which they are whenever all numbers below are taken and those above are free. `None`: supervisor gone.
    pub(super) fn descriptors(&self, header: Header, first: RawFd) -> io::Result<Option<bool>> {
        let mut in_place = true;
        let (mut next, mut left) = (first, header.fds as usize);
        let mut space = nix::cmsg_space!([RawFd; FD_BATCH]);
        while left > 0 {
            let batch = left.min(FD_BATCH);
            let mut filler = [0];
            let mut iov = [IoSliceMut::new(&mut filler)];
            let message = match recvmsg::<()>(self.0.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            if message.bytes == 0 {
                return Ok(None);
            }
            let mut got = 0;
            // An error here means that not all of them fitted under this process's limit.
            for message in message.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    in_place &= fds.iter().copied().eq(next..next + fds.len() as RawFd);
                    got += fds.len();
                }
            }
            in_place &= got == batch;
            next += batch as RawFd;
            left -= batch;
        }
        Ok(Some(in_place))
    }

    /// Answers a request. Blocks only as long as the supervisor does not read.
    pub(super) fn answer(&self, reply: &Reply) -> io::Result<()> {
        use std::os::fd::AsFd as _;
        let body = borsh::to_vec(reply)?;
        let header = Header { body: body.len() as u32, fds: 0 };
        for part in [&header.to_bytes()[..], &body] {
            let mut sent = 0;
            while sent < part.len() {
                match send(self.0.as_fd(), &part[sent..], &[]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => sent += result?,
                }
            }
        }
        Ok(())
    }

    fn fill(&self, buf: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < buf.len() {
            match nix::unistd::read(&self.0, &mut buf[filled..]) {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(false),
                Ok(n) => filled += n,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written_and_a_huge_one_is_refused() {
        let header = Header { body: BODY_BYTES_MAX as u32, fds: 30_005 };
        assert_eq!(Header::parse(header.to_bytes()).unwrap(), header);
        assert!(Header::parse(Header { body: header.body + 1, fds: 0 }.to_bytes()).is_err());
    }
}
