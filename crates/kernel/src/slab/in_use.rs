//! The objects of one cache that are in use.

use super::cache::Caches;
use super::{FREE_LIMIT, Limits, OBJECTS_IN_FRAME, WHAT};
use crate::{Kernel, KernelError};
use elision_memory::{Gpa, Gva};

impl Kernel<'_> {
    /// Calls `visit` with each object in use of the cache that the variable `cache` of the kernel points to, and
    /// with the size of such objects. Among them can be objects of a merged cache, and free ones in a sheaf.
    pub(crate) fn for_each_object(
        &self,
        cache: &'static str,
        visit: &mut dyn FnMut(Gva, u64) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let Some(symbol) = self.symbol(cache) else { return Ok(()) };
        let wanted = self.pointer(symbol, WHAT)?;
        self.for_each_object_of(wanted, self.slab_caches()?, visit)
    }

    /// The same for the first cache of that name.
    pub(crate) fn for_each_object_named(
        &self,
        name: &str,
        visit: &mut dyn FnMut(Gva, u64) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let caches = self.slab_caches()?;
        for cache in caches.listed.clone() {
            if self.cache_name(cache)? == name {
                return self.for_each_object_of(cache, caches, visit);
            }
        }
        Ok(())
    }

    fn for_each_object_of(
        &self,
        wanted: Gva,
        mut caches: Caches,
        visit: &mut dyn FnMut(Gva, u64) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let frames = self.ram.layout().frame_limit().0;
        let mut limits = Limits { steps: frames.saturating_mul(OBJECTS_IN_FRAME), free: FREE_LIMIT };
        let cache = caches.get(self, wanted)?;
        let mut chain = Vec::new();
        self.for_each_slab(&mut |gfn, raw| {
            chain.clear();
            let slab = self.slab(gfn, raw, &mut caches, &mut limits, &mut chain)?;
            let Some(slab) = slab.filter(|slab| slab.cache == wanted) else { return Ok(()) };
            chain.sort_unstable();
            let mut at = slab.start.0.saturating_add(cache.pad);
            while at.saturating_add(cache.size - cache.pad) <= slab.end.0 {
                let is_free = chain.binary_search_by_key(&Gpa(at), |(gpa, _)| *gpa).is_ok();
                if !is_free {
                    visit(self.direct_address(Gpa(at)), cache.object_size)?;
                }
                at = at.saturating_add(cache.size);
            }
            Ok(())
        })
    }
}
