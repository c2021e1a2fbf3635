//! Messages in queues that an excluded process has to do with, and shared memory that it left detached.
//!
//! A message does not tell who sent it, and a queue outlives its users. One counts as an excluded process's if
//! such a process has it open (POSIX), was the last to send to it or to receive from it (System V), if it belongs
//! to a user of whom no process stays, or if it is in an IPC namespace in which no process stays.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_kernel::{IpcUsers, Kernel, Process};
use elision_memory::Gva;
use std::collections::BTreeMap;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let users = Users::of(channels)?;
    let mut queues: BTreeMap<Gva, u32> = BTreeMap::new();
    for (file, pid) in channels.files.iter().filter(|(file, _)| kernel.is_posix_queue(file)) {
        queues.entry(file.inode).or_insert(*pid);
    }
    for (namespace, alone) in namespaces(channels)? {
        for queue in kernel.message_queues(namespace)? {
            let Some(pid) = users.owner_of(&queue.users).or(alone) else { continue };
            channels.clear_found(EditReason::Message, Some(pid), |kernel, visit| {
                kernel.queued_messages(&queue, visit)
            })?;
        }
        for (inode, owner) in kernel.posix_queues(namespace)? {
            if let Some(pid) = users.ids.get(&owner).copied().or(alone) {
                queues.entry(inode).or_insert(pid);
            }
        }
        for segment in kernel.shared_segments(namespace)?.into_iter().filter(|s| s.attached == 0) {
            if let Some(pid) = users.owner_of(&segment.users).or(alone) {
                channels.frames.drop_shared_object(segment.mapping, pid, false)?;
            }
        }
    }
    for (inode, pid) in queues {
        channels.clear_found(EditReason::Message, Some(pid), |kernel, visit| {
            kernel.posix_messages(inode, visit)
        })?;
    }
    Ok(())
}

/// The IPC namespaces of the excluded processes, each with one of them if no process is in it which stays.
fn namespaces(channels: &Channels<'_, '_, '_>) -> Result<BTreeMap<Gva, Option<u32>>, PlanError> {
    let mut namespaces = BTreeMap::new();
    for process in channels.live {
        for namespace in channels.kernel.ipc_namespaces(process)? {
            namespaces.entry(namespace).or_insert(Some(process.pid));
        }
    }
    for process in channels.selection.kept() {
        if namespaces.values().all(Option::is_none) {
            break;
        }
        for namespace in channels.kernel.ipc_namespaces(process)? {
            namespaces.entry(namespace).and_modify(|alone| *alone = None);
        }
    }
    Ok(namespaces)
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
