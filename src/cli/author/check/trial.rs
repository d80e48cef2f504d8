//! The trials of a check: each changes one thing, or holds one still.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::{lab::Setup, shim::Shim, source::Source};

/// Where Linux has a file system in memory.
const MEMORY_DISK: &str = "/dev/shm";

/// Makes a setup another one.
type Change = fn(&mut Setup);

/// Something that is changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    /// What it shows when something differs.
    pub(super) source: Source,
    /// What is other than at first.
    pub(super) what: &'static str,
    /// How often it is run, in `--runs` times.
    pub(super) repeats: bool,
    change: Change,
}

/// Everything that is changed, one at a time.
pub(super) const TRIALS: [Trial; 18] = [
    Trial {
        source: Source::Clock,
        what: "the wall clock 400 days early, files from 2009",
        repeats: false,
        change: |setup| {
            setup.shim = Some(Shim { early: true, ..setup.shim.unwrap_or_default() });
            setup.old_files = true;
        },
    },
    Trial {
        source: Source::HashSeed,
        what: "PYTHONHASHSEED, PERL_HASH_SEED and NODE_OPTIONS set",
        repeats: false,
        change: |setup| {
            setup.env.extend([
                ("PYTHONHASHSEED", "4711"),
                ("PERL_HASH_SEED", "4711"),
                ("NODE_OPTIONS", "--stack-trace-limit=3 --max-old-space-size=512"),
            ]);
        },
    },
    Trial {
        source: Source::Environment,
        what: "HOME, USER and variables nobody knows",
        repeats: false,
        change: |setup| {
            setup.env.extend([("HOME", "/"), ("USER", "somebody"), ("SHELL", "/bin/other"), ("HP_NOBODY", "x")]);
        },
    },
    Trial {
        source: Source::Locale,
        what: "LANG and LC_ALL C, TZ Asia/Tokyo",
        repeats: false,
        change: |setup| setup.env.extend([("LANG", "C"), ("LC_ALL", "C"), ("TZ", "Asia/Tokyo")]),
    },
    Trial {
        source: Source::Descriptors,
        what: "descriptors numbered from 101 on",
        repeats: false,
        change: |setup| setup.surroundings.descriptors = true,
    },
    Trial {
        source: Source::Users,
        what: "users in the opposite order",
        repeats: false,
        change: |setup| setup.users_reversed = true,
    },
    Trial { source: Source::Folder, what: "another path", repeats: false, change: |setup| setup.other_path = true },
    Trial {
        source: Source::Directory,
        what: "files made in the opposite order",
        repeats: false,
        change: |setup| {
            setup.other_order = true;
            setup.other_disk = other_disk(&std::env::temp_dir());
        },
    },
    Trial { source: Source::Umask, what: "umask 077", repeats: false, change: |setup| setup.surroundings.umask = true },
    Trial {
        source: Source::Host,
        what: "a machine of another name",
        repeats: false,
        change: |setup| setup.surroundings.host_name = true,
    },
    Trial {
        source: Source::Network,
        what: "the network allowed where it is not, gone where it is",
        repeats: false,
        change: |setup| setup.other_network = true,
    },
    Trial {
        source: Source::Containment,
        what: "nothing keeps the contract in its place",
        repeats: false,
        change: |setup| setup.unguarded = true,
    },
    Trial {
        source: Source::Addresses,
        what: "everything in memory at the same place",
        repeats: false,
        change: |setup| setup.surroundings.fixed_addresses = true,
    },
    Trial {
        source: Source::ProcessId,
        what: "every process has the same number",
        repeats: false,
        change: |setup| setup.shim = Some(Shim { pid: true, ..setup.shim.unwrap_or_default() }),
    },
    Trial {
        source: Source::Member,
        what: "another node: pubkey, and with or without private/",
        repeats: false,
        change: |setup| setup.other_node = true,
    },
    Trial {
        source: Source::PartyLine,
        what: "the other nodes are heard",
        repeats: false,
        change: |setup| setup.party = true,
    },
    Trial {
        source: Source::Threads,
        what: "one processor",
        repeats: true,
        change: |setup| setup.surroundings.one_cpu = true,
    },
    Trial { source: Source::Threads, what: "all processors busy", repeats: true, change: |setup| setup.busy = true },
];

/// Everything that can be held still, for finding out why equal runs differ. The more telling ones first.
const PINS: [(Source, Change); 6] = [
    (Source::HashSeed, |setup| setup.env.extend([("PYTHONHASHSEED", "0"), ("PERL_HASH_SEED", "0")])),
    (Source::Addresses, |setup| setup.surroundings.fixed_addresses = true),
    (Source::ProcessId, |setup| setup.shim = Some(Shim { pid: true, ..setup.shim.unwrap_or_default() })),
    (Source::Clock, |setup| setup.shim = Some(Shim { steps: true, ..setup.shim.unwrap_or_default() })),
    (Source::Randomness, |setup| setup.shim = Some(Shim { random: true, ..setup.shim.unwrap_or_default() })),
    (Source::Threads, |setup| setup.surroundings.one_cpu = true),
];

impl Trial {
    /// The series it is, and the one it is to be compared with.
    pub(super) fn setups(&self, base: &Setup) -> (Setup, Setup) {
        let mut changed = base.clone();
        (self.change)(&mut changed);
        // That a library is loaded can be seen, too, so both have one.
        let shim = changed.shim.map(|_| base.shim.unwrap_or_default());
        (changed, Setup { shim, ..base.clone() })
    }

    /// What it changes here.
    pub(super) fn what(&self, setup: &Setup) -> String {
        match &setup.other_disk {
            Some(disk) => format!("{}, on another file system ({})", self.what, disk.display()),
            None => self.what.to_owned(),
        }
    }
}

/// Ways to hold chance still: each source alone, then all of them.
pub(super) fn pins() -> impl Iterator<Item = (Vec<Source>, Setup)> {
    let alone = PINS.iter().map(|(source, pin)| {
        let mut setup = Setup::default();
        pin(&mut setup);
        (vec![*source], setup)
    });
    let mut all = Setup::default();
    PINS.iter().for_each(|(_, pin)| pin(&mut all));
    alone.chain([(PINS.iter().map(|(source, _)| *source).collect(), all)])
}

/// A folder on another file system than `here`, in which programs can be executed.
fn other_disk(here: &Path) -> Option<PathBuf> {
    let disk = PathBuf::from(MEMORY_DISK);
    let device = |path: &Path| fs::metadata(path).ok().map(|meta| meta.dev());
    let can_execute =
        statvfs(&disk).is_ok_and(|disk| !disk.flags().intersects(FsFlags::ST_NOEXEC | FsFlags::ST_RDONLY));
    (can_execute && device(&disk) != device(here)).then_some(disk)
}
