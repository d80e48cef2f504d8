//! `hp exec`: one run of a contract, offline, with everything that came of it.

use std::{ffi::OsStr, fs, io, os::unix::ffi::OsStrExt as _, path::Path};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    place::Place,
    users::{self, Room},
    view::{self, Entry, Paint, block, bytes, many, path_text},
};
use crate::{
    cli::{Exit, Failure, Outcome, answer, run::Stop, scratch},
    consensus::header::UnlChange,
    contract::{Launcher, UserInput},
    node::offline::{Done, Ledger, Offline},
    types::{Hash, Seq, Status},
};

/// Paths of the state shown one by one.
const PATHS_MAX: usize = 50;
/// Messages on the party line shown one by one.
const MESSAGES_MAX: usize = 20;
/// Before what belongs to a line.
const INDENT: &str = "    ";
/// Ledger time where none is given, in seconds: every run is alike.
pub(super) const TIME_S: u64 = 1_700_000_000;

const EXAMPLES: &str = "\
Examples:
  hp exec guestbook --user alice=hello.txt         one user, who sends what stands in the file
  echo hello | hp exec guestbook --user alice=-    ... or what comes on stdin
  hp exec guestbook --text alice=hello --user bob  Alice sends a text, Bob is there and says nothing
  hp exec guestbook --text alice=hi --commit       and keep what the contract left in guestbook/state
  hp exec mynode --seq 7 --time 1700000000 --json  what a program reads

DIR needs nothing but the executable (bin/contract); of a node's folder the configuration is used. The contract runs in a
copy: DIR is not changed, unless --commit is given. It runs as on a node, with the limits of the configuration, but alone:
no ledger, no network, nobody on the party line. A NAME is a user with a key of its own, always the same one; a key in 64
hexadecimal digits stands for itself. A user named more than once has sent several inputs, which the contract reads
joined; nothing is put between them.

Exit codes: 0 the run ended well, 1 it did not.";

