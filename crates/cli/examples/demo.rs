//! The demo: a stock VM is saved twice, by QEMU itself and by `elision` without one of its processes.
//! Both copies are searched for secrets, and Elision's is restored.
//!
//! ```text
//! VM ── vault  holds a secret, is to be left out       QEMU's snapshot  ─> search: found
//!    ── web    holds the control secret, stays         elision save     ─> search: only web's
//!    ── draft  has ended, its memory is free                   └─> restore: vault ends, web goes on
//! ```
//! Every claim is checked; the exit status is 1 if one does not hold. `./demo` runs it.

mod support;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use elision_testbed::{Guest, GuestOptions, Spawn, Status, counters, secret};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::Failure;
use support::cleanup::{self, Cleanup};
use support::machine::{self, found, json_of, run_elision, socket};
use support::plain;
use support::show::Show;
use support::text::size;

const PLACES: &str = "heap,stack,thp";
const LABELS: [&str; 3] = ["vault", "web", "draft"];
/// The restored guest ends the process at once; an emulated one on a busy machine takes its time.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Shows on a real VM what Elision does.
#[derive(Parser)]
#[command(name = "demo", max_term_width = 100)]
struct Args {
    /// Kernel of the VM: 6.1 or 6.12 (Debian bookworm, trixie) or 7 (trixie-backports or sid).
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// Memory of the VM in MiB.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(256..))]
    memory: u64,
    /// Keep both VMs and all files until Enter is pressed, to try commands on them.
    #[arg(long)]
    wait: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut show = Show::new();
    let end = demo(&args, &mut show);
    match (end, show.failed()) {
        (Ok(()), []) => ExitCode::SUCCESS,
        (Ok(()), failed) => {
            eprintln!("\nNot everything holds:\n  {}", failed.join("\n  "));
            ExitCode::FAILURE
        }
        (Err(error), _) => {
            eprintln!("\nThe demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Copies of the secret of each label.
type Found = [u64; 3];

/// One saved copy of the VM.
struct Saved {
    stored: u64,
    pause: Duration,
    total: Duration,
}

fn demo(args: &Args, show: &mut Show) -> Result<(), Failure> {
    let build = machine::build_folder()?;
    let _cleanup = Cleanup::new(build.parent().unwrap_or(&build), "demo-")?;
    let options = GuestOptions::new(&args.kernel).memory_mib(args.memory);
    machine::get_ready(&options, &args.kernel)?;
    println!("The commands below run in {}", std::env::current_dir()?.display());
    println!("and elision is {}", machine::elision()?.display());

    let mut source = start(args, &options, show)?;
    let vault = spawn(&mut source, show)?;
    look(show)?;
    let saved = [save_by_qemu(show)?, save_by_elision(show)?];
    let found = search(show)?;
    let ticks = source.console().last_tick().unwrap_or(0);
    let restored = restore(&options, vault, ticks, show)?;
    show.claim(
        source.control().status(vault)? == Status::Running && source.console_problems().is_empty(),
        "the VM that was saved never noticed: its vault runs on",
    );
    println!("\n{}", table(&found, &saved));
    if args.wait {
        println!("\nBoth VMs run. Press Enter to end them and to remove all files.");
        std::io::stdin().read_line(&mut String::new())?;
    }
    drop(restored);
    Ok(())
}

fn start(args: &Args, options: &GuestOptions, show: &Show) -> Result<Guest, Failure> {
    show.step("1. Start a VM so that it can be saved well");
    let folder = Path::new("vm");
    let words = machine::run_words(options, folder)?;
    show.command(&words);
    let begin = Instant::now();
    let guest = machine::start(options, folder)?;
    let log = std::fs::read_to_string(folder.join("qemu.log"))?;
    for line in log.lines().filter_map(|l| l.strip_prefix("elision: Added ")) {
        show.output(&format!("added {line}"));
    }
    let release = options.kernel()?.release;
    let took = begin.elapsed().as_secs_f64();
    show.say(&format!("Linux {release} with {} MiB is up after {took:.1} s.", args.memory));
    Ok(guest)
}

/// Starts the three processes; gives the process id of `vault`.
fn spawn(guest: &mut Guest, show: &mut Show) -> Result<i32, Failure> {
    show.step("2. Three processes, a secret in each: in heap, stack and 2 MiB pages");
    let play = |label: &str, mode: &str, uid| Spawn::new(label, PLACES, mode).comm(label).uid(uid);
    let vault = guest.control().spawn(&play("vault", "sleep=20ms", 1001))?;
    guest.control().spawn(&play("web", "sleep=20ms", 1002))?;
    guest.control().spawn(&play("draft", "end", 1003))?;
    show.say("vault  is to be left out");
    show.say("web    stays; its secret is the control");
    show.say("draft  has ended: its memory is free, but nobody has erased it");
    let huge: u64 = vault.planted.iter().map(|p| p.huge).sum();
    show.claim(huge > 0, &format!("{} of vault's memory are 2 MiB pages", size(huge)));
    for label in LABELS {
        std::fs::write(secret_file(label), secret(label))?;
    }
    Ok(vault.pid)
}

fn look(show: &Show) -> Result<(), Failure> {
    show.step("3. Look at the VM from outside: its processes, and what a save would leave out");
    for words in [vec!["ps"], vec!["plan", "--exclude", "comm=vault"]] {
        let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        words.splice(1..1, ["--qmp".to_owned(), socket(Path::new("vm"))]);
        show.command(&words);
        let output = run_elision(&words, &[0])?;
        show.output(&String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

fn save_by_qemu(show: &Show) -> Result<Saved, Failure> {
    show.step("4. Save it twice");
    show.other_command("QMP>", "stop, migrate to the file plain.migration, cont  (QEMU's own snapshot)");
    let path = Path::new("plain.migration");
    let times = plain::save(Path::new(&socket(Path::new("vm"))), path)?;
    show.say(&format!(
        "paused for {} ms, on disk after {} ms, {}",
        times.pause.as_millis(),
        times.total.as_millis(),
        size(machine::stored(path)?)
    ));
    Ok(Saved { stored: machine::stored(path)?, pause: times.pause, total: times.total })
}

fn save_by_elision(show: &Show) -> Result<Saved, Failure> {
    let words = ["save", "--qmp", &socket(Path::new("vm")), "--exclude", "comm=vault", "web.elision"];
    let words = words.map(str::to_owned);
    show.command(&words);
    let begin = Instant::now();
    let saved = json_of(&words, &[0])?;
    let total = begin.elapsed();
    let pause =
        Duration::from_secs_f64(saved["pause_ms"].as_f64().ok_or("elision save names no pause")? / 1000.0);
    let stored = machine::stored(Path::new("web.elision"))?;
    let bytes = |name: &str| size(saved["ram"][name].as_u64().unwrap_or(0));
    show.say(&format!(
        "paused for {} ms, on disk after {} ms, {}; {} left out",
        pause.as_millis(),
        total.as_millis(),
        size(stored),
        bytes("dropped"),
    ));
    Ok(Saved { stored, pause, total })
}

/// Searches the VM's memory as it is and both copies of it; gives what was found in each.
fn search(show: &mut Show) -> Result<[Found; 3], Failure> {
    show.step("5. Search the VM's memory and both copies for the secrets");
    let memory = machine::ram_file(Path::new("vm"))?.display().to_string();
    let [live, qemu, elision] = [["--file", &memory], ["--file", "plain.migration"], ["web.elision", ""]]
        .map(|place| audit(&place, show));
    let found = [live?, qemu?, elision?];
    let [live, qemu, elision] = found;
    for (name, label) in [("vault", 0), ("draft", 2)] {
        show.claim(
            qemu[label] > 1000 && elision[label] == 0,
            &format!("{name}'s secret: {} times without Elision, {} with it", qemu[label], elision[label]),
        );
    }
    show.claim(
        live[1] > 1000 && elision[1] == live[1],
        &format!("web's secret, the control: as often as in the VM's memory, {} times", elision[1]),
    );
    Ok(found)
}

fn audit(place: &[&str], show: &Show) -> Result<Found, Failure> {
    let mut words = vec!["audit".to_owned()];
    words.extend(place.iter().filter(|word| !word.is_empty()).map(|word| (*word).to_owned()));
    for label in LABELS {
        words.extend(["--secret-file".to_owned(), secret_file(label)]);
    }
    show.command(&words);
    let audited = json_of(&words, &[0, 1])?;
    let counts = LABELS.map(|label| found(&audited, &secret_file(label)));
    let [vault, web, draft] = counts;
    show.say(&format!("vault's {vault} times, web's {web} times, draft's {draft} times"));
    Ok(counts)
}

fn secret_file(label: &str) -> String {
    format!("{label}.secret")
}

fn restore(options: &GuestOptions, vault: i32, ticks: u64, show: &mut Show) -> Result<Guest, Failure> {
    show.step("6. Restore Elision's copy in stock QEMU, beside the VM that still runs");
    let folder = Path::new("restored");
    std::fs::create_dir(folder)?;
    let image = elision_image::Image::open(Path::new("web.elision"))?;
    let count = counters::count(&image.ram()?, "vault")?;
    let words = machine::restore_words(options, "web.elision", folder)?;
    show.command(&words);
    let vm = json_of(&words, &[0])?;
    cleanup::adopt(vm["pid"].as_u64().ok_or("elision restore names no process")?)?;
    show.say(&format!("runs after {:.0} ms", vm["total_ms"].as_f64().unwrap_or(0.0)));
    let mut guest = options.clone().ram(elision_testbed::RamMode::Plain).attach(folder)?;

    let first = first_tick(&guest);
    let end = end_of(&mut guest, vault)?;
    let health = guest.control().health(2)?;
    let last = guest.console().last_tick();
    show.claim(
        first.is_some() && last > first && first.is_some_and(|first| first <= ticks + 1),
        &format!("its console goes on where it was saved: TICK {} to {}", tick(first), tick(last)),
    );
    show.claim(
        matches!(end, Status::Signalled { signal: 9, .. }),
        "vault is gone: its parent in the guest saw it end by signal 9",
    );
    let after = guest.control().count("vault")?;
    show.claim(
        count.is_some() && after == count,
        "vault ran no further step: its count in shared memory stands",
    );
    let names = guest.control().sh("ps")?.output;
    show.claim(
        !names.contains("vault") && names.contains("web"),
        "the guest's own ps lists web and no vault",
    );
    let before = guest.control().count("web")?;
    std::thread::sleep(Duration::from_millis(200));
    show.claim(guest.control().count("web")? > before, "web goes on working");
    show.claim(
        health.errors.is_empty(),
        &format!("new work in the guest is done right: {} checks", health.checks),
    );
    let log = guest.control().dmesg()?;
    let problems = [elision_testbed::console::problems(&log), guest.console_problems()].concat();
    show.claim(
        !log.is_empty() && problems.is_empty(),
        &format!("the kernel log is clean{}", problems.join("; ")),
    );
    Ok(guest)
}

/// The first whole tick on a restored console.
fn first_tick(guest: &Guest) -> Option<u64> {
    let begin = Instant::now();
    while begin.elapsed() < END_LIMIT {
        let text = guest.console().text();
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        if let Some(tick) = whole.lines().find_map(|l| l.strip_prefix("TICK ")?.parse().ok()) {
            return Some(tick);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn tick(tick: Option<u64>) -> String {
    tick.map_or("(none)".to_owned(), |n| n.to_string())
}

/// How the process is once its parent has seen its end, or at the time limit.
fn end_of(guest: &mut Guest, pid: i32) -> Result<Status, Failure> {
    let begin = Instant::now();
    loop {
        let status = guest.control().status(pid)?;
        if status != Status::Running || begin.elapsed() > END_LIMIT {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn table([live, qemu, elision]: &[Found; 3], [plain, elided]: &[Saved; 2]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(["", "the VM's memory", "QEMU's own snapshot", "elision save"]);
    let copies =
        [("vault's secret: left out", 0), ("draft's secret: ended before", 2), ("web's secret: stays", 1)];
    for (name, label) in copies {
        let cells = [live, qemu, elision].map(|found| found[label].to_string());
        table.add_row([&[format!("copies of {name}")], &cells[..]].concat());
    }
    let mut row = |name: &str, value: fn(&Saved) -> String| {
        table.add_row([name.to_owned(), "-".to_owned(), value(plain), value(elided)]);
    };
    row("size on disk", |s| size(s.stored));
    row("VM paused", |s| format!("{} ms", s.pause.as_millis()));
    row("total, synced to disk", |s| format!("{} ms", s.total.as_millis()));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "{table}\n\nQEMU puts 8 bytes before each page, so that copies across a page border are not counted there."
    )
}
