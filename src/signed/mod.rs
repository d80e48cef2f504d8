//! Signed mode of the user port: its frames as data, and the proof a user checks. Pure; the node and `hp client` share it.
//!
//! Source: `docs/protocol.md`, "Signed mode".

mod frames;
pub mod proof;

pub use frames::{
    Answer, AnswerBody, Base64, Change, ErrorFrame, Executed, FRAME_OVERHEAD_BYTES, Fate, InputFrame, InputState,
    LedgerFrame, Limits, OutputFrame, OutputsPage, Query, QueryFrame, ReadFate, ReadFrame, ReadReason, ReadResult,
    Reason, Reply, Request, RequestError, RunEnd, Settled, StatusFrame, Text, UnlPage, UnlStep, Welcome,
    frame_bytes_max, parse_request,
};

use crate::{
    consensus::header::{Input, Origin},
    crypto::SecretKey,
    types::{Hash, Seq, Sig, UserKey},
};

/// An input that its user signs, with the signature over its id in this chain.
pub fn sign_input(key: &SecretKey, chain_id: &Hash, nonce: u64, max_ledger: Seq, payload: Vec<u8>) -> Input {
    let mut input =
        Input { user: key.user_key(), origin: Origin::User { sig: Sig([0; 64]) }, nonce, max_ledger, payload };
    let sig = key.sign(&input.id(chain_id).0);
    input.origin = Origin::User { sig };
    input
}

impl From<Input> for InputFrame {
    /// # Panics
    /// When a host vouches for the input instead of its user.
    fn from(input: Input) -> InputFrame {
        let Input { origin, nonce, max_ledger, payload, .. } = input;
        let Origin::User { sig } = origin else { panic!("the user signed it") };
        InputFrame { nonce, max_ledger, payload: Base64(payload), sig: Text(sig) }
    }
}

impl InputFrame {
    /// The input that `user` says this is. Its signature is still to be checked.
    pub fn of(self, user: UserKey) -> Input {
        let InputFrame { nonce, max_ledger, payload, sig } = self;
        Input { user, origin: Origin::User { sig: sig.0 }, nonce, max_ledger, payload: payload.0 }
    }
}
