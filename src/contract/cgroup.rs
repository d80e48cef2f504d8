//! A control group for all runs of a launcher (Linux): how many processes, and how much memory, all that a run starts may
//! have together, wherever they went and whatever user they are. No process leaves it that cannot write to the kernel's
//! files, which other guards are for.
//!
//! Of version 1 or 2, below the group that the node itself is in, so that what binds the node binds the contract. Made and
//! removed by the launcher; what a launcher has left that was killed, the next one of the same contract folder finds by
//! its name.

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use borsh::{BorshDeserialize, BorshSerialize};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::space::errno_of;

/// What every name begins with.
const NAME: &str = "hotpocket-";

/// The group of version 2 that a node moves to, because one that has others below it may have no processes of its own.
const NODE: &str = "hotpocket-node";

/// Memory beside `memory_mb`: what the kernel counts that a program's own limit does not, like tables of pages, stacks, and
/// what is in pipes. So a program that stays within its own limit is not killed by that of the group.
const KERNEL_BYTES: u64 = 32 << 20;

/// How long what was left behind may take to die. Past it the group stays until the next start.
const END_TIME_MAX: Duration = Duration::from_secs(2);

/// How often it is looked whether it has.
const END_LOOK_PAUSE: Duration = Duration::from_millis(2);

/// What a launcher's group is to be like.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Wanted {
    /// The contract folder.
    pub(super) dir: Vec<u8>,
    /// Processes and threads.
    pub(super) processes: u64,
    /// Memory of a run by its own limit; 0: not bounded.
    pub(super) memory_bytes: u64,
}

/// A launcher's group, which is one of version 2 or one of each controller of version 1. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Group {
    folders: Vec<PathBuf>,
    /// Where the kernel counts whom it has killed for want of memory.
    kills: Option<PathBuf>,
}

impl Group {
    /// Makes one, and removes what launchers that are dead have left of the same contract folder.
    ///
    /// `ENOENT`: the controllers are not there. `EBUSY`: the node shares its group of version 2 with others.
    pub(super) fn make(wanted: &Wanted, is_apart: bool) -> Result<Group, Errno> {
        let dir = Path::new(std::ffi::OsStr::from_bytes(&wanted.dir));
        let meta = fs::metadata(dir).map_err(errno_of)?;
        let prefix = format!("{NAME}{:x}-{:x}-", meta.dev(), meta.ino());
        let own = Pid::this().as_raw();
        let name = format!("{prefix}{own}-{:x}", begun(own).unwrap_or(0));
        let above = Above::find(wanted.memory_bytes > 0)?;
        let mut group = Group { folders: Vec::new(), kills: None };
        for above in above.folders() {
            remove_left(above, &prefix);
            let folder = above.join(&name);
            fs::create_dir(&folder).map_err(errno_of)?;
            group.folders.push(folder);
        }
        let write = |folder: &Path, file: &str, text: &str| fs::write(folder.join(file), text).map_err(errno_of);
        let last = group.folders.last().expect("there is one at least").clone();
        // The first process of a place is in there, too.
        let processes = wanted.processes.saturating_add(u64::from(is_apart));
        write(&last, "pids.max", &processes.to_string())?;
        let bytes = wanted.memory_bytes.saturating_add(KERNEL_BYTES).to_string();
        let memory = group.folders.first().expect("there is one at least").clone();
        match above {
            _ if wanted.memory_bytes == 0 => {}
            Above::One(_) => {
                write(&memory, "memory.max", &bytes)?;
                // Not there: a kernel without swap, or one before 4.19.
                let _ = write(&memory, "memory.swap.max", "0");
                // Not memory.oom.group, which would take the first process of a place along, and with it the launcher.
                // That one was killed is enough for the run to fail.
                group.kills = Some(memory.join("memory.events"));
            }
            Above::Each(_) => {
                write(&memory, "memory.limit_in_bytes", &bytes)?;
                // Memory and swap together. Not there where swap is not counted.
                let _ = write(&memory, "memory.memsw.limit_in_bytes", &bytes);
                group.kills = Some(memory.join("memory.oom_control"));
            }
        }
        Ok(group)
    }

