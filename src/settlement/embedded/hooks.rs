//! What a test may have the embedded bus do, so that every way a real one fails can be tried without one.

use serde::{Deserialize, Serialize};

use crate::settlement::tx::{Landed, Operation};

/// One thing to do from now on. As JSON: `{"drop_reply":1}`, `"rotate_txv"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// So many broadcasts get no reply: the connection breaks when the operation is in the log.
    DropReply(u32),
    /// So many broadcasts are answered with 429, though the operation lands.
    RefuseLanded(u32),
    /// So many broadcasts are answered with 200, though the operation does not land.
    LoseAccepted(u32),
    /// What is accepted is confirmed so many milliseconds later; 0 is at once, also for what waits already.
    ConfirmAfterMs(u64),
    /// What is accepted is not confirmed until `ConfirmAfterMs` says otherwise.
    HoldConfirmations,
    /// Other indexers, so that what was signed before is refused.
    RotateTxv,
    /// The first indexers again, so that what was signed for them lands after all.
    RestoreTxv,
    /// An address loses all that it has.
    Impoverish(String),
    /// Operations are shown with another content hash than they have.
    Lie(bool),
    /// Nothing is answered, until it is again.
    Hang(bool),
    /// Operations are shown with another signature than they have.
    Forge(bool),
}

/// What was asked for and is still to be done.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    pub(super) drop_reply: u32,
    pub(super) refuse_landed: u32,
    pub(super) lose_accepted: u32,
    pub(super) confirm_after_ms: u64,
    pub(super) hold: bool,
    pub(super) shown: Shown,
}

/// How operations are shown.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shown {
    /// With another content hash.
    pub(super) lie: bool,
    /// With another signature.
    pub(super) forge: bool,
}

impl Shown {
    pub(super) fn of(self, mut landed: Landed) -> Landed {
        if let (true, Operation::Tx(tx)) = (self.lie, &mut landed.signed.operation) {
            tx.ch.0[0] ^= 0xff;
        }
        if self.forge {
            landed.signed.sig.0[0] ^= 0xff;
        }
        landed
    }
}

/// Counts one down, if there is one.
pub(super) fn one_of(count: &mut u32) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}
