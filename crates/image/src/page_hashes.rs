//! A hash of each page, by which the next image of the same VM finds out what it need not hold, without reading this one.
//!
//! ```text
//! page-hashes.bin   [ key, 32 bytes | zeros to 4096 ][ page 0 ][ page 1 ] ... [ last page ]      16 bytes each
//!                                                         0       hash         0: not held here: zero, or inherited
//! ```
//! The hash is HighwayHash (Alakuijala, Cox and Wassenberg, 2016), which is made for keys that nobody who chooses what is hashed
//! knows: a guest cannot make two pages that look the same. All images of a chain have one key. Empty parts of the file
//! are holes. What is damaged is found by the checksums of chunks as ever, these hashes find only what is the same.

use crate::{Image, ImageError, PAGE_HASHES};
use elision_memory::{FileOffset, PAGE_SIZE};
use highway::{HighwayHash, HighwayHasher};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const PAGE: u64 = PAGE_SIZE as u64;
/// Where the first hash stands.
const HEAD: u64 = PAGE;
const HASH: usize = 16;

/// What the hashes of a chain depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// One that nobody knows.
    pub(crate) fn fresh() -> io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Self(bytes))
    }

    fn hash(self, page: &[u8]) -> [u8; HASH] {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(self.0.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        let [low, high] = HighwayHasher::new(highway::Key(words)).hash128(page);
        (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
    }
}

/// Length of the file for so many bytes of RAM.
pub(crate) fn file_bytes(ram: u64) -> u64 {
    HEAD.saturating_add(ram.div_ceil(PAGE).saturating_mul(HASH as u64))
}

/// Where the hash of the page at an offset stands.
fn place(offset: FileOffset) -> u64 {
    HEAD.saturating_add(offset.0 / PAGE * HASH as u64)
}

/// The hashes of all of an image's RAM, whatever images it comes from.
#[derive(Debug)]
pub(crate) struct PageHashes {
    pub(crate) key: Key,
    /// As they stand in a file.
    bytes: Vec<u8>,
}

impl PageHashes {
    /// Whether the page at an offset is this one, which is not zero.
    #[inline]
    pub(crate) fn is(&self, offset: FileOffset, page: &[u8]) -> bool {
        let at = usize::try_from(place(offset)).unwrap_or(usize::MAX);
        let hash = self.bytes.get(at..at.saturating_add(HASH));
        hash.is_some_and(|hash| hash != [0; HASH] && hash == self.key.hash(page))
    }

    /// Takes over those of some pages.
    fn inherit(&mut self, base: &Self, pages: &Range<FileOffset>) {
        let place = |offset| usize::try_from(place(offset)).unwrap_or(usize::MAX);
        let part = place(pages.start)..place(pages.end);
        if let (Some(to), Some(from)) = (self.bytes.get_mut(part.clone()), base.bytes.get(part)) {
            to.copy_from_slice(from);
        }
    }
}

impl Image {
    /// The hashes of all its RAM. `None` if an image that it is of has none, or under another key: early versions wrote none.
    pub(crate) fn page_hashes(&self) -> Result<Option<PageHashes>, ImageError> {
        let Some(mut hashes) = self.own_hashes()? else { return Ok(None) };
        if let Some(base) = self.base() {
            let Some(base) = base.page_hashes()?.filter(|base| base.key == hashes.key) else {
                return Ok(None);
            };
            self.inherited()?.iter().for_each(|pages| hashes.inherit(&base, pages));
        }
        Ok(Some(hashes))
    }

    fn own_hashes(&self) -> Result<Option<PageHashes>, ImageError> {
        let Some(sum) = &self.manifest().files.page_hashes else { return Ok(None) };
        let bytes = self.read_whole(PAGE_HASHES, sum)?;
        let key = bytes.first_chunk().copied().map(Key);
        let key = key.ok_or_else(|| ImageError::Damaged(self.dir().join(PAGE_HASHES)))?;
        Ok(Some(PageHashes { key, bytes }))
    }
}

/// The file of an image that is being written.
#[derive(Debug)]
pub(crate) struct HashFile {
    file: File,
    key: Key,
}

impl HashFile {
    /// In an empty file, for so many bytes of RAM.
    pub(crate) fn new(file: File, key: Key, ram: u64) -> io::Result<Self> {
        file.set_len(file_bytes(ram))?;
        file.write_all_at(&key.0, 0)?;
        Ok(Self { file, key })
    }

    /// Adds pages that the image holds, none of which is zero.
    pub(crate) fn add(&self, offset: u64, pages: &[u8]) -> io::Result<()> {
        let hashes: Vec<u8> = pages.chunks(PAGE_SIZE).flat_map(|page| self.key.hash(page)).collect();
        self.file.write_all_at(&hashes, place(FileOffset(offset)))
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}
