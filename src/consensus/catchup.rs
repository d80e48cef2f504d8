//! Getting closed ledgers that this node lacks, many at once: whom to ask for which, and adopting what came, in order.
//!
//! A node that is behind by more than one ledger asks a few peers at a time for one range each. What a peer sends was
//! checked beside the loop as far as it can be by itself ([`super::range`]); a ledger is adopted when the one before it is,
//! against the UNL and the users that one leaves. Everything up to the last closed ledger is certain, so what does not fit
//! on top of it is false, and whoever sent it is not asked again.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ADOPT_USERS, ADOPT_WORK_MAX, Consensus, Effect, HEADERS_MAX, LIARS_MAX, MUTE_MS, RANGE_LEDGERS_MAX,
    RANGE_TIMEOUT_MAX_MS, RANGE_TIMEOUT_MS, RANGES_MAX, Timer,
    header::Header,
    messages::Get,
    mutation::mutated,
    range::{CheckedLedger, CheckedRange, Lie},
};
use crate::types::{Hash, MonoMs, NodeKey, Seq};

/// Ledgers that are held or asked for at a time.
#[cfg(test)]
pub(super) const HELD_MAX: Seq = (RANGES_MAX * RANGE_LEDGERS_MAX) as Seq;

/// A request under way.
#[derive(Debug)]
struct Asked {
    what: Asking,
    first: Seq,
    last: Seq,
    /// When another peer is asked instead.
    due: MonoMs,
}

/// What is asked of those that are ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// Ledgers with their contents.
    Ranges,
    /// Ledgers without, where nobody keeps contents.
    Headers,
    /// Who the users of the last ledger are, which was passed over.
    Users,
}

impl Asking {
    /// Ledgers in an answer.
    fn most(self) -> Seq {
        if self == Asking::Headers { HEADERS_MAX as Seq } else { RANGE_LEDGERS_MAX as Seq }
    }
}

/// What is known of ledgers beyond the last closed one.
#[derive(Debug, Default)]
pub(super) struct Catchup {
    /// Of whom which ledgers were asked, one range each.
    asked: BTreeMap<NodeKey, Asked>,
    /// Checked ledgers with who sent them, until they are closed.
    held: BTreeMap<Seq, (NodeKey, CheckedLedger)>,
    /// How long a linked peer has to answer that did not in time before.
    patience: BTreeMap<NodeKey, u64>,
    /// The oldest ledger that a linked peer keeps the contents of, as it said last.
    pub oldest: BTreeMap<NodeKey, Seq>,
    /// Who sent what is false.
    liars: BTreeSet<NodeKey>,
    /// When the timer goes off.
    pub timer: Option<MonoMs>,
    /// How much may be adopted before other events have their turn.
    work: usize,
}

impl Catchup {
    /// Another event.
    pub fn begin_turn(&mut self) {
        self.work = ADOPT_WORK_MAX;
    }

    /// Forgets what a link had to do with.
    pub fn link_down(&mut self, peer: &NodeKey) {
        self.asked.remove(peer);
        self.patience.remove(peer);
        self.oldest.remove(peer);
    }

    /// Whether this ledger came.
    pub fn holds(&self, seq: Seq) -> bool {
        self.held.contains_key(&seq)
    }

    /// Whether a peer sent something false.
    pub fn is_liar(&self, peer: &NodeKey) -> bool {
        self.liars.contains(peer)
    }

    /// How many did.
    #[cfg(test)]
    pub fn liars(&self) -> usize {
        self.liars.len()
    }

    /// Which ledgers without contents a peer was asked for.
    pub fn asked_headers(&self, peer: &NodeKey) -> Option<(Seq, Seq)> {
        let asked = self.asked.get(peer).filter(|asked| asked.what == Asking::Headers)?;
        Some((asked.first, asked.last))
    }

    /// A peer answered, and said which is the oldest ledger whose contents it keeps.
    pub fn answered(&mut self, peer: &NodeKey, oldest: Seq) {
        self.asked.remove(peer);
        self.patience.remove(peer);
        self.oldest.insert(*peer, oldest);
    }

