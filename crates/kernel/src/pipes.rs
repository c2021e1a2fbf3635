//! Pipes and FIFOs (`fs/pipe.c`): a ring of pages, and spare pages that were read and kept.
//!
//! ```text
//! pipe_inode_info: tail ... head index bufs[i & (ring_size - 1)]; spare pages keep what was read last
//! pipe_buffer: page, offset, len, ops: whose page it is
//! ```

use crate::layout::layout;
use crate::{Content, Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct PipeLayout {
        head: number("pipe_inode_info", &["head"]),
        tail: number("pipe_inode_info", &["tail"]),
        ring_size: number("pipe_inode_info", &["ring_size"]),
        bufs: offset("pipe_inode_info", &["bufs"]),
        spare: optional("pipe_inode_info", &["tmp_page", "prealloc.pages"]),
        spare_count: number_opt("pipe_inode_info", &["prealloc.count"]),
        buffer_size: size("pipe_buffer"),
        page: offset("pipe_buffer", &["page"]),
        offset: number("pipe_buffer", &["offset"]),
        len: number("pipe_buffer", &["len"]),
        operations: offset("pipe_buffer", &["ops"]),
    }
}

const WHAT: &str = "pipe";
/// `pipe-max-size` can be raised to 2 GiB, in pages.
const RING_LIMIT: u64 = 1 << 19;
/// More spare pages than any kernel keeps.
const SPARE_LIMIT: u64 = 64;

impl Kernel<'_> {
    /// What a pipe holds: unread data, and pages that it keeps for later with what was read from them.
    ///
    /// Pages of files that were spliced into it belong to the page cache and are passed over.
    pub fn pipe_content(&self, pipe: Gva, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let layout = &self.profile.pipe;
        let torn = |why| KernelError::Torn { what: WHAT, at: pipe, why };
        let member = |member| self.number(pipe, member, WHAT);
        let (head, tail, ring) = (member(layout.head)?, member(layout.tail)?, member(layout.ring_size)?);
        let used = head.wrapping_sub(tail) & u64::from(u32::MAX);
        if !ring.is_power_of_two() || ring > RING_LIMIT || used > ring {
            return Err(torn("its ring holds more than it can"));
        }
        let bufs = self.pointer(pipe.wrapping_add(layout.bufs), WHAT)?;
        let cached = self.require("page_cache_pipe_buf_ops")?;
        let own = self.require("anon_pipe_buf_ops")?;
        for i in 0..used {
            let slot = tail.wrapping_add(i) & (ring - 1);
            let buffer = bufs.wrapping_add(slot * layout.buffer_size);
            let page = self.pointer(buffer.wrapping_add(layout.page), WHAT)?;
            let operations = self.pointer(buffer.wrapping_add(layout.operations), WHAT)?;
            if operations == cached {
                continue;
            }
            if operations == own {
                // What stands around the unread part was read before.
                visit(Content::frame(self.frame_of(page).ok_or_else(|| torn("its page is no page"))?));
                continue;
            }
            let (offset, len) =
                (self.number(buffer, layout.offset, WHAT)?, self.number(buffer, layout.len, WHAT)?);
            self.in_page(page, offset, len, WHAT)?.into_iter().for_each(&mut *visit);
        }
        let Some(spare) = layout.spare else { return Ok(()) };
        let count = match layout.spare_count {
            Some(count) => self.number(pipe, count, WHAT)?,
            None => 1,
        };
        if count > SPARE_LIMIT {
            return Err(torn("it keeps more spare pages than it can"));
        }
        for i in 0..count {
            let page = self.pointer(pipe.wrapping_add(spare + 8 * i), WHAT)?;
            if page.0 != 0 {
                visit(Content::frame(self.frame_of(page).ok_or_else(|| torn("its spare page is no page"))?));
            }
        }
        Ok(())
    }
}
