//! What keeps a run from doing more than computing: a list of guards, each tried once in earnest before it is relied
//! upon, because what a kernel lets a process do depends on far more than on its version.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use borsh::{BorshDeserialize, BorshSerialize};

use super::{Overlay, control::Step};

/// Folders of a contract folder that no contract sees: keys, votes, sockets, logs.
pub const HIDDEN: [&str; 7] = ["cfg", "hist", "run", "log", "diag", "reads", "msb"];

/// The folder of a contract folder that a run has for itself.
pub(super) const TMP: &str = "tmp";

/// What a contract is kept from, as the operators want it.
#[derive(Debug, Clone)]
pub struct Containment {
    /// The contract folder.
    pub dir: PathBuf,
    /// The executable, as in [`RunSpec`](super::RunSpec).
    pub binary: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Whether it may use the network.
    pub network: bool,
    /// Whether its runs get namespaces, in which the numbers of processes are always alike.
    pub namespaces: bool,
    /// The user and the group that it runs as, where the node is root.
    pub user: Option<(u32, u32)>,
    /// Processes and threads that all of a run may have together.
    pub processes: u64,
    /// Bytes of memory that all of a run may have together; 0 for no limit.
    pub memory_bytes: u64,
    /// Files and folders that it may read beside the system's and its own.
    pub read: Vec<PathBuf>,
    /// Files and folders that it must not read, beside [`HIDDEN`].
    pub secrets: Vec<PathBuf>,
}

/// One guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Nothing that the contract starts has more rights than it (`no_new_privs`).
    NoNewPrivs,
    /// Only some files (Landlock).
    Landlock,
    /// Only some system calls (seccomp).
    Seccomp,
    /// No network.
    Network,
    /// Processes, a view of the files, and queues of its own.
    Namespaces,
    /// Root is not all-powerful.
    Capabilities,
    /// Limits for all of a run together.
    Cgroup,
    /// Another user than the node's.
    RunAs,
}

impl Name {
    /// All of them, in the order in which people read them.
    pub const ALL: [Name; 8] = [
        Name::NoNewPrivs,
        Name::Landlock,
        Name::Seccomp,
        Name::Network,
        Name::Namespaces,
        Name::Capabilities,
        Name::Cgroup,
        Name::RunAs,
    ];

    /// What an operator can do to have it.
    pub fn remedy(self) -> &'static str {
        if cfg!(not(target_os = "linux")) {
            return "run the node on Linux";
        }
        match self {
            Name::NoNewPrivs => "run a newer kernel",
            Name::Landlock => "run a kernel of 5.13 or newer with Landlock on: landlock in lsm= of its command line",
            Name::Seccomp => "run the node on x86_64, aarch64 or riscv64, with a kernel that has seccomp filters",
            Name::Network => "mend landlock, seccomp or namespaces",
            Name::Namespaces => {
                "run the node as root, or allow user namespaces: sysctl user.max_user_namespaces over 0, where they exist \
                 kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0"
            }
            Name::Capabilities => "let the node keep CAP_SETPCAP, or run it as another user than root",
            Name::Cgroup => {
                "run the node as a service of its own with Delegate=yes (systemd), or as root where cgroups are mounted to \
                 be written"
            }
            Name::RunAs => "run the node as root",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Name::NoNewPrivs => "no_new_privs",
            Name::Landlock => "landlock",
            Name::Seccomp => "seccomp",
            Name::Network => "network",
            Name::Namespaces => "namespaces",
            Name::Capabilities => "capabilities",
            Name::Cgroup => "cgroup",
            Name::RunAs => "run_as",
        })
    }
}

/// Where a guard stands, from the start of the node to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Which.
    pub name: Name,
    /// Whether the configuration asks for it, as it is or by its defaults.
    pub wanted: bool,
    /// Whether every run has it.
    pub on: bool,
    /// How it is done, or why it is off.
    pub why: String,
}

