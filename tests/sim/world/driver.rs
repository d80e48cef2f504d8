//! The driver of a node, which does what the real one does: effects in order, nothing behind a `Sync` before the disk
//! has everything that was to be persisted by then, one commit for all that is queued. And its contract.

use std::rc::Rc;

use hotpocket::{
    consensus::{
        Consensus, Effect, Event, Lost, Params, Query, bodies_kept,
        header::{BareLedger, Candidate, ClosedLedger, Input},
        join::Lacks,
        journal::{Journal, Record},
        messages::{Basis, Closed, Headers, Message, Range, UsersPage},
    },
    types::{Hash, MonoMs, NodeKey, Seq, Status, UserKey},
};

use super::{
    super::{crypto::TableCrypto, properties::run_contract},
    Disk, Ev, Manner, NO_LIMIT_MS, Step, WALL_START_MS, World,
    liars::forged,
    trace::{describe, describe_event, describe_record, trace},
};

impl World {
    pub(super) fn start(&mut self, node: usize) {
        let wall = i64::try_from(self.cfg.wall_off_ms).expect("small");
        let drift = i64::try_from(self.cfg.drift_permille).expect("small");
        let (wall_off, mono_off) = (self.within_signed(wall), self.rng.within(0, 1 << 20) as i64);
        let drift = self.within_signed(drift);
        let me = &mut self.nodes[node];
        me.life += 1;
        me.drift = drift;
        // A monotonic clock starts anywhere, and never below zero.
        me.mono_off = mono_off + 1_000_000;
        me.wall_off = wall_off;
        let params = Params {
            me: me.key,
            boot: Hash::tagged("sim/boot", &(node as u64, me.life)),
            roundtime_ms: self.cfg.roundtime_ms,
            min_round_ms: self.cfg.min_round_ms,
            eager: self.cfg.eager,
            grace_ms: self.cfg.grace_ms,
            attempt_ms: 120,
            time_res_ms: self.cfg.time_res_ms,
            input_window: self.cfg.input_window,
            input_bytes_max: hotpocket::consensus::INPUT_BYTES_MAX,
            session_inputs: true,
        };
        let mut journal = me.disk.journal.clone().opened();
        if !me.manner.is_honest() {
            journal.silence = None;
        }
        if me.life > 1 {
            self.watch.seen.hit("restarts");
            if !journal.prevotes.is_empty() || !journal.precommits.is_empty() {
                self.watch.seen.hit("restarts with a journaled vote");
            }
            if journal.advance.is_some() {
                self.watch.seen.hit("restarts with a journaled ADVANCE");
            }
            if journal.overtime.is_some() && journal.unexecuted.len() == 1 {
                self.watch.seen.hit("restarts with a journaled OVERTIME");
            }
            if journal.silence.is_some() && me.emptied && me.disk.journal.seq() > 0 {
                self.watch.seen.hit("silences over restarts");
            }
            if let Some(join) = journal.join.filter(|join| join.lacks != Lacks::Nothing) {
                self.watch.seen.hit(match join.lacks {
                    Lacks::Users => "restarts while ledgers are passed over",
                    _ => "restarts before a joined node has a state",
                });
            }
            if journal.unl_vote.is_some() {
                self.watch.seen.hit("restarts with a vote for the UNL");
            }
        }
        trace(|| format!("{:>7} n{node} starts at {}", self.now, journal.seq()));
        let mut core = Consensus::new(params, Box::new(TableCrypto(me.key)), self.cfg.threshold, journal);
        if !me.manner.is_honest() {
            // It knows what it does.
            core.never_be_silent();
        }
        me.unl = core.unl().to_vec();
        me.core = Some(Box::new(core));
        me.lost = false;
        me.syncing = None;
        let (is_cut, root) = (me.disk.journal.may_need_rollback(), me.disk.journal.state_root());
        if self.nodes[node].paused {
            // As the real one, which looks at its disk before anything else.
            self.watch.seen.hit("restarts without room on the disk");
            self.handle(node, Event::Paused(true));
        }
        self.handle(node, Event::Start);
        // As the real one does, before anything else.
        if !is_cut && self.nodes[node].disk.state.1 != Some(root) && self.nodes[node].core.is_some() {
            self.handle(node, Event::StateLost);
        }
        self.plan_mischief(node);
    }

