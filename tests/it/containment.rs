//! What a contract is kept from: each guard is tried by a program that does its worst, and without the guard succeeds.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use hotpocket::{
    contract::{
        Containment, End, Guard, LaunchError, Launcher, Limits, NplPort, Overlay, RunReport, RunSpec, UserInput,
        fdlist::Facts, guards::Name,
    },
    types::{Auth, Hash, NodeKey, Status, UserKey},
};
use nix::{sys::signal, unistd::Pid};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Far longer than anything here takes, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What every contract here begins with: `tell` puts down what became of an attempt.
const PRELUDE: &str = r#"
import ctypes, errno, json, os, signal, socket, subprocess, sys, time
facts = json.load(sys.stdin)
seen = {}
def attempt(name, what):
    try: seen[name] = what()
    except OSError as error: seen[name] = errno.errorcode[error.errno]
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    result = libc.syscall(number, *args)
    if result < 0: raise OSError(ctypes.get_errno(), "call")
    return result
def read(path):
    with open(path, "rb") as file: return len(file.read(100))
def tell(fd): os.write(fd, json.dumps(seen, sort_keys=True).encode())
"#;

/// A contract folder as `hp new` makes it, and a launcher for it.
struct Rig {
    dir: TempDir,
    launcher: Launcher,
    guards: Vec<Guard>,
}

impl Rig {
    async fn new(change: impl FnOnce(&mut Containment)) -> Rig {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for name in ["bin", "cfg", "hist", "run", "log", "diag", "private", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["cfg/hp.cfg", "hist/ledger.db", "private/key", "bin/data", "state/file", "other"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let launcher = Launcher::start(Path::new(env!("CARGO_BIN_EXE_hp"))).expect("a launcher");
        let mut containment = Containment {
            dir: dir.path().to_owned(),
            binary: "/usr/bin/env".into(),
            args: vec!["python3".into()],
            env: Vec::new(),
            network: false,
            namespaces: true,
            user: None,
            processes: 256,
            memory_bytes: 0,
            read: Vec::new(),
            secrets: Vec::new(),
        };
        change(&mut containment);
        let guards = launcher.contain(&containment).await.expect("something can be run");
        for guard in guards.iter().filter(|guard| !guard.on) {
            eprintln!("off: {} ({})", guard.name, guard.why);
        }
        Rig { dir, launcher, guards }
    }

    /// Whether a guard is on. One that cannot be had on this machine cannot be tried on it.
    fn has(&self, name: Name) -> bool {
        let guard = self.guards.iter().find(|guard| guard.name == name).expect("every guard is told of");
        if !guard.on {
            eprintln!("not tried: {name} is off: {}", guard.why);
        }
        guard.on
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
                pubkey: NodeKey([0xa1; 32]),
                unl: vec![NodeKey([0xa1; 32])],
                seed: Hash([2; 32]),
                contract: Hash([3; 32]),
                private: Some(self.dir.path().join("private")),
                readonly: false,
                settlement: None,
            },
            users: vec![UserInput { key: USER, auth: Auth::Signed, inputs: Vec::new() }],
            log_dir: self.dir.path().join("log/contract"),
            npl_window: Duration::from_millis(500),
            overlay: None,
        }
    }

    async fn try_run(&self, spec: RunSpec) -> Result<RunReport, LaunchError> {
        let (out, _from_contract) = mpsc::channel(4);
        let (_to_contract, incoming) = mpsc::channel(4);
        let port = NplPort { out, incoming };
        tokio::time::timeout(DEADLINE, self.launcher.run(spec, port)).await.expect("in time")
    }

    /// Runs a program and gives back what it told.
    async fn told(&self, code: &str) -> Value {
        self.told_over(code, None).await
    }

