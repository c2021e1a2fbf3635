//! Free huge pages in the hugetlb pools (`struct hstate`).

use crate::buddy::LIST_HEAD;
use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gfn;
use std::ops::Range;

layout! {
    pub(crate) struct HugeTlbLayout {
        size: size_opt("hstate"),
        order: optional("hstate", &["order"]),
        free: optional("hstate", &["hugepage_freelists"]),
    }
}

/// `HUGE_MAX_HSTATE` is 2 on x86-64.
const POOL_LIMIT: u32 = 8;
/// No larger than a page of 1 GiB.
const ORDER_LIMIT: u32 = 18;

impl Kernel<'_> {
    /// Frames in the pools of free huge pages.
    pub fn huge_free_frames(&self, visit: &mut dyn FnMut(Range<Gfn>)) -> Result<(), KernelError> {
        const WHAT: &str = "huge page pool";
        let layout = &self.profile.hugetlb;
        let (Some(size), Some(order), Some(free)) = (layout.size, layout.order, layout.free) else {
            return Ok(());
        };
        let (Some(pools), Some(count)) = (self.symbol("hstates"), self.symbol("hugetlb_max_hstate")) else {
            return Ok(());
        };
        let count = self.u32(count, WHAT)?.min(POOL_LIMIT);
        let mut left = self.ram.layout().frame_limit().0;
        let nodes = self.symbol("nr_node_ids").map_or(Ok(1), |at| self.u32(at, WHAT))?;
        for pool in 0..u64::from(count) {
            let pool = pools.wrapping_add(pool * size);
            let order = self.u32(pool.wrapping_add(order), WHAT)?;
            if order > ORDER_LIMIT {
                return Err(KernelError::Torn {
                    what: WHAT,
                    at: pool,
                    why: "its pages have no possible size",
                });
            }
            for node in 0..u64::from(nodes).min(1024) {
                let head = pool.wrapping_add(free + node * LIST_HEAD);
                self.for_each_free(head, self.profile.page.lru, order, WHAT, &mut left, visit)?;
            }
        }
        Ok(())
    }
}
