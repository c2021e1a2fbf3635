//! Asynchronous I/O: events in the rings of excluded processes, and requests that they are waiting for.

use super::Channels;
use crate::{EditReason, PlanError};
use std::collections::BTreeMap;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let mut contexts = BTreeMap::new();
    for process in channels.live {
        contexts.extend(kernel.aio_contexts(process)?.into_iter().map(|context| (context, process.pid)));
    }
    if contexts.is_empty() {
        return Ok(());
    }
    for (context, pid) in &contexts {
        channels
            .clear_found(EditReason::Event, Some(*pid), |kernel, visit| kernel.aio_events(*context, visit))?;
    }
    let mut requests = Vec::new();
    kernel.aio_requests(&mut |context, data| {
        requests.extend(contexts.get(&context).map(|pid| (*pid, data)));
    })?;
    for (pid, data) in requests {
        channels.clear(vec![data], EditReason::Event, Some(pid))?;
    }
    Ok(())
}
