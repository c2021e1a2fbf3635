//! One VM to look at: attached by its QMP socket, its RAM opened, paused for moments with a guardian.

use crate::failure::Failure;
use elision_kernel::{Kernel, KernelError, ProfileCache};
use elision_memory::{Gpa, Gva, Ram};
use elision_plan::{Options, Plan, Selection, VcpuState, plan};
use elision_policy::{Dependents, KernelLog, Policy};
use elision_qemu::{DeviceState, Guardian, QemuError, Registers, Vm};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// The address bits of CR3.
const CR3_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// With page table isolation a user's top table is the page behind the kernel's.
const CR3_USER: u64 = 1 << 12;

/// How often a plan for a running VM is tried that is not needed.
const REHEARSALS: u32 = 5;

/// A running VM and its memory. Two fields, so that a kernel view may borrow the memory alone.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) vm: Vm,
    pub(crate) ram: Ram,
}

impl Session {
    /// Connects to the VM and opens its RAM.
    pub(crate) fn attach(socket: &Path) -> Result<Self, Failure> {
        let vm = Vm::attach(socket)?;
        let ram = vm.open_ram()?;
        Ok(Self { vm, ram })
    }
}

/// Finds the kernel of a running VM. Some scheduling of the guest may pass before its tables settle.
pub(crate) fn open_kernel<'a>(vm: &mut Vm, ram: &'a Ram) -> Result<Kernel<'a>, Failure> {
    let roots = roots_of(&vm.qmp().human("info registers -a")?);
    let kernel = retry(|| {
        ram.refresh();
        Kernel::open(ram, &roots, &ProfileCache::of_user())
    });
    let kernel = sound(ram, kernel)?;
    ram.release(); // what led to the kernel is not looked at again
    Ok(kernel)
}

/// What was concluded from memory, unless a part of it could not be read.
pub(crate) fn sound<T, E: Into<Failure>>(ram: &Ram, answer: Result<T, E>) -> Result<T, Failure> {
    ram.check()?;
    answer.map_err(E::into)
}

/// How to plan for a policy.
pub(crate) fn options(policy: &Policy, best_effort: bool) -> Options {
    Options {
        best_effort,
        clear_log: policy.save.kernel_log() == KernelLog::Clear,
        refuse_dependents: policy.save.dependents() == Dependents::Refuse,
    }
}

/// Tries again while the guest changes under our eyes; the last error if it never holds still.
pub(crate) fn retry<T>(mut attempt: impl FnMut() -> Result<T, KernelError>) -> Result<T, KernelError> {
    const TRIES: u32 = 5;
    for i in 1..TRIES {
        match attempt() {
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "the guest changed while it was read");
                std::thread::sleep(Duration::from_millis(1 << i));
            }
            answer => return answer,
        }
    }
    attempt()
}

/// Does some work while the VM stands still, and gives the result with the length of the pause.
///
/// A VM that stands still already is left so. Whatever happens to this process, the VM runs on.
pub(crate) fn while_paused<T>(
    vm: &mut Vm,
    work: impl FnOnce(&mut Vm) -> Result<T, Failure>,
) -> Result<(T, Duration), Failure> {
    if !vm.status()?.running {
        return Ok((work(vm)?, Duration::ZERO));
    }
    let duty = vm.duty(None)?;
    let program = std::env::current_exe().map_err(|e| Failure::io("find", Path::new("elision"), &e))?;
    let guardian = Guardian::spawn(&program, &["guard"], &duty)?;
    let begin = Instant::now();
    let result = vm.stop().map_err(Failure::from).and_then(|()| work(vm));
    let resumed = resume(vm);
    let pause = begin.elapsed();
    match resumed {
        Ok(()) => guardian.dismiss()?,
        // A new connection may do what this one could not.
        Err(error) => {
            guardian.act()?;
            return Err(error.into());
        }
    }
    Ok((result?, pause))
}

/// Lets the VM run on, if it does not run.
pub(crate) fn resume(vm: &mut Vm) -> Result<(), QemuError> {
    if vm.status()?.running { Ok(()) } else { vm.cont() }
}

/// What a plan needs to know of the vCPUs.
pub(crate) fn vcpu_states(state: &DeviceState) -> Result<Vec<VcpuState>, Failure> {
    let vcpus = state.vcpus()?.into_iter().map(|vcpu| {
        Ok(VcpuState {
            index: usize::try_from(vcpu.index).map_err(io::Error::other)?,
            user_mode: vcpu.in_user_mode(),
            gs_base: vcpu.gs_base,
            kernel_gs_base: vcpu.kernel_gs_base,
            rip: vcpu.rip,
            rsp: vcpu.rsp,
            rax: vcpu.rax,
            rcx: vcpu.rcx,
            rdi: vcpu.rdi,
        })
    });
    let vcpus: io::Result<Vec<_>> = vcpus.collect();
    vcpus.map_err(|e| Failure::io("number", Path::new("the vCPUs"), &e))
}

