//! The way to the host: a stream of bytes. A virtio-serial port now; others need another [`Port`].
//!
//! A virtio-serial port (`drivers/char/virtio_console.c`) can be opened once. While no host is connected, reading gives
//! no bytes and does not wait, and writing waits.

use crate::error::{AgentError, Context};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the kernel lists its ports, each with its name.
const PORTS: &str = "/sys/class/virtio-ports";
/// How long to wait before a look whether a host has come.
const UNTIL_HOST: Duration = Duration::from_millis(100);

/// What came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// So many bytes.
    Bytes(usize),
    /// Nothing in that time.
    Nothing,
    /// Nobody is connected.
    Gone,
}

/// A stream of bytes to a host, who may come and go.
pub(crate) trait Port {
    /// Waits for bytes, at most so long.
    fn read(&mut self, buffer: &mut [u8], limit: Duration) -> Result<Incoming, AgentError>;
    /// Writes all bytes, or fails after this time.
    fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), AgentError>;
}

/// A virtio-serial port.
#[derive(Debug)]
pub(crate) struct VirtioPort {
    file: File,
    path: PathBuf,
}

impl VirtioPort {
    /// Opens a device, or the port that has this name.
    pub(crate) fn open(path: Option<&Path>, name: &str) -> Result<Self, AgentError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => find(Path::new(PORTS), name).ok_or_else(|| AgentError::NoPort(name.to_owned()))?,
        };
        let flags = rustix::fs::OFlags::NONBLOCK.bits().try_into().unwrap_or(0);
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        Ok(Self { file: file.context("open", &path)?, path })
    }

    fn wait(&self, what: PollFlags, limit: Duration) -> Result<bool, AgentError> {
        let limit = Timespec::try_from(limit).ok();
        match poll(&mut [PollFd::new(&self.file, what)], limit.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e).context("wait for", &self.path),
        }
    }
}

impl Port for VirtioPort {
    fn read(&mut self, buffer: &mut [u8], limit: Duration) -> Result<Incoming, AgentError> {
        if !self.wait(PollFlags::IN, limit)? {
            return Ok(Incoming::Nothing);
        }
        match self.file.read(buffer) {
            Ok(0) => {
                std::thread::sleep(limit.min(UNTIL_HOST));
                Ok(Incoming::Gone)
            }
            Ok(n) => Ok(Incoming::Bytes(n)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(Incoming::Nothing)
            }
            Err(e) => Err(e).context("read", &self.path),
        }
    }

    fn write(&mut self, mut bytes: &[u8], limit: Duration) -> Result<(), AgentError> {
        let until = Instant::now() + limit;
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(AgentError::Late("An answer to the host"));
                    }
                    self.wait(PollFlags::OUT, left.min(UNTIL_HOST))?;
                    // Without a host, waiting ends at once.
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => return Err(e).context("write to", &self.path),
            }
        }
        Ok(())
    }
}

/// The device of the port with this name.
fn find(ports: &Path, name: &str) -> Option<PathBuf> {
    let mut ports = fs::read_dir(ports).ok()?.flatten();
    let port =
        ports.find(|port| fs::read_to_string(port.path().join("name")).is_ok_and(|n| n.trim() == name))?;
    Some(Path::new("/dev").join(port.file_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let ports = tempfile::tempdir().unwrap();
        for (device, name) in [("vport0p1", "org.qemu.guest_agent.0"), ("vport0p2", "org.elision.agent.0")] {
            fs::create_dir(ports.path().join(device)).unwrap();
            fs::write(ports.path().join(device).join("name"), format!("{name}\n")).unwrap();
        }
        assert_eq!(find(ports.path(), "org.elision.agent.0"), Some("/dev/vport0p2".into()));
        assert_eq!(find(ports.path(), "org.elision.agent"), None);
    }
}
