//! The ends of all processes, as their parent (process 1) sees them.

use elision_actor::protocol::Status;
use rustix::process::{WaitOptions, wait};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Monotonic clock in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[derive(Default)]
struct Ends {
    by_pid: Mutex<HashMap<i32, Status>>,
    more: Condvar,
}

/// Knows how every child ended.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    ends: Arc<Ends>,
}

impl Reaper {
    /// Starts the thread that waits for children.
    pub(crate) fn start() -> Self {
        let reaper = Self::default();
        let ends = Arc::clone(&reaper.ends);
        std::thread::spawn(move || {
            loop {
                let Ok(Some((pid, status))) = wait(WaitOptions::empty()) else {
                    std::thread::sleep(Duration::from_millis(5)); // no child at the moment
                    continue;
                };
                let at_ns = monotonic_ns();
                let end = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Status::Exited { code, at_ns },
                    (None, Some(signal)) => Status::Signalled { signal, at_ns },
                    (None, None) => continue,
                };
                ends.by_pid
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(pid.as_raw_nonzero().get(), end);
                ends.more.notify_all();
            }
        });
        reaper
    }

    /// How a child ended that was started at `since`, or `None` while it runs. An older process may
    /// have had the same id.
    pub(crate) fn end_of(&self, pid: i32, since: u64) -> Option<Status> {
        let ends = self.ends.by_pid.lock().unwrap_or_else(PoisonError::into_inner);
        ends.get(&pid).copied().filter(|end| ended_after(end, since))
    }

    /// Waits for the end of a child that was started at `since`.
    pub(crate) fn wait_for(&self, pid: i32, since: u64, limit: Duration) -> Option<Status> {
        let until = Instant::now() + limit;
        let mut ends = self.ends.by_pid.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(end) = ends.get(&pid).filter(|end| ended_after(end, since)) {
                return Some(*end);
            }
            let left = until.checked_duration_since(Instant::now())?;
            ends = self.ends.more.wait_timeout(ends, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn ended_after(end: &Status, since: u64) -> bool {
    match end {
        Status::Exited { at_ns, .. } | Status::Signalled { at_ns, .. } => *at_ns >= since,
        Status::Running | Status::Unknown => false,
    }
}
