//! Mistakes made on purpose, one at a time, to see that the checks find them: `tests/sim/mutations.rs` says of each
//! what does.
//!
//! `mutated!(Name)` stands where the mistake would be made. In the product it is `false` and nothing is left of it; in
//! a unit test it asks a switch of the test's own thread.

/// Whether the mistake of this name is being made. Never in the product.
#[cfg(not(test))]
macro_rules! mutated {
    ($mistake:ident) => {
        false
    };
}

/// Whether the mistake of this name is being made, on this thread.
#[cfg(test)]
macro_rules! mutated {
    ($mistake:ident) => {
        $crate::consensus::mutation::is_on($crate::consensus::mutation::Mutation::$mistake)
    };
}

pub(super) use mutated;

#[cfg(test)]
pub use made::*;

#[cfg(test)]
mod made {
    use std::{
        cell::{Cell, RefCell},
        collections::BTreeMap,
    };

    use crate::types::{Hash, NodeKey};

    /// A mistake that somebody could make in the core.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Mutation {
        /// An ADVANCE reports no POLC.
        HidePolc,
        /// A coordinator is free to propose whatever the Tc reports.
        IgnoreTcMaximum,
        /// A PRECOMMIT follows an ADVANCE beyond it.
        PrecommitAfterAdvance,
        /// A restart forgets the PREVOTEs.
        ForgetPrevote,
        /// A restart forgets the POLCs.
        ForgetPolc,
        /// A restart forgets the ADVANCE.
        ForgetAdvance,
        /// A restart forgets the Tc.
        ForgetTc,
        /// One signer is counted twice.
        CountTwice,
        /// One vote less than a quorum is a certificate.
        OneVoteLess,
        /// A novel, or a ledger, of another parent is taken.
        NoParentCheck,
        /// The attempt of a PREVOTE or PRECOMMIT is not signed.
        UnsignedField,
        /// Inputs are hashed in the order in which they came.
        ArrivalOrder,
        /// The bytes of inputs are in memory alone.
        BytesNotDurable,
        /// What comes again for the attempt under way starts its timer again.
        RestartedTimer,
        /// A node whose run differed signs the agreed result too.
        SecondResult,
        /// Inputs of two origins with one number are taken for one.
        KeyWithoutOrigin,
        /// An input of a session does not wait for the one before it.
        Overtake,
        /// A node proposes nothing in a round that it was restarted in.
        NoProposeAfterRestart,
        /// A node votes for its coordinator's header without deriving it.
        UnderivedPrevote,
        /// A forwarded Tc is taken without the POLC that it names.
        TcFwdWithoutPolc,
        /// A proposal is looked at when it comes, and not again when what it rests on is there.
        ProposeOnce,
        /// What was kept for the next round is not checked when that begins.
        UncheckedFuture,
        /// One operator's vote less than a quorum changes the UNL.
        OneUnlVoteLess,
        /// The quorum of the old UNL stays after a change.
        OldQuorum,
        /// Signatures cover the old UNL after a change.
        OldScope,
        /// A vote that has done its work is not taken back.
        KeptUnlVote,
        /// A node that lost its journal votes at once.
        VoteThoughSilent,
        /// A node votes that does not know which inputs the ledgers had that it passed over.
        VoteWithGap,
        /// One vote less than a quorum records a settlement.
        OneSettlementVoteLess,
        /// What members say of the bus is taken though it does not follow.
        AnySettlement,
        /// A node votes, closes and takes inputs that has no room left on its disk.
        VoteThoughPaused,
        /// A node that has room again forgets the run that waited for it.
        ForgetPausedRun,
    }

    impl Mutation {
        /// All of them.
        pub const ALL: [Mutation; 32] = [
            Mutation::HidePolc,
            Mutation::IgnoreTcMaximum,
            Mutation::PrecommitAfterAdvance,
            Mutation::ForgetPrevote,
            Mutation::ForgetPolc,
            Mutation::ForgetAdvance,
            Mutation::ForgetTc,
            Mutation::CountTwice,
            Mutation::OneVoteLess,
            Mutation::NoParentCheck,
            Mutation::UnsignedField,
            Mutation::ArrivalOrder,
            Mutation::BytesNotDurable,
            Mutation::RestartedTimer,
            Mutation::SecondResult,
            Mutation::KeyWithoutOrigin,
            Mutation::Overtake,
            Mutation::NoProposeAfterRestart,
            Mutation::UnderivedPrevote,
            Mutation::TcFwdWithoutPolc,
            Mutation::ProposeOnce,
            Mutation::UncheckedFuture,
            Mutation::OneUnlVoteLess,
            Mutation::OldQuorum,
            Mutation::OldScope,
            Mutation::KeptUnlVote,
            Mutation::VoteThoughSilent,
            Mutation::VoteWithGap,
            Mutation::OneSettlementVoteLess,
            Mutation::AnySettlement,
            Mutation::VoteThoughPaused,
            Mutation::ForgetPausedRun,
        ];
    }

    thread_local! {
        static ON: Cell<Option<Mutation>> = const { Cell::new(None) };
        static ARRIVALS: RefCell<BTreeMap<(NodeKey, Hash), usize>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// Whether this mistake is being made on this thread.
    pub fn is_on(mutation: Mutation) -> bool {
        ON.get() == Some(mutation)
    }

    /// Makes a mistake on this thread until it is dropped, also by a panic.
    pub struct Mutated;

    impl Mutated {
        /// From now on.
        pub fn by(mutation: Mutation) -> Mutated {
            assert_eq!(ON.replace(Some(mutation)), None, "one mistake at a time");
            Mutated
        }
    }

    impl Drop for Mutated {
        fn drop(&mut self) {
            ON.set(None);
            ARRIVALS.take();
        }
    }

    /// Notes that an input came to a node, for [`Mutation::ArrivalOrder`].
    pub fn note_arrival(node: NodeKey, id: Hash) {
        if is_on(Mutation::ArrivalOrder) {
            ARRIVALS.with_borrow_mut(|arrivals| {
                let next = arrivals.len();
                arrivals.entry((node, id)).or_insert(next);
            });
        }
    }

    /// When an input came to a node, among all.
    pub fn arrival(node: NodeKey, id: Hash) -> usize {
        ARRIVALS.with_borrow(|arrivals| arrivals.get(&(node, id)).copied().unwrap_or(usize::MAX))
    }
}
