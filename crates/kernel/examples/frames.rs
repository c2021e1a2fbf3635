//! What the frames of a guest are used for, and how long the scan takes:
//! `frames FOLDER` with a dump that the testbed left (`ram`, `layout.json`).

use elision_kernel::{FrameKind, Kernel, ProfileCache};
use elision_memory::{Ram, RamLayout};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: frames FOLDER")?);
    let layout: RamLayout = serde_json::from_reader(File::open(folder.join("layout.json"))?)?;
    let mib = layout.ram_bytes() >> 20;
    let ram = Ram::shared(&File::open(folder.join("ram"))?, layout)?;
    let kernel = Kernel::open(&ram, &[], &ProfileCache::disabled())?;
    println!("{}, {mib} MiB", kernel.release());
    for _ in 0..3 {
        let start = Instant::now();
        std::hint::black_box(kernel.scan_descriptors());
        let descriptors = start.elapsed();
        let mut scan = kernel.scan_frames()?;
        let with_lists = start.elapsed() - descriptors;
        let start = Instant::now();
        scan.explain(&kernel, &kernel.processes()?)?;
        let processes = start.elapsed();
        let start = Instant::now();
        scan.find_holders(&kernel);
        println!(
            "descriptors {descriptors:.1?}, with free lists and the kernel's tables {with_lists:.1?}, \
             processes {processes:.1?}, holders {:.1?}",
            start.elapsed()
        );
    }
    let mut scan = kernel.scan_frames()?;
    scan.explain(&kernel, &kernel.processes()?)?;
    scan.find_holders(&kernel);
    let mut counts: BTreeMap<FrameKind, u64> = BTreeMap::new();
    for (_, kind) in scan.frames() {
        *counts.entry(kind).or_default() += 1;
    }
    for (kind, count) in counts {
        println!("{count:8} {}", kind.name());
    }
    Ok(())
}
