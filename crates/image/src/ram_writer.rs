//! Guest RAM out of the VM while it stands still: what the plan drops is never read, what it changes is changed in
//! a buffer on the way, so nothing excluded is in the copy.
//!
//! ```text
//! a task      read 256 KiB -> apply edits -> skip zero pages -> each run of others to the copy
//! the copy    chunks in memory, written to ram.img when the VM runs again    from the first on, by a thread each
//!             chunks written to ram.img at once                              from the last on, by some threads more
//! ```
//! A file is as slow as its disk, or as the host's limits on unwritten pages, and memory is not: so the copy is in
//! memory as far as memory was taken ahead. What remains goes both ways until they meet, so that neither a slow
//! disk nor memory that the host has yet to find makes the VM wait longer than it must. 256 KiB stay in the
//! processor's cache between reading and writing, so guest memory is read once. RAM file bytes that the layout gives
//! no place are left out.

use crate::checksum;
use crate::chunk_hasher::ChunkHasher;
use crate::page_hashes::{HashFile, PageHashes};
use crate::ranges::{Runs, add};
use crate::room::Room;
use crate::target::{Target, pages};
use crate::tasks::{Task, tasks};
use crate::{ImageError, PAGE_HASHES, RAM};
use blake3::Hash;
use elision_memory::{FileOffset, Gfn, PAGE_SIZE, Ram};
use elision_plan::{Edit, Plan};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use zerocopy::IntoBytes;

const PAGE: u64 = PAGE_SIZE as u64;
const BUFFER: usize = 256 << 10;
/// Longest write to the file.
const WRITE: usize = 1 << 20;
const MAX_THREADS: usize = 64;
/// Threads beside the others that write what goes to the file at once. They wait for the disk for the most part.
const WRITERS: usize = 4;
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
    /// Written, or inherited.
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
        let frames = late.frames.par_iter().zip(late.bytes.par_chunks_exact_mut(PAGE_SIZE));
        frames.try_for_each(|(gfn, frame)| {
            ram.read(gfn.gpa(), frame)?;
            plan.edits_in(*gfn).iter().for_each(|edit| edit.apply(frame));
            Ok::<_, ImageError>(())
        })?;
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

    /// The chunks of the file that some of them are in.
    fn chunks(&self, ram: &Ram, chunk: u64) -> BTreeSet<u64> {
        let offsets = self.frames.iter().filter_map(|gfn| ram.layout().offset_of(gfn.gpa(), PAGE));
        offsets.map(|offset| offset.0 / chunk).collect()
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
    pub(crate) data: Runs,
    /// The parts that were not copied, as the base has them, ascending.
    pub(crate) inherited: Runs,
    pub(crate) late: Late,
}

/// What went to the file at once.
#[derive(Debug, Default)]
pub(crate) struct AtOnce {
    /// Whole chunks of the file, ascending.
    pub(crate) chunks: Vec<Range<FileOffset>>,
    /// Checksums of those of them in which nothing is going to change, by the number of the chunk, ascending.
    pub(crate) hashes: Vec<(u64, Hash)>,
}

/// What is to be copied, and where to.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) ram: &'a Ram,
    pub(crate) plan: &'a Plan,
    pub(crate) target: Target<'a>,
    /// Of the target's file.
    pub(crate) path: &'a Path,
    pub(crate) hash_file: &'a HashFile,
    /// What is the same there is not copied.
    pub(crate) base: Option<&'a PageHashes>,
}

/// Pages of one chunk of the file.
struct Work<'a> {
    tasks: &'a [Task],
    range: Range<u64>,
    place: Place,
    /// Late frames of it are written later.
    is_late: bool,
    /// Where a copy in memory goes.
    memory: &'a mut [u8],
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Memory,
    /// Whichever is free first.
    Either,
    File,
}

/// What a thread did.
#[derive(Default)]
struct Done {
    data: Runs,
    inherited: Runs,
    at_once: Vec<(Range<u64>, Option<Hash>)>,
}

