//! The controlling terminal of a process (`signal_struct.tty`).

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct TtyLayout {
        signal: offset("task_struct", &["signal"]),
        tty: offset("signal_struct", &["tty"]),
        name: offset("tty_struct", &["name"]),
        name_len: count("tty_struct", "name"),
    }
}

const NAME_LIMIT: usize = 64;

impl Kernel<'_> {
    /// Name of the terminal relative to `/dev`: `ttyS0`, `tty1`, `pts/0`.
    pub(crate) fn controlling_tty(&self, task: Gva) -> Result<Option<String>, KernelError> {
        let layout = &self.profile.tty;
        let signal = self.pointer(task.wrapping_add(layout.signal), "task")?;
        let tty = self.pointer(signal.wrapping_add(layout.tty), "signal state")?;
        if tty.0 == 0 {
            return Ok(None);
        }
        let limit = usize::try_from(layout.name_len).unwrap_or(NAME_LIMIT).min(NAME_LIMIT);
        let name = self.string(tty.wrapping_add(layout.name), limit, "terminal")?;
        // The kernel calls the slave side of a pseudo terminal pts0; devpts calls it pts/0.
        Ok(Some(match name.strip_prefix("pts") {
            Some(n) if n.starts_with(|c: char| c.is_ascii_digit()) => format!("pts/{n}"),
            _ => name,
        }))
    }
}
