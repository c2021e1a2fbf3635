//! System calls that sleep with a copy of the secret: a child makes the call, and once it sleeps its parent wipes
//! what the child gave, so that the kernel's copy is the only one.

use super::Scene;
use elision_actor::secret::SECRET_LEN;
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use rustix::mm::{MapFlags, ProtFlags};
use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// Room for the argument of a call.
const ROOM: usize = 64 << 10;
const IN_TIME: Duration = Duration::from_secs(30);
/// Long enough for a second part of a message.
const LONG: usize = 150;

/// Paths of two FIFOs that nobody writes to, a short and a long one, to be opened. Both lead through a folder
/// that is gone by the time they are looked for.
pub(super) fn open(scene: &mut Scene<'_>) -> io::Result<()> {
    for (form, prefix) in [("short", "/tmp/".to_owned()), ("long", format!("/tmp/{}", "./".repeat(1900)))] {
        let fifo = format!("/tmp/{}-{form}", scene.label);
        let name = CString::new(fifo.as_str())?;
        // SAFETY: the name outlives the call.
        check(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }.into())?;
        let folder = |secret: &[u8; SECRET_LEN]| [prefix.as_bytes(), &secret.repeat(3)].concat();
        let path =
            |secret: &[u8; SECRET_LEN]| [&folder(secret), "/..".as_bytes(), &fifo.as_bytes()[4..]].concat();
        scene.whisper(|secret| std::fs::create_dir(OsStr::from_bytes(&folder(secret))))?;
        scene.asleep(libc::SYS_openat, path, |at, _| {
            // SAFETY: the path ends with a zero, as the memory behind it is new.
            unsafe { libc::open(at.cast(), libc::O_RDONLY) };
        })?;
        scene.whisper(|secret| std::fs::remove_dir(OsStr::from_bytes(&folder(secret))))?;
    }
    Ok(())
}

/// A message of two parts, to be sent to a full System V queue.
pub(super) fn send_message(scene: &mut Scene<'_>) -> io::Result<()> {
    const FILL: usize = 8000;
    // SAFETY: makes a queue, no pointers.
    let queue = unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600) };
    check(queue.into())?;
    let filling = [1_u64; 1 + FILL / 8];
    // SAFETY: the message, a word for its kind and the text behind it, outlives the call.
    while unsafe { libc::msgsnd(queue, filling.as_ptr().cast(), FILL, libc::IPC_NOWAIT) } == 0 {}
    let message = |secret: &[u8; SECRET_LEN]| [&2_u64.to_ne_bytes()[..], &secret.repeat(LONG)].concat();
    scene.asleep(libc::SYS_msgsnd, message, |at, len| {
        // SAFETY: as much as this was written there.
        unsafe { libc::msgsnd(queue, at.cast(), len - 8, 0) };
    })
}

/// A datagram, to be sent to a socket that has as many as it takes.
pub(super) fn send_datagram(scene: &mut Scene<'_>) -> io::Result<()> {
    let path = format!("/tmp/{}.socket", scene.label);
    let _ = std::fs::remove_file(&path);
    let receiver = UnixDatagram::bind(&path)?;
    let sender = UnixDatagram::unbound()?;
    sender.connect(&path)?;
    sender.set_nonblocking(true)?;
    while sender.send(b"nothing").is_ok() {}
    sender.set_nonblocking(false)?;
    scene.asleep(
        libc::SYS_sendto,
        |secret| secret.repeat(LONG),
        |at, len| {
            // SAFETY: as much as this was written there.
            unsafe { libc::send(sender.as_raw_fd(), at.cast(), len, 0) };
        },
    )?;
    scene.hold(sender);
    scene.hold(receiver);
    Ok(())
}

/// The name of a unix socket that accepts nobody, to connect to.
pub(super) fn connect(scene: &mut Scene<'_>) -> io::Result<()> {
    const LEN: u32 = 99; // the family, a zero, three secrets
    let address = |secret: &[u8; SECRET_LEN]| {
        [&1_u16.to_ne_bytes()[..], &[0], &secret.repeat(3)].concat() // AF_UNIX, abstract
    };
    // SAFETY: no pointers; the descriptor is new and owned by nobody.
    let listener = unsafe {
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        check(socket.into())?;
        OwnedFd::from_raw_fd(socket)
    };
    let fd = listener.as_raw_fd();
    scene.whisper(|secret| {
        let address = address(secret);
        // SAFETY: the address is as long as told and outlives the call.
        check(unsafe { libc::bind(fd, address.as_ptr().cast(), LEN) }.into())
    })?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(fd, 0) }.into())?;
    scene.asleep(libc::SYS_connect, address, |at, _| {
        // The first gets the only place in the queue.
        for _ in 0..2 {
            // SAFETY: the address is as long as told.
            unsafe {
                let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
                libc::connect(socket, at.cast(), LEN);
            }
        }
    })?;
    scene.hold(listener);
    Ok(())
}

impl Scene<'_> {
    /// Lets a child sleep in the system call `number` by `call`, which gets what `argument` made of the secret.
    /// The child ends with this process.
    fn asleep(
        &self,
        number: libc::c_long,
        argument: impl FnOnce(&[u8; SECRET_LEN]) -> Vec<u8>,
        call: impl Fn(*const u8, usize),
    ) -> io::Result<()> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: new memory, at an address of the kernel's choice.
        let at = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), ROOM, protection, flags)? };
        let at = at.cast::<u8>();
        self.whisper(|secret| {
            let argument = argument(secret);
            assert!(argument.len() < ROOM - 8, "an argument that fits");
            // SAFETY: the memory has room for the length and the argument; only this child writes to it.
            unsafe {
                at.cast::<usize>().write(argument.len());
                std::ptr::copy_nonoverlapping(argument.as_ptr(), at.add(8), argument.len());
            }
            Ok(())
        })?;
        // SAFETY: the child that wrote the length has ended.
        let len = unsafe { at.cast::<usize>().read() };
        // SAFETY: played processes have one thread while they plant, and the child does not return.
        let child = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                // SAFETY: no pointers; the call only reads the argument; then this process ends.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    call(at.add(8), len);
                    libc::_exit(1)
                }
            }
            child => child,
        };
        let (begin, wanted) = (Instant::now(), format!("{number} "));
        while !std::fs::read_to_string(format!("/proc/{child}/syscall"))?.starts_with(&wanted) {
            if begin.elapsed() > IN_TIME {
                return Err(io::Error::other("the child does not sleep in its call"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // SAFETY: the kernel has copied what it needs, and the child does not look at it again.
        unsafe { std::ptr::write_bytes(at, 0, ROOM) };
        Ok(())
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