/// The same of a stopped VM's registers, without its device state.
pub(crate) fn vcpu_states_of(kernel: &Kernel<'_>, vcpus: &[Registers]) -> Result<Vec<VcpuState>, Failure> {
    let states = vcpus.iter().map(|vcpu| {
        // One outside of long mode was never started. Of any other, an unknown table is like a GS base that
        // no CPU has: the VM was stopped at a bad moment.
        let per_cpu = match kernel.per_cpu_by_gdt(vcpu.gdt)? {
            _ if !vcpu.long_mode => Gva(0),
            found => found.unwrap_or(Gva(u64::MAX)),
        };
        Ok(VcpuState {
            index: usize::try_from(vcpu.index).unwrap_or(usize::MAX),
            user_mode: vcpu.user_mode,
            gs_base: vcpu.gs_base,
            kernel_gs_base: per_cpu,
            rip: vcpu.rip,
            rsp: vcpu.rsp,
            rax: vcpu.rax,
            rcx: vcpu.rcx,
            rdi: vcpu.rdi,
        })
    });
    states.collect()
}

/// Plans for a running VM, so that what it reads is mapped before the VM is stopped, or has its room where memory is
/// copied as it is read: taking that would be most of the time that reading takes. The plan is a guess of the one to come.
pub(crate) fn rehearse(vm: &mut Vm, kernel: &Kernel<'_>, policy: &Policy) -> Option<Plan> {
    let mut once = || {
        kernel.ram().refresh();
        let vcpus = vcpu_states_of(kernel, &vm.registers()?)?;
        let selection = Selection::of(kernel, policy)?;
        plan(kernel, &selection, &vcpus, options(policy, true)).map_err(Failure::from)
    };
    // A moment in which nothing can be planned shows that early.
    let outcome = (0..REHEARSALS).find_map(|_| once().ok());
    tracing::debug!(done = outcome.is_some(), "rehearsed");
    outcome.map(|outcome| outcome.plan)
}

/// The page tables that saved vCPUs used.
pub(crate) fn roots_of_state(state: &DeviceState) -> Vec<Gpa> {
    let vcpus = state.vcpus().unwrap_or_default();
    vcpus.into_iter().flat_map(|vcpu| tables(vcpu.cr3)).collect()
}

/// The page tables in use, from the registers as QEMU's monitor prints them: `CR3=000000000244a000`.
fn roots_of(registers: &str) -> Vec<Gpa> {
    const MOST: usize = 1024;
    let values = registers.split_whitespace().filter_map(|word| word.strip_prefix("CR3="));
    values.filter_map(|hex| u64::from_str_radix(hex, 16).ok()).flat_map(tables).take(MOST).collect()
}

/// The kernel's table first, then the one that was loaded.
fn tables(cr3: u64) -> Vec<Gpa> {
    let address = cr3 & CR3_ADDRESS;
    let kernel = Gpa(address & !CR3_USER);
    match address {
        0 => vec![],
        _ if address & CR3_USER == 0 => vec![kernel],
        _ => vec![kernel, Gpa(address)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_found_in_the_registers() {
        let text =
            "CPU#0\nCR0=80050033 CR2=0000 CR3=000000000244a005 CR4=00350ef0\nCPU#1\nCR3=0000000000003001 x";
        assert_eq!(roots_of(text), [Gpa(0x0244_a000), Gpa(0x2000), Gpa(0x3000)]);
        assert_eq!(roots_of("CR3=0 CR3=zz"), []);
    }

    #[test]
    fn only_errors_of_a_moving_guest_are_tried_again() {
        let torn = || KernelError::Torn { what: "task list", at: Gva(0), why: "it is a loop" };
        let mut tries = 0;
        let answer = retry(|| {
            tries += 1;
            if tries < 3 { Err(torn()) } else { Ok(tries) }
        });
        assert_eq!(answer.unwrap(), 3);
        let mut tries = 0;
        let missing: Result<(), _> = retry(|| {
            tries += 1;
            Err(KernelError::NoSymbol("init_task"))
        });
        assert!(missing.is_err() && tries == 1);
    }
}
