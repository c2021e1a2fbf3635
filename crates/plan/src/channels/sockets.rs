//! Sockets that an excluded process has open, and what it sent that waits elsewhere.
//!
//! Cleared are all queues of its sockets and of connections that it has not accepted, the rings of its packet
//! sockets, its messages in unix sockets of others, its datagrams in UDP sockets of others, what the other end
//! of a loopback TCP connection has not read, the names of its unix sockets, and the pages that what it sent was
//! copied to. Its TCP connections end by a reset, so that no cleared byte goes over a wire.
//!
//! A socket of a family that is not known is one more reason not to save.
//!
//! A file that is in a message on its way to or from an excluded process counts as opened by it; so this
//! channel comes before those of other files.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_kernel::{FileKind, Kernel, KernelError, Socket, TcpTable, UdpEnd};
use elision_memory::Gva;
use std::collections::{BTreeMap, BTreeSet};

/// Unix sockets in messages in sockets: deeper than kernels let them be.
const DEPTH_LIMIT: u32 = 16;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let mut sockets = Sockets::default();
    sockets.find(channels)?;
    let mut connections = TcpTable::default();
    let kernel = channels.kernel;
    for (socket, pid) in &sockets.owned {
        if let Some(kind) = kernel.unknown_socket(socket)? {
            let what = format!("process {pid} has a socket of {kind}: what it holds is not known");
            channels.frames.unaccounted.push(what);
        }
        let mut waiting = Vec::new();
        kernel.for_each_packet(socket, &mut |packet| {
            waiting.push(packet);
            Ok(())
        })?;
        for peer in kernel.tcp_peers(socket, &mut connections)? {
            if !sockets.known.contains(&peer) {
                kernel.for_each_received(&kernel.socket(peer)?, &mut |packet| {
                    waiting.push(packet);
                    Ok(())
                })?;
            }
        }
        for packet in waiting {
            let only_own = socket.listens_in().then_some(1);
            channels.clear_packet(packet, only_own, Some(*pid))?;
        }
        let name = kernel.unix_name(socket)?;
        channels.edits.zero(name, EditReason::Name, Some(*pid))?;
        channels.clear(kernel.packet_rings(socket)?, EditReason::Socket, Some(*pid))?;
        channels.clear(kernel.socket_fragment(socket)?, EditReason::PageFragment, Some(*pid))?;
        for word in kernel.reset_edits(socket)? {
            channels.edits.write(&word, EditReason::ConnectionReset, Some(*pid))?;
        }
    }
    for (packet, pid) in &sockets.sent {
        channels.clear_packet(*packet, None, Some(*pid))?;
    }
    for process in channels.live {
        for thread in process.threads.iter().filter(|t| !t.dead) {
            let content = kernel.task_fragment(thread)?;
            channels.clear(content, EditReason::PageFragment, Some(process.pid))?;
        }
    }
    Ok(())
}

/// The sockets of the excluded processes, and what they sent into others.
#[derive(Default)]
struct Sockets {
    owned: Vec<(Socket, u32)>,
    known: BTreeSet<Gva>,
    /// Where those of UDP send from.
    ends: Vec<(UdpEnd, u32)>,
    files: BTreeSet<Gva>,
    /// Messages and datagrams in sockets of others.
    sent: BTreeMap<Gva, u32>,
}

impl Sockets {
    fn find(&mut self, channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
        self.files = channels.files.iter().map(|(file, _)| file.file).collect();
        let opened = channels.opened(|kind| match kind {
            FileKind::Socket(socket) => Some(socket),
            _ => None,
        });
        let mut todo: Vec<_> = opened.into_iter().collect();
        if todo.is_empty() {
            return Ok(());
        }
        let mut others = others(channels)?;
        for _ in 0..DEPTH_LIMIT {
            while let Some((at, pid)) = todo.pop() {
                if self.known.insert(at) {
                    let socket = channels.kernel.socket(at)?;
                    self.owned.push((socket, pid));
                    self.ends.extend(channels.kernel.udp_end(&socket)?.map(|end| (end, pid)));
                    self.follow(channels, &socket, pid, &mut todo, &mut others)?;
                }
            }
            self.look_into(channels, &others, &mut todo)?;
            if todo.is_empty() {
                return Ok(());
            }
        }
        let torn = "messages carry sockets that hold messages, and so on without end";
        Err(KernelError::Torn { what: "socket", at: todo.last().map_or(Gva(0), |t| t.0), why: torn }.into())
    }

