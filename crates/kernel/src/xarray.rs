//! XArrays (`lib/xarray.c`), and the IDRs that are made of them.
//!
//! ```text
//! entry: node if its low bits are 10 and it is above 4096; below 4096 with low bits 10 a sibling of an
//! earlier slot; else a value
//! node: shift (u8) ... slots[64]
//! ```

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct XarrayLayout {
        shift: offset("xa_node", &["shift"]),
        slots: offset("xa_node", &["slots"]),
        slot_count: count("xa_node", "slots"),
    }
}

/// Gets an entry and the budget.
type Visit<'v> = dyn FnMut(u64, &mut u64) -> Result<(), KernelError> + 'v;

const SIBLINGS_END: u64 = 4096;
/// Said when the budget is spent.
pub(crate) const TOO_MANY: &str = "it holds more than the guest has room for";
/// No node has more.
const SLOT_LIMIT: u64 = 64;

impl Kernel<'_> {
    /// Calls `visit` with each entry that is no node, below the entry in the array's head. Each node is taken
    /// from `budget`, and `visit` takes from it what its entry stands for.
    pub(crate) fn for_each_in_xarray(
        &self,
        head: u64,
        what: &'static str,
        budget: &mut u64,
        visit: &mut Visit<'_>,
    ) -> Result<(), KernelError> {
        self.xarray_entry(head, 64, what, budget, visit)
    }

    fn xarray_entry(
        &self,
        entry: u64,
        above: u8,
        what: &'static str,
        budget: &mut u64,
        visit: &mut Visit<'_>,
    ) -> Result<(), KernelError> {
        if entry == 0 || (entry & 3 == 2 && entry <= SIBLINGS_END) {
            return Ok(());
        }
        if entry & 3 != 2 {
            return visit(entry, budget);
        }
        let layout = &self.profile.xarray;
        let torn = |why| KernelError::Torn { what, at: Gva(entry), why };
        *budget = budget.checked_sub(1).ok_or(torn(TOO_MANY))?;
        let node = Gva(entry & !3);
        let shift = self.u8(node.wrapping_add(layout.shift), what)?;
        if shift >= above {
            return Err(torn("its nodes form a loop"));
        }
        for i in 0..layout.slot_count.min(SLOT_LIMIT) {
            let slot = self.u64(node.wrapping_add(layout.slots + 8 * i), what)?;
            self.xarray_entry(slot, shift, what, budget, visit)?;
        }
        Ok(())
    }
}
