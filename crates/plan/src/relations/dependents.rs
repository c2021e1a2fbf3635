//! Taking dependents along, and theirs, until none is left.

use super::index::Index;
use super::{Relation, Role};
use crate::PlanError;
use elision_kernel::{Kernel, Process};
use std::collections::{BTreeMap, BTreeSet};

/// Adds the dependents of excluded processes to these, each with the relation that made it one.
pub(crate) fn take_dependents(
    kernel: &Kernel<'_>,
    processes: &[Process],
    excluded: &mut BTreeSet<u32>,
) -> Result<BTreeMap<u32, Relation>, PlanError> {
    let mut taken = BTreeMap::new();
    if excluded.is_empty() {
        return Ok(taken);
    }
    let mut index = Index::new(kernel, processes)?;
    let by_pid: BTreeMap<u32, &Process> = processes.iter().map(|p| (p.pid, p)).collect();
    let mut todo: Vec<u32> = excluded.iter().copied().collect();
    todo.iter().for_each(|pid| index.leave_out(*pid));
    while let Some(pid) = todo.pop() {
        let Some(process) = by_pid.get(&pid) else { continue };
        let mut dependents: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for link in index.links(process)?.into_iter().filter(|link| link.carries) {
            dependents.entry(link.other).or_default().push(link);
        }
        for (other, links) in dependents {
            // What it is most of all: a terminal server has sockets and pipes as well.
            let telling = links.iter().max_by_key(|link| link.role != Role::Peer);
            if let Some(link) = telling.filter(|link| !link.role.stays()) {
                taken.insert(other, index.describe(pid, link)?);
                excluded.insert(other);
                index.leave_out(other);
                todo.push(other);
            }
        }
    }
    Ok(taken)
}
