//! How a conversation is shown: to a person at a terminal, to a pipe as it is, or to a program as one JSON object a line.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Frame,
    talk::Show,
    terminal::{print_output, show_output},
};
use crate::{
    signed::{ReadReason, Reason},
    types::UserKey,
};

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Outputs as they are; what went wrong on stderr.
    Plain,
    /// Outputs marked, and what became of each input.
    Terminal,
    /// Everything that happens, one JSON object a line.
    Json,
}

/// Where it is shown.
pub(super) struct Screen {
    form: Form,
    /// Outputs, and all of JSON.
    out: Box<dyn io::Write>,
    /// What else there is to say.
    told: Box<dyn io::Write>,
    colours: bool,
}

impl Screen {
    /// On stdout and stderr.
    pub(super) fn standard(form: Form) -> Screen {
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen { form, out: Box::new(io::stdout()), told: Box::new(io::stderr()), colours }
    }

    /// Above the line that somebody types: all goes one way.
    pub(super) fn above(printer: impl io::Write + Clone + 'static) -> Screen {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen { form: Form::Terminal, out: Box::new(printer.clone()), told: Box::new(printer), colours }
    }

    /// Whether a program reads it.
    pub(super) fn is_json(&self) -> bool {
        self.form == Form::Json
    }

    /// Shows what happened, `latency` after the input it belongs to was sent.
    pub(super) fn show(&mut self, show: &Show, latency: Option<Duration>) -> anyhow::Result<()> {
        if self.is_json() {
            return self.event(&event(show, latency));
        }
        let is_terminal = self.form == Form::Terminal;
        let took = latency.map(|took| format!(", {}", time(took))).unwrap_or_default();
        match show {
            Show::Output { payload, .. } if is_terminal => show_output(&mut self.out, &frame(payload)),
            Show::Output { payload, .. } => print_output(&mut self.out, &frame(payload)),
            Show::Answer { payload, .. } if is_terminal => {
                self.say(Tone::Faint, &format!("  {show}{took}, by this node's word"))?;
                show_output(&mut self.out, &frame(payload))
            }
            Show::Answer { payload, .. } => print_output(&mut self.out, &frame(payload)),
            Show::Accepted { .. } if is_terminal => self.say(Tone::Good, &format!("  {show}{took}")),
            Show::NotFinal { .. } if is_terminal => self.say(Tone::Odd, &format!("  {show}")),
            Show::Settled { .. } if is_terminal => self.say(Tone::Good, &format!("  {show}")),
            Show::Accepted { .. } | Show::NotFinal { .. } | Show::Settled { .. } => Ok(()),
            Show::Rejected { .. } | Show::Failed { .. } | Show::NoAnswer { .. } => {
                let advice = advice(show).map(|advice| format!("; {advice}")).unwrap_or_default();
                self.say(Tone::Bad, &format!("error: {show}{advice}"))
            }
            Show::Lcl { .. } => self.say(Tone::Faint, &format!("  {show}{took}")),
            Show::Note(_) => self.say(Tone::Odd, &show.to_string()),
        }
    }

    /// Something that a person should know.
    pub(super) fn note(&mut self, text: &str) -> anyhow::Result<()> {
        if self.is_json() {
            self.event(&json!({ "event": "note", "message": text }))
        } else {
            self.say(Tone::Plain, text)
        }
    }

    /// A node took the connection.
    pub(super) fn connected(&mut self, url: &str, user: UserKey, network: &Network<'_>) -> anyhow::Result<()> {
        let Network { chain, quorum, members, by_whom, is_first } = network;
        if self.is_json() {
            let event = json!({
                "event": "connected", "url": url, "user": user.to_string(), "chain": chain, "quorum": quorum, "members": members,
            });
            return self.event(&event);
        }
        self.say(Tone::Strong, &format!("connected to {url} as {user}"))?;
        if *is_first {
            let text = format!("outputs are shown when {quorum} of {members} members signed for them; {by_whom}");
            self.say(Tone::Faint, &text)?;
        }
        Ok(())
    }

    /// A node is left, for this reason.
    pub(super) fn lost(&mut self, url: &str, why: &str, next: Option<&str>) -> anyhow::Result<()> {
        if self.is_json() {
            return self.event(&json!({ "event": "disconnected", "url": url, "message": why }));
        }
        let next = next.map(|next| format!("; going on at {next}")).unwrap_or_default();
        self.say(Tone::Odd, &format!("{url}: {why}{next}"))
    }

