//! Writing what is copied to the file while the rest is still being copied.
//!
//! For a link alone: what has changed is little, and the disk has nothing to do while all of RAM is read and compared.
//! The pause of a whole image is as long as memory takes, which the disk would share.

use crate::ranges::{Runs, add, pieces};
use crate::target::Target;
use elision_memory::FileOffset;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// As little as a disk takes well: a VM that could run on waits for one to be written.
const PIECE: usize = 256 << 10;

/// Copied parts that could be written, and whether they still should.
#[derive(Debug, Default)]
pub(crate) struct Ahead<'a> {
    parts: Mutex<(VecDeque<(FileOffset, &'a [u8])>, bool)>,
    more: Condvar,
}

/// Keeps [`Ahead::write`] going.
pub(crate) struct Ending<'s, 'a>(&'s Ahead<'a>);

impl Drop for Ending<'_, '_> {
    fn drop(&mut self) {
        self.0.parts().1 = true;
        self.0.more.notify_all();
    }
}

impl<'a> Ahead<'a> {
    /// Adds a run of what begins at `start`, which is not going to change.
    pub(crate) fn add(&self, run: &Range<FileOffset>, bytes: &'a [u8], start: u64) {
        let mut parts = self.parts();
        for piece in pieces(run, PIECE) {
            let of = |offset: FileOffset| usize::try_from(offset.0 - start).unwrap_or(usize::MAX);
            parts.0.extend(bytes.get(of(piece.start)..of(piece.end)).map(|bytes| (piece.start, bytes)));
        }
        self.more.notify_all();
    }

    /// Ends [`Ahead::write`], soon, when it is dropped.
    pub(crate) fn ending(&self) -> Ending<'_, 'a> {
        Ending(self)
    }

    /// Writes what was added, until it is ended. Gives what it has written.
    pub(crate) fn write(&self, target: Target<'_>) -> io::Result<Runs> {
        let mut written = Runs::new();
        while let Some((offset, bytes)) = self.next() {
            target.write(bytes, offset.0)?;
            add(&mut written, offset, bytes.len());
        }
        Ok(written)
    }

    fn next(&self) -> Option<(FileOffset, &'a [u8])> {
        let parts = self.more.wait_while(self.parts(), |(parts, is_over)| parts.is_empty() && !*is_over);
        let mut parts = parts.unwrap_or_else(PoisonError::into_inner);
        if parts.1 { None } else { parts.0.pop_front() }
    }

    fn parts(&self) -> MutexGuard<'_, (VecDeque<(FileOffset, &'a [u8])>, bool)> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn what_is_added_is_written_until_the_end() {
        let (file, memory) = (file(), vec![7; 3 * PIECE]);
        let target = Target { file: &file, direct: None };
        let ahead = Ahead::default();
        let ending = ahead.ending();
        let run = |from: usize, to: usize| FileOffset(9 + from as u64)..FileOffset(9 + to as u64);
        ahead.add(&run(0, PIECE + 1), &memory, 9);
        let written = std::thread::scope(|scope| {
            let writer = scope.spawn(|| ahead.write(target));
            while file.metadata().unwrap().len() < 9 + PIECE as u64 + 1 {
                std::thread::yield_now();
            }
            drop(ending);
            writer.join().unwrap().unwrap()
        });
        assert_eq!(written, [run(0, PIECE + 1)]);
        let mut found = vec![0; PIECE + 1];
        file.read_exact_at(&mut found, 9).unwrap();
        assert!(found == memory[..=PIECE]);

        ahead.add(&run(0, PIECE), &memory, 9);
        assert_eq!(ahead.write(target).unwrap(), [], "nothing after the end");
    }
}
