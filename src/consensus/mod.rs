//! The core: the state machine of the protocol, pure.
//!
//! One [`Event`] with the time it happened goes in, [`Effect`]s come out, to be performed in order; nothing after a
//! [`Effect::Sync`] may leave the process before every [`Effect::Persist`] before it is on disk. The core counts its
//! own votes at once: what it decides by them stands behind the `Sync` of those votes.
//!
//! A ledger is closed in four message delays: NOVEL (what I hold), PREVOTE (the header that a quorum of novels leads
//! to), PRECOMMIT (I saw a quorum of prevotes), and a quorum of precommits is the certificate. Then the contract runs,
//! and a quorum of equal RESULTs makes its outputs final. Where an attempt fails, ADVANCE carries the binding votes
//! into the next. Source: `docs/protocol.md`.
//!
//! Reading order: `event` (what goes in and comes out), this file, [`rules`] (when a node may vote), `step` (rules A to
//! F), `receive` (messages), `fetch` (missing data), `catchup` (missing ledgers), [`join`] (those that nobody keeps),
//! `results` (running ledgers), `overtime` (runs that take too long), `pause` (no room left), `unl` (who decides), `settlement`
//! (what the bus confirmed), [`silence`] (who must not), [`header`] (what a ledger is), [`votes`] (counting).

mod catchup;
pub mod details;
mod event;
mod fetch;
pub mod header;
pub mod join;
pub mod journal;
mod limits;
pub mod merkle;
pub mod messages;
pub mod mutation;
mod overtime;
mod pause;
mod pool;
mod presence;
pub mod range;
mod receive;
mod results;
mod round;
pub mod rules;
mod settlement;
pub mod silence;
mod step;
mod unl;
pub mod votes;
pub mod window;

#[cfg(test)]
mod behind;
#[cfg(test)]
pub(crate) mod explore;
#[cfg(test)]
pub(crate) mod hostile;
#[cfg(test)]
pub(crate) mod late;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use catchup::Catchup;
pub use event::*;
use header::{ClosedLedger, ExecResult, Genesis, Header, Input, InputKey, Origin, Settlement, UnlChange};
use join::{Join, Joining, Lacks};
use journal::{Journal, Record};
pub use limits::*;
use messages::{Closed, Get, Message, Overtime, ResultCert, Scope, Signable, Signed, StatusMsg};
use mutation::mutated;
use pool::Pool;
pub use pool::Refused;
use presence::PresenceTable;
use results::{LastRun, Runs};
use round::Round;
use silence::Silence;
use votes::{Checker, Quorum};
use window::Window;

use crate::types::{Attempt, Hash, MonoMs, NodeKey, Seq, Sig, UserKey, WallMs};

/// Signs as this node and checks signatures. Deterministic, like everything the core uses.
pub trait Crypto {
    /// This node's signature.
    fn sign(&self, digest: &Hash) -> Sig;
    /// Whether `key` signed `digest`.
    fn verify(&self, key: &NodeKey, digest: &Hash, sig: &Sig) -> bool;
}

/// The last closed ledger, as far as the next one needs it.
#[derive(Debug, Clone)]
struct Tip {
    seq: Seq,
    hash: Hash,
    time_ms: WallMs,
    users_root: Hash,
    n_users: u32,
    settlement: Option<Settlement>,
}

/// The state machine of one node.
pub struct Consensus {
    params: Params,
    crypto: Box<dyn Crypto>,
    genesis: Genesis,
    scope: Scope,
    threshold: u8,
    /// The UNL in force for the round, ascending; with it change the scope and the quorum.
    unl: Vec<NodeKey>,
    quorum: Quorum,
    /// What signatures covered before the UNL changed last, if that happened since the start.
    former_scope: Option<Scope>,
    /// What my operator votes for, and whether a NOVEL of mine said so.
    unl_vote: Option<UnlChange>,
    unl_vote_told: bool,
    /// What the members' operators vote for, as the last NOVEL of each said.
    unl_votes: BTreeMap<NodeKey, UnlChange>,
    /// What this node saw on the settlement bus and no ledger has, and whether a NOVEL of mine said so.
    settlement_vote: Option<Settlement>,
    settlement_vote_told: bool,

