//! Keys that no process can reach which stays: they become zeros of the same length.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_memory::Gva;
use std::collections::BTreeMap;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let mut owners: BTreeMap<Gva, u32> = BTreeMap::new();
    for process in channels.live {
        let mut keys = kernel.no_keys();
        kernel.add_keys_of(process, &mut keys)?;
        for key in keys.keys {
            owners.entry(key).or_insert(process.pid);
        }
    }
    let mut kept = kernel.no_keys();
    for process in channels.selection.kept() {
        if owners.is_empty() {
            return Ok(());
        }
        kernel.add_keys_of(process, &mut kept)?;
        owners.retain(|key, _| !kept.keys.contains(key));
    }
    for (key, pid) in owners {
        channels.clear_found(EditReason::Key, Some(pid), |kernel, visit| kernel.key_content(key, visit))?;
    }
    Ok(())
}
