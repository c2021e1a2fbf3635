//! The benchmark: `elision save` and `elision restore` beside QEMU's own stopped migration to a file, on
//! the same VM in the same run.
//!
//! ```text
//! boot ─> fill, churn, vault ─> N rounds of [ save: nothing excluded, vault excluded, QEMU
//!                                           └> restore: the same three, the source stopped ]
//! ```
//! Writes the medians to `docs/benchmarks.md`. `./bench` runs it.

mod support;

use clap::Parser;
use elision_testbed::{Guest, GuestOptions, Spawn};
use serde_json::Value;
use std::fmt::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use support::cleanup::{self, Cleanup};
use support::machine::{self, json_of, socket};
use support::text::{count, size};
use support::{Failure, plain, planning, summary};

const OUTPUT_LIMIT: Duration = Duration::from_secs(120);
const WAYS: [Way; 3] = [Way::Plain, Way::Elided, Way::Qemu];

/// Measures saves and restores, of Elision and of QEMU alone, and writes docs/benchmarks.md.
#[derive(Parser)]
#[command(name = "bench", max_term_width = 100)]
struct Args {
    /// Number of rounds; each saves and restores three ways.
    #[arg(long, default_value = "5")]
    runs: NonZero<usize>,
    /// Memory of the VM in MiB; may be repeated.
    #[arg(long, value_name = "MIB", default_values_t = [512, 2048], value_parser = clap::value_parser!(u64).range(256..))]
    memory: Vec<u64>,
    /// Memory that a process in the VM fills, in MiB; by default half of the VM's.
    #[arg(long, value_name = "MIB")]
    fill: Option<u64>,
    /// Kernel of the VM: 5.10, 6.1, 6.12 or 7.
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// Where the result goes, instead of docs/benchmarks.md; `-` for stdout only.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// How a VM is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    Elided,
    Qemu,
}

impl Way {
    fn file(self) -> &'static Path {
        Path::new(match self {
            Self::Plain => "plain.elision",
            Self::Elided => "elided.elision",
            Self::Qemu => "vm.migration",
        })
    }
}

/// Figures of one way, one of each for each round.
#[derive(Default)]
struct Figures {
    pause: Vec<f64>,
    total: Vec<f64>,
    stored: Vec<f64>,
    running: Vec<f64>,
    output: Vec<f64>,
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
    let here = std::env::current_dir()?;
    let build = machine::build_folder()?;
    let _cleanup = Cleanup::new(build.parent().unwrap_or(&build), "bench-")?;
    machine::get_ready(&GuestOptions::new(&args.kernel), &args.kernel)?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let mut tables = String::new();
    let mut facts = Value::Null;
    for memory in &args.memory {
        let fill = args.fill.unwrap_or(memory / 2);
        let (table, of_vm) = one_size(args, *memory, fill)?;
        tables.push_str(&table);
        facts = of_vm;
    }
    tables.push_str(&planning::section(&args.kernel, args.runs.get())?);
    let text = page(args, &facts, &tables, load)?;
    println!("\n{text}");
    match &args.output {
        Some(path) if path.as_os_str() == "-" => {}
        Some(path) => std::fs::write(here.join(path), text)?,
        None => std::fs::write(here.join("docs/benchmarks.md"), text)?,
    }
    Ok(())
}

