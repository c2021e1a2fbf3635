//! `struct page`: what the kernel says of one frame.
//!
//! Bit numbers come from `enum pageflags`. The `mapping` word tells what the frame holds by its
//! low bits: 1 anonymous, 3 merged by KSM, 2 movable driver memory, 0 page cache or nothing.

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

layout! {
    pub(crate) struct PageLayout {
        size: size("page"),
        flags: offset("page", &["flags.f", "flags"]),
        mapping: offset("page", &["mapping"]),
        refcount: offset("page", &["_refcount"]),
        mapcount: offset("page", &["_mapcount"]),
        compound_head: optional("page", &["compound_head"]),
        compound_info: optional("page", &["compound_info"]),
        lru: offset("page", &["lru"]),
        buddy_list: optional("page", &["buddy_list"]),
        pcp_list: optional("page", &["pcp_list"]),
        reserved: enumerator("PG_reserved"),
        swap_backed: enumerator("PG_swapbacked"),
        slab_flag: enumerator("PG_slab"),
        head_flag: enumerator("PG_head"),
        swap_cache_flag: enumerator("PG_swapcache"),
        lru_flag: enumerator("PG_lru"),
        locked_flag: enumerator("PG_locked"),
        writeback_flag: enumerator("PG_writeback"),
        slab_type: enumerator("PGTY_slab"),
        buddy_type: enumerator("PGTY_buddy"),
        offline_type: enumerator("PGTY_offline"),
        table_type: enumerator("PGTY_table"),
        guard_type: enumerator("PGTY_guard"),
        hugetlb_type: enumerator("PGTY_hugetlb"),
        zsmalloc_type: enumerator("PGTY_zsmalloc"),
        unaccepted_type: enumerator("PGTY_unaccepted"),
        large_kmalloc_type: enumerator("PGTY_large_kmalloc"),
        charge: optional("page", &["memcg_data"]),
        owner: optional("page", &["mem_cgroup"]),
        index: offset("page", &["index", "__folio_index"]),
        private: offset("page", &["private"]),
    }
}

impl PageLayout {
    /// Whether the size is one that addresses can be computed with.
    pub(crate) fn is_sane(&self) -> bool {
        (RAW as u64..=16 * RAW as u64).contains(&self.size) && self.size % 8 == 0
    }
}

const WHAT: &str = "page descriptor";
/// The part of a descriptor that is looked at.
const RAW: usize = 64;
/// The count of page-table entries of a page that none maps.
pub(crate) const UNMAPPED: u32 = u32::MAX;
/// Largest compound page: 1 GiB.
const COMPOUND_LIMIT: u64 = 1 << 18;

/// What a frame in use holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageKind {
    /// Memory of processes that no file stands behind.
    Anonymous,
    /// Anonymous memory with equal content merged across processes.
    Merged,
    /// Shared memory or tmpfs: page cache without a disk.
    SharedMemory,
    /// Page cache of a file on a disk, or hugetlbfs.
    File,
    /// Reserved memory: the kernel image, the zero page, firmware.
    Reserved,
    /// Anything else: memory of a driver or of the kernel.
    Other,
}

/// What the kernel itself says that it uses a page for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageType {
    Buddy,
    Offline,
    Table,
    Guard,
    HugeTlb,
    Slab,
    Zsmalloc,
    Unaccepted,
    LargeKmalloc,
}

/// Types of kernels that keep one bit for each, clear when it is set, below this.
const OLD_TYPES: u32 = 0xf000_0000;
const OLD_TYPE_BITS: [(u32, PageType); 4] =
    [(0x80, PageType::Buddy), (0x100, PageType::Offline), (0x200, PageType::Table), (0x400, PageType::Guard)];
/// Up to 5.10 a bit before those of tables and guards told that a page is charged to a cgroup.
const FIRST_BEHIND_CHARGED: u32 = 0x200;
/// Types of kernels that number them.
const NEW_TYPES: std::ops::Range<u64> = 0xf0..0xff;
/// Bits of the word that tells the cgroup: a list of object owners, and kernel memory.
const CHARGE_KERNEL: u64 = 2;

