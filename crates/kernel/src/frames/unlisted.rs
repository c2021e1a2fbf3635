//! Free frames that are on no list: those that an allocation or a free has in its hands, and those that compaction has
//! taken to move pages into.
//!
//! Until the kernel has cleared them for their next owner they hold what the last one left. Such a frame has no
//! reference, no mark, no file and no area, and is behind no frame that may be the first of a block in use: of a block
//! that is no compound page, only the first frame has references (`mm/page_alloc.c`). Before 6.14 a block gets its
//! reference before it is cleared: then it looks like any block of the kernel's, and stays.

use crate::page::{PageType, Raw};
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva};
use std::ops::Range;

/// The largest block of the buddy allocator is 2^10 frames.
const LARGEST_ORDER: u32 = 10;
/// Allocations under way beside one of each CPU.
const PREEMPTED: u64 = 16;

/// What one pass over descriptors, ascending from the beginning of a block, finds.
#[derive(Default)]
pub(super) struct Unlisted {
    /// The end of the block that the last frame with a use may be the first of.
    block_end: u64,
    pub(super) runs: Vec<Range<Gfn>>,
}

impl Unlisted {
    /// Looks at the next frame.
    pub(super) fn look(&mut self, kernel: &Kernel<'_>, gfn: Gfn, raw: &Raw, is_tail: bool) {
        let layout = &kernel.profile.page;
        if is_tail {
            return;
        }
        if !layout.is_unused(raw) {
            let order = match layout.page_type(raw) {
                Some(PageType::Buddy) => u32::try_from(raw.u64(layout.private)).unwrap_or(LARGEST_ORDER),
                Some(_) => 0,
                // The tails of a compound page say so themselves, and what has a mapping is of no block.
                None if layout.is_compound(raw) || raw.u64(layout.mapping) != 0 => 0,
                None => gfn.0.trailing_zeros(),
            };
            self.block_end = gfn.0.saturating_add(1 << order.min(LARGEST_ORDER));
        } else if gfn.0 >= self.block_end {
            match self.runs.last_mut() {
                Some(last) if last.end == gfn => last.end.0 += 1,
                _ => self.runs.push(gfn..Gfn(gfn.0 + 1)),
            }
        }
    }
}

impl Kernel<'_> {
    /// Those frames of a census that are on no free list, as `is_listed` tells. More than allocations under way can
    /// have are no such frames: an error.
    pub fn unlisted_frames(
        &self,
        runs: &[Range<Gfn>],
        is_listed: impl Fn(Gfn) -> bool,
    ) -> Result<Vec<Gfn>, KernelError> {
        let frames = runs.iter().flat_map(|run| (run.start.0..run.end.0).map(Gfn));
        let found: Vec<Gfn> = frames.filter(|gfn| !is_listed(*gfn)).collect();
        let most = (self.per_cpu.len() as u64 + PREEMPTED) << LARGEST_ORDER;
        match found.first() {
            Some(first) if found.len() as u64 > most => Err(KernelError::Torn {
                what: "free memory",
                at: Gva(self.page_of(*first).0),
                why: "more of it is on no list than allocations under way can have",
            }),
            _ => Ok(found),
        }
    }
}
