//! What is left when nothing holds the secret any more: objects that the kernel has freed, and the stacks
//! of threads that ended. Several at once each time, because what is freed last is the first to be used again.

use super::Scene;
use elision_actor::secret::SECRET_LEN;
use std::ffi::CString;
use std::io;
use std::os::unix::net::UnixDatagram;

/// Objects in use at the same time.
const AT_ONCE: usize = 24;
/// With the header of a message still an object of 256 bytes.
const REPEATS: usize = 6;
const LEN: usize = REPEATS * SECRET_LEN;

#[repr(C)]
struct Message {
    kind: libc::c_long,
    text: [u8; LEN],
}

/// Messages of a System V queue, sent and received.
pub(super) fn messages(scene: &mut Scene<'_>) -> io::Result<()> {
    scene.whisper(|secret| {
        let mut message = Message { kind: 1, text: [0; LEN] };
        message.text.copy_from_slice(&secret.repeat(REPEATS));
        // SAFETY: the message outlives each call and has room for its text; the queue is this process's own.
        unsafe {
            let queue = libc::msgget(libc::IPC_PRIVATE, 0o600);
            check(queue.into())?;
            for _ in 0..AT_ONCE {
                check(libc::msgsnd(queue, (&raw const message).cast(), LEN, 0).into())?;
            }
            for _ in 0..AT_ONCE {
                let got = libc::msgrcv(queue, (&raw mut message).cast(), LEN, 0, 0);
                check(got.try_into().map_err(io::Error::other)?)?;
            }
            check(libc::msgctl(queue, libc::IPC_RMID, std::ptr::null_mut()).into())?;
        }
        Ok(())
    })
}

/// Datagrams between sockets, sent and read.
pub(super) fn datagrams(scene: &mut Scene<'_>) -> io::Result<()> {
    let (sender, receiver) = UnixDatagram::pair()?;
    sender.set_nonblocking(true)?;
    scene.whisper(|secret| {
        let text = secret.repeat(REPEATS);
        let mut sent = 0;
        while sent < AT_ONCE && sender.send(&text).is_ok() {
            sent += 1; // as many as the queue takes
        }
        for _ in 0..sent {
            receiver.recv(&mut [0; LEN])?;
        }
        if sent == 0 { Err(io::Error::other("nothing could be sent")) } else { Ok(()) }
    })?;
    scene.hold(sender);
    scene.hold(receiver);
    Ok(())
}

/// Values of extended attributes of a kind that does not exist: the kernel copies them and frees the copy.
pub(super) fn attributes(scene: &mut Scene<'_>) -> io::Result<()> {
    scene.whisper(|secret| {
        for repeats in [2, 4, 8, 16, 32, 64] {
            let value = secret.repeat(repeats);
            let (path, name) = (c"/", c"elision.played");
            // SAFETY: the names and the value outlive the call.
            let set = unsafe {
                libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
            };
            if set == 0 {
                return Err(io::Error::other("the filesystem keeps the attribute"));
            }
        }
        Ok(())
    })
}

/// Processes that end with the secret in their vector registers.
pub(super) fn registers(scene: &mut Scene<'_>) -> io::Result<()> {
    scene.whisper(|secret| {
        children(|| {
            let time = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            // SAFETY: reads the 32 bytes of the secret and the time, then ends this process.
            unsafe {
                std::arch::asm!(
                    "movdqu xmm6, [r12]", "movdqu xmm7, [r12 + 16]",
                    "movdqu xmm8, [r12]", "movdqu xmm9, [r12 + 16]",
                    "movdqu xmm14, [r12]", "movdqu xmm15, [r12 + 16]",
                    "mov eax, 35", "mov rdi, r13", "xor esi, esi", "syscall", // nanosleep
                    "2:", "mov eax, 231", "xor edi, edi", "syscall", "jmp 2b", // exit_group
                    in("r12") secret.as_ptr(), in("r13") std::ptr::from_ref(&time),
                    options(noreturn)
                )
            }
        })
    })
}

/// Processes whose last system calls have put the secret on their kernel stacks, and used it as a name.
pub(super) fn stacks(scene: &mut Scene<'_>) -> io::Result<()> {
    scene.whisper(|secret| {
        // In a folder that does not exist: the kernel takes the name and never looks it up.
        let path = CString::new([b"/nowhere/".as_slice(), &secret.repeat(4)].concat())?;
        // SAFETY: all zero is a valid address; the address and the path outlive the calls.
        children(|| unsafe {
            let mut address: libc::sockaddr_un = std::mem::zeroed();
            address.sun_family = 1; // AF_UNIX
            for (to, from) in address.sun_path.iter_mut().skip(1).zip(secret.repeat(3)) {
                *to = libc::c_char::from_ne_bytes([from]);
            }
            libc::access(path.as_ptr(), libc::F_OK);
            let socket = libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0);
            let len = u32::try_from(std::mem::size_of_val(&address)).unwrap_or(0);
            libc::connect(socket, (&raw const address).cast(), len);
            libc::_exit(0)
        })
    })
}

/// Lets several children act at the same time and waits for their end.
fn children(act: impl Fn()) -> io::Result<()> {
    for _ in 0..AT_ONCE {
        // SAFETY: played processes have one thread while they plant, and the child does not return.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                act();
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(1) }
            }
            _ => {}
        }
    }
    for _ in 0..AT_ONCE {
        let mut status = 0;
        // SAFETY: the status outlives the call.
        check(unsafe { libc::wait(&raw mut status) }.into())?;
        if status != 0 {
            return Err(io::Error::other("a child failed"));
        }
    }
    Ok(())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
