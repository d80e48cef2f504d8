//! Backups: whole, of one moment, and harmless whoever made the file.

use std::{
    fs,
    io::Cursor,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::{
    config::{Config, Document},
    crypto::SecretKey,
    ledger::Archive,
    state::folder,
    verify::tests::made::Made,
};

/// A node's folder, with a chain of so many ledgers, stopped in order.
fn node(ledgers: u64) -> (TempDir, Made) {
    let dir = tempfile::tempdir().unwrap();
    let mut made = Made::new(5);
    let mut document = Document::new(&made.nodes[0], made.genesis.contract_id, made.genesis.time_ms, &made.unl);
    document.set("consensus.input_window", "64");
    let config = Config::parse(document.text(), Path::new("hp.cfg"), dir.path(), &|_| unreachable!()).unwrap();
    made.shared = config.shared();
    made.genesis.cfg_hash = config.cfg_hash();
    let state = dir.path().join("state");
    fs::create_dir_all(state.join("deep/empty")).unwrap();
    fs::write(state.join("deep/file"), vec![7; 100_000]).unwrap();
    fs::write(state.join("tool"), "x").unwrap();
    fs::set_permissions(state.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("deep/file", state.join("link")).unwrap();
    made.genesis.state_root = folder::look(&state).unwrap().root;
    (made.hash, made.result) = (made.genesis.chain_id(), made.genesis.result());
    // Runs of the made chain lead to roots of their own; without them the state is that of the beginning.
    for _ in 0..ledgers {
        made.close(Default::default(), |_| {});
    }
    made.writes
        .retain(|write| !matches!(write, crate::ledger::Write::Record(crate::consensus::journal::Record::Result(_))));
    made.store(dir.path());
    for folder in ["cfg", "bin", "private"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
    }
    fs::write(dir.path().join("bin/contract"), "program").unwrap();
    fs::write(dir.path().join("private/secret"), "mine").unwrap();
    let file = Config::path(dir.path());
    fs::write(&file, document.text()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    (dir, made)
}

fn back_up(dir: &Path, to: &Path, with_key: bool) -> Manifest {
    let prepared = Making::begin(dir, to).unwrap().copy_state().unwrap();
    prepared.finish(with_key, 1_700_000_000_000, &mut |_, _, _| {}).unwrap().1
}

fn restored(from: &Path, dir: &Path, key: Option<&SecretKey>) -> Result<Restored, BackupError> {
    restore(from, dir, key, |manifest| format!("because of {}", manifest.tip), &mut |_, _, _| {})
}

#[test]
fn a_folder_comes_back_as_it_was_and_says_that_it_is_to_be_silent() {
    let (dir, made) = node(3);
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("backup.tar");
    let manifest = back_up(dir.path(), &file, true);
    assert_eq!((manifest.tip, manifest.executed, manifest.chain_id()), (3, 0, Some(made.genesis.chain_id())));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "nothing is left beside it");
    let to = out.path().join("new");
    let back = restored(&file, &to, None).unwrap();
    assert_eq!(back.manifest, manifest);
    assert_eq!(folder::look(&to.join("state")).unwrap(), folder::look(&dir.path().join("state")).unwrap());
    let same =
        |name: &str| assert_eq!(fs::read(to.join(name)).unwrap(), fs::read(dir.path().join(name)).unwrap(), "{name}");
    ["cfg/hp.cfg", "bin/contract", "private/secret"].into_iter().for_each(same);
    assert_eq!(fs::read_to_string(to.join("hist/silent")).unwrap(), "because of 3\n");
    assert_eq!(Config::load(&to).unwrap().key, made.node(0));
    assert_eq!(Archive::open(&to).unwrap().stands().unwrap(), Archive::open(dir.path()).unwrap().stands().unwrap());
    assert!(restored(&file, &to, None).unwrap_err().to_string().contains("is not empty; nothing was changed"));
    let again = Making::begin(dir.path(), &file).map(drop).unwrap_err();
    assert!(again.to_string().contains("exists already"), "{again}");
}

#[test]
fn without_its_key_a_backup_holds_no_secret_and_comes_back_with_the_key_given() {
    let (dir, made) = node(1);
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("backup.tar");
    assert!(!back_up(dir.path(), &file, false).with_key);
    let bytes = fs::read(&file).unwrap();
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(!holds(&made.nodes[0].to_hex()) && !holds(&hex::encode(made.nodes[0].seed())) && !holds("mine"));
    let (bare, with) = (out.path().join("bare"), out.path().join("with"));
    restored(&file, &bare, None).unwrap();
    assert!(Config::load(&bare).unwrap_err().to_string().contains("published example's key"));
    restored(&file, &with, Some(&made.nodes[0])).unwrap();
    assert_eq!(fs::read(Config::path(&with)).unwrap(), fs::read(Config::path(dir.path())).unwrap());
}

/// Gives a node a bus that is writing a line just now.
fn with_bus(dir: &Path) {
    fs::create_dir(dir.join("msb")).unwrap();
    fs::write(dir.join("msb/bus.log"), "head\nfirst\nunfin").unwrap();
    fs::write(dir.join("msb/validator.key"), "0a1b2c-its-key").unwrap();
}

#[test]
fn the_bus_of_a_node_comes_back_with_its_key_and_without_a_line_that_is_being_written() {
    let (dir, _) = node(1);
    with_bus(dir.path());
    let out = tempfile::tempdir().unwrap();
    let (with, without) = (out.path().join("with.tar"), out.path().join("without.tar"));
    assert!(back_up(dir.path(), &with, true).with_bus());
    assert!(!back_up(dir.path(), &without, false).with_bus());
    let holds = |text: &str| fs::read(&without).unwrap().windows(text.len()).any(|part| part == text.as_bytes());
    assert!(!holds("0a1b2c-its-key") && !holds("head\nfirst"), "no secret without the key");
    let to = out.path().join("new");
    restored(&with, &to, None).unwrap();
    assert_eq!(fs::read_to_string(to.join("msb/bus.log")).unwrap(), "head\nfirst\n");
    for name in BUS {
        assert_eq!(fs::metadata(to.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::read_to_string(to.join("msb/validator.key")).unwrap(), "0a1b2c-its-key");
    let none = out.path().join("none");
    fs::remove_dir_all(dir.path().join("msb")).unwrap();
    back_up(dir.path(), &none, true);
    restored(&none, &out.path().join("busless"), None).unwrap();
    assert!(!out.path().join("busless/msb").exists());
}

#[test]
fn a_copy_of_a_later_moment_than_the_state_forgets_what_was_run_since() {
    let mut made = Made::new(5);
    for _ in 0..6 {
        let plan = made.full();
        made.close(plan, |_| {});
    }
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    made.store(dir.path());
    fs::create_dir(copy.path().join("hist")).unwrap();
    Archive::open(dir.path()).unwrap().copy_to(&copy.path().join("hist/ledger.db"), &mut |_, _| {}).unwrap();
    let mut store = crate::ledger::Store::open(copy.path()).unwrap();
    store.rewind(4).unwrap();
    assert!(store.rewind(5).is_err(), "it was forgotten");
    let journal = store.load(made.shared.input_window).unwrap().unwrap();
    assert_eq!((journal.seq(), journal.unexecuted.len(), journal.result.unwrap().body.of_seq), (6, 2, 4));
    store.close().unwrap();
    let report =
        crate::verify::verify(&mut Archive::open(copy.path()).unwrap(), Default::default(), &mut |_, _| {}).unwrap();
    assert_eq!((report.to, report.diverged), (6, vec![]));
    // The node's own is as it was.
    assert_eq!(Archive::open(dir.path()).unwrap().stands().unwrap().executed, 6);
}

/// A backup with one more entry, first of all or last of all, and with the others but for one that is left out.
fn changed(
    file: &Path,
    leave_out: &str,
    first: &[(Header, Vec<u8>, Vec<u8>)],
    last: &[(Header, Vec<u8>, Vec<u8>)],
) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    let add = |tar: &mut Builder<Vec<u8>>, entries: &[(Header, Vec<u8>, Vec<u8>)]| {
        for (header, _, bytes) in entries {
            tar.append(header, Cursor::new(bytes)).unwrap();
        }
    };
    add(&mut tar, first);
    let mut old = tar::Archive::new(fs::File::open(file).unwrap());
    for entry in old.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path_bytes().as_ref() != leave_out.as_bytes() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            tar.append(&entry.header().clone(), Cursor::new(bytes)).unwrap();
        }
    }
    add(&mut tar, last);
    tar.into_inner().unwrap()
}

/// An entry with this name as it stands there, which the tar crate would not write.
fn entry(kind: EntryType, name: &str, target: &str, bytes: &[u8]) -> (Header, Vec<u8>, Vec<u8>) {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o4777);
    header.set_cksum();
    (header, Vec::new(), bytes.to_vec())
}

