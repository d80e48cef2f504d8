//! Finds out why the results of one ledger differ: asks one node of each other group what its run left, and writes the
//! report. On a thread of its own, so that no round waits for it; what it asks and keeps is bounded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    differing_keys,
    kept::{self, KeptRun},
};
use crate::{
    consensus::{
        details::{DETAILS_MAX, Details, Known, PathKind, PathState, Piece, PieceRef, Thing},
        header::ExecResult,
        merkle::output_leaf,
        messages::{Get, Message},
    },
    divergence::{
        Comparison, Group, Kept, Kind, OutputDifference, PathDifference, Proof, Report, Side, What, difference, folder,
        hints::{self, Around},
        shown_path,
    },
    mesh::{Class, Mesh},
    state::{BLOCK_BYTES, block_hash, is_in_tree, root_of},
    types::{Hash, NodeKey, Seq, UserKey},
    wire,
};

/// Results that are looked into. Further ones are listed, and no more.
const GROUPS_MAX: usize = 8;
/// Paths, and users, of one group of which bytes are fetched. Further ones are listed.
const FETCHED_MAX: usize = 16;
/// Paths, and users, of one group that are listed.
const LISTED_MAX: usize = 100;
/// Time for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(3);
/// Before all that did not answer are asked anew, and how often that is done.
const AGAIN_TIME: Duration = Duration::from_secs(5);
/// See [`AGAIN_TIME`].
const AGAIN_MAX: u32 = 60;
/// The same for a node that did answer, but not all of it.
const POOR_AGAIN_MAX: u32 = 6;
/// Times that a group is asked before a pause or news, and that a node which is not ready is asked for one thing.
const TRIES: u32 = 3;
/// Before it is asked again.
const TRY_PAUSE: Duration = Duration::from_millis(400);
/// Without news for so long, it ends. Later news begin another one.
const IDLE_TIME: Duration = Duration::from_secs(30);

/// What the node knows of a ledger's results.
#[derive(Debug, Clone, Default)]
pub(in crate::node) struct Facts {
    /// Who signed what; or says so, of those whose signature did not come.
    pub results: BTreeMap<NodeKey, ExecResult>,
    pub members: Vec<NodeKey>,
    pub quorum: usize,
    pub agreed: Option<ExecResult>,
    pub is_split: bool,
}

/// What an inquiry is told.
#[derive(Debug)]
pub(in crate::node) enum Tell {
    Facts(Facts),
    /// More is kept of the own run than before.
    Kept(Arc<KeptRun>),
    Details(NodeKey, Details),
    Piece(NodeKey, PieceRef, Piece),
}

/// How other nodes are asked.
pub(in crate::node) trait Ask: Send {
    /// Sends a request; an answer comes as a [`Tell`], or never.
    fn ask(&self, to: NodeKey, get: Get);
    /// Who can be asked.
    fn linked(&self) -> Vec<NodeKey>;
}

impl Ask for Mesh {
    fn ask(&self, to: NodeKey, get: Get) {
        // One that is gone does not answer.
        let _ = self.send(&to, Class::Vote, wire::encode(&Message::Get(get)).into());
    }

    fn linked(&self) -> Vec<NodeKey> {
        self.links().into_iter().map(|link| link.peer).collect()
    }
}

/// The inquiry into one ledger.
pub(in crate::node) struct Inquiry<A> {
    dir: PathBuf,
    me: NodeKey,
    own: Arc<KeptRun>,
    facts: Facts,
    ask: A,
    tells: Receiver<Tell>,
    compared: Vec<(ExecResult, Comparison)>,
    /// Those compared of which an answer is missing.
    poor: BTreeSet<ExecResult>,
    tries: BTreeMap<ExecResult, u32>,
    again: u32,
    /// An answer did not come in time: what was found is not all that there is.
    missed: bool,
    told: bool,
}

impl<A: Ask> Inquiry<A> {
    pub fn new(
        dir: PathBuf,
        me: NodeKey,
        own: Arc<KeptRun>,
        facts: Facts,
        ask: A,
        tells: Receiver<Tell>,
    ) -> Inquiry<A> {
        Inquiry {
            dir,
            me,
            own,
            facts,
            ask,
            tells,
            compared: Vec::new(),
            poor: BTreeSet::new(),
            tries: BTreeMap::new(),
            again: 0,
            missed: false,
            told: false,
        }
    }

