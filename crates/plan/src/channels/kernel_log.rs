//! The kernel's log: lines that threads of excluded processes wrote, or all of it on request.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_kernel::Content;
use std::collections::BTreeMap;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let threads = channels.live.iter().flat_map(|p| p.threads.iter().map(|t| (t.tid, p.pid)));
    let threads: BTreeMap<u32, u32> = threads.collect();
    let log = channels.kernel.log()?;
    for record in log.records {
        let owner = record.tid.and_then(|tid| threads.get(&tid)).copied();
        if owner.is_some() || channels.options.clear_log {
            channels.clear(vec![Content::Bytes(record.text)], EditReason::KernelLog, owner)?;
        }
    }
    let stale = log.stale.into_iter().map(Content::Bytes).collect();
    channels.clear(stale, EditReason::KernelLog, None)
}
