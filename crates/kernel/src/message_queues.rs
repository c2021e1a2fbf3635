//! Messages that wait in System V (`ipc/msg.c`) and POSIX queues (`ipc/mqueue.c`).
//!
//! ```text
//! task.nsproxy -> ipc_namespace: ids[1].ipcs_idr -> msg_queue: q_messages -> msg_msg -> msg_msg ...
//!                                                              q_lspid, q_lrpid: who used it last
//! inode of an open file = mqueue_inode_info.vfs_inode: msg_tree -> posix_msg_tree_node: msg_list -> msg_msg ...
//!                                                      e_wait_q[0].list -> ext_wait_queue: msg of who waits to send
//! msg_msg: m_ts bytes, the first behind it, up to the page's end; next -> msg_msgseg, more behind it ...
//! ```

use crate::btf::{Btf, BtfError};
use crate::layout::layout;
use crate::tasks::Process;
use crate::{Content, Kernel, KernelError, OpenFile};
use elision_memory::{Gva, PAGE_SIZE};
use std::collections::BTreeSet;

layout! {
    pub(crate) struct MessageLayout {
        text: size("msg_msg"),
        list: offset("msg_msg", &["m_list"]),
        len: number("msg_msg", &["m_ts"]),
        next: offset("msg_msg", &["next"]),
        part_text: size("msg_msgseg"),
        part_next: offset("msg_msgseg", &["next"]),
    }
}

