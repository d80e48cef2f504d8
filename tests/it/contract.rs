//! Real programs as contracts: what they are given, what comes back, and that nothing of them is left.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hotpocket::{
    consensus::header::UnlChange,
    contract::{
        End, LaunchError, Launcher, Limits, NplIn, NplOut, NplPort, Overlay, RunReport, RunSpec, UserInput,
        fdlist::Facts, npl::write_frame,
    },
    crypto::SecretKey,
    types::{Auth, Hash, LimitKind, NodeKey, Status, UserKey},
};
use nix::{sys::signal, unistd::Pid};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Far longer than anything here takes, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

const OWN: NodeKey = NodeKey([0xa1; 32]);
const PEER: NodeKey = NodeKey([0xb2; 32]);

/// What every Python contract here begins with.
const PRELUDE: &str = r#"
import json, os, signal, sys, time
facts = json.load(sys.stdin)
users = facts["user"]
def read_all(fd):
    parts = []
    while part := os.read(fd, 1 << 20): parts.append(part)
    return b"".join(parts)
def write_all(fd, data):
    while data: data = data[os.write(fd, data):]
def daemon(code):
    "A process that nobody started: two forks and a session of its own. Comes back once its number is in the file."
    ready = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open("daemon.pid", "w").write(str(os.getpid()))
            os.close(ready[1])
            code()
        os._exit(0)
    os.close(ready[1])
    os.read(ready[0], 1)
"#;

/// A contract folder, and a launcher for it.
struct Rig {
    dir: TempDir,
    launcher: Launcher,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().expect("a temporary folder");
    Rig { dir, launcher: Launcher::start(Path::new(env!("CARGO_BIN_EXE_hp"))).expect("a launcher") }
}

impl Rig {
    fn python(&self, code: &str) -> RunSpec {
        self.spec("/usr/bin/env", &["python3", "-I", "-S", "-c", &format!("{PRELUDE}{code}")])
    }

    fn shell(&self, code: &str) -> RunSpec {
        self.spec("/bin/sh", &["-c", code])
    }

    fn spec(&self, binary: &str, args: &[&str]) -> RunSpec {
        RunSpec {
            binary: binary.into(),
            args: args.iter().map(ToString::to_string).collect(),
            dir: self.dir.path().to_owned(),
            env: Vec::new(),
            limits: Limits::default(),
            facts: Facts {
                lcl: Hash([1; 32]),
                seq: 7,
                time_ms: 1_568_193_881_250,
                pubkey: OWN,
                unl: vec![OWN],
                seed: Hash([2; 32]),
                contract: Hash([3; 32]),
                private: None,
                readonly: false,
                settlement: None,
            },
            users: Vec::new(),
            log_dir: self.dir.path().join("log/contract"),
            npl_window: Duration::from_millis(500),
            overlay: None,
        }
    }

    /// Runs without peers.
    async fn run(&self, spec: RunSpec) -> RunReport {
        self.try_run(spec).await.expect("the run has a result")
    }

    async fn try_run(&self, spec: RunSpec) -> Result<RunReport, LaunchError> {
        let (port, _peers) = npl_port();
        tokio::time::timeout(DEADLINE, self.launcher.run(spec, port)).await.expect("in time")
    }

    fn file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.dir.path().join(name)).ok().filter(|text| !text.is_empty())
    }

    async fn pid_in(&self, name: &str) -> Pid {
        wait_for(|| self.file(name).and_then(|text| text.parse().ok()).map(Pid::from_raw)).await
    }
}

struct Peers {
    from_contract: mpsc::Receiver<NplOut>,
    to_contract: mpsc::Sender<NplIn>,
}

fn npl_port() -> (NplPort, Peers) {
    let (out, from_contract) = mpsc::channel(4);
    let (to_contract, incoming) = mpsc::channel(4);
    (NplPort { out, incoming }, Peers { from_contract, to_contract })
}

fn user(number: u32, inputs: &[&[u8]]) -> UserInput {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    let inputs = inputs.iter().map(|input| Bytes::copy_from_slice(input)).collect();
    UserInput { key: UserKey(key), auth: Auth::Signed, inputs }
}

/// Bytes that are alike nowhere near.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

async fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    loop {
        ticks.tick().await;
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "the condition came true in time");
    }
}

