//! Measures how fast RAM is copied and written: `write_speed DIR MIB THREADS`, source on /dev/shm, target in DIR.

use elision_image::{Completeness, Files, Guest, ImageWriter, Manifest, Times, Vmm, Way, timestamp};
use elision_memory::{Ram, RamLayout};
use elision_plan::{Plan, PlanSummary};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::{Instant, SystemTime};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: write_speed DIR MIB THREADS")?;
    let len = args.next().ok_or("no size")?.parse::<u64>()? << 20;
    let threads = args.next().ok_or("no number of threads")?.parse()?;

    // Each other 64 KiB are random, the rest is zero but populated.
    let mut file = tempfile::tempfile_in("/dev/shm")?;
    let mut out = blake3::Hasher::new().finalize_xof();
    let mut pages = vec![0; 1 << 20];
    for _ in 0..len >> 20 {
        for page in pages.chunks_exact_mut(128 << 10) {
            out.fill(page.get_mut(..64 << 10).ok_or("short page")?);
        }
        file.write_all(&pages)?;
    }
    let layout = RamLayout::flat(len)?;
    let ram = Ram::shared(&file, layout.clone())?;
    for round in 0..3 {
        let target = Path::new(&dir).join(format!("write-speed-{}-{round}", std::process::id()));
        let mut writer = ImageWriter::create(&target)?;
        writer.make_room(&ram, &Plan::default())?;
        let start = Instant::now();
        let stats = writer.write_ram(&ram, &Plan::default(), threads)?;
        let ram_time = start.elapsed().as_secs_f64();
        writer.write_state(b"")?;
        writer.write_exclusions(&Plan::default())?;
        let start = Instant::now();
        let manifest = Manifest {
            format: 0,
            id: String::new(),
            base: None,
            elision_version: env!("CARGO_PKG_VERSION").into(),
            created: timestamp(SystemTime::now()),
            vmm: Vmm::default(),
            guest: Guest::default(),
            ram_layout: layout.clone(),
            policy: serde_json::Value::Null,
            plan: PlanSummary::default(),
            completeness: Completeness::Complete,
            times: Times::default(),
            way: Way::Shared,
            files: Files::default(),
        };
        writer.finish(manifest, &|_| ())?;
        let mib = |bytes: u64| f64::from(u32::try_from(bytes >> 20).unwrap_or(u32::MAX));
        println!(
            "{threads} threads: {:.0} MiB of RAM, {:.0} MiB copied in {:.0} ms = {:.0} MiB/s of RAM; write, checksums and sync {:.0} ms",
            mib(stats.ram),
            mib(stats.written),
            ram_time * 1e3,
            mib(stats.ram) / ram_time,
            start.elapsed().as_secs_f64() * 1e3
        );
        std::fs::remove_dir_all(&target)?;
    }
    Ok(())
}
