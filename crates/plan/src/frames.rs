//! Which frames are left out: memory of excluded processes that nobody else uses, and free memory.
//!
//! A frame belongs to the excluded processes when their page tables or their shared memory objects
//! lead to it and no kept process's do. Mapping counts in `struct page` are not used: newer kernels
//! do not keep them for each page of a large folio.

use crate::regions::Regions;
use crate::swap::{self, Swapped};
use crate::{DropReason, DropRun, PlanError, PlanSummary, Selection};
use elision_kernel::{Entry, Kernel, KernelError, Mm, PageKind, Process, Pte, SwapSlot, Vma};
use elision_memory::{Budget, Gfn, Gva, LeafSize};
use std::collections::{BTreeMap, BTreeSet};

const ISA_HOLE: std::ops::Range<u64> = 0xa0..0x100; // video memory and ROMs are no free memory

/// No area is described in less than 128 bytes; a quarter of RAM full of file tables is more than enough.
const AREAS_IN_FRAME: u64 = 32;
const SLOTS_IN_FRAME: u64 = 128;

/// One byte and one word for each frame.
pub(crate) struct FrameTable {
    reason: Vec<Option<DropReason>>,
    /// Process id of an excluded user, 0 for none.
    owner: Vec<u32>,
    kept: Vec<bool>,
    hugetlb: BTreeSet<Gfn>,
}

/// What maps a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mapper {
    /// A process that stays.
    Kept,
    /// Marked memory of a process that stays.
    Marked,
    /// An excluded process, on hugetlbfs or not.
    Excluded { hugetlb: bool },
}

/// Large leaves already noted.
pub(crate) type LargeLeaves = BTreeSet<(Gfn, LeafSize, Mapper)>;

/// What stands in the way of leaving everything out.
pub(crate) type Unaccounted = Vec<String>;

impl FrameTable {
    pub(crate) fn new(limit: Gfn) -> Self {
        let n = usize::try_from(limit.0).unwrap_or(0);
        Self { reason: vec![None; n], owner: vec![0; n], kept: vec![false; n], hugetlb: BTreeSet::new() }
    }

    pub(crate) fn set_owner(&mut self, gfn: Gfn, pid: u32) {
        if let Some(owner) = index(gfn).and_then(|i| self.owner.get_mut(i)) {
            if *owner == 0 {
                *owner = pid;
            }
        }
    }

    pub(crate) fn keep(&mut self, gfn: Gfn) {
        if let Some(kept) = index(gfn).and_then(|i| self.kept.get_mut(i)) {
            *kept = true;
        }
    }

    pub(crate) fn drop_frame(&mut self, gfn: Gfn, reason: DropReason) {
        if let Some(slot) = index(gfn).and_then(|i| self.reason.get_mut(i)) {
            slot.get_or_insert(reason);
        }
    }

    /// The frames that a leaf maps. Those of a large one are given once, however many processes share
    /// it: otherwise a few forged tables would lead to more frames than can ever be counted.
    fn new_frames(
        &self,
        large: &mut LargeLeaves,
        first: Gfn,
        size: LeafSize,
        mapper: Mapper,
    ) -> impl Iterator<Item = Gfn> + use<> {
        let limit = self.owner.len() as u64;
        let is_new = first.0 < limit && (size == LeafSize::Size4K || large.insert((first, size, mapper)));
        let end = if is_new { first.0.saturating_add(size.frames()).min(limit) } else { first.0 };
        (first.0..end).map(Gfn)
    }

    pub(crate) fn is_dropped(&self, gfn: Gfn) -> bool {
        index(gfn).and_then(|i| self.reason.get(i)).is_some_and(Option::is_some)
    }

    /// Whether a process that stays maps the frame.
    pub(crate) fn is_kept(&self, gfn: Gfn) -> bool {
        index(gfn).and_then(|i| self.kept.get(i)).copied().unwrap_or(true)
    }

    /// Whether any process maps the frame, as far as address spaces were looked at.
    pub(crate) fn is_mapped(&self, gfn: Gfn) -> bool {
        self.is_kept(gfn) || self.owner_of(gfn) != 0
    }

    /// An excluded process, or one that marked it, whose frame it is.
    pub(crate) fn owner(&self, gfn: Gfn) -> Option<u32> {
        Some(self.owner_of(gfn)).filter(|pid| *pid != 0)
    }

    fn owner_of(&self, gfn: Gfn) -> u32 {
        index(gfn).and_then(|i| self.owner.get(i)).copied().unwrap_or(0)
    }

    /// What a process gave back of a large folio keeps its content as long as the folio lives, and is in
    /// no page table.
    pub(crate) fn drop_rest_of_folio(
        &mut self,
        kernel: &Kernel<'_>,
        head: Gfn,
        reason: DropReason,
        owner: u32,
    ) -> Result<(), PlanError> {
        for frame in kernel.compound_frames(head)?.map(Gfn) {
            if self.owner_of(frame) == 0 && !self.is_kept(frame) {
                self.set_owner(frame, owner);
                self.drop_frame(frame, reason);
            }
        }
        Ok(())
    }

