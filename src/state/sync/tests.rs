//! From one folder to another over answers that may be wrong, late, or cut; on every backend, crashed at every step.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path};

use proptest::prelude::*;

use super::{
    super::{
        Backend, Pin, StateError,
        conformance::{CHANGE_ALL, Rig, backends, before},
        merkle::{BLOCK_BYTES, Kind, Leaf},
        tests::{Tree, act, perform, tree_of},
    },
    *,
};
use crate::{
    consensus::messages::{StateBody, StateGet, StatePart, StateWant},
    types::{Hash, NodeKey},
};

const HONEST: NodeKey = NodeKey([1; 32]);
const LIAR: NodeKey = NodeKey([2; 32]);

fn goal(pin: &Pin) -> Goal {
    Goal { root: pin.root(), entries: pin.entries() as u64 }
}

fn part(pin: &Pin, get: &StateGet) -> StatePart {
    StatePart { id: get.id, body: answer(pin, &get.want) }
}

/// Fetches all of it from one honest node; how many blocks came.
fn fetch_all(fetch: &mut Fetch, pin: &Pin, stage: &mut Stage) -> Result<usize, StateError> {
    let mut blocks = 0;
    while !fetch.is_done() {
        let get = fetch.ask(HONEST, pin.root()).expect("there is something to ask");
        let part = part(pin, &get);
        if let StateBody::Blocks(came) = &part.body {
            blocks += came.iter().filter(|block| !block.is_empty()).count();
        }
        assert_eq!(fetch.take(HONEST, part, stage)?, Ok(true));
    }
    Ok(blocks)
}

/// A node that has the state of `rig`, kept readable.
fn server(rig: &mut Rig) -> (Pin, Tree) {
    rig.keep(7);
    (rig.store.pin().unwrap(), rig.tree())
}

/// Makes the state of a pin that of `rig`; how many blocks came.
fn sync(rig: &mut Rig, pin: &Pin) -> Result<usize, StateError> {
    let mut stage = Stage::open_on(rig.dir.path(), rig.disk.clone())?;
    let mut fetch = Fetch::new(goal(pin), rig.store.survey()?, 0, &mut stage)?;
    let blocks = fetch_all(&mut fetch, pin, &mut stage)?;
    rig.store.adopt(9, &fetch.target(), &stage)?;
    Ok(blocks)
}

/// That all is as after an orderly run.
fn check(rig: &mut Rig, root: Hash, tree: &Tree, what: &str) {
    assert_eq!(&rig.tree(), tree, "{what}");
    assert_eq!(rig.store.snapshot_info(), Some((9, root)), "{what}");
    assert_eq!(rig.store.scan(true).unwrap().root, root, "{what}");
    assert!(!rig.dir.path().join("hist/sync").exists(), "{what}");
    // And all goes on from there.
    rig.run_program(&["sh", "-c", "echo more > state/more-of-it"]);
    rig.commit();
    assert_eq!(rig.store.rollback().unwrap(), root, "{what}");
    assert_eq!(&rig.tree(), tree, "{what}");
}

fn write(top: &Path, path: &str, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(top.join(path).parent().unwrap()).unwrap();
    fs::write(top.join(path), bytes).unwrap();
}

