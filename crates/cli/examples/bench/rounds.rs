//! One VM, saved and restored by several ways in turns.

use crate::limits;
use crate::support::cleanup;
use crate::support::machine::{self, socket};
use crate::ways::{Way, empty_start};
use crate::{Failure, mib, ms};
use elision_testbed::{Guest, GuestOptions, Spawn};
use std::path::Path;
use std::time::{Duration, Instant};

const OUTPUT_LIMIT: Duration = Duration::from_secs(120);

/// The VM that is saved.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) memory: u64,
    /// Filled by a process that stays, in MiB.
    pub(crate) fill: u64,
    /// Filled and freed again, in MiB.
    pub(crate) freed: u64,
}

/// Figures of one way, one of each for each round: milliseconds and MiB.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) name: &'static str,
    pub(crate) pause: Vec<f64>,
    pub(crate) total: Vec<f64>,
    pub(crate) stored: Vec<f64>,
    /// Of the frames that were kept and are not zero.
    pub(crate) kept: Vec<f64>,
    pub(crate) running: Vec<f64>,
    pub(crate) output: Vec<f64>,
}

/// What one VM gave.
pub(crate) struct Result {
    pub(crate) size: Size,
    pub(crate) ways: Vec<Figures>,
    /// The same machine without anything to restore, in milliseconds.
    pub(crate) empty: Vec<f64>,
    /// What the host needs for the bytes that the first way stored.
    pub(crate) limits: limits::Limits,
}

/// All rounds on a VM of one size. Only with `restores` it is restored too.
pub(crate) fn run(
    options: &GuestOptions,
    size: Size,
    ways: &[Box<dyn Way>],
    runs: usize,
    restores: bool,
) -> std::result::Result<Result, Failure> {
    let options = options.clone().memory_mib(size.memory);
    let folder = Path::new("vm");
    println!("VM of {} MiB, {} MiB of it filled: booting", size.memory, size.fill);
    let guest = boot(&options, folder, size)?;
    let mut figures: Vec<Figures> =
        ways.iter().map(|way| Figures { name: way.name(), ..Figures::default() }).collect();
    let (mut empty, mut limits) = (Vec::new(), limits::Limits::default());
    for round in 0..runs {
        // Each way is the first in turn: what comes first meets a quieter disk.
        let mut order: Vec<usize> = (0..ways.len()).collect();
        order.rotate_left(round % ways.len());
        for &i in &order {
            limits::warm(size.memory * 3 / 2);
            let saved = ways[i].save(Path::new(&socket(folder)))?;
            figures[i].pause.push(ms(saved.pause));
            figures[i].total.push(ms(saved.total));
            figures[i].stored.push(mib(ways[i].stored()?));
            figures[i].kept.extend(saved.kept.map(mib));
        }
        limits.measure(figures[0].stored[round])?;
        if restores {
            guest.endpoints().stop()?;
            for &i in &order {
                restore(&*ways[i], &options, &mut figures[i])?;
            }
            empty.push(ms(empty_start(&options, Path::new("empty"))?));
            guest.endpoints().cont()?;
        }
        ways.iter().try_for_each(|way| way.remove())?;
        println!("round {} of {runs}", round + 1);
    }
    cleanup::end_last();
    drop(guest); // removes its folder
    Ok(Result { size, ways: figures, empty, limits })
}

fn boot(options: &GuestOptions, folder: &Path, size: Size) -> std::result::Result<Guest, Failure> {
    let mut guest = machine::start(options, folder)?;
    // A heap of n bytes comes with a second one of n / 4.
    let heap = |mib: u64| format!("heap={}K", mib * 1024 * 4 / 5);
    guest.control().spawn(&Spawn::new("fill", &heap(size.fill), "sleep=20ms").comm("fill"))?;
    if size.freed > 0 {
        guest.control().spawn(&Spawn::new("churn", &heap(size.freed), "end"))?;
    }
    guest.control().spawn(&Spawn::new("vault", "heap=16M,stack,thp", "sleep=20ms").comm("vault"))?;
    Ok(guest)
}

fn restore(way: &dyn Way, options: &GuestOptions, figures: &mut Figures) -> std::result::Result<(), Failure> {
    let folder = Path::new("restored");
    std::fs::create_dir(folder)?;
    let console = folder.join("console.log");
    let begin = Instant::now();
    let first = std::thread::spawn(move || first_output(&console, begin));
    if !way.restore(options, folder)? {
        return Ok(std::fs::remove_dir_all(folder)?);
    }
    let running = begin.elapsed();
    let output = first.join().map_err(|_| "The thread that reads the console is gone")?;
    let output = output.ok_or("The restored VM printed nothing")?;
    cleanup::end_last();
    std::fs::remove_dir_all(folder)?;
    figures.running.push(ms(running));
    figures.output.push(ms(output));
    Ok(())
}

/// How long after `begin` the first whole line stood on the console.
fn first_output(console: &Path, begin: Instant) -> Option<Duration> {
    while begin.elapsed() < OUTPUT_LIMIT {
        match std::fs::read(console) {
            Ok(text) if String::from_utf8_lossy(&text).lines().any(|l| l.starts_with("TICK ")) => {
                return Some(begin.elapsed());
            }
            Err(_) if !console.parent().is_some_and(Path::exists) => return None,
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    None
}
