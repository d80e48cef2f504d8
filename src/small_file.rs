//! Files that are read whole because they are small: certificates, keys, a schema. What is no file, or a big one, is not read.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

/// The bytes of a file; `None` when it has more than `bytes_max`, of which no more are read.
///
/// Errors also where `path` is no file but a folder, a device or a pipe. Blocks, but not for ever.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    // Asked before opening, because opening a pipe waits for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= bytes_max).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit_and_a_pipe_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "abc").unwrap();
        assert_eq!(read(&path, 3).unwrap(), Some(b"abc".to_vec()));
        assert_eq!(read(&path, 2).unwrap(), None);
        let pipe = folder.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        for no_file in [&pipe, folder.path(), &folder.path().join("missing")] {
            assert!(read(no_file, 3).is_err(), "{}", no_file.display());
        }
    }
}
