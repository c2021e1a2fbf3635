//! A copy of another process's memory that is made as it is read, chunk by chunk.
//!
//! ```text
//! FRESH ──bring──> HERE ──refresh──> STALE ──bring──> HERE
//!   ^─────────────────release──────────┴────────────────┘
//! FRESH: not read yet, zero in the mapping    HERE: as it was when it was read    STALE: to be read again
//! ```
//! Readers look at one atomic for each chunk. A chunk is brought under one of a few locks, so two threads that
//! want the same one read it once. The first failure is kept for good: a copy with a gap is no copy.

use crate::PAGE_SIZE;
use crate::error::MemoryError;
use crate::extents::whole;
use crate::mapping::Mapping;
use crate::process::{ProcessRam, Source};
use rustix::io::Errno;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

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

    /// Copies bytes out. Whole chunks that are not in the mapping are not brought there: who reads much reads it
    /// once.
    pub(crate) fn read(&self, mapping: &Mapping, mut at: usize, mut out: &mut [u8]) -> bool {
        while !out.is_empty() {
            let whole = mapping.len().saturating_sub(at).min(CHUNK);
            let (part, rest) = out.split_at_mut(out.len().min(CHUNK - at % CHUNK));
            let is_here = || self.chunks.get(at / CHUNK).is_some_and(|c| c.load(Ordering::Acquire) == HERE);
            let done = if at % CHUNK == 0 && part.len() == whole && !is_here() {
                self.source.read(at, part).map_err(|e| self.fail(&e)).is_ok()
            } else {
                self.bring(mapping, at, part.len()) && mapping.read(at, part)
            };
            if !done {
                return false;
            }
            at = at.saturating_add(part.len());
            out = rest;
        }
        true
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

    /// Does some work while other threads read again what was here before the last refresh: the work will want
    /// about the same.
    pub(crate) fn fetching<T>(&self, mapping: &Mapping, work: impl FnOnce() -> T) -> T {
        const MOST: usize = 4;
        let threads =
            thread::available_parallelism().map_or(1, NonZero::get).saturating_sub(1).clamp(1, MOST);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for first in 0..threads {
                let chunks = self.chunks.iter().enumerate().skip(first).step_by(threads);
                scope.spawn(|| {
                    let stale = chunks.filter(|(_, chunk)| chunk.load(Ordering::Relaxed) == STALE);
                    for (i, _) in stale.take_while(|_| !done.load(Ordering::Relaxed)) {
                        self.fill(mapping, i);
                    }
                });
            }
            let result = work();
            done.store(true, Ordering::Relaxed);
            result
        })
    }

    /// The first failure.
    pub(crate) fn check(&self) -> Result<(), MemoryError> {
        match self.failed.load(Ordering::Relaxed) {
            0 => Ok(()),
            number => Err(error(self.pid, io::Error::from_raw_os_error(number))),
        }
    }

    /// The parts that may hold data; all of the `len` bytes after a failure.
    pub(crate) fn populated(&self, len: usize) -> Vec<Range<u64>> {
        self.source.populated(CHUNK).unwrap_or_else(|e| {
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
        let mut bytes = vec![0; len];
        if let Err(e) = self.source.read(at, &mut bytes) {
            self.fail(&e);
            return false;
        }
        for (page, bytes) in bytes.chunks(PAGE_SIZE).enumerate() {
            let is_so = state == FRESH && bytes.iter().all(|byte| *byte == 0);
            if !is_so && !mapping.fill(at + page * PAGE_SIZE, bytes) {
                return false;
            }
        }
        chunk.store(HERE, Ordering::Release);
        true
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
mod tests;