/// The guards of a run as the launcher is told. The default: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Guards {
    /// Paths, for Landlock.
    #[cfg(target_os = "linux")]
    pub(super) files: Option<super::files::Files>,
    /// Namespaces.
    #[cfg(target_os = "linux")]
    pub(super) space: Option<super::space::Space>,
    /// Limits for all of a run together.
    #[cfg(target_os = "linux")]
    pub(super) cgroup: Option<super::cgroup::Wanted>,
    /// Whether it is root without what only root can do.
    pub(super) capabilities: bool,
    /// Whom it runs as.
    pub(super) user: Option<User>,
    /// The filter of system calls.
    pub(super) calls: Option<Calls>,
}

/// Whom a run is of.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Folders that must belong to this user, with all that is in them.
    pub(super) own: Vec<Vec<u8>>,
}

impl Guards {
    /// Whether runs are in namespaces.
    pub(super) fn is_apart(&self) -> bool {
        #[cfg(target_os = "linux")]
        return self.space.is_some();
        #[cfg(not(target_os = "linux"))]
        false
    }
}

/// Which filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Calls {
    /// Sockets are allowed.
    pub(super) network: bool,
}

/// What was found out about the guards here, for all runs of a launcher.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) guards: Guards,
    /// What the contract's program is, to explain why it cannot be executed.
    read: Vec<PathBuf>,
}

impl Kept {
    /// The guards of a run in `dir`; `overlay` is what its state is, where that is none of its own.
    pub(super) fn of_run(&self, dir: &Path, binary: &Path, private: Option<&Path>, overlay: Option<Overlay>) -> Guards {
        #[cfg_attr(not(target_os = "linux"), expect(unused_mut))]
        let mut guards = self.guards.clone();
        #[cfg(target_os = "linux")]
        if let Some(files) = &mut guards.files {
            use std::os::unix::ffi::OsStrExt as _;
            let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
            files.read.extend([bytes(&dir.join("bin")), bytes(&dir.join(binary))]);
            files.read.extend(private.map(bytes));
            files.write.extend([bytes(&dir.join("state")), bytes(&dir.join(TMP))]);
        }
        #[cfg(target_os = "linux")]
        if let (Some(space), Some(overlay)) = (&mut guards.space, overlay) {
            use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
            let parts = [overlay.lower, overlay.upper, overlay.work].map(|part| dir.join(part));
            let is_part = |path: &Vec<u8>| parts.iter().any(|part| part.starts_with(OsStr::from_bytes(path)));
            (space.hide_mounted, space.hide) = std::mem::take(&mut space.hide).into_iter().partition(is_part);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (dir, binary, private, overlay);
        guards
    }

    /// The file between a binary and its code that could be executed if the guards let it.
    pub(super) fn forbidden(
        &self,
        dir: &Path,
        binary: &Path,
        args: &[String],
        env: &[(String, String)],
    ) -> Option<PathBuf> {
        let path = path_of(env);
        #[cfg(target_os = "linux")]
        if self.guards.files.is_some() {
            use super::readable::{self, Program};
            let files = readable::files_of(Program { dir, binary, args, path: &path });
            let own = [dir.join("bin"), dir.join(binary)];
            let may = |file: &PathBuf| {
                let real = std::fs::canonicalize(file).unwrap_or(file.clone());
                let own = own.iter().filter_map(|path| std::fs::canonicalize(path).ok());
                self.read.iter().cloned().chain(own).any(|path| real.starts_with(path))
            };
            // What cannot be executed anywhere is the contract's own trouble.
            return files.into_iter().take_while(|file| readable::is_executable(file)).find(|file| !may(file));
        }
        let _ = (dir, binary, args, path);
        None
    }
}

/// `PATH` of a run's environment.
fn path_of(env: &[(String, String)]) -> OsString {
    let set = env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str());
    OsString::from(set.unwrap_or(super::run::DEFAULT_PATH))
}

/// Why a guard cannot be had, before anything is tried; and the guards with everything else in them.
pub(super) struct Plan {
    pub(super) kept: Kept,
    pub(super) off: Vec<(Name, String)>,
}

