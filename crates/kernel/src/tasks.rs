//! Processes and their threads (`struct task_struct`, `struct signal_struct`).
//!
//! ```text
//! init_task.tasks <-> leader.tasks <-> leader.tasks ...          one entry a process
//! leader.signal->thread_head <-> thread.thread_node <-> ...      one entry a thread
//! ```

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::{Budget, Gva};
use rayon::prelude::*;
use std::collections::BTreeMap;

layout! {
    pub(crate) struct TaskLayout {
        size: size("task_struct"),
        tasks: offset("task_struct", &["tasks"]),
        pid: offset("task_struct", &["pid"]),
        tgid: offset("task_struct", &["tgid"]),
        comm: offset("task_struct", &["comm"]),
        comm_len: count("task_struct", "comm"),
        exit_state: number("task_struct", &["exit_state"]),
        flags: offset("task_struct", &["flags"]),
        on_cpu: number("task_struct", &["on_cpu"]),
        on_rq: number("task_struct", &["on_rq"]),
        mm: offset("task_struct", &["mm"]),
        cred: offset("task_struct", &["cred"]),
        signal: offset("task_struct", &["signal"]),
        real_parent: offset("task_struct", &["real_parent"]),
        started: offset("task_struct", &["start_boottime", "real_start_time"]),
        thread_node: offset("task_struct", &["thread_node"]),
        thread_head: offset("signal_struct", &["thread_head"]),
        uid: offset("cred", &["uid.val"]),
        gid: offset("cred", &["gid.val"]),
    }
}

const PF_KTHREAD: u32 = 0x0020_0000;
const PF_WQ_WORKER: u32 = 0x0000_0020;
const PF_EXITING: u32 = 0x0000_0004;
/// Frames of a kernel stack: each task has one, so RAM bounds how many tasks there can be.
const STACK_FRAMES: u64 = 4;
/// `PID_MAX_LIMIT` of the kernel.
const TASK_LIMIT: u64 = 1 << 22;
const TOO_MANY: &str = "there are more tasks than the guest has room for";
/// Processes that one thread looks at, which often have the same program and the same cgroup.
const AT_ONCE: usize = 64;
/// No kernel keeps more of a task's name.
const COMM_LIMIT: usize = 64;

/// One thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its `task_struct`.
    pub task: Gva,
    /// Thread id.
    pub tid: u32,
    /// Whether it is on a CPU now.
    pub on_cpu: bool,
    /// Whether it is on a run queue.
    pub queued: bool,
    /// Whether it has begun to exit.
    pub exiting: bool,
    /// Whether it has ended and waits for its parent, or for its own last release.
    pub dead: bool,
}

/// One process: a thread group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id (thread group id), as the root namespace sees it.
    pub pid: u32,
    /// Process id of the parent.
    pub parent: u32,
    /// When it was started, in nanoseconds since the guest's boot.
    pub started: u64,
    /// Command name of the leader.
    pub comm: String,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// The leader's `task_struct`.
    pub leader: Gva,
    /// The `mm_struct`, for a process with memory of its own.
    pub mm: Option<Gva>,
    /// Path of the program, for a process with memory of its own.
    pub exe: Option<String>,
    /// Path in the cgroup v2 hierarchy.
    pub cgroup: Option<String>,
    /// Name of the controlling terminal, relative to `/dev`.
    pub tty: Option<String>,
    /// Whether it is a thread of the kernel itself.
    pub kernel_thread: bool,
    /// Whether it is a kernel worker, which may end when it is idle.
    pub worker: bool,
    /// Its threads, the leader among them.
    pub threads: Vec<Thread>,
}

/// Paths that were told before: of programs by their `struct file`, and of cgroups.
#[derive(Default)]
struct Paths {
    exes: BTreeMap<Gva, String>,
    cgroups: BTreeMap<Gva, Option<String>>,
}

