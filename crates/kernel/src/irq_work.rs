//! Work items that make the restored kernel itself kill and wake excluded processes.
//!
//! A process asleep without a wake-up would never see its pending signal. `do_bpf_send_signal`
//! is a handler that the kernel has for sending a signal out of an interrupt; items for it are
//! queued in the copy, and the interrupt that runs them is raised in the vCPU's state:
//! ```text
//! lazy_list of CPU 0 -> item -> item -> ... -> what was queued before
//! item: irq_work { node { next, flags }, func = do_bpf_send_signal }, task, sig = 9, type = TGID
//! ```
//! The items stand in the dead part of the stacks of kernel threads that never end: a victim's own
//! stack could be in use, or freed, before the interrupt is taken on another CPU.

use crate::layout::layout;
use crate::tasks::Process;
use crate::view::WordEdit;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct IrqWorkLayout {
        size: size_opt("send_signal_irq_work"),
        next: optional("send_signal_irq_work", &["irq_work.node.llist.next", "irq_work.llnode.next"]),
        flags: optional("send_signal_irq_work", &["irq_work.node.u_flags", "irq_work.flags"]),
        func: optional("send_signal_irq_work", &["irq_work.func"]),
        task: optional("send_signal_irq_work", &["task"]),
        sig: optional("send_signal_irq_work", &["sig"]),
        kind: optional("send_signal_irq_work", &["type"]),
        usage: offset("task_struct", &["usage"]),
    }
}

/// `IRQ_WORK_PENDING | IRQ_WORK_BUSY | IRQ_WORK_LAZY | CSD_TYPE_IRQ_WORK`.
const QUEUED_LAZY: u32 = 0x27;
const SIGKILL: u32 = 9;
const PIDTYPE_TGID: u32 = 1;
/// Bytes at the far end of a kernel thread's stack that it does not reach between the restore and
/// the interrupt, which comes at once.
const USABLE: u64 = 6 << 10;
const BEHIND_CANARY: u64 = 64;
/// A stack with its pointer lower than this is too deep to borrow from.
const SHALLOW: u64 = 12 << 10;
/// Items are 32 to 104 bytes; more need a larger stride.
const STRIDE: u64 = 128;
const WHAT: &str = "interrupt work list";

/// Items to be written into the copy.
#[derive(Clone, Debug, Default)]
pub struct SignalWork {
    /// The items and the list head, each with the process it is for.
    pub edits: Vec<(Option<u32>, WordEdit)>,
}

impl Kernel<'_> {
    /// The interrupt vector whose handler runs queued work, from the guest's own table.
    pub fn irq_work_vector(&self) -> Result<u8, KernelError> {
        let handler = self.require("asm_sysvec_irq_work")?;
        let table = self.require("idt_table")?;
        for vector in 32..=u8::MAX {
            let gate = table.wrapping_add(16 * u64::from(vector));
            let low = self.u64(gate, "interrupt table")?;
            let high = self.u64(gate.wrapping_add(8), "interrupt table")?;
            let target = (low & 0xffff) | (low >> 32 & 0xffff_0000) | (high << 32);
            if target == handler.0 {
                return Ok(vector);
            }
        }
        Err(KernelError::Incomplete("interrupt vector for queued work"))
    }

    /// Items that kill each of `victims`; `all` is every process, to find stacks to borrow from.
    pub fn signal_work(&self, victims: &[&Process], all: &[Process]) -> Result<SignalWork, KernelError> {
        let mut work = SignalWork::default();
        if victims.is_empty() {
            return Ok(work);
        }
        let layout = &self.profile.irq_work;
        let (Some(size), Some(next), Some(flags), Some(func), Some(task), Some(sig), Some(kind)) =
            (layout.size, layout.next, layout.flags, layout.func, layout.task, layout.sig, layout.kind)
        else {
            return Err(KernelError::Incomplete("signal work item (CONFIG_BPF_EVENTS)"));
        };
        if size > STRIDE {
            return Err(KernelError::Incomplete("signal work item of a known size"));
        }
        let handler = self.require("do_bpf_send_signal")?;
        let cpu0 = *self.per_cpu.first().ok_or(KernelError::Incomplete("per-CPU areas"))?;
        let list = self.require("lazy_list")?.wrapping_add(cpu0);
        let mut head = self.pointer(list, WHAT)?;
        let slots = self.borrowed_slots(all)?;
        if slots.len() < victims.len() {
            return Err(KernelError::TooMany { asked: victims.len(), room: slots.len() });
        }
        for (victim, slot) in victims.iter().zip(slots) {
            let at = |offset: u64| slot.wrapping_add(offset);
            let usage = victim.leader.wrapping_add(layout.usage);
            let zeros = WordEdit { at: slot, bytes: vec![0; usize::try_from(STRIDE).unwrap_or(0)] };
            let words = [
                zeros,
                WordEdit::u64(at(next), head.0),
                WordEdit::u32(at(flags), QUEUED_LAZY),
                WordEdit::u64(at(func), handler.0),
                WordEdit::u64(at(task), victim.leader.0),
                WordEdit::u32(at(sig), SIGKILL),
                WordEdit::u32(at(kind), PIDTYPE_TGID),
                // The handler gives back one reference.
                WordEdit::u32(usage, self.u32(usage, "task")?.wrapping_add(1)),
            ];
            work.edits.extend(words.map(|word| (Some(victim.pid), word)));
            head = at(next);
        }
        work.edits.push((None, WordEdit::u64(list, head.0)));
        Ok(work)
    }

    fn borrowed_slots(&self, all: &[Process]) -> Result<Vec<Gva>, KernelError> {
        let mut lenders: Vec<_> = all.iter().filter(|p| p.kernel_thread && !p.worker).collect();
        lenders.sort_by_key(|p| p.pid);
        let mut slots = Vec::new();
        for thread in lenders.iter().flat_map(|p| &p.threads) {
            if thread.on_cpu || thread.queued || thread.exiting {
                continue;
            }
            let Some(stack) = self.stack(thread)? else { continue };
            if stack.sp.0 - stack.base.0 >= SHALLOW {
                slots.extend(
                    (0..USABLE / STRIDE).map(|i| stack.base.wrapping_add(BEHIND_CANARY + i * STRIDE)),
                );
            }
        }
        Ok(slots)
    }
}
