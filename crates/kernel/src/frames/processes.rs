//! What the processes tell of frames: what they map and with which tables, their stacks, their pipes.

use super::{FrameKind, FrameScan};
use crate::{Content, Entry, FileKind, Kernel, KernelError, Process, Pte};
use elision_memory::{Budget, Gfn, LeafSize, Node};
use std::collections::BTreeSet;

/// As by the planner: no more than this of a file table fits into a frame.
const SLOTS_IN_FRAME: u64 = 128;

impl FrameScan {
    /// Adds what all processes tell. What is anonymous and mapped by none of them is an orphan then.
    pub fn explain(&mut self, kernel: &Kernel<'_>, processes: &[Process]) -> Result<(), KernelError> {
        let limit = kernel.ram.layout().frame_limit().0;
        let swap_areas = kernel.swap_areas()?;
        let (mut spaces, mut large) = (BTreeSet::new(), BTreeSet::new());
        let budget = Budget::new(limit);
        for process in processes {
            self.note_stacks(kernel, process);
            let Some(addr) = process.mm.filter(|addr| spaces.insert(*addr)) else { continue };
            let (mm, pid) = (kernel.mm(addr)?, process.pid);
            // With isolation of page tables, or room for it, the one for user mode stands behind.
            let pair = Gfn(mm.tables.root().gfn().0 ^ 1);
            if pair > mm.tables.root().gfn() && self.kind(pair) == FrameKind::Unknown {
                self.set(pair, FrameKind::PageTable);
                self.own(pair, pid);
            }
            mm.tables.walk_nodes(kernel.ram, mm.tables.user_range(), &budget, |node| match node {
                Node::Table(table) => {
                    self.refine(table.gfn(), FrameKind::PageTable);
                    self.own(table.gfn(), pid);
                }
                Node::Leaf(leaf) => {
                    let entry = Entry::of(leaf, swap_areas);
                    let Pte::Memory(gpa) = entry.pte else { return };
                    let first = gpa.gfn();
                    if entry.size != LeafSize::Size4K && !large.insert((first, entry.size)) {
                        return;
                    }
                    let end = first.0.saturating_add(entry.size.frames()).min(limit);
                    for gfn in (first.0..end).map(Gfn) {
                        self.refine(gfn, FrameKind::Driver);
                        self.own(gfn, pid);
                    }
                }
            })?;
        }
        self.note_pipes(kernel, processes, limit)?;
        self.note_orphans(kernel)
    }

    fn note_stacks(&mut self, kernel: &Kernel<'_>, process: &Process) {
        for thread in &process.threads {
            // One that is just being released is none any more.
            let Ok(Some((base, size))) = kernel.stack_extent(thread) else { continue };
            for (gpa, _) in kernel.frames_of(base, size).unwrap_or_default() {
                if self.kind(gpa.gfn()) == FrameKind::Vmalloc {
                    self.set(gpa.gfn(), FrameKind::KernelStack);
                }
                self.refine(gpa.gfn(), FrameKind::KernelStack);
                self.own(gpa.gfn(), process.pid);
            }
        }
    }

    fn note_pipes(
        &mut self,
        kernel: &Kernel<'_>,
        processes: &[Process],
        limit: u64,
    ) -> Result<(), KernelError> {
        let slots_left = Budget::new(limit.saturating_mul(SLOTS_IN_FRAME));
        let (mut files, mut pipes) = (BTreeSet::new(), BTreeSet::new());
        for process in processes {
            let mut opened = Vec::new();
            kernel.for_each_file(process, &slots_left, &mut |file| {
                if files.insert(file) {
                    opened.push(file);
                }
                Ok(())
            })?;
            for file in opened {
                let FileKind::Pipe(pipe) = kernel.open_file(file)?.kind else { continue };
                if !pipes.insert(pipe) {
                    continue;
                }
                kernel.pipe_content(pipe, &mut |content| {
                    let Content::Page { at, .. } = content else { return };
                    self.refine(at.gfn(), FrameKind::Pipe);
                    self.own(at.gfn(), process.pid);
                })?;
            }
        }
        Ok(())
    }

    /// Anonymous pages of which no part is mapped or in a pipe, and that are not on their way to swap.
    fn note_orphans(&mut self, kernel: &Kernel<'_>) -> Result<(), KernelError> {
        let unowned = |scan: &Self, gfn| scan.kind(gfn) == FrameKind::Anonymous && scan.owner(gfn).is_none();
        let candidates: Vec<Gfn> =
            self.frames().map(|(gfn, _)| gfn).filter(|gfn| unowned(self, *gfn)).collect();
        let mut at = 0;
        for gfn in candidates {
            if gfn.0 < at {
                continue;
            }
            let frames = kernel.compound_frames(kernel.page(gfn)?.head)?;
            at = frames.end;
            if frames.clone().all(|f| unowned(self, Gfn(f))) && !kernel.is_in_swap_cache(Gfn(frames.start))? {
                frames.for_each(|f| self.set(Gfn(f), FrameKind::Orphan));
            }
        }
        Ok(())
    }
}
