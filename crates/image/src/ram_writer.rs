//! Guest RAM out of the VM while it stands still: what the plan drops is never read, what it changes is changed in
//! a buffer on the way, so nothing excluded is in the copy.
//!
//! ```text
//! a task     read 256 KiB -> apply edits -> skip zero pages -> each run of others to the copy
//! the copy   [ memory, written to ram.img when the VM runs again | ram.img at once ]     by offsets of ram.img
//!            0                                                  from              len
//! ```
//! A file is as slow as its disk, or as the host's limits on unwritten pages, and memory is not: so the copy is in
//! memory as far as there is room. 256 KiB stay in the processor's cache between reading and writing, so guest
//! memory is read once. RAM file bytes that the layout gives no place are left out.

use crate::checksum::MIN_CHUNK;
use crate::room::Room;
use crate::tasks::{Task, tasks};
use crate::{ImageError, RAM};
use elision_memory::{FileOffset, Gfn, PAGE_SIZE, Ram, Staging};
use elision_plan::{Edit, Plan};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

const PAGE: u64 = PAGE_SIZE as u64;
const BUFFER: usize = 256 << 10;
const MAX_THREADS: usize = 64;
static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// What became of RAM, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RamStats {
    /// RAM of the guest.
    pub ram: u64,
    /// Left out by the plan.
    pub dropped: u64,
    /// Not dropped, and zero or never touched: holes.
    pub zero: u64,
    /// Written.
    pub written: u64,
}

/// Frames that wait in memory, which is no storage, until all that is to be changed in them is known.
#[derive(Debug, Default)]
pub(crate) struct Late {
    frames: Vec<Gfn>,
    bytes: Vec<u8>,
}

impl Late {
    /// The plan's late frames, all zero so far.
    pub(crate) fn room_for(plan: &Plan) -> Self {
        let frames: Vec<Gfn> = plan.late.iter().flat_map(|run| run.start.0..run.end.0).map(Gfn).collect();
        let bytes = vec![0; frames.len().saturating_mul(PAGE_SIZE)];
        Self { frames, bytes }
    }

    /// Copies the plan's late frames, with its changes.
    fn take(ram: &Ram, plan: &Plan) -> Result<Self, ImageError> {
        let mut late = Self::room_for(plan);
        for (gfn, frame) in late.frames.iter().zip(late.bytes.chunks_exact_mut(PAGE_SIZE)) {
            ram.read(gfn.gpa(), frame)?;
            plan.edits_in(*gfn).iter().for_each(|edit| edit.apply(frame));
        }
        Ok(late)
    }

    /// Takes the content of a late frame.
    pub(crate) fn put(&mut self, gfn: Gfn, bytes: &[u8; PAGE_SIZE]) {
        let frame = self.frames.binary_search(&gfn).ok();
        if let Some(frame) = frame.and_then(|i| self.bytes.chunks_exact_mut(PAGE_SIZE).nth(i)) {
            frame.copy_from_slice(bytes);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Every frame with its content.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Gfn, &[u8])> {
        self.frames.iter().copied().zip(self.bytes.chunks_exact(PAGE_SIZE))
    }

    /// Makes the remaining changes, which must all be in these frames.
    pub(crate) fn change(&mut self, edits: &[Edit]) -> Result<(), ImageError> {
        for edit in edits {
            let frame = self.frames.binary_search(&edit.gpa.gfn()).ok();
            let frame = frame.and_then(|i| self.bytes.chunks_exact_mut(PAGE_SIZE).nth(i));
            let reason = "a late change is not in a late frame";
            edit.apply(frame.ok_or(ImageError::BadPlan { gfn: edit.gpa.gfn(), reason })?);
        }
        Ok(())
    }
}

/// What was copied.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) stats: RamStats,
    /// The parts that hold something else than zeros, ascending.
    pub(crate) data: Vec<Range<FileOffset>>,
    pub(crate) late: Late,
}

/// Pages of one [`MIN_CHUNK`] of the file, and the memory that they go to unless they go to the file.
struct Work<'a> {
    tasks: &'a [Task],
    memory: Option<&'a mut [u8]>,
}

