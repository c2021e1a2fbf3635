//! io_uring (`io_uring/`): the rings that a process shares with the kernel, and its requests under way.
//!
//! ```text
//! task -> io_uring_task.xa -> io_tctx_node -> io_ring_ctx <- private_data of the ring's file
//! io_ring_ctx -> rings:    io_rings (heads, tails), completions, order of submissions
//!             -> sq_sqes:  submissions
//!             -> cq_overflow_list: completions that found no room
//!             -> io_bl_xa: io_buffer_list, some with a ring of buffers
//! io_kiocb: a request, on many lists; names its io_ring_ctx
//! ```
//! A process writes to all of a ring's pages as it likes, so the kernel relies on nothing in them. The heads and
//! tails stay all the same.

use crate::btf::{Btf, BtfError};
use crate::layout::layout;
use crate::tasks::Process;
use crate::{Content, Kernel, KernelError, OpenFile};
use elision_memory::{Gva, PAGE_SIZE};
use std::collections::BTreeSet;
use std::ops::Range;

layout! {
    pub(crate) struct UringLayout {
        of_task: offset("task_struct", &["io_uring"]),
        contexts: offset("io_uring_task", &["xa.xa_head"]),
        context: offset("io_tctx_node", &["ctx"]),
        flags: number("io_ring_ctx", &["flags"]),
        rings: offset("io_ring_ctx", &["rings"]),
        completions: offset("io_rings", &["cqes"]),
        completion_count: number("io_ring_ctx", &["cq_entries"]),
        completion: size("io_uring_cqe"),
        order: offset("io_ring_ctx", &["sq_array"]),
        submissions: offset("io_ring_ctx", &["sq_sqes"]),
        submission_count: number("io_ring_ctx", &["sq_entries"]),
        submission: size("io_uring_sqe"),
        overflow: offset("io_ring_ctx", &["cq_overflow_list"]),
        overflow_link: offset("io_overflow_cqe", &["list"]),
        overflow_completion: offset("io_overflow_cqe", &["cqe"]),
        large_completion: optional("io_uring_cqe", &["big_cqe"]),
        buffers: optional("io_ring_ctx", &["io_bl_xa.xa_head"]),
        buffer_flags: number_opt("io_buffer_list", &["flags"]),
        buffer_mask: number_opt("io_buffer_list", &["mask"]),
        buffer_ring: optional("io_buffer_list", &["buf_ring"]),
        request_context: offset("io_kiocb", &["ctx"]),
        request_data: offset("io_kiocb", &["cqe.user_data", "user_data"]),
    }
}

impl UringLayout {
    /// `None` in kernels without io_uring.
    pub(crate) fn find(btf: &Btf) -> Result<Option<Self>, BtfError> {
        btf.struct_("io_tctx_node").map(|_| Self::compile(btf)).transpose()
    }
}

const WHAT: &str = "io_uring";
const USER_DATA: u64 = 8;
const INDEX: u64 = 4;
/// `struct io_uring_buf`.
const BUFFER: u64 = 16;
/// `IORING_SETUP_SQE128` and `IORING_SETUP_CQE32`: twice as large.
const LARGE_SUBMISSIONS: u64 = 1 << 10;
const LARGE_COMPLETIONS: u64 = 1 << 11;
/// `IOBL_BUF_RING`.
const IS_RING: u64 = 1;
/// More than `IORING_MAX_CQ_ENTRIES`.
const ENTRY_LIMIT: u64 = 1 << 17;

