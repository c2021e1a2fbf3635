//! Guest RAM that comes page by page while the VM runs on, some pages again and again: it waits in memory until it
//! is known what of it may be kept.
//!
//! ```text
//! VM runs           pages ─> memory, the last counts; what a guess of the plan drops is not taken
//! VM stands still   plan; what it changes, and what it keeps and was not taken, is read from the VM
//! VM runs           what the plan drops is cleared, what it changes is changed; the rest is a copy like any other
//! ```
//! Pages that were free are taken when they come again, as somebody uses them then. Those that belong to excluded
//! processes are never taken, so for the most part not even this memory, which is no storage, holds them.

use crate::ImageError;
use crate::RamStats;
use crate::ram_writer::{Late, Written, check};
use crate::ranges::add;
use crate::room::{available, prefer_huge};
use crate::stream_writer::Watched;
use crate::tasks::{Task, tasks};
use elision_memory::{FileOffset, Gfn, PAGE_SIZE, Ram, RamLayout, Staging};
use elision_plan::{DropReason, Plan};
use std::io;

const PAGE: u64 = PAGE_SIZE as u64;

/// It is not taken.
const PRIVATE: u8 = 1;
/// It is not taken the first time.
const FREE: u8 = 2;
/// It came and was not taken.
const MISSING: u8 = 4;
/// It is in memory, and not all zero.
const HELD: u8 = 8;
/// The plan leaves it out, or it is late: it is no part of the data.
const OUT: u8 = 16;

/// RAM that arrives before its plan, made by [`ImageWriter::begin_precopy`](crate::ImageWriter::begin_precopy).
#[derive(Debug)]
pub struct Precopy {
    staging: Staging,
    layout: RamLayout,
    /// For each page of the file.
    marks: Vec<u8>,
}

impl Precopy {
    /// Whether the host can spare what a plan like `guess` would keep, twice.
    #[must_use]
    pub fn fits(ram: &Ram, guess: &Plan) -> bool {
        tasks(ram, &ram.populated(), guess).iter().map(Task::bytes).sum::<u64>() <= available()
    }

    /// Nothing has come yet.
    pub(crate) fn new(ram: &Ram, guess: &Plan) -> io::Result<Self> {
        let tasks = tasks(ram, &ram.populated(), guess);
        let layout = ram.layout().clone();
        let staging = Staging::new(layout.file_len())?;
        prefer_huge(&staging, &tasks.iter().map(Task::range).collect::<Vec<_>>());
        // What the guest does not see is not taken either.
        let mut marks = vec![PRIVATE; index(FileOffset(layout.file_len()))];
        for region in layout.regions() {
            let end = FileOffset(region.offset.0 + region.len);
            marks.get_mut(index(region.offset)..index(end)).unwrap_or_default().fill(0);
        }
        let mut precopy = Self { staging, layout, marks };
        precopy.mark_drops(guess, |reason| match reason {
            DropReason::Free | DropReason::FreePerCpu | DropReason::FreeHuge => FREE,
            _ => PRIVATE,
        });
        Ok(precopy)
    }

    /// Takes the page at an offset of the RAM file. When it comes again, the last one counts.
    pub fn page(&mut self, offset: FileOffset, bytes: &[u8; PAGE_SIZE]) {
        let Some(mark) = self.marks.get_mut(index(offset)) else { return };
        if *mark & (PRIVATE | FREE) != 0 {
            *mark = *mark & PRIVATE | MISSING;
        } else if let Some(page) = self.staging.page(offset) {
            *page = *bytes;
            *mark = HELD;
        }
    }

    /// The same of a page whose bytes are all alike.
    pub fn fill(&mut self, offset: FileOffset, byte: u8) {
        if byte != 0 {
            return self.page(offset, &[byte; PAGE_SIZE]);
        }
        let Some(mark) = self.marks.get_mut(index(offset)) else { return };
        if *mark & HELD != 0 {
            self.staging.page(offset).into_iter().for_each(|page| page.fill(0));
        }
        *mark &= PRIVATE;
    }

