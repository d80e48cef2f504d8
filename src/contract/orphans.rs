//! What a launcher leaves behind that was killed itself: a contract without a process namespace can do that to it.
//!
//! The node takes such orphans over, as the launcher does with those of a run, and ends them. Only a process whose
//! children are launchers and nothing else may do that: it has to ask for it.

use std::{
    collections::BTreeSet,
    io,
    process::{Child, Command},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::unistd::Pid;

use super::{launcher::kill_with_group, spawn};

/// Whether orphans become children of this process.
static ADOPTING: AtomicBool = AtomicBool::new(false);

/// Children that are no orphans: launchers, and what was there before. Locked while a launcher is started, so that it is
/// never taken for one.
static KNOWN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// From now on this process ends what a dead launcher leaves behind. It must never start anything but launchers: any
/// other child would be ended too.
///
/// Linux only: elsewhere it does nothing.
pub fn adopt_orphans() -> io::Result<()> {
    if cfg!(target_os = "linux") {
        // Of a shell that became this program.
        known().extend(children().iter().map(|pid| pid.as_raw().unsigned_abs()));
        spawn::become_subreaper()?;
        ADOPTING.store(true, Ordering::Relaxed);
    }
    Ok(())
}

fn known() -> MutexGuard<'static, BTreeSet<u32>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a launcher.
pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut known = known();
    let child = command.spawn()?;
    known.insert(child.id());
    Ok(child)
}

/// Ends all orphans, now that this launcher is dead and reaped.
pub(super) fn end(launcher: u32) {
    known().remove(&launcher);
    if !ADOPTING.load(Ordering::Relaxed) {
        return;
    }
    loop {
        // With the lock, no child is there that is not noted.
        let known = known();
        let mut orphans = children();
        orphans.retain(|pid| !known.contains(&pid.as_raw().unsigned_abs()));
        if orphans.is_empty() {
            return;
        }
        // Their own children become this process's when they are dead, and are found in the next turn. All are killed
        // before one is waited for, so that none of them holds up the others.
        orphans.iter().for_each(|orphan| kill_with_group(*orphan));
        for orphan in orphans {
            spawn::reap(orphan);
        }
    }
}

/// The children of this process, whichever of its threads they belong to.
fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let numbers =
        lists.flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>());
    numbers.map(Pid::from_raw).collect()
}
