//! The first difference of two byte strings.

use std::io::{self, Read as _};

/// Bytes shown on each side of a first difference.
const AROUND_BYTES: usize = 24;

/// The first difference of two byte strings: where, and what stands there on each side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Apart {
    pub(super) offset: u64,
    pub(super) left: Vec<u8>,
    pub(super) right: Vec<u8>,
}

impl Apart {
    /// `None`: they are alike.
    pub(super) fn of(mut left: impl io::Read, mut right: impl io::Read) -> io::Result<Option<Apart>> {
        let mut offset = 0;
        loop {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            (&mut left).take(1 << 16).read_to_end(&mut a)?;
            (&mut right).take(1 << 16).read_to_end(&mut b)?;
            let alike = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
            if alike < a.len() || alike < b.len() {
                // A little of what follows, also where the piece ends here.
                (&mut left).take(AROUND_BYTES as u64).read_to_end(&mut a)?;
                (&mut right).take(AROUND_BYTES as u64).read_to_end(&mut b)?;
                let some = |bytes: &[u8]| bytes[alike.min(bytes.len())..].iter().take(AROUND_BYTES).copied().collect();
                return Ok(Some(Apart { offset: offset + alike as u64, left: some(&a), right: some(&b) }));
            }
            if a.is_empty() {
                return Ok(None);
            }
            offset += alike as u64;
        }
    }

    /// Both sides, for people.
    pub(super) fn quoted(&self) -> [String; 2] {
        [quoted(&self.left), quoted(&self.right)]
    }
}

/// A few bytes on one line.
fn quoted(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        _ if bytes.is_empty() => "nothing: it ends there".to_owned(),
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("\"{}\"", bytes.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found_wherever_it_is() {
        let apart = |a: &[u8], b: &[u8]| Apart::of(a, b).unwrap();
        assert_eq!(apart(b"", b""), None);
        assert_eq!(apart(b"abc", b"abc"), None);
        let found =
            |offset, left: &[u8], right: &[u8]| Some(Apart { offset, left: left.to_vec(), right: right.to_vec() });
        assert_eq!(apart(b"abc", b"abd"), found(2, b"c", b"d"));
        assert_eq!(apart(b"abc", b"ab"), found(2, b"c", b""));
        let long = vec![b'x'; 200_000];
        let mut other = long.clone();
        other[1 << 17] = b'y';
        let x = [b'x'; AROUND_BYTES];
        let y = [&b"y"[..], &x[1..]].concat();
        assert_eq!(apart(&long, &other), found(1 << 17, &x, &y));
        assert_eq!(apart(&long, &long[..1 << 16]), found(1 << 16, &x, b""));
    }
}
