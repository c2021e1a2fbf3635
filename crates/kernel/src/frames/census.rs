//! The one pass over all descriptors that planning needs.

use super::orphans::Unmapped;
use crate::page::PageType;
use crate::{Kernel, KernelError};
use elision_memory::Gfn;
use std::ops::Range;

/// What planning must know of frames that no walk leads to.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Frames of slabs, in ascending runs.
    pub slabs: Vec<Range<Gfn>>,
    /// Anonymous base pages in use that no page table leads to.
    pub unmapped: Vec<Unmapped>,
}

impl Kernel<'_> {
    /// Looks at every descriptor once.
    pub fn census(&self) -> Result<Census, KernelError> {
        let layout = &self.profile.page;
        let batched = self.batch_references()?;
        let mut census = Census::default();
        let mut slab = None;
        self.for_each_descriptor(&mut |gfn, raw| {
            let head = self.head_of(gfn, &raw).ok();
            if head == Some(gfn) {
                slab = Some(gfn).filter(|_| layout.page_type(&raw) == Some(PageType::Slab));
            }
            if slab.is_some() && head == slab {
                match census.slabs.last_mut() {
                    Some(run) if run.end == gfn => run.end = Gfn(gfn.0 + 1),
                    _ => census.slabs.push(gfn..Gfn(gfn.0 + 1)),
                }
            } else {
                census.unmapped.extend(self.unmapped(gfn, &raw, &batched));
            }
        });
        Ok(census)
    }
}