    async fn told_over(&self, code: &str, overlay: Option<Overlay>) -> Value {
        let code = format!("{PRELUDE}{code}\ntell(list(facts['user'].values())[0][1])");
        let spec = RunSpec { overlay, ..self.spec("/usr/bin/env", &["python3", "-I", "-S", "-c", &code]) };
        let report = self.try_run(spec).await.expect("the run has a result");
        let log = fs::read_to_string(self.dir.path().join("log/contract/stderr.log")).unwrap_or_default();
        assert_eq!(report.end, End::Status(Status::Ok), "{log}");
        serde_json::from_slice(&report.outputs[&USER]).expect("JSON")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

async fn wait_for(mut condition: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "the condition came true in time");
        ticks.tick().await;
    }
}

const USER: UserKey = UserKey([0xee; 32]);

#[tokio::test]
async fn a_contract_reads_the_system_and_its_own_and_writes_its_state_and_nothing_else() {
    let rig = Rig::new(|_| {}).await;
    if !rig.has(Name::Landlock) {
        return;
    }
    let code = r#"
for name in ["cfg/hp.cfg", "hist/ledger.db", "other", "/etc/shadow", "/root", "/etc/ssl/private"]:
    attempt("read " + name, lambda: read(name))
for name in ["bin/data", "private/key", "state/file", "/etc/passwd", "/proc/cpuinfo"]:
    attempt("read " + name, lambda: read(name) > 0)
for name in [".", "cfg", "/tmp", "/home", "run"]:
    attempt("list " + name, lambda: len(os.listdir(name)))
for name in ["bin/data", "private/key", "new", "bin/new", "/tmp/hp-escaped", "/dev/shm/../escaped", "/usr/escaped"]:
    attempt("write " + name, lambda: open(name, "w").write("x"))
for name in ["state/file", "state/new", "/dev/null", os.environ["TMPDIR"] + "/new"]:
    attempt("write " + name.split("/")[-2] + "/" + name.split("/")[-1], lambda: open(name, "w").write("x"))
attempt("link out", lambda: os.link("cfg/hp.cfg", "state/link"))
attempt("move in", lambda: os.rename("cfg/hp.cfg", "state/moved"))
attempt("move out", lambda: os.rename("state/file", "bin/moved"))
attempt("remove", lambda: os.unlink("other"))
attempt("device", lambda: os.mknod("state/null", 0o20666, os.makedev(1, 3)))
os.makedirs("state/sub")
attempt("move within", lambda: os.rename("state/new", "state/sub/new"))
attempt("truncate", lambda: os.truncate("bin/data", 0))
"#;
    let seen = rig.told(code).await;
    let refused = [
        "read other",
        "read /etc/shadow",
        "list .",
        "write bin/data",
        "write private/key",
        "write new",
        "write bin/new",
        "write /usr/escaped",
        "move out",
        "truncate",
    ];
    for name in refused {
        // Landlock's word; that of the mounts of its own view comes before it.
        let is_refused = ["EACCES", "EROFS", "EXDEV"].iter().any(|error| seen[name] == *error);
        assert!(is_refused && (seen[name] == "EACCES" || rig.has(Name::Namespaces)), "{name}: {seen}");
    }
    // Where they are not there at all for a contract, it is told so.
    for name in seen.as_object().unwrap().keys() {
        let works = seen[name] == json!(true) || seen[name] == json!(1) || seen[name].is_null();
        let may = ["read bin/data", "read private/key", "read state/file", "read /etc/passwd", "read /proc/cpuinfo"]
            .contains(&name.as_str())
            || ["write state/file", "write state/new", "write dev/null", "write tmp/new", "move within"]
                .contains(&name.as_str());
        assert_eq!(works, may, "{name}: {seen}");
    }
    assert_eq!(fs::read_to_string(rig.at("cfg/hp.cfg")).unwrap(), "cfg/hp.cfg");
    assert!(rig.at("other").exists() && !Path::new("/tmp/hp-escaped").exists());
}