/// Copies RAM by its plan, but for the late frames: into memory as much as there is `room` for, the rest into
/// the target, whose file is empty.
pub(crate) fn copy(job: Job<'_>, room: &mut Room, threads: usize) -> Result<(Written, AtOnce), ImageError> {
    let Job { ram, plan, .. } = job;
    check(plan, ram)?;
    let late = Late::take(ram, plan)?;
    let len = ram.layout().file_len();
    let tasks = tasks(ram, &ram.populated_since(&room.populated), plan);
    let needed = tasks.iter().map(Task::bytes).sum();
    job.target.file.set_len(len).map_err(|e| job.failed(RAM, e).or_full(needed))?;

    let chunk = checksum::chunk_bytes(len);
    let work = work(&tasks, room, &late.chunks(ram, chunk), chunk, len);
    let writers = if work.iter().any(|work| work.place != Place::Memory) { WRITERS } else { 0 };
    let work = Mutex::new(work.into_iter());
    let first = || work.lock().ok().and_then(|mut work| work.next());
    let last = || {
        let mut work = work.lock().ok()?;
        let is_for_file = work.as_slice().last().is_some_and(|work| work.place != Place::Memory);
        if is_for_file { work.next_back() } else { None }
    };
    let worker = |writes: bool| -> Result<Done, ImageError> {
        let mut buf = pages(if writes { WRITE } else { BUFFER });
        let (buf, mut done) = (buf.as_mut_bytes(), Done::default());
        while let Some(work) = if writes { last() } else { first() } {
            let copied = if writes || work.place == Place::File {
                job.at_once(&work, buf, &mut done)
            } else {
                job.into_memory(work, buf, &mut done)
            };
            if let Err(error) = copied {
                while first().is_some() {} // the other threads are to end too
                return Err(error.or_full(needed));
            }
        }
        Ok(done)
    };
    let Done { mut data, mut inherited, mut at_once } = thread::scope(|scope| {
        let worker = &worker;
        let others = (1..threads.clamp(1, MAX_THREADS)).map(|_| scope.spawn(move || worker(false)));
        let writers = (0..writers).map(|_| scope.spawn(move || worker(true)));
        let others: Vec<_> = others.chain(writers).collect();
        let mut all = worker(false);
        for thread in others {
            let more = thread.join().unwrap_or(Err(ImageError::Unfinished(RAM)));
            all = all.and_then(|mut all| more.map(|more| all.extend(more)).map(|()| all));
        }
        all
    })?;
    data.sort_by_key(|run| run.start);
    inherited.sort_by_key(|run| run.start);
    at_once.sort_by_key(|(range, _)| range.start);

    let written = data.iter().chain(&inherited).map(|run| run.end.0 - run.start.0).sum();
    let dropped = plan.drops.iter().map(|run| run.count * PAGE).sum();
    let all = ram.layout().ram_bytes();
    let stats = RamStats { ram: all, dropped, zero: all.saturating_sub(dropped + written), written };
    let at_once = AtOnce {
        chunks: at_once.iter().map(|(range, _)| FileOffset(range.start)..FileOffset(range.end)).collect(),
        hashes: at_once.into_iter().filter_map(|(range, hash)| Some((range.start / chunk, hash?))).collect(),
    };
    Ok((Written { stats, data, inherited, late }, at_once))
}

impl Done {
    fn extend(&mut self, more: Self) {
        self.data.extend(more.data);
        self.inherited.extend(more.inherited);
        self.at_once.extend(more.at_once);
    }
}

/// The chunks that hold something, those that may go to the file at once behind the others.
fn work<'a>(
    tasks: &'a [Task],
    room: &'a mut Room,
    late: &BTreeSet<u64>,
    chunk: u64,
    len: u64,
) -> Vec<Work<'a>> {
    let end = fits(tasks, room.bytes, chunk).0;
    let ready = room.ready.0;
    let mut memory = (0_u64..).zip(room.staging.pieces(usize::try_from(chunk).unwrap_or(usize::MAX)));
    let mut work: Vec<Work<'_>> = tasks
        .chunk_by(|a, b| a.offset.0 / chunk == b.offset.0 / chunk)
        .filter_map(|tasks| {
            let i = tasks.first()?.offset.0 / chunk;
            let range = i * chunk..((i + 1) * chunk).min(len);
            let is_late = late.contains(&i);
            let place = match range.start {
                start if start >= end => Place::File,
                start if start >= ready && !is_late => Place::Either,
                _ => Place::Memory,
            };
            let (_, memory) = memory.by_ref().find(|(piece, _)| *piece == i)?;
            Some(Work { tasks, range, place, is_late, memory })
        })
        .collect();
    work.sort_by_key(|work| work.place);
    work
}

/// Up to which offset the tasks fit in `room` bytes of memory. With huge pages they may take twice their size.
pub(crate) fn fits(tasks: &[Task], room: u64, chunk: u64) -> FileOffset {
    let mut taken = 0_u64;
    for tasks in tasks.chunk_by(|a, b| a.offset.0 / chunk == b.offset.0 / chunk) {
        taken += tasks.iter().map(|task| 2 * task.bytes()).sum::<u64>().min(chunk);
        if let Some(first) = tasks.first().filter(|_| taken > room) {
            return FileOffset(first.offset.0 / chunk * chunk);
        }
    }
    FileOffset(u64::MAX)
}

