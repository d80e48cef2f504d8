//! Talking in raw mode (Hot Pocket 0.1): every frame sent is one input, every frame received one output.

use std::{cell::Cell, io, pin::pin, time::Duration};

use anyhow::Context as _;
use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{
    super::run::Stop,
    FAILED, Frame, INTERRUPTED, OK, RawClient,
    connection::{broken, close, input_message, next_frame},
    no_answer,
    terminal::{LINE_BYTES_MAX, Line, print_output, show_output},
};
use crate::gateway::ErrorCode;

/// With whom, and for how long an answer is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Talk<'a> {
    pub(super) url: &'a str,
    pub(super) timeout: Duration,
}

/// One input, one answer.
pub(super) async fn once(
    mut client: RawClient,
    talk: Talk<'_>,
    input: String,
    mut stop: Stop,
    out: &mut impl io::Write,
) -> anyhow::Result<i32> {
    let answer = async {
        client.send(input).await?;
        loop {
            match client.recv().await {
                // The input is held meanwhile.
                Ok(Frame::Error { code, message }) if is_notice(&code) => eprintln!("{code}: {message}"),
                answer => break answer,
            }
        }
    };
    let code = tokio::select! {
        answer = timeout(talk.timeout, answer) => match answer {
            Ok(Ok(Frame::Error { code, message })) => {
                eprintln!("the node refused the input: {code}: {message}");
                FAILED
            }
            Ok(Ok(answer)) => {
                print_output(out, &answer)?;
                OK
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => no_answer(talk.url, talk.timeout),
        },
        _ = stop.next() => INTERRUPTED,
    };
    client.close().await;
    Ok(code)
}

/// What the two directions of a conversation know of each other.
struct Both {
    reading: Cell<bool>,
    unanswered: Cell<u64>,
    last: Cell<Instant>,
}

/// Lines in, outputs out. After the last line it waits until every line had a frame back, or for `--timeout`
/// without any frame: outputs of several inputs may come as one.
pub(super) async fn converse(
    client: RawClient,
    talk: Talk<'_>,
    mut lines: mpsc::Receiver<Line>,
    mut stop: Stop,
    out: &mut impl io::Write,
    terminal: bool,
) -> anyhow::Result<i32> {
    eprintln!("connected to {} as {}, raw mode: what it says is this node's word alone", talk.url, client.user());
    let (mut sink, mut messages) = client.websocket.split();
    let state = Both { reading: Cell::new(true), unanswered: Cell::new(0), last: Cell::new(Instant::now()) };
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
                    // Only a prompt gives it, and there is none in raw mode.
                    Line::Interrupted => break,
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
                    let frame = frame?;
                    if let Frame::Error { code, message } = &frame && is_notice(code) {
                        eprintln!("{code}: {message}");
                        continue;
                    }
                    state.unanswered.update(|count| count.saturating_sub(1));
                    match frame {
                        Frame::Error { code, message } => eprintln!("error: {code}: {message}"),
                        output if terminal => show_output(out, &output)?,
                        output => print_output(out, &output)?,
                    }
                }
                sent = &mut sending, if reading => sent?,
                () = sleep_until(state.last.get() + talk.timeout), if !reading => {
                    let (lines, time) = (state.unanswered.get(), talk.timeout.as_secs_f64());
                    eprintln!("{lines} lines had no frame of their own back within {time} s; answers may have come joined");
                    break OK;
                }
                _ = stop.next() => break INTERRUPTED,
            }
        }
    };
    let websocket = messages.reunite(sink).context("the two halves of a connection fit")?;
    close(websocket).await;
    Ok(code)
}

/// Whether an error tells of the network, and not of an input.
fn is_notice(code: &str) -> bool {
    [ErrorCode::Halted, ErrorCode::Resumed].iter().any(|notice| notice.as_str() == code)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{super::NO_ANSWER, *};
    use crate::{
        crypto::SecretKey,
        gateway::{Gateway, GatewayConfig, GatewayEvent},
    };

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

    fn with(url: &str, seconds: f64) -> Talk<'_> {
        Talk { url, timeout: Duration::from_secs_f64(seconds) }
    }

    fn stop() -> Stop {
        Stop::watch_hangup().unwrap()
    }

    async fn ask(url: &str, input: &str, seconds: f64) -> (anyhow::Result<i32>, Vec<u8>) {
        let client = RawClient::connect(url, &SecretKey::from_seed([1; 32])).await.unwrap();
        let mut out = Vec::new();
        (once(client, with(url, seconds), input.to_owned(), stop(), &mut out).await, out)
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
        let code = converse(client, with(url, seconds), receiver, stop(), &mut out, false).await.unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn what_a_node_says_of_the_network_is_no_answer_and_comes_at_once_to_whoever_connects() {
        let (sender, mut events) = mpsc::channel(16);
        let config = GatewayConfig::new("127.0.0.1:0".parse().unwrap());
        let gateway = Gateway::start(config, sender).await.unwrap();
        gateway.announce(ErrorCode::Halted, "wait", true);
        let url = gateway.local_addr().to_string();
        let mut early = RawClient::connect(&url, &SecretKey::from_seed([2; 32])).await.unwrap();
        let told = |code: &str, message: &str| Frame::Error { code: code.into(), message: message.into() };
        assert_eq!(early.recv().await.unwrap(), told("halted", "wait"));
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let GatewayEvent::Input { user, .. } = event {
                    gateway.announce(ErrorCode::Resumed, "on", false);
                    gateway.deliver(&user, Bytes::from_static(b"answer"));
                }
            }
        });
        let (code, out) = ask(&url, "hello", 20.0).await;
        assert_eq!((code.unwrap(), out), (OK, b"answer\n".to_vec()));
        assert_eq!(early.recv().await.unwrap(), told("resumed", "on"));
        // From now on nobody is told when it connects.
        let (code, out) = ask(&url, "hello", 20.0).await;
        assert_eq!((code.unwrap(), out), (OK, b"answer\n".to_vec()));
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

    #[tokio::test]
    async fn a_conversation_with_joined_answers_ends_after_the_timeout() {
        let url = node(|input| (input == b"last\n").then(|| Bytes::from_static(b"all three"))).await;
        assert_eq!(talk(&url, &["a", "b", "last"], 0.2).await, (OK, "all three\n".to_owned()));
    }
}