/// Copies RAM by `plan`, but for the late frames: into memory as much as there is `room` for, the rest into
/// `file`, which is empty. Gives the offset from which on it went to the file.
pub(crate) fn copy(
    file: &File,
    path: &Path,
    ram: &Ram,
    plan: &Plan,
    room: &mut Room,
    threads: usize,
) -> Result<(Written, FileOffset), ImageError> {
    check(plan, ram)?;
    let late = Late::take(ram, plan)?;
    let path = path.join(RAM);
    let tasks = tasks(ram, &ram.populated_since(&room.populated), plan);
    let needed = tasks.iter().map(Task::bytes).sum();
    let full = |e: ImageError| e.or_full(needed);
    file.set_len(ram.layout().file_len()).map_err(|e| full(ImageError::io("write", &path, e)))?;

    let from = fits(&tasks, room.bytes);
    let work = Mutex::new(work(&tasks, &mut room.staging, from).into_iter());
    let next = || work.lock().ok().and_then(|mut work| work.next());
    let worker = || -> Result<Vec<Range<FileOffset>>, ImageError> {
        let (mut buf, mut runs) = (vec![0; BUFFER], Vec::new());
        while let Some(Work { tasks, mut memory }) = next() {
            let mut put = |offset: FileOffset, bytes: &[u8]| {
                add(&mut runs, offset, bytes.len());
                match &mut memory {
                    Some(memory) => store(memory, offset, bytes),
                    None => file.write_all_at(bytes, offset.0).map_err(|e| ImageError::io("write", &path, e)),
                }
            };
            let mut copied = tasks.iter().map(|task| one(ram, plan, task, &mut buf, &mut put));
            if let Err(error) = copied.by_ref().collect::<Result<(), _>>() {
                while next().is_some() {} // the other threads are to end too
                return Err(error);
            }
        }
        Ok(runs)
    };
    let mut data = thread::scope(|scope| {
        let others: Vec<_> = (1..threads.clamp(1, MAX_THREADS)).map(|_| scope.spawn(worker)).collect();
        let mut runs = worker();
        for thread in others {
            let more = thread.join().unwrap_or(Err(ImageError::Unfinished(RAM)));
            runs = runs.and_then(|mut runs| more.map(|more| runs.extend(more)).map(|()| runs));
        }
        runs
    })
    .map_err(full)?;
    data.sort_by_key(|run| run.start);

    let written = data.iter().map(|run| run.end.0 - run.start.0).sum();
    let dropped = plan.drops.iter().map(|run| run.count * PAGE).sum();
    let all = ram.layout().ram_bytes();
    let stats = RamStats { ram: all, dropped, zero: all.saturating_sub(dropped + written), written };
    Ok((Written { stats, data, late }, from))
}

/// Up to which offset the tasks fit in `room` bytes of memory. With huge pages they may take twice their size.
pub(crate) fn fits(tasks: &[Task], room: u64) -> FileOffset {
    let mut taken = 0_u64;
    for chunk in tasks.chunk_by(|a, b| a.chunk() == b.chunk()) {
        taken += chunk.iter().map(|task| 2 * task.bytes()).sum::<u64>().min(MIN_CHUNK);
        if let Some(first) = chunk.first().filter(|_| taken > room) {
            return FileOffset(first.chunk() * MIN_CHUNK);
        }
    }
    FileOffset(u64::MAX)
}

fn work<'a>(tasks: &'a [Task], staging: &'a mut Staging, from: FileOffset) -> Vec<Work<'a>> {
    let bytes = usize::try_from(MIN_CHUNK).unwrap_or(usize::MAX);
    let mut memory = (0_u64..).zip(staging.pieces(bytes));
    let chunks = tasks.chunk_by(|a, b| a.chunk() == b.chunk());
    chunks
        .map(|tasks| {
            let chunk = tasks.first().map_or(0, Task::chunk);
            let staged = chunk * MIN_CHUNK < from.0;
            let memory = if staged { memory.by_ref().find(|(i, _)| *i == chunk) } else { None };
            Work { tasks, memory: memory.map(|(_, memory)| memory) }
        })
        .collect()
}

fn add(runs: &mut Vec<Range<FileOffset>>, offset: FileOffset, len: usize) {
    let end = FileOffset(offset.0 + len as u64);
    match runs.last_mut() {
        Some(last) if last.end == offset => last.end = end,
        _ => runs.push(offset..end),
    }
}