    /// A node has no room on its disk from here on, or has again.
    pub(super) fn pause(&mut self, node: usize, paused: bool) {
        let me = &mut self.nodes[node];
        if std::mem::replace(&mut me.paused, paused) == paused {
            return;
        }
        self.watch.seen.hit(if paused { "disks nearly full" } else { "room on a disk again" });
        if me.running.is_some() {
            self.watch.seen.hit("disks nearly full, or not any more, in the middle of a run");
        }
        self.handle(node, Event::Paused(paused));
    }

    /// kill -9, now.
    pub fn crash(&mut self, node: usize) {
        if self.nodes[node].core.is_none() {
            return;
        }
        trace(|| format!("{:>7} n{node} killed", self.now));
        self.watch.seen.hit("crashes");
        // A commit under way is on disk or is not.
        if self.nodes[node].committing.is_some() && self.rng.chance(50) {
            self.commit(node);
        }
        self.count_gaps(node);
        let me = &mut self.nodes[node];
        if me.fifo.iter().any(|step| matches!(step, Step::Sync(_))) {
            self.watch.seen.hit("crashes before a sync");
        }
        me.core = None;
        me.life += 1;
        me.fifo.clear();
        me.pending.clear();
        me.committing = None;
        me.durable = me.persisted;
        me.timers.clear();
        me.runs.clear();
        me.running = None;
        me.crash_in = None;
        me.delivered = None;
        me.users.clear();
        me.view.fill(None);
        for peer in 0..self.nodes.len() {
            self.disconnect(node.min(peer), node.max(peer));
        }
        let at = self.now + if self.rng.chance(50) { self.rng.within(0, 50) } else { self.rng.within(50, 1500) };
        self.push(at, Ev::Restart { node });
    }

    /// kill -9, and its disk is lost. Where that would be of no use to see, nothing happens.
    pub fn empty(&mut self, node: usize) {
        self.crash(node);
        let key = self.nodes[node].key;
        let heard = |other: &&super::Node| other.key != key && other.disk.journal.heard.contains(&key);
        let unheard = self.cfg.n - 1 - self.nodes[..self.cfg.n].iter().filter(heard).count();
        let needed = super::super::properties::quorum(self.cfg.n, self.cfg.threshold) - 1;
        if self.watch.has_signed(node) && unheard >= needed {
            // Whoever got what it said may be gone for good; for the rest it has said nothing, and may say it anew.
            return;
        }
        let me = &mut self.nodes[node];
        let journal = &me.disk.journal;
        let genesis = journal.genesis.clone();
        me.disk = Disk {
            state: (0, Some(genesis.state_root)),
            journal: Journal::new(genesis),
            history: Vec::new(),
            damaged: false,
            before: None,
        };
        me.emptied = true;
        self.watch.seen.hit("disks emptied");
        self.watch.durable.retain(|_, promise| promise.node != node);
    }

    /// What the crash of a node falls between: the making of a record and its commit, or that and the message.
    fn count_gaps(&mut self, node: usize) {
        let me = &self.nodes[node];
        if !me.manner.is_honest() {
            return;
        }
        let seen = &mut self.watch.seen;
        let lost = me.committing.iter().flat_map(|(records, _)| records).chain(&me.pending);
        for record in lost {
            seen.hit(match record {
                Record::Input(_) => "crashes before an input is on disk",
                Record::Novel(_) => "crashes before a NOVEL is on disk",
                Record::Prevote(..) => "crashes before a PREVOTE is on disk",
                Record::Precommit(..) => "crashes before a PRECOMMIT is on disk",
                Record::Advance(_) => "crashes before an ADVANCE is on disk",
                Record::Entered(..) => "crashes before a Tc is on disk",
                Record::Ledger(_) => "crashes before a ledger is on disk",
                Record::Result(_) => "crashes before a RESULT is on disk",
                _ => continue,
            });
        }
        let durable = |step: &&Step| !matches!(step, Step::Sync(mark) if *mark > me.durable);
        for step in me.fifo.iter().take_while(durable) {
            let Step::Do(effect) = step else { continue };
            seen.hit(match &**effect {
                Effect::Broadcast(Message::Novel(_)) => "crashes before a NOVEL on disk is sent",
                Effect::Broadcast(Message::Prevote(_)) => "crashes before a PREVOTE on disk is sent",
                Effect::Broadcast(Message::Precommit(_)) => "crashes before a PRECOMMIT on disk is sent",
                Effect::Broadcast(Message::Advance(_)) => "crashes before an ADVANCE on disk is sent",
                Effect::Broadcast(Message::Result(_)) => "crashes before a RESULT on disk is sent",
                Effect::Execute(_) => "crashes before a ledger on disk is run",
                _ => continue,
            });
        }
    }

