//! Packets that were read and that no CPU has freed yet: nobody's, cleared in every image.
//!
//! The last of the channels with packets: it clears the pages that only cleared packets refer to, around them too.

use super::Channels;
use crate::{EditReason, PlanError};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    for (packet, users) in kernel.packets_given_back()? {
        channels.clear_packet(packet, Some(users), None)?;
    }
    let pages = kernel.pages_of_packets(&channels.packets)?;
    channels.clear(pages, EditReason::PageFragment, None)
}
