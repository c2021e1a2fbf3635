//! How much memory a copy of RAM may take, and taking it before the VM is stopped.

use crate::checksum::chunk_bytes;
use crate::ram_writer::fits;
use crate::tasks::{Task, tasks};
use elision_memory::{FileOffset, Ram, Staging};
use elision_plan::Plan;
use rayon::prelude::*;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// Huge pages are worth their size where this much of them is filled.
const HUGE: u64 = 2 << 20;

/// Memory for a copy.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) staging: Staging,
    /// How much of it may be used.
    pub(crate) bytes: u64,
    /// Up to where it was taken ahead.
    pub(crate) ready: FileOffset,
    /// What of RAM was populated when it was made.
    pub(crate) populated: Vec<Range<FileOffset>>,
}

impl Room {
    /// Address space, and no memory yet.
    pub(crate) fn new(ram: &Ram) -> std::io::Result<Self> {
        let staging = Staging::new(ram.layout().file_len())?;
        let ready = FileOffset(0);
        Ok(Self { staging, bytes: available(), ready, populated: Vec::new() })
    }

    /// Takes memory for what a copy by `guess` would hold, unless it is going to be sparse, and maps what would be copied.
    pub(crate) fn populate(&mut self, ram: &Ram, guess: &Plan, is_sparse: bool) {
        self.populated = ram.populated();
        let tasks = tasks(ram, &self.populated, guess);
        let end = fits(&tasks, self.bytes, chunk_bytes(ram.file_len()));
        let parts: Vec<Range<FileOffset>> = tasks.iter().map(Task::range).collect();
        let staged = if is_sparse { 0 } else { parts.partition_point(|part| part.start < end) };
        let staged = parts.get(..staged).unwrap_or_default();
        prefer_huge(&self.staging, staged);
        // Both are mere help: what fails here happens by itself while memory is copied.
        let mapped = parts.par_iter().try_for_each(|part| ram.prefault(part));
        let populated = staged.par_iter().try_for_each(|part| self.staging.populate(part));
        if let Err(error) = populated.and(mapped) {
            tracing::debug!(%error, "memory is mapped as it is copied, in the pause");
        }
        self.ready = end;
    }
}

/// Asks for huge pages where `parts`, which ascend, are going to be filled densely.
pub(crate) fn prefer_huge(staging: &Staging, parts: &[Range<FileOffset>]) {
    for dense in dense(parts) {
        if let Err(error) = staging.prefer_huge(&dense) {
            tracing::debug!(%error, "no huge pages for the copy");
            break;
        }
    }
}

/// Bytes that a copy may take: half of what the host, and the control groups of this process, have left.
pub(crate) fn available() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse().ok());
    let host = kib.map_or(0, |kib: u64| kib << 10);
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/"));
    let groups = group.map(|group| Path::new("/sys/fs/cgroup").join(group));
    let left = groups.iter().flat_map(|path| path.ancestors()).filter_map(left_in).min();
    host.min(left.unwrap_or(u64::MAX)) / 2
}

/// What a control group may still take, if it has a limit.
fn left_in(group: &Path) -> Option<u64> {
    let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

/// Runs of huge pages that `parts`, which ascend, fill by half or more.
fn dense(parts: &[Range<FileOffset>]) -> Vec<Range<FileOffset>> {
    let mut runs: Vec<Range<FileOffset>> = Vec::new();
    let mut filled = (0, 0);
    let mut close = |(page, bytes): (u64, u64)| {
        let (start, end) = (FileOffset(page * HUGE), FileOffset((page + 1) * HUGE));
        match runs.last_mut() {
            _ if bytes < HUGE / 2 => {}
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    };
    for part in parts {
        let mut at = part.start.0;
        while at < part.end.0 {
            let page = at / HUGE;
            let stop = ((page + 1) * HUGE).min(part.end.0);
            if page != filled.0 {
                close(filled);
                filled = (page, 0);
            }
            filled.1 += stop - at;
            at = stop;
        }
    }
    close(filled);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_for_dense_parts() {
        let part = |start, end| FileOffset(start)..FileOffset(end);
        let parts = [part(0, HUGE / 4), part(HUGE / 2, 3 * HUGE), part(4 * HUGE, 4 * HUGE + 4096)];
        assert_eq!(dense(&parts), [part(0, 3 * HUGE)]);
        assert_eq!(dense(&[]), []);
    }

    #[test]
    fn memory_of_this_host_is_known() {
        assert!(available() > 0);
    }

    #[test]
    fn a_limit_counts_what_is_taken() {
        let group = tempfile::tempdir().unwrap();
        assert_eq!(left_in(group.path()), None);
        fs::write(group.path().join("memory.current"), "300\n").unwrap();
        fs::write(group.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(left_in(group.path()), None);
        fs::write(group.path().join("memory.max"), "1000\n").unwrap();
        assert_eq!(left_in(group.path()), Some(700));
        fs::write(group.path().join("memory.max"), "200\n").unwrap();
        assert_eq!(left_in(group.path()), Some(0));
    }
}
