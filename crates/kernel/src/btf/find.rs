//! Finding the kernel's blob in its image.
//!
//! Modules, programs and files of the guest hold blobs too, and a user of the guest can write
//! one anywhere in memory that is his. So only the kernel image is searched, only read-only
//! memory counts, and of several blobs the largest is the kernel's.

use super::header::{Header, MAGIC};
use super::{Btf, BtfError};
use memchr::memmem;

/// Blobs with a sound header that are looked at; a kernel image holds one.
const MAX_CANDIDATES: usize = 64;

impl Btf {
    /// The largest blob in a kernel image that stands in read-only memory.
    ///
    /// `read_only` tells whether a range (offset and length in `image`) is mapped read-only.
    pub fn find(image: &[u8], read_only: &dyn Fn(usize, usize) -> bool) -> Result<Self, BtfError> {
        let mut found: Vec<(usize, usize)> = memmem::find_iter(image, &MAGIC)
            .filter_map(|at| {
                let header = Header::parse(image.get(at..)?).ok()?;
                (!header.types.is_empty() && read_only(at, header.total())).then_some((header.total(), at))
            })
            .take(MAX_CANDIDATES)
            .collect();
        found.sort_unstable();
        let mut last = BtfError::Absent;
        for (len, at) in found.into_iter().rev() {
            match Self::parse(&image[at..at + len]) {
                Ok(btf) => return Ok(btf),
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}
