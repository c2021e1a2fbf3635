//! Who takes the main memory's pages while a stream is read.

use crate::error::{QemuError, Result};
use elision_memory::{FileOffset, PAGE_SIZE, RamBlock};

/// Nothing more is wanted: whoever took the pages knows why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkClosed;

/// Takes pages in any order. One may come again: the last counts.
pub trait PageSink: Send {
    /// The page at an offset of the RAM file.
    fn page(&mut self, offset: FileOffset, bytes: &[u8; PAGE_SIZE]) -> Result<(), SinkClosed>;

    /// The same of a page whose bytes are all alike.
    fn fill(&mut self, offset: FileOffset, byte: u8) -> Result<(), SinkClosed>;
}

/// Lets every page pass.
pub(crate) struct Unwanted;

impl PageSink for Unwanted {
    fn page(&mut self, _: FileOffset, _: &[u8; PAGE_SIZE]) -> Result<(), SinkClosed> {
        Ok(())
    }

    fn fill(&mut self, _: FileOffset, _: u8) -> Result<(), SinkClosed> {
        Ok(())
    }
}

/// Hands pages on and knows which came.
pub(crate) struct Complete<'a> {
    sink: &'a mut dyn PageSink,
    /// One bit for each page.
    seen: Vec<u64>,
    pages: u64,
    missing: u64,
}

impl<'a> Complete<'a> {
    /// For these blocks.
    pub(crate) fn new(sink: &'a mut dyn PageSink, blocks: &[RamBlock]) -> Self {
        let pages = |bytes: u64| bytes.div_ceil(PAGE_SIZE as u64);
        let all = pages(blocks.iter().map(|block| block.end().0).max().unwrap_or(0));
        let words = usize::try_from(all.div_ceil(64)).unwrap_or(usize::MAX);
        let missing = blocks.iter().map(|block| pages(block.len)).sum();
        Self { sink, seen: vec![0; words], pages: all, missing }
    }

    fn see(&mut self, offset: FileOffset) {
        let page = offset.0 / PAGE_SIZE as u64;
        let word = usize::try_from(page / 64).ok().and_then(|i| self.seen.get_mut(i));
        if let Some(word) = word.filter(|_| page < self.pages) {
            let bit = 1 << (page % 64);
            self.missing -= u64::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Every page must have come. `at` is where the stream stands.
    pub(crate) fn check(&self, at: u64) -> Result<()> {
        if self.missing == 0 {
            return Ok(());
        }
        let why = format!("{} pages of the main memory never came", self.missing);
        Err(QemuError::Stream { at, why })
    }
}

impl PageSink for Complete<'_> {
    fn page(&mut self, offset: FileOffset, bytes: &[u8; PAGE_SIZE]) -> Result<(), SinkClosed> {
        self.see(offset);
        self.sink.page(offset, bytes)
    }

    fn fill(&mut self, offset: FileOffset, byte: u8) -> Result<(), SinkClosed> {
        self.see(offset);
        self.sink.fill(offset, byte)
    }
}
