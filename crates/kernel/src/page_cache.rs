//! The pages of one file in the page cache: an XArray (`lib/xarray.c`).
//!
//! ```text
//! entry: node if its low bits are 10 and it is above 4096; value if bit 0 is set (a swapped or
//! evicted page); below 4096 with low bits 10 a sibling of an earlier slot; else a page
//! node: shift (u8) ... slots[64]
//! ```

use crate::layout::layout;
use crate::vmas::Vma;
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva};

layout! {
    pub(crate) struct PageCacheLayout {
        head: offset("address_space", &["i_pages.xa_head"]),
        shift: offset("xa_node", &["shift"]),
        slots: offset("xa_node", &["slots"]),
        slot_count: count("xa_node", "slots"),
    }
}

const WHAT: &str = "page cache";
const SIBLINGS_END: u64 = 4096;

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
        let mut found = Found { frames: Vec::new(), evicted: 0 };
        self.cache_entry(root, 64, budget, &mut found)?;
        Ok((found.frames, found.evicted))
    }

    fn cache_entry(
        &self,
        entry: u64,
        above: u8,
        budget: &mut u64,
        found: &mut Found,
    ) -> Result<(), KernelError> {
        let layout = &self.profile.page_cache;
        let at = Gva(entry);
        let too_many = KernelError::Torn { what: WHAT, at, why: "it holds more than the guest has room for" };
        if entry & 1 != 0 {
            found.evicted += 1;
        } else if entry & 3 == 2 {
            if entry <= SIBLINGS_END {
                return Ok(());
            }
            *budget = budget.checked_sub(1).ok_or(too_many)?;
            let node = Gva(entry & !3);
            let shift = self.u8(node.wrapping_add(layout.shift), WHAT)?;
            if shift >= above {
                return Err(KernelError::Torn { what: WHAT, at, why: "its nodes form a loop" });
            }
            for i in 0..layout.slot_count.min(64) {
                let slot = self.u64(node.wrapping_add(layout.slots + 8 * i), WHAT)?;
                self.cache_entry(slot, shift, budget, found)?;
            }
        } else if entry != 0 {
            let torn = KernelError::Torn { what: WHAT, at, why: "an entry is no page" };
            let head = self.frame_of(at).ok_or(torn)?;
            let frames = self.compound_frames(head)?;
            *budget = budget.checked_sub(frames.end - frames.start).ok_or(too_many)?;
            found.frames.extend(frames.map(Gfn));
        }
        Ok(())
    }
}

struct Found {
    frames: Vec<Gfn>,
    evicted: u64,
}
