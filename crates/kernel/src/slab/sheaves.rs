//! Sheaves: arrays of free objects that newer kernels keep for each CPU, and full ones in a node's barn.
//!
//! A sheaf of objects that wait for a grace period (`rcu_free`) is left alone: readers may look at them.

use super::cache::Caches;
use super::{FreeObject, Limits, Slab};
use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct SheafLayout {
        per_cpu: optional("kmem_cache", &["cpu_sheaves"]),
        main: optional("slub_percpu_sheaves", &["main"]),
        spare: optional("slub_percpu_sheaves", &["spare"]),
        busy: number_opt("slub_percpu_sheaves", &["lock.acquired"]),
        size: number_opt("slab_sheaf", &["size"]),
        objects: optional("slab_sheaf", &["objects"]),
        link: optional("slab_sheaf", &["barn_list"]),
        nodes: optional("kmem_cache", &["per_node"]),
        node_size: size_opt("kmem_cache_per_node_ptrs"),
        node_barn: optional("kmem_cache_per_node_ptrs", &["barn"]),
        old_nodes: optional("kmem_cache", &["node"]),
        old_barn: optional("kmem_cache_node", &["barn"]),
        full: optional("node_barn", &["sheaves_full"]),
    }
}

impl SheafLayout {
    /// Whether this kernel has sheaves.
    pub(super) fn is_used(&self) -> bool {
        self.per_cpu.is_some()
    }
}

const WHAT: &str = "sheaf of free objects";
/// Larger than any sheaf that a kernel makes.
const SHEAF_LIMIT: u64 = 1 << 16;
const NODE_LIMIT: u64 = 1024;

/// What looking at sheaves needs.
struct Visitor<'v> {
    slabs: &'v [Slab],
    caches: &'v mut Caches,
    limits: &'v mut Limits,
    visit: &'v mut dyn FnMut(FreeObject),
}

impl Kernel<'_> {
    /// Free objects in sheaves. `slabs` are all slabs, in ascending order.
    pub(super) fn sheaf_objects(
        &self,
        slabs: &[Slab],
        caches: &mut Caches,
        limits: &mut Limits,
        visit: &mut dyn FnMut(FreeObject),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.sheaf;
        let (Some(per_cpu), Some(main), Some(spare)) = (layout.per_cpu, layout.main, layout.spare) else {
            return Err(KernelError::Incomplete("sheaves of free objects"));
        };
        let listed = std::mem::take(&mut caches.listed);
        let mut visitor = Visitor { slabs, caches, limits, visit };
        for cache in listed {
            let base = self.pointer(cache.wrapping_add(per_cpu), WHAT)?;
            for cpu in self.per_cpu.iter().filter(|_| base.0 != 0) {
                let of_cpu = base.wrapping_add(*cpu);
                // Between the count and the array an object is on neither side.
                if layout.busy.map_or(Ok(0), |busy| self.number(of_cpu, busy, WHAT))? != 0 {
                    return Err(KernelError::Torn { what: WHAT, at: of_cpu, why: "it is being changed" });
                }
                for member in [main, spare] {
                    let sheaf = self.pointer(of_cpu.wrapping_add(member), WHAT)?;
                    self.sheaf(cache, sheaf, &mut visitor)?;
                }
            }
            self.barns(cache, &mut visitor)?;
        }
        Ok(())
    }

    fn barns(&self, cache: Gva, visitor: &mut Visitor<'_>) -> Result<(), KernelError> {
        let layout = &self.profile.sheaf;
        let (Some(full), Some(link)) = (layout.full, layout.link) else { return Ok(()) };
        let nodes = self.symbol("nr_node_ids").map_or(Ok(1), |at| self.u32(at, WHAT))?;
        for node in 0..u64::from(nodes).min(NODE_LIMIT) {
            let barn =
                match (layout.nodes, layout.node_size, layout.node_barn, layout.old_nodes, layout.old_barn) {
                    (Some(nodes), Some(size), Some(barn), _, _) => {
                        self.pointer(cache.wrapping_add(nodes + node * size + barn), WHAT)?
                    }
                    (_, _, _, Some(nodes), Some(barn)) => {
                        match self.pointer(cache.wrapping_add(nodes + node * 8), WHAT)? {
                            Gva(0) => Gva(0),
                            at => self.pointer(at.wrapping_add(barn), WHAT)?,
                        }
                    }
                    _ => return Err(KernelError::Incomplete("barns of sheaves")),
                };
            if barn.0 != 0 {
                self.for_each_in_list(barn.wrapping_add(full), WHAT, &mut |at| {
                    visitor.limits.step(at)?;
                    self.sheaf(cache, Gva(at.0.wrapping_sub(link)), visitor)
                })?;
            }
        }
        Ok(())
    }

    fn sheaf(&self, cache: Gva, sheaf: Gva, visitor: &mut Visitor<'_>) -> Result<(), KernelError> {
        let layout = &self.profile.sheaf;
        let (Some(size), Some(objects)) = (layout.size, layout.objects) else {
            return Err(KernelError::Incomplete("sheaves of free objects"));
        };
        if sheaf.0 == 0 {
            return Ok(());
        }
        let torn = |why| KernelError::Torn { what: WHAT, at: sheaf, why };
        let count = self.number(sheaf, size, WHAT)?;
        if count > SHEAF_LIMIT {
            return Err(torn("it holds more than it can"));
        }
        let kind = visitor.caches.get(self, cache)?;
        for i in 0..count {
            visitor.limits.step(sheaf)?;
            let at = self.pointer(sheaf.wrapping_add(objects + 8 * i), WHAT)?;
            let gpa = self.direct(at).ok_or_else(|| torn("an object of it is nowhere"))?;
            let before = visitor.slabs.partition_point(|slab| slab.start <= gpa).checked_sub(1);
            let slab = before.and_then(|i| visitor.slabs.get(i)).filter(|slab| slab.cache == cache);
            if !slab.is_some_and(|slab| kind.fits(slab.start, slab.end, gpa)) {
                return Err(torn("an object of it is in no slab of its cache"));
            }
            visitor.limits.found(at)?;
            (visitor.visit)(kind.free_object(at, gpa, false));
        }
        Ok(())
    }
}