    /// The drops as runs, and their counts.
    pub(crate) fn into_runs(self, summary: &mut PlanSummary) -> Vec<DropRun> {
        let mut runs: Vec<DropRun> = Vec::new();
        for ((frame, reason), owner) in (0_u64..).zip(self.reason).zip(self.owner) {
            let Some(reason) = reason else { continue };
            let owner = (owner != 0).then_some(owner);
            *summary.dropped_frames.entry(reason).or_default() += 1;
            if let Some(pid) = owner {
                *summary.frames_by_owner.entry(pid).or_default() += 1;
            }
            match runs.last_mut() {
                Some(run)
                    if run.first.0 + run.count == frame && (run.reason, run.owner) == (reason, owner) =>
                {
                    run.count += 1;
                }
                _ => runs.push(DropRun { first: Gfn(frame), count: 1, reason, owner }),
            }
        }
        runs
    }
}

fn index(gfn: Gfn) -> Option<usize> {
    usize::try_from(gfn.0).ok()
}

/// Shared memory objects, by their page cache, with an excluded process that maps each.
#[derive(Default)]
struct SharedObjects {
    excluded: BTreeMap<Gva, (u32, bool)>,
}

pub(crate) struct FrameSurvey<'a, 'k> {
    pub(crate) kernel: &'a Kernel<'k>,
    pub(crate) table: FrameTable,
    budget: Budget,
    large: LargeLeaves,
    /// Areas, file table slots and page cache entries that may still be looked at: a guest has no
    /// more than fit into its RAM, and forged ones that lead to the same memory again and again end here.
    areas_left: u64,
    pub(crate) slots_left: u64,
    pub(crate) cached_left: u64,
    swap_areas: u32,
    swapped: Swapped,
    pub(crate) unaccounted: Unaccounted,
}

