//! Perf events that an excluded process has open or maps: what they have recorded. Whoever else maps the buffer
//! reads zeros.

use super::Channels;
use crate::{EditReason, PlanError};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    for (file, pid) in channels.opened_or_mapped()? {
        channels.clear_found(EditReason::Event, Some(pid), |kernel, visit| {
            kernel.perf_content(&kernel.open_file(file)?, visit)
        })?;
    }
    Ok(())
}
