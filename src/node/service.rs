//! What the service manager is told that started the node: that it is up, how it stands, that it lives, that it stops. By the
//! datagrams of sd_notify(3), which systemd and others take; without `NOTIFY_SOCKET` nothing of this is there.
//!
//! The thread that closes ledgers sends them itself, so that a manager with a watchdog ends a node whose loop hangs; hashing,
//! fetching and the contract's runs are not on that thread. The socket never waits: a manager that takes nothing must not hold
//! ledgers up. (The crate `sd-notify` would wait.) The beats are the only timer here, and there where the manager asks for them.

use std::{
    env,
    ffi::OsString,
    io,
    os::unix::{
        ffi::OsStrExt as _,
        net::{SocketAddr, UnixDatagram},
    },
    time::{Duration, Instant},
};

use tokio::time::sleep_until;
use tracing::{debug, warn};

use super::Node;

/// How often the manager is told how the node stands, at most.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Characters of that: a line to look at.
const STATUS_CHARS_MAX: usize = 200;
/// Shorter than that no watchdog is believed, or the beats would be all that the node does.
const WATCHDOG_MIN: Duration = Duration::from_millis(100);

/// The manager, as the environment names it.
#[derive(Debug, Default)]
pub(super) struct Service {
    socket: Option<UnixDatagram>,
    /// Between two beats.
    beat_every: Option<Duration>,
    next_beat: Option<Instant>,
    /// What was told last, when, and which change of the node that was.
    told: String,
    told_at: Option<Instant>,
    told_change: u64,
    /// Whether the last datagram could not be sent, which people are told of once.
    is_deaf: bool,
}

impl Service {
    /// The manager that started this process, or none.
    pub fn of_environment() -> Service {
        let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Service::default();
        };
        let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| is_ours).map(Duration::from_micros);
        match connected(&socket) {
            Ok(socket) => Service::new(socket, watchdog),
            Err(error) => {
                warn!(?socket, %error, "cannot tell the service manager anything (NOTIFY_SOCKET)");
                Service::default()
            }
        }
    }

    fn new(socket: UnixDatagram, watchdog: Option<Duration>) -> Service {
        // Twice in the time that it allows, as sd_watchdog_enabled(3) asks for.
        let beat_every = watchdog.map(|watchdog| watchdog.max(WATCHDOG_MIN) / 2);
        Service { socket: Some(socket), beat_every, ..Service::default() }
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// The node takes users and peers from now on.
    pub fn ready(&mut self, status: &str, change: u64) {
        self.next_beat = self.beat_every.map(|_| Instant::now());
        (self.told, self.told_at, self.told_change) = (line(status), Some(Instant::now()), change);
        let text = format!("READY=1\nSTATUS={}\n", self.told);
        self.send(&text);
    }

    /// When there is something to tell, if the node has changed so often; `None`: not before it changes again.
    pub fn due(&self, change: u64) -> Option<Instant> {
        self.socket.as_ref()?;
        let status = self.told_at.filter(|_| change != self.told_change).map(|told| told + STATUS_EVERY);
        self.next_beat.into_iter().chain(status).min()
    }

    /// Tells what it is time for. `status` is made when it is asked for.
    pub fn tell(&mut self, change: u64, status: impl FnOnce() -> String) {
        let now = Instant::now();
        let mut text = String::new();
        if let (Some(every), true) = (self.beat_every, self.next_beat.is_some_and(|next| next <= now)) {
            self.next_beat = Some(now + every);
            text.push_str("WATCHDOG=1\n");
        }
        if change != self.told_change && self.told_at.is_some_and(|told| now - told >= STATUS_EVERY) {
            (self.told_at, self.told_change) = (Some(now), change);
            let status = line(&status());
            if status != self.told {
                text.push_str(&format!("STATUS={status}\n"));
                self.told = status;
            }
        }
        self.send(&text);
    }

    /// The node stops, in order.
    pub fn stopping(&mut self) {
        self.send("STOPPING=1\nSTATUS=stopping\n");
        self.next_beat = None;
    }

    fn send(&mut self, text: &str) {
        let Some(socket) = self.socket.as_ref().filter(|_| !text.is_empty()) else { return };
        match socket.send(text.as_bytes()) {
            Ok(_) => self.is_deaf = false,
            Err(error) if self.is_deaf => debug!(%error, "the service manager takes nothing"),
            Err(error) => {
                warn!(%error, "the service manager takes nothing");
                self.is_deaf = true;
            }
        }
    }
}

