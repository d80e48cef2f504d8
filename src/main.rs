//! The `hp` program.

fn main() {
    if std::env::args_os().nth(1).is_some_and(|arg| arg == hotpocket::contract::LAUNCHER_ARG) {
        hotpocket::contract::launcher_main();
    }
}
