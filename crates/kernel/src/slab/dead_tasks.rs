//! Tasks that have ended: in use until their parent has asked, and until a grace period has passed, on no list
//! any more. No thread returns to user mode from there, so the registers saved in them are nobody's.

use super::{FREE_LIMIT, Limits, OBJECTS_IN_FRAME, WHAT};
use crate::{Kernel, KernelError};
use elision_memory::{Gpa, Gva};
use std::ops::Range;

impl Kernel<'_> {
    /// Where ended tasks keep the vector registers that they had.
    pub fn dead_fpu_areas(&self, visit: &mut dyn FnMut(Range<Gva>)) -> Result<(), KernelError> {
        let Some(symbol) = self.symbol("task_struct_cachep") else { return Ok(()) };
        let wanted = self.pointer(symbol, WHAT)?;
        let frames = self.ram.layout().frame_limit().0;
        let mut limits = Limits { steps: frames.saturating_mul(OBJECTS_IN_FRAME), free: FREE_LIMIT };
        let mut caches = self.slab_caches()?;
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
                    let task = self.direct_address(Gpa(at));
                    if let Some(area) = self.dead_fpu_area(task, cache.object_size) {
                        visit(area);
                    }
                }
                at = at.saturating_add(cache.size);
            }
            Ok(())
        })
    }

    /// What is no task has no such area: it may be free, in a sheaf.
    fn dead_fpu_area(&self, task: Gva, size: u64) -> Option<Range<Gva>> {
        let thread = self.thread(task).ok().filter(|thread| thread.dead)?;
        let area = self.fpu_area(&thread).ok()?;
        let end = area.at.checked_add(area.len)?;
        let inside = area.at >= task && end <= task.checked_add(size)?;
        inside.then_some(area.at..end)
    }
}
