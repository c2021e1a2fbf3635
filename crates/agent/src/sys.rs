//! The two calls into the kernel for which there is no safe way: the only unsafe code of the agent.

use rustix::fd::AsFd;
use rustix::ioctl::{NoArg, ioctl, opcode};
use std::io;

/// `RNDRESEEDCRNG` of `include/uapi/linux/random.h`.
const RESEED: rustix::ioctl::Opcode = opcode::none(b'R', 7);

/// Lets the kernel make its random numbers from what has been stirred in until now, at once.
pub(crate) fn reseed(device: impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: this request has no argument and touches no memory of the process.
    unsafe { ioctl(device, NoArg::<RESEED>::new()) }
}

/// Whether the calling thread goes before all ordinary ones (sched(7)). What it starts does not.
pub(crate) fn go_first(on: bool) -> io::Result<()> {
    let (policy, priority) =
        if on { (libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1) } else { (libc::SCHED_OTHER, 0) };
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads the structure, which lives as long as the call.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
