//! Whose a frame is: a process, a slab cache, a cgroup.

use super::scan::index;
use super::{FrameKind, FrameScan};
use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva};

layout! {
    pub(crate) struct FrameOwnerLayout {
        slab_cache: optional("slab", &["slab_cache"]),
        page_cache: optional("page", &["slab_cache"]),
        charge: optional("page", &["memcg_data"]),
        group: optional("obj_cgroup", &["memcg"]),
        always_indirect: optional("obj_cgroup", &["is_root"]),
        cgroup: optional("mem_cgroup", &["css.cgroup"]),
    }
}

/// Low bits of the word that tells the cgroup: a list of owners of objects, kernel memory.
const CHARGE_LIST: u64 = 1;
const CHARGE_KERNEL: u64 = 2;
const CHARGE_FLAGS: u64 = 7;

/// Whose a frame is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameOwner {
    /// A process that maps it, or whose table or stack it is: the first that was found.
    Process(u32),
    /// A slab cache, by name.
    Cache(String),
    /// The cgroup that pays for it, by path.
    Cgroup(String),
    /// Memory of the kernel of some kind, which points to it.
    Kernel(FrameKind),
}

impl std::fmt::Display for FrameOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Cache(name) => f.write_str(name),
            Self::Cgroup(path) => write!(f, "cgroup {path}"),
            Self::Kernel(kind) => f.write_str(kind.name()),
        }
    }
}

impl FrameScan {
    /// A process that maps the frame, or whose table, stack or pipe it is.
    #[must_use]
    pub fn owner(&self, gfn: Gfn) -> Option<u32> {
        index(gfn).and_then(|i| self.owners.get(i)).copied().filter(|pid| *pid != 0)
    }
}

impl Kernel<'_> {
    /// Whose a frame is, as far as that is told.
    pub fn frame_owner(&self, scan: &FrameScan, gfn: Gfn) -> Result<Option<FrameOwner>, KernelError> {
        if let Some(pid) = scan.owner(gfn) {
            return Ok(Some(FrameOwner::Process(pid)));
        }
        match scan.kind(gfn) {
            FrameKind::Slab => self.slab_cache_name(gfn).map(|name| name.map(FrameOwner::Cache)),
            kind if kind.is_free() => Ok(None),
            FrameKind::Absent | FrameKind::Reserved | FrameKind::KernelImage | FrameKind::StructPages => {
                Ok(None)
            }
            _ => match self.charged_cgroup(gfn)? {
                Some(path) => Ok(Some(FrameOwner::Cgroup(path))),
                None => self.holder(scan, gfn),
            },
        }
    }

    fn holder(&self, scan: &FrameScan, gfn: Gfn) -> Result<Option<FrameOwner>, KernelError> {
        let Some(at) = scan.holders.get(&gfn).map(|at| at.gfn()) else { return Ok(None) };
        Ok(Some(match (scan.kind(at), self.slab_cache_name(at)) {
            (FrameKind::Slab, Ok(Some(name))) => FrameOwner::Cache(name),
            (kind, _) => FrameOwner::Kernel(kind),
        }))
    }

    fn slab_cache_name(&self, gfn: Gfn) -> Result<Option<String>, KernelError> {
        const WHAT: &str = "slab cache";
        let layout = &self.profile.frame_owner;
        let Some(cache) = layout.slab_cache.or(layout.page_cache) else { return Ok(None) };
        let slab = self.page_of(self.page(gfn)?.head);
        let cache = self.pointer(slab.wrapping_add(cache), WHAT)?;
        self.cache_name(cache).map(Some)
    }

    /// The cgroup that a page is charged to.
    fn charged_cgroup(&self, gfn: Gfn) -> Result<Option<String>, KernelError> {
        const WHAT: &str = "memory cgroup";
        let layout = &self.profile.frame_owner;
        let (Some(charge), Some(cgroup)) = (layout.charge, layout.cgroup) else { return Ok(None) };
        let page = self.page_of(self.page(gfn)?.head);
        let word = self.u64(page.wrapping_add(charge), WHAT)?;
        let mut group = Gva(word & !CHARGE_FLAGS);
        if word & CHARGE_LIST != 0 || group.0 == 0 {
            return Ok(None);
        }
        // Newer kernels charge all pages through an object that can change hands.
        if word & CHARGE_KERNEL != 0 || layout.always_indirect.is_some() {
            let Some(member) = layout.group else { return Ok(None) };
            group = self.pointer(group.wrapping_add(member), WHAT)?;
        }
        let cgroup = self.pointer(group.wrapping_add(cgroup), WHAT)?;
        if cgroup.0 == 0 { Ok(None) } else { self.path_of_cgroup(cgroup) }
    }
}