/// One frame's descriptor; for a tail of a compound page with the kind of its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The frame.
    pub gfn: Gfn,
    /// The first frame of its compound page, or itself.
    pub head: Gfn,
    /// What it holds.
    pub kind: PageKind,
    /// References to the head.
    pub refcount: u32,
    /// The page's own count of page-table entries that map it, minus one.
    pub mapcount: u32,
    /// No more entries of page tables than this lead to the page or a part of it, a large one counted once. Not told
    /// while the page is locked, written, or in the swap cache: older kernels (5.10) may write an entry before they count
    /// it there.
    pub mappings: Option<u32>,
}

/// The bytes of one descriptor.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub(crate) struct Raw([u8; RAW]);

impl Raw {
    /// From where the descriptor begins in what was read.
    pub(crate) fn at(bytes: &[u8]) -> Option<&Self> {
        Self::ref_from_prefix(bytes).ok().map(|(raw, _)| raw)
    }

    pub(crate) fn u64(&self, offset: u64) -> u64 {
        self.bytes(offset).map_or(0, u64::from_le_bytes)
    }

    fn u32(&self, offset: u64) -> u32 {
        self.bytes(offset).map_or(0, u32::from_le_bytes)
    }

    fn bytes<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        self.0.get(usize::try_from(offset).ok()?..)?.first_chunk().copied()
    }
}

/// The counts of a page.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) references: u32,
    /// Page-table entries, minus one.
    pub(crate) mapped: u32,
}

/// What a descriptor says.
impl PageLayout {
    pub(crate) fn has(&self, raw: &Raw, flag: Option<u64>) -> bool {
        flag.is_some_and(|bit| bit < 64 && raw.u64(self.flags) >> bit & 1 != 0)
    }

    pub(crate) fn page_type(&self, raw: &Raw) -> Option<PageType> {
        if self.has(raw, self.slab_flag) {
            return Some(PageType::Slab); // the word that tells the type is something else here
        }
        let word = raw.u32(self.mapcount);
        if self.slab_type.is_none() {
            if word == u32::MAX || word & OLD_TYPES != OLD_TYPES {
                return None; // a type's bit is taken out of ones
            }
            let moved = |bit: u32| bit << u32::from(self.owner.is_some() && bit >= FIRST_BEHIND_CHARGED);
            let is = |bit: u32| word & (OLD_TYPES | moved(bit)) == OLD_TYPES;
            return OLD_TYPE_BITS.iter().find(|(bit, _)| is(*bit)).map(|(_, page_type)| *page_type);
        }
        // Newer kernels keep the type above the page's count.
        let found = u64::from(word >> 24);
        if !NEW_TYPES.contains(&found) {
            return None;
        }
        let is = |value: Option<u64>| value == Some(found);
        let types = [
            (self.slab_type, PageType::Slab),
            (self.buddy_type, PageType::Buddy),
            (self.table_type, PageType::Table),
            (self.large_kmalloc_type, PageType::LargeKmalloc),
            (self.hugetlb_type, PageType::HugeTlb),
            (self.offline_type, PageType::Offline),
            (self.guard_type, PageType::Guard),
            (self.zsmalloc_type, PageType::Zsmalloc),
            (self.unaccepted_type, PageType::Unaccepted),
        ];
        types.iter().find(|(value, _)| is(*value)).map(|(_, page_type)| *page_type)
    }

    pub(crate) fn kind(&self, raw: &Raw) -> PageKind {
        let mapping = raw.u64(self.mapping);
        match mapping & 3 {
            _ if self.page_type(raw) == Some(PageType::Slab) => PageKind::Other,
            _ if self.has(raw, self.reserved) => PageKind::Reserved,
            1 => PageKind::Anonymous,
            3 => PageKind::Merged,
            0 if mapping != 0 && self.has(raw, self.swap_backed) => PageKind::SharedMemory,
            0 if mapping != 0 => PageKind::File,
            _ => PageKind::Other,
        }
    }

