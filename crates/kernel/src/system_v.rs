//! System V message queues and shared memory segments (`ipc/util.c`), by IPC namespace.
//!
//! ```text
//! task.nsproxy -> ipc_namespace: ids[1].ipcs_idr -> msg_queue: q_messages; q_lspid, q_lrpid: who used it last
//!                                ids[2].ipcs_idr -> shmid_kernel: shm_file; shm_cprid, shm_lprid: who made it and
//!                                                                 who attached or detached it last
//! ```
//! Semaphores (`ids[0]`) and what a process would undo of them are numbers of 16 bits: they are not looked at.

use crate::btf::{Btf, BtfError};
use crate::layout::layout;
use crate::tasks::Process;
use crate::xarray::TOO_MANY;
use crate::{Kernel, KernelError};
use elision_memory::Gva;
use std::collections::BTreeSet;

layout! {
    pub(crate) struct NamespaceLayout {
        all: offset("task_struct", &["nsproxy"]),
        ipc: offset("nsproxy", &["ipc_ns"]),
    }
}

layout! {
    pub(crate) struct IpcLayout {
        ids: offset("ipc_namespace", &["ids"]),
        ids_size: size("ipc_ids"),
        entries: offset("ipc_ids", &["ipcs_idr.idr_rt.xa_head"]),
        count: number("ipc_ids", &["in_use"]),
        owner: offset("kern_ipc_perm", &["uid.val"]),
        creator: offset("kern_ipc_perm", &["cuid.val"]),
        thread_pid: offset("task_struct", &["thread_pid"]),
        queue: offset("msg_queue", &["q_perm"]),
        messages: offset("msg_queue", &["q_messages"]),
        last_sender: offset("msg_queue", &["q_lspid"]),
        last_receiver: offset("msg_queue", &["q_lrpid"]),
        segment: offset("shmid_kernel", &["shm_perm"]),
        segment_file: offset("shmid_kernel", &["shm_file"]),
        segment_creator: offset("shmid_kernel", &["shm_cprid"]),
        segment_last: offset("shmid_kernel", &["shm_lprid"]),
        attached: number("shmid_kernel", &["shm_nattch"]),
    }
}

impl IpcLayout {
    /// Nothing on a kernel without System V IPC.
    pub(crate) fn find(btf: &Btf) -> Result<Option<Self>, BtfError> {
        btf.struct_("msg_queue").map(|_| Self::compile(btf)).transpose()
    }
}

/// Who had to do with a System V queue or segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpcUsers {
    /// User id of the owner.
    pub owner: u32,
    /// User id of who made it.
    pub creator: u32,
    /// `struct pid` of the processes known to have used it.
    pub processes: Vec<Gva>,
}

/// A System V message queue (`msg_queue`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageQueue {
    /// The head of its list of messages.
    pub messages: Gva,
    /// Who used it last.
    pub users: IpcUsers,
}

/// A System V shared memory segment (`shmid_kernel`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSegment {
    /// Its page cache (`address_space`).
    pub mapping: Gva,
    /// Who made it, and who attached or detached it last.
    pub users: IpcUsers,
    /// How many processes have it attached.
    pub attached: u64,
}

const WHAT: &str = "message queue";
const SEGMENT: &str = "shared memory segment";
/// Index of message queues and of segments in `ipc_namespace.ids`.
const QUEUES: u64 = 1;
const SEGMENTS: u64 = 2;
/// `ipcmni_extend` of the kernel: the most objects of a kind.
const OBJECT_LIMIT: u64 = 1 << 24;

