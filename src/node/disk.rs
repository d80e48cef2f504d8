//! Room on the node's disk: the node stops voting before there is none, goes on when there is again, and says how long what it
//! keeps can go on growing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Node, NodeError, metrics::database_bytes, wall_ms};
use crate::{consensus::Event, types::WallMs};

/// Between two looks at the disk.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of a small disk at most this part is the reserve.
const RESERVE_PART: u64 = 4;
/// Measurements of what the node keeps that are remembered; the oldest make room: a week.
const SAMPLES_MAX: usize = 7 * 24;
/// Between two of them.
const SAMPLE_EVERY_MS: WallMs = 3_600_000;
/// A growth over less time says nothing.
const GROWTH_MS_MIN: WallMs = SAMPLE_EVERY_MS;
/// Bytes of the file of measurements. One that is longer is not ours.
const FILE_BYTES_MAX: u64 = 64 << 10;
const DAY_MS: f64 = 86_400_000.0;

/// What the node kept at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Sample {
    time_ms: WallMs,
    database: u64,
    state: u64,
}

impl Sample {
    /// The state is there twice: a copy of it is kept to go back to.
    fn bytes(&self) -> u64 {
        self.database + 2 * self.state
    }
}

/// What a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    free: u64,
    all: u64,
}

impl Room {
    /// `None` where the disk does not say.
    fn of(path: &Path) -> Option<Room> {
        let disk = statvfs(path).ok()?;
        let unit = u128::from(disk.fragment_size());
        let bytes = |blocks: u128| u64::try_from(blocks * unit).unwrap_or(u64::MAX);
        Some(Room { free: bytes(disk.blocks_available().into()), all: bytes(disk.blocks().into()) })
    }
}

/// The disk as the node knows it.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    /// As configured; 0: none.
    reserve: u64,
    room: Option<Room>,
    looked: Option<Instant>,
    paused: bool,
    state: u64,
    /// Oldest first.
    samples: Vec<Sample>,
}

impl Disk {
    /// Looks, and reads what was measured before.
    pub fn new(dir: &Path, reserve: u64) -> Disk {
        let samples = read(&file(dir)).unwrap_or_default();
        let state = samples.last().map_or(0, |sample| sample.state);
        Disk { dir: dir.to_owned(), reserve, room: Room::of(dir), looked: None, paused: false, state, samples }
    }

    /// Whether the node must not go on.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// A run left so much in `state/`.
    pub fn state_is(&mut self, bytes: u64) {
        self.state = bytes;
    }

    /// What must stay free. Of a small disk a part alone.
    fn reserve(&self) -> u64 {
        self.room.map_or(0, |room| self.reserve.min(room.all / RESERVE_PART))
    }

    /// Whether the node must stop, or go on: `None` when it is as it was. Little more room than that is not enough to go on.
    fn turn(&mut self, room: Option<Room>) -> Option<bool> {
        self.room = room;
        let (reserve, free) = (self.reserve(), room.map_or(u64::MAX, |room| room.free));
        let paused = if self.paused { free < reserve + reserve / 4 } else { free < reserve };
        (std::mem::replace(&mut self.paused, paused) != paused).then_some(paused)
    }

    /// Measures, if it is time. Whether there is something new to be written.
    fn measure(&mut self, now_ms: WallMs, database: u64) -> bool {
        // A clock that was set back begins anew.
        self.samples.retain(|sample| sample.time_ms <= now_ms);
        if self.samples.last().is_some_and(|last| now_ms - last.time_ms < SAMPLE_EVERY_MS) {
            return false;
        }
        self.samples.push(Sample { time_ms: now_ms, database, state: self.state });
        let over = self.samples.len().saturating_sub(SAMPLES_MAX);
        self.samples.drain(..over);
        true
    }

