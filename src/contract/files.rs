//! The files a contract may use, as a rule set of the kernel (Landlock): the system and `bin/` to read and execute,
//! `state/` and `tmp/` to do with as it likes, and nothing else.
//!
//! A rule is for a folder or a file and not for its name, and one of them, `/proc`, is another in each place. So every run
//! has a rule set of its own. What takes long is not to make it but to look up all that is listed, most of which is the
//! same for years: that is [`Known`], with descriptors to make the rules of.

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use borsh::{BorshDeserialize, BorshSerialize};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetError, Scope, make_bitflags,
};
use nix::{errno::Errno, libc};

/// The newest version of Landlock that is made use of; where the kernel has an older one, that much of it.
const NEWEST: ABI = ABI::V7;

/// Where the system keeps what seldom changes, and what is never unmounted: a descriptor would keep it from that.
const STEADY: [&str; 3] = ["/dev", "/etc", "/usr"];

/// Times of files are no finer than this on older kernels: two changes may leave the same one. So whoever has looked soon
/// after a change looks again after that time.
const TIME_STEP_MAX: Duration = Duration::from_millis(100);

/// What of the files a run may use. Paths are absolute, or relative to the contract folder; what is not there is left
/// out.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Files {
    /// To read and to execute, with all that is below.
    pub(super) read: Vec<Vec<u8>>,
    /// To do anything with, with all that is below. A device can only be read and written.
    pub(super) write: Vec<Vec<u8>>,
    /// Whether TCP is left alone.
    pub(super) network: bool,
}

/// The version of Landlock of this kernel, or why it has none.
pub(super) fn version() -> Result<u32, Errno> {
    const VERSION: libc::c_ulong = 1;
    // SAFETY: without attributes, and with this flag, the call only returns a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0usize, 0usize, VERSION) };
    Ok(Errno::result(version)? as u32)
}

/// Everything that a rule may allow in a folder that a contract writes to, as far as this kernel knows it.
pub(super) fn write_rights() -> Result<u64, Errno> {
    Ok((known_here()? & !DEVICES).bits())
}

/// What a contract could only do harm with.
const DEVICES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{MakeChar | MakeBlock | IoctlDev});

/// Everything that this kernel can forbid.
fn known_here() -> Result<BitFlags<AccessFs>, Errno> {
    Ok(AccessFs::from_all(ABI::from(version()?.min(NEWEST as u32) as i32)))
}

/// The rule set, for `landlock_restrict_self`. To be made by who sees what the contract will see.
pub(super) fn rules(files: &Files) -> Result<OwnedFd, Errno> {
    Ok(Rules::new(&Known::of_each_run(files)?)?.ruleset)
}

/// What is listed, as far as it was looked up, from one run to the next.
pub(super) struct Known {
    network: bool,
    /// What this kernel can forbid.
    rights: BitFlags<AccessFs>,
    /// What there is a descriptor of, and what may be done with it.
    held: Vec<(OwnedFd, BitFlags<AccessFs>)>,
    /// Folders that change when that is not what is at its path any more, or when something comes to be at a path.
    folders: Vec<(PathBuf, FolderStamp)>,
    /// What is looked up so.
    steady: Vec<Listed>,
    /// What is looked up for each run.
    fresh: Vec<Listed>,
    looked: Instant,
    /// Whether everything was there for a while when it was looked up.
    is_settled: bool,
}

/// What may be done at a path.
#[derive(Debug, Clone)]
struct Listed {
    path: PathBuf,
    rights: BitFlags<AccessFs>,
    /// Whether it is in one of [`STEADY`].
    is_steady: bool,
}

/// What is at a path: device and number.
type Stamp = (u64, u64);

/// A folder, and when anything in it came, went or got another name. `None`: there is none.
type FolderStamp = Option<(Stamp, [i64; 4])>;

impl Known {
    /// Looks up what is listed. Opens some descriptors for good.
    pub(super) fn new(files: &Files) -> Result<Known, Errno> {
        let mut known = Known::of_each_run(files)?;
        known.steady = known.fresh.extract_if(.., |listed| listed.is_steady || !listed.path.exists()).collect();
        known.look_up();
        Ok(known)
    }

    /// Everything is looked up by the run.
    fn of_each_run(files: &Files) -> Result<Known, Errno> {
        let rights = known_here()?;
        let listed = |path: &Vec<u8>, rights| {
            let path = PathBuf::from(OsStr::from_bytes(path));
            let is_steady = STEADY.iter().any(|top| path.starts_with(top));
            Listed { path, rights, is_steady }
        };
        let read = files.read.iter().map(|path| listed(path, AccessFs::from_read(NEWEST) & rights));
        let write = files.write.iter().map(|path| listed(path, rights & !DEVICES));
        Ok(Known {
            network: files.network,
            rights,
            held: Vec::new(),
            folders: Vec::new(),
            steady: Vec::new(),
            fresh: read.chain(write).collect(),
            looked: Instant::now(),
            is_settled: true,
        })
    }