    /// Takes this process in, and all that it will start.
    pub(super) fn enter(&self) -> Result<(), Errno> {
        self.folders.iter().try_for_each(|folder| fs::write(folder.join("cgroup.procs"), "0").map_err(errno_of))
    }

    /// The files that take a process in when it writes `0` to them.
    pub(super) fn doors(&self) -> Result<Vec<CString>, Errno> {
        let door = |folder: &PathBuf| CString::new(folder.join("cgroup.procs").as_os_str().as_bytes());
        self.folders.iter().map(door).collect::<Result<_, _>>().map_err(|_| Errno::EINVAL)
    }

    /// How many processes in it were killed for want of memory, ever.
    pub(super) fn killed(&self) -> u64 {
        let text = self.kills.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.folders.iter().for_each(|folder| remove(folder));
    }
}

/// Where groups are made.
#[derive(Debug)]
enum Above {
    /// Version 2.
    One([PathBuf; 1]),
    /// Version 1: below memory, where that is bounded, and below pids.
    Each(Vec<PathBuf>),
}

impl Above {
    fn folders(&self) -> &[PathBuf] {
        match self {
            Above::One(folder) => folder,
            Above::Each(folders) => folders,
        }
    }

    fn find(memory: bool) -> Result<Above, Errno> {
        let read = |file: &str| fs::read_to_string(file).map_err(errno_of);
        let (mounts, own) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
        let controllers: &[&str] = if memory { &["memory", "pids"] } else { &["pids"] };
        let each: Option<Vec<PathBuf>> = controllers.iter().map(|name| folder_of(&mounts, &own, Some(name))).collect();
        if let Some(folders) = each {
            return Ok(Above::Each(folders));
        }
        let folder = folder_of(&mounts, &own, None).ok_or(Errno::ENOENT)?;
        let family = || {
            let node = nix::unistd::getppid();
            [Pid::this().as_raw(), node.as_raw()].into_iter().chain(children(node)).collect()
        };
        delegated(&folder, controllers, family).map(|folder| Above::One([folder]))
    }
}

/// The group of version 2 below which others can be made, which is the node's own or, where it has moved, the one above.
///
/// `family`: the processes that may be moved.
fn delegated(own: &Path, controllers: &[&str], family: impl Fn() -> Vec<i32>) -> Result<PathBuf, Errno> {
    let has_moved = own.file_name().is_some_and(|name| name == NODE);
    let above = if has_moved { own.parent().ok_or(Errno::ENOENT)? } else { own };
    let lists = |file: &str| fs::read_to_string(above.join(file)).map_err(errno_of);
    let has_all = |list: &str| controllers.iter().all(|name| list.split_ascii_whitespace().any(|it| it == *name));
    if !has_all(&lists("cgroup.controllers")?) {
        return Err(Errno::ENOENT);
    }
    if !has_all(&lists("cgroup.subtree_control")?) {
        let enable = controllers.iter().map(|name| format!("+{name} ")).collect::<String>();
        let enable = || fs::write(above.join("cgroup.subtree_control"), enable.trim_end()).map_err(errno_of);
        match enable() {
            Err(Errno::EBUSY) => {
                let list = lists("cgroup.procs")?;
                let all: Vec<i32> = list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect();
                let family = family();
                if !all.iter().all(|pid| family.contains(pid)) {
                    return Err(Errno::EBUSY);
                }
                let node = above.join(NODE);
                match fs::create_dir(&node).map_err(errno_of) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno),
                }
                for pid in all {
                    fs::write(node.join("cgroup.procs"), pid.to_string()).map_err(errno_of)?;
                }
                enable()?;
            }
            enabled => enabled?,
        }
    }
    Ok(above.to_owned())
}