    pub(super) fn mono(&self, node: usize) -> MonoMs {
        let me = &self.nodes[node];
        let now = i64::try_from(self.now).expect("small");
        u64::try_from(me.mono_off + now + now * me.drift / 1000).expect("starts high")
    }

    /// When a node's clock will show `at`.
    pub(super) fn when(&self, node: usize, at: MonoMs) -> u64 {
        let mono = self.mono(node);
        let left = i64::try_from(at.saturating_sub(mono)).expect("small");
        let drift = self.nodes[node].drift;
        let rounded = if drift == 0 { 0 } else { 2 };
        self.now + u64::try_from(left * 1000 / (1000 + drift)).expect("drift is small") + rounded
    }

    pub(super) fn within_signed(&mut self, bound: i64) -> i64 {
        let bound = u64::try_from(bound).expect("a bound");
        self.rng.within(0, 2 * bound) as i64 - bound as i64
    }

    /// Gives a node an event, and performs what it answers.
    pub fn handle(&mut self, node: usize, event: Event) {
        let mono = self.mono(node);
        // Its wall clock goes as fast or slow as its other one.
        let now = i64::try_from(self.now).expect("small");
        let drifted = now * self.nodes[node].drift / 1000;
        let wall = (WALL_START_MS + self.now).saturating_add_signed(self.nodes[node].wall_off + drifted);
        let me = &mut self.nodes[node];
        let Some(core) = &mut me.core else { return };
        trace(|| format!("{:>7} n{node} <- {}", self.now, describe_event(&event)));
        for effect in core.on(event, mono, wall) {
            match effect {
                Effect::Persist(record) => {
                    let binds = me.paused && me.manner.is_honest() && binds(&record);
                    assert!(!binds, "S12: node {node} has no room, and {}", describe_record(&record));
                    trace(|| format!("{:>7} n{node}    persist {}", self.now, describe_record(&record)));
                    me.persisted += 1;
                    me.pending.push(record);
                }
                Effect::Sync => me.fifo.push_back(Step::Sync(me.persisted)),
                effect => me.fifo.push_back(Step::Do(Box::new(effect))),
            }
        }
        self.pump(node);
    }

    /// Performs effects until a `Sync` waits for the disk.
    pub(super) fn pump(&mut self, node: usize) {
        loop {
            let me = &mut self.nodes[node];
            match me.fifo.front() {
                None => return,
                Some(Step::Sync(mark)) if me.durable >= *mark => {
                    me.fifo.pop_front();
                }
                Some(Step::Sync(_)) => {
                    if me.committing.is_none() {
                        // A crash may fall between the record and its commit, or into the commit.
                        if let Some(left) = &mut me.crash_in {
                            if *left == 0 {
                                return self.crash(node);
                            }
                            *left -= 1;
                        }
                        me.committing = Some((std::mem::take(&mut me.pending), me.persisted));
                        let life = me.life;
                        let at = self.now + self.rng.within(self.cfg.disk_ms.0, self.cfg.disk_ms.1);
                        self.push(at, Ev::Commit { node, life });
                    }
                    if self.nodes[node].crash_in == Some(0) {
                        self.crash(node);
                    }
                    return;
                }
                Some(Step::Do(_)) => {
                    if let Some(left) = &mut me.crash_in {
                        if *left == 0 {
                            return self.crash(node);
                        }
                        *left -= 1;
                    }
                    let Some(Step::Do(effect)) = me.fifo.pop_front() else { unreachable!("looked at") };
                    self.perform(node, *effect);
                }
            }
        }
    }

