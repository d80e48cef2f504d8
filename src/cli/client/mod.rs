//! `hp client`: talks to the user port of a node from a terminal.
//!
//! In signed mode unless told otherwise: inputs are signed one by one, outputs are shown when a quorum's signatures prove
//! them. Reading order: this file, `connection` (the handshake, raw frames), `signed` (signed frames), `talk` (what is
//! owed to whom), `converse` (the loop over several nodes), `screen` (how it is shown), `prompt` (where it is typed), `raw`,
//! `terminal`, `keys`.

mod connection;
mod converse;
mod keys;
mod prompt;
mod raw;
mod screen;
mod servers;
mod signed;
mod talk;
mod terminal;

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

pub use self::{
    connection::{ClientError, Frame, RawClient},
    servers::Servers,
    signed::{Pins, SignedClient},
};
use self::{
    converse::Say,
    keys::{Nonces, default_key_path, load_key},
    prompt::{Prompt, read_input},
    screen::{Form, Screen},
    terminal::read_lines,
};
use super::{Exit, Failure, Outcome};
use crate::{
    crypto::SecretKey,
    types::{Hash, NodeKey, Seq},
};

/// Exit code: done.
const OK: i32 = 0;
/// Exit code: the node refused the input.
const FAILED: i32 = 1;
/// Exit code: no answer in time.
const NO_ANSWER: i32 = 6;
/// Exit code: interrupted from the keyboard, as shells count it.
const INTERRUPTED: i32 = 130;

const EXAMPLES: &str = "\
Examples:
  hp client 127.0.0.1:8080                        type a line, press Enter; Ctrl-D ends it
  hp client 127.0.0.1:8080 < lines.txt            for scripts: outputs alone on stdout
  hp client 127.0.0.1:8080 --once hello           one input, one answer
  hp client 127.0.0.1:8080 --read hello           one question to the contract, without a ledger
  hp client wss://10.0.0.1:8080 --ca tls.crt      over TLS, with the certificate of this file
  hp client 127.0.0.1:8080 --send photo.jpg       a file as one input, one answer
  hp client 10.0.0.1:8080,10.0.0.2:8080           two nodes: when one dies, the other goes on

Each line is one input and is sent with the newline at its end, because a contract gets the inputs of a ledger joined.
--once, --read and --send send exactly what they are given. Where lines are typed, those that begin with a slash are commands: \
`/help` lists them, `//TEXT` sends /TEXT. On a terminal, outputs are marked with `< `; elsewhere they are written as they are.

--json writes one object a line for all that happens, with an `event`: connected, accepted (nonce, seq, latency_ms), output \
(seq, text or hex), rejected (nonce, reason, message, advice), failed (seq, status), answer, no_answer, not_final, settled, lcl, note, \
disconnected, error.

Every input is signed with your key and taken at most once, whichever nodes it is sent to. An output is shown when a
quorum of the network's members signed for it. Who they are the node says, unless you do: --chain pins the network with
its first members, --unl those of some time since. When members come or go, those before them have signed it, and that is \
followed. --raw talks as Hot Pocket 0.1 did: the node's word for everything.

Exit codes: 0 ok, 1 refused, a wrong proof or no connection, 6 no answer in time.";

