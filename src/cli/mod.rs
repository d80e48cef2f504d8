//! The `hp` command: one file per family of subcommands.

pub mod client;
