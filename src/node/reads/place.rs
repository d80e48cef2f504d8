//! Where a read-only run happens: a folder that looks to the contract as its own does, with a copy of the state that it may
//! write to, and a launcher that runs it in the background. Places are made when they are needed, used again and again, and
//! removed when nobody has needed them for a while.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{
    super::{
        Executor,
        exec::{ExecError, Room, limits_of, party_line},
        guards,
    },
    LEFT_ALONE_TIME, PROCESSES_MAX,
};
use tracing::warn;

use crate::{
    config::Config,
    contract::{End, LaunchError, Launcher, Limits, RunSpec, Surroundings, UserInput, fdlist::Facts, guards::HIDDEN},
    state::{PINS_MAX, PathFound, Replica, StateError, folder},
    types::{Hash, LimitKind, NodeKey, Seq, Status, WallMs},
};

/// The folder of the contract folder that all places are in.
const PLACES: &str = "reads";
/// Bytes of all copies of the state. With a larger state there are fewer places, and one at least.
const COPIES_BYTES_MAX: u64 = 4 << 30;
/// States pinned at a time to make copies of; the others are for nodes that fetch the state.
const PINNED_MAX: usize = PINS_MAX / 2;
/// The thread that ledgers' runs need too is taken for pinning for this part of the time.
const PINNING_SHARE: u32 = 20;
/// Times that a copy is begun when what it is made of is lost meanwhile.
const COPY_TRIES_MAX: u32 = 3;
/// Of the room that the disk had before the first of the runs that are under way, they may use what is left of it by this
/// part together. A ledger's run may use half of what it finds, so that they never cut one short.
const DISK_LEFT_PARTS: (u128, u128) = (3, 4);
/// Bytes that read-only runs leave in any case. With fewer there none is begun.
const DISK_LEFT_BYTES_MIN: u128 = 64 << 20;
/// Files, the same.
const DISK_LEFT_FILES_MIN: u128 = 1_024;
/// How often it is looked how much room there is.
const DISK_LOOK_EVERY: Duration = Duration::from_millis(20);
/// When a run has used more of the disk than this, its copy of the state is cut back at once.
const LITTER_BYTES_MAX: u128 = 16 << 20;
/// Bytes that a read-only run may log.
const LOG_BYTES_MAX: u64 = 64 << 10;

/// Why a question is not answered: this machine is at fault.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// The folder.
    #[error("cannot make {path}")]
    Io {
        /// What of it.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The copy of the state.
    #[error("cannot copy the state for a read-only run")]
    State(#[from] StateError),
    /// What the state is.
    #[error("cannot tell the state for a read-only run")]
    Exec(#[from] ExecError),
    /// The launcher.
    #[error("cannot run the contract for a question")]
    Launch(#[from] LaunchError),
    /// The disk.
    #[error("{path} has {free_kib} KiB left, too little for read-only runs")]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// What is left.
        free_kib: u128,
    },
}

/// All places of a node.
pub(super) struct Places {
    config: Config,
    exe: PathBuf,
    top: PathBuf,
    turns: Arc<Semaphore>,
    pinning: Semaphore,
    freed: Notify,
    inner: Mutex<Inner>,
    /// Bytes of the state when it was last looked at.
    state_bytes: AtomicU64,
}

#[derive(Default)]
struct Inner {
    idle: Vec<Place>,
    /// Those in use too.
    made: usize,
    next_name: u64,
    /// Every launcher that may still be there.
    launchers: BTreeMap<u64, Launcher>,
    agreed: Option<(Seq, Hash)>,
    /// Until then no state is pinned.
    pin_after: Option<Instant>,
    running: usize,
    /// Room on the disk before the first of those.
    room: Option<Room>,
}

/// One place. Whoever has it gives it back.
pub(super) struct Place {
    name: u64,
    dir: PathBuf,
    /// `None` while another thread has it.
    replica: Option<Replica>,
    launcher: Launcher,
    /// What `bin/` was when it was taken over.
    bin: Option<Stamp>,
    used: Instant,
    /// Bytes that the disk had left before the run.
    room: u128,
    turn: Option<OwnedSemaphorePermit>,
}

/// What a run came to.
pub(super) enum Outcome {
    /// It ended well, and wrote this to the user.
    Answered(Vec<u8>),
    /// It did not, in words.
    Failed(String),
}

/// What tells that the contract was replaced: folder and executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([Option<(u64, i64, i64)>; 2]);

impl Stamp {
    fn of(config: &Config) -> Stamp {
        let stamp = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec()));
        Stamp([stamp(&config.dir.join("bin")), stamp(&config.binary)])
    }
}

