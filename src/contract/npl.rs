//! The node party line as bytes and as rules: how a message looks to the contract, and when the line ends.
//!
//! Pure. What a contract writes is raw and is sent on in chunks; what it reads are frames
//! `Length: <decimal bytes>\nPubkey: <64 hex digits>\n\n` and then that many raw bytes.
//! Source: `contracts/README.md`, "Node party line".

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::types::NodeKey;

/// Most bytes of one message on the party line. A contract's longer write becomes several messages; a longer message
/// of a peer is ignored.
pub const NPL_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Most bytes before the body of a frame; [`read_frame`] refuses a header that is longer.
const HEADER_BYTES_MAX: usize = 128;

/// One message as the contract reads it from its party line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The node whose contract wrote it.
    pub from: NodeKey,
    /// What was written.
    pub body: Bytes,
}

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The two header lines are not there, in this order and spelling.
    #[error("expected `Length: <n>`, `Pubkey: <64 hex>` and an empty line, got {got:?}")]
    Header {
        /// What was there, cut to the header's bound.
        got: String,
    },
    /// The length is over the limit.
    #[error("frame of {bytes} bytes, at most {NPL_MESSAGE_BYTES_MAX} are allowed")]
    TooLong {
        /// The length in the header.
        bytes: usize,
    },
}

/// The message as one frame.
pub fn write_frame(from: NodeKey, body: &[u8]) -> Bytes {
    let header = format!("Length: {}\nPubkey: {from}\n\n", body.len());
    let mut frame = BytesMut::with_capacity(header.len() + body.len());
    frame.put_slice(header.as_bytes());
    frame.put_slice(body);
    frame.freeze()
}

/// Takes one frame off the front of `buf`; `None`, with `buf` untouched, until it is complete.
///
/// The inverse of [`write_frame`], for tests and for contracts written in Rust.
pub fn read_frame(buf: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let refuse = |buf: &[u8]| FrameError::Header {
        got: String::from_utf8_lossy(&buf[..buf.len().min(HEADER_BYTES_MAX)]).into(),
    };
    let Some(header_len) = buf.windows(2).position(|pair| pair == b"\n\n") else {
        return if buf.len() > HEADER_BYTES_MAX { Err(refuse(buf)) } else { Ok(None) };
    };
    let (length, from) = parse_header(&buf[..header_len]).ok_or_else(|| refuse(buf))?;
    if length > NPL_MESSAGE_BYTES_MAX {
        return Err(FrameError::TooLong { bytes: length });
    }
    if buf.len() < header_len + 2 + length {
        return Ok(None);
    }
    let mut frame = buf.split_to(header_len + 2 + length).freeze();
    Ok(Some(Frame { from, body: frame.split_off(header_len + 2) }))
}

fn parse_header(header: &[u8]) -> Option<(usize, NodeKey)> {
    let (length, from) = std::str::from_utf8(header).ok()?.split_once('\n')?;
    let length = length.strip_prefix("Length: ").filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some((length.parse().ok()?, from.strip_prefix("Pubkey: ")?.parse().ok()?))
}

/// Why a message of a peer is not shown to the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The sender is not in the UNL.
    Stranger,
    /// The message is over [`NPL_MESSAGE_BYTES_MAX`].
    TooLong,
    /// The sender is over its bytes of this ledger.
    OverLimit,
    /// The sender sent more messages than it had said, or spoke under this node's key.
    AfterEnd,
}

/// What arrived of each node in this run, and with it whether the line is complete.
#[derive(Debug)]
pub struct Line {
    bytes_max: u64,
    waiting: BTreeSet<NodeKey>,
    heard: BTreeMap<NodeKey, Heard>,
    own: NodeKey,
}

#[derive(Debug, Default)]
struct Heard {
    frames: u64,
    bytes: u64,
    end: Option<u64>,
}

impl Line {
    /// A line that is complete once `own` and every node of `unl` has ended. A peer may send `bytes_max` bytes.
    pub fn new(own: NodeKey, unl: &[NodeKey], bytes_max: u64) -> Line {
        let peers = unl.iter().filter(|key| **key != own).map(|key| (*key, Heard::default()));
        let heard: BTreeMap<_, _> = peers.collect();
        let waiting = heard.keys().copied().chain([own]).collect();
        Line { bytes_max, waiting, heard, own }
    }

    /// The contract of this node has closed its end.
    pub fn own_end(&mut self) {
        self.waiting.remove(&self.own);
    }

    /// A message of `len` bytes came from a peer: whether the contract shall read it.
    pub fn data(&mut self, from: NodeKey, len: usize) -> Result<(), Refused> {
        let Some(heard) = self.heard.get_mut(&from) else {
            return Err(if from == self.own { Refused::AfterEnd } else { Refused::Stranger });
        };
        if heard.end.is_some_and(|end| heard.frames >= end) {
            return Err(Refused::AfterEnd);
        }
        // Counted even when refused: its END names the number it sent.
        heard.frames += 1;
        heard.bytes = heard.bytes.saturating_add(len as u64);
        let verdict = match (len > NPL_MESSAGE_BYTES_MAX, heard.bytes > self.bytes_max) {
            (true, _) => Err(Refused::TooLong),
            (_, true) => Err(Refused::OverLimit),
            (false, false) => Ok(()),
        };
        self.settle(from);
        verdict
    }

