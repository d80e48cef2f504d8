//! A line to type, with a history, and a place above it where everything else is shown; and the commands that a line may be.

use std::{
    fs,
    io::{self, IsTerminal as _, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use rustyline::{Config, DefaultEditor, ExternalPrinter, error::ReadlineError};
use tokio::sync::mpsc;

use super::{
    super::tty::Restore,
    terminal::{LINE_BYTES_MAX, Line},
};

/// Lines of the history that are kept. Past it the oldest is forgotten.
const HISTORY_MAX: usize = 1_000;
/// Bytes of a line that is kept in the history.
const HISTORY_LINE_BYTES_MAX: usize = 4_096;
/// Lines read ahead of sending. Past it typing waits.
const LINES_MAX: usize = 64;

/// What a line that was typed asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// An input, without its newline.
    Input(Vec<u8>),
    /// A question to the contract.
    Read(Vec<u8>),
    /// The last closed ledger.
    Lcl,
    /// Where the conversation stands.
    Status,
    /// Whose key it is.
    Key,
    /// A file as an input.
    File(PathBuf),
    /// The end.
    Quit,
    /// A word on the commands.
    Help,
    /// A command that there is not.
    Unknown(String),
}

/// What `/help` says.
pub(super) const HELP: &str = "\
a line is an input, sent with its newline; a line that begins with a slash is a command:
  /read TEXT   ask the contract TEXT, without a ledger (the node's word)
  /lcl         the last closed ledger
  /status      node, network, and what has had no answer yet
  /key         your key, and where it is
  /file PATH   send a file as one input
  /quit        end, as Ctrl-D does
  //TEXT       the input /TEXT";

impl Typed {
    /// What a line asks for.
    pub(super) fn of(line: Vec<u8>) -> Typed {
        let Some(command) = line.strip_prefix(b"/") else { return Typed::Input(line) };
        if command.starts_with(b"/") {
            return Typed::Input(command.to_vec());
        }
        let (name, rest) = match command.iter().position(|byte| *byte == b' ') {
            Some(at) => (&command[..at], &command[at + 1..]),
            None => (command, &b""[..]),
        };
        match (name, rest) {
            (b"read", text) => Typed::Read(text.to_vec()),
            (b"lcl", b"") => Typed::Lcl,
            (b"status", b"") => Typed::Status,
            (b"key", b"") => Typed::Key,
            (b"quit", b"") => Typed::Quit,
            (b"help", b"") => Typed::Help,
            (b"file", path) if !path.trim_ascii().is_empty() => {
                use std::os::unix::ffi::OsStrExt as _;
                Typed::File(std::ffi::OsStr::from_bytes(path.trim_ascii()).into())
            }
            _ => Typed::Unknown(String::from_utf8_lossy(&line).into_owned()),
        }
    }
}

/// Reads a file, or stdin for `-`, as one input.
pub(super) fn read_input(path: &Path) -> anyhow::Result<Vec<u8>> {
    // One more than may be sent, to see that there is more.
    let most = LINE_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let read = match path.to_str() {
        Some("-") => io::stdin().lock().take(most + 1).read_to_end(&mut bytes),
        _ => fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)),
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(bytes.len() as u64 <= most, "{} is longer than an input may be ({most} bytes)", path.display());
    Ok(bytes)
}

/// Writes above the line that is being typed.
#[derive(Clone)]
pub(super) struct Above(Arc<Mutex<Box<dyn ExternalPrinter + Send>>>);

impl io::Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut printer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        printer.print(text).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line to type on this terminal, which is as it was when this is dropped: the line may be waiting for a key at the end.
pub(super) struct Prompt {
    pub(super) lines: mpsc::Receiver<Line>,
    pub(super) above: Above,
    _restore: Restore,
}

impl Drop for Prompt {
    fn drop(&mut self) {
        // What comes next stands on a line of its own.
        eprintln!();
    }
}

impl Prompt {
    /// `None` when this is no terminal to type on. The history is kept in this file, for its owner alone.
    pub(super) fn open(history: Option<PathBuf>) -> Option<Prompt> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return None;
        }
        let restore = Restore::take()?;
        let config = Config::builder().max_history_size(HISTORY_MAX).ok()?.history_ignore_dups(true).ok()?.build();
        let mut editor = DefaultEditor::with_config(config).ok()?;
        let above = Above(Arc::new(Mutex::new(Box::new(editor.create_external_printer().ok()?))));
        if let Some(history) = &history {
            // The first time there is none.
            let _ = editor.load_history(history);
        }
        let (sender, lines) = mpsc::channel(LINES_MAX);
        // A thread of its own: reading a terminal cannot be cancelled, and the thread simply ends with the process.
        std::thread::spawn(move || {
            loop {
                let line = match editor.readline("> ") {
                    Ok(line) if line.len() > LINE_BYTES_MAX => Line::TooLong(line.len() as u64),
                    Ok(line) => {
                        if line.len() <= HISTORY_LINE_BYTES_MAX
                            && editor.add_history_entry(&line).unwrap_or_default()
                            && let Some(history) = &history
                        {
                            // The file has mode 0600. Without it, the history lives as long as the process.
                            let _ = editor.append_history(history);
                        }
                        Line::Input(line.into_bytes())
                    }
                    Err(ReadlineError::Interrupted) => Line::Interrupted,
                    Err(ReadlineError::Eof) => break,
                    Err(error) => Line::Broken(io::Error::other(error)),
                };
                let last = matches!(line, Line::Interrupted | Line::Broken(_));
                if sender.blocking_send(line).is_err() || last {
                    break;
                }
            }
        });
        Some(Prompt { lines, above, _restore: restore })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_input_a_command_or_said_to_be_none() {
        let of = |line: &str| Typed::of(line.as_bytes().to_vec());
        assert_eq!(of("hello /help"), Typed::Input(b"hello /help".to_vec()));
        assert_eq!(of(""), Typed::Input(Vec::new()));
        assert_eq!(of("//help"), Typed::Input(b"/help".to_vec()));
        assert_eq!(of("/read  two words"), Typed::Read(b" two words".to_vec()));
        assert_eq!(of("/read"), Typed::Read(Vec::new()));
        assert_eq!(of("/file  a b "), Typed::File("a b".into()));
        for (line, typed) in [
            ("/lcl", Typed::Lcl),
            ("/status", Typed::Status),
            ("/key", Typed::Key),
            ("/quit", Typed::Quit),
            ("/help", Typed::Help),
        ] {
            assert_eq!(of(line), typed);
        }
        for unknown in ["/", "/x", "/lcl now", "/file", "/file ", "/ read"] {
            assert_eq!(of(unknown), Typed::Unknown(unknown.to_owned()));
        }
    }

    #[test]
    fn a_file_is_an_input_unless_it_is_longer_than_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"\xffx\n").unwrap();
        assert_eq!(read_input(file.path()).unwrap(), b"\xffx\n");
        file.as_file().set_len(LINE_BYTES_MAX as u64 + 2).unwrap();
        assert!(read_input(file.path()).unwrap_err().to_string().contains("longer than an input may be"));
        assert!(read_input(Path::new("/no/such/file")).unwrap_err().to_string().contains("/no/such/file"));
    }
}
