//! Whether the disk has room for a state that is fetched, before it is filled.

use std::{
    fmt,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::super::exec::Room;
use crate::state::sync::{Need, Space};

/// A disk that lacks room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Short {
    folder: PathBuf,
    needs: Room,
    has: Room,
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |room: &Room| room.bytes.div_ceil(1 << 20);
        let Short { folder, needs, has } = self;
        write!(f, "the disk of {} has too little room for the state that is to be fetched: ", folder.display())?;
        if has.bytes < needs.bytes {
            write!(f, "{} MiB are needed, {} are free", mib(needs), has.bytes >> 20)?;
        } else {
            write!(f, "{} more files are needed, {} can be made", needs.files, has.files)?;
        }
        write!(f, "; make room, and the node goes on by itself")
    }
}

/// What is short of what a fetch into the contract folder `dir` still needs.
pub(super) fn look(dir: &Path, need: Need) -> Option<Short> {
    let [hist, state] = ["hist", "state"].map(|folder| dir.join(folder));
    // A folder that is not there is made on the disk that the one above it is on.
    let disk = |folder: &Path| folder.metadata().or_else(|_| dir.metadata()).map(|meta| meta.dev()).ok();
    if disk(&hist) == disk(&state) {
        return short(&state, Room::of(dir), need.hist + need.state);
    }
    short(&hist, Room::of(&hist), need.hist).or_else(|| short(&state, Room::of(&state), need.state))
}

fn short(folder: &Path, has: Room, need: Space) -> Option<Short> {
    let Room { bytes, files } = Room::MIN;
    let needs = Room { bytes: bytes + u128::from(need.bytes), files: files + u128::from(need.files) };
    (!has.is_above(needs)).then(|| Short { folder: folder.to_owned(), needs, has })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_needs_room_for_the_state_and_for_what_the_node_writes_beside_it() {
        let need = Space { bytes: 100 << 20, files: 1_000 };
        let folder = Path::new("node/state");
        let at = |bytes: u128, files| short(folder, Room { bytes, files }, need).map(|short| short.to_string());
        assert_eq!(at(108 << 20, 1_256), None);
        assert_eq!(
            at((108 << 20) - 1, 1_256).unwrap(),
            "the disk of node/state has too little room for the state that is to be fetched: 108 MiB are needed, 107 are \
             free; make room, and the node goes on by itself"
        );
        assert!(at(1 << 40, 1_255).unwrap().contains("1256 more files are needed, 1255 can be made;"));
    }

    #[test]
    fn a_folder_that_is_missing_counts_as_on_the_disk_of_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let need = |bytes| Need { hist: Space::default(), state: Space { bytes, files: 0 } };
        assert_eq!(look(dir.path(), need(0)), None);
        assert!(look(dir.path(), need(u64::MAX)).is_some());
    }
}
