//! The `hp` binary. Everything it does is in the library; see `src/lib.rs` for the map.

use std::process::ExitCode;

use hotpocket::{cli, contract};

fn main() -> ExitCode {
    // Before anything else happens in the process: the launcher is this program again, and has to stay small.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == contract::LAUNCHER_ARG) {
        contract::launcher_main();
    }
    cli::main(std::env::args_os().skip(1)).into()
}
