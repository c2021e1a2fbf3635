//! How long planning keeps a VM paused, by the number of its processes and the size of its memory.

use super::Failure;
use super::cleanup;
use super::machine::{json_of, socket, start};
use elision_testbed::{GuestOptions, Spawn};
use std::fmt::Write;
use std::path::Path;

/// Processes in the VM beside those that it always has, and its memory in MiB.
const VMS: [(usize, u64); 5] = [(10, 512), (10, 4096), (1000, 1024), (1000, 4096), (10_000, 4096)];

/// The section of the page.
pub(crate) fn section(kernel: &str, runs: usize) -> Result<String, Failure> {
    let mut text = "## Planning while the VM is paused\n\n\
                    | processes | MiB | one process excluded, ms | ms for each GiB |\n|---:|---:|---:|---:|\n"
        .to_owned();
    for (processes, memory) in VMS {
        println!("VM of {memory} MiB with {processes} processes: booting");
        let times = one(kernel, processes, memory, runs)?;
        let [least, median, most] = super::summary(&times);
        let gib = f64::from(u32::try_from(memory)?) / 1024.0;
        let _ = writeln!(
            text,
            "| {processes} | {memory} | {median:.1} ({least:.1}-{most:.1}) | {:.1} |",
            median / gib
        );
    }
    text.push_str(
        "\n`planning_ms` of `elision plan`: everything that a save finds out while the VM stands still. \
         What is cleared in objects that the guest's kernel has freed is found out in the copy, when the VM \
         runs again.\n\n",
    );
    Ok(text)
}

fn one(kernel: &str, processes: usize, memory: u64, runs: usize) -> Result<Vec<f64>, Failure> {
    let options = GuestOptions::new(kernel).memory_mib(memory);
    let folder = Path::new("crowded");
    let mut guest = start(&options, folder)?;
    guest.control().spawn(&Spawn::new("crowd", "heap=16K", &format!("crowd={processes}")))?;
    guest.control().spawn(&Spawn::new("vault", "heap=16M,stack,thp", "sleep=20ms").comm("vault"))?;
    let words = ["plan", "--qmp", &socket(folder), "--exclude", "comm=vault"].map(str::to_owned);
    let mut times = Vec::new();
    for _ in 0..runs {
        let planned = json_of(&words, &[0])?;
        times.push(planned["planning_ms"].as_f64().ok_or("elision plan names no time")?);
    }
    cleanup::end_last();
    drop(guest);
    Ok(times)
}
