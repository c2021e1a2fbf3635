//! Where guest-physical RAM stands in the RAM file.
//!
//! ```text
//! guest-physical  0        2 GiB      4 GiB      6 GiB
//!                 [ below  ]  PCI hole  [ above  ]
//! RAM file        [ below  ][ above  ]
//! ```
//! A pc or q35 machine with more than 2 to 3 GiB splits its RAM around the PCI hole, so a
//! guest-physical address is not an offset. The VMM knows the split; nothing here guesses it.

use crate::{FileOffset, Gfn, Gpa, PAGE_SIZE};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One piece of guest-physical RAM, contiguous in the RAM file too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamRegion {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// Length in bytes.
    pub len: u64,
    /// Where the piece begins in the RAM file.
    pub offset: FileOffset,
}

/// All RAM of a guest: pieces sorted by address, without overlap, page-aligned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<RamRegion>", into = "Vec<RamRegion>")]
pub struct RamLayout {
    regions: Vec<RamRegion>,
}

/// A part of the RAM file that the hypervisor keeps as a block of its own, such as the memory of one NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamBlock {
    /// The hypervisor's name for it.
    pub name: String,
    /// Where it begins in the RAM file.
    pub offset: FileOffset,
    /// Length in bytes.
    pub len: u64,
}

impl RamBlock {
    /// Blocks start at a multiple of this, so that huge pages of the file are huge pages of the block too.
    pub const ALIGNMENT: u64 = 2 << 20;

    /// One block that is the whole RAM file.
    #[must_use]
    pub fn whole(name: &str, len: u64) -> Self {
        Self { name: name.to_owned(), offset: FileOffset(0), len }
    }

    /// Where it ends in the RAM file. Past the end of what a number can say there is no more RAM.
    #[must_use]
    pub fn end(&self) -> FileOffset {
        FileOffset(self.offset.0.saturating_add(self.len))
    }

    /// Where the next block begins: blocks stand one after the other.
    #[must_use]
    pub fn next_start(&self) -> FileOffset {
        FileOffset(self.end().0.checked_next_multiple_of(Self::ALIGNMENT).unwrap_or(u64::MAX))
    }
}

/// Why a list of regions is not a RAM layout.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// There is no region at all.
    #[error("The RAM layout is empty")]
    Empty,
    /// A region is empty, not aligned to pages, or wraps around.
    #[error("RAM region at {gpa} with {len:#x} bytes at file offset {offset} is empty, unaligned or wraps")]
    Bad {
        /// Guest-physical start.
        gpa: Gpa,
        /// Length in bytes.
        len: u64,
        /// Start in the file.
        offset: FileOffset,
    },
    /// Two regions share guest-physical addresses.
    #[error("Two RAM regions overlap at {0}")]
    Overlap(Gpa),
}

impl RamLayout {
    /// A layout from regions in any order.
    pub fn new(mut regions: Vec<RamRegion>) -> Result<Self, LayoutError> {
        const LIMIT: u64 = 1 << 52; // x86-64 physical addresses have at most 52 bits
        const MASK: u64 = PAGE_SIZE as u64 - 1;
        if regions.is_empty() {
            return Err(LayoutError::Empty);
        }
        regions.sort_by_key(|r| r.gpa);
        for r in &regions {
            let unaligned = (r.gpa.0 | r.len | r.offset.0) & MASK != 0;
            let fits = |start: u64| start.checked_add(r.len).is_some_and(|end| end <= LIMIT);
            if r.len == 0 || unaligned || !fits(r.gpa.0) || !fits(r.offset.0) {
                return Err(LayoutError::Bad { gpa: r.gpa, len: r.len, offset: r.offset });
            }
        }
        for pair in regions.windows(2) {
            if pair[0].gpa.0 + pair[0].len > pair[1].gpa.0 {
                return Err(LayoutError::Overlap(pair[1].gpa));
            }
        }
        Ok(Self { regions })
    }

    /// A guest whose RAM is one piece from address 0.
    pub fn flat(len: u64) -> Result<Self, LayoutError> {
        Self::new(vec![RamRegion { gpa: Gpa(0), len, offset: FileOffset(0) }])
    }

