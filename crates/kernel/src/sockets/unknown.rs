//! Sockets of which not everything is known that they hold.
//!
//! ```text
//! sock_common.skc_family, sock.sk_protocol       families and protocols that keep data in structures of their own,
//!                                                most of them of a module
//! inet_connection_sock: icsk_ulp_ops -> name     TCP below TLS and the like: keys, and records in the making
//! mptcp_sock: first                              that waits for connections: the TCP socket that does so for it
//! ```

use super::{INET, INET6, LISTEN, RAW, Socket, TCP, UDP, UNIX, WHAT};
use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct UpperLayout {
        upper: optional("inet_connection_sock", &["icsk_ulp_ops"]),
        name: optional("tcp_ulp_ops", &["name"]),
        first: optional("mptcp_sock", &["first"]),
    }
}

const NETLINK: u64 = 16;
const PACKET: u64 = 17;
/// Its data is in memory of its process.
const XDP: u64 = 44;
const ICMP: [u64; 2] = [1, 58];
const FAMILIES: [(u64, &str); 8] = [
    (15, "key management"),
    (21, "RDS"),
    (29, "CAN"),
    (30, "TIPC"),
    (31, "Bluetooth"),
    (38, "the kernel's cryptography (AF_ALG)"),
    (40, "vsock"),
    (43, "SMC"),
];
const MPTCP: u64 = 262;
const PROTOCOLS: [(u64, &str); 3] = [(132, "SCTP"), (256, "SMC"), (MPTCP, "MPTCP")];
/// `TCP_ULP_NAME_MAX`.
const NAME_LIMIT: usize = 16;

impl Kernel<'_> {
    /// What a socket is of whose data not everything is known; `None` if all of it is.
    pub fn unknown_socket(&self, socket: &Socket) -> Result<Option<String>, KernelError> {
        let name = |names: &[(u64, &str)], number: u64, what: &str| {
            let known = names.iter().find(|(n, _)| *n == number);
            Some(known.map_or_else(|| format!("{what} {number}"), |(_, name)| (*name).to_owned()))
        };
        Ok(match (socket.family, socket.protocol) {
            (UNIX | NETLINK | PACKET | XDP, _) => None,
            (INET | INET6, _) if socket.kind == RAW => None,
            (INET | INET6, TCP) => self.upper_protocol(socket)?,
            (INET | INET6, MPTCP) if self.mptcp_listener(socket)?.is_some() => None,
            (INET | INET6, protocol) if UDP.contains(&protocol) || ICMP.contains(&protocol) => None,
            (INET | INET6, protocol) => name(&PROTOCOLS, protocol, "protocol"),
            (family, _) => name(&FAMILIES, family, "family"),
        })
    }

    /// What stands between a TCP socket and its process, such as `tls`.
    fn upper_protocol(&self, socket: &Socket) -> Result<Option<String>, KernelError> {
        let layout = &self.profile.upper;
        let (Some(upper), Some(name)) = (layout.upper, layout.name) else { return Ok(None) };
        if socket.listens() {
            return Ok(None); // it has no data
        }
        let upper = self.pointer(socket.at.wrapping_add(upper), WHAT)?;
        if upper.0 == 0 {
            return Ok(None);
        }
        let name = self.string(upper.wrapping_add(name), NAME_LIMIT, WHAT)?;
        Ok(Some(format!("TCP with {} in the kernel", name.escape_debug())))
    }

    /// The TCP socket that waits for the connections of an MPTCP socket. Those that come without MPTCP are plain
    /// TCP; servers listen so by default in some languages.
    pub(super) fn mptcp_listener(&self, socket: &Socket) -> Result<Option<Gva>, KernelError> {
        let listens = socket.is_inet() && socket.protocol == MPTCP && socket.state == LISTEN;
        let Some(first) = self.profile.upper.first.filter(|_| listens) else { return Ok(None) };
        let first = self.pointer(socket.at.wrapping_add(first), WHAT)?;
        Ok((first.0 != 0).then_some(first))
    }
}