    pub(super) fn commit(&mut self, node: usize) {
        let Some((records, mark)) = self.nodes[node].committing.take() else { return };
        let window = self.cfg.input_window;
        let me = &mut self.nodes[node];
        me.durable = mark;
        let honest = me.manner.is_honest();
        for record in records {
            match &record {
                Record::Ledger(ledger) => {
                    let ledger = ledger.clone();
                    me.disk.journal.apply(record, window);
                    let inputs = me.disk.journal.unexecuted.last().expect("just closed").1.clone();
                    if honest {
                        if me.emptied && me.disk.journal.silence.is_some() {
                            self.watch.seen.hit("ledgers closed while a member was silent");
                        }
                        self.watch.stored(node, &ledger, &me.disk.journal.users, &inputs);
                    }
                    me.disk.history.push((*ledger, inputs));
                }
                Record::Bare(ledger) => {
                    if honest {
                        self.watch.passed(node, ledger);
                    }
                    me.disk.history.push((bare(ledger), Vec::new()));
                    me.disk.journal.apply(record, window);
                }
                Record::Base(users) => {
                    self.watch.seen.hit("joins");
                    if !users.is_empty() {
                        self.watch.seen.hit("joins with users");
                    }
                    me.disk.journal.apply(record, window);
                }
                Record::Input(input) => {
                    if honest {
                        self.watch.promise(node, me.key, input, &me.disk.journal);
                    }
                    me.disk.journal.apply(record, window);
                }
                Record::Overtime(overtime) => {
                    if honest {
                        self.watch.overtime(node, overtime.body.of_seq);
                    }
                    me.disk.journal.apply(record, window);
                }
                Record::Adopted(result) => {
                    self.watch.seen.hit(match result.status {
                        Status::Ok => "runs done after all",
                        _ => "runs undone",
                    });
                    me.disk.journal.apply(record, window);
                }
                _ => me.disk.journal.apply(record, window),
            }
        }
    }

