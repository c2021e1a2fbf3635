//! Names in events of the file system that an excluded process has not read.

use super::Channels;
use crate::{EditReason, PlanError};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let mut content = Vec::new();
    for (file, pid) in channels.files.iter().filter(|(file, _)| kernel.is_notification_file(file)) {
        kernel.notified_names(file, &mut |part| content.push((part, *pid)))?;
    }
    for (name, pid) in content {
        channels.clear(vec![name], EditReason::Event, Some(pid))?;
    }
    Ok(())
}
