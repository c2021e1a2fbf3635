//! The plan itself: frames to drop and bytes to change, each with its reason and its owner.

use elision_memory::{Gfn, Gpa};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Whose data an entry concerns: a process of the guest by its thread group id, or nobody any more.
pub type Owner = Option<u32>;

/// Why a frame's content is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum DropReason {
    /// On a buddy list, or on its way to or from one: nobody's memory.
    Free = 1,
    /// On a per-CPU page list: nobody's memory, freed just now.
    FreePerCpu = 2,
    /// In the pool of free huge pages.
    FreeHuge = 3,
    /// Freed by its process, still held by a per-CPU batch of the page reclaim lists.
    DeadInBatch = 4,
    /// Private memory mapped only by excluded processes.
    Anonymous = 5,
    /// Shared memory (shmem, tmpfs, memfd) mapped only by excluded processes.
    SharedMemory = 6,
    /// Huge pages of hugetlbfs mapped only by excluded processes.
    HugeTlb = 7,
    /// Private memory that no process maps any more and that is on no free list.
    Orphan = 8,
    /// Memory that a process which stays has marked to be left out.
    Region = 9,
    /// What the guest has cached of a file.
    PageCache = 10,
}

/// Consecutive frames dropped for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropRun {
    /// First frame.
    pub first: Gfn,
    /// How many frames.
    pub count: u64,
    /// Why.
    pub reason: DropReason,
    /// The process they belonged to, for the reasons that have one.
    pub owner: Owner,
}

/// Why bytes inside a kept frame are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum EditReason {
    /// The part of a kernel stack below its stack pointer: left over from calls that returned.
    DeadStack = 1,
    /// User registers saved on an excluded thread's kernel stack.
    UserRegisters = 2,
    /// The FPU and vector registers saved for an excluded thread.
    FpuState = 3,
    /// SIGKILL made pending for an excluded thread.
    PendingKill = 4,
    /// The work item that makes the restored kernel wake and kill an excluded process.
    WakeUp = 5,
    /// Data in a pipe of an excluded process, or left behind in it.
    Pipe = 6,
    /// Data on its way in a socket of an excluded process.
    Socket = 7,
    /// What an excluded process's terminal holds of input and output.
    Terminal = 8,
    /// A message of an excluded process in a System V or POSIX queue.
    Message = 9,
    /// A key that only excluded processes can reach.
    Key = 10,
    /// An object that the kernel has freed, or a page that it is clearing for its next owner: still full of what it held.
    FreeObject = 11,
    /// A stack that nothing runs on: kept for the next thread, interrupt or exception.
    IdleStack = 12,
    /// A name that an excluded process gave: of a file, a socket, a terminal.
    Name = 13,
    /// An event or a request of an excluded process that the kernel has queued.
    Event = 14,
    /// A line in the kernel's log.
    KernelLog = 15,
    /// The used part of a page from which a socket or a thread takes its buffers.
    PageFragment = 16,
    /// The state of a TCP connection that is to end by a reset.
    ConnectionReset = 17,
    /// Memory of the kernel that is mapped and that nothing uses any more.
    IdleMapping = 18,
    /// What a BPF map holds that only excluded processes have open.
    BpfMap = 19,
    /// The marks of a cached page that say it was read from its file.
    PageCache = 20,
    /// The word by which the guest's agent knows that it is in a copy.
    Agent = 21,
}

/// What happens to the bytes of an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// They become zero.
    Zero(u32),
    /// They become these.
    Write(Box<[u8]>),
}

/// A change to bytes of one kept frame. An edit never crosses a frame's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// First byte changed.
    pub gpa: Gpa,
    /// The change.
    pub change: Change,
    /// Why.
    pub reason: EditReason,
    /// The process concerned.
    pub owner: Owner,
}

impl Edit {
    /// Bytes changed.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.change {
            Change::Zero(len) => *len as usize,
            Change::Write(bytes) => bytes.len(),
        }
    }

    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Changes a copy of the frame that holds the edit.
    pub fn apply(&self, frame: &mut [u8]) {
        let start = self.gpa.page_offset();
        if let Some(target) = frame.get_mut(start..start + self.len()) {
            match &self.change {
                Change::Zero(_) => target.fill(0),
                Change::Write(bytes) => target.copy_from_slice(bytes),
            }
        }
    }
}

/// Counts for people and for the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSummary {
    /// Dropped frames by reason.
    pub dropped_frames: BTreeMap<DropReason, u64>,
    /// Changed bytes by reason.
    pub edited_bytes: BTreeMap<EditReason, u64>,
    /// Dropped frames by the process that owned them.
    pub frames_by_owner: BTreeMap<u32, u64>,
    /// Frames that excluded processes map and that stay, by what they are.
    pub kept_frames: BTreeMap<String, u64>,
    /// Processes that were left out as dependents, each with the one that it depends on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dependents: BTreeMap<u32, u32>,
    /// What could not be accounted for and was let pass by `--best-effort`. Empty in a complete image.
    pub unaccounted: Vec<String>,
}

/// What of a VM's memory is left out of the copy, and what is changed in it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Sorted by frame, without overlap.
    pub drops: Vec<DropRun>,
    /// Sorted by frame, in each frame in order of application: later edits of the same bytes win.
    pub edits: Vec<Edit>,
    /// Frames of which not all changes are known yet: they are copied, and kept in memory until
    /// [`crate::plan_late`] has looked at the copy. Ascending, without overlap; none is dropped.
    pub late: Vec<Range<Gfn>>,
    /// Counts.
    pub summary: PlanSummary,
}

impl Plan {
    /// Adds what was found after the plan was made, such as by [`crate::plan_late`], sorted by frame.
    pub fn add_late(&mut self, edits: Vec<Edit>) {
        for edit in &edits {
            *self.summary.edited_bytes.entry(edit.reason).or_default() += edit.len() as u64;
        }
        self.edits.extend(edits);
        self.edits.sort_by_key(|edit| edit.gpa.gfn());
    }

    /// The run that drops the frame, if one does.
    #[must_use]
    pub fn drop_of(&self, gfn: Gfn) -> Option<&DropRun> {
        let i = self.drops.partition_point(|run| run.first <= gfn).checked_sub(1)?;
        self.drops.get(i).filter(|run| gfn.0 - run.first.0 < run.count)
    }

    /// The edits inside a frame, in order of application.
    #[must_use]
    pub fn edits_in(&self, gfn: Gfn) -> &[Edit] {
        let start = self.edits.partition_point(|e| e.gpa.gfn() < gfn);
        let count = self.edits.get(start..).map_or(0, |rest| rest.partition_point(|e| e.gpa.gfn() == gfn));
        self.edits.get(start..start + count).unwrap_or_default()
    }
}
