//! Every integration test, as one binary: one link step, and modules that share helpers.

mod author;
mod bus;
mod bytes;
mod chain;
mod cli;
mod cluster;
mod containment;
mod contract;
mod golden;
mod golden_users;
mod msb;
mod net;
mod screen;
mod shim;
mod strangers;
mod templates;
mod tidy;
