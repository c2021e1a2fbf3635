//! Registers of the vCPUs as QEMU's monitor prints them: at once, without a migration, which would send all of
//! the memory where that is not shared, and has the vCPUs at its end.
//!
//! ```text
//! CPU#1
//! RIP=ffffffff81a0 RFL=... CPL=3 ...  RSP=...        64-bit code; otherwise EIP, ESP and 32 bits of bases
//! GS =0000 ffff88803ec00000 ffffffff 00000000        selector, base, limit, flags
//! GDT=     fffffe000004a000 0000007f                 base, limit: of all bits in long mode
//! CR0=80050033 ...     EFER=0000000000000d01
//! ```
//! The GS base that `swapgs` would bring is not printed.

use crate::Vm;
use crate::error::{QemuError, Result};
use crate::qmp::Qmp;
use crate::stream::{DeviceState, PROTECTED, Vcpu};
use elision_memory::Gva;
use std::collections::BTreeMap;

const COMMAND: &str = "info registers -a";
/// More than QEMU runs.
const MAX_VCPUS: usize = 4096;
/// `EFER.LMA`: long mode.
const LONG_MODE: u64 = 1 << 10;

/// A vCPU's registers, as far as the monitor prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// QEMU's index of the vCPU.
    pub index: u32,
    /// Whether it runs user code.
    pub user_mode: bool,
    /// Whether it is in long mode: otherwise no 64-bit kernel has started it.
    pub long_mode: bool,
    /// Whether it runs 32-bit code, of which the monitor prints 32 bits of each register but `gdt`.
    pub narrow: bool,
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
    /// Base of GS.
    pub gs_base: Gva,
    /// Base of the global descriptor table.
    pub gdt: Gva,
}

impl Registers {
    /// Whether this is the same moment of the same vCPU.
    #[must_use]
    pub fn is_moment_of(&self, vcpu: &Vcpu) -> bool {
        let seen = |full: Gva| if self.narrow { Gva(full.0 & u64::from(u32::MAX)) } else { full };
        self.index == vcpu.index
            && self.user_mode == vcpu.in_user_mode()
            && self.rip == seen(vcpu.rip)
            && self.rsp == seen(vcpu.rsp)
            && self.gs_base == seen(vcpu.gs_base)
    }
}

impl Vm {
    /// Every vCPU, by index. The VM should be stopped.
    pub fn registers(&mut self) -> Result<Vec<Registers>> {
        read(&mut self.qmp)
    }
}

/// The same of the VM behind a QMP connection.
pub(crate) fn read(qmp: &mut Qmp) -> Result<Vec<Registers>> {
    parse(&qmp.human(COMMAND)?)
}

/// Refuses a state that is not of the moment in which `seen` was seen.
pub fn check_moment(seen: &[Registers], state: &DeviceState) -> Result<()> {
    let vcpus = state.vcpus()?;
    let mut pairs = seen.iter().zip(&vcpus);
    match pairs.find(|(seen, vcpu)| !seen.is_moment_of(vcpu)) {
        Some((seen, _)) => Err(QemuError::Moved { sign: format!("vCPU {} is elsewhere", seen.index) }),
        None if seen.len() != vcpus.len() => Err(bad(format!("it lists {} vCPUs", seen.len()))),
        None => Ok(()),
    }
}

fn parse(text: &str) -> Result<Vec<Registers>> {
    let mut vcpus = Vec::new();
    for part in text.split("CPU#").skip(1) {
        let (index, rest) = part.split_once('\n').ok_or_else(|| bad("it ends early"))?;
        let index = index.trim().parse().map_err(|_| bad(format!("a vCPU is called {index:?}")))?;
        vcpus.push(vcpu(index, &Words::of(rest))?);
    }
    if vcpus.is_empty() || vcpus.len() > MAX_VCPUS {
        return Err(bad(format!("it lists {} vCPUs", vcpus.len())));
    }
    vcpus.sort_by_key(|v| v.index);
    if vcpus.windows(2).any(|pair| matches!(pair, [a, b] if a.index == b.index)) {
        return Err(bad("it lists a vCPU twice"));
    }
    Ok(vcpus)
}

