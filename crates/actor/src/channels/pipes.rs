//! Pipes: data that nobody has read, and the page that stays when it was read.

use super::Scene;
use std::fs::File;
use std::io::{self, Read, Write};

/// 8 KiB that nobody reads.
pub(super) fn unread(scene: &mut Scene<'_>) -> io::Result<()> {
    let (reader, writer) = rustix::pipe::pipe()?;
    scene.whisper(|secret| File::from(writer.try_clone()?).write_all(&secret.repeat(256)))?;
    scene.hold(reader);
    scene.hold(writer);
    Ok(())
}

/// The same, read by the child: the kernel keeps the last page.
pub(super) fn read(scene: &mut Scene<'_>) -> io::Result<()> {
    let (reader, writer) = rustix::pipe::pipe()?;
    scene.whisper(|secret| {
        File::from(writer.try_clone()?).write_all(&secret.repeat(256))?;
        File::from(reader.try_clone()?).read_exact(&mut vec![0; 8192])
    })?;
    scene.hold(reader);
    scene.hold(writer);
    Ok(())
}