    /// Looks again where something has changed.
    pub(super) fn refresh(&mut self) {
        let has_changed = self.has_changed();
        let is_due = !self.is_settled && self.looked.elapsed() >= TIME_STEP_MAX;
        if has_changed || is_due {
            self.look_up();
            self.is_settled = !has_changed;
        }
    }

    fn has_changed(&self) -> bool {
        self.folders.iter().any(|(folder, stamp)| folder_stamp(folder) != *stamp)
    }

    fn look_up(&mut self) {
        (self.looked, self.is_settled) = (Instant::now(), false);
        self.held.clear();
        self.folders.clear();
        // Folders in which everything may be read.
        let mut open_folders: Vec<PathBuf> = Vec::new();
        for listed in std::mem::take(&mut self.steady) {
            // Stamped before anything in it is looked at, so that what changes meanwhile is a change.
            let folder = listed.path.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
            let stamp = match self.folders.iter().find(|(known, _)| known == folder) {
                Some((_, stamp)) => *stamp,
                None => {
                    let stamp = folder_stamp(folder);
                    self.folders.push((folder.to_owned(), stamp));
                    stamp
                }
            };
            let Ok((file, meta)) = open(&listed.path) else {
                self.steady.push(listed);
                continue;
            };
            // What is mounted may be replaced without any change of the folder that it is in.
            if !listed.is_steady || stamp.is_none_or(|((device, _), _)| device != meta.dev()) {
                self.fresh.push(listed);
                continue;
            }
            let is_read = !listed.rights.contains(AccessFs::WriteFile);
            let is_open = is_read && open_folders.iter().any(|folder| listed.path.starts_with(folder));
            if !is_open || fs::canonicalize(&listed.path).ok().as_ref() != Some(&listed.path) {
                if is_read && meta.is_dir() {
                    open_folders.push(listed.path.clone());
                }
                self.held.push((file.into(), rights_at(&meta, listed.rights, self.rights)));
            }
            self.steady.push(listed);
        }
    }
}

/// A rule set that is made before it is needed.
pub(super) struct Rules {
    ruleset: OwnedFd,
    /// What rules were made for, of what is looked up for each run.
    fresh: Vec<Option<Stamp>>,
}

impl Rules {
    /// With a rule for each path at which something is. Takes the lowest number that is free, for one descriptor.
    pub(super) fn new(known: &Known) -> Result<Rules, Errno> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))
            .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
            .map_err(failed)?;
        if !known.network {
            ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST)).map_err(failed)?;
        }
        let ruleset = Option::<OwnedFd>::from(ruleset.create().map_err(failed)?).ok_or(Errno::EOPNOTSUPP)?;
        for (fd, rights) in &known.held {
            add_rule(ruleset.as_raw_fd(), fd.as_raw_fd(), rights.bits())?;
        }
        let mut made = Rules { ruleset, fresh: vec![None; known.fresh.len()] };
        made.update(known)?;
        Ok(made)
    }

    /// As the kernel has it, with rules for what came to be at the paths since.
    pub(super) fn up_to_date(mut self, known: &Known) -> Result<OwnedFd, Errno> {
        self.update(known)?;
        if known.has_changed() {
            // Descriptors of this moment are of no use to the next run, which may be another process's.
            known.steady.iter().try_for_each(|listed| self.add(known, listed).map(drop))?;
        }
        Ok(self.ruleset)
    }

    fn update(&mut self, known: &Known) -> Result<(), Errno> {
        for (at, listed) in known.fresh.iter().enumerate() {
            if self.fresh[at].is_none() || self.fresh[at] != fs::metadata(&listed.path).ok().as_ref().map(stamp) {
                self.fresh[at] = self.add(known, listed)?;
            }
        }
        Ok(())
    }

    /// A rule for what is at a path now. `None`: nothing.
    fn add(&self, known: &Known, listed: &Listed) -> Result<Option<Stamp>, Errno> {
        let Ok((file, meta)) = open(&listed.path) else { return Ok(None) };
        let rights = rights_at(&meta, listed.rights, known.rights);
        add_rule(self.ruleset.as_raw_fd(), file.as_raw_fd(), rights.bits())?;
        Ok(Some(stamp(&meta)))
    }
}

/// Adds a rule for what a descriptor is of, with all that is below. Async-signal-safe.
pub(super) fn add_rule(ruleset: RawFd, of: RawFd, rights: u64) -> Result<(), Errno> {
    /// As the kernel has it.
    #[repr(C, packed)]
    struct Beneath {
        rights: u64,
        of: libc::c_int,
    }
    const PATH_BENEATH: libc::c_int = 1;
    let rule = Beneath { rights, of };
    let call = libc::SYS_landlock_add_rule;
    // SAFETY: a structure that outlives the call, which only reads it, and descriptors, which it checks.
    let done = unsafe { libc::syscall(call, ruleset, PATH_BENEATH, std::ptr::from_ref(&rule), 0) };
    Errno::result(done).map(drop)
}

