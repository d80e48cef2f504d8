//! Random trees, cuts at every step, and what a contract may leave behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    os::unix::{
        fs::{FileExt, MetadataExt, OpenOptionsExt as _, PermissionsExt, symlink},
        net::UnixListener,
    },
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    intent::IntentFile,
    scan::Index,
    shadow::{Intent, Shadow},
    *,
};

/// A tree, the slow and simple way: kind, executable bit, content.
pub(super) type Tree = BTreeMap<Vec<u8>, (char, bool, Vec<u8>)>;

pub(super) fn tree_of(top: &Path) -> Tree {
    fn walk(folder: &Path, prefix: &[u8], tree: &mut Tree) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let mut path = prefix.to_vec();
            path.extend(entry.file_name().as_bytes());
            let meta = entry.metadata().unwrap();
            let leaf = if meta.is_dir() {
                walk(&entry.path(), &[&path[..], b"/"].concat(), tree);
                ('d', false, Vec::new())
            } else if meta.is_symlink() {
                ('l', false, fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec())
            } else {
                ('f', meta.mode() & 0o100 != 0, fs::read(entry.path()).unwrap())
            };
            tree.insert(path, leaf);
        }
    }
    let mut tree = Tree::new();
    walk(top, b"", &mut tree);
    tree
}

/// The root as the module doc says, written without the module.
pub(super) fn root_by_the_book(tree: &Tree) -> Hash {
    fn fold(mut level: Vec<[u8; 32]>) -> [u8; 32] {
        while level.len() > 1 {
            let odd = (level.len() % 2 == 1).then(|| level[level.len() - 1]);
            level = level
                .chunks_exact(2)
                .map(|two| blake3::derive_key("hp/state/node/1", &two.concat()))
                .chain(odd)
                .collect();
        }
        level.first().copied().unwrap_or([0; 32])
    }
    let leaves = tree.iter().map(|(path, (kind, executable, content))| {
        let blocks = content.chunks(65536).map(|block| blake3::derive_key("hp/state/block/1", block));
        let mut bytes = (path.len() as u32).to_le_bytes().to_vec();
        bytes.extend(path);
        bytes.push(match kind {
            'f' => 0,
            'd' => 1,
            _ => 2,
        });
        bytes.push(u8::from(*executable));
        bytes.extend((content.len() as u64).to_le_bytes());
        bytes.extend(fold(blocks.collect()));
        blake3::derive_key("hp/state/leaf/1", &bytes)
    });
    Hash(fold(leaves.collect()))
}

struct Contract {
    dir: TempDir,
    state: Shadow,
}

impl Contract {
    fn new() -> Contract {
        let dir = tempfile::tempdir().unwrap();
        let state = Shadow::open(dir.path()).unwrap();
        Contract { dir, state }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("state").join(path)
    }

    fn copy(&self, path: &str) -> PathBuf {
        self.dir.path().join("hist/shadow/copy").join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn tree(&self) -> Tree {
        tree_of(&self.path(""))
    }

    fn scan(&mut self) -> Scan {
        self.state.scan(false).unwrap()
    }

    fn keep(&mut self, seq: Seq) -> Hash {
        let root = self.state.scan(true).unwrap().root;
        self.state.snapshot(seq, root).unwrap();
        root
    }

    fn forbidden(&mut self) -> (PathBuf, Forbidden) {
        match self.state.scan(true) {
            Err(StateError::Forbidden { path, kind }) => (path, kind),
            other => panic!("{other:?}"),
        }
    }

    /// Scans until nothing is read any more because all stamps are old enough.
    fn settle(&mut self) -> Scan {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let scan = self.state.scan(true).unwrap();
            if scan.read == 0 {
                return scan;
            }
            assert!(Instant::now() < deadline, "stamps never grow old");
        }
    }
}

fn blocks(numbers: &[u8]) -> Vec<u8> {
    numbers.iter().flat_map(|&number| vec![number; BLOCK_BYTES]).collect()
}

