//! BPF maps that excluded processes alone use: no program, no path and no process that stays.

use super::Channels;
use crate::{EditReason, PlanError};
use std::collections::BTreeMap;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let mut maps = BTreeMap::new();
    for (file, pid) in channels.opened_alone(|file| kernel.is_bpf_map(file))? {
        let (_, files) = maps.entry(file.private).or_insert((pid, 0));
        *files += 1;
    }
    for (map, (pid, files)) in maps {
        if kernel.bpf_map_users(map)? != files {
            continue;
        }
        channels
            .clear_found(EditReason::BpfMap, Some(pid), |kernel, visit| kernel.bpf_map_content(map, visit))?;
    }
    Ok(())
}
