//! Private memory that no process maps and that is on no free list.
//!
//! Its page tables are gone and a reference stayed: of a per-CPU batch (`survey_free` drops those), of a
//! pipe, of a write under way, or one that was lost. What the kernel may still hand on must stay whole, so a
//! page is dropped only if
//!
//! - it is on a reclaim list, one reference is left, and nothing in the kernel's memory points to it; or
//! - one reference is left, and every area it can belong to is an excluded process's.
//!
//! Everything else stays and is counted. Pages in pipes and sockets of excluded processes are cleared there.

use crate::frame_table::FrameTable;
use crate::{DropReason, PlanError, PlanSummary, Selection};
use elision_kernel::{Kernel, Unmapped};
use elision_memory::Gva;
use std::collections::{BTreeMap, BTreeSet};

const STAYS: &str = "private memory that no process maps and the kernel may still use";

/// Drops those of `pages` that are to be dropped. Everything else must have been decided before.
pub(crate) fn survey(
    kernel: &Kernel<'_>,
    mut pages: Vec<Unmapped>,
    selection: &Selection,
    table: &mut FrameTable,
    summary: &mut PlanSummary,
) -> Result<(), PlanError> {
    pages.retain(|page| !table.is_dropped(page.gfn) && !table.is_mapped(page.gfn));
    let excluded: BTreeMap<Gva, u32> =
        selection.excluded().filter_map(|process| Some((process.mm?, process.pid))).collect();
    let owners: Vec<Option<u32>> = pages.iter().map(|page| owner(kernel, page, &excluded)).collect();
    // The search for pointers reads all of the kernel's memory: only if something depends on it.
    let mut undecided = pages.iter().zip(&owners).filter(|(page, owner)| page.listed && owner.is_none());
    let pointed = if undecided.any(|(page, _)| page.held == 1) {
        let last = pages.iter().filter(|page| page.held == 1).map(|page| page.gfn);
        kernel.frames_pointed_to(&last.collect())?
    } else {
        BTreeSet::new()
    };
    for (page, owner) in pages.into_iter().zip(owners) {
        let is_dead = page.held == 1 && ((page.listed && !pointed.contains(&page.gfn)) || owner.is_some());
        if !is_dead {
            *summary.kept_frames.entry(STAYS.to_owned()).or_default() += 1;
            continue;
        }
        if let Some(pid) = owner {
            table.set_owner(page.gfn, pid);
        }
        table.drop_frame(page.gfn, DropReason::Orphan);
    }
    Ok(())
}

/// The excluded process whose page it is, if it can be nobody else's.
fn owner(kernel: &Kernel<'_>, page: &Unmapped, excluded: &BTreeMap<Gva, u32>) -> Option<u32> {
    if excluded.is_empty() {
        return None;
    }
    let spaces = kernel.spaces_of_unmapped(page);
    let mut owners = spaces.iter().map(|space| excluded.get(space).copied());
    let first = owners.next()??;
    owners.all(|owner| owner.is_some()).then_some(first)
}
