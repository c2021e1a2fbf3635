//! Why a selector or a policy file was not understood.

use crate::Kind;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a selector or a policy file was not understood.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// There is no `=` in the argument.
    #[error("`{0}` is not a selection: write KIND=PATTERN, for example exe=/usr/bin/psql")]
    NoKind(String),
    /// The word before `=` is not a kind.
    #[error("`{0}` is not a kind of selection: use one of {kinds}", kinds = kinds())]
    UnknownKind(String),
    /// There is nothing after `=`.
    #[error("The pattern of `{0}` is empty")]
    Empty(Kind),
    /// The pattern holds a control character or is far too long.
    #[error("The pattern of `{0}` has control characters or more than 4096 bytes")]
    Malformed(Kind),
    /// A process id is not a number above 0.
    #[error("`pid={0}` is not a process id: use the number of a process of the guest, from 1")]
    BadPid(String),
    /// A user id is not a number.
    #[error(
        "`uid={0}` is not a number: user names are the guest's own, so give the number (`id -u` in the guest)"
    )]
    BadUid(String),
    /// A command name that no process can have.
    #[error(
        "`comm={0}` has {len} bytes, but the guest's kernel keeps only the first 15 of a process name: \
         write comm={short}, or select by exe",
        len = .0.len(),
        short = first_15(.0)
    )]
    LongComm(String),
    /// A path that can match nothing.
    #[error(
        "`{kind}={pattern}` can match nothing, because paths begin with `/`: \
         write the whole path, or {kind}=**/{pattern}"
    )]
    RelativePath {
        /// The selector's kind.
        kind: Kind,
        /// The pattern.
        pattern: String,
    },
    /// A path where a name is asked for.
    #[error("`{kind}={pattern}` is a path, but a {kind} is a name: select by its path with cgroup=")]
    PathForName {
        /// The selector's kind.
        kind: Kind,
        /// The pattern.
        pattern: String,
    },
    /// No such kind of region.
    #[error("`region={0}` is not a kind of region: use one of named, secretmem, dontdump")]
    BadRegion(String),
    /// The glob has a syntax error.
    #[error("The pattern of `{kind}={pattern}` is not a valid glob: {reason}")]
    BadGlob {
        /// The selector's kind.
        kind: Kind,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The policy file could not be read.
    #[error("Cannot read the policy file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The policy file is far larger than any policy.
    #[error("The policy file {path} has more than {limit} bytes: is it the right file?")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes allowed.
        limit: u64,
    },
    /// A place in the policy file is wrong.
    #[error("{path}:{line}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
}

fn kinds() -> String {
    Kind::ALL.map(Kind::name).join(", ")
}

fn first_15(comm: &str) -> &str {
    let end = (0..=15).rev().find(|&i| comm.is_char_boundary(i)).unwrap_or(0);
    comm.get(..end).unwrap_or_default()
}
