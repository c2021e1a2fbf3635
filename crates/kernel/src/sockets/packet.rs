//! Packet sockets: the rings that they share with their process.
//!
//! ```text
//! packet_sock: rx_ring, tx_ring = packet_ring_buffer: pg_vec -> pgv[pg_vec_len]: buffer -> pages << pg_vec_order
//! ```
//!
//! A ring that is cleared is one whose frames are all the kernel's, and empty.

use super::{Socket, WHAT};
use crate::layout::layout;
use crate::{Content, Kernel, KernelError};
use elision_memory::PAGE_SIZE;

layout! {
    pub(crate) struct PacketSocketLayout {
        received: optional("packet_sock", &["rx_ring"]),
        sent: optional("packet_sock", &["tx_ring"]),
        blocks: optional("packet_ring_buffer", &["pg_vec"]),
        count: number_opt("packet_ring_buffer", &["pg_vec_len"]),
        order: number_opt("packet_ring_buffer", &["pg_vec_order"]),
        block: optional("pgv", &["buffer"]),
        block_size: size_opt("pgv"),
    }
}

const PACKET: u64 = 17;
/// More than any kernel gives for a block, and all blocks together cannot be more than the guest has frames.
const ORDER_LIMIT: u64 = 18;

impl Socket {
    /// Whether it is of the packet family.
    #[must_use]
    pub fn is_packet(&self) -> bool {
        self.family == PACKET
    }
}

impl Kernel<'_> {
    /// The rings of a packet socket; nothing for others.
    pub fn packet_rings(&self, socket: &Socket) -> Result<Vec<Content>, KernelError> {
        let layout = &self.profile.packet_socket;
        let mut content = Vec::new();
        let (Some(blocks), Some(count), Some(order), Some(block), Some(size)) =
            (layout.blocks, layout.count, layout.order, layout.block, layout.block_size)
        else {
            return Ok(content);
        };
        let mut left = self.ram().layout().frame_limit().0;
        for ring in [layout.received, layout.sent].into_iter().flatten().filter(|_| socket.is_packet()) {
            let ring = socket.at.wrapping_add(ring);
            let torn = |why| KernelError::Torn { what: "ring of packets", at: ring, why };
            let blocks = self.pointer(ring.wrapping_add(blocks), WHAT)?;
            if blocks.0 == 0 {
                continue;
            }
            let (count, order) = (self.number(ring, count, WHAT)?, self.number(ring, order, WHAT)?);
            let frames = (order <= ORDER_LIMIT).then_some(1 << order).and_then(|n: u64| n.checked_mul(count));
            left = frames.and_then(|n| left.checked_sub(n)).ok_or_else(|| torn("it is too large"))?;
            for i in 0..count {
                let at = blocks.wrapping_add(size * i).wrapping_add(block);
                let start = self.pointer(at, WHAT)?;
                content.push(Content::Bytes(start..start.wrapping_add((PAGE_SIZE as u64) << order)));
            }
        }
        Ok(content)
    }
}
