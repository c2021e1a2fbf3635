//! Messages that wait in System V (`ipc/msg.c`) and POSIX queues (`ipc/mqueue.c`).
//!
//! ```text
//! msg_queue: q_messages -> msg_msg -> msg_msg ...
//! ipc_namespace.mq_mnt.mnt_sb: s_inodes -> inode -> inode ...
//! inode of a POSIX queue = mqueue_inode_info.vfs_inode: msg_tree -> posix_msg_tree_node: msg_list -> msg_msg ...
//!                                                       e_wait_q[0].list -> ext_wait_queue: msg of who waits to send
//! msg_msg: m_ts bytes, the first behind it, up to the page's end; next -> msg_msgseg, more behind it ...
//! ```

use crate::btf::{Btf, BtfError};
use crate::layout::layout;
use crate::{Content, Kernel, KernelError, MessageQueue, OpenFile};
use elision_memory::{Gva, PAGE_SIZE};

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
    pub(crate) struct MqueueLayout {
        inode: offset("mqueue_inode_info", &["vfs_inode"]),
        mount: offset("ipc_namespace", &["mq_mnt"]),
        file_system: offset("vfsmount", &["mnt_sb"]),
        inodes: offset("super_block", &["s_inodes"]),
        inode_list: offset("inode", &["i_sb_list"]),
        inode_operations: offset("inode", &["i_fop"]),
        inode_owner: offset("inode", &["i_uid.val"]),
        tree: offset("mqueue_inode_info", &["msg_tree"]),
        waiting: offset("mqueue_inode_info", &["e_wait_q"]),
        wait_list: offset("ext_wait_queue", &["list"]),
        wait_message: offset("ext_wait_queue", &["msg"]),
        node: offset("posix_msg_tree_node", &["rb_node"]),
        node_messages: offset("posix_msg_tree_node", &["msg_list"]),
    }
}

/// The layouts of what the kernel was built with.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct MessageLayouts {
    message: Option<MessageLayout>,
    posix: Option<MqueueLayout>,
}

impl MessageLayouts {
    pub(crate) fn compile(btf: &Btf) -> Result<Self, BtfError> {
        Ok(Self {
            message: btf.struct_("msg_msg").map(|_| MessageLayout::compile(btf)).transpose()?,
            posix: btf.struct_("mqueue_inode_info").map(|_| MqueueLayout::compile(btf)).transpose()?,
        })
    }
}

const WHAT: &str = "message queue";
const MESSAGE: &str = "message";
/// A message has at most this many bytes (`MSGMAX` can be raised to it, and `HARD_MSGSIZEMAX`).
const LEN_LIMIT: u64 = 1 << 31;

impl Kernel<'_> {
    /// The text of all messages in a System V queue.
    pub fn queued_messages(
        &self,
        queue: &MessageQueue,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let mut budget = self.object_limit();
        self.message_list(queue.messages, &mut budget, visit)
    }

    /// The POSIX queues of an IPC namespace: the inode of each, and the user id of its owner.
    pub fn posix_queues(&self, namespace: Gva) -> Result<Vec<(Gva, u32)>, KernelError> {
        let (Some(layout), Some(queues)) =
            (&self.profile.messages.posix, self.symbol("mqueue_file_operations"))
        else {
            return Ok(Vec::new());
        };
        let mount = self.pointer(namespace.wrapping_add(layout.mount), WHAT)?;
        if mount.0 == 0 {
            return Ok(Vec::new());
        }
        let file_system = self.pointer(mount.wrapping_add(layout.file_system), WHAT)?;
        let (mut found, mut budget) = (Vec::new(), self.object_limit());
        self.for_each_in_list(file_system.wrapping_add(layout.inodes), WHAT, &mut |at| {
            let inode = Gva(at.0.wrapping_sub(layout.inode_list));
            let why = "there are more than the guest has room for";
            budget = budget.checked_sub(1).ok_or(KernelError::Torn { what: WHAT, at: inode, why })?;
            // The folder is one of them.
            if self.pointer(inode.wrapping_add(layout.inode_operations), WHAT)? == queues {
                found.push((inode, self.u32(inode.wrapping_add(layout.inode_owner), WHAT)?));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Whether an open file is a POSIX queue.
    #[must_use]
    pub fn is_posix_queue(&self, file: &OpenFile) -> bool {
        self.profile.messages.posix.is_some()
            && self.symbol("mqueue_file_operations") == Some(file.operations)
    }

    /// The text of all messages in a POSIX queue, by its inode.
    pub fn posix_messages(&self, inode: Gva, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.messages.posix else { return Ok(()) };
        let queue = Gva(inode.0.wrapping_sub(layout.inode));
        let mut budget = self.object_limit();
        let torn = |why| KernelError::Torn { what: WHAT, at: queue, why };
        self.for_each_in_tree(queue.wrapping_add(layout.tree), WHAT, &mut |at| {
            let node = Gva(at.0.wrapping_sub(layout.node));
            self.message_list(node.wrapping_add(layout.node_messages), &mut budget, visit)
        })?;
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

    /// The text of a message that its sender holds for as long as the queue has no room for it: in an object that
    /// goes up to `end`, if that is as large as such a message's, and the message as long as its sender `told`.
    pub(crate) fn message_being_sent(
        &self,
        message: Gva,
        end: Gva,
        told: u64,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.messages.message else { return Ok(()) };
        let first = (PAGE_SIZE as u64).saturating_sub(layout.text);
        let is_there = message.wrapping_add(layout.text.saturating_add(told.min(first))) <= end;
        if told == 0 || !is_there || self.number(message, layout.len, MESSAGE)? != told {
            return Ok(());
        }
        if (told > first) != (self.pointer(message.wrapping_add(layout.next), MESSAGE)?.0 != 0) {
            return Ok(());
        }
        // One that is in a queue was sent, by whomever.
        let links = message.wrapping_add(layout.list);
        let next = self.pointer(links, MESSAGE)?;
        if self.pointer(next.wrapping_add(8), MESSAGE).is_ok_and(|back| back == links) {
            return Ok(());
        }
        self.message(message, &mut self.object_limit(), visit)
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
    pub(crate) fn object_limit(&self) -> u64 {
        const SMALLEST: u64 = 32;
        self.ram().layout().frame_limit().0.saturating_mul(PAGE_SIZE as u64 / SMALLEST)
    }
}
