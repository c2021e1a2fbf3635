//! Reading what is needed first before it is needed.

use elision_image::{Image, ImageError, RamReader};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::AsFd;

/// What the kernel reads ahead at most at a time, whatever it is asked for.
const STEP: u64 = 128 << 10;

/// Lets the kernel read the first needed parts of a plain image's memory; does not wait for it.
pub fn read_ahead_of(image: &Image) -> Result<(), ImageError> {
    let ram = RamReader::open(image)?;
    let file = File::open(image.ram_path());
    if let Ok(file) = file {
        read_ahead(&file, ram.chunk_bytes(), &first_needed(image, &ram));
    }
    Ok(())
}

/// The chunks to read before they are needed: without a working set all that are not zero. It is a hint only.
pub(crate) fn first_needed(image: &Image, ram: &RamReader) -> Vec<u64> {
    let set = image.working_set().ok().flatten();
    set.unwrap_or_else(|| (0..ram.chunks()).collect()).into_iter().filter(|i| !ram.is_zero(*i)).collect()
}

/// Lets the kernel read chunks of a file into its cache.
pub(crate) fn read_ahead(file: impl AsFd, chunk_bytes: u64, chunks: &[u64]) {
    for start in chunks.iter().map(|i| i * chunk_bytes) {
        for step in 0..chunk_bytes / STEP {
            let _ = fadvise(&file, start + step * STEP, NonZeroU64::new(STEP), Advice::WillNeed);
        }
    }
}
