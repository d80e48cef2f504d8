//! Keeps what contracts write to stdout and stderr: `stdout.log` and `stderr.log`, bounded, written by a thread of
//! their own so that neither a contract nor the node ever waits for the disk.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use crate::types::Seq;

/// A log file that would grow past this becomes `<name>.1`, that one `<name>.2` and so on, and a new one begins.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Pieces waiting for the disk, of up to 64 KiB each. Past it pieces are dropped, and counted in the log.
const QUEUE_PIECES_MAX: usize = 64;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn file_name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout.log",
            Stream::Stderr => "stderr.log",
        }
    }
}

/// What the writing thread gets.
enum Job {
    Write(Piece),
    /// Everything before it is on its way to the disk: told by dropping the sender.
    Flush(#[expect(dead_code, reason = "dropping it is the message")] SyncSender<()>),
}

/// Where a log is, and how many files of each stream are kept there.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) dir: Arc<Path>,
    pub(super) files: usize,
}

struct Piece {
    place: Place,
    stream: Stream,
    bytes: Vec<u8>,
}

/// The way to the writing thread, which ends with the last of these.
#[derive(Debug, Clone)]
pub(super) struct LogQueue(SyncSender<Job>);

impl LogQueue {
    pub(super) fn start() -> io::Result<LogQueue> {
        let (sender, receiver) = sync_channel(QUEUE_PIECES_MAX);
        std::thread::Builder::new().name("contract-log".into()).spawn(move || write_all(&receiver))?;
        Ok(LogQueue(sender))
    }

    /// Waits until all that is in the queue is in its files. Blocks.
    pub(super) fn flush(&self) {
        let (done, wait) = sync_channel(0);
        if self.0.send(Job::Flush(done)).is_ok() {
            let _ = wait.recv();
        }
    }
}

/// One stream of one run on its way to the log.
pub(super) struct StreamLog {
    queue: LogQueue,
    place: Place,
    stream: Stream,
    seq: Seq,
    begun: bool,
    /// Whether the last byte kept was not the end of a line.
    mid_line: bool,
    left: u64,
    dropped: u64,
}

impl StreamLog {
    pub(super) fn new(queue: LogQueue, place: Place, stream: Stream, seq: Seq, bytes_max: u64) -> StreamLog {
        StreamLog { queue, place, stream, seq, begun: false, mid_line: false, left: bytes_max, dropped: 0 }
    }

    /// Takes what the contract wrote; keeps the part within the bounds. A run that writes nothing leaves no line.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let keep = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if keep > 0 {
            let mut text = Vec::with_capacity(keep + 32);
            if !self.begun {
                text.extend_from_slice(format!("--- ledger {}\n", self.seq).as_bytes());
            }
            text.extend_from_slice(&bytes[..keep]);
            if !self.send(text) {
                self.dropped += bytes.len() as u64;
                return;
            }
            self.begun = true;
            self.mid_line = bytes[keep - 1] != b'\n';
            self.left -= keep as u64;
        }
        self.dropped += (bytes.len() - keep) as u64;
    }

    /// The run is over: ends its last line, and says what was not kept.
    pub(super) fn finish(mut self) {
        let mut note = String::new();
        if self.mid_line {
            note.push('\n');
        }
        if self.dropped > 0 {
            note.push_str(&format!("--- ledger {}: {} more bytes were not kept\n", self.seq, self.dropped));
        }
        if !note.is_empty() {
            self.send(note.into_bytes());
        }
    }

    fn send(&mut self, bytes: Vec<u8>) -> bool {
        let piece = Piece { place: self.place.clone(), stream: self.stream, bytes };
        self.queue.0.try_send(Job::Write(piece)).is_ok()
    }
}

/// What contracts printed last: the name of each stream, and the end of its log below `dir` (`log/contract/`), whole lines of up
/// to `bytes_max` bytes. Nothing for one that was never written to.
pub fn log_ends(dir: &Path, bytes_max: u64) -> io::Result<[(&'static str, String); 2]> {
    let end = |stream: Stream| -> io::Result<String> {
        let mut file = match File::open(dir.join(stream.file_name())) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(error),
        };
        let skipped = file.metadata()?.len().saturating_sub(bytes_max);
        file.seek(io::SeekFrom::Start(skipped))?;
        let mut bytes = Vec::new();
        // It may grow meanwhile.
        file.take(bytes_max).read_to_end(&mut bytes)?;
        let begin = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(newline) if skipped > 0 => newline + 1,
            _ => 0,
        };
        Ok(String::from_utf8_lossy(&bytes[begin..]).into_owned())
    };
    Ok([("stdout", end(Stream::Stdout)?), ("stderr", end(Stream::Stderr)?)])
}

struct LogFile {
    file: File,
    bytes: u64,
}

fn write_all(jobs: &Receiver<Job>) {
    let mut files: BTreeMap<(Arc<Path>, Stream), LogFile> = BTreeMap::new();
    let mut healthy = true;
    for job in jobs {
        let Job::Write(piece) = job else { continue };
        let Place { dir, files: kept } = piece.place;
        let path = dir.join(piece.stream.file_name());
        let key = (dir, piece.stream);
        // Kept open from ledger to ledger; taken out so that a failure opens it anew.
        let open = files.remove(&key);
        match append(&path, kept, open, &piece.bytes) {
            Ok(file) => {
                files.insert(key, file);
                healthy = true;
            }
            Err(error) => {
                if healthy {
                    tracing::warn!(path = %path.display(), %error, "cannot write what the contract printed");
                }
                healthy = false;
            }
        }
        // One folder is the rule; a caller with ever new ones shall not keep them all open.
        while files.len() > 8 {
            files.pop_first();
        }
    }
}

