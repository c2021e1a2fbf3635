//! A copy of another process's memory that is made as it is read, chunk by chunk.
//!
//! ```text
//! FRESH ──bring──> HERE ──refresh──> STALE ──bring──> HERE
//!   ^─────────────────release──────────┴────────────────┘
//! FRESH: not read yet, zero in the mapping    HERE: as it was when it was read    STALE: to be read again
//! ```
//! Readers look at one atomic for each chunk. A chunk is brought under one of a few locks, so two threads that
//! want the same one read it once. The first failure is kept for good: a copy with a gap is no copy.

use crate::extents::whole;
use crate::mapping::Mapping;
use crate::process::{ProcessRam, Source};
use crate::ram::MemoryError;
use rustix::io::Errno;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
const LOCKS: usize = 16;

const FRESH: u8 = 0;
const STALE: u8 = 1;
const HERE: u8 = 2;

/// Which chunks of a mapping hold what the process has.
#[derive(Debug)]
pub(crate) struct Mirror {
    pid: u32,
    source: Source,
    chunks: Box<[AtomicU8]>,
    locks: [Mutex<()>; LOCKS],
    /// Error number of the first failure, 0 without one.
    failed: AtomicI32,
}

impl Mirror {
    /// A mirror with nothing in it yet, over a sparse mapping. What may not be read is refused at once.
    pub(crate) fn new(ram: ProcessRam, mapping: &Mapping) -> Result<Self, MemoryError> {
        let pid = ram.pid;
        let source = Source::open(ram).map_err(|e| error(pid, e))?;
        let chunks = (0..mapping.len().div_ceil(CHUNK)).map(|_| AtomicU8::new(FRESH)).collect();
        let mirror = Self { pid, source, chunks, locks: Default::default(), failed: AtomicI32::new(0) };
        mirror.bring(mapping, 0, 1);
        mirror.check()?;
        Ok(mirror)
    }

    /// Makes sure that bytes are in the mapping. `false` outside the mapping and after a failure.
    #[inline]
    pub(crate) fn bring(&self, mapping: &Mapping, at: usize, len: usize) -> bool {
        let last = at.saturating_add(len.saturating_sub(1)) / CHUNK;
        (at / CHUNK..=last).all(|i| {
            let state = self.chunks.get(i).map(|chunk| chunk.load(Ordering::Acquire));
            state == Some(HERE) || self.fill(mapping, i)
        })
    }

    /// Everything is to be read again.
    pub(crate) fn refresh(&self) {
        let _all = self.locks.each_ref().map(lock);
        for chunk in &self.chunks {
            if chunk.load(Ordering::Relaxed) == HERE {
                chunk.store(STALE, Ordering::Release);
            }
        }
    }

    /// The same, and the mapping takes no more room.
    pub(crate) fn release(&self, mapping: &Mapping) {
        self.refresh();
        let _all = self.locks.each_ref().map(lock);
        // If it is not emptied, it is only larger than need be.
        if mapping.empty().is_ok() {
            self.chunks.iter().for_each(|chunk| chunk.store(FRESH, Ordering::Release));
        }
    }

    /// The first failure.
    pub(crate) fn check(&self) -> Result<(), MemoryError> {
        match self.failed.load(Ordering::Relaxed) {
            0 => Ok(()),
            number => Err(error(self.pid, io::Error::from_raw_os_error(number))),
        }
    }

    /// The parts of the first `len` bytes that may hold data; all of them after a failure.
    pub(crate) fn populated(&self, len: usize) -> Vec<Range<u64>> {
        self.source.populated(len, CHUNK).unwrap_or_else(|e| {
            self.fail(&e);
            whole(len as u64)
        })
    }

