//! Where two strings of bytes begin to differ, and the bytes around there. Pure.

use super::Bytes;

/// Bytes shown before the first one that differs.
pub const BEFORE_MAX: usize = 16;
/// Bytes shown from the first one that differs on.
pub const BEHIND_MAX: usize = 64;

/// Position of the first byte that differs; where one ends, the other goes on. `None` when they are the same.
pub fn first(mine: &[u8], theirs: &[u8]) -> Option<usize> {
    let common = mine.iter().zip(theirs).take_while(|(one, other)| one == other).count();
    (common < mine.len().max(theirs.len())).then_some(common)
}

/// The bytes around `at`. `start` is the place of `block` in the whole.
pub fn around(block: &[u8], start: u64, at: usize) -> Bytes {
    let from = at.saturating_sub(BEFORE_MAX).min(block.len());
    let to = at.saturating_add(BEHIND_MAX).min(block.len());
    Bytes { from: start + from as u64, hex: hex::encode(&block[from..to]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_a_byte_or_the_end_of_the_shorter() {
        let table: [(&[u8], &[u8], Option<usize>); 6] = [
            (b"", b"", None),
            (b"abc", b"abc", None),
            (b"abc", b"abd", Some(2)),
            (b"abc", b"ab", Some(2)),
            (b"", b"x", Some(0)),
            (b"xbc", b"abc", Some(0)),
        ];
        for (one, other, expected) in table {
            assert_eq!((first(one, other), first(other, one)), (expected, expected), "{one:?} {other:?}");
        }
    }

    #[test]
    fn the_bytes_around_are_bounded_and_know_their_place() {
        let block: Vec<u8> = (0..=255).collect();
        let shown = around(&block, 65_536, 100);
        assert_eq!((shown.from, shown.hex), (65_536 + 84, hex::encode(&block[84..164])));
        assert_eq!(around(&block, 0, 3), Bytes { from: 0, hex: hex::encode(&block[..67]) });
        assert_eq!(around(&block, 0, 256), Bytes { from: 240, hex: hex::encode(&block[240..]) }, "behind the end");
        assert_eq!(around(b"", 7, 0), Bytes { from: 7, hex: String::new() });
    }
}
