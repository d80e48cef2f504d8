//! What every backend must do alike: the same operations on both, cuts at every step, a root by the book after each.
//!
//! A run of the overlay happens in a process of its own: this very test program, called once more inside the mount.

use std::{
    fs,
    os::unix::fs::{FileExt, symlink},
    path::PathBuf,
    process::Command,
    sync::LazyLock,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    overlay::Overlay,
    shadow::Shadow,
    tests::{Act, Tree, act, name, perform, root_by_the_book, tree_of},
    *,
};
use crate::{consensus::messages::StatePart, types::NodeKey};

/// Acts of a run, for the process inside the mount.
const ACTS: &str = "HP_TEST_ACTS";
/// The folder they are done in.
const TOP: &str = "HP_TEST_TOP";

const BACKENDS: [Backend; 2] = [Backend::Shadow, Backend::Overlay];

/// Whether this machine lets a test mount an overlay.
pub(super) static MOUNTS: LazyLock<bool> = LazyLock::new(|| {
    let dir = folder();
    let mount = make_probe(dir.path()).unwrap();
    let works = mount.is_some_and(|mount| inside(dir.path(), mount, &["true"]).status().is_ok_and(|it| it.success()));
    if !works {
        eprintln!("no overlay can be mounted here: that backend is not tested");
    }
    drop_probe(dir.path()).unwrap();
    works
});

/// In memory, where there is enough of it: what a disk does is not what is tested.
pub(super) fn folder() -> TempDir {
    const ROOM_BYTES: u64 = 1 << 30;
    let memory = Path::new("/dev/shm");
    let room = nix::sys::statvfs::statvfs(memory).map_or(0, |it| it.blocks_available() * it.fragment_size());
    if room > ROOM_BYTES { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub(super) fn backends() -> impl Iterator<Item = Backend> {
    BACKENDS.into_iter().filter(|backend| *backend == Backend::Shadow || *MOUNTS)
}

/// A command that sees the mount.
fn inside(dir: &Path, mount: RunMount, command: &[&str]) -> Command {
    let RunMount { target, lower, upper, work } = mount;
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work},userxattr,volatile");
    let script = format!("mount -t overlay overlay -o {options} {target} && exec \"$@\"");
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]).args(command).current_dir(dir);
    unshare
}

/// One backend on a folder of its own.
pub(super) struct Rig {
    pub dir: TempDir,
    pub backend: Backend,
    pub store: Box<dyn StateStore>,
    pub disk: Disk,
}

impl Rig {
    pub fn new(backend: Backend) -> Rig {
        let dir = folder();
        let disk = Disk::default();
        let store = Rig::open(dir.path(), backend, &disk).unwrap();
        Rig { dir, backend, store, disk }
    }

    pub fn open(dir: &Path, backend: Backend, disk: &Disk) -> Result<Box<dyn StateStore>, StateError> {
        Ok(match backend {
            Backend::Shadow => Box::new(Shadow::open_on(dir, disk.clone())?),
            Backend::Overlay => Box::new(Overlay::open_on(dir, disk.clone())?),
        })
    }

    /// As a new process would find it, which is itself cut after 0, 1, 2 ... steps before it succeeds.
    pub fn reopen_cut(&mut self) {
        for cut in 0.. {
            let disk = Disk::default();
            disk.test.lock().unwrap().left = Some(cut);
            if Rig::open(self.dir.path(), self.backend, &disk).is_ok() {
                break;
            }
        }
        self.reopen();
    }

    pub fn reopen(&mut self) {
        self.disk = Disk::default();
        self.store = Rig::open(self.dir.path(), self.backend, &self.disk).unwrap();
    }

    pub fn cut_after(&self, steps: Option<usize>) {
        self.disk.test.lock().unwrap().left = steps;
    }

    pub fn top(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn tree(&self) -> Tree {
        tree_of(&self.top())
    }

    /// A snapshot of what is there.
    pub fn keep(&mut self, seq: Seq) -> Hash {
        let root = self.store.scan(true).unwrap().root;
        self.store.snapshot(seq, root).unwrap();
        root
    }

    /// A run that does what a child process of this test does.
    pub fn run(&mut self, acts: &[Act]) {
        match self.store.begin_run().unwrap() {
            None => act_all(&self.top(), acts),
            Some(mount) => {
                let exe = std::env::current_exe().unwrap();
                let child = ["--exact", "state::conformance::what_a_run_inside_the_mount_does"];
                let mut command = inside(self.dir.path(), mount, &[&[exe.to_str().unwrap()], &child[..]].concat());
                command.env(ACTS, hex::encode(borsh::to_vec(acts).unwrap())).env(TOP, self.top());
                let output = command.output().unwrap();
                assert!(output.status.success(), "{output:?}");
            }
        }
    }

    /// A run of any program, in the contract folder.
    pub fn run_program(&mut self, command: &[&str]) {
        let mut command = match self.store.begin_run().unwrap() {
            None => {
                let mut plain = Command::new(command[0]);
                plain.args(&command[1..]).current_dir(self.dir.path());
                plain
            }
            Some(mount) => inside(self.dir.path(), mount, command),
        };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// The run counts: its root is that of the files, by the slow and simple way.
    pub fn commit(&mut self) -> Scan {
        let scan = self.store.scan(true).unwrap();
        let tree = self.tree();
        assert_eq!(scan.root, root_by_the_book(&tree), "{}", self.backend);
        let bytes: usize = tree.values().filter(|leaf| leaf.0 == 'f').map(|leaf| leaf.2.len()).sum();
        assert_eq!((scan.files, scan.bytes), (tree.len() as u64, bytes as u64), "{}", self.backend);
        scan
    }
}

/// Not a test of its own: the process that [`Rig::run`] starts inside the mount.
#[test]
fn what_a_run_inside_the_mount_does() {
    let Ok(acts) = std::env::var(ACTS) else { return };
    let acts: Vec<Act> = borsh::from_slice(&hex::decode(acts).unwrap()).unwrap();
    act_all(Path::new(&std::env::var_os(TOP).unwrap()), &acts);
}

fn act_all(top: &Path, acts: &[Act]) {
    for act in acts {
        match act {
            // The overlay refuses to rename a folder that was there before; a contract that moves what is in it can
            // run on both.
            Act::Rename(from, to) if top.join(name(*from)).is_dir() => {
                let _ = move_folder(&top.join(name(*from)), &top.join(name(*to)));
            }
            other => perform(top, other),
        }
    }
}

fn move_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    if to.starts_with(from) {
        return Ok(());
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)?.collect::<Vec<_>>() {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            move_folder(&entry.path(), &target)?
        } else {
            fs::rename(entry.path(), target)?
        }
    }
    fs::remove_dir(from)
}

