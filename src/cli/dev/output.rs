//! What contracts print on all nodes, beside each other: what is equal once, what differs marked.
//!
//! Each node's log/contract/ is read on as it grows. Lines of one ledger are compared one by one; a line is shown as soon as all
//! nodes have it, and what only some have when all of them are done with the ledger.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::types::Seq;

/// Characters of one line shown.
const LINE_CHARS_MAX: usize = 400;
/// Lines of one ledger and stream shown. What is more is counted.
const LINES_MAX: usize = 100;
/// Ledgers whose lines wait for other nodes. Past it the oldest are shown as they are.
const LEDGERS_MAX: usize = 64;
/// Bytes read at once.
const PIECE_BYTES: usize = 64 << 10;
/// What stands before the lines of a ledger.
const HEADING: &str = "--- ledger ";

/// Which output is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Logs {
    /// Of all nodes: once where it is equal
    All,
    /// Of the first node alone
    One,
    /// None
    None,
}

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// A line of a contract.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Printed {
    pub(super) seq: Seq,
    pub(super) stream: Stream,
    pub(super) text: String,
}

/// The two logs of one node.
pub(super) struct Tail {
    files: [Follow; 2],
}

impl Tail {
    /// `dir` is a node's folder.
    pub(super) fn of(dir: &Path) -> Tail {
        let follow = |name, stream| Follow::new(dir.join("log/contract").join(name), stream);
        Tail { files: [follow("stdout.log", Stream::Stdout), follow("stderr.log", Stream::Stderr)] }
    }

    /// What is new.
    pub(super) fn read(&mut self) -> Vec<Printed> {
        let mut lines = Vec::new();
        for file in &mut self.files {
            // A log that cannot be read now is read with the next change.
            let _ = file.read(&mut lines);
        }
        lines
    }
}

/// One log, which may be set aside and begun anew.
struct Follow {
    path: PathBuf,
    stream: Stream,
    open: Option<File>,
    seq: Seq,
    /// What of a line is there, without its end.
    line: Vec<u8>,
}

impl Follow {
    fn new(path: PathBuf, stream: Stream) -> Follow {
        Follow { path, stream, open: None, seq: 0, line: Vec::new() }
    }

    fn read(&mut self, lines: &mut Vec<Printed>) -> io::Result<()> {
        loop {
            let mut file = match self.open.take() {
                Some(file) => file,
                None => match File::open(&self.path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    opened => opened?,
                },
            };
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                let bytes = file.read(&mut piece)?;
                if bytes == 0 {
                    break;
                }
                self.take(&piece[..bytes], lines);
            }
            // It is read to its end; a new one may have its name.
            let is_same = match self.path.metadata() {
                Ok(now) => now.ino() == file.metadata()?.ino(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                Err(error) => return Err(error),
            };
            if is_same {
                self.open = Some(file);
                return Ok(());
            }
        }
    }

    fn take(&mut self, bytes: &[u8], lines: &mut Vec<Printed>) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            // Of a long line only its begin is kept.
            let room = (4 * LINE_CHARS_MAX + 4).saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if !ended {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(&line);
            match line.strip_prefix(HEADING).and_then(|seq| seq.parse().ok()) {
                Some(seq) => self.seq = seq,
                None => lines.push(Printed { seq: self.seq, stream: self.stream, text: shown(&line) }),
            }
        }
    }
}

/// A line as it may be shown on a terminal.
pub(super) fn shown(line: &str) -> String {
    let mut text = String::new();
    for char in line.chars().take(LINE_CHARS_MAX) {
        match char {
            '\t' => text.push(char),
            char if char.is_control() => text.extend(char.escape_default()),
            char => text.push(char),
        }
    }
    if line.chars().nth(LINE_CHARS_MAX).is_some() {
        text += "...";
    }
    text
}

