//! Red-black trees (`lib/rbtree.c`), walked within bounds and in no order.

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct TreeLayout {
        root: offset("rb_root", &["rb_node"]),
        left: offset("rb_node", &["rb_left"]),
        right: offset("rb_node", &["rb_right"]),
    }
}

/// More nodes than any tree walked here can have in a guest of the largest size.
const TREE_LIMIT: u64 = 1 << 26;

impl Kernel<'_> {
    /// Calls `visit` with each `rb_node` of the tree of `root`, an `rb_root`. The first error ends the walk.
    pub(crate) fn for_each_in_tree(
        &self,
        root: Gva,
        what: &'static str,
        visit: &mut dyn FnMut(Gva) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let layout = &self.profile.tree;
        let mut todo = vec![self.pointer(root.wrapping_add(layout.root), what)?];
        let mut left = TREE_LIMIT;
        while let Some(node) = todo.pop() {
            if node.0 == 0 {
                continue;
            }
            left = left.checked_sub(1).ok_or(KernelError::Torn { what, at: root, why: "it does not end" })?;
            visit(node)?;
            todo.push(self.pointer(node.wrapping_add(layout.left), what)?);
            todo.push(self.pointer(node.wrapping_add(layout.right), what)?);
        }
        Ok(())
    }
}
