//! How long planning keeps a VM paused, by the number of its processes and the size of its memory, and how long the
//! guest's kernel takes to be found before that.

use crate::Failure;
use crate::support::cleanup;
use crate::support::machine::{elision, json_of, socket, start};
use elision_testbed::{GuestOptions, Spawn};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Processes in the VM beside those that it always has, and its memory in MiB.
pub(crate) const VMS: [(usize, u64); 5] = [(10, 512), (10, 4096), (1000, 1024), (1000, 4096), (5000, 4096)];

/// Times in milliseconds for one VM.
pub(crate) struct Planned {
    pub(crate) processes: usize,
    pub(crate) memory: u64,
    pub(crate) times: Vec<f64>,
    /// Before the pause: finding a kernel that was seen before, and one that was not.
    pub(crate) known: Vec<f64>,
    pub(crate) unknown: Vec<f64>,
}

/// One VM: `planning_ms` and `kernel_ms` of `elision plan`.
pub(crate) fn measure(
    options: &GuestOptions,
    (processes, memory): (usize, u64),
    runs: usize,
) -> Result<Planned, Failure> {
    println!("VM of {memory} MiB with {processes} processes: booting");
    let options = options.clone().memory_mib(memory);
    let folder = Path::new("crowded");
    let mut guest = start(&options, folder)?;
    guest.control().spawn(&Spawn::new("crowd", "heap=16K", &format!("crowd={processes}")))?;
    guest.control().spawn(&Spawn::new("vault", "heap=16M,stack,thp", "sleep=20ms").comm("vault"))?;
    let words = ["plan", "--qmp", &socket(folder), "--exclude", "comm=vault"].map(str::to_owned);
    let (mut times, mut known, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        unknown.push(without_cache(&words)?);
        let planned = json_of(&words, &[0])?;
        times.push(time(&planned, "planning_ms")?);
        known.push(time(&planned, "kernel_ms")?);
    }
    cleanup::end_last();
    drop(guest);
    Ok(Planned { processes, memory, times, known, unknown })
}

fn time(planned: &Value, name: &str) -> Result<f64, Failure> {
    Ok(planned[name].as_f64().ok_or("elision plan names no time")?)
}

/// How long it takes to find the kernel with an empty cache of kernels.
fn without_cache(words: &[String]) -> Result<f64, Failure> {
    let cache = tempfile::tempdir()?;
    let output =
        Command::new(elision()?).args(words).arg("--json").env("XDG_CACHE_HOME", cache.path()).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned().into());
    }
    time(&serde_json::from_slice(&output.stdout)?, "kernel_ms")
}
