//! A program that keeps a key in a marked region and notices when a restore has taken it away.
//!
//! Each tick is a line: `tick N of key K` while the key is there. After a restore of an image without it there is
//! one line `tick N: the key is gone` and a new key from then on; the count goes on.

use elision_mark::Region;
use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

fn main() -> io::Result<()> {
    let mut key = Region::new("keeper", 64 << 10)?;
    // A file has no buffer of its own: there is no other copy of the key.
    let mut random = File::open("/dev/urandom")?;
    key.write(|bytes| random.read_exact(bytes))?;
    for tick in 0_u64.. {
        let line = match key.read(fingerprint) {
            Some(print) => format!("tick {tick} of key {print:08x}\n"),
            None => {
                key.write(|bytes| random.read_exact(bytes))?;
                format!("tick {tick}: the key is gone\n")
            }
        };
        io::stdout().write_all(line.as_bytes())?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What may be known of the key.
fn fingerprint(key: &[u8]) -> u32 {
    key.iter().fold(2_166_136_261, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(16_777_619))
}