    /// A peer did not answer in time.
    pub fn is_late(&mut self, peer: NodeKey) {
        let patience = self.patience.entry(peer).or_insert(RANGE_TIMEOUT_MS);
        *patience = (*patience * 2).min(RANGE_TIMEOUT_MAX_MS);
    }

    /// How long a peer has to answer that did not in time before; 0 for others.
    pub fn patience_of(&self, peer: &NodeKey) -> u64 {
        self.patience.get(peer).copied().unwrap_or(0)
    }

    /// What came of ledgers with contents is of no use.
    pub fn drop_held(&mut self) {
        self.held.clear();
    }

    /// What was asked is of no use.
    pub fn ask_anew(&mut self) {
        self.asked.clear();
    }

    /// The last ledger of the first range from `from` on that is neither here nor asked for, at most up to `end`, with its
    /// first one.
    #[cfg(test)]
    pub fn gap(&self, from: Seq, end: Seq) -> Option<(Seq, Seq)> {
        let next = |seq: Seq| self.held.range(seq..).next().map(|(seq, _)| *seq);
        self.gap_of(from, end, RANGE_LEDGERS_MAX as Seq, next)
    }

    /// The same of at most so many ledgers, where `next_held` is the first from a number on that is here.
    fn gap_of(&self, from: Seq, end: Seq, most: Seq, next_held: impl Fn(Seq) -> Option<Seq>) -> Option<(Seq, Seq)> {
        let asked = |seq: Seq| self.asked.values().find(|asked| (asked.first..=asked.last).contains(&seq));
        let mut first = from;
        loop {
            if first > end {
                return None;
            }
            match (next_held(first) == Some(first), asked(first)) {
                (true, _) => first += 1,
                (false, Some(asked)) => first = asked.last + 1,
                (false, None) => break,
            }
        }
        let end = end.min(first + most - 1);
        let begun = self.asked.values().map(|asked| asked.first).chain(next_held(first));
        let last = begun.filter(|seq| *seq > first).map(|seq| seq - 1).fold(end, Seq::min);
        Some((first, last))
    }
}

impl Consensus {
    /// Whether an answer of this peer is waited for. What comes unasked is not worth checking.
    pub fn expects_range(&self, peer: &NodeKey) -> bool {
        self.catchup.asked.contains_key(peer)
    }

    /// Whether there is more to be fetched than the ledger that is being closed.
    pub fn is_far_behind(&self) -> bool {
        self.is_bare() || self.catchup.holds(self.round.seq) || self.asks_for_ranges()
    }

    /// Whether the ledgers that lack are asked for many at once: when some linked peer has two or more of them.
    pub(super) fn asks_for_ranges(&self) -> bool {
        self.sources(self.round.seq + 1).next().is_some()
    }

    /// Linked peers that have closed this ledger, with the last one each said it closed.
    pub(super) fn ahead(&self, seq: Seq) -> impl Iterator<Item = (NodeKey, Seq)> {
        let ahead = self.peer_tips.iter().filter(move |(peer, tip)| **tip >= seq && self.links.contains(peer));
        ahead.filter(|(peer, _)| !self.catchup.is_liar(peer)).map(|(peer, tip)| (*peer, *tip))
    }

    /// Those of them that keep what comes next here.
    fn sources(&self, seq: Seq) -> impl Iterator<Item = (NodeKey, Seq)> {
        let next = self.round.seq;
        let is_gone = self.catchup.oldest.values().any(|oldest| *oldest > next);
        // Where others say that it is deleted, somebody who claims to keep it and says nothing is not waited for for ever.
        let mute = move |peer: &NodeKey| is_gone && self.catchup.patience_of(peer) >= MUTE_MS;
        let kept =
            move |peer: &NodeKey| self.catchup.oldest.get(peer).is_none_or(|oldest| *oldest <= next) && !mute(peer);
        self.ahead(seq).filter(move |(peer, _)| kept(peer))
    }