    pub(super) fn perform(&mut self, node: usize, effect: Effect) {
        let honest = self.nodes[node].manner.is_honest();
        match effect {
            Effect::Persist(_) | Effect::Sync => unreachable!("sorted out when they came"),
            Effect::Broadcast(message) => {
                trace(|| format!("{:>7} n{node} -> all: {}", self.now, describe(&message)));
                self.left(node, &message);
                if let Message::Input(input) = &message {
                    self.sent_inputs.push(input.clone());
                }
                let message = Rc::new(message);
                // To members alone: observers ask.
                let unl = &self.nodes[node].unl;
                let is_member = |to: &usize| unl.contains(&self.nodes[*to].key);
                for to in (0..self.nodes.len()).filter(is_member).collect::<Vec<_>>() {
                    self.send(node, to, &message);
                }
            }
            Effect::Send(key, message) => {
                trace(|| format!("{:>7} n{node} -> {}: {}", self.now, key.0[0] - 1, describe(&message)));
                self.left(node, &message);
                self.send_to_key(node, key, message);
            }
            Effect::SetTimer(timer, at) => {
                let at = self.when(node, at);
                let me = &mut self.nodes[node];
                me.settings += 1;
                me.timers.insert(timer, me.settings);
                let (life, setting) = (me.life, me.settings);
                self.push(at, Ev::Timer { node, life, timer, setting });
            }
            Effect::Cancel(timer) => {
                self.nodes[node].timers.remove(&timer);
            }
            Effect::LedgerClosed { ledger, attempt, .. } => {
                if ledger.candidate.unl_change.is_some() {
                    let me = &mut self.nodes[node];
                    let core = me.core.as_ref().expect("it is up");
                    // As the real driver: the newest, though older ledgers may still be on their way to the disk.
                    me.unl = core.unl().to_vec();
                }
                trace(|| format!("{:>7} n{node} closed {} at {attempt}", self.now, ledger.candidate.header.seq));
                if honest {
                    self.watch.seen.hit(match attempt {
                        0 => "closed at attempt 0",
                        1 => "closed at attempt 1",
                        2 => "closed at attempt 2",
                        _ => "closed at attempt 3 or later",
                    });
                }
            }
            Effect::Rollback(seq) => {
                let disk = &mut self.nodes[node].disk;
                trace(|| format!("{:>7} n{node} rolls back to before {seq}", self.now));
                if let Some((_, before)) = disk.before.filter(|(kept, _)| *kept == seq) {
                    disk.state = before;
                    disk.damaged = false;
                    self.watch.seen.hit("rollbacks of a touched state");
                }
                let (done, root) = disk.state;
                if done + 1 != seq || root.is_none() || disk.damaged {
                    return self.lose(node);
                }
                self.watch.seen.hit("rollbacks");
            }
            Effect::Execute(run) => {
                if honest {
                    self.watch.executes(node, &run);
                }
                self.nodes[node].runs.push_back(run);
                self.run_next(node);
            }
            Effect::EndRun(seq) => self.end_run(node, seq),
            Effect::Undo { seq, state_root, .. } => self.undo(node, seq, state_root),
            Effect::Load(first) => {
                let at = self.now + self.rng.within(self.cfg.disk_ms.0, self.cfg.disk_ms.1);
                let life = self.nodes[node].life;
                self.push(at, Ev::Load { node, life, first });
            }
            Effect::Deliver(agreed) => {
                let seq = agreed.result.of_seq;
                let before = self.nodes[node].delivered.replace(seq);
                assert!(before.is_none_or(|before| before + 1 == seq), "S3: node {node} skips outputs");
                let has_next = self.nodes[node].disk.journal.seq() > seq;
                assert!(has_next || !agreed.sigs.is_empty(), "S3: node {node} delivers ledger {seq} without a proof");
                if honest {
                    self.watch.delivered(node, &agreed);
                }
            }
            Effect::Diverged { mine, agreed } => {
                let flips = self.nodes[node].manner != Manner::Honest;
                assert!(flips, "S6: node {node} diverged without reason: {mine:?} {agreed:?}");
                self.nodes[node].diverged = true;
                self.watch.seen.hit("diverged");
            }
            Effect::SyncState { from, why } => {
                assert!(self.nodes[node].running.is_none(), "node {node} gives its state up under a run");
                assert!(self.nodes[node].manner != Manner::Honest || why != Lost::Diverged, "S6");
                self.nodes[node].lost = true;
                self.nodes[node].syncing = Some(from);
                self.nodes[node].runs.clear();
                self.watch.seen.hit(match why {
                    Lost::Diverged => "states lost by a run",
                    Lost::Damaged => "states lost by damage",
                    Lost::Behind => "states given up to catch up",
                    Lost::Joined => "states asked for by joined nodes",
                });
                self.sync_soon(node, from);
            }
            Effect::Evidence(evidence) => {
                if honest {
                    self.watch.evidence(node, &evidence);
                }
            }
            Effect::Silent(silent) => {
                self.watch.seen.hit("silences begun");
                let me = &self.nodes[node];
                assert!(me.emptied, "S9: node {node} is silent and forgot nothing: {silent:?}");
            }
            Effect::Speaks => self.watch.seen.hit("silences ended"),
            Effect::Serve(key, query) => self.serve(node, key, &query),
            Effect::Lied(key, lie) => {
                if honest {
                    self.watch.seen.hit("caught a liar");
                    let sound = |other: &&super::Node| other.key == key && other.manner.is_honest();
                    assert!(!self.nodes.iter().any(|other| sound(&other)), "node {node} accuses {key} of {lie}");
                }
            }
            Effect::Join { .. } => {
                let me = &mut self.nodes[node];
                me.lost = true;
                me.runs.clear();
                (me.running, me.syncing) = (None, None);
                self.watch.seen.hit("joins begun");
            }
            Effect::LedgerPassed(_) => {
                let me = &mut self.nodes[node];
                let core = me.core.as_ref().expect("it is up");
                me.unl = core.unl().to_vec();
                if core.summary().votes_after.is_some_and(|after| after > core.summary().seq + 1) {
                    self.watch.seen.hit("ledgers with inputs passed over");
                }
            }
            Effect::Differ(_) => self.watch.seen.hit("results differ"),
            Effect::Split(_) => self.watch.seen.hit("splits"),
            Effect::SplitHealed(_) => self.watch.seen.hit("splits healed"),
            Effect::Refuse(..) => self.watch.seen.hit("refused inputs"),
            Effect::Expired(_) => self.watch.seen.hit("expired inputs"),
        }
    }

    pub(super) fn left(&mut self, node: usize, message: &Message) {
        let me = &self.nodes[node];
        if me.manner.is_honest() {
            self.watch.left(node, me.key, message, &me.disk.journal);
            if let Message::Propose(propose) = message
                && matches!(propose.body.basis, Basis::Polc(_))
            {
                self.watch.seen.hit("POLC re-proposals");
            }
        }
    }

