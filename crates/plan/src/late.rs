//! What is found out in the copy, when the VM runs again: the objects that the kernel has freed.
//!
//! They are many and on many lists, all in the slabs and in what describes them. The plan that is made in
//! the pause names the frames of the slabs; these wait in memory until what is free in them is cleared.

use crate::threads::Edits;
use crate::{Edit, PlanError, free_objects};
use elision_kernel::Kernel;

/// Plans what is cleared in the late frames of a [`Plan`](crate::Plan). `copy` is the kernel in the copy that
/// this plan led to.
pub fn plan_late(copy: &Kernel<'_>) -> Result<Vec<Edit>, PlanError> {
    let mut edits = Edits::new(copy);
    free_objects::clear(&mut edits)?;
    Ok(edits.into_sorted())
}
