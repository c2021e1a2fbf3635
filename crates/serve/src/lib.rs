//! The memory of an image as a file that QEMU can map, whose pages are read when they are first needed.
//!
//! ```text
//! elision restore ── starts ──> server: opens the image, makes a FUSE file system with one file   (mount.rs)
//!        <── descriptor of the file ──
//!   ── inherited ──> QEMU maps it private; a page that is missing:
//!                       kernel ── read ──> server ── unpacks a chunk ──> page cache ──> QEMU      (file_system.rs)
//! elision ends          QEMU ends: nobody has the file, the kernel ends the file system, the server ends
//! ```
//! The file system is mounted nowhere: it is known by its descriptor alone, so nothing is left of it, however its
//! users end. Pages that were read stay in the kernel's page cache, which all VMs that map the file share, and
//! which the kernel can take back. Limit: the server lives as long as the VMs. When it is killed, a VM that
//! needs a page that is not in the cache any more gets SIGBUS; so it does for a page that is damaged in the image.

mod ahead;
mod chunks;
mod file_system;
mod mount;
mod server;

pub use ahead::read_ahead_of;
pub use server::{ServeError, ServeOptions, Served, serve_main};

use std::ffi::OsString;

/// The name of a server's file, by the server's process id. It is what `/proc/PID/fd` shows of a VM that uses it.
#[must_use]
pub fn file_name(server: u32) -> OsString {
    format!("elision-ram-{server}").into()
}
