//! BLAKE3 checksums of an image's files.
//!
//! `ram.img` is hashed by chunks, in parallel, after the VM runs again: its pages are still in the page
//! cache, so this costs a pass over memory and nothing of the pause. A chunk without data is not read.
//!
//! ```text
//! ram.img   [ chunk 0 ][ chunk 1 ][ ... ][ last, may be shorter ]
//!              |          |                  |
//! chunks     BLAKE3     BLAKE3             BLAKE3        32 bytes each
//!              +----------+------------------+-> root = BLAKE3 of all of them, one after another
//! ```

use blake3::Hash;
use elision_memory::{FileOffset, PAGE_SIZE};
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
static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

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

/// Hashes every chunk; `data` are the parts that may hold something else than zeros, ascending.
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
            let start = i * chunk;
            let end = (start + chunk).min(len);
            let next = data.partition_point(|part| part.end.0 <= start);
            let hash = if data.get(next).is_some_and(|part| part.start.0 < end) {
                hash_range(file, start..end)
            } else if end - start == chunk.min(len) {
                Ok(empty)
            } else {
                Ok(zeros(end - start))
            };
            progress(end - start);
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

fn hash_range(file: &File, range: Range<u64>) -> io::Result<Hash> {
    let (mut hasher, mut buf, mut at) = (blake3::Hasher::new(), vec![0; BUFFER], range.start);
    while at < range.end {
        let want = usize::try_from(range.end - at).unwrap_or(BUFFER).min(BUFFER);
        let part = buf.get_mut(..want).unwrap_or_default();
        file.read_exact_at(part, at)?;
        hasher.update(part);
        at += want as u64;
    }
    Ok(hasher.finalize())
}

/// Hash of a chunk that comes in parts, ascending, with zeros between them.
pub(crate) struct Parts {
    hasher: blake3::Hasher,
    at: u64,
    end: u64,
}

impl Parts {
    pub(crate) fn new(chunk: Range<u64>) -> Self {
        Self { hasher: blake3::Hasher::new(), at: chunk.start, end: chunk.end }
    }

    pub(crate) fn add(&mut self, offset: u64, bytes: &[u8]) {
        self.zeros_to(offset);
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
    }

    pub(crate) fn finish(mut self) -> Hash {
        self.zeros_to(self.end);
        self.hasher.finalize()
    }

    fn zeros_to(&mut self, offset: u64) {
        while self.at < offset {
            let len = (offset - self.at).min(PAGE_SIZE as u64);
            self.hasher.update(usize::try_from(len).ok().and_then(|len| ZEROS.get(..len)).unwrap_or(&ZEROS));
            self.at += len;
        }
    }
}

/// Hash of so many zeros.
pub(crate) fn zeros(len: u64) -> Hash {
    let (mut hasher, buf, mut left) = (blake3::Hasher::new(), vec![0; BUFFER], len);
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        hasher.update(buf.get(..part).unwrap_or_default());
        left -= part as u64;
    }
    hasher.finalize()
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
    fn a_chunk_in_parts_has_the_hash_of_the_whole() {
        let whole = [vec![0; 5000], vec![7; 4096], vec![0; 100], vec![9; 10], vec![0; 9000]].concat();
        let mut parts = Parts::new(100..100 + whole.len() as u64);
        parts.add(5100, &[7; 4096]);
        parts.add(5100 + 4196, &[9; 10]);
        assert_eq!(parts.finish(), blake3::hash(&whole));
        assert_eq!(Parts::new(0..9).finish(), zeros(9));
    }

    #[test]
    fn chunks_stay_few() {
        assert_eq!(chunk_bytes(1), MIN_CHUNK);
        assert_eq!(chunk_bytes(MIN_CHUNK * MAX_CHUNKS), MIN_CHUNK);
        assert_eq!(chunk_bytes(MIN_CHUNK * MAX_CHUNKS + 1), 2 * MIN_CHUNK);
        assert!((1_u64 << 52).div_ceil(chunk_bytes(1 << 52)) <= MAX_CHUNKS);
    }
}
