//! Starts QEMU so that it ends with this process, however this process ends.
//!
//! The kernel's parent-death signal follows the thread that started the child, and test threads
//! end long before their process. One thread that lives as long as the process starts them all.

use crate::error::Error;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, PoisonError};

type Job = (Command, Sender<io::Result<Child>>);

static JOBS: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, queue) = channel::<Job>();
    std::thread::spawn(move || {
        for (mut command, answer) in queue {
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(jobs)
});

/// Starts a program that is killed when this process ends.
pub(crate) fn spawn(mut command: Command) -> Result<Child, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
    let (answer, started) = channel();
    let gone = || io::Error::other("the thread that starts programs is gone");
    let sent = JOBS.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer));
    let child = sent.map_err(|_| gone()).and_then(|()| started.recv().map_err(|_| gone())).and_then(|c| c);
    child.map_err(|source| Error::Run { program, source })
}