    /// The pieces, by ascending address.
    #[must_use]
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// File offset of `gpa`, if `len` bytes from there are RAM and contiguous in the file.
    #[must_use]
    pub fn offset_of(&self, gpa: Gpa, len: u64) -> Option<FileOffset> {
        let i = self.regions.partition_point(|r| r.gpa <= gpa).checked_sub(1)?;
        let r = &self.regions[i];
        let within = gpa.0 - r.gpa.0;
        (within.checked_add(len)? <= r.len).then(|| FileOffset(r.offset.0 + within))
    }

    /// Guest-physical address of a file offset, if that offset holds RAM.
    #[must_use]
    pub fn gpa_of(&self, offset: FileOffset) -> Option<Gpa> {
        self.regions
            .iter()
            .find(|r| offset >= r.offset && offset.0 - r.offset.0 < r.len)
            .map(|r| Gpa(r.gpa.0 + (offset.0 - r.offset.0)))
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.len).sum()
    }

    /// Smallest length of a RAM file that holds every region.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.regions.iter().map(|r| r.offset.0 + r.len).max().unwrap_or(0)
    }

    /// One more than the highest frame number: the size of a table indexed by frame.
    #[must_use]
    pub fn frame_limit(&self) -> Gfn {
        self.regions.last().map_or(Gfn(0), |r| Gpa(r.gpa.0 + r.len).gfn())
    }

    /// Whether the frame is RAM.
    #[must_use]
    pub fn contains(&self, gfn: Gfn) -> bool {
        gfn < self.frame_limit() && self.offset_of(gfn.gpa(), PAGE_SIZE as u64).is_some()
    }

    /// Every frame of RAM, ascending.
    pub fn frames(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.regions.iter().flat_map(|r| {
            let first = r.gpa.gfn().0;
            (first..first + r.len / PAGE_SIZE as u64).map(Gfn)
        })
    }
}

impl TryFrom<Vec<RamRegion>> for RamLayout {
    type Error = LayoutError;
    fn try_from(regions: Vec<RamRegion>) -> Result<Self, LayoutError> {
        Self::new(regions)
    }
}

impl From<RamLayout> for Vec<RamRegion> {
    fn from(layout: RamLayout) -> Self {
        layout.regions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split() -> RamLayout {
        RamLayout::new(vec![
            RamRegion { gpa: Gpa(4 << 30), len: 2 << 30, offset: FileOffset(2 << 30) },
            RamRegion { gpa: Gpa(0), len: 2 << 30, offset: FileOffset(0) },
        ])
        .unwrap()
    }

    #[test]
    fn addresses_above_the_pci_hole_map_behind_low_ram() {
        let l = split();
        assert_eq!(l.offset_of(Gpa(4 << 30), 8), Some(FileOffset(2 << 30)));
        assert_eq!(l.gpa_of(FileOffset((2 << 30) + 5)), Some(Gpa((4 << 30) + 5)));
        assert_eq!(l.offset_of(Gpa(3 << 30), 1), None);
        assert_eq!(l.offset_of(Gpa((2 << 30) - 4), 8), None, "a read must not run into the hole");
        assert_eq!(l.frame_limit(), Gfn((6 << 30) >> 12));
        assert_eq!(l.frames().count() as u64, (4 << 30) / 4096);
    }

    #[test]
    fn bad_regions_are_named() {
        assert_eq!(RamLayout::new(vec![]), Err(LayoutError::Empty));
        let bad = RamRegion { gpa: Gpa(1), len: 4096, offset: FileOffset(0) };
        assert!(matches!(RamLayout::new(vec![bad]), Err(LayoutError::Bad { .. })));
        let wraps = RamRegion { gpa: Gpa(0), len: !4095, offset: FileOffset(0) };
        assert!(matches!(RamLayout::new(vec![wraps]), Err(LayoutError::Bad { .. })));
        let a = RamRegion { gpa: Gpa(0), len: 8192, offset: FileOffset(0) };
        let b = RamRegion { gpa: Gpa(4096), len: 4096, offset: FileOffset(8192) };
        assert_eq!(RamLayout::new(vec![b, a]), Err(LayoutError::Overlap(Gpa(4096))));
    }
}
