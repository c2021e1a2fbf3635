//! Pages in the per-CPU batches on their way to or from the reclaim lists (`mm/swap.c`).
//!
//! A batch holds a reference, so a page that its process has freed stays allocated, content and
//! all, until the batch is drained: on no free list, in no page table. A page whose only
//! references are those of batches is dead.

use crate::btf::{Btf, BtfError};
use crate::page::{PageKind, UNMAPPED};
use crate::{Kernel, KernelError, layout};
use elision_memory::{Gfn, Gva};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// The per-CPU variables that hold batches, each with the type it is of.
const VARIABLES: &[(&str, &str)] = &[
    ("cpu_fbatches", "cpu_fbatches"),
    ("lru_pvecs", "lru_pvecs"),
    ("lru_rotate", "lru_rotate"),
    ("mlock_fbatch", "mlock_fbatch"),
];

/// The batches inside one per-CPU variable.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Variable {
    symbol: String,
    /// Offsets of the batches in it.
    batches: Vec<u64>,
}

/// Where batches are and how one is laid out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BatchLayout {
    variables: Vec<Variable>,
    nr: u64,
    slots: u64,
    capacity: u64,
}

impl BatchLayout {
    pub(crate) fn compile(btf: &Btf) -> Result<Self, BtfError> {
        let (ty, slots) = if btf.struct_("folio_batch").is_some() {
            ("folio_batch", "folios")
        } else {
            ("pagevec", "pages")
        };
        let batch = btf.struct_(ty);
        let variables = VARIABLES.iter().filter_map(|(symbol, container)| {
            let id = btf.struct_(container)?;
            let batches = btf
                .members(id)
                .filter(|(_, member)| btf.resolve(member.type_id) == batch)
                .map(|(_, member)| member.bit_offset / 8)
                .collect();
            Some(Variable { symbol: (*symbol).to_owned(), batches })
        });
        Ok(Self {
            variables: variables.collect(),
            nr: layout::offset(btf, ty, &["nr"])?,
            slots: layout::offset(btf, ty, &[slots])?,
            capacity: layout::count(btf, ty, slots)?,
        })
    }
}

const WHAT: &str = "page batch";

impl Kernel<'_> {
    /// Frames that only such batches still hold.
    pub fn dead_batch_frames(&self, visit: &mut dyn FnMut(Range<Gfn>)) -> Result<(), KernelError> {
        for (head, held) in self.batch_references()? {
            let page = self.page(head)?;
            // The page cache would hold a reference of its own.
            if page.kind != PageKind::Reserved && page.refcount == held && page.mapcount == UNMAPPED {
                let frames = self.compound_frames(head)?;
                visit(Gfn(frames.start)..Gfn(frames.end));
            }
        }
        Ok(())
    }

    /// How many references to each page the batches hold.
    pub fn batch_references(&self) -> Result<BTreeMap<Gfn, u32>, KernelError> {
        let layout = &self.profile.batches;
        let mut references: BTreeMap<Gfn, u32> = BTreeMap::new();
        for (name, _) in VARIABLES {
            let Some(variable) = layout.variables.iter().find(|v| v.symbol == *name) else { continue };
            let Some(symbol) = self.symbol(name) else { continue };
            for cpu in &self.per_cpu {
                for offset in &variable.batches {
                    let at = symbol.wrapping_add(*cpu).wrapping_add(*offset);
                    for head in self.batch(at)? {
                        *references.entry(head).or_default() += 1;
                    }
                }
            }
        }
        Ok(references)
    }

    fn batch(&self, at: Gva) -> Result<Vec<Gfn>, KernelError> {
        let layout = &self.profile.batches;
        let used = u64::from(self.u8(at.wrapping_add(layout.nr), WHAT)?);
        if used > layout.capacity {
            return Err(KernelError::Torn { what: WHAT, at, why: "it holds more than it can" });
        }
        let mut heads = Vec::new();
        for i in 0..used {
            let page = self.pointer(at.wrapping_add(layout.slots + 8 * i), WHAT)?;
            // The lowest bits may mark how the page came here.
            let torn = KernelError::Torn { what: WHAT, at, why: "an entry is no page" };
            heads.push(self.frame_of(Gva(page.0 & !7)).ok_or(torn)?);
        }
        Ok(heads)
    }
}
