//! The maple tree, in which kernels since 6.1 keep a process's VMAs (`lib/maple_tree.c`).
//!
//! ```text
//! root entry: a node if its low bits are 10 and it is above 4096, else a value at index 0
//! node entry: address | type << 3 | 4 (children) or | 2 (root)      nodes are 256 bytes
//! type 0 dense, 1 leaf, 2 range, 3 allocating range
//! node: parent | pivots | slots | (allocating range: gaps, meta.end)
//! ```

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct MapleLayout {
        range_pivot: optional("maple_range_64", &["pivot"]),
        range_slot: optional("maple_range_64", &["slot"]),
        range_end: optional("maple_range_64", &["meta.end"]),
        arange_pivot: optional("maple_arange_64", &["pivot"]),
        arange_slot: optional("maple_arange_64", &["slot"]),
        arange_end: optional("maple_arange_64", &["meta.end"]),
    }
}

const NODE_SIZE: usize = 256;
const NODE_MASK: u64 = !(NODE_SIZE as u64 - 1);
const DENSE: u64 = 0;
const LEAF: u64 = 1;
const ALLOCATING_RANGE: u64 = 3;
/// Nodes that may come before the first entry, and between one entry and the next. A kernel keeps
/// nodes half full; a forged tree may have none but empty ones.
const EMPTY_NODES: u32 = 1024;
const DEPTH_LIMIT: u32 = 32;
const WHAT: &str = "maple tree";

struct Shape {
    pivot: usize,
    slot: usize,
    pivots: usize,
    slots: usize,
    end: usize,
}

impl Kernel<'_> {
    /// Calls `visit` with each non-empty entry of the tree, by ascending index.
    pub(crate) fn for_each_in_maple_tree(
        &self,
        root: u64,
        visit: &mut dyn FnMut(u64) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        if root == 0 {
            return Ok(());
        }
        if root & 3 != 2 || root <= 4096 {
            return visit(root);
        }
        let mut empty = EMPTY_NODES;
        self.maple_node(root, u64::MAX, 0, &mut empty, visit)
    }

    fn maple_node(
        &self,
        entry: u64,
        max: u64,
        depth: u32,
        empty: &mut u32,
        visit: &mut dyn FnMut(u64) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let at = Gva(entry & NODE_MASK);
        let torn = |why| KernelError::Torn { what: WHAT, at, why };
        *empty = empty.checked_sub(1).ok_or(torn("it has too many empty nodes"))?;
        if depth > DEPTH_LIMIT {
            return Err(torn("it is too deep"));
        }
        let mut raw = [0; NODE_SIZE];
        self.read(at, &mut raw, WHAT)?;
        let word = |offset: usize| {
            raw.get(offset..offset + 8).map_or(0, |b| b.iter().rev().fold(0, |v, &b| (v << 8) | u64::from(b)))
        };
        if word(0) & NODE_MASK == at.0 {
            return Err(torn("a node was just removed from it"));
        }
        let kind = (entry >> 3) & 15;
        if kind == DENSE {
            for i in 0..NODE_SIZE / 8 - 1 {
                if word(8 + 8 * i) != 0 {
                    *empty = EMPTY_NODES;
                    visit(word(8 + 8 * i))?;
                }
            }
            return Ok(());
        }
        let shape = self.maple_shape(kind).ok_or(torn("a node has an unknown type"))?;
        let pivot = |i: usize| word(shape.pivot + 8 * i);
        let last = pivot(shape.pivots - 1);
        let end = if kind == ALLOCATING_RANGE || last == 0 {
            usize::from(raw.get(shape.end).copied().unwrap_or(0))
        } else if last == max {
            shape.pivots - 1
        } else {
            shape.pivots
        };
        if end >= shape.slots {
            return Err(torn("a node has more entries than it can hold"));
        }
        for i in 0..=end {
            let high = if i < shape.pivots && i < end { pivot(i) } else { max };
            let slot = word(shape.slot + 8 * i);
            if slot == 0 {
                continue;
            }
            if kind != LEAF {
                self.maple_node(slot, high, depth + 1, empty, visit)?;
            } else if slot & 3 != 2 {
                *empty = EMPTY_NODES;
                visit(slot)?;
            }
        }
        Ok(())
    }

    fn maple_shape(&self, kind: u64) -> Option<Shape> {
        let layout = &self.profile.maple;
        let (pivot, slot, end) = match kind {
            LEAF | 2 => (layout.range_pivot?, layout.range_slot?, layout.range_end?),
            ALLOCATING_RANGE => (layout.arange_pivot?, layout.arange_slot?, layout.arange_end?),
            _ => return None,
        };
        let [pivot, slot, end] = [pivot, slot, end].map(|o| usize::try_from(o).unwrap_or(NODE_SIZE));
        // Slots follow the pivots; an allocating range has one gap for each slot behind them.
        let pivots = slot.checked_sub(pivot)? / 8;
        (pivots > 0 && slot < NODE_SIZE).then_some(Shape { pivot, slot, pivots, slots: pivots + 1, end })
    }
}
