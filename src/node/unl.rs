//! The UNL as the node and its operator see it: who is a member, who votes for which change.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Node, NodeError, control::UnlVote, start::users_here};
use crate::{
    config::PeerAddr,
    consensus::{Event, UNL_MAX, header::UnlChange, votes::Quorum},
    crypto,
    types::{NodeKey, Seq},
};

/// Why a vote is not cast.
pub(super) struct Refused {
    pub why: String,
    /// Whether the operator may insist.
    pub danger: bool,
}

/// What becomes of a request.
pub(super) type Answer = Result<(), Refused>;

impl From<String> for Refused {
    fn from(why: String) -> Refused {
        Refused { why, danger: false }
    }
}

impl Node {
    /// The UNL in force is another: who is told what is decided, and who is admitted, follows it.
    pub(super) fn unl_changed(&mut self, seq: Seq, change: &UnlChange) {
        let (unl, me) = (self.core.unl(), self.config.key);
        let role = self.role();
        let quorum = self.core.quorum();
        info!(
            seq,
            change = text(change),
            members = quorum.n,
            quorum = quorum.q,
            this_node = role,
            "the UNL has changed"
        );
        self.mesh.set_unl(unl.iter().copied().filter(|node| *node != me).collect());
        self.twins.keep(unl);
        self.rounds.set_unl(unl);
        self.metrics.members_changed();
        if let Some(gateway) = &self.gateway {
            gateway.set_users_max(users_here(&self.config, unl));
        }
        if *change == UnlChange::Remove(me) {
            warn!(seq, "this node is no member any more: it follows as an observer");
        }
    }

