//! Names of files that are in no folder any more, or never were (memfds): a file that only excluded processes have
//! open or map keeps its name for `/proc` alone.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_memory::Gva;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let mut files: BTreeMap<Gva, u32> = channels.files.iter().map(|(file, pid)| (file.file, *pid)).collect();
    for process in channels.live {
        for file in channels.frames.mapped_files(process)? {
            files.entry(file).or_insert(process.pid);
        }
    }
    let mut names = BTreeMap::new();
    for (file, pid) in files {
        let dentry = kernel.dentry_of(file)?;
        if let Some(name) = kernel.name_without_folder(dentry)? {
            names.insert(dentry, (name, pid));
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let mut kept = BTreeSet::new();
    for process in channels.selection.kept() {
        kept.extend(channels.frames.mapped_files(process)?);
        kernel.for_each_file(process, &mut channels.frames.slots_left, &mut |file| {
            kept.insert(file);
            Ok(())
        })?;
    }
    for file in kept {
        names.remove(&kernel.dentry_of(file)?);
    }
    for (name, pid) in names.into_values() {
        channels.edits.zero(name, EditReason::Name, Some(pid))?;
    }
    Ok(())
}
