//! Packets (`struct sk_buff`): what waits in a socket's queues.
//!
//! ```text
//! head ..... headers ..... data ..... tail ..... end, then skb_shared_info: frags[], frag_list
//!      stale         kept       payload    stale                           |          +-> sk_buff -> next ..
//!                                                                          +-> page, offset, len
//! ```
//!
//! Headers stay: protocols look at them again when the payload is read. Fragments in the page cache, of files
//! that were sent without a copy, are not the packet's own and are passed over.
//!
//! A fragment is a part of a compound page that lives as long as any of its fragments: around those in use stands
//! what the freed ones held. A page whose every reference is a packet's that was looked at is theirs as a whole.

use crate::layout::layout;
use crate::{Content, Kernel, KernelError, PageKind};
use elision_memory::{Gfn, Gpa, Gva};
use std::collections::{BTreeMap, BTreeSet};

layout! {
    pub(crate) struct PacketLayout {
        next: offset("sk_buff", &["next"]),
        tree_node: offset("sk_buff", &["rbnode"]),
        owner: offset("sk_buff", &["sk"]),
        control: offset("sk_buff", &["cb"]),
        head: offset("sk_buff", &["head"]),
        data: offset("sk_buff", &["data"]),
        end: number("sk_buff", &["end"]),
        mac: number("sk_buff", &["mac_header"]),
        network: number("sk_buff", &["network_header"]),
        transport: number("sk_buff", &["transport_header"]),
        users: number("skb_shared_info", &["dataref"]),
        part_count: number("skb_shared_info", &["nr_frags"]),
        parts: offset("skb_shared_info", &["frags"]),
        more: offset("skb_shared_info", &["frag_list"]),
        part_size: size_opt("skb_frag"),
        part_page: optional("skb_frag", &["netmem", "bv_page"]),
        part_offset: number_opt("skb_frag", &["offset", "bv_offset"]),
        part_len: number_opt("skb_frag", &["len", "bv_len"]),
        pool_mark: optional("page", &["pp_magic"]),
        vector_size: size("bio_vec"),
        vector_page: offset("bio_vec", &["bv_page"]),
        vector_offset: number("bio_vec", &["bv_offset"]),
        vector_len: number("bio_vec", &["bv_len"]),
    }
}

const WHAT: &str = "packet";
/// `MAX_SKB_FRAGS` can be set up to 45.
const PART_LIMIT: u64 = 64;
/// Netlink messages can be large; nothing is larger than what `kvmalloc` gives for one.
const HEAD_LIMIT: u64 = 1 << 30;
/// A fragment is a part of one compound page.
const PART_BYTES: u64 = 1 << 26;
/// An offset of a header that is not there.
const NO_HEADER: u64 = 0xffff;
/// Users of the payload are counted in the low half of `dataref`.
const USERS: u64 = 0xffff;
/// `PP_SIGNATURE`: the bits that are the same on all kernels. Such a page counts its fragments elsewhere.
const POOL_MARK: u64 = 0xdead_0000_0000_0040;
const POOL_MARK_BITS: u64 = 0xffff_0000_0000_0040;

