//! What is stored, read out of its bytes as `docs/protocol.md`, "Encoding", writes them down.
//!
//! A reader of its own on purpose: it shares nothing with the types that nodes encode, so that a field which they
//! add, swap or forget is noticed here. A value has one encoding, so bytes that read are in canonical form.

use std::fmt;

use crate::types::{Attempt, Challenge, Hash, LimitKind, NodeKey, Seq, Sig, Status, UserKey, WallMs};

/// Bytes that are not the value they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They end too early.
    #[error("{0} bytes are missing")]
    Short(usize),
    /// Something is left over.
    #[error("{0} bytes are left over")]
    Long(usize),
    /// A number that says which kind follows, and no kind has it.
    #[error("{what} of kind {number}")]
    Kind {
        /// Of what.
        what: &'static str,
        /// The number.
        number: u8,
    },
}

type Read<T> = Result<T, Malformed>;

/// Reads a value off the front of bytes.
pub(super) struct Reader<'a>(&'a [u8]);

/// A value that is read out of bytes.
pub(super) trait Value: Sized {
    fn read(from: &mut Reader) -> Read<Self>;

    /// Reads a value that takes all of the bytes.
    fn whole(bytes: &[u8]) -> Read<Self> {
        let mut reader = Reader(bytes);
        let value = Self::read(&mut reader)?;
        match reader.0.len() {
            0 => Ok(value),
            left => Err(Malformed::Long(left)),
        }
    }
}

