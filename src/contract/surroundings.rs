//! Surroundings that a launcher can give its contracts, other than those of a ledger's run: for finding out what a contract
//! depends on, and for runs that must not slow a ledger's.
//!
//! A launcher takes them as arguments and enters them once, at its start; everything it starts inherits them.

use std::{
    ffi::OsString,
    io,
    path::Path,
    process::{Command, Stdio},
};

use nix::{errno::Errno, libc};

use super::{LAUNCHER_ARG, control::FIRST_FD};

/// Makes a launcher enter its surroundings, say whether that worked, and end.
const TRY_ARG: &str = "try";
/// The name of the machine in [`Surroundings::host_name`].
const HOST_NAME: &str = "another-host";
/// The bits taken from new files in [`Surroundings::umask`].
const UMASK: libc::mode_t = 0o077;
/// How far programs in [`Surroundings::background`] stand back: each gets a thirtieth of the processor time of others.
const NICE: libc::c_int = 15;
/// The contract's first descriptor in [`Surroundings::descriptors`].
const OTHER_FIRST_FD: i32 = 101;

/// What is other than on a node. None of it, by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// New files are for their owner alone.
    pub umask: bool,
    /// One processor.
    pub one_cpu: bool,
    /// Programs and their memory are always at the same addresses.
    pub fixed_addresses: bool,
    /// No network, not even to this machine.
    pub no_network: bool,
    /// The machine has another name.
    pub host_name: bool,
    /// Descriptors have other numbers.
    pub descriptors: bool,
    /// Whatever else wants the processor goes before.
    pub background: bool,
}

impl Surroundings {
    /// The number of the contract's first descriptor after stderr.
    pub(super) fn first_fd(self) -> i32 {
        if self.descriptors { OTHER_FIRST_FD } else { FIRST_FD }
    }

