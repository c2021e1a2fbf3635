//! Which parts of a sparse file hold data.

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;

/// The parts of the first `len` bytes that hold data, ascending; all of them where the file system cannot tell.
pub(crate) fn extents(file: &File, len: u64) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break, // only a hole is left
            Err(_) => return whole(len),
        };
        let Ok(end) = seek(file, SeekFrom::Hole(start)) else { return whole(len) };
        if end <= at {
            return whole(len);
        }
        if start < len {
            parts.push(start..end.min(len));
        }
        at = end;
    }
    parts
}

/// Everything is one part.
pub(crate) fn whole(len: u64) -> Vec<Range<u64>> {
    std::iter::once(0..len).collect()
}
