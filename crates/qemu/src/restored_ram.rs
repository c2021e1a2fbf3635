//! Where the RAM blocks of a restored VM are mapped from: all of them stand in one RAM file.
//!
//! ```text
//! RAM file     [ block 0 | block 1 ]
//! QEMU 8.1     mapped    | mapped, by `offset=`       private: pages come in as they are touched
//! before it    mapped    | copied to memory           a file without a name that QEMU inherits and has for itself
//! ```
//! Before 8.1 QEMU maps files from their first byte on only. What is not a hole of the later blocks then takes its
//! time and its memory at each restore.

use crate::command::BlockFile;
use crate::error::{QemuError, Result};
use elision_memory::{FileOffset, Ram, RamBlock, RamLayout};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const BUFFER: usize = 1 << 20;

/// The files of a restored VM's RAM blocks. Keep it until QEMU is started, which inherits them.
#[derive(Debug)]
pub struct RestoredRam {
    files: Vec<BlockFile>,
    inherited: Vec<File>,
}

impl RestoredRam {
    /// The blocks of the RAM file `ram`, for the QEMU `program`.
    pub fn new(program: &str, ram: &Path, blocks: &[RamBlock]) -> Result<Self> {
        Self::of(program, ram, blocks, false)
    }

    /// The same of a file that QEMU inherits. If the VM is the only one that uses it, it `may_write` to it.
    pub fn inherited(program: &str, ram: &File, blocks: &[RamBlock], may_write: bool) -> Result<Self> {
        let handing_on = "hand memory on to QEMU";
        let ram = ram.try_clone().map_err(QemuError::io(handing_on))?;
        rustix::io::fcntl_setfd(&ram, rustix::io::FdFlags::empty()).map_err(QemuError::os(handing_on))?;
        let mut restored = Self::of(program, &inherited(&ram), blocks, may_write)?;
        restored.inherited.push(ram);
        Ok(restored)
    }

    fn of(program: &str, ram: &Path, blocks: &[RamBlock], shared: bool) -> Result<Self> {
        let by_offset = blocks.iter().all(|block| block.offset.0 == 0) || maps_parts(program)?;
        let (mut files, mut copies) = (vec![], vec![]);
        for RamBlock { name, offset, len } in blocks.iter().cloned() {
            files.push(if by_offset || offset.0 == 0 {
                BlockFile { name, len, path: ram.to_owned(), offset: offset.0, shared }
            } else {
                let copy = copy(ram, offset, len)?;
                let path = inherited(&copy);
                copies.push(copy);
                BlockFile { name, len, path, offset: 0, shared: true }
            });
        }
        Ok(Self { files, inherited: copies })
    }

    /// The file of each block.
    #[must_use]
    pub fn files(&self) -> &[BlockFile] {
        &self.files
    }
}

/// The path by which QEMU opens a file that it inherits.
fn inherited(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Whether QEMU can map a file from another byte than its first one on.
fn maps_parts(program: &str) -> Result<bool> {
    let mut command = Command::new(program);
    command.args(["-object", "memory-backend-file,help"]).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().map_err(QemuError::io(format!("start {program}")))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.trim().starts_with("offset=")))
}

/// A part of the RAM file in memory, open without CLOEXEC.
fn copy(ram: &Path, start: FileOffset, len: u64) -> Result<File> {
    let doing = || format!("copy a part of {} to memory", ram.display());
    let failed = |e| QemuError::io(doing())(e);
    let file = File::open(ram).map_err(failed)?;
    let view = Ram::private(&file, RamLayout::flat(start.0.saturating_add(len))?)?;
    let copy =
        rustix::fs::memfd_create("elision-ram", MemfdFlags::empty()).map_err(QemuError::os(doing()))?;
    let copy = File::from(copy);
    copy.set_len(len).map_err(failed)?;
    let mut buffer = vec![0; BUFFER];
    for part in view.populated() {
        let mut at = part.start.max(start).0;
        while at < part.end.0 {
            let want = usize::try_from(part.end.0 - at).unwrap_or(BUFFER).min(BUFFER);
            let bytes = buffer.get_mut(..want).unwrap_or_default();
            file.read_exact_at(bytes, at).map_err(failed)?;
            copy.write_all_at(bytes, at - start.0).map_err(failed)?;
            at += want as u64;
        }
    }
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copied_part_has_the_bytes_and_the_holes() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 * MIB).unwrap();
        // One part lies across the start.
        file.as_file().write_all_at(&[1; 4 << 20], MIB).unwrap();
        file.as_file().write_all_at(b"last", 8 * MIB - 4).unwrap();
        let copy = copy(file.path(), FileOffset(2 * MIB), 6 * MIB).unwrap();
        let (mut found, mut expected) = (vec![0; 6 << 20], vec![0; 6 << 20]);
        copy.read_exact_at(&mut found, 0).unwrap();
        file.as_file().read_exact_at(&mut expected, 2 * MIB).unwrap();
        assert!(found == expected && found.contains(&1));
        let stored = copy.metadata().unwrap().blocks() * 512;
        assert!(stored < 4 * MIB, "{stored} bytes are not holes");
    }
}
