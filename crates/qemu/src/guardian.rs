//! A small process that lets the VM run on when the saver dies, however it dies.
//!
//! ```text
//! saver ── starts ──> guardian                  a session of its own, one socket, nothing else
//!   stop VM ... save ... resume ... rename
//!   "pipe", descriptor  holds the other end of a snapshot's stream
//!   "done" ─────────> ends
//!   dies (socket ends) > connect again, cancel a migration or read it to its end, continue the VM if it ran
//!                        before, put settings back, look again for a second, remove the unfinished image
//! ```
//! QEMU's QMP socket takes the guardian's connection as soon as the kernel has closed the saver's.
//!
//! A snapshot must be read to its end. QEMU that cannot go on with one waits for its global lock before it takes
//! its guard from the memory, and whoever has the lock may be waiting for just that: the VM would hang for good.

use crate::error::{QemuError, Result};
use crate::migration::{cancel, is_migrating};
use crate::qmp::Qmp;
use crate::settings::MigrationSettings;
use crate::sys;
use crate::vm::run_state;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Sent when nothing is left to guard.
const DONE: u8 = b'd';
/// Sent with a snapshot's pipe.
const PIPE: u8 = b'p';
/// Sent back when the guardian is on its guard.
const READY: u8 = b'r';
/// How long the VM is sought.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long a `stop` of the dead saver may still be on its way.
const WATCH: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);

/// What is to be done when the saver dies. Made by [`Vm::duty`](crate::Vm::duty).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duty {
    /// The VM's QMP socket.
    pub socket: PathBuf,
    /// Whether the VM ran before the save.
    pub resume: bool,
    /// The unfinished image.
    pub partial: Option<PathBuf>,
    /// QEMU's migration settings before the save.
    pub settings: MigrationSettings,
}

/// The saver's handle to its guardian. Dropped without [`Guardian::dismiss`], the guardian acts.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    socket: Option<UnixStream>,
}

impl Guardian {
    /// Starts `program` with `hidden` and one argument more; it must then call [`guard_main`] with that
    /// argument. Returns when the guardian is on its guard.
    pub fn spawn(program: &Path, hidden: &[&str], duty: &Duty) -> Result<Self> {
        let doing = "start the guardian process";
        let (socket, other) = UnixStream::pair().map_err(QemuError::io(doing))?;
        let mut child = Command::new(program)
            .args(hidden)
            .arg(duty.to_argument()?)
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .map_err(QemuError::io(doing))?;
        let mut answer = [0];
        let read = child.stdout.take().map(|mut out| out.read_exact(&mut answer));
        match read {
            Some(Ok(())) if answer == [READY] => Ok(Self { child, socket: Some(socket) }),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                Err(QemuError::io(doing)(std::io::Error::other("it does not answer")))
            }
        }
    }

    /// Tells the guardian that the VM runs and the image is whole, and waits for its end.
    pub fn dismiss(mut self) -> Result<()> {
        let socket = self.socket.take();
        let told = socket.map_or(Ok(()), |mut socket| socket.write_all(&[DONE]));
        let ended = self.child.wait().map(drop);
        told.and(ended).map_err(QemuError::io("dismiss the guardian process"))
    }

    /// Gives the guardian the reading end of a snapshot's pipe, which it reads to its end should it have to.
    pub(crate) fn hold(&self, pipe: BorrowedFd<'_>) -> Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let pipes = [pipe];
        ancillary.push(SendAncillaryMessage::ScmRights(&pipes));
        rustix::net::sendmsg(socket, &[IoSlice::new(&[PIPE])], &mut ancillary, SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(QemuError::os("give the guardian process the snapshot's pipe"))
    }

    /// Lets the guardian act now, and waits until it has.
    pub fn act(mut self) -> Result<()> {
        self.socket = None;
        self.child.wait().map(drop).map_err(QemuError::io("wait for the guardian process"))
    }
}

impl Duty {
    fn to_argument(&self) -> Result<String> {
        let absolute = |p: &PathBuf| std::path::absolute(p).unwrap_or_else(|_| p.clone());
        let duty = Self {
            socket: absolute(&self.socket),
            partial: self.partial.as_ref().map(absolute),
            ..self.clone()
        };
        serde_json::to_string(&duty).map_err(|e| QemuError::io("tell the guardian its duty")(e.into()))
    }
}

