//! The pages of one file in the page cache: an XArray of pages, in which a value (bit 0 set) is a swapped or
//! evicted page.

use crate::layout::layout;
use crate::vmas::Vma;
use crate::xarray::TOO_MANY;
use crate::{Kernel, KernelError};
use elision_memory::{Budget, Gfn, Gva};
use std::collections::BTreeSet;

layout! {
    pub(crate) struct PageCacheLayout {
        head: offset("address_space", &["i_pages.xa_head"]),
        operations: offset("address_space", &["a_ops"]),
        areas: offset("address_space", &["i_mmap.rb_root"]),
        area_node: offset("vm_area_struct", &["shared.rb"]),
        area_space: offset("vm_area_struct", &["vm_mm"]),
    }
}

const WHAT: &str = "page cache";

impl Kernel<'_> {
    /// The page cache (`address_space`) behind an area: the same for all that map one file.
    pub fn vma_mapping(&self, vma: &Vma) -> Result<Option<Gva>, KernelError> {
        vma.file.map_or(Ok(None), |file| self.file_mapping(file))
    }

    /// The page cache (`address_space`) behind an open file.
    pub fn file_mapping(&self, file: Gva) -> Result<Option<Gva>, KernelError> {
        let mapping = self.pointer(file.wrapping_add(self.profile.path.file_mapping), "open file")?;
        Ok((mapping.0 != 0).then_some(mapping))
    }

    /// The address spaces (`mm_struct`) that map a file, by the tree of its areas: what the kernel itself asks when it
    /// takes a page of a file away. `areas_left` bounds the areas looked at, over all calls that share it.
    pub fn spaces_that_map(&self, mapping: Gva, areas_left: &Budget) -> Result<BTreeSet<Gva>, KernelError> {
        const WHAT: &str = "areas that map a file";
        let layout = &self.profile.page_cache;
        let mut spaces = BTreeSet::new();
        self.for_each_in_tree(mapping.wrapping_add(layout.areas), WHAT, &mut |node| {
            if !areas_left.take(1) {
                return Err(KernelError::Torn { what: WHAT, at: mapping, why: TOO_MANY });
            }
            let area = Gva(node.0.wrapping_sub(layout.area_node));
            spaces.insert(self.pointer(area.wrapping_add(layout.area_space), WHAT)?);
            Ok(())
        })?;
        Ok(spaces)
    }

    /// Whether an open file consists of huge pages of hugetlbfs.
    pub fn is_hugetlb_file(&self, file: Gva) -> Result<bool, KernelError> {
        let Some(known) = self.symbol("hugetlbfs_file_operations") else { return Ok(false) };
        Ok(self.open_file(file)?.operations == known)
    }

    /// Every frame in a file's page cache, and how many of its pages are swapped out. `budget` bounds
    /// frames and tree nodes, over all calls that share it: a frame is in one page cache only.
    pub fn cached_frames(&self, mapping: Gva, budget: &mut u64) -> Result<(Vec<Gfn>, u64), KernelError> {
        let (heads, evicted) = self.cached_entries(mapping, budget)?;
        let mut frames = Vec::new();
        for head in heads {
            let found = self.compound_frames(head)?;
            *budget = budget.checked_sub(found.end - found.start - 1).ok_or(KernelError::Torn {
                what: WHAT,
                at: mapping,
                why: TOO_MANY,
            })?;
            frames.extend(found.map(Gfn));
        }
        Ok((frames, evicted))
    }

    /// The first frame of every page in a file's page cache, and how many of its pages are swapped out.
    pub(crate) fn cached_entries(
        &self,
        mapping: Gva,
        budget: &mut u64,
    ) -> Result<(Vec<Gfn>, u64), KernelError> {
        let (mut heads, mut evicted) = (Vec::new(), 0);
        self.for_each_cached(mapping, budget, &mut |entry| {
            if entry & 1 != 0 {
                evicted += 1;
            } else {
                let torn = KernelError::Torn { what: WHAT, at: Gva(entry), why: "an entry is no page" };
                heads.push(self.frame_of(Gva(entry)).ok_or(torn)?);
            }
            Ok(())
        })?;
        Ok((heads, evicted))
    }

    /// Calls `visit` with each entry of a page cache: a page, or a value with its lowest bit set.
    pub(crate) fn for_each_cached(
        &self,
        mapping: Gva,
        budget: &mut u64,
        visit: &mut dyn FnMut(u64) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let root = self.u64(mapping.wrapping_add(self.profile.page_cache.head), WHAT)?;
        self.for_each_in_xarray(root, WHAT, budget, &mut |entry, budget| {
            let torn = KernelError::Torn { what: WHAT, at: Gva(entry), why: TOO_MANY };
            *budget = budget.checked_sub(1).ok_or(torn)?;
            visit(entry)
        })
    }
}
