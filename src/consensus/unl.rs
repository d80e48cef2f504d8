//! Changes of the UNL: which one a ledger makes, and what the UNL is after it.
//!
//! One ledger is certified by exactly one UNL, and its header fixes the next one, so that a change needs no phase in
//! which both decide. Source: `docs/protocol.md`, "Changes of the UNL".

use std::collections::BTreeMap;

use super::{
    Consensus, Effect, UNL_MAX,
    header::{ExecResult, UnlChange, unl_hash},
    journal::Record,
    messages::{Get, Novel, Scope},
    mutation::mutated,
    votes::Quorum,
};
use crate::types::NodeKey;

impl UnlChange {
    /// The UNL after this change, ascending. `None` when it changes nothing, would leave nobody, or more than
    /// [`UNL_MAX`] members.
    pub fn apply(&self, unl: &[NodeKey]) -> Option<Vec<NodeKey>> {
        let mut after = unl.to_vec();
        match (self, unl.binary_search(self.node())) {
            (UnlChange::Add(node), Err(place)) if unl.len() < UNL_MAX => after.insert(place, *node),
            (UnlChange::Remove(_), Ok(place)) if unl.len() > 1 => {
                after.remove(place);
            }
            _ => return None,
        }
        Some(after)
    }

    /// Who comes or goes.
    pub fn node(&self) -> &NodeKey {
        match self {
            UnlChange::Add(node) | UnlChange::Remove(node) => node,
        }
    }
}

/// The change that a ledger makes: what the contract asks for in the result that the ledger carries, else what the
/// operators of a quorum vote for. A request that cannot be met does not stand in the operators' way.
pub(super) fn decide(unl: &[NodeKey], q: usize, novels: &[&Novel], result: &ExecResult) -> Option<UnlChange> {
    let q = if mutated!(OneUnlVoteLess) { q - 1 } else { q };
    let applies = |change: &UnlChange| change.apply(unl).is_some();
    let voted = || votes(novels).into_iter().find(|(change, votes)| *votes >= q && applies(change));
    result.unl_req.filter(applies).or_else(|| voted().map(|(change, _)| change))
}

/// Whether no vote still to come, of `outstanding` members, can change what [`decide`] yields.
pub(super) fn is_decided(
    unl: &[NodeKey],
    q: usize,
    novels: &[&Novel],
    outstanding: usize,
    unl_req: Option<&UnlChange>,
) -> bool {
    let asked = unl_req.is_some_and(|change| change.apply(unl).is_some());
    // A change that nobody voted for yet is out of reach: those outstanding are fewer than a quorum.
    asked || votes(novels).values().all(|votes| *votes >= q || votes + outstanding < q)
}

/// Votes by change; each novel has one at most.
fn votes(novels: &[&Novel]) -> BTreeMap<UnlChange, usize> {
    let mut votes = BTreeMap::new();
    for change in novels.iter().filter_map(|novel| novel.unl_vote) {
        *votes.entry(change).or_insert(0) += 1;
    }
    votes
}

impl Consensus {
    /// My operator votes, or withdraws the vote. Told with the next NOVELs, until it has done its work.
    pub(super) fn vote_for_unl(&mut self, vote: Option<UnlChange>) {
        let applies = |change: &UnlChange| change.apply(&self.unl).is_some();
        if vote == self.unl_vote || vote.is_some() && !self.is_member(&self.params.me) || !vote.iter().all(applies) {
            return;
        }
        self.unl_vote = vote;
        self.unl_vote_told = false;
        self.effects.push(Effect::Persist(Record::UnlVote(vote)));
        self.effects.push(Effect::Sync);
    }

    /// Remembers what a member's operator votes for, for people.
    pub(super) fn note_unl_vote(&mut self, member: NodeKey, vote: Option<UnlChange>) {
        match vote {
            Some(change) => self.unl_votes.insert(member, change),
            None => self.unl_votes.remove(&member),
        };
    }

    /// Takes my vote back when with this UNL it has done its work, or is not asked for any more.
    pub(super) fn drop_settled_vote(&mut self, unl: &[NodeKey]) {
        let Some(vote) = self.unl_vote else { return };
        if mutated!(KeptUnlVote) {
            return;
        }
        if vote.apply(unl).is_none() || unl.binary_search(&self.params.me).is_err() {
            self.unl_vote = None;
            self.effects.push(Effect::Persist(Record::UnlVote(None)));
        }
    }