impl<'a, 'k> FrameSurvey<'a, 'k> {
    pub(crate) fn new(kernel: &'a Kernel<'k>) -> Result<Self, PlanError> {
        let limit = kernel.ram().layout().frame_limit();
        Ok(Self {
            kernel,
            table: FrameTable::new(limit),
            // A table page belongs to one address space: a guest cannot have more than it has frames.
            // Tables that hugetlbfs shares are few beside the frames that they lead to.
            budget: Budget::new(limit.0),
            large: BTreeSet::new(),
            areas_left: limit.0.saturating_mul(AREAS_IN_FRAME),
            slots_left: limit.0.saturating_mul(SLOTS_IN_FRAME),
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
        let mut seen = BTreeSet::new();
        for process in selection.kept() {
            let Some(addr) = process.mm.filter(|_| !process.kernel_thread) else { continue };
            if let Some(pid) = spaces.get(&addr) {
                self.unaccounted.push(format!(
                    "process {pid} shares all its memory with process {} ({}), which is not excluded",
                    process.pid, process.comm
                ));
            }
            if seen.insert(addr) && !(spaces.is_empty() && regions.is_empty() && selection.files.is_empty()) {
                self.kept_space(process, addr, &mut shared, &mut regions)?;
            }
            regions.open_files(self.kernel, process, &mut self.slots_left)?;
            if !shared.excluded.is_empty() {
                let slots_left = &mut self.slots_left;
                self.kernel.for_each_open_mapping(process, slots_left, &mut |mapping| {
                    shared.excluded.remove(&mapping);
                })?;
            }
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
        let mut swapped = std::mem::take(&mut self.swapped);
        let walked = self.walk(mm, &mut |table, large, gva, entry| match entry.pte {
            Pte::Memory(gpa) => {
                let hugetlb = is_hugetlb(&vmas, gva);
                for gfn in table.new_frames(large, gpa.gfn(), entry.size, Mapper::Excluded { hugetlb }) {
                    table.set_owner(gfn, pid);
                    if hugetlb {
                        table.hugetlb.insert(gfn);
                    }
                }
            }
            Pte::Swap { area, slot } => swapped.note(SwapSlot { area, slot }, entry.size.frames(), pid),
            Pte::Marker => {}
            Pte::Special(_) => moving = true,
        });
        self.swapped = swapped;
        walked?;
        if moving {
            let what = "a page of it is being moved";
            return Err(PlanError::Busy { pid, comm: process.comm.clone(), what });
        }
        Ok(())
    }

    fn kept_space(
        &mut self,
        process: &Process,
        addr: Gva,
        shared: &mut SharedObjects,
        regions: &mut Regions<'_>,
    ) -> Result<(), PlanError> {
        let mm = self.kernel.mm(addr)?;
        let areas = if shared.excluded.is_empty() && regions.is_empty() { vec![] } else { self.areas(mm)? };
        if !shared.excluded.is_empty() {
            for vma in &areas {
                if let Some(mapping) = self.kernel.vma_mapping(vma)? {
                    shared.excluded.remove(&mapping);
                }
            }
        }
        let marked = regions.marked_areas(self.kernel, addr, &areas)?;
        let busy = |what| PlanError::Busy { pid: process.pid, comm: process.comm.clone(), what };
        if marked.is_some() && mm.write_locked {
            return Err(busy("its address space is being changed"));
        }
        let mut moving = false;
        let mut swapped = std::mem::take(&mut self.swapped);
        let walked = self.walk(mm, &mut |table, large, gva, entry| {
            if let Pte::Swap { area, slot } = entry.pte {
                swapped.keep(SwapSlot { area, slot }, entry.size.frames());
            }
            let mark = marked.as_ref().and_then(|marked| Some((marked.pid, marked.at(gva)?)));
            match (entry.pte, mark) {
                (Pte::Memory(gpa), None) => {
                    let frames = table.new_frames(large, gpa.gfn(), entry.size, Mapper::Kept);
                    frames.for_each(|gfn| table.keep(gfn));
                }
                (Pte::Memory(gpa), Some((pid, hugetlb))) => {
                    let frames = table.new_frames(large, gpa.gfn(), entry.size, Mapper::Marked);
                    frames.for_each(|gfn| regions.mark(gfn, pid, hugetlb));
                }
                (Pte::Swap { .. }, Some((pid, _))) => regions.swapped(pid, entry.size.frames()),
                (Pte::Special(_), Some(_)) => moving = true,
                _ => {}
            }
        });
        self.swapped = swapped;
        walked?;
        if moving { Err(busy("a page of it is being moved")) } else { Ok(()) }
    }

    /// The files that a process maps.
    pub(crate) fn mapped_files(&mut self, process: &Process) -> Result<BTreeSet<Gva>, PlanError> {
        let Some(addr) = process.mm.filter(|_| !process.kernel_thread) else { return Ok(BTreeSet::new()) };
        let areas = self.areas(self.kernel.mm(addr)?)?;
        Ok(areas.into_iter().filter_map(|area| area.file).collect())
    }

    fn areas(&mut self, mm: Mm) -> Result<Vec<Vma>, PlanError> {
        let vmas = self.kernel.vmas(mm)?;
        let torn =
            KernelError::Torn { what: "VMA", at: mm.addr, why: "there are more than the guest has room for" };
        self.areas_left = self.areas_left.checked_sub(vmas.len() as u64).ok_or(torn)?;
        Ok(vmas)
    }

    fn walk(
        &mut self,
        mm: Mm,
        visit: &mut dyn FnMut(&mut FrameTable, &mut LargeLeaves, Gva, Entry),
    ) -> Result<(), PlanError> {
        let Self { kernel, table, large, budget, swap_areas, .. } = self;
        mm.tables
            .walk(kernel.ram(), mm.tables.user_range(), budget, &mut |leaf| {
                visit(table, large, leaf.gva, Entry::of(leaf, *swap_areas));
            })
            .map_err(|error| KernelError::from(error).into())
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
            if is_shmem && !self.table.is_kept(gfn) {
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

    fn decide(&mut self, summary: &mut PlanSummary) -> Result<(), PlanError> {
        let mut folios = BTreeSet::new();
        for frame in (0..self.kernel.ram().layout().frame_limit().0).map(Gfn) {
            if self.table.owner_of(frame) == 0 || self.table.is_dropped(frame) {
                continue;
            }
            let mut stays = |what: &str| *summary.kept_frames.entry(what.to_owned()).or_default() += 1;
            if self.table.is_kept(frame) {
                stays("mapped by other processes too");
                continue;
            }
            let page = self.kernel.page(frame)?;
            match page.kind {
                PageKind::Anonymous | PageKind::Merged => {
                    let huge = self.table.hugetlb.contains(&frame);
                    let reason = if huge { DropReason::HugeTlb } else { DropReason::Anonymous };
                    self.table.drop_frame(frame, reason);
                    if folios.insert(page.head) {
                        let owner = self.table.owner_of(frame);
                        self.table.drop_rest_of_folio(self.kernel, page.head, reason, owner)?;
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
        let mut free = |reason, gfn: Gfn| {
            if !ISA_HOLE.contains(&gfn.0) {
                table.drop_frame(gfn, reason);
            }
        };
        kernel.buddy_frames(&mut |gfn| free(DropReason::Free, gfn))?;
        kernel.per_cpu_free_frames(&mut |gfn| free(DropReason::FreePerCpu, gfn))?;
        kernel.huge_free_frames(&mut |gfn| free(DropReason::FreeHuge, gfn))?;
        kernel.dead_batch_frames(&mut |gfn| free(DropReason::DeadInBatch, gfn))?;
        Ok(())
    }
}

fn is_hugetlb(vmas: &[Vma], gva: Gva) -> bool {
    let i = vmas.partition_point(|vma| vma.range.start <= gva);
    i.checked_sub(1).and_then(|i| vmas.get(i)).is_some_and(|vma| gva < vma.range.end && vma.is_hugetlb())
}
