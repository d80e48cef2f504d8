//! A conversation in signed mode over whichever of several nodes answers: the loop around [`Talk`].

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    pin::pin,
    time::Duration,
};

use anyhow::Context as _;
use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    signal::unix::Signal,
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    FAILED, INTERRUPTED, NO_ANSWER, OK,
    connection::{ClientError, close},
    keys::Nonces,
    prompt::{HELP, Typed, read_input},
    screen::{Network, Screen},
    servers::Servers,
    signed::{Pins, SignedClient, recv},
    talk::{Show, Talk},
    terminal::{LINE_BYTES_MAX, Line},
};
use crate::{crypto::SecretKey, signed::proof::Trust, types::Seq};

/// How often what a node had no room for is sent again, and the result of a ledger is asked for.
const AGAIN: Duration = Duration::from_secs(1);
/// A node that owes an answer and says nothing for so long is left for another one, if there is one.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Time for one node to take the connection, when there are others.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// Pause before the nodes are tried once more; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Outputs that came before the word of acceptance, of which the oldest are forgotten.
const EARLY_MAX: usize = 16;
/// Ledgers whose outputs are measured from the input. Past it the oldest are not.
const MEASURED_MAX: usize = 256;
/// Frames on their way to the node. Past it the loop goes on receiving before it sends more.
const SENDING_MAX: usize = 16;

/// With whom, as whom, and for how long to wait.
pub(super) struct Setup {
    pub(super) urls: Vec<String>,
    pub(super) key: SecretKey,
    pub(super) nonces: Nonces,
    pub(super) pins: Pins,
    /// Outputs of the ledgers after this one are shown; `None` for those to come.
    pub(super) since: Option<Seq>,
    pub(super) timeout: Duration,
    /// Whom to believe behind `wss://`.
    pub(super) servers: Servers,
    /// The file of the key, if it has one.
    pub(super) key_file: Option<PathBuf>,
    pub(super) screen: Screen,
}

/// Which node is talked to, and which one comes next.
struct Nodes {
    urls: Vec<String>,
    key: SecretKey,
    pins: Pins,
    servers: Servers,
    timeout: Duration,
    at: usize,
}

/// What ends a connection.
enum End {
    /// The conversation is over, with this exit code.
    Done(i32),
    /// This node is of no more use.
    Lost(anyhow::Error),
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Say {
    /// An input.
    Input(Vec<u8>),
    /// A question to the contract.
    Question(Vec<u8>),
    /// For the last closed ledger.
    Lcl,
    /// Nothing: where the conversation stands is to be shown.
    Standing,
    /// Nothing: whose key it is is to be shown.
    Key,
    /// Nothing, and nothing more: the conversation ends, whatever is owed.
    Quit,
    /// The same, by Ctrl-C.
    Interrupt,
}

/// What a conversation is about.
trait Purpose {
    /// Something to be sent, when there is room; `None` when nothing will come any more. May be dropped while it waits.
    async fn next(&mut self, screen: &mut Screen) -> anyhow::Result<Option<Say>>;
    /// Something to be shown. The exit code when that was the last.
    fn show(&mut self, show: Show, latency: Option<Duration>, screen: &mut Screen) -> anyhow::Result<Option<i32>>;
    /// The exit code when all inputs were sent and have had their answers; `None` to go on.
    fn settled(&self) -> Option<i32>;
}

/// One input or question, one answer.
pub(super) async fn once(setup: Setup, say: Say, interrupts: Signal) -> anyhow::Result<i32> {
    let deadline = Instant::now() + setup.timeout;
    let purpose = Once { say: Some(say), accepted: None, early: Vec::new() };
    talk(setup, purpose, interrupts, Some(deadline), true).await
}

/// Lines in, outputs out. After the last line it ends when each was taken into a ledger and that ledger's result is
/// agreed on. What is `typed` may be a command.
pub(super) async fn lines(
    setup: Setup,
    lines: mpsc::Receiver<Line>,
    interrupts: Signal,
    typed: bool,
) -> anyhow::Result<i32> {
    let purpose = Lines { lines, typed, refused: false };
    talk(setup, purpose, interrupts, None, false).await
}

struct Once {
    say: Option<Say>,
    accepted: Option<Seq>,
    /// Outputs that came before the word in which ledger the input is: after a change of nodes they may.
    early: Vec<(Seq, Show, Option<Duration>)>,
}

impl Purpose for Once {
    async fn next(&mut self, _: &mut Screen) -> anyhow::Result<Option<Say>> {
        Ok(self.say.take())
    }

