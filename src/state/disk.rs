//! Every change this module makes on the disk goes through here: one call, one system call, one error with its path.
//!
//! That is what makes the crash tests possible: a test counts the calls, and cuts at each of them.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use nix::libc;

use super::StateError;

/// Adds what was tried, and where, to an error of the operating system.
pub(super) fn at<'a>(op: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StateError + 'a {
    move |source| StateError::Io { op, path: path.to_path_buf(), source }
}

/// Opens a file to read, never through a symlink, and never waiting for the other end of a fifo.
pub(super) fn open_read(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Opens an existing file to read and write, never through a symlink.
pub(super) fn open_write(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    unfrozen(path, || options.open(path))
}

/// Does it; once more without the marks that forbid it, where a contract that runs as root has set such (`chattr +i`, `+a`)
/// on the path or on the folder that it is in.
fn unfrozen<T>(path: &Path, mut change: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match change() {
        Err(refused) if refused.kind() == io::ErrorKind::PermissionDenied => {
            let folder = path.parent().is_some_and(unfreeze);
            if unfreeze(path) || folder { change() } else { Err(refused) }
        }
        done => done,
    }
}

/// Takes the marks off; whether there were any.
#[cfg(target_os = "linux")]
fn unfreeze(path: &Path) -> bool {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let frozen = IFlags::IMMUTABLE | IFlags::APPEND;
    let Ok(file) = open_read(path) else { return false };
    // A file system without such marks has none that could be in the way.
    let Ok(flags) = ioctl_getflags(&file) else { return false };
    flags.intersects(frozen) && ioctl_setflags(&file, flags - frozen).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn unfreeze(_: &Path) -> bool {
    false
}

/// Gives what was made in a folder to whom the folder belongs. For root, who keeps the state of a contract that runs as
/// another user; whoever else makes something owns it, and can give nothing away.
fn belong(path: &Path) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let Some(above) = path.parent() else { return Ok(()) };
    let above = std::fs::symlink_metadata(above)?;
    match (above.uid(), above.gid()) {
        (0, 0) => Ok(()),
        (uid, gid) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
    }
}

/// The changing operations. In tests, a point where they start to fail, and a record of what was done.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    /// Nothing is made durable: what is lost with the power is made anew.
    volatile: bool,
    #[cfg(test)]
    pub test: std::sync::Arc<std::sync::Mutex<test::Script>>,
}

impl Disk {
    /// For files that nobody needs after a restart.
    pub fn volatile() -> Disk {
        Disk {
            volatile: true,
            #[cfg(test)]
            test: Default::default(),
        }
    }

    #[cfg(not(test))]
    fn step(&self, _op: &'static str, _path: &Path) -> Result<(), StateError> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&self, op: &'static str, path: &Path) -> Result<(), StateError> {
        self.test.lock().unwrap().step(op, path).map_err(at(op, path))
    }

    /// A new empty file; it must not exist.
    pub fn create(&self, path: &Path, mode: u32) -> Result<File, StateError> {
        self.step("create", path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(mode);
        let file = unfrozen(path, || options.open(path)).map_err(at("create", path))?;
        belong(path).map_err(at("give away", path))?;
        Ok(file)
    }

    pub fn write_at(&self, file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<(), StateError> {
        #[cfg(test)]
        if let Err(cut) = self.step("write", path) {
            // What a cut really leaves behind: a part of it.
            let _ = file.write_all_at(&bytes[..bytes.len() / 2], offset);
            return Err(cut);
        }
        file.write_all_at(bytes, offset).map_err(at("write", path))
    }

    pub fn set_len(&self, file: &File, path: &Path, len: u64) -> Result<(), StateError> {
        self.step("truncate", path)?;
        file.set_len(len).map_err(at("truncate", path))
    }

    pub fn chmod(&self, path: &Path, mode: u32) -> Result<(), StateError> {
        self.step("chmod", path)?;
        let change = || std::fs::set_permissions(path, Permissions::from_mode(mode));
        unfrozen(path, change).map_err(at("chmod", path))
    }

    /// Gives a path to whom another belongs.
    #[cfg(target_os = "linux")]
    pub fn give(&self, path: &Path, like: &std::fs::Metadata) -> Result<(), StateError> {
        let own = std::fs::symlink_metadata(path).map_err(at("look at", path))?;
        if (own.uid(), own.gid()) == (like.uid(), like.gid()) || !nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        self.step("give away", path)?;
        std::os::unix::fs::lchown(path, Some(like.uid()), Some(like.gid())).map_err(at("give away", path))
    }

    pub fn create_dir(&self, path: &Path) -> Result<(), StateError> {
        self.step("create folder", path)?;
        unfrozen(path, || std::fs::create_dir(path)).map_err(at("create folder", path))?;
        belong(path).map_err(at("give away", path))
    }

    pub fn symlink(&self, target: &Path, path: &Path) -> Result<(), StateError> {
        self.step("create symlink", path)?;
        unfrozen(path, || std::os::unix::fs::symlink(target, path)).map_err(at("create symlink", path))?;
        belong(path).map_err(at("give away", path))
    }

    pub fn remove_file(&self, path: &Path) -> Result<(), StateError> {
        self.step("remove", path)?;
        unfrozen(path, || std::fs::remove_file(path)).map_err(at("remove", path))
    }

    pub fn remove_dir(&self, path: &Path) -> Result<(), StateError> {
        self.step("remove folder", path)?;
        unfrozen(path, || std::fs::remove_dir(path)).map_err(at("remove folder", path))
    }

    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), StateError> {
        self.step("rename", to)?;
        unfrozen(from, || unfrozen(to, || std::fs::rename(from, to))).map_err(at("rename", from))
    }

    pub fn sync(&self, file: &File, path: &Path) -> Result<(), StateError> {
        if self.volatile {
            return Ok(());
        }
        self.step("sync", path)?;
        #[cfg(test)]
        if !self.test.lock().unwrap().sync_for_real {
            return Ok(());
        }
        file.sync_all().map_err(at("sync", path))
    }

    /// The bytes and the size alone.
    pub fn sync_data(&self, file: &File, path: &Path) -> Result<(), StateError> {
        if self.volatile {
            return Ok(());
        }
        self.step("sync", path)?;
        #[cfg(test)]
        if !self.test.lock().unwrap().sync_for_real {
            return Ok(());
        }
        file.sync_data().map_err(at("sync", path))
    }

    pub fn sync_path(&self, path: &Path) -> Result<(), StateError> {
        let file = open_read(path).map_err(at("open", path))?;
        self.sync(&file, path)
    }

    /// Everything of the file system that `top` is on. Cheaper than `sync` from some number of files on.
    #[cfg(target_os = "linux")]
    pub fn sync_all_below(&self, top: &Path) -> Result<(), StateError> {
        if self.volatile {
            return Ok(());
        }
        let file = open_read(top).map_err(at("open", top))?;
        self.step("sync below", top)?;
        #[cfg(test)]
        if !self.test.lock().unwrap().sync_for_real {
            return Ok(());
        }
        nix::unistd::syncfs(&file).map_err(|errno| at("sync", top)(errno.into()))
    }
}

#[cfg(test)]
pub(super) mod test {
    use std::{
        io,
        path::{Path, PathBuf},
    };

