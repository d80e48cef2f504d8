//! The UNL as the node and its operator see it: who is a member, who votes for which change.

use tracing::info;

use super::Node;
use crate::{consensus::header::UnlChange, types::Seq};

impl Node {
    /// The UNL in force is another: who is told what is decided, and who is admitted, follows it.
    pub(super) fn unl_changed(&mut self, seq: Seq, change: &UnlChange) {
        let (unl, me) = (self.core.unl(), self.config.key);
        let role = if unl.contains(&me) { "member" } else { "observer" };
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
        self.boots.retain(|node, _| unl.contains(node));
    }
}

/// A change as the command takes it: `add KEY` or `remove KEY`.
fn text(change: &UnlChange) -> String {
    match change {
        UnlChange::Add(node) => format!("add {node}"),
        UnlChange::Remove(node) => format!("remove {node}"),
    }
}
