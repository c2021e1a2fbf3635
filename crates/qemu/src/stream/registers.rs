//! Takes data of a process out of a vCPU's registers.
//!
//! Vector and x87 registers are loaded lazily: they may hold one process's data while another one, or the
//! kernel, runs. They are found by name wherever the description lists them, in the main part of the
//! vCPU's section and in its subsections.

use super::devices::Field;
use super::state::DeviceState;
use crate::error::{QemuError, Result};

/// Register arrays, and whole subsections, that hold x87, MMX, SSE, AVX, AVX-512, AMX or MPX state.
const VECTOR_PARTS: [&str; 14] = [
    "env.fpregs",
    "env.xmm_regs",
    "env.opmask_regs",
    "env.xtilecfg",
    "env.xtiledata",
    "env.bnd_regs",
    "env.bndcs_regs",
    "env.fpop",
    "env.fpip",
    "env.fpdp",
    "fpop_ip_dp",
    "avx512",
    "intel_amx",
    "intel_amx_xtile",
];
/// Addresses of branches taken, kept for profilers.
const BRANCH_RECORDS: &str = "env.lbr_records";

const FCW_DEFAULT: u64 = 0x37f;
const MXCSR_DEFAULT: u64 = 0x1f80;
/// State components of `XSTATE_BV` whose registers are cleared: x87, SSE, AVX, MPX, AVX-512, AMX.
const VECTOR_COMPONENTS: u64 = 0xff | 1 << 17 | 1 << 18;
/// Interrupts on, and the bit that is always one.
const RFLAGS_USER: u64 = 0x202;
/// QEMU's copies of flags (TF, IOPL, RF, VM, AC), and the pause of interrupts after `sti` and `mov ss`.
const HFLAGS_OF_RFLAGS: u64 = 1 << 8 | 3 << 12 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 3;

/// What a clearing changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Bytes looked at.
    pub bytes: usize,
    /// Bytes among them that were not zero.
    pub nonzero: usize,
}

impl Cleared {
    pub(crate) fn add(&mut self, bytes: usize, nonzero: usize) {
        self.bytes += bytes;
        self.nonzero += nonzero;
    }
}

impl DeviceState {
    /// Puts a vCPU's x87 and vector registers into their state after reset.
    pub fn clear_vector_state(&mut self, vcpu: u32) -> Result<Cleared> {
        let fields = self.vcpu_section(vcpu)?.fields.clone();
        let cleared = self.clear_parts(&fields, &VECTOR_PARTS);
        if !fields.iter().any(|f| f.is_part("env.fpregs"))
            || !fields.iter().any(|f| f.is_part("env.xmm_regs"))
        {
            return Err(QemuError::Missing { what: format!("vector registers of vCPU {vcpu}") });
        }
        for field in &fields {
            match field.path.as_str() {
                "env.fpuc" => self.set(field, FCW_DEFAULT),
                // A zero tag word means that all eight registers are empty.
                "env.fpus_vmstate" | "env.fptag_vmstate" => self.set(field, 0),
                "env.mxcsr" => self.set(field, MXCSR_DEFAULT),
                "env.xstate_bv" => {
                    let kept = self.value(field).unwrap_or_default() & !VECTOR_COMPONENTS;
                    self.set(field, kept);
                }
                _ => {}
            }
        }
        Ok(cleared)
    }

    /// Clears the general registers of a vCPU in user mode: all sixteen, the instruction pointer, the last
    /// fault's address and branch records. Segments and control registers stay.
    pub fn clear_general_registers(&mut self, vcpu: u32) -> Result<Cleared> {
        if !self.vcpu_at(vcpu)?.in_user_mode() {
            let why = "it runs kernel code, which needs its registers".into();
            return Err(QemuError::Vcpu { cpu: vcpu, why });
        }
        let fields = self.vcpu_section(vcpu)?.fields.clone();
        let cleared = self.clear_parts(&fields, &["env.regs", "env.eip", BRANCH_RECORDS]);
        for field in &fields {
            match field.path.as_str() {
                "env.cr[2]" => self.set(field, 0),
                "env.eflags" => self.set(field, RFLAGS_USER),
                "env.hflags" => {
                    let kept = self.value(field).unwrap_or_default() & !HFLAGS_OF_RFLAGS;
                    self.set(field, kept);
                }
                _ => {}
            }
        }
        Ok(cleared)
    }

    fn clear_parts(&mut self, fields: &[Field], parts: &[&str]) -> Cleared {
        let mut cleared = Cleared::default();
        for field in fields.iter().filter(|f| parts.iter().any(|p| f.is_part(p))) {
            let nonzero = self.zero(field);
            cleared.add(field.range.len(), nonzero);
        }
        cleared
    }
}