/// The guards as they should be.
#[cfg(target_os = "linux")]
pub(super) fn plan(wanted: &Containment) -> Plan {
    use std::os::unix::ffi::OsStrExt as _;

    use super::{calls, files, readable};
    let path = path_of(&wanted.env);
    let program = readable::Program { dir: &wanted.dir, binary: &wanted.binary, args: &wanted.args, path: &path };
    let secrets: Vec<PathBuf> =
        HIDDEN.iter().map(|name| wanted.dir.join(name)).chain(wanted.secrets.iter().cloned()).collect();
    let read = readable::paths(program, wanted.network, &wanted.read, &secrets);
    let mut off = Vec::new();
    let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
    let files = match files::version() {
        Ok(_) => Some(files::Files {
            read: read.iter().map(|path| bytes(path)).collect(),
            write: readable::DEVICES.iter().map(|path| path.as_bytes().to_vec()).collect(),
            network: wanted.network,
        }),
        Err(errno) => {
            off.push((
                Name::Landlock,
                format!("this kernel has none, or it is not enabled (lsm=landlock,...): {errno}"),
            ));
            None
        }
    };
    let space = wanted.namespaces.then(|| super::space::Space {
        dir: bytes(&wanted.dir),
        fixed: ["bin", "private"].iter().map(|name| bytes(&wanted.dir.join(name))).collect(),
        hide: secrets.iter().map(|path| bytes(path)).collect(),
        hide_mounted: Vec::new(),
        network: wanted.network,
        own_proc: true,
    });
    let capabilities = nix::unistd::geteuid().is_root();
    let (processes, memory_bytes) = (wanted.processes, wanted.memory_bytes);
    let cgroup = Some(super::cgroup::Wanted { dir: bytes(&wanted.dir), processes, memory_bytes });
    let calls = calls::processor().map(|_| Calls { network: wanted.network });
    if calls.is_none() {
        off.push((Name::Seccomp, format!("no list of system calls for {}", std::env::consts::ARCH)));
    }
    Plan {
        kept: Kept { guards: Guards { files, space, cgroup, capabilities, user: user_of(wanted), calls }, read },
        off,
    }
}

fn user_of(wanted: &Containment) -> Option<User> {
    use std::os::unix::ffi::OsStrExt as _;
    let own = || vec![wanted.dir.join("state").as_os_str().as_bytes().to_vec()];
    wanted.user.map(|(uid, gid)| User { uid, gid, own: own() })
}

/// The guards as they should be: none but the user, and why.
#[cfg(not(target_os = "linux"))]
pub(super) fn plan(wanted: &Containment) -> Plan {
    let guards = Guards { user: user_of(wanted), ..Guards::default() };
    let kept = Kept { guards, ..Kept::default() };
    let why = || format!("only Linux has it, and this is {}", std::env::consts::OS);
    Plan { kept, off: Name::ALL.into_iter().map(|name| (name, why())).collect() }
}

impl Plan {
    /// Does without what did not work. False: that was none of the guards.
    pub(super) fn give_up(&mut self, step: Step, why: &std::io::Error) -> bool {
        let guards = &mut self.kept.guards;
        let name = match step {
            #[cfg(target_os = "linux")]
            Step::Files if guards.files.take().is_some() => Name::Landlock,
            Step::Calls if guards.calls.take().is_some() => Name::Seccomp,
            #[cfg(target_os = "linux")]
            Step::Proc if guards.space.as_ref().is_some_and(|space| space.own_proc) => {
                guards.space.iter_mut().for_each(|space| space.own_proc = false);
                return true;
            }
            #[cfg(target_os = "linux")]
            Step::Space | Step::View | Step::Proc if guards.space.take().is_some() => Name::Namespaces,
            #[cfg(target_os = "linux")]
            Step::Cgroup if guards.cgroup.take().is_some() => Name::Cgroup,
            Step::Capabilities if std::mem::take(&mut guards.capabilities) => Name::Capabilities,
            _ => return false,
        };
        let shared =
            "; it shares its cgroup with other processes, and one of version 2 with processes has none below it";
        let hint = match why.raw_os_error().map(nix::errno::Errno::from_raw) {
            Some(nix::errno::Errno::ENOENT) if name == Name::Cgroup => {
                "; the controllers memory and pids are not there"
            }
            Some(nix::errno::Errno::EBUSY) if name == Name::Cgroup => shared,
            _ => "",
        };
        self.off.push((name, format!("cannot {step} a contract here: {why}{hint}")));
        true
    }

