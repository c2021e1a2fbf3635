//! Finding the kernel with nothing but RAM: by the shape of its page tables.
//!
//! ```text
//! top-level (LA57)            top-level (four levels)
//!   [511] -> level 4            [511] -> level3_kernel_pgt   [272..499] some entry set
//!              [511] -> level3_kernel_pgt
//! level3_kernel_pgt: entries 0..=509 zero, [510] -> level2_kernel_pgt, [511] -> fixmap
//! level2_kernel_pgt: the kernel image in 2 MiB leaves (some split to 4 KiB), contiguous
//! ```
//! The image then stands at `0xffff_ffff_8000_0000 + slot * 2 MiB`. A guest user can fill pages
//! to look so; what follows (kallsyms, BTF) is accepted through read-only mappings only.
//! Source of the layout: `arch/x86/kernel/head_64.S`.

use crate::KernelError;
use elision_memory::{Gpa, Gva, PAGE_SIZE, PageTables, Ram};
use std::collections::{HashMap, HashSet};

const KERNEL_HALF: u64 = 0xffff_ffff_8000_0000;
const LARGE_PAGE: u64 = 1 << 21;
/// No distribution's kernel image comes near this many bytes.
const IMAGE_LIMIT: u64 = 256 << 20;
/// So many tables that look like the kernel's are followed; a running guest has one.
const FOLLOWED: usize = 64;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where the kernel image is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImageRange {
    pub(crate) tables: PageTables,
    /// Virtual address of the first mapped byte.
    pub(crate) base: Gva,
    /// Bytes from there to the end of the mapping.
    pub(crate) len: u64,
    /// Physical address of the first mapped byte.
    pub(crate) physical: Gpa,
}

/// Kernel images found in RAM, best guess first. `roots` are top-level tables that a vCPU uses
/// (CR3); without them, or when none of them fits, every frame is looked at.
pub(crate) fn candidates(ram: &Ram, roots: &[Gpa]) -> Vec<ImageRange> {
    let mut search = Search { ram, level3: HashMap::new(), followed: HashSet::new() };
    let hinted = roots.iter().flat_map(|root| {
        // With page-table isolation the user-mode table stands one page above the kernel's.
        let page = root.0 & ADDRESS;
        [Gpa(page), Gpa(page & !(PAGE_SIZE as u64))]
    });
    let mut found: Vec<_> = hinted.filter_map(|root| search.image_under(root)).collect();
    if found.is_empty() {
        let mut seen = Vec::new();
        for gfn in ram.populated_frames() {
            if let Some(image) = search.image_under(gfn.gpa()) {
                if !seen.contains(&image.physical) {
                    seen.push(image.physical);
                    found.push(image);
                }
                if found.len() >= 8 {
                    break;
                }
            }
        }
    }
    found
}

struct Search<'a> {
    ram: &'a Ram,
    /// Tables already judged: do they map a kernel image?
    level3: HashMap<Gpa, bool>,
    /// Tables already followed, each with whether it stood under five levels.
    followed: HashSet<(Gpa, bool)>,
}

