//! Memory that QEMU sends, page by page, into an image.

use super::pause::Held;
use crate::agent::SaveAgent;
use elision_image::{ImageError, ImageWriter, RamStats, StreamWriter};
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
