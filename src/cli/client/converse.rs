//! A conversation in signed mode over whichever of several nodes answers: the loop around [`Talk`].

use std::{collections::VecDeque, io, pin::pin, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    signal::unix::Signal,
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    FAILED, Frame, INTERRUPTED, NO_ANSWER, OK,
    connection::{ClientError, close},
    keys::Nonces,
    signed::{Pins, SignedClient, recv},
    talk::{Show, Talk},
    terminal::{LINE_BYTES_MAX, Line, print_output, show_output},
};
use crate::{
    crypto::SecretKey,
    types::{Seq, UserKey},
};

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
/// How a line begins that is a question, where somebody types.
const QUESTION: &[u8] = b"/read ";
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
}

/// Which node is talked to, and which one comes next.
struct Nodes {
    urls: Vec<String>,
    key: SecretKey,
    pins: Pins,
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
}

/// What a conversation is about.
trait Purpose {
    /// Something to be sent, when there is room; `None` when nothing will come any more.
    async fn next(&mut self) -> anyhow::Result<Option<Say>>;
    /// Something to be shown. The exit code when that was the last.
    fn show(&mut self, show: Show) -> anyhow::Result<Option<i32>>;
    /// The exit code when all inputs were sent and have had their answers; `None` to go on.
    fn settled(&self) -> Option<i32>;
}

/// One input or question, one answer.
pub(super) async fn once(setup: Setup, say: Say, interrupts: Signal, out: &mut impl io::Write) -> anyhow::Result<i32> {
    let deadline = Instant::now() + setup.timeout;
    let purpose = Once { say: Some(say), accepted: None, early: Vec::new(), out };
    talk(setup, purpose, interrupts, Some(deadline), true).await
}

/// Lines in, outputs out. After the last line it ends when each was taken into a ledger and that ledger's result is
/// agreed on. What is `typed` may be a command.
pub(super) async fn lines(
    setup: Setup,
    lines: mpsc::Receiver<Line>,
    interrupts: Signal,
    out: &mut impl io::Write,
    terminal: bool,
    typed: bool,
) -> anyhow::Result<i32> {
    let purpose = Lines { lines, out, terminal, typed, refused: false };
    talk(setup, purpose, interrupts, None, false).await
}

struct Once<'a, W> {
    say: Option<Say>,
    accepted: Option<Seq>,
    /// Outputs that came before the word in which ledger the input is: after a change of nodes they may.
    early: Vec<(Seq, Vec<u8>)>,
    out: &'a mut W,
}

