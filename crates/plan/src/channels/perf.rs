//! Perf events that an excluded process has open or maps: what they have recorded. Whoever else maps the buffer
//! reads zeros.

use super::Channels;
use crate::{EditReason, PlanError};
use elision_memory::Gva;
use std::collections::BTreeMap;

pub(super) fn survey(channels: &mut Channels<'_, '_, '_>) -> Result<(), PlanError> {
    let kernel = channels.kernel;
    let mut files: BTreeMap<Gva, u32> = channels.files.iter().map(|(file, pid)| (file.file, *pid)).collect();
    for process in channels.live {
        for file in channels.frames.mapped_files(process)? {
            files.entry(file).or_insert(process.pid);
        }
    }
    for (file, pid) in files {
        let mut content = Vec::new();
        kernel.perf_content(&kernel.open_file(file)?, &mut |part| content.push(part))?;
        channels.clear(content, EditReason::Event, Some(pid))?;
    }
    Ok(())
}
