//! Passing over ledgers whose contents nobody keeps any more, and going on behind them.
//!
//! Contents are kept for a while, headers and certificates for ever. A node that is behind by more than contents are kept
//! for, a new one or one that was away, takes of each ledger its header, its certificate and its change of the UNL, which
//! prove themselves one after the other from the last ledger that it has. Where others keep all contents from the next
//! ledger on, it takes the users of the ledger that it has come to, which that one's header vouches for, and goes on like
//! any node that is behind; the state it fetches when it is where the others are.
//!
//! It does not vote before it knows the keys of all inputs in the window: what it has passed over may have had any. The
//! others keep contents for longer than the window, so that it knows them when it has caught up.
//! Source: `docs/protocol.md`, "Joining".

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};

use super::{
    Consensus, Effect, Lost, Timer, Tip,
    header::{self, BareLedger},
    journal::Record,
    limits::{ADOPT_WORK_MAX, JOIN_PATIENCE_MS, RANGE_TIMEOUT_MAX_MS, RANGE_TIMEOUT_MS, SYNC_LEDGERS_LEFT, join_spare},
    messages::{Get, UsersPage},
    mutation::mutated,
    range::{CheckedHeaders, Lie},
    results::Runs,
    round::Round,
};
use crate::types::{MonoMs, NodeKey, Seq, UserKey};

/// That a node passed over ledgers without their contents, and what it lacks for it. Durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Join {
    /// The last ledger without contents.
    pub base: Seq,
    /// The last of them that has inputs: their keys are not known here. 0 when none has.
    pub unknown: Seq,
    /// What is still to be fetched.
    pub lacks: Lacks,
}

/// What is to be fetched by a node that passed over ledgers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Lacks {
    /// The last ledger is without contents: it is not known who its users are. And the state.
    Users,
    /// The state. Contents are here from the ledger after `base` on.
    State,
    /// Nothing.
    Nothing,
}

impl Join {
    /// After the ledger before: what is known of a join when one more ledger is passed over.
    pub fn pass(before: Option<Join>, header: &header::Header) -> Join {
        let known = before.map_or(0, |join| join.unknown);
        let unknown = if header.n_inputs > 0 { header.seq } else { known };
        Join { base: header.seq, unknown, lacks: Lacks::Users }
    }

    /// Whether the keys of all inputs that may not be in the ledger after `tip` are known.
    fn knows_window(&self, tip: Seq, input_window: u64) -> bool {
        self.unknown == 0 || self.unknown.saturating_add(input_window) <= tip
    }
}

/// What is under way of a join. Forgotten at a restart.
#[derive(Debug, Default)]
pub(super) struct Joining {
    /// Checked ledgers without contents, with who sent them, until they are passed over.
    held: BTreeMap<Seq, (NodeKey, BareLedger)>,
    /// Since when nobody who is linked and ahead keeps the contents of the next ledger.
    nobody_since: Option<MonoMs>,
    /// The list of users that is being fetched.
    table: Option<Table>,
    /// Whether the state was asked for since this process has none.
    asked_state: bool,
}

/// The users of the last ledger, as far as they have come: all from one peer, so that it is known who lied.
#[derive(Debug)]
struct Table {
    from: NodeKey,
    users: BTreeSet<UserKey>,
    /// When another peer is asked instead.
    due: MonoMs,
}

impl Joining {
    /// Whether this ledger came.
    pub fn holds(&self, seq: Seq) -> bool {
        self.held.contains_key(&seq)
    }

    /// The first ledger from this one on that came.
    pub fn next_held(&self, seq: Seq) -> Option<Seq> {
        self.held.range(seq..).next().map(|(seq, _)| *seq)
    }

    /// Forgets what came of a peer.
    pub fn forget(&mut self, peer: &NodeKey) {
        self.held.retain(|_, (sender, _)| sender != peer);
        self.table.take_if(|table| table.from == *peer);
    }

    /// When something is to be looked at again.
    pub fn due(&self) -> Option<MonoMs> {
        let patience = self.nobody_since.map(|since| since + JOIN_PATIENCE_MS);
        self.table.as_ref().map(|table| table.due).into_iter().chain(patience).min()
    }
}

