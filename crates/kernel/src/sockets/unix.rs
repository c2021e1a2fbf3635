//! Unix sockets: their peers, their names, and the files that are on their way in a message.
//!
//! ```text
//! unix_sock: peer -> unix_sock    addr -> unix_address: len, name = family (2), path or NUL + abstract name
//! sk_buff.cb = unix_skb_parms: fp -> scm_fp_list: count, fp[] -> file
//! ```
//!
//! Nothing is found by the bytes of a name when the socket is closed: the hash is kept beside it.

use super::{Socket, WHAT};
use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;
use std::ops::Range;

layout! {
    pub(crate) struct UnixLayout {
        peer: optional("unix_sock", &["peer"]),
        address: optional("unix_sock", &["addr"]),
        address_len: number_opt("unix_address", &["len"]),
        name: optional("unix_address", &["name"]),
        files: optional("unix_skb_parms", &["fp"]),
        file_count: number_opt("scm_fp_list", &["count"]),
        first_file: optional("scm_fp_list", &["fp"]),
    }
}

/// `SCM_MAX_FD` is 253.
const FILE_LIMIT: u64 = 256;
/// Bytes of the family, before the name.
const FAMILY: u64 = 2;
/// `struct sockaddr_un`.
const NAME_LIMIT: u64 = 110;

impl Kernel<'_> {
    /// The other end of a connected unix socket.
    pub fn unix_peer(&self, socket: &Socket) -> Result<Option<Gva>, KernelError> {
        let Some(peer) = self.profile.unix.peer.filter(|_| socket.is_unix()) else { return Ok(None) };
        let peer = self.pointer(socket.at.wrapping_add(peer), WHAT)?;
        Ok((peer.0 != 0).then_some(peer))
    }

    /// The name that a unix socket is bound to, without its family; empty if it has none.
    pub fn unix_name(&self, socket: &Socket) -> Result<Range<Gva>, KernelError> {
        let layout = &self.profile.unix;
        let nothing = Gva(0)..Gva(0);
        let (Some(address), Some(len), Some(name)) = (layout.address, layout.address_len, layout.name) else {
            return Ok(nothing);
        };
        let address =
            if socket.is_unix() { self.pointer(socket.at.wrapping_add(address), WHAT)? } else { Gva(0) };
        if address.0 == 0 {
            return Ok(nothing);
        }
        let len = self.number(address, len, WHAT)?;
        if !(FAMILY..=NAME_LIMIT).contains(&len) {
            return Err(KernelError::Torn { what: WHAT, at: socket.at, why: "its name is too long" });
        }
        let name = address.wrapping_add(name);
        Ok(name.wrapping_add(FAMILY)..name.wrapping_add(len))
    }

    /// The same in words: a path, or `@` and an abstract name.
    pub fn unix_name_text(&self, socket: &Socket) -> Result<Option<String>, KernelError> {
        let name = self.unix_name(socket)?;
        let len = name.end.0.saturating_sub(name.start.0).min(NAME_LIMIT);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read(name.start, &mut bytes, WHAT)?;
        Ok(match bytes.as_slice() {
            [] => None,
            [0, abstract_name @ ..] => Some(format!("@{}", String::from_utf8_lossy(abstract_name))),
            path => {
                let path = path.split(|&b| b == 0).next().unwrap_or_default();
                Some(String::from_utf8_lossy(path).into_owned())
            }
        })
    }

    /// The files (`struct file`) that a message in a unix socket's queue carries.
    pub fn files_in_packet(&self, packet: Gva) -> Result<Vec<Gva>, KernelError> {
        let layout = &self.profile.unix;
        let (Some(files), Some(count), Some(first)) = (layout.files, layout.file_count, layout.first_file)
        else {
            return Ok(Vec::new());
        };
        let control = packet.wrapping_add(self.profile.packet.control);
        let list = self.pointer(control.wrapping_add(files), WHAT)?;
        if list.0 == 0 {
            return Ok(Vec::new());
        }
        let count = self.number(list, count, WHAT)?;
        if count > FILE_LIMIT {
            return Err(KernelError::Torn { what: WHAT, at: packet, why: "a message has too many files" });
        }
        let file = |i| self.pointer(list.wrapping_add(first).wrapping_add(8 * i), WHAT);
        let files: Vec<_> = (0..count).map(file).collect::<Result<_, _>>()?;
        Ok(files.into_iter().filter(|file| file.0 != 0).collect())
    }
}
