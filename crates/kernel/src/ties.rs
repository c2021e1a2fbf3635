//! What ties a process to others: the ends it has of things through which processes reach each other.
//!
//! ```text
//! task.files -> file: f_mode; f_inode: i_ino     pipe, socket, terminal, memory, file, or nothing but the descriptor
//! task.mm -> VMA: vm_flags, vm_file              memory, file
//! task.signal -> tty; pids[PIDTYPE_SID]          controlling terminal, session
//! task.ptrace != 0, parent                       who traces it
//! ```
//! Two processes are tied when they have ends of one thing. Both ends of a pseudo terminal are told by its slave,
//! what is behind a file by its page cache. Which sockets belong together is asked of the sockets
//! ([`Kernel::unix_peer`], [`Kernel::tcp_peers`], [`Kernel::udp_target`]).

use crate::files::{CHARACTERS, REGULAR};
use crate::layout::layout;
use crate::tasks::Process;
use crate::{FileKind, Kernel, KernelError, OpenFile};
use elision_memory::{Budget, Gva};

layout! {
    pub(crate) struct TieLayout {
        mode: number("file", &["f_mode"]),
        inode_number: number("inode", &["i_ino"]),
        device: number("inode", &["i_rdev"]),
        traced: number("task_struct", &["ptrace"]),
        tracer: offset("task_struct", &["parent"]),
        own_id: offset("task_struct", &["thread_pid"]),
        ids: offset("signal_struct", &["pids"]),
        session: enumerator("PIDTYPE_SID"),
    }
}

const WHAT: &str = "open file";
/// `FMODE_READ`, `FMODE_WRITE`.
const READ: u64 = 1;
const WRITE: u64 = 2;
/// The major number of `/dev/null` and its like, through which nobody reaches anybody.
const MEMORY_DEVICES: u64 = 1;
const MINOR_BITS: u32 = 20;

/// A thing of which several processes can have an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tied {
    /// A pipe or FIFO (`pipe_inode_info`).
    Pipe(Gva),
    /// A socket (`sock`).
    Socket(Gva),
    /// A terminal (`tty_struct`); of a pseudo terminal the slave.
    Terminal(Gva),
    /// The other end of a pseudo terminal, told by the slave: what is written there is read here.
    TerminalServer(Gva),
    /// Memory that has no file on a disk: tmpfs, memfd, System V (`address_space`).
    Memory(Gva),
    /// A file (`address_space`).
    File(Gva),
    /// An open file of another kind: its holders share its position or its events.
    Descriptor(Gva),
}

/// One end that a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tie {
    /// Of what.
    pub of: Tied,
    /// The `struct file` by which it has it; that of a controlling terminal is not known.
    pub file: Option<Gva>,
    /// Whether it can read there.
    pub reads: bool,
    /// Whether it can write there.
    pub writes: bool,
}

