//! The vector and floating-point registers saved for a thread (`struct fpu`, `struct fpstate`).
//!
//! ```text
//! XSAVE area: 512 bytes legacy (FCW at 0, MXCSR at 24) | header: xstate_bv (512), xcomp_bv (520) | rest
//! ```
//! The state moved over the years: inside `fpu` (5.10), behind `fpu.fpstate` (6.1), and the `fpu`
//! itself from the task to right behind it (7.0).

use crate::layout::layout;
use crate::tasks::Thread;
use crate::view::WordEdit;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct FpuLayout {
        in_task: optional("task_struct", &["thread.fpu"]),
        in_thread_state: optional("thread_struct", &["fpu.fpstate", "fpu.state"]),
        fpstate: optional("fpu", &["fpstate"]),
        size: optional("fpstate", &["size"]),
        regs: optional("fpstate", &["regs"]),
        old_state: optional("fpu", &["state"]),
    }
}

const WHAT: &str = "FPU state";
/// Legacy area and header: there is no smaller XSAVE area.
const HEADER_END: u64 = 576;
/// Room for every feature known, AMX tiles included.
const SIZE_LIMIT: u64 = 16 << 10;
const LEGACY_XSTATE: u64 = 512;
const XCOMP_BV: u64 = 520;
const INIT_FCW: [u8; 2] = 0x037f_u16.to_le_bytes();
const INIT_MXCSR: [u8; 4] = 0x1f80_u32.to_le_bytes();

/// Where a thread's registers are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FpuArea {
    /// The XSAVE area.
    pub at: Gva,
    /// Its size.
    pub len: u64,
}

impl FpuArea {
    /// What must be written over the zeroed area to leave freshly initialised registers.
    pub fn initial_words(&self, kernel: &Kernel<'_>) -> Result<Vec<WordEdit>, KernelError> {
        let mut words = vec![
            WordEdit { at: self.at, bytes: INIT_FCW.to_vec() },
            WordEdit { at: self.at.wrapping_add(24), bytes: INIT_MXCSR.to_vec() },
        ];
        if self.len >= HEADER_END {
            let compaction = self.at.wrapping_add(XCOMP_BV);
            words.push(WordEdit::u64(compaction, kernel.u64(compaction, WHAT)?));
        }
        Ok(words)
    }
}

impl Kernel<'_> {
    /// Address of a thread's `struct fpu`, by which CPUs name the owner of their registers.
    pub fn fpu_of(&self, thread: &Thread) -> Gva {
        let layout = &self.profile.fpu;
        // A member that is only a pointer in newer kernels' debug builds does not hold the state.
        match (layout.in_task, layout.in_thread_state) {
            (Some(offset), Some(_)) => thread.task.wrapping_add(offset),
            _ => thread.task.wrapping_add(self.profile.task.size),
        }
    }

    /// The area in which a thread's registers are saved.
    pub fn fpu_area(&self, thread: &Thread) -> Result<FpuArea, KernelError> {
        let layout = &self.profile.fpu;
        let fpu = self.fpu_of(thread);
        let (Some(fpstate), Some(size), Some(regs)) = (layout.fpstate, layout.size, layout.regs) else {
            let Some(state) = layout.old_state else { return Err(KernelError::Incomplete("FPU layout")) };
            // Before fpstate had a size: everything to the end of the task is the state. The type tells
            // more than a task has: the kernel allocates them as large as the processor's state.
            let cache = self.pointer(self.require("task_struct_cachep")?, WHAT)?;
            let size = self.number(cache, self.profile.slab_cache.object_size, WHAT)?;
            let at = fpu.wrapping_add(state);
            let len = thread.task.wrapping_add(size).0.saturating_sub(at.0);
            if size > self.profile.task.size || !(LEGACY_XSTATE..=SIZE_LIMIT).contains(&len) {
                return Err(KernelError::Torn { what: WHAT, at, why: "its size is impossible" });
            }
            return Ok(FpuArea { at, len });
        };
        let state = self.pointer(fpu.wrapping_add(fpstate), WHAT)?;
        let len = u64::from(self.u32(state.wrapping_add(size), WHAT)?);
        if !(LEGACY_XSTATE..=SIZE_LIMIT).contains(&len) {
            return Err(KernelError::Torn { what: WHAT, at: state, why: "its size is impossible" });
        }
        Ok(FpuArea { at: state.wrapping_add(regs), len })
    }
}
