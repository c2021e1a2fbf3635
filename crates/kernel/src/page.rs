//! `struct page`: what the kernel says of one frame.
//!
//! Bit numbers come from `enum pageflags`. The `mapping` word tells what the frame holds by its
//! low bits: 1 anonymous, 3 merged by KSM, 2 movable driver memory, 0 page cache or nothing.

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva};

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
        slab_type: enumerator("PGTY_slab"),
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
}

struct Raw([u8; RAW]);

impl Raw {
    fn u64(&self, offset: u64) -> u64 {
        u64::from(self.u32(offset)) | u64::from(self.u32(offset + 4)) << 32
    }

    fn u32(&self, offset: u64) -> u32 {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = at.checked_add(4).and_then(|end| self.0.get(at..end)).unwrap_or(&[0; 4]);
        bytes.iter().rev().fold(0, |v, &b| (v << 8) | u32::from(b))
    }
}

impl Kernel<'_> {
    /// The descriptor of a frame.
    pub fn page(&self, gfn: Gfn) -> Result<Page, KernelError> {
        let layout = &self.profile.page;
        let own = self.raw_page(gfn)?;
        let head = self.head_of(gfn, &own)?;
        let raw = if head == gfn { Raw(own.0) } else { self.raw_page(head)? };
        let flag = |bit: Option<u64>| bit.is_some_and(|b| b < 64 && raw.u64(layout.flags) >> b & 1 != 0);
        // In a slab the word is something else. Newer kernels keep the type above the page's count.
        let page_type = raw.u32(layout.mapcount) >> 24;
        let is_slab = flag(layout.slab_flag) || layout.slab_type == Some(u64::from(page_type));
        let mapping = raw.u64(layout.mapping);
        let kind = match mapping & 3 {
            _ if is_slab => PageKind::Other,
            _ if flag(layout.reserved) => PageKind::Reserved,
            1 => PageKind::Anonymous,
            3 => PageKind::Merged,
            0 if mapping != 0 && flag(layout.swap_backed) => PageKind::SharedMemory,
            0 if mapping != 0 => PageKind::File,
            _ => PageKind::Other,
        };
        Ok(Page { gfn, head, kind, refcount: raw.u32(layout.refcount), mapcount: own.u32(layout.mapcount) })
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

    fn raw_page(&self, gfn: Gfn) -> Result<Raw, KernelError> {
        let mut raw = [0; RAW];
        self.read(self.page_of(gfn), &mut raw, WHAT)?;
        Ok(Raw(raw))
    }

    fn head_of(&self, gfn: Gfn, raw: &Raw) -> Result<Gfn, KernelError> {
        let layout = &self.profile.page;
        let Some(field) = layout.compound_head.or(layout.compound_info) else { return Ok(gfn) };
        let info = raw.u64(field);
        if info & 1 == 0 {
            return Ok(gfn);
        }
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
