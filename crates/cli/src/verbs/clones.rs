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
use elision_qemu::{Overlay, for_clone};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
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
    let memory = GuestMemory::of(image, wishes)?;
    create(&folder).map_err(|e| e.with_help("Give a folder that does not exist yet by --folder FOLDER"))?;
    let bar = out.progress("starting clones", number.into());
    let mut clones = Vec::new();
    for n in 1..=number {
        let started = clone(args, image, &memory, &folder.join(n.to_string()));
        let in_order = started.and_then(|vm| {
            clones.push(vm);
            clones.last_mut().map_or(Ok(()), |vm| vm.put_in_order(args, image))
        });
        if let Err(failure) = in_order {
            bar.finish_and_clear();
            end(&clones, &folder);
            return Err(failure);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let total_ms = begin.elapsed().as_secs_f64() * 1000.0;
    out.result(&Clones { image: args.image.clone(), folder, clones, total_ms }, human)?;
    Ok(Exit::Done)
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

fn clone(
    args: &RestoreArgs,
    image: &Image,
    memory: &GuestMemory,
    folder: &Path,
) -> Result<RestoredVm, Failure> {
    let begin = Instant::now();
    create(folder)?;
    let recorded = &image.manifest().vmm.command;
    let command = if args.command.is_empty() { recorded } else { &args.command };
    let (command, overlays) = for_clone(command, folder)?;
    refuse_changing(&overlays)?;
    overlays.iter().try_for_each(Overlay::create)?;
    one(args, image, (memory, false), &command, &folder.join("qmp.sock"), begin)
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
fn end(clones: &[RestoredVm], folder: &Path) {
    for vm in clones {
        let pid = i32::try_from(vm.pid).ok().and_then(Pid::from_raw);
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::KILL)) {
            tracing::warn!(pid = vm.pid, %error, "cannot end a clone");
        }
    }
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!(%error, "cannot remove {}", folder.display());
    }
}

fn human(clones: &Clones) -> String {
    let rows = clones.clones.iter().map(|vm| {
        let qmp = printable(&vm.qmp.display().to_string());
        vec![vm.pid.to_string(), format!("{:.0} ms", vm.total_ms), qmp]
    });
    let head = count(clones.clones.len() as u64, "VM");
    format!(
        "{head} after {:.0} ms\n\n{}",
        clones.total_ms,
        table(&[">PID", ">STARTED IN", "QMP SOCKET"], rows)
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