    tip: Tip,
    users: BTreeSet<UserKey>,
    users_root: Hash,
    window: Window,
    pool: Pool,
    presence: PresenceTable,
    round: Round,
    /// The last input that an observer told again.
    told_from: Hash,

    /// Results of the tip, the first of each signer.
    results: BTreeMap<NodeKey, Signed<ExecResult>>,
    /// My results that no later ledger settled, by ledger.
    mine: BTreeMap<Seq, ExecResult>,
    /// Agreed results that I have not compared with mine, by ledger.
    agreed: BTreeMap<Seq, ResultCert>,
    /// Last ledger whose result was compared.
    settled: Seq,
    /// Last ledger that I have a result of.
    executed: Seq,
    /// Runs in memory; later ledgers wait in the database.
    runs: Runs,
    /// OVERTIMEs of the tip, the first of each signer.
    overtimes: BTreeMap<NodeKey, Signed<Overtime>>,
    /// The last run of which I signed `Limit(Time)`, until a quorum has.
    limited: Option<Arc<Execution>>,
    /// The ledger whose run is done after all, because a quorum has another result than `Limit(Time)`.
    redo: Option<Seq>,
    /// State root after my last run.
    state_root: Hash,
    /// Whether my state is the agreed one.
    trusted: bool,
    /// Nobody had a state to fetch: what waits is run, until little is left.
    runs_all: bool,
    split: bool,
    /// Of how many results that are not all equal the node was told.
    differing_told: usize,

    /// While it is there nothing is signed that counts in a round.
    silence: Option<Silence>,
    /// Whether people were told of it.
    told_silence: bool,
    /// Members of whom something that counts was ever heard.
    heard: BTreeSet<NodeKey>,
    /// My last result as I signed it, said or not.
    own_result: Option<Signed<ExecResult>>,
    /// Of members that break the protocol by intent, which the simulator has.
    #[cfg(test)]
    is_never_silent: bool,

    links: BTreeSet<NodeKey>,
    /// How many ledgers in a row were closed without a member's NOVEL.
    missed: BTreeMap<NodeKey, u32>,
    /// The last ledger a linked peer, or a member, said it closed.
    peer_tips: BTreeMap<NodeKey, Seq>,
    catchup: Catchup,
    /// That ledgers were passed over, and what lacks since.
    join: Option<Join>,
    joining: Joining,
    /// Messages of the ledger after the next, the last of each (link, kind, attempt).
    future: BTreeMap<(NodeKey, &'static str, Attempt), Message>,
    closed_sent: BTreeMap<NodeKey, (Seq, MonoMs)>,
    status_sent: BTreeMap<NodeKey, (Seq, MonoMs)>,
    presence_sent: BTreeMap<NodeKey, MonoMs>,
    /// Since when, and with how many bytes, a peer's GETs were answered.
    answered: BTreeMap<NodeKey, (MonoMs, usize)>,

    /// Whether the driver cannot go on, so that nothing new is promised.
    paused: bool,
    round_started: Option<MonoMs>,
    /// When the retransmission timer goes off; 0 while it is not used.
    retransmit_at: MonoMs,
    now: MonoMs,
    wall: WallMs,
    effects: Vec<Effect>,
}

impl Consensus {
    /// A node that goes on from its journal. The first event must be [`Event::Start`].
    pub fn new(params: Params, crypto: Box<dyn Crypto>, threshold: u8, journal: Journal) -> Consensus {
        let state_root = journal.state_root();
        let (executed, has_state) = (journal.executed(), journal.has_state());
        let genesis = journal.genesis;
        let unl = journal.unl;
        assert!(unl.is_sorted_by(|a, b| a < b), "a UNL is ascending");
        let scope = Scope { chain_id: genesis.chain_id(), unl_hash: header::unl_hash(&unl) };
        let tip = match &journal.tip {
            None => Tip::of_genesis(&genesis),
            Some(closed) => Tip::of(&closed.candidate.header),
        };
        let last = LastRun {
            result: journal.result.filter(|_| journal.synced.is_none()),
            adopted: journal.adopted,
            limited: journal.limited,
            overtime: journal.overtime,
            users: journal.executed_users.clone(),
            unl: journal.executed_unl.clone(),
        };
        let mut pool = Pool::default();
        for (id, input) in journal.pool {
            // Everything in it was taken once; a smaller limit must not lose it.
            pool.insert(id, input, params.me, true).expect("needed inputs are always taken");
        }
        let round = Round::restored(
            tip.seq + 1,
            journal.novel,
            journal.prevotes,
            journal.precommits,
            journal.advance,
            journal.tc,
        );
        let mut core = Consensus {
            quorum: Quorum::new(unl.len(), threshold),
            threshold,
            former_scope: None,
            unl_vote: journal.unl_vote,
            unl_vote_told: false,
            unl_votes: BTreeMap::new(),
            settlement_vote: None,
            settlement_vote_told: false,
            presence: PresenceTable::new(params.me, params.boot, &journal.users),
            users_root: tip.users_root,
            users: journal.users,
            window: journal.window,
            results: BTreeMap::new(),
            mine: BTreeMap::new(),
            agreed: BTreeMap::new(),
            settled: tip.seq.saturating_sub(1),
            executed,
            runs: Runs::after(executed, journal.executed_users, journal.executed_unl),
            overtimes: BTreeMap::new(),
            limited: None,
            redo: None,
            state_root,
            trusted: has_state,
            runs_all: false,
            split: false,
            differing_told: 0,
            silence: journal.silence,
            told_silence: false,
            heard: journal.heard,
            own_result: last.result.clone().filter(|result| result.from == params.me),
            #[cfg(test)]
            is_never_silent: false,
            told_from: Hash::ZERO,
            links: BTreeSet::new(),
            missed: BTreeMap::new(),
            peer_tips: BTreeMap::new(),
            catchup: Catchup::default(),
            join: journal.join,
            joining: Joining::default(),
            future: BTreeMap::new(),
            closed_sent: BTreeMap::new(),
            status_sent: BTreeMap::new(),
            presence_sent: BTreeMap::new(),
            answered: BTreeMap::new(),
            paused: false,
            round_started: None,
            retransmit_at: 0,
            now: 0,
            wall: 0,
            effects: Vec::new(),
            params,
            crypto,
            genesis,
            scope,
            unl,
            tip,
            pool,
            round,
        };
        core.restore_results(last, journal.unexecuted.first().map(|(next, _)| &next.candidate.header));
        core.restore_executions(journal.unexecuted);
        core
    }

