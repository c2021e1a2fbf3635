//! `performance.md`: tables, plots, and what they mean.

use crate::plot::{self, Line};
use crate::rounds::{Figures, Result as Measurement, Size};
use crate::support::machine::command;
use crate::support::summary;
use crate::support::text::{count, size};
use crate::{Failure, Measured, planning};
use elision_testbed::{Accel, GuestOptions, accel};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// What others are compared with.
const QEMU: &str = "QEMU, stopped `migrate` to a descriptor";
const ELISION: &str = "elision save, nothing excluded";

/// The machine on which this runs.
pub(crate) struct Host {
    rows: Vec<(&'static str, String)>,
}

impl Host {
    pub(crate) fn of(options: &GuestOptions, kernel: &str) -> Result<Self, Failure> {
        let field = |file: &str, name: &str| -> String {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches([' ', '\t', ':']).to_owned()
        };
        let kib: u64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").trim().parse().unwrap_or(0);
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let command = command(options, Path::new("."))?;
        let version =
            Command::new(command.first().ok_or("The command is empty")?).arg("--version").output()?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        let version = version.split("version ").nth(1).and_then(|v| v.split(' ').next()).unwrap_or("unknown");
        let kvm = accel::choose(kernel) == Accel::Kvm;
        let accel = if kvm { "KVM" } else { "TCG (QEMU translates the guest's code)" };
        Ok(Self {
            rows: vec![
                (
                    "processors",
                    format!(
                        "{} x {}",
                        std::thread::available_parallelism()?,
                        field("/proc/cpuinfo", "model name")
                    ),
                ),
                ("memory", size(kib << 10)),
                ("host kernel", std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim_end().to_owned()),
                ("load when it began", load.split(' ').next().unwrap_or_default().to_owned()),
                ("file system", file_system()?),
                ("QEMU", format!("{version}, {accel}")),
                ("guest kernel", options.kernel()?.release),
                ("Elision", env!("CARGO_PKG_VERSION").to_owned()),
            ],
        })
    }
}

/// The whole page.
pub(crate) fn text(measured: &Measured, date: &str) -> Result<String, Failure> {
    let day = date.split('T').next().unwrap_or_default();
    let mut text = format!(
        "# Performance\n\nWritten by `./bench`; run it to get the figures of your machine. Measured on {day}, {}: \
         median (least-most), and the median as a multiple of that of QEMU's stopped migration.\n\n| | |\n|---|---|\n",
        count(measured.rounds as u64, "round")
    );
    for (name, value) in &measured.host.rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text.push_str(&in_words(measured));
    let plot = |text: &mut String, name: &str, what: &str| {
        let _ = writeln!(text, "![{what}](performance/{name}.svg)\n");
    };
    section(&mut text, &measured.main);
    plot(&mut text, "pause", "How long each way pauses the VM");
    measured.others.iter().for_each(|result| section(&mut text, result));
    text.push_str("## The same in VMs of different sizes\n\n");
    text.push_str("With 192 MiB filled in each.\n\n");
    text.push_str(
        "| MiB | way | VM paused, ms | total, ms | size on disk, MiB |\n|---:|---|---:|---:|---:|\n",
    );
    for result in &measured.sizes {
        for way in &result.ways {
            let cells = [&way.pause, &way.total, &way.stored].map(|values| cell(values));
            let _ = writeln!(text, "| {} | {} | {} |", result.size.memory, way.name, cells.join(" | "));
        }
    }
    text.push('\n');
    plot(&mut text, "kept", "Pause by what is kept");
    plot(&mut text, "sizes", "Pause by the size of the VM");
    planned(&mut text, &measured.planned);
    plot(&mut text, "planning", "Planning by the number of processes");
    text.push_str(MEANING);
    Ok(text)
}

/// The plots, in their folder.
pub(crate) fn plots(measured: &Measured, folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)?;
    let bars: Vec<_> = measured.main.ways.iter().map(|way| (way.name, median(&way.pause))).collect();
    plot::bars(&folder.join("pause.svg"), "VM paused, ms (2 GiB, 1 GiB filled)", &bars)?;
    let all = || std::iter::once(&measured.main).chain(&measured.others).chain(&measured.sizes);
    let line = |results: Vec<&Measurement>, name: &str, x: fn(Size, &Figures) -> f64| {
        let ways = results.into_iter().flat_map(|r| r.ways.iter().map(|way| (r.size, way)));
        let mut points: Vec<_> = ways
            .filter(|(_, way)| way.name == name)
            .map(|(size, way)| (x(size, way), median(&way.pause)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line { name: name.replace('`', ""), points }
    };
    let kept = |name| line(all().collect(), name, |_, way| median(&way.stored));
    let axis = "size on disk, MiB";
    plot::lines(&folder.join("kept.svg"), axis, "VM paused, ms", &[kept(ELISION), kept(QEMU)])?;
    let sizes = |name| line(measured.sizes.iter().collect(), name, |size, _| float(size.memory));
    let axis = "memory of the VM, MiB, 192 filled";
    plot::lines(&folder.join("sizes.svg"), axis, "VM paused, ms", &[sizes(ELISION), sizes(QEMU)])?;
    let mut lines: Vec<Line> = Vec::new();
    for one in &measured.planned {
        let name = format!("{} MiB", one.memory);
        let point = (float(one.processes as u64), median(&one.times));
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name, points: vec![point] }),
        }
    }
    plot::lines(&folder.join("planning.svg"), "processes", "planning in the pause, ms", &lines)
}