/// A process that is dead but not reaped, as under an init that never reaps, does nothing any more.
fn is_gone(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

const ECHO: &str = r#"
for fds in users.values():
    write_all(fds[1], read_all(fds[0]))
"#;

fn ok(report: &RunReport) -> &BTreeMap<UserKey, Vec<u8>> {
    assert_eq!(report.end, End::Status(Status::Ok));
    &report.outputs
}

#[tokio::test]
async fn twelve_thousand_inputs_of_one_user_come_back_in_order() {
    let rig = rig();
    let bytes = pattern(12_000 * 64);
    let users = vec![user(1, &bytes.chunks(64).collect::<Vec<_>>())];
    let report = rig.run(RunSpec { users, ..rig.python(ECHO) }).await;
    assert!(ok(&report)[&user(1, &[]).key] == bytes);
}

#[tokio::test]
async fn a_mebibyte_input_and_a_contract_that_writes_before_it_reads_do_not_block_each_other() {
    let rig = rig();
    let big = pattern(1 << 20);
    let code = r#"
a, b = sorted(users)
write_all(users[b][1], b"x" * 3000000)
write_all(users[a][1], read_all(users[a][0]))
write_all(users[b][1], read_all(users[b][0]))
"#;
    let users = vec![user(1, &[&big]), user(2, &[b"small"])];
    let report = rig.run(RunSpec { users, ..rig.python(code) }).await;
    assert!(ok(&report)[&user(1, &[]).key] == big);
    assert!(ok(&report)[&user(2, &[]).key] == [&b"x".repeat(3_000_000)[..], b"small"].concat());
}

#[tokio::test]
async fn each_of_a_thousand_users_gets_the_own_input_back_and_silent_ones_get_nothing() {
    let rig = rig();
    let text = |number: u32| format!("I am {number}").into_bytes();
    let users: Vec<_> =
        (0..1000).map(|n| if n % 3 == 0 { user(n, &[]) } else { user(n, &[&text(n), b"", b"!"]) }).collect();
    let report = rig.run(RunSpec { users, ..rig.python(ECHO) }).await;
    let expected: BTreeMap<_, _> =
        (0..1000).filter(|n| n % 3 != 0).map(|n| (user(n, &[]).key, [text(n), b"!".to_vec()].concat())).collect();
    assert!(*ok(&report) == expected);
}

#[tokio::test]
async fn a_user_without_input_can_be_written_to() {
    let rig = rig();
    let code = r#"
for key, fds in users.items():
    write_all(fds[1], b"read %d" % len(read_all(fds[0])))
assert facts["auth"] == {}
"#;
    let report = rig.run(RunSpec { users: vec![user(1, &[])], ..rig.python(code) }).await;
    assert_eq!(ok(&report)[&user(1, &[]).key], b"read 0");
}

#[tokio::test]
async fn ten_megabytes_on_stdout_do_not_block_and_the_log_keeps_a_bounded_part() {
    let rig = rig();
    let spec = rig.python("write_all(1, b'x' * 10_000_000)\nwrite_all(2, b'oh\\n')");
    let limits = Limits { log_bytes_max: 100_000, ..spec.limits.clone() };
    ok(&rig.run(RunSpec { limits, ..spec }).await);
    let note = "--- ledger 7: 9900000 more bytes were not kept\n";
    let text = wait_for(|| rig.file("log/contract/stdout.log").filter(|text| text.ends_with(note))).await;
    assert_eq!(text.len(), "--- ledger 7\n".len() + 100_000 + 1 + note.len());
    let text = wait_for(|| rig.file("log/contract/stderr.log")).await;
    assert_eq!(text, "--- ledger 7\noh\n");
}

#[tokio::test]
async fn a_hang_is_killed_at_the_limit_with_the_daemon_it_started() {
    let rig = rig();
    let spec = rig.python("daemon(lambda: time.sleep(1000))\ntime.sleep(1000)");
    let limits = Limits { wall: Duration::from_millis(700), ..spec.limits.clone() };
    let report = rig.run(RunSpec { limits, users: vec![user(1, &[b"x"])], ..spec }).await;
    assert_eq!((report.end, report.left_over), (End::Overtime, 1));
    assert!(report.outputs.is_empty() && report.elapsed >= Duration::from_millis(700));
    assert!(is_gone(rig.pid_in("daemon.pid").await));
}

#[tokio::test]
async fn a_daemon_that_keeps_forking_away_is_dead_before_the_report() {
    let rig = rig();
    let code = r#"
def hop():
    n = 0
    while True:
        if os.fork(): os._exit(0)
        os.setsid()
        n += 1
        os.pwrite(beat, b"%09d" % n, 0)
beat = os.open("beat", os.O_RDWR | os.O_CREAT)
daemon(hop)
"#;
    ok(&rig.run(rig.python(code)).await);
    // A survivor would go on beating while another whole contract starts, runs and ends.
    let before = rig.file("beat");
    ok(&rig.run(rig.python("")).await);
    assert_eq!(rig.file("beat"), before);
}

#[tokio::test]
async fn a_tree_of_processes_in_sessions_of_their_own_is_dead_before_the_report() {
    let rig = rig();
    let code = r#"
ready = os.pipe()
def grow(depth):
    os.setsid()
    for _ in range(2):
        if depth and os.fork() == 0: grow(depth - 1)
    os.write(ready[1], b"%d\n" % os.getpid())
    time.sleep(1000)
if os.fork() == 0: grow(5)
pids = b""
while pids.count(b"\n") < 63: pids += os.read(ready[0], 1000)
open("pids", "wb").write(pids)
"#;
    let report = rig.run(rig.python(code)).await;
    assert_eq!((report.end, report.left_over), (End::Status(Status::Ok), 63));
    let pids = rig.file("pids").expect("written");
    assert!(pids.lines().all(|pid| is_gone(Pid::from_raw(pid.parse().unwrap()))));
}

#[tokio::test]
async fn a_child_that_holds_the_pipes_does_not_stretch_the_run() {
    let rig = rig();
    let code = "write_all(list(users.values())[0][1], b'done')\ndaemon(lambda: time.sleep(1000))";
    let report = rig.run(RunSpec { users: vec![user(1, &[])], ..rig.python(code) }).await;
    assert_eq!((ok(&report)[&user(1, &[]).key].as_slice(), report.left_over), (&b"done"[..], 1));
    assert!(report.elapsed < Duration::from_secs(20), "{:?}", report.elapsed);
}

#[tokio::test]
async fn the_end_of_the_main_process_is_the_status_and_drops_outputs_unless_it_is_zero() {
    let rig = rig();
    let write = "write_all(list(users.values())[0][1], b'half')\n";
    let ends = [
        ("sys.exit(3)", Status::Exit(3)),
        ("os.kill(os.getpid(), signal.SIGSEGV)", Status::Signal(11)),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", Status::Signal(35)),
        ("os.kill(os.getpid(), signal.SIGKILL)", Status::Signal(9)),
        ("os.kill(os.getpid(), signal.SIGTERM)", Status::Signal(15)),
    ];
    for (code, status) in ends {
        let spec = rig.python(&format!("{write}{code}"));
        let report = rig.run(RunSpec { users: vec![user(1, &[])], ..spec }).await;
        assert_eq!((report.end, report.outputs), (End::Status(status), BTreeMap::new()), "{code}");
    }
}

#[tokio::test]
async fn a_missing_binary_is_127_and_one_that_cannot_be_executed_126() {
    let rig = rig();
    fs::write(rig.dir.path().join("plain"), "no program").unwrap();
    fs::create_dir(rig.dir.path().join("folder")).unwrap();
    for (binary, code) in [("missing", 127), ("plain/under", 127), ("plain", 126), ("./folder", 126)] {
        let report = rig.run(rig.spec(binary, &[])).await;
        assert_eq!(report.end, End::Status(Status::Exit(code)), "{binary}");
    }
    ok(&rig.run(rig.shell("exit 0")).await);
}

#[tokio::test]
async fn a_relative_binary_counts_from_the_contract_folder() {
    let rig = rig();
    fs::create_dir(rig.dir.path().join("bin")).unwrap();
    std::os::unix::fs::symlink("/bin/sh", rig.dir.path().join("bin/contract")).unwrap();
    ok(&rig.run(rig.spec("bin/contract", &["-c", "test \"$0\" = bin/contract && test -L bin/contract"])).await);
}

#[tokio::test]
async fn trouble_of_this_machine_is_no_status() {
    let rig = rig();
    let spec = RunSpec { dir: rig.dir.path().join("gone"), ..rig.shell("exit 0") };
    assert!(matches!(rig.try_run(spec).await, Err(LaunchError::NotStarted { .. })));
    let spec = RunSpec { args: vec!["-c".into(), "a\0b".into()], ..rig.shell("") };
    assert!(matches!(rig.try_run(spec).await, Err(LaunchError::NotStarted { .. })));
    ok(&rig.run(rig.shell("exit 0")).await);
}

#[tokio::test]
async fn the_contract_has_this_environment_and_these_descriptors_and_no_others() {
    let rig = rig();
    let code = r#"
import resource
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
mask = os.umask(0)
status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if line.startswith("Sig"))
seen = {
    "env": {k: v for k, v in os.environ.items() if k != "LC_CTYPE"}, "cwd": os.getcwd(), "umask": mask, "fds": fds,
    "leader": os.getsid(0) == os.getpid() == os.getpgid(0),
    "blocked": int(status["SigBlk"], 16), "files": resource.getrlimit(resource.RLIMIT_NOFILE),
}
json.dump(seen, open("seen", "w"))
"#;
    let spec = RunSpec {
        env: vec![("GREETING".into(), "a b=c".into()), ("TZ".into(), "Asia/Colombo".into())],
        users: vec![user(1, &[b"x"]), user(2, &[])],
        // Without /usr/bin/env, which is free to add to it.
        binary: fs::canonicalize("/usr/local/bin/python3").or_else(|_| fs::canonicalize("/usr/bin/python3")).unwrap(),
        args: vec!["-I".into(), "-S".into(), "-c".into(), format!("{PRELUDE}{code}")],
        ..rig.shell("")
    };
    ok(&rig.run(spec).await);
    let seen: serde_json::Value = serde_json::from_str(&rig.file("seen").expect("written")).unwrap();
    let dir = fs::canonicalize(rig.dir.path()).unwrap();
    let env = serde_json::json!({
        "GREETING": "a b=c", "HOME": rig.dir.path(), "LANG": "C.UTF-8", "TZ": "Asia/Colombo",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": rig.dir.path().join("tmp"),
    });
    assert_eq!(seen["env"], env);
    // The number 3 is the listing itself.
    assert_eq!(seen["fds"], serde_json::json!([0, 1, 2, 3, 16, 17, 18, 19, 20, 21, 22]));
    assert_eq!((&seen["cwd"], &seen["umask"]), (&serde_json::json!(dir), &serde_json::json!(0o022)));
    assert_eq!((&seen["leader"], &seen["blocked"]), (&serde_json::json!(true), &serde_json::json!(0)));
    assert_eq!(seen["files"], serde_json::json!([1024 + 4 + 32, 1024 + 4 + 32]));
}

