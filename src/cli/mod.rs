//! The `hp` command: one file per family of subcommands.
//!
//! A subcommand is an `Args` struct with a `run` method in its own file, a variant of `Command`, and a line in
//! [`main`]. It logs on stderr and answers on stdout through [`answer`].

mod author;
mod backup;
pub mod client;
mod config_check;
mod dev;
mod diverge;
mod ledger;
mod msb;
mod new;
mod progress;
mod recover;
mod rekey;
mod reload;
mod replay;
mod run;
mod scratch;
mod status;
mod tty;
mod unl;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::EnvFilter;

pub use self::dev::ReservedPorts;
use crate::{
    config::{ConfigError, LogFormat, LogLevel},
    ledger::view,
};

/// How the process ends. The numbers are part of the command's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Not done.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// `cfg/hp.cfg` is missing, unreadable or wrong.
    Config = 3,
    /// The ledger database is damaged.
    Database = 4,
    /// A port, or the lock of the contract folder, is taken.
    Taken = 5,
    /// No answer in time.
    NoAnswer = 6,
    /// Ended by Ctrl-C or SIGTERM before it was done.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a subcommand failed, and how the process ends for it.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What to tell, with its chain of causes; `None` when it was told already.
    pub error: Option<anyhow::Error>,
}

impl Failure {
    /// A failure with an exit code of its own.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Failure {
        Failure { exit, error: Some(error.into()) }
    }

    /// A failure that was told where it happened.
    pub fn told(exit: Exit) -> Failure {
        Failure { exit, error: None }
    }
}

/// Any error fails with [`Exit::Failed`], but for two kinds anywhere in its chain: a [`ConfigError`] is [`Exit::Config`], and a
/// database that cannot be shown is [`Exit::Database`].
impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        let error = error.into();
        let exit = if error.chain().any(|cause| cause.is::<ConfigError>()) {
            Exit::Config
        } else if error.chain().any(|cause| cause.is::<view::Unreadable>()) {
            Exit::Database
        } else {
            Exit::Failed
        };
        Failure { exit, error: Some(error) }
    }
}

/// What a subcommand comes to.
pub type Outcome = Result<(), Failure>;

const EXAMPLES: &str = "\
Examples:
  hp new mynode                                 a node of a new contract
  hp new second --join mynode/cfg/hp.cfg        another node of the same contract
  hp run mynode                                 run it
  hp status mynode                              where does it stand?
  hp ledger verify mynode                       is its chain right?
  hp msb verify mynode                          what of it is settled, and does the bus have it?
  hp backup mynode mynode.tar                   a copy of a node, also while it runs
  hp replay mynode --from 100 --binary ./new    what would another contract have changed?
  hp diverge show mynode                        why do results differ?
  hp unl list mynode                            which nodes decide, and who votes for another one?
  hp client ws://127.0.0.1:8080                 talk to the contract through a node's user port
  hp exec mycontract --text alice=hi            run a contract once, offline, and see what comes of it
  hp check mycontract                           does it come to the same on every node?
  hp dev mycontract --nodes 3                   a whole network on this machine, to try a contract
  hp msb serve mybus                            a settlement bus of your own, for trying
  hp config check mynode                        is the configuration right, what does it tolerate?

The short forms `hp DIR -n` (new), `hp DIR -k` (rekey) and `hp DIR` (run) work too.

Exit codes: 0 ok, 1 failed, 2 usage, 3 configuration, 4 database damaged, 5 port or lock taken, 6 no answer in time.";

/// Runs any executable as a tamper-proof service on a network of machines.
#[derive(Debug, Parser)]
#[command(name = "hp", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    New(new::New),
    Run(run::Run),
    Client(client::ClientArgs),
    Dev(dev::Dev),
    Exec(author::exec::Exec),
    Check(author::check::Check),
    Status(status::Status),
    Ledger(ledger::Ledger),
    Unl(unl::Unl),
    Replay(replay::Replay),
    Diverge(diverge::Diverge),
    Msb(msb::Msb),
    Recover(recover::Recover),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Rekey(rekey::Rekey),
    Config(config_check::Config),
    /// Print the version.
    Version,
}

