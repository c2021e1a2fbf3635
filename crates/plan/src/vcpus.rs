//! What must happen to each vCPU: it may hold an excluded thread's registers, or run it.

use crate::PlanError;
use elision_kernel::{Cpu, FpuOwner, Kernel};
use elision_memory::Gva;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The part of a vCPU's state that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuState {
    /// The VMM's number for it.
    pub index: usize,
    /// Whether it is in user mode.
    pub user_mode: bool,
    /// `GS.base`.
    pub gs_base: Gva,
    /// The GS base that `swapgs` would bring.
    pub kernel_gs_base: Gva,
    /// The instruction pointer.
    pub rip: Gva,
    /// The stack pointer.
    pub rsp: Gva,
    /// RAX.
    pub rax: u64,
    /// RCX.
    pub rcx: u64,
    /// RDI.
    pub rdi: Gva,
}

/// What to do with a vCPU's state in the copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuAction {
    /// The VMM's number for it.
    pub index: usize,
    /// Clear the vector and floating-point registers.
    pub clear_vector: bool,
    /// Clear the general registers: an excluded thread is in user mode there.
    pub clear_general: bool,
    /// Raise this interrupt, so that the kernel runs before any user instruction.
    pub interrupt: Option<u8>,
}

/// What claims to store more at once is not believed.
const LONGEST_STORE: u64 = 8 << 20;

/// What a CPU runs, and where on which stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StackUse {
    /// Linux's number for the CPU.
    pub(crate) cpu: usize,
    /// The task on it.
    pub(crate) task: Gva,
    /// Its stack pointer in the kernel; `None` in user mode.
    pub(crate) sp: Option<Gva>,
}

/// Which vCPU runs what, and whose registers each holds.
pub(crate) struct Vcpus {
    states: Vec<(VcpuState, Cpu)>,
}

impl Vcpus {
    pub(crate) fn survey(kernel: &Kernel<'_>, states: &[VcpuState]) -> Result<Self, PlanError> {
        let mut found = Vec::new();
        for state in states {
            if state.gs_base.0 == 0 && state.kernel_gs_base.0 == 0 {
                continue; // the guest has never started it
            }
            let base = if state.user_mode { state.kernel_gs_base } else { state.gs_base };
            // Between user mode and `swapgs` the registers are still, or already, those of the task in user mode: nothing
            // of a task that stays is touched there, and an excluded one is busy as anywhere in the kernel.
            let number = kernel.cpu_by_gs(base).or_else(|| kernel.cpu_by_gs(state.kernel_gs_base));
            let Some(number) = number else {
                return Err(PlanError::VcpuBusy {
                    index: state.index,
                    what: "it is entering or leaving the kernel",
                });
            };
            found.push((*state, kernel.cpu(number)?));
        }
        Ok(Self { states: found })
    }

    /// Tasks that are on a vCPU, and whether in user mode there.
    pub(crate) fn running(&self) -> BTreeMap<Gva, bool> {
        self.states.iter().map(|(state, cpu)| (cpu.current, state.user_mode)).collect()
    }

    /// Where each started CPU stands.
    pub(crate) fn stacks(&self) -> Vec<StackUse> {
        let uses = self.states.iter().map(|(state, cpu)| StackUse {
            cpu: cpu.number,
            task: cpu.current,
            sp: (!state.user_mode).then_some(state.rsp),
        });
        uses.collect()
    }

    /// Memory that the kernel is about to overwrite with zeros, as far as the next instruction of a vCPU does it: mostly a
    /// page that is being cleared for its next owner.
    pub(crate) fn zeroing<'a>(&'a self, kernel: &'a Kernel<'_>) -> impl Iterator<Item = Range<Gva>> + 'a {
        let in_kernel = self.states.iter().map(|(state, _)| state).filter(|state| !state.user_mode);
        in_kernel.filter_map(|state| {
            let width = kernel.store_width(state.rip)?;
            let len = state.rcx.checked_mul(width).filter(|len| *len <= LONGEST_STORE)?;
            let is_zero = state.rax & (u64::MAX >> (64 - 8 * width)) == 0;
            is_zero.then(|| state.rdi..state.rdi.wrapping_add(len))
        })
    }

    /// What to do, given the excluded tasks, their saved FPU states, and those of threads that stay.
    pub(crate) fn actions(
        &self,
        excluded_tasks: &BTreeSet<Gva>,
        kept_fpus: &BTreeSet<Gva>,
        interrupt: Option<u8>,
    ) -> Result<Vec<VcpuAction>, PlanError> {
        self.states
            .iter()
            .map(|(state, cpu)| {
                let runs_excluded = state.user_mode && excluded_tasks.contains(&cpu.current);
                let clear_vector = match cpu.fpu_owner {
                    FpuOwner::Nobody => true,
                    FpuOwner::Fpu(fpu) => !kept_fpus.contains(&fpu),
                    FpuOwner::Kernel => {
                        let what = "the kernel computes with its vector registers";
                        return Err(PlanError::VcpuBusy { index: state.index, what });
                    }
                };
                Ok(VcpuAction {
                    index: state.index,
                    clear_vector,
                    clear_general: runs_excluded,
                    interrupt: interrupt.filter(|_| runs_excluded || cpu.number == 0),
                })
            })
            .collect()
    }
}
