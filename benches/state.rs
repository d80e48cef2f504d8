//! What keeping the contract's state costs a round, with each backend: 4 KB changed in states of different shapes. And
//! what a contract's own reading and writing costs beside a plain folder: 1,000 inserts into an SQLite file.
//!
//! Run by `scripts/bench state [--rounds N]`. Machines are noisy: compare with the anchors of the same minute.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use hotpocket::state::{self, Backend, RunMount, StateStore};

const SHAPES: [(&str, usize, usize); 5] = [
    ("10 MB in 160 files", 160, 64 << 10),
    ("10 MB in one file", 1, 10 << 20),
    ("10,000 files of 1 KB", 10_000, 1 << 10),
    ("1 GB in 1,000 files", 1_000, 1 << 20),
    ("1 GB in one file", 1, 1 << 30),
];

fn main() {
    let mut rounds = 30;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next().as_deref().map(str::parse)) {
            ("--rounds", Some(Ok(number @ 3..=10_000))) => rounds = number,
            // Given by `cargo bench`.
            ("--bench", _) => {}
            _ => {
                eprintln!("error: usage: scripts/bench state [--rounds 3..10000]");
                std::process::exit(2);
            }
        }
    }
    let folder = tempfile::tempdir_in(".").expect("a folder");
    anchors(folder.path());
    println!(
        "\n{:<24} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "state, 4 KB changed", "backend", "before ms", "run ms", "after ms", "cost ms"
    );
    for (name, files, bytes) in SHAPES {
        for backend in [Backend::Shadow, Backend::Overlay] {
            let dir = tempfile::tempdir_in(folder.path()).expect("a folder");
            match shape(dir.path(), backend, files, bytes, rounds) {
                Some([before, run, after, cost]) => {
                    println!("{name:<24} {backend:>8} {before:>10.2} {run:>10.2} {after:>10.2} {cost:>10.2}")
                }
                None => println!("{name:<24} {backend:>8}: does not work here"),
            }
        }
    }
    println!("\n1,000 SQLite inserts in one run, each a transaction");
    let mut plain = 0.0;
    for backend in [None, Some(Backend::Shadow), Some(Backend::Overlay)] {
        let dir = tempfile::tempdir_in(folder.path()).expect("a folder");
        let Some(ms) = inserts(dir.path(), backend) else { continue };
        plain = if backend.is_none() { ms } else { plain };
        let name = backend.map_or("plain folder".to_owned(), |it| it.to_string());
        println!("{name:<24} {ms:>10.1} ms, {:.2} of a plain folder", ms / plain);
    }
}

/// What the machine itself costs.
fn anchors(folder: &Path) {
    let path = folder.join("anchor");
    let block = vec![7_u8; 64 << 10];
    let file = File::create(&path).expect("a file");
    file.write_all_at(&block, 0).expect("written");
    file.sync_all().expect("synced");
    let sync = median(50, || {
        file.write_all_at(&block[..4096], 0).expect("written");
        file.sync_data().expect("synced");
    });
    let big = vec![7_u8; 16 << 20];
    let hash = median(9, || {
        std::hint::black_box(blake3::hash(&big));
    });
    let many = folder.join("many");
    fs::create_dir(&many).expect("a folder");
    (0..1000).for_each(|number| drop(File::create(many.join(number.to_string())).expect("a file")));
    let walk = median(9, || {
        let sizes =
            fs::read_dir(&many).expect("a list").map(|entry| entry.expect("one").metadata().expect("stat").len());
        std::hint::black_box(sizes.sum::<u64>());
    });
    let none = median(50, || {
        Command::new("/bin/true").status().expect("it runs");
    });
    println!("this machine, medians:");
    println!("  durable write of 4 KB       {sync:>8.3} ms");
    println!("  hash of 1 GB                {:>8.0} ms", hash * 64.0);
    println!("  look at 1,000 files         {walk:>8.3} ms");
    println!("  start and end a program     {none:>8.3} ms");
}

fn shape(dir: &Path, backend: Backend, files: usize, bytes: usize, rounds: usize) -> Option<[f64; 4]> {
    let mut store = state::open(dir, backend, None).expect("it opens");
    let block: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    let name = |number: usize| format!("{}/{number}", number % 100);
    for number in 0..files {
        let path = dir.join("state").join(name(number));
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, &block).expect("written");
    }
    let mut root = store.scan(true).expect("a root").root;
    store.snapshot(0, root).expect("a snapshot");
    let mut times: [Vec<f64>; 4] = Default::default();
    for round in 1..=rounds {
        let started = Instant::now();
        if store.snapshot_info().is_none_or(|(_, kept)| kept != root) {
            store.snapshot(round as u64, root).expect("a snapshot");
        }
        let mount = store.begin_run().expect("ready");
        let before = started.elapsed();
        let path = name(round * 7 % files);
        let script = format!(
            "dd if=/dev/urandom of=state/{path} bs=4096 count=1 seek={} conv=notrunc status=none",
            bytes / 8192
        );
        let started = Instant::now();
        if !run(dir, mount, &script) {
            return None;
        }
        let ran = started.elapsed();
        let started = Instant::now();
        root = store.scan(true).expect("a root").root;
        let after = started.elapsed();
        for (at, time) in [before, ran, after, before + after].into_iter().enumerate() {
            times[at].push(millis(time));
        }
    }
    Some(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}

/// The median of three, with the state read in and kept once before.
fn inserts(dir: &Path, backend: Option<Backend>) -> Option<f64> {
    const PROGRAM: &str = "import sqlite3; db = sqlite3.connect('state/db'); db.isolation_level = None\n\
        db.execute('create table if not exists t (x)')\n\
        for at in range(1000): db.execute('insert into t values (?)', ('x' * 100,))";
    let mut store: Option<Box<dyn StateStore>> =
        backend.map(|backend| state::open(dir, backend, None).expect("it opens"));
    fs::create_dir_all(dir.join("state")).expect("a folder");
    let mut times = Vec::new();
    for round in 0..3 {
        let mount = store.as_mut().and_then(|store| {
            let root = store.scan(true).expect("a root").root;
            store.snapshot(round, root).expect("a snapshot");
            store.begin_run().expect("ready")
        });
        let started = Instant::now();
        if !run(dir, mount, &format!("exec python3 -c \"{PROGRAM}\"")) {
            return None;
        }
        times.push(millis(started.elapsed()));
    }
    times.sort_by(f64::total_cmp);
    Some(times[1])
}

/// Runs a shell script in the contract folder, with its view of the state.
fn run(dir: &Path, mount: Option<RunMount>, script: &str) -> bool {
    let mut command = match mount {
        None => Command::new("sh"),
        Some(RunMount { target, lower, upper, work }) => {
            let mount = format!(
                "mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={work},userxattr,volatile {target} && exec sh \"$@\""
            );
            let mut unshare = Command::new("unshare");
            unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"]);
            unshare
        }
    };
    command.args(["-c", script]).current_dir(dir).status().is_ok_and(|status| status.success())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn median(times: usize, mut work: impl FnMut()) -> f64 {
    let mut measured: Vec<f64> = (0..times)
        .map(|_| {
            let started = Instant::now();
            work();
            millis(started.elapsed())
        })
        .collect();
    measured.sort_by(f64::total_cmp);
    measured[times / 2]
}
