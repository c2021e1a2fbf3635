//! The open files of a process (`struct files_struct`, `struct fdtable`).

use crate::layout::layout;
use crate::tasks::Process;
use crate::{Kernel, KernelError};
use elision_memory::Gva;
use std::collections::BTreeSet;

layout! {
    pub(crate) struct FilesLayout {
        files: offset("task_struct", &["files"]),
        table: offset("files_struct", &["fdt"]),
        slots: offset("fdtable", &["fd"]),
        slot_count: offset("fdtable", &["max_fds"]),
    }
}

const WHAT: &str = "file table";
/// Low bits of a slot mark one that is being filled.
const POINTER: u64 = !3;

impl Kernel<'_> {
    /// Calls `visit` with the page cache (`address_space`) of each open file of a process. `slots_left`
    /// bounds the slots of file tables looked at, over all calls that share it.
    pub fn for_each_open_mapping(
        &self,
        process: &Process,
        slots_left: &mut u64,
        visit: &mut dyn FnMut(Gva),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.files;
        let mut tables = BTreeSet::new();
        for thread in &process.threads {
            let files = self.pointer(thread.task.wrapping_add(layout.files), WHAT)?;
            if files.0 != 0 {
                tables.insert(files);
            }
        }
        for files in tables {
            let table = self.pointer(files.wrapping_add(layout.table), WHAT)?;
            let slots = self.pointer(table.wrapping_add(layout.slots), WHAT)?;
            let count = self.u32(table.wrapping_add(layout.slot_count), WHAT)?;
            let count = u64::from(count);
            *slots_left = slots_left.checked_sub(count).ok_or(KernelError::Torn {
                what: WHAT,
                at: table,
                why: "there are more slots than the guest has room for",
            })?;
            for i in 0..count {
                let file = self.u64(slots.wrapping_add(8 * i), WHAT)? & POINTER;
                if file != 0 {
                    visit(self.pointer(Gva(file).wrapping_add(self.profile.path.file_mapping), WHAT)?);
                }
            }
        }
        Ok(())
    }
}
