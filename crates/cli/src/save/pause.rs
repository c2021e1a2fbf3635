//! The time in which the VM stands still: look, plan, copy, and let it run on.

use super::sent::{self, Sent};
use crate::agent::SaveAgent;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::{options, resume, vcpu_states, vcpu_states_of};
use elision_image::{ImageWriter, RamStats, Way};
use elision_kernel::Kernel;
use elision_plan::{Outcome, Plan, PlanError, SeenBlocks, Selection, VcpuState, plan, plan_late};
use elision_policy::Policy;
use elision_qemu::{DeviceState, Form, Guardian, Registers, Vm};
use std::cell::RefCell;
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

/// What a save is to do.
pub(super) struct Task<'a> {
    pub(super) kernel: &'a Kernel<'a>,
    pub(super) policy: &'a Policy,
    pub(super) how: How,
    /// What was seen of memory that may be being cleared when the VM is stopped.
    pub(super) seen: Option<RefCell<SeenBlocks>>,
    /// How many threads write memory.
    pub(super) threads: usize,
}

/// How memory comes out of the VM.
pub(super) enum How {
    /// It is read where it is, while the VM stands still.
    Shared,
    /// QEMU sends it, while the VM stands still.
    Stream,
    /// QEMU sends it as it was at the stop, while the VM runs on.
    Snapshot,
    /// QEMU sends it before the stop, and in it what has changed since. The plan is a guess.
    Precopy(Box<Plan>),
}

impl How {
    /// What QEMU can be prepared for. A precopy changes settings as it goes on.
    fn form(&self) -> Option<Form> {
        match self {
            Self::Shared => Some(Form::Devices),
            Self::Stream => Some(Form::Whole),
            Self::Snapshot => Some(Form::Snapshot),
            Self::Precopy(_) => None,
        }
    }

    /// Whether the image can build on another one.
    pub(super) fn can_build_on(&self) -> bool {
        matches!(self, Self::Shared | Self::Precopy(_))
    }

    /// What is said of it.
    pub(super) fn way(&self) -> Way {
        match self {
            Self::Shared => Way::Shared,
            Self::Stream => Way::Stream,
            Self::Snapshot | Self::Precopy(_) => Way::Live,
        }
    }
}

/// Copies a VM into an image. A VM that ran before runs afterwards, whatever happens.
pub(super) fn capture(
    vm: &mut Vm,
    task: &Task<'_>,
    writer: &mut ImageWriter,
    agent: &mut SaveAgent,
) -> Result<Captured, Failure> {
    let duty = vm.duty(Some(writer.partial_path()))?;
    let runs = duty.resume;
    let program = std::env::current_exe().map_err(|e| Failure::io("find", Path::new("elision"), &e))?;
    let guardian = Guardian::spawn(&program, &["guard"], &duty)?;
    if let Some(form) = task.how.form() {
        if let Err(error) = vm.prepare(form, &guardian) {
            guardian.dismiss()?;
            return Err(error.into());
        }
    }
    let captured = look(vm, task, writer, guardian, runs, agent);
    let put_back = vm.put_back(&duty.settings);
    captured.and_then(|captured| put_back.map(|()| captured).map_err(Failure::from))
}

/// Looks at the VM until it can be copied.
fn look(
    vm: &mut Vm,
    task: &Task<'_>,
    writer: &mut ImageWriter,
    guardian: Guardian,
    runs: bool,
    agent: &mut SaveAgent,
) -> Result<Captured, Failure> {
    let sought = Instant::now();
    for looks in 1.. {
        let result = still(vm, task, writer, &guardian, agent);
        let resumed = result.as_ref().ok().and_then(|copied| copied.sent.resumed);
        if runs && resumed.is_none() {
            if result.is_ok() {
                agent.thaw(); // read by the guest when it runs, and waited for below
            }
            if let Err(error) = resume(vm) {
                // A new connection may do what this one could not.
                guardian.act()?;
                return Err(result.err().map_or(error.into(), |e| e.into_failure()));
            }
        }
        let resumed = resumed.unwrap_or_else(Instant::now);
        if let Ok(copied) = &result {
            let pause = resumed.saturating_duration_since(copied.stopped);
            agent.thawed((looks == 1).then_some(pause)); // before work begins that would keep the guest waiting
        }
        let result = result.and_then(|mut copied| {
            writer.end_pause(&copied.outcome.plan)?;
            copied.sent.ram = late(task.kernel, &mut copied.outcome, writer)?;
            Ok(copied)
        });
        match result {
            Ok(Copied { selection, outcome, sent: Sent { state, ram, .. }, stopped }) => {
                let began = SystemTime::now() - stopped.elapsed();
                let pause = Pause { began, length: resumed.duration_since(stopped) };
                return Ok(Captured { guardian, selection, outcome, state, ram, pause, looks });
            }
            Err(Held::Plan(error)) if runs && error.is_transient() && sought.elapsed() < patience(&error) => {
                tracing::debug!(%error, looks, "the guest was stopped at a bad moment");
                std::thread::sleep(break_after(&error, looks));
            }
            Err(held) => {
                // Where this fails, the guardian does it: it acts unless it is dismissed.
                if let Err(error) = vm.abandon_snapshot().and_then(|()| guardian.dismiss()) {
                    tracing::warn!(%error, "A save that failed could not be ended in order");
                }
                return Err(held.into_failure());
            }
        }
    }
    Err(Failure::new(Exit::Refused, "The excluded processes never held still"))
}

