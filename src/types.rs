//! The values everything else is made of: hashes, keys, signatures, sequence numbers and times.
//!
//! Text is parsed once, here; behind that nobody checks a length again. All orders are by bytes, so that
//! sorted collections are alike on every machine.

use std::{fmt, str::FromStr};

use borsh::{BorshDeserialize, BorshSerialize};

/// Number of a ledger in the chain. Ledger 0 is the virtual genesis ledger.
pub type Seq = u64;

/// Number of a try to close one ledger; 0 is the first.
pub type Attempt = u32;

/// Milliseconds on a monotonic clock with an arbitrary start; only differences mean something.
pub type MonoMs = u64;

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type WallMs = u64;

/// Text that should have been fixed-length hexadecimal and was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} hexadecimal digits, got {got:?}")]
pub struct ParseHexError {
    /// Digits wanted.
    pub expected: usize,
    /// What was there, cut to 80 characters.
    pub got: String,
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseHexError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes)
        .map(|()| bytes)
        .map_err(|_| ParseHexError { expected: 2 * N, got: text.chars().take(80).collect() })
}

macro_rules! fixed_bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The first eight hexadecimal digits, for logs.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        /// Exactly the right number of hexadecimal digits, lower or upper case.
        impl FromStr for $name {
            type Err = ParseHexError;
            fn from_str(text: &str) -> Result<Self, ParseHexError> {
                parse_hex(text).map(Self)
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
    };
}

fixed_bytes!(
    /// First 32 bytes of a tagged SHA-512 (see `crypto`), or a BLAKE3 hash where a doc says so.
    Hash, 32
);
fixed_bytes!(
    /// Ed25519 public key of a node. It is also the node's identity in the mesh.
    NodeKey, 32
);
fixed_bytes!(
    /// Ed25519 public key of a user.
    UserKey, 32
);
fixed_bytes!(
    /// Ed25519 signature.
    Sig, 64
);
fixed_bytes!(
    /// The 16 random bytes a user signs (as 32 hexadecimal characters) to open a session.
    Challenge, 16
);

impl Hash {
    /// 32 zero bytes: "nothing", for example the root of an empty tree.
    pub const ZERO: Hash = Hash([0; 32]);
}

/// How one run of the contract ended, as the UNL votes it. Anything but `Ok` rolls the state back and drops outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum Status {
    /// Exit code 0.
    Ok,
    /// Another exit code. 126: the binary is not executable; 127: it is missing.
    Exit(i32),
    /// Ended by this signal.
    Signal(i32),
    /// A limit that works alike on every node was exceeded.
    Limit(LimitKind),
}

/// The limits that are alike on every node and platform, so that exceeding one can be agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum LimitKind {
    /// Wall time (`[contract] time_limit_s`).
    Time,
    /// Bytes of output to one user (`output_user_mb`) or in all (`output_mb`).
    Output,
    /// Bytes written to the party line (16 MiB a ledger).
    Npl,
    /// Size of one file (`file_mb`).
    FileSize,
    /// The state holds something that cannot be agreed on: a device, socket, fifo, or a link out of state/.
    State,
    /// Bytes (`state_mb`) or files (`state_files`) of the state after the run.
    StateSize,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Ok => f.write_str("ok"),
            Status::Exit(code) => write!(f, "exit code {code}"),
            Status::Signal(number) => write!(f, "signal {number}"),
            Status::Limit(LimitKind::Time) => f.write_str("time limit"),
            Status::Limit(LimitKind::Output) => f.write_str("output limit"),
            Status::Limit(LimitKind::Npl) => f.write_str("party line limit"),
            Status::Limit(LimitKind::FileSize) => f.write_str("file size limit"),
            Status::Limit(LimitKind::State) => f.write_str("forbidden kind of file in state/"),
            Status::Limit(LimitKind::StateSize) => f.write_str("state size limit"),
        }
    }
}

/// How a user's inputs of one ledger were authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum Auth {
    /// Each input carries the user's signature.
    Signed,
    /// The host node vouches for a session that the user opened with a signed challenge.
    Session,
}

/// When what the contract puts out to a user is final (`[msb] execute`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, BorshSerialize, BorshDeserialize)]
pub enum Execute {
    /// When a quorum agrees on it.
    #[default]
    Closed,
    /// When the chain records that its ledger is settled.
    Settled,
}

impl fmt::Display for Execute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Execute::Closed => "closed",
            Execute::Settled => "settled",
        })
    }
}

/// A word that is none of [`Execute`]'s.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected closed or settled, got {0:?}")]
pub struct ParseExecuteError(String);

impl FromStr for Execute {
    type Err = ParseExecuteError;

    fn from_str(text: &str) -> Result<Execute, ParseExecuteError> {
        let found = [Execute::Closed, Execute::Settled].into_iter().find(|execute| execute.to_string() == text);
        found.ok_or_else(|| ParseExecuteError(text.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_in_either_case_and_printed_in_lower_case() {
        let upper = "8A88E3DD7409F195FD52DB2D3CBA5D72CA6709BF1D94121BF3748801B40F6F5C";
        let key: NodeKey = upper.parse().unwrap();
        assert_eq!(key.to_string(), upper.to_lowercase());
    }

    #[test]
    fn a_key_of_any_other_length_or_alphabet_is_refused() {
        let good = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";
        for bad in ["", "zz", &good[1..], &format!("{good}00"), &format!(" {}", &good[1..]), &good.replace('8', "g")] {
            assert!(bad.parse::<UserKey>().is_err(), "{bad:?}");
        }
    }
}