/// The folder of this process's group: of a controller of version 1, or of version 2. `None`: not there.
fn folder_of(mounts: &str, own: &str, controller: Option<&str>) -> Option<PathBuf> {
    let group = own.lines().find_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let is_it = controller.map_or(controllers.is_empty(), |name| controllers.split(',').any(|it| it == name));
        is_it.then_some(group)
    })?;
    mounts.lines().find_map(|line| {
        // Fields before " - ": number, number, device, root, place, options; behind it: kind, source, options.
        let (before, behind) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, place) = (before.next()?, before.next()?);
        let mut behind = behind.split(' ');
        let (kind, options) = (behind.next()?, behind.nth(1)?);
        let is_it = match controller {
            Some(name) => kind == "cgroup" && options.split(',').any(|it| it == name),
            None => kind == "cgroup2",
        };
        // In a container only a part is mounted, or seen.
        let group = match root {
            "/" => group,
            root => group.strip_prefix(root).unwrap_or(""),
        };
        is_it.then(|| Path::new(place).join(group.trim_start_matches('/')))
    })
}

/// Removes the groups of launchers that are dead.
fn remove_left(above: &Path, prefix: &str) {
    for entry in fs::read_dir(above).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let lives = owner.split_once('-').is_some_and(|(pid, start)| {
            let (pid, start) = (pid.parse().unwrap_or(0), u64::from_str_radix(start, 16).ok());
            begun(pid).is_some_and(|begun| Some(begun) == start)
        });
        if !lives {
            remove(&entry.path());
        }
    }
}

/// Ends what is in a group, and removes it.
fn remove(folder: &Path) {
    let begun = Instant::now();
    loop {
        match fs::remove_dir(folder) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && begun.elapsed() < END_TIME_MAX => {}
            _ => return,
        }
        let list = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for pid in list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 1) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(END_LOOK_PAUSE);
    }
}

