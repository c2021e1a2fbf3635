//! RAM as far as it is copied, and the image that it builds on.

use crate::inherit::{inherit, without};
use crate::link::path_to;
use crate::page_hashes::{HashFile, PageHashes};
use crate::ram_writer::{AtOnce, Written};
use crate::ranges::{Runs, common, rest};
use crate::{Base, Image, ImageError};
use blake3::Hash;
use elision_memory::{FileOffset, MemoryError, Ram, joined};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What an image builds on.
#[derive(Debug)]
pub(crate) struct BuiltOn {
    pub(super) image: Image,
    /// From the folder of the image that is written.
    path: PathBuf,
    pub(super) hashes: Option<PageHashes>,
    /// What its RAM is in, if that need not be unpacked.
    pub(super) files: Option<Vec<(File, Runs)>>,
}

/// RAM as far as it is copied.
#[derive(Debug)]
pub(super) struct RamImage {
    pub(super) file: File,
    pub(super) hash_file: HashFile,
    pub(super) written: Written,
    pub(super) copy: Ram,
    /// The parts that are in the copy and not in the file yet, ascending.
    pub(super) missing: Runs,
    /// Those of them that may be the same in the base, ascending.
    pub(super) unsure: Runs,
    /// What must be in the copy before it is looked at is there.
    is_complete: bool,
    /// Checksums of chunks in which nothing is missing, by their number, ascending.
    pub(super) hashes: Vec<(u64, Hash)>,
}

impl RamImage {
    /// `copy` holds what was copied, a view of the file where that was written at once.
    pub(super) fn new(
        (file, hash_file): (File, HashFile),
        written: Written,
        copy: Ram,
        at_once: AtOnce,
    ) -> Self {
        let AtOnce { chunks, hashes } = at_once;
        let is_in_file = |run: &Range<FileOffset>| {
            chunks
                .get(chunks.partition_point(|chunk| chunk.end <= run.start))
                .is_some_and(|c| c.start <= run.start)
        };
        let missing: Runs = written.data.iter().filter(|run| !is_in_file(run)).cloned().collect();
        let unsure = if written.inherited.is_empty() { missing.clone() } else { Vec::new() };
        Self { file, hash_file, written, copy, missing, unsure, hashes, is_complete: false }
    }

    /// The same, with all in the copy that was copied or inherited: from the base's files.
    pub(super) fn completed(mut self, base: &[(File, Runs)]) -> Result<Self, ImageError> {
        if self.is_complete {
            return Ok(self);
        }
        let Written { late, inherited, .. } = &self.written;
        late.each().try_for_each(|(gfn, frame)| self.copy.poke(gfn.gpa(), frame))?;
        if !inherited.is_empty() {
            let parts = base.iter().map(|(file, held)| Ok((file.try_clone()?, common(held, inherited))));
            self.copy = self.copy.over(parts.collect::<io::Result<_>>().map_err(MemoryError::from)?)?;
        }
        self.is_complete = true;
        Ok(self)
    }

    /// Takes out what is the same in the base, too.
    pub(super) fn inherit(&mut self, base: &BuiltOn) -> Result<(), ImageError> {
        let Written { data, inherited, .. } = &mut self.written;
        let same = inherit(&self.copy, &self.unsure, &base.image, base.hashes.as_ref())?;
        self.missing = without(&self.missing, &same);
        *data = without(data, &same);
        *inherited = joined([&inherited[..], &same].concat());
        Ok(())
    }
}

impl BuiltOn {
    /// `target` is what the image that builds on it will be called.
    pub(crate) fn new(image: Image, target: &Path) -> Result<Self, ImageError> {
        let (path, hashes, files) =
            (path_to(image.dir(), target)?, image.page_hashes()?, image.plain_files()?);
        Ok(Self { image, path, hashes, files })
    }

    /// What the manifest says of it.
    pub(super) fn named(&self, written: &Written, len: u64) -> Result<Base, ImageError> {
        let Written { data, inherited, .. } = written;
        let bytes = |runs: &Runs| runs.iter().map(|run| run.end.0 - run.start.0).sum();
        let held = joined([&data[..], inherited].concat());
        let gone = common(&self.image.populated()?, &rest(&held, len));
        let (path, id) = (self.path.clone(), self.image.manifest().id.clone());
        Ok(Base { path, id, inherited_bytes: bytes(inherited), withdrawn_bytes: bytes(&gone) })
    }
}
