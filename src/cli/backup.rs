//! `hp backup` and `hp restore`: a node as one file, also while it runs, and back.

use std::{
    fs,
    io::{self, IsTerminal as _},
    path::{self, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::{Exit, Failure, Outcome, answer, ledger::utc};
use crate::{
    crypto::SecretKey,
    node::{
        backup::{self, BackupError, Making, Manifest, Prepared},
        control::{self, Request},
    },
    types::{Hash, WallMs},
};

/// How often a line tells how far it is where there is no terminal.
const TELL_TIME: Duration = Duration::from_secs(5);

const BACKUP_EXAMPLES: &str = "\
Examples:
  hp backup mynode mynode-2026-11-21.tar       without the secret key
  hp backup mynode safe/mynode.tar --with-key  with it, and with private/: keep the file as safe as the key

The node may run, and goes on running the contract and voting meanwhile. In the file: the database, the
state after one of its ledgers, cfg/hp.cfg, bin/, and a list of hashes. Older chains in hist/before/, logs and diag/ are not. It
takes room for the database and the state once more beside FILE while it is made. The file is of mode 0600.

Exit codes: 0 done, 1 failed, 3 configuration, 4 database damaged, 6 the node does not answer.";

/// Make a backup of a node, running or not.
#[derive(Debug, clap::Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub(super) struct Backup {
    /// The contract folder
    dir: PathBuf,
    /// The file to make; it must not exist
    file: PathBuf,
    /// With the secret key, and the folder private/
    #[arg(long)]
    with_key: bool,
    /// Tell the outcome as one JSON object
    #[arg(long)]
    json: bool,
}

impl Backup {
    pub(super) fn run(self) -> Outcome {
        let absolute =
            |path: &PathBuf| path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()));
        let (dir, file) = (absolute(&self.dir)?, absolute(&self.file)?);
        let progress = Progress::default();
        progress.tell("copying the state", 0, 0);
        let making = Making::begin(&dir, &file).map_err(failure)?;
        let running = making.is_running();
        let prepared = if running { ask_for_state(&dir, making)? } else { making.copy_state().map_err(failure)? };
        let made = prepared.finish(self.with_key, now_ms()?, &mut |what, done, all| progress.tell(what, done, all));
        progress.end();
        let (file, manifest, bytes) = made.map_err(failure)?;
        if self.json {
            return answer(&format!(
                "{}\n",
                json!({
                    "file": file.display().to_string(), "bytes": bytes, "running": running,
                    "tip": manifest.tip, "executed": manifest.executed, "with_key": manifest.with_key,
                    "with_bus": manifest.with_bus(), "chain_id": text(manifest.chain_id()), "state_root": text(manifest.state_root()),
                })
            ));
        }
        let key = match manifest.with_key {
            true => "the secret key is in it: keep it safe",
            false => "the secret key is NOT in it: keep cfg/hp.cfg (or the key file) elsewhere",
        };
        let bus = match (manifest.with_bus(), dir.join("msb").exists()) {
            (true, _) => "\n  msb/, the settlement bus that the node runs in itself, is in it, with its key",
            (false, true) => {
                "\n  msb/, the settlement bus that the node runs in itself, is NOT in it: --with-key takes it, and its key"
            }
            (false, false) => "",
        };
        answer(&format!(
            "{}: {bytes} bytes\n  chain   {}\n  ledger  {}, state after ledger {}\n  {key}{bus}\n",
            file.display(),
            text(manifest.chain_id()),
            manifest.tip,
            manifest.executed
        ))
    }
}

/// Has the running node copy its state.
fn ask_for_state(dir: &path::Path, making: Making) -> Result<Prepared, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let told = runtime.block_on(control::ask(dir, &Request::CopyState { to: making.state() }));
    let no_answer = || format!("the node of {} does not answer", dir.display());
    let told = told.with_context(no_answer).map_err(|error| Failure::new(Exit::NoAnswer, error))?;
    if let Some(why) = told["error"].as_str() {
        return Err(Failure::new(Exit::Failed, anyhow!("the node did not copy its state: {why}")));
    }
    let root: Option<Hash> = told["root"].as_str().and_then(|root| root.parse().ok());
    match (told["executed"].as_u64(), root) {
        (Some(executed), Some(root)) => Ok(making.copied(executed, root)),
        _ => Err(Failure::new(Exit::Failed, anyhow!("the node answers what this program does not understand: {told}"))),
    }
}

