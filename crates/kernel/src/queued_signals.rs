//! Signals that wait to be delivered, and timers that will send one (`kernel/signal.c`,
//! `kernel/time/posix-timers.c`): what their sender put with them.
//!
//! ```text
//! task.pending.list, signal.shared_pending.list: sigqueue: kernel_siginfo (number, error, code, fields)
//! signal.posix_timers: k_itimer with a sigqueue of its own
//! ```

use crate::layout::layout;
use crate::tasks::Process;
use crate::{Content, Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct QueuedSignalLayout {
        of_thread: offset("task_struct", &["pending.list"]),
        of_process: offset("signal_struct", &["shared_pending.list"]),
        signal: offset("task_struct", &["signal"]),
        link: offset("sigqueue", &["list"]),
        flags: number("sigqueue", &["flags"]),
        info: offset("sigqueue", &["info"]),
        info_size: size("kernel_siginfo"),
        fields: offset("kernel_siginfo", &["_sifields"]),
        value: offset("kernel_siginfo", &["_sifields._timer._sigval"]),
        timers: optional("signal_struct", &["posix_timers"]),
        ignored_timers: optional("signal_struct", &["ignored_posix_timers"]),
        timer_link: optional("k_itimer", &["list"]),
        ignored_link: optional("k_itimer", &["ignored_list"]),
        timer_queue: optional("k_itimer", &["sigq"]),
        timer_queue_link: optional("k_itimer", &["sigq.list"]),
    }
}

const WHAT: &str = "queued signal";
const TIMER: &str = "timer";
const VALUE: u64 = 8;
/// `SIGQUEUE_PREALLOC`: belongs to a timer, which finds itself again by what stands around the value.
const OF_TIMER: u64 = 1;

impl Kernel<'_> {
    /// What senders have put with the signals that wait for a process, and what it has put with its timers.
    pub fn queued_signal_data(
        &self,
        process: &Process,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.queued_signal;
        for thread in process.threads.iter().filter(|thread| !thread.dead) {
            self.signals_in(thread.task.wrapping_add(layout.of_thread), visit)?;
        }
        let Some(thread) = process.threads.first() else { return Ok(()) };
        let signal = self.pointer(thread.task.wrapping_add(layout.signal), WHAT)?;
        self.signals_in(signal.wrapping_add(layout.of_process), visit)?;
        for (head, link) in [(layout.timers, layout.timer_link), (layout.ignored_timers, layout.ignored_link)]
        {
            if let (Some(head), Some(link)) = (head, link) {
                self.timers_in(signal.wrapping_add(head), link, visit)?;
            }
        }
        Ok(())
    }

    fn signals_in(&self, head: Gva, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let layout = &self.profile.queued_signal;
        self.for_each_in_list(head, WHAT, &mut |link| {
            let queued = Gva(link.0.wrapping_sub(layout.link));
            let info = queued.wrapping_add(layout.info);
            if self.number(queued, layout.flags, WHAT)? & OF_TIMER == 0 {
                visit(Content::Bytes(info.wrapping_add(layout.fields)..info.wrapping_add(layout.info_size)));
            } else {
                visit(self.signal_value(queued));
            }
            Ok(())
        })
    }

    fn signal_value(&self, queued: Gva) -> Content {
        let layout = &self.profile.queued_signal;
        let value = queued.wrapping_add(layout.info).wrapping_add(layout.value);
        Content::Bytes(value..value.wrapping_add(VALUE))
    }

    /// The list is a ring in older kernels, and ends in newer ones.
    fn timers_in(&self, head: Gva, link: u64, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let layout = &self.profile.queued_signal;
        let Some(queue) = layout.timer_queue else { return Ok(()) };
        let (mut at, mut left) = (self.pointer(head, TIMER)?, self.object_limit());
        while at.0 != 0 && at != head {
            let why = "there are more than the guest has room for";
            left = left.checked_sub(1).ok_or(KernelError::Torn { what: TIMER, at, why })?;
            let queued = Gva(at.0.wrapping_sub(link)).wrapping_add(queue);
            // A part of the timer, or an object of its own.
            let queued = match layout.timer_queue_link {
                Some(_) => queued,
                None => self.pointer(queued, TIMER)?,
            };
            if queued.0 != 0 {
                visit(self.signal_value(queued));
            }
            at = self.pointer(at, TIMER)?;
        }
        Ok(())
    }
}