#[tokio::test]
async fn a_state_that_is_mounted_for_the_run_is_written_like_any_other() {
    let rig = Rig::new(|_| {}).await;
    for name in ["hist/upper", "hist/work", "hist/tried-upper", "hist/tried-work"] {
        fs::create_dir(rig.at(name)).unwrap();
    }
    // Folders serve one mount, and the first is to see whether there can be one.
    let tried = Overlay { target: "state", lower: "state", upper: "hist/tried-upper", work: "hist/tried-work" };
    let overlay = Overlay { upper: "hist/upper", work: "hist/work", ..tried };
    if let Err(why) = rig.launcher.probe(rig.dir.path(), tried).await {
        eprintln!("not tried: {why}");
        return;
    }
    let code = r#"
open("state/file", "w").write("changed")
open("state/new", "w").write("new")
os.makedirs("state/a/b")
attempt("hidden", lambda: os.stat("hist/upper").st_size)
attempt("other", lambda: open("other", "w").write("x"))
attempt("hist", lambda: open("hist/upper/new", "w").write("x"))
"#;
    let seen = rig.told_over(code, Some(overlay)).await;
    if rig.has(Name::Landlock) {
        assert_eq!(seen["other"], "EACCES");
        assert!(seen["hist"].is_string(), "{seen}");
    }
    if rig.has(Name::Namespaces) {
        assert_eq!(seen["hidden"], "ENOENT");
    }
    let (upper, below) = (fs::read_to_string(rig.at("hist/upper/new")), fs::read_to_string(rig.at("state/file")));
    assert_eq!((upper.unwrap().as_str(), below.unwrap().as_str()), ("new", "state/file"));
}

#[tokio::test]
async fn the_folder_for_temporary_files_is_empty_at_the_begin_and_empty_at_the_end() {
    let rig = Rig::new(|_| {}).await;
    let code = r#"
tmp = os.environ["TMPDIR"]
seen["before"] = os.listdir(tmp)
os.makedirs(tmp + "/deep/er")
open(tmp + "/deep/file", "w").write("x" * 100000)
os.mkfifo(tmp + "/fifo")
os.chmod(tmp + "/deep", 0)
"#;
    for _ in 0..2 {
        assert_eq!(rig.told(code).await, json!({ "before": [] }));
        assert_eq!(fs::read_dir(rig.at("tmp")).unwrap().count(), 0);
    }
}

/// Processes on this machine whose command line has this word.
fn processes_with(word: &str) -> usize {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).split('\0').any(|part| part == word)).count()
}

/// A process that nobody started: two forks and a session of its own. Goes on for ever, under the name of its argument.
const DAEMON: &str = r#"
ready = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(ready[1], b"x")
        os.execv("/bin/sh", ["sh", "-c", "while :; do sleep 0.01; done", "WORD"])
    os._exit(0)
os.read(ready[0], 1)
"#;