impl<W: io::Write> Purpose for Once<'_, W> {
    async fn next(&mut self) -> anyhow::Result<Option<Say>> {
        Ok(self.say.take())
    }

    fn show(&mut self, show: Show) -> anyhow::Result<Option<i32>> {
        match show {
            Show::Accepted { seq } => self.accepted = Some(seq),
            Show::Output { seq, payload } => {
                if self.early.len() == EARLY_MAX {
                    self.early.remove(0);
                }
                self.early.push((seq, payload));
            }
            Show::Answer { payload, .. } => {
                print_output(self.out, &frame(payload))?;
                return Ok(Some(OK));
            }
            Show::Rejected { .. } | Show::Failed { .. } | Show::NoAnswer(_) => {
                eprintln!("{show}");
                return Ok(Some(FAILED));
            }
            Show::Note(_) | Show::NotFinal { .. } => eprintln!("{show}"),
            Show::Settled { .. } => {}
        }
        let Some(accepted) = self.accepted else { return Ok(None) };
        // Older ones answer earlier inputs with this key.
        self.early.retain(|(seq, _)| *seq >= accepted);
        match (!self.early.is_empty()).then(|| self.early.remove(0)) {
            Some((_, payload)) => {
                print_output(self.out, &frame(payload))?;
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

struct Lines<'a, W> {
    lines: mpsc::Receiver<Line>,
    out: &'a mut W,
    terminal: bool,
    typed: bool,
    refused: bool,
}

impl<W: io::Write> Purpose for Lines<'_, W> {
    async fn next(&mut self) -> anyhow::Result<Option<Say>> {
        loop {
            match self.lines.recv().await {
                Some(Line::Input(line)) if self.typed && line.starts_with(QUESTION) => {
                    return Ok(Some(Say::Question(line[QUESTION.len()..].to_vec())));
                }
                Some(Line::Input(mut input)) => {
                    // A contract gets the inputs of a ledger joined: a line has to bring its end along.
                    input.push(b'\n');
                    return Ok(Some(Say::Input(input)));
                }
                Some(Line::TooLong(bytes)) => {
                    eprintln!("error: a line of {bytes} bytes was skipped, at most {LINE_BYTES_MAX} are sent");
                }
                Some(Line::Broken(error)) => return Err(error).context("cannot read the input"),
                None => return Ok(None),
            }
        }
    }

    fn show(&mut self, show: Show) -> anyhow::Result<Option<i32>> {
        match show {
            Show::Output { payload, .. } if self.terminal => show_output(self.out, &frame(payload))?,
            Show::Output { payload, .. } => print_output(self.out, &frame(payload))?,
            Show::Answer { ref payload, .. } => {
                let payload = frame(payload.clone());
                if self.terminal {
                    eprintln!("  {show}, by this node's word");
                    show_output(self.out, &payload)?;
                } else {
                    print_output(self.out, &payload)?;
                }
            }
            Show::Accepted { .. } | Show::NotFinal { .. } | Show::Settled { .. } if self.terminal => {
                eprintln!("  {show}");
            }
            Show::Accepted { .. } | Show::NotFinal { .. } | Show::Settled { .. } => {}
            Show::Rejected { .. } | Show::Failed { .. } | Show::NoAnswer(_) => {
                self.refused = true;
                eprintln!("error: {show}");
            }
            Show::Note(_) => eprintln!("{show}"),
        }
        Ok(None)
    }

    fn settled(&self) -> Option<i32> {
        Some(if self.refused { FAILED } else { OK })
    }
}

fn frame(payload: Vec<u8>) -> Frame {
    match String::from_utf8(payload) {
        Ok(text) => Frame::Text(text),
        Err(error) => Frame::Binary(Bytes::from(error.into_bytes())),
    }
}

async fn talk(
    setup: Setup,
    mut purpose: impl Purpose,
    mut interrupts: Signal,
    deadline: Option<Instant>,
    quiet: bool,
) -> anyhow::Result<i32> {
    let Setup { urls, key, nonces, pins, since, timeout } = setup;
    let mut nodes = Nodes { urls, key: key.clone(), pins, timeout, at: 0 };
    let mut talk = Talk::new(key, nonces, since);
    let mut reading = true;
    let mut first = true;
    let over = async {
        if let Some(deadline) = deadline { sleep_until(deadline).await } else { std::future::pending().await }
    };
    let mut over = pin!(over);
    loop {
        let connected = tokio::select! {
            connected = nodes.connect(first) => connected,
            () = &mut over => Err(nodes.no_answer()),
            _ = interrupts.recv() => return Ok(INTERRUPTED),
        };
        let client = match connected {
            Ok(client) => client,
            Err(error) => return nodes.none(error, &talk),
        };
        let frames = match talk.welcome(client.welcome(), client.trust()) {
            Ok(frames) => frames,
            Err(error) => {
                eprintln!("{}: {error}", nodes.url());
                nodes.drop_current()?;
                continue;
            }
        };
        if !quiet {
            nodes.tell_connected(&client, first);
        }
        first = false;
        let mut line = Connection { talk: &mut talk, purpose: &mut purpose, reading: &mut reading };
        let end = tokio::select! {
            end = line.run(client, frames.into(), nodes.urls.len() > 1, timeout) => end?,
            () = &mut over => End::Done({
                eprintln!("{}", nodes.no_answer());
                NO_ANSWER
            }),
            _ = interrupts.recv() => End::Done(INTERRUPTED),
        };
        match end {
            End::Done(code) => return Ok(code),
            End::Lost(error) => {
                eprintln!("{}: {error:#}", nodes.url());
                nodes.at += 1;
            }
        }
    }
}

impl Nodes {
    fn url(&self) -> &str {
        &self.urls[self.at % self.urls.len()]
    }

    /// The next node that takes the connection. At the start each is tried once; later, until the time is over.
    async fn connect(&mut self, first: bool) -> Result<SignedClient, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let mut pause = PAUSE;
        let each = if self.urls.len() > 1 { CONNECT_TIME.min(self.timeout) } else { self.timeout };
        let mut tried = 0;
        loop {
            let connect = SignedClient::connect(self.url(), &self.key, &self.pins);
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
                eprintln!("{error}; trying the next node");
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

    fn none(&self, error: ClientError, talk: &Talk) -> anyhow::Result<i32> {
        if talk.pending() > 0 {
            eprintln!("{} inputs have had no answer; they may be taken all the same", talk.pending());
        }
        match error {
            ClientError::Timeout { .. } => {
                eprintln!("{error}");
                Ok(NO_ANSWER)
            }
            error => Err(error.into()),
        }
    }

    fn tell_connected(&self, client: &SignedClient, first: bool) {
        let user: UserKey = client.user();
        eprintln!("connected to {} as {user}", self.url());
        if !first {
            return;
        }
        let trust = client.trust();
        let (quorum, members) = (trust.quorum(), trust.unl().len());
        let by_whom = match (&self.pins.chain, &self.pins.unl) {
            (_, Some(_)) => "the members are those of --unl".to_owned(),
            (Some(_), None) => "the members are those of --chain".to_owned(),
            (None, None) => format!("who they are this node says; --chain {} pins them", trust.chain_id()),
        };
        eprintln!("outputs are shown when {quorum} of {members} members signed for them; {by_whom}");
    }
}

/// One connection of the conversation.
struct Connection<'a, P> {
    talk: &'a mut Talk,
    purpose: &'a mut P,
    /// Whether more inputs may come.
    reading: &'a mut bool,
}

impl<P: Purpose> Connection<'_, P> {
    async fn run(
        &mut self,
        client: SignedClient,
        mut outgoing: VecDeque<String>,
        has_others: bool,
        wait: Duration,
    ) -> anyhow::Result<End> {
        let (mut sink, mut messages) = client.into_websocket().split();
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
                reply = recv(&mut messages) => {
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
                        done = done.or(self.purpose.show(show)?);
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
                say = self.purpose.next(), if *self.reading && self.talk.has_room() && outgoing.is_empty() => {
                    match say? {
                        Some(Say::Input(input)) => outgoing.push_back(self.talk.input(input)?),
                        Some(Say::Question(question)) => outgoing.push_back(self.talk.question(question)),
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
                    eprintln!("no answer to all lines within {time} s; {pending} are in no ledger yet, and may be taken later");
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