    /// What went wrong for good.
    pub(super) fn error(&mut self, text: &str) -> anyhow::Result<()> {
        if self.is_json() {
            self.event(&json!({ "event": "error", "message": text }))
        } else {
            self.say(Tone::Bad, text)
        }
    }

    fn event(&mut self, event: &Value) -> anyhow::Result<()> {
        writeln!(self.out, "{event}").and_then(|()| self.out.flush()).context("cannot write the output")
    }

    fn say(&mut self, tone: Tone, text: &str) -> anyhow::Result<()> {
        // What a node says may be meant for the terminal.
        let text: String = text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect();
        let line = match tone.code().filter(|_| self.colours) {
            Some(code) => format!("\x1b[{code}m{text}\x1b[0m\n"),
            None => format!("{text}\n"),
        };
        // Nobody may be there to read it; what counts is written to `out`.
        let _ = self.told.write_all(line.as_bytes()).and_then(|()| self.told.flush());
        Ok(())
    }
}

/// What is said once of the network.
pub(super) struct Network<'a> {
    pub(super) chain: String,
    pub(super) quorum: usize,
    pub(super) members: usize,
    pub(super) by_whom: &'a str,
    pub(super) is_first: bool,
}

#[derive(Clone, Copy)]
enum Tone {
    Plain,
    Strong,
    Good,
    Bad,
    Odd,
    Faint,
}

impl Tone {
    fn code(self) -> Option<&'static str> {
        match self {
            Tone::Plain => None,
            Tone::Strong => Some("1"),
            Tone::Good => Some("32"),
            Tone::Bad => Some("31"),
            Tone::Odd => Some("33"),
            Tone::Faint => Some("2"),
        }
    }
}

fn frame(payload: &[u8]) -> Frame {
    match std::str::from_utf8(payload) {
        Ok(text) => Frame::Text(text.to_owned()),
        Err(_) => Frame::Binary(Bytes::copy_from_slice(payload)),
    }
}

/// A time that somebody waited.
pub(super) fn time(took: Duration) -> String {
    match took.as_millis() {
        0..10 => format!("{:.1} ms", took.as_secs_f64() * 1_000.0),
        ms @ 10..10_000 => format!("{ms} ms"),
        _ => format!("{:.0} s", took.as_secs_f64()),
    }
}

/// What to do about something that went wrong.
fn advice(show: &Show) -> Option<&'static str> {
    match show {
        Show::Rejected { reason, .. } => Some(match reason {
            Reason::BadSig => "the node is of another chain, or this key file is damaged: start the client again",
            Reason::TooLarge => "send it in parts; `limits` of the network say how long an input may be",
            Reason::Rate => "the node takes fewer inputs a minute: send it again later, or at another node",
            Reason::Busy => "the node has no room: send it again later, or at another node",
            Reason::Expired => "it was in no ledger in time and never will be: send it again",
            Reason::TooFar => "the node is behind the network: send it again at another node",
            Reason::NonceUsed => {
                "another client with this key took its number: send it again, and give each client a key of its own"
            }
        }),
        Show::NoAnswer { reason, .. } => reason.map(|reason| match reason {
            ReadReason::TooLarge => "ask something shorter",
            ReadReason::Rate | ReadReason::Busy | ReadReason::NotReady => "ask again later, or at another node",
            ReadReason::Off | ReadReason::Trouble => "ask at another node",
        }),
        Show::Failed { .. } => Some("the input is used up: send it again if it is still wanted"),
        _ => None,
    }
}

