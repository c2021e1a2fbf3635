//! `working-set.bin`: the chunks of RAM that a restored VM needs first, so that the next restore reads them ahead.
//!
//! ```text
//! [ELISIONW][u32 version 1][u32 number of chunks][u64 bytes of a chunk][u32 chunk]...     little-endian
//! ```
//! The chunks stand in the order in which they were needed. The file is a hint: one that does not fit the image
//! is as good as none.

use crate::{Image, ImageError, WORKING_SET};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};

const MAGIC: &[u8; 8] = b"ELISIONW";
const VERSION: u32 = 1;

impl Image {
    /// The chunks that a restored VM needed, in their order; `None` if that was not recorded, or not for this image.
    pub fn working_set(&self) -> Result<Option<Vec<u64>>, ImageError> {
        let path = self.dir().join(WORKING_SET);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ImageError::io("open", &path, e)),
        };
        let mut bytes = Vec::new();
        let most = self.head(&[]).len() as u64 + 4 * self.chunk_count();
        file.take(most + 1).read_to_end(&mut bytes).map_err(|e| ImageError::io("read", &path, e))?;
        Ok(self.decode(&bytes))
    }

    /// Records the chunks, in place of those that were recorded before.
    pub fn record_working_set(&self, chunks: &[u64]) -> Result<(), ImageError> {
        let path = self.dir().join(WORKING_SET);
        let rows = chunks.iter().filter_map(|chunk| u32::try_from(*chunk).ok()).flat_map(u32::to_le_bytes);
        let bytes: Vec<u8> = self.head(chunks).into_iter().chain(rows).collect();
        // Whoever reads it meanwhile finds that it does not fit.
        std::fs::write(&path, bytes).map_err(|e| ImageError::io("write", &path, e))
    }

    fn head(&self, chunks: &[u64]) -> Vec<u8> {
        let count = u32::try_from(chunks.len()).unwrap_or(u32::MAX).to_le_bytes();
        let chunk_bytes = self.manifest().files.ram.chunk_bytes.to_le_bytes();
        [&MAGIC[..], &VERSION.to_le_bytes(), &count, &chunk_bytes].concat()
    }

    fn decode(&self, bytes: &[u8]) -> Option<Vec<u64>> {
        let (head, rows) = bytes.split_at_checked(self.head(&[]).len())?;
        let word = |row: &[u8]| row.try_into().map(u32::from_le_bytes).map(u64::from).ok();
        let chunks = rows.chunks(4).map(word).collect::<Option<Vec<_>>>()?;
        let distinct: BTreeSet<_> = chunks.iter().collect();
        let fits = distinct.len() == chunks.len() && chunks.iter().all(|chunk| *chunk < self.chunk_count());
        (fits && head == self.head(&chunks)).then_some(chunks)
    }

    fn chunk_count(&self) -> u64 {
        let ram = &self.manifest().files.ram;
        ram.bytes.div_ceil(ram.chunk_bytes.max(1))
    }
}
