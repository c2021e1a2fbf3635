//! RAM compressed: `ram.zst`, a zstd frame for each chunk of the RAM file and a table of them.
//!
//! ```text
//! [frame 0][frame 1] ... [skippable frame: length of each frame, packed and unpacked; their number]
//! ```
//! The table is that of zstd's seekable format (`contrib/seekable_format` of zstd), so that `zstd -d` gives the plain RAM
//! file, and whoever knows the format finds each part of it. A frame carries its own checksum: what is damaged is
//! not unpacked.

use crate::chunk_hasher::zeros;
use crate::page_hashes::HashFile;
use crate::ram_writer::nonzero;
use blake3::Hash;
use elision_memory::{FileOffset, Ram};
use rayon::prelude::*;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::compress_bound;

const SKIPPABLE: u32 = 0x184D_2A5E;
const SEEKABLE: u32 = 0x8F92_EAB1;
/// What a thread packs at a time, if chunks are small.
const BATCH: u64 = 4 << 20;
/// A row: two lengths.
const ROW: usize = 8;
/// What stands before the rows, and after them: number of frames, flags, [`SEEKABLE`].
const HEAD: usize = 8;
const FOOT: usize = 9;

/// Compresses the RAM file that `copy` holds, and hashes its chunks and pages; all that is not zero is in `data`, which ascends.
pub(crate) fn pack(
    copy: &Ram,
    data: &[Range<FileOffset>],
    chunk: u64,
    level: i32,
    out: &mut impl Write,
    hash_file: &HashFile,
    progress: &(dyn Fn(u64) + Sync),
) -> io::Result<Vec<Hash>> {
    let len = copy.file_len();
    let empty = (zeros(chunk.min(len)), compressor(level)?.compress(&vec![0; size(chunk.min(len))?])?);
    let one =
        |worker: &mut io::Result<(Compressor<'_>, Vec<u8>)>, i: u64| -> io::Result<(Hash, Vec<u8>, u64)> {
            let range = i * chunk..((i + 1) * chunk).min(len);
            let bytes = range.end - range.start;
            let next = data.partition_point(|part| part.end.0 <= range.start);
            let is_empty = data.get(next).is_none_or(|part| part.start.0 >= range.end);
            progress(bytes);
            if is_empty && bytes == chunk.min(len) {
                return Ok((empty.0, empty.1.clone(), bytes));
            }
            let (compressor, buf) = worker.as_mut().map_err(|e| io::Error::from(e.kind()))?;
            let buf = buf.get_mut(..size(bytes)?).ok_or(io::ErrorKind::InvalidInput)?;
            let plain = match copy.staged_bytes(&range) {
                Some(memory) => memory,
                None if copy.read_file(FileOffset(range.start), buf) => buf,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            for run in nonzero(plain) {
                hash_file.add(range.start + run.start as u64, plain.get(run).unwrap_or_default())?;
            }
            Ok((blake3::hash(plain), compressor.compress(plain)?, bytes))
        };
    let count = len.div_ceil(chunk);
    let batch = 4 * rayon::current_num_threads() as u64 * (BATCH / chunk).max(1);
    let (mut hashes, mut table) = (Vec::new(), Table::default());
    for start in (0..count).step_by(size(batch)?) {
        let frames: Vec<_> = (start..(start + batch).min(count))
            .into_par_iter()
            .map_init(|| Ok((compressor(level)?, vec![0; size(chunk)?])), one)
            .collect::<io::Result<_>>()?;
        for (hash, packed, bytes) in frames {
            out.write_all(&packed)?;
            hashes.push(hash);
            table.add(packed.len() as u64, bytes)?;
        }
    }
    out.write_all(&table.encode())?;
    Ok(hashes)
}

fn compressor(level: i32) -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(level)?;
    compressor.include_checksum(true)?;
    Ok(compressor)
}

fn size(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(io::Error::other)
}

#[derive(Default)]
struct Table {
    rows: Vec<u8>,
}

