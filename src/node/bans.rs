//! Nodes that an operator wants no link with, each for a time: strangers that waste this node's bandwidth or its log.
//!
//! Members are never banned: a ledger needs their votes, and no single operator decides who is a member. Bans outlive the process
//! in `run/bans.json`; a node that cannot read that file starts without them and says so.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Node, control::Ban, unl::Answer, wall_ms};
use crate::{
    small_file,
    types::{NodeKey, WallMs},
};

/// Bans at a time. Past it a further one is refused: who sends from so many keys is to be kept out by `admit = "unl"`.
const BANS_MAX: usize = 256;
/// Seconds of a ban, unless told otherwise.
const BAN_S: u64 = 3_600;
/// Seconds at most: 30 days.
pub const BAN_S_MAX: u64 = 30 * 24 * 3_600;
/// Bytes of why somebody is banned. A longer text is refused.
const REASON_BYTES_MAX: usize = 256;
/// Bytes of the file. A longer one is not ours.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One ban, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Banned {
    node: String,
    until_ms: WallMs,
    reason: Option<String>,
}

/// All bans that stand.
#[derive(Debug)]
pub(super) struct Bans {
    file: PathBuf,
    by_node: BTreeMap<NodeKey, (WallMs, Option<String>)>,
}

impl Bans {
    /// Those of the node in this folder.
    pub fn load(dir: &Path) -> Bans {
        let file = dir.join("run/bans.json");
        let mut bans = Bans { by_node: BTreeMap::new(), file };
        match bans.read() {
            Ok(kept) => bans.by_node = kept,
            Err(why) => warn!(file = %bans.file.display(), why, "bans cannot be read: none stands"),
        }
        bans
    }

    fn read(&self) -> Result<BTreeMap<NodeKey, (WallMs, Option<String>)>, String> {
        if !self.file.exists() {
            return Ok(BTreeMap::new());
        }
        let bytes = small_file::read(&self.file, FILE_BYTES_MAX).map_err(|error| error.to_string())?;
        let bytes = bytes.ok_or("it is too long")?;
        let kept: Vec<Banned> = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        let parsed = kept.into_iter().take(BANS_MAX).map(|ban| {
            let node: NodeKey = ban.node.parse().map_err(|_| format!("{:?} is no key", ban.node))?;
            Ok((node, (ban.until_ms, ban.reason)))
        });
        parsed.collect()
    }

    /// Puts them on disk. Small and seldom, so the loop waits for it; after a crash an older list may stand.
    fn write(&self) {
        let kept: Vec<Banned> = self
            .by_node
            .iter()
            .map(|(node, (until_ms, reason))| Banned {
                node: node.to_string(),
                until_ms: *until_ms,
                reason: reason.clone(),
            })
            .collect();
        let text = serde_json::to_vec(&kept).expect("plain data");
        let new = self.file.with_extension("new");
        if let Err(error) = fs::write(&new, text).and_then(|()| fs::rename(&new, &self.file)) {
            warn!(file = %self.file.display(), %error, "bans cannot be written: they end with this process");
        }
    }

    /// Whom they keep out.
    pub fn nodes(&self) -> impl Iterator<Item = NodeKey> + '_ {
        self.by_node.keys().copied()
    }

    pub fn has(&self, node: &NodeKey) -> bool {
        self.by_node.contains_key(node)
    }

    /// Bans a node, or bans it for another time. `Err` says why not.
    fn add(&mut self, node: NodeKey, until_ms: WallMs, reason: Option<String>) -> Result<(), String> {
        if self.by_node.len() >= BANS_MAX && !self.by_node.contains_key(&node) {
            return Err(format!("{BANS_MAX} nodes are banned already: lift a ban first, or set mesh.admit = \"unl\""));
        }
        self.by_node.insert(node, (until_ms, reason));
        self.write();
        Ok(())
    }

    /// Whether there was such a ban.
    fn remove(&mut self, node: &NodeKey) -> bool {
        let was = self.by_node.remove(node).is_some();
        if was {
            self.write();
        }
        was
    }

    /// Ends those whose time is over, and gives them.
    fn expire(&mut self, now_ms: WallMs) -> Vec<NodeKey> {
        let over = self.by_node.iter().filter(|(_, (until_ms, _))| *until_ms <= now_ms);
        let over: Vec<NodeKey> = over.map(|(node, _)| *node).collect();
        over.iter().for_each(|node| drop(self.by_node.remove(node)));
        if !over.is_empty() {
            self.write();
        }
        over
    }

    fn json(&self, now_ms: WallMs) -> Value {
        let ban = |(node, (until_ms, reason)): (&NodeKey, &(WallMs, Option<String>))| {
            let left_s = until_ms.saturating_sub(now_ms).div_ceil(1_000);
            json!({ "node": node.to_string(), "until_ms": until_ms, "left_s": left_s, "reason": reason })
        };
        json!({ "bans": self.by_node.iter().map(ban).collect::<Vec<_>>() })
    }
}

