//! What each CPU of the guest does: its current task and whose vector registers it holds.
//!
//! The kernel leaves a task's vector registers in the CPU after switching away and remembers
//! whose they are (`fpu_fpregs_owner_ctx`); it may go back to that task without loading them
//! again. They can be cleared only if their owner is gone or excluded.

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct CpuLayout {
        hot_current: optional("pcpu_hot", &["current_task"]),
    }
}

/// More CPUs than any x86-64 kernel supports.
const CPU_LIMIT: u64 = 8192;
const WHAT: &str = "per-CPU data";

/// Whose vector registers a CPU holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FpuOwner {
    /// Nobody's: its last user is gone, or the registers were given up.
    Nobody,
    /// The thread whose FPU state is kept at this address.
    Fpu(Gva),
    /// The kernel is computing with them right now.
    Kernel,
}

/// One CPU of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Linux's number for it.
    pub number: usize,
    /// The task on it: maybe the idle task.
    pub current: Gva,
    /// Whose vector registers it holds.
    pub fpu_owner: FpuOwner,
}

impl Kernel<'_> {
    pub(crate) fn per_cpu_offsets(&self) -> Result<Vec<u64>, KernelError> {
        let array = self.require("__per_cpu_offset")?;
        let count = u64::from(self.u32(self.require("nr_cpu_ids")?, WHAT)?);
        if count == 0 || count > CPU_LIMIT {
            return Err(KernelError::Torn { what: WHAT, at: array, why: "the number of CPUs is impossible" });
        }
        (0..count).map(|i| self.u64(array.wrapping_add(8 * i), WHAT)).collect()
    }

    /// The CPU whose per-CPU area begins at `gs_base`: the kernel's GS base of a vCPU.
    pub fn cpu_by_gs(&self, gs_base: Gva) -> Option<usize> {
        self.per_cpu.iter().position(|&offset| offset == gs_base.0)
    }

    /// Where the per-CPU area of the CPU begins that has its global descriptor table at `gdt_base`.
    ///
    /// A processor uses the table through a read-only mapping of its own; the frame behind it tells whose it is.
    pub fn per_cpu_by_gdt(&self, gdt_base: Gva) -> Result<Option<Gva>, KernelError> {
        let own = self.require("gdt_page")?;
        let Some((frame, _)) = self.locate(gdt_base) else { return Ok(None) };
        let is_own = |offset: u64| self.locate(own.wrapping_add(offset)).is_some_and(|(at, _)| at == frame);
        Ok(self.per_cpu.iter().find(|&&offset| is_own(offset)).map(|&offset| Gva(offset)))
    }

    /// Number of CPUs that the kernel has areas for.
    #[must_use]
    pub fn cpu_count(&self) -> usize {
        self.per_cpu.len()
    }

    /// What a CPU does.
    pub fn cpu(&self, number: usize) -> Result<Cpu, KernelError> {
        let offset = *self.per_cpu.get(number).ok_or(KernelError::Incomplete("per-CPU areas"))?;
        let variable = |symbol: Gva| symbol.wrapping_add(offset);
        let current =
            match (self.symbol("current_task"), self.symbol("pcpu_hot"), self.profile.cpu.hot_current) {
                (Some(symbol), _, _) => variable(symbol),
                (None, Some(symbol), Some(member)) => variable(symbol).wrapping_add(member),
                _ => return Err(KernelError::NoSymbol("current_task")),
            };
        Ok(Cpu { number, current: self.pointer(current, WHAT)?, fpu_owner: self.fpu_owner(offset)? })
    }

    /// How many bytes a repeated instruction at `rip` stores at a time, if one stands there. The kernel clears memory by
    /// one (`arch/x86/lib/clear_page_64.S`), and a CPU that is stopped in it has its registers after the last store.
    #[must_use]
    pub fn store_width(&self, rip: Gva) -> Option<u64> {
        let mut code = [0; 3];
        self.read(rip, &mut code, "code of a vCPU").ok()?;
        match code {
            [0xf3, 0xaa, _] => Some(1),
            [0xf3, 0xab, _] => Some(4),
            [0xf3, 0x48, 0xab] => Some(8),
            _ => None,
        }
    }

    fn fpu_owner(&self, offset: u64) -> Result<FpuOwner, KernelError> {
        let flag = |name| self.symbol(name).map(|at| self.u8(at.wrapping_add(offset), WHAT)).transpose();
        if flag("in_kernel_fpu")?.is_some_and(|used| used != 0)
            || flag("kernel_fpu_allowed")?.is_some_and(|allowed| allowed == 0)
        {
            return Ok(FpuOwner::Kernel);
        }
        let owner = self.pointer(self.require("fpu_fpregs_owner_ctx")?.wrapping_add(offset), WHAT)?;
        Ok(if owner.0 == 0 { FpuOwner::Nobody } else { FpuOwner::Fpu(owner) })
    }
}
