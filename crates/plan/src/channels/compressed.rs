//! What compressed swap (zram, zswap) has freed: objects of processes that ended, or whose pages came back.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_kernel::Kernel;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    channels.clear_found(EditReason::FreeObject, None, Kernel::free_compressed)
}