    /// Asks for ledgers that are neither here nor asked for.
    pub(super) fn ask_ranges(&mut self) {
        let (now, next) = (self.now, self.round.seq);
        let late: Vec<NodeKey> =
            self.catchup.asked.iter().filter(|(_, asked)| asked.due <= now).map(|(peer, _)| *peer).collect();
        for peer in late {
            self.catchup.asked.remove(&peer);
            self.catchup.is_late(peer);
        }
        let what = self.lacking();
        self.catchup.asked.retain(|_, asked| asked.last >= next && Some(asked.what) == what);
        match what {
            Some(Asking::Users) => self.ask_users(),
            Some(what) => self.ask_ledgers(what),
            None => {}
        }
        self.set_range_timer();
    }

    /// What is to be asked for, if anything is.
    fn lacking(&mut self) -> Option<Asking> {
        if self.is_bare() {
            return Some(if self.is_base() { Asking::Users } else { Asking::Headers });
        }
        // First, because it notes since when that is so.
        let is_given_up = self.is_given_up();
        match self.asks_for_ranges() {
            true => Some(Asking::Ranges),
            false => is_given_up.then_some(Asking::Headers),
        }
    }

    fn ask_ledgers(&mut self, what: Asking) {
        let (now, next) = (self.now, self.round.seq);
        let end = next.saturating_add(RANGES_MAX as Seq * what.most() - 1);
        let mut from = next;
        while self.catchup.asked.len() < RANGES_MAX
            && let Some((first, last)) = self.gap(what, from, end)
            && let Some((peer, tip)) = self.idle_source(what, first)
        {
            let last = last.min(tip);
            let patience = self.catchup.patience_of(&peer).max(RANGE_TIMEOUT_MS);
            self.catchup.asked.insert(peer, Asked { what, first, last, due: now + patience });
            self.get(peer, if what == Asking::Headers { Get::Headers(first, last) } else { Get::Range(first, last) });
            from = last + 1;
        }
    }

    fn gap(&self, what: Asking, from: Seq, end: Seq) -> Option<(Seq, Seq)> {
        let next_held = |seq: Seq| match what {
            Asking::Headers => self.joining.next_held(seq),
            _ => self.catchup.held.range(seq..).next().map(|(seq, _)| *seq),
        };
        self.catchup.gap_of(from, end, what.most(), next_held)
    }

    /// Whom to ask for ledgers from this one on: who answers quickly before who did not, members before others.
    fn idle_source(&self, what: Asking, first: Seq) -> Option<(NodeKey, Seq)> {
        let keeps = |peer: &NodeKey| what == Asking::Headers || self.sources(first).any(|(source, _)| source == *peer);
        let idle = self.ahead(first).filter(|(peer, _)| !self.catchup.asked.contains_key(peer) && keeps(peer));
        idle.min_by_key(|(peer, _)| (self.catchup.patience_of(peer), !self.is_member(peer), *peer))
    }

    fn set_range_timer(&mut self) {
        let due = self.catchup.asked.values().map(|asked| asked.due).chain(self.joining.due()).min();
        if let Some(at) = due
            && self.catchup.timer != due
        {
            self.effects.push(Effect::SetTimer(Timer::Range, at));
        }
        self.catchup.timer = due;
    }

    /// A peer's answer.
    pub(super) fn on_range(&mut self, from: NodeKey, range: Result<CheckedRange, Lie>) {
        let Some(asked) = self.catchup.asked.get(&from).filter(|asked| asked.what == Asking::Ranges) else { return };
        let (first, last) = (asked.first, asked.last);
        let range = match range {
            Ok(range) => range,
            Err(lie) => return self.lied(from, lie),
        };
        if range.first != first {
            // It answers what was asked before, too late.
            return;
        }
        self.catchup.answered(&from, range.oldest);
        if range.ledgers.is_empty() {
            if range.oldest <= first {
                // It has not that many, whatever it said: it is asked again when it says so again.
                self.peer_tips.insert(from, first - 1);
            }
            return;
        }
        for ledger in range.ledgers {
            let seq = ledger.closed.candidate.header.seq;
            if (self.round.seq..=last).contains(&seq) {
                self.catchup.held.entry(seq).or_insert((from, ledger));
            }
        }
        self.fresh();
    }

