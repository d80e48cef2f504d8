//! What happened, in words, for whoever must understand a failed seed.

use std::{cell::RefCell, collections::VecDeque};

use hotpocket::consensus::{
    Event,
    header::Candidate,
    journal::Record,
    messages::{Get, Message},
};

/// Lines of a trace that are kept for the report of a failure.
const TRACE_LINES_MAX: usize = 200_000;

thread_local! {
    static TRACE: RefCell<Option<VecDeque<String>>> = const { RefCell::new(None) };
}

/// Starts keeping what happens on this thread.
pub fn trace_on() {
    TRACE.with(|trace| *trace.borrow_mut() = Some(VecDeque::new()));
}

/// What happened last.
pub fn trace_take() -> Vec<String> {
    TRACE.with(|trace| trace.borrow_mut().take()).unwrap_or_default().into()
}

/// Keeps a line, when this thread keeps any.
pub(super) fn trace(line: impl FnOnce() -> String) {
    TRACE.with(|trace| {
        if let Some(lines) = trace.borrow_mut().as_mut() {
            lines.push_back(line());
            if lines.len() > TRACE_LINES_MAX {
                lines.pop_front();
            }
        }
    });
}

/// One line about an event.
pub(super) fn describe_event(event: &Event) -> String {
    match event {
        Event::Message(from, message) => format!("{} of {}", describe(message), from.0[0] - 1),
        other => format!("{other:?}"),
    }
}

/// A few words about a record.
pub(super) fn describe_record(record: &Record) -> String {
    match record {
        Record::Input(input) => format!("input {}", input.nonce),
        Record::Forget(ids) => format!("forget {}", ids.len()),
        Record::Novel(_) => "NOVEL".into(),
        Record::Prevote(vote, _) => format!("PREVOTE {}", vote.body.0.attempt),
        Record::Precommit(vote, ..) => format!("PRECOMMIT {}", vote.body.0.attempt),
        Record::Advance(advance) => format!("ADVANCE {}", advance.vote.body.attempt),
        Record::Entered(tc, _) => format!("Tc {}", tc.attempt()),
        Record::Ledger(ledger) => format!("ledger {}", ledger.candidate.header.seq),
        Record::UnlVote(vote) => format!("vote {vote:?}"),
        Record::Result(result) => format!("RESULT {} {}", result.body.of_seq, result.body.status),
        Record::Overtime(overtime) => format!("OVERTIME {}", overtime.body.of_seq),
        Record::Synced(result) => format!("state after {} fetched", result.of_seq),
        Record::Bare(ledger) => format!("ledger {} passed over", ledger.header.seq),
        Record::Base(users) => format!("goes on with {} users", users.len()),
        Record::Heard(members) => format!("heard of {}", members.len()),
        Record::Silence(silence) => format!("silence {silence:?}"),
        Record::Adopted(result) => format!("adopted result {} {}", result.of_seq, result.status),
    }
}

/// A few words about a message.
pub(super) fn describe(message: &Message) -> String {
    let mut text = message.kind().to_string();
    if let Some(seq) = message.round_seq() {
        text += &format!(" {seq}/{}", message.round_attempt());
    }
    match message {
        Message::Result(m) => text += &format!(" {} {}", m.body.state_root.short(), m.body.status),
        Message::Novel(m) => text += &format!(" {} inputs {}", m.body.inputs.len(), m.id().short()),
        Message::Prevote(m) => text += &format!(" {}", m.body.0.ledger_hash.short()),
        Message::Precommit(m) => text += &format!(" {}", m.body.0.ledger_hash.short()),
        Message::Advance(m) => text += &format!(" high {:?}", m.vote.body.high),
        Message::TcFwd(m) => text += &format!(" high {:?}", m.tc.high()),
        Message::Propose(m) => text += &format!(" {}", m.body.ledger_hash.short()),
        Message::Closed(m) => text += &format!(" {} {}", m.header.seq, m.header.hash().short()),
        Message::Get(Get::Inputs(ids)) => text += &format!(" {} inputs", ids.len()),
        Message::Get(get) => text += &format!(" {get:?}"),
        Message::Candidate(Candidate { header, .. }) => text += &format!(" {}", header.hash().short()),
        Message::Range(m) => text += &format!(" {} of {} ledgers", m.first, m.ledgers.len()),
        Message::Headers(m) => {
            text += &format!(" {} of {} ledgers, contents from {}", m.first, m.ledgers.len(), m.oldest)
        }
        Message::Users(m) => text += &format!(" {} of ledger {}", m.users.len(), m.seq),
        Message::Status(m) => text += &format!(" {}", m.body.seq),
        _ => {}
    }
    text
}
