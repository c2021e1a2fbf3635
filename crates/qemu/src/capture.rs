//! Takes the state of a VM through QEMU's migration stream: of its devices, or of all of it.
//!
//! ```text
//! remember the settings ─> set them for one form of the stream
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
use crate::migration::{Watched, receive, wait, wait_for_memory, wait_patiently, wait_shortly};
use crate::precopy;
use crate::qmp::Qmp;
use crate::registers::{self, Registers, check_moment};
use crate::settings::{Form, MigrationSettings};
use crate::stream::{DeviceState, PageSink, SinkClosed};
use crate::vm::{RunState, Vm, run_state};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

impl Vm {
    /// The state of all devices and vCPUs of the stopped VM.
    pub fn device_state(&mut self) -> Result<DeviceState> {
        let blocks = self.ram().blocks.clone();
        self.migrate(Form::Devices, |qmp| {
            receive(qmp, None, |input| DeviceState::read(input, &blocks), wait).map(|(state, ())| state)
        })
    }

    /// The same with the stopped VM's RAM, whose pages go to `sink`.
    pub fn stream(&mut self, sink: &mut dyn PageSink) -> Result<DeviceState> {
        let blocks = self.ram().blocks.clone();
        self.migrate(Form::Whole, |qmp| {
            receive(qmp, None, |input| DeviceState::read_whole(input, &blocks, sink), wait)
                .map(|(state, ())| state)
        })
    }

    /// The same, but the VM runs on as soon as QEMU guards the memory's content of this moment. The VM must
    /// have been stopped, and nothing else may continue it. Returns when it ran on, too. Whatever goes wrong, the
    /// snapshot is read to its end, by `guardian` if this process dies.
    pub fn snapshot(
        &mut self,
        sink: &mut dyn PageSink,
        guardian: &Guardian,
    ) -> Result<(DeviceState, Instant)> {
        let blocks = self.ram().blocks.clone();
        self.migrate(Form::Snapshot, |qmp| {
            receive(
                qmp,
                Some(guardian),
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
    /// pages come to `sink` again and again. When little is left, `ready` is called, then QEMU stops the VM, and
    /// `still` is called with the vCPUs' registers while the rest is on its way. The VM stands still afterwards, and
    /// nothing else may have continued it. Returns since when, too.
    pub fn precopy<T>(
        &mut self,
        sink: &mut dyn PageSink,
        ready: impl FnOnce() -> Result<(), SinkClosed>,
        still: impl FnOnce(&[Registers]) -> T,
    ) -> Result<(DeviceState, Instant, T)> {
        let blocks = self.ram().blocks.clone();
        let (state, (seen, since, done)) = self.with_settings(Form::Precopy, |qmp| {
            receive(
                qmp,
                None,
                |input| DeviceState::read_whole(input, &blocks, sink),
                |qmp, progress| {
                    precopy::wait_for_first_pass(qmp, progress)?;
                    ready().map_err(|SinkClosed| QemuError::SinkClosed)?;
                    let since = precopy::stop(qmp, progress)?;
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

    /// Sets QEMU's settings for [`Vm::snapshot`], which is an error where none can be taken: QEMU tries to guard
    /// all memory then, which would make the pause longer. Whatever comes, put them back by [`Vm::put_back`].
    pub fn allow_snapshots(&mut self) -> Result<()> {
        let before = MigrationSettings::read(&mut self.qmp)?;
        set(&mut self.qmp, Form::Snapshot, &before).inspect_err(|_| {
            if let Err(e) = before.put_back(&mut self.qmp) {
                tracing::warn!("cannot put QEMU's migration settings back: {e}");
            }
        })
    }

    /// Makes QEMU's settings these again.
    pub fn put_back(&mut self, settings: &MigrationSettings) -> Result<()> {
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
