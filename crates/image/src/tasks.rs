//! What of RAM is to be copied, in pieces that threads can share.
//!
//! ```text
//! RAM file   [data][hole][data .............][hole]
//! tasks      [t0  ]      [t1      ][t2      ]           at most 4 MiB, within a region, without drops and late
//! ```

use crate::checksum::MIN_CHUNK;
use elision_memory::{FileOffset, Gfn, Gpa, PAGE_SIZE, Ram, joined};
use elision_plan::Plan;
use std::ops::Range;

const PAGE: u64 = PAGE_SIZE as u64;

/// Consecutive frames that are copied.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) first: Gfn,
    pub(crate) count: u64,
    pub(crate) offset: FileOffset,
}

impl Task {
    pub(crate) fn bytes(&self) -> u64 {
        self.count * PAGE
    }

    /// Where in the RAM file they are.
    pub(crate) fn range(&self) -> Range<FileOffset> {
        self.offset..FileOffset(self.offset.0 + self.bytes())
    }
}

/// What is to be copied: populated, mapped by the layout, not dropped; cut at each 4 MiB of the file.
///
/// An edit of a page that is a hole must be written too, so holes with edits are added.
pub(crate) fn tasks(ram: &Ram, populated: &[Range<FileOffset>], plan: &Plan) -> Vec<Task> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    for part in populated {
        parts.push(part.start.0 / PAGE * PAGE..part.end.0.div_ceil(PAGE) * PAGE);
    }
    for edit in &plan.edits {
        if let Some(offset) = ram.layout().offset_of(edit.gpa.gfn().gpa(), PAGE) {
            parts.push(offset.0..offset.0 + PAGE);
        }
    }
    let merged = joined(parts);
    let drops = plan.drops.iter().map(|run| run.first.0..run.first.0 + run.count);
    let mut skipped: Vec<_> = drops.chain(plan.late.iter().map(|run| run.start.0..run.end.0)).collect();
    skipped.sort_by_key(|run| run.start);
    let mut tasks = Vec::new();
    for region in ram.layout().regions() {
        let (start, end) = (region.offset.0, region.offset.0 + region.len);
        let from = merged.partition_point(|part| part.end <= start);
        for part in merged.get(from..).unwrap_or_default().iter().take_while(|part| part.start < end) {
            let gfn = |offset: u64| Gpa(region.gpa.0 + (offset - start)).gfn().0;
            let kept = gfn(part.start.max(start))..gfn(part.end.min(end));
            for frames in without(&skipped, kept) {
                let offset = |gfn: u64| start + (Gfn(gfn).gpa().0 - region.gpa.0);
                cut(&mut tasks, frames.start, offset(frames.start)..offset(frames.end));
            }
        }
    }
    tasks.sort_by_key(|task| task.offset);
    tasks
}

/// What of `frames` is in none of the ascending runs of `skipped`.
fn without(skipped: &[Range<u64>], frames: Range<u64>) -> Vec<Range<u64>> {
    let mut kept = Vec::new();
    let mut at = frames.start;
    let from = skipped.partition_point(|run| run.end <= at);
    for run in skipped.get(from..).unwrap_or_default() {
        if run.start >= frames.end {
            break;
        }
        if run.start > at {
            kept.push(at..run.start);
        }
        at = run.end;
    }
    if at < frames.end {
        kept.push(at..frames.end);
    }
    kept
}

fn cut(tasks: &mut Vec<Task>, mut first: u64, mut bytes: Range<u64>) {
    while bytes.start < bytes.end {
        let stop = ((bytes.start / MIN_CHUNK + 1) * MIN_CHUNK).min(bytes.end);
        let count = (stop - bytes.start) / PAGE;
        tasks.push(Task { first: Gfn(first), count, offset: FileOffset(bytes.start) });
        first += count;
        bytes.start = stop;
    }
}