    pub(super) fn send_to_key(&mut self, node: usize, key: NodeKey, message: Message) {
        let message = Rc::new(message);
        for to in 0..self.nodes.len() {
            if self.nodes[to].key == key {
                self.send(node, to, &message);
            }
        }
    }

    pub(super) fn serve(&mut self, node: usize, to: NodeKey, query: &Query) {
        let disk = &self.nodes[node].disk;
        let oldest = oldest(&disk.journal, self.cfg.input_window);
        let history = &disk.history;
        // Those whose contents are deleted.
        let gone = usize::try_from(oldest - 1).expect("small").min(history.len());
        let kept = &history[gone..];
        let mut answers: Vec<Message> = Vec::new();
        match query {
            Query::Closed(seq) => {
                if let Some((ledger, _)) = seq.checked_sub(1).and_then(|at| history.get(usize::try_from(at).ok()?)) {
                    let header = ledger.candidate.header.clone();
                    answers.push(Message::Closed(Closed { header, qc: ledger.qc.clone() }));
                }
            }
            Query::Candidate(hash) => {
                let found = kept.iter().find(|(ledger, _)| ledger.qc.vote.ledger_hash == *hash);
                answers.extend(found.map(|(ledger, _)| Message::Candidate(ledger.candidate.clone())));
            }
            Query::Inputs(ids) => {
                for id in ids {
                    let place = |(ledger, _): &&(ClosedLedger, Vec<Input>)| ledger.candidate.inputs.binary_search(id);
                    let found = kept.iter().find_map(|entry| place(&entry).ok().map(|at| entry.1[at].clone()));
                    answers.extend(found.map(Message::Input));
                }
            }
            Query::Range(first, last) => {
                answers.push(Message::Range(Box::new(range(history, oldest, *first, *last))));
            }
            Query::Headers(first, last) => {
                let at = |seq: Seq| usize::try_from(seq).expect("small").min(history.len());
                let (from, to) = (at(first - 1), at(*last));
                // Not always as many as were asked for.
                let to = to.min(from + 40 + usize::try_from(last % 3).expect("small"));
                let strip = |(ledger, _): &(ClosedLedger, Vec<Input>)| BareLedger {
                    header: ledger.candidate.header.clone(),
                    unl_change: ledger.candidate.unl_change,
                    qc: ledger.qc.clone(),
                };
                let ledgers = history[from.min(to)..to].iter().map(strip).collect();
                answers.push(Message::Headers(Box::new(Headers { first: *first, oldest, ledgers })));
            }
            Query::Users(seq, after) => {
                let users = users_page(disk, *seq, *after, oldest);
                answers.push(Message::Users(Box::new(UsersPage { seq: *seq, oldest, after: *after, users })));
            }
            Query::Details(_) | Query::Npl(_) | Query::Piece(_) => {}
        }
        if self.nodes[node].manner == Manner::Forges {
            answers = answers.into_iter().map(|answer| forged(answer, &mut self.rng)).collect();
        }
        if self.nodes[node].manner == Manner::Withholds {
            return;
        }
        for answer in answers {
            trace(|| format!("{:>7} n{node} -> {}: {}", self.now, to.0[0] - 1, describe(&answer)));
            self.send_to_key(node, to, answer);
        }
    }

    // ---- The contract -------------------------------------------------------------------------------------------

    pub(super) fn run_next(&mut self, node: usize) {
        let (low, high) = self.cfg.run_ms;
        let takes_ms = self.rng.within(low, high);
        let me = &mut self.nodes[node];
        if me.running.is_some() || me.lost {
            return;
        }
        let Some(run) = me.runs.front() else { return };
        let seq = run.header.seq;
        let (done, root) = me.disk.state;
        if me.disk.damaged {
            return self.lose(node);
        }
        assert_eq!(done + 1, seq, "node {node} runs ledger {seq} on another state");
        assert!(root.is_some(), "node {node} runs ledger {seq} on a state in the middle of a run");
        // There is room for one copy.
        me.disk.before = Some((seq, me.disk.state));
        me.disk.state = (seq - 1, None);
        self.begun += 1;
        me.running = Some(self.begun);
        let is_endless = u64::from(run.hash.0[0]) * 100 < self.cfg.endless * 256;
        let takes_ms = me.run_ms.unwrap_or(if is_endless { NO_LIMIT_MS } else { takes_ms + me.slow_ms });
        let limit_ms = if run.is_limited { self.cfg.limit_ms } else { NO_LIMIT_MS };
        let (life, at) = (me.life, self.now + takes_ms.min(limit_ms));
        self.push(at, Ev::Ran { node, life, run: self.begun, cut: takes_ms >= limit_ms });
    }

