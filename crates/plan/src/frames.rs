//! Which frames are left out: memory of excluded processes that nobody else uses, and free memory.
//!
//! A frame belongs to the excluded processes when their page tables or their shared memory objects
//! lead to it and no kept process's do: see `kept.rs`.

use crate::frame_table::{FrameTable, LargeLeaves, Mapper};
use crate::kept::Kept;
use crate::regions::Regions;
use crate::swap::{self, Swapped};
use crate::{DropReason, PlanError, PlanSummary, Selection};
use elision_kernel::{Entry, Fresh, Kernel, KernelError, Mm, Page, PageKind, Process, Pte, SwapSlot, Vma};
use elision_memory::{Budget, Gfn, Gva, WalkError};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;

const ISA_HOLE: Range<u64> = 0xa0..0x100; // video memory and ROMs are no free memory

/// No area is described in less than 128 bytes; a quarter of RAM full of file tables is more than enough.
const AREAS_IN_FRAME: u64 = 32;
const SLOTS_IN_FRAME: u64 = 128;

/// What stands in the way of leaving everything out.
pub(crate) type Unaccounted = Vec<String>;

/// Shared memory objects, by their page cache, with an excluded process that maps each.
#[derive(Default)]
struct SharedObjects {
    excluded: BTreeMap<Gva, (u32, bool)>,
}

pub(crate) struct FrameSurvey<'a, 'k> {
    pub(crate) kernel: &'a Kernel<'k>,
    pub(crate) table: FrameTable,
    pub(crate) kept: Kept,
    budget: Budget,
    pub(crate) large: Mutex<LargeLeaves>,
    /// Areas, file table slots and page cache entries that may still be looked at: a guest has no
    /// more than fit into its RAM, and forged ones that lead to the same memory again and again end here.
    areas_left: Budget,
    pub(crate) slots_left: Budget,
    pub(crate) cached_left: u64,
    pub(crate) swap_areas: u32,
    pub(crate) swapped: Swapped,
    pub(crate) unaccounted: Unaccounted,
}

impl<'a, 'k> FrameSurvey<'a, 'k> {
    pub(crate) fn new(kernel: &'a Kernel<'k>) -> Result<Self, PlanError> {
        let limit = kernel.ram().layout().frame_limit();
        Ok(Self {
            kernel,
            table: FrameTable::new(limit),
            kept: Kept::default(),
            // A table page belongs to one address space: a guest cannot have more than it has frames.
            // Tables that hugetlbfs shares are few beside the frames that they lead to.
            budget: Budget::new(limit.0),
            large: Mutex::default(),
            areas_left: Budget::new(limit.0.saturating_mul(AREAS_IN_FRAME)),
            slots_left: Budget::new(limit.0.saturating_mul(SLOTS_IN_FRAME)),
            cached_left: limit.0.saturating_mul(2),
            swap_areas: kernel.swap_areas()?,
            swapped: Swapped::new(limit),
            unaccounted: Vec::new(),
        })
    }

    /// Decides on all memory that excluded processes map.
    pub(crate) fn survey_processes(
        &mut self,
        selection: &Selection,
        summary: &mut PlanSummary,
    ) -> Result<(), PlanError> {
        let mut shared = SharedObjects::default();
        let mut regions = Regions::new(&selection.regions, &selection.processes);
        let mut spaces = BTreeMap::new();
        for process in selection.excluded() {
            if let Some(addr) = process.mm {
                if spaces.insert(addr, process.pid).is_none() {
                    self.excluded_space(process, addr, &mut shared)?;
                }
            }
        }
        let (mut seen, mut kept) = (BTreeSet::new(), Vec::new());
        for process in selection.kept() {
            let Some(addr) = process.mm.filter(|_| !process.kernel_thread) else { continue };
            if let Some(pid) = spaces.get(&addr) {
                self.unaccounted.push(format!(
                    "process {pid} shares all its memory with process {} ({}), which is not excluded",
                    process.pid, process.comm
                ));
            }
            let is_first = seen.insert(addr);
            if is_first && !regions.are_marked_by(addr) {
                self.kept.add(addr);
            }
            kept.push((process, Some(addr).filter(|_| is_first)));
        }
        if !shared.excluded.is_empty() {
            let kernel = self.kernel;
            for file in self.kept_files(selection)? {
                kernel.file_mapping(*file)?.and_then(|mapping| shared.excluded.remove(&mapping));
            }
        }
        for mapping in shared.excluded.keys().copied().collect::<Vec<_>>() {
            if !self.kernel.spaces_that_map(mapping, &self.areas_left)?.is_disjoint(&seen) {
                shared.excluded.remove(&mapping);
            }
        }
        // There is much to ask then, or what no count of the kernel's tells: who uses a page table, or a slot in swap.
        let shares_all = spaces.keys().any(|addr| seen.contains(addr));
        if shares_all || !(regions.is_empty() && selection.files.is_empty() && self.swapped.is_empty()) {
            self.walk_kept()?;
        }
        for (process, space) in kept {
            if let Some(addr) = space {
                self.marked_space(process, addr, &mut regions)?;
            }
            regions.open_files(self.kernel, process, &self.slots_left)?;
        }
        regions.drop_marked(self, summary)?;
        self.drop_shared_objects(&shared)?;
        self.decide(summary)
    }

