//! `hp client`: talks to the user port of a node from a terminal, in raw mode (Hot Pocket 0.1).
//!
//! [`RawClient`] is the protocol alone and serves tests as well.

use std::{
    cell::Cell,
    fs,
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use futures::{SinkExt as _, Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpStream,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error as WsError, Message, Utf8Bytes,
        error::ProtocolError,
        http::Uri,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{Exit, Failure, Outcome};
use crate::{
    crypto::SecretKey,
    types::{Challenge, Sig, UserKey},
};

/// Exit code: done.
const OK: i32 = 0;
/// Exit code: the node refused the input.
const FAILED: i32 = 1;
/// Exit code: no answer in time.
const NO_ANSWER: i32 = 6;
/// Exit code: interrupted from the keyboard, as shells count it.
const INTERRUPTED: i32 = 130;

/// Bytes of one frame from a node; a longer one ends the connection. Above the largest output a contract may have.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// Bytes of one line typed or piped in; with its newline the largest `pubmaxsize` there is. A longer line is skipped
/// and said so.
const LINE_BYTES_MAX: usize = (4 << 20) - 1;

/// Lines read ahead of sending. Past it reading from stdin waits.
const LINES_MAX: usize = 64;

/// Bytes of a key file. A longer file is not a key.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Bytes of an output that is not text, shown on a terminal. Of a longer one only so many.
const BINARY_SHOWN_MAX: usize = 64;

/// Time to say goodbye.
const CLOSE_TIME: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  hp client 127.0.0.1:8080                        type a line, press Enter; Ctrl-D ends it
  hp client 127.0.0.1:8080 < lines.txt            for scripts: outputs alone on stdout
  hp client 127.0.0.1:8080 --once hello           one input, one answer

Each line is one input and is sent with the newline at its end, because a contract gets the inputs of a ledger joined.
--once sends exactly TEXT. On a terminal, outputs are marked with `< `; elsewhere they are written as they are.

Exit codes: 0 ok, 1 refused or no connection, 6 no answer in time.";

/// Talk to a contract through the user port of a node.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ClientArgs {
    /// The node's user port: ws://HOST:PORT or HOST:PORT
    url: String,
    /// File with your secret key (64 hexadecimal digits); a new key is written there when it is missing
    /// [default: ~/.config/hotpocket/client.key]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Send this one input, without a newline, print the answer alone, and exit; uses a throw-away key unless --key is
    /// given
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    once: Option<String>,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time <= Duration::from_secs(86_400) => Ok(time),
        _ => Err("expected 0 to 86400 seconds".to_owned()),
    }
}

/// What a node sent after the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// An output that is valid UTF-8.
    Text(String),
    /// Any other output.
    Binary(Bytes),
    /// The node refused something, or reports what became of an input.
    Error {
        /// One word, for programs.
        code: String,
        /// For people.
        message: String,
    },
}

