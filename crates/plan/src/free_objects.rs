//! Objects that the kernel has freed: nobody's, cleared in every image like free memory.
//!
//! So are the registers of tasks that have ended and wait for their last release, and names of files that are not
//! there.
//!
//! What stays: the pointers between them, and objects on whose content the kernel relies (caches with a
//! constructor, objects that readers under RCU may still look at, and all under `slub_debug`).

use crate::threads::Edits;
use crate::{EditReason, PlanError};
use elision_memory::{Gpa, PAGE_SIZE};

/// Clears all of them. Neighbours become one edit: a plan may have hundreds of thousands.
pub(crate) fn clear(edits: &mut Edits<'_, '_>) -> Result<(), PlanError> {
    let begin = std::time::Instant::now();
    let (mut objects, mut run) = (0_u64, Gpa(0)..Gpa(0));
    let before = edits.list.len();
    let kernel = edits.kernel();
    kernel.free_objects(&mut |object| {
        objects += 1;
        for part in object.content() {
            if part.start == run.end {
                run.end = part.end;
            } else if part.start < part.end {
                push(edits, &run);
                run = part;
            }
        }
    })?;
    push(edits, &run);
    let mut names = Vec::new();
    kernel.names_of_nobody(&mut |name| names.push(name))?;
    for name in names {
        edits.zero(name, EditReason::Name, None)?;
    }
    let mut ended = Vec::new();
    kernel.dead_fpu_areas(&mut |area| ended.push(area))?;
    for area in ended {
        edits.zero(area, EditReason::FreeObject, None)?;
    }
    let added = edits.list.len() - before;
    tracing::debug!(objects, edits = added, took = ?begin.elapsed(), "free objects surveyed");
    Ok(())
}

/// A range, cut at the ends of frames.
fn push(edits: &mut Edits<'_, '_>, run: &std::ops::Range<Gpa>) {
    let mut at = run.start;
    while at < run.end {
        let rest = (PAGE_SIZE - at.page_offset()) as u64;
        let len = rest.min(run.end.0 - at.0);
        edits.zero_at(at, len, EditReason::FreeObject, None);
        at = at.wrapping_add(len);
    }
}
