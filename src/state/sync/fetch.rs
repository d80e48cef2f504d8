//! The asker: which requests are open, what follows from each answer, what is still missing.
//!
//! Three parts, one after the other: the leaves of the tree, the block hashes of files that are not here, blocks. In each
//! all that is needed is known, so that many requests can be open, with several nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use super::{
    super::{
        StateError,
        merkle::{self, BLOCK_BYTES, Kind, Leaf, block_hash},
        scan::{BYTES_MAX, ENTRIES_MAX, PATH_BYTES_MAX, parent, symlink_leaf},
    },
    LEAVES_LEVELS, Local, NODES_LEVELS, Need, Space, Stage, Target, children, level_len,
};
use crate::{
    consensus::{
        STATE_BLOCKS_MAX, STATE_PART_BYTES_MAX,
        messages::{StateBody, StateGet, StatePart, StateWant},
    },
    types::{Hash, NodeKey},
};

/// Heights at which the walk over the leaves begins: the lowest of which one node has them all.
const HEIGHTS: [u32; 3] = [LEAVES_LEVELS, LEAVES_LEVELS + NODES_LEVELS, LEAVES_LEVELS + 2 * NODES_LEVELS];
const _: () = assert!(ENTRIES_MAX as u64 <= 1 << (LEAVES_LEVELS + 2 * NODES_LEVELS));
const _: () = assert!(BYTES_MAX / BLOCK_BYTES as u64 <= 1 << (2 * NODES_LEVELS));

/// What a node sent that is false. It is not asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lie {
    /// Another kind of answer, or more or less in it than was asked for.
    #[error("a part of the state of another kind or length than was asked for")]
    Shape,
    /// It does not have the hash that it should have.
    #[error("a part of the state with another hash")]
    Hash,
    /// No honest state has this path, order, size or number.
    #[error("a state that cannot be")]
    Impossible,
}

/// A state that some node offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    /// Its root, which a quorum agreed on.
    pub root: Hash,
    /// Files, folders and symlinks in it, as the node says. A wrong number shows.
    pub entries: u64,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes fetched, by this process or one before.
    pub bytes: u64,
    /// Bytes to be fetched, as far as is known; 0 while the list is being fetched.
    pub bytes_total: u64,
    /// Files, folders and symlinks of the state that are known.
    pub entries: u64,
    /// All of them.
    pub entries_total: u64,
}

#[derive(Debug, Clone)]
enum Job {
    Nodes { height: u32, index: u64, expected: Hash },
    Leaves { index: u64, expected: Hash },
    Hashes { file: Hash, count: u64, height: u32, index: u64, expected: Hash },
    Blocks(Vec<(Hash, u32)>),
}

/// A job and who could not do it.
#[derive(Debug, Clone)]
struct Task {
    job: Job,
    lack: BTreeSet<NodeKey>,
}