/// The ledger from which on a node goes that passes over ledgers, where the contents of those from `oldest` to `last` are
/// kept: as early as leaves time to fetch them before they are deleted, but never so late that it would not know the keys of
/// the whole window at `last`.
fn base_for(oldest: Seq, last: Seq, input_window: u64) -> Seq {
    let first = oldest.saturating_sub(1);
    let in_time = first.saturating_add(join_spare(input_window) / 2);
    first.max(in_time.min(last.saturating_sub(input_window)))
}

impl Consensus {
    /// Whether the last ledger is one that was passed over: who its users are is not known, so no ledger can be closed on
    /// top of it.
    pub(super) fn is_bare(&self) -> bool {
        self.join.is_some_and(|join| join.lacks == Lacks::Users)
    }

    /// Whether this node knows of everything that must not be in the next ledger.
    pub(super) fn knows_window(&self) -> bool {
        let window = self.params.input_window;
        let known = self.join.is_none_or(|join| join.knows_window(self.tip.seq, window));
        !self.is_bare() && (known || mutated!(VoteWithGap))
    }

    /// The ledger after which this node may vote, while it knows not all keys of the window; `None` when it does.
    pub(super) fn votes_after(&self) -> Option<Seq> {
        let join = self.join.filter(|_| !self.knows_window())?;
        Some(join.unknown.saturating_add(self.params.input_window).max(join.base + 1))
    }

    // ---- Passing over -------------------------------------------------------------------------------------------

    /// Whether it has to be given up to find the contents of the next ledger: everybody who is ahead says that they are
    /// deleted, or says nothing. A few liars must not bring that about, where honest members are linked.
    pub(super) fn is_given_up(&mut self) -> bool {
        let next = self.round.seq;
        let says = |peer: &NodeKey| self.catchup.oldest.get(peer).is_some_and(|oldest| *oldest > next);
        let told: Vec<NodeKey> = self.ahead(next + 1).map(|(peer, _)| peer).filter(says).collect();
        if told.is_empty() || self.asks_for_ranges() {
            self.joining.nobody_since = None;
            return false;
        }
        let since = *self.joining.nobody_since.get_or_insert(self.now);
        let members = told.iter().filter(|peer| self.is_member(peer)).count();
        // By the UNL of long ago nobody may be a member any more.
        members >= self.quorum.blocking() || self.now >= since + JOIN_PATIENCE_MS
    }

    /// A peer's answer.
    pub(super) fn on_headers(&mut self, from: NodeKey, headers: Result<CheckedHeaders, Lie>) {
        let Some((first, last)) = self.catchup.asked_headers(&from) else { return };
        let headers = match headers {
            Ok(headers) => headers,
            Err(lie) => return self.lied(from, lie),
        };
        if headers.first != first {
            // It answers what was asked before, too late.
            return;
        }
        self.catchup.answered(&from, headers.oldest);
        if headers.ledgers.is_empty() {
            // It has not that many, whatever it said: it is asked again when it says so again.
            self.peer_tips.insert(from, first - 1);
        }
        for ledger in headers.ledgers {
            let seq = ledger.header.seq;
            if (self.round.seq..=last).contains(&seq) {
                self.joining.held.entry(seq).or_insert((from, ledger));
            }
        }
        self.fresh();
    }

    /// Passes over the ledgers that came without contents, in order. Whether there are more, which have to wait: other
    /// events have their turn.
    pub(super) fn pass_over(&mut self) -> bool {
        let mut work = ADOPT_WORK_MAX;
        loop {
            let seq = self.round.seq;
            self.joining.held = self.joining.held.split_off(&seq);
            let may_pass = if self.is_bare() { !self.is_base() } else { self.joining.holds(seq) && self.is_given_up() };
            let Some((from, ledger)) = self.joining.held.get(&seq).filter(|_| may_pass) else { break };
            let from = *from;
            if work == 0 {
                self.effects.push(Effect::SetTimer(Timer::Adopt, self.now));
                self.effects.push(Effect::Sync);
                return true;
            }
            work -= 1;
            let ledger = ledger.clone();
            if let Some(lie) = self.false_in(&ledger) {
                self.lied(from, lie);
                break;
            }
            self.pass(ledger);
        }
        if work < ADOPT_WORK_MAX {
            self.effects.push(Effect::Sync);
        }
        false
    }

