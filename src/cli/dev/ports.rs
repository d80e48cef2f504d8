//! Ports of 127.0.0.1 that stay this process's own while nobody listens on them: nodes are ended and begun again.
//!
//! A port that the system chooses (0) can be anybody's, also the near end of somebody's connection, as soon as the node
//! that had it is gone. So these are taken from outside the range that the system chooses from, and each is
//! locked by a file of its own, so that other processes that ask here take others.

use std::{
    env,
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{fcntl::OFlag, unistd::geteuid};

/// Ports from here on are taken; below stand the well-known services.
const FIRST: u16 = 10_000;
/// Where Linux says from which ports it chooses.
const CHOSEN_BY_SYSTEM: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// What others choose from, by RFC 6335 and where nothing else is known.
const DYNAMIC: Range<u16> = 49_152..u16::MAX;
/// Fewer ports than these below the system's range are not worth keeping to.
const ENOUGH: usize = 1_000;

/// Ports that are this process's until it is dropped.
#[derive(Debug)]
pub struct ReservedPorts {
    addresses: Vec<SocketAddr>,
    _locks: Vec<File>,
}

impl ReservedPorts {
    /// Takes `count` ports that nobody listens on and nobody else has reserved.
    ///
    /// # Errors
    ///
    /// When there are not so many, or the folder of the locks cannot be written.
    pub fn take(count: usize) -> io::Result<ReservedPorts> {
        let folder = own_folder()?;
        let chosen = fs::read_to_string(CHOSEN_BY_SYSTEM).ok().and_then(|text| range(&text)).unwrap_or(DYNAMIC);
        let ports = usable(chosen);
        let mut begin = [0; 4];
        getrandom::fill(&mut begin).map_err(io::Error::other)?;
        let begin = u32::from_le_bytes(begin) as usize % ports.len();
        let (mut addresses, mut locks) = (Vec::new(), Vec::new());
        for at in 0..ports.len() {
            if addresses.len() == count {
                break;
            }
            let port = ports.start + u16::try_from((begin + at) % ports.len()).expect("fewer ports than 2^16");
            let lock = open(&folder, port)?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if lock.try_lock().is_ok() && TcpListener::bind(address).is_ok() {
                addresses.push(address);
                locks.push(lock);
            }
        }
        if addresses.len() < count {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("of the ports {} to {} of 127.0.0.1 no {count} are free", ports.start, ports.end - 1),
            ));
        }
        Ok(ReservedPorts { addresses, _locks: locks })
    }

    /// Which.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// The folder of the locks, which is this user's alone: the temporary folder is everybody's.
fn own_folder() -> io::Result<PathBuf> {
    let folder = env::temp_dir().join(format!("hotpocket-ports-{}", geteuid()));
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(&folder)?;
    if found.is_dir() && found.uid() == geteuid().as_raw() {
        return Ok(folder);
    }
    let why = format!("{} is not a folder of this user; remove it, or set TMPDIR", folder.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

fn open(folder: &Path, port: u16) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW.bits();
    File::options().create(true).truncate(false).write(true).custom_flags(flags).open(folder.join(port.to_string()))
}

/// The ports that the system chooses from: two numbers and what is between them, like "32768 60999".
fn range(text: &str) -> Option<Range<u16>> {
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next()?, words.next()?) {
        (Ok(first), Ok(last)) => Some(first..last),
        _ => None,
    }
}

/// The ports below those; all, where nearly all are chosen from.
fn usable(chosen: Range<u16>) -> Range<u16> {
    let below = FIRST..chosen.start;
    if below.len() >= ENOUGH { below } else { FIRST..u16::MAX }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_have_a_port_at_a_time_and_it_is_free_again_afterwards() {
        let first = ReservedPorts::take(40).unwrap();
        let others: Vec<ReservedPorts> = (0..50).map(|_| ReservedPorts::take(4).unwrap()).collect();
        let all: BTreeSet<_> = first.addresses().iter().chain(others.iter().flat_map(|it| it.addresses())).collect();
        assert_eq!(all.len(), 240);
        let folder = own_folder().unwrap();
        let lock = |address: &SocketAddr| open(&folder, address.port()).unwrap();
        let address = first.addresses()[0];
        assert!(lock(&address).try_lock().is_err());
        drop(first);
        lock(&address).try_lock().unwrap();
    }

    #[test]
    fn the_ports_that_connections_begin_from_are_left_alone() {
        assert_eq!(range("32768\t60999\n"), Some(32_768..60_999));
        assert_eq!(range("many"), None);
        assert_eq!(usable(32_768..60_999), 10_000..32_768);
        assert_eq!(usable(1_024..65_000), 10_000..u16::MAX, "there is no other");
        let Some(chosen) = fs::read_to_string(CHOSEN_BY_SYSTEM).ok().and_then(|text| range(&text)) else { return };
        if chosen.start >= FIRST + 1_000 {
            let taken = ReservedPorts::take(20).unwrap();
            assert!(taken.addresses().iter().all(|address| address.port() < chosen.start));
        }
    }
}
