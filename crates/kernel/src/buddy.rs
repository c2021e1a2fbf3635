//! Free frames on the buddy lists (`struct zone`, `mm/page_alloc.c`).
//!
//! ```text
//! node_data[node] -> node_zones[zone] . free_area[order] . free_list[type] <-> page <-> page
//! ```
//! Each list entry is the first of 2^order free frames.

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::{Gfn, Gva};
use std::ops::Range;

layout! {
    pub(crate) struct ZoneLayout {
        zones: offset("pglist_data", &["node_zones"]),
        zone_count: count("pglist_data", "node_zones"),
        size: size("zone"),
        present: offset("zone", &["present_pages"]),
        free_area: offset("zone", &["free_area"]),
        order_count: count("zone", "free_area"),
        area_size: size("free_area"),
        type_count: count("free_area", "free_list"),
        pcp: optional("zone", &["per_cpu_pageset"]),
        pageset: optional("zone", &["pageset"]),
    }
}

pub(crate) const LIST_HEAD: u64 = 16;
const NODE_LIMIT: u64 = 1024;
/// More zones, orders and migration types than any kernel has.
const ZONE_LIMIT: u64 = 16;
const ORDER_LIMIT: u64 = 32;
const TYPE_LIMIT: u64 = 32;

impl Kernel<'_> {
    /// All zones that have memory.
    pub(crate) fn zones(&self) -> Result<Vec<Gva>, KernelError> {
        let layout = &self.profile.zone;
        let mut zones = Vec::new();
        for node in self.memory_nodes()? {
            for i in 0..layout.zone_count.min(ZONE_LIMIT) {
                let zone = node.wrapping_add(layout.zones + i * layout.size);
                if self.u64(zone.wrapping_add(layout.present), "memory zone")? != 0 {
                    zones.push(zone);
                }
            }
        }
        Ok(zones)
    }

    fn memory_nodes(&self) -> Result<Vec<Gva>, KernelError> {
        const WHAT: &str = "memory node";
        let Some(array) = self.symbol("node_data") else {
            return Ok(vec![self.require("contig_page_data")?]);
        };
        let count = self.symbol("nr_node_ids").map_or(Ok(1), |at| self.u32(at, WHAT))?;
        let mut nodes = Vec::new();
        for i in 0..u64::from(count).min(NODE_LIMIT) {
            let node = self.pointer(array.wrapping_add(8 * i), WHAT)?;
            if node.0 != 0 {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }

    /// Blocks of frames on the buddy lists.
    pub fn buddy_frames(&self, visit: &mut dyn FnMut(Range<Gfn>)) -> Result<(), KernelError> {
        let layout = &self.profile.zone;
        let link = self.profile.page.buddy_list.unwrap_or(self.profile.page.lru);
        let mut left = self.ram.layout().frame_limit().0;
        for zone in self.zones()? {
            for order in 0..layout.order_count.min(ORDER_LIMIT) {
                for kind in 0..layout.type_count.min(TYPE_LIMIT) {
                    let list = layout.free_area + order * layout.area_size + kind * LIST_HEAD;
                    let order = u32::try_from(order).unwrap_or(u32::MAX);
                    let list = zone.wrapping_add(list);
                    self.for_each_free(list, link, order, "buddy list", &mut left, visit)?;
                }
            }
        }
        Ok(())
    }

    /// The blocks on one list of free pages; each is checked: whole, aligned, unreferenced.
    /// `left` bounds the frames of all lists that share it: each is free once.
    pub(crate) fn for_each_free(
        &self,
        head: Gva,
        link: u64,
        order: u32,
        what: &'static str,
        left: &mut u64,
        visit: &mut dyn FnMut(Range<Gfn>),
    ) -> Result<(), KernelError> {
        self.for_each_in_list(head, what, &mut |at| {
            let torn = |why| KernelError::Torn { what, at, why };
            let page = Gva(at.0.wrapping_sub(link));
            let first = self.frame_of(page).ok_or(torn("an entry is no page"))?;
            if order >= 32 || first.0 & ((1 << order) - 1) != 0 {
                return Err(torn("a block is not aligned to its size"));
            }
            if !self.ram.layout().contains(Gfn(first.0 + (1 << order) - 1)) {
                return Err(torn("a block reaches outside RAM"));
            }
            let refcount = self.u32(page.wrapping_add(self.profile.page.refcount), what)?;
            if refcount != 0 {
                return Err(torn("a page on it is in use"));
            }
            let too_many = torn("more frames are free than there are");
            *left = left.checked_sub(1 << order).ok_or(too_many)?;
            visit(first..Gfn(first.0 + (1 << order)));
            Ok(())
        })
    }
}
