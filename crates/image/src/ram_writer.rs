//! Guest RAM to `ram.img`: what the plan drops is never read, what it changes is changed in a buffer
//! between reading and writing, so nothing excluded reaches a file.
//!
//! ```text
//! RAM file   [data][hole][data .............][hole]     asked once, up front
//! tasks      [t0  ]      [t1      ][t2      ]           at most 4 MiB, within a region, without drops and late
//! a task     read 256 KiB -> apply edits -> skip zero pages -> one write for each run of others
//! ```
//! 256 KiB stay in the processor's cache between the copy out of guest memory and the write, so guest
//! memory is read once. RAM file bytes that the layout gives no place are left out.

use crate::checksum::MIN_CHUNK;
use crate::{ImageError, RAM};
use elision_memory::{FileOffset, Gfn, Gpa, PAGE_SIZE, Ram, RamLayout};
use elision_plan::{Edit, Plan};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

const PAGE: u64 = PAGE_SIZE as u64;
const BUFFER: usize = 256 << 10;
const MAX_THREADS: usize = 64;

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

/// What became of RAM so far.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) stats: RamStats,
    /// The parts of the file that were written.
    pub(crate) data: Vec<Range<FileOffset>>,
    pub(crate) late: Late,
}

/// Consecutive frames that are copied.
struct Task {
    first: Gfn,
    count: u64,
    offset: FileOffset,
}

