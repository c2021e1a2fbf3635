//! Edits for threads: dead stacks of all, registers and pending signals of the excluded.

use crate::{Change, Edit, EditReason, Owner, PlanError, Selection};
use elision_kernel::{Kernel, Process, WordEdit};
use elision_memory::{Gpa, Gva};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Edits in order of application.
pub(crate) struct Edits<'a, 'k> {
    kernel: &'a Kernel<'k>,
    pub(crate) list: Vec<Edit>,
}

impl<'a, 'k> Edits<'a, 'k> {
    pub(crate) fn new(kernel: &'a Kernel<'k>) -> Self {
        Self { kernel, list: Vec::new() }
    }

    /// The kernel that is looked at.
    pub(crate) fn kernel(&self) -> &'a Kernel<'k> {
        self.kernel
    }

    /// Clears a range of kernel memory.
    pub(crate) fn zero(
        &mut self,
        range: Range<Gva>,
        reason: EditReason,
        owner: Owner,
    ) -> Result<(), PlanError> {
        let len = range.end.0.saturating_sub(range.start.0);
        for (gpa, part) in self.kernel.frames_of(range.start, len)? {
            self.zero_at(gpa, part, reason, owner);
        }
        Ok(())
    }

    /// Clears a part of one frame.
    pub(crate) fn zero_at(&mut self, gpa: Gpa, len: u64, reason: EditReason, owner: Owner) {
        let len = u32::try_from(len).unwrap_or(u32::MAX); // at most a frame
        self.list.push(Edit { gpa, change: Change::Zero(len), reason, owner });
    }

    pub(crate) fn write(
        &mut self,
        word: &WordEdit,
        reason: EditReason,
        owner: Owner,
    ) -> Result<(), PlanError> {
        let mut rest = word.bytes.as_slice();
        for (gpa, part) in self.kernel.frames_of(word.at, rest.len() as u64)? {
            let (now, later) = rest.split_at(usize::try_from(part).unwrap_or(0).min(rest.len()));
            self.list.push(Edit { gpa, change: Change::Write(now.into()), reason, owner });
            rest = later;
        }
        Ok(())
    }

    /// Clears what calls that returned have left on the stacks of all sleeping threads.
    pub(crate) fn dead_stacks(&mut self, selection: &Selection) -> Result<(), PlanError> {
        let kernel = self.kernel;
        let clear = |process: &Process| {
            let mut edits = Edits::new(kernel);
            let owner = selection.excluded.contains(&process.pid).then_some(process.pid);
            for thread in process.threads.iter().filter(|t| !t.on_cpu && !t.dead) {
                if let Some(stack) = kernel.stack(thread)? {
                    edits.zero(stack.dead(), EditReason::DeadStack, owner)?;
                }
            }
            Ok::<_, PlanError>(edits.list)
        };
        let found: Vec<_> = selection.processes.par_iter().map(clear).collect();
        found.into_iter().try_for_each(|edits| {
            self.list.extend(edits?);
            Ok(())
        })
    }

    /// Clears an excluded process's registers and makes SIGKILL pending for each thread.
    /// `running` tells which tasks are on a vCPU, and whether in user mode.
    pub(crate) fn excluded_process(
        &mut self,
        process: &Process,
        running: &BTreeMap<Gva, bool>,
    ) -> Result<(), PlanError> {
        let owner = Some(process.pid);
        let busy = |what| PlanError::Busy { pid: process.pid, comm: process.comm.clone(), what };
        for thread in process.threads.iter().filter(|t| !t.dead) {
            if thread.exiting {
                return Err(busy("it is exiting"));
            }
            match (thread.on_cpu, running.get(&thread.task)) {
                (false, None) => {}
                (true, Some(true)) => {} // its stack was cleared with those of all that run
                _ => return Err(busy("a thread of it is running in the kernel")),
            }
            if let Some(stack) = self.kernel.stack(thread)? {
                for range in self.kernel.saved_registers(&stack)?.clear {
                    self.zero(range, EditReason::UserRegisters, owner)?;
                }
                let gap = if thread.on_cpu { None } else { self.kernel.unused_gap(&stack)? };
                if let Some(gap) = gap {
                    self.zero(gap, EditReason::DeadStack, owner)?;
                }
            }
            let fpu = self.kernel.fpu_area(thread)?;
            self.zero(fpu.at..fpu.at.wrapping_add(fpu.len), EditReason::FpuState, owner)?;
            for word in fpu.initial_words(self.kernel)? {
                self.write(&word, EditReason::FpuState, owner)?;
            }
            for word in self.kernel.kill_edits(thread)? {
                self.write(&word, EditReason::PendingKill, owner)?;
            }
        }
        Ok(())
    }

    /// The edits by frame, in each frame in order of application.
    pub(crate) fn into_sorted(mut self) -> Vec<Edit> {
        self.list.par_sort_by_key(|edit| edit.gpa.gfn());
        self.list
    }
}

/// The saved FPU states of all threads that stay.
pub(crate) fn kept_fpus(kernel: &Kernel<'_>, selection: &Selection) -> BTreeSet<Gva> {
    selection.kept().flat_map(|p| &p.threads).filter(|t| !t.dead).map(|t| kernel.fpu_of(t)).collect()
}
