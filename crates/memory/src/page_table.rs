//! x86-64 page tables, read from RAM (Intel SDM volume 3, chapter "Paging").
//!
//! ```text
//! level 4 (LA57 only) -> 3 -> 2 -> 1 -> 0         512 entries of 8 bytes each
//!                             |    |    4 KiB leaf
//!                             |    2 MiB leaf (PS)
//!                             1 GiB leaf (PS)
//! ```
//! The guest owns these tables and may have built loops: every walk spends from a [`Budget`].

use crate::{Gpa, Gva, PAGE_SIZE, Ram};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const ENTRIES: u64 = 512;
/// Bytes of an entry, and of a line of the processor's cache.
const ENTRY: usize = 8;
const LINE: usize = 64;

/// How much a leaf entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeafSize {
    /// A base page.
    Size4K,
    /// A large page mapped by a level-1 entry.
    Size2M,
    /// A large page mapped by a level-2 entry.
    Size1G,
}

impl LeafSize {
    fn at_level(level: u32) -> Self {
        match level {
            0 => Self::Size4K,
            1 => Self::Size2M,
            _ => Self::Size1G,
        }
    }

    /// Bytes mapped.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 1 << 12,
            Self::Size2M => 1 << 21,
            Self::Size1G => 1 << 30,
        }
    }

    /// Base frames mapped.
    #[must_use]
    pub fn frames(self) -> u64 {
        self.bytes() / PAGE_SIZE as u64
    }
}

/// A leaf entry that is not empty: a mapping, or what the kernel keeps in a non-present entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First virtual address.
    pub gva: Gva,
    /// How much the entry covers.
    pub size: LeafSize,
    /// The raw entry.
    pub entry: u64,
    /// Whether every level above allows writes too.
    pub writable_path: bool,
}

impl Leaf {
    /// Whether the processor would use the entry.
    #[must_use]
    pub fn is_present(self) -> bool {
        self.entry & PRESENT != 0
    }

    /// Where a present leaf points.
    #[must_use]
    pub fn target(self) -> Gpa {
        Gpa(self.entry & ADDRESS & !(self.size.bytes() - 1))
    }
}

/// What a walk comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A table, by the address of its frame.
    Table(Gpa),
    /// An entry that leads to memory.
    Leaf(Leaf),
}

/// Where a virtual address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// Size of the page that maps it.
    pub size: LeafSize,
    /// Writable at every level.
    pub writable: bool,
    /// Reachable from user mode at every level.
    pub user: bool,
}

/// How many more steps walks over hostile memory may take, page-table pages read above all. Threads may share one.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Budget {
    /// Room for so many steps: for a walk over page tables, reads of a table page.
    #[must_use]
    pub fn new(steps: u64) -> Self {
        Self(AtomicU64::new(steps))
    }

    /// Takes `steps` of it. `false` if it has no more so many.
    #[must_use]
    pub fn take(&self, steps: u64) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(steps)).is_ok()
    }
}

/// Why a walk over page tables was given up.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum WalkError {
    /// A table stands outside RAM.
    #[error("A page table points to {0}, which is not RAM")]
    NotRam(Gpa),
    /// More tables than the guest can hold: a loop, or tables mapped over and over.
    #[error("The page tables hold a loop or more tables than the guest has frames")]
    Budget,
}

/// One address space: its top-level table and depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTables {
    root: Gpa,
    la57: bool,
}

impl PageTables {
    /// The address space under a top-level table; `la57` for five levels.
    #[must_use]
    pub fn new(root: Gpa, la57: bool) -> Self {
        Self { root: Gpa(root.0 & ADDRESS), la57 }
    }

    /// The top-level table.
    #[must_use]
    pub fn root(&self) -> Gpa {
        self.root
    }

    /// Whether there are five levels.
    #[must_use]
    pub fn la57(&self) -> bool {
        self.la57
    }

    /// The user half of the address space.
    #[must_use]
    pub fn user_range(&self) -> Range<Gva> {
        Gva(0)..Gva(if self.la57 { 1 << 56 } else { 1 << 47 })
    }

    fn top_level(&self) -> u32 {
        if self.la57 { 4 } else { 3 }
    }

    /// Where `gva` leads, or `None` when it is not mapped.
    #[must_use]
    pub fn translate(&self, ram: &Ram, gva: Gva) -> Option<Translation> {
        let (mut table, mut flags) = (self.root, WRITABLE | USER);
        for level in (0..=self.top_level()).rev() {
            let shift = 12 + 9 * level;
            let index = (gva.0 >> shift) % ENTRIES;
            let entry = ram.word(Gpa(table.0 + 8 * index))?;
            if entry & PRESENT == 0 {
                return None;
            }
            flags &= entry;
            if level == 0 || (level <= 2 && entry & LARGE != 0) {
                let size = LeafSize::at_level(level);
                let mask = size.bytes() - 1;
                return Some(Translation {
                    gpa: Gpa((entry & ADDRESS & !mask) | (gva.0 & mask)),
                    size,
                    writable: flags & WRITABLE != 0,
                    user: flags & USER != 0,
                });
            }
            table = Gpa(entry & ADDRESS);
        }
        None
    }

