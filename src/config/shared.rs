//! The values that must be alike on every node and stay for the life of a chain, and their hash.

use borsh::{BorshDeserialize, BorshSerialize};

use super::{Config, Identity, Inputs, MsbNetwork};
use crate::types::{Execute, Hash};

/// Limits that are built in, and part of what nodes agree on. What happens at each: `docs/protocol.md`, "Limits".
pub mod caps {
    /// Inputs in one ledger; further ones wait for the next.
    pub const LEDGER_INPUTS_MAX: u64 = 16_384;
    /// Bytes of inputs in one ledger; further inputs wait for the next.
    pub const LEDGER_INPUT_BYTES_MAX: u64 = 16 << 20;
    /// Users coming or going in one NOVEL; the rest go into the next.
    pub const NOVEL_USERS_MAX: u64 = 4_096;
    /// Bytes of one message on the node party line; a longer one ends the run.
    pub const NPL_FRAME_BYTES_MAX: u64 = 64 << 10;
    /// Bytes on the node party line in one ledger; over it, the run ends with a limit.
    pub const NPL_LEDGER_BYTES_MAX: u64 = 16 << 20;
}

/// Names of the built-in values start so; they are no keys of the file.
const BUILT_IN: &str = "built-in ";

macro_rules! shared {
    ($($key:literal => $name:ident: $type:ty = $doc:literal,)*) => {
        /// What `cfg_hash` covers, each in the unit of its key. Field order is part of the protocol.
        #[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
        pub struct SharedConfig {
            $(#[doc = $doc] pub $name: $type,)*
        }

        impl SharedConfig {
            /// Every key of the file that is shared, named with its table, and its value in TOML, empty for one that is left
            /// out; in field order.
            pub fn settings(&self) -> Vec<(&'static str, String)> {
                let mut settings = vec![$(($key, self.$name.toml())),*];
                settings.retain(|(key, _)| !key.starts_with(BUILT_IN));
                settings
            }

            /// Every key that differs: its name, my value, theirs.
            pub fn differences(&self, theirs: &SharedConfig) -> Vec<(&'static str, String, String)> {
                let mut all = Vec::new();
                $(if self.$name != theirs.$name {
                    all.push(($key, self.$name.to_string(), theirs.$name.to_string()));
                })*
                all
            }

            /// The first key that differs: its name, my value, theirs. `None` if all are alike.
            pub fn first_difference(&self, theirs: &SharedConfig) -> Option<(&'static str, String, String)> {
                self.differences(theirs).into_iter().next()
            }
        }
    };
}

shared! {
    "consensus.threshold" => threshold: u64 = "Percent of the UNL.",
    "consensus.time_res_ms" => time_res_ms: u64 = "Milliseconds.",
    "consensus.input_window" => input_window: u64 = "Ledgers.",
    "user.inputs" => inputs: Inputs = "Which inputs are taken.",
    "user.users_max" => users_max: u64 = "Users of one ledger.",
    "pubmaxsize" => pubmaxsize: u64 = "Bytes of one input.",
    "contract.time_limit_s" => time_limit_s: u64 = "Seconds.",
    "contract.cpu_s" => cpu_s: u64 = "Seconds; 0: no limit.",
    "contract.memory_mb" => memory_mb: u64 = "Mebibytes; 0: no limit.",
    "contract.files" => files: u64 = "Open files, beside two a user.",
    "contract.processes" => processes: u64 = "Processes.",
    "contract.file_mb" => file_mb: u64 = "Mebibytes.",
    "contract.output_mb" => output_mb: u64 = "Mebibytes.",
    "contract.output_user_mb" => output_user_mb: u64 = "Mebibytes.",
    "contract.npl_window_ms" => npl_window_ms: u64 = "Milliseconds.",
    "contract.network" => network: bool = "Whether the contract may use the network.",
    "contract.state_mb" => state_mb: u64 = "Mebibytes; 0: no limit.",
    "contract.state_files" => state_files: u64 = "Files, folders and symlinks; 0: no limit.",
    "built-in ledger inputs" => ledger_inputs_max: u64 = "[`caps::LEDGER_INPUTS_MAX`].",
    "built-in ledger input bytes" => ledger_input_bytes_max: u64 = "[`caps::LEDGER_INPUT_BYTES_MAX`].",
    "built-in NOVEL users" => novel_users_max: u64 = "[`caps::NOVEL_USERS_MAX`].",
    "built-in NPL frame bytes" => npl_frame_bytes_max: u64 = "[`caps::NPL_FRAME_BYTES_MAX`].",
    "built-in NPL ledger bytes" => npl_ledger_bytes_max: u64 = "[`caps::NPL_LEDGER_BYTES_MAX`].",
    "msb.network" => msb_network: MsbNetwork = "Which network of the bus.",
    "msb.bootstrap" => msb_bootstrap: Identity = "The bus's own.",
    "msb.subnet" => msb_subnet: Identity = "The subnet's.",
    "msb.settle_every" => settle_every: u64 = "Ledgers.",
    "msb.settle_max_delay_s" => settle_max_delay_s: u64 = "Seconds.",
    "msb.settle_slot_s" => settle_slot_s: u64 = "Seconds.",
    "msb.execute" => execute: Execute = "When users' outputs are final.",
}

/// A shared value as it stands in the file.
trait Setting {
    fn toml(&self) -> String;
}

impl Setting for u64 {
    fn toml(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    fn toml(&self) -> String {
        self.to_string()
    }
}

impl Setting for Inputs {
    fn toml(&self) -> String {
        super::quoted(&self.to_string())
    }
}

impl Setting for Execute {
    fn toml(&self) -> String {
        super::quoted(&self.to_string())
    }
}

impl Setting for MsbNetwork {
    fn toml(&self) -> String {
        super::quoted(&self.to_string())
    }
}

impl Setting for Identity {
    fn toml(&self) -> String {
        self.0.map(|hash| super::quoted(&hash.to_string())).unwrap_or_default()
    }
}

impl BorshSerialize for Identity {
    fn serialize<W: borsh::io::Write>(&self, writer: &mut W) -> borsh::io::Result<()> {
        self.0.unwrap_or(Hash::ZERO).serialize(writer)
    }
}

impl BorshDeserialize for Identity {
    fn deserialize_reader<R: borsh::io::Read>(reader: &mut R) -> borsh::io::Result<Identity> {
        let hash = Hash::deserialize_reader(reader)?;
        Ok(Identity((hash != Hash::ZERO).then_some(hash)))
    }
}

impl Config {
    /// The values that all nodes must have alike.
    pub fn shared(&self) -> SharedConfig {
        SharedConfig {
            threshold: self.consensus.threshold,
            time_res_ms: self.consensus.time_res_ms,
            input_window: self.consensus.input_window,
            inputs: self.user.inputs,
            users_max: self.user.users_max as u64,
            pubmaxsize: self.pubmaxsize,
            time_limit_s: self.contract.time_limit_ms / 1_000,
            cpu_s: self.contract.cpu_s.unwrap_or(0),
            memory_mb: self.contract.memory_bytes.unwrap_or(0) >> 20,
            files: self.contract.files,
            processes: self.contract.processes,
            file_mb: self.contract.file_bytes >> 20,
            output_mb: self.contract.output_bytes >> 20,
            output_user_mb: self.contract.output_user_bytes >> 20,
            npl_window_ms: self.contract.npl_window_ms,
            network: self.contract.network,
            state_mb: self.contract.state_bytes >> 20,
            state_files: self.contract.state_files,
            ledger_inputs_max: caps::LEDGER_INPUTS_MAX,
            ledger_input_bytes_max: caps::LEDGER_INPUT_BYTES_MAX,
            novel_users_max: caps::NOVEL_USERS_MAX,
            npl_frame_bytes_max: caps::NPL_FRAME_BYTES_MAX,
            npl_ledger_bytes_max: caps::NPL_LEDGER_BYTES_MAX,
            msb_network: self.msb.network,
            msb_bootstrap: Identity(self.msb.bootstrap),
            msb_subnet: Identity(self.msb.subnet),
            settle_every: self.msb.settle_every,
            settle_max_delay_s: self.msb.settle_max_delay_ms / 1_000,
            settle_slot_s: self.msb.settle_slot_ms / 1_000,
            execute: self.msb.execute,
        }
    }

    /// H("hp/cfg/1", [`SharedConfig`]). Part of the genesis, so that nodes that differ never mix.
    pub fn cfg_hash(&self) -> Hash {
        Hash::tagged("hp/cfg/1", &self.shared())
    }
}
