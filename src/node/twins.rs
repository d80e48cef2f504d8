//! Two processes with one key: each may sign what the other contradicts, so that its operator has to end one.
//!
//! Which process speaks over a link is in its hello, a number drawn at each start. One that comes back after another with
//! its key has been here, while no process can be begun twice, shows that both live. Whoever sees that tells people, and
//! tells the process that came; when so many members say so that one of them is sound, the newer of the two votes no more.

use std::collections::{BTreeMap, BTreeSet};

use tracing::error;

use super::{Node, NodeError};
use crate::{
    consensus::{
        Event,
        messages::{Message, Twins},
    },
    types::{Hash, NodeKey},
    wire::{self, Hello},
};

/// Processes of one node that are remembered. Those that came first make room.
const BOOTS_MAX: usize = 8;

/// The processes that were linked.
#[derive(Debug)]
pub(super) struct Watch {
    /// This one.
    boot: Hash,
    /// Of each member, in the order in which they came first, with the one that came last.
    seen: BTreeMap<NodeKey, (Vec<Hash>, Hash)>,
    /// Members of which two were seen.
    twins: BTreeSet<NodeKey>,
    /// Members that say that another process with this node's key was there before this one.
    told: BTreeSet<NodeKey>,
    /// Whether people were told of another process with this node's key.
    alarmed: bool,
}

impl Watch {
    /// Before any link, for the process of this number.
    pub fn new(boot: Hash) -> Watch {
        Watch { boot, seen: BTreeMap::new(), twins: BTreeSet::new(), told: BTreeSet::new(), alarmed: false }
    }

    /// Forgets who is no member any more.
    pub fn keep(&mut self, unl: &[NodeKey]) {
        self.seen.retain(|node, _| unl.contains(node));
    }

    /// A process of a member came. The two that live, if it is a second time after another one.
    fn came(&mut self, member: NodeKey, boot: Hash) -> Option<Twins> {
        let (seen, last) = self.seen.entry(member).or_insert_with(|| (vec![boot], boot));
        let before = std::mem::replace(last, boot);
        if before == boot {
            return None;
        }
        let Some(first) = seen.iter().position(|other| *other == boot) else {
            seen.push(boot);
            if seen.len() > BOOTS_MAX {
                seen.remove(0);
            }
            return None;
        };
        let other = seen.iter().position(|other| *other == before)?;
        let (older, newer) = if first < other { (boot, before) } else { (before, boot) };
        Some(Twins { older, newer })
    }
}

impl Node {
    pub(super) fn watch_for_twins(&mut self, peer: NodeKey, hello: &[u8]) {
        let Ok(Hello { boot, .. }) = wire::decode(hello) else { return };
        if self.core.unl().binary_search(&peer).is_err() {
            return;
        }
        let Some(twins) = self.twins.came(peer, boot) else { return };
        self.send(peer, &Message::Twins(twins));
        if self.twins.twins.insert(peer) {
            error!(node = %peer, "two processes run with the key of one node");
            self.report.alert(format!("two processes run with the key of node {peer}: its operator has to end one"));
        }
    }

    /// A member says that another process has this node's key.
    pub(super) fn told_of_twin(&mut self, from: NodeKey, twins: Twins) -> Result<(), NodeError> {
        if ![twins.older, twins.newer].contains(&self.twins.boot) || twins.older == twins.newer {
            // Of processes of this node that are gone.
            return Ok(());
        }
        if !std::mem::replace(&mut self.twins.alarmed, true) {
            let what = "another process runs with this node's key, as others see: end one of the two";
            error!(by = %from.short(), "{what}");
            self.report.alert(what.to_owned());
        }
        if twins.newer == self.twins.boot {
            self.twins.told.insert(from);
            let unl = self.core.unl();
            self.twins.told.retain(|member| unl.binary_search(member).is_ok());
            if self.twins.told.len() >= self.core.quorum().blocking() {
                return self.handle(Event::OlderTwin);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_comes_back_after_another_one_is_a_twin_and_who_came_first_is_the_older() {
        let (member, [a, b, c]) = (NodeKey([1; 32]), [1, 2, 3].map(|at| Hash([at; 32])));
        let mut watch = Watch::new(Hash::ZERO);
        let came: Vec<Option<Twins>> = [a, a, b, b, c].map(|boot| watch.came(member, boot)).to_vec();
        assert_eq!(came, [None; 5], "a process after the other");
        assert_eq!(watch.came(NodeKey([2; 32]), a), None, "another node");
        assert_eq!(watch.came(member, b), Some(Twins { older: b, newer: c }));
        assert_eq!(watch.came(member, c), Some(Twins { older: b, newer: c }));
        for at in 0..100 {
            watch.came(member, Hash([100 + at; 32]));
        }
        assert_eq!(watch.seen[&member].0.len(), BOOTS_MAX);
    }
}
