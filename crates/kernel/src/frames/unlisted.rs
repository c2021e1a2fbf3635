//! Free frames that are on no list: those that an allocation or a free has in its hands, and those that compaction has
//! taken to move pages into.
//!
//! Until the kernel has cleared them for their next owner they hold what the last one left. Such a frame has no
//! reference, no mark, no file and no area, and is behind no frame that may be the first of a block in use: of a block
//! that is no compound page, only the first frame has references (`mm/page_alloc.c`).
//!
//! Before 6.14 a block gets its reference before it is cleared, and a kernel that does not clear what it allocates leaves
//! that to who maps it. Such a block looks like any that the kernel has for itself: only that it was not there a moment
//! before tells it from those ([`Fresh`]).

use crate::page::{PageType, Raw, Unmarked};
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva};
use rayon::prelude::*;
use std::ops::Range;

/// The largest block of the buddy allocator is 2^10 frames.
const LARGEST_ORDER: u32 = 10;
/// Allocations under way beside one of each CPU.
const PREEMPTED: u64 = 16;

/// Blocks that are no compound pages, from this many frames behind their first on. The kernel takes smaller ones all the
/// time: a process's top page table is one of two frames.
const FEWEST_BEHIND: u64 = 3;
/// Compound pages, likewise: a huge page has 512 frames.
const FEWEST_TAILS: u64 = 511;

/// A block in use that nothing tells the use of: the kernel has it for itself, or clears it for its next owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Its first frame.
    pub first: Gfn,
    /// Frames behind that, of the block as far as they are on no list.
    behind: u64,
    is_compound: bool,
}

/// What one pass over descriptors, ascending from the beginning of a block, finds.
pub(super) struct Unlisted<'k> {
    unmarked: Unmarked<'k>,
    /// The end of the block that the last frame with a use may be the first of.
    block_end: u64,
    pub(super) runs: Vec<Range<Gfn>>,
    pub(super) fresh: Vec<Fresh>,
    /// The block that the next frame may belong to.
    open: Option<Fresh>,
}

impl<'k> Unlisted<'k> {
    pub(super) fn new(unmarked: Unmarked<'k>) -> Self {
        Self { unmarked, block_end: 0, runs: Vec::new(), fresh: Vec::new(), open: None }
    }

    /// Looks at the next frame.
    pub(super) fn look(&mut self, kernel: &Kernel<'_>, gfn: Gfn, raw: &Raw, is_tail: bool) {
        let layout = &kernel.profile.page;
        if is_tail {
            return self.extend(true);
        }
        if !self.unmarked.is_unused(raw) {
            self.close();
            let is_compound = layout.is_compound(raw);
            self.open = self.unmarked.is_fresh(raw).then_some(Fresh { first: gfn, behind: 0, is_compound });
            let order = match layout.page_type(raw) {
                Some(PageType::Buddy) => u32::try_from(raw.u64(layout.private)).unwrap_or(LARGEST_ORDER),
                Some(_) => 0,
                // The tails of a compound page say so themselves, and what has a mapping is of no block.
                None if is_compound || raw.u64(layout.mapping) != 0 => 0,
                None => gfn.0.trailing_zeros(),
            };
            self.block_end = gfn.0.saturating_add(1 << order.min(LARGEST_ORDER));
        } else if gfn.0 < self.block_end {
            self.extend(false);
        } else {
            self.close();
            match self.runs.last_mut() {
                Some(last) if last.end == gfn => last.end.0 += 1,
                _ => self.runs.push(gfn..Gfn(gfn.0 + 1)),
            }
        }
    }

    /// Counts a frame, a tail of a compound page or not, to the last block.
    fn extend(&mut self, is_tail: bool) {
        if let Some(block) = self.open.as_mut().filter(|block| block.is_compound == is_tail) {
            block.behind += 1;
        }
    }

    /// There are no more frames of the last block.
    pub(super) fn close(&mut self) {
        let fewest = |block: &Fresh| if block.is_compound { FEWEST_TAILS } else { FEWEST_BEHIND };
        let is_large = |block: &Fresh| block.behind >= fewest(block);
        self.fresh.extend(self.open.take().filter(is_large));
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

    /// The first frames of blocks that may be being cleared now, in a VM that runs on.
    #[must_use]
    pub fn fresh_blocks_now(&self) -> Vec<Gfn> {
        const STEP: u64 = FEWEST_BEHIND + 1;
        let layout = &self.profile.page;
        let unmarked = layout.unmarked();
        let is_fresh = |gfn: &Gfn| {
            let raw = self.raw_page(*gfn).ok().filter(|raw| unmarked.is_fresh(raw));
            let behind = || self.raw_page(Gfn(gfn.0 + 1)).is_ok_and(|raw| unmarked.is_unused(&raw));
            raw.is_some_and(|raw| layout.is_compound(&raw) || behind())
        };
        let aligned =
            |run: &Range<Gfn>| (run.start.0.div_ceil(STEP)..run.end.0.div_ceil(STEP)).map(|i| Gfn(i * STEP));
        self.chunks().par_iter().flat_map_iter(|frames| aligned(frames).filter(is_fresh)).collect()
    }

    /// The first frames of those blocks of a census that may be being cleared, of frames that `is_listed` says are on no
    /// list of free ones.
    pub fn fresh_blocks(
        &self,
        blocks: &[Fresh],
        is_listed: impl Fn(Gfn) -> bool,
    ) -> Result<Vec<Gfn>, KernelError> {
        let clears_all = self.clears_what_it_allocates()?;
        let is_open = |block: &&Fresh| {
            let frames = block.first.0..block.first.0 + FEWEST_BEHIND + 1;
            if block.is_compound { !clears_all } else { !frames.map(Gfn).any(&is_listed) }
        };
        Ok(blocks.iter().filter(is_open).map(|block| block.first).collect())
    }

    /// Whether all memory is cleared before it has an owner: `init_on_alloc`. A kernel that has no such setting does not.
    fn clears_what_it_allocates(&self) -> Result<bool, KernelError> {
        let Some(key) = self.symbol("init_on_alloc") else { return Ok(false) };
        Ok(self.u32(key, "the setting init_on_alloc")? != 0) // `static_key.enabled` comes first
    }
}