impl Kernel<'_> {
    /// Calls `visit` with each end that a process has; with some of them more than once. `slots_left` and `areas_left`
    /// bound the slots of file tables and the areas looked at, over all calls that share them.
    pub fn for_each_tie(
        &self,
        process: &Process,
        slots_left: &Budget,
        areas_left: &Budget,
        visit: &mut dyn FnMut(Tie),
    ) -> Result<(), KernelError> {
        self.for_each_file(process, slots_left, &mut |file| {
            let file = self.open_file(file)?;
            if let Some(of) = self.tied_by(&file)? {
                let mode = self.number(file.file, self.profile.tie.mode, WHAT)?;
                let (reads, writes) = (mode & READ != 0, mode & WRITE != 0);
                visit(Tie { of, file: Some(file.file), reads, writes });
            }
            Ok(())
        })?;
        if let Some(tty) = self.controlling_terminal(process)? {
            visit(Tie { of: Tied::Terminal(tty), file: None, reads: true, writes: true });
        }
        let Some(mm) = process.mm.filter(|_| !process.kernel_thread) else { return Ok(()) };
        for area in self.vmas(self.mm(mm)?)? {
            if !areas_left.take(1) {
                let why = "there are more than the guest has room for";
                return Err(KernelError::Torn { what: "VMA", at: mm, why });
            }
            let Some(file) = area.file else { continue };
            let inode = self.pointer(file.wrapping_add(self.profile.files.inode), WHAT)?;
            if let Some(of) = self.content_of(file, inode)? {
                visit(Tie { of, file: Some(file), reads: true, writes: area.is_shared_writable() });
            }
        }
        Ok(())
    }

    fn tied_by(&self, file: &OpenFile) -> Result<Option<Tied>, KernelError> {
        let layout = &self.profile.tie;
        Ok(match file.kind {
            FileKind::Pipe(pipe) => Some(Tied::Pipe(pipe)),
            FileKind::Socket(socket) => Some(Tied::Socket(socket)),
            FileKind::Terminal(tty) if self.symbol("ptmx_fops") == Some(file.operations) => {
                self.terminal_peer(tty)?.map(Tied::TerminalServer)
            }
            FileKind::Terminal(tty) => Some(Tied::Terminal(tty)),
            FileKind::Other => {
                let kind = self.inode_format(file.inode)?;
                let major = self.number(file.inode, layout.device, WHAT)? >> MINOR_BITS;
                match self.content_of(file.file, file.inode)? {
                    Some(content) => Some(content),
                    None if kind == CHARACTERS && major == MEMORY_DEVICES => None,
                    None => Some(Tied::Descriptor(file.file)),
                }
            }
        })
    }

    /// What is behind a regular file.
    fn content_of(&self, file: Gva, inode: Gva) -> Result<Option<Tied>, KernelError> {
        let kind = self.inode_format(inode)?;
        let mapping = self.file_mapping(file)?.filter(|_| kind == REGULAR);
        let Some(mapping) = mapping else { return Ok(None) };
        let operations = self.pointer(mapping.wrapping_add(self.profile.page_cache.operations), WHAT)?;
        let in_memory = ["shmem_aops", "hugetlbfs_aops", "secretmem_aops", "ram_aops"];
        let is_memory = in_memory.into_iter().any(|name| self.symbol(name) == Some(operations));
        Ok(Some(if is_memory { Tied::Memory(mapping) } else { Tied::File(mapping) }))
    }

    /// The inode number of an open file, which `/proc/PID/fd` shows of pipes and sockets.
    pub fn inode_number(&self, file: Gva) -> Result<u64, KernelError> {
        let inode = self.pointer(file.wrapping_add(self.profile.files.inode), WHAT)?;
        self.number(inode, self.profile.tie.inode_number, WHAT)
    }

    /// What `/proc/PID/fd` shows of an open file: `pipe:[8]`, `socket:[9]`, `anon_inode:[eventfd]` or a path.
    pub fn descriptor_name(&self, file: Gva) -> Result<String, KernelError> {
        let kind = self.open_file(file)?.kind;
        let number = self.inode_number(file)?;
        let detached = self.detached_name(file)?;
        Ok(match (kind, detached) {
            (FileKind::Socket(_), _) => format!("socket:[{number}]"),
            (FileKind::Pipe(_), Some(_)) => format!("pipe:[{number}]"),
            (FileKind::Other, Some(name)) if name.starts_with('[') => format!("anon_inode:{name}"),
            _ => self.file_path(file)?,
        })
    }

    /// The threads (`task_struct`) that trace a process.
    pub fn tracers(&self, process: &Process) -> Result<Vec<Gva>, KernelError> {
        let layout = &self.profile.tie;
        let mut found = Vec::new();
        for thread in process.threads.iter().filter(|thread| !thread.dead) {
            if self.number(thread.task, layout.traced, "task")? != 0 {
                found.push(self.pointer(thread.task.wrapping_add(layout.tracer), "task")?);
            }
        }
        found.dedup();
        Ok(found)
    }

    /// The session of a process, and whether it leads it.
    pub fn session(&self, process: &Process) -> Result<Option<(Gva, bool)>, KernelError> {
        let layout = &self.profile.tie;
        let Some(session) = layout.session.filter(|index| *index < 8) else { return Ok(None) };
        let signal = self.pointer(process.leader.wrapping_add(self.profile.terminal.signal), "task")?;
        let session = self.pointer(signal.wrapping_add(layout.ids + 8 * session), "signal state")?;
        let own = self.pointer(process.leader.wrapping_add(layout.own_id), "task")?;
        Ok((session.0 != 0).then_some((session, session == own)))
    }
}
