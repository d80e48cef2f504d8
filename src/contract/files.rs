//! The files a contract may use, as a rule set of the kernel (Landlock): the system and `bin/` to read and execute,
//! `state/` and `tmp/` to do with as it likes, and nothing else.

use std::{
    ffi::OsStr,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _},
        },
    },
    path::PathBuf,
};

use borsh::{BorshDeserialize, BorshSerialize};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope, make_bitflags,
};
use nix::{errno::Errno, libc};

/// The newest version of Landlock that is made use of; where the kernel has an older one, that much of it.
const NEWEST: ABI = ABI::V7;

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
    let known = AccessFs::from_all(ABI::from(version()?.min(NEWEST as u32) as i32));
    Ok((known & !DEVICES).bits())
}

/// What a contract could only do harm with.
const DEVICES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{MakeChar | MakeBlock | IoctlDev});

/// The rule set, for `landlock_restrict_self`. To be made by who sees what the contract will see: a rule is for a folder,
/// not for its name.
pub(super) fn rules(files: &Files) -> Result<OwnedFd, Errno> {
    Rules::new(files)?.up_to_date()
}

/// A rule set that is made before it is needed.
pub(super) struct Rules {
    ruleset: RulesetCreated,
    rules: Vec<Rule>,
}

/// What may be done at a path.
struct Rule {
    path: PathBuf,
    access: BitFlags<AccessFs>,
    /// What the kernel has it for: device and number of what was at the path.
    of: Option<(u64, u64)>,
}

impl Rules {
    /// With a rule for each path at which something is. Takes the lowest number that is free, for one descriptor.
    pub(super) fn new(files: &Files) -> Result<Rules, Errno> {
        let all = AccessFs::from_all(NEWEST);
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)
            .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
            .map_err(failed)?;
        if !files.network {
            ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST)).map_err(failed)?;
        }
        let ruleset = ruleset.create().map_err(failed)?;
        let rule = |path: &Vec<u8>, access| Rule { path: OsStr::from_bytes(path).into(), access, of: None };
        let read = files.read.iter().map(|path| rule(path, AccessFs::from_read(NEWEST)));
        let write = files.write.iter().map(|path| rule(path, all & !DEVICES));
        let mut made = Rules { ruleset, rules: read.chain(write).collect() };
        made.update()?;
        Ok(made)
    }

    /// As the kernel has it, with rules for what came to be at the paths since.
    pub(super) fn up_to_date(mut self) -> Result<OwnedFd, Errno> {
        self.update()?;
        Option::<OwnedFd>::from(self.ruleset).ok_or(Errno::EOPNOTSUPP)
    }

    fn update(&mut self) -> Result<(), Errno> {
        for rule in &mut self.rules {
            let Ok(meta) = rule.path.metadata() else { continue };
            let now = Some((meta.dev(), meta.ino()));
            if rule.of == now {
                continue;
            }
            let Ok(fd) = PathFd::new(&rule.path) else { continue };
            let kind = meta.file_type();
            let access: BitFlags<AccessFs> = match kind {
                kind if kind.is_dir() => rule.access,
                kind if kind.is_char_device() => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
                _ => rule.access & AccessFs::from_file(NEWEST),
            };
            (&mut self.ruleset).add_rule(PathBeneath::new(fd, access)).map_err(failed)?;
            rule.of = now;
        }
        Ok(())
    }
}

fn failed(_: RulesetError) -> Errno {
    match Errno::last() {
        Errno::UnknownErrno => Errno::EINVAL,
        errno => errno,
    }
}