/// Talk to a contract through the user port of a node.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ClientArgs {
    /// User ports: ws://HOST:PORT, wss://HOST:PORT (TLS) or HOST:PORT; several, with commas between them, stand in for each other
    #[arg(required_unless_present = "nodes", value_name = "URL", value_delimiter = ',')]
    urls: Vec<String>,
    /// One more node to turn to when the others do not answer
    #[arg(long = "node", value_name = "URL", value_delimiter = ',')]
    nodes: Vec<String>,
    /// File with your secret key (64 hexadecimal digits); a new key is written there when it is missing
    /// [default: ~/.config/hotpocket/client.key]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Send this one input, without a newline, print the answer alone, and exit; uses a throw-away key unless --key is
    /// given
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    once: Option<String>,
    /// Ask the contract this, without a ledger, print the answer alone, and exit. The answer is the node's word: nothing
    /// proves it. Uses a throw-away key unless --key is given
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with_all = ["raw", "once", "since"])]
    read: Option<String>,
    /// Send this file (- is stdin) as one input, print the answer alone, and exit; uses a throw-away key unless --key is
    /// given
    #[arg(long, value_name = "FILE", conflicts_with_all = ["raw", "once", "read", "since"])]
    send: Option<PathBuf>,
    /// Write all that happens as one JSON object a line
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// Seconds to wait for an answer, or for a node when none can be reached
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// The chain's id: only its nodes, with the threshold and the members it began with, and those who followed these
    #[arg(long, value_name = "HASH", conflicts_with = "raw")]
    chain: Option<Hash>,
    /// Behind wss://, trust the certificates in this file, or the one certificate with the fingerprint sha256:HEX
    #[arg(long, value_name = "FILE")]
    ca: Option<String>,
    /// The network's members, or those it had once: only their signatures count, and of those who followed them
    #[arg(long, value_name = "KEY,...", value_delimiter = ',', conflicts_with = "raw")]
    unl: Vec<NodeKey>,
    /// Show the outputs of the ledgers after this one too, as far as the node keeps them; 0 for all
    #[arg(long, value_name = "SEQ", conflicts_with_all = ["raw", "once"])]
    since: Option<Seq>,
    /// Talk as Hot Pocket 0.1 did: nothing is signed but the challenge, nothing is proven
    #[arg(long)]
    raw: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time <= Duration::from_secs(86_400) => Ok(time),
        _ => Err("expected 0 to 86400 seconds".to_owned()),
    }
}

/// Runs `hp client`.
pub(super) fn main(args: ClientArgs) -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let code = runtime.block_on(run(args));
    // A thread may still wait for a line of the terminal.
    runtime.shutdown_background();
    match code? {
        OK => Ok(()),
        NO_ANSWER => Err(Failure::told(Exit::NoAnswer)),
        INTERRUPTED => Err(Failure::told(Exit::Interrupted)),
        _ => Err(Failure::told(Exit::Failed)),
    }
}

/// Runs `hp client` within a runtime. Returns the exit code; the reason was told.
pub async fn run(args: ClientArgs) -> anyhow::Result<i32> {
    let is_one = args.once.is_some() || args.read.is_some() || args.send.is_some();
    let path = match &args.key {
        Some(path) => Some(path.clone()),
        None if is_one => None,
        None => Some(default_key_path()?),
    };
    let key = match &path {
        Some(path) => load_key(path)?,
        None => SecretKey::generate(),
    };
    if args.raw { run_raw(&args, &key).await } else { run_signed(&args, key, path).await }
}

async fn run_raw(args: &ClientArgs, key: &SecretKey) -> anyhow::Result<i32> {
    let [url] = &args.all_urls()[..] else { bail!("--raw talks to one node") };
    let servers = args.servers()?;
    let mut interrupts = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let client = tokio::select! {
        connected = timeout(args.timeout, RawClient::connect_to(url, key, &servers)) => match connected {
            Ok(client) => client?,
            Err(_) => return Ok(no_answer(url, args.timeout)),
        },
        _ = interrupts.recv() => return Ok(INTERRUPTED),
    };
    // Not locked: the lock would be held while waiting.
    let mut out = io::stdout();
    let talk = raw::Talk { url, timeout: args.timeout };
    match &args.once {
        Some(input) => raw::once(client, talk, input.clone(), interrupts, &mut out).await,
        None => {
            let terminal = out.is_terminal();
            raw::converse(client, talk, read_lines(), interrupts, &mut out, terminal).await
        }
    }
}

