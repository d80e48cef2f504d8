//! Runs all ledgers of a check once, in given surroundings, and compares what comes of them with an earlier series.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use tempfile::TempDir;

use super::{
    apart::Apart,
    shim::{self, Shim},
};
use crate::{
    cli::{
        Failure,
        author::{
            exec::TIME_S,
            place::Place,
            users::{Names, Room},
            view::{Entry, bytes, path_text},
        },
        scratch,
    },
    config::{Config, Containment},
    consensus::header::UnlChange,
    contract::{Launcher, Surroundings},
    node::offline::{Ledger, Offline},
    types::{Hash, NodeKey, Status, UserKey},
};

/// Bytes of files kept of a series, to show what differs. Of what is over it only the path is told.
const KEPT_BYTES_MAX: u64 = 512 << 20;
/// Threads that keep a processor busy, for each processor.
const BUSY_THREADS: usize = 2;

/// What a series of runs is like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) surroundings: Surroundings,
    /// Variables beside the contract's own.
    pub(super) env: Vec<(&'static str, &'static str)>,
    /// The network is allowed where it is not, and gone where it is.
    pub(super) other_network: bool,
    /// Nothing keeps the contract in its place.
    pub(super) unguarded: bool,
    /// Loaded into the contract, if anything is.
    pub(super) shim: Option<Shim>,
    /// The folder has another path.
    pub(super) other_path: bool,
    /// The folder is on another file system.
    pub(super) other_disk: Option<PathBuf>,
    /// Files are made in the opposite order, and anew before each ledger.
    pub(super) other_order: bool,
    /// Files of the state are from another time.
    pub(super) old_files: bool,
    /// Users' descriptors are numbered the other way round.
    pub(super) users_reversed: bool,
    /// It is another node of the network.
    pub(super) other_node: bool,
    /// All other nodes say what this one says on the party line.
    pub(super) party: bool,
    /// All processors are busy.
    pub(super) busy: bool,
}

/// What came of one ledger.
#[derive(Debug)]
struct Outcome {
    status: Status,
    outputs: BTreeMap<UserKey, Vec<u8>>,
    unl_request: Option<UnlChange>,
    leaves: BTreeMap<Vec<u8>, Hash>,
    said: Vec<Bytes>,
    /// Copies of the files that the run made or changed.
    kept: BTreeMap<Vec<u8>, PathBuf>,
}

/// What came of all ledgers: what others are compared with.
#[derive(Debug)]
pub(super) struct Series {
    outcomes: Vec<Outcome>,
    _kept: TempDir,
}

impl Series {
    /// Ledgers that did not end well, each with its status.
    pub(super) fn failed(&self) -> impl Iterator<Item = (usize, Status)> {
        let numbered = self.outcomes.iter().enumerate();
        numbered.filter(|(_, outcome)| outcome.status != Status::Ok).map(|(at, outcome)| (at + 1, outcome.status))
    }

    /// Whether the contract says anything on the party line.
    pub(super) fn speaks(&self) -> bool {
        self.outcomes.iter().any(|outcome| !outcome.said.is_empty())
    }

    /// Whether any run left something: an output, a file, a request.
    pub(super) fn left_anything(&self) -> bool {
        let empty = |outcome: &Outcome| outcome.outputs.is_empty() && outcome.leaves.is_empty();
        !self.outcomes.iter().all(empty)
    }

    fn file(&self, ledger: usize, path: &[u8], begin: Option<&Path>) -> Option<PathBuf> {
        let kept = self.outcomes[..=ledger].iter().rev().find_map(|outcome| outcome.kept.get(path).cloned());
        kept.or_else(|| Some(begin?.join(OsStr::from_bytes(path))))
    }
}

/// The first thing in which two series differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    /// Number of the ledger, from 1.
    pub(super) ledger: usize,
    /// What differs, in words.
    pub(super) what: String,
    /// Where in it, if it is bytes.
    pub(super) offset: Option<u64>,
    /// What it was before, and what it was now.
    pub(super) sides: [String; 2],
}

