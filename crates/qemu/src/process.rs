//! The QEMU process behind a QMP socket: who it is and how it was started.

use crate::error::{QemuError, Result};
use crate::qmp::Qmp;
use std::io;
use std::path::PathBuf;

/// The process that runs the VM.
#[derive(Clone, Debug)]
pub struct QemuProcess {
    /// Its process id.
    pub pid: u32,
    /// Its executable.
    pub exe: PathBuf,
    /// Its command line, program first.
    pub command: Vec<String>,
    /// The folder in which relative paths of the command line stand.
    pub folder: PathBuf,
}

impl QemuProcess {
    /// The process that listens at the other end of the connection.
    pub fn behind(qmp: &Qmp) -> Result<Self> {
        let peer = rustix::net::sockopt::socket_peercred(qmp.socket())
            .map_err(QemuError::os("ask who is behind the QMP socket"))?;
        let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0);
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"))
            .map_err(QemuError::io(format!("see the executable of process {pid}")))?;
        let name = exe.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if !name.contains("qemu") && !name.contains("kvm") {
            return Err(QemuError::NotQemu { pid, exe });
        }
        let folder = std::fs::read_link(format!("/proc/{pid}/cwd"))
            .map_err(QemuError::io(format!("see the working directory of process {pid}")))?;
        Ok(Self { pid, exe, command: command_line(pid)?, folder })
    }

    /// Whether one of its threads waits until it can write into a pipe. `None` where the host's kernel does not tell
    /// what threads wait for.
    pub(crate) fn waits_for_pipe(&self) -> Option<bool> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
        let places = threads.flatten().map(|thread| std::fs::read_to_string(thread.path().join("wchan")));
        // One that waits for nothing has "0". `pipe_write`, with Linux 6.18 `anon_pipe_write` (`fs/pipe.c`).
        let places = places.flatten().filter(|place| place != "0");
        places.map(|place| place.ends_with("pipe_write")).reduce(|a, b| a | b)
    }
}

fn command_line(pid: u32) -> Result<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline"))
        .map_err(QemuError::io(format!("read the command line of process {pid}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| QemuError::io(format!("use the command line of process {pid}"))(io::Error::other(e)))?;
    Ok(text.strip_suffix('\0').unwrap_or(&text).split('\0').map(String::from).collect())
}