/// A value, and those bytes at the front that are its.
pub(super) fn prefix<T: Value>(bytes: &[u8]) -> Read<(T, &[u8])> {
    let mut reader = Reader(bytes);
    let value = reader.get()?;
    let length = bytes.len() - reader.0.len();
    Ok((value, &bytes[..length]))
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Read<&'a [u8]> {
        match self.0.split_at_checked(count) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => Err(Malformed::Short(count - self.0.len())),
        }
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many as asked for"))
    }

    fn get<T: Value>(&mut self) -> Read<T> {
        T::read(self)
    }

    fn kind(&mut self, what: &'static str, kinds: u8) -> Read<u8> {
        match self.get::<u8>()? {
            number if number < kinds => Ok(number),
            number => Err(Malformed::Kind { what, number }),
        }
    }

    fn bytes(&mut self) -> Read<Vec<u8>> {
        let length = self.get::<u32>()? as usize;
        Ok(self.take(length)?.to_vec())
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn read(from: &mut Reader) -> Read<$number> {
                from.array().map(<$number>::from_le_bytes)
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64, i32);

macro_rules! raw {
    ($($name:ident),*) => {$(
        impl Value for $name {
            fn read(from: &mut Reader) -> Read<$name> {
                from.array().map($name)
            }
        }
    )*};
}
raw!(Hash, NodeKey, UserKey, Sig, Challenge);

impl<T: Value> Value for Vec<T> {
    fn read(from: &mut Reader) -> Read<Vec<T>> {
        // Not reserved: the number may be a lie, and ends with the bytes.
        (0..from.get::<u32>()?).map(|_| from.get()).collect()
    }
}

impl<T: Value> Value for Option<T> {
    fn read(from: &mut Reader) -> Read<Option<T>> {
        match from.kind("an option", 2)? {
            0 => Ok(None),
            _ => from.get().map(Some),
        }
    }
}

impl<A: Value, B: Value> Value for (A, B) {
    fn read(from: &mut Reader) -> Read<(A, B)> {
        Ok((from.get()?, from.get()?))
    }
}

impl<A: Value, B: Value, C: Value> Value for (A, B, C) {
    fn read(from: &mut Reader) -> Read<(A, B, C)> {
        Ok((from.get()?, from.get()?, from.get()?))
    }
}

/// Declares a struct whose fields stand in this order, and nothing between them.
macro_rules! values {
    ($($(#[$attribute:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(super) struct $name { $(pub(super) $field: $type),* }

        impl Value for $name {
            fn read(from: &mut Reader) -> Read<$name> {
                Ok($name { $($field: from.get()?),* })
            }
        }
    )*};
}

values! {
    /// Ledger 0.
    Genesis {
        ver: u16, contract_id: Hash, unl: Vec<NodeKey>, threshold: u8, cfg_hash: Hash, state_root: Hash,
        time_ms: WallMs, ancestor: Option<Ancestor>,
    }
    /// The chain before.
    Ancestor {
        contract_id: Hash, chain_id: Hash, seq: Seq, ledger_hash: Hash, users_root: Hash, n_users: u32, keys_root: Hash,
        n_keys: u64, binary: Option<Hash>,
    }
    /// What all nodes must have alike; the rest is hashed only.
    SharedConfig {
        threshold: u64, time_res_ms: u64, input_window: u64, inputs: InputsTaken, users_max: u64, rest: Settings,
    }
    Header {
        ver: u16, chain_id: Hash, seq: Seq, parent: Hash, time_ms: WallMs, unl_hash: Hash, next_unl_hash: Hash,
        users_root: Hash, n_users: u32, inputs_root: Hash, n_inputs: u32, inputs_bytes: u64, result: ExecResult,
        settlement: Option<Settlement>,
    }
    ExecResult {
        of_seq: Seq, of_hash: Hash, state_root: Hash, outputs_root: Hash, status: Status, unl_req: Option<UnlChange>,
    }
    Settlement { seq: Seq, ch: Hash, tx: Hash, confirmed_length: u64, txv: Hash }
    Candidate {
        header: Header, inputs: Vec<Hash>, users_add: Vec<UserKey>, users_del: Vec<UserKey>,
        unl_change: Option<UnlChange>,
    }
    #[derive(Copy)]
    Vote { seq: Seq, attempt: Attempt, ledger_hash: Hash }
    Certificate { vote: Vote, sigs: Vec<(NodeKey, Sig)> }
    Novel {
        seq: Seq, parent: Hash, time_slot: u64, users_add: Vec<UserKey>, users_del: Vec<UserKey>, inputs: Vec<Hash>,
        unl_vote: Option<UnlChange>, settlement: Option<Settlement>,
    }
    #[derive(Copy)]
    AdvanceVote { seq: Seq, attempt: Attempt, high: Option<(Attempt, Hash)> }
    Overtime { of_seq: Seq, of_hash: Hash }
    Advance { vote: Signed<AdvanceVote>, polc: Option<Certificate> }
    ResultCert { result: ExecResult, sigs: Vec<(NodeKey, Sig)> }
    Propose { seq: Seq, attempt: Attempt, ledger_hash: Hash, tc: Vec<Signed<AdvanceVote>>, basis: Basis }
    Evidence { signer: NodeKey, first: Blob, second: Blob }
}

/// Bytes with their length before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob(pub(super) Vec<u8>);

impl Value for Blob {
    fn read(from: &mut Reader) -> Read<Blob> {
        from.bytes().map(Blob)
    }
}

/// What is in `SharedConfig` behind `users_max`: ten numbers, a yes or no, two numbers, five numbers, and what is about settling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    limits: [u64; 10],
    network: bool,
    state: [u64; 2],
    built_in: [u64; 5],
    msb: Msb,
}

/// What of it is about settling: a kind of network, two hashes, three numbers, and when outputs are final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Msb {
    network: u8,
    identity: [Hash; 2],
    pace: [u64; 3],
    execute: u8,
}

impl Value for Settings {
    fn read(from: &mut Reader) -> Read<Settings> {
        let msb = Msb { network: 0, identity: [Hash::ZERO; 2], pace: [0; 3], execute: 0 };
        let mut settings = Settings { limits: [0; 10], network: false, state: [0; 2], built_in: [0; 5], msb };
        for limit in &mut settings.limits {
            *limit = from.get()?;
        }
        settings.network = from.kind("`network`", 2)? == 1;
        for limit in &mut settings.state {
            *limit = from.get()?;
        }
        for limit in &mut settings.built_in {
            *limit = from.get()?;
        }
        settings.msb.network = from.kind("a network of the bus", 3)?;
        for hash in &mut settings.msb.identity {
            *hash = from.get()?;
        }
        for number in &mut settings.msb.pace {
            *number = from.get()?;
        }
        settings.msb.execute = from.kind("`execute`", 2)?;
        Ok(settings)
    }
}

