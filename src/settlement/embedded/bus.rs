//! The bus itself, behind its HTTP API: takes operations, has them written down, and tells what is there.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot, watch},
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tracing::{error, info};

use super::{
    Hook,
    books::{Books, Change, Code, Entry, Place},
    hooks::{Hooks, one_of},
    intake::Refusal,
    log::{LINES_MAX, Log, LogError, Reader},
};
use crate::{
    crypto::SecretKey,
    settlement::{
        Address, Amount,
        tx::{Completion, Landed, Signed, txv_of},
    },
    types::Hash,
};

/// Operations that are accepted and not on disk yet, as on the real bus. Past it further ones are refused with 429.
const WAITING_MAX: usize = 1_500;

/// What may come of handing in an operation that is right.
#[derive(Debug)]
pub(super) enum Taken {
    /// It waits, and this is what to say.
    Accepted { confirmed: u64, unconfirmed: u64 },
    /// The real bus's answer when its validators do not take it: 429.
    TooMany,
    /// A hook wants no reply, when it is written.
    NoReply(oneshot::Receiver<bool>),
}

/// The bus, shared by its connections and its writer.
#[derive(Debug)]
pub(super) struct Bus {
    state: Mutex<State>,
    log: Arc<Mutex<Log>>,
    reader: Arc<Reader>,
    /// Something waits, or may go on.
    wake: Notify,
    pub(super) hanging: watch::Sender<bool>,
    key: SecretKey,
    pub(super) hooks_allowed: bool,
}

#[derive(Debug)]
struct State {
    books: Books,
    /// Where each line of the log begins.
    lines: Vec<u64>,
    /// For each change that waits in the books.
    waits: VecDeque<Wait>,
    hooks: Hooks,
    /// Whether the log is stuck, so that nothing is written until the next start.
    broken: bool,
    closing: bool,
}

#[derive(Debug)]
struct Wait {
    due: Due,
    done: oneshot::Sender<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Now,
    At(Instant),
    Held,
}

/// What the writer does next.
enum Next {
    Write(String),
    Wait,
    WaitUntil(Instant),
    End,
}

