//! Swap areas, and the pages in memory that have a slot in one (`mm/swapfile.c`, `mm/swap_state.c`).
//!
//! ```text
//! swap_info[AREA] -> swap_info_struct: swap_file -> file, bdev -> block_device -> gendisk: disk_name
//! page in the swap cache (PG_swapcache): private = AREA << 58 | SLOT, one more for each page of a large folio
//! shared memory: a value in the page cache = (AREA << 58 | SLOT) << 1 | 1
//! ```
//! Which page stands for a slot is read from the pages: kernels keep the way from slots to pages in several forms.

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva};

layout! {
    pub(crate) struct SwapLayout {
        file: optional("swap_info_struct", &["swap_file"]),
        device: optional("swap_info_struct", &["bdev"]),
        in_use: optional("swap_info_struct", &["inuse_pages"]),
        disk: optional("block_device", &["bd_disk"]),
        disk_name: optional("gendisk", &["disk_name"]),
        entry: offset("page", &["private"]),
    }
}

const WHAT: &str = "swap area";
const AREA_SHIFT: u32 = 58;
/// `DISK_NAME_LEN`.
const DISK_NAME: usize = 32;

/// A page's place in swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SwapSlot {
    /// Number of the swap area.
    pub area: u8,
    /// Slot in it, in pages.
    pub slot: u64,
}

impl SwapSlot {
    /// The next one.
    #[must_use]
    pub fn plus(self, pages: u64) -> Self {
        Self { slot: self.slot.saturating_add(pages), ..self }
    }

    fn of_entry(entry: u64) -> Self {
        let area = u8::try_from(entry >> AREA_SHIFT).unwrap_or(u8::MAX);
        Self { area, slot: entry & ((1 << AREA_SHIFT) - 1) }
    }
}

/// Where swapped pages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapArea {
    /// The device or file, as the guest names it.
    pub path: String,
    /// Whether it is compressed memory of the guest itself (zram).
    pub is_memory: bool,
    /// Pages in it.
    pub in_use: u64,
}

impl Kernel<'_> {
    /// A swap area by its number, if it is switched on.
    pub fn swap_area(&self, area: u8) -> Result<Option<SwapArea>, KernelError> {
        let layout = &self.profile.swap;
        let (Some(table), Some(file)) = (self.symbol("swap_info"), layout.file) else { return Ok(None) };
        if u32::from(area) >= self.swap_areas()? {
            return Ok(None);
        }
        let info = self.pointer(table.wrapping_add(8 * u64::from(area)), WHAT)?;
        let file = self.pointer(info.wrapping_add(file), WHAT)?;
        if file.0 == 0 {
            return Ok(None);
        }
        // Newer kernels keep flags in the upper half.
        let in_use = layout.in_use.map_or(Ok(0), |at| self.u32(info.wrapping_add(at), WHAT))?;
        let (path, is_memory) = (self.file_path(file)?, self.is_on_zram(info)?);
        Ok(Some(SwapArea { path, is_memory, in_use: u64::from(in_use) }))
    }

    fn is_on_zram(&self, info: Gva) -> Result<bool, KernelError> {
        let layout = &self.profile.swap;
        let (Some(device), Some(disk), Some(name)) = (layout.device, layout.disk, layout.disk_name) else {
            return Ok(false);
        };
        let device = self.pointer(info.wrapping_add(device), WHAT)?;
        if device.0 == 0 {
            return Ok(false);
        }
        let disk = self.pointer(device.wrapping_add(disk), WHAT)?;
        Ok(self.string(disk.wrapping_add(name), DISK_NAME, WHAT)?.starts_with("zram"))
    }

    /// Pages of which the kernel keeps compressed copies in memory, before their area (zswap).
    pub fn zswap_pages(&self) -> Result<u64, KernelError> {
        self.symbol("zswap_stored_pages").map_or(Ok(0), |at| self.u32(at, WHAT).map(u64::from))
    }

    /// The slot in swap that a page in memory has.
    pub fn slot_of(&self, gfn: Gfn) -> Result<Option<SwapSlot>, KernelError> {
        let head = self.head_of(gfn, &self.raw_page(gfn)?)?;
        let raw = self.raw_page(head)?;
        let first = SwapSlot::of_entry(raw.u64(self.profile.swap.entry));
        Ok(Some(first.plus(gfn.0 - head.0)).filter(|_| self.profile.page.is_in_swap_cache(&raw)))
    }

    /// Calls `visit` with each page in memory that has a slot in swap.
    pub fn for_each_in_swap_cache(
        &self,
        visit: &mut dyn FnMut(Gfn, SwapSlot) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let mut heads = Vec::new();
        self.for_each_descriptor(|gfn, raw| {
            if self.profile.page.is_in_swap_cache(raw) && self.head_of(gfn, raw).ok() == Some(gfn) {
                heads.push((gfn, SwapSlot::of_entry(raw.u64(self.profile.swap.entry))));
            }
        });
        for (head, first) in heads {
            let frames = self.compound_frames(head)?;
            for (n, gfn) in (0..).zip(frames) {
                visit(Gfn(gfn), first.plus(n))?;
            }
        }
        Ok(())
    }

    /// Where the swapped pages of a shared memory object are, by its page cache. `budget` as by
    /// [`Kernel::cached_frames`].
    pub fn swapped_pages(&self, mapping: Gva, budget: &mut u64) -> Result<Vec<SwapSlot>, KernelError> {
        let mut slots = Vec::new();
        self.for_each_cached(mapping, budget, &mut |entry| {
            if entry & 1 != 0 {
                slots.push(SwapSlot::of_entry(entry >> 1));
            }
            Ok(())
        })?;
        Ok(slots)
    }
}
