//! What an image need not hold, as the one that it builds on has it. It is found out when the VM runs again, in what was copied.
//!
//! ```text
//! a chunk of the copy ─> hash ── the base's chunk has the same one ──> all of it is inherited, and the base is not read
//!                             └─ another one, or none is known ─────> each page is compared with the base's
//! ```
//! So a save takes no more time while the VM stands still than one without a base, and the base is read where the guest has
//! changed, which may be from a slow disk.

use crate::checksum::{Parts, chunk_bytes, zeros};
use crate::manifest::WholeRam;
use crate::ranges::{Runs, add, common, pieces, rest};
use crate::{Image, ImageError, RamReader};
use elision_memory::{FileOffset, PAGE_SIZE, Ram, joined};
use rayon::prelude::*;
use std::io;
use std::ops::Range;

const PIECE: usize = 1 << 20;
/// Some of them wait for the base's disk.
const THREADS: usize = 8;

/// What became of the data of a copy.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// What the image holds itself, ascending.
    pub(crate) data: Runs,
    /// What is the same in the base, ascending.
    pub(crate) inherited: Runs,
    /// Checksums of all that the image is, for the next one.
    pub(crate) whole: WholeRam,
}

/// Finds out what of `data`, the parts of a copy that hold something, is the same in `base`. Only `missing`, what is not written
/// yet, can be inherited. All ascend.
pub(crate) fn inherit(
    copy: &Ram,
    data: &[Range<FileOffset>],
    missing: &[Range<FileOffset>],
    base: &Image,
) -> Result<Inherited, ImageError> {
    let failed = |e: io::Error| ImageError::io("read", &base.ram_path(), e);
    let reader = RamReader::open(base)?;
    let known = base.whole_chunks();
    let len = copy.file_len();
    let chunk = known.as_ref().map_or_else(|| chunk_bytes(len), |(chunk, _)| *chunk);
    let empty = zeros(chunk.min(len));
    let parts = (0..len.div_ceil(chunk)).into_par_iter().map(|i| {
        let range = FileOffset(i * chunk)..FileOffset(((i + 1) * chunk).min(len));
        let data = common(data, std::slice::from_ref(&range));
        if data.is_empty() && range.end.0 - range.start.0 == chunk.min(len) {
            return Ok((Vec::new(), Vec::new(), empty));
        }
        let hash = hash(copy, &range, &data)?;
        let missing = common(&data, missing);
        let index = usize::try_from(i).map_err(io::Error::other)?;
        let of_base = known.as_ref().and_then(|(_, hashes)| hashes.get(index));
        let inherited = match of_base {
            Some(of_base) if *of_base == hash => missing,
            _ => same(copy, &missing, &reader)?,
        };
        Ok((without(&data, &inherited), inherited, hash))
    });
    let threads = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build();
    let threads = threads.map_err(|e| failed(io::Error::other(e)))?;
    let parts: Vec<_> = threads.install(|| parts.collect::<io::Result<_>>()).map_err(failed)?;
    let (mut own, mut inherited, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
    for (data, same, hash) in parts {
        own.extend(data);
        inherited.extend(same);
        hashes.push(hash);
    }
    Ok(Inherited { data: joined(own), inherited: joined(inherited), whole: WholeRam::new(chunk, &hashes) })
}

/// Checksum of a chunk of a copy that is zero outside `data`.
fn hash(copy: &Ram, chunk: &Range<FileOffset>, data: &[Range<FileOffset>]) -> io::Result<blake3::Hash> {
    let mut hash = Parts::new(chunk.start.0..chunk.end.0);
    let mut buf = Vec::new();
    for piece in pieces(chunk, PIECE).filter(|piece| !common(data, std::slice::from_ref(piece)).is_empty()) {
        hash.add(piece.start.0, bytes(copy, &piece, &mut buf)?);
    }
    Ok(hash.finish())
}

/// The pages of `runs` that are the same in the base.
fn same(copy: &Ram, runs: &[Range<FileOffset>], base: &RamReader) -> io::Result<Runs> {
    let (mut same, mut buf, mut there) = (Vec::new(), Vec::new(), Vec::new());
    for piece in runs.iter().flat_map(|run| pieces(run, PIECE)) {
        let here = bytes(copy, &piece, &mut buf)?;
        there.resize(here.len(), 0);
        base.read_at(piece.start.0, &mut there)?;
        let pages = here.chunks(PAGE_SIZE).zip(there.chunks(PAGE_SIZE));
        for (offset, _) in (piece.start.0..).step_by(PAGE_SIZE).zip(pages).filter(|(_, (a, b))| a == b) {
            add(&mut same, FileOffset(offset), PAGE_SIZE);
        }
    }
    Ok(same)
}

/// Bytes of the copy, in `buf` where they are not in memory.
fn bytes<'a>(copy: &'a Ram, piece: &Range<FileOffset>, buf: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
    if let Some(bytes) = copy.staged_bytes(&(piece.start.0..piece.end.0)) {
        return Ok(bytes);
    }
    buf.resize(usize::try_from(piece.end.0 - piece.start.0).map_err(io::Error::other)?, 0);
    if copy.read_file(piece.start, buf) { Ok(buf) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// What of `all` is not in `some`, a part of it.
fn without(all: &[Range<FileOffset>], some: &[Range<FileOffset>]) -> Runs {
    let end = all.last().map_or(0, |run| run.end.0);
    common(all, &rest(some, end))
}
