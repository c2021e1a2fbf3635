//! Keys that processes have given to the kernel to keep (`security/keys`).
//!
//! ```text
//! cred: thread_keyring, process_keyring, session_keyring -> key
//!       user_ns -> user_keyring_register -> key: the keyrings "_uid.N" and "_uid_ses.N" of all users
//! key:  index_key.type; state; payload[0] -> user_key_payload: datalen bytes
//!       of a keyring: keys, an associative array (lib/assoc_array.c)
//! array: bit 0 of a pointer: part of the array, bit 1 then: a shortcut, else a node of 16 slots
//!        bit 0 clear: a key, bit 1 then: a keyring
//! ```

use crate::btf::{Btf, BtfError};
use crate::layout::layout;
use crate::tasks::Process;
use crate::{Content, Kernel, KernelError};
use elision_memory::Gva;
use std::collections::BTreeSet;

layout! {
    pub(crate) struct KeyLayout {
        cred: offset("task_struct", &["cred"]),
        real_cred: offset("task_struct", &["real_cred"]),
        thread_keyring: offset("cred", &["thread_keyring"]),
        process_keyring: offset("cred", &["process_keyring"]),
        session_keyring: offset("cred", &["session_keyring"]),
        user: offset("cred", &["user"]),
        user_id: offset("user_struct", &["uid.val"]),
        namespace: offset("cred", &["user_ns"]),
        user_keyrings: offset("user_namespace", &["user_keyring_register"]),
        persistent_keyrings: optional("user_namespace", &["persistent_keyring_register"]),
        kind: offset("key", &["index_key.type"]),
        description: offset("key", &["index_key.description"]),
        state: number("key", &["state"]),
        payload: offset("key", &["payload.data"]),
        keys: offset("key", &["keys.root"]),
        slots: offset("assoc_array_node", &["slots"]),
        slot_count: count("assoc_array_node", "slots"),
        shortcut_next: offset("assoc_array_shortcut", &["next_node"]),
        text_len: number("user_key_payload", &["datalen"]),
        text: offset("user_key_payload", &["data"]),
    }
}

impl KeyLayout {
    /// Nothing on a kernel without keys.
    pub(crate) fn find(btf: &Btf) -> Result<Option<Self>, BtfError> {
        btf.struct_("user_key_payload").map(|_| Self::compile(btf)).transpose()
    }
}

const WHAT: &str = "key";
const KEYRING: &str = "keyring";
/// `KEY_IS_POSITIVE`: there is something in it.
const POSITIVE: u64 = 1;
const PART: u64 = 1;
const SHORTCUT: u64 = 2;
const POINTER: u64 = !3;
/// The kinds whose content is kept as it was given.
const PLAIN: [&str; 2] = ["key_type_user", "key_type_logon"];
const NAME_LIMIT: usize = 64;
/// The kernel looks no deeper into keyrings in keyrings (`KEYRING_SEARCH_MAX_DEPTH`).
const DEPTH_LIMIT: u32 = 16;

/// Keys that have been found, and how many more may be looked at.
#[derive(Clone, Debug)]
pub struct KeySet {
    /// Each `struct key`.
    pub keys: BTreeSet<Gva>,
    credentials: BTreeSet<Gva>,
    /// Users, each with a namespace, whose own keyrings were looked at.
    users: BTreeSet<(u32, Gva)>,
    left: u64,
}