    pub(super) fn ran(&mut self, node: usize, run: u64, cut: bool) {
        let me = &mut self.nodes[node];
        if me.running != Some(run) {
            return;
        }
        me.running = None;
        let Some(run) = me.runs.pop_front() else { return };
        let seq = run.header.seq;
        let (_, before) = me.disk.before.expect("kept when it began");
        if cut {
            trace(|| format!("{:>7} n{node} run of {seq} cut", self.now));
            me.disk.state = before;
            self.handle(node, Event::Overtime(run));
            return self.run_next(node);
        }
        let before = before.1.expect("checked when it began");
        let mut result = run_contract(before, &run);
        if let Manner::Flips(from) = me.manner
            && seq >= from
            && !me.cured
        {
            result.state_root = Hash::tagged("sim/flipped", &(node as u64, me.life, result.state_root));
        } else if me.manner.is_honest() {
            self.watch.executed(node, &result);
            if me.cured {
                self.watch.seen.hit("runs after a divergence that are as the others'");
            }
        }
        me.disk.state = (seq, Some(result.state_root));
        self.handle(node, Event::ExecDone(result));
        self.run_next(node);
    }

    // ---- The state from others ----------------------------------------------------------------------------------

    /// The node finds, soon, that its state is none; until then it runs nothing.
    fn lose(&mut self, node: usize) {
        let me = &mut self.nodes[node];
        me.lost = true;
        me.runs.clear();
        let life = me.life;
        self.push(self.now, Ev::Lost { node, life });
    }

    fn sync_soon(&mut self, node: usize, from: Seq) {
        let at = self.now + self.rng.within(1, 200);
        let life = self.nodes[node].life;
        self.push(at, Ev::Sync { node, life, from });
    }

    /// Takes the state over from a node that has one from before the run of `from`, or of a later ledger closed here.
    pub(super) fn sync(&mut self, node: usize, from: Seq) {
        let tip = self.nodes[node].disk.journal.seq();
        let mut others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != node).collect();
        let turn = self.rng.index(others.len().max(1));
        others.rotate_left(turn);
        let found = others.into_iter().find_map(|other| {
            let they = &self.nodes[other];
            let is_linked = they.core.is_some() && self.nodes[node].view[other].is_some();
            if !is_linked || they.lost || they.disk.damaged {
                return None;
            }
            // As the real one serves what it keeps from before its last run.
            let (done, root) = they.disk.before.map_or(they.disk.state, |(_, before)| before);
            let fits = done + 1 >= from && done < tip;
            // A wrong root is found out by the chain: that node is passed over.
            let right = || self.nodes[node].disk.history[done as usize].0.candidate.header.result.state_root;
            root.filter(|root| fits && *root == right()).map(|root| (done, root))
        });
        let Some((done, root)) = found else { return self.sync_soon(node, from) };
        // A kill now finds the new state with the old journal.
        if let Some(left) = &mut self.nodes[node].crash_in {
            *left = left.saturating_sub(1);
        }
        let cured = self.rng.chance(60);
        let me = &mut self.nodes[node];
        me.disk.state = (done, Some(root));
        (me.disk.before, me.disk.damaged) = (None, false);
        me.lost = false;
        me.syncing = None;
        me.cured |= cured && me.diverged;
        me.delivered = None;
        let header = &me.disk.history[done as usize].0.candidate.header;
        let result = Box::new(header.result.clone());
        let mut journal = me.disk.journal.clone();
        journal.apply(Record::Synced(result.clone()), self.cfg.input_window);
        let (users, unl) = (journal.executed_users, journal.executed_unl);
        self.watch.seen.hit("states fetched");
        trace(|| format!("{:>7} n{node} has the state after {done}", self.now));
        self.handle(node, Event::Synced { result, users, unl });
    }

    /// Somebody changes the state by hand, between two runs.
    pub(super) fn damage(&mut self, node: usize, copy_too: bool) {
        let me = &mut self.nodes[node];
        if me.running.is_some() || me.lost || !me.manner.is_honest() {
            return;
        }
        let (done, Some(root)) = me.disk.state else { return };
        me.disk.state = (done, Some(Hash::tagged("sim/damaged", &root)));
        me.disk.damaged = true;
        if copy_too {
            me.disk.before = None;
        }
        self.watch.seen.hit("damaged states");
    }

    /// Ends the run of a ledger that is under way: soon, not at once.
    fn end_run(&mut self, node: usize, seq: u64) {
        let me = &self.nodes[node];
        let Some(run) = me.running.filter(|_| me.runs.front().is_some_and(|run| run.header.seq == seq)) else { return };
        self.watch.seen.hit("runs ended because their time was up elsewhere");
        let (life, at) = (me.life, self.now + self.rng.within(0, 20));
        self.push(at, Ev::Ran { node, life, run, cut: true });
    }

    /// The run of a ledger has no effect.
    fn undo(&mut self, node: usize, seq: u64, state_root: Hash) {
        let disk = &mut self.nodes[node].disk;
        if disk.before.is_some_and(|(kept, _)| kept > seq) {
            // Done before a restart: the next run had begun, and is rolled back.
            return;
        }
        if disk.damaged || disk.state.0 > seq {
            return self.lose(node);
        }
        if let Some((_, (_, before))) = disk.before.filter(|(kept, _)| *kept == seq) {
            disk.state = (seq, before);
        } else {
            // It never began here.
            disk.state.0 = seq;
        }
        assert_eq!(disk.state.1, Some(state_root), "node {node} undoes ledger {seq} to another state");
    }
}

