//! UDP: who sent a datagram that came over the loopback device.
//!
//! ```text
//! sk_buff: skb_iif = 1 (lo)   head + network_header   -> IP header: source address
//!                             head + transport_header -> UDP header: source port
//! sock_common: skc_net, skc_rcv_saddr, skc_num            the sender's, as long as it is open
//! ```
//!
//! A datagram keeps no pointer to its sender: the sender is who is bound to its source in the same network
//! namespace. What came over another device has its sender elsewhere.

use super::{RAW, Socket, UDP, WHAT};
use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;
use std::net::{Ipv4Addr, Ipv6Addr};

layout! {
    pub(crate) struct UdpLayout {
        device: number("sk_buff", &["skb_iif"]),
    }
}

/// `LOOPBACK_IFINDEX`, the same in every network namespace.
const LOOPBACK: u64 = 1;
/// Where the source address stands in an IPv4 and in an IPv6 header.
const SOURCE: u64 = 12;
const SOURCE_V6: u64 = 8;

/// An end of UDP in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpEnd {
    /// `struct net`.
    net: Gva,
    port: u16,
    /// As IPv6 sees it.
    address: Ipv6Addr,
}

impl UdpEnd {
    /// Whether what has this source can come from a socket that is bound to `bound`.
    #[must_use]
    pub fn is_of(&self, bound: &Self) -> bool {
        let any = [Ipv6Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()];
        let same_address = self.address == bound.address || any.contains(&bound.address);
        (self.net, self.port) == (bound.net, bound.port) && same_address
    }
}

impl Socket {
    /// Whether it is UDP.
    #[must_use]
    pub fn is_udp(&self) -> bool {
        self.is_inet() && UDP.contains(&self.protocol) && self.kind != RAW
    }
}

impl Kernel<'_> {
    /// Where a UDP socket sends from. `None` for others, and before it sends.
    pub fn udp_end(&self, socket: &Socket) -> Result<Option<UdpEnd>, KernelError> {
        if !socket.is_udp() {
            return Ok(None);
        }
        let net = self.pointer(socket.at.wrapping_add(self.profile.socket.net), WHAT)?;
        let (address, port, ..) = self.pair(socket)?;
        Ok((port != 0).then(|| UdpEnd { net, port, address: address.into() }))
    }

    /// Where a UDP socket that is connected sends to, if that is inside the guest for sure: a loopback address, or
    /// the socket's own.
    pub fn udp_target(&self, socket: &Socket) -> Result<Option<UdpEnd>, KernelError> {
        if !socket.is_udp() {
            return Ok(None);
        }
        let net = self.pointer(socket.at.wrapping_add(self.profile.socket.net), WHAT)?;
        let (local, _, remote, port) = self.pair(socket)?;
        let address = Ipv6Addr::from(remote);
        let loops = address.is_loopback() || address.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback());
        Ok((port != 0 && (loops || local == remote)).then_some(UdpEnd { net, port, address }))
    }

    /// Where a datagram in a UDP socket's queues was sent from, if that is inside the guest.
    pub fn udp_source(&self, receiver: &Socket, packet: Gva) -> Result<Option<UdpEnd>, KernelError> {
        let layout = &self.profile.packet;
        if !receiver.is_udp() || self.number(packet, self.profile.udp.device, WHAT)? != LOOPBACK {
            return Ok(None);
        }
        let head = self.packet_buffer(packet)?;
        let size = self.number(packet, layout.end, WHAT)?;
        let network = self.number(packet, layout.network, WHAT)?;
        let transport = self.number(packet, layout.transport, WHAT)?;
        if network >= size || transport >= size {
            return Ok(None);
        }
        let network = head.wrapping_add(network);
        let address = match self.u8(network, WHAT)? >> 4 {
            4 => {
                let mut address = [0; 4];
                self.read(network.wrapping_add(SOURCE), &mut address, WHAT)?;
                Ipv4Addr::from(address).to_ipv6_mapped()
            }
            6 => {
                let mut address = [0; 16];
                self.read(network.wrapping_add(SOURCE_V6), &mut address, WHAT)?;
                address.into()
            }
            _ => return Ok(None),
        };
        let net = self.pointer(receiver.at.wrapping_add(self.profile.socket.net), WHAT)?;
        let port = u16::from_be(self.u16(head.wrapping_add(transport), WHAT)?);
        Ok(Some(UdpEnd { net, port, address }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_belongs_to_who_is_bound_to_it_or_to_any_address() {
        let end =
            |net: u64, port, address: &str| UdpEnd { net: Gva(net), port, address: address.parse().unwrap() };
        let source = end(1, 53, "::ffff:127.0.0.1");
        for bound in ["::ffff:127.0.0.1", "::ffff:0.0.0.0", "::"] {
            assert!(source.is_of(&end(1, 53, bound)), "{bound}");
            assert!(!source.is_of(&end(1, 54, bound)) && !source.is_of(&end(2, 53, bound)), "{bound}");
        }
        assert!(!source.is_of(&end(1, 53, "::ffff:127.0.0.2")) && !source.is_of(&end(1, 53, "::1")));
    }
}
