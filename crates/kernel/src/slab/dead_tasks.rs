//! Tasks that have ended: in use until their parent has asked, and until a grace period has passed, on no list
//! any more. No thread returns to user mode from there, so the registers saved in them are nobody's.

use crate::{Kernel, KernelError};
use elision_memory::Gva;
use std::ops::Range;

impl Kernel<'_> {
    /// Where ended tasks keep the vector registers that they had.
    pub fn dead_fpu_areas(&self, visit: &mut dyn FnMut(Range<Gva>)) -> Result<(), KernelError> {
        self.for_each_object("task_struct_cachep", &mut |task, size| {
            self.dead_fpu_area(task, size).into_iter().for_each(&mut *visit);
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
