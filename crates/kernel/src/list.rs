//! Kernel lists, walked within bounds: `list_head` rings and chains of single pointers.

use crate::{Kernel, KernelError};
use elision_memory::Gva;

/// More elements than any list walked here can hold in a guest of the largest size.
pub(crate) const LIST_LIMIT: u64 = 1 << 28;

impl Kernel<'_> {
    /// Calls `visit` with the address of each `list_head` in the ring of `head`, without `head`.
    ///
    /// Each element's back pointer is checked, so a ring that was cut open or forged is an error
    /// and a ring without `head` in it ends: its second pass would enter an element through
    /// another predecessor.
    pub(crate) fn for_each_in_list(
        &self,
        head: Gva,
        what: &'static str,
        visit: &mut dyn FnMut(Gva) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let mut previous = head;
        let mut at = self.pointer(head, what)?;
        for _ in 0..LIST_LIMIT {
            if at == head {
                return Ok(());
            }
            if self.pointer(at.wrapping_add(8), what)? != previous {
                return Err(KernelError::Torn {
                    what,
                    at,
                    why: "the back pointer of a list entry does not match",
                });
            }
            visit(at)?;
            previous = at;
            at = self.pointer(at, what)?;
        }
        Err(KernelError::Torn { what, at: head, why: "the list does not end" })
    }
}
