//! How a VM's RAM is reached from outside: by the files that QEMU shares, or in QEMU's own memory.
//!
//! ```text
//! a RAM block   0 ............................ len
//! QEMU          address ................ address + len      one run of mappings, all of one kind
//!                 shared file ──> the file                  (elision run, share=on)
//!                 private file, anonymous memory ──> the process
//! ```
//! Where one block is in QEMU's own memory all of them are read there. Which of QEMU's mappings a block is is not
//! guessed: QEMU tells the address at which it maps a guest address (`gpa2hva`). A file may be unlinked, or never have
//! had a name (memfd), so it is opened through `/proc`.

use crate::error::{QemuError, Result};
use crate::layout::VmRam;
use crate::maps::{Vma, mappings, run};
use crate::process::QemuProcess;
use crate::qmp::Qmp;
use elision_memory::{FileOffset, ProcessRam, ProcessRun, Ram, RamBlock, RamPiece};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// `HUGETLBFS_MAGIC` of `linux/magic.h`.
const HUGETLBFS: i64 = 0x9584_58f6;

/// Where the RAM blocks are.
#[derive(Debug)]
pub(crate) struct RamAccess {
    places: Vec<Place>,
}

/// Where one block is.
#[derive(Debug)]
struct Place {
    block: RamBlock,
    /// Of its first byte in QEMU's address space.
    address: u64,
    /// The file that QEMU maps there, and from which of its bytes on.
    file: Option<(File, u64)>,
    shared: bool,
}

impl RamAccess {
    /// Asks QEMU and `/proc`.
    pub(crate) fn find(process: &QemuProcess, qmp: &mut Qmp, ram: &VmRam) -> Result<Self> {
        let mut addresses = vec![];
        for block in &ram.blocks {
            addresses.push(address_of(block, qmp, ram)?);
        }
        let mappings = mappings(process.pid)?;
        let blocks = ram.blocks.iter().zip(addresses);
        let places = blocks.map(|(block, address)| Place::find(process.pid, &mappings, block, address));
        Ok(Self { places: places.collect::<Result<_>>()? })
    }

    /// Whether the RAM is in files, and their content is the RAM whoever writes to it.
    pub(crate) fn is_shared(&self) -> bool {
        self.places.iter().all(|place| place.shared_file().is_some())
    }

    /// The file of each block.
    pub(crate) fn shared_files(&self) -> Result<Vec<&File>> {
        let none = |place: &Place| QemuError::NotShared { block: place.block.name.clone() };
        self.places.iter().map(|place| place.shared_file().ok_or_else(|| none(place))).collect()
    }

    /// Opens the RAM for reading.
    pub(crate) fn open(&self, pid: u32, ram: &VmRam) -> Result<Ram> {
        let layout = ram.layout.clone();
        // Reading a hole of hugetlbfs through a mapping would take a huge page for it.
        let huge =
            self.places.iter().filter_map(|place| place.file.as_ref()).map(|(file, _)| is_hugetlbfs(file));
        let huge = huge.collect::<Result<Vec<_>>>()?.contains(&true);
        let mut runs = vec![];
        for Place { block, address, file, .. } in &self.places {
            let file =
                file.as_ref().map(|(file, start)| file.try_clone().map(|file| (file, *start))).transpose();
            let file = file.map_err(QemuError::io("keep the RAM file open"))?;
            runs.push(ProcessRun { offset: block.offset, len: block.len, address: *address, file });
        }
        if self.is_shared() && !huge {
            let piece = |ProcessRun { offset, len, file, .. }| Some(RamPiece { offset, len, file: file?.0 });
            return Ok(Ram::shared_in(runs.into_iter().filter_map(piece).collect(), layout)?);
        }
        Ok(Ram::of_process(ProcessRam { pid, runs }, layout)?)
    }
}