#[test]
fn the_root_of_a_small_tree_is_the_recorded_one() {
    let mut contract = Contract::new();
    assert_eq!(contract.scan().root, Hash::ZERO);
    contract.write("a/b", "hello");
    contract.write("a-b", [blocks(&[1, 2]), vec![3]].concat());
    contract.write("run", "#!/bin/sh\n");
    contract.write("nothing", "");
    fs::set_permissions(contract.path("run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(contract.path("empty")).unwrap();
    symlink("../a-b", contract.path("a/link")).unwrap();
    let scan = contract.scan();
    assert_eq!((scan.files, scan.bytes), (7, 5 + 131_073 + 10));
    assert_eq!(scan.root, root_by_the_book(&contract.tree()));
    assert_eq!(scan.root.to_string(), "63ca780a22762d3496d81211b13741833424b7b4d3ec6f46345eb3bd1cc6a537");
}

#[test]
fn times_and_modes_but_the_owners_executable_bit_do_not_count() {
    let mut contract = Contract::new();
    contract.write("file", "1");
    contract.write("folder/file", "2");
    let root = contract.scan().root;
    for mode in [0o600, 0o466, 0o077, 0o000, 0o4644] {
        fs::set_permissions(contract.path("file"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(contract.scan().root, root, "{mode:o}");
    }
    fs::set_permissions(contract.path("folder"), fs::Permissions::from_mode(0o111)).unwrap();
    fs::File::open(contract.path("file")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(contract.scan().root, root);
    fs::set_permissions(contract.path("file"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_ne!(contract.scan().root, root);
}

#[test]
fn what_the_owner_may_not_read_is_made_readable_on_every_node() {
    let mut contract = Contract::new();
    contract.write("folder/file", "2");
    for path in ["folder/file", "folder"] {
        fs::set_permissions(contract.path(path), fs::Permissions::from_mode(0o000)).unwrap();
    }
    contract.scan();
    let mode = |path| fs::metadata(contract.path(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("folder"), mode("folder/file")), (0o700, 0o400));
}

#[test]
fn names_are_bytes() {
    let mut contract = Contract::new();
    let name = OsStr::from_bytes(b"\xff\xfe \n");
    fs::write(contract.path("").join(name), "x").unwrap();
    let root = contract.keep(1);
    assert!(contract.state.leaf(b"\xff\xfe \n").is_some() && contract.state.leaf(b"x").is_none());
    fs::remove_file(contract.path("").join(name)).unwrap();
    assert_eq!(contract.state.rollback().unwrap(), root);
    assert_eq!(fs::read(contract.path("").join(name)).unwrap(), b"x");
}

#[test]
fn an_unchanged_tree_is_not_read_again_and_a_changed_file_alone_is() {
    let mut contract = Contract::new();
    contract.write("one", "1");
    contract.write("two", "22");
    let all = contract.scan();
    assert_eq!((all.read, all.changed.len()), (3, 2));
    let same = contract.settle();
    assert_eq!((same.root, same.changed.len()), (all.root, 0));
    contract.write("two", "333");
    let scan = contract.scan();
    assert_eq!((scan.read, scan.changed), (3, vec![b"two".to_vec()]));
    contract.settle();
    contract.state.distrust();
    assert_eq!(contract.scan().read, 4);
}

#[test]
fn where_stamps_are_coarse_a_file_stamped_in_the_future_is_read_each_time() {
    let mut contract = Contract::new();
    contract.state.clock.fine = false;
    contract.write("file", "1");
    let future = std::time::UNIX_EPOCH + Duration::from_secs(1 << 33);
    fs::File::options().write(true).open(contract.path("file")).unwrap().set_modified(future).unwrap();
    for _ in 0..3 {
        assert_eq!(contract.scan().read, 1);
    }
}

#[test]
fn a_write_of_the_same_size_in_the_same_tick_is_seen() {
    for coarse in [false, true] {
        let mut contract = Contract::new();
        contract.state.clock.fine &= !coarse;
        let mut roots = BTreeSet::new();
        for number in 0..200_u8 {
            contract.write("file", [number]);
            roots.insert(contract.scan().root);
        }
        assert_eq!(roots.len(), 200, "coarse: {coarse}");
    }
}

#[test]
fn where_stamps_are_fine_what_was_just_written_is_read_once() {
    let mut contract = Contract::new();
    if contract.state.clock.fine {
        contract.write("file", "1");
        assert_eq!([contract.scan().read, contract.scan().read], [1, 0]);
    }
}

#[test]
fn forbidden_kinds_are_named_and_rolled_back() {
    type Make = fn(&Contract);
    let table: [(&str, Forbidden, Make); 7] = [
        ("folder/fifo", Forbidden::Fifo, |contract| {
            nix::unistd::mkfifo(&contract.path("folder/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
        ("socket", Forbidden::Socket, |contract| {
            UnixListener::bind(contract.path("socket")).unwrap();
        }),
        ("absolute", Forbidden::Escape, |contract| symlink("/etc/passwd", contract.path("absolute")).unwrap()),
        ("folder/up", Forbidden::Escape, |contract| symlink("../../hist", contract.path("folder/up")).unwrap()),
        ("file", Forbidden::HardLink, |contract| {
            fs::hard_link(contract.path("file"), contract.dir.path().join("outside")).unwrap();
        }),
        ("", Forbidden::NoFolder, |contract| fs::remove_dir_all(contract.path("")).unwrap()),
        ("", Forbidden::NoFolder, |contract| {
            fs::rename(contract.path(""), contract.dir.path().join("elsewhere")).unwrap();
            symlink("elsewhere", contract.path("").parent().unwrap().join("state")).unwrap();
        }),
    ];
    for (path, kind, make) in table {
        let mut contract = Contract::new();
        contract.write("file", "content");
        contract.write("folder/file", "content");
        let (root, tree) = (contract.keep(1), contract.tree());
        make(&contract);
        assert_eq!(contract.forbidden(), (PathBuf::from(path), kind));
        assert!(matches!(contract.state.snapshot(2, root), Err(StateError::NotScanned)), "{kind:?}");
        assert_eq!(contract.state.rollback().unwrap(), root, "{kind:?}");
        assert_eq!(contract.tree(), tree, "{kind:?}");
        assert_eq!(contract.scan().root, root, "{kind:?}");
    }
}

#[test]
fn a_roll_back_never_writes_through_a_hard_link() {
    let mut contract = Contract::new();
    contract.write("file", "before");
    contract.keep(1);
    let outside = contract.dir.path().join("outside");
    fs::hard_link(contract.path("file"), &outside).unwrap();
    fs::write(&outside, "after").unwrap();
    contract.state.rollback().unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"after");
    assert_eq!(fs::read(contract.path("file")).unwrap(), b"before");
}

/// Says more where the tests do not run as root.
#[test]
fn what_the_contract_locked_is_rolled_back_all_the_same() {
    let mut contract = Contract::new();
    contract.write("folder/file", "before");
    contract.write("folder/empty/gone", "before");
    let (root, tree) = (contract.keep(1), contract.tree());
    contract.write("folder/file", "after");
    fs::remove_file(contract.path("folder/empty/gone")).unwrap();
    contract.write("new/deep/file", "after");
    for locked in ["folder/file", "folder/empty", "folder", "new/deep/file", "new/deep", "new", ""] {
        fs::set_permissions(contract.path(locked), fs::Permissions::from_mode(0o000)).unwrap();
    }
    assert_eq!(contract.state.rollback().unwrap(), root);
    assert_eq!(contract.tree(), tree);
}

#[test]
fn a_path_deeper_than_the_kernel_takes_is_forbidden_and_removed() {
    let mut contract = Contract::new();
    let root = contract.keep(1);
    // From the inside out, as the whole path could not be named.
    let name = "d".repeat(100);
    let mut inner = contract.dir.path().join("deep-0");
    fs::create_dir(&inner).unwrap();
    for depth in 1..60 {
        let outer = contract.dir.path().join(format!("deep-{depth}"));
        fs::create_dir(&outer).unwrap();
        fs::write(outer.join("file"), "x").unwrap();
        fs::rename(&inner, outer.join(&name)).unwrap();
        inner = outer;
    }
    fs::rename(&inner, contract.path("deep")).unwrap();
    assert_eq!(contract.forbidden().1, Forbidden::LongPath);
    assert_eq!(contract.state.rollback().unwrap(), root);
    assert_eq!(contract.tree(), Tree::new());
}

#[test]
fn a_snapshot_writes_only_the_blocks_that_differ() {
    let mut contract = Contract::new();
    contract.write("big", blocks(&[1, 2, 3, 4, 5]));
    contract.write("other", "other");
    contract.keep(1);
    contract.settle();
    let file = fs::File::options().write(true).open(contract.path("big")).unwrap();
    file.write_all_at(b"!", 3 * BLOCK_BYTES as u64 + 17).unwrap();
    contract.state.disk.test.lock().unwrap().done.clear();
    let root = contract.keep(2);
    let copy = contract.copy("big");
    let done = contract.state.disk.test.lock().unwrap().done.clone();
    assert_eq!(done.iter().filter(|(op, path)| *op == "write" && *path == copy).count(), 1, "{done:?}");
    assert!(!done.iter().any(|(_, path)| path.ends_with("other")), "{done:?}");
    assert_eq!(tree_of(&contract.copy("")), contract.tree());
    assert_eq!(contract.state.snapshot_info(), Some((2, root)));
}

#[test]
fn a_hole_stays_a_hole_in_the_copy() {
    let mut contract = Contract::new();
    contract.write("sparse", "start");
    fs::File::options().write(true).open(contract.path("sparse")).unwrap().set_len(8 << 20).unwrap();
    contract.keep(1);
    assert!(fs::metadata(contract.copy("sparse")).unwrap().blocks() * 512 < 1 << 20);
    assert_eq!(tree_of(&contract.copy("")), contract.tree());
}

#[test]
fn a_snapshot_of_an_unchanged_state_only_names_the_new_run() {
    let mut contract = Contract::new();
    contract.write("file", "1");
    let root = contract.keep(1);
    contract.state.disk.test.lock().unwrap().done.clear();
    contract.state.snapshot(2, root).unwrap();
    assert_eq!(contract.state.disk.test.lock().unwrap().done.len(), 2, "write and sync the record");
    assert_eq!(contract.state.snapshot_info(), Some((2, root)));
}

#[test]
fn a_snapshot_of_anything_but_the_last_scan_is_refused() {
    let mut contract = Contract::new();
    assert!(matches!(contract.state.snapshot(1, Hash::ZERO), Err(StateError::NotScanned)));
    contract.write("file", "1");
    contract.scan();
    assert!(matches!(contract.state.snapshot(1, Hash::ZERO), Err(StateError::Root { .. })));
    assert!(matches!(contract.state.rollback(), Err(StateError::NoSnapshot)));
    assert_eq!(contract.state.snapshot_info(), None);
}

/// The thread that the state gets is not the one that opens it.
#[test]
fn a_state_can_be_sent_to_a_thread() {
    fn sendable<T: Send + 'static>() {}
    sendable::<Box<dyn StateStore>>();
}

#[test]
fn files_too_big_to_read_on_every_node_are_forbidden_unread() {
    let mut contract = Contract::new();
    fs::File::create(contract.path("holes")).unwrap().set_len(BYTES_MAX + 1).unwrap();
    assert_eq!(contract.forbidden(), (PathBuf::from("holes"), Forbidden::TooBig));
}

#[test]
fn a_quota_allows_what_it_says_and_zero_anything() {
    let mut contract = Contract::new();
    contract.write("folder/file", [1; 100]);
    let scan = contract.scan();
    let allows = |bytes, files| Quota { bytes, files }.allows(&scan);
    assert!(allows(0, 0) && allows(100, 2) && allows(100, 0) && allows(0, 2));
    assert!(!allows(99, 2) && !allows(100, 1) && !allows(99, 0) && !allows(0, 1));
}

fn settled_and_saved() -> Contract {
    let mut contract = Contract::new();
    contract.write("one", "1");
    contract.write("two", "22");
    contract.keep(1);
    contract.settle();
    // The copy was written after `state/`: until its stamps are old enough, too.
    let deadline = Instant::now() + Duration::from_secs(20);
    while contract.state.copy.as_ref().unwrap().rows(Some(contract.state.clock.trusted_before_ns().unwrap())).len() < 2
    {
        assert!(Instant::now() < deadline, "stamps never grow old");
    }
    contract.state.save_cache().unwrap();
    contract
}

#[cfg(target_os = "linux")]
#[test]
fn after_a_saved_cache_only_what_changed_is_read() {
    let mut contract = settled_and_saved();
    let root = contract.scan().root;
    contract.state = Shadow::open(contract.dir.path()).unwrap();
    assert_eq!(contract.state.snapshot_info(), Some((1, root)));
    let (mut live, mut copy) = (Index::new(contract.path("")), Index::new(contract.copy("")));
    cache::load(&contract.state.cache_path(), &mut live, &mut copy);
    let totals = copy.scan(&Disk::default(), contract.state.clock.trusted_before_ns().unwrap()).unwrap();
    assert_eq!((totals.bytes, totals.read), (3, 0));
    let scan = contract.scan();
    assert_eq!((scan.read, scan.root, scan.changed), (0, root, vec![]));
    contract.write("one", "changed");
    contract.state = Shadow::open(contract.dir.path()).unwrap();
    let scan = contract.scan();
    assert_eq!((scan.read, scan.changed), (7, vec![b"one".to_vec()]));
    assert_eq!(scan.root, root_by_the_book(&contract.tree()));
    contract.state.rollback().unwrap();
    assert_eq!(fs::read(contract.path("one")).unwrap(), b"1");
}

#[cfg(target_os = "linux")]
#[test]
fn a_cache_that_is_damaged_or_of_another_boot_is_not_used() {
    let mut contract = settled_and_saved();
    let root = contract.scan().root;
    let path = contract.state.cache_path();
    let good = fs::read(&path).unwrap();
    // The boot's name is in front, behind its length.
    let mut other_boot = good[..good.len() - 32].to_vec();
    other_boot[6] ^= 1;
    other_boot.extend(blake3::hash(&other_boot.clone()).as_bytes());
    let flipped: Vec<u8> = good.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 100)).collect();
    for bad in [other_boot, flipped, good[..50].to_vec(), Vec::new()] {
        fs::write(&path, bad).unwrap();
        contract.state = Shadow::open(contract.dir.path()).unwrap();
        let scan = contract.scan();
        assert_eq!((scan.read, scan.root), (3, root));
    }
    fs::write(&path, good).unwrap();
    contract.state = Shadow::open(contract.dir.path()).unwrap();
    assert_eq!(contract.scan().read, 0);
}

#[test]
fn what_was_not_synced_is_not_in_the_cache() {
    let mut contract = settled_and_saved();
    contract.write("unsynced", "1");
    let deadline = Instant::now() + Duration::from_secs(20);
    while contract.scan().read > 0 {
        assert!(Instant::now() < deadline, "stamps never grow old");
    }
    contract.state.save_cache().unwrap();
    contract.state = Shadow::open(contract.dir.path()).unwrap();
    contract.state.scan(true).unwrap();
    let done = contract.state.disk.test.lock().unwrap().done.clone();
    assert!(done.contains(&("sync", contract.path("unsynced"))), "{done:?}");
}

#[test]
fn a_damaged_copy_is_no_snapshot_and_the_next_snapshot_mends_it() {
    let mut contract = Contract::new();
    contract.write("file", "1");
    contract.write("folder/file", "2");
    let root = contract.keep(1);
    fs::write(contract.copy("folder/file"), "3").unwrap();
    fs::write(contract.copy("stray"), "4").unwrap();
    contract.state = Shadow::open(contract.dir.path()).unwrap();
    assert_eq!(contract.state.snapshot_info(), None);
    assert!(matches!(contract.state.rollback(), Err(StateError::NoSnapshot)));
    assert_eq!(contract.keep(2), root);
    assert_eq!(tree_of(&contract.copy("")), contract.tree());
}

#[test]
fn a_copy_damaged_behind_the_back_is_not_restored_as_if_it_were_right() {
    let mut contract = Contract::new();
    contract.write("file", "1");
    contract.keep(1);
    contract.write("file", "2");
    fs::write(contract.copy("file"), "3").unwrap();
    assert!(matches!(contract.state.rollback(), Err(StateError::Changed { .. })));
    assert!(matches!(contract.state.scan(true), Err(StateError::Unfinished { seq: 1 })));
    fs::write(contract.copy("file"), "1").unwrap();
    contract.state.rollback().unwrap();
    assert_eq!(fs::read(contract.path("file")).unwrap(), b"1");
}

#[test]
fn a_torn_intent_record_leaves_the_one_before_and_two_are_an_error() {
    let mut contract = Contract::new();
    contract.write("file", "1");
    let root = contract.keep(1);
    contract.state.snapshot(2, root).unwrap();
    let newest = contract.state.intent.intent;
    let path = contract.dir.path().join("hist/shadow/intent");
    let file = fs::File::options().write(true).open(&path).unwrap();
    // The third record after the first of an empty one: the copy being made, made, renamed.
    file.write_all_at(&[0xff; 9], 4096 + 5).unwrap();
    let before = IntentFile::open(&Disk::default(), &path).unwrap().intent;
    assert_eq!((newest, before), (Intent::Clean { seq: 2, root }, Intent::Clean { seq: 1, root }));
    file.write_all_at(&[0xff; 9], 5).unwrap();
    assert!(matches!(Shadow::open(contract.dir.path()), Err(StateError::Intent { .. })));
    file.set_len(0).unwrap();
    assert!(matches!(Shadow::open(contract.dir.path()), Err(StateError::Intent { .. })));
}

/// A state with one of everything, and its root after a snapshot.
fn before() -> (Contract, Hash, Tree) {
    let mut contract = Contract::new();
    contract.write("kept", "kept");
    contract.write("changed", blocks(&[1, 2, 3]));
    contract.write("gone", "gone");
    contract.write("gone-folder/a/file", "1");
    contract.write("becomes-folder", "1");
    contract.write("becomes-file/x", "1");
    contract.write("bit", "1");
    contract.write("shorter", blocks(&[1, 2]));
    symlink("kept", contract.path("link")).unwrap();
    fs::create_dir(contract.path("empty")).unwrap();
    let root = contract.keep(1);
    let tree = contract.tree();
    (contract, root, tree)
}

/// Changes everything about it.
fn mutate(contract: &Contract) {
    let path = |path: &str| contract.path(path);
    fs::File::options().write(true).open(path("changed")).unwrap().write_all_at(b"!", 70_000).unwrap();
    fs::remove_file(path("gone")).unwrap();
    fs::remove_dir_all(path("gone-folder")).unwrap();
    fs::remove_file(path("becomes-folder")).unwrap();
    contract.write("becomes-folder/deep/file", "2");
    fs::remove_dir_all(path("becomes-file")).unwrap();
    contract.write("becomes-file", "2");
    fs::set_permissions(path("bit"), fs::Permissions::from_mode(0o755)).unwrap();
    contract.write("shorter", "s");
    fs::remove_file(path("link")).unwrap();
    symlink("changed", path("link")).unwrap();
    fs::remove_dir(path("empty")).unwrap();
    contract.write("new/new", blocks(&[9, 8]));
}

/// Runs `act` with the disk failing after 0, 1, 2 ... operations, until it is no longer cut. Each time on what `make`
/// gives, and each time `check`ed after opening again.
fn cut_everywhere(
    make: impl Fn() -> (Contract, Hash, Tree),
    act: impl Fn(&mut Shadow) -> Result<(), StateError>,
    check: impl Fn(&mut Contract, usize, Hash, &Tree),
) {
    for cut in 0.. {
        let (mut contract, root, tree) = make();
        contract.state.disk.test.lock().unwrap().left = Some(cut);
        let done = act(&mut contract.state);
        contract.state = Shadow::open(contract.dir.path()).unwrap();
        check(&mut contract, cut, root, &tree);
        if done.is_ok() {
            assert!(cut > 20, "cut in earnest: {cut}");
            return;
        }
    }
}

#[test]
fn a_snapshot_cut_anywhere_leaves_the_old_or_the_new_one() {
    cut_everywhere(
        || {
            let (contract, root, tree) = before();
            mutate(&contract);
            (contract, root, tree)
        },
        |state| {
            let root = state.scan(true)?.root;
            state.snapshot(2, root)
        },
        |contract, cut, old_root, old_tree| {
            let copy = tree_of(&contract.copy(""));
            let new_tree = contract.tree();
            assert_eq!(contract.scan().root, root_by_the_book(&new_tree), "cut at {cut}");
            match contract.state.snapshot_info() {
                Some((1, root)) => assert_eq!((root, &copy), (old_root, old_tree), "cut at {cut}"),
                Some((2, root)) => assert_eq!((root, &copy), (root_by_the_book(&new_tree), &new_tree), "cut at {cut}"),
                other => panic!("cut at {cut}: {other:?}"),
            }
            // And it is worth what it says.
            let (_, root) = contract.state.snapshot_info().unwrap();
            assert_eq!(contract.state.rollback().unwrap(), root);
            assert_eq!(contract.tree(), copy, "cut at {cut}");
        },
    );
}

#[test]
fn a_roll_back_cut_anywhere_ends_at_the_pre_state_or_did_not_begin() {
    cut_everywhere(
        || {
            let (contract, root, tree) = before();
            mutate(&contract);
            (contract, root, tree)
        },
        |state| state.rollback().map(drop),
        |contract, cut, root, tree| {
            assert_eq!(contract.state.snapshot_info(), Some((1, root)), "cut at {cut}");
            if contract.tree() != *tree {
                // Only before the record says that it began.
                assert!(cut < 2, "cut at {cut}");
                assert_eq!(contract.tree().get(&b"becomes-file"[..]).unwrap().2, b"2", "cut at {cut}");
                contract.state.rollback().unwrap();
            }
            assert_eq!(contract.tree(), *tree, "cut at {cut}");
            assert_eq!(contract.scan().root, root, "cut at {cut}");
        },
    );
}

#[test]
fn a_failed_step_can_be_tried_again_without_opening_again() {
    for cut in (0..60).step_by(3) {
        let (mut contract, root, tree) = before();
        mutate(&contract);
        let new_tree = contract.tree();
        let set = |contract: &Contract, left| contract.state.disk.test.lock().unwrap().left = left;
        set(&contract, Some(cut));
        let _ = contract.state.rollback();
        set(&contract, None);
        assert_eq!(contract.state.rollback().unwrap(), root, "cut at {cut}");
        assert_eq!(contract.tree(), tree, "cut at {cut}");

        mutate(&contract);
        let changed = contract.state.scan(true).unwrap().root;
        set(&contract, Some(cut));
        let _ = contract.state.snapshot(2, changed);
        set(&contract, None);
        contract.state.snapshot(3, changed).unwrap();
        assert_eq!(tree_of(&contract.copy("")), new_tree, "cut at {cut}");
    }
}

#[test]
fn an_opening_cut_anywhere_can_be_done_again() {
    for cut in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        disk.test.lock().unwrap().left = Some(cut);
        let done = Shadow::open_on(dir.path(), disk).is_ok();
        let mut state = Shadow::open(dir.path()).unwrap();
        assert_eq!(state.scan(true).unwrap().root, Hash::ZERO, "cut at {cut}");
        if done {
            return;
        }
    }
}

/// What was written and not synced since, as the operations tell: a power cut may take it.
fn volatile(done: &[(&'static str, PathBuf)]) -> BTreeSet<PathBuf> {
    let mut volatile = BTreeSet::new();
    for (op, path) in done {
        match *op {
            "sync" => {
                volatile.remove(path);
            }
            "sync below" => volatile.clear(),
            "write" | "truncate" | "chmod" => {
                volatile.insert(path.clone());
            }
            _ => {
                volatile.insert(path.parent().unwrap().to_path_buf());
                if op.starts_with("remove") {
                    volatile.remove(path);
                }
                if *op == "create" {
                    volatile.insert(path.clone());
                }
            }
        }
    }
    volatile
}

#[test]
fn nothing_is_called_finished_before_it_is_durable() {
    let intent = |contract: &Contract| contract.dir.path().join("hist/shadow/intent");
    let check = |contract: &Contract, records: usize| {
        let done = contract.state.disk.test.lock().unwrap().done.clone();
        let written: Vec<usize> =
            (0..done.len()).filter(|&at| done[at].0 == "write" && done[at].1 == intent(contract)).collect();
        assert_eq!(written.len(), records, "{done:?}");
        for at in written {
            assert_eq!(volatile(&done[..at]), BTreeSet::new(), "{done:?}");
        }
        contract.state.disk.test.lock().unwrap().done.clear();
    };
    let (mut contract, ..) = before();
    check(&contract, 2);
    mutate(&contract);
    contract.keep(2);
    check(&contract, 2);
    contract.write("kept", "2");
    contract.write("new/newer/newest", "2");
    fs::remove_file(contract.path("gone")).unwrap_err();
    contract.state.rollback().unwrap();
    check(&contract, 2);
}

#[test]
fn few_and_many_files_are_really_synced() {
    let mut contract = Contract::new();
    contract.state.disk.test.lock().unwrap().sync_for_real = true;
    symlink("file-0", contract.path("link")).unwrap();
    for number in 0..100 {
        contract.write(&format!("file-{number}"), "1");
        if number % 99 == 0 {
            contract.keep(number);
            assert_eq!(tree_of(&contract.copy("")), contract.tree());
        }
    }
    let root = contract.scan().root;
    fs::remove_dir_all(contract.path("")).unwrap();
    assert_eq!(contract.state.rollback().unwrap(), root);
}

#[test]
fn a_durable_scan_syncs_each_changed_file_and_folder() {
    let mut contract = Contract::new();
    contract.write("old/file", "1");
    contract.settle();
    contract.write("old/new", "1");
    contract.state.disk.test.lock().unwrap().done.clear();
    contract.state.scan(true).unwrap();
    let done = contract.state.disk.test.lock().unwrap().done.clone();
    assert_eq!(done, [("sync", contract.path("old")), ("sync", contract.path("old/new"))]);
}

#[test]
fn a_diagnosis_holds_the_files_now_and_before_and_lists_what_it_left_out() {
    let mut contract = Contract::new();
    contract.write("folder/file", "content");
    contract.write("same", "same");
    contract.write("gone", "was here");
    contract.keep(1);
    contract.write("folder/file", "other content");
    contract.write("new", "new");
    fs::remove_file(contract.path("gone")).unwrap();
    symlink("new", contract.path("link")).unwrap();
    contract.write("big", "x".repeat(1001));
    let root = contract.state.scan(true).unwrap().root;
    nix::unistd::mkfifo(&contract.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    let changed = contract.state.changed().unwrap();
    let names = ["big", "folder/file", "gone", "link", "new"].map(|name| name.as_bytes().to_vec());
    assert_eq!(changed, BTreeSet::from(names));
    let before = |path: &str| contract.state.before(path.as_bytes());
    assert_eq!((before("new"), before("gone")), (Before::Nothing, Before::File(contract.copy("gone"))));
    for (whole, same) in [(false, false), (true, true)] {
        let into = contract.dir.path().join(format!("kept-{whole}"));
        contract.state.keep_diagnosis(&into, &changed, Extent { whole, bytes_max: 1000 }).unwrap();
        let read = |path: &str| fs::read_to_string(into.join(path)).ok();
        assert_eq!(read("state/folder/file").as_deref(), Some("other content"));
        assert_eq!(read("before/folder/file").as_deref(), Some("content"));
        assert_eq!((read("state/gone"), read("before/gone").as_deref()), (None, Some("was here")));
        assert_eq!((read("state/new").as_deref(), read("before/new")), (Some("new"), None));
        assert_eq!(read("state/same").is_some(), same, "what did not change, with the rest");
        let omitted = read("omitted.txt").unwrap();
        assert!(omitted.contains("link: symlink to \"new\"") && omitted.contains("big: 1001 bytes"), "{omitted}");
        assert_eq!(omitted.contains("fifo: "), whole, "{omitted}");
        assert!(into.join("state/link").symlink_metadata().is_err(), "nobody is led elsewhere");
    }

    // What is known of each path leads to the root, and to no other.
    let found = contract.state.found(&changed);
    assert_eq!(found.len(), 4, "all but what is gone");
    for (path, known) in &found {
        assert!(is_in_tree(&root, path, known.state, &known.proof));
        assert!(!is_in_tree(&Hash([1; 32]), path, known.state, &known.proof));
        assert_eq!(root_of(&known.blocks), known.state.root);
    }
}

/// One thing that a contract may do. Names are few, so that things meet.
#[derive(Debug, Clone, borsh::BorshSerialize, borsh::BorshDeserialize)]
pub(super) enum Act {
    Write(u8, u32, u8),
    Append(u8, u32),
    InPlace(u8, u32),
    Truncate(u8, u32),
    Rename(u8, u8),
    Mkdir(u8),
    Remove(u8),
    Executable(u8, bool),
    Symlink(u8, u8),
    Climb(u8),
    Fifo(u8),
    Link(u8, u8),
    Snapshot,
    Rollback,
    SaveCache,
    Reopen,
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    let size = prop_oneof![3 => 0_u32..100, 1 => 65_530_u32..65_545, 1 => 131_000_u32..200_000];
    let name = 0_u8..18;
    prop_oneof![
        4 => (name.clone(), size.clone(), any::<u8>()).prop_map(|(name, size, byte)| Act::Write(name, size, byte)),
        2 => (name.clone(), size.clone()).prop_map(|(name, size)| Act::Append(name, size)),
        2 => (name.clone(), size.clone()).prop_map(|(name, at)| Act::InPlace(name, at)),
        2 => (name.clone(), size).prop_map(|(name, size)| Act::Truncate(name, size)),
        2 => (name.clone(), name.clone()).prop_map(|(from, to)| Act::Rename(from, to)),
        3 => name.clone().prop_map(Act::Mkdir),
        2 => name.clone().prop_map(Act::Remove),
        1 => (name.clone(), any::<bool>()).prop_map(|(name, bit)| Act::Executable(name, bit)),
        1 => (name.clone(), name.clone()).prop_map(|(name, target)| Act::Symlink(name, target)),
        1 => name.clone().prop_map(Act::Climb),
        1 => name.clone().prop_map(Act::Fifo),
        1 => (name.clone(), name).prop_map(|(from, to)| Act::Link(from, to)),
        2 => Just(Act::Snapshot),
        2 => Just(Act::Rollback),
        1 => Just(Act::SaveCache),
        1 => Just(Act::Reopen),
    ]
}

/// 18 paths, of which some lie in others.
pub(super) fn name(number: u8) -> String {
    let part = |number: u8| ["a", "a-b", "b"][usize::from(number % 3)];
    match number {
        0..3 => part(number).to_string(),
        3..12 => format!("{}/{}", part(number), part(number / 3)),
        _ => format!("a/{}/{}", part(number), part(number / 3)),
    }
}

/// What cannot be done, as a folder is missing or in the way, is not.
pub(super) fn perform(top: &Path, act: &Act) {
    let path = |number: u8| top.join(name(number));
    let open = |number: u8| fs::File::options().write(true).open(path(number));
    let is_file = |number: u8| fs::symlink_metadata(path(number)).is_ok_and(|meta| meta.is_file());
    match *act {
        Act::Write(at, size, byte) => {
            // A fifo may stand there: to wait for its reader would be for ever.
            let mut options = fs::File::options();
            options.write(true).create(true).truncate(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
            if let Ok(mut file) = options.open(path(at)) {
                file.write_all(&vec![byte; size as usize]).unwrap();
            }
        }
        Act::Append(at, size) if is_file(at) => {
            let end = fs::metadata(path(at)).unwrap().len();
            open(at).unwrap().write_all_at(&vec![7; size as usize], end).unwrap();
        }
        Act::InPlace(at, offset) if is_file(at) => open(at).unwrap().write_all_at(b"!", u64::from(offset)).unwrap(),
        Act::Truncate(at, size) if is_file(at) => open(at).unwrap().set_len(u64::from(size)).unwrap(),
        Act::Rename(from, to) => drop(fs::rename(path(from), path(to))),
        Act::Mkdir(at) => drop(fs::create_dir(path(at))),
        Act::Remove(at) => drop(fs::remove_file(path(at)).or_else(|_| fs::remove_dir_all(path(at)))),
        Act::Executable(at, bit) if is_file(at) => {
            fs::set_permissions(path(at), fs::Permissions::from_mode(if bit { 0o700 } else { 0o644 })).unwrap();
        }
        Act::Symlink(at, target) => drop(symlink(name(target), path(at))),
        // Allowed in a folder, an escape at the top, where it may be moved later.
        Act::Climb(at) => drop(symlink("../b", path(at))),
        Act::Fifo(at) => drop(nix::unistd::mkfifo(&path(at), nix::sys::stat::Mode::S_IRWXU)),
        Act::Link(from, to) => drop(fs::hard_link(path(from), path(to))),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_contract_does_the_root_is_by_the_book_and_a_roll_back_is_exact(
        acts in prop::collection::vec(act(), 1..60)
    ) {
        let mut contract = Contract::new();
        let mut kept: Option<(Hash, Tree)> = None;
        for (number, act) in acts.iter().enumerate() {
            perform(&contract.path(""), act);
            let root = match contract.state.scan(false) {
                Ok(scan) => scan.root,
                Err(StateError::Forbidden { .. }) => match &kept {
                    Some((root, tree)) => {
                        prop_assert_eq!(&contract.state.rollback().unwrap(), root, "act {}", number);
                        prop_assert_eq!(&contract.tree(), tree, "act {}", number);
                        continue;
                    }
                    // Nothing to go back to: the contract begins again.
                    None => {
                        fs::remove_dir_all(contract.path("")).unwrap();
                        fs::create_dir(contract.path("")).unwrap();
                        contract.scan().root
                    }
                },
                Err(other) => panic!("act {number}: {other}"),
            };
            let tree = contract.tree();
            prop_assert_eq!(root, root_by_the_book(&tree), "act {}", number);
            match act {
                Act::Snapshot => {
                    contract.state.snapshot(number as u64, root).unwrap();
                    prop_assert_eq!(&tree_of(&contract.copy("")), &tree, "act {}", number);
                    kept = Some((root, tree));
                }
                Act::Rollback => if let Some((root, tree)) = &kept {
                    prop_assert_eq!(&contract.state.rollback().unwrap(), root, "act {}", number);
                    prop_assert_eq!(&contract.tree(), tree, "act {}", number);
                },
                Act::SaveCache => contract.state.save_cache().unwrap(),
                Act::Reopen => contract.state = Shadow::open(contract.dir.path()).unwrap(),
                _ => {}
            }
        }
    }
}
