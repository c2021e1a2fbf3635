//! Messages that nobody has received, and shared memory that nobody has attached.

use super::Scene;
use elision_actor::secret::SECRET_LEN;
use rustix::fd::{FromRawFd, OwnedFd};
use std::ffi::CString;
use std::io;

/// More than the first page of a message, so that it goes on in a second part.
const REPEATS: usize = 150;
const MESSAGE_LEN: usize = REPEATS * SECRET_LEN;

#[repr(C)]
struct Message {
    kind: libc::c_long,
    text: [u8; MESSAGE_LEN],
}

/// A message of two parts in a System V queue that the process used last.
pub(super) fn system_v(scene: &mut Scene<'_>) -> io::Result<()> {
    // SAFETY: makes a queue, no pointers.
    let queue = check(unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600) })?;
    scene.whisper(|secret| {
        let mut message = Message { kind: 2, text: [0; MESSAGE_LEN] };
        message.text.copy_from_slice(&secret.repeat(REPEATS));
        send(queue, &message, MESSAGE_LEN)
    })?;
    let mut empty = Message { kind: 1, text: [0; MESSAGE_LEN] };
    send(queue, &empty, 8)?;
    // SAFETY: the message has room for eight bytes and more.
    let got = unsafe { libc::msgrcv(queue, (&raw mut empty).cast(), 8, 1, 0) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn send(queue: i32, message: &Message, len: usize) -> io::Result<()> {
    // SAFETY: `len` is at most what the message holds.
    check(unsafe { libc::msgsnd(queue, std::ptr::from_ref(message).cast(), len, 0) }).map(drop)
}

/// Two messages in a POSIX queue.
pub(super) fn posix(scene: &mut Scene<'_>) -> io::Result<()> {
    let name = CString::new(format!("/{}", scene.label))?;
    // SAFETY: all zero is a valid value.
    let mut shape: libc::mq_attr = unsafe { std::mem::zeroed() };
    (shape.mq_maxmsg, shape.mq_msgsize) = (4, MESSAGE_LEN.try_into().map_err(io::Error::other)?);
    // SAFETY: the name and the attributes outlive the call; the descriptor is new and owned by nobody.
    let queue = unsafe {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC;
        let queue = check(libc::mq_open(name.as_ptr(), flags, 0o600, &raw mut shape))?;
        libc::mq_unlink(name.as_ptr());
        OwnedFd::from_raw_fd(queue)
    };
    let fd = rustix::fd::AsRawFd::as_raw_fd(&queue);
    scene.whisper(|secret| {
        let text = secret.repeat(REPEATS);
        for priority in [1, 7] {
            // SAFETY: the text outlives the call.
            check(unsafe { libc::mq_send(fd, text.as_ptr().cast(), text.len(), priority) })?;
        }
        Ok(())
    })?;
    scene.hold(queue);
    Ok(())
}

/// A System V shared memory segment that the process made and that nobody has attached.
pub(super) fn detached(scene: &mut Scene<'_>) -> io::Result<()> {
    const LEN: usize = 64 << 10;
    // SAFETY: makes a segment, no pointers.
    let segment = check(unsafe { libc::shmget(libc::IPC_PRIVATE, LEN, 0o600) })?;
    scene.whisper(|secret| {
        // SAFETY: the new mapping is LEN bytes long and nobody else's.
        unsafe {
            let at = libc::shmat(segment, std::ptr::null(), 0);
            if at.addr() == usize::MAX {
                return Err(io::Error::last_os_error());
            }
            let bytes = std::slice::from_raw_parts_mut(at.cast::<u8>(), LEN);
            bytes.chunks_exact_mut(SECRET_LEN).for_each(|part| part.copy_from_slice(secret));
            check(libc::shmdt(at)).map(drop)
        }
    })
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
