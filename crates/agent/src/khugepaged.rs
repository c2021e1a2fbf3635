//! The kernel's thread that makes huge pages of small ones (`mm/khugepaged.c`).
//!
//! While it does so, it keeps the address space of a process locked for writing, for some milliseconds, although the process
//! stands still: a saver that looks at that moment has to look again. It works for a short time every ten seconds, so it is
//! let finish before anything is frozen.

use crate::procfs;
use std::fs;
use std::time::{Duration, Instant};

const NAME: &str = "khugepaged";
/// Its parent is the kernel's thread that starts others.
const PARENT: u32 = 2;
/// Between two looks at what it does.
const BREAK: Duration = Duration::from_millis(1);

/// Finds it; there is none where huge pages are switched off.
pub(crate) fn find() -> Option<u32> {
    procfs::pids().into_iter().find(|pid| is_it(*pid))
}

/// Waits until it sleeps, but no longer than this. False if it still works.
pub(crate) fn rest(pid: u32, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    while is_it(pid) && procfs::stat(pid).is_some_and(|stat| stat.state != 'S') {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(BREAK);
    }
    true
}

fn is_it(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == NAME)
        && procfs::stat(pid).is_some_and(|stat| stat.parent == PARENT)
}
