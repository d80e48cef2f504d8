//! Peer messages as canonical bytes.