/// Run a contract once, offline, and show all that comes of it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Exec {
    #[command(flatten)]
    place: Place,
    /// A user of the ledger, and a file with an input (- is stdin); may be repeated
    #[arg(long, value_name = "NAME[=FILE]")]
    user: Vec<String>,
    /// A user of the ledger, and the text of an input; may be repeated, and comes after those of --user
    #[arg(long, value_name = "NAME=TEXT", allow_hyphen_values = true)]
    text: Vec<String>,
    /// Number of the ledger
    #[arg(long, value_name = "SEQ", default_value_t = 1)]
    seq: Seq,
    /// Time of the ledger in seconds since 1970
    #[arg(long, value_name = "SECONDS", default_value_t = TIME_S)]
    time: u64,
    /// Run as for a question: `readonly` is true, and nothing that is written to state/ is kept
    #[arg(long, conflicts_with = "commit")]
    readonly: bool,
    /// Keep the state: when the run ends well, DIR/state (or the folder of --state) becomes what the contract left
    #[arg(long)]
    commit: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Exec {
    pub(in crate::cli) fn run(self) -> Outcome {
        let room = self.room()?;
        if self.commit && self.place.state.is_none() && self.place.dir.join("hist").is_dir() {
            let what =
                "is a node's folder, whose state is what its chain says; --commit may change another with --state";
            return Err(anyhow!("{} {what}", self.place.dir.display()).into());
        }
        let (scratch, config) = self.place.copy()?;
        let nothing = TempDir::new().context("cannot make a folder")?;
        let before = self.place.begin().unwrap_or_else(|| nothing.path().to_owned());
        let time_ms = self.time.checked_mul(1_000).context("--time is too far ahead")?;
        let ledger = Ledger {
            seq: self.seq,
            time_ms,
            lcl: Hash::tagged("hp/author/1", &("ledger", self.seq)),
            users: room.users(),
            unl: config.unl.clone(),
            readonly: self.readonly,
            heard: Vec::new(),
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        let run = async {
            let exe = std::env::current_exe().context("cannot find this program's own file")?;
            let launcher = Launcher::start(&exe).context("cannot start the launcher")?;
            let mut offline = Offline::start(config, launcher, true).await?;
            let mut changes = Vec::new();
            let look = |after: &Path, paths: &[Vec<u8>]| {
                changes = paths.iter().take(PATHS_MAX).map(|path| Change::of(path, &before, after)).collect();
            };
            let done = offline.run(ledger, look).await?;
            offline.stop().await?;
            Ok::<_, Failure>((done, changes))
        };
        let (done, changes) = runtime.block_on(async {
            let stop = Stop::watch().context("cannot watch for signals")?;
            tokio::select! {
                done = run => done,
                // The copy is removed in any case.
                signal = stop.wait() => Err(Failure::new(Exit::Interrupted, anyhow!("ended by {signal}"))),
            }
        })?;
        let committed = self.commit && done.status == Status::Ok;
        if committed {
            let to = self.place.state.clone().unwrap_or_else(|| self.place.dir.join("state"));
            replace(&scratch.dir().join("state"), &to)?;
        }
        let shown = Shown { exec: &self, done: &done, room: &room, changes: &changes, committed };
        if self.json {
            answer(&format!("{}\n", shown.json()))?
        } else {
            answer(&shown.text(Paint::stdout()))?
        }
        if done.status == Status::Ok { Ok(()) } else { Err(Failure::told(Exit::Failed)) }
    }

    fn room(&self) -> Result<Room, Failure> {
        let mut room = Room::default();
        for user in &self.user {
            match user.split_once('=') {
                Some((name, file)) => room.add(name, Some(users::read_input(Path::new(file))?)),
                None => room.add(user, None),
            }
        }
        for text in &self.text {
            let (name, text) = text.split_once('=').with_context(|| format!("--text {text}: expected NAME=TEXT"))?;
            room.add(name, Some(Bytes::copy_from_slice(text.as_bytes())));
        }
        Ok(room)
    }
}

/// A path that the run changed.
struct Change {
    path: Vec<u8>,
    before: Entry,
    after: Entry,
    /// The lines that differ, each with its sign; empty where that says nothing.
    lines: Vec<String>,
}

impl Change {
    fn of(path: &[u8], before: &Path, after: &Path) -> Change {
        let name = OsStr::from_bytes(path);
        let (before, after) = (before.join(name), after.join(name));
        let lines = view::diff(&before, &after);
        Change { path: path.to_vec(), before: Entry::of(&before), after: Entry::of(&after), lines }
    }
}

/// Makes `to` a copy of `state`. Either is there at every moment, whole.
fn replace(state: &Path, to: &Path) -> Result<(), Failure> {
    // A trailing slash or a link would make the names beside it others.
    let to = match to.canonicalize() {
        Ok(real) => real,
        Err(_) => std::path::absolute(to).with_context(|| format!("cannot tell where {} is", to.display()))?,
    };
    let above = to.parent().context("the root folder cannot be a state")?;
    let aside = tempfile::Builder::new().prefix(".hp-exec-").tempdir_in(above).context("cannot make a folder")?;
    let (fresh, old) = (aside.path().join("new"), aside.path().join("old"));
    scratch::copy(state, &fresh, false)?;
    let moved = || -> io::Result<()> {
        if to.is_dir() {
            fs::rename(&to, &old)?;
        }
        fs::rename(&fresh, &to).inspect_err(|_| {
            let _ = fs::rename(&old, &to);
        })
    };
    Ok(moved().with_context(|| format!("cannot replace {}", to.display()))?)
}

/// All there is to show.
struct Shown<'a> {
    exec: &'a Exec,
    done: &'a Done,
    room: &'a Room,
    changes: &'a [Change],
    committed: bool,
}