    /// Handles one event. `now` never goes back; `wall` may jump and is only ever proposed to others.
    pub fn on(&mut self, event: Event, now: MonoMs, wall: WallMs) -> Vec<Effect> {
        self.now = self.now.max(now);
        self.wall = wall;
        self.catchup.begin_turn();
        match event {
            Event::Start => self.start(),
            Event::Message(from, message) => self.receive(from, message),
            Event::Timer(timer) => self.timer(timer),
            Event::LocalInput(input) => self.local_input(input),
            Event::SignedInput(input) => self.signed_input(input),
            Event::UserUp(user) => {
                let change = self.presence.up(user);
                self.tell_presence(change);
            }
            Event::UserDown(user) => {
                let change = self.presence.down(user);
                self.tell_presence(change);
            }
            Event::UnlVote(vote) => self.vote_for_unl(vote),
            Event::SettlementVote(vote) => self.vote_for_settlement(vote),
            Event::ExecDone(result) => self.executed(result),
            Event::Overtime(run) => self.cut_short(run),
            Event::OlderTwin => self.found_older_twin(),
            Event::Paused(paused) => self.pause(paused),
            Event::Loaded(ledgers) => self.loaded(ledgers),
            Event::Range(from, range) => self.on_range(from, range),
            Event::Headers(from, headers) => self.on_headers(from, headers),
            Event::StateLost => self.state_lost(),
            Event::Synced { result, users, unl } => self.synced(*result, users, unl),
            Event::LinkUp(peer) => self.link_up(peer),
            Event::LinkDown(peer) => {
                self.links.remove(&peer);
                // A stranger comes with another key each time.
                self.closed_sent.remove(&peer);
                self.status_sent.remove(&peer);
                self.presence_sent.remove(&peer);
                self.answered.remove(&peer);
                if !self.is_member(&peer) {
                    self.peer_tips.remove(&peer);
                }
                self.catchup.link_down(&peer);
                self.joining.forget(&peer);
                self.presence.forget_host(&peer);
            }
        }
        self.step();
        std::mem::take(&mut self.effects)
    }

