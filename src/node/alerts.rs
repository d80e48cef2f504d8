//! What the operator is alerted of, by kind: a name for programs, and for the row of `docs/operating.md` that says what to do.

use std::fmt;

/// An alert that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// What it is about.
    pub kind: Kind,
    /// For people: what is so, with which values, and what to do.
    pub text: String,
}

/// Declares the kinds with their names, so that none can be forgotten in the list of all.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What an alert is about. Each has its row in `docs/operating.md`, "Alerts and what to do".
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            /// As `hp status --json` and the metrics have it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// Too few members are linked to close a ledger.
    FewMembers = "few_members",
    /// A node was refused as a peer, or refuses this one.
    NoLink = "no_link",
    /// The last run failed, on all nodes alike.
    ContractFailed = "contract_failed",
    /// It is not decided whether a run was over its time.
    RunUndecided = "run_undecided",
    /// This node's result of a ledger was another than the network's.
    Diverged = "diverged",
    /// The same again and again.
    Diverging = "diverging",
    /// In what this node's run and a peer's differ.
    Differs = "differs",
    /// No result has a quorum.
    Split = "split",
    /// What was kept of the state was damaged.
    StateDamaged = "state_damaged",
    /// `state/` is not what the last ledger left.
    StateLost = "state_lost",
    /// The state is to be fetched, and that waits.
    StateWaits = "state_waits",
    /// Nobody has what this node lacks.
    Behind = "behind",
    /// The disk is nearly full, and the node stands still.
    DiskFull = "disk_full",
    /// The same of a disk that votes do not rest on.
    DiskBeside = "disk_beside",
    /// The node signs nothing.
    Silent = "silent",
    /// Another process has this node's key.
    TwinHere = "twin_here",
    /// Two processes have another node's key.
    TwinElsewhere = "twin_elsewhere",
    /// This node's key signed what this process did not.
    KeyElsewhere = "key_elsewhere",
    /// The chain cannot be followed for settling.
    SettlingChain = "settling_chain",
    /// What is done for settling cannot be written down.
    SettlingJournal = "settling_journal",
    /// The bus does not answer.
    SettlingBus = "settling_bus",
    /// The bus lies.
    SettlingLie = "settling_lie",
    /// Too few members see what this node sees.
    SettlingAlone = "settling_alone",
    /// The bus refuses what is posted.
    SettlingRefused = "settling_refused",
    /// The address that pays has not enough.
    SettlingBalance = "settling_balance",
}

impl Kind {
    /// An alert of this kind.
    pub(super) fn with(self, text: impl Into<String>) -> Alert {
        Alert { kind: self, text: text.into() }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
