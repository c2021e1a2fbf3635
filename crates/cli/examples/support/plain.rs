//! QEMU's own snapshot, to compare with: the VM is stopped, its migration stream goes to a file, and the
//! VM runs on; a VM with `-incoming` takes the stream in.

use super::{Failure, cleanup};
use elision_qemu::Qmp;
use serde_json::json;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);
const FD: &str = "snapshot";

/// How long a save took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// From `stop` to the answer to `cont`.
    pub(crate) pause: Duration,
    /// From the connection until the file is synced.
    pub(crate) total: Duration,
}

/// Saves the VM behind the QMP socket `socket` to the new file `path`.
pub(crate) fn save(socket: &Path, path: &Path) -> Result<Times, Failure> {
    let begin = Instant::now();
    let file = File::create_new(path)?;
    let mut qmp = Qmp::connect(socket)?;
    // Zero is "no limit"; QEMU's default is 128 MiB/s.
    qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 0}))?;
    let stopped = Instant::now();
    qmp.execute("stop", json!({}))?;
    let sent = send(&mut qmp, &file);
    qmp.execute("cont", json!({}))?;
    let pause = stopped.elapsed();
    sent?;
    file.sync_all()?;
    Ok(Times { pause, total: begin.elapsed() })
}

fn send(qmp: &mut Qmp, file: &File) -> Result<(), Failure> {
    qmp.execute_with_descriptor("getfd", json!({"fdname": FD}), file.as_fd())?;
    qmp.execute("migrate", json!({"uri": format!("fd:{FD}")}))?;
    wait_completed(qmp)
}

/// Starts a VM with `command` on the saved stream; returns when it runs.
pub(crate) fn restore(command: &[String], socket: &Path, path: &Path) -> Result<(), Failure> {
    let mut file = File::open(path)?;
    let (program, words) = command.split_first().ok_or("The command is empty")?;
    let mut qemu = Command::new(program);
    qemu.args(words).args(["-incoming", "defer", "-S"]);
    qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = cleanup::spawn(&mut qemu)?;
    let begin = Instant::now();
    let mut qmp = loop {
        match Qmp::connect(socket) {
            Ok(qmp) => break qmp,
            Err(e) if begin.elapsed() > LIMIT => return Err(e.into()),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            return Err(format!("QEMU ended with {status} instead of taking its own snapshot in").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // QEMU takes a stream in from a pipe at least as fast as from the file itself.
    let (out, into) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    qmp.execute_with_descriptor("getfd", json!({"fdname": FD}), out.as_fd())?;
    drop(out);
    std::thread::spawn(move || std::io::copy(&mut file, &mut File::from(into)));
    qmp.execute("migrate-incoming", json!({"uri": format!("fd:{FD}")}))?;
    wait_completed(&mut qmp)?;
    qmp.execute("cont", json!({}))?;
    Ok(())
}

/// Waits for the end of a migration.
pub(crate) fn wait_completed(qmp: &mut Qmp) -> Result<(), Failure> {
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        let info = qmp.execute("query-migrate", json!({}))?;
        match info["status"].as_str().unwrap_or_default() {
            "completed" => return Ok(()),
            "failed" | "cancelled" => return Err(format!("QEMU's own snapshot failed: {info}").into()),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Err(format!("QEMU's own snapshot took longer than {} s", LIMIT.as_secs()).into())
}
