//! What was registered with `epoll` and added to an `eventfd`, where no process has it open which stays.

use super::Channels;
use crate::{EditReason, PlanError};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    for (file, pid) in channels.opened_alone(|file| kernel.is_event_file(file))? {
        channels.clear_found(EditReason::Event, Some(pid), |kernel, visit| {
            kernel.event_file_content(&file, visit)
        })?;
    }
    Ok(())
}