impl From<Job> for Task {
    fn from(job: Job) -> Task {
        Task { job, lack: BTreeSet::new() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Leaves,
    Hashes,
    Blocks,
    Done,
}

/// One state being fetched.
#[derive(Debug)]
pub struct Fetch {
    goal: Goal,
    local: Local,
    part: Part,
    next_id: u64,
    todo: VecDeque<Task>,
    open: BTreeMap<u64, (NodeKey, Task)>,
    leaves: BTreeMap<u64, (Vec<u8>, Leaf)>,
    /// Hashes of the blocks of files that are not here, by file and place of the first of them.
    hashes: HashMap<Hash, BTreeMap<u64, Vec<Hash>>>,
    /// The whole list, once it is known.
    entries: BTreeMap<Vec<u8>, (Leaf, Vec<Hash>)>,
    bytes: u64,
    bytes_total: u64,
    /// What the folders grow by, once the list is known.
    growth: Option<Need>,
}

impl Fetch {
    /// Begins with what is here. `first_id` is above all ids of requests before.
    pub fn new(goal: Goal, local: Local, first_id: u64, stage: &mut Stage) -> Result<Fetch, StateError> {
        let mut fetch = Fetch {
            goal,
            local,
            part: Part::Leaves,
            next_id: first_id,
            todo: VecDeque::new(),
            open: BTreeMap::new(),
            leaves: BTreeMap::new(),
            hashes: HashMap::new(),
            entries: BTreeMap::new(),
            bytes: 0,
            bytes_total: 0,
            growth: None,
        };
        let top = HEIGHTS.iter().find(|height| level_len(goal.entries, **height) <= 1).unwrap_or(&HEIGHTS[2]);
        if goal.entries > 0 {
            fetch.walk(*top, 0, goal.root);
        }
        fetch.go_on(stage).map(|_| fetch)
    }

    /// What is being fetched.
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// Above all ids of its requests.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// What was here when it began, for another goal.
    pub fn into_local(self) -> Local {
        self.local
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let entries = match self.part {
            Part::Leaves => self.leaves.len(),
            _ => self.entries.len().max(self.leaves.len()),
        };
        Progress {
            bytes: self.bytes,
            bytes_total: self.bytes_total,
            entries: entries as u64,
            entries_total: self.goal.entries,
        }
    }

    /// Room that the rest takes on the disk, at most; `None` until the list is known, as long as nothing is written.
    pub fn need(&self) -> Option<Need> {
        let Need { hist, state } = self.growth?;
        let fetched = Space { bytes: self.bytes_total.saturating_sub(self.bytes), files: 0 };
        Some(Need { hist: hist + fetched, state })
    }

    /// Whether everything is here.
    pub fn is_done(&self) -> bool {
        self.part == Part::Done
    }

    /// Requests that a node has not answered.
    pub fn open_of(&self, peer: &NodeKey) -> usize {
        self.open.values().filter(|(asked, _)| asked == peer).count()
    }

    /// Whether nothing is open and none of these nodes can do what is left: another goal is needed.
    pub fn is_stuck(&self, peers: &BTreeMap<NodeKey, Hash>) -> bool {
        self.open.is_empty()
            && !self.is_done()
            && !self.todo.iter().any(|task| peers.iter().any(|(peer, root)| self.can(task, peer, root)))
    }

    fn can(&self, task: &Task, peer: &NodeKey, root: &Hash) -> bool {
        let of_goal = matches!(task.job, Job::Nodes { .. } | Job::Leaves { .. });
        !task.lack.contains(peer) && (!of_goal || *root == self.goal.root)
    }

    /// The next request to a node that offered the state `root`, if it can do anything that is left.
    pub fn ask(&mut self, peer: NodeKey, root: Hash) -> Option<StateGet> {
        let at = self.todo.iter().position(|task| self.can(task, &peer, &root))?;
        let task = self.todo.remove(at).expect("just found");
        let want = match &task.job {
            Job::Nodes { height, index, .. } => StateWant::Nodes { height: *height, index: *index },
            Job::Leaves { index, .. } => StateWant::Leaves { index: *index },
            Job::Hashes { file, height, index, .. } => {
                StateWant::Hashes { file: *file, height: *height, index: *index }
            }
            Job::Blocks(blocks) => StateWant::Blocks(blocks.iter().map(|(hash, _)| *hash).collect()),
        };
        let id = self.next_id;
        self.next_id += 1;
        self.open.insert(id, (peer, task));
        Some(StateGet { id, root, want })
    }

    /// Takes an answer. Whether it was one to an open request; what is not is passed over. After a lie the node's other
    /// open requests are for others.
    pub fn take(&mut self, peer: NodeKey, part: StatePart, stage: &mut Stage) -> Result<Result<bool, Lie>, StateError> {
        if self.open.get(&part.id).is_none_or(|(asked, _)| *asked != peer) {
            return Ok(Ok(false));
        }
        let (_, mut task) = self.open.remove(&part.id).expect("just looked at");
        if part.body == StateBody::Nothing {
            task.lack.insert(peer);
            self.todo.push_back(task);
            return Ok(Ok(true));
        }
        let again = task.clone();
        let done = match (task.job, part.body) {
            (Job::Nodes { height, index, expected }, StateBody::Hashes(hashes)) => {
                self.take_nodes(height, index, expected, &hashes)
            }
            (Job::Leaves { index, expected }, StateBody::Leaves(leaves)) => self.take_leaves(index, expected, &leaves),
            (Job::Hashes { file, count, height, index, expected }, StateBody::Hashes(hashes)) => {
                self.take_hashes(file, count, height, index, expected, hashes)
            }
            (Job::Blocks(asked), StateBody::Blocks(blocks)) => {
                self.take_blocks(peer, &asked, &blocks, again.lack.clone(), stage)?
            }
            _ => Err(Lie::Shape),
        };
        if let Err(lie) = done {
            self.todo.push_front(again);
            self.drop_peer(&peer);
            return Ok(Err(lie));
        }
        self.go_on(stage)?;
        Ok(Ok(true))
    }

    /// A node is gone, or not trusted any more: what it was asked for is for others.
    pub fn drop_peer(&mut self, peer: &NodeKey) {
        let ids: Vec<u64> = self.open.iter().filter(|(_, (asked, _))| asked == peer).map(|(id, _)| *id).collect();
        for id in ids {
            let (_, task) = self.open.remove(&id).expect("just found");
            self.todo.push_front(task);
        }
    }

    /// A node offers another state than before: it may have what it lacked.
    pub fn renewed(&mut self, peer: &NodeKey) {
        self.drop_peer(peer);
        for task in &mut self.todo {
            task.lack.remove(peer);
        }
    }

    /// The whole state as a list, once [`Fetch::is_done`].
    pub fn target(&self) -> Target {
        assert!(self.is_done(), "asked when everything is here");
        Target::new(self.entries.clone())
    }

    // ---- The tree over the leaves -------------------------------------------------------------------------------

    /// A node of the tree: what is below it is here, or asked for.
    fn walk(&mut self, height: u32, index: u64, expected: Hash) {
        if self.take_local(height, index, expected) {
            return;
        }
        self.todo.push_back(Task::from(match height {
            LEAVES_LEVELS => Job::Leaves { index, expected },
            _ => Job::Nodes { height, index, expected },
        }));
    }

    /// Takes the leaves below a node from here, if it is the same one here.
    fn take_local(&mut self, height: u32, index: u64, expected: Hash) -> bool {
        let mine = self.local.base.entries.len() as u64;
        let wanted = children(self.goal.entries, height, index, height);
        let Some(range) = wanted.filter(|wanted| children(mine, height, index, height).as_ref() == Some(wanted)) else {
            return false;
        };
        let place = usize::try_from(index).ok();
        let node = place.and_then(|place| self.local.base.tree().level(height as usize).get(place));
        if node != Some(&expected) {
            return false;
        }
        let (first, last) = (range.start as usize, range.end as usize);
        let entries = self.local.base.entries.iter().enumerate().skip(first).take(last - first);
        self.leaves.extend(entries.map(|(number, (path, entry))| (number as u64, (path.clone(), entry.leaf))));
        true
    }

    fn take_nodes(&mut self, height: u32, index: u64, expected: Hash, hashes: &[Hash]) -> Result<(), Lie> {
        let range = children(self.goal.entries, height, index, NODES_LEVELS).ok_or(Lie::Shape)?;
        if hashes.len() as u64 != range.end - range.start {
            return Err(Lie::Shape);
        }
        if merkle::root_of(hashes) != expected {
            return Err(Lie::Hash);
        }
        for (at, hash) in range.zip(hashes) {
            self.walk(height - NODES_LEVELS, at, *hash);
        }
        Ok(())
    }

    fn take_leaves(&mut self, index: u64, expected: Hash, preimages: &[Vec<u8>]) -> Result<(), Lie> {
        let range = children(self.goal.entries, LEAVES_LEVELS, index, LEAVES_LEVELS).ok_or(Lie::Shape)?;
        if preimages.len() as u64 != range.end - range.start {
            return Err(Lie::Shape);
        }
        let parsed = |preimage: &Vec<u8>| Leaf::parse(preimage);
        let leaves: Vec<(Vec<u8>, Leaf)> = preimages.iter().map(parsed).collect::<Option<_>>().ok_or(Lie::Shape)?;
        let hashes: Vec<Hash> = leaves.iter().map(|(path, leaf)| leaf.hash(path)).collect();
        if merkle::root_of(&hashes) != expected {
            return Err(Lie::Hash);
        }
        if !leaves.iter().all(|(path, leaf)| is_possible(path, leaf)) {
            return Err(Lie::Impossible);
        }
        self.leaves.extend(range.zip(leaves));
        Ok(())
    }

    // ---- Block hashes -------------------------------------------------------------------------------------------

    fn walk_file(&mut self, file: Hash, count: u64, height: u32, index: u64, expected: Hash) {
        self.todo.push_back(Task::from(Job::Hashes { file, count, height, index, expected }));
    }

    fn take_hashes(
        &mut self,
        file: Hash,
        count: u64,
        height: u32,
        index: u64,
        expected: Hash,
        hashes: Vec<Hash>,
    ) -> Result<(), Lie> {
        let range = children(count, height, index, NODES_LEVELS).ok_or(Lie::Shape)?;
        if hashes.len() as u64 != range.end - range.start {
            return Err(Lie::Shape);
        }
        if merkle::root_of(&hashes) != expected {
            return Err(Lie::Hash);
        }
        if height == NODES_LEVELS {
            self.hashes.entry(file).or_default().insert(range.start, hashes);
        } else {
            for (at, hash) in range.zip(hashes) {
                self.walk_file(file, count, height - NODES_LEVELS, at, hash);
            }
        }
        Ok(())
    }

    // ---- Blocks -------------------------------------------------------------------------------------------------

    fn take_blocks(
        &mut self,
        peer: NodeKey,
        asked: &[(Hash, u32)],
        blocks: &[Vec<u8>],
        mut lack: BTreeSet<NodeKey>,
        stage: &mut Stage,
    ) -> Result<Result<(), Lie>, StateError> {
        if blocks.len() != asked.len() {
            return Ok(Err(Lie::Shape));
        }
        let wrong = |((hash, len), block): (&(Hash, u32), &Vec<u8>)| {
            !block.is_empty() && (block.len() != *len as usize || block_hash(block) != *hash)
        };
        if asked.iter().zip(blocks).any(wrong) {
            return Ok(Err(Lie::Hash));
        }
        let mut missing = Vec::new();
        for ((hash, len), block) in asked.iter().zip(blocks) {
            if block.is_empty() {
                missing.push((*hash, *len));
            } else {
                stage.put(*hash, block)?;
                self.bytes += u64::from(*len);
            }
        }
        if !missing.is_empty() {
            lack.insert(peer);
            self.todo.push_back(Task { job: Job::Blocks(missing), lack });
        }
        Ok(Ok(()))
    }

    // ---- From one part to the next ------------------------------------------------------------------------------

    fn go_on(&mut self, stage: &mut Stage) -> Result<(), StateError> {
        while self.todo.is_empty() && self.open.is_empty() && !self.is_done() {
            match self.part {
                Part::Leaves => {
                    self.part = Part::Hashes;
                    self.ask_hashes()?;
                }
                Part::Hashes => {
                    self.part = Part::Blocks;
                    self.ask_blocks(stage)?;
                }
                Part::Blocks => {
                    self.check_symlinks(stage)?;
                    self.part = Part::Done;
                }
                Part::Done => {}
            }
        }
        Ok(())
    }

    /// All leaves are here: is it a state, and of which files are the blocks not known?
    fn ask_hashes(&mut self) -> Result<(), StateError> {
        let list: Vec<(Vec<u8>, Leaf)> = std::mem::take(&mut self.leaves).into_values().collect();
        check(&list).map_err(|path| StateError::NoState { root: self.goal.root, path })?;
        let mut asked = HashSet::new();
        for (path, leaf) in list {
            let known = self.known_blocks(&leaf);
            if known.is_none() && asked.insert(leaf.root) {
                let count = block_count(leaf.size);
                let height = if count <= 1 << NODES_LEVELS { NODES_LEVELS } else { 2 * NODES_LEVELS };
                self.walk_file(leaf.root, count, height, 0, leaf.root);
            }
            self.entries.insert(path, (leaf, known.unwrap_or_default()));
        }
        Ok(())
    }

    /// The blocks of a file that need not be asked for; none of whatever is no file.
    fn known_blocks(&self, leaf: &Leaf) -> Option<Vec<Hash>> {
        if leaf.kind != Kind::File || leaf.size == 0 {
            return Some(Vec::new());
        }
        if block_count(leaf.size) == 1 {
            return Some(vec![leaf.root]);
        }
        let entry = &self.local.base.entries[self.local.files.get(&leaf.root)?];
        (entry.leaf.size == leaf.size).then(|| entry.blocks.clone())
    }

    /// The list is whole: which blocks are nowhere here?
    fn ask_blocks(&mut self, stage: &mut Stage) -> Result<(), StateError> {
        let mut asked: HashSet<Hash> = HashSet::new();
        let mut missing: Vec<(Hash, u32)> = Vec::new();
        let mut fetched = std::mem::take(&mut self.hashes);
        let whole: HashMap<Hash, Vec<Hash>> =
            fetched.drain().map(|(file, parts)| (file, parts.into_values().flatten().collect())).collect();
        for (path, (leaf, blocks)) in &mut self.entries {
            if leaf.kind == Kind::File && blocks.is_empty() && leaf.size > 0 {
                *blocks = whole.get(&leaf.root).cloned().unwrap_or_default();
            }
            let here = self.local.base.entries.get(path);
            let needed: Vec<(Hash, u32)> = match leaf.kind {
                Kind::Folder => continue,
                Kind::Symlink if here.is_some_and(|here| here.leaf == *leaf) => continue,
                Kind::Symlink => vec![(leaf.root, u32::try_from(leaf.size).unwrap_or(u32::MAX))],
                Kind::File => {
                    let stays = |at: usize| here.and_then(|here| here.blocks.get(at));
                    let goes = |(at, hash): &(usize, &Hash)| stays(*at) != Some(hash);
                    let needed = blocks.iter().enumerate().filter(goes);
                    needed.map(|(at, hash)| (*hash, block_len(leaf.size, at))).collect()
                }
            };
            for (hash, len) in needed {
                if stage.has(&hash) || !asked.insert(hash) {
                    continue;
                }
                // Copied rather than used where it is: that place may be overwritten before it is read.
                match self.local.block(&hash, len as usize) {
                    Some(block) => stage.put(hash, &block)?,
                    None => missing.push((hash, len)),
                }
            }
        }
        let target = Space::of(self.entries.values().map(|(leaf, blocks)| (leaf, &blocks[..])));
        let Local { hist, state, .. } = &self.local;
        let hist = hist.map(|there| target.beyond(there)).unwrap_or_default();
        self.growth = Some(Need { hist, state: target.beyond(*state) });
        self.bytes_total = missing.iter().map(|(_, len)| u64::from(*len)).sum();
        let mut job: Vec<(Hash, u32)> = Vec::new();
        let mut bytes = 0;
        for (hash, len) in missing {
            if job.len() == STATE_BLOCKS_MAX || bytes + len as usize > STATE_PART_BYTES_MAX {
                self.todo.push_back(Job::Blocks(std::mem::take(&mut job)).into());
                bytes = 0;
            }
            bytes += len as usize;
            job.push((hash, len));
        }
        if !job.is_empty() {
            self.todo.push_back(Job::Blocks(job).into());
        }
        Ok(())
    }
}

impl Fetch {
    /// Where symlinks lead is known only now. Those that are here already were looked at when they were read.
    fn check_symlinks(&self, stage: &Stage) -> Result<(), StateError> {
        for (path, (leaf, _)) in self.entries.iter().filter(|(_, (leaf, _))| leaf.kind == Kind::Symlink) {
            if self.local.base.entries.get(path).is_some_and(|here| here.leaf == *leaf) {
                continue;
            }
            let target = stage.block(&leaf.root, usize::try_from(leaf.size).unwrap_or(usize::MAX).min(BLOCK_BYTES))?;
            if symlink_leaf(path, &target).ok() != Some(*leaf) {
                return Err(StateError::NoState { root: self.goal.root, path: path.clone() });
            }
        }
        Ok(())
    }
}

/// Blocks of a file of so many bytes.
fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES as u64)
}

