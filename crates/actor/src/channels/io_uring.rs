//! io_uring: rings that the kernel shares with a process, and requests under way.

use super::Scene;
use super::lent::pieces;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io_uring::{
    IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringOp, io_uring_enter, io_uring_params,
    io_uring_setup, io_uring_sqe, io_uring_user_data,
};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::io;
use std::mem::zeroed;
use std::sync::atomic::{AtomicU32, Ordering};

/// Fills a page with submissions.
const MANY: u32 = 64;
/// Completions have room for two rounds.
const FEW: u32 = 8;
const PAGE: usize = 4096;

/// A ring of which the process has only the descriptor.
struct Ring {
    fd: OwnedFd,
    params: io_uring_params,
}

/// The same, mapped.
struct Mapped {
    rings: *mut u8,
    completions: usize,
    rings_len: usize,
    submissions: *mut io_uring_sqe,
    submissions_len: usize,
    order: *mut u32,
    tail: *const AtomicU32,
}

impl Ring {
    fn new(entries: u32) -> io::Result<Self> {
        // SAFETY: all zero are the parameters of a plain ring, without descriptors in them.
        let mut params: io_uring_params = unsafe { zeroed() };
        // SAFETY: as above.
        let fd = unsafe { io_uring_setup(entries, &mut params)? };
        Ok(Self { fd, params })
    }

    fn map(&self) -> io::Result<Mapped> {
        let (submissions, completions) = (size(self.params.sq_entries)?, size(self.params.cq_entries)?);
        let (order, first) = (size(self.params.sq_off.array)?, size(self.params.cq_off.cqes)?);
        let len = (order + 4 * submissions).max(first + 16 * completions).next_multiple_of(PAGE);
        let submissions_len = (submissions * size_of::<io_uring_sqe>()).next_multiple_of(PAGE);
        let rings = map(&self.fd, len, IORING_OFF_SQ_RING)?;
        let tail = size(self.params.sq_off.tail)?;
        // SAFETY: the kernel tells where the parts stand inside of what was just mapped.
        unsafe {
            Ok(Mapped {
                rings,
                completions: first,
                rings_len: len,
                submissions: map(&self.fd, submissions_len, IORING_OFF_SQES)?.cast(),
                submissions_len,
                order: rings.add(order).cast(),
                tail: rings.add(tail).cast(),
            })
        }
    }

    fn enter(&self, count: u32) -> io::Result<()> {
        // SAFETY: the requests point to no memory.
        let taken = unsafe { io_uring_enter(&self.fd, count, 0, IoringEnterFlags::empty())? };
        if taken == count { Ok(()) } else { Err(io::Error::other("the kernel took only a part")) }
    }
}

impl Mapped {
    /// Fills everything behind the heads and tails.
    fn fill(&self, text: &[u8]) {
        let parts = [
            (self.rings.wrapping_add(self.completions), self.rings_len - self.completions),
            (self.submissions.cast(), self.submissions_len),
        ];
        for (start, len) in parts {
            for offset in (0..=len - text.len()).step_by(text.len()) {
                // SAFETY: inside of a mapping that belongs to this process alone.
                unsafe { start.add(offset).copy_from_nonoverlapping(text.as_ptr(), text.len()) };
            }
        }
    }

    /// Puts requests into the ring, known by the parts of the secret.
    fn queue(&self, count: u32, template: &io_uring_sqe, names: &[u64]) {
        for (i, name) in (0..count).zip(names.iter().cycle()) {
            let mut request = *template;
            request.user_data = io_uring_user_data::from_u64(*name);
            // SAFETY: the ring has at least as many entries, and nothing is under way in it.
            unsafe {
                self.submissions.add(i as usize).write(request);
                self.order.add(i as usize).write(i);
            }
        }
        // SAFETY: the tail is a number that the kernel reads.
        unsafe { &*self.tail }.fetch_add(count, Ordering::Release);
    }
}

/// The secret all over a ring that the process maps.
pub(super) fn mapped(scene: &mut Scene<'_>) -> io::Result<()> {
    let ring = Ring::new(MANY)?;
    ring.map()?; // never given back
    scatter(scene, ring)
}

/// The same in a ring that no process maps any more.
pub(super) fn unmapped(scene: &mut Scene<'_>) -> io::Result<()> {
    let ring = Ring::new(MANY)?;
    scatter(scene, ring)
}

fn scatter(scene: &mut Scene<'_>, ring: Ring) -> io::Result<()> {
    scene.whisper(|secret| {
        ring.map()?.fill(secret);
        Ok(())
    })?;
    scene.hold(ring.fd);
    Ok(())
}

/// Requests that wait, completions, and completions for which the ring had no room.
pub(super) fn requests(scene: &mut Scene<'_>) -> io::Result<()> {
    let ring = Ring::new(FEW)?;
    let never = eventfd(0, EventfdFlags::CLOEXEC)?;
    scene.whisper(|secret| {
        let mut wait = nothing();
        wait.opcode = IoringOp::PollAdd;
        wait.fd = never.as_fd().as_raw_fd();
        wait.op_flags.poll32_events = u32::from(libc::POLLIN.unsigned_abs());
        ring.map()?.queue(FEW, &wait, &pieces(secret));
        Ok(())
    })?;
    ring.enter(FEW)?;
    scene.whisper(|secret| {
        let mapped = ring.map()?;
        for _ in 0..3 {
            mapped.queue(FEW, &nothing(), &pieces(secret));
            ring.enter(FEW)?;
        }
        Ok(())
    })?;
    scene.hold(never);
    scene.hold(ring.fd);
    Ok(())
}

/// A request that is done at once.
fn nothing() -> io_uring_sqe {
    // SAFETY: all zero is the request to do nothing.
    unsafe { zeroed() }
}

fn map(fd: &OwnedFd, len: usize, offset: u64) -> io::Result<*mut u8> {
    let (null, protection) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    Ok(unsafe { mmap(null, len, protection, MapFlags::SHARED, fd, offset)? }.cast())
}

fn size(n: u32) -> io::Result<usize> {
    usize::try_from(n).map_err(io::Error::other)
}
