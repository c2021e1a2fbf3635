//! Packets that were read and given back, and that a CPU has not freed yet (`skb_attempt_defer_free` in
//! `net/core/skbuff.c`): a packet is freed on the CPU that made it, which may take until its next interrupt of
//! the network.
//!
//! ```text
//! up to 6.12   softnet_data.defer_list ─> sk_buff.next ─> ...                      each CPU
//! 7.x          net_hotdata.skb_defer_nodes[node].defer_list ─> sk_buff.next ─> ...  each CPU
//! all          softnet_data.completion_queue ─> sk_buff.next ─> ...                 each CPU
//! ```

use crate::layout::layout;
use crate::skb::CHAIN_LIMIT;
use crate::{Kernel, KernelError};
use elision_memory::Gva;
use std::collections::BTreeMap;

layout! {
    pub(crate) struct GivenBackLayout {
        completed: optional("softnet_data", &["completion_queue"]),
        deferred: optional("softnet_data", &["defer_list"]),
        nodes: optional("net_hotdata", &["skb_defer_nodes"]),
        node_size: size_opt("skb_defer_node"),
        in_node: optional("skb_defer_node", &["defer_list.first"]),
    }
}

const WHAT: &str = "list of packets to be freed";
/// `MAX_NUMNODES`.
const NODE_LIMIT: u32 = 1024;

impl Kernel<'_> {
    /// Every packet that is to be freed, with the number of them that share its buffer. Nobody will look at
    /// what they hold, unless the buffer has other users.
    pub fn packets_given_back(&self) -> Result<Vec<(Gva, u64)>, KernelError> {
        let layout = &self.profile.given_back;
        let mut heads = Vec::new();
        if let Some(data) = self.symbol("softnet_data") {
            for member in [layout.completed, layout.deferred].into_iter().flatten() {
                heads.extend(self.per_cpu.iter().map(|cpu| data.wrapping_add(*cpu).wrapping_add(member)));
            }
        }
        if let (Some(data), Some(nodes), Some(size), Some(first)) =
            (self.symbol("net_hotdata"), layout.nodes, layout.node_size, layout.in_node)
        {
            let nodes = self.pointer(data.wrapping_add(nodes), WHAT)?;
            let count = self.symbol("nr_node_ids").map_or(Ok(1), |at| self.u32(at, WHAT))?;
            if count > NODE_LIMIT {
                return Err(KernelError::Torn { what: WHAT, at: nodes, why: "there are too many nodes" });
            }
            for cpu in self.per_cpu.iter().filter(|_| nodes.0 != 0) {
                let of_cpu = nodes.wrapping_add(*cpu);
                heads.extend((0..u64::from(count)).map(|i| of_cpu.wrapping_add(i * size + first)));
            }
        }
        let mut packets = Vec::new();
        for head in heads {
            self.packets_in_chain(head, &mut |packet| {
                if packets.len() == CHAIN_LIMIT {
                    return Err(KernelError::Torn { what: WHAT, at: head, why: "it does not end" });
                }
                packets.push(packet);
                Ok(())
            })?;
        }
        let buffers = packets.iter().map(|packet| self.packet_buffer(*packet));
        let buffers = buffers.collect::<Result<Vec<_>, _>>()?;
        let mut users: BTreeMap<Gva, u64> = BTreeMap::new();
        buffers.iter().for_each(|buffer| *users.entry(*buffer).or_default() += 1);
        let users = buffers.iter().map(|buffer| users.get(buffer).copied().unwrap_or(1));
        Ok(packets.into_iter().zip(users).collect())
    }
}
