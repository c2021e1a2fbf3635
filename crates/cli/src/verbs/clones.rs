//! `elision restore --clones N`: many VMs from one image, each with a folder of its own.
//!
//! ```text
//! FOLDER/1/qmp.sock       its QMP socket
//! FOLDER/1/disk-1.qcow2   what it writes to its first disk
//! FOLDER/1/...            its other sockets, and the files that it writes
//! FOLDER/2/...
//! ```

use super::restore::{RestoredVm, one};
use crate::args::RestoreArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_memory::{GuestMemory, Wishes};
use crate::in_use::written;
use crate::output::{Output, table};
use crate::text::{count, printable};
use elision_image::Image;
use elision_qemu::{Overlay, Restored, for_clone};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

#[derive(Serialize)]
struct Clones {
    image: PathBuf,
    folder: PathBuf,
    clones: Vec<RestoredVm>,
    /// From the start of this command until the last one runs.
    total_ms: f64,
}

/// Starts `number` VMs; either all run, or none and nothing is left of them.
pub(super) fn run(
    args: &RestoreArgs,
    image: &Image,
    wishes: Wishes,
    number: u16,
    begin: Instant,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let folder = match &args.folder {
        Some(folder) => folder.clone(),
        None => beside(&args.image),
    };
    let folder = std::path::absolute(&folder).map_err(|e| Failure::io("find", &folder, &e))?;
    let recorded = &image.manifest().vmm.command;
    let command = if args.command.is_empty() { recorded } else { &args.command };
    refuse_changing(&for_clone(command, &folder)?.1)?;
    let memory = GuestMemory::of(image, wishes)?;
    create(&folder).map_err(|e| e.with_help("Give a folder that does not exist yet by --folder FOLDER"))?;
    let _lock = lock(&folder)?;
    let bar = out.progress("starting clones", number.into());
    // None runs before all are started: they would take the processors from each other.
    let folders = (1..=number).map(|n| folder.join(n.to_string())).collect();
    let started = at_once(folders, workers(), |folder| {
        let vm = clone(args, image, &memory, command, &folder);
        bar.inc(1);
        vm
    });
    bar.finish_and_clear();
    let mut failures = Vec::new();
    let started = well(started, &mut failures);
    let pids: Vec<_> = started.iter().map(|(vm, _)| vm.pid).collect();
    let mut clones: Vec<_> = Vec::new();
    if failures.is_empty() {
        let running = at_once(started, workers(), |(mut vm, restored)| {
            if !args.paused {
                vm.go_on(restored, begin)?;
            }
            Ok(vm)
        });
        clones = well(running, &mut failures);
    }
    if failures.is_empty() {
        // All agents at the same time: those that came later would get ever less of the processors beside guests that run.
        let in_order = at_once(clones, pids.len(), |mut vm| vm.put_in_order(args, image).map(|()| vm));
        clones = well(in_order, &mut failures);
    }
    if let Some(failure) = failures.into_iter().next() {
        end(&pids, &folder);
        return Err(failure);
    }
    let total_ms = begin.elapsed().as_secs_f64() * 1000.0;
    out.result(&Clones { image: args.image.clone(), folder, clones, total_ms }, human)?;
    Ok(Exit::Done)
}

/// What went well; the rest joins the failures.
fn well<T>(results: Vec<Result<T, Failure>>, failures: &mut Vec<Failure>) -> Vec<T> {
    results.into_iter().filter_map(|result| result.map_err(|failure| failures.push(failure)).ok()).collect()
}

/// `IMAGE-clones`.
fn beside(image: &Path) -> PathBuf {
    let mut name = OsString::from(image.file_name().unwrap_or_default());
    name.push("-clones");
    image.with_file_name(name)
}

fn create(folder: &Path) -> Result<(), Failure> {
    DirBuilder::new().mode(0o700).create(folder).map_err(|e| Failure::io("create", folder, &e))
}

/// For as long as clones are started: what `elision gc` takes for left over may be just made.
fn lock(folder: &Path) -> Result<File, Failure> {
    let lock = File::open(folder).map_err(|e| Failure::io("open", folder, &e))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| Failure::io("lock", folder, &e.into()))?;
    Ok(lock)
}

fn clone(
    args: &RestoreArgs,
    image: &Image,
    memory: &GuestMemory,
    command: &[String],
    folder: &Path,
) -> Result<(RestoredVm, Restored), Failure> {
    create(folder)?;
    let (command, overlays) = for_clone(command, folder)?;
    overlays.iter().try_for_each(Overlay::create)?;
    one(args, image, (memory, false), (&command, false), &folder.join("qmp.sock"), Instant::now())
}

/// How many VMs are started at the same time: each waits for its QEMU now and then.
fn workers() -> usize {
    2 * std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does something with each of `items`, with some of them at the same time, and with none any more when one has
/// failed. What is done stands in the order of the items.
fn at_once<I: Send, T: Send>(
    items: Vec<I>,
    workers: usize,
    work: impl Fn(I) -> Result<T, Failure> + Sync,
) -> Vec<Result<T, Failure>> {
    let queue = Mutex::new((items.into_iter().enumerate(), false));
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let next = || {
                    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                    if queue.1 { None } else { queue.0.next() }
                };
                while let Some((i, item)) = next() {
                    let result = work(item);
                    queue.lock().unwrap_or_else(PoisonError::into_inner).1 |= result.is_err();
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(i, result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// A base that another VM writes would change under its overlays.
fn refuse_changing(overlays: &[Overlay]) -> Result<(), Failure> {
    let written = written(overlays.iter().map(|overlay| overlay.base.clone()));
    let Some(disk) = written.first() else { return Ok(()) };
    let message = format!(
        "{} is being written, and the clones' disks lie over it",
        printable(&disk.display().to_string())
    );
    let help = "End the VM that uses it, or give a command with a copy of the disk as it was at the save";
    Err(Failure::new(Exit::Failed, message).with_help(help))
}

/// Takes back what was started.
fn end(clones: &[u32], folder: &Path) {
    for pid in clones {
        let process = i32::try_from(*pid).ok().and_then(Pid::from_raw);
        if let Some(Err(error)) = process.map(|process| kill_process(process, Signal::KILL)) {
            tracing::warn!(pid, %error, "cannot end a clone");
        }
    }
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!(%error, "cannot remove {}", folder.display());
    }
}

fn human(clones: &Clones) -> String {
    let rows = clones.clones.iter().map(|vm| {
        let qmp = printable(&vm.qmp.display().to_string());
        let addresses = match vm.network_cards() {
            None => "those of the image".to_owned(),
            Some(cards) => cards.iter().map(|card| card.to.to_string()).collect::<Vec<_>>().join(" "),
        };
        vec![vm.pid.to_string(), format!("{:.0} ms", vm.total_ms), qmp, addresses]
    });
    let head = count(clones.clones.len() as u64, "VM");
    format!(
        "{head} after {:.0} ms\n\n{}",
        clones.total_ms,
        table(&[">PID", ">STARTED IN", "QMP SOCKET", "NETWORK CARDS"], rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_stands_beside_the_image() {
        assert_eq!(beside(Path::new("a/web.elision")), Path::new("a/web.elision-clones"));
        assert_eq!(beside(Path::new("web")), Path::new("web-clones"));
    }
}
