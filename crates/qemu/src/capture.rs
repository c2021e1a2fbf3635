//! Takes the state of a VM through QEMU's migration stream: of its devices, or of all of it.
//!
//! ```text
//! remember the settings ─> set them for one form of the stream          before the stop, by `prepare`
//!   device_state   devices only, while the VM stands still
//!   stream         memory and devices, while the VM stands still
//!   snapshot       memory and devices as they are now, while the VM runs on
//!   precopy        memory while the VM runs, then what has changed and the devices while it stands still
//! put the settings back
//! ```
//! After all but the snapshot the VM is in QEMU's state `postmigrate`: it runs on by `cont`, and only then can it be
//! captured again. A VM that was paused before stays so until somebody continues it. If anything fails, the
//! migration is cancelled and the settings are put back; whether the VM runs on is the caller's business.
//!
//! A snapshot is the work of QEMU's `background-snapshot`, which writes the devices' state to a buffer,
//! protects all memory against writes, and then sends it, ahead of the guest's own writes. In this order, so
//! memory that arrives here tells that the rest is done and the VM may run on. QEMU says so nowhere: its
//! migration is `active` too early, and a `cont` between that and the protection would let the guest change
//! what the snapshot shows.

use crate::error::{QemuError, Result};
use crate::guardian::{Duty, Guardian};
use crate::migration::{
    Begun, Counted, LOOK, Watched, receive, wait, wait_for_memory, wait_patiently, wait_shortly,
};
use crate::precopy;
use crate::qmp::Qmp;
use crate::registers::{self, Registers, check_moment};
use crate::settings::{Form, MigrationSettings};
use crate::stream::{DeviceState, PageSink, SinkClosed};
use crate::vm::{RunState, Vm, run_state};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// The first version of QEMU that holds its global lock from the beginning of a snapshot until the VM is to stop
/// ("migration: hold the BQL during setup").
const LOCKS_EARLY: (u64, u64) = (8, 2);
/// A preparation that takes longer than this, or whose end cannot be seen, goes on in the pause.
const LONGEST_PREPARATION: Duration = Duration::from_secs(10);

impl Vm {
    /// The state of all devices and vCPUs of the stopped VM.
    pub fn device_state(&mut self) -> Result<DeviceState> {
        let blocks = self.ram().blocks.clone();
        self.migrate(Form::Devices, |qmp| {
            let begun = Begun::start(qmp, None)?;
            let read = |input: Counted<'_>| DeviceState::read(input, &blocks);
            receive(qmp, begun, true, read, wait).map(|(state, ())| state)
        })
    }

    /// The same with the stopped VM's RAM, whose pages go to `sink`.
    pub fn stream(&mut self, sink: &mut dyn PageSink) -> Result<DeviceState> {
        let blocks = self.ram().blocks.clone();
        self.migrate(Form::Whole, |qmp| {
            let begun = Begun::start(qmp, None)?;
            let read = |input: Counted<'_>| DeviceState::read_whole(input, &blocks, sink);
            receive(qmp, begun, true, read, wait).map(|(state, ())| state)
        })
    }

    /// The same, but the VM runs on as soon as QEMU guards the memory's content of this moment. The VM must
    /// have been stopped since [`Vm::prepare`], if that was called, and nothing else may continue it. Returns when it ran on, too.
    /// Whatever goes wrong, the snapshot is read to its end, by `guardian` if this process dies.
    pub fn snapshot(
        &mut self,
        sink: &mut dyn PageSink,
        guardian: &Guardian,
    ) -> Result<(DeviceState, Instant)> {
        can_migrate(self.status()?)?;
        let blocks = self.ram().blocks.clone();
        let begun = self.begun.take();
        self.with_settings(Form::Snapshot, |qmp| {
            let begun = match begun {
                Some(begun) => begun,
                None => Begun::start(qmp, Some(guardian))?,
            };
            receive(
                qmp,
                begun,
                false,
                |input| {
                    let progress = input.progress;
                    DeviceState::read_whole(input, &blocks, &mut Watched { sink, progress })
                },
                |qmp, progress| {
                    wait_for_memory(qmp, progress)?;
                    let kept = check_moment_kept(qmp);
                    run_on(qmp)?;
                    let since = Instant::now();
                    wait_patiently(qmp)?;
                    kept.map(|()| since)
                },
            )
        })
    }

    /// The same of a VM that runs, and that stands still only while QEMU sends what has changed since it was sent:
    /// pages come to `sink` again and again. When little is left, `ready` is called, if there is
    /// something to make ready in the guest, while QEMU sends next to nothing; then QEMU stops the VM (before 8.1 maybe
    /// too early, if all was sent), and
    /// `still` is called with the vCPUs' registers while the rest is on its way. The VM stands still afterwards, and
    /// nothing else may have continued it. Returns since when, too.
    pub fn precopy<T>(
        &mut self,
        sink: &mut dyn PageSink,
        ready: Option<impl FnOnce() -> Result<(), SinkClosed>>,
        still: impl FnOnce(&[Registers]) -> T,
    ) -> Result<(DeviceState, Instant, T)> {
        let blocks = self.ram().blocks.clone();
        let waits = ready.is_some() && MigrationSettings::read(&mut self.qmp)?.knows(Form::HeldPrecopy);
        let form = if waits { Form::HeldPrecopy } else { Form::Precopy };
        let (state, (seen, since, done)) = self.with_settings(form, |qmp| {
            let (begun, path) = match waits {
                true => Begun::start_held(qmp).map(|(begun, path)| (begun, Some(path)))?,
                false => (Begun::start(qmp, None)?, None),
            };
            receive(
                qmp,
                begun,
                true,
                |input| DeviceState::read_whole(input, &blocks, sink),
                |qmp, progress| {
                    precopy::wait_for_first_pass(qmp, progress)?;
                    if let Some(ready) = ready {
                        precopy::hold_back(qmp, true)?;
                        let made_ready = ready();
                        precopy::hold_back(qmp, false)?;
                        made_ready.map_err(|SinkClosed| QemuError::SinkClosed)?;
                    }
                    let since = precopy::stop(qmp, progress, path)?;
                    let seen = registers::read(qmp)?;
                    precopy::go_on(qmp)?;
                    let done = still(&seen);
                    wait_shortly(qmp, progress)?;
                    Ok((seen, since, done))
                },
            )
        })?;
        self.check_still()?;
        check_moment(&seen, &state)?;
        Ok((state, since, done))
    }

