//! The object of a slab that an address leads to.

use super::WHAT;
use crate::Kernel;
use crate::page::PageType;
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
    /// The object that begins at an address, which may be any number. `None` where there is none.
    pub(crate) fn slab_object(&self, at: Gva) -> Option<SlabObject> {
        let gpa = self.direct(at)?;
        let page = self.page(gpa.gfn()).ok()?;
        if self.profile.page.page_type(&self.raw_page(page.head).ok()?) != Some(PageType::Slab) {
            return None;
        }
        let layout = &self.profile.slab;
        let member = layout.cache.or(layout.page_cache)?;
        let cache_at = self.pointer(self.page_of(page.head).wrapping_add(member), WHAT).ok()?;
        let cache = self.slab_cache(cache_at).ok()?;
        let start = page.head.gpa();
        let end = start.checked_add((PAGE_SIZE as u64) << cache.order)?;
        let end_of_object = at.checked_add(cache.object_size).filter(|_| cache.fits(start, end, gpa));
        end_of_object.map(|end| SlabObject { start: at, end, cache: cache_at })
    }
}