/// A socket to send to that address, which may be a path, or with `@` in front a name that is in no folder (Linux).
fn connected(name: &OsString) -> io::Result<UnixDatagram> {
    let bytes = name.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        None => SocketAddr::from_pathname(name)?,
        #[cfg(target_os = "linux")]
        Some(name) => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?,
        #[cfg(not(target_os = "linux"))]
        Some(_) => return Err(io::ErrorKind::Unsupported.into()),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// One line, not too long, of what may hold anything.
fn line(text: &str) -> String {
    let chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = chars.take(STATUS_CHARS_MAX).collect();
    if text.chars().nth(STATUS_CHARS_MAX).is_some() {
        short.push_str(" ...");
    }
    short
}

/// Resolves then; never where there is no such time.
pub(super) async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

impl Node {
    /// The node is up: the manager may start what needs it.
    pub(super) fn tell_service_ready(&mut self) {
        if self.service.is_there() {
            let (status, change) = (self.service_line(), *self.changes.borrow());
            self.service.ready(&status, change);
        }
    }

    pub(super) fn tell_service(&mut self) {
        let mut service = std::mem::take(&mut self.service);
        service.tell(*self.changes.borrow(), || self.service_line());
        self.service = service;
    }

    /// How the node stands, for whoever looks at many services.
    fn service_line(&self) -> String {
        let (summary, quorum, alerts) = (self.core.summary(), self.core.quorum(), self.alerts());
        let is_live = |node: &&crate::types::NodeKey| **node == self.config.key || self.linked.contains(node);
        let live = self.core.unl().iter().filter(is_live).count();
        let standing = if self.disk.is_paused() {
            "disk nearly full".to_owned()
        } else if summary.synced {
            "in sync".to_owned()
        } else {
            format!("catching up with ledger {}", summary.network_seq)
        };
        let users = self.gateway.as_ref().map_or(0, |gateway| gateway.users());
        let told = match &alerts[..] {
            [] => String::new(),
            [alert] => format!("; ALERT: {}", alert.text),
            [alert, more @ ..] => format!("; {} alerts: {}", more.len() + 1, alert.text),
        };
        format!("ledger {}, {standing}, {live} of {} members live, {users} users here{told}", summary.seq, quorum.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager, and what tells it.
    fn pair(watchdog: Option<Duration>) -> (tempfile::TempDir, UnixDatagram, Service) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        (dir, manager, Service::new(connected(&path.into()).unwrap(), watchdog))
    }

    fn heard(manager: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 4_096];
        let mut texts = Vec::new();
        while let Ok(len) = manager.recv(&mut bytes) {
            texts.push(String::from_utf8(bytes[..len].to_vec()).unwrap());
        }
        texts
    }

    #[test]
    fn the_manager_hears_that_the_node_is_ready_lives_and_stops() {
        let (_dir, manager, mut service) = pair(Some(Duration::from_secs(60)));
        assert_eq!(service.due(0), None, "not before it is ready");
        service.ready("ledger 1\nREADY=0", 1);
        assert_eq!(heard(&manager), ["READY=1\nSTATUS=ledger 1 READY=0\n"], "one line");
        assert!(service.due(1).unwrap() <= Instant::now(), "the first beat");
        service.tell(1, || unreachable!("nothing has changed"));
        service.tell(2, || unreachable!("too soon"));
        assert_eq!(heard(&manager), ["WATCHDOG=1\n"]);
        let next = service.due(2).unwrap().saturating_duration_since(Instant::now());
        assert!(next > Duration::from_secs(8) && next <= STATUS_EVERY, "{next:?}");
        service.told_at = Instant::now().checked_sub(STATUS_EVERY);
        service.tell(2, || "ledger 2".to_owned());
        assert_eq!((heard(&manager), service.told_change), (vec!["STATUS=ledger 2\n".to_owned()], 2));
        service.stopping();
        assert_eq!(heard(&manager), ["STOPPING=1\nSTATUS=stopping\n"]);
        assert_eq!(service.due(2), None);
    }

    #[test]
    fn without_a_watchdog_nothing_is_due_before_something_changes() {
        let (_dir, _manager, mut service) = pair(None);
        service.ready("", 7);
        assert_eq!(service.due(7), None);
        assert!(service.due(8).is_some());
        assert_eq!(Service::default().due(8), None);
    }

    #[test]
    fn a_manager_that_takes_nothing_holds_nothing_up_and_a_silly_watchdog_is_not_believed() {
        let (_dir, manager, mut service) = pair(Some(Duration::from_nanos(1)));
        assert_eq!(service.beat_every, Some(WATCHDOG_MIN / 2));
        service.ready("", 0);
        (0..10_000).for_each(|_| service.send("WATCHDOG=1\n"));
        assert!(service.is_deaf);
        heard(&manager);
        service.send("WATCHDOG=1\n");
        assert!(!service.is_deaf);
    }

    #[test]
    fn a_long_status_is_cut_between_characters() {
        assert_eq!(line(&"é".repeat(201)), format!("{} ...", "é".repeat(200)));
        assert_eq!(line(&"é".repeat(200)), "é".repeat(200));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_that_is_in_no_folder_is_an_address_too() {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("hp-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        manager.set_nonblocking(true).unwrap();
        let mut service = Service::new(connected(&format!("@{name}").into()).unwrap(), None);
        service.ready("up", 0);
        assert_eq!(heard(&manager), ["READY=1\nSTATUS=up\n"]);
    }
}
