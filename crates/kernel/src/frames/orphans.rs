//! Anonymous pages that no page table leads to, and what may still hold them.
//!
//! ```text
//! page.mapping -> anon_vma . rb_root -> anon_vma_chain -> vma -> mm     whose memory it was
//! kernel memory -> struct page                                          a pipe, a socket buffer, a write under way
//! ```
//! A page keeps its `anon_vma` pointer when its areas are gone, and what stands there then may belong to
//! others: the page's own place must lie in an area for the area to count.

use super::FrameKind;
use crate::layout::layout;
use crate::page::{PageKind, Raw, UNMAPPED};
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva, PAGE_SIZE};
use std::collections::{BTreeMap, BTreeSet};

layout! {
    pub(crate) struct OrphanLayout {
        tree: optional("anon_vma", &["rb_root.rb_root"]),
        chain_node: optional("anon_vma_chain", &["rb"]),
        chain_vma: optional("anon_vma_chain", &["vma"]),
        vma_mm: optional("vm_area_struct", &["vm_mm"]),
    }
}

const WHAT: &str = "areas of an anonymous page";
/// More areas than this that may map one page: whose it is is then not told.
const AREA_LIMIT: usize = 4096;

/// An anonymous base page that no page table leads to, by its own count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// The frame.
    pub gfn: Gfn,
    /// References to it, without those of per-CPU batches.
    pub held: u32,
    /// Whether it is on a reclaim list, or on its way there: nobody has taken it off to do something with it.
    pub listed: bool,
    anon_vma: Gva,
    index: u64,
}

impl Kernel<'_> {
    /// The frame as an unmapped page, if it is one; no tail of a compound page is asked for. Pages of the swap cache are not, nor those that are locked
    /// or being written, which somebody works on.
    pub(super) fn unmapped(&self, gfn: Gfn, raw: &Raw, batched: &BTreeMap<Gfn, u32>) -> Option<Unmapped> {
        let layout = &self.profile.page;
        let counts = layout.counts(raw);
        let is_one = counts.mapped == UNMAPPED
            && counts.references != 0
            && layout.kind(raw) == PageKind::Anonymous
            && layout.page_type(raw).is_none()
            && !layout.is_compound(raw)
            && !layout.is_busy(raw);
        let in_batches = batched.get(&gfn).copied().unwrap_or(0);
        is_one.then(|| Unmapped {
            gfn,
            held: counts.references.saturating_sub(in_batches),
            listed: in_batches > 0 || layout.is_on_lru(raw),
            anon_vma: layout.anon_vma(raw),
            index: layout.index(raw),
        })
    }

    /// Which of these frames the kernel's memory points to, or to the frame before: data can go on from
    /// one page into the next with one pointer for both.
    pub fn frames_pointed_to(&self, frames: &BTreeSet<Gfn>) -> Result<BTreeSet<Gfn>, KernelError> {
        let scan = self.scan_frames()?;
        let mut pointed = BTreeSet::new();
        for holder in scan.frames().filter(|(_, kind)| kind.is_of_kernel()).map(|(gfn, _)| gfn) {
            self.for_each_pointer(holder, &mut |_, target| {
                pointed.extend(frames.get(&target));
                pointed.extend(frames.get(&Gfn(target.0 + 1)));
            });
        }
        let mut spread = pointed.clone();
        for gfn in frames {
            if gfn.0.checked_sub(1).is_some_and(|before| spread.contains(&Gfn(before))) {
                spread.insert(*gfn);
            }
        }
        Ok(spread)
    }

    /// The address spaces that have an area for the page. Empty if none has any more.
    pub fn spaces_of_unmapped(&self, page: &Unmapped) -> BTreeSet<Gva> {
        self.areas_of(page).ok().flatten().unwrap_or_default()
    }

    fn areas_of(&self, page: &Unmapped) -> Result<Option<BTreeSet<Gva>>, KernelError> {
        let (layout, areas) = (&self.profile.orphan, &self.profile.mm);
        let (Some(tree), Some(node), Some(vma), Some(mm)) =
            (layout.tree, layout.chain_node, layout.chain_vma, layout.vma_mm)
        else {
            return Ok(None);
        };
        let read = |at: Gva, offset: u64| self.pointer(at.wrapping_add(offset), WHAT);
        let (mut spaces, mut left) = (BTreeSet::new(), AREA_LIMIT);
        self.for_each_in_tree(page.anon_vma.wrapping_add(tree), WHAT, &mut |at| {
            let torn = KernelError::Torn { what: WHAT, at, why: "there are too many to look at" };
            left = left.checked_sub(1).ok_or(torn)?;
            let area = read(Gva(at.0.wrapping_sub(node)), vma)?;
            let (start, end) = (read(area, areas.start)?, read(area, areas.end)?);
            let first = read(area, areas.pgoff)?.0;
            let pages = end.0.saturating_sub(start.0) / PAGE_SIZE as u64;
            if page.index.checked_sub(first).is_some_and(|i| i < pages) {
                spaces.insert(read(area, mm)?);
            }
            Ok(())
        })?;
        Ok(Some(spaces))
    }
}

impl FrameKind {
    /// Whether the kernel may keep pointers of its own in such a frame.
    fn is_of_kernel(self) -> bool {
        !matches!(
            self,
            Self::Absent
                | Self::Free
                | Self::FreePerCpu
                | Self::FreeHuge
                | Self::Anonymous
                | Self::Merged
                | Self::Orphan
                | Self::SharedMemory
                | Self::File
                | Self::HugeTlb
                | Self::StructPages
        )
    }
}