fn block_len(size: u64, at: usize) -> u32 {
    let left = size.saturating_sub(at as u64 * BLOCK_BYTES as u64);
    u32::try_from(left.min(BLOCK_BYTES as u64)).expect("a block is small")
}

/// Whether one path can be in a state at all, and never leaves `state/`.
fn is_possible(path: &[u8], leaf: &Leaf) -> bool {
    let is_name = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
    let is_path = path.len() <= PATH_BYTES_MAX && !path.contains(&0) && path.split(|&byte| byte == b'/').all(is_name);
    is_path
        && match leaf.kind {
            Kind::Folder => *leaf == Leaf::FOLDER,
            Kind::Symlink => !leaf.executable && (1..=BLOCK_BYTES as u64).contains(&leaf.size),
            Kind::File => leaf.size <= BYTES_MAX && (leaf.size > 0 || leaf.root == Hash::ZERO),
        }
}

/// Whether paths and leaves can be a state: ascending, each in a folder that is there, not too many, not too big. The
/// first path that cannot be.
fn check(list: &[(Vec<u8>, Leaf)]) -> Result<(), Vec<u8>> {
    let (mut folders, mut bytes, mut before): (HashSet<&[u8]>, u64, &[u8]) = (HashSet::new(), 0, b"");
    folders.insert(b"");
    for (number, (path, leaf)) in list.iter().enumerate() {
        bytes = bytes.saturating_add(if leaf.kind == Kind::File { leaf.size } else { 0 });
        let fits = number < ENTRIES_MAX && bytes <= BYTES_MAX;
        if path.as_slice() <= before || !folders.contains(parent(path)) || !fits {
            return Err(path.clone());
        }
        if leaf.kind == Kind::Folder {
            folders.insert(path);
        }
        before = path;
    }
    Ok(())
}
