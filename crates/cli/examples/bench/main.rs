//! The benchmark: `elision save` and `elision restore` beside what QEMU itself has, on the same VM in the same run.
//!
//! ```text
//! a VM    boot ─> fill, churn, vault ─> N rounds of [ save by each way in turn
//!                                       └> restore by each way, the source stopped; an empty VM ]
//! VMs     all ways | more and less free memory | 0.5, 2, 8 GiB with the same in them | planning: 10 to 5000 processes
//! ```
//! Writes the medians to `docs/performance.md`, with plots beside it. `./bench` runs it.

mod limits;
mod page;
mod planning;
mod plot;
mod rounds;
#[path = "../support/mod.rs"]
mod support;
mod ways;

use clap::Parser;
use elision_testbed::GuestOptions;
use rounds::Size;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use support::cleanup::Cleanup;
use support::{Failure, machine};

/// With all ways and with restores.
const MAIN: Size = Size { memory: 2048, fill: 1024, freed: 256 };
/// With little in it, and with little free.
const OTHERS: [Size; 2] =
    [Size { memory: 512, fill: 256, freed: 64 }, Size { memory: 2048, fill: 1536, freed: 0 }];
/// Sizes of VMs with the same in them.
const SIZES: [u64; 3] = [512, 2048, 8192];
/// What is filled there, in MiB.
const SAME: u64 = 192;

/// Measures saves and restores, of Elision and of QEMU alone, and writes docs/performance.md.
#[derive(Parser)]
#[command(name = "bench", max_term_width = 100)]
struct Args {
    /// Number of rounds; in each, every way saves and restores once.
    #[arg(long, default_value = "5")]
    runs: NonZero<usize>,
    /// Two rounds, and no VM of more than 2 GiB.
    #[arg(long)]
    quick: bool,
    /// Kernel of the VM: 5.10, 6.1, 6.12 or 7.
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// QEMU of the VM: 7.2 or 10, which is fetched unless the machine has it; without this the machine's own.
    #[arg(long, value_name = "VERSION")]
    qemu: Option<String>,
    /// The folder that performance.md and its plots go to, instead of docs.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Everything that was measured.
pub(crate) struct Measured {
    pub(crate) rounds: usize,
    pub(crate) main: rounds::Result,
    pub(crate) others: Vec<rounds::Result>,
    pub(crate) sizes: Vec<rounds::Result>,
    pub(crate) planned: Vec<planning::Planned>,
    pub(crate) host: page::Host,
}

fn main() -> ExitCode {
    match bench(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe benchmark failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<(), Failure> {
    let output = std::path::absolute(args.output.as_deref().unwrap_or(Path::new("docs")))?;
    let build = machine::build_folder()?;
    let _cleanup = Cleanup::new(build.parent().unwrap_or(&build), "bench-")?;
    let mut options = GuestOptions::new(&args.kernel);
    if let Some(qemu) = &args.qemu {
        options = options.qemu(qemu);
    }
    machine::get_ready(&options, &args.kernel)?;
    let rounds = if args.quick { 2 } else { args.runs.get() };
    let few = rounds.min(3);
    let host = page::Host::of(&options, &args.kernel)?;
    let can = ways::Can::of(&options)?;
    let small = |memory: u64| !args.quick || memory <= 2048;
    let run = |size: Size, restores| rounds::run(&options, size, &ways::pair(), rounds, restores);
    let measured = Measured {
        rounds,
        main: rounds::run(&options, MAIN, &ways::all(can), rounds, true)?,
        others: OTHERS.into_iter().map(|size| run(size, size.memory == 512)).collect::<Result<_, _>>()?,
        sizes: (SIZES.into_iter().filter(|memory| small(*memory)))
            .map(|memory| Size { memory, fill: SAME, freed: 0 })
            .map(|size| rounds::run(&options, size, &ways::pair(), few, false))
            .collect::<Result<_, _>>()?,
        planned: (planning::VMS.into_iter().filter(|vm| small(vm.1)))
            .map(|vm| planning::measure(&options, vm, rounds))
            .collect::<Result<_, _>>()?,
        host,
    };
    page::plots(&measured, &output.join("performance"))?;
    let text = page::text(&measured, &elision_image::timestamp(SystemTime::now()))?;
    println!("\n{text}");
    Ok(std::fs::write(output.join("performance.md"), text)?)
}

pub(crate) fn mib(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
