//! Guest RAM to `ram.img` as QEMU sends it: page by page, in any order, some pages perhaps again.
//!
//! ```text
//! marks      one byte for each page: left out, late, watched, changed, written
//! a page     unmarked: appended to a run of pages, one write for each run
//!            otherwise: compared with what the plan was made on -> changed in a buffer -> kept, or appended
//! ```
//! A page that the plan leaves out goes nowhere, and what it changes is changed before it is appended, so
//! nothing excluded reaches a file. A page of zeros stays a hole unless it was written before.

use crate::checksum::MIN_CHUNK;
use crate::ram_writer::{Late, Written, check};
use crate::{ImageError, RAM, RamStats};
use elision_memory::{FileOffset, Gfn, PAGE_SIZE, Ram, RamLayout};
use elision_plan::Plan;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const PAGE: u64 = PAGE_SIZE as u64;
/// Longest run, so that it is still in the processor's cache when it is written.
const RUN: usize = 256 << 10;

/// The plan leaves it out, or the guest does not see it.
const OUT: u8 = 1;
/// It waits in memory.
const LATE: u8 = 2;
/// Its content is known from when the plan was made.
const WATCHED: u8 = 4;
/// It was written, or is in the run to be written.
const WRITTEN: u8 = 8;

/// RAM on its way into an image, made by [`ImageWriter::begin_stream`](crate::ImageWriter::begin_stream).
#[derive(Debug)]
pub struct StreamWriter<'a> {
    pub(crate) file: File,
    path: PathBuf,
    plan: &'a Plan,
    layout: RamLayout,
    marks: Vec<u8>,
    watched: Watched,
    late: Late,
    run_start: u64,
    run: Vec<u8>,
    /// Pages with the mark [`WRITTEN`].
    written: u64,
    /// For each [`MIN_CHUNK`] of the file, whether something was written to it.
    touched: Vec<bool>,
}

/// Frames and their content when the plan was made.
#[derive(Debug)]
pub(crate) struct Watched {
    frames: Vec<Gfn>,
    bytes: Vec<u8>,
}

impl Watched {
    /// Every frame in which the plan changes something.
    pub(crate) fn of(ram: &Ram, plan: &Plan) -> Result<Self, ImageError> {
        let mut frames: Vec<Gfn> = plan.edits.iter().map(|edit| edit.gpa.gfn()).collect();
        frames.dedup();
        let mut bytes = vec![0; frames.len().saturating_mul(PAGE_SIZE)];
        for (gfn, frame) in frames.iter().zip(bytes.chunks_exact_mut(PAGE_SIZE)) {
            ram.read(gfn.gpa(), frame)?;
        }
        Ok(Self { frames, bytes })
    }

    fn content(&self, gfn: Gfn) -> Option<&[u8]> {
        let at = self.frames.binary_search(&gfn).ok()?;
        self.bytes.chunks_exact(PAGE_SIZE).nth(at)
    }

    /// Every frame with its content.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Gfn, &[u8])> {
        self.frames.iter().copied().zip(self.bytes.chunks_exact(PAGE_SIZE))
    }
}

impl<'a> StreamWriter<'a> {
    /// `file` is empty; `ram` is the memory that the plan was made on, still as it was then.
    pub(crate) fn new(file: File, folder: &Path, ram: &Ram, plan: &'a Plan) -> Result<Self, ImageError> {
        check(plan, ram)?;
        let path = folder.join(RAM);
        let layout = ram.layout().clone();
        let len = layout.file_len();
        file.set_len(len).map_err(|e| ImageError::io("write", &path, e).or_full(len))?;
        let watched = Watched::of(ram, plan)?;
        let marks = marks(&layout, plan, &watched);
        let chunks = usize::try_from(len.div_ceil(MIN_CHUNK)).unwrap_or(usize::MAX);
        Ok(Self {
            file,
            path,
            plan,
            layout,
            marks,
            watched,
            late: Late::room_for(plan),
            run_start: 0,
            run: Vec::with_capacity(RUN),
            written: 0,
            touched: vec![false; chunks],
        })
    }

    /// Takes the page at an offset of the RAM file. When it comes again, the last one counts.
    pub fn page(&mut self, offset: FileOffset, bytes: &[u8; PAGE_SIZE]) -> Result<(), ImageError> {
        match self.mark(offset) {
            0 | WRITTEN => self.append(offset, bytes),
            mark if mark & OUT != 0 => Ok(()),
            mark => self.marked(offset, mark, *bytes),
        }
    }

