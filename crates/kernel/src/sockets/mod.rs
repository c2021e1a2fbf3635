//! Sockets (`struct sock`): the queues in which data waits, whatever the family.
//!
//! ```text
//! sock: sk_receive_queue  sk_write_queue  sk_error_queue  sk_backlog   all families
//!       udp_sock.reader_queue, udp_prod_queue[node]                    UDP
//!       tcp_rtx_queue, tcp_sock.out_of_order_queue                     TCP
//! listening: icsk_accept_queue -> request_sock.sk                      connections nobody accepted yet
//!            unix: receive queue -> sk_buff.sk
//! sk_frag, task_struct.task_frag: a page from which what is sent takes its buffers, one after the other
//! ```

mod packet;
mod tcp;
mod udp;
mod unix;
mod unknown;

pub(crate) use packet::PacketSocketLayout;
pub(crate) use tcp::TcpLayout;
pub use tcp::TcpTable;
pub use udp::UdpEnd;
pub(crate) use udp::UdpLayout;
pub(crate) use unix::UnixLayout;
pub(crate) use unknown::UpperLayout;

use crate::layout::layout;
use crate::skb::CHAIN_LIMIT;
use crate::tasks::Thread;
use crate::{Content, Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct SocketLayout {
        family: number("sock_common", &["skc_family"]),
        state: number("sock_common", &["skc_state"]),
        net: offset("sock_common", &["skc_net"]),
        protocol: number("sock", &["sk_protocol"]),
        kind: number("sock", &["sk_type"]),
        received: offset("sock", &["sk_receive_queue"]),
        sent: offset("sock", &["sk_write_queue"]),
        errors: offset("sock", &["sk_error_queue"]),
        backlog: offset("sock", &["sk_backlog.head"]),
        fragment: offset("sock", &["sk_frag"]),
        unacknowledged: optional("sock", &["tcp_rtx_queue"]),
        out_of_order: optional("tcp_sock", &["out_of_order_queue"]),
        read_queue: optional("udp_sock", &["reader_queue"]),
        input_queues: optional("udp_sock", &["udp_prod_queue"]),
        input_queue_size: size_opt("udp_prod_queue"),
        accept_queue: optional("inet_connection_sock", &["icsk_accept_queue.rskq_accept_head"]),
        next_request: optional("request_sock", &["dl_next"]),
        child: optional("request_sock", &["sk"]),
        task_fragment: offset("task_struct", &["task_frag"]),
        fragment_page: offset("page_frag", &["page"]),
        fragment_size: number("page_frag", &["size"]),
    }
}

const WHAT: &str = "socket";
const UNIX: u64 = 1;
const INET: u64 = 2;
const INET6: u64 = 10;
const RAW: u64 = 3;
const TCP: u64 = 6;
const UDP: [u64; 2] = [17, 136]; // and UDP-Lite
const LISTEN: u64 = 10;
/// Compound pages from which fragments are taken have 32 KiB.
const FRAGMENT_LIMIT: u64 = 1 << 20;
const NODE_LIMIT: u64 = 1 << 10;

/// A `struct sock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Socket {
    /// Where it stands.
    pub at: Gva,
    family: u64,
    kind: u64,
    protocol: u64,
    state: u64,
}

impl Socket {
    /// Whether it is of the unix family.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        self.family == UNIX
    }

    /// Whether it is TCP.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.is_inet() && self.protocol == TCP && self.kind != RAW
    }

    /// Whether it waits for connections.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.state == LISTEN && (self.is_unix() || self.is_tcp())
    }

    /// Whether it gets copies of what others receive: raw sockets, packet sockets, netlink groups.
    #[must_use]
    pub fn listens_in(&self) -> bool {
        !self.is_unix() && (!self.is_inet() || self.kind == RAW)
    }

    fn is_inet(&self) -> bool {
        matches!(self.family, INET | INET6)
    }
}

