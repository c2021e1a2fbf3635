//! The pages of one file in the page cache: an XArray of pages, in which a value (bit 0 set) is a swapped or
//! evicted page.

use crate::layout::layout;
use crate::vmas::Vma;
use crate::xarray::TOO_MANY;
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva};

layout! {
    pub(crate) struct PageCacheLayout {
        head: offset("address_space", &["i_pages.xa_head"]),
        operations: offset("address_space", &["a_ops"]),
    }
}

const WHAT: &str = "page cache";

impl Kernel<'_> {
    /// The page cache (`address_space`) behind an area: the same for all that map one file.
    pub fn vma_mapping(&self, vma: &Vma) -> Result<Option<Gva>, KernelError> {
        let Some(file) = vma.file else { return Ok(None) };
        let mapping = self.pointer(file.wrapping_add(self.profile.path.file_mapping), "open file")?;
        Ok((mapping.0 != 0).then_some(mapping))
    }

    /// Every frame in a file's page cache, and how many of its pages are swapped out. `budget` bounds
    /// frames and tree nodes, over all calls that share it: a frame is in one page cache only.
    pub fn cached_frames(&self, mapping: Gva, budget: &mut u64) -> Result<(Vec<Gfn>, u64), KernelError> {
        let root = self.u64(mapping.wrapping_add(self.profile.page_cache.head), WHAT)?;
        let (mut frames, mut evicted) = (Vec::new(), 0);
        self.for_each_in_xarray(root, WHAT, budget, &mut |entry, budget| {
            if entry & 1 != 0 {
                evicted += 1;
                return Ok(());
            }
            let torn = |why| KernelError::Torn { what: WHAT, at: Gva(entry), why };
            let head = self.frame_of(Gva(entry)).ok_or(torn("an entry is no page"))?;
            let found = self.compound_frames(head)?;
            *budget = budget.checked_sub(found.end - found.start).ok_or(torn(TOO_MANY))?;
            frames.extend(found.map(Gfn));
            Ok(())
        })?;
        Ok((frames, evicted))
    }
}
