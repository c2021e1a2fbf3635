//! Random numbers of a restored guest: two clones must not give out the same ones.
//!
//! What is written to `/dev/urandom` is stirred into the kernel's pool (`drivers/char/random.c`), and a request makes new
//! keys from it at once. The host's bytes are the best source. Without any there are a hardware generator if the VM has one, the
//! real-time clock, and the time that small steps take: no two clones run at the same moment on the same cycles.

use crate::error::{AgentError, Context};
use crate::sys;
use rustix::time::{ClockId, clock_gettime};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const DEVICE: &str = "/dev/urandom";
const HARDWARE: &str = "/dev/hwrng";
/// Bytes that a host may send.
const SEED_BYTES: usize = 256;
/// Steps whose time is taken.
const STEPS: usize = 4096;

/// Stirs the bytes in, with what this machine can add, and has new keys made.
pub(crate) fn stir(seed: &[u8]) -> Result<(), AgentError> {
    let mut bytes = seed.to_vec();
    bytes.extend(of_hardware());
    bytes.extend(crate::restored::real_time_clock().unwrap_or_default().to_le_bytes());
    bytes.extend(of_time());
    let path = Path::new(DEVICE);
    let mut device = OpenOptions::new().write(true).open(path).context("open", path)?;
    device.write_all(&bytes).context("write to", path)?;
    sys::reseed(&device).context("reseed", path)
}

/// The bytes of a seed in hexadecimal digits.
pub(crate) fn parse_seed(text: &str) -> Result<Vec<u8>, AgentError> {
    let wrong = || AgentError::Other("The host's seed is not understood".to_owned());
    if text.len() % 2 != 0 || text.len() > 2 * SEED_BYTES || !text.is_ascii() {
        return Err(wrong());
    }
    let byte = |i: usize| u8::from_str_radix(text.get(i..i + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(byte).collect::<Option<_>>().ok_or_else(wrong)
}

fn of_hardware() -> Vec<u8> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().try_into().unwrap_or(0);
    let mut bytes = vec![0; 64];
    let device = OpenOptions::new().read(true).custom_flags(flags).open(HARDWARE);
    let n = device.and_then(|mut device: File| device.read(&mut bytes)).unwrap_or(0);
    bytes.truncate(n);
    bytes
}

fn of_time() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 * STEPS);
    for _ in 0..STEPS {
        bytes.extend(clock_gettime(ClockId::Monotonic).tv_nsec.to_le_bytes());
        std::thread::yield_now();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_read_or_refused() {
        assert_eq!(parse_seed("00ff7A").unwrap(), [0, 0xff, 0x7a]);
        for wrong in ["0", "0g", "ää", &"00".repeat(SEED_BYTES + 1)] {
            assert!(parse_seed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn time_is_never_twice_the_same() {
        assert_ne!(of_time(), of_time());
    }
}
