//! The `hp` command as its user sees it: exit codes, texts, files.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use hotpocket::config::{Config, Document};
use tempfile::TempDir;

const LEGACY: &str = include_str!("../golden/legacy-node-a.hp.cfg");
const LEGACY_KEY: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";

/// How a call of `hp` ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// Calls `hp` in a folder, with arguments split on spaces.
fn hp(folder: &TempDir, args: &str) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_hp"))
        .args(args.split(' ').filter(|arg| !arg.is_empty()))
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// Calls `hp` and expects it to answer.
fn answer(folder: &TempDir, args: &str) -> String {
    let ended = hp(folder, args);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "hp {args}");
    ended.out
}

/// Calls `hp` and expects it to fail with one error line.
fn error(folder: &TempDir, args: &str, code: i32) -> String {
    let ended = hp(folder, args);
    assert_eq!((ended.code, ended.out.as_str()), (code, ""), "hp {args}: {}", ended.err);
    assert!(ended.err.starts_with("error: ") && ended.err.ends_with('\n'), "{}", ended.err);
    ended.err
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn load(folder: &TempDir, node: &str) -> Config {
    Config::load(&folder.path().join(node)).unwrap()
}

fn read(folder: &TempDir, file: &str) -> String {
    fs::read_to_string(folder.path().join(file)).unwrap()
}

/// Writes a file as its owner's secret.
fn write(folder: &TempDir, file: &str, text: &str) {
    let path = folder.path().join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Every path below a folder, with the content of files.
fn snapshot(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        found.push((path.display().to_string(), fs::read(&path).unwrap_or_default()));
        if path.is_dir() {
            found.extend(snapshot(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn new_makes_a_folder_that_is_right_at_once() {
    let folder = folder();
    let told = answer(&folder, "new a/node");
    let config = load(&folder, "a/node");
    assert!(told.contains(&format!("key       {}\n", config.key)), "{told}");
    assert!(told.contains("Next: put the executable at a/node/bin/contract"), "{told}");
    assert_eq!((config.unl.as_slice(), config.argv.as_slice()), (&[config.key][..], &["bin/contract".to_owned()][..]));
    assert_eq!(mode(&folder.path().join("a/node/cfg/hp.cfg")), 0o600);
    let mut names: Vec<String> = snapshot(&folder.path().join("a/node")).into_iter().map(|(name, _)| name).collect();
    names.iter_mut().for_each(|name| *name = name.rsplit("a/node/").next().unwrap().to_owned());
    assert_eq!(names, ["bin", "cfg", "cfg/hp.cfg", "hist", "log", "state"]);
    let text = read(&folder, "a/node/cfg/hp.cfg");
    let drawn = Document::new(&config.secret, config.contract.id, config.contract.genesis_time_ms, &config.unl);
    assert_eq!(text, drawn.text());
    assert!(!told.contains(&config.secret.to_hex()[..64]), "the secret is not told");
}

#[test]
fn two_new_folders_are_of_two_contracts_and_have_two_keys() {
    let folder = folder();
    answer(&folder, "new a");
    answer(&folder, "new b --binary /bin/cat");
    let (a, b) = (load(&folder, "a"), load(&folder, "b"));
    assert_ne!((a.key, a.contract.id), (b.key, b.contract.id));
    assert!(a.key != b.key && a.contract.id != b.contract.id);
    assert_eq!(b.binary, Path::new("/bin/cat"));
}

#[test]
fn new_on_an_existing_folder_fails_and_changes_nothing() {
    let folder = folder();
    answer(&folder, "new node");
    for args in ["new node", "node -n", "new node --join node/cfg/hp.cfg"] {
        let before = snapshot(folder.path());
        let told = error(&folder, args, 1);
        assert_eq!(told, "error: node/cfg/hp.cfg exists already; nothing was changed\n");
        assert_eq!(snapshot(folder.path()), before, "{args}");
    }
    fs::create_dir_all(folder.path().join("old/hist")).unwrap();
    fs::write(folder.path().join("old/hist/ledger"), "x").unwrap();
    let before = snapshot(folder.path());
    assert!(error(&folder, "new old", 1).contains("old/hist holds a history"));
    fs::write(folder.path().join("file"), "x").unwrap();
    assert!(error(&folder, "new file", 1).starts_with("error: cannot read file/hist: "));
    fs::remove_file(folder.path().join("file")).unwrap();
    assert_eq!(snapshot(folder.path()), before);
}

#[test]
fn a_wrong_file_to_join_leaves_nothing_behind() {
    let folder = folder();
    assert!(error(&folder, "new b --join nowhere", 3).starts_with("error: cannot read nowhere: No such file"));
    write(&folder, "hp.cfg", &LEGACY.replace("22860", "x"));
    assert!(error(&folder, "new b --join hp.cfg", 3).contains("hp.cfg: peerport: expected a whole number"));
    assert!(error(&folder, "new b --binary=", 1).contains("--binary: expected a path"));
    assert!(!folder.path().join("b").exists());
}

#[test]
fn joining_takes_over_the_network_with_a_key_of_its_own() {
    let folder = folder();
    answer(&folder, "new a --binary bin/chat");
    let text = read(&folder, "a/cfg/hp.cfg")
        .replace("threshold = 80", "threshold = 75")
        .replace("ip = \"127.0.0.1\"", "ip = \"192.0.2.7\"")
        .replace("binargs = []", "binargs = \"-x -y\"");
    write(&folder, "a/cfg/hp.cfg", &text);
    let told = answer(&folder, "new b --join a/cfg/hp.cfg");
    let (a, b) = (load(&folder, "a"), load(&folder, "b"));
    assert_eq!((a.cfg_hash(), &a.contract, &a.unl, &a.argv), (b.cfg_hash(), &b.contract, &b.unl, &b.argv));
    assert_eq!(b.peers, ["192.0.2.7:22860".parse().unwrap()]);
    assert!(a.key != b.key && !b.is_member());
    assert!(told.contains(&format!("\n    \"{}\",\n", b.key)), "{told}");
    assert!(told.contains("Both nodes listen on port 22860"), "{told}");

    // The line as it is told, put into `unl` of both, makes both members of one network.
    for node in ["a", "b"] {
        let file = format!("{node}/cfg/hp.cfg");
        let line = format!("unl = [\n    \"{}\",", b.key);
        write(&folder, &file, &read(&folder, &file).replace("unl = [", &line));
    }
    let (a, b) = (load(&folder, "a"), load(&folder, "b"));
    assert!(a.unl == b.unl && a.is_member() && b.is_member() && a.quorum() == 2);
}

#[test]
fn the_prototype_s_network_can_be_joined() {
    let folder = folder();
    write(&folder, "old.cfg", LEGACY);
    answer(&folder, "new b --join old.cfg");
    write(&folder, "old/cfg/hp.cfg", LEGACY);
    let (old, b) = (load(&folder, "old"), load(&folder, "b"));
    assert_eq!((old.contract, old.unl, old.pubmaxsize), (b.contract, b.unl, b.pubmaxsize));
    assert_eq!(b.peers, ["0.0.0.0:22861".parse().unwrap(), "127.0.0.1:22860".parse().unwrap()]);
}

#[test]
fn rekey_gives_a_new_key_and_keeps_the_old_file() {
    let folder = folder();
    answer(&folder, "new node");
    let (old, old_text) = (load(&folder, "node"), read(&folder, "node/cfg/hp.cfg"));
    let told = answer(&folder, "rekey node");
    let new = load(&folder, "node");
    assert!(new.key != old.key && new.is_member() && !new.unl.contains(&old.key));
    let text = read(&folder, "node/cfg/hp.cfg");
    let expected = old_text
        .replace(&old.secret.to_hex(), &new.secret.to_hex())
        .replace(&old.key.to_string(), &new.key.to_string());
    assert_eq!(text, expected);
    assert!(told.contains(&format!("  old  {}\n  new  {}\n", old.key, new.key)), "{told}");
    assert!(!told.contains(&new.secret.to_hex()[..64]) && !told.contains(&old.secret.to_hex()[..64]));
    let cfg = folder.path().join("node/cfg");
    assert_eq!((mode(&cfg.join("hp.cfg")), mode(&cfg.join("hp.cfg.old"))), (0o600, 0o600));
    assert_eq!(read(&folder, "node/cfg/hp.cfg.old"), old_text);

    answer(&folder, "node -k");
    assert_eq!(read(&folder, "node/cfg/hp.cfg.old"), old_text, "the first old key is still there");
    assert_eq!(read(&folder, "node/cfg/hp.cfg.old.2"), text);
    assert_eq!(snapshot(&cfg).len(), 3);
}

#[test]
fn rekey_changes_the_prototype_s_file_and_a_key_file_in_place() {
    let folder = folder();
    write(&folder, "old/cfg/hp.cfg", LEGACY);
    answer(&folder, "rekey old");
    let new = load(&folder, "old");
    let expected =
        LEGACY.replace(&("01".repeat(32) + LEGACY_KEY), &new.secret.to_hex()).replace(LEGACY_KEY, &new.key.to_string());
    assert_eq!(read(&folder, "old/cfg/hp.cfg"), expected);

    answer(&folder, "new node");
    let config = load(&folder, "node");
    let line = format!("seckey = \"{}\"", config.secret.to_hex());
    let text = read(&folder, "node/cfg/hp.cfg").replace(&line, "seckey_file = \"key\"");
    write(&folder, "node/cfg/hp.cfg", &text);
    write(&folder, "node/key", &config.secret.to_hex());
    answer(&folder, "rekey node");
    let new = load(&folder, "node");
    assert!(new.key != config.key && new.is_member());
    assert_eq!(read(&folder, "node/key"), format!("{}\n", new.secret.to_hex()));
    assert_eq!(read(&folder, "node/key.old"), config.secret.to_hex());
    assert_eq!(mode(&folder.path().join("node/key")), 0o600);
}

#[test]
fn rekey_with_a_history_needs_force_and_says_why() {
    let folder = folder();
    answer(&folder, "new node");
    fs::write(folder.path().join("node/hist/ledger"), "x").unwrap();
    let before = snapshot(folder.path());
    assert!(error(&folder, "rekey node", 1).contains("the network knows this node by its old key"));
    assert_eq!(snapshot(folder.path()), before);
    let old = load(&folder, "node").key;
    answer(&folder, "rekey node --force");
    assert_ne!(load(&folder, "node").key, old);
    assert!(error(&folder, "rekey nowhere", 3).contains("nowhere is not a contract folder"));
}

#[test]
fn rekey_of_a_running_node_ends_with_5_and_changes_nothing() {
    let folder = folder();
    answer(&folder, "new node");
    write(&folder, "node/run/lock", "");
    let lock = fs::File::open(folder.path().join("node/run/lock")).unwrap();
    lock.lock().unwrap();
    let before = snapshot(folder.path());
    assert_eq!(error(&folder, "rekey node --force", 5), "error: node/run/lock is locked: the node is running\n");
    assert_eq!(snapshot(folder.path()), before);
    drop(lock);
    answer(&folder, "rekey node");
}

#[test]
fn rekey_keeps_mode_and_link_of_the_file() {
    let folder = folder();
    answer(&folder, "new node");
    let (file, real) = (folder.path().join("node/cfg/hp.cfg"), folder.path().join("real.cfg"));
    fs::rename(&file, &real).unwrap();
    std::os::unix::fs::symlink(&real, &file).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o400)).unwrap();
    let old = load(&folder, "node").key;
    answer(&folder, "rekey node");
    assert_ne!(load(&folder, "node").key, old);
    assert!(fs::symlink_metadata(&file).unwrap().is_symlink());
    assert_eq!((mode(&real), mode(&folder.path().join("real.cfg.old"))), (0o400, 0o600));
}

#[test]
fn config_check_says_ok_what_is_tolerated_and_what_is_odd() {
    let folder = folder();
    answer(&folder, "new node");
    let told = answer(&folder, "config check node");
    assert!(
        told.starts_with(
            "ok\nUNL 1, quorum 1: one node alone decides\n4096 users, 3072 of them connected here; a run of"
        ),
        "{told}"
    );
    assert!(told.contains(" here\nnote: no `pubport`"), "{told}");
    assert!(told.contains("note: binary node/bin/contract cannot be found: No such file"), "{told}");
    fs::write(folder.path().join("node/bin/contract"), "x").unwrap();
    assert!(answer(&folder, "config check node").contains("node/bin/contract is not executable (chmod +x"));

    let keys: String = (1..4).map(|i| format!("    \"{}\",\n", format!("0{i}").repeat(32))).collect();
    let text = read(&folder, "node/cfg/hp.cfg")
        .replace("unl = [\n", &format!("unl = [\n{keys}"))
        .replace("# pubport = 8080", "pubport = 8080")
        .replace("peers = []", "peers = [\"127.0.0.1:22860\"]")
        .replace("max_connections = 50", "max_connections = 2");
    write(&folder, "node/cfg/hp.cfg", &text);
    fs::set_permissions(folder.path().join("node/bin/contract"), fs::Permissions::from_mode(0o755)).unwrap();
    let told = answer(&folder, "config check node");
    let expected = "ok\n\
                    UNL 4, quorum 4: stops if any node is down; threshold 75 tolerates 1\n\
                    4096 users, 768 of them connected to each of 4 nodes of the UNL; FILES\n\
                    note: `ip` is 127.0.0.1: only nodes and users on this machine can connect\n\
                    note: `mesh.max_connections` is 2, but `unl` has 3 other nodes\n\
                    note: `peers` has 127.0.0.1:22860, which is this node itself\n";
    let files = told.lines().find_map(|line| line.split_once("UNL; ")).expect("it says what files there are").1;
    assert_eq!(told, expected.replace("FILES", files));
    let files = files.strip_prefix("a run of 4096 users needs 9248 open files, a process may have ");
    assert!(files.is_some_and(|rest| rest.strip_suffix(" here").is_some_and(|number| number.parse::<u64>().is_ok())));
}

#[test]
fn a_node_that_may_open_too_few_files_for_a_full_ledger_says_what_it_needs_and_does_not_start() {
    let folder = folder();
    answer(&folder, "new node");
    let binary = folder.path().join("node/bin/contract");
    fs::write(&binary, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let limited = |command: &str| {
        let script = format!("ulimit -n 4096 && exec {} {command} node", env!("CARGO_BIN_EXE_hp"));
        std::process::Command::new("sh").args(["-c", &script]).current_dir(folder.path()).output().unwrap()
    };
    let checked = String::from_utf8(limited("config check").stdout).unwrap();
    // Who may raise the limit does.
    if checked.contains("a process may have 4096 here") {
        let expected = "note: that is too few, and `hp run` refuses to start: allow it more (`ulimit -Hn 9248`, or \
                        LimitNOFILE=9248 in its service); or, for a chain that has not begun, set it to 1520 at most, on all nodes\n";
        assert!(checked.contains(expected), "{checked}");
        let run = limited("run");
        let told = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(3), "{told}");
        let expected =
            "node/cfg/hp.cfg is 4096, but a run of 4096 users needs 9248 open files, a process may have 4096 here";
        assert!(told.contains("user.users_max in ") && told.contains(expected), "{told}");
    }
}

#[test]
fn config_check_looks_at_this_folder_and_ends_with_3_if_it_is_wrong() {
    let folder = folder();
    assert!(error(&folder, "config check", 3).contains("has no cfg/hp.cfg"));
    write(&folder, "cfg/hp.cfg", LEGACY);
    let told = answer(&folder, "config check");
    assert!(told.contains("note: the file is the prototype's JSON"), "{told}");
    assert!(told.contains("`peers` has 0.0.0.0:22861, which reaches this machine only"), "{told}");
    write(&folder, "cfg/hp.cfg", &LEGACY.replace("roundtime", "roundtme"));
    let expected = "error: ./cfg/hp.cfg: roundtme: unknown key; the nearest is roundtime\n";
    assert_eq!(error(&folder, "config check", 3), expected);
    write(&folder, "cfg/hp.cfg", LEGACY);
    fs::set_permissions(folder.path().join("cfg/hp.cfg"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(error(&folder, "config check", 3).contains("mode is 0644"));
}

#[test]
fn the_documented_example_is_refused_for_its_known_key_until_rekeyed() {
    let folder = folder();
    write(&folder, "node/cfg/hp.cfg", hotpocket::config::EXAMPLE);
    assert!(error(&folder, "config check node", 3).contains("the published example's key"));
    answer(&folder, "rekey node");
    answer(&folder, "config check node");
}

#[test]
fn usage_ends_with_2_and_help_and_version_with_0() {
    let folder = folder();
    for args in ["", "nonsense", "new", "new a b", "config", "rekey --nonsense x"] {
        let ended = hp(&folder, args);
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "hp {args}");
        assert!(ended.err.contains("Usage: hp"), "hp {args}: {}", ended.err);
    }
    for args in ["--help", "help", "new --help", "rekey --help", "config check --help"] {
        let told = answer(&folder, args);
        assert!(told.contains("Example"), "hp {args}: {told}");
    }
    let version = format!("hp {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((answer(&folder, "version"), answer(&folder, "--version")), (version.clone(), version));
    assert!(hp(&folder, "confg").err.contains("'config'"), "the nearest subcommand is named");
}

#[test]
fn an_answer_that_nobody_reads_is_a_failure_and_no_panic() {
    let folder = folder();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_hp"))
        .arg("version")
        .current_dir(folder.path())
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.starts_with("error: cannot write the answer: ")), (Some(1), true), "{told}");
}
