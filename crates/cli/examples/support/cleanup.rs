//! Leaves nothing behind: every QEMU that was started is ended and the folder is removed, at a normal
//! end, after an error or a panic, and on Ctrl-C.

use super::Failure;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

static LEFT: Mutex<Left> = Mutex::new(Left { processes: Vec::new(), folder: None });

struct Left {
    processes: Vec<Pid>,
    folder: Option<PathBuf>,
}

/// Cleans up when it is dropped.
pub(crate) struct Cleanup(());

impl Cleanup {
    /// Makes a folder in `parent`, makes it the current one, and sees to its end.
    pub(crate) fn new(parent: &Path, prefix: &str) -> Result<Self, Failure> {
        // A restored VM is started by `elision restore`, which ends: its VM becomes a child of this process.
        set_child_subreaper(Some(rustix::process::getpid()))?;
        on_signals()?;
        let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?.keep();
        left().folder = Some(folder.clone());
        let cleanup = Self(());
        std::env::set_current_dir(&folder)?;
        Ok(cleanup)
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        clean();
    }
}

/// Starts a program that is ended at the end of this process.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
    let mut left = left();
    let child = command.spawn()?;
    left.processes.extend(i32::try_from(child.id()).ok().and_then(Pid::from_raw));
    Ok(child)
}

/// Adds a process that another one started.
pub(crate) fn adopt(pid: u64) -> Result<(), Failure> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("The process id is no process id")?;
    left().processes.push(pid);
    Ok(())
}

/// Ends the process that was started or adopted last.
pub(crate) fn end_last() {
    let last = left().processes.pop();
    last.into_iter().for_each(end);
}

fn clean() {
    let mut left = left();
    left.processes.drain(..).for_each(end);
    if let Some(folder) = left.folder.take() {
        let _ = std::env::set_current_dir("/");
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// Only children are ended: the number of one that was waited for may be another program's by now.
fn end(pid: Pid) {
    if matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
}

fn left() -> MutexGuard<'static, Left> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cleans up on Ctrl-C and its kin. To be called before there are other threads, which would get the signals.
fn on_signals() -> io::Result<()> {
    // SAFETY: a zeroed set is a valid place for `sigemptyset`, and all three calls get a live set.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => set,
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: the set and the number are live for the call.
        while unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {}
        eprintln!("\nStopped; the VMs and files of this run are removed");
        clean();
        std::process::exit(128 + signal);
    });
    Ok(())
}
