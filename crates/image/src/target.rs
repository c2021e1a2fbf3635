//! The file that RAM goes to, written past the page cache where that works: pages there would take as much memory
//! again, and time to fill.

use elision_memory::{FileOffset, PAGE_SIZE};
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Memory for I/O past the page cache, which wants it aligned.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub(crate) struct Page([u8; PAGE_SIZE]);

/// A buffer of so many bytes, whole pages.
pub(crate) fn pages(bytes: usize) -> Vec<Page> {
    vec![Page([0; PAGE_SIZE]); bytes / PAGE_SIZE]
}

/// Where RAM goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) file: &'a File,
    /// The same file, opened for I/O past the page cache.
    pub(crate) direct: Option<&'a File>,
}

/// Opens a file for I/O past the page cache, if its file system has that.
pub(crate) fn open_direct(path: &Path) -> Option<File> {
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from).ok()
}

impl Target<'_> {
    /// Takes the room for the runs, where the file system can: then writing in parallel needs no more than the disk.
    pub(crate) fn reserve(self, runs: &[Range<FileOffset>]) -> io::Result<()> {
        for run in runs {
            match fallocate(self.file, FallocateFlags::KEEP_SIZE, run.start.0, run.end.0 - run.start.0) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
                answer => answer?,
            }
        }
        Ok(())
    }

    /// Writes whole pages.
    pub(crate) fn write(self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct {
            match direct.write_all_at(bytes, offset) {
                // The disk's blocks are larger than a page.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                answer => return answer,
            }
        }
        self.file.write_all_at(bytes, offset)
    }
}
