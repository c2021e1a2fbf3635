//! From a policy to the processes that it leaves out.

use crate::regions::{self, RegionRule};
use crate::relations::{self, Relation};
use crate::{FileRules, PlanError};
use elision_kernel::{Kernel, Process};
use elision_policy::{Dependents, Policy, ProcessFacts, Selector};
use std::collections::{BTreeMap, BTreeSet};

/// All processes of the guest, and which of them are left out.
#[derive(Clone, Debug)]
pub struct Selection {
    /// All processes.
    pub processes: Vec<Process>,
    /// Process ids of the excluded ones.
    pub excluded: BTreeSet<u32>,
    /// Those among them that no selector selects: dependents, each with the relation for which it was taken along.
    pub dependents: BTreeMap<u32, Relation>,
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
        let arguments = Arguments::read(kernel, policy, &processes)?;
        let mut excluded = BTreeSet::new();
        for selector in policy.processes() {
            let mut matched = false;
            for process in processes.iter().filter(|p| selector.matches(&arguments.facts(p))) {
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
        let dependents = match policy.save.dependents() {
            Dependents::Exclude => relations::take_dependents(kernel, &processes, &mut excluded)?,
            Dependents::Keep | Dependents::Refuse => BTreeMap::new(),
        };
        let regions = regions::rules(policy, &processes, &excluded, &arguments);
        Ok(Self { processes, excluded, dependents, regions, files: FileRules::of(policy) })
    }

    /// The excluded processes.
    pub fn excluded(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(|p| self.excluded.contains(&p.pid))
    }

    /// Whether an address space of an excluded process is being changed at this moment, which the kernel does also while
    /// the process stands still, when it makes huge pages of it. What cannot be read is not.
    pub fn is_being_changed(&self, kernel: &Kernel<'_>) -> bool {
        self.excluded().filter_map(|p| p.mm).any(|mm| kernel.mm(mm).is_ok_and(|mm| mm.write_locked))
    }

    /// The processes that stay.
    pub fn kept(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(|p| !self.excluded.contains(&p.pid))
    }
}

/// The command lines of processes, read only where a selector asks for them.
#[derive(Default)]
pub(crate) struct Arguments(BTreeMap<u32, String>);

impl Arguments {
    fn read(kernel: &Kernel<'_>, policy: &Policy, processes: &[Process]) -> Result<Self, PlanError> {
        let mut found = BTreeMap::new();
        let is_asked_for = |process: &&Process| {
            let asks = |s: &&Selector| s.args.is_some() && s.may_match(&facts(process, None));
            process.mm.is_some() && policy.selectors.iter().any(|s| asks(&s))
        };
        for process in processes.iter().filter(is_asked_for) {
            let Some(text) = kernel.arguments(process)? else {
                let (pid, comm) = (process.pid, process.comm.clone());
                return Err(PlanError::NoCommandLine { pid, comm });
            };
            found.insert(process.pid, text);
        }
        Ok(Self(found))
    }

    /// What a selector is matched against.
    pub(crate) fn facts<'a>(&'a self, process: &'a Process) -> ProcessFacts<'a> {
        facts(process, self.0.get(&process.pid).map(String::as_str))
    }
}

fn facts<'a>(process: &'a Process, args: Option<&'a str>) -> ProcessFacts<'a> {
    ProcessFacts {
        pid: process.pid,
        comm: &process.comm,
        exe: process.exe.as_deref(),
        args,
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