    fn show(&mut self, show: Show, latency: Option<Duration>, screen: &mut Screen) -> anyhow::Result<Option<i32>> {
        match show {
            Show::Accepted { seq, .. } => {
                self.accepted = Some(seq);
                if screen.is_json() {
                    screen.show(&show, latency)?;
                }
            }
            Show::Output { seq, .. } => {
                if self.early.len() == EARLY_MAX {
                    self.early.remove(0);
                }
                self.early.push((seq, show, latency));
            }
            Show::Answer { .. } | Show::Rejected { .. } | Show::Failed { .. } | Show::NoAnswer { .. } => {
                screen.show(&show, latency)?;
                return Ok(Some(if matches!(show, Show::Answer { .. }) { OK } else { FAILED }));
            }
            Show::NotFinal { .. } if !screen.is_json() => screen.note(&show.to_string())?,
            Show::Settled { .. } if !screen.is_json() => {}
            Show::Lcl { .. } | Show::Note(_) | Show::NotFinal { .. } | Show::Settled { .. } => {
                screen.show(&show, latency)?
            }
        }
        let Some(accepted) = self.accepted else { return Ok(None) };
        // Older ones answer earlier inputs with this key.
        self.early.retain(|(seq, ..)| *seq >= accepted);
        match (!self.early.is_empty()).then(|| self.early.remove(0)) {
            Some((_, show, latency)) => {
                screen.show(&show, latency)?;
                Ok(Some(OK))
            }
            None => Ok(None),
        }
    }

    /// A contract may answer in a later ledger.
    fn settled(&self) -> Option<i32> {
        None
    }
}

struct Lines {
    lines: mpsc::Receiver<Line>,
    typed: bool,
    refused: bool,
}

impl Purpose for Lines {
    async fn next(&mut self, screen: &mut Screen) -> anyhow::Result<Option<Say>> {
        loop {
            let typed = match self.lines.recv().await {
                Some(Line::Input(line)) if self.typed => Typed::of(line),
                Some(Line::Input(line)) => Typed::Input(line),
                Some(Line::TooLong(bytes)) => {
                    screen.error(&format!(
                        "error: a line of {bytes} bytes was skipped, at most {LINE_BYTES_MAX} are sent"
                    ))?;
                    continue;
                }
                Some(Line::Interrupted) => return Ok(Some(Say::Interrupt)),
                Some(Line::Broken(error)) => return Err(error).context("cannot read the input"),
                None => return Ok(None),
            };
            return Ok(Some(match typed {
                Typed::Input(mut input) => {
                    // A contract gets the inputs of a ledger joined: a line has to bring its end along.
                    input.push(b'\n');
                    Say::Input(input)
                }
                Typed::Read(text) => Say::Question(text),
                Typed::Lcl => Say::Lcl,
                Typed::Status => Say::Standing,
                Typed::Key => Say::Key,
                Typed::Quit => Say::Quit,
                Typed::File(path) => match read_input(&path) {
                    Ok(input) => {
                        screen.note(&format!("  {} bytes of {}", input.len(), path.display()))?;
                        Say::Input(input)
                    }
                    Err(error) => {
                        screen.error(&format!("error: {error:#}"))?;
                        continue;
                    }
                },
                Typed::Help => {
                    HELP.lines().try_for_each(|line| screen.note(line))?;
                    continue;
                }
                Typed::Unknown(line) => {
                    let what = format!(
                        "error: there is no command {line:?}; /help lists them, //... sends an input with a slash"
                    );
                    screen.error(&what)?;
                    continue;
                }
            }));
        }
    }