impl Kernel<'_> {
    /// What kind of socket stands at an address.
    pub fn socket(&self, at: Gva) -> Result<Socket, KernelError> {
        let layout = &self.profile.socket;
        let number = |member| self.number(at, member, WHAT);
        Ok(Socket {
            at,
            family: number(layout.family)?,
            kind: number(layout.kind)?,
            protocol: number(layout.protocol)?,
            state: number(layout.state)?,
        })
    }

    /// Calls `visit` with each packet that waits in a socket, by its `struct sk_buff`.
    pub fn for_each_packet(
        &self,
        socket: &Socket,
        visit: &mut dyn FnMut(Gva) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let layout = &self.profile.socket;
        self.for_each_received(socket, visit)?;
        self.packets_in_queue(socket.at.wrapping_add(layout.sent), visit)?;
        self.packets_in_queue(socket.at.wrapping_add(layout.errors), visit)?;
        match layout.unacknowledged.filter(|_| socket.is_tcp() && !socket.listens()) {
            Some(tree) => self.packets_in_tree(socket.at.wrapping_add(tree), visit),
            None => Ok(()),
        }
    }

    /// The same for what was sent to it.
    pub fn for_each_received(
        &self,
        socket: &Socket,
        visit: &mut dyn FnMut(Gva) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let layout = &self.profile.socket;
        let at = |offset| socket.at.wrapping_add(offset);
        self.packets_in_queue(at(layout.received), visit)?;
        self.packets_in_chain(at(layout.backlog), visit)?;
        if let Some(tree) = layout.out_of_order.filter(|_| socket.is_tcp() && !socket.listens()) {
            self.packets_in_tree(at(tree), visit)?;
        }
        if !socket.is_udp() {
            return Ok(());
        }
        if let Some(queue) = layout.read_queue {
            self.packets_in_queue(at(queue), visit)?;
        }
        if let (Some(queues), Some(size)) = (layout.input_queues, layout.input_queue_size) {
            let queues = self.pointer(at(queues), WHAT)?;
            let nodes = match self.symbol("nr_node_ids") {
                Some(nodes) => u64::from(self.u32(nodes, WHAT)?).min(NODE_LIMIT),
                None => 1,
            };
            for i in (0..nodes).filter(|_| queues.0 != 0) {
                self.packets_in_chain(queues.wrapping_add(size * i), visit)?;
            }
        }
        Ok(())
    }

    /// The connections at a listening socket that nobody accepted yet, or the socket where they wait.
    pub fn unaccepted(&self, socket: &Socket) -> Result<Vec<Gva>, KernelError> {
        let layout = &self.profile.socket;
        let mut found = Vec::new();
        let mut add = |child: Gva| {
            if found.len() >= CHAIN_LIMIT {
                return Err(KernelError::Torn {
                    what: WHAT,
                    at: socket.at,
                    why: "too many connections wait at it",
                });
            }
            if child.0 != 0 {
                found.push(child);
            }
            Ok(())
        };
        if let Some(listener) = self.mptcp_listener(socket)? {
            return Ok(vec![listener]);
        }
        if !socket.listens() {
            return Ok(found);
        }
        if socket.is_unix() {
            let queue = socket.at.wrapping_add(layout.received);
            self.packets_in_queue(queue, &mut |packet| add(self.packet_owner(packet)?))?;
            return Ok(found);
        }
        let (Some(queue), Some(next), Some(child)) = (layout.accept_queue, layout.next_request, layout.child)
        else {
            return Ok(found);
        };
        let mut request = self.pointer(socket.at.wrapping_add(queue), WHAT)?;
        while request.0 != 0 {
            add(self.pointer(request.wrapping_add(child), WHAT)?)?;
            request = self.pointer(request.wrapping_add(next), WHAT)?;
            if request.0 != 0 && self.pointer(request.wrapping_add(child), WHAT)?.0 == 0 {
                return Err(KernelError::Torn {
                    what: WHAT,
                    at: request,
                    why: "a connection is not there any more",
                });
            }
        }
        Ok(found)
    }

    /// The page from which a socket takes buffers for what it sends.
    pub fn socket_fragment(&self, socket: &Socket) -> Result<Vec<Content>, KernelError> {
        self.page_fragment(socket.at.wrapping_add(self.profile.socket.fragment))
    }

    /// The page from which a thread takes buffers for what it sends.
    pub fn task_fragment(&self, thread: &Thread) -> Result<Vec<Content>, KernelError> {
        self.page_fragment(thread.task.wrapping_add(self.profile.socket.task_fragment))
    }

    /// All of the page: nobody has got what is not given out, and it may be left over from earlier rounds.
    fn page_fragment(&self, at: Gva) -> Result<Vec<Content>, KernelError> {
        const WHAT: &str = "page fragment";
        let layout = &self.profile.socket;
        let page = self.pointer(at.wrapping_add(layout.fragment_page), WHAT)?;
        if page.0 == 0 {
            return Ok(Vec::new());
        }
        let size = self.number(at, layout.fragment_size, WHAT)?;
        if size > FRAGMENT_LIMIT {
            return Err(KernelError::Torn { what: WHAT, at, why: "it is too large" });
        }
        self.in_page(page, 0, size, WHAT)
    }
}