    /// Bytes a day by which what the node keeps has grown, as far as is remembered; `None` before that says anything.
    fn growth(&self, now_ms: WallMs, database: u64) -> Option<u64> {
        let first = self.samples.first()?;
        let took = now_ms.checked_sub(first.time_ms).filter(|took| *took >= GROWTH_MS_MIN)?;
        let now = Sample { time_ms: now_ms, database, state: self.state };
        Some((now.bytes().saturating_sub(first.bytes()) as f64 / took as f64 * DAY_MS) as u64)
    }

    /// How long it can go on so, in days.
    fn days_left(&self, growth: u64) -> Option<u64> {
        let left = self.room?.free.saturating_sub(self.reserve());
        left.checked_div(growth)
    }

    fn alert(&self) -> Option<String> {
        let room = self.room.filter(|_| self.paused)?;
        let reserve = self.reserve();
        Some(format!(
            "the disk is nearly full: {} MiB are free, and disk_reserve_mb keeps {} MiB; this node votes and runs nothing until \
             {} MiB are free: make room, or take a bigger disk",
            room.free >> 20,
            reserve >> 20,
            (reserve + reserve / 4) >> 20
        ))
    }

    fn json(&self, now_ms: WallMs) -> Value {
        let database = database_bytes(&self.dir);
        let growth = self.growth(now_ms, database);
        json!({
            "free_bytes": self.room.map(|room| room.free), "bytes": self.room.map(|room| room.all),
            "reserve_bytes": self.reserve(), "paused": self.paused, "database_bytes": database, "state_bytes": self.state,
            "growth_bytes_per_day": growth, "days_left": growth.and_then(|growth| self.days_left(growth)),
        })
    }

    /// For people, at the start.
    pub fn text(&self, now_ms: WallMs) -> String {
        let free =
            self.room.map_or("it is not known how much is free".to_owned(), |room| format!("{} free", size(room.free)));
        let database = database_bytes(&self.dir);
        let grows = match self.growth(now_ms, database) {
            None => "; how fast that gets less is known after an hour".to_owned(),
            Some(growth) => {
                let left = self.days_left(growth).map_or(String::new(), |days| format!(": enough for {days} days"));
                format!("; this node grows by {} a day{left}", size(growth))
            }
        };
        format!("{free}, {} of ledgers{grows}", size(database))
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("log/growth.json")
}

/// What was measured before; nothing when it cannot be read.
fn read(path: &Path) -> Option<Vec<Sample>> {
    if fs::metadata(path).ok()?.len() > FILE_BYTES_MAX {
        return None;
    }
    let mut samples: Vec<Sample> = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    samples.sort_by_key(|sample| sample.time_ms);
    let over = samples.len().saturating_sub(SAMPLES_MAX);
    samples.drain(..over);
    Some(samples)
}

fn write(path: &Path, samples: &[Sample]) -> io::Result<()> {
    let dir = path.parent().expect("it is in log/");
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer(&mut file, samples)?;
    file.persist(path)?;
    Ok(())
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes as f64 {
        few if few < 1e6 => format!("{:.0} kB", few / 1e3),
        some if some < 1e9 => format!("{:.1} MB", some / 1e6),
        many => format!("{:.1} GB", many / 1e9),
    }
}

impl Node {
    /// Looks at the disk now and then, and stops in time, or goes on.
    pub(super) fn look_at_disk(&mut self) -> Result<(), NodeError> {
        if self.disk.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        self.disk.looked = Some(Instant::now());
        let room = Room::of(&self.disk.dir);
        if let Some(paused) = self.disk.turn(room) {
            match self.disk.alert() {
                Some(alert) => warn!("{alert}"),
                None => info!("there is room on the disk again; this node votes and runs as before"),
            }
            self.handle(Event::Paused(paused))?;
            self.next_job();
            self.changed();
        }
        // Nothing is written to a full disk that can wait.
        if !self.disk.paused && self.disk.measure(wall_ms(), database_bytes(&self.disk.dir)) {
            let (path, samples) = (file(&self.disk.dir), self.disk.samples.clone());
            tokio::task::spawn_blocking(move || {
                if let Err(error) = write(&path, &samples) {
                    warn!(path = %path.display(), %error, "cannot write down how much this node keeps");
                }
            });
        }
        Ok(())
    }

