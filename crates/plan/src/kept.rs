//! What processes that stay map and have open. All their page tables are walked only if something depends on it that
//! the kernel's own counts do not tell.
//!
//! | page | what is counted | by |
//! |---|---|---|
//! | a frame | entries of page tables that lead to it | `_mapcount` |
//! | several frames that are one page | references; each entry that leads to a part of it holds one | `_refcount` of the first |
//!
//! The kernel counts an entry before it writes it, and takes it from the count when the entry is gone. So when as many
//! entries were found in the page tables of excluded processes as are counted, no other process maps the page.

use crate::frame_table::{Mapper, lock, owned};
use crate::frames::FrameSurvey;
use crate::{PlanError, Selection};
use elision_kernel::{Entry, KernelError, Page, Process, Pte, SwapSlot};
use elision_memory::{Gfn, Gva};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// What is known of processes that stay.
#[derive(Default)]
pub(crate) struct Kept {
    /// Their address spaces.
    spaces: Vec<Gva>,
    are_walked: bool,
    /// Frames of excluded processes that are the copy of a slot in swap: who has the slot is given that. Known when
    /// the page tables are walked.
    copies: BTreeMap<SwapSlot, Gfn>,
    /// What they have open, once it is asked for.
    files: Option<BTreeSet<Gva>>,
}

impl Kept {
    /// Adds an address space without marked memory.
    pub(crate) fn add(&mut self, space: Gva) {
        self.spaces.push(space);
    }
}

impl FrameSurvey<'_, '_> {
    /// Whether a process that stays maps the frame. All excluded processes must have been looked at.
    pub(crate) fn is_kept(&mut self, gfn: Gfn) -> Result<bool, PlanError> {
        if !self.kept.are_walked {
            let page = self.kernel.page(gfn).ok(); // what has no descriptor is no memory
            if !page.is_some_and(|page| self.is_told(&[page])) {
                self.walk_kept()?;
            }
        }
        Ok(self.table.is_kept(gfn))
    }

    /// Whether it is known of the frames of one page, those that excluded processes map, if others map them too.
    pub(crate) fn is_told(&self, page: &[Page]) -> bool {
        let entries = page.iter().fold(0_u32, |sum, frame| sum.saturating_add(self.table.entries(frame.gfn)));
        self.kept.are_walked || page.iter().all(|frame| frame.mappings == Some(entries))
    }

    /// Keeps all that they map, and finds out what of their swap is that of excluded processes too. Several threads do
    /// this at once, each for other address spaces.
    pub(crate) fn walk_kept(&mut self) -> Result<(), PlanError> {
        if std::mem::replace(&mut self.kept.are_walked, true) {
            return Ok(());
        }
        if self.swap_areas > 0 {
            for gfn in self.table.owned() {
                self.kept.copies.extend(self.kernel.slot_of(gfn)?.map(|slot| (slot, gfn)));
            }
        }
        let shared = Mutex::default();
        let walked: Vec<Result<(), PlanError>> =
            self.kept.spaces.par_iter().map(|space| self.keep_space(*space, &shared)).collect();
        walked.into_iter().collect::<Result<(), _>>()?; // the first error, whichever thread was faster
        owned(shared).into_iter().for_each(|(first, pages)| self.swapped.keep(first, pages));
        Ok(())
    }

    fn keep_space(&self, space: Gva, shared: &Mutex<BTreeSet<(SwapSlot, u64)>>) -> Result<(), PlanError> {
        self.walk(self.kernel.mm(space)?, |_, entry| {
            if let Some(slots) = self.keep_entry(entry) {
                lock(shared).insert(slots);
            }
        })
    }

    /// Keeps what an entry of a process that stays leads to, or its copy in memory if it is in swap. Gives the slots
    /// there, and how many, if excluded processes have one of them too.
    pub(crate) fn keep_entry(&self, entry: Entry) -> Option<(SwapSlot, u64)> {
        match entry.pte {
            Pte::Memory(gpa) => {
                let frames = self.table.new_frames(&self.large, gpa.gfn(), entry.size, Mapper::Kept);
                frames.for_each(|gfn| self.table.keep(gfn));
                None
            }
            Pte::Swap { area, slot } => {
                let (first, pages) = (SwapSlot { area, slot }, entry.size.frames());
                let copies = self.kept.copies.range(first..first.plus(pages));
                copies.for_each(|(_, gfn)| self.table.keep(*gfn));
                self.swapped.has(first, pages).then_some((first, pages))
            }
            Pte::Marker | Pte::Special(_) => None,
        }
    }

    /// What the processes have open that stay, by its `struct file`.
    pub(crate) fn kept_files(&mut self, selection: &Selection) -> Result<&BTreeSet<Gva>, PlanError> {
        if self.kept.files.is_none() {
            let files_of = |process: &&Process| {
                let mut files = Vec::new();
                self.kernel.for_each_file(process, &self.slots_left, &mut |file| {
                    files.push(file);
                    Ok(())
                })?;
                Ok(files)
            };
            let kept: Vec<&Process> = selection.kept().collect();
            let files: Vec<Result<Vec<Gva>, KernelError>> = kept.par_iter().map(files_of).collect();
            let files: Vec<Vec<Gva>> = files.into_iter().collect::<Result<_, _>>()?;
            self.kept.files = Some(files.into_iter().flatten().collect());
        }
        Ok(self.kept.files.get_or_insert_default())
    }
}