/// What may be done with what is there, of what is wanted and of what this kernel can forbid.
fn rights_at(meta: &Metadata, wanted: BitFlags<AccessFs>, known: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
    let rights = match meta.file_type() {
        kind if kind.is_dir() => wanted,
        kind if kind.is_char_device() => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        _ => wanted & AccessFs::from_file(NEWEST),
    };
    rights & known
}

/// A descriptor to make a rule of, which nothing can be read through.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    let meta = file.metadata()?;
    Ok((file, meta))
}

fn stamp(meta: &Metadata) -> Stamp {
    (meta.dev(), meta.ino())
}

fn folder_stamp(folder: &Path) -> FolderStamp {
    let meta = fs::metadata(folder).ok().filter(Metadata::is_dir)?;
    Some((stamp(&meta), [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()]))
}

fn failed(_: RulesetError) -> Errno {
    match Errno::last() {
        Errno::UnknownErrno => Errno::EINVAL,
        errno => errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known of these, as if all of them were the system's. `None`: there is no Landlock here.
    fn known(dir: &Path, names: &[&str]) -> Option<Known> {
        let files = Files { read: vec![dir.as_os_str().as_bytes().to_vec()], ..Files::default() };
        let mut known = Known::of_each_run(&files).inspect_err(|errno| eprintln!("not tried: {errno}")).ok()?;
        let rights = AccessFs::from_read(NEWEST) & known.rights;
        known.fresh.clear();
        known.steady = names.iter().map(|name| Listed { path: dir.join(name), rights, is_steady: true }).collect();
        known.look_up();
        Some(known)
    }

    fn write(dir: &Path, name: &str) {
        fs::write(dir.join("made"), name).unwrap();
        fs::rename(dir.join("made"), dir.join(name)).unwrap();
    }

    /// Numbers of the files that there are descriptors of, and of those at these paths.
    fn held_and(known: &Known, dir: &Path, names: &[&str]) -> (Vec<u64>, Vec<u64>) {
        let number = |fd: &OwnedFd| File::from(fd.try_clone().unwrap()).metadata().unwrap().ino();
        let held = known.held.iter().map(|(fd, _)| number(fd)).collect();
        (held, names.iter().map(|name| fs::metadata(dir.join(name)).unwrap().ino()).collect())
    }

    #[test]
    fn what_is_known_follows_what_comes_and_goes_and_is_else_not_looked_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(dir.join("folder/below")).unwrap();
        write(&dir, "first");
        write(&dir, "second");
        std::os::unix::fs::symlink(dir.join("second"), dir.join("folder/link")).unwrap();
        let names = ["first", "folder", "folder/below", "folder/link", "missing/one", "second"];
        let Some(mut known) = known(&dir, &names) else { return };
        let (held, there) = held_and(&known, &dir, &["first", "folder", "folder/link", "second"]);
        assert_eq!(held, there, "what is below an open folder needs no rule, but for what a link leads to");
        assert!(known.is_settled || !known.has_changed());
        let looked = known.looked;
        known.is_settled = true;
        known.refresh();
        assert_eq!(known.looked, looked);
        for (change, left) in [
            (&|| write(&dir, "first") as _, &["first", "folder", "folder/link", "second"][..]),
            (&|| fs::create_dir(dir.join("missing")).unwrap(), &["first", "folder", "folder/link", "second"]),
            (&|| write(&dir, "missing/one"), &["first", "folder", "folder/link", "missing/one", "second"]),
            (&|| fs::remove_file(dir.join("first")).unwrap(), &["folder", "folder/link", "missing/one", "second"]),
        ] as [(&dyn Fn(), &[&str]); 4]
        {
            change();
            // Of times that are no finer than that, the second look is what finds it.
            known.looked = Instant::now().checked_sub(TIME_STEP_MAX).unwrap();
            known.is_settled = false;
            known.refresh();
            let (held, there) = held_and(&known, &dir, left);
            assert_eq!(held, there, "{left:?}");
        }
    }

    #[test]
    fn a_rule_set_is_for_what_is_there_when_the_run_begins() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        for name in ["listed", "other"] {
            write(&dir, name);
        }
        let Some(known) = known(&dir, &["listed", "later"]) else { return };
        let rules = Rules::new(&known).unwrap();
        // As an update of the machine does it, after the rules were made.
        for name in ["listed", "later"] {
            write(&dir, name);
        }
        let ruleset = rules.up_to_date(&known).unwrap();
        let readable = std::thread::spawn(move || {
            // SAFETY: what this thread may do, and nothing else, is less from now on.
            let done = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0)
            };
            assert_eq!(done, 0);
            ["listed", "later", "other"].map(|name| fs::read(dir.join(name)).is_ok())
        });
        assert_eq!(readable.join().unwrap(), [true, true, false]);
    }
}