/// Which inputs the chain takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputsTaken {
    Any,
    Signed,
}

impl Value for InputsTaken {
    fn read(from: &mut Reader) -> Read<InputsTaken> {
        Ok(match from.kind("`inputs`", 2)? {
            0 => InputsTaken::Any,
            _ => InputsTaken::Signed,
        })
    }
}

/// What a node lacks that passed over ledgers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lacks {
    Users,
    State,
    Nothing,
}

impl Value for Lacks {
    fn read(from: &mut Reader) -> Read<Lacks> {
        match from.get::<u8>()? {
            0 => Ok(Lacks::Users),
            1 => Ok(Lacks::State),
            2 => Ok(Lacks::Nothing),
            number => Err(Malformed::Kind { what: "what lacks", number }),
        }
    }
}

impl Value for Status {
    fn read(from: &mut Reader) -> Read<Status> {
        Ok(match from.kind("a status", 4)? {
            0 => Status::Ok,
            1 => Status::Exit(from.get()?),
            2 => Status::Signal(from.get()?),
            _ => Status::Limit(match from.kind("a limit", 6)? {
                0 => LimitKind::Time,
                1 => LimitKind::Output,
                2 => LimitKind::Npl,
                3 => LimitKind::FileSize,
                4 => LimitKind::State,
                _ => LimitKind::StateSize,
            }),
        })
    }
}

/// A change of the UNL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnlChange {
    Add(NodeKey),
    Remove(NodeKey),
}

impl fmt::Display for UnlChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnlChange::Add(node) => write!(f, "{node} comes"),
            UnlChange::Remove(node) => write!(f, "{node} goes"),
        }
    }
}

impl Value for UnlChange {
    fn read(from: &mut Reader) -> Read<UnlChange> {
        Ok(match from.kind("a UNL change", 2)? {
            0 => UnlChange::Add(from.get()?),
            _ => UnlChange::Remove(from.get()?),
        })
    }
}

/// Who answers for an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    User { sig: Sig },
    Session { host: NodeKey, challenge: Challenge, helo_sig: Sig, host_sig: Sig },
}

impl Value for Origin {
    fn read(from: &mut Reader) -> Read<Origin> {
        Ok(match from.kind("an origin", 2)? {
            0 => Origin::User { sig: from.get()? },
            _ => Origin::Session {
                host: from.get()?,
                challenge: from.get()?,
                helo_sig: from.get()?,
                host_sig: from.get()?,
            },
        })
    }
}

/// One input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) user: UserKey,
    pub(super) origin: Origin,
    pub(super) nonce: u64,
    pub(super) max_ledger: Seq,
    pub(super) payload: Vec<u8>,
}

impl Value for Input {
    fn read(from: &mut Reader) -> Read<Input> {
        Ok(Input {
            user: from.get()?,
            origin: from.get()?,
            nonce: from.get()?,
            max_ledger: from.get()?,
            payload: from.bytes()?,
        })
    }
}

/// What justifies a PROPOSE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Basis {
    Polc(Certificate),
    Novels(Vec<(NodeKey, Hash)>, ResultCert),
}

impl Value for Basis {
    fn read(from: &mut Reader) -> Read<Basis> {
        Ok(match from.kind("a basis", 2)? {
            0 => Basis::Polc(from.get()?),
            _ => Basis::Novels(from.get()?, from.get()?),
        })
    }
}

/// A body with its signer and signature, and the body's own bytes, which are what is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signed<T> {
    pub(super) from: NodeKey,
    pub(super) body: T,
    pub(super) body_bytes: Vec<u8>,
    pub(super) sig: Sig,
}

impl<T: Value> Value for Signed<T> {
    fn read(from: &mut Reader) -> Read<Signed<T>> {
        let signer = from.get()?;
        let before = from.0;
        let body = from.get()?;
        let body_bytes = before[..before.len() - from.0.len()].to_vec();
        Ok(Signed { from: signer, body, body_bytes, sig: from.get()? })
    }
}