#[tokio::test]
async fn a_run_has_processes_of_its_own_and_none_outlives_it() {
    let rig = Rig::new(|_| {}).await;
    if !rig.has(Name::Namespaces) {
        return;
    }
    let code = r#"
pids = lambda: sorted(int(name) for name in os.listdir('/proc') if name.isdigit())
seen["pid"], seen["parent"], seen["all"] = os.getpid(), os.getppid(), pids()
for number in [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]:
    attempt("signal %d" % number, lambda: os.kill(1, number))
attempt("kill all", lambda: os.kill(-1, signal.SIGKILL))
attempt("memory", lambda: open("/proc/1/mem", "r+b"))
attempt("environment of the first", lambda: read("/proc/1/environ"))
seen["interfaces"] = [line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]]
"#;
    let seen = rig.told(code).await;
    assert_eq!((&seen["pid"], &seen["parent"], &seen["all"]), (&json!(2), &json!(1), &json!([1, 2])), "{seen}");
    assert_eq!(seen["interfaces"], json!(["lo"]), "and that is down");
    assert_eq!(seen["kill all"], "ESRCH", "there is nobody else");
    for name in ["memory", "environment of the first"] {
        assert!(seen[name].is_string(), "{name}: {seen}");
    }
    // One that got away is dead with the run, also when the launcher is.
    let word = format!("daemon-of-{}", std::process::id());
    let daemon = DAEMON.replace("WORD", &word);
    let spec = rig.spec("/usr/bin/env", &["python3", "-I", "-S", "-c", &format!("{PRELUDE}{daemon}")]);
    let report = rig.try_run(spec).await.expect("a result");
    assert_eq!((report.end, report.left_over > 0), (End::Status(Status::Ok), true));
    assert_eq!(processes_with(&word), 0);
    let launcher = Pid::from_raw(rig.launcher.process_id().expect("idle") as i32);
    let hang = format!("{PRELUDE}{daemon}\ntime.sleep(1000)");
    let spec = rig.spec("/usr/bin/env", &["python3", "-I", "-S", "-c", &hang]);
    let kill = async {
        wait_for(|| processes_with(&word) > 0).await;
        signal::kill(launcher, signal::Signal::SIGKILL).expect("it lives");
    };
    let (result, ()) = tokio::join!(rig.try_run(spec), kill);
    assert!(matches!(result, Err(LaunchError::Died)), "{result:?}");
    wait_for(|| processes_with(&word) == 0).await;
    // Over its time it is killed from outside, and the next run is whole.
    let spec = rig.spec("/usr/bin/env", &["python3", "-I", "-S", "-c", &hang]);
    let limits = Limits { wall: Duration::from_millis(700), ..spec.limits.clone() };
    let report = rig.try_run(RunSpec { limits, ..spec }).await.expect("a result");
    assert_eq!(report.end, End::Overtime);
    assert_eq!(processes_with(&word), 0);
    assert_eq!(rig.told("seen['pid'] = os.getpid()").await, json!({ "pid": 2 }));
}

#[tokio::test]
async fn what_a_contract_must_not_see_is_not_there_even_for_who_could_read_it() {
    let key = tempfile::NamedTempFile::new().expect("a file");
    fs::write(key.path(), "secret").unwrap();
    let path = key.path().to_owned();
    let rig = Rig::new(|wanted| wanted.secrets = vec![path]).await;
    if !rig.has(Name::Namespaces) {
        return;
    }
    fs::remove_dir(rig.at("diag")).unwrap();
    let code = format!(
        "key = {:?}\n{}",
        key.path(),
        r#"
# Looking at names is not what Landlock is about.
for name in ["cfg/hp.cfg", "hist/ledger.db", "diag/7"]:
    attempt(name, lambda: os.stat(name).st_size)
for name in ["bin/data", "state/file", "private/key", "other", key]:
    seen[name.split("/")[-1]] = os.stat(name).st_size
# What the mounts say, whatever else does.
for name in ["/", "/sys", "bin", "private", ".", "state", "tmp"]:
    seen[name] = bool(os.statvfs(name).f_flag & os.ST_RDONLY)
"#
    );
    let name = key.path().file_name().unwrap().to_str().unwrap();
    let expected = json!({
        "cfg/hp.cfg": "ENOENT", "hist/ledger.db": "ENOENT", "diag/7": "ENOENT",
        "data": 8, "file": 10, "key": 11, "other": 5, name: 0,
        "/": true, "/sys": true, "bin": true, "private": true, ".": false, "state": false, "tmp": false,
    });
    // The place of the second run is made before there is the folder, and the key is another file.
    for _ in 0..2 {
        assert_eq!(rig.told(&code).await, expected);
        fs::create_dir_all(rig.at("diag/7")).unwrap();
        let fresh = tempfile::NamedTempFile::new().expect("a file");
        fs::write(fresh.path(), "secret").unwrap();
        fresh.persist(key.path()).expect("moved");
    }
    assert_eq!(fs::read_to_string(key.path()).unwrap(), "secret");
}

