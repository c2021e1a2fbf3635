//! Memory that QEMU sends, page by page, into an image.

use super::pause::{Copied, Held, Task};
use crate::agent::SaveAgent;
use crate::session::vcpu_states_of;
use elision_image::{ImageError, ImageWriter, Precopy, RamStats, StreamWriter};
use elision_memory::{FileOffset, PAGE_SIZE, Ram};
use elision_plan::Plan;
use elision_qemu::{DeviceState, Guardian, PageSink, Registers, SinkClosed, Vm, check_moment};
use std::time::Instant;

/// A VM's state, its memory written.
pub(super) struct Sent {
    pub(super) state: DeviceState,
    pub(super) ram: RamStats,
    /// When the VM ran on, if it does already.
    pub(super) resumed: Option<Instant>,
}

struct Sink<'p> {
    stream: StreamWriter<'p>,
    failed: Option<ImageError>,
    /// Of a VM that runs on as soon as memory arrives: its processes shall do so too.
    agent: Option<&'p mut SaveAgent>,
}

impl Sink<'_> {
    fn note(&mut self, taken: Result<(), ImageError>) -> Result<(), SinkClosed> {
        taken.map_err(|error| {
            self.failed = Some(error);
            SinkClosed
        })
    }
}

impl PageSink for Sink<'_> {
    fn page(&mut self, offset: FileOffset, bytes: &[u8; PAGE_SIZE]) -> Result<(), SinkClosed> {
        let taken = self.stream.page(offset, bytes);
        if let Some(agent) = self.agent.take() {
            agent.thaw();
        }
        self.note(taken)
    }

    fn fill(&mut self, offset: FileOffset, byte: u8) -> Result<(), SinkClosed> {
        let taken = self.stream.fill(offset, byte);
        self.note(taken)
    }
}

/// Has the stopped VM sent, by `plan`, which was made on `ram` and on the vCPUs as `seen` has them. With a
/// guardian the VM runs on meanwhile.
pub(super) fn copy(
    vm: &mut Vm,
    ram: &Ram,
    plan: &Plan,
    seen: &[Registers],
    live: Option<&Guardian>,
    writer: &mut ImageWriter,
    agent: &mut SaveAgent,
) -> Result<Sent, Held> {
    let mut sink = Sink { stream: writer.begin_stream(ram, plan)?, failed: None, agent: live.map(|_| agent) };
    let sent = match live {
        Some(guardian) => vm.snapshot(&mut sink, guardian).map(|(state, resumed)| (state, Some(resumed))),
        None => vm.stream(&mut sink).map(|state| (state, None)),
    };
    if let Some(error) = sink.failed {
        return Err(error.into());
    }
    let (state, resumed) = sent?;
    check_moment(seen, &state)?;
    let ram = writer.end_stream(sink.stream)?;
    Ok(Sent { state, ram, resumed })
}

/// Takes memory that comes before its plan.
struct Early(Precopy);

impl PageSink for Early {
    fn page(&mut self, offset: FileOffset, bytes: &[u8; PAGE_SIZE]) -> Result<(), SinkClosed> {
        self.0.page(offset, bytes);
        Ok(())
    }

    fn fill(&mut self, offset: FileOffset, byte: u8) -> Result<(), SinkClosed> {
        self.0.fill(offset, byte);
        Ok(())
    }
}

/// Has the running VM sent, stops it, plans, and takes what has changed meanwhile. `guess` is about what the plan will be.
pub(super) fn precopy(
    vm: &mut Vm,
    task: &Task<'_>,
    guess: &Plan,
    writer: &mut ImageWriter,
    agent: &mut SaveAgent,
) -> Result<Copied, Held> {
    let Task { kernel, policy, .. } = task;
    let mut early = Early(writer.begin_precopy(kernel.ram(), guess)?);
    let mut refused = None;
    let is_met = agent.is_met();
    let freeze = || {
        agent.freeze_again(kernel, policy).map_err(|failure| {
            refused = Some(failure);
            SinkClosed
        })
    };
    let sent = vm.precopy(&mut early, is_met.then_some(freeze), |seen| {
        kernel.ram().refresh();
        let states = vcpu_states_of(kernel, seen)?;
        task.plan(&states)
    });
    if let Some(failure) = refused {
        return Err(failure.into());
    }
    let (state, stopped, planned) = sent?;
    let done = |what| tracing::debug!(since_stop = ?stopped.elapsed(), "{what}");
    done("sent and planned");
    let (mut outcome, selection) = planned?;
    agent.mark(kernel, &selection, &mut outcome)?;
    writer.settle_precopy(early.0, kernel.ram(), &outcome.plan)?;
    done("memory settled");
    let sent = Sent { state, ram: RamStats::default(), resumed: None };
    Ok(Copied { selection, outcome, sent, stopped })
}
