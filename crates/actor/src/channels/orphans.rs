//! Pages of a process that outlive their mapping: a pipe alone holds them.

use super::Scene;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::pipe::{IoSliceRaw, SpliceFlags};
use std::io::{self, IoSlice};

const LEN: usize = 8 << 12;

/// Pages given to a pipe by `vmsplice` and unmapped then: the child that filled them has ended.
pub(super) fn vmspliced(scene: &mut Scene<'_>) -> io::Result<()> {
    let (reader, writer) = rustix::pipe::pipe()?;
    scene.whisper(|secret| {
        let content = secret.repeat(LEN / secret.len());
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory, at an address of the kernel's choice.
        let at =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), LEN, protection, MapFlags::PRIVATE)? };
        // SAFETY: the memory was just mapped, is as long as this, and nothing else knows of it.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), at.cast(), content.len()) };
        // SAFETY: the slice is used before the memory is unmapped.
        let whole = IoSlice::new(unsafe { std::slice::from_raw_parts(at.cast(), LEN) });
        // SAFETY: the memory is never written again.
        let given =
            unsafe { rustix::pipe::vmsplice(&writer, &[IoSliceRaw::from_slice(&whole)], SpliceFlags::GIFT)? };
        // SAFETY: nothing uses the mapping any more.
        unsafe { rustix::mm::munmap(at, LEN)? };
        if given == LEN { Ok(()) } else { Err(io::Error::other("the pipe took only a part")) }
    })?;
    scene.hold(reader);
    scene.hold(writer);
    Ok(())
}