/// Colours, in a terminal alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(pub(super) bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(super) fn strong(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    pub(super) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// Which nodes something is of.
    pub(super) fn nodes(self, nodes: &BTreeSet<usize>, all: usize) -> String {
        let names: Vec<String> = nodes.iter().map(|node| (node + 1).to_string()).collect();
        match (nodes.first(), nodes.len()) {
            (_, count) if count == all && all > 1 => self.faint("[all]"),
            (Some(node), 1) => self.with(&(32 + node % 5).to_string(), &format!("[{}]", names[0])),
            _ => self.strong(&format!("[{}]", names.join(","))),
        }
    }
}

/// Lines of one ledger and stream, by node.
#[derive(Debug)]
struct Group {
    lines: Vec<VecDeque<String>>,
    /// Lines that came of each node.
    counts: Vec<usize>,
}

/// Brings the lines of all nodes together.
pub(super) struct Together {
    nodes: usize,
    paint: Paint,
    groups: BTreeMap<(Seq, Stream), Group>,
    /// Ledgers that were shown to their end. What comes later is shown as it comes.
    ended: Seq,
}

impl Together {
    pub(super) fn new(nodes: usize, paint: Paint) -> Together {
        Together { nodes, paint, groups: BTreeMap::new(), ended: 0 }
    }

    /// Another line of a node; the text to be shown now.
    pub(super) fn add(&mut self, node: usize, line: Printed) -> String {
        let Printed { seq, stream, text } = line;
        let mut told = String::new();
        if seq <= self.ended {
            let (paint, all) = (self.paint, self.nodes);
            tell(&mut told, paint, all, &[(BTreeSet::from([node]), text)], (seq, stream));
            return told;
        }
        while self.groups.len() >= LEDGERS_MAX && !self.groups.contains_key(&(seq, stream)) {
            let oldest = self.groups.first_key_value().expect("there are many").0.0;
            told += &self.end(oldest);
        }
        let nodes = self.nodes;
        let fresh = || Group { lines: vec![VecDeque::new(); nodes], counts: vec![0; nodes] };
        let group = self.groups.entry((seq, stream)).or_insert_with(fresh);
        group.counts[node] += 1;
        if group.counts[node] <= LINES_MAX {
            group.lines[node].push_back(text);
        }
        told += &self.show((seq, stream), false);
        told
    }

    /// The oldest ledger of which something is not shown.
    pub(super) fn waiting(&self) -> Option<Seq> {
        self.groups.iter().find(|(_, group)| group.lines.iter().any(|lines| !lines.is_empty())).map(|(key, _)| key.0)
    }

    /// All nodes are done with the ledgers up to this one: what only some of them printed, too.
    pub(super) fn end(&mut self, seq: Seq) -> String {
        let mut told = String::new();
        let due: Vec<(Seq, Stream)> = self.groups.keys().copied().take_while(|key| key.0 <= seq).collect();
        for key in due {
            told += &self.show(key, true);
            let group = self.groups.remove(&key).expect("just seen");
            let most = group.counts.iter().max().copied().unwrap_or_default();
            if most > LINES_MAX {
                let more = format!("... {} more lines, in log/contract/", most - LINES_MAX);
                let from = (0..self.nodes).filter(|node| group.counts[*node] > LINES_MAX).collect();
                tell(&mut told, self.paint, self.nodes, &[(from, more)], key);
            }
        }
        self.ended = self.ended.max(seq);
        told
    }

    /// The lines that all nodes have; to the end also those of some.
    fn show(&mut self, key: (Seq, Stream), to_end: bool) -> String {
        let mut told = String::new();
        let group = self.groups.get_mut(&key).expect("a key of theirs");
        loop {
            let some = group.lines.iter().any(|lines| !lines.is_empty());
            let all = group.lines.iter().all(|lines| !lines.is_empty());
            if !(all || (to_end && some)) {
                return told;
            }
            let mut texts: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
            for (node, lines) in group.lines.iter_mut().enumerate() {
                if let Some(text) = lines.pop_front() {
                    texts.entry(text).or_default().insert(node);
                }
            }
            let mut variants: Vec<(BTreeSet<usize>, String)> =
                texts.into_iter().map(|(text, nodes)| (nodes, text)).collect();
            variants.sort();
            tell(&mut told, self.paint, self.nodes, &variants, key);
        }
    }
}