    /// Calls `visit` for each non-empty leaf that touches `range`, by ascending address.
    ///
    /// Entries at the levels of 2 MiB and 1 GiB pages are leaves when the large bit is set or
    /// when they are not present (the kernel keeps swap and migration entries there too).
    pub fn walk(
        &self,
        ram: &Ram,
        range: Range<Gva>,
        budget: &Budget,
        mut visit: impl FnMut(Leaf),
    ) -> Result<(), WalkError> {
        self.walk_nodes(ram, range, budget, |node| {
            if let Node::Leaf(leaf) = node {
                visit(leaf);
            }
        })
    }

    /// The same with the tables on the way: each before what it leads to.
    pub fn walk_nodes(
        &self,
        ram: &Ram,
        range: Range<Gva>,
        budget: &Budget,
        mut visit: impl FnMut(Node),
    ) -> Result<(), WalkError> {
        let at = Cursor { table: self.root, base: 0, writable: true };
        self.walk_table(ram, at, self.top_level(), &range, budget, &mut visit)
    }

    fn walk_table(
        &self,
        ram: &Ram,
        at: Cursor,
        level: u32,
        range: &Range<Gva>,
        budget: &Budget,
        visit: &mut impl FnMut(Node),
    ) -> Result<(), WalkError> {
        if !budget.take(1) {
            return Err(WalkError::Budget);
        }
        visit(Node::Table(at.table));
        let mut raw = [0; PAGE_SIZE];
        // Half of a top-level table is the kernel's, the same for all processes.
        let is_users = level == self.top_level() && range.end <= self.user_range().end;
        let used = if is_users { PAGE_SIZE / 2 } else { PAGE_SIZE };
        let raw = &mut raw[..used];
        ram.read(at.table, raw).map_err(|_| WalkError::NotRam(at.table))?;
        let shift = 12 + 9 * level;
        // Most tables are empty for the most part.
        let lines = (0..ENTRIES).step_by(LINE / ENTRY).zip(raw.chunks_exact(LINE));
        for (first, line) in lines.filter(|(_, line)| line.iter().fold(0, |all, byte| all | byte) != 0) {
            for (index, bytes) in (first..).zip(line.chunks_exact(ENTRY)) {
                let mut word = [0; ENTRY];
                word.copy_from_slice(bytes);
                let entry = u64::from_le_bytes(word);
                if entry == 0 {
                    continue;
                }
                let start = self.canonical(at.base + (index << shift));
                let last = start.0 + ((1 << shift) - 1);
                if last < range.start.0 || start >= range.end {
                    continue;
                }
                let writable = at.writable && entry & WRITABLE != 0;
                let leaf = level == 0 || (level <= 2 && (entry & LARGE != 0 || entry & PRESENT == 0));
                if leaf {
                    let size = LeafSize::at_level(level);
                    visit(Node::Leaf(Leaf { gva: start, size, entry, writable_path: writable }));
                } else if entry & PRESENT != 0 {
                    let table = Gpa(entry & ADDRESS);
                    let down = Cursor { table, base: at.base + (index << shift), writable };
                    self.walk_table(ram, down, level - 1, range, budget, visit)?;
                }
            }
        }
        Ok(())
    }

    fn canonical(&self, address: u64) -> Gva {
        let sign = 1 << (12 + 9 * (self.top_level() + 1) - 1);
        Gva(if address & sign == 0 { address } else { address | !(2 * sign - 1) })
    }
}

#[derive(Clone, Copy)]
struct Cursor {
    table: Gpa,
    base: u64,
    writable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RamLayout;
    use proptest::prelude::*;

    const TABLE: [Gpa; 5] = [Gpa(0x1000), Gpa(0x2000), Gpa(0x3000), Gpa(0x4000), Gpa(0x5000)];

    fn ram() -> Ram {
        Ram::zeroed(RamLayout::flat(64 << 12).unwrap()).unwrap()
    }

    fn set(ram: &mut Ram, table: Gpa, index: u64, entry: u64) {
        ram.poke(Gpa(table.0 + 8 * index), &entry.to_le_bytes()).unwrap();
    }