#[tokio::test]
async fn a_place_is_made_before_its_run_and_shows_what_is_there_when_it_runs() {
    let rig = Rig::new(|_| {}).await;
    if !rig.has(Name::Namespaces) {
        return;
    }
    let code = r#"
for name in ["bin/data", "state/file", "private/key"]: attempt(name, lambda: open(name).read())
attempt("moved", lambda: os.rename(os.environ["TMPDIR"], "state/sub"))
open(os.environ["TMPDIR"] + "/x", "w").write("x")
attempt("moved from tmp/ to state/", lambda: os.rename(os.environ["TMPDIR"] + "/x", "state/x"))
"#;
    for round in ["first", "second"] {
        for (folder, file) in [("bin", "data"), ("state", "file"), ("private", "key")] {
            let new = rig.at("other-folder");
            fs::create_dir(&new).unwrap();
            fs::write(new.join(file), round).unwrap();
            fs::rename(rig.at(folder), rig.at(&format!("{folder}-before-{round}"))).unwrap();
            fs::rename(&new, rig.at(folder)).unwrap();
        }
        let seen = rig.told(code).await;
        for name in ["bin/data", "state/file", "private/key"] {
            assert_eq!(seen[name], round, "{seen}");
        }
        assert_eq!(seen["moved from tmp/ to state/"], Value::Null);
    }
}

#[tokio::test]
async fn shared_memory_is_the_runs_own_also_without_any_other_guard() {
    let rig = Rig::new(|_| {}).await;
    if !rig.has(Name::Namespaces) {
        return;
    }
    // By Landlock there is none for anybody, so that no contract lives on what other machines lack.
    let left = format!("/dev/shm/hp-left-{}", std::process::id());
    let code = format!("attempt('shared', lambda: open({left:?}, 'w').write('x'))");
    let seen = rig.told(&code).await;
    assert_eq!(seen["shared"], if rig.has(Name::Landlock) { json!("EACCES") } else { json!(1) });
    let seen = rig.told("seen['there'] = os.stat('/dev/shm').st_nlink, os.stat('/dev/shm').st_ino").await;
    assert_eq!(seen["there"], json!([2, 1]), "a folder of its own, and empty");
    assert!(!Path::new(&left).exists());
}

