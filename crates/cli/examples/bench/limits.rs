//! What the host itself needs for the same bytes: to copy them in memory, and to write them to the disk.

use crate::{Failure, ms};
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Instant;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const PIECE: usize = 4 << 20;

/// Milliseconds, one of each for each round.
#[derive(Default)]
pub(crate) struct Limits {
    pub(crate) copy: Vec<f64>,
    pub(crate) write: Vec<f64>,
}

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

impl Limits {
    /// Copies and writes so many MiB, with a thread for each processor.
    pub(crate) fn measure(&mut self, mib: f64) -> Result<(), Failure> {
        let threads = thread::available_parallelism()?.get();
        // More than 4 TiB is no VM of this benchmark.
        let pieces = (1_u32..1 << 20).find(|n| f64::from(*n) * 4.0 >= mib).unwrap_or(1);
        let pieces = usize::try_from(pieces)?;
        let mut random = vec![Page([0; 4096]); PIECE / 4096];
        blake3::Hasher::new().finalize_xof().fill(random.as_mut_bytes());
        let from: Vec<u8> = random.as_bytes().repeat(pieces);
        let mut to = vec![1_u8; from.len()];
        let begin = Instant::now();
        thread::scope(|scope| {
            let part = from.len().div_ceil(threads);
            for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
                scope.spawn(move || to.copy_from_slice(from));
            }
        });
        self.copy.push(ms(begin.elapsed()));
        black_box(&to);
        drop((from, to));

        let path = Path::new("limit");
        let file = File::options()
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .or_else(|_| File::create(path))?;
        let begin = Instant::now();
        let written = thread::scope(|scope| {
            let write = |first: usize| {
                let mut pieces = (first..pieces).step_by(threads);
                pieces.try_for_each(|i| file.write_all_at(random.as_bytes(), (i * PIECE) as u64))
            };
            let threads: Vec<_> = (0..threads).map(|first| scope.spawn(move || write(first))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
        });
        written?;
        file.sync_all()?;
        self.write.push(ms(begin.elapsed()));
        Ok(std::fs::remove_file(path)?)
    }
}

/// Touches so many MiB, at most half of what the host can spare, and gives them back. A host that is a VM itself may
/// have given memory back to its own host, and then whoever takes memory first pays for fetching it: that is not what
/// is compared.
pub(crate) fn warm(mib: u64) {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse().ok());
    let most = kib.map_or(0, |kib: u64| kib / 2048);
    let bytes = usize::try_from(mib.min(most) << 20).unwrap_or(0);
    black_box(vec![1_u8; bytes]);
}
