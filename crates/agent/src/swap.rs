//! Brings pages of processes in from swap, as a save refuses what is there.
//!
//! ```text
//! /proc/PID/smaps      areas with "Swap:" more than 0 kB
//! /proc/PID/pagemap    8 bytes a page; bit 62: in swap (Documentation/admin-guide/mm/pagemap.rst)
//! /proc/PID/mem        reading a byte of a page brings it in
//! ```
//! This is done as well as it can be: memory may be short, and pages may go out again. Nothing is written to the process.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

const PAGE: u64 = 4096;
const IN_SWAP: u64 = 1 << 62;
/// Entries of a page map that are read at once.
const CHUNK: usize = 512;

/// Brings in what these processes have in swap. Gives how many pages there were.
pub(crate) fn bring_in(pids: &BTreeSet<u32>, until: Instant) -> u64 {
    pids.iter().map(|pid| bring_in_one(*pid, until).unwrap_or(0)).sum()
}

fn bring_in_one(pid: u32, until: Instant) -> std::io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    if !status.lines().any(|line| kib(line, "VmSwap:").is_some_and(|n| n > 0)) {
        return Ok(0);
    }
    let areas = swapped_areas(&fs::read_to_string(format!("/proc/{pid}/smaps"))?);
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut pages = 0;
    let mut entries = vec![0; CHUNK * 8];
    for (start, end) in areas {
        let mut at = start;
        while at < end && Instant::now() < until {
            let n = pagemap.read_at(&mut entries, at / PAGE * 8)? / 8;
            if n == 0 {
                break;
            }
            for entry in entries.chunks_exact(8).take(n) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                if at < end && entry & IN_SWAP != 0 && memory.read_at(&mut [0], at).is_ok() {
                    pages += 1;
                }
                at = at.saturating_add(PAGE);
            }
        }
    }
    Ok(pages)
}

/// The areas of an `smaps` file that have something in swap.
fn swapped_areas(smaps: &str) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut area = None;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|word| word.split_once('-'));
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        if let Some(range) = range.and_then(|(start, end)| Some((hex(start)?, hex(end)?))) {
            area = Some(range);
        } else if kib(line, "Swap:").is_some_and(|n| n > 0) {
            found.extend(area);
        }
    }
    found
}

/// The number in `NAME  12 kB`.
fn kib(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_with_pages_in_swap_are_found() {
        let smaps = "00400000-00500000 r-xp 00000000 08:02 7 /bin/x\nSwap:                  0 kB\n\
                     7f0000000000-7f0000100000 rw-p 00000000 00:00 0\nRss: 4 kB\nSwap:                 12 kB\n";
        assert_eq!(swapped_areas(smaps), [(0x7f00_0000_0000, 0x7f00_0010_0000)]);
    }

    #[test]
    fn a_process_without_swap_has_nothing_to_bring_in() {
        assert_eq!(bring_in(&[std::process::id()].into(), Instant::now()), 0);
    }
}
