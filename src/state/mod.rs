//! The contract's files: Merkle root, snapshot, roll back.