    /// Whether somebody works on the page, or swap knows it.
    pub(crate) fn is_busy(&self, raw: &Raw) -> bool {
        // What the bit of the swap cache means for pages of files does not matter here.
        [self.locked_flag, self.writeback_flag, self.swap_cache_flag].iter().any(|flag| self.has(raw, *flag))
    }

    /// Whether somebody has the page for himself.
    pub(crate) fn is_locked(&self, raw: &Raw) -> bool {
        self.has(raw, self.locked_flag)
    }

    /// Whether the page is on its way to the disk.
    pub(crate) fn is_written_back(&self, raw: &Raw) -> bool {
        self.has(raw, self.writeback_flag)
    }

    /// Whether the page is in the swap cache. The bit means something else for pages of files.
    pub(crate) fn is_in_swap_cache(&self, raw: &Raw) -> bool {
        self.page_type(raw) != Some(PageType::Slab)
            && self.has(raw, self.swap_cache_flag)
            && self.has(raw, self.swap_backed)
    }

    /// Whether the page is on a reclaim list.
    pub(crate) fn is_on_lru(&self, raw: &Raw) -> bool {
        self.has(raw, self.lru_flag)
    }

    pub(crate) fn counts(&self, raw: &Raw) -> Counts {
        Counts { references: raw.u32(self.refcount), mapped: raw.u32(self.mapcount) }
    }

    /// The `anon_vma` of an anonymous page.
    pub(crate) fn anon_vma(&self, raw: &Raw) -> Gva {
        Gva(raw.u64(self.mapping) & !3)
    }

    /// The page's place in its file or, in pages, in its address space.
    pub(crate) fn index(&self, raw: &Raw) -> u64 {
        raw.u64(self.index)
    }

    /// Whether a driver lets the page be moved.
    pub(crate) fn is_movable(&self, raw: &Raw) -> bool {
        raw.u64(self.mapping) & 3 == 2
    }

    /// Whether it is a compound page.
    pub(crate) fn is_compound(&self, raw: &Raw) -> bool {
        self.has(raw, self.head_flag)
    }

    /// Whether it is a part of a compound page, but not its first.
    pub(crate) fn is_tail(&self, raw: &Raw) -> bool {
        self.way_to_head(raw).is_some()
    }

    /// What such a part says of where the first one is.
    fn way_to_head(&self, raw: &Raw) -> Option<u64> {
        let word = raw.u64(self.compound_head.or(self.compound_info)?);
        (word & 1 != 0).then_some(word)
    }

    /// What tells pages without a mark from others, for many of them.
    pub(crate) fn unmarked(&self) -> Unmarked<'_> {
        let marks = [
            self.reserved,
            self.lru_flag,
            self.locked_flag,
            self.writeback_flag,
            self.swap_backed,
            self.slab_flag,
        ];
        let bits = marks.into_iter().flatten().filter(|bit| *bit < 64);
        Unmarked { layout: self, marks: bits.fold(0, |marks, bit| marks | 1 << bit) }
    }

    /// The word that tells the cgroup that it is charged to.
    pub(crate) fn charge_word(&self, raw: &Raw) -> Option<u64> {
        self.charge.or(self.owner).map(|at| raw.u64(at))
    }

    /// Whether it is charged to a cgroup as memory of the kernel.
    pub(crate) fn is_charged_to_kernel(&self, raw: &Raw) -> bool {
        self.charge.is_some_and(|at| raw.u64(at) & CHARGE_KERNEL != 0)
    }
}

/// Looks for pages that have no type, no mapping, and are on no list.
#[derive(Clone, Copy)]
pub(crate) struct Unmarked<'l> {
    layout: &'l PageLayout,
    /// Flags that such a page does not have.
    marks: u64,
}

