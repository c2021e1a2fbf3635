//! Packets that were read and that no CPU has freed yet: nobody's, cleared in every image.

use super::Channels;
use super::sockets::packets;
use crate::{EditReason, PlanError};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let mut seen = packets(channels.kernel);
    for (packet, users) in channels.kernel.packets_given_back()? {
        let mut content = Vec::new();
        channels.kernel.packet_content(packet, Some(users), &mut seen, &mut |part| content.push(part))?;
        channels.clear(content, EditReason::Socket, None)?;
    }
    Ok(())
}
