//! Two processes with one key: each may sign what the other contradicts, so that its operator has to end one.
//!
//! Which process speaks over a link is in its hello, a number drawn at each start. One that makes a connection after another
//! with its key, begun later, has made one shows that both live. (That a link comes up shows nothing: a connection of a process
//! that has ended may be found good late.) Whoever sees that tells people, and tells both when they come; when so many members
//! say so that one of them is sound, the newer of the two votes no more.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;
use tracing::error;

use super::{Node, NodeError, alerts::Kind};
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
    /// Of each member, each with when it made its first connection, in this order.
    seen: BTreeMap<NodeKey, Vec<(Hash, Instant)>>,
    /// Members of which two lived at a time, the last that did.
    twins: BTreeMap<NodeKey, Twins>,
    /// Members that say that another process with this node's key was there before this one.
    told: BTreeSet<NodeKey>,
    /// Whether people were told of another process with this node's key.
    alarmed: bool,
}

impl Watch {
    /// Before any link, for the process of this number.
    pub fn new(boot: Hash) -> Watch {
        Watch { boot, seen: BTreeMap::new(), twins: BTreeMap::new(), told: BTreeSet::new(), alarmed: false }
    }

    /// Forgets who is no member any more.
    pub fn keep(&mut self, unl: &[NodeKey]) {
        self.seen.retain(|node, _| unl.contains(node));
    }

    /// A process of a member came, over a connection of that time. The two that live, if it is one of them, and whether that
    /// is new.
    fn came(&mut self, member: NodeKey, boot: Hash, connected: Instant) -> Option<(Twins, bool)> {
        let seen = self.seen.entry(member).or_default();
        match seen.iter().position(|(other, _)| *other == boot) {
            None => {
                let at = seen.partition_point(|(_, since)| *since <= connected);
                seen.insert(at, (boot, connected));
                if seen.len() > BOOTS_MAX {
                    seen.remove(0);
                }
            }
            Some(at) => {
                if let Some((newer, _)) = seen[at + 1..].iter().rfind(|(_, since)| *since < connected) {
                    let twins = Twins { older: boot, newer: *newer };
                    let is_new = self.twins.insert(member, twins).is_none();
                    return Some((twins, is_new));
                }
            }
        }
        let known = self.twins.get(&member).filter(|twins| [twins.older, twins.newer].contains(&boot))?;
        Some((*known, false))
    }
}

impl Node {
    pub(super) fn watch_for_twins(&mut self, peer: NodeKey, hello: &[u8], connected: Instant) {
        let Ok(Hello { boot, .. }) = wire::decode(hello) else { return };
        if self.core.unl().binary_search(&peer).is_err() {
            return;
        }
        let Some((twins, is_new)) = self.twins.came(peer, boot, connected) else { return };
        self.send(peer, &Message::Twins(twins));
        if is_new {
            error!(node = %peer, "two processes run with the key of one node");
            let what = format!("two processes run with the key of node {peer}: its operator has to end one");
            self.report.alert(Kind::TwinElsewhere, what);
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
            self.report.alert(Kind::TwinHere, what.to_owned());
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
    use std::time::Duration;

    use super::*;

    const MEMBER: NodeKey = NodeKey([1; 32]);

    fn boot(of: u8) -> Hash {
        Hash([of; 32])
    }

    /// What comes of links of these processes, over connections made at these times, one link after the other.
    fn came(links: &[(u8, u64)]) -> Vec<Option<(u8, u8)>> {
        let (mut watch, start) = (Watch::new(Hash::ZERO), Instant::now());
        let mut came = |(of, at): &(u8, u64)| watch.came(MEMBER, boot(*of), start + Duration::from_secs(*at));
        let short = |(twins, _): (Twins, bool)| (twins.older.0[0], twins.newer.0[0]);
        links.iter().map(|link| came(link).map(short)).collect()
    }

    #[test]
    fn a_process_that_connects_again_after_a_later_one_has_is_a_twin_and_both_are_told() {
        let twins = Some((2, 3));
        assert_eq!(came(&[(1, 1), (1, 2), (2, 3), (2, 4), (3, 5)]), [None; 5], "a process after the other");
        assert_eq!(came(&[(2, 1), (3, 2), (2, 3), (3, 4), (2, 5)]), [None, None, twins, twins, twins]);
    }

    #[test]
    fn a_link_over_an_old_connection_of_a_process_that_has_ended_is_no_twin() {
        assert_eq!(came(&[(1, 1), (2, 4), (1, 2), (2, 5), (2, 6)]), [None; 5]);
        // Also where it is the first that is heard of it.
        assert_eq!(came(&[(2, 4), (1, 2), (2, 5), (2, 6)]), [None; 4]);
    }

    #[test]
    fn processes_that_are_remembered_are_bounded() {
        let mut watch = Watch::new(Hash::ZERO);
        for of in 0..100 {
            watch.came(MEMBER, boot(of), Instant::now());
        }
        assert_eq!(watch.seen[&MEMBER].len(), BOOTS_MAX);
    }
}