#[test]
fn nothing_of_a_hostile_backup_gets_outside_or_into_place() {
    let (dir, _) = node(2);
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("backup.tar");
    back_up(dir.path(), &file, true);
    let victim = out.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let far = victim.to_str().unwrap();
    let hostile = [
        (vec![entry(EntryType::Regular, "../evil", "", b"x")], "which leads elsewhere"),
        (vec![entry(EntryType::Regular, "state/../../evil", "", b"x")], "which leads elsewhere"),
        (vec![entry(EntryType::Regular, "/tmp/evil", "", b"x")], "which leads elsewhere"),
        (vec![entry(EntryType::Regular, "./state", "", b"x")], "which leads elsewhere"),
        (vec![entry(EntryType::Regular, "run/lock", "", b"x")], "which is no part of a backup"),
        (vec![entry(EntryType::Regular, "hist/silent", "", b"")], "which is no part of a backup"),
        (vec![entry(EntryType::Regular, "evil", "", b"x")], "which is no part of a backup"),
        (vec![entry(EntryType::Directory, "cfg/hp.cfg", "", b"")], "of a kind that no backup has"),
        (vec![entry(EntryType::Regular, "state", "", b"x")], "of a kind that no backup has"),
        (vec![entry(EntryType::Symlink, "bin", far, b"")], "of a kind that no backup has"),
        (vec![entry(EntryType::Symlink, "hist/ledger.db", far, b"")], "of a kind that no backup has"),
        (vec![entry(EntryType::Regular, "state/deep/file", "", b"x")], "before the folder that it is in"),
        (
            vec![
                entry(EntryType::Directory, "private", "", b""),
                entry(EntryType::Symlink, "private/way", far, b""),
                entry(EntryType::Regular, "private/way/evil", "", b"x"),
            ],
            "before the folder that it is in",
        ),
        (
            vec![
                entry(EntryType::Directory, "private", "", b""),
                entry(EntryType::Symlink, "private/way", far, b""),
                entry(EntryType::Directory, "private/way", "", b""),
            ],
            "cannot create",
        ),
        (
            vec![
                entry(EntryType::Directory, "private", "", b""),
                entry(EntryType::Link, "private/hard", "/etc/passwd", b""),
            ],
            "of a kind that no backup has",
        ),
        (
            vec![entry(EntryType::Directory, "private", "", b""), entry(EntryType::Char, "private/null", "", b"")],
            "of a kind",
        ),
        (
            vec![entry(EntryType::Directory, "private", "", b""), entry(EntryType::Fifo, "private/fifo", "", b"")],
            "of a kind",
        ),
    ];
    let bad = out.path().join("bad.tar");
    let to = out.path().join("new");
    for (entries, expected) in hostile {
        fs::write(&bad, changed(&file, "", &entries, &[])).unwrap();
        let told = format!("{:#}", anyhow::Error::new(restored(&bad, &to, None).unwrap_err()));
        assert!(told.contains(expected), "{told}, expected {expected}");
        assert!(!to.exists() && fs::read_dir(&victim).unwrap().next().is_none(), "{told}");
        assert!(!out.path().join("evil").exists() && !Path::new("/tmp/evil").exists());
    }
    let mut names: Vec<_> = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["backup.tar", "bad.tar", "victim"], "nothing is left over");
}

