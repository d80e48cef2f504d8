//! What a contract's author uses, `hp exec` and `hp check`, on small contracts written here and on the examples.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::net::compile;

/// A folder with the folder of a contract in it.
struct Author(TempDir);

/// How a call of `hp` ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Author {
    fn of(contract: &str) -> Author {
        let author = Author(tempfile::tempdir().expect("a folder"));
        fs::create_dir_all(author.path("c/bin")).expect("a folder");
        author.write(contract);
        author
    }

    fn write(&self, contract: &str) {
        let file = self.path("c/bin/contract");
        fs::write(&file, contract).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("changed");
    }

    /// What `hp check` finds, with one ledger of two users: for each trial that differs its name, what differs, and why.
    fn check(&self, code: i32, args: &[&str]) -> Vec<[String; 3]> {
        fs::write(
            self.path("inputs"),
            "{\"user\":\"alice\",\"input\":\"a\\n\"}\n{\"user\":\"bob\",\"input\":\"b\\n\"}\n",
        )
        .expect("written");
        let report = self.json(code, &[&["check", "c", "--inputs", "inputs"], args].concat());
        let trials = report["trials"].as_array().expect("a list");
        // Where nothing makes equal runs alike there is nothing to compare with.
        let not_tried = trials.iter().filter(|trial| trial["result"] == "not tried").count();
        assert!(not_tried < 6 || trials[0]["result"] == "differs", "{report}");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let causes =
            |found: &Value| found["causes"].as_array().expect("a list").iter().map(text).collect::<Vec<_>>().join(", ");
        let found = trials.iter().filter(|trial| trial["result"] == "differs");
        found.map(|trial| [text(&trial["name"]), text(&trial["found"]["what"]), causes(&trial["found"])]).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn state(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path("c/state").join(name)).ok()
    }

    fn hp(&self, args: &[&str]) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_hp"))
            .args(args)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .expect("hp runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Ended { code: output.status.code().expect("an exit code"), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Calls `hp` for an object, which comes with this exit code.
    fn json(&self, code: i32, args: &[&str]) -> Value {
        let ended = self.hp(&[args, &["--json"]].concat());
        assert_eq!((ended.code, ended.err.as_str()), (code, ""), "{args:?}: {}", ended.out);
        serde_json::from_str(&ended.out).expect("an object")
    }
}

/// Everything in a folder: path and content.
fn files(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push((path.clone(), fs::read(&path).ok()));
    }
    found.sort();
    found
}

/// Answers each user with what they sent, and adds it to state/log.
const ECHO: &str = r#"#!/bin/sh
tr -d ' \t\r\n' | sed 's/.*"user":{\([^}]*\)}.*/\1/' | tr -d '"[' | tr ']:,' '\n  ' |
while read -r key input output; do
    [ -n "$key" ] || continue
    cat "/dev/fd/$input" >state/tmp
    cat state/tmp >>state/log
    cat state/tmp >"/dev/fd/$output"
    rm state/tmp
done
echo "I was here"
"#;

#[test]
fn a_run_shows_outputs_state_and_logs_and_changes_nothing_of_the_folder() {
    let author = Author::of(ECHO);
    fs::create_dir(author.path("c/state")).expect("a folder");
    fs::write(author.path("c/state/log"), "before\n").expect("written");
    fs::write(author.path("file"), b"\xff\x00").expect("written");
    let before = files(&author.path("c"));
    let args = ["exec", "c", "--user", "bob", "--user", "carol=file", "--text", "alice=one\n", "--text", "alice=two\n"];
    let run = author.json(0, &[&args[..], &["--seq", "7", "--time", "1700000100"]].concat());
    assert_eq!((&run["ok"], run["status"].as_str()), (&Value::Bool(true), Some("ok")), "{run}");
    let of = |name: &str| run["users"].as_array().expect("a list").iter().find(|user| user["name"] == name).cloned();
    assert_eq!(of("alice").expect("there")["output"]["text"], "one\ntwo\n");
    assert_eq!(of("bob").expect("there")["output"]["bytes"], 0);
    assert_eq!(of("carol").expect("there")["output"]["hex"], "ff00");
    let stdin = &run["stdin"];
    assert_eq!(
        (&stdin["seq"], stdin["time"].as_str(), &stdin["readonly"]),
        (&7.into(), Some("1700000100"), &false.into())
    );
    assert_eq!(stdin["user"].as_object().expect("users").len(), 3);
    assert_eq!((&run["state"]["changed"], &run["state"]["paths"][0]["path"]), (&1.into(), &"log".into()), "{run}");
    assert_eq!(run["stdout"]["text"], "I was here\n");
    assert_eq!(files(&author.path("c")), before, "the folder is as it was");
    assert_eq!(run["users"], author.json(0, &args)["users"], "names have the same keys again");

    let shown = author.hp(&["exec", "c", "--text", "alice=one"]);
    for part in
        ["status     ok, ", "gets 3 bytes\n    one\n", "    ~ log  10 bytes, was 7 bytes\n      + one\n", "I was here"]
    {
        assert!(shown.out.contains(part), "{part:?} in {}", shown.out);
    }
    assert!(!shown.out.contains('\x1b'), "no colours in a pipe");
}

