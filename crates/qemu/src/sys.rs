//! The two places where this crate needs unsafe code: descriptors inherited by number, and a session of
//! its own for a child process.

use crate::error::{QemuError, Result};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Closes every descriptor above standard error.
///
/// For a process that has just begun: nothing in it may own a descriptor yet.
pub(crate) fn close_inherited() -> Result<()> {
    let numbers = {
        let folder = std::fs::read_dir("/proc/self/fd").map_err(QemuError::io("list open descriptors"))?;
        let number = |name: std::ffi::OsString| name.to_str().and_then(|n| n.parse::<RawFd>().ok());
        folder.flatten().filter_map(|entry| number(entry.file_name())).collect::<Vec<_>>()
    };
    for fd in numbers.into_iter().filter(|&fd| fd > 2) {
        // The descriptor that listed the folder is among the numbers and closed by now.
        if std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok() {
            // SAFETY: it is open, and the caller promises that nothing in this process owns a descriptor
            // above 2: it is left over from the parent.
            unsafe { rustix::io::close(fd) };
        }
    }
    Ok(())
}

/// Gives the child a session of its own, so that no terminal and no signal to our group reaches it.
pub(crate) fn own_session(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one system call, which is safe there.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
}
