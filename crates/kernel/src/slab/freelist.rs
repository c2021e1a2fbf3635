//! Slabs by their page descriptors, and the chains of free objects in them.

use super::cache::{Cache, Caches};
use super::{Limits, Slab, WHAT};
use crate::layout::layout;
use crate::page::{PageType, Raw};
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gpa, Gva};

layout! {
    pub(crate) struct SlabLayout {
        cache: optional("slab", &["slab_cache"]),
        freelist: optional("slab", &["freelist"]),
        counters: optional("slab", &["counters"]),
        page_cache: optional("page", &["slab_cache"]),
        page_freelist: optional("page", &["freelist"]),
        page_counters: optional("page", &["counters"]),
    }
}

/// Gets the head page of a slab and its descriptor.
type VisitSlab<'v> = dyn FnMut(Gfn, &Raw) -> Result<(), KernelError> + 'v;

/// `inuse` in the counters; `objects` stands above it, with 15 bits.
const IN_USE: u64 = 0xffff;
const OBJECTS: u64 = 0x7fff;

/// A pointer from a free object at `holder` to the next (`freelist_ptr_decode`).
fn decoded(cache: &Cache, holder: Gva, value: u64) -> Gva {
    Gva(cache.random.map_or(value, |random| value ^ random ^ holder.0.swap_bytes()))
}

impl Kernel<'_> {
    /// Calls `visit` with the head page of each slab and its descriptor. The first error ends the walk.
    pub(super) fn for_each_slab(&self, visit: &mut VisitSlab<'_>) -> Result<(), KernelError> {
        let layout = &self.profile.page;
        if layout.slab_flag.is_none() && layout.slab_type.is_none() {
            return Err(KernelError::Incomplete("mark of slab pages"));
        }
        if let Some(slabs) = self.slabs {
            return slabs.heads.iter().try_for_each(|(gfn, raw)| visit(*gfn, raw));
        }
        let mut result = Ok(());
        self.for_each_descriptor(|gfn, raw| {
            let is_head = || self.head_of(gfn, raw).is_ok_and(|head| head == gfn);
            if result.is_ok() && layout.page_type(raw) == Some(PageType::Slab) && is_head() {
                result = visit(gfn, raw);
            }
        });
        result
    }

    /// One slab, with its free objects put into `chain`. `None` for what only looks like one.
    pub(super) fn slab(
        &self,
        gfn: Gfn,
        raw: &Raw,
        caches: &mut Caches,
        limits: &mut Limits,
        chain: &mut Vec<(Gpa, Gva)>,
    ) -> Result<Option<Slab>, KernelError> {
        let layout = &self.profile.slab;
        let (cache, freelist, counters) = match (layout.cache, layout.freelist) {
            (Some(cache), Some(freelist)) => (cache, freelist, layout.counters),
            _ => match (layout.page_cache, layout.page_freelist) {
                (Some(cache), Some(freelist)) => (cache, freelist, layout.page_counters),
                _ => return Err(KernelError::Incomplete("slabs of the kind that SLUB makes")),
            },
        };
        let counters = raw.u64(counters.unwrap_or(freelist.saturating_add(8)));
        let (at, first, page) = (Gva(raw.u64(cache)), Gva(raw.u64(freelist)), self.page_of(gfn));
        let (in_use, objects) = (counters & IN_USE, counters >> 16 & OBJECTS);
        // Pages of KFENCE look like slabs of one object without a list.
        if at.0 == 0 || (first.0 == 0 && objects <= 1 && !caches.of_cpus.contains_key(&page)) {
            return Ok(None);
        }
        let torn = |why| KernelError::Torn { what: WHAT, at: page, why };
        let cache = caches.get(self, at)?;
        let bytes = objects.saturating_mul(cache.size);
        let start = gfn.gpa();
        let end = start.checked_add(bytes).filter(|_| bytes <= cache.largest_slab());
        let end = end.ok_or_else(|| torn("it holds more objects than it has room for"))?;
        let slab = Slab { page, start, end, cache: at };
        let free =
            objects.checked_sub(in_use).ok_or_else(|| torn("it has more objects in use than objects"))?;
        if first.0 != 0 {
            let found = self.chain(&cache, &slab, first, free, limits, chain)?;
            if found != free {
                return Err(torn("its list of free objects is too short"));
            }
        }
        if let Some(first) = caches.of_cpus.get(&page) {
            let rest = objects.saturating_sub(chain.len() as u64);
            self.chain(&cache, &slab, *first, rest, limits, chain)?;
        }
        Ok(Some(slab))
    }

    fn chain(
        &self,
        cache: &Cache,
        slab: &Slab,
        first: Gva,
        most: u64,
        limits: &mut Limits,
        chain: &mut Vec<(Gpa, Gva)>,
    ) -> Result<u64, KernelError> {
        let torn = |why| KernelError::Torn { what: WHAT, at: slab.page, why };
        let (mut at, mut found) = (first, 0);
        while at.0 != 0 {
            limits.step(at)?;
            let gpa = self.direct(at).filter(|gpa| cache.fits(slab.start, slab.end, *gpa));
            let gpa = gpa.ok_or_else(|| torn("its list of free objects leads elsewhere"))?;
            if found == most {
                return Err(torn("its list of free objects is too long"));
            }
            found += 1;
            chain.push((gpa, at));
            let holder = at.wrapping_add(cache.link);
            at = decoded(cache, holder, self.u64(holder, WHAT)?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_mixed_with_their_place() {
        let mut cache = Cache {
            size: 64,
            object_size: 64,
            link: 32,
            pad: 0,
            random: None,
            order: 0,
            kept: None,
            private: None,
        };
        let (holder, next) = (Gva(0xffff_8880_0123_4020), Gva(0xffff_8880_0123_4040));
        assert_eq!(decoded(&cache, holder, next.0), next);
        cache.random = Some(0x1122_3344_5566_7788);
        let stored = next.0 ^ 0x1122_3344_5566_7788 ^ 0x2040_2301_8088_ffff;
        assert_eq!(decoded(&cache, holder, stored), next);
    }

    #[test]
    fn objects_stand_at_their_places_only() {
        let cache = Cache {
            size: 64,
            object_size: 40,
            link: 24,
            pad: 8,
            random: None,
            order: 0,
            kept: None,
            private: None,
        };
        let fits = |gpa| cache.fits(Gpa(0x1000), Gpa(0x1000 + 3 * 64), Gpa(gpa));
        assert!(fits(0x1008) && fits(0x1048) && fits(0x1088));
        assert!(!fits(0x1000) && !fits(0x1010) && !fits(0x10c8) && !fits(0xfc8));
    }
}