    /// What a test wants of the disk, and what happened on it.
    #[derive(Debug, Default)]
    pub struct Script {
        /// Operations that still work; after them everything fails, as after a kill. `None`: all work.
        pub left: Option<usize>,
        /// Whether a sync also asks the disk, which takes most of a test's time and shows nothing but errors.
        pub sync_for_real: bool,
        /// The operations that worked.
        pub done: Vec<(&'static str, PathBuf)>,
    }

    impl Script {
        pub fn step(&mut self, op: &'static str, path: &Path) -> io::Result<()> {
            match &mut self.left {
                Some(0) => return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC)),
                Some(left) => *left -= 1,
                None => {}
            }
            self.done.push((op, path.to_path_buf()));
            Ok(())
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

    use super::*;

    #[test]
    fn what_root_makes_in_a_folder_belongs_to_whom_the_folder_belongs() {
        use std::os::unix::fs::lchown;
        let dir = tempfile::tempdir().unwrap();
        let (folder, disk) = (dir.path().join("folder"), Disk::default());
        disk.create_dir(&folder).unwrap();
        if lchown(&folder, Some(4242), Some(4343)).is_err() {
            return println!("skipped: only root gives anything away");
        }
        disk.create_dir(&folder.join("below")).unwrap();
        disk.create(&folder.join("below/file"), 0o644).unwrap();
        disk.symlink(Path::new("nowhere"), &folder.join("below/link")).unwrap();
        disk.create_dir(&dir.path().join("own")).unwrap();
        let owner = |path: &Path| std::fs::symlink_metadata(path).map(|meta| (meta.uid(), meta.gid())).unwrap();
        for name in ["below", "below/file", "below/link"] {
            assert_eq!(owner(&folder.join(name)), (4242, 4343), "{name}");
        }
        let own = dir.path().join("own");
        assert_eq!(owner(&own), (0, 0));
        let like = std::fs::symlink_metadata(&folder).unwrap();
        disk.give(&own, &like).unwrap();
        assert_eq!(owner(&own), (4242, 4343));
    }

    #[test]
    fn what_root_has_frozen_is_changed_and_removed_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, disk) = (dir.path().join("folder"), Disk::default());
        let freeze = |path: &Path, mark| {
            let file = open_read(path).unwrap();
            ioctl_getflags(&file).and_then(|flags| ioctl_setflags(&file, flags | mark)).is_ok()
        };
        std::fs::create_dir(&folder).unwrap();
        for name in ["a", "b", "c"] {
            std::fs::write(folder.join(name), "x").unwrap();
        }
        if !freeze(&folder.join("a"), IFlags::IMMUTABLE) {
            return println!("skipped: no such marks for this user, or on this file system");
        }
        disk.chmod(&folder.join("a"), 0o600).unwrap();
        assert!(freeze(&folder.join("b"), IFlags::APPEND) && freeze(&folder.join("c"), IFlags::IMMUTABLE));
        let file = open_write(&folder.join("c")).unwrap();
        disk.write_at(&file, &folder.join("c"), b"y", 0).unwrap();
        assert!(freeze(&folder, IFlags::IMMUTABLE));
        disk.rename(&folder.join("a"), &dir.path().join("a")).unwrap();
        assert!(freeze(&folder, IFlags::APPEND));
        for name in ["b", "c"] {
            disk.remove_file(&folder.join(name)).unwrap();
        }
        assert!(freeze(&folder, IFlags::IMMUTABLE));
        disk.remove_dir(&folder).unwrap();
    }
}