    /// The same of a page whose bytes are all alike.
    pub fn fill(&mut self, offset: FileOffset, byte: u8) -> Result<(), ImageError> {
        if byte == 0 && self.mark(offset) == 0 { Ok(()) } else { self.page(offset, &[byte; PAGE_SIZE]) }
    }

    /// Writes what is still to be written.
    pub(crate) fn finish(mut self) -> Result<(File, RamLayout, Written), ImageError> {
        self.flush()?;
        let written = self.written * PAGE;
        let dropped = self.dropped();
        let all = self.layout.ram_bytes();
        let stats = RamStats { ram: all, dropped, zero: all.saturating_sub(dropped + written), written };
        let len = self.layout.file_len();
        let chunks = (0_u64..).zip(&self.touched).filter(|(_, touched)| **touched);
        let data = chunks.map(|(i, _)| FileOffset(i * MIN_CHUNK)..FileOffset(((i + 1) * MIN_CHUNK).min(len)));
        let written = Written { stats, data: data.collect(), inherited: Vec::new(), late: self.late };
        Ok((self.file, self.layout, written))
    }

    fn dropped(&self) -> u64 {
        self.plan.drops.iter().map(|run| run.count * PAGE).sum()
    }

    /// Past the end of what the guest sees everything is left out.
    fn mark(&self, offset: FileOffset) -> u8 {
        self.marks.get(index(offset)).copied().unwrap_or(OUT)
    }

    fn marked(&mut self, offset: FileOffset, mark: u8, mut frame: [u8; PAGE_SIZE]) -> Result<(), ImageError> {
        let gfn = self.layout.gpa_of(offset).unwrap_or_default().gfn();
        if mark & WATCHED != 0 && self.watched.content(gfn) != Some(&frame) {
            return Err(ImageError::Moved { gfn });
        }
        self.plan.edits_in(gfn).iter().for_each(|edit| edit.apply(&mut frame));
        if mark & LATE != 0 {
            self.late.put(gfn, &frame);
            Ok(())
        } else if mark & WRITTEN == 0 && frame == [0; PAGE_SIZE] {
            Ok(())
        } else {
            self.append(offset, &frame)
        }
    }

    fn append(&mut self, offset: FileOffset, bytes: &[u8; PAGE_SIZE]) -> Result<(), ImageError> {
        if self.run.len() == RUN || self.run_start + self.run.len() as u64 != offset.0 {
            self.flush()?;
            self.run_start = offset.0;
        }
        self.run.extend_from_slice(bytes);
        if let Some(mark) = self.marks.get_mut(index(offset)) {
            self.written += u64::from(*mark & WRITTEN == 0);
            *mark |= WRITTEN;
        }
        let chunk = usize::try_from(offset.0 / MIN_CHUNK).unwrap_or(usize::MAX);
        if let Some(chunk) = self.touched.get_mut(chunk) {
            *chunk = true;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ImageError> {
        let needed = self.layout.ram_bytes().saturating_sub(self.dropped());
        self.file
            .write_all_at(&self.run, self.run_start)
            .map_err(|e| ImageError::io("write", &self.path, e).or_full(needed))?;
        self.run.clear();
        Ok(())
    }
}

fn marks(layout: &RamLayout, plan: &Plan, watched: &Watched) -> Vec<u8> {
    let pages = usize::try_from(layout.file_len() / PAGE).unwrap_or(usize::MAX);
    let mut marks = vec![OUT; pages];
    for region in layout.regions() {
        let start = index(region.offset);
        let end = index(FileOffset(region.offset.0 + region.len));
        marks.get_mut(start..end).unwrap_or_default().fill(0);
    }
    let mut mark = |gfn: Gfn, with: u8| {
        let page = layout.offset_of(gfn.gpa(), PAGE).and_then(|offset| marks.get_mut(index(offset)));
        if let Some(page) = page {
            *page |= with;
        }
    };
    plan.drops.iter().flat_map(|run| run.first.0..run.first.0 + run.count).for_each(|f| mark(Gfn(f), OUT));
    plan.late.iter().flat_map(|run| run.start.0..run.end.0).for_each(|f| mark(Gfn(f), LATE));
    watched.frames.iter().for_each(|gfn| mark(*gfn, WATCHED));
    marks
}

fn index(offset: FileOffset) -> usize {
    usize::try_from(offset.0 / PAGE).unwrap_or(usize::MAX)
}
