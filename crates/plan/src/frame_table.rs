//! What is decided of each frame, while a plan is made: whether it goes, whose it was, and whether a process that stays
//! maps it. Several threads may note at once what such processes map.

use crate::{DropReason, DropRun, PlanError, PlanSummary};
use elision_kernel::Kernel;
use elision_memory::{Gfn, LeafSize};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Two bytes and two words for each frame.
pub(crate) struct FrameTable {
    reason: Vec<Option<DropReason>>,
    /// Process id of an excluded user, 0 for none.
    owner: Vec<u32>,
    /// How many entries of excluded processes' page tables lead to it; those of a large page count for its first frame.
    entries: Vec<u32>,
    /// Set by several threads at once.
    kept: Vec<AtomicBool>,
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

impl FrameTable {
    pub(crate) fn new(limit: Gfn) -> Self {
        let n = usize::try_from(limit.0).unwrap_or(0);
        let kept = std::iter::repeat_with(AtomicBool::default).take(n).collect();
        Self { reason: vec![None; n], owner: vec![0; n], entries: vec![0; n], kept, hugetlb: BTreeSet::new() }
    }

    pub(crate) fn set_owner(&mut self, gfn: Gfn, pid: u32) {
        if let Some(owner) = index(gfn).and_then(|i| self.owner.get_mut(i)) {
            if *owner == 0 {
                *owner = pid;
            }
        }
    }

    /// Counts an entry of an excluded process's page table.
    pub(crate) fn count_entry(&mut self, first: Gfn) {
        if let Some(entries) = index(first).and_then(|i| self.entries.get_mut(i)) {
            *entries = entries.saturating_add(1);
        }
    }

    pub(crate) fn entries(&self, gfn: Gfn) -> u32 {
        index(gfn).and_then(|i| self.entries.get(i)).copied().unwrap_or(0)
    }

    /// Notes that the frame is a part of a huge page of hugetlbfs.
    pub(crate) fn mark_huge(&mut self, gfn: Gfn) {
        self.hugetlb.insert(gfn);
    }

    pub(crate) fn is_huge(&self, gfn: Gfn) -> bool {
        self.hugetlb.contains(&gfn)
    }

    pub(crate) fn keep(&self, gfn: Gfn) {
        // Most frames that one process maps others map too: what is read only stays in every processor's cache.
        if let Some(kept) = index(gfn).and_then(|i| self.kept.get(i)).filter(|k| !k.load(Ordering::Relaxed)) {
            kept.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn drop_frame(&mut self, gfn: Gfn, reason: DropReason) {
        if let Some(slot) = index(gfn).and_then(|i| self.reason.get_mut(i)) {
            slot.get_or_insert(reason);
        }
    }

    pub(crate) fn drop_frames(&mut self, frames: Range<Gfn>, reason: DropReason) {
        let range = index(frames.start).zip(index(frames.end)).map(|(start, end)| start..end);
        let slots = range.and_then(|range| self.reason.get_mut(range)).unwrap_or_default();
        for slot in slots {
            slot.get_or_insert(reason);
        }
    }

    /// The frames that a leaf maps. Those of a large one are given once, however many processes share
    /// it: otherwise a few forged tables would lead to more frames than can ever be counted.
    pub(crate) fn new_frames(
        &self,
        large: &Mutex<LargeLeaves>,
        first: Gfn,
        size: LeafSize,
        mapper: Mapper,
    ) -> impl Iterator<Item = Gfn> + use<> {
        let limit = self.owner.len() as u64;
        let leaf = (first, size, mapper);
        let is_new = first.0 < limit && (size == LeafSize::Size4K || lock(large).insert(leaf));
        let end = if is_new { first.0.saturating_add(size.frames()).min(limit) } else { first.0 };
        (first.0..end).map(Gfn)
    }

    pub(crate) fn is_dropped(&self, gfn: Gfn) -> bool {
        index(gfn).and_then(|i| self.reason.get(i)).is_some_and(Option::is_some)
    }

    /// Whether a process that stays maps the frame.
    pub(crate) fn is_kept(&self, gfn: Gfn) -> bool {
        index(gfn).and_then(|i| self.kept.get(i)).is_none_or(|kept| kept.load(Ordering::Relaxed))
    }

    /// Whether any process maps the frame, as far as address spaces were looked at.
    pub(crate) fn is_mapped(&self, gfn: Gfn) -> bool {
        self.is_kept(gfn) || self.owner_of(gfn) != 0
    }

    /// An excluded process, or one that marked it, whose frame it is.
    pub(crate) fn owner(&self, gfn: Gfn) -> Option<u32> {
        Some(self.owner_of(gfn)).filter(|pid| *pid != 0)
    }

    pub(crate) fn owner_of(&self, gfn: Gfn) -> u32 {
        index(gfn).and_then(|i| self.owner.get(i)).copied().unwrap_or(0)
    }

    /// All frames that have an owner, ascending.
    pub(crate) fn owned(&self) -> Vec<Gfn> {
        (0..).map(Gfn).zip(&self.owner).filter(|(_, pid)| **pid != 0).map(|(gfn, _)| gfn).collect()
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
        let mut frame = 0_u64;
        for alike in self.reason.chunk_by(|a, b| a == b) {
            let owners = self.owner.get(index(Gfn(frame)).unwrap_or(0)..).unwrap_or_default();
            if let Some(Some(reason)) = alike.first() {
                let mut first = Gfn(frame);
                for run in owners.get(..alike.len()).unwrap_or_default().chunk_by(|a, b| a == b) {
                    let owner = run.first().copied().filter(|pid| *pid != 0);
                    let count = run.len() as u64;
                    runs.push(DropRun { first, count, reason: *reason, owner });
                    first.0 += count;
                }
            }
            frame += alike.len() as u64;
        }
        for DropRun { count, reason, owner, .. } in &runs {
            *summary.dropped_frames.entry(*reason).or_default() += count;
            if let Some(pid) = owner {
                *summary.frames_by_owner.entry(*pid).or_default() += count;
            }
        }
        runs
    }
}

fn index(gfn: Gfn) -> Option<usize> {
    usize::try_from(gfn.0).ok()
}

/// Nothing is left half done by a panic under these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What several threads have found.
pub(crate) fn owned<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}
