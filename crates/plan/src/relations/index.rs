//! Who has an end of what, and the links that follow from it.

use super::roles::role_by_address;
use super::{Relation, RelationKind, Role};
use crate::PlanError;
use elision_kernel::{Kernel, KernelError, Process, Socket, TcpTable, Tie, Tied, UdpEnd};
use elision_memory::{Budget, Gva};
use std::collections::{BTreeMap, BTreeSet};

/// Slots of file tables, and areas, for which a frame has room.
const SLOTS_IN_FRAME: u64 = 128;
const AREAS_IN_FRAME: u64 = 64;
/// Pairs of ends that are looked at.
const WORK_LIMIT: u64 = 1 << 26;
const TOO_MANY: &str = "too many processes share too much";

/// A way from an excluded process to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) other: u32,
    pub(crate) role: Role,
    pub(crate) carries: bool,
    kind: RelationKind,
    own: Option<Tie>,
    peer: Option<Tie>,
}

/// The ends that processes have.
pub(crate) struct Index<'a, 'k> {
    kernel: &'a Kernel<'k>,
    processes: BTreeMap<u32, &'a Process>,
    ends: BTreeMap<u32, BTreeMap<Tied, Tie>>,
    holders: BTreeMap<Tied, BTreeSet<u32>>,
    /// What somebody writes.
    written: BTreeSet<Tied>,
    sockets: BTreeMap<Gva, Socket>,
    /// Unix sockets by the socket that they are connected to.
    clients: BTreeMap<Gva, Vec<Gva>>,
    /// UDP sockets: where they receive, and where they send to.
    udp: Vec<(Gva, Option<UdpEnd>, Option<UdpEnd>)>,
    connections: TcpTable,
    /// Log daemons and buses.
    services: BTreeMap<u32, Role>,
    /// Who traces a process, and whom it traces: others with whether they are its tracers.
    traces: BTreeMap<u32, BTreeSet<(u32, bool)>>,
    work_left: u64,
}

impl<'a, 'k> Index<'a, 'k> {
    /// Looks at what all processes have.
    pub(crate) fn new(kernel: &'a Kernel<'k>, processes: &'a [Process]) -> Result<Self, PlanError> {
        let mut index = Self {
            kernel,
            processes: processes.iter().filter(|p| !p.kernel_thread).map(|p| (p.pid, p)).collect(),
            ends: BTreeMap::new(),
            holders: BTreeMap::new(),
            written: BTreeSet::new(),
            sockets: BTreeMap::new(),
            clients: BTreeMap::new(),
            udp: Vec::new(),
            connections: TcpTable::default(),
            services: BTreeMap::new(),
            traces: BTreeMap::new(),
            work_left: WORK_LIMIT,
        };
        let frames = kernel.ram().layout().frame_limit().0;
        let slots_left = Budget::new(frames.saturating_mul(SLOTS_IN_FRAME));
        let areas_left = Budget::new(frames.saturating_mul(AREAS_IN_FRAME));
        let tasks = processes.iter().flat_map(|p| p.threads.iter().map(|thread| (thread.task, p.pid)));
        let tasks: BTreeMap<Gva, u32> = tasks.collect();
        for process in processes.iter().filter(|p| !p.kernel_thread) {
            let mut ties = Vec::new();
            kernel.for_each_tie(process, &slots_left, &areas_left, &mut |tie| ties.push(tie))?;
            for tie in ties {
                index.add(process.pid, tie)?;
            }
            for tracer in kernel.tracers(process)? {
                if let Some(&tracer) = tasks.get(&tracer) {
                    index.traces.entry(process.pid).or_default().insert((tracer, true));
                    index.traces.entry(tracer).or_default().insert((process.pid, false));
                }
            }
        }
        Ok(index)
    }

    fn add(&mut self, pid: u32, tie: Tie) -> Result<(), PlanError> {
        let ends = self.ends.entry(pid).or_default();
        let end = ends.entry(tie.of).or_insert(tie);
        end.file = end.file.or(tie.file);
        end.reads |= tie.reads;
        end.writes |= tie.writes;
        if tie.writes {
            self.written.insert(tie.of);
        }
        let is_new = self.holders.entry(tie.of).or_default().insert(pid);
        match tie.of {
            Tied::Socket(at) if is_new => self.add_socket(pid, at),
            _ => Ok(()),
        }
    }