/// The guardian's whole life. Call it first of all in a process started by [`Guardian::spawn`].
///
/// `remove` removes an unfinished image and tells whether it is gone. It must spare one that a new saver has
/// begun under the same name: this guardian looks after the VM for a second, in which the user may try again.
#[must_use]
pub fn guard_main(argument: &str, remove: impl FnOnce(&Path) -> bool) -> ExitCode {
    let Ok(duty) = serde_json::from_str::<Duty>(argument) else { return ExitCode::from(2) };
    if rustix::process::setsid().is_err() || sys::close_inherited().is_err() {
        return ExitCode::FAILURE;
    }
    if !announce() {
        return ExitCode::FAILURE;
    }
    let pipe = match wait_for_saver() {
        Saver::Done => return ExitCode::SUCCESS,
        Saver::Died(pipe) => pipe,
    };
    let drains = pipe.is_some();
    if let Some(mut pipe) = pipe {
        // Nobody waits for this thread: QEMU tells when the migration has ended.
        std::thread::spawn(move || std::io::copy(&mut pipe, &mut std::io::sink()));
    }
    let resumed = look_after(&duty, drains);
    let removed = match &duty.partial {
        Some(folder) if folder.exists() => remove(folder),
        _ => true,
    };
    if resumed.is_ok() && removed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How a save ended.
enum Saver {
    Done,
    /// With the pipe of its last snapshot, if it made one.
    Died(Option<File>),
}

/// Waits for the saver's end, and takes pipes until then.
fn wait_for_saver() -> Saver {
    let mut held = None;
    loop {
        let mut told = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut told)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(std::io::stdin(), &mut parts, &mut ancillary, flags) {
            Ok(message) if message.bytes == 1 => {}
            Err(Errno::INTR) => continue,
            _ => return Saver::Died(held),
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(pipes) = message {
                held = pipes.map(File::from).last();
            }
        }
        if told == [DONE] {
            return Saver::Done;
        }
    }
}

fn announce() -> bool {
    let mut out = std::io::stdout();
    out.write_all(&[READY]).and_then(|()| out.flush()).is_ok()
}

/// Makes sure that the VM is as it was, also against a `stop` that is still on its way.
fn look_after(duty: &Duty, drains: bool) -> Result<()> {
    let begin = Instant::now();
    let mut quiet_since: Option<Instant> = None;
    let mut connection: Option<Qmp> = None;
    loop {
        let step = match &mut connection {
            Some(qmp) => restore_vm(qmp, duty, drains),
            None => Qmp::connect(&duty.socket).map(|qmp| {
                connection = Some(qmp);
                false
            }),
        };
        match step {
            Ok(true) => {
                if quiet_since.get_or_insert_with(Instant::now).elapsed() > WATCH || !duty.resume {
                    return Ok(());
                }
            }
            Ok(false) => {
                quiet_since = None;
                continue;
            }
            Err(e) if begin.elapsed() > CONNECT_LIMIT => return Err(e),
            // QEMU itself is gone.
            Err(QemuError::Connect { .. }) if begin.elapsed() > WATCH => return Ok(()),
            Err(_) => connection = None,
        }
        std::thread::sleep(STEP);
    }
}

/// One look at the VM. `true` if nothing had to be done, or it is in a state that no saver brings about.
fn restore_vm(qmp: &mut Qmp, duty: &Duty, drains: bool) -> Result<bool> {
    if !drains {
        cancel(qmp)?;
    }
    let state = run_state(qmp)?;
    let by_saver = matches!(state.name.as_str(), "paused" | "postmigrate" | "finish-migrate");
    let stopped = duty.resume && !state.running && by_saver;
    if stopped {
        qmp.execute("cont", json!({}))?;
    }
    if drains && is_migrating(qmp)? {
        std::thread::sleep(STEP);
        return Ok(false);
    }
    duty.settings.put_back(qmp)?;
    Ok(!stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duty_survives_its_argument() {
        for partial in [None, Some(PathBuf::from("/images/.a.partial"))] {
            let duty = Duty {
                socket: "/run/qmp".into(),
                resume: partial.is_none(),
                partial,
                settings: MigrationSettings::default(),
            };
            assert_eq!(serde_json::from_str::<Duty>(&duty.to_argument().unwrap()).unwrap(), duty);
        }
        assert_eq!(guard_main("perhaps", |_| true), ExitCode::from(2));
    }
}