impl Kernel<'_> {
    /// All processes, in the kernel's own order, without the idle tasks.
    pub fn processes(&self) -> Result<Vec<Process>, KernelError> {
        let layout = &self.profile.task;
        let head = self.require("init_task")?.wrapping_add(layout.tasks);
        let mut leaders = Vec::new();
        let limit = (self.ram.layout().frame_limit().0 / STACK_FRAMES).min(TASK_LIMIT);
        let mut left = limit;
        self.for_each_in_list(head, "task list", &mut |at| {
            left = left.checked_sub(1).ok_or(KernelError::Torn { what: "task list", at, why: TOO_MANY })?;
            leaders.push(Gva(at.0.wrapping_sub(layout.tasks)));
            Ok(())
        })?;
        // Forged processes may share one list of threads: their sum is bounded, not each list.
        let left = Budget::new(limit);
        let parts: Vec<_> =
            leaders.par_chunks(AT_ONCE).map(|leaders| self.some_processes(leaders, &left)).collect();
        let mut processes = Vec::with_capacity(leaders.len());
        for part in parts {
            processes.extend(part?);
        }
        Ok(processes)
    }

    fn some_processes(&self, leaders: &[Gva], left: &Budget) -> Result<Vec<Process>, KernelError> {
        let mut paths = Paths::default();
        leaders.iter().map(|leader| self.process(*leader, left, &mut paths)).collect()
    }

    fn process(&self, leader: Gva, left: &Budget, paths: &mut Paths) -> Result<Process, KernelError> {
        const WHAT: &str = "task";
        let layout = &self.profile.task;
        let field = |offset: u64| leader.wrapping_add(offset);
        let flags = self.u32(field(layout.flags), WHAT)?;
        let cred = self.pointer(field(layout.cred), WHAT)?;
        let parent = self.pointer(field(layout.real_parent), WHAT)?;
        let threads = self.threads(leader, left)?;
        let mm = self.mm_of(&threads)?;
        Ok(Process {
            pid: self.u32(field(layout.tgid), WHAT)?,
            parent: self.u32(parent.wrapping_add(layout.tgid), WHAT)?,
            started: self.u64(field(layout.started), WHAT)?,
            comm: self.string(field(layout.comm), comm_len(layout.comm_len), WHAT)?,
            uid: self.u32(cred.wrapping_add(layout.uid), "credentials")?,
            gid: self.u32(cred.wrapping_add(layout.gid), "credentials")?,
            leader,
            exe: mm.map(|mm| self.exe_of(mm, paths)).transpose()?.flatten(),
            mm,
            cgroup: self.cgroup_of(leader, paths)?,
            tty: self.controlling_tty(leader)?,
            kernel_thread: flags & PF_KTHREAD != 0,
            worker: flags & PF_WQ_WORKER != 0,
            threads,
        })
    }

    /// The memory of a process: its leader may have ended while other threads live.
    fn mm_of(&self, threads: &[Thread]) -> Result<Option<Gva>, KernelError> {
        for thread in threads {
            let mm = self.pointer(thread.task.wrapping_add(self.profile.task.mm), "task")?;
            if mm.0 != 0 {
                return Ok(Some(mm));
            }
        }
        Ok(None)
    }

    fn exe_of(&self, mm: Gva, paths: &mut Paths) -> Result<Option<String>, KernelError> {
        let Some(file) = self.exe_file(mm)? else { return Ok(None) };
        if let Some(known) = paths.exes.get(&file) {
            return Ok(Some(known.clone()));
        }
        let path = self.file_path(file)?;
        paths.exes.insert(file, path.clone());
        Ok(Some(path))
    }

    fn cgroup_of(&self, leader: Gva, paths: &mut Paths) -> Result<Option<String>, KernelError> {
        let Some(cgroup) = self.default_cgroup(leader)? else { return Ok(None) };
        if let Some(known) = paths.cgroups.get(&cgroup) {
            return Ok(known.clone());
        }
        let path = self.path_of_cgroup(cgroup)?;
        paths.cgroups.insert(cgroup, path.clone());
        Ok(path)
    }

    fn threads(&self, leader: Gva, left: &Budget) -> Result<Vec<Thread>, KernelError> {
        let layout = &self.profile.task;
        let signal = self.pointer(leader.wrapping_add(layout.signal), "task")?;
        let head = signal.wrapping_add(layout.thread_head);
        let mut threads = Vec::new();
        self.for_each_in_list(head, "thread list", &mut |at| {
            if !left.take(1) {
                return Err(KernelError::Torn { what: "thread list", at, why: TOO_MANY });
            }
            threads.push(self.thread(Gva(at.0.wrapping_sub(layout.thread_node)))?);
            Ok(())
        })?;
        Ok(threads)
    }

    pub(crate) fn thread(&self, task: Gva) -> Result<Thread, KernelError> {
        const WHAT: &str = "task";
        let layout = &self.profile.task;
        let word = |offset: u64| self.u32(task.wrapping_add(offset), WHAT);
        let is_set = |member| self.number(task, member, WHAT).map(|n| n != 0);
        Ok(Thread {
            task,
            tid: word(layout.pid)?,
            on_cpu: is_set(layout.on_cpu)?,
            queued: is_set(layout.on_rq)?,
            exiting: word(layout.flags)? & PF_EXITING != 0,
            dead: is_set(layout.exit_state)?,
        })
    }
}

fn comm_len(told: u64) -> usize {
    usize::try_from(told).unwrap_or(COMM_LIMIT).min(COMM_LIMIT)
}