/// Writes RAM by `plan` to `file`, which is empty, but for the late frames.
pub(crate) fn write(
    file: &File,
    path: &Path,
    ram: &Ram,
    plan: &Plan,
    threads: usize,
) -> Result<Written, ImageError> {
    check(plan, ram)?;
    let late = Late::take(ram, plan)?;
    let path = path.join(RAM);
    let len = ram.layout().file_len();
    let tasks = tasks(ram, plan);
    let needed = tasks.iter().map(|t| t.count * PAGE).sum();
    let failed = |e: std::io::Error| ImageError::io("write", &path, e).or_full(needed, 0);
    file.set_len(len).map_err(failed)?;

    let (next, written, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let touched: Vec<AtomicBool> = (0..len.div_ceil(MIN_CHUNK)).map(|_| AtomicBool::new(false)).collect();
    let work = || -> Result<(), ImageError> {
        let mut buf = vec![0; BUFFER];
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let done = copy(file, &path, ram, plan, task, &mut buf)
                .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
            if done > 0 {
                written.fetch_add(done, Ordering::Relaxed);
                let chunk = usize::try_from(task.offset.0 / MIN_CHUNK).unwrap_or(usize::MAX);
                if let Some(chunk) = touched.get(chunk) {
                    chunk.store(true, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    };
    let result = thread::scope(|scope| {
        let others: Vec<_> = (1..threads.clamp(1, MAX_THREADS)).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for thread in others {
            let end = thread.join().unwrap_or(Err(ImageError::Unfinished(RAM)));
            result = result.and(end);
        }
        result
    });
    let written = written.into_inner();
    result.map_err(|e| e.or_full(needed, written))?;

    let dropped = plan.drops.iter().map(|run| run.count * PAGE).sum();
    let all = ram.layout().ram_bytes();
    let stats = RamStats { ram: all, dropped, zero: all.saturating_sub(dropped + written), written };
    let data = (0..).zip(touched).filter(|(_, t)| t.load(Ordering::Relaxed));
    let data = data.map(|(i, _): (u64, _)| {
        FileOffset(i * MIN_CHUNK)..FileOffset((i + 1) * MIN_CHUNK).min(FileOffset(len))
    });
    Ok(Written { stats, data: data.collect(), late })
}

/// Writes the late frames, to which nothing is to be changed any more.
pub(crate) fn write_late(
    file: &File,
    path: &Path,
    layout: &RamLayout,
    late: &Late,
    stats: &mut RamStats,
    data: &mut Vec<Range<FileOffset>>,
) -> Result<(), ImageError> {
    let path = path.join(RAM);
    for (gfn, frame) in late.each() {
        let offset = layout.offset_of(gfn.gpa(), PAGE);
        let offset = offset.ok_or(ImageError::BadPlan { gfn, reason: "a late frame is not RAM" })?;
        let done = write_runs(file, frame, offset.0).map_err(|e| ImageError::io("write", &path, e))?;
        stats.written += done;
        stats.zero = stats.zero.saturating_sub(done);
        if done > 0 {
            let start = offset.0 / MIN_CHUNK * MIN_CHUNK;
            let end = (start + MIN_CHUNK).min(layout.file_len());
            data.push(FileOffset(start)..FileOffset(end));
        }
    }
    data.sort_by_key(|part| part.start);
    data.dedup();
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

/// What is to be copied: populated, mapped by the layout, not dropped; cut at each 4 MiB of the file.
///
/// An edit of a page that is a hole must be written too, so holes with edits are added.
fn tasks(ram: &Ram, plan: &Plan) -> Vec<Task> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    for part in ram.populated() {
        parts.push(part.start.0 / PAGE * PAGE..part.end.0.div_ceil(PAGE) * PAGE);
    }
    for edit in &plan.edits {
        if let Some(offset) = ram.layout().offset_of(edit.gpa.gfn().gpa(), PAGE) {
            parts.push(offset.0..offset.0 + PAGE);
        }
    }
    parts.sort_by_key(|part| part.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for part in parts {
        match merged.last_mut() {
            Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
            _ => merged.push(part),
        }
    }
    let drops = plan.drops.iter().map(|run| run.first.0..run.first.0 + run.count);
    let mut skipped: Vec<_> = drops.chain(plan.late.iter().map(|run| run.start.0..run.end.0)).collect();
    skipped.sort_by_key(|run| run.start);
    let mut tasks = Vec::new();
    for region in ram.layout().regions() {
        let (start, end) = (region.offset.0, region.offset.0 + region.len);
        let from = merged.partition_point(|part| part.end <= start);
        for part in merged.get(from..).unwrap_or_default().iter().take_while(|part| part.start < end) {
            let gfn = |offset: u64| Gpa(region.gpa.0 + (offset - start)).gfn().0;
            let kept = gfn(part.start.max(start))..gfn(part.end.min(end));
            for frames in without(&skipped, kept) {
                let offset = |gfn: u64| start + (Gfn(gfn).gpa().0 - region.gpa.0);
                cut(&mut tasks, frames.start, offset(frames.start)..offset(frames.end));
            }
        }
    }
    tasks.sort_by_key(|task| task.offset);
    tasks
}

/// What of `frames` is in none of the ascending runs of `skipped`.
fn without(skipped: &[Range<u64>], frames: Range<u64>) -> Vec<Range<u64>> {
    let mut kept = Vec::new();
    let mut at = frames.start;
    let from = skipped.partition_point(|run| run.end <= at);
    for run in skipped.get(from..).unwrap_or_default() {
        if run.start >= frames.end {
            break;
        }
        if run.start > at {
            kept.push(at..run.start);
        }
        at = run.end;
    }
    if at < frames.end {
        kept.push(at..frames.end);
    }
    kept
}

fn cut(tasks: &mut Vec<Task>, mut first: u64, mut bytes: Range<u64>) {
    while bytes.start < bytes.end {
        let stop = ((bytes.start / MIN_CHUNK + 1) * MIN_CHUNK).min(bytes.end);
        let count = (stop - bytes.start) / PAGE;
        tasks.push(Task { first: Gfn(first), count, offset: FileOffset(bytes.start) });
        first += count;
        bytes.start = stop;
    }
}

/// Copies the frames of a task; returns the bytes written.
fn copy(
    file: &File,
    path: &Path,
    ram: &Ram,
    plan: &Plan,
    task: &Task,
    buf: &mut [u8],
) -> Result<u64, ImageError> {
    let mut written = 0;
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
        written += write_runs(file, part, task.offset.0 + done * PAGE)
            .map_err(|e| ImageError::io("write", path, e))?;
        done += pages;
    }
    Ok(written)
}

fn index(gfn: Gfn, first: Gfn) -> usize {
    usize::try_from(gfn.0.saturating_sub(first.0)).unwrap_or(usize::MAX)
}

/// Writes each run of pages that are not zero.
fn write_runs(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<u64> {
    static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
    let mut written = 0;
    let mut run = 0..0;
    let mut flush = |run: &Range<usize>| -> std::io::Result<()> {
        let data = bytes.get(run.clone()).unwrap_or_default();
        written += data.len() as u64;
        file.write_all_at(data, offset + run.start as u64)
    };
    for page in bytes.chunks_exact(PAGE_SIZE) {
        if *page == ZEROS {
            flush(&run)?;
            run = run.end + PAGE_SIZE..run.end + PAGE_SIZE;
        } else {
            run.end += PAGE_SIZE;
        }
    }
    flush(&run)?;
    Ok(written)
}