#[tokio::test]
async fn all_signals_are_at_their_defaults() {
    let rig = rig();
    ok(&rig.run(rig.spec("/bin/sh", &["-c", "exec cat /proc/self/status > status"])).await);
    let status = rig.file("status").expect("written");
    for set in ["SigIgn", "SigBlk", "ShdPnd"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{set} in {status}");
    }
}

#[tokio::test]
async fn a_signal_to_a_closed_pipe_ends_a_contract_as_usual() {
    let rig = rig();
    let report = rig.run(rig.shell("(exec 0<&-; sleep 0.01); yes | head -n 1; kill -PIPE $$")).await;
    assert_eq!(report.end, End::Status(Status::Signal(13)));
}

#[tokio::test]
async fn output_written_just_before_the_end_is_never_lost() {
    let rig = rig();
    for round in 0..20 {
        let code =
            "data = b'y' * 60000\nos.write(list(users.values())[0][1], data)\nos.kill(os.getpid(), 0)\nos._exit(0)";
        let report = rig.run(RunSpec { users: vec![user(1, &[])], ..rig.python(code) }).await;
        assert_eq!(ok(&report)[&user(1, &[]).key].len(), 60_000, "round {round}");
    }
}

#[tokio::test]
async fn a_contract_that_reads_nothing_harms_nobody() {
    let rig = rig();
    let big = pattern(1 << 20);
    for _ in 0..3 {
        ok(&rig.run(RunSpec { users: vec![user(1, &[&big])], ..rig.shell("exit 0") }).await);
    }
}

