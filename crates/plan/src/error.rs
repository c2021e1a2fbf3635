//! Why there is no plan.

use elision_kernel::KernelError;
use elision_memory::Gpa;
use thiserror::Error;

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// A selector that selects nothing is more likely a mistake than a wish.
    #[error("Nothing in the guest matches `{selector}`. Correct it, or mark it optional in a policy file")]
    NoMatch {
        /// The selector as the user wrote it.
        selector: String,
    },
    /// A process that the guest cannot live without.
    #[error("`{selector}` selects process {pid} ({comm}), which cannot be left out: {why}")]
    Indispensable {
        /// The selector as the user wrote it.
        selector: String,
        /// The process.
        pid: u32,
        /// Its name.
        comm: String,
        /// Why not.
        why: &'static str,
    },
    /// A selector asks for arguments that cannot be read.
    #[error(
        "Cannot tell whether `args` selects process {pid} ({comm}): its command line is not in the guest's memory as a whole"
    )]
    NoCommandLine {
        /// The process.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// An excluded process is in the middle of something that ends by itself.
    #[error("Process {pid} ({comm}) is busy: {what}")]
    Busy {
        /// The process.
        pid: u32,
        /// Its name.
        comm: String,
        /// What it is doing.
        what: &'static str,
    },
    /// A vCPU is in a state that ends by itself within microseconds.
    #[error("vCPU {index} is busy: {what}")]
    VcpuBusy {
        /// Which.
        index: usize,
        /// What it is doing.
        what: &'static str,
    },
    /// The kernel is about to clear freed memory for its next owner, or has taken memory for itself a moment ago.
    #[error("The guest's kernel may be clearing memory for its next owner: {blocks} blocks of it")]
    Clearing {
        /// How many.
        blocks: usize,
    },
    /// A cached file is in the middle of something that ends by itself.
    #[error("The file {file} is busy: {what}")]
    FileBusy {
        /// Its path in the guest.
        file: String,
        /// What happens to it.
        what: &'static str,
    },
    /// Cached data that is to be left out is not on its disk yet: nothing else in the guest has it.
    #[error("The guest has not written to its disk yet what it caches of {}", .files.join(", "))]
    Dirty {
        /// Paths in the guest, each with an amount.
        files: Vec<String>,
        /// Whether the policy says to wait.
        wait: bool,
    },
    /// Something of an excluded process is where Elision cannot take it out.
    #[error("Not everything of the excluded processes can be left out: {}", .0.join("; "))]
    Unaccounted(Vec<String>),
    /// The same frame is kernel memory in use and memory to be left out.
    #[error("The guest's kernel contradicts itself: the frame at {gpa} is in use and free at once")]
    Contradiction {
        /// First address of the frame.
        gpa: Gpa,
    },
    /// The guest's kernel could not be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl PlanError {
    /// Whether the same question may have an answer once the guest has run on for a moment.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. }
            | Self::FileBusy { .. }
            | Self::VcpuBusy { .. }
            | Self::Clearing { .. }
            | Self::Contradiction { .. } => true,
            Self::Dirty { wait, .. } => *wait,
            Self::Kernel(error) => error.is_transient(),
            Self::NoMatch { .. }
            | Self::NoCommandLine { .. }
            | Self::Indispensable { .. }
            | Self::Unaccounted(_) => false,
        }
    }
}
