//! `diag/<seq>/report.json`: for programs, and for `hp diverge show`. Fields may be added, so readers ignore others.

use serde::{Deserialize, Serialize};

use crate::{
    consensus::{details::PathState, header::ExecResult},
    types::{Seq, WallMs},
};

/// Everything that this node found out about the results of one ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The ledger whose run it was.
    pub seq: Seq,
    /// Its hash.
    pub ledger: String,
    /// Its agreed time.
    pub time_ms: WallMs,
    /// This node.
    pub node: String,
    /// How it stands.
    pub kind: Kind,
    /// Equal results that make a quorum.
    pub quorum: usize,
    /// Members whose result is not known here.
    pub silent: Vec<String>,
    /// Equal results, the agreed one first, then by the number of nodes.
    pub groups: Vec<Group>,
    /// This node's result against each other one.
    pub compared: Vec<Comparison>,
    /// What this node keeps of its own run.
    pub kept: Kept,
}

/// How the network, and this node, stand to a ledger's results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nobody has a quorum yet, and somebody still may.
    Open,
    /// Nobody can have one any more without a missing result, or with operators' help.
    Split,
    /// A quorum agreed on another result than this node's.
    Diverged,
    /// A quorum agreed on this node's result; others have another.
    Others,
}

/// Nodes with one result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// A letter, for people.
    pub name: String,
    /// Who signed it, or says so.
    pub nodes: Vec<String>,
    /// Whether this node is in it.
    pub this_node: bool,
    /// Whether it is agreed on.
    pub agreed: bool,
    /// How the run ended.
    pub status: String,
    /// Root of the state after it.
    pub state_root: String,
    /// Root of the outputs.
    pub outputs_root: String,
    /// The change of the UNL that the contract asked for.
    pub unl_request: Option<String>,
}

impl Group {
    /// Of a result, without anybody yet.
    pub fn of(name: String, result: &ExecResult) -> Group {
        Group {
            name,
            nodes: Vec::new(),
            this_node: false,
            agreed: false,
            status: result.status.to_string(),
            state_root: result.state_root.to_string(),
            outputs_root: result.outputs_root.to_string(),
            unl_request: result.unl_req.as_ref().map(|change| format!("{change:?}")),
        }
    }
}

/// This node's run against that of one node of another group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The other's group, by its outputs root, state root and status: names may change.
    pub state_root: String,
    /// See `state_root`.
    pub outputs_root: String,
    /// See `state_root`.
    pub status: String,
    /// The node that was asked; `None` when nobody answered.
    pub with: Option<String>,
    /// Paths that differ, ascending.
    pub paths: Vec<PathDifference>,
    /// Further ones, which are not listed.
    pub paths_more: usize,
    /// Users whose outputs differ, ascending.
    pub outputs: Vec<OutputDifference>,
    /// Further ones, which are not listed.
    pub outputs_more: usize,
    /// Whether the lists of changed paths or users were too long to be compared to their ends.
    pub cut: bool,
}

/// A path that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathDifference {
    /// Relative to `state/`, with `\xNN` for what is no text.
    pub path: String,
    /// Here.
    pub mine: Side,
    /// There.
    pub theirs: Side,
    /// What is different in the bytes.
    #[serde(flatten)]
    pub what: What,
}

/// A user whose output is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputDifference {
    /// Who.
    pub user: String,
    /// Here.
    pub mine: Side,
    /// There.
    pub theirs: Side,
    /// What is different in the bytes.
    #[serde(flatten)]
    pub what: What,
}

/// One side of a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// `file`, `folder`, `symlink`, `nothing`; `unknown` where only its hash is.
    pub is: String,
    /// Bytes.
    pub size: Option<u64>,
    /// The owner's executable bit.
    pub executable: bool,
    /// Root over its blocks, or leaf of the output.
    pub root: Option<String>,
    /// Whether the run left it as it had been.
    pub as_before: bool,
    /// How sure it is.
    pub proof: Proof,
}

