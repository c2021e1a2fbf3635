//! A VM that waits for its state.

use crate::Failure;
use crate::support::cleanup;
use crate::support::machine::{command, socket};
use elision_qemu::Qmp;
use elision_testbed::GuestOptions;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);

/// Starts the same machine with some more words, stopped before its first instruction, and connects to it.
pub(crate) fn stopped_vm(options: &GuestOptions, folder: &Path, more: &[&str]) -> Result<Qmp, Failure> {
    let command = command(options, folder)?;
    let (program, words) = command.split_first().ok_or("The command is empty")?;
    let socket = socket(folder);
    let mut qemu = Command::new(program);
    qemu.args(words).args(more).arg("-S").arg("-qmp").arg(format!("unix:{socket},server=on,wait=off"));
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    cleanup::spawn(&mut qemu)?;
    let begin = Instant::now();
    loop {
        match Qmp::connect(Path::new(&socket)) {
            Ok(qmp) => return Ok(qmp),
            Err(error) if begin.elapsed() > LIMIT => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// How long the same machine takes to start with nothing in it, until QEMU has answered `cont`.
pub(crate) fn empty_start(options: &GuestOptions, folder: &Path) -> Result<Duration, Failure> {
    std::fs::create_dir(folder)?;
    let begin = Instant::now();
    let mut qmp = stopped_vm(options, folder, &[])?;
    qmp.execute("cont", serde_json::json!({}))?;
    let time = begin.elapsed();
    drop(qmp);
    cleanup::end_last();
    std::fs::remove_dir_all(folder)?;
    Ok(time)
}