    /// The UNL that the ledger just closed has fixed is in force: for the round about to begin, and for the results of
    /// that ledger.
    pub(super) fn switch_unl(&mut self, unl: Vec<NodeKey>) {
        let had_others = self.has_others();
        let before = std::mem::replace(&mut self.unl, unl);
        if !mutated!(OldQuorum) {
            self.quorum = Quorum::new(self.unl.len(), self.threshold);
        }
        let unl_hash = if mutated!(OldScope) { self.scope.unl_hash } else { unl_hash(&self.unl) };
        let scope = Scope { unl_hash, ..self.scope };
        self.former_scope = Some(std::mem::replace(&mut self.scope, scope));

        self.presence.share_among(self.params.users_max, self.unl.len());
        let me = self.params.me;
        for node in before.iter().filter(|node| self.unl.binary_search(node).is_err()) {
            self.missed.remove(node);
            self.unl_votes.remove(node);
            // Nobody vouches for its users any more; what it vouched for goes with the next round.
            if *node != me {
                self.presence.forget_host(node);
            }
        }
        let stands = |change: &UnlChange| change.apply(&self.unl).is_some();
        self.unl_votes.retain(|_, change| stands(change));
        let known = |peer: &NodeKey| self.unl.binary_search(peer).is_ok() || self.links.contains(peer);
        self.peer_tips.retain(|peer, _| known(peer));
        // What hosts said about their users did not count, or did not come, before.
        let i_came = self.is_member(&me) && before.binary_search(&me).is_err();
        self.silence_for_unl(self.tip.seq, i_came);
        let came = |node: &&NodeKey| i_came || before.binary_search(node).is_err();
        let hosts: Vec<NodeKey> =
            self.unl.iter().filter(came).filter(|node| **node != me && self.links.contains(node)).copied().collect();
        for host in hosts {
            self.get(host, Get::Presence);
        }
        if self.has_others() && !had_others {
            self.keep_telling();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Hash, Status};

    fn node(at: u8) -> NodeKey {
        NodeKey([at; 32])
    }

    fn unl(keys: &[u8]) -> Vec<NodeKey> {
        keys.iter().copied().map(node).collect()
    }

    fn novel(unl_vote: Option<UnlChange>) -> Novel {
        Novel {
            seq: 1,
            parent: Hash::ZERO,
            time_slot: 0,
            users_add: vec![],
            users_del: vec![],
            inputs: vec![],
            unl_vote,
            settlement: None,
        }
    }

    fn result(unl_req: Option<UnlChange>) -> ExecResult {
        ExecResult {
            of_seq: 0,
            of_hash: Hash::ZERO,
            state_root: Hash::ZERO,
            outputs_root: Hash::ZERO,
            status: Status::Ok,
            unl_req,
        }
    }

    fn decided(votes: &[Option<UnlChange>], request: Option<UnlChange>) -> Option<UnlChange> {
        let novels: Vec<Novel> = votes.iter().copied().map(novel).collect();
        decide(&unl(&[1, 3, 5, 7]), 3, &novels.iter().collect::<Vec<_>>(), &result(request))
    }

    #[test]
    fn a_change_keeps_the_order_and_one_that_changes_nothing_or_leaves_nobody_does_not_apply() {
        assert_eq!(UnlChange::Add(node(2)).apply(&unl(&[1, 3])), Some(unl(&[1, 2, 3])));
        assert_eq!(UnlChange::Remove(node(1)).apply(&unl(&[1, 3])), Some(unl(&[3])));
        assert_eq!(UnlChange::Add(node(3)).apply(&unl(&[1, 3])), None);
        assert_eq!(UnlChange::Remove(node(2)).apply(&unl(&[1, 3])), None);
        assert_eq!(UnlChange::Remove(node(1)).apply(&unl(&[1])), None);
    }

    #[test]
    fn a_full_unl_takes_nobody_in() {
        let full: Vec<NodeKey> = (0..UNL_MAX as u8).map(node).collect();
        assert_eq!(UnlChange::Add(node(200)).apply(&full), None);
        assert!(UnlChange::Add(node(200)).apply(&full[1..]).is_some());
    }

    #[test]
    fn a_quorum_of_operators_decides_and_one_vote_less_does_not() {
        let add = Some(UnlChange::Add(node(2)));
        assert_eq!(decided(&[add, add, add, None], None), add);
        assert_eq!(decided(&[add, add, None, None], None), None);
        assert_eq!(decided(&[add, add, Some(UnlChange::Add(node(4))), None], None), None);
        let useless = Some(UnlChange::Add(node(3)));
        assert_eq!(decided(&[useless, useless, useless, None], None), None);
    }

    #[test]
    fn the_contract_goes_before_the_operators_unless_its_request_cannot_be_met() {
        let (add, remove) = (Some(UnlChange::Add(node(2))), Some(UnlChange::Remove(node(7))));
        assert_eq!(decided(&[None; 4], remove), remove);
        assert_eq!(decided(&[add, add, add, None], remove), remove);
        assert_eq!(decided(&[add, add, add, None], Some(UnlChange::Remove(node(2)))), add);
    }

    #[test]
    fn votes_are_waited_for_while_they_can_still_decide() {
        let add = Some(UnlChange::Add(node(2)));
        let decided = |votes: &[Option<UnlChange>], request: Option<UnlChange>| {
            let novels: Vec<Novel> = votes.iter().copied().map(novel).collect();
            let outstanding = 4 - novels.len();
            is_decided(&unl(&[1, 3, 5, 7]), 3, &novels.iter().collect::<Vec<_>>(), outstanding, request.as_ref())
        };
        assert!(decided(&[None, None, None], None));
        assert!(!decided(&[add, add, None], None), "the fourth may complete it");
        assert!(decided(&[add, add, add], None));
        assert!(decided(&[add, None, None], None));
        assert!(decided(&[add, add, None], Some(UnlChange::Remove(node(1)))), "the contract has decided");
        assert!(!decided(&[add, add, None], Some(UnlChange::Remove(node(2)))), "it asked for nothing that can be");
    }
}
