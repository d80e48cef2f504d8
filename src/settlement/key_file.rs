//! Reads the key of a wallet from a file that nobody else can read.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{MnemonicError, Network, key_of_words};
use crate::crypto::{SecretKey, SecretKeyError};

/// Bytes of a file with a key or words. A longer file is neither.
const KEY_FILE_BYTES_MAX: u64 = 4_096;

/// Why there is no key. Never shows what the file holds.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder or a device, or too long.
    #[error("{} is not a file of at most {KEY_FILE_BYTES_MAX} bytes", path.display())]
    NotSuchAFile {
        /// Which file.
        path: PathBuf,
    },
    /// Others may read it.
    #[error("{0}: mode is {mode:04o}, but the file holds a secret: expected 0600 or 0400 (chmod 600 {0})", path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No key in it.
    #[error("{} holds no key", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: SecretKeyError,
    },
    /// No words in it.
    #[error("{} holds no wallet's words", path.display())]
    Words {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: MnemonicError,
    },
}

/// The key in a file of 64 hexadecimal digits (the seed), or 128 (the seed, then the public key, as the bus's own wallet
/// writes it), of mode 0600 or 0400. Blocks.
pub fn read_key(path: &Path) -> Result<SecretKey, KeyFileError> {
    let text = read_secret(path)?;
    SecretKey::parse(text.trim()).map_err(|source| KeyFileError::Key { path: path.to_owned(), source })
}

/// The key of the words in a file, of mode 0600 or 0400. Blocks.
pub fn read_words(path: &Path, network: Network) -> Result<SecretKey, KeyFileError> {
    let text = read_secret(path)?;
    key_of_words(&text, network).map_err(|source| KeyFileError::Words { path: path.to_owned(), source })
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let failed = |source| KeyFileError::Read { path: path.to_owned(), source };
    // Asked before opening, because opening a fifo waits for a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(KeyFileError::NotSuchAFile { path: path.to_owned() });
    }
    let file = fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(KeyFileError::Mode { path: path.to_owned(), mode });
    }
    if metadata.len() > KEY_FILE_BYTES_MAX {
        return Err(KeyFileError::NotSuchAFile { path: path.to_owned() });
    }
    // Room for all of it at once: a text that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_BYTES_MAX as usize + 1));
    file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settlement::vectors::vector;

    fn file(folder: &tempfile::TempDir, text: &str, mode: u32) -> PathBuf {
        let path = folder.path().join(format!("{mode:o}"));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_seed_a_wallets_secret_and_words_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let key = SecretKey::from_seed([1; 32]);
        assert_eq!(read_key(&file(&folder, &"01".repeat(32), 0o600)).unwrap().node_key(), key.node_key());
        assert_eq!(read_key(&file(&folder, &format!("{}\n", key.to_hex()), 0o400)).unwrap().node_key(), key.node_key());
        let words = read_words(&file(&folder, &vector("/wallet/mnemonic"), 0o600), Network::Mainnet).unwrap();
        assert_eq!(hex::encode(words.seed()), vector("/wallet/seed"));
    }

    #[test]
    fn a_file_that_others_may_read_or_that_is_no_key_is_refused_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let told = |path: &Path| {
            anyhow::Error::new(read_key(path).unwrap_err())
                .chain()
                .map(|e| e.to_string())
                .collect::<Vec<_>>()
                .join(": ")
        };
        for mode in [0o640, 0o604, 0o644, 0o700, 0o4600 | 0o1] {
            assert!(told(&file(&folder, &"01".repeat(32), mode)).contains("chmod 600"), "{mode:o}");
        }
        let shown = told(&file(&folder, &"0a".repeat(31), 0o600));
        assert!(shown.contains("64 hexadecimal digits") && !shown.contains("0a0a"), "{shown}");
        assert!(told(&file(&folder, &" ".repeat(5_000), 0o600)).contains("at most 4096 bytes"));
        assert!(told(folder.path()).contains("is not a file"));
        assert!(told(&folder.path().join("none")).contains("cannot read"));
    }
}
