//! How long planning keeps a VM paused, by the number of its processes and the size of its memory.

use crate::Failure;
use crate::support::cleanup;
use crate::support::machine::{json_of, socket, start};
use elision_testbed::{GuestOptions, Spawn};
use std::path::Path;

/// Processes in the VM beside those that it always has, and its memory in MiB.
pub(crate) const VMS: [(usize, u64); 5] = [(10, 512), (10, 4096), (1000, 1024), (1000, 4096), (5000, 4096)];

/// Times in milliseconds for one VM.
pub(crate) struct Planned {
    pub(crate) processes: usize,
    pub(crate) memory: u64,
    pub(crate) times: Vec<f64>,
}

/// One VM: `planning_ms` of `elision plan`.
pub(crate) fn measure(
    kernel: &str,
    (processes, memory): (usize, u64),
    runs: usize,
) -> Result<Planned, Failure> {
    println!("VM of {memory} MiB with {processes} processes: booting");
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
    Ok(Planned { processes, memory, times })
}
