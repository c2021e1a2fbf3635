//! A process that shares things with others: each of its ends meets an end of another one, by name.
//!
//! | end | what |
//! |---|---|
//! | `listen=NAME`, `connect=NAME` | a unix connection, accepted |
//! | `backlog=NAME`, `connect=NAME` | the same, not accepted |
//! | `tcp-listen=PORT`, `tcp-connect=PORT` | a TCP connection over the loopback device |
//! | `udp=PORT-PORT` | a UDP socket bound to the first port and connected to the second |
//! | `fifo-in=NAME`, `fifo-out=NAME` | a FIFO, the reader first |
//! | `pty=NAME`, `on-pty=NAME` | a pseudo terminal: its master, and who leads a session on it |
//! | `memory=NAME`, `memory-in=NAME` | a mapped file in memory, written by one and read by the other |
//! | `file=NAME`, `file-in=NAME` | an open file, written by one and read by the other |
//! | `eventfd` | an eventfd, for a child to inherit |
//! | `trace=LABEL` | the process of that label, traced |
//! | `child=LABEL` | a child that inherits the ends before it, and does no more |
//!
//! A NAME may be a path. A file `/run/meet-LABEL` with the process id in it says that all ends stand. Its secret is in private memory.

use crate::region::{PAGE, Region};
use elision_actor::secret::{DEFAULT_SEED, secret};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

/// Private memory with the secret.
const HEAP: usize = 64 << 10;

/// Takes its ends, says so and sleeps.
pub(crate) fn run(label: &str, ends: &str) -> io::Result<()> {
    let mut held = Held { files: Vec::new(), waiting: Vec::new() };
    for end in ends.split(',').filter(|end| !end.is_empty()) {
        let (kind, name) = end.split_once('=').unwrap_or((end, ""));
        held.take(kind, name).map_err(|e| io::Error::new(e.kind(), format!("{end}: {e}")))?;
    }
    for listener in std::mem::take(&mut held.waiting) {
        held.files.push(listener.accept()?);
    }
    stay(label)
}

fn stay(label: &str) -> io::Result<()> {
    Region::anonymous(HEAP, false, false)?.fill(&secret(DEFAULT_SEED, label));
    std::fs::write(path(&format!("{label}.new")), std::process::id().to_string())?;
    std::fs::rename(path(&format!("{label}.new")), path(label))?;
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// A name, or a path.
fn path(name: &str) -> PathBuf {
    if name.starts_with('/') { name.into() } else { format!("/run/meet-{name}").into() }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// The connection takes the place of the listener, whose own descriptor would be one more thing to share.
    fn accept(self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Unix(listener) => listener.accept()?.0.into(),
            Self::Tcp(listener) => listener.accept()?.0.into(),
        })
    }
}

/// What keeps the ends.
struct Held {
    files: Vec<OwnedFd>,
    /// Accepted last: the others must be there before somebody comes.
    waiting: Vec<Listener>,
}

impl Held {
    fn take(&mut self, kind: &str, name: &str) -> io::Result<()> {
        let number = |text: &str| text.parse::<u16>().map_err(io::Error::other);
        let local = |port: u16| (Ipv4Addr::LOCALHOST, port);
        match kind {
            "listen" => self.waiting.push(Listener::Unix(UnixListener::bind(path(name))?)),
            "backlog" => self.hold(UnixListener::bind(path(name))?),
            "connect" => self.hold(again(|| UnixStream::connect(path(name)))?),
            "tcp-listen" => self.waiting.push(Listener::Tcp(TcpListener::bind(local(number(name)?))?)),
            "tcp-connect" => {
                let port = number(name)?;
                self.hold(again(|| TcpStream::connect(local(port)))?);
            }
            "udp" => {
                let (own, other) = name.split_once('-').unwrap_or((name, name));
                let socket = UdpSocket::bind(local(number(own)?))?;
                socket.connect(local(number(other)?))?;
                self.hold(socket);
            }
            "fifo-in" => {
                rustix::fs::mkfifoat(rustix::fs::CWD, path(name), Mode::RUSR | Mode::WUSR)?;
                self.hold(rustix::fs::open(path(name), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?);
            }
            "fifo-out" => self.hold(again(|| {
                Ok(rustix::fs::open(path(name), OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty())?)
            })?),
            "pty" => {
                let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
                let master = rustix::pty::openpt(flags)?;
                rustix::pty::grantpt(&master)?;
                rustix::pty::unlockpt(&master)?;
                let slave = rustix::pty::ptsname(&master, Vec::new())?;
                std::os::unix::fs::symlink(slave.to_str().map_err(io::Error::other)?, path(name))?;
                self.hold(master);
            }
            "on-pty" => {
                rustix::process::setsid()?;
                let slave = again(|| OpenOptions::new().read(true).write(true).open(path(name)))?;
                rustix::process::ioctl_tiocsctty(&slave)?;
                self.hold(slave);
            }
            "memory" => {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path(name))?;
                file.set_len(PAGE as u64)?;
                Region::of_file(file.as_fd(), PAGE, true)?.touch();
            }
            "memory-in" => {
                let file = again(|| File::open(path(name)))?;
                Region::of_file(file.as_fd(), PAGE, false)?;
            }
            "file" => self.hold(OpenOptions::new().append(true).create(true).open(path(name))?),
            "file-in" => self.hold(again(|| File::open(path(name)))?),
            "eventfd" => self.hold(eventfd(0, EventfdFlags::empty())?),
            "trace" => {
                let pid: libc::pid_t =
                    again(|| std::fs::read_to_string(path(name)))?.parse().map_err(io::Error::other)?;
                // SAFETY: attaches to another process and touches no memory.
                if unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            // SAFETY: the only thread forks, and the child never returns.
            "child" => match unsafe { libc::fork() } {
                -1 => return Err(io::Error::last_os_error()),
                0 => stay(name)?,
                _ => {}
            },
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such end")),
        }
        Ok(())
    }

    fn hold(&mut self, end: impl Into<OwnedFd>) {
        self.files.push(end.into());
    }
}

/// Tries until the other end is there.
fn again<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..2000 {
        if let Ok(done) = attempt() {
            return Ok(done);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    attempt()
}
