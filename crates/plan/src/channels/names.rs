//! Names of files that are in no folder any more, or never were (memfds): a file that only excluded processes have
//! open or map keeps its name for `/proc` alone.

use super::Channels;
use crate::{EditReason, PlanError};
use std::collections::BTreeMap;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let mut names = BTreeMap::new();
    for (file, pid) in channels.opened_or_mapped()? {
        let dentry = kernel.dentry_of(file)?;
        if let Some(name) = kernel.name_without_folder(dentry)? {
            names.insert(dentry, (name, pid));
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let mut kept = channels.kept_files()?.clone();
    for process in channels.selection.kept() {
        kept.extend(channels.frames.mapped_files(process)?);
    }
    for file in kept {
        names.remove(&kernel.dentry_of(file)?);
    }
    for (name, pid) in names.into_values() {
        channels.edits.zero(name, EditReason::Name, Some(pid))?;
    }
    Ok(())
}