impl Job<'_> {
    fn into_memory(self, work: Work<'_>, buf: &mut [u8], done: &mut Done) -> Result<(), ImageError> {
        let Work { tasks, range, memory, .. } = work;
        let mut put = |offset: FileOffset, bytes: &[u8]| {
            let at = usize::try_from(offset.0 - range.start).unwrap_or(usize::MAX);
            let place =
                memory.get_mut(at..at.saturating_add(bytes.len())).ok_or(ImageError::Unfinished(RAM))?;
            place.copy_from_slice(bytes);
            Ok(())
        };
        let mut part = Done::default();
        tasks.iter().try_for_each(|task| self.one(task, buf, &mut part, &mut put))?;
        done.extend(part);
        Ok(())
    }

    /// Writes a chunk to the file, and hashes it unless it is going to change.
    fn at_once(self, work: &Work<'_>, buf: &mut [u8], done: &mut Done) -> Result<(), ImageError> {
        let mut hash = (!work.is_late).then(|| ChunkHasher::new(work.range.clone()));
        let mut put = |offset: FileOffset, bytes: &[u8]| {
            self.target.write(bytes, offset.0).map_err(|e| self.failed(RAM, e))?;
            if let Some(hash) = &mut hash {
                hash.add(offset.0, bytes);
                self.hash_file.add(offset.0, bytes).map_err(|e| self.failed(PAGE_HASHES, e))?;
            }
            Ok(())
        };
        let mut part = Done::default();
        work.tasks.iter().try_for_each(|task| self.one(task, buf, &mut part, &mut put))?;
        part.at_once.push((work.range.clone(), hash.map(ChunkHasher::finish)));
        done.extend(part);
        Ok(())
    }

    /// Copies the frames of a task, with their changes and without those that are then zero, or the same in the base.
    fn one(
        self,
        task: &Task,
        buf: &mut [u8],
        done: &mut Done,
        put: &mut impl FnMut(FileOffset, &[u8]) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let Self { ram, plan, base, .. } = self;
        let mut at = 0;
        while at < task.count {
            let pages = (task.count - at).min((buf.len() / PAGE_SIZE) as u64);
            let first = Gfn(task.first.0 + at);
            let want = usize::try_from(pages * PAGE).unwrap_or(buf.len());
            let part = buf.get_mut(..want).unwrap_or_default();
            ram.read(first.gpa(), part)?;
            let from = plan.edits.partition_point(|edit| edit.gpa < first.gpa());
            for edit in plan.edits.get(from..).unwrap_or_default() {
                let gfn = edit.gpa.gfn();
                let Some(frame) = part.chunks_exact_mut(PAGE_SIZE).nth(index(gfn, first)) else { break };
                edit.apply(frame);
            }
            let start = task.offset.0 + at * PAGE;
            let place = |at: usize| FileOffset(start + at as u64);
            let kind = |at, page: &[u8]| match base {
                _ if *page == ZEROS => Kind::Zero,
                Some(base) if base.is(place(at), page) => Kind::Inherited,
                _ => Kind::Own,
            };
            for (kind, run) in runs_alike(part, kind) {
                let offset = place(run.start);
                match kind {
                    Kind::Zero => {}
                    Kind::Inherited => add(&mut done.inherited, offset, run.len()),
                    Kind::Own => {
                        add(&mut done.data, offset, run.len());
                        put(offset, part.get(run).unwrap_or_default())?;
                    }
                }
            }
            at += pages;
        }
        Ok(())
    }

    fn failed(self, name: &str, error: io::Error) -> ImageError {
        ImageError::io("write", &self.path.join(name), error)
    }
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

fn index(gfn: Gfn, first: Gfn) -> usize {
    usize::try_from(gfn.0.saturating_sub(first.0)).unwrap_or(usize::MAX)
}

/// What becomes of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Zero,
    /// The base has it.
    Inherited,
    Own,
}

/// Each run of pages that are not zero.
pub(crate) fn nonzero(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let runs = runs_alike(bytes, |_, page| *page == ZEROS);
    runs.into_iter().filter(|(is_zero, _)| !is_zero).map(|(_, run)| run)
}

/// Each run of pages that are alike by what is told of a page, and of where it begins.
fn runs_alike<K: PartialEq>(bytes: &[u8], kind: impl Fn(usize, &[u8]) -> K) -> Vec<(K, Range<usize>)> {
    let mut runs: Vec<(K, Range<usize>)> = Vec::new();
    for (i, page) in bytes.chunks_exact(PAGE_SIZE).enumerate() {
        let start = i * PAGE_SIZE;
        let kind = kind(start, page);
        match runs.last_mut() {
            Some((last, run)) if *last == kind => run.end += PAGE_SIZE,
            _ => runs.push((kind, start..start + PAGE_SIZE)),
        }
    }
    runs
}
