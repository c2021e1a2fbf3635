//! Memory that a child fills who knows the secret, for a call that hands it to the kernel: the process itself
//! does not look at it, and gives it back.

use super::Scene;
use elision_actor::secret::SECRET_LEN;
use rustix::mm::{MapFlags, ProtFlags};
use std::io;

/// What the kernel takes from a process 8 bytes at a time.
pub(super) type Pieces = [u64; SECRET_LEN / 8];

/// A value that this process has never seen.
pub(super) struct Lent<T>(*mut T);

/// The secret as numbers.
pub(super) fn pieces(secret: &[u8; SECRET_LEN]) -> Pieces {
    let mut pieces = Pieces::default();
    for (piece, bytes) in pieces.iter_mut().zip(secret.chunks_exact(size_of::<u64>())) {
        *piece = bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    }
    pieces
}

impl Scene<'_> {
    /// Lets a child make a value.
    pub(super) fn lend<T>(&self, make: impl FnOnce(&[u8; SECRET_LEN]) -> T) -> io::Result<Lent<T>> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let (null, len) = (std::ptr::null_mut(), size_of::<T>());
        // SAFETY: new memory, at an address of the kernel's choice.
        let at = unsafe { rustix::mm::mmap_anonymous(null, len, protection, MapFlags::SHARED)? };
        let lent: Lent<T> = Lent(at.cast());
        self.whisper(|secret| {
            // SAFETY: the memory was just mapped, is as long as the value and aligned to a page.
            unsafe { lent.0.write(make(secret)) };
            Ok(())
        })?;
        Ok(lent)
    }
}

impl<T> Lent<T> {
    /// Where it is, for the kernel to read.
    pub(super) fn as_ptr(&self) -> *mut T {
        self.0
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        // SAFETY: nothing uses the mapping any more.
        let _ = unsafe { rustix::mm::munmap(self.0.cast(), size_of::<T>()) };
    }
}