impl Kernel<'_> {
    /// What a packet holds, with those that hang on it. Each packet is visited once: `seen` remembers.
    ///
    /// A packet whose buffer has more than `users` is passed over, as copies for listeners are.
    pub fn packet_content(
        &self,
        packet: Gva,
        users: Option<u64>,
        seen: &mut Packets,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.packet;
        let mut todo = vec![packet];
        while let Some(packet) = todo.pop() {
            seen.count(packet)?;
            if seen.packets.contains(&packet) {
                continue;
            }
            let torn = |why| KernelError::Torn { what: WHAT, at: packet, why };
            let head = self.pointer(packet.wrapping_add(layout.head), WHAT)?;
            let data = self.pointer(packet.wrapping_add(layout.data), WHAT)?;
            let size = self.number(packet, layout.end, WHAT)?;
            let end = head.wrapping_add(size);
            if size > HEAD_LIMIT || data < head || data > end {
                return Err(torn("its data lies outside its buffer"));
            }
            let others = self.number(end, layout.users, WHAT)? & USERS;
            if users.is_some_and(|users| others > users) {
                continue;
            }
            seen.packets.insert(packet);
            let mut headers = data.0.wrapping_sub(head.0);
            for member in [layout.mac, layout.network, layout.transport] {
                let at = self.number(packet, member, WHAT)?;
                if at != NO_HEADER {
                    headers = headers.min(at);
                }
            }
            visit(Content::Bytes(head..head.wrapping_add(headers)));
            visit(Content::Bytes(data..end));
            self.packet_parts(end, seen, visit)?;
            let mut more = self.pointer(end.wrapping_add(layout.more), WHAT)?;
            while more.0 != 0 {
                if todo.len() >= CHAIN_LIMIT {
                    return Err(torn("too many packets hang on it"));
                }
                todo.push(more);
                more = self.pointer(more.wrapping_add(layout.next), WHAT)?;
            }
        }
        Ok(())
    }

    fn packet_parts(
        &self,
        shared: Gva,
        seen: &mut Packets,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.packet;
        let count = self.number(shared, layout.part_count, WHAT)?;
        if count > PART_LIMIT {
            return Err(KernelError::Torn { what: WHAT, at: shared, why: "it has too many fragments" });
        }
        let (size, page, offset, len) =
            match (layout.part_size, layout.part_page, layout.part_offset, layout.part_len) {
                (Some(size), Some(page), Some(offset), Some(len)) => (size, page, offset, len),
                _ => (layout.vector_size, layout.vector_page, layout.vector_offset, layout.vector_len),
            };
        let is_new = seen.buffers.insert(shared);
        for i in 0..count {
            let part = shared.wrapping_add(layout.parts).wrapping_add(size * i);
            let page = self.pointer(part.wrapping_add(page), WHAT)?;
            if page.0 & 1 != 0 {
                continue; // memory of a device
            }
            let (offset, len) = (self.number(part, offset, WHAT)?, self.number(part, len, WHAT)?);
            if offset > PART_BYTES || len > PART_BYTES {
                return Err(KernelError::Torn { what: WHAT, at: part, why: "a fragment is too large" });
            }
            if let Some(gfn) = self.frame_of(page).filter(|_| is_new) {
                *seen.pages.entry(self.page(gfn)?.head).or_default() += 1;
            }
            for content in self.in_page(page, offset, len, WHAT)? {
                let Content::Page { at, .. } = content else { continue };
                if !self.is_cached(at)? {
                    visit(content);
                }
            }
        }
        Ok(())
    }

    /// The pages that only these packets refer to, as a whole.
    pub fn pages_of_packets(&self, packets: &Packets) -> Result<Vec<Content>, KernelError> {
        let mut content = Vec::new();
        for (head, references) in &packets.pages {
            let page = self.page(*head)?;
            let mark = self.profile.packet.pool_mark;
            let mark = mark.map_or(Ok(0), |at| self.u64(self.page_of(*head).wrapping_add(at), WHAT))?;
            let is_theirs = u64::from(page.refcount) <= *references && page.kind == PageKind::Other;
            if is_theirs && mark & POOL_MARK_BITS != POOL_MARK {
                content.extend(self.compound_frames(*head)?.map(|gfn| Content::frame(Gfn(gfn))));
            }
        }
        Ok(content)
    }

    /// Whether a page belongs to a file.
    fn is_cached(&self, at: Gpa) -> Result<bool, KernelError> {
        Ok(matches!(self.page(at.gfn())?.kind, PageKind::File | PageKind::SharedMemory))
    }

    /// Where a packet's buffer stands: clones share one.
    pub(crate) fn packet_buffer(&self, packet: Gva) -> Result<Gva, KernelError> {
        self.pointer(packet.wrapping_add(self.profile.packet.head), WHAT)
    }

    /// The socket that a packet is charged to: its sender or, once it is received, its receiver.
    pub fn packet_owner(&self, packet: Gva) -> Result<Gva, KernelError> {
        self.pointer(packet.wrapping_add(self.profile.packet.owner), WHAT)
    }

    /// The packets in a queue (`sk_buff_head`), in order.
    pub(crate) fn packets_in_queue(
        &self,
        queue: Gva,
        visit: &mut dyn FnMut(Gva) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        // A queue and its packets begin as a `list_head` does.
        self.for_each_in_list(queue, "queue of packets", visit)
    }

    /// The packets in a chain of single pointers.
    pub(crate) fn packets_in_chain(
        &self,
        first: Gva,
        visit: &mut dyn FnMut(Gva) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let mut at = self.pointer(first, WHAT)?;
        for _ in 0..CHAIN_LIMIT {
            if at.0 == 0 {
                return Ok(());
            }
            visit(at)?;
            at = self.pointer(at.wrapping_add(self.profile.packet.next), WHAT)?;
        }
        Err(KernelError::Torn { what: "chain of packets", at: first, why: "it does not end" })
    }

    /// The packets in a tree (`rb_root`).
    pub(crate) fn packets_in_tree(
        &self,
        root: Gva,
        visit: &mut dyn FnMut(Gva) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let node = self.profile.packet.tree_node;
        self.for_each_in_tree(root, "tree of packets", &mut |at| visit(Gva(at.0.wrapping_sub(node))))
    }
}

/// More packets than one socket's memory has room for.
pub(crate) const CHAIN_LIMIT: usize = 1 << 22;

/// The packets that were looked at, the pages that they refer to, and how many looks are left.
#[derive(Debug)]
pub struct Packets {
    packets: BTreeSet<Gva>,
    /// Clones share a buffer and its references.
    buffers: BTreeSet<Gva>,
    /// References to compound pages, by their first frames.
    pages: BTreeMap<Gfn, u64>,
    left: u64,
}

impl Packets {
    /// For a guest with room for `limit` packets.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { packets: BTreeSet::new(), buffers: BTreeSet::new(), pages: BTreeMap::new(), left: limit }
    }

    fn count(&mut self, packet: Gva) -> Result<(), KernelError> {
        self.left = self.left.checked_sub(1).ok_or(KernelError::Torn {
            what: WHAT,
            at: packet,
            why: "there are more packets than the guest has room for",
        })?;
        Ok(())
    }
}
