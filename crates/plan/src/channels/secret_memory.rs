//! Secret memory that excluded processes alone have open, mapped or not.

use super::Channels;
use crate::PlanError;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let files = channels.opened_alone(|file| matches!(kernel.secret_memory(file.file), Ok(Some(_))))?;
    for (file, pid) in files {
        if let Some(mapping) = kernel.secret_memory(file.file)? {
            channels.frames.drop_shared_object(mapping, pid, false)?;
        }
    }
    Ok(())
}