impl Place {
    fn find(pid: u32, mappings: &[Vma], block: &RamBlock, address: u64) -> Result<Self> {
        let vma = run(mappings, address, block.len)?;
        let block = block.clone();
        if vma.inode == 0 {
            // Shared anonymous memory has an inode too.
            return Ok(Self { block, address, file: None, shared: false });
        }
        let start = vma.offset.checked_add(address - vma.start);
        let start = start.ok_or_else(|| bad("the RAM is past the end of its file"))?;
        if start != 0 && vma.shared {
            return Err(bad(format!(
                "the RAM block {:?} does not begin at the start of its file",
                block.name
            )));
        }
        let file = open_mapped(pid, vma).ok_or(QemuError::RamFile { pid })?;
        let found = file.metadata().map_err(QemuError::io("see the length of the RAM file"))?.len();
        let needed = start.saturating_add(block.len);
        if found < needed {
            return Err(bad(format!("the RAM file has {found:#x} bytes instead of {needed:#x}")));
        }
        Ok(Self { block, address, file: Some((file, start)), shared: vma.shared })
    }

    /// The file, if its content is the RAM whoever writes to it.
    fn shared_file(&self) -> Option<&File> {
        self.file.as_ref().filter(|_| self.shared).map(|(file, _)| file)
    }
}

/// The address at which QEMU maps a block's first byte.
fn address_of(block: &RamBlock, qmp: &mut Qmp, ram: &VmRam) -> Result<u64> {
    let mut found = None;
    for region in ram.layout.regions() {
        let start = region.offset.max(block.offset);
        let end = FileOffset(region.offset.0 + region.len).min(block.end());
        if start >= end {
            continue;
        }
        let gpa = region.gpa.0 + (start.0 - region.offset.0);
        let address = host_address(&qmp.human(&format!("gpa2hva {gpa:#x}"))?)?;
        let address = address.checked_sub(start.0 - block.offset.0);
        let address = address.ok_or_else(|| bad("an address is too small"))?;
        if *found.get_or_insert(address) != address {
            return Err(bad(format!("QEMU does not map the RAM block {:?} in one piece", block.name)));
        }
    }
    found.ok_or_else(|| bad(format!("the RAM block {:?} is mapped nowhere", block.name)))
}

fn is_hugetlbfs(file: &File) -> Result<bool> {
    let found = rustix::fs::fstatfs(file).map_err(QemuError::os("ask for the RAM file's file system"))?;
    Ok(found.f_type == HUGETLBFS)
}

/// Opens the file of a mapping: by the mapping itself (needs privileges), by QEMU's own descriptor, by name.
fn open_mapped(pid: u32, vma: &Vma) -> Option<File> {
    if let Ok(file) = File::open(format!("/proc/{pid}/map_files/{}", vma.range)) {
        return Some(file);
    }
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok();
    let descriptors = descriptors.into_iter().flatten().flatten().map(|entry| entry.path());
    descriptors.chain([PathBuf::from(&vma.path)]).find_map(|path| {
        let is_same = |m: &std::fs::Metadata| {
            let device = (rustix::fs::major(m.dev()), rustix::fs::minor(m.dev()));
            m.is_file() && m.ino() == vma.inode && device == vma.device
        };
        // Looked at before it is opened: opening a terminal or a pipe could have effects.
        std::fs::metadata(&path).ok().filter(is_same)?;
        let file = File::open(&path).ok()?;
        file.metadata().ok().filter(is_same).map(|_| file)
    })
}

/// The number in `Host virtual address for 0x100000 (pc.ram) is 0x7f103c0ff000`.
fn host_address(text: &str) -> Result<u64> {
    text.trim()
        .rsplit_once(" is 0x")
        .and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok())
        .ok_or_else(|| bad(format!("QEMU does not tell where it maps the RAM: {}", text.trim())))
}

fn bad(why: impl Into<String>) -> QemuError {
    QemuError::RamLayout { why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_address_is_read() {
        let text = "Host virtual address for 0x100000 (pc.ram) is 0x7f103c0ff000\n";
        assert_eq!(host_address(text).unwrap(), 0x7f10_3c0f_f000);
        assert!(host_address("No memory is mapped at address 0x100000").is_err());
    }
}