/// Control groups of launchers of a contract folder, wherever they are mounted.
fn groups_of(dir: &Path) -> Vec<PathBuf> {
    let meta = fs::metadata(dir).expect("a folder");
    let prefix = format!("hotpocket-{:x}-{:x}-", meta.dev(), meta.ino());
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(entry.path());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Forks until it may not, and says how often it could; the children wait.
const BOMB: &str = r#"
count = 0
try:
    while count < 200:
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        count += 1
except BlockingIOError: seen["refused"] = True
seen["count"] = count
"#;

#[tokio::test]
async fn all_processes_of_a_run_are_counted_together_also_those_of_root() {
    for namespaces in [true, false] {
        let rig = Rig::new(|wanted| (wanted.processes, wanted.namespaces) = (20, namespaces)).await;
        if !rig.has(Name::Cgroup) {
            return;
        }
        // Two networks on one machine: neither takes the other's.
        let other = Rig::new(|wanted| wanted.processes = 20).await;
        for _ in 0..2 {
            let seen = rig.told(BOMB).await;
            assert_eq!(seen, json!({ "refused": true, "count": 19 }), "namespaces: {namespaces}");
            assert_eq!(other.told(BOMB).await["count"], 19);
        }
        for rig in [rig, other] {
            assert!(!groups_of(rig.dir.path()).is_empty());
            rig.launcher.stop().await.expect("it ends");
            assert_eq!(groups_of(rig.dir.path()), Vec::<PathBuf>::new());
        }
    }
}

#[tokio::test]
async fn memory_that_a_run_takes_through_many_processes_ends_it_with_a_signal_whatever_its_main_process_says() {
    let rig = Rig::new(|wanted| wanted.memory_bytes = 64 << 20).await;
    if !rig.has(Name::Cgroup) {
        return;
    }
    // Each is well below the limit of one process. One is killed, and the main process says that all is well.
    let code = r#"
for _ in range(6):
    if os.fork() == 0:
        held = bytearray(os.urandom(1 << 20) * 32)
        time.sleep(1000)
os.wait()
os._exit(0)
"#;
    let spec = rig.spec("/usr/bin/env", &["python3", "-I", "-S", "-c", &format!("{PRELUDE}{code}")]);
    let report = rig.try_run(spec).await.expect("a result");
    assert_eq!(report.end, End::Status(Status::Signal(9)));
    // The same group serves the next run, which has what the other had not left.
    assert_eq!(rig.told("seen['held'] = len(bytearray(os.urandom(1 << 20) * 32))").await["held"], 32 << 20);
}

#[tokio::test]
async fn what_a_killed_launcher_left_of_its_group_is_gone_with_the_next_one() {
    let rig = Rig::new(|_| {}).await;
    if !rig.has(Name::Cgroup) {
        return;
    }
    let before = groups_of(rig.dir.path());
    let launcher = Pid::from_raw(rig.launcher.process_id().expect("idle") as i32);
    signal::kill(launcher, signal::Signal::SIGKILL).expect("it lives");
    wait_for(|| fs::read_to_string(format!("/proc/{launcher}/stat")).map_or(true, |stat| stat.contains(") Z"))).await;
    assert_eq!(groups_of(rig.dir.path()), before, "nobody is there to remove it");
    // Its descriptors may outlive it for a moment, and a run that is sent then is lost with them: the node does it again.
    if let Err(error) = rig.try_run(rig.spec("/bin/true", &[])).await {
        assert!(matches!(error, LaunchError::Died), "{error}");
    }
    rig.told("").await;
    let after = groups_of(rig.dir.path());
    assert!(after.len() == before.len() && after.iter().all(|group| !before.contains(group)), "{before:?}, {after:?}");
}

#[tokio::test]
async fn a_contract_that_runs_as_another_user_is_nothing_else_and_owns_its_state() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("not tried: only root can run a contract as another user");
    }
    let (uid, gid) = (4242, 4343);
    let enter = |dir: &Path, mode| fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    for namespaces in [true, false] {
        let rig = Rig::new(|wanted| {
            enter(&wanted.dir, 0o711);
            (wanted.user, wanted.namespaces) = (Some((uid, gid)), namespaces);
        })
        .await;
        assert!(rig.has(Name::RunAs));
        let code = r#"
seen["is"] = [os.getresuid(), os.getresgid(), os.getgroups()]
caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")]
seen["rights"] = sum(int(cap, 16) for cap in caps)
seen["was there"] = open("state/file").read()
for name in ["state/file", "state/new", os.environ["TMPDIR"] + "/new"]: open(name, "w").write("x")
attempt("chown", lambda: os.chown("state/new", 0, 0))
attempt("become root", lambda: os.setuid(0))
attempt("read", lambda: open("private/key").read())
# By its number as by its name: many shells know no other.
out = list(facts["user"].values())[0][1]
with open("/dev/fd/%d" % out, "w") as file: seen["opened"] = True
"#;
        fs::set_permissions(rig.at("private/key"), fs::Permissions::from_mode(0o600)).unwrap();
        let expected = json!({
            "is": [[uid, uid, uid], [gid, gid, gid], []], "rights": 0, "was there": "state/file", "chown": "EPERM",
            "become root": "EPERM", "read": "EACCES", "opened": true,
        });
        assert_eq!(rig.told(code).await, expected, "namespaces: {namespaces}");
        for name in ["state", "state/file", "state/new", "tmp"] {
            let meta = fs::metadata(rig.at(name)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (uid, gid), "{name}");
        }
        assert_eq!(fs::metadata(rig.at("bin")).unwrap().uid(), 0);
        assert_eq!(
            fs::metadata("/dev/null").unwrap().uid(),
            0,
            "what stands for a user without input is not given away"
        );
        // A binary that this user alone may not execute is this machine's trouble.
        fs::write(rig.at("bin/contract"), "#!/bin/sh\n").unwrap();
        enter(&rig.at("bin/contract"), 0o700);
        let error = rig.try_run(rig.spec("bin/contract", &[])).await.expect_err("it is root's");
        assert!(matches!(error, LaunchError::NotStarted { .. }), "{error:?}");
    }
    let closed = tempfile::tempdir().expect("a folder");
    enter(closed.path(), 0o700);
    let launcher = Launcher::start(Path::new(env!("CARGO_BIN_EXE_hp"))).expect("a launcher");
    let wanted = Containment {
        dir: closed.path().to_owned(),
        binary: "/bin/true".into(),
        args: Vec::new(),
        env: Vec::new(),
        network: false,
        namespaces: true,
        user: Some((uid, gid)),
        processes: 256,
        memory_bytes: 0,
        read: Vec::new(),
        secrets: Vec::new(),
    };
    let text = launcher.contain(&wanted).await.expect_err("it cannot be entered").to_string();
    assert!(text.contains("user 4242") && text.contains("chmod o+x"), "{text}");
}

