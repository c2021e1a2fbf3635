//! Any part of an image's memory, however the image holds it: what stands behind a restore on demand.
//!
//! ```text
//! chunk 0 | chunk 1 | chunk 2 | ...      of the plain RAM file, `chunk_bytes` each; the last may be shorter
//! ram.img   read at its offset           ram.zst   unpacked           of a link: its own pages, and those of its base
//! ```
//! A chunk is given only if it has the checksum in the manifest, and one of zeros is not read at all. Those of a link come
//! from several files and have no checksum as a whole: like a plain image that is mapped they are read as they are.

use crate::chunk_hasher::zeros;
use crate::packed::Packed;
use crate::ranges::{Runs, common};
use crate::{Image, ImageError};
use blake3::Hash;
use elision_memory::FileOffset;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Reads an image's memory by chunks, from several threads at once.
#[derive(Debug)]
pub struct RamReader {
    source: Source,
    bytes: u64,
    chunk_bytes: u64,
    hashes: Vec<Hash>,
    zeros: Hash,
}

#[derive(Debug)]
enum Source {
    Plain(File),
    Packed(Packed),
    Link { own: File, inherited: Runs, base: Box<RamReader> },
}

/// Chunks of a link, as small as those of compressed images.
const LINK_CHUNK: u64 = 256 << 10;

impl RamReader {
    /// The memory of `image`, whose files it keeps open.
    pub fn open(image: &Image) -> Result<Self, ImageError> {
        let ram = &image.manifest().files.ram;
        if let Some(base) = image.base() {
            let (own, inherited) = (image.open_ram()?, image.inherited()?);
            let source = Source::Link { own, inherited, base: Box::new(Self::open(base)?) };
            let (bytes, chunk_bytes) = (ram.bytes, LINK_CHUNK);
            return Ok(Self { source, bytes, chunk_bytes, hashes: Vec::new(), zeros: zeros(0) });
        }
        let source = if image.is_packed() {
            Source::Packed(image.packed()?)
        } else {
            Source::Plain(image.open_ram()?)
        };
        let (bytes, chunk_bytes) = (ram.bytes, ram.chunk_bytes);
        let hashes = ram.chunk_hashes().unwrap_or_default(); // checked when the image was opened
        Ok(Self { source, bytes, chunk_bytes, hashes, zeros: zeros(chunk_bytes.min(bytes)) })
    }

    /// Length of the plain RAM file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Length of a chunk; the last may be shorter.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.bytes.div_ceil(self.chunk_bytes)
    }

    /// Whether a chunk is known to hold zeros only. That of a short last chunk is not known.
    #[must_use]
    pub fn is_zero(&self, chunk: u64) -> bool {
        self.hash(chunk) == Some(self.zeros) && self.len_of(chunk) == Some(self.chunk_bytes.min(self.bytes))
    }

    /// The bytes of a chunk, in place of what is in `bytes`. What is not as it was written is
    /// [`io::ErrorKind::InvalidData`].
    pub fn read_chunk(&self, chunk: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
        let len = self.len_of(chunk).ok_or(io::ErrorKind::InvalidInput)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        bytes.clear();
        match &self.source {
            _ if self.is_zero(chunk) => {
                bytes.resize(len, 0);
                return Ok(());
            }
            Source::Packed(packed) => packed.unpack_chunk(chunk, bytes)?,
            Source::Plain(file) => {
                bytes.resize(len, 0);
                file.read_exact_at(bytes, chunk * self.chunk_bytes)?;
            }
            Source::Link { .. } => {
                bytes.resize(len, 0);
                return self.read_at(chunk * self.chunk_bytes, bytes);
            }
        }
        let is_whole = self.hash(chunk).is_some_and(|hash| blake3::hash(bytes) == hash);
        if is_whole { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Bytes from an offset of the plain RAM file on, which are not checked unless they are unpacked.
    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let part = |bytes: &mut [u8], start: u64, end: u64| -> io::Result<std::ops::Range<usize>> {
            let place = |at: u64| usize::try_from(at - offset).map_err(io::Error::other);
            let part = place(start)?..place(end)?;
            bytes.get(part.clone()).map(|_| part).ok_or_else(|| io::ErrorKind::InvalidInput.into())
        };
        match &self.source {
            Source::Plain(file) => file.read_exact_at(bytes, offset),
            Source::Packed(_) => {
                let mut plain = Vec::new();
                for chunk in offset / self.chunk_bytes..end.div_ceil(self.chunk_bytes) {
                    self.read_chunk(chunk, &mut plain)?;
                    let first = chunk * self.chunk_bytes;
                    let (from, to) = (first.max(offset), (first + plain.len() as u64).min(end));
                    let place = part(bytes, from, to)?;
                    let skip = usize::try_from(from - first).map_err(io::Error::other)?;
                    let found = plain.get(skip..skip + place.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                    bytes.get_mut(place).unwrap_or_default().copy_from_slice(found);
                }
                Ok(())
            }
            Source::Link { own, inherited, base } => {
                own.read_exact_at(bytes, offset)?;
                for run in common(inherited, &[FileOffset(offset)..FileOffset(end)]) {
                    let place = part(bytes, run.start.0, run.end.0)?;
                    base.read_at(run.start.0, bytes.get_mut(place).unwrap_or_default())?;
                }
                Ok(())
            }
        }
    }

    fn hash(&self, chunk: u64) -> Option<Hash> {
        self.hashes.get(usize::try_from(chunk).ok()?).copied()
    }

    fn len_of(&self, chunk: u64) -> Option<u64> {
        let start = chunk.checked_mul(self.chunk_bytes)?;
        self.bytes.checked_sub(start).filter(|left| *left > 0).map(|left| left.min(self.chunk_bytes))
    }
}
