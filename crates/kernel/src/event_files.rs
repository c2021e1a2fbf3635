//! Files that tell of events: `epoll` with what a process registered, `eventfd` with its number.
//!
//! ```text
//! epoll:   private_data -> eventpoll.rbr: tree of epitem, each with epoll_event.data
//! eventfd: private_data -> eventfd_ctx.count
//! ```

use crate::layout::layout;
use crate::{Content, Kernel, KernelError, OpenFile};
use elision_memory::Gva;

layout! {
    pub(crate) struct EventFileLayout {
        registrations: optional("eventpoll", &["rbr.rb_root"]),
        node: optional("epitem", &["rbn"]),
        data: optional("epitem", &["event.data"]),
        count: optional("eventfd_ctx", &["count"]),
    }
}

const WHAT: &str = "epoll";
const NUMBER: u64 = 8;

impl Kernel<'_> {
    /// Whether an open file is an `epoll` or an `eventfd`.
    #[must_use]
    pub fn is_event_file(&self, file: &OpenFile) -> bool {
        ["eventpoll_fops", "eventfd_fops"].into_iter().any(|name| self.symbol(name) == Some(file.operations))
    }

    /// The numbers that its users gave to such a file.
    pub fn event_file_content(
        &self,
        file: &OpenFile,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.event_file;
        let mut number = |at: Gva| visit(Content::Bytes(at..at.wrapping_add(NUMBER)));
        if self.symbol("eventfd_fops") == Some(file.operations) {
            layout.count.into_iter().for_each(|count| number(file.private.wrapping_add(count)));
            return Ok(());
        }
        let (Some(tree), Some(node), Some(data)) = (layout.registrations, layout.node, layout.data) else {
            return Ok(());
        };
        self.for_each_in_tree(file.private.wrapping_add(tree), WHAT, &mut |at| {
            number(Gva(at.0.wrapping_sub(node)).wrapping_add(data));
            Ok(())
        })
    }
}
