//! The bus's history on disk: one line an entry, each with the hash of all before it, on disk before anybody hears of it.
//!
//! A line is 64 hexadecimal digits, a space, JSON and a newline; the digits are BLAKE3 over the tag, the digits' bytes of the
//! line before (zeros for the first), and the JSON. Only the last line can be cut short by a crash, because no line is begun
//! before the one before it is on disk.

use std::{
    fs::{File, TryLockError},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use crate::types::Hash;

/// Stands first in what each line's hash is of.
const TAG: &[u8] = b"hp-msb-log/1";

/// Bytes of a line. An operation takes about 1,300.
const LINE_BYTES_MAX: usize = 8 << 10;

/// Lines of a log, about 1.3 GB of operations and 100 MB of memory. Past it nothing is taken any more.
pub(super) const LINES_MAX: u64 = 1 << 20;

/// Why there is no log, or no further line.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{} is in use by another process", path.display())]
    Taken {
        /// Which file.
        path: PathBuf,
    },
    /// Something else than a crash changed it.
    #[error("{}: line {line} (byte {at}): {what}; restore the file from a copy, or move it away to begin a new bus", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Where the line begins.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// It is as long as it may be.
    #[error("{} has {LINES_MAX} lines, and takes no more", path.display())]
    Full {
        /// Which file.
        path: PathBuf,
    },
    /// A line could neither be written nor taken back.
    #[error("{} is not written any more, because its end is not known: start the bus again", path.display())]
    Unknown {
        /// Which file.
        path: PathBuf,
    },
}

/// The open log, of which there is one at a time.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    /// Bytes that are right and on disk.
    end: u64,
    /// Of the last line.
    hash: Hash,
    /// Where each line begins.
    lines: Vec<u64>,
    /// Whether a line was begun and could not be taken back.
    unknown: bool,
}

fn chained(before: &Hash, json: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(TAG).update(&before.0).update(json);
    Hash(*hasher.finalize().as_bytes())
}

fn line_of(before: &Hash, json: &str) -> (Hash, String) {
    let hash = chained(before, json.as_bytes());
    (hash, format!("{hash} {json}\n"))
}

/// Bytes of the whole lines of a log that may be being written: what was told to anybody is in them.
pub(super) fn whole_bytes(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    // A line that is begun is no longer than that.
    let from = len.saturating_sub(LINE_BYTES_MAX as u64);
    let mut end = vec![0; usize::try_from(len - from).expect("at most a line")];
    file.read_exact_at(&mut end, from)?;
    Ok(end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| from + at as u64 + 1))
}

impl Log {
    /// Makes a log of one line. It is there whole or not at all.
    pub(super) fn create(path: &Path, head: &str) -> Result<(), LogError> {
        let failed = |what| move |source| LogError::Io { what, path: path.to_owned(), source };
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed("write beside"))?;
        let (_, line) = line_of(&Hash::ZERO, head);
        file.write_all(line.as_bytes()).map_err(failed("write"))?;
        file.as_file().sync_all().map_err(failed("sync"))?;
        file.persist_noclobber(path).map_err(|error| failed("make")(error.error))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync the folder of"))
    }

    /// Opens a log, gives `each` the JSON of each line, and returns how many bytes of an unfinished last line were cut off.
    pub(super) fn open(
        path: &Path,
        mut each: impl FnMut(u64, &str) -> Result<(), String>,
    ) -> Result<(Log, u64), LogError> {
        let failed = |what| move |source| LogError::Io { what, path: path.to_owned(), source };
        let file = File::options().read(true).write(true).open(path).map_err(failed("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LogError::Taken { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        let size = file.metadata().map_err(failed("look at"))?.len();
        let mut log = Log { path: path.to_owned(), file, end: 0, hash: Hash::ZERO, lines: Vec::new(), unknown: false };
        let reader = log.file.try_clone().map_err(failed("open"))?;
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            let limit = LINE_BYTES_MAX as u64 + 1;
            let read = io::Read::take(&mut reader, limit).read_until(b'\n', &mut line).map_err(failed("read"))?;
            if read == 0 {
                return Ok((log, 0));
            }
            let number = log.lines.len() as u64;
            let damaged =
                |what: String| LogError::Damaged { path: path.to_owned(), line: number + 1, at: log.end, what };
            match read_line(&log.hash, &line) {
                Ok((hash, json)) => {
                    each(number, json).map_err(damaged)?;
                    log.lines.push(log.end);
                    log.end += read as u64;
                    log.hash = hash;
                }
                // A crash leaves one unfinished line, at the end, behind the first one, which is never unfinished.
                Err(Wrong::Unfinished) if number > 0 && log.end + read as u64 == size => {
                    log.file.set_len(log.end).map_err(failed("cut"))?;
                    log.file.sync_all().map_err(failed("sync"))?;
                    let cut = size - log.end;
                    return Ok((log, cut));
                }
                Err(Wrong::Unfinished) => return Err(damaged("it is no whole line".to_owned())),
                Err(Wrong::Hash) => return Err(damaged("its hash does not fit it and what is before it".to_owned())),
            }
        }
    }

    /// Writes a line, and returns when it is on disk. After an error nothing was written, unless it is [`LogError::Unknown`].
    pub(super) fn append(&mut self, json: &str) -> Result<(), LogError> {
        let path = || self.path.clone();
        if self.unknown {
            return Err(LogError::Unknown { path: path() });
        }
        if self.lines.len() as u64 >= LINES_MAX {
            return Err(LogError::Full { path: path() });
        }
        let (hash, line) = line_of(&self.hash, json);
        assert!(line.len() <= LINE_BYTES_MAX, "what is written can be read");
        let written = self.file.write_all_at(line.as_bytes(), self.end).map_err(|source| ("write", source));
        if let Err((what, source)) = written.and_then(|()| self.file.sync_data().map_err(|source| ("sync", source))) {
            let undone = self.file.set_len(self.end).and_then(|()| self.file.sync_all());
            // What a failed sync left on disk nobody knows, unless the next one works.
            self.unknown = undone.is_err();
            return Err(LogError::Io { what, path: self.path.clone(), source });
        }
        self.lines.push(self.end);
        self.end += line.len() as u64;
        self.hash = hash;
        Ok(())
    }

    /// Whether no line can be written until the log is opened again.
    pub(super) fn is_stuck(&self) -> bool {
        self.unknown
    }

    /// A way to read lines while others are written.
    pub(super) fn reader(&self) -> Result<Reader, LogError> {
        let failed = |source| LogError::Io { what: "open", path: self.path.clone(), source };
        Ok(Reader { file: self.file.try_clone().map_err(failed)? })
    }

    /// Where each line begins.
    pub(super) fn lines(&self) -> &[u64] {
        &self.lines
    }

    /// Where the next line begins.
    pub(super) fn end(&self) -> u64 {
        self.end
    }
}