    fn list(self) -> [(&'static str, bool); 7] {
        [
            ("umask", self.umask),
            ("one-cpu", self.one_cpu),
            ("fixed-addresses", self.fixed_addresses),
            ("no-network", self.no_network),
            ("host-name", self.host_name),
            ("descriptors", self.descriptors),
            ("background", self.background),
        ]
    }

    /// Arguments for a launcher.
    pub(super) fn args(self) -> impl Iterator<Item = &'static str> {
        self.list().into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name)
    }

    /// The inverse of `args`, and whether this is only a try.
    pub(super) fn of_args(args: impl Iterator<Item = OsString>) -> (Surroundings, bool) {
        let args: Vec<OsString> = args.collect();
        let has = |name: &str| args.iter().any(|arg| arg == name);
        let surroundings = Surroundings {
            umask: has("umask"),
            one_cpu: has("one-cpu"),
            fixed_addresses: has("fixed-addresses"),
            no_network: has("no-network"),
            host_name: has("host-name"),
            descriptors: has("descriptors"),
            background: has("background"),
        };
        (surroundings, has(TRY_ARG))
    }

    /// Whether a launcher can enter them here; if not, why. `exe` is this program.
    pub fn probe(self, exe: &Path) -> Result<(), String> {
        let mut command = Command::new(exe);
        command.arg(LAUNCHER_ARG).arg(TRY_ARG).args(self.args()).stdin(Stdio::null()).stdout(Stdio::null());
        let tried = command.env_clear().output().map_err(|error| error.to_string())?;
        if tried.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&tried.stderr).trim().to_owned()) }
    }

    /// Enters them, with this process and all that it starts. It has one thread.
    pub(super) fn enter(self) -> io::Result<()> {
        let step = |what: &str, done: Result<(), Errno>| {
            done.map_err(|errno| io::Error::other(format!("{what}: {}", io::Error::from(errno))))
        };
        if self.background {
            // SAFETY: sets a number of this process, which everything that it starts takes over.
            let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
            step("background", Errno::result(set).map(drop))?;
        }
        if self.umask {
            // SAFETY: sets a number of this process.
            unsafe { libc::umask(UMASK) };
        }
        if self.one_cpu {
            step("one processor", one_cpu())?;
        }
        if self.fixed_addresses {
            step("fixed addresses", fixed_addresses())?;
        }
        if self.no_network {
            step("no network", own(CLONE_NEWNET))?;
        }
        if self.host_name {
            step("another host name", own(CLONE_NEWUTS).and_then(|()| set_host_name()))?;
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
use libc::{CLONE_NEWNET, CLONE_NEWUTS};
#[cfg(not(target_os = "linux"))]
const CLONE_NEWNET: libc::c_int = 0;
#[cfg(not(target_os = "linux"))]
const CLONE_NEWUTS: libc::c_int = 0;

/// The first of the processors that this process may use, alone.
#[cfg(target_os = "linux")]
fn one_cpu() -> Result<(), Errno> {
    // SAFETY: a zeroed set is the empty one; both calls read or write just that set, whose size they are given.
    unsafe {
        let size = size_of::<libc::cpu_set_t>();
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        Errno::result(libc::sched_getaffinity(0, size, &mut set))?;
        let all = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
        let first = (0..all).find(|cpu| libc::CPU_ISSET(*cpu, &set)).ok_or(Errno::ENOTSUP)?;
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(first, &mut set);
        Errno::result(libc::sched_setaffinity(0, size, &set)).map(drop)
    }
}

#[cfg(target_os = "linux")]
fn fixed_addresses() -> Result<(), Errno> {
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: reads, then sets, flags of this process that count from its next exec on.
    unsafe {
        let now = Errno::result(libc::personality(ASK))?;
        let wanted = now | libc::ADDR_NO_RANDOMIZE;
        Errno::result(libc::personality(libc::c_ulong::from(wanted.cast_unsigned()))).map(drop)
    }
}

/// A name space of this kind; by way of a name space of users for who has no privilege.
#[cfg(target_os = "linux")]
fn own(kind: libc::c_int) -> Result<(), Errno> {
    // SAFETY: plain calls on this process; `unshare` asks for one thread only where users are concerned, and it has one.
    unsafe {
        match Errno::result(libc::unshare(kind)) {
            Err(Errno::EPERM) => {}
            done => return done.map(drop),
        }
        let (uid, gid) = (libc::geteuid(), libc::getegid());
        Errno::result(libc::unshare(libc::CLONE_NEWUSER | kind))?;
        let write = |file: &str, text: String| std::fs::write(file, text).map_err(|_| Errno::EPERM);
        write("/proc/self/setgroups", "deny".to_owned())?;
        write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        write("/proc/self/gid_map", format!("{gid} {gid} 1"))
    }
}

#[cfg(target_os = "linux")]
fn set_host_name() -> Result<(), Errno> {
    // SAFETY: the text outlives the call, which gets its length; the name is that of the own name space.
    Errno::result(unsafe { libc::sethostname(HOST_NAME.as_ptr().cast(), HOST_NAME.len()) }).map(drop)
}

#[cfg(not(target_os = "linux"))]
fn one_cpu() -> Result<(), Errno> {
    Err(Errno::ENOTSUP)
}

#[cfg(not(target_os = "linux"))]
fn fixed_addresses() -> Result<(), Errno> {
    Err(Errno::ENOTSUP)
}

#[cfg(not(target_os = "linux"))]
fn own(_kind: libc::c_int) -> Result<(), Errno> {
    Err(Errno::ENOTSUP)
}

#[cfg(not(target_os = "linux"))]
fn set_host_name() -> Result<(), Errno> {
    let _ = HOST_NAME;
    Err(Errno::ENOTSUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_surrounding_survives_the_way_to_the_launcher() {
        let parse = |args: &[&str]| Surroundings::of_args(args.iter().map(OsString::from));
        assert_eq!(parse(&[]), (Surroundings::default(), false));
        for place in 0..7 {
            let is = |at: usize| at == place;
            let one = Surroundings {
                umask: is(0),
                one_cpu: is(1),
                fixed_addresses: is(2),
                no_network: is(3),
                host_name: is(4),
                descriptors: is(5),
                background: is(6),
            };
            let args: Vec<&str> = one.args().collect();
            assert_eq!((args.len(), parse(&args)), (1, (one, false)), "{args:?}");
        }
        assert!(parse(&[TRY_ARG]).1);
    }
}
