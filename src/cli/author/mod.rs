//! What a contract's author uses before a network does: `hp exec`, one run, shown; `hp check`, does it come to the same
//! everywhere?
//!
//! `place` is the contract to run and the copy it runs in, `users` who is in a ledger and what they sent, `view` how
//! bytes and files are shown.

pub(super) mod check;
pub(super) mod exec;
mod place;
mod users;
mod view;
