//! The chunks of an image's RAM, each unpacked once for all that need it at the time.

use elision_image::RamReader;
use std::collections::VecDeque;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Most bytes of chunks that are kept: the kernel reads less than a chunk at a time.
const KEPT: u64 = 16 << 20;

/// Whoever comes first reads it, others wait for that. Nothing if it cannot be read.
type Slot = Arc<OnceLock<Option<Vec<u8>>>>;

/// Reads chunks, and keeps those that were read last.
#[derive(Debug)]
pub(crate) struct Chunks {
    ram: RamReader,
    recent: Mutex<VecDeque<(u64, Slot)>>,
}

/// The bytes of a chunk.
pub(crate) struct Chunk(Slot);

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.get().and_then(Option::as_deref).unwrap_or_default()
    }
}

impl Chunks {
    pub(crate) fn new(ram: RamReader) -> Self {
        Self { ram, recent: Mutex::default() }
    }

    pub(crate) fn ram(&self) -> &RamReader {
        &self.ram
    }

    /// Gives each of some chunks to `take` before it is needed, until that fails.
    pub(crate) fn read_ahead(
        &self,
        chunks: &[u64],
        take: impl Fn(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        for i in chunks {
            let at = i * self.ram.chunk_bytes();
            if self.is_recent(*i) {
                take(at, &self.get(*i)?)?;
            } else {
                self.ram.read_chunk(*i, &mut bytes)?;
                take(at, &bytes)?;
            }
        }
        Ok(())
    }

    pub(crate) fn get(&self, i: u64) -> io::Result<Chunk> {
        let slot = self.slot(i);
        let mut problem = None;
        let read = || {
            let mut bytes = Vec::new();
            self.ram.read_chunk(i, &mut bytes).map_err(|error| problem = Some(error)).ok()?;
            Some(bytes)
        };
        if slot.get_or_init(read).is_some() {
            return Ok(Chunk(slot));
        }
        self.recent().retain(|(chunk, _)| *chunk != i); // it may go well another time
        Err(problem.unwrap_or_else(|| io::ErrorKind::InvalidData.into()))
    }

    fn slot(&self, i: u64) -> Slot {
        let most = usize::try_from(KEPT / self.ram.chunk_bytes()).unwrap_or(1).max(2);
        let mut recent = self.recent();
        if let Some((_, slot)) = recent.iter().find(|(chunk, _)| *chunk == i) {
            return Arc::clone(slot);
        }
        let slot = Slot::default();
        recent.push_front((i, Arc::clone(&slot)));
        recent.truncate(most);
        slot
    }

    fn is_recent(&self, i: u64) -> bool {
        self.recent().iter().any(|(chunk, _)| *chunk == i)
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<(u64, Slot)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
