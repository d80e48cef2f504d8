//! Every integration test, as one binary: one link step, and modules that share helpers.

mod cli;
mod contract;
mod golden;
mod sim;
mod tidy;
