//! How bytes and files are shown to a person: text as lines, everything else in hex, all of it bounded and harmless.

use std::{
    fmt::Write as _,
    fs,
    io::{self, IsTerminal as _},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
};

use similar::{ChangeTag, TextDiff};

/// Lines shown of one text.
const LINES_MAX: usize = 40;
/// Characters shown of one line.
const LINE_CHARACTERS_MAX: usize = 200;
/// Bytes shown of what is no text.
const HEX_BYTES_MAX: usize = 128;
/// Bytes of a file of which the lines that changed are looked for. Of a longer one the first difference is shown.
const DIFF_BYTES_MAX: u64 = 64 << 10;
/// Lines shown of what changed in one file.
const DIFF_LINES_MAX: usize = 12;

/// Colours, on a terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    /// For what goes to stdout.
    pub(super) fn stdout() -> Paint {
        Paint(io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    pub(super) fn good(self, text: &str) -> String {
        self.colour(32, text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.colour(31, text)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.colour(2, text)
    }

    pub(super) fn strong(self, text: &str) -> String {
        self.colour(1, text)
    }

    fn colour(self, code: u8, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `1 input`, `2 inputs`.
pub(super) fn many(number: usize, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

/// `1 byte`, `2 bytes`.
pub(super) fn bytes(number: usize) -> String {
    many(number, "byte", "bytes")
}

/// A line in which nothing can take a terminal over, cut when it is long.
fn harmless(line: &str) -> String {
    let mut shown = String::new();
    for (at, char) in line.chars().enumerate() {
        if at == LINE_CHARACTERS_MAX {
            shown.push_str(" ...");
            break;
        }
        match char {
            '\t' => shown.push(char),
            char if char.is_control() => shown.extend(char.escape_default()),
            char => shown.push(char),
        }
    }
    shown
}

/// Bytes as lines behind `indent`: text as it is, else in hex.
pub(super) fn block(bytes: &[u8], indent: &str) -> String {
    let mut shown = String::new();
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let lines: Vec<&str> = text.strip_suffix('\n').unwrap_or(text).split('\n').collect();
            for line in lines.iter().take(LINES_MAX) {
                let _ = writeln!(shown, "{indent}{}", harmless(line));
            }
            if lines.len() > LINES_MAX {
                let _ = writeln!(shown, "{indent}... {} more", many(lines.len() - LINES_MAX, "line", "lines"));
            }
        }
        Err(_) => {
            for row in bytes[..bytes.len().min(HEX_BYTES_MAX)].chunks(16) {
                let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
                let text: String =
                    row.iter().map(|byte| if (32..127).contains(byte) { char::from(*byte) } else { '.' }).collect();
                let _ = writeln!(shown, "{indent}{:<47}  {text}", hex.join(" "));
            }
            if bytes.len() > HEX_BYTES_MAX {
                let _ = writeln!(shown, "{indent}... {} more", many(bytes.len() - HEX_BYTES_MAX, "byte", "bytes"));
            }
        }
    }
    shown
}

/// A path in the state, as people read it.
pub(super) fn path_text(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => path.escape_ascii().to_string(),
    }
}

/// What stands at a path of a state folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    None,
    File { bytes: u64, executable: bool },
    Folder,
    Link(Vec<u8>),
}

impl Entry {
    pub(super) fn of(path: &Path) -> Entry {
        match fs::symlink_metadata(path) {
            Err(_) => Entry::None,
            Ok(meta) if meta.is_dir() => Entry::Folder,
            Ok(meta) if meta.is_symlink() => {
                Entry::Link(fs::read_link(path).map(|to| to.as_os_str().as_bytes().to_vec()).unwrap_or_default())
            }
            Ok(meta) => Entry::File { bytes: meta.len(), executable: meta.permissions().mode() & 0o100 != 0 },
        }
    }

    /// In words.
    pub(super) fn text(&self) -> String {
        match self {
            Entry::None => "nothing".to_owned(),
            Entry::Folder => "a folder".to_owned(),
            Entry::Link(to) => format!("a link to {}", path_text(to)),
            Entry::File { bytes, executable } => {
                format!("{bytes} bytes{}", if *executable { ", executable" } else { "" })
            }
        }
    }
}

/// What changed at one path: its sign, and what to say of it.
pub(super) fn change(before: &Entry, after: &Entry) -> (char, String) {
    match (before, after) {
        (Entry::None, after) => ('+', after.text()),
        (before, Entry::None) => ('-', format!("was {}", before.text())),
        (before, after) if before == after => ('~', after.text()),
        (before, after) => ('~', format!("{}, was {}", after.text(), before.text())),
    }
}

/// The lines that differ between two small texts, each with its sign before it; none where that says nothing.
pub(super) fn diff(before: &Path, after: &Path) -> Vec<String> {
    let text = |path: &Path| match Entry::of(path) {
        Entry::None => Some(String::new()),
        Entry::File { bytes, .. } if bytes <= DIFF_BYTES_MAX => fs::read_to_string(path).ok(),
        _ => None,
    };
    let (Some(before), Some(after)) = (text(before), text(after)) else { return Vec::new() };
    let diff = TextDiff::from_lines(&before, &after);
    let changes = diff.iter_all_changes().filter_map(|change| {
        let line = || harmless(change.value().trim_end_matches('\n'));
        match change.tag() {
            ChangeTag::Equal => None,
            ChangeTag::Insert => Some(format!("+ {}", line())),
            ChangeTag::Delete => Some(format!("- {}", line())),
        }
    });
    let mut lines: Vec<String> = changes.collect();
    if lines.len() > DIFF_LINES_MAX {
        let more = many(lines.len() - DIFF_LINES_MAX, "line", "lines");
        lines.truncate(DIFF_LINES_MAX);
        lines.push(format!("... {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_as_lines_and_bytes_in_hex_and_neither_without_end() {
        assert_eq!(block(b"one\n\x1b[2Jtwo", "  "), "  one\n  \\u{1b}[2Jtwo\n");
        assert_eq!(block(b"\xff\x00A", " "), format!(" {:<47}  ..A\n", "ff 00 41"));
        assert!(block("line\n".repeat(1_000).as_bytes(), "").ends_with("... 960 lines more\n"));
        assert!(block(&[0xff; 10_000], "").ends_with("... 9872 bytes more\n"));
        assert!(block("x".repeat(1 << 20).as_bytes(), "").len() < 300);
    }

    #[test]
    fn only_the_lines_that_changed_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let (before, after) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&before, "one\ntwo\nthree\n").unwrap();
        fs::write(&after, "one\n2\nthree\nfour").unwrap();
        assert_eq!(diff(&before, &after), ["- two", "+ 2", "+ four"]);
        fs::write(&after, "x\n".repeat(100)).unwrap();
        assert_eq!(diff(&before, &after).last().map(String::as_str), Some("... 91 lines more"));
        fs::write(&after, b"\xff").unwrap();
        assert!(diff(&before, &after).is_empty(), "no text");
    }
}