/// Why a look at the VM led to nothing.
pub(super) enum Held {
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
fn late(kernel: &Kernel<'_>, outcome: &mut Outcome, writer: &mut ImageWriter) -> Result<RamStats, Held> {
    let begin = Instant::now();
    let copy = writer.copied_ram()?;
    let edits = match plan_late(&kernel.over(copy).with_slabs(&outcome.slabs)) {
        Ok(edits) => edits,
        Err(error) => {
            writer.discard_ram()?;
            return Err(Held::Plan(error));
        }
    };
    let stats = writer.write_late(&edits)?;
    outcome.plan.add_late(edits);
    tracing::debug!(took = ?begin.elapsed(), "the copy is complete");
    Ok(stats)
}

/// The image's content, as far as it must be known before the VM runs on.
pub(super) struct Copied {
    pub(super) selection: Selection,
    pub(super) outcome: Outcome,
    pub(super) sent: Sent,
    /// When the VM was stopped.
    pub(super) stopped: Instant,
}

/// What is known of the vCPUs before memory is copied. A stream has them at its end.
enum Vcpus {
    Sent(Box<DeviceState>),
    Seen(Vec<Registers>),
}

/// Stops the VM, if it runs, and copies it.
fn still(
    vm: &mut Vm,
    task: &Task<'_>,
    writer: &mut ImageWriter,
    guardian: &Guardian,
    agent: &mut SaveAgent,
) -> Result<Copied, Held> {
    if let How::Precopy(guess) = &task.how {
        return sent::precopy(vm, task, guess, writer, agent);
    }
    let runs = vm.status()?.running; // asked before processes stand still for it
    agent.freeze_again(task.kernel, task.policy)?;
    let stopped = Instant::now();
    let done = |what| tracing::debug!(since_stop = ?stopped.elapsed(), "{what}");
    if runs {
        vm.stop()?;
    } else {
        vm.qmp().take_events(); // what others did until now
    }
    done("the VM stands still");
    task.kernel.ram().refresh();
    let (vcpus, states) = if matches!(task.how, How::Shared) {
        let state = vm.device_state()?;
        let states = vcpu_states(&state)?;
        (Vcpus::Sent(Box::new(state)), states)
    } else {
        let seen = vm.registers()?;
        let states = vcpu_states_of(task.kernel, &seen)?;
        (Vcpus::Seen(seen), states)
    };
    done("vCPUs known");
    let (mut outcome, selection) = task.plan(&states)?;
    agent.mark(task.kernel, &selection, &mut outcome)?;
    done("planned");
    let ram = task.kernel.ram();
    let sent = match vcpus {
        Vcpus::Sent(state) => {
            let ram = writer.write_ram(ram, &outcome.plan, task.threads)?;
            Sent { state: *state, ram, resumed: None }
        }
        Vcpus::Seen(seen) => {
            vm.check_still()?;
            let live = matches!(task.how, How::Snapshot).then_some(guardian);
            sent::copy(vm, ram, &outcome.plan, &seen, live, writer, agent)?
        }
    };
    if sent.resumed.is_none() {
        vm.check_still()?;
    }
    done("memory copied");
    Ok(Copied { selection, outcome, sent, stopped })
}

impl Task<'_> {
    /// Plans for the VM, which stands still.
    pub(super) fn plan(&self, vcpus: &[VcpuState]) -> Result<(Outcome, Selection), Held> {
        let Self { kernel, policy, .. } = self;
        let planned = kernel.ram().fetching(|| {
            let selection = Selection::of(kernel, policy)?;
            Ok((plan(kernel, &selection, vcpus, options(policy, policy.save.best_effort()))?, selection))
        });
        kernel.ram().check()?;
        let planned = planned.map_err(Held::Plan)?;
        if let Some(seen) = &self.seen {
            seen.borrow_mut().settle(&planned.0.fresh).map_err(Held::Plan)?;
        }
        Ok(planned)
    }
}