    /// Maps one leaf at `gva`; `depth` levels of tables lead to it.
    fn map(ram: &mut Ram, la57: bool, gva: u64, leaf_level: u32, leaf: u64) -> PageTables {
        let top = if la57 { 4 } else { 3 };
        let mut tables = TABLE.iter();
        let mut table = *tables.next().unwrap();
        for level in (leaf_level..=top).rev() {
            let index = (gva >> (12 + 9 * level)) & 511;
            if level == leaf_level {
                set(ram, table, index, leaf);
            } else {
                let next = *tables.next().unwrap();
                set(ram, table, index, next.0 | PRESENT | WRITABLE | USER);
                table = next;
            }
        }
        PageTables::new(TABLE[0], la57)
    }

    #[test]
    fn four_and_five_levels_find_all_page_sizes() {
        for la57 in [false, true] {
            for (level, size) in [(0, LeafSize::Size4K), (1, LeafSize::Size2M), (2, LeafSize::Size1G)] {
                let mut ram = ram();
                let large = if level > 0 { LARGE } else { 0 };
                // Bit 12 of a large leaf is its PAT bit and must not reach the address.
                let pat = if level > 0 { 1 << 12 } else { 0 };
                let gva = 0x7f12_4000_0000;
                let pt = map(&mut ram, la57, gva, level, 0x4000_0000 | PRESENT | WRITABLE | large | pat);
                let t = pt.translate(&ram, Gva(gva + 0x123)).unwrap();
                assert_eq!((t.gpa, t.size, t.writable, t.user), (Gpa(0x4000_0123), size, true, false));
                let mut leaves = vec![];
                pt.walk(&ram, pt.user_range(), &Budget::new(9), |l| leaves.push(l)).unwrap();
                assert_eq!(leaves.len(), 1);
                let mut nodes = vec![];
                pt.walk_nodes(&ram, pt.user_range(), &Budget::new(9), |n| nodes.push(n)).unwrap();
                let tables = if la57 { 5 } else { 4 } - level as usize;
                assert_eq!(nodes.pop(), Some(Node::Leaf(leaves[0])));
                assert_eq!(nodes, TABLE.map(Node::Table)[..tables]);
                assert_eq!(
                    (leaves[0].gva, leaves[0].size, leaves[0].target()),
                    (Gva(gva), size, Gpa(0x4000_0000))
                );
            }
        }
    }

    #[test]
    fn kernel_addresses_are_canonical() {
        let mut ram = ram();
        let pt = map(&mut ram, false, 0xffff_8880_0000_0000, 0, 0x7000 | PRESENT);
        let mut seen = vec![];
        pt.walk(&ram, Gva(1 << 63)..Gva(u64::MAX), &Budget::new(9), |l| seen.push(l.gva)).unwrap();
        assert_eq!(seen, [Gva(0xffff_8880_0000_0000)]);
        pt.walk(&ram, pt.user_range(), &Budget::new(9), |l| panic!("{l:?} is not user memory")).unwrap();
    }

    #[test]
    fn a_table_that_points_to_itself_ends_by_budget() {
        let mut ram = ram();
        for i in 0..512 {
            set(&mut ram, TABLE[0], i, TABLE[0].0 | PRESENT);
        }
        let pt = PageTables::new(TABLE[0], true);
        let end = pt.walk(&ram, pt.user_range(), &Budget::new(1000), &mut |_| {});
        assert_eq!(end, Err(WalkError::Budget));
    }

    #[test]
    fn a_table_outside_ram_is_named() {
        let mut ram = ram();
        set(&mut ram, TABLE[0], 0, 0xdead_0000 | PRESENT);
        let pt = PageTables::new(TABLE[0], false);
        let end = pt.walk(&ram, pt.user_range(), &Budget::new(1000), &mut |_| {});
        assert_eq!(end, Err(WalkError::NotRam(Gpa(0xdead_0000))));
        assert_eq!(pt.translate(&ram, Gva(0)), None);
    }

    proptest! {
        #[test]
        fn a_walk_and_a_translation_agree(entries in proptest::collection::vec((0_u64..5, 0_u64..512, any::<u64>()), 0..60), la57: bool) {
            let mut ram = ram();
            for (t, i, e) in entries {
                // Half of the entries lead to another table.
                let entry = if e & 2 == 0 { (0x1000 * (1 + e % 5)) | (e & 0x87) } else { e };
                set(&mut ram, TABLE[usize::try_from(t).unwrap()], i, entry);
            }
            let pt = PageTables::new(TABLE[0], la57);
            let _ = pt.walk(&ram, pt.user_range(), &Budget::new(3000), |l| {
                if l.is_present() {
                    assert_eq!(pt.translate(&ram, l.gva).map(|t| (t.gpa, t.size)), Some((l.target(), l.size)));
                }
            });
        }
    }
}