async fn run_signed(args: &ClientArgs, key: SecretKey, key_file: Option<PathBuf>) -> anyhow::Result<i32> {
    let interrupts = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let pins = Pins { chain: args.chain, unl: (!args.unl.is_empty()).then(|| args.unl.clone()) };
    let input = args.once.as_ref().map(|text| Say::Input(text.clone().into_bytes()));
    let question = args.read.as_ref().map(|text| Say::Question(text.clone().into_bytes()));
    let file = args.send.as_deref().map(read_input).transpose()?.map(Say::Input);
    let one = input.or(question).or(file);
    // Beside the key, as it belongs to whoever has it.
    let history = key_file.as_ref().map(|file| file.with_extension("history"));
    // The terminal is as it was when this is dropped.
    let mut prompt = if one.is_none() && !args.json { Prompt::open(history) } else { None };
    let screen = match &prompt {
        Some(prompt) => Screen::above(prompt.above.clone()),
        None if args.json => Screen::standard(Form::Json),
        None if one.is_none() && io::stdout().is_terminal() => Screen::standard(Form::Terminal),
        None => Screen::standard(Form::Plain),
    };
    let nonces = Nonces::of(key_file.as_deref());
    let (urls, since, timeout) = (args.all_urls(), args.since, args.timeout);
    let servers = args.servers()?;
    let setup = converse::Setup { urls, key, nonces, pins, since, timeout, servers, key_file, screen };
    match (one, &mut prompt) {
        (Some(say), _) => converse::once(setup, say, interrupts).await,
        (None, Some(prompt)) => {
            let (_, none) = tokio::sync::mpsc::channel(1);
            let typed = std::mem::replace(&mut prompt.lines, none);
            converse::lines(setup, typed, interrupts, true).await
        }
        (None, None) => {
            // Commands are for people; a program's lines are inputs, whatever they begin with.
            let typed = io::stdin().is_terminal() && !args.json;
            converse::lines(setup, read_lines(), interrupts, typed).await
        }
    }
}

impl ClientArgs {
    fn servers(&self) -> anyhow::Result<Servers> {
        self.ca.as_deref().map(Servers::read).transpose().map(Option::unwrap_or_default)
    }

    fn all_urls(&self) -> Vec<String> {
        self.urls.iter().chain(&self.nodes).cloned().collect()
    }
}

fn no_answer(url: &str, after: Duration) -> i32 {
    eprintln!("{}", ClientError::Timeout { url: url.to_owned(), after });
    NO_ANSWER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            client: ClientArgs,
        }
        let parse =
            |line: &str| <Command as clap::Parser>::try_parse_from(line.split(' ')).map(|command| command.client);
        let client = parse("client h:1 --once -5 --timeout 0.5 --key k").unwrap();
        assert_eq!((client.once.as_deref(), client.timeout.as_millis()), (Some("-5"), 500));
        assert_eq!(parse("client h:1").unwrap().timeout, Duration::from_secs(10));
        let urls = |line: &str| parse(line).unwrap().all_urls();
        assert_eq!(urls("client a:1,b:2 --node c:3 --node d:4"), ["a:1", "b:2", "c:3", "d:4"]);
        assert_eq!(urls("client --node c:3"), ["c:3"]);
        let keys = format!("{},{}", "01".repeat(32), "02".repeat(32));
        assert_eq!(parse(&format!("client h:1 --unl {keys}")).unwrap().unl, [NodeKey([1; 32]), NodeKey([2; 32])]);
        assert_eq!(parse(&format!("client h:1 --chain {}", "03".repeat(32))).unwrap().chain, Some(Hash([3; 32])));
        for wrong in [
            "client",
            "client h:1 --timeout -1",
            "client h:1 --timeout x",
            "client h:1 --timeout inf",
            "client h:1 --unl zz",
            "client h:1 --chain 12",
            &format!("client h:1 --raw --chain {}", "03".repeat(32)),
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
