//! The vCPUs as the device state has them.

use super::devices::Section;
use super::state::{DeviceState, missing};
use crate::error::Result;
use elision_memory::Gva;

/// `CR0.PE`: protected mode.
pub(crate) const PROTECTED: u64 = 1;
/// Where a segment's cached flags hold its privilege level.
const DPL_SHIFT: u32 = 13;

/// A vCPU's registers, as far as they tell what it was doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vcpu {
    /// QEMU's index of the vCPU.
    pub index: u32,
    /// Waits for an interrupt.
    pub halted: bool,
    /// Instruction pointer.
    pub rip: Gva,
    /// Stack pointer.
    pub rsp: Gva,
    /// RAX.
    pub rax: u64,
    /// RCX: what is left for a repeated instruction to do.
    pub rcx: u64,
    /// RDI: where it does that.
    pub rdi: Gva,
    /// Flags.
    pub rflags: u64,
    /// Code segment selector.
    pub cs: u16,
    /// Current privilege level: 0 in the kernel, 3 in user mode.
    pub cpl: u8,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3: the page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended features.
    pub efer: u64,
    /// Base of FS.
    pub fs_base: Gva,
    /// Base of GS.
    pub gs_base: Gva,
    /// The GS base that `swapgs` exchanges with.
    pub kernel_gs_base: Gva,
    /// Base of the task state segment.
    pub tr_base: Gva,
    /// Base of the interrupt descriptor table.
    pub idt_base: Gva,
}

impl Vcpu {
    /// Whether it was running user code.
    #[must_use]
    pub fn in_user_mode(&self) -> bool {
        self.cr0 & PROTECTED != 0 && self.cpl == 3
    }
}

impl DeviceState {
    /// Every vCPU, by index.
    pub fn vcpus(&self) -> Result<Vec<Vcpu>> {
        let sections = self.devices.sections.iter().filter(|s| s.name == "cpu");
        let mut vcpus = sections.map(|s| self.vcpu(s)).collect::<Result<Vec<_>>>()?;
        vcpus.sort_by_key(|v| v.index);
        Ok(vcpus)
    }

    fn vcpu(&self, section: &Section) -> Result<Vcpu> {
        let get = |path: &str| self.number(section, path);
        let address = |path: &str| get(path).map(Gva);
        let common = self.section("cpu_common", section.instance);
        let common = common.ok_or_else(|| missing(section, "halted (section cpu_common)"))?;
        // QEMU itself takes the privilege level from the stack segment.
        let cpl = (get("env.segs[2]/flags")? >> DPL_SHIFT) & 3;
        Ok(Vcpu {
            index: section.instance,
            halted: self.number(common, "halted")? != 0,
            rip: address("env.eip")?,
            rsp: address("env.regs[4]")?,
            rax: get("env.regs[0]")?,
            rcx: get("env.regs[1]")?,
            rdi: address("env.regs[7]")?,
            rflags: get("env.eflags")?,
            cs: u16::try_from(get("env.segs[1]/selector")? & 0xffff).unwrap_or_default(),
            cpl: u8::try_from(cpl).unwrap_or_default(),
            cr0: get("env.cr[0]")?,
            cr3: get("env.cr[3]")?,
            cr4: get("env.cr[4]")?,
            efer: get("env.efer")?,
            fs_base: address("env.segs[4]/base")?,
            gs_base: address("env.segs[5]/base")?,
            kernel_gs_base: address("env.kernelgsbase")?,
            tr_base: address("env.tr/base")?,
            idt_base: address("env.idt/base")?,
        })
    }

    pub(crate) fn vcpu_section(&self, index: u32) -> Result<&Section> {
        self.section("cpu", index).ok_or_else(|| crate::QemuError::Missing { what: format!("vCPU {index}") })
    }

    pub(crate) fn vcpu_at(&self, index: u32) -> Result<Vcpu> {
        self.vcpu(self.vcpu_section(index)?)
    }
}
