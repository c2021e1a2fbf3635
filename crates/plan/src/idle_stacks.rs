//! Stacks that nothing runs on, and the dead parts of those that CPUs run on: cleared in every image.

use crate::threads::Edits;
use crate::vcpus::{StackUse, Vcpus};
use crate::{EditReason, Owner, PlanError, Selection};
use elision_kernel::Thread;
use elision_memory::Gva;
use std::collections::BTreeMap;

/// Clears each CPU's idle stacks, what idle tasks have left, and the dead parts of the stacks of threads
/// that are on a CPU.
pub(crate) fn clear(
    edits: &mut Edits<'_, '_>,
    selection: &Selection,
    vcpus: &Vcpus,
) -> Result<(), PlanError> {
    let kernel = edits.kernel();
    let running: Vec<StackUse> = vcpus.stacks();
    let in_kernel: Vec<(usize, Gva)> = running.iter().filter_map(|s| Some((s.cpu, s.sp?))).collect();
    let mut ranges = Vec::new();
    kernel.idle_stacks(&in_kernel, &mut |range| ranges.push(range))?;
    for range in ranges {
        edits.zero(range, EditReason::IdleStack, None)?;
    }

    let on_cpu: BTreeMap<Gva, Option<Gva>> = running.iter().map(|s| (s.task, s.sp)).collect();
    for thread in kernel.idle_threads()? {
        match on_cpu.get(&thread.task) {
            Some(sp) => dead_below(edits, &thread, *sp, None)?,
            // A CPU that stands between two tasks has not told yet which one it runs.
            None if thread.on_cpu => {}
            None => {
                if let Some(stack) = kernel.stack(&thread)? {
                    edits.zero(stack.dead(), EditReason::DeadStack, None)?;
                }
            }
        }
    }
    for process in &selection.processes {
        let owner = selection.excluded.contains(&process.pid).then_some(process.pid);
        for thread in process.threads.iter().filter(|t| t.on_cpu && !t.dead) {
            if let Some(sp) = on_cpu.get(&thread.task) {
                dead_below(edits, thread, *sp, owner)?;
            }
        }
    }
    Ok(())
}

/// Clears the stack of a task on a CPU up to the stack pointer, or up to the saved registers in user mode.
fn dead_below(
    edits: &mut Edits<'_, '_>,
    thread: &Thread,
    sp: Option<Gva>,
    owner: Owner,
) -> Result<(), PlanError> {
    let kernel = edits.kernel();
    let Some(stack) = kernel.stack(thread)? else { return Ok(()) };
    let start = stack.dead().start;
    let end = match sp {
        // On another stack of its CPU: how deep it stands in its own is not known.
        Some(sp) => Some(sp).filter(|sp| (start..stack.base.wrapping_add(stack.size)).contains(sp)),
        None => kernel.saved_registers(&stack)?.clear.iter().map(|range| range.start).min(),
    };
    match end {
        Some(end) => edits.zero(start..end, EditReason::DeadStack, owner),
        None => Ok(()),
    }
}
