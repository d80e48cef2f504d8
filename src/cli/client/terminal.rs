//! Lines in from stdin, outputs out to stdout: marked and harmless on a terminal, as they are elsewhere.

use std::io::{self, BufRead as _, Read as _};

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::Frame;

/// Bytes of one line typed or piped in; with its newline the largest `pubmaxsize` there is. A longer line is skipped
/// and said so.
pub(super) const LINE_BYTES_MAX: usize = (4 << 20) - 1;

/// Lines read ahead of sending. Past it reading from stdin waits.
const LINES_MAX: usize = 64;

/// Bytes of an output that is not text, shown on a terminal. Of a longer one only so many.
const BINARY_SHOWN_MAX: usize = 64;

/// Writes an output as it is; a text without a newline at its end gets one.
pub(super) fn print_output(out: &mut impl io::Write, frame: &Frame) -> anyhow::Result<()> {
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
pub(super) fn show_output(out: &mut impl io::Write, frame: &Frame) -> anyhow::Result<()> {
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

pub(super) enum Line {
    Input(Vec<u8>),
    TooLong(u64),
    /// Ctrl-C, where a terminal gives keys instead of signals.
    Interrupted,
    Broken(io::Error),
}

/// Lines of stdin, read on a thread of their own: reading a terminal cannot be cancelled, and the thread simply
/// ends with the process.
pub(super) fn read_lines() -> mpsc::Receiver<Line> {
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn lines_come_without_their_end_and_a_long_one_is_skipped_whole() {
        let mut text: &[u8] = b"a\n\r\nb\r\n12345\n123456\n1234567\nlast";
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut text, 5).unwrap() {
            lines.push(match line {
                Line::Input(bytes) => String::from_utf8(bytes).unwrap(),
                Line::TooLong(bytes) => format!("{bytes} bytes"),
                Line::Interrupted => "interrupted".to_owned(),
                Line::Broken(error) => error.to_string(),
            });
        }
        assert_eq!(lines, ["a", "", "b", "12345", "6 bytes", "7 bytes", "last"]);
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
}
