//! The frames on a sleeping thread's kernel stack, by the kernel's own tables, and the gap above them.
//!
//! ```text
//! thread.sp    struct inactive_task_frame: .., bp, ret_addr      __switch_to_asm() saved them
//!              frames of schedule() .. of the system call
//!  start ┐     gap: up to 1 KiB by chance (RANDOMIZE_KSTACK_OFFSET), reserved and never used
//!        │     locals and saved registers of do_syscall_64()
//!    end ┘     struct pt_regs
//! ```
//! The gap is as wide as chance has it for each call (`include/linux/randomize_kstack.h`). So it can hold any part
//! of what an earlier call of the same thread had on the stack, while the thread sleeps in a later one.

use crate::layout::layout;
use crate::orc::{Base, Kind, Orc};
use crate::stacks::Stack;
use crate::{Kernel, KernelError};
use elision_memory::Gva;
use std::ops::Range;

layout! {
    pub(crate) struct UnwindLayout {
        switch_size: size("inactive_task_frame"),
        switch_bp: offset("inactive_task_frame", &["bp"]),
        switch_ip: offset("inactive_task_frame", &["ret_addr"]),
        bp: offset("pt_regs", &["bp"]),
    }
}

const WHAT: &str = "kernel stack";
/// Deeper than calls are nested on 16 KiB.
const FRAME_LIMIT: usize = 512;
/// Room for what the entry function has on its stack beside the gap: an address to return to, six registers, locals.
const ENTRY_FRAME: u64 = 128;
/// The entry functions of one file, which have the gap.
const ENTRY_CODE: u64 = 2048;

/// A function's part of a stack.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Where in the function it is.
    ip: Gva,
    /// From behind the return address into it, to behind its own return address.
    start: Gva,
    end: Gva,
    /// Whether `rbp` tells the end, as it does where the size is known only at run time.
    by_bp: bool,
}

impl Kernel<'_> {
    /// The part of a sleeping thread's stack that its system call has reserved by chance and does not use.
    /// `None` for one that is in no system call, and on kernels without such a part.
    pub fn unused_gap(&self, stack: &Stack) -> Result<Option<Range<Gva>>, KernelError> {
        if self.symbol("randomize_kstack_offset").is_none() {
            return Ok(None);
        }
        let entry = self.require("do_syscall_64")?;
        let frame = self.outermost_frame(stack, &Orc::open(self, entry)?)?;
        let in_entry = |frame: &Frame| frame.by_bp && frame.ip.0.wrapping_sub(entry.0) < ENTRY_CODE;
        let gap = frame.filter(in_entry).map(|f| f.start..Gva(f.end.0.saturating_sub(ENTRY_FRAME)));
        Ok(gap.filter(|gap| gap.start < gap.end))
    }

    /// The function that was called with the user registers before it. `None` for a thread that has not run yet.
    fn outermost_frame(&self, stack: &Stack, orc: &Orc<'_, '_>) -> Result<Option<Frame>, KernelError> {
        let (layout, regs) = (&self.profile.unwind, &self.profile.stack);
        let registers = self.registers_on(stack)?;
        let word = |at: Gva| self.u64(at, WHAT).map(Gva);
        let torn = |why| KernelError::Torn { what: WHAT, at: stack.base, why };
        let mut sp = stack.sp.wrapping_add(layout.switch_size);
        let mut bp = word(stack.sp.wrapping_add(layout.switch_bp))?;
        let mut ip = word(stack.sp.wrapping_add(layout.switch_ip))?;
        // Behind a call, the code that counts is the call itself.
        let mut called = true;
        for _ in 0..FRAME_LIMIT {
            let rule = orc.rule(if called { Gva(ip.0.wrapping_sub(1)) } else { ip })?;
            let offset = |at: Gva, by: i64| Gva(at.0.wrapping_add_signed(by));
            let end = match rule.sp {
                _ if rule.kind == Kind::End => return Ok(None),
                (Base::Sp, by) => offset(sp, by),
                (Base::Bp, by) => offset(bp, by),
                (Base::BpIndirect, by) => word(offset(bp, by))?,
                (Base::SpIndirect, by) => offset(word(sp)?, by),
                _ => return Err(torn("a frame on it has no end")),
            };
            if end <= sp || end > registers {
                return Err(torn("a frame on it ends outside"));
            }
            let by_bp = matches!(rule.sp.0, Base::Bp);
            if end == registers {
                return Ok((rule.kind == Kind::Call).then_some(Frame { ip, start: sp, end, by_bp }));
            }
            let caller_bp = match rule.bp {
                (Base::PreviousSp, by) => word(offset(end, by))?,
                (Base::Bp, by) => word(offset(bp, by))?,
                _ => bp,
            };
            match rule.kind {
                Kind::End | Kind::Call => {
                    (ip, sp, bp) = (word(Gva(end.0.wrapping_sub(8)))?, end, caller_bp);
                }
                Kind::Registers | Kind::Interrupt => {
                    let whole = rule.kind == Kind::Registers;
                    let saved = if whole { end } else { Gva(end.0.wrapping_sub(regs.ip)) };
                    if self.u16(saved.wrapping_add(regs.cs), WHAT)? & 3 != 0 {
                        return Err(torn("it has user registers in its middle"));
                    }
                    bp = if whole { word(saved.wrapping_add(layout.bp))? } else { caller_bp };
                    sp = word(saved.wrapping_add(regs.user_sp))?;
                    ip = word(saved.wrapping_add(regs.ip))?;
                    if sp <= end {
                        return Err(torn("interrupted code stood outside"));
                    }
                }
            }
            called = rule.kind == Kind::Call;
        }
        Err(torn("its frames do not end"))
    }
}