impl Shown<'_> {
    fn text(&self, paint: Paint) -> String {
        let done = self.done;
        let line = |name: &str, value: String| format!("{}{value}\n", paint.strong(&format!("{name:<11}")));
        let is_ok = done.status == Status::Ok;
        let status = done.status.to_string();
        let status = if is_ok { paint.good(&status) } else { paint.bad(&status) };
        let undone = if is_ok { "" } else { "; what it wrote is undone, its outputs are dropped" };
        let mut text = line("status", format!("{status}, {:.1} ms{undone}", done.elapsed.as_secs_f64() * 1_000.0));
        if let Some((path, kind)) = &done.forbidden {
            let path = path_text(path.as_os_str().as_bytes());
            text += &line("forbidden", format!("state/{path} is {kind}, which nodes cannot agree on"));
        }
        if done.left_over > 0 {
            text += &line(
                "left over",
                format!("{} killed at the end", many(done.left_over as usize, "process", "processes")),
            );
        }
        for user in self.room.users() {
            let sent = match user.inputs.len() {
                0 => "sent nothing".to_owned(),
                inputs => format!("sent {} in {}", bytes(sent(&user)), many(inputs, "input", "inputs")),
            };
            let output = done.outputs.get(&user.key).map(Vec::as_slice).unwrap_or_default();
            let key = paint.faint(&user.key.short());
            text +=
                &line("user", format!("{} {key} {sent}, gets {}", self.room.names.of(&user.key), bytes(output.len())));
            if !output.is_empty() {
                text += &block(output, INDENT);
            }
        }
        text += &self.state_text(paint);
        let logs = [("stdout", &done.stdout), ("stderr", &done.stderr)];
        for (name, log) in logs.into_iter().filter(|(_, log)| !log.is_empty()) {
            text += &line(name, bytes(log.len()));
            text += &block(log, INDENT);
        }
        for message in done.said.iter().take(MESSAGES_MAX) {
            text += &line("party line", bytes(message.len()));
            text += &block(message, INDENT);
        }
        if done.said.len() > MESSAGES_MAX {
            text +=
                &line("party line", format!("{} more", many(done.said.len() - MESSAGES_MAX, "message", "messages")));
        }
        if let Some(change) = &done.unl_request {
            text += &line("asks", unl_text(change));
        }
        text += &line("stdin", String::from_utf8_lossy(&done.stdin).into_owned());
        text
    }

    fn state_text(&self, paint: Paint) -> String {
        let changed = self.done.changed.len();
        let kept = match (self.done.status == Status::Ok, self.committed, self.exec.readonly) {
            _ if changed == 0 => "",
            (false, ..) => ", undone",
            (_, _, true) => ", not kept: the run is read-only",
            (_, true, _) => ", kept",
            _ => "; in a copy, --commit would keep it",
        };
        let mut text = paint.strong(&format!("{:<11}", "state"));
        text += &match changed {
            0 => "nothing changed\n".to_owned(),
            _ => format!("{} changed{kept}\n", many(changed, "path", "paths")),
        };
        for change in self.changes {
            let (sign, what) = view::change(&change.before, &change.after);
            let path = format!("{sign} {}", path_text(&change.path));
            let path = match sign {
                '+' => paint.good(&path),
                '-' => paint.bad(&path),
                _ => path,
            };
            text += &format!("{INDENT}{path}  {}\n", paint.faint(&what));
            for line in &change.lines {
                let line = match line.as_bytes()[0] {
                    b'+' => paint.good(line),
                    b'-' => paint.bad(line),
                    _ => line.clone(),
                };
                text += &format!("{INDENT}  {line}\n");
            }
        }
        if changed > self.changes.len() {
            text += &format!("{INDENT}... {} more\n", many(changed - self.changes.len(), "path", "paths"));
        }
        text
    }

    fn json(&self) -> Value {
        let done = self.done;
        let users = self.room.users();
        let users = users.iter().map(|user| {
            let output = done.outputs.get(&user.key).map(Vec::as_slice).unwrap_or_default();
            json!({
                "name": self.room.names.of(&user.key), "key": user.key.to_string(), "inputs": user.inputs.len(),
                "input_bytes": sent(user), "output": shown(output),
            })
        });
        let changes = self.changes.iter().map(|change| {
            let (before, after) = (change.before.text(), change.after.text());
            json!({ "path": path_text(&change.path), "before": before, "after": after, "lines": change.lines })
        });
        json!({
            "ok": done.status == Status::Ok, "status": done.status.to_string(), "ms": done.elapsed.as_secs_f64() * 1_000.0,
            "stdin": serde_json::from_slice::<Value>(&done.stdin).unwrap_or_default(),
            "users": users.collect::<Vec<_>>(),
            "state": { "changed": done.changed.len(), "paths": changes.collect::<Vec<_>>(), "committed": self.committed },
            "forbidden": done.forbidden.as_ref().map(|(path, kind)| {
                json!({ "path": path_text(path.as_os_str().as_bytes()), "kind": kind.to_string() })
            }),
            "stdout": shown(&done.stdout), "stderr": shown(&done.stderr),
            "party_line": done.said.iter().map(|message| shown(message)).collect::<Vec<_>>(),
            "asks": done.unl_request.as_ref().map(unl_text), "left_over": done.left_over,
        })
    }
}

/// Bytes of all inputs of a user.
fn sent(user: &UserInput) -> usize {
    user.inputs.iter().map(Bytes::len).sum()
}

/// Bytes for a program: as text where they are text, else in hex.
fn shown(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "bytes": bytes.len(), "text": text }),
        Err(_) => json!({ "bytes": bytes.len(), "hex": hex::encode(bytes) }),
    }
}

fn unl_text(change: &UnlChange) -> String {
    match change {
        UnlChange::Add(key) => format!("unl add {key}"),
        UnlChange::Remove(key) => format!("unl remove {key}"),
    }
}