fn append(path: &Path, kept: usize, open: Option<LogFile>, bytes: &[u8]) -> io::Result<LogFile> {
    let mut log = match open {
        Some(log) => log,
        None => open_log(path)?,
    };
    if log.bytes > 0 && log.bytes + bytes.len() as u64 > FILE_BYTES_MAX {
        rotate(path, kept)?;
        log = open_log(path)?;
    }
    log.file.write_all(bytes)?;
    log.bytes += bytes.len() as u64;
    Ok(log)
}

/// Makes room for a new file, and leaves so many together with it.
fn rotate(path: &Path, kept: usize) -> io::Result<()> {
    let numbered = |number: usize| match number {
        0 => path.to_owned(),
        number => {
            let mut name = path.to_owned().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        }
    };
    // More of them may be left of a time when more were kept.
    let mut last = kept.saturating_sub(1);
    while numbered(last).exists() {
        fs::remove_file(numbered(last))?;
        last += 1;
    }
    for number in (0..kept.saturating_sub(1)).rev() {
        match fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn open_log(path: &Path) -> io::Result<LogFile> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let file = File::options().append(true).create(true).open(path)?;
    let bytes = file.metadata()?.len();
    Ok(LogFile { file, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path, bytes_max: u64) -> (StreamLog, Receiver<Job>) {
        let (sender, receiver) = sync_channel(QUEUE_PIECES_MAX);
        let place = Place { dir: dir.into(), files: 2 };
        (StreamLog::new(LogQueue(sender), place, Stream::Stdout, 7, bytes_max), receiver)
    }

    #[test]
    fn the_end_of_a_log_is_whole_lines_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let ends = |bytes_max| log_ends(dir.path(), bytes_max).unwrap().map(|(_, text)| text);
        assert_eq!(ends(9), ["", ""]);
        fs::write(dir.path().join("stdout.log"), b"first\nsecond\nthird \xff\n").unwrap();
        fs::write(dir.path().join("stderr.log"), "one line that is longer").unwrap();
        assert_eq!(ends(100), ["first\nsecond\nthird \u{fffd}\n", "one line that is longer"]);
        assert_eq!(ends(11), ["third \u{fffd}\n", "t is longer"], "no half of a line before others");
    }

    #[test]
    fn each_run_that_prints_gets_a_heading_and_one_that_does_not_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("log/contract");
        for parts in [&["one ", "two"][..], &[], &["three\n"]] {
            let (mut log, pieces) = log(&place, 100);
            parts.iter().for_each(|part| log.add(part.as_bytes()));
            log.finish();
            write_all(&pieces);
        }
        let text = fs::read_to_string(place.join("stdout.log")).unwrap();
        assert_eq!(text, "--- ledger 7\none two\n--- ledger 7\nthree\n");
    }

    #[test]
    fn what_is_over_the_bound_of_a_run_is_counted_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, pieces) = log(dir.path(), 5);
        log.add(b"abc");
        log.add(b"defg");
        log.add(b"h");
        log.finish();
        write_all(&pieces);
        let text = fs::read_to_string(dir.path().join("stdout.log")).unwrap();
        assert_eq!(text, "--- ledger 7\nabcde\n--- ledger 7: 3 more bytes were not kept\n");
    }

    #[test]
    fn a_full_queue_drops_and_never_waits() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, pieces) = log(dir.path(), u64::MAX);
        (0..QUEUE_PIECES_MAX + 3).for_each(|_| log.add(b"x"));
        assert_eq!((log.dropped, pieces.try_iter().count()), (3, QUEUE_PIECES_MAX));
    }

    #[test]
    fn a_full_file_is_kept_under_another_name_and_so_many_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout.log");
        let big = vec![b'x'; FILE_BYTES_MAX as usize - 1];
        let names = || {
            let mut names: Vec<String> = fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let log = append(&path, 3, None, &big).unwrap();
        let log = append(&path, 3, Some(log), b"yz").unwrap();
        append(&path, 3, Some(log), b"!").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"yz!");
        assert_eq!(fs::metadata(dir.path().join("stdout.log.1")).unwrap().len(), FILE_BYTES_MAX - 1);
        for round in 0..3 {
            append(&path, 3, None, &big).unwrap();
            append(&path, 3, None, format!("{round}").as_bytes()).unwrap();
        }
        assert_eq!(names(), ["stdout.log", "stdout.log.1", "stdout.log.2"]);
        // Fewer from now on: those of before go too.
        fs::write(dir.path().join("stdout.log.3"), "old").unwrap();
        append(&path, 1, None, &big).unwrap();
        append(&path, 1, None, b"alone").unwrap();
        assert_eq!((names(), fs::read(&path).unwrap()), (vec!["stdout.log".to_owned()], b"alone".to_vec()));
    }
}
