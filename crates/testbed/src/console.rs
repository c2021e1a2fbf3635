//! The guest's console as QEMU logs it, and what in it shows a damaged kernel.

use std::path::{Path, PathBuf};

/// The console log of one guest.
#[derive(Clone, Debug)]
pub struct Console {
    path: PathBuf,
}

/// What ordinary kernels never print.
const PROBLEMS: [&str; 32] = [
    "BUG:",
    "kernel BUG",
    "WARNING:",
    "Oops",
    "general protection",
    "Call Trace",
    "Kernel panic",
    "list_add corruption",
    "list_del corruption",
    "Bad page",
    "bad page",
    "Bad rss",
    "rss-counter",
    "page_owner",
    "Object corrupt",
    "Redzone",
    "Poison overwritten",
    "hung_task",
    "blocked for more than",
    "rcu_sched",
    "rcu_preempt",
    "detected stall",
    "soft lockup",
    "hard LOCKUP",
    "refcount_t",
    "segfault",
    "trap invalid opcode",
    "traps:",
    "Out of memory",
    "oom-kill",
    "use-after-free",
    "I/O error",
];

/// Ordinary boot lines that hold one of the words above.
const ORDINARY: [&str; 7] = [
    "rcu_preempt: ",
    "Command line",
    "command line",
    "mitigation",
    "Hierarchical RCU",
    "rcu: \tRCU ",
    "x86/",
];

impl Console {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The log file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything so far.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// The last `n` lines.
    #[must_use]
    pub fn tail(&self, n: usize) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(n)..].join("\n")
    }

    /// Number of the last tick; the guest prints one every 50 ms.
    #[must_use]
    pub fn last_tick(&self) -> Option<u64> {
        self.text().lines().rev().find_map(|l| l.strip_prefix("TICK ")?.parse().ok())
    }

    /// Lines that show a damaged or stalled kernel, or a process that crashed.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        problems(&self.text())
    }
}

/// Lines of a kernel log that show a damaged or stalled kernel, or a process that crashed.
#[must_use]
pub fn problems(log: &str) -> Vec<String> {
    let bad = |line: &&str| {
        PROBLEMS.iter().any(|p| line.contains(p))
            && (!ORDINARY.iter().any(|o| line.contains(o)) || line.contains("stall") || line.contains("BUG"))
    };
    log.lines().filter(bad).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_seen() {
        for line in [
            "[    9.1] BUG: Bad rss-counter state mm:00000000 type:MM_ANONPAGES val:3",
            "TICK 1[    9.1] WARNING: CPU: 0 PID: 1 at kernel/x.c:3",
            "[    9.1] list_del corruption. prev->next should be",
            "[    9.1] kernel BUG at fs/buffer.c:1!",
            "[    9.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[    9.1] INFO: task played:9 blocked for more than 120 seconds.",
            "[    9.1] played[7]: segfault at 0 ip 0",
            "[    9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
        ] {
            assert_eq!(problems(line).len(), 1, "{line}");
        }
    }

    #[test]
    fn ordinary_boot_lines_are_not_problems() {
        let log = "[    0.0] Command line: console=ttyS0 oops=panic\n\
            [    0.0] rcu: Hierarchical RCU implementation.\n\
            [    0.1] rcu: RCU calculated value of scheduler-enlistment delay is 25 jiffies.\n\
            [    0.2] x86/fpu: Supporting XSAVE feature\nACTOR READY\nTICK 7\n\
            [    0.3] Freeing unused kernel image (initmem) memory: 2660K\n";
        assert!(problems(log).is_empty(), "{:?}", problems(log));
    }
}
