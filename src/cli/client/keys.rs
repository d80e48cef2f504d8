//! The client's key, in a file of its own that others cannot read, and the numbers of its inputs, no two alike.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};

use crate::crypto::SecretKey;

/// Numbers taken from the file at once, so that it is not written for each input. What a process leaves over is lost.
const NONCES_AT_ONCE: u64 = 1_000;

/// Bytes of a key file. A longer file is not a key.
const KEY_FILE_BYTES_MAX: u64 = 4096;

pub(super) fn default_key_path() -> anyhow::Result<PathBuf> {
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".config/hotpocket/client.key")),
        None => bail!("HOME is not set, so there is no place for the client's key; give one with --key FILE"),
    }
}

/// Reads the key in `path`; writes a new one there when the file is missing.
pub(super) fn load_key(path: &Path) -> anyhow::Result<SecretKey> {
    match read_key(path) {
        Err(error) if is_missing(&error) => {
            create_key(path).with_context(|| format!("cannot write a new key to {}", path.display()))?;
            let key = read_key(path)?;
            eprintln!("new key {} written to {}", key.user_key(), path.display());
            Ok(key)
        }
        key => key,
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn read_key(path: &Path) -> anyhow::Result<SecretKey> {
    let shown = path.display();
    let file = fs::File::open(path).with_context(|| format!("cannot read the key file {shown}"))?;
    let mode =
        file.metadata().with_context(|| format!("cannot read the key file {shown}"))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("others can read the key file {shown} (mode {mode:03o}); run: chmod 600 {shown}");
    }
    let mut text = String::new();
    file.take(KEY_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read the key file {shown}"))?;
    SecretKey::parse(text.trim()).with_context(|| format!("the key file {shown} holds no key"))
}

/// Writes a new key, unless somebody else just did. The file is whole and mode 0600 from its first moment.
fn create_key(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{}", hex::encode(SecretKey::generate().seed()))?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error.into()),
        _ => Ok(()),
    }
}

/// Numbers for a key's inputs, ascending and never one twice, also across restarts and with several clients at once.
///
/// They begin at the time in microseconds, or behind what `FILE.nonce` beside the key file says was taken, whichever is
/// greater: a clock that went back repeats none, and neither does a key whose file was left behind.
#[derive(Debug)]
pub struct Nonces {
    file: Option<PathBuf>,
    next: u64,
    /// Numbers from here on are not ours yet.
    end: u64,
}

impl Nonces {
    /// For the key in this file; `None` for a key that is used in this process alone.
    pub fn of(key: Option<&Path>) -> Nonces {
        let file = key.map(|key| {
            let mut name = key.as_os_str().to_owned();
            name.push(".nonce");
            PathBuf::from(name)
        });
        Nonces { file, next: 0, end: 0 }
    }

    /// One more.
    pub fn next(&mut self) -> anyhow::Result<u64> {
        if self.next == self.end {
            let taken = match &self.file {
                Some(file) => take(file).with_context(|| format!("cannot take numbers from {}", file.display()))?,
                None => now_us().max(self.end),
            };
            (self.next, self.end) = (taken, taken + NONCES_AT_ONCE);
        }
        self.next += 1;
        Ok(self.next - 1)
    }
}

/// Takes the next numbers from the file, under a lock: another client with this key gets others.
fn take(path: &Path) -> io::Result<u64> {
    let mut file = fs::File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    file.lock()?;
    let mut text = String::new();
    (&file).take(KEY_FILE_BYTES_MAX).read_to_string(&mut text)?;
    // A file that was cut, or was never ours, says nothing: the clock alone counts then.
    let taken = text.trim().parse::<u64>().ok().filter(|taken| *taken < u64::MAX / 2);
    let first = taken.unwrap_or(0).max(now_us());
    file.set_len(0)?;
    file.seek(io::SeekFrom::Start(0))?;
    writeln!(file, "{}", first + NONCES_AT_ONCE)?;
    file.sync_all()?;
    Ok(first)
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_given_twice_by_restarts_clients_at_once_or_a_clock_that_went_back() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("client.key");
        let mut seen = std::collections::BTreeSet::new();
        let mut last = 0;
        for _ in 0..3 {
            let mut nonces = Nonces::of(Some(&key));
            for _ in 0..NONCES_AT_ONCE + 2 {
                let nonce = nonces.next().unwrap();
                assert!(nonce > last, "ascending");
                last = nonce;
                assert!(seen.insert(nonce));
            }
        }
        let (mut one, mut two) = (Nonces::of(Some(&key)), Nonces::of(Some(&key)));
        for _ in 0..3 {
            assert!(seen.insert(one.next().unwrap()) && seen.insert(two.next().unwrap()));
        }
        // What was taken is ahead of the clock.
        let file = folder.path().join("client.key.nonce");
        let ahead = now_us() + 1_000_000_000_000;
        fs::write(&file, format!("{ahead}\n")).unwrap();
        assert_eq!(Nonces::of(Some(&key)).next().unwrap(), ahead);
        assert_eq!(Nonces::of(Some(&key)).next().unwrap(), ahead + NONCES_AT_ONCE);
        // A file that says nothing, or is gone, leaves the clock.
        for text in ["", "x", "-5", "18446744073709551615"] {
            fs::write(&file, text).unwrap();
            let before = now_us();
            let nonce = Nonces::of(Some(&key)).next().unwrap();
            assert!((before..=now_us()).contains(&nonce), "{nonce} for {text:?}");
        }
        fs::remove_file(&file).unwrap();
        assert!(Nonces::of(None).next().unwrap() < ahead);
    }

    #[test]
    fn a_new_key_is_written_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/client.key");
        let key = load_key(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), hex::encode(key.seed()));
        assert_eq!(load_key(&path).unwrap().user_key(), key.user_key());
        create_key(&path).unwrap();
        assert_eq!(load_key(&path).unwrap().user_key(), key.user_key(), "an existing key is never overwritten");
    }

    #[test]
    fn a_key_file_that_others_can_read_or_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "12").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(load_key(&path).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(load_key(&path).unwrap_err().to_string().contains("holds no key"));
        assert!(load_key(folder.path()).is_err());
    }
}
