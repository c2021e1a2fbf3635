//! What an image need not hold, as the one that it builds on has it.
//!
//! ```text
//! the base has hashes of its pages    a page of the copy ─> hash ── the same ──> inherited; the base is not read
//! it has none (early versions)        a page of the copy ─> compared with the base's page
//! ```
//! With hashes most of it is found out while RAM is read (`ram_writer.rs`), and is not even copied then. What is left to be looked at
//! here is what came another way, and late frames.

use crate::page_hashes::PageHashes;
use crate::ranges::{Runs, add, common, pieces, rest};
use crate::{Image, ImageError, RamReader};
use elision_memory::{FileOffset, PAGE_SIZE, Ram, joined};
use rayon::prelude::*;
use std::io;
use std::ops::Range;

const PIECE: usize = 1 << 20;
/// Some of them wait for the base's disk.
const THREADS: usize = 8;

/// The pages of some runs of a copy that are the same in `base`.
pub(crate) fn inherit(
    copy: &Ram,
    runs: &[Range<FileOffset>],
    base: &Image,
    hashes: Option<&PageHashes>,
) -> Result<Runs, ImageError> {
    let failed = |e: io::Error| ImageError::io("read", &base.ram_path(), e);
    let reader = if hashes.is_none() { Some(RamReader::open(base)?) } else { None };
    let one = |piece: Range<FileOffset>| -> io::Result<Runs> {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        let here = bytes(copy, &piece, &mut here)?;
        if let Some(reader) = &reader {
            there.resize(here.len(), 0);
            reader.read_at(piece.start.0, &mut there)?;
        }
        let mut same = Vec::new();
        for (i, page) in here.chunks(PAGE_SIZE).enumerate() {
            let (at, offset) = (i * PAGE_SIZE, FileOffset(piece.start.0 + (i * PAGE_SIZE) as u64));
            let is_same = match hashes {
                Some(hashes) => hashes.is(offset, page),
                None => there.get(at..at + PAGE_SIZE) == Some(page),
            };
            if is_same {
                add(&mut same, offset, PAGE_SIZE);
            }
        }
        Ok(same)
    };
    let parts = runs.par_iter().flat_map_iter(|run| pieces(run, PIECE)).map(one);
    let threads = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build();
    let threads = threads.map_err(|e| failed(io::Error::other(e)))?;
    let parts: Vec<_> = threads.install(|| parts.collect::<io::Result<_>>()).map_err(failed)?;
    Ok(joined(parts.concat()))
}

/// Bytes of the copy, in `buf` where they are not in memory.
fn bytes<'a>(copy: &'a Ram, piece: &Range<FileOffset>, buf: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
    if let Some(bytes) = copy.staged_bytes(&(piece.start.0..piece.end.0)) {
        return Ok(bytes);
    }
    buf.resize(usize::try_from(piece.end.0 - piece.start.0).map_err(io::Error::other)?, 0);
    if copy.read_file(piece.start, buf) { Ok(buf) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// What of `all` is not in `some`.
pub(crate) fn without(all: &[Range<FileOffset>], some: &[Range<FileOffset>]) -> Runs {
    let end = all.last().map_or(0, |run| run.end.0);
    common(all, &rest(some, end))
}