impl Node {
    /// The operator wants no link with a node for a time. `Err` is why not.
    pub(super) fn ban(&mut self, ban: Ban) -> Answer {
        let Ban { node, for_s, reason } = ban;
        let node: NodeKey = node.parse().map_err(|error| format!("{node:?} is no key of a node: {error}"))?;
        let for_s = for_s.unwrap_or(BAN_S);
        if !(1..=BAN_S_MAX).contains(&for_s) {
            return Err(format!("{for_s} is no time of a ban: expected 1 to {BAN_S_MAX} seconds").into());
        }
        if reason.as_ref().is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
            return Err(format!("the reason has more than {REASON_BYTES_MAX} bytes").into());
        }
        if node == self.config.key {
            return Err("this is the node itself".to_owned().into());
        }
        if self.core.unl().contains(&node) {
            let why = format!(
                "{node} is a member: ledgers need its votes, so it is not banned. `hp unl remove`, or /v1/admin/unl/vote, votes for \
                 another UNL"
            );
            return Err(why.into());
        }
        info!(peer = %node, for_s, reason = reason.as_deref().unwrap_or("-"), "an operator banned a node");
        self.bans.add(node, wall_ms().saturating_add(for_s * 1_000), reason)?;
        self.mesh.set_banned(self.bans.nodes().collect());
        self.report.linked(node);
        Ok(())
    }

    /// The operator takes a ban back.
    pub(super) fn unban(&mut self, node: &str) -> Answer {
        let node: NodeKey = node.parse().map_err(|error| format!("{node:?} is no key of a node: {error}"))?;
        if !self.bans.remove(&node) {
            return Err(format!("{node} is not banned").into());
        }
        info!(peer = %node, "a ban was lifted");
        self.mesh.set_banned(self.bans.nodes().collect());
        Ok(())
    }

    /// Bans that stand, for operators.
    pub(super) fn bans_status(&self) -> Value {
        self.bans.json(wall_ms())
    }

    /// Ends bans whose time is over, and those of nodes that have become members.
    pub(super) fn look_at_bans(&mut self) {
        let mut over = self.bans.expire(wall_ms());
        let members: Vec<NodeKey> = self.bans.nodes().filter(|node| self.core.unl().contains(node)).collect();
        for node in &members {
            self.bans.remove(node);
        }
        over.extend(members);
        if !over.is_empty() {
            over.iter().for_each(|peer| info!(%peer, "a ban is over"));
            self.mesh.set_banned(self.bans.nodes().collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        dir
    }

    fn node(n: u16) -> NodeKey {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        NodeKey(key)
    }

    #[test]
    fn a_ban_stands_until_its_time_is_over_also_in_the_next_process() {
        let dir = folder();
        let mut bans = Bans::load(dir.path());
        bans.add(node(1), 2_000, Some("floods".to_owned())).unwrap();
        bans.add(node(2), 3_000, None).unwrap();
        bans.add(node(3), 9_000, None).unwrap();
        assert!(bans.remove(&node(3)) && !bans.remove(&node(3)));
        let mut bans = Bans::load(dir.path());
        assert_eq!(
            bans.json(1_500)["bans"],
            json!([
                { "node": node(1).to_string(), "until_ms": 2_000, "left_s": 1, "reason": "floods" },
                { "node": node(2).to_string(), "until_ms": 3_000, "left_s": 2, "reason": null },
            ])
        );
        assert_eq!((bans.expire(1_999), bans.expire(2_000)), (vec![], vec![node(1)]));
        let bans = Bans::load(dir.path());
        assert!(bans.nodes().eq([node(2)]) && bans.has(&node(2)) && !bans.has(&node(1)));
    }

    #[test]
    fn bans_are_bounded_and_a_broken_file_has_none() {
        let dir = folder();
        let mut bans = Bans::load(dir.path());
        for n in 0..BANS_MAX as u16 {
            bans.add(node(n), 1, None).unwrap();
        }
        assert!(bans.add(node(999), 1, None).unwrap_err().contains("mesh.admit"));
        bans.add(node(0), 2, None).unwrap();
        for text in ["", "{", "[{}]", "[{\"node\":\"zz\",\"until_ms\":1,\"reason\":null}]"] {
            fs::write(dir.path().join("run/bans.json"), text).unwrap();
            assert_eq!(Bans::load(dir.path()).nodes().count(), 0, "{text}");
        }
    }
}
