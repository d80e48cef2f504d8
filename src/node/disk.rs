//! Room on the node's disks: the node stops voting before there is none, goes on when there is again, and says how fast what
//! it keeps grows and for how long the disk is enough.
//!
//! The reserve is the outer of two lines. It is looked at before anything else at the start, after each ledger that was closed,
//! because that is when the disk fills, and once a second while the node is paused, because nothing tells when somebody has
//! made room: that is the only timer here, and an idle node has none. Between two looks anything may fill the disk. Then the
//! inner line holds: no vote leaves before it is on disk, so a write that fails ends the node before it said anything; and a
//! run is voted about only where 8 MiB were free before and after it (`exec`).

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::{
    Node, NodeError,
    alerts::{Alert, Kind},
    wall_ms,
};
use crate::{consensus::Event, state::Backend, types::WallMs};

/// Folders of the node that may be on disks of their own, and whether a vote rests on what is written there. Of the others a
/// full disk costs what they are for: what the contract printed, reports, the bus that the node runs in itself.
const PLACES: [(&str, bool); 5] = [("hist", true), ("state", true), ("log", false), ("diag", false), ("msb", false)];
/// Between two looks while ledgers close.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Of a small disk at most this part is the reserve.
const RESERVE_PART: u64 = 4;
/// To go on so much of the reserve must be free beside it, so that a node does not stop and go on with each ledger.
const MORE_PART: u64 = 4;
/// Measurements of what the node keeps that are remembered; the oldest make room: a week.
const SAMPLES_MAX: usize = 7 * 24;
/// Between two of them.
const SAMPLE_EVERY_MS: WallMs = 3_600_000;
/// Two that are further apart say nothing: the node was off in between.
const GAP_MS_MAX: WallMs = 2 * SAMPLE_EVERY_MS;
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

/// A disk that has folders of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted {
    id: u64,
    holds: Vec<&'static str>,
    /// Whether a vote rests on it.
    is_needed: bool,
    room: Room,
}

impl Mounted {
    /// The disks under a contract folder.
    fn under(dir: &Path) -> Vec<Mounted> {
        let mut found: Vec<Mounted> = Vec::new();
        for (name, is_needed) in PLACES {
            let path = dir.join(name);
            let (Ok(meta), Some(room)) = (fs::metadata(&path), Room::of(&path)) else { continue };
            match found.iter_mut().find(|disk| disk.id == meta.dev()) {
                Some(disk) => {
                    disk.holds.push(name);
                    disk.is_needed |= is_needed;
                }
                None => found.push(Mounted { id: meta.dev(), holds: vec![name], is_needed, room }),
            }
        }
        found
    }

    /// What must stay free on it. Of a small disk a part alone.
    fn reserve(&self, configured: u64) -> u64 {
        configured.min(self.room.all / RESERVE_PART)
    }

    /// What must be free before the node goes on.
    fn enough(&self, configured: u64) -> u64 {
        let reserve = self.reserve(configured);
        reserve + reserve / MORE_PART
    }

    fn names(&self) -> String {
        self.holds.iter().map(|name| format!("{name}/")).collect::<Vec<_>>().join(", ")
    }
}

/// The disks as the node knows them.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    /// As configured; 0: none.
    reserve: u64,
    disks: Vec<Mounted>,
    looked: Option<Instant>,
    paused: bool,
    /// How often the state is kept.
    copies: u64,
    /// Its bytes; `None` before that is known.
    state: Option<u64>,
    /// Oldest first.
    samples: Vec<Sample>,
}

impl Disk {
    /// Looks, and reads what was measured before.
    pub fn new(dir: &Path, reserve: u64, backend: Backend) -> Disk {
        let samples = read(&file(dir)).unwrap_or_default();
        let state = samples.last().map(|sample| sample.state);
        // A copy of it is there to go back to, or of what the last run changed.
        let copies = if backend == Backend::Shadow { 2 } else { 1 };
        let disks = Mounted::under(dir);
        Disk { dir: dir.to_owned(), reserve, disks, looked: None, paused: false, copies, state, samples }
    }

    /// Whether the node must not go on.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// A run left so much in `state/`.
    pub fn state_is(&mut self, bytes: u64) {
        self.state = Some(bytes);
    }

    /// Whether the node must stop, or go on: `None` when it is as it was. A disk that does not say is not full.
    fn turn(&mut self, disks: Vec<Mounted>) -> Option<bool> {
        self.disks = disks;
        let least = |disk: &Mounted| match self.paused {
            true => disk.enough(self.reserve),
            false => disk.reserve(self.reserve),
        };
        let paused = self.disks.iter().any(|disk| disk.is_needed && disk.room.free < least(disk));
        (std::mem::replace(&mut self.paused, paused) != paused).then_some(paused)
    }