#[test]
fn what_a_run_wrote_is_kept_on_demand_and_only_when_it_ended_well() {
    let author = Author::of(ECHO);
    let run = author.json(0, &["exec", "c", "--text", "alice=one\n", "--commit"]);
    assert_eq!((&run["state"]["committed"], author.state("log").as_deref()), (&true.into(), Some("one\n")));
    author.json(0, &["exec", "c", "--text", "alice=two\n", "--commit"]);
    assert_eq!(author.state("log").as_deref(), Some("one\ntwo\n"));
    let run = author.json(0, &["exec", "c", "--text", "alice=x", "--readonly"]);
    assert_eq!((&run["stdin"]["readonly"], &run["state"]["changed"]), (&true.into(), &1.into()));

    for (end, status) in
        [("exit 3", "exit code 3"), ("kill -9 $$", "signal 9"), ("mkfifo state/f", "forbidden kind of file in state/")]
    {
        author.write(&format!("{ECHO}echo 1 >state/new\n{end}\n"));
        let run = author.json(1, &["exec", "c", "--text", "alice=x", "--commit"]);
        assert_eq!((run["status"].as_str(), &run["users"][0]["output"]["bytes"]), (Some(status), &0.into()), "{run}");
        let left: Vec<_> = files(&author.path("c/state")).into_iter().map(|(path, _)| path).collect();
        assert_eq!(left, [author.path("c/state/log")], "{end}");
        let of = if end.starts_with("mkfifo") { &run["forbidden"]["path"] } else { &run["state"]["paths"][1]["path"] };
        assert_eq!(of, if end.starts_with("mkfifo") { "f" } else { "new" }, "what it did is told");
    }
    author.write("#!/no/such/interpreter\n");
    assert_eq!(author.json(1, &["exec", "c"])["status"], "exit code 127");
    let ended = author.hp(&["exec", "c", "--binary", "bin/none"]);
    assert!(ended.code == 1 && ended.err.contains("there is no executable c/bin/none"), "{}", ended.err);
}

#[test]
fn a_nodes_folder_gives_its_settings_and_neither_its_keys_nor_its_state() {
    let author = Author::of("#!/bin/sh\necho \"$1 $GREETING\"; ls cfg; cat private/key; touch state/x\n");
    author.hp(&["new", "node", "--binary", "bin/contract"]);
    fs::rename(author.path("c/bin"), author.path("node/bin"))
        .or_else(|_| fs::copy(author.path("c/bin/contract"), author.path("node/bin/contract")).map(drop))
        .expect("moved");
    fs::create_dir_all(author.path("node/private")).expect("a folder");
    fs::write(author.path("node/private/key"), "mine\n").expect("written");
    fs::create_dir_all(author.path("node/hist")).expect("a folder");
    let file = author.path("node/cfg/hp.cfg");
    let text = fs::read_to_string(&file).expect("there") + "\n[contract.env]\nGREETING = \"hi\"\n";
    fs::write(&file, text).expect("written");
    let run = author.json(0, &["exec", "node", "--binargs", "one two"]);
    assert_eq!(run["stdout"]["text"], "one hi\nmine\n", "{run}");
    assert!(run["stdin"]["private"].as_str().is_some_and(|path| path.ends_with("/private")));
    let ended = author.hp(&["exec", "node", "--commit"]);
    assert!(ended.code == 1 && ended.err.contains("is a node's folder"), "{}", ended.err);
}

/// A contract that writes what the shell makes of these commands to state/x.
fn shell(commands: &str) -> String {
    format!("#!/bin/sh\nexec >state/x\n{commands}\n")
}

