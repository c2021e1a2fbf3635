//! What a system call holds for its caller while it sleeps: copies that only the caller's stack leads to.
//!
//! ```text
//! thread.sp ... -> filename: name -> "/a/path"    what getname() copied (fs/namei.c): an open that waits
//!           ... -> msg_msg                        a System V message without room in its queue: a msgsnd that waits
//!           ... -> sk_buff: sk                    a datagram without room in its receiver: a send that waits
//!           ... -> sockaddr, on the stack too     whom it is for: a connect or a sendto that waits
//!           pt_regs: orig_ax, dx, r9              which call it is
//! ```
//! A word on a stack may be stale. So a name or a message counts only if it is an object of the right kind at
//! that place, and who asks must see that it is not free and that no other thread's stack leads to it. A long name
//! is an object of its own, beside the `filename`: which of the two comes from `names_cache` differs.

use crate::layout::layout;
use crate::tasks::Thread;
use crate::{Content, Kernel, KernelError};
use elision_memory::{Gva, PAGE_SIZE};
use std::collections::BTreeSet;
use std::ops::Range;

layout! {
    pub(crate) struct CallLayout {
        name: offset("filename", &["name"]),
        short_name: offset("filename", &["iname"]),
        references: offset("filename", &["refcnt"]),
    }
}

const WHAT: &str = "system call in progress";
const NAMES: &str = "names_cache";
const PACKETS: [&str; 2] = ["skbuff_head_cache", "skbuff_fclone_cache"];
/// `__NR_msgsnd`; its third argument is the length.
const SEND_MESSAGE: u64 = 69;
const CONNECT: u64 = 42; // __NR_connect
const SEND_TO: u64 = 44; // __NR_sendto
const UNIX: u16 = 1;
/// Bytes of an address before the name.
const FAMILY: u64 = 2;
/// `struct sockaddr_un`.
const ADDRESS_LIMIT: u64 = 110;
/// Words of a stack are read in pieces of this size.
const PIECE: u64 = PAGE_SIZE as u64;

/// A system call that a sleeping thread is in.
#[derive(Clone, Debug)]
pub struct Call {
    number: u64,
    third: u64,
    sixth: u64,
    /// The part of the stack that is in use.
    live: Range<Gva>,
    /// What stands there.
    pub words: BTreeSet<Gva>,
}

/// What a call has copied from its caller.
#[derive(Clone, Debug)]
pub enum CallCopy {
    /// The name of a file, or of a socket.
    Name(Content),
    /// The parts of a message.
    Message(Vec<Content>),
    /// A packet (`struct sk_buff`) of this socket.
    Packet {
        /// Where it stands.
        packet: Gva,
        /// The `struct sock`.
        socket: Gva,
    },
}

impl Kernel<'_> {
    /// The call that a user thread sleeps in. `None` for one without a stack.
    pub fn call_of(&self, thread: &Thread) -> Result<Option<Call>, KernelError> {
        let Some(stack) = self.stack(thread)? else { return Ok(None) };
        let [number, third, sixth] = self.system_call(&stack)?;
        let live = stack.sp..stack.base.wrapping_add(stack.size);
        Ok(Some(Call { number, third, sixth, live, words: self.stack_words(thread)? }))
    }

    /// Every word on a thread's stack: in its live part, or anywhere if it is on a CPU.
    pub fn stack_words(&self, thread: &Thread) -> Result<BTreeSet<Gva>, KernelError> {
        let mut found = BTreeSet::new();
        let Some((base, size)) = self.stack_extent(thread)? else { return Ok(found) };
        let mut at = if thread.on_cpu { base } else { self.stack(thread)?.map_or(base, |stack| stack.sp) };
        let end = base.wrapping_add(size);
        let mut piece = [0; PAGE_SIZE];
        while at < end {
            let len = (end.0 - at.0).min(PIECE - at.0 % PIECE);
            let part = piece.get_mut(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
            self.read(at, part, WHAT)?;
            let words = part.chunks_exact(8).filter_map(|bytes| bytes.first_chunk().copied());
            found.extend(words.map(|bytes| Gva(u64::from_le_bytes(bytes))));
            at = at.wrapping_add(len);
        }
        Ok(found)
    }

    /// What the call has copied to `at`, if there is something of a kind that is known.
    pub fn call_copy(&self, call: &Call, at: Gva) -> Result<Option<CallCopy>, KernelError> {
        if call.live.contains(&at) {
            return Ok(self.address_on_stack(call, at)?.map(CallCopy::Name));
        }
        let Some(object) = self.slab_object(at) else { return Ok(None) };
        let cache = self.cache_name(object.cache)?;
        if PACKETS.contains(&cache.as_str()) {
            return Ok(Some(CallCopy::Packet { packet: at, socket: self.packet_owner(at)? }));
        }
        if let Some(name) = self.name_in_call(at, object.end, cache == NAMES)? {
            return Ok(Some(CallCopy::Name(name)));
        }
        let mut text = Vec::new();
        if call.number == SEND_MESSAGE {
            self.message_being_sent(at, object.end, call.third, &mut |part| text.push(part))?;
        }
        Ok(if text.is_empty() { None } else { Some(CallCopy::Message(text)) })
    }

    /// The name of a unix socket, in the `struct sockaddr` that the call has on its own stack.
    fn address_on_stack(&self, call: &Call, at: Gva) -> Result<Option<Content>, KernelError> {
        let len = match call.number {
            CONNECT => call.third,
            SEND_TO => call.sixth,
            _ => return Ok(None),
        };
        let (name, end) = (at.wrapping_add(FAMILY), at.wrapping_add(len));
        let fits = (2 * FAMILY..=ADDRESS_LIMIT).contains(&len) && end <= call.live.end;
        // No number by chance: two characters, or a zero and one.
        let is_unix = fits && self.u16(at, WHAT)? == UNIX && self.u16(name, WHAT)? != 0;
        Ok(is_unix.then_some(Content::Bytes(name..end)))
    }

    /// The name that a `struct filename` has, with the room behind it.
    fn name_in_call(&self, at: Gva, end: Gva, is_named: bool) -> Result<Option<Content>, KernelError> {
        let layout = &self.profile.call;
        let short = at.wrapping_add(layout.short_name);
        if short > end || self.u32(at.wrapping_add(layout.references), WHAT)? == 0 {
            return Ok(None);
        }
        let name = self.pointer(at.wrapping_add(layout.name), WHAT)?;
        if name == short {
            return Ok(is_named.then_some(Content::Bytes(short..end)));
        }
        let Some(long) = self.slab_object(name) else { return Ok(None) };
        let is_long = is_named || self.cache_name(long.cache)? == NAMES;
        let has_room = long.end.0 - long.start.0 >= PAGE_SIZE as u64; // PATH_MAX
        Ok((is_long && has_room).then_some(Content::Bytes(long.start..long.end)))
    }
}
