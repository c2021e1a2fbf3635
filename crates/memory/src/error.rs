//! What can go wrong when guest memory is read.

use crate::Gpa;
use std::io;
use thiserror::Error;

/// Why guest memory could not be read.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The range is not RAM, or runs out of it.
    #[error("Guest-physical {gpa} with {len} bytes is not RAM")]
    NotRam {
        /// First address asked for.
        gpa: Gpa,
        /// Bytes asked for.
        len: usize,
    },
    /// The RAM file is shorter than the layout says.
    #[error("The RAM file has {found:#x} bytes, but the RAM layout needs {needed:#x}")]
    Short {
        /// Length of the file.
        found: u64,
        /// Length needed by the layout.
        needed: u64,
    },
    /// The operating system refused.
    #[error("Cannot map the RAM file")]
    Map(#[from] io::Error),
    /// Another process's memory may not be read.
    #[error(
        "The memory of process {pid} may not be read: run as root, or as the same user where kernel.yama.ptrace_scope is 0"
    )]
    Forbidden {
        /// The process.
        pid: u32,
    },
    /// The process that had the memory is gone.
    #[error("Process {pid}, whose memory was read, has ended")]
    Ended {
        /// The process.
        pid: u32,
    },
    /// Another process's memory could not be read.
    #[error("Cannot read the memory of process {pid}")]
    Process {
        /// The process.
        pid: u32,
        /// What the operating system said.
        source: io::Error,
    },
}
