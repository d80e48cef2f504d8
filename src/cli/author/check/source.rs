//! What a contract may wrongly depend on, in words, and where in its files it might.

use std::{fs, io::Read as _, path::Path};

/// Files of a contract that are looked through. Those over it are not.
const FILES_MAX: usize = 64;
/// Bytes of one that are looked through.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Places named.
const PLACES_MAX: usize = 3;
/// Characters shown of a line.
const LINE_CHARACTERS_MAX: usize = 80;

/// A thing that is, or may be, another one on each node or in each run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Clock,
    Randomness,
    HashSeed,
    Addresses,
    ProcessId,
    Threads,
    Environment,
    Locale,
    Descriptors,
    Users,
    Folder,
    Directory,
    Umask,
    Host,
    Network,
    Containment,
    Member,
    PartyLine,
}

impl Source {
    /// One word or two.
    pub(super) fn name(self) -> &'static str {
        self.row().0
    }

    /// What the contract does.
    pub(super) fn cause(self) -> &'static str {
        self.row().1
    }

    /// What to do instead.
    pub(super) fn instead(self) -> &'static str {
        self.row().2
    }

    /// Name, cause, what to do instead, and words in a program that hint at it.
    fn row(self) -> (&'static str, &'static str, &'static str, &'static [&'static str]) {
        match self {
            Source::Clock => (
                "clock",
                "the clock, or the time of a file",
                "`time` or `time_ms` on stdin: the ledger's time, alike on all nodes",
                &[
                    "time.time",
                    "time()",
                    "datetime.now",
                    "datetime.utcnow",
                    "utcnow",
                    "date.today",
                    "Date.now",
                    "new Date(",
                    "performance.now",
                    "hrtime",
                    "$(date",
                    "`date",
                    "currentTimeMillis",
                    "Instant::now",
                    "SystemTime",
                    "clock_gettime",
                    "gettimeofday",
                    "time(NULL",
                    "time(0",
                    "getmtime",
                    "st_mtime",
                    "monotonic",
                    "perf_counter",
                    "EPOCHSECONDS",
                    "timespec_get",
                    "localtime",
                ],
            ),
            Source::Randomness => (
                "randomness",
                "random bytes of the machine; also what is seeded by them: random numbers, ids, the order of Python's sets, \
                 Rust's HashMap and Go's maps",
                "`seed` on stdin, hashed with a counter; sort what comes out of a set or a hash map",
                &[
                    "random.",
                    "import random",
                    "Math.random",
                    "urandom",
                    "/dev/random",
                    "uuid",
                    "secrets.",
                    "randomBytes",
                    "randomUUID",
                    "RANDOM",
                    "rand(",
                    "srand",
                    "getrandom",
                    "getentropy",
                    "mktemp",
                    "tempfile",
                    "shuf",
                    "HashMap",
                    "HashSet",
                    "set(",
                ],
            ),
            Source::HashSeed => (
                "hash order",
                "the order of a set or a hash map, or the value of hash(), which is another one in each process",
                "sort before the order shows; take a hash of your own, such as SHA-256",
                &["set(", "hash(", "frozenset", "HashMap", "HashSet", "keys %", "each %"],
            ),
            Source::Addresses => (
                "addresses",
                "where something is in memory: a pointer that is printed or sorted by, or memory that was never written",
                "an order and names of your own; clear memory before it is used",
                &["id(", "%p", "repr(", "malloc(", "uintptr_t", "as *const"],
            ),
            Source::ProcessId => (
                "process id",
                "the number of a process",
                "a name of your own, or `seq` on stdin",
                &["getpid", "process.pid", "$$", "getppid", "BASHPID", "process::id"],
            ),
            Source::Threads => (
                "thread timing",
                "which of several threads or processes is first",
                "one thread, or join them and take their results in a fixed order",
                &[
                    "thread",
                    "Thread",
                    "pthread",
                    "multiprocessing",
                    "concurrent",
                    "Promise.race",
                    "Promise.all",
                    "Worker",
                    "fork(",
                    "goroutine",
                    " &\n",
                    "& ",
                ],
            ),
            Source::Environment => (
                "environment",
                "a variable of the environment",
                "inputs or state; `[contract.env]` sets variables alike on all nodes",
                &["environ", "getenv", "process.env", "env::var", "$HOME", "${", "$USER", "printenv", "env |"],
            ),
            Source::Locale => (
                "locale",
                "the locale or the time zone",
                "set them in the program: LC_ALL=C, TZ=UTC; `[contract.env]` keeps them alike on all nodes",
                &["setlocale", "localtime", "strftime", "toLocale", "sort", "Intl.", "date"],
            ),
            Source::Descriptors => (
                "descriptors",
                "the numbers of descriptors",
                "use them to read and write, and for nothing else",
                &["npl", "control", "fd"],
            ),
            Source::Users => (
                "order of users",
                "the order in which users' descriptors are numbered, or in which they become readable",
                "sort users by key; where an order is an advantage, by a hash of `seed` and key",
                &["select", "poll", "user", "epoll"],
            ),
            Source::Folder => (
                "folder",
                "the path of the contract's folder, which is another one on each node",
                "relative paths, and no path in outputs and state",
                &["getcwd", "cwd()", "__file__", "abspath", "pwd", "PWD", "$0", "HOME", "__dirname", "realpath"],
            ),
            Source::Directory => (
                "directory order",
                "the order in which a folder is listed, the numbers of its files, or its size",
                "sort the list by name",
                &[
                    "listdir", "scandir", "os.walk", "glob", "readdir", "iterdir", "find ", "ls ", "ls -", "read_dir",
                    "st_ino",
                ],
            ),
            Source::Umask => (
                "umask",
                "the bits that are taken from new files",
                "chmod where a bit matters; of a file in state/ only the owner's executable bit counts",
                &["chmod", "umask", "st_mode", "install "],
            ),
            Source::Host => (
                "host name",
                "the name of the machine",
                "inputs or state; `contract` on stdin names the network",
                &["gethostname", "hostname", "uname", "os.node", "platform."],
            ),
            Source::Network => (
                "network",
                "the network, or that there is one",
                "inputs: have operators send what comes from outside, so that it is agreed on",
                &["socket", "http", "fetch(", "curl", "wget", "urlopen", "connect(", "net.", "getaddrinfo", "nc "],
            ),
            Source::Containment => (
                "containment",
                "something that a node keeps a contract from where its kernel can: files outside of bin/ and state/, system \
                 calls, other processes",
                "do without it: what is refused on one node may work on another",
                &["open(", "/etc/", "/tmp", "/home", "/var", "ptrace", "mount", "unshare", "/proc"],
            ),
            Source::Member => (
                "node",
                "which node this is: `pubkey`, or the folder `private`",
                "use them for what is not compared: the party line, logs",
                &["pubkey", "private"],
            ),
            Source::PartyLine => (
                "party line",
                "what was heard on the party line, which may be another thing on each node",
                "use it for what is not compared; what is to be agreed on comes as an input",
                &["npl"],
            ),
        }
    }

    /// Lines of the contract's files that hint at it, as `file:line: text`; of a program that is no text, names in it.
    pub(super) fn places(self, folder: &Path) -> Vec<String> {
        let words = self.row().3;
        let mut found = Vec::new();
        for path in program_files(folder) {
            let mut bytes = Vec::new();
            let read = fs::File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
            if read.is_err() {
                continue;
            }
            let name = path.strip_prefix(folder.parent().unwrap_or(folder)).unwrap_or(&path).display().to_string();
            match std::str::from_utf8(&bytes) {
                Ok(text) => {
                    for (at, line) in text.lines().enumerate() {
                        let code = line.trim();
                        let is_comment = code.starts_with('#') || code.starts_with("//") || code.starts_with("\"\"\"");
                        if !is_comment && words.iter().any(|word| line.contains(word)) {
                            let line: String =
                                code.chars().filter(|c| !c.is_control()).take(LINE_CHARACTERS_MAX).collect();
                            found.push(format!("{name}:{}: {line}", at + 1));
                        }
                    }
                }
                Err(_) => {
                    let has =
                        |word: &&&str| word.len() > 5 && bytes.windows(word.len()).any(|part| part == word.as_bytes());
                    let names: Vec<&str> = words.iter().filter(has).copied().collect();
                    if !names.is_empty() {
                        found.push(format!("{name} has the names {}", names.join(", ")));
                    }
                }
            }
            if found.len() >= PLACES_MAX {
                break;
            }
        }
        found.truncate(PLACES_MAX);
        found
    }
}

/// Files that may be the contract's program, in a fixed order.
fn program_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
            if files.len() == FILES_MAX || folders.len() == FILES_MAX {
                return files;
            }
        }
    }
    files
}
