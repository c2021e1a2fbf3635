//! BPF maps with the secret in keys and values.

use super::Scene;
use elision_actor::secret::SECRET_LEN;
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use rustix::process::{Resource, Rlimit};
use std::io;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const CPU_HASH: u32 = 5;
const CPU_ARRAY: u32 = 6;
const QUEUE: u32 = 22;
/// Elements are made when they are needed.
const NOT_IN_ADVANCE: u32 = 1;
const ENTRIES: u32 = 16;
const REPEATS: usize = 4;
const VALUE: usize = REPEATS * SECRET_LEN;
/// Room for the values of as many CPUs as a guest has.
const CPUS: usize = 64;

/// The first members of what `BPF_MAP_CREATE` takes.
#[repr(C)]
struct Shape {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

/// What `BPF_MAP_UPDATE_ELEM` takes.
#[repr(C)]
struct Update {
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// Values by number.
pub(super) fn array(scene: &mut Scene<'_>) -> io::Result<()> {
    map(scene, ARRAY, 4, 0)
}

/// Values for each CPU.
pub(super) fn of_cpus(scene: &mut Scene<'_>) -> io::Result<()> {
    map(scene, CPU_ARRAY, 4, 0)?;
    map(scene, CPU_HASH, 2 * SECRET_LEN, 0)
}

/// Keys and values, in elements made in advance and in others.
pub(super) fn hashes(scene: &mut Scene<'_>) -> io::Result<()> {
    map(scene, HASH, 2 * SECRET_LEN, 0)?;
    map(scene, HASH, 2 * SECRET_LEN, NOT_IN_ADVANCE)
}

/// Values in a row.
pub(super) fn queue(scene: &mut Scene<'_>) -> io::Result<()> {
    map(scene, QUEUE, 0, 0)
}

fn map(scene: &mut Scene<'_>, kind: u32, key_size: usize, flags: u32) -> io::Result<()> {
    // Older kernels count maps as locked memory.
    rustix::process::setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?;
    let size = |len: usize| u32::try_from(len).map_err(io::Error::other);
    let shape = Shape { kind, key_size: size(key_size)?, value_size: size(VALUE)?, entries: ENTRIES, flags };
    let map = bpf(MAP_CREATE, &shape)?;
    // SAFETY: the descriptor is new and owned by nobody.
    let map = unsafe { OwnedFd::from_raw_fd(i32::try_from(map).map_err(io::Error::other)?) };
    let number = u64::try_from(map.as_raw_fd()).map_err(io::Error::other)?;
    scene.whisper(|secret| {
        let value = secret.repeat(REPEATS * CPUS);
        for i in 0..ENTRIES / 2 {
            // A number, or the number and the secret.
            let mut key = secret.repeat(2);
            key[..4].copy_from_slice(&i.to_ne_bytes());
            let key = if key_size == 0 { 0 } else { key.as_ptr().addr() as u64 };
            bpf(MAP_UPDATE, &Update { map: number, key, value: value.as_ptr().addr() as u64, flags: 0 })?;
        }
        Ok(())
    })?;
    scene.hold(map);
    Ok(())
}

fn bpf<T>(command: libc::c_int, argument: &T) -> io::Result<libc::c_long> {
    // SAFETY: the argument is what the command takes, and what it points to outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(argument), std::mem::size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
