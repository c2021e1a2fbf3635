//! The RAM file as one or several files: a VM whose RAM comes from several memory backends has one for each.
//!
//! ```text
//! RAM file   0 [    piece 0    ]  gap  [ piece 1 ]      offsets of the RAM file
//!                   a file              another file    each from its first byte on
//! ```

use crate::extents::{extents, extents_since};
use crate::{FileOffset, MemoryError, RamLayout};
use std::fs::File;
use std::ops::Range;

/// A file that holds a part of the RAM file.
#[derive(Debug)]
pub struct RamPiece {
    /// Where its first byte stands in the RAM file.
    pub offset: FileOffset,
    /// How much of it belongs there, in bytes.
    pub len: u64,
    /// The file.
    pub file: File,
}

impl RamPiece {
    /// A file that is all of the RAM that a layout describes.
    pub(crate) fn whole(file: &File, layout: &RamLayout) -> Result<Self, MemoryError> {
        Ok(Self { offset: FileOffset(0), len: layout.file_len(), file: file.try_clone()? })
    }

    /// A file must have what is mapped of it: who touches the rest is killed.
    pub(crate) fn check(&self) -> Result<(), MemoryError> {
        let found = self.file.metadata()?.len();
        if found < self.len { Err(MemoryError::Short { found, needed: self.len }) } else { Ok(()) }
    }
}

/// The parts that hold data, ascending, for pieces that ascend.
pub(crate) fn populated(pieces: &[RamPiece]) -> Vec<Range<FileOffset>> {
    pieces.iter().flat_map(|piece| shifted(extents(&piece.file, 0..piece.len), piece)).collect()
}

/// The same when `earlier` was the answer a while ago.
pub(crate) fn populated_since(pieces: &[RamPiece], earlier: &[Range<FileOffset>]) -> Vec<Range<FileOffset>> {
    let of = |piece: &RamPiece| {
        let (start, end) = (piece.offset.0, piece.offset.0 + piece.len);
        let within = earlier.iter().map(|part| part.start.0.max(start)..part.end.0.min(end));
        let within = within.filter(|part| part.start < part.end);
        let within: Vec<_> = within.map(|part| part.start - start..part.end - start).collect();
        shifted(extents_since(&piece.file, piece.len, &within), piece)
    };
    pieces.iter().flat_map(of).collect()
}

/// Parts of a piece's file as parts of the RAM file.
fn shifted(parts: Vec<Range<u64>>, piece: &RamPiece) -> impl Iterator<Item = Range<FileOffset>> + use<> {
    let start = piece.offset.0;
    parts.into_iter().map(move |part| FileOffset(start + part.start)..FileOffset(start + part.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const MIB: u64 = 1 << 20;

    fn piece(offset: u64, len: u64, data: &[u64]) -> RamPiece {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        data.iter().for_each(|at| file.write_all_at(&[7; 4096], *at).unwrap());
        RamPiece { offset: FileOffset(offset), len, file }
    }

    fn page(at: u64) -> Range<FileOffset> {
        FileOffset(at)..FileOffset(at + 4096)
    }

    #[test]
    fn data_of_each_file_is_found_at_its_place() {
        let pieces = [piece(0, MIB, &[8192]), piece(2 * MIB, MIB, &[0, MIB - 4096])];
        let first = populated(&pieces);
        assert_eq!(first, [page(8192), page(2 * MIB), page(3 * MIB - 4096)]);
        assert_eq!(populated_since(&pieces, &first), first);
        pieces[1].file.write_all_at(&[7; 4096], MIB / 2).unwrap();
        assert_eq!(populated_since(&pieces, &first), populated(&pieces));
        assert_eq!(populated(&pieces).len(), 4);
        // What was one part then may reach over the end of a piece.
        let over = [FileOffset(0)..FileOffset(3 * MIB)];
        let both = [FileOffset(0)..FileOffset(MIB), FileOffset(2 * MIB)..FileOffset(3 * MIB)];
        assert_eq!(populated_since(&pieces, &over), both);
    }

    #[test]
    fn a_file_that_is_too_short_is_named() {
        let mut short = piece(0, MIB, &[]);
        short.check().unwrap();
        short.len = MIB + 1;
        assert!(matches!(short.check(), Err(MemoryError::Short { found: MIB, .. })));
    }
}