impl Kernel<'_> {
    /// The ring behind an open file, if it is one: its `io_ring_ctx`.
    #[must_use]
    pub fn io_ring_of(&self, file: &OpenFile) -> Option<Gva> {
        let is_ring =
            self.profile.io_uring.is_some() && self.symbol("io_uring_fops") == Some(file.operations);
        is_ring.then_some(file.private)
    }

    /// The rings that a process has used, open or not.
    pub fn io_rings_used_by(&self, process: &Process) -> Result<BTreeSet<Gva>, KernelError> {
        let mut rings = BTreeSet::new();
        let Some(layout) = &self.profile.io_uring else { return Ok(rings) };
        let mut budget = self.object_limit();
        for thread in process.threads.iter().filter(|thread| !thread.dead) {
            let of_task = self.pointer(thread.task.wrapping_add(layout.of_task), WHAT)?;
            if of_task.0 == 0 {
                continue;
            }
            let head = self.u64(of_task.wrapping_add(layout.contexts), WHAT)?;
            self.for_each_in_xarray(head, WHAT, &mut budget, &mut |node, _| {
                rings.insert(self.pointer(Gva(node).wrapping_add(layout.context), WHAT)?);
                Ok(())
            })?;
        }
        Ok(rings)
    }

    /// What stands in the pages of a ring, in its completions that found no room, and in its buffer rings.
    pub fn io_ring_content(&self, ring: Gva, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.io_uring else { return Ok(()) };
        let flags = self.number(ring, layout.flags, WHAT)?;
        let entries = |member| self.number(ring, member, WHAT).map(|n| n.min(ENTRY_LIMIT));
        let bytes =
            |count: u64, size: u64, twice: u64| count.saturating_mul(size) << u32::from(flags & twice != 0);
        let (completions, submissions) =
            (entries(layout.completion_count)?, entries(layout.submission_count)?);
        let completions = bytes(completions, layout.completion, LARGE_COMPLETIONS);
        let order = bytes(submissions, INDEX, 0);
        let submissions = bytes(submissions, layout.submission, LARGE_SUBMISSIONS);
        let member = |offset: u64| self.pointer(ring.wrapping_add(offset), WHAT);
        let mut pages = |from: Gva, header: u64, len: u64| -> Result<(), KernelError> {
            if from.0 != 0 {
                let all = self.shared_pages(from, header.saturating_add(len))?;
                visit(Content::Bytes(from.wrapping_add(header)..all.end));
            }
            Ok(())
        };
        pages(member(layout.rings)?, layout.completions, completions)?;
        pages(member(layout.order)?, 0, order)?;
        pages(member(layout.submissions)?, 0, submissions)?;
        self.overflown(layout, ring, flags, visit)?;
        self.buffer_rings(layout, ring, visit)
    }

    fn overflown(
        &self,
        layout: &UringLayout,
        ring: Gva,
        flags: u64,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let large = layout.large_completion.filter(|_| flags & LARGE_COMPLETIONS != 0);
        self.for_each_in_list(ring.wrapping_add(layout.overflow), WHAT, &mut |link| {
            let entry = Gva(link.0.wrapping_sub(layout.overflow_link));
            let completion = entry.wrapping_add(layout.overflow_completion);
            visit(Content::Bytes(completion..completion.wrapping_add(USER_DATA)));
            if let Some(behind) = large {
                let behind = completion.wrapping_add(behind);
                visit(Content::Bytes(behind..behind.wrapping_add(layout.completion)));
            }
            Ok(())
        })
    }

    /// Rings of buffers that the kernel has made, and that the process maps. Others are memory of the process.
    fn buffer_rings(
        &self,
        layout: &UringLayout,
        ring: Gva,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let (Some(lists), Some(flags), Some(mask), Some(buffers)) =
            (layout.buffers, layout.buffer_flags, layout.buffer_mask, layout.buffer_ring)
        else {
            return Ok(());
        };
        let head = self.u64(ring.wrapping_add(lists), WHAT)?;
        self.for_each_in_xarray(head, WHAT, &mut self.object_limit(), &mut |list, _| {
            let list = Gva(list);
            let at = self.pointer(list.wrapping_add(buffers), WHAT)?;
            if self.number(list, flags, WHAT)? & IS_RING != 0 && at.0 != 0 {
                let count = self.number(list, mask, WHAT)?.saturating_add(1);
                visit(Content::Bytes(self.shared_pages(at, count.saturating_mul(BUFFER))?));
            }
            Ok(())
        })
    }

    /// Calls `visit` with each request: its ring, and what the process has given it to know it by.
    pub fn io_requests(&self, visit: &mut dyn FnMut(Gva, Content)) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.io_uring else { return Ok(()) };
        self.for_each_object("req_cachep", &mut |request, _| {
            let ring = self.pointer(request.wrapping_add(layout.request_context), WHAT)?;
            let data = request.wrapping_add(layout.request_data);
            visit(ring, Content::Bytes(data..data.wrapping_add(USER_DATA)));
            Ok(())
        })
    }

    /// Where that stands in the objects of a slab cache, if they are requests. Readers of a request that was freed
    /// do not look at it.
    pub(crate) fn io_request_data_in(&self, cache: Gva) -> Result<Option<(u64, u64)>, KernelError> {
        let (Some(layout), Some(requests)) = (&self.profile.io_uring, self.symbol("req_cachep")) else {
            return Ok(None);
        };
        let data = layout.request_data;
        Ok((self.pointer(requests, WHAT)? == cache).then_some((data, data.saturating_add(USER_DATA))))
    }

    /// The whole pages behind `len` bytes that the kernel shares with a process, and the rest of the block that
    /// they were taken from: the process may have mapped all of it.
    fn shared_pages(&self, at: Gva, len: u64) -> Result<Range<Gva>, KernelError> {
        const PAGE: u64 = PAGE_SIZE as u64;
        let torn = |why| KernelError::Torn { what: WHAT, at, why };
        let end = at.0.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE));
        let end = end.ok_or_else(|| torn("its pages end outside memory"))?;
        let Some(gpa) = self.direct(at) else { return Ok(at..Gva(end)) };
        let block = self.compound_frames(gpa.gfn())?;
        let block_end = self.direct_address(elision_memory::Gfn(block.end).gpa());
        Ok(at..block_end.max(Gva(end)))
    }
}
