//! Buffers of perf events (`kernel/events/ring_buffer.c`): records with names of files, of programs and samples of
//! what a process did.
//!
//! ```text
//! file: private_data -> perf_event: rb -> perf_buffer: user_page; data_pages[nr_pages]
//! ```

use crate::layout::layout;
use crate::{Content, Kernel, KernelError, OpenFile};
use elision_memory::PAGE_SIZE;

layout! {
    pub(crate) struct PerfLayout {
        buffer: optional("perf_event", &["rb"]),
        count: number_opt("perf_buffer", &["nr_pages"]),
        pages: optional("perf_buffer", &["data_pages"]),
    }
}

const WHAT: &str = "perf buffer";

impl Kernel<'_> {
    /// What the events behind an open file have recorded. Nothing for other files.
    pub fn perf_content(&self, file: &OpenFile, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let layout = &self.profile.perf;
        let (Some(buffer), Some(count), Some(pages)) = (layout.buffer, layout.count, layout.pages) else {
            return Ok(());
        };
        if self.symbol("perf_fops") != Some(file.operations) || file.private.0 == 0 {
            return Ok(());
        }
        let buffer = self.pointer(file.private.wrapping_add(buffer), WHAT)?;
        if buffer.0 == 0 {
            return Ok(()); // nobody has mapped it
        }
        let count = self.number(buffer, count, WHAT)?;
        let torn = |why| KernelError::Torn { what: WHAT, at: buffer, why };
        if count > self.ram.layout().frame_limit().0 {
            return Err(torn("it has more pages than the guest"));
        }
        for i in 0..count {
            let page = self.pointer(buffer.wrapping_add(pages + 8 * i), WHAT)?;
            let end = page.checked_add(PAGE_SIZE as u64).filter(|_| page.page_offset() == 0);
            visit(Content::Bytes(page..end.ok_or_else(|| torn("a page of it is no page"))?));
        }
        Ok(())
    }
}