impl Bus {
    pub(super) fn new(books: Books, log: Log, key: SecretKey, hooks_allowed: bool) -> Result<Bus, LogError> {
        let reader = Arc::new(log.reader()?);
        let state = State {
            books,
            lines: log.lines().to_vec(),
            waits: VecDeque::new(),
            hooks: Hooks::default(),
            broken: false,
            closing: false,
        };
        Ok(Bus {
            state: Mutex::new(state),
            log: Arc::new(Mutex::new(log)),
            reader,
            wake: Notify::new(),
            hanging: watch::Sender::new(false),
            key,
            hooks_allowed,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    /// Looks at the books.
    pub(super) fn with_books<T>(&self, look: impl FnOnce(&Books) -> T) -> T {
        look(&self.state().books)
    }

    /// Whether operations can be written down.
    pub(super) fn works(&self) -> bool {
        !self.state().broken
    }

    /// Hands in an operation.
    pub(super) fn hand_in(&self, signed: Signed) -> Result<Taken, Refusal> {
        let mut state = self.state();
        if let Err(refused) = state.books.check(&signed) {
            let (code, why) = (refused.code, refused.why.as_str());
            info!(tx = %signed.hash, %code, why, "operation refused");
            return Err(Refusal::invalid(refused.code, refused.why));
        }
        if !state.has_room() {
            return Ok(Taken::TooMany);
        }
        let hash = signed.hash;
        if one_of(&mut state.hooks.lose_accepted) {
            info!(tx = %hash, "operation lost, as a hook wants");
            return Ok(state.accepted(1));
        }
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).expect("the operating system gives random bytes");
        let (network, kind) = (state.books.network, signed.operation.kind());
        let completion = Completion::new(network, &hash, kind, Hash(nonce), &self.key);
        let done = state.accept(Change::Operation(Box::new(Landed { signed, completion })));
        self.wake.notify_one();
        if one_of(&mut state.hooks.drop_reply) {
            return Ok(Taken::NoReply(done));
        }
        if one_of(&mut state.hooks.refuse_landed) {
            return Ok(Taken::TooMany);
        }
        Ok(state.accepted(0))
    }

    /// Makes a change that is no operation, and returns when it is on disk.
    pub(super) async fn change(&self, change: Change) -> Result<(), String> {
        let done = {
            let mut state = self.state();
            state.books.check_other(&change)?;
            if !state.has_room() {
                return Err("too much waits, or the log is full".to_owned());
            }
            let done = state.accept(change);
            self.wake.notify_one();
            done
        };
        match done.await {
            Ok(true) => Ok(()),
            _ => Err("the log cannot be written".to_owned()),
        }
    }

    /// Gives money to an address.
    pub(super) async fn fund(&self, address: Address, amount: Amount) -> Result<Amount, String> {
        self.change(Change::Fund(address, amount)).await?;
        info!(%address, %amount, "funded");
        Ok(self.with_books(|books| books.confirmed.balance(&address)))
    }

    /// A confirmed operation, and its place.
    pub(super) async fn confirmed(&self, hash: &Hash) -> io::Result<Option<(Landed, u64)>> {
        let found = {
            let state = self.state();
            match state.books.place(hash) {
                Some(Place::At(place)) => Some((place, state.lines[place as usize], state.hooks.shown)),
                _ => None,
            }
        };
        let Some((place, at, shown)) = found else { return Ok(None) };
        let (network, reader) = (self.with_books(|books| books.network), self.reader.clone());
        let json = spawn_blocking(move || reader.json(at)).await.map_err(io::Error::other)??;
        let entry: Entry = serde_json::from_str(&json).map_err(io::Error::other)?;
        match Change::read(entry, network) {
            Ok(Change::Operation(landed)) => Ok(Some((shown.of(*landed), place))),
            Ok(_) => Err(io::Error::other("the log has something else in the place of an operation")),
            Err(what) => Err(io::Error::other(what)),
        }
    }

    /// An operation that is accepted and not confirmed.
    pub(super) fn waiting(&self, hash: &Hash) -> Option<Landed> {
        let state = self.state();
        let landed = state.books.waiting_operation(hash).cloned();
        landed.map(|landed| state.hooks.shown.of(landed))
    }

    /// Does what a test wants.
    pub(super) async fn hook(&self, hook: Hook) -> Result<(), String> {
        info!(?hook, "hook");
        match hook {
            Hook::DropReply(count) => self.state().hooks.drop_reply = count,
            Hook::RefuseLanded(count) => self.state().hooks.refuse_landed = count,
            Hook::LoseAccepted(count) => self.state().hooks.lose_accepted = count,
            Hook::ConfirmAfterMs(ms) => {
                let mut state = self.state();
                (state.hooks.hold, state.hooks.confirm_after_ms) = (false, ms);
                let due = state.due();
                state.waits.iter_mut().for_each(|wait| wait.due = due);
                self.wake.notify_one();
            }
            Hook::HoldConfirmations => self.state().hooks.hold = true,
            Hook::RotateTxv => {
                let now = self.with_books(|books| books.unconfirmed.txv);
                self.change(Change::Txv(txv_of(&[self.key.node_key().0, now.0]))).await?;
            }
            Hook::RestoreTxv => self.change(Change::Txv(txv_of(&[self.key.node_key().0]))).await?,
            Hook::Impoverish(address) => {
                let network = self.with_books(|books| books.network);
                let address = Address::parse(&address, network).map_err(|error| error.to_string())?;
                self.change(Change::Impoverish(address)).await?;
            }
            Hook::Lie(lie) => self.state().hooks.shown.lie = lie,
            Hook::Forge(forge) => self.state().hooks.shown.forge = forge,
            Hook::Hang(hang) => {
                self.hanging.send_replace(hang);
            }
        }
        Ok(())
    }

    /// Writes down what waits, one after the other, until the bus closes.
    pub(super) async fn write(self: Arc<Bus>) {
        loop {
            match self.next() {
                Next::End => return,
                Next::Wait => self.wake.notified().await,
                Next::WaitUntil(due) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep_until(due) => {}
                },
                Next::Write(json) => {
                    let log = self.log.clone();
                    let written = spawn_blocking(move || {
                        let mut log = log.lock().expect("nobody panics with it");
                        let at = log.end();
                        log.append(&json).map(|()| at).map_err(|error| (error, log.is_stuck()))
                    });
                    // The writer's panic ends the writer: nothing is said to be on disk that is not.
                    let written = written.await.expect("the log is written without a panic");
                    self.state().written(written);
                }
            }
        }
    }

    fn next(&self) -> Next {
        let state = self.state();
        let Some(change) = state.books.waiting().front() else {
            return if state.closing { Next::End } else { Next::Wait };
        };
        match state.waits[0].due {
            Due::At(due) if due > Instant::now() => {
                if state.closing {
                    Next::End
                } else {
                    Next::WaitUntil(due)
                }
            }
            Due::Held => {
                if state.closing {
                    Next::End
                } else {
                    Next::Wait
                }
            }
            Due::Now | Due::At(_) => Next::Write(serde_json::to_string(&change.to_entry()).expect("an entry is JSON")),
        }
    }

    /// Lets the writer end when it has written what is due.
    pub(super) fn close(&self) {
        self.state().closing = true;
        self.wake.notify_one();
    }
}

impl State {
    fn has_room(&self) -> bool {
        let waiting = self.books.waiting().len();
        !self.broken && waiting < WAITING_MAX && self.lines.len() as u64 + (waiting as u64) < LINES_MAX
    }

    fn due(&self) -> Due {
        match (self.hooks.hold, self.hooks.confirm_after_ms) {
            (true, _) => Due::Held,
            (false, 0) => Due::Now,
            (false, ms) => Due::At(Instant::now() + Duration::from_millis(ms)),
        }
    }

    fn accept(&mut self, change: Change) -> oneshot::Receiver<bool> {
        let (done, receiver) = oneshot::channel();
        self.waits.push_back(Wait { due: self.due(), done });
        self.books.accept(change);
        receiver
    }

    fn accepted(&self, more: u64) -> Taken {
        let (confirmed, unconfirmed) = (self.books.confirmed_length(), self.books.unconfirmed_length() + more);
        Taken::Accepted { confirmed, unconfirmed }
    }

    fn written(&mut self, written: Result<u64, (LogError, bool)>) {
        match written {
            Ok(at) => {
                self.lines.push(at);
                if let Some(Change::Operation(landed)) = self.books.waiting().front() {
                    let (tx, place) = (landed.signed.hash, self.books.confirmed_length());
                    info!(%tx, place, kind = landed.signed.operation.kind(), "operation landed");
                }
                self.books.confirm();
                let wait = self.waits.pop_front().expect("one for each that waits");
                // Mostly nobody waits for it.
                let _ = wait.done.send(true);
            }
            Err((problem, stuck)) => {
                let lost = self.books.forget_waiting();
                error!(error = %anyhow::Error::new(problem), lost, "the bus's log cannot be written; what waited is lost");
                self.waits.clear();
                // A disk that was full may have room again.
                self.broken = stuck;
            }
        }
    }
}

/// For a refusal's extra fields.
pub(super) fn code_and_reason(reason: &(Code, String)) -> (u64, String) {
    let (code, why) = reason;
    (*code as u64, format!("{code}: {why}"))
}
