//! Free objects in slabs (`mm/slub.c`): memory of a kind that its last user gave back, content and all.
//!
//! ```text
//! struct page, head of a slab: slab_cache, freelist, counters: inuse | objects << 16
//! slab:   object | free: ... link at `offset` ... | object | free | ...     each `size` bytes
//! a CPU's own slab (up to 6.x): the rest of its objects hang on kmem_cache_cpu.freelist
//! sheaves (7.x): arrays of free objects that their slab counts as used: on a CPU, or in a node's barn
//! ```
//! Every slab is found by its page descriptor, so those on a CPU's list of partial slabs are found too.
//! The kernel's own guarded objects (KFENCE) are outside of slabs, and so are objects on their way to be
//! freed after a grace period.

mod cache;
mod dead_tasks;
mod freelist;
mod in_use;
mod object;
mod sheaves;

pub(crate) use cache::CacheLayout;
pub(crate) use freelist::SlabLayout;
pub(crate) use sheaves::SheafLayout;

use crate::{Kernel, KernelError};
use cache::Cache;
use elision_memory::{Gpa, Gva, PAGE_SIZE};
use std::ops::Range;

const WHAT: &str = "slab";
/// Objects of the smallest size in a frame.
const OBJECTS_IN_FRAME: u64 = 512;
/// More free objects than a guest can have without being out of its mind.
const FREE_LIMIT: u64 = 1 << 24;
/// The pointer from one free object to the next.
const LINK: u64 = 8;

/// A free object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FreeObject {
    /// Where the kernel sees it.
    pub at: Gva,
    /// Where it stands; a slab is contiguous.
    pub gpa: Gpa,
    /// Bytes that a user of the object could write.
    pub size: u64,
    /// Where in it the kernel keeps the pointer to the next one, if it is on a list.
    pub link: Option<u64>,
    /// Why the kernel relies on what stands in it, if it does.
    pub kept: Option<&'static str>,
    /// Where in it stands what only its user read, if the rest is kept: start and end.
    pub private: Option<(u64, u64)>,
}

impl FreeObject {
    /// The bytes that mean nothing to the kernel: what stands before the link and behind it.
    #[must_use]
    pub fn content(&self) -> [Range<Gpa>; 2] {
        let (start, end) =
            if self.kept.is_some() { self.private.unwrap_or_default() } else { (0, self.size) };
        let at = |offset: u64| self.gpa.wrapping_add(offset.clamp(start, end));
        let (link, behind) = self.link.map_or((end, end), |link| (link, link.saturating_add(LINK)));
        [at(start)..at(link), at(behind)..at(end)]
    }
}

/// A slab: where its objects stand.
#[derive(Clone, Copy, Debug)]
struct Slab {
    page: Gva,
    start: Gpa,
    end: Gpa,
    cache: Gva,
}

/// What may still be looked at and handed out.
struct Limits {
    steps: u64,
    free: u64,
}

impl Limits {
    fn step(&mut self, at: Gva) -> Result<(), KernelError> {
        self.steps = self.steps.checked_sub(1).ok_or(KernelError::Torn {
            what: WHAT,
            at,
            why: "there are more free objects than the guest has room for",
        })?;
        Ok(())
    }

    fn found(&mut self, at: Gva) -> Result<(), KernelError> {
        self.free = self.free.checked_sub(1).ok_or(KernelError::Torn {
            what: WHAT,
            at,
            why: "there are more free objects than can be cleared",
        })?;
        Ok(())
    }
}

impl Kernel<'_> {
    /// Every free object of every slab; those of one slab in ascending order.
    pub fn free_objects(&self, visit: &mut dyn FnMut(FreeObject)) -> Result<(), KernelError> {
        let frames = self.ram.layout().frame_limit().0;
        let mut limits = Limits { steps: frames.saturating_mul(OBJECTS_IN_FRAME), free: FREE_LIMIT };
        let mut caches = self.slab_caches()?;
        let with_sheaves = self.profile.sheaf.is_used();
        let (mut slabs, mut chain) = (Vec::new(), Vec::new());
        self.for_each_slab(&mut |page, raw| {
            chain.clear();
            let Some(slab) = self.slab(page, raw, &mut caches, &mut limits, &mut chain)? else {
                return Ok(());
            };
            let cache = caches.get(self, slab.cache)?;
            chain.sort_unstable();
            for &(gpa, at) in &chain {
                limits.found(at)?;
                visit(cache.free_object(at, gpa, true));
            }
            if with_sheaves {
                slabs.push(slab);
            }
            Ok(())
        })?;
        if with_sheaves {
            self.sheaf_objects(&slabs, &mut caches, &mut limits, visit)?;
        }
        Ok(())
    }
}

impl Cache {
    /// An object of this cache; `listed` if it holds a pointer to the next.
    fn free_object(&self, at: Gva, gpa: Gpa, listed: bool) -> FreeObject {
        let link = Some(self.link).filter(|_| listed);
        FreeObject { at, gpa, size: self.object_size, link, kept: self.kept, private: self.private }
    }

    /// Whether an object of this cache begins at `gpa` in a slab that begins at `start`.
    fn fits(&self, start: Gpa, end: Gpa, gpa: Gpa) -> bool {
        let offset = gpa.0.checked_sub(start.0).and_then(|offset| offset.checked_sub(self.pad));
        offset.is_some_and(|offset| offset % self.size == 0)
            && gpa.0.checked_add(self.size - self.pad).is_some_and(|behind| behind <= end.0)
    }

    /// No slab of this cache is larger.
    fn largest_slab(&self) -> u64 {
        (PAGE_SIZE as u64) << self.order
    }
}
