//! Asking for data that is missed, and sending again what others may have missed.

use std::collections::BTreeMap;

use super::{
    Consensus, Effect, Timer,
    limits::{FETCH_PATIENCE_MS, FETCH_TIMEOUT_MS, GET_INPUTS_MAX, RETRANSMIT_MAX_MS, WANTED_MAX},
    messages::{Get, Message, Novel},
    pool::Pool,
    round::Want,
};
use crate::types::{Hash, NodeKey};

impl Consensus {
    pub(super) fn want_inputs_listed_by_novels(&mut self, ids: &[Hash]) {
        for id in ids {
            let lists = |novel: &&super::messages::Signed<Novel>| novel.body.inputs.binary_search(id).is_ok();
            let holders: Vec<NodeKey> = self.round.novels.values().filter(lists).map(|novel| novel.from).collect();
            self.round.want(Want::Input(*id), holders);
        }
    }

    /// Inputs that others list and I lack: asked for even when no header needs them yet, so that an input whose host
    /// is gone reaches everybody.
    pub(super) fn want_listed_inputs(&mut self) {
        let round = &mut self.round;
        for (id, holders) in round.unknown_before.iter().chain(&round.unknown) {
            round.wanted.entry(Want::Input(*id)).or_default().extend(holders);
        }
    }

    /// Asks for what is missed: each thing of one holder at a time, the next one when that did not answer.
    pub(super) fn fetch(&mut self) {
        let wanted = std::mem::take(&mut self.round.wanted);
        self.round.fetching.retain(|want, _| wanted.contains_key(want));
        let mut inputs: BTreeMap<NodeKey, Vec<Hash>> = BTreeMap::new();
        let mut next: Option<u64> = None;
        for (want, holders) in wanted {
            let now = self.now;
            let fetching = self
                .round
                .fetching
                .entry(want.clone())
                .or_insert_with(|| super::round::Fetching { since: now, ..Default::default() });
            // An input is probably on its way: the host sent it to everybody.
            let on_its_way = matches!(want, Want::Input(_)) && self.round.closed.is_none();
            let patience = if on_its_way { FETCH_PATIENCE_MS } else { 0 };
            let due = fetching.asked.map_or(fetching.since + patience, |(at, _)| at + FETCH_TIMEOUT_MS);
            if now < due {
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            // An input's bytes cannot be false: its id is their hash.
            let may_lie = !matches!(want, Want::Input(_));
            let usable = |node: &NodeKey| self.links.contains(node) && !(may_lie && self.catchup.is_liar(node));
            let linked: Vec<NodeKey> = holders.into_iter().filter(usable).collect();
            let fresh = linked.iter().find(|node| !fetching.tried.contains(node)).copied();
            if fresh.is_none() {
                fetching.tried.clear();
            }
            let due = now + FETCH_TIMEOUT_MS;
            next = Some(next.map_or(due, |next| next.min(due)));
            let Some(holder) = fresh.or_else(|| linked.first().copied()) else { continue };
            fetching.tried.insert(holder);
            fetching.asked = Some((now, holder));
            match want {
                Want::Input(id) => inputs.entry(holder).or_default().push(id),
                other => self.effects.push(Effect::Send(holder, Message::Get(other.get()))),
            }
        }
        for (holder, ids) in inputs {
            for ids in ids.chunks(GET_INPUTS_MAX) {
                self.get(holder, Get::Inputs(ids.to_vec()));
            }
        }
        if let Some(at) = next {
            self.effects.push(Effect::SetTimer(Timer::Fetch, at));
        }
    }

    // ---- Sending again ------------------------------------------------------------------------------------------

    /// Everything of mine that somebody may lack.
    pub(super) fn own_messages(&self) -> Vec<Message> {
        let mine = &self.round.mine;
        let mut messages = Vec::new();
        // While this node is silent it may be a signature that the journal lost, out of a certificate.
        let said = self.results.get(&self.params.me).filter(|_| self.silence.is_none());
        messages.extend(said.cloned().map(Message::Result));
        messages.extend(self.overtimes.get(&self.params.me).cloned().map(Message::Overtime));
        messages.extend(mine.novel.clone().map(Message::Novel));
        messages.extend(self.round.tc_forward());
        messages.extend(mine.propose.clone().map(Message::Propose));
        messages.extend(mine.prevotes.values().next_back().cloned().map(Message::Prevote));
        messages.extend(mine.precommits.values().next_back().cloned().map(Message::Precommit));
        messages.extend(mine.advance.clone().map(Message::Advance));
        messages
    }

    pub(super) fn retransmit(&mut self) {
        let due = self.round.retry_from + self.round.retry_ms;
        if self.now < due {
            return self.retransmit_at(due);
        }
        let messages = self.own_messages();
        if messages.is_empty() || self.silence.is_some() {
            let status = self.status();
            self.effects.push(Effect::Broadcast(status));
        }
        for message in messages {
            self.effects.push(Effect::Broadcast(message));
        }
        self.round.retry_from = self.now;
        self.round.retry_ms = (self.round.retry_ms * 2).min(RETRANSMIT_MAX_MS);
        self.retransmit_at(self.now + self.round.retry_ms);
    }
}

/// The first ids that are not held, as many as are asked for at once: looking at all of them with each input that comes
/// would take longer than their coming.
pub(super) fn first_missing(pool: &Pool, ids: &[Hash]) -> Vec<Hash> {
    ids.iter().filter(|id| !pool.contains(id)).take(WANTED_MAX).copied().collect()
}

/// Forgets the ids up to the first that is not held; none are left when all are held.
pub(super) fn forget_held(pool: &Pool, ids: &mut Vec<Hash>) {
    let held = ids.iter().take_while(|id| pool.contains(id)).count();
    ids.drain(..held);
}