/// Why talking to a node failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address of a user port.
    #[error("{url:?} is not the address of a user port ({why}); expected ws://HOST:PORT or HOST:PORT")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No connection.
    #[error("cannot connect to {url}; does the node run, and is this its ip and pubport?")]
    Connect {
        /// The address.
        url: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A connection, but no user port of a node behind it.
    #[error("{url} does not answer like the user port of a node: {why}")]
    Handshake {
        /// The address.
        url: String,
        /// What it did instead.
        why: String,
    },
    /// The node has no room.
    #[error("{url} takes no more connections: {why}")]
    Busy {
        /// The address.
        url: String,
        /// Its answer.
        why: String,
    },
    /// Nothing in time.
    #[error("no answer from {url} within {} s", .after.as_secs_f64())]
    Timeout {
        /// The address.
        url: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The node ended the connection.
    #[error("the node closed the connection{}{}", if .reason.is_empty() { "" } else { ": " }, .reason)]
    Closed {
        /// The websocket close code, when it gave one.
        code: Option<u16>,
        /// Its reason, often empty.
        reason: String,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Broken {
        /// What happened.
        source: Box<WsError>,
    },
}

/// A user's connection to a node, in raw mode: every frame sent is one input, every frame received one output.
#[derive(Debug)]
pub struct RawClient {
    websocket: WebSocketStream<TcpStream>,
    user: UserKey,
}

impl RawClient {
    /// Connects to `url` (`ws://host:port` or `host:port`) and signs the challenge with `key`.
    ///
    /// A node that refuses the signature says so in the first frame received. Waits as long as it takes.
    pub async fn connect(url: &str, key: &SecretKey) -> Result<RawClient, ClientError> {
        let (url, host, port) = parse_url(url)?;
        let connect = |source| ClientError::Connect { url: url.clone(), source };
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(16 << 10)
            .max_message_size(Some(FRAME_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX));
        let (websocket, _) = client_async_with_config(url.as_str(), stream, Some(config))
            .await
            .map_err(|error| not_ours(&url, error))?;
        let mut client = RawClient { websocket, user: key.user_key() };
        client.answer_challenge(&url, key).await?;
        Ok(client)
    }

    async fn answer_challenge(&mut self, url: &str, key: &SecretKey) -> Result<(), ClientError> {
        #[derive(Deserialize)]
        struct Offer {
            r#type: String,
            challenge: String,
        }
        #[derive(Serialize)]
        struct Helo {
            r#type: &'static str,
            challenge: String,
            sig: String,
            pubkey: String,
        }
        let unexpected = |why: &str| ClientError::Handshake { url: url.to_owned(), why: why.to_owned() };
        let challenge = match self.recv().await? {
            Frame::Text(text) => match serde_json::from_str::<Offer>(&text) {
                // Only ever signed as 32 lower-case digits: a node must not choose what this key signs.
                Ok(offer) if offer.r#type == "public_challenge" => {
                    offer.challenge.parse::<Challenge>().map_err(|_| unexpected("its challenge is malformed"))?
                }
                _ => return Err(unexpected("it sent no challenge")),
            },
            Frame::Error { code, message } => return Err(unexpected(&format!("{code}: {message}"))),
            Frame::Binary(_) => return Err(unexpected("it sent no challenge")),
        };
        let challenge = challenge.to_string();
        let sig: Sig = key.sign(challenge.as_bytes());
        let helo = Helo { r#type: "helo", sig: sig.to_string(), pubkey: self.user.to_string(), challenge };
        self.send_message(Message::text(serde_json::to_string(&helo).expect("four strings are always JSON"))).await
    }

    /// Whose connection it is.
    pub fn user(&self) -> UserKey {
        self.user
    }

    /// Sends one input: as a text frame when it is valid UTF-8, else as a binary one. The contract sees no difference.
    pub async fn send(&mut self, input: impl Into<Bytes>) -> Result<(), ClientError> {
        self.send_message(input_message(input.into())).await
    }

    async fn send_message(&mut self, message: Message) -> Result<(), ClientError> {
        self.websocket.send(message).await.map_err(broken)
    }

    /// Waits for the next frame. May be dropped while it waits; no frame is lost.
    pub async fn recv(&mut self) -> Result<Frame, ClientError> {
        next_frame(&mut self.websocket).await
    }

    /// Says goodbye and waits up to a second for the node to agree.
    pub async fn close(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let goodbye = async {
            self.websocket.close(Some(frame)).await?;
            while let Some(Ok(_)) = self.websocket.next().await {}
            Ok::<_, WsError>(())
        };
        // However it ends, the connection is over.
        let _ = timeout(CLOSE_TIME, goodbye).await;
    }
}

fn input_message(input: Bytes) -> Message {
    match Utf8Bytes::try_from(input.clone()) {
        Ok(text) => Message::Text(text),
        Err(_) => Message::Binary(input),
    }
}

async fn next_frame(
    messages: &mut (impl Stream<Item = Result<Message, WsError>> + Unpin),
) -> Result<Frame, ClientError> {
    loop {
        match messages.next().await {
            Some(Ok(Message::Text(text))) => return Ok(error_frame(&text).unwrap_or(Frame::Text(text.to_string()))),
            Some(Ok(Message::Binary(bytes))) => return Ok(Frame::Binary(bytes)),
            Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(closed(None)),
        }
    }
}

/// The whole address, the host and the port.
fn parse_url(text: &str) -> Result<(String, String, u16), ClientError> {
    let wrong = |why| ClientError::Url { url: text.to_owned(), why };
    let url = match text.split_once("://") {
        None => format!("ws://{text}"),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("ws") => text.to_owned(),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("wss") => return Err(wrong("TLS is not spoken here yet")),
        Some(_) => return Err(wrong("not a websocket scheme")),
    };
    let uri: Uri = url.parse().map_err(|_| wrong("malformed"))?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("no host"))?;
    let port = uri.port_u16().ok_or_else(|| wrong("no port"))?;
    Ok((url.clone(), host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

/// `{"type":"error","code":...,"message":...}`, which is how a node speaks for itself.
fn error_frame(text: &str) -> Option<Frame> {
    #[derive(Deserialize)]
    struct Reply {
        r#type: String,
        code: String,
        message: String,
    }
    if !text.starts_with('{') {
        return None;
    }
    let reply: Reply = serde_json::from_str(text).ok()?;
    (reply.r#type == "error").then_some(Frame::Error { code: reply.code, message: reply.message })
}

fn not_ours(url: &str, error: WsError) -> ClientError {
    let url = url.to_owned();
    match error {
        WsError::Http(response) if response.status() == 503 => {
            let body = String::from_utf8_lossy(response.body().as_deref().unwrap_or_default()).into_owned();
            let why = match error_frame(&body) {
                Some(Frame::Error { message, .. }) => message,
                _ => "HTTP status 503".to_owned(),
            };
            ClientError::Busy { url, why }
        }
        error => ClientError::Handshake { url, why: error.to_string() },
    }
}

fn broken(error: WsError) -> ClientError {
    match error {
        WsError::ConnectionClosed | WsError::AlreadyClosed => closed(None),
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => closed(None),
        error => ClientError::Broken { source: Box::new(error) },
    }
}

fn closed(frame: Option<CloseFrame>) -> ClientError {
    match frame {
        Some(frame) => ClientError::Closed { code: Some(frame.code.into()), reason: frame.reason.to_string() },
        None => ClientError::Closed { code: None, reason: String::new() },
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
    let key = match (&args.key, &args.once) {
        (Some(path), _) => load_key(path)?,
        (None, Some(_)) => SecretKey::generate(),
        (None, None) => load_key(&default_key_path()?)?,
    };
    let mut interrupts = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let connect = RawClient::connect(&args.url, &key);
    let client = tokio::select! {
        connected = timeout(args.timeout, connect) => match connected {
            Ok(client) => client?,
            Err(_) => return Ok(no_answer(&args)),
        },
        _ = interrupts.recv() => return Ok(INTERRUPTED),
    };
    // Not locked: the lock would be held while waiting.
    let mut out = io::stdout();
    match &args.once {
        Some(input) => once(client, &args, input.clone(), interrupts, &mut out).await,
        None => {
            let terminal = out.is_terminal();
            converse(client, &args, read_lines(), interrupts, &mut out, terminal).await
        }
    }
}

fn no_answer(args: &ClientArgs) -> i32 {
    let url = args.url.clone();
    eprintln!("{}", ClientError::Timeout { url, after: args.timeout });
    NO_ANSWER
}

/// One input, one answer.
async fn once(
    mut client: RawClient,
    args: &ClientArgs,
    input: String,
    mut interrupts: Signal,
    out: &mut impl io::Write,
) -> anyhow::Result<i32> {
    let answer = async {
        client.send(input).await?;
        client.recv().await
    };
    let code = tokio::select! {
        answer = timeout(args.timeout, answer) => match answer {
            Ok(Ok(Frame::Error { code, message })) => {
                eprintln!("the node refused the input: {code}: {message}");
                FAILED
            }
            Ok(Ok(answer)) => {
                print_output(out, &answer)?;
                OK
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => no_answer(args),
        },
        _ = interrupts.recv() => INTERRUPTED,
    };
    client.close().await;
    Ok(code)
}

/// What the two directions of a conversation know of each other.
struct Talk {
    reading: Cell<bool>,
    unanswered: Cell<u64>,
    last: Cell<Instant>,
}

/// Lines in, outputs out. After the last line it waits until every line had a frame back, or for `--timeout`
/// without any frame: outputs of several inputs may come as one.
async fn converse(
    client: RawClient,
    args: &ClientArgs,
    mut lines: mpsc::Receiver<Line>,
    mut interrupts: Signal,
    out: &mut impl io::Write,
    terminal: bool,
) -> anyhow::Result<i32> {
    eprintln!("connected to {} as {}", args.url, client.user());
    let user = client.user();
    let (mut sink, mut messages) = client.websocket.split();
    let state = Talk { reading: Cell::new(true), unanswered: Cell::new(0), last: Cell::new(Instant::now()) };
    let code = {
        // Sending goes on beside receiving: a node that waits for us to read takes no more from us.
        let mut sending = pin!(async {
            while let Some(line) = lines.recv().await {
                match line {
                    Line::Input(mut input) => {
                        // A contract gets the inputs of a ledger joined: a line has to bring its end along.
                        input.push(b'\n');
                        // Counted first: the answer may be here before the sending is done.
                        state.unanswered.update(|count| count + 1);
                        sink.send(input_message(input.into())).await.map_err(broken)?;
                        state.last.set(Instant::now());
                    }
                    Line::TooLong(bytes) => {
                        eprintln!("error: a line of {bytes} bytes was skipped, at most {LINE_BYTES_MAX} are sent");
                    }
                    Line::Broken(error) => return Err(error).context("cannot read the input"),
                }
            }
            state.reading.set(false);
            anyhow::Ok(())
        });
        loop {
            let reading = state.reading.get();
            if !reading && state.unanswered.get() == 0 {
                break OK;
            }
            tokio::select! {
                frame = next_frame(&mut messages) => {
                    state.last.set(Instant::now());
                    state.unanswered.update(|count| count.saturating_sub(1));
                    match frame? {
                        Frame::Error { code, message } => eprintln!("error: {code}: {message}"),
                        output if terminal => show_output(out, &output)?,
                        output => print_output(out, &output)?,
                    }
                }
                sent = &mut sending, if reading => sent?,
                () = sleep_until(state.last.get() + args.timeout), if !reading => {
                    let (lines, time) = (state.unanswered.get(), args.timeout.as_secs_f64());
                    eprintln!("{lines} lines had no frame of their own back within {time} s; answers may have come joined");
                    break OK;
                }
                _ = interrupts.recv() => break INTERRUPTED,
            }
        }
    };
    let websocket = messages.reunite(sink).context("the two halves of a connection fit")?;
    RawClient { websocket, user }.close().await;
    Ok(code)
}

/// Writes an output as it is; a text without a newline at its end gets one.
fn print_output(out: &mut impl io::Write, frame: &Frame) -> anyhow::Result<()> {
    let written = match frame {
        Frame::Text(text) => {
            let end = if text.ends_with('\n') { "" } else { "\n" };
            write!(out, "{text}{end}")
        }
        Frame::Binary(bytes) => out.write_all(bytes),
        Frame::Error { .. } => Ok(()),
    };
    written.and_then(|()| out.flush()).context("cannot write the output")
}

/// Shows an output to a person: every line is marked, and nothing in it can take the terminal over.
fn show_output(out: &mut impl io::Write, frame: &Frame) -> anyhow::Result<()> {
    let mut shown = String::new();
    match frame {
        Frame::Text(text) => {
            for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
                shown.push_str("< ");
                for char in line.strip_suffix('\r').unwrap_or(line).chars() {
                    match char {
                        '\t' => shown.push(char),
                        // What one user sent may be in the output for another one.
                        char if char.is_control() => shown.extend(char.escape_default()),
                        char => shown.push(char),
                    }
                }
                shown.push('\n');
            }
        }
        Frame::Binary(bytes) => {
            let some = &bytes[..bytes.len().min(BINARY_SHOWN_MAX)];
            let more = if some.len() < bytes.len() { "..." } else { "" };
            shown = format!("< ({} bytes that are no text) {}{more}\n", bytes.len(), hex::encode(some));
        }
        Frame::Error { .. } => {}
    }
    out.write_all(shown.as_bytes()).and_then(|()| out.flush()).context("cannot write the output")
}

enum Line {
    Input(Vec<u8>),
    TooLong(u64),
    Broken(io::Error),
}

/// Lines of stdin, read on a thread of their own: reading a terminal cannot be cancelled, and the thread simply
/// ends with the process.
fn read_lines() -> mpsc::Receiver<Line> {
    let (sender, lines) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        while let Some(line) = read_line(&mut stdin, LINE_BYTES_MAX).transpose() {
            let (line, last) = match line {
                Ok(line) => (line, false),
                Err(error) => (Line::Broken(error), true),
            };
            if sender.blocking_send(line).is_err() || last {
                break;
            }
        }
    });
    lines
}

/// The next line without its end; `None` at the end of the stream. Of a line over `max` nothing is kept.
fn read_line(stream: &mut impl io::BufRead, max: usize) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    // One byte for the newline, one more to see that it is too long.
    stream.by_ref().take(max as u64 + 2).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let ended = line.pop_if(|last| *last == b'\n').is_some();
    if ended {
        line.pop_if(|last| *last == b'\r');
    }
    if line.len() <= max {
        return Ok(Some(Line::Input(line)));
    }
    let skipped = if ended { 0 } else { skip_line(stream)? };
    Ok(Some(Line::TooLong(line.len() as u64 + skipped)))
}

fn skip_line(stream: &mut impl io::BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let chunk = stream.fill_buf()?;
        let newline = chunk.iter().position(|byte| *byte == b'\n');
        let bytes = newline.unwrap_or(chunk.len());
        let ended = newline.is_some() || chunk.is_empty();
        stream.consume(bytes + usize::from(newline.is_some()));
        skipped += bytes as u64;
        if ended {
            return Ok(skipped);
        }
    }
}

fn default_key_path() -> anyhow::Result<PathBuf> {
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".config/hotpocket/client.key")),
        None => bail!("HOME is not set, so there is no place for the client's key; give one with --key FILE"),
    }
}

