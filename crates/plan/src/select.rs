//! From a policy to the processes that it leaves out.

use crate::regions::{self, RegionRule};
use crate::{FileRules, PlanError};
use elision_kernel::{Kernel, Process};
use elision_policy::{Policy, ProcessFacts, Selector};
use std::collections::{BTreeMap, BTreeSet};

/// All processes of the guest, and which of them are left out.
#[derive(Clone, Debug)]
pub struct Selection {
    /// All processes.
    pub processes: Vec<Process>,
    /// Process ids of the excluded ones.
    pub excluded: BTreeSet<u32>,
    /// What is left out of processes that stay.
    pub regions: Vec<RegionRule>,
    /// What is left out of the page cache.
    pub files: FileRules,
}

impl Selection {
    /// The processes that a policy selects, with the descendants of those it selects with children.
    pub fn of(kernel: &Kernel<'_>, policy: &Policy) -> Result<Self, PlanError> {
        let processes = kernel.processes()?;
        let mut children: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
        for process in processes.iter().filter(|p| p.parent != p.pid) {
            children.entry(process.parent).or_default().push(process);
        }
        let mut excluded = BTreeSet::new();
        for selector in policy.processes() {
            let mut matched = false;
            for process in processes.iter().filter(|p| selector.matches(&facts(p))) {
                if process.kernel_thread && !names_one_process(selector) {
                    continue; // a uid or cgroup pattern means user processes
                }
                check(selector, process)?;
                matched = true;
                let mut todo = vec![process];
                while let Some(process) = todo.pop() {
                    if excluded.insert(process.pid) && selector.children {
                        todo.extend(children.get(&process.pid).into_iter().flatten());
                    }
                }
            }
            if !matched && !selector.optional {
                return Err(PlanError::NoMatch { selector: selector.to_string() });
            }
        }
        let regions = regions::rules(policy, &processes, &excluded);
        Ok(Self { processes, excluded, regions, files: FileRules::of(policy) })
    }

    /// The excluded processes.
    pub fn excluded(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(|p| self.excluded.contains(&p.pid))
    }

    /// The processes that stay.
    pub fn kept(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(|p| !self.excluded.contains(&p.pid))
    }
}

/// What a selector is matched against.
pub(crate) fn facts(process: &Process) -> ProcessFacts<'_> {
    ProcessFacts {
        pid: process.pid,
        comm: &process.comm,
        exe: process.exe.as_deref(),
        args: None,
        uid: process.uid,
        cgroup: process.cgroup.as_deref(),
        tty: process.tty.as_deref(),
    }
}

fn names_one_process(selector: &Selector) -> bool {
    use elision_policy::Kind;
    matches!(selector.criterion.kind(), Kind::Pid | Kind::Comm)
}

fn check(selector: &Selector, process: &Process) -> Result<(), PlanError> {
    let why = if process.kernel_thread {
        "it is a thread of the guest's kernel"
    } else if process.pid == 1 {
        "the guest's kernel panics when its first process ends"
    } else {
        return Ok(());
    };
    let (pid, comm) = (process.pid, process.comm.clone());
    Err(PlanError::Indispensable { selector: selector.to_string(), pid, comm, why })
}
