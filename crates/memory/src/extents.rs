//! Which parts of a sparse file hold data.

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;

/// The parts of a range that hold data, ascending; all of it where the file system cannot tell.
pub(crate) fn extents(file: &File, range: Range<u64>) -> Vec<Range<u64>> {
    let Range { start: first, end: len } = range;
    let all = || std::iter::once(first..len).collect();
    let mut parts = Vec::new();
    let mut at = first;
    while at < len {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break, // only a hole is left
            Err(_) => return all(),
        };
        let Ok(end) = seek(file, SeekFrom::Hole(start)) else { return all() };
        if end <= at {
            return all();
        }
        if start < len {
            parts.push(start..end.min(len));
        }
        at = end;
    }
    parts
}

/// The same when `earlier`, which ascend, held data: only what lay between them is asked for. A long part takes the
/// file system long to look through.
pub(crate) fn extents_since(file: &File, len: u64, earlier: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut at = 0;
    let end = std::iter::once(len..len);
    for part in earlier.iter().cloned().chain(end) {
        while at < part.start {
            let start = match seek(file, SeekFrom::Data(at)) {
                Ok(start) if start < part.start => start,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(_) => return whole(len),
            };
            match seek(file, SeekFrom::Hole(start)) {
                Ok(end) if end > start => {
                    parts.push(start..end.min(len));
                    at = end;
                }
                _ => return whole(len),
            }
        }
        // What was just found may reach into later parts.
        if part.end > part.start.max(at) {
            parts.push(part.start.max(at)..part.end);
            at = part.end;
        }
    }
    parts
}

/// Everything is one part.
pub(crate) fn whole(len: u64) -> Vec<Range<u64>> {
    std::iter::once(0..len).collect()
}

/// Ranges in any order, ascending; those that touch or overlap as one.
#[must_use]
pub fn joined<T: Copy + Ord>(mut parts: Vec<Range<T>>) -> Vec<Range<T>> {
    parts.sort_by_key(|part| part.start);
    let mut joined: Vec<Range<T>> = Vec::with_capacity(parts.len());
    for part in parts {
        match joined.last_mut() {
            Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
            _ => joined.push(part),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn only_what_lies_in_the_range_counts() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * 4096).unwrap();
        for page in [4, 20, 21] {
            file.write_all_at(&[1; 4096], page * 4096).unwrap();
        }
        let found = |range: Range<u64>| -> Vec<(u64, u64)> {
            let parts = extents(&file, range.start * 4096..range.end * 4096);
            parts.into_iter().map(|part| (part.start / 4096, part.end / 4096)).collect()
        };
        assert_eq!(found(5..64), [(20, 22)]);
        assert_eq!(found(0..21), [(4, 5), (20, 21)]);
        assert_eq!(found(21..22), [(21, 22)]);
        assert_eq!(found(5..20), []);
    }

    #[test]
    fn what_came_since_is_found() {
        const LEN: u64 = 64 * 4096;
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN).unwrap();
        let write = |pages: Range<u64>| {
            for page in pages {
                file.write_all_at(&[1; 4096], page * 4096).unwrap();
            }
        };
        let pages = |parts: Vec<Range<u64>>| -> Vec<u64> {
            parts.into_iter().flat_map(|part| part.start / 4096..part.end.div_ceil(4096)).collect()
        };
        write(4..8);
        write(20..24);
        write(40..44);
        let earlier = extents(&file, 0..LEN);
        assert_eq!(pages(extents_since(&file, LEN, &earlier)), pages(earlier.clone()));
        assert_eq!(pages(extents_since(&file, LEN, &[])), pages(earlier.clone()));
        write(8..20); // joins two parts
        write(0..1);
        write(60..64);
        let now = pages(extents_since(&file, LEN, &earlier));
        assert_eq!(now, pages(extents(&file, 0..LEN)));
        assert_eq!(now.len(), 4 + 12 + 4 + 4 + 1 + 4);
    }
}