#[test]
fn a_backup_that_was_cut_or_changed_anywhere_is_refused() {
    let (dir, _) = node(2);
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("backup.tar");
    back_up(dir.path(), &file, true);
    let (bad, to) = (out.path().join("bad.tar"), out.path().join("new"));
    let told = |bytes: Vec<u8>| {
        fs::write(&bad, bytes).unwrap();
        let told = format!("{:#}", anyhow::Error::new(restored(&bad, &to, None).unwrap_err()));
        assert!(!to.exists());
        told
    };
    let whole = fs::read(&file).unwrap();
    for (without, expected) in [
        ("manifest.json", "its manifest is missing"),
        ("bin/contract", "\"bin/contract\" is missing"),
        ("state/tool", "its state has root"),
        ("hist/ledger.db", "\"hist/ledger.db\" is missing"),
    ] {
        let told = told(changed(&file, without, &[], &[]));
        assert!(told.contains(expected), "{told}");
    }
    let more = changed(&file, "", &[entry(EntryType::Directory, "private2", "", b"")], &[]);
    assert!(told(more).contains("no part of a backup"));
    let behind = changed(&file, "", &[], &[entry(EntryType::Directory, "bin", "", b"")]);
    assert!(told(behind).contains("behind its manifest"));
    for cut in [0, 1, 511, 512, 5_000, whole.len() / 2, whole.len() - 4_000] {
        told(whole[..cut].to_vec());
    }
    // A byte of each file's content.
    let place = |text: &str| whole.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    for at in [place("program"), place("[consensus]"), place("SQLite format 3"), place("\"state_root\"") + 20] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        told(bytes);
    }
    let mut state = whole.clone();
    let at = state.windows(600).position(|window| window.iter().all(|byte| *byte == 7)).unwrap();
    state[at + 300] ^= 1;
    assert!(told(state).contains("its state has root"));
}