/// What the main table says.
fn in_words(measured: &Measured) -> String {
    let of = |name: &str| measured.main.ways.iter().find(|way| way.name == name);
    let Some((ours, theirs)) = of(ELISION).zip(of(QEMU)) else { return String::new() };
    let ratio = |a: &[f64], b: &[f64]| median(a) / median(b);
    format!(
        "\nIn a VM of 2 GiB of which 1 GiB is filled, `elision save` pauses the VM for {:.2} of the time of QEMU's own \
         stopped migration, is done after {:.2} of it, and takes {:.2} of the disk. The restored VM runs after {:.3} of \
         the time, {:.2} times as long as the same machine takes to start empty.\n\n",
        ratio(&ours.pause, &theirs.pause),
        ratio(&ours.total, &theirs.total),
        ratio(&ours.stored, &theirs.stored),
        ratio(&ours.running, &theirs.running),
        ratio(&ours.running, &measured.main.empty),
    )
}

fn section(text: &mut String, result: &Measurement) {
    let Size { memory, fill, freed } = result.size;
    let _ = write!(
        text,
        "## {memory} MiB of memory, {fill} MiB filled, {freed} MiB freed, 2 vCPUs\n\n\
         | | VM paused, ms | total, ms | size on disk, MiB | restore: to running, ms | to first output, ms |\n\
         |---|---:|---:|---:|---:|---:|\n"
    );
    let columns =
        |way: &Figures| [&way.pause, &way.total, &way.stored, &way.running, &way.output].map(Vec::clone);
    let base = result.ways.iter().find(|way| way.name == QEMU).map(columns).unwrap_or_default();
    for way in &result.ways {
        let values = columns(way);
        let cells = values.iter().zip(&base).map(|(values, base)| {
            if values.is_empty() || way.name == QEMU {
                cell(values)
            } else {
                format!("{}, {:.2} x", cell(values), median(values) / median(base))
            }
        });
        let _ = writeln!(text, "| {} | {} |", way.name, cells.collect::<Vec<_>>().join(" | "));
    }
    let sizes = result.ways.iter().flat_map(|way| way.stored.iter().zip(&way.kept));
    let sizes: Vec<f64> = sizes.map(|(stored, kept)| stored / kept).collect();
    if !sizes.is_empty() {
        let [least, median, most] = summary(&sizes);
        let _ = writeln!(
            text,
            "| Elision's images by the frames in them that are not zero | | | {median:.4} ({least:.4}-{most:.4}) x | | |"
        );
    }
    let (copy, write) = (cell(&result.limits.copy), cell(&result.limits.write));
    let _ = writeln!(
        text,
        "| the host: the first row's bytes copied; written and synced | {copy} | {write} | | | |"
    );
    if !result.empty.is_empty() {
        let _ = writeln!(text, "| the same machine started empty | | | | {} | |", cell(&result.empty));
    }
    text.push('\n');
}

fn planned(text: &mut String, planned: &[planning::Planned]) {
    text.push_str(
        "## Planning while the VM is paused\n\n\
         | processes | MiB | one process excluded, ms | ms for each GiB | known kernel found, ms | unknown kernel found, ms |\n\
         |---:|---:|---:|---:|---:|---:|\n",
    );
    for one in planned {
        let each = median(&one.times) / (float(one.memory) / 1024.0);
        let [times, known, unknown] = [&one.times, &one.known, &one.unknown].map(|values| cell(values));
        let _ = writeln!(
            text,
            "| {} | {} | {times} | {each:.1} | {known} | {unknown} |",
            one.processes, one.memory
        );
    }
    text.push_str(
        "\n`planning_ms` of `elision plan`: everything that a save finds out while the VM stands still. What is \
         cleared in objects that the guest's kernel has freed is found out in the copy, when the VM runs again. The kernel is found before the pause; what is known of its \
         types and symbols is kept for the next time.\n\n",
    );
}

fn cell(values: &[f64]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let [least, median, most] = summary(values);
    if most < 100.0 {
        format!("{median:.1} ({least:.1}-{most:.1})")
    } else {
        format!("{median:.0} ({least:.0}-{most:.0})")
    }
}

fn median(values: &[f64]) -> f64 {
    summary(values)[1]
}

fn float(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
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

const MEANING: &str = "## What is measured

All ways save the same VM in turns, to the same file system; each is the first in turn. Its memory holds a process that
fills a part with bytes other than zero, what a process freed when it ended, and a process of 25 MiB that is excluded
where that is said. QEMU's ways run without a limit of bandwidth. They make QEMU touch all memory of the VM, so
Elision meets memory that is all populated as soon as one of them had its first turn. Before each save the host's
memory is touched and given back, so that no way pays for memory that a host which is a VM itself fetches from its own.

- **paused**: how long the VM stood still. In it Elision finds out what belongs to whom, and copies memory to memory.
- **total**: wall clock of the whole save until all of it is synced; for Elision also the start of the program, finding
  the kernel, and checksums.
- **size on disk**: allocated blocks. The row on Elision's images compares all files of an image with the frames in it that
  are not zero.
- **to running**: from the start of the restoring program until QEMU has answered `cont`. The saved VM is stopped
  meanwhile. QEMU's files are in the page cache for the most part, Elision's are not.
- **to first output**: until the restored guest's first line on the console. It prints one every 50 ms.
- **`mapped-ram`** is measured where QEMU has it with `direct-io` (9.1 and later): `./bench --qemu 10`.
- **`virsh save`** has no row: libvirt saves no VM that it has not started itself, and ends the one that it saves. It has
  QEMU's stopped migration written to a file.
- **the host**: a bare copy in memory and a bare write past the page cache of as many bytes as the first row stored, with
  a thread for each processor.
";
