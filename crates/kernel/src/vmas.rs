//! The address space of a process (`struct mm_struct`, `struct vm_area_struct`).

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::{Gva, PageTables};
use std::ops::Range;

layout! {
    pub(crate) struct MmLayout {
        pgd: offset("mm_struct", &["pgd"]),
        exe_file: offset("mm_struct", &["exe_file"]),
        mmap_lock: offset("mm_struct", &["mmap_lock.count", "mmap_sem.count"]),
        list: optional("mm_struct", &["mmap"]),
        tree_root: optional("mm_struct", &["mm_mt.ma_root"]),
        next: optional("vm_area_struct", &["vm_next"]),
        start: offset("vm_area_struct", &["vm_start"]),
        end: offset("vm_area_struct", &["vm_end"]),
        flags: offset("vm_area_struct", &["vm_flags", "flags"]),
        file: offset("vm_area_struct", &["vm_file"]),
        pgoff: offset("vm_area_struct", &["vm_pgoff"]),
        name: optional("vm_area_struct", &["anon_name"]),
        shared: offset("vm_area_struct", &["shared"]),
        name_text: optional("anon_vma_name", &["name"]),
    }
}

/// The flags of `include/linux/mm.h` that are part of what users see in `/proc/PID/maps`.
const VM_READ: u64 = 0x1;
const VM_WRITE: u64 = 0x2;
const VM_EXEC: u64 = 0x4;
const VM_SHARED: u64 = 0x8;
const VM_MAYWRITE: u64 = 0x20;
const VM_MAYSHARE: u64 = 0x80;
const VM_HUGETLB: u64 = 0x40_0000;
pub(crate) const VM_PFNMAP: u64 = 0x400;
pub(crate) const VM_IO: u64 = 0x4000;
pub(crate) const VM_DONTDUMP: u64 = 0x400_0000;
const RWSEM_WRITER_LOCKED: u64 = 1;

/// An address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mm {
    /// The `mm_struct`.
    pub addr: Gva,
    /// Its page tables.
    pub tables: PageTables,
    /// Whether somebody is changing it right now.
    pub write_locked: bool,
}

/// A virtual memory area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// The addresses covered.
    pub range: Range<Gva>,
    /// The kernel's `vm_flags`.
    pub flags: u64,
    /// The `struct file` mapped, if any.
    pub file: Option<Gva>,
    /// Offset in the file, in pages.
    pub pgoff: u64,
    /// The name that its process gave it (`struct anon_vma_name`), if any.
    pub(crate) name: Option<Gva>,
}

impl Vma {
    /// `rwxp` as in `/proc/PID/maps`.
    #[must_use]
    pub fn permissions(&self) -> String {
        let bit = |mask: u64, c: char| if self.flags & mask != 0 { c } else { '-' };
        let shared = if self.flags & VM_MAYSHARE != 0 { 's' } else { 'p' };
        [bit(VM_READ, 'r'), bit(VM_WRITE, 'w'), bit(VM_EXEC, 'x'), shared].into_iter().collect()
    }

    /// Whether stores through this area change what other mappings of the same object see.
    #[must_use]
    pub fn is_shared_writable(&self) -> bool {
        self.flags & (VM_SHARED | VM_MAYWRITE) == VM_SHARED | VM_MAYWRITE
    }

    /// Whether the area shares its object with others: stores do not go to pages of its own.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.flags & VM_SHARED != 0
    }

    /// Whether the area consists of hugetlbfs pages.
    #[must_use]
    pub fn is_hugetlb(&self) -> bool {
        self.flags & VM_HUGETLB != 0
    }
}

impl Kernel<'_> {
    /// The address space at an `mm_struct`.
    pub fn mm(&self, addr: Gva) -> Result<Mm, KernelError> {
        const WHAT: &str = "address space";
        let layout = &self.profile.mm;
        let pgd = self.pointer(addr.wrapping_add(layout.pgd), WHAT)?;
        let root = self.direct(pgd).ok_or(KernelError::Unreadable { at: pgd, what: "page table" })?;
        let lock = self.u64(addr.wrapping_add(layout.mmap_lock), WHAT)?;
        Ok(Mm {
            addr,
            tables: PageTables::new(root, self.la57()),
            write_locked: lock & RWSEM_WRITER_LOCKED != 0,
        })
    }

    /// The areas of an address space, by ascending address.
    pub fn vmas(&self, mm: Mm) -> Result<Vec<Vma>, KernelError> {
        const WHAT: &str = "VMA";
        let layout = &self.profile.mm;
        let mut vmas = Vec::new();
        if let Some(root) = layout.tree_root {
            let root = self.u64(mm.addr.wrapping_add(root), WHAT)?;
            self.for_each_in_maple_tree(root, &mut |entry| self.push_vma(&mut vmas, Gva(entry)))?;
            return Ok(vmas);
        }
        let (Some(list), Some(next)) = (layout.list, layout.next) else {
            return Err(KernelError::Incomplete("list of VMAs"));
        };
        let mut at = self.pointer(mm.addr.wrapping_add(list), WHAT)?;
        while at.0 != 0 {
            self.push_vma(&mut vmas, at)?;
            at = self.pointer(at.wrapping_add(next), WHAT)?;
        }
        Ok(vmas)
    }

    /// Areas ascend, so that a loop, or a tree that leads to one area twice, ends here.
    fn push_vma(&self, vmas: &mut Vec<Vma>, at: Gva) -> Result<(), KernelError> {
        let vma = self.vma(at)?;
        if vmas.last().is_some_and(|last| vma.range.start < last.range.end) {
            return Err(KernelError::Torn { what: "VMA", at, why: "it begins before its predecessor ends" });
        }
        vmas.push(vma);
        Ok(())
    }

    fn vma(&self, at: Gva) -> Result<Vma, KernelError> {
        const WHAT: &str = "VMA";
        let layout = &self.profile.mm;
        let range = self.pointer(at.wrapping_add(layout.start), WHAT)?
            ..self.pointer(at.wrapping_add(layout.end), WHAT)?;
        if range.is_empty() {
            return Err(KernelError::Torn { what: WHAT, at, why: "it ends before it starts" });
        }
        let file = self.pointer(at.wrapping_add(layout.file), WHAT)?;
        Ok(Vma {
            range,
            flags: self.u64(at.wrapping_add(layout.flags), WHAT)?,
            file: (file.0 != 0).then_some(file),
            pgoff: self.u64(at.wrapping_add(layout.pgoff), WHAT)?,
            name: self.vma_name(at, file)?,
        })
    }

    /// Path of the file that an area maps.
    pub fn vma_path(&self, vma: &Vma) -> Result<Option<String>, KernelError> {
        vma.file.map(|file| self.file_path(file)).transpose()
    }

    /// The program (`struct file`) that an address space was made for.
    pub(crate) fn exe_file(&self, mm: Gva) -> Result<Option<Gva>, KernelError> {
        let file = self.pointer(mm.wrapping_add(self.profile.mm.exe_file), "address space")?;
        Ok((file.0 != 0).then_some(file))
    }
}