    /// What this node is, in a word.
    pub(super) fn role(&self) -> &'static str {
        if self.core.unl().contains(&self.config.key) { "member" } else { "observer" }
    }

    /// Who decides and who votes for which change, for `hp unl`.
    pub(super) fn unl_status(&self) -> Value {
        let (summary, quorum) = (self.core.summary(), self.core.quorum());
        let vote_of: BTreeMap<NodeKey, UnlChange> = summary.unl_votes.into_iter().collect();
        let members: Vec<Value> = self
            .core
            .unl()
            .iter()
            .map(|node| {
                let me = *node == self.config.key;
                // What this node's operator said just now is not in a NOVEL yet.
                let vote = if me { summary.unl_vote } else { vote_of.get(node).copied() };
                json!({
                    "node": node.to_string(),
                    "me": me,
                    "live": me || self.linked.contains(node),
                    "vote": vote.as_ref().map(change_json),
                })
            })
            .collect();
        let observers: Vec<String> =
            self.linked.iter().filter(|node| !self.core.unl().contains(node)).map(NodeKey::to_string).collect();
        json!({
            "node": self.config.key.to_string(),
            "role": self.role(),
            "seq": summary.seq,
            "threshold": self.config.consensus.threshold,
            "quorum": quorum.q,
            "may_be_down": quorum.live(),
            "may_lie": quorum.safe(),
            "members": members,
            "observers": observers,
            "vote": summary.unl_vote.as_ref().map(change_json),
            "pending": self.unl_pending(),
        })
    }

    /// Changes that members vote for, by who does; this node's own vote counts at once.
    pub(super) fn unl_pending(&self) -> Value {
        let summary = self.core.summary();
        let me = self.config.key;
        let others = summary.unl_votes.into_iter().filter(|(node, _)| *node != me);
        let mut by_change: BTreeMap<UnlChange, Vec<String>> = BTreeMap::new();
        for (node, change) in others.chain(summary.unl_vote.map(|change| (me, change))) {
            by_change.entry(change).or_default().push(node.to_string());
        }
        let needed = self.core.quorum().q;
        let pending = by_change.into_iter().map(|(change, by)| {
            let mut pending = change_json(&change);
            pending["by"] = json!(by);
            pending["needed"] = json!(needed);
            pending
        });
        pending.collect()
    }

    /// The operator votes. `Err` of the answer is why not.
    pub(super) fn unl_vote(&mut self, vote: &UnlVote) -> Result<Answer, NodeError> {
        let UnlVote { add, node, peer, yes } = vote;
        let change = match self.votable(*add, node) {
            Ok(change) => change,
            Err(why) => return Ok(Err(why.into())),
        };
        if let Some(peer) = peer {
            let Ok(PeerAddr { host, port }) = peer.parse() else {
                return Ok(Err(format!("{peer:?} is no address: expected host:port").into()));
            };
            if !self.mesh.add_peer(&host, port) {
                let why = "too many addresses were given to this process: add it to `peers` in cfg/hp.cfg";
                return Ok(Err(why.to_owned().into()));
            }
        }
        // Behind the dialling: a node that is linked meanwhile is a danger no more at the next try.
        if let Some(why) = self.danger(&change).filter(|_| !yes) {
            let dialled = if peer.is_some() { "; the address is dialled from now on: try again soon" } else { "" };
            return Ok(Err(Refused { why: format!("{why}{dialled}"), danger: true }));
        }
        info!(change = text(&change), "this node votes for a change of the UNL");
        self.handle(Event::UnlVote(Some(change)))?;
        Ok(Ok(()))
    }

    /// The operator takes the vote back.
    pub(super) fn unl_withdraw(&mut self) -> Result<Answer, NodeError> {
        match self.core.summary().unl_vote {
            None => Ok(Err("this node votes for no change of the UNL".to_owned().into())),
            Some(vote) => {
                info!(change = text(&vote), "this node votes for a change of the UNL no more");
                self.handle(Event::UnlVote(None))?;
                Ok(Ok(()))
            }
        }
    }

    /// The change that an operator of this node may vote for, or why not.
    fn votable(&self, add: bool, node: &str) -> Result<UnlChange, String> {
        let node: NodeKey = node.parse().map_err(|error| format!("{node:?} is no key of a node: {error}"))?;
        let unl = self.core.unl();
        let (member, change) = (unl.contains(&node), if add { UnlChange::Add(node) } else { UnlChange::Remove(node) });
        let refused = match (add, member) {
            _ if !unl.contains(&self.config.key) => {
                "this node is an observer, and only members vote: ask the operators of a member".to_owned()
            }
            (true, _) if !crypto::is_key(&node.0) => format!("{node} is no public key: nobody could vote with it"),
            (true, true) => format!("{node} is a member already"),
            (false, false) => format!("{node} is no member"),
            (true, false) if unl.len() >= UNL_MAX => format!("the UNL has {UNL_MAX} members, and cannot have more"),
            (false, true) if unl.len() == 1 => format!("{node} is the only member: without it there is nobody"),
            _ => return Ok(change),
        };
        Err(refused)
    }

    /// What hinders ledgers from being closed once a change is made, as far as this node's links say.
    fn danger(&self, change: &UnlChange) -> Option<String> {
        let after = change.apply(self.core.unl())?;
        let threshold = u8::try_from(self.config.consensus.threshold).expect("a percentage");
        let quorum = Quorum::new(after.len(), threshold);
        let live = after.iter().filter(|node| **node == self.config.key || self.linked.contains(node)).count();
        (live < quorum.q).then(|| {
            format!(
                "with this change {live} of {} members would be live by this node's links, but the quorum would be {}",
                quorum.n, quorum.q
            )
        })
    }
}

fn change_json(change: &UnlChange) -> Value {
    let what = if matches!(change, UnlChange::Add(_)) { "add" } else { "remove" };
    json!({ "change": what, "node": change.node().to_string() })
}

/// A change as the command takes it: `add KEY` or `remove KEY`.
fn text(change: &UnlChange) -> String {
    match change {
        UnlChange::Add(node) => format!("add {node}"),
        UnlChange::Remove(node) => format!("remove {node}"),
    }
}