    /// Reads what did not come and `plan` keeps. All pages have come; `ram` is what the plan was made on, and
    /// the VM has not run since.
    pub(crate) fn settle(mut self, ram: &Ram, plan: &Plan) -> Result<Settled, ImageError> {
        check(plan, ram)?;
        self.mark_drops(plan, |_| OUT);
        for (i, mark) in (0..).zip(&mut self.marks).filter(|(_, mark)| **mark & (MISSING | OUT) == MISSING) {
            let offset = FileOffset(i * PAGE);
            if let (Some(gpa), Some(page)) = (self.layout.gpa_of(offset), self.staging.page(offset)) {
                ram.read(gpa, page)?;
                *mark = HELD;
            }
        }
        Ok(Settled { precopy: self, watched: Watched::of(ram, plan)? })
    }

    fn mark_drops(&mut self, plan: &Plan, with: impl Fn(DropReason) -> u8) {
        for run in &plan.drops {
            let mut mark = |first: Gfn, count: u64| {
                let offset = self.layout.offset_of(first.gpa(), count * PAGE)?;
                let pages =
                    self.marks.get_mut(index(offset)..)?.iter_mut().take(usize::try_from(count).ok()?);
                pages.for_each(|mark| *mark |= with(run.reason));
                Some(())
            };
            if mark(run.first, run.count).is_none() {
                // It lies across a gap.
                (run.first.0..run.first.0 + run.count).for_each(|gfn| _ = mark(Gfn(gfn), 1));
            }
        }
    }
}

/// RAM as it was while the VM stood still, and what is needed to carry out the plan.
#[derive(Debug)]
pub(crate) struct Settled {
    precopy: Precopy,
    watched: Watched,
}

impl Settled {
    /// Carries out the plan, but for what is late. What it changes must have come as the plan saw it.
    pub(crate) fn carry_out(self, plan: &Plan) -> Result<(Staging, RamLayout, Written), ImageError> {
        let Self { precopy: Precopy { mut staging, layout, mut marks, .. }, watched } = self;
        let place = |gfn: Gfn| layout.offset_of(gfn.gpa(), PAGE).unwrap_or(FileOffset(u64::MAX));
        for (gfn, seen) in watched.each() {
            let (offset, bad) = (place(gfn), ImageError::Moved { gfn });
            let (Some(page), Some(mark)) = (staging.page(offset), marks.get_mut(index(offset))) else {
                return Err(bad);
            };
            if *mark & OUT != 0 {
                continue;
            }
            if page != seen {
                return Err(bad);
            }
            plan.edits_in(gfn).iter().for_each(|edit| edit.apply(page));
            *mark = if page.iter().all(|byte| *byte == 0) { 0 } else { HELD };
        }
        let mut late = Late::room_for(plan);
        for gfn in plan.late.iter().flat_map(|run| run.start.0..run.end.0).map(Gfn) {
            let offset = place(gfn);
            if let (Some(page), Some(mark)) = (staging.page(offset), marks.get_mut(index(offset))) {
                late.put(gfn, page);
                *mark |= OUT;
            }
        }
        let mut data = Vec::new();
        for (i, mark) in (0..).zip(&marks) {
            let offset = FileOffset(i * PAGE);
            match mark & (HELD | OUT) {
                HELD => add(&mut data, offset, PAGE_SIZE),
                0 | OUT => {}
                _ => staging.page(offset).into_iter().for_each(|page| page.fill(0)),
            }
        }
        let written = data.iter().map(|run| run.end.0 - run.start.0).sum();
        let dropped = plan.drops.iter().map(|run| run.count * PAGE).sum();
        let all = layout.ram_bytes();
        let stats = RamStats { ram: all, dropped, zero: all.saturating_sub(dropped + written), written };
        Ok((staging, layout, Written { stats, data, inherited: Vec::new(), late }))
    }
}

fn index(offset: FileOffset) -> usize {
    usize::try_from(offset.0 / PAGE).unwrap_or(usize::MAX)
}
