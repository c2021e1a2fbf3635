//! Data that came with signals which wait for an excluded process, and data of its timers.

use super::Channels;
use crate::{EditReason, PlanError};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    for process in channels.live {
        let mut content = Vec::new();
        channels.kernel.queued_signal_data(process, &mut |part| content.push(part))?;
        channels.clear(content, EditReason::Event, Some(process.pid))?;
    }
    Ok(())
}