    /// A peer says that it sent `frames` messages in all. Only its first word counts.
    pub fn end(&mut self, from: NodeKey, frames: u64) {
        if let Some(heard) = self.heard.get_mut(&from) {
            heard.end.get_or_insert(frames);
            self.settle(from);
        }
    }

    /// Whether nothing more can come.
    pub fn is_complete(&self) -> bool {
        self.waiting.is_empty()
    }

    fn settle(&mut self, from: NodeKey) {
        if self.heard.get(&from).is_some_and(|heard| heard.end.is_some_and(|end| heard.frames >= end)) {
            self.waiting.remove(&from);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: NodeKey = NodeKey([0xa1; 32]);
    const B: NodeKey = NodeKey([0xb2; 32]);
    const C: NodeKey = NodeKey([0xc3; 32]);

    #[test]
    fn a_frame_has_exactly_these_bytes() {
        let expected = format!("Length: 3\nPubkey: {}\n\nx\0\n", "a1".repeat(32));
        assert_eq!(write_frame(A, b"x\0\n"), expected.as_bytes());
    }

    #[test]
    fn two_frames_cut_at_every_byte_are_read_alike() {
        let frames = [Frame { from: A, body: Bytes::from_static(b"one\n\n") }, Frame { from: B, body: Bytes::new() }];
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| write_frame(frame.from, &frame.body)).collect();
        for cut in 0..=bytes.len() {
            let (mut buf, mut read) = (BytesMut::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                buf.extend_from_slice(part);
                while let Some(frame) = read_frame(&mut buf).unwrap() {
                    read.push(frame);
                }
            }
            assert_eq!((read.as_slice(), buf.len()), (frames.as_slice(), 0), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_and_a_short_one_is_waited_for() {
        let key = "a1".repeat(32);
        for bad in [
            format!("Length: x\nPubkey: {key}\n\n"),
            format!("Length: +1\nPubkey: {key}\n\nx"),
            format!("length: 1\nPubkey: {key}\n\nx"),
            format!("Pubkey: {key}\nLength: 1\n\nx"),
            format!("Length: 1\nPubkey: {}\n\nx", &key[1..]),
            format!("Length: 65537\nPubkey: {key}\n\n"),
            "x".repeat(HEADER_BYTES_MAX + 1),
        ] {
            assert!(read_frame(&mut BytesMut::from(bad.as_str())).is_err(), "{bad:?}");
        }
        assert_eq!(read_frame(&mut BytesMut::from("Length: 1\nPubk")), Ok(None));
    }

    proptest! {
        #[test]
        fn any_body_survives(body in proptest::collection::vec(any::<u8>(), 0..2000), from in any::<[u8; 32]>()) {
            let mut buf = BytesMut::from(&write_frame(NodeKey(from), &body)[..]);
            let frame = Frame { from: NodeKey(from), body: body.into() };
            prop_assert_eq!(read_frame(&mut buf), Ok(Some(frame)));
            prop_assert!(buf.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_frame(&mut BytesMut::from(&bytes[..]));
        }
    }

    #[test]
    fn a_line_is_complete_when_every_node_ended_and_its_messages_are_there() {
        let mut line = Line::new(A, &[A, B, C], 100);
        line.own_end();
        line.end(B, 0);
        line.end(C, 2);
        assert_eq!(line.data(C, 10), Ok(()));
        assert!(!line.is_complete(), "one of two messages of C is still under way");
        assert_eq!(line.data(C, 10), Ok(()));
        assert!(line.is_complete());
        assert_eq!(line.data(C, 10), Err(Refused::AfterEnd));
    }

    #[test]
    fn a_line_waits_for_the_own_end_also_on_a_node_outside_the_unl() {
        for unl in [&[B][..], &[A, B]] {
            let mut line = Line::new(A, unl, 100);
            line.end(B, 0);
            assert!(!line.is_complete());
            line.own_end();
            assert!(line.is_complete());
        }
    }

    #[test]
    fn strangers_and_liars_neither_speak_nor_end_the_line() {
        let mut line = Line::new(A, &[A, B], 100);
        assert_eq!(line.data(C, 1), Err(Refused::Stranger));
        assert_eq!(line.data(A, 1), Err(Refused::AfterEnd));
        line.end(C, 0);
        line.end(A, 0);
        line.end(B, 1);
        line.end(B, 0);
        line.own_end();
        assert!(!line.is_complete(), "B's second END is not its first");
        assert_eq!(line.data(B, NPL_MESSAGE_BYTES_MAX + 1), Err(Refused::TooLong));
        assert!(line.is_complete(), "the refused message still counts as the one B announced");
    }

    #[test]
    fn a_peer_over_its_bytes_is_not_shown() {
        let mut line = Line::new(A, &[A, B], 10);
        assert_eq!([line.data(B, 10), line.data(B, 1)], [Ok(()), Err(Refused::OverLimit)]);
    }
}
