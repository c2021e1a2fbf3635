//! What Linux keeps in a page-table entry, present or not (`arch/x86/include/asm/pgtable-2level`
//! and `pgtable_64.h`).
//!
//! ```text
//! present        bit 0 set                         frame in bits 12..52
//! PROT_NONE      bit 0 clear, bit 8 set            frame in bits 12..52, inverted (L1TF)
//! swap, special  bits 0 and 8 clear, not zero      type = entry >> 59, offset = !entry << 5 >> 14
//! ```

use crate::{Kernel, KernelError};
use elision_memory::{Gpa, Leaf, LeafSize};

const PRESENT: u64 = 1;
const PROT_NONE: u64 = 1 << 8;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The highest swap type carries markers without data (write-protect, guard areas).
const MARKER_TYPE: u8 = 31;

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pte {
    /// Memory: present, or with access taken away for a while.
    Memory(Gpa),
    /// Content in a swap area.
    Swap {
        /// Number of the swap area.
        area: u8,
        /// Slot in it, in pages.
        slot: u64,
    },
    /// A marker without content.
    Marker,
    /// A frame in migration, device memory, a poisoned frame: an entry of swap form that is no swap.
    Special(u64),
}

/// An entry and how much it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it stands for.
    pub pte: Pte,
    /// How much it covers.
    pub size: LeafSize,
}

impl Kernel<'_> {
    /// Number of swap areas ever switched on.
    pub fn swap_areas(&self) -> Result<u32, KernelError> {
        self.symbol("nr_swapfiles").map_or(Ok(0), |at| self.u32(at, "number of swap areas"))
    }
}

impl Entry {
    /// Reads a leaf of a user address space; `swap_areas` as by [`Kernel::swap_areas`].
    #[must_use]
    pub fn of(leaf: Leaf, swap_areas: u32) -> Self {
        let size = leaf.size;
        let entry = leaf.entry;
        if entry & PRESENT != 0 {
            return Self { pte: Pte::Memory(leaf.target()), size };
        }
        if entry & PROT_NONE != 0 {
            return Self { pte: Pte::Memory(Gpa(!entry & ADDRESS & !(size.bytes() - 1))), size };
        }
        let area = u8::try_from(entry >> 59).unwrap_or(MARKER_TYPE);
        let pte = if u32::from(area) < swap_areas {
            Pte::Swap { area, slot: (!entry << 5) >> 14 }
        } else if area == MARKER_TYPE {
            Pte::Marker
        } else {
            Pte::Special(entry)
        };
        Self { pte, size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elision_memory::Gva;

    fn read(entry: u64, size: LeafSize) -> Pte {
        Entry::of(Leaf { gva: Gva(0), size, entry, writable_path: true }, 1).pte
    }

    #[test]
    fn each_form_is_told_apart() {
        assert_eq!(read(0x1234_5067, LeafSize::Size4K), Pte::Memory(Gpa(0x1234_5000)));
        assert_eq!(read(0x8000_0000_1260_10e7, LeafSize::Size2M), Pte::Memory(Gpa(0x1260_0000)));
        // PROT_NONE keeps the frame inverted.
        assert_eq!(
            read((!0x1234_5000 & ADDRESS) | PROT_NONE, LeafSize::Size4K),
            Pte::Memory(Gpa(0x1234_5000))
        );
        let swap = (!0x77_u64 << 14) >> 5;
        assert_eq!(read(swap & !(PRESENT | PROT_NONE), LeafSize::Size4K), Pte::Swap { area: 0, slot: 0x77 });
        assert_eq!(read(31 << 59 | 2, LeafSize::Size4K), Pte::Marker);
        assert!(matches!(read(30 << 59 | 2, LeafSize::Size4K), Pte::Special(_)));
    }
}