/// What `--json` says of it.
fn event(show: &Show, latency: Option<Duration>) -> Value {
    let ms = latency.map(|took| (took.as_secs_f64() * 1e6).round() / 1e3);
    let mut event = match show {
        Show::Output { seq, payload } => {
            with_payload(json!({ "event": "output", "seq": seq, "proven": true }), payload)
        }
        Show::Accepted { seq, nonce } => json!({ "event": "accepted", "nonce": nonce, "seq": seq }),
        Show::Rejected { nonce, reason, message } => {
            json!({ "event": "rejected", "nonce": nonce, "reason": reason.name(), "message": message, "advice": advice(show) })
        }
        Show::Answer { seq, payload } => {
            with_payload(json!({ "event": "answer", "seq": seq, "proven": false }), payload)
        }
        Show::NoAnswer { reason, message } => {
            let reason = reason.map(ReadReason::name);
            json!({ "event": "no_answer", "reason": reason, "message": message, "advice": advice(show) })
        }
        Show::Failed { seq, status, proven } => {
            json!({ "event": "failed", "seq": seq, "status": status, "proven": proven })
        }
        Show::Lcl { seq, ledger, time_ms } => {
            json!({ "event": "lcl", "seq": seq, "ledger": ledger.to_string(), "time_ms": time_ms })
        }
        Show::NotFinal { seq } => json!({ "event": "not_final", "seq": seq }),
        Show::Settled { first, last, tx } => {
            json!({ "event": "settled", "first": first, "last": last, "tx": tx.to_string() })
        }
        Show::Note(message) => json!({ "event": "note", "message": message }),
    };
    if let Some(ms) = ms {
        event["latency_ms"] = ms.into();
    }
    event
}

/// As text where it is text, else in hexadecimal digits.
fn with_payload(mut event: Value, payload: &[u8]) -> Value {
    match std::str::from_utf8(payload) {
        Ok(text) => event["text"] = text.into(),
        Err(_) => event["hex"] = hex::encode(payload).into(),
    }
    event
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::types::Hash;

    #[derive(Clone, Default)]
    struct Buffer(Rc<RefCell<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written on both ways.
    fn shown(form: Form, shows: &[Show]) -> (String, String) {
        let (out, told) = (Buffer::default(), Buffer::default());
        let mut screen =
            Screen { form, out: Box::new(out.clone()), told: Box::new(told.clone()), colours: form == Form::Terminal };
        shows.iter().for_each(|show| screen.show(show, Some(Duration::from_millis(42))).unwrap());
        let text = |buffer: Buffer| String::from_utf8(buffer.0.take()).unwrap();
        (text(out), text(told))
    }

    fn shows() -> Vec<Show> {
        vec![
            Show::Accepted { seq: 3, nonce: 9 },
            Show::Output { seq: 3, payload: b"a\x1b[2J\n".to_vec() },
            Show::Output { seq: 4, payload: b"\xff".to_vec() },
            Show::Rejected { nonce: 9, reason: Reason::Expired, message: "why\x1b[2J".into() },
            Show::NoAnswer { reason: Some(ReadReason::Off), message: "off".into() },
            Show::Lcl { seq: 5, ledger: Hash([1; 32]), time_ms: 7 },
        ]
    }

    #[test]
    fn a_terminal_gets_marked_lines_colours_and_what_to_do_and_nothing_that_takes_it_over() {
        let (out, told) = shown(Form::Terminal, &shows());
        assert_eq!(out, "< a\\u{1b}[2J\n< (1 bytes that are no text) ff\n");
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], "\x1b[32m  accepted in ledger 3, 42 ms\x1b[0m");
        assert!(lines[1].contains("input 9 rejected (expired): why\u{fffd}[2J; it was in no ledger in time"), "{told}");
        assert!(lines[2].contains("ask at another node") && lines.len() == 4, "{told}");
    }

    #[test]
    fn a_pipe_gets_outputs_as_they_are_and_errors_elsewhere() {
        let without_binary = [&shows()[..2], &shows()[3..4]].concat();
        let (out, told) = shown(Form::Plain, &without_binary);
        assert_eq!(out, "a\x1b[2J\n");
        assert!(told.starts_with("error: input 9 rejected (expired)") && told.lines().count() == 1, "{told}");
    }

    #[test]
    fn a_program_gets_one_object_a_line() {
        let (out, told) = shown(Form::Json, &shows());
        assert_eq!(told, "");
        let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events[0], json!({ "event": "accepted", "nonce": 9, "seq": 3, "latency_ms": 42.0 }));
        assert_eq!(events[1]["text"], "a\x1b[2J\n");
        assert_eq!((&events[2]["hex"], &events[2]["text"]), (&json!("ff"), &Value::Null));
        assert_eq!((&events[3]["reason"], &events[4]["reason"]), (&json!("expired"), &json!("off")));
        assert_eq!(events[5]["seq"], 5);
    }

    #[test]
    fn a_time_is_short() {
        let shown = |ms: f64| time(Duration::from_secs_f64(ms / 1e3));
        assert_eq!([shown(1.26), shown(12.0), shown(9_999.0), shown(12_400.0)], ["1.3 ms", "12 ms", "9999 ms", "12 s"]);
    }
}
