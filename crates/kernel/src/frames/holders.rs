//! Who holds what the kernel allocated for itself, page by page, and gave no mark: by pointer.
//!
//! ```text
//! static data, slab objects, vmalloc ... -> address in the direct map, or struct page -> first frame
//! first frame | rest of the block: no pointer of its own, up to the next frame that has one
//! ```
//! A pointer may be stale, or a number that looks like one. It decides nothing: what may be left out is
//! told by descriptors and page tables alone, and these frames stay.

use super::{FrameKind, FrameScan};
use crate::Kernel;
use elision_memory::{Gfn, Gpa, Gva, PAGE_SIZE};

/// Memory in which pointers of the kernel stand, the most telling first.
const HOLDERS: [FrameKind; 7] = [
    FrameKind::KernelImage,
    FrameKind::Slab,
    FrameKind::Vmalloc,
    FrameKind::Reserved,
    FrameKind::LargeKmalloc,
    FrameKind::KernelCompound,
    FrameKind::KernelBlock,
];
/// A hash table in a block of its own leads to further blocks.
const ROUNDS: usize = 2;

impl FrameScan {
    /// Explains blocks of kernel memory by a pointer to them. To be done last.
    pub fn find_holders(&mut self, kernel: &Kernel<'_>) {
        for _ in 0..ROUNDS {
            for kind in HOLDERS {
                let holders: Vec<Gfn> = self.frames().filter(|f| f.1 == kind).map(|f| f.0).collect();
                for holder in holders {
                    self.note_pointers_in(kernel, holder);
                }
            }
            self.spread_holders();
        }
    }

    fn note_pointers_in(&mut self, kernel: &Kernel<'_>, holder: Gfn) {
        kernel.for_each_pointer(holder, &mut |at, gfn| {
            if gfn != holder && self.kind(gfn).is_vague() {
                self.holders.entry(gfn).or_insert(at);
            }
        });
    }

    fn spread_holders(&mut self) {
        let vague: Vec<Gfn> = self.frames().filter(|f| f.1.is_vague()).map(|f| f.0).collect();
        let mut block: Option<(u64, Gpa)> = None;
        for gfn in vague {
            let inherited = block.filter(|(next, _)| *next == gfn.0).map(|(_, holder)| holder);
            let holder = self.holders.get(&gfn).copied().or(inherited);
            block = holder.map(|holder| (gfn.0 + 1, holder));
            let Some(holder) = holder else { continue };
            self.holders.insert(gfn, holder);
            if self.kind(gfn) == FrameKind::Unknown {
                self.set(gfn, FrameKind::KernelBlock);
            }
        }
    }
}

/// Low bits of a pointer to a page are free for marks of whoever keeps it.
const MARKS: u64 = 3;

impl Kernel<'_> {
    /// Calls `visit` with each word in a frame that leads to RAM, by the direct map or by a descriptor.
    pub(super) fn for_each_pointer(&self, holder: Gfn, visit: &mut dyn FnMut(Gpa, Gfn)) {
        let mut page = [0; PAGE_SIZE];
        if self.ram.read_frame(holder, &mut page).is_err() {
            return;
        }
        for (at, bytes) in (holder.gpa().0..).step_by(8).zip(page.chunks_exact(8)) {
            let word = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            if word >> 63 == 0 || word == u64::MAX {
                continue;
            }
            let by_address = self.direct(Gva(word)).map(Gpa::gfn);
            if let Some(gfn) = by_address.or_else(|| self.frame_of(Gva(word & !MARKS))) {
                visit(Gpa(at), gfn);
            }
        }
    }
}
