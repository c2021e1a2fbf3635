//! The steps of planning, in order.

use crate::channels::Channels;
use crate::frames::FrameSurvey;
use crate::threads::{Edits, kept_fpus};
use crate::vcpus::Vcpus;
use crate::{EditReason, Plan, PlanError, PlanSummary, Selection, VcpuAction, VcpuState};
use crate::{cached_files, idle_stacks, orphans};
use elision_kernel::{Kernel, Process, Slabs};
use elision_memory::Gfn;
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

/// How to plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Leave out what can be, and list what cannot instead of refusing.
    pub best_effort: bool,
    /// Clear all of the kernel's log, and not only what excluded processes wrote.
    pub clear_log: bool,
    /// Refuse while a process that stays can have received data of an excluded one.
    pub refuse_dependents: bool,
}

/// A plan, and what it asks of the vCPUs.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// For memory.
    pub plan: Plan,
    /// For each vCPU.
    pub vcpus: Vec<VcpuAction>,
    /// The slabs of the VM, for [`crate::plan_late`].
    pub slabs: Slabs,
    /// The first frames of blocks that the kernel may be clearing, for [`crate::SeenBlocks`].
    pub fresh: Vec<Gfn>,
}

/// Plans a checkpoint of a VM that is stopped.
///
/// An error with [`PlanError::is_transient`] means that the guest was stopped in the middle of
/// something: let it run for a moment, stop it and plan again.
pub fn plan(
    kernel: &Kernel<'_>,
    selection: &Selection,
    vcpus: &[VcpuState],
    options: Options,
) -> Result<Outcome, PlanError> {
    let begin = Instant::now();
    let done = |what| tracing::debug!(since_begin = ?begin.elapsed(), "{what}");
    let mut summary = PlanSummary::default();
    let vcpus = Vcpus::survey(kernel, vcpus)?;
    let live: Vec<&Process> = selection.excluded().filter(|p| p.threads.iter().any(|t| !t.dead)).collect();

    let mut edits = Edits::new(kernel);
    idle_stacks::clear(&mut edits, selection, &vcpus)?;
    edits.dead_stacks(selection)?;
    let running = vcpus.running();
    for process in &live {
        edits.excluded_process(process, &running)?;
    }
    for (owner, word) in kernel.signal_work(&live, &selection.processes)?.edits {
        edits.write(&word, EditReason::WakeUp, owner)?;
    }
    let interrupt = if live.is_empty() { None } else { Some(kernel.irq_work_vector()?) };
    let excluded_tasks: BTreeSet<_> = live.iter().flat_map(|p| &p.threads).map(|t| t.task).collect();
    let actions = vcpus.actions(&excluded_tasks, &kept_fpus(kernel, selection), interrupt)?;

    done("threads planned");
    let mut survey = FrameSurvey::new(kernel)?;
    let found = || {
        survey.survey_processes(selection, &mut summary)?;
        done("memory of processes surveyed");
        cached_files::survey(kernel, selection, &mut edits, &mut survey, options.best_effort)?;
        Channels::new(kernel, selection, &live, options, &mut edits, &mut survey)?.survey()?;
        done("channels surveyed");
        survey.survey_swap(selection, &mut summary)?;
        survey.survey_free()
    };
    // Much of this is one thread's work: the others look at descriptors meanwhile.
    let (found, census) = rayon::join(found, || kernel.census());
    found?;
    let census = census?;
    survey.survey_unlisted(&census.unlisted)?;
    let fresh = survey.fresh_blocks(&census.fresh)?;
    for range in vcpus.zeroing(kernel) {
        // What is no memory of the kernel's has its owner.
        let frames =
            kernel.frames_of(range.start, range.end.0.saturating_sub(range.start.0)).unwrap_or_default();
        for (gpa, len) in frames.into_iter().filter(|(gpa, _)| !survey.table.is_dropped(gpa.gfn())) {
            edits.zero_at(gpa, len, EditReason::FreeObject, None);
        }
    }
    done("all frames surveyed");
    orphans::survey(kernel, census.unmapped, selection, &mut survey.table, &mut summary)?;
    summary.dependents =
        selection.dependents.iter().map(|(pid, relation)| (*pid, relation.excluded)).collect();
    let mut unaccounted = std::mem::take(&mut survey.unaccounted);
    if options.refuse_dependents {
        unaccounted.extend(selection.refused_dependents(kernel)?);
    }
    if !unaccounted.is_empty() && !options.best_effort {
        return Err(PlanError::Unaccounted(unaccounted));
    }
    summary.unaccounted = unaccounted;

    let mut plan = Plan {
        drops: survey.table.into_runs(&mut summary),
        edits: edits.into_sorted(),
        late: census.slabs.frames().to_vec(),
        summary,
    };
    // Kernel memory is not free: a plan that says so was misled by the guest. A process's page can be in
    // the kernel's hands as well, and is dropped as a whole.
    let edited = plan.edits.iter().filter_map(|edit| Some((edit, plan.drop_of(edit.gpa.gfn())?)));
    if let Some((edit, _)) = edited.clone().find(|(_, run)| run.owner.is_none()) {
        return Err(PlanError::Contradiction { gpa: edit.gpa.gfn().gpa() });
    }
    let is_dropped = |run: &&Range<Gfn>| {
        let behind = plan.drops.partition_point(|drop| drop.first.0 + drop.count <= run.start.0);
        plan.drops.get(behind).is_some_and(|drop| drop.first < run.end)
    };
    if let Some(run) = plan.late.iter().find(is_dropped) {
        return Err(PlanError::Contradiction { gpa: run.start.gpa() });
    }
    let dropped: BTreeSet<Gfn> = edited.map(|(edit, _)| edit.gpa.gfn()).collect();
    plan.edits.retain(|edit| !dropped.contains(&edit.gpa.gfn()));
    for edit in &plan.edits {
        *plan.summary.edited_bytes.entry(edit.reason).or_default() += edit.len() as u64;
    }
    done("assembled");
    Ok(Outcome { plan, vcpus: actions, slabs: census.slabs, fresh })
}