    #[cold]
    fn fill(&self, mapping: &Mapping, i: usize) -> bool {
        let (Some(chunk), Some(mutex)) = (self.chunks.get(i), self.locks.get(i % LOCKS)) else {
            return false;
        };
        let _one = lock(mutex);
        let state = chunk.load(Ordering::Acquire);
        if state == HERE {
            return true;
        }
        let at = i * CHUNK;
        let len = (mapping.len() - at).min(CHUNK);
        match self.source.fill(mapping, at, len, state == FRESH) {
            Ok(()) => {
                chunk.store(HERE, Ordering::Release);
                true
            }
            Err(e) => {
                chunk.store(STALE, Ordering::Release); // a part may be filled
                self.fail(&e);
                false
            }
        }
    }

    fn fail(&self, error: &io::Error) {
        let number = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
        let _ = self.failed.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Nothing is left half done by a panic under these locks.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn error(pid: u32, source: io::Error) -> MemoryError {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::ACCESS) => MemoryError::Forbidden { pid },
        Some(Errno::SRCH | Errno::NOENT) => MemoryError::Ended { pid },
        _ => MemoryError::Process { pid, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileOffset, Gpa, PAGE_SIZE, Ram, RamLayout};
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::process::{Child, Command};

    const LEN: usize = 1 << 20;

    /// This process reads itself: the memory in `mapping` as the RAM of a VM.
    fn ram_in(mapping: &Mapping, file: Option<File>) -> Ram {
        let ram = ProcessRam { pid: std::process::id(), address: mapping.address() as u64, file };
        Ram::of_process(ram, RamLayout::flat(mapping.len() as u64).unwrap()).unwrap()
    }

    fn bytes(ram: &Ram) -> Vec<u8> {
        let mut bytes = vec![0xff; LEN];
        ram.read(Gpa(0), &mut bytes).unwrap();
        bytes
    }

    /// Bytes of a mapping that take memory, as its owner's pagemap says.
    fn resident(mapping: &Mapping) -> u64 {
        let ram = ProcessRam { pid: std::process::id(), address: mapping.address() as u64, file: None };
        let parts = Source::open(ram).unwrap().populated(mapping.len(), PAGE_SIZE).unwrap();
        parts.iter().map(|part| part.end - part.start).sum()
    }

    #[test]
    fn what_was_read_stays_until_it_is_refreshed() {
        let mut memory = Mapping::anonymous(LEN).unwrap();
        assert!(memory.write(4096, b"first---"));
        let ram = ram_in(&memory, None);
        let word = |text: &[u8; 8]| Some(u64::from_le_bytes(*text));
        assert_eq!(ram.word(Gpa(4096)), word(b"first---"));
        assert!(memory.write(4096, b"second--"));
        assert_eq!(ram.word(Gpa(4096)), word(b"first---"), "a second look must see what the first one saw");
        ram.refresh();
        assert_eq!(ram.word(Gpa(4096)), word(b"second--"));
        assert!(memory.write(4096, b"third---"));
        ram.release();
        assert_eq!(ram.word(Gpa(4096)), word(b"third---"));
        ram.check().unwrap();
    }

    #[test]
    fn memory_that_was_given_back_reads_as_zeros() {
        let mut memory = Mapping::anonymous(LEN).unwrap();
        assert!(memory.write(LEN / 2, &[7; PAGE_SIZE]));
        let ram = ram_in(&memory, None);
        assert_eq!(bytes(&ram).iter().filter(|b| **b == 7).count(), PAGE_SIZE);
        memory.empty().unwrap();
        ram.refresh();
        assert_eq!(bytes(&ram), vec![0; LEN]);
    }

    #[test]
    fn reading_touches_nothing() {
        let mut memory = Mapping::anonymous(LEN).unwrap();
        assert!(memory.write(5 * PAGE_SIZE, b"here"));
        assert!(memory.write(LEN - PAGE_SIZE, b"there"));
        let ram = ram_in(&memory, None);
        let before = resident(&memory);
        let found = bytes(&ram);
        assert_eq!(
            (&found[5 * PAGE_SIZE..][..4], &found[LEN - PAGE_SIZE..][..5]),
            (&b"here"[..], &b"there"[..])
        );
        assert_eq!((before, resident(&memory)), (2 * PAGE_SIZE as u64, before));
        let parts = ram.populated();
        let chunk = |i: usize| FileOffset((i * CHUNK) as u64)..FileOffset(((i + 1) * CHUNK) as u64);
        assert_eq!(parts, [chunk(0), chunk(LEN / CHUNK - 1)]);
        // Control: reading it directly does touch it.
        let mut all = vec![0; LEN];
        assert!(memory.read(0, &mut all));
        assert_eq!(resident(&memory), LEN as u64);
    }

    #[test]
    fn a_private_file_is_read_where_the_process_has_no_copy() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        file.write_all_at(&[1; 2 * PAGE_SIZE], CHUNK as u64).unwrap();
        let mut memory = Mapping::private(&file, LEN).unwrap();
        assert!(memory.write(CHUNK, &[2; PAGE_SIZE]));
        let ram = ram_in(&memory, Some(file));
        let found = bytes(&ram);
        for (at, value) in [(0, 0), (CHUNK, 2), (CHUNK + PAGE_SIZE, 1), (CHUNK + 2 * PAGE_SIZE, 0)] {
            assert_eq!(found[at..at + PAGE_SIZE], vec![value; PAGE_SIZE], "at {at:#x}");
        }
        let part = FileOffset(CHUNK as u64)..FileOffset(2 * CHUNK as u64);
        assert!(ram.populated().iter().any(|p| p.start <= part.start && part.start < p.end));
        assert_eq!(ram.populated().iter().map(|p| p.end.0 - p.start.0).sum::<u64>(), CHUNK as u64);
    }

