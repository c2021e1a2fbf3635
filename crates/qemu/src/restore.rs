//! Starts QEMU on an image and lets the VM run.
//!
//! ```text
//! start QEMU (-incoming defer, own session) ─> connect ─> getfd ─> migrate-incoming fd: <──pipe── STATE
//!   ─> loaded? ─> cont ─> running? ─> leave QEMU to itself
//! ```
//! The state goes in through a pipe, so it works where QEMU may neither open files nor start programs. If
//! anything fails, QEMU is ended and the error carries the end of what it wrote to standard error.

use crate::error::{QemuError, Result};
use crate::qmp::Qmp;
use crate::sys;
use crate::vm::run_state;
use rustix::fs::MemfdFlags;
use serde_json::json;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START_LIMIT: Duration = Duration::from_secs(20);
const LOAD_LIMIT: Duration = Duration::from_secs(60);
const STDERR_TAIL: u64 = 4096;
const FD_NAME: &str = "elision-state";

/// How to start a restored VM.
#[derive(Clone, Debug)]
pub struct RestoreRequest<'a> {
    /// The command of [`for_restore`](crate::for_restore).
    pub command: &'a [String],
    /// The QMP socket in that command.
    pub qmp: &'a Path,
    /// The device state.
    pub state: &'a Path,
    /// Where relative paths of the command stand; `None` for here.
    pub folder: Option<&'a Path>,
    /// Where QEMU's standard error goes; `None` for nowhere that lasts.
    pub log: Option<&'a Path>,
    /// Whether the VM is to run; otherwise it stays paused.
    pub run: bool,
}

/// A restored VM.
#[derive(Debug)]
pub struct Restored {
    /// The QEMU process. It goes on when this is dropped.
    pub child: Child,
    /// The connection to it.
    pub qmp: Qmp,
}

impl Restored {
    /// Lets a VM run that was restored paused.
    pub fn go_on(&mut self) -> Result<()> {
        go_on(&mut self.qmp)
    }
}

/// Starts the VM. Returns when it runs.
pub fn restore(request: &RestoreRequest<'_>) -> Result<Restored> {
    let state = File::open(request.state)
        .map_err(QemuError::io(format!("open the device state {}", request.state.display())))?;
    free_socket(request.qmp)?;
    let mut errors = match request.log {
        Some(path) => File::options().create(true).append(true).read(true).open(path),
        None => {
            rustix::fs::memfd_create("qemu-stderr", MemfdFlags::CLOEXEC).map(File::from).map_err(Into::into)
        }
    }
    .map_err(QemuError::io("open a file for QEMU's errors"))?;
    let mut child = start(request, &errors)?;
    match load(request, &mut child, &state) {
        Ok(qmp) => Ok(Restored { child, qmp }),
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            let why = match e {
                QemuError::Restore { why, .. } => why,
                other => other.to_string(),
            };
            Err(QemuError::Restore { why, stderr: tail(&mut errors) })
        }
    }
}

/// Removes a socket left over from a VM that has ended: it would be taken for the new one.
fn free_socket(path: &Path) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let used = !found.file_type().is_socket() || std::os::unix::net::UnixStream::connect(path).is_ok();
    let removed = if used { Err(std::io::ErrorKind::AddrInUse.into()) } else { std::fs::remove_file(path) };
    removed.map_err(QemuError::io(format!("use {} as the QMP socket: it is taken", path.display())))
}

fn start(request: &RestoreRequest<'_>, errors: &File) -> Result<Child> {
    let (program, arguments) =
        request.command.split_first().ok_or_else(|| QemuError::Command { why: "it is empty".into() })?;
    let errors = errors.try_clone().map_err(QemuError::io("open a file for QEMU's errors"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    if let Some(folder) = request.folder {
        command.current_dir(folder);
    }
    sys::own_session(&mut command);
    command.spawn().map_err(QemuError::io(format!("start {program}")))
}

fn load(request: &RestoreRequest<'_>, child: &mut Child, state: &File) -> Result<Qmp> {
    let mut qmp = connect(request.qmp, child)?;
    let (read_end, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(QemuError::os("make a pipe for the device state"))?;
    let mut state = state.try_clone().map_err(QemuError::io("read the device state"))?;
    qmp.execute_with_descriptor("getfd", json!({"fdname": FD_NAME}), read_end.as_fd())?;
    drop(read_end);
    // The thread ends with the file, or with QEMU, which then has the only reading end.
    std::thread::spawn(move || {
        if let Err(e) = std::io::copy(&mut state, &mut File::from(write_end)) {
            tracing::debug!("QEMU did not take the whole device state: {e}");
        }
    });
    qmp.execute("migrate-incoming", json!({"uri": format!("fd:{FD_NAME}")}))?;
    wait_loaded(&mut qmp, child)?;
    if request.run {
        go_on(&mut qmp)?;
    }
    Ok(qmp)
}

fn go_on(qmp: &mut Qmp) -> Result<()> {
    qmp.take_events();
    qmp.execute("cont", json!({}))?;
    // QEMU has said so then. An answer to a question can take it 10 ms now, while the vCPUs start.
    if qmp.take_events().iter().any(|event| event.name == "RESUME") {
        return Ok(());
    }
    let now = run_state(qmp)?;
    if now.running { Ok(()) } else { Err(failed(format!("the VM is {:?} instead of running", now.name))) }
}

fn connect(socket: &Path, child: &mut Child) -> Result<Qmp> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match Qmp::connect(socket) {
            Ok(qmp) => return Ok(qmp),
            Err(e) => {
                alive(child)?;
                if Instant::now() > deadline {
                    return Err(e);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_loaded(qmp: &mut Qmp, child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + LOAD_LIMIT;
    while Instant::now() < deadline {
        let state = run_state(qmp);
        if let Err(QemuError::Closed { .. }) = state {
            // QEMU ends itself when it cannot load; give it the time to say why.
            std::thread::sleep(Duration::from_millis(50));
            alive(child)?;
        }
        let info = qmp.execute("query-migrate", json!({}))?;
        match info["status"].as_str().unwrap_or_default() {
            "failed" => {
                let why = info["error-desc"].as_str().unwrap_or("the device state was not loaded");
                return Err(failed(why));
            }
            "completed" if state?.name != "inmigrate" => return Ok(()),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Err(failed(format!("the device state was not loaded within {} s", LOAD_LIMIT.as_secs())))
}

fn alive(child: &mut Child) -> Result<()> {
    match child.try_wait() {
        Ok(Some(status)) => Err(failed(format!("QEMU ended with {status}"))),
        Ok(None) => Ok(()),
        Err(e) => Err(QemuError::io("look after QEMU")(e)),
    }
}

fn failed(why: impl Into<String>) -> QemuError {
    QemuError::Restore { why: why.into(), stderr: String::new() }
}

fn tail(errors: &mut File) -> String {
    let mut bytes = vec![];
    let len = errors.metadata().map_or(0, |m| m.len());
    let read = errors
        .seek(SeekFrom::Start(len.saturating_sub(STDERR_TAIL)))
        .and_then(|_| errors.take(STDERR_TAIL).read_to_end(&mut bytes));
    if read.is_err() {
        bytes.clear();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
