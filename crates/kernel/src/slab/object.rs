//! The object of a slab that an address leads to.

use super::WHAT;
use crate::page::PageType;
use crate::{Kernel, KernelError};
use elision_memory::{Gva, PAGE_SIZE};

/// An object, in use or free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabObject {
    /// Where it begins.
    pub(crate) start: Gva,
    /// Behind what its user may write.
    pub(crate) end: Gva,
    /// The `struct kmem_cache`.
    pub(crate) cache: Gva,
}

impl Kernel<'_> {
    /// The object that begins at an address. `None` where there is none.
    pub(crate) fn slab_object(&self, at: Gva) -> Result<Option<SlabObject>, KernelError> {
        let Some(gpa) = self.direct(at) else { return Ok(None) };
        let page = self.page(gpa.gfn())?;
        if self.profile.page.page_type(&self.raw_page(page.head)?) != Some(PageType::Slab) {
            return Ok(None);
        }
        let layout = &self.profile.slab;
        let Some(member) = layout.cache.or(layout.page_cache) else { return Ok(None) };
        let cache_at = self.pointer(self.page_of(page.head).wrapping_add(member), WHAT)?;
        let cache = self.slab_cache(cache_at)?;
        let start = page.head.gpa();
        let Some(end) = start.checked_add((PAGE_SIZE as u64) << cache.order) else { return Ok(None) };
        let end_of_object = at.checked_add(cache.object_size).filter(|_| cache.fits(start, end, gpa));
        Ok(end_of_object.map(|end| SlabObject { start: at, end, cache: cache_at }))
    }
}
