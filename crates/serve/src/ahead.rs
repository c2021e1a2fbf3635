//! Reading what is needed first before it is needed.

use elision_image::{Image, ImageError, RamReader};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::AsFd;

/// What the kernel reads ahead at most at a time, whatever it is asked for.
const STEP: u64 = 128 << 10;

/// Lets the kernel read parts of a plain image's memory ahead, as [`first_needed`] says; does not wait for it.
pub fn read_ahead_of(image: &Image, or_all: bool) -> Result<(), ImageError> {
    if !or_all && !matches!(image.working_set(), Ok(Some(_))) {
        return Ok(());
    }
    let ram = RamReader::open(image)?;
    if let Ok(file) = File::open(image.ram_path()) {
        read_ahead(&file, ram.chunk_bytes(), &first_needed(image, &ram, or_all));
    }
    Ok(())
}

/// The chunks to read before they are needed, as far as they are not zero: the working set; without one none, `or_all`. It
/// is a hint only.
pub(crate) fn first_needed(image: &Image, ram: &RamReader, or_all: bool) -> Vec<u64> {
    let all = || if or_all { (0..ram.chunks()).collect() } else { Vec::new() };
    let set = image.working_set().ok().flatten().unwrap_or_else(all);
    set.into_iter().filter(|i| !ram.is_zero(*i)).collect()
}

/// Lets the kernel read chunks of a file into its cache.
fn read_ahead(file: impl AsFd, chunk_bytes: u64, chunks: &[u64]) {
    for start in chunks.iter().map(|i| i * chunk_bytes) {
        for step in 0..chunk_bytes / STEP {
            let _ = fadvise(&file, start + step * STEP, NonZeroU64::new(STEP), Advice::WillNeed);
        }
    }
}