#[tokio::test]
async fn a_file_over_the_size_limit_is_a_status_of_its_own() {
    let rig = rig();
    let spec = rig.shell("exec head -c 3000000 /dev/zero > big");
    let limits = Limits { file_mb: 1, ..spec.limits.clone() };
    let report = rig.run(RunSpec { limits, ..spec }).await;
    assert_eq!(report.end, End::Status(Status::Limit(LimitKind::FileSize)));
}

#[tokio::test]
async fn output_over_either_limit_is_a_status_also_when_the_contract_ends_well() {
    let rig = rig();
    let two = |code: &str, limits: Limits| RunSpec {
        limits,
        users: vec![user(1, &[]), user(2, &[])],
        ..rig.python(&format!("out = [fds[1] for fds in users.values()]\n{code}"))
    };
    let limit = End::Status(Status::Limit(LimitKind::Output));
    let limits = Limits { output_user_bytes_max: 100, output_bytes_max: 150, ..Limits::default() };
    for (code, end) in [
        ("write_all(out[0], b'x' * 100)\nwrite_all(out[1], b'x' * 50)", End::Status(Status::Ok)),
        ("write_all(out[0], b'x' * 101)", limit),
        ("write_all(out[0], b'x' * 100)\nwrite_all(out[1], b'x' * 51)", limit),
        ("while True: write_all(out[0], b'x' * 100000)", limit),
        ("write_all(out[0], b'x' * 101)\ntime.sleep(1000)", limit),
    ] {
        let report = rig.run(two(code, limits.clone())).await;
        assert_eq!((report.end, report.outputs.is_empty()), (end, end == limit), "{code}");
    }
}

