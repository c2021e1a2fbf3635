//! Asynchronous I/O: the ring of events of a process, and requests under way.

use super::Scene;
use super::lent::pieces;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::AsRawFd;
use std::io;

const EVENTS: libc::c_long = 64;
/// `IOCB_CMD_POLL`.
const POLL: u16 = 5;
/// `struct aio_ring`, before the events.
const HEADER: usize = 32;
const PAGE: usize = 4096;

/// `struct iocb`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Request {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    more_flags: u32,
    result_fd: u32,
}

/// The secret all over the events of a ring.
pub(super) fn ring(scene: &mut Scene<'_>) -> io::Result<()> {
    let context = setup()?;
    scene.whisper(|secret| {
        let text = secret.repeat((PAGE - HEADER) / secret.len());
        let from = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
        // The context is where the ring is mapped, which children do not inherit.
        let start = std::ptr::without_provenance_mut(context + HEADER);
        let to = libc::iovec { iov_base: start, iov_len: text.len() };
        // SAFETY: the text outlives the call, and the parent uses nothing of what is written.
        let written =
            unsafe { libc::process_vm_writev(libc::getppid(), &raw const from, 1, &raw const to, 1, 0) };
        if usize::try_from(written) == Ok(text.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
    })
}

/// Requests that wait, and events of requests that are done.
pub(super) fn requests(scene: &mut Scene<'_>) -> io::Result<()> {
    let context = setup()?;
    let (never, now) = (eventfd(0, EventfdFlags::CLOEXEC)?, eventfd(1, EventfdFlags::CLOEXEC)?);
    let files = [never.as_raw_fd().unsigned_abs(), now.as_raw_fd().unsigned_abs()];
    let requests = scene.lend(|secret| {
        let buffer = u64::from(libc::POLLIN.unsigned_abs());
        pieces(secret)
            .map(|data| files.map(|fd| Request { data, opcode: POLL, fd, buffer, ..Request::default() }))
    })?;
    let first: *mut Request = requests.as_ptr().cast();
    let mut all = [std::ptr::null_mut(); 8];
    for (i, request) in all.iter_mut().enumerate() {
        *request = first.wrapping_add(i);
    }
    // SAFETY: the array and the requests that it points to outlive the call.
    let taken = unsafe { libc::syscall(libc::SYS_io_submit, context, all.len(), all.as_mut_ptr()) };
    if usize::try_from(taken) != Ok(all.len()) {
        return Err(io::Error::last_os_error());
    }
    scene.hold(never);
    scene.hold(now);
    Ok(())
}

fn setup() -> io::Result<usize> {
    let mut context = 0_usize;
    // SAFETY: the kernel writes the context.
    match unsafe { libc::syscall(libc::SYS_io_setup, EVENTS, &raw mut context) } {
        0 => Ok(context),
        _ => Err(io::Error::last_os_error()),
    }
}
