//! Terminals that an excluded process has open or is controlled by, and the other ends of pseudo
//! terminals: whoever else reads from them or writes to them finds zeros.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_kernel::FileKind;
use elision_memory::Gva;
use std::collections::BTreeMap;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let mut terminals: BTreeMap<Gva, u32> = channels.opened(|kind| match kind {
        FileKind::Terminal(tty) => Some(tty),
        _ => None,
    });
    for process in channels.live {
        if let Some(tty) = kernel.controlling_terminal(process)? {
            terminals.entry(tty).or_insert(process.pid);
        }
    }
    let mut peers = Vec::new();
    for (&tty, &pid) in &terminals {
        peers.extend(kernel.terminal_peer(tty)?.map(|peer| (peer, pid)));
    }
    for (peer, pid) in peers {
        terminals.entry(peer).or_insert(pid);
    }
    for (tty, pid) in terminals {
        let mut content = Vec::new();
        if !kernel.terminal_content(tty, &mut |part| content.push(part))? {
            let name = kernel.terminal_name(tty)?;
            channels.frames.unaccounted.push(format!(
                "terminal {name} of process {pid}: what its line discipline holds is not known"
            ));
        }
        channels.clear(content, EditReason::Terminal, Some(pid))?;
    }
    Ok(())
}