/// The `hp` command: takes the arguments after the program's name, prints, returns how the process ends.
///
/// Errors go to stderr as `error: what: caused by`, answers to stdout.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    let args: Vec<OsString> = args.into_iter().collect();
    let args = short_form(&args).unwrap_or(args);
    let cli = match Cli::try_parse_from(std::iter::once("hp".into()).chain(args)) {
        Ok(cli) => cli,
        Err(message) => {
            // Nothing is left to do about a closed output.
            let _ = message.print();
            return if message.use_stderr() { Exit::Usage } else { Exit::Ok };
        }
    };
    let outcome = match cli.command {
        Command::New(new) => new.run(),
        Command::Run(run) => run.run(),
        Command::Client(args) => client::main(args),
        Command::Dev(dev) => dev.run(),
        Command::Exec(exec) => exec.run(),
        Command::Check(check) => check.run(),
        Command::Status(status) => status.run(),
        Command::Ledger(ledger) => ledger.run(),
        Command::Unl(unl) => unl.run(),
        Command::Replay(replay) => replay.run(),
        Command::Diverge(diverge) => diverge.run(),
        Command::Msb(msb) => msb.run(),
        Command::Recover(recover) => recover.run(),
        Command::Backup(backup) => backup.run(),
        Command::Restore(restore) => restore.run(),
        Command::Rekey(rekey) => rekey.run(),
        Command::Config(config) => config.run(),
        Command::Version => answer(concat!("hp ", env!("CARGO_PKG_VERSION"), "\n")),
    };
    match outcome {
        Ok(()) => Exit::Ok,
        Err(Failure { exit, error }) => {
            if let Some(error) = error {
                let _ = writeln!(io::stderr(), "error: {error:#}");
            }
            exit
        }
    }
}

/// The prototype's form, `hp DIR [-n|-k]`, as a subcommand. `None` if the arguments have another form.
///
/// Without -n or -k it needs an existing folder, so that a misspelt subcommand is told as such.
fn short_form(args: &[OsString]) -> Option<Vec<OsString>> {
    let is_flag = |arg: &&OsString| *arg == "-n" || *arg == "-k";
    let flag = args.iter().take(2).find(is_flag);
    let dir = args.iter().take(2).find(|arg| !is_flag(arg))?;
    let known = |name: &OsString| name == "help" || Cli::command().find_subcommand(name).is_some();
    if dir.as_encoded_bytes().starts_with(b"-") || args.first().is_none_or(known) {
        return None;
    }
    let subcommand = match flag {
        Some(flag) if flag == "-n" => "new",
        Some(_) => "rekey",
        None if Path::new(dir).is_dir() => "run",
        None => return None,
    };
    let rest = args.iter().skip(if flag.is_some() { 2 } else { 1 });
    Some([&OsString::from(subcommand), dir].into_iter().chain(rest).cloned().collect())
}

/// Writes an answer to stdout. A reader that has gone away is a failure, not a panic.
pub fn answer(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::from(anyhow::Error::new(error).context("cannot write the answer")))
}

/// Starts logging to stderr, in colours only on a terminal. Later calls change nothing.
///
/// `level` is for Hot Pocket itself; libraries tell errors alone, for what they warn of is usual on a network. The
/// environment variable RUST_LOG, if it is set and makes sense, decides instead.
pub fn start_logging(level: LogLevel, format: LogFormat) {
    let _ = start_logging_above(level, format, MultiProgress::with_draw_target(ProgressDrawTarget::hidden()));
}

/// Takes another level for the log that was started; whether it could.
type SetLevel = Box<dyn Fn(LogLevel) -> bool + Send>;

/// What is logged at a level, where RUST_LOG does not say otherwise.
fn filter(level: LogLevel) -> EnvFilter {
    let level = level.name();
    let ours = EnvFilter::new(format!("error,hotpocket={level},hp={level}"));
    match std::env::var_os("RUST_LOG") {
        Some(value) if !value.is_empty() => EnvFilter::try_from_default_env().unwrap_or(ours),
        _ => ours,
    }
}

/// The same as [`start_logging`], above bars that are drawn meanwhile; and by what the level is changed later.
fn start_logging_above(level: LogLevel, format: LogFormat, bars: MultiProgress) -> SetLevel {
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter(level)).with_ansi(colours);
    let builder = builder.with_writer(progress::AboveBars(bars));
    // Fails if a subscriber is set already; then that one stays.
    match format {
        LogFormat::Text => {
            let builder = builder.with_target(false).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Box::new(move |level| handle.reload(filter(level)).is_ok())
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Box::new(move |level| handle.reload(filter(level)).is_ok())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(args: &[&str]) -> Option<Vec<String>> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        Some(short_form(&args)?.iter().map(|arg| arg.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn the_arguments_are_declared_without_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_short_form_is_told_from_subcommands() {
        let words = |text: &str| Some(text.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(short(&["node", "-n"]), words("new node"));
        assert_eq!(short(&["-n", "node"]), words("new node"));
        assert_eq!(short(&["node", "-k", "--force"]), words("rekey node --force"));
        assert_eq!(short(&["/"]), words("run /"), "an existing folder");
        for other in
            [&["no/such/folder"][..], &["new", "-n"], &["--help"], &["-n"], &[], &["help", "-n"], &["-x", "-n"]]
        {
            assert_eq!(short(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_configuration_error_anywhere_in_the_chain_is_exit_3() {
        let error = || ConfigError::NotText { path: "x".into(), what: "y".into() };
        assert_eq!(Failure::from(error()).exit, Exit::Config);
        assert_eq!(Failure::from(anyhow::Error::new(error()).context("z")).exit, Exit::Config);
        assert_eq!(Failure::from(anyhow::anyhow!("z")).exit, Exit::Failed);
    }
}