    /// Where an owned socket leads.
    fn follow(
        &mut self,
        channels: &mut Channels<'_, '_, '_>,
        socket: &Socket,
        pid: u32,
        todo: &mut Vec<(Gva, u32)>,
        others: &mut BTreeSet<Gva>,
    ) -> Result<(), PlanError> {
        let kernel = channels.kernel;
        todo.extend(kernel.unaccepted(socket)?.into_iter().map(|child| (child, pid)));
        others.extend(kernel.unix_peer(socket)?);
        if !socket.is_unix() {
            return Ok(());
        }
        let mut files = Vec::new();
        kernel.for_each_received(socket, &mut |packet| {
            files.extend(kernel.files_in_packet(packet)?);
            Ok(())
        })?;
        self.add_files(channels, files, pid, todo)
    }

    /// Looks for messages of owned sockets in those of others.
    fn look_into(
        &mut self,
        channels: &mut Channels<'_, '_, '_>,
        others: &BTreeSet<Gva>,
        todo: &mut Vec<(Gva, u32)>,
    ) -> Result<(), PlanError> {
        let kernel = channels.kernel;
        let owners: BTreeMap<Gva, u32> = self.owned.iter().map(|(socket, pid)| (socket.at, *pid)).collect();
        let others: Vec<_> = others.difference(&self.known).copied().collect();
        for other in others {
            let mut files = Vec::new();
            let socket = kernel.socket(other)?;
            kernel.for_each_received(&socket, &mut |packet| {
                if let Some(pid) = self.udp_sender(kernel, &socket, packet)? {
                    self.sent.insert(packet, pid);
                } else if let Some(pid) = owners.get(&kernel.packet_owner(packet)?) {
                    self.sent.insert(packet, *pid);
                    files.push((kernel.files_in_packet(packet)?, *pid));
                }
                Ok(())
            })?;
            for (files, pid) in files {
                self.add_files(channels, files, pid, todo)?;
            }
        }
        Ok(())
    }

    /// Who sent a datagram that waits in a UDP socket.
    fn udp_sender(
        &self,
        kernel: &Kernel<'_>,
        receiver: &Socket,
        packet: Gva,
    ) -> Result<Option<u32>, KernelError> {
        if self.ends.is_empty() {
            return Ok(None);
        }
        let Some(source) = kernel.udp_source(receiver, packet)? else { return Ok(None) };
        Ok(self.ends.iter().find(|(end, _)| source.is_of(end)).map(|(_, pid)| *pid))
    }

    fn add_files(
        &mut self,
        channels: &mut Channels<'_, '_, '_>,
        files: Vec<Gva>,
        pid: u32,
        todo: &mut Vec<(Gva, u32)>,
    ) -> Result<(), PlanError> {
        for file in files {
            if !self.files.insert(file) {
                continue;
            }
            let open = channels.kernel.open_file(file)?;
            if let FileKind::Socket(socket) = open.kind {
                todo.push((socket, pid));
            }
            channels.files.push((open, pid));
        }
        Ok(())
    }
}

/// The unix and UDP sockets that processes have open which stay.
fn others(channels: &mut Channels<'_, '_, '_>) -> Result<BTreeSet<Gva>, PlanError> {
    let kernel = channels.kernel;
    let mut sockets = BTreeSet::new();
    for file in channels.kept_files()? {
        if let FileKind::Socket(socket) = kernel.open_file(*file)?.kind {
            let found = kernel.socket(socket)?;
            if found.is_unix() || found.is_udp() {
                sockets.insert(socket);
            }
        }
    }
    Ok(sockets)
}
