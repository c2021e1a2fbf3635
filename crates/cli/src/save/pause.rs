//! The time in which the VM stands still: look, plan, copy, and let it run on.

use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::{options, vcpu_states};
use elision_image::{ImageWriter, RamStats};
use elision_kernel::Kernel;
use elision_plan::{Options, Outcome, Plan, PlanError, Selection, plan, plan_late};
use elision_policy::Policy;
use elision_qemu::{DeviceState, Guardian, Vm};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// How long a moment is sought in which every excluded process holds still.
const PATIENCE: Duration = Duration::from_secs(10);
/// The guest runs for 1 to this many milliseconds between two looks.
const LONGEST_BREAK: u64 = 16;

/// A guest writes what is 30 seconds old, and looks every 5 seconds (`mm/page-writeback.c`).
const PATIENCE_WITH_DISKS: Duration = Duration::from_secs(120);
/// Between two looks at what the guest writes.
const BREAK_FOR_DISKS: Duration = Duration::from_secs(1);

fn patience(error: &PlanError) -> Duration {
    if matches!(error, PlanError::Dirty { .. }) { PATIENCE_WITH_DISKS } else { PATIENCE }
}

fn break_after(error: &PlanError, looks: u32) -> Duration {
    match error {
        PlanError::Dirty { .. } => BREAK_FOR_DISKS,
        _ => Duration::from_millis(1 + u64::from(looks) % LONGEST_BREAK),
    }
}

/// When the VM was stopped for the copy, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    pub(super) began: SystemTime,
    pub(super) length: Duration,
}

/// A VM's memory in the image, and the rest of its state in hand. The VM runs on.
pub(super) struct Captured {
    /// Guards the unfinished image from now on.
    pub(super) guardian: Guardian,
    pub(super) selection: Selection,
    pub(super) outcome: Outcome,
    pub(super) state: DeviceState,
    pub(super) ram: RamStats,
    pub(super) pause: Pause,
    /// How often the VM was stopped.
    pub(super) looks: u32,
}

/// Copies a VM into an image. A VM that ran before runs afterwards, whatever happens.
pub(super) fn capture(
    vm: &mut Vm,
    kernel: &Kernel<'_>,
    policy: &Policy,
    writer: &mut ImageWriter,
    threads: usize,
) -> Result<Captured, Failure> {
    let duty = vm.duty(Some(writer.partial_path()))?;
    let runs = duty.resume;
    let program = std::env::current_exe().map_err(|e| Failure::io("find", Path::new("elision"), &e))?;
    let guardian = Guardian::spawn(&program, &["guard"], &duty)?;
    let options = options(policy, policy.save.best_effort());
    let sought = Instant::now();
    for looks in 1.. {
        let began = SystemTime::now();
        let stopped = Instant::now();
        let result =
            still(vm, kernel, policy, options, |outcome, ram| writer.write_ram(ram, outcome, threads));
        if runs {
            if let Err(error) = vm.cont() {
                // A new connection may do what this one could not.
                guardian.act()?;
                return Err(result.err().map_or(error.into(), |e| e.into_failure()));
            }
        }
        let length = stopped.elapsed();
        let result = result.and_then(|(selection, mut outcome, state)| {
            let ram = late(kernel, &mut outcome.plan, writer)?;
            Ok((selection, outcome, state, ram))
        });
        match result {
            Ok((selection, outcome, state, ram)) => {
                let pause = Pause { began, length };
                return Ok(Captured { guardian, selection, outcome, state, ram, pause, looks });
            }
            Err(Held::Plan(error)) if runs && error.is_transient() && sought.elapsed() < patience(&error) => {
                tracing::debug!(%error, looks, "the guest was stopped at a bad moment");
                std::thread::sleep(break_after(&error, looks));
            }
            Err(held) => {
                guardian.dismiss()?;
                return Err(held.into_failure());
            }
        }
    }
    Err(Failure::new(Exit::Refused, "The excluded processes never held still"))
}

/// Why a look at the VM led to nothing.
enum Held {
    Plan(PlanError),
    Other(Failure),
}

impl Held {
    fn into_failure(self) -> Failure {
        match self {
            Self::Plan(error) => error.into(),
            Self::Other(failure) => failure,
        }
    }
}

impl<E: Into<Failure>> From<E> for Held {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Finds out in the copy what need not be known in the pause, and completes the copy with it.
fn late(kernel: &Kernel<'_>, plan: &mut Plan, writer: &mut ImageWriter) -> Result<RamStats, Held> {
    let begin = Instant::now();
    let copy = writer.copied_ram()?;
    let edits = match plan_late(&kernel.over(&copy)) {
        Ok(edits) => edits,
        Err(error) => {
            writer.discard_ram()?;
            return Err(Held::Plan(error));
        }
    };
    let stats = writer.write_late(&edits)?;
    plan.add_late(edits);
    tracing::debug!(took = ?begin.elapsed(), "the copy is complete");
    Ok(stats)
}

type Copied = (Selection, Outcome, DeviceState);

fn still(
    vm: &mut Vm,
    kernel: &Kernel<'_>,
    policy: &Policy,
    options: Options,
    copy: impl FnOnce(&Plan, &elision_memory::Ram) -> Result<RamStats, elision_image::ImageError>,
) -> Result<Copied, Held> {
    let begin = Instant::now();
    let done = |what| tracing::debug!(since_stop = ?begin.elapsed(), "{what}");
    if vm.status()?.running {
        vm.stop()?;
    }
    done("the VM stands still");
    let state = vm.device_state()?;
    let vcpus = vcpu_states(&state)?;
    done("device state taken");
    kernel.ram().refresh();
    let selection = Selection::of(kernel, policy).map_err(Held::Plan)?;
    let outcome = plan(kernel, &selection, &vcpus, options).map_err(Held::Plan)?;
    kernel.ram().check()?;
    done("planned");
    copy(&outcome.plan, kernel.ram())?;
    done("memory copied");
    Ok((selection, outcome, state))
}
