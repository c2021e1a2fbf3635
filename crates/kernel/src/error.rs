//! Why a guest's kernel could not be read.

use crate::btf::BtfError;
use crate::kallsyms::KallsymsError;
use elision_memory::{Gva, MemoryError, WalkError};
use thiserror::Error;

/// Why a guest's kernel, or one structure of it, could not be read.
#[derive(Debug, Error)]
pub enum KernelError {
    /// No page table in RAM has the shape of a Linux kernel's.
    #[error(
        "No running Linux kernel was found in the guest's memory. \
         If the guest is still in its boot loader or firmware, wait until it has booted"
    )]
    NotFound,
    /// A kernel mapping without what makes it readable.
    #[error(
        "A kernel was found, but not its {0}. Elision needs a kernel with CONFIG_DEBUG_INFO_BTF and CONFIG_KALLSYMS_ALL"
    )]
    Incomplete(&'static str),
    /// A symbol that every supported kernel has.
    #[error("The guest's kernel has no symbol `{0}`: this kernel is not supported")]
    NoSymbol(&'static str),
    /// The kernel's type information is broken or lacks something needed.
    #[error("The guest's kernel has unusable type information")]
    Types(#[from] BtfError),
    /// The kernel's symbol table is missing or broken.
    #[error("The guest's kernel has no usable symbol table")]
    Symbols(#[from] KallsymsError),
    /// There is not enough memory to borrow for ending so many processes.
    #[error(
        "{asked} processes are to be ended at once, but the stacks of the guest's kernel threads have room for {room}. \
         Exclude fewer processes"
    )]
    TooMany {
        /// Processes to be ended.
        asked: usize,
        /// How many can be.
        room: usize,
    },
    /// A pointer led outside the guest's memory.
    #[error("Kernel memory at {at} is not readable while looking at {what}")]
    Unreadable {
        /// Where.
        at: Gva,
        /// What was being looked at.
        what: &'static str,
    },
    /// A structure is not what it must be: it is being changed just now, or it was forged.
    #[error("The {what} at {at} is inconsistent: {why}")]
    Torn {
        /// Which kind of structure.
        what: &'static str,
        /// Where.
        at: Gva,
        /// In which way.
        why: &'static str,
    },
    /// Page tables could not be walked.
    #[error("Page tables of the guest cannot be walked")]
    Walk(#[from] WalkError),
    /// Physical memory could not be read.
    #[error("Guest memory cannot be read")]
    Memory(#[from] MemoryError),
}

impl KernelError {
    /// Whether the guest may have been read in the middle of a change: a later look may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Torn { .. } | Self::Unreadable { .. } | Self::Walk(_))
    }
}
