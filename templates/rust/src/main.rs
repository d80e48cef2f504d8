//! Notes: keeps one note for each user. README.md says what users send.
//!
//! Runs once per ledger: one JSON object on stdin, a pair of descriptors for each user in it, state/ as the run before left
//! it. Every failure of the machine ends the run with an error; what users send never does.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{FromRawFd, RawFd},
    path::Path,
};

use serde_json::Value;

/// One file for each note, named by its user's key.
const NOTES: &str = "state/notes";

const NOTE_BYTES_MAX: usize = 200;
/// Further users get an error: a key costs nothing, so somebody may have any number of them.
const NOTES_MAX: usize = 10_000;
/// Of one user in one ledger.
const COMMANDS_MAX: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let ledger: Value = serde_json::from_reader(io::stdin())?;
    let readonly = ledger["readonly"] == true;
    fs::create_dir_all(NOTES)?;
    // Sorted, as serde_json's map is: whose turn it is must be the same on every node. (Not so a HashMap, nor this one with the
    // feature `preserve_order`.)
    for (user, fds) in ledger["user"].as_object().ok_or("no users on stdin")? {
        let mut input = Vec::new();
        open(&fds[0])?.read_to_end(&mut input)?;
        open(&fds[1])?.write_all(&serve(user, &input, readonly)?)?;
    }
    Ok(())
}

/// The file behind a descriptor named on stdin; closed when it is dropped.
fn open(fd: &Value) -> Result<File, Box<dyn Error>> {
    let fd = RawFd::try_from(fd.as_i64().ok_or("a user without descriptors on stdin")?)?;
    // SAFETY: each descriptor is named once on stdin and opened once here, so nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// The answers to what a user sent for this ledger: any number of inputs, joined, so it is up to us to find the borders.
fn serve(user: &str, text: &[u8], readonly: bool) -> io::Result<Vec<u8>> {
    let mut answers = Vec::new();
    let lines = text.split(|byte| *byte == b'\n');
    let commands = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).filter(|line| !line.trim_ascii().is_empty());
    for (at, command) in commands.enumerate() {
        if at == COMMANDS_MAX {
            writeln!(answers, "error: at most {COMMANDS_MAX} commands at once, the others were not done")?;
            break;
        }
        answers.extend(answer(user, command, readonly)?);
        answers.push(b'\n');
    }
    Ok(answers)
}

fn answer(user: &str, command: &[u8], readonly: bool) -> io::Result<Vec<u8>> {
    let note = Path::new(NOTES).join(user);
    let count = || Ok::<_, io::Error>(fs::read_dir(NOTES)?.count());
    let text = match command {
        b"get" if note.exists() => return fs::read(note),
        b"get" => "nothing".to_owned(),
        b"count" => format!("{} notes", count()?),
        b"set" => return set(&note, b"", readonly, count),
        _ => match command.strip_prefix(b"set ") {
            Some(text) => return set(&note, text, readonly, count),
            None => "error: expected set TEXT, get or count".to_owned(),
        },
    };
    Ok(text.into_bytes())
}

fn set(note: &Path, text: &[u8], readonly: bool, count: impl Fn() -> io::Result<usize>) -> io::Result<Vec<u8>> {
    if text.is_empty() || text.len() > NOTE_BYTES_MAX {
        return Ok(format!("error: a note has 1 to {NOTE_BYTES_MAX} bytes").into_bytes());
    }
    if readonly {
        return Ok(b"error: a question changes nothing, send it as an input".to_vec());
    }
    if !note.exists() && count()? >= NOTES_MAX {
        return Ok(b"error: there are too many notes".to_vec());
    }
    fs::write(note, text)?;
    Ok(b"ok".to_vec())
}
