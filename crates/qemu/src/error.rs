//! What can go wrong between Elision and QEMU.

use elision_memory::{FileOffset, LayoutError, MemoryError};
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why QEMU, its memory or its device state could not be used.
#[derive(Debug, Error)]
pub enum QemuError {
    /// Nothing answers at the socket's path.
    #[error("Cannot connect to the QMP socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// QEMU serves one client for each QMP socket, and another one is connected.
    #[error(
        "The QMP socket {path} does not answer: QEMU serves one client at a time and another seems to be \
         connected. Close the other client, or start QEMU with a second `-qmp unix:PATH,server=on,wait=off`"
    )]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// Something else than QMP answers.
    #[error("{path} is not a QMP socket: it greets with {line:?}")]
    NotQmp {
        /// The socket.
        path: PathBuf,
        /// The start of what it sent.
        line: String,
    },
    /// QEMU went away in the middle.
    #[error("QEMU closed the QMP connection during {command}")]
    Closed {
        /// The command whose reply was awaited.
        command: String,
    },
    /// No reply within the time limit.
    #[error("QEMU did not answer {command} within {seconds} s")]
    Timeout {
        /// The command.
        command: String,
        /// The limit.
        seconds: u64,
    },
    /// QEMU's reply makes no sense.
    #[error("QEMU's answer to {command} cannot be read: {why}")]
    BadReply {
        /// The command.
        command: String,
        /// What was wrong.
        why: String,
    },
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's text.
        desc: String,
    },
    /// The operating system refused.
    #[error("Cannot {doing}")]
    Io {
        /// What was attempted.
        doing: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The process behind the socket is something else.
    #[error("The process {pid} behind the QMP socket runs {exe}, which does not look like QEMU")]
    NotQemu {
        /// Its process id.
        pid: u32,
        /// Its executable.
        exe: PathBuf,
    },
    /// The VM's RAM is private to its QEMU.
    #[error(
        "The VM's RAM {block:?} is not a shared file. To have one, start the VM by \
         `elision run -- QEMU COMMAND`, or add to its command: \
         -object memory-backend-file,id=pc.ram,size=SIZE,mem-path=/dev/shm/NAME,share=on \
         -machine memory-backend=pc.ram"
    )]
    NotShared {
        /// The RAM block.
        block: String,
    },
    /// The guest has memory that is neither its main RAM nor that of NUMA nodes.
    #[error(
        "The VM has memory of other kinds beside its main RAM ({}), which is not supported: give it all of its RAM by \
         one memory backend, or by one for each NUMA node (-numa node,memdev=ID), without memory devices",
        .names.join(", ")
    )]
    OtherBackends {
        /// The backends.
        names: Vec<String>,
    },
    /// The RAM file is mapped by QEMU but cannot be opened from here.
    #[error("The RAM file of process {pid} cannot be opened: run as the same user as QEMU, or as root")]
    RamFile {
        /// QEMU's process id.
        pid: u32,
    },
    /// QEMU's description of the RAM layout is not understood.
    #[error("The VM's RAM layout cannot be read: {why}")]
    RamLayout {
        /// What was wrong.
        why: String,
    },
    /// A part of the RAM file is neither mapped for the guest nor known to be hidden from it.
    #[error("{len:#x} bytes of the RAM file at {offset} are mapped nowhere, and nothing explains it")]
    Unexplained {
        /// First byte.
        offset: FileOffset,
        /// Length in bytes.
        len: u64,
    },
    /// The VM's RAM cannot be opened.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// QEMU's regions are no layout.
    #[error("The VM's RAM layout is inconsistent")]
    Layout(#[from] LayoutError),
    /// The VM is not in the state that the operation needs.
    #[error("The VM is in the state {found:?}, but {needed}")]
    State {
        /// QEMU's run state.
        found: String,
        /// What is needed, and what to do.
        needed: &'static str,
    },
    /// QEMU could not send its device state.
    #[error("QEMU could not send the device state: {why}")]
    Migration {
        /// QEMU's text or status.
        why: String,
    },
    /// QEMU cannot let a VM run while it sends the memory of one moment.
    #[error("QEMU cannot take a snapshot of the VM while it runs: {why}")]
    NoSnapshot {
        /// QEMU's text.
        why: String,
    },
    /// The VM ran between the look at it and the copy.
    #[error(
        "The VM ran on between the look at its processes and the copy of its memory ({sign}): somebody else \
         continued it. Save again"
    )]
    Moved {
        /// How it showed.
        sign: String,
    },
    /// Whoever takes the memory's pages wants no more of them.
    #[error("The memory that QEMU sends cannot be taken over")]
    SinkClosed,
    /// The migration stream ends too early.
    #[error("The migration stream ends early, at byte {at}")]
    Truncated {
        /// Where.
        at: u64,
    },
    /// The migration stream is not as expected.
    #[error("The migration stream cannot be read at byte {at}: {why}")]
    Stream {
        /// Where.
        at: u64,
        /// What was wrong.
        why: String,
    },
    /// More device state than any VM has.
    #[error("The device state has more than {limit:#x} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A RAM block's content is outside the stream.
    #[error(
        "The VM has a second shared memory block, {block:?}, whose content would be missing from the image"
    )]
    SharedBlock {
        /// The block.
        block: String,
    },
    /// A device or one of its fields is not in the stream.
    #[error("The device state has no {what}")]
    Missing {
        /// Section and field.
        what: String,
    },
    /// A vCPU cannot be changed as asked.
    #[error("The state of vCPU {cpu} cannot be changed: {why}")]
    Vcpu {
        /// Index of the vCPU.
        cpu: u32,
        /// The reason.
        why: String,
    },
    /// The QEMU command line cannot be rewritten.
    #[error("The QEMU command cannot be used: {why}")]
    Command {
        /// The reason and what to do.
        why: String,
    },
    /// QEMU ended or failed while a VM was restored.
    #[error("QEMU could not restore the VM: {why}{}", tail(.stderr))]
    Restore {
        /// What happened.
        why: String,
        /// The end of what QEMU wrote to stderr.
        stderr: String,
    },
}

fn tail(stderr: &str) -> String {
    if stderr.trim().is_empty() { String::new() } else { format!("\nQEMU said: {}", stderr.trim()) }
}

impl QemuError {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn os(doing: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source: source.into() }
    }
}

/// Shorthand of this crate.
pub type Result<T, E = QemuError> = std::result::Result<T, E>;
