//! The one pass over all descriptors that planning needs.

use super::orphans::Unmapped;
use super::unlisted::{Fresh, Unlisted};
use crate::page::{PageType, Raw};
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, RamRegion};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Frames of which one thread looks at the descriptors. The largest block of the buddy allocator, and so the largest slab,
/// is 1024 frames, aligned to its size: none crosses a multiple of this.
const CHUNK: u64 = 1 << 14;

/// The slabs of a VM that stands still: of its copy, too ([`Kernel::with_slabs`]).
#[derive(Clone, Debug, Default)]
pub struct Slabs {
    /// In ascending runs.
    frames: Vec<Range<Gfn>>,
    /// The first frame of each slab, with its descriptor.
    pub(crate) heads: Vec<(Gfn, Raw)>,
}

impl Slabs {
    /// All of their frames, in ascending runs.
    #[must_use]
    pub fn frames(&self) -> &[Range<Gfn>] {
        &self.frames
    }

    fn add(&mut self, frames: Range<Gfn>) {
        match self.frames.last_mut() {
            Some(last) if last.end == frames.start => last.end = frames.end,
            _ => self.frames.push(frames),
        }
    }
}

/// What planning must know of frames that no walk leads to.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// What is in slabs.
    pub slabs: Slabs,
    /// Anonymous base pages in use that no page table leads to.
    pub unmapped: Vec<Unmapped>,
    /// Runs of frames that are free if they are on no free list, and of some that are on one.
    pub unlisted: Vec<Range<Gfn>>,
    /// Blocks in use that may be being cleared, if their frames are on no free list.
    pub fresh: Vec<Fresh>,
}

impl Kernel<'_> {
    /// Looks at every descriptor once, with all processors.
    pub fn census(&self) -> Result<Census, KernelError> {
        let batched = self.batch_references()?;
        let parts: Vec<Census> =
            self.chunks().par_iter().map(|frames| self.census_of(frames, &batched)).collect();
        let mut census = Census::default();
        for Census { slabs, unmapped, unlisted, fresh } in parts {
            slabs.frames.into_iter().for_each(|run| census.slabs.add(run));
            census.slabs.heads.extend(slabs.heads);
            census.unmapped.extend(unmapped);
            census.unlisted.extend(unlisted);
            census.fresh.extend(fresh);
        }
        Ok(census)
    }

    /// All frames, in pieces for the processors.
    pub(super) fn chunks(&self) -> Vec<Range<Gfn>> {
        self.ram.layout().regions().iter().flat_map(chunks_of).collect()
    }

    fn census_of(&self, frames: &Range<Gfn>, batched: &BTreeMap<Gfn, u32>) -> Census {
        let layout = &self.profile.page;
        let mut census = Census::default();
        let (mut slab, mut unlisted) = (None, Unlisted::new(layout.unmarked()));
        self.descriptors_of(frames, |gfn, raw| {
            let is_tail = layout.is_tail(raw);
            unlisted.look(self, gfn, raw, is_tail);
            if !is_tail {
                slab = Some(gfn).filter(|_| layout.page_type(raw) == Some(PageType::Slab));
                census.slabs.heads.extend(slab.map(|_| (gfn, *raw)));
            }
            if slab.is_some() && self.head_of(gfn, raw).ok() == slab {
                census.slabs.add(gfn..Gfn(gfn.0 + 1));
            } else if !is_tail {
                census.unmapped.extend(self.unmapped(gfn, raw, batched));
            }
        });
        unlisted.close();
        census.unlisted = unlisted.runs;
        census.fresh = unlisted.fresh;
        census
    }
}

/// A piece of RAM, cut at multiples of [`CHUNK`].
fn chunks_of(region: &RamRegion) -> impl Iterator<Item = Range<Gfn>> + use<> {
    let (first, end) = (region.gpa.gfn().0, region.gpa.wrapping_add(region.len).gfn().0);
    (first / CHUNK..end.div_ceil(CHUNK)).map(move |i| {
        let start = i * CHUNK;
        Gfn(start.max(first))..Gfn((start + CHUNK).min(end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use elision_memory::{FileOffset, Gpa};

    #[test]
    fn chunks_cover_a_region_once() {
        const PAGE: u64 = 4096;
        for (first, frames) in [(0, 1), (0, CHUNK), (0, 3 * CHUNK + 7), (5, 2 * CHUNK), (CHUNK - 1, 2)] {
            let region = RamRegion { gpa: Gpa(first * PAGE), len: frames * PAGE, offset: FileOffset(0) };
            let chunks: Vec<_> = chunks_of(&region).collect();
            let mut at = first;
            for chunk in &chunks {
                assert_eq!(chunk.start.0, at);
                assert!(chunk.start < chunk.end && (chunk.end.0 - 1) / CHUNK == chunk.start.0 / CHUNK);
                at = chunk.end.0;
            }
            assert_eq!(at, first + frames);
        }
    }
}
