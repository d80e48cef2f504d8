//! Answers one request from a pinned state.

use super::{
    super::{Pin, merkle},
    LEAVES_LEVELS, NODES_LEVELS, children,
};
use crate::consensus::{
    STATE_BLOCKS_MAX, STATE_PART_BYTES_MAX,
    messages::{StateBody, StateWant},
};

/// What a pin has of what is wanted; `Nothing` for what it lacks, and for what nobody asks for who follows the protocol.
/// At most about [`STATE_PART_BYTES_MAX`], or 64 leaves.
pub fn answer(pin: &Pin, want: &StateWant) -> StateBody {
    found(pin, want).unwrap_or(StateBody::Nothing)
}

fn found(pin: &Pin, want: &StateWant) -> Option<StateBody> {
    match want {
        StateWant::Offer(_) => None,
        StateWant::Nodes { height, index } => {
            let below = height.checked_sub(NODES_LEVELS)?;
            let range = children(pin.entries() as u64, *height, *index, NODES_LEVELS)?;
            let level = pin.tree().level(below as usize);
            let hashes = level.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)?;
            Some(StateBody::Hashes(hashes.to_vec()))
        }
        StateWant::Leaves { index } => {
            let range = children(pin.entries() as u64, LEAVES_LEVELS, *index, LEAVES_LEVELS)?;
            let leaf = |number: u64| {
                let (path, leaf) = pin.leaf(usize::try_from(number).ok()?)?;
                Some(leaf.preimage(path))
            };
            range.map(leaf).collect::<Option<_>>().map(StateBody::Leaves)
        }
        StateWant::Hashes { file, height, index } => {
            let below = height.checked_sub(NODES_LEVELS)?;
            let blocks = pin.blocks(file)?;
            let range = children(blocks.len() as u64, *height, *index, NODES_LEVELS)?;
            let each = 1_usize.checked_shl(below)?;
            let (first, last) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
            let below_these = blocks.get(first * each..blocks.len().min(last * each))?;
            Some(StateBody::Hashes(below_these.chunks(each).map(merkle::root_of).collect()))
        }
        StateWant::Blocks(hashes) => {
            let mut bytes = 0;
            let block = |hash| {
                if bytes >= STATE_PART_BYTES_MAX {
                    return Vec::new();
                }
                let block = pin.block(hash).ok().flatten().unwrap_or_default();
                bytes += block.len();
                if bytes > STATE_PART_BYTES_MAX { Vec::new() } else { block }
            };
            Some(StateBody::Blocks(hashes.iter().take(STATE_BLOCKS_MAX).map(block).collect()))
        }
    }
}
