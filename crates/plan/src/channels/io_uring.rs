//! io_uring: rings that no process uses which stays, and requests that they are waiting for.

use super::Channels;
use crate::{EditReason, PlanError};
use std::collections::BTreeMap;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let mut rings = BTreeMap::new();
    for (file, pid) in channels.opened_alone(|file| kernel.io_ring_of(file).is_some())? {
        rings.extend(kernel.io_ring_of(&file).map(|ring| (ring, pid)));
    }
    // A ring can be used without an open file: by its mapping, or by its number in the task.
    for process in channels.live {
        for ring in kernel.io_rings_used_by(process)? {
            rings.entry(ring).or_insert(process.pid);
        }
    }
    if rings.is_empty() {
        return Ok(());
    }
    for process in channels.selection.kept() {
        for ring in kernel.io_rings_used_by(process)? {
            rings.remove(&ring);
        }
    }
    for (ring, pid) in &rings {
        channels.clear_found(EditReason::Event, Some(*pid), |kernel, visit| {
            kernel.io_ring_content(*ring, visit)
        })?;
    }
    let mut requests = Vec::new();
    kernel.io_requests(&mut |ring, data| requests.extend(rings.get(&ring).map(|pid| (*pid, data))))?;
    for (pid, data) in requests {
        channels.clear(vec![data], EditReason::Event, Some(pid))?;
    }
    Ok(())
}
