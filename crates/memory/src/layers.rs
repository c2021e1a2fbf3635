//! Parts of a copy of RAM that are not in it but in files at rest.
//!
//! ```text
//! page of the copy    0    1    2    3    4    5
//! of_page             0    1    1    0    2    1        0: the copy's own memory, n: the nth file, at the same offset
//! ```

use crate::mapping::Mapping;
use crate::{FileOffset, PAGE_SIZE, RamPiece};
use std::fs::File;
use std::io;
use std::ops::Range;

/// Which pages of a copy are in which file.
#[derive(Debug)]
pub(crate) struct Layers {
    files: Vec<Mapping>,
    of_page: Vec<u16>,
}

impl Layers {
    /// Of a copy of `len` bytes. Parts consist of pages, and each file is as long as the copy.
    pub(crate) fn new(len: usize, parts: Vec<(File, Vec<Range<FileOffset>>)>) -> io::Result<Self> {
        let mut layers = Self { files: Vec::new(), of_page: vec![0; len.div_ceil(PAGE_SIZE)] };
        let page = |offset: FileOffset| usize::try_from(offset.0).unwrap_or(usize::MAX) / PAGE_SIZE;
        for (file, parts) in parts {
            let piece = RamPiece { offset: FileOffset(0), len: len as u64, file };
            if piece.file.metadata()?.len() < piece.len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mapping = Mapping::shared(len, &[piece])?;
            mapping.reads_are_scattered()?;
            layers.files.push(mapping);
            let number = u16::try_from(layers.files.len()).map_err(io::Error::other)?;
            for part in parts {
                let pages = layers.of_page.get_mut(page(part.start)..page(part.end));
                pages.ok_or(io::ErrorKind::InvalidInput)?.fill(number);
            }
        }
        Ok(layers)
    }

    /// Where a byte is.
    #[inline]
    fn at<'a>(&'a self, own: &'a Mapping, at: usize) -> Option<&'a Mapping> {
        match self.of_page.get(at / PAGE_SIZE)? {
            0 => Some(own),
            n => self.files.get(usize::from(*n) - 1),
        }
    }

    /// Whether all of it is in the copy's own memory.
    pub(crate) fn are_own(&self, part: &Range<usize>) -> bool {
        let pages = self.of_page.get(part.start / PAGE_SIZE..part.end.div_ceil(PAGE_SIZE));
        pages.is_some_and(|pages| pages.iter().all(|number| *number == 0))
    }

    /// An aligned word.
    #[inline]
    pub(crate) fn word(&self, own: &Mapping, at: usize) -> Option<u64> {
        self.at(own, at)?.word(at)
    }

    /// Copies bytes out; `false` past the end.
    pub(crate) fn read(&self, own: &Mapping, mut at: usize, mut out: &mut [u8]) -> bool {
        while !out.is_empty() {
            let (part, rest) = out.split_at_mut(out.len().min(PAGE_SIZE - at % PAGE_SIZE));
            if !self.at(own, at).is_some_and(|mapping| mapping.read(at, part)) {
                return false;
            }
            at = at.saturating_add(part.len());
            out = rest;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn each_page_is_read_from_its_file() {
        const PAGES: usize = 6;
        let file = |byte: u8, pages: usize| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&vec![byte; pages * PAGE_SIZE], 0).unwrap();
            file
        };
        let part = |pages: Range<usize>| {
            FileOffset((pages.start * PAGE_SIZE) as u64)..FileOffset((pages.end * PAGE_SIZE) as u64)
        };
        let len = PAGES * PAGE_SIZE;
        let mut own = Mapping::anonymous(len).unwrap();
        assert!(own.write(0, &vec![3; len]));
        let parts = vec![(file(1, PAGES), vec![part(1..3), part(5..6)]), (file(2, PAGES), vec![part(4..5)])];
        let layers = Layers::new(len, parts).unwrap();
        let expected = [3, 1, 1, 3, 2, 1];
        let words = (0..PAGES).map(|page| layers.word(&own, page * PAGE_SIZE + 8).unwrap().to_le_bytes()[0]);
        assert_eq!(words.collect::<Vec<_>>(), expected);
        let is_own = |pages: Range<usize>| layers.are_own(&(pages.start * PAGE_SIZE..pages.end * PAGE_SIZE));
        assert_eq!([0..1, 3..4, 2..4, 5..7].map(is_own), [true, true, false, false]);
        let mut bytes = vec![0; len - 200];
        assert!(layers.read(&own, 100, &mut bytes));
        for (at, byte) in (100..).zip(bytes) {
            assert_eq!(byte, expected[at / PAGE_SIZE], "at {at}");
        }
        assert!(!layers.read(&own, len - 8, &mut [0; 16]), "past the end");
        assert_eq!(layers.word(&own, len), None);
        assert!(Layers::new(len, vec![(file(1, PAGES - 1), vec![])]).is_err(), "a short file");
        assert!(Layers::new(len, vec![(file(1, PAGES), vec![part(5..7)])]).is_err(), "past the end");
    }
}