    /// The disk of those that votes rest on which is full first.
    fn tightest(&self) -> Option<&Mounted> {
        let left = |disk: &&Mounted| (disk.room.free.saturating_sub(disk.reserve(self.reserve)), disk.room.free);
        self.disks.iter().filter(|disk| disk.is_needed).min_by_key(left)
    }

    /// Measures, if it is time. Whether there is something new to be written.
    fn measure(&mut self, now_ms: WallMs) -> bool {
        // A clock that was set back begins anew.
        self.samples.retain(|sample| sample.time_ms <= now_ms);
        let is_due = self.samples.last().is_none_or(|last| now_ms - last.time_ms >= SAMPLE_EVERY_MS);
        let Some(state) = self.state.filter(|_| is_due) else { return false };
        self.samples.push(Sample { time_ms: now_ms, database: database_bytes(&self.dir), state });
        let over = self.samples.len().saturating_sub(SAMPLES_MAX);
        self.samples.drain(..over);
        true
    }

    /// By how many bytes a day what the node keeps has grown while it ran, as far as is remembered; `None` before that says
    /// anything.
    fn growth(&self, now_ms: WallMs) -> Option<u64> {
        let now = Sample { time_ms: now_ms, database: database_bytes(&self.dir), state: self.state? };
        let samples: Vec<Sample> = self.samples.iter().copied().chain([now]).collect();
        let kept = |sample: &Sample| i128::from(sample.database) + i128::from(self.copies) * i128::from(sample.state);
        let (mut took, mut grown) = (0, 0);
        for pair in samples.windows(2) {
            let between = pair[1].time_ms.saturating_sub(pair[0].time_ms);
            if between <= GAP_MS_MAX {
                took += between;
                grown += kept(&pair[1]) - kept(&pair[0]);
            }
        }
        (took >= GROWTH_MS_MIN).then(|| (grown.max(0) as f64 / took as f64 * DAY_MS) as u64)
    }

    /// What the operator must do: one text for the disks that hold the node up, one for the others.
    fn alerts(&self) -> Vec<Alert> {
        let mib = |bytes: u64| bytes >> 20;
        let stopped = self.tightest().filter(|_| self.paused).map(|disk| {
            Kind::DiskFull.with(format!(
                "the disk is nearly full: where {} are, {} MiB are free, and disk_reserve_mb keeps {} MiB; \
                 this node votes, runs and takes nothing until {} MiB are free: make room, or take a bigger disk",
                disk.names(),
                mib(disk.room.free),
                mib(disk.reserve(self.reserve)),
                mib(disk.enough(self.reserve))
            ))
        });
        let beside = self.disks.iter().filter(|disk| !disk.is_needed && disk.room.free < disk.reserve(self.reserve));
        let beside = beside.map(|disk| {
            Kind::DiskBeside.with(format!(
                "little room beside the ledgers: where {} are, {} MiB are free; this node goes on, but what \
                 belongs there may be lost: make room",
                disk.names(),
                mib(disk.room.free)
            ))
        });
        stopped.into_iter().chain(beside).collect()
    }

    fn json(&self, now_ms: WallMs) -> Value {
        let growth = self.growth(now_ms);
        let tightest = self.tightest();
        let left = tightest.map(|disk| disk.room.free.saturating_sub(disk.reserve(self.reserve)));
        json!({
            "free_bytes": tightest.map(|disk| disk.room.free), "bytes": tightest.map(|disk| disk.room.all),
            "reserve_bytes": tightest.map(|disk| disk.reserve(self.reserve)), "paused": self.paused,
            "database_bytes": database_bytes(&self.dir), "state_bytes": self.state,
            "growth_bytes_per_day": growth,
            "days_left": left.zip(growth).and_then(|(left, growth)| left.checked_div(growth)),
        })
    }

    /// For people, at the start.
    pub fn text(&self, now_ms: WallMs) -> String {
        describe(&self.json(now_ms)).unwrap_or_else(|| "it does not say how much is free".to_owned())
    }
}

/// The room on the disk, how fast it gets less, and for how long it is enough, out of `disk` of the status; `None` where the disk
/// does not say.
pub(crate) fn describe(disk: &Value) -> Option<String> {
    let bytes = |key: &str| disk[key].as_u64();
    let free = format!("{} of {} free", size(bytes("free_bytes")?), size(bytes("bytes")?));
    let keeps = format!("{} of ledgers", size(bytes("database_bytes")?));
    let grows = match (bytes("growth_bytes_per_day"), bytes("days_left")) {
        (None, _) => "how fast it fills is known after an hour".to_owned(),
        (Some(growth), Some(days)) => {
            // Beyond that the number says nothing.
            let days = if days > 9_999 { "over 9999".to_owned() } else { days.to_string() };
            format!("{} more a day: enough for {days} days", size(growth))
        }
        (Some(_), None) => "not growing".to_owned(),
    };
    Some(format!("{free}, {keeps}, {grows}"))
}

