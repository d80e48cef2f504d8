//! Why the results of one ledger differ, so that the contract's author can act: what `diag/<seq>/` holds.
//!
//! [`Report`] is `report.json`, [`folder`] the folders, [`difference`] finds the first byte that differs, [`hints`] what
//! the bytes there look like. Nothing here asks other nodes or decides anything; `node` does the one, nobody the other.

pub mod difference;
pub mod folder;
pub mod hints;
mod report;

pub use report::{
    Bytes, Comparison, Group, Kept, Kind, OutputDifference, PathDifference, Proof, Report, Side, What, shown_path,
};
