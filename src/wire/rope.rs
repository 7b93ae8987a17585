//! Encoded bytes that were not all copied to one place: large pieces stay where the user has them.

use std::io::IoSlice;

use bytes::Bytes;

/// Bytes of its own, and shared pieces in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rope {
    own: Vec<u8>,
    /// Each with the number of own bytes that are before it.
    pieces: Vec<(usize, Bytes)>,
    len: usize,
}

/// How many slices go to the kernel with one call; more go with the next.
pub(crate) const SLICES: usize = 8;

impl Rope {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many bytes of memory nobody else has.
    pub(crate) fn would_free(&self) -> usize {
        let pieces = self.pieces.iter().map(|(_, piece)| piece);
        self.own.len() + pieces.filter(|piece| piece.is_unique()).map(Bytes::len).sum::<usize>()
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.own.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        self.pieces.push((self.own.len(), piece));
    }

    /// Appends all of another one.
    pub(crate) fn append(&mut self, other: Self) {
        let before = self.own.len();
        self.own.extend_from_slice(&other.own);
        self.pieces.extend(other.pieces.into_iter().map(|(at, piece)| (before + at, piece)));
        self.len += other.len;
    }

    /// The first bytes, which are its own.
    pub(crate) fn head_mut(&mut self) -> &mut [u8] {
        let end = self.pieces.first().map_or(self.own.len(), |&(at, _)| at);
        &mut self.own[..end]
    }

    /// `most` bytes from the byte `from` on, or the first [`SLICES`] slices of them, and how many those are.
    pub(crate) fn slices(&self, from: usize, mut most: usize) -> ([IoSlice<'_>; SLICES], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (mut count, mut skip) = (0, from);
        let mut start = 0;
        let parts = self.pieces.iter().flat_map(|(at, piece)| {
            let own = &self.own[start..*at];
            start = *at;
            [own, &piece[..]]
        });
        let last = &self.own[self.pieces.last().map_or(0, |&(at, _)| at)..];
        for part in parts.chain([last]) {
            let seen = skip.min(part.len());
            skip -= seen;
            let part = &part[seen..];
            let part = &part[..most.min(part.len())];
            most -= part.len();
            if !part.is_empty() {
                slices[count] = IoSlice::new(part);
                count += 1;
            }
            if most == 0 || count == SLICES {
                break;
            }
        }
        (slices, count)
    }

    /// All of it in one place; copies unless there is one part only.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn into_bytes(mut self) -> Bytes {
        if self.pieces.is_empty() {
            return self.own.into();
        }
        if self.own.is_empty() && self.pieces.len() == 1 {
            return self.pieces.remove(0).1;
        }
        let mut all = Vec::with_capacity(self.len);
        while all.len() < self.len {
            let (slices, count) = self.slices(all.len(), usize::MAX);
            slices[..count].iter().for_each(|slice| all.extend_from_slice(slice));
        }
        all.into()
    }
}

impl From<Vec<u8>> for Rope {
    fn from(own: Vec<u8>) -> Self {
        Self { len: own.len(), own, pieces: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope() -> Rope {
        let mut rope = Rope::from(b"ab".to_vec());
        rope.push(Bytes::from_static(b"cde"));
        rope.push(Bytes::from_static(b"f"));
        rope.extend(b"gh");
        rope.push(Bytes::from_static(b"i"));
        rope
    }

    #[test]
    fn it_can_be_read_from_any_byte_on() {
        let whole = b"abcdefghi";
        for from in 0..=whole.len() {
            let rope = rope();
            for most in [1, 3, usize::MAX] {
                let (slices, count) = rope.slices(from, most);
                let read: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                assert_eq!(read, whole[from..from + most.min(whole.len() - from)]);
                assert!(slices[..count].iter().all(|slice| !slice.is_empty()));
            }
        }
        assert_eq!(rope().len(), whole.len());
        assert_eq!(rope().into_bytes(), whole[..]);
        assert_eq!(Rope::default().slices(0, usize::MAX).1, 0);
    }

    #[test]
    fn more_slices_than_go_at_once_go_later() {
        let mut rope = Rope::default();
        for n in 0..3 * SLICES as u8 {
            rope.extend(&[n]);
            rope.push(vec![n; 2].into());
        }
        assert_eq!(rope.slices(0, usize::MAX).1, SLICES);
        let all: Vec<u8> = (0..3 * SLICES as u8).flat_map(|n| [n; 3]).collect();
        assert_eq!(rope.into_bytes(), all);
    }

    #[test]
    fn one_comes_after_the_other() {
        let mut two = rope();
        two.append(rope());
        assert_eq!(two.len(), 18);
        assert_eq!(two.into_bytes(), b"abcdefghiabcdefghi"[..]);
    }

    #[test]
    fn one_part_is_not_copied() {
        let bytes = vec![1; 100];
        let place = bytes.as_ptr();
        assert_eq!(Rope::from(bytes).into_bytes().as_ptr(), place);
        let mut rope = Rope::default();
        let piece = Bytes::from(vec![2; 100]);
        let place = piece.as_ptr();
        rope.push(piece);
        assert_eq!(rope.into_bytes().as_ptr(), place);
    }

    #[test]
    fn the_head_is_what_is_before_the_first_piece() {
        let mut rope = rope();
        rope.head_mut().copy_from_slice(b"xy");
        assert_eq!(rope.into_bytes(), b"xycdefghi"[..]);
    }
}