fn vcpu(index: u32, words: &Words<'_>) -> Result<Registers> {
    let narrow = !words.0.contains_key("RIP");
    let either = |wide, short| words.number(if narrow { short } else { wide });
    let cpl = words.number("CPL")?;
    Ok(Registers {
        index,
        user_mode: words.number("CR0")? & PROTECTED != 0 && cpl == 3,
        long_mode: words.number("EFER")? & LONG_MODE != 0,
        narrow,
        rip: either("RIP", "EIP").map(Gva)?,
        rsp: either("RSP", "ESP").map(Gva)?,
        rax: either("RAX", "EAX")?,
        rcx: either("RCX", "ECX")?,
        rdi: either("RDI", "EDI").map(Gva)?,
        gs_base: words.number("GS").map(Gva)?,
        gdt: words.number("GDT").map(Gva)?,
    })
}

/// What stands behind each name. Behind that of a segment it is the base.
struct Words<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Self {
        let mut words = BTreeMap::new();
        for line in text.lines() {
            match line.split_once('=') {
                Some((name @ "GDT", rest)) => {
                    words.insert(name, rest.split_whitespace().next().unwrap_or_default());
                }
                Some(("GS ", rest)) => {
                    words.insert("GS", rest.split_whitespace().nth(1).unwrap_or_default());
                }
                _ => words.extend(line.split_whitespace().filter_map(|word| word.split_once('='))),
            }
        }
        Self(words)
    }

    fn number(&self, name: &str) -> Result<u64> {
        let word = self.0.get(name).ok_or_else(|| bad(format!("{name} is missing")))?;
        u64::from_str_radix(word, 16).map_err(|_| bad(format!("{name} is {word:?}")))
    }
}

fn bad(why: impl Into<String>) -> QemuError {
    QemuError::BadReply { command: COMMAND.into(), why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: &str = "RAX=0000000000000001 RBX=2 RCX=3 RDX=4\n\
        RSI=0 RDI=00007f0000000008 RBP=00007ffd00000000 RSP=00007ffd12345678\n\
        RIP=0000000000401000 RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0\n\
        FS =0000 00007f0000000000 ffffffff 00000000\nGS =002b 00007f1122334455 ffffffff 00000000\n\
        TR =0040 fffffe0000003000 00004087 00008b00 DPL=0 TSS64-busy\nGDT=     fffffe0000001000 0000007f\n\
        CR0=80050033 CR2=0 CR3=0 CR4=0\nEFER=0000000000000d01\n";
    const NARROW: &str = "EAX=00000000 EBX=0 ECX=00000020\nESI=0 EDI=00000000 ESP=00006d00\n\
        EIP=0000fff0 EFL=00000002 [-------] CPL=0 HLT=1\n\
        GS =0000 00000000 0000ffff 00009300\nGDT=     00000000 0000ffff\nCR0=60000010\nEFER=0000000000000000\n";

    fn two() -> String {
        format!("\nCPU#1\n{NARROW}\nCPU#0\n{WIDE}")
    }

    #[test]
    fn vcpus_are_read() {
        let vcpus = parse(&two()).unwrap();
        let user = Registers {
            index: 0,
            user_mode: true,
            long_mode: true,
            narrow: false,
            rip: Gva(0x40_1000),
            rsp: Gva(0x7ffd_1234_5678),
            rax: 1,
            rcx: 3,
            rdi: Gva(0x7f00_0000_0008),
            gs_base: Gva(0x7f11_2233_4455),
            gdt: Gva(0xffff_fe00_0000_1000),
        };
        let reset = Registers {
            index: 1,
            user_mode: false,
            long_mode: false,
            narrow: true,
            rip: Gva(0xfff0),
            rsp: Gva(0x6d00),
            rax: 0,
            rcx: 0x20,
            rdi: Gva(0),
            gs_base: Gva(0),
            gdt: Gva(0),
        };
        assert_eq!(vcpus, [user, reset]);
    }

    #[test]
    fn what_is_missing_or_double_is_refused() {
        for gone in ["CPL=3", "CR0=", "EFER=", "GDT=", "GS =", "RSP=", "RDI=", "RCX=", "CPU#1", "CPU#0"] {
            let text = two().replace(gone, "");
            let vcpus = parse(&text);
            assert!(vcpus.is_err() || gone.starts_with("CPU"), "{gone}");
            assert_ne!(vcpus.ok(), parse(&two()).ok(), "{gone}");
        }
        for text in [String::new(), two().replace("CPU#1", "CPU#0"), two().replace("CPU#1", "CPU#x")] {
            assert!(parse(&text).is_err(), "{text}");
        }
    }
}
