//! The open files of a process (`struct files_struct`, `struct fdtable`), and what each leads to.

use crate::layout::layout;
use crate::tasks::Process;
use crate::{Kernel, KernelError};
use elision_memory::{Budget, Gva};
use std::collections::BTreeSet;

layout! {
    pub(crate) struct FilesLayout {
        files: offset("task_struct", &["files"]),
        table: offset("files_struct", &["fdt"]),
        slots: offset("fdtable", &["fd"]),
        slot_count: offset("fdtable", &["max_fds"]),
        inode: offset("file", &["f_inode"]),
        operations: offset("file", &["f_op"]),
        private: offset("file", &["private_data"]),
        mode: offset("inode", &["i_mode"]),
        pipe: offset("inode", &["i_pipe"]),
        socket_sk: offset("socket", &["sk"]),
        tty: offset("tty_file_private", &["tty"]),
    }
}

const WHAT: &str = "file table";
/// Low bits of a slot mark one that is being filled.
const POINTER: u64 = !3;
const FORMAT: u16 = 0o170_000;
const FIFO: u16 = 0o010_000;
/// What [`Kernel::inode_format`] is of a regular file, and of a character device.
pub(crate) const REGULAR: u16 = 0o100_000;
pub(crate) const CHARACTERS: u16 = 0o020_000;
/// The file operations of terminals.
const TERMINALS: [&str; 4] = ["tty_fops", "ptmx_fops", "console_fops", "hung_up_tty_fops"];

/// What stands behind an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// A `struct pipe_inode_info`: an anonymous pipe or a FIFO.
    Pipe(Gva),
    /// A `struct sock`.
    Socket(Gva),
    /// A `struct tty_struct`.
    Terminal(Gva),
    /// Anything else.
    Other,
}

/// An open `struct file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Where it stands.
    pub file: Gva,
    /// Its `struct inode`.
    pub inode: Gva,
    /// Its `file_operations`.
    pub operations: Gva,
    /// Its `private_data`.
    pub private: Gva,
    /// What stands behind it.
    pub kind: FileKind,
}

impl Kernel<'_> {
    /// Calls `visit` with each open file of a process, by its `struct file`. `slots_left` bounds the slots of
    /// file tables looked at, over all calls that share it.
    pub fn for_each_file(
        &self,
        process: &Process,
        slots_left: &Budget,
        visit: &mut dyn FnMut(Gva) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let layout = &self.profile.files;
        let mut tables = BTreeSet::new();
        for thread in &process.threads {
            let files = self.pointer(thread.task.wrapping_add(layout.files), WHAT)?;
            if files.0 != 0 {
                tables.insert(files);
            }
        }
        for files in tables {
            let table = self.pointer(files.wrapping_add(layout.table), WHAT)?;
            let slots = self.pointer(table.wrapping_add(layout.slots), WHAT)?;
            let count = self.u32(table.wrapping_add(layout.slot_count), WHAT)?;
            let count = u64::from(count);
            if !slots_left.take(count) {
                let why = "there are more slots than the guest has room for";
                return Err(KernelError::Torn { what: WHAT, at: table, why });
            }
            for i in 0..count {
                let file = self.u64(slots.wrapping_add(8 * i), WHAT)? & POINTER;
                if file != 0 {
                    visit(Gva(file))?;
                }
            }
        }
        Ok(())
    }

    /// Calls `visit` with the page cache (`address_space`) of each open file of a process.
    pub fn for_each_open_mapping(
        &self,
        process: &Process,
        slots_left: &Budget,
        visit: &mut dyn FnMut(Gva),
    ) -> Result<(), KernelError> {
        self.for_each_file(process, slots_left, &mut |file| {
            visit(self.pointer(file.wrapping_add(self.profile.path.file_mapping), WHAT)?);
            Ok(())
        })
    }

    /// What kind of file an inode is (`S_IFMT`).
    pub(crate) fn inode_format(&self, inode: Gva) -> Result<u16, KernelError> {
        Ok(self.u16(inode.wrapping_add(self.profile.files.mode), "inode")? & FORMAT)
    }

    /// An open file, and what stands behind it.
    pub fn open_file(&self, file: Gva) -> Result<OpenFile, KernelError> {
        const WHAT: &str = "open file";
        let layout = &self.profile.files;
        let member = |offset: u64| self.pointer(file.wrapping_add(offset), WHAT);
        let (inode, operations) = (member(layout.inode)?, member(layout.operations)?);
        let private = member(layout.private)?;
        let is = |name| self.symbol(name) == Some(operations);
        let kind = if self.inode_format(inode)? == FIFO {
            FileKind::Pipe(self.pointer(inode.wrapping_add(layout.pipe), WHAT)?)
        } else if is("socket_file_ops") {
            FileKind::Socket(self.pointer(private.wrapping_add(layout.socket_sk), WHAT)?)
        } else if TERMINALS.into_iter().any(is) && private.0 != 0 {
            FileKind::Terminal(self.pointer(private.wrapping_add(layout.tty), WHAT)?)
        } else {
            FileKind::Other
        };
        let is_there =
            !matches!(kind, FileKind::Pipe(Gva(0)) | FileKind::Socket(Gva(0)) | FileKind::Terminal(Gva(0)));
        Ok(OpenFile { file, inode, operations, private, kind: if is_there { kind } else { FileKind::Other } })
    }
}