    /// Closes the ledgers that came, in order. Whether there are more, which have to wait: other events have their turn.
    pub(super) fn adopt_ledgers(&mut self) -> bool {
        loop {
            let seq = self.round.seq;
            self.catchup.held = self.catchup.held.split_off(&seq);
            let Some((_, next)) = self.catchup.held.get(&seq).filter(|_| !self.is_bare()) else {
                return self.pass_over();
            };
            let header = &next.closed.candidate.header;
            let hash = next.closed.qc.vote.ledger_hash;
            let users_change = header.users_root != self.users_root;
            let work = 1 + header.n_inputs as usize + if users_change { self.users.len() / ADOPT_USERS } else { 0 };
            if self.catchup.work == 0 {
                self.effects.push(Effect::SetTimer(Timer::Adopt, self.now));
                return true;
            }
            self.catchup.work = self.catchup.work.saturating_sub(work);
            if let Err((from, lie)) = self.take_next(seq, hash) {
                self.lied(from, lie);
                return false;
            }
            if !self.close_by_certificate() {
                // Some of its inputs did not come with it; they are asked for.
                return false;
            }
        }
    }

    /// Makes the next ledger that came the one to be closed, if it is what it says.
    fn take_next(&mut self, seq: Seq, hash: Hash) -> Result<(), (NodeKey, Lie)> {
        if self.is_taken(hash) {
            return Ok(());
        }
        let (from, next) = self.catchup.held.get_mut(&seq).expect("looked at");
        let (from, closed, inputs) = (*from, next.closed.clone(), std::mem::take(&mut next.inputs));
        let candidate = closed.candidate;
        if !self.follows(&candidate.header) {
            return Err((from, Lie::Chain));
        }
        if !self.checker().is_quorum(&closed.qc.sigs) {
            return Err((from, Lie::Certificate));
        }
        if !candidate.is_consistent(&self.users, self.users_root, &self.unl) {
            return Err((from, Lie::Body));
        }
        for (id, input) in inputs {
            // What a quorum took is not refused; what is held already need not be stored again.
            let _ = self.take_input(id, input, from, true);
        }
        self.round.closed = Some((closed.qc, from));
        self.round.candidates.insert(hash, candidate);
        Ok(())
    }

    fn is_taken(&self, hash: Hash) -> bool {
        let closed = self.round.closed.as_ref().is_some_and(|(qc, _)| qc.vote.ledger_hash == hash);
        closed && self.round.candidates.contains_key(&hash) && self.catchup.held[&self.round.seq].1.inputs.is_empty()
    }

    /// Whether a header is on top of the last closed ledger, for the UNL that it leaves, and has room for its users.
    pub(super) fn follows(&self, header: &Header) -> bool {
        header.seq == self.round.seq
            && (header.parent == self.tip.hash || mutated!(NoParentCheck))
            && header.chain_id == self.scope.chain_id
            && header.unl_hash == self.scope.unl_hash
            && (header.n_users as usize <= self.params.users_max || mutated!(UsersOverCap))
    }

    /// A peer sent what is false: it is not asked for ledgers any more, and nothing that it sent is used.
    pub(super) fn lied(&mut self, from: NodeKey, lie: Lie) {
        if self.catchup.liars.len() >= LIARS_MAX {
            let unl = std::mem::take(&mut self.unl);
            self.catchup.liars.retain(|liar| unl.binary_search(liar).is_ok());
            self.unl = unl;
        }
        self.catchup.liars.insert(from);
        self.catchup.asked.remove(&from);
        self.catchup.held.retain(|_, (sender, _)| *sender != from);
        self.joining.forget(&from);
        self.effects.push(Effect::Lied(from, lie));
    }
}