    /// What is false in a ledger that came as the next one.
    fn false_in(&self, ledger: &BareLedger) -> Option<Lie> {
        if !self.follows(&ledger.header) {
            return Some(Lie::Chain);
        }
        if !self.checker().is_quorum(&ledger.qc.sigs) {
            return Some(Lie::Certificate);
        }
        ledger.unl_after(&self.unl).is_none().then_some(Lie::Body)
    }

    fn pass(&mut self, ledger: BareLedger) {
        if !self.is_bare() {
            self.begin_join();
        }
        let header = ledger.header.clone();
        let unl = ledger.unl_after(&self.unl).expect("looked at");
        self.note_own_in_qc(&ledger.qc);
        self.heard_from(ledger.qc.sigs.iter().map(|(signer, _)| *signer).collect());
        self.effects.push(Effect::Persist(Record::Bare(Box::new(ledger.clone()))));
        self.drop_settled_vote(&unl);
        self.join = Some(Join::pass(self.join, &header));
        self.window.close(header.seq, self.params.input_window);
        let has_change = ledger.unl_change.is_some();
        self.effects.push(Effect::LedgerPassed(Box::new(ledger)));
        self.tip = Tip::of(&header);
        self.drop_recorded_settlement();
        self.results.clear();
        self.overtimes.clear();
        (self.split, self.differing_told) = (false, 0);
        (self.executed, self.settled) = (header.seq, header.seq);
        if has_change {
            self.switch_unl(unl);
        }
        self.round = Round::new(header.seq + 1);
        // Of inputs that expired meanwhile their users are told, whether they were in one of these or not.
        if !self.joining.holds(header.seq + 1) {
            self.forget_dead();
        }
    }

    /// From here on nothing of what is here but the chain is of use: the state is fetched when the others' ledgers are here.
    fn begin_join(&mut self) {
        let next = self.round.seq;
        let oldest = self.ahead(next + 1).filter_map(|(peer, _)| self.catchup.oldest.get(&peer)).min();
        let oldest = oldest.copied().unwrap_or(next + 1);
        self.effects.push(Effect::Cancel(Timer::Attempt(self.round.attempt)));
        self.effects.push(Effect::Cancel(Timer::Grace));
        self.effects.push(Effect::Join { next, oldest });
        self.catchup.drop_held();
        self.joining.nobody_since = None;
        self.joining.asked_state = false;
        self.future.clear();
        self.trusted = false;
        self.agreed.clear();
        self.mine.clear();
        self.runs = Runs::after(self.tip.seq, BTreeSet::new(), Vec::new());
        (self.limited, self.redo, self.runs_all) = (None, None, false);
    }

    // ---- The users ----------------------------------------------------------------------------------------------

    /// Peers that have the users of the last ledger, and the contents of all later ones.
    fn table_sources(&self) -> Vec<NodeKey> {
        let (tip, window) = (self.tip.seq, self.params.input_window);
        let ahead: Vec<(NodeKey, Seq)> =
            self.ahead(tip + 1).filter(|(peer, _)| self.catchup.oldest.contains_key(peer)).collect();
        // Who claims anything and does not answer must not keep us from going on.
        let least = ahead.iter().map(|(peer, _)| self.catchup.patience_of(peer)).min();
        let fits = |peer: &NodeKey, last: Seq| tip >= base_for(self.catchup.oldest[peer], last, window);
        let is_best = |peer: &NodeKey| Some(self.catchup.patience_of(peer)) == least;
        ahead.into_iter().filter(|(peer, last)| is_best(peer) && fits(peer, *last)).map(|(peer, _)| peer).collect()
    }

    /// Whether this node goes on from the last ledger, which it passed over: others keep what comes after it.
    pub(super) fn is_base(&self) -> bool {
        !self.table_sources().is_empty()
    }

