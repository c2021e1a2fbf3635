//! System calls that excluded threads sleep in: the names, messages and datagrams that the kernel has copied for
//! them and put nowhere yet. Each call ends by SIGKILL, and frees its copy without looking at it again.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_kernel::{CallCopy, FileKind};
use elision_memory::Gva;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let sockets: BTreeSet<Gva> = channels
        .opened(|kind| if let FileKind::Socket(socket) = kind { Some(socket) } else { None })
        .into_keys()
        .collect();
    let mut copies = BTreeMap::new();
    for process in channels.live {
        for thread in process.threads.iter().filter(|t| !t.dead && !t.on_cpu) {
            let Some(call) = kernel.call_of(thread)? else { continue };
            for at in &call.words {
                match kernel.call_copy(&call, *at)? {
                    Some(CallCopy::Packet { socket, .. }) if !sockets.contains(&socket) => {}
                    Some(copy) => drop(copies.insert(*at, (copy, process.pid))),
                    None => {}
                }
            }
        }
    }
    if copies.is_empty() {
        return Ok(());
    }
    // A word on a stack may be left over from an earlier call: what is free or what others may use as well stays.
    kernel.free_objects(&mut |object| {
        copies.remove(&object.at);
    })?;
    for thread in channels.selection.kept().flat_map(|p| &p.threads).filter(|t| !t.dead) {
        for at in kernel.stack_words(thread)? {
            copies.remove(&at);
        }
    }
    for (copy, pid) in copies.into_values() {
        match copy {
            CallCopy::Name(name) => channels.clear(vec![name], EditReason::Name, Some(pid))?,
            CallCopy::Message(text) => channels.clear(text, EditReason::Message, Some(pid))?,
            CallCopy::Packet { packet, .. } => channels.clear_packet(packet, None, Some(pid))?,
        }
    }
    Ok(())
}
