//! What nodes tell each other about a run when its results differ, so that people can find out why. Nothing is decided
//! by it.

use borsh::{BorshDeserialize, BorshSerialize};

use super::{header::ExecResult, merkle::Proof};
use crate::types::{Hash, Seq, UserKey};

/// Paths, and users, named in one [`Details`]. Further ones are left out; a list of so many ends there.
pub const DETAILS_MAX: usize = 1_000;

/// Block hashes in one [`Known`]: those of a file of 1 GiB. Of a longer file the first ones are told, which proves nothing.
pub const BLOCKS_MAX: usize = 16_384;

/// What one run did.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Details {
    /// The sender's result.
    pub result: ExecResult,
    /// Paths that the run changed, made or removed, ascending, cut at [`DETAILS_MAX`]. None of a run that failed.
    pub changed: Vec<Changed>,
    /// Users and the leaf of their output in `outputs_root`, ascending, cut at the same number.
    pub outputs: Vec<(UserKey, Hash)>,
}

/// One path that a run changed.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Changed {
    /// Relative to the state's folder, as the file system has it.
    pub path: Vec<u8>,
    /// What is there after the run; `None` when the run removed it.
    pub now: Option<PathState>,
}

/// What is agreed on about one path, but for the path itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct PathState {
    /// File, folder or symlink.
    pub kind: PathKind,
    /// The owner's executable bit of a file; else false.
    pub executable: bool,
    /// Bytes of a file, or of a symlink's target; 0 for a folder.
    pub size: u64,
    /// Tree over the blocks of a file, the one block that is a symlink's target, or `Hash::ZERO` for a folder.
    pub root: Hash,
}

/// Kinds of what may be in the state. The numbers are part of its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum PathKind {
    /// A regular file.
    File = 0,
    /// A folder.
    Folder = 1,
    /// A symbolic link.
    Symlink = 2,
}

/// Something that one run left.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum Thing {
    /// A path of the state.
    Path(Vec<u8>),
    /// What a user got.
    Output(UserKey),
}

/// Asks for a part of what a run left.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct PieceRef {
    /// The ledger whose run it was.
    pub of_seq: Seq,
    /// Its hash.
    pub of_hash: Hash,
    /// Of what.
    pub of: Thing,
    /// Which block of 64 KiB; `None` asks for the hashes of all.
    pub block: Option<u32>,
}

/// The answer to a [`PieceRef`].
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Piece {
    /// The sender keeps no such thing of that run, or no longer.
    Gone,
    /// What it is, and its blocks.
    Known(Known),
    /// The bytes of one block.
    Block(Vec<u8>),
}

/// What a file or an output is, and what proves it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Known {
    /// For an output: a file, its bytes, and its leaf in `outputs_root` as the root.
    pub state: PathState,
    /// From its leaf to the root that the sender signed.
    pub proof: Proof,
    /// Hashes of its blocks in order, cut at [`BLOCKS_MAX`].
    pub blocks: Vec<Hash>,
}