/// Puts bytes where they belong in the memory of their chunk.
fn store(chunk: &mut [u8], offset: FileOffset, bytes: &[u8]) -> Result<(), ImageError> {
    let at = usize::try_from(offset.0 % MIN_CHUNK).unwrap_or(usize::MAX);
    let place = chunk.get_mut(at..at.saturating_add(bytes.len())).ok_or(ImageError::Unfinished(RAM))?;
    place.copy_from_slice(bytes);
    Ok(())
}

/// Refuses a plan of which a part would silently not happen.
pub(crate) fn check(plan: &Plan, ram: &Ram) -> Result<(), ImageError> {
    let bad = |gfn, reason| Err(ImageError::BadPlan { gfn, reason });
    let mut end = Gfn(0);
    for run in &plan.drops {
        if run.first < end {
            return bad(run.first, "dropped frames overlap or are not sorted");
        }
        end = match run.first.0.checked_add(run.count) {
            Some(stop) if stop <= ram.layout().frame_limit().0 => Gfn(stop),
            _ => return bad(run.first, "dropped frames lie beyond the end of RAM"),
        };
        let bytes = run.count.checked_mul(PAGE);
        if bytes.and_then(|bytes| ram.layout().offset_of(run.first.gpa(), bytes)).is_none()
            && !(run.first.0..end.0).all(|gfn| ram.layout().contains(Gfn(gfn)))
        {
            return bad(run.first, "dropped frames are not RAM");
        }
    }
    let mut end = Gfn(0);
    for run in &plan.late {
        if run.start < end || run.end <= run.start {
            return bad(run.start, "late frames overlap or are not sorted");
        }
        end = run.end;
        for gfn in (run.start.0..run.end.0).map(Gfn) {
            if !ram.layout().contains(gfn) || plan.drop_of(gfn).is_some() {
                return bad(gfn, "a late frame is dropped, or is not RAM");
            }
        }
    }
    let mut before = Gfn(0);
    for edit in &plan.edits {
        if edit.gpa.gfn() < before {
            return bad(edit.gpa.gfn(), "changes are not sorted");
        }
        if edit.gpa.page_offset().saturating_add(edit.len()) > PAGE_SIZE {
            return bad(edit.gpa.gfn(), "a change goes beyond the end of its frame");
        }
        if !ram.layout().contains(edit.gpa.gfn()) {
            return bad(edit.gpa.gfn(), "a change is not in RAM");
        }
        before = edit.gpa.gfn();
    }
    Ok(())
}

/// Copies the frames of a task, with their changes and without those that are zero then.
fn one(
    ram: &Ram,
    plan: &Plan,
    task: &Task,
    buf: &mut [u8],
    put: &mut impl FnMut(FileOffset, &[u8]) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut done = 0;
    while done < task.count {
        let pages = (task.count - done).min((buf.len() / PAGE_SIZE) as u64);
        let first = Gfn(task.first.0 + done);
        let want = usize::try_from(pages * PAGE).unwrap_or(buf.len());
        let part = buf.get_mut(..want).unwrap_or_default();
        ram.read(first.gpa(), part)?;
        let from = plan.edits.partition_point(|edit| edit.gpa < first.gpa());
        for edit in plan.edits.get(from..).unwrap_or_default() {
            let gfn = edit.gpa.gfn();
            let Some(frame) = part.chunks_exact_mut(PAGE_SIZE).nth(index(gfn, first)) else { break };
            edit.apply(frame);
        }
        for run in nonzero(part) {
            let offset = FileOffset(task.offset.0 + done * PAGE + run.start as u64);
            put(offset, part.get(run).unwrap_or_default())?;
        }
        done += pages;
    }
    Ok(())
}

fn index(gfn: Gfn, first: Gfn) -> usize {
    usize::try_from(gfn.0.saturating_sub(first.0)).unwrap_or(usize::MAX)
}

/// Each run of pages that are not zero.
fn nonzero(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (i, page) in bytes.chunks_exact(PAGE_SIZE).enumerate() {
        let start = i * PAGE_SIZE;
        if *page == ZEROS {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.end == start => last.end += PAGE_SIZE,
            _ => runs.push(start..start + PAGE_SIZE),
        }
    }
    runs
}
