//! Perf events, which record the names of files that are mapped.

use super::Scene;
use elision_actor::secret::SECRET_LEN;
use rustix::fd::{AsFd, FromRawFd, OwnedFd};
use rustix::mm::{MapFlags, ProtFlags};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const SOFTWARE: u32 = 1;
const DUMMY: u64 = 9;
/// Bits of `perf_event_attr`: children too, mapped programs, mapped data.
const FLAGS: u64 = 1 << 1 | 1 << 8 | 1 << 17;
/// A page for the reader and eight for records.
const LEN: usize = 9 << 12;
const TIMES: usize = 8;

/// The first version of `perf_event_attr`, 64 bytes.
#[repr(C)]
struct Event {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample: u64,
    read: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    address: u64,
}

/// Records of maps of a file that had the secret for its name.
pub(super) fn mapped(scene: &mut Scene<'_>) -> io::Result<()> {
    let event = Event {
        kind: SOFTWARE,
        size: 64,
        config: DUMMY,
        period: 0,
        sample: 0,
        read: 0,
        flags: FLAGS,
        wakeup: 0,
        breakpoint: 0,
        address: 0,
    };
    for cpu in 0..std::thread::available_parallelism()?.get() {
        // SAFETY: the event outlives the call; it is of this process, on one CPU, in no group.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, std::ptr::from_ref(&event), 0, cpu, -1, 8_u64)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), LEN, protection, MapFlags::SHARED, &fd, 0)? };
        scene.hold(fd);
    }
    scene.whisper(|secret: &[u8; SECRET_LEN]| {
        let path: PathBuf = Path::new("/tmp").join(OsStr::from_bytes(&secret.repeat(2)));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.set_len(4096)?;
        for _ in 0..TIMES {
            let protection = ProtFlags::READ;
            // SAFETY: a new mapping at an address of the kernel's choice, of which nothing else knows.
            unsafe {
                let flags = MapFlags::PRIVATE;
                let at = rustix::mm::mmap(std::ptr::null_mut(), 4096, protection, flags, file.as_fd(), 0)?;
                rustix::mm::munmap(at, 4096)?;
            }
        }
        fs::remove_file(&path)
    })
}