impl Side {
    /// Nothing is there.
    pub fn nothing(proof: Proof) -> Side {
        Side { is: "nothing".to_owned(), size: None, executable: false, root: None, as_before: false, proof }
    }

    /// Something that nobody told more of.
    pub fn unknown(root: Option<String>, proof: Proof) -> Side {
        Side { is: "unknown".to_owned(), size: None, executable: false, root, as_before: false, proof }
    }

    /// What is there.
    pub fn of(state: &PathState, proof: Proof) -> Side {
        use crate::consensus::details::PathKind;
        let (is, size) = match state.kind {
            PathKind::File => ("file", Some(state.size)),
            PathKind::Folder => ("folder", None),
            PathKind::Symlink => ("symlink", Some(state.size)),
        };
        let root = (state.kind != PathKind::Folder).then(|| state.root.to_string());
        Side { is: is.to_owned(), size, executable: state.executable, root, as_before: false, proof }
    }
}

/// How sure one side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// This node's own.
    Own,
    /// It leads to the root that the node's result has.
    Proven,
    /// The node says so.
    Says,
}

/// Where the bytes begin to differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct What {
    /// First byte that differs.
    pub offset: Option<u64>,
    /// Around it, here.
    pub mine_bytes: Option<Bytes>,
    /// Around it, there.
    pub theirs_bytes: Option<Bytes>,
    /// Why there are no bytes, where there should be some.
    pub no_bytes: Option<String>,
    /// What it looks like.
    pub looks_like: Vec<String>,
}

/// A short part of a file or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// Where it begins in the whole.
    pub from: u64,
    /// The bytes.
    pub hex: String,
}

/// What else is in the folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Whether `state/` holds all of the state, and not only what the run changed.
    pub whole_state: bool,
    /// Paths that the run changed.
    pub changed: usize,
    /// Users with an output.
    pub outputs: usize,
    /// Whether `omitted.txt` lists something.
    pub omitted: bool,
}

impl Report {
    /// Takes over what an earlier report knew of the same results and this one does not.
    pub fn complete_from(&mut self, old: &Report) {
        if old.ledger != self.ledger || old.node != self.node {
            return;
        }
        for known in old.compared.iter().filter(|known| known.with.is_some()) {
            match self.compared.iter_mut().find(|new| new.is_of_the_same(known)) {
                Some(new) if new.bytes() < known.bytes() || new.with.is_none() => *new = known.clone(),
                Some(_) => {}
                None => self.compared.push(known.clone()),
            }
        }
    }

    /// The group of this node; none while its own run has not ended.
    pub fn own_group(&self) -> Option<&Group> {
        self.groups.iter().find(|group| group.this_node)
    }

    /// What was found out about a group.
    pub fn comparison(&self, group: &Group) -> Option<&Comparison> {
        let same = |known: &&Comparison| {
            (&known.state_root, &known.outputs_root, &known.status)
                == (&group.state_root, &group.outputs_root, &group.status)
        };
        self.compared.iter().find(same)
    }
}

impl Comparison {
    /// With a result of which nothing else is known yet.
    pub fn with_nobody(result: &ExecResult) -> Comparison {
        Comparison {
            state_root: result.state_root.to_string(),
            outputs_root: result.outputs_root.to_string(),
            status: result.status.to_string(),
            with: None,
            paths: Vec::new(),
            paths_more: 0,
            outputs: Vec::new(),
            outputs_more: 0,
            cut: false,
        }
    }

    fn is_of_the_same(&self, other: &Comparison) -> bool {
        let key = |it: &Comparison| (it.state_root.clone(), it.outputs_root.clone(), it.status.clone());
        key(self) == key(other)
    }

    /// How many differences are shown to the byte.
    fn bytes(&self) -> usize {
        let paths = self.paths.iter().map(|difference| &difference.what);
        let whats = paths.chain(self.outputs.iter().map(|difference| &difference.what));
        whats.filter(|what| what.theirs_bytes.is_some()).count()
    }
}

/// A path of the state, for people and JSON: what is no printable text is escaped.
pub fn shown_path(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => path.escape_ascii().to_string(),
    }
}
