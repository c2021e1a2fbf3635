//! The kernel's ORC tables: how each piece of its code finds its caller (`arch/x86/include/asm/orc_types.h`).
//!
//! ```text
//! __start_orc_unwind_ip   s32 each, ascending: the first byte of code that entry i is for, relative to the number
//! __start_orc_unwind      struct orc_entry each: s16 sp_offset, s16 bp_offset, u16 bits
//!                           bits   sp_reg:4 bp_reg:4 type:3             since 6.4
//!                                  sp_reg:4 bp_reg:4 type:2 .. end      before
//! ```
//! Modules bring tables of their own (`struct mod_arch_specific`). 7.x numbers the registers in another order. Nothing
//! names the order, but code shows it: at its first instruction every function finds its caller by `rsp`.

use crate::btf::{Btf, BtfError};
use crate::layout::layout;
use crate::view::Region;
use crate::{Kernel, KernelError};
use elision_memory::Gva;
use serde::{Deserialize, Serialize};

const WHAT: &str = "ORC table";
const ENTRY: u64 = 6;
const IP: u64 = 4;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OrcLayout {
    /// Whether the entries still have the bit that 6.4 took away.
    old_types: bool,
    module: Option<ModuleOrcLayout>,
}

impl OrcLayout {
    pub(crate) fn compile(btf: &Btf) -> Result<Self, BtfError> {
        let has_tables = btf.has("module", "arch.orc_unwind");
        let module = has_tables.then(|| ModuleOrcLayout::compile(btf)).transpose()?;
        Ok(Self { old_types: btf.has("orc_entry", "end"), module })
    }
}

layout! {
    struct ModuleOrcLayout {
        list: offset("module", &["list"]),
        text: offset("module", &["mem[0].base", "core_layout.base"]),
        text_size: number("module", &["mem[0].size", "core_layout.text_size"]),
        count: number("module", &["arch.num_orcs"]),
        ips: offset("module", &["arch.orc_unwind_ip"]),
        entries: offset("module", &["arch.orc_unwind"]),
    }
}

/// What a register is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// It is not kept, or as it is.
    Undefined,
    /// At an offset from the end of the frame.
    PreviousSp,
    /// At an offset from `rbp`.
    Bp,
    /// At an offset from `rsp`.
    Sp,
    /// By the word at an offset from `rbp`.
    BpIndirect,
    /// By the word at `rsp`, and an offset.
    SpIndirect,
    /// By a register that only the first instructions of the kernel's entry use.
    Other,
}

/// What stands at the end of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: there is no caller.
    End,
    /// Before it, the address to return to.
    Call,
    /// `struct pt_regs`.
    Registers,
    /// The part of `struct pt_regs` that the processor saved.
    Interrupt,
}

/// How a piece of code finds its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) sp: (Base, i64),
    pub(crate) bp: (Base, i64),
    pub(crate) kind: Kind,
}

/// How a kernel writes its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    old_types: bool,
    /// The number of `rsp`: 5, or 3 where the registers have their later order.
    sp: u8,
}

impl Form {
    fn rule(self, entry: [u8; 6]) -> Rule {
        let [a, b, c, d, registers, kind] = entry;
        let base = |n| match (self.sp, n) {
            (_, 0) => Base::Undefined,
            (_, 4) => Base::Bp,
            (5, 1) | (3, 8) => Base::PreviousSp,
            (5, 5) | (3, 3) => Base::Sp,
            (5, 8) | (3, 10) => Base::BpIndirect,
            (_, 9) => Base::SpIndirect,
            _ => Base::Other,
        };
        let kind = match (self.old_types, kind & if self.old_types { 3 } else { 7 }) {
            (true, 0) | (false, 2) => Kind::Call,
            (true, 1) | (false, 3) => Kind::Registers,
            (true, 2) | (false, 4) => Kind::Interrupt,
            _ => Kind::End,
        };
        Rule {
            sp: (base(registers & 15), i16::from_le_bytes([a, b]).into()),
            bp: (base(registers >> 4), i16::from_le_bytes([c, d]).into()),
            kind,
        }
    }
}

/// A table of the kernel or of a module.
struct Table {
    ips: Gva,
    entries: Gva,
    count: u64,
}

/// The tables of a kernel and its modules.
pub(crate) struct Orc<'a, 'k> {
    kernel: &'a Kernel<'k>,
    image: Table,
    form: Form,
}

