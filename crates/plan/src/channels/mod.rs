//! What the kernel holds for the excluded processes beside their memory: one file for each channel.
//!
//! A channel finds its objects from the excluded processes, and clears what they hold in the copy; the
//! objects themselves stay whole, so that the restored kernel releases them as usual. What an object
//! shares with processes that stay is cleared as well: they read zeros where the excluded process's data
//! would be. A new channel is a file and a line in [`CHANNELS`].

mod aio;
mod bpf_maps;
mod calls;
mod compressed;
mod event_files;
mod io_uring;
mod kernel_log;
mod keys;
mod messages;
mod names;
mod notifications;
mod packets_given_back;
mod per_cpu_memory;
mod perf;
mod pipes;
mod queued_signals;
mod secret_memory;
mod sockets;
mod terminals;

use crate::frames::FrameSurvey;
use crate::threads::Edits;
use crate::{EditReason, Options, Owner, PlanError, Selection};
use elision_kernel::{Content, FileKind, Kernel, KernelError, OpenFile, Packets, Process};
use elision_memory::Gva;
use std::collections::{BTreeMap, BTreeSet};

type Survey = fn(&mut Channels<'_, '_, '_>) -> Result<(), PlanError>;

/// Every channel, by name.
const CHANNELS: &[(&str, Survey)] = &[
    ("kernel log", kernel_log::survey),
    // Before the channels of other files: sockets carry files in messages.
    ("sockets", sockets::survey),
    ("calls", calls::survey),
    ("packets given back", packets_given_back::survey),
    ("pipes", pipes::survey),
    ("terminals", terminals::survey),
    ("messages", messages::survey),
    ("keys", keys::survey),
    ("names", names::survey),
    ("BPF maps", bpf_maps::survey),
    ("per-CPU memory", per_cpu_memory::survey),
    ("compressed swap", compressed::survey),
    ("perf events", perf::survey),
    ("secret memory", secret_memory::survey),
    ("io_uring", io_uring::survey),
    ("aio", aio::survey),
    ("event files", event_files::survey),
    ("notifications", notifications::survey),
    ("queued signals", queued_signals::survey),
];

/// A packet takes more than this of memory.
const PACKETS_IN_FRAME: u64 = 16;

/// What a channel needs: where to look, and where to say what is to be cleared.
pub(crate) struct Channels<'s, 'a, 'k> {
    pub(crate) kernel: &'a Kernel<'k>,
    pub(crate) selection: &'a Selection,
    /// The excluded processes that have not ended.
    pub(crate) live: &'a [&'a Process],
    /// What the excluded processes have open, each file once, with one that has it open.
    pub(crate) files: Vec<(OpenFile, u32)>,
    /// What the excluded processes have open or map, once it is asked for.
    opened_or_mapped: Option<BTreeMap<Gva, u32>>,
    /// The packets that were cleared.
    pub(crate) packets: Packets,
    pub(crate) options: Options,
    pub(crate) edits: &'s mut Edits<'a, 'k>,
    pub(crate) frames: &'s mut FrameSurvey<'a, 'k>,
}

