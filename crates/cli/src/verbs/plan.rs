//! `elision plan`: what a save would leave out of a VM, and what stands in its way.

use crate::args::PlanArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, table};
use crate::relations;
use crate::session::{Session, open_kernel, options, rehearse, vcpu_states_of, while_paused};
use crate::summary;
use crate::text::{count, or_dash, printable, size};
use elision_image::Guest;
use elision_kernel::Kernel;
use elision_plan::{Outcome, PlanError, PlanSummary, Selection, VcpuAction, plan, plan_late};
use elision_policy::Policy;
use elision_qemu::Vm;
use serde::Serialize;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// How long a moment is sought in which every excluded process holds still.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the guest runs between two looks.
const BREAK: Duration = Duration::from_millis(20);

/// The column that is only there if dependents are.
const DEPENDENT_OF: usize = 5;

#[derive(Serialize)]
struct Planned {
    guest: Guest,
    policy: Policy,
    excluded: Vec<Excluded>,
    /// What the excluded processes share with those that stay.
    relations: Vec<relations::Row>,
    plan: PlanSummary,
    vcpus: Vec<VcpuRow>,
    /// Whether a save with the same arguments would make an image.
    would_save: bool,
    /// How often the VM was paused.
    looks: u32,
    /// Length of the last pause.
    pause_ms: f64,
    /// The part of it that went into planning, as it would in the pause of a save.
    planning_ms: f64,
    /// How long it took to find the guest's kernel, before the pause.
    kernel_ms: f64,
}

#[derive(Serialize)]
struct Excluded {
    pid: u32,
    ppid: u32,
    uid: u32,
    threads: usize,
    comm: String,
    exe: Option<String>,
    frames: u64,
    /// The process for which it is left out, if no selector selects it.
    dependent_of: Option<u32>,
}

#[derive(Serialize)]
struct VcpuRow {
    index: usize,
    clear_vector: bool,
    clear_general: bool,
    interrupt: Option<u8>,
}

/// How long the last look took.
struct Times {
    pause: Duration,
    planning: Duration,
}

pub(crate) fn run(args: &PlanArgs, out: &mut Output) -> Result<Exit, Failure> {
    let policy = args.selection.policy()?;
    let Session { mut vm, ram } = Session::attach(&args.qmp)?;
    let begin = Instant::now();
    let kernel = open_kernel(&mut vm, &ram)?;
    let kernel_ms = begin.elapsed().as_secs_f64() * 1000.0;
    if !vm.status()?.running {
        out.note("The VM is paused. It stays so");
    }
    let bar = out.spinner("looking");
    let looked = look(&mut vm, &kernel, &policy);
    bar.finish_and_clear();
    let planned = Planned { kernel_ms, ..looked? };
    out.result(&planned, human)?;
    Ok(if planned.would_save { Exit::Done } else { Exit::Refused })
}