    fn excluded_space(
        &mut self,
        process: &Process,
        addr: Gva,
        shared: &mut SharedObjects,
    ) -> Result<(), PlanError> {
        let (kernel, pid) = (self.kernel, process.pid);
        let mm = kernel.mm(addr)?;
        if mm.write_locked {
            let what = "its address space is being changed";
            return Err(PlanError::Busy { pid, comm: process.comm.clone(), what });
        }
        let vmas = self.areas(mm)?;
        for vma in vmas.iter().filter(|vma| vma.is_shared_writable()) {
            if let Some(mapping) = kernel.vma_mapping(vma)? {
                shared.excluded.entry(mapping).or_insert((pid, vma.is_hugetlb()));
            }
        }
        let mut moving = false;
        let Self { table, large, budget, swap_areas, swapped, .. } = self;
        mm.tables
            .walk(kernel.ram(), mm.tables.user_range(), budget, |leaf| {
                let entry = Entry::of(leaf, *swap_areas);
                match entry.pte {
                    Pte::Memory(gpa) => {
                        let hugetlb = is_hugetlb(&vmas, leaf.gva);
                        let mapper = Mapper::Excluded { hugetlb };
                        table.count_entry(gpa.gfn());
                        for gfn in table.new_frames(large, gpa.gfn(), entry.size, mapper) {
                            table.set_owner(gfn, pid);
                            if hugetlb {
                                table.mark_huge(gfn);
                            }
                        }
                    }
                    Pte::Swap { area, slot } => {
                        swapped.note(SwapSlot { area, slot }, entry.size.frames(), pid);
                    }
                    Pte::Marker => {}
                    Pte::Special(_) => moving = true,
                }
            })
            .map_err(KernelError::from)?;
        if moving {
            let what = "a page of it is being moved";
            return Err(PlanError::Busy { pid, comm: process.comm.clone(), what });
        }
        Ok(())
    }

    /// Keeps what a process maps some areas of which may be marked, but for those.
    fn marked_space(
        &mut self,
        process: &Process,
        addr: Gva,
        regions: &mut Regions<'_>,
    ) -> Result<(), PlanError> {
        if !regions.are_marked_by(addr) {
            return Ok(());
        }
        let mm = self.kernel.mm(addr)?;
        let Some(marked) = regions.marked_areas(self.kernel, addr, &self.areas(mm)?)? else { return Ok(()) };
        let busy = |what| PlanError::Busy { pid: process.pid, comm: process.comm.clone(), what };
        if mm.write_locked {
            return Err(busy("its address space is being changed"));
        }
        let (mut moving, mut kept_slots) = (false, BTreeSet::new());
        self.walk(mm, |gva, entry| {
            let is_marked = marked.at(gva);
            if let (Pte::Memory(gpa), Some(hugetlb)) = (entry.pte, is_marked) {
                let frames = self.table.new_frames(&self.large, gpa.gfn(), entry.size, Mapper::Marked);
                frames.for_each(|gfn| regions.mark(gfn, marked.pid, hugetlb));
                return;
            }
            kept_slots.extend(self.keep_entry(entry));
            match entry.pte {
                Pte::Swap { .. } if is_marked.is_some() => regions.swapped(marked.pid, entry.size.frames()),
                Pte::Special(_) if is_marked.is_some() => moving = true,
                _ => {}
            }
        })?;
        kept_slots.into_iter().for_each(|(first, pages)| self.swapped.keep(first, pages));
        if moving { Err(busy("a page of it is being moved")) } else { Ok(()) }
    }