impl Search<'_> {
    fn image_under(&mut self, root: Gpa) -> Option<ImageRange> {
        let next = self.table_at(root, 511)?;
        let (level3, la57) = if self.is_level3(next) {
            // A level-4 table of an LA57 kernel has the same last entry, but no direct map.
            if !(272..500).any(|i| self.entry(root, i).is_some_and(|e| e != 0)) {
                return None;
            }
            (next, false)
        } else {
            let level3 = self.table_at(next, 511)?;
            if !self.is_level3(level3) {
                return None;
            }
            (level3, true)
        };
        // One process after the other maps the same image: the first will do.
        if self.followed.len() >= FOLLOWED || !self.followed.insert((level3, la57)) {
            return None;
        }
        self.extent(PageTables::new(root, la57), self.table_at(level3, 510)?)
    }

    /// Follows the image from its first mapped slot as long as physical memory stays contiguous.
    fn extent(&self, tables: PageTables, level2: Gpa) -> Option<ImageRange> {
        let mut image: Option<(u64, Gpa, u64)> = None;
        for slot in 0..512 {
            let va = KERNEL_HALF + slot * LARGE_PAGE;
            match (image, self.first_mapped(level2, slot)) {
                (None, None) => {}
                (None, Some((skip, gpa))) => image = Some((va + skip, gpa, va + LARGE_PAGE)),
                (Some((base, physical, _)), Some((skip, gpa)))
                    if gpa.0.wrapping_sub(physical.0) == va + skip - base =>
                {
                    image = Some((base, physical, va + LARGE_PAGE));
                }
                (Some(_), _) => break,
            }
        }
        let (base, physical, end) = image?;
        let len = end - base;
        (len <= IMAGE_LIMIT).then_some(ImageRange { tables, base: Gva(base), len, physical })
    }

    /// The first mapped byte of a slot, by its offset there, and where it leads. A slot split into
    /// 4 KiB pages may begin with a hole (freed init memory).
    fn first_mapped(&self, level2: Gpa, slot: u64) -> Option<(u64, Gpa)> {
        let entry = self.entry(level2, slot).filter(|e| e & PRESENT != 0)?;
        if entry & LARGE != 0 {
            return Some((0, Gpa(entry & ADDRESS & !(LARGE_PAGE - 1))));
        }
        (0..512).find_map(|i| {
            let page = self.entry(Gpa(entry & ADDRESS), i).filter(|e| e & PRESENT != 0)?;
            Some((i * PAGE_SIZE as u64, Gpa(page & ADDRESS)))
        })
    }

    fn entry(&self, table: Gpa, index: u64) -> Option<u64> {
        self.ram.word(Gpa(table.0 + 8 * index))
    }

    fn table_at(&self, table: Gpa, index: u64) -> Option<Gpa> {
        let entry = self.entry(table, index)?;
        let is_table = entry & PRESENT != 0 && entry & LARGE == 0 && entry & ADDRESS != 0;
        is_table.then_some(Gpa(entry & ADDRESS))
    }

    fn is_level3(&mut self, table: Gpa) -> bool {
        if let Some(&known) = self.level3.get(&table) {
            return known;
        }
        let answer = self.looks_like_level3(table);
        self.level3.insert(table, answer);
        answer
    }

    fn looks_like_level3(&self, table: Gpa) -> bool {
        let Some(level2) = self.table_at(table, 510) else { return false };
        if self.entry(table, 511).is_none_or(|e| e & PRESENT == 0)
            || (0..510).any(|i| self.entry(table, i).is_none_or(|e| e != 0))
        {
            return false;
        }
        let slots: Vec<(u64, u64)> = (0..512)
            .filter_map(|i| self.entry(level2, i).filter(|e| e & PRESENT != 0).map(|e| (i, e)))
            .collect();
        if slots.len() < 6 || slots.len() == 512 {
            return false;
        }
        let mut leaves = slots.iter().filter(|(_, e)| e & LARGE != 0);
        let physical = |e: u64| e & ADDRESS & !(LARGE_PAGE - 1);
        let Some(&(first, entry)) = leaves.next() else { return false };
        leaves.all(|&(i, e)| physical(e) == physical(entry).wrapping_add((i - first) * LARGE_PAGE))
    }
}

/// A copy of the kernel image; what is not mapped reads as zeros.
pub(crate) struct ImageCopy {
    pub(crate) bytes: Vec<u8>,
    read_only: Vec<bool>,
}

impl ImageCopy {
    /// Copies the mapped pages of the image.
    pub(crate) fn new(ram: &Ram, image: &ImageRange) -> Result<Self, KernelError> {
        let len = usize::try_from(image.len).map_err(|_| KernelError::Incomplete("image"))?;
        let mut bytes = vec![0; len];
        let mut read_only = vec![false; len / PAGE_SIZE];
        for (i, page) in bytes.chunks_exact_mut(PAGE_SIZE).enumerate() {
            let gva = image.base.wrapping_add((i * PAGE_SIZE) as u64);
            if let Some(t) = image.tables.translate(ram, gva) {
                if ram.read(t.gpa, page).is_ok() {
                    read_only[i] = !t.writable && !t.user;
                }
            }
        }
        Ok(Self { bytes, read_only })
    }

    /// Whether a guest's user could not have written these bytes.
    pub(crate) fn is_read_only(&self, offset: usize, len: usize) -> bool {
        let Some(end) = offset.checked_add(len) else { return false };
        len != 0
            && end <= self.bytes.len()
            && self.read_only[offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE)].iter().all(|&ro| ro)
    }
}
