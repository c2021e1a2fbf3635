//! The one call into the kernel for which there is no safe way: the only unsafe code of the agent.

use rustix::fd::AsFd;
use rustix::ioctl::{NoArg, ioctl, opcode};

/// `RNDRESEEDCRNG` of `include/uapi/linux/random.h`.
const RESEED: rustix::ioctl::Opcode = opcode::none(b'R', 7);

/// Lets the kernel make its random numbers from what has been stirred in until now, at once.
pub(crate) fn reseed(device: impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: this request has no argument and touches no memory of the process.
    unsafe { ioctl(device, NoArg::<RESEED>::new()) }
}
