//! `hp msb`: the settlement bus, and what of a chain is settled on it.
//!
//! `chain` reads the headers of a folder or an export; `status` and `verify` are the subcommands.

mod chain;
mod status;
mod verify;

use clap::Subcommand;

use super::Outcome;

/// See what is settled on a settlement bus (MSB), and check it.
#[derive(Debug, clap::Args)]
pub(super) struct Msb {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::Status),
    Verify(verify::Verify),
}

impl Msb {
    pub(super) fn run(self) -> Outcome {
        match self.command {
            Command::Status(status) => status.run(),
            Command::Verify(verify) => verify.run(),
        }
    }
}

pub(super) use status::line;
