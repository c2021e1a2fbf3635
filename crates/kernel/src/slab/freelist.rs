//! Slabs by their page descriptors, and the chains of free objects in them.

use super::cache::{Cache, Caches};
use super::{Limits, Slab, WHAT};
use crate::layout::layout;
use crate::{Kernel, KernelError, le};
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
type VisitSlab<'v> = dyn FnMut(Gfn, &[u8]) -> Result<(), KernelError> + 'v;

/// Descriptors are read in pieces of this size.
const CHUNK: usize = 1 << 20;
/// `inuse` in the counters; `objects` stands above it, with 15 bits.
const IN_USE: u64 = 0xffff;
const OBJECTS: u64 = 0x7fff;

/// A pointer from a free object at `holder` to the next (`freelist_ptr_decode`).
fn decoded(cache: &Cache, holder: Gva, value: u64) -> Gva {
    Gva(cache.random.map_or(value, |random| value ^ random ^ holder.0.swap_bytes()))
}

impl Kernel<'_> {
    /// Calls `visit` with the head page of each slab and its descriptor.
    pub(super) fn for_each_slab(&self, visit: &mut VisitSlab<'_>) -> Result<(), KernelError> {
        let page = &self.profile.page;
        let size = usize::try_from(page.size).ok().filter(|size| (64..=CHUNK).contains(size));
        let size = size.ok_or(KernelError::Incomplete("page descriptors"))?;
        if page.slab_flag.is_none() && page.slab_type.is_none() {
            return Err(KernelError::Incomplete("mark of slab pages"));
        }
        let head = page.compound_head.or(page.compound_info);
        let in_chunk = (CHUNK / size) as u64;
        let mut chunk = vec![0; CHUNK];
        for region in self.ram.layout().regions() {
            let (mut at, end) = (region.gpa.gfn().0, region.gpa.wrapping_add(region.len).gfn().0);
            while at < end {
                let next = (at / in_chunk + 1).saturating_mul(in_chunk).min(end);
                let bytes = usize::try_from(next - at).unwrap_or(0).saturating_mul(size);
                let Some(part) = chunk.get_mut(..bytes) else { break };
                // Memory without descriptors is no memory to the kernel.
                if self.read(self.page_of(Gfn(at)), part, WHAT).is_ok() {
                    for (gfn, raw) in (at..next).zip(part.chunks_exact(size)) {
                        let flags = word(raw, page.flags);
                        let is_marked = page.slab_flag.is_some_and(|bit| bit < 64 && flags >> bit & 1 != 0)
                            || page.slab_type.is_some_and(|ty| page_type(raw, page.mapcount) == Some(ty));
                        let is_tail = head.is_some_and(|head| word(raw, head) & 1 != 0);
                        if is_marked && !is_tail {
                            visit(Gfn(gfn), raw)?;
                        }
                    }
                }
                at = next;
            }
        }
        Ok(())
    }

    /// One slab, with its free objects put into `chain`. `None` for what only looks like one.
    pub(super) fn slab(
        &self,
        gfn: Gfn,
        raw: &[u8],
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
        let counters = word(raw, counters.unwrap_or(freelist.saturating_add(8)));
        let (at, first, page) = (Gva(word(raw, cache)), Gva(word(raw, freelist)), self.page_of(gfn));
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

fn word(raw: &[u8], offset: u64) -> u64 {
    usize::try_from(offset).ok().and_then(|at| le::u64_at(raw, at)).unwrap_or(0)
}

/// Newer kernels keep the type above the page's count.
fn page_type(raw: &[u8], offset: u64) -> Option<u64> {
    usize::try_from(offset).ok().and_then(|at| le::u32_at(raw, at)).map(|word| u64::from(word >> 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_mixed_with_their_place() {
        let mut cache =
            Cache { size: 64, object_size: 64, link: 32, pad: 0, random: None, order: 0, kept: None };
        let (holder, next) = (Gva(0xffff_8880_0123_4020), Gva(0xffff_8880_0123_4040));
        assert_eq!(decoded(&cache, holder, next.0), next);
        cache.random = Some(0x1122_3344_5566_7788);
        let stored = next.0 ^ 0x1122_3344_5566_7788 ^ 0x2040_2301_8088_ffff;
        assert_eq!(decoded(&cache, holder, stored), next);
    }

    #[test]
    fn objects_stand_at_their_places_only() {
        let cache = Cache { size: 64, object_size: 40, link: 24, pad: 8, random: None, order: 0, kept: None };
        let fits = |gpa| cache.fits(Gpa(0x1000), Gpa(0x1000 + 3 * 64), Gpa(gpa));
        assert!(fits(0x1008) && fits(0x1048) && fits(0x1088));
        assert!(!fits(0x1000) && !fits(0x1010) && !fits(0x10c8) && !fits(0xfc8));
    }
}
