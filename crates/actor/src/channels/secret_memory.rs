//! Secret memory: pages that the kernel takes out of its own map.

use super::Scene;
use elision_actor::secret::SECRET_LEN;
use rustix::fd::{FromRawFd, OwnedFd};
use rustix::mm::{MapFlags, ProtFlags};
use std::io;

const LEN: usize = 64 << 10;

/// Memory that the process maps.
pub(super) fn mapped(scene: &mut Scene<'_>) -> io::Result<()> {
    let file = filled(scene)?;
    let at = map(&file)?;
    for page in (0..LEN).step_by(4096) {
        // SAFETY: inside the mapping, which is never taken away.
        unsafe { at.add(page).read_volatile() };
    }
    scene.hold(file);
    Ok(())
}

/// Memory that the process has open only.
pub(super) fn open(scene: &mut Scene<'_>) -> io::Result<()> {
    let file = filled(scene)?;
    scene.hold(file);
    Ok(())
}

fn filled(scene: &Scene<'_>) -> io::Result<OwnedFd> {
    // SAFETY: makes a file, no pointers.
    let file = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and owned by nobody.
    let file = unsafe { OwnedFd::from_raw_fd(i32::try_from(file).map_err(io::Error::other)?) };
    rustix::fs::ftruncate(&file, LEN as u64)?;
    scene.whisper(|secret: &[u8; SECRET_LEN]| {
        let at = map(&file)?;
        let content = secret.repeat(LEN / SECRET_LEN);
        // SAFETY: the mapping is as long as the content, and nobody else writes to it.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), at, LEN) };
        Ok(())
    })?;
    Ok(file)
}

fn map(file: &OwnedFd) -> io::Result<*mut u8> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), LEN, protection, MapFlags::SHARED, file, 0)? };
    Ok(at.cast())
}