/// Where the runs are made.
pub(super) struct Lab<'a> {
    place: &'a Place,
    ledgers: &'a [Room],
    folder: TempDir,
    exe: PathBuf,
    names: Names,
    time_limit_max: Duration,
}

impl<'a> Lab<'a> {
    /// Blocks.
    pub(super) fn new(place: &'a Place, ledgers: &'a [Room]) -> Result<Lab<'a>, Failure> {
        place.config(Path::new(""))?;
        let made = match &place.scratch {
            Some(folder) => TempDir::with_prefix_in("hp-check-", folder),
            None => TempDir::with_prefix("hp-check-"),
        };
        let folder = made.context("cannot make a folder for the runs (see --scratch)")?;
        let exe = std::env::current_exe().context("cannot find this program's own file")?;
        let mut names = Names::default();
        ledgers.iter().for_each(|room| names.extend(&room.names));
        Ok(Lab { place, ledgers, folder, exe, names, time_limit_max: Duration::MAX })
    }

    /// No run may take longer than this from now on.
    pub(super) fn limit_time(&mut self, most: Duration) {
        self.time_limit_max = most;
    }

    /// Whether a series can be like this here; if not, why.
    pub(super) fn probe(&self, setup: &Setup) -> Result<(), String> {
        let gone = || "the executable is gone".to_owned();
        let surroundings = self.surroundings(setup).map_err(|_| gone())?;
        if surroundings != Surroundings::default() {
            surroundings.probe(&self.exe)?;
        }
        if let Some(shim) = setup.shim {
            let config = self.place.config(Path::new("")).map_err(|_| gone())?;
            if let Some(why) = shim::unreachable(&self.place.dir.join(config.binary)) {
                return Err(why.to_owned());
            }
            shim.compile(&self.folder.path().join("shim.so"))?;
        }
        Ok(())
    }

    /// Runs all ledgers for others to be compared with.
    pub(super) async fn reference(&self, setup: &Setup) -> Result<Series, Failure> {
        let kept = TempDir::with_prefix_in("kept-", self.folder.path()).context("cannot make a folder")?;
        let mut outcomes = Vec::new();
        self.runs(setup, None, Some(kept.path()), |_, outcome, _| {
            outcomes.push(outcome);
            None
        })
        .await?;
        Ok(Series { outcomes, _kept: kept })
    }

    /// Runs all ledgers, up to the first that differs.
    pub(super) async fn compare(&self, setup: &Setup, with: &Series) -> Result<Option<Difference>, Failure> {
        let begin = self.place.begin();
        self.runs(setup, Some(with), None, |at, outcome, state| {
            let difference = self.difference(at, with, &outcome, state, begin.as_deref());
            difference.map(|(what, offset, sides)| Difference { ledger: at + 1, what, offset, sides })
        })
        .await
    }

    async fn runs(
        &self,
        setup: &Setup,
        with: Option<&Series>,
        keep: Option<&Path>,
        mut see: impl FnMut(usize, Outcome, &Path) -> Option<Difference>,
    ) -> Result<Option<Difference>, Failure> {
        let place = Folder::make(self.folder.path(), setup)?;
        let dir = place.dir.clone();
        scratch::fill(&self.place.dir, self.place.begin().as_deref(), &dir, setup.other_order)?;
        let config = self.config(setup, &dir)?;
        if let Some(shim) = setup.shim {
            shim.compile(&self.folder.path().join("shim.so")).map_err(|why| anyhow!(why))?;
        }
        let _busy = setup.busy.then(Busy::start);
        let launcher = Launcher::start_in(&self.exe, self.surroundings(setup)?).context("cannot start the launcher")?;
        let mut offline = Offline::start(config.clone(), launcher.clone(), false).await?;
        let mut room_kept = KEPT_BYTES_MAX;
        for (at, room) in self.ledgers.iter().enumerate() {
            if setup.other_order && at > 0 {
                // The files anew, so that those the contract made are in another order too.
                let aside = dir.with_extension("aside");
                scratch::copy(&dir.join("state"), &aside, true)?;
                fs::remove_dir_all(&dir).context("cannot remove a copy")?;
                fs::create_dir(&dir).context("cannot make a copy")?;
                scratch::fill(&self.place.dir, Some(&aside), &dir, true)?;
                fs::remove_dir_all(&aside).context("cannot remove a copy")?;
                offline = Offline::start(config.clone(), launcher.clone(), false).await?;
            }
            if setup.old_files {
                make_old(&dir.join("state"));
                offline = Offline::start(config.clone(), launcher.clone(), false).await?;
            }
            let ledger = self.ledger(at, room, setup, with, &config);
            let mut kept = BTreeMap::new();
            let done = offline
                .run(ledger, |state, changed| {
                    let Some(keep) = keep else { return };
                    for (number, path) in changed.iter().enumerate() {
                        let from = state.join(OsStr::from_bytes(path));
                        let size =
                            fs::symlink_metadata(&from).map_or(0, |meta| if meta.is_dir() { 0 } else { meta.len() });
                        let to = keep.join(format!("{at}-{number}"));
                        if !from.is_dir() && size <= room_kept && scratch::copy(&from, &to, false).is_ok() {
                            room_kept -= size;
                            kept.insert(path.clone(), to);
                        }
                    }
                })
                .await?;
            if done.status != Status::Ok {
                kept.clear(); // it is undone
            }
            let outcome = Outcome {
                status: done.status,
                outputs: done.outputs,
                unl_request: done.unl_request,
                leaves: offline.leaves().clone(),
                said: done.said,
                kept,
            };
            if let Some(difference) = see(at, outcome, &dir.join("state")) {
                offline.stop().await?;
                return Ok(Some(difference));
            }
        }
        offline.stop().await?;
        Ok(None)
    }

    fn surroundings(&self, setup: &Setup) -> Result<Surroundings, Failure> {
        let has_network = self.place.config(Path::new(""))?.contract.network;
        let no_network = setup.surroundings.no_network || (setup.other_network && has_network);
        Ok(Surroundings { no_network, ..setup.surroundings })
    }

    fn config(&self, setup: &Setup, dir: &Path) -> Result<Config, Failure> {
        let mut config = self.place.config(dir)?;
        let most = u64::try_from(self.time_limit_max.as_millis()).unwrap_or(u64::MAX);
        config.contract.time_limit_ms = config.contract.time_limit_ms.min(most);
        let env = &mut config.contract.env;
        env.extend(setup.env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        if setup.shim.is_some() {
            let library = self.folder.path().join("shim.so");
            env.insert("LD_PRELOAD".to_owned(), library.display().to_string());
            config.contract.read.push(library);
        }
        config.contract.network |= setup.other_network;
        if setup.unguarded {
            config.contract.containment = Containment::Off;
        }
        if setup.other_node {
            config.key = *config.unl.iter().find(|key| **key != config.key).unwrap_or(&NodeKey([7; 32]));
            let private = dir.join("private");
            let changed = if private.is_dir() { fs::remove_dir_all(&private) } else { fs::create_dir(&private) };
            changed.context("cannot change the folder private/ of the copy")?;
        }
        Ok(config)
    }

    fn ledger(&self, at: usize, room: &Room, setup: &Setup, with: Option<&Series>, config: &Config) -> Ledger {
        let seq = at as u64 + 1;
        let mut users = room.users();
        if setup.users_reversed {
            users.reverse();
        }
        let said = with.and_then(|with| with.outcomes.get(at)).map(|outcome| outcome.said.as_slice());
        let others = config.unl.iter().filter(|node| **node != config.key);
        let heard = match setup.party {
            true => others
                .flat_map(|node| said.unwrap_or_default().iter().map(|message| (*node, message.clone())))
                .collect(),
            false => Vec::new(),
        };
        Ledger {
            seq,
            time_ms: (TIME_S + seq) * 1_000,
            lcl: Hash::tagged("hp/author/1", &("ledger", seq)),
            users,
            unl: config.unl.clone(),
            readonly: false,
            heard,
        }
    }

    fn difference(
        &self,
        at: usize,
        with: &Series,
        now: &Outcome,
        state: &Path,
        begin: Option<&Path>,
    ) -> Option<(String, Option<u64>, [String; 2])> {
        let before = &with.outcomes[at];
        if before.status != now.status {
            let what = "how the run ended".to_owned();
            return Some((what, None, [before.status.to_string(), now.status.to_string()]));
        }
        for user in before.outputs.keys().chain(now.outputs.keys()) {
            let of = |outcome: &Outcome| outcome.outputs.get(user).cloned().unwrap_or_default();
            let (left, right) = (of(before), of(now));
            if let Ok(Some(apart)) = Apart::of(&left[..], &right[..]) {
                let what = format!("the output to {}", self.names.of(user));
                return Some((what, Some(apart.offset), apart.quoted()));
            }
        }
        let paths = before.leaves.keys().chain(now.leaves.keys());
        let mut differing: Vec<&Vec<u8>> =
            paths.filter(|path| before.leaves.get(*path) != now.leaves.get(*path)).collect();
        differing.sort();
        if let Some(path) = differing.first() {
            let what = format!("state/{}", path_text(path));
            let there = now.leaves.get(*path).map(|_| state.join(OsStr::from_bytes(path)));
            let then = before.leaves.get(*path).and_then(|_| with.file(at, path, begin));
            let entry = |file: &Option<PathBuf>| file.as_ref().map_or(Entry::None, |file| Entry::of(file));
            if let (Some(left), Some(right)) = (&then, &there)
                && let (Ok(left), Ok(right)) = (fs::File::open(left), fs::File::open(right))
                && let Ok(Some(apart)) = Apart::of(left, right)
            {
                return Some((what, Some(apart.offset), apart.quoted()));
            }
            let then = match before.leaves.contains_key(*path) {
                true if entry(&then) == Entry::None => "something that was not kept".to_owned(),
                _ => entry(&then).text(),
            };
            return Some((what, None, [then, entry(&there).text()]));
        }
        if before.unl_request != now.unl_request {
            let text = |change: &Option<UnlChange>| change.map_or("nothing".to_owned(), |change| format!("{change:?}"));
            let sides = [text(&before.unl_request), text(&now.unl_request)];
            return Some(("what it asks the network for".to_owned(), None, sides));
        }
        None
    }
}

