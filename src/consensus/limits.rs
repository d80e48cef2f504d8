//! Named bounds: what each is of, and what happens at it.

use crate::types::{Attempt, Seq};

/// Inputs in one ledger, and ids in one NOVEL. More wait for the next.
pub const INPUTS_MAX: usize = 16_384;
/// Payload bytes in one ledger. More wait for the next.
pub const INPUTS_BYTES_MAX: usize = 16 << 20;
/// Payload bytes of one input. A longer one is refused.
pub const INPUT_BYTES_MAX: usize = 4 << 20;
/// Users to add, and to remove, in one NOVEL. More wait for the next.
pub const NOVEL_USERS_MAX: usize = 4096;
/// Members of a UNL.
pub const UNL_MAX: usize = 128;
/// Ids in one GET; more are asked for when these came.
pub const GET_INPUTS_MAX: usize = 1024;
/// Inputs that one NOVEL lists and I lack, that are asked for before a header needs them; more with the next NOVEL.
pub(super) const UNKNOWN_MAX: usize = 256;
/// Inputs that a header needs and I lack, that are asked for at once; more when these came. Each is looked at with each
/// message.
pub(super) const WANTED_MAX: usize = 512;
/// Attempts beyond mine for which messages are kept.
pub(super) const ATTEMPTS_AHEAD: Attempt = 8;
/// Inputs of its users that an observer tells the members again at once; more the next time.
pub(super) const TOLD_INPUTS_MAX: usize = 256;
/// Bytes of them.
pub(super) const TOLD_BYTES_MAX: usize = 4 << 20;
/// Closed ledgers waiting in memory for their run. Past it they wait in the database alone, and are loaded in order when
/// there is room: a node whose runs are slower than a quorum's goes on closing ledgers.
pub const EXECUTIONS_MAX: usize = 64;
/// Payload bytes of the same. One ledger may be over it.
pub const EXECUTIONS_BYTES_MAX: usize = 32 << 20;
/// Closed ledgers waiting for their run past which the state from before a recent one is fetched from others instead of
/// running them, once no further ledgers lack.
pub const SYNC_LEDGERS_MIN: Seq = EXECUTIONS_MAX as Seq;
/// Ledgers whose runs are still waiting after that, at most, when the state is fetched.
pub(super) const SYNC_LEDGERS_LEFT: Seq = SYNC_LEDGERS_MIN / 2;
/// Ledgers that are loaded at once for their runs.
pub const LOADED_LEDGERS_MAX: usize = EXECUTIONS_MAX / 2;
/// Payload bytes with which loading ends; the last ledger may be over it.
pub const LOADED_BYTES_MAX: usize = EXECUTIONS_BYTES_MAX / 2;
/// Closed ledgers in one RANGE; further ones are asked for by another GET.
pub const RANGE_LEDGERS_MAX: usize = 64;
/// Bytes of one RANGE. A first ledger that is larger is sent alone, with such inputs as still fit.
pub const RANGE_BYTES_MAX: usize = 1 << 20;
/// Ledgers below the last one whose contents (inputs, user changes, outputs) every node keeps, by the chain's input window:
/// as long as keys of inputs count, so that whoever has fetched them knows all keys, and some more.
pub fn bodies_kept(input_window: u64) -> u64 {
    input_window.saturating_add(join_spare(input_window))
}

/// Ledgers that contents are kept for beyond the window. Whoever joins has so many ledgers' time to fetch the oldest of
/// them before they are deleted.
pub(super) fn join_spare(input_window: u64) -> u64 {
    (input_window / 16).max(64)
}

/// Hashes in one request for blocks of the contract's state.
pub const STATE_BLOCKS_MAX: usize = 64;
/// Bytes of the blocks in one answer. Further ones are left out, and asked for again.
pub const STATE_PART_BYTES_MAX: usize = 256 << 10;
/// Peers asked for closed ledgers at a time, one RANGE each; and so, how far ahead of the last closed ledger others wait.
pub(super) const RANGES_MAX: usize = 4;
/// How long a peer has to answer a GET for closed ledgers before another is asked; twice as long each time it did not.
pub(super) const RANGE_TIMEOUT_MS: u64 = 3_000;
/// The longest it has.
pub(super) const RANGE_TIMEOUT_MAX_MS: u64 = 60_000;
/// Closed ledgers without their contents in one HEADERS, and [`RANGE_BYTES_MAX`] bytes; further ones are asked for by
/// another GET.
pub const HEADERS_MAX: usize = 256;
/// Users in one USERS; further ones are asked for by another GET.
pub const USERS_PAGE_MAX: usize = 16_384;
/// How long a node waits that fewer members than can not all lie tell that the contents of its next ledger are deleted,
/// before it passes over that ledger: others may keep them that are not linked yet.
pub(super) const JOIN_PATIENCE_MS: u64 = 10_000;
/// How long a peer that did not answer several times has for its next answer: it is not waited for where others answer.
pub(super) const MUTE_MS: u64 = 4 * RANGE_TIMEOUT_MS;
/// Work of adopting closed ledgers that is done before other events have their turn: one for each ledger and input, and
/// for each [`ADOPT_USERS`] users of a ledger whose users changed.
pub(super) const ADOPT_WORK_MAX: usize = 64;
/// Users whose tree is as much work as adopting a ledger.
pub(super) const ADOPT_USERS: usize = 16;
/// Nodes that sent false ledgers and are remembered. Strangers can take any key: past it those that are no members are
/// forgotten.
pub(super) const LIARS_MAX: usize = 1_024;
/// Ledgers closed without a host's NOVEL before its users are taken to be gone.
pub(super) const HOST_MISSED_MAX: u32 = 3;
/// Closed ledgers without a node's NOVEL before it is no longer waited for.
pub(super) const SUSPECT_MISSED: u32 = 2;
/// First wait before messages are sent again; doubles to [`RETRANSMIT_MAX_MS`] while nothing new arrives.
pub(super) const RETRANSMIT_MS: u64 = 100;
/// Longest wait before messages are sent again.
pub(super) const RETRANSMIT_MAX_MS: u64 = 2_000;
/// How long data that is probably on its way is waited for before it is asked for.
pub(super) const FETCH_PATIENCE_MS: u64 = 20;
/// How long one peer has to answer a GET before another is asked.
pub(super) const FETCH_TIMEOUT_MS: u64 = 300;
/// How often a node says where it stands.
pub(super) const STATUS_MS: u64 = 5_000;
/// The same CLOSED or STATUS, or any full PRESENCE, is not sent to one peer again before this.
pub(super) const REPLY_MS: u64 = 100;
/// Bytes from memory with which one peer's GETs are answered in [`REPLY_MS`]: a full ledger's inputs and bodies. Past it
/// a GET is not answered; the peer asks again, or another.
pub(super) const ANSWERS_BYTES_MAX: usize = INPUTS_BYTES_MAX + (8 << 20);
/// What an answer costs beside its bytes, against many small ones.
pub(super) const ANSWER_COST_BYTES: usize = 256;
