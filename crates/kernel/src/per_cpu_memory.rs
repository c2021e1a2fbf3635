//! Free memory of the allocator for data of each CPU (`mm/percpu.c`): counters, values of BPF maps.
//!
//! ```text
//! pcpu_chunk_lists[slot] -> pcpu_chunk -> pcpu_chunk ...
//! pcpu_chunk: base_addr; nr_pages, of which populated[] tells the ones with memory; alloc_map[]: 4 bytes a bit
//! base_addr + pcpu_unit_offsets[cpu]: the part of one CPU, laid out like that of any other
//! ```
//! Whoever gets a piece gets zeros, so nobody relies on what stands in a free one.

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::{Gva, PAGE_SIZE};
use std::ops::Range;

layout! {
    pub(crate) struct PerCpuLayout {
        link: optional("pcpu_chunk", &["list"]),
        base: optional("pcpu_chunk", &["base_addr"]),
        in_use: optional("pcpu_chunk", &["alloc_map"]),
        pages: number_opt("pcpu_chunk", &["nr_pages"]),
        populated: optional("pcpu_chunk", &["populated"]),
        kinds: enumerator("PCPU_NR_CHUNK_TYPES"),
    }
}

const WHAT: &str = "chunk of per-CPU memory";
const PIECE: u64 = 4; // PCPU_MIN_ALLOC_SIZE
/// Bytes of the map for the pieces of a page.
const MAP_OF_PAGE: usize = PAGE_SIZE / 4 / 8;
const LIST: u64 = 16;
const SLOT_LIMIT: u64 = 256;
/// A unit has at most 2 MiB, or what the kernel's own variables need.
const PAGE_LIMIT: u64 = 1 << 14;

impl Kernel<'_> {
    /// Calls `visit` with each free range, for each CPU.
    pub fn free_per_cpu_memory(&self, visit: &mut dyn FnMut(Range<Gva>)) -> Result<(), KernelError> {
        let layout = &self.profile.per_cpu_memory;
        let (Some(lists), Some(slots), Some(units), Some(link)) = (
            self.symbol("pcpu_chunk_lists"),
            self.symbol("pcpu_nr_slots"),
            self.symbol("pcpu_unit_offsets"),
            layout.link,
        ) else {
            return Ok(());
        };
        let lists = self.pointer(lists, WHAT)?;
        let units = self.pointer(units, WHAT)?;
        let cpus = 0..self.per_cpu.len() as u64;
        let cpus =
            cpus.map(|cpu| self.u64(units.wrapping_add(8 * cpu), WHAT)).collect::<Result<Vec<_>, _>>()?;
        let slots = u64::from(self.u32(slots, WHAT)?).saturating_mul(layout.kinds.unwrap_or(1));
        let mut budget = self.ram.layout().frame_limit().0;
        for slot in 0..slots.min(SLOT_LIMIT) {
            self.for_each_in_list(lists.wrapping_add(LIST * slot), WHAT, &mut |at| {
                let chunk = Gva(at.0.wrapping_sub(link));
                let why = "there are more than the guest has room for";
                budget = budget.checked_sub(1).ok_or(KernelError::Torn { what: WHAT, at: chunk, why })?;
                self.free_in_chunk(chunk, &mut |offset, len| {
                    for unit in &cpus {
                        let start = offset.wrapping_add(*unit);
                        visit(start..start.wrapping_add(len));
                    }
                })
            })?;
        }
        Ok(())
    }

    /// Free ranges in one chunk, by their address without a CPU's part, and their length.
    fn free_in_chunk(&self, chunk: Gva, visit: &mut dyn FnMut(Gva, u64)) -> Result<(), KernelError> {
        let layout = &self.profile.per_cpu_memory;
        let (Some(base), Some(in_use), Some(pages), Some(populated)) =
            (layout.base, layout.in_use, layout.pages, layout.populated)
        else {
            return Ok(());
        };
        let base = self.pointer(chunk.wrapping_add(base), WHAT)?;
        let in_use = self.pointer(chunk.wrapping_add(in_use), WHAT)?;
        let pages = self.number(chunk, pages, WHAT)?;
        if pages > PAGE_LIMIT {
            return Err(KernelError::Torn { what: WHAT, at: chunk, why: "it has more pages than any" });
        }
        let populated = chunk.wrapping_add(populated);
        for page in 0..pages {
            let word = self.u64(populated.wrapping_add(8 * (page / 64)), WHAT)?;
            if word >> (page % 64) & 1 == 0 {
                continue;
            }
            let mut map = [0; MAP_OF_PAGE];
            self.read(in_use.wrapping_add(page * MAP_OF_PAGE as u64), &mut map, WHAT)?;
            let start = base.wrapping_add(page * PAGE_SIZE as u64);
            let used = map.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 != 0));
            let mut run = 0;
            for (piece, is_used) in (0..).zip(used.chain([true])) {
                if !is_used {
                    run += 1;
                } else if run > 0 {
                    visit(start.wrapping_add((piece - run) * PIECE), run * PIECE);
                    run = 0;
                }
            }
        }
        Ok(())
    }
}
