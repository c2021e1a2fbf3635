//! Boots a guest, plays processes in it, and tells how long that took; can leave a dump.

use clap::Parser;
use elision_testbed::{GuestOptions, Spawn, dump, search, secret};
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

/// Boots a guest and plays a victim and a bystander in it.
#[derive(Parser)]
struct Args {
    /// 5.10, 6.1, 6.12 or 7.
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// RAM in MiB.
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// Number of vCPUs.
    #[arg(long, default_value_t = 2)]
    vcpus: u32,
    /// Four-level paging instead of five.
    #[arg(long)]
    four_level: bool,
    /// Where the secrets stand.
    #[arg(long, default_value = "heap,stack,thp,shm,memfd,tmpfs,cow,xmm")]
    places: String,
    /// What the victim does.
    #[arg(long, default_value = "threads")]
    mode: String,
    /// Play so many more processes at once.
    #[arg(long, default_value_t = 0)]
    crowd: u32,
    /// Leave RAM, registers and ground truth in this folder.
    #[arg(long)]
    dump: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let mut options = GuestOptions::new(&args.kernel).memory_mib(args.memory).vcpus(args.vcpus);
    if args.four_level {
        options = options.four_level();
    }
    let kernel = options.kernel()?;
    println!("kernel {} ({} {})", kernel.release, kernel.package, kernel.version);
    println!("accelerator {:?}", elision_testbed::accel::choose(&args.kernel));
    let start = Instant::now();
    let mut guest = options.boot()?;
    println!("ready after {:.1?}, QEMU is process {:?}", start.elapsed(), guest.qemu_pid());

    let start = Instant::now();
    let victim = Spawn::new("victim", &args.places, &args.mode);
    let victim = victim.uid(1234).cgroup("/elision.slice/pod-abc").comm("victim").exe("/bin/victim");
    let victim = guest.control().spawn(&victim)?;
    let bystander = guest.control().spawn(&Spawn::new("bystander", &args.places, "sleep").tty("pty"))?;
    let forked = Spawn::new("forked", "heap=1M,stack", "fork").uid(1234).cgroup("/elision.slice/pod-abc");
    let forked = guest.control().spawn(&forked)?;
    let ended = guest.control().spawn(&Spawn::new("ended", "heap=1M,thp", "end"))?;
    println!("played after {:.1?}", start.elapsed());
    for spawned in [&victim, &bystander, &forked, &ended] {
        println!("{}", serde_json::to_string(spawned)?);
    }
    if args.crowd > 0 {
        let start = Instant::now();
        let crowd = guest.control().crowd(args.crowd, &Spawn::new("crowd", "heap=64K,stack", "sleep"))?;
        println!("a crowd of {} played after {:.1?}", crowd.len(), start.elapsed());
    }
    let labels = ["victim", "bystander", "forked", "ended", "never played"];
    let start = Instant::now();
    let found = search::find(&guest.ram()?, &labels.map(secret))?;
    for (label, found) in labels.iter().zip(found) {
        println!("secret of {label}: {} times in RAM", found.len());
    }
    println!("searched in {:.1?}", start.elapsed());
    println!("counters {}", serde_json::to_string(&guest.control().counters()?)?);
    if let Some(folder) = &args.dump {
        let start = Instant::now();
        let notes = serde_json::json!({
            "kernel": kernel,
            "four_level": args.four_level,
            "played": [victim, bystander, forked, ended],
        });
        dump::write(&mut guest, folder, &notes)?;
        println!("dumped in {:.1?}", start.elapsed());
    }
    let health = guest.control().health(2)?;
    println!("health: {} checks, errors {:?}", health.checks, health.errors);
    println!("console problems: {:?}", guest.console_problems());
    Ok(())
}
