//! Stacks that nothing runs on: each CPU's own, and those kept for the next threads.
//!
//! ```text
//! cached_stacks[2] -> vm_struct.addr     of threads that ended, for the next ones (kernel/fork.c)
//! hardirq_stack_ptr                      the top of the stack of interrupts, hard and soft; hardirq_stack_inuse
//! entry_stack_storage, exception_stacks  mapped into the CPU's entry area, where a vCPU stands when it uses them
//! runqueues.idle                         the idle task, which is on no list
//! ```

use crate::layout::layout;
use crate::tasks::Thread;
use crate::{Kernel, KernelError};
use elision_memory::{Gva, PAGE_SIZE};
use std::ops::Range;

layout! {
    pub(crate) struct IdleStackLayout {
        area_address: offset("vm_struct", &["addr"]),
        area_pages: number("vm_struct", &["nr_pages"]),
        hot_top: optional("pcpu_hot", &["hardirq_stack_ptr"]),
        hot_in_use: optional("pcpu_hot", &["hardirq_stack_inuse"]),
        exception: size_opt("exception_stacks"),
        entry: size_opt("entry_stack_page"),
        idle: offset("rq", &["idle"]),
    }
}

const WHAT: &str = "idle stack";
/// `NR_CACHED_STACKS`.
const CACHED: u64 = 2;
/// `IRQ_STACK_SIZE` of an x86-64 kernel without KASAN; the pointer leads to its last word.
const IRQ_STACK: u64 = 16 << 10;
const LAST_WORD: u64 = 8;
/// No thread's stack is larger.
const THREAD_LIMIT: u64 = 64 << 10;
/// Neither are a CPU's stacks for exceptions.
const EXCEPTION_LIMIT: u64 = 256 << 10;
/// `CPU_ENTRY_AREA_PGD`.
const ENTRY_AREA: Range<Gva> = Gva(0xffff_fe00_0000_0000)..Gva(0xffff_fe80_0000_0000);

impl Kernel<'_> {
    /// What stands in stacks that nothing runs on. `running` are the CPUs in kernel mode with their stack
    /// pointers; CPUs in user mode use none of these.
    pub fn idle_stacks(
        &self,
        running: &[(usize, Gva)],
        visit: &mut dyn FnMut(Range<Gva>),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.idle_stack;
        for (cpu, offset) in self.per_cpu.iter().enumerate() {
            let sp = running.iter().find(|(number, _)| *number == cpu).map(|(_, sp)| *sp);
            self.cached_stacks(*offset, visit)?;
            self.interrupt_stack(*offset, sp, visit)?;
            if sp.is_some_and(|sp| ENTRY_AREA.contains(&sp)) {
                continue;
            }
            for (name, size) in
                [("exception_stacks", layout.exception), ("entry_stack_storage", layout.entry)]
            {
                if let (Some(at), Some(size)) = (self.symbol(name), size) {
                    let at = at.wrapping_add(*offset);
                    visit(at..at.wrapping_add(size.min(EXCEPTION_LIMIT)));
                }
            }
        }
        Ok(())
    }

    fn cached_stacks(&self, cpu: u64, visit: &mut dyn FnMut(Range<Gva>)) -> Result<(), KernelError> {
        let layout = &self.profile.idle_stack;
        let Some(slots) = self.symbol("cached_stacks") else { return Ok(()) };
        for i in 0..CACHED {
            let area = self.pointer(slots.wrapping_add(cpu).wrapping_add(8 * i), WHAT)?;
            if area.0 == 0 {
                continue;
            }
            let base = self.pointer(area.wrapping_add(layout.area_address), WHAT)?;
            let size = self.number(area, layout.area_pages, WHAT)?.saturating_mul(PAGE_SIZE as u64);
            let end = base.checked_add(size).filter(|_| size <= THREAD_LIMIT && base.page_offset() == 0);
            let torn = KernelError::Torn { what: WHAT, at: area, why: "it has no possible size" };
            visit(base..end.ok_or(torn)?);
        }
        Ok(())
    }

    fn interrupt_stack(
        &self,
        cpu: u64,
        sp: Option<Gva>,
        visit: &mut dyn FnMut(Range<Gva>),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.idle_stack;
        let hot = self.symbol("pcpu_hot");
        let (top, in_use) = match (hot, layout.hot_top, layout.hot_in_use) {
            (Some(hot), Some(top), Some(in_use)) => (hot.wrapping_add(top), hot.wrapping_add(in_use)),
            _ => match (self.symbol("hardirq_stack_ptr"), self.symbol("hardirq_stack_inuse")) {
                (Some(top), Some(in_use)) => (top, in_use),
                _ => return Ok(()),
            },
        };
        let top = self.pointer(top.wrapping_add(cpu), WHAT)?;
        if top.0 == 0 {
            return Ok(()); // a CPU that was never started
        }
        let base = Gva(top.0.wrapping_add(LAST_WORD).wrapping_sub(IRQ_STACK));
        let whole = base..top.wrapping_add(LAST_WORD);
        if base.page_offset() != 0 || whole.start > whole.end {
            return Err(KernelError::Torn { what: WHAT, at: base, why: "it does not begin a page" });
        }
        match sp.filter(|sp| whole.contains(sp)) {
            Some(sp) => visit(base..sp),
            None if self.u8(in_use.wrapping_add(cpu), WHAT)? == 0 => visit(whole),
            None => {} // a CPU went on from there to a stack for exceptions
        }
        Ok(())
    }

    /// The idle tasks of all CPUs that have one.
    pub fn idle_threads(&self) -> Result<Vec<Thread>, KernelError> {
        let idle = self.require("runqueues")?.wrapping_add(self.profile.idle_stack.idle);
        let tasks = self.per_cpu.iter().map(|cpu| self.pointer(idle.wrapping_add(*cpu), WHAT));
        let tasks = tasks.collect::<Result<Vec<_>, _>>()?;
        tasks.into_iter().filter(|task| task.0 != 0).map(|task| self.thread(task)).collect()
    }
}