    /// Until nothing is new for a while, or the node stops.
    pub fn run(mut self) {
        self.write();
        loop {
            let Some(group) = self.next() else {
                if !self.told {
                    self.tell();
                }
                // Who did not answer may be linked, or ready, later.
                let open = self.again < AGAIN_MAX && self.is_open();
                match self.tells.recv_timeout(if open { AGAIN_TIME } else { IDLE_TIME }) {
                    Ok(tell) => self.take(tell),
                    Err(RecvTimeoutError::Timeout) if open => {
                        self.again += 1;
                        self.tries.clear();
                    }
                    Err(_) => return,
                }
                continue;
            };
            *self.tries.entry(group.clone()).or_insert(0) += 1;
            match self.explain(&group) {
                Ok(Some(comparison)) => self.found(group, comparison),
                // Not now: maybe it is linked soon.
                Ok(None) => match self.tells.recv_timeout(TRY_PAUSE) {
                    Ok(tell) => self.take(tell),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                },
                Err(Stopped) => return,
            }
            self.write();
        }
    }

    /// Looks into what can be asked now, and ends.
    #[cfg(test)]
    pub fn once(mut self) {
        while let Some(group) = self.next() {
            *self.tries.entry(group.clone()).or_insert(0) += 1;
            if let Ok(Some(comparison)) = self.explain(&group) {
                self.compared.push((group, comparison));
            }
        }
        self.write();
    }

    fn seq(&self) -> Seq {
        self.own.details.result.of_seq
    }

    /// How often a group was asked since the last pause or news, which may have come while it was.
    fn tries(&self, group: &ExecResult) -> u32 {
        self.tries.get(group).copied().unwrap_or(0)
    }

    /// A group is compared. Where a node was not ready to tell all, this counts when it was asked often enough, and until
    /// it has told more.
    fn found(&mut self, group: ExecResult, comparison: Comparison) {
        if !std::mem::take(&mut self.missed) {
            self.poor.remove(&group);
        } else {
            self.poor.insert(group.clone());
            if self.tries(&group) < TRIES {
                return;
            }
        }
        self.compared.retain(|(known, _)| *known != group);
        self.compared.push((group, comparison));
    }

    /// The next result to be looked into: the agreed one first.
    fn next(&self) -> Option<ExecResult> {
        let open = |result: &&ExecResult| {
            **result != self.own.details.result
                && (self.poor.contains(*result) || !self.compared.iter().any(|(known, _)| known == *result))
                && self.tries(result) < TRIES
        };
        if self.compared.len() >= GROUPS_MAX {
            return None;
        }
        self.facts.agreed.iter().chain(self.facts.results.values()).find(open).cloned()
    }

    /// Whether there is a result of which nobody has told yet, or not all of it.
    fn is_open(&self) -> bool {
        if self.again < POOR_AGAIN_MAX && !self.poor.is_empty() {
            return true;
        }
        let known = |result: &ExecResult| self.compared.iter().any(|(known, _)| known == result);
        self.facts.results.values().any(|result| *result != self.own.details.result && !known(result))
    }

    fn take(&mut self, tell: Tell) {
        match tell {
            Tell::Facts(facts) => {
                // Some results are known by what the nodes say alone.
                let said = std::mem::replace(&mut self.facts, facts).results;
                for (node, result) in said {
                    self.facts.results.entry(node).or_insert(result);
                }
                self.again = 0;
                self.tries.clear();
                self.told = false;
                self.write();
            }
            Tell::Kept(own) => {
                self.own = own;
                self.compared.clear();
                self.poor.clear();
                self.tries.clear();
                self.told = false;
            }
            // Those whose RESULT did not come say here what it is.
            Tell::Details(from, details) => {
                if self.facts.members.contains(&from) && !self.facts.results.contains_key(&from) {
                    self.facts.results.insert(from, details.result);
                    self.write();
                }
            }
            // Too late.
            Tell::Piece(..) => {}
        }
    }

    // ---- Asking -------------------------------------------------------------------------------------------------