/// All rounds on a VM of one size; gives its table and what is known of the VM.
fn one_size(args: &Args, memory: u64, fill: u64) -> Result<(String, Value), Failure> {
    let options = GuestOptions::new(&args.kernel).memory_mib(memory);
    let folder = Path::new("vm");
    println!("VM of {memory} MiB, {fill} MiB of it filled: booting");
    let mut guest = machine::start(&options, folder)?;
    // A heap of n bytes comes with a second one of n / 4.
    let heap = |mib: u64| format!("heap={}K", mib * 1024 * 4 / 5);
    let churn = memory / 8;
    guest.control().spawn(&Spawn::new("fill", &heap(fill), "sleep=20ms").comm("fill"))?;
    guest.control().spawn(&Spawn::new("churn", &heap(churn), "end"))?;
    guest.control().spawn(&Spawn::new("vault", "heap=16M,stack,thp", "sleep=20ms").comm("vault"))?;

    let mut figures: [Figures; 3] = Default::default();
    for round in 1..=args.runs.get() {
        // Each way is the first in turn: what comes first meets a quieter disk.
        let mut order = [0, 1, 2];
        order.rotate_left(round % 3);
        for i in order {
            save(WAYS[i], folder, &mut figures[i])?;
        }
        guest.endpoints().stop()?;
        for i in order {
            restore(WAYS[i], &options, &mut figures[i])?;
        }
        guest.endpoints().cont()?;
        println!("round {round} of {}", args.runs);
        if round < args.runs.get() {
            WAYS.into_iter().try_for_each(remove)?;
        }
    }
    let mut facts = json_of(&["inspect".to_owned(), WAYS[1].file().display().to_string()], &[0])?;
    facts["file_system"] = file_system()?.into();
    WAYS.into_iter().try_for_each(remove)?;
    end(guest);
    let title = format!(
        "## {memory} MiB of memory, {fill} MiB filled, {churn} MiB freed, 2 vCPUs\n\n{}\n",
        table(&figures)
    );
    Ok((title, facts))
}

fn save(way: Way, vm: &Path, figures: &mut Figures) -> Result<(), Failure> {
    let (pause, total) = if way == Way::Qemu {
        let times = plain::save(Path::new(&socket(vm)), way.file())?;
        (times.pause.as_secs_f64() * 1000.0, times.total)
    } else {
        let mut words = vec!["save".to_owned(), "--qmp".to_owned(), socket(vm)];
        if way == Way::Elided {
            words.extend(["--exclude".to_owned(), "comm=vault".to_owned()]);
        }
        words.push(way.file().display().to_string());
        let begin = Instant::now();
        let saved = json_of(&words, &[0])?;
        (saved["pause_ms"].as_f64().ok_or("elision save names no pause")?, begin.elapsed())
    };
    figures.pause.push(pause);
    figures.total.push(total.as_secs_f64() * 1000.0);
    figures.stored.push(mib(machine::stored(way.file())?));
    Ok(())
}

fn restore(way: Way, options: &GuestOptions, figures: &mut Figures) -> Result<(), Failure> {
    let folder = Path::new("restored");
    std::fs::create_dir(folder)?;
    let image = way.file().display().to_string();
    let words = machine::restore_words(options, &image, folder)?;
    let command = machine::command(options, folder)?;
    let begin = Instant::now();
    let console = folder.join("console.log");
    let first = std::thread::spawn(move || first_output(&console, begin));
    if way == Way::Qemu {
        plain::restore(&command, Path::new(&socket(folder)), way.file())?;
    } else {
        let vm = json_of(&words, &[0])?;
        cleanup::adopt(vm["pid"].as_u64().ok_or("elision restore names no process")?)?;
    }
    let running = begin.elapsed();
    let output = first.join().map_err(|_| "The thread that reads the console is gone")?;
    let output = output.ok_or("The restored VM printed nothing")?;
    cleanup::end_last();
    std::fs::remove_dir_all(folder)?;
    figures.running.push(running.as_secs_f64() * 1000.0);
    figures.output.push(output.as_secs_f64() * 1000.0);
    Ok(())
}

