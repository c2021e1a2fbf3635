//! `elision save`: one checkpoint, from the stop of the VM to the image under its name.
//!
//! ```text
//! before   policy, target, RAM mapped, kernel found, memory for the copy taken, guardian on guard
//! pause    stop ─> vCPUs ─> plan ──busy──> run on for a moment, again
//!                           └──> RAM copied to memory ─> cont
//! --live   RAM copied to memory as QEMU sends it ─> stop ─> vCPUs ─> plan, the last of RAM ─> cont
//!          or stop ─> vCPUs ─> plan ─> snapshot begun ─> cont, RAM written as QEMU sends it
//! after    freed objects found in the copy and cleared
//!          device state redacted and written ─> exclusions ─> RAM written, checksums, sync, rename
//! ```
//! Every way out of the pause resumes a VM that ran before, and no image appears but at the end.

mod devices;
mod pause;
mod report;
mod sent;

use crate::agent::SaveAgent;
use crate::args::SaveArgs;
use crate::choices::LiveArg;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::session::{Session, open_kernel, rehearse, retry};
use elision_image::{
    Completeness, Guest, ImageWriter, Manifest, Precopy, Times, Vmm, partial_path, timestamp,
};
use elision_kernel::Kernel;
use elision_memory::Ram;
use elision_plan::{SeenBlocks, Selection};
use elision_policy::Policy;
use elision_qemu::Vm;
use pause::{Captured, How, Task};
use report::Saved;
use std::cell::RefCell;
use std::num::NonZero;
use std::thread;
use std::time::Instant;

/// Said of a VM that is paused. Whether somebody wants it so cannot be known.
const PAUSED: &str = "The VM is paused. It stays so; QEMU calls its state `postmigrate` afterwards";
/// Said when an unfinished image shows that nobody was left to resume the VM.
const KILLED: &str = "The VM is paused, perhaps by an earlier save to this name that was killed together with \
                      its guardian process. It stays paused: continue it by `cont` in its monitor";

/// Said where precopy was asked for, each with its help.
const FORGETS: [&str; 2] = [
    "This QEMU forgets writes of the guest while it sends memory: versions before 9.0 do so without KVM",
    "Save with `--live=snapshot` or without --live",
];
const NO_MEMORY: [&str; 2] = [
    "The host cannot spare the memory for a copy of the VM's",
    "It may take half of what is available. Save with `--live=snapshot`, which needs none, or without --live",
];

/// Said where QEMU sends memory that goes to the disk at once.
const NO_BASE: &str = "Memory that QEMU sends cannot be compared with another image on its way";
const NO_BASE_HELP: &str =
    "Start the VM with shared RAM (`elision run`), or save it with `--live=precopy`, or without --base";

/// Said of `--live` for such a VM.
const STANDS_STILL: &str =
    "--live changes nothing for a VM that stands still: its memory is copied as without";

pub(crate) fn run(args: &SaveArgs, out: &mut Output) -> Result<Exit, Failure> {
    let begin = Instant::now();
    let done = |what| tracing::debug!(since_begin = ?begin.elapsed(), "{what}");
    let policy = args.selection.policy()?;
    let left_over = partial_path(&args.image)?.exists();
    let mut writer = ImageWriter::create(&args.image)?;
    if let Some(level) = args.compress {
        writer.compress(level.into());
    }
    if let Some(base) = &args.base {
        writer.build_on(base)?;
        done("base opened");
    }
    let Session { mut vm, ram } = Session::attach(&args.qmp)?;
    let runs = vm.status()?.running;
    if !runs {
        out.note(if left_over { KILLED } else { PAUSED });
    }
    if args.live.is_some() && !runs {
        out.note(STANDS_STILL);
    }
    let kernel = open_kernel(&mut vm, &ram)?;
    done("kernel found");
    // A selection that is wrong is wrong before the VM is stopped for it; that the guest changes while it
    // is read does not matter yet.
    Selection::of(&kernel, &policy).map(drop).or_else(|e| if e.is_transient() { Ok(()) } else { Err(e) })?;

    let mut agent = SaveAgent::meet(&args.agent, &mut vm, runs)?;
    let bar = out.spinner("copying memory");
    agent.prepare(&kernel, &policy)?;
    let how = match args.live.filter(|_| runs) {
        Some(live) => how_live(live, &mut vm, &ram, &kernel, &policy)?,
        None if vm.shares_ram() => {
            match retry(|| elision_plan::guess(&kernel)) {
                Ok(guess) => writer.make_room(&ram, &guess)?,
                Err(error) => tracing::debug!(%error, "memory for the copy is taken in the pause"),
            }
            How::Shared
        }
        None => {
            rehearse(&mut vm, &kernel, &policy);
            How::Stream
        }
    };
    if args.base.is_some() && !how.can_build_on() {
        return Err(Failure::new(Exit::Failed, NO_BASE).with_help(NO_BASE_HELP));
    }
    done("prepared");
    let seen = runs.then(|| RefCell::new(SeenBlocks::of(&kernel)));
    done("blocks of memory seen");
    let task = Task { kernel: &kernel, policy: &policy, how, seen, threads: threads(args) };
    let captured = pause::capture(&mut vm, &task, &mut writer, &mut agent);
    bar.finish_and_clear();
    done("captured");
    let Captured { guardian, selection, outcome, mut state, ram: stats, pause, looks } = captured?;

    let devices = devices::redact(&mut state, &policy, &selection, &outcome.vcpus)?;
    let mut bytes = Vec::new();
    state.write_to(&mut bytes)?;
    writer.write_state(&bytes)?;
    writer.write_exclusions(&outcome.plan)?;
    let manifest = manifest(&mut vm, &task, outcome.plan.summary, outcome.vcpus.len(), pause)?;
    let bar = out.progress("writing the image", vm.ram().file_len);
    let manifest = thread::scope(|scope| {
        scope.spawn(|| ram.unmap_pages());
        writer.finish(manifest, &|bytes| bar.inc(bytes))
    });
    bar.finish_and_clear();
    done("image finished");
    let manifest = manifest?;
    if let Err(error) = guardian.dismiss() {
        tracing::warn!(%error, "The image is whole, but its guardian could not be dismissed");
    }

    let saved = Saved::new(&args.image, &manifest, &selection, stats, devices, looks)
        .with_agent(agent.saved(&policy));
    out.result(&saved, report::human)?;
    Ok(Exit::Done)
}

