//! How processes mark memory as not to be kept.
//!
//! ```text
//! vm_area_struct: anon_name -> anon_vma_name: name          prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME)
//!                 flags: VM_DONTDUMP                        madvise(MADV_DONTDUMP)
//! file: f_path.dentry: its own parent, "memfd:NAME"         memfd_create(NAME)
//! ```
//! The kernel itself sets `VM_DONTDUMP` on memory of devices and on its own pages in processes; the former is
//! told by other flags, the latter by the kind of its pages. Kernels have names of areas if they were built so
//! (`CONFIG_ANON_VMA_NAME`, from 5.17 on). In some the name stands where areas of files keep something else.

use crate::vmas::{VM_DONTDUMP, VM_IO, VM_PFNMAP, Vma};
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva};

/// What a name of marked memory begins with.
const PREFIX: &str = "elision:";
const MEMFD: &str = "memfd:";
/// `ANON_VMA_NAME_MAX_LEN`.
const NAME_LIMIT: usize = 80;

impl Vma {
    /// Whether core dumps leave the area out by the process's own wish.
    #[must_use]
    pub fn is_left_out_of_dumps(&self) -> bool {
        self.flags & (VM_DONTDUMP | VM_IO | VM_PFNMAP) == VM_DONTDUMP
    }
}

impl Kernel<'_> {
    /// Where the name of an area stands.
    pub(crate) fn vma_name(&self, at: Gva, file: Gva) -> Result<Option<Gva>, KernelError> {
        let layout = &self.profile.mm;
        let Some(name) = layout.name.filter(|name| file.0 == 0 || *name != layout.shared) else {
            return Ok(None);
        };
        let name = self.pointer(at.wrapping_add(name), "VMA")?;
        Ok((name.0 != 0).then_some(name))
    }

    /// Whether a process has marked an area by its name.
    pub fn is_marked_by_name(&self, vma: &Vma) -> Result<bool, KernelError> {
        let (Some(name), Some(text)) = (vma.name, self.profile.mm.name_text) else { return Ok(false) };
        let text = self.string(name.wrapping_add(text), NAME_LIMIT, "name of a VMA")?;
        Ok(text.starts_with(PREFIX))
    }

    /// Whether an open file is a memfd whose name marks it.
    pub fn is_marked_memfd(&self, file: Gva) -> Result<bool, KernelError> {
        let name = self.detached_name(file)?;
        Ok(name.is_some_and(|name| name.strip_prefix(MEMFD).is_some_and(|name| name.starts_with(PREFIX))))
    }

    /// The place of a page in its file, in pages. Not of huge pages of hugetlbfs, which older kernels count.
    pub fn page_index(&self, gfn: Gfn) -> Result<u64, KernelError> {
        let head = self.page(gfn)?.head;
        let first = self.profile.page.index(&self.raw_page(head)?);
        Ok(first.wrapping_add(gfn.0.wrapping_sub(head.0)))
    }
}