impl Difference {
    /// Where it is, in words.
    pub(super) fn place(&self) -> String {
        match self.offset {
            Some(offset) => format!("ledger {}: {} from {} on", self.ledger, self.what, bytes_at(offset)),
            None => format!("ledger {}: {}", self.ledger, self.what),
        }
    }
}

fn bytes_at(offset: u64) -> String {
    if offset == 0 { "its first byte".to_owned() } else { format!("behind {}", bytes(offset as usize)) }
}

/// The folder in which the contract runs; gone when dropped.
struct Folder {
    dir: PathBuf,
    _elsewhere: Option<TempDir>,
}

impl Folder {
    /// The same path as ever, unless another one is asked for.
    fn make(lab: &Path, setup: &Setup) -> Result<Folder, Failure> {
        let elsewhere = match &setup.other_disk {
            Some(disk) => Some(TempDir::with_prefix_in("hp-check-", disk).context("cannot make a folder")?),
            None => None,
        };
        let above = elsewhere.as_ref().map_or(lab, |folder| folder.path());
        let dir = above.join(if setup.other_path { "another/folder" } else { "contract" });
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Folder { dir, _elsewhere: elsewhere })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays goes with the folder around it.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Gives everything below a folder a time of long ago.
fn make_old(folder: &Path) {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567_890);
    let times = fs::FileTimes::new().set_modified(then).set_accessed(then);
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        if is_dir {
            waiting.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        // One that cannot be opened keeps its time.
        if let Ok(file) = fs::File::open(&path) {
            let _ = file.set_times(times);
        }
    }
}

/// Keeps all processors busy until it is dropped.
struct Busy {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    fn start() -> Busy {
        let over = Arc::new(AtomicBool::new(false));
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |_| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..cpus * BUSY_THREADS).map(spin).collect();
        Busy { over, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
