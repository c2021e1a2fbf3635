//! BLAKE3 of a chunk most of which is zeros, without hashing these again and again.
//!
//! ```text
//!                 root = BLAKE3 of the chunk
//!            .----'----.
//!         .--'--.   .--'--.         parents are hashed from their children (BLAKE3, 2.1 and 2.4)
//!        [0]   [1] [2]   [3]        subtrees of 64 KiB; the hash of one depends on its place in the chunk, so those of
//!                                   zeros are made once for each place
//! ```

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use blake3::{Hash, Hasher};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// As much as keeps all lanes of the processor busy.
const SUBTREE: usize = 64 << 10;
static ZEROS: [u8; SUBTREE] = [0; SUBTREE];
/// Of the subtree of zeros at each place.
static OF_ZEROS: Mutex<Vec<ChainingValue>> = Mutex::new(Vec::new());

/// Hashes a chunk that comes in parts, ascending, with zeros between them.
pub(crate) struct ChunkHasher {
    start: u64,
    len: usize,
    /// How far it has come.
    at: usize,
    whole: Vec<ChainingValue>,
    /// The subtree that is not whole yet.
    part: Box<[u8]>,
}

impl ChunkHasher {
    pub(crate) fn new(chunk: Range<u64>) -> Self {
        let len = usize::try_from(chunk.end - chunk.start).unwrap_or(usize::MAX);
        Self { start: chunk.start, len, at: 0, whole: Vec::new(), part: vec![0; SUBTREE].into() }
    }

    /// Adds bytes, which begin at an offset of what the chunk is of.
    pub(crate) fn add(&mut self, offset: u64, bytes: &[u8]) {
        self.zeros_to(usize::try_from(offset - self.start).unwrap_or(usize::MAX));
        let mut rest = bytes;
        while !rest.is_empty() && self.at < self.len {
            let begun = self.at % SUBTREE;
            let (now, later) = rest.split_at(rest.len().min(SUBTREE - begun));
            if now.len() == SUBTREE && self.len > SUBTREE {
                self.whole.push(subtree(self.at, now));
                self.at += SUBTREE;
            } else if let Some(place) = self.part.get_mut(begun..begun + now.len()) {
                place.copy_from_slice(now);
                self.step(now.len());
            }
            rest = later;
        }
    }

    pub(crate) fn finish(mut self) -> Hash {
        self.zeros_to(self.len);
        if self.len <= SUBTREE {
            return blake3::hash(self.part.get(..self.len).unwrap_or_default());
        }
        if self.at % SUBTREE != 0 {
            self.end_subtree();
        }
        let (left, right) = self.whole.split_at(left_of(self.len).min(self.whole.len()));
        let right_len = self.len - left.len() * SUBTREE;
        merge_subtrees_root(&merged(left, left.len() * SUBTREE), &merged(right, right_len), Mode::Hash)
    }

    fn zeros_to(&mut self, to: usize) {
        let to = to.min(self.len);
        while self.at < to {
            let begun = self.at % SUBTREE;
            let count = (to - self.at).min(SUBTREE - begun);
            if count == SUBTREE && self.len > SUBTREE {
                self.whole.push(of_zeros(self.at / SUBTREE));
                self.at += SUBTREE;
            } else if let Some(place) = self.part.get_mut(begun..begun + count) {
                place.fill(0);
                self.step(count);
            }
        }
    }

    fn step(&mut self, bytes: usize) {
        self.at += bytes;
        if self.at % SUBTREE == 0 && self.len > SUBTREE {
            self.end_subtree();
        }
    }

    fn end_subtree(&mut self) {
        let start = (self.at - 1) / SUBTREE * SUBTREE;
        let bytes = self.part.get(..self.at - start).unwrap_or_default();
        self.whole.push(subtree(start, bytes));
    }
}

fn subtree(at: usize, bytes: &[u8]) -> ChainingValue {
    Hasher::new().set_input_offset(at as u64).update(bytes).finalize_non_root()
}

fn of_zeros(place: usize) -> ChainingValue {
    let mut known = OF_ZEROS.lock().unwrap_or_else(PoisonError::into_inner);
    for next in known.len()..=place {
        known.push(subtree(next * SUBTREE, &ZEROS));
    }
    known.get(place).copied().unwrap_or_default()
}

/// How many subtrees are left of the root of so many bytes.
fn left_of(len: usize) -> usize {
    usize::try_from(left_subtree_len(len as u64)).unwrap_or(usize::MAX) / SUBTREE
}

/// The hash of subtrees that are `len` bytes.
fn merged(subtrees: &[ChainingValue], len: usize) -> ChainingValue {
    match subtrees {
        [] => ChainingValue::default(),
        [one] => *one,
        _ => {
            let (left, right) = subtrees.split_at(left_of(len).min(subtrees.len()));
            let left_len = left.len() * SUBTREE;
            merge_subtrees_non_root(&merged(left, left_len), &merged(right, len - left_len), Mode::Hash)
        }
    }
}

/// Hash of so many zeros.
pub(crate) fn zeros(len: u64) -> Hash {
    ChunkHasher::new(0..len).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whatever the parts are, the hash is that of the whole.
    fn check(len: usize, start: u64, parts: &[(usize, usize)]) {
        let mut whole = vec![0; len];
        let mut hasher = ChunkHasher::new(start..start + len as u64);
        let mut at = 0;
        for (gap, count) in parts {
            let begin = (at + gap).min(len);
            at = (begin + count).min(len);
            for (i, byte) in whole[begin..at].iter_mut().enumerate() {
                *byte = u8::try_from((i * 7 + begin) % 251).unwrap();
            }
            hasher.add(start + begin as u64, &whole[begin..at]);
        }
        assert_eq!(hasher.finish(), blake3::hash(&whole), "{len} bytes, {parts:?}");
    }

    #[test]
    fn a_chunk_in_parts_has_the_hash_of_the_whole() {
        for len in [0, 1, 4096, SUBTREE - 1, SUBTREE, SUBTREE + 1, 2 * SUBTREE, 3 * SUBTREE, 7 * SUBTREE + 5]
        {
            check(len, 100, &[]);
            check(len, 100, &[(0, len)]);
            check(len, 100, &[(4096, 4096), (8192, SUBTREE), (SUBTREE, 10)]);
            check(len, 100, &[(len.saturating_sub(1), 1)]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_parts_of_any_chunk(
            len in 0_usize..20 * SUBTREE,
            start in 0_u64..1 << 40,
            parts in prop::collection::vec((0_usize..3 * SUBTREE, 0_usize..3 * SUBTREE), 0..8),
        ) {
            check(len, start, &parts);
        }
    }
}