/// Reads the key in `path`; writes a new one there when the file is missing.
fn load_key(path: &Path) -> anyhow::Result<SecretKey> {
    match read_key(path) {
        Err(error) if is_missing(&error) => {
            create_key(path).with_context(|| format!("cannot write a new key to {}", path.display()))?;
            let key = read_key(path)?;
            eprintln!("new key {} written to {}", key.user_key(), path.display());
            Ok(key)
        }
        key => key,
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn read_key(path: &Path) -> anyhow::Result<SecretKey> {
    let shown = path.display();
    let file = fs::File::open(path).with_context(|| format!("cannot read the key file {shown}"))?;
    let mode =
        file.metadata().with_context(|| format!("cannot read the key file {shown}"))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("others can read the key file {shown} (mode {mode:03o}); run: chmod 600 {shown}");
    }
    let mut text = String::new();
    file.take(KEY_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read the key file {shown}"))?;
    SecretKey::parse(text.trim()).with_context(|| format!("the key file {shown} holds no key"))
}

/// Writes a new key, unless somebody else just did. The file is whole and mode 0600 from its first moment.
fn create_key(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{}", hex::encode(SecretKey::generate().seed()))?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{Gateway, GatewayConfig, GatewayEvent};

    #[test]
    fn an_address_is_read_with_and_without_scheme_and_path() {
        let parts = |text: &str| parse_url(text).map(|(_, host, port)| (host, port)).unwrap();
        assert_eq!(parts("127.0.0.1:8080"), ("127.0.0.1".into(), 8080));
        assert_eq!(parts("ws://localhost:1/any/path"), ("localhost".into(), 1));
        assert_eq!(parts("[::1]:9"), ("::1".into(), 9));
        for bad in ["", "localhost", "ws://:1", "http://a:1", "wss://a:1", "a b:1", "a:99999", "ws://"] {
            let error = parse_url(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

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
        for wrong in ["client", "client h:1 --timeout -1", "client h:1 --timeout x", "client h:1 --timeout inf"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_the_nodes_own_shape_is_an_error_frame() {
        let error = r#"{"type":"error","code":"rate","message":"m"}"#;
        assert_eq!(error_frame(error), Some(Frame::Error { code: "rate".into(), message: "m".into() }));
        for output in
            [r#"{"type":"error"}"#, r#"{"type":"ok","code":"a","message":"b"}"#, r#"["error","a","b"]"#, "", "{"]
        {
            assert_eq!(error_frame(output), None, "{output}");
        }
    }

    #[test]
    fn a_new_key_is_written_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/client.key");
        let key = load_key(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), hex::encode(key.seed()));
        assert_eq!(load_key(&path).unwrap().user_key(), key.user_key());
        create_key(&path).unwrap();
        assert_eq!(load_key(&path).unwrap().user_key(), key.user_key(), "an existing key is never overwritten");
    }

    #[test]
    fn a_key_file_that_others_can_read_or_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "12").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(load_key(&path).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(load_key(&path).unwrap_err().to_string().contains("holds no key"));
        assert!(load_key(folder.path()).is_err());
    }

    #[test]
    fn lines_come_without_their_end_and_a_long_one_is_skipped_whole() {
        let mut text: &[u8] = b"a\n\r\nb\r\n12345\n123456\n1234567\nlast";
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut text, 5).unwrap() {
            lines.push(match line {
                Line::Input(bytes) => String::from_utf8(bytes).unwrap(),
                Line::TooLong(bytes) => format!("{bytes} bytes"),
                Line::Broken(error) => error.to_string(),
            });
        }
        assert_eq!(lines, ["a", "", "b", "12345", "6 bytes", "7 bytes", "last"]);
    }

    /// A node of one user: answers each input with `answer(input)`, or not at all.
    async fn node(answer: impl Fn(&[u8]) -> Option<Bytes> + Send + 'static) -> String {
        let (sender, mut events) = mpsc::channel(16);
        let config = GatewayConfig { message_bytes_max: 100, ..GatewayConfig::new("127.0.0.1:0".parse().unwrap()) };
        let gateway = Gateway::start(config, sender).await.unwrap();
        let url = gateway.local_addr().to_string();
        // Ends with the test's runtime.
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let GatewayEvent::Input { user, payload, .. } = event
                    && let Some(output) = answer(&payload)
                {
                    gateway.deliver(&user, output);
                }
            }
        });
        url
    }

    fn args(url: &str, seconds: f64) -> ClientArgs {
        ClientArgs { url: url.to_owned(), key: None, once: None, timeout: Duration::from_secs_f64(seconds) }
    }

    fn interrupts() -> Signal {
        signal(SignalKind::interrupt()).unwrap()
    }

    async fn ask(url: &str, input: &str, seconds: f64) -> (anyhow::Result<i32>, Vec<u8>) {
        let client = RawClient::connect(url, &SecretKey::from_seed([1; 32])).await.unwrap();
        let mut out = Vec::new();
        (once(client, &args(url, seconds), input.to_owned(), interrupts(), &mut out).await, out)
    }

    #[tokio::test]
    async fn one_input_prints_its_answer_alone() {
        let url = node(|input| match input {
            b"binary" => Some(Bytes::from_static(b"\xff\n\xfe")),
            b"silence" => None,
            input => Some(Bytes::copy_from_slice(input)),
        })
        .await;
        let answer = async |input: &str, seconds| {
            let (code, out) = ask(&url, input, seconds).await;
            (code.unwrap(), out)
        };
        assert_eq!(answer("hello", 20.0).await, (OK, b"hello\n".to_vec()));
        assert_eq!(answer("line\n", 20.0).await, (OK, b"line\n".to_vec()));
        assert_eq!(answer("binary", 20.0).await, (OK, b"\xff\n\xfe".to_vec()));
        assert_eq!(answer("silence", 0.05).await, (NO_ANSWER, Vec::new()));
        assert_eq!(answer(&"x".repeat(101), 20.0).await, (FAILED, Vec::new()));
    }

    async fn talk(url: &str, lines: &[&str], seconds: f64) -> (i32, String) {
        let client = RawClient::connect(url, &SecretKey::from_seed([1; 32])).await.unwrap();
        let (sender, receiver) = mpsc::channel(lines.len());
        for line in lines {
            sender.send(Line::Input(line.as_bytes().to_vec())).await.ok().unwrap();
        }
        drop(sender);
        let mut out = Vec::new();
        let code = converse(client, &args(url, seconds), receiver, interrupts(), &mut out, false).await.unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn a_conversation_ends_when_every_line_has_its_answer() {
        let url = node(|input| Some(Bytes::copy_from_slice(input))).await;
        let began = Instant::now();
        assert_eq!(talk(&url, &["a", "b", "c"], 60.0).await, (OK, "a\nb\nc\n".to_owned()));
        assert!(began.elapsed() < Duration::from_secs(30), "it did not wait for the timeout");
    }

    #[tokio::test]
    async fn a_line_is_sent_with_its_newline() {
        let url = node(|input| Some(Bytes::from(format!("{input:?}")))).await;
        assert_eq!(talk(&url, &["a", ""], 60.0).await, (OK, "[97, 10]\n[10]\n".to_owned()));
    }

    #[test]
    fn a_terminal_shows_marked_lines_and_no_control_characters() {
        let shown = |frame| {
            let mut out = Vec::new();
            show_output(&mut out, &frame).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(Frame::Text("a\tb\r\n\nü\n".into())), "< a\tb\n< \n< ü\n");
        assert_eq!(shown(Frame::Text("no end".into())), "< no end\n");
        assert_eq!(
            shown(Frame::Text("\u{1b}]0;title\u{7}\rover\u{9b}2J".into())),
            "< \\u{1b}]0;title\\u{7}\\rover\\u{9b}2J\n"
        );
        assert_eq!(shown(Frame::Binary(Bytes::from_static(b"\xff\0"))), "< (2 bytes that are no text) ff00\n");
        let long = shown(Frame::Binary(vec![0xab; 65].into()));
        assert_eq!(long, format!("< (65 bytes that are no text) {}...\n", "ab".repeat(64)));
    }

    #[tokio::test]
    async fn a_conversation_with_joined_answers_ends_after_the_timeout() {
        let url = node(|input| (input == b"last\n").then(|| Bytes::from_static(b"all three"))).await;
        assert_eq!(talk(&url, &["a", "b", "last"], 0.2).await, (OK, "all three\n".to_owned()));
    }

    #[tokio::test]
    async fn a_server_that_is_no_node_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            for challenge in ["{}", r#"{"type":"public_challenge","challenge":"sign this"}"#] {
                let (stream, _) = listener.accept().await.unwrap();
                let mut websocket = tokio_tungstenite::accept_async(stream).await.unwrap();
                websocket.send(Message::text(challenge)).await.unwrap();
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 404 Not Found\r\n\r\n").await.unwrap();
        });
        for why in ["no challenge", "malformed", "404"] {
            let error = RawClient::connect(&url, &SecretKey::from_seed([1; 32])).await.unwrap_err();
            assert!(matches!(error, ClientError::Handshake { .. }), "{error:?}");
            assert!(error.to_string().contains(why) && error.to_string().contains(&url), "{error}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address_and_what_to_check() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = RawClient::connect(&free.to_string(), &SecretKey::from_seed([1; 32])).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("ws://{free}")) && text.contains("pubport"), "{text}");
    }
}