fn look(vm: &mut Vm, kernel: &Kernel<'_>, policy: &Policy) -> Result<Planned, Failure> {
    let runs = vm.status()?.running;
    if runs {
        rehearse(vm, kernel, policy);
    }
    let begin = Instant::now();
    for looks in 1.. {
        let (answer, pause) = while_paused(vm, |vm| {
            kernel.ram().refresh();
            let vcpus = vcpu_states_of(kernel, &vm.registers()?)?;
            // What stands in the way is wanted as a list, not as a refusal.
            let options = options(policy, true);
            let begin = Instant::now();
            let planned = kernel.ram().fetching(|| {
                let selection = Selection::of(kernel, policy)?;
                let mut outcome = plan(kernel, &selection, &vcpus, options)?;
                let planning = begin.elapsed();
                // A save does this in the copy.
                let late = plan_late(&kernel.over(kernel.ram()).with_slabs(&outcome.slabs))?;
                outcome.plan.add_late(late);
                let relations = relations::rows(selection.relations(kernel)?, &selection);
                Ok((selection, relations, outcome, planning))
            });
            kernel.ram().check()?;
            Ok(planned)
        })?;
        match answer {
            Ok((selection, relations, outcome, planning)) => {
                let times = Times { pause, planning };
                let planned = Planned::new(kernel, policy, &selection, outcome, looks, times);
                return Ok(Planned { relations, ..planned });
            }
            Err(error) if may_try_again(&error, runs, begin) => std::thread::sleep(BREAK),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::new(Exit::Refused, "The excluded processes never held still"))
}

fn may_try_again(error: &PlanError, runs: bool, begin: Instant) -> bool {
    runs && error.is_transient() && begin.elapsed() < PATIENCE
}

impl Planned {
    fn new(
        kernel: &Kernel<'_>,
        policy: &Policy,
        selection: &Selection,
        outcome: Outcome,
        looks: u32,
        times: Times,
    ) -> Self {
        let plan = outcome.plan.summary;
        let excluded = selection.excluded().map(|process| Excluded {
            pid: process.pid,
            ppid: process.parent,
            uid: process.uid,
            threads: process.threads.len(),
            comm: process.comm.clone(),
            exe: process.exe.clone(),
            frames: plan.frames_by_owner.get(&process.pid).copied().unwrap_or(0),
            dependent_of: selection.dependents.get(&process.pid).map(|relation| relation.excluded),
        });
        Self {
            guest: Guest {
                kernel_release: kernel.release().to_owned(),
                build_id: kernel.build_id().to_owned(),
            },
            policy: policy.clone(),
            excluded: excluded.collect(),
            relations: Vec::new(),
            vcpus: outcome.vcpus.iter().map(VcpuRow::from).collect(),
            would_save: plan.unaccounted.is_empty() || policy.save.best_effort(),
            plan,
            looks,
            pause_ms: times.pause.as_secs_f64() * 1000.0,
            planning_ms: times.planning.as_secs_f64() * 1000.0,
            kernel_ms: 0.0,
        }
    }
}

impl From<&VcpuAction> for VcpuRow {
    fn from(action: &VcpuAction) -> Self {
        let VcpuAction { index, clear_vector, clear_general, interrupt } = *action;
        Self { index, clear_vector, clear_general, interrupt }
    }
}

fn human(planned: &Planned) -> String {
    let mut text = format!("Guest: Linux {}\n", printable(&planned.guest.kernel_release));
    let excluded = &planned.excluded;
    let _ = writeln!(text, "{} would be left out\n", count(excluded.len() as u64, "process"));
    if !excluded.is_empty() {
        let rows = excluded.iter().map(|process| {
            vec![
                process.pid.to_string(),
                process.uid.to_string(),
                process.threads.to_string(),
                size(summary::frame_bytes(process.frames)),
                printable(&process.comm),
                process.dependent_of.map_or_else(String::new, |pid| pid.to_string()),
                or_dash(process.exe.as_deref()),
            ]
        });
        let mut titles = vec![">PID", ">UID", ">THREADS", ">MEMORY", "COMM", ">FOR", "EXE"];
        let mut rows: Vec<_> = rows.collect();
        if excluded.iter().all(|process| process.dependent_of.is_none()) {
            titles.remove(DEPENDENT_OF);
            rows.iter_mut().for_each(|row| drop(row.remove(DEPENDENT_OF)));
        }
        text.push_str(&table(&titles, rows));
        text.push('\n');
    }
    if !planned.relations.is_empty() {
        let _ = writeln!(text, "Shared with processes that stay\n{}", relations::tree(&planned.relations));
    }
    // The excluded processes stand above, with their memory; others may have marked some of theirs.
    let mut counts = planned.plan.clone();
    counts.frames_by_owner.retain(|pid, _| excluded.iter().all(|process| process.pid != *pid));
    text.push_str(&summary::plan(&counts));
    let _ =
        write!(text, "\nThe VM was paused {}, last for {:.0} ms. ", times(planned.looks), planned.pause_ms);
    text.push_str(if planned.would_save {
        "A save would make an image.\n"
    } else {
        "A save would refuse: what is not accounted for would stay in the image.\n"
    });
    text
}

fn times(n: u32) -> String {
    if n == 1 { "once".to_owned() } else { format!("{n} times") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elision_plan::DropReason;
    use serde_json::json;

    fn planned(unaccounted: Vec<String>) -> Planned {
        let would_save = unaccounted.is_empty();
        Planned {
            guest: Guest { kernel_release: "6.1.0".to_owned(), build_id: "ab".to_owned() },
            policy: Policy { selectors: vec!["pid=812".parse().unwrap()], ..Policy::default() },
            excluded: vec![Excluded {
                pid: 812,
                ppid: 1,
                uid: 101,
                threads: 1,
                comm: "psql".to_owned(),
                exe: None,
                frames: 2,
                dependent_of: None,
            }],
            relations: vec![],
            plan: PlanSummary {
                dropped_frames: [(DropReason::Anonymous, 2)].into(),
                frames_by_owner: [(812, 2)].into(),
                unaccounted,
                ..PlanSummary::default()
            },
            vcpus: vec![VcpuRow { index: 0, clear_vector: true, clear_general: false, interrupt: Some(246) }],
            would_save,
            looks: 1,
            pause_ms: 12.5,
            planning_ms: 2.5,
            kernel_ms: 7.5,
        }
    }

    #[test]
    fn the_json_fields_are_the_documented_ones() {
        let expected = json!({
            "guest": {"kernel_release": "6.1.0", "build_id": "ab"},
            "policy": {
                "selectors": [{"kind": "pid", "pattern": "812", "optional": false, "children": true}],
                "save": {},
            },
            "excluded": [{
                "pid": 812, "ppid": 1, "uid": 101, "threads": 1, "comm": "psql", "exe": null, "frames": 2,
                "dependent_of": null,
            }],
            "relations": [],
            "plan": {
                "dropped_frames": {"anonymous": 2}, "edited_bytes": {}, "frames_by_owner": {"812": 2},
                "kept_frames": {}, "unaccounted": [],
            },
            "vcpus": [{"index": 0, "clear_vector": true, "clear_general": false, "interrupt": 246}],
            "would_save": true,
            "looks": 1,
            "pause_ms": 12.5,
            "planning_ms": 2.5,
            "kernel_ms": 7.5,
        });
        assert_eq!(serde_json::to_value(planned(vec![])).unwrap(), expected);
    }

    #[test]
    fn what_stands_in_the_way_is_said() {
        assert!(human(&planned(vec![])).contains("A save would make an image"));
        let text = human(&planned(vec!["process 812 has 8 KiB in swap".to_owned()]));
        assert!(text.contains("8 KiB in swap") && text.contains("A save would refuse"), "{text}");
    }
}