    /// What came of it.
    pub(super) fn report(&self, wanted: &Containment) -> Vec<Guard> {
        let guards = &self.kept.guards;
        let calls = guards.calls.is_some();
        #[cfg(target_os = "linux")]
        let files = guards.files.as_ref().map(|_| super::files::version().unwrap_or(0));
        #[cfg(not(target_os = "linux"))]
        let files: Option<u32> = None;
        #[cfg(target_os = "linux")]
        let space = guards.space.as_ref().map(|space| space.own_proc);
        #[cfg(not(target_os = "linux"))]
        let space: Option<bool> = None;
        #[cfg(target_os = "linux")]
        let is_counted = guards.cgroup.is_some();
        #[cfg(not(target_os = "linux"))]
        let is_counted = false;
        let on = |name: Name| match name {
            Name::NoNewPrivs => cfg!(target_os = "linux").then(|| "set".to_owned()),
            Name::Landlock => files.map(|version| format!("version {version}: {}", landlock_does(version))),
            Name::Seccomp => calls.then(|| "a list of system calls is refused with EPERM".to_owned()),
            Name::Network => {
                let no_tcp = files.is_some_and(|version| version >= 4);
                let ways = [(calls, "no sockets"), (no_tcp, "no TCP"), (space.is_some(), "no interfaces")];
                let ways: Vec<&str> = ways.into_iter().filter_map(|(on, way)| on.then_some(way)).collect();
                (!wanted.network && !ways.is_empty()).then(|| ways.join(", "))
            }
            Name::Namespaces => space.map(|own_proc| match own_proc {
                true => "processes, view of the files, queues and network of its own".to_owned(),
                false => "processes, view of the files and queues of its own; but /proc shows all processes".to_owned(),
            }),
            Name::Capabilities => guards.capabilities.then(|| "root without what only root can do".to_owned()),
            Name::RunAs => {
                let text =
                    |user: &User| format!("user {}, group {}, no other group, no right of root's", user.uid, user.gid);
                guards.user.as_ref().map(text)
            }
            Name::Cgroup => is_counted.then(|| {
                let memory = match wanted.memory_bytes {
                    0 => String::new(),
                    bytes => format!(" and {} MiB of memory", bytes >> 20),
                };
                format!("{} processes{memory} for all of a run together", wanted.processes)
            }),
        };
        let is_root = nix::unistd::geteuid().is_root();
        let off = |name: Name| {
            let tried = self.off.iter().find(|(off, _)| *off == name).map(|(_, why)| why.clone());
            match name {
                Name::Network if wanted.network => "allowed: [contract] network = true".to_owned(),
                Name::Capabilities if !is_root => "not needed: the node is not root".to_owned(),
                Name::RunAs => "not asked for: [contract] run_as".to_owned(),
                Name::Namespaces if !wanted.namespaces => "not wanted here".to_owned(),
                _ => tried.unwrap_or_else(|| "needs landlock, seccomp or namespaces".to_owned()),
            }
        };
        let guard = |name: Name| {
            let done = on(name);
            let wanted = match name {
                Name::Network => !wanted.network,
                Name::Namespaces => wanted.namespaces,
                Name::Capabilities => is_root,
                Name::RunAs => wanted.user.is_some(),
                _ => true,
            };
            Guard { name, wanted, on: done.is_some(), why: done.unwrap_or_else(|| off(name)) }
        };
        Name::ALL.into_iter().map(guard).collect()
    }
}

/// What a version of Landlock can do, of what is made use of.
fn landlock_does(version: u32) -> &'static str {
    match version {
        0..=1 => "files",
        2 => "files, moving them",
        3 => "files, moving and truncating them",
        4 => "files, TCP",
        5 => "files, devices, TCP",
        _ => "files, devices, TCP, signals, abstract sockets",
    }
}

/// The guards when the operator wants none.
pub fn none_wanted(why: &str) -> Vec<Guard> {
    let guard = |name: Name| match name {
        Name::NoNewPrivs if cfg!(target_os = "linux") => {
            Guard { name, wanted: false, on: true, why: "set all the same".to_owned() }
        }
        _ => Guard { name, wanted: false, on: false, why: why.to_owned() },
    };
    Name::ALL.into_iter().map(guard).collect()
}