layout! {
    pub(crate) struct IpcLayout {
        namespaces: offset("task_struct", &["nsproxy"]),
        namespace: offset("nsproxy", &["ipc_ns"]),
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

layout! {
    pub(crate) struct MqueueLayout {
        inode: offset("mqueue_inode_info", &["vfs_inode"]),
        tree: offset("mqueue_inode_info", &["msg_tree.rb_node"]),
        waiting: offset("mqueue_inode_info", &["e_wait_q"]),
        wait_list: offset("ext_wait_queue", &["list"]),
        wait_message: offset("ext_wait_queue", &["msg"]),
        node: offset("posix_msg_tree_node", &["rb_node"]),
        node_messages: offset("posix_msg_tree_node", &["msg_list"]),
        left: offset("rb_node", &["rb_left"]),
        right: offset("rb_node", &["rb_right"]),
    }
}

/// The layouts of what the kernel was built with.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct MessageLayouts {
    message: Option<MessageLayout>,
    system_v: Option<IpcLayout>,
    posix: Option<MqueueLayout>,
}

impl MessageLayouts {
    pub(crate) fn compile(btf: &Btf) -> Result<Self, BtfError> {
        let (system_v, posix) =
            (btf.struct_("msg_queue").is_some(), btf.struct_("mqueue_inode_info").is_some());
        Ok(Self {
            message: (system_v || posix).then(|| MessageLayout::compile(btf)).transpose()?,
            system_v: system_v.then(|| IpcLayout::compile(btf)).transpose()?,
            posix: posix.then(|| MqueueLayout::compile(btf)).transpose()?,
        })
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
    /// Where it stands.
    pub at: Gva,
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
const MESSAGE: &str = "message";
const SEGMENT: &str = "shared memory segment";
/// Index of message queues and of segments in `ipc_namespace.ids`.
const QUEUES: u64 = 1;
const SEGMENTS: u64 = 2;
/// `ipcmni_extend` of the kernel: the most objects of a kind.
const OBJECT_LIMIT: u64 = 1 << 24;
/// A message has at most this many bytes (`MSGMAX` can be raised to it, and `HARD_MSGSIZEMAX`).
const LEN_LIMIT: u64 = 1 << 31;

impl Kernel<'_> {
    /// The IPC namespaces of a process's threads.
    pub fn ipc_namespaces(&self, process: &Process) -> Result<BTreeSet<Gva>, KernelError> {
        let mut found = BTreeSet::new();
        let Some(layout) = &self.profile.messages.system_v else { return Ok(found) };
        for thread in process.threads.iter().filter(|t| !t.dead) {
            let all = self.pointer(thread.task.wrapping_add(layout.namespaces), "task")?;
            if all.0 != 0 {
                found.insert(self.pointer(all.wrapping_add(layout.namespace), "namespaces")?);
            }
        }
        Ok(found)
    }

    /// The `struct pid` by which the kernel remembers a process.
    pub fn pid_of(&self, process: &Process) -> Result<Option<Gva>, KernelError> {
        let Some(layout) = &self.profile.messages.system_v else { return Ok(None) };
        let pid = self.pointer(process.leader.wrapping_add(layout.thread_pid), "task")?;
        Ok((pid.0 != 0).then_some(pid))
    }

    /// The System V message queues of an IPC namespace.
    pub fn message_queues(&self, namespace: Gva) -> Result<Vec<MessageQueue>, KernelError> {
        let Some(layout) = &self.profile.messages.system_v else { return Ok(Vec::new()) };
        let mut queues = Vec::new();
        self.for_each_ipc_object(layout, namespace, QUEUES, WHAT, &mut |perm| {
            let at = Gva(perm.0.wrapping_sub(layout.queue));
            let member = |offset| self.pointer(at.wrapping_add(offset), WHAT);
            let processes = vec![member(layout.last_sender)?, member(layout.last_receiver)?];
            queues.push(MessageQueue { at, users: self.ipc_users(layout, perm, processes)? });
            Ok(())
        })?;
        Ok(queues)
    }

    /// The System V shared memory segments of an IPC namespace.
    pub fn shared_segments(&self, namespace: Gva) -> Result<Vec<SharedSegment>, KernelError> {
        let Some(layout) = &self.profile.messages.system_v else { return Ok(Vec::new()) };
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
        let mut budget = OBJECT_LIMIT.min(self.object_limit());
        self.for_each_in_xarray(head, what, &mut budget, &mut |entry| visit(Gva(entry)))
    }

    /// The text of all messages in a System V queue.
    pub fn queued_messages(&self, queue: Gva, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.messages.system_v else { return Ok(()) };
        let mut budget = self.object_limit();
        self.message_list(queue.wrapping_add(layout.messages), &mut budget, visit)
    }

    /// The text of all messages in the POSIX queue behind an open file, if it is one.
    pub fn posix_messages(&self, file: &OpenFile, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.messages.posix else { return Ok(()) };
        if self.symbol("mqueue_file_operations") != Some(file.operations) {
            return Ok(());
        }
        let queue = Gva(file.inode.0.wrapping_sub(layout.inode));
        let mut budget = self.object_limit();
        let torn = |why| KernelError::Torn { what: WHAT, at: queue, why };
        let mut todo = vec![self.pointer(queue.wrapping_add(layout.tree), WHAT)?];
        while let Some(at) = todo.pop() {
            if at.0 == 0 {
                continue;
            }
            budget = budget.checked_sub(1).ok_or(torn("it has more priorities than there can be"))?;
            let node = Gva(at.0.wrapping_sub(layout.node));
            self.message_list(node.wrapping_add(layout.node_messages), &mut budget, visit)?;
            todo.push(self.pointer(at.wrapping_add(layout.left), WHAT)?);
            todo.push(self.pointer(at.wrapping_add(layout.right), WHAT)?);
        }
        // The first list is of who waits to send, each with its message.
        let head = queue.wrapping_add(layout.waiting + layout.wait_list);
        self.for_each_in_list(head, WHAT, &mut |at| {
            budget = budget.checked_sub(1).ok_or(torn("more wait at it than there can be"))?;
            let waiter = Gva(at.0.wrapping_sub(layout.wait_list));
            let message = self.pointer(waiter.wrapping_add(layout.wait_message), WHAT)?;
            if message.0 == 0 { Ok(()) } else { self.message(message, &mut budget, visit) }
        })?;
        Ok(())
    }

    fn message_list(
        &self,
        head: Gva,
        budget: &mut u64,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.messages.message else { return Ok(()) };
        self.for_each_in_list(head, MESSAGE, &mut |at| {
            self.message(Gva(at.0.wrapping_sub(layout.list)), budget, visit)
        })
    }

    /// The text of one message.
    fn message(
        &self,
        message: Gva,
        budget: &mut u64,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.messages.message else { return Ok(()) };
        let torn = |why| KernelError::Torn { what: MESSAGE, at: message, why };
        let mut rest = self.number(message, layout.len, MESSAGE)?;
        if rest > LEN_LIMIT {
            return Err(torn("it is longer than a message can be"));
        }
        let (mut at, mut text, mut next) = (message, layout.text, layout.next);
        loop {
            *budget = budget.checked_sub(1).ok_or(torn("there is more than the guest has room for"))?;
            let len = rest.min((PAGE_SIZE as u64).saturating_sub(text));
            if len > 0 {
                let start = at.wrapping_add(text);
                visit(Content::Bytes(start..start.wrapping_add(len)));
            }
            rest -= len;
            if rest == 0 {
                return Ok(());
            }
            at = self.pointer(at.wrapping_add(next), MESSAGE)?;
            if at.0 == 0 {
                return Err(torn("it ends too early"));
            }
            (text, next) = (layout.part_text, layout.part_next);
        }
    }

    /// More small objects than the guest has room for.
    fn object_limit(&self) -> u64 {
        const SMALLEST: u64 = 32;
        self.ram().layout().frame_limit().0.saturating_mul(PAGE_SIZE as u64 / SMALLEST)
    }
}