#[tokio::test]
async fn processor_time_and_memory_are_guarded() {
    let rig = rig();
    let spec = rig.shell("while :; do :; done");
    let limits = Limits { cpu_s: 1, ..spec.limits.clone() };
    assert_eq!(rig.run(RunSpec { limits, ..spec }).await.end, End::Status(Status::Signal(24)));
    let spec = rig.python("x = b'x' * (200 << 20)");
    let limits = Limits { memory_mb: 64, ..spec.limits.clone() };
    assert_eq!(rig.run(RunSpec { limits, ..spec }).await.end, End::Status(Status::Exit(1)));
}

/// Reads the party line to its end and tells the user what was there.
const NPL_TO_USER: &str =
    "os.close(facts['npl'][1])\nwrite_all(list(users.values())[0][1], read_all(facts['npl'][0]))\n";

#[tokio::test]
async fn a_lone_node_reads_its_own_messages_and_then_the_end_at_once() {
    let rig = rig();
    let code = format!("os.write(facts['npl'][1], b'hello')\n{NPL_TO_USER}");
    let spec = RunSpec { users: vec![user(1, &[])], npl_window: DEADLINE, ..rig.python(&code) };
    let report = rig.run(spec).await;
    assert_eq!(ok(&report)[&user(1, &[]).key], write_frame(OWN, b"hello"));
    assert_eq!(report.npl_frames, 1);
}

#[tokio::test]
async fn the_line_ends_when_the_last_message_a_peer_announced_is_there() {
    let rig = rig();
    let mut spec = RunSpec { users: vec![user(1, &[])], npl_window: DEADLINE, ..rig.python(NPL_TO_USER) };
    spec.facts.unl = vec![OWN, PEER];
    let (port, mut peers) = npl_port();
    let talk = async {
        assert_eq!(peers.from_contract.recv().await, Some(NplOut::End { frames: 0 }));
        let data = |text: &'static str| NplIn::Data { from: PEER, data: Bytes::from_static(text.as_bytes()) };
        for message in [data("one"), NplIn::End { from: PEER, frames: 2 }, data("two")] {
            peers.to_contract.send(message).await.expect("the line is open");
        }
        peers.to_contract.closed().await;
    };
    let (report, ()) = tokio::join!(rig.launcher.run(spec, port), talk);
    let report = report.expect("a result");
    assert_eq!(ok(&report)[&user(1, &[]).key], [write_frame(PEER, b"one"), write_frame(PEER, b"two")].concat());
}

#[tokio::test]
async fn the_line_ends_with_the_window_when_a_peer_is_silent() {
    let rig = rig();
    let code = format!("os.write(facts['npl'][1], b'hello')\n{NPL_TO_USER}");
    for window in [300, 3_000, 30_000].map(Duration::from_millis) {
        let mut spec = RunSpec { users: vec![user(1, &[])], npl_window: window, ..rig.python(&code) };
        spec.facts.unl = vec![OWN, PEER];
        let report = rig.run(spec).await;
        assert!(report.elapsed >= window);
        let heard = &ok(&report)[&user(1, &[]).key];
        if !heard.is_empty() {
            assert_eq!(*heard, write_frame(OWN, b"hello"));
            return;
        }
        // The window begins with the run. On a busy machine the interpreter may come up behind its end.
    }
    panic!("what the contract says is heard on its own line");
}