/// That `hp check` finds this cause in a contract of which equal runs differ.
fn again(contract: &str, cause: &str) {
    let found = Author::of(contract).check(1, &["--runs", "2"]);
    // With the cause held still others may show: an address follows from the environment, too.
    assert_eq!(found.first(), Some(&["again", "state/x", cause].map(str::to_owned)), "{contract}");
}

#[test]
fn a_check_finds_each_thing_that_a_contract_depends_on_and_tells_it_from_the_others() {
    let contract = r#"#!/usr/bin/python3
import json, os, sys, time
facts = json.load(sys.stdin)
def write(name, what):
    with open("state/" + name, "w") as file:
        file.write(str(what))
umask = os.umask(0o022)
write("clock", int(time.time()) // 86400)
write("environment", os.environ.get("USER"))
write("locale", os.environ["TZ"])
write("folder", os.getcwd())
write("host name", os.uname().nodename)
write("umask", umask)
write("node", facts["pubkey"])
write("descriptors", facts["npl"][0])
by_number = sorted(facts["user"], key=lambda user: facts["user"][user][0])
write("order of users", " ".join(by_number))
write("python", hash("x") if "PYTHONHASHSEED" in os.environ else 0)
with open(facts["npl"][1], "wb") as line:
    line.write(b"hello")
with open(facts["npl"][0], "rb") as line:
    write("party line", line.read().count(b"hello"))
"#;
    let found = Author::of(contract).check(1, &["--runs", "1"]);
    let expected = [
        "clock",
        "hash order",
        "environment",
        "locale",
        "descriptors",
        "order of users",
        "folder",
        "umask",
        "host name",
        "node",
        "party line",
    ];
    let expected = expected.map(|name| {
        let path = if name == "hash order" { "python" } else { name };
        [name.to_owned(), format!("state/{path}"), name.to_owned()]
    });
    assert_eq!(found, expected);
}

#[test]
fn a_check_finds_what_is_another_thing_in_each_run() {
    again(&shell("od -An -tx1 -N8 /dev/urandom"), "randomness");
    again(&shell("echo $$"), "process id");
    again(&shell("date +%N"), "clock");
    again("#!/usr/bin/python3\nopen('state/x', 'w').write(str(hash('x')))\n", "hash order");
    again("#!/usr/bin/python3 -IS\nopen('state/x', 'w').write(str(id(object())))\n", "addresses");
}

#[test]
fn a_check_finds_the_order_of_a_folder() {
    if fs::metadata("/dev/shm").is_err() {
        return println!("skipped: no second file system here");
    }
    let author = Author::of(&shell("for name in c a d b e; do touch state/$name; done; ls -U state"));
    assert_eq!(author.check(1, &["--runs", "1"]), [["directory order", "state/x", "directory order"]]);
    author.write(&shell("for name in c a d b e; do touch state/$name; done; ls state"));
    assert!(author.check(0, &["--runs", "1"]).is_empty());
}

#[test]
fn a_check_finds_a_race_of_threads() {
    let author = Author::of("");
    let binary = author.path("c/bin/contract");
    fs::remove_file(&binary).expect("removed");
    compile("race.c", &binary);
    let found = author.check(1, &["--runs", "4"]);
    assert!(
        !found.is_empty() && found.iter().all(|[_, what, cause]| what == "state/x" && cause.contains("thread timing")),
        "{found:?}"
    );
}

#[test]
fn a_check_finds_nothing_in_the_examples_and_says_what_it_could_not_try() {
    for example in ["directory/directory.py", "counter/counter.sh", "chat/chat.js"] {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("contracts").join(example);
        let author = Author::of(&fs::read_to_string(program).expect("there"));
        assert!(author.check(0, &["--runs", "1"]).is_empty(), "{example}");
    }
    let author = Author::of("#!/bin/sh\nexit 3\n");
    let told = author.hp(&["check", "c", "--runs", "1"]);
    assert_eq!((told.code, told.err.as_str()), (0, ""), "{}", told.out);
    for part in [
        "party line       not tried  ",
        "the run of ledger 5 fails (exit code 3)",
        "nothing differed in 5 ledgers",
        "--inputs",
    ] {
        assert!(told.out.contains(part), "{part:?} in {}", told.out);
    }
    let report = author.hp(&["check", "c", "--inputs", "none"]);
    assert!(report.code == 1 && report.err.contains("cannot read the input none"), "{}", report.err);
}
