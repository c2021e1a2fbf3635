//! Why an audit could not be made.

use crate::{MAX_BYTES, MAX_SECRETS, MIN_BYTES};
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why an audit could not be made.
#[derive(Debug, Error)]
pub enum AuditError {
    /// A file could not be read.
    #[error("Cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is nothing to look for.
    #[error("{0} holds no secret: write one on each line")]
    Empty(PathBuf),
    /// A secret would be found by chance.
    #[error(
        "The secret on line {line} of {path} has fewer than {MIN_BYTES} bytes and would be found by chance"
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A secret consists of zeros.
    #[error("The secret on line {line} of {path} is nothing but zeros, which stand everywhere")]
    Zeros {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A secret is longer than what is searched for.
    #[error("The secret on line {line} of {path} has more than {MAX_BYTES} bytes")]
    Long {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// There are too many.
    #[error("{0} holds more than {MAX_SECRETS} secrets: split it")]
    Many(PathBuf),
    /// The patterns could not be compiled.
    #[error("Cannot prepare the search")]
    Compile(#[from] aho_corasick::BuildError),
    /// The searched data could not be read.
    #[error("Cannot read what is searched at offset {offset:#x}")]
    Source {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
}
