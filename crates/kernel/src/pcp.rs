//! Free frames on the per-CPU page lists (`struct per_cpu_pages`): most of what was freed just now.
//!
//! List `i` holds blocks of order `i / MIGRATE_PCPTYPES` up to order 3; the lists behind those hold
//! huge pages (`mm/page_alloc.c`, `order_to_pindex`).

use crate::buddy::LIST_HEAD;
use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gfn;
use std::ops::Range;

layout! {
    pub(crate) struct PcpLayout {
        lists: offset("per_cpu_pages", &["lists"]),
        list_count: count("per_cpu_pages", "lists"),
        in_pageset: optional("per_cpu_pageset", &["pcp"]),
        types: enumerator("MIGRATE_PCPTYPES"),
    }
}

const COSTLY_ORDER: u64 = 3;
const HUGE_ORDER: u64 = 9;
/// More lists than any kernel has for one zone and CPU.
const LIST_COUNT_LIMIT: u64 = 256;
/// A zone's lists for one CPU take at least 256 bytes: a frame has room for so many.
const SETS_IN_FRAME: u64 = 16;

impl Kernel<'_> {
    /// Blocks of frames on the per-CPU page lists of all CPUs.
    pub fn per_cpu_free_frames(&self, visit: &mut dyn FnMut(Range<Gfn>)) -> Result<(), KernelError> {
        const WHAT: &str = "per-CPU page list";
        let layout = &self.profile.pcp;
        let types = layout.types.unwrap_or(3).max(1);
        let link = self.profile.page.pcp_list.unwrap_or(self.profile.page.lru);
        let frames = self.ram.layout().frame_limit().0;
        let (mut left, mut sets_left) = (frames, frames.saturating_mul(SETS_IN_FRAME));
        for zone in self.zones()? {
            let (pointer, inner) = match (self.profile.zone.pcp, self.profile.zone.pageset, layout.in_pageset)
            {
                (Some(pointer), _, _) => (pointer, 0),
                (None, Some(pointer), Some(inner)) => (pointer, inner),
                _ => return Err(KernelError::Incomplete("per-CPU page lists")),
            };
            let per_cpu = self.u64(zone.wrapping_add(pointer), WHAT)?;
            for offset in &self.per_cpu {
                let pages = elision_memory::Gva(per_cpu.wrapping_add(*offset)).wrapping_add(inner);
                sets_left = sets_left.checked_sub(1).ok_or(KernelError::Torn {
                    what: WHAT,
                    at: pages,
                    why: "there are more zones and CPUs than the guest has room for",
                })?;
                for i in 0..layout.list_count.min(LIST_COUNT_LIMIT) {
                    let order = if i / types <= COSTLY_ORDER { i / types } else { HUGE_ORDER };
                    let order = u32::try_from(order).unwrap_or(u32::MAX);
                    let head = pages.wrapping_add(layout.lists + i * LIST_HEAD);
                    self.for_each_free(head, link, order, WHAT, &mut left, visit)?;
                }
            }
        }
        Ok(())
    }
}