impl Unmarked<'_> {
    /// Whether nothing tells of a use of the page, nor that it is on a list of free pages.
    pub(crate) fn is_unused(&self, raw: &Raw) -> bool {
        let layout = self.layout;
        layout.counts(raw).references == 0
            && self.has_none(raw)
            && !layout.is_compound(raw)
            && layout.charge_word(raw).unwrap_or(0) == 0
    }

    /// Whether the page is in use by one, and nothing tells what for: as one that was just allocated.
    pub(crate) fn is_fresh(&self, raw: &Raw) -> bool {
        let layout = self.layout;
        layout.counts(raw).references == 1 && self.has_none(raw) && !layout.is_charged_to_kernel(raw)
    }

    fn has_none(&self, raw: &Raw) -> bool {
        let layout = self.layout;
        // The word of a type that is not a flag is the count.
        raw.u64(layout.mapping) == 0
            && layout.counts(raw).mapped == UNMAPPED
            && raw.u64(layout.flags) & self.marks == 0
    }
}

impl Kernel<'_> {
    /// The descriptor of a frame.
    pub fn page(&self, gfn: Gfn) -> Result<Page, KernelError> {
        let layout = &self.profile.page;
        let own = self.raw_page(gfn)?;
        let head = self.head_of(gfn, &own)?;
        let raw = if head == gfn { own } else { self.raw_page(head)? };
        let Counts { references, mapped } = layout.counts(&raw);
        // Newer kernels have no count for each part of a compound page; every entry holds a reference.
        let mappings = if layout.is_compound(&raw) { references } else { mapped.wrapping_sub(UNMAPPED) };
        Ok(Page {
            gfn,
            head,
            kind: layout.kind(&raw),
            refcount: references,
            mapcount: layout.counts(&own).mapped,
            mappings: Some(mappings).filter(|_| !layout.is_busy(&raw)),
        })
    }

    /// Whether a page belongs to the swap cache, given by the head of its compound page.
    pub fn is_in_swap_cache(&self, head: Gfn) -> Result<bool, KernelError> {
        let (layout, raw) = (&self.profile.page, self.raw_page(head)?);
        Ok(layout.is_in_swap_cache(&raw))
    }

    /// All frames of the compound page that begins at `head`.
    pub fn compound_frames(&self, head: Gfn) -> Result<std::ops::Range<u64>, KernelError> {
        let mut end = head.0 + 1;
        while end - head.0 < COMPOUND_LIMIT && self.ram.layout().contains(Gfn(end)) {
            let tail = self.raw_page(Gfn(end))?;
            if self.head_of(Gfn(end), &tail)? != head {
                break;
            }
            end += 1;
        }
        Ok(head.0..end)
    }

    pub(crate) fn raw_page(&self, gfn: Gfn) -> Result<Raw, KernelError> {
        let mut raw = [0; RAW];
        self.read(self.page_of(gfn), &mut raw, WHAT)?;
        Ok(Raw(raw))
    }

    pub(crate) fn head_of(&self, gfn: Gfn, raw: &Raw) -> Result<Gfn, KernelError> {
        let layout = &self.profile.page;
        let Some(info) = layout.way_to_head(raw) else { return Ok(gfn) };
        let at = self.page_of(gfn);
        // Newer kernels may keep a mask instead of a pointer: ones down to the head's alignment.
        let is_mask = layout.compound_head.is_none() && info >> 32 == 0xffff_ffff;
        let head = if is_mask { Gva(at.0 & (info & !1)) } else { Gva(info & !1) };
        let torn =
            KernelError::Torn { what: WHAT, at, why: "it belongs to a compound page that is not there" };
        let head = self.frame_of(head).ok_or(torn)?;
        let inside = head <= gfn && gfn.0 - head.0 < COMPOUND_LIMIT;
        if inside {
            Ok(head)
        } else {
            Err(KernelError::Torn { what: WHAT, at, why: "its compound page is too far away" })
        }
    }
}
