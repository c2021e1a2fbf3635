//! What was copied into memory goes to `ram.img`, when the VM runs again; checksums are made on the way.
//!
//! ```text
//! room for all runs is taken in the file, so that writing in parallel needs no more than the disk
//! a chunk   each run of data, 1 MiB at a time -> hash -> write, past the page cache where that works
//! ```

use crate::checksum;
use crate::chunk_hasher::{ChunkHasher, zeros};
use crate::page_hashes::HashFile;
use crate::ranges::within;
use crate::target::{Target, pages};
use blake3::Hash;
use elision_memory::{FileOffset, Ram};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use zerocopy::IntoBytes;

const PIECE: u64 = 1 << 20;
/// They wait for the disk for the most part.
const THREADS: usize = 8;

/// What the file is to hold.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) copy: &'a Ram,
    /// What of it is not zero in the file, ascending.
    pub(crate) data: &'a [Range<FileOffset>],
    /// Hashes of these pages go there, but for those of chunks whose checksum is known.
    pub(crate) hash_file: &'a HashFile,
}

/// Writes the runs `missing`, and hashes each chunk. Chunks whose checksum is `known`, by their number, miss nothing. Both
/// ascend.
pub(crate) fn drain(
    source: Source<'_>,
    target: Target<'_>,
    missing: &[Range<FileOffset>],
    known: &[(u64, Hash)],
    progress: &(dyn Fn(u64) + Sync),
) -> io::Result<(u64, Vec<Hash>)> {
    target.reserve(missing)?;
    let Source { copy, data, .. } = source;
    let len = copy.file_len();
    let chunk = checksum::chunk_bytes(len);
    let empty = zeros(chunk.min(len));
    let next = AtomicU64::new(0);
    let worker = || -> io::Result<Vec<(u64, Hash)>> {
        let mut pages = pages(usize::try_from(PIECE).unwrap_or(0));
        let mut hashes = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let start = i.saturating_mul(chunk);
            if start >= len {
                return Ok(hashes);
            }
            let range = start..(start + chunk).min(len);
            let whole = range.end - range.start == chunk.min(len);
            let found = known.binary_search_by_key(&i, |(chunk, _)| *chunk);
            let hash = if let Some((_, hash)) = found.ok().and_then(|at| known.get(at)) {
                *hash
            } else if whole && within(data, &range).next().is_none() {
                empty
            } else {
                let end = |_: &_| next.store(u64::MAX / 2, Ordering::Relaxed);
                one(source, target, missing, range.clone(), pages.as_mut_bytes()).inspect_err(end)?
            };
            hashes.push((i, hash));
            progress(range.end - range.start);
        }
    };
    let mut hashes = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
        let mut all = Ok(Vec::new());
        for thread in threads {
            let more = thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread that wrote is gone")));
            all = all.and_then(|mut all| more.map(|more| all.extend(more)).map(|()| all));
        }
        all
    })?;
    hashes.sort_by_key(|(i, _)| *i);
    Ok((chunk, hashes.into_iter().map(|(_, hash)| hash).collect()))
}

/// Writes and hashes one chunk.
fn one(
    source: Source<'_>,
    target: Target<'_>,
    missing: &[Range<FileOffset>],
    chunk: Range<u64>,
    buf: &mut [u8],
) -> io::Result<Hash> {
    let Source { copy, data, hash_file } = source;
    let mut hasher = ChunkHasher::new(chunk.clone());
    for run in within(data, &chunk) {
        let mut at = run.start;
        while at < run.end {
            let piece = at..(at + PIECE).min(run.end);
            let bytes = match copy.staged_bytes(&piece) {
                Some(memory) => memory,
                None => {
                    let part = usize::try_from(piece.end - at).ok().and_then(|len| buf.get_mut(..len));
                    let part = part.ok_or(io::ErrorKind::InvalidInput)?;
                    if !copy.read_file(FileOffset(at), part) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    part
                }
            };
            hasher.add(at, bytes);
            hash_file.add(at, bytes)?;
            for run in within(missing, &piece) {
                target.write(slice(bytes, at, &run)?, run.start)?;
            }
            at = piece.end;
        }
    }
    Ok(hasher.finish())
}

/// The bytes of a run, in those from an offset on.
fn slice<'a>(bytes: &'a [u8], from: u64, run: &Range<u64>) -> io::Result<&'a [u8]> {
    let of = |offset: u64| usize::try_from(offset - from).unwrap_or(usize::MAX);
    bytes.get(of(run.start)..of(run.end)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
