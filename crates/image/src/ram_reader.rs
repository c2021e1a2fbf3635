//! Any part of an image's memory, however the image holds it: what stands behind a restore on demand.
//!
//! ```text
//! chunk 0 | chunk 1 | chunk 2 | ...      of the plain RAM file, `chunk_bytes` each; the last may be shorter
//! ram.img   read at its offset           ram.zst   unpacked
//! ```
//! A chunk is given only if it has the checksum in the manifest, and one of zeros is not read at all.

use crate::checksum::zeros;
use crate::packed::Packed;
use crate::{Image, ImageError};
use blake3::Hash;
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
}

impl RamReader {
    /// The memory of `image`, whose files it keeps open.
    pub fn open(image: &Image) -> Result<Self, ImageError> {
        let ram = &image.manifest().files.ram;
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
        self.hashes.len() as u64
    }

    /// Whether a chunk is known to hold zeros only. That of a short last chunk is not known.
    #[must_use]
    pub fn is_zero(&self, chunk: u64) -> bool {
        self.hash(chunk) == Some(self.zeros) && self.len_of(chunk) == Some(self.chunk_bytes.min(self.bytes))
    }

    /// The bytes of a chunk, in place of what is in `bytes`. What is not as it was written is
    /// [`io::ErrorKind::InvalidData`].
    pub fn read_chunk(&self, chunk: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
        let (Some(len), Some(hash)) = (self.len_of(chunk), self.hash(chunk)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let len = usize::try_from(len).map_err(io::Error::other)?;
        bytes.clear();
        bytes.resize(len, 0);
        if self.is_zero(chunk) {
            return Ok(());
        }
        match &self.source {
            Source::Plain(file) => file.read_exact_at(bytes, chunk * self.chunk_bytes)?,
            Source::Packed(packed) => packed.unpack_chunk(chunk, bytes)?,
        }
        if blake3::hash(bytes) == hash { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn hash(&self, chunk: u64) -> Option<Hash> {
        self.hashes.get(usize::try_from(chunk).ok()?).copied()
    }

    fn len_of(&self, chunk: u64) -> Option<u64> {
        let start = chunk.checked_mul(self.chunk_bytes)?;
        self.bytes.checked_sub(start).filter(|left| *left > 0).map(|left| left.min(self.chunk_bytes))
    }
}