/// One line, in all its variants.
fn tell(told: &mut String, paint: Paint, all: usize, variants: &[(BTreeSet<usize>, String)], key: (Seq, Stream)) {
    let is_equal = matches!(variants, [(nodes, _)] if nodes.len() == all);
    let stream = match key.1 {
        Stream::Stdout => "out",
        Stream::Stderr => "err",
    };
    for (nodes, text) in variants {
        let mark = if is_equal { " ".to_owned() } else { paint.bad("≠") };
        let from = paint.faint(&format!("{} {stream}", key.0));
        writeln!(told, "{} {from} {mark} {text}", paint.nodes(nodes, all)).expect("into memory");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;

    fn line(seq: Seq, text: &str) -> Printed {
        Printed { seq, stream: Stream::Stdout, text: text.to_owned() }
    }

    #[test]
    fn equal_lines_are_shown_once_when_all_nodes_have_them_and_differing_ones_are_marked() {
        let mut together = Together::new(3, Paint(false));
        assert_eq!(together.add(0, line(7, "same")) + &together.add(1, line(7, "same")), "");
        assert_eq!(together.add(2, line(7, "same")), "[all] 7 out   same\n");
        together.add(0, line(7, "pid 1"));
        together.add(1, line(7, "pid 2"));
        assert_eq!(together.add(2, line(7, "pid 1")), "[1,3] 7 out ≠ pid 1\n[2] 7 out ≠ pid 2\n");
        // What one node prints alone waits for the end of the ledger.
        assert_eq!(together.add(1, line(8, "mine")), "");
        assert_eq!(together.waiting(), Some(8));
        assert_eq!(together.end(8), "[2] 8 out ≠ mine\n");
        assert_eq!(together.waiting(), None);
        assert_eq!(together.add(0, line(8, "late")), "[1] 8 out ≠ late\n");
    }

    #[test]
    fn one_node_alone_is_never_different_and_much_is_counted() {
        let mut together = Together::new(1, Paint(false));
        assert_eq!(together.add(0, line(1, "a")), "[1] 1 out   a\n");
        for _ in 0..LINES_MAX + 4 {
            together.add(0, line(2, "b"));
        }
        assert_eq!(together.end(2), "[1] 2 out   ... 4 more lines, in log/contract/\n");
        let mut together = Together::new(2, Paint(false));
        for seq in 1..=LEDGERS_MAX as Seq + 1 {
            let told = together.add(0, line(seq, "x"));
            assert_eq!(told.is_empty(), seq <= LEDGERS_MAX as Seq, "the oldest makes room: {told}");
        }
    }

    #[test]
    fn a_log_is_read_on_over_the_change_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().join("log/contract");
        let mut tail = Tail::of(folder.path());
        assert_eq!(tail.read(), []);
        fs::create_dir_all(&logs).unwrap();
        let path = logs.join("stdout.log");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"--- ledger 3\none\ntw").unwrap();
        assert_eq!(tail.read(), [line(3, "one")]);
        file.write_all(b"o\x1b[2J\n").unwrap();
        fs::rename(&path, logs.join("stdout.log.1")).unwrap();
        fs::write(&path, "--- ledger 4\nthree\n").unwrap();
        assert_eq!(tail.read(), [line(3, "two\\u{1b}[2J"), line(4, "three")]);
        let long = "x".repeat(10 * LINE_CHARS_MAX);
        fs::write(logs.join("stderr.log"), format!("--- ledger 4\n{long}\n")).unwrap();
        let read = tail.read();
        assert_eq!((read.len(), read[0].text.len()), (1, LINE_CHARS_MAX + 3));
    }
}