    fn show(&mut self, show: Show, latency: Option<Duration>, screen: &mut Screen) -> anyhow::Result<Option<i32>> {
        self.refused |= matches!(show, Show::Rejected { .. } | Show::Failed { .. } | Show::NoAnswer { .. });
        screen.show(&show, latency)?;
        Ok(None)
    }

    fn settled(&self) -> Option<i32> {
        Some(if self.refused { FAILED } else { OK })
    }
}

/// When inputs were sent, to say how long what came of them took.
#[derive(Default)]
struct Clock {
    inputs: BTreeMap<u64, Instant>,
    ledgers: BTreeMap<Seq, Instant>,
    question: Option<Instant>,
}

impl Clock {
    /// How long it was from sending to what is shown.
    fn latency(&mut self, show: &Show) -> Option<Duration> {
        let sent = match show {
            Show::Accepted { seq, nonce } => {
                let sent = self.inputs.remove(nonce)?;
                self.ledgers.entry(*seq).or_insert(sent);
                if self.ledgers.len() > MEASURED_MAX {
                    self.ledgers.pop_first();
                }
                sent
            }
            Show::Rejected { nonce, .. } => self.inputs.remove(nonce)?,
            Show::Output { seq, .. } => self.ledgers.remove(seq)?,
            Show::Answer { .. } | Show::Lcl { .. } => self.question.take()?,
            Show::Failed { .. }
            | Show::NoAnswer { .. }
            | Show::Note(_)
            | Show::NotFinal { .. }
            | Show::Settled { .. } => return None,
        };
        Some(sent.elapsed())
    }
}

async fn talk(
    setup: Setup,
    mut purpose: impl Purpose,
    mut interrupts: Signal,
    deadline: Option<Instant>,
    quiet: bool,
) -> anyhow::Result<i32> {
    let Setup { urls, key, nonces, pins, since, timeout, key_file, mut screen, servers } = setup;
    let whose = match &key_file {
        Some(file) => format!("  {} in {}", key.user_key(), file.display()),
        None => format!("  {}, of this process alone", key.user_key()),
    };
    let mut clock = Clock::default();
    let mut nodes = Nodes { urls, key: key.clone(), pins, servers, timeout, at: 0 };
    let mut talk = Talk::new(key, nonces, since);
    let mut reading = true;
    let mut first = true;
    let over = async {
        if let Some(deadline) = deadline { sleep_until(deadline).await } else { std::future::pending().await }
    };
    let mut over = pin!(over);
    loop {
        let connected = tokio::select! {
            connected = nodes.connect(first, talk.trust(), &mut screen) => connected,
            () = &mut over => Err(nodes.no_answer()),
            _ = interrupts.recv() => return Ok(INTERRUPTED),
        };
        let client = match connected {
            Ok(client) => client,
            Err(error) => return nodes.none(error, &talk, &mut screen),
        };
        let frames = match talk.welcome(client.welcome(), client.trust()) {
            Ok(frames) => frames,
            Err(error) => {
                screen.lost(nodes.url(), &error.to_string(), None)?;
                nodes.drop_current()?;
                continue;
            }
        };
        if !quiet || screen.is_json() {
            nodes.tell_connected(&client, first, &mut screen)?;
        }
        first = false;
        let mut line = Connection {
            talk: &mut talk,
            purpose: &mut purpose,
            reading: &mut reading,
            screen: &mut screen,
            clock: &mut clock,
            whose: &whose,
            url: nodes.url(),
        };
        let end = tokio::select! {
            end = line.run(client, frames.into(), nodes.urls.len() > 1, timeout) => Some(end?),
            () = &mut over => None,
            _ = interrupts.recv() => Some(End::Done(INTERRUPTED)),
        };
        match end {
            Some(End::Done(code)) => return Ok(code),
            Some(End::Lost(error)) => {
                let left = nodes.url().to_owned();
                nodes.at += 1;
                let next = (nodes.urls.len() > 1).then(|| nodes.url());
                screen.lost(&left, &format!("{error:#}"), next)?;
            }
            None => {
                screen.error(&nodes.no_answer().to_string())?;
                return Ok(NO_ANSWER);
            }
        }
    }
}

impl Nodes {
    fn url(&self) -> &str {
        &self.urls[self.at % self.urls.len()]
    }