    /// The chain's name.
    pub fn chain_id(&self) -> Hash {
        self.scope.chain_id
    }

    /// Ledger 0.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// What signatures of the current round cover.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// What signatures covered before the UNL changed last, if that happened since the start: proofs of misbehaviour in
    /// the rounds before are on their way for a while.
    pub fn former_scope(&self) -> Option<Scope> {
        self.former_scope
    }

    /// The ledger being closed. Of messages about an older one only the sender counts.
    pub fn round_seq(&self) -> Seq {
        self.round.seq
    }

    /// Whether a message adds nothing to what a quorum has said already, so that its signature need not be checked and
    /// it may be dropped: a PREVOTE for a value that has its POLC, a RESULT that has its certificate.
    pub fn is_redundant(&self, message: &Message) -> bool {
        match message {
            Message::Prevote(vote) => {
                let vote = vote.body.0;
                vote.seq == self.round.seq && self.round.polcs.get(&vote.attempt).is_some_and(|polc| polc.vote == vote)
            }
            Message::Result(result) => {
                result.body.of_hash == self.tip.hash
                    && self.result_cert().is_some_and(|cert| cert.result == result.body)
            }
            Message::Overtime(overtime) => {
                overtime.body.of_hash == self.tip.hash
                    && (self.overtimes.contains_key(&overtime.from) || self.result_cert().is_some())
            }
            _ => false,
        }
    }

    /// The UNL in force, ascending.
    pub fn unl(&self) -> &[NodeKey] {
        &self.unl
    }

    /// What it needs and tolerates.
    pub fn quorum(&self) -> Quorum {
        self.quorum
    }

    /// Whether anything here may lack what others have, or wait for its run.
    pub fn may_be_behind(&self) -> bool {
        !self.trusted
            || self.unexecuted() > 0
            || !self.overtimes.is_empty()
            || self.peer_tips.values().any(|tip| *tip > self.tip.seq)
    }

    /// Where this node stands.
    pub fn summary(&self) -> Summary {
        Summary {
            seq: self.tip.seq,
            lcl: self.tip.hash,
            time_ms: self.tip.time_ms,
            attempt: self.round.attempt,
            stage: self.stage(),
            novels: self.round.novels.keys().copied().collect(),
            suspects: self.unl.iter().filter(|node| self.is_suspect(node)).copied().collect(),
            users: self.users.len(),
            pool: self.pool.len(),
            unexecuted: self.unexecuted(),
            overtimes: if self.result_cert().is_none() { self.overtimes.len() } else { 0 },
            network_seq: self.tip.seq.max(self.best_peer_tip()),
            synced: self.trusted && self.tip.seq >= self.best_peer_tip(),
            has_state: self.trusted,
            lacks: self.join.map(|join| join.lacks).filter(|lacks| *lacks != Lacks::Nothing),
            votes_after: self.votes_after(),
            split: self.split,
            state_root: self.state_root,
            unl_vote: self.unl_vote,
            unl_votes: self.unl_votes.iter().map(|(node, change)| (*node, *change)).collect(),
            settlement: self.tip.settlement.clone(),
            silent: self.silent(),
        }
    }

    /// The ledger that is being closed, the attempt at it, and its stage.
    pub fn standing(&self) -> (Seq, Attempt, Stage) {
        (self.tip.seq + 1, self.round.attempt, self.stage())
    }

    fn stage(&self) -> Stage {
        let signed = self.round.signed();
        match (self.round.mine.novel.is_some(), signed.prevote, signed.precommit) {
            (_, _, Some(attempt)) if attempt >= self.round.attempt => Stage::Precommit,
            (_, Some(attempt), _) if attempt >= self.round.attempt => Stage::Prevote,
            (true, ..) if self.result_cert().is_none() => Stage::Result,
            (true, ..) => Stage::Novel,
            (false, ..) if self.unexecuted() > 0 => Stage::Executing,
            (false, ..) => Stage::Idle,
        }
    }

    fn start(&mut self) {
        self.round_started = Some(self.now);
        self.start_silence();
        // Only a promise that binds starts the timer: while nothing is derivable, attempts must not climb.
        if self.round.is_bound() {
            self.set_attempt_timer();
        }
        for message in self.own_messages() {
            self.effects.push(Effect::Broadcast(message));
        }
        self.fresh();
        if self.has_others() {
            self.keep_telling();
        }
        // Whatever waited in the pool when the process ended may be past its last ledger.
        self.forget_dead();
        if self.trusted {
            self.run_next();
        }
        self.compare_results();
    }

