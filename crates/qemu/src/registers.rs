//! Registers of the vCPUs as QEMU's monitor prints them (`info registers -a`): what can be had of a VM without a
//! migration, which would send all of its memory where that is not shared.
//!
//! ```text
//! CPU#0
//! RAX=0000000000000000 ... RSP=ffffffff82803e40
//! RIP=... RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
//! GS =0000 ffff88801f000000 000fffff 00000000
//! GDT=     fffffe0000001000 0000007f
//! ```
//! In a 16- or 32-bit code segment the names begin with E and bases have 8 digits. Limit: 8192 vCPUs.

use crate::error::{QemuError, Result};
use crate::vm::Vm;
use elision_memory::Gva;

const MOST: usize = 8192;

/// Some registers of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// QEMU's number for the vCPU.
    pub index: usize,
    /// Whether it is in user mode.
    pub user_mode: bool,
    /// Stack pointer.
    pub rsp: Gva,
    /// `GS.base`; only its low half where a 32-bit program runs.
    pub gs_base: Gva,
    /// Where its global descriptor table is.
    pub gdt: Gva,
}

impl Vm {
    /// The vCPUs' registers, by their number. They mean something while the VM stands still.
    pub fn registers(&mut self) -> Result<Vec<Registers>> {
        let text = self.qmp.human("info registers -a")?;
        parse(&text).ok_or_else(|| QemuError::BadReply {
            command: "info registers -a".into(),
            why: "a vCPU lacks a register".into(),
        })
    }
}

fn parse(text: &str) -> Option<Vec<Registers>> {
    text.split("CPU#").skip(1).take(MOST).map(vcpu).collect()
}

fn vcpu(text: &str) -> Option<Registers> {
    let after = |name: &str| text.split_once(name).map(|(_, rest)| rest.split_whitespace());
    let hex = |word: &str| u64::from_str_radix(word, 16).ok().map(Gva);
    let stack = after(" RSP=").or_else(|| after(" ESP="));
    Some(Registers {
        index: text.split_whitespace().next()?.parse().ok()?,
        user_mode: after(" CPL=")?.next()? == "3",
        rsp: hex(stack?.next()?)?,
        gs_base: hex(after("\nGS =")?.nth(1)?)?,
        gdt: hex(after("\nGDT=")?.next()?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = "CPU#0\r\nRAX=0000000000000000 RBX=ffffffff82815a40 RCX=0 RDX=0\r
RSI=0000000000000000 RDI=0000000000000001 RBP=0000000000000000 RSP=ffffffff82803e40\r
RIP=ffffffff81f6a1bb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r
ES =0000 0000000000000000 000fffff 00000000\r
FS =0000 0000000000000000 000fffff 00000000\r
GS =0000 ffff88801f000000 000fffff 00000000\r
TR =0040 fffffe0000003000 00004087 00008b00 DPL=0 TSS64-busy\r
GDT=     fffffe0000001000 0000007f\r
IDT=     fffffe0000000000 00000fff\r\n";
    const COMPATIBLE: &str = "\r\nCPU#13\r\nEAX=00000000 EBX=00000000 ECX=00000000 EDX=00000000\r
ESI=00000000 EDI=00000000 EBP=ffffd0a8 ESP=ffffd090\r
EIP=f7fc4579 EFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0\r
GS =0063 f7d8c700 ffffffff 00d0f300 DPL=3 DS   [-WA]\r
GDT=     fffffe0000048000 0000007f\r\n";

    #[test]
    fn registers_are_read_in_both_forms() {
        let found = parse(&format!("{KERNEL}{COMPATIBLE}")).unwrap();
        let kernel = Registers {
            index: 0,
            user_mode: false,
            rsp: Gva(0xffff_ffff_8280_3e40),
            gs_base: Gva(0xffff_8880_1f00_0000),
            gdt: Gva(0xffff_fe00_0000_1000),
        };
        let compatible = Registers {
            index: 13,
            user_mode: true,
            rsp: Gva(0xffff_d090),
            gs_base: Gva(0xf7d8_c700),
            gdt: Gva(0xffff_fe00_0004_8000),
        };
        assert_eq!(found, [kernel, compatible]);
    }

    #[test]
    fn a_register_that_is_missing_is_no_zero() {
        for name in [" RSP=", " CPL=", "\nGS =", "\nGDT="] {
            assert_eq!(parse(&KERNEL.replace(name, "\n?=")), None, "{name}");
        }
        assert_eq!(parse(""), Some(vec![]));
    }
}