/// Bytes of which no block is like another.
fn numbers(from: u32, bytes: usize) -> Vec<u8> {
    (from..).flat_map(u32::to_le_bytes).take(bytes).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_state_becomes_any_other_whatever_a_liar_answers(
        theirs in prop::collection::vec(act(), 0..40),
        mine in prop::collection::vec(act(), 0..40),
        damage in prop::collection::vec(act(), 0..6),
        lies in prop::collection::vec((any::<u8>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..200),
    ) {
        let mut there = Rig::new(Backend::Shadow);
        theirs.iter().for_each(|act| perform(&there.top(), act));
        if there.store.scan(true).is_err() {
            return Ok(());
        }
        let (pin, tree) = server(&mut there);
        for backend in backends() {
            let mut rig = Rig::new(backend);
            mine.iter().for_each(|act| perform(&rig.top(), act));
            if let Ok(scan) = rig.store.scan(true) {
                rig.store.snapshot(1, scan.root).unwrap();
            }
            damage.iter().for_each(|act| perform(&rig.top(), act));
            let mut stage = Stage::open(rig.dir.path()).unwrap();
            let mut fetch = Fetch::new(goal(&pin), rig.store.survey().unwrap(), 5, &mut stage).unwrap();
            let mut lies = lies.iter();
            let mut caught = false;
            while !fetch.is_done() {
                // Two at a time, and the liar answers first, until it was caught.
                let honest = fetch.ask(HONEST, pin.root());
                if let Some(get) = fetch.ask(LIAR, pin.root()).filter(|_| !caught) {
                    let right = part(&pin, &get);
                    let said = lies.next().map_or(right.clone(), |lie| altered(right.clone(), lie));
                    match fetch.take(LIAR, said.clone(), &mut stage).unwrap() {
                        Ok(_) => prop_assert!(said == right || is_less(&said, &right), "believed {said:?}"),
                        Err(_) => {
                            prop_assert!(said != right, "accused of {right:?}");
                            caught = true;
                        }
                    }
                } else {
                    fetch.drop_peer(&LIAR);
                }
                if let Some(get) = honest {
                    prop_assert_eq!(fetch.take(HONEST, part(&pin, &get), &mut stage).unwrap(), Ok(true));
                }
            }
            rig.store.adopt(9, &fetch.target(), &stage).unwrap();
            check(&mut rig, pin.root(), &tree, backend.name());
        }
    }
}

/// Something else than what is right, or the same.
fn altered(part: StatePart, (kind, at, to): &(u8, prop::sample::Index, prop::sample::Index)) -> StatePart {
    let flip = |bytes: &mut Vec<u8>| {
        if !bytes.is_empty() {
            let place = at.index(bytes.len());
            bytes[place] ^= 1 << to.index(8);
        }
    };
    let StatePart { mut id, mut body } = part;
    match (kind % 8, &mut body) {
        (0, _) => body = StateBody::Nothing,
        (1, _) => id += 1 + to.index(5) as u64,
        (2, _) => body = StateBody::Offer { next: 1, root: Hash::ZERO, entries: 0, bytes: 0 },
        (3, StateBody::Hashes(hashes)) => drop(hashes.pop()),
        (3, StateBody::Leaves(leaves)) => drop(leaves.pop()),
        (3, StateBody::Blocks(blocks)) => drop(blocks.pop()),
        (4, StateBody::Hashes(hashes)) => hashes.push(Hash::ZERO),
        (4, StateBody::Leaves(leaves)) => leaves.push(Leaf::FOLDER.preimage(b"..")),
        (4, StateBody::Blocks(blocks)) => blocks.push(b"more".to_vec()),
        (5, StateBody::Blocks(blocks)) if !blocks.is_empty() => {
            let place = at.index(blocks.len());
            blocks[place].clear();
        }
        (_, StateBody::Hashes(hashes)) if !hashes.is_empty() => {
            let place = at.index(hashes.len());
            hashes[place].0[to.index(32)] ^= 1;
        }
        (_, StateBody::Leaves(leaves)) if !leaves.is_empty() => {
            let place = to.index(leaves.len());
            flip(&mut leaves[place]);
        }
        (_, StateBody::Blocks(blocks)) if !blocks.is_empty() => {
            let place = to.index(blocks.len());
            flip(&mut blocks[place]);
        }
        _ => {}
    }
    StatePart { id, body }
}

/// What is no lie: another request's answer, nothing, or some blocks less.
fn is_less(said: &StatePart, right: &StatePart) -> bool {
    let some = |said: &[Vec<u8>], right: &[Vec<u8>]| {
        said.len() == right.len() && said.iter().zip(right).all(|(said, right)| said.is_empty() || said == right)
    };
    match (&said.body, &right.body) {
        _ if said.id != right.id => true,
        (StateBody::Nothing, _) => true,
        (StateBody::Blocks(said), StateBody::Blocks(right)) => some(said, right),
        _ => false,
    }
}

#[test]
fn an_adoption_cut_anywhere_ends_in_the_old_or_the_new_state() {
    for backend in backends() {
        let mut there = Rig::new(Backend::Shadow);
        before_in(&there.top());
        perform_all(&there);
        let (pin, new) = server(&mut there);
        let mut cuts = 0;
        for cut in 0.. {
            let (mut rig, root, old) = before(backend);
            rig.cut_after(Some(cut));
            let done = sync(&mut rig, &pin);
            rig.reopen_cut();
            let tree = rig.tree();
            let what = format!("{backend} cut at {cut}");
            if rig.store.snapshot_info() == Some((9, pin.root())) {
                check(&mut rig, pin.root(), &new, &what);
            } else {
                assert!(done.is_err(), "{what}");
                assert_eq!((&tree, rig.store.snapshot_info()), (&old, Some((1, root))), "{what}");
                // What came is not fetched again, and the end is the same.
                sync(&mut rig, &pin).unwrap();
                check(&mut rig, pin.root(), &new, &what);
                cuts += 1;
            }
            if done.is_ok() {
                break;
            }
        }
        assert!(cuts > 3, "{backend}: it was cut before it counted, and after");
    }
}

fn before_in(top: &Path) {
    write(top, "kept", b"kept");
    write(top, "changed", vec![1; 3 * BLOCK_BYTES]);
    for path in
        ["gone", "gone-folder/a/file", "again/old", "again/deep/old", "becomes-folder", "becomes-file/x/y", "bit"]
    {
        write(top, path, b"1");
    }
    write(top, "shorter", vec![2; 2 * BLOCK_BYTES]);
    symlink("kept", top.join("link")).unwrap();
    fs::create_dir(top.join("empty")).unwrap();
}

fn perform_all(rig: &Rig) {
    let done = std::process::Command::new("sh").args(["-c", CHANGE_ALL]).current_dir(rig.dir.path()).status().unwrap();
    assert!(done.success());
}

#[test]
fn only_what_differs_is_fetched_and_what_moved_is_not() {
    for backend in backends() {
        let mut rig = Rig::new(backend);
        let top = rig.top();
        write(&top, "big", numbers(0, 40 * BLOCK_BYTES + 5));
        write(&top, "moves/from", numbers(1 << 20, 20 * BLOCK_BYTES));
        (0..300).for_each(|file| write(&top, &format!("many/{file}"), file.to_string()));
        rig.keep(1);
        let mut there = Rig::new(Backend::Shadow);
        let copied = std::process::Command::new("cp").args(["-a", "-T"]).arg(&top).arg(there.top()).status().unwrap();
        assert!(copied.success());
        let mut big = numbers(0, 40 * BLOCK_BYTES + 5);
        big[3 * BLOCK_BYTES] ^= 1;
        write(&there.top(), "big", big);
        fs::rename(there.top().join("moves/from"), there.top().join("to")).unwrap();
        write(&there.top(), "sparse", vec![0; 10 * BLOCK_BYTES]);
        let (pin, tree) = server(&mut there);
        assert_eq!(sync(&mut rig, &pin).unwrap(), 1, "{backend}: one block of one file");
        check(&mut rig, pin.root(), &tree, backend.name());
        // Nothing differs: nothing is fetched, and a damaged block is read and noticed whatever the stamps say.
        assert_eq!(sync(&mut rig, &pin).unwrap(), 0, "{backend}");
        write(&rig.top(), "big", numbers(9, 7));
        write(&rig.dir.path().join("hist/shadow/copy"), "many/7", "damaged");
        let fetched = sync(&mut rig, &pin).unwrap();
        assert!(fetched <= 42, "{backend}: {fetched}");
        check(&mut rig, pin.root(), &tree, backend.name());
    }
}

#[test]
fn what_was_fetched_is_found_again_after_a_crash_but_for_what_was_torn() {
    let mut there = Rig::new(Backend::Shadow);
    write(&there.top(), "big", numbers(0, 50 * BLOCK_BYTES));
    let (pin, tree) = server(&mut there);
    let mut rig = Rig::new(Backend::Shadow);
    rig.keep(1);
    let mut stage = Stage::open(rig.dir.path()).unwrap();
    let mut fetch = Fetch::new(goal(&pin), rig.store.survey().unwrap(), 0, &mut stage).unwrap();
    while stage.blocks() < 20 {
        let get = fetch.ask(HONEST, pin.root()).unwrap();
        fetch.take(HONEST, part(&pin, &get), &mut stage).unwrap().unwrap();
    }
    let (blocks, bytes) = (stage.blocks(), stage.bytes());
    drop((fetch, stage));
    let file = fs::File::options().write(true).open(rig.dir.path().join("hist/sync/blocks")).unwrap();
    file.set_len(bytes - 10).unwrap();
    rig.reopen();
    let again = Stage::open(rig.dir.path()).unwrap();
    assert_eq!(again.blocks(), blocks - 1);
    drop(again);
    assert_eq!(sync(&mut rig, &pin).unwrap(), 50 - (blocks - 1));
    check(&mut rig, pin.root(), &tree, "resumed");
}

#[test]
fn big_trees_and_big_files_are_walked_in_several_steps() {
    // The shapes: leaves below 64, 2^18 and more; blocks up to 2^12 and more.
    assert_eq!(children(1, 6, 0, 6), Some(0..1));
    assert_eq!(children(0, 6, 0, 6), None);
    assert_eq!(children(65, 18, 0, 12), Some(0..2));
    assert_eq!(children(65, 6, 1, 6), Some(64..65));
    assert_eq!(children(65, 6, 2, 6), None);
    assert_eq!(children(1 << 20, 30, 0, 12), Some(0..4));
    assert_eq!(children((1 << 20) - 1, 18, 3, 12), Some(3 << 12..4 << 12));
    assert_eq!(children(u64::MAX, 6, u64::MAX, 6), None);
    assert_eq!(children(5, 3, 0, 6), None);
    let mut there = Rig::new(Backend::Shadow);
    (0..5_000).for_each(|file| write(&there.top(), &format!("{}/{file}", file % 7), ""));
    let file = fs::File::create(there.top().join("huge")).unwrap();
    // 4,100 blocks, of which all but two are zeros.
    file.set_len(4_100 * BLOCK_BYTES as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"here", 4_099 * BLOCK_BYTES as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"and here", 70_000).unwrap();
    drop(file);
    let (pin, tree) = server(&mut there);
    let mut rig = Rig::new(Backend::Shadow);
    rig.keep(1);
    // The zeros need no room, here or on the way.
    assert_eq!(sync(&mut rig, &pin).unwrap(), 2);
    check(&mut rig, pin.root(), &tree, "big");
}

#[test]
fn a_state_that_could_leave_its_folder_is_refused_even_if_its_root_is_right() {
    let file = Leaf { kind: Kind::File, executable: false, size: 0, root: Hash::ZERO };
    let link = Leaf { kind: Kind::Symlink, executable: false, size: 3, root: Hash([3; 32]) };
    let long = vec![b'a'; super::super::PATH_BYTES_MAX + 1];
    let lies: [(&[u8], Leaf); 10] = [
        (b"..", file),
        (b"a/../b", file),
        (b"/etc/passwd", file),
        (b"a//b", file),
        (b"", Leaf::FOLDER),
        (b"nul\0", file),
        (&long, file),
        (b"folder", Leaf { size: 1, ..Leaf::FOLDER }),
        (b"hole", Leaf { root: Hash([1; 32]), ..file }),
        (b"huge", Leaf { size: super::super::BYTES_MAX + 1, root: Hash([1; 32]), ..file }),
    ];
    let begin = |list: &[(&[u8], Leaf)]| {
        let hashes: Vec<Hash> = list.iter().map(|(path, leaf)| leaf.hash(path)).collect();
        let root = super::super::merkle::root_of(&hashes);
        let mut rig = Rig::new(Backend::Shadow);
        rig.keep(1);
        let mut stage = Stage::open(rig.dir.path()).unwrap();
        let goal = Goal { root, entries: list.len() as u64 };
        let mut fetch = Fetch::new(goal, rig.store.survey().unwrap(), 0, &mut stage).unwrap();
        let get = fetch.ask(LIAR, root).unwrap();
        assert!(matches!(get.want, StateWant::Leaves { index: 0 }));
        let leaves = list.iter().map(|(path, leaf)| leaf.preimage(path)).collect();
        fetch.take(LIAR, StatePart { id: get.id, body: StateBody::Leaves(leaves) }, &mut stage)
    };
    for lie in lies {
        assert_eq!(begin(&[lie]).unwrap(), Err(Lie::Impossible), "{:?}", lie.0.escape_ascii().to_string());
    }
    // What only shows when all is known: a file below a file, an order, a thing twice, too many bytes.
    let big = Leaf { size: super::super::BYTES_MAX - 1, root: Hash([1; 32]), ..file };
    for list in [
        &[(&b"a"[..], file), (b"a/b", file)][..],
        &[(b"a", link), (b"a/b", file)],
        &[(b"a/b", file)],
        &[(b"b", file), (b"a", file)],
        &[(b"a", file), (b"a", file)],
        &[(b"a", big), (b"b", big)],
    ] {
        assert!(matches!(begin(list), Err(StateError::NoState { .. })), "{list:?}");
    }
}

#[test]
fn a_symlink_that_leaves_is_not_made_even_if_a_quorum_says_so() {
    let mut rig = Rig::new(Backend::Shadow);
    let (root, old) = (rig.keep(1), rig.tree());
    let target = b"../../etc/passwd";
    let hash = super::super::merkle::block_hash(target);
    let leaf = Leaf { kind: Kind::Symlink, executable: false, size: target.len() as u64, root: hash };
    let mut stage = Stage::open(rig.dir.path()).unwrap();
    let goal = Goal { root: leaf.hash(b"link"), entries: 1 };
    let mut fetch = Fetch::new(goal, rig.store.survey().unwrap(), 0, &mut stage).unwrap();
    let get = fetch.ask(LIAR, goal.root).unwrap();
    let body = StateBody::Leaves(vec![leaf.preimage(b"link")]);
    fetch.take(LIAR, StatePart { id: get.id, body }, &mut stage).unwrap().unwrap();
    let get = fetch.ask(LIAR, goal.root).unwrap();
    let part = StatePart { id: get.id, body: StateBody::Blocks(vec![target.to_vec()]) };
    assert!(matches!(fetch.take(LIAR, part, &mut stage), Err(StateError::NoState { .. })));
    assert_eq!((rig.tree(), rig.store.snapshot_info()), (old, Some((1, root))));
}

#[test]
fn blocks_come_from_nodes_with_other_states_and_the_list_from_one_with_this() {
    let mut there = Rig::new(Backend::Shadow);
    write(&there.top(), "big", numbers(0, 30 * BLOCK_BYTES));
    let (pin, tree) = server(&mut there);
    write(&there.top(), "new", "another state");
    there.keep(8);
    let other = there.store.pin().unwrap();
    let mut rig = Rig::new(Backend::Shadow);
    rig.keep(1);
    let mut stage = Stage::open(rig.dir.path()).unwrap();
    let mut fetch = Fetch::new(goal(&pin), rig.store.survey().unwrap(), 0, &mut stage).unwrap();
    let peers = BTreeMap::from([(LIAR, other.root())]);
    assert_eq!(fetch.ask(LIAR, other.root()), None, "it has another list");
    assert!(fetch.is_stuck(&peers));
    let get = fetch.ask(HONEST, pin.root()).unwrap();
    assert!(!fetch.is_stuck(&peers), "something is open");
    fetch.take(HONEST, part(&pin, &get), &mut stage).unwrap().unwrap();
    // Everything else from the one with the other state.
    while let Some(get) = fetch.ask(LIAR, other.root()) {
        fetch.take(LIAR, part(&other, &get), &mut stage).unwrap().unwrap();
    }
    assert!(fetch.is_done());
    rig.store.adopt(9, &fetch.target(), &stage).unwrap();
    check(&mut rig, pin.root(), &tree, "two");
    assert_eq!(tree_of(&rig.top()), tree);
}