/// How a run ends.
#[derive(Debug, Clone)]
enum End {
    /// It counts.
    Count,
    /// It counts, and is taken back before the next one.
    TakenBack,
    /// It fails.
    Fail,
    /// The node is killed while it makes the run count, after so many steps.
    Cut(usize),
    /// The node is killed during the run.
    Killed,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        4 => Just(End::Count),
        1 => Just(End::TakenBack),
        1 => Just(End::Fail),
        2 => (0_usize..40).prop_map(End::Cut),
        1 => Just(End::Killed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_backends_have_one_root_and_end_at_the_old_or_the_new_state(
        runs in prop::collection::vec((prop::collection::vec(act(), 1..25), end(), any::<bool>()), 1..8)
    ) {
        let mut rigs: Vec<Rig> = backends().map(Rig::new).collect();
        for (number, (acts, end, reopen)) in runs.iter().enumerate() {
            let mut after = Vec::new();
            for rig in &mut rigs {
                let what = format!("run {number} on {}", rig.backend);
                if *reopen {
                    rig.store.save_cache().unwrap();
                    rig.reopen();
                }
                let root = rig.keep(number as Seq);
                let old = rig.tree();
                prop_assert_eq!(root, root_by_the_book(&old), "{}", what);
                rig.run(acts);
                match end {
                    End::Count | End::TakenBack => match rig.store.scan(true) {
                        Ok(scan) => {
                            prop_assert_eq!(scan.root, root_by_the_book(&rig.tree()), "{}", what);
                            if matches!(end, End::TakenBack) {
                                prop_assert_eq!(rig.store.rollback().unwrap(), root, "{}", what);
                                prop_assert_eq!(&rig.tree(), &old, "{}", what);
                            }
                        }
                        Err(StateError::Forbidden { .. }) => {
                            prop_assert_eq!(rig.store.rollback().unwrap(), root, "{}", what);
                            prop_assert_eq!(&rig.tree(), &old, "{}", what);
                        }
                        Err(other) => panic!("{what}: {other}"),
                    },
                    End::Fail => {
                        prop_assert_eq!(rig.store.rollback().unwrap(), root, "{}", what);
                        prop_assert_eq!(&rig.tree(), &old, "{}", what);
                    }
                    End::Cut(steps) => {
                        rig.cut_after(Some(*steps));
                        let _ = rig.store.scan(true);
                        rig.reopen();
                        prop_assert_eq!(rig.store.snapshot_info(), Some((number as Seq, root)), "{}", what);
                        prop_assert_eq!(rig.store.rollback().unwrap(), root, "{}", what);
                        prop_assert_eq!(&rig.tree(), &old, "{}", what);
                    }
                    End::Killed => {
                        rig.reopen();
                        prop_assert_eq!(rig.store.rollback().unwrap(), root, "{}", what);
                        prop_assert_eq!(&rig.tree(), &old, "{}", what);
                    }
                }
                after.push((rig.store.scan(true).unwrap().root, rig.tree()));
            }
            prop_assert!(after.windows(2).all(|two| two[0] == two[1]), "run {} {:?}: {:#?}", number, acts, after);
        }
    }
}

/// What a pin says the state is.
fn pinned(pin: &Pin) -> Tree {
    let dir = folder();
    let made = dir.path().join("state");
    Replica::make(&made, &dir.path().join("clock")).unwrap().become_state(pin).unwrap();
    tree_of(&made)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pinned_state_stays_what_it_is_whatever_later_runs_do(
        runs in prop::collection::vec((prop::collection::vec(act(), 1..20), any::<bool>(), any::<bool>()), 2..6)
    ) {
        for mut rig in backends().map(Rig::new) {
            let mut pins: Vec<(Pin, Tree)> = Vec::new();
            let elsewhere = folder();
            let top = elsewhere.path().join("state");
            let mut replica = Replica::make(&top, &elsewhere.path().join("clock")).unwrap();
            for (number, (acts, early, is_taken_back)) in runs.iter().enumerate() {
                let what = format!("run {number} on {}", rig.backend);
                let root = rig.keep(number as Seq);
                let old = rig.tree();
                if pins.len() == PINS_MAX {
                    prop_assert!(matches!(rig.store.pin(), Err(StateError::TooManyPins)));
                    pins.remove(0);
                }
                if *early {
                    pins.push((rig.store.pin().unwrap(), old.clone()));
                }
                rig.run(acts);
                if rig.store.scan(true).is_err() {
                    rig.store.rollback().unwrap();
                }
                if !early {
                    pins.push((rig.store.pin().unwrap(), old.clone()));
                }
                prop_assert_eq!(pins.last().unwrap().0.root(), root, "{}", what);
                if *is_taken_back {
                    rig.store.rollback().unwrap();
                }
                for (pin, tree) in &pins {
                    prop_assert_eq!(&pinned(pin), tree, "{}", what);
                }
                // A folder that somebody does as he likes in is made any of them, again and again.
                for (pin, tree) in &pins {
                    replica.become_state(pin).unwrap();
                    prop_assert_eq!(&tree_of(&top), tree, "{}", what);
                    prop_assert!(replica.is(&pin.root()).unwrap(), "{}", what);
                    act_all(&top, acts);
                    if replica.is(&pin.root()).unwrap() {
                        prop_assert_eq!(&tree_of(&top), tree, "{}: what was done is seen", what);
                    }
                }
            }
        }
    }
}

#[test]
fn the_state_after_a_run_is_pinned_before_the_next_one_and_read_through_all_that_follows() {
    for backend in backends() {
        let mut rig = Rig::new(backend);
        rig.keep(1);
        rig.run_program(&["sh", "-c", "cd state; seq 50000 > numbers; echo 1 > a; mkdir b; ln -s a b/link"]);
        assert!(backend == Backend::Shadow || rig.store.pin_now().is_err(), "a run is under way");
        rig.commit();
        let (pin, tree) = (rig.store.pin_now().unwrap(), rig.tree());
        let is_right = |when: &str| assert_eq!(pinned(&pin), tree, "{backend}: {when}");
        is_right("between two runs");
        rig.keep(2);
        is_right("when the next one may begin");
        let change = "cd state; rm -r b; seq 2 50001 > numbers; mkfifo a.fifo; rm a.fifo; echo 2 > a; ln -s x b";
        rig.run_program(&["sh", "-c", change]);
        is_right("while it runs, or just after");
        rig.commit();
        is_right("when it counts");
        rig.keep(3);
        rig.run_program(&["sh", "-c", "cd state; rm -r *"]);
        rig.commit();
        is_right("one later");
        rig.keep(4);
        is_right("two later");
    }
}

#[test]
fn the_state_after_a_run_that_is_taken_back_is_lost_and_never_wrong() {
    for backend in backends() {
        let (mut rig, before, _) = before(backend);
        rig.run_program(&["sh", "-c", CHANGE_ALL]);
        rig.commit();
        let pin = rig.store.pin_now().unwrap();
        assert_ne!(pin.root(), before);
        assert_eq!(rig.store.rollback().unwrap(), before);
        rig.run_program(&["sh", "-c", "cd state; echo other > changed"]);
        rig.commit();
        let scratch = folder();
        let mut replica = Replica::make(&scratch.path().join("state"), &scratch.path().join("clock")).unwrap();
        let made = replica.become_state(&pin);
        assert!(matches!(made, Err(StateError::PinLost { .. })), "{backend}: {made:?}");
    }
}

#[test]
fn the_process_after_pins_the_same_pre_state_and_it_stays_what_it_is() {
    for backend in backends() {
        let (mut rig, root, old) = before(backend);
        rig.run_program(&["sh", "-c", CHANGE_ALL]);
        rig.commit();
        rig.reopen();
        let new = rig.store.scan(true).unwrap().root;
        let pin = rig.store.pin().unwrap();
        assert_eq!((pin.root(), pinned(&pin)), (root, old.clone()), "{backend}");
        rig.store.snapshot(9, new).unwrap();
        rig.run_program(&["sh", "-c", "rm -r state/* && echo other > state/other"]);
        rig.commit();
        assert_eq!(pinned(&pin), old, "{backend}");
        // What was looked at for a pin is still there to be taken back.
        rig.reopen();
        rig.store.scan(true).unwrap();
        assert_eq!(rig.store.pin().unwrap().root(), new, "{backend}");
        assert_eq!(rig.store.rollback().unwrap(), new, "{backend}");
    }
}

#[test]
fn whatever_somebody_does_in_a_copy_of_the_state_is_put_right_and_what_he_piled_up_is_given_back() {
    let (mut rig, root, tree) = before(Backend::Shadow);
    let pin = rig.store.pin().unwrap();
    let scratch = folder();
    let top = scratch.path().join("state");
    let mut replica = Replica::make(&top, &scratch.path().join("clock")).unwrap();
    assert!(replica.is_empty());
    replica.become_state(&pin).unwrap();
    let harm = r#"
set -e
head -c 9000000 /dev/zero >> changed
head -c 9000000 /dev/zero > litter
ln kept second
ln -s /etc/passwd out
mkfifo fifo
rm gone
chmod 0 shorter
chmod 700 empty
touch -d @0 bit
"#;
    let done = Command::new("sh").args(["-c", harm]).current_dir(&top).status().unwrap();
    assert!(done.success());
    assert!(!replica.is(&root).unwrap());
    replica.cut_back().unwrap();
    assert!(!top.join("litter").exists() && fs::metadata(top.join("changed")).unwrap().len() == 3 * BLOCK_BYTES as u64);
    replica.become_state(&pin).unwrap();
    assert_eq!(tree_of(&top), tree);
    assert!(replica.is(&root).unwrap());
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &str| fs::metadata(top.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!([mode("shorter"), mode("empty"), mode("bit")], [0o644, 0o755, 0o644]);
}

#[test]
fn a_pin_costs_what_changes_and_big_files_that_go_nothing() {
    for backend in backends() {
        let mut rig = Rig::new(backend);
        let numbers = |from: u32, count: u32| (from..from + count).flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
        for (file, from, bytes) in [("removed", 0, 20 << 20), ("cut", 1 << 24, 20 << 20), ("patched", 1 << 28, 300_000)]
        {
            fs::write(rig.top().join(file), numbers(from, bytes / 4)).unwrap();
        }
        rig.keep(1);
        let (pin, old) = (rig.store.pin().unwrap(), rig.tree());
        rig.run_program(&[
            "sh",
            "-c",
            "cd state; rm removed; truncate -s 5 cut; printf ! | dd of=patched bs=1 seek=70000 conv=notrunc status=none",
        ]);
        rig.commit();
        rig.keep(2);
        assert_eq!(pinned(&pin), old, "{backend}");
        let copied = pin.copied();
        assert!(copied <= 300_000, "{backend}: {copied}");
        assert_eq!(pin.block(&Hash([9; 32])).unwrap(), None, "{backend}");
        // Whoever damages what is pinned makes it unreadable, and never wrong.
        let (place, path) = match backend {
            Backend::Shadow => (rig.dir.path().join("hist/shadow/copy"), "patched"),
            Backend::Overlay => (rig.top(), "patched"),
        };
        fs::File::options().write(true).open(place.join(path)).unwrap().write_all_at(b"?", 200_000).unwrap();
        let scratch = folder();
        let mut replica = Replica::make(&scratch.path().join("state"), &scratch.path().join("clock")).unwrap();
        let lost = replica.become_state(&pin);
        assert!(backend == Backend::Overlay || matches!(lost, Err(StateError::PinLost { .. })), "{backend}: {lost:?}");
    }
}

/// A folder with one of everything, as a pre-state.
pub(super) fn before(backend: Backend) -> (Rig, Hash, Tree) {
    let mut rig = Rig::new(backend);
    let top = rig.top();
    let write = |path: &str, bytes: &[u8]| {
        fs::create_dir_all(top.join(path).parent().unwrap()).unwrap();
        fs::write(top.join(path), bytes).unwrap();
    };
    write("kept", b"kept");
    write("changed", &vec![1; 3 * BLOCK_BYTES]);
    write("gone", b"gone");
    write("gone-folder/a/file", b"1");
    write("again/old", b"1");
    write("again/deep/old", b"1");
    write("becomes-folder", b"1");
    write("becomes-file/x/y", b"1");
    write("bit", b"1");
    write("shorter", &vec![2; 2 * BLOCK_BYTES]);
    symlink("kept", top.join("link")).unwrap();
    fs::create_dir(top.join("empty")).unwrap();
    let root = rig.keep(1);
    let tree = rig.tree();
    (rig, root, tree)
}

/// Changes everything about it.
pub(super) const CHANGE_ALL: &str = r#"
set -e
cd state
printf '!' | dd of=changed bs=1 seek=70000 conv=notrunc status=none
rm -r gone gone-folder becomes-folder becomes-file link empty again
mkdir -p becomes-folder/deep new/new again/deep
echo 2 > becomes-folder/deep/file
echo 2 > becomes-file
echo 2 > again/deep/new
chmod +x bit
echo s > shorter
ln -s changed link
head -c 131072 /dev/zero > new/new/zeros
truncate -s 300000 new/sparse
mv kept new/kept
"#;

/// Does `act` after a run, with the disk failing after 0, 1, 2 ... steps until it no longer does, and each time
/// `check`s what the next process finds, which was cut at each of its own steps before.
fn cut_everywhere(
    backend: Backend,
    act: impl Fn(&mut Rig) -> Result<(), StateError>,
    check: impl Fn(&mut Rig, usize, (Hash, &Tree), &Tree),
) {
    let new = {
        let (mut rig, ..) = before(backend);
        rig.run_program(&["sh", "-c", CHANGE_ALL]);
        rig.commit();
        rig.tree()
    };
    for cut in 0.. {
        let (mut rig, root, old) = before(backend);
        rig.run_program(&["sh", "-c", CHANGE_ALL]);
        rig.cut_after(Some(cut));
        let done = act(&mut rig);
        // Cut again, and again, for some: all against all takes long.
        if cut % 8 == 0 {
            rig.reopen_cut()
        } else {
            rig.reopen()
        }
        check(&mut rig, cut, (root, &old), &new);
        if done.is_ok() {
            assert!(cut > 20, "{backend}: cut in earnest: {cut}");
            return;
        }
    }
}

#[test]
fn a_run_whose_commit_is_cut_anywhere_can_be_taken_back_exactly() {
    for backend in backends() {
        cut_everywhere(
            backend,
            |rig| {
                rig.store.scan(true)?;
                let _ = rig.store.leaf(b"a");
                // On shadow a scan alone has few steps; a snapshot is cut, too, in the next test.
                rig.store.rollback().map(drop)
            },
            |rig, cut, (root, old), new| {
                let tree = rig.tree();
                assert!(tree == *old || tree == *new, "{backend} cut at {cut}: {tree:#?}");
                assert_eq!(rig.store.snapshot_info(), Some((1, root)), "{backend} cut at {cut}");
                let scan = rig.store.scan(true).unwrap();
                assert_eq!(scan.root, root_by_the_book(&tree), "{backend} cut at {cut}");
                assert_eq!(rig.store.rollback().unwrap(), root, "{backend} cut at {cut}");
                assert_eq!(rig.tree(), *old, "{backend} cut at {cut}");
                // And all goes on from there.
                if cut % 8 == 0 {
                    rig.keep(2);
                    rig.run_program(&["sh", "-c", CHANGE_ALL]);
                    rig.commit();
                    assert_eq!(rig.tree(), *new, "{backend} cut at {cut}");
                }
            },
        );
    }
}

#[test]
fn a_snapshot_cut_anywhere_leads_back_to_the_old_or_to_the_new_state() {
    for backend in backends() {
        cut_everywhere(
            backend,
            |rig| {
                let root = rig.store.scan(true)?.root;
                rig.store.snapshot(2, root)
            },
            |rig, cut, (root, old), new| {
                let tree = rig.tree();
                assert!(tree == *old || tree == *new, "{backend} cut at {cut}: {tree:#?}");
                let (seq, kept) = rig.store.snapshot_info().unwrap();
                let kept_tree = if seq == 1 { old } else { new };
                assert_eq!(kept, root_by_the_book(kept_tree), "{backend} cut at {cut}");
                assert!(seq == 2 || kept == root, "{backend} cut at {cut}");
                assert_eq!(rig.store.rollback().unwrap(), kept, "{backend} cut at {cut}");
                assert_eq!(rig.tree(), *kept_tree, "{backend} cut at {cut}");
            },
        );
    }
}

#[test]
fn a_failed_step_can_be_tried_again_in_the_same_process() {
    for backend in backends() {
        for cut in (0..70).step_by(3) {
            let (mut rig, root, old) = before(backend);
            rig.run_program(&["sh", "-c", CHANGE_ALL]);
            rig.cut_after(Some(cut));
            let done = rig.store.scan(true);
            rig.cut_after(None);
            if done.is_err() && cut % 2 == 0 {
                rig.store.scan(true).unwrap();
            }
            rig.cut_after(Some(cut));
            let _ = rig.store.rollback();
            rig.cut_after(None);
            assert_eq!(rig.store.rollback().unwrap(), root, "{backend} cut at {cut}");
            assert_eq!(rig.tree(), old, "{backend} cut at {cut}");
            // What failed is not done by the next process either.
            rig.reopen();
            assert_eq!(rig.tree(), old, "{backend} cut at {cut}");
        }
    }
}

#[test]
fn a_run_is_seen_whatever_it_writes_with() {
    const PROGRAM: &str = r#"
import mmap, os
os.chdir(b"state")
with open("mapped", "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
    m[100000:100004] = b"!!!!"
with open("appended", "ab") as f:
    f.write(b"more")
os.truncate("truncated", 3)
with open("sparse", "r+b") as f:
    f.seek(5_000_000)
    f.write(b"end")
os.remove("again"); open("again", "wb").write(b"once more")
os.rename("moved", "over")
open(b"\xff\xfe\n", "wb").write(b"no text")
os.makedirs("a/b/c")
os.symlink("../mapped", "a/up")
os.chmod("run", 0o755)
"#;
    let mut roots = Vec::new();
    for backend in backends() {
        let mut rig = Rig::new(backend);
        for (path, size) in [("mapped", 200_000), ("appended", 70_000), ("truncated", 70_000), ("sparse", 10)] {
            fs::write(rig.top().join(path), vec![7; size]).unwrap();
        }
        for path in ["again", "moved", "over", "run"] {
            fs::write(rig.top().join(path), path).unwrap();
        }
        let (root, old) = (rig.keep(1), rig.tree());
        rig.run_program(&["python3", "-c", PROGRAM]);
        let scan = rig.commit();
        assert_eq!(scan.changed.len(), 13, "{backend}: {:?}", scan.changed);
        assert_eq!(fs::metadata(rig.top().join("sparse")).unwrap().len(), 5_000_003);
        assert_eq!(rig.tree()[&b"mapped"[..]].2[99_999..100_005], *b"\x07!!!!\x07", "{backend}");
        roots.push(scan.root);
        assert_eq!(rig.store.rollback().unwrap(), root, "{backend}");
        assert_eq!(rig.tree(), old, "{backend}");
    }
    assert!(roots.windows(2).all(|two| two[0] == two[1]), "{roots:?}");
}

#[test]
fn ten_thousand_files_come_change_and_go() {
    let mut roots = Vec::new();
    for backend in backends() {
        let mut rig = Rig::new(backend);
        rig.keep(1);
        rig.run_program(&[
            "sh",
            "-c",
            "cd state; for d in $(seq 100); do mkdir $d; (cd $d; seq 100 | split -l 1 -a 3 - f); done",
        ]);
        let scan = rig.commit();
        assert_eq!(scan.files, 10_100, "{backend}");
        let old = rig.tree();
        rig.keep(2);
        rig.run_program(&["sh", "-c", "cd state; rm -r 2? 3; echo new > 4/new; echo more >> 5/faaa; rm 6/f*"]);
        let scan = rig.commit();
        // Eleven folders with their files, one new file, one that grew, a hundred that went.
        assert_eq!((scan.files, scan.changed.len()), (10_100 - 1_111 + 1 - 100, 1_111 + 2 + 100), "{backend}");
        roots.push(scan.root);
        rig.store.rollback().unwrap();
        assert_eq!(rig.tree(), old, "{backend}");
    }
    assert!(roots.windows(2).all(|two| two[0] == two[1]), "{roots:?}");
}

#[test]
fn what_nodes_cannot_agree_on_is_refused_and_dropped() {
    let table = [
        ("mkfifo state/folder/fifo", Forbidden::Fifo),
        ("ln -s /etc/passwd state/absolute", Forbidden::Escape),
        ("ln -s ../../hist state/folder/up", Forbidden::Escape),
        ("ln state/folder/file state/twice", Forbidden::HardLink),
        ("truncate -s 1099511627777 state/holes", Forbidden::TooBig),
    ];
    for backend in backends() {
        for (script, kind) in &table {
            let mut rig = Rig::new(backend);
            fs::create_dir(rig.top().join("folder")).unwrap();
            fs::write(rig.top().join("folder/file"), "content").unwrap();
            let (root, old) = (rig.keep(1), rig.tree());
            rig.run_program(&["sh", "-c", script]);
            match rig.store.scan(true) {
                Err(StateError::Forbidden { kind: found, .. }) => assert_eq!(found, *kind, "{backend}: {script}"),
                other => panic!("{backend}: {script}: {other:?}"),
            }
            assert!(matches!(rig.store.snapshot(2, root), Err(StateError::NotScanned)), "{backend}: {script}");
            assert!(matches!(rig.store.begin_run(), Err(StateError::NotScanned)), "{backend}: {script}");
            assert_eq!(rig.store.rollback().unwrap(), root, "{backend}: {script}");
            assert_eq!(rig.tree(), old, "{backend}: {script}");
            rig.store.begin_run().unwrap();
        }
    }
}

#[test]
fn what_a_run_locked_or_hid_deep_is_dropped_all_the_same() {
    for backend in backends() {
        let (mut rig, root, old) = before(backend);
        rig.run_program(&[
            "sh",
            "-c",
            "cd state; mkdir -p new/deep; echo 1 > new/deep/file; chmod 000 new/deep/file new/deep new again kept; \
             for i in $(seq 30); do n=$(printf '%0100d' $i); mkdir $n; cd $n; done",
        ]);
        assert!(
            matches!(rig.store.scan(true), Err(StateError::Forbidden { kind: Forbidden::LongPath, .. })),
            "{backend}"
        );
        assert_eq!(rig.store.rollback().unwrap(), root, "{backend}");
        assert_eq!(rig.tree(), old, "{backend}");
        assert_eq!(
            fs::read_dir(rig.dir.path().join("hist").join(backend.name())).unwrap().count(),
            match backend {
                Backend::Shadow => 3,  // copy, intent, clock
                Backend::Overlay => 3, // undo, intent, clock
            }
        );
    }
}

#[test]
fn a_run_that_changes_nothing_costs_no_plan_and_another_may_begin() {
    for backend in backends() {
        let (mut rig, root, old) = before(backend);
        for _ in 0..2 {
            rig.run_program(&["sh", "-c", "cd state; touch kept; cp kept x; mv x kept; rm -rf y; mkdir y; rmdir y"]);
            let scan = rig.commit();
            assert_eq!((scan.root, scan.changed.len()), (root, 0), "{backend}");
            assert_eq!(rig.tree(), old, "{backend}");
            assert_eq!(rig.store.snapshot_info(), Some((1, root)), "{backend}");
        }
    }
}

#[test]
fn a_scan_of_an_overlay_reads_the_changed_files_alone_and_looks_at_nothing_else() {
    if !*MOUNTS {
        return;
    }
    let (mut rig, ..) = before(Backend::Overlay);
    rig.run_program(&["sh", "-c", "echo 22 > state/kept"]);
    let scan = rig.commit();
    assert_eq!((scan.read, scan.changed), (3, vec![b"kept".to_vec()]));
}

#[test]
fn an_overlays_record_is_written_after_what_it_stands_for() {
    if !*MOUNTS {
        return;
    }
    let (mut rig, ..) = before(Backend::Overlay);
    rig.run_program(&["sh", "-c", CHANGE_ALL]);
    rig.disk.test.lock().unwrap().done.clear();
    let root = rig.store.scan(true).unwrap().root;
    rig.store.snapshot(2, root).unwrap();
    let done = rig.disk.test.lock().unwrap().done.clone();
    let at = |op: &str, path: &str| {
        let path = rig.dir.path().join(path);
        done.iter()
            .position(|(found, on)| *found == op && *on == path)
            .unwrap_or_else(|| panic!("{op} {path:?}: {done:?}"))
    };
    let applying = at("write", "hist/overlay/intent");
    for path in ["upper/changed", "upper/new/new/zeros", "upper/new/new", "upper/new", "upper", "plan"] {
        assert!(at("sync", &format!("hist/overlay/{path}")) < applying, "{path}: {done:?}");
    }
    let base = done.iter().rposition(|(op, path)| *op == "write" && path.ends_with("intent")).unwrap();
    let moved = done.iter().rposition(|(op, path)| *op == "rename" && path.starts_with(rig.top())).unwrap();
    assert!(applying < at("create folder", "state/new") && moved < base, "{done:?}");
    for folder in ["state", "state/new", "state/new/new", "state/again/deep"] {
        assert!((moved..base).contains(&at("sync", folder)), "{folder}: {done:?}");
    }
    let removed = done.iter().position(|(op, path)| *op == "remove" && !path.starts_with(rig.top())).unwrap();
    assert!(removed > base || done[removed].1.ends_with("plan"), "{done:?}");
}

#[test]
fn a_damaged_plan_is_an_error_and_not_followed() {
    if !*MOUNTS {
        return;
    }
    let (mut rig, ..) = before(Backend::Overlay);
    rig.run_program(&["sh", "-c", CHANGE_ALL]);
    rig.commit();
    let path = rig.dir.path().join("hist/overlay/plan");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"?", 9).unwrap();
    let opened = Rig::open(rig.dir.path(), Backend::Overlay, &Disk::default());
    assert!(matches!(opened, Err(StateError::Intent { .. })), "{opened:?}");
}

/// Leaves the folder as a cut in the middle of one of its works does.
type Leave = fn(&mut Rig);

/// Damages a record, or what is in its place.
type Damage = fn(&Path) -> std::io::Result<()>;

#[test]
fn damaged_records_are_put_aside_and_whatever_is_there_then_becomes_the_state_that_is_fetched() {
    const RAN: Leave = |rig| {
        rig.run_program(&["sh", "-c", CHANGE_ALL]);
        rig.commit();
    };
    // Cut when half of it is taken back.
    const UNDOING: Leave = |rig| {
        RAN(rig);
        rig.cut_after(Some(if rig.backend == Backend::Overlay { 6 } else { 4 }));
        rig.store.rollback().unwrap_err();
    };
    const ADOPTING: Leave = |rig| {
        let mut server = Rig::new(Backend::Shadow);
        fs::write(server.top().join("fetched"), [7; 100_000]).unwrap();
        server.keep(3);
        let pin = server.store.pin().unwrap();
        let mut stage = Stage::open_on(rig.dir.path(), rig.disk.clone()).unwrap();
        let fetch = fetched(&pin, rig, &mut stage);
        rig.cut_after(Some(12));
        rig.store.adopt(9, &fetch.target(), &stage).unwrap_err();
    };
    let both = [Backend::Shadow, Backend::Overlay];
    let cases: [(&str, &[Backend], Leave, Damage); 10] = [
        ("both slots of the intent", &both, RAN, |hist| fs::write(hist.join("x/intent"), [1; 9000])),
        ("an intent that is a folder", &both, RAN, |hist| {
            fs::remove_file(hist.join("x/intent")).and_then(|()| fs::create_dir(hist.join("x/intent")))
        }),
        ("all of it a file", &both, RAN, |hist| {
            fs::remove_dir_all(hist.join("x")).and_then(|()| fs::write(hist.join("x"), "no folder"))
        }),
        ("a plan cut short", &[Backend::Overlay], RAN, |hist| fs::write(hist.join("x/plan"), "short")),
        ("no plan", &[Backend::Overlay], UNDOING, |hist| fs::remove_file(hist.join("x/plan"))),
        ("what was put aside", &[Backend::Overlay], UNDOING, |hist| {
            fs::remove_dir_all(hist.join("x/undo")).and_then(|()| fs::create_dir(hist.join("x/undo")))
        }),
        ("the copy", &[Backend::Shadow], UNDOING, |hist| fs::write(hist.join("x/copy/one-more"), "file")),
        ("no list of what was fetched", &both, ADOPTING, |hist| fs::remove_file(hist.join("sync/target"))),
        ("a list of something else", &both, ADOPTING, |hist| fs::write(hist.join("sync/target"), [9; 60])),
        ("the blocks that were fetched", &both, ADOPTING, |hist| fs::write(hist.join("sync/blocks"), "torn")),
    ];
    for (what, on, leave, damage) in cases {
        for backend in backends().filter(|backend| on.contains(backend)) {
            let what = format!("{what} on {backend}");
            let (mut rig, ..) = before(backend);
            leave(&mut rig);
            // The damage names the backend's folder x.
            let hist = rig.dir.path().join("hist");
            let (own, x) = (hist.join(backend.name()), hist.join("x"));
            fs::rename(&own, &x).unwrap();
            damage(&hist).unwrap();
            fs::rename(&x, &own).unwrap();
            for cut in 0.. {
                let disk = Disk::default();
                disk.test.lock().unwrap().left = Some(cut);
                let opened = Rig::open(rig.dir.path(), backend, &Disk::default());
                let damage = match opened {
                    Err(damage) => damage,
                    Ok(_) if cut > 0 => break,
                    Ok(_) => panic!("{what}: no damage"),
                };
                assert!(damage.is_damage(), "{what}: {damage}");
                if put_aside(&disk, rig.dir.path()).is_ok() {
                    assert!(rig.dir.path().join(DAMAGED).is_dir(), "{what}");
                }
            }
            let (mut store, damage) = open_or_put_aside(rig.dir.path(), backend, None).unwrap();
            assert!(damage.is_none() && store.snapshot_info().is_none(), "{what}: {damage:?}");
            // As a node heals: what is there is looked through, and the rest is fetched.
            let mut server = Rig::new(backend);
            fs::write(server.top().join("agreed"), "on").unwrap();
            let root = server.keep(7);
            let pin = server.store.pin().unwrap();
            store.scan(false).ok();
            rig.store = store;
            rig.disk = Disk::default();
            let mut stage = Stage::open_on(rig.dir.path(), Disk::default()).unwrap();
            let fetch = fetched(&pin, &mut rig, &mut stage);
            rig.store.adopt(7, &fetch.target(), &stage).unwrap();
            assert_eq!((rig.tree(), rig.store.snapshot_info()), (server.tree(), Some((7, root))), "{what}");
            rig.reopen();
            assert_eq!(rig.store.scan(true).unwrap().root, root, "{what}");
        }
    }
}

#[test]
fn damaged_records_are_put_aside_once_and_those_of_the_time_before_make_room() {
    let mut rig = Rig::new(Backend::Shadow);
    rig.keep(1);
    let damaged = rig.dir.path().join(DAMAGED).join("shadow/intent");
    for bytes in [[1; 9000], [2; 9000]] {
        fs::write(rig.dir.path().join("hist/shadow/intent"), bytes).unwrap();
        let (_, damage) = open_or_put_aside(rig.dir.path(), Backend::Shadow, None).unwrap();
        assert!(matches!(damage, Some(StateError::Intent { .. })), "{damage:?}");
        assert_eq!(fs::read(&damaged).unwrap(), bytes);
    }
    let (_, damage) = open_or_put_aside(rig.dir.path(), Backend::Shadow, None).unwrap();
    assert!(damage.is_none() && damaged.exists());
}

#[test]
fn where_state_is_no_folder_everything_is_fetched() {
    for backend in backends() {
        let (mut rig, ..) = before(backend);
        fs::remove_dir_all(rig.top()).unwrap();
        fs::write(rig.top(), "no folder").unwrap();
        let mut server = Rig::new(backend);
        fs::write(server.top().join("agreed"), "on").unwrap();
        server.keep(7);
        let pin = server.store.pin().unwrap();
        let mut stage = Stage::open_on(rig.dir.path(), Disk::default()).unwrap();
        let fetch = fetched(&pin, &mut rig, &mut stage);
        rig.store.adopt(7, &fetch.target(), &stage).unwrap();
        assert_eq!(rig.tree(), server.tree(), "{backend}");
    }
}

/// Fetches the state of a pin from itself.
fn fetched(pin: &Pin, rig: &mut Rig, stage: &mut Stage) -> sync::Fetch {
    let goal = sync::Goal { root: pin.root(), entries: pin.entries() as u64 };
    let mut fetch = sync::Fetch::new(goal, rig.store.survey().unwrap(), 0, stage).unwrap();
    let node = NodeKey([1; 32]);
    while let Some(get) = fetch.ask(node, pin.root()) {
        let part = StatePart { id: get.id, body: sync::answer(pin, &get.want) };
        assert_eq!(fetch.take(node, part, stage).unwrap(), Ok(true));
    }
    assert!(fetch.is_done());
    fetch
}

#[test]
fn a_folder_goes_on_with_the_other_backend_even_after_a_cut_run() {
    if !*MOUNTS {
        return;
    }
    for (from, to) in [(Backend::Shadow, Backend::Overlay), (Backend::Overlay, Backend::Shadow)] {
        // Killed after the run was made to count, but before that was told: the chain expects the state before.
        let (mut rig, root, old) = before(from);
        rig.run_program(&["sh", "-c", CHANGE_ALL]);
        rig.commit();
        let mut store = open(rig.dir.path(), to, Some(root)).unwrap();
        assert_eq!((store.backend(), store.scan(true).unwrap().root), (to, root), "{from} to {to}");
        assert_eq!(rig.tree(), old);
        // And stopped in order after it.
        let (mut rig, ..) = before(from);
        rig.run_program(&["sh", "-c", CHANGE_ALL]);
        let new = rig.commit().root;
        let mut store = open(rig.dir.path(), to, Some(new)).unwrap();
        assert_eq!(store.scan(true).unwrap().root, new, "{from} to {to}");
        assert_eq!(root_by_the_book(&rig.tree()), new);
        assert!(!rig.dir.path().join("hist").join(from.name()).exists());
        let names = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let left: Vec<_> = fs::read_dir(rig.dir.path().join("hist")).unwrap().map(names).collect();
        assert_eq!(left, [to.name()]);
    }
}
