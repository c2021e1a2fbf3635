//! Processes and threads against `/proc/PID`.

use elision_kernel::{Kernel, Process};
use elision_testbed::truth::Truth;
use std::collections::{BTreeMap, BTreeSet};

/// A process seen from outside, and its id in the guest's words.
pub(crate) type Seen<'a> = (i32, &'a Process);

/// Kernel workers that come or go in a moment.
const WORKER_DRIFT: usize = 4;

/// Whether this is the process that wrote down the truth: it goes on working after each word.
pub(crate) fn is_writer(truth: &Truth, pid: i32) -> bool {
    truth.text(&format!("cmdline/{pid}")).split('\0').nth(1) == Some("truth")
}

/// All processes with all they are. Kernel workers may come or go; the rest is the same.
pub(crate) fn compare<'a>(all: &'a [Process], truth: &Truth) -> Vec<Seen<'a>> {
    let seen: BTreeMap<i32, &Process> = all.iter().map(|p| (id(p.pid), p)).collect();
    assert_eq!(seen.len(), all.len(), "a process id stands twice");
    let told: BTreeSet<i32> = truth.pids().into_iter().collect();
    let moved: Vec<i32> = told.symmetric_difference(&seen.keys().copied().collect()).copied().collect();
    let is_worker =
        |pid: &i32| truth.comm(*pid).starts_with("kworker/") || seen.get(pid).is_some_and(|p| p.worker);
    let names: Vec<_> =
        moved.iter().map(|pid| (pid, truth.comm(*pid), seen.get(pid).map(|p| &p.comm))).collect();
    assert!(moved.iter().all(is_worker) && moved.len() <= WORKER_DRIFT, "{names:?} came or went");

    let both: Vec<Seen> = seen.into_iter().filter(|(pid, _)| told.contains(pid)).collect();
    let (mut threads, mut programs, mut users, mut groups, mut terminals) = (0, 0, 0, 0, 0);
    for &(pid, process) in &both {
        compare_one(pid, process, truth);
        threads += process.threads.len();
        programs += usize::from(process.exe.is_some());
        users += usize::from(process.uid != 0);
        groups += usize::from(process.cgroup.as_deref() != Some("/"));
        terminals += usize::from(process.tty.is_some());
    }
    println!(
        "  {} processes ({} workers came or went), {threads} threads, {programs} programs, {users} of users, \
         {groups} in cgroups, {terminals} on terminals: no difference",
        both.len(),
        moved.len()
    );
    assert!(both.len() > 30 && threads >= both.len() + 64, "control: too few processes or threads");
    assert!(programs >= 9 && users >= 6 && groups >= 1 && terminals >= 6, "control: too little to compare");
    both
}

fn compare_one(pid: i32, process: &Process, truth: &Truth) {
    let mine = (Some(id(process.parent)), Some(process.uid), process.exe.clone(), process.cgroup.clone());
    let told = (truth.ppid(pid), truth.uid(pid), truth.exe(pid), truth.cgroup(pid));
    assert_eq!(mine, told, "process {pid}");
    let gid = truth.status(pid, "Gid").and_then(|gid| gid.parse().ok());
    assert_eq!(Some(process.gid), gid, "process {pid}");
    assert_eq!(process.tty, truth.tty_nr(pid).and_then(terminal), "process {pid}");
    let mut threads: Vec<i32> = process.threads.iter().map(|t| id(t.tid)).collect();
    threads.sort_unstable();
    assert_eq!(threads, truth.threads(pid), "threads of process {pid}");
    assert_eq!(process.kernel_thread, truth.maps(pid).is_empty(), "process {pid}");
    // In `/proc` the names of kernel threads are longer than in their tasks.
    let (comm, told) = (&process.comm, truth.comm(pid));
    let same = *comm == told || (process.kernel_thread && !comm.is_empty() && told.starts_with(comm));
    assert!(same, "process {pid} is {comm}, not {told}");
}

/// The command lines of all processes that have one.
pub(crate) fn compare_command_lines(kernel: &Kernel<'_>, both: &[Seen<'_>], truth: &Truth) {
    let mut compared = 0;
    for (pid, process) in both {
        let words = kernel.command_line(process).expect("a command line");
        let told = truth.text(&format!("cmdline/{pid}"));
        assert_eq!(words.is_none(), told.is_empty(), "process {pid}");
        let Some(words) = words else { continue };
        let line: String = words.iter().flat_map(|word| [word.as_str(), "\0"]).collect();
        assert_eq!(line, told, "process {pid}");
        compared += 1;
    }
    assert!(compared >= 9, "control: only {compared} command lines");
}

fn id(number: u32) -> i32 {
    i32::try_from(number).expect("a process id")
}

/// Name of a terminal by its device number, as `/proc/PID/stat` has it.
fn terminal(device: u32) -> Option<String> {
    let (major, minor) = (device >> 8 & 0xfff, (device & 0xff) | (device >> 12 & 0xf_ff00));
    match (major, minor) {
        (0, 0) => None,
        (136..=143, n) => Some(format!("pts/{}", n + 256 * (major - 136))),
        (4, n @ 64..) => Some(format!("ttyS{}", n - 64)),
        (4, n) => Some(format!("tty{n}")),
        other => panic!("a terminal with device number {other:?}"),
    }
}
