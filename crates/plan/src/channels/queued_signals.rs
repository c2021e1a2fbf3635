//! Data that came with signals which wait for an excluded process, and data of its timers.

use super::Channels;
use crate::{EditReason, PlanError};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    for process in channels.live {
        channels.clear_found(EditReason::Event, Some(process.pid), |kernel, visit| {
            kernel.queued_signal_data(process, visit)
        })?;
    }
    Ok(())
}