    /// Whether there is anybody to say anything to.
    fn has_others(&self) -> bool {
        self.unl.len() > 1 || !self.is_member(&self.params.me)
    }

    /// Starts the timers by which messages are sent again, and by which others learn where this node stands.
    fn keep_telling(&mut self) {
        self.effects.push(Effect::SetTimer(Timer::Status, self.now + STATUS_MS));
        self.retransmit_at(self.now + RETRANSMIT_MS);
    }

    fn timer(&mut self, timer: Timer) {
        let is_over = |due: Option<MonoMs>| due.is_some_and(|due| self.now >= due);
        match timer {
            // One of an earlier round may go off while taking it back waits for the disk.
            Timer::Attempt(attempt) if attempt == self.round.attempt && is_over(self.round.attempt_due) => {
                self.advance_to(attempt + 1);
            }
            Timer::Attempt(_) => {}
            Timer::Grace => self.round.grace_over |= is_over(self.round.grace_due),
            Timer::Pace | Timer::Fetch | Timer::Adopt | Timer::Range => {}
            Timer::Retransmit => self.retransmit(),
            Timer::Status => {
                let status = self.status();
                self.effects.push(Effect::Broadcast(status));
                self.tell_observed_inputs();
                self.effects.push(Effect::SetTimer(Timer::Status, self.now + STATUS_MS));
            }
        }
    }

    fn local_input(&mut self, local: LocalInput) {
        let LocalInput { user, challenge, helo_sig, nonce, payload } = local;
        let name = LocalRef::Session { user, challenge, nonce };
        // A session's inputs get the longest life: the user signed nothing that could say otherwise.
        let max_ledger = self.round.seq + self.params.input_window - 1;
        let origin = Origin::Session { host: self.params.me, challenge, helo_sig, host_sig: Sig([0; 64]) };
        // What is in a ledger already needs not be waited for.
        let before = nonce.checked_sub(1).map(|before| (user, origin.tag(), Input::session_nonce(before, false)));
        let follows = before.is_some_and(|(user, tag, nonce)| self.pool.has_session((user, tag, nonce)));
        let nonce = Input::session_nonce(nonce, follows);
        let mut input = Input { user, origin, nonce, max_ledger, payload };
        let id = input.id(&self.scope.chain_id);
        let sig = self.crypto.sign(&Input::host_digest(&self.scope.chain_id, &id));
        if let Origin::Session { host_sig, .. } = &mut input.origin {
            *host_sig = sig;
        }
        match self.take_input(id, input.clone(), self.params.me, false) {
            Ok(true) => self.effects.push(Effect::Broadcast(Message::Input(input))),
            Ok(false) => {}
            Err(refused) => self.effects.push(Effect::Refuse(name, refused)),
        }
    }

    /// The members get it at once, also from an observer.
    fn signed_input(&mut self, input: Input) {
        assert!(matches!(input.origin, Origin::User { .. }), "the user signed it");
        let id = input.id(&self.scope.chain_id);
        let name = SignedRef { user: input.user, nonce: input.nonce, id };
        match self.take_input(id, input.clone(), self.params.me, false) {
            Ok(true) => self.effects.push(Effect::Broadcast(Message::Input(input))),
            // It is on its way already: its user hears of it when it is in a ledger, or can not be any more.
            Ok(false) => {}
            Err(refused) => self.effects.push(Effect::Refuse(LocalRef::Signed(name), refused)),
        }
    }

    /// What became of an input that its user signed.
    pub fn signed_state(&self, user: UserKey, nonce: u64) -> SignedState {
        match self.window.get(&(user, Hash::ZERO, nonce)) {
            Some(seq) => SignedState::Ledgered(*seq),
            None if self.pool.has_signed(user, nonce) => SignedState::Held,
            None => SignedState::Unknown,
        }
    }

    /// The lowest number above all nonces of a user's signed inputs that are held or in the ledgers of the window.
    pub fn next_nonce(&self, user: UserKey) -> u64 {
        let last = self.window.last_nonce(user).max(self.pool.last_nonce(user));
        last.map_or(0, |last| last.saturating_add(1))
    }

