//! What `/proc` tells of processes. All of it may be gone at the next moment.

use elision_wire::ProcessId;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// `R` runs or could, `S` sleeps, ...; see proc(5).
    pub(crate) state: char,
    /// Parent.
    pub(crate) parent: u32,
    /// The terminal session, by the process that leads it.
    pub(crate) session: u32,
    /// Hundredths of a second since the boot.
    pub(crate) started: u64,
}

/// A process that is there.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `PID (NAME) STATE PPID ...`, where the name may hold anything.
fn parse(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?; // field 3
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?; // field 6
    let started = fields.nth(15)?.parse().ok()?; // field 22
    Some(Stat { state, parent, session, started })
}

/// Path of a process in the hierarchy of cgroup v2.
pub(crate) fn group_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// All processes.
pub(crate) fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The processes of a list that are there, and their descendants where the list says so.
pub(crate) fn present(ids: &[ProcessId]) -> BTreeSet<u32> {
    let is_it = |id: &&ProcessId| stat(id.pid).is_some_and(|s| id.started == 0 || s.started == id.started);
    let there: Vec<_> = ids.iter().filter(is_it).collect();
    let mut found: BTreeSet<u32> = there.iter().map(|id| id.pid).collect();
    let mut todo: Vec<u32> = there.iter().filter(|id| id.descendants).map(|id| id.pid).collect();
    if todo.is_empty() {
        return found;
    }
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (pid, stat) in pids().into_iter().filter_map(|pid| Some((pid, stat(pid)?))) {
        children.entry(stat.parent).or_default().push(pid);
    }
    let mut seen: BTreeSet<u32> = todo.iter().copied().collect();
    while let Some(pid) = todo.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            found.insert(child);
            if seen.insert(child) {
                todo.push(child);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_is_skipped() {
        let text = "812 (a) b (c) S 700 812 812 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3";
        assert_eq!(parse(text), Some(Stat { state: 'S', parent: 700, session: 812, started: 4711 }));
        assert_eq!(parse("812 (x"), None);
        assert_eq!(parse("812 (x) S 1 2"), None);
    }

    #[test]
    fn a_process_and_its_children_are_present_and_a_namesake_is_not() {
        let me = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let started = stat(me).unwrap().started;
        let id = |started, descendants| ProcessId { pid: me, started, descendants };
        assert_eq!(present(&[id(started, false)]), [me].into());
        assert!(present(&[id(0, true)]).is_superset(&[me, child.id()].into()));
        assert!(present(&[id(started + 1, true)]).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