impl Kernel<'_> {
    /// The IPC namespaces of a process's threads.
    pub fn ipc_namespaces(&self, process: &Process) -> Result<BTreeSet<Gva>, KernelError> {
        let layout = &self.profile.namespace;
        let mut found = BTreeSet::new();
        for thread in process.threads.iter().filter(|t| !t.dead) {
            let all = self.pointer(thread.task.wrapping_add(layout.all), "task")?;
            if all.0 != 0 {
                found.insert(self.pointer(all.wrapping_add(layout.ipc), "namespaces")?);
            }
        }
        found.remove(&Gva(0));
        Ok(found)
    }

    /// The `struct pid` by which the kernel remembers a process.
    pub fn pid_of(&self, process: &Process) -> Result<Option<Gva>, KernelError> {
        let Some(layout) = &self.profile.system_v else { return Ok(None) };
        let pid = self.pointer(process.leader.wrapping_add(layout.thread_pid), "task")?;
        Ok((pid.0 != 0).then_some(pid))
    }

    /// The System V message queues of an IPC namespace.
    pub fn message_queues(&self, namespace: Gva) -> Result<Vec<MessageQueue>, KernelError> {
        let Some(layout) = &self.profile.system_v else { return Ok(Vec::new()) };
        let mut queues = Vec::new();
        self.for_each_ipc_object(layout, namespace, QUEUES, WHAT, &mut |perm| {
            let at = Gva(perm.0.wrapping_sub(layout.queue));
            let member = |offset| self.pointer(at.wrapping_add(offset), WHAT);
            let processes = vec![member(layout.last_sender)?, member(layout.last_receiver)?];
            queues.push(MessageQueue {
                messages: at.wrapping_add(layout.messages),
                users: self.ipc_users(layout, perm, processes)?,
            });
            Ok(())
        })?;
        Ok(queues)
    }

    /// The System V shared memory segments of an IPC namespace.
    pub fn shared_segments(&self, namespace: Gva) -> Result<Vec<SharedSegment>, KernelError> {
        let Some(layout) = &self.profile.system_v else { return Ok(Vec::new()) };
        let mut segments = Vec::new();
        self.for_each_ipc_object(layout, namespace, SEGMENTS, SEGMENT, &mut |perm| {
            let at = Gva(perm.0.wrapping_sub(layout.segment));
            let member = |offset| self.pointer(at.wrapping_add(offset), SEGMENT);
            let file = member(layout.segment_file)?;
            let processes = vec![member(layout.segment_creator)?, member(layout.segment_last)?];
            if file.0 != 0 {
                segments.push(SharedSegment {
                    mapping: self.pointer(file.wrapping_add(self.profile.path.file_mapping), SEGMENT)?,
                    users: self.ipc_users(layout, perm, processes)?,
                    attached: self.number(at, layout.attached, SEGMENT)?,
                });
            }
            Ok(())
        })?;
        Ok(segments)
    }

    fn ipc_users(
        &self,
        layout: &IpcLayout,
        perm: Gva,
        mut processes: Vec<Gva>,
    ) -> Result<IpcUsers, KernelError> {
        processes.retain(|pid| pid.0 != 0);
        Ok(IpcUsers {
            owner: self.u32(perm.wrapping_add(layout.owner), WHAT)?,
            creator: self.u32(perm.wrapping_add(layout.creator), WHAT)?,
            processes,
        })
    }

    /// Calls `visit` with the `kern_ipc_perm` of each object of one kind.
    fn for_each_ipc_object(
        &self,
        layout: &IpcLayout,
        namespace: Gva,
        kind: u64,
        what: &'static str,
        visit: &mut dyn FnMut(Gva) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let ids = namespace.wrapping_add(layout.ids + kind * layout.ids_size);
        if self.number(ids, layout.count, what)? == 0 {
            return Ok(());
        }
        let head = self.u64(ids.wrapping_add(layout.entries), what)?;
        let mut budget = OBJECT_LIMIT;
        self.for_each_in_xarray(head, what, &mut budget, &mut |entry, budget| {
            let torn = KernelError::Torn { what, at: Gva(entry), why: TOO_MANY };
            *budget = budget.checked_sub(1).ok_or(torn)?;
            visit(Gva(entry))
        })
    }
}