/// A place that is being made: counted, and not any more when that is given up.
struct Making<'a>(Option<&'a Places>);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if let Some(places) = self.0 {
            places.inner().made -= 1;
            places.freed.notify_one();
        }
    }
}

/// A run that uses the disk.
struct Using<'a>(&'a Places);

impl Drop for Using<'_> {
    fn drop(&mut self) {
        self.0.inner().running -= 1;
    }
}

impl Places {
    pub(super) fn new(config: &Config, exe: &Path) -> Places {
        Places {
            top: config.dir.join(PLACES),
            turns: Arc::new(Semaphore::new(config.user.reads_max)),
            pinning: Semaphore::new(PINNED_MAX),
            freed: Notify::new(),
            inner: Mutex::default(),
            state_bytes: AtomicU64::new(0),
            config: config.clone(),
            exe: exe.to_owned(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs that may be under way at once.
    pub(super) fn at_a_time(&self) -> usize {
        self.config.user.reads_max
    }

    /// Places that there may be.
    fn places_max(&self) -> usize {
        let by_size = COPIES_BYTES_MAX / self.state_bytes.load(Ordering::Relaxed).max(1);
        self.at_a_time().min(usize::try_from(by_size).unwrap_or(usize::MAX)).max(1)
    }

    /// The last ledger whose result is agreed on, and the root of the state that it left.
    pub(super) fn agreed(&self, seq: Seq, root: Hash) {
        self.inner().agreed = Some((seq, root));
    }

    /// Removes all places that an earlier process made.
    pub(super) async fn clear(&self) -> Result<(), StateError> {
        let top = self.top.clone();
        blocking(move || folder::remove(&top)).await
    }

    /// Waits for a place, or makes one. When the future is dropped nothing of it is left.
    pub(super) async fn take(&self) -> Result<Place, PlaceError> {
        let turn = self.turns.clone().acquire_owned().await.expect("nobody closes it");
        let name = loop {
            {
                let mut inner = self.inner();
                if let Some(mut place) = inner.idle.pop() {
                    place.turn = Some(turn);
                    return Ok(place);
                }
                if inner.made < self.places_max() {
                    inner.made += 1;
                    inner.next_name += 1;
                    break inner.next_name;
                }
            }
            self.freed.notified().await;
        };
        let mut making = Making(Some(self));
        let place = self.make(name, turn).await?;
        making.0 = None;
        Ok(place)
    }

    async fn make(&self, name: u64, turn: OwnedSemaphorePermit) -> Result<Place, PlaceError> {
        let dir = self.top.join(name.to_string());
        let made = {
            let dir = dir.clone();
            blocking(move || {
                fs::create_dir_all(&dir).map_err(|source| PlaceError::Io { path: dir.clone(), source })?;
                Ok::<_, PlaceError>(Replica::make(&dir.join("state"), &dir.with_extension("clock"))?)
            })
        };
        let replica = made.await?;
        let launcher = Launcher::start_in(&self.exe, Surroundings { background: true, ..Surroundings::default() })?;
        self.inner().launchers.insert(name, launcher.clone());
        let (used, turn) = (Instant::now(), Some(turn));
        Ok(Place { name, dir, replica: Some(replica), launcher, bin: None, used, room: 0, turn })
    }

    pub(super) fn give_back(&self, mut place: Place) {
        place.used = Instant::now();
        let turn = place.turn.take();
        self.inner().idle.push(place);
        // Only now, so that who has a turn finds it.
        drop(turn);
        self.freed.notify_one();
    }

    /// Nobody may use this place again.
    pub(super) fn give_up(&self, place: Place) {
        drop(place);
        self.inner().made -= 1;
        self.freed.notify_one();
    }

    /// Whether any place waits for a question.
    pub(super) fn has_idle(&self) -> bool {
        !self.inner().idle.is_empty()
    }

    /// Takes out the places that nobody has used for a while.
    pub(super) fn left_alone(&self, now: Instant) -> Vec<Place> {
        let is_left = |place: &mut Place| now.saturating_duration_since(place.used) >= LEFT_ALONE_TIME;
        self.inner().idle.extract_if(.., is_left).collect()
    }

    /// Removes places that were taken out.
    pub(super) async fn remove(&self, places: Vec<Place>) {
        for place in places {
            if let Err(error) = place.launcher.stop().await {
                warn!(%error, "the launcher of read-only runs does not end");
            }
            let dir = place.dir.clone();
            let removed =
                blocking(move || folder::remove(&dir).and_then(|()| folder::remove(&dir.with_extension("clock"))));
            if let Err(error) = removed.await {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "a copy of the state for read-only runs is not removed"
                );
            }
            let mut inner = self.inner();
            inner.launchers.remove(&place.name);
            inner.made -= 1;
            drop(inner);
            self.freed.notify_one();
        }
    }

    /// Ends what is left, and removes everything. No run is asked for any more.
    pub(super) async fn stop(&self) {
        let launchers = {
            let mut inner = self.inner();
            inner.idle.clear();
            std::mem::take(&mut inner.launchers)
        };
        for launcher in launchers.into_values() {
            if let Err(error) = launcher.stop().await {
                warn!(%error, "the launcher of read-only runs does not end");
            }
        }
        if let Err(error) = self.clear().await {
            warn!(
                error = &error as &dyn std::error::Error,
                "the copies of the state for read-only runs are not removed"
            );
        }
    }

    /// Makes the state of a place that after the last ledger whose result is agreed on: which, and its root. `None` when
    /// there is none here.
    pub(super) async fn prepare(
        &self,
        place: &mut Place,
        executor: &Executor,
    ) -> Result<Option<(Seq, Hash)>, PlaceError> {
        let mut tries = 0;
        loop {
            let agreed = self.inner().agreed;
            let Some((seq, root)) = executor.last(agreed).await? else { return Ok(None) };
            place.take_over_bin(&self.config).await?;
            if place.with_replica(move |replica| replica.is(&root)).await? {
                return Ok(Some((seq, root)));
            }
            let _one = self.pinning.acquire().await.expect("nobody closes it");
            let after = self.inner().pin_after;
            if let Some(after) = after {
                sleep_until(after.into()).await;
            }
            let agreed = self.inner().agreed;
            let Some((seq, pin, took)) = executor.pin_last(agreed).await? else { return Ok(None) };
            self.inner().pin_after = Some(Instant::now() + took * PINNING_SHARE);
            self.state_bytes.store(pin.bytes(), Ordering::Relaxed);
            self.check_disk(if place.is_new() { pin.bytes().into() } else { 0 })?;
            let root = pin.root();
            match place.with_replica(move |replica| replica.become_state(&pin)).await {
                Ok(()) => return Ok(Some((seq, root))),
                Err(StateError::PinLost { .. }) if tries + 1 < COPY_TRIES_MAX => tries += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What is at a path of the state after the last ledger whose result is agreed on, or after the last run.
    pub(super) async fn look(
        &self,
        executor: &Executor,
        path: &[u8],
        bytes_max: u64,
        confirmed: bool,
    ) -> Result<Option<(Seq, PathFound)>, PlaceError> {
        let mut tries = 0;
        loop {
            let _one = self.pinning.acquire().await.expect("nobody closes it");
            let after = self.inner().pin_after;
            if let Some(after) = after {
                sleep_until(after.into()).await;
            }
            let agreed = self.inner().agreed;
            let pinned = match confirmed {
                true => executor.pin_last(agreed).await?,
                false => executor.pin_latest().await?,
            };
            let Some((seq, pin, took)) = pinned else { return Ok(None) };
            self.inner().pin_after = Some(Instant::now() + took * PINNING_SHARE);
            let path = path.to_vec();
            match blocking(move || pin.path(&path, bytes_max)).await {
                Ok(found) => return Ok(Some((seq, found))),
                Err(StateError::PinLost { .. }) if tries + 1 < COPY_TRIES_MAX => tries += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the disk has room for so many bytes, and for what a run may write.
    fn check_disk(&self, bytes: u128) -> Result<Room, PlaceError> {
        let room = Room::of(&self.top);
        let least = Room { bytes: DISK_LEFT_BYTES_MIN + bytes, files: DISK_LEFT_FILES_MIN };
        match room.is_above(least) {
            true => Ok(room),
            false => Err(PlaceError::DiskFull { path: self.top.clone(), free_kib: room.bytes >> 10 }),
        }
    }

    /// What read-only runs must leave of the disk, while this one is under way.
    fn use_disk(&self) -> Result<(Using<'_>, Room), PlaceError> {
        let room = self.check_disk(0)?;
        let mut inner = self.inner();
        let before = match inner.room {
            Some(before) if inner.running > 0 => before,
            _ => room,
        };
        inner.room = Some(before);
        inner.running += 1;
        let (part, of) = DISK_LEFT_PARTS;
        let left = |there: u128, least: u128| (there / of * part).max(least);
        let left =
            Room { bytes: left(before.bytes, DISK_LEFT_BYTES_MIN), files: left(before.files, DISK_LEFT_FILES_MIN) };
        Ok((Using(self), left))
    }

    /// What a run that sees the state after this ledger is told.
    pub(super) fn facts(&self, seq: Seq, lcl: Hash, time_ms: WallMs, unl: Vec<NodeKey>) -> Facts {
        Facts {
            lcl,
            seq,
            time_ms,
            pubkey: self.config.key,
            unl,
            seed: Hash::tagged("hp/seed/1", &lcl),
            contract: self.config.contract.id,
            // Secrets are for what the nodes agree on.
            private: None,
            readonly: true,
            settlement: None,
        }
    }

    /// What a run may use.
    fn limits(&self) -> Limits {
        let contract = &self.config.contract;
        let limits = limits_of(contract);
        Limits {
            wall: Duration::from_millis(self.config.user.read_time_ms),
            processes: processes(limits.processes),
            log_bytes_max: limits.log_bytes_max.min(LOG_BYTES_MAX),
            ..limits
        }
    }
}

impl Place {
    fn is_new(&self) -> bool {
        self.replica.as_ref().is_some_and(Replica::is_empty)
    }

    /// Works on the copy of the state, on a thread of its own.
    async fn with_replica<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Replica) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let mut replica = self.replica.take().expect("only this takes it, and puts it back");
        let (replica, done) = blocking(move || {
            let done = work(&mut replica);
            (replica, done)
        })
        .await;
        self.replica = Some(replica);
        done
    }

    /// Makes `bin/` what the contract's is.
    async fn take_over_bin(&mut self, config: &Config) -> Result<(), PlaceError> {
        let stamp = Stamp::of(config);
        if self.bin == Some(stamp) {
            return Ok(());
        }
        let (from, to) = (config.dir.join("bin"), self.dir.join("bin"));
        blocking(move || {
            folder::remove(&to)?;
            link_tree(&from, &to).map_err(|source| PlaceError::Io { path: to, source })
        })
        .await?;
        if let Some(mut wanted) = guards::wanted(&self.config_of(config), true) {
            // Of the contract's own folder a read-only run has its copies.
            let own = HIDDEN.iter().filter(|name| **name != PLACES).chain(&["state", "private", "tmp"]);
            wanted.secrets.extend(own.map(|name| config.dir.join(name)));
            wanted.processes = processes(wanted.processes);
            self.launcher.contain(&wanted).await?;
        }
        self.bin = Some(stamp);
        Ok(())
    }

    /// The node's configuration as it is for a contract folder that is this place.
    fn config_of(&self, config: &Config) -> Config {
        let bin = config.dir.join("bin");
        // What is named by its whole path in the contract folder is taken from here too.
        let moved = |path: &Path| path.strip_prefix(&bin).ok().map(|rest| self.dir.join("bin").join(rest));
        let mut moved_config = config.clone();
        moved_config.dir = self.dir.clone();
        if let Some(binary) = moved(&config.binary) {
            moved_config.binary = binary;
        }
        for arg in &mut moved_config.argv {
            if let Some(moved) = moved(Path::new(arg)) {
                *arg = moved.to_string_lossy().into_owned();
            }
        }
        moved_config
    }

    /// Asks the contract.
    pub(super) async fn run(&mut self, places: &Places, facts: Facts, input: UserInput) -> Result<Outcome, PlaceError> {
        let (_using, left) = places.use_disk()?;
        self.room = Room::of(&self.dir).bytes;
        let user = input.key;
        let spec = self.spec(places, facts, input);
        // Nobody is on the party line.
        let (port, _) = party_line();
        let report = tokio::select! {
            biased;
            report = self.launcher.run(spec, port) => report?,
            () = room_below(&self.dir, left) => return Ok(Outcome::Failed("disk limit".to_owned())),
        };
        let status = match report.end {
            End::Status(status) => status,
            End::Overtime => Status::Limit(LimitKind::Time),
        };
        let mut outputs = report.outputs;
        Ok(match status {
            Status::Ok => Outcome::Answered(outputs.remove(&user).unwrap_or_default()),
            failed => Outcome::Failed(failed.to_string()),
        })
    }

    fn spec(&self, places: &Places, facts: Facts, input: UserInput) -> RunSpec {
        let config = self.config_of(&places.config);
        RunSpec {
            binary: config.binary,
            args: config.argv.into_iter().skip(1).collect(),
            dir: config.dir,
            env: config.contract.env.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            limits: places.limits(),
            facts,
            users: vec![input],
            log_dir: places.config.dir.join("log/reads"),
            npl_window: Duration::ZERO,
            overlay: None,
        }
    }

    /// Waits until nothing of the last run is left, and cuts back what it has piled up.
    pub(super) async fn settled(&mut self) -> Result<(), PlaceError> {
        self.launcher.settled().await?;
        if Room::of(&self.dir).bytes + LITTER_BYTES_MAX < self.room {
            self.with_replica(Replica::cut_back).await?;
        }
        Ok(())
    }
}

/// Processes that a read-only run may have, where a ledger's may have so many.
fn processes(limit: u64) -> u64 {
    if limit == 0 { PROCESSES_MAX } else { limit.min(PROCESSES_MAX) }
}

/// Resolves when there is less room on the disk than that.
async fn room_below(path: &Path, left: Room) {
    let mut looks = interval(DISK_LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if !Room::of(path).is_above(left) {
            return;
        }
    }
}

/// Makes `to` a folder with what is in `from`: the same files under second names where that is possible, else copies.
/// Nothing where `from` is not there.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut waiting = vec![(from.to_owned(), to.to_owned())];
    while let Some((path, copy)) = waiting.pop() {
        let kind = match fs::symlink_metadata(&path) {
            Ok(meta) => meta.file_type(),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
            Err(other) => return Err(other),
        };
        if kind.is_dir() || (kind.is_symlink() && path == from) {
            fs::create_dir(&copy)?;
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                waiting.push((entry.path(), copy.join(entry.file_name())));
            }
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(moved_target(from, &path, fs::read_link(&path)?), &copy)?;
        } else if kind.is_file() && fs::hard_link(&path, &copy).is_err() {
            fs::copy(&path, &copy)?;
        }
    }
    Ok(())
}

/// The target of a link that was moved with all of `top`: as it is when it stays below `top`, else the whole path.
fn moved_target(top: &Path, link: &Path, target: PathBuf) -> PathBuf {
    let folder = link.parent().unwrap_or(top);
    let mut depth = folder.strip_prefix(top).map_or(0, |below| below.components().count());
    for part in target.components() {
        match part {
            Component::ParentDir if depth == 0 => return folder.join(target),
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
    }
    target
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("file work does not panic")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn places(config: &str) -> Places {
        let text = crate::config::EXAMPLE.replace("reads_max = 8", config);
        let seed = || Ok(crate::crypto::SecretKey::from_seed([1; 32]).to_hex());
        let folder = Path::new("/nowhere");
        Places::new(&Config::parse(&text, &folder.join("cfg/hp.cfg"), folder, &|_| seed()).unwrap(), Path::new("hp"))
    }

    #[test]
    fn places_are_as_many_as_the_state_leaves_room_for_and_one_at_least() {
        let places = places("reads_max = 20");
        for (bytes, max) in [(0, 20), (1 << 20, 20), (1 << 30, 4), (3 << 30, 1), (1 << 40, 1)] {
            places.state_bytes.store(bytes, Ordering::Relaxed);
            assert_eq!(places.places_max(), max, "{bytes} bytes");
        }
    }

    #[test]
    fn the_same_programs_are_found_elsewhere_and_links_lead_where_they_led() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("bin"), dir.path().join("run/bin"));
        fs::create_dir_all(from.join("lib/deep")).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(from.join("program"), "x").unwrap();
        fs::write(dir.path().join("beside"), "beside").unwrap();
        symlink("../../program", from.join("lib/deep/inside")).unwrap();
        symlink("../../../beside", from.join("lib/deep/outside")).unwrap();
        symlink("/bin/sh", from.join("sh")).unwrap();
        link_tree(&from, &to).unwrap();
        assert_eq!(fs::metadata(to.join("program")).unwrap().ino(), fs::metadata(from.join("program")).unwrap().ino());
        assert_eq!(fs::read_to_string(to.join("lib/deep/outside")).unwrap(), "beside");
        assert_eq!(fs::read_link(to.join("lib/deep/inside")).unwrap(), Path::new("../../program"));
        assert_eq!(fs::read_link(to.join("sh")).unwrap(), Path::new("/bin/sh"));
        link_tree(&dir.path().join("missing"), &dir.path().join("none")).unwrap();
        assert!(!dir.path().join("none").exists());
    }
}
