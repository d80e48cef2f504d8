//! Runs the contract: launcher, pipes, limits, fdlist, NPL.
