//! The kernel's log: lines that the process wrote itself. It knows the secret for as long as that takes,
//! because the kernel notes who wrote a line.

use super::Scene;
use elision_actor::secret::secret;
use std::fs::OpenOptions;
use std::io::{self, Write};

/// Eight lines of the lowest level, which no console shows.
pub(super) fn kmsg(scene: &mut Scene<'_>) -> io::Result<()> {
    let mut log = OpenOptions::new().write(true).open("/dev/kmsg")?;
    for i in 0..8 {
        let mut line = format!("<7>line {i}: ").into_bytes();
        line.extend_from_slice(&secret(scene.seed, scene.label));
        log.write_all(&line)?;
    }
    Ok(())
}