    /// What the operator must do about the disk.
    pub(super) fn disk_alert(&self) -> Option<String> {
        self.disk.alert()
    }

    pub(super) fn disk_status(&self) -> Value {
        self.disk.json(wall_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(reserve: u64, samples: Vec<Sample>) -> Disk {
        let (dir, room) = (PathBuf::from("/nowhere"), Some(Room { free: 0, all: 10_000 * MIB }));
        Disk { dir, reserve, room, looked: None, paused: false, state: 0, samples }
    }

    fn room(free: u64) -> Option<Room> {
        Some(Room { free, all: 10_000 * MIB })
    }

    #[test]
    fn below_the_reserve_it_stops_and_only_well_above_it_goes_on() {
        let mut disk = disk(100 * MIB, Vec::new());
        assert_eq!(disk.turn(room(100 * MIB)), None);
        assert_eq!(disk.alert(), None);
        assert_eq!(disk.turn(room(100 * MIB - 1)), Some(true));
        assert_eq!(disk.turn(room(0)), None);
        let alert = disk.alert().unwrap();
        assert!(
            alert.starts_with("the disk is nearly full: 0 MiB are free, and disk_reserve_mb keeps 100 MiB"),
            "{alert}"
        );
        assert_eq!(disk.turn(room(124 * MIB)), None, "a little more is not enough");
        assert_eq!(disk.turn(room(125 * MIB)), Some(false));
        assert_eq!(disk.turn(None), None, "a disk that does not say is not full");
    }

    #[test]
    fn of_a_small_disk_a_part_is_kept_and_without_a_reserve_nothing_is() {
        let mut small = disk(1 << 40, Vec::new());
        assert_eq!(small.turn(Some(Room { free: 26 * MIB, all: 100 * MIB })), None);
        assert_eq!(small.turn(Some(Room { free: 24 * MIB, all: 100 * MIB })), Some(true));
        assert_eq!(disk(0, Vec::new()).turn(room(0)), None);
    }

    #[test]
    fn growth_is_what_came_to_it_a_day_since_the_oldest_measurement() {
        let hour = SAMPLE_EVERY_MS;
        let mut disk = disk(0, Vec::new());
        assert!(disk.measure(hour, 1_000));
        assert_eq!(disk.growth(hour, 5_000), None, "too early to say");
        assert!(!disk.measure(hour + hour / 2, 2_000), "not yet");
        disk.state_is(500);
        assert!(disk.measure(2 * hour, 2_000));
        assert_eq!(disk.growth(3 * hour, 5_000), Some(12 * (4_000 + 2 * 500)));
        assert_eq!(disk.growth(3 * hour, 0), Some(0), "what was deleted is no growth");
        disk.turn(Some(Room { free: 120_000, all: 1 }));
        assert_eq!((disk.days_left(60_000), disk.days_left(0)), (Some(2), None));
        for hours in 3..1_000 {
            disk.measure(hours * hour, 0);
        }
        assert_eq!((disk.samples.len(), disk.samples[0].time_ms), (SAMPLES_MAX, (1_000 - 168) * hour));
        assert!(disk.measure(5 * hour, 0), "a clock that was set back");
        assert_eq!(disk.samples.len(), 1);
    }

    #[test]
    fn measurements_outlive_the_process_and_a_broken_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Disk::new(dir.path(), 0);
        first.state_is(7);
        first.measure(SAMPLE_EVERY_MS, 9);
        write(&file(dir.path()), &first.samples).unwrap();
        let next = Disk::new(dir.path(), 0);
        assert_eq!((next.samples.as_slice(), next.state), (&first.samples[..], 7));
        assert!(next.text(2 * SAMPLE_EVERY_MS).contains("grows by"), "{}", next.text(2 * SAMPLE_EVERY_MS));
        for broken in [&b"?"[..], b"[{}]", &[b' '; 70_000]] {
            fs::write(file(dir.path()), broken).unwrap();
            assert_eq!(Disk::new(dir.path(), 0).samples, []);
        }
    }
}
