//! The `hp` binary. Everything it does is in the library; see `src/lib.rs` for the map.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The hidden `__launcher` argument belongs here, before anything else happens in the process.
    hotpocket::cli::main(std::env::args_os().skip(1)).into()
}
