//! Pipes and FIFOs that an excluded process has open: whoever else has them open reads zeros.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_kernel::FileKind;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    for (pipe, pid) in channels.opened(|kind| match kind {
        FileKind::Pipe(pipe) => Some(pipe),
        _ => None,
    }) {
        channels
            .clear_found(EditReason::Pipe, Some(pid), |kernel, visit| kernel.pipe_content(pipe, visit))?;
    }
    Ok(())
}