#[tokio::test]
async fn messages_written_just_before_the_end_reach_the_peers_in_pieces_and_in_order() {
    let rig = rig();
    let code = "write_all(facts['npl'][1], bytes(i % 251 for i in range(300000)))\nos._exit(0)";
    let (port, mut peers) = npl_port();
    let listen = async {
        let (mut data, mut frames) = (Vec::new(), 0);
        loop {
            match peers.from_contract.recv().await.expect("END comes before the close") {
                NplOut::Data(piece) => {
                    assert!(!piece.is_empty() && piece.len() <= 64 * 1024);
                    data.extend_from_slice(&piece);
                    frames += 1;
                }
                NplOut::End { frames: said } => break (data, frames == said),
            }
        }
    };
    let (report, (data, all)) = tokio::join!(rig.launcher.run(rig.python(code), port), listen);
    ok(&report.expect("a result"));
    assert!(all && data == (0..300_000).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    assert_eq!(peers.from_contract.recv().await, None);
}

#[tokio::test]
async fn a_contract_that_never_reads_the_line_and_peers_that_flood_it_harm_nobody() {
    let rig = rig();
    let mut spec = rig.python("write_all(facts['npl'][1], b'x' * 3000000)");
    spec.facts.unl = vec![OWN, PEER];
    let (port, mut peers) = npl_port();
    let flood = async {
        let data = Bytes::from(vec![0; 64 * 1024]);
        while peers.to_contract.send(NplIn::Data { from: PEER, data: data.clone() }).await.is_ok() {}
    };
    let listen = async {
        let mut bytes = 0;
        while let Some(message) = peers.from_contract.recv().await {
            bytes += if let NplOut::Data(data) = message { data.len() } else { 0 };
        }
        bytes
    };
    let (report, (), bytes) = tokio::join!(rig.launcher.run(spec, port), flood, listen);
    ok(&report.expect("a result"));
    assert_eq!(bytes, 3_000_000);
}

#[tokio::test]
async fn party_line_bytes_over_the_limit_are_a_status() {
    let rig = rig();
    let spec = rig.python("write_all(facts['npl'][1], b'x' * 200001)\ntime.sleep(1000)");
    let limits = Limits { npl_bytes_max: 200_000, ..spec.limits.clone() };
    let report = rig.run(RunSpec { limits, ..spec }).await;
    assert_eq!(report.end, End::Status(Status::Limit(LimitKind::Npl)));
}

#[tokio::test]
async fn dropping_a_run_kills_it_and_the_next_run_waits_for_that() {
    let rig = rig();
    let code = "daemon(lambda: time.sleep(1000))\nopen('main.pid', 'w').write(str(os.getpid()))\ntime.sleep(1000)";
    let (port, _peers) = npl_port();
    let pids = tokio::select! {
        _ = rig.launcher.run(rig.python(code), port) => panic!("it sleeps"),
        pids = async { [rig.pid_in("main.pid").await, rig.pid_in("daemon.pid").await] } => pids,
    };
    rig.launcher.settled().await.expect("all can be killed");
    assert_eq!(pids.map(is_gone), [true, true]);
    ok(&rig.run(rig.shell("exit 0")).await);
}

#[tokio::test]
async fn a_run_dropped_at_any_point_leaves_nothing_and_the_next_one_is_whole() {
    let rig = rig();
    let big = pattern(200_000);
    for point in 0..24 {
        let users = (0..150).map(|n| user(n, &[&big[..1000 * (n as usize % 3)]])).collect();
        let spec = RunSpec { users, ..rig.shell("echo $$ > main.pid; sleep 1000") };
        let (port, _peers) = npl_port();
        tokio::select! {
            biased;
            _ = rig.launcher.run(spec, port) => panic!("it sleeps"),
            () = async { for _ in 0..point { tokio::task::yield_now().await } } => {}
        }
        rig.launcher.settled().await.expect("all can be killed");
        if let Some(pid) = rig.file("main.pid") {
            assert!(is_gone(Pid::from_raw(pid.trim().parse().unwrap())), "dropped at {point}");
        }
        let report = rig.run(RunSpec { users: vec![user(1, &[&big])], ..rig.shell("exit 5") }).await;
        assert_eq!(report.end, End::Status(Status::Exit(5)), "dropped at {point}");
    }
}

#[tokio::test]
async fn a_launcher_that_dies_takes_the_contract_with_it_and_is_replaced() {
    let rig = rig();
    let launcher = Pid::from_raw(rig.launcher.process_id().expect("idle") as i32);
    let (port, _peers) = npl_port();
    let kill = async {
        let main = rig.pid_in("main.pid").await;
        signal::kill(launcher, signal::Signal::SIGKILL).expect("it lives");
        main
    };
    let code = "open('main.pid', 'w').write(str(os.getpid()))\ntime.sleep(1000)";
    let (result, main) = tokio::join!(rig.launcher.run(rig.python(code), port), kill);
    assert!(matches!(result, Err(LaunchError::Died)), "{result:?}");
    wait_for(|| is_gone(main).then_some(())).await;
    ok(&rig.run(rig.shell("exit 0")).await);
    // Between two runs nobody notices at all.
    let launcher = Pid::from_raw(rig.launcher.process_id().expect("idle") as i32);
    signal::kill(launcher, signal::Signal::SIGKILL).expect("it lives");
    wait_for(|| is_gone(launcher).then_some(())).await;
    ok(&rig.run(rig.shell("exit 0")).await);
}

#[tokio::test]
async fn a_run_can_be_a_task_and_a_second_run_waits_for_the_first() {
    let rig = rig();
    let (launcher, spec, port) =
        (rig.launcher.clone(), rig.shell("test ! -e busy && touch busy && rm busy"), npl_port().0);
    let first = tokio::spawn(async move { launcher.run(spec, port).await });
    let second = rig.run(rig.shell("test ! -e busy && touch busy && rm busy")).await;
    ok(&second);
    ok(&first.await.expect("no panic").expect("a result"));
}

#[tokio::test]
async fn the_launcher_ends_with_the_last_handle() {
    let rig = rig();
    let launcher = Pid::from_raw(rig.launcher.process_id().expect("idle") as i32);
    let clone = rig.launcher.clone();
    drop(rig.launcher);
    assert!(!is_gone(launcher));
    drop(clone);
    wait_for(|| is_gone(launcher).then_some(())).await;
}

#[tokio::test]
async fn runs_leave_no_descriptor_open_here() {
    // In a process of its own, as other tests open and close descriptors all the time.
    let output = own_test("counts_its_descriptors", Path::new("/")).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn counts_its_descriptors() {
    let rig = rig();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let mut counts = Vec::new();
    for _ in 0..4 {
        let users = vec![user(1, &[&pattern(200_000)]), user(2, &[])];
        ok(&rig.run(RunSpec { users, ..rig.shell("exit 0") }).await);
        counts.push(open());
    }
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
}

#[tokio::test]
async fn more_users_than_descriptors_is_an_error_that_the_next_run_does_not_notice() {
    let output = own_test("runs_out_of_descriptors", Path::new("/")).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn runs_out_of_descriptors() {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    let (_, hard) = getrlimit(RLIMIT_NOFILE).unwrap();
    let many = |rig: &Rig| RunSpec { users: (0..300).map(|n| user(n, &[])).collect(), ..rig.shell("exit 0") };
    // Too few here: one for each user.
    setrlimit(RLIMIT_NOFILE, 100, hard).unwrap();
    let here = rig();
    assert!(matches!(here.try_run(many(&here)).await, Err(LaunchError::Pipe { users: 300, .. })));
    ok(&here.run(here.shell("exit 0")).await);
    // Too few in the launcher, where each user takes two; only root can come back from a lower hard limit.
    setrlimit(RLIMIT_NOFILE, 100, 100).unwrap();
    let there = rig();
    if setrlimit(RLIMIT_NOFILE, 1000.min(hard), hard).is_ok() {
        let result = there.try_run(many(&there)).await;
        assert!(matches!(result, Err(LaunchError::NotStarted { .. })), "{result:?}");
    }
    ok(&there.run(there.shell("exit 0")).await);
}

#[tokio::test]
async fn a_run_asks_for_one_change_of_the_unl_and_in_any_other_way_for_none() {
    let rig = rig();
    let key = SecretKey::from_seed([8; 32]).node_key();
    let code = |text: &str| format!("write_all(facts['control'], {text})");
    let report = rig.run(rig.python(&code(&format!("b'unl add {key}\\n'")))).await;
    let wanted = Some(UnlChange::Add(key));
    assert_eq!((report.end, report.unl_request), (End::Status(Status::Ok), wanted));
    // Only the first kilobytes are kept, and the contract is not held up.
    for text in [format!("b'unl add {key}'"), format!("2 * b'unl add {key}\\n'"), "b'x' * 3000000".into(), "b''".into()]
    {
        let report = rig.run(rig.python(&code(&text))).await;
        assert_eq!((report.end, report.unl_request), (End::Status(Status::Ok), None), "{text}");
    }
    let failing = rig.run(rig.python(&format!("{}\nsys.exit(3)", code(&format!("b'unl add {key}\\n'"))))).await;
    assert_eq!((failing.end, failing.unl_request), (End::Status(Status::Exit(3)), None));
}

#[tokio::test]
async fn a_supervisor_killed_by_force_leaves_no_process_behind() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut supervisor = own_test("supervises_for_ever", dir.path()).stdout(Stdio::piped()).spawn().expect("starts");
    let lines = BufReader::new(supervisor.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let pids: Vec<_> = lines
        .filter_map(|line| Some(line.split_once("pids ")?.1.to_owned()))
        .take(1)
        .flat_map(|line| line.split(' ').map(|pid| Pid::from_raw(pid.parse().unwrap())).collect::<Vec<_>>())
        .collect();
    assert_eq!((pids.len(), pids.iter().any(|pid| is_gone(*pid))), (3, false), "launcher, contract, daemon");
    supervisor.kill().expect("it lives");
    supervisor.wait().expect("it is ours");
    wait_for(|| pids.iter().all(|pid| is_gone(*pid)).then_some(())).await;
}

#[tokio::test]
#[ignore = "run by another test, in a process of its own, and killed by it"]
async fn supervises_for_ever() {
    let rig = rig();
    let launcher = rig.launcher.process_id().expect("idle");
    let code = "daemon(lambda: time.sleep(1000))\nopen('main.pid', 'w').write(str(os.getpid()))\ntime.sleep(1000)";
    let (port, _peers) = npl_port();
    let tell = async {
        let (main, daemon) = (rig.pid_in("main.pid").await, rig.pid_in("daemon.pid").await);
        println!("pids {launcher} {main} {daemon}");
        std::future::pending::<()>().await;
    };
    let _ = tokio::join!(rig.launcher.run(rig.python(code), port), tell);
}

/// An ignored test of this file as a program of its own, with temporary files in `dir`.
fn own_test(name: &str, dir: &Path) -> Command {
    let exe: PathBuf = std::env::current_exe().expect("this program");
    let mut command = Command::new(exe);
    command.args(["--exact", &format!("contract::{name}"), "--ignored", "--nocapture"]);
    if dir != Path::new("/") {
        command.env("TMPDIR", dir);
    }
    command
}

// ---- Overlay ---------------------------------------------------------------------------------------------------------

/// The folders of a run whose changes go elsewhere, and the run's view of them; `None` where this machine has none.
#[cfg(target_os = "linux")]
async fn overlaid(rig: &Rig) -> Option<Overlay> {
    let overlay = Overlay { target: "state", lower: "state", upper: "o/upper", work: "o/work" };
    for folder in ["state", "o/upper", "o/work"] {
        fs::create_dir_all(rig.dir.path().join(folder)).expect("a folder");
    }
    if let Err(error) = rig.launcher.probe(rig.dir.path(), overlay).await {
        eprintln!("not tested, there are no overlays here: {error}");
        return None;
    }
    // The kernel keeps a used scratch folder for itself.
    fs::remove_dir_all(rig.dir.path().join("o/work/work")).expect("removed");
    Some(overlay)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_run_with_an_overlay_sees_its_state_and_changes_another_folder() {
    let rig = rig();
    fs::create_dir(rig.dir.path().join("state")).expect("a folder");
    fs::write(rig.dir.path().join("state/kept"), "before").expect("written");
    let Some(overlay) = overlaid(&rig).await else { return };
    let code = "cat >/dev/null; cd state; cat kept >&2; echo after >kept; echo new >new; umount \"$PWD\" 2>/dev/null; ls; \
                id -u; sleep 60 & exit 0";
    let report = rig.run(RunSpec { overlay: Some(overlay), ..rig.shell(code) }).await;
    assert_eq!((report.end, report.left_over), (End::Status(Status::Ok), 1));
    assert_eq!(rig.file("state/kept").as_deref(), Some("before"));
    assert_eq!(rig.file("state/new"), None);
    assert_eq!(rig.file("o/upper/kept").as_deref(), Some("after\n"));
    assert_eq!(rig.file("o/upper/new").as_deref(), Some("new\n"));
    let log = wait_for(|| rig.file("log/contract/stdout.log").filter(|log| log.ends_with('\n'))).await;
    let uid = nix::unistd::geteuid().to_string();
    assert!(log.ends_with(&format!("kept\nnew\n{uid}\n")), "{log}");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("a list");
    assert!(!mounts.contains(rig.dir.path().to_str().expect("UTF-8")), "{mounts}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_overlay_that_cannot_be_mounted_is_this_machines_fault_and_says_why() {
    let rig = rig();
    let overlay = Overlay { target: "state", lower: "state", upper: "missing", work: "missing" };
    let probed = rig.launcher.probe(rig.dir.path(), overlay).await.expect_err("there are no folders");
    assert!(matches!(&probed, LaunchError::NotStarted { .. }), "{probed:?}");
    let ran = rig.try_run(RunSpec { overlay: Some(overlay), ..rig.shell("exit 0") }).await.expect_err("nor here");
    assert!(matches!(&ran, LaunchError::NotStarted { .. }), "{ran:?}");
    // And the launcher goes on.
    assert_eq!(rig.run(rig.shell("exit 3")).await.end, End::Status(Status::Exit(3)));
}
