//! Kernel stacks and the user registers saved on them.
//!
//! ```text
//! task.stack   canary | dead: left over from calls that returned | live: thread.sp ... | pt_regs | pad
//! ```
//! The pad behind `pt_regs` differs by kernel (0, 8 or 16 bytes); the saved code segment tells.

use crate::layout::layout;
use crate::tasks::Thread;
use crate::{Kernel, KernelError};
use elision_memory::{Gva, PAGE_SIZE};
use std::ops::Range;

layout! {
    pub(crate) struct StackLayout {
        stack: offset("task_struct", &["stack"]),
        area: optional("task_struct", &["stack_vm_area"]),
        area_pages: number("vm_struct", &["nr_pages"]),
        sp: offset("task_struct", &["thread.sp"]),
        regs_size: size("pt_regs"),
        first: offset("pt_regs", &["r15"]),
        third: offset("pt_regs", &["dx"]),
        sixth: offset("pt_regs", &["r9"]),
        orig_ax: offset("pt_regs", &["orig_ax"]),
        ip: offset("pt_regs", &["ip"]),
        cs: offset("pt_regs", &["cs"]),
        user_sp: offset("pt_regs", &["sp"]),
    }
}

impl StackLayout {
    /// Whether the registers fit into a stack.
    pub(crate) fn is_sane(&self) -> bool {
        self.regs_size <= 1024
    }
}

const WHAT: &str = "kernel stack";
/// `THREAD_SIZE` of an x86-64 kernel without KASAN.
const DEFAULT_SIZE: u64 = 16 << 10;
/// The word at the far end by which the kernel detects overflow.
const CANARY: u64 = 8;
/// User code segments of 64-bit and 32-bit programs.
const USER_CS: [u16; 2] = [0x33, 0x23];

/// A kernel stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Lowest address.
    pub base: Gva,
    /// Bytes.
    pub size: u64,
    /// The stack pointer of a task that is not running.
    pub sp: Gva,
}

impl Stack {
    /// What lies below the stack pointer, without the canary.
    pub fn dead(&self) -> Range<Gva> {
        self.base.wrapping_add(CANARY)..self.sp
    }
}

/// The user registers that a thread had when it entered the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRegisters {
    /// The general registers, instruction and stack pointer: what may be cleared. Segments, flags
    /// and the system call number stay.
    pub clear: [Range<Gva>; 3],
}

impl Kernel<'_> {
    /// The kernel stack of a thread that is not on a CPU; `None` once it was released.
    pub fn stack(&self, thread: &Thread) -> Result<Option<Stack>, KernelError> {
        let Some((base, size)) = self.stack_extent(thread)? else { return Ok(None) };
        let sp = self.pointer(thread.task.wrapping_add(self.profile.stack.sp), WHAT)?;
        let depth = sp.0.checked_sub(base.0).filter(|depth| (CANARY..size).contains(depth));
        if depth.is_none() || sp.0 % 8 != 0 {
            return Err(KernelError::Torn { what: WHAT, at: base, why: "the stack pointer is outside" });
        }
        Ok(Some(Stack { base, size, sp }))
    }

    /// Where the kernel stack of a thread stands, and its size; `None` once it was released.
    pub(crate) fn stack_extent(&self, thread: &Thread) -> Result<Option<(Gva, u64)>, KernelError> {
        let layout = &self.profile.stack;
        let base = self.pointer(thread.task.wrapping_add(layout.stack), WHAT)?;
        if base.0 == 0 {
            return Ok(None);
        }
        let mut size = DEFAULT_SIZE;
        if let Some(area) = layout.area {
            let area = self.pointer(thread.task.wrapping_add(area), WHAT)?;
            if area.0 != 0 {
                size = self.number(area, layout.area_pages, WHAT)?.saturating_mul(PAGE_SIZE as u64);
            }
        }
        if (4096..=64 << 10).contains(&size) && base.checked_add(size).is_some() {
            Ok(Some((base, size)))
        } else {
            Err(KernelError::Torn { what: WHAT, at: base, why: "it has no possible size" })
        }
    }

    /// The user registers saved at the top of a user thread's kernel stack.
    pub fn saved_registers(&self, stack: &Stack) -> Result<SavedRegisters, KernelError> {
        let (layout, regs) = (&self.profile.stack, self.registers_on(stack)?);
        let word = |offset| regs.wrapping_add(offset)..regs.wrapping_add(offset + 8);
        let general = regs.wrapping_add(layout.first)..regs.wrapping_add(layout.orig_ax);
        Ok(SavedRegisters { clear: [general, word(layout.ip), word(layout.user_sp)] })
    }

    /// The number of the system call that a user thread is in, and its third and sixth arguments.
    pub(crate) fn system_call(&self, stack: &Stack) -> Result<[u64; 3], KernelError> {
        let (layout, regs) = (&self.profile.stack, self.registers_on(stack)?);
        let word = |offset| self.u64(regs.wrapping_add(offset), WHAT);
        Ok([word(layout.orig_ax)?, word(layout.third)?, word(layout.sixth)?])
    }

    /// Where the user registers of a thread are saved on its stack.
    pub(crate) fn registers_on(&self, stack: &Stack) -> Result<Gva, KernelError> {
        let layout = &self.profile.stack;
        for pad in [0, 8, 16] {
            let regs = stack.base.wrapping_add(stack.size - pad - layout.regs_size);
            let cs = self.u16(regs.wrapping_add(layout.cs), WHAT)?;
            if USER_CS.contains(&cs) {
                return Ok(regs);
            }
        }
        Err(KernelError::Torn { what: WHAT, at: stack.base, why: "no user registers are saved at its top" })
    }
}