    fn add_socket(&mut self, pid: u32, at: Gva) -> Result<(), PlanError> {
        let kernel = self.kernel;
        let socket = kernel.socket(at)?;
        if !socket.listens() {
            let address = kernel.unix_name_text(&socket)?;
            if let Some(role) = address.and_then(|address| role_by_address(&address)) {
                self.services.insert(pid, role);
            }
        }
        for waiting in kernel.unaccepted(&socket)? {
            // Not a listening one, so this does not go deeper.
            let tie = Tie { of: Tied::Socket(waiting), file: None, reads: true, writes: true };
            self.ends.entry(pid).or_default().insert(tie.of, tie);
            if self.holders.entry(tie.of).or_default().insert(pid) {
                self.note_socket(kernel.socket(waiting)?)?;
            }
        }
        self.note_socket(socket)
    }

    fn note_socket(&mut self, socket: Socket) -> Result<(), PlanError> {
        if self.sockets.insert(socket.at, socket).is_some() {
            return Ok(());
        }
        if let Some(peer) = self.kernel.unix_peer(&socket)? {
            self.clients.entry(peer).or_default().push(socket.at);
        }
        if socket.is_udp() {
            let ends = (self.kernel.udp_end(&socket)?, self.kernel.udp_target(&socket)?);
            self.udp.push((socket.at, ends.0, ends.1));
        }
        Ok(())
    }

    /// No link leads to this process any more.
    pub(crate) fn leave_out(&mut self, pid: u32) {
        for of in self.ends.get(&pid).into_iter().flat_map(BTreeMap::keys) {
            if let Some(holders) = self.holders.get_mut(of) {
                holders.remove(&pid);
            }
        }
        for (other, _) in self.traces.get(&pid).cloned().unwrap_or_default() {
            self.traces.entry(other).or_default().retain(|(by, _)| *by != pid);
        }
    }

    /// The links of a process to those that were not left out.
    pub(crate) fn links(&mut self, process: &Process) -> Result<Vec<Link>, PlanError> {
        let mut links = Vec::new();
        let ends: Vec<Tie> = self.ends.get(&process.pid).into_iter().flatten().map(|(_, t)| *t).collect();
        for own in ends {
            let is_file = matches!(own.of, Tied::Memory(_) | Tied::File(_));
            if is_file && !self.written.contains(&own.of) {
                continue; // programs and libraries
            }
            for of in self.related(own.of)? {
                let holders = self.holders.get(&of).into_iter().flatten();
                for &other in holders {
                    let what = "list of open files";
                    let torn = KernelError::Torn { what, at: process.leader, why: TOO_MANY };
                    self.work_left = self.work_left.checked_sub(1).ok_or(torn)?;
                    let Some(peer) = self.ends.get(&other).and_then(|ends| ends.get(&of)) else { continue };
                    links.extend(self.link(process, other, own, *peer)?);
                }
            }
        }
        for &(other, carries) in self.traces.get(&process.pid).into_iter().flatten() {
            let role = self.role_of(other, if carries { Role::Tracer } else { Role::Peer });
            links.push(Link { other, role, carries, kind: RelationKind::Trace, own: None, peer: None });
        }
        Ok(links)
    }

    /// What is connected to an end: itself, and the other end where that is a thing of its own.
    fn related(&mut self, of: Tied) -> Result<Vec<Tied>, PlanError> {
        let mut related = BTreeSet::from([of]);
        match of {
            Tied::Terminal(tty) => {
                related.insert(Tied::TerminalServer(tty));
            }
            Tied::TerminalServer(tty) => {
                related.insert(Tied::Terminal(tty));
            }
            Tied::Socket(at) => {
                let Some(socket) = self.sockets.get(&at).copied() else { return Ok(vec![of]) };
                let clients = self.clients.get(&at).into_iter().flatten().copied();
                related.extend(clients.map(Tied::Socket));
                related.extend(self.kernel.unix_peer(&socket)?.map(Tied::Socket));
                let peers = self.kernel.tcp_peers(&socket, &mut self.connections)?;
                related.extend(peers.into_iter().map(Tied::Socket));
                let own =
                    if socket.is_udp() { self.udp.iter().find(|(other, ..)| *other == at) } else { None };
                if let Some((_, end, target)) = own {
                    let work = self.work_left.checked_sub(self.udp.len() as u64);
                    self.work_left = work.ok_or(KernelError::Torn { what: "socket", at, why: TOO_MANY })?;
                    let meets = |to: &Option<UdpEnd>, bound: &Option<UdpEnd>| {
                        to.zip(*bound).is_some_and(|(to, bound)| to.is_of(&bound))
                    };
                    let others = self.udp.iter().filter(|o| meets(target, &o.1) || meets(&o.2, end));
                    related.extend(others.map(|(other, ..)| Tied::Socket(*other)));
                }
            }
            _ => {}
        }
        Ok(related.into_iter().collect())
    }

