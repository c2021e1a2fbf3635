//! What a copy of RAM does not hold itself: it is read from where it is when somebody wants it.
//!
//! ```text
//! [ own pages | parts that are elsewhere | own pages ]      parts are brought 64 KiB at a time, once
//! ```
//! The first failure is kept for good: a copy with a gap is no copy.

use crate::mapping::Mapping;
use crate::{FileOffset, MemoryError};
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Bytes that are looked for at once.
const CHUNK: usize = 64 << 10;

/// Where the rest of a copy is.
pub trait Origin: Debug + Send + Sync {
    /// Reads from an offset of the RAM file on.
    fn read_at(&self, offset: FileOffset, out: &mut [u8]) -> io::Result<()>;
}

/// Parts of a mapping that are elsewhere.
#[derive(Debug)]
pub(crate) struct Underlay {
    origin: Box<dyn Origin>,
    /// They ascend.
    parts: Vec<Range<usize>>,
    /// Which chunks want nothing of them any more.
    here: Box<[AtomicBool]>,
    bringing: Mutex<()>,
    failed: OnceLock<io::ErrorKind>,
}

impl Underlay {
    /// Nothing is brought yet to a mapping of `len` bytes.
    pub(crate) fn new(origin: Box<dyn Origin>, parts: Vec<Range<usize>>, len: usize) -> Self {
        let here: Box<[_]> = (0..len.div_ceil(CHUNK)).map(|_| AtomicBool::new(true)).collect();
        for chunk in parts.iter().flat_map(|part| here.get(part.start / CHUNK..part.end.div_ceil(CHUNK))) {
            chunk.iter().for_each(|chunk| chunk.store(false, Ordering::Relaxed));
        }
        Self { origin, parts, here, bringing: Mutex::new(()), failed: OnceLock::new() }
    }

    /// Makes sure that bytes are in the mapping. `false` after a failure.
    #[inline]
    pub(crate) fn bring(&self, mapping: &Mapping, at: usize, len: usize) -> bool {
        let last = at.saturating_add(len.saturating_sub(1)) / CHUNK;
        let is_here = |i: usize| self.here.get(i).is_none_or(|chunk| chunk.load(Ordering::Acquire));
        (at / CHUNK..=last).all(is_here) || self.bring_parts(mapping, at..at.saturating_add(len))
    }

    #[cold]
    fn bring_parts(&self, mapping: &Mapping, wanted: Range<usize>) -> bool {
        if self.within(&wanted).next().is_none() {
            return true; // nothing of it is elsewhere
        }
        (wanted.start / CHUNK..wanted.end.div_ceil(CHUNK)).all(|i| match self.bring_chunk(mapping, i) {
            Ok(()) => true,
            Err(error) => {
                let _ = self.failed.set(error.kind());
                false
            }
        })
    }

    fn bring_chunk(&self, mapping: &Mapping, i: usize) -> io::Result<()> {
        let _one = self.bringing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(here) = self.here.get(i).filter(|here| !here.load(Ordering::Acquire)) else { return Ok(()) };
        let mut bytes = Vec::new();
        for part in self.within(&(i * CHUNK..(i + 1) * CHUNK)) {
            bytes.resize(part.len(), 0);
            self.origin.read_at(FileOffset(part.start as u64), &mut bytes)?;
            if !mapping.fill(part.start, &bytes) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
        here.store(true, Ordering::Release);
        Ok(())
    }

    /// What of the parts lies in a range.
    fn within(&self, range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<'_> {
        let Range { start, end } = *range;
        let from = self.parts.partition_point(|part| part.end <= start);
        let parts = self.parts.get(from..).unwrap_or_default().iter();
        parts
            .take_while(move |part| part.start < end)
            .map(move |part| part.start.max(start)..part.end.min(end))
    }

    /// The first failure.
    pub(crate) fn check(&self) -> Result<(), MemoryError> {
        self.failed.get().map_or(Ok(()), |kind| Err(MemoryError::Elsewhere((*kind).into())))
    }
}