    /// The ledger that has an input with this key, if it is in the window.
    pub fn ledger_of(&self, key: &InputKey) -> Option<Seq> {
        self.window.get(key).copied()
    }

    /// An observer lists nothing, so nobody asks it for what was lost on the way: it tells its users' inputs again.
    fn tell_observed_inputs(&mut self) {
        if self.is_member(&self.params.me) {
            return;
        }
        let me = self.params.me;
        let inputs = self.pool.signed_from(&me, self.told_from, TOLD_INPUTS_MAX, TOLD_BYTES_MAX);
        for input in inputs {
            self.told_from = input.id(&self.scope.chain_id);
            self.effects.push(Effect::Broadcast(Message::Input(input)));
        }
    }

    /// Puts a verified input into the pool, and on disk with the next commit. Whether it is new.
    fn take_input(&mut self, id: Hash, input: Input, link: NodeKey, needed: bool) -> Result<bool, Refused> {
        if let Some(seq) = self.window.get(&input.key()) {
            return Err(Refused::Ledgered(*seq));
        }
        if self.is_paused() {
            return Err(Refused::NoRoom);
        }
        if input.payload.len() > self.params.input_bytes_max {
            return Err(Refused::TooLong);
        }
        if !self.params.session_inputs && matches!(input.origin, Origin::Session { .. }) {
            return Err(Refused::NotSigned);
        }
        Pool::check_ledger(&input, self.round.seq, self.params.input_window)?;
        let new = self.pool.insert(id, input.clone(), link, needed)?;
        if new {
            #[cfg(test)]
            mutation::note_arrival(self.params.me, id);
            self.round.forget_unknown(&id);
            if !mutated!(BytesNotDurable) {
                self.effects.push(Effect::Persist(Record::Input(Box::new(input))));
            }
        }
        Ok(new)
    }

    /// Drops inputs that can never be ledgered any more, and tells the users of those that expired.
    fn forget_dead(&mut self) {
        let ledgered = |key: &InputKey| self.window.contains_key(key);
        let dead = self.pool.dead(self.round.seq, ledgered, |host| self.is_member(host));
        if dead.is_empty() {
            return;
        }
        let mut expired = Vec::new();
        for id in &dead {
            let input = self.pool.remove(id).expect("listed from here");
            let (user, nonce) = (input.user, input.nonce);
            match (&input.origin, self.window.get(&input.key())) {
                // Another input with its nonce was faster.
                (Origin::User { .. }, Some(seq)) => {
                    let name = LocalRef::Signed(SignedRef { user, nonce, id: *id });
                    self.effects.push(Effect::Refuse(name, Refused::Ledgered(*seq)));
                }
                (Origin::User { .. }, None) => expired.push(LocalRef::Signed(SignedRef { user, nonce, id: *id })),
                (Origin::Session { host, challenge, .. }, None) if *host == self.params.me => {
                    let nonce = Input::session_number(nonce);
                    expired.push(LocalRef::Session { user, challenge: *challenge, nonce });
                }
                (Origin::Session { .. }, _) => {}
            }
        }
        self.effects.push(Effect::Persist(Record::Forget(dead)));
        if !expired.is_empty() {
            self.effects.push(Effect::Expired(expired));
        }
    }

    fn tell_presence(&mut self, change: Option<messages::Presence>) {
        if let Some(change) = change {
            let signed = self.sign(change);
            self.effects.push(Effect::Broadcast(Message::Presence(signed)));
        }
    }

    fn link_up(&mut self, peer: NodeKey) {
        self.links.insert(peer);
        let snapshot = self.sign(self.presence.snapshot());
        self.effects.push(Effect::Send(peer, Message::Presence(snapshot)));
        // A member that lost its journal learns by it what it has signed.
        for message in if self.is_member(&peer) { self.held_of(&peer) } else { Vec::new() } {
            self.effects.push(Effect::Send(peer, message));
        }
        let status = self.status();
        self.effects.push(Effect::Send(peer, status));
        for message in self.own_messages() {
            self.effects.push(Effect::Send(peer, message));
        }
        self.tell_observed_inputs();
    }

    // ---- Small helpers ------------------------------------------------------------------------------------------

