//! `struct kmem_cache`: what the objects of a slab are like.

use super::WHAT;
use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;
use std::collections::BTreeMap;

layout! {
    pub(crate) struct CacheLayout {
        name: offset("kmem_cache", &["name"]),
        list: offset("kmem_cache", &["list"]),
        flags: number("kmem_cache", &["flags"]),
        size: number("kmem_cache", &["size"]),
        object_size: number("kmem_cache", &["object_size"]),
        link: number_opt("kmem_cache", &["offset"]),
        pad: number_opt("kmem_cache", &["red_left_pad"]),
        constructor: offset("kmem_cache", &["ctor"]),
        random: optional("kmem_cache", &["random"]),
        shape: number_opt("kmem_cache", &["oo.x"]),
        least_shape: number_opt("kmem_cache", &["min.x"]),
        per_cpu: optional("kmem_cache", &["cpu_slab"]),
        cpu_freelist: optional("kmem_cache_cpu", &["freelist"]),
        cpu_slab: optional("kmem_cache_cpu", &["slab", "page"]),
        by_rcu: enumerator("_SLAB_TYPESAFE_BY_RCU"),
        checked: enumerator("_SLAB_CONSISTENCY_CHECKS"),
        red_zone: enumerator("_SLAB_RED_ZONE"),
        poison: enumerator("_SLAB_POISON"),
        store_user: enumerator("_SLAB_STORE_USER"),
    }
}

// Flags of kernels that have no enum for them (include/linux/slab.h).
const NAME_LIMIT: usize = 64;
const BY_RCU: u64 = 0x80000;
const CHECKED: u64 = 0x100;
const RED_ZONE: u64 = 0x400;
const POISON: u64 = 0x800;
const STORE_USER: u64 = 0x10000;

/// `oo_order`: the order stands above the count.
const ORDER_SHIFT: u32 = 16;
/// `MAX_ORDER` is 10, and no slab is nearly as large.
const LARGEST_ORDER: u64 = 10;
/// `KMALLOC_MAX_CACHE_SIZE` is 8 KiB; other caches have larger objects.
const LARGEST_OBJECT: u64 = 1 << 22;
const CACHE_LIMIT: usize = 1 << 16;

/// What the objects of a cache are like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cache {
    /// From one object to the next; never 0.
    pub(super) size: u64,
    /// What a user of an object may write.
    pub(super) object_size: u64,
    /// Where a free object keeps the pointer to the next.
    pub(super) link: u64,
    /// Before each object, for debugging. Less than `size`.
    pub(super) pad: u64,
    /// Pointers are mixed with it.
    pub(super) random: Option<u64>,
    /// Of the largest slab.
    pub(super) order: u32,
    /// Why the content of free objects must stay.
    pub(super) kept: Option<&'static str>,
    /// Where in it stands what only its user reads, if the rest is kept for readers: start and end.
    pub(super) private: Option<(u64, u64)>,
}

/// The caches met so far, and the slabs that CPUs allocate from with what is left of them.
pub(super) struct Caches {
    known: BTreeMap<Gva, Cache>,
    pub(super) listed: Vec<Gva>,
    pub(super) of_cpus: BTreeMap<Gva, Gva>,
}

impl Caches {
    pub(super) fn get(&mut self, kernel: &Kernel<'_>, at: Gva) -> Result<Cache, KernelError> {
        if let Some(cache) = self.known.get(&at) {
            return Ok(*cache);
        }
        let cache = kernel.slab_cache(at)?;
        self.known.insert(at, cache);
        Ok(cache)
    }
}

impl Kernel<'_> {
    /// The name of a cache (`struct kmem_cache`).
    pub(crate) fn cache_name(&self, cache: Gva) -> Result<String, KernelError> {
        let name = self.pointer(cache.wrapping_add(self.profile.slab_cache.name), WHAT)?;
        self.string(name, NAME_LIMIT, WHAT)
    }

    pub(super) fn slab_caches(&self) -> Result<Caches, KernelError> {
        let layout = &self.profile.slab_cache;
        let mut listed = Vec::new();
        self.for_each_in_list(self.require("slab_caches")?, "list of slab caches", &mut |link| {
            let at = Gva(link.0.wrapping_sub(layout.list));
            if listed.len() >= CACHE_LIMIT {
                return Err(KernelError::Torn { what: WHAT, at, why: "there are too many slab caches" });
            }
            listed.push(at);
            Ok(())
        })?;
        let mut of_cpus = BTreeMap::new();
        if let (Some(per_cpu), Some(freelist), Some(slab)) =
            (layout.per_cpu, layout.cpu_freelist, layout.cpu_slab)
        {
            for cache in &listed {
                let base = self.pointer(cache.wrapping_add(per_cpu), WHAT)?;
                for cpu in &self.per_cpu {
                    let of_cpu = base.wrapping_add(*cpu);
                    let page = self.pointer(of_cpu.wrapping_add(slab), WHAT)?;
                    let first = self.pointer(of_cpu.wrapping_add(freelist), WHAT)?;
                    if page.0 != 0 && first.0 != 0 {
                        of_cpus.insert(page, first);
                    }
                }
            }
        }
        Ok(Caches { known: BTreeMap::new(), listed, of_cpus })
    }

    pub(super) fn slab_cache(&self, at: Gva) -> Result<Cache, KernelError> {
        let layout = &self.profile.slab_cache;
        let torn = |why| KernelError::Torn { what: "slab cache", at, why };
        let (Some(link), Some(shape)) = (layout.link, layout.shape) else {
            return Err(KernelError::Incomplete("slabs of the kind that SLUB makes"));
        };
        let number = |member| self.number(at, member, WHAT);
        let (size, object_size, link) = (number(layout.size)?, number(layout.object_size)?, number(link)?);
        let pad = layout.pad.map_or(Ok(0), number)?;
        let least = layout.least_shape.map_or(Ok(0), number)?;
        let order = (number(shape)? >> ORDER_SHIFT).max(least >> ORDER_SHIFT);
        if size == 0 || size > LARGEST_OBJECT || object_size.saturating_add(pad) > size || pad >= size {
            return Err(torn("its objects have no possible size"));
        }
        if link.saturating_add(pad).saturating_add(super::LINK) > size || order > LARGEST_ORDER {
            return Err(torn("its slabs have no possible shape"));
        }
        let random = layout.random.map(|random| self.u64(at.wrapping_add(random), WHAT)).transpose()?;
        let constructor = self.pointer(at.wrapping_add(layout.constructor), WHAT)?;
        let flags = number(layout.flags)?;
        let has = |bit: Option<u64>, known: u64| {
            let mask = bit
                .map_or(known, |bit| u32::try_from(bit).map_or(0, |bit| 1_u64.checked_shl(bit).unwrap_or(0)));
            flags & mask != 0
        };
        let mut private = None;
        let kept = if has(layout.poison, POISON)
            || has(layout.red_zone, RED_ZONE)
            || has(layout.checked, CHECKED)
            || has(layout.store_user, STORE_USER)
        {
            Some("the kernel checks free objects")
        } else if constructor.0 != 0 {
            Some("a constructor has prepared it")
        } else if has(layout.by_rcu, BY_RCU) {
            private = self.io_request_data_in(at)?.filter(|(_, end)| *end <= object_size);
            Some("readers may still look at it")
        } else {
            None
        };
        let order = u32::try_from(order).unwrap_or(0);
        Ok(Cache { size, object_size, link, pad, random, order, kept, private })
    }
}