/// Whether a record is of a promise, or makes the chain or the pool of a node grow.
fn binds(record: &Record) -> bool {
    matches!(
        record,
        Record::Input(_)
            | Record::Novel(_)
            | Record::Prevote(..)
            | Record::Precommit(..)
            | Record::Advance(_)
            | Record::Overtime(_)
            | Record::Ledger(_)
            | Record::Bare(_)
    )
}

/// A ledger that was passed over, as history has it.
fn bare(ledger: &BareLedger) -> ClosedLedger {
    let (header, unl_change) = (ledger.header.clone(), ledger.unl_change);
    let (inputs, users_add, users_del) = (Vec::new(), Vec::new(), Vec::new());
    ClosedLedger { candidate: Candidate { header, inputs, users_add, users_del, unl_change }, qc: ledger.qc.clone() }
}

/// The oldest ledger whose contents a node keeps.
fn oldest(journal: &Journal, input_window: u64) -> Seq {
    let deleted = journal.seq().saturating_sub(bodies_kept(input_window)).min(journal.executed());
    deleted.max(journal.join.map_or(0, |join| join.base)) + 1
}

/// Users of a ledger that can be told from the contents that are kept: a few, so that lists have several pages.
fn users_page(disk: &Disk, seq: Seq, after: Option<UserKey>, oldest: Seq) -> Vec<UserKey> {
    let lacks_users = disk.journal.join.is_some_and(|join| join.lacks == Lacks::Users);
    if lacks_users || seq + 1 < oldest || seq > disk.journal.seq() {
        return Vec::new();
    }
    let mut users = disk.journal.users.clone();
    for (ledger, _) in disk.history[seq as usize..].iter().rev() {
        ledger.candidate.users_add.iter().for_each(|user| {
            users.remove(user);
        });
        users.extend(&ledger.candidate.users_del);
    }
    users.into_iter().filter(|user| Some(*user) > after).take(2).collect()
}

/// What an honest node answers to a GET for closed ledgers.
fn range(history: &[(ClosedLedger, Vec<Input>)], oldest: Seq, first: Seq, last: Seq) -> Range {
    if first < oldest {
        return Range { first, oldest, ledgers: Vec::new(), inputs: Vec::new() };
    }
    let at = |seq: Seq| usize::try_from(seq).expect("small").min(history.len());
    let (from, to) = (at(first.saturating_sub(1)), at(last));
    let kept = &history[from.min(to)..to];
    Range {
        first,
        oldest,
        ledgers: kept.iter().map(|(ledger, _)| ledger.clone()).collect(),
        // The last one's inputs do not always fit.
        inputs: kept
            .iter()
            .rev()
            .skip(usize::from(last.is_multiple_of(3)))
            .flat_map(|(_, inputs)| inputs.clone())
            .collect(),
    }
}
