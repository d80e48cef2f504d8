//! Hot Pocket: runs any executable as a tamper-proof service on a network of machines.
//!
//! The map, in reading order:
//!
//! 1. [`types`]: hashes, keys, times. [`crypto`]: sign, verify, tagged hash.
//! 2. [`consensus`]: the core, pure. One event in, effects out; the state machine that closes ledgers.
//! 3. [`wire`]: peer messages as canonical bytes, and which signatures are checked before the core sees one.
//! 4. [`node`]: the loop. Events from the adapters into the core, effects from the core to the adapters, in order.
//! 5. The adapters: [`mesh`] (links to other nodes), [`gateway`] (users' websockets), [`contract`] (runs the
//!    executable), [`state`] (the contract's files and their root), [`ledger`] (the database), [`http`] (the API, the page,
//!    events).
//!    [`settlement`] (the settlement bus: its client, its transactions, and one of our own to try them on).
//!    [`verify`] checks what is in the database, as a second implementation of the protocol. [`divergence`] is what
//!    `diag/` holds where results differ.
//! 6. [`signed`]: frames of the user port's signed mode, and the proof that a user checks.
//! 7. [`tls`] and [`connections`]: what the two ports for users have in common.
//!    [`small_file`] reads certificates and the like, with a limit.
//! 8. [`config`]: `cfg/hp.cfg`. [`cli`]: the `hp` command.
//!
//! Invariants, kept by `tests/it/tidy.rs`:
//!
//! - `consensus` imports `types` alone: no tokio, files, network, environment, processes, threads, clocks,
//!   randomness, hash maps or floats. Same events in, same effects out, on every machine.
//! - Adapters never import each other, and hold no votes. Only `node` knows both sides.
//! - `verify` shares nothing with what it checks but `types` and `crypto`.
//! - `wire`, `signed`, `contract::fdlist`, `contract::npl` and `config` are pure functions over bytes.
//! - Nothing but `node` reads the wall clock. Nothing but `contract` has `unsafe`.
//! - The network of nodes and consensus run on one thread; users, HTTP, hashing, big reads and the database run off it.
//!
//! The simulator in `tests/sim` runs whole networks over the real core; see `docs/verification.md`.

pub mod cli;
pub mod config;
pub mod connections;
pub mod consensus;
pub mod contract;
pub mod crypto;
pub mod divergence;
pub mod gateway;
pub mod http;
pub mod ledger;
pub mod mesh;
pub mod node;
pub mod settlement;
pub mod signed;
pub mod small_file;
pub mod state;
pub mod tls;
pub mod types;
pub mod verify;
pub mod wire;

// The simulator is compiled with the library, so that the mistakes that `consensus::mutation` makes on purpose reach it.
#[cfg(test)]
extern crate self as hotpocket;
#[cfg(test)]
#[path = "../tests/sim/mod.rs"]
mod sim;
