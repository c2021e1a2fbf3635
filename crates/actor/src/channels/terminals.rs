//! Terminals: input that nobody has read, output that nobody has taken, echoes, screens, serial ports.

use super::Scene;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{FlockOperation, flock};
use rustix::pty::OpenptFlags;
use rustix::termios::{Action, LocalModes, OptionalActions, tcflow, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Serial ports beside those of the testbed.
const SERIAL: [&str; 2] = ["/dev/ttyS2", "/dev/ttyS3"];
/// Asks for a virtual console that nothing has open.
const VT_OPENQRY: libc::Ioctl = 0x5600;

/// 2 KiB typed on a pseudo terminal that nobody reads from.
pub(super) fn pty_unread(scene: &mut Scene<'_>) -> io::Result<()> {
    let (master, slave) = pseudo_terminal()?;
    raw(&slave)?;
    scene.whisper(|secret| File::from(master.try_clone()?).write_all(&secret.repeat(64)))?;
    hold(scene, master, slave);
    Ok(())
}

/// 2 KiB written by a program on a pseudo terminal whose screen nobody looks at.
pub(super) fn pty_output(scene: &mut Scene<'_>) -> io::Result<()> {
    let (master, slave) = pseudo_terminal()?;
    raw(&slave)?;
    scene.whisper(|secret| File::from(slave.try_clone()?).write_all(&secret.repeat(64)))?;
    hold(scene, master, slave);
    Ok(())
}

/// Lines typed on a pseudo terminal that shows them.
pub(super) fn pty_echo(scene: &mut Scene<'_>) -> io::Result<()> {
    let (master, slave) = pseudo_terminal()?;
    scene.whisper(|secret| {
        let mut line = secret.to_vec();
        line.push(b'\n');
        File::from(master.try_clone()?).write_all(&line.repeat(16))
    })?;
    hold(scene, master, slave);
    Ok(())
}

/// Lines on the screen of a virtual console.
pub(super) fn vt_text(scene: &mut Scene<'_>) -> io::Result<()> {
    let mut number: libc::c_int = 0;
    let any = device("/dev/tty0")?;
    // SAFETY: writes one integer.
    if unsafe { libc::ioctl(any.as_raw_fd(), VT_OPENQRY, &raw mut number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let console = device(&format!("/dev/tty{number}"))?;
    scene.whisper(|secret| {
        let mut line = secret.to_vec();
        line.extend(b"\r\n");
        File::from(console.try_clone()?).write_all(&line.repeat(10))
    })?;
    scene.hold(console);
    Ok(())
}

/// 1 KiB that a serial port has not sent, because its output was stopped.
pub(super) fn serial(scene: &mut Scene<'_>) -> io::Result<()> {
    let port = free_port()?;
    raw(&port)?;
    tcflow(&port, Action::OOff)?;
    scene.whisper(|secret| File::from(port.try_clone()?).write_all(&secret.repeat(32)))?;
    scene.hold(port);
    Ok(())
}

fn hold(scene: &mut Scene<'_>, master: OwnedFd, slave: OwnedFd) {
    scene.hold(master);
    scene.hold(slave);
}

/// A serial port that no other played process has.
fn free_port() -> io::Result<OwnedFd> {
    for path in SERIAL {
        let port = device(path)?;
        if flock(&port, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::other("every serial port is taken"))
}

fn device(path: &str) -> io::Result<OwnedFd> {
    open(Path::new(path))
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?.into())
}

fn pseudo_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ptsname(&master, Vec::new())?;
    let slave = open(Path::new(slave.to_str().map_err(io::Error::other)?))?;
    Ok((master, slave))
}

/// Characters as they come, not shown.
fn raw(terminal: impl AsFd) -> io::Result<()> {
    let mut modes = tcgetattr(&terminal)?;
    modes.make_raw();
    modes.local_modes.remove(LocalModes::ECHO);
    Ok(tcsetattr(&terminal, OptionalActions::Now, &modes)?)
}
