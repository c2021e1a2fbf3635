//! The kinds of use that a frame can be in.

use crate::page::{PageKind, PageLayout, PageType, Raw};

/// What a frame is used for: one byte, so that a table of all frames stays small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// No RAM, or RAM that the kernel keeps no descriptor for.
    Absent,
    /// Nothing tells what it is used for.
    Unknown,
    /// On a buddy list.
    Free,
    /// On a per-CPU page list.
    FreePerCpu,
    /// In a pool of free huge pages.
    FreeHuge,
    /// Memory that no file stands behind, of a process or in the swap cache.
    Anonymous,
    /// The same, where no process maps it any more and nothing else accounts for it.
    Orphan,
    /// Anonymous memory merged across processes.
    Merged,
    /// Shared memory or tmpfs.
    SharedMemory,
    /// Page cache of a file.
    File,
    /// A huge page of hugetlbfs in use.
    HugeTlb,
    /// Objects of a slab cache.
    Slab,
    /// A large allocation of the kernel by size.
    LargeKmalloc,
    /// A page table, of a process or of the kernel.
    PageTable,
    /// The stack of a thread in the kernel.
    KernelStack,
    /// The kernel's own image: code, data, per-CPU templates.
    KernelImage,
    /// The descriptors of frames.
    StructPages,
    /// Other kernel memory that is mapped page by page: vmalloc, modules, per-CPU areas.
    Vmalloc,
    /// Reserved at boot: firmware tables, early allocations.
    Reserved,
    /// A pipe's page.
    Pipe,
    /// Compressed swap (zsmalloc).
    Compressed,
    /// Given to a driver: offline, taken by a balloon, not yet accepted, or movable by its driver.
    Driver,
    /// Several pages that the kernel allocated as one for itself: network fragments, buffers.
    KernelCompound,
    /// Kernel memory charged to a cgroup, of no kind named here.
    KernelCharged,
    /// Pages without any mark that an object of the kernel points to: its own tables and buffers.
    KernelBlock,
}

impl FrameKind {
    /// Every kind, in order.
    pub const ALL: [Self; 25] = [
        Self::Absent,
        Self::Unknown,
        Self::Free,
        Self::FreePerCpu,
        Self::FreeHuge,
        Self::Anonymous,
        Self::Orphan,
        Self::Merged,
        Self::SharedMemory,
        Self::File,
        Self::HugeTlb,
        Self::Slab,
        Self::LargeKmalloc,
        Self::PageTable,
        Self::KernelStack,
        Self::KernelImage,
        Self::StructPages,
        Self::Vmalloc,
        Self::Reserved,
        Self::Pipe,
        Self::Compressed,
        Self::Driver,
        Self::KernelCompound,
        Self::KernelCharged,
        Self::KernelBlock,
    ];

    /// Whether nobody uses the frame.
    #[must_use]
    pub fn is_free(self) -> bool {
        matches!(self, Self::Free | Self::FreePerCpu | Self::FreeHuge)
    }

    /// Whether the descriptor tells no more than that the kernel has it, so that a walk may tell more.
    #[must_use]
    pub fn is_vague(self) -> bool {
        matches!(self, Self::Unknown | Self::KernelCompound | Self::KernelCharged)
    }

    /// For tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "no descriptor",
            Self::Unknown => "unknown",
            Self::Free => "free",
            Self::FreePerCpu => "free, on lists of a CPU",
            Self::FreeHuge => "free huge pages",
            Self::Anonymous => "anonymous",
            Self::Orphan => "anonymous, mapped by no process",
            Self::Merged => "merged anonymous",
            Self::SharedMemory => "shared memory, tmpfs",
            Self::File => "page cache of files",
            Self::HugeTlb => "huge pages of hugetlbfs",
            Self::Slab => "slab",
            Self::LargeKmalloc => "large kmalloc",
            Self::PageTable => "page table",
            Self::KernelStack => "kernel stack",
            Self::KernelImage => "kernel image",
            Self::StructPages => "frame descriptors",
            Self::Vmalloc => "vmalloc, modules, per-CPU",
            Self::Reserved => "reserved at boot",
            Self::Pipe => "pipe",
            Self::Compressed => "compressed swap",
            Self::Driver => "in a driver's hands",
            Self::KernelCompound => "compound page of the kernel",
            Self::KernelCharged => "kernel memory charged to a cgroup",
            Self::KernelBlock => "block that the kernel points to",
        }
    }

    /// What the descriptor alone tells.
    pub(super) fn of(layout: &PageLayout, raw: &Raw) -> Self {
        match layout.page_type(raw) {
            Some(PageType::Buddy) => return Self::Free,
            Some(PageType::Table) => return Self::PageTable,
            Some(PageType::HugeTlb) => return Self::HugeTlb,
            Some(PageType::Slab) => return Self::Slab,
            Some(PageType::Zsmalloc) => return Self::Compressed,
            Some(PageType::LargeKmalloc) => return Self::LargeKmalloc,
            Some(PageType::Offline | PageType::Guard | PageType::Unaccepted) => return Self::Driver,
            None => {}
        }
        match layout.kind(raw) {
            PageKind::Anonymous => Self::Anonymous,
            PageKind::Merged => Self::Merged,
            PageKind::SharedMemory => Self::SharedMemory,
            PageKind::File => Self::File,
            PageKind::Reserved => Self::Reserved,
            PageKind::Other if layout.is_movable(raw) => Self::Driver,
            PageKind::Other if layout.is_compound(raw) => Self::KernelCompound,
            PageKind::Other if layout.is_charged_to_kernel(raw) => Self::KernelCharged,
            PageKind::Other => Self::Unknown,
        }
    }
}