    /// Asks one of those for the users, or another one when that does not answer.
    pub(super) fn ask_users(&mut self) {
        if self.tip.n_users == 0 {
            return self.take_table(BTreeSet::new());
        }
        let late = self.joining.table.take_if(|table| table.due <= self.now);
        if let Some(late) = late {
            self.catchup.is_late(late.from);
        }
        if self.joining.table.is_some() {
            return;
        }
        let sources = self.table_sources();
        let Some(from) = sources.iter().find(|peer| self.is_member(peer)).or(sources.first()).copied() else { return };
        self.joining.table = Some(Table { from, users: BTreeSet::new(), due: 0 });
        self.ask_page();
    }

    fn ask_page(&mut self) {
        let Some(table) = &mut self.joining.table else { return };
        table.due = self.now + self.catchup.patience_of(&table.from).clamp(RANGE_TIMEOUT_MS, RANGE_TIMEOUT_MAX_MS);
        let (from, after) = (table.from, table.users.last().copied());
        self.get(from, Get::Users(self.tip.seq, after));
    }

    /// A part of the list.
    pub(super) fn on_users(&mut self, from: NodeKey, page: UsersPage) {
        let (tip, n_users) = (self.tip.seq, self.tip.n_users as usize);
        let Some(table) = self.joining.table.as_mut().filter(|table| table.from == from) else { return };
        if page.seq != tip || page.after != table.users.last().copied() {
            // It answers what was asked before.
            return;
        }
        let ascending = page.users.is_sorted_by(|a, b| a < b) && page.after < page.users.first().copied();
        if page.users.is_empty() {
            // It has deleted too much by now to tell.
            self.joining.table = None;
            self.catchup.answered(&from, page.oldest.max(tip + 2));
        } else if !ascending || table.users.len() + page.users.len() > n_users {
            self.lied(from, Lie::Users);
        } else {
            table.users.extend(page.users);
            self.catchup.answered(&from, page.oldest);
            let Some(table) = self.joining.table.take_if(|table| table.users.len() == n_users) else {
                return self.ask_page();
            };
            match header::users_root(&table.users) == self.tip.users_root {
                true => self.take_table(table.users),
                false => self.lied(from, Lie::Users),
            }
        }
        self.fresh();
    }

    /// The users of the last ledger are known: from here on ledgers are closed like all others.
    fn take_table(&mut self, users: BTreeSet<UserKey>) {
        let seq = self.tip.seq;
        let join = self.join.as_mut().expect("ledgers were passed over");
        join.lacks = Lacks::State;
        self.users = users.clone();
        self.users_root = self.tip.users_root;
        self.presence.rebase(&self.users);
        self.runs = Runs::after(seq, users.clone(), self.unl.clone());
        self.joining.held.clear();
        self.joining.table = None;
        self.catchup.ask_anew();
        self.round = Round::new(seq + 1);
        self.effects.push(Effect::Persist(Record::Base(users)));
        self.effects.push(Effect::Sync);
        self.fresh();
    }

    // ---- The state ----------------------------------------------------------------------------------------------

    /// Has the state fetched, once no further ledgers lack and somebody is linked who can have it.
    pub(super) fn look_for_state(&mut self) {
        let Some(join) = self.join.filter(|join| join.lacks == Lacks::State) else { return };
        let tip = self.tip.seq;
        let caught_up = tip > join.base && tip + 1 >= self.best_peer_tip() && !self.links.is_empty();
        // The members of long ago may be members no more, and say nothing.
        let ahead = self.ahead(tip + 2).next().is_some();
        if caught_up && !ahead && !std::mem::replace(&mut self.joining.asked_state, true) {
            let from = (join.base + 1).max(tip.saturating_sub(SYNC_LEDGERS_LEFT));
            self.effects.push(Effect::SyncState { from, why: Lost::Joined });
        }
    }

    /// Whether this node has a state, or has lost only the one that it had.
    pub fn lacks_state_since_join(&self) -> bool {
        self.join.is_some_and(|join| join.lacks != Lacks::Nothing)
    }
}
