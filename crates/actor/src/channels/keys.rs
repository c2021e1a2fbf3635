//! Keys of the kernel's key retention service.

use super::Scene;
use std::io;

const JOIN_SESSION_KEYRING: libc::c_long = 1;
const SESSION_KEYRING: libc::c_long = -3;

/// A key in a session of the process's own.
pub(super) fn user(scene: &mut Scene<'_>) -> io::Result<()> {
    // SAFETY: asks for a new session without a name.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0_usize) })?;
    scene.whisper(|secret| {
        let text = secret.repeat(8);
        let (kind, name) = (c"user", c"elision:played");
        // SAFETY: all pointers are to live memory of the lengths told.
        check(unsafe {
            libc::syscall(
                libc::SYS_add_key,
                kind.as_ptr(),
                name.as_ptr(),
                text.as_ptr(),
                text.len(),
                SESSION_KEYRING,
            )
        })
    })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
