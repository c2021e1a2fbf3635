//! Asynchronous I/O (`fs/aio.c`): completions in a ring that the process maps, and requests under way.
//!
//! ```text
//! mm.ioctx_table -> kioctx_table: nr, table[] -> kioctx -> ring_pages[]: aio_ring (head, tail), io_events
//! aio_kiocb: a request; names its kioctx; ki_res is the event that it will become
//! ```
//! The process can write to all of the ring. Its header stays all the same.

use crate::btf::{Btf, BtfError};
use crate::layout::layout;
use crate::tasks::Process;
use crate::{Content, Kernel, KernelError};
use elision_memory::{Gva, PAGE_SIZE};
use std::collections::BTreeSet;

layout! {
    pub(crate) struct AioLayout {
        table: offset("mm_struct", &["ioctx_table"]),
        table_len: number("kioctx_table", &["nr"]),
        slots: offset("kioctx_table", &["table"]),
        pages: offset("kioctx", &["ring_pages", "ring_folios"]),
        page_count: number("kioctx", &["nr_pages"]),
        header: size("aio_ring"),
        request_context: offset("aio_kiocb", &["ki_ctx"]),
        request_data: offset("aio_kiocb", &["ki_res.data"]),
        request_result: offset("aio_kiocb", &["ki_res.res"]),
    }
}

impl AioLayout {
    /// `None` in kernels without asynchronous I/O.
    pub(crate) fn find(btf: &Btf) -> Result<Option<Self>, BtfError> {
        btf.struct_("kioctx").map(|_| Self::compile(btf)).transpose()
    }
}

const WHAT: &str = "asynchronous I/O";

impl Kernel<'_> {
    /// The contexts of a process, each a `kioctx`.
    pub fn aio_contexts(&self, process: &Process) -> Result<BTreeSet<Gva>, KernelError> {
        let mut contexts = BTreeSet::new();
        let (Some(layout), Some(mm)) = (&self.profile.aio, process.mm) else { return Ok(contexts) };
        let table = self.pointer(mm.wrapping_add(layout.table), WHAT)?;
        if table.0 == 0 {
            return Ok(contexts);
        }
        let count = self.number(table, layout.table_len, WHAT)?;
        if count > self.object_limit() {
            return Err(KernelError::Torn {
                what: WHAT,
                at: table,
                why: "its table is larger than the guest",
            });
        }
        for i in 0..count {
            let context = self.pointer(table.wrapping_add(layout.slots + 8 * i), WHAT)?;
            if context.0 != 0 {
                contexts.insert(context);
            }
        }
        Ok(contexts)
    }

    /// What stands in the ring of a context.
    pub fn aio_events(&self, context: Gva, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.aio else { return Ok(()) };
        let pages = self.pointer(context.wrapping_add(layout.pages), WHAT)?;
        let count = self.number(context, layout.page_count, WHAT)?;
        if count > self.ram().layout().frame_limit().0 {
            return Err(KernelError::Torn {
                what: WHAT,
                at: context,
                why: "its ring is larger than the guest",
            });
        }
        for i in 0..count {
            let page = self.pointer(pages.wrapping_add(8 * i), WHAT)?;
            if page.0 != 0 {
                let header = if i == 0 { layout.header } else { 0 };
                let len = (PAGE_SIZE as u64).saturating_sub(header);
                self.in_page(page, header, len, WHAT)?.into_iter().for_each(&mut *visit);
            }
        }
        Ok(())
    }

    /// Calls `visit` with each request: its context, and what the process has given it to know it by.
    pub fn aio_requests(&self, visit: &mut dyn FnMut(Gva, Content)) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.aio else { return Ok(()) };
        self.for_each_object("kiocb_cachep", &mut |request, _| {
            let at = |offset: u64| request.wrapping_add(offset);
            let context = self.pointer(at(layout.request_context), WHAT)?;
            visit(context, Content::Bytes(at(layout.request_data)..at(layout.request_result)));
            Ok(())
        })
    }
}