#[tokio::test]
async fn a_contract_that_runs_as_root_is_not_all_powerful() {
    let rig = Rig::new(|_| {}).await;
    if !rig.has(Name::Capabilities) {
        return;
    }
    let code = r#"
sets = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if line.startswith("Cap"))
seen.update({name: int(value, 16) for name, value in sets.items()})
"#;
    let kept = 0b100_1111_1011;
    let seen = rig.told(code).await;
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(seen[name].as_u64().unwrap() & !kept, 0, "{name}: {seen}");
    }
    assert_eq!((&seen["CapInh"], &seen["CapAmb"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn calls_that_reach_out_of_the_run_are_refused_and_the_program_goes_on() {
    let rig = Rig::new(|_| {}).await;
    if !rig.has(Name::Seccomp) {
        return;
    }
    // The numbers are those of 64-bit Intel; elsewhere the list is compared with the filter in a test beside it.
    let code = r#"
numbers = {
    "ptrace": (101, 0, 0, 0, 0), "process_vm_readv": (310, os.getppid(), 0, 0, 0, 0, 0), "kexec_load": (246, 0, 0, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0), "umount2": (166, 0, 0), "pivot_root": (155, 0, 0), "bpf": (321, 0, 0, 0),
    "userfaultfd": (323, 0), "perf_event_open": (298, 0, 0, 0, 0, 0), "keyctl": (250, 0, 0, 0, 0, 0), "add_key": (248, 0, 0, 0, 0, 0),
    "init_module": (175, 0, 0, 0), "reboot": (169, 0, 0, 0, 0), "swapon": (167, 0, 0), "settimeofday": (164, 0, 0),
    "io_uring_setup": (425, 1, 0), "unshare": (272, 0x10000000), "setns": (308, 0, 0), "open_by_handle_at": (304, 0, 0, 0),
    "clone a user namespace": (56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0), "clone3": (435, 0, 0), "chroot": (161, 0),
}
import platform
if platform.machine() == "x86_64":
    for name, args in numbers.items():
        attempt(name, lambda: call(*args))
attempt("socket", lambda: str(socket.socket()))
attempt("unix socket", lambda: str(socket.socket(socket.AF_UNIX)))
attempt("datagrams", lambda: str(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)))
a, b = socket.socketpair()
a.send(b"works")
import threading
threads = [threading.Thread(target=lambda: seen.setdefault("thread", True)) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
seen["child"] = subprocess.run(["/bin/sh", "-c", "echo $((6 * 7))"], capture_output=True).stdout.decode()
seen["status"] = [line for line in open("/proc/self/status").read().splitlines() if line.startswith(("NoNew", "Seccomp:"))]
"#;
    let mut seen = rig.told(code).await;
    let seen = seen.as_object_mut().unwrap();
    assert_eq!(seen.remove("status"), Some(json!(["NoNewPrivs:\t1", "Seccomp:\t2"])));
    assert_eq!(seen.remove("thread"), Some(json!(true)));
    assert_eq!(seen.remove("child"), Some(json!("42\n")));
    if cfg!(target_arch = "x86_64") {
        assert_eq!(seen.remove("clone3"), Some(json!("ENOSYS")));
        assert_eq!(seen.len(), 24, "{seen:?}");
    }
    assert!(seen.values().all(|error| *error == "EPERM"), "{seen:?}");
}

#[tokio::test]
async fn a_listener_of_this_machine_is_out_of_reach_unless_the_network_is_allowed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let code = format!("attempt('connect', lambda: socket.create_connection(('127.0.0.1', {port})).close())");
    for network in [false, true] {
        let rig = Rig::new(|wanted| wanted.network = network).await;
        if network || rig.has(Name::Network) {
            let expected = if network { json!(null) } else { json!("EPERM") };
            assert_eq!(rig.told(&code).await["connect"], expected, "network = {network}");
        }
    }
}

#[tokio::test]
async fn an_interpreter_out_of_reach_is_trouble_of_this_machine_with_a_way_out_and_no_status() {
    let far = tempfile::tempdir().expect("a temporary folder");
    let tool = far.path().join("tool");
    fs::copy("/bin/sh", &tool).unwrap();
    let rig = Rig::new(|_| {}).await;
    if !rig.has(Name::Landlock) {
        return;
    }
    fs::write(rig.at("bin/contract"), format!("#!{}\nexit 0\n", tool.display())).unwrap();
    fs::set_permissions(rig.at("bin/contract"), fs::Permissions::from_mode(0o755)).unwrap();
    let error = rig.try_run(rig.spec("bin/contract", &[])).await.expect_err("the tool is not listed");
    let text = error.to_string();
    assert!(text.contains(tool.to_str().unwrap()) && text.contains("[contract] read"), "{text}");
    // A file that cannot be executed anywhere is the same everywhere.
    fs::set_permissions(rig.at("bin/contract"), fs::Permissions::from_mode(0o644)).unwrap();
    let report = rig.try_run(rig.spec("bin/contract", &[])).await.expect("a status");
    assert_eq!(report.end, End::Status(Status::Exit(126)));
    // Listed, or found at the start, it is executed.
    fs::set_permissions(rig.at("bin/contract"), fs::Permissions::from_mode(0o755)).unwrap();
    let listed = far.path().to_owned();
    let rig = Rig::new(move |wanted| wanted.read = vec![listed]).await;
    let script = format!("#!{}\nexit 0\n", tool.display());
    fs::write(rig.at("bin/contract"), &script).unwrap();
    fs::set_permissions(rig.at("bin/contract"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(rig.try_run(rig.spec("bin/contract", &[])).await.unwrap().end, End::Status(Status::Ok));
    let rig = Rig::new(|wanted| {
        let contract = wanted.dir.join("bin/contract");
        fs::write(&contract, &script).unwrap();
        fs::set_permissions(&contract, fs::Permissions::from_mode(0o755)).unwrap();
        wanted.binary = contract;
    })
    .await;
    assert_eq!(rig.try_run(rig.spec("bin/contract", &[])).await.unwrap().end, End::Status(Status::Ok));
}

/// What a run costs: `cargo test --test it cost_of -- --ignored --nocapture`, with `--release` for numbers that mean something.
#[tokio::test]
#[ignore = "measures"]
async fn the_cost_of_the_guards_of_a_run() {
    for _ in 0..2 {
        let guarded = Rig::new(|_| {}).await;
        let bare = Launcher::start(Path::new(env!("CARGO_BIN_EXE_hp"))).expect("a launcher");
        let bare = Rig { launcher: bare, ..Rig::new(|_| {}).await };
        let here = Rig::new(|wanted| wanted.namespaces = false).await;
        for (what, rig) in [("no guards", bare), ("all but namespaces", here), ("all guards", guarded)] {
            // As one ledger after the other, and as a chain that is replayed.
            for pause in [Duration::from_millis(20), Duration::ZERO] {
                let mut times = Vec::new();
                for _ in 0..200 {
                    tokio::time::sleep(pause).await;
                    times.push(rig.try_run(rig.spec("/bin/true", &[])).await.expect("a result").elapsed);
                }
                times.sort();
                println!("{what}, {pause:?} between runs: p50 {:?}, p90 {:?}", times[100], times[180]);
            }
        }
    }
}