impl<'a, 'k> Orc<'a, 'k> {
    /// `function` is where any function of the kernel begins.
    pub(crate) fn open(kernel: &'a Kernel<'k>, function: Gva) -> Result<Self, KernelError> {
        let [ips, end] = [kernel.require("__start_orc_unwind_ip")?, kernel.require("__stop_orc_unwind_ip")?];
        let count = end.0.saturating_sub(ips.0) / IP;
        let image = Table { ips, entries: kernel.require("__start_orc_unwind")?, count };
        let torn = KernelError::Torn {
            what: WHAT,
            at: function,
            why: "it does not show how registers are numbered",
        };
        let form = match image.entry(kernel, function)? {
            Some([8, 0, _, _, registers, _]) if matches!(registers & 15, 3 | 5) => {
                Form { old_types: kernel.profile.orc.old_types, sp: registers & 15 }
            }
            _ => return Err(torn),
        };
        Ok(Self { kernel, image, form })
    }

    /// The rule for the code at `ip`.
    pub(crate) fn rule(&self, ip: Gva) -> Result<Rule, KernelError> {
        let entry = if self.kernel.region_of(ip) == Region::Image {
            self.image.entry(self.kernel, ip)?
        } else {
            self.module(ip)?.map_or(Ok(None), |table| table.entry(self.kernel, ip))?
        };
        let torn = KernelError::Torn { what: WHAT, at: ip, why: "it has nothing for this code" };
        entry.map(|entry| self.form.rule(entry)).ok_or(torn)
    }

    /// The table of the module with the code at `ip`.
    fn module(&self, ip: Gva) -> Result<Option<Table>, KernelError> {
        let kernel = self.kernel;
        let Some(layout) = &kernel.profile.orc.module else { return Ok(None) };
        let mut found = None;
        kernel.for_each_in_list(kernel.require("modules")?, "module list", &mut |link| {
            let module = Gva(link.0.wrapping_sub(layout.list));
            let text = kernel.pointer(module.wrapping_add(layout.text), WHAT)?;
            if ip.0.wrapping_sub(text.0) < kernel.number(module, layout.text_size, WHAT)? {
                found = Some(Table {
                    ips: kernel.pointer(module.wrapping_add(layout.ips), WHAT)?,
                    entries: kernel.pointer(module.wrapping_add(layout.entries), WHAT)?,
                    count: kernel.number(module, layout.count, WHAT)?,
                });
            }
            Ok(())
        })?;
        Ok(found)
    }
}

impl Table {
    /// The last entry that begins at `ip` or before.
    fn entry(&self, kernel: &Kernel<'_>, ip: Gva) -> Result<Option<[u8; 6]>, KernelError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.ips.wrapping_add(middle.wrapping_mul(IP));
            let mut distance = [0; 4];
            kernel.read(at, &mut distance, WHAT)?;
            let begins = at.0.wrapping_add_signed(i32::from_le_bytes(distance).into());
            if begins <= ip.0 { low = middle + 1 } else { high = middle }
        }
        let Some(index) = low.checked_sub(1) else { return Ok(None) };
        let mut entry = [0; 6];
        kernel.read(self.entries.wrapping_add(index.wrapping_mul(ENTRY)), &mut entry, WHAT)?;
        Ok(Some(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_entry_is_read() {
        let old = Form { old_types: true, sp: 5 };
        let middle = Form { old_types: false, sp: 5 };
        let new = Form { old_types: false, sp: 3 };
        // rsp+24, rbp at the frame's end - 16, a call
        let entry = |registers, kind| [24, 0, 0xf0, 0xff, registers, kind];
        let rule = Rule { sp: (Base::Sp, 24), bp: (Base::PreviousSp, -16), kind: Kind::Call };
        assert_eq!(old.rule(entry(0x15, 0)), rule);
        assert_eq!(middle.rule(entry(0x15, 2)), rule);
        assert_eq!(new.rule(entry(0x83, 2)), rule);
        assert_eq!(middle.rule(entry(0x15, 0)).kind, Kind::End);
        assert_eq!(
            middle.rule(entry(0x15, 8 | 3)).kind,
            Kind::Registers,
            "the next bit marks a signal frame"
        );
        assert_eq!(old.rule(entry(0x15, 4 | 2)).kind, Kind::Interrupt, "the next bits are other marks");
    }
}