/// Reads lines of a log that is open.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
}

impl Reader {
    /// The JSON of the line that begins at this byte.
    pub(super) fn json(&self, at: u64) -> io::Result<String> {
        let mut bytes = vec![0; LINE_BYTES_MAX];
        let mut filled = 0;
        loop {
            let read = self.file.read_at(&mut bytes[filled..], at + filled as u64)?;
            let end = bytes[filled..filled + read].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let line = std::str::from_utf8(&bytes[..filled + end]).map_err(io::Error::other)?;
                let (_, json) = line.split_once(' ').ok_or_else(|| io::Error::other("a line without a space"))?;
                return Ok(json.to_owned());
            }
            filled += read;
            if read == 0 || filled == bytes.len() {
                return Err(io::Error::other("a line without an end"));
            }
        }
    }
}

enum Wrong {
    /// No line, or not all of it.
    Unfinished,
    /// A line, but not this one.
    Hash,
}

/// A file that grew before its bytes came has zeros there; what is cut has no newline. Anything else is no crash's work.
fn read_line<'a>(before: &Hash, line: &'a [u8]) -> Result<(Hash, &'a str), Wrong> {
    let whole = line.strip_suffix(b"\n").ok_or(Wrong::Unfinished)?;
    if whole.contains(&0) {
        return Err(Wrong::Unfinished);
    }
    let text = std::str::from_utf8(whole).map_err(|_| Wrong::Hash)?;
    let (hash, json) = text.split_once(' ').ok_or(Wrong::Hash)?;
    let hash: Hash = hash.parse().map_err(|_| Wrong::Hash)?;
    if chained(before, json.as_bytes()) == hash { Ok((hash, json)) } else { Err(Wrong::Hash) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ENTRIES: [&str; 3] = [r#"{"head":1}"#, r#"{"a":"one"}"#, r#"{"b":"two, which is last"}"#];

    fn made(folder: &tempfile::TempDir) -> PathBuf {
        let path = folder.path().join("log");
        Log::create(&path, ENTRIES[0]).unwrap();
        let (mut log, cut) = Log::open(&path, |_, _| Ok(())).unwrap();
        assert_eq!(cut, 0);
        ENTRIES[1..].iter().for_each(|entry| log.append(entry).unwrap());
        path
    }

    fn read(path: &Path) -> Result<(Vec<String>, u64), LogError> {
        let mut found = Vec::new();
        let (_, cut) = Log::open(path, |number, json| {
            assert_eq!(number, found.len() as u64);
            found.push(json.to_owned());
            Ok(())
        })?;
        Ok((found, cut))
    }

    #[test]
    fn lines_come_back_in_order_and_one_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = made(&folder);
        assert_eq!(read(&path).unwrap(), (ENTRIES.map(str::to_owned).to_vec(), 0));
        let (log, _) = Log::open(&path, |_, _| Ok(())).unwrap();
        let reader = log.reader().unwrap();
        let found: Vec<String> = log.lines().iter().map(|at| reader.json(*at).unwrap()).collect();
        assert_eq!((found, log.end()), (ENTRIES.map(str::to_owned).to_vec(), fs::metadata(&path).unwrap().len()));
        assert!(reader.json(log.end()).is_err() && reader.json(log.end() - 5).is_err());
    }

    #[test]
    fn a_crash_at_any_byte_of_a_write_costs_that_line_alone_and_the_log_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = made(&folder);
        let whole = fs::read(&path).unwrap();
        let last = Log::open(&path, |_, _| Ok(())).unwrap().0.lines()[2] as usize;
        for end in last..whole.len() {
            // The file ends there; or it has its length, and the rest never came.
            for rest in [0, 1, whole.len() - end] {
                let left = [&whole[..end], &vec![0; rest]].concat();
                fs::write(&path, &left).unwrap();
                let (found, cut) = read(&path).unwrap();
                assert_eq!((&found[..], cut), (&ENTRIES.map(str::to_owned)[..2], (left.len() - last) as u64));
                let (mut log, cut) = Log::open(&path, |_, _| Ok(())).unwrap();
                assert_eq!(cut, 0, "what was cut stays cut");
                log.append(ENTRIES[2]).unwrap();
                drop(log);
                assert_eq!(fs::read(&path).unwrap(), whole);
            }
        }
        // Its first page was written late, or its last one was.
        let mut late = whole.clone();
        late[last..last + 10].fill(0);
        fs::write(&path, &late).unwrap();
        assert_eq!(read(&path).unwrap().1, (whole.len() - last) as u64);
    }

    #[test]
    fn any_byte_that_is_changed_otherwise_is_damage_and_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = made(&folder);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() - 1 {
            for other in [whole[at] ^ 1, whole[at] ^ 0x80] {
                let mut changed = whole.clone();
                changed[at] = other;
                fs::write(&path, &changed).unwrap();
                let told = read(&path);
                assert!(matches!(told, Err(LogError::Damaged { .. })), "byte {at}: {told:?}");
                assert_eq!(fs::read(&path).unwrap(), changed, "nothing is cut");
            }
        }
        // A line is gone, or stands twice, or two change places.
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        for wrong in [vec![0, 2], vec![0, 1, 1, 2], vec![0, 2, 1], vec![1, 2]] {
            fs::write(&path, wrong.iter().flat_map(|at| lines[*at]).copied().collect::<Vec<u8>>()).unwrap();
            assert!(matches!(read(&path), Err(LogError::Damaged { .. })), "{wrong:?}");
        }
        // A first line that is not whole is nobody's crash: it was there before the file had its name.
        fs::write(&path, &lines[0][..20]).unwrap();
        assert!(matches!(read(&path), Err(LogError::Damaged { line: 1, .. })));
        // Zeros in the middle, and a file that is none of ours and has no lines.
        fs::write(&path, [lines[0], &[0; 30], b"\n", lines[1]].concat()).unwrap();
        assert!(matches!(read(&path), Err(LogError::Damaged { line: 2, .. })));
        fs::write(&path, [lines[0], &[b'x'; 100_000]].concat()).unwrap();
        assert!(matches!(read(&path), Err(LogError::Damaged { line: 2, .. })));
    }

    #[test]
    fn a_log_is_open_once_and_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = made(&folder);
        let open = Log::open(&path, |_, _| Ok(())).unwrap();
        assert!(matches!(Log::open(&path, |_, _| Ok(())), Err(LogError::Taken { .. })));
        drop(open);
        assert!(Log::create(&path, ENTRIES[0]).is_err(), "nothing is written over");
        assert_eq!(read(&path).unwrap().0.len(), 3);
        assert!(matches!(Log::open(&folder.path().join("none"), |_, _| Ok(())), Err(LogError::Io { .. })));
        let told = Log::open(&path, |number, _| if number == 1 { Err("no".to_owned()) } else { Ok(()) });
        assert!(matches!(told, Err(LogError::Damaged { line: 2, .. })), "{told:?}");
    }

    #[test]
    fn a_line_that_cannot_be_written_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = made(&folder);
        let (mut log, _) = Log::open(&path, |_, _| Ok(())).unwrap();
        // A file that cannot be written stands in for a disk that is full.
        let writable = std::mem::replace(&mut log.file, File::open(&path).unwrap());
        assert!(matches!(log.append(ENTRIES[1]), Err(LogError::Io { what: "write", .. })));
        assert!(matches!(log.append(ENTRIES[1]), Err(LogError::Unknown { .. })), "not even its end could be set");
        log.file = writable;
        log.unknown = false;
        log.append(ENTRIES[1]).unwrap();
        drop(log);
        assert_eq!(read(&path).unwrap().0.len(), 4);
    }
}
