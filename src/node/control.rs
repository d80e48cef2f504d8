//! The operator's channel: a unix socket in the contract folder that takes one JSON request a line and answers each
//! with one JSON line. Only the owner may connect; HTTP is for the network, this is for the operator.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Duration, timeout},
};

use crate::types::Seq;

/// Bytes of one request. A longer one ends the connection.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Requests waiting for the node. Past it a connection waits.
const REQUESTS_MAX: usize = 16;

/// How long a [`Request::Watch`] waits at most: what an operator sees of time alone is at most so old.
const WATCH_TIME: Duration = Duration::from_secs(5);

/// Where the socket of a contract folder is.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("run/hp.sock")
}

/// The same, as short as it gets: the address of a socket has room for about a hundred bytes.
fn address(dir: &Path) -> PathBuf {
    let path = path(dir);
    match env::current_dir() {
        Ok(here) => path.strip_prefix(here).map(Path::to_owned).unwrap_or(path),
        Err(_) => path,
    }
}

/// What an operator may ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Where the node stands.
    Status,
    /// The same, as soon as the node stands otherwise than in the status whose `change` was this, or after a few seconds.
    Watch {
        /// Another number than the node's is answered at once.
        after: u64,
    },
    /// What Prometheus reads, as one text.
    Metrics,
    /// Who decides, and who votes for which change of that.
    Unl,
    /// Vote for a change of the UNL.
    UnlVote(UnlVote),
    /// Take that vote back.
    UnlWithdraw,
    /// End the node in order, as SIGTERM does.
    Stop,
    /// Whom this node wants no link with.
    Bans,
    /// Have no link with a node for a time.
    Ban(Ban),
    /// Take a ban back.
    Unban {
        /// Whose.
        node: String,
    },
    /// Copy the state, as the last run left it, to this folder, which must not exist.
    CopyState {
        /// Where to; an absolute path.
        to: PathBuf,
    },
    /// Begin no more runs. The answer comes when the one that is under way has ended, with the ledger whose run was begun
    /// last. Ledgers go on closing.
    HoldRuns,
    /// Begin runs again.
    GoOn {
        /// With other files.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bin: Option<NewBin>,
    },
}

/// What becomes `bin/` between two runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBin {
    /// The last ledger that is run with the old one.
    pub after: Seq,
    /// A folder beside it, on the same file system, that is moved to its place; an absolute path.
    pub from: PathBuf,
}

/// The vote that an operator asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlVote {
    /// Whether the node is to come or to go.
    pub add: bool,
    /// Its key.
    pub node: String,
    /// Where it listens, as `host:port`, to be dialled from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Also when too few members would be live to close ledgers.
    #[serde(default)]
    pub yes: bool,
}

/// The ban that an operator asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ban {
    /// The node's key.
    pub node: String,
    /// For how many seconds; an hour unless told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_s: Option<u64>,
    /// Why, for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A request on its way to the node.
#[derive(Debug)]
pub struct Asked {
    /// What.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Value>,
}

/// The listening socket; removed when dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Control {
    /// Listens in `dir/run/`. The folder's lock is held, so that a socket file there is a dead one's. `changes` counts how
    /// often the node stood otherwise.
    pub fn start(dir: &Path, changes: watch::Receiver<u64>) -> io::Result<(Control, mpsc::Receiver<Asked>)> {
        let path = address(dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let (asked, requests) = mpsc::channel(REQUESTS_MAX);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, asked.clone(), changes.clone()));
            }
        });
        Ok((Control { path, task }, requests))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs::remove_file(&self.path);
    }
}

async fn serve(stream: UnixStream, asked: mpsc::Sender<Asked>, mut changes: watch::Receiver<u64>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        let got = (&mut read).take(REQUEST_BYTES_MAX).read_line(&mut line).await;
        if !matches!(got, Ok(1..)) || !line.ends_with('\n') {
            return;
        }
        let value = match serde_json::from_str::<Request>(&line) {
            Err(error) => serde_json::json!({ "error": format!("cannot read the request: {error}") }),
            Ok(request) => {
                let request = match request {
                    Request::Watch { after } => {
                        // Whether it changed or the time is over, what is shown is as the node stands then.
                        let _ = timeout(WATCH_TIME, changes.wait_for(|change| *change != after)).await;
                        Request::Status
                    }
                    request => request,
                };
                let (answer, answered) = oneshot::channel();
                if asked.send(Asked { request, answer }).await.is_err() {
                    return;
                }
                match answered.await {
                    Ok(value) => value,
                    Err(_) => return,
                }
            }
        };
        if write.write_all(format!("{value}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Asks the node of a contract folder. Fails when none runs there.
pub async fn ask(dir: &Path, request: &Request) -> io::Result<Value> {
    let stream = UnixStream::connect(address(dir)).await?;
    let (read, mut write) = stream.into_split();
    let line = serde_json::to_string(request).expect("a request is plain data");
    write.write_all(format!("{line}\n").as_bytes()).await?;
    let mut answer = String::new();
    BufReader::new(read).read_line(&mut answer).await?;
    serde_json::from_str(&answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_below_this_one_is_asked_however_long_the_way_here_is() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let dir = folder.path().canonicalize().unwrap();
        assert!(dir.is_absolute() && address(&dir).is_relative());
        assert_eq!(address(Path::new("/elsewhere")), Path::new("/elsewhere/run/hp.sock"));
        fs::create_dir(dir.join("run")).unwrap();
        let (_control, mut requests) = Control::start(&dir, watch::channel(0).1).unwrap();
        let answering = async {
            let asked = requests.recv().await.unwrap();
            asked.answer.send(Value::from(7)).unwrap();
        };
        let (answer, ()) = tokio::join!(ask(&dir, &Request::Status), answering);
        assert_eq!(answer.unwrap(), Value::from(7));
        assert_eq!(fs::metadata(path(&dir)).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn whoever_watches_is_answered_when_something_changed_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        let (changed, changes) = watch::channel(7);
        let (_control, mut requests) = Control::start(dir.path(), changes).unwrap();
        let ask = |after| {
            let dir = dir.path().to_owned();
            tokio::spawn(async move { ask(&dir, &Request::Watch { after }).await.unwrap() })
        };
        let watching = ask(7);
        let behind = ask(3);
        requests.recv().await.unwrap().answer.send(Value::from("behind")).unwrap();
        assert_eq!(behind.await.unwrap(), Value::from("behind"), "another number is answered at once");
        assert!(requests.try_recv().is_err() && !watching.is_finished(), "nothing changed");
        changed.send_modify(|change| *change += 1);
        let asked = requests.recv().await.unwrap();
        assert!(matches!(asked.request, Request::Status));
        asked.answer.send(Value::from("changed")).unwrap();
        assert_eq!(watching.await.unwrap(), Value::from("changed"));
    }
}