    #[test]
    fn threads_see_the_same() {
        let mut memory = Mapping::anonymous(LEN).unwrap();
        let content: Vec<u8> = (0..LEN / 8).flat_map(|i| (i as u64).to_le_bytes()).collect();
        assert!(memory.write(0, &content));
        let ram = ram_in(&memory, None);
        for _ in 0..20 {
            ram.refresh();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for i in 0..LEN as u64 / 8 {
                            assert_eq!(ram.word(Gpa(8 * i)), Some(i));
                        }
                    });
                }
            });
        }
    }

    fn sleeper() -> (Child, u64) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let stack = || {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
            let line = maps.lines().find(|line| line.ends_with("[stack]"))?.to_owned();
            u64::from_str_radix(line.split('-').nth(1)?.split(' ').next()?, 16).ok()
        };
        let end = std::iter::repeat_with(stack).flatten().next().unwrap();
        (child, end)
    }

    #[test]
    fn a_process_that_ended_is_an_error_and_no_zeros() {
        let (mut child, end) = sleeper();
        let address = end - CHUNK as u64;
        let ram = ProcessRam { pid: child.id(), address, file: None };
        let ram = Ram::of_process(ram, RamLayout::flat(CHUNK as u64).unwrap()).unwrap();
        let mut bytes = [0; 64];
        ram.read(Gpa(0), &mut bytes).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        ram.read(Gpa(0), &mut bytes).unwrap(); // read before
        ram.check().unwrap();
        ram.refresh();
        let is_ended = |e: MemoryError| matches!(e, MemoryError::Ended { pid } if pid == child.id());
        assert_eq!(ram.word(Gpa(0)), None);
        assert!(is_ended(ram.read(Gpa(0), &mut bytes).unwrap_err()));
        assert!(!ram.read_file(FileOffset(0), &mut bytes));
        assert!(is_ended(ram.check().unwrap_err()));
    }

    #[test]
    fn what_may_not_be_read_is_refused_at_once() {
        let open = |pid, address| {
            let ram = ProcessRam { pid, address, file: None };
            Ram::of_process(ram, RamLayout::flat(CHUNK as u64).unwrap()).unwrap_err()
        };
        let no_such_pid = (1 << 22) + 1;
        assert!(matches!(open(no_such_pid, 0x1000), MemoryError::Ended { .. }));
        if !rustix::process::geteuid().is_root() {
            assert!(matches!(open(1, 0x1000), MemoryError::Forbidden { .. }));
        }
    }
}