    /// The next node that takes the connection. At the start each is tried once; later, until the time is over.
    async fn connect(
        &mut self,
        first: bool,
        known: Option<&Trust>,
        screen: &mut Screen,
    ) -> Result<SignedClient, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let mut pause = PAUSE;
        let each = if self.urls.len() > 1 { CONNECT_TIME.min(self.timeout) } else { self.timeout };
        let mut tried = 0;
        loop {
            let connect = SignedClient::connect_again(self.url(), &self.key, &self.pins, &self.servers, known);
            let error = match timeout(each, connect).await {
                Ok(Ok(client)) => return Ok(client),
                Ok(Err(error)) => error,
                Err(_) => self.no_answer_within(each),
            };
            tried += 1;
            let all_tried = tried % self.urls.len() == 0;
            if (first && all_tried) || Instant::now() >= deadline {
                return Err(error);
            }
            if self.urls.len() > 1 && first {
                // Nobody may be there to read it.
                let _ = screen.note(&format!("{error}; trying the next node"));
            }
            self.at += 1;
            if all_tried {
                sleep(pause.min(deadline - Instant::now())).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// A node of another network is not asked again.
    fn drop_current(&mut self) -> anyhow::Result<()> {
        let at = self.at % self.urls.len();
        self.urls.remove(at);
        self.at = at;
        if self.urls.is_empty() { anyhow::bail!("no node of the network is left") } else { Ok(()) }
    }

    fn no_answer(&self) -> ClientError {
        self.no_answer_within(self.timeout)
    }

    fn no_answer_within(&self, after: Duration) -> ClientError {
        ClientError::Timeout { url: self.url().to_owned(), after }
    }

    fn none(&self, error: ClientError, talk: &Talk, screen: &mut Screen) -> anyhow::Result<i32> {
        if talk.pending() > 0 {
            screen.note(&format!("{} inputs have had no answer; they may be taken all the same", talk.pending()))?;
        }
        match error {
            ClientError::Timeout { .. } => {
                screen.error(&error.to_string())?;
                Ok(NO_ANSWER)
            }
            error => Err(error.into()),
        }
    }

    fn tell_connected(&self, client: &SignedClient, is_first: bool, screen: &mut Screen) -> anyhow::Result<()> {
        let trust = client.trust();
        let (chain, quorum, members) = (trust.chain_id().to_string(), trust.quorum(), trust.unl().len());
        let by_whom = match (&self.pins.chain, &self.pins.unl) {
            (_, Some(_)) if trust.known_to() > 0 => "the members followed those of --unl, as signed by them",
            (Some(_), None) if trust.known_to() > 0 => "the members followed those of --chain, as signed by them",
            (_, Some(_)) => "the members are those of --unl",
            (Some(_), None) => "the members are those of --chain",
            (None, None) => &format!("who they are this node says; --chain {chain} pins them"),
        };
        screen.connected(self.url(), client.user(), &Network { chain, quorum, members, by_whom, is_first })
    }
}

/// One connection of the conversation.
struct Connection<'a, P> {
    talk: &'a mut Talk,
    purpose: &'a mut P,
    /// Whether more inputs may come.
    reading: &'a mut bool,
    screen: &'a mut Screen,
    clock: &'a mut Clock,
    /// What `/key` says.
    whose: &'a str,
    url: &'a str,
}

impl<P: Purpose> Connection<'_, P> {
    async fn run(
        &mut self,
        client: SignedClient,
        mut outgoing: VecDeque<String>,
        has_others: bool,
        wait: Duration,
    ) -> anyhow::Result<End> {
        let (websocket, mut early) = client.into_parts();
        let (mut sink, mut messages) = websocket.split();
        let (sending, mut to_send) = mpsc::channel::<String>(SENDING_MAX);
        // Sending goes on beside receiving: a node that waits for us to read takes no more from us.
        let writer = tokio::spawn(async move {
            while let Some(frame) = to_send.recv().await {
                sink.send(Message::text(frame)).await?;
            }
            Ok::<_, tokio_tungstenite::tungstenite::Error>(sink)
        });
        let mut again = interval(AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let end = loop {
            if !*self.reading
                && self.talk.is_settled()
                && let Some(code) = self.purpose.settled()
            {
                break End::Done(code);
            }
            let silence = if has_others { SILENCE_MAX } else { wait };
            // At the end of the lines one node is not waited for longer than for any answer; before, a person decides.
            let watched = self.talk.waits() && (has_others || !*self.reading);
            tokio::select! {
                reply = async { if let Some(reply) = early.pop_front() { Ok(reply) } else { recv(&mut messages).await } } => {
                    heard = Instant::now();
                    let reply = match reply {
                        Ok(reply) => reply,
                        Err(error) => break End::Lost(error.into()),
                    };
                    let (shows, frames) = match self.talk.reply(reply) {
                        Ok(told) => told,
                        Err(error) => break End::Lost(error.into()),
                    };
                    outgoing.extend(frames);
                    let mut done = None;
                    for show in shows {
                        let latency = self.clock.latency(&show);
                        done = done.or(self.purpose.show(show, latency, self.screen)?);
                    }
                    if let Some(code) = done {
                        break End::Done(code);
                    }
                }
                room = sending.reserve(), if !outgoing.is_empty() => match room {
                    Ok(room) => room.send(outgoing.pop_front().expect("not empty")),
                    // The writer's error is the connection's, which receiving tells better.
                    Err(_) => outgoing.clear(),
                },
                say = self.purpose.next(self.screen), if *self.reading && self.talk.has_room() && outgoing.is_empty() => {
                    match say? {
                        Some(Say::Input(input)) => {
                            outgoing.push_back(self.talk.input(input)?);
                            let nonce = self.talk.last_nonce().expect("just sent");
                            self.clock.inputs.insert(nonce, Instant::now());
                        }
                        Some(Say::Question(question)) => {
                            outgoing.push_back(self.talk.question(question));
                            self.clock.question = Some(Instant::now());
                        }
                        Some(Say::Lcl) => {
                            outgoing.push_back(self.talk.ask_lcl());
                            self.clock.question = Some(Instant::now());
                        }
                        Some(Say::Standing) => {
                            self.screen.note(&format!("  connected to {}; {}", self.url, self.talk.standing()))?;
                        }
                        Some(Say::Key) => self.screen.note(self.whose)?,
                        Some(Say::Quit) => {
                            if self.talk.pending() > 0 {
                                let pending = self.talk.pending();
                                self.screen.note(&format!("{pending} inputs are in no ledger yet, and may be taken later"))?;
                            }
                            break End::Done(self.purpose.settled().unwrap_or(OK));
                        }
                        Some(Say::Interrupt) => break End::Done(INTERRUPTED),
                        None => *self.reading = false,
                    }
                    heard = Instant::now();
                }
                _ = again.tick() => outgoing.extend(self.talk.again()),
                () = sleep_until(heard + silence), if watched => {
                    if has_others {
                        break End::Lost(anyhow::anyhow!("no word for {} s", silence.as_secs_f64()));
                    }
                    let (pending, time) = (self.talk.pending(), wait.as_secs_f64());
                    self.screen.error(&format!(
                        "no answer to all lines within {time} s; {pending} are in no ledger yet, and may be taken later"
                    ))?;
                    break End::Done(NO_ANSWER);
                }
            }
        };
        drop(sending);
        if let End::Done(_) = end
            && let Ok(Ok(Ok(sink))) = timeout(AGAIN, writer).await
            && let Ok(websocket) = messages.reunite(sink)
        {
            close(websocket).await;
        }
        Ok(end)
    }
}
