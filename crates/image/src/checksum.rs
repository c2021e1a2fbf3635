//! BLAKE3 checksums of an image's files.
//!
//! `ram.img` is hashed by chunks, in parallel, after the VM runs again: its pages are still in the page
//! cache, so this costs a pass over memory and nothing of the pause. What holds no data is not read, and costs next to nothing (`chunk_hasher.rs`).
//!
//! ```text
//! ram.img   [ chunk 0 ][ chunk 1 ][ ... ][ last, may be shorter ]
//!              |          |                  |
//! chunks     BLAKE3     BLAKE3             BLAKE3        32 bytes each
//!              +----------+------------------+-> root = BLAKE3 of all of them, one after another
//! ```

use crate::chunk_hasher::{ChunkHasher, zeros};
use crate::ranges::within;
use blake3::Hash;
use elision_memory::FileOffset;
use rayon::prelude::*;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Smallest chunk. It doubles until a file has at most [`MAX_CHUNKS`].
pub(crate) const MIN_CHUNK: u64 = 4 << 20;
/// Most chunks of one file, so that the manifest stays small.
pub(crate) const MAX_CHUNKS: u64 = 4096;
const BUFFER: usize = 256 << 10;

/// The same of a compressed file: a restore on demand unpacks a chunk for each page that it is the first to need.
pub(crate) const MIN_CHUNK_PACKED: u64 = 256 << 10;
/// 4 MiB in the manifest.
pub(crate) const MAX_CHUNKS_PACKED: u64 = 65536;

/// Chunk length for a file of `len` bytes.
pub(crate) fn chunk_bytes(len: u64) -> u64 {
    doubled(MIN_CHUNK, MAX_CHUNKS, len)
}

/// Chunk length for a compressed file of `len` bytes unpacked.
pub(crate) fn chunk_bytes_packed(len: u64) -> u64 {
    doubled(MIN_CHUNK_PACKED, MAX_CHUNKS_PACKED, len)
}

fn doubled(mut chunk: u64, most: u64, len: u64) -> u64 {
    while len.div_ceil(chunk) > most {
        chunk *= 2;
    }
    chunk
}

/// Hashes every chunk; `data` are the parts that may hold something else than zeros, ascending. The others are not read.
pub(crate) fn chunk_hashes(
    file: &File,
    len: u64,
    chunk: u64,
    data: &[Range<FileOffset>],
    progress: &(dyn Fn(u64) + Sync),
) -> io::Result<Vec<Hash>> {
    let empty = zeros(chunk.min(len));
    (0..len.div_ceil(chunk))
        .into_par_iter()
        .map(|i| {
            let range = i * chunk..((i + 1) * chunk).min(len);
            let mut parts = within(data, &range).peekable();
            let is_empty = parts.peek().is_none() && range.end - range.start == chunk.min(len);
            let hash = if is_empty { Ok(empty) } else { hash_parts(file, range.clone(), parts) };
            progress(range.end - range.start);
            hash
        })
        .collect()
}

/// Hash of all chunk hashes.
pub(crate) fn root(chunks: &[Hash]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for chunk in chunks {
        hasher.update(chunk.as_bytes());
    }
    hasher.finalize()
}

/// Hash of a whole file, and its length.
pub(crate) fn hash_file(mut file: &File) -> io::Result<(Hash, u64)> {
    let (mut hasher, mut buf, mut len) = (blake3::Hasher::new(), vec![0; BUFFER], 0);
    loop {
        match file.read(&mut buf) {
            Ok(0) => return Ok((hasher.finalize(), len)),
            Ok(n) => {
                hasher.update(buf.get(..n).unwrap_or_default());
                len += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn hash_parts(file: &File, chunk: Range<u64>, parts: impl Iterator<Item = Range<u64>>) -> io::Result<Hash> {
    let (mut hasher, mut buf) = (ChunkHasher::new(chunk), vec![0; BUFFER]);
    for part in parts {
        let mut at = part.start;
        while at < part.end {
            let want = usize::try_from(part.end - at).unwrap_or(BUFFER).min(BUFFER);
            let bytes = buf.get_mut(..want).unwrap_or_default();
            file.read_exact_at(bytes, at)?;
            hasher.add(at, bytes);
            at += want as u64;
        }
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipping_holes_gives_the_same_hashes() {
        let file = tempfile::tempfile().unwrap();
        let len = 2 * MIN_CHUNK + 4096;
        file.set_len(len).unwrap();
        file.write_all_at(b"data", MIN_CHUNK + 5).unwrap();
        let all = chunk_hashes(&file, len, MIN_CHUNK, &[FileOffset(0)..FileOffset(len)], &|_| ()).unwrap();
        let known = [FileOffset(MIN_CHUNK)..FileOffset(MIN_CHUNK + 4096)];
        assert_eq!(chunk_hashes(&file, len, MIN_CHUNK, &known, &|_| ()).unwrap(), all);
        assert_ne!(chunk_hashes(&file, len, MIN_CHUNK, &[], &|_| ()).unwrap(), all, "control: data counts");
        assert_eq!(all[2], blake3::hash(&[0; 4096]));
    }

    #[test]
    fn chunks_stay_few() {
        assert_eq!(chunk_bytes(1), MIN_CHUNK);
        assert_eq!(chunk_bytes(MIN_CHUNK * MAX_CHUNKS), MIN_CHUNK);
        assert_eq!(chunk_bytes(MIN_CHUNK * MAX_CHUNKS + 1), 2 * MIN_CHUNK);
        assert!((1_u64 << 52).div_ceil(chunk_bytes(1 << 52)) <= MAX_CHUNKS);
    }
}