    /// Waits for what `wanted` finds in the answers.
    fn wait<T>(&mut self, mut wanted: impl FnMut(&Tell) -> Option<T>) -> Result<Option<T>, Stopped> {
        let end = Instant::now() + ANSWER_TIME;
        loop {
            match self.tells.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(tell) => match wanted(&tell) {
                    Some(found) => return Ok(Some(found)),
                    None => self.take(tell),
                },
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            }
        }
    }

    fn details(&mut self, of: NodeKey, group: &ExecResult) -> Result<Option<Details>, Stopped> {
        self.ask.ask(of, Get::Details(self.seq()));
        self.wait(|tell| match tell {
            Tell::Details(from, details) if *from == of && details.result == *group => Some(details.clone()),
            _ => None,
        })
    }

    /// A piece of what the run of `of` left; none when it keeps no such thing.
    fn piece(&mut self, of: NodeKey, thing: &Thing, block: Option<u32>) -> Result<Option<Piece>, Stopped> {
        let ExecResult { of_seq, of_hash, .. } = self.own.details.result;
        let asked = PieceRef { of_seq, of_hash, of: thing.clone(), block };
        for _ in 0..TRIES {
            self.ask.ask(of, Get::Piece(asked.clone()));
            let answer = self.wait(|tell| match tell {
                Tell::Piece(from, about, piece) if *from == of && *about == asked => Some(piece.clone()),
                _ => None,
            })?;
            match answer {
                None => {
                    self.missed = true;
                    return Ok(None);
                }
                // It may be about to keep it.
                Some(Piece::Gone) => std::thread::sleep(TRY_PAUSE),
                Some(piece) => return Ok(Some(piece)),
            }
        }
        self.missed = true;
        Ok(None)
    }

    // ---- Comparing ----------------------------------------------------------------------------------------------

    /// This node's run against that of a node of `group`; `None` when none of them answers.
    fn explain(&mut self, group: &ExecResult) -> Result<Option<Comparison>, Stopped> {
        let linked = self.ask.linked();
        let signers = self.facts.results.iter().filter(|(_, result)| *result == group).map(|(node, _)| *node);
        let mut candidates: Vec<NodeKey> = signers.filter(|node| linked.contains(node)).collect();
        // Whose results did not come may be of this group too.
        let unheard = linked.iter().filter(|node| !self.facts.results.contains_key(node));
        candidates.extend(unheard.filter(|node| self.facts.members.contains(node)));
        for node in candidates.into_iter().take(TRIES as usize) {
            if let Some(theirs) = self.details(node, group)? {
                return self.compare(node, &theirs).map(Some);
            }
        }
        Ok(None)
    }

    fn compare(&mut self, with: NodeKey, theirs: &Details) -> Result<Comparison, Stopped> {
        let own = self.own.clone();
        let mine = &own.details;
        let mut comparison = Comparison { with: Some(with.to_string()), ..Comparison::with_nobody(&theirs.result) };

        let changed = |details: &Details| -> BTreeMap<Vec<u8>, Option<PathState>> {
            details.changed.iter().map(|changed| (changed.path.clone(), changed.now)).collect()
        };
        let (ours, others) = (changed(mine), changed(theirs));
        let (paths, cut) = differing_keys(&ours, &others, DETAILS_MAX);
        comparison.cut |= cut;
        let mut fetched = 0;
        for path in &paths {
            let before = own.before.get(path);
            let here = ours.get(path).copied();
            let there = others.get(path).copied();
            if comparison.paths.len() >= LISTED_MAX {
                comparison.paths_more += 1;
                continue;
            }
            let mut difference = PathDifference {
                path: shown_path(path),
                mine: match here {
                    Some(now) => side(now, Proof::Own),
                    None => self.untouched(path),
                },
                theirs: match (there, before) {
                    (Some(now), _) => side(now, Proof::Says),
                    (None, Some(was)) => Side { as_before: true, root: None, ..side(*was, Proof::Says) },
                    (None, None) => Side { as_before: true, ..Side::unknown(None, Proof::Says) },
                },
                what: What::default(),
            };
            let is_file = |side: &Side| side.is == "file";
            if is_file(&difference.mine) || is_file(&difference.theirs) {
                if fetched < FETCHED_MAX {
                    fetched += 1;
                    let thing = Thing::Path(path.clone());
                    let mine_file = match &difference.mine.is[..] {
                        "file" => Some(kept::file_of(&self.dir, self.seq(), &thing).filter(|file| file.is_file())),
                        "unknown" => Some(None),
                        _ => None,
                    };
                    difference.what = match there {
                        Some(_) if is_file(&difference.theirs) => {
                            let (what, proof) = self.fetch(with, &theirs.result, &thing, mine_file)?;
                            difference.theirs.proof = proof;
                            what
                        }
                        _ => {
                            let there = (there.is_none() && is_file(&difference.theirs))
                                .then(|| kept::before_file(&self.dir, self.seq(), path).filter(|file| file.is_file()));
                            self.local(mine_file, there)
                        }
                    };
                } else {
                    difference.what.no_bytes = Some(format!("bytes of the first {FETCHED_MAX} are shown"));
                }
            }
            comparison.paths.push(difference);
        }

        let ours: BTreeMap<UserKey, Hash> = mine.outputs.iter().copied().collect();
        let others: BTreeMap<UserKey, Hash> = theirs.outputs.iter().copied().collect();
        let (users, cut) = differing_keys(&ours, &others, DETAILS_MAX);
        comparison.cut |= cut;
        for (at, user) in users.iter().enumerate() {
            if at >= LISTED_MAX {
                comparison.outputs_more += 1;
                continue;
            }
            let thing = Thing::Output(*user);
            let size = own.things.get(&thing).map(|known| known.state.size);
            let output = |leaf: Option<&Hash>, size, proof| match leaf {
                Some(leaf) => Side { is: "file".to_owned(), size, ..Side::unknown(Some(leaf.to_string()), proof) },
                None => Side::nothing(proof),
            };
            let mut difference = OutputDifference {
                user: user.to_string(),
                mine: output(ours.get(user), size, Proof::Own),
                theirs: output(others.get(user), None, Proof::Says),
                what: What::default(),
            };
            let mine_file =
                ours.get(user).map(|_| kept::file_of(&self.dir, self.seq(), &thing).filter(|file| file.is_file()));
            if at >= FETCHED_MAX {
                difference.what.no_bytes = Some(format!("bytes of the first {FETCHED_MAX} are shown"));
            } else if others.contains_key(user) {
                let known = self.known(with, &theirs.result, &thing)?;
                difference.theirs.size = known.as_ref().map(|(known, _)| known.state.size);
                let (what, proof) = self.fetch_known(with, &theirs.result, &thing, mine_file, known)?;
                (difference.what, difference.theirs.proof) = (what, proof);
            } else {
                difference.what = self.local(mine_file, None);
            }
            comparison.outputs.push(difference);
        }
        Ok(comparison)
    }

    /// What is here at a path that this node's run did not touch, as far as it was kept.
    fn untouched(&self, path: &[u8]) -> Side {
        let file = kept::file_of(&self.dir, self.seq(), &Thing::Path(path.to_vec()));
        let meta = file.and_then(|file| fs::symlink_metadata(file).ok());
        let is = match meta {
            Some(meta) if meta.is_file() => {
                Side { is: "file".to_owned(), size: Some(meta.len()), ..Side::nothing(Proof::Own) }
            }
            Some(meta) if meta.is_dir() => Side { is: "folder".to_owned(), ..Side::nothing(Proof::Own) },
            None if self.own.whole && !self.has_omitted() => Side::nothing(Proof::Own),
            _ => Side::unknown(None, Proof::Own),
        };
        Side { as_before: true, ..is }
    }

    fn has_omitted(&self) -> bool {
        folder::of(&self.dir, self.seq()).join("omitted.txt").exists()
    }

    fn known(&mut self, of: NodeKey, result: &ExecResult, thing: &Thing) -> Result<Option<(Known, bool)>, Stopped> {
        let Some(Piece::Known(known)) = self.piece(of, thing, None)? else { return Ok(None) };
        let proven = match thing {
            Thing::Path(path) => {
                is_in_tree(&result.state_root, path, known.state, &known.proof)
                    && known.state.kind == PathKind::File
                    && root_of(&known.blocks) == known.state.root
            }
            // That the blocks are those of the leaf is seen when there is one alone.
            Thing::Output(_) => known.proof.root(known.state.root) == result.outputs_root && known.blocks.len() <= 1,
        };
        Ok(Some((known, proven)))
    }

    /// Fetches the block of the first difference. `mine` is where the own bytes are: nothing here, or nothing kept.
    fn fetch(
        &mut self,
        of: NodeKey,
        result: &ExecResult,
        thing: &Thing,
        mine: Option<Option<PathBuf>>,
    ) -> Result<(What, Proof), Stopped> {
        let known = self.known(of, result, thing)?;
        self.fetch_known(of, result, thing, mine, known)
    }

    fn fetch_known(
        &mut self,
        of: NodeKey,
        result: &ExecResult,
        thing: &Thing,
        mine: Option<Option<PathBuf>>,
        known: Option<(Known, bool)>,
    ) -> Result<(What, Proof), Stopped> {
        let none = |why: &str| What { no_bytes: Some(why.to_owned()), ..What::default() };
        let Some((known, mut proven)) = known else {
            return Ok((none("the other node keeps no bytes of that run"), Proof::Says));
        };
        let proof = |proven| if proven { Proof::Proven } else { Proof::Says };
        if let Some(None) = mine {
            return Ok((none("this node kept no bytes of it"), proof(proven)));
        }
        let mine = mine.flatten();
        let own_block = |block: u32| match &mine {
            Some(file) => kept::read_block(file, block),
            None => Ok(Vec::new()),
        };
        // A file that only one of them has begins to differ at its first byte.
        let block = match &mine {
            None => 0,
            Some(file) => {
                let own = self.own.things.get(thing).map(|own| own.blocks.clone());
                let Ok(own) = own.map_or_else(|| hash_blocks(file, known.blocks.len() + 1), Ok) else {
                    return Ok((none("this node cannot read what it kept"), proof(proven)));
                };
                let common = own.iter().zip(&known.blocks).take_while(|(one, other)| one == other).count();
                u32::try_from(common).expect("the number of blocks is bounded")
            }
        };
        let start = u64::from(block) * BLOCK_BYTES as u64;
        let Ok(ours) = own_block(block) else {
            return Ok((none("this node cannot read what it kept"), proof(proven)));
        };
        let theirs = if known.state.size <= start {
            // The whole of theirs is the beginning of ours.
            Vec::new()
        } else {
            match self.piece(of, thing, Some(block))? {
                Some(Piece::Block(bytes)) if known.blocks.get(block as usize) == Some(&block_hash(&bytes)) => bytes,
                Some(_) => return Ok((none("the other node sent other bytes than it has in its result"), Proof::Says)),
                None => return Ok((none("the other node does not send the bytes"), proof(proven))),
            }
        };
        if let Thing::Output(user) = thing {
            proven &= output_leaf(user, &theirs) == known.state.root
                && known.proof.root(known.state.root) == result.outputs_root;
        }
        let what = self.what(start, mine.as_ref().map(|_| &ours[..]), Some(&theirs));
        Ok((what, proof(proven)))
    }

    /// Compares two files that are both here; an inner `None` is one whose bytes were not kept.
    fn local(&self, mine: Option<Option<PathBuf>>, theirs: Option<Option<PathBuf>>) -> What {
        if matches!(mine, Some(None)) || matches!(theirs, Some(None)) {
            return What { no_bytes: Some("this node kept no bytes of it".to_owned()), ..What::default() };
        }
        let (mine, theirs) = (mine.flatten(), theirs.flatten());
        for block in 0.. {
            let read = |file: &Option<PathBuf>| file.as_ref().map(|file| kept::read_block(file, block)).transpose();
            let (Ok(ours), Ok(others)) = (read(&mine), read(&theirs)) else { break };
            let (one, other) = (ours.as_deref().unwrap_or_default(), others.as_deref().unwrap_or_default());
            if difference::first(one, other).is_some() {
                return self.what(u64::from(block) * BLOCK_BYTES as u64, ours.as_deref(), others.as_deref());
            }
            if one.is_empty() {
                break;
            }
        }
        What::default()
    }

    /// Two blocks that begin at `start`; `None` where there is no file at all.
    fn what(&self, start: u64, mine: Option<&[u8]>, theirs: Option<&[u8]>) -> What {
        let nodes: Vec<String> = self.facts.members.iter().map(NodeKey::to_string).collect();
        let (ours, others) = (mine.unwrap_or_default(), theirs.unwrap_or_default());
        let Some(at) = difference::first(ours, others) else { return What::default() };
        let around = Around { time_ms: self.own.time_ms, nodes: &nodes };
        // What one side lacks altogether says nothing about its bytes.
        let both = mine.is_some() && theirs.is_some();
        What {
            offset: Some(start + at as u64),
            mine_bytes: mine.map(|bytes| difference::around(bytes, start, at)),
            theirs_bytes: theirs.map(|bytes| difference::around(bytes, start, at)),
            no_bytes: None,
            looks_like: if both { hints::looks_like(ours, others, at, &around) } else { Vec::new() },
        }
    }

    // ---- The report ---------------------------------------------------------------------------------------------

    fn report(&self) -> Report {
        let Facts { results, members, quorum, agreed, is_split } = &self.facts;
        let own = &self.own.details;
        let mut by_result: BTreeMap<&ExecResult, BTreeSet<NodeKey>> = BTreeMap::new();
        for (node, result) in results {
            by_result.entry(result).or_default().insert(*node);
        }
        by_result.entry(&own.result).or_default().insert(self.me);
        if let Some(agreed) = agreed {
            by_result.entry(agreed).or_default();
        }
        let mut groups: Vec<(&ExecResult, BTreeSet<NodeKey>)> = by_result.into_iter().collect();
        groups.sort_by_key(|(result, nodes)| (agreed.as_ref() != Some(*result), std::cmp::Reverse(nodes.len())));
        let silent = members.iter().filter(|node| **node != self.me && !results.contains_key(node));
        let mut compared: Vec<Comparison> = self.compared.iter().map(|(_, comparison)| comparison.clone()).collect();
        for (result, _) in &groups {
            if **result != own.result && !self.compared.iter().any(|(known, _)| known == *result) {
                compared.push(Comparison::with_nobody(result));
            }
        }
        Report {
            seq: self.seq(),
            ledger: own.result.of_hash.to_string(),
            time_ms: self.own.time_ms,
            node: self.me.to_string(),
            kind: match agreed {
                Some(agreed) if *agreed == own.result => Kind::Others,
                Some(_) => Kind::Diverged,
                None if *is_split => Kind::Split,
                None => Kind::Open,
            },
            quorum: *quorum,
            silent: silent.map(NodeKey::to_string).collect(),
            groups: (0..)
                .zip(&groups)
                .map(|(at, (result, nodes))| Group {
                    nodes: nodes.iter().map(NodeKey::to_string).collect(),
                    this_node: **result == own.result,
                    agreed: agreed.as_ref() == Some(*result),
                    ..Group::of(name(at), result)
                })
                .collect(),
            compared,
            kept: Kept {
                whole_state: self.own.whole,
                changed: own.changed.len(),
                outputs: own.outputs.len(),
                omitted: self.has_omitted(),
            },
        }
    }

    fn write(&self) {
        let mut report = self.report();
        // After a restart others may have forgotten what they told the process before.
        if let Ok(Some(old)) = folder::read_report(&self.dir, report.seq) {
            report.complete_from(&old);
        }
        if let Err(error) = folder::write_report(&self.dir, &report) {
            warn!(seq = report.seq, %error, "cannot write why the results differ");
        }
    }

    fn tell(&mut self) {
        self.told = true;
        if !self.compared.is_empty() {
            let (seq, dir) = (self.seq(), self.dir.display());
            info!(seq, "why the results differ: hp diverge show {dir} --seq {seq}");
        }
    }
}

/// The node stops.
struct Stopped;

/// A, B, ... Z, A1, B1, ...
fn name(at: usize) -> String {
    let letter = char::from(b'A' + u8::try_from(at % 26).expect("less than 26"));
    if at < 26 { letter.to_string() } else { format!("{letter}{}", at / 26) }
}

fn side(state: Option<PathState>, proof: Proof) -> Side {
    match state {
        Some(state) => Side::of(&state, proof),
        None => Side::nothing(proof),
    }
}

/// Hashes of the first blocks of a file that were not hashed when it was kept.
fn hash_blocks(file: &std::path::Path, count_max: usize) -> std::io::Result<Vec<Hash>> {
    let mut blocks = Vec::new();
    while blocks.len() < count_max {
        let bytes = kept::read_block(file, u32::try_from(blocks.len()).expect("a bounded number"))?;
        if bytes.is_empty() {
            break;
        }
        blocks.push(block_hash(&bytes));
    }
    Ok(blocks)
}