    /// Does ahead of a capture what can be done while the VM still runs: makes QEMU's settings those for it, which is an
    /// error where it cannot be, and more for a snapshot. Whatever comes, call [`Vm::abandon_snapshot`] if it is not
    /// taken, and put the settings back by [`Vm::put_back`].
    pub fn prepare(&mut self, form: Form, guardian: &Guardian) -> Result<()> {
        let before = MigrationSettings::read(&mut self.qmp)?;
        let mut prepared = set(&mut self.qmp, form, &before);
        if prepared.is_ok() {
            self.prepared = Some(form);
            if form == Form::Snapshot {
                prepared = self.begin_early(guardian);
            }
        }
        prepared.inspect_err(|_| {
            if let Err(e) = self.put_back(&before) {
                tracing::warn!("cannot put QEMU's migration settings back: {e}");
            }
        })
    }

    /// Begins the snapshot, if QEMU does not take its global lock before it needs the VM to stand still, and waits
    /// until it has done what it can.
    fn begin_early(&mut self, guardian: &Guardian) -> Result<()> {
        let version = self.qmp.version();
        if (version.major, version.minor) >= LOCKS_EARLY {
            return Ok(());
        }
        self.begun = Some(Begun::start_blocked(&mut self.qmp, guardian)?);
        let begin = Instant::now();
        while self.process().waits_for_pipe() == Some(false) && begin.elapsed() < LONGEST_PREPARATION {
            std::thread::sleep(LOOK);
        }
        tracing::debug!(took = ?begin.elapsed(), "QEMU is ready for the snapshot");
        Ok(())
    }

    /// Ends a snapshot that was prepared, if it has not been taken. The VM must run.
    pub fn abandon_snapshot(&mut self) -> Result<()> {
        self.begun.take().map_or(Ok(()), |begun| begun.discard(&mut self.qmp))
    }

    /// Makes QEMU's settings these again.
    pub fn put_back(&mut self, settings: &MigrationSettings) -> Result<()> {
        self.prepared = None;
        settings.put_back(&mut self.qmp)
    }

    /// What a guardian must do should this process die during a save. Ask before the VM is stopped.
    pub fn duty(&mut self, partial: Option<&Path>) -> Result<Duty> {
        Ok(Duty {
            socket: self.qmp.path().to_path_buf(),
            resume: self.status()?.running,
            partial: partial.map(Path::to_path_buf),
            settings: MigrationSettings::read(&mut self.qmp)?,
        })
    }

    fn migrate<T>(&mut self, form: Form, work: impl FnOnce(&mut Qmp) -> Result<T>) -> Result<T> {
        can_migrate(self.status()?)?;
        self.with_settings(form, work)
    }

    fn with_settings<T>(&mut self, form: Form, work: impl FnOnce(&mut Qmp) -> Result<T>) -> Result<T> {
        let qmp = &mut self.qmp;
        if self.prepared == Some(form) {
            return work(qmp);
        }
        let before = MigrationSettings::read(qmp)?;
        let result = set(qmp, form, &before).and_then(|()| work(qmp));
        let put_back = before.put_back(qmp);
        if let (Err(_), Err(e)) = (&result, &put_back) {
            tracing::warn!("cannot put QEMU's migration settings back: {e}");
        }
        let done = result?;
        put_back?;
        Ok(done)
    }
}

/// Makes the settings those for a form, where they are not yet.
fn set(qmp: &mut Qmp, form: Form, before: &MigrationSettings) -> Result<()> {
    if !before.knows(form) {
        return Err(QemuError::NoSnapshot { why: "this version of QEMU has none".into() });
    }
    before.for_capture(form).apply(qmp, before).map_err(|error| match error {
        QemuError::Refused { desc, .. } if form == Form::Snapshot => QemuError::NoSnapshot { why: desc },
        error => error,
    })
}

fn can_migrate(state: RunState) -> Result<()> {
    let needed = match state {
        RunState { running: true, .. } => "its devices can be read only while it is stopped",
        RunState { ref name, .. } if name == "postmigrate" => {
            "QEMU can send its devices again only after the VM has run: continue it first"
        }
        RunState { .. } => return Ok(()),
    };
    Err(QemuError::State { found: state.name, needed })
}

/// QEMU stops a VM that runs before it takes the snapshot. One that was stopped since then has moved.
fn check_moment_kept(qmp: &mut Qmp) -> Result<()> {
    run_state(qmp)?; // whatever QEMU has to report comes before the answer
    if qmp.take_events().iter().any(|event| event.name == "STOP") {
        return Err(QemuError::Moved { sign: "QEMU stopped it again".into() });
    }
    Ok(())
}

/// Lets the VM run on, whose snapshot is taken. QEMU before 8.2 does so by itself, at once: what it had to do
/// is done when it answers.
fn run_on(qmp: &mut Qmp) -> Result<()> {
    if run_state(qmp)?.running {
        return Ok(());
    }
    qmp.execute("cont", json!({})).map(drop)
}
