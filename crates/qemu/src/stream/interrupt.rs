//! Makes a vCPU take an interrupt before it runs one more instruction.
//!
//! ```text
//! apic.irr[8]                       u32 each; vector v waits if bit v % 32 of irr[v / 32] is set
//! apic.tmr[8]                       the same bits; set for level-triggered vectors
//! cpu_common.interrupt_request      bit 1: the vCPU must look at its interrupt controller
//! ```
//! With KVM the local APIC's registers are enough; QEMU's own vCPUs look at them only when the request bit
//! is set. An interrupt is taken if the vCPU accepts interrupts, its APIC is enabled and nothing of the
//! same or a higher priority class is being served; otherwise this is an error.

use super::devices::Section;
use super::state::{DeviceState, find};
use crate::error::{QemuError, Result};

const INTERRUPTS_ON: u64 = 1 << 9;
const APIC_BASE_ENABLED: u64 = 1 << 11;
const SPURIOUS_ENABLED: u64 = 1 << 8;
const REQUEST_HARD: u64 = 1 << 1;
/// Set in QEMU's own flags for one instruction after `sti` and `mov ss`.
const HFLAGS_INHIBIT: u64 = 1 << 3;
/// Vectors below are exceptions.
const FIRST_VECTOR: u8 = 32;
const REGISTERS: u32 = 8;

impl DeviceState {
    /// Makes `vector` pending, edge-triggered. Returns whether the vCPU takes it before its next instruction.
    pub fn raise_interrupt(&mut self, vcpu: u32, vector: u8) -> Result<bool> {
        let refuse = |why: &str| QemuError::Vcpu { cpu: vcpu, why: why.into() };
        if vector < FIRST_VECTOR {
            return Err(refuse("vectors below 32 are no interrupts"));
        }
        let apic = self.apic_of(vcpu)?.clone();
        let enabled = self.number(&apic, "apicbase")? & APIC_BASE_ENABLED != 0
            && self.number(&apic, "spurious_vec")? & SPURIOUS_ENABLED != 0;
        if !enabled {
            return Err(refuse("its local APIC is disabled"));
        }
        let state = self.vcpu_at(vcpu)?;
        let (word, bit) = (vector / 32, 1_u64 << (vector % 32));
        self.change(&apic, &format!("irr[{word}]"), |v| v | bit)?;
        self.change(&apic, &format!("tmr[{word}]"), |v| v & !bit)?;
        let common = self.section("cpu_common", vcpu).cloned();
        let common = common.ok_or_else(|| refuse("section cpu_common is missing"))?;
        self.change(&common, "interrupt_request", |v| v | REQUEST_HARD)?;
        let cpu = self.vcpu_section(vcpu)?.clone();
        if state.in_user_mode() {
            self.change(&cpu, "env.hflags", |v| v & !HFLAGS_INHIBIT)?;
        }
        // The kernel's `sti; hlt` relies on the interrupt not coming in between: left as it is there.
        let inhibited = self.number(&cpu, "env.hflags")? & HFLAGS_INHIBIT != 0;
        Ok(state.rflags & INTERRUPTS_ON != 0
            && !inhibited
            && u64::from(vector >> 4) > self.priority_class(&apic)?)
    }

    /// The local APIC of a vCPU. Its instance is the APIC id, which is not always the vCPU's index, but both
    /// come into being together and so stand in the same order.
    fn apic_of(&self, vcpu: u32) -> Result<&Section> {
        let named = |name: &'static str| self.devices.sections.iter().filter(move |s| s.name == name);
        let nth = named("cpu").position(|s| s.instance == vcpu);
        let apic = nth.and_then(|n| named("apic").nth(n));
        apic.filter(|_| named("cpu").count() == named("apic").count())
            .ok_or_else(|| QemuError::Missing { what: format!("local APIC of vCPU {vcpu}") })
    }

    /// The priority class below or at which interrupts wait.
    fn priority_class(&self, apic: &Section) -> Result<u64> {
        let mut class = self.number(apic, "tpr")? >> 4;
        for word in 0..REGISTERS {
            let in_service = self.number(apic, &format!("isr[{word}]"))?;
            if in_service != 0 {
                class = class.max(u64::from(word * 32 + in_service.ilog2()) >> 4);
            }
        }
        Ok(class)
    }

    fn change(&mut self, section: &Section, path: &str, with: impl FnOnce(u64) -> u64) -> Result<()> {
        let value = self.number(section, path)?;
        self.set(find(section, path)?, with(value));
        Ok(())
    }
}