    fn link(&self, process: &Process, other: u32, own: Tie, peer: Tie) -> Result<Option<Link>, PlanError> {
        use RelationKind as Kind;
        let flows = own.writes && peer.reads;
        let (kind, carries, role) = match (own.of, peer.of) {
            (Tied::Pipe(_), _) => (Kind::Pipe, flows, Role::Peer),
            (Tied::Socket(at), _) if self.sockets.get(&at).is_some_and(Socket::listens) => {
                (Kind::Descriptor, false, Role::Peer)
            }
            (Tied::Socket(_), _) => (Kind::Socket, true, Role::Peer),
            (Tied::Terminal(_), Tied::TerminalServer(_)) => (Kind::Terminal, true, Role::TerminalServer),
            (Tied::TerminalServer(_), Tied::Terminal(_)) => (Kind::Terminal, true, Role::Peer),
            (Tied::Terminal(_) | Tied::TerminalServer(_), _) => {
                let is_shell = self.is_shell(process, other)?;
                (Kind::Terminal, is_shell, if is_shell { Role::Shell } else { Role::Peer })
            }
            (Tied::Memory(_), _) if flows || own.reads && peer.writes => (Kind::Memory, flows, Role::Peer),
            // What is in a file is on a disk, and for its own selector to leave out.
            (Tied::File(_), _) if flows || own.reads && peer.writes => (Kind::File, false, Role::Peer),
            (Tied::Memory(_) | Tied::File(_), _) => return Ok(None),
            (Tied::Descriptor(_), _) => (Kind::Descriptor, false, Role::Peer),
        };
        let role = self.role_of(other, role);
        Ok(Some(Link { other, role, carries, kind, own: Some(own), peer: Some(peer) }))
    }

    /// Whether a process on the same terminal is the parent, or leads the session.
    fn is_shell(&self, process: &Process, other: u32) -> Result<bool, PlanError> {
        let Some(other) = self.processes.get(&other).filter(|other| other.tty == process.tty) else {
            return Ok(false);
        };
        if process.tty.is_none() {
            return Ok(false);
        }
        let (own, others) = (self.kernel.session(process)?, self.kernel.session(other)?);
        let same = own.map(|(session, _)| session) == others.map(|(session, _)| session);
        Ok(same && (process.parent == other.pid || others.is_some_and(|(_, leads)| leads)))
    }

    fn role_of(&self, pid: u32, by_relation: Role) -> Role {
        match pid {
            1 => Role::Init,
            _ => self.services.get(&pid).copied().unwrap_or(by_relation),
        }
    }

    /// A link in words.
    pub(crate) fn describe(&self, excluded: u32, link: &Link) -> Result<Relation, PlanError> {
        let own = link.own.map(|tie| self.name(tie)).transpose()?;
        let peer = match (link.own, link.peer) {
            (Some(own), Some(peer)) if own.of != peer.of => Some(self.name(peer)?),
            _ => None,
        };
        let mut address = None;
        for tie in [link.peer, link.own].into_iter().flatten() {
            if let (Tied::Socket(at), None) = (tie.of, &address) {
                address = self.sockets.get(&at).map(|s| self.kernel.unix_name_text(s)).transpose()?.flatten();
            }
        }
        let name = own.unwrap_or_else(|| "ptrace".to_owned());
        let Link { other, role, kind, carries, .. } = *link;
        Ok(Relation { excluded, other, role, kind, name, peer, address, carries })
    }

    fn name(&self, tie: Tie) -> Result<String, PlanError> {
        Ok(match (tie.of, tie.file) {
            (Tied::Terminal(tty), _) => self.kernel.terminal_name(tty)?,
            (Tied::TerminalServer(tty), _) => {
                let server = self.kernel.terminal_peer(tty)?;
                server.map(|tty| self.kernel.terminal_name(tty)).transpose()?.unwrap_or_default()
            }
            (_, Some(file)) => self.kernel.descriptor_name(file)?,
            (_, None) => "a connection that waits to be accepted".to_owned(),
        })
    }
}