/// The children of a process, whichever of its threads they belong to.
fn children(of: Pid) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// When a process began, in ticks since the machine did: with its number, what tells it from all others. `None`: it is dead,
/// whether somebody has taken note of that or not.
fn begun(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; behind it the state is the third field.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    fields.nth(22 - 4)?.parse().ok().filter(|_| !matches!(state, "Z" | "X"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_whatever_part_of_the_tree_is_mounted() {
        let mounts = "\
30 23 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
36 23 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
37 23 0:33 /docker/12 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let own = "5:memory:/docker/12/node\n3:cpu,cpuacct:/a b\n0::/user.slice/1.scope\n";
        let found = |name| folder_of(mounts, own, name);
        assert_eq!(found(Some("memory")), Some("/sys/fs/cgroup/memory/node".into()));
        assert_eq!(found(Some("cpuacct")), Some("/sys/fs/cgroup/cpu,cpuacct/a b".into()));
        assert_eq!(found(None), Some("/sys/fs/cgroup/unified/user.slice/1.scope".into()));
        assert_eq!(found(Some("pids")), None);
    }

    #[test]
    fn of_version_2_a_group_is_used_that_has_the_controllers_or_that_is_the_nodes_own() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("hp.service");
        fs::create_dir(&own).unwrap();
        let set = |file: &str, text: &str| fs::write(own.join(file), text).unwrap();
        let of = |own: &Path| delegated(own, &["memory", "pids"], || vec![7]);
        set("cgroup.controllers", "cpu memory");
        assert_eq!(of(&own), Err(Errno::ENOENT), "no pids");
        set("cgroup.controllers", "cpu memory pids\n");
        set("cgroup.subtree_control", "pids memory\n");
        assert_eq!(of(&own), Ok(own.clone()));
        assert_eq!(of(&own.join(NODE)), Ok(own.clone()), "the node has moved");
        set("cgroup.subtree_control", "");
        assert_eq!(of(&own), Ok(own.clone()));
        assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap(), "+memory +pids");
    }

    /// A group of version 2, with a process in it; both gone when dropped. And what was changed above it.
    struct Real {
        folder: PathBuf,
        process: std::process::Child,
        disable: Option<(PathBuf, String)>,
    }

    impl Real {
        /// `None`: this machine has none, or no controller for it, or we may not make any.
        fn make() -> Option<(Real, String)> {
            let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
            let top = folder_of(&mounts, "0::/", None)?;
            let list = |file: &str| fs::read_to_string(top.join(file)).unwrap_or_default();
            let controller = list("cgroup.controllers").split_ascii_whitespace().next()?.to_owned();
            let control = top.join("cgroup.subtree_control");
            let was_on = list("cgroup.subtree_control").split_ascii_whitespace().any(|name| name == controller);
            fs::write(&control, format!("+{controller}")).ok()?;
            let folder = top.join(format!("hotpocket-test-{}", Pid::this()));
            let process = std::process::Command::new("sleep").arg("1000").spawn().expect("a process");
            let disable = (!was_on).then(|| (control, format!("-{controller}")));
            let real = Real { folder, process, disable };
            fs::create_dir(&real.folder).ok()?;
            fs::write(real.folder.join("cgroup.procs"), real.process.id().to_string()).ok()?;
            Some((real, controller))
        }
    }

    impl Drop for Real {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
            remove(&self.folder.join(NODE));
            remove(&self.folder);
            let _ = self.disable.take().map(|(file, text)| fs::write(file, text));
        }
    }

    #[test]
    fn in_a_real_group_of_version_2_the_node_makes_way_and_nobody_else_is_moved() {
        let Some((real, controller)) = Real::make() else { return eprintln!("not tried: no group of version 2") };
        let own = &real.folder;
        let inside = |folder: &Path| fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        let pid = real.process.id();
        assert_eq!(delegated(own, &[&controller], Vec::new), Err(Errno::EBUSY), "it is not the node's");
        assert_eq!(inside(own), format!("{pid}\n"));
        assert_eq!(delegated(own, &[&controller], || vec![pid.cast_signed()]), Ok(own.clone()));
        assert_eq!((inside(own), inside(&own.join(NODE))), (String::new(), format!("{pid}\n")));
        assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap().trim(), controller);
        // The next launcher of the node, which has moved.
        assert_eq!(delegated(&own.join(NODE), &[&controller], Vec::new), Ok(own.clone()));
        assert_eq!(delegated(own, &["none"], Vec::new), Err(Errno::ENOENT));
        // What a dead launcher has left is ended and removed, with whatever is in there.
        let left = own.join("hotpocket-1-2-999999999-5");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("cgroup.procs"), pid.to_string()).unwrap();
        remove_left(own, "hotpocket-1-2-");
        assert!(!left.exists() && begun(pid.cast_signed()).is_none());
    }

    #[test]
    fn a_process_that_nobody_has_waited_for_is_dead_all_the_same() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(begun(pid).is_some() && begun(pid) >= begun(Pid::this().as_raw()));
        child.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while begun(pid).is_some() {
            assert!(Instant::now() < deadline, "it dies");
            thread::yield_now();
        }
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "it is still listed");
        child.wait().unwrap();
    }

    #[test]
    fn what_a_dead_launcher_left_is_removed_and_what_others_have_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let own = Pid::this().as_raw();
        let start = begun(own).expect("it runs");
        let names = [
            (format!("{NAME}1-2-{own}-{start:x}"), true),
            (format!("{NAME}1-2-{own}-{:x}", start + 1), false),
            (format!("{NAME}1-2-999999999-5"), false),
            (format!("{NAME}1-2-odd"), false),
            (format!("{NAME}1-22-999999999-5"), true),
            (NODE.to_owned(), true),
        ];
        for (name, _) in &names {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        remove_left(dir.path(), &format!("{NAME}1-2-"));
        for (name, stays) in &names {
            assert_eq!(dir.path().join(name).exists(), *stays, "{name}");
        }
    }
}
