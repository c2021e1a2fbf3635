//! Making SIGKILL pending for a thread, in the copy.
//!
//! Two words: the signal's bit in `task.pending`, and the thread flag by which the kernel notices
//! on its way to user mode. That flag's bit is a macro, differs between kernels and is not in BTF:
//! it is read from the code of `signal_wake_up_state`, which sets it.

use crate::layout::layout;
use crate::tasks::Thread;
use crate::view::WordEdit;
use crate::{Kernel, KernelError};

layout! {
    pub(crate) struct SignalLayout {
        pending: offset("task_struct", &["pending.signal"]),
        thread_flags: offset("task_struct", &["thread_info.flags"]),
    }
}

const SIGKILL_BIT: u64 = 1 << 8;
const LOCK_PREFIXES: [u8; 2] = [0xf0, 0x3e];

impl Kernel<'_> {
    /// Reads the flag from this guest's own code: a profile of another guest must not decide on it.
    pub(crate) fn read_sigpending_flag(&self) -> Result<u64, KernelError> {
        const LONGEST: usize = 256;
        let at = self.require("signal_wake_up_state")?;
        let mut code = [0; LONGEST];
        self.read(at, &mut code, "kernel code")?;
        sigpending_flag(&code, self.profile.signal.thread_flags)
            .filter(|_| self.is_read_only(at, LONGEST as u64))
            .ok_or(KernelError::Incomplete("code that sets the flag for pending signals"))
    }

    /// The changes that make SIGKILL pending for one thread.
    pub fn kill_edits(&self, thread: &Thread) -> Result<[WordEdit; 2], KernelError> {
        let layout = &self.profile.signal;
        let pending = thread.task.wrapping_add(layout.pending);
        let flags = thread.task.wrapping_add(layout.thread_flags);
        Ok([
            WordEdit::u64(pending, self.u64(pending, "pending signals")? | SIGKILL_BIT),
            WordEdit::u64(flags, self.u64(flags, "thread flags")? | self.sigpending_flag),
        ])
    }
}

/// The flag's mask out of machine code: the first `lock or byte [reg + disp], imm`.
///
/// ```text
/// f0 [41] 80 /1      imm8        mod 00: no displacement
/// f0 [41] 80 /1 disp imm8        mod 01
/// ```
/// On a machine with one CPU the kernel has patched the lock prefix (f0) to a segment prefix (3e).
pub(crate) fn sigpending_flag(code: &[u8], flags_offset: u64) -> Option<u64> {
    for i in 0..code.len() {
        let at = |k: usize| code.get(i + k).copied();
        if !LOCK_PREFIXES.contains(&at(0)?) {
            continue;
        }
        let rex = usize::from(at(1) == Some(0x41));
        if at(1 + rex) != Some(0x80) {
            continue;
        }
        let Some(modrm) = at(2 + rex) else { continue };
        let (is_or, has_sib) = (modrm >> 3 & 7 == 1, modrm & 7 == 4);
        let (displacement, immediate) = match modrm >> 6 {
            0 if modrm & 7 != 5 => (Some(0), at(3 + rex)),
            1 => (at(3 + rex).map(u64::from), at(4 + rex)),
            _ => continue,
        };
        let byte = displacement.and_then(|d| d.checked_sub(flags_offset)).filter(|&b| b < 4);
        if let (true, false, Some(byte), Some(mask)) = (is_or, has_sib, byte, immediate) {
            if mask.count_ones() == 1 {
                return Some(u64::from(mask) << (8 * byte));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::sigpending_flag;

    #[test]
    fn the_flag_is_read_from_code() {
        // push rbp; lock or byte [rdi], 4
        assert_eq!(sigpending_flag(&[0x55, 0xf0, 0x80, 0x0f, 0x04], 0), Some(4));
        // lock or byte [r12 + 0], 2 would need a SIB byte; r13 + 0 has a displacement
        assert_eq!(sigpending_flag(&[0xf0, 0x41, 0x80, 0x4d, 0x00, 0x02], 0), Some(2));
        // The same with the lock patched away.
        assert_eq!(sigpending_flag(&[0x55, 0x3e, 0x80, 0x0f, 0x04], 0), Some(4));
        // lock or byte [rdi + 1], 1: bit 8
        assert_eq!(sigpending_flag(&[0xf0, 0x80, 0x4f, 0x01, 0x01], 0), Some(0x100));
    }

    #[test]
    fn other_code_gives_nothing() {
        assert_eq!(sigpending_flag(&[0xf0, 0x80, 0x27, 0xfb], 0), None, "lock and");
        assert_eq!(sigpending_flag(&[0xf0, 0x80], 0), None, "cut off");
        assert_eq!(sigpending_flag(&[0xf0, 0x80, 0x4f, 0x20, 0x04], 0), None, "another member");
        assert_eq!(sigpending_flag(&[], 0), None);
    }
}