    /// Signs what counts in no round; see `sign_vote`.
    fn sign<T: Signable>(&self, body: T) -> Signed<T> {
        const { assert!(!T::PER_UNL) };
        self.sign_in(body, &self.scope)
    }

    fn sign_in<T: Signable>(&self, body: T, scope: &Scope) -> Signed<T> {
        let sig = self.crypto.sign(&body.digest(scope));
        Signed { from: self.params.me, body, sig }
    }

    fn checker(&self) -> Checker<'_> {
        Checker { quorum: self.quorum, unl: &self.unl, scope: self.scope, crypto: &*self.crypto }
    }

    /// A peer has closed this ledger, by what it says.
    fn heard_of_tip(&mut self, peer: NodeKey, seq: Seq) {
        if self.is_member(&peer) || self.links.contains(&peer) {
            let tip = self.peer_tips.entry(peer).or_insert(0);
            *tip = (*tip).max(seq);
        }
    }

    fn is_member(&self, node: &NodeKey) -> bool {
        self.unl.binary_search(node).is_ok()
    }

    fn is_suspect(&self, node: &NodeKey) -> bool {
        if *node == self.params.me || self.round.novels.contains_key(node) {
            return false;
        }
        !self.links.contains(node) || self.missed.get(node).is_some_and(|missed| *missed >= SUSPECT_MISSED)
    }

    /// The last ledger that at least one honest peer has closed, as far as peers said.
    fn best_peer_tip(&self) -> Seq {
        let member = |(peer, _): &(&NodeKey, &Seq)| self.is_member(peer);
        let mut tips: Vec<Seq> = self.peer_tips.iter().filter(member).map(|(_, tip)| *tip).collect();
        tips.sort_unstable_by(|a, b| b.cmp(a));
        tips.get(self.quorum.blocking() - 1).copied().unwrap_or(0)
    }

    fn status(&self) -> Message {
        Message::Status(self.sign(StatusMsg {
            seq: self.tip.seq,
            lcl: self.tip.hash,
            attempt: self.round.attempt,
            synced: self.trusted,
            silent: self.silence.is_some(),
            unheard: self.unheard(),
        }))
    }

    /// Asks a peer for the next closed ledger by showing where this node stands; not too often. Whether it did.
    fn send_status(&mut self, to: NodeKey) -> bool {
        let last = self.status_sent.get(&to);
        let due = last.is_none_or(|(seq, at)| *seq != self.tip.seq || self.now >= at + REPLY_MS);
        if due {
            self.status_sent.insert(to, (self.tip.seq, self.now));
            let status = self.status();
            self.effects.push(Effect::Send(to, status));
        }
        due
    }

    /// While behind a peer, asks it for the next ledger.
    fn ask_for_more(&mut self) {
        if self.asks_for_ranges() {
            return;
        }
        let ahead = |(peer, tip): &(&NodeKey, &Seq)| **tip > self.tip.seq && self.links.contains(peer);
        let (members, strangers): (Vec<NodeKey>, Vec<NodeKey>) =
            self.peer_tips.iter().filter(ahead).map(|(peer, _)| *peer).partition(|peer| self.is_member(peer));
        // By the UNL of long ago the members of today are strangers. Whoever claims too much does not answer.
        let peers = if members.is_empty() { strangers } else { members };
        // Another one as time passes: whoever does not answer must not be asked for ever.
        let turn = usize::try_from(self.now / REPLY_MS).unwrap_or(0);
        if let Some(peer) = peers.get(turn % peers.len().max(1)) {
            self.send_status(*peer);
        }
    }

    /// Shows a peer that is behind the ledger it lacks.
    fn send_closed(&mut self, to: NodeKey, seq: Seq) {
        let last = self.closed_sent.get(&to);
        if last.is_none_or(|(sent, at)| *sent != seq || self.now >= at + REPLY_MS) {
            self.closed_sent.insert(to, (seq, self.now));
            self.effects.push(Effect::Serve(to, Query::Closed(seq)));
        }
    }

    fn get(&mut self, from: NodeKey, get: Get) {
        self.effects.push(Effect::Send(from, Message::Get(get)));
    }