impl Table {
    fn add(&mut self, packed: u64, plain: u64) -> io::Result<()> {
        for len in [packed, plain] {
            let len = u32::try_from(len).map_err(io::Error::other)?;
            self.rows.extend(len.to_le_bytes());
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes(); // the number of chunks is bounded
        let (len, frames) = (word(self.rows.len() + FOOT), word(self.rows.len() / ROW));
        [&SKIPPABLE.to_le_bytes()[..], &len, &self.rows, &frames, &[0], &SEEKABLE.to_le_bytes()].concat()
    }
}

/// What a thread unpacks with. It takes time to make one.
struct Worker {
    decompressor: Decompressor<'static>,
    packed: Vec<u8>,
}

impl Worker {
    fn new() -> io::Result<Self> {
        Ok(Self { decompressor: Decompressor::new()?, packed: Vec::new() })
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

/// A compressed RAM file whose table was checked.
#[derive(Debug)]
pub(crate) struct Packed {
    file: File,
    frames: Vec<Range<u64>>,
    chunk: u64,
    len: u64,
    idle: Mutex<Vec<Worker>>,
}

impl Packed {
    /// `len` and `chunk` are those of the plain RAM file. An error says what is wrong with the table.
    pub(crate) fn open(file: File, len: u64, chunk: u64) -> io::Result<Result<Self, &'static str>> {
        let bytes = file.metadata()?.len();
        let count = len.div_ceil(chunk);
        let table = HEAD as u64 + count.saturating_mul(ROW as u64) + FOOT as u64;
        let Some(start) = bytes.checked_sub(table) else { return Ok(Err("it is too short for its table")) };
        let mut table = vec![0; size(table)?];
        file.read_exact_at(&mut table, start)?;
        let rows = table.get(HEAD..table.len() - FOOT).unwrap_or_default();
        if (Table { rows: rows.to_vec() }).encode() != table {
            return Ok(Err("it does not end with a table of its frames"));
        }
        let mut frames = Vec::new();
        let mut at = 0_u64;
        for (i, row) in (0_u64..).zip(rows.chunks_exact(ROW)) {
            let word =
                |from: usize| row.get(from..from + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
            let (packed, plain) = (word(0).unwrap_or_default(), word(4).unwrap_or_default());
            let right = chunk.min(len - i * chunk);
            if u64::from(plain) != right || u64::from(packed) > compress_bound(size(right)?) as u64 {
                return Ok(Err("its table does not fit the RAM"));
            }
            frames.push(at..at + u64::from(packed));
            at += u64::from(packed);
        }
        Ok(if at == start {
            Ok(Self { file, frames, chunk, len, idle: Mutex::default() })
        } else {
            Err("its table does not fit its length")
        })
    }

    /// Unpacks each chunk, and gives it with its number to `take`, from several threads. One that is damaged is
    /// [`io::ErrorKind::InvalidData`].
    pub(crate) fn each<E: From<io::Error> + Send>(
        &self,
        take: impl Fn(u64, io::Result<&[u8]>) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        (0..self.frames.len() as u64).into_par_iter().try_for_each_init(Vec::new, |plain, i| {
            let unpacked = self.unpack_chunk(i, plain);
            take(i, unpacked.map(|()| plain.as_slice()))
        })
    }

    /// Unpacks one chunk, in place of what is in `plain`. One that is damaged is [`io::ErrorKind::InvalidData`].
    pub(crate) fn unpack_chunk(&self, chunk: u64, plain: &mut Vec<u8>) -> io::Result<()> {
        let frame = self.frames.get(size(chunk)?).ok_or(io::ErrorKind::InvalidInput)?;
        let len = size(self.chunk.min(self.len - chunk * self.chunk))?;
        plain.clear();
        plain.reserve_exact(len);
        let idle = self.idle().pop();
        let mut worker = idle.map_or_else(Worker::new, Ok)?;
        worker.packed.resize(size(frame.end - frame.start)?, 0);
        self.file.read_exact_at(&mut worker.packed, frame.start)?;
        let unpacked = worker.decompressor.decompress_to_buffer(&worker.packed, plain);
        self.idle().push(worker);
        if matches!(unpacked, Ok(n) if n == len) { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unpacks each chunk, and gives the pages of it that are not zero to `put`, with their offset in the RAM file.
    pub(crate) fn unpack(&self, put: impl Fn(u64, &[u8]) -> io::Result<()> + Sync) -> io::Result<()> {
        self.each(|i, plain| {
            let plain = plain?;
            for run in nonzero(plain) {
                put(i * self.chunk + run.start as u64, plain.get(run).unwrap_or_default())?;
            }
            Ok::<(), io::Error>(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page_hashes::Key;
    use elision_memory::{Gpa, RamLayout};
    use std::sync::Mutex;

    const CHUNK: u64 = 64 << 10;
    const LEN: u64 = 5 * CHUNK + 4096;

    fn packed() -> (Vec<u8>, Vec<u8>, Vec<Hash>) {
        let mut ram = Ram::zeroed(RamLayout::flat(LEN).unwrap()).unwrap();
        ram.poke(Gpa(CHUNK + 100), b"in the second chunk").unwrap();
        ram.poke(Gpa(LEN - 3), b"end").unwrap();
        let data = [FileOffset(CHUNK)..FileOffset(2 * CHUNK), FileOffset(5 * CHUNK)..FileOffset(LEN)];
        let mut out = Vec::new();
        let pages = HashFile::new(tempfile::tempfile().unwrap(), Key::fresh().unwrap(), LEN).unwrap();
        let hashes = pack(&ram, &data, CHUNK, 1, &mut out, &pages, &|_| ()).unwrap();
        let mut plain = vec![0; usize::try_from(LEN).unwrap()];
        assert!(ram.read_file(FileOffset(0), &mut plain));
        (out, plain, hashes)
    }

    fn open(bytes: &[u8]) -> Result<Packed, &'static str> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Packed::open(file, LEN, CHUNK).unwrap()
    }

    #[test]
    fn what_is_packed_is_unpacked_and_any_zstd_can_do_it() {
        let (bytes, plain, hashes) = packed();
        let found = Mutex::new(vec![0; plain.len()]);
        let put = |offset: u64, bytes: &[u8]| {
            let at = usize::try_from(offset).unwrap();
            found.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        };
        open(&bytes).unwrap().unpack(put).unwrap();
        assert!(found.into_inner().unwrap() == plain);
        assert!(
            zstd::decode_all(bytes.as_slice()).unwrap() == plain,
            "a plain decoder passes over the table"
        );
        let expected: Vec<_> = plain.chunks(usize::try_from(CHUNK).unwrap()).map(blake3::hash).collect();
        assert_eq!(hashes, expected);
    }

    #[test]
    fn a_wrong_table_is_refused() {
        let (bytes, ..) = packed();
        let last = bytes.len() - 1;
        let table = bytes.len() - FOOT - 6 * ROW - HEAD;
        for (at, part) in
            [(last, "table"), (table, "table"), (table + HEAD, "table"), (table + HEAD + 4, "RAM")]
        {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x40;
            assert!(open(&wrong).unwrap_err().contains(part), "byte {at}");
        }
        assert!(open(&bytes[..40]).unwrap_err().contains("short"));
        assert!(open(&bytes[1..]).unwrap_err().contains("length"));
    }

    #[test]
    fn a_damaged_frame_is_not_unpacked() {
        let (bytes, ..) = packed();
        let whole = open(&bytes).unwrap();
        let second = usize::try_from((whole.frames[1].start + whole.frames[1].end) / 2).unwrap();
        let mut wrong = bytes;
        wrong[second] ^= 1;
        assert!(open(&wrong).unwrap().unpack(|_, _| Ok(())).is_err());
    }
}
