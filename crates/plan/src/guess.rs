//! What a plan is going to drop for the most part, found in a VM that runs on.

use crate::frame_table::FrameTable;
use crate::{DropReason, Plan};
use elision_kernel::{Kernel, KernelError};

/// A plan that drops what is free at this moment. While the VM runs it is a guess: it says how much memory a copy
/// of the VM may take, and no more.
pub fn guess(kernel: &Kernel<'_>) -> Result<Plan, KernelError> {
    let mut table = FrameTable::new(kernel.ram().layout().frame_limit());
    kernel.buddy_frames(&mut |block| table.drop_frames(block, DropReason::Free))?;
    let mut plan = Plan::default();
    plan.drops = table.into_runs(&mut plan.summary);
    Ok(plan)
}
