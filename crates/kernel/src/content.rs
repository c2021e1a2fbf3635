//! Where the kernel keeps data that is on its way from or to a process.

use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gpa, Gva, PAGE_SIZE};
use std::ops::Range;

/// Bytes that a kernel structure holds for its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A part of an object of the kernel.
    Bytes(Range<Gva>),
    /// A part of a page that the kernel may share with processes that map it.
    Page {
        /// First byte.
        at: Gpa,
        /// How many, at most up to the frame's end.
        len: u64,
    },
}

impl Content {
    /// A whole frame.
    pub(crate) fn frame(gfn: Gfn) -> Self {
        Self::Page { at: gfn.gpa(), len: PAGE_SIZE as u64 }
    }
}

impl Kernel<'_> {
    /// Bytes behind a `struct page`, from `offset` on: in a compound page they may go on into the next frames.
    pub(crate) fn in_page(
        &self,
        page: Gva,
        offset: u64,
        len: u64,
        what: &'static str,
    ) -> Result<Vec<Content>, KernelError> {
        let torn = |why| KernelError::Torn { what, at: page, why };
        let first = self.frame_of(page).ok_or_else(|| torn("its page is no page"))?;
        let size = PAGE_SIZE as u64;
        let start =
            first.gpa().0.checked_add(offset).ok_or_else(|| torn("its data begins outside memory"))?;
        let end = start.checked_add(len).ok_or_else(|| torn("its data ends outside memory"))?;
        let (mut at, mut parts) = (start, Vec::new());
        while at < end {
            if !self.ram().layout().contains(Gpa(at).gfn()) {
                return Err(torn("its data lies outside memory"));
            }
            let n = (size - at % size).min(end - at);
            parts.push(Content::Page { at: Gpa(at), len: n });
            at += n;
        }
        Ok(parts)
    }
}