const RESTORE_EXAMPLES: &str = "\
Examples:
  hp restore mynode.tar mynode                     a backup made --with-key
  hp restore mynode.tar mynode --key mynode.key    one without: the file holds the secret key (64 or 128 hex digits)

Checks every hash, the whole chain and the state before anything is put in place. Never restore while the same node runs
somewhere else. What the node has said since the backup was made is not in it, so it starts silent: it follows the others, and
votes when two ledgers were closed without it. Without a key the node does not start until `hp rekey` has drawn one.

Exit codes: 0 done, 1 refused, 3 configuration, 4 database damaged.";

/// Make a contract folder out of a backup.
#[derive(Debug, clap::Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub(super) struct Restore {
    /// The backup
    file: PathBuf,
    /// The contract folder; it must not exist, or be empty
    dir: PathBuf,
    /// A file with the node's secret key
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Tell the outcome as one JSON object
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub(super) fn run(self) -> Outcome {
        let dir = path::absolute(&self.dir).with_context(|| format!("cannot tell where {} is", self.dir.display()))?;
        let key = match &self.key {
            None => None,
            Some(file) => {
                let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
                Some(SecretKey::parse(text.trim()).with_context(|| format!("{} holds no secret key", file.display()))?)
            }
        };
        let progress = Progress::default();
        let reason = |manifest: &Manifest| {
            format!("restored from a backup of {}, ledger {}", utc(manifest.made_ms), manifest.tip)
        };
        let restored = backup::restore(&self.file, &dir, key.as_ref(), reason, &mut |what, done, all| {
            progress.tell(what, done, all)
        });
        progress.end();
        let restored = restored.map_err(failure)?;
        let (manifest, config) = (&restored.manifest, &restored.config);
        let has_key = config.secret.seed() != crate::config::EXAMPLE_SEED;
        if self.json {
            let told: Value = json!({
                "dir": dir.display().to_string(), "tip": manifest.tip, "executed": manifest.executed,
                "chain_id": text(manifest.chain_id()), "made_ms": manifest.made_ms, "has_key": has_key,
            });
            return answer(&format!("{told}\n"));
        }
        let mut told = format!(
            "{} restored from a backup of {}\n  chain   {}\n  ledger  {}, state after ledger {}: both were checked\n",
            dir.display(),
            utc(manifest.made_ms),
            text(manifest.chain_id()),
            manifest.tip,
            manifest.executed
        );
        if !has_key {
            told.push_str(
                "It has no key: `hp rekey --force` draws one, with which it observes. With its old key, restore again with --key.\n",
            );
        }
        if !config.binary.exists() {
            told.push_str(&format!("Its executable is missing: put it at {}.\n", config.binary.display()));
        }
        told.push_str(
            "It starts silent, until two ledgers were closed without it. Make sure that it runs nowhere else.\n",
        );
        answer(&told)
    }
}

fn text(hash: Option<Hash>) -> String {
    hash.map_or_else(String::new, |hash| hash.to_string())
}

fn now_ms() -> Result<WallMs, anyhow::Error> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
    u64::try_from(now.as_millis()).context("the clock is too far ahead")
}

fn failure(error: BackupError) -> Failure {
    let exit = match &error {
        BackupError::Node(error) if error.is_taken() => Exit::Taken,
        BackupError::Ledger(error) if error.is_damage() => Exit::Database,
        BackupError::Config(_) => Exit::Config,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

/// What is being done and how far it is: a bar in a terminal, else a line now and then. On stderr.
#[derive(Default)]
struct Progress {
    bar: std::cell::OnceCell<ProgressBar>,
    told: std::cell::Cell<Option<Instant>>,
}

impl Progress {
    fn tell(&self, what: &'static str, done: u64, all: u64) {
        if io::stderr().is_terminal() {
            let bar = self.bar.get_or_init(|| {
                let style = ProgressStyle::with_template("{msg} {bar:30} {percent} %").expect("the template is one");
                ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr()).with_style(style)
            });
            bar.set_message(what);
            bar.set_length(all.max(1));
            bar.set_position(done);
        } else if let Some(percent) = (100 * done.min(all)).checked_div(all) {
            // The first word of a short one would be the only one.
            let began = self.told.get().unwrap_or_else(Instant::now);
            self.told.set(Some(began));
            if began.elapsed() >= TELL_TIME {
                self.told.set(Some(Instant::now()));
                eprintln!("{what}: {percent} %");
            }
        }
    }

    fn end(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