impl<'s, 'a, 'k> Channels<'s, 'a, 'k> {
    /// Looks up what the excluded processes have open. Their memory must have been surveyed before.
    pub(crate) fn new(
        kernel: &'a Kernel<'k>,
        selection: &'a Selection,
        live: &'a [&'a Process],
        options: Options,
        edits: &'s mut Edits<'a, 'k>,
        frames: &'s mut FrameSurvey<'a, 'k>,
    ) -> Result<Self, PlanError> {
        let mut files = BTreeMap::new();
        for process in live {
            kernel.for_each_file(process, &frames.slots_left, &mut |file| {
                files.entry(file).or_insert(process.pid);
                Ok(())
            })?;
        }
        let files = files.into_iter().map(|(file, pid)| Ok((kernel.open_file(file)?, pid)));
        let files = files.collect::<Result<_, PlanError>>()?;
        let packets = Packets::new(kernel.ram().layout().frame_limit().0.saturating_mul(PACKETS_IN_FRAME));
        Ok(Self { kernel, selection, live, files, opened_or_mapped: None, packets, options, edits, frames })
    }

    /// Surveys every channel.
    pub(crate) fn survey(&mut self) -> Result<(), PlanError> {
        for (name, survey) in CHANNELS {
            let begin = std::time::Instant::now();
            survey(self)?;
            tracing::trace!(channel = name, took = ?begin.elapsed(), "channel surveyed");
        }
        Ok(())
    }

    /// Objects of one kind behind the excluded processes' files, each once, with a process that has it open.
    pub(crate) fn opened(&self, pick: impl Fn(FileKind) -> Option<Gva>) -> BTreeMap<Gva, u32> {
        self.files.iter().filter_map(|(file, pid)| Some((pick(file.kind)?, *pid))).collect()
    }

    /// Files of some kind that no process has open which stays, each with a process that has.
    pub(crate) fn opened_alone(
        &mut self,
        is_wanted: impl Fn(&OpenFile) -> bool,
    ) -> Result<Vec<(OpenFile, u32)>, PlanError> {
        let mut files: Vec<_> = self.files.iter().filter(|(file, _)| is_wanted(file)).copied().collect();
        if !files.is_empty() {
            let kept = self.kept_files()?;
            files.retain(|(file, _)| !kept.contains(&file.file));
        }
        Ok(files)
    }

    /// What the excluded processes have open or map, by its `struct file`, each with one that does. For channels
    /// behind that of sockets, which adds to what is open.
    pub(crate) fn opened_or_mapped(&mut self) -> Result<BTreeMap<Gva, u32>, PlanError> {
        if let Some(files) = &self.opened_or_mapped {
            return Ok(files.clone());
        }
        let mut files: BTreeMap<Gva, u32> = self.files.iter().map(|(file, pid)| (file.file, *pid)).collect();
        for process in self.live {
            for file in self.frames.mapped_files(process)? {
                files.entry(file).or_insert(process.pid);
            }
        }
        self.opened_or_mapped = Some(files.clone());
        Ok(files)
    }

    /// What the processes have open that stay, by its `struct file`.
    pub(crate) fn kept_files(&mut self) -> Result<&BTreeSet<Gva>, PlanError> {
        self.frames.kept_files(self.selection)
    }

    /// Clears what `find` finds.
    pub(crate) fn clear_found(
        &mut self,
        reason: EditReason,
        owner: Owner,
        find: impl FnOnce(&Kernel<'k>, &mut dyn FnMut(Content)) -> Result<(), KernelError>,
    ) -> Result<(), PlanError> {
        let mut content = Vec::new();
        find(self.kernel, &mut |part| content.push(part))?;
        self.clear(content, reason, owner)
    }

    /// Clears a packet and all that hangs on it, unless more than `users` packets have its data.
    pub(crate) fn clear_packet(
        &mut self,
        packet: Gva,
        users: Option<u64>,
        owner: Owner,
    ) -> Result<(), PlanError> {
        let mut content = Vec::new();
        self.kernel.packet_content(packet, users, &mut self.packets, &mut |part| content.push(part))?;
        self.clear(content, EditReason::Socket, owner)
    }

    /// Clears parts of kernel memory, but no page that a process maps which stays.
    pub(crate) fn clear(
        &mut self,
        content: Vec<Content>,
        reason: EditReason,
        owner: Owner,
    ) -> Result<(), PlanError> {
        for part in content {
            match part {
                Content::Bytes(range) => self.edits.zero(range, reason, owner)?,
                Content::Page { at, len } => {
                    if !self.frames.is_kept(at.gfn())? {
                        self.edits.zero_at(at, len, reason, owner);
                    }
                }
            }
        }
        Ok(())
    }
}