    /// The files that a process maps.
    pub(crate) fn mapped_files(&self, process: &Process) -> Result<BTreeSet<Gva>, PlanError> {
        let Some(addr) = process.mm.filter(|_| !process.kernel_thread) else { return Ok(BTreeSet::new()) };
        let areas = self.areas(self.kernel.mm(addr)?)?;
        Ok(areas.into_iter().filter_map(|area| area.file).collect())
    }

    fn areas(&self, mm: Mm) -> Result<Vec<Vma>, PlanError> {
        let vmas = self.kernel.vmas(mm)?;
        if self.areas_left.take(vmas.len() as u64) {
            return Ok(vmas);
        }
        let why = "there are more than the guest has room for";
        Err(KernelError::Torn { what: "VMA", at: mm.addr, why }.into())
    }

    pub(crate) fn walk(&self, mm: Mm, mut visit: impl FnMut(Gva, Entry)) -> Result<(), PlanError> {
        let walked: Result<(), WalkError> =
            mm.tables.walk(self.kernel.ram(), mm.tables.user_range(), &self.budget, |leaf| {
                visit(leaf.gva, Entry::of(leaf, self.swap_areas));
            });
        walked.map_err(|error| KernelError::from(error).into())
    }

    /// Objects that only excluded processes map or have open, with all their pages, mapped or not.
    fn drop_shared_objects(&mut self, shared: &SharedObjects) -> Result<(), PlanError> {
        shared
            .excluded
            .iter()
            .try_for_each(|(&mapping, &(pid, hugetlb))| self.drop_shared_object(mapping, pid, hugetlb))
    }

    /// All pages of an object, but those that a process which stays maps.
    pub(crate) fn drop_shared_object(
        &mut self,
        mapping: Gva,
        pid: u32,
        hugetlb: bool,
    ) -> Result<(), PlanError> {
        let (frames, evicted) = self.kernel.cached_frames(mapping, &mut self.cached_left)?;
        let is_whole = hugetlb || self.kernel.is_secret_memory(mapping)?;
        for gfn in frames {
            let is_shmem = is_whole || self.kernel.page(gfn)?.kind == PageKind::SharedMemory;
            if is_shmem && !self.is_kept(gfn)? {
                self.table.set_owner(gfn, pid);
                let reason = if hugetlb { DropReason::HugeTlb } else { DropReason::SharedMemory };
                self.table.drop_frame(gfn, reason);
            }
        }
        if evicted > 0 {
            for slot in self.kernel.swapped_pages(mapping, &mut self.cached_left)? {
                self.swapped.note(slot, 1, pid);
            }
        }
        Ok(())
    }

    /// Decides on what excluded processes map, page by page.
    fn decide(&mut self, summary: &mut PlanSummary) -> Result<(), PlanError> {
        let (mut page, mut undecided) = (Vec::<Page>::new(), Vec::new());
        for gfn in self.table.owned() {
            if self.table.is_dropped(gfn) {
                continue;
            }
            let frame = self.kernel.page(gfn)?;
            if page.first().is_some_and(|first| first.head != frame.head) {
                self.decide_if_told(std::mem::take(&mut page), &mut undecided, summary)?;
            }
            page.push(frame);
        }
        self.decide_if_told(page, &mut undecided, summary)?;
        if !undecided.is_empty() {
            self.walk_kept()?;
        }
        undecided.iter().try_for_each(|page| self.decide_page(page, summary))
    }