fn file(dir: &Path) -> PathBuf {
    dir.join("log/growth.json")
}

/// What the ledgers take. Without what is not merged yet, which comes and goes.
fn database_bytes(dir: &Path) -> u64 {
    fs::metadata(dir.join("hist/ledger.db")).map_or(0, |file| file.len())
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
    /// Looks at the disks, if that was not done just now, and stops in time, or goes on.
    pub(super) fn look_at_disk(&mut self) -> Result<(), NodeError> {
        if self.disk.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        self.disk.looked = Some(Instant::now());
        let disks = Mounted::under(&self.disk.dir);
        if let Some(paused) = self.disk.turn(disks) {
            match paused {
                true => self.disk.alerts().iter().for_each(|alert| error!("{}", alert.text)),
                false => info!("there is room on the disk again; this node votes, runs and takes inputs as before"),
            }
            self.handle(Event::Paused(paused))?;
            self.next_job();
            self.changed();
        }
        // Nothing is written to a full disk that can wait.
        if !self.disk.paused && self.disk.measure(wall_ms()) {
            let (path, samples) = (file(&self.disk.dir), self.disk.samples.clone());
            tokio::task::spawn_blocking(move || {
                if let Err(error) = write(&path, &samples) {
                    warn!(path = %path.display(), %error, "cannot write down how much this node keeps");
                }
            });
        }
        Ok(())
    }

    /// What the operator must do about the disks.
    pub(super) fn disk_alerts(&self) -> Vec<Alert> {
        self.disk.alerts()
    }

    pub(super) fn disk_status(&self) -> Value {
        self.disk.json(wall_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const HOUR: WallMs = SAMPLE_EVERY_MS;

    fn disk(reserve: u64) -> Disk {
        Disk { reserve, ..Disk::new(Path::new("/nowhere"), 0, Backend::Shadow) }
    }

    fn mounted(name: &'static str, is_needed: bool, free: u64, all: u64) -> Mounted {
        Mounted { id: 0, holds: vec![name], is_needed, room: Room { free, all } }
    }

    fn room(free: u64) -> Vec<Mounted> {
        vec![mounted("hist", true, free, 10_000 * MIB)]
    }

    #[test]
    fn below_the_reserve_it_stops_and_only_well_above_it_goes_on() {
        let mut disk = disk(100 * MIB);
        assert_eq!(disk.turn(room(100 * MIB)), None);
        assert_eq!(disk.alerts(), []);
        assert_eq!(disk.turn(room(100 * MIB - 1)), Some(true));
        assert_eq!(disk.turn(room(0)), None);
        let alerts = disk.alerts();
        let [Alert { kind, text: alert }] = &alerts[..] else { panic!("one alert") };
        let begin = "the disk is nearly full: where hist/ are, 0 MiB are free, and disk_reserve_mb keeps 100 MiB";
        assert!(*kind == Kind::DiskFull && alert.starts_with(begin), "{alert}");
        assert_eq!(disk.turn(room(125 * MIB - 1)), None, "a little more is not enough");
        assert_eq!(disk.turn(room(125 * MIB)), Some(false));
        assert_eq!(disk.turn(Vec::new()), None, "a disk that does not say is not full");
    }

    #[test]
    fn of_a_small_disk_a_part_is_kept_and_without_a_reserve_nothing_is() {
        let small = |free| vec![mounted("hist", true, free, 100 * MIB)];
        let mut disk_of_it = disk(1 << 40);
        assert_eq!(disk_of_it.turn(small(25 * MIB)), None);
        assert_eq!(disk_of_it.turn(small(24 * MIB)), Some(true));
        assert_eq!(disk(0).turn(room(0)), None);
    }

    #[test]
    fn each_disk_that_votes_rest_on_counts_and_of_the_others_people_are_told_alone() {
        let mut disk = disk(100 * MIB);
        let full = |hist, state, log| {
            let all = 1_000 * MIB;
            vec![mounted("hist", true, hist, all), mounted("state", true, state, all), mounted("log", false, log, all)]
        };
        assert_eq!(disk.turn(full(900 * MIB, 900 * MIB, MIB)), None);
        let alerts = disk.alerts();
        let [Alert { kind: Kind::DiskBeside, text: alert }] = &alerts[..] else { panic!("one alert") };
        assert!(alert.starts_with("little room beside the ledgers: where log/ are, 1 MiB are free"), "{alert}");
        assert_eq!(disk.turn(full(900 * MIB, 99 * MIB, 900 * MIB)), Some(true));
        assert!(disk.alerts()[0].text.contains("where state/ are, 99 MiB"), "{:?}", disk.alerts());
        assert_eq!(disk.json(0)["free_bytes"], 99 * MIB);
        assert_eq!(disk.turn(full(124 * MIB, 900 * MIB, 900 * MIB)), None, "another one is too full to go on");
        assert_eq!(disk.turn(full(125 * MIB, 900 * MIB, 900 * MIB)), Some(false));
    }

    #[test]
    fn folders_on_one_disk_are_one_and_missing_ones_are_none() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["hist", "state", "log"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let disks = Mounted::under(dir.path());
        let [disk] = &disks[..] else { panic!("{disks:?}") };
        assert_eq!((disk.names().as_str(), disk.is_needed), ("hist/, state/, log/", true));
        assert!(disk.room.all > 0 && disk.room.free <= disk.room.all);
    }

    fn samples(of: &[(WallMs, u64, u64)]) -> Vec<Sample> {
        of.iter()
            .map(|(time_ms, database, state)| Sample { time_ms: *time_ms, database: *database, state: *state })
            .collect()
    }

    #[test]
    fn growth_is_what_came_to_it_a_day_while_the_node_ran() {
        let mut disk = disk(0);
        assert!(!disk.measure(HOUR), "nobody knows the state yet");
        disk.state_is(500);
        assert!(disk.measure(HOUR) && !disk.measure(HOUR + HOUR / 2), "once an hour");
        assert_eq!(disk.growth(2 * HOUR - 1), None, "too early to say");
        assert_eq!(disk.growth(2 * HOUR), Some(0));
        // There is no database: what was kept before is gone, which is no growth.
        disk.samples = samples(&[(HOUR, 7_000, 500)]);
        assert_eq!(disk.growth(2 * HOUR), Some(0));
        disk.state_is(1_500);
        disk.samples = samples(&[(HOUR, 0, 500), (2 * HOUR, 0, 1_000)]);
        assert_eq!(disk.growth(3 * HOUR), Some(24 * 1_000), "the copy of the state grows too");
        // A hundred hours in which it was off, and what it fetched behind them, do not count.
        disk.samples = samples(&[(HOUR, 0, 100), (2 * HOUR, 0, 200), (102 * HOUR, 0, 1_400)]);
        assert_eq!(disk.growth(103 * HOUR), Some(24 * 200));
        disk.copies = 1;
        assert_eq!(disk.growth(103 * HOUR), Some(24 * 100));
    }

    #[test]
    fn a_week_is_remembered_and_a_clock_that_was_set_back_begins_anew() {
        let mut disk = disk(0);
        disk.state_is(1);
        for hours in 1..1_000 {
            disk.measure(hours * HOUR);
        }
        assert_eq!((disk.samples.len(), disk.samples[0].time_ms), (SAMPLES_MAX, (1_000 - 168) * HOUR));
        assert!(disk.measure(5 * HOUR));
        assert_eq!(disk.samples.len(), 1);
    }

    #[test]
    fn what_people_are_told_has_the_room_the_growth_and_the_days() {
        let mut disk = disk(100 * MIB);
        assert_eq!(disk.text(0), "it does not say how much is free");
        disk.turn(vec![mounted("hist", true, 1_100 * MIB, 4_000 * MIB)]);
        assert_eq!(disk.text(0), "1.2 GB of 4.2 GB free, 0 kB of ledgers, how fast it fills is known after an hour");
        disk.state_is(0);
        disk.samples = samples(&[(0, 0, 0)]);
        assert_eq!(disk.text(HOUR), "1.2 GB of 4.2 GB free, 0 kB of ledgers, not growing");
        disk.state_is(2 * MIB);
        assert_eq!(disk.text(HOUR), "1.2 GB of 4.2 GB free, 0 kB of ledgers, 100.7 MB more a day: enough for 10 days");
    }

    #[test]
    fn measurements_outlive_the_process_and_a_broken_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Disk::new(dir.path(), 0, Backend::Shadow);
        let mut first = open();
        first.state_is(7);
        assert!(first.measure(HOUR));
        write(&file(dir.path()), &first.samples).unwrap();
        let next = open();
        assert_eq!((next.samples.as_slice(), next.state), (&first.samples[..], Some(7)));
        for broken in [&b"?"[..], b"[{}]", &[b' '; 70_000]] {
            fs::write(file(dir.path()), broken).unwrap();
            assert_eq!(open().samples, []);
        }
    }
}
