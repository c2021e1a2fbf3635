//! Whether the VM was restored, told by the guest's agent.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Where the agent tells of restores.
const SOCKET: &str = "/run/elision-agent/restored";

/// A descriptor that becomes readable when the VM was restored from a checkpoint, in guests with Elision's agent.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let mut watch = elision_mark::Watch::new()?;
/// watch.wait()?; // or wait for it together with others, by its descriptor
/// // fetch keys again, drop connections, draw new random numbers
/// # Ok(())
/// # }
/// ```
/// Without an agent [`Watch::new`] is an error, and [`Region::holds`](crate::Region::holds) tells of lost regions all the
/// same.
#[derive(Debug)]
pub struct Watch {
    socket: UnixStream,
}

impl Watch {
    /// Connects to the agent.
    pub fn new() -> io::Result<Self> {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { socket: UnixStream::connect(path)? })
    }

    /// Whether the VM was restored since this was asked last; does not wait. An error when the agent has ended: a new
    /// one will listen at the same place.
    pub fn restored(&mut self) -> io::Result<bool> {
        self.socket.set_nonblocking(true)?;
        let mut restored = false;
        loop {
            match self.socket.read(&mut [0; 64]) {
                Ok(0) if !restored => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(0) => return Ok(true),
                Ok(_) => restored = true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if restored || e.kind() == ErrorKind::WouldBlock => return Ok(restored),
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits for a restore.
    pub fn wait(&mut self) -> io::Result<()> {
        while !self.restored()? {
            self.socket.set_nonblocking(false)?;
            match self.socket.read(&mut [0; 64]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    #[test]
    fn each_restore_is_told_once_and_the_end_of_the_agent_is_an_error() {
        let path = std::env::temp_dir().join(format!("elision-watch-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let mut watch = Watch::at(&path).unwrap();
        let mut agent = listener.accept().unwrap().0;
        std::fs::remove_file(&path).unwrap();
        assert!(!watch.restored().unwrap());
        agent.write_all(b"restored\n").unwrap();
        assert!(watch.restored().unwrap() && !watch.restored().unwrap());
        agent.write_all(b"restored\n").unwrap();
        watch.wait().unwrap();
        drop(agent);
        assert_eq!(watch.restored().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
