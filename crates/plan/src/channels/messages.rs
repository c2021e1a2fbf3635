//! Messages in queues that an excluded process has to do with, and shared memory that it left detached.
//!
//! A message in a System V queue does not tell who sent it. A queue counts as an excluded process's if one was
//! the last to send to it or to receive from it, or if it belongs to a user of whom no process stays.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_kernel::{IpcUsers, Kernel, Process};
use elision_memory::Gva;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let users = Users::of(channels)?;
    let mut namespaces = BTreeSet::new();
    for process in channels.live {
        namespaces.extend(kernel.ipc_namespaces(process)?);
    }
    for namespace in namespaces {
        for queue in kernel.message_queues(namespace)? {
            let Some(pid) = users.owner_of(&queue.users) else { continue };
            let mut content = Vec::new();
            kernel.queued_messages(queue.at, &mut |part| content.push(part))?;
            channels.clear(content, EditReason::Message, Some(pid))?;
        }
        for segment in kernel.shared_segments(namespace)?.into_iter().filter(|s| s.attached == 0) {
            if let Some(pid) = users.owner_of(&segment.users) {
                channels.frames.drop_shared_object(segment.mapping, pid, false)?;
            }
        }
    }
    let mut posix = Vec::new();
    for (file, pid) in &channels.files {
        kernel.posix_messages(file, &mut |part| posix.push((part, *pid)))?;
    }
    for (part, pid) in posix {
        channels.clear(vec![part], EditReason::Message, Some(pid))?;
    }
    Ok(())
}

/// How excluded processes are known where the kernel remembers who used something.
struct Users {
    processes: BTreeMap<Gva, u32>,
    /// Users all of whose processes are excluded, each with one.
    ids: BTreeMap<u32, u32>,
}

impl Users {
    fn of(channels: &Channels<'_, '_, '_>) -> Result<Self, PlanError> {
        let kernel: &Kernel<'_> = channels.kernel;
        let live: &[&Process] = channels.live;
        let mut processes = BTreeMap::new();
        for process in live {
            processes.extend(kernel.pid_of(process)?.map(|at| (at, process.pid)));
        }
        let mut ids: BTreeMap<u32, u32> = live.iter().map(|p| (p.uid, p.pid)).collect();
        for process in channels.selection.kept() {
            ids.remove(&process.uid);
        }
        Ok(Self { processes, ids })
    }

    fn owner_of(&self, users: &IpcUsers) -> Option<u32> {
        let by_use = users.processes.iter().find_map(|at| self.processes.get(at));
        let by_user = [users.owner, users.creator].into_iter().find_map(|id| self.ids.get(&id));
        by_use.or(by_user).copied()
    }
}