impl Kernel<'_> {
    /// No keys yet.
    #[must_use]
    pub fn no_keys(&self) -> KeySet {
        const KEYS_IN_FRAME: u64 = 32;
        let left = self.ram().layout().frame_limit().0.saturating_mul(KEYS_IN_FRAME);
        KeySet { keys: BTreeSet::new(), credentials: BTreeSet::new(), users: BTreeSet::new(), left }
    }

    /// Adds all keys that a process can reach through its keyrings.
    pub fn add_keys_of(&self, process: &Process, found: &mut KeySet) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.keys else { return Ok(()) };
        for thread in process.threads.iter().filter(|t| !t.dead) {
            for member in [layout.cred, layout.real_cred] {
                let cred = self.pointer(thread.task.wrapping_add(member), "task")?;
                if cred.0 != 0 && found.credentials.insert(cred) {
                    self.add_keys_of_credentials(layout, cred, found)?;
                }
            }
        }
        Ok(())
    }

    fn add_keys_of_credentials(
        &self,
        layout: &KeyLayout,
        cred: Gva,
        found: &mut KeySet,
    ) -> Result<(), KernelError> {
        for member in [layout.thread_keyring, layout.process_keyring, layout.session_keyring] {
            self.add_key(layout, self.pointer(cred.wrapping_add(member), "credentials")?, 0, found)?;
        }
        let user = self.pointer(cred.wrapping_add(layout.user), "credentials")?;
        let namespace = self.pointer(cred.wrapping_add(layout.namespace), "credentials")?;
        if user.0 == 0 || namespace.0 == 0 {
            return Ok(());
        }
        let id = self.u32(user.wrapping_add(layout.user_id), "user")?;
        if !found.users.insert((id, namespace)) {
            return Ok(());
        }
        // In a namespace users have other numbers: there each process is taken to reach all keyrings.
        let is_first = self.symbol("init_user_ns") == Some(namespace);
        let names = [format!("_uid.{id}"), format!("_uid_ses.{id}"), format!("_persistent.{id}")];
        for register in [Some(layout.user_keyrings), layout.persistent_keyrings].into_iter().flatten() {
            let register = self.pointer(namespace.wrapping_add(register), "user namespace")?;
            if register.0 == 0 {
                continue;
            }
            let mut keyrings = Vec::new();
            self.keys_in(layout, register, &mut found.left, &mut keyrings)?;
            for keyring in keyrings {
                let name = self.pointer(keyring.wrapping_add(layout.description), WHAT)?;
                if !is_first || names.contains(&self.string(name, NAME_LIMIT, WHAT)?) {
                    self.add_key(layout, keyring, 0, found)?;
                }
            }
        }
        Ok(())
    }

    fn add_key(
        &self,
        layout: &KeyLayout,
        key: Gva,
        depth: u32,
        found: &mut KeySet,
    ) -> Result<(), KernelError> {
        if key.0 == 0 || !found.keys.insert(key) || depth > DEPTH_LIMIT {
            return Ok(());
        }
        let kind = self.pointer(key.wrapping_add(layout.kind), WHAT)?;
        if Some(kind) != self.symbol("key_type_keyring") {
            return Ok(());
        }
        let mut keys = Vec::new();
        self.keys_in(layout, key, &mut found.left, &mut keys)?;
        keys.into_iter().try_for_each(|key| self.add_key(layout, key, depth + 1, found))
    }

    /// The keys in one keyring.
    fn keys_in(
        &self,
        layout: &KeyLayout,
        keyring: Gva,
        left: &mut u64,
        keys: &mut Vec<Gva>,
    ) -> Result<(), KernelError> {
        let mut todo = vec![self.u64(keyring.wrapping_add(layout.keys), KEYRING)?];
        while let Some(entry) = todo.pop() {
            let at = Gva(entry & POINTER);
            if at.0 == 0 {
                continue;
            }
            let why = "it holds more than the guest has room for";
            *left = left.checked_sub(1).ok_or(KernelError::Torn { what: KEYRING, at: keyring, why })?;
            if entry & PART == 0 {
                keys.push(at);
            } else if entry & SHORTCUT != 0 {
                todo.push(self.u64(at.wrapping_add(layout.shortcut_next), KEYRING)?);
            } else {
                for i in 0..layout.slot_count.min(16) {
                    todo.push(self.u64(at.wrapping_add(layout.slots + 8 * i), KEYRING)?);
                }
            }
        }
        Ok(())
    }

    /// What a key holds, for keys whose content is kept as it was given.
    pub fn key_content(&self, key: Gva, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.keys else { return Ok(()) };
        let kind = self.pointer(key.wrapping_add(layout.kind), WHAT)?;
        let is_plain = PLAIN.into_iter().any(|name| self.symbol(name) == Some(kind));
        if !is_plain || self.number(key, layout.state, WHAT)? != POSITIVE {
            return Ok(());
        }
        let payload = self.pointer(key.wrapping_add(layout.payload), WHAT)?;
        if payload.0 == 0 {
            return Ok(()); // revoked
        }
        let len = self.number(payload, layout.text_len, WHAT)?;
        let start = payload.wrapping_add(layout.text);
        visit(Content::Bytes(start..start.wrapping_add(len)));
        Ok(())
    }
}
