//! Measures the search: `search_speed MIB SECRETS`, RAM on /dev/shm, each other 64 KiB random.

use elision_audit::{Needles, Secrets};
use elision_memory::{Ram, RamLayout};
use std::error::Error;
use std::io::Write;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mib = args.next().ok_or("usage: search_speed MIB SECRETS")?.parse::<u32>()?;
    let count = args.next().ok_or("no number of secrets")?.parse::<u32>()?;
    let mut file = tempfile::tempfile_in("/dev/shm")?;
    let mut state = 1_u64;
    let mut pages = vec![0; 1 << 20];
    for _ in 0..mib {
        for page in pages.chunks_exact_mut(128 << 10) {
            for word in page.chunks_exact_mut(8).take(8192) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
        }
        file.write_all(&pages)?;
    }
    let ram = Ram::shared(&file, RamLayout::flat(u64::from(mib) << 20)?)?;
    let secrets: Vec<String> = (0..count).map(|i| format!("secret number {i} of many")).collect();
    let needles = Needles::new(&Secrets::from_bytes(secrets.iter().map(String::as_bytes))?)?;
    for _ in 0..3 {
        let start = Instant::now();
        let report = needles.search_ram(&ram, 10, &|_| ())?;
        let seconds = start.elapsed().as_secs_f64();
        let findings = report.findings.len();
        println!(
            "{count} secrets: {mib} MiB in {:.0} ms = {:.2} GiB/s, {findings} findings",
            seconds * 1e3,
            f64::from(mib) / 1024.0 / seconds
        );
    }
    Ok(())
}
