//! The pass over all descriptors, and what the kernel's own lists and tables add to it.

use super::FrameKind;
use crate::page::Raw;
use crate::view::Region;
use crate::{Kernel, KernelError};
use elision_memory::{Budget, Gfn, Gpa, Gva, Node};
use std::collections::BTreeMap;
use std::ops::Range;

const WHAT: &str = "page descriptors";
/// Descriptors read at once: 4 KiB of them.
const BATCH: u64 = 64;
const KERNEL_HALF: std::ops::Range<Gva> = Gva(1 << 63)..Gva(u64::MAX);

/// What each frame of a guest is used for.
#[derive(Clone, Debug)]
pub struct FrameScan {
    pub(super) kinds: Vec<FrameKind>,
    /// A process that maps the frame, or whose page table it is; 0 for none.
    pub(super) owners: Vec<u32>,
    /// Where a pointer to a block of the kernel stands, for each frame of it.
    pub(super) holders: BTreeMap<Gfn, Gpa>,
}

impl FrameScan {
    /// What a frame is used for.
    #[must_use]
    pub fn kind(&self, gfn: Gfn) -> FrameKind {
        index(gfn).and_then(|i| self.kinds.get(i)).copied().unwrap_or(FrameKind::Absent)
    }

    /// All frames that have a descriptor, ascending.
    pub fn frames(&self) -> impl Iterator<Item = (Gfn, FrameKind)> + '_ {
        let all = (0..).map(Gfn).zip(self.kinds.iter().copied());
        all.filter(|(_, kind)| *kind != FrameKind::Absent)
    }

    pub(super) fn set(&mut self, gfn: Gfn, kind: FrameKind) {
        if let Some(slot) = index(gfn).and_then(|i| self.kinds.get_mut(i)) {
            *slot = kind;
        }
    }

    fn set_all(&mut self, frames: Range<Gfn>, kind: FrameKind) {
        (frames.start.0..frames.end.0).for_each(|frame| self.set(Gfn(frame), kind));
    }

    /// Tells more of a frame of which the descriptor tells little.
    pub(super) fn refine(&mut self, gfn: Gfn, kind: FrameKind) {
        if self.kind(gfn).is_vague() {
            self.set(gfn, kind);
        }
    }

    pub(super) fn own(&mut self, gfn: Gfn, pid: u32) {
        if let Some(slot) = index(gfn).and_then(|i| self.owners.get_mut(i)).filter(|slot| **slot == 0) {
            *slot = pid;
        }
    }
}

pub(super) fn index(gfn: Gfn) -> Option<usize> {
    usize::try_from(gfn.0).ok()
}

impl Kernel<'_> {
    /// What the descriptors, the free lists and the kernel's own page tables tell of all frames.
    pub fn scan_frames(&self) -> Result<FrameScan, KernelError> {
        let mut scan = self.scan_descriptors();
        self.buddy_frames(&mut |block| scan.set_all(block, FrameKind::Free))?;
        self.per_cpu_free_frames(&mut |block| scan.set_all(block, FrameKind::FreePerCpu))?;
        self.huge_free_frames(&mut |block| scan.set_all(block, FrameKind::FreeHuge))?;
        self.scan_kernel_tables(&mut scan)?;
        for gfn in self.unlisted_frames(&self.census()?.unlisted, |gfn| scan.kind(gfn).is_free())? {
            scan.refine(gfn, FrameKind::Free);
        }
        Ok(scan)
    }

    /// What the descriptors alone tell: the fast pass.
    #[must_use]
    pub fn scan_descriptors(&self) -> FrameScan {
        let limit = index(self.ram.layout().frame_limit()).unwrap_or(0);
        let mut scan = FrameScan {
            kinds: vec![FrameKind::Absent; limit],
            owners: vec![0; limit],
            holders: BTreeMap::new(),
        };
        self.for_each_descriptor(|gfn, raw| {
            // Tails of a compound page are what its head is, which stands before them.
            let kind = match self.head_of(gfn, raw) {
                Ok(head) if head == gfn => FrameKind::of(&self.profile.page, raw),
                Ok(head) => scan.kind(head),
                Err(_) => FrameKind::Unknown,
            };
            scan.set(gfn, kind);
        });
        scan
    }

    /// Calls `visit` with every frame's descriptor, ascending. Holes in their array are passed over.
    pub(crate) fn for_each_descriptor(&self, mut visit: impl FnMut(Gfn, &Raw)) {
        for region in self.ram.layout().regions() {
            let frames = region.gpa.gfn()..region.gpa.wrapping_add(region.len).gfn();
            self.descriptors_of(&frames, &mut visit);
        }
    }

    /// The same with those of some frames, all in one piece of RAM.
    pub(super) fn descriptors_of(&self, frames: &Range<Gfn>, mut visit: impl FnMut(Gfn, &Raw)) {
        let size = usize::try_from(self.profile.page.size).unwrap_or(usize::MAX).min(4096);
        let mut batch = vec![0; size * usize::try_from(BATCH).unwrap_or(0)];
        let mut at = frames.start.0;
        while at < frames.end.0 {
            let count = BATCH.min(frames.end.0 - at);
            let len = size * usize::try_from(count).unwrap_or(0);
            let Some(bytes) = batch.get_mut(..len) else { break };
            if self.read(self.page_of(Gfn(at)), bytes, WHAT).is_ok() {
                for (gfn, bytes) in (at..).map(Gfn).zip(bytes.chunks_exact(size)) {
                    if let Some(raw) = Raw::at(bytes) {
                        visit(gfn, raw);
                    }
                }
            }
            at += count;
        }
    }

    fn scan_kernel_tables(&self, scan: &mut FrameScan) -> Result<(), KernelError> {
        let limit = self.ram.layout().frame_limit();
        for gfn in self.image_frames() {
            if scan.kind(gfn) == FrameKind::Reserved {
                scan.set(gfn, FrameKind::KernelImage);
            }
        }
        let budget = Budget::new(limit.0);
        self.kernel_tables().walk_nodes(self.ram, KERNEL_HALF, &budget, |node| match node {
            Node::Table(table) => scan.refine(table.gfn(), FrameKind::PageTable),
            Node::Leaf(leaf) if leaf.is_present() => {
                let kind = match self.region_of(leaf.gva) {
                    Region::Direct | Region::Image => return,
                    Region::StructPages => FrameKind::StructPages,
                    Region::Other => FrameKind::Vmalloc,
                };
                let first = leaf.target().gfn().0;
                let end = first.saturating_add(leaf.size.frames()).min(limit.0);
                for gfn in (first..end).map(Gfn) {
                    match (kind, scan.kind(gfn)) {
                        // The array of descriptors is allocated before there are any.
                        (FrameKind::StructPages, FrameKind::Reserved) => scan.set(gfn, kind),
                        _ => scan.refine(gfn, kind),
                    }
                }
            }
            Node::Leaf(_) => {}
        })?;
        Ok(())
    }
}
