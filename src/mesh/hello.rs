//! What two nodes tell each other before they are linked, and the addresses they share afterwards. Pure.

use std::net::{IpAddr, SocketAddr};

use borsh::{BorshDeserialize, BorshSerialize};

use crate::types::NodeKey;

/// Version of the hello, of the frames and of their kinds. Nodes of different versions refuse each other.
pub(super) const VERSION: u16 = 1;

/// Addresses in one frame. Those that do not fit are not told; the listener learns them from another node.
pub(super) const KNOWN_MAX: usize = 256;

/// First frame of each side on the vote stream.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Hello {
    /// Always the first two bytes, whatever a later version puts behind them.
    pub(super) version: u16,
    /// Random at each start: tells a restarted peer, whose old link is dead, from a second dial of the same one.
    pub(super) boot: [u8; 16],
    /// Where this node listens, at the address others see it come from. 0: do not dial me.
    pub(super) listen_port: u16,
    /// The application's part.
    pub(super) app: Vec<u8>,
}

/// One UNL member and where it was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Known {
    pub(super) key: NodeKey,
    pub(super) addr: SocketAddr,
}

impl Hello {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        borsh::to_vec(self).expect("writing to memory does not fail")
    }

    /// Reads the other side's hello. `Err` is the reason to refuse it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Hello, String> {
        match bytes {
            [low, high, ..] if u16::from_le_bytes([*low, *high]) != VERSION => {
                Err(format!("mesh version {} there, {VERSION} here", u16::from_le_bytes([*low, *high])))
            }
            _ => Hello::try_from_slice(bytes).map_err(|_| format!("unreadable hello of {} bytes", bytes.len())),
        }
    }
}

pub(super) fn known_to_bytes(known: &[Known]) -> Vec<u8> {
    borsh::to_vec(&known[..known.len().min(KNOWN_MAX)]).expect("writing to memory does not fail")
}

pub(super) fn parse_known(bytes: &[u8]) -> Result<Vec<Known>, String> {
    match Vec::<Known>::try_from_slice(bytes) {
        Ok(known) if known.len() <= KNOWN_MAX => Ok(known),
        Ok(known) => Err(format!("{} addresses in one frame, at most {KNOWN_MAX}", known.len())),
        Err(_) => Err(format!("unreadable addresses ({} bytes)", bytes.len())),
    }
}

/// Whether it makes sense to tell `to` about `addr`: one machine's loopback means nothing on another.
pub(super) fn worth_telling(addr: &SocketAddr, to: &IpAddr) -> bool {
    to.is_loopback() || !(addr.ip().is_loopback() || addr.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello { version: VERSION, boot: [7; 16], listen_port: 22860, app: b"genesis".to_vec() }
    }

    #[test]
    fn a_hello_reads_back_and_every_cut_of_it_is_refused() {
        let bytes = hello().to_bytes();
        assert_eq!(Hello::parse(&bytes), Ok(hello()));
        for len in 0..bytes.len() {
            assert!(Hello::parse(&bytes[..len]).is_err(), "{len}");
        }
        assert!(Hello::parse(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn another_version_is_named_whatever_follows_it() {
        assert_eq!(Hello::parse(&[9, 0, 1, 2, 3]), Err("mesh version 9 there, 1 here".to_owned()));
    }

    #[test]
    fn addresses_read_back_and_too_many_are_refused() {
        let one = |n: usize| Known {
            key: NodeKey([u8::try_from(n % 256).unwrap(); 32]),
            addr: SocketAddr::from(([10, 0, 0, 1], 22860)),
        };
        let known: Vec<Known> = (0..3).map(one).collect();
        assert_eq!(parse_known(&known_to_bytes(&known)), Ok(known));
        let many: Vec<Known> = (0..KNOWN_MAX + 1).map(one).collect();
        assert!(parse_known(&borsh::to_vec(&many).unwrap()).is_err());
        assert_eq!(parse_known(&known_to_bytes(&many)).unwrap().len(), KNOWN_MAX);
        assert!(parse_known(&[255; 4]).is_err());
    }

    #[test]
    fn loopback_is_told_to_the_same_machine_only() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 1));
        let lan = SocketAddr::from(([10, 0, 0, 1], 1));
        assert!(worth_telling(&loopback, &loopback.ip()));
        assert!(worth_telling(&lan, &loopback.ip()));
        assert!(worth_telling(&lan, &lan.ip()));
        assert!(!worth_telling(&loopback, &lan.ip()));
    }
}