/// Chooses how to save a VM that runs on, and prepares it.
fn how_live(
    live: LiveArg,
    vm: &mut Vm,
    ram: &Ram,
    kernel: &Kernel<'_>,
    policy: &Policy,
) -> Result<How, Failure> {
    // Planned for either: shared RAM is mapped by it, other RAM has its room.
    let guess = rehearse(vm, kernel, policy).unwrap_or_default();
    let obstacle = match () {
        () if !vm.tracks_writes() => Some(FORGETS),
        () if !Precopy::fits(ram, &guess) => Some(NO_MEMORY),
        () => None,
    };
    match (live, obstacle) {
        (LiveArg::Auto | LiveArg::Precopy, None) => return Ok(How::Precopy(Box::new(guess))),
        (LiveArg::Precopy, Some([what, help])) => {
            return Err(Failure::new(Exit::Failed, what).with_help(help));
        }
        (LiveArg::Auto, Some([why, _])) => tracing::debug!(why, "no precopy"),
        (LiveArg::Snapshot, _) => {}
    }
    if let Err(error) = ram.fill_in() {
        tracing::debug!(%error, "QEMU fills in its memory in the pause");
    }
    Ok(How::Snapshot)
}

fn threads(args: &SaveArgs) -> usize {
    args.threads.map_or_else(|| thread::available_parallelism().map_or(1, NonZero::get), usize::from)
}

fn manifest(
    vm: &mut Vm,
    task: &Task<'_>,
    summary: elision_plan::PlanSummary,
    vcpus: usize,
    pause: pause::Pause,
) -> Result<Manifest, Failure> {
    let completeness = if summary.unaccounted.is_empty() {
        Completeness::Complete
    } else {
        Completeness::BestEffort { unaccounted: summary.unaccounted.clone() }
    };
    let kernel = task.kernel;
    let blocks = &vm.ram().blocks;
    let ram_block = blocks.first().map(|block| block.name.clone()).unwrap_or_default();
    let ram_blocks = if blocks.len() > 1 { blocks.clone() } else { Vec::new() };
    Ok(Manifest {
        format: elision_image::FORMAT,
        id: String::new(),
        base: None,
        elision_version: env!("CARGO_PKG_VERSION").to_owned(),
        created: timestamp(pause.began),
        vmm: Vmm {
            version: vm.qmp().version().to_string(),
            machine: vm.machine_type()?.unwrap_or_default(),
            command: vm.process().command.clone(),
            ram_block,
            ram_blocks,
            vcpus: u32::try_from(vcpus).unwrap_or(u32::MAX),
        },
        guest: Guest { kernel_release: kernel.release().to_owned(), build_id: kernel.build_id().to_owned() },
        ram_layout: vm.layout().clone(),
        policy: serde_json::to_value(task.policy).map_err(|e| Failure::from_error(Exit::Failed, &e))?,
        plan: summary,
        completeness,
        times: Times { pause_ms: pause.length.as_secs_f64() * 1000.0, total_ms: 0.0 },
        way: task.how.way(),
        files: elision_image::Files::default(),
    })
}