    /// Decides on the frames of a page unless it must be known first what others map.
    fn decide_if_told(
        &mut self,
        page: Vec<Page>,
        undecided: &mut Vec<Vec<Page>>,
        summary: &mut PlanSummary,
    ) -> Result<(), PlanError> {
        let is_private = |frame: &Page| matches!(frame.kind, PageKind::Anonymous | PageKind::Merged);
        if page.iter().any(is_private) && !self.is_told(&page) {
            undecided.push(page);
            return Ok(());
        }
        self.decide_page(&page, summary)
    }

    fn decide_page(&mut self, page: &[Page], summary: &mut PlanSummary) -> Result<(), PlanError> {
        let mut stays = |what: &str| *summary.kept_frames.entry(what.to_owned()).or_default() += 1;
        let mut is_first = true;
        for frame in page {
            match frame.kind {
                PageKind::Anonymous | PageKind::Merged if self.table.is_kept(frame.gfn) => {
                    stays("mapped by other processes too");
                }
                PageKind::Anonymous | PageKind::Merged => {
                    let huge = self.table.is_huge(frame.gfn);
                    let reason = if huge { DropReason::HugeTlb } else { DropReason::Anonymous };
                    self.table.drop_frame(frame.gfn, reason);
                    if std::mem::take(&mut is_first) {
                        let owner = self.table.owner_of(frame.gfn);
                        self.table.drop_rest_of_folio(self.kernel, frame.head, reason, owner)?;
                    }
                }
                PageKind::SharedMemory => stays("shared memory or tmpfs file that others use or may use"),
                PageKind::File => stays("page cache of a file"),
                PageKind::Reserved | PageKind::Other => stays("memory of the kernel or a device"),
            }
        }
        Ok(())
    }

    /// What is in swap. All memory must have been surveyed before.
    pub(crate) fn survey_swap(
        &mut self,
        selection: &Selection,
        summary: &mut PlanSummary,
    ) -> Result<(), PlanError> {
        swap::count_compressed(self.kernel, self.swap_areas, summary)?;
        if self.swap_areas == 0 || selection.excluded.is_empty() {
            return Ok(());
        }
        let swapped = std::mem::take(&mut self.swapped);
        swapped.decide(self.kernel, &selection.processes, &mut self.table, &mut self.unaccounted)
    }

    /// Everything that belongs to nobody.
    pub(crate) fn survey_free(&mut self) -> Result<(), PlanError> {
        let Self { kernel, table, .. } = self;
        let mut free = |reason, block: Range<Gfn>| {
            let (before, behind) = (block.end.min(Gfn(ISA_HOLE.start)), block.start.max(Gfn(ISA_HOLE.end)));
            table.drop_frames(block.start..before, reason);
            table.drop_frames(behind..block.end, reason);
        };
        kernel.buddy_frames(&mut |block| free(DropReason::Free, block))?;
        kernel.per_cpu_free_frames(&mut |block| free(DropReason::FreePerCpu, block))?;
        kernel.huge_free_frames(&mut |block| free(DropReason::FreeHuge, block))?;
        kernel.dead_batch_frames(&mut |block| free(DropReason::DeadInBatch, block))?;
        Ok(())
    }

    /// The same of what is on no list. All lists must have been surveyed before.
    pub(crate) fn survey_unlisted(&mut self, runs: &[Range<Gfn>]) -> Result<(), PlanError> {
        let table = &mut self.table;
        for gfn in self.kernel.unlisted_frames(runs, |gfn| table.is_dropped(gfn))? {
            if !ISA_HOLE.contains(&gfn.0) && !table.is_mapped(gfn) {
                table.drop_frame(gfn, DropReason::Free);
            }
        }
        Ok(())
    }

    /// The first frames of blocks that may be being cleared for their next owner. All lists must have been surveyed before.
    pub(crate) fn fresh_blocks(&self, blocks: &[Fresh]) -> Result<Vec<Gfn>, PlanError> {
        Ok(self.kernel.fresh_blocks(blocks, |gfn| self.table.is_dropped(gfn))?)
    }
}

fn is_hugetlb(vmas: &[Vma], gva: Gva) -> bool {
    let i = vmas.partition_point(|vma| vma.range.start <= gva);
    i.checked_sub(1).and_then(|i| vmas.get(i)).is_some_and(|vma| gva < vma.range.end && vma.is_hugetlb())
}