    /// Something new arrived: what I sent is sent again soon, if nothing more comes.
    fn fresh(&mut self) {
        self.round.retry_ms = RETRANSMIT_MS;
        self.round.retry_from = self.now;
        // The timer may stand far off since nothing came for long.
        if self.now + RETRANSMIT_MS < self.retransmit_at {
            self.retransmit_at(self.now + RETRANSMIT_MS);
        }
    }

    fn retransmit_at(&mut self, at: MonoMs) {
        self.retransmit_at = at;
        self.effects.push(Effect::SetTimer(Timer::Retransmit, at));
    }

    /// For members that break the protocol by intent, which the simulator has.
    #[cfg(test)]
    pub(crate) fn never_be_silent(&mut self) {
        self.is_never_silent = true;
    }

    fn closed_message(ledger: &ClosedLedger) -> Message {
        Message::Closed(Closed { header: ledger.candidate.header.clone(), qc: ledger.qc.clone() })
    }
}

impl Tip {
    fn of(header: &Header) -> Tip {
        Tip {
            seq: header.seq,
            hash: header.hash(),
            time_ms: header.time_ms,
            users_root: header.users_root,
            n_users: header.n_users,
            settlement: header.settlement.clone(),
        }
    }

    fn of_genesis(genesis: &Genesis) -> Tip {
        let n_users = genesis.ancestor.as_ref().map_or(0, |ancestor| ancestor.n_users);
        let (users_root, hash, time_ms) = (genesis.users_root(), genesis.chain_id(), genesis.time_ms);
        Tip { seq: 0, hash, time_ms, users_root, n_users, settlement: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Challenge;

    struct NoCrypto;

    impl Crypto for NoCrypto {
        fn sign(&self, _: &Hash) -> Sig {
            Sig([0; 64])
        }
        fn verify(&self, _: &NodeKey, _: &Hash, _: &Sig) -> bool {
            true
        }
    }

    fn alone(session_inputs: bool, input_bytes_max: usize) -> Consensus {
        let me = NodeKey([1; 32]);
        let genesis = Genesis {
            ver: header::VERSION,
            contract_id: Hash::ZERO,
            unl: vec![me],
            threshold: 80,
            cfg_hash: Hash::ZERO,
            state_root: Hash::ZERO,
            time_ms: 0,
            ancestor: None,
        };
        let params = Params {
            me,
            boot: Hash::ZERO,
            roundtime_ms: 1000,
            min_round_ms: 0,
            eager: true,
            grace_ms: 30,
            attempt_ms: 120,
            time_res_ms: 1000,
            input_window: 65_536,
            input_bytes_max,
            session_inputs,
        };
        let mut core = Consensus::new(params, Box::new(NoCrypto), 80, Journal::new(genesis));
        core.on(Event::Start, 0, 0);
        core
    }

    fn say(core: &mut Consensus, payload: &str) -> Vec<Effect> {
        let (user, challenge, helo_sig) = (UserKey([2; 32]), Challenge([3; 16]), Sig([4; 64]));
        core.on(Event::LocalInput(LocalInput { user, challenge, helo_sig, nonce: 0, payload: payload.into() }), 1, 1)
    }

    fn refusals(effects: &[Effect]) -> Vec<Refused> {
        let refused = effects.iter().filter_map(|effect| match effect {
            Effect::Refuse(_, why) => Some(*why),
            _ => None,
        });
        refused.collect()
    }

    #[test]
    fn one_node_alone_closes_a_ledger_with_an_input_at_once_behind_its_promises() {
        let effects = say(&mut alone(true, 100), "hello");
        let closed = effects.iter().position(|effect| matches!(effect, Effect::LedgerClosed { .. })).expect("closed");
        let synced = effects.iter().position(|effect| *effect == Effect::Sync).expect("a promise");
        assert!(synced < closed);
        assert!(
            matches!(effects.iter().find(|effect| matches!(effect, Effect::Execute(_))), Some(Effect::Execute(it)) if it.inputs.len() == 1)
        );
    }

    #[test]
    fn an_input_the_network_does_not_take_is_refused_whoever_brings_it() {
        assert_eq!(refusals(&say(&mut alone(false, 100), "hello")), [Refused::NotSigned]);
        assert_eq!(refusals(&say(&mut alone(true, 4), "hello")), [Refused::TooLong]);
        assert_eq!(refusals(&say(&mut alone(true, 5), "hello")), []);
    }
}
