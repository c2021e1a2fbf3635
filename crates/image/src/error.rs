//! Why an image could not be written or read.

use crate::link::MAX_LINKS;
use crate::{ExclusionsError, FORMAT};
use elision_memory::{Gfn, MemoryError};
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why an image could not be written or read.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Something stands where the image should go.
    #[error("{0} exists: give another name, or remove it first")]
    Exists(PathBuf),
    /// The target has no name of its own.
    #[error("{0} cannot be an image's name: name a directory that does not exist yet")]
    BadTarget(PathBuf),
    /// The directory that the image should go into is not there.
    #[error("{0} is not a directory: create it, or save elsewhere")]
    NoParent(PathBuf),
    /// Another save to the same target is running.
    #[error("Another save to {target} is running: its unfinished image {partial} is locked")]
    Busy {
        /// The image.
        target: PathBuf,
        /// Its partial folder.
        partial: PathBuf,
    },
    /// Something that is not ours stands where the partial folder should be.
    #[error("{0} is in the way and is not an unfinished image of this user: remove it")]
    Foreign(PathBuf),
    /// There was no room.
    #[error(
        "No room for {path}: the RAM to be saved takes up to {needed} bytes, more than the disk, the quota or the \
         file size limit allows"
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Most bytes that RAM can take.
        needed: u64,
    },
    /// The operating system refused.
    #[error("Cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Guest memory could not be read.
    #[error("Cannot read the guest's memory")]
    Memory(#[from] MemoryError),
    /// A plan's entry cannot be carried out, so nothing may be written.
    #[error("The plan cannot be carried out at frame {gfn}: {reason}")]
    BadPlan {
        /// The frame.
        gfn: Gfn,
        /// What is wrong.
        reason: &'static str,
    },
    /// The memory that came is not that on which the plan was made.
    #[error(
        "The VM ran on between the look at its processes and the copy of its memory: frame {gfn} is another \
         one now. Somebody else continued the VM: save again"
    )]
    Moved {
        /// A frame that differs.
        gfn: Gfn,
    },
    /// A part of the image was never written.
    #[error("The image is unfinished: {0} was not written")]
    Unfinished(&'static str),
    /// The manifest could not be turned into JSON.
    #[error("Cannot encode the manifest")]
    Encode(#[source] serde_json::Error),
    /// There is no manifest.
    #[error("{0} is not an image: it has no manifest.json")]
    NotAnImage(PathBuf),
    /// A folder that is to be removed holds something that is no part of an image.
    #[error("{image} holds more than an image, so it was not removed: move {path} away first")]
    Stranger {
        /// The image.
        image: PathBuf,
        /// What is no part of it.
        path: PathBuf,
    },
    /// The manifest is of a format that this version does not know.
    #[error("{path} has image format {found}, but this version reads formats {FORMAT} to {known}: {}", other_version(*found))]
    Format {
        /// The image.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format known here.
        known: u32,
    },
    /// The manifest is not one.
    #[error("The manifest {path} is damaged or incomplete: {reason}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of the image is missing.
    #[error("The image is incomplete: {0} is missing")]
    Missing(PathBuf),
    /// A file of the image has another length than the manifest says.
    #[error("{path} has {found} bytes, but the manifest says {expected}: the image is truncated or mixed up")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// Its length by the manifest.
        expected: u64,
    },
    /// An image cannot be built on.
    #[error("Nothing can build on {path}: {reason}")]
    NoBase {
        /// The image.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// The image that one builds on cannot be used.
    #[error("{image} builds on {base}, which cannot be used: put that image back, or where it is expected")]
    BrokenBase {
        /// The image that builds on it.
        image: PathBuf,
        /// Where it is expected.
        base: PathBuf,
        /// Why.
        source: Box<ImageError>,
    },
    /// Another image stands where the base should be.
    #[error("{0} is another image than the one that was built on")]
    OtherBase(PathBuf),
    /// Links that lead to each other, or too many.
    #[error("{0} is at the end of a chain of more than {MAX_LINKS} images")]
    LongChain(PathBuf),
    /// The table of a compressed file is not one.
    #[error("{path} is damaged: {reason}")]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// A file of the image is not the one that was written.
    #[error("{0} was changed or damaged: its checksum differs from the manifest's")]
    Damaged(PathBuf),
    /// The exclusion map is not one.
    #[error("Cannot read {path}")]
    Exclusions {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ExclusionsError,
    },
}

impl ImageError {
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.to_owned(), source: source.into() }
    }

    /// The same with the room that was needed, when there was too little of it.
    pub(crate) fn or_full(self, needed: u64) -> Self {
        match self {
            Self::Io { path, source, .. } if is_full(&source) => Self::DiskFull { path, needed },
            other => other,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG];
    error.raw_os_error().is_some_and(|code| full.iter().any(|e| e.raw_os_error() == code))
}

fn other_version(found: u64) -> &'static str {
    if found > u64::from(FORMAT) { "use a newer version" } else { "use the version that wrote it" }
}
