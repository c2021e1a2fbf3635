//! Memory for data of each CPU that is free: nobody's, cleared in every image.

use super::Channels;
use crate::{EditReason, PlanError};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let mut free = Vec::new();
    channels.kernel.free_per_cpu_memory(&mut |range| free.push(range))?;
    free.into_iter().try_for_each(|range| channels.edits.zero(range, EditReason::IdleMapping, None))
}