/// How long after `begin` the first whole line stood on the console.
fn first_output(console: &Path, begin: Instant) -> Option<Duration> {
    while begin.elapsed() < OUTPUT_LIMIT {
        let text = std::fs::read(console).unwrap_or_default();
        if String::from_utf8_lossy(&text).lines().any(|l| l.starts_with("TICK ")) {
            return Some(begin.elapsed());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

fn remove(way: Way) -> std::io::Result<()> {
    if way == Way::Qemu { std::fs::remove_file(way.file()) } else { std::fs::remove_dir_all(way.file()) }
}

/// Ends the VM that was saved.
fn end(guest: Guest) {
    cleanup::end_last();
    drop(guest); // removes its folder
}

fn table(figures: &[Figures; 3]) -> String {
    let mut text = "| | elision save, nothing excluded | elision save, one process excluded | \
                    QEMU, stopped migration |\n|---|---:|---:|---:|\n"
        .to_owned();
    type Of = fn(&Figures) -> &Vec<f64>;
    let rows: [(&str, &str, Of); 5] = [
        ("save: VM paused", "ms", |f| &f.pause),
        ("save: total", "ms", |f| &f.total),
        ("size on disk", "MiB", |f| &f.stored),
        ("restore: to running", "ms", |f| &f.running),
        ("restore: to first output", "ms", |f| &f.output),
    ];
    for (name, unit, of) in rows {
        let [plain, elided, qemu] = figures.each_ref().map(|f| summary(of(f)));
        let cell = |s: [f64; 3]| format!("{:.0} ({:.0}-{:.0})", s[1], s[0], s[2]);
        let ratio = |s: [f64; 3]| format!("{}, {:.2} x", cell(s), s[1] / qemu[1]);
        let _ = writeln!(text, "| {name}, {unit} | {} | {} | {} |", ratio(plain), ratio(elided), cell(qemu));
    }
    text
}

fn mib(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

fn page(args: &Args, facts: &Value, tables: &str, load: &str) -> Result<String, Failure> {
    let date = elision_image::timestamp(SystemTime::now());
    let day = date.split('T').next().unwrap_or_default();
    let field = |file: &str, name: &str| -> String {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches([' ', '\t', ':']).to_owned()
    };
    let processors = std::thread::available_parallelism()?;
    let kib: u64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").trim().parse().unwrap_or(0);
    let text = |pointer: &str| facts.pointer(pointer).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let accel = if elision_testbed::accel::choose(&args.kernel) == elision_testbed::Accel::Kvm {
        "KVM"
    } else {
        "TCG (QEMU translates the guest's code)"
    };
    Ok(format!(
        "# Benchmarks\n\n\
         Written by `./bench`; run it to get the figures of your machine.\n\n\
         Measured on {day}, {}: median (least-most), and the median as a multiple of QEMU's.\n\n\
         | | |\n|---|---|\n\
         | processors | {processors} x {} |\n| memory | {} |\n| host kernel | {} |\n| load when it began | {load} |\n| file system | {} |\n\
         | QEMU | {}, {accel} |\n| guest kernel | {} |\n| Elision | {} |\n\n\
         {tables}\
         ## What is measured\n\n\
         All three ways save the same VM in turns, to the same file system. Its memory holds a process that \
         fills a part with bytes other than zero, what a process freed when it ended, and a process of 25 MiB \
         that is excluded in the second column. QEMU's way is `stop`, `migrate` to a file descriptor without a \
         limit of bandwidth, `cont`. It makes QEMU touch all memory of the VM, so Elision looks at every \
         page as soon as QEMU's way had its first turn.\n\n\
         - **paused**: from the `stop` to the answer to `cont`. In it Elision finds out what belongs to whom, \
         and writes memory to the page cache.\n\
         - **total**: wall clock of the whole save until all of it is synced; for Elision also the start of \
         the program, finding the kernel, and checksums.\n\
         - **size on disk**: allocated blocks.\n\
         - **to running**: from the start of the restoring program until QEMU has answered `cont`. The \
         files are in the page cache; the saved VM is stopped meanwhile.\n\
         - **to first output**: until the restored guest's first line on the console. It prints one every \
         50 ms.\n",
        count(args.runs.get() as u64, "round"),
        field("/proc/cpuinfo", "model name"),
        size(kib << 10),
        std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim_end(),
        text("/file_system"),
        text("/vmm/version"),
        text("/guest/kernel_release"),
        text("/elision_version"),
    ))
}

/// The file system that holds the saved copies.
fn file_system() -> Result<String, Failure> {
    let here = std::env::current_dir()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.nth(1)?, words.next()?))
    });
    let best = mounts.filter(|(at, _)| here.starts_with(at)).max_by_key(|(at, _)| at.len());
    Ok(best.map_or("unknown", |(_, kind)| kind).to_owned())
}
