//! What excluded processes have in swap.
//!
//! | where | what becomes of it |
//! |---|---|
//! | a slot of a disk or a file | refused by name: the disk is no part of the image. Let pass with `--best-effort` |
//! | a page in the swap cache that stands for such a slot | dropped |
//! | a slot of zram, or a page in zswap: compressed in the guest's memory | refused by name; with `--best-effort` it stays |
//! | a page in memory that has its slot still, in zram or zswap | the page is dropped, its compressed copy refused |
//!
//! Slots that processes which stay have too are theirs as well, and nobody's business here. What zram and zswap have
//! freed keeps its bytes until it is used again: `channels/compressed.rs` clears it where the kernel's types are known. The
//! last page that each CPU compressed stands in buffers that are not found.
//! What is stored there is counted.

use crate::frame_table::FrameTable;
use crate::frames::Unaccounted;
use crate::{DropReason, PlanError, PlanSummary};
use elision_kernel::{Kernel, KernelError, Process, SwapSlot};
use elision_memory::{Gfn, PAGE_SIZE};
use std::collections::BTreeMap;

/// Slots of excluded processes, as they are found.
#[derive(Default)]
pub(crate) struct Swapped {
    slots: BTreeMap<SwapSlot, u32>,
    /// How many more are kept one by one.
    room: u64,
    /// Slots beyond that.
    more: u64,
}

impl Swapped {
    /// For a guest with so many frames: swap is seldom larger than memory, and forged tables must end somewhere.
    pub(crate) fn new(frames: Gfn) -> Self {
        Self { room: frames.0.saturating_mul(4), ..Self::default() }
    }

    /// Notes that an excluded process has pages in swap.
    pub(crate) fn note(&mut self, first: SwapSlot, pages: u64, pid: u32) {
        let one_by_one = pages.min(self.room);
        self.room -= one_by_one;
        self.more = self.more.saturating_add(pages - one_by_one);
        for n in 0..one_by_one {
            self.slots.entry(first.plus(n)).or_insert(pid);
        }
    }

    /// Whether excluded processes have nothing there.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Notes that a process which stays has them.
    pub(crate) fn keep(&mut self, first: SwapSlot, pages: u64) {
        while let Some(slot) = self.slots.range(first..first.plus(pages)).next().map(|(slot, _)| *slot) {
            self.slots.remove(&slot);
        }
    }

    /// Whether an excluded process has one of them.
    pub(crate) fn has(&self, first: SwapSlot, pages: u64) -> bool {
        self.slots.range(first..first.plus(pages)).next().is_some()
    }

    /// Drops pages in the swap cache, and tells what cannot be left out.
    pub(crate) fn decide(
        self,
        kernel: &Kernel<'_>,
        processes: &[Process],
        table: &mut FrameTable,
        unaccounted: &mut Unaccounted,
    ) -> Result<(), PlanError> {
        let mut areas = Areas::default();
        let mut counts: BTreeMap<(u32, u8), u64> = BTreeMap::new();
        for (slot, pid) in &self.slots {
            *counts.entry((*pid, slot.area)).or_default() += 1;
        }
        let mut copies: BTreeMap<(u32, u8), u64> = BTreeMap::new();
        kernel.for_each_in_swap_cache(&mut |gfn, slot| {
            if table.is_kept(gfn) {
                return Ok(());
            }
            if let Some(pid) = self.slots.get(&slot) {
                table.set_owner(gfn, *pid);
                table.drop_frame(gfn, DropReason::Anonymous);
            } else if let Some(pid) = table.owner(gfn) {
                if areas.of(kernel, slot.area)?.is_memory {
                    *copies.entry((pid, slot.area)).or_default() += 1;
                }
            }
            Ok(())
        })?;
        let who = |pid: u32| {
            let comm = processes.iter().find(|p| p.pid == pid).map_or("", |p| p.comm.as_str());
            format!("process {pid} ({comm})")
        };
        let kib = |pages: u64| pages.saturating_mul(PAGE_SIZE as u64 / 1024);
        for ((pid, area), pages) in counts {
            let (who, kib, area) = (who(pid), kib(pages), areas.of(kernel, area)?);
            unaccounted.push(format!("{who} has {kib} KiB in swap {}", area.what_to_do()));
        }
        for ((pid, area), pages) in copies {
            let (who, kib, area) = (who(pid), kib(pages), areas.of(kernel, area)?);
            unaccounted.push(format!("{who} has copies of {kib} KiB in swap {}", area.what_to_do()));
        }
        if self.more > 0 {
            unaccounted.push(format!("excluded processes have {} KiB more in swap", kib(self.more)));
        }
        Ok(())
    }
}

const COMPRESSED: &str = "compressed swap of all processes, with what was freed in it";

/// Counts what is in compressed swap, whoever's.
pub(crate) fn count_compressed(
    kernel: &Kernel<'_>,
    areas: u32,
    summary: &mut PlanSummary,
) -> Result<(), PlanError> {
    let mut pages = kernel.zswap_pages()?;
    for area in 0..u8::try_from(areas).unwrap_or(u8::MAX) {
        let area = kernel.swap_area(area)?;
        pages = pages.saturating_add(area.filter(|area| area.is_memory).map_or(0, |area| area.in_use));
    }
    if pages > 0 {
        *summary.kept_frames.entry(COMPRESSED.to_owned()).or_default() += pages;
    }
    Ok(())
}

/// A swap area in words.
#[derive(Clone)]
struct Area {
    path: String,
    /// Whether swapped pages are in the guest's memory, for good or for a while.
    is_memory: bool,
    is_zram: bool,
}

impl Area {
    fn what_to_do(&self) -> String {
        let Self { path, is_memory, is_zram } = self;
        let place = match (is_zram, is_memory) {
            (true, _) => "which is compressed in the guest's memory, where it cannot be left out",
            (false, true) => {
                "which stays on the guest's disk, or compressed in its memory (zswap), where it cannot be left out"
            }
            (false, false) => "which stays on the guest's disk",
        };
        let advice = if *is_zram {
            ", and free what the device has left of it by writing 1 to its `reset` in /sys/block"
        } else {
            ", or encrypt the swap area and save with --best-effort"
        };
        format!("on {path}, {place}: bring it back into memory by `swapoff {path}` in the guest{advice}")
    }
}

#[derive(Default)]
struct Areas(BTreeMap<u8, Area>);

impl Areas {
    fn of(&mut self, kernel: &Kernel<'_>, number: u8) -> Result<Area, KernelError> {
        if let Some(known) = self.0.get(&number) {
            return Ok(known.clone());
        }
        let found = kernel.swap_area(number)?;
        let is_zram = found.as_ref().is_some_and(|area| area.is_memory);
        let is_memory = is_zram || kernel.zswap_pages()? > 0;
        let path = found.map_or_else(|| format!("area {number}"), |area| area.path);
        Ok(self.0.entry(number).or_insert(Area { path, is_memory, is_zram }).clone())
    }
}
